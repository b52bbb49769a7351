"""The audit: what a run's rewards would teach its policy, measured before training, label-free.

The reference policy captions some of the run's own images; the captions are attacked, and every
reward must rank the original higher (`attacks`, `attack_scores`); `verdict` says in words what will
go wrong and what to add; `report_console` and `report_html` show it. The truth of drawn scenes is
reported, never used.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from ..config.recipe import has_dial
from ..data.scenes import truth_of
from ..files import write_text
from ..scoring.contract import RewardError
from .attack_scores import AttackScores
from .controls import (
    against_truth,
    fewer_doubtful,
    headroom,
    image_control,
    noise,
    order,
    policy_control,
    with_sum,
)
from .judges import Judges, RunParts
from .report_console import show_short
from .report_html import page
from .sample import GROUP_SIZE, sample_captions, sample_scores
from .verdict import verdict

IMAGES, IMAGES_SHORT = 64, 16
MAX_EXAMPLES = 12


def audit(parts: RunParts, *, thorough: bool = True) -> dict[str, Any]:
    """Audit a run; the content of audit.json (its keys: docs/audit.md).

    thorough: IMAGES images, all controls, and on drawn scenes the truth; else the short audit at
    the start of training, which never opens the truth. Leaves all random states as they were.
    """
    start = time.monotonic()
    with isolated_rng(parts.seed, parts.reference.model.device):
        judges = Judges(parts)
        sample = sample_captions(judges, IMAGES if thorough else IMAGES_SHORT)
        scores = sample_scores(judges, sample)
        columns = with_sum(judges, scores)
        result: dict[str, Any] = {
            "run": parts.name,
            "images": len(sample.image_ids),
            "captions_per_image": GROUP_SIZE,
            "attacked": len(sample.attacked),
            "temperature": parts.temperature,
            "rewards": dict(zip(judges.names, judges.weights, strict=True)),
            "content": [r.name for r in parts.scoring.rewards if r.content],
            "scorers": parts.scorers,
            "objections": {
                r.name: r.declared("objection", "") for r in parts.scoring.rewards if r.weight
            },
            "milliseconds": judges.milliseconds,
        }
        if sample.attacked:
            attacks = AttackScores(judges, sample, scores, thorough)
            result["attacks"] = attacks.metrics()
            result["together"] = attacks.together()
            result["trust"] = attacks.trust()
            result["no_certainty"] = attacks.objection
            result["favourites"] = attacks.favourites()
            result["worst"] = attacks.worst(MAX_EXAMPLES)
            result["controls"] = image_control(judges, sample, scores, thorough)
            result["controls"]["policy"] = policy_control(judges, sample)
        result["order"] = order(judges, sample, columns)
        result["headroom"] = headroom(sample, columns["sum"])
        if has_dial({name: {"weight": w} for name, w in result["rewards"].items()}):
            result["headroom"]["doubtful"] = fewer_doubtful(judges, sample, columns["sum"])
        if thorough:
            result["noise"] = noise(judges, sample, columns)
            truth = _truth(parts, sample.image_ids)
            result["truth"] = against_truth(sample, columns, truth) if truth else None
        for reward in parts.scoring.rewards:
            if hasattr(reward.score, "notes"):
                reward.score.notes()  # drop the audit's notes: they are not the first step's
    result["seconds"] = round(time.monotonic() - start, 1)
    result["verdict"] = verdict(result)
    return result


def save(result: dict[str, Any], parts: RunParts) -> Path:
    """Write audit.json and audit.html into the run's directory if it exists, else into audits/."""
    directory = parts.directory
    if not directory.is_dir():
        directory = Path("audits") / parts.name
        directory.mkdir(parents=True, exist_ok=True)
    write_text(directory / "audit.json", json.dumps(result, indent=1))
    write_text(directory / "audit.html", page(result, parts.images.load))
    return directory / "audit.html"


def short_audit(parts: RunParts, console: Console) -> None:
    """Run, print and save the short audit at the start of training; it stops nothing."""
    try:
        result = audit(parts, thorough=False)
    except RewardError as error:
        console.print(f"audit: cannot be done: {error}", markup=False)
        return
    show_short(console, result)
    save(result, parts)


@contextmanager
def isolated_rng(seed: int, device: torch.device) -> Iterator[None]:
    """Seed all random generators inside; restore their states on exit."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def _truth(parts: RunParts, ids: Sequence[str]) -> dict[str, Any] | None:
    """The truth of drawn scenes, by image id; None for anything else."""
    from ..evaluation.metrics.scene_facts import read_truth

    path = truth_of(Path(parts.images.root))
    if not parts.drawn_scenes or not path.is_file():
        return None
    return read_truth(path, ids, "training")
