"""Published widths and vocabularies in bf16 with checkpointing: two steps of every algorithm.

Two layers each of language model and tower, random weights, images of few tokens: what breaks by a
dtype, by recomputation or by a size breaks here. The whole command: test_full_profile.py.
"""

import math

import pytest
import torch
from rich.console import Console

from vizer_rl.algorithms import ALGORITHMS
from vizer_rl.config.load import load_run
from vizer_rl.data.sources import ImageFolder
from vizer_rl.training import assemble

from ..checkpoints import FOLDERS, PHOTOS, published
from ..conftest import FIXTURES, REPO

WIDTHS = {"smolvlm": (2048, 49155, 1152), "qwen2vl": (1536, 151936, 1280)}
SETTINGS = [
    "profile=full",
    f"data.images={PHOTOS}",
    "data.prompt=Describe.",
    "scorer.train=embedded:a",
    "scorer.heldout=embedded:b",
    "tracking.wandb=off",
    "rewards.self_retrieval=null",  # of the rewards those that need no bank of captions
    "rewards.alignment=null",
    "rewards.random.weight=1",  # two captions that differ differ in reward
    "rewards.ended.weight=0",  # of four random words none is an end
    "train.max_steps=2",
    "train.warmup_steps=0",
    "train.gradient_checkpointing=true",
    "train.num_generations=2",
    "train.per_device_train_batch_size=2",
    "train.gradient_accumulation_steps=1",
    "train.max_completion_length=4",
    "train.learning_rate=1e-3",
]
MORE = {"ppo": ["train.num_iterations=1"], "vizer": ["mapper.images=16", "mapper.steps=20"]}

pytestmark = [
    pytest.mark.slow,  # bf16 products of this width take a CPU without bf16 units up to minutes
    pytest.mark.skipif(
        not FIXTURES.is_dir(),
        reason="../shared/fixtures (processors, photographs) is not here",
    ),
]


@pytest.fixture(scope="module", params=sorted(FOLDERS))
def checkpoint(request, tmp_path_factory):
    """A family and a folder with its checkpoint, written for all algorithms."""
    folder = tmp_path_factory.mktemp("full-width") / request.param
    published(request.param, folder, ends=False)  # any two captions differ
    return request.param, folder


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_two_steps_in_bf16_with_checkpointing(algorithm, checkpoint, tmp_path, monkeypatch):
    family, folder = checkpoint
    monkeypatch.chdir(tmp_path)
    more = [f"algorithm={algorithm}", f"policy.model={folder}", *MORE.get(algorithm, [])]
    run = load_run(REPO / "experiments" / f"{family}.yaml", [*SETTINGS, *more])
    images = ImageFolder.index(PHOTOS, 16)
    rewards = assemble.make_rewards(run)
    args = assemble.make_arguments(run, rewards, len(images.ids))
    assert args.bf16
    assert args.gradient_checkpointing
    components = assemble.load_components(run, rewards, args)
    trainer = assemble.make_trainer(run, components, args, images, Console())
    base = trainer.model.get_base_model()
    vision = base.config.vision_config
    widths = base.get_output_embeddings().weight.shape[::-1]
    assert (*widths, getattr(vision, "embed_dim", vision.hidden_size)) == WIDTHS[family]
    weights = dict(trainer.model.named_parameters())
    assert {p.dtype for n, p in weights.items() if "lora_" not in n} == {torch.bfloat16}
    before = {n: p.detach().clone() for n, p in weights.items() if p.requires_grad}
    recomputed = []

    def record(module, _):
        if torch._C._current_graph_task_id() >= 0:  # inside a backward pass
            recomputed.append(module)

    layers = base.model.get_decoder().layers
    for layer in layers:
        layer.mlp.register_forward_pre_hook(record)
    trainer.train()
    assert set(recomputed) == {layer.mlp for layer in layers}
    assert all("lora_" in name for name in before)
    assert all(torch.isfinite(weights[name]).all() for name in before)
    moved = {name for name, weight in before.items() if not torch.equal(weights[name], weight)}
    assert moved == set(before) if algorithm != "rloo" else moved
    steps = [row for row in trainer.state.log_history if "loss" in row]
    assert len(steps) == 2
    assert all(math.isfinite(v) for row in steps for v in row.values() if isinstance(v, float))
