"""Features of images: the same numbers cold, warm and from disk, and never a stale one."""

import numpy as np
import pytest
import torch
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader

from vizer_rl.policy.families import FAMILIES
from vizer_rl.policy.shared_prefix import vision_cache
from vizer_rl.policy.shared_prefix.collator import Collator
from vizer_rl.policy.shared_prefix.rollout import Rollout
from vizer_rl.policy.shared_prefix.vision_cache import VisionCache
from vizer_rl.policy.vision import process_images

from .test_sampler import image_prompts
from .test_shared_prefix import load_case, rows_of


def same(a, b):
    return all(
        torch.equal(x.features, y.features)
        and torch.equal(x.ids, y.ids)
        and torch.equal(x.positions, y.positions)
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("family", ["smolvlm", "qwen2vl"])
def test_cold_warm_and_disk_give_the_same_numbers(family, tmp_path, monkeypatch):
    model, processor = load_case(family, True)
    images, texts = image_prompts(model, processor, True)
    cache = VisionCache(model, processor, FAMILIES[family], folder=tmp_path)
    cold = cache.prompts(images, texts)
    assert cache.hit_rate() == 0
    warm = cache.prompts(images, texts)
    assert cache.hit_rate() == 1
    monkeypatch.setattr(vision_cache, "process_images", None)  # an image that is known is not read
    anew = VisionCache(model, processor, FAMILIES[family], folder=tmp_path)
    disk = anew.prompts(images, texts)
    assert anew.hit_rate() == 1
    assert same(cold, warm)
    assert same(cold, disk)
    grid = cold[0].vision.get("image_grid_thw")
    image_tokens = (cold[0].ids == model.config.image_token_id).sum()
    assert len(cold[0].features) == image_tokens, grid


def test_a_changed_setting_or_weight_or_prompt_never_meets_an_old_entry(tmp_path):
    model, processor = load_case("smolvlm", False)
    images, texts = image_prompts(model, processor, False)
    cache = VisionCache(model, processor, FAMILIES["smolvlm"], folder=tmp_path)
    first = cache.prompts(images, texts)
    processor.image_processor.image_mean = [0.4, 0.5, 0.5]
    cache.hit_rate()
    second = cache.prompts(images, texts)
    assert cache.hit_rate() == 0
    assert not torch.equal(first[0].features, second[0].features)
    with torch.no_grad():
        next(model.model.connector.parameters()).mul_(1.1)
    third = cache.prompts(images, texts)
    assert cache.hit_rate() == 0
    assert not torch.equal(second[0].features, third[0].features)
    other = cache.prompts(images, [text.replace("Describe", "A") for text in texts])
    assert cache.hit_rate() == 0
    assert not torch.equal(other[0].ids, third[0].ids)


def test_memory_is_bounded_and_forgets_the_oldest():
    model, processor = load_case("smolvlm", False)
    images, texts = image_prompts(model, processor, False)
    one = VisionCache(model, processor, FAMILIES["smolvlm"]).prompts(images[:1], texts[:1])[0]
    size = sum(x.nbytes for x in (one.ids, one.positions, one.features))
    cache = VisionCache(model, processor, FAMILIES["smolvlm"], memory=2 * size)
    for n in (0, 1, 2):
        cache.prompts(images[n : n + 1], texts[:1])
    cache.hit_rate()
    cache.prompts(images[1:2], texts[:1])
    assert cache.hit_rate() == 1
    cache.prompts(images[:1], texts[:1])
    assert cache.hit_rate() == 0


def test_a_trainable_tower_keeps_pixels_not_features(tmp_path):
    model, processor = load_case("smolvlm", False)
    model.model.vision_model.requires_grad_(True)
    images, texts = image_prompts(model, processor, False)
    cache = VisionCache(model, processor, FAMILIES["smolvlm"], folder=tmp_path)
    prompts = cache.prompts(images, texts)
    assert prompts[0].features is None
    assert prompts[0].vision["pixel_values"].shape[:2] == (1, 1)
    assert not list(tmp_path.iterdir())
    cache.prompts(images, texts)
    assert cache.hit_rate() == 0.5


def test_workers_read_ahead_each_image_once(monkeypatch):
    model, processor = load_case("qwen2vl", True)
    rows = rows_of(processor, True)
    reader = Collator(processor, None, {})
    batch = next(iter(DataLoader(rows, len(rows), collate_fn=reader, num_workers=1)))
    assert len({id(row["image_inputs"]) for row in batch}) == 3
    batch = send_to_device(batch, "meta")  # as accelerate does with what a loader gives
    monkeypatch.setattr(vision_cache, "process_images", None)
    cache = VisionCache(model, processor, FAMILIES["qwen2vl"])
    ahead = Rollout(batch)
    ahead.encode_prompts(cache, [reader.text(row["prompt"]) for row in batch], model.device)
    monkeypatch.undo()
    here = Rollout(rows)
    here.encode_prompts(
        VisionCache(model, processor, FAMILIES["qwen2vl"]),
        [reader.text(row["prompt"]) for row in rows],
        model.device,
    )
    assert ahead.prompt_idx.tolist() == here.prompt_idx.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert same(ahead.prompts, here.prompts)


class Arrays:
    """A processor that gives NumPy arrays, as with torchvision before 0.27."""

    def __init__(self, processor):
        self.processor = processor

    def __getattr__(self, name):
        return getattr(self.processor, name)

    def __call__(self, **kwargs):
        inputs = self.processor(**kwargs)
        pixels = {k: [np.asarray(x) for x in v] for k, v in inputs.items() if "pixel" in k}
        return {**inputs, **pixels}


def test_a_processor_that_gives_arrays_gives_the_same_rows():
    model, processor = load_case("smolvlm", True)
    images, texts = image_prompts(model, processor, True)
    rows, others = (process_images(p, images, texts) for p in (processor, Arrays(processor)))
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys() >= {"pixel_values", "pixel_attention_mask"}
        assert all(torch.equal(value, other[name]) for name, value in row.items())
