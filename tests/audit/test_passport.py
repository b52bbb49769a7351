"""The passport of a scorer: its attacks by hand, its shares, what it prints, what it refuses."""

import json
import random

import numpy as np
import pytest
import torch

from rewards.lib.lexicon import Lexicon
from vizer_rl import cli
from vizer_rl.audit import passport as passports
from vizer_rl.audit.attacks import Subject
from vizer_rl.audit.compositions import ALL_ATTACKS, COMPOSITIONS, OF_FIVE
from vizer_rl.audit.passport import Captioned, passport
from vizer_rl.audit.report_console import passport_sentences
from vizer_rl.data.lazy import LazyImages
from vizer_rl.training import scorer_passport as passport_runs

from ..conftest import REPO, TINY

CAPTIONS = [
    "a small red circle above an orange square",
    "a large blue circle inside a small green star",
    "a red square and a small blue star",
    "a large red square",
    "a large orange circle",
    "an orange star",
    "a green heart",
    "a green heart",
]
LEXICON = Lexicon.learn(CAPTIONS)
FILE = str(REPO / "experiments" / "smolvlm.yaml")


def attacked(name, caption=CAPTIONS[0]):
    attack = next(a for a in COMPOSITIONS if a.name == name)
    subject = Subject(caption, (caption,), None, "a green heart", 12)
    return [worse for _, worse in attack.make(subject, LEXICON, random.Random(0))]


@pytest.mark.parametrize(
    ("name", "caption", "expected"),
    [
        ("relation replaced", CAPTIONS[0], ["a small red circle below an orange square"]),
        ("relation replaced", "a cat left of a dog", ["a cat right of a dog"]),
        ("relation replaced", "a cat and a dog", []),
        ("objects exchanged", CAPTIONS[0], ["an orange square above a small red circle"]),
        ("objects exchanged", "A man riding a horse.", ["A horse riding a man."]),
        ("objects exchanged", CAPTIONS[2], []),  # "and" is symmetric
        ("attributes exchanged", CAPTIONS[0], ["a small orange circle above a red square"]),
        ("attributes exchanged", "a red circle and a red square", []),
        ("negated", CAPTIONS[0], ["no small red circle above an orange square"]),
        ("negated", "untitled", []),
    ],
)
def test_what_benchmarks_of_composition_do_to_a_caption(name, caption, expected):
    assert attacked(name, caption) == expected


def test_what_is_added_is_in_no_caption_of_the_image():
    (worse,) = attacked("object added")
    assert worse.startswith(CAPTIONS[0] + " and a ")
    assert worse.split()[-1] in ("star", "heart")
    (worse,) = attacked("attribute added", "a red circle")
    assert worse in ("a small red circle", "a large red circle")


def test_order_of_five_has_four_orders_of_the_same_words_or_none():
    orders = attacked(OF_FIVE)
    assert len({CAPTIONS[0], *orders}) == 5
    assert all(sorted(order.split()) == sorted(CAPTIONS[0].split()) for order in orders)
    assert attacked(OF_FIVE, "a star") == []


def test_a_tie_is_neither_right_nor_wrong_and_blind_judges_draw_lots():
    margins = {"scorer": np.array([0.1, 1e-7, -0.1, 0.2]), "words": np.array([0.0, 0, 1, -1])}
    row = passports._row("noun swapped", margins, [0, 0, 1, 1])
    assert (row["right"]["value"], row["tied"], row["words"]) == (0.5, 0.25, 0.5)
    assert (row["pairs"], row["images"], row["text"]) == (4, 2, None)
    assert row["published"]["B/32 OpenAI"] == 0.91
    assert passports._row("empty", margins, [0, 0, 1, 1])["published"]["B/32 OpenAI"] is None


def test_of_five_the_original_must_beat_all_four():
    margins = {"scorer": np.array([0.1, 0.1, 0.1, -0.1, *[0.1] * 4]), "words": np.zeros(8)}
    row = passports._row(OF_FIVE, margins, [0] * 4 + [1] * 4)
    assert (row["right"]["value"], row["words"], row["pairs"]) == (0.5, 0.2, 8)


class Nouns:
    """A scorer that knows which nouns are in a caption, and nothing else of it."""

    name, context_length, words = "nouns", 12, ("circle", "square", "star", "heart")

    def image_features(self, ids, images):
        return self.text_features(ids)

    def text_features(self, captions):
        rows = [[float(w in c.split()) for w in self.words] + [0.01] for c in captions]
        return torch.nn.functional.normalize(torch.tensor(rows), dim=1)


def test_a_bag_of_nouns_is_found_out_on_given_captions_without_a_policy():
    images = LazyImages(lambda name: None, CAPTIONS)
    captioned = Captioned(CAPTIONS, images, [[c] for c in CAPTIONS], True, "given")
    result = passport(Nouns(), captioned, None)
    rows = result["rows"]
    assert rows["noun swapped"]["right"]["value"] == 1.0
    assert rows["attributes exchanged"]["tied"] == rows["shuffled words"]["tied"] == 1.0
    assert rows["shuffled words"]["right"]["value"] == 0.0
    assert 0 < rows["another image"]["right"]["value"] < 1
    assert all(row["text"] is None for row in rows.values())
    sentences = " ".join(passport_sentences(result))
    assert "Wrong or tied more than one time in ten: shuffled words" in sentences
    assert "without the image: shuffled words" in sentences


@pytest.fixture
def command(workplace, monkeypatch):
    """Runs `vizer-rl scorer` on 10 images, beginning in the workplace; the exit code."""
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(passport_runs, "IMAGES", 10)
    return lambda *words: cli.main(["scorer", *words])


def test_a_passport_on_the_policys_own_captions(command, capsys):
    assert command("embedded:a", FILE, *TINY) == 0
    printed = capsys.readouterr().out
    assert "embedded:a on 10 images, captions of the policy (embedded), chosen by embedded:b" in (
        " ".join(printed.split())
    )
    assert "Quoted, and of other images" in printed
    assert all(a.name in printed for a in ALL_ATTACKS)
    assert max(map(len, printed.splitlines())) <= 100


def test_a_passport_on_given_captions_needs_no_run_file(command, workplace, tmp_path, capsys):
    truth = json.loads((workplace / "data/scenes/train/truth/scenes.json").read_text())
    rows = [{"image_id": i, "caption": truth[i]["caption"]} for i in list(truth)[:10]]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    images = str(workplace / "data/scenes/train/images")
    words = ["embedded:b", "--images", images, "--captions", str(tmp_path / "captions.jsonl")]
    assert command(*words) == 0
    printed = capsys.readouterr().out
    assert "embedded:b on 10 images, captions of " in printed
    assert "policy prefers" not in printed
    assert command(*words[:3]) == 2
    assert "whose captions? Give a run file" in capsys.readouterr().err
    (tmp_path / "captions.jsonl").write_text(json.dumps(rows[0]))
    assert command(*words) == 2
    assert "1 images have a caption that can be attacked; needed are 8" in capsys.readouterr().err


def test_scorers_that_cannot_be_judged(command, capsys):
    assert command("embedded:aa") == 2
    assert "nearest: embedded:a" in capsys.readouterr().err
    assert command("embedded:a", FILE, *TINY, "scorer.heldout=embedded:a") == 2
    assert "are both embedded:a" in capsys.readouterr().err
