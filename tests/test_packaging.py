"""The way in: what the lock promises, what the make targets run, how set-up says no."""

import os
import re
import shlex
import shutil
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LOCK = [Requirement(line) for line in (ROOT / "requirements.lock").read_text().splitlines()]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DIRECT = [Requirement(r) for r in PROJECT["dependencies"]]
DEV = [Requirement(r) for r in PROJECT["optional-dependencies"]["dev"]]
# What the make that runs these tests was called with is not ours to pass on.
ENV = {
    k: v
    for k, v in os.environ.items()
    if not k.startswith("MAKE")
    and k not in {"MFLAGS", "IMAGES", "MODEL", "PROFILE", "NAME", "SEED", "ARGS", "FLAGS", "PYTHON"}
}
MACHINES = [
    {
        "sys_platform": sys_platform,
        "platform_system": system,
        "platform_machine": machine,
        "python_version": python,
        "python_full_version": f"{python}.5",
    }
    for sys_platform, system, machine in [
        ("linux", "Linux", "x86_64"),
        ("linux", "Linux", "aarch64"),
        ("darwin", "Darwin", "arm64"),
    ]
    for python in ["3.11", "3.12", "3.13"]
]


def machine_id(machine: dict[str, str]) -> str:
    return "-".join(
        [machine["sys_platform"], machine["platform_machine"], machine["python_version"]]
    )


def pins(machine: dict[str, str] | None = None) -> dict[str, str]:
    """Name -> version: the lock, or what of it `machine` installs."""
    return {
        canonicalize_name(r.name): next(iter(r.specifier)).version
        for r in LOCK
        if machine is None or r.marker is None or r.marker.evaluate(machine)
    }


def closure(roots: list[Requirement], machine: dict[str, str]) -> list[Requirement]:
    """All that `roots` lead to on `machine`, read from what is installed here at the pins."""
    matches, todo, visited = [], list(roots), set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        matches.append(requirement)
        for extra in {"", *requirement.extras} - {e for n, e in visited if n == name}:
            visited.add((name, extra))
            below = [Requirement(r) for r in requires(name) or []]
            env = machine | {"extra": extra}
            todo += [r for r in below if r.marker is None or r.marker.evaluate(env)]
    return matches


def test_every_line_of_the_lock_is_an_exact_pin_and_at_most_a_marker():
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        assert re.fullmatch(r'[a-z0-9-]+==[0-9a-z.+!]+( ; sys_platform == "linux")?', line), line


def test_the_lock_is_sorted_and_names_each_package_once():
    names = [r.name for r in LOCK]
    assert names == sorted(set(names))
    assert names == [canonicalize_name(n) for n in names]


@pytest.mark.parametrize("requirement", DIRECT + DEV, ids=str)
def test_each_direct_dependency_is_pinned_within_its_range(requirement):
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("machine", MACHINES, ids=machine_id)
def test_the_lock_is_what_the_package_needs_no_less_and_no_more(machine):
    pinned = pins(machine)
    try:
        here = {name: version(name) for name in pinned}
    except PackageNotFoundError as absent:
        pytest.skip(f"{absent.name} is not for this platform")
    if here != pinned:
        pytest.skip(f"other versions here: {sorted(set(here.items()) - set(pinned.items()))}")
    needed = closure([*DIRECT, *DEV, Requirement("setuptools>=77")], machine)
    assert {canonicalize_name(r.name) for r in needed} == set(pinned)
    for requirement in needed:
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)])


def make_n(*args: str) -> list[str]:
    """The last command that `make` would run, in words."""
    result = subprocess.run(
        ["make", "-n", *args], cwd=ROOT, env=ENV, capture_output=True, text=True, check=True
    )
    return shlex.split(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("model", ["smolvlm", "qwen2vl"])
def test_variables_become_settings_of_the_run(model):
    values = ["IMAGES=my  photos, 'best'", "MODEL=org/m", "PROFILE=full", "NAME=x", "SEED=3"]
    args = "ARGS=train.max_steps=2 policy.lora_r=4"
    assert make_n(f"train-{model}", *values, args) == [
        *[".venv/bin/vizer-rl", "train", f"experiments/{model}.yaml"],
        *["data.images=my  photos, 'best'", "policy.model=org/m", "profile=full"],
        *["name=x", "seed=3", "train.max_steps=2", "policy.lora_r=4"],
    ]


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ([], ["--overwrite-finished"]),
        (["NAME=x"], ["name=x"]),
        (["ARGS=name=x"], ["name=x"]),
        (["FLAGS=--resume"], ["--resume"]),
        (["SWEEP=lr"], ["--sweep", "lr"]),
        (["SWEEP=l r", "NAME=x", "FLAGS=--overwrite"], ["name=x", "--sweep", "l r", "--overwrite"]),
    ],
)
def test_only_the_unnamed_demo_is_overwritten(given, flags):
    assert make_n("train-smolvlm", *given)[3:] == flags


