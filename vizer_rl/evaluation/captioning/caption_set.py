"""`vizer-rl caption --out FORM`: captions of an image set into files, resumable at any moment."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ...config.schema import Run
from ...data.open_source import check_source
from ...errors import UserError
from ..run_policy import RunPolicy
from ..tables import PlainConsole
from . import outputs
from .doubtful_list import check_list, write_list
from .models import OFF, captioning_run, captions_key, load_captioner
from .open_set import OpenSet
from .outputs import make_output
from .pictures import find_pictures
from .row_maker import Choose, RowMaker, evaluated_classes
from .unsure_words import dial

SHOWN = 5  # images that are left out whose reason is printed
# (policy, settings whose rewards choose, number of samples, console) -> what chooses
MakeChoose = Callable[[RunPolicy, Run, int, Console], Choose]


@dataclass(frozen=True)
class CaptionJob:
    """What is to be captioned, by what, into which files: the arguments of `vizer-rl caption`.

    run_directory or model: the other is None or ""; to: None for the form's default; rewards: the
    settings whose rewards choose among best_of samples; certainty: unsure words too; doubtful: the
    file of the captions to look at; prompt, max_tokens, scorer: in place of the run's.
    """

    sources: Sequence[str | Path]
    run_directory: Path | None = None
    model: str = ""
    form: str = "jsonl"
    to: Path | None = None
    base: bool = False
    best_of: int = 1
    rewards: Run | None = None
    certainty: bool = False
    doubtful: Path | None = None
    overwrite: bool = False
    prompt: str = ""
    max_tokens: int | None = None
    scorer: str = ""

    def run(self) -> Run:
        """The settings to caption with; UserError where they do not fit together."""
        args = (self.run_directory, self.model, self.prompt, self.max_tokens, self.scorer)
        run = captioning_run(*args)
        if self.base and self.run_directory is None:
            raise UserError("--base: a model without a run has no caption beside its own")
        if self.best_of > 1 and self.rewards is None and self.run_directory is None:
            raise UserError(
                "--best-of without a run needs --rewards RUN.yaml, whose rewards choose"
            )
        if self.best_of > 1:
            _check_images(self.rewards or run)
        if self.doubtful and run.scorer.heldout == OFF:
            raise UserError(
                "--doubtful needs a held-out scorer: --scorer embedded:b, or ARCHITECTURE/TAG"
            )
        return run

    def key(self, run: Run, root: str) -> str:
        """Of the captions of images below this root; jobs with the same give the same captions."""
        chosen_by = (self.rewards or run) if self.best_of > 1 else None
        choice = chosen_by and [chosen_by.rewards, chosen_by.scorer.train, chosen_by.data.images]
        more = (root, self.base, self.best_of, choice, self.certainty, run.seed)
        return captions_key(run, self.run_directory, *more)

    def row_maker(self, run: Run, key: str, make_choose: MakeChoose, console: Console) -> RowMaker:
        """The policy, loaded, and all that scores its captions."""
        policy = load_captioner(run, self.run_directory)
        choose = None
        if self.best_of > 1:
            choose = make_choose(policy, self.rewards or run, self.best_of, console)
        return RowMaker(
            policy,
            key,
            base=self.base,
            best_of=self.best_of,
            choose=choose,
            dial=dial(run, self.run_directory) if self.certainty else None,
        )


def _check_images(run: Run) -> None:
    """UserError where the images are gone that a run's rewards prepare themselves on."""
    source = run.data.images or ()
    each = [source] if isinstance(source, str) else source
    if why := next(filter(None, map(check_source, each)), ""):
        raise UserError(
            f"--best-of: the rewards of run {run.name!r} prepare themselves on its images, and "
            f"{why.removesuffix('.')}; with --rewards RUN.yaml they take its data.images"
        )


def caption_set(job: CaptionJob, make_choose: MakeChoose) -> None:
    """Caption the images that have no caption yet; UserError or Fault in one sentence."""
    console, began = PlainConsole(), time.monotonic()
    pictures = find_pictures(job.sources, console.print)
    output = make_output(job.form, job.to, pictures, 1 + job.base)
    outputs.check_owned(output, job.overwrite)
    run = job.run()
    key = job.key(run, os.path.relpath(pictures.root, output.folder))
    if job.doubtful:
        taken = (output.path, output.journal(key), output.left_out)
        check_list(job.doubtful, job.overwrite, taken)
    outputs.check_writable(output, pictures.rows)
    for sentence in pictures.remarks:
        console.print(sentence, soft_wrap=True)
    images = OpenSet(output, pictures, key, overwrite=job.overwrite)
    done, classes = len(images.journal.rows), evaluated_classes(job.run_directory)
    if images.waiting or (classes is None and images.undoubted()):
        with console.status("loading the policy"):
            make = job.row_maker(run, key, make_choose, console)
        images.caption(make, classes, console)
        if classes is None:
            images.add_doubts(make, console)
    rows = images.finish()
    listed = write_list(job.doubtful, rows) if job.doubtful else None
    _report(console, job, images, len(rows) - done, time.monotonic() - began, listed)


def _report(
    console: Console,
    job: CaptionJob,
    images: OpenSet,
    new: int,
    seconds: float,
    listed: int | None,
) -> None:
    """Say what was done, what was left out and where all is."""
    rows, output, left_out = images.journal.rows, images.output, images.decoded.left_out
    where = f"as text files in '{output.path}'" if job.form == "sidecar" else f"in '{output.path}'"
    rate = f", {new / seconds:.1f} a second" if new else ""
    lines = [f"captioned: {new} in {seconds:.0f} s{rate}; all captions: {len(rows)}, {where}"]
    if images.kept:
        kept = f"{len(images.kept)} (--overwrite replaces them)"
        lines.append(f"text files that were there and stay as they are: {kept}")
    lines += [f"Left out: {why}" for why in [*left_out.values()][:SHOWN]]
    if left_out:
        lines.append(f"left out: {len(left_out)}, listed in '{output.left_out}'")
    scores = [row["score"] for row in rows.values() if "score" in row]
    if scores:
        lines.append(f"mean held-out score: {sum(scores) / len(scores):.3f}")
    if job.doubtful:
        lines.append(f"to look at: {listed}, worst first, in '{job.doubtful}'")
    for line in lines:
        console.print(line, soft_wrap=True)
