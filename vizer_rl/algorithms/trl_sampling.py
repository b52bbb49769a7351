"""Sampling from the policy that trains: its model as TRL unwraps it, tokens that are suppressed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from trl import GRPOConfig
from trl.models import unwrap_model_for_generation

from ..policy.load import eos_ids, forbidden_ids
from ..policy.shared_prefix.attention import MIN_FLEX_LENGTH, faster_kernel
from ..policy.shared_prefix.packing import layout, unwrapped
from ..policy.shared_prefix.rollout import Rollout
from ..policy.shared_prefix.sampler import sample
from .opening import with_opening


def generation_arguments(args: GRPOConfig, model: Any, processor: Any) -> dict[str, Any]:
    """The user's generation arguments, with the policy's forbidden tokens never sampled.

    vLLM reads from the checkpoint's files what ends a caption: it gets the family's ends, and those
    alone. TRL's own sampling takes them from the model.
    """
    kwargs, forbidden = dict(args.generation_kwargs or {}), forbidden_ids(model, processor)
    if args.use_vllm:
        kwargs["logit_bias"] = kwargs.get("logit_bias", {}) | dict.fromkeys(forbidden, -100.0)
        kwargs |= {"ignore_eos": True, "stop_token_ids": eos_ids(model, processor)}
    else:
        kwargs["suppress_tokens"] = sorted({*forbidden, *kwargs.get("suppress_tokens", [])})
    return kwargs


@contextmanager
def _unwrapped(trainer: Any) -> Iterator[Any]:
    """The trainer's model for sampling, as TRL has it: gathered where its weights are spread."""
    args = trainer.args
    with (
        unwrap_model_for_generation(
            trainer.model_wrapped,
            trainer.accelerator,
            gather_deepspeed3_params=args.ds3_gather_for_generation,
            generation_kwargs=trainer.generation_kwargs,
            gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,
        ) as model,
        trainer._dist.summon_full_params(trainer.model_wrapped, recurse=False),
    ):
        yield model


def sample_completions(trainer: Any, rollout: Rollout) -> list[list[int]]:
    """Token ids of a completion for each row; its log-probs are kept where TRL asks for them."""
    args, cuda = trainer.args, trainer.vision_cache.cuda
    synced = trainer.sharded and trainer.accelerator.num_processes > 1
    with _unwrapped(trainer) as model:
        sampled = sample(
            model,
            rollout.prompts,
            rollout.prompt_idx.tolist(),
            synced=synced,
            static_shapes=cuda and not synced,
            generation_config=trainer.generation_config,
        )
    completions = with_opening(trainer, rollout, sampled.ids)
    interval = args.steps_per_generation * trainer.num_iterations
    exact = trainer.model.dtype == torch.float32 and not (args.bf16 or args.fp16)
    sampled_so = exact and completions == sampled.ids
    if args.gradient_accumulation_steps % interval and sampled_so:  # TRL asks for old log-probs
        rollout.keep_old_logps(sampled.logps)
    return completions


def choose_attention(trainer: Any, rollout: Rollout, completions: Sequence[list[int]]) -> None:
    """Leave the models with the kernel that is faster for a batch of these completions.

    Timed forward and backward; rows that are short keep the kernel they have.
    """
    size = trainer.args.per_device_train_batch_size
    prompt_idx = rollout.prompt_idx[:size]
    rows = layout(rollout.prompts, prompt_idx.tolist(), completions[:size]).ids.shape[1]
    if trainer.sharded or rows < MIN_FLEX_LENGTH:
        return
    ids = [torch.tensor(c, device=prompt_idx.device) for c in completions[:size]]
    padded_ids = pad_sequence(ids, batch_first=True)
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    weights = [p for p in trainer.model.parameters() if p.requires_grad]

    def forward_backward() -> None:
        with torch.enable_grad(), trainer.accelerator.autocast():
            forward = rollout.forward(trainer.model, prompt_idx, padded_ids, mask)
        torch.autograd.grad(forward.logps.sum(), weights, allow_unused=True)

    seconds = faster_kernel(unwrapped(trainer.model), forward_backward)
    for kernel, value in seconds.items():
        trainer.log_metric(f"engine/attention_seconds/{kernel}", value)
    if trainer.ref_model is not None:
        kernel = unwrapped(trainer.model).config.get_text_config()._attn_implementation
        unwrapped(trainer.ref_model).set_attn_implementation({"text_config": kernel})
