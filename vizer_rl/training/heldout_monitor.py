"""Watches training with the held-out scorer, which no reward uses, and keeps the best adapter."""

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


class HeldoutMonitor(TrainerCallback):
    """Every `every` steps (0: only first and last): greedy captions of fixed images, scored.

    The score is the held-out scorer's mean cosine. The adapter that scored best so far is kept in
    `adapter`, or the last one (`keep`); `note` takes the numbers to the trainer's log as
    heldout/score and heldout/words.
    """

    def __init__(
        self,
        ids: Sequence[str],
        images: Sequence[Image],
        prompt: str,
        max_new_tokens: int,
        encoder: Encoder,
        processor: Any,
        every: int,
        keep: str,
        adapter: Path,
        features: VisionCache | None = None,
    ) -> None:
        self.ids, self.images, self.prompt = list(ids), images, prompt
        self.max_new_tokens, self.encoder = max_new_tokens, encoder
        self.processor, self.every, self.adapter = processor, every, adapter
        self.keep, self.features = keep, features
        self.note: Callable[[str, float], None] | None = None
        self.best = float("-inf")
        self.last = float("nan")

    def recall(self) -> None:
        """Go on from the best adapter of the run that is resumed."""
        self.best = json.loads((self.adapter / "heldout.json").read_text())["score"]

    def look(self, model: Any) -> float:
        """Score the model as it is now, and keep its adapter if none was better, or if told to."""
        training = model.training
        model.eval()
        said = captioner.caption(
            model,
            self.processor,
            self.images,
            self.prompt,
            max_new_tokens=self.max_new_tokens,
            features=self.features,
        )
        model.train(training)
        texts = [c.text for c in said]
        images = self.encoder.image_features(self.ids, self.images)
        self.last = (images * self.encoder.text_features(texts)).sum(-1).mean().item()
        if self.note:
            self.note("heldout/score", self.last)
            self.note("heldout/words", sum(len(t.split()) for t in texts) / len(texts))
        if self.last > self.best or self.keep == "last":
            self.best = self.last
            model.save_pretrained(str(self.adapter), selected_adapters=["default"])  # no critic's
            (self.adapter / "heldout.json").write_text(json.dumps({"score": self.best}))
        return self.last

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        last = state.global_step == state.max_steps
        due = self.every > 0 and state.global_step % self.every == 0
        if state.is_world_process_zero and (last or due):
            self.look(model)
