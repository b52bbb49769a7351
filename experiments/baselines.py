"""What the algorithms are compared with: prompts, best of n, supervised fine-tuning.

Each function writes a run directory that `vizer_rl.evaluation` or the table of
compare_algorithms.py reads.
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from peft import get_peft_model
from transformers import set_seed

from vizer_rl.algorithms import advantages as adv
from vizer_rl.config import run_dir
from vizer_rl.config.schema import Run
from vizer_rl.data import lazy
from vizer_rl.data.scenes import truth_of
from vizer_rl.data.sources import ImageFolder
from vizer_rl.evaluation import evaluate
from vizer_rl.evaluation.before_after import Pair, summary
from vizer_rl.policy import captioner, load
from vizer_rl.policy.hidden_states import caption_tokens, token_states
from vizer_rl.policy.shared_prefix import vision_cache
from vizer_rl.scoring.aggregation import weighted_sum
from vizer_rl.scoring.clip import OpenClip
from vizer_rl.training import assemble, splits

PROMPTS = (
    "Describe the image.",
    "Describe the image in detail.",
    "Describe every object in the image with its size, colour and shape.",
    "What is in the image?",
    "Write a long caption of the image.",
)
AT_ONCE = 16  # images whose candidates are scored together
TRIED_ON = 128  # training images on which prompts are compared


class Bench:
    """A run's base model with its rewards prepared, and the images."""

    def __init__(self, run: Run, console: object) -> None:
        self.run = run
        self.images, _, self.heldout = splits.image_sets(run, console)
        self.frozen, self.scoring = assemble.ready(run, assemble.rewards_of(run))
        self.model, self.processor = self.frozen.model, self.frozen.processor
        set_seed(run.seed)
        self.seen = vision_cache.of_run(run, self.model, self.processor)
        self.scoring.prepare(assemble.bank(run, self.frozen, self.seen, self.scoring, self.images))

    def captions(self, folder: ImageFolder, count: int, prompt: str = "") -> list[list]:
        """`count` captions of each image: greedy if it is one, else sampled at temperature 1."""
        pictures = lazy.LazyImages(folder.load, [i for i in folder.ids for _ in range(count)])
        said = captioner.caption(
            self.model,
            self.processor,
            pictures,
            prompt or self.run.data.prompt,
            max_new_tokens=self.run.train["max_completion_length"],
            temperature=float(count > 1),
            features=self.seen,
        )
        return [said[k : k + count] for k in range(0, len(said), count)]

    def rewards(self, folder: ImageFolder, said: list[list]) -> torch.Tensor:
        """(N, n, K) raw rewards of n captions of each of N images."""
        found = []
        for start in range(0, len(said), AT_ONCE):
            some = said[start : start + AT_ONCE]
            ids = [i for i, c in zip(folder.ids[start:], some, strict=False) for _ in c]
            flat = [c for candidates in some for c in candidates]
            batch = self.scoring.batch(
                ids,
                lazy.LazyImages(folder.load, ids),
                [c.text for c in flat],
                [c.ids for c in flat],
            )
            scores = self.scoring.scores(batch)
            columns = [[math.nan if v is None else v for v in c] for c in scores.values()]
            found.append(torch.tensor(columns).T.reshape(len(some), -1, len(columns)))
        return torch.cat(found)

    def scores(self, rewards: torch.Tensor) -> torch.Tensor:
        """(N, n): the weighted sum of rewards (N, n, K), each standardised over all captions."""
        flat = rewards.flatten(0, 1)
        moments = adv.Moments(flat.shape[1])
        moments.update(flat)
        weights = torch.tensor([r.weight for r in self.scoring.rewards])
        return weighted_sum(moments.standardise(flat), weights).view(rewards.shape[:2])

    def best(self, folder: ImageFolder, said: list[list], n: int) -> list:
        """The best of the first n captions of each image, by the rewards."""
        some = [candidates[:n] for candidates in said]
        chosen = self.scores(self.rewards(folder, some)).nan_to_num(-math.inf).argmax(1).tolist()
        return [candidates[k] for candidates, k in zip(some, chosen, strict=True)]

    def write(self, directory: Path, texts: Sequence[str]) -> None:
        """eval.json and captions.jsonl of captions of the held-out images, without a training."""
        base = [c[0].text for c in self.captions(self.heldout, 1)]
        ids, pictures = self.heldout.ids, lazy.LazyImages(self.heldout.load, self.heldout.ids)
        clip = OpenClip(self.run.scorer.heldout, load.device())
        images = clip.image_features(ids, pictures)
        cosines = [(images * clip.text_features(said)).sum(-1).tolist() for said in (base, texts)]
        pairs = [*map(Pair, ids, base, texts, *cosines)]
        truth = json.loads(truth_of(self.heldout.root).read_text())
        run_dir.write_run_dir(self.run, directory, self.images, self.heldout)
        (directory / "eval.json").write_text(json.dumps(summary(pairs, [truth[i] for i in ids])))
        rows = [{"image_id": p.image_id, "base": p.base, "trained": p.trained} for p in pairs]
        (directory / "captions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def base(bench: Bench, directory: Path) -> int:
    """The greedy captions of the untrained model. Returns captions sampled, as all here do."""
    bench.write(directory, [c[0].text for c in bench.captions(bench.heldout, 1)])
    return 0


def best_prompt(bench: Bench, directory: Path) -> int:
    """The prompt whose greedy captions of training images the rewards like best."""
    few = ImageFolder("", bench.images.root, bench.images.ids[:TRIED_ON], {})
    said = [bench.captions(few, 1, prompt) for prompt in PROMPTS]
    together = [[one[0] for one in row] for row in zip(*said, strict=True)]
    means = bench.scores(bench.rewards(few, together)).nanmean(0)
    prompt = PROMPTS[int(means.argmax())]
    bench.write(directory, [c[0].text for c in bench.captions(bench.heldout, 1, prompt)])
    told = {"prompt": prompt, "scores": dict(zip(PROMPTS, means.tolist(), strict=True))}
    (directory / "prompt.json").write_text(json.dumps(told, indent=1))
    return len(few.ids) * len(PROMPTS)


def best_of(n: int) -> Callable[[Bench, Path], int]:
    """The best of n sampled captions of every held-out image."""

    def control(bench: Bench, directory: Path) -> int:
        said = bench.captions(bench.heldout, n)
        bench.write(directory, [c.text for c in bench.best(bench.heldout, said, n)])
        return n * len(said)

    return control


def sft_on_picks(bench: Bench, directory: Path) -> int:
    """Supervised on the best of 8 sampled captions of as many images as GRPO samples for."""
    budget, n = captions_of(bench.run), bench.run.train["num_generations"]
    ids = bench.images.ids[: max(1, budget // n)]
    folder = ImageFolder("", bench.images.root, ids, {})
    said = bench.captions(folder, n)
    picks = {i: c.ids for i, c in zip(ids, bench.best(folder, said, n), strict=True)}
    supervised(bench, directory, picks)
    return n * len(ids)


def oracle(bench: Bench, directory: Path) -> int:
    """Supervised on the true captions of all training scenes: what no label-free method has."""
    truth = json.loads(truth_of(bench.images.root).read_text())
    tokens = {
        i: caption_tokens(bench.processor, bench.run.data.prompt, truth[i]["caption"])
        for i in bench.images.ids
    }
    supervised(bench, directory, tokens)
    return 0


def captions_of(run: Run) -> int:
    """How many captions GRPO samples with these settings."""
    accumulated = run.train.get("gradient_accumulation_steps", 1)
    return run.train["max_steps"] * run.train["per_device_train_batch_size"] * accumulated


def supervised(bench: Bench, directory: Path, captions: dict[str, list[int]]) -> None:
    """LoRA of the run's size on these captions (image id -> token ids), as many updates as GRPO.

    Same batch, learning rate and schedule; the adapter after the last update is kept.
    """
    told, ids = bench.run.train, list(captions)
    model = get_peft_model(bench.model, assemble.adapter(bench.run)).train()
    head = model.get_base_model().get_output_embeddings()
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=told["learning_rate"], weight_decay=0.0)
    steps, warm = told["max_steps"], max(1, told.get("warmup_steps", 0))
    torch.manual_seed(bench.run.seed)
    for step in range(steps):
        half_cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = (
            told["learning_rate"] * min(1, (step + 1) / warm) * (half_cosine)
        )
        rows = torch.randint(len(ids), (told["per_device_train_batch_size"],)).tolist()
        some = [ids[row] for row in rows]
        hidden, mask = token_states(
            model,
            bench.processor,
            [bench.images.load(i) for i in some],
            bench.run.data.prompt,
            [captions[i] for i in some],
        )
        longest = mask.shape[1]
        wanted = torch.tensor([captions[i] + [0] * (longest - len(captions[i])) for i in some])
        logps = head(hidden).float().log_softmax(-1)
        logp = logps.gather(-1, wanted.to(hidden.device)[..., None])[..., 0]
        loss = -(logp * mask).sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    run_dir.write_run_dir(bench.run, directory, bench.images, bench.heldout)
    model.save_pretrained(str(directory / "adapter"))
    evaluate.evaluate(directory)
