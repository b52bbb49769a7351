"""vLLM probe: vLLM's log-probs of captions that it sampled against the policy's, before step 1.

vLLM has its own processor, weights and kernels. Where one of them reads another prompt, or image,
than the policy that learns (trl#6294, trl#6401), captions are of something else, without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from PIL.Image import Image
from torch import Tensor
from trl import GRPOConfig
from trl.import_utils import is_vllm_available

from ..errors import UserError
from ..policy.chat import chat_text, messages
from ..policy.vision import process_images
from ..scoring.reference_policy import ReferencePolicy

IMAGES = 4
# Nats a token, in the mean: a ratio of 1.1, half of what `epsilon` clips (.2). Logits of 16 to 32
# in bfloat16 are multiples of .125, so rounding alone comes to .03. Not measured with vLLM yet.
MAX_MEAN = 0.1
FULL = {"top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0}  # TRL's defaults


class Generation(Protocol):
    """TRL's VLLMGeneration, server or colocated: rows of prompts, their images, each repeated."""

    def generate(
        self,
        prompts: list[list[int]],
        images: list[list[Image] | None] | None,
        num_generations: int,
    ) -> tuple[Any, list[list[int]], list[list[list[float | None]]] | None, Any]: ...


def check_installed() -> None:
    """UserError where vLLM, which `train.use_vllm` asks for, is not there."""
    if not is_vllm_available():
        raise UserError(
            "train.use_vllm: vLLM is not installed (Linux and CUDA: pip install 'trl[vllm]'); "
            "train.use_vllm=false samples without"
        )


@contextmanager
def server_named(args: GRPOConfig) -> Iterator[None]:
    """Inside, a vLLM server that does not answer is named in a UserError, where the run has one."""
    try:
        yield
    except ConnectionError as error:
        if not (args.use_vllm and args.vllm_mode == "server"):
            raise
        address = f"http://{args.vllm_server_host}:{args.vllm_server_port}"
        raise UserError(
            f"train.use_vllm: no vLLM server answers at {args.vllm_server_base_url or address} "
            f"within {args.vllm_server_timeout:g} s (train.vllm_server_base_url, "
            "vllm_server_timeout): start it first, or set train.vllm_mode=colocate"
        ) from error


def probe(
    generation: Generation, reference: ReferencePolicy, images: Sequence[Image], args: GRPOConfig
) -> str:
    """The sentence on how well vLLM agrees with the policy; UserError where it does not.

    images: IMAGES of them, `args.num_generations` captions each. The policy is the one before
    training, whose weights vLLM has loaded itself.
    """
    text = chat_text(reference.processor, messages(reference.prompt))
    repeated, prompts = list[Image](), list[list[int]]()
    for image in images:
        (inputs,) = process_images(reference.processor, [image], [text])
        prompts += [inputs["ids"].tolist()] * args.num_generations
        repeated += [image] * args.num_generations
    _, completions, theirs, _ = generation.generate(
        prompts=prompts,
        images=[[image] for image in repeated],
        num_generations=args.num_generations,
    )
    own = own_logps(reference, completions, repeated, args.temperature)
    differences = torch.cat(_differences(own, theirs))
    mean, count = float(differences.mean()), len(differences)
    numbers = f"{mean:.3f} nats a token ({count} tokens, {len(images)} images; allowed: {MAX_MEAN})"
    if not mean <= MAX_MEAN:
        altered = [name for name, value in FULL.items() if getattr(args, name) not in (value, 0.0)]
        why = (
            f"they are of other distributions by train.{', train.'.join(altered)}, which have to "
            "stay at their defaults"
            if altered
            else "it reads another prompt, other images or other weights"
        )
        raise UserError(
            f"train.use_vllm: vLLM's log-probs of its captions differ from the policy's by "
            f"{numbers}: {why}; train.use_vllm=false samples without"
        )
    return f"vLLM agrees with the policy: log-probs of its captions differ by {numbers}"


def own_logps(
    reference: ReferencePolicy,
    completions: Sequence[list[int]],
    images: Sequence[Image],
    temperature: float,
) -> list[Tensor]:
    """(T,) log p of each token of each completion at a temperature, nats, float32 on the CPU."""
    head = reference.model.get_output_embeddings()

    def read(hidden: Tensor, ids: list[int]) -> Tensor:
        logps = (head(hidden[:-1]).float() / temperature).log_softmax(-1)
        target = torch.tensor(ids, dtype=torch.long, device=logps.device)
        return logps.gather(-1, target[:, None])[:, 0].cpu()

    rows = [list(ids) for ids in completions]
    return reference.read_states(rows, images, "image", read)


def _differences(own: list[Tensor], theirs: Any) -> list[Tensor]:
    """(T,) absolute differences of each completion; UserError where a log-prob is missing."""
    values = [[token[0] for token in row] for row in theirs or []]
    lengths = [len(row) for row in values]
    if lengths != [len(row) for row in own] or not sum(lengths):
        raise UserError(
            f"train.use_vllm: vLLM gave {sum(lengths)} log-probs for the {sum(map(len, own))} "
            "tokens that it sampled; train.use_vllm=false samples without"
        )
    if any(value is None for row in values for value in row):
        raise UserError("train.use_vllm: vLLM gave no log-prob for a token that it sampled")
    return [(a - torch.tensor(b)).abs() for a, b in zip(own, values, strict=True)]
