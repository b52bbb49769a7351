"""The verdict of an audit: its metrics in words, what will go wrong in training, what to add.

Pure: metrics in, sentences out. It never reads the truth. `fail` says that training will not make
the captions truer, `warn` that it may, with the harm that is named; `pass` has nothing to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# Thresholds. An interval must be clear of the first kind; the second kind are plain values.
CHANCE = 0.5  # of two captions, the reward prefers the wrong one as often as the right one
MIN_WIN_RATE = 0.9  # wanted of every attack before any RL (REWARDS, reward unit tests)
MIN_SWAP_ACCURACY = 0.93  # sound scorers have .95 to .97 on scenes, a poor one .89
COIN_ACCURACY = 0.75  # a judge that is right less often is nearer to a coin than to knowledge
MIN_IMAGE_WINS = 0.75  # original with its image against the same with another
MIN_POLICY_ACCURACY = 0.8  # of swaps; it was .6 in the sketch where RL took F1 from .63 to .25
MIN_IMAGES = 8  # that an attack must have been tried on to be reported
MIN_IN_REACH = 0.1  # share of attacked captions in reach; with more, training comes upon one
MIN_AGREEMENT = 0.3  # within-image rank correlation; the default recipe on scenes has .74
MAX_TIED = 0.5  # share of images whose captions the reward does not tell apart
FATAL_DISTINCT, MIN_DISTINCT = 2.0, 3.0  # different captions of eight: fail below, warn below
MAX_NOISE = 0.7  # a reward's spread under mild changes of the image, by its spread over captions
MAX_LENGTH_CORRELATION = 0.8  # within-image rank correlation with the number of words
MIN_GAIN = 0.5  # a gain on the held-out scorer, by its spread over the captions of an image

Lines = Iterator[dict[str, str]]
LEVELS = ("pass", "warn", "fail")
SWAPS = ("noun swapped", "attribute swapped")


def verdict(result: Mapping[str, Any]) -> dict[str, Any]:
    """{"overall": pass | warn | fail, "lines": [{"level", "about", "says", "do"}, …]}.

    The gravest come first; a line of level pass says what is well.
    """
    lines = [*_base(result)]
    for name, says in result.get("objections", {}).items():
        lines += [_line("fail", name, f"{says}.", "Take a base that sees, or drop it.")] * bool(
            says
        )
    if result["attacked"] and not _ignores_image(result):  # else nothing to judge rewards by
        lines += [*_reward(result)]
    if not any(line["level"] == "fail" for line in lines):
        lines += [*_headroom(result)]
    lines.sort(key=lambda line: -LEVELS.index(line["level"]))
    return {"overall": lines[0]["level"] if lines else "pass", "lines": lines}


def _line(level: str, about: str, says: str, do: str = "") -> dict[str, str]:
    return {"level": level, "about": about, "says": says, "do": do}


def _low(estimate: Mapping[str, float] | None) -> float:
    return estimate["low"] if estimate else float("-inf")


def _mean(estimate: Mapping[str, float] | None, default: float) -> float:
    return estimate["value"] if estimate else default


def _percent(value: float) -> str:
    return f"{100 * value:.0f}\N{NO-BREAK SPACE}%"


def _ignores_image(result: Mapping[str, Any]) -> bool:
    """Whether the base finds its captions no likelier with their image than with another."""
    return _low(result["controls"]["policy"]) <= CHANCE


def _base(result: Mapping[str, Any]) -> Lines:
    """Whether the base uses the image, and is right about swapped words."""
    if not result["attacked"]:
        yield _line(
            "fail",
            "base",
            "Not one sampled caption ends, says something and fits its own image.",
            "Look at its captions: is it the right model, prompt and max_completion_length?",
        )
        return
    if _ignores_image(result):
        policy = result["controls"]["policy"]
        yield _line(
            "fail",
            "sight",
            "The base does not see: it finds its captions as likely with another image "
            f"({_percent(_mean(policy, CHANCE))} of pairs, 50 % is chance).",
            "Take a base that sees: RL brings out what it knows, and adds nothing to it.",
        )
        return
    for kind, judges in result["trust"].items():
        policy = judges["policy"]
        if policy and policy["value"] < MIN_POLICY_ACCURACY:
            says = (
                f"The base is right about swapped {kind}s only in {_percent(policy['value'])} of "
                "cases: training will make it sure, not right."
            )
            level = "fail" if policy["high"] < COIN_ACCURACY else "warn"
            yield _line(level, "sight", says, "Take a base that sees them.")


def _reward(result: Mapping[str, Any]) -> Lines:
    """Whether the weighted sum can be trained on; only the first fatal finding is reported."""
    tied = result["order"]["tied"]["sum"]
    if tied > MAX_TIED:
        yield _line(
            "fail",
            "ties",
            f"The rewards give all captions of an image the same score, in {_percent(tied)} of "
            "the images: there is nothing to learn from.",
            "Add a reward that judges what is said, such as self_retrieval or clip_similarity.",
        )
        return
    image, agreement = result["controls"]["other"]["sum"], result["order"]["heldout"]["sum"]
    if _low(image) <= CHANCE:
        elicits = _low(agreement) > 0 and _low(result["headroom"]["gain_over_greedy"]) > 0
        yield _line(
            "warn" if elicits else "fail",
            "image",
            "This reward does not look at the image: the captions score as high with another one ("
            f"{_percent(_mean(image, CHANCE))} of pairs, 50 % is chance). Training will not ground."
            + " It may bring out what the base knows: the held-out scorer likes its picks better."
            * elicits,
            "Add a reward that reads the image, such as self_retrieval or clip_similarity.",
        )
        if not elicits:
            return
    if _low(agreement) <= 0:
        yield _line(
            "fail",
            "held-out",
            "The held-out scorer does not agree with this reward on which caption of an image is "
            f"better (rank correlation {_mean(agreement, 0):+.2f}).",
            "Take another training scorer, or see which reward disagrees and drop it.",
        )
        return
    if _low(image) > CHANCE and _mean(image, 1) < MIN_IMAGE_WINS:
        yield _line("warn", "image", f"It hardly looks at the image: {_percent(image['value'])}.")
    if _mean(agreement, 1) < MIN_AGREEMENT:
        says = f"The held-out scorer agrees little: rank correlation {agreement['value']:+.2f}."
        yield _line("warn", "held-out", says, "Give more weight to the rewards that agree.")
    if _low(image) > CHANCE:  # without the image no wrong word is recognised
        yield from _trust(result)
    yield from _attacks(result)
    yield from _biases(result)


def _trust(result: Mapping[str, Any]) -> Lines:
    """Whether the scorers tell one wrong word from the right one."""
    for kind, judges in result["trust"].items():
        reward = judges["reward"]
        if reward and reward["value"] < MIN_SWAP_ACCURACY:
            wrong = f"one in {1 / max(0.01, 1 - reward['value']):.0f}"
            yield _line(
                "fail" if reward["high"] < COIN_ACCURACY else "warn",
                "scorer",
                f"The reward prefers the wrong {kind} in {wrong} swaps: captions will get "
                f"{kind}s confidently wrong.",
                "Take a stronger training scorer, or add region_grounding.",
            )
        heldout = judges["heldout"]
        if heldout and heldout["high"] < MIN_WIN_RATE:
            says = f"The held-out scorer itself is right in {_percent(heldout['value'])} of {kind}s"
            yield _line("warn", "held-out", f"{says}: do not choose by it.", "Take a stronger one.")


def _attacks(result: Mapping[str, Any]) -> Lines:
    """Which attacks win; those that the policy would find are fatal."""
    won, near, far = (list[tuple[str, str]]() for _ in range(3))
    for name, attack in result["attacks"].items():
        rate = attack["wins"]["sum"]
        if name in SWAPS or attack["images"] < MIN_IMAGES or rate["value"] >= MIN_WIN_RATE:
            continue
        item = (f"{name} ({_percent(1 - rate['value'])})", attack["guard"])
        if rate["high"] < CHANCE:
            (won if (attack["in_reach"] or 0.0) >= MIN_IN_REACH else far).append(item)
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


def _biases(result: Mapping[str, Any]) -> Lines:
    """What else the sum rewards: length, noise; and content rewards that read no image."""
    length = _mean(result["order"]["length"]["sum"], 0.0)
    if abs(length) > MAX_LENGTH_CORRELATION:
        extreme = "longest" if length > 0 else "shortest"
        says = f"Of an image's captions it prefers the {extreme} (rank correlation {length:+.2f})."
        yield _line("warn", "length", says, "Add or strengthen: length.")
    noise = result.get("noise", {}).get("sum")
    if noise is not None and noise > MAX_NOISE:
        says = (
            f"Mild changes of the image move the scores {_percent(noise)} as much as another "
            "caption does: much of the reward is noise."
        )
        yield _line("warn", "noise", says, "Raise the rewards' `step`, or take a stronger scorer.")
    judged = [name for name in result["content"] if result["rewards"][name]]
    blind = [n for n in judged if _low(result["controls"]["other"][n]) <= CHANCE]
    if blind:
        says = f"For itself, this does not look at the image: {', '.join(blind)}."
        yield _line("warn", "image", says, "Drop it, or declare `content = False` in it.")
    scorers = result["scorers"]
    if scorers["train"] == scorers["heldout"]:
        says = "Training and held-out scorer are the same: their agreement means nothing."
        yield _line("warn", "held-out", says, "Take two that learned from different data.")


def _headroom(result: Mapping[str, Any]) -> Lines:
    """Whether choosing among the base's own captions makes them better."""
    headroom, distinct = result["headroom"], result["order"]["distinct"]
    if distinct < MIN_DISTINCT:
        yield _line(
            "fail" if distinct < FATAL_DISTINCT else "warn",
            "headroom",
            f"Of {result['captions_per_image']} captions of an image {distinct:.1f} differ: "
            "there is little to choose from.",
            "Raise train.temperature.",
        )
    gain = headroom["gain_over_greedy"]
    gains = f"{gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"
    if gain["low"] <= 0 and gain["high"] > MIN_GAIN * headroom["spread"]:
        says = f"{result['images']} images cannot tell whether there is anything to gain: best of"
        yield _line("warn", "headroom", f"{says} 8 {gains} on the held-out scorer.", "Audit more.")
    elif gain["low"] <= 0:
        yield _line(
            "fail",
            "headroom",
            "Nothing left to say: the best of 8 by this reward is no better, to the held-out "
            f"scorer, than what the base says now ({gains}).",
            "Another base, other images, or a prompt that asks for more.",
        )
    elif distinct >= MIN_DISTINCT:
        image = result["controls"]["other"]["sum"]
        rho = _mean(result["order"]["heldout"]["sum"], 0.0)
        clause = f"the reward looks at the image ({_percent(_mean(image, 0))}) and "
        yield _line(
            "pass",
            "headroom",
            f"There is something to gain: best of 8 {gains} on the held-out scorer; "
            f"{clause if _low(image) > CHANCE else ''}the held-out scorer agrees ({rho:+.2f}).",
        )
