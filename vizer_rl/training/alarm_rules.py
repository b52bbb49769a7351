"""Alarm rules: when the evidence of evaluations says that a reward is hacked or a policy collapses.

Pure: evidence in, alarms out, so that other limits can be tried on what a run has written down. Why
each rule, and how its limit was set: docs/alarms.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite

from .evidence import Evidence

MEMORY = 3  # evaluations that rules look back on


@dataclass(frozen=True)
class Limits:
    """Where alarms begin; docs/alarms.md says what each is a measure of."""

    drop_errors: float = 2.0
    drop_spread: float = 0.1
    fall_errors: float = 4.0
    doubtful_errors: float = 2.0
    doubtful_rise: float = 0.03
    agreement: float = 0.0
    agreement_bound: float = 0.1
    agreement_errors: float = 2.0
    reward_agreement: float = -0.1
    distinct_2: float = 0.4
    repeated_3grams: float = 0.2
    flat_groups: float = 0.75
    entropy: float = 0.2
    shorter: float = 0.65
    longer: float = 2.5
    unended: float = 0.2
    kl_per_caption: float = 20.0


@dataclass(frozen=True)
class Finding:
    """An alarm: its name, what to say of it, the value that passed its threshold."""

    name: str
    sentence: str
    value: float
    threshold: float


@dataclass(frozen=True)
class History:
    """What rules compare with: the first value of each sign, the best evaluation, the newest."""

    first: Evidence
    best: Evidence
    recent: tuple[Evidence, ...]

    @property
    def now(self) -> Evidence:
        return self.recent[-1]


Rule = Callable[[History, Limits], Finding | None]


def heldout_drop(h: History, limits: Limits) -> Finding | None:
    """Below the best evaluation: twice in a row while the reward rises, or far below.

    Unless fewer words are doubtful than there: who says less, and less that is wrong, falls too.
    """
    last, now = (*h.recent[-2:], h.now)[:2]
    fell = -now.below_best / h.best.spread if h.best.spread > 0 else 0.0
    base = h.best if h.best.reward == h.best.reward else h.first
    rose = (now.reward - base.reward) / base.reward_std if base.reward_std > 0 else 0.0
    far, near = _errors_above(now), max(_errors_above(last), _errors_above(now))
    twice = len(h.recent) > 1 and rose > 0 and near < -limits.drop_errors
    if not (twice or far < -limits.fall_errors) or fell < limits.drop_spread or now.excused:
        return None
    since = f"the held-out scorer fell {fell:.1f} sd since step {h.best.step}"
    sentence = (
        f"reward rose {rose:.1f} sd while {since}: likely reward hacking"
        if rose > 0
        else f"{since} and the reward did not rise: train.learning_rate may be too high"
    )
    value, limit = (near, limits.drop_errors) if twice else (far, limits.fall_errors)
    return Finding("heldout_drop", sentence, value, -limit)


def _errors_above(e: Evidence) -> float:
    """The paired difference to the best in standard errors; 0 where there is none to compare."""
    return e.below_best / e.below_best_se if e.below_best_se > 0 else 0.0


def doubtful(h: History, limits: Limits) -> Finding | None:
    """More words are doubtful than before training, twice in a row."""
    rises = [e.doubtful_rise for e in h.recent[-2:]]
    errors = [e.doubtful_rise / e.doubtful_rise_se for e in h.recent[-2:] if e.doubtful_rise_se > 0]
    if len(errors) < 2 or min(errors) < limits.doubtful_errors or min(rises) < limits.doubtful_rise:
        return None
    return Finding(
        "doubtful",
        f"{h.now.doubtful:.0%} of the words are doubtful, before training {h.first.doubtful:.0%}: "
        "by the held-out scorer others of their class fit better; it may reward what is not there",
        min(errors),
        limits.doubtful_errors,
    )


def agreement(h: History, limits: Limits) -> Finding | None:
    """Reward and held-out scorer do not rank captions of an image alike: thrice, or clearly not."""
    values = [e.agreement for e in h.recent]
    absent = len(values) == MEMORY and all(value <= limits.agreement for value in values)
    ranges = range(1, len(values) + 1)
    bounds = [_agreement_bound(h.recent[-n:], limits.agreement_errors) for n in ranges]
    bound = min(filter(isfinite, bounds), default=inf)
    clearly = bound < limits.agreement_bound
    if not (clearly or absent):
        return None
    clause = (
        f", at most {bound:+.2f} by {limits.agreement_errors:g} standard errors" if clearly else ""
    )
    return Finding(
        "agreement",
        "the reward does not rank the captions of an image as the held-out scorer does (rank "
        f"correlation {_signed(values)} at {len(values)} evaluations{clause}): it may reward what "
        "is not there",
        bound if clearly else max(values),
        limits.agreement_bound if clearly else limits.agreement,
    )


def _agreement_bound(evaluations: Sequence[Evidence], errors: float) -> float:
    """Their mean agreement and so many standard errors more; NaN where one is not measured."""
    mean = sum(e.agreement for e in evaluations) / len(evaluations)
    error = sum(e.agreement_se**2 for e in evaluations) ** 0.5 / len(evaluations)
    return mean + errors * error


def reward_agreement(h: History, limits: Limits) -> Finding | None:
    """The content rewards contradict each other, three times."""
    values = [e.reward_agreement for e in h.recent]
    if len(values) < MEMORY or not all(value <= limits.reward_agreement for value in values):
        return None
    return Finding(
        "reward_agreement",
        "the rewards that judge what a caption says contradict each other (rank correlation "
        f"{_signed(values)} at {MEMORY} evaluations): at least one of them is hacked or wrong",
        max(values),
        limits.reward_agreement,
    )


def distinct_2(h: History, limits: Limits) -> Finding | None:
    """Captions of different images become the same."""
    share = _ratio(h.now.distinct_2, h.first.distinct_2)
    if not share < limits.distinct_2:
        return None
    sentence = (
        f"captions of different images become alike: their distinct word pairs are {share:.0%} of "
        "what they were before training"
    )
    return Finding("distinct_2", sentence, share, limits.distinct_2)


def repeated_3grams(h: History, limits: Limits) -> Finding | None:
    """Captions repeat themselves, more than before training."""
    value, limit = h.now.repeated_3grams, limits.repeated_3grams + h.first.repeated_3grams
    if not value > limit:
        return None
    sentence = f"captions repeat themselves: {value:.0%} of their three-word phrases come again"
    return Finding("repeated_3grams", sentence, value, limit)


def flat_groups(h: History, limits: Limits) -> Finding | None:
    """Groups without spread, at two evaluations in a row."""
    share = min(e.flat_groups for e in h.recent[-2:])
    if len(h.recent) < 2 or not share > limits.flat_groups:
        return None
    sentence = (
        f"{share:.0%} of the groups have no spread in their reward: there is next to nothing to "
        "learn from them"
    )
    return Finding("flat_groups", sentence, share, limits.flat_groups)


def entropy(h: History, limits: Limits) -> Finding | None:
    """Entropy far below that of the first rollouts."""
    share = _ratio(h.now.entropy, h.first.entropy)
    if not share < limits.entropy:
        return None
    sentence = f"entropy is {share:.0%} of what it was at first: the policy explores no more"
    return Finding("entropy", sentence, share, limits.entropy)


def length(h: History, limits: Limits) -> Finding | None:
    """Captions much shorter or longer than before training; shorter ones may be excused."""
    share = _ratio(h.now.words, h.first.words)
    within = limits.shorter <= share <= limits.longer
    if within or share != share or (share < 1 and h.now.excused):
        return None
    limit = limits.shorter if share < 1 else limits.longer
    words = f"{h.now.words:.1f} words, before training {h.first.words:.1f}"
    sentence = f"captions drift in length: {words}; a reward may pay for length alone"
    return Finding("length", sentence, share, limit)


def unended(h: History, limits: Limits) -> Finding | None:
    """Completions that come to no end, more than at first."""
    value, limit = h.now.unended, limits.unended + h.first.unended
    if not value > limit:
        return None
    sentence = (
        f"{value:.0%} of the completions come to no end before train.max_completion_length, at "
        f"first {h.first.unended:.0%}"
    )
    return Finding("unended", sentence, value, limit)


def kl_per_caption(h: History, limits: Limits) -> Finding | None:
    """The policy is far from the reference, over a whole caption."""
    value = h.now.kl_per_caption
    if not value > limits.kl_per_caption:
        return None
    sentence = f"the policy is {value:.0f} nats per caption from the base: train.beta may be low"
    return Finding("kl_per_caption", sentence, value, limits.kl_per_caption)


RULES: tuple[Rule, ...] = (
    heldout_drop,
    doubtful,
    agreement,
    reward_agreement,
    distinct_2,
    repeated_3grams,
    flat_groups,
    entropy,
    length,
    unended,
    kl_per_caption,
)


def _ratio(now: float, before: float) -> float:
    return now / before if before > 0 else float("nan")


def _signed(values: list[float]) -> str:
    return ", ".join(f"{value:+.2f}" for value in values)
