"""How sure the policy is of a word: against one pass for each word of its class."""

import pytest
import torch

from rewards.lib.word_classes import Place
from vizer_rl.assets import POLICIES
from vizer_rl.data import scenes as draw
from vizer_rl.policy import load
from vizer_rl.policy.families import FAMILIES
from vizer_rl.scoring import word_certainty
from vizer_rl.scoring.reference_policy import ReferencePolicy
from vizer_rl.scoring.word_certainty import WordCertainty, going_on


@pytest.fixture(scope="module", params=sorted(POLICIES))
def policy(request):
    model, processor = load.load_policy(request.param, "embedded", dtype="float32")
    return ReferencePolicy(model, processor, "embedded", family=FAMILIES[request.param])


@pytest.fixture(scope="module")
def images():
    return [draw.render(draw.sample(4_000_000 + k)) for k in range(2)]


def place(*prefixes):
    """A place by what the caption is up to the end of its word, the caption's own first."""
    return Place(0, 0, "", tuple(prefixes[1:]), (), tuple(prefixes))


# one token each; several; one that another goes on with; another article
CAPTIONS = ["a large red circle and a star", "two redder stars"]
PLACES = [
    [
        place("a large", "a small"),
        place("a large red", "a large blue", "a large zebra", "a large redder"),
        place("a large red circle", "a large red circles", "a large red cog"),
        place("a large red circle and a", "a large red circle and an"),
    ],
    [place("two redder", "two red", "two reds"), place("two redder stars", "two redder starlings")],
]


def naive(policy, caption, places, image, view):
    """p of each word as anyone would write it: a pass for each prefix, all of its tokens."""

    def probability(prefix):
        ids = policy.token_ids(prefix)
        logps = policy.read_states(
            [ids], [image], view, lambda hidden, _: policy.model.get_output_embeddings()(hidden)
        )[0]
        p = logps.double().softmax(-1)
        tokens = torch.stack([p[t, token] for t, token in enumerate(ids)]).prod()
        texts = [policy.processor.tokenizer.decode([*ids, k]) for k in range(p.shape[-1])]
        before = policy.processor.tokenizer.decode(ids)
        special = policy.processor.tokenizer.all_special_ids
        more = [
            k
            for k, text in enumerate(texts)
            if k not in special and text.startswith(before) and text[len(before) :][:1].isalnum()
        ]
        return tokens * (1 - p[-1, more].sum())

    words = [torch.stack([probability(prefix) for prefix in p.prefixes]) for p in places]
    return [w / w.sum() for w in words]


@pytest.mark.parametrize("view", ["image", "blank"])
def test_certainty_equals_a_pass_for_each_word(policy, images, view, monkeypatch):
    monkeypatch.setattr(word_certainty, "NEGLIGIBLE", 1e-30)
    certainty = WordCertainty(policy)(CAPTIONS, PLACES, images, view)
    for row, caption, places, image in zip(certainty, CAPTIONS, PLACES, images, strict=True):
        for value, expected in zip(row, naive(policy, caption, places, image, view), strict=True):
            assert value.sum() == pytest.approx(1.0)
            torch.testing.assert_close(value.double(), expected, rtol=1e-3, atol=1e-6)


def test_what_cannot_matter_is_not_read(policy, images, monkeypatch):
    passes = []
    read = policy.read_states

    def counted(completions, *args):
        passes.append(len(completions))
        return read(completions, *args)

    monkeypatch.setattr(policy, "read_states", counted)
    quick = WordCertainty(policy)(CAPTIONS, PLACES, images)
    monkeypatch.setattr(word_certainty, "NEGLIGIBLE", 1e-30)
    exact = WordCertainty(policy)(CAPTIONS, PLACES, images)
    assert passes[0] == passes[2] == 2
    assert passes[1] < passes[3]
    for row, others in zip(quick, exact, strict=True):
        for a, b in zip(row, others, strict=True):
            assert (a - b).abs().max() <= 1e-3 * len(b)


def test_a_letter_goes_on_with_a_word_and_a_new_word_does_not(policy):
    tokenizer = policy.processor.tokenizer
    tokens = set(going_on(tokenizer).tolist())
    letter, word, point = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("s", " red", ".")
    )
    assert letter[0] in tokens
    assert word[0] not in tokens
    assert point[0] not in tokens
    assert not tokens & set(tokenizer.all_special_ids)


def test_no_place_is_no_number(policy, images):
    assert WordCertainty(policy)(["untitled"], [[]], images[:1]) == [[]]


