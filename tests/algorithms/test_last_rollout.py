"""The record of the last rollout: whole, in the order of groups, the same after a checkpoint."""

import json

import pytest
import torch

from vizer_rl.algorithms.grpo import GRPO
from vizer_rl.algorithms.last_rollout import LastRollout
from vizer_rl.algorithms.trl_logs import log_caption_kl
from vizer_rl.scoring.aggregation import weighted_sum
from vizer_rl.training import train


@pytest.fixture
def record(command, monkeypatch):
    """The record that a run of two steps ends with, and its directory."""
    trainers, original = [], GRPO.train
    monkeypatch.setattr(train.evaluate, "evaluate", lambda directory, **_: None)
    monkeypatch.setattr(
        GRPO, "train", lambda self, **k: trainers.append(self) or original(self, **k)
    )
    directory = command("smolvlm", "record", "train.save_steps=2", "train.log_completions=true")
    return trainers[0].last_rollout.record, directory


def test_the_record_is_what_training_learnt_from(record):
    last, directory = record
    row = json.loads((directory / "metrics.jsonl").read_text().splitlines()[-1])
    assert len(last.captions) == len(last.image_ids) == 16
    assert last.group == 8
    assert [len(set(last.image_ids[i : i + 8])) for i in (0, 8)] == [1, 1]
    assert sum(last.lengths) / 16 == pytest.approx(row["completions/mean_length"])
    assert 1 - sum(last.ended) / 16 == pytest.approx(row["completions/clipped_ratio"])
    assert last.reward_names[-1] == "ended"
    total_N = weighted_sum(last.rewards_NK, torch.tensor(last.weights))
    assert total_N.mean().item() == pytest.approx(row["reward"], abs=1e-5)
    for name, column in zip(last.reward_names, last.rewards_NK.T, strict=True):
        assert column.nanmean().item() == pytest.approx(row[f"reward/{name}"], abs=1e-5)
    assert last.advantages_N.shape == (16,)
    assert last.advantages_N.view(2, 8).mean(1).abs().max() < 1e-4
    assert row["kl_per_caption"] == pytest.approx(row["kl"] * row["completions/mean_length"])
    saved = torch.load(directory / "checkpoint-2" / "state_0.pt", weights_only=True)
    again = LastRollout(None)
    again.load_state_dict(saved["last_rollout"])
    assert again.record.captions == last.captions
    assert torch.equal(again.record.rewards_NK, last.rewards_NK)


class Trainer:
    """What `log_caption_kl` reads of a trainer."""

    def __init__(self, kl):
        self._metrics, self.accelerator = {"train": {"kl": kl}}, self

    def reduce(self, x, reduction):
        return x

    def log_metric(self, name, value):
        self._metrics["train"].setdefault(name, []).append(value)


def test_the_kl_of_a_caption_is_that_of_its_tokens_together():
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])  # 4 tokens of 2 captions
    trainer = Trainer([0.25])
    for _ in range(2):  # without a new `kl` nothing is logged twice
        log_caption_kl(trainer, mask)
    assert trainer._metrics["train"]["kl_per_caption"] == [0.5]
    bare = Trainer([])
    log_caption_kl(bare, mask)
    assert bare._metrics["train"] == {"kl": []}
