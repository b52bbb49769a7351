"""What only a GPU can show: `make test ARGS="-m gpu"`. The rest: test_pretend_cuda."""

import json

import pytest
import torch

from vizer_rl.algorithms import trl_sampling
from vizer_rl.assets import POLICIES
from vizer_rl.policy import load
from vizer_rl.policy.shared_prefix import attention, sampler
from vizer_rl.policy.shared_prefix.packing import unwrapped
from vizer_rl.scoring.clip import OpenClip

from ..policy.test_recorded_step import TOKENS, prompts_of
from ..policy.test_shared_prefix import random_images, trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("family", sorted(POLICIES))
def test_the_recorded_step_samples_what_the_step_samples(family):
    model, processor = load.load_policy(family, "embedded", dtype="float32")
    prompts = prompts_of(model, processor, family)
    generation = {
        "do_sample": False,
        "max_new_tokens": TOKENS,
        "suppress_tokens": load.forbidden_ids(model, processor),
    }
    growing, replayed = (
        sampler.sample(model, prompts, [0, 0, 1, 1, 1, 2], static_shapes=static, **generation)
        for static in (False, True)
    )
    assert replayed.ids == growing.ids
    for a, b in zip(replayed.logps, growing.logps, strict=True):
        assert torch.allclose(torch.tensor(a), torch.tensor(b), atol=1e-3)


def test_both_kernels_run_and_give_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(trl_sampling, "MIN_FLEX_LENGTH", 8)
    subject, rows = trainer("smolvlm", True, "lora", False, tmp_path, True)
    del subject._generate_single_turn
    subject.vision_cache.cuda = True
    batch = subject._generate_and_score_completions(rows)
    logps = []
    for kernel in ("sdpa", attention.KERNEL):
        assert f"engine/attention_seconds/{kernel}" in subject._metrics["train"]
        unwrapped(subject.model).set_attn_implementation({"text_config": kernel})
        with torch.no_grad():
            logps.append(subject.caption_forward(subject.model, batch).logps)
    assert torch.allclose(*logps, atol=1e-3)


@pytest.mark.parametrize("name", ["embedded:a", "embedded:b"])
def test_a_scorer_gives_on_the_gpu_what_it_gives_on_the_cpu(name):
    images = random_images([(96, 96)] * 2)
    here, there = (
        OpenClip(name, *where).image_features(["0", "1"], images).cpu()
        for where in ((torch.device("cpu"), torch.float32), (load.device(), torch.float16))
    )
    assert (here * there).sum(-1).min() > 0.99


@pytest.mark.parametrize("family", sorted(POLICIES))
def test_the_demo_trains_and_logs_what_the_device_does(family, command):
    directory = command(family, f"gpu-{family}")
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "time/sample" in row]
    assert len(steps) == 2
    assert all(row["engine/peak_memory_gib"] > 0 for row in steps)
    assert json.loads((directory / "environment.json").read_text())["device"] != "cpu"
