"""Faults of files while a run trains: the disk, its images, its kept adapter, the clock."""

import itertools
import json
import os
import shlex
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from rewards.lib.mapper import Mapper, keep
from vizer_rl import cli, files
from vizer_rl.algorithms import resumable, vizer
from vizer_rl.algorithms.grpo import GRPO
from vizer_rl.data import dataset
from vizer_rl.data.lazy import LazyImages
from vizer_rl.data.sources import ImageFolder
from vizer_rl.errors import Fault, ImageError, UserError
from vizer_rl.evaluation.tables import PlainConsole
from vizer_rl.policy import captioner
from vizer_rl.scoring.reward_functions import RewardFunctions
from vizer_rl.training import checkpoint
from vizer_rl.training.heldout_monitor import HeldoutMonitor
from vizer_rl.training.tracking import Recorder

from ..conftest import REPO, TINY
from ..faults import FAULTS, flip, refuse
from ..pictures import save, truncate
from ..stubs import Stub
from ..test_architecture import PACKAGE, imports

pytestmark = pytest.mark.faults

FILE = str(REPO / "experiments" / "smolvlm.yaml")
FULL = Path("/dev/full")  # a device on which every write fails for want of space


# ---- the kept adapter -------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


def keep_adapter(target, content):
    with files.replaced(target) as folder:
        (folder / "adapter_config.json").write_text("{}")
        (folder / "weights").write_bytes(content)


def killed_at(monkeypatch, number, work):
    """Whether `work` came to its end, with a kill before this operation on the file system."""
    count = [0]

    def counted(call, half=None):
        def operation(*args, **kwargs):
            count[0] += 1
            if count[0] == number:
                if half:
                    half(*args)
                raise Killed
            return call(*args, **kwargs)

        return operation

    def half_deleted(folder, **_):
        for path in sorted(Path(folder).glob("*"))[:1]:
            path.unlink()

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", counted(shutil.rmtree, half_deleted))
        patch.setattr(files, "_sync", counted(files._sync))
        for name in ("rename", "mkdir", "write_text", "write_bytes"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        try:
            work()
        except Killed:
            return False
    return True


def test_killed_between_any_two_steps_there_is_a_whole_adapter(tmp_path, monkeypatch):
    target, kills, contents = tmp_path / "adapter", 0, set()
    keep_adapter(target, b"0")
    while True:
        kills += 1
        before = (files.whole(target) / "weights").read_bytes()
        new = str(kills).encode()
        done = killed_at(monkeypatch, kills, lambda c=new: keep_adapter(target, c))
        found = files.whole(target)
        assert files.damage(found) == ""
        content = (found / "weights").read_bytes()
        assert content in ((new,) if done else (before, new))
        contents.add((found.name, content == new))
        if done:
            break
    assert kills > 10
    assert contents >= {("adapter", False), (".adapter.part", True), ("adapter", True)}
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_of_a_swap_that_was_broken_off_the_whole_one_is_taken(tmp_path):
    target = tmp_path / "adapter"
    keep_adapter(target, b"old")
    target.rename(tmp_path / ".adapter.old")
    (tmp_path / ".adapter.part").mkdir()
    (tmp_path / ".adapter.part" / "weights").write_bytes(b"half")
    assert files.whole(target) == tmp_path / ".adapter.old"
    flip(tmp_path / ".adapter.old" / "weights", 0)
    assert files.whole(target) == target, "neither is whole: its name stands in the sentence"


# ---- a run's own files ------------------------------------------------------------------------


def write_metrics(directory):
    recorder = Recorder(directory, PlainConsole(), None)
    state = SimpleNamespace(is_world_process_zero=True, global_step=1, max_steps=1)
    recorder.on_log(None, state, None, logs={"loss": 1.0})


def write_adapter(directory):
    with files.replaced(directory / "adapter") as folder:
        save_file({"a": torch.zeros(9)}, folder / "adapter_model.safetensors")


def write_checkpoint(directory):
    args = SimpleNamespace(output_dir=str(directory), should_save=True, save_total_limit=2)
    accelerator = SimpleNamespace(wait_for_everyone=lambda: None)
    with resumable.written_aside(accelerator, args, 2) as folder:
        folder.mkdir(parents=True)
        torch.save({}, folder / "state_0.pt")


def write_table(directory):
    with files.naming(directory / "completions"):
        (directory / "completions").mkdir(exist_ok=True)
        pd.DataFrame({"a": [1]}).to_parquet(directory / "completions" / "completions_00001.parquet")


def write_skipped(directory):
    images = ImageFolder("", directory / "images", [], {}, listing=directory / "skipped.jsonl")
    images.skip("a.png", "gone")


def write_mapper(directory):
    files.write_atomic(directory / "mapper.pt", lambda path: keep(path, Mapper(2, 2), matching=1.0))


OWN = {
    "metrics.jsonl": write_metrics,
    "adapter": write_adapter,
    "checkpoint 2": write_checkpoint,
    "completions": write_table,
    "skipped.jsonl": write_skipped,
    "mapper.pt": write_mapper,
    "eval.json": lambda directory: files.write_text(directory / "eval.json", "{}"),
}


def sealed(directory, step):
    (directory / ".saving").mkdir(parents=True)
    (directory / ".saving" / "weights").write_bytes(b"weights")
    files.seal(directory / ".saving", directory / f"checkpoint-{step}")
    return directory / f"checkpoint-{step}"


@pytest.mark.parametrize("number", FAULTS)
@pytest.mark.parametrize("name", OWN)
def test_what_the_disk_refuses_is_named_with_reason_checkpoint_and_command(
    name, number, tmp_path, monkeypatch
):
    directory = tmp_path / "runs" / "a b"
    kept = sealed(directory, 1)
    refuse(monkeypatch, directory, number)
    with pytest.raises(UserError) as caught, checkpoint.last_checkpoint_named(directory):
        OWN[name](directory)
    sentence = str(caught.value)
    assert name in sentence
    assert FAULTS[number] in sentence
    command = f"vizer-rl train {shlex.quote(str(directory / 'config.yaml'))} --resume"
    assert sentence.endswith(f"{kept} is intact. Go on from it with:\n  {command}")
    assert files.damage(kept) == ""


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("name", ["metrics.jsonl", "completions", "skipped.jsonl"])
def test_a_write_that_finds_no_room_is_named(name, tmp_path):
    file = {"completions": "completions/completions_00001.parquet"}.get(name, name)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).symlink_to(FULL)
    with pytest.raises(Fault, match=rf"{name}' cannot be written: .*No space left on device"):
        OWN[name](tmp_path)


