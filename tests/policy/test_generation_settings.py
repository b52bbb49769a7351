"""A checkpoint's generation settings leave the captions of a policy as they are."""

import json
import shutil

import pytest
import torch

from vizer_rl.assets import ASSETS, POLICIES
from vizer_rl.policy import captioner, load
from vizer_rl.policy.families import FAMILIES
from vizer_rl.policy.shared_prefix.vision_cache import VisionCache
from vizer_rl.scoring.reference_policy import ReferencePolicy

from .test_shared_prefix import random_images

SETTINGS = {  # as Qwen2-VL-Instruct has them on the hub
    "do_sample": True,
    "repetition_penalty": 1.05,
    "temperature": 0.01,
    "top_k": 1,
    "top_p": 0.001,
}


def greedy_checkpoint(family, folder):
    """The embedded policy in a folder, with those settings in its generation_config."""
    shutil.copytree(ASSETS / family, folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | SETTINGS))
    return folder


@pytest.mark.parametrize("family", sorted(POLICIES))
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_captions_are_those_of_a_checkpoint_without_settings(family, shared, temperature, tmp_path):
    results = []
    for checkpoint in ("embedded", str(greedy_checkpoint(family, tmp_path / family))):
        model, processor = load.load_policy(family, checkpoint, dtype="float32")
        cache = VisionCache(model, processor, FAMILIES[family]) if shared else None
        torch.manual_seed(0)
        results.append(
            captioner.caption(
                model,
                processor,
                random_images([(96, 96)] * 8),
                "Describe the image.",
                max_new_tokens=24,
                temperature=temperature,
                vision_cache=cache,
            )
        )
    assert results[0] == results[1]


@pytest.mark.parametrize("family", sorted(POLICIES))
def test_samples_of_the_reference_policy_are_those_of_a_checkpoint_without_settings(
    family, tmp_path
):
    results = []
    for checkpoint in ("embedded", str(greedy_checkpoint(family, tmp_path / family))):
        model, processor = load.load_policy(family, checkpoint, dtype="float32")
        reference = ReferencePolicy(model, processor, checkpoint, max_new_tokens=12)
        results.append(reference.sample(random_images([(96, 96)] * 2), 8, seed=0))
    assert results[0] == results[1]
    assert all(len(set(group)) > 1 for group in results[0])


@pytest.mark.parametrize("family", sorted(POLICIES))
def test_only_ends_and_padding_are_left_of_a_generation_config(family, tmp_path):
    folder = greedy_checkpoint(family, tmp_path / family)
    model, processor = load.load_policy(family, str(folder))
    config = model.generation_config
    assert config.eos_token_id == load.eos_ids(model, processor)
    assert config.pad_token_id == processor.tokenizer.pad_token_id
    assert not set(SETTINGS) & set(config.to_diff_dict())
