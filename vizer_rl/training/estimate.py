"""Estimate of a run's memory: bytes by part and phase, from its config and processor alone.

Passes run on fake tensors (policy/fake_policy). Captions count as long as they may become, images
as the largest of the run's own, of over 2,000 as that of a sample.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch
from PIL import Image
from transformers import AutoConfig

from ..config.schema import Run
from ..data.open_source import is_remote
from ..data.sources import ImageFolder
from ..policy.chat import chat_text, messages
from ..policy.fake_policy import FakePolicy, bare_model
from ..policy.families import FAMILIES
from ..policy.hidden_states import TOKENS
from ..policy.load import load_processor, weights_dtype
from ..policy.shared_prefix.packing import Layout, Prompt, layout
from ..policy.shared_prefix.vision_cache import ENCODE_BATCH
from ..policy.trained_parts import adapter_config
from ..policy.vision import ENCODE_PIXELS, process_images
from ..scoring.scorer_memory import scorer_bytes
from .assemble import make_arguments, make_rewards

Parts = dict[str, int]  # bytes by name
CUDA_RESERVE = 2**30  # bytes: CUDA's context, cuBLAS's workspaces, blocks left in between
HEAP = 1.85  # resident over live bytes beside the weights, of glibc: benchmarks/memory.py
MAX_ROWS = 64  # captioned together, where memory allows
SCENE, PHOTO = (96, 96), (4096, 3072)  # the size of images where a run names none of its own


@dataclass(frozen=True)
class Workload:
    """What a step computes on a device, by its largest image and its longest captions.

    prompt_tokens, image_tokens, pixels (numbers that the tower takes): of an image; images: of a
    rollout; batch: captions of a forward and backward pass; rows: images of a held-out evaluation.
    """

    prompt_tokens: int
    image_tokens: int
    pixels: int
    images: int
    num_generations: int
    batch: int
    max_new_tokens: int
    checkpointing: bool
    rows: int = 0

    @property
    def captions(self) -> int:
        """Of a rollout."""
        return self.images * self.num_generations

    def with_image_tokens(self, count: int) -> Workload:
        """The same with images of so many tokens, pixels in proportion."""
        prompt_tokens = self.prompt_tokens - self.image_tokens + count
        pixels = self.pixels * count // self.image_tokens
        return replace(self, prompt_tokens=prompt_tokens, image_tokens=count, pixels=pixels)


@dataclass(frozen=True)
class Machine:
    """available: bytes that are free; reserve: of them, what no tensor takes; heap: bytes that a
    live byte takes up; scorer_dtype: of scorers' weights."""

    available: int
    reserve: int
    heap: float
    scorer_dtype: torch.dtype

    @classmethod
    def here(cls, *, empty: bool = False) -> Machine:
        """This machine, its CUDA device or else its memory; empty: as if nothing ran on it."""
        if torch.cuda.is_available():
            return cls(torch.cuda.mem_get_info()[int(empty)], CUDA_RESERVE, 1.0, torch.float16)
        memory = psutil.virtual_memory()
        return cls(memory.total if empty else memory.available, 0, HEAP, torch.float32)


