"""Passport of a scorer: which worse captions an image-text model takes for the better one.

On the user's own images, with captions of the base policy or given ones. Beside the scorer stand
two judges that see no image: the number of words, and the likelihood of the text under the policy
without an image. What one of them gets right as often is no proof that the scorer sees anything.
The published columns are quoted: other images, captions and negatives, so they give the scale only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rewards import Encoder
from rewards.lib.chunks import Chunked, caption_cosines
from rewards.lib.lexicon import Lexicon

from ..data.lazy import LazyImages
from ..evaluation.statistics import estimate, per_image
from ..scoring.reference_policy import ReferencePolicy
from .attack_pairs import NEAR_DUPLICATE, AttackPair
from .attacks import Subject, pairs_of
from .compositions import ALL_ATTACKS, OF_FIVE
from .sample import other_images

TIE = 1e-5  # cosines in float32 that are nearer to each other differ by rounding
OTHER_IMAGE = "another image"
BLIND = ("words", "text")  # judges without the image
MODELS = ("B/32 OpenAI", "L/14 OpenAI", "L/14 DataComp", "H/14 LAION 2B")
PUBLISHED = {  # SugarCrepe (arXiv 2306.14610), its table of CLIPs; the last row: ARO (2210.01936)
    "noun swapped": (0.91, 0.94, 0.96, 0.97),
    "attribute swapped": (0.80, 0.79, 0.85, 0.85),
    "relation replaced": (0.69, 0.65, 0.70, 0.72),
    "objects exchanged": (0.61, 0.60, 0.65, 0.68),
    "attributes exchanged": (0.64, 0.62, 0.67, 0.73),
    "object added": (0.77, 0.78, 0.91, 0.92),
    "attribute added": (0.69, 0.72, 0.85, 0.86),
    OF_FIVE: (0.45, None, 0.23, 0.26),
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Captioned:
    """Images and their captions, of which the first is attacked; captions (N, any number).

    certain: whether a person wrote them, so that a changed word makes them wrong; else only pairs
    count in which the policy prefers the original. source: a sentence on where they are from.
    """

    ids: list[str]
    images: LazyImages
    captions: list[list[str]]
    certain: bool
    source: str


def passport(
    scorer: Encoder, captioned: Captioned, policy: ReferencePolicy | None
) -> dict[str, Any]:
    """{"scorer", "source", "certain", "images", "rows": {attack: row}}, a row as `_row` makes it.

    policy: None leaves `text` out, and needs captions that are certain.
    """
    pairs = _pairs(scorer, captioned)
    if policy is not None and not captioned.certain:
        pairs = _confirmed(policy, captioned, pairs)
    margins_P = {"scorer": _scorer_margins(scorer, captioned, pairs), "words": _words(pairs)}
    if policy is not None:
        margins_P["text"] = _text_margins(policy, pairs)
    rows = {}
    for attack in ALL_ATTACKS:
        places = [p for p, pair in enumerate(pairs) if pair.attack.name == attack.name]
        margins = {judge: margin[places] for judge, margin in margins_P.items()}
        rows[attack.name] = _row(attack.name, margins, [pairs[p].n for p in places])
    rows[OTHER_IMAGE] = _other_image(scorer, captioned)
    return {
        "scorer": scorer.name,
        "source": captioned.source,
        "certain": captioned.certain,
        "images": len(captioned.ids),
        "rows": rows,
    }


def _pairs(scorer: Encoder, captioned: Captioned) -> list[AttackPair]:
    """All attacks on the first caption of each image, and those of SugarCrepe and ARO."""
    lexicon = Lexicon.learn(c for captions in captioned.captions for c in captions)
    features = scorer.image_features(captioned.ids, captioned.images)
    cosines = features @ features.T
    pairs = list[AttackPair]()
    for n, (image_id, captions) in enumerate(zip(captioned.ids, captioned.captions, strict=True)):
        order = cosines[n].argsort(descending=True).tolist()
        others = [m for m in order if m != n and captioned.captions[m][0] not in captions]
        near = (captioned.captions[m][0] for m in others if cosines[n, m] < NEAR_DUPLICATE)
        unrelated = captioned.captions[others[-1] if others else n][0]
        context = min(scorer.context_length, 512)
        subject = Subject(captions[0], tuple(captions), next(near, None), unrelated, context)
        for attack in ALL_ATTACKS:
            changed, _ = pairs_of(attack, subject, lexicon, image_id)
            pairs += [AttackPair(attack, n, better, worse) for better, worse in changed]
    return pairs


def _scorer_margins(
    scorer: Encoder, captioned: Captioned, pairs: Sequence[AttackPair]
) -> np.ndarray:
    """(P,) cosine of the original less that of the attacked caption."""
    rows = [*dict.fromkeys((p.n, text) for p in pairs for text in (p.better, p.worse))]
    places, texts = [n for n, _ in rows], [text for _, text in rows]
    ids, images = [captioned.ids[n] for n in places], captioned.images[places]
    cosines = caption_cosines(scorer, ids, images, texts)
    value = dict(zip(rows, cosines.cpu().double().tolist(), strict=True))
    return np.array([value[p.n, p.better] - value[p.n, p.worse] for p in pairs])


def _words(pairs: Sequence[AttackPair]) -> np.ndarray:
    """(P,) how many words more the original has."""
    return np.array([len(p.better.split()) - len(p.worse.split()) for p in pairs], float)


def _text_margins(policy: ReferencePolicy, pairs: Sequence[AttackPair]) -> np.ndarray:
    """(P,) nats per token by which the policy finds the original likelier, without an image."""
    texts = [*dict.fromkeys(text for p in pairs for text in (p.better, p.worse) if text)]
    log_probs = policy.log_probs(texts, view="text") if texts else []
    means = {text: float(lp.mean()) for text, lp in zip(texts, log_probs, strict=True)}
    means[""] = -np.inf  # it says nothing
    return np.array([means[p.better] - means[p.worse] for p in pairs])


def _confirmed(
    policy: ReferencePolicy, captioned: Captioned, pairs: Sequence[AttackPair]
) -> list[AttackPair]:
    """The pairs that are not contested, or whose original the policy prefers on this image.

    By the margin of its log-probability over that with another image, in which the prior cancels.
    It is no image-text scorer, so what it lets through is not what such a one finds easy.
    """
    other = other_images(len(captioned.ids), 0)
    rows = dict.fromkeys(
        (n, text)
        for p in pairs
        if p.attack.contested
        for n in (p.n, other[p.n])
        for text in (p.better, p.worse)
    )
    images = captioned.images[[n for n, _ in rows]]
    log_probs = policy.log_probs([text for _, text in rows], images) if rows else []
    value = {row: float(lp.sum()) for row, lp in zip(rows, log_probs, strict=True)}

    def margin(p: AttackPair, n: int) -> float:
        return value[n, p.better] - value[n, p.worse]

    return [p for p in pairs if not p.attack.contested or margin(p, p.n) > margin(p, other[p.n])]


def _row(name: str, margins: Mapping[str, np.ndarray], images: Sequence[int]) -> Row:
    """Of an attack: `pairs`, `images`, `right`, `tied`, `words`, `text`, `published`.

    A share is a mean over images; `right` has its interval, and a tie is none of the right ones.
    The blind judges draw lots where they tie.
    """
    lots, pairs = 0.5, len(images)
    if name == OF_FIVE:  # one choice per image, among all five
        lots, groups = 0.2, [np.flatnonzero(np.array(images) == n) for n in dict.fromkeys(images)]
        margins = {judge: np.array([m[g].min() for g in groups]) for judge, m in margins.items()}
        images = list(dict.fromkeys(images))

    def share(won: np.ndarray) -> float | None:
        return float(per_image(won, images).mean()) if images else None

    scorer, blind = (
        margins["scorer"],
        dict.fromkeys(BLIND, None)
        | {
            judge: share(np.where(margin == 0, lots, margin > 0))
            for judge, margin in margins.items()
            if judge in BLIND
        },
    )
    return {
        "pairs": pairs,
        "images": len(set(images)),
        "right": estimate(per_image(scorer > TIE, images)),
        "tied": share(np.abs(scorer) <= TIE),
        **blind,
        "published": dict(zip(MODELS, PUBLISHED.get(name, (None,) * len(MODELS)), strict=True)),
    }


def _other_image(scorer: Encoder, captioned: Captioned) -> Row:
    """The row on how often a caption fits its own image better than each of the others."""
    images = scorer.image_features(captioned.ids, captioned.images)
    texts = Chunked(scorer, [captions[0] for captions in captioned.captions]).vectors
    cosines = (texts @ images.T).cpu().double().numpy()
    margins = np.diag(cosines)[:, None] - cosines
    others = ~np.eye(len(images), dtype=bool)
    rows = np.repeat(np.arange(len(images)), len(images) - 1).tolist()
    return _row(OTHER_IMAGE, {"scorer": margins[others]}, rows)
