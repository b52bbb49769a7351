"""Word classes by part of speech: what else the policy's captions have of the same tag.

For real text, whose classes are too large to be learned from contexts. A word has the tag that it
has most often in the captions; one that they have not, the tag that it has behind "a".
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from rewards.lib.lexicon import MIN_CAPTIONS, Lexicon, core, plural, words_of
from rewards.lib.text import spacy_tags, tagged_phrases
from rewards.lib.word_classes import NUMBERS, WordClasses

MAX_OTHERS = 64  # the most frequent ones of a class


class TaggedWords(WordClasses):
    """Nouns and adjectives, with spaCy also verbs and adverbs; each form is a class of its own."""

    def __init__(self, captions: Sequence[str], tagger: str) -> None:
        """tagger: "builtin" or "spacy"; raises Missing where that is not installed."""
        super().__init__(Lexicon.learn(captions))
        self.tagger = tagger
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        holding = Counter[str]()
        for caption in captions:
            tags = self._tags(caption)
            holding.update(tags.keys())
            for word, tag in tags.items():
                counts[word][tag] += 1
        self.tags = {word: tag.most_common(1)[0][0] for word, tag in counts.items()}
        self.classes: dict[str, list[str]] = defaultdict(list)
        for word, count in sorted(holding.items(), key=lambda item: (-item[1], item[0])):
            if count >= MIN_CAPTIONS and len(self.classes[self.tags[word]]) <= MAX_OTHERS:
                self.classes[self.tags[word]].append(word)

    def indices(self, caption: str) -> set[int]:
        """Indices of the words that have a tag."""
        words = [core(word) for word in words_of(caption)]
        return {i for i, word in enumerate(words) if self._tag(word)}

    def others(self, word: str) -> list[str]:
        """The other words of its tag, the most frequent first."""
        return [w for w in self.classes.get(self._tag(word), []) if w != word]

    def _tag(self, word: str) -> str:
        if word not in self.tags:
            self.tags[word] = self._tags(f"a {word}").get(word, "")
        return self.tags[word]

    def _tags(self, caption: str) -> dict[str, str]:
        if self.tagger == "spacy":
            tags = spacy_tags(caption)
        else:
            tags = {}
            for *attributes, noun in tagged_phrases(caption):
                tags |= dict.fromkeys(attributes, "JJ")
                tags[noun] = "NNS" if plural(noun) else "NN"
        return {word: tag for word, tag in tags.items() if word.isalpha() and word not in NUMBERS}
