"""FSDP2 on two CPU processes: wrapped as Accelerate wraps it, gradients are those of one process.

Accelerate itself shards nothing on CPUs (its state stays MULTI_CPU, without a word), so its
wrapping is called by name here; the collectives are torch's, over gloo.
"""

import contextlib
import copy
import json
import os
import re
import traceback
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import Trainer

from vizer_rl import files
from vizer_rl.algorithms.step_guard import StepGuard
from vizer_rl.policy.whole_weights import whole, whole_state, whole_weights

from ..children import ended, start_pair
from ..conftest import REPO, TINY
from ..policy import test_shared_prefix as case
from .test_faults_processes import free_port

G = case.G
# Of the gradient's norm. In bfloat16 one row and two rows of a product round otherwise.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def subject_of(family, dtype, tmp_path, rows):
    """A trainer whose captions are given, its frozen weights in `dtype`; rows of these images."""
    subject, every_row = case.trainer(family, True, "lora", True, tmp_path, True)
    for parameter in subject.model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    end = min(subject.reward_functions.eos_ids)
    subject._generate_single_turn = lambda *_: (case.completions(end)[rows], None)
    return subject, every_row[rows]


def spread(model):
    """Shard a model as `accelerate launch` with experiments/accelerate/fsdp2.yaml would."""
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=True,
        cpu_ram_efficient_loading=False,
    )
    state = SimpleNamespace(fsdp_plugin=plugin)
    fsdp2_prepare_model(
        SimpleNamespace(
            state=state, torch_device_mesh=None, mixed_precision="no", is_main_process=False
        ),
        model,
    )


