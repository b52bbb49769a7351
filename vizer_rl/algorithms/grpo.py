"""GRPO on TRL's trainer: whole groups, each image and prompt computed once, completions that end.

Each method of TRL's is overridden once, here or in resumable.py. What other algorithms change are
hooks: `sampling_policy`, `finish_rollout`, `loss`, `after_backward`. Kept from TRL: advantages,
losses, shuffling, logging, several devices. With a `vision_cache` TRL sees rows of text and an
index of their images; without, it computes as stock. ViZer's loss and rewards read the states of
passes for log-probs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from peft import LoraConfig
from torch import Tensor
from transformers import PrinterCallback
from trl import GRPOConfig

from ..files import naming
from ..policy.shared_prefix.collator import Collator
from ..policy.shared_prefix.packing import CaptionForward
from ..policy.shared_prefix.rollout import PROMPT_IDX_KEY, Rollout, whole_groups
from ..policy.shared_prefix.vision_cache import VisionCache
from ..policy.whole_weights import whole_weights
from ..scoring.aggregation import advantages, penalties
from ..scoring.reward_functions import RewardFunctions
from . import trl_logs, trl_sampling
from .alignment_loss import AlignmentLoss
from .last_rollout import LastRollout
from .opening import finish_opening, finish_reference
from .resumable import Resumable
from .step_guard import StepGuard
from .step_timer import StepTimer
from .trl_forward import forward_arguments, offer_states, row_per_completion, take_packed_rows


class GRPO(Resumable):
    """TRL's GRPOTrainer; completions hold no special tokens; `reward_functions` scores them."""

    takes_opening = True  # whether completions get the opening that rewards want in front
    rewards_NK: Tensor  # of the last rollout on all devices; NaN where a reward did not judge
    forward_pass: CaptionForward | None = None  # what TRL's loss takes instead of one of its own

    def __init__(
        self,
        model: Any,
        processor: Any,
        lora: LoraConfig,
        reward_functions: RewardFunctions,
        args: GRPOConfig,
        dataset: Any,
        vision_cache: VisionCache | None = None,
        alignment: Callable[[Any], AlignmentLoss] | None = None,
    ) -> None:
        """alignment: makes ViZer's loss from the model that has its adapter; None: without it."""
        args.generation_kwargs = trl_sampling.generation_arguments(args, model, processor)
        super().__init__(
            model=model,
            reward_funcs=reward_functions.trl_functions(),
            args=args,
            train_dataset=dataset,
            processing_class=processor,
            peft_config=lora,
        )
        self.remove_callback(PrinterCallback)  # the progress bar and metrics.jsonl tell the same
        self.reward_functions = reward_functions
        self.tables = trl_logs.CompletionTables(args.log_completions, args.num_completions_to_print)
        self.vision_cache, self.rollout = vision_cache, Rollout([])
        log, ids = self.log_metric, lambda: self.rollout.image_ids
        self.timer, self.guard = StepTimer(log, args), StepGuard(log, ids, reward_functions.warn)
        self.add_callback(self.timer)
        self.add_callback(self.guard)
        self._grouped: Any = None  # TRL's buffered batches, once their groups are whole
        self._attention_chosen = False
        self.holders |= {"noise": reward_functions.noise, "tables": self.tables}
        self.last_rollout = self.holders["last_rollout"] = LastRollout(reward_functions)
        if vision_cache is not None:
            self._share_prefixes(vision_cache)
        self.alignment = alignment(self.model) if alignment else None

    def _share_prefixes(self, vision_cache: VisionCache) -> None:
        """Let models take packed rows, and workers read images ahead."""
        chat = self.chat_template, self.chat_template_kwargs
        self.collator = Collator(self.processing_class, *chat, vision_cache.dtype)
        if self.args.dataloader_num_workers:  # else only images that are not cached are read
            self.data_collator = self.collator
        take_packed_rows(self.model, self.ref_model, self.temperature)

    def sampling_policy(self) -> AbstractContextManager[Any]:
        """A context in which completions are sampled; here they are the policy's as it is."""
        return nullcontext()

    def finish_rollout(self, output: dict[str, Any]) -> None:
        """Change TRL's rollout before it is split into batches.

        Here: rank completions that fail a gate; where none does TRL's advantages stand.
        """
        gates_K = self.reward_functions.gates_K.to(self.rewards_NK.device)
        rewards = self.rewards_NK, self.reward_weights.to(self.rewards_NK), gates_K
        if penalties(*rewards).any():
            scaling = self.num_generations, self.multi_objective_aggregation, self.scale_rewards
            trl_logs.replace_advantages(self, output, advantages(*rewards, *scaling))

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL's loss, and `alignment_coef` times ViZer's from the same pass."""
        if self.alignment is None:
            return super()._compute_loss(model, inputs)
        with self.shared_forward(model, inputs) as forward:
            loss = super()._compute_loss(model, inputs)
        model = self.accelerator.unwrap_model(model)
        alignment_loss, metrics = self.alignment.batch_loss(model, forward.hidden, inputs)
        for name, value in metrics.items():
            self.log_metric(f"alignment/{name}", value)
        coef, steps = self.args.alignment_coef, self.current_gradient_accumulation_steps
        return loss + coef * alignment_loss / steps

    def after_backward(self) -> None:
        """Update what is not the policy's, once the gradients of a batch are there."""

    def log_metric(self, name: str, value: float) -> None:
        """Add a number to the step's log."""
        self._metrics["train"][name].append(value)

    def caption_forward(self, model: Any, inputs: dict[str, Any]) -> CaptionForward:
        """Log-probs, entropies and last hidden states of a batch's completions (TRL's batch).

        Packed behind their prompts where there is a `vision_cache`, else one row per completion.
        """
        if self.vision_cache is None:
            return row_per_completion(super()._get_per_token_logps_and_entropies, model, inputs)
        ids, mask = inputs["completion_ids"], inputs["completion_mask"]
        with self.accelerator.autocast():
            return self.rollout.forward(model, inputs[PROMPT_IDX_KEY], ids, mask)

    @contextmanager
    def shared_forward(self, model: Any, inputs: dict[str, Any]) -> Iterator[CaptionForward]:
        """A pass with hidden states, which TRL's loss uses inside; nested, it is the outer one."""
        outer = self.forward_pass
        self.forward_pass = outer or self.caption_forward(model, inputs)
        try:
            yield self.forward_pass
        finally:
            self.forward_pass = outer

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        inputs = super()._prepare_inputs(generation_batch)
        if self.vision_cache is None or not self.model.training:
            return inputs
        buffered: Any = self._buffered_inputs  # type: ignore[has-type]
        if buffered is not self._grouped:
            self._buffered_inputs = self._grouped = buffered = whole_groups(buffered)
        return buffered[self._step % self.args.steps_per_generation]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        with whole_weights(self.model):  # for all that asks the model rank by rank
            with self.timer("reference"):  # beside vision, sampling, rewards
                self.rollout = Rollout(inputs)
                if self.vision_cache is None:
                    output = super()._generate_and_score_completions(inputs)
                else:
                    output = super()._generate_and_score_completions(self.rollout.texts())
                    trl_logs.record_rollout(self, output)
            if self.alignment is not None:
                output["image_features"] = self.alignment.row_features(inputs)
            finish_reference(self, output)
            self.finish_rollout(output)
            finish_opening(self, output)
        self.last_rollout.judged(self.rewards_NK, self._logs["advantages"])
        return output

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[Any, Any, Any]:
        if self.vision_cache is None:
            return super()._tokenize_prompts(prompts)
        with self.timer("vision"):
            texts, device = map(self.collator.text, prompts), self.accelerator.device
            self.rollout.encode_prompts(self.vision_cache, list(texts), device, self.sharded)
        ids = [prompt.ids.tolist() for prompt in self.rollout.prompts]
        return [ids[index] for index in self.rollout.prompt_idx.tolist()], None, {}

    def _generate_single_turn(self, prompt_ids: Any, images: Any, *args: Any, **kwargs: Any) -> Any:
        with self.timer("sample"), self.sampling_policy():
            if self.vision_cache is not None and not self.use_vllm:
                completions = trl_sampling.sample_completions(self, self.rollout)
                if self.vision_cache.cuda and not self._attention_chosen:
                    self._attention_chosen = True
                    trl_sampling.choose_attention(self, self.rollout, completions)
                return completions, None
            if self.vision_cache is not None:
                images = [[image] for image in self.rollout.images]
            return super()._generate_single_turn(prompt_ids, images, *args, **kwargs)

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, keep: int, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if self.forward_pass is not None:
            return self.forward_pass.logps, self.forward_pass.entropies, None
        if self.vision_cache is None:
            kwargs = forward_arguments(model, input_ids, kwargs)
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, keep, **kwargs
            )
        ids, mask = input_ids[:, -keep:], attention_mask[:, -keep:]
        if (old_logps := self.rollout.take_old_logps(mask)) is not None:
            return old_logps, None, None  # what TRL asks for first, right after sampling
        prompt_idx, size = kwargs.get(PROMPT_IDX_KEY), kwargs.get("batch_size")
        with self.accelerator.autocast():
            forward = self.rollout.forward(model, prompt_idx, ids, mask, size)
        return forward.logps, forward.entropies if kwargs.get("compute_entropy") else None, None

    def _calculate_rewards(self, inputs: list[dict[str, Any]], *args: Any) -> Tensor:
        self.last_rollout.sampled(self.rollout.image_ids, *args)
        with self.timer("rewards"):
            offer_states(self, args[-1])
            self.rewards_NK = super()._calculate_rewards(self.rollout.with_images(inputs), *args)
        kinds = self.rewards_NK, self.multi_objective_aggregation, self.scale_rewards
        for name, value in self.reward_functions.step_metrics(*kinds).items():
            self.log_metric(name, value)
        return self.rewards_NK

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        loss = self.loss(model, inputs)
        trl_logs.log_caption_kl(self, inputs["completion_mask"])
        return loss

    def training_step(self, *args: Any) -> Tensor:
        with self.timer("forward_backward"):
            loss = super().training_step(*args)
        self.guard.watch(loss)
        self.after_backward()
        return loss

    def get_batch_samples(self, *args: Any) -> Any:
        with self.timer("data"):
            return super().get_batch_samples(*args)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        trl_logs.rename_reward_metrics(self._metrics["train"], self.reward_func_names)
        trl_logs.mean_over_processes(self)
        self.log_completions = self.tables.due(logs, self.state.global_step, self._logs)
        with naming(f"{self.args.output_dir}/completions"):  # the table that TRL writes
            super().log(logs, start_time)

    def buffer_state(self) -> dict[str, Any]:
        return self.rollout.state_dict()

    def load_buffer_state(self, state: dict[str, Any]) -> None:
        self._grouped = self._buffered_inputs
        self.rollout = Rollout.from_state(state, self.accelerator.device)
