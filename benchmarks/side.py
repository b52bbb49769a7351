"""Trainer of a benchmark, ours or TRL's, that takes steps by hand and keeps their times."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from trl import GRPOTrainer

import rewards
from benchmarks import policies
from vizer_rl.algorithms.grpo import GRPO
from vizer_rl.config.trainer_settings import trainer_arguments
from vizer_rl.policy import chat, load
from vizer_rl.policy.families import FAMILIES
from vizer_rl.policy.shared_prefix.obstacles import probe_obstacle
from vizer_rl.policy.shared_prefix.vision_cache import VisionCache
from vizer_rl.scoring.clip import OpenClip
from vizer_rl.scoring.reward_functions import Reward, RewardFunctions

PROMPT = "Describe the image."
PHASES = {
    "sample": "_generate_single_turn",
    "rewards": "_calculate_rewards",
    "rollout": "_generate_and_score_completions",
}


@dataclass(frozen=True)
class Case:
    """A benchmark: `make` gives model, processor and the images' side in pixels.

    words: tokens per caption, 0: as the policy ends them; steps: how many are timed, after one;
    real: a policy of real size with a scorer of the size of ViT-L-14, in bfloat16; settings: of
    the trainer, in place of the benchmark's own.
    """

    name: str
    family: str
    make: Callable[[], tuple[Any, Any, Any]]
    images: int = 2
    group: int = 8
    words: int = 24
    steps: int = 3
    real: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


def length(batch: Any) -> list[float]:
    """A reward that costs nothing: the step is the policy's."""
    return [float(len(caption)) for caption in batch.captions]


class Side:
    """A trainer, ours or TRL's, that takes steps by hand and keeps the time of their phases."""

    def __init__(self, case: Case, ours: bool, folder: str) -> None:
        model, processor, self.side = case.make()
        self.case, self.steps, count = case, 0, case.images * case.group
        settings: dict[str, Any] = {
            "num_generations": case.group,
            "per_device_train_batch_size": count,
            "max_completion_length": case.words or 32,
            "log_completions": False,
            "bf16": case.real or torch.cuda.is_available(),
            "gradient_checkpointing": case.real,
            "dataloader_num_workers": 0,
            **case.settings,
        }
        if case.words:
            settings["generation_kwargs"] = {"min_new_tokens": case.words}
        args = trainer_arguments(
            settings, directory=Path(folder), seed=0, weights=[1.0], report_to=[]
        )
        eos = range(model.config.get_text_config().vocab_size)  # as if every caption had ended
        reward, scorer = Reward("length", 1.0, length), None
        if case.real:
            scorer = OpenClip("ViT-L-14/", load.device())  # no tag: random weights
            reward = Reward("clip_similarity", 1.0, rewards.make("clip_similarity", {}))
        scoring = RewardFunctions([reward], lambda _: scorer, None, eos, case.group)  # type: ignore[arg-type, return-value]
        lora = lora_config(case)
        dataset = Dataset.from_dict({"prompt": ["rows are handed over"] * case.group})
        torch.manual_seed(1)
        if ours:
            on_gpu = torch.cuda.is_available()
            features = VisionCache(model, processor, FAMILIES[case.family], cuda=on_gpu)
            if obstacle := probe_obstacle(features):  # its time would be of wrong numbers
                raise SystemExit(f"no shared prefix here, so nothing to compare: {obstacle}")
            self.trainer: Any = GRPO(model, processor, lora, scoring, args, dataset, features)
        else:
            forbidden = load.forbidden_ids(model, processor)
            args.generation_kwargs = {
                **(args.generation_kwargs or {}),
                "suppress_tokens": forbidden,
            }
            self.trainer = GRPOTrainer(
                model=model,
                reward_funcs=scoring.trl_functions(),
                args=args,
                train_dataset=dataset,
                processing_class=processor,
                peft_config=lora,
            )
        self.trainer.model.train()
        self.trainer.current_gradient_accumulation_steps = 1
        parameters = [p for p in self.trainer.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-5)
        self.phases: dict[str, list[float]] = defaultdict(list)
        for phase, name in PHASES.items():
            setattr(self.trainer, name, self._timed(phase, getattr(self.trainer, name)))

    def _timed(self, phase: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = method(*args, **kwargs)
            _wait()
            self.phases[phase].append(time.perf_counter() - start)
            return result

        return timed

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the next step; its images are new."""
        self.steps += 1
        images = policies.images(self.side, self.case.images, self.steps)
        return [
            {"image_id": f"{self.steps}/{n}", "image": image, "prompt": chat.messages(PROMPT)}
            for n, image in enumerate(images)
            for _ in range(self.case.group)
        ]

    def step(self) -> None:
        """Take a step; its seconds go to `phases`."""
        rows = self.rows()
        start = time.perf_counter()
        self.trainer.training_step(self.trainer.model, rows, None)
        self.optimizer.step()
        self.optimizer.zero_grad()
        _wait()
        self.phases["step"].append(time.perf_counter() - start)

    def gradient(self, given: list[list[int]] | None = None) -> tuple[list[list[int]], Any]:
        """Completions of a rollout (given, or sampled now) and the gradient of the loss on them."""
        trainer, completions = self.trainer, list[list[int]]()
        sampled = trainer._generate_single_turn

        def turn(*args: Any) -> tuple[Any, None]:
            completions.extend(given or sampled(*args)[0])
            return completions, None

        trainer._generate_single_turn = turn
        trainer.training_step(trainer.model, self.rows(), None)
        trainer._generate_single_turn = sampled
        grads = [p.grad.float().flatten() for p in trainer.model.parameters() if p.grad is not None]
        gradient = torch.cat(grads)
        self.optimizer.zero_grad()
        return completions, gradient


def lora_config(case: Case) -> LoraConfig:
    """The adapter of a case."""
    rank = 32 if case.real else 16
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=FAMILIES[case.family].lora)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