def test_every_other_target_does_its_own_set_up():
    assert make_n("test")[-9:-5] == [".venv/bin/python", "-m", "pytest", "-q"]
    assert make_n("test-slow")[-4:] == ["pytest", "-q", "-m", "slow"]
    assert make_n("check")[-3:] == ["mypy", "vizer_rl", "rewards"]
    assert make_n("scenes-assets") == [".venv/bin/python", "-m", "experiments.embedded.build"]
    for target in ["train-smolvlm", "train-qwen2vl", "test", "test-slow", "check", "scenes-assets"]:
        result = subprocess.run(
            ["make", "-n", target], cwd=ROOT, env=ENV, capture_output=True, text=True, check=True
        )
        assert result.stdout.splitlines()[0].endswith("scripts/setup")


def test_the_wheel_holds_every_file_of_the_package_that_is_not_python():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    package = ROOT / "vizer_rl"
    packed = {p for glob in setuptools["package-data"]["vizer_rl"] for p in package.glob(glob)}
    others = {p for p in package.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert others <= packed


def test_help_lists_every_target_and_variable():
    result = subprocess.run(["make"], cwd=ROOT, env=ENV, capture_output=True, text=True, check=True)
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split()
    for word in [*phony, "IMAGES=", "MODEL=", "PROFILE=", "NAME=", "SEED=", "SWEEP=", "ARGS="]:
        assert word in result.stdout


# A Python that is all pretence: -c answers for the version, venv copies itself, pip says $SAYS.
STUB = r"""#!/bin/sh
case "$*" in
*version_info*) echo "${VERSION:-3.12}" ;;
*ensurepip*) exit "${NO_VENV:-0}" ;;
"-m venv"*) mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
"-m pip --version") ;;
*" -e "*) echo call >>calls; : >.venv/bin/vizer-rl; chmod +x .venv/bin/vizer-rl ;;
*) printf "%s\n" "${SAYS:-Collecting torch}"; [ -z "${SAYS:-}" ] ;;
esac
"""
DF = """#!/bin/sh
echo "Filesystem 1024-blocks Used Available Capacity Mounted on"
echo "/dev/disk1 99999999 0 2000000 98% /my disk"
"""


@pytest.fixture
def set_up(tmp_path):
    """Runs scripts/setup in a copy of the repository that has no .venv, with a stub Python."""
    (tmp_path / "scripts").mkdir()
    for name in ["scripts/setup", "requirements.lock", "pyproject.toml"]:
        shutil.copy(ROOT / name, tmp_path / name)
    for name, text in {"python": STUB, "df": DF.replace("2000000", "99999999")}.items():
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)

    def run(**env: str) -> subprocess.CompletedProcess:
        path = f"{tmp_path}/bin:{ENV['PATH']}"
        env = ENV | {"PATH": path, "PYTHON": f"{tmp_path}/bin/python"} | env
        command = [tmp_path / "scripts/setup"]
        return subprocess.run(command, cwd="/", env=env, capture_output=True, text=True)

    return run


def test_a_second_set_up_does_nothing_until_the_lock_changes(set_up, tmp_path):
    assert set_up().returncode == 0
    assert set_up().stderr == ""
    assert (tmp_path / "calls").read_text() == "call\n"
    with (tmp_path / "requirements.lock").open("a") as lock:
        lock.write("zzz==1\n")
    assert set_up().returncode == 0
    assert (tmp_path / "calls").read_text() == "call\ncall\n"


def test_a_set_up_that_broke_off_goes_on_at_the_next_call(set_up, tmp_path):
    assert set_up(SAYS="WARNING: Retrying (Retry(total=4))").returncode != 0
    half = tmp_path / ".venv/lib/python3.12/site-packages/torch-2.dist-info"
    half.mkdir(parents=True)
    assert set_up().returncode == 0
    assert not half.exists()
    assert set_up().stderr == ""


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({"VERSION": "3.9"}, "needs Python 3.11, 3.12 or 3.13; found 3.9 .*: install"),
        ({"PYTHON": "no-such"}, "needs Python 3.11, 3.12 or 3.13; found none: install one or pass"),
        ({"NO_VENV": "1"}, "has no venv module: install it .*python3-venv"),
        ({"SAYS": "WARNING: Retrying (Retry(total=4))"}, "could not download .*check the network"),
        ({"SAYS": "OSError: [Errno 28] No space left on device"}, "the disk is full: make room"),
        ({"SAYS": "ERROR: No matching distribution found for torch==2"}, "index has no torch==2"),
        ({"SAYS": "ERROR: all else"}, r"could not install packages \(ERROR: all else\)"),
    ],
)
def test_set_up_says_no_in_one_sentence(set_up, env, sentence):
    done = set_up(**env)
    assert done.returncode == 1
    *progress, last = done.stderr.splitlines()
    assert re.match(f"vizer_rl: .*{sentence}", last)
    assert len(progress) == ("SAYS" in env)


def test_too_little_disk_is_told_before_anything_is_downloaded(set_up, tmp_path):
    (tmp_path / "bin/df").write_text(DF)
    done = set_up()
    assert done.returncode == 1
    assert re.fullmatch(
        r"vizer_rl: set-up needs [\d.]+ GB free on /dev/disk1, which has 2.0 GB: make room, .*\n",
        done.stderr,
    )
    assert not (tmp_path / ".venv").exists()
