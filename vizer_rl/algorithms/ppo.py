"""PPO with a learned critic (Schulman et al. 2017, arXiv 1707.06347) on TRL's GRPO machinery.

Kept from GRPO: sampling, rewards, the clipped policy loss, KL, logging, resuming, several devices.
Ours: a value for every token, advantages by GAE instead of by group, a critic, an early stop. The
score of a caption is the weighted sum of its rewards, each standardised first (`reward_scaling`):
raw rewards differ in scale by a hundred, and a group's mean is the critic's work here.

Dropped: bootstrapping at a cut. A caption that does not come to its end has got the floor of every
reward (vizer_rl.scoring), as the score at its last token; nothing follows it. Bootstrapping would
reward the policy for running on.

Logged: `returns`, their mean over tokens; `explained_variance`, the share of their variance that
the critic foresaw; `value_loss`; `ratio`, `clipfrac` and `approx_kl`, how far the policy is from
the rollout's (k3 estimate); `stopped`, the share of updates that the early stop skipped; `beta`
where it is steered. `kl` and `entropy` are TRL's.

One rollout serves `num_iterations` epochs of `steps_per_generation / gradient_accumulation_steps`
minibatches; each is a step of TRL's, so `max_steps` counts updates, not rollouts. Updates that the
early stop skips count too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config.trainer_settings import PPOSettings
from ..errors import UserError
from ..scoring.aggregation import weighted_sum
from . import advantages as adv
from .aligned import Aligned
from .critic import Critic

SAVED = "critic.pt"  # in a checkpoint


class PPO(Aligned):
    """GRPO's trainer with per-token advantages from a critic."""

    Config = PPOSettings
    beta: float

    def __init__(
        self, model: Any, processor: Any, lora: Any, scoring: Any, args: Any, *a: Any, **k: Any
    ) -> None:
        super().__init__(model, processor, lora, scoring, args, *a, **k)
        own = lora if args.value_trunk == "adapter" else None
        self.critic = Critic(self.model, own, args.value_learning_rate, args.max_grad_norm)
        self.moments = adv.Moments(len(self.reward_funcs))
        self._stopped = False

    # a rollout: captions, scores, values, advantages

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """TRL's rollout; then values and advantages (B, T), from one pass over the captions."""
        output = super()._generate_and_score_completions(inputs)
        self._stopped = False
        with torch.no_grad():
            old, values = zip(*map(self._read, self.minibatches(output)), strict=True)
            output.setdefault("old_per_token_logps", torch.cat(old))
            output["old_values"] = torch.cat(values)
            self._set_advantages(output)
        return output

    def _read(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Log-probs and values (B, T) of captions, as policy and critic are now."""
        forward = own = self.caption_forward(self.model, inputs, hidden=True)
        if self.critic.own_trunk:
            with self.critic.trunk():
                own = self.caption_forward(self.model, inputs, hidden=True)
        return forward.logps, self.critic.head(own.hidden)

    def scores(self) -> Tensor:
        """(N,) the score of each caption of the rollout on all devices; NaN where nobody judged."""
        rewards, how = self.rewards_NK, self.args.reward_scaling
        if how != "none":
            if how == "batch":
                self.moments = adv.Moments(rewards.shape[1])
            self.moments.update(rewards)
            rewards = self.moments.standardise(rewards)
        return weighted_sum(rewards, self.reward_weights.to(rewards))

    def _set_advantages(self, output: dict[str, Any]) -> None:
        """Put advantages, returns and the mask of what is to learn into a rollout, each (B, T)."""
        args, mask = self.args, output["completion_mask"]
        first = self.accelerator.process_index * len(mask)
        scores = self.scores()[first : first + len(mask)]
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
        self.note("returns", adv.masked_mean(returns, mask, self._sum).item())
        told = adv.explained_variance(values, returns, mask, self._sum)
        self.note("explained_variance", told.item())
        if args.whiten_advantages:
            advantages = adv.whiten(advantages, mask, self._sum)
        output |= {"advantages": advantages, "returns": returns, "value_mask": mask}
        per_caption = (advantages * mask).sum(1) / mask.sum(1).clamp(min=1)
        self.log_advantages(self.accelerator.gather(per_caption))
        if kl is not None:
            self._steer_beta((kl * mask).sum(1))

    def _steer_beta(self, kl: Tensor) -> None:
        """Move beta so that the KL of captions (B,) nears `beta_target`: Ziegler et al., eq. 4."""
        target = self.args.beta_target
        if target is None:
            return
        total, count = self._sum(torch.stack([kl.sum(), torch.ones_like(kl).sum()])).tolist()
        error = min(max(total / count / target - 1, -0.2), 0.2)
        self.beta *= 1 + error * count / self.args.beta_horizon
        self.note("beta", self.beta)

    def _sum(self, x: Tensor) -> Tensor:
        return self.accelerator.reduce(x, reduction="sum")

    # an update: TRL's policy loss and the value loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        if self.accelerator.sync_gradients:
            self.critic.step(lambda grad: self.accelerator.reduce(grad, reduction="mean"))
        return loss

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL's loss on per-token advantages and the value loss, from one pass.

        While the critic warms up, and after an early stop, the policy gets no gradient at all.
        """
        nothing = torch.zeros((), device=self.accelerator.device, requires_grad=True)
        self.note("stopped", float(self._stopped))
        if self._stopped:
            return nothing
        warming = self.state.global_step < self.args.value_warmup_steps
        beta, self.beta = self.beta, 0.0 if self.args.kl_in_reward else self.beta
        try:
            with torch.set_grad_enabled(not warming), self.one_pass(model, inputs) as forward:
                loss = super()._compute_loss(model, inputs)
        finally:
            self.beta = beta
        self._judge_update(forward.logps.detach(), inputs)
        if not self.critic.own_trunk:
            return loss + self._value_loss(forward.hidden, inputs)
        with self.critic.trunk():
            inner = self.accelerator.unwrap_model(model)
            own = self.caption_forward(inner, inputs, hidden=True)
            self._value_loss(own.hidden, inputs).backward()
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
        self.note("value_loss", loss.item())
        return args.vf_coef * loss / self.current_gradient_accumulation_steps

    def _judge_update(self, logps: Tensor, inputs: dict[str, Any]) -> None:
        """Log how far the policy went since the rollout; stop its updates where that is too far."""
        numbers = adv.ratio_numbers(
            logps,
            inputs["old_per_token_logps"],
            inputs["completion_mask"],
            self.args.epsilon,
            self._sum,
        )
        for name, value in numbers.items():
            self.note(name, value.item())
        limit = self.args.target_kl
        self._stopped = limit is not None and numbers["approx_kl"].item() > limit

    # checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            state = {"moments": self.moments.state_dict(), "beta": self.beta}
            folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            torch.save({"critic": self.critic.state_dict(), **state}, folder / SAVED)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint) / SAVED
        if not path.is_file():
            raise UserError(f"{checkpoint} was not written by algorithm ppo: it has no {SAVED}")
        state = torch.load(path, weights_only=True, map_location=self.accelerator.device)
        self.critic.load_state_dict(state["critic"])
        self.moments.load_state_dict({k: v.cpu() for k, v in state["moments"].items()})
        self.beta = state["beta"]
