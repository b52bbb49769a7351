"""Bank benchmark: seconds, and of CPU, until photographs of 12 megapixels are ready for rewards.

`python -m benchmarks.bank --images 64` draws them into a temporary folder and starts twice: the
second finds captions and features in the cache. Captions are stand-ins, so that only what is done
to images is timed; the scorer is the embedded one.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vizer_rl.data.sources import ImageFolder, find_files
from vizer_rl.policy.captioner import Caption
from vizer_rl.scoring import clip
from vizer_rl.training.reward_bank import make_bank

WIDTH, HEIGHT = 4000, 3000


class NoRewards:
    """Stands for the reward functions: no batch is scored."""

    def batch(self, *_: Any) -> None:
        return None


def draw_photos(folder: Path, count: int) -> None:
    """Write `count` JPEGs of about 4 MB: coloured clouds with a camera's noise."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (150, 200, 3), dtype=np.uint8))
        clouds = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), dtype=float)
        noisy = clouds + rng.normal(0, 6, (HEIGHT, WIDTH, 1))
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        image.save(folder / f"{number:04}.jpg", quality=90)


def start_run(folder: Path, cache: Path) -> str:
    """Seconds until captioned images are named and decoded, and then until all are encoded."""
    root, files = find_files(folder)
    images = ImageFolder(str(folder), root, [file.name for file in files], {})
    encoder = clip.OpenClip("embedded:a", torch.device("cpu"), store=cache)

    def sample(captioned: Sequence[Image.Image]) -> list[Caption]:
        sizes = [captioned[row].size for row in range(len(captioned))]  # decoded, as for a policy
        return [Caption(f"a cloud of {width} x {height}", [1]) for width, height in sizes]

    clocks = [(time.perf_counter(), time.process_time())]
    bank = make_bank(images, NoRewards(), cache, 0, ["benchmark"], sample)  # type: ignore[arg-type]
    clocks.append((time.perf_counter(), time.process_time()))
    encoder.image_features(bank.image_ids, bank.images)
    clocks.append((time.perf_counter(), time.process_time()))
    spent = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(clocks)]
    parts = zip(("captions", "features"), spent, strict=True)
    return ", ".join(f"{part} {wall:.2f} s ({cpu:.2f} of CPU)" for part, (wall, cpu) in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=clip.STORE_MIN)
    count = parser.parse_args().images
    clip.STORE_MIN = min(clip.STORE_MIN, count)  # so that few images use the store as well
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder, "photos")
        photos.mkdir()
        draw_photos(photos, count)
        for start in ("first", "second"):
            print(f"{start} start, {count} images: {start_run(photos, Path(folder, 'cache'))}")


if __name__ == "__main__":
    main()
