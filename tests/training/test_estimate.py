"""Memory of a run by arithmetic that can be checked by hand, and against a measured peak."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig

from benchmarks import policies
from vizer_rl.assets import POLICIES
from vizer_rl.config.load import load_run
from vizer_rl.policy.fake_policy import FakePolicy
from vizer_rl.policy.families import FAMILIES
from vizer_rl.policy.live_bytes import LiveBytes
from vizer_rl.scoring.scorer_memory import scorer_bytes
from vizer_rl.training.estimate import (
    Estimate,
    Machine,
    MemoryModel,
    Workload,
    estimate,
    packed,
)
from vizer_rl.training.fitting import changes, memory_lines

from ..conftest import REPO, TINY

GIB = 2**30
ROOMY = Machine(200 * GIB, 0, 1.0, torch.float16)


def policy(family, monkeypatch):
    """The real shapes of a family; the configs are built as the benchmark builds them."""
    monkeypatch.setattr(policies, "_random_model", lambda config, *_: config)
    if family == "smolvlm":
        config, *_ = policies.shaped_smolvlm(policies.SMOLVLM, 378, 14, 3, 1)
    else:
        shape = replace(policies.QWEN2VL, vocab=151936)
        config, *_ = policies.shaped_qwen2vl(shape, 14, 16)
        config.tie_word_embeddings = True
    lora = LoraConfig(r=32, lora_alpha=64, target_modules=FAMILIES[family].lora)
    return FakePolicy(config, lora, torch.bfloat16, autocast=True)


@pytest.fixture(scope="module")
def smolvlm():
    with pytest.MonkeyPatch.context() as patch:
        return policy("smolvlm", patch)


@pytest.fixture(scope="module")
def qwen2vl():
    with pytest.MonkeyPatch.context() as patch:
        return policy("qwen2vl", patch)


def test_weights_and_adapters_are_those_of_the_real_configs(smolvlm, qwen2vl):
    assert smolvlm.weights == pytest.approx(2 * 2.246e9, rel=1e-3)
    assert qwen2vl.weights == pytest.approx(2 * 2.209e9, rel=1e-2)
    # 24 layers of 7 projections, A and B of rank 32: q, k, v, o 2048 + 2048, the MLP 2048 + 8192
    assert smolvlm.adapter == 4 * 32 * 24 * (4 * 2 * 2048 + 3 * (2048 + 8192))
    # 28 layers: q, o 1536 + 1536, k, v 1536 + 256, the MLP 1536 + 8960
    assert qwen2vl.adapter == 4 * 32 * 28 * (2 * 3072 + 2 * 1792 + 3 * 10496)
    assert smolvlm.adapter / 4e6 == pytest.approx(36.2, abs=0.05)
    assert qwen2vl.adapter / 4e6 == pytest.approx(36.9, abs=0.05)
    assert (smolvlm.adapter_tensors, qwen2vl.adapter_tensors) == (336, 392)


def test_keys_and_values_of_a_rollout_and_of_images_without_bound(smolvlm, qwen2vl):
    # 24 layers × keys and values × 32 heads of 64 × 2 bytes = 196,608 bytes a column
    assert smolvlm.kv_cache(1, 1) == 196_608
    assert qwen2vl.kv_cache(1, 1) == 28 * 2 * 2 * 128 * 2
    assert smolvlm.kv_cache(4, 100 + 8 * 48) / GIB == pytest.approx(0.35, abs=0.01)
    assert qwen2vl.kv_cache(4, 421 + 8 * 160) / GIB == pytest.approx(0.18, abs=0.01)
    assert qwen2vl.kv_cache(64, 15_552 + 30 + 160) / GIB == pytest.approx(26.9, abs=0.05)


def work(**more):
    return Workload(
        **{
            "prompt_tokens": 106,
            "image_tokens": 81,
            "pixels": 3 * 378**2,
            "images": 4,
            "num_generations": 8,
            "batch": 8,
            "max_new_tokens": 48,
            "checkpointing": True,
            **more,
        }
    )


def test_a_group_is_one_row_behind_its_prompt():
    # 105 tokens of the prompt, then 8 branches of 48, to a multiple of 8
    assert packed(1, work()).ids.shape == (1, 496)
    assert packed(3, work(batch=16)).positions.shape == (3, 2, 496)


@pytest.mark.slow
def test_checkpointing_and_smaller_batches_take_less_and_fit_where_the_run_did_not(smolvlm):
    model = MemoryModel(smolvlm, [], False, ROOMY)
    plain = model.estimate(work(checkpointing=False, batch=32))
    saved = [model.estimate(work(batch=32)).peak, model.estimate(work()).peak]
    assert plain.peak > saved[0] > saved[1] > smolvlm.weights + 3 * smolvlm.adapter
    assert plain.phase == "reference and policy passes"
    assert plain.fits
    assert not Estimate(plain.fixed, plain.phases, plain.peak - 1).fits
    run = load_run(REPO / "experiments" / "smolvlm.yaml", ["profile=scenes"])
    wide = work(checkpointing=False, batch=32)
    for change in changes(run, model, wide, saved[0]):
        assert change.peak == model.estimate(change.work).peak <= saved[0]
    first, second, *_ = changes(run, model, wide, saved[0])
    assert first.overrides == "train.gradient_checkpointing=true"
    assert second.overrides.startswith("train.per_device_train_batch_size=")
    assert second.work.captions == wide.captions
    nothing = changes(run, model, wide, 1)
    assert len(nothing) == 1
    assert nothing[0].peak > 1
    for setting in (
        "train.gradient_checkpointing=true",
        "train.per_device_train_batch_size=1",
        "train.max_completion_length=24",
        "train.num_generations=2",
    ):
        assert setting in nothing[0].overrides


def test_images_of_fewer_tokens_have_fewer_pixels_and_shorter_prompts():
    half = work(image_tokens=100, prompt_tokens=130, pixels=1000).with_image_tokens(50)
    assert (half.image_tokens, half.prompt_tokens, half.pixels) == (50, 80, 500)


def test_a_scorer_counts_without_its_weights():
    weights, passes = scorer_bytes("ViT-L-14/datacomp_xl_s13b_b90k", torch.float16)
    assert weights == 2 * 427_616_513
    assert passes > 64 * 257 * 1024 * 2


@pytest.mark.parametrize("shape", [(4, 8), (1024,)])
def test_live_bytes_are_those_of_tensors_that_are_still_held(shape):
    size = 4 * torch.Size(shape).numel()
    with LiveBytes() as live:
        kept = torch.zeros(shape)
        torch.zeros(shape)
        view = kept.view(-1)
        assert (live.now, live.peak) == (size, 2 * size)
        del kept, view
        assert live.now == 0


def test_an_embedded_run_has_all_its_parts(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    for family in POLICIES:
        run = load_run(REPO / "experiments" / f"{family}.yaml", TINY)
        model, step = estimate(run, ROOMY)
        result = model.estimate(step)
        assert step.image_tokens == 16
        assert set(result.fixed) == {
            *("weights", "LoRA", "Adam", "scorer embedded:a", "scorer embedded:b")
        }
        assert set(result.phases) == {
            *("vision tower", "sampling", "reference and policy passes", "scoring"),
            "held-out evaluation",
        }
        assert all(size > 0 for parts in result.phases.values() for size in parts.values())
        assert "fits" in [*memory_lines(result)][-1]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["smolvlm-small", "qwen2vl-small"])
def test_the_estimate_is_within_a_fifth_of_the_measured_peak(case, tmp_path):
    code = f"""
from benchmarks import memory
row = memory.row({case!r})
print(row["peak"] / row["measured"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO)
    assert 0.8 < float(done.stdout.split()[-1]) < 1.2, done.stderr
