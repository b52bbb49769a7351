"""The example of a remote reward against a local server: retries, time-out, a clear stop."""

import base64
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from rewards import make
from vizer_rl.scoring.contract import RewardError
from vizer_rl.scoring.reward_functions import Reward, RewardFunctions

from ..conftest import REPO
from ..stubs import EOS

pytestmark = pytest.mark.faults

FILE = str(REPO / "experiments" / "remote_reward.py")


@pytest.fixture
def server():
    """Answers with the length of each caption / 10, or as `server.plan` says, one entry a request:
    a status, or seconds to sleep first."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.requests.append(body["items"])
            todo = server.plan.pop(0) if server.plan else 200
            if isinstance(todo, float):
                time.sleep(todo)
            status = todo if isinstance(todo, int) else 200
            scores = server.answer or [len(i["caption"]) / 10 for i in body["items"]]
            captions = json.dumps({"scores": scores}).encode() if status == 200 else b"{}"
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(captions)))
                self.end_headers()
                self.wfile.write(captions)
            except BrokenPipeError:
                pass  # the asker gave up: that is what is tested

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.plan, server.requests, server.answer = [], [], None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def ask(server, **parameters):
    url = f"http://127.0.0.1:{server.server_port}/score"
    reward = make(FILE, {"url": url, "wait": 0.01, "timeout": 5.0, **parameters})
    adapter = RewardFunctions(
        [Reward("remote_reward", 1.0, reward)], lambda n: None, None, [EOS], 2
    )
    images = [Image.new("RGB", (4, 4), c) for c in ("red", "red", "blue", "blue")]
    batch = adapter.batch(["r", "r", "b", "b"], images, ["a", "bb", "ccc", "dddd"], [[EOS]] * 4)
    return adapter.scores(batch)["remote_reward"]


def test_every_caption_is_scored_and_each_image_sent_once_a_request(server):
    assert ask(server, batch_size=3) == [0.1, 0.2, 0.3, 0.4]
    first, second = sorted(server.requests, key=len, reverse=True)
    assert [sorted(item) for item in first] == [
        ["caption", "image", "image_id"],
        ["caption", "image_id"],
        ["caption", "image", "image_id"],
    ]
    assert len(second) == 1
    picture = Image.open(io.BytesIO(base64.b64decode(first[2]["image"])))
    assert picture.getpixel((0, 0)) == (0, 0, 255)


def test_a_busy_server_is_asked_again(server):
    server.plan = [500, 503, 429]
    assert ask(server) == [0.1, 0.2, 0.3, 0.4]
    assert len(server.requests) == 4


def test_a_server_that_goes_on_failing_stops_the_run(server):
    server.plan = [500] * 3
    with pytest.raises(RewardError, match=r"'remote_reward' failed.*failed 3 times.*500"):
        ask(server, tries=3)
    assert len(server.requests) == 3


def test_a_server_that_does_not_answer_in_time_is_asked_again_and_then_given_up(server):
    server.plan = [1.0, 0.0]
    assert ask(server, timeout=0.3) == [0.1, 0.2, 0.3, 0.4]
    server.plan = [1.0, 1.0]
    with pytest.raises(RewardError, match=r"failed 2 times.*timed out"):
        ask(server, timeout=0.2, tries=2)


def test_a_wrong_request_or_answer_stops_at_once(server):
    server.plan = [404]
    with pytest.raises(RewardError, match=r"refuses the request.*404"):
        ask(server)
    assert len(server.requests) == 1
    server.answer = [1.0]
    with pytest.raises(RewardError, match="no list of 4 scores"):
        ask(server)


def test_nobody_there_stops_the_run(server):
    server.shutdown()
    server.server_close()
    with pytest.raises(RewardError, match=r"failed 2 times.*refused"):
        ask(server, tries=2)
