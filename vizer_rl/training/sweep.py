"""Sweep of the learning rate: short full runs at three rates, and which of them to take.

The rates are a third, the whole and three times the run's own. Each run is an ordinary one with its
own directory, so a sweep that was stopped goes on where it was. They are compared on images that no
adapter was chosen by, image by image: by the held-out scorer or, under a dial, by the certainty of
their captions, for a cosine falls where less is told, as the dial asks.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from rich.console import Console

from ..config.recipe import has_dial
from ..config.run_dir import read_run
from ..config.schema import Run
from ..config.trainer_settings import GRPOSettings
from ..errors import UserError
from ..evaluation.tables import make_table
from .train import train

STEPS = 100  # of each run, or as few as the run has
FACTORS = (1 / 3, 1.0, 3.0)  # of the run's learning rate
NOISE = 2.0  # standard errors within which two means are taken as equal
LAST_STEPS = 10  # over which what is logged is averaged
DIAL = "certainty"  # the reward that says what a dial asks for
MAX_KL = 0.3  # nats per token, above which a policy has left the language of its base


@dataclass(frozen=True)
class Trial:
    """The outcome of one rate; before_N, after_N: `measure` of N held-out images, base and best.

    words: mean of the captions before and after; unended, kl: means over the last steps, NaN where
    they were not logged.
    """

    rate: float
    before_N: np.ndarray
    after_N: np.ndarray
    words: tuple[float, float]
    unended: float
    kl: float
    measure: str = "held-out score"


def sweep(run: Run, *, overwrite: bool = False) -> None:
    """Train NAME-lr-RATE for each rate unless it is finished, print the table and the choice.

    overwrite: train all anew. UserError where a directory holds a run with other settings.
    """
    runs = sweep_runs(run)
    if not overwrite:
        for one in runs:
            _refuse_other_settings(one)
    for one in runs:
        if overwrite or not _finished(one.directory):
            resume = not overwrite and any(one.directory.glob("checkpoint-*"))
            train(one, resume=resume, overwrite=not resume)
            gc.collect()  # a trainer holds itself: its weights must go before the next one's come
            torch.cuda.empty_cache()
    if PartialState().is_main_process:
        _print_trials([read_trial(one) for one in runs], Console())


def sweep_runs(run: Run) -> list[Run]:
    """The short runs of a sweep, by rising rate; rewards are audited before the first alone."""
    base = float({"learning_rate": GRPOSettings.learning_rate, **run.train}["learning_rate"])
    if base <= 0:
        raise UserError(f"train.learning_rate: {base:g}; a sweep needs a rate above 0")
    steps = run.train.get("max_steps", -1)
    steps = min(STEPS, steps) if steps > 0 else STEPS
    runs = list[Run]()
    for rate in (float(f"{base * factor:.2g}") for factor in FACTORS):
        audit = run.monitor.audit and not runs
        changes = {
            "name": f"{run.name}-lr-{rate:g}",
            "train": {**run.train, "max_steps": steps, "learning_rate": rate},
            "monitor": run.monitor.model_copy(update={"audit": audit}),
        }
        runs.append(run.model_copy(update=changes))
    return runs


def read_trial(run: Run) -> Trial:
    """The outcome of a finished run, from its captions.jsonl and metrics.jsonl."""
    captions, steps = (_rows(run.directory / n) for n in ("captions.jsonl", "metrics.jsonl"))

    def last(key: str) -> float:
        values = [step[key] for step in steps[-LAST_STEPS:] if key in step]
        return float(np.mean(values)) if values else float("nan")

    def words(side: str) -> float:
        return float(np.mean([len(row[side].split()) for row in captions]))

    dial = has_dial(run.rewards)

    def scores(side: str) -> np.ndarray:
        if not dial:
            return np.array([row[f"{side}_score"] for row in captions])
        certainties = [row[f"{side}_rewards"][DIAL] for row in captions]
        return np.array([c or 0.0 for c in certainties])  # where none judges, nothing is told

    return Trial(
        run.train["learning_rate"],
        scores("base"),
        scores("trained"),
        (words("base"), words("trained")),
        unended=last("completions/clipped_ratio"),
        kl=last("kl"),
        measure=DIAL if dial else Trial.measure,
    )


def mean_and_error(values_N: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error; infinite for a single value."""
    n = len(values_N)
    error = values_N.std(ddof=1) / np.sqrt(n) if n > 1 else np.inf
    return float(values_N.mean()), float(error)


