"""An opening that rewards want, a trigger word: put in front of completions that lack it.

A policy that never says it has no gradient towards it, and what it says behind a word that it does
not know is nonsense at first. So a completion without the opening gets it in front and is judged
like that in its group. Such a one is not the policy's own: it is imitated where it is better than
its group's mean (SFT on the better samples, as RAFT does), and never pushed down, for what the
policy would hardly say would be pushed without end. Once the policy begins so by itself, all its
completions are its own, and nothing here changes the algorithm any more but for the KL, which is
to the reference without the opening.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from rewards.lib.openings import without_opening

from ..policy.lora import adapter_off
from ..policy.shared_prefix.rollout import Rollout
from ..scoring.reward_functions import RewardFunctions
from .trl_logs import log_advantages


def with_opening(
    trainer: Any, rollout: Rollout, completions: Sequence[list[int]]
) -> list[list[int]]:
    """Token ids of the completions, the rewards' opening in front; `rollout` keeps whose it was."""
    functions: RewardFunctions = trainer.reward_functions
    if not (functions.opening and trainer.takes_opening):
        return list(completions)
    token_ids, tokenizer = functions.policy.token_ids, trainer.processing_class.tokenizer
    opening, result = token_ids(functions.opening), list[list[int]]()
    own = [ids[: len(opening)] == opening for ids in completions]
    for ids, begins in zip(completions, own, strict=True):
        if begins:
            result.append(ids)
            continue
        end = [i for i in ids[-1:] if i in functions.eos_ids]
        text = tokenizer.decode(ids, skip_special_tokens=True).strip()
        caption = without_opening(text, functions.opening)  # it may be there in other tokens
        result.append([*token_ids(f"{functions.opening} {caption}".strip()), *end])
    rollout.keep_opening(len(opening), own)
    trainer.log_metric("completions/own_opening", sum(own) / len(own))
    return result


def finish_reference(trainer: Any, output: dict[str, Any]) -> None:
    """Change the reference's log-probs for an opening, before anything takes a KL from them.

    What is not the policy's own has no KL, which is a mean over samples of the policy. Of its own
    completions the reference reads what stands behind the opening without it, for behind a word
    that it does not know it has no opinion. The opening, and the token that joins it, have no KL:
    the user wants them, however far from the reference they are.
    """
    opened = trainer.rollout.own_opening is not None
    if opened and output.get("ref_per_token_logps") is not None:
        output["ref_per_token_logps"] = _reference_logps(trainer, output)


def finish_opening(trainer: Any, output: dict[str, Any]) -> None:
    """Change the advantages for an opening: what is not the policy's own is not pushed down."""
    rollout: Rollout = trainer.rollout
    if rollout.own_opening is None:
        return
    advantages, own_B = output["advantages"], rollout.own_opening
    own = own_B if advantages.ndim == 1 else own_B[:, None]
    output["advantages"] = torch.where(own, advantages, advantages.clamp(min=0))
    log_advantages(trainer, output)


def _reference_logps(trainer: Any, output: dict[str, Any]) -> Tensor:
    """(B, T) of the reference; where there is to be no KL the policy's own, of now."""
    ids, mask, rollout = output["completion_ids"], output["completion_mask"], trainer.rollout
    model, count = trainer.model, rollout.opening_tokens

    def logps(model: Any, start: int) -> Tensor:
        size = trainer.args.per_device_train_batch_size
        columns = rollout.prompt_idx, ids[:, start:], mask[:, start:], size
        with torch.no_grad(), trainer.accelerator.autocast():
            return rollout.forward(model, *columns).logps

    result = logps(model, 0)
    if rollout.own_opening.any():
        off = adapter_off(model) if trainer.ref_model is None else nullcontext()
        with off:
            behind = logps(trainer.ref_model or model, count)
        own = rollout.own_opening[:, None]
        result[:, count + 1 :] = torch.where(own, behind, result[:, count:])[:, 1:]
    return result
