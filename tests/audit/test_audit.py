"""The audit through the real command on few scenes: what it writes, refuses and keeps."""

import json
import random
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vizer_rl import cli
from vizer_rl.audit import audit as audits
from vizer_rl.audit.compositions import ALL_ATTACKS
from vizer_rl.audit.report_html import page
from vizer_rl.data import scenes as draw
from vizer_rl.data.perturb import augmented
from vizer_rl.evaluation.statistics import shuffle_apart
from vizer_rl.policy import captioner
from vizer_rl.policy.shared_prefix import vision_cache

from ..conftest import REPO, TINY

FILE = str(REPO / "experiments" / "smolvlm.yaml")
LEFT_OUT = ("alignment", "certainty", "repetition", "length", "self_retrieval")
ONLY = [f"rewards.{name}=null" for name in LEFT_OUT]
FEW = [word for word in TINY if not word.startswith("rewards.")]


@pytest.fixture
def audit(workplace, monkeypatch):
    """Runs `vizer-rl audit` on 8 images; the exit code."""
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(audits, "IMAGES", 8)

    def run(*words):
        return cli.main(["audit", FILE, *words])

    return run


class Page(HTMLParser):
    """Complains of tags that do not close in their order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.images, self.others = [], [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.others += [v for k, v in attributes if k in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        if tag == "img":
            self.images.append(dict(attributes)["src"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_good_recipe_is_audited_and_shown(audit, workplace, capsys):
    assert audit(*TINY, "name=good") == 0
    printed = capsys.readouterr().out
    assert "audit: " in printed
    assert all(attack.name in printed for attack in ALL_ATTACKS)
    assert max(map(len, printed.splitlines())) <= 100
    folder = workplace / "audits" / "good"
    result = json.loads((folder / "audit.json").read_text())
    assert not (workplace / "runs" / "good").exists(), "training would refuse the name"
    assert set(result["attacks"]) == {attack.name for attack in ALL_ATTACKS}
    assert result["images"] == 8
    assert result["no_certainty"] == ""
    shares = result["attacks"]["attribute swapped"]["wins"]["sum"]
    assert shares["value"] + shares["tied"] + shares["wrong"]["value"] == pytest.approx(1)
    assert shares["value"] > result["attacks"]["attribute swapped"]["text_only"]["sum"]["value"]
    assert result["attacks"]["repeated caption"]["length_only"]["wrong"]["value"] == 1.0
    assert result["attacks"]["attribute swapped"]["length_only"]["tied"] == 1.0
    assert result["attacks"]["attribute swapped"]["judges"]["certainty"]["value"] > 0.8
    rows = result["together"]
    assert list(rows) == [
        *("one of two", "one of two, text only", "one of two, length only"),
        *("one of four", "one of four, text only", "one of four, length only"),
    ]
    assert all(row in printed for row in rows)
    assert rows["one of two"]["sum"]["value"] > rows["one of four"]["sum"]["value"]
    assert rows["one of two"]["sum"]["value"] > rows["one of two, text only"]["sum"]["value"] + 0.1
    assert result["controls"]["other"]["sum"]["value"] > 0.8
    assert result["order"]["heldout"]["sum"]["value"] > 0.2
    assert result["truth"]["within"]["sum"]["value"] > 0.2
    assert result["headroom"]["best_of"]["8"]["value"] > result["headroom"]["best_of"]["1"]["value"]
    doubtful = result["headroom"]["doubtful"]  # the recipe is a dial
    change = doubtful["greedy"]["value"] - doubtful["picked"]["value"]
    assert doubtful["gain"]["value"] == pytest.approx(change)
    assert 0 < doubtful["words"] < 2
    assert "Doubtful words, of which the dial asks for fewer: now" in printed
    shown = Page((folder / "audit.html").read_text())
    assert len(shown.images) == len(result["worst"])
    assert all(image.startswith("data:image/webp;base64,") for image in shown.images)
    assert not shown.others


def test_an_image_goes_through_the_tower_once_for_all_its_captions(audit, monkeypatch):
    encoded, encode = [], vision_cache.encode_images

    def spy(model, images):
        encoded.extend(x["pixel_values"].numpy().tobytes() for x in images)
        return encode(model, images)

    monkeypatch.setattr(vision_cache, "encode_images", spy)
    monkeypatch.setattr(captioner, "_generate", None)  # with pixels, past the cache
    assert audit(*FEW, *ONLY, "name=once") == 0
    assert len(set(encoded)) >= 8
    # one for its captions to be sampled, and one for all of them to be judged by the policy
    assert max(Counter(encoded).values()) <= 2


def test_a_random_reward_fails_and_strict_says_so(audit, capsys):
    words = [*FEW, *ONLY, "rewards.clip_similarity=null", "rewards.random.weight=1", "name=dice"]
    assert audit(*words, "--strict") == 1
    assert "does not look at the image" in " ".join(capsys.readouterr().out.split())
    assert audit(*words) == 0


def test_an_existing_run_gets_its_audit(audit, workplace):
    folder = workplace / "runs" / "there"
    folder.mkdir(parents=True)
    assert audit(*FEW, *ONLY, "name=there") == 0
    assert (folder / "audit.html").exists()


def test_the_verdict_is_the_same_without_the_truth(audit, workplace):
    words = [*FEW, *ONLY, "name=audited-truth"]
    result = workplace / "audits" / "audited-truth" / "audit.json"
    audit(*words)
    with_truth = json.loads(result.read_text())
    truth = draw.truth_of(workplace / "data/scenes/train/images")
    kept = truth.rename(truth.with_suffix(".kept"))
    audit(*words)
    kept.rename(truth)
    without = json.loads(result.read_text())
    assert without["truth"] is None
    assert with_truth["truth"] is not None
    assert with_truth["verdict"] == without["verdict"]


@pytest.mark.slow
def test_training_is_the_same_with_the_short_audit_and_without(command, capsys):
    result = {}
    for name in ("true", "false"):
        directory = command("smolvlm", f"audit-{name}", f"monitor.audit={name}")
        result[name] = load_file(directory / "checkpoint-2" / "adapter_model.safetensors")
        assert (directory / "audit.json").exists() == (name == "true")
        assert ("audit: " in capsys.readouterr().out) == (name == "true")
    assert all(torch.equal(result["true"][n], result["false"][n]) for n in result["true"])


def test_random_states_are_left_as_they_were():
    def draw_all():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    for seeded in (random.seed, np.random.seed, torch.manual_seed):
        seeded(3)
    wanted = draw_all()
    for seeded in (random.seed, np.random.seed, torch.manual_seed):
        seeded(3)
    with audits.isolated_rng(7, torch.device("cpu")):
        draw_all()
    assert draw_all() == wanted


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["audt", FILE], "nearest: audit"),
        (["audit", "nowhere.yaml"], "not found"),
        (["audit", FILE, "profile=scenes", "rewards.clip_similarty.weight=1"], "clip_similarity"),
        (["audit", FILE, "profile=scenes", "polcy.model=x"], "nearest: policy"),
        (["audit", FILE, "--strct"], "unrecognized arguments: --strct"),
    ],
)
def test_mistakes_are_told_in_a_sentence(words, says, workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    try:
        code = cli.main(words)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert says in capsys.readouterr().err


def test_views_of_an_image():
    image = draw.render(draw.sample(3))
    one, two = augmented(1)(image), augmented(2)(image)
    assert one.size == image.size
    assert one.tobytes() != two.tobytes() != image.tobytes()
    assert one.tobytes() == augmented(1)(image).tobytes()


def test_captions_cannot_break_the_page():
    numbers = {
        "run": "<b>",
        "images": 1,
        "captions_per_image": 8,
        "temperature": 1.0,
        "attacked": 0,
        "verdict": {
            "overall": "fail",
            "lines": [{"level": "fail", "about": "x", "says": "a < b & </li>", "do": "<i>"}],
        },
        "headroom": {
            "greedy": None,
            "best_of": {"1": None},
            "gain_over_greedy": None,
            "ceiling": None,
        },
    }
    shown = page(numbers, lambda image_id: None)
    Page(shown)
    assert "a &lt; b &amp; &lt;/li&gt;" in shown


def test_the_other_image_is_never_the_same():
    assert all(a != b for a, b in enumerate(shuffle_apart(8, 5)))
