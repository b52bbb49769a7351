"""What share of the caption's words are the user's own: a list, or a file with one a line.

    R = different content words that are on the list / max(`enough`, different content words)

in any case, singular or plural; an entry may have several words ("traffic light"). A trigger word
in front of the caption does not count (`contains`); style words that are demanded belong on the
list.
Hacks and guards: few words, all on the list ("circle"): fewer than `enough` cannot earn it all; one
word again and again counts once. Not guarded: listed words that are not in the image, and lists of
them; keep self_retrieval or clip_similarity, and format, beside it. Cost: none.
"""

from __future__ import annotations

from dataclasses import replace

from rewards import Bank, CaptionBatch, Parts, Scores, win_rate
from rewards.lib.own_words import Phrases, lemmas_of, read_words
from rewards.lib.text import STOP

RATE = 1.0


class Vocabulary:
    """The share of a caption's content words that are on the user's list."""

    range = (0.0, 1.0)
    reads = ("text",)
    content = False

    def __init__(self, *, words: tuple[str, ...] | str, enough: int = 3) -> None:
        """`words`: the list, or the path of a text file of it, one word or phrase a line, `#`
        begins a comment; `enough`: different words of the list that earn all there is."""
        if enough < 1:
            raise ValueError(f"vocabulary: need enough >= 1, not {enough}")
        self.entries, self.enough = read_words("vocabulary", words), enough
        self.phrases = Phrases("vocabulary", self.entries)
        self.objection = ""

    def prepare(self, bank: Bank) -> str | None:
        """A sentence on how much of the list the base says; an objection where it says nothing."""
        texts = [lemmas_of(caption) for caption in bank.sample.captions]
        spoken = {tuple(words[span]) for words in texts for span in self.phrases.spans(words)}
        nothing = "No caption of the base has a word of vocabulary's list"
        self.objection = "" if spoken else nothing
        count = len(self.phrases.entries)
        unused = f"{count - len(spoken)} of {count} entries of the list are in no caption"
        return f"{unused} of the base" if len(spoken) < count else None

    def __call__(self, batch: CaptionBatch) -> Scores:
        return [self.score(caption) for caption in batch.captions]

    def score(self, caption: str) -> float:
        """The share of a caption."""
        words = self.listed(caption)
        return sum(words.values()) / max(self.enough, len(words))

    def parts(self, batch: CaptionBatch) -> Parts:
        """Per caption its different content words, 1 for those on the list."""
        return [[(w, float(on)) for w, on in self.listed(c).items()] for c in batch.captions]

    def listed(self, caption: str) -> dict[str, bool]:
        """The different content words of a caption, and whether each is on the list."""
        words, listed = lemmas_of(caption), dict[str, bool]()
        for word, inside in zip(words, self.phrases.covered(words), strict=True):
            if inside or word not in STOP:
                listed[word] = listed.get(word, False) or inside
        return listed


def check(reward: Vocabulary, right: CaptionBatch, wrong: CaptionBatch) -> float:
    """Words of the list alone, against one of them in a caption whose others are foreign."""
    captions = [" ".join(reward.entries[: max(2, reward.enough)])] * len(right.captions)
    foreign = [f"{reward.entries[0]} zzq zzr zzs" for _ in right.captions]
    return win_rate(reward, replace(right, captions=captions), foreign)
