"""TRL's batches and logs in our words: keys of metrics, completions as text, our advantages."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from ..errors import printable
from ..policy.chat import message_text
from ..policy.shared_prefix.packing import unwrapped
from ..policy.shared_prefix.rollout import PROMPT_IDX_KEY
from .advantages import local_rows

COMPLETIONS_INTERVAL = 20  # steps between two completions tables


def rename_reward_metrics(metrics: dict[str, list[float]], rewards: Iterable[str]) -> None:
    """`rewards/NAME/mean` and `/std` become `reward/NAME` and `reward/NAME/std`, beside ours."""
    for name in rewards:
        for statistic, key in (("mean", f"reward/{name}"), ("std", f"reward/{name}/std")):
            if f"rewards/{name}/{statistic}" in metrics:
                metrics[key] = metrics.pop(f"rewards/{name}/{statistic}")


def mean_over_processes(trainer: Any) -> None:
    """Each metric that is to be logged becomes its mean over the processes that have it.

    TRL's own are the same on all; seconds, cache hits, ViZer's loss and notes of rewards are not.
    """
    if trainer.accelerator.num_processes == 1:
        return
    metrics = trainer._metrics["train"]
    own = {key: sum(values) / len(values) for key, values in metrics.items() if values}
    processes = gather_object([own])
    for key in dict.fromkeys(key for process in processes for key in process):
        values = [process[key] for process in processes if key in process]
        metrics[key] = [sum(values) / len(values)]


def messages_to_text(column: deque[Any], printed: bool = False) -> None:
    """Prompts or completions as text: tables of W&B refuse TRL's lists of messages.

    printed: TRL prints them too, as they are, so what a terminal would act on is escaped.
    """
    texts = [message_text(column.popleft()) for _ in range(len(column))]
    column.extend(map(printable, texts) if printed else texts)


class CompletionTables:
    """Lets TRL write its table of completions only now and then: it holds a batch of images."""

    def __init__(self, wanted: bool, rows_printed: int | None = 0) -> None:
        """rows_printed: how many TRL also prints, None for all."""
        self.wanted, self.printed, self.next_step = wanted, rows_printed != 0, 0

    def state_dict(self) -> dict[str, Any]:
        return {"next_step": self.next_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.next_step = state["next_step"]

    def due(self, logs: dict[str, Any], step: int, columns: dict[str, Any]) -> bool:
        """Whether to write one with these logs; its columns of messages are then text."""
        if "loss" not in logs or step < self.next_step:
            return False
        self.next_step = step + COMPLETIONS_INTERVAL
        if self.wanted:
            messages_to_text(columns["prompt"], self.printed)
            messages_to_text(columns["completion"], self.printed)
        return self.wanted


def replace_newest(column: deque[Any], values: list[float]) -> None:
    """The newest entries of a column become these."""
    for _ in values:
        column.pop()
    column.extend(values)


def replace_advantages(trainer: Any, output: dict[str, Any], advantages_N: Tensor) -> None:
    """Put these advantages of all devices in the place of TRL's, in its rollout and its log."""
    replace_newest(trainer._logs["advantages"], advantages_N.tolist())
    size, rank = len(output["advantages"]), trainer.accelerator.process_index
    output["advantages"] = local_rows(advantages_N, size, rank)


def log_advantages(trainer: Any, output: dict[str, Any]) -> None:
    """Put a rollout's advantages, those of tokens as a caption's mean, in the place of the logged.

    advantages: (B,), or (B, T) beside `value_mask`, the tokens that learn.
    """
    advantages = output["advantages"]
    if advantages.ndim > 1:
        mask = output["value_mask"]
        advantages = (advantages * mask).sum(1) / mask.sum(1).clamp(min=1)
    replace_newest(trainer._logs["advantages"], trainer.accelerator.gather(advantages).tolist())


def log_caption_kl(trainer: Any, mask: Tensor) -> None:
    """Beside a `kl` that is new in the log, which is of a token, log `kl_per_caption`.

    mask: (B, T) of the batch that it is of, 1 on a caption's tokens.
    """
    metrics = trainer._metrics["train"]
    kl = metrics.get("kl", [])
    if len(kl) > len(metrics.get("kl_per_caption", [])):
        tokens = torch.stack([mask.sum().float(), mask.new_tensor(len(mask)).float()])
        total, captions = trainer.accelerator.reduce(tokens, reduction="sum").tolist()
        trainer.log_metric("kl_per_caption", kl[-1] * total / captions)


def record_rollout(trainer: Any, output: dict[str, Any]) -> None:
    """Put the rows' prompts into TRL's rollout, their images into its log; count tokens, hits."""
    rollout = trainer.rollout
    output[PROMPT_IDX_KEY] = rollout.prompt_idx
    if trainer.log_multimodal:
        trainer._logs["images"].extend(gather_object([[image] for image in rollout.images]))
    tokens = rollout.tokens(output["completion_mask"])
    config, passes = unwrapped(trainer.model).config.get_text_config(), 4 + (trainer.beta != 0)
    trainer.timer.count(*tokens, len(rollout.prompts), config, passes)
    trainer.log_metric("engine/vision_cache_hit_rate", trainer.vision_cache.hit_rate())
