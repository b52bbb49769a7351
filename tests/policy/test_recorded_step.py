"""A CUDA graph without CUDA: what a step of sampling did to tensors, done again and again.

The recording stands in for `torch.cuda.graph`: it keeps each operation with the tensors that it
read and wrote, and a replay computes them anew in the same memory, no line of Python between. So
whatever Python put into the step, a number of its own or a tensor that is not an input, is stale
in a replay and shows in the captions, as it would on a GPU.
"""

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vizer_rl.assets import POLICIES
from vizer_rl.policy import load
from vizer_rl.policy.chat import chat_text, messages
from vizer_rl.policy.families import FAMILIES
from vizer_rl.policy.shared_prefix import cuda_graph, sampler
from vizer_rl.policy.shared_prefix.vision_cache import VisionCache

from .test_shared_prefix import random_images

TOKENS = 12
WAITS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}


class Recording(TorchDispatchMode):
    """The operations of a step, and `replay` of them into the tensors that they wrote."""

    def __init__(self):
        super().__init__()
        self.operations, self.replays = [], 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert operation not in WAITS, f"the step asks the GPU for a value: {operation}"
        output = operation(*args, **kwargs)
        self.operations.append((operation, args, kwargs, output))
        return output

    def replay(self):
        self.replays += 1
        for operation, args, kwargs, output in self.operations:
            if operation.is_view:
                continue
            new = operation(*args, **kwargs)
            for old, value in zip(tree_leaves(output), tree_leaves(new), strict=True):
                if isinstance(old, torch.Tensor) and old is not value:
                    old.copy_(value)


@pytest.fixture
def recordings(monkeypatch):
    """Graphs record on this machine; the list of those that were."""
    recorded = []

    @contextmanager
    def graph(recording, **_):
        recorded.append(recording)
        with recording:
            yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recording)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(cuda_graph, "can_record", lambda _: True)
    return recorded


def prompts_of(model, processor, family):
    """Three prompts of unlike length, as the images are unlike in size where that counts."""
    images = random_images([(96, 96), (190, 90), (60, 150)])
    texts = [chat_text(processor, messages(q)) for q in ("Describe the image.", "image", "What?")]
    return VisionCache(model, processor, FAMILIES[family]).prompts(images, texts)


@pytest.mark.parametrize("family", sorted(POLICIES))
@pytest.mark.parametrize("greedy", [True, False])
def test_a_step_that_is_replayed_samples_what_the_step_samples(family, greedy, recordings):
    model, processor = load.load_policy(family, "embedded", dtype="float32")
    prompts = prompts_of(model, processor, family)
    prompt_idx = [0, 0, 1, 1, 1, 2]
    generation = {
        "do_sample": not greedy,
        "max_new_tokens": TOKENS,
        "suppress_tokens": load.forbidden_ids(model, processor),
        "top_k": 0,
    }
    sampled = []
    for static in (False, True):
        torch.manual_seed(3)
        sampled.append(
            sampler.sample(model, prompts, prompt_idx, static_shapes=static, **generation)
        )
    growing, replayed = sampled
    (recording,) = recordings
    assert recording.replays > 2
    assert replayed.ids == growing.ids
    for a, b in zip(replayed.logps, growing.logps, strict=True):
        assert torch.allclose(torch.tensor(a), torch.tensor(b), atol=1e-4)
