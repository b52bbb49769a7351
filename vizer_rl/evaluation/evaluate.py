"""Evaluation of a run: images captioned with and without the adapter, and judged without labels.

Reads the run directory (settings, adapter, held-out list), the images and, of drawn scenes, their
truth; loads the policy and held-out scorers. What a scorer that is missing would say is left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from rewards.lib.lexicon import Lexicon
from rewards.lib.word_classes import WordClasses

from ..config.recipe import has_dial
from ..config.schema import Run
from ..config.validate_files import scorer_problems
from ..data.sources import ImageFolder
from ..errors import UserError, user_message
from ..files import write_jsonl, write_text
from ..policy import load
from ..scoring import clip
from ..scoring.reward import run_opening
from . import caption_metrics
from .against_controls import NO_VERDICT, CaptionRewards, Controls, against_controls
from .before_after import HELDOUT, Columns, before_after, columns_of, heldout_metric
from .label_free import LabelFree, Row, caption_lines, diversity, extend_rows, judge
from .report.report import write_report
from .run_policy import RunPolicy, decoded, trained_run
from .subject import Subject, find_subject
from .tables import PlainConsole, print_controls, print_evaluation

VERSION = 2  # of eval.json
# Both take the images and their captions by row: "base" and "trained".
MakeControls = Callable[[Run, ImageFolder, dict[str, list[str]]], Controls]
MakeRewards = Callable[[RunPolicy, ImageFolder, dict[str, list[str]]], CaptionRewards]
Scorers = Mapping[str, clip.OpenClip]  # by the metric that is their held-out score


def evaluate(
    run_directory: Path,
    source: str | None = None,
    references: Sequence[Path] = (),
    metrics: Sequence[str] = (),
    clip_model: str | None = None,
    heldout: Sequence[str] = (),
    *,
    rewards: MakeRewards | None = None,
    controls: MakeControls | None = None,
) -> None:
    """Caption and judge a run's held-out images, or those of a source; write files and page, print.

    references, metrics: as `caption_metrics.plan` takes them; clip_model: for CLIPScore and R@k in
    place of the held-out scorer; heldout: further held-out scorers; rewards: judges the captions by
    the run's rewards; controls: makes the rows that training has to beat, and does so too.
    UserError where the run has no adapter, no image can be used or truth is missing.
    """
    console = PlainConsole()
    run = trained_run(run_directory)
    _check_scorers(run, clip_model, heldout)
    subject = find_subject(run_directory, source, console)
    plan = caption_metrics.plan(references, metrics, subject.images)
    scorers = _scorers(run, heldout, subject.left_out)
    if plan and not clip_model and HELDOUT not in scorers:
        plan = plan.without_clip()
    policy = RunPolicy(run, run_directory)
    ids, features, rows = _captioned(policy, subject, scorers, console)
    images = replace(subject.images, ids=ids, skipped={})
    captions = {name: row.captions for name, row in rows.items()}
    beside = _beside(rewards, controls, policy, images, captions, subject.left_out)
    _add_controls(rows, beside, images, scorers, policy, console)
    by_reference = None
    if plan:
        other = _clip(run, clip_model) if clip_model else scorers.get(HELDOUT)
        by_reference = caption_metrics.CaptionMetrics(plan, images, ids, other)
    judged = _judged(rows, features, scorers.get(HELDOUT))
    result = _result(ids, rows, judged, subject, by_reference, beside, has_dial(run.rewards))
    lines = caption_lines(ids, rows, judged, subject.truth)
    for name, scores in beside.rewards.items():
        for line, score in zip(lines, scores, strict=True):
            line[f"{name}_rewards"] = score
    if plan:
        own = run.scorer.heldout if HELDOUT in scorers else None
        result["references"] = plan.record(clip_model or own)
        result["left_out"] += plan.left_out
        for line in lines if plan.references.captions else ():
            line["references"] = plan.references.captions.get(line["image_id"], [])
    write_text(subject.target / "eval.json", json.dumps(result, indent=1))
    write_jsonl(subject.target / "captions.jsonl", lines)
    subject.write(ids)
    print_evaluation(console, result, lines, "images" if subject.other else "held-out images")
    if beside.rows:
        print_controls(console, result)
    console.print(f"\nRun directory: {subject.target}", soft_wrap=True)
    write_report([subject.target], console)


def _check_scorers(run: Run, clip_model: str | None, heldout: Sequence[str]) -> None:
    """UserError where --clip names no model, or a further held-out scorer is one of the rewards."""
    for problem in scorer_problems(clip_model) if clip_model else ():
        raise UserError(f"--clip {problem}")
    for name in heldout:
        if name in run.reward_scorers:
            raise UserError(
                f"--heldout {name}: the rewards of run '{run.name}' use it, so it is not held out; "
                f"what they say of each caption stands in captions.jsonl: name other scorers"
            )


def _scorers(run: Run, names: Sequence[str], left_out: list[str]) -> dict[str, clip.OpenClip]:
    """The held-out scorers, the run's own first; `left_out` says what misses with a missing one.

    In float32 on every device: the changes that matter are as small as half precision's rounding.
    """
    scorers, opening = dict[str, clip.OpenClip](), run_opening(run)
    for name in dict.fromkeys((run.scorer.heldout, *names)):
        own = name == run.scorer.heldout
        scorer, why = clip.load_or_why(name, load.device(), opening)
        if scorer is not None:
            scorers[HELDOUT if own else heldout_metric(name)] = scorer
        elif own:
            left_out.append(
                "Held-out score, retrieval and doubtful words are left out, for the run's held-out "
                f"scorer cannot be loaded: {why}."
            )
        else:
            left_out.append(f"The held-out score by {name} is left out: {why}.")
    return scorers


def _captioned(
    policy: RunPolicy, subject: Subject, scorers: Scorers, console: Console
) -> tuple[list[str], list[torch.Tensor], dict[str, Row]]:
    """Ids of the usable images, both rows of captions scored, the images' features by batch.

    Features are the run's held-out scorer's: none without it.
    """
    ids, features, rows = list[str](), list[torch.Tensor](), {"base": Row(), "trained": Row()}
    for batch in policy.batches(subject.images, console):
        ids += batch.ids
        if HELDOUT in scorers:
            features.append(scorers[HELDOUT].image_features(batch.ids, batch.pictures))
        captions = {"base": batch.base, "trained": batch.trained}
        extend_rows(rows, captions, batch.ids, batch.pictures, scorers, policy.reference)
    if missing := len(subject.images.ids) - len(ids):
        subject.left_out.append(f"{missing} of {len(subject.images.ids)} images cannot be used.")
    if len(ids) == 1 and HELDOUT in scorers:
        subject.left_out.append("Retrieval: a single image has no look-alike.")
    return ids, features, rows


def _clip(run: Run, name: str) -> clip.OpenClip:
    return clip.OpenClip(name, load.device(), opening=run_opening(run))


def _add_controls(
    rows: dict[str, Row],
    beside: Controls,
    images: ImageFolder,
    scorers: Scorers,
    policy: RunPolicy,
    console: Console,
) -> None:
    """Add the controls' captions to the rows, scored."""
    for name, control in beside.rows.items():
        rows[name], texts = Row(), dict(zip(images.ids, control.captions, strict=True))
        for ids, pictures in decoded(images, f"judging {name}", console):
            captions = {name: [texts[i] for i in ids]}
            extend_rows(rows, captions, ids, pictures, scorers, policy.reference)


