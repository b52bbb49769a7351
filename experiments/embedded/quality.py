"""Measures the embedded checkpoints: does a policy see, say too little; does a scorer judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from experiments.embedded import tokens
from experiments.embedded.web import POOLS, swapped
from vizer_rl.data.scenes import COLOURS, SHAPES, render, sample
from vizer_rl.evaluation.metrics.scene_facts.facts import score
from vizer_rl.policy import captioner

FIRST = 2_000_000  # scenes that nothing else uses
Scorer = Callable[[list[Image], list[str]], torch.Tensor]  # one number per pair


def attribute_choice(judge: Scorer, count: int = 400) -> dict[str, float]:
    """Per attribute: how often the true caption beats one with that attribute swapped."""
    rng, out = np.random.default_rng(0), {}
    for attribute in (*POOLS, "relation"):
        scenes = [sample(FIRST + i) for i in range(count * (3 if attribute == "relation" else 1))]
        if attribute == "relation":
            scenes = [s for s in scenes if s.relation][:count]
        images = [render(s) for s in scenes]
        right = judge(images, [s.caption for s in scenes])
        wrong = judge(images, [swapped(s, attribute, rng).caption for s in scenes])
        out[attribute] = (right > wrong).float().mean().item()
    return out


def presence_choice(judge: Scorer, count: int = 400) -> float:
    """How often "a red circle" that is there beats a coloured shape that is not."""
    rng = np.random.default_rng(1)
    scenes = [sample(FIRST + i) for i in range(count)]
    right, wrong = [], []
    for scene in scenes:
        thing = scene.objects[int(rng.integers(len(scene.objects)))]
        here = {(o.colour, o.shape) for o in scene.objects}
        absent = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in here]
        colour, shape = absent[int(rng.integers(len(absent)))]
        right.append(f"a {thing.colour} {thing.shape}")
        wrong.append(f"a {colour} {shape}")
    images = [render(s) for s in scenes]
    return (judge(images, right) > judge(images, wrong)).float().mean().item()


def log_probability(model: Any, processor: Any, batch: int = 100) -> Scorer:
    """Summed log-probability of a caption and its end, given the image."""
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": tokens.PROMPT}]}
    ]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    lead = "" if prompt.endswith("\n") else " "
    tokenizer = processor.tokenizer

    @torch.no_grad()
    def judge(images: Sequence[Image], captions: Sequence[str]) -> torch.Tensor:
        out = []
        for at in range(0, len(images), batch):
            some = captions[at : at + batch]
            texts = [prompt + lead + c + tokenizer.eos_token for c in some]
            pictures = [[i] for i in images[at : at + batch]]
            inputs = processor(images=pictures, text=texts, padding=True, return_tensors="pt")
            said = tokenizer([lead + c + tokenizer.eos_token for c in some])["input_ids"]
            longest = max(map(len, said))
            logits = model(**inputs).logits[:, -longest - 1 : -1].float().log_softmax(-1)
            ids = inputs["input_ids"][:, -longest:]
            picked = logits.gather(-1, ids[..., None])[..., 0]
            mine = torch.arange(longest) >= longest - torch.tensor([len(s) for s in said])[:, None]
            out.append((picked * mine).sum(1))
        return torch.cat(out)

    return judge


def cosine(encoder: Any) -> Scorer:
    """Cosine of image and caption under an open_clip encoder."""

    def judge(images: Sequence[Image], captions: Sequence[str]) -> torch.Tensor:
        ids = [f"{hash(i.tobytes())}" for i in images]
        return (encoder.image_features(ids, images) * encoder.text_features(captions)).sum(-1)

    return judge


def policy_quality(model: Any, processor: Any) -> dict[str, Any]:
    """Sight by forced choice, and what greedy captions of 500 scenes say."""
    scenes = [sample(FIRST + 10_000 + i) for i in range(500)]
    said = captioner.caption(
        model, processor, [render(s) for s in scenes], tokens.PROMPT, max_new_tokens=32
    )
    scores = [score(c.text, s) for c, s in zip(said, scenes, strict=True)]
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
        "examples": [[c.text, s.caption] for c, s in zip(said[:6], scenes, strict=False)],
    }


def scorer_quality(encoder: Any) -> dict[str, Any]:
    """Forced choice between captions that differ in one thing."""
    judge = cosine(encoder)
    return {"forced_choice": attribute_choice(judge), "object_presence": presence_choice(judge)}