def test_a_damaged_checkpoint_is_not_called_intact(tmp_path):
    old, new = sealed(tmp_path, 1), sealed(tmp_path, 2)
    flip(new / "weights", 0)
    assert checkpoint.way_on(tmp_path).startswith(f"{old} is intact")
    flip(old / "weights", 0)
    assert checkpoint.way_on(tmp_path).startswith("There is no checkpoint yet. Begin again with:")


def test_a_mapper_that_was_kept_and_is_damaged_is_a_sentence(tmp_path):
    write_mapper(tmp_path)
    path = tmp_path / vizer.MAPPER_FILE
    whole = path.read_bytes()
    weights = torch.load(path, weights_only=True)["mapper"]["layers.0.weight"].numpy().tobytes()
    middle = whole.index(weights) + len(weights) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    settings = vizer.MapperSettings("self", None, "loose", "mean", "tower", 256, 1, 1, 1.0)
    model = SimpleNamespace(device=torch.device("cpu"))
    for damaged in (whole[: len(whole) // 2], b"", b"<html>", flipped):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"mapper .*mapper.pt cannot be read: .*; without"):
            vizer.fit_alignment(model, None, [], None, "", tmp_path, 1, None, settings)


# ---- images -----------------------------------------------------------------------------------


@pytest.fixture
def five(tmp_path):
    for k in range(5):
        save(tmp_path / "images" / f"{k}.png", (k, 0, 0), size=(40, 40))
    return replace(ImageFolder.index(tmp_path / "images"), listing=tmp_path / "skipped.jsonl")


def listed(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {Path(row["path"]).name: row["reason"] for row in rows}


def hurt(folder):
    """Delete, truncate and replace an image each."""
    (folder / "0.png").unlink()
    truncate(folder / "1.png")
    save(folder / "2.png", (200, 0, 0), size=(41, 41))


REASONS = {"0.png": "No such file", "1.png": "cannot be read", "2.png": "it was replaced"}


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_change_while_training_give_way_to_the_next_and_are_listed(workers, five):
    rows = dataset.rows(five, "Describe")
    assert rows[2]["image_id"] == "2.png"  # and is in the cache of decoded images
    hurt(five.root)
    rows = dataset.rows(five, "Describe")
    loader = DataLoader(rows, 1, collate_fn=lambda batch: batch[0], num_workers=workers)
    for _ in range(2):  # epochs: a second one lists nothing twice
        used = [(row["image_id"], row["image"].getpixel((0, 0))[0]) for row in loader]
        assert used == [("3.png", 3)] * 4 + [("4.png", 4)]
    reasons = listed(five.listing)
    assert reasons.keys() == REASONS.keys()
    assert all(REASONS[name] in reason for name, reason in reasons.items())
    assert len(five.listing.read_text().splitlines()) == 3


def test_where_no_image_is_left_a_worker_says_so_in_a_sentence(five, tmp_path):
    rows = dataset.rows(five, "Describe")
    shutil.rmtree(five.root)
    kept = sealed(tmp_path / "run", 1)
    loader = DataLoader(rows, 1, collate_fn=lambda batch: batch[0], num_workers=1)
    with pytest.raises(UserError) as caught, checkpoint.last_checkpoint_named(tmp_path / "run"):
        next(iter(loader))
    assert str(caught.value).startswith(f"Not one image of '{five.root}' can be decoded any more.")
    assert f"{kept} is intact" in str(caught.value)


def test_a_worker_that_cannot_list_says_so_in_a_sentence(five, tmp_path):
    (five.root / "0.png").unlink()
    five.listing.symlink_to(FULL)
    loader = DataLoader(
        dataset.rows(five, "Describe"), 1, collate_fn=lambda batch: batch[0], num_workers=1
    )
    with pytest.raises(UserError) as caught, checkpoint.last_checkpoint_named(tmp_path):
        next(iter(loader))
    start = f"'{five.listing}' cannot be written: [Errno 28] No space left on device"
    assert str(caught.value).startswith(start)
    assert "Traceback" not in str(caught.value)


def test_an_image_that_was_replaced_is_loaded_by_nobody(five):
    hurt(five.root)
    for name, reason in REASONS.items():
        with pytest.raises(ImageError, match=f"Cannot use image .*{name}.*{reason}"):
            five.load(name)
    assert five.load("3.png").getpixel((0, 0)) == (3, 0, 0)
    again = ImageFolder.index(five.root)  # the next start
    assert again.ids == ["2.png", "3.png", "4.png"]
    assert again.load("2.png").getpixel((0, 0)) == (200, 0, 0)


def test_the_listing_goes_on_after_a_line_that_was_cut(five):
    five.listing.write_text('{"path": "x", "rea')
    five.skip("1.png", "gone")
    assert json.loads(five.listing.read_text().splitlines()[1])["reason"] == "gone"


def test_the_monitor_goes_on_without_images_that_changed(five, tmp_path, monkeypatch):
    captioned = []

    def caption(model, processor, images, *_, **__):
        captioned.append([image.getpixel((0, 0))[0] for image in images])
        return [SimpleNamespace(text="a dog") for _ in images]

    monkeypatch.setattr(captioner, "caption", caption)
    scorer = Stub({f"{k}.png": [1.0, k / 4] for k in range(5)}, {"a dog": [1.0, 0.0]})
    model = SimpleNamespace(
        training=True, eval=lambda: 0, train=lambda mode: 0, save_pretrained=lambda *_, **__: 0
    )
    lazy, log = LazyImages(five.load, five.ids), lambda name, value: None
    classes = SimpleNamespace(places=lambda caption: [])
    rest = (scorer, classes, None, 1, "best", tmp_path / "adapter", None, log, False)
    monitor = HeldoutMonitor(five.ids, lazy, "", 8, *rest, lost=five.lost)
    assert monitor.evaluate(model) < 1
    hurt(five.root)
    with pytest.warns(UserWarning, match=r"3 of 5 watched images have been deleted or replaced"):
        monitor.evaluate(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.evaluate(model)
    assert captioned == [[0, 1, 2, 3, 4], [3, 4], [3, 4]]
    assert listed(five.listing).keys() == REASONS.keys()
    shutil.rmtree(five.root)
    with pytest.raises(ImageError, match="Not one of the watched images"):
        monitor.evaluate(model)


# ---- the clock --------------------------------------------------------------------------------


def test_no_clock_that_can_be_set_back_is_read():
    for path in PACKAGE:
        assert "time.time(" not in path.read_text(), path
        assert not {"datetime", "time.time"} & imports(path), path


def test_an_image_replaced_by_an_older_one_is_another_image(five):
    before, identity = five.states["3.png"], five.identity("3.png")
    os.utime(five.root / "3.png", (1, 1))  # the clock was set back before it was written
    assert five.changed("3.png")
    assert five.identity("3.png") != identity
    os.utime(five.root / "3.png", ns=(before[1], before[1]))
    assert not five.changed("3.png")


# ---- a whole run ------------------------------------------------------------------------------

RUN = ["train", FILE, *TINY, "name=faults", "train.save_steps=1", "train.max_steps=6"]
RUN += ["data.heldout=4", "monitor.images=4", "monitor.interval=1", "train.num_generations=4"]


def in_step(patch, number, fault):
    """Let this come between step `number` and the learning of the next."""
    original, calls = GRPO.training_step, []

    def training_step(self, *args):
        if self.state.global_step == number and not calls:
            calls.append(fault(self))
        return original(self, *args)

    patch.setattr(GRPO, "training_step", training_step)


@pytest.mark.slow
def test_a_run_through_all_of_it(workplace, tmp_path, monkeypatch, capsys):
    """A disk that refuses, the command that goes on, images that change, the clock, a swap."""
    monkeypatch.chdir(workplace)
    images, directory = tmp_path / "images", workplace / "runs" / "faults"
    images.mkdir()
    for k, path in enumerate(sorted(Path("data/scenes/train").rglob("*.*g"))[:64]):
        shutil.copy(path, images / f"{k}.png")
    run = [*RUN, f"data.images={images}"]
    with monkeypatch.context() as patch:
        in_step(patch, 1, lambda trainer: refuse(patch, directory, 30))
        assert cli.main([*run, "--overwrite"]) == 2
    printed = capsys.readouterr().err
    assert "Read-only file system" in printed
    assert "checkpoint-1 is intact" in printed
    command = shlex.split(printed.splitlines()[-1])
    assert command[0] == "vizer-rl"
    assert files.damage(directory / "checkpoint-1") == ""
    assert files.damage(directory / "adapter") == ""

    hurt_ids = {f"{k}.png" for k in range(64) if k % 2}
    scored, scores = [], RewardFunctions.scores

    def change(trainer):
        for image_id in hurt_ids & {path.name for path in images.iterdir()}:
            if int(image_id[:-4]) % 4 == 1:
                (images / image_id).unlink()
            else:
                save(images / image_id, size=(96, 96))
        scored.clear()

    def noted(self, batch, *args):
        scored.append({*batch.image_ids})
        return scores(self, batch, *args)

    (directory / "adapter").rename(directory / ".adapter.old")  # as a kill leaves it
    with monkeypatch.context() as patch:
        in_step(patch, 1, change)
        patch.setattr(dataset, "CACHED_IMAGES", 1)
        patch.setattr(RewardFunctions, "scores", noted)
        back = itertools.count(10**9, -100)
        patch.setattr("time.time", lambda: float(next(back)))
        with pytest.warns(UserWarning, match="watched images have been deleted or replaced"):
            assert cli.main(command[1:]) == 0
    rows = [json.loads(x) for x in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(v >= 0 for row in rows for k, v in row.items() if "time" in k)
    assert files.damage(directory / "adapter") == ""

    ahead = 2  # rollouts whose images were decoded before
    assert len(scored) == 5
    assert not hurt_ids & set().union(*scored[ahead:]), "an image that had changed was learnt from"
    assert {*listed(directory / "skipped.jsonl")} <= hurt_ids
    assert len(listed(directory / "skipped.jsonl")) > 5

    (directory / "adapter").rename(directory / ".adapter.part")  # or so
    assert cli.main(["evaluate", "--run", "faults", "--no-controls"]) == 0
    assert cli.main(["caption", str(images / "0.png"), "--run", "faults"]) == 0