def _beside(
    rewards: MakeRewards | None,
    controls: MakeControls | None,
    policy: RunPolicy,
    images: ImageFolder,
    captions: dict[str, list[str]],
    left_out: list[str],
) -> Controls:
    """The rewards of the captions, and controls; neither where rewards cannot be prepared here.

    As where their images or the training scorer are not there: `left_out` says why.
    """
    try:
        if controls:
            return controls(policy.run, images, captions)
        return Controls({}, rewards(policy, images, captions) if rewards else {})
    except Exception as error:
        if (message := user_message(error)) is None:
            raise
        both = "Controls and rewards" if controls else "Rewards"
        left_out.append(f"{both} of the captions: {message.rstrip('.')}.")
        return Controls({}, {})


def _judged(
    rows: Mapping[str, Row], features: Sequence[torch.Tensor], scorer: clip.OpenClip | None
) -> dict[str, LabelFree]:
    """What can be said of each row without labels."""
    features_ND = torch.cat(list(features)) if features else torch.zeros(0)
    # controls teach no classes: what is doubtful in the others is so with them and without
    classes = WordClasses(Lexicon.learn(rows["base"].captions + rows["trained"].captions))
    return {name: judge(scorer, features_ND, row, classes) for name, row in rows.items()}


def _result(
    ids: Sequence[str],
    rows: Mapping[str, Row],
    judged: Mapping[str, LabelFree],
    subject: Subject,
    by_reference: Callable[[Sequence[str]], Columns] | None,
    beside: Controls,
    dial: bool,
) -> dict[str, Any]:
    """The content of eval.json, but for its references."""
    truths = [subject.truth[image_id] for image_id in ids] if subject.truth else None
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
        result |= against_controls(columns, dial) | {"how": how}
        if "verdict" not in result:
            subject.left_out.append(NO_VERDICT)
    result["left_out"] = subject.left_out
    return result
