"""The way of a group through a GPU, without one: tensors that have a device and a shape, no values.

What stands on the wrong device raises, and so does whatever asks a value of the GPU in a step that
a CUDA graph is to record.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.idefics3 import modeling_idefics3
from transformers.models.qwen2_vl import modeling_qwen2_vl

from vizer_rl.assets import ASSETS, POLICIES
from vizer_rl.policy.families import FAMILIES
from vizer_rl.policy.shared_prefix import attention, sampler
from vizer_rl.policy.shared_prefix.packing import (
    Prompt,
    Targets,
    add_caption_head,
    layout,
)
from vizer_rl.policy.vision import image_inputs

COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}
BODY, CAPTIONS = 30, [[5] * 7, [6] * 4, [7] * 9]


class NoCopies(TorchDispatchMode):
    """Refuses to copy from the CPU, for which a GPU that records would have to wait."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        output = operation(*args, **(kwargs or {}))
        if operation in COPIES:
            devices = {x.device.type for x in (*args, output) if isinstance(x, torch.Tensor)}
            assert devices <= {"cuda"}, f"{operation} from {devices}"
        return output


@pytest.fixture
def on_cuda(monkeypatch):
    """Fake tensors, real ones taken for fake; checks of values are left out, where values count."""
    for module in (modeling_idefics3, modeling_qwen2_vl):
        monkeypatch.setattr(module, "torch_compilable_check", lambda *_: None)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield torch.device("cuda")


def prompts_of(config, family, device):
    """Two prompts of an image of 16 tokens."""
    kinds = 3 if FAMILIES[family].mrope else 1
    ids = torch.cat([torch.full((16,), config.image_token_id), torch.full((BODY - 16,), 7)])
    width = config.get_text_config().hidden_size
    captured = (16, width) if family == "qwen2vl" else (1, 16, width)
    features = [torch.zeros(captured, device=device, dtype=torch.bfloat16) for _ in range(2)]
    return [Prompt(ids, torch.arange(BODY).expand(kinds, -1), x, {}) for x in features]


def policy_on(device, family):
    config = AutoConfig.from_pretrained(ASSETS / family)
    with device:
        model = AutoModelForImageTextToText.from_config(
            config, dtype=torch.bfloat16, attn_implementation="sdpa"
        )
    return model, config


@pytest.mark.parametrize("family", sorted(POLICIES))
@torch.no_grad()
def test_sampling_stays_on_the_gpu_and_its_step_can_be_recorded(family, on_cuda, monkeypatch):
    model, config = policy_on(on_cuda, family)
    prompts = prompts_of(config, family, on_cuda)
    monkeypatch.setattr(Prompt, "next_position", BODY)  # a value of the CPU's
    result = torch.zeros(4, BODY, dtype=torch.long, device=on_cuda)
    going = sampler.DecodeState(model, prompts, [0, 0, 0, 1], result, 8, True)
    slots = torch.zeros(2, 3, dtype=torch.long, device=on_cuda)
    index = torch.arange(BODY - 1, BODY + 2, device=on_cuda)
    allowed = torch.ones(2, 1, 3, going.column_branch.shape[1], dtype=torch.bool, device=on_cuda)
    with NoCopies():
        logits = going._feed(slots, going.positions.expand(-1, -1, 3), allowed, index)
    assert logits.shape == (2, 3, config.get_text_config().vocab_size)
    assert logits.device.type == "cuda"
    for layer in going.cache.layers:
        assert {x.device.type for x in layer.buffers} == {"cuda"}


@pytest.mark.parametrize("family", sorted(POLICIES))
def test_the_packed_forward_stays_on_the_gpu(family, on_cuda):
    model, config = policy_on(on_cuda, family)
    add_caption_head(model, 1.0)
    prompts = prompts_of(config, family, on_cuda)
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        real = [Prompt(torch.arange(BODY), torch.arange(BODY)[None], None, {})] * 2
        shape = layout(real, [0, 0, 1], CAPTIONS)
    rows, length = shape.ids.shape
    where = torch.zeros(len(shape.target_idx), dtype=torch.long, device=on_cuda)
    group = torch.zeros(rows, length, dtype=torch.long, device=on_cuda)
    positions = group.expand(len(prompts[0].positions), -1, -1)
    logps, entropies, _ = model(
        input_ids=group,
        **attention.model_inputs(positions, attention.attention_mask(group, group)),
        **image_inputs(model, prompts),
        captions=Targets(where, where),
    )
    assert logps.shape == entropies.shape == (len(shape.target_idx),)
    assert logps.device.type == entropies.device.type == "cuda"
