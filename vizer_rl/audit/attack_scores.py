"""Captions under attack: whom the rewards and the other judges prefer, and who can be trusted.

Picks are three-way, right, tied or wrong; every metric is a mean over images with its bootstrap
interval, or None where there was nothing to measure. "sum" is the sum as training forms it: the
caption is put beside the sampled ones of its image, each reward normalised in that group where the
run does so. What a gate refuses loses there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from ..evaluation.statistics import number
from .attack_pairs import attack_pairs
from .caption_scores import SUM, Metrics, group_sums, score_captions
from .compositions import OF_FIVE
from .favourites import favourites
from .judges import Judges
from .picks import one_of_four, picks, signs, weakest
from .sample import CaptionSample, other_images
from .word_judge import WordJudge

REACH = 10.0  # nats: a KL budget of that much per caption is an alarm (REWARDS, combining)
KINDS = {"noun": "noun swapped", "attribute": "attribute swapped"}
Judge = Callable[[Sequence[str], Sequence[str]], np.ndarray]
ONE_MODEL = {"policy", "certainty"}  # judges that err together


class AttackScores:
    """All pairs of all attacks, scored.

    better_KP, worse_KP: scores of both captions of each pair; sums: the weighted sums of both;
    signs, text_signs: by reward and for the sum whom it prefers, with the image and with another
    one in its place (none where not `thorough`); length_P: whom the number of words prefers;
    judge_signs: whom the held-out scorer prefers, and the policy, by likelihood and by certainty of
    words; log_ratio (P,): log p(attacked) - log p(original) under the policy, nats.
    """

    def __init__(
        self, judges: Judges, sample: CaptionSample, scores_KNG: np.ndarray, thorough: bool
    ) -> None:
        self.judges, self.sample = judges, sample
        self.pairs, self.omitted = attack_pairs(judges, sample)
        self.images = [pair.n for pair in self.pairs]
        self.captions = [p.better for p in self.pairs], [p.worse for p in self.pairs]
        count = len(sample.image_ids)
        self.better_KP, self.worse_KP = self._scores(range(count))
        self.sums = self._sums(scores_KNG, self.better_KP, self.worse_KP)
        self.signs = self._signs(self.sums, self.better_KP, self.worse_KP)
        self.text_signs: dict[str, np.ndarray] = {}
        if thorough:
            both = self._scores(other_images(count, 0))
            self.text_signs = self._signs(self._sums(scores_KNG, *both), *both)
        ids = [sample.image_ids[n] for n in self.images]
        words = [np.array([len(text.split()) for text in texts], float) for texts in self.captions]
        self.length_P = signs(*words)
        log_probs = self._both(judges.log_probs, ids)
        self.log_ratio = log_probs[1] - log_probs[0]
        certainty = WordJudge(judges)
        self.objection = certainty.objection
        self.judge_signs = {
            "heldout": signs(*self._both(judges.heldout_scores, ids)),
            "policy": signs(*self._without_prior(log_probs)),
            "certainty": signs(*self._both(certainty, ids)),
        }

    def _both(self, judge: Judge, ids: Sequence[str]) -> list[np.ndarray]:
        """(P,) values of the originals and of the attacked captions, an image read in one go."""
        better, worse = self.captions
        return np.split(judge([*ids, *ids], better + worse), 2)

    def _scores(self, shown: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """(K, P) scores of the originals and of the attacked captions with these images."""
        better, worse = ([*zip(self.images, texts, strict=True)] for texts in self.captions)
        rows = {caption: row for row, caption in enumerate(dict.fromkeys(better + worse))}
        scores = score_captions(self.judges, self.sample, list(rows), shown)
        return scores[:, [rows[c] for c in better]], scores[:, [rows[c] for c in worse]]

    def _sums(
        self, scores_KNG: np.ndarray, better_KP: np.ndarray, worse_KP: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        return group_sums(self.judges, scores_KNG, self.sample, self.images, better_KP, worse_KP)

    def _signs(
        self, sums: tuple[np.ndarray, np.ndarray], better_KP: np.ndarray, worse_KP: np.ndarray
    ) -> dict[str, np.ndarray]:
        columns = zip(self.judges.names, better_KP, worse_KP, strict=True)
        return {SUM: signs(*sums)} | {name: signs(better, worse) for name, better, worse in columns}

    def _without_prior(self, log_probs: list[np.ndarray]) -> list[np.ndarray]:
        """(P,) of both captions of contested pairs log p with this image, less that with another.

        What the language prior prefers cancels: they tie for a policy that ignores the image.
        """
        contested = [p for p, pair in enumerate(self.pairs) if pair.attack.contested]
        other = other_images(len(self.sample.image_ids), 0)
        ids = [self.sample.image_ids[other[self.images[p]]] for p in contested]
        captions = [texts[p] for texts in self.captions for p in contested]
        others = np.split(self.judges.log_probs(ids * 2, captions), 2)
        margins = [np.full(len(self.pairs), np.nan) for _ in log_probs]
        for margin, own_P, other_P in zip(margins, log_probs, others, strict=True):
            margin[contested] = own_P[contested] - other_P
        return margins

    def is_attack(self, name: str) -> np.ndarray:
        """(P,) whether a pair is of this attack."""
        return np.array([pair.attack.name == name for pair in self.pairs], bool)

    def _jury(self, judged: str) -> list[str]:
        """The judges that one of them, or "reward", is held to: no model is held to itself."""
        same = ONE_MODEL if judged in ONE_MODEL else set[str]()
        if judged == "reward" and "certainty" in self.judges.names:
            same = {"certainty"}
        return [name for name in ("reward", *self.judge_signs) if name not in {judged, *same}]

    @cached_property
    def confirmed(self) -> np.ndarray:
        """(P,) whether the original is better: not contested, or the jury of the reward says so.

        Held-out scorer and policy must prefer it, and certainty must not prefer the other.
        """
        certain = np.array([not pair.attack.contested for pair in self.pairs], bool)
        against = np.zeros(len(self.pairs), bool)
        if "certainty" in self._jury("reward"):
            against = self.judge_signs["certainty"] < 0
        both = (self.judge_signs["heldout"] > 0) & (self.judge_signs["policy"] > 0)
        return certain | (both & ~against)

    def _by_reward(
        self, columns: dict[str, np.ndarray], kept: np.ndarray, one_choice: bool
    ) -> Metrics:
        """Picks by reward of these pairs; one_choice: of an image's original against all four."""
        images, result = [self.images[p] for p in np.flatnonzero(kept)], Metrics()
        for name, sign_P in columns.items():
            chosen = weakest(sign_P[kept], images, 4) if one_choice else (sign_P[kept], images)
            result[name] = picks(*chosen)
        return result

    def metrics(self) -> Metrics:
        """Per attack: pairs, what was left out, its reach, and the picks of all judges.

        `judges` are those of all pairs, the contested ones too.
        """
        confirmed, metrics = self.confirmed, {}
        for attack in self.judges.attacks:
            rows, five = self.is_attack(attack.name), attack.name == OF_FIVE
            kept = rows & confirmed
            self.omitted[attack.name]["contested"] = int((rows & ~confirmed).sum())
            has_reach = attack.name != "empty" and kept.any()
            length = self._by_reward({"length": self.length_P}, kept, five)["length"]
            metrics[attack.name] = {
                "about": attack.about,
                "guard": attack.guard,
                "pairs": int(kept.sum()),
                "images": len({self.images[p] for p in np.flatnonzero(kept)}),
                **self.omitted[attack.name],
                "in_reach": float((self.log_ratio[kept] > -REACH).mean()) if has_reach else None,
                "chance": 0.2 if five else 0.5,
                "wins": self._by_reward(self.signs, kept, five),
                "text_only": self._by_reward(self.text_signs, kept, five),
                "length_only": length,
                "judges": self._by_reward(self.judge_signs, rows, five),
            }
        return metrics

    def together(self) -> Metrics:
        """Rows by reward: the original against one attacked caption of its image, or against three.

        Of all attacks that attack the original as it is; without its image and by length alone too.
        """
        own = [pair.better == self.sample.original(pair.n) for pair in self.pairs]
        kept = self.confirmed & np.array(own, bool)
        images = [self.images[p] for p in np.flatnonzero(kept)]
        judges = {"": self.signs, ", text only": self.text_signs}
        judges[", length only"] = dict.fromkeys(self.signs, self.length_P)
        return {
            f"{title}{judge}": {n: choose(sign_P[kept], images) for n, sign_P in columns.items()}
            for title, choose in (("one of two", picks), ("one of four", one_of_four))
            for judge, columns in judges.items()
            if columns
        }

    def trust(self) -> Metrics:
        """Per kind of swap: the picks of a judge where the others agree.

        Judges of a swapped word: the weighted sum, the held-out scorer, the reference policy by
        likelihood and by certainty. Where others that learned apart agree they are nearly always
        right, so each is measured without a label. One without a view leaves it to the others.
        """
        votes = {"reward": self.signs[SUM]} | self.judge_signs
        metrics: Metrics = {}
        for kind, attack in KINDS.items():
            rows = np.flatnonzero(self.is_attack(attack))
            images, metrics[kind] = [self.images[p] for p in rows], {}
            for judge, vote in votes.items():
                jury = np.nan_to_num([votes[name][rows] for name in self._jury(judge)])
                side = np.sign(jury.sum(0))
                agreed = (side != 0) & (jury * side >= 0).all(0)
                metrics[kind][judge] = picks(np.where(agreed, vote[rows] * side, np.nan), images)
        return metrics

    def favourites(self) -> Metrics:
        """The words that the weighted sum prefers to the true ones, whatever the image shows."""
        kept = np.flatnonzero(self.confirmed)
        return favourites([self.pairs[p] for p in kept], self.signs[SUM][kept])

    def worst(self, count: int) -> list[Metrics]:
        """The pairs in which the weighted sum most prefers the attacked caption, two per attack."""
        gain = self.sums[1] - self.sums[0]
        examples: list[Metrics] = []
        for p in np.argsort(-gain):
            pair = self.pairs[p]
            same = [e for e in examples if e["attack"] == pair.attack.name]
            if len(examples) == count or gain[p] <= 0:
                break
            if not self.confirmed[p] or len(same) == 2:
                continue
            columns = zip(self.judges.names, self.better_KP[:, p], self.worse_KP[:, p], strict=True)
            examples.append(
                {
                    "attack": pair.attack.name,
                    "image_id": self.sample.image_ids[pair.n],
                    "original": pair.better,
                    "attacked": pair.worse,
                    SUM: [float(self.sums[0][p]), float(self.sums[1][p])],
                    "scores": {n: [number(b), number(w)] for n, b, w in columns},
                }
            )
        return examples
