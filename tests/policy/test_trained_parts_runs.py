"""Runs whose connector, tower or whole language model learns: what moves, resumes and is kept."""

import json
import shutil
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file

from vizer_rl import cli
from vizer_rl.algorithms import ALGORITHMS
from vizer_rl.config.load import load_run
from vizer_rl.evaluation.run_policy import RunPolicy
from vizer_rl.policy import quantise
from vizer_rl.policy.families import FAMILIES
from vizer_rl.policy.trained_parts import ADAPTED, COPIED, part_of
from vizer_rl.training.estimate import Machine, estimate

from ..conftest import REPO, TINY
from ..training.test_train import logged

CONNECTOR = "policy.train={vision: off, connector: full, language: lora}"
FILE = REPO / "experiments" / "smolvlm.yaml"
SHORT = ["data.limit=16", "train.per_device_train_batch_size=16", "monitor.interval=1"]
SHORT += ["train.lr_scheduler_type=constant", "train.save_steps=1", "data.heldout=4"]


def moved_parts(spied, family):
    """(part, lora or full) of all that has moved; what is frozen has not, to the bit."""
    moved = set()
    for name, (before, after, learns) in spied.items():
        if not learns:
            assert torch.equal(before, after), name
        elif not torch.equal(before, after):
            kind = "lora" if ADAPTED.search(name) else "full"
            assert (kind == "full") == (COPIED in name), name
            moved.add((part_of(name, FAMILIES[family]), kind))
    return moved


def test_a_run_moves_connector_and_lora_alone_says_so_resumes_to_the_bit_and_is_evaluated(
    command, spied, capsys
):
    whole = command("smolvlm", "whole-connector", *SHORT, CONNECTOR)
    printed = capsys.readouterr().out
    assert moved_parts(spied, "smolvlm") == {("connector", "full"), ("language", "lora")}
    lines = {line.split()[0]: line.split() for line in printed.splitlines() if line.strip()}
    assert lines["vision"] == ["vision", "off", "725,376", "0", "-"]
    assert lines["connector"] == ["connector", "full", "65,536", "65,536", "5.0e-05"]
    assert lines["language"][:2] == ["language", "lora"]
    assert lines["language"][-1] == "5.0e-04"
    assert "full: 65,536 parameters learn as float32 copies" in printed
    assert "every pass runs it on the tower's output" in printed

    kept = load_file(whole / "adapter" / "adapter_model.safetensors")
    assert sum("connector" in name for name in kept) == 1
    loaded = RunPolicy(load_run(whole / "config.yaml", []), whole)
    weights = dict(loaded.model.named_parameters())
    (name,) = (n for n in weights if "connector" in n and COPIED in n)
    (saved,) = (w for n, w in kept.items() if "connector" in n)
    assert torch.equal(weights[name], saved)

    parts = whole.with_name("parts-connector")  # as if it had been killed behind its first step
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoint-2")
    text = (parts / "config.yaml").read_text().replace("whole-connector", "parts-connector")
    (parts / "config.yaml").write_text(text)
    assert cli.main(["train", str(parts / "config.yaml"), "--resume"]) in (0, None)
    assert logged(parts) == logged(whole)
    for file in ("checkpoint-2/adapter_model.safetensors", "adapter/adapter_model.safetensors"):
        assert (parts / file).read_bytes() == (whole / file).read_bytes(), file


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", sorted({*ALGORITHMS} - {"grpo"}))
def test_each_algorithm_trains_a_connector(algorithm, command, spied):
    directory = command("smolvlm", f"connector-{algorithm}", CONNECTOR, f"algorithm={algorithm}")
    assert moved_parts(spied, "smolvlm") == {("connector", "full"), ("language", "lora")}
    assert (directory / "eval.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", "ppo", "vizer"])
def test_a_resumed_run_with_a_connector_is_the_whole_one_within_a_rollout_too(algorithm, command):
    same = [*SHORT, CONNECTOR, f"algorithm={algorithm}"]
    same += ["train.num_iterations=2"] if algorithm != "vizer" else []
    whole = command("qwen2vl", f"whole-{algorithm}", *same, "train.max_steps=6")
    command("qwen2vl", f"halves-{algorithm}", *same, "train.max_steps=3")
    more = [f"halves-{algorithm}", *same, "train.max_steps=6"]
    halves = command("qwen2vl", *more, flags=("--resume",))
    assert logged(halves) == logged(whole)
    file = "checkpoint-6/adapter_model.safetensors"
    assert (halves / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "settings", "moved"),
    [
        ("smolvlm", "{vision: lora}", {("vision", "lora"), ("language", "lora")}),
        ("qwen2vl", "{vision: full, language: off}", {("vision", "full")}),
        ("qwen2vl", "{connector: lora}", {("connector", "lora"), ("language", "lora")}),
        ("qwen2vl", "{language: full}", {("language", "full")}),
        (
            "smolvlm",
            "{vision: full, connector: full, language: full}",
            {("vision", "full"), ("connector", "full"), ("language", "full")},
        ),
    ],
)
@pytest.mark.parametrize("prefix", ["auto", "off"])
def test_the_parts_that_are_named_move_and_no_other(
    family, settings, moved, prefix, command, spied
):
    directory = command(
        family, "moved", f"policy.train={settings}", f"engine.shared_prefix={prefix}", *SHORT
    )
    assert moved_parts(spied, family) == moved
    assert json.loads((directory / "eval.json").read_text())


