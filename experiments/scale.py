"""Question: which launcher from which size, and what does a run cost on 1, 8 and 64 GPUs?

Command: python -m experiments.scale          (a minute on a CPU; no weights, no GPU, no hub)

Arithmetic alone: the memory and step time that `vizer-rl doctor RUN.yaml` estimates, for shapes of
published models and peaks of published cards. Nothing here was measured on a GPU, and a step's time
is right within a factor of 3 at best. What it prints stands in docs/scale.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks import policies
from benchmarks.policies import QWEN2VL, SMOLVLM, Shape
from vizer_rl.algorithms.step_timer import language_flops
from vizer_rl.config.load import load_run
from vizer_rl.policy.fake_policy import FakePolicy
from vizer_rl.policy.families import FAMILIES
from vizer_rl.policy.lora import lora_config
from vizer_rl.training.estimate import CUDA_RESERVE, Estimate, Machine, MemoryModel, Workload
from vizer_rl.training.step_time import EFFICIENCY, Rates, step_seconds

GIB = 2**30
MACHINE = Machine(1 << 50, CUDA_RESERVE, 1.0, torch.float16)
A100 = Rates(312e12, 2.04e12)  # bf16 FLOP/s, bytes/s read and written: the vendor's peaks
H100 = Rates(989e12, 3.35e12)
LINK = {8: 450e9, 64: 50e9}  # bytes/s between two of so many: NVLink 4 one way, 400 Gbit/s
SMOLVLM_256M = Shape(576, 30, 9, 3, 1536, 49280, 768, 12, 12, 3072)
SMOLVLM_500M = Shape(960, 32, 15, 5, 2560, 49280, 768, 12, 12, 3072)
QWEN2VL_7B = Shape(3584, 28, 28, 4, 18944, 152064, 1280, 32, 16, 5120)
QWEN2VL_72B = Shape(8192, 80, 64, 8, 29568, 152064, 1280, 32, 16, 5120)
TILE = {SMOLVLM: (384, 14, 3, 81), SMOLVLM_256M: (512, 16, 4, 64), SMOLVLM_500M: (512, 16, 4, 64)}
CASES = {
    "SmolVLM-256M": ("smolvlm", SMOLVLM_256M),
    "SmolVLM-500M": ("smolvlm", SMOLVLM_500M),
    "SmolVLM-Base, 2.2 B": ("smolvlm", SMOLVLM),
    "Qwen2-VL-2B": ("qwen2vl", QWEN2VL),
    "Qwen2-VL-7B": ("qwen2vl", QWEN2VL_7B),
    "Qwen2-VL-72B": ("qwen2vl", QWEN2VL_72B),
}
PRICED = ("SmolVLM-Base, 2.2 B", "Qwen2-VL-2B", "Qwen2-VL-7B")


@dataclass(frozen=True)
class Case:
    """A policy under profile full of its family's run file, and what a step of 1 GPU computes."""

    name: str
    policy: FakePolicy
    work: Workload
    steps: int
    interval: int
    scorers: list[str]


