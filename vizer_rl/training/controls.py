"""Controls of a run: captions of the same images without training, the rows that it has to beat.

Best prompt: chosen by the training scorer on training images, so that the held-out one stays
clean. Length-matched: the base's end is forbidden until its caption is as long as the trained one.
Best of n: the base's samples, ranked by the run's rewards.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch
from rich.console import Console
from transformers import set_seed

from rewards.lib.chunks import caption_cosines

from ..algorithms.advantages import Moments, caption_scores
from ..config.schema import Run
from ..data.lazy import LazyImages
from ..data.sources import ImageFolder
from ..evaluation.against_controls import Control, Controls
from ..evaluation.tables import PlainConsole
from ..policy import captioner
from ..policy.captioner import Caption
from ..scoring.aggregation import rank_failed
from . import assemble, splits

PROMPTS = (
    "Describe the image.",
    "Describe the image in detail.",
    "Describe every object in the image with its size, colour and shape.",
    "What is in the image?",
    "Write a long caption of the image.",
)
BEST_OF = 8
MINIMUM_SHARES = (0.0, 0.5, 0.75, 1.0)  # of a trained caption's tokens before which none ends
IMAGES_PER_BATCH = 16  # images whose candidates are scored together
PROMPT_IMAGES = 128  # training images on which prompts are compared


class BasePolicy:
    """A run's base policy with its rewards prepared, and the images."""

    def __init__(self, run: Run, console: Console) -> None:
        self.run = run
        self.images, _, self.heldout = splits.image_sets(run, console)
        components = assemble.load_components(run, assemble.make_rewards(run))
        self.model, self.processor = components.model, components.processor
        self.vision_cache, self.scoring = components.vision_cache, components.reward_functions
        self.reference = components.reference
        set_seed(run.seed)
        assemble.prepare_rewards(run, components, self.images, console.print)

    def captions(
        self, folder: ImageFolder, count: int, prompt: str = "", min_new_tokens: int = 0
    ) -> list[list[Caption]]:
        """`count` captions of each image: greedy if it is one, else sampled at temperature 1."""
        images = LazyImages(folder.load, [i for i in folder.ids for _ in range(count)])
        captions = captioner.caption(
            self.model,
            self.processor,
            images,
            prompt or self.run.data.prompt,
            max_new_tokens=max(int(self.run.train["max_completion_length"]), min_new_tokens),
            min_new_tokens=min_new_tokens,
            temperature=float(count > 1),
            vision_cache=self.vision_cache,
        )
        return [captions[k : k + count] for k in range(0, len(captions), count)]

    def rewards(self, folder: ImageFolder, captions: Sequence[Sequence[Caption]]) -> torch.Tensor:
        """(N, n, K) raw rewards of n captions of each of N images."""
        chunks = []
        for start in range(0, len(captions), IMAGES_PER_BATCH):
            chunk = captions[start : start + IMAGES_PER_BATCH]
            ids = [i for i, c in zip(folder.ids[start:], chunk, strict=False) for _ in c]
            flat = [c for candidates in chunk for c in candidates]
            batch = self.scoring.batch(
                ids,
                LazyImages(folder.load, ids),
                [c.text for c in flat],
                [c.ids for c in flat],
            )
            scores = self.scoring.scores(batch)
            columns = [[math.nan if v is None else v for v in c] for c in scores.values()]
            chunks.append(torch.tensor(columns).T.reshape(len(chunk), -1, len(columns)))
        return torch.cat(chunks)

    def scores(self, rewards: torch.Tensor) -> torch.Tensor:
        """(N, n): the weighted sum of rewards (N, n, K), each standardised over all captions.

        A caption that fails a gate has the last rank among those of its image."""
        weights = torch.tensor([r.weight for r in self.scoring.rewards])
        flat_NK = rewards.flatten(0, 1)
        moments = Moments(flat_NK.shape[1])
        scores = caption_scores(flat_NK, weights, self.scoring.gates_K, moments)
        return rank_failed(*scores, rewards.shape[1]).view(rewards.shape[:2])

    def best(
        self, folder: ImageFolder, captions: Sequence[Sequence[Caption]], n: int
    ) -> list[Caption]:
        """The best of the first n captions of each image, by the rewards."""
        groups = [candidates[:n] for candidates in captions]
        best = self.scores(self.rewards(folder, groups)).nan_to_num(-math.inf).argmax(1).tolist()
        return [candidates[k] for candidates, k in zip(groups, best, strict=True)]


