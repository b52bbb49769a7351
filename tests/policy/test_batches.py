"""Batches of captions bounded by memory: the arithmetic by hand, and captions of split batches."""

from contextlib import nullcontext
from itertools import accumulate
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from vizer_rl.assets import POLICIES
from vizer_rl.config.trainer_settings import trainer_arguments
from vizer_rl.policy import batches as by_memory
from vizer_rl.policy import captioner, vision
from vizer_rl.policy.families import FAMILIES
from vizer_rl.policy.shared_prefix import collator, vision_cache
from vizer_rl.policy.shared_prefix.collator import Collator
from vizer_rl.policy.shared_prefix.vision_cache import VisionCache

from .test_sampler import image_prompts
from .test_shared_prefix import load_case, random_images, rows_of

QWEN2_VL_2B = SimpleNamespace(
    num_hidden_layers=28,
    num_attention_heads=12,
    num_key_value_heads=2,
    hidden_size=1536,
    intermediate_size=8960,
    vocab_size=151936,
)
GIB = 2**30


def test_bytes_of_a_row_by_hand():
    config = SimpleNamespace(
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_size=20,
        intermediate_size=50,
        vocab_size=100,
    )
    kv_cache = 3 * 2 * 5 * 2 * (10 + 6) * 2
    mask, states, logits = 10 * 10 * (5 + 2), 10 * (8 * 20 + 3 * 50) * 2, 6 * 100 * 4
    assert by_memory.row_bytes(config, 10, 6, 2) == kv_cache + mask + states + logits
    config.head_dim = 7
    assert by_memory.row_bytes(config, 10, 6, 2) - mask - states - logits == kv_cache // 5 * 7


def test_a_photo_of_12_megapixels_at_the_hubs_size_is_counted_with_its_keys_and_masks():
    """CHECKPOINTS.md: 64 rows of 15,552 tokens are 26.9 GiB of keys and values, a mask 14.5."""
    row = by_memory.row_bytes(QWEN2_VL_2B, 15_552 + 30, 64, 2)
    assert 64 * row > (26.9 + 14.5) * GIB
    budget = by_memory.memory_budget(60 * GIB)
    assert budget == 16 * GIB
    assert 1 <= budget // row < 16
    small = by_memory.row_bytes(QWEN2_VL_2B, 512 + 30, 64, 2)
    assert 64 * small < budget


@pytest.mark.parametrize(
    ("free", "budget"),
    [(0, 2**29), (GIB, 2**29), (8 * GIB, 4 * GIB), (15 * GIB, 4 * GIB), (16 * GIB, 8 * GIB)],
)
def test_the_budget_is_a_power_of_two_below_half_of_what_is_free(free, budget):
    assert by_memory.memory_budget(free) == budget


def test_rows_are_batched_in_order_each_counted_as_the_largest():
    def split(sizes, budget=10, max_rows=4):
        return list(by_memory.batches(sizes, int, budget, max_rows))

    assert split([1] * 9) == [[1] * 4, [1] * 4, [1]]
    assert split([2, 3, 4, 1]) == [[2, 3], [4, 1]]  # 3 rows of 4 are 12
    assert split([20, 3, 3, 20]) == [[20], [3, 3], [20]]
    assert split([]) == []


def test_free_memory_is_bytes_of_this_machine():
    assert 2**20 < by_memory.free_memory(torch.device("cpu")) < 2**50


@pytest.mark.parametrize("family", sorted(POLICIES))
@pytest.mark.parametrize("shared", [False, True])
def test_small_policies_caption_64_images_together_whatever_is_free(family, shared, monkeypatch):
    model, processor = load_case(family, False)
    monkeypatch.setattr(captioner, "free_memory", lambda device: 0)
    sizes = generated(monkeypatch)
    cache = VisionCache(model, processor, FAMILIES[family]) if shared else None
    captions(model, processor, random_images([(96, 96)] * 65), cache, 2)
    assert sizes == [64, 1]


def generated(monkeypatch):
    """How many rows each batch of captions has."""
    sizes = []
    stock, shared = captioner._generate, captioner.sample

    def generate(model, processor, rows, generation):
        sizes.append(len(rows))
        return stock(model, processor, rows, generation)

    def sample(model, prompts, prompt_idx, **generation):
        sizes.append(len(prompts))
        return shared(model, prompts, prompt_idx, **generation)

    monkeypatch.setattr(captioner, "_generate", generate)
    monkeypatch.setattr(captioner, "sample", sample)
    return sizes


def captions(model, processor, images, cache, length=12):
    kwargs = {"max_new_tokens": length, "vision_cache": cache}
    return captioner.caption(model, processor, images, "Describe the image.", **kwargs)


@pytest.mark.parametrize("family", sorted(POLICIES))
@pytest.mark.parametrize("shared", [False, True])
def test_captions_are_split_by_the_budget_and_stay_the_same(family, shared, monkeypatch):
    model, processor = load_case(family, True)
    images = random_images([(96, 96), (190, 90), (60, 150), (96, 96), (96, 96), (190, 90)])

    def batched(budget):
        monkeypatch.setattr(captioner, "memory_budget", lambda free: budget)
        sizes, heights, row_bytes = generated(monkeypatch), [], captioner._row_bytes

        def spy(*args):
            heights.append(row_bytes(*args))
            return heights[-1]

        monkeypatch.setattr(captioner, "_row_bytes", spy)
        cache = VisionCache(model, processor, FAMILIES[family]) if shared else None
        result = captions(model, processor, images, cache)
        monkeypatch.undo()
        return sizes, heights, result

    sizes, heights, whole = batched(2**60)
    assert sizes == [6]
    assert len(set(heights)) > 1
    sizes, _, alone = batched(1)
    assert sizes == [1] * 6, "a row that does not fit goes alone"
    assert alone == whole
    sizes, _, split = batched(2 * max(heights))
    assert split == whole
    assert sum(sizes) == 6
    assert len(sizes) in (2, 3)
    for end, size in zip(accumulate(sizes), sizes, strict=True):
        assert size * max(heights[end - size : end]) <= 2 * max(heights)


