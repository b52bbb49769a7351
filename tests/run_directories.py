"""Run directories made by hand, with everything that the report shows."""

import json

import numpy as np
from PIL import Image

from vizer_rl.evaluation.statistics import estimate

COLOURS = ("red", "blue", "green", "orange", "purple", "black")
LOOKS = range(10, 61, 10)


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def captions(count, rng, gain):
    """Rows of captions.jsonl; every third loses by the held-out scorer, some are doubtful."""
    rows = []
    for k in range(count):
        colour = COLOURS[k % len(COLOURS)]
        base, trained = f"a {colour} circle.", f"a large {colour} circle above a small square."
        score = float(rng.uniform(0.2, 0.5))
        rows.append(
            {
                "image_id": f"{k:04}.png",
                "base": base,
                "trained": base if k % 7 == 6 else trained,
                "base_score": score,
                "trained_score": score + (-0.05 if k % 3 == 0 else gain),
                "base_rewards": {"sum": 0.1, "self_retrieval": -2.0, "gone": None},
                "trained_rewards": {"sum": 0.1 + k % 2 * k, "self_retrieval": -1.0, "gone": None},
                "base_doubtful": [],
                "trained_doubtful": [{"start": 2, "end": 7, "word": "large", "instead": "small"}]
                if k % 4 == 0 and k % 7 != 6
                else [],
                "truth": f"a large {colour} circle above a small star",
                "controls": {"best_of_8": {"caption": f"one {colour} disc", "score": 0.3}},
            }
        )
    return rows


def evaluation(rows, controls=True):
    """The content of eval.json for these captions."""

    def estimates(side):
        score = np.array([row[f"{side}_score"] for row in rows])
        words = np.array([len(row[side].split()) for row in rows], float)
        wrong = np.array([k % 5 == 0 for k in range(len(rows))], float)
        return {"heldout_score": score, "hallucination_rate": wrong, "mean_length": words}

    base, trained = estimates("base"), estimates("trained")
    change = {name: trained[name] - base[name] for name in base}
    result = {"version": 2, "n_images": len(rows)}
    for side, columns in (("base", base), ("trained", trained), ("change", change)):
        result[side] = {name: estimate(values) for name, values in columns.items()}
    result["a_metric_to_come"] = {"value": 1.0}
    for side in ("base", "trained", "change"):
        result[side]["metric_to_come"] = {"value": 0.25, "low": 0.2, "high": 0.3}
    if controls:
        difference = {"value": 0.04, "low": -0.01, "high": 0.09}
        test = {"metric": "heldout_score", "control": "best_of_8", "difference": difference}
        result["controls"] = {"best_of_8": result["trained"]}
        result["how"] = {"best_of_8": "Of 8 samples the one that the rewards rank first."}
        result["verdict"] = {
            "better": False,
            "sentences": ["Not better throughout than the best control, best of 8."],
            "tests": [{**test, "p": 0.03, "p_holm": 0.06, "better": False}],
        }
    return result


def metrics(rng, steps=60):
    """Lines of metrics.jsonl of a run whose held-out score falls after step 40."""
    for step in range(1, steps + 1):
        row = {"step": step, "loss": 0.01, "epoch": step / steps, "entropy": 0.6 - step / 200}
        row |= {"reward": step / 20 + rng.normal() / 5, "reward/self_retrieval": step / 30}
        row |= {"reward/self_retrieval/std": 1.0, "kl": step / 300, "num_tokens": 100.0 * step}
        row |= {"completions/mean_length": 6 + step / 10, "time/step": 1.0, "time/sample": 0.5}
        row |= {"time/rewards": 0.3, "time/reward/self_retrieval": 0.1, "value_loss": None}
        if step == 1 or step in LOOKS:
            row["heldout/score"] = 0.5 + min(step, 80 - step) / 200
        yield row


def make_run(directory, images, count=30, gain=0.1, seed=0):
    """A run with all files that the report reads; its pictures lie in `images`."""
    rng = np.random.default_rng(seed)
    (directory / "adapter").mkdir(parents=True)
    images.mkdir(exist_ok=True)
    rows = captions(count, rng, gain)
    for k, row in enumerate(rows):
        if not (images / row["image_id"]).exists():
            colour = COLOURS[k % len(COLOURS)]
            Image.new("RGB", (64, 48), colour).save(images / row["image_id"])
    alarm = "reward rose 1.2 sd while the held-out scorer fell 0.4 sd since step 40"
    audit_lines = [{"level": "warn", "about": "attacks", "says": "These may win.", "do": None}]
    rate = {"value": 0.9, "low": 0.8, "high": 1.0}
    content = {
        "environment.json": {"command": "vizer-rl train x.yaml", "device": "cpu"},
        "heldout.json": {
            "source": str(images),
            "ids": [r["image_id"] for r in rows],
            "drawn": True,
        },
        "adapter/heldout.json": {"score": 0.7},
        "eval.json": evaluation(rows),
        "audit.json": {
            "images": 16,
            "rewards": {"self_retrieval": 1.0},
            "verdict": {"overall": "warn", "lines": audit_lines},
            "attacks": {"shuffled words": {"about": "", "wins": {"sum": rate | {"tied": 0.07}}}},
        },
        "wandb.json": {"mode": "offline", "url": None, "dir": "runs/x/wandb/y", "id": "y"},
    }
    for name, value in content.items():
        (directory / name).write_text(json.dumps(value))
    (directory / "config.yaml").write_text("family: smolvlm\nalgorithm: grpo\nseed: 0\n")
    jsonl(directory / "captions.jsonl", rows)
    jsonl(directory / "metrics.jsonl", metrics(rng))
    common = {"value": -2.1, "threshold": -2.0, "action": "warn"}
    jsonl(directory / "alarms.jsonl", [{"step": 60, "name": "drop", "sentence": alarm, **common}])
    jsonl(directory / "skipped.jsonl", [{"path": "a.png", "reason": "no image"}])
    return directory


def make_images_folder(directory, images, count=5):
    """What `evaluate --images` leaves in a run's directory."""
    folder = directory / f"images-{images.name}"
    folder.mkdir()
    rows = captions(count, np.random.default_rng(1), 0.1)
    for row in rows:
        row.pop("truth")
    ids = [row["image_id"] for row in rows]
    about = {"source": str(images), "ids": ids, "drawn": False}
    (folder / "heldout.json").write_text(json.dumps(about))
    (folder / "eval.json").write_text(json.dumps(evaluation(rows, controls=False)))
    jsonl(folder / "captions.jsonl", rows)
    return folder
