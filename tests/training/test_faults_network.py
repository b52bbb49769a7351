"""Faults of the network: W&B, the hub or a remote reward is away while a run trains."""

import json
import os
import shutil
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
import wandb
from huggingface_hub import constants

from vizer_rl import cli, files
from vizer_rl.algorithms.grpo import GRPO
from vizer_rl.assets import ASSETS
from vizer_rl.scoring import contract
from vizer_rl.training import tracking, wandb_run

from ..conftest import FEW_REWARDS, REPO, TINY
from ..fake_wandb import Server

pytestmark = pytest.mark.faults

FILE = str(REPO / "experiments" / "smolvlm.yaml")
SETTINGS = ["data.limit=24", "train.save_steps=1", "train.max_steps=3", "monitor.images=2"]
SETTINGS += ["data.heldout=4", *FEW_REWARDS]


@pytest.fixture(autouse=True)
def in_workplace(workplace, monkeypatch):
    monkeypatch.chdir(workplace)


@pytest.fixture
def server():
    """Answers as W&B does until it is blocked."""
    server = Server()
    yield server
    server.close()


@pytest.fixture
def online(server, monkeypatch):
    """W&B is that server, where somebody is logged in; it has a second to begin and to end."""
    for name in ("WANDB_MODE", "WANDB_SERVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", "local-" + "0" * 40)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")  # of a question about an artifact: else 10 s
    monkeypatch.setattr(wandb_run, "FINISH_SECONDS", 1.0)
    wandb.teardown()
    yield server
    wandb.teardown()


def arguments(name, *more, flag="--overwrite"):
    return ["train", FILE, *TINY, *SETTINGS, f"name={name}", *more, flag]


def steps(directory):
    rows = (directory / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row)["step"] for row in rows]


def before_step(monkeypatch, number, act):
    """Call `act` at the beginning of this step."""
    original, count = GRPO.training_step, []

    def training_step(self, *args):
        count.append(args)
        if len(count) == number:
            act()
        return original(self, *args)

    monkeypatch.setattr(GRPO, "training_step", training_step)


def trained(directory):
    """The run came to its end: each step has a row, the last a checkpoint, and it was evaluated."""
    newest = files.checkpoints(directory)[0]
    return (
        steps(directory) == [1, 2, 3]
        and newest.name == "checkpoint-3"
        and files.damage(newest) == ""
        and (directory / "eval.json").is_file()
    )


@pytest.mark.slow
def test_wandb_that_does_not_answer_any_more_leaves_a_whole_run_and_one_warning(
    online, workplace, monkeypatch, capsys
):
    before_step(monkeypatch, 2, online.blocked.set)
    began = time.monotonic()
    assert cli.main(arguments("blocked", "tracking.wandb=online")) == 0
    seconds = time.monotonic() - began
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("W&B did not take the end of the run within 1 s") == 1
    assert printed.count("wandb sync") == 1
    directory = workplace / "runs" / "blocked"
    assert trained(directory)
    assert tracking.read_tracked(directory).mode == "online"
    assert seconds < 60


@pytest.mark.slow
def test_wandb_that_never_answers_is_left_for_a_run_offline(online, workplace, monkeypatch, capsys):
    monkeypatch.setattr(wandb_run, "START_SECONDS", 1.0)
    online.blocked.set()
    assert cli.main(arguments("never", "tracking.wandb=online")) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("W&B cannot be reached") == 1
    directory = workplace / "runs" / "never"
    assert trained(directory)
    assert tracking.read_tracked(directory).mode == "offline"


@pytest.mark.parametrize("mode", ["online", pytest.param("offline", marks=pytest.mark.slow)])
def test_a_process_of_wandbs_that_dies_is_replaced_by_one_that_records_offline(
    mode, online, workplace, monkeypatch, capsys
):
    def kill():
        for child in psutil.Process().children():
            if "wandb-core" in child.name():
                child.kill()
                child.wait()

    before_step(monkeypatch, 2, kill)
    assert cli.main(arguments(f"dead-{mode}", f"tracking.wandb={mode}")) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count("W&B's own process has ended") == 1
    directory = workplace / "runs" / f"dead-{mode}"
    assert trained(directory)
    tracked = tracking.read_tracked(directory)
    assert tracked.mode == "offline"
    recorded = [path.name for path in (directory / "wandb").glob(f"*run-*-{tracked.id}")]
    assert len(recorded) == 2
    assert Path(tracked.dir).name in recorded


