"""GRPO: TRL's trainer on our policy, images and rewards.

All we lean on in TRL stands here and in packed.py. Kept from TRL: advantages, losses, logging,
several devices, resuming. Ours: special tokens are never sampled, every reward sees whole groups, a
caption without end gets the floor, the completions table names the images, and every image and
prompt is computed once (packed.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig

from ..config.trainer_settings import GRPOSettings
from ..policy.chat import said
from ..policy.load import forbidden_ids
from ..policy.shared_prefix.vision_cache import VisionCache
from ..scoring.reward_functions import RewardFunctions
from .packed import Packed

COMPLETIONS_EVERY = 20  # steps between two completions tables: a table holds a batch of images


class GRPO(Packed):
    """TRL's GRPOTrainer; captions hold no special tokens and are scored with `scoring`.

    Config: the dataclass of its settings, which a run file has under `train`.
    """

    Config: type[GRPOConfig] = GRPOSettings

    def __init__(
        self,
        model: Any,
        processor: Any,
        lora: LoraConfig,
        scoring: RewardFunctions,
        args: GRPOConfig,
        dataset: Any,
        callbacks: Sequence[TrainerCallback],
        features: VisionCache | None = None,
    ) -> None:
        forbidden = forbidden_ids(model, processor)
        kwargs = dict(args.generation_kwargs or {})
        if args.use_vllm:
            kwargs["logit_bias"] = kwargs.get("logit_bias", {}) | dict.fromkeys(forbidden, -100.0)
        else:
            kwargs["suppress_tokens"] = sorted({*forbidden, *kwargs.get("suppress_tokens", [])})
        args.generation_kwargs = kwargs
        super().__init__(
            model=model,
            reward_funcs=scoring.trl_functions(),
            args=args,
            train_dataset=dataset,
            processing_class=processor,
            peft_config=lora,
            callbacks=list(callbacks),
        )
        self.scoring = scoring
        self.remove_callback(PrinterCallback)  # the progress bar and metrics.jsonl tell the same
        self._wants_completions, self._next_table = args.log_completions, 0
        self.compute_once(features)

    def _calculate_rewards(self, *rollout: Any) -> torch.Tensor:
        """TRL's (N, K) raw rewards of all devices; notes what each has to say in the advantage."""
        rewards_NK: torch.Tensor = super()._calculate_rewards(*rollout)
        how = self.multi_objective_aggregation, self.scale_rewards
        for name, value in self.scoring.step_metrics(rewards_NK, *how).items():
            self.note(name, value)
        return rewards_NK

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as TRL does, with a completions table only every COMPLETIONS_EVERY steps."""
        metrics = self._metrics["train"]
        for name in self.reward_func_names:  # beside what we log of each reward
            for theirs, ours in (("mean", f"reward/{name}"), ("std", f"reward/{name}/std")):
                if f"rewards/{name}/{theirs}" in metrics:
                    metrics[ours] = metrics.pop(f"rewards/{name}/{theirs}")
        due = "loss" in logs and self.state.global_step >= self._next_table
        self.log_completions = self._wants_completions and due
        if due:
            self._next_table = self.state.global_step + COMPLETIONS_EVERY
        for column in ("prompt", "completion") if self.log_completions else ():
            told = self._logs[column]  # as text: W&B's tables refuse TRL's lists of messages
            told.extend([said(told.popleft()) for _ in range(len(told))])
        super().log(logs, start_time)
