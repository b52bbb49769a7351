"""Baselines of the algorithms: prompts, best of n, supervised fine-tuning.

Each writes a run directory that `vizer_rl.evaluation` or compare_algorithms.py reads.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model

from rewards.lib.chunks import caption_cosines
from vizer_rl.config import run_dir
from vizer_rl.config.schema import Run
from vizer_rl.data import lazy
from vizer_rl.data.scenes import truth_of
from vizer_rl.data.sources import ImageFolder
from vizer_rl.evaluation import evaluate
from vizer_rl.evaluation.before_after import Pair, summary
from vizer_rl.policy import load
from vizer_rl.policy.families import FAMILIES
from vizer_rl.policy.hidden_states import caption_tokens, token_states
from vizer_rl.policy.lora import lora_config
from vizer_rl.scoring.clip import OpenClip
from vizer_rl.training.controls import PROMPT_IMAGES, PROMPTS, BasePolicy


class Baselines(BasePolicy):
    """A run's base policy, which writes run directories."""

    def begin(self, directory: Path) -> None:
        """What a run directory begins with."""
        images = self.images, self.heldout
        environment = run_dir.describe_environment(self.run, *images, self.reference.key)
        run_dir.write_run_dir(self.run, directory, *images, environment)

    def write(self, directory: Path, captions: Sequence[str]) -> None:
        """eval.json and captions.jsonl of captions of the held-out images, without a training."""
        base = [c[0].text for c in self.captions(self.heldout, 1)]
        ids = self.heldout.ids
        clip = OpenClip(self.run.scorer.heldout, load.device())
        images = lazy.LazyImages(self.heldout.load, ids)
        cosines = [caption_cosines(clip, ids, images, c).tolist() for c in (base, captions)]
        pairs = [*map(Pair, ids, base, captions, *cosines)]
        truth = json.loads(truth_of(self.heldout.root).read_text())
        self.begin(directory)
        (directory / "eval.json").write_text(json.dumps(summary(pairs, [truth[i] for i in ids])))
        rows = [{"image_id": p.image_id, "base": p.base, "trained": p.trained} for p in pairs]
        (directory / "captions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def base(policy: Baselines, directory: Path) -> int:
    """The greedy captions of the untrained model. Returns captions sampled, as all here do."""
    policy.write(directory, [c[0].text for c in policy.captions(policy.heldout, 1)])
    return 0


def best_prompt(policy: Baselines, directory: Path) -> int:
    """The prompt whose greedy captions of training images have the highest reward."""
    folder = ImageFolder("", policy.images.root, policy.images.ids[:PROMPT_IMAGES], {})
    by_prompt = [policy.captions(folder, 1, prompt) for prompt in PROMPTS]
    by_image = [[group[0] for group in groups] for groups in zip(*by_prompt, strict=True)]
    means = policy.scores(policy.rewards(folder, by_image)).nanmean(0)
    prompt = PROMPTS[int(means.argmax())]
    policy.write(directory, [c[0].text for c in policy.captions(policy.heldout, 1, prompt)])
    result = {"prompt": prompt, "scores": dict(zip(PROMPTS, means.tolist(), strict=True))}
    (directory / "prompt.json").write_text(json.dumps(result, indent=1))
    return len(folder.ids) * len(PROMPTS)


def best_of(n: int) -> Callable[[Baselines, Path], int]:
    """The best of n sampled captions of every held-out image."""

    def baseline(policy: Baselines, directory: Path) -> int:
        captions = policy.captions(policy.heldout, n)
        policy.write(directory, [c.text for c in policy.best(policy.heldout, captions, n)])
        return n * len(captions)

    return baseline


def sft_on_best(policy: Baselines, directory: Path) -> int:
    """Supervised on the best of 8 sampled captions of as many images as GRPO samples for."""
    budget, n = grpo_captions(policy.run), policy.run.train["num_generations"]
    ids = policy.images.ids[: max(1, budget // n)]
    folder = ImageFolder("", policy.images.root, ids, {})
    best = policy.best(folder, policy.captions(folder, n), n)
    supervised(policy, directory, {i: c.ids for i, c in zip(ids, best, strict=True)})
    return n * len(ids)


def oracle(policy: Baselines, directory: Path) -> int:
    """Supervised on the true captions of all training scenes: what no label-free method has."""
    truth = json.loads(truth_of(policy.images.root).read_text())
    tokens = {
        i: caption_tokens(
            policy.model, policy.processor, policy.run.data.prompt, truth[i]["caption"]
        )
        for i in policy.images.ids
    }
    supervised(policy, directory, tokens)
    return 0


def grpo_captions(run: Run) -> int:
    """How many captions GRPO samples with these settings."""
    accumulated = run.train.get("gradient_accumulation_steps", 1)
    return run.train["max_steps"] * run.train["per_device_train_batch_size"] * accumulated


def supervised(policy: Baselines, directory: Path, completions: dict[str, list[int]]) -> None:
    """LoRA of the run's size on these completions (image id -> token ids), as many updates as GRPO.

    Same batch, learning rate and schedule; the adapter after the last update is kept.
    """
    settings, ids = policy.run.train, list(completions)
    lora = lora_config(FAMILIES[policy.run.family].lora, **policy.run.policy.lora.model_dump())
    model = get_peft_model(policy.model, lora).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings["learning_rate"], weight_decay=0.0)
    steps, warmup = settings["max_steps"], max(1, settings.get("warmup_steps", 0))
    torch.manual_seed(policy.run.seed)
    for step in range(steps):
        half_cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = (
            settings["learning_rate"] * min(1, (step + 1) / warmup) * half_cosine
        )
        rows = torch.randint(len(ids), (settings["per_device_train_batch_size"],)).tolist()
        batch = [ids[row] for row in rows]
        loss = cross_entropy(policy, model, batch, [completions[i] for i in batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    policy.begin(directory)
    model.save_pretrained(str(directory / "adapter"))
    evaluate.evaluate(directory)


def cross_entropy(
    policy: Baselines, model: PeftModel, ids: list[str], completions: list[list[int]]
) -> torch.Tensor:
    """Mean negative log-probability of the completions' tokens given these images."""
    images, prompt = [policy.images.load(i) for i in ids], policy.run.data.prompt
    hidden, mask = token_states(model, policy.processor, images, prompt, completions)
    length = mask.shape[1]
    targets = torch.tensor([tokens + [0] * (length - len(tokens)) for tokens in completions])
    logits = model.get_base_model().get_output_embeddings()(hidden)
    logps = logits.float().log_softmax(-1)
    logp = logps.gather(-1, targets.to(hidden.device)[..., None])[..., 0]
    return -(logp * mask).sum() / mask.sum()
