"""The arguments of the command line: what each command takes."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

from .errors import nearest_match


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
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, allow_abbrev=False)

    train = add("train", "train a run file's policy and evaluate it")
    audit = add("audit", "audit a run file's rewards before training")
    rewards = add("rewards", "list the rewards")
    rewards.epilog = "`vizer-rl score` scores one caption on the rewards of a run file."
    score = add("score", "score one caption on every reward of a run file")
    caption = add("caption", "caption images before and after training, side by side")
    evaluate = add("evaluate", "evaluate a run on its held-out images again")
    report = add("report", "write the page of a run, or of several beside each other")
    compare = add("compare", "evaluated runs beside each other, image by image")
    scorer = add("scorer", "a scorer's passport: which worse captions it prefers")
    doctor = add("doctor", "report what this machine can run, and why not")

    for sub in (train, audit, score):
        sub.add_argument("file", type=Path, metavar="RUN.yaml", help="as experiments/smolvlm.yaml")
    text = "a run file: what it would download, and what is here of it"
    doctor.add_argument("file", type=Path, nargs="?", metavar="RUN.yaml", help=text)
    scorer.add_argument("name", metavar="NAME", help="embedded:a, local-dir:PATH, ARCHITECTURE/TAG")
    text = "a run file: its images, and captions of its policy; without: those that ship"
    scorer.add_argument("file", type=Path, nargs="?", metavar="RUN.yaml", help=text)
    score.add_argument("image", type=Path, metavar="IMAGE")
    score.add_argument("caption", metavar="CAPTION")
    text = "any settings of the run: train.max_steps=20, …"
    for sub in (train, audit, score, scorer, doctor):
        sub.add_argument("overrides", nargs="*", metavar="key=value", help=text)
    caption.add_argument("images", nargs="+", type=Path, metavar="IMAGES", help="files or folders")
    for sub in (caption, evaluate):
        sub.add_argument("--run", required=True, metavar="NAME", help="the run in runs/NAME")
    for sub in (report, compare):
        sub.add_argument("--run", required=True, action="append", metavar="NAME", help="repeat it")
    text = "captions or COCO instances of the held-out images: json, jsonl, csv or txt"
    evaluate.add_argument("--references", nargs="+", type=Path, metavar="FILE", help=text)
    evaluate.add_argument("--metrics", nargs="+", metavar="NAME", help="these alone: cider_d, …")
    text = "short runs at three learning rates, and which to take; goes on where it was stopped"
    train.add_argument("--sweep", choices=("lr",), help=text)
    for sub, flag, metavar, text in (
        (evaluate, "--images", "SOURCE", "other images than held-out ones: folder, file, pattern"),
        (evaluate, "--clip", "NAME", "model of CLIPScore and R@k (default: the held-out scorer)"),
        (scorer, "--images", "SOURCE", "other images: a folder, file or pattern"),
        (scorer, "--captions", "FILE", "captions of them, one {image_id, caption} per line"),
    ):
        sub.add_argument(flag, metavar=metavar, help=text)
    for sub, flag, text in (
        (evaluate, "--controls", "add what needs no training, as rows to beat (minutes)"),
        (train, "--resume", "go on from the last checkpoint"),
        (train, "--overwrite", "delete the run directory first"),
        (train, "--overwrite-finished", "the same, where the run came to its end"),
        (train, "--accept-changes", "go on though settings or images changed"),
        (audit, "--strict", "exit with 1 if the verdict is fail"),
    ):
        sub.add_argument(flag, action="store_true", help=text)
    audit.epilog = "Writes audit.json and audit.html into runs/NAME, or, before it, audits/NAME."
    return parser
