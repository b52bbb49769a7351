"""`vizer-rl rewards` and `vizer-rl score`: all rewards in a table; one caption under a run's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image
from rich.table import Table
from rich.text import Text

import rewards as reward_files
from rewards import CaptionBatch
from rewards.lib.images import image_hash

from ..config.schema import Run
from ..errors import UserError, path_not_found
from ..evaluation.tables import PlainConsole


def list_rewards() -> None:
    """Print every reward of this installation: what it says, its range, its cost."""
    table = Table("reward", "what it says", "range", "cost", box=None, pad_edge=False)
    for name in reward_files.names():
        summary = (reward_files.find(name).__doc__ or "").strip().splitlines() or [""]
        declared: Any = reward_files.find(name)  # some know their range once they have settings
        if not hasattr(declared, "range"):
            declared = reward_files.make(name, {})
        low, high = declared.range
        table.add_row(name, summary[0], f"[{low:g}, {high:g}]", reward_files.cost(name))
    PlainConsole().print(table)


def score(run: Run, path: Path, caption: str) -> None:
    """Print the caption's score under every reward of the run, prepared as for training.

    Raises UserError where image, caption or a reward cannot be used.
    """
    from ..data.given import as_image  # imports TRL: slow

    if not path.is_file():
        raise UserError(f"image {path_not_found(path)}")
    _check_text(caption)
    image, console = as_image(path), PlainConsole()
    components = _prepared(run, console)
    ids = _token_ids(components, caption)
    reward_functions = components.reward_functions
    batch = reward_functions.batch([f"file:{path.resolve()}"], [image], [caption], [ids])
    console.print(_table(reward_functions, batch))


def score_captions(
    run: Run, images: Sequence[str | Path | Image], captions: Sequence[str]
) -> dict[str, list[float | None]]:
    """A column of N scores per reward of the run, and "sum"; N images (files, or open ones).

    None where a reward cannot judge: a gate refuses the caption, or it judges whole groups only.
    Raises UserError where images, captions or a reward cannot be used.
    """
    from ..data.given import as_image

    if len(images) != len(captions):
        raise UserError(f"{len(images)} images, but {len(captions)} captions: give one for each")
    for caption in captions:
        _check_text(caption)
    pictures = [as_image(image) for image in images]
    components = _prepared(run, PlainConsole())
    token_ids = [_token_ids(components, caption) for caption in captions]
    functions, ids = components.reward_functions, [f"given:{image_hash(p)}" for p in pictures]
    batch = functions.batch(ids, pictures, captions, token_ids)
    scores = functions.scores(batch, _judges(functions))
    empty: list[float | None] = [None] * len(pictures)
    columns = {r.name: [*scores.get(r.name, empty)] for r in functions.rewards}
    return columns | {"sum": [*functions.weighted(scores)]}


def _check_text(caption: str) -> None:
    """UserError where a caption is empty or no text."""
    if not caption.strip():
        raise UserError("the caption is empty: there is nothing to score")
    if any("\ud800" <= character <= "\udfff" for character in caption):
        raise UserError("the caption has bytes that are not UTF-8")


def _prepared(run: Run, console: PlainConsole) -> Any:
    """The components of a run, its rewards prepared as for training."""
    from . import assemble
    from .splits import image_sets

    rewards = assemble.make_rewards(run)
    with console.status("preparing the rewards as for training"):
        images, _, _ = image_sets(run, console)
        components = assemble.load_components(
            run, rewards, report=console.print, warn=console.print
        )
        assemble.prepare_rewards(run, components, images, console.print)
    return components


def _token_ids(components: Any, caption: str) -> list[int]:
    """A caption's tokens and its end; UserError where the policy cannot read as many."""
    from ..policy.load import end_id

    model, processor = components.model, components.processor
    ids = processor.tokenizer(caption, add_special_tokens=False)["input_ids"]
    longest = model.config.get_text_config().max_position_embeddings
    if len(ids) > longest:
        raise UserError(f"the caption has {len(ids)} tokens; the policy reads at most {longest}")
    return [*ids, end_id(model, processor)]


def _judges(reward_functions: Any) -> list[Any]:
    """The rewards that can judge a single caption."""
    return [r for r in reward_functions.rewards if not r.declared("groups", False)]


def _table(reward_functions: Any, batch: CaptionBatch) -> Table:
    """Per reward its weight, score, weighted score and what the score is made of; their sum."""
    judges = _judges(reward_functions)
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
        read = reward.read(batch, reward_functions.opening)
        parts = "\n".join(filter(None, (why, _parts(reward, read))))
        table.add_row(reward.name, f"{reward.weight:g}", *cells, parts)
    table.add_row(Text("sum", "bold"), "", "", Text(f"{total:.3f}", "bold"), "")
    return table


def _parts(reward: Any, batch: CaptionBatch) -> str:
    """What the score is made of, one line each."""
    if not hasattr(reward.score, "parts"):
        return ""
    (parts,) = reward.score.parts(batch)
    return "\n".join(f"{value:.3f}  {text}" for text, value in parts)
