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

from ..config.schema import Run
from ..data.lazy import LazyImages
from ..data.sources import ImageFolder
from ..evaluation.against_controls import Control, Controls
from ..evaluation.tables import PlainConsole
from ..policy import captioner
from ..policy.captioner import Caption
from . import assemble, splits
from .caption_rewards import caption_rewards, raw_rewards, standardised_sums

PROMPTS = (
    "Describe the image.",
    "Describe the image in detail.",
    "Describe every object in the image with its size, colour and shape.",
    "What is in the image?",
    "Write a long caption of the image.",
)
BEST_OF = 8
MINIMUM_SHARES = (0.0, 0.5, 0.75, 1.0)  # of a trained caption's tokens before which none ends
PROMPT_IMAGES = 128  # training images on which prompts are compared


class BasePolicy:
    """A run's base policy with its rewards prepared, and the images."""

    def __init__(self, run: Run, console: Console) -> None:
        self.run = run
        self.images, _, self.heldout = splits.image_sets(run, console)
        components = assemble.load_components(_without_heldout(run), assemble.make_rewards(run))
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
        return raw_rewards(self.scoring, folder, captions)

    def scores(self, rewards: torch.Tensor) -> torch.Tensor:
        """(N, n): `standardised_sums` of rewards (N, n, K)."""
        return standardised_sums(self.scoring, rewards)

    def best(
        self, folder: ImageFolder, captions: Sequence[Sequence[Caption]], n: int
    ) -> list[Caption]:
        """The best of the first n captions of each image, by the rewards."""
        groups = [candidates[:n] for candidates in captions]
        best = self.scores(self.rewards(folder, groups)).nan_to_num(-math.inf).argmax(1).tolist()
        return [candidates[k] for candidates, k in zip(groups, best, strict=True)]


def _without_heldout(run: Run) -> Run:
    """The run, its held-out scorer put away: controls do without, and it need not be there."""
    scorer = run.scorer.model_copy(update={"heldout": run.scorer.train})
    return run.model_copy(update={"scorer": scorer})


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
        limit = policy.reference.max_new_tokens
        return Controls(rows, caption_rewards(policy.scoring, limit, images, captions))


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
