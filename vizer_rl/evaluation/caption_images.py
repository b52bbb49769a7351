"""Captions of given images before and after training, side by side, their doubtful words marked."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL.Image import Image
from rich.console import Console
from typing_extensions import TypedDict  # typing's is no type for pydantic before Python 3.12

from rewards.lib.lexicon import Lexicon
from rewards.lib.word_classes import WordClasses

from ..config.schema import Run
from ..config.validate_files import scorer_problems
from ..data.sources import ImageFolder, find_files
from ..errors import ImageError, UserError, printable, user_message
from ..files import read_jsonl
from ..policy import load
from ..scoring import clip
from .doubtful_words import LEGEND, doubtful_words, marked
from .run_policy import RunPolicy, trained_run
from .tables import PlainConsole, make_table

# (image ids, images, captions) -> the captions with their doubtful words marked
Marking = Callable[[list[str], list[Image], list[str]], list[str]]


class _Captions(TypedDict):
    """What the classes of words are learned from: a line of captions.jsonl."""

    base: str
    trained: str


def caption(run_directory: Path, sources: Sequence[Path]) -> None:
    """Print the captions of images before and after training, side by side, in the order given.

    sources: files, folders and glob patterns; images are named from the deepest folder that holds
    them all. What cannot be used is named and left out; UserError where nothing is left.
    """
    console = PlainConsole()
    run = trained_run(run_directory)
    names, missing = _image_files(sources)
    if not names:
        raise UserError("\n".join(missing))
    for sentence in missing:
        console.print(f"Left out: {printable(sentence)}", soft_wrap=True)
    policy = RunPolicy(run, run_directory)
    batches = [*policy.batches(ImageFolder("", Path(), names, {}), console)]
    marking = _marking(run, run_directory, console)
    folder = os.path.commonpath([Path(name).absolute().parent for name in names])
    table, any_marked = make_table("image", "base", "trained"), False
    for batch in batches:
        base, trained = (marking(batch.ids, batch.pictures, c) for c in (batch.base, batch.trained))
        any_marked |= (base, trained) != (batch.base, batch.trained)
        for row in zip(batch.ids, base, trained, strict=True):
            table.add_row(str(Path(row[0]).absolute().relative_to(folder)), *row[1:])
    console.print(table)
    if any_marked:
        console.print(LEGEND)


def _marking(run: Run, run_directory: Path, console: Console) -> Marking:
    """What marks doubtful words; where it cannot, nothing, and a sentence says why."""
    try:
        for problem in scorer_problems(run.scorer.heldout):
            raise UserError(f"the held-out scorer: {problem}")
        rows = read_jsonl(run_directory / "captions.jsonl", _Captions)
        texts = [text for row in rows for text in (row["base"], row["trained"])]
        classes = WordClasses(Lexicon.learn(texts))
        scorer = clip.OpenClip(run.scorer.heldout, load.device())
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        console.print(f"Doubtful words are not marked: {message}", soft_wrap=True)
        return lambda ids, images, captions: captions

    def mark(ids: list[str], images: list[Image], captions: list[str]) -> list[str]:
        doubtful = doubtful_words(scorer, scorer.image_features(ids, images), captions, classes)
        return [marked(text, words) for text, words in zip(captions, doubtful, strict=True)]

    return mark


def _image_files(sources: Sequence[Path]) -> tuple[list[str], list[str]]:
    """The files of all sources, each once, and a sentence for each source that has none."""
    names, missing = dict[str, None](), list[str]()
    for source in sources:
        try:
            _, files = find_files(source)
        except ImageError as error:
            missing.append(f"image {str(error).removesuffix('.')}")
            continue
        names |= dict.fromkeys(map(str, files))
        if not files:
            missing.append(f"no image file in '{source}'")
    return list(names), missing
