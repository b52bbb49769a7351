"""The table of the audit's validity: its judgement, its cells, one tiny set-up for real."""

import json

import pytest
import torch

from experiments import audit_validity, runner
from rewards import Bank, CaptionBatch, make
from vizer_rl import cli

from ..audit.test_audit import FEW


def result(f1, hallucination):
    change = {
        "fact_f1": {"value": f1, "low": f1 - 0.03, "high": f1 + 0.03},
        "hallucination_rate": {
            "value": hallucination,
            "low": hallucination - 0.03,
            "high": hallucination + 0.03,
        },
    }
    sides = {side: {"fact_f1": {"value": v}} for side, v in (("base", 0.5), ("trained", 0.5 + f1))}
    return {"change": change, **sides}


@pytest.mark.parametrize(
    ("f1", "hallucination", "outcome"),
    [(0.4, -0.15, "good"), (0.4, 0.01, "mixed"), (0.01, -0.1, "bad"), (-0.3, 0.5, "bad")],
)
def test_what_training_did_is_judged_by_the_truth(f1, hallucination, outcome):
    assert audit_validity.outcome(result(f1, hallucination)) == outcome


LINES = [{"level": "warn", "about": "scorer", "says": "", "do": ""}]
WARNED = {"verdict": {"overall": "warn", "lines": LINES}}
PASSED = {"verdict": {"overall": "pass", "lines": []}}
WEAK = [
    "warn scorer / pass",
    "+0.300 [+0.170, +0.430]",
    "-0.045 [-0.130, +0.040]",
    "0.500 → 0.800",
    "mixed / good",
    "yes",
]


def test_a_line_of_the_table_says_whether_the_audit_was_right():
    assert audit_validity.row("weak scorer", [(WARNED, result(0.4, 0.01))]) == [
        "weak scorer",
        "warn scorer",
        "+0.400 [+0.370, +0.430]",
        "+0.010 [-0.020, +0.040]",
        "0.500 → 0.900",
        "mixed",
        "yes",
    ]
    missed = audit_validity.row("x", [(PASSED, result(-0.3, 0.5))])
    assert missed[-2:] == ["bad", "no: missed"]
    both = [(WARNED, result(0.4, 0.01)), (PASSED, result(0.2, -0.1))]
    assert audit_validity.row("x", both) == ["x", *WEAK]
    assert {outcome for _, outcome in audit_validity.AGREED} == {"good", "mixed", "bad"}


def test_the_table_has_the_set_ups_that_are_done_with_all_seeds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trials = [audit_validity.Trial(seed=seed) for seed in (0, 1)]
    seeds = [(WARNED, result(0.4, 0.01)), (PASSED, result(0.2, -0.1))]
    for name, number in (("weak", 2), ("clip", 1)):
        for trial, files in zip(trials[:number], seeds, strict=False):
            folder = trial.directory(name)
            folder.mkdir(parents=True)
            for file, content in zip(("audit.json", "eval.json"), files, strict=True):
                (folder / file).write_text(json.dumps(content))
    assert (tmp_path / "runs/foretell-smolvlm-weak-1").exists(), "runs of before are still found"
    assert audit_validity.table(trials).splitlines() == [
        "| set-up | audit | change of F1 | change of hallucinated | F1 | RL was | agreed |",
        "|---|---|---|---|---|---|---|",
        f"| default, under-trained scorer | {' | '.join(WEAK)} |",
    ]


def test_at_least_ten_set_ups_and_each_leaves_a_reward():
    assert len(audit_validity.SETUPS) >= 10
    overrides = audit_validity.only("clip_similarity")
    assert "rewards.self_retrieval=null" in overrides
    assert "recipe=null" in overrides
    assert "rewards.clip_similarity=null" not in overrides
    assert "rewards.random.weight=1" in audit_validity.only("random")


def test_the_biased_scorer_likes_its_words_by_the_spread_of_the_base():
    reward = make(audit_validity.BIASED, {})

    class Encoder:
        def image_features(self, ids, images):
            return torch.ones(len(ids), 1)

        def text_features(self, captions):
            return torch.tensor([[0.2 + 0.1 * ("blue" in caption)] for caption in captions])

        def too_long(self, captions):
            return [False] * len(captions)

    def batch(captions):
        ids, groups = [str(k) for k in range(len(captions))], [range(len(captions))]
        return CaptionBatch(ids, [], captions, groups, [], lambda name: Encoder(), None)

    reward.prepare(Bank([], [], batch(["a star", "a blue star"]), None))
    # the cosines .2 and .3 spread by .05: a word is worth .1
    assert reward(batch(["a dog", "a blue Star.", "a red star, a star"])) == pytest.approx(
        [0.2, 0.4, 0.4]
    )


def test_the_set_ups_have_what_an_audit_must_find():
    assert {"biased", "bites", "sated", "blind"} <= set(audit_validity.SETUPS)
    steps = [word for word in audit_validity.SETUPS["bites"].overrides if "steps" in word]
    assert steps == ["train.max_steps=300"]


@pytest.mark.slow
def test_one_set_up_runs_once_and_is_in_the_table(workplace, monkeypatch):
    from vizer_rl.audit import audit

    commands = []

    def command(*words):
        commands.append(words[0])
        cli.main(list(words))

    monkeypatch.chdir(workplace)
    monkeypatch.setattr(runner, "command", command)
    monkeypatch.setattr(audit, "IMAGES", 8)
    trial = audit_validity.Trial(steps=2, overrides=tuple(FEW))
    for _ in range(2):
        directory = trial.run("constant")
    assert commands == ["train", "audit"], "what is done is not done again"
    verdict = json.loads((directory / "audit.json").read_text())["verdict"]
    assert verdict["overall"] == "fail"
    assert verdict["lines"][0]["about"] == "ties"
    head, _, line = audit_validity.table([trial]).splitlines()
    assert line.startswith("| constant reward | fail ties |")
    assert head.count("|") == line.count("|")
