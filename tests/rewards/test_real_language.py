"""Language rewards on real English: SmolLM2-135M in SmolVLM's architecture (tests/smollm.py).

Vision tower and connector are random, so nothing here says that a word is true of an image.
"""

import math
import random

import pytest
import torch
from PIL import Image

import rewards
from rewards import Bank
from rewards.lib.text import content_tokens
from vizer_rl.data.lazy import LazyImages
from vizer_rl.policy import captioner, load
from vizer_rl.scoring.clip import Encoders
from vizer_rl.scoring.reference_policy import ReferencePolicy
from vizer_rl.scoring.reward_functions import RewardFunctions

from .. import smollm

PROMPT = "Write one short sentence about a dog on a beach."
CAPTIONS = [
    "A man in a red jacket skis down a snowy hill.",
    "Two dogs are playing with a ball on the beach.",
    "A woman is riding a bicycle along a busy street.",
    "A plate of pasta with tomatoes and basil on a wooden table.",
    "A young boy holds an umbrella in the rain.",
    "The skateboarder jumps over a flight of stairs.",
    "A black cat sleeps on a sofa next to a window.",
    "Several sailboats are anchored in the harbour at sunset.",
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not smollm.here(), reason=f"SmolLM2-135M is not here: {smollm.LACKS}"),
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """Model, processor and reference policy."""
    folder = tmp_path_factory.mktemp("smollm") / "SmolLM2-Instruct"
    smollm.write(folder)
    model, processor = load.load_policy("smolvlm", str(folder), dtype="float32")
    reference = ReferencePolicy(
        model, processor, str(folder), prompt=PROMPT, instruct=True, max_new_tokens=40
    )
    return model, processor, reference


@pytest.fixture(scope="module")
def scoring(policy):
    model, processor, reference = policy
    encoders = Encoders("embedded:a", torch.device("cpu"), torch.float32)
    ends = load.eos_ids(model, processor)
    return RewardFunctions([], encoders, reference, ends, 1, PROMPT)


def picture(seed):
    """A picture of random colours in eight by eight squares."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(0, 256, (8, 8, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(colours.numpy()).resize((84, 84), Image.Resampling.NEAREST)


def batch(scoring, captions):
    """These captions, each of a picture of its own."""
    names = [f"picture-{k}" for k in range(len(captions))]
    images = LazyImages(lambda name: picture(int(name.split("-")[1])), names)
    ends = [[next(iter(scoring.eos_ids))]] * len(names)
    return scoring.batch(names, images, captions, ends)


def prepared(name, scoring, cache, **parameters):
    """A reward that has prepared itself on the natural captions."""
    sample = batch(scoring, CAPTIONS)
    reward = rewards.make(name, parameters)
    reward.prepare(Bank(sample.image_ids, sample.images, sample, cache))
    return reward


def shuffled(captions):
    """The same words, each caption's in another order."""
    rng = random.Random(0)
    words = [caption.rstrip(".").split() for caption in captions]
    return [" ".join(rng.sample(w, len(w))) + "." for w in words]


def test_natural_captions_are_likelier_than_shuffled_ones(scoring, tmp_path):
    fluency, mixed = prepared("fluency", scoring, tmp_path), shuffled(CAPTIONS)
    nats = zip(
        fluency.per_token(batch(scoring, CAPTIONS)),
        fluency.per_token(batch(scoring, mixed)),
        strict=True,
    )
    assert all(natural + 1 < other for natural, other in nats)
    rate = rewards.load_module("fluency").RATE
    assert rewards.win_rate(fluency, batch(scoring, CAPTIONS), mixed) >= rate
    assert max(fluency(batch(scoring, mixed))) == -1.0
    assert sum(fluency(batch(scoring, CAPTIONS))) > -2.0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ends_are_found(temperature, policy):
    model, processor, _ = policy
    torch.manual_seed(0)
    captions = captioner.caption(
        model,
        processor,
        [picture(k) for k in range(4)],
        PROMPT,
        max_new_tokens=60,
        temperature=temperature,
    )
    ends = load.eos_ids(model, processor)
    names = ["<|endoftext|>", "<|im_end|>", "<end_of_utterance>"]
    assert ends == processor.tokenizer.convert_tokens_to_ids(names)
    assert load.end_id(model, processor) == ends[1]
    assert sum(caption.ids[-1] in ends for caption in captions) >= 3
    for caption in captions:
        assert len(caption.text.split()) >= 4
        assert not any(token in ends for token in caption.ids[:-1])
        assert not any(name in caption.text for name in names)


def test_the_tokens_of_a_word_add_up_to_its_probability(policy):
    """By the chain rule, against one plain forward pass of the model over the whole text."""
    model, processor, reference = policy
    caption, image = "A skateboarder photographs wildflowers near Llanfairfechan.", picture(0)
    tokens = reference.tokens(caption)
    assert "".join(tokens) == caption
    words = " ".join(tokens[k].strip() for k in content_tokens(tokens))
    assert {"skate", "boarder"} <= set(words.split()) or "skateboard" not in words
    assert len(tokens) >= 6 + len(caption.split())
    content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    chat = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    inputs = processor(images=[[image]], text=[chat + caption], return_tensors="pt")
    with torch.no_grad():
        logps = model(**inputs).logits[0, :-1].log_softmax(-1)
    chosen = logps.gather(-1, inputs["input_ids"][0, 1:, None])[-len(tokens) :, 0]
    (result,) = reference.log_probs([caption], [image])
    assert torch.allclose(result, chosen, atol=1e-3)
    start = 0
    for word in caption.split():
        end = start
        while "".join(tokens[start:end]).strip() != word:
            end += 1
        whole = math.exp(result[start:end].sum())
        assert whole == pytest.approx(chosen[start:end].exp().prod().item(), rel=1e-2)
        assert whole <= result[start].exp() + 1e-6  # a word is no likelier than its beginning
        start = end
    assert start == len(tokens)


def test_visual_dependence_is_bounded_and_nothing_depends_on_an_empty_picture(scoring, tmp_path):
    reward = prepared("visual_dependence", scoring, tmp_path)
    sample = batch(scoring, CAPTIONS)
    parts = reward.parts(sample)
    nats = [value for tokens in parts for _, value in tokens]
    assert all(value == -1.0 or 0.0 <= value <= reward.max_nats for value in nats)
    assert any(value > 0 for value in nats)
    for caption, tokens in zip(CAPTIONS, parts, strict=True):
        pieces = scoring.policy.tokens(caption)
        assert [text for text, _ in tokens] == [pieces[k].strip() for k in content_tokens(pieces)]
    assert all(-1.0 <= score <= 1.0 for score in reward(sample))
    grey = [Image.new("RGB", (84, 84), (128, 128, 128))] * 2
    ends = sample.completion_ids[:2]
    empty = reward.parts(scoring.batch(["grey", "grey"], grey, CAPTIONS[:2], ends))
    assert {value for tokens in empty for _, value in tokens} <= {0.0, -1.0}


def test_the_policys_own_words_are_borne_out_and_others_are_not(scoring, tmp_path):
    reward = rewards.make("sample_support", {"samples": 8, "min_samples": 2})
    captions = ["A dog on a beach.", "An accountant reads invoices."]
    sample = batch(scoring, captions)
    reward.prepare(Bank(sample.image_ids, sample.images, sample, tmp_path))
    assert all(len(texts) == 12 for texts in reward.captions.values())
    assert reward(sample) == [1.0, 0.0], reward.captions
    scores = reward(batch(scoring, [reward.support("picture-0", "")[0], captions[1]]))
    assert 0.0 < scores[0] <= 1.0
