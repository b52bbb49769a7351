"""The honest before and after of a run, from the files in its directory and nothing else."""

from __future__ import annotations

import json
import math
import shlex
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
from ..policy.shared_prefix import vision_cache
from ..scoring import clip
from .before_after import Pair, summary
from .tables import _show, _table

AT_ONCE = 32  # images decoded at a time


def evaluate(run_directory: Path) -> None:
    """Caption and score the held-out images of a run; write eval.json, captions.jsonl, print."""
    console = _console()
    run = _trained_run(run_directory)
    heldout = read_heldout(run_directory)
    images = ImageFolder(heldout["source"], Path(heldout["source"]), heldout["ids"], {})
    known = _truth(heldout, console)
    # float32 on every device: the changes that matter are as small as half precision's rounding
    scorer = clip.OpenClip(run.scorer.heldout, load.device())
    pairs = _pairs(run, run_directory / "adapter", images, console, scorer)
    truths = [known[pair.image_id] for pair in pairs] if known else None

    result = summary(pairs, truths)
    (run_directory / "eval.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    rows = [{"image_id": p.image_id, "base": p.base, "trained": p.trained} for p in pairs]
    for row, truth in zip(rows, truths or [], strict=bool(truths)):
        row["truth"] = truth["caption"]
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (run_directory / "captions.jsonl").write_text("".join(lines), encoding="utf-8")
    _show(console, result, rows)
    console.print(f"\nRun directory: {run_directory}", soft_wrap=True)


def caption(run_directory: Path, images: list[Path]) -> None:
    """Print the captions of image files before and after training, side by side."""
    console = _console()
    run = _trained_run(run_directory)
    missing = [path_not_found(path) for path in images if not path.expanduser().is_file()]
    if missing:
        raise UserError("\n".join(f"image {sentence}" for sentence in missing))
    names = [str(path.expanduser()) for path in images]
    table = _table("image", "base", "trained")
    files = ImageFolder("", Path(), names, {})
    for pair in _pairs(run, run_directory / "adapter", files, console):
        table.add_row(Path(pair.image_id).name, pair.base, pair.trained)
    console.print(table)


def next_steps(run_directory: Path) -> None:
    """Print how to open the W&B run, and a command for each thing to do next."""
    console = _console()
    run, name = read_run(run_directory), shlex.quote(run_directory.name)
    make = f"make train-{run.family}"
    lines = [
        ("caption a photo", f".venv/bin/vizer-rl caption --run {name} photo.jpg"),
        (
            "a reward of your own, in rewards/my_reward.py",
            f'{make} NAME=mine ARGS="rewards.my_reward.weight=1.0"',
        ),
        (
            "the real model on your photos, on a GPU",
            f"{make} PROFILE=full IMAGES=~/photos NAME=photos",
        ),
    ]
    if (run_directory / "wandb.json").is_file():
        tracked = json.loads((run_directory / "wandb.json").read_text(encoding="utf-8"))
        online = tracked["mode"] == "online"
        sync = f".venv/bin/wandb sync {shlex.quote(str(tracked['dir']))}"
        lines.insert(0, ("the curves on W&B", tracked["url"] if online else sync))
    console.print("\nNext:")
    for what, how in lines:
        console.print(f"  {what}\n    {how}", soft_wrap=True)


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


def _truth(heldout: Mapping[str, Any], console: Console) -> dict[str, Any] | None:
    """The truth of each held-out scene, by image id; None where there is none to be had."""
    if not heldout["drawn"]:
        return None
    path = truth_of(Path(heldout["source"]))
    if not path.is_file():
        console.print(f"Facts are not scored, because {path} is not there.", soft_wrap=True)
        return None
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    unknown = [image_id for image_id in heldout["ids"] if image_id not in known]
    if unknown:
        raise UserError(f"{path} lacks {len(unknown)} held-out scenes, the first: {unknown[0]}")
    return known


def _pairs(
    run: Run,
    adapter: Path,
    images: ImageFolder,
    console: Console,
    scorer: clip.OpenClip | None = None,
) -> list[Pair]:
    """Both captions of every image that can be decoded; the others are named and left out."""
    model, processor = load.load_policy(run.family, run.policy)
    model = PeftModel.from_pretrained(model, str(adapter)).eval()
    seen = vision_cache.of_run(run, model, processor)
    length, pairs = int(run.train["max_completion_length"]), list[Pair]()
    starts = range(0, len(images.ids), AT_ONCE)
    for start in track(starts, "captioning", console=console, transient=True):
        some = dict(_decoded(images, images.ids[start : start + AT_ONCE], console))
        if not some:
            continue
        ids, pictures = list(some), list(some.values())
        asked = (model, processor, pictures, run.data.prompt)
        told: dict[str, Any] = {"max_new_tokens": length, "features": seen}
        with model.disable_adapter():
            base = [c.text for c in captioner.caption(*asked, **told)]
        trained = [c.text for c in captioner.caption(*asked, **told)]
        cosines = [_cosines(scorer, ids, pictures, said) for said in (base, trained)]
        pairs += map(Pair, ids, base, trained, *cosines)
    if not pairs:
        raise UserError(f"not one of {len(images.ids)} images can be used")
    return pairs


def _decoded(
    images: ImageFolder, ids: Sequence[str], console: Console
) -> Iterator[tuple[str, Image]]:
    for image_id in ids:
        try:
            yield image_id, images.load(image_id)
        except ImageError as error:
            console.print(f"Left out: {error}", soft_wrap=True)


def _cosines(
    scorer: clip.OpenClip | None, ids: list[str], pictures: list[Image], captions: list[str]
) -> list[float]:
    if scorer is None:
        return [math.nan] * len(captions)
    products = scorer.image_features(ids, pictures) * scorer.text_features(captions)
    return [float(cosine) for cosine in products.sum(-1)]
