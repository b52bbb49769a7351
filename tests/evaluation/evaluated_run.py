"""A run to evaluate: stand-ins for policy and scorer on eight drawn scenes."""

import json
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from vizer_rl.config.schema import Engine, Policy, Run, Scorer
from vizer_rl.data import scenes as draw
from vizer_rl.evaluation import evaluate, run_policy
from vizer_rl.evaluation.captioning import batches
from vizer_rl.policy import captioner, load
from vizer_rl.scoring import clip

FACTS = ["fact_f1", "fact_precision", "fact_recall", "hallucination_rate"]
ALWAYS = ["mean_length", "heldout_score", "retrieval_1", "retrieval_5"]
ALWAYS += ["repetition", "visual_dependence", "doubtful_rate", "doubtful_words"]
VAGUE = "a red circle"


def circle(**other):
    stored = {"shape": "circle", "colour": "red", "size": "large", "fill": "solid"}
    return {"objects": [{**stored, "x": 48, "y": 48, "r": 19, **other}], "relation": None}


class Toy(torch.nn.Module):
    """Stands for the policy: its output tells whether the adapter is on."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2, bias=False)
        torch.nn.init.zeros_(self.layer.weight)

    def forward(self, x):
        return self.layer(x)


class Reads:
    """Stands for the policy before training: an image makes each token .5 nats likelier."""

    def __init__(self, model, processor, source, **settings):
        assert (processor, source) == ("processor", "embedded")

    def log_probs(self, captions, images, view):
        assert len(captions) == len(images)
        return [
            torch.full((len(c.split()),), {"image": -1.0, "blank": -1.5}[view]) for c in captions
        ]

    def tokens(self, caption):
        return [f" {word}" for word in caption.split()]

    def word_probs(self, captions, places, images):
        """Sure of each word but "orange", of which it is with .3."""
        return [
            [torch.tensor([0.3 if p.word == "orange" else 0.9, 0.1]) for p in row] for row in places
        ]


class Scores:
    """Stands for the held-out scorer: 1 for captions of more than four words, else .6."""

    def __init__(self, name, device, opening):
        assert (name, opening) == ("embedded:b", "")

    def image_features(self, ids, images):
        assert len(ids) == len(images)
        return torch.tensor([[1.0, 0.0]]).repeat(len(ids), 1)

    def text_features(self, captions):
        return torch.tensor([[1.0, 0.0] if len(c.split()) > 4 else [0.6, 0.8] for c in captions])


class Solid(Scores):
    """A held-out scorer that likes no stripes."""

    def text_features(self, captions):
        return torch.tensor([[0.6, 0.8] if "striped" in c else [1.0, 0.0] for c in captions])


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run on eight drawn scenes; VAGUE turned into the true captions, but for image 0."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    images = draw.write(tmp_path / "held", 1_000_000, 8)
    truth = images.parent / "truth" / "scenes.json"
    ids = sorted(p.name for p in images.iterdir())
    stored = json.loads(truth.read_text())
    says = {evaluate.ImageFolder("", images, [], {}).load(i).tobytes(): stored[i] for i in ids[1:]}

    def say(model, processor, pictures, prompt, *, max_new_tokens, vision_cache):
        assert vision_cache is None
        assert (processor, prompt, max_new_tokens) == ("processor", "Describe the image.", 24)
        adapted = bool(model(torch.ones(1, 2)).any())
        pixels = [picture.tobytes() for picture in pictures]
        output = [says[p]["caption"] if adapted and p in says else VAGUE for p in pixels]
        return [SimpleNamespace(text=text) for text in output]

    monkeypatch.setattr(load, "load_policy", lambda *_, **__: (Toy(), "processor"))
    monkeypatch.setattr(captioner, "caption", say)
    monkeypatch.setattr(clip, "OpenClip", Scores)
    monkeypatch.setattr(run_policy, "ReferencePolicy", Reads)
    monkeypatch.setattr(run_policy, "IMAGE_BATCH", 3)
    monkeypatch.setattr(batches, "CPU_IMAGES", 3)
    directory = tmp_path / "runs" / "mine"
    lora = LoraConfig(target_modules=["layer"], init_lora_weights=False)
    get_peft_model(Toy(), lora).save_pretrained(str(directory / "adapter"))
    settings = Run(
        family="smolvlm",
        profile="scenes",
        name="mine",
        policy=Policy(model="embedded"),
        scorer=Scorer(train="embedded:a", heldout="embedded:b"),
        rewards={},
        train={"max_completion_length": 24},
        engine=Engine(shared_prefix="off"),
    )
    (directory / "config.yaml").write_text(settings.to_yaml())
    held_out(directory, images, ids, truth)
    return SimpleNamespace(directory=directory, images=images, ids=ids, truth=truth, stored=stored)


def held_out(directory, images, ids, truth):
    about = {"source": str(images), "ids": ids, "drawn": bool(truth)}
    (directory / "heldout.json").write_text(json.dumps(about))


def results(directory):
    lines = (directory / "captions.jsonl").read_text().splitlines()
    return json.loads((directory / "eval.json").read_text()), [json.loads(line) for line in lines]


def narrow(message):
    """The lines that hold no path."""
    wide = ("Run directory: ", "Report: ", "Not in the report of ")
    return [line for line in message.splitlines() if not line.startswith(wide)]
