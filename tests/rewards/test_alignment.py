"""The mapper and its reward: learns to match, is refused when collapsed, is kept with the run."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from rewards import Bank, make, win_rate
from rewards.lib.mapper import Mapper
from vizer_rl.algorithms.alignment_loss import AlignmentLoss, pooled
from vizer_rl.config.load import load_run
from vizer_rl.data import scenes as draw
from vizer_rl.policy import load
from vizer_rl.policy.hidden_states import caption_tokens, token_states
from vizer_rl.scoring.reference_policy import ReferencePolicy

from ..conftest import REPO
from ..stubs import Stub, batch


@pytest.fixture
def sample():
    """Sixty captions whose states are a linear image of their pictures' features."""
    torch.manual_seed(0)
    vectors, turn = torch.randn(60, 6), torch.randn(6, 6)
    stub = Stub(
        {f"i{k}": vectors[k].tolist() for k in range(60)},
        {f"c{k}": (vectors[k] @ turn).tolist() for k in range(60)},
    )
    return batch(stub, [(f"i{k}", f"c{k}") for k in range(60)])


def bank(sample, folder):
    return Bank(sample.image_ids, sample.images, sample, folder)


def test_it_learns_to_match_and_reuses_its_cache(sample, tmp_path, monkeypatch):
    reward = make("alignment", {})
    reward.prepare(bank(sample, tmp_path / "cache"))
    wrong = replace(sample, captions=[*sample.captions[1:], sample.captions[0]])
    assert win_rate(reward, sample, wrong) > 0.9
    notes = reward.notes()
    assert notes["matching"] > 0.8  # on pairs it was not trained on
    assert 0.3 < notes["variance"] < 2
    assert "variance" not in reward.notes()  # nothing was scored since
    monkeypatch.setattr(Mapper, "fit", lambda *_: pytest.fail("the mapper was trained twice"))
    again = make("alignment", {})
    again.prepare(bank(sample, tmp_path / "cache"))
    assert list(again(sample)) == list(reward(sample))
    assert again.matching == reward.matching


def test_the_mapper_is_saved_with_the_run(sample, tmp_path):
    reward = make("alignment", {"steps": 50})
    reward.prepare(bank(sample, tmp_path / "cache"))
    reward.save(tmp_path / "run")
    saved = torch.load(tmp_path / "run" / "alignment.pt", weights_only=True)
    assert (saved["reading"], saved["width"]) == ("text", 256)
    mapper = Mapper(6, 6, 256)
    mapper.load_state_dict(saved["mapper"])
    states = sample.policy.caption_states(sample.captions)
    features = sample.policy.image_features(sample.image_ids, sample.images)
    assert torch.equal(mapper.cosine(states, features), reward.mapper.cosine(states, features))


def test_captions_that_all_say_the_same_are_refused_in_one_sentence(sample, tmp_path):
    same = replace(sample, captions=["c0"] * 60)
    with pytest.raises(ValueError, match=r"the mapper has collapsed: .* 60 images") as caught:
        make("alignment", {"steps": 20}).prepare(bank(same, tmp_path))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir()), "a collapsed mapper is not kept"
    few = replace(sample, image_ids=["i0"] * 3, captions=["c0"] * 3, images=[None] * 3)
    with pytest.raises(ValueError, match="needs 16 captions, but there are 3"):
        make("alignment", {}).prepare(bank(few, tmp_path))


def test_the_reading_decides_whether_the_caption_is_read_with_its_image(sample, tmp_path):
    images_read = []
    original = sample.policy.caption_states

    def caption_states(captions, images=None, end=True):
        images_read.append(images)
        return original(captions)

    sample.policy.caption_states = caption_states
    make("alignment", {"steps": 2, "reading": "text"}).prepare(bank(sample, tmp_path))
    make("alignment", {"steps": 2, "reading": "image"}).prepare(bank(sample, tmp_path))
    assert images_read == [None, sample.images]
    assert len(list(tmp_path.iterdir())) == 2, "each reading has its own mapper in the cache"


def test_a_mapper_that_vizer_kept_is_given_the_states_it_was_trained_on(tmp_path):
    run = load_run(REPO / "experiments/smolvlm.yaml", ["profile=scenes"])
    model, processor = load.load_policy("smolvlm", "embedded", dtype="float32")
    prompt = run.data.prompt
    policy = ReferencePolicy(model, processor, "embedded", prompt=prompt)
    scenes = [draw.sample(4_000_000 + k) for k in range(4)]
    images = [draw.render(scene) for scene in scenes]
    captions = [scenes[0].caption, "", "a heart", scenes[3].caption]
    rows = replace(
        batch(None, [(str(k), caption) for k, caption in enumerate(captions)]),
        images=images,
        policy=policy,
        prompt=prompt,
    )
    features = policy.image_features(rows.image_ids, images)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], r=2))  # as in training
    completions = [caption_tokens(model, processor, prompt, caption) for caption in captions]
    completions[1] = completions[1][-1:]  # an empty one as the policy says it: its end alone
    with torch.no_grad():
        read = token_states(adapted, processor, images, prompt, completions)
        states = pooled(adapted, *read, "loose", "mean")
    mapper = Mapper(states.shape[1], features.shape[1], 16)
    about = {"matching": 0.5, "reading": "loose", "pooling": "mean", "target": "tower"}
    torch.save({"mapper": mapper.state_dict(), **about}, tmp_path / "mapper.pt")
    reward = make("alignment", {"mapper": str(tmp_path / "mapper.pt")})
    reward.prepare(bank(rows, tmp_path))
    torch.testing.assert_close(reward._states(rows), states, atol=1e-5, rtol=0)
    ended = policy.caption_states(captions, images)
    assert (ended - states).abs().amax(1)[[0, 2, 3]].min() > 0.01, "the end's state is not in it"
    torch.testing.assert_close(ended[1], states[1], atol=1e-5, rtol=0)
    loss = AlignmentLoss(mapper, lambda *_: features, "loose", "mean")
    inputs = {"completion_mask": read[1], "image_features": features}
    _, metrics = loss.batch_loss(adapted, read[0], inputs)
    assert sum(reward(rows)) / 4 == pytest.approx(metrics["cosine"], abs=0.0051)
    reward.save(tmp_path / "run")  # kept once more, it is still read so
    again = make("alignment", {"mapper": str(tmp_path / "run" / "alignment.pt")})
    again.prepare(bank(rows, tmp_path))
    assert torch.equal(again._states(rows), reward._states(rows))


def test_variance_and_matching_by_hand():
    mapper = Mapper(2, 2)
    mapper.layers = torch.nn.Identity()
    axes, one = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert mapper.variance(axes, axes) == pytest.approx(1.0)
    assert mapper.variance(one, axes) == pytest.approx(0.0)
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert mapper.variance(axes, opposite) == pytest.approx(0.5)  # 1 - |(.5, .5)|² against 1 - 0
    assert mapper.matching(axes, axes) == 1.0
    assert mapper.matching(axes, axes.flip(0)) == 0.0
    assert mapper.matching(one, one) == 0.5