def load_case(name: str) -> Case:
    """The published shape of a policy, with the settings of its run file."""
    family, shape = CASES[name]
    run = load_run(Path(f"experiments/{family}.yaml"), ["profile=full", "data.images=."], True)
    with mock.patch.object(policies, "_random_model", lambda config, *_: config):
        if family == "smolvlm":
            side, patch, scale, image_tokens = TILE[shape]
            config, *_ = policies.shaped_smolvlm(shape, side // patch * patch, patch, scale, 1)
            pixels, prompt = 3 * side**2, image_tokens + 25
        else:
            config, *_ = policies.shaped_qwen2vl(shape, 14, 16)
            config.tie_word_embeddings = shape is QWEN2VL
            image_tokens, prompt = 512, 512 + 30
            pixels = image_tokens * 4 * 3 * 14**2 * 2  # 2 × 2 patches a token, each frame twice
    lora = lora_config(FAMILIES[family].lora, **run.policy.lora.model_dump())
    train = run.train
    size, group = train["per_device_train_batch_size"], train["num_generations"]
    work = Workload(
        prompt_tokens=prompt,
        image_tokens=image_tokens,
        pixels=pixels,
        images=size * train["gradient_accumulation_steps"] // group,
        num_generations=group,
        batch=size,
        max_new_tokens=train["max_completion_length"],
        checkpointing=bool(train["gradient_checkpointing"]),
        rows=run.monitor.images,
    )
    policy = FakePolicy(config, lora, torch.bfloat16, autocast=True)
    scorers = [run.scorer.train, run.scorer.heldout]
    return Case(name, policy, work, train["max_steps"], run.monitor.interval, scorers)


def spread_peak(estimate: Estimate, layers: int, count: int) -> int:
    """Peak bytes of a device where FSDP2 or ZeRO-3 spread weights over `count` of them.

    While it samples and scores all weights are there; in the loss its share and two blocks.
    """
    fixed, passes = dict(estimate.fixed), "reference and policy passes"
    weights, learning = fixed.pop("weights"), fixed.pop("LoRA") + fixed.pop("Adam")
    phases = {name: sum(parts.values()) for name, parts in estimate.phases.items()}
    loss = weights // count + 2 * weights // layers + phases.pop(passes)
    return sum(fixed.values()) + learning // count + max(weights + max(phases.values()), loss)


def memory_row(case: Case) -> str:
    """GiB of a device: weights, DDP, DDP with checkpointing, FSDP2 on 8."""
    model = MemoryModel(case.policy, case.scorers, True, MACHINE)
    plain, layers = model.estimate(case.work), case.policy.text.num_hidden_layers
    kept = model.estimate(replace(case.work, checkpointing=True))
    sizes = case.policy.weights, plain.peak, kept.peak, spread_peak(kept, layers, 8)
    return f"| {case.name} | " + " | ".join(f"{size / GIB:.1f}" for size in sizes) + " |"


def captioning_seconds(case: Case, rates: Rates) -> float:
    """Of one held-out evaluation, on one device while the others wait: 64 images at a time."""
    work, policy = case.work, case.policy
    tokens = work.rows * (work.prompt_tokens + work.max_new_tokens)
    flops = language_flops(tokens, work.rows, policy.text, 1)
    flops += 2 * policy.tower * policy.patches(work.pixels) * work.rows
    cache = policy.kv_cache(64, work.prompt_tokens + work.max_new_tokens) / 2
    read = -(-work.rows // 64) * work.max_new_tokens * (policy.weights + cache)
    return (flops / rates.flops + read / rates.bandwidth) / EFFICIENCY


def cost_row(case: Case, count: int, rates: Rates) -> str:
    """A run on `count` devices that sees as many images as on one."""
    images = max(1, case.work.images // count)  # of a step, on each: groups are whole
    steps = case.steps * case.work.images // (images * count)
    step = step_seconds(case.policy, replace(case.work, images=images), True, rates)
    if count > 1:  # a ring: twice all gradients but a share
        step += 2 * (count - 1) / count * case.policy.adapter / LINK[count]
    watching = steps // case.interval * captioning_seconds(case, rates)
    hours = (steps * step + watching) / 3600
    cells: list[Any] = [case.name, count, images * count, steps, f"{step:.2f}"]
    cells += [f"{watching / 3600 / hours:.0%}", f"{hours:.2f}", f"{hours * count:.1f}"]
    return "| " + " | ".join(map(str, cells)) + " |"


def example(case: Case, rates: Rates) -> list[str]:
    """The arithmetic of a run on one device, step by step."""
    work, policy = case.work, case.policy
    unique = work.images * work.prompt_tokens + work.captions * work.max_new_tokens
    language = language_flops(unique, work.images, policy.text, 5) / 1e12
    tower = 2 * policy.tower * policy.patches(work.pixels) * work.images / 1e12
    columns = work.prompt_tokens + work.num_generations * work.max_new_tokens
    read = (policy.weights + policy.kv_cache(work.images, columns) / 2) / 1e9
    flops, bandwidth = rates.flops / 1e12, rates.bandwidth / 1e9
    passes, decoding = (language + tower) / flops, work.max_new_tokens * read / bandwidth
    step, watching = (passes + decoding) / EFFICIENCY, captioning_seconds(case, rates)
    count = case.steps // case.interval
    return [
        f"- tokens: {work.images} prompts × {work.prompt_tokens} + {work.captions} captions × "
        f"{work.max_new_tokens} = {unique:,}, each in 5 passes: sampling, reference, forward, "
        f"backward as two: {language:.0f} TFLOP; vision tower {tower:.0f} TFLOP",
        f"- passes: ({language:.0f} + {tower:.0f}) TFLOP / {flops:g} TFLOP/s = {passes:.2f} s",
        f"- decoding: {work.max_new_tokens} tokens × {read:.2f} GB (weights, half the keys and "
        f"values) / {bandwidth:,.0f} GB/s = {decoding:.2f} s",
        f"- a step: ({passes:.2f} + {decoding:.2f}) / {EFFICIENCY} = {step:.2f} s",
        f"- the run: {case.steps} × {step:.2f} s + {count} evaluations × {watching:.1f} s = "
        f"{(case.steps * step + count * watching) / 3600:.2f} hours",
    ]


def main() -> None:
    """Print what stands in docs/scale.md: cost, the arithmetic of its first row, memory."""
    cases = {name: load_case(name) for name in CASES}
    for name, rates in (("A100", A100), ("H100", H100)):
        print(
            f"\n| {name}: policy | GPUs | images a step | steps | s a step | watching | hours |",
            end="",
        )
        print(" GPU hours |\n|---|---|---|---|---|---|---|---|")
        for priced in PRICED:
            for count in (1, 8, 64):
                print(cost_row(cases[priced], count, rates), flush=True)
    print("", *example(cases[PRICED[0]], A100), sep="\n", flush=True)
    print("\n| policy | weights | DDP | DDP, checkpointing | FSDP2 on 8, checkpointing |")
    print("|---|---|---|---|---|")
    for case in cases.values():
        print(memory_row(case), flush=True)


if __name__ == "__main__":
    main()
