"""Weights & Biases of a run: its rows by name, captions that change, rollouts, alarms, adapter.

Written for who reviews the run there: docs/wandb.md says what stands where. Imported only where
W&B is on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb
from torch import Tensor

from ..algorithms.last_rollout import RolloutRecord
from ..algorithms.trl_logs import COMPLETIONS_INTERVAL
from ..errors import printable
from ..files import read_json, write_text
from .alarms import Alarm
from .heldout_monitor import SCORE_FILE, HeldoutResult
from .rollout_table import rollout_table, weighted_rewards
from .wandb_media import RECURRING, SENT, Budget, RunMedia, folder_files, sent_bytes
from .wandb_run import WandbSender

MAX_POINTS, MAX_HISTOGRAMS = 1000, 200  # of a curve; of a kind of histogram
START_BYTES, POINT_BYTES = 40_000, 8_000  # config and system; all curves at a step, summary too
MEGABYTE = 1_000_000
Scores = Mapping[str, Sequence[float | None]]  # of each reward, by its name


def open_media(directory: Path, max_mb: float) -> RunMedia:
    """The media of the W&B run that is open; what this run directory has sent already counts."""
    spent, recurring = (sent_bytes(directory, *patterns) for patterns in (SENT, RECURRING))
    return RunMedia(Budget(int(max_mb * MEGABYTE), spent, recurring))


def grouped(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of metrics.jsonl by W&B's names: a key without a group goes to `train/`."""
    numbers = {key: value for key, value in row.items() if key != "step" and value is not None}
    return {key if "/" in key else f"train/{key}": value for key, value in numbers.items()}


class Gallery:
    """A fixed choice of the watched images, with their captions before training and now."""

    def __init__(
        self, ids: Sequence[str], pictures: Sequence[bytes], score: Callable[[list[str]], Scores],
        base_file: Path,
    ) -> None:  # fmt: skip
        """score: captions of these images under the rewards; base_file: where the first stand."""
        self.ids, self.pictures, self.score, self.base_file = ids, pictures, score, base_file

    def texts(self, result: HeldoutResult) -> list[str]:
        """What stands below each picture: step and score, the caption, the base's, the rewards."""
        chosen = [result.ids.index(image_id) for image_id in self.ids]
        now = [(result.captions[n], float(result.cosines_N[n])) for n in chosen]
        if result.step == 0:
            write_text(self.base_file, json.dumps(now))
        first = (
            read_json(self.base_file, list[tuple[str, float]]) if self.base_file.is_file() else []
        )
        scores, texts = self.score([caption for caption, _ in now]), []
        for index, (caption, cosine) in enumerate(now):
            lines = [f"step {result.step}: held-out {cosine:.3f}", printable(caption)]
            if result.step and first:
                lines[0] += f" (base {first[index][1]:.3f})"
                lines.insert(2, f"base: {printable(first[index][0])}")
            lines.append(_rewards({name: column[index] for name, column in scores.items()}))
            texts.append("\n".join(lines))
        return texts


def _rewards(scores: Mapping[str, float | None]) -> str:
    return " · ".join(f"{n} {'–' if s is None else format(s, '.2f')}" for n, s in scores.items())