def one_of_two(family, dtype, folder, rank, port):
    """In the child: gradients of its image, whole again; what is to be saved; a call on rank 0."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    PartialState._reset_state()
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    subject, rows = subject_of(family, dtype, folder, slice(rank * G, (rank + 1) * G))
    assert subject.accelerator.distributed_type == "MULTI_CPU"  # why launch.py refuses it on CPUs
    spread(subject.model)
    parts = sum(isinstance(module, FSDPModule) for module in subject.model.modules())
    batch = subject._generate_and_score_completions(copy.copy(rows))
    loss = subject.compute_loss(subject.model, batch)
    loss.backward()
    learning = {n: p for n, p in subject.model.named_parameters() if p.requires_grad}
    assert all(isinstance(p, DTensor) for p in learning.values())
    guard = StepGuard(lambda *_: None, list, print)
    guard.watch(loss)
    guard.on_pre_optimizer_step(None, SimpleNamespace(global_step=0), None, subject.model)
    grads = {name: whole(p.grad) for name, p in learning.items()}
    with whole_weights(subject.model):  # as the held-out monitor: one evaluates, one waits
        if rank == 0:
            with torch.no_grad():
                logps = subject.caption_forward(subject.model, batch).logps
            subject.model.save_pretrained(
                str(folder / "adapter"),
                selected_adapters=["default"],
                state_dict=whole_state(subject.model),
            )
            again = {"loss": loss.detach(), "grads": grads, "parts": parts, "logps": logps}
            again |= {"skipped": guard.skipped, "advantages": batch["advantages"]}
            torch.save(again, folder / "0.pt")
    assert all(isinstance(p, DTensor) for p in subject.model.parameters())
    torch.distributed.barrier()


def start(function, output):
    """A forked child that runs a function and prints to a file; its process id."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), 2)
            torch.set_num_threads(1)
            function()
            code = 0
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)
    return pid


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("smolvlm", torch.float32),
        pytest.param("qwen2vl", torch.float32, marks=pytest.mark.slow),
        pytest.param("smolvlm", torch.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_gradients_of_spread_weights_are_those_of_one_process(family, dtype, tmp_path):
    port = free_port()
    children = [
        start(
            lambda rank=rank: one_of_two(family, dtype, tmp_path, rank, port),
            tmp_path / f"said-{rank}",
        )
        for rank in range(2)
    ]
    codes = [ended(child, 120) for child in children]
    assert codes == [0, 0], [(tmp_path / f"said-{rank}").read_text() for rank in range(2)]
    spread_out = torch.load(tmp_path / "0.pt")
    subject, rows = subject_of(family, dtype, tmp_path / "one", slice(0, 2 * G))
    batch, _, grads = case.step(subject, rows)
    assert spread_out["parts"] > 4
    assert spread_out["skipped"] == 0
    assert torch.allclose(spread_out["advantages"], batch["advantages"][:G], atol=1e-6)
    total = torch.stack([grad.norm() for grad in grads.values()]).norm()
    differences = [spread_out["grads"][name] - grad for name, grad in grads.items()]
    difference = torch.stack([x.norm() for x in differences]).norm()
    print(f"\n{family}, {dtype}: gradients differ by {difference / total:.1e} of the norm")
    assert total > 0
    assert difference <= TOLERANCE[dtype] * total
    with torch.no_grad():
        logps = subject.caption_forward(subject.model, batch).logps[:G]
    width = min(logps.shape[1], spread_out["logps"].shape[1])
    tolerance = 1e-5 if dtype is torch.float32 else 0.2
    assert torch.allclose(spread_out["logps"][:, :width], logps[:, :width], atol=tolerance)
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    own = {n.replace(".default", ""): p for n, p in subject.model.named_parameters() if "lora" in n}
    assert saved.keys() == own.keys()
    assert all(torch.equal(saved[name], own[name].detach()) for name in saved)


def force_fsdp2():
    """In the child: every trainer has Accelerate's FSDP2 as if its processes were of GPUs."""
    original = Trainer.create_accelerator_and_postprocess

    def create(self):
        original(self)
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            state_dict_type="FULL_STATE_DICT",
            reshard_after_forward=True,
            cpu_ram_efficient_loading=False,
        )
        state = {"distributed_type": DistributedType.FSDP, "fsdp_plugin": plugin}
        AcceleratorState._shared_state |= state
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.is_fsdp_enabled = True

    Trainer.create_accelerator_and_postprocess = create
    prepare = Accelerator._prepare_fsdp2

    def spread_and_count(self, *args):
        prepared = prepare(self, *args)
        if isinstance(prepared[0], torch.nn.Module):  # else a data loader
            count = sum(isinstance(module, FSDPModule) for module in prepared[0].modules())
            print(f"{count} parts of the model are spread")
        return prepared

    Accelerator._prepare_fsdp2 = spread_and_count


@pytest.mark.slow
def test_a_whole_run_on_spread_weights_scores_watches_saves_and_resumes(workplace):
    with contextlib.chdir(workplace):
        words = ["train", str(REPO / "experiments" / "smolvlm.yaml"), *TINY, "name=fsdp2"]
        words += ["data.limit=24", "data.heldout=4", "monitor.images=2", "train.save_steps=1"]
        words += [
            "train.per_device_train_batch_size=8",
            "train.learning_rate=1e-3",
            "monitor.keep=last",
        ]
        for more in (["--overwrite"], ["train.max_steps=3", "--resume"]):
            folder = workplace / "printed" / more[-1]
            children = start_pair([*words, *more], folder, free_port(), lambda rank: force_fsdp2())
            codes = [ended(child) for child in children]
            printed = (folder / "0").read_text()
            assert codes == [0, 0], printed + (folder / "1").read_text()
            (parts,) = re.findall(r"(\d+) parts of the model are spread", printed)
            assert int(parts) > 4
    directory = workplace / "runs" / "fsdp2"
    metrics = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [1, 2, 3]
    assert all(row["grad_norm"] > 0 for row in metrics)
    assert files.damage(files.checkpoints(directory)[0]) == ""
    kept = load_file(directory / "adapter" / "adapter_model.safetensors")
    newest = load_file(files.checkpoints(directory)[0] / "adapter_model.safetensors")
    assert kept.keys() == newest.keys()
    assert all(torch.equal(kept[name], newest[name]) for name in kept)
    assert any(kept[name].any() for name in kept if "lora_B" in name)
