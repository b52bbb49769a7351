"""What the files of a run hold, as far as the report reads them.

Other keys are let in: later versions add metrics and scores, and the page shows them too.
"""

from __future__ import annotations

from typing import Any, NotRequired

from pydantic import BaseModel, ConfigDict

from ..statistics import Estimate

Estimates = dict[str, Estimate]


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class ControlTest(_Open):
    """How the trained captions differ from a control in one metric."""

    metric: str
    control: str
    difference: Estimate
    p_holm: float
    better: bool


class Verdict(_Open):
    """Whether training beats the controls, in words."""

    better: bool
    sentences: list[str]
    tests: list[ControlTest] = []


class References(_Open):
    """What an evaluation compared with, in sentences."""

    notes: list[str] = []


class Evaluation(_Open):
    """eval.json: docs/evaluation.md."""

    n_images: int
    base: Estimates
    trained: Estimates
    change: Estimates
    by_kind: dict[str, dict[str, float | None]] = {}
    diversity: dict[str, dict[str, float | None]] = {}
    controls: dict[str, Estimates] = {}
    over_controls: dict[str, Estimates] = {}
    how: dict[str, str] = {}
    verdict: Verdict | None = None
    references: References | None = None
    left_out: list[str] = []


class Doubt(_Open):
    """A word of a caption that another word of its class fits better."""

    start: int
    end: int
    word: str
    instead: str | None = None


class ControlCaption(_Open):
    """A control's caption of the image, and its held-out score."""

    caption: str
    score: float | None = None


class CaptionRow(_Open):
    """A line of captions.jsonl; what else begins with base_ or trained_ may be a score, too."""

    image_id: str
    base: str
    trained: str
    truth: str | None = None
    references: list[str] = []
    base_rewards: dict[str, float | None] = {}
    trained_rewards: dict[str, float | None] = {}
    base_doubtful: list[Doubt] | None = None
    trained_doubtful: list[Doubt] | None = None
    controls: dict[str, ControlCaption] = {}

    def scores(self) -> dict[str, tuple[float, float]]:
        """The numbers that both captions have, by name: "score" is the held-out scorer's.

        "score:NAME" is a further one's.
        """
        numbers = {k: float(v) for k, v in (self.model_extra or {}).items() if is_number(v)}
        names = [key.removeprefix("base_") for key in numbers if key.startswith("base_")]
        pairs = {n: (numbers[f"base_{n}"], numbers.get(f"trained_{n}")) for n in names}
        return {n: (base, trained) for n, (base, trained) in pairs.items() if trained is not None}


class Alarm(_Open):
    """A line of alarms.jsonl."""

    step: int
    name: str
    sentence: str


class AuditLine(_Open):
    """A finding of an audit."""

    level: str
    says: str
    do: str | None = None


class AuditVerdict(_Open):
    """What an audit says of the rewards."""

    overall: str
    lines: list[AuditLine]


class Picks(Estimate):
    """How often the original caption beat one that was attacked; how often they tied."""

    tied: NotRequired[float]


class Attack(_Open):
    """The picks of an attack by reward; "sum" is all."""

    about: str = ""
    wins: dict[str, Picks | None]


class Audit(_Open):
    """audit.json: docs/audit.md."""

    images: int
    verdict: AuditVerdict
    rewards: dict[str, float]
    attacks: dict[str, Attack] = {}


class Heldout(_Open):
    """heldout.json: where the held-out images lie."""

    source: str


class Score(_Open):
    """adapter/heldout.json: the held-out score of the adapter that was kept."""

    score: float


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and no bool."""
    finite = isinstance(value, int | float) and abs(value) < float("inf")  # NaN is not, either
    return finite and not isinstance(value, bool)
