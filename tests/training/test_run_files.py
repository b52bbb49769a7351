"""Files of a run: no secret in one of them, a damaged checkpoint is named and the one before taken.

One tiny training serves all tests: in a process of its own, with secrets planted around it.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vizer_rl import cli, files
from vizer_rl.config.load import load_run
from vizer_rl.errors import ConfigError
from vizer_rl.training import checkpoint

from ..conftest import FEW_REWARDS, REPO, TINY
from .test_wandb_run import check_wandb

FILE = str(REPO / "experiments" / "smolvlm.yaml")
PASSWORD, NETRC, REMOTE = "pr0xy-pa55word", "netrc-pa55word-0123456789abcdef0123456789", "g1t-t0ken"
SECRETS = {
    "WANDB_API_KEY": "5ec2e7" + "0a1b2c3d4e" * 3 + "f00d",
    "HF_TOKEN": "hf_plantedSecretOfTheHub0123456789",
    "HUGGING_FACE_HUB_TOKEN": "hf_anotherPlantedSecret0123456789",
    "HTTPS_PROXY": f"http://somebody:{PASSWORD}@127.0.0.1:9",
    "HTTP_PROXY": f"http://somebody:{PASSWORD}@127.0.0.1:9",
}
PLANTED = [*list(SECRETS.values())[:3], PASSWORD, NETRC, REMOTE]
WORDS = [*TINY, "name=planted", "train.save_steps=1", "tracking.wandb=offline"]
WORDS += ["monitor.audit=true", *FEW_REWARDS]


@pytest.fixture(scope="module")
def planted(workplace, tmp_path_factory):
    """The run directory of a training among secrets, and all that it printed."""
    home = tmp_path_factory.mktemp("home")
    netrc = home / "netrc"
    netrc.write_text(f"machine api.wandb.ai login user password {NETRC}\n")
    remote = f"https://user:{REMOTE}@git.example.org/x.git"
    subprocess.run(["git", "init", "-q"], cwd=workplace, check=True)
    subprocess.run(["git", "remote", "add", "origin", remote], cwd=workplace, check=True)
    environment = {k: v for k, v in os.environ.items() if k != "WANDB_MODE"}
    environment |= {**SECRETS, "NETRC": str(netrc), "PYTHONPATH": str(REPO)}
    environment |= {"XDG_CACHE_HOME": str(home), "XDG_DATA_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-m", "vizer_rl", "train", FILE, *WORDS, "--overwrite"],
        env=environment,
        cwd=workplace,
        capture_output=True,
    )
    shutil.rmtree(workplace / ".git")
    assert done.returncode == 0, done.stderr[-2000:]
    left = [path for path in (home / "wandb").rglob("*") if path.is_file()]
    assert not left, "W&B left it in the user's home"
    return workplace / "runs" / "planted", done.stdout + done.stderr


def test_no_secret_is_in_a_file_of_the_run_or_printed(planted, workplace):
    directory, printed = planted
    paths = [path for path in workplace.rglob("*") if path.is_file()]
    names = {path.name for path in paths if directory in path.parents}
    assert {"config.yaml", "environment.json", "audit.html", "wandb.json", "eval.json"} <= names
    assert {"training_args.bin", "state_0.pt", "report.html"} <= names
    assert any(path.suffix == ".wandb" for path in paths)
    for secret in PLANTED:
        assert secret.encode() not in printed
        assert [str(path) for path in paths if secret.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    "setting",
    [
        f"train.hub_token={SECRETS['HF_TOKEN']}",
        "train.hub_token=short",
        f"data.prompt=say {SECRETS['HF_TOKEN']}",
        f"rewards.length.longest={SECRETS['HF_TOKEN']}",
        f"data.images=https://me:{PASSWORD}@a.example/x.jpg",
    ],
)
def test_a_secret_in_a_setting_is_refused_and_not_repeated_by_its_sentence(setting):
    with pytest.raises(ConfigError) as refused:
        load_run(Path(FILE), [*TINY, setting])
    assert "would be written into the run directory" in str(refused.value)


def test_a_setting_that_is_not_utf_8_is_refused():
    with pytest.raises(ConfigError, match=r"data.prompt: .*has bytes that are not UTF-8"):
        load_run(Path(FILE), [*TINY, "data.prompt=what\udcff"])


def test_all_that_is_promised_of_a_run_is_in_its_wandb_file(planted, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    directory, printed = planted
    run = check_wandb(directory.relative_to(workplace))
    (page,) = run.logged("pages/audit")
    assert (run.folder / page["path"]).read_text() == (directory / "audit.html").read_text()
    assert b"W&B: at most 25 MB a run (tracking.max_mb)" in printed


def test_a_byte_flipped_in_any_file_of_a_checkpoint_takes_the_one_before(planted):
    directory, _ = planted
    new, old = files.checkpoints(directory)
    assert (new.name, old.name) == ("checkpoint-2", "checkpoint-1")
    paths = sorted(path for path in new.rglob("*") if path.is_file())
    names = {path.name for path in paths}
    assert {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= names
    assert {"state_0.pt", "trainer_state.json", "training_args.bin", files.CHECKSUMS} <= names
    for path in paths:
        content = path.read_bytes()
        for region in range(8):
            changed = bytearray(content)
            changed[(2 * region + 1) * len(content) // 16] ^= 1 << region
            path.write_bytes(changed)
            heard = []
            assert checkpoint.newest_whole(directory, heard.append) == old, (path, region)
            (sentence,) = heard
            assert str(new) in sentence
            assert path.name in sentence or path.name == files.CHECKSUMS
        path.write_bytes(content)
    assert checkpoint.newest_whole(directory, pytest.fail) == new


def test_a_state_of_another_version_is_refused_in_a_sentence(planted, workplace, capsys):
    directory, _ = planted
    newest = files.checkpoints(directory)[0]
    aside = directory / "aside"
    shutil.copytree(newest, aside)
    state = torch.load(aside / "state_0.pt", weights_only=True)
    del state["beta"]
    torch.save(state, aside / "state_0.pt")
    (aside / files.CHECKSUMS).unlink()
    files.seal(aside, directory / "checkpoint-3")
    words = ["train", FILE, *WORDS, "train.max_steps=4", "tracking.wandb=off", "--resume"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        code = cli.main(words)
    out, err = capsys.readouterr()
    shutil.rmtree(directory / "checkpoint-3")
    assert code == 2, err
    assert "state_0.pt lacks 'beta': it is of another version of vizer_rl" in err
    assert "Traceback" not in out + err


@pytest.mark.parametrize("file", ["config.yaml", "environment.json"])
def test_a_run_whose_own_files_are_damaged_is_not_resumed(file, planted, workplace, capsys):
    directory, _ = planted
    content = (directory / file).read_bytes()
    (directory / file).write_bytes(content[: len(content) // 3])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        code = cli.main(["train", FILE, *WORDS, "tracking.wandb=off", "--resume"])
    err = capsys.readouterr().err
    (directory / file).write_bytes(content)
    assert code == 2
    assert file in err
    assert "Traceback" not in err
