"""The way in: lock, make targets, how set-up says no; the wheel, and the run that it trains."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools import find_packages

from .conftest import TINY

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
    and k not in {"DEVICES", "ACCELERATE"}
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
        (["DEVICES=4"], ["--devices", "4", "--overwrite-finished"]),
        (
            ["DEVICES=0", "NAME=x", "ACCELERATE=a b"],
            ["name=x", "--devices", "0", "--accelerate", "a b"],
        ),
        (["SWEEP=l r", "NAME=x", "FLAGS=--overwrite"], ["name=x", "--sweep", "l r", "--overwrite"]),
    ],
)
def test_only_the_unnamed_demo_is_overwritten(given, flags):
    assert make_n("train-smolvlm", *given)[3:] == flags


def test_a_folder_of_images_is_captioned_by_a_run_or_a_model():
    command, folder = [".venv/bin/vizer-rl", "caption"], "my  photos, 'best'"
    run = make_n("caption", "RUN=x y", f"IMAGES={folder}", "FLAGS=--doubtful z.jsonl")
    assert run[:5] == [*command, folder, "--run", "x y"]
    assert run[5:] == ["--out", "sidecar", "--doubtful", "z.jsonl"]
    model = make_n("caption", "MODEL=org/m", "IMAGES=a", "OUT=csv")
    assert model == [*command, "a", "--model", "org/m", "--out", "csv"]
    assert make_n("caption") == [*command, "--out", "sidecar"]  # refused: there is no default


def test_every_other_target_does_its_own_set_up():
    assert make_n("test")[-9:-5] == [".venv/bin/python", "-m", "pytest", "-q"]
    assert make_n("test-slow")[-4:] == ["pytest", "-q", "-m", "slow"]
    assert make_n("check")[-3:] == ["mypy", "vizer_rl", "rewards"]
    assert make_n("scenes-assets") == [".venv/bin/python", "-m", "experiments.embedded.build"]
    for target in [
        "train-smolvlm",
        "caption",
        "train-qwen2vl",
        "test",
        "test-slow",
        "check",
        "scenes-assets",
    ]:
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


def modules(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*.py")}


def test_the_wheel_holds_every_python_file_of_package_and_rewards():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = find_packages(str(ROOT), include=setuptools["packages"]["find"]["include"])
    folders = {p.replace(".", "/") for p in packages}
    files = {f"{top}/{file}" for top in ("vizer_rl", "rewards") for file in modules(ROOT / top)}
    assert {file.rpartition("/")[0] for file in files} == folders


def test_the_run_files_ship_with_the_package():
    shipped = ROOT / "vizer_rl/assets/run_files"
    for path in (ROOT / "experiments").glob("*.yaml"):
        link = shipped / path.name
        assert link.is_file(), f"ln -s ../../../experiments/{path.name} {link}"
        assert link.resolve() == path.resolve()


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package from the wheel of its source distribution, where no repository is."""
    folder = tmp_path_factory.mktemp("wheel")
    source, site = folder / "source", folder / "site"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("vizer_rl", "rewards", "experiments"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = "import setuptools.build_meta as b; b.build_sdist('..')"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    for command, place in [
        ([sys.executable, "-c", build], source),
        ([*pip, "wheel", "--no-deps", "--no-build-isolation", "vizer_rl-0.1.0.tar.gz"], folder),
    ]:
        done = subprocess.run(command, cwd=place, env=ENV, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    shutil.rmtree(source)
    (wheel,) = folder.glob("*.whl")
    command = [*pip, "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run(command, check=True, env=ENV, capture_output=True)
    return wheel, site


def site_files(site: Path) -> dict[str, int]:
    """Every file of an installation but what Python compiles, with the time of its change."""
    files = (p for p in site.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {p.relative_to(site).as_posix(): p.stat().st_mtime_ns for p in files}


@pytest.mark.slow
def test_a_wheel_trains_where_no_repository_is_and_writes_where_the_user_is(installed, tmp_path):
    wheel, site = installed
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert {n.split("/")[0] for n in names} == {"vizer_rl", "rewards"}
    for top in ("vizer_rl", "rewards"):
        assert {f"{top}/{file}" for file in modules(ROOT / top)} <= names
    files = (p for p in (ROOT / "vizer_rl/assets").rglob("*") if p.is_file())
    assert {p.relative_to(ROOT).as_posix() for p in files if p.suffix != ".pyc"} <= names
    before = site_files(site)
    home = tmp_path / "home"
    env = {k: v for k, v in ENV.items() if k not in ("PYTHONHOME", "XDG_CACHE_HOME")}
    env |= {"PYTHONPATH": str(site), "HOME": str(home), "HF_HUB_OFFLINE": "1"}
    env |= {"PYTHONDONTWRITEBYTECODE": "1"}
    place = tmp_path / "place"
    place.mkdir()

    def call(*command: str) -> str:
        done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    where = call(sys.executable, "-c", "import vizer_rl, rewards; print(vizer_rl.__file__)")
    assert Path(where.strip()).is_relative_to(site)
    words = [*TINY, "name=wheel", "monitor.keep=last"]
    call(str(site / "bin/vizer-rl"), "train", "smolvlm.yaml", *words)
    assert (place / "runs/wheel/eval.json").is_file()
    assert {p.name for p in place.iterdir()} == {"runs", "data"}
    export = ["export", "--run", "wheel", "--to", "merged", "--out", "model"]
    call(sys.executable, "-m", "vizer_rl", *export)
    assert (place / "model/model.safetensors").is_file()
    assert site_files(site) == before, "the installation was written to"


def test_help_lists_every_target_and_variable():
    result = subprocess.run(["make"], cwd=ROOT, env=ENV, capture_output=True, text=True, check=True)
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split()
    for word in [*phony, "IMAGES=", "MODEL=", "PROFILE=", "NAME=", "SEED=", "SWEEP=", "DEVICES="]:
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
