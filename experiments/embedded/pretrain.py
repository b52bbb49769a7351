"""Pre-training of all embedded checkpoints: pool of scenes, dense labels, resumable loop."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import nn

from experiments.embedded.muon import Muon
from vizer_rl.data.scenes import (
    COLOURS,
    FILLS,
    NUMBERS,
    RELATIONS,
    SHAPES,
    SIDE,
    SIZES,
    Scene,
    Thing,
    render,
    sample,
)

# the role of an object among the others: in the principal relation, in a count, or none
ROLES = ("none", *RELATIONS, "right of", "below", "around", *NUMBERS.values())
INVERSE = dict(zip(RELATIONS, ROLES[4:7], strict=True))
CLASSES = (SHAPES, tuple(COLOURS), SIZES, FILLS, ROLES)
LABELS = len(CLASSES) + 3
DENSE = sum(len(c) + 1 for c in CLASSES) + 3  # logits of each class or "nothing", and dx, dy, r


@dataclass
class Pool:
    """Scenes for pre-training: pixels (N, SIDE, SIDE, 3) uint8 and their truth."""

    pixels: np.ndarray
    scenes: list[Scene]


def pool(folder: Path, first: int, count: int) -> Pool:
    """Scenes first … first+count-1, drawn once by all cores and kept in `folder`."""
    pixels, scenes = folder / f"pool-{first}-{count}.npy", folder / f"pool-{first}-{count}.json"
    if not scenes.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(os.cpu_count()) as workers:
            seeds = range(first, first + count)
            drawn = workers.map(_draw, seeds, chunksize=500)
            pairs = list(track(drawn, f"drawing {count} scenes", total=count))
        np.save(pixels, np.stack([p for p, _ in pairs]))
        scenes.write_text(json.dumps([asdict(scene) for _, scene in pairs]))
    return Pool(np.load(pixels), [_scene(**entry) for entry in json.loads(scenes.read_text())])


def _scene(objects: list[dict[str, Any]], **others: Any) -> Scene:
    return Scene(tuple(Thing(**entry) for entry in objects), **others)


def _draw(seed: int) -> tuple[np.ndarray, Scene]:
    scene = sample(seed)
    return np.asarray(render(scene)), scene


def to_pixels(images: np.ndarray) -> torch.Tensor:
    """(N, SIDE, SIDE, 3) uint8 -> (N, 3, SIDE, SIDE) in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def dense_labels(scenes: Iterable[Scene], grid: int) -> torch.Tensor:
    """(N, grid, grid, LABELS): classes (0 = nothing there) and dx, dy, r of the object.

    A cell belongs to the smallest object over its centre, or whose centre lies in it.
    """
    step = SIDE / grid
    centres = (np.arange(grid) + 0.5) * step
    labels = []
    for scene in scenes:
        label = np.zeros((grid, grid, LABELS), np.float32)
        for o in sorted(scene.objects, key=lambda o: -o.r):
            dx, dy = o.x - centres[None, :], o.y - centres[:, None]
            inside = np.hypot(dx, dy) < 0.85 * o.r
            inside |= (np.abs(dx) <= step / 2) & (np.abs(dy) <= step / 2)
            values = (o.shape, o.colour, o.size, o.fill, role(scene, o))
            classes = [c.index(v) + 1 for c, v in zip(CLASSES, values, strict=True)]
            label[inside, :-3] = classes
            label[..., -3][inside] = np.broadcast_to(dx, inside.shape)[inside] / 24
            label[..., -2][inside] = np.broadcast_to(dy, inside.shape)[inside] / 24
            label[..., -1][inside] = o.r / 24
        labels.append(label)
    return torch.from_numpy(np.stack(labels))


def role(scene: Scene, thing: Thing) -> str:
    """The role (of ROLES) of an object in this scene."""
    same = sum(o.kind == thing.kind for o in scene.objects)
    if same > 1:
        return NUMBERS[same]
    if scene.relation and thing in scene.objects[:2]:
        return scene.relation if thing == scene.objects[0] else INVERSE[scene.relation]
    return ROLES[0]


def dense_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each attribute and squared error of the offsets, per cell.

    logits (…, DENSE), labels (…, LABELS) as `dense_labels` gives them.
    """
    logits, labels = logits.flatten(0, -2), labels.flatten(0, -2)
    loss, start = torch.zeros(()), 0
    for i, c in enumerate(CLASSES):
        loss = loss + nn.functional.cross_entropy(
            logits[:, start : start + len(c) + 1], labels[:, i].long()
        )
        start += len(c) + 1
    object_mask = labels[:, :1] > 0
    return loss + ((logits[:, start:] - labels[:, -3:]).square() * object_mask).mean()


def dense_accuracy(logits: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """Share of object cells whose shape, colour, size, fill, role is right."""
    object_mask, accuracies, start = labels[..., 0] > 0, [], 0
    for i, c in enumerate(CLASSES):
        right = logits[..., start : start + len(c) + 1].argmax(-1) == labels[..., i]
        accuracies.append(right[object_mask].float().mean().item())
        start += len(c) + 1
    return accuracies


def fit(
    name: str,
    module: nn.Module,
    loss: Callable[[int], torch.Tensor],
    steps: int,
    lr: float,
    folder: Path,
) -> float:
    """Minimise loss(step) over the module's parameters; returns the seconds it took.

    Muon for the matrices inside the network, AdamW for the rest and LoRA, linear decay to zero.
    State is kept in `folder`/name.pt every 100 steps, so that a run that was cut goes on there.
    """
    matrices = [
        p
        for n, p in module.named_parameters()
        if p.ndim == 2 and not any(word in n for word in ("emb", "head", "lora"))
    ]
    ids = {id(p) for p in matrices}
    rest = [p for p in module.parameters() if id(p) not in ids]
    optimizers = [
        Muon(matrices, lr=lr, weight_decay=0.02),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    path, first, seconds = folder / f"{name}.pt", 0, 0.0
    if path.exists():
        state = torch.load(path, map_location="cpu", weights_only=True)
        module.load_state_dict(state["module"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first, seconds = state["step"], state["seconds"]
    start, running = time.monotonic() - seconds, 0.0
    for step in track(range(first, steps), f"{name} ({steps} steps)", total=steps, completed=first):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1.0, (step + 1) / 100) * (1 - step / steps)
            optimizer.zero_grad()
        value = loss(step)
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        running = value.item() if step == first else 0.98 * running + 0.02 * value.item()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            seconds = time.monotonic() - start
            print(f"{name} step {step + 1}/{steps} loss {running:.4f} {seconds:.0f} s", flush=True)
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(
                {
                    "module": module.state_dict(),
                    "optimizers": [o.state_dict() for o in optimizers],
                    "step": step + 1,
                    "seconds": seconds,
                },
                path.with_suffix(".part"),
            )
            path.with_suffix(".part").replace(path)
    return seconds