def choose(trials: Sequence[Trial]) -> tuple[Trial | None, str]:
    """The trial to take, None where none improves, and the sentence that says why.

    Of those whose gain is beyond noise it is the lowest rate that the best one, paired by image,
    does not beat beyond noise. Trials come by rising rate and have the same images.
    """
    best = max(trials, key=lambda trial: trial.after_N.mean())
    gains = {t.rate: mean_and_error(t.after_N - t.before_N) for t in trials}
    better = [t for t in trials if gains[t.rate][0] > NOISE * gains[t.rate][1]]
    images = f"standard error over {len(best.after_N)} images, paired"
    if not better:
        return None, (
            f"No rate improves the {best.measure} beyond noise: the best, {best.rate:g}, by "
            f"{_pair(*gains[best.rate])} ({images}). Read the first run's audit and captions "
            f"before you train for longer."
        )
    best = max(better, key=lambda trial: trial.after_N.mean())
    leads = {t.rate: mean_and_error(best.after_N - t.after_N) for t in better}
    taken = next(t for t in better if leads[t.rate][0] <= NOISE * leads[t.rate][1])
    text = (
        f"Take train.learning_rate={taken.rate:g}: the {best.measure} rises by "
        f"{_pair(*gains[taken.rate])} ({images})"
    )
    if taken is not best:
        text += f"; {best.rate:g} is {_pair(*leads[taken.rate])} above it, which is noise"
    return taken, f"{text}."


def alarms(trials: Sequence[Trial]) -> list[str]:
    """A sentence for each trial whose policy has gone where its score is not to be trusted."""
    sentences = []
    for trial in trials:
        if trial.kl > MAX_KL:
            text = f"KL {trial.kl:.2f} nats per token, above {MAX_KL}: far from the base's language"
            sentences.append(f"{trial.rate:g}: {text}.")
        if np.array_equal(trial.before_N, trial.after_N):
            sentences.append(f"{trial.rate:g}: training changed no {trial.measure}.")
    return sentences


def _pair(mean: float, error: float) -> str:
    return f"{mean:+.4f} ± {error:.4f}"


def _rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one on each line."""
    with path.open(encoding="utf-8") as file:  # unlike splitlines, leaves U+2028 in a caption alone
        return [json.loads(line) for line in file]


def _finished(directory: Path) -> bool:
    """Whether a run has come to the last file that it writes."""
    return (directory / "captions.jsonl").is_file()


def _refuse_other_settings(run: Run) -> None:
    """UserError where the directory of a run holds one with other settings, or no run."""
    if not run.directory.exists():
        return
    old, new = read_run(run.directory).model_dump(), run.model_dump()
    different = [key for key in new if old[key] != new[key]]
    if different:
        raise UserError(
            f"{run.directory} was run with other settings ({', '.join(different)}): --overwrite "
            f"runs the sweep anew, or give another name"
        )


def _print_trials(trials: Sequence[Trial], console: Console) -> None:
    """The table of the trials, alarms, and which rate to take."""
    table = make_table("rate", trials[0].measure, "change", "words", "unended", "KL")
    for trial in trials:
        table.add_row(
            f"{trial.rate:g}",
            f"{trial.before_N.mean():.4f} → {trial.after_N.mean():.4f}",
            _pair(*mean_and_error(trial.after_N - trial.before_N)),
            f"{trial.words[0]:.1f} → {trial.words[1]:.1f}",
            *("–" if np.isnan(x) else f"{x:.3f}" for x in (trial.unended, trial.kl)),
        )
    console.print("\nSweep of the learning rate, best adapter of each run on held-out images:")
    console.print(table)
    for sentence in (*alarms(trials), choose(trials)[1]):
        console.print(sentence, soft_wrap=True, markup=False, highlight=False)
