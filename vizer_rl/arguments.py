"""The arguments of the command line: what each command takes."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

from .errors import nearest_match

FORMS = ("sidecar", "jsonl", "csv", "parquet", "metadata.jsonl")  # of `caption --out`
OF_OUT = ("to", "doubtful", "base", "certainty", "overwrite")  # options that need it


class _Parser(argparse.ArgumentParser):
    """An argument parser whose error about a choice ends with the nearest one."""

    def error(self, message: str) -> NoReturn:
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if choice:
            nearest = nearest_match(choice[1], re.findall(r"[\w.-]+", choice[2]))
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
    if args.command == "caption":
        _check_caption(parser, args)
    return args


def launched_words(args: argparse.Namespace) -> list[str]:
    """The words of a `train` without its flags of a launch: what each of the processes runs."""
    flags = ("resume", "overwrite", "overwrite_finished", "accept_changes")
    words = ["train", str(args.file), *args.overrides]
    words += ["--sweep", args.sweep] if args.sweep else []
    return words + [f"--{flag.replace('_', '-')}" for flag in flags if getattr(args, flag)]


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
    caption = add("caption", "caption images into files, or print both sides")
    evaluate = add("evaluate", "evaluate a run on its held-out images again")
    _add_export(add("export", "a run's model to take along: adapter or merged weights, its card"))
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
    for sub in (train, audit, score, scorer, doctor):
        sub.add_argument("overrides", nargs="*", metavar="key=value", help="as train.max_steps=20")
    _add_caption(caption)
    evaluate.add_argument("--run", required=True, metavar="NAME", help="the run in runs/NAME")
    for sub in (report, compare):
        sub.add_argument("--run", required=True, action="append", metavar="NAME", help="repeat it")
    text = "captions or COCO instances of the held-out images: json, jsonl, csv or txt"
    evaluate.add_argument("--references", nargs="+", type=Path, metavar="FILE", help=text)
    evaluate.add_argument("--metrics", nargs="+", metavar="NAME", help="these alone: cider_d, …")
    text = "further held-out scorers, whose scores stand beside the run's own"
    evaluate.add_argument("--heldout", nargs="+", metavar="NAME", help=text)
    _add_train(train)
    for sub, flag, metavar, text in (
        (evaluate, "--images", "SOURCE", "other images than held-out ones: folder, file, pattern"),
        (evaluate, "--clip", "NAME", "model of CLIPScore and R@k (default: the held-out scorer)"),
        (scorer, "--images", "SOURCE", "other images: a folder, file or pattern"),
        (scorer, "--captions", "FILE", "captions of them, one {image_id, caption} per line"),
    ):
        sub.add_argument(flag, metavar=metavar, help=text)
    text = "rows that need no training and are to be beaten: they take minutes"
    evaluate.add_argument(
        "--controls", action=argparse.BooleanOptionalAction, default=True, help=text
    )
    audit.add_argument("--strict", action="store_true", help="exit with 1 if the verdict is fail")
    audit.epilog = "Writes audit.json and audit.html into runs/NAME, or, before it, audits/NAME."
    return parser


def _add_train(train: argparse.ArgumentParser) -> None:
    text = "short runs at three learning rates, and which to take; goes on where it was stopped"
    train.add_argument("--sweep", choices=("lr",), help=text)
    text = "on so many devices of this machine, started by Accelerate's launcher"
    train.add_argument("--devices", metavar="N", help=text)
    text = "its config file, as experiments/accelerate/fsdp2.yaml (default: DDP)"
    train.add_argument("--accelerate", type=Path, metavar="FILE", help=text)
    for flag, text in (
        ("--resume", "go on from the last checkpoint"),
        ("--overwrite", "delete the run directory first"),
        ("--overwrite-finished", "the same, where the run came to its end"),
        ("--accept-changes", "go on though settings or images changed"),
    ):
        train.add_argument(flag, action="store_true", help=text)


def _add_caption(caption: argparse.ArgumentParser) -> None:
    """The arguments of `caption`; docs/captions.md."""
    text = "folder, file, pattern, archive, table or hf:ID (docs/images.md)"
    caption.add_argument("images", nargs="+", metavar="SOURCE", help=text)
    policy = caption.add_mutually_exclusive_group(required=True)
    policy.add_argument("--run", metavar="NAME", help="the run in runs/NAME")
    policy.add_argument("--model", metavar="ID", help="no run: embedded, a folder or a hub id")
    text = "write files: .txt beside each image, or one of all; the same command goes on"
    caption.add_argument("--out", choices=FORMS, help=text)
    for flag, metavar, kind, text in (
        ("--to", "PATH", Path, "the file or folder of --out (default: captions.… here)"),
        ("--doubtful", "FILE", Path, "with --out: jsonl of the captions to look at, worst first"),
        ("--best-of", "N", int, "the best of N sampled captions, by the run's rewards"),
        ("--rewards", "RUN.yaml", Path, "with --best-of: by the rewards of this run file"),
        ("--scorer", "NAME", str, "the held-out scorer (default: the run's), or off"),
        ("--prompt", "TEXT", str, "in place of the run's"),
        ("--max-tokens", "N", int, "of a caption (default: the run's, or 64)"),
    ):
        caption.add_argument(flag, metavar=metavar, type=kind, help=text)
    for flag, text in (
        ("--base", "with --out: the caption before training beside it"),
        ("--certainty", "with --out: the words that the base is not sure of"),
        ("--overwrite", "with --out: replace files that are there"),
    ):
        caption.add_argument(flag, action="store_true", help=text)


def _check_caption(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with a sentence where options of `caption` do not fit together."""
    alone = [option for option in OF_OUT if getattr(args, option)]
    if alone and not args.out:
        parser.error(f"--{alone[0]} needs --out: {', '.join(FORMS)}")
    if args.rewards and args.best_of is None:
        parser.error("--rewards needs --best-of N")
    if args.best_of is not None and args.best_of < 2:
        parser.error(f"--best-of {args.best_of}: need at least 2")
    if args.max_tokens is not None and args.max_tokens < 1:
        parser.error(f"--max-tokens {args.max_tokens}: need at least 1")


def _add_export(export: argparse.ArgumentParser) -> None:
    export.add_argument("--run", required=True, metavar="NAME", help="the run in runs/NAME")
    text = "hub: upload what DIR holds of the run, or its adapter"
    export.add_argument("--to", required=True, choices=("adapter", "merged", "hub"), help=text)
    text = "a folder that is not there yet"
    export.add_argument("--out", required=True, type=Path, metavar="DIR", help=text)
    export.add_argument("--repo", metavar="OWNER/NAME", help="with --to hub: the repository there")
    text = "other images of the parity check than held-out ones"
    export.add_argument("--images", metavar="SOURCE", help=text)
    text = "replace an export in DIR; nothing else is ever replaced"
    export.add_argument("--overwrite", action="store_true", help=text)
    text = "with --to hub: say what would be uploaded"
    export.add_argument("--dry-run", action="store_true", help=text)
