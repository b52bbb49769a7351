"""Which alarms an evaluation raises: the rules over the history of a run's evidence."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from .alarm_rules import MEMORY, RULES, Finding, History, Limits
from .evidence import Evidence


class Judge:
    """Takes in the evidence of each evaluation, gives the alarms that are new.

    An alarm is given when its rule begins to hold, and again only after it has ceased to.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._history: History | None = None
        self._active: set[str] = set()

    def take(self, evidence: Evidence) -> list[Finding]:
        """The alarms that this evaluation raises."""
        self._history = h = _extended(self._history, evidence)
        findings = [f for rule in RULES if (f := rule(h, self.limits)) is not None]
        new = [finding for finding in findings if finding.name not in self._active]
        self._active = {finding.name for finding in findings}
        return new

    def state_dict(self) -> dict[str, Any]:
        return {"history": self._history and asdict(self._history), "active": sorted(self._active)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        parts = dict(state["history"] or {})
        recent = tuple(Evidence(**e) for e in parts.pop("recent", ()))
        named = {name: Evidence(**e) for name, e in parts.items()}
        self._history = History(**named, recent=recent) if recent else None
        self._active = set(state["active"])


def _extended(history: History | None, e: Evidence) -> History:
    """The history with one more evaluation."""
    if history is None:
        return History(e, e, (e,))
    first = {k: v if v == v else getattr(e, k) for k, v in asdict(history.first).items()}
    best = e if e.score > history.best.score else history.best
    return History(Evidence(**first), best, (*history.recent, e)[-MEMORY:])
