"""Unsure words of a caption are those of the reward `certainty`: rivals say nothing against one."""

from types import SimpleNamespace

import torch

from rewards.lib.lexicon import Lexicon
from rewards.lib.word_classes import WordClasses
from vizer_rl.evaluation.captioning.unsure_words import UnsureWords

CAPTIONS = [
    *("a red circle above a blue square", "an orange circle left of a red square"),
    *("two red circles", "three blue squares", "a square right of an orange circle"),
    *("a blue circle below a red square", "Two orange squares"),
]


def test_a_relation_is_held_against_its_contrary_alone():
    def word_probs(captions, places_N, images):
        """.42 of the relation, .08 of its contrary, the rest of the others; .9 of each word."""
        return [[sure(place) for place in row] for row in places_N]

    def sure(place):
        count, others = len(place.prefixes) - 1, len(place.alternatives)
        if place.word != "above":
            return torch.tensor([0.9, *[0.1 / count] * count])
        return torch.tensor([0.42, *[0.08] * others, *[0.5 / (count - others)] * (count - others)])

    unsure = UnsureWords(
        SimpleNamespace(word_probs=word_probs), WordClasses(Lexicon.learn(CAPTIONS)), at_least=0.85
    )
    (words,) = unsure([CAPTIONS[0]], [None])
    assert [(word["word"], word["certainty"]) for word in words] == [("above", 0.84)]
    unsure.at_least = 0.8
    assert unsure([CAPTIONS[0]], [None]) == [[]]
