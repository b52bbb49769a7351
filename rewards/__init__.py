"""The reward contract: what a reward is given, what it must give back, and how it is found by name.

A reward is one file `rewards/<name>.py` with one class whose parameters are typed keywords and
which maps a `CaptionBatch` to one float per caption, or None where it cannot judge. The file's name
is its key in a run file and its name in every log. A plain function of the batch works too.

    class Brevity:
        \"\"\"Minus the number of words.\"\"\"

        floor = -100.0

        def __call__(self, batch):
            return [-float(len(caption.split())) for caption in batch.captions]

Optional members: `floor` (given to a caption without end; default 0.0), `range` (lowest, highest),
`prepare(bank)` (called once before training); and in the module `check(reward, right, wrong)`,
how often a right caption beats a wrong one, with `RATE`, the share it must reach.
Nothing here imports vizer_rl, and no label can reach a reward: a `CaptionBatch` holds none.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from PIL.Image import Image

Scores = Sequence[float | None]


class Encoder(Protocol):
    """A frozen image-text encoder (CLIP and its kin), shared by everybody who asks for it."""

    name: str
    context_length: int  # tokens; what is beyond is not seen

    def image_features(self, ids: Sequence[str], images: Sequence[Image]) -> torch.Tensor:
        """(N, D) unit vectors; each id is encoded once and remembered."""

    def text_features(self, captions: Sequence[str]) -> torch.Tensor:
        """(N, D) unit vectors."""


class FrozenPolicy(Protocol):
    """A read-only view of the reference policy: the model before training, its adapter off."""

    key: str  # changes when the weights do

    def image_features(self, ids: Sequence[str], images: Sequence[Image]) -> torch.Tensor:
        """(N, D) mean output of its vision tower, before the connector."""

    def caption_states(self, captions: Sequence[str]) -> torch.Tensor:
        """(N, D) mean last hidden state over the caption's tokens, read without the image."""


@dataclass(frozen=True)
class CaptionBatch:
    """N captions to score, whole groups in order; equal ids are the same image.

    image_ids, images, captions, completion_ids: N each; `images` decodes when indexed.
    groups: the rows of each group, completions of one prompt.
    encoders: `encoders(None)` is the run's training scorer, `encoders("ViT-B-32/openai")` another.
    """

    image_ids: list[str]
    images: Sequence[Image]
    captions: list[str]
    groups: list[range]
    completion_ids: list[list[int]]
    encoders: Callable[[str | None], Encoder]
    policy: FrozenPolicy


@dataclass(frozen=True)
class Bank:
    """What a reward may prepare itself with before training: images, and captions of the base.

    image_ids, images: the training images; sample: captions that the frozen policy sampled for
    some of them; cache: a folder for what is dear to compute (name files by a hash of the inputs).
    """

    image_ids: list[str]
    images: Sequence[Image]
    sample: CaptionBatch
    cache: Path


def win_rate(
    reward: Callable[[CaptionBatch], Scores],
    better: CaptionBatch,
    worse: CaptionBatch | list[str],
) -> float:
    """Share of rows in which the better caption scores higher; a tie counts half.

    `worse` may be a list of captions for the same images.
    """
    if isinstance(worse, list):
        worse = replace(better, captions=worse)
    wins = 0.0
    for a, b in zip(reward(better), reward(worse), strict=True):
        if a is None or b is None:
            raise ValueError("a self-check needs a score for every caption, not None")
        wins += float(a > b) + 0.5 * float(a == b)
    return wins / len(better.captions)


def names() -> list[str]:
    """The rewards that lie in this folder, by file name."""
    folder = Path(__file__).parent
    return sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_"))


def load_module(name: str) -> ModuleType:
    """The module of a reward: a name in this folder, `dotted.path.Object` or `path/to/file.py`."""
    if name.endswith(".py"):
        path = Path(name).expanduser()
        if not path.is_file():
            raise ValueError(f"reward file {name} does not exist")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    if "." in name:
        head, _, _ = name.rpartition(".")
        try:
            return importlib.import_module(head)
        except ModuleNotFoundError as error:
            raise ValueError(f"reward {name!r}: no module {error.name!r}") from error
    if name not in names():
        near = difflib.get_close_matches(name, names(), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown reward {name!r}: there are {', '.join(names())}{hint}")
    return importlib.import_module(f"{__name__}.{name}")


def find(name: str) -> Callable[..., Any]:
    """The reward class or function of this name. Raises ValueError in one sentence."""
    module = load_module(name)
    if "." in name and not name.endswith(".py"):
        wanted = name.rpartition(".")[2]
        found = dict(_own(module)).get(wanted)
        if found is None:
            raise ValueError(f"reward {name!r}: {module.__name__} has no {wanted!r}")
        return found
    own = dict(_own(module))
    classes = [o for o in own.values() if inspect.isclass(o)]
    functions = [o for n, o in own.items() if inspect.isfunction(o) and n != "check"]
    candidates = classes or functions
    if len(candidates) != 1:
        raise ValueError(
            f"reward {name!r}: its file must define one public class or, without one, one public "
            f"function; it has {[c.__name__ for c in candidates] or 'none'}"
        )
    return candidates[0]


def _own(module: ModuleType) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        mine = getattr(value, "__module__", None) == module.__name__
        if not name.startswith("_") and mine and (inspect.isclass(value) or callable(value)):
            yield name, value


def make(name: str, parameters: dict[str, Any]) -> Callable[[CaptionBatch], Scores]:
    """The reward, built with its parameters from the run file (without `weight`)."""
    found = find(name)
    if not inspect.isclass(found):
        if parameters:
            raise ValueError(f"reward {name!r} is a function: it takes no parameters")
        return found
    reward: Any = found(**parameters)
    return reward
