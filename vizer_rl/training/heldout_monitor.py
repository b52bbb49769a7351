"""Held-out monitor: scores the policy by a scorer that no reward uses, keeps the best adapter."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import TrainerCallback

from rewards import Encoder
from rewards.lib.chunks import caption_cosines

from ..data.lazy import LazyImages
from ..errors import ImageError
from ..files import replaced
from ..policy import captioner
from ..policy.shared_prefix.vision_cache import VisionCache
from ..policy.whole_weights import whole_state, whole_weights

SCORE_FILE = "heldout.json"  # beside the adapter that is kept: its score


@dataclass(frozen=True)
class HeldoutResult:
    """An evaluation: the watched images, their greedy captions, how well they fit.

    step: steps of the policy so far, 0 before training; cosines_N: (N,) of the held-out scorer;
    score: their mean; kept: whether this step's adapter is the one that is kept now.
    """

    step: int
    ids: tuple[str, ...]
    captions: tuple[str, ...]
    cosines_N: Tensor
    score: float
    kept: bool


class HeldoutMonitor(TrainerCallback):
    """Every `interval` steps (0: only first and last): greedy captions of fixed images, scored.

    The score is the held-out scorer's mean cosine, by sentences. The adapter that scored best
    so far is kept in `adapter`, or the last one (`keep`); `log_metric` gets heldout/score and
    heldout/words.
    """

    def __init__(
        self,
        ids: Sequence[str],
        images: LazyImages,
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
        lost: Callable[[str], bool] = lambda image_id: False,
        on_evaluation: Sequence[Callable[[HeldoutResult], object]] = (),
    ) -> None:
        """sharded: weights are spread over devices; lost: whether an image's file has changed;
        on_evaluation: each gets each result.
        """
        self.lost = lost
        self.ids, self.images, self.prompt = list(ids), images, prompt
        self.max_new_tokens, self.encoder = max_new_tokens, encoder
        self.processor, self.interval, self.adapter = processor, interval, adapter
        self.keep, self.vision_cache, self.log_metric = keep, vision_cache, log_metric
        self.sharded, self.best = sharded, float("-inf")
        self.on_evaluation = tuple(on_evaluation)

    def evaluate(self, model: Any, step: int = 0) -> float:
        """Score the model as it is now; keep its adapter if none was better, or if `keep` is last.

        step: that the model is of. Returns the mean cosine.
        """
        self._leave_out_lost()
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
        score = float(cosines.mean())
        self.log_metric("heldout/score", score)
        self.log_metric("heldout/words", sum(len(c.split()) for c in captions) / len(captions))
        kept = score > self.best or self.keep == "last"
        if kept:
            self.best = score
            self._keep_adapter(model, score)
        ids, cosines_N = tuple(self.ids), cosines.detach().float().cpu()
        result = HeldoutResult(step, ids, tuple(captions), cosines_N, score, kept)
        for receive in self.on_evaluation:
            receive(result)
        return score

    def _leave_out_lost(self) -> None:
        """Go on with the images whose files are what they were; ImageError where none is."""
        rows = [row for row, image_id in enumerate(self.ids) if not self.lost(image_id)]
        if len(rows) == len(self.ids):
            return
        if not rows:
            raise ImageError("Not one of the watched images is what it was at the start.")
        warnings.warn(
            f"{len(self.ids) - len(rows)} of {len(self.ids)} watched images have been deleted or "
            "replaced (skipped.jsonl): the held-out score is of the others from here on",
            stacklevel=2,
        )
        self.ids, self.images = [self.ids[row] for row in rows], self.images[rows]

    def _keep_adapter(self, model: Any, score: float) -> None:
        """Put the adapter and its score in place of those kept, as one folder."""
        with replaced(self.adapter) as folder:
            model.save_pretrained(
                str(folder), selected_adapters=["default"], state_dict=whole_state(model)
            )  # no critic's
            (folder / SCORE_FILE).write_text(json.dumps({"score": score}))

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if is_due(state, self.interval):
            with whole_weights(model):
                if state.is_world_process_zero:
                    self.evaluate(model, state.global_step)


def is_due(state: Any, interval: int) -> bool:
    """Whether the step of transformers' TrainerState is one that is evaluated."""
    last = bool(state.global_step == state.max_steps)
    return last or (interval > 0 and state.global_step % interval == 0)
