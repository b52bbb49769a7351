"""Two processes of a run (gloo, CPU) against one: gradients, order, metrics, who prints and writes.

One pair and one single run, with the same captions given to both, serve all tests of the file.
"""

import contextlib
import json
import os
import random
import re
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback

from vizer_rl import files
from vizer_rl.algorithms import trl_logs
from vizer_rl.algorithms.grpo import GRPO
from vizer_rl.training import assemble, train

from ..children import ended, start, start_pair
from ..conftest import REPO, TINY
from .test_faults_processes import free_port

FILE = str(REPO / "experiments" / "smolvlm.yaml")
SETTINGS = ["data.limit=24", "data.heldout=4", "monitor.images=2", "train.save_steps=1"]
SETTINGS += ["rewards.alignment=null", "train.num_generations=4"]
SETTINGS += ["train.per_device_train_batch_size=8"]
HALF = "train.per_device_train_batch_size=4"  # of the 8 captions of the single run
TOLERANCE = 1e-5  # of the gradient's norm


def given_captions(self, *_args, **_kwargs):
    """In place of sampling: captions that depend on an image and their place in its group alone."""
    end, places = min(self.reward_functions.eos_ids), Counter()
    completions = []
    for image_id in self.rollout.image_ids:
        draw = random.Random(f"{image_id} {places[image_id]}")
        places[image_id] += 1
        completions.append([draw.randrange(20, 400) for _ in range(draw.randrange(2, 12))] + [end])
    return completions, None


class Record(TrainerCallback):
    """Keeps, in FOLDER/RANK.pt, the images and gradients of every step."""

    def __init__(self, trainer, path):
        self.trainer, self.path, self.steps = trainer, path, []

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        self.steps.append({"images": self.trainer.rollout.image_ids, "grads": grads})
        torch.save(self.steps, self.path)


def watched(folder):
    """In the child: captions are given, the policy is off its reference, all is recorded."""
    folder.mkdir(parents=True, exist_ok=True)
    rank, original = os.environ.get("RANK", "0"), assemble.make_trainer
    GRPO._generate_single_turn = given_captions

    def make_trainer(*args):
        trainer = original(*args)
        torch.manual_seed(5)
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = 0.02 * torch.randn_like(parameter)
        trainer.add_callback(Record(trainer, folder / f"{rank}.pt"))
        return trainer

    assemble.make_trainer = make_trainer
    note_writes(folder / f"{rank}.writes")


def alone_in(folder):
    """The same for the single run, whose evaluation is nothing to us."""
    watched(folder)
    train.evaluate.evaluate = lambda *_, **__: None


def note_writes(path):
    """Note every path that Python of this process opens to write, makes, renames or removes."""
    notes = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def hook(event, args):
        writes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir")
        if event == "open":
            writes = bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if writes and not isinstance(args[0], int):
            os.write(notes, os.fsencode(f"{event} {os.path.abspath(os.fsdecode(args[0]))}\n"))

    sys.addaudithook(hook)


@pytest.fixture(scope="module")
def runs(workplace):
    """(directory, what each process printed and recorded) of the single run and of the pair."""
    with contextlib.chdir(workplace):
        folders = {name: Path("watched", name).absolute() for name in ("one", "two")}
        words = {n: ["train", FILE, *TINY, *SETTINGS, f"name={n}", "--overwrite"] for n in folders}
        words["two"].insert(-1, HALF)
        alone = start(words["one"], lambda: alone_in(folders["one"]), workplace / "printed-by-one")
        assert ended(alone) == 0, (workplace / "printed-by-one").read_text()
        pair = start_pair(
            words["two"], folders["two"], free_port(), lambda _: watched(folders["two"])
        )
        codes = [ended(child) for child in pair]
        printed = [(folders["two"] / rank).read_text() for rank in "01"]
        assert codes == [0, 0], printed
    return SimpleNamespace(
        one=workplace / "runs" / "one",
        two=workplace / "runs" / "two",
        folders=folders,
        printed=printed,
        single=torch.load(folders["one"] / "0.pt"),
        pair=[torch.load(folders["two"] / f"{rank}.pt") for rank in range(2)],
    )