def test_captions_that_share_the_pass_of_their_image_have_the_states_of_rows_of_their_own(
    policy, images
):
    completions = [policy.token_ids(c) for c in (*CAPTIONS, "", CAPTIONS[0])]
    shown = [images[0], images[1], images[1], images[1]]
    packed, single = (
        policy.read_states(completions, shown, "image", lambda hidden, ids: hidden, packed=flag)
        for flag in (True, False)
    )
    for a, b, ids in zip(packed, single, completions, strict=True):
        assert len(a) == len(b) == len(ids) + 1
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_tokens_word_by_word_are_those_of_the_caption(policy):
    certainty = WordCertainty(policy)
    for caption in (*CAPTIONS, "", "A dog's red-and-blue ball, no 12!", "café 🙂 <|im_end|>"):
        single = " ".join(caption.split())
        assert certainty.token_ids(caption) == policy.token_ids(single)


def test_offered_states_are_read_in_place_of_a_pass(policy, images, monkeypatch):
    own = policy.word_probs(CAPTIONS, PLACES, images)
    completions = [[*policy.word_probs.token_ids(c), 0] for c in CAPTIONS]  # with an end
    states = policy.read_states(completions, images, "image", lambda h, _: h[:-1])
    padded = torch.nn.utils.rnn.pad_sequence(states, batch_first=True)
    policy.offered.replace(images, completions, padded)
    try:
        found = policy.offered.find(images, [ids[:-1] for ids in completions])
        assert [len(hidden) for hidden in found] == [len(ids) for ids in completions]
        assert policy.offered.find(images[::-1], [completions[0][:-1]]) == [None], "another image"
        offered = policy.word_probs(CAPTIONS, PLACES, images)
        for a, b in zip(own, offered, strict=True):
            for p, q in zip(a, b, strict=True):
                torch.testing.assert_close(p, q, atol=1e-4, rtol=0.0)
        passes = []
        monkeypatch.setattr(
            "vizer_rl.scoring.reference_policy.hidden_states",
            lambda *args: passes.append(len(args[3])) or iter(()),
        )
        policy.log_probs(CAPTIONS[:1], images[:1])
        assert passes == [0]
    finally:
        policy.offered.replace([], [], None)
    assert policy.offered.find(images, completions) == [None] * 2


@pytest.fixture
def passes(policy, monkeypatch):
    """Positions of each pass of the language model, padding included."""
    positions = []
    forward = policy.model.model.forward

    def counted(*args, **kwargs):
        positions.append(kwargs["input_ids"].numel())
        return forward(*args, **kwargs)

    monkeypatch.setattr(policy.model.model, "forward", counted)
    return positions


def test_a_prompt_is_read_in_one_pass_and_a_prefix_is_one_position(policy, passes):
    image = draw.render(draw.sample(4_100_000))
    captions = ["a red circle", "a red star", "a red circle"]
    ids = [policy.word_probs.token_ids(caption) for caption in captions]
    nodes = 1 + len({tuple(row[:n]) for row in ids for n in range(1, len(row) + 1)})

    def read():
        return policy.read_states(ids, [image] * 3, "image", lambda hidden, _: hidden, True)

    first, prompt = (
        read(),
        len(policy._packed.prompts.prompts([image], [policy._chat(policy.prompt)])[0].ids),
    )
    again = read()
    assert len(passes) == 2
    assert 0 <= passes[0] - (prompt - 1 + nodes) < 8, "padded to a multiple of 8"
    assert 0 <= passes[1] - nodes < 8, "keys and values of the prompt are kept"
    for a, b in zip(first, again, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_offered_captions_need_no_pass_but_for_alternatives_of_several_tokens(
    policy, images, passes, monkeypatch
):
    monkeypatch.setattr(word_certainty, "NEGLIGIBLE", 1e-30)
    quick = WordCertainty(policy, exact=False)
    caption = "a large red circle"
    ids = [*quick.token_ids(caption), 0]
    (states,) = policy.read_states([ids], images[:1], "image", lambda h, _: h[:-1])
    policy.offered.replace(images[:1], [ids], states[None])
    passes.clear()
    try:
        quick(
            [caption], [[place("a large", "a small"), place("a large red", "a large blue")]], images
        )
        assert passes == []
        quick([caption], [[place("a large", "an orange", "a small")]], images)
        assert len(passes) == 1
    finally:
        policy.offered.replace([], [], None)
