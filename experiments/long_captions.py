"""The step in a caption's score where the scorer's context ends, before and after.

    .venv/bin/python -m experiments.long_captions [--scenes 300] [--scorer a] [--scorer random]

Captions are true sentences of a drawn scene, one after the other, cut after the last word that
fits the context, one word earlier and one later. Scored by the embedded scorers and by an open_clip
model with random weights (CLIP's tokenizer, 77 tokens): whole while it fits and by sentences (the
rule until 2026-11-24), always by sentences, and by sentences weighted by their words (since).
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch

from rewards import Encoder, sentences
from rewards.lib.chunks import Chunked
from vizer_rl.data import scenes
from vizer_rl.scoring.clip import OpenClip

FIRST_SCENE = 2_000_000
RANDOM = "ViT-S-32-alt"
Vectors = Callable[[Encoder, Sequence[str]], torch.Tensor]


def whole_while_it_fits(encoder: Encoder, captions: Sequence[str]) -> torch.Tensor:
    """(N, D) the caption's vector, the mean of its sentences' past the context."""
    means, too_long = by_sentences(encoder, captions), encoder.too_long(captions)
    return torch.where(torch.tensor(too_long)[:, None], means, encoder.text_features(captions))


def by_sentences(encoder: Encoder, captions: Sequence[str]) -> torch.Tensor:
    """(N, D) the mean of the sentences' vectors, each counted once."""
    split = [sentences(caption) for caption in captions]
    vectors = encoder.text_features([piece for pieces in split for piece in pieces])
    return torch.stack([v.mean(0) for v in vectors.split([len(pieces) for pieces in split])])


RULES: dict[str, Vectors] = {
    "whole while it fits (before)": whole_while_it_fits,
    "by sentences": by_sentences,
    "by sentences, weighted by words (now)": lambda encoder, c: Chunked(encoder, c).vectors,
}


def true_words(scene: scenes.Scene, rng: np.random.Generator) -> list[str]:
    """The words of true sentences of a scene: its caption and what is so of each object."""
    texts = [scene.caption]
    for thing in dict.fromkeys(scene.objects):
        words = (thing.size, thing.fill, thing.colour)
        texts += [f"a {word} {thing.shape}" for word in words]
        texts += [f"a {word} {thing.colour} {thing.shape}" for word in words[:2]]
    rng.shuffle(texts)
    return [word for text in texts for word in f"{text}.".split()]


def around_the_limit(encoder: Encoder, scene: scenes.Scene, rng: np.random.Generator) -> list[str]:
    """Three captions: a word fewer than fit the context, as many as fit, a word more."""
    words: list[str] = []
    while not encoder.too_long([" ".join(words)])[0]:
        words += true_words(scene, rng)
    fit = len(words)
    while encoder.too_long([" ".join(words[:fit])])[0]:
        fit -= 1
    return [" ".join(words[:count]) for count in (fit - 1, fit, fit + 1)]


def scores_by_rule(encoder: Encoder, count: int) -> dict[str, np.ndarray]:
    """(count, 3) cosines of scenes with their captions around the limit, under each rule."""
    drawn = [scenes.sample(FIRST_SCENE + k) for k in range(count)]
    rng = np.random.default_rng(0)
    captions = [c for scene in drawn for c in around_the_limit(encoder, scene, rng)]
    ids = [str(scene.seed) for scene in drawn]
    images = encoder.image_features(ids, [scenes.render(scene) for scene in drawn])
    images = images.repeat_interleave(3, 0)
    return {
        name: (images * rule(encoder, captions)).sum(-1).view(count, 3).numpy()
        for name, rule in RULES.items()
    }


def random_scorer(folder: Path) -> OpenClip:
    """An open_clip model with random weights and the real tokenizer."""
    config = {"model_cfg": open_clip.get_model_config(RANDOM), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    return OpenClip(f"local-dir:{folder}", torch.device("cpu"))


def rows(name: str, encoder: Encoder, count: int) -> Iterator[str]:
    """A row of the table for each rule."""
    for rule, scores in scores_by_rule(encoder, count).items():
        step, size = np.diff(scores[:, 1:]), np.abs(np.diff(scores[:, 1:]))
        means = f"{scores[:, 1].mean():.3f} | {scores[:, 2].mean():.3f} | {step.mean():+.3f}"
        before = np.abs(np.diff(scores[:, :2])).mean()
        sizes = f"{size.mean():.3f} | {size.max():.3f} | {before:.3f}"
        yield f"| {name} ({encoder.context_length}) | {rule} | {means} | {sizes} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--scorer", action="append", choices=("a", "b", "random"))
    args = parser.parse_args()
    print(
        "| scorer (context) | rule | fits | one word more | step | size | largest | word before |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in args.scorer or ("a", "b", "random"):
        with tempfile.TemporaryDirectory() as folder:
            encoder = (
                random_scorer(Path(folder))
                if name == "random"
                else OpenClip(f"embedded:{name}", torch.device("cpu"))
            )
        for row in rows(name, encoder, args.scenes):
            print(row, flush=True)


if __name__ == "__main__":
    main()