def problems(capsys, *words):
    assert cli.main(["train", str(FILE), *TINY, "name=refused", *words, "--overwrite"]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["policy.train.language=off"], "policy.train: all parts are off, so nothing would be"),
        (["policy.train.connector=ful"], "connector: 'ful' is unknown; allowed: off, lora, full"),
        (["policy.train.head=full"], "policy.train.head: unknown key"),
        (
            ["family=qwen2vl", "train.use_vllm=true", "policy.train.connector=full"],
            "train.use_vllm: True; allowed: false, for vLLM is sent LoRA's weights",
        ),
        (
            ["algorithm=ppo", "train.value_trunk=adapter", "policy.train.language=full"],
            "train.value_trunk: 'adapter'; allowed: shared",
        ),
        (["policy.train.vision=qlora"], "policy.train.vision: 'qlora' is unknown"),
    ],
)
def test_what_cannot_learn_is_refused_in_a_sentence(words, sentence, workplace, capsys):
    assert sentence in problems(capsys, *words)
    assert not (workplace / "runs" / "refused").exists()


def test_four_bits_need_bitsandbytes(monkeypatch, workplace, capsys):
    monkeypatch.setattr("vizer_rl.config.trained_parts.find_spec", lambda name: None)
    assert "bitsandbytes is not installed here: pip install" in problems(
        capsys, "policy.train.language=qlora"
    )


def test_each_of_several_processes_has_its_four_bits_on_its_own_device(monkeypatch):
    monkeypatch.setattr(quantise, "find_spec", lambda name: name)
    monkeypatch.setattr(quantise, "BitsAndBytesConfig", lambda **settings: settings)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    settings = quantise.quantisation(FAMILIES["smolvlm"], torch.float16, "qlora")
    assert settings["device_map"] == {"": torch.device("cuda", 1)}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_lora_learns_on_weights_of_four_bits(command, spied):
    directory = command("smolvlm", "four-bits", "policy.train={language: qlora}", *SHORT)
    assert moved_parts(spied, "smolvlm") == {("language", "lora")}
    four = [p for n, (p, _, _) in spied.items() if "q_proj.base_layer" in n and "text_model" in n]
    assert {p.dtype for p in four} == {torch.uint8}
    assert (directory / "eval.json").is_file()


def test_a_bare_off_is_off(workplace):
    run = load_run(FILE, [*TINY, "name=x", "policy.train={vision: off, connector: lora}"])
    assert run.policy.train.model_dump() == {
        "vision": "off",
        "connector": "lora",
        "language": "lora",
    }
    assert run == load_run(FILE, [*TINY, "name=x", "policy.train.connector=lora"])


def test_the_estimate_counts_the_frozen_start_and_the_copies(workplace, monkeypatch):
    machine = Machine(2**36, 0, 1.0, torch.float32)

    def fixed(*words):
        model, work = estimate(load_run(FILE, [*TINY, "name=x", *words]), machine)
        return model.estimate(work).fixed

    whole = fixed("policy.train.language=full")
    with monkeypatch.context() as patch:  # phases of a run like this: test_estimate.py
        patch.setattr("vizer_rl.training.estimate.policy_phases", lambda *_: {})
        plain = fixed()
    size = 4 * 935_424  # float32
    assert whole["frozen start of what is full"] == whole["its float32 copies"] == size
    assert whole["weights"] + size == plain["weights"]
    assert whole["Adam"] == 2 * size
    assert whole["LoRA"] == 0
    monkeypatch.setattr("vizer_rl.config.trained_parts.find_spec", lambda name: True)
    linear = 4 * 128 * (4 * 128 + 3 * 384)  # layers x (attention, MLP)
    saved = plain["weights"] - fixed("policy.train.language=qlora")["weights"]
    assert saved == pytest.approx(linear * (4 - (4 + 8.125 / 64) / 8), abs=30)
    assert plain["Adam"] == 2 * plain["LoRA"] == 2 * 4 * 163_840
    assert plain.keys() == whole.keys() - {"frozen start of what is full", "its float32 copies"}
