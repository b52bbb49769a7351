"""The command line. What is slow to import is imported by the command that needs it."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

HUB_IS_AWAY = re.compile(
    r"couldn't connect to|failed to download|offline mode|outgoing traffic has been disabled"
    r"|cannot find the requested files in the local cache",
    re.IGNORECASE,
)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaint about a choice ends with the nearest one."""

    def error(self, message: str) -> NoReturn:
        told = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if told:
            close = difflib.get_close_matches(told[1], re.findall(r"[\w-]+", told[2]), 1, 0.5)
            message += f"; nearest: {close[0]}" if close else ""
        super().error(message)


class _Version(argparse.Action):
    """--version; the number is looked up when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        try:
            number = version("vizer_rl")
        except PackageNotFoundError:
            number = "(not installed)"
        print(f"vizer_rl {number}")
        parser.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 2 for a mistake of the user's, 130 for Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    asked = parse(words)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("WANDB_SILENT", "true")  # we say ourselves where the curves are
    # TRL uses names that transformers deprecates: not for our users to mend.
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        asked.command(asked)
    except KeyboardInterrupt:
        again = shlex.join([word for word in words if word not in ("--overwrite", "--resume")])
        resume = f"; go on with: vizer-rl {again} --resume" if words[0] == "train" else ""
        print(f"\nvizer_rl: stopped{resume}", file=sys.stderr)
        return 130
    except Exception as error:  # ours to tell apart: a user's mistake is told, a bug is raised
        message = mistake(error)
        if message is None:
            raise
        print(f"vizer_rl: {message}", file=sys.stderr)
        return 2
    return int(asked.exit_code)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command and its arguments; flags may stand between a run's settings."""
    parser = _parser()
    asked, rest = parser.parse_known_args(words)
    if any(word.startswith("-") for word in rest) or (rest and "overrides" not in asked):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if "overrides" in asked:
        asked.overrides += rest
    return asked


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="vizer-rl", description="Captioners that learn without labels.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    parser.set_defaults(exit_code=0)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Callable[[argparse.Namespace], None], told: str) -> _Parser:
        one: _Parser = commands.add_parser(name, help=told, description=told, allow_abbrev=False)
        one.set_defaults(command=command)
        return one

    train = add("train", _train, "train a run file's policy and evaluate it")
    train.add_argument("file", type=Path, metavar="RUN.yaml", help="as experiments/smolvlm.yaml")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="train.max_steps=20, …")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    train.add_argument("--overwrite", action="store_true", help="delete the run directory first")
    audit = add("audit", _audit, "tell what its rewards would teach, before training")
    audit.epilog = (
        "Writes audit.json and audit.html into runs/NAME where that run is there, else into "
        "audits/NAME. On drawn scenes the truth is reported; the verdict never uses it."
    )
    audit.add_argument("file", type=Path, metavar="RUN.yaml", help="as experiments/smolvlm.yaml")
    audit.add_argument("overrides", nargs="*", metavar="key=value", help="as for train")
    audit.add_argument("--strict", action="store_true", help="exit with 1 if the verdict is fail")
    caption = add("caption", _caption, "caption images before and after training, side by side")
    caption.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    evaluate = add("evaluate", _evaluate, "score the held-out images of a run anew")
    for one in (caption, evaluate):
        one.add_argument("--run", required=True, metavar="NAME", help="the run in runs/NAME")
    listed = add("rewards", _rewards, "list the rewards, or score one caption with them")
    score = listed.add_subparsers(metavar="score").add_parser(
        "score",
        help="score a caption on every reward of a run file",
        description="Score one caption on every reward of a run file, with what each is made of.",
        allow_abbrev=False,
    )
    score.set_defaults(command=_score)
    score.add_argument("image", type=Path, metavar="IMAGE")
    score.add_argument("caption", metavar="CAPTION")
    score.add_argument("--run-file", required=True, type=Path, metavar="RUN.yaml")
    score.add_argument("overrides", nargs="*", metavar="key=value", help="as for train")
    add("doctor", _doctor, "tell what this machine can run, and why not")
    return parser


def _train(asked: argparse.Namespace) -> None:
    import torch

    from .config.load import load_run

    cuda = torch.cuda.is_available()
    run = load_run(asked.file, asked.overrides, cuda, asked.resume, asked.overwrite)
    from .training.train import train

    train(run, resume=asked.resume, overwrite=asked.overwrite)


def _audit(asked: argparse.Namespace) -> None:
    import torch

    from .config.load import load_run

    run = load_run(asked.file, asked.overrides, torch.cuda.is_available())
    from .training.train import audit_run

    asked.exit_code = int(audit_run(run) == "fail" and asked.strict)


def _caption(asked: argparse.Namespace) -> None:
    directory = _directory(asked.run)
    from .evaluation.evaluate import caption

    caption(directory, asked.images)


def _evaluate(asked: argparse.Namespace) -> None:
    directory = _directory(asked.run)
    from .evaluation.evaluate import evaluate

    evaluate(directory)


def _directory(name: str) -> Path:
    """The run directory of a name, or of a path to it."""
    from .errors import UserError, not_found

    directory = Path(name) if "/" in name else Path("runs") / name
    if not directory.is_dir():
        raise UserError(f"run {not_found(directory)}")
    return directory


def _rewards(asked: argparse.Namespace) -> None:
    from .training.score import listed

    listed()


def _score(asked: argparse.Namespace) -> None:
    import torch

    from .config.load import load_run

    run = load_run(asked.run_file, asked.overrides, torch.cuda.is_available())
    from .training.score import score

    score(run, asked.image, asked.caption)


def _doctor(asked: argparse.Namespace) -> None:
    try:
        from .doctor import doctor
    except ImportError as error:  # even what the doctor itself stands on may be broken
        print(f"Not even the doctor can be imported: {error}. Run `make setup`.")
        asked.exit_code = 1
    else:
        asked.exit_code = doctor()


def mistake(error: BaseException) -> str | None:
    """What to tell where the user can mend it; None for a bug."""
    # A class of a module that was never imported cannot have been raised.
    ours = [("vizer_rl.errors", "UserError"), ("vizer_rl.errors", "ImageError")]
    if isinstance(error, _imported(ours)):
        return str(error)
    hub = "huggingface_hub.errors"
    away = _imported([(hub, "LocalEntryNotFoundError"), (hub, "OfflineModeIsEnabled")])
    cause: BaseException | None = error
    while cause is not None:
        said = isinstance(cause, OSError | RuntimeError) and HUB_IS_AWAY.search(str(cause))
        if said or isinstance(cause, away):
            return (
                "the Hugging Face hub cannot be reached. Two ways on: MODEL=/local/path (and "
                "scorer.train=local-dir:/path) for files that are here, PROFILE=scenes for the "
                f"models that ship with the package. It said: {' '.join(str(error).split())}"
            )
        cause = cause.__cause__
    return None


def _imported(names: Sequence[tuple[str, str]]) -> tuple[type, ...]:
    return tuple(getattr(sys.modules[m], name) for m, name in names if m in sys.modules)
