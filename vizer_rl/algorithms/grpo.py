"""GRPO: TRL's trainer on our policy, images and rewards. All we lean on in TRL stands here.

Kept from TRL: sampling, advantages, losses, logging, several devices, resuming. Ours: special
tokens are never sampled, every reward sees whole groups, a caption without end gets the floor, and
the completions table names the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from ..policy import forbidden_ids
from ..scoring import Scoring
from .configs import GRPOSettings

COMPLETIONS_EVERY = 20  # steps between two completions tables: a table holds a batch of images
VISION = (  # of TRL's batch, as TRL's forward pass names them
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "image_sizes",
    "token_type_ids",
    "mm_token_type_ids",
)


DEFAULTS = {
    "loss_type": "dr_grpo",  # no length bias
    "multi_objective_aggregation": "normalize_then_sum",
    "num_generations": 8,
    "beta": 0.02,
    "temperature": 1.0,
    "max_completion_length": 64,
    "num_completions_to_print": 0,
    "log_completions": True,
    "bf16": False,
}


def arguments(
    train: dict[str, Any],
    *,
    directory: Path,
    seed: int,
    weights: list[float],
    report_to: list[str],
    config: type[GRPOConfig] = GRPOSettings,
) -> GRPOConfig:
    """The settings of an algorithm from a run's `train` section over DEFAULTS, and what other
    sections decide."""
    on_cpu = not torch.cuda.is_available()
    return config(
        **{**DEFAULTS, "gradient_checkpointing": not on_cpu, **train},
        output_dir=str(directory),
        seed=seed,
        report_to=report_to,
        run_name=directory.name,
        reward_weights=weights,
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=on_cpu,
    )


@dataclass(frozen=True)
class CaptionForward:
    """What one pass through the model says of B completions of T tokens.

    logps, entropies: (B, T); hidden: (B, T, D), the last hidden states from which each token was
    predicted, that is the one of the prompt's end and those of all tokens but the last.
    """

    logps: torch.Tensor
    entropies: torch.Tensor | None
    hidden: torch.Tensor | None


class GRPO(GRPOTrainer):
    """TRL's GRPOTrainer; captions hold no special tokens and are scored with `scoring`.

    Config: the dataclass of its settings, which a run file has under `train`.
    """

    Config: type[GRPOConfig] = GRPOSettings

    def __init__(
        self,
        model: Any,
        processor: Any,
        lora: LoraConfig,
        scoring: Scoring,
        args: GRPOConfig,
        dataset: Any,
        callbacks: Sequence[TrainerCallback],
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
            reward_funcs=scoring.functions(),
            args=args,
            train_dataset=dataset,
            processing_class=processor,
            peft_config=lora,
            callbacks=list(callbacks),
        )
        self.scoring = scoring
        self.remove_callback(PrinterCallback)  # the progress bar and metrics.jsonl tell the same
        self._wants_completions, self._next_table = args.log_completions, 0

    def caption_forward(
        self, model: Any, inputs: dict[str, Any], *, hidden: bool = False, entropy: bool = False
    ) -> CaptionForward:
        """One pass over TRL's batch (`prompt_ids`, `completion_ids`, their masks, the pixels)."""
        ids, mask = inputs["completion_ids"], inputs["completion_mask"]
        states: list[torch.Tensor] = []

        def keep(_module: Any, _args: Any, output: Any) -> None:
            states.append(output.last_hidden_state[:, -ids.shape[1] - 1 : -1])

        backbone = self.accelerator.unwrap_model(model).get_base_model().base_model
        hook = backbone.register_forward_hook(keep)
        try:
            logps, entropies, _ = self._get_per_token_logps_and_entropies(
                model,
                torch.cat([inputs["prompt_ids"], ids], 1),
                torch.cat([inputs["prompt_mask"], mask], 1),
                ids.shape[1],
                compute_entropy=entropy,
                **{name: inputs.get(name) for name in VISION},
            )
        finally:
            hook.remove()
        return CaptionForward(logps, entropies, torch.cat(states) if hidden else None)

    def note(self, name: str, value: float) -> None:
        """Add a number to the step that is being logged."""
        self._metrics["train"][name].append(value)

    def _calculate_rewards(self, *rollout: Any) -> torch.Tensor:
        """TRL's (N, K) raw rewards of all devices; notes what each has to say in the advantage."""
        rewards_NK: torch.Tensor = super()._calculate_rewards(*rollout)
        how = self.multi_objective_aggregation, self.scale_rewards
        for name, value in self.scoring.measured(rewards_NK, *how).items():
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
            told.extend([_text(told.popleft()) for _ in range(len(told))])
        super().log(logs, start_time)


def _text(messages: Any) -> str:
    """What a conversation says, without its images."""
    if isinstance(messages, str):
        return messages
    parts = [m["content"] for m in messages]
    blocks = [[{"text": p}] if isinstance(p, str) else p for p in parts]
    return "\n".join(b["text"].strip() for some in blocks for b in some if b.get("text"))
