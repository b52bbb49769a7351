"""What an audit looks at: captions of the frozen policy, attacks on them, and who scores them.

Which captions are attacked: of each image the one of its sampled captions that the held-out scorer
likes best, if it ends, says something, and fits its own image better than most of the others. A
base captioner's average caption may be vague or wrong, and then nothing is made worse by an attack.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import ImageStat
from PIL.Image import Image, Resampling, new

from rewards import Bank, Encoder

from .. import policy
from ..config import Run
from ..data import ImageFolder
from ..frozen import Frozen
from ..metrics.ranks import shuffle_apart
from ..scoring import Scoring
from .attacks import ATTACKS, Attack, Subject, pairs_of
from .lexis import Lexis, vocabulary

GROUP = 8  # captions of each image
SOME_WORDS = 2  # an original that says less has nothing to be made worse
NEAR_DUPLICATE = 0.95  # image cosine above which a neighbour is the same picture
CACHED = 32  # decoded images
CROP, LIGHT = 0.94, 0.06  # mild augmentation: side kept, brightness changed at most by


@dataclass(frozen=True)
class Parts:
    """The parts of a run, loaded: the policy has no adapter yet, the rewards are prepared.

    args: TRL's config; images: the training images; heldout: the scorer that no reward uses.
    """

    run: Run
    args: Any
    images: ImageFolder
    frozen: Frozen
    heldout: Encoder
    scoring: Scoring
    bank: Bank


@contextmanager
def aside(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers of its own; outside, the next ones are what they would have been."""
    kept = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(kept[0])
            np.random.set_state(kept[1])


class Pictures(Sequence[Image]):
    """The image of each row: an id of the run's images, seen as `view` shows it."""

    def __init__(self, load: Any, ids: Sequence[str], view: Any = None) -> None:
        self.load, self.ids, self.view = load, list(ids), view

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return Pictures(self.load, self.ids[row], self.view)
        image = self.load(self.ids[row])
        return self.view(image, f"{self.ids[row]}") if self.view else image


def blank(image: Image, _: str) -> Image:
    """Nothing but the image's mean colour."""
    mean = [round(v) for v in ImageStat.Stat(image).mean]
    return new("RGB", image.size, (mean[0], mean[1], mean[2]))


def augmented(turn: int) -> Any:
    """A view: a little less of the image, a little lighter or darker; never flipped."""

    def view(image: Image, image_id: str) -> Image:
        rng = random.Random(f"{turn}{image_id}")
        width, height = (round(CROP * side) for side in image.size)
        x, y = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
        part = image.crop((x, y, x + width, y + height)).resize(image.size, Resampling.BICUBIC)
        light = 1 + rng.uniform(-LIGHT, LIGHT)
        return part.point(lambda value: value * light)

    return view


@dataclass(frozen=True)
class Said:
    """What the frozen policy said: N images, GROUP sampled captions of each and the greedy one.

    ids_N; captions_NG and their tokens; greedy_N; heldout_NG and heldout_greedy_N: cosines under
    the held-out scorer; original_N: which caption is attacked, -1 where none is fit for it.
    """

    ids: list[str]
    captions: list[list[str]]
    tokens: list[list[list[int]]]
    greedy: list[str]
    heldout: np.ndarray
    heldout_greedy: np.ndarray
    original: list[int]

    @property
    def attacked(self) -> list[int]:
        """The images whose original is fit to be attacked."""
        return [n for n, g in enumerate(self.original) if g >= 0]

    def original_of(self, n: int) -> str:
        return self.captions[n][self.original[n]]


@dataclass(frozen=True)
class Row:
    """One pair of an attack: on image n, `better` became `worse`."""

    attack: Attack
    n: int
    better: str
    worse: str


class Desk:
    """Scores captions of the run's images with its rewards, the held-out scorer and the policy."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.load = lru_cache(CACHED)(parts.images.load)
        self.weights = [reward.weight for reward in parts.scoring.rewards]
        self.names = [reward.name for reward in parts.scoring.rewards]
        self.milliseconds = dict.fromkeys(self.names, 0.0)
        self.ends = policy.eos_ids(parts.frozen.model, parts.frozen.processor)

    @property
    def normalised(self) -> bool:
        """Whether training scales each reward in its group before it weighs them."""
        return bool(self.parts.args.multi_objective_aggregation == "normalize_then_sum")

    def tokens(self, caption: str) -> list[int]:
        """The caption as a completion, EOS at its end."""
        ids = self.parts.frozen.processor.tokenizer(caption, add_special_tokens=False)["input_ids"]
        return [*ids, self.ends[0]]

    def fits(self, caption: str) -> bool:
        """Whether the policy may speak so long."""
        return len(self.tokens(caption)) <= int(self.parts.args.max_completion_length)

    def score(
        self,
        ids: Sequence[str],
        captions: Sequence[str],
        tokens: Sequence[list[int]],
        size: int,
        view: tuple[str, Any] = ("", None),
    ) -> np.ndarray:
        """(K, rows) scores, NaN where a reward cannot judge; groups of `size` rows.

        view: what is added to the ids, and how each image is then seen.
        """
        named = [i + view[0] for i in ids]
        pictures = Pictures(self.load, ids, view[1])
        batch = self.parts.scoring.batch(named, pictures, captions, tokens)
        groups = [range(i, i + size) for i in range(0, len(captions), size)]
        scores = self.parts.scoring.scores(replace(batch, groups=groups))
        seconds = self.parts.scoring.seconds
        self.milliseconds = {n: 1000 * seconds[n] / len(captions) for n in self.names}
        rows = [[np.nan if v is None else v for v in scores[name]] for name in self.names]
        return np.array(rows, np.float64)

    def heldout(self, ids: Sequence[str], captions: Sequence[str]) -> np.ndarray:
        """(rows,) cosines under the held-out scorer."""
        encoder = self.parts.heldout
        images = encoder.image_features(ids, Pictures(self.load, ids))
        return (images * encoder.text_features(captions)).sum(-1).cpu().double().numpy()

    def log_probs(self, ids: Sequence[str], captions: Sequence[str]) -> np.ndarray:
        """(rows,) log-probability of each caption's tokens under the frozen policy, in nats."""
        told = self.parts.frozen.log_probs(list(captions), Pictures(self.load, ids))
        return np.array([float(t.sum()) for t in told])


