"""The command line: dispatches. A command imports what is slow to import when it runs."""

from __future__ import annotations

import argparse
import io
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import launched_words, parse
from .errors import (
    ConfigError,
    Interrupted,
    UserError,
    masked,
    path_not_found,
    printable,
    user_message,
)

if TYPE_CHECKING:
    from .config.schema import Run

OF_START = ("--overwrite", "--overwrite-finished", "--resume")  # how a training starts


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 2 for a user's mistake, 130 or 143 for a signal."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = parse(words)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # no character stops a terminal of any encoding
            stream.reconfigure(errors="backslashreplace")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # the hub is asked for files alone
    os.environ.setdefault("WANDB_SILENT", "true")  # we print ourselves where the curves are
    # TRL uses names that transformers deprecates: nothing that our users could correct.
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        return COMMANDS[args.command](args) or 0
    except KeyboardInterrupt as stop:
        command = shlex.join([word for word in words if word not in OF_START])
        resume = f"; go on with: vizer-rl {command} --resume" if words[0] == "train" else ""
        again = args.command == "caption" and args.out
        resume = "; the same command goes on" if again else resume
        if "RANK" in os.environ and words[0] == "train":
            from .training.launch import devices_flag

            resume += devices_flag()
        if os.environ.get("RANK", "0") == "0":  # of several processes one says so for all
            print(f"\nvizer_rl: stopped{resume}", file=sys.stderr)
        return stop.code if isinstance(stop, Interrupted) else 130
    except Exception as error:  # a mistake of the user's is one line, a bug its traceback
        message = user_message(error)
        if message is None:
            raise
        if isinstance(error, ConfigError) and os.environ.get("RANK", "0") != "0":
            return 2  # the first process says it: all read the same run file
        lines = "\n".join(map(printable, masked(message).split("\n")))
        print(f"vizer_rl: {lines}", file=sys.stderr)
        return 2


def _load_run(args: argparse.Namespace, *flags: Any) -> Run:
    import torch

    from .config.load import load_run

    return load_run(args.file, args.overrides, torch.cuda.is_available(), *flags)


def _run_directory(name: str) -> Path:
    """The run directory of a name, or of a path to it."""
    directory = Path(name) if "/" in name else Path("runs") / name
    if not directory.is_dir():
        raise UserError(f"run {path_not_found(directory)}")
    return directory


def _train(args: argparse.Namespace) -> int | None:
    # A sweep goes on by itself and checks the directories of its runs.
    both = args.resume and args.overwrite
    overwrite = "finished" if args.overwrite_finished else args.overwrite
    run = _load_run(args, *(() if args.sweep and not both else (args.resume, overwrite)))
    if args.devices is not None or args.accelerate is not None:
        from .training.launch import launch, processes

        count = processes(args.devices, args.accelerate)
        if count > 1 or args.accelerate is not None:
            return launch(launched_words(args), count, args.accelerate)
    if args.sweep:
        from .training.sweep import sweep

        sweep(run, overwrite=bool(overwrite))
        return None
    from .api import train

    resume, changes = args.resume, args.accept_changes
    anew = bool(overwrite) and not resume  # of a run that was stopped --overwrite-finished is void
    train(run, resume=resume, overwrite=anew, accept_changes=changes)
    return None


def _audit(args: argparse.Namespace) -> int:
    run = _load_run(args)
    from .api import audit

    return int(audit(run)["verdict"]["overall"] == "fail" and args.strict)


def _rewards(_: argparse.Namespace) -> None:
    from .training.score import list_rewards

    list_rewards()


def _score(args: argparse.Namespace) -> None:
    run = _load_run(args)
    from .training.score import score

    score(run, args.image, args.caption)


def _scorer(args: argparse.Namespace) -> None:
    args.overrides += [f"data.images={args.images}"] if args.images else []
    run = _load_run(args) if args.file else None
    from .training.scorer_passport import scorer_passport

    scorer_passport(args.name, run, args.images, args.captions)


def _caption(args: argparse.Namespace) -> None:
    directory = _run_directory(args.run) if args.run else None
    options = (args.out, args.best_of, args.scorer, args.prompt, args.max_tokens)
    if directory and not any(options):
        from .evaluation.caption_images import caption

        return caption(directory, args.images)
    rewards = None
    if args.rewards:
        import torch

        from .config.load import load_run

        rewards = load_run(args.rewards, (), torch.cuda.is_available())
    from .evaluation.captioning.caption_set import CaptionJob, caption_set
    from .evaluation.captioning.show import show_captions
    from .training.best_of import make_choose

    job = CaptionJob(
        sources=args.images,
        run_directory=directory,
        model=args.model or "",
        form=args.out or "",
        to=args.to,
        base=args.base,
        best_of=args.best_of or 1,
        rewards=rewards,
        certainty=args.certainty,
        doubtful=args.doubtful,
        overwrite=args.overwrite,
        prompt=args.prompt or "",
        max_tokens=args.max_tokens,
        scorer=args.scorer or "",
    )
    return (caption_set if args.out else show_captions)(job, make_choose)


def _evaluate(args: argparse.Namespace) -> None:
    directory = _run_directory(args.run)
    from .evaluation.evaluate import evaluate

    judged = dict[str, Any]()
    if args.controls:
        from .training.controls import make_controls

        judged["controls"] = make_controls
    else:
        from .training.caption_rewards import judge_anew

        judged["rewards"] = judge_anew
    metrics = args.references or (), args.metrics or (), args.clip
    evaluate(directory, args.images, *metrics, args.heldout or (), **judged)


def _export(args: argparse.Namespace) -> None:
    directory = _run_directory(args.run)
    from .training.export import Target, export

    target = Target(args.out.expanduser(), args.overwrite, args.repo, args.dry_run)
    export(directory, args.to, target, args.images)


def _compare(args: argparse.Namespace) -> None:
    from .evaluation.compare import compare

    compare([_run_directory(name) for name in args.run])


def _report(args: argparse.Namespace) -> None:
    directories = [_run_directory(name) for name in dict.fromkeys(args.run)]
    from .evaluation.report.report import write_report
    from .evaluation.tables import PlainConsole

    write_report(directories, PlainConsole())


def _doctor(args: argparse.Namespace) -> int:
    try:
        from .doctor import doctor
    except ImportError as error:  # even what the doctor itself imports may be broken
        print(f"Not even the doctor can be imported: {error}. Run `make setup`.")
        return 1
    return doctor(_load_run(args) if args.file else None)


COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "train": _train,
    "audit": _audit,
    "rewards": _rewards,
    "score": _score,
    "caption": _caption,
    "evaluate": _evaluate,
    "export": _export,
    "report": _report,
    "compare": _compare,
    "scorer": _scorer,
    "doctor": _doctor,
}
