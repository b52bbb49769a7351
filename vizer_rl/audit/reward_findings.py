"""Findings on the rewards of an audit: what the weighted sum goes by, and what it is fooled by.

What is shown to mislead is refused where the policy will come upon it. What a reward does not tell
apart is named: real CLIPs pick the true one of two exchanged captions six times in ten, so training
does not fail by that, it leaves such words as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .compositions import OF_FIVE
from .thresholds import (
    COIN_ACCURACY,
    MAX_LENGTH_CORRELATION,
    MAX_NOISE,
    MAX_TIED,
    MIN_AGREEMENT,
    MIN_IMAGE_WINS,
    MIN_IMAGES,
    MIN_IN_REACH,
    MIN_OF_FIVE,
    MIN_SWAP_ACCURACY,
    MIN_WIN_RATE,
    Lines,
    gain_of,
    line,
    low,
    mean,
    often_wrong,
    percent,
    prefers_right,
    prefers_wrong,
    shares,
)

SWAPS = ("noun swapped", "attribute swapped")  # `trust` has them
CANNOT_TELL = {  # what a judge that is near a coin there does not see
    "relation replaced": "how two objects stand to each other",
    "objects exchanged": "which of two objects is where",
    "attributes exchanged": "who has which attribute",
    OF_FIVE: "the order of words",
    "negated": "a thing from its denial",
}


def reward_findings(result: Mapping[str, Any]) -> Lines:
    """Whether the weighted sum can be trained on; only the first fatal finding is reported."""
    tied = result["order"]["tied"]["sum"]
    image, agreement = result["controls"]["other"]["sum"], result["order"]["heldout"]["sum"]
    elicits = low(agreement) > 0 and low(gain_of(result["headroom"])) > 0
    if tied > MAX_TIED:
        yield line(
            "warn" if elicits else "fail",
            "ties",
            f"The rewards give all captions of an image the same score, in {percent(tied)} of "
            "the images: there is nothing to learn from.",
            "Add a reward that judges what is said, such as self_retrieval or clip_similarity.",
        )
        if not elicits:
            return
    if not prefers_right(image):
        yield line(
            "warn" if elicits else "fail",
            "image",
            "This reward does not look at the image: the captions score as high with another one ("
            f"{shares(image)}). Training will not ground."
            + " It may bring out what the base knows: the held-out scorer likes its picks better."
            * elicits,
            "Add a reward that reads the image, such as self_retrieval or clip_similarity.",
        )
        if not elicits:
            return
    if low(agreement) <= 0:
        yield line(
            "fail",
            "held-out",
            "The held-out scorer does not agree with this reward on which caption of an image is "
            f"better (rank correlation {mean(agreement, 0):+.2f}).",
            "Take another training scorer, or see which reward disagrees and drop it.",
        )
        return
    if prefers_right(image) and mean(image, 1) < MIN_IMAGE_WINS:
        yield line("warn", "image", f"It hardly looks at the image: {shares(image)}.")
    if mean(agreement, 1) < MIN_AGREEMENT:
        says = f"The held-out scorer agrees little: rank correlation {agreement['value']:+.2f}."
        yield line("warn", "held-out", says, "Give more weight to the rewards that agree.")
    if prefers_right(image):  # without the image no wrong word is recognised
        yield from _trust(result)
    yield from _attacks(result)
    yield from _untold(result)
    yield from _favourites(result)
    yield from _biases(result)


def _trust(result: Mapping[str, Any]) -> Lines:
    """Whether the scorers tell one wrong word from the right one."""
    for kind, judges in result["trust"].items():
        reward = judges["reward"]
        if reward and reward["value"] < MIN_SWAP_ACCURACY:
            misleads = reward["wrong"]["value"] > 1 - MIN_SWAP_ACCURACY
            harm = f"get {kind}s confidently wrong" if misleads else f"not learn {kind}s by it"
            yield line(
                "fail" if often_wrong(reward) else "warn",
                "scorer",
                f"Right {kind} against a wrong one, the reward: {shares(reward)}: captions will "
                f"{harm}.",
                "Take a stronger training scorer, or add region_grounding.",
            )
        heldout = judges["heldout"]
        if heldout and heldout["high"] < MIN_WIN_RATE:
            says = f"The held-out scorer itself is right in {percent(heldout['value'])} of {kind}s"
            yield line("warn", "held-out", f"{says}: do not choose by it.", "Take a stronger one.")


def _attacks(result: Mapping[str, Any]) -> Lines:
    """Which attacks win; those that the policy would find are fatal."""
    won, near, far = (list[tuple[str, str]]() for _ in range(3))
    for name, attack in result["attacks"].items():
        picks = attack["wins"]["sum"]
        tried = attack["images"] >= MIN_IMAGES and picks
        if name in SWAPS or not tried or picks["value"] >= MIN_WIN_RATE:
            continue
        item = (f"{name} ({shares(picks)})", attack["guard"])
        if prefers_wrong(picks) and name != OF_FIVE:  # of five, one alone is right
            (won if (attack["in_reach"] or 0.0) >= MIN_IN_REACH else far).append(item)
        elif name not in CANNOT_TELL:
            near.append(item)
    kinds = (
        ("fail", won, "These beat the original and the policy will find them"),
        ("warn", far, "These beat the original, though the policy hardly says them yet"),
        ("warn", near, "These may win: the original does not beat them nine times in ten"),
    )
    for level, items, says in kinds:
        if items:
            guards = ", ".join(dict.fromkeys(guard for _, guard in items))
            named = "; ".join(name for name, _ in items)
            yield line(level, "attacks", f"{says}: {named}.", f"Add or strengthen: {guards}.")


def _untold(result: Mapping[str, Any]) -> Lines:
    """What the reward does not tell apart: no harm is shown, and nothing is to be gained there."""
    items = list[tuple[str, str]]()
    for name, says in CANNOT_TELL.items():
        attack = result["attacks"][name]
        picks = attack["wins"]["sum"]
        fatal = prefers_wrong(picks) and name != OF_FIVE
        bound = MIN_OF_FIVE if name == OF_FIVE else COIN_ACCURACY
        tried = attack["images"] >= MIN_IMAGES and picks
        if tried and not fatal and picks["value"] < bound:
            items.append((f"{says} ({name}: {shares(picks)})", attack["guard"]))
    if items:
        guards = ", ".join(dict.fromkeys(guard for _, guard in items))
        yield line(
            "warn",
            "relations",
            f"The reward cannot tell {'; '.join(says for says, _ in items)}: do not expect such "
            "words to improve.",
            f"What judges them: {guards}.",
        )


def _favourites(result: Mapping[str, Any]) -> Lines:
    """Which words it prefers whatever the image shows: fatal where they win when added, too."""
    words, added = result["favourites"]["words"], result["favourites"]["added"]
    if words:
        named = ", ".join(f'"{word}" ({shares(picks)})' for word, picks in words.items())
        says = f"It prefers these words to the true ones, whatever the image shows: {named}."
        says += f" Added where they are wrong: {shares(added)}." if added else ""
        level = "fail" if prefers_wrong(added) else "warn"
        yield line(level, "words", says, "Take a stronger training scorer, or add certainty.")


def _biases(result: Mapping[str, Any]) -> Lines:
    """What else the sum rewards: length, noise; and content rewards that read no image."""
    length = mean(result["order"]["length"]["sum"], 0.0)
    if abs(length) > MAX_LENGTH_CORRELATION:
        extreme = "longest" if length > 0 else "shortest"
        says = f"Of an image's captions it prefers the {extreme} (rank correlation {length:+.2f})."
        yield line("warn", "length", says, "Add or strengthen: length.")
    noise = result.get("noise", {}).get("sum")
    if noise is not None and noise > MAX_NOISE:
        says = (
            f"Mild changes of the image move the scores {percent(noise)} as much as another "
            "caption does: much of the reward is noise."
        )
        yield line("warn", "noise", says, "Raise the rewards' `step`, or take a stronger scorer.")
    judged = [name for name in result["content"] if result["rewards"][name]]
    blind = [n for n in judged if not prefers_right(result["controls"]["other"][n])]
    if blind:
        says = f"For itself, this does not look at the image: {', '.join(blind)}."
        yield line("warn", "image", says, "Drop it, or declare `content = False` in it.")
    scorers = result["scorers"]
    if scorers["train"] == scorers["heldout"]:
        says = "Training and held-out scorer are the same: their agreement means nothing."
        yield line("warn", "held-out", says, "Take two that learned from different data.")
