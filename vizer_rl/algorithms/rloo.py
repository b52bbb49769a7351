"""RLOO: REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024, arXiv 2402.14740).

GRPO in all but the advantage: a completion's score less the mean score of the others of its image,
not divided by anything. The score is the weighted sum of rewards; with
`multi_objective_aggregation: normalize_then_sum` each reward is standardised over the rollout
first. The KL is in the loss, as in our GRPO; TRL's RLOO takes it off the reward. The score of a
completion that fails a gate is below all others of its group (scoring/aggregation, `rank_failed`).
"""

from __future__ import annotations

from typing import Any

from ..scoring.aggregation import rank_failed
from . import advantages as adv
from .grpo import GRPO
from .trl_logs import replace_advantages


class RLOO(GRPO):
    """GRPO's trainer with leave-one-out advantages."""

    def finish_rollout(self, output: dict[str, Any]) -> None:
        """Replace TRL's advantages (B,) by leave-one-out ones."""
        gates_K = self.reward_functions.gates_K
        moments = adv.rollout_moments(self.multi_objective_aggregation, len(gates_K))
        scores = adv.caption_scores(self.rewards_NK, self.reward_weights, gates_K, moments)
        scores_N = rank_failed(*scores, self.num_generations)
        advantages_N = adv.leave_one_out(scores_N.view(-1, self.num_generations)).view(-1)
        replace_advantages(self, output, advantages_N)
