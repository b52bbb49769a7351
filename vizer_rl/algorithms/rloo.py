"""RLOO: REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024, arXiv 2402.14740).

GRPO in all but the advantage: a caption's score less the mean score of the others of its image, not
divided by anything. The score is the weighted sum of rewards; with `multi_objective_aggregation:
normalize_then_sum` each reward is standardised over the rollout first. The KL is in the loss, as
in our GRPO; TRL's RLOO takes it off the reward.
"""

from __future__ import annotations

from typing import Any

from ..scoring.aggregation import weighted_sum
from . import advantages as adv
from .aligned import Aligned


class RLOO(Aligned):
    """GRPO's trainer with leave-one-out advantages."""

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        rewards = self.rewards_NK
        if self.multi_objective_aggregation == "normalize_then_sum":
            moments = adv.Moments(rewards.shape[1])
            moments.update(rewards)
            rewards = moments.standardise(rewards)
        scores = weighted_sum(rewards, self.reward_weights.to(rewards))
        advantages = adv.leave_one_out(scores.view(-1, self.num_generations)).view(-1)
        self.log_advantages(advantages)
        first = self.accelerator.process_index * len(inputs)
        output["advantages"] = advantages[first : first + len(inputs)]
        return output