def sample(desk: Desk, count: int) -> Said:
    """Let the frozen policy caption `count` images, among those whose captions are in the bank."""
    parts = desk.parts
    ids = list(parts.bank.sample.image_ids)
    ids = sorted(random.Random(1).sample(ids, min(count, len(ids))))
    rows = [i for i in ids for _ in range(GROUP)]
    asked = parts.frozen.model, parts.frozen.processor
    prompt, length = parts.run.data.prompt, int(parts.args.max_completion_length)
    said = policy.caption(
        *asked,
        Pictures(desk.load, rows),
        prompt,
        max_new_tokens=length,
        temperature=float(parts.args.temperature),
    )
    greedy = [
        c.text
        for c in policy.caption(*asked, Pictures(desk.load, ids), prompt, max_new_tokens=length)
    ]
    texts = [c.text for c in said]
    heldout = desk.heldout(rows, texts).reshape(len(ids), GROUP)
    starts = range(0, len(rows), GROUP)
    captions = [texts[i : i + GROUP] for i in starts]
    tokens = [[c.ids for c in said[i : i + GROUP]] for i in starts]
    original = _originals(desk, ids, captions, tokens, heldout)
    at = desk.heldout(ids, greedy)
    return Said(ids, captions, tokens, greedy, heldout, at, original)


def _originals(
    desk: Desk,
    ids: list[str],
    captions: list[list[str]],
    tokens: list[list[list[int]]],
    heldout: np.ndarray,
) -> list[int]:
    """Of each image the caption to attack: ended, says something, liked best, not generic."""
    ends, chosen = set(desk.ends), []
    for n, some in enumerate(captions):
        fit = [g for g, ids_ in enumerate(tokens[n]) if ids_ and ids_[-1] in ends]
        fit = [g for g in fit if len(vocabulary([some[g]])) >= SOME_WORDS]
        chosen.append(max(fit, key=lambda g: heldout[n, g]) if fit else -1)
    rows = [n for n, g in enumerate(chosen) if g >= 0]
    encoder = desk.parts.heldout
    images = encoder.image_features(ids, Pictures(desk.load, ids))
    told = encoder.text_features([captions[n][chosen[n]] for n in rows] or [""])
    for row, n in enumerate(rows):
        everywhere = images @ told[row]
        if everywhere[n] < everywhere.median():
            chosen[n] = -1  # fits other images as well or better: generic
    return chosen


def attack_rows(desk: Desk, said: Said) -> tuple[list[Row], dict[str, dict[str, int]]]:
    """Every pair of every attack that the policy could say; and how many were left out, and why."""
    bank = desk.parts.bank.sample
    everything = [*bank.captions, *(c for some in said.captions for c in some)]
    lexis, near = Lexis.learn(everything), neighbours(desk, said)
    context = min(desk.parts.scoring.encoders(None).context_length, 512)
    rows: list[Row] = []
    left = {a.name: {"unchanged": 0, "too_long": 0, "contested": 0} for a in ATTACKS}
    for n in said.attacked:
        stranger = bank.captions[(n * 7 + 3) % len(bank.captions)]
        told = (*said.captions[n], said.greedy[n])
        subject = Subject(said.original_of(n), told, near[n], stranger, context)
        for attack in ATTACKS:
            pairs, unchanged = pairs_of(attack, subject, lexis, said.ids[n])
            left[attack.name]["unchanged"] += unchanged
            for better, worse in pairs:
                if desk.fits(better) and desk.fits(worse):
                    rows.append(Row(attack, n, better, worse))
                else:
                    left[attack.name]["too_long"] += 1
    return rows, left


def neighbours(desk: Desk, said: Said) -> list[str | None]:
    """For each image the bank's caption of the nearest image, of which other things are said."""
    bank, frozen = desk.parts.bank.sample, desk.parts.frozen
    every = frozen.image_features(bank.image_ids, bank.images)
    every = torch.nn.functional.normalize(every - every.mean(0), dim=-1)
    at = {image_id: row for row, image_id in enumerate(bank.image_ids)}
    out: list[str | None] = []
    for n, image_id in enumerate(said.ids):
        alike = every @ every[at[image_id]]
        close = [int(row) for row in alike.argsort(descending=True) if alike[row] < NEAR_DUPLICATE]
        told = {*said.captions[n], said.greedy[n], ""}
        out.append(next((bank.captions[r] for r in close if bank.captions[r] not in told), None))
    return out


def others(count: int, turn: int) -> list[int]:
    """For each image the number of another one."""
    return shuffle_apart(count, 5 * turn + 1)
