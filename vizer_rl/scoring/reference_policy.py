"""The reference policy as rewards see it (`rewards.ReferencePolicy`): adapter off, no gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, TypeVar

import torch
from peft import PeftModel
from PIL.Image import Image

from rewards.lib.images import Picked

from ..data.lazy import map_rows
from ..policy import captioner
from ..policy.before_training import BeforeTraining
from ..policy.chat import answer_text, answers_questions, chat_text, messages
from ..policy.families import Family
from ..policy.hidden_states import TOKENS, check_view, hidden_states
from ..policy.load import end_id
from ..policy.vision import ImageInputs, encode_images, process_images
from ..policy.weights_hash import content_key
from .offered_states import OfferedStates
from .packed_states import PackedStates
from .word_certainty import WordCertainty

T = TypeVar("T")
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
        family: Family | None = None,
    ) -> None:
        """family: where captions of an image may share its pass; None: a row for each."""
        self.model = model.get_base_model() if isinstance(model, PeftModel) else model
        self.processor, self._parts = processor, (self.model, processor)
        self.prompt, self.max_new_tokens = prompt, max_new_tokens
        kind = self.model.config.model_type
        self.instruct = answers_questions(source, kind, processor) if instruct is None else instruct
        self.key, self.offered = content_key(model, processor), OfferedStates()
        self._packed = PackedStates(self.model, processor, family) if family else None
        self._features: dict[str, torch.Tensor] = {}
        self._chats: dict[tuple[str, bool], str] = {}
        self.as_before_training = BeforeTraining(self.model)

    def image_features(self, ids: Sequence[str], images: Sequence[Image]) -> torch.Tensor:
        """(N, D) mean output of the vision tower, before the connector; once per image id."""
        where = {i: row for row, i in reversed(list(enumerate(ids))) if i not in self._features}
        inputs: dict[str, ImageInputs] = {}
        with self.as_before_training():
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
            encoded = encode_images(self.model, [*inputs.values()])
            means = [hidden.flatten(0, -2).mean(0) for hidden, _ in encoded]
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
            completions = [self.token_ids(c) + eos for c in captions]
            prompts = [self._chat(self.prompt)] * len(completions)
        means = []
        with self.as_before_training():
            rows = hidden_states(*self._parts, prompts, completions, images, "image")
            for hidden, ids in zip(rows, completions, strict=True):
                states = hidden[-len(ids) :].float()
                means.append((states if end or len(ids) == 1 else states[:-1]).mean(0))
        return torch.stack(means)

    def log_probs(
        self,
        captions: Sequence[str],
        images: Sequence[Image] | None = None,
        view: str = "image",
        packed: bool = False,
    ) -> list[torch.Tensor]:
        """log p of each token of each caption, given the prompt and a view of its image.

        Returns one (T_i,) float32 tensor on the CPU per caption; its end is not among the tokens.
        view: "image"; "masked", 60 % of it; "blank", its mean colour; "text", without images.
        packed: as of `read_states`. ValueError where view and images do not fit together.
        """
        head = self.model.get_output_embeddings()

        def read(hidden: torch.Tensor, ids: list[int]) -> torch.Tensor:
            logp = head(hidden[:-1]).float().log_softmax(-1)
            target = torch.tensor(ids, dtype=torch.long, device=logp.device)
            return logp.gather(-1, target[:, None])[:, 0].cpu()

        completions = [self.token_ids(c, image=images is not None) for c in captions]
        return self.read_states(completions, images, view, read, packed)

    def read_states(
        self,
        completions: Sequence[list[int]],
        images: Sequence[Image] | None,
        view: str,
        read: Callable[[torch.Tensor, list[int]], T],
        packed: bool = False,
    ) -> list[T]:
        """read(hidden, ids) of each completion's T token ids behind the prompt; on no gradient.

        hidden: (T + 1, D) last hidden states before each token, and behind the last one;
        packed: captions of one image, the same object, may share its pass.
        """
        check_view(view, images)
        offered = self.offered.find(images if view == "image" else None, completions)
        rows = [row for row, states in enumerate(offered) if states is None]
        chat = self._chat(self.prompt, image=images is not None)
        own = [completions[row] for row in rows]
        with self.as_before_training():
            pictures = None if images is None else Picked(images, rows)
            if packed and self._packed and pictures is not None and self.shares_prefixes(view):
                states = self._packed(chat, own, pictures, self.offered.prompt)
            else:
                states = hidden_states(*self._parts, [chat] * len(rows), own, pictures, view)
            both = (next(states) if given is None else given for given in offered)
            pairs = zip(both, completions, strict=True)
            return [read(hidden[len(hidden) - len(ids) - 1 :], ids) for hidden, ids in pairs]

    def shares_prefixes(self, view: str) -> bool:
        """Whether captions of one image share a pass, each prefix computed once."""
        return self._packed is not None and view == "image"

    @cached_property
    def word_probs(self) -> WordCertainty:
        """word_probs(captions, places, images, view): see `WordCertainty`."""
        return WordCertainty(self, exact=False)

    def token_ids(self, caption: str, image: bool = True) -> list[int]:
        """The caption's token ids as they follow the prompt, without an end."""
        return self._tokenize(self._answer(self._chat(self.prompt, image=image), caption))

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
        with self.as_before_training(), torch.random.fork_rng(devices):
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
        with self.as_before_training():
            rows = hidden_states(*self._parts, chats, [[]] * len(chats), images, view)
            for hidden, chat in zip(rows, chats, strict=True):
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
        if (question, image) not in self._chats:
            chat = chat_text(self.processor, messages(question), image=image)
            self._chats = {(question, image): chat}  # the last one: mostly the run's prompt
        return self._chats[question, image]

    def _answer(self, chat: str, text: str) -> str:
        return answer_text(self.processor, chat, text)

    def _tokenize(self, text: str) -> list[int]:
        """Token ids of plain text: what looks like a special token is none."""
        special = {"add_special_tokens": False, "split_special_tokens": True}
        ids: list[int] = self.processor.tokenizer(text, **special)["input_ids"]
        return ids
