"""Parity of an export: logits and captions of the run against those of the files, loaded plainly.

"Before" is the run as vizer_rl evaluates it: its own captioner, its own way through the tower.
"After" uses nothing of this package: it is the program on the model card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from PIL.Image import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from ..errors import UserError
from ..evaluation.run_policy import RunPolicy
from ..policy.chat import chat_text, messages
from ..policy.load import device
from ..policy.vision import process_images, token_type_inputs, tower_inputs

PARITY_IMAGES = 8
TOKEN_TYPES = {"token_type_ids", "mm_token_type_ids"}  # what tells image tokens from text
# Root mean square difference of a caption's logits, in their standard deviation: what rounding
# does in each type (docs/export.md has measured ones), and a caption may differ at a tie.
BOUNDS = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
TIE = 4.0  # times the bound: two tokens as near as this may change places


@dataclass(frozen=True)
class Outputs:
    """Of N images: greedy captions, their token ids with the end, and (T, V) logits behind each.

    before: whose token ids the logits are conditioned on is the run's in both cases.
    """

    pictures: list[Image]
    prompt: str
    captions: list[str]
    ids: list[list[int]]
    logits: list[Tensor]


@dataclass(frozen=True)
class Parity:
    """How an export compares with its run. logits: the largest difference, in their deviation."""

    images: int
    same_captions: int
    ties: int  # captions that differ where two tokens were as good as each other
    logits: float
    bound: float
    dtype: str
    device: str

    @property
    def holds(self) -> bool:
        """Whether the export answers as the run does, but for rounding."""
        return self.logits <= self.bound and self.same_captions + self.ties == self.images

    def sentence(self) -> str:
        """The result in words."""
        ties = f", {self.ties} more but for a tie of two tokens" if self.ties else ""
        return (
            f"Of {self.images} images {self.same_captions} captions are the same{ties}; "
            f"logits differ by {self.logits:.1e} of their standard deviation (at most "
            f"{self.bound:.0e}; {self.dtype} on {self.device})."
        )

    def as_json(self) -> dict[str, Any]:
        """For export.json."""
        return asdict(self)


@torch.no_grad()
def run_outputs(policy: RunPolicy, pictures: Sequence[Image]) -> Outputs:
    """What the run says of these images, its adapter on."""
    prompt, model, logits = policy.run.data.prompt, policy.model, []
    captions = policy.captions(pictures)
    text = chat_text(policy.processor, messages(prompt))
    for picture, caption in zip(pictures, captions, strict=True):
        (row,) = process_images(policy.processor, [picture], [text])
        ids = row["ids"][None].to(model.device)
        inputs = {"input_ids": ids, **tower_inputs(row, model.device)}
        inputs |= token_type_inputs(model, ids)
        logits.append(_logits(model, inputs, caption.ids))
    return Outputs(
        list(pictures), prompt, [c.text for c in captions], [c.ids for c in captions], logits
    )


@torch.no_grad()
def plain_outputs(
    folder: Path,
    base: str | None,
    dtype: torch.dtype,
    before: Outputs,
    settings: Mapping[str, Any],
) -> Outputs:
    """What the files of an export say, loaded by transformers and PEFT alone; logits of the run's
    own captions.

    base: of an adapter; None: `folder` has the whole weights. settings: `base_settings`.
    """
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(base or folder, dtype=dtype, **settings)
    model = PeftModel.from_pretrained(model, folder) if base else model
    model = (model if "device_map" in settings else model.to(device())).eval()
    greedy = GenerationConfig.from_pretrained(folder)
    captions, completions, logits = [], [], []
    for picture, ids in zip(before.pictures, before.ids, strict=True):
        content = [{"type": "image", "image": picture}, {"type": "text", "text": before.prompt}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        ).to(model.device)
        row = model.generate(**inputs, generation_config=greedy)
        row = row[0, inputs["input_ids"].shape[1] :].tolist()
        captions.append(processor.decode(row, skip_special_tokens=True).strip())
        completions.append(row)
        logits.append(_logits(model, dict(inputs), ids))
    return Outputs(before.pictures, before.prompt, captions, completions, logits)


def _logits(model: Any, inputs: dict[str, Tensor], ids: list[int]) -> Tensor:
    """(T, V) logits from which each of a caption's T tokens is chosen, float32, on the CPU."""
    prompt = inputs["input_ids"]
    answer = torch.tensor([ids], device=prompt.device)
    inputs = inputs | {"input_ids": torch.cat([prompt, answer], 1)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    for name in TOKEN_TYPES & inputs.keys():
        kinds = inputs[name]
        inputs[name] = torch.cat([kinds, kinds.new_zeros(answer.shape)], 1)
    start = prompt.shape[1] - 1
    logits: Tensor = model(**inputs, use_cache=False).logits[0, start : start + len(ids)]
    return logits.float().cpu()


def compare(before: Outputs, after: Outputs, dtype: torch.dtype) -> Parity:
    """Captions and logits of a run against those of its export."""
    bound, worst, same, ties = BOUNDS[dtype], 0.0, 0, 0
    for n, (old, new) in enumerate(zip(before.logits, after.logits, strict=True)):
        difference = (new - old).square().mean().sqrt() / old.std()
        worst = max(worst, difference.item()) if bool(difference.isfinite()) else float("inf")
        if before.captions[n] == after.captions[n]:
            same += 1
        else:
            ties += _gap(old, before.ids[n], after.ids[n]) <= TIE * bound
    kind = str(dtype).removeprefix("torch.")
    return Parity(len(before.captions), same, int(ties), worst, bound, kind, device().type)


def _gap(logits: Tensor, ids: list[int], other: list[int]) -> float:
    """How much better the first token of a caption is that another has not, in deviations."""
    pairs = zip(ids, other, strict=False)
    t = next((t for t, (a, b) in enumerate(pairs) if a != b), None)
    if t is None:  # one goes on where the other is over
        return float("inf")
    return float((logits[t, ids[t]] - logits[t, other[t]]) / logits.std())


def check_parity(before: Outputs, after: Outputs, dtype: torch.dtype) -> Parity:
    """How an export compares with its run; UserError where it does not answer as the run does."""
    parity = compare(before, after, dtype)
    if not parity.holds:
        raise UserError(
            f"the export does not answer as the run does, so nothing is kept of it. "
            f"{parity.sentence()}"
        )
    return parity
