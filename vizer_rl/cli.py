"""The command line: parses, dispatches. A command imports what is slow to import when it runs."""

from __future__ import annotations

import argparse
import io
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import (
    Interrupted,
    UserError,
    masked,
    nearest_match,
    path_not_found,
    printable,
    user_message,
)

if TYPE_CHECKING:
    from .config.schema import Run


class _Parser(argparse.ArgumentParser):
    """An argument parser whose error about a choice ends with the nearest one."""

    def error(self, message: str) -> NoReturn:
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if choice:
            nearest = nearest_match(choice[1], re.findall(r"[\w-]+", choice[2]))
            message += f"; nearest: {nearest}" if nearest else ""
        super().error(message)


class _Version(argparse.Action):
    """--version; the installed package's, read only when the flag is given."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        try:
            number = version("vizer_rl")
        except PackageNotFoundError:
            number = "(not installed)"
        print(f"vizer_rl {number}")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 2 for a user's mistake, 130 or 143 for a signal."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = parse(words)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # no character stops a terminal of any encoding
            stream.reconfigure(errors="backslashreplace")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("WANDB_SILENT", "true")  # we print ourselves where the curves are
    # TRL uses names that transformers deprecates: nothing that our users could correct.
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        return args.command(args) or 0
    except KeyboardInterrupt as stop:
        command = shlex.join([word for word in words if word not in ("--overwrite", "--resume")])
        resume = f"; go on with: vizer-rl {command} --resume" if words[0] == "train" else ""
        print(f"\nvizer_rl: stopped{resume}", file=sys.stderr)
        return stop.code if isinstance(stop, Interrupted) else 130
    except Exception as error:  # a mistake of the user's is one line, a bug its traceback
        message = user_message(error)
        if message is None:
            raise
        lines = "\n".join(map(printable, masked(message).split("\n")))
        print(f"vizer_rl: {lines}", file=sys.stderr)
        return 2


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command and its arguments; flags may stand between a run's settings."""
    parser = _parser()
    if list(words[:2]) == ["rewards", "score"]:
        parser.error(
            "`rewards score` has become `score`; "
            "write: vizer-rl score RUN.yaml IMAGE CAPTION [key=value …]"
        )
    args, rest = parser.parse_known_args(words)
    if any(word.startswith("-") for word in rest) or (rest and "overrides" not in args):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if "overrides" in args:
        args.overrides += rest
    return args


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="vizer-rl", description="Captioners that learn without labels.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Callable[[argparse.Namespace], int | None], text: str) -> _Parser:
        sub: _Parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(command=command)
        return sub

    train = add("train", _train, "train a run file's policy and evaluate it")
    audit = add("audit", _audit, "audit a run file's rewards before training")
    rewards = add("rewards", _rewards, "list the rewards")
    rewards.epilog = "`vizer-rl score` scores one caption on the rewards of a run file."
    score = add("score", _score, "score one caption on every reward of a run file")
    caption = add("caption", _caption, "caption images before and after training, side by side")
    evaluate = add("evaluate", _evaluate, "evaluate a run on its held-out images again")
    doctor = add("doctor", _doctor, "report what this machine can run, and why not")

    for sub in (train, audit, score):
        sub.add_argument("file", type=Path, metavar="RUN.yaml", help="as experiments/smolvlm.yaml")
    text = "a run file: what it would download, and what is here of it"
    doctor.add_argument("file", type=Path, nargs="?", metavar="RUN.yaml", help=text)
    score.add_argument("image", type=Path, metavar="IMAGE")
    score.add_argument("caption", metavar="CAPTION")
    for sub in (train, audit, score, doctor):
        text = "any settings of the run: train.max_steps=20, …"
        sub.add_argument("overrides", nargs="*", metavar="key=value", help=text)
    text = "image files, folders and 'glob patterns'"
    caption.add_argument("images", nargs="+", type=Path, metavar="IMAGES", help=text)
    for sub in (caption, evaluate):
        sub.add_argument("--run", required=True, metavar="NAME", help="the run in runs/NAME")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    text = "short runs at three learning rates, and which to take; goes on where it was stopped"
    train.add_argument("--sweep", choices=("lr",), help=text)
    train.add_argument("--overwrite", action="store_true", help="delete the run directory first")
    train.add_argument(
        "--overwrite-finished", action="store_true", help="the same, where the run came to its end"
    )
    train.add_argument(
        "--accept-changes", action="store_true", help="go on though settings or images changed"
    )
    audit.add_argument("--strict", action="store_true", help="exit with 1 if the verdict is fail")
    audit.epilog = (
        "Writes audit.json and audit.html into runs/NAME where that run is there, else into "
        "audits/NAME. On drawn scenes the truth is reported; the verdict never uses it."
    )
    return parser


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


def _train(args: argparse.Namespace) -> None:
    # A sweep goes on by itself and checks the directories of its runs.
    both = args.resume and args.overwrite
    overwrite = "finished" if args.overwrite_finished else args.overwrite
    run = _load_run(args, *(() if args.sweep and not both else (args.resume, overwrite)))
    if args.sweep:
        from .training.sweep import sweep

        return sweep(run, overwrite=bool(overwrite))
    from .training.train import train

    changes = args.accept_changes
    return train(run, resume=args.resume, overwrite=bool(overwrite), accept_changes=changes)


def _audit(args: argparse.Namespace) -> int:
    run = _load_run(args)
    from .training.train import audit_run

    return int(audit_run(run) == "fail" and args.strict)


def _rewards(_: argparse.Namespace) -> None:
    from .training.score import list_rewards

    list_rewards()


def _score(args: argparse.Namespace) -> None:
    run = _load_run(args)
    from .training.score import score

    score(run, args.image, args.caption)


def _caption(args: argparse.Namespace) -> None:
    directory = _run_directory(args.run)
    from .evaluation.evaluate import caption

    caption(directory, args.images)


def _evaluate(args: argparse.Namespace) -> None:
    directory = _run_directory(args.run)
    from .evaluation.evaluate import evaluate

    evaluate(directory)


def _doctor(args: argparse.Namespace) -> int:
    try:
        from .doctor import doctor
    except ImportError as error:  # even what the doctor itself imports may be broken
        print(f"Not even the doctor can be imported: {error}. Run `make setup`.")
        return 1
    return doctor(_load_run(args) if args.file else None)
