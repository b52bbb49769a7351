"""GRPO: TRL's trainer on our policy, images and rewards. All we lean on in TRL stands here.

Kept from TRL: advantages, losses, logging, several devices, resuming. Ours: special tokens are
never sampled, every reward sees whole groups, a caption without end gets the floor, the completions
table names the images, and, given `features`, every image and every prompt is computed once: TRL
then sees rows of text, and its `pixel_values` say which prompt a row belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import LoraConfig, PeftModel
from torch import Tensor
from torch.nn.functional import pad
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.data_utils import prepare_multimodal_messages
from trl.models import unwrap_model_for_generation

from ..adapter import quick_off
from ..features import Features
from ..policy import forbidden_ids
from ..rollout import Rollout, whole_groups
from ..sampler import sample
from ..scoring import Scoring
from ..shared_prefix import CaptionForward, add_caption_head, inner
from ..timing import Clock
from ..tracking import said

VISION = (  # what TRL's forward takes of its training batch, for the families we have
    "pixel_values",
    "image_grid_thw",
    "num_images",
    "pixel_attention_mask",
    "mm_token_type_ids",
)
COMPLETIONS_EVERY = 20  # steps between two completions tables: a table holds a batch of images


DEFAULTS = {
    "loss_type": "dr_grpo",  # no length bias
    "multi_objective_aggregation": "normalize_then_sum",
    "num_generations": 8,
    "beta": 0.02,
    "temperature": 1.0,
    "max_completion_length": 64,
    "num_completions_to_print": 0,
    "log_completions": True,
    "bf16": False,
}


def arguments(
    train: dict[str, Any],
    *,
    directory: Path,
    seed: int,
    weights: list[float],
    report_to: list[str],
) -> GRPOConfig:
    """TRL's config from a run's `train` section over DEFAULTS, with what other sections decide."""
    on_cpu = not torch.cuda.is_available()
    return GRPOConfig(
        **{**DEFAULTS, "gradient_checkpointing": not on_cpu, **train},
        output_dir=str(directory),
        seed=seed,
        report_to=report_to,
        run_name=directory.name,
        reward_weights=weights,
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=on_cpu,
    )


class GRPO(GRPOTrainer):
    """TRL's GRPOTrainer; captions hold no special tokens and are scored with `scoring`."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        lora: LoraConfig,
        scoring: Scoring,
        args: GRPOConfig,
        dataset: Any,
        callbacks: Sequence[TrainerCallback],
        features: Features | None = None,
    ) -> None:
        forbidden = forbidden_ids(model, processor)
        kwargs = dict(args.generation_kwargs or {})
        if args.use_vllm:
            kwargs["logit_bias"] = kwargs.get("logit_bias", {}) | dict.fromkeys(forbidden, -100.0)
        else:
            kwargs["suppress_tokens"] = sorted({*forbidden, *kwargs.get("suppress_tokens", [])})
        args.generation_kwargs = kwargs
        super().__init__(
            model=model,
            reward_funcs=scoring.functions(),
            args=args,
            train_dataset=dataset,
            processing_class=processor,
            peft_config=lora,
            callbacks=list(callbacks),
        )
        self.remove_callback(PrinterCallback)  # the progress bar and metrics.jsonl tell the same
        self._wants_completions, self._next_table = args.log_completions, 0
        self.clock = Clock(self.note)
        self.add_callback(self.clock)
        self.features, self.rollout, self._grouped = features, Rollout([]), None
        self._texts: dict[str, str] = {}
        if features is not None:
            if isinstance(self.model, PeftModel):
                quick_off(self.model)
            features.sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
            for one in (self.model, self.ref_model):
                if one is not None:
                    add_caption_head(inner(one), self.temperature)

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
        with self.clock("reference"):  # what is left of it beside sampling and rewards
            if self.features is None:
                return super()._generate_and_score_completions(inputs)
            rollout = self.rollout = Rollout(inputs)
            output = super()._generate_and_score_completions(rollout.texts())
        output["pixel_values"] = rollout.of
        if self.log_multimodal:
            self._logs["images"].extend(gather_object([[image] for image in rollout.images]))
        once, stock = rollout.tokens(output["completion_mask"])
        self.note("tokens/unique_share", once / stock)
        self.note("features/hit_rate", self.features.hit_rate())
        return output

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        inputs = super()._prepare_inputs(generation_batch)
        if self.features is None or not self.model.training:
            return inputs
        if self._buffered_inputs is not self._grouped:
            self._buffered_inputs = self._grouped = whole_groups(self._buffered_inputs)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[Any, Any, Any]:
        if self.features is None:
            return super()._tokenize_prompts(prompts)
        with self.clock("features"):
            texts = [self._text(prompt) for prompt in prompts]
            self.rollout.look(self.features, texts, self.accelerator.device)
        ids = [prompt.ids.tolist() for prompt in self.rollout.prompts]
        return [ids[n] for n in self.rollout.of.tolist()], None, {}

    def _text(self, prompt: list[dict[str, Any]]) -> str:
        """A conversation in its chat template, with a place for the image."""
        key = str(prompt)
        if key not in self._texts:
            self._texts[key] = self.processing_class.apply_chat_template(
                prepare_multimodal_messages(prompt, images=[None]),
                chat_template=self.chat_template,
                add_generation_prompt=True,
                tokenize=False,
                **self.chat_template_kwargs,
            )
        return self._texts[key]

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, num_generations: int, *more: Any
    ) -> tuple[Any, Any]:
        with self.clock("sample"):
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
                synced=self.features.sharded and self.accelerator.num_processes > 1,
                generation_config=self.generation_config,
            )
        every = args.steps_per_generation * self.num_iterations
        exact = self.model.dtype == torch.float32 and not (args.bf16 or args.fp16)
        if args.gradient_accumulation_steps % every and exact:  # where TRL wants old log-probs
            rollout.keep_old(done.logps)
        return done.ids

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: Any, completions: Any, completion_ids: Any
    ) -> Tensor:
        if self.features is not None:
            images = self.rollout.images
            inputs = [row | {"image": image} for row, image in zip(inputs, images, strict=True)]
        with self.clock("rewards"):
            return super()._calculate_rewards(inputs, prompts, completions, completion_ids)

    def training_step(self, *told: Any) -> Tensor:
        with self.clock("forward_backward"):
            return super().training_step(*told)

    def get_batch_samples(self, *told: Any) -> Any:
        with self.clock("data"):
            return super().get_batch_samples(*told)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as TRL does, with a completions table only every COMPLETIONS_EVERY steps."""
        due = "loss" in logs and self.state.global_step >= self._next_table
        self.log_completions = self._wants_completions and due
        if due:
            self._next_table = self.state.global_step + COMPLETIONS_EVERY
        for column in ("prompt", "completion") if self.log_completions else ():
            told = self._logs[column]  # as text: W&B's tables refuse TRL's lists of messages
            told.extend([said(told.popleft()) for _ in range(len(told))])
        super().log(logs, start_time)
