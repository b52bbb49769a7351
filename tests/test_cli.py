"""The command line: exit codes, one message per mistake, nothing slow before it is needed."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

import rewards
import vizer_rl.evaluation.caption_images
import vizer_rl.evaluation.evaluate
import vizer_rl.training.score
import vizer_rl.training.train
from vizer_rl import cli, doctor
from vizer_rl.assets import EMBEDDED
from vizer_rl.config import validate_files
from vizer_rl.errors import ImageError, UserError

ROOT = Path(__file__).parent.parent
COMMANDS = ["train", "audit", "rewards", "score", "caption", "evaluate", "report", "compare"]
COMMANDS += ["scorer", "doctor", "export"]
SMOLVLM = str(ROOT / "experiments/smolvlm.yaml")


@pytest.fixture(autouse=True)
def _folder(tmp_path, tmp_path_factory, monkeypatch):
    """An empty working directory, and a checkout whose checkpoints are built."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(validate_files, "ASSETS", assets := tmp_path_factory.mktemp("assets"))
    for name in EMBEDDED:
        (assets / name).mkdir()
        (assets / name / "model.safetensors").touch()


@pytest.fixture
def called(monkeypatch):
    """Stands in for training: what it was called with, or what it is to raise."""
    calls = {"raises": None}

    def train(run, *, resume, overwrite, accept_changes):
        calls.update(run=run, resume=resume, overwrite=overwrite, changes=accept_changes)
        if calls["raises"]:
            raise calls["raises"]

    monkeypatch.setattr(vizer_rl.training.train, "train", train)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return calls


def refused(capsys, *words: str) -> str:
    """What argparse says when it refuses the words, with exit code 2."""
    with pytest.raises(SystemExit) as left:
        cli.main(words)
    assert left.value.code == 2
    return capsys.readouterr().err


def test_help_lists_every_command_and_imports_nothing_slow():
    code = (
        "import sys\n"
        "from vizer_rl import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "slow = {'torch', 'transformers', 'trl', 'datasets', 'pydantic', 'yaml', 'rich'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)\n"
    )
    times = []
    for _ in range(3):
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        times.append(time.monotonic() - began)
    assert min(times) < 0.6  # 0.1 s on an idle machine
    for command in COMMANDS:
        assert f"\n    {command}" in done.stdout


