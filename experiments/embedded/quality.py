"""Quality of the embedded checkpoints: forced choice, and facts of a policy's greedy captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from experiments.embedded import tokens
from experiments.embedded.architectures import MESSAGES
from experiments.embedded.web import POOLS, swapped
from rewards.lib.chunks import caption_cosines
from vizer_rl.data.scenes import COLOURS, SHAPES, render, sample
from vizer_rl.evaluation.metrics.scene_facts.facts import score
from vizer_rl.policy import captioner

FIRST = 2_000_000  # scenes that nothing else uses
Scorer = Callable[[list[Image], list[str]], torch.Tensor]  # one number per pair


def attribute_choice(judge: Scorer, count: int = 400) -> dict[str, float]:
    """Per attribute: how often the true caption beats one with that attribute swapped."""
    rng, shares = np.random.default_rng(0), {}
    for attribute in (*POOLS, "relation"):
        scenes = [sample(FIRST + i) for i in range(count * (3 if attribute == "relation" else 1))]
        if attribute == "relation":
            scenes = [s for s in scenes if s.relation][:count]
        images = [render(s) for s in scenes]
        right = judge(images, [s.caption for s in scenes])
        wrong = judge(images, [swapped(s, attribute, rng).caption for s in scenes])
        shares[attribute] = (right > wrong).float().mean().item()
    return shares


def presence_choice(judge: Scorer, count: int = 400) -> float:
    """How often "a red circle" that is there beats a coloured shape that is not."""
    rng = np.random.default_rng(1)
    scenes = [sample(FIRST + i) for i in range(count)]
    right, wrong = [], []
    for scene in scenes:
        thing = scene.objects[int(rng.integers(len(scene.objects)))]
        present = {(o.colour, o.shape) for o in scene.objects}
        absent = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in present]
        colour, shape = absent[int(rng.integers(len(absent)))]
        right.append(f"a {thing.colour} {thing.shape}")
        wrong.append(f"a {colour} {shape}")
    images = [render(s) for s in scenes]
    return (judge(images, right) > judge(images, wrong)).float().mean().item()


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
            lengths = torch.tensor([len(ids) for ids in tokenizer(ends)["input_ids"]])
            length = int(lengths.max())
            logps = model(**inputs).logits[:, -length - 1 : -1].float().log_softmax(-1)
            ids = inputs["input_ids"][:, -length:]
            logp = logps.gather(-1, ids[..., None])[..., 0]
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


def scorer_quality(encoder: Any) -> dict[str, Any]:
    """Forced choice between captions that differ in one thing."""
    judge = cosine(encoder)
    return {"forced_choice": attribute_choice(judge), "object_presence": presence_choice(judge)}
