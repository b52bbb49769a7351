"""Launch on several devices: what is refused and why, and what Accelerate's launcher is given."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands import launch as launcher
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from vizer_rl import cli
from vizer_rl.arguments import launched_words, parse
from vizer_rl.errors import UserError
from vizer_rl.training import interrupt, launch
from vizer_rl.training.checkpoint import way_on

from ..conftest import REPO, TINY

FILE = "experiments/smolvlm.yaml"
FILES = sorted((REPO / "experiments" / "accelerate").glob("*.yaml"))


@pytest.fixture(autouse=True)
def in_repository(monkeypatch):
    monkeypatch.chdir(REPO)
    monkeypatch.delenv("RANK", raising=False)


@pytest.fixture
def cuda(monkeypatch):
    """A machine with four CUDA devices, and DeepSpeed."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(launch, "find_spec", lambda name: name)


def refusal(devices, file=None):
    with pytest.raises(UserError) as refused:
        launch.processes(devices, file and Path(file))
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("devices", ["0", "-1", "2.5", "two", "", "100000"])
def test_only_devices_that_are_here_are_taken(devices):
    count = os.cpu_count()
    expected = f"DEVICES=): {devices}; allowed: 1 to {count}, the CPU cores, for there is no CUDA"
    assert expected in refusal(devices)


def test_devices_are_those_of_cuda_where_it_is(cuda):
    assert launch.processes("4", None) == 4
    assert "5; allowed: 1 to 4, the CUDA devices" in refusal("5")


