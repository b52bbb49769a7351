"""TRL's GRPOTrainer with every image and every prompt of a group computed once.

Given `features`, TRL sees rows of text, and `pixel_values` of its batches say which prompt of the
rollout a row has. TRL's shuffling and splitting of batches, its advantages and losses stay.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from trl import GRPOConfig, GRPOTrainer
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import compute_flops_per_token, get_peak_flops

from ..policy.lora import fast_disable_adapter
from ..policy.shared_prefix.attention import LONG, faster_kernel
from ..policy.shared_prefix.collator import Collator
from ..policy.shared_prefix.packing import CaptionForward, add_caption_head, inner, layout
from ..policy.shared_prefix.rollout import Rollout, whole_groups
from ..policy.shared_prefix.sampler import sample
from ..policy.shared_prefix.vision_cache import VisionCache
from .step_timer import StepTimer

VISION = (  # what TRL's forward takes of its training batch, for the families we have
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "mm_token_type_ids",
)


class Packed(GRPOTrainer):
    """GRPOTrainer whose groups share one prompt; without `features` it computes as TRL does."""

    def compute_once(self, features: VisionCache | None) -> None:
        """Keep the time of every phase and, given `features`, compute images and prompts once."""
        self.timer = StepTimer(self.note, _peak_flops(self.args))
        self.add_callback(self.timer)
        self.features, self.rollout = features, Rollout([])
        self._grouped: Any = None
        self._attention_chosen = features is None or not features.cuda
        if features is None:
            return
        args, processor = self.args, self.processing_class
        self.reader = Collator(processor, self.chat_template, self.chat_template_kwargs)
        if args.dataloader_num_workers:  # else only what is not known yet is read
            self.data_collator = self.reader
        if isinstance(self.model, PeftModel):
            fast_disable_adapter(self.model)
        features.sharded = self.sharded
        for model in (self.model, self.ref_model):
            if model is not None:
                add_caption_head(inner(model), self.temperature)

    @property
    def sharded(self) -> bool:
        """Whether the weights may be spread over devices."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def note(self, name: str, value: float) -> None:
        """Add a number to the step that is being logged."""
        self._metrics["train"][name].append(value)

    def caption_forward(
        self, model: Any, inputs: dict[str, Any], *, hidden: bool = False, entropy: bool = False
    ) -> CaptionForward:
        """Log-probs, entropies and last hidden states of a batch's captions (TRL's training batch).

        Packed behind their prompts where there are `features`, else one row per caption.
        """
        ids, mask = inputs["completion_ids"], inputs["completion_mask"]
        if self.features is not None:
            with self.accelerator.autocast():
                done = self.rollout.forward(model, inputs["pixel_values"], ids, mask)
            return CaptionForward(
                done.logps, done.entropies if entropy else None, done.hidden if hidden else None
            )
        states: list[Tensor] = []

        def keep(_module: Any, _args: Any, output: Any) -> None:
            states.append(output.last_hidden_state[:, -ids.shape[1] - 1 : -1])

        hook = inner(model).base_model.register_forward_hook(keep)
        try:
            logps, entropies, _ = self._get_per_token_logps_and_entropies(
                model,
                torch.cat([inputs["prompt_ids"], ids], 1),
                torch.cat([inputs["prompt_mask"], mask], 1),
                ids.shape[1],
                compute_entropy=entropy,
                **{name: inputs[name] for name in VISION if name in inputs},
            )
        finally:
            hook.remove()
        return CaptionForward(logps, entropies, torch.cat(states) if hidden else None)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **more: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        rollout, keep = self.rollout, logits_to_keep
        if self.features is None:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, keep, batch_size, compute_entropy, **more
            )
        if rollout.old is not None:  # what TRL asks for first, right after sampling
            old, rollout.old = pad(rollout.old, (0, keep - rollout.old.shape[1])), None
            return old * attention_mask[:, -keep:], None, None
        ids, mask, of = input_ids[:, -keep:], attention_mask[:, -keep:], more.get("pixel_values")
        with self.accelerator.autocast():
            done = rollout.forward(model, of, ids, mask, batch_size)
        return done.logps, done.entropies if compute_entropy else None, None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        with self.timer("reference"):  # what is left of it beside sampling and rewards
            if self.features is None:
                return super()._generate_and_score_completions(inputs)
            rollout = self.rollout = Rollout(inputs)
            output = super()._generate_and_score_completions(rollout.texts())
        output["pixel_values"] = rollout.of
        if self.log_multimodal:
            self._logs["images"].extend(gather_object([[image] for image in rollout.images]))
        once, stock = rollout.tokens(output["completion_mask"])
        self.note("tokens/unique_share", once / stock)
        self.timer.tokens += once
        self.timer.flops += once * self._flops_per_token(once / len(rollout.prompts))
        self.note("features/hit_rate", self.features.hit_rate())
        return output

    def _flops_per_token(self, length: float) -> float:
        """Of the language model in a step: sampled, learnt from (3 passes' worth), referred to."""
        passes = 4 + (self.beta != 0)
        config = inner(self.model).config.get_text_config()
        return compute_flops_per_token(config, int(length)) * passes / 3

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        inputs = super()._prepare_inputs(generation_batch)
        if self.features is None or not self.model.training:
            return inputs
        buffered: Any = self._buffered_inputs  # type: ignore[has-type]
        if buffered is not self._grouped:
            self._buffered_inputs = self._grouped = buffered = whole_groups(buffered)
        return buffered[self._step % self.args.steps_per_generation]

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[Any, Any, Any]:
        if self.features is None:
            return super()._tokenize_prompts(prompts)
        with self.timer("features"):
            texts = [self.reader.text(prompt) for prompt in prompts]
            self.rollout.look(self.features, texts, self.accelerator.device)
        ids = [prompt.ids.tolist() for prompt in self.rollout.prompts]
        return [ids[n] for n in self.rollout.of.tolist()], None, {}

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, num_generations: int, *more: Any
    ) -> tuple[Any, Any]:
        with self.timer("sample"):
            if self.features is not None and not self.use_vllm:
                return self._sample(), None
            if self.features is not None:
                images = [[image] for image in self.rollout.images]
            return super()._generate_single_turn(
                prompt_ids, images, multimodal_fields, num_generations, *more
            )

    def _sample(self) -> list[list[int]]:
        """A caption for each row of the rollout."""
        args, rollout = self.args, self.rollout
        together = self.sharded and self.accelerator.num_processes > 1
        cuda = self.features is not None and self.features.cuda
        with (
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=args.ds3_gather_for_generation,
                generation_kwargs=self.generation_kwargs,
                gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,
            ) as model,
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
        ):
            done = sample(
                model,
                rollout.prompts,
                rollout.of.tolist(),
                synced=together,
                fixed=cuda and not together,
                generation_config=self.generation_config,
            )
        self._choose_attention(done.ids)
        every = args.steps_per_generation * self.num_iterations
        exact = self.model.dtype == torch.float32 and not (args.bf16 or args.fp16)
        if args.gradient_accumulation_steps % every and exact:  # where TRL wants old log-probs
            rollout.keep_old(done.logps)
        return done.ids

    def _choose_attention(self, captions: list[list[int]]) -> None:
        """Once, on CUDA: the kernel that is quicker for a batch of these captions."""
        if self._attention_chosen:
            return
        self._attention_chosen = True
        rollout, size = self.rollout, self.args.per_device_train_batch_size
        of = rollout.of[:size]
        longest = layout(rollout.prompts, of.tolist(), captions[:size]).ids.shape[1]
        if self.sharded or longest < LONG:
            return
        rows = [torch.tensor(ids, device=of.device) for ids in captions[:size]]
        ids, mask = (
            pad_sequence(some, batch_first=True)
            for some in (rows, list(map(torch.ones_like, rows)))
        )
        learning = [p for p in self.model.parameters() if p.requires_grad]

        def once() -> None:
            with torch.enable_grad(), self.accelerator.autocast():
                done = rollout.forward(self.model, of, ids, mask)
            torch.autograd.grad(done.logps.sum(), learning, allow_unused=True)

        for kernel, seconds in faster_kernel(inner(self.model), once).items():
            self.note(f"attention/{kernel}", seconds)
        if self.ref_model is not None:
            kernel = inner(self.model).config.get_text_config()._attn_implementation
            inner(self.ref_model).set_attn_implementation({"text_config": kernel})

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: Any, completions: Any, completion_ids: Any
    ) -> Tensor:
        if self.features is not None:
            images = self.rollout.images
            inputs = [row | {"image": image} for row, image in zip(inputs, images, strict=True)]
        with self.timer("rewards"):
            return super()._calculate_rewards(inputs, prompts, completions, completion_ids)

    def training_step(self, *told: Any) -> Tensor:
        with self.timer("forward_backward"):
            return super().training_step(*told)

    def get_batch_samples(self, *told: Any) -> Any:
        with self.timer("data"):
            return super().get_batch_samples(*told)


def _peak_flops(args: GRPOConfig) -> float | None:
    """What the device can do in a second; None where that is not known, and on a CPU."""
    if args.use_cpu or not torch.cuda.is_available():
        return None
    return get_peak_flops(torch.cuda.get_device_name(), "float16" if args.fp16 else "bfloat16")
