"""The foot of a report: audit, cost, commands, settings."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

import yaml

from .formats import Picks
from .html import findings, number, table, text
from .labels import PHASES
from .run_files import RunFiles

OVERALL = {
    "pass": "nothing spoke against training with these rewards",
    "warn": "the rewards may be trained with; know the risks",
    "fail": "training with these rewards will not make captions truer",
}


def audit(run: RunFiles) -> Iterator[str]:
    """The verdict on the rewards before training, and who won which attack."""
    if run.audit is None:
        yield "<p>The rewards of this run were not audited.</p>"
        return
    verdict = run.audit.verdict
    overall = OVERALL.get(verdict.overall, "")
    yield (
        f'<p>Before training, on {run.audit.images} images: <b class="{text(verdict.overall)}">'
        f"{text(verdict.overall)}</b>, {overall}.</p>"
    )
    yield findings([{"level": x.level, "says": x.says, "do": x.do or ""} for x in verdict.lines])
    if run.audit.attacks:
        names = ["sum", *run.audit.rewards]
        head = ["", *("weighted sum" if n == "sum" else text(n.replace("_", " ")) for n in names)]
        rows = [
            [text(name), *(_rate(attack.wins.get(n)) for n in names)]
            for name, attack in run.audit.attacks.items()
        ]
        yield "<details><summary>How often a caption beats its attacked copy</summary>"
        yield table(head, rows)
        yield "</details>"


def _rate(value: Picks | None) -> str:
    if value is None:
        return "–"
    tied = value.get("tied", 0.0)
    return f"{value['value']:.2f}" + (f" <small>tied {tied:.2f}</small>" if tied >= 0.005 else "")


def cost(run: RunFiles) -> Iterator[str]:
    """Time, tokens, memory; where the seconds of a step went."""
    rows, environment = run.metrics, run.environment
    if rows:
        phases = {title: _mean(rows, key) for key, title in PHASES.items()}
        yield _bar({title: mean for title, mean in phases.items() if mean})
    facts = {
        "device": environment.get("device"),
        "training": _duration(rows),
        "steps": f"{rows[-1].get('step', len(rows)):.0f}" if rows else None,
        "images": environment.get("train_images"),
        "held-out images": environment.get("heldout_images"),
        "files left out": len(run.skipped) or None,
        "tokens": f"{rows[-1]['num_tokens']:,.0f}" if rows and "num_tokens" in rows[-1] else None,
        "tokens per second": number(_mean(rows, "engine/tokens_per_second")),
        "peak GPU memory": _peak(rows),
    }
    yield _facts({key: str(value) for key, value in facts.items() if value not in (None, "–")})
    prefix = "time/reward/"
    keys = list(dict.fromkeys(key for row in rows for key in row if key.startswith(prefix)))
    each = {key.removeprefix(prefix): _mean(rows, key) or 0.0 for key in keys}
    if each:
        cells = sorted(each.items(), key=lambda pair: -pair[1])
        yield "<details><summary>Seconds per step of each reward</summary>"
        yield table(["", "s"], [[text(name.replace("_", " ")), number(s)] for name, s in cells])
        yield "</details>"


def _mean(rows: Sequence[dict[str, float]], key: str) -> float | None:
    values = [row[key] for row in rows if key in row]
    return sum(values) / len(values) if values else None


def _duration(rows: Sequence[dict[str, float]]) -> str | None:
    """All steps by the clock, as far as they are logged: mean step times their number."""
    step = _mean(rows, "time/step")
    if step is None:
        return None
    seconds = step * rows[-1].get("step", len(rows))
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _peak(rows: Sequence[dict[str, float]]) -> str | None:
    peaks = [row["engine/peak_memory_gib"] for row in rows if "engine/peak_memory_gib" in row]
    return f"{max(peaks):.1f} GiB" if peaks else None


def _bar(phases: dict[str, float]) -> str:
    """Where a step's seconds go, as one bar with a legend that has the numbers."""
    total, x, parts, legend = sum(phases.values()), 0.0, [], []
    for index, (title, seconds) in enumerate(phases.items()):
        width = 1000 * seconds / total
        parts.append(f'<rect class="p{index}" x="{x:.1f}" y="0" width="{width:.1f}" height="26"/>')
        legend.append(
            f'<span><i class="p{index}"></i>{title} <b>{number(seconds)} s</b> '
            f"{100 * seconds / total:.0f} %</span>"
        )
        x += width
    return (
        f'<svg class="bar" viewBox="0 0 1000 26" preserveAspectRatio="none" role="img" '
        f'aria-label="Where the {number(total)} seconds of a step go; the list has the numbers">'
        f'{"".join(parts)}</svg><div class="legend">{"".join(legend)}</div>'
    )


def _facts(facts: dict[str, str]) -> str:
    items = "".join(f"<div><dt>{text(k)}</dt><dd>{text(v)}</dd></div>" for k, v in facts.items())
    return f"<dl>{items}</dl>"


def commands(runs: Sequence[RunFiles]) -> Iterator[str]:
    """How the run was made, and what can be done with it; a click selects a whole command."""
    steps = list[tuple[str, str]]()
    for run in runs:
        if run.environment.get("command"):
            steps.append((f"how {run.run} was trained", str(run.environment["command"])))
    for run in runs:
        name = shlex.quote(run.run)
        others = f" --images {shlex.quote(run.images or 'SOURCE')}" if run.on_others else ""
        steps += [
            (
                f"caption photos with {run.run}",
                f".venv/bin/vizer-rl caption photo.jpg --run {name}",
            ),
            (f"evaluate {run.name} again", f".venv/bin/vizer-rl evaluate --run {name}{others}"),
        ]
        if run.wandb.get("mode") == "offline":
            folder = shlex.quote(str(run.wandb.get("dir")))
            steps.append((f"bring {run.run} to W&B", f".venv/bin/wandb sync {folder}"))
        elif run.wandb.get("url"):
            steps.append((f"{run.run} on W&B", str(run.wandb["url"])))
    names = (str(run.evaluated) if run.on_others else run.run for run in runs)
    flags = " ".join(f"--run {shlex.quote(name)}" for name in names)
    steps.append(("write this page again", f".venv/bin/vizer-rl report {flags}"))
    rows = "".join(
        f"<dt>{text(what)}</dt><dd><code>{text(c)}</code></dd>" for what, c in dict.fromkeys(steps)
    )
    yield f'<dl class="commands">{rows}</dl>'


def settings(run: RunFiles) -> Iterator[str]:
    """The run file as resolved, and the machine."""
    for title, content in (("Settings", run.settings), ("Machine", run.environment)):
        if content:
            source = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
            lines = "\n".join(map(text, source.splitlines()))
            yield f"<details><summary>{title} of {text(run.name)}</summary>"
            yield f"<pre>{lines}</pre></details>"
