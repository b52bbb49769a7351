"""Evaluation of a run: its held-out images captioned with and without the adapter, and scored.

Reads the run directory (settings, adapter, held-out list), the images and, of drawn scenes, their
truth; loads the policy and the held-out scorer.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image
from rich.console import Console
from rich.progress import track

from rewards.lib.chunks import caption_cosines

from ..config.run_dir import read_heldout, read_run
from ..config.schema import Run
from ..config.validate_files import model_problems, scorer_problems
from ..data.scenes import truth_of
from ..data.sources import ImageFolder, find_files
from ..errors import ImageError, UserError, printable
from ..files import write_jsonl, write_text
from ..policy import captioner, load
from ..policy.lora import load_adapter
from ..policy.shared_prefix.vision_cache import build_vision_cache
from ..scoring import clip
from .before_after import Pair, summary
from .metrics.scene_facts import read_truth
from .tables import PlainConsole, make_table, print_evaluation

IMAGE_BATCH = 32  # images decoded and captioned together


def evaluate(run_directory: Path) -> None:
    """Caption and score a run's held-out images; write eval.json and captions.jsonl, print both.

    UserError where the run has no adapter, no held-out image can be used or truth is missing.
    """
    console = PlainConsole()
    run = _trained_run(run_directory)
    for problem in scorer_problems(run.scorer.heldout):
        raise UserError(f"held-out scorer of run '{run_directory}': {problem}")
    heldout = read_heldout(run_directory)
    images = ImageFolder(heldout["source"], Path(heldout["source"]), heldout["ids"], {})
    truth_by_id = _read_truth(heldout, console)
    # float32 on every device: the changes that matter are as small as half precision's rounding
    scorer = clip.OpenClip(run.scorer.heldout, load.device())
    pairs = _caption_pairs(run, run_directory / "adapter", images, console, scorer)
    truths = [truth_by_id[pair.image_id] for pair in pairs] if truth_by_id else None

    result = summary(pairs, truths)
    write_text(run_directory / "eval.json", json.dumps(result, indent=1))
    rows: list[dict[str, Any]] = [
        {
            "image_id": p.image_id,
            "base": p.base,
            "trained": p.trained,
            "base_score": p.base_cosine,
            "trained_score": p.trained_cosine,
        }
        for p in pairs
    ]
    for row, truth in zip(rows, truths or [], strict=bool(truths)):
        row["truth"] = truth["caption"]
    write_jsonl(run_directory / "captions.jsonl", rows)
    print_evaluation(console, result, rows)
    console.print(f"\nRun directory: {run_directory}", soft_wrap=True)


def caption(run_directory: Path, sources: Sequence[Path]) -> None:
    """Print the captions of images before and after training, side by side, in the order given.

    sources: files, folders and glob patterns; images are named from the deepest folder that holds
    them all. What cannot be used is named and left out; UserError where nothing is left.
    """
    console = PlainConsole()
    run = _trained_run(run_directory)
    names, missing = _image_files(sources)
    if not names:
        raise UserError("\n".join(missing))
    for sentence in missing:
        console.print(f"Left out: {printable(sentence)}", soft_wrap=True)
    table = make_table("image", "base", "trained")
    files = ImageFolder("", Path(), names, {})
    folder = os.path.commonpath([Path(name).absolute().parent for name in names])
    for pair in _caption_pairs(run, run_directory / "adapter", files, console):
        path = Path(pair.image_id).absolute().relative_to(folder)
        table.add_row(str(path), pair.base, pair.trained)
    console.print(table)


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


def _trained_run(run_directory: Path) -> Run:
    """The run of a directory that holds an adapter; else UserError."""
    run = read_run(run_directory)
    if not (run_directory / "adapter" / "adapter_config.json").is_file():
        raise UserError(
            f"run '{run_directory}' has no trained weights: '{run_directory / 'adapter'}' holds no "
            f"adapter; train it to its first look at the held-out scorer"
        )
    for problem in model_problems(run.policy.model, run.family):
        raise UserError(f"policy.model of run '{run_directory}': {problem}")
    return run


def _read_truth(heldout: Mapping[str, Any], console: Console) -> dict[str, Any] | None:
    """The truth of each held-out scene, by image id; None for photos or where the file is gone."""
    if not heldout["drawn"]:
        return None
    path = truth_of(Path(heldout["source"]))
    if not path.is_file():
        console.print(f"Facts are not scored, because {path} is not there.", soft_wrap=True)
        return None
    return read_truth(path, heldout["ids"], "held-out")


def _caption_pairs(
    run: Run,
    adapter: Path,
    images: ImageFolder,
    console: Console,
    scorer: clip.OpenClip | None = None,
) -> list[Pair]:
    """Both captions of every image that can be decoded; the others are named and left out."""
    policy = run.policy.model_dump(exclude={"instruct", "lora"})
    model, processor = load.load_policy(run.family, **policy)
    model = load_adapter(model, adapter)
    engine = run.engine.model_dump()
    vision_cache = build_vision_cache(model, processor, run.family, **engine)
    length, pairs = int(run.train["max_completion_length"]), list[Pair]()
    starts = range(0, len(images.ids), IMAGE_BATCH)
    for start in track(starts, "captioning", console=console, transient=True):
        batch = dict(_decoded(images, images.ids[start : start + IMAGE_BATCH], console))
        if not batch:
            continue
        ids, pictures = list(batch), list(batch.values())
        inputs = (model, processor, pictures, run.data.prompt)
        kwargs: dict[str, Any] = {"max_new_tokens": length, "vision_cache": vision_cache}
        with model.disable_adapter():
            base = [c.text for c in captioner.caption(*inputs, **kwargs)]
        trained = [c.text for c in captioner.caption(*inputs, **kwargs)]
        cosines = [_cosines(scorer, ids, pictures, captions) for captions in (base, trained)]
        pairs += map(Pair, ids, base, trained, *cosines)
    if not pairs:
        raise UserError(f"not one of {len(images.ids)} images can be used")
    return pairs


def _decoded(
    images: ImageFolder, ids: Sequence[str], console: Console
) -> Iterator[tuple[str, Image]]:
    """Id and image of each file that can be decoded; the others are named on the console."""
    for image_id in ids:
        try:
            yield image_id, images.load(image_id)
        except ImageError as error:
            console.print(f"Left out: {printable(str(error))}", soft_wrap=True)


def _cosines(
    scorer: clip.OpenClip | None, ids: list[str], pictures: list[Image], captions: list[str]
) -> list[float]:
    """Cosine of each image with its caption; NaN without a scorer."""
    if scorer is None:
        return [math.nan] * len(captions)
    return [float(cosine) for cosine in caption_cosines(scorer, ids, pictures, captions)]