@dataclass(frozen=True)
class Estimate:
    """fixed: what is there throughout; phases: what each needs on top of it; available: for both
    (bytes)."""

    fixed: Parts
    phases: dict[str, Parts]
    available: int

    @property
    def phase(self) -> str:
        """The one that needs the largest number of bytes."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def peak(self) -> int:
        """Bytes of what is fixed and of that phase."""
        return sum(self.fixed.values()) + sum(self.phases[self.phase].values())

    @property
    def fits(self) -> bool:
        """Whether the peak is available."""
        return self.peak <= self.available


def policy_phases(policy: FakePolicy, work: Workload) -> dict[str, Parts]:
    """What a rollout and the passes of the loss need beside the policy, its adapter and Adam."""
    features = work.images * policy.features(work.image_tokens, work.pixels)
    rows, together = packed(policy.kinds, work), -(-work.batch // work.num_generations)
    learns = policy.kept == "pixels"  # the tower too: its activations wait for the backward pass
    tower = {"vision tower": policy.tower_backward(work.pixels, together)} if learns else {}
    return {
        "vision tower": {
            "activations": policy.encoding(work.pixels, min(ENCODE_BATCH, work.images))
        },
        "sampling": {
            **_sampling(policy, work, work.images, work.num_generations),
            "image features": features,
        },
        "reference and policy passes": {
            "activations, logits": policy.forward_backward(rows, work.checkpointing),
            "gradients": policy.adapter,
            "image features": features,
            **tower,
        },
    }


def packed(kinds: int, work: Workload) -> Layout:
    """The rows in which the captions of a pass go through the policy; kinds: of positions."""
    size = work.num_generations
    zeros = torch.zeros(kinds, work.prompt_tokens, dtype=torch.long)
    prompts = [Prompt(zeros[0], zeros, None, {})] * -(-work.batch // size)
    owners = [index // size for index in range(work.batch)]
    return layout(prompts, owners, [[0] * work.max_new_tokens] * work.batch)


def _sampling(policy: FakePolicy, work: Workload, rows: int, slots: int) -> Parts:
    """Of decoding `slots` captions for each of `rows` images."""
    kv_cache = policy.kv_cache(rows, work.prompt_tokens + slots * work.max_new_tokens)
    total = policy.sampling(rows, work.prompt_tokens, slots, work.max_new_tokens)
    logits = policy.logits(rows * slots)
    return {"keys and values": kv_cache, "activations": total - kv_cache, "logits": logits}


class MemoryModel:
    """Estimates for any workload of one policy, the scorers of these names and these rewards.

    reads_policy: whether a reward reads captions with the reference policy.
    """

    def __init__(
        self, policy: FakePolicy, scorers: list[str], reads_policy: bool, machine: Machine
    ) -> None:
        self.policy, self.machine, self.reads_policy = policy, machine, reads_policy
        self.scorers = {name: scorer_bytes(name, machine.scorer_dtype) for name in scorers}

    def estimate(self, work: Workload) -> Estimate:
        """The memory of a workload."""
        policy, machine, adapter = self.policy, self.machine, self.policy.adapter
        lora, start = adapter - policy.copied, policy.frozen_start
        fixed = {"weights": policy.weights - start, "LoRA": lora, "Adam": 2 * adapter}
        if policy.copied:
            fixed |= {"frozen start of what is full": start, "its float32 copies": policy.copied}
        fixed |= {f"scorer {name}": weights for name, (weights, _) in self.scorers.items()}
        fixed |= {"CUDA itself": machine.reserve} if machine.reserve else {}
        phases = policy_phases(policy, work)
        phases["scoring"] = self._scoring(work)
        if work.rows:
            phases["held-out evaluation"] = self._evaluation(work, sum(fixed.values()))
        if machine.heap > 1:
            for parts in phases.values():
                parts["kept by malloc"] = int((machine.heap - 1) * sum(parts.values()))
        return Estimate(fixed, phases, machine.available)

    def _scoring(self, work: Workload) -> Parts:
        parts = {"scorer": max((passes for _, passes in self.scorers.values()), default=0)}
        if self.reads_policy:
            together = min(TOKENS // work.image_tokens, ENCODE_PIXELS // work.pixels)
            pictures = self.policy.encoding(work.pixels, max(1, together))
            parts["reference policy"] = max(self.policy.reading(TOKENS), pictures)
        name = max(parts, key=lambda key: parts[key])  # one after the other
        return {name: parts[name]}

    def _evaluation(self, work: Workload, fixed: int) -> Parts:
        """Of captioning; where that takes up more than half of what is free, of one image alone:
        batches are as large as memory allows (policy/captioner)."""
        whole = _sampling(self.policy, work, min(work.rows, MAX_ROWS), 1)
        if sum(whole.values()) * self.machine.heap <= (self.machine.available - fixed) / 2:
            return whole
        return _sampling(self.policy, work, 1, 1)


def workload(run: Run, processor: Any, image_token_id: int) -> tuple[Workload, Any]:
    """What a step of this run computes, and TRL's config of it."""
    args = make_arguments(run, make_rewards(run), 2**31)
    text = chat_text(processor, messages(run.data.prompt))
    image = Image.new("RGB", _largest_size(run, processor))
    (inputs,) = process_images(processor, [image], [text])
    captions = args.per_device_train_batch_size * args.steps_per_generation
    work = Workload(
        prompt_tokens=len(inputs["ids"]),
        image_tokens=int((inputs["ids"] == image_token_id).sum()),
        pixels=inputs["pixel_values"].numel(),
        images=-(-captions // args.num_generations),
        num_generations=args.num_generations,
        batch=args.per_device_train_batch_size,
        max_new_tokens=args.max_completion_length,
        checkpointing=args.gradient_checkpointing,
        rows=run.monitor.images,
    )
    return work, args


def _largest_size(run: Run, processor: Any) -> tuple[int, int]:
    """(width, height) of the image that takes the largest number of tokens."""
    if run.data.images is None or is_remote(run.data.images):
        return SCENE if run.policy.model == "embedded" else PHOTO
    rule = FAMILIES[run.family].images
    sizes = set(ImageFolder.index(run.data.images).sample_sizes(run.seed))
    return max(sizes, key=lambda size: rule.of_image(processor, size[1], size[0]))


def estimate(run: Run, machine: Machine | None = None) -> tuple[MemoryModel, Workload]:
    """The memory model of a run on a machine, this one by default, and the run's workload."""
    processor, source = load_processor(
        run.family,
        run.policy.model,
        image_splitting=run.policy.image_splitting,
        max_image_tokens=run.policy.max_image_tokens,
    )
    config = AutoConfig.from_pretrained(source)
    work, args = workload(run, processor, config.image_token_id)
    dtype = weights_dtype(run.policy.dtype)
    learn = run.policy.train.model_dump(), run.policy.lora.model_dump()
    lora = adapter_config(FAMILIES[run.family], *learn, lambda: bare_model(config, dtype))
    four_bits = run.policy.train.language == "qlora"
    policy = FakePolicy(config, lora, dtype, bool(args.bf16), four_bits)
    reads = any("policy" in reward.declared("reads", ()) for reward in make_rewards(run))
    scorers = list(dict.fromkeys([run.scorer.train, run.scorer.heldout]))
    return MemoryModel(policy, scorers, reads, machine or Machine.here()), work
