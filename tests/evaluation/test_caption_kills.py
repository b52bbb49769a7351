"""Captioning that is killed by SIGKILL and started again: the files of one that never stopped.

The command runs in forked children, which have policy and scorer from here. A kill comes at a
random moment of a phase; between two starts there is no half file.
"""

import os
import random
import shutil
import signal
import threading
from types import SimpleNamespace

import pyarrow.parquet
import pytest

from vizer_rl import files
from vizer_rl.config.run_dir import read_run
from vizer_rl.evaluation import run_policy
from vizer_rl.evaluation.captioning import batches, caption_set, journal, outputs
from vizer_rl.policy import load
from vizer_rl.scoring import clip

from ..children import in_child
from .captioned_run import draw_photos, write_run

pytestmark = pytest.mark.faults

COUNT, BATCH = 30, 4
PHASES = {  # what is going on when the kill comes
    "captioning": (run_policy.RunPolicy, "captions"),
    "adding": (journal.Journal, "append"),
    "syncing": (files, "_sync"),
    "sidecars": (outputs, "write_sidecars"),
    "finishing": (outputs, "write_whole"),
}
FILES = {
    "sidecar": "photos",
    "jsonl": "captions.jsonl",
    "csv": "captions.csv",
    "parquet": "captions.parquet",
    "metadata.jsonl": "photos/metadata.jsonl",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Photos, one of which does not decode, a run, and what it loads."""
    folder = tmp_path_factory.mktemp("kills")
    truth = draw_photos(folder / "photos", COUNT)
    (folder / "photos" / "5bad.png").write_bytes(b"no image")
    write_run(folder / "run", folder / "photos", truth)
    policy = run_policy.RunPolicy(read_run(folder / "run"), folder / "run")
    scorer = clip.OpenClip("embedded:b", load.device())
    return SimpleNamespace(folder=folder, policy=policy, scorer=scorer, wholes={})


def captioned(place, folder, form, flags=(), kill=None):
    """Run the command in a child in `folder`, killed at (phase, call, seconds); its exit code."""

    def prepare():
        os.chdir(folder)
        batches.CPU_IMAGES = BATCH
        caption_set.load_captioner = lambda run, directory: place.policy
        clip.OpenClip = lambda name, device, opening: place.scorer
        if kill:
            holder, name = PHASES[kill[0]]
            original, count = getattr(holder, name), [0]

            def watched(*args, **kwargs):
                count[0] += 1
                if count[0] == kill[1]:
                    pid = os.getpid()
                    threading.Timer(kill[2], os.kill, (pid, signal.SIGKILL)).start()
                return original(*args, **kwargs)

            setattr(holder, name, watched)

    run = ["caption", "photos", "--run", str(place.folder / "run"), "--out", form]
    return in_child([*run, *flags], prepare)


def result(folder, form):
    """What the command has written, by file; a table in place of parquet's bytes."""
    if form == "parquet":
        return pyarrow.parquet.read_table(folder / FILES[form]).to_pylist()
    path = folder / FILES[form]
    paths = [path] if path.is_file() else path.glob("*.txt")
    return {p.name: p.read_bytes() for p in paths}


def whole(place, form, flags=()):
    """The result of the command that was never stopped."""
    name = "-".join(["whole", form, *flags])
    if name not in place.wholes:
        folder = place.folder / name
        shutil.copytree(place.folder / "photos", folder / "photos")
        assert captioned(place, folder, form, flags) == 0
        place.wholes[name] = result(folder, form)
        assert len(place.wholes[name]) == (COUNT if form in ("sidecar", "parquet") else 1)
    return place.wholes[name]


def check_nothing_half(expected, folder, form):
    """What is there after a kill is whole: each file, or each line."""
    if form == "parquet":
        assert not (folder / FILES[form]).exists() or result(folder, form) == expected
    elif form == "jsonl":
        path = folder / FILES[form]
        lines = path.read_bytes() if path.exists() else b""
        assert expected["captions.jsonl"].startswith(lines)
    else:
        paths = result(folder, form) if (folder / FILES[form]).exists() else {}
        assert {name: expected[name] for name in paths} == paths


def killed_until_done(expected, place, folder, form, seed, flags=(), most=99):
    """Kill the command at random moments, `most` times, until it comes to its end; how often."""
    draw, kills = random.Random(f"{form} {seed}"), 0
    shutil.copytree(place.folder / "photos", folder / "photos")
    while True:
        phase = draw.choice(sorted({*PHASES} - ({"sidecars"} if form != "sidecar" else set())))
        call = 1 if phase == "finishing" else draw.randint(1, 4)
        kill = (phase, call, draw.uniform(0, 0.15))
        code = captioned(place, folder, form, flags, kill if kills < most else None)
        assert code in (0, -signal.SIGKILL)
        check_nothing_half(expected, folder, form)
        if code == 0:
            assert result(folder, form) == expected
            assert not [*folder.rglob("*.part")], "left by a process that was killed"
            return kills
        kills += 1


@pytest.mark.parametrize("form", ["sidecar", "jsonl"])
def test_two_kills_change_nothing(form, place, tmp_path):
    flags, kills = ("--scorer", "off"), 0
    expected = whole(place, form, flags)
    for seed in range(1, 9):
        folder = tmp_path / f"{form}-{seed}"
        kills += killed_until_done(expected, place, folder, form, seed, flags, 2 - kills)
        if kills == 2:
            return
    raise AssertionError(f"only {kills} kills came before the end")


@pytest.mark.slow
@pytest.mark.parametrize("form", FILES)
def test_twenty_kills_change_nothing(form, place, tmp_path):
    """Four or more of each form, one set after another, scores and doubtful words included."""
    expected, kills, seed = whole(place, form), 0, 10
    while kills < 4:
        kills += killed_until_done(expected, place, tmp_path / f"{form}-{seed}", form, seed)
        seed += 1
    print(f"\n{form}: killed {kills} times in {seed - 10} sets")
