"""RAFT: supervised fine-tuning on the best of n samples, again and again (Dong et al. 2023, arXiv
2304.06767).

Of each group the `keep` best completions, by the scores of RLOO, are imitated; the others teach
nothing. What fails a gate is never imitated, nor is anything of a group in which all fail.
Sampling, rewards, KL, logging and resuming are GRPO's: the advantages (G / keep for those kept, 0
for the others) make TRL's loss the negative log-likelihood of the kept, averaged over them, with
the normalisation over tokens that `loss_type` names.

`sample_from: reference` samples with the adapter off, as if all were sampled before training: one
round of RAFT, the control "SFT on the best of n". `num_iterations` above 1 repeats each rollout.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ..policy.lora import adapter_off
from . import advantages as adv
from .grpo import GRPO
from .trl_logs import replace_advantages


class RAFT(GRPO):
    """GRPO's trainer that imitates the best completions of each group."""

    def sampling_policy(self) -> AbstractContextManager[Any]:
        """As `sample_from` says: the policy as it is, or without its adapter."""
        if self.args.sample_from == "reference":
            return adapter_off(self.model)
        return super().sampling_policy()

    def finish_rollout(self, output: dict[str, Any]) -> None:
        """Replace TRL's advantages (B,) by G / keep for the best of each group, 0 for others."""
        gates_K = self.reward_functions.gates_K
        moments = adv.rollout_moments(self.multi_objective_aggregation, len(gates_K))
        scores_N, _ = adv.caption_scores(self.rewards_NK, self.reward_weights, gates_K, moments)
        weights = adv.best_of_group(scores_N.view(-1, self.num_generations), self.args.keep)
        replace_advantages(self, output, weights.view(-1))

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL's loss with the current policy as the old one: its gradient is that of the NLL.

        Without old log-probs TRL takes the current ones: the ratio is 1, is never clipped, and has
        the gradient of the log-prob, token by token or as a sequence's. With cispo that is scaled
        by min(1, epsilon_high). vLLM's correction would weigh samples; these are targets.
        """
        mask = inputs["completion_mask"]
        none = {"old_per_token_logps": None, "importance_sampling_ratio": mask.new_ones(1, 1)}
        with self.shared_forward(model, inputs) as forward:
            loss = super().loss(model, {**inputs, **none})
        kept = mask * (inputs["advantages"] > 0)[:, None]
        totals = torch.stack([-(forward.logps.detach() * kept).sum(), kept.sum()])
        nll, tokens = self.accelerator.reduce(totals, reduction="sum").tolist()
        if tokens:
            self.log_metric("nll", nll / tokens)
        return loss
