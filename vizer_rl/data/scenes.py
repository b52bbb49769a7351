"""Synthetic scenes of one to three shapes, drawn from a seed, with the ground truth of each.

A scene is pixels plus truth (objects, one principal relation, a full caption). Training sees only
the pixels; `write` keeps the truth beside them, for the evaluation, the audit and the experiments.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw

SIDE = 96  # pixels
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross")
COLOURS = {
    "red": (214, 40, 40),
    "orange": (245, 135, 25),
    "yellow": (240, 210, 35),
    "green": (45, 150, 65),
    "blue": (40, 90, 205),
    "purple": (125, 50, 165),
    "pink": (245, 125, 185),
    "black": (35, 35, 40),
}
SIZES = ("small", "large")
FILLS = ("solid", "striped")
RELATIONS = ("left of", "above", "inside")
RADIUS = {"small": (11, 15), "large": (14, 19)}  # pixels, inclusive; 14 and 15 are either
INSIDE_RADIUS = (29, 31)  # the outer object of an "inside" scene, which must hold another
BACKGROUNDS = ((236, 234, 228), (222, 230, 238), (228, 236, 222), (240, 228, 220), (205, 208, 214))
NUMBERS = {2: "two", 3: "three"}
COLOUR_DRIFT, NOISE = 42, 9  # levels of 255: the most a channel moves; standard deviation
STRIPE = (0.62, 0.94)  # of the colour in an object's stripes, the rest is white


@dataclass(frozen=True)
class Thing:
    """One object: its four attributes, its centre and its radius in pixels."""

    shape: str
    colour: str
    size: str
    fill: str
    x: int
    y: int
    r: int

    @property
    def kind(self) -> tuple[str, str, str, str]:
        return self.size, self.fill, self.colour, self.shape


@dataclass(frozen=True)
class Scene:
    """The truth of a scene: objects in caption order and the relation of the first two, if any."""

    objects: tuple[Thing, ...]
    relation: str | None
    background: int
    seed: int

    @property
    def caption(self) -> str:
        """The full, true caption: every object, attribute, count and the principal relation."""
        first, rest = self.objects[0], list(self.objects[1:])
        if self.relation:
            text = f"{phrase(first)} {self.relation} {phrase(rest.pop(0))}"
        else:
            same = [o for o in self.objects if o.kind == first.kind]
            text = phrase(first, len(same))
            rest = [o for o in rest if o.kind != first.kind]
        return " and ".join([text, *map(phrase, rest)])


def plural(shape: str) -> str:
    return "crosses" if shape == "cross" else shape + "s"


def phrase(thing: Thing, count: int = 1) -> str:
    """The noun phrase for `count` objects like this one: "a small striped red circle"."""
    if count == 1:
        return "a " + " ".join(thing.kind)
    return " ".join((NUMBERS[count], *thing.kind[:3], plural(thing.shape)))


def random_kind(rng: np.random.Generator) -> tuple[str, str, str, str]:
    """A (shape, colour, size, fill), uniform and independent."""
    pools = (SHAPES, tuple(COLOURS), SIZES, FILLS)
    a, b, c, d = (pool[int(rng.integers(len(pool)))] for pool in pools)
    return a, b, c, d


def sample(seed: int) -> Scene:
    """Scene number `seed`: one object (30 %), two (45 %) or three (25 %).

    A quarter of the scenes with several objects hold two or three of exactly the same kind (a count
    and no relation); the others hold different kinds, the first two in a clear relation.
    """
    rng = np.random.default_rng(seed)
    n = int(rng.choice([1, 2, 3], p=[0.30, 0.45, 0.25]))
    kinds = [random_kind(rng)]
    relation = None
    if n > 1 and rng.random() < 0.25:
        same = int(rng.integers(2, n + 1))
        kinds *= same
    elif n > 1:
        relation = RELATIONS[int(rng.choice(3, p=[0.4, 0.4, 0.2]))]
    while len(kinds) < n:
        kind = random_kind(rng)
        if kind not in kinds:
            kinds.append(kind)
    if relation == "inside":
        (s0, c0, _, f0), (s1, c1, _, f1) = kinds[:2]
        while s1 == "cross" or c1 == c0:  # a cross has no inside; same colours would not be seen
            s1, c1, _, f1 = random_kind(rng)
        kinds[:2] = [(s0, c0, "small", f0), (s1, c1, "large", f1)]
        if n == 3:  # the outer object takes two thirds of the canvas: a third is small
            s2, c2, _, f2 = kinds[2]
            kinds[2] = (s2 if (s2, c2) != (s0, c0) else "cross", c2, "small", f2)
    return Scene(tuple(place(kinds, relation, rng)), relation, int(rng.integers(1 << 16)), seed)


def place(kinds: list[Any], relation: str | None, rng: np.random.Generator) -> Iterator[Thing]:
    """Centres and radii, so that no two objects touch unless one is inside the other."""
    radii = [int(rng.integers(*RADIUS[k[2]], endpoint=True)) for k in kinds]
    if relation == "inside":
        radii[1] = int(rng.integers(*INSIDE_RADIUS, endpoint=True))
    for _ in range(10_000):
        spots = _spots(len(kinds), relation, radii, rng)
        inside_canvas = all(
            r + 1 <= v <= SIDE - 2 - r for s, r in zip(spots, radii, strict=True) for v in s
        )
        pairs = [(i, j) for i in range(len(kinds)) for j in range(i)]
        if relation == "inside":
            pairs.remove((1, 0))
        apart = all(math.dist(spots[i], spots[j]) > radii[i] + radii[j] + 1 for i, j in pairs)
        if inside_canvas and apart:
            break
    else:
        raise RuntimeError(f"no room for {kinds} {relation}")
    for (shape, colour, size, fill), (x, y), r in zip(kinds, spots, radii, strict=True):
        yield Thing(shape, colour, size, fill, int(x), int(y), r)


def _spots(n: int, relation: str | None, radii: list[int], rng: np.random.Generator) -> list[Any]:
    free = [rng.integers(10, SIDE - 10, 2) for _ in range(n)]
    if relation == "inside":
        down = 3 if n > 1 else 0  # triangles and hearts are roomiest a little off their centre
        free[0] = free[1] + rng.integers(-2, 3, 2) + (0, down - 2)
    elif relation:
        near, far = sorted((rng.integers(10, 40), rng.integers(56, SIDE - 10)))
        across = rng.integers(10, SIDE - 10)
        a, b = np.array((near, across)), np.array((far, across + rng.integers(-9, 10)))
        free[:2] = [a, b] if relation == "left of" else [a[::-1], b[::-1]]
    return free


@lru_cache(maxsize=4096)
def _mask(shape: str, r: int, angle: int, fill: str) -> tuple[np.ndarray, np.ndarray]:
    """Antialiased coverage of the object and of its paler stripes, each (2r+3, 2r+3) in [0, 1]."""
    k, side = 4, 2 * r + 3
    image = Image.new("L", (side * k, side * k))
    draw = ImageDraw.Draw(image)
    c, R = side * k / 2, r * k

    def polygon(points: list[tuple[float, float]]) -> None:
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        turned = [(c + R * (x * cos - y * sin), c + R * (x * sin + y * cos)) for x, y in points]
        draw.polygon(turned, fill=255)

    if shape == "circle":
        draw.ellipse((c - 0.92 * R, c - 0.92 * R, c + 0.92 * R, c + 0.92 * R), fill=255)
    elif shape == "square":
        polygon([(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)])
    elif shape == "triangle":
        polygon([(0, -1), (0.95, 0.75), (-0.95, 0.75)])
    elif shape == "star":
        tips = [(1.0 if i % 2 == 0 else 0.42, math.pi * i / 5) for i in range(10)]
        polygon([(p * math.sin(t), -p * math.cos(t)) for p, t in tips])
    elif shape == "heart":
        curve = [2 * math.pi * i / 60 for i in range(60)]
        waves = [13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) for t in curve]
        polygon([(math.sin(t) ** 3, -w / 16 - 0.1) for t, w in zip(curve, waves, strict=True)])
    else:
        a = 0.3
        polygon(
            [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a)]
            + [(a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]
        )
    bands = Image.new("L", image.size)
    if fill == "striped":
        pen, period = ImageDraw.Draw(bands), 5 * k
        for x in range(-image.width, 2 * image.width, period):
            pen.line((x, 0, x + image.width, image.width), fill=255, width=int(period * 0.36))
        bands = ImageChops.multiply(bands, image)
    small = [i.resize((side, side), Image.Resampling.BOX) for i in (image, bands)]
    return np.asarray(small[0], np.float32) / 255, np.asarray(small[1], np.float32) / 255


def render(scene: Scene) -> Image.Image:
    """The scene as a SIDE x SIDE RGB image; the same scene always gives the same pixels."""
    rng = np.random.default_rng([scene.background, scene.seed])
    base = np.array(BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))], np.float32)
    ramp = np.linspace(-1, 1, SIDE, dtype=np.float32)
    slope = rng.uniform(-9, 9, 2).astype(np.float32)
    canvas = base + (ramp[:, None] * slope[0] + ramp[None] * slope[1])[..., None]
    for thing in sorted(scene.objects, key=lambda o: -o.r):  # the outer one first
        angle = int(rng.integers(-2, 3)) * 5
        cover, bands = _mask(thing.shape, thing.r, angle, thing.fill)
        colour = COLOURS[thing.colour] + rng.uniform(-COLOUR_DRIFT, COLOUR_DRIFT, 3)
        faint = rng.uniform(*STRIPE)
        pale = colour * faint + 255 * (1 - faint)
        y, x, half = thing.y, thing.x, cover.shape[0] // 2
        spot = np.s_[y - half : y + half + 1, x - half : x + half + 1]
        paint = colour * (1 - bands[..., None]) + pale * bands[..., None]
        canvas[spot] += (paint - canvas[spot]) * cover[..., None]
    canvas += rng.normal(0, NOISE, canvas.shape).astype(np.float32)
    return Image.fromarray(canvas.clip(0, 255).astype(np.uint8))


def truth_of(images: Path) -> Path:
    """The file of the truth of an images folder: beside it, where training never reads."""
    return images.parent / "truth" / "scenes.json"


def write(folder: Path, first: int, count: int) -> Path:
    """Draw scenes first … first+count-1 into `folder`/images, their truth into `folder`/truth.

    Returns the images folder, left as it is where number and first image are what would be drawn.
    """
    images = folder / "images"
    truth, stored = truth_of(images), sorted(images.glob("*.png"))
    first_pixels = Image.open(stored[0]).convert("RGB").tobytes() if stored else b""
    if len(stored) == count and first_pixels == render(sample(first)).tobytes():
        return images
    images.mkdir(parents=True, exist_ok=True)
    truth.parent.mkdir(exist_ok=True)
    scenes = {f"{seed:07d}.png": sample(seed) for seed in range(first, first + count)}
    truths = {k: asdict(s) | {"caption": s.caption} for k, s in scenes.items()}
    truth.write_text(json.dumps(truths, indent=1))
    for name, scene in scenes.items():
        render(scene).save(images / name)
    return images