def test_a_config_names_its_own_number_of_processes(cuda, tmp_path):
    assert launch.processes(None, FILES[0].parent / "fsdp2.yaml") == 2
    assert launch.processes("3", FILES[0].parent / "zero3.yaml") == 3
    many = tmp_path / "many.yaml"
    many.write_text("distributed_type: MULTI_GPU\nnum_processes: 9\n")
    assert f"num_processes of {many}: 9; allowed: 1 to 4" in refusal(None, many)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("distributed_type: MULTI_GPU\nnum_procs: 2\n", "unknown keys (['num_procs'])"),
        ("distributed_type: [\n", "no config of accelerate launch"),
        ("num_processes: 2\n", "no config of accelerate launch"),
        ("just text\n", "no config of accelerate launch"),
        (
            "distributed_type: MULTI_CPU\nnum_processes: 1\n",
            "distributed_type MULTI_CPU; allowed: MULTI_GPU, FSDP, DEEPSPEED",
        ),
        (
            "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nnum_processes: 1\n",
            "distributed_type NO; allowed: MULTI_GPU, FSDP, DEEPSPEED",
        ),
    ],
)
def test_a_file_that_is_no_config_is_named(content, sentence, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(content)
    message = refusal("1", file)
    assert sentence in message
    assert str(file) in message


def test_a_config_that_is_not_there_is_named_with_the_nearest():
    message = refusal("1", "experiments/accelerate/fsdp.yaml")
    assert "'experiments/accelerate/fsdp.yaml' not found; nearest:" in message


def test_what_cannot_be_used_here_says_why(monkeypatch):
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    folder = "experiments/accelerate"
    for stage in "23":
        message = refusal("1", f"{folder}/zero{stage}.yaml")
        assert "needs DeepSpeed, which is not installed: pip install deepspeed" in message
    assert "FSDP needs CUDA devices; on CPUs Accelerate" in refusal("1", f"{folder}/fsdp2.yaml")
    assert "is of 2 machines: on each start" in refusal("1", f"{folder}/machines.yaml")


def test_a_launcher_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate.commands", None)
    with pytest.raises(UserError, match="Accelerate's launcher cannot be imported"):
        launch.launch(["train"], 2, None)


def test_processes_that_a_launcher_has_started_start_none(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    assert "leave both out under torchrun or accelerate launch" in refusal("2")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_config_is_one_of_accelerates_launcher(file):
    words = ["--config_file", str(file), "-m", "vizer_rl", "train", FILE]
    args, config, _ = launcher._validate_launch_command(
        launcher.launch_command_parser().parse_args(words)
    )
    assert config.num_processes == args.num_processes
    assert args.use_fsdp is (file.stem == "fsdp2")
    assert args.use_deepspeed is file.stem.startswith("zero")
    assert args.multi_gpu is (file.stem in ("ddp", "machines"))
    assert int(args.num_machines) == (2 if file.stem == "machines" else 1)


def test_fsdp2_is_what_the_config_asks_for(monkeypatch):
    args = launcher.launch_command_parser().parse_args(
        ["--config_file", "experiments/accelerate/fsdp2.yaml", "-m", "vizer_rl"]
    )
    args, _, _ = launcher._validate_launch_command(args)
    for name, value in prepare_multi_gpu_env(args).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.cpu_ram_efficient_loading is False
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeeds_plugin_reads_its_config(stage, monkeypatch):
    args = launcher.launch_command_parser().parse_args(
        ["--config_file", f"experiments/accelerate/zero{stage}.yaml", "-m", "vizer_rl"]
    )
    args, config, _ = launcher._validate_launch_command(args)
    args.deepspeed_fields_from_accelerate_config = ",".join(config.deepspeed_config)
    _, env = prepare_deepspeed_cmd_env(args)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    plugin = DeepSpeedPlugin()
    assert plugin.zero_stage == stage
    assert plugin.zero3_init_flag is False


class Launcher:
    """Stands in for Accelerate's: keeps what it was given, and ends as it is told to."""

    def __init__(self, monkeypatch, error=None):
        self.error, self.args = error, None
        monkeypatch.setattr(launcher, "launch_command", self.launch_command)

    def launch_command(self, args):
        self.args, self.file = args, os.environ["VIZER_ACCELERATE"]
        if self.error:
            raise self.error


def test_the_command_runs_itself_in_each_process(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    started = Launcher(monkeypatch)
    words = ["train", FILE, "profile=scenes", "name=launched", "--accept-changes", "--overwrite"]
    assert cli.main([*words, "--devices", "3"]) == 0
    assert (started.args.num_processes, started.args.training_script) == (3, "vizer_rl")
    assert started.args.multi_gpu
    assert started.args.module
    each = ["train", FILE, "profile=scenes", "name=launched", "--overwrite", "--accept-changes"]
    assert started.args.training_script_args == each
    again = parse(each)
    assert launched_words(again) == each
    assert launched_words(parse(["train", FILE, "--sweep", "lr", "--devices", "2"])) == [
        *["train", FILE, "--sweep", "lr"]
    ]


def test_a_mistake_in_the_run_file_is_told_before_anything_is_started(monkeypatch, capsys):
    started = Launcher(monkeypatch)
    assert cli.main(["train", FILE, "family=smolvml", "--devices", "2"]) == 2
    assert started.args is None
    assert capsys.readouterr().err.count("'smolvml' is unknown") == 1


@pytest.mark.parametrize(("rank", "times"), [("0", 1), ("1", 0)])
def test_a_mistake_that_all_processes_read_is_told_by_the_first(rank, times, monkeypatch, capsys):
    monkeypatch.setenv("RANK", rank)
    assert cli.main(["train", FILE, "family=smolvml"]) == 2
    assert capsys.readouterr().err.count("'smolvml' is unknown") == times


@pytest.mark.parametrize("code", [2, 130, 143])
def test_what_a_process_has_explained_is_not_explained_again(code, monkeypatch):
    error = ChildFailedError.__new__(ChildFailedError)
    monkeypatch.setattr(
        error, "get_first_failure", lambda: (1, SimpleNamespace(exitcode=code)), raising=False
    )
    Launcher(monkeypatch, error)
    assert launch.launch(["train", FILE], 2, None) == code


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (
            -9,
            "process 1 of 2 was ended by SIGKILL; go on from the last checkpoint with --devices 2",
        ),
        (1, "process 1 of 2 ended with exit code 1"),
    ],
)
def test_a_process_that_ends_without_a_word_is_named(code, sentence, monkeypatch):
    error = ChildFailedError.__new__(ChildFailedError)
    monkeypatch.setattr(
        error, "get_first_failure", lambda: (1, SimpleNamespace(exitcode=code)), raising=False
    )
    Launcher(monkeypatch, error)
    with pytest.raises(UserError, match=sentence):
        launch.launch(["train", FILE], 2, None)


def test_what_a_process_was_started_with_is_the_way_on(monkeypatch):
    error = ChildFailedError.__new__(ChildFailedError)
    failure = (0, SimpleNamespace(exitcode=-9))
    monkeypatch.setattr(error, "get_first_failure", lambda: failure, raising=False)
    started, file = Launcher(monkeypatch, error), Path("my configs/ddp.yaml")
    way = "checkpoint with --devices 2 --accelerate 'my configs/ddp.yaml' --resume"
    with pytest.raises(UserError, match=way):
        launch.launch(["train", FILE], 2, file)
    assert started.file == str(file)
    assert "VIZER_ACCELERATE" not in os.environ


def test_what_accelerate_refuses_when_it_starts_is_one_sentence(monkeypatch):
    Launcher(monkeypatch, ValueError("You need at least\n 2 processes."))
    with pytest.raises(
        UserError, match=r"^--accelerate one\.yaml: You need at least 2 processes\.$"
    ):
        launch.launch(["train", FILE], 1, Path("one.yaml"))
    with pytest.raises(ValueError, match="You need"):  # without a file it is no user's mistake
        launch.launch(["train", FILE], 2, None)


def test_a_starter_that_ends_is_named(monkeypatch):
    Launcher(monkeypatch, subprocess.CalledProcessError(1, ["deepspeed"]))
    with pytest.raises(UserError, match="the start of 2 processes ended with exit code 1"):
        launch.launch(["train", FILE], 2, FILES[0])
    Launcher(monkeypatch, subprocess.CalledProcessError(130, ["deepspeed"]))
    assert launch.launch(["train", FILE], 2, FILES[0]) == 130


def test_a_signal_ends_with_its_own_code(monkeypatch):
    Launcher(monkeypatch, SignalException("stopped", signal.SIGTERM))
    assert launch.launch(["train", FILE], 2, None) == 143


def test_the_way_on_is_with_as_many_devices(monkeypatch, tmp_path):
    assert "--devices" not in way_on(tmp_path)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert way_on(tmp_path).endswith("config.yaml --devices 2 --overwrite")
    monkeypatch.setenv("VIZER_ACCELERATE", "my configs/fsdp2.yaml")
    flags = "--devices 2 --accelerate 'my configs/fsdp2.yaml'"
    assert way_on(tmp_path).endswith(f"config.yaml {flags} --overwrite")
    monkeypatch.setenv("WORLD_SIZE", "4")  # several machines: each has its own command
    assert "--devices" not in way_on(tmp_path)


@pytest.mark.parametrize(
    ("rank", "printed"), [("0", "go on with: vizer-rl train x.yaml"), ("1", "")]
)
def test_a_run_that_is_stopped_goes_on_with_as_many(rank, printed, monkeypatch, capsys):
    def stop(args):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "train", stop)
    for name, value in {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["train", "x.yaml"]) == 130
    error = capsys.readouterr().err
    assert printed in error
    assert ("--resume --devices 2" in error) is (rank == "0")


