"""The words of captions that have a class, and the frozen policy's probabilities of each of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL.Image import Image
from torch import Tensor

from rewards import CaptionBatch
from rewards.lib.images import Picked, augmented, blanked
from rewards.lib.lexicon import Lexicon, core, words_of
from rewards.lib.rivals import with_rivals, within_class
from rewards.lib.tagged_words import TaggedWords
from rewards.lib.text import SCAFFOLD
from rewards.lib.word_classes import Place, WordClasses

Tagger = Literal["lexicon", "builtin", "spacy"]
CAPTIONS, VIEWS, SEED = 64, 4, 0  # that certainties are tried on; views of each image
CHANGE = 0.06  # of a view: what is cut off is no longer there, and so no sign of doubt
REMEMBERED = 100_000  # captions, and words on blank images


@dataclass(frozen=True)
class Trial:
    """Words of the base's captions: per word (1 + A,) its probability and its alternatives'.

    own: on their image; views: mean over mildly changed ones; other: on another image.
    """

    own: list[Tensor]
    views: list[Tensor]
    other: list[Tensor]


class CertainWords:
    """Finds the words of a class, as the base's captions teach it, and asks the policy for them."""

    def __init__(self, sample: CaptionBatch, tagger: Tagger) -> None:
        """sample: captions of the base. ValueError where no word of them has an alternative."""
        tagged = tagger != "lexicon"
        self.classes = (
            TaggedWords(sample.captions, tagger)
            if tagged
            else WordClasses(Lexicon.learn(sample.captions))
        )
        self._places: dict[str, tuple[Place, ...]] = {}
        self._blank: dict[tuple[object, str], Tensor] = {}  # by blank image and words so far
        self._check(sample.captions)

    def _check(self, captions: Sequence[str]) -> None:
        words = {core(words_of(c)[i]) for c in captions for i in self.classes.indices(c)}
        if not words - SCAFFOLD:
            raise ValueError(
                f"{len(captions)} captions of the base have no content words, which this reward "
                "is about: change data.prompt, or leave it out (rewards.certainty=null)"
            )
        if not any(self.places(caption) for caption in captions):
            raise ValueError(
                f"each content word of {len(captions)} captions of the base is alone in its class "
                f"({', '.join(sorted(words)[:3])}), so there is nothing to be sure of: take more "
                "images, or leave this reward out (rewards.certainty=null)"
            )

    def remarks(self, sample: CaptionBatch) -> list[str]:
        """Sentences on what is out of the ordinary: words without a class, a tokenizer of bits."""
        indices = ((c, i) for c in sample.captions for i in self.classes.indices(c))
        words = sorted({core(words_of(caption)[i]) for caption, i in indices} - SCAFFOLD)
        alone = [word for word in words if not self.classes.others(word)]
        sentences = []
        if alone:
            few = ", ".join(alone[:3])
            sentences.append(f"not judged, being alone in their class: {len(alone)} words ({few})")
        if all(len(sample.policy.tokens(f"a {word}")) > 2 for word in words):
            sentences.append("the tokenizer splits each of its words, so more passes are needed")
        return sentences

    def places(self, caption: str) -> tuple[Place, ...]:
        """The words of a caption that have a class; "image" and its kin name nothing in it."""
        if caption not in self._places:
            if len(self._places) > REMEMBERED:
                self._places.clear()
            row = self.classes.places(caption)
            self._places[caption] = tuple(
                with_rivals(caption, p) for p in row if p.word not in SCAFFOLD
            )
        return self._places[caption]

    def sure(self, batch: CaptionBatch) -> list[list[Tensor]]:
        """Per caption and place (1 + A,) probabilities of the word and its alternatives; sum 1."""
        return self.of_class(batch, self.beside_rivals(batch))

    def of_class(self, batch: CaptionBatch, rows: list[list[Tensor]]) -> list[list[Tensor]]:
        """`sure` of the probabilities beside rivals."""
        return [
            [within_class(p, place) for p, place in zip(row, places, strict=True)]
            for row, places in zip(rows, self._all(batch), strict=True)
        ]

    def beside_rivals(self, batch: CaptionBatch) -> list[list[Tensor]]:
        """(1 + A + rivals,) probabilities of word, alternatives and rivals (lib/rivals); sum 1."""
        pairs = [*zip(batch.image_ids, batch.captions, self._all(batch), strict=True)]
        first = {(k, c): row for row, (k, c, own) in reversed([*enumerate(pairs)]) if own}
        rows = sorted(first.values())
        read = batch.policy.word_probs(
            [batch.captions[row] for row in rows],
            [pairs[row][2] for row in rows],
            Picked(batch.images, rows),
        )
        by_row = dict(zip(rows, read, strict=True))
        return [by_row[first[k, c]] if own else [] for k, c, own in pairs]

    def _all(self, batch: CaptionBatch) -> list[tuple[Place, ...]]:
        return [self.places(caption) for caption in batch.captions]

    def blank(self, batch: CaptionBatch, wanted: Sequence[Sequence[bool]]) -> list[list[Tensor]]:
        """`beside_rivals` on a blank image, of the wanted places, each read but once."""
        if len(self._blank) > REMEMBERED:
            self._blank.clear()
        names = batch.image_ids
        row_of = {name: row for row, name in reversed([*enumerate(names)])}
        by_name = {name: blanked(batch.images[row]) for name, row in row_of.items()}
        blanks = [by_name[name] for name in names]
        keys = [(image.size, image.getpixel((0, 0))) for image in blanks]
        # One object for equal ones: they share a pass.
        by_key = dict(zip(keys, blanks, strict=True))
        images = [by_key[key] for key in keys]
        places_N = [
            [place for place, want in zip(row, wants, strict=True) if want]
            for row, wants in zip(self._all(batch), wanted, strict=True)
        ]
        missing, claimed = list[list[Place]](), set[tuple[object, str]]()
        for key, wanted_places in zip(keys, places_N, strict=True):
            pairs = {(key, place.prefixes[0]): place for place in wanted_places}
            new = [pair for pair in pairs if pair not in self._blank and pair not in claimed]
            missing.append([pairs[pair] for pair in new])
            claimed.update(new)
        unread = [n for n, places in enumerate(missing) if places]
        # A caption is read as far as a word of it is missing.
        prefixes = [missing[n][-1].prefixes[0] for n in unread]
        chosen = [missing[n] for n in unread], Picked(images, unread)
        read = batch.policy.word_probs(prefixes, *chosen)
        for n, probabilities in zip(unread, read, strict=True):
            for place, p in zip(missing[n], probabilities, strict=True):
                self._blank[keys[n], place.prefixes[0]] = p
        return [
            [self._blank[key, place.prefixes[0]] for place in row]
            for key, row in zip(keys, places_N, strict=True)
        ]

    def trial(self, sample: CaptionBatch) -> Trial:
        """The words of up to CAPTIONS captions with their image, views of it, another image."""
        stride = max(1, len(sample.captions) // CAPTIONS)
        rows = range(0, len(sample.captions), stride)
        captions = [sample.captions[row] for row in rows]
        images, rng = [sample.images[row] for row in rows], np.random.default_rng(SEED)
        changed = [
            [augmented(image, rng, mirrored=False, change=CHANGE) for image in images]
            for _ in range(VIEWS)
        ]
        shifted = [*images[1:], *images[:1]]
        places_N = [self.places(caption) for caption in captions]
        places = [place for row in places_N for place in row]

        def read(images: Sequence[Image]) -> list[Tensor]:
            rows = sample.policy.word_probs(captions, places_N, images)
            pairs = zip((p for row in rows for p in row), places, strict=True)
            return [within_class(p, place) for p, place in pairs]

        own, other, *views = (read(kind) for kind in (images, shifted, *changed))
        return Trial(own, [_mean(words) for words in zip(*views, strict=True)], other)


def _mean(probabilities: Sequence[Tensor]) -> Tensor:
    return sum(probabilities[1:], probabilities[0]) / len(probabilities)
