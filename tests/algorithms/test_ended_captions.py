"""Captions that end with any end of their family: ended for rewards, masks and TRL's statistics."""

import pytest
import torch

from vizer_rl.algorithms import trl_sampling
from vizer_rl.algorithms.grpo import GRPO
from vizer_rl.config.load import load_run
from vizer_rl.config.trainer_settings import GRPOSettings
from vizer_rl.policy import load
from vizer_rl.policy.families import FAMILIES
from vizer_rl.policy.shared_prefix.vision_cache import VisionCache

from ..conftest import REPO, TINY
from ..policy.test_ends import SMOLVLM_ENDS, smolvlm_folder
from .test_parity import pieces

LENGTH, WORD = 2, "red"


class Kept(GRPO):
    """GRPO that keeps its first rollout and what TRL logs of it."""

    rollout_output = None

    def finish_rollout(self, output):
        if self.rollout_output is None:
            logged = {name: values[-1] for name, values in self._metrics["train"].items()}
            self.rollout_output = {**output}, logged


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", SMOLVLM_ENDS)
def test_every_end_ends_a_caption_in_training(name, shared, workplace, tmp_path, monkeypatch):
    checkpoint = smolvlm_folder(tmp_path / "model", 7, "<|im_end|>")
    settings = [f"train.max_completion_length={LENGTH}", "train.mask_truncated_completions=true"]
    run = load_run(REPO / "experiments/smolvlm.yaml", [*TINY, *settings])
    ended = []

    def reward(batch):
        ended.extend(batch.ended)
        return [float(len(caption)) for caption in batch.captions]

    args, model, processor, scoring, rows, lora = pieces(run, tmp_path, checkpoint, reward)
    tokenizer = processor.tokenizer
    word, end = tokenizer.convert_tokens_to_ids([WORD, name])
    weight = model.get_output_embeddings().weight.data
    weight[end] = weight[word]  # as likely as the word, the only other token that is allowed
    others = sorted(set(range(len(tokenizer))) - {word, end})
    monkeypatch.setattr(trl_sampling, "forbidden_ids", lambda *_: others)
    cache = VisionCache(model, processor, FAMILIES["smolvlm"]) if shared else None
    trainer = Kept(model, processor, lora, scoring, args, rows, cache)
    trainer.train()
    output, logged = trainer.rollout_output
    ids, mask = output["completion_ids"], output["completion_mask"]
    has_end = (ids == end).any(1)
    assert 0 < has_end.sum() < len(ids)
    assert ended[: len(ids)] == has_end.tolist()
    assert logged["completions/clipped_ratio"] == pytest.approx(1 - has_end.float().mean().item())
    lengths = (ids == end).int().argmax(1) + 1
    assert mask.sum(1).tolist() == torch.where(has_end, lengths, 0).tolist()
    mean = lengths[has_end].float().mean().item()
    assert logged["completions/mean_terminated_length"] == pytest.approx(mean)


def test_vllm_stops_at_the_familys_ends_and_at_nothing_that_a_file_declares(tmp_path):
    model, processor = load.load_policy("qwen2vl", "embedded", dtype="float32")
    args = GRPOSettings(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    args.use_vllm, args.generation_kwargs = True, {"seed": 1, "stop_token_ids": [7]}
    kwargs = trl_sampling.generation_arguments(args, model, processor)
    assert kwargs["seed"] == 1
    assert kwargs["ignore_eos"] is True
    assert kwargs["stop_token_ids"] == load.eos_ids(model, processor)
    assert set(kwargs["logit_bias"]) == set(load.forbidden_ids(model, processor))
