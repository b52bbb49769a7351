"""Saved files that were cut, changed or of another version: one sentence that names them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from vizer_rl import cli, files
from vizer_rl.audit import audit
from vizer_rl.config import run_dir
from vizer_rl.errors import UserError
from vizer_rl.training import checkpoint, tracking

from .evaluated_run import run

pytestmark = pytest.mark.faults

__all__ = ["run"]  # a fixture
ROW = b'{"step": 1, "reward": 0.5}\n{"step": 2, "reward": 0.25}\n{"step": 3, "reward": 0.75}\n'
WRONG = [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a": 1}', b"\0" * 30]


def refused(words, capsys):
    """The one sentence of a command that cannot go on."""
    capsys.readouterr()
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert err.startswith("vizer_rl: ")
    assert "Traceback" not in out + err
    return err


def commands(run):
    """The commands that read a run, of which each must refuse what both read."""
    return ["evaluate", "--run", "mine", "--no-controls"], [
        "caption",
        str(run.images),
        "--run",
        "mine",
    ]


@pytest.mark.parametrize("content", [*WRONG, b"source: x", b'{"source": "x", "ids": []}'])
def test_heldout_json(content, run, capsys):
    (run.directory / "heldout.json").write_bytes(content)
    assert "heldout.json' cannot be used: " in refused(commands(run)[0], capsys)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ids": "a.png"}, "ids: Input should be a valid array"),
        ({"ids": [1]}, "ids: 0: Input should be a valid string"),
        ({"drawn": "yes"}, "drawn: Input should be a valid boolean"),
        ({"source": None}, "source: Input should be a valid string"),
        ({"ids": []}, "ids: List should have at least 1 item"),
    ],
)
def test_heldout_json_of_other_types(change, says, run, capsys):
    path = run.directory / "heldout.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert says in refused(commands(run)[0], capsys)


@pytest.mark.parametrize("end", range(0, 100, 9))
def test_heldout_json_cut_anywhere(end, run, capsys):
    path = run.directory / "heldout.json"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * end // 100])
    assert "heldout.json' cannot be used: " in refused(commands(run)[0], capsys)


@pytest.mark.parametrize("content", [*WRONG, b"family: 3", b"!!python/object/apply:os.getcwd []"])
def test_config_yaml(content, run, capsys):
    (run.directory / "config.yaml").write_bytes(content)
    for words in commands(run):
        assert "config.yaml" in refused(words, capsys)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("family: smolvlm", "family: smolvlN", "family: 'smolvlN' is unknown"),
        ("max_completion_length: 24", "max_completion_length: x", "max_completion_length: 'x'"),
        ("max_completion_length: 24", "max_completion_length: 0", "max_completion_length: 0"),
        ("max_completion_length: 24", "longest: 24", "max_completion_length: None"),
        ("algorithm: grpo", "algorithm: grpp", "algorithm: 'grpp' is unknown"),
        ("model: embedded", "model: ./gone", "policy.model"),
    ],
)
def test_config_yaml_of_other_values(old, new, says, run, capsys):
    path = run.directory / "config.yaml"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    for words in commands(run):
        assert says in refused(words, capsys)


@pytest.mark.parametrize("content", WRONG)
def test_truth_of_scenes(content, run, capsys):
    run.truth.write_bytes(content)
    assert "scenes.json" in refused(commands(run)[0], capsys)


@pytest.mark.parametrize("key", ["objects", "relation", "caption"])
def test_truth_of_another_version(key, run, capsys):
    stored = json.loads(run.truth.read_text())
    del stored[run.ids[3]][key]
    run.truth.write_text(json.dumps(stored))
    assert f"{run.ids[3]}: {key}: Field required" in refused(commands(run)[0], capsys)


@pytest.mark.parametrize("content", [*WRONG, b'{"peft_type": "LORA"}', b'{"peft_type": "NONE"}'])
def test_the_config_of_an_adapter(content, run, capsys):
    (run.directory / "adapter" / "adapter_config.json").write_bytes(content)
    for words in commands(run):
        assert "adapter" in refused(words, capsys)


@pytest.mark.parametrize("end", range(0, 100, 10))
def test_the_weights_of_an_adapter_cut_anywhere(end, run, capsys):
    path = run.directory / "adapter" / "adapter_model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * end // 100])
    assert "adapter_model.safetensors' cannot be read" in refused(commands(run)[0], capsys)


@pytest.mark.parametrize("how", ["renamed", "another shape", "absent", "one more"])
def test_the_weights_of_another_adapter(how, run, capsys):
    path = run.directory / "adapter" / "adapter_model.safetensors"
    weights = load_file(path)
    name = min(weights)
    if how == "absent":
        path.unlink()
    else:
        tensor = weights[name] if how == "one more" else weights.pop(name)
        new = {"renamed": "other", "another shape": name, "one more": "other"}[how]
        weights[new] = torch.zeros(3, 3) if how == "another shape" else tensor.clone()
        save_file(weights, path)
    for words in commands(run):
        assert "adapter" in refused(words, capsys)


def test_a_byte_flipped_anywhere_in_an_adapter_is_noticed(run, capsys):
    folder = run.directory / "adapter"
    (folder / "heldout.json").write_text('{"score": 0.5}')
    files.add_checksums(folder)
    flips = 0
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for region in range(6):
            changed = bytearray(content)
            changed[(2 * region + 1) * len(content) // 12] ^= 1
            path.write_bytes(changed)
            message = refused(commands(run)[region % 2], capsys)
            assert path.name == files.CHECKSUMS or path.name in message
            assert "is damaged: " in message
            flips += 1
        path.write_bytes(content)
    assert flips == 6 * 5  # README, config, weights, score, checksums


def test_a_checkpoint_whose_checksums_lack_a_file_is_damaged(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "weights").write_bytes(b"w")
    files.add_checksums(tmp_path / "a")
    assert files.damage(tmp_path / "a") == ""
    for content in (b"{}", b'{"weights": 1}', *WRONG):
        (tmp_path / "a" / files.CHECKSUMS).write_bytes(content)
        assert "checksums.json" in files.damage(tmp_path / "a")


@pytest.mark.parametrize("content", WRONG[:-2])
def test_environment_json(content, tmp_path):
    (tmp_path / "environment.json").write_bytes(content)
    with pytest.raises(UserError, match=r"environment.json' cannot be used"):
        run_dir.changed_environment(tmp_path, {})


def test_an_environment_of_another_version_is_another_run(tmp_path):
    (tmp_path / "environment.json").write_text('{"a": 1}')
    environment = dict.fromkeys((*run_dir.HASHES, *run_dir.VERSIONS), "x")
    lines, same = run_dir.changed_environment(tmp_path, environment)
    assert not same
    assert "data_hash: None -> x" in lines


@pytest.mark.parametrize(
    "content",
    [*WRONG, b'{"mode": 1, "url": null, "dir": "d"}', b'{"mode": "offline", "dir": 1, "url": ""}']
    + [b'{"mode": "offline", "url": null, "dir": "d", "id": "../x"}'],
)
def test_wandb_json(content, tmp_path):
    (tmp_path / "wandb.json").write_bytes(content)
    with pytest.raises(UserError, match=r"wandb.json' cannot be used"):
        tracking.read_tracked(tmp_path)


@pytest.mark.parametrize("position", range(len(ROW)))
def test_a_byte_changed_anywhere_in_metrics_leaves_the_other_rows(position, tmp_path):
    path = tmp_path / "metrics.jsonl"
    for byte in (b"\xff", b"]", b"\n"):
        path.write_bytes(ROW[:position] + byte + ROW[position + 1 :])
        warning = checkpoint.cut_metrics(path, tmp_path / "checkpoint-3")
        steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
        assert set(steps) <= {1, 2, 3}
        assert len(steps) == 3 or "metrics.jsonl: what cannot be read is left out" in warning


def test_the_truth_that_an_audit_reads(tmp_path, run):
    class Parts:
        images = type("", (), {"root": str(run.images)})
        drawn_scenes = True

    assert set(audit._truth(Parts, run.ids[:2])) == set(run.ids[:2])
    run.truth.write_text('{"a": {}}')
    with pytest.raises(UserError, match=r"scenes.json' cannot be used: a: objects"):
        audit._truth(Parts, run.ids)
