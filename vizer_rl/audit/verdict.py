"""Says in words what an audit's numbers mean: what will go wrong in training, and what to add.

Pure: numbers in, sentences out. It never sees the truth. `fail` says that training will not make
the captions truer, `warn` that it may, with the harm that is named; `pass` has nothing to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Thresholds. An interval must be clear of the first kind; the second kind are plain values.
CHANCE = 0.5  # of two captions, the reward prefers the wrong one as often as the right one
SOUND = 0.9  # wanted of every attack before any RL (REWARDS, reward unit tests)
WORDS = 0.93  # of swapped words: sound scorers have .95 to .97 on scenes, a poor one .89
COIN = 0.75  # a judge that is right less often is nearer to a coin than to knowledge
LOOKS = 0.75  # original with its image against the same with another: COIN, once more
SEES = 0.8  # swaps a base must see; it was 60 % in the sketch where RL took F1 from .63 to .25
MANY = 8  # images that an attack must have been tried on to be told of
LIKELY = 0.1  # share of attacked captions within reach of the policy, from which one will be found
AGREES = 0.3  # within-image rank correlation; the default recipe on scenes has .74
TIED = 0.5  # share of images whose captions the reward does not tell apart
FEW, SOME = 2.0, 3.0  # different captions of eight: nothing to choose from, little
NOISY = 0.7  # a reward's spread under mild changes of the image, by its spread over captions
LENGTHY = 0.8  # within-image rank correlation with the number of words
WORTH = 0.5  # a gain on the held-out scorer, by its spread over the captions of an image

Lines = Iterator[dict[str, str]]
LEVELS = ("pass", "warn", "fail")
SWAPS = ("noun swapped", "attribute swapped")


def verdict(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """{"overall": pass | warn | fail, "lines": [{"level", "about", "says", "do"}, …]}.

    The gravest come first; a line of level pass says what is well.
    """
    lines = [*_base(numbers)]
    if numbers["attacked"] and not _blind(numbers):  # else there is nothing to judge rewards by
        lines += [*_reward(numbers)]
    if not any(line["level"] == "fail" for line in lines):
        lines += [*_headroom(numbers)]
    lines.sort(key=lambda line: -LEVELS.index(line["level"]))
    return {"overall": lines[0]["level"] if lines else "pass", "lines": lines}


def _line(level: str, about: str, says: str, do: str = "") -> dict[str, str]:
    return {"level": level, "about": about, "says": says, "do": do}


def _low(estimate: Mapping[str, float] | None) -> float:
    return estimate["low"] if estimate else float("-inf")


def _at(estimate: Mapping[str, float] | None, default: float) -> float:
    return estimate["value"] if estimate else default


def _percent(value: float) -> str:
    return f"{100 * value:.0f}\N{NO-BREAK SPACE}%"


def _blind(numbers: Mapping[str, Any]) -> bool:
    """Whether the base finds its captions no likelier with their image than with another."""
    return _low(numbers["controls"]["policy"]) <= CHANCE


def _base(numbers: Mapping[str, Any]) -> Lines:
    """Whether the base sees, and whether its captions differ."""
    if not numbers["attacked"]:
        yield _line(
            "fail",
            "base",
            "Not one sampled caption ends, says something and fits its own image.",
            "Look at its captions: is it the right model, prompt and max_completion_length?",
        )
        return
    if _blind(numbers):
        sight = numbers["controls"]["policy"]
        yield _line(
            "fail",
            "sight",
            "The base does not see: it finds its captions as likely with another image "
            f"({_percent(_at(sight, CHANCE))} of pairs, 50 % is chance).",
            "Take a base that sees: RL brings out what it knows, and adds nothing to it.",
        )
        return
    for kind, judges in numbers["trust"].items():
        told = judges["policy"]
        if told and told["value"] < SEES:
            says = (
                f"The base is right about swapped {kind}s only in {_percent(told['value'])} of "
                "cases: training will make it sure, not right."
            )
            level = "fail" if told["high"] < COIN else "warn"
            yield _line(level, "sight", says, "Take a base that sees them.")


def _reward(numbers: Mapping[str, Any]) -> Lines:
    """Whether the weighted sum can be trained on; only the first thing that is fatal is told."""
    tied = numbers["order"]["tied"]["sum"]
    if tied > TIED:
        yield _line(
            "fail",
            "ties",
            f"The rewards give all captions of an image the same score, in {_percent(tied)} of "
            "the images: there is nothing to learn from.",
            "Add a reward that judges what is said, such as self_retrieval or clip_similarity.",
        )
        return
    looks, agrees = numbers["controls"]["other"]["sum"], numbers["order"]["heldout"]["sum"]
    if _low(looks) <= CHANCE:
        elicits = _low(agrees) > 0 and _low(numbers["headroom"]["gain_over_greedy"]) > 0
        yield _line(
            "warn" if elicits else "fail",
            "image",
            "This reward does not look at the image: the captions score as high with another one "
            f"({_percent(_at(looks, CHANCE))} of pairs, 50 % is chance). Training will not ground."
            + " It may bring out what the base knows: the held-out scorer likes its picks better."
            * elicits,
            "Add a reward that reads the image, such as self_retrieval or clip_similarity.",
        )
        if not elicits:
            return
    if _low(agrees) <= 0:
        yield _line(
            "fail",
            "held-out",
            "The held-out scorer does not agree with this reward on which caption of an image is "
            f"better (rank correlation {_at(agrees, 0):+.2f}).",
            "Take another training scorer, or see which reward disagrees and drop it.",
        )
        return
    if _low(looks) > CHANCE and _at(looks, 1) < LOOKS:
        yield _line("warn", "image", f"It hardly looks at the image: {_percent(looks['value'])}.")
    if _at(agrees, 1) < AGREES:
        says = f"The held-out scorer agrees little: rank correlation {agrees['value']:+.2f}."
        yield _line("warn", "held-out", says, "Give more weight to the rewards that agree.")
    if _low(looks) > CHANCE:  # one that reads no image cannot tell a wrong word from the right one
        yield from _trust(numbers)
    yield from _attacks(numbers)
    yield from _habits(numbers)


def _trust(numbers: Mapping[str, Any]) -> Lines:
    """Whether the scorers tell one wrong word from the right one."""
    for kind, judges in numbers["trust"].items():
        told = judges["reward"]
        if told and told["value"] < WORDS:
            wrong = f"one in {1 / max(0.01, 1 - told['value']):.0f}"
            yield _line(
                "fail" if told["high"] < COIN else "warn",
                "scorer",
                f"The reward prefers the wrong {kind} in {wrong} swaps: captions will get "
                f"{kind}s confidently wrong.",
                "Take a stronger training scorer, or add region_grounding.",
            )
        heldout = judges["heldout"]
        if heldout and heldout["high"] < SOUND:
            says = f"The held-out scorer itself is right in {_percent(heldout['value'])} of {kind}s"
            yield _line("warn", "held-out", f"{says}: do not choose by it.", "Take a stronger one.")


def _attacks(numbers: Mapping[str, Any]) -> Lines:
    """Which attacks win; those that the policy would find are fatal."""
    won: list[tuple[str, str]] = []
    near: list[tuple[str, str]] = []
    far: list[tuple[str, str]] = []
    for name, told in numbers["attacks"].items():
        rate = told["wins"]["sum"]
        if name in SWAPS or told["images"] < MANY or rate["value"] >= SOUND:
            continue
        item = (f"{name} ({_percent(1 - rate['value'])})", told["guard"])
        if rate["high"] < CHANCE:
            (won if (told["in_reach"] or 0.0) >= LIKELY else far).append(item)
        else:
            near.append(item)
    kinds = (
        ("fail", won, "These beat the original and the policy will find them"),
        ("warn", far, "These beat the original, though the policy hardly says them yet"),
        ("warn", near, "These may win: they beat the original more often than one time in ten"),
    )
    for level, items, says in kinds:
        if items:
            guards = ", ".join(dict.fromkeys(guard for _, guard in items))
            named = ", ".join(name for name, _ in items)
            yield _line(level, "attacks", f"{says}: {named}.", f"Add or strengthen: {guards}.")


def _habits(numbers: Mapping[str, Any]) -> Lines:
    """What else the sum rewards: length, noise; and content rewards that read no image."""
    length = _at(numbers["order"]["length"]["sum"], 0.0)
    if abs(length) > LENGTHY:
        which = "longest" if length > 0 else "shortest"
        says = f"Of an image's captions it prefers the {which} (rank correlation {length:+.2f})."
        yield _line("warn", "length", says, "Add or strengthen: length.")
    noise = numbers.get("noise", {}).get("sum")
    if noise is not None and noise > NOISY:
        says = (
            f"Mild changes of the image move the scores {_percent(noise)} as much as another "
            "caption does: much of the reward is noise."
        )
        yield _line("warn", "noise", says, "Raise the rewards' `step`, or take a stronger scorer.")
    judged = [name for name in numbers["content"] if numbers["rewards"][name]]
    blind = [n for n in judged if _low(numbers["controls"]["other"][n]) <= CHANCE]
    if blind:
        says = f"For itself, this does not look at the image: {', '.join(blind)}."
        yield _line("warn", "image", says, "Drop it, or declare `content = False` in it.")
    scorers = numbers["scorers"]
    if scorers["train"] == scorers["heldout"]:
        says = "Training and held-out scorer are the same: their agreement means nothing."
        yield _line("warn", "held-out", says, "Take two that learned from different data.")


def _headroom(numbers: Mapping[str, Any]) -> Lines:
    """Whether choosing among the base's own captions makes them better."""
    headroom, distinct = numbers["headroom"], numbers["order"]["distinct"]
    if distinct < SOME:
        yield _line(
            "fail" if distinct < FEW else "warn",
            "headroom",
            f"Of {numbers['captions_per_image']} captions of an image {distinct:.1f} differ: "
            "there is little to choose from.",
            "Raise train.temperature.",
        )
    gain = headroom["gain_over_greedy"]
    told = f"{gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"
    if gain["low"] <= 0 and gain["high"] > WORTH * headroom["spread"]:
        says = f"{numbers['images']} images cannot tell whether there is anything to gain: best of"
        yield _line("warn", "headroom", f"{says} 8 {told} on the held-out scorer.", "Audit more.")
    elif gain["low"] <= 0:
        yield _line(
            "fail",
            "headroom",
            "Nothing left to say: the best of 8 by this reward is no better, to the held-out "
            f"scorer, than what the base says now ({told}).",
            "Another base, other images, or a prompt that asks for more.",
        )
    elif distinct >= SOME:
        looks = numbers["controls"]["other"]["sum"]
        agrees = _at(numbers["order"]["heldout"]["sum"], 0.0)
        seen = f"the reward looks at the image ({_percent(_at(looks, 0))}) and "
        yield _line(
            "pass",
            "headroom",
            f"There is something to gain: best of 8 {told} on the held-out scorer; "
            f"{seen if _low(looks) > CHANCE else ''}the held-out scorer agrees ({agrees:+.2f}).",
        )
