"""Quality of the embedded checkpoints: forced choice, rows, facts of a policy's captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from experiments.embedded import rows, tokens
from experiments.embedded.architectures import MESSAGES
from experiments.embedded.web import POOLS, salient, swapped
from rewards.lib.chunks import caption_cosines
from vizer_rl.data.scenes import render, sample
from vizer_rl.evaluation.metrics.scene_facts.facts import score
from vizer_rl.policy import captioner

FIRST = 2_000_000  # scenes that nothing else uses
Scorer = Callable[[list[Image], list[str]], torch.Tensor]  # one number per pair


def attribute_choice(judge: Scorer, count: int = 200) -> dict[str, float]:
    """Per attribute of an object: how often the true caption beats those with any other value.

    All tell the large objects first, as the web does, so that sight decides and not habit.
    """
    rng, shares = np.random.default_rng(0), {}
    for attribute in (*POOLS, "relation"):
        numbers = range(FIRST, FIRST + count * (3 if attribute == "relation" else 1))
        scenes = [salient(sample(number)) for number in numbers]
        if attribute == "relation":
            scenes = [s for s in scenes if s.relation][:count]
        images = [render(s) for s in scenes]
        right = judge(images, [s.caption for s in scenes])
        others = zip(*(swapped(s, attribute, rng) for s in scenes), strict=True)
        wrong = [judge(images, [s.caption for s in column]) for column in others]
        shares[attribute] = (right > torch.stack(wrong).amax(0)).float().mean().item()
    return shares


def row_accuracy(judge: Scorer, row: str, count: int = 400) -> float:
    """How often the true caption of this row beats all its false ones."""
    scenes, captions = zip(*rows.pairs(row, FIRST, count), strict=True)
    images = [render(s) for s in scenes]
    right = judge(images, [true for true, _ in captions])
    wrong = [judge(images, list(false)) for false in zip(*(f for _, f in captions), strict=True)]
    return (right > torch.stack(wrong).amax(0)).float().mean().item()


def log_probability(model: Any, processor: Any, batch: int = 100) -> Scorer:
    """Summed log-probability of a caption and its end, given the image."""
    prompt = processor.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    lead = "" if prompt.endswith("\n") else " "
    tokenizer = processor.tokenizer

    @torch.no_grad()
    def judge(images: Sequence[Image], captions: Sequence[str]) -> torch.Tensor:
        sums = []
        for start in range(0, len(images), batch):
            ends = [lead + c + tokenizer.eos_token for c in captions[start : start + batch]]
            pixels = [[i] for i in images[start : start + batch]]
            texts = [prompt + end for end in ends]
            inputs = processor(images=pixels, text=texts, padding=True, return_tensors="pt")
            inputs = inputs.to(model.device)
            lengths = torch.tensor([len(ids) for ids in tokenizer(ends)["input_ids"]])
            length = int(lengths.max())
            logps = model(**inputs).logits[:, -length - 1 : -1].float().log_softmax(-1)
            ids = inputs["input_ids"][:, -length:]
            logp = logps.gather(-1, ids[..., None])[..., 0].cpu()
            mask = torch.arange(length) >= length - lengths[:, None]
            sums.append((logp * mask).sum(1))
        return torch.cat(sums)

    return judge


def cosine(encoder: Any) -> Scorer:
    """Cosine of image and caption under an open_clip encoder."""

    def judge(images: Sequence[Image], captions: Sequence[str]) -> torch.Tensor:
        ids = [f"{hash(i.tobytes())}" for i in images]
        return caption_cosines(encoder, ids, images, captions)

    return judge


def policy_quality(model: Any, processor: Any) -> dict[str, Any]:
    """Forced choice, and the facts of greedy captions of 500 scenes."""
    scenes = [sample(FIRST + 10_000 + i) for i in range(500)]
    captions = captioner.caption(
        model, processor, [render(s) for s in scenes], tokens.PROMPT, max_new_tokens=32
    )
    scores = [score(c.text, s) for c, s in zip(captions, scenes, strict=True)]
    return {
        "forced_choice": attribute_choice(log_probability(model, processor)),
        "greedy": {
            "fact_f1": mean(s.f1 for s in scores),
            "fact_precision": mean(s.precision for s in scores),
            "fact_recall": mean(s.recall for s in scores),
            "hallucination_rate": mean(s.hallucinated for s in scores),
            "mean_length": mean(s.words for s in scores),
            "true_mean_length": mean(len(s.caption.split()) for s in scenes),
        },
        "examples": [[c.text, s.caption] for c, s in zip(captions[:6], scenes, strict=False)],
    }


def scorer_quality(encoder: Any, published: int) -> dict[str, Any]:
    """Each row's accuracy beside the published one (its place in `rows.PUBLISHED`)."""
    judge = cosine(encoder)
    return {
        "rows": {
            row: {"accuracy": row_accuracy(judge, row), "published": real[published]}
            for row, real in rows.PUBLISHED.items()
        },
        "forced_choice": attribute_choice(judge),
    }
