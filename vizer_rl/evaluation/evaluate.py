"""Evaluation of a run: images captioned with and without the adapter, and judged without labels.

Reads the run directory (settings, adapter, held-out list), the images and, of drawn scenes, their
truth; loads the policy and the held-out scorer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from rich.console import Console

from rewards import ReferencePolicy
from rewards.lib.chunks import caption_cosines
from rewards.lib.images import Picked
from rewards.lib.lexicon import Lexicon
from rewards.lib.word_classes import WordClasses

from ..config.schema import Run
from ..config.validate_files import scorer_problems
from ..data.sources import ImageFolder
from ..errors import UserError, user_message
from ..files import write_jsonl, write_text
from ..policy import load
from ..scoring import clip
from ..scoring.reward import run_opening
from . import caption_metrics
from .against_controls import CaptionRewards, Controls, against_controls
from .before_after import Columns, before_after, columns_of
from .label_free import LabelFree, diversity, judge, visual_dependence
from .report.report import write_report
from .run_policy import RunPolicy, decoded, trained_run
from .subject import Subject, find_subject
from .tables import PlainConsole, print_controls, print_evaluation

VERSION = 2  # of eval.json
# Both take the images and their captions by row: "base" and "trained".
MakeControls = Callable[[Run, ImageFolder, dict[str, list[str]]], Controls]
MakeRewards = Callable[[RunPolicy, ImageFolder, dict[str, list[str]]], CaptionRewards]


@dataclass(frozen=True)
class Row:
    """Captions of N images, their held-out cosines and what each owes to the image, in nats."""

    captions: list[str] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)
    dependence: list[float] = field(default_factory=list)


def evaluate(
    run_directory: Path,
    source: str | None = None,
    references: Sequence[Path] = (),
    metrics: Sequence[str] = (),
    clip_model: str | None = None,
    *,
    rewards: MakeRewards | None = None,
    controls: MakeControls | None = None,
) -> None:
    """Caption and judge a run's held-out images, or those of a source; write files and page, print.

    references, metrics: as `caption_metrics.plan` takes them; clip_model: for CLIPScore and R@k in
    place of the held-out scorer; rewards: judges the captions by the run's rewards; controls: makes
    the rows that training has to beat, and does so too. UserError where the run has no adapter, no
    image can be used or truth is missing.
    """
    console = PlainConsole()
    run = trained_run(run_directory)
    for problem in scorer_problems(run.scorer.heldout):
        raise UserError(f"held-out scorer of run '{run_directory}': {problem}")
    for problem in scorer_problems(clip_model) if clip_model else ():
        raise UserError(f"--clip {problem}")
    subject = find_subject(run_directory, source, console)
    plan = caption_metrics.plan(references, metrics, subject.images)
    # float32 on every device: the changes that matter are as small as half precision's rounding
    encoder = partial(clip.OpenClip, opening=run_opening(run))
    scorer = encoder(run.scorer.heldout, load.device())
    policy = RunPolicy(run, run_directory)
    ids, features, rows = _captioned(policy, subject, scorer, console)
    images = replace(subject.images, ids=ids, skipped={})
    captions = {name: row.captions for name, row in rows.items()}
    if controls:
        beside = controls(run, images, captions)
    else:
        beside = Controls({}, _rewards(rewards, policy, images, captions, subject.left_out))
    for name, control in beside.rows.items():
        rows[name], texts = Row(), dict(zip(ids, control.captions, strict=True))
        for batch_ids, pictures in decoded(images, f"judging {name}", console):
            captions = {name: [texts[i] for i in batch_ids]}
            _extend(rows, captions, batch_ids, pictures, scorer, policy.reference)
    by_reference = None
    if plan:
        other = encoder(clip_model, load.device()) if clip_model else scorer
        by_reference = caption_metrics.CaptionMetrics(plan, images, ids, other)
    result, lines = _judged(ids, rows, features, subject, scorer, by_reference, beside)
    if plan:
        result["references"] = plan.record(clip_model or run.scorer.heldout)
        result["left_out"] += plan.left_out
        for line in lines if plan.references.captions else ():
            line["references"] = plan.references.captions.get(line["image_id"], [])
    write_text(subject.target / "eval.json", json.dumps(result, indent=1))
    write_jsonl(subject.target / "captions.jsonl", lines)
    subject.write(ids)
    print_evaluation(console, result, lines, "images" if subject.other else "held-out images")
    if controls:
        print_controls(console, result)
    console.print(f"\nRun directory: {subject.target}", soft_wrap=True)
    write_report([subject.target], console)


def _captioned(
    policy: RunPolicy, subject: Subject, scorer: clip.OpenClip, console: Console
) -> tuple[list[str], list[torch.Tensor], dict[str, Row]]:
    """Ids of the images that can be used, their features by batch, both rows of captions scored."""
    ids, features, rows = list[str](), list[torch.Tensor](), {"base": Row(), "trained": Row()}
    for batch in policy.batches(subject.images, console):
        ids += batch.ids
        features.append(scorer.image_features(batch.ids, batch.pictures))
        captions = {"base": batch.base, "trained": batch.trained}
        _extend(rows, captions, batch.ids, batch.pictures, scorer, policy.reference)
    if missing := len(subject.images.ids) - len(ids):
        subject.left_out.append(f"{missing} of {len(subject.images.ids)} images cannot be used.")
    if len(ids) == 1:
        subject.left_out.append("Retrieval: a single image has no look-alike.")
    return ids, features, rows


def _rewards(
    make: MakeRewards | None,
    policy: RunPolicy,
    images: ImageFolder,
    captions: dict[str, list[str]],
    left_out: list[str],
) -> CaptionRewards:
    """The rewards of the captions; none where a reward cannot judge here: `left_out` says why."""
    if make is None:
        return {}
    try:
        return make(policy, images, captions)
    except Exception as error:
        if (message := user_message(error)) is None:
            raise
        left_out.append(f"Rewards of the captions: {message.rstrip('.')}.")
        return {}


def _extend(
    rows: Mapping[str, Row],
    captions: Mapping[str, list[str]],
    ids: list[str],
    pictures: list[Image],
    scorer: clip.OpenClip,
    reference: ReferencePolicy,
) -> None:
    """Add captions of these images to their rows, scored."""
    for name, texts in captions.items():
        rows[name].captions.extend(texts)
        rows[name].cosines.extend(caption_cosines(scorer, ids, pictures, texts).tolist())
    # captions of an image one behind the other: the policy sees it once for all of them
    flat = [text for texts in zip(*captions.values(), strict=True) for text in texts]
    repeated = Picked(pictures, [k for k in range(len(ids)) for _ in captions])
    nats = visual_dependence(reference, flat, repeated)
    for k, name in enumerate(captions):
        rows[name].dependence.extend(nats[k :: len(captions)])


def _judged(
    ids: Sequence[str],
    rows: Mapping[str, Row],
    features: Sequence[torch.Tensor],
    subject: Subject,
    scorer: clip.OpenClip,
    by_reference: Callable[[Sequence[str]], Columns] | None,
    beside: Controls,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The content of eval.json, but for its references, and the lines of captions.jsonl."""
    features_ND = torch.cat(list(features))
    truths = [subject.truth[image_id] for image_id in ids] if subject.truth else None
    # controls teach no classes: what is doubtful in the others is so with them and without
    classes = WordClasses(Lexicon.learn(rows["base"].captions + rows["trained"].captions))
    judged = {
        name: judge(scorer, features_ND, row.captions, row.dependence, classes)
        for name, row in rows.items()
    }
    columns = {
        name: columns_of(row.captions, row.cosines, truths)
        | judged[name].columns
        | (by_reference(row.captions) if by_reference else {})
        for name, row in rows.items()
    }
    captions = {name: row.captions for name, row in rows.items()}
    result = {"version": VERSION} | before_after(columns, captions, truths)
    result["diversity"] = {name: diversity(texts) for name, texts in captions.items()}
    if beside.rows:
        how = {name: control.how for name, control in beside.rows.items()}
        result |= against_controls(columns) | {"how": how}
    result["left_out"] = subject.left_out
    lines = _lines(ids, rows, judged, truths)
    for name, scores in beside.rewards.items():
        for line, score in zip(lines, scores, strict=True):
            line[f"{name}_rewards"] = score
    return result, lines


def _lines(
    ids: Sequence[str],
    rows: Mapping[str, Row],
    judged: Mapping[str, LabelFree],
    truths: list[Mapping[str, Any]] | None,
) -> list[dict[str, Any]]:
    """The lines of captions.jsonl."""
    base, trained = rows["base"], rows["trained"]
    controls = [name for name in rows if name not in ("base", "trained")]
    lines: list[dict[str, Any]] = []
    for k, image_id in enumerate(ids):
        line: dict[str, Any] = {
            "image_id": image_id,
            "base": base.captions[k],
            "trained": trained.captions[k],
            "base_score": base.cosines[k],
            "trained_score": trained.cosines[k],
        }
        if truths:
            line["truth"] = truths[k]["caption"]
        line |= {f"{name}_doubtful": judged[name].doubtful[k] for name in ("base", "trained")}
        if controls:
            line["controls"] = {
                name: {
                    "caption": rows[name].captions[k],
                    "score": rows[name].cosines[k],
                    "doubtful": judged[name].doubtful[k],
                }
                for name in controls
            }
        lines.append(line)
    return lines
