"""`vizer-rl rewards` and `vizer-rl score`: all rewards in a table; one caption under a run's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

import rewards as reward_files
from rewards import CaptionBatch

from ..config.schema import Run
from ..errors import ImageError, UserError, path_not_found
from ..evaluation.tables import PlainConsole


def list_rewards() -> None:
    """Print every reward of this installation: what it says, its range, its cost."""
    table = Table("reward", "what it says", "range", "cost", box=None, pad_edge=False)
    for name in reward_files.names():
        summary = (reward_files.find(name).__doc__ or "").strip().splitlines() or [""]
        low, high = getattr(reward_files.make(name, {}), "range", ("", ""))
        table.add_row(name, summary[0], f"[{low:g}, {high:g}]", reward_files.cost(name))
    PlainConsole().print(table)


def score(run: Run, path: Path, caption: str) -> None:
    """Print the caption's score under every reward of the run, prepared as for training.

    Raises UserError where image, caption or a reward cannot be used.
    """
    from ..data.decode import decode  # imports TRL: slow
    from ..policy.load import end_id
    from . import assemble
    from .splits import image_sets

    if not path.is_file():
        raise UserError(f"image {path_not_found(path)}")
    if not caption.strip():
        raise UserError("the caption is empty: there is nothing to score")
    if any("\ud800" <= character <= "\udfff" for character in caption):
        raise UserError("the caption has bytes that are not UTF-8")
    try:
        image = decode(path)
    except ImageError as error:
        raise UserError(f"image '{path}': {error}") from error
    rewards, console = assemble.make_rewards(run), PlainConsole()
    with console.status("preparing the rewards as for training"):
        images, _, _ = image_sets(run, console)
        components = assemble.load_components(
            run, rewards, report=console.print, warn=console.print
        )
        assemble.prepare_rewards(run, components, images, console.print)
    model, processor = components.model, components.processor
    ids = processor.tokenizer(caption, add_special_tokens=False)["input_ids"]
    longest = model.config.get_text_config().max_position_embeddings
    if len(ids) > longest:
        raise UserError(f"the caption has {len(ids)} tokens; the policy reads at most {longest}")
    ids = [*ids, end_id(model, processor)]
    reward_functions = components.reward_functions
    batch = reward_functions.batch([f"file:{path.resolve()}"], [image], [caption], [ids])
    console.print(_table(reward_functions, batch))


def _table(reward_functions: Any, batch: CaptionBatch) -> Table:
    """Per reward its weight, score, weighted score and what the score is made of; their sum."""
    judges = [r for r in reward_functions.rewards if not r.declared("groups", False)]
    scores = reward_functions.scores(batch, judges)
    refused = any((scores[r.name][0] or 0.0) < 0 for r in judges if r.gates)
    table = Table("reward", "weight", "score", "weighted", box=None, pad_edge=False)
    for column in table.columns[1:4]:
        column.justify = "right"
    table.add_column("made of", overflow="fold")  # no part of the caption is cut
    total = 0.0
    for reward in reward_functions.rewards:
        if reward not in judges:
            table.add_row(reward.name, f"{reward.weight:g}", "", "", "judges whole groups only")
            continue
        (value,) = (v if v is None else v + 0.0 for v in scores[reward.name])  # no -0.000
        total += reward.weight * (value or 0.0)
        cells = ("none", "") if value is None else (f"{value:.3f}", f"{reward.weight * value:.3f}")
        why = "not judged: the gate refuses this caption" if refused and reward.content else ""
        parts = "\n".join(filter(None, (why, _parts(reward, batch))))
        table.add_row(reward.name, f"{reward.weight:g}", *cells, parts)
    table.add_row(Text("sum", "bold"), "", "", Text(f"{total:.3f}", "bold"), "")
    return table


def _parts(reward: Any, batch: CaptionBatch) -> str:
    """What the score is made of, one line each."""
    if not hasattr(reward.score, "parts"):
        return ""
    (parts,) = reward.score.parts(batch)
    return "\n".join(f"{value:.3f}  {text}" for text, value in parts)
