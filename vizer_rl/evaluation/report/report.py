"""The report: one HTML file of one run, or of several beside each other, that opens alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ...errors import printable
from ...files import write_text
from .html import asset, document, json_block, text
from .result import result
from .rows import caption_rows, curve_groups, kept_step, read_pictures, series, shown
from .run_files import RunFiles, read_run_files
from .sections import audit, commands, cost, settings

SCRIPTS = ("page.js", "charts.js", "gallery.js")


def write_report(directories: Sequence[Path], console: Console) -> Path:
    """Write the page of these runs into the directory of the first, print where and what it lacks.

    UserError where a directory holds nothing of a run.
    """
    runs = [read_run_files(directory) for directory in directories]
    page = report(runs)
    others = "-".join(run.name for run in runs[1:]).replace(" ", "-")
    path = directories[0] / (f"report-with-{others}"[:120] + ".html" if others else "report.html")
    write_text(path, page)
    for run in runs:
        for sentence in run.left_out:
            console.print(f"Not in the report of {run.name}: {printable(sentence)}", soft_wrap=True)
    console.print(f"Report: {path} ({len(page.encode()) / 1e6:.1f} MB)", soft_wrap=True)
    return path


def report(runs: Sequence[RunFiles]) -> str:
    """The page."""
    captions = [shown(run) for run in runs]
    pictures, numbers = read_pictures(runs, captions)
    data = {
        "pictures": pictures,
        "groups": curve_groups(runs),
        "runs": [
            {
                "name": run.name,
                "series": series(run.metrics),
                "alarms": [[alarm.step, alarm.sentence] for alarm in run.alarms],
                "kept": kept_step(run),
                "rows": list(caption_rows(rows, number_of)),
            }
            for run, rows, number_of in zip(runs, captions, numbers, strict=True)
        ],
    }
    title = ", ".join(run.name for run in runs)
    body = "\n".join([_head(runs, title), *_body(runs, data), json_block("data", data)])
    return document(f"Report of {title}", body, asset("style.css"), "".join(map(asset, SCRIPTS)))


def _head(runs: Sequence[RunFiles], title: str) -> str:
    about = [
        " · ".join(
            str(word)
            for word in (
                run.settings.get("family"),
                run.settings.get("algorithm"),
                f"{run.environment['train_images']} images without labels"
                if "train_images" in run.environment
                else None,
                run.environment.get("device"),
                f"seed {run.settings['seed']}" if "seed" in run.settings else None,
            )
            if word
        )
        for run in runs
    ]
    over = "Report of a run" if len(runs) == 1 else f"{len(runs)} runs beside each other"
    lines = "".join(f"<p>{text(line)}</p>" for line in dict.fromkeys(about) if line)
    return f'<header><p class="over">{over}</p><h1>{text(title)}</h1>{lines}</header>'


def _body(runs: Sequence[RunFiles], data: dict[str, Any]) -> Iterable[str]:
    """The sections; those that the script fills are empty."""
    missing = [(run, sentence) for run in runs for sentence in run.left_out]
    sections = {
        "result": ("Result", [*result(runs)]),
        "curves": ("Curves", [asset("curves.html")] if any(r.metrics for r in runs) else []),
        "captions": ("Captions", [asset("gallery.html")] if any(r.captions for r in runs) else []),
        "audit": ("Audit", [piece for run in runs for piece in _of(run, runs, audit(run))]),
        "cost": ("Cost", [piece for run in runs for piece in _of(run, runs, cost(run))]),
        "commands": ("Commands", [*commands(runs), *(p for run in runs for p in settings(run))]),
    }
    if missing:
        items = "".join(
            f"<li>{text(f'{run.name}: ' if len(runs) > 1 else '')}{text(sentence)}</li>"
            for run, sentence in missing
        )
        sections["missing"] = ("Not on this page", [f'<ul class="missing">{items}</ul>'])
    there = {key: section for key, section in sections.items() if section[1]}
    links = "".join(f'<a href="#{key}">{title}</a>' for key, (title, _) in there.items())
    yield f'<nav aria-label="Sections">{links}</nav>\n<main>'
    for key, (title, pieces) in there.items():
        yield f'<section id="{key}"><h2>{title}</h2>'
        yield from pieces
        yield "</section>"
    yield "</main>"


def _of(run: RunFiles, runs: Sequence[RunFiles], pieces: Iterable[str]) -> Iterable[str]:
    """A run's pieces, under its name where there are several."""
    if len(runs) > 1:
        yield f"<h3>{text(run.name)}</h3>"
    yield from pieces
