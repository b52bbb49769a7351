"""The mapper and its reward: learns to match, is refused when collapsed, is kept with the run."""

from dataclasses import replace

import pytest
import torch

from rewards import Bank, make, win_rate
from rewards.lib.mapper import Mapper

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
    seen = []
    original = sample.policy.caption_states

    def caption_states(captions, images=None):
        seen.append(images)
        return original(captions)

    sample.policy.caption_states = caption_states
    make("alignment", {"steps": 2, "reading": "text"}).prepare(bank(sample, tmp_path))
    make("alignment", {"steps": 2, "reading": "image"}).prepare(bank(sample, tmp_path))
    assert seen == [None, sample.images]
    assert len(list(tmp_path.iterdir())) == 2, "each reading has its own mapper in the cache"


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
