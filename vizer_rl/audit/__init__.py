"""The audit: what a run's rewards would teach its policy, told before training, without a label.

The frozen policy captions some of the run's own images; the captions are attacked, and every reward
must rank the original higher (`attacks`, `measure`); `verdict` says in words what will go wrong and
what to add; `table` and `page` show it. The truth of drawn scenes is reported, never used.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from ..data.scenes import truth_of
from ..scoring.contract import RewardError
from .attack_scores import AttackScores, scored_sample
from .controls import against_truth, headroom, image_control, noise, order, policy_sight, with_sum
from .judges import Judges, RunParts
from .pictures import aside
from .report_console import show, show_short
from .report_html import page
from .sample import GROUP, sample
from .verdict import verdict

__all__ = ["IMAGES", "IMAGES_SHORT", "Parts", "audit", "look_ahead", "save", "show"]

IMAGES, IMAGES_SHORT = 64, 16
WORST = 12


def audit(parts: RunParts, *, thorough: bool = True) -> dict[str, Any]:
    """Audit a run; the content of audit.json (its keys: docs/audit.md).

    thorough: IMAGES images, all controls, and on drawn scenes the truth; else the short audit at
    the start of training, which never opens the truth. Leaves all random states as they were.
    """
    began = time.monotonic()
    with aside(parts.run.seed, parts.reference.model.device):
        judges = Judges(parts)
        said = sample(judges, IMAGES if thorough else IMAGES_SHORT)
        scores = scored_sample(judges, said)
        columns = with_sum(judges, scores)
        result: dict[str, Any] = {
            "run": parts.run.name,
            "images": len(said.ids),
            "captions_per_image": GROUP,
            "attacked": len(said.attacked),
            "temperature": float(parts.args.temperature),
            "rewards": dict(zip(judges.names, judges.weights, strict=True)),
            "content": [r.name for r in parts.scoring.rewards if r.content],
            "scorers": parts.run.scorer.model_dump(),
            "milliseconds": judges.milliseconds,
        }
        if said.attacked:
            attacked = AttackScores(judges, said, scores)
            result["attacks"] = attacked.numbers()
            result["trust"] = attacked.trust()
            result["worst"] = attacked.worst(WORST)
            result["controls"] = image_control(judges, said, scores, thorough)
            result["controls"]["policy"] = policy_sight(judges, said)
        result["order"] = order(judges, said, columns)
        result["headroom"] = headroom(said, columns["sum"])
        if thorough:
            result["noise"] = noise(judges, said, columns)
            truth = _truth(parts)
            result["truth"] = against_truth(said, columns, truth) if truth else None
        for reward in parts.scoring.rewards:
            if hasattr(reward.score, "notes"):
                reward.score.notes()  # what it noted here is not the first step's
    result["seconds"] = round(time.monotonic() - began, 1)
    result["verdict"] = verdict(result)
    return result


def save(numbers: dict[str, Any], parts: RunParts) -> Path:
    """Write audit.json and audit.html, for a run that is there into its directory, else audits/."""
    directory = parts.run.directory
    if not directory.is_dir():
        directory = Path("audits") / parts.run.name
        directory.mkdir(parents=True, exist_ok=True)
    (directory / "audit.json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    html = page(numbers, parts.images.load)
    (directory / "audit.html").write_text(html, encoding="utf-8")
    return directory / "audit.html"


def short_audit(parts: RunParts, console: Console) -> None:
    """The short audit at the start of training: says what it finds and stops nothing."""
    try:
        numbers = audit(parts, thorough=False)
    except RewardError as error:
        console.print(f"audit: cannot be done: {error}", markup=False)
        return
    show_short(console, numbers)
    save(numbers, parts)


def _truth(parts: RunParts) -> dict[str, Any] | None:
    """The truth of drawn scenes, by image id; None for anything else."""
    path = truth_of(Path(parts.images.root))
    if parts.run.data.images is not None or not path.is_file():
        return None
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return known
