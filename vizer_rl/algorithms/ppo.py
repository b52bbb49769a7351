"""PPO with a learned critic (Schulman et al. 2017, arXiv 1707.06347) on TRL's GRPO machinery.

Kept from GRPO: sampling, rewards, the clipped policy loss, KL, logging, resuming, several devices.
Ours: a value for every token, advantages by GAE instead of by group, a critic, an early stop. The
score of a caption is the weighted sum of its rewards, each standardised first (`reward_scaling`):
raw rewards differ in scale by a hundred, and a group's mean is the critic's work here.

Dropped: bootstrapping at a cut. The score of a caption that does not come to its end is below all
others of the rollout (scoring/aggregation, `rank_failed`), and stands at its last token; nothing
follows it. Bootstrapping would reward the policy for running on.

Logged: `returns`, their mean over tokens; `explained_variance`, the share of their variance that
the critic explains; `value_loss`; `ratio`, `clipfrac` and `approx_kl`, how far the policy is from
the rollout's (k3 estimate); `early_stopped`, the share of updates that the early stop skipped;
`beta` where it is steered. `kl` and `entropy` are TRL's.

One rollout serves `num_iterations` epochs of `steps_per_generation / gradient_accumulation_steps`
minibatches; each is a step of TRL's, so `max_steps` counts updates, not rollouts. Updates that the
early stop skips count too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import (
    split_pixel_values_by_grid,
    split_tensor_dict,
    unsplit_pixel_values_by_grid,
)

from ..errors import UserError
from ..scoring.aggregation import rank_failed
from . import advantages as adv
from .critic import Critic
from .grpo import GRPO
from .trl_logs import log_advantages


class PPO(GRPO):
    """GRPO's trainer with per-token advantages from a critic."""

    beta: float

    def __init__(
        self,
        model: Any,
        processor: Any,
        lora: Any,
        reward_functions: Any,
        args: Any,
        *more: Any,
        **kwargs: Any,
    ) -> None:
        """As GRPO's, whose `vision_cache` and `alignment` may be named here too."""
        super().__init__(model, processor, lora, reward_functions, args, *more, **kwargs)
        trunk = lora if args.value_trunk == "adapter" else None
        self.critic = Critic(self.model, trunk, args.value_learning_rate, args.max_grad_norm)
        self.moments = self.holders["moments"] = adv.Moments(len(self.reward_funcs))
        self._stopped = False

    # a rollout: completions, scores, values, advantages

    def finish_rollout(self, output: dict[str, Any]) -> None:
        """Put log-probs, values and advantages (B, T) into TRL's rollout, from one pass."""
        self._stopped = False
        with torch.no_grad():
            batches = minibatches(output, self.args.steps_per_generation)
            logps, values = zip(*map(self._logps_and_values, batches), strict=True)
            output.setdefault("old_per_token_logps", torch.cat(logps))
            output["old_values"] = torch.cat(values)
            self._set_advantages(output)

    def _logps_and_values(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Log-probs and values (B, T) of completions, as policy and critic are now."""
        forward = trunk = self.caption_forward(self.model, inputs)
        if self.critic.has_trunk:
            with self.critic.trunk():
                trunk = self.caption_forward(self.model, inputs)
        return forward.logps, self.critic.head(trunk.hidden)

    def scores(self) -> Tensor:
        """(N,) the score of each caption of the rollout on all devices; NaN where nobody judged."""
        gates_K, scaling = self.reward_functions.gates_K, self.args.reward_scaling
        if scaling == "batch":
            self.moments = adv.Moments(len(gates_K))
        moments = None if scaling == "none" else self.moments
        scores = adv.caption_scores(self.rewards_NK, self.reward_weights, gates_K, moments)
        return rank_failed(*scores, len(self.rewards_NK))

    def _set_advantages(self, output: dict[str, Any]) -> None:
        """Put advantages, returns and the mask of what is to learn into a rollout, each (B, T)."""
        args, mask = self.args, output["completion_mask"]
        scores = adv.local_rows(self.scores(), len(mask), self.accelerator.process_index)
        mask = mask * ~scores.isnan()[:, None]
        kl = None
        if self.beta != 0:
            kl = output["old_per_token_logps"] - output["ref_per_token_logps"]
        rewards = adv.token_rewards(
            scores.nan_to_num(), mask, kl if args.kl_in_reward else None, self.beta
        )
        values = output["old_values"]
        advantages = adv.gae(rewards, values, mask, args.gamma, args.gae_lambda)
        returns = advantages + values * mask
        self.log_metric("returns", adv.masked_mean(returns, mask, self._sum).item())
        explained = adv.explained_variance(values, returns, mask, self._sum)
        self.log_metric("explained_variance", explained.item())
        if args.whiten_advantages:
            advantages = adv.whiten(advantages, mask, self._sum)
        output |= {"advantages": advantages, "returns": returns, "value_mask": mask}
        log_advantages(self, output)
        if kl is not None:
            self._steer_beta((kl * mask).sum(1))
        if kl is not None and args.kl_in_reward:  # TRL's loss, which logs it else, has none then
            captions = torch.stack([(kl * mask).sum(), kl.new_tensor(len(kl))])
            total, count = self._sum(captions).tolist()
            self.log_metric("kl_per_caption", total / count)

    def _steer_beta(self, kl: Tensor) -> None:
        """Move beta so that the KL of captions (B,) nears `beta_target`: Ziegler et al., eq. 4."""
        target = self.args.beta_target
        if target is None:
            return
        total, count = self._sum(torch.stack([kl.sum(), torch.ones_like(kl).sum()])).tolist()
        error = min(max(total / count / target - 1, -0.2), 0.2)
        self.beta *= 1 + error * count / self.args.beta_horizon
        self.log_metric("beta", self.beta)

    def _sum(self, x: Tensor) -> Tensor:
        return self.accelerator.reduce(x, reduction="sum")

    # an update: TRL's policy loss and the value loss

    def after_backward(self) -> None:
        """Update the critic at every step of the optimizer."""
        if self.accelerator.sync_gradients:
            self.critic.step(lambda grad: self.accelerator.reduce(grad, reduction="mean"))

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL's loss on per-token advantages and the value loss, from one pass.

        While the critic warms up, and after an early stop, the policy gets no gradient at all.
        """
        nothing = torch.zeros((), device=self.accelerator.device, requires_grad=True)
        self.log_metric("early_stopped", float(self._stopped))
        if self._stopped:
            return nothing
        warming = self.state.global_step < self.args.value_warmup_steps
        beta, self.beta = self.beta, 0.0 if self.args.kl_in_reward else self.beta
        try:
            with torch.set_grad_enabled(not warming), self.shared_forward(model, inputs) as forward:
                loss = super().loss(model, inputs)
        finally:
            self.beta = beta
        self._judge_update(forward.logps.detach(), inputs)
        if not self.critic.has_trunk:
            return loss + self._value_loss(forward.hidden, inputs)
        with self.critic.trunk():
            trunk = self.caption_forward(self.accelerator.unwrap_model(model), inputs)
            self._value_loss(trunk.hidden, inputs).backward()
        return loss + nothing

    def _value_loss(self, hidden: Tensor | None, inputs: dict[str, Any]) -> Tensor:
        args = self.args
        clip = float("inf") if args.cliprange_value is None else args.cliprange_value
        loss = adv.clipped_value_loss(
            self.critic.head(hidden),
            inputs["old_values"],
            inputs["returns"],
            inputs["value_mask"],
            clip,
        )
        self.log_metric("value_loss", loss.item())
        return args.vf_coef * loss / self.current_gradient_accumulation_steps

    def _judge_update(self, logps: Tensor, inputs: dict[str, Any]) -> None:
        """Log how far the policy went since the rollout; stop its updates where that is too far."""
        metrics = adv.ratio_metrics(
            logps,
            inputs["old_per_token_logps"],
            inputs["completion_mask"],
            self.args.epsilon,
            self._sum,
        )
        for name, value in metrics.items():
            self.log_metric(name, value.item())
        limit = self.args.target_kl
        self._stopped = limit is not None and metrics["approx_kl"].item() > limit

    # checkpoints

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "critic": self.critic.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "critic" not in state:
            raise UserError("the checkpoint was not written by algorithm ppo: it has no critic")
        super().load_state_dict(state)
        self.critic.load_state_dict(state["critic"])

    def rollout_state(self) -> dict[str, Any]:
        return {**super().rollout_state(), "early_stopped": self._stopped}

    def load_rollout_state(self, state: dict[str, Any]) -> None:
        super().load_rollout_state(state)
        self._stopped = state["early_stopped"]


def minibatches(rollout: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """A rollout cut as TRL cuts it for the updates, so that a pass over it fits in memory."""
    parts = split_tensor_dict(split_pixel_values_by_grid(rollout), count)
    return [unsplit_pixel_values_by_grid(part) for part in parts]
