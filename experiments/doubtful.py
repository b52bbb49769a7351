"""Do doubtful words find the captions with a wrong fact? Rules side by side, against the truth.

Captions of held-out scenes before and after the default training. Resumable: a run that is trained
is not trained again, and what was measured lies in its directory.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments import runner
from rewards.lib.lexicon import Lexicon
from rewards.lib.word_classes import WordClasses
from vizer_rl.config.run_dir import read_heldout
from vizer_rl.data.lazy import LazyImages
from vizer_rl.data.scenes import truth_of
from vizer_rl.data.sources import ImageFolder
from vizer_rl.evaluation.doubtful_words import swap_margins
from vizer_rl.evaluation.metrics import scene_facts
from vizer_rl.evaluation.run_policy import RunPolicy, trained_run
from vizer_rl.evaluation.statistics import ranks
from vizer_rl.policy import load
from vizer_rl.scoring.clip import OpenClip
from vizer_rl.scoring.word_certainty import WordCertainty

SCENES, FILE, TINY, RESAMPLES = 200, "doubtful.json", 1e-4, 1000
SIDES = ("base", "trained")
# A rule gives a word so much doubt: the most that any other word of its class has over it.
RULES = {
    "swap": (1.0, 0.0, 0.0),  # weights of the scorer's margin, log certainty, log prior
    "certainty": (0.0, 1.0, 0.0),
    "certainty, if above blank": None,  # no credit where a blank image makes it as sure
    "certainty over blank": (0.0, 1.0, -1.0),
    "swap + certainty": (1.0, 1.0, 0.0),
    "swap + certainty over blank": (1.0, 1.0, -1.0),
}


def measure(folder: Path) -> dict[str, Any]:
    """Per side and caption: has it a wrong fact; per word of a class what each rule is made of."""
    run, heldout = trained_run(folder), read_heldout(folder)
    rows = runner.read(folder, "captions.jsonl")
    classes = WordClasses(Lexicon.learn(row[side] for row in rows for side in SIDES))
    rows, root = rows[:SCENES], Path(heldout["source"])
    ids = [row["image_id"] for row in rows]
    images = LazyImages(ImageFolder("", root, ids, {}).load, ids)
    pictures, scorer = [*images], OpenClip(run.scorer.heldout, load.device())
    features = scorer.image_features(ids, pictures)
    certainty = WordCertainty(RunPolicy(run, folder).reference)
    truth, result = json.loads(truth_of(root).read_text()), dict[str, Any]()
    for side in SIDES:
        captions = [row[side] for row in rows]
        places_N = [classes.places(caption) for caption in captions]
        margins = swap_margins(scorer, features, captions, places_N)
        sure, prior = (certainty(captions, places_N, pictures, v) for v in ("image", "blank"))
        columns = scene_facts.columns(captions, [truth[i] for i in ids])
        result[side] = {
            "wrong": columns["hallucination_rate"].tolist(),
            "words": [
                [
                    [m.tolist(), log_odds(c).tolist(), log_odds(p).tolist()]
                    for m, c, p in zip(*of_caption, strict=True)
                ]
                for of_caption in zip(margins, sure, prior, strict=True)
            ],
        }
    return result


def log_odds(probabilities: torch.Tensor) -> torch.Tensor:
    """(A,) log p of each alternative minus log p of the word, from (1 + A,) probabilities."""
    logp = probabilities.clamp(min=TINY).log()
    return logp[1:] - logp[0]


def doubts(measured: dict[str, Any], weights: tuple[float, ...] | None) -> np.ndarray:
    """(N,) doubt of the most doubtful word of each caption; above 0 it is flagged.

    Margins and log certainties are each in units of their standard deviation over all words.
    """
    if weights is None:
        return np.array([max(map(uncredited, w), default=-1.0) for w in measured["words"]])
    words_A = [np.array(word) for words in measured["words"] for word in words]
    scale = np.concatenate(words_A, axis=1).std(1)
    unit = np.array([scale[0], scale[1], scale[1]])
    factors = np.array(weights) / unit
    return np.array(
        [
            max((float((factors @ np.array(word)).max()) for word in words), default=-1e9)
            for words in measured["words"]
        ]
    )


def uncredited(word: list[list[float]]) -> float:
    """.5 minus the certainty of a word, or .5 where a blank image gives as much."""
    sure, prior = (1 / (1 + np.exp(odds).sum()) for odds in word[1:])
    return float(0.5 - sure * (sure > prior))


def auc(doubt: np.ndarray, wrong: np.ndarray) -> float:
    """Share of pairs of a wrong and a right caption in which the wrong one has more doubt."""
    count = wrong.sum()
    above = ranks(doubt)[wrong].sum() - count * (count + 1) / 2
    return float(above / (count * (~wrong).sum()))


def auc_cell(doubt: np.ndarray, wrong: np.ndarray) -> str:
    """AUC with its 95 % bootstrap interval over captions."""
    rng, values = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        rows = rng.integers(len(wrong), size=len(wrong))
        if 0 < wrong[rows].sum() < len(rows):
            values.append(auc(doubt[rows], wrong[rows]))
    low, high = np.percentile(values, [2.5, 97.5])
    return f"{auc(doubt, wrong):.3f} [{low:.3f}, {high:.3f}]"


def table(measured: dict[str, Any]) -> str:
    """A row for each rule and side."""
    head = ["captions", "wrong", "rule", "flagged", "precision", "recall", "false alarms", "AUC"]
    rows = []
    for side in SIDES:
        wrong = np.array(measured[side]["wrong"]) > 0
        for rule, weights in RULES.items():
            doubt = doubts(measured[side], weights)
            flagged = doubt > 0
            shares = [flagged, wrong[flagged], flagged[wrong], flagged[~wrong]]
            means = [share.mean() if len(share) else float("nan") for share in shares]
            cells = [f"{mean:.2f}" for mean in means]
            rows.append([side, f"{wrong.mean():.2f}", rule, *cells, auc_cell(doubt, wrong)])
    return runner.markdown(head, rows)


def main() -> None:
    """Train and measure what is missing, print the table of each family."""
    args = runner.parser(__doc__, runner.FAMILIES).parse_args()
    for family in args.only or ("smolvlm",):
        folder = runner.directory("doubtful", family)
        if not args.table:
            runner.train(family, folder, 0, ())
        if not args.table and not runner.finished([folder], FILE):
            (folder / FILE).write_text(json.dumps(measure(folder)))
        if runner.finished([folder], FILE):
            print(f"{family}, {SCENES} held-out scenes:\n\n{table(runner.read(folder, FILE))}\n")


if __name__ == "__main__":
    main()