def test_python_m_runs_the_same_command_line():
    done = subprocess.run(
        [sys.executable, "-m", "vizer_rl", "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout.startswith("vizer_rl ")


def test_an_unknown_command_or_choice_is_told_with_the_nearest(capsys):
    assert "invalid choice: 'trian'" in (result := refused(capsys, "trian"))
    assert result.endswith("; nearest: train\n")
    assert "unrecognized arguments: --resum" in refused(capsys, "train", "x.yaml", "--resum")
    assert "required: COMMAND" in refused(capsys)
    assert "required: --run" in refused(capsys, "evaluate")


def test_the_old_form_of_score_is_refused_with_the_new_one(capsys):
    message = refused(capsys, "rewards", "score", "a.png", "a dog", "--run-file", "run.yaml")
    new = "vizer-rl score RUN.yaml IMAGE CAPTION [key=value …]"
    (sentence,) = [line for line in message.splitlines() if "error:" in line]
    assert sentence.endswith(f"`rewards score` has become `score`; write: {new}")


def test_score_passes_the_run_image_and_caption(monkeypatch):
    calls = []
    monkeypatch.setattr(vizer_rl.training.score, "score", lambda *args: calls.append(args))
    words = ["score", SMOLVLM, "a.png", "a dog", "profile=scenes", "rewards.length.weight=0.2"]
    assert cli.main(words) == 0
    ((run, image, caption),) = calls
    assert run.rewards["length"]["weight"] == 0.2
    assert (image, caption) == (Path("a.png"), "a dog")


def test_an_audit_that_fails_exits_with_1_only_if_strict(monkeypatch):
    for verdict, flags, code in [
        ("fail", [], 0),
        ("fail", ["--strict"], 1),
        ("warn", ["--strict"], 0),
    ]:
        result = {"verdict": {"overall": verdict}}
        monkeypatch.setattr(vizer_rl.training.train, "audit_run", lambda _, r=result: r)
        assert cli.main(["audit", SMOLVLM, "profile=scenes", *flags]) == code


def test_train_passes_the_run_and_the_flags_wherever_they_stand(called):
    assert cli.main(["train", SMOLVLM, "seed=3", "--accept-changes", "name=x"]) == 0
    assert (called["overwrite"], called["changes"]) == (False, True)
    assert cli.main(["train", SMOLVLM, "seed=3", "--overwrite", "name=x"]) == 0
    assert (called["run"].seed, called["run"].name) == (3, "x")
    assert (called["resume"], called["overwrite"]) == (False, True)


def test_all_mistakes_of_a_run_are_one_message_and_nothing_is_written(called, capsys):
    words = ["train", SMOLVLM, "seed=x", "foo", "train.max_stepz=1", "--resume", "--overwrite"]
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1 + 4
    for result in ("seed: 'x'", "foo: not section", "nearest: max_steps", "exclude each other"):
        assert result in err
    assert "Traceback" not in err
    assert "run" not in called
    assert list(Path().iterdir()) == []


def test_a_missing_run_file_is_one_line_and_2(capsys):
    Path("a.yaml").touch()
    assert cli.main(["train", "b.yaml"]) == 2
    assert capsys.readouterr().err == "vizer_rl: run file 'b.yaml' not found; nearest: a.yaml\n"


@pytest.mark.parametrize(
    "words", [["evaluate", "--run"], ["report", "--run"], ["caption", "a.png", "--run"]]
)
def test_a_missing_run_is_told_with_the_nearest(words, capsys):
    Path("runs/smolvlm-scenes").mkdir(parents=True)
    result = "vizer_rl: run 'runs/smolvlm' not found; nearest: runs/smolvlm-scenes\n"
    assert cli.main([*words, "smolvlm"]) == 2
    assert capsys.readouterr().err == result


def test_caption_and_evaluate_pass_the_run_directory_by_name_or_path(monkeypatch):
    calls = []
    monkeypatch.setattr(vizer_rl.evaluation.caption_images, "caption", lambda *a: calls.append(a))
    monkeypatch.setattr(
        vizer_rl.evaluation.evaluate, "evaluate", lambda *a, **judged: calls.append((*a, *judged))
    )
    Path("runs/x").mkdir(parents=True)
    assert cli.main(["caption", "--run", "x", "a.png", "b.png"]) == 0
    assert cli.main(["evaluate", "--run", "runs/x"]) == 0
    assert cli.main(["evaluate", "--run", "runs/x", "--no-controls"]) == 0
    assert calls == [
        (Path("runs/x"), ["a.png", "b.png"]),
        (Path("runs/x"), None, (), (), None, (), "controls"),
        (Path("runs/x"), None, (), (), None, (), "rewards"),
    ]


@pytest.mark.parametrize(
    "error",
    [UserError("the policy is of another family"), ImageError("No usable image.")],
)
def test_a_users_mistake_found_late_is_its_message_and_2(error, called, capsys):
    called["raises"] = error
    assert cli.main(["train", SMOLVLM]) == 2
    assert capsys.readouterr().err == f"vizer_rl: {error}\n"


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        OSError("We couldn't connect to 'https://huggingface.co' to load the files\nand more"),
        LocalEntryNotFoundError("not in the cache"),
        caused(RuntimeError("no scorer"), LocalEntryNotFoundError("not in the cache")),
        RuntimeError("Failed to download weights for tag 'dfn2b': Failed to download file"),
    ],
    ids=["transformers", "hub", "caused by the hub", "open_clip"],
)
def test_a_hub_out_of_reach_names_the_two_ways_on(error, called, capsys):
    called["raises"] = error
    assert cli.main(["train", SMOLVLM]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "MODEL=/local/path" in err
    assert "PROFILE=scenes" in err


@pytest.mark.parametrize("bug", [KeyError("x"), OSError(5, "I/O error"), ValueError("shape")])
def test_a_bug_is_raised(bug, called):
    called["raises"] = bug
    with pytest.raises(type(bug)):
        cli.main(["train", SMOLVLM])


def test_a_full_disk_is_a_sentence(called, capsys):
    called["raises"] = OSError(28, "No space left on device", "runs/x")
    assert cli.main(["train", SMOLVLM]) == 2
    assert "the disk takes no more" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--overwrite", "--overwrite-finished"])
def test_ctrl_c_is_130_and_says_how_to_go_on(called, capsys, flag):
    called["raises"] = KeyboardInterrupt()
    assert cli.main(["train", SMOLVLM, "name=x", flag]) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"vizer_rl: stopped; go on with: vizer-rl train {SMOLVLM} name=x --resume"


def test_only_captions_into_files_go_on_with_the_same_command(capsys, monkeypatch):
    def stopped(args):
        raise KeyboardInterrupt

    for words, hint in [
        (["export", "--run", "x", "--to", "adapter", "--out", "y"], ""),
        (["caption", "a.png", "--run", "x"], ""),
        (["caption", "a.png", "--run", "x", "--out", "csv"], "; the same command goes on"),
    ]:
        monkeypatch.setitem(cli.COMMANDS, words[0], stopped)
        assert cli.main(words) == 130
        assert capsys.readouterr().err == f"\nvizer_rl: stopped{hint}\n"


def test_a_stopped_run_goes_on_though_a_finished_one_would_be_overwritten(called, capsys):
    words = ["train", SMOLVLM, "name=x", "--overwrite-finished", "--resume"]
    Path("runs/x/checkpoint-2").mkdir(parents=True)
    assert cli.main(words) == 0
    assert (called["resume"], called["overwrite"]) == (True, False)
    Path("runs/x/eval.json").touch()
    assert cli.main(words) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_rewards_lists_one_line_each_that_says_what_it_is(capsys):
    assert cli.main(["rewards"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    places = [shown.index(f" {name} ") for name in rewards.names()]
    assert places == sorted(places)
    assert "range" in shown
    assert "cost" in shown


def test_the_doctor_tells_whether_scenes_will_run(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "ASSETS", tmp_path)
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "profile scenes: will not run: smolvlm, qwen2vl, scorer-a, scorer-b" in out
    for name in EMBEDDED:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"1")
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "profile scenes: will run" in out
    for what in ("transformers", "CUDA", "flash-attn", "W&B", "hub", "disk", "cores", "auto is"):
        assert what in out


def test_the_doctor_survives_whatever_is_broken(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # what a half-installed package does
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setattr("shutil.disk_usage", lambda _: 1 / 0)
    assert cli.main(["doctor"]) == 1
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert "ModuleNotFoundError" in out
    assert "ZeroDivisionError: division by zero" in out
    assert "profile full: will not run: torch" in out


def test_the_doctor_tells_absent_packages_and_wrong_versions(monkeypatch):
    from packaging.requirements import Requirement

    assert doctor.package(Requirement("no-such-thing>=1")).detail == "not installed; wanted: >=1"
    assert doctor.package(Requirement("rich<1")).detail.endswith(" is not in <1")


@pytest.mark.parametrize(("size", "fits"), [(64 * 2**20, None), (16 * 2**30, True)])
def test_the_doctor_tells_whether_workers_fit_into_shared_memory(size, fits, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=size))
    finding = doctor.shared_memory()
    assert finding.ok is fits
    assert "\n" not in finding.detail
    for remedy in ("--shm-size=8g", "train.dataloader_num_workers=0"):
        assert (remedy in finding.detail) is (fits is None)
    monkeypatch.setattr(doctor, "SHARED_MEMORY", tmp_path / "absent")
    assert doctor.shared_memory().ok is None


def test_the_hub_is_looked_for_no_longer_than_its_time_out(monkeypatch):
    from huggingface_hub import constants

    def refuse(address, timeout):
        assert timeout == doctor.HUB_SECONDS
        raise TimeoutError("timed out")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.create_connection", refuse)
    assert "no direct connection to" in doctor.hub().detail
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in doctor.hub().detail
