"""Factory of the embedded checkpoints, from random weights, resumable: `make scenes-assets`.

.venv/bin/python -m experiments.embedded.build [--only NAME]
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from experiments.embedded import policies, quality, scorers
from experiments.embedded.pretrain import pool
from vizer_rl.assets import ASSETS
from vizer_rl.policy import load
from vizer_rl.scoring.clip import OpenClip

WORK = Path("data/scenes-assets")
# name: seed, first scene of its pool, steps of each stage
RECIPES: dict[str, tuple[int, int, tuple[int, int]]] = {
    "smolvlm": (1, 10_000_000, (1700, 1100)),
    "scorer-a": (4, 30_000_000, (800, 380)),
    "scorer-b": (3, 20_000_000, (1200, 700)),
    "qwen2vl": (2, 10_000_000, (1700, 600)),
}
SCENES = 60_000  # in a pool


def build(only: str | None = None) -> None:
    """Build all checkpoints, or `only` one, into the package's assets; unfinished ones go on."""
    console = Console()
    for name in RECIPES if only is None else [only]:
        start = time.monotonic()
        seconds = build_one(name)
        measured = measure(name)
        write_card(name, seconds, "a CPU", measured)
        console.print(f"{name}: {time.monotonic() - start:.0f} s, {json.dumps(measured)}")


def build_one(name: str) -> float:
    """Train one checkpoint, then put it into the package, weights in fp16; the seconds it took."""
    seed, first, steps = RECIPES[name]
    data, folder = pool(WORK, first, SCENES), WORK / name
    if name.startswith("scorer-"):
        seconds = scorers.build(name[-1], data, WORK, folder, seed, steps)
    else:
        parts, seconds = policies.build(name, data, WORK, seed, steps)
        parts.model.generation_config.eos_token_id = parts.processor.tokenizer.eos_token_id
        parts.model.generation_config.pad_token_id = parts.processor.tokenizer.pad_token_id
        parts.model.to(torch.float16).save_pretrained(folder)
        parts.processor.save_pretrained(folder)
    shutil.rmtree(ASSETS / name, ignore_errors=True)
    shutil.copytree(folder, ASSETS / name)
    return seconds


def measure(name: str) -> dict[str, Any]:
    """The quality of a checkpoint as it lies in the package."""
    if name.startswith("scorer-"):
        encoder = OpenClip(f"embedded:{name[-1]}", torch.device("cpu"))
        return quality.scorer_quality(encoder, "ab".index(name[-1]))
    return quality.policy_quality(*load.load_policy(name, "embedded", dtype="float32"))


def write_card(name: str, seconds: float, machine: str, measured: dict[str, Any]) -> None:
    """CARD.md beside the weights: data, recipe, seconds and on what, measured quality."""
    seed, first, steps = RECIPES[name]
    folder = ASSETS / name
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors")) / 2**20
    title = (
        "An open_clip scorer, trained as CLIP on web-like captions with the batch's negatives, as "
        f"wrong as {'ViT-B/32 (OpenAI)' if name[-1] == 'a' else 'ViT-H/14 (LAION-2B)'} "
        "(`scorers.py`, `rows.py`)"
        if name.startswith("scorer-")
        else "A captioner: tower from dense labels, then connector and language model on web-like "
        "captions, terse, biased and partly wrong, on images that do not show everything "
        "(`policies.py`, `web.py`)"
    )
    lines = [
        f"# {name}",
        f"{title}.",
        "",
        f"- data: {SCENES} drawn scenes from number {first}, procedurally generated here",
        f"- recipe: seed {seed}, steps {', '.join(map(str, steps))}; "
        f"`make scenes-assets ARGS='--only {name}'`",
        f"- training: {seconds:.0f} s on {machine}; weights {size:.1f} MiB fp16 safetensors",
        "",
        "Measured on scenes that nothing trains on (`quality.py`):",
        "```json",
        json.dumps(measured, indent=1),
        "```",
        "",
    ]
    (folder / "CARD.md").write_text("\n".join(lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Build the embedded checkpoints anew.")
    parser.add_argument("--only", choices=RECIPES, help="one of them")
    build(parser.parse_args().only)
