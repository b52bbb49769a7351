"""Held-out monitor: scores the policy by a scorer that no reward uses, keeps the best adapter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image
from transformers import TrainerCallback

from rewards import Encoder
from rewards.lib.chunks import caption_cosines

from ..files import add_checksums
from ..policy import captioner
from ..policy.shared_prefix.vision_cache import VisionCache

SCORE_FILE = "heldout.json"  # beside the adapter that is kept: its score


class HeldoutMonitor(TrainerCallback):
    """Every `interval` steps (0: only first and last): greedy captions of fixed images, scored.

    The score is the held-out scorer's mean cosine, by sentences. The adapter that scored best
    so far is kept in `adapter`, or the last one (`keep`); `log_metric` gets heldout/score and
    heldout/words.
    """

    def __init__(
        self,
        ids: Sequence[str],
        images: Sequence[Image],
        prompt: str,
        max_new_tokens: int,
        encoder: Encoder,
        processor: Any,
        interval: int,
        keep: str,
        adapter: Path,
        vision_cache: VisionCache | None,
        log_metric: Callable[[str, float], None],
        sharded: bool = False,
    ) -> None:
        """sharded: weights are spread over devices."""
        self.ids, self.images, self.prompt = list(ids), images, prompt
        self.max_new_tokens, self.encoder = max_new_tokens, encoder
        self.processor, self.interval, self.adapter = processor, interval, adapter
        self.keep, self.vision_cache, self.log_metric = keep, vision_cache, log_metric
        self.sharded, self.best = sharded, float("-inf")

    def evaluate(self, model: Any) -> float:
        """Score the model as it is now; keep its adapter if none was better, or if `keep` is last.

        Returns the mean cosine.
        """
        training = model.training
        model.eval()
        captions = [
            caption.text
            for caption in captioner.caption(
                model,
                self.processor,
                self.images,
                self.prompt,
                max_new_tokens=self.max_new_tokens,
                vision_cache=self.vision_cache,
                sharded=self.sharded,
            )
        ]
        model.train(training)
        cosines = caption_cosines(self.encoder, self.ids, self.images, captions)
        score = cosines.mean().item()
        self.log_metric("heldout/score", score)
        self.log_metric("heldout/words", sum(len(c.split()) for c in captions) / len(captions))
        if score > self.best or self.keep == "last":
            self.best = score
            self._keep_adapter(model, score)
        return float(score)

    def _keep_adapter(self, model: Any, score: float) -> None:
        """Put the adapter and its score in place of those kept, file by file, each whole."""
        part = self.adapter.with_name(".adapter.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        model.save_pretrained(str(part), selected_adapters=["default"])  # no critic's
        (part / SCORE_FILE).write_text(json.dumps({"score": score}))
        add_checksums(part)
        self.adapter.mkdir(exist_ok=True)
        for path in sorted(part.iterdir()):
            path.replace(self.adapter / path.name)
        part.rmdir()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        last = state.global_step == state.max_steps
        due = self.interval > 0 and state.global_step % self.interval == 0
        if state.is_world_process_zero and (last or due):
            self.evaluate(model)
