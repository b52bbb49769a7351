"""Each algorithm through the real command, two steps long, and what only it has."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import rewards
from rewards.lib.mapper import taken_up
from vizer_rl import cli
from vizer_rl.algorithms import ALGORITHMS, ppo
from vizer_rl.assets import POLICIES
from vizer_rl.config.load import load_run
from vizer_rl.errors import UserError
from vizer_rl.training import train

from ..conftest import REPO, TINY
from ..training.test_metrics_page import check_page
from ..training.test_wandb_run import check_wandb

LOGGED = {
    "ppo": {"value_loss", "explained_variance", "approx_kl", "clipfrac", "ratio", "returns"},
    "vizer": {"alignment/cosine", "alignment/variance"},
    "raft": {"nll"},
    "rloo": set(),
}


@pytest.fixture
def quick(monkeypatch):
    """Runs that end without an evaluation."""
    monkeypatch.setattr(train.evaluate, "evaluate", lambda directory, **_: None)


def run_of(name, *more):
    return load_run(REPO / "experiments" / "smolvlm.yaml", [*TINY, f"name={name}", *more])


def steps(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "family",
    ["smolvlm", pytest.param("qwen2vl", marks=pytest.mark.slow)],  # grpo's: test_train.py
)
@pytest.mark.parametrize("algorithm", sorted(set(ALGORITHMS) - {"grpo"}))
def test_two_steps_move_the_adapter_and_nothing_else(algorithm, family, command, spied):
    more = ["train.beta_target=1.0"] if algorithm == "ppo" else []
    more += ["tracking.wandb=offline"] if family == "smolvlm" else []
    directory = command(family, f"{algorithm}-{family}", f"algorithm={algorithm}", *more)
    adapters = [n for n, (_, _, learns) in spied.items() if learns]
    assert adapters
    assert all("lora_" in n and "vision" not in n and "visual" not in n for n in adapters)
    assert all(not torch.equal(a, b) for n, (a, b, _) in spied.items() if n in adapters)
    assert all(torch.equal(a, b) for n, (a, b, _) in spied.items() if n not in adapters)
    result = steps(directory)
    assert [s["step"] for s in result] == [1, 2]
    assert LOGGED[algorithm] | {"reward", "reward/length", "entropy", "kl"} <= set(result[0])
    assert (directory / "eval.json").exists()
    check_page(directory, algorithm)
    if family == "smolvlm":
        assert check_wandb(directory).config["algorithm"] == algorithm


@pytest.mark.slow
def test_the_value_head_is_saved_resumed_and_not_exported(command, monkeypatch, quick):
    one = ("algorithm=ppo", "train.save_steps=1")
    directory = command("smolvlm", "critic", *one, "train.max_steps=1")
    saved = torch.load(directory / "checkpoint-1" / "state_0.pt", weights_only=True)
    assert any(w.abs().sum() > 0 for n, w in saved["critic"]["head"].items() if "bias" in n)
    exported = load_file(directory / "adapter" / "adapter_model.safetensors")
    assert all(".lora_" in name for name in exported)
    resumed = {}
    original = ppo.PPO._load_optimizer_and_scheduler

    def load(self, checkpoint):
        original(self, checkpoint)
        resumed["head"] = {n: p.clone() for n, p in self.critic.head.state_dict().items()}
        resumed["count"] = self.moments.count.clone()

    monkeypatch.setattr(ppo.PPO, "_load_optimizer_and_scheduler", load)
    command("smolvlm", "critic", *one, "train.max_steps=3", flags=("--resume",))
    assert all(torch.equal(resumed["head"][n], w) for n, w in saved["critic"]["head"].items())
    assert resumed["count"].tolist() == [16] * 5 + [0]
    assert [s["step"] for s in steps(directory)] == [1, 2, 3]


@pytest.mark.slow
def test_ppo_does_not_go_on_from_another_algorithm(command, capsys, quick):
    command("smolvlm", "was-grpo", "train.max_steps=1", "train.save_steps=1")
    file = str(REPO / "experiments" / "smolvlm.yaml")
    words = ["train", file, *TINY, "name=was-grpo", "algorithm=ppo", "--resume"]
    assert cli.main(words) == 2
    assert "algorithm: 'grpo' -> 'ppo'" in capsys.readouterr().err
    assert cli.main([*words, "--accept-changes"]) == 2
    assert "was not written by algorithm ppo" in capsys.readouterr().err


@pytest.mark.slow
def test_a_critic_with_its_own_adapter_learns_apart_and_stays_out_of_the_export(
    command, spied, quick
):
    directory = command(
        "smolvlm", "trunk", "algorithm=ppo", "train.value_trunk=adapter", "train.save_steps=1"
    )
    own = [n for n in spied if ".critic." in n]
    policy = [n for n, (_, _, learns) in spied.items() if learns and n not in own]
    assert own
    assert policy
    assert all(not torch.equal(*spied[n][:2]) for n in policy)
    moved = [n for n in own if not torch.equal(*spied[n][:2])]
    assert len(moved) >= len(own) / 2  # of lora_A and lora_B the second moves from the first step
    rest = set(spied) - set(own) - set(policy)
    assert all(torch.equal(*spied[n][:2]) for n in rest)
    assert not (directory / "adapter" / "critic").exists()
    resumed = command(
        "smolvlm",
        "trunk",
        "algorithm=ppo",
        "train.value_trunk=adapter",
        "train.max_steps=3",
        flags=("--resume",),
    )
    assert [s["step"] for s in steps(resumed)] == [1, 2, 3]


@pytest.mark.slow
def test_raft_goes_on_inside_a_rollout_of_the_reference_as_if_it_had_not_stopped(command, quick):
    same = ("algorithm=raft", "train.sample_from=reference", "train.num_iterations=2")
    same += ("train.lr_scheduler_type=constant", "train.save_steps=1", "monitor.keep=last")
    whole = command("smolvlm", "raft-whole", *same, "train.max_steps=2")
    command("smolvlm", "raft-parts", *same, "train.max_steps=1")
    parts = command("smolvlm", "raft-parts", *same, "train.max_steps=2", flags=("--resume",))
    assert ["reward" in step for step in steps(parts)] == [True, False]
    assert [s["nll"] for s in steps(parts)] == [s["nll"] for s in steps(whole)]
    file = "checkpoint-2/adapter_model.safetensors"
    assert (parts / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.slow
def test_vizer_as_an_auxiliary_loss_is_off_by_default(command, quick):
    directory = command("smolvlm", "aux-off", "train.max_steps=1")
    assert "alignment/cosine" not in steps(directory)[0]
    assert not (directory / "mapper.pt").exists()
    on = command("smolvlm", "aux-on", "train.alignment_coef=0.5", "train.max_steps=1")
    assert "alignment/cosine" in steps(on)[0]


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(POLICIES))
def test_the_other_reading_pooling_and_target_of_vizer_train_too(family, command, quick):
    more = ("mapper.reading=literal", "mapper.pooling=last", "mapper.target=connector")
    directory = command(
        family, "readings", "algorithm=vizer", "train.max_steps=1", "mapper.steps=5", *more
    )
    assert steps(directory)[0]["alignment/variance"] > 0
    kept = torch.load(directory / "mapper.pt", weights_only=True)
    assert 0 <= kept["matching"] <= 1
    reward = rewards.make("alignment", {"mapper": str(directory / "mapper.pt")})
    with pytest.raises(ValueError, match="literal, last, connector: the reward reads loose"):
        taken_up(reward.file, torch.zeros(1, 8))


@pytest.mark.slow
def test_the_alignment_reward_takes_up_a_mapper_that_vizer_kept(command, quick):
    directory = command("smolvlm", "kept", "algorithm=vizer", "train.max_steps=1")
    path = directory / "mapper.pt"
    again = command("smolvlm", "again", f"rewards.alignment.mapper={path}", "train.max_steps=1")
    kept, used = (torch.load(p, weights_only=True) for p in (path, again / "rewards/alignment.pt"))
    assert all(torch.equal(kept["mapper"][n], w) for n, w in used["mapper"].items())
    assert used["reading"] == "image"


def test_captions_are_read_only_where_two_keys_say_so_and_the_run_says_it(
    command, workplace, capsys, quick
):
    ids = sorted(p.name for p in (workplace / "data/scenes/train/images").glob("*.png"))
    file = workplace / "captions.jsonl"
    rows = [{"image_id": name, "caption": "a small solid red circle"} for name in ids]
    file.write_text("\n".join(map(json.dumps, rows)))
    run = str(REPO / "experiments" / "smolvlm.yaml")
    start = ["train", run, *TINY, "name=gt", "--overwrite"]
    learns = "algorithm=vizer"
    for wrong, result in [
        ((learns, "mapper.source=captions"), "mapper.captions: missing"),
        ((learns, f"mapper.captions={file}"), "only with mapper.source=captions"),
        (("mapper.source=captions", f"mapper.captions={file}"), "mapper: nothing uses it"),
        ((learns, "mapper.source=captions", "mapper.captions=no.jsonl"), "'no.jsonl' not found"),
    ]:
        assert cli.main([*start, *wrong]) == 2
        assert result in capsys.readouterr().err
    assert not (workplace / "runs" / "gt").exists()
    both = (learns, "mapper.source=captions", f"mapper.captions={file}", "mapper.steps=5")
    directory = command("smolvlm", "gt", *both, "train.max_steps=1")
    assert "CAPTIONS ARE READ: 80" in capsys.readouterr().out
    about = json.loads((directory / "environment.json").read_text())
    assert about["captions_read"] == str(file)
    assert list(about["scorer_licences"]) == ["embedded:a", "embedded:b"]


def test_a_collapsed_mapper_is_refused_and_no_caption_was_read(command, capsys, monkeypatch, quick):
    monkeypatch.setattr("rewards.lib.mapper.COLLAPSED", 2.0)  # no mapper spreads that wide
    with pytest.raises(UserError, match="mapper has collapsed"):
        train.train(run_of("collapsed", "algorithm=vizer", "mapper.steps=5"), overwrite=True)
    about = json.loads(Path("runs/collapsed/environment.json").read_text())
    assert about["captions_read"] is None
    assert "CAPTIONS" not in capsys.readouterr().out