def make_controls(run: Run, images: ImageFolder, captions: dict[str, list[str]]) -> Controls:
    """The control rows for these images, and the rewards of their captions by row."""
    console = PlainConsole()
    with console.status("controls: preparing the rewards as for training"):
        policy = BasePolicy(run, console)
    rows = {}
    with console.status("controls: prompts"):
        rows["best_prompt"] = best_prompt(policy, images)
    with console.status("controls: captions as long as the trained ones"):
        rows["length_matched"] = length_matched(policy, images, captions["trained"])
    with console.status(f"controls: best of {BEST_OF}"):
        rows[f"best_of_{BEST_OF}"] = best_of(policy, images)
    with console.status("controls: rewards of the captions"):
        return Controls(rows, caption_rewards(policy, images, captions))


def caption_rewards(
    policy: BasePolicy, images: ImageFolder, captions: dict[str, list[str]]
) -> dict[str, list[dict[str, float | None]]]:
    """Each image's raw rewards by row, and their "sum", standardised over all of these captions."""
    limit, end = int(policy.run.train["max_completion_length"]), min(policy.scoring.eos_ids)

    def completion(text: str) -> Caption:  # a greedy caption below the limit came to an end
        ids = policy.reference.token_ids(text)
        return Caption(text, ids if len(ids) >= limit else [*ids, end])

    groups = [[completion(t) for t in texts] for texts in zip(*captions.values(), strict=True)]
    rewards_NRK = policy.rewards(images, groups)
    table_NRK = torch.cat([rewards_NRK, policy.scores(rewards_NRK)[..., None]], -1)
    names = [*(reward.name for reward in policy.scoring.rewards), "sum"]
    return {
        row: [
            {n: None if math.isnan(v) else v for n, v in zip(names, values, strict=True)}
            for values in table_NRK[:, k].tolist()
        ]
        for k, row in enumerate(captions)
    }


def best_prompt(policy: BasePolicy, images: ImageFolder) -> Control:
    """Greedy captions under the prompt that the training scorer likes best on training images."""
    encoder, ids = policy.scoring.encoders(None), policy.images.ids[:PROMPT_IMAGES]
    folder, means = replace(policy.images, ids=ids, skipped={}), dict[str, float]()
    for prompt in dict.fromkeys((policy.run.data.prompt, *PROMPTS)):
        captions = [group[0].text for group in policy.captions(folder, 1, prompt)]
        lazy_images = LazyImages(folder.load, ids)
        means[prompt] = caption_cosines(encoder, ids, lazy_images, captions).mean().item()
    best = max(means, key=means.__getitem__)
    captions = [group[0].text for group in policy.captions(images, 1, best)]
    own = means[policy.run.data.prompt]
    how = (
        f"greedy under {best!r}, of {len(means)} prompts the one with the highest score of the "
        f"training scorer on {len(ids)} training images: {means[best]:.3f}, the run's own {own:.3f}"
    )
    return Control(captions, how)


def length_matched(policy: BasePolicy, images: ImageFolder, trained: Sequence[str]) -> Control:
    """Greedy captions whose end is forbidden for so long that they are as long as the trained."""
    rows_by_minimum, tokens = defaultdict[int, list[int]](list), policy.reference.token_ids
    for row, text in enumerate(trained):
        for minimum in {round(share * len(tokens(text))) for share in MINIMUM_SHARES}:
            rows_by_minimum[minimum].append(row)
    candidates = [list[str]() for _ in trained]  # the least forced first: it wins a tie
    for minimum, rows in sorted(rows_by_minimum.items()):
        folder = replace(images, ids=[images.ids[row] for row in rows], skipped={})
        for row, (caption,) in zip(rows, policy.captions(folder, 1, "", minimum), strict=True):
            candidates[row].append(caption.text)
    captions = [
        min(texts, key=lambda text: abs(len(text.split()) - len(goal.split())))
        for texts, goal in zip(candidates, trained, strict=True)
    ]
    shares = ", ".join(f"{share:g}" for share in MINIMUM_SHARES)
    how = (
        f"greedy, its end forbidden for {shares} of the tokens of the image's trained caption: the "
        "one that comes nearest to it in words"
    )
    return Control(captions, how)


def best_of(policy: BasePolicy, images: ImageFolder) -> Control:
    """The best of BEST_OF samples of each image by the run's rewards."""
    set_seed(policy.run.seed)
    best = policy.best(images, policy.captions(images, BEST_OF), BEST_OF)
    weights = [reward.name for reward in policy.scoring.rewards if reward.weight]
    how = (
        f"of {BEST_OF} captions sampled at temperature 1 the one with the highest sum of the run's "
        f"rewards ({', '.join(weights)}), each standardised over all captions"
    )
    return Control([caption.text for caption in best], how)
