"""The settings of each algorithm: TRL's GRPOConfig and, under the field's usual names, ours.

Every field is `train.NAME` in a run file. A field's line says what it is; config/validate holds it
to its bounds and choices. Field types must stay real types: no `annotations` from the future.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from trl import GRPOConfig


def within(default: Any, low: float | None = None, high: float | None = None) -> Any:
    """A field with this default whose value must lie within these bounds, both inclusive."""
    return field(default=default, metadata={"low": low, "high": high})


def one_of(*choices: str) -> Any:
    """A field whose value is one of these; the first is its default."""
    return field(default=choices[0], metadata={"choices": choices})


@dataclass
class GRPOSettings(GRPOConfig):
    """TRL's GRPOConfig and ViZer's loss beside it."""

    alignment_coef: float = within(0.0, 0)
    """weight of ViZer's 1 - cos(image features, mapped caption states), added to the loss"""


@dataclass
class RAFTSettings(GRPOSettings):
    """What GRPO has, and how much of a group is imitated."""

    keep: int = within(1, 1)
    """how many of the `num_generations` captions of an image are imitated, the best"""
    sample_from: str = one_of("policy", "reference")
    """who samples: the policy as it is, or, as if all were sampled first, the frozen reference"""


@dataclass
class ViZerSettings(GRPOSettings):
    """What GRPO has, with the loss of ViZer switched on and no reward in it."""

    alignment_coef: float = within(1.0, 0)
    """weight of ViZer's 1 - cos(image features, mapped caption states): all the loss but beta's"""


@dataclass
class PPOSettings(GRPOSettings):
    """What GRPO has, and PPO's own. `epsilon` clips the policy's ratio, `beta` weighs the KL."""

    num_iterations: int = within(2, 1)
    """epochs over the captions of a rollout (`num_ppo_epochs` elsewhere)"""
    gamma: float = within(1.0, 0, 1)
    """discount per token"""
    gae_lambda: float = within(0.95, 0, 1)
    """GAE's lambda: 1 trusts the returns alone, 0 the critic alone"""
    reward_scaling: str = one_of("running", "batch", "none")
    """each reward standardised, before the weighted sum, by all rollouts so far or by this one"""
    whiten_advantages: bool = field(default=True)
    """advantages with mean 0 and variance 1 over the tokens of a rollout, on all devices"""
    vf_coef: float = within(0.1, 0)
    """weight of the value loss; in a shared trunk, how much the critic shapes the policy"""
    cliprange_value: float | None = within(None, 0)
    """a value may move this far from the rollout's before its loss is clipped; null: anywhere"""
    value_learning_rate: float = within(3e-3, 0)
    """learning rate of the critic, constant"""
    value_warmup_steps: int = within(0, 0)
    """steps at the start in which only the critic learns and the policy stays as it is"""
    value_trunk: str = one_of("shared", "adapter")
    """what the value head reads: the policy's states, or those of its own LoRA (a pass more)"""
    target_kl: float | None = within(None, 0)
    """approx_kl above which the rest of a rollout's updates is skipped; null: never"""
    kl_in_reward: bool = field(default=False)
    """beta times the KL as a reward at each token (Ziegler et al. 2019), not in the loss"""
    beta_target: float | None = within(None, 0)
    """KL to the reference, in nats a caption, to which beta is steered; null: beta is fixed"""
    beta_horizon: int = within(10_000, 1)
    """captions over which `beta_target` corrects beta: fewer are quicker"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta_target is not None and self.beta == 0:
            raise ValueError("beta_target steers beta, so beta must be above 0")
        if self.kl_in_reward and self.beta == 0:
            raise ValueError("kl_in_reward puts beta times the KL in the reward: set beta above 0")


SETTINGS: dict[str, type[GRPOConfig]] = {  # of each algorithm: what `train` may hold
    "grpo": GRPOSettings,
    "rloo": GRPOSettings,
    "ppo": PPOSettings,
    "raft": RAFTSettings,
    "vizer": ViZerSettings,
}

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
    "save_steps": 10,
    "save_total_limit": 2,
    "log_level_replica": "error",  # as on the first device
    "dataloader_pin_memory": False,  # would copy an image for each row of its group
}


def trainer_arguments(
    train: dict[str, Any],
    *,
    directory: Path,
    seed: int,
    weights: list[float],
    report_to: list[str],
    project: str = "vizer_rl",
    config: type[GRPOConfig] = GRPOSettings,
) -> GRPOConfig:
    """The settings of an algorithm from a run's `train` section over DEFAULTS, and what other
    sections decide."""
    on_cpu = not torch.cuda.is_available()
    settings = {
        **DEFAULTS,
        "gradient_checkpointing": not on_cpu,
        "dataloader_num_workers": 0 if on_cpu else min(4, os.cpu_count() or 1),
        **train,
    }
    if settings["dataloader_num_workers"]:
        settings.setdefault("dataloader_prefetch_factor", 1)  # a batch holds a whole rollout
    return config(
        **settings,
        output_dir=str(directory),
        seed=seed,
        report_to=report_to,
        project=project,
        run_name=directory.name,
        reward_weights=weights,
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=on_cpu,
    )
