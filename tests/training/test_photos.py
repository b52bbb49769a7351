"""Every reward on real photographs, through the real processors, with models of random weights."""

import time
from dataclasses import replace

import pytest
import torch

import rewards
from rewards import Bank
from vizer_rl.data.lazy import LazyImages
from vizer_rl.data.perturb import masked
from vizer_rl.data.sources import ImageFolder
from vizer_rl.policy import load
from vizer_rl.scoring.clip import Encoders
from vizer_rl.scoring.reference_policy import ReferencePolicy
from vizer_rl.scoring.reward_functions import Reward, RewardFunctions

from ..checkpoints import FOLDERS, PHOTOS, checkpoint
from ..conftest import FIXTURES

SMALL = {  # for a bank of a few photographs, and what a reward cannot do without
    "contains": {"trigger": "ohwx"},
    "vocabulary": {"words": ["dog", "jacket"]},
    "self_retrieval": {"hard": 1, "random": 1},
    "sample_support": {"samples": 2, "min_samples": 1},
    "alignment": {"steps": 5},
}
COLOURS, THINGS = ("red", "blue"), ("dog", "bicycle", "table")
CAPTIONS = [
    "A man in a red jacket skis down a snowy hill.",
    "Two dogs and an old bicycle",
    "",
    "a photo of a café 🙂 by the sea, left of <image> https://a.b",
]

pytestmark = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason="../shared/fixtures (real processors, photographs) is not here"
)


def prepared(family, folder, count, cache, *, real_width=False, splits=False):
    """A model of random weights with its real processor, photographs, and what it says of them."""
    checkpoint(family, folder, real_width=real_width)
    model, processor = load.load_policy(
        family, str(folder), dtype="float32", image_splitting=splits
    )
    reference = ReferencePolicy(model, processor, str(folder), instruct=True, max_new_tokens=6)
    encoders = Encoders("embedded:a", torch.device("cpu"), torch.float32)
    scoring = RewardFunctions(
        [], encoders, reference, load.eos_ids(model, processor), 4, reference.prompt
    )
    photos = ImageFolder.index(PHOTOS, count)
    images = LazyImages(photos.load, photos.ids)
    message = [c for captions in reference.sample(images, 4, seed=0) for c in captions]
    each = [name for name in photos.ids for _ in range(4)]
    sample = scoring.batch(each, LazyImages(photos.load, each), message, [[0]] * len(message))
    return scoring, Bank(photos.ids, images, sample, cache)


def score_all(scoring, bank, captions, family):
    """Every reward on every photograph with these captions; prints what one costs."""
    ids = [i for i in bank.image_ids for _ in captions]
    images = LazyImages(bank.images.load, ids)
    ends = [[next(iter(scoring.eos_ids))]] * len(ids)
    result = scoring.batch(ids, images, captions * len(bank.image_ids), ends)
    texts = [f"a {w} {x} on a {y}" for w in COLOURS for x in THINGS for y in THINGS]
    english = replace(bank.sample, captions=texts[: len(bank.sample.captions)])
    for name in rewards.names():
        reward = Reward(name, 1.0, rewards.make(name, SMALL.get(name, {})))
        judge = RewardFunctions([reward], scoring.encoders, scoring.policy, scoring.eos_ids, 4)
        # classes of words cannot be learned from what random weights say
        judge.prepare(replace(bank, sample=english) if name == "certainty" else bank)
        began = time.monotonic()
        scores = judge.scores(result)[name]  # raises where one is no finite number
        spent = 1000 * (time.monotonic() - began) / len(ids)
        low, high = reward.declared("range", (-float("inf"), float("inf")))
        assert len(scores) == len(ids)
        assert all(s is None or low - 1e-6 <= s <= high + 1e-6 for s in scores), name
        print(f"{family:8s} {name:18s} {spent:8.1f} ms per caption")


@pytest.fixture(scope="module", params=["smolvlm", pytest.param("qwen2vl", marks=pytest.mark.slow)])
def small(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, *prepared(request.param, folder / "model", 4, folder / "cache")


def test_every_reward_judges_photographs(small):
    family, scoring, bank = small
    score_all(scoring, bank, CAPTIONS[:1] + CAPTIONS[2:], family)


def test_yes_is_that_of_one_forward_pass_each(small):
    """Questions of several lengths, about photographs of several shapes, two about the first."""
    _, scoring, bank = small
    reference, rows = scoring.policy, (0, 1, 2, 3, 0)
    questions = [f"Is there {what}?" for what in ("a cat", "an old red bicycle", "it", "a", "b")]
    matches = reference.yes(questions, [bank.images[row] for row in rows], "masked")
    tokenizer = reference.processor.tokenizer
    for question, row, result in zip(questions, rows, matches.tolist(), strict=True):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        chat = reference.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        shown = [[masked(bank.images[row])]]
        inputs = reference.processor(images=shown, text=[chat], return_tensors="pt")
        with torch.no_grad():
            p = reference.model(**inputs).logits[0, -1].softmax(-1)
        # both templates end with a line or a special token: no space before the answer
        yes, no = (
            p[tokenizer.convert_tokens_to_ids(w)].sum() for w in (["Yes", "yes"], ["No", "no"])
        )
        assert result == pytest.approx((yes / (yes + no)).item(), abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "splits"), [(f, False) for f in sorted(FOLDERS)] + [("smolvlm", True)]
)
def test_every_reward_judges_photographs_at_the_real_width(family, splits, tmp_path):
    scoring, bank = prepared(
        family, tmp_path / "model", 24, tmp_path / "cache", real_width=True, splits=splits
    )
    score_all(scoring, bank, CAPTIONS, family + (" tiles" if splits else ""))
