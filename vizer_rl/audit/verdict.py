"""The verdict of an audit: its metrics in words, what will go wrong in training, what to add.

Pure: metrics in, sentences out. It never reads the truth. `fail` says that training will not make
the captions truer, `warn` that it may, with the harm that is named; `pass` has nothing to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..evaluation.doubtful_words import MIN_JUDGED
from .reward_findings import reward_findings
from .thresholds import (
    FATAL_DISTINCT,
    MIN_DISTINCT,
    MIN_FEWER,
    MIN_GAIN,
    MIN_POLICY_ACCURACY,
    Lines,
    gain_of,
    ignores_image,
    line,
    mean,
    often_wrong,
    percent,
    prefers_right,
    shares,
)

LEVELS = ("pass", "warn", "fail")
OBJECTION = "Take a base that does better here, ask for it in data.prompt, or drop this reward."


def verdict(result: Mapping[str, Any]) -> dict[str, Any]:
    """{"overall": pass | warn | fail, "lines": [{"level", "about", "says", "do"}, …]}.

    The gravest come first; a line of level pass says what is well.
    """
    lines = [*_base(result)]
    for name, says in result.get("objections", {}).items():
        lines += [line("fail", name, f"{says}.", OBJECTION)] * bool(says)
    if result["attacked"] and not ignores_image(result):  # else nothing to judge rewards by
        lines += [*reward_findings(result)]
    if not any(finding["level"] == "fail" for finding in lines):
        lines += [*_headroom(result)]
    lines.sort(key=lambda finding: -LEVELS.index(finding["level"]))
    return {"overall": lines[0]["level"] if lines else "pass", "lines": lines}


def _base(result: Mapping[str, Any]) -> Lines:
    """Whether the base uses the image, and is right about swapped words."""
    if not result["attacked"]:
        yield line(
            "fail",
            "base",
            "Not one sampled caption ends, says something and fits its own image.",
            "Look at its captions: is it the right model, prompt and max_completion_length?",
        )
        return
    if ignores_image(result):
        policy = result["controls"]["policy"]
        yield line(
            "fail",
            "sight",
            "The base does not see: it finds its captions as likely with another image "
            f"({shares(policy)}).",
            "Take a base that sees: RL brings out what it knows, and adds nothing to it.",
        )
        return
    for kind, judges in result["trust"].items():
        policy = judges["policy"]
        if policy and policy["value"] < MIN_POLICY_ACCURACY:
            says = (
                f"The base is right about swapped {kind}s only in {percent(policy['value'])} of "
                "cases: training will make it sure, not right."
            )
            level = "fail" if often_wrong(policy) else "warn"
            yield line(level, "sight", says, "Take a base that sees them.")


def _headroom(result: Mapping[str, Any]) -> Lines:
    """Whether choosing among the base's own captions makes them better."""
    headroom, distinct = result["headroom"], result["order"]["distinct"]
    if distinct < MIN_DISTINCT:
        yield line(
            "fail" if distinct < FATAL_DISTINCT else "warn",
            "headroom",
            f"Of {result['captions_per_image']} captions of an image {distinct:.1f} differ: "
            "there is little to choose from.",
            "Raise train.temperature.",
        )
    gain, doubtful = gain_of(headroom), headroom.get("doubtful")
    assert gain is not None
    minimum = MIN_FEWER if doubtful else MIN_GAIN * headroom["spread"]
    gains = _gains(gain, bool(doubtful))
    if gain["low"] <= 0 and gain["high"] > minimum:
        says = f"{result['images']} images cannot tell whether there is anything to gain: best of"
        yield line("warn", "headroom", f"{says} 8 {gains}.", "Audit more.")
    elif gain["low"] <= 0:
        yield line(
            "fail",
            "headroom",
            "Nothing left to gain: the best of 8 by this reward is no better, to the held-out "
            f"scorer, than what the base says now ({gains}).",
            "Another base, other images, or a prompt that asks for more.",
        )
    elif doubtful and doubtful["words"] < MIN_JUDGED:
        yield line(
            "warn",
            "headroom",
            f"The best of 8 by this reward has {percent(doubtful['words'])} of the words that the "
            f"base says now and that could be others: fewer doubtful ones ({gains}) say little.",
            "Lower rewards.certainty.at_least, or give more weight to self_retrieval.",
        )
    elif distinct >= MIN_DISTINCT:
        image = result["controls"]["other"]["sum"]
        rho = mean(result["order"]["heldout"]["sum"], 0.0)
        clause = f"the reward looks at the image ({percent(mean(image, 0))}) and "
        yield line(
            "pass",
            "headroom",
            f"There is something to gain: best of 8 {gains}; "
            f"{clause if prefers_right(image) else ''}the held-out scorer agrees ({rho:+.2f}).",
        )


def _gains(gain: Mapping[str, float], dial: bool) -> str:
    """A gain and its interval in words; of doubtful words, of which there are to be fewer."""
    value, low, high = (gain[key] for key in ("value", "low", "high"))
    if dial:
        return f"{-value:+.3f} [{-high:+.3f}, {-low:+.3f}] in the share of doubtful words"
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}] on the held-out scorer"
