"""Held-out monitor: scores the policy by a scorer that no reward uses, keeps the best adapter."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from rewards import Encoder
from rewards.lib.chunks import caption_cosines
from rewards.lib.word_classes import WordClasses

from ..data.lazy import LazyImages
from ..errors import ImageError
from ..evaluation.doubtful_words import doubtful_counts
from ..files import replaced
from ..policy import captioner
from ..policy.shared_prefix.vision_cache import VisionCache
from ..policy.whole_weights import whole_state, whole_weights
from .heldout_scores import HeldoutScores

SCORE_FILE = "heldout.json"  # beside the adapter that is kept: its score
DOUBTED = 64  # of the watched images: each word of their captions is exchanged, dozens of texts


@dataclass(frozen=True)
class HeldoutResult:
    """An evaluation: the watched images, their greedy captions, how well they fit.

    step: steps of the policy so far, 0 before training; cosines_N: (N,) of the held-out scorer;
    score: their mean; kept: whether this step's adapter is the one that is kept now; scores: by
    image, the doubtful words with them.
    """

    step: int
    ids: tuple[str, ...]
    captions: tuple[str, ...]
    cosines_N: Tensor
    score: float
    kept: bool
    scores: HeldoutScores


class HeldoutMonitor(TrainerCallback):
    """Every `interval` steps (0: only first and last): greedy captions of fixed images, scored.

    The score is the held-out scorer's mean cosine, by sentences. `adapter` holds the last one, or
    (`keep` is best) the last that is not clearly worse than the best so far: on the same images at
    most two standard errors below it, or with fewer doubtful words (`HeldoutScores`). The highest
    score itself would be picked by its luck, and by what a weak scorer likes. `log_metric` gets
    heldout/score, heldout/words and heldout/doubtful.
    """

    def __init__(
        self,
        ids: Sequence[str],
        images: LazyImages,
        prompt: str,
        max_new_tokens: int,
        encoder: Encoder,
        classes: WordClasses,
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
        """classes: of words, in which a doubtful one has its alternatives; sharded: weights are
        spread over devices; lost: whether an image's file has changed; on_evaluation: each gets
        each result.
        """
        self.lost = lost
        self.ids, self.images, self.prompt = list(ids), images, prompt
        self.max_new_tokens, self.encoder = max_new_tokens, encoder
        self.classes, self.processor = classes, processor
        self.interval, self.adapter = interval, adapter
        self.keep, self.vision_cache, self.log_metric = keep, vision_cache, log_metric
        self.sharded, self.best = sharded, HeldoutScores()
        self.on_evaluation = tuple(on_evaluation)

    def evaluate(self, model: Any, step: int = 0) -> float:
        """Score the model as it is now; keep its adapter, unless a better one is to be kept.

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
        result = self._judged(step, captions)
        if result.kept:
            self._keep_adapter(model, result.score)
        self.best = max(self.best, result.scores, key=lambda scores: scores.score)
        for receive in self.on_evaluation:
            receive(result)
        return result.score

    def _judged(self, step: int, captions: list[str]) -> HeldoutResult:
        """The result of these captions of the watched images, logged."""
        cosines = caption_cosines(self.encoder, self.ids, self.images, captions)
        features_ND = self.encoder.image_features(self.ids, self.images)
        few = slice(DOUBTED)
        counts = doubtful_counts(self.encoder, features_ND[few], captions[few], self.classes)
        rest = torch.zeros(max(0, len(captions) - DOUBTED), dtype=torch.long)
        words = torch.cat([counts[0], rest]), torch.cat([counts[1], rest])
        ids, cosines_N = tuple(self.ids), cosines.detach().float().cpu()
        scores = HeldoutScores.by_image(ids, cosines_N, words)
        score = float(cosines_N.mean())
        self.log_metric("heldout/score", score)
        self.log_metric("heldout/words", sum(len(c.split()) for c in captions) / len(captions))
        if (doubt := scores.doubt()) == doubt:
            self.log_metric("heldout/doubtful", doubt)
        kept = self.keep == "last" or not self.best.clearly_above(scores)
        return HeldoutResult(step, ids, tuple(captions), cosines_N, score, kept, scores)

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
        return {"best": asdict(self.best)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = HeldoutScores(**state["best"])

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if is_due(state, self.interval):
            with whole_weights(model):
                if state.is_world_process_zero:
                    self.evaluate(model, state.global_step)


def is_due(state: Any, interval: int) -> bool:
    """Whether the step of transformers' TrainerState is one that is evaluated.

    Twice as often over the first two intervals: a reward that ruins the policy does it there, and
    an alarm that needs two evaluations is to come in time.
    """
    step, last = state.global_step, bool(state.global_step == state.max_steps)
    early = step < 2 * interval and step % interval == interval // 2
    return last or (interval > 0 and (early or step % interval == 0))
