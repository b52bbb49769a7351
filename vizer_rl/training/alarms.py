"""Live alarms: held-out evaluations are judged while a run trains, which may end it."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list
from torch import Tensor
from transformers import TrainerCallback

from ..algorithms.last_rollout import RolloutRecord
from ..errors import ImageError
from ..evaluation.statistics import number
from ..files import append_text
from . import evidence as signs
from .alarm_judge import Judge
from .alarm_rules import Finding
from .evidence import Evidence
from .heldout_monitor import HeldoutResult
from .heldout_scores import HeldoutScores

ALARMS_FILE = "alarms.jsonl"  # one object per alarm
EVIDENCE_FILE = "evaluations.jsonl"  # one object per evaluation: what alarms are judged by
ROLLOUTS = 10  # that an evaluation compares rewards and held-out scorer over, at most
LOGGED = {  # of the evidence, under these names
    "agreement": "heldout/agreement",
    "below_best": "heldout/below_best",
    "distinct_2": "heldout/distinct_2",
    "repeated_3grams": "heldout/repeated_3grams",
    "reward_agreement": "reward_agreement",
}
ENDS = {
    "warn": "",
    "stop": ". The run ends here, with a checkpoint to go on from (monitor.on_alarm: stop)",
    "rollback": ". The run ends here (monitor.on_alarm: rollback)",
}


@dataclass(frozen=True)
class Alarm:
    """A row of alarms.jsonl: what is wrong in one sentence, and what the run does (`action`)."""

    step: int
    name: str
    sentence: str
    value: float
    threshold: float
    action: str


class Alarms(TrainerCallback):
    """Judges each held-out evaluation and, by `action`, warns, or ends the run too.

    Give `take` to the held-out monitor and this callback to the trainer, behind the monitor; it is
    a holder of the trainer. Only the first process judges; all of them end.
    """

    def __init__(
        self,
        directory: Path,
        action: str,
        rollout: Callable[[], RolloutRecord | None],
        heldout: Callable[[Sequence[str], Sequence[str]], Tensor],
        due: Callable[[Any], bool],
        log_metric: Callable[[str, float], None],
        report: Callable[[str], object],
        on_alarm: Sequence[Callable[[Alarm], object]] = (),
        *,
        normalised: bool,
        rewarded: bool = True,
    ) -> None:
        """action: warn, stop or rollback; rollout: the last one's record; heldout: image ids and
        captions to held-out cosines; due: whether a step is evaluated (TrainerState); normalised:
        rewards are, within groups, before they are summed; rewarded: they are what trains."""
        self.directory, self.action, self.rollout = directory, action, rollout
        self.heldout, self.due, self.log_metric = heldout, due, log_metric
        self.report, self.on_alarm = report, tuple(on_alarm)
        self.normalised, self.rewarded = normalised, rewarded
        self.judge, self._means = Judge(), Means()
        self._first = self._best = HeldoutScores()
        self._kept_step, self._raised = 0, False
        self._rollouts = deque[RolloutRecord](maxlen=ROLLOUTS)  # since the last evaluation

    def take(self, result: HeldoutResult) -> None:
        """Judge an evaluation: log and write down its evidence, raise its alarms."""
        evidence = self._evidence(result)
        self._first = self._first if self._first.cosines else result.scores
        self._best = max(self._best, result.scores, key=lambda scores: scores.score)
        self._kept_step = result.step if result.kept else self._kept_step
        for name, key in LOGGED.items():
            if (value := getattr(evidence, name)) == value:
                self.log_metric(key, value)
        self._write(EVIDENCE_FILE, evidence)
        for finding in self.judge.take(evidence):
            self._raise(result.step, finding)

    def _raise(self, step: int, finding: Finding) -> None:
        kept = f"; the adapter kept is step {self._kept_step}'s"
        sentence = f"{finding.sentence}{kept}"
        alarm = Alarm(step, finding.name, sentence, finding.value, finding.threshold, self.action)
        self._raised = True
        self._write(ALARMS_FILE, alarm)
        self.report(f"alarm at step {step}: {sentence}{ENDS[self.action]}")
        for receive in self.on_alarm:
            receive(alarm)

    def _evidence(self, result: HeldoutResult) -> Evidence:
        now = result.scores
        best, first = (s if s.cosines else now for s in (self._best, self._first))
        (below, below_se), (rise, rise_se) = now.lead(best), now.doubt_over(first)
        values: dict[str, Any] = {
            "spread": result.cosines_N.std().item(),
            "below_best": below,
            "below_best_se": below_se,
            "excused": now.excused(best),
            "doubtful": now.doubt(),
            "doubtful_rise": rise,
            "doubtful_rise_se": rise_se,
            "words": signs.mean_words(result.captions),
            "distinct_2": signs.distinct_2(result.captions),
            "repeated_3grams": signs.repeated_3grams(result.captions),
            **self._means.take(),
        }
        if self._rollouts:
            agreements = [x for record in self._rollouts for x in self._agreements(record)]
            newest = signs.Scored(self._rollouts[-1], self.normalised)
            pair = signs.mean_and_error(agreements)
            values["agreement"], values["agreement_se"] = pair
            values["reward_agreement"] = newest.reward_agreement()
            self._rollouts.clear()
        return Evidence(result.step, result.score, **values)

    def _agreements(self, record: RolloutRecord) -> list[float]:
        """Of each group; none where a file changed since it was sampled for."""
        with suppress(ImageError):
            cosines_N = self.heldout(record.image_ids, record.captions)
            return signs.Scored(record, self.normalised).agreements(cosines_N)
        return []

    def _write(self, file: str, row: Evidence | Alarm) -> None:
        """Append a row to a file of the run directory; a NaN is null."""
        values = {k: number(v) if isinstance(v, float) else v for k, v in asdict(row).items()}
        append_text(self.directory / file, json.dumps(values) + "\n")

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        record = self.rollout() if state.is_world_process_zero else None
        if record is None:
            return
        self._means.add("unended", 1 - sum(record.ended) / len(record.ended))
        if self.rewarded:
            scored = signs.Scored(record, self.normalised)
            self._means.add("reward", scored.total_N.mean().item())
            self._means.add("reward_std", scored.total_N.std().item())
            self._means.add("flat_groups", scored.flat_groups())
            if not (self._rollouts and self._rollouts[-1].captions == record.captions):
                self._rollouts.append(record)  # once, though it may train twice

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        for name in ("entropy", "kl_per_caption"):
            if (value := (logs or {}).get(name)) is not None:
                self._means.add(name, value)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.action == "warn" or not self.due(state):
            return
        raised = [self._raised]
        broadcast_object_list(raised)  # all devices end at the same step
        self._raised = False
        if raised[0]:
            control.should_training_stop = True
            control.should_save = self.action == "stop"  # no roll-back goes on from here

    def state_dict(self) -> dict[str, Any]:
        state = {"judge": self.judge.state_dict(), "means": self._means.state_dict()}
        scores = {"first": asdict(self._first), "best": asdict(self._best)}
        rollouts = [dict(vars(record)) for record in self._rollouts]
        return {**state, **scores, "rollouts": rollouts, "kept_step": self._kept_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.judge.load_state_dict(state["judge"])
        self._means.load_state_dict(state["means"])
        self._first, self._best = (HeldoutScores(**state[k]) for k in ("first", "best"))
        self._kept_step = state["kept_step"]
        self._rollouts.extend(RolloutRecord(**record) for record in state["rollouts"])


class Means:
    """Means of named numbers since they were last taken; where none came, those of before."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}
        self._last: dict[str, float] = {}

    def add(self, name: str, value: float) -> None:
        """Count a number in."""
        total, count = self._sums.get(name, (0.0, 0))
        self._sums[name] = total + value, count + 1

    def take(self) -> dict[str, float]:
        """The means; counting begins anew."""
        self._last |= {name: total / count for name, (total, count) in self._sums.items()}
        self._sums = {}
        return dict(self._last)

    def state_dict(self) -> dict[str, Any]:
        return {"sums": dict(self._sums), "last": dict(self._last)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums, self._last = dict(state["sums"]), dict(state["last"])
