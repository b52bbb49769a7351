"""`vizer-rl rewards`: all rewards in a table, and one caption on every reward of a run file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import rewards
from rewards import CaptionBatch

from ..config.schema import Run
from ..errors import UserError, path_not_found


def listed() -> None:
    """Print every reward of this installation: what it says, its range, its cost."""
    table = Table("reward", "what it says", "range", "cost", box=None, pad_edge=False)
    for name in rewards.names():
        found = rewards.find(name)
        told = (found.__doc__ or "").strip().splitlines() or [""]
        low, high = getattr(rewards.make(name, {}), "range", ("", ""))
        table.add_row(name, told[0], f"[{low:g}, {high:g}]", rewards.cost(name))
    Console().print(table)


def score(run: Run, path: Path, caption: str) -> None:
    """Print the caption's score under every reward of the run, prepared as for training.

    Raises UserError where image, caption or a reward cannot be used.
    """
    from ..data.decode import decode
    from ..errors import ImageError
    from ..policy.shared_prefix import vision_cache
    from . import (
        assemble,
        splits,  # imports TRL: slow
    )

    if not path.is_file():
        raise UserError(f"image {path_not_found(path)}")
    if not caption.strip():
        raise UserError("the caption is empty: there is nothing to score")
    try:
        image = decode(path)
    except ImageError as error:
        raise UserError(f"image '{path}': {error}") from error
    made = assemble.rewards_of(run)
    console = Console()
    with console.status("preparing the rewards as for training"):
        images, _, _ = splits.image_sets(run, console)
        reference, scoring = assemble.ready(run, made)
        seen = vision_cache.of_run(run, reference.model, reference.processor)
        scoring.prepare(assemble.bank(run, reference, seen, scoring, images))
    tokenizer = reference.processor.tokenizer
    ids = [*tokenizer(caption, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    told = scoring.batch([f"file:{path.resolve()}"], [image], [caption], [ids])
    whole = [r for r in made if r.declared("groups", False)]
    single = [r for r in made if r not in whole]
    scores = scoring.scores(told, single)
    shut = any((scores[r.name][0] or 0.0) < 0 for r in single if r.gates)
    table = Table("reward", "weight", "score", "weighted", "made of", box=None, pad_edge=False)
    for column in table.columns[1:4]:
        column.justify = "right"
    for reward in made:
        if reward in whole:
            table.add_row(reward.name, f"{reward.weight:g}", "", "", "judges whole groups only")
            continue
        (value,) = (v if v is None else v + 0.0 for v in scores[reward.name])  # no -0.000
        shown = ("none", "") if value is None else (f"{value:.3f}", f"{reward.weight * value:.3f}")
        refused = "its floor: the gate refuses this caption" if shut and reward.content else ""
        parts = "\n".join(filter(None, (refused, _parts(reward, told))))
        table.add_row(reward.name, f"{reward.weight:g}", *shown, parts)
    table.add_row("[bold]sum", "", "", f"[bold]{scoring.weighted(scores)[0]:.3f}", "")
    console.print(table)


def _parts(reward: Any, told: CaptionBatch) -> str:
    """What the score is made of, one line each."""
    if not hasattr(reward.score, "parts"):
        return ""
    (parts,) = reward.score.parts(told)
    return "\n".join(f"{value:.3f}  {what}" for what, value in parts)