class WandbLog(WandbSender):
    """Sends what a run logs to W&B; from transformers come the arguments and the axis of steps."""

    def __init__(
        self,
        media: RunMedia,
        gallery: Gallery,
        rollout: Callable[[], RolloutRecord | None],
        parts_NK: Callable[[RolloutRecord], Tensor],
        cosines: Callable[[Sequence[str], Sequence[str]], Tensor],
        picture: Callable[[str], bytes],
        directory: Path,
        warn: Callable[[str], object],
    ) -> None:
        """rollout: the newest; parts_NK: what each reward adds to its advantages; cosines: of
        training images (ids) and captions under the held-out scorer; picture: a training image as
        JPEG; warn: takes a sentence."""
        super().__init__(directory, warn)
        self.media, self.gallery, self.rollout, self.parts_NK = media, gallery, rollout, parts_NK
        self.cosines, self.picture = cosines, picture
        self.last_step, self.point_step, self.histogram_step, self.table_step = math.inf, 0, 0, 0
        self.adapter_fits = False
        self.tabled: RolloutRecord | None = None

    def evaluated(self, result: HeldoutResult) -> None:
        """Show the gallery's captions; before training also the score, which has no row yet."""
        self._send(self._log_evaluation, result)

    def row(self, row: Mapping[str, Any]) -> None:
        """Log a row of metrics.jsonl; now and then with histograms and a table of the rollout."""
        self._send(self._log_row, row)

    def alarm(self, alarm: Alarm) -> None:
        """Raise an alarm, which W&B also mails to who wants it."""
        title, level = f"{alarm.name}, step {alarm.step}", "WARN"
        self._send(lambda: self.media.run.alert(title=title, text=alarm.sentence, level=level))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.last_step = state.max_steps
        self._plan(state.max_steps - state.global_step)
        super().on_train_begin(args, state, control, **kwargs)
        if (page := self.directory / "audit.html").is_file():
            self._send(self.media.log_page, "pages/audit", state.global_step, page)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" not in logs:  # of the whole training; its steps come as rows
            self._send(lambda: self.media.run.summary.update(logs))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_end(args, state, control, **kwargs)
        if (record := self.rollout()) and record is not self.tabled:
            self._send(self._log_table, state.global_step, record)
        if self.adapter_fits:
            self._send(self._log_adapter)
        if count := self.media.budget.left_out:
            self.warn(
                f"W&B: {count} galleries, tables or pages were left out to stay within "
                f"{self.media.budget.limit / MEGABYTE:g} MB (tracking.max_mb)"
            )

    def _plan(self, steps: int) -> None:
        """Set bytes aside for curves of so many steps and the adapter; say how many there are."""
        budget, megabytes = self.media.budget, self.media.budget.limit / MEGABYTE
        budget.set_aside(START_BYTES + POINT_BYTES * min(steps, MAX_POINTS))
        size = sum(path.stat().st_size for path in folder_files(self.directory / "adapter"))
        self.adapter_fits = size <= budget.shared / 2
        budget.set_aside(size if self.adapter_fits else 0)
        among = "among them" if self.adapter_fits else "not among them: it is too large"
        self.warn(
            f"W&B: at most {megabytes:g} MB a run (tracking.max_mb), the adapter of "
            f"{size / MEGABYTE:.1f} MB {among}; what stands where: docs/wandb.md"
        )

    def _log_evaluation(self, result: HeldoutResult) -> None:
        progress, gallery = result.step / self.last_step, self.gallery
        texts = gallery.texts(result)
        self.media.log_gallery("heldout/gallery", result.step, progress, gallery.pictures, texts)
        if result.step == 0:
            words = sum(len(c.split()) for c in result.captions) / len(result.captions)
            start = {"heldout/score": result.score, "heldout/words": words}
            if (doubt := result.scores.doubt()) == doubt:
                start["heldout/doubtful"] = doubt
            self.media.log(0, start)

    def _log_row(self, row: Mapping[str, Any]) -> None:
        step, record = row["step"], self.rollout()
        if step < self.point_step and "heldout/score" not in row and step != self.last_step:
            return
        self.point_step = step + -(-int(self.last_step) // MAX_POINTS)
        values = grouped(row)
        if record and "reward" in row and step >= self.histogram_step:
            self.histogram_step = step + max(1, int(self.last_step) // MAX_HISTOGRAMS)
            values["rollout/reward"] = wandb.Histogram(weighted_rewards(record))
            values["rollout/length"] = wandb.Histogram(list(record.lengths))
        self.media.log(step, values)
        if record and "reward" in row and step >= self.table_step:
            self.table_step = step + COMPLETIONS_INTERVAL
            self._log_table(step, record)

    def _log_table(self, step: int, record: RolloutRecord) -> None:
        columns, rows, ids = rollout_table(step, record, self.parts_NK(record), self.cosines)
        jpegs = {image_id: self.picture(image_id) for image_id in dict.fromkeys(ids)}
        pictures, progress = [jpegs[image_id] for image_id in ids], step / self.last_step
        self.media.log_table("rollout/captions", step, progress, columns, rows, pictures)
        self.tabled = record

    def _log_adapter(self) -> None:
        adapter = self.directory / "adapter"
        about = json.loads((adapter / SCORE_FILE).read_text())
        self.media.log_folder(f"adapter-{self.media.run.id}", "model", adapter, about)


def send_page(
    key: str, page: Path, directory: Path, max_mb: float, warn: Callable[[str], object]
) -> None:
    """Send a page to the W&B run that is open still, after the training."""
    media = open_media(directory, max_mb)
    WandbSender(directory, warn)._send(media.log_page, key, media.run.step, page)
