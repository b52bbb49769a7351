"""Captions of given images before and after training, side by side, their doubts marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image
from rich.console import Console
from typing_extensions import TypedDict  # typing's is no type for pydantic before Python 3.12

from rewards.lib.lexicon import Lexicon
from rewards.lib.word_classes import WordClasses

from ..config.validate_files import scorer_problems
from ..errors import UserError, user_message
from ..files import read_jsonl
from ..policy import load
from ..scoring import clip
from ..scoring.reward import run_opening
from .captioning.batches import Decoded
from .captioning.models import load_captioner
from .captioning.pictures import find_pictures
from .captioning.progress import captioning_progress
from .captioning.unsure_words import UnsureWords, dial
from .doubtful_words import doubtful_words
from .marks import legend, marked_words
from .run_policy import RunPolicy, trained_run
from .tables import PlainConsole, make_table


class _Captions(TypedDict):
    """What the classes of words are learned from: a line of captions.jsonl."""

    base: str
    trained: str


def caption(run_directory: Path, sources: Sequence[str | Path]) -> None:
    """Print the captions of images before and after training, side by side, in the order given.

    sources: of docs/images.md; images are named from the deepest folder that holds them all. What
    cannot be used is named and left out; UserError where nothing is left.
    """
    console = PlainConsole()
    run = trained_run(run_directory)
    pictures, decoded = find_pictures(sources, console.print), Decoded()
    for sentence in pictures.remarks:
        console.print(sentence, soft_wrap=True)
    policy = load_captioner(run, run_directory)
    marking = _Marking(policy, run_directory, console)
    table = make_table("image", "base", "trained")
    with captioning_progress(console, "captioning", len(pictures.rows)) as advance:
        for batch, images, count in decoded.batches(pictures.rows):
            names = [picture.name for picture in batch]
            with policy.before_training():
                base = [caption.text for caption in policy.captions(images)] if names else []
            trained = [caption.text for caption in policy.captions(images)] if names else []
            sides = (marking(names, images, captions) for captions in (base, trained))
            for row in zip(names, *sides, strict=True):
                table.add_row(*row)
            advance(count)
    for why in decoded.left_out.values():
        console.print(f"Left out: {why}", soft_wrap=True)
    if not table.row_count:
        raise UserError(f"not one of {len(pictures.rows)} images can be used")
    console.print(table)
    for sentence in marking.legend():
        console.print(sentence, soft_wrap=True)


class _Marking:
    """Marks doubtful and unsure words; where it cannot, none, and a sentence says why."""

    def __init__(self, policy: RunPolicy, run_directory: Path, console: Console) -> None:
        run = policy.run
        self.at_least, temperature = dial(run, run_directory)
        self.words: list[dict[str, Any]] = []  # that were marked, by kind
        self.scorer: clip.OpenClip | None = None
        try:
            for problem in scorer_problems(run.scorer.heldout):
                raise UserError(f"the held-out scorer: {problem}")
            rows = read_jsonl(run_directory / "captions.jsonl", _Captions)
            texts = [text for row in rows for text in (row["base"], row["trained"])]
            self.classes = WordClasses(Lexicon.learn(texts))
            opening = run_opening(run)
            self.scorer = clip.OpenClip(run.scorer.heldout, load.device(), opening=opening)
        except Exception as error:
            message = user_message(error)
            if message is None:
                raise
            console.print(f"Doubtful words are not marked: {message}", soft_wrap=True)
            return
        self.unsure_words = UnsureWords(policy.reference, self.classes, self.at_least, temperature)

    def __call__(self, ids: list[str], images: list[Image], captions: list[str]) -> list[str]:
        """The captions of these images with marks."""
        if self.scorer is None or not captions:
            return captions
        features = self.scorer.image_features(ids, images)
        doubtful = doubtful_words(self.scorer, features, captions, self.classes)
        unsure = self.unsure_words(captions, images)
        rows = [*zip(captions, doubtful, unsure, strict=True)]
        self.words += [{"doubtful": words, "unsure": others} for _, words, others in rows]
        return [marked_words(*row) for row in rows]

    def legend(self) -> list[str]:
        """What the marks mean, of those that were set."""
        return legend(self.words, self.at_least)
