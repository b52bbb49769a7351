"""A trigger word in a real run: in front of completions, imitated, and what is refused."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from rewards.contains import Contains
from rewards.format import Format
from rewards.lib.own_words import EDGES
from vizer_rl import cli
from vizer_rl.algorithms.grpo import GRPO
from vizer_rl.algorithms.opening import finish_reference
from vizer_rl.data import scenes
from vizer_rl.policy import chat, load
from vizer_rl.policy.families import FAMILIES
from vizer_rl.policy.shared_prefix.packing import add_caption_head
from vizer_rl.policy.shared_prefix.rollout import Rollout
from vizer_rl.policy.shared_prefix.vision_cache import VisionCache
from vizer_rl.scoring.reference_policy import ReferencePolicy

from ..conftest import REPO, TINY

OPENING_TOKENS = 5  # of " ohwx,"
OHWX = ["rewards.alignment=null", "rewards.contains.trigger=ohwx,"]
FILE = str(REPO / "experiments" / "dataset.yaml")


def recorded(monkeypatch, reward):
    """The captions that a reward class gets in a run, batch by batch."""
    batches, original = [], reward.__call__

    def call(self, batch):
        batches.append(batch.captions)
        return original(self, batch)

    monkeypatch.setattr(reward, "__call__", call)
    return batches


def recorded_losses(monkeypatch):
    """Of each loss: advantages (B,), log-probs less the reference's (B, T)."""
    batches, original = [], GRPO.loss

    def loss(self, model, inputs):
        with torch.no_grad():
            logps = self.caption_forward(model, inputs).logps
        differences = (logps - inputs["ref_per_token_logps"]) * inputs["completion_mask"]
        batches.append((inputs["advantages"], differences))
        return original(self, model, inputs)

    monkeypatch.setattr(GRPO, "loss", loss)
    return batches


def test_the_trigger_is_put_in_front_and_read_by_no_other_reward(command, monkeypatch, capsys):
    whole, without = recorded(monkeypatch, Contains), recorded(monkeypatch, Format)
    losses = recorded_losses(monkeypatch)
    directory = command("dataset", "words", *OHWX)
    assert len(losses) == 2
    assert len(whole) == len(without) > 2, "two steps, then the captions of the evaluation"
    for captions, read in zip(whole[:2], without[:2], strict=True):
        assert len(captions) == 16
        assert all(caption.startswith("ohwx, ") for caption in captions)
        assert read == [caption.removeprefix("ohwx,").lstrip(EDGES) for caption in captions]
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [row["completions/own_opening"] for row in rows] == [0, 0]
    for advantages, differences in losses:
        assert advantages.min() == 0 < advantages.max(), "imitated, never pushed down"
        assert differences.abs().max() < 1e-3, "a KL is of the policy's own completions"
    shown = " ".join(capsys.readouterr().out.split())
    assert "captions of the base begin with 'ohwx,': it is put in front of completions" in shown


def test_the_reference_reads_what_follows_without_the_opening(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    model, processor = load.load_policy("smolvlm", "embedded", dtype="float32")
    captions = ["a red circle", "a blue star", "a large blue star above a small square"]
    image = scenes.render(scenes.sample(7))
    reference = ReferencePolicy(model, processor, "embedded")
    add_caption_head(model, 1.0)
    cache = VisionCache(model, processor, FAMILIES["smolvlm"])
    rollout = Rollout([{"image_id": "7", "image": image}] * 3)
    text = chat.chat_text(processor, chat.messages(reference.prompt))
    rollout.encode_prompts(cache, [text] * 3, torch.device("cpu"))
    rollout.keep_opening(OPENING_TOKENS, [True, False, True])
    ids = [torch.tensor(reference.token_ids(f"ohwx, {caption}")) for caption in captions]
    trainer = SimpleNamespace(
        rollout=rollout,
        model=model,
        ref_model=None,
        args=SimpleNamespace(per_device_train_batch_size=2),
        accelerator=SimpleNamespace(autocast=nullcontext),
    )
    output = {
        "completion_ids": pad_sequence(ids, batch_first=True),
        "completion_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "ref_per_token_logps": torch.zeros(3, len(ids[2])),
    }
    finish_reference(trainer, output)
    alone = reference.log_probs(captions, [image] * 3)
    behind = reference.log_probs([f"ohwx, {caption}" for caption in captions], [image] * 3)
    for row, tokens in enumerate(ids):
        logps = output["ref_per_token_logps"][row, : len(tokens)]
        count = OPENING_TOKENS
        assert torch.allclose(logps[: count + 1], behind[row][: count + 1], atol=1e-4)
        follows = behind[row][count + 1 :] if row == 1 else alone[row][1:]  # 1: not its own
        assert torch.allclose(logps[count + 1 :], follows, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "raft", "rloo"])
def test_other_algorithms_learn_the_trigger_too(algorithm, command, monkeypatch):
    kept, original = [], GRPO.loss

    def loss(self, model, inputs):
        with torch.no_grad():
            logps = self.caption_forward(model, inputs).logps
        kept.append(float(logps[:, 0].mean()))  # of `nice`
        return original(self, model, inputs)

    monkeypatch.setattr(GRPO, "loss", loss)
    more = ["train.learning_rate=2e-3", "train.max_steps=8", "rewards.alignment=null"]
    command("dataset", f"words-{algorithm}", f"algorithm={algorithm}", *more)
    assert kept[-1] > kept[0] + 1


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("engine.shared_prefix=off", "allowed: engine.shared_prefix=auto"),
        ("train.max_completion_length=4", "train.max_completion_length: 4; 'ohwx,' alone has"),
        ("rewards.contains={trigger: ','}", "rewards.contains: contains: nothing to find"),
        ("rewards.contains.forbidden=[(]", "which is no regular expression"),
        ("rewards.vocabulary={words: none.txt}", "the word list none.txt does not exist"),
        (
            "rewards.mine.py.weight=1",
            "cannot begin with 'ohwx,' (contains) and 'tok' (mine)",
        ),
    ],
)
def test_what_is_wrong_with_words_is_one_sentence_before_training(
    override, sentence, workplace, monkeypatch, capsys
):
    monkeypatch.chdir(workplace)
    (workplace / "mine.py").write_text(
        "class Mine:\n"
        '    opening = "tok"\n\n'
        "    def __call__(self, batch):\n"
        "        return [0.0] * len(batch.captions)\n"
    )
    words = [*TINY, "name=refused", *OHWX, override]
    assert cli.main(["train", FILE, *words, "--overwrite"]) == 2
    error = capsys.readouterr().err.strip()
    assert sentence in " ".join(error.split())
    assert "Traceback" not in error
    assert not (workplace / "runs" / "refused" / "adapter").exists()
