"""Python API: what the commands do, as functions. What is slow to import is imported when called.

Mistakes of the user's raise UserError, whose message is one sentence (of a run file: a line per
mistake), before anything is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from .errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from .config.schema import Run

Config: TypeAlias = "str | Path | Run"  # a run file, the name of one that ships, or a Run
Settings: TypeAlias = Mapping[str, Any]  # {"train.max_steps": 20}: over those of the run file


def train(
    config: Config,
    settings: Settings | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    accept_changes: bool = False,
) -> Run:
    """Train a run's policy, evaluate it on held-out images, write all of it to `runs/NAME`.

    Returns the run with all its settings resolved; its `directory` holds what `vizer-rl train`
    writes there. resume: go on from the last checkpoint; accept_changes: though settings or images
    changed; overwrite: delete the directory first. Raises Interrupted where a signal stopped it.
    """
    from .training.train import train as train_run

    run = _run(config, settings, resume, overwrite)
    train_run(run, resume=resume, overwrite=overwrite, accept_changes=accept_changes)
    return run


def audit(config: Config, settings: Settings | None = None) -> dict[str, Any]:
    """Audit a run's rewards before training: the content of audit.json (docs/audit.md).

    `["verdict"]["overall"]` is "pass", "warn" or "fail". Writes audit.json and audit.html into
    `runs/NAME` where that exists, else into `audits/NAME`.
    """
    from .training.train import audit_run

    return audit_run(_run(config, settings))


def score(
    images: Iterable[str | Path | Image],
    captions: Sequence[str],
    rewards: Config,
    settings: Settings | None = None,
) -> dict[str, list[float | None]]:
    """Scores of captions, one for each image, under the rewards of a run, prepared as for training.

    images: files, or images of Pillow; rewards: a run file as for `train`. Returns one column of N
    scores per reward by name, None where it cannot judge (a gate refuses the caption, or it judges
    whole groups only), and under "sum" the weighted sums.
    """
    from .training.score import score_captions

    return score_captions(_run(rewards, settings), list(images), captions)


def _run(config: Config, settings: Settings | None, *flags: bool) -> Run:
    """The checked run; flags, resume and overwrite: its directory is checked too."""
    import torch

    from .config.load import check_directory, load_run

    if isinstance(config, str | Path):
        overrides = [f"{key}={_text(value)}" for key, value in (settings or {}).items()]
        return load_run(Path(config).expanduser(), overrides, torch.cuda.is_available(), *flags)
    if settings:
        raise UserError("settings go with a run file: a Run has its own already")
    if flags:
        check_directory(config, *flags)
    return config


def _text(value: Any) -> str:
    """A setting as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