def test_log_probs_are_not_rounded_under_fsdp(monkeypatch):
    launch.check_precision(SimpleNamespace(bf16=True))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    launch.check_precision(SimpleNamespace(bf16=False))
    with pytest.raises(UserError, match="allowed under FSDP: false, for Accelerate rounds the log"):
        launch.check_precision(SimpleNamespace(bf16=True))


def arguments(world_size, size, passes, **more):
    settings = {"steps_per_generation": passes, "num_generations": 8, **more}
    return SimpleNamespace(
        world_size=world_size,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=passes,
        **settings,
    )


@pytest.mark.parametrize(
    ("args", "end"),
    [
        (arguments(4, 8, 16), "512 captions of 64 images, 4 times those of one process; "
         "train.gradient_accumulation_steps=4 makes it the same step"),
        (arguments(2, 64, 1), "128 captions of 16 images, 2 times those of one process; "
         "train.per_device_train_batch_size=32 makes it the same step"),
        (arguments(3, 64, 1), "192 captions of 24 images, 3 times those of one process"),
        (arguments(2, 8, 4, steps_per_generation=8), "64 captions of 8 images, 2 times those of "
         "one process"),
    ],
)  # fmt: skip
def test_the_step_of_several_processes_is_told_and_how_to_keep_it(args, end):
    sentence = launch.step_sentence(args)
    assert sentence == f"{args.world_size} processes: a step learns from {end}"


def test_a_signal_that_the_launcher_passes_on_is_the_terminals(monkeypatch):
    """Ctrl-C reaches all of a terminal's processes, and the launcher sends it on: it is one."""
    said, clock = [], [100.0]
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: clock[0])
    interrupts = interrupt.Interrupts(None, said.append)
    monkeypatch.setenv("RANK", "0")
    interrupts._receive(signal.SIGINT, None)
    clock[0] += 0.1
    interrupts._receive(signal.SIGINT, None)
    assert len(said) == 1
    clock[0] += interrupt.PASSED_ON
    with pytest.raises(KeyboardInterrupt):
        interrupts._receive(signal.SIGINT, None)
    monkeypatch.delenv("RANK")
    alone = interrupt.Interrupts(None, said.append)
    alone._receive(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        alone._receive(signal.SIGINT, None)


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two CPU cores")
def test_accelerates_launcher_trains_on_two_processes(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    assert importlib.util.find_spec("accelerate.commands.launch")
    words = ["train", str(REPO / FILE), *TINY, "name=two-devices", "data.limit=24"]
    words += ["train.per_device_train_batch_size=8", "rewards.alignment=null", "--overwrite"]
    job = subprocess.run(
        [sys.executable, "-m", "vizer_rl", *words, "--devices", "2"],
        env={**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert job.returncode == 0, job.stderr
    assert job.stdout.count("step 2/2") == 1
    assert "Traceback" not in job.stderr
    assert (workplace / "runs" / "two-devices" / "report.html").is_file()
