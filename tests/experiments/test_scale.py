"""What a run costs on several GPUs: the arithmetic by hand, and the page against the command."""

import contextlib
import io
from types import SimpleNamespace

import pytest
import torch

from experiments import scale
from experiments.scale import Case, cost_row, spread_peak
from vizer_rl.training.estimate import Estimate, Workload
from vizer_rl.training.step_time import Rates

from ..conftest import REPO

GB = 10**9
WORK = Workload(106, 81, 3 * 378**2, 16, 8, 8, 64, False, 256)
CASE = Case("x", SimpleNamespace(adapter=9 * GB), WORK, steps=1900, interval=25, scorers=[])


def test_a_run_on_more_devices_sees_as_many_images(monkeypatch):
    images = []

    def seconds(policy, work, reference, rates):
        images.append(work.images)
        return 0.5 + work.images / 16  # half of it shrinks with the images

    monkeypatch.setattr(scale, "step_seconds", seconds)
    monkeypatch.setattr(scale, "captioning_seconds", lambda case, rates: 36.0)
    # 1,900 × 1.5 s + 76 × 36 s = 5,586 s
    assert cost_row(CASE, 1, scale.A100) == "| x | 1 | 16 | 1900 | 1.50 | 49% | 1.55 | 1.6 |"
    # 2 images each; 2 × 7 / 8 × 9 GB / 450 GB/s = .035 s
    assert cost_row(CASE, 8, scale.A100).startswith("| x | 8 | 16 | 1900 | 0.66 | ")
    # no less than an image each: 64 a step, a quarter of the steps; 2 × 63 / 64 × 9 / 50 = .35 s
    assert cost_row(CASE, 64, scale.A100).startswith("| x | 64 | 64 | 475 | 0.92 | ")
    assert images == [16, 2, 1]


def test_weights_are_whole_while_sampling_and_spread_in_the_loss():
    fixed = {"weights": 80, "LoRA": 8, "Adam": 16, "scorer s": 5}
    phases = {"sampling": {"keys and values": 30}, "scoring": {"scorer": 7}}
    loss = {"reference and policy passes": {"activations, logits": 40}}
    # 5 + 24 / 8 + max(80 + 30, 80 / 8 + 2 × 80 / 40 + 40)
    assert spread_peak(Estimate(fixed, phases | loss, 0), 40, 8) == 5 + 3 + 110
    loss = {"reference and policy passes": {"activations, logits": 200}}
    assert spread_peak(Estimate(fixed, phases | loss, 0), 40, 8) == 5 + 3 + 214


def test_an_evaluation_reads_the_weights_once_a_token_of_each_batch(monkeypatch):
    policy = SimpleNamespace(
        text=None, tower=0, patches=lambda pixels: 0, weights=4 * GB, kv_cache=lambda *_: 2 * GB
    )
    monkeypatch.setattr(scale, "language_flops", lambda *_: 0.0)
    case = Case("x", policy, WORK, 1900, 25, [])
    # 256 images in 4 batches, 64 tokens each, 4 + 1 GB a token, at 1 TB/s, over .35
    assert scale.captioning_seconds(case, Rates(1e12, 1e12)) == pytest.approx(1.28 / 0.35)


@pytest.mark.slow
def test_the_page_has_what_the_command_prints(monkeypatch):
    monkeypatch.chdir(REPO)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), torch.random.fork_rng():
        scale.main()
    page = (REPO / "docs" / "scale.md").read_text().splitlines()
    rows = [line for line in printed.getvalue().splitlines() if line.startswith(("| ", "- "))]
    assert len(rows) == 32
    assert [row for row in rows if row not in page] == []
