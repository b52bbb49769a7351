"""Is certainty right? The certainty of words of captions held against the truth of drawn scenes.

For certainty that is calibrated the share of right words is that of their certainty, in each bin.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments import runner
from experiments.embedded.web import POOLS
from rewards.lib.lexicon import Lexicon
from rewards.lib.reliability import EDGES
from rewards.lib.word_classes import WordClasses
from vizer_rl.config.run_dir import read_heldout, read_run
from vizer_rl.data.lazy import LazyImages
from vizer_rl.data.scenes import plural, truth_of
from vizer_rl.data.sources import ImageFolder
from vizer_rl.evaluation.captioning.unsure_words import UnsureWords
from vizer_rl.evaluation.run_policy import RunPolicy

CALIBRATED = 200  # held-out scenes
ANY = 2.0  # a dial under which each word is unsure
VALUES = {value: (kind, value) for kind, values in POOLS.items() for value in values}
VALUES |= {plural(shape): ("shape", shape) for shape in POOLS["shape"]}
Bins = list[dict[str, float]]  # words, certainty, right: how many and the means of both


def calibration(folder: Path) -> dict[str, Bins]:
    """Certainties of a run against the truth: of captions that the base samples, and of learned.

    The classes of words are learned from the sampled ones, as the reward does.
    """
    run, heldout = read_run(folder), read_heldout(folder)
    source, ids = Path(heldout["source"]), heldout["ids"][:CALIBRATED]
    truth = json.loads(truth_of(source).read_text())
    images = LazyImages(ImageFolder(heldout["source"], source, ids, {}).load, ids)
    reference = RunPolicy(run, None).reference
    sampled = [texts[0] for texts in reference.sample(images, 1, run.seed)]
    learned = {line["image_id"]: line["trained"] for line in runner.read(folder, "captions.jsonl")}
    words = UnsureWords(reference, WordClasses(Lexicon.learn(sampled)), at_least=ANY)
    result = {}
    for name, captions in (("base", sampled), ("trained", [learned[i] for i in ids])):
        pairs = [
            (word["certainty"], right[word["start"]])
            for caption, scene, row in zip(captions, ids, words(captions, images), strict=True)
            for right in [dict(right_words(caption, truth[scene]))]
            for word in row
            if word["start"] in right
        ]
        result[name] = bins(pairs)
    return result


def right_words(caption: str, scene: Mapping[str, Any]) -> Iterator[tuple[int, bool]]:
    """(start, right) of each attribute and shape of a caption.

    Right: an object has it that also has what was right before it in the same phrase.
    """
    left = scene["objects"]
    for word in re.finditer("[a-z]+", caption.lower()):
        if word[0] not in VALUES:  # a phrase begins
            left = scene["objects"]
            continue
        kind, value = VALUES[word[0]]
        fitting = [thing for thing in left if thing[kind] == value]
        yield word.start(), bool(fitting)
        left = fitting or left


def bins(pairs: Sequence[tuple[float, bool]]) -> Bins:
    """Of (certainty, right): per bin of certainty how many, mean certainty, share that is right."""
    rows = []
    for low, high in pairwise(EDGES):
        within = [(c, right) for c, right in pairs if low < c <= high]
        if within:
            certainty, right = (fmean(column) for column in zip(*within, strict=True))
            rows.append({"words": len(within), "certainty": certainty, "right": right})
    return rows


def reliability(title: str, rows: Bins) -> str:
    """One line: certainty → right (words) of each bin, and the mean of both."""
    cells = [f"{b['certainty']:.2f} → {b['right']:.2f} ({b['words']:.0f})" for b in rows]
    count = sum(b["words"] for b in rows)
    means = [sum(b["words"] * b[k] for b in rows) / max(1, count) for k in ("certainty", "right")]
    return f"- {title}: {', '.join(cells)}; all {means[0]:.3f} → {means[1]:.3f} ({count:.0f})"