@pytest.fixture
def hub(monkeypatch):
    """A hub that takes connections and answers none, in place of the real one."""
    hub = Server()
    hub.blocked.set()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)  # read when it was imported
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
    }.items():
        monkeypatch.setattr(constants, name, value)
    yield hub
    hub.close()


@pytest.mark.slow
def test_a_run_on_files_that_are_here_asks_the_hub_nothing(hub, workplace, capsys):
    """It trains, saves, resumes, evaluates and captions; the model is a folder."""
    model = workplace / "folder-model"
    shutil.copytree(ASSETS / "smolvlm", model)
    here = f"policy.model={model}"
    assert cli.main(arguments("no-hub", here, "train.max_steps=2")) == 0
    assert cli.main(arguments("no-hub", here, flag="--resume")) == 0
    assert trained(workplace / "runs" / "no-hub")
    image = "data/scenes/train/images/0000003.png"
    assert cli.main(["caption", image, "--run", "no-hub"]) == 0
    assert hub.asked == []
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


class Scorer:
    """A remote reward's server on a port of its own, which may be stopped and started again."""

    def __init__(self):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        self.server, self.answered = None, 0

    def start(self):
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), self.handler())
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def handler(self):
        scorer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                scorer.answered += 1
                scores = [len(item["caption"]) / 100 for item in body["items"]]
                answer = json.dumps({"scores": scores}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        return Handler


@pytest.fixture
def scorer():
    scorer = Scorer()
    scorer.start()
    yield scorer
    if scorer.server is not None:
        scorer.stop()


def remote(scorer, **settings):
    """The setting of the remote reward that this scorer answers."""
    file = REPO / "experiments" / "remote_reward.py"
    values = {"weight": 0.1, "url": f"http://127.0.0.1:{scorer.port}/", "wait": 0.1, **settings}
    return f"rewards.{file}={json.dumps(values)}"


def test_a_remote_reward_that_dies_and_comes_back_is_waited_for(scorer, workplace, monkeypatch):
    def die():
        scorer.stop()
        threading.Timer(1.0, scorer.start).start()

    before_step(monkeypatch, 2, die)
    assert cli.main(arguments("comes-back", remote(scorer))) == 0
    assert trained(workplace / "runs" / "comes-back")


@pytest.mark.slow
def test_a_remote_reward_that_does_not_come_back_is_named(scorer, workplace, monkeypatch, capsys):
    before_step(monkeypatch, 2, scorer.stop)
    settings = remote(scorer, tries=3)
    assert cli.main(arguments("gone", settings)) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert "reward 'remote_reward' failed" in printed
    assert "failed 3 times, the last time with" in printed
    assert "runs/gone/checkpoint-1 is intact. Go on from it with:" in printed
    directory = workplace / "runs" / "gone"
    assert steps(directory) == [1]
    assert files.checkpoints(directory)[0].name == "checkpoint-1"
    assert files.damage(files.checkpoints(directory)[0]) == ""
    scorer.start()
    monkeypatch.undo()
    monkeypatch.chdir(workplace)
    assert cli.main(arguments("gone", settings, flag="--resume")) == 0
    assert trained(directory)


@pytest.mark.slow
def test_a_remote_reward_has_a_time_limit_in_all(scorer, workplace, monkeypatch, capsys):
    monkeypatch.setattr(contract, "LIMIT_SECONDS", 1.0)
    before_step(monkeypatch, 2, scorer.stop)
    assert cli.main(arguments("late", remote(scorer, wait=5))) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert "reward 'remote_reward' did not come back within 1 s" in printed
    assert "runs/late/checkpoint-1 is intact. Go on from it with:" in printed