@pytest.mark.parametrize("family", sorted(POLICIES))
def test_pixels_of_few_images_are_processed_and_encoded_together(family, monkeypatch):
    model, processor = load_case(family, True)
    images, texts = image_prompts(model, processor, True)
    whole = VisionCache(model, processor, FAMILIES[family]).entries(images, texts)
    processed, encoded = [], []
    process, encode = vision_cache.process_images, vision_cache.encode_images
    monkeypatch.setattr(
        vision_cache,
        "process_images",
        lambda p, i, t: (processed.append([x.size for x in i]), process(p, i, t))[1],
    )
    monkeypatch.setattr(
        vision_cache, "encode_images", lambda m, x: (encoded.append(len(x)), encode(m, x))[1]
    )
    sizes = [image.size for image in images]
    assert sizes == [(96, 96), (190, 90), (60, 150)]  # 9,216, 17,100 and 9,000 pixels
    monkeypatch.setattr(vision_cache, "PROCESS_BYTES", 12 * 2 * 17_100)
    monkeypatch.setattr(vision_cache, "ENCODE_PIXELS", 1)
    entries = VisionCache(model, processor, FAMILIES[family]).entries(images, texts)
    assert processed == [[sizes[2], sizes[1]], [sizes[0]]]
    assert encoded == [1, 1, 1]
    for one, other in zip(entries, whole, strict=True):
        assert torch.equal(one["ids"], other["ids"])
        torch.testing.assert_close(one["features"], other["features"], rtol=1e-4, atol=1e-5)


def test_64_photos_of_12_megapixels_are_decoded_and_processed_a_few_at_a_time():
    photo = SimpleNamespace(width=4000, height=3000)
    windows = list(captioner._decoded([photo] * 64, 64))
    assert [len(w) for w in windows] == [29, 29, 6]
    chunk = vision_cache.PROCESS_BYTES // vision.raw_size(photo)
    assert chunk == 1
    scene = SimpleNamespace(width=96, height=96)
    assert [len(w) for w in captioner._decoded([scene] * 70, 64)] == [64, 6]


@pytest.mark.parametrize("family", sorted(POLICIES))
def test_workers_send_pixels_as_the_tower_takes_them_and_masks_as_booleans(family):
    model, processor = load_case(family, True)
    model = model.to(torch.bfloat16)
    cache = VisionCache(model, processor, FAMILIES[family])
    assert cache.dtype == torch.bfloat16
    rows = rows_of(processor, True)
    sent = Collator(processor, None, {}, cache.dtype)(rows)[0]["image_inputs"].inputs
    assert sent["pixel_values"].dtype == torch.bfloat16
    assert sent["pixel_values"].untyped_storage().nbytes() == sent["pixel_values"].nbytes
    if family == "smolvlm":
        assert sent["pixel_attention_mask"].dtype == torch.bool
    images, texts = image_prompts(model, processor, True)
    ahead = cache.entries(images[:1], texts[:1], [sent])
    here = VisionCache(model, processor, FAMILIES[family]).entries(images[:1], texts[:1])
    assert torch.equal(ahead[0]["features"], here[0]["features"])
    single = Collator(processor, None, {})(rows)[0]["image_inputs"].inputs
    assert single["pixel_values"].dtype == torch.float32


@pytest.mark.parametrize(("factor", "fits"), [(1.01, True), (0.99, False)])
def test_what_does_not_fit_into_shared_memory_is_left_to_the_trainer(
    factor, fits, tmp_path, monkeypatch
):
    _, processor = load_case("qwen2vl", True)
    rows, reader = rows_of(processor, True), Collator(processor, None, {})
    unique = [row["image_inputs"].inputs for row in reader(rows)[::4]]
    size = sum(x.nbytes for inputs in unique for x in inputs.values())
    free = int(factor * size * 2 * collator.BATCHES / collator.SHARE)  # of 2 workers
    monkeypatch.setattr(collator.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    loader = DataLoader(rows, len(rows), collate_fn=reader, num_workers=2)
    (batch,) = loader
    assert all(("image_inputs" in row) is fits for row in batch)
    monkeypatch.setattr(collator, "get_worker_info", lambda: SimpleNamespace(num_workers=2))
    with nullcontext() if fits else pytest.warns(UserWarning, match="--shm-size=8g"):
        assert collator.fits_shared_memory(unique) is fits
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # two devices: twice as many workers
    with pytest.warns(UserWarning, match="^4 workers with"):
        assert not collator.fits_shared_memory(unique)
    monkeypatch.setattr(collator, "SHARED_MEMORY", tmp_path / "absent")
    assert collator.fits_shared_memory(unique)


@pytest.mark.parametrize("workers", [0, 3])
def test_one_rollout_is_read_ahead_by_each_worker_and_none_is_pinned(workers, tmp_path):
    args = trainer_arguments(
        {"dataloader_num_workers": workers},
        directory=tmp_path,
        seed=0,
        weights=[1.0],
        report_to=[],
    )
    assert args.dataloader_prefetch_factor == (1 if workers else None)
    assert not args.dataloader_pin_memory
