"""Evaluation of a run: its held-out images captioned with and without the adapter, and scored.

Reads the run directory (settings, adapter, held-out list), the images and, of drawn scenes, their
truth; loads the policy and the held-out scorer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel
from PIL.Image import Image
from rich.console import Console
from rich.progress import track

from ..config.run_dir import read_heldout, read_run
from ..config.schema import Run
from ..data.scenes import truth_of
from ..data.sources import ImageFolder
from ..errors import ImageError, UserError, path_not_found
from ..policy import captioner, load
from ..policy.shared_prefix.vision_cache import build_vision_cache
from ..scoring import clip
from .before_after import Pair, summary
from .tables import make_table, print_evaluation

IMAGE_BATCH = 32  # images decoded and captioned together


def evaluate(run_directory: Path) -> None:
    """Caption and score a run's held-out images; write eval.json and captions.jsonl, print both.

    UserError where the run has no adapter, no held-out image can be used or truth is missing.
    """
    console = _console()
    run = _trained_run(run_directory)
    heldout = read_heldout(run_directory)
    images = ImageFolder(heldout["source"], Path(heldout["source"]), heldout["ids"], {})
    truth_by_id = _read_truth(heldout, console)
    # float32 on every device: the changes that matter are as small as half precision's rounding
    scorer = clip.OpenClip(run.scorer.heldout, load.device())
    pairs = _caption_pairs(run, run_directory / "adapter", images, console, scorer)
    truths = [truth_by_id[pair.image_id] for pair in pairs] if truth_by_id else None

    result = summary(pairs, truths)
    (run_directory / "eval.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    rows = [{"image_id": p.image_id, "base": p.base, "trained": p.trained} for p in pairs]
    for row, truth in zip(rows, truths or [], strict=bool(truths)):
        row["truth"] = truth["caption"]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (run_directory / "captions.jsonl").write_text("".join(lines), encoding="utf-8")
    print_evaluation(console, result, rows)
    console.print(f"\nRun directory: {run_directory}", soft_wrap=True)


def caption(run_directory: Path, images: list[Path]) -> None:
    """Print the captions of image files before and after training, side by side."""
    console = _console()
    run = _trained_run(run_directory)
    missing = [path_not_found(path) for path in images if not path.expanduser().is_file()]
    if missing:
        raise UserError("\n".join(f"image {sentence}" for sentence in missing))
    names = [str(path.expanduser()) for path in images]
    table = make_table("image", "base", "trained")
    files = ImageFolder("", Path(), names, {})
    for pair in _caption_pairs(run, run_directory / "adapter", files, console):
        table.add_row(Path(pair.image_id).name, pair.base, pair.trained)
    console.print(table)


def _console() -> Console:
    """A console that prints captions as they are: "[red]" and ":star:" are text."""
    return Console(markup=False, emoji=False, highlight=False)


def _trained_run(run_directory: Path) -> Run:
    """The run of a directory that holds an adapter; else UserError."""
    run = read_run(run_directory)
    if not (run_directory / "adapter" / "adapter_config.json").is_file():
        raise UserError(
            f"run '{run_directory}' has no trained weights: '{run_directory / 'adapter'}' holds no "
            f"adapter; train it to its first look at the held-out scorer"
        )
    return run


def _read_truth(heldout: Mapping[str, Any], console: Console) -> dict[str, Any] | None:
    """The truth of each held-out scene, by image id; None for photos or where the file is gone."""
    if not heldout["drawn"]:
        return None
    path = truth_of(Path(heldout["source"]))
    if not path.is_file():
        console.print(f"Facts are not scored, because {path} is not there.", soft_wrap=True)
        return None
    truth_by_id: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    missing = [image_id for image_id in heldout["ids"] if image_id not in truth_by_id]
    if missing:
        raise UserError(f"{path} lacks {len(missing)} held-out scenes, the first: {missing[0]}")
    return truth_by_id


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
    model = PeftModel.from_pretrained(model, str(adapter)).eval()
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
            console.print(f"Left out: {error}", soft_wrap=True)


def _cosines(
    scorer: clip.OpenClip | None, ids: list[str], pictures: list[Image], captions: list[str]
) -> list[float]:
    """Cosine of each image with its caption; NaN without a scorer."""
    if scorer is None:
        return [math.nan] * len(captions)
    products = scorer.image_features(ids, pictures) * scorer.text_features(captions)
    return [float(cosine) for cosine in products.sum(-1)]