def norm(grads):
    return torch.stack([grad.norm() for grad in grads]).norm()


def test_the_gradient_of_two_processes_is_that_of_one(runs):
    """Through GRPO and the packed row, after DDP has averaged, for every weight that learns."""
    single, pair = runs.single[0]["grads"], [steps[0]["grads"] for steps in runs.pair]
    assert any("lora_A" in name for name in single)
    assert all(grad.any() for grad in single.values())
    assert single.keys() == pair[0].keys() == pair[1].keys()
    for name, grad in pair[0].items():
        assert torch.equal(grad, pair[1][name]), name
    total = norm(single.values())
    difference = norm([pair[0][name] - grad for name, grad in single.items()])
    print(f"\ngradients of two processes and of one differ by {difference / total:.1e} of the norm")
    assert difference <= TOLERANCE * total


def test_both_learn_from_the_images_of_one_in_its_order(runs):
    for alone, first, second in zip(runs.single, *runs.pair, strict=True):
        assert first["images"] + second["images"] == alone["images"]
        assert len(set(first["images"])) == len(set(second["images"])) == 1
    assert len({*runs.single[0]["images"], *runs.single[1]["images"]}) == 4


def rows(directory, file="metrics.jsonl"):
    return [json.loads(line) for line in (directory / file).read_text().splitlines()]


def test_metrics_are_those_of_both_processes_and_stand_once(runs):
    one, two = rows(runs.one), rows(runs.two)
    assert [row["step"] for row in two] == [1, 2]
    assert one[0].keys() == two[0].keys()
    own = ("time/", "engine/", "step_time")  # of a machine, not of the captions
    for key, value in one[0].items():
        if not key.startswith(own):
            assert two[0][key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


def test_what_a_process_has_for_itself_is_logged_as_a_mean(monkeypatch):
    other = {"time/sample": 3.0, "reward": 0.5}
    monkeypatch.setattr(trl_logs, "gather_object", lambda own: [*own, other])
    metrics = {"time/sample": [1.0, 2.0], "reward": [0.5], "heldout/score": [0.7]}
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(num_processes=2), _metrics={"train": metrics}
    )
    trl_logs.mean_over_processes(trainer)
    assert metrics == {"time/sample": [2.25], "reward": [0.5], "heldout/score": [0.7]}
    trainer.accelerator.num_processes = 1
    trl_logs.mean_over_processes(trainer)
    assert metrics["time/sample"] == [2.25]


def test_one_set_of_lines_is_printed(runs):
    first, second = runs.printed
    assert first.count("training starts after") == 1
    assert first.count("step 2/2") == 1
    assert first.count("Before and after, on 4 held-out images") == 1
    assert "2 processes: a step learns from 8 captions of 2 images, 2 times those of" in first
    assert re.sub(r"\[rank1\]:.*\n", "", second) == ""  # torch's own notes


def test_one_process_writes_the_run_directory(runs):
    """All but its own random state in a checkpoint, which is written aside."""
    second = (runs.folders["two"] / "1.writes").read_text().splitlines()
    inside = [line for line in second if str(runs.two) in line]
    assert [line for line in inside if "/.saving" not in line] == []
    first = (runs.folders["two"] / "0.writes").read_text()
    for name in ("metrics.jsonl", "evaluations.jsonl", "eval.json", "report.html", "config.yaml"):
        assert name in first  # its part is renamed to it
        assert (runs.two / name).is_file()
    assert [row["step"] for row in rows(runs.two, "evaluations.jsonl")] == [0, 2]
    newest = files.checkpoints(runs.two)[0]
    assert files.damage(newest) == ""
    assert {path.name for path in newest.glob("state_*.pt")} == {"state_0.pt", "state_1.pt"}
