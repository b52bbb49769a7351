"""Held-out monitor: scores the policy by a scorer that no reward uses, keeps the best adapter."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image
from transformers import TrainerCallback

from rewards import Encoder

from ..policy import captioner
from ..policy.shared_prefix.vision_cache import VisionCache

SCORE_FILE = "heldout.json"  # beside the adapter that is kept: its score


class HeldoutMonitor(TrainerCallback):
    """Every `interval` steps (0: only first and last): greedy captions of fixed images, scored.

    The score is the held-out scorer's mean cosine. The adapter that scored best so far is kept in
    `adapter`, or the last one (`keep`); `log_metric` gets heldout/score and heldout/words.
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
        best: float = float("-inf"),
    ) -> None:
        """sharded: weights are spread over devices; best: the score that an adapter must beat."""
        self.ids, self.images, self.prompt = list(ids), images, prompt
        self.max_new_tokens, self.encoder = max_new_tokens, encoder
        self.processor, self.interval, self.adapter = processor, interval, adapter
        self.keep, self.vision_cache, self.log_metric = keep, vision_cache, log_metric
        self.sharded, self.best = sharded, best

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
        images = self.encoder.image_features(self.ids, self.images)
        score = (images * self.encoder.text_features(captions)).sum(-1).mean().item()
        self.log_metric("heldout/score", score)
        self.log_metric("heldout/words", sum(len(c.split()) for c in captions) / len(captions))
        if score > self.best or self.keep == "last":
            self.best = score
            model.save_pretrained(str(self.adapter), selected_adapters=["default"])  # no critic's
            (self.adapter / SCORE_FILE).write_text(json.dumps({"score": score}))
        return float(score)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        last = state.global_step == state.max_steps
        due = self.interval > 0 and state.global_step % self.interval == 0
        if state.is_world_process_zero and (last or due):
            self.evaluate(model)


def best_score(adapter: Path) -> float:
    """The score of the adapter that a run has kept."""
    return float(json.loads((adapter / SCORE_FILE).read_text())["score"])
