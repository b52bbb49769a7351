"""Labels of metrics and curves: their titles, which way is better, and a sentence on each.

A metric or a key that is not here is shown under its own name.
"""

from __future__ import annotations

from typing import NamedTuple

from ..before_after import further_scorer
from ..tables import scorer_title


class Label(NamedTuple):
    """Title, +1 where more is better and −1 where less is, and one sentence."""

    title: str
    better: int = 0
    about: str = ""


METRICS = {  # of eval.json, in the order of the page
    "heldout_score": Label(
        "held-out score", 1, "Cosine of image and caption under a scorer that no reward uses."
    ),
    "hallucination_rate": Label(
        "hallucinated", -1, "Share of captions that state a fact that is not in the image."
    ),
    "fact_f1": Label("fact F1", 1, "Facts of the drawn scene: precision and recall in one."),
    "fact_precision": Label("fact precision", 1, "Share of the stated facts that are true."),
    "fact_recall": Label("fact recall", 1, "Share of the image's facts that are stated."),
    "retrieval_1": Label(
        "retrieval, first", 1, "Share of captions that pick their image out of 32 like it."
    ),
    "retrieval_5": Label("retrieval, first five", 1, "The same, among the first five."),
    "visual_dependence": Label(
        "visual dependence", 1, "Nats per word that the image adds over a blank one."
    ),
    "doubtful_rate": Label("doubtful", -1, "Share of captions with a doubtful word."),
    "doubtful_words": Label(
        "doubtful words", -1, "Share of the words, of those for which there is another."
    ),
    "repetition": Label("repetition", -1, "Share of word groups that say something again."),
    "cider_d": Label("CIDEr-D", 1, "Agreement with the references; rare phrases count more."),
    **{
        f"bleu_{n}": Label(f"BLEU-{n}", 1, f"Phrases of up to {n} words that references have.")
        for n in range(1, 5)
    },
    "rouge_l": Label("ROUGE-L", 1, "Longest common subsequence with a reference."),
    "meteor": Label("METEOR", 1, "Words, stems and synonyms that a reference has, in order."),
    "spice": Label("SPICE", 1, "Objects, attributes and relations that references have."),
    "bert_score": Label("BERTScore", 1, "Likeness of words in context with a reference."),
    "clip_score": Label("CLIPScore", 1, "2.5 times the cosine of image and caption, from 0."),
    "ref_clip_score": Label("RefCLIPScore", 1, "CLIPScore and the nearest reference in one."),
    "chair_i": Label("CHAIR-i", -1, "Share of the objects named that are not in the image."),
    "chair_s": Label("CHAIR-s", -1, "Share of captions that name an object that is not there."),
    "object_recall": Label("object recall", 1, "Share of the image's objects that are named."),
    **{
        f"recall_{k}": Label(
            f"R@{k} of all", 1, f"Share of captions whose image is among the {k} nearest of all."
        )
        for k in (1, 5, 10)
    },
    "mean_length": Label("words", 0, "Length of a caption."),
}

CURVES = {  # of metrics.jsonl; docs/metrics.md has them all
    "reward": Label("reward", 1, "Weighted sum of the raw rewards."),
    "heldout/score": Label("held-out score", 1, "Cosine under a scorer that no reward uses."),
    "heldout/agreement": Label(
        "agreement with held-out", 1, "Rank correlation of reward and held-out score in a group."
    ),
    "heldout/distinct_2": Label("distinct word pairs", 1, "Share, over all held-out captions."),
    "heldout/repeated_3grams": Label("repeated phrases", -1, "Share of three-word phrases."),
    "completions/mean_length": Label("length", 0, "Tokens of a sampled caption."),
    "heldout/doubtful": Label("doubtful words, held-out", -1, "Share of words."),
    "heldout/words": Label("words, held-out", 0, "Words of the greedy held-out captions."),
    "entropy": Label("entropy", 0, "Nats per token; near 0 the policy says one thing only."),
    "kl": Label("KL to the reference", 0, "Nats per token."),
    "kl_per_caption": Label("KL of a caption", 0, "Nats over all its tokens."),
    "time/step": Label("step time", -1, "Seconds."),
    "frac_reward_zero_std": Label(
        "groups without spread", -1, "Share of completions that teach nothing."
    ),
    "completions/clipped_ratio": Label("unended", -1, "Share of captions cut at the limit."),
    "grad_norm": Label("gradient norm", 0, "Before clipping."),
    "value_loss": Label("value loss", -1, "Of the critic."),
    "explained_variance": Label("explained variance", 1, "Of returns, by the critic; 1 is best."),
    "alignment/cosine": Label("alignment", 1, "Cosine of image and mapped caption states."),
}
DIVERSITY = {  # of a whole set of captions
    "distinct_2": "different pairs of words, share",
    "vocabulary": "different words",
    "unique_captions": "different captions, share",
}
SIDES = {  # rows of an evaluation
    "base": "before",
    "best_prompt": "best prompt",
    "length_matched": "base, as long",
    "best_of_8": "best of 8 samples",
}
PHASES = {  # of a step, in its order
    "time/data": "reading images",
    "time/vision": "vision tower",
    "time/sample": "sampling",
    "time/rewards": "rewards",
    "time/reference": "reference and advantages",
    "time/forward_backward": "forward and backward",
    "time/optimizer": "optimizer",
}


def metric(name: str) -> Label:
    """The label of a metric of eval.json; `heldout_score:NAME` is a further scorer's."""
    if scorer := further_scorer(name):
        about = f"Cosine under {scorer}, that no reward uses either."
        return Label(f"held-out, {scorer_title(scorer)}", 1, about)
    return METRICS.get(name) or Label(name.replace("_", " "))


def curve(key: str) -> Label:
    """The label of a key of metrics.jsonl; `reward/NAME` is a reward's."""
    if key in CURVES:
        return CURVES[key]
    return Label(key.removeprefix("reward/").replace("_", " ") if is_reward(key) else key)


def is_reward(key: str) -> bool:
    """Whether a key of metrics.jsonl is the raw score of one reward."""
    return key.startswith("reward/") and key.count("/") == 1


def in_order(names: list[str]) -> list[str]:
    """Names of metrics in the page's order, those without a label behind."""
    order = {name: place for place, name in enumerate(METRICS)}
    return sorted(names, key=lambda name: order.get(name.partition(":")[0], len(order)))
