"""Three-way picks by hand, the words that a reward prefers, and which judge is held to which."""

import numpy as np
import pytest

from vizer_rl.audit.attack_pairs import AttackPair
from vizer_rl.audit.attack_scores import AttackScores
from vizer_rl.audit.attacks import ATTACKS
from vizer_rl.audit.compositions import ALL_ATTACKS
from vizer_rl.audit.favourites import favourites, new_word
from vizer_rl.audit.picks import one_of_four, picks, signs, weakest

NAN = float("nan")
BY_NAME = {attack.name: attack for attack in ALL_ATTACKS}


def pair(name, n, better="a red star", worse="a blue star"):
    return AttackPair(BY_NAME[name], n, better, worse)


def test_a_score_is_higher_ties_up_to_rounding_or_is_missing():
    better, worse = np.array([1.0, 0.5, 0.2 + 1e-8, NAN]), np.array([0.0, 0.9, 0.2, 1.0])
    np.testing.assert_equal(signs(better, worse), [1, -1, 0, NAN])
    np.testing.assert_equal(signs(np.ones(2), np.ones(2)), [0, 0])
    np.testing.assert_equal(signs(np.array([NAN]), np.array([NAN])), [NAN])
    # what is rounding goes by the spread of the scores themselves
    np.testing.assert_equal(signs(better * 1e-9, worse * 1e-9), [1, -1, 0, NAN])


def test_a_tie_is_neither_right_nor_wrong():
    # image 0: right, tied; image 1: wrong; image 2 has no score
    result = picks(np.array([1.0, 0, -1, NAN]), [0, 0, 1, 2])
    assert (result["value"], result["tied"], result["wrong"]["value"]) == (0.25, 0.25, 0.5)
    assert (result["low"], result["high"]) == (0.0, 0.5)
    assert picks(np.array([NAN]), [0]) is None
    assert picks(np.array([]), []) is None


def test_one_of_four_is_exact_over_the_choices_of_three():
    # of 5 attacked captions the original beats 4: C(4, 3) of C(5, 3) choices hold those alone
    result = one_of_four(np.array([1.0, 1, 1, 1, -1]), [0] * 5)
    assert result["value"] == pytest.approx(0.4)
    assert result["wrong"]["value"] == pytest.approx(0.6)
    tied = one_of_four(np.array([1.0, 1, 1, 0]), [3] * 4)
    assert (tied["value"], tied["tied"], tied["wrong"]["value"]) == (0.25, 0.75, 0.0)
    assert one_of_four(np.array([1.0, 1, NAN]), [0] * 3) is None, "two are too few"


def test_against_all_counts_the_lowest_of_images_with_all():
    lowest, images = weakest(np.array([1.0, 1, 1, 0, -1, 1, 1]), [0, 0, 1, 1, 2, 2, 5], 2)
    assert (lowest.tolist(), images) == ([1, 0, -1], [0, 1, 2])


def test_the_new_word_of_an_attacked_caption():
    assert new_word(pair("attribute swapped", 0, "an old car", "a red car")) == "red"
    assert new_word(pair("object added", 0, "a car", "a car and an owl.")) == "owl"
    assert new_word(pair("shuffled words", 0, "a car", "car a")) == ""


def test_a_favourite_word_wins_where_it_replaces_and_its_proof_is_where_it_is_added():
    swaps = [pair("attribute swapped", n) for n in range(9)]
    swaps += [pair("attribute swapped", n, worse="a green star") for n in range(9)]
    added = [pair("attribute added", n, "a star", "a blue star") for n in range(8)]
    wrong, right = [-1.0] * 9, [1.0] * 9
    result = favourites([*swaps, *added], np.array([*wrong, *right, *[-1.0] * 7, 1.0]))
    assert list(result["words"]) == ["blue"]
    assert result["added"]["wrong"]["value"] == 7 / 8
    few = favourites([*swaps, *added[:7]], np.array([*wrong, *right, *[-1.0] * 7]))
    assert list(few["words"]) == ["blue"]
    assert few["added"] is None
    seven = favourites(swaps[:7], np.array(wrong[:7]))
    assert seven == {"words": {}, "added": None}


class Written(AttackScores):
    """Attack scores whose signs are written down."""

    def __init__(self, names, reward, **judge_signs):
        self.judges = type("Names", (), {"names": names})
        self.pairs = [pair("noun swapped", n) for n in range(len(reward))]
        self.images = [p.n for p in self.pairs]
        self.signs = {"sum": np.array(reward, float)}
        self.judge_signs = {name: np.array(row, float) for name, row in judge_signs.items()}


def test_each_judge_is_held_to_those_that_learned_apart():
    scores = Written(
        ["clip_similarity"],
        reward=[1, -1, 0, -1, 1],
        heldout=[1, 1, 1, -1, 1],
        policy=[1, 1, 1, 1, 0],
        certainty=[1, 1, 0, 1, -1],
    )
    trust = scores.trust()["noun"]
    # the reward: pairs 0, 1 and 2, where the three agree as far as they have a view
    assert trust["reward"]["value"] == pytest.approx(1 / 3)
    assert trust["reward"]["tied"] == pytest.approx(1 / 3)
    # the policy's two: where reward and held-out scorer agree: 0, 2 (the reward ties), 3 and 4
    assert trust["policy"]["value"] == pytest.approx(2 / 4)
    assert trust["certainty"]["value"] == pytest.approx(1 / 4)
    assert trust["certainty"]["wrong"]["value"] == pytest.approx(2 / 4)
    assert scores.confirmed.tolist() == [True, True, True, False, False]


def test_certainty_is_no_judge_where_it_is_a_reward_or_cannot_judge():
    signs = {"heldout": [1, 1], "policy": [1, 1], "certainty": [-1, 1]}
    assert Written(["clip_similarity"], [1, 1], **signs).confirmed.tolist() == [False, True]
    assert Written(["certainty"], [1, 1], **signs).confirmed.tolist() == [True, True]
    absent = Written(["clip_similarity"], [1, -1], **(signs | {"certainty": [NAN, NAN]}))
    assert absent.confirmed.tolist() == [True, True]
    trust = absent.trust()["noun"]
    assert trust["certainty"] is None
    assert trust["reward"]["value"] == 0.5


def test_what_is_not_contested_counts_whoever_prefers_it():
    scores = Written(["x"], [1, 1], heldout=[-1, 1], policy=[NAN, NAN], certainty=[-1, -1])
    scores.pairs[0] = pair("shuffled words", 0)
    assert scores.confirmed.tolist() == [True, False]


def test_the_compositions_are_part_of_the_audit():
    assert len(ALL_ATTACKS) == len(ATTACKS) + 7
    assert len({attack.name for attack in ALL_ATTACKS}) == len(ALL_ATTACKS)
