"""The reference policy as rewards see it (`rewards.ReferencePolicy`): adapter off, no gradient."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from PIL.Image import Image

from rewards.lib.images import Picked

from ..data.lazy import map_rows
from ..data.perturb import VIEWS
from ..policy import captioner
from ..policy.chat import answer_text, chat_text, messages
from ..policy.families import FAMILIES
from ..policy.hidden_states import TOKENS, hidden_states
from ..policy.load import end_id
from ..policy.lora import adapter_off
from ..policy.vision import ImageInputs, encode_images, process_images
from ..policy.weights_hash import weights_hash

SAMPLED = 4 * TOKENS  # tokens of prompts and captions in one batch of samples
ANSWERS = (("Yes", "yes"), ("No", "no"))


class ReferencePolicy:
    """The model before training, with its adapter off, in eval mode and without gradients.

    `model` may be the base model, before or after PEFT puts LoRA layers into it, or a PeftModel;
    `prompt` is the question on every image; `instruct` whether the model answers questions: None
    reads it from the name `source`, see `answers_questions`.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        source: str,
        *,
        prompt: str = "Describe the image.",
        instruct: bool | None = None,
        max_new_tokens: int = 64,
    ) -> None:
        self.model = model.get_base_model() if isinstance(model, PeftModel) else model
        self.processor, self.prompt = processor, prompt
        self.max_new_tokens = max_new_tokens
        self.instruct = answers_questions(source, processor) if instruct is None else instruct
        self.key = content_key(model, processor)
        self._features: dict[str, torch.Tensor] = {}

    @contextmanager
    def _as_before_training(self) -> Iterator[None]:
        """Adapter off, eval mode, no gradient; every module's mode is restored."""
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            with torch.no_grad(), adapter_off(self.model):
                yield
        finally:
            for module, mode in modes:
                module.training = mode

    def image_features(self, ids: Sequence[str], images: Sequence[Image]) -> torch.Tensor:
        """(N, D) mean output of the vision tower, before the connector; once per image id."""
        where = {i: row for row, i in reversed(list(enumerate(ids))) if i not in self._features}
        inputs: dict[str, ImageInputs] = {}
        with self._as_before_training():
            token = str(self.processor.image_token)
            decoded = map_rows(images, [*where.values()], lambda image: image)
            for name, image in zip(where, decoded, strict=True):
                (inputs[name],) = process_images(self.processor, [image], [token])
                if sum(len(i["ids"]) for i in inputs.values()) >= TOKENS:
                    self._keep_features(inputs)
                    inputs.clear()
            self._keep_features(inputs)
        return torch.stack([self._features[i] for i in ids])

    def _keep_features(self, inputs: dict[str, ImageInputs]) -> None:
        if inputs:
            means = [
                hidden.flatten(0, -2).mean(0)
                for hidden, _ in encode_images(self.model, [*inputs.values()])
            ]
            self._features.update(zip(inputs, (m.float() for m in means), strict=True))

    def caption_states(
        self,
        captions: Sequence[str],
        images: Sequence[Image] | None = None,
        end: bool = True,
    ) -> torch.Tensor:
        """(N, D) mean last hidden state over the caption's tokens and, with `end`, its end token.

        Without images the caption is read alone; with them after image and prompt, as ViZer does.
        An empty caption has its end's state alone, whatever `end` says.
        """
        eos = [end_id(self.model, self.processor)]
        if images is None:
            completions = [self._tokenize(c) + eos for c in captions]
            prompts = [""] * len(completions)
        else:
            chat = self._chat(self.prompt)
            completions = [self._tokenize(self._answer(chat, c)) + eos for c in captions]
            prompts = [chat] * len(completions)
        means = []
        with self._as_before_training():
            for hidden, ids in zip(
                self._hidden(prompts, completions, images), completions, strict=True
            ):
                states = hidden[-len(ids) :].float()
                means.append((states if end or len(ids) == 1 else states[:-1]).mean(0))
        return torch.stack(means)

    def log_probs(
        self, captions: Sequence[str], images: Sequence[Image] | None = None, view: str = "image"
    ) -> list[torch.Tensor]:
        """log p of each token of each caption, given the prompt and a view of its image.

        Returns one (T_i,) float32 tensor on the CPU per caption; its end is not among the tokens.
        view: "image"; "masked", 60 % of it; "blank", its mean colour; "text", without images.
        Raises ValueError for another view, or where images and view do not fit together.
        """
        if view not in (*VIEWS, "text"):
            raise ValueError(f"view {view!r} is unknown: there are {', '.join(VIEWS)}, text")
        if (images is None) != (view == "text"):
            raise ValueError(
                f"view {view!r} {'takes no' if images is not None else 'needs'} images"
            )
        chat = self._chat(self.prompt, image=images is not None)
        completions = [self._tokenize(self._answer(chat, c)) for c in captions]
        head, out = self.model.get_output_embeddings(), []
        with self._as_before_training():
            states = self._hidden([chat] * len(completions), completions, images, view)
            for hidden, ids in zip(states, completions, strict=True):
                before = hidden[len(hidden) - len(ids) - 1 : -1]
                logp = head(before).float().log_softmax(-1)
                target = torch.tensor(ids, dtype=torch.long, device=logp.device)
                out.append(logp.gather(-1, target[:, None])[:, 0].cpu())
        return out

    def tokens(self, caption: str) -> list[str]:
        """The text of each token that `log_probs` gives a number for; joined, the caption."""
        text = self._answer(self._chat(self.prompt), caption)
        encoding = self.processor.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
        pieces, start = [], 0
        for _, end in encoding["offset_mapping"]:  # a letter of several tokens is the first one's
            pieces.append(text[start:end])
            start = max(start, end)
        return pieces

    def sample(self, images: Sequence[Image], count: int, seed: int) -> list[list[str]]:
        """`count` captions of each image, sampled at temperature 1; the same seed, the same."""
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        repeated = Picked(images, [row for row in range(len(images)) for _ in range(count)])
        with self._as_before_training(), torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            sampled = captioner.caption(
                self.model,
                self.processor,
                repeated,
                self.prompt,
                max_new_tokens=self.max_new_tokens,
                temperature=1.0,
                batch_size=self._sample_batch_size(images),
            )
        texts = [caption.text for caption in sampled]
        return [texts[i : i + count] for i in range(0, len(texts), count)]

    def _sample_batch_size(self, images: Sequence[Image]) -> int:
        """How many captions to sample at once: of a token, only keys and values are kept."""
        if not len(images):
            return 1
        (prompt,) = process_images(self.processor, [images[0]], [self._chat(self.prompt)])
        return max(1, SAMPLED // (len(prompt["ids"]) + self.max_new_tokens))

    def yes(
        self, questions: Sequence[str], images: Sequence[Image], view: str = "image"
    ) -> torch.Tensor:
        """(N,) p(yes) / (p(yes) + p(no)) of the first word of the answer, float32 on the CPU."""
        chats = [self._chat(question) for question in questions]
        head, out = self.model.get_output_embeddings(), []
        with self._as_before_training():
            states = self._hidden(chats, [[]] * len(chats), images, view)
            for hidden, chat in zip(states, chats, strict=True):
                logits = head(hidden[-1:]).float()[0]
                yes, no = (logits[self._word_ids(chat, w)].logsumexp(0) for w in ANSWERS)
                out.append((yes - no).sigmoid().cpu())
        return torch.stack(out) if out else torch.empty(0)

    def _word_ids(self, chat: str, words: Sequence[str]) -> list[int]:
        ids = [self._tokenize(self._answer(chat, word)) for word in words]
        if any(len(word) != 1 for word in ids):
            raise ValueError(f"this model cannot be asked: its tokenizer splits {words[0]!r}")
        return [word[0] for word in ids]

    def _chat(self, question: str, image: bool = True) -> str:
        """The conversation up to the answer, as text."""
        return chat_text(self.processor, messages(question), image=image)

    def _answer(self, chat: str, text: str) -> str:
        return answer_text(self.processor, chat, text)

    def _tokenize(self, text: str) -> list[int]:
        """Token ids of plain text: what looks like a special token is none."""
        tokenizer = self.processor.tokenizer
        ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        return ids

    def _hidden(
        self,
        chats: Sequence[str],
        completions: Sequence[list[int]],
        images: Sequence[Image] | None,
        view: str = "image",
    ) -> Iterator[torch.Tensor]:
        return hidden_states(self.model, self.processor, chats, completions, images, view)


def answers_questions(source: str, processor: Any) -> bool:
    """Whether a checkpoint says so: its name has "instruct" in it and it brings a chat template."""
    fallbacks = [family.chat_template for family in FAMILIES.values()]
    return "instruct" in Path(source).name.lower() and processor.chat_template not in fallbacks


def content_key(model: Any, processor: Any) -> str:
    """16 hexadecimal digits, others for other weights (but LoRA's) and processor settings."""
    images = processor.image_processor.to_dict()
    settings = json.dumps([processor.chat_template, images], sort_keys=True, default=str)
    base = (item for item in model.named_parameters() if "lora_" not in item[0])
    return weights_hash(base, settings)
