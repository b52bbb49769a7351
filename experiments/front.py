"""Recall against hallucinations: what each reward and each setting of the dial buys.

    .venv/bin/python -m experiments.front [--only NAME …] [--family NAME] [--seeds 0 1 2]
        [--table] [--picture docs/front.svg]

Makes what runs/ lacks (a finished row has an eval.json), one after the other, and prints the table
for experiments/README.md and which points no other one beats in both; --picture draws it. All rows
take the run file's steps on as many captions; the adapter after the last one is judged, so that the
held-out scorer, which picks one in a user's run, takes no part. The oracle alone reads the truth.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from experiments import baselines, runner
from experiments.audit_validity import GUARDS, only
from vizer_rl.config.load import load_run

DIAL = (0.6, 0.7, 0.8, 0.9, 0.95)
COLOURS = {"clip": "#d62728", "no-dial": "#ff7f0e", "retrieval": "#9467bd", "certainty": "#1f77b4"}
COLOURS |= {"both": "#17becf", "raft": "#2ca02c", "sft": "#8c564b", "oracle": "#555555"}
COLOURS |= dict.fromkeys(("balanced", "faithful", "descriptive"), "#e377c2")
SIDE, EDGE = 440, 64  # pixels of a panel of the picture
LINE, BESIDE = 13, 90  # between two labels one below the other; how near points have such


def certain(at_least: float, *others: str) -> tuple[str, ...]:
    """Overrides that leave word certainty with this dial, and others."""
    return (*only("certainty", *others), f"rewards.certainty.at_least={at_least}")


ROWS: dict[str, tuple[str, tuple[str, ...]]] = {  # name: title, overrides
    "clip": ("CLIP cosine alone", tuple(only("clip_similarity"))),
    "no-dial": ("default rewards, no dial", ("recipe=null",)),
    "balanced": ("default: balanced", ()),
    "faithful": ("default, faithful", ("recipe=faithful",)),
    "descriptive": ("default, descriptive", ("recipe=descriptive",)),
    "retrieval": ("self_retrieval and guards", tuple(only("self_retrieval", *GUARDS))),
    **{f"certainty-{p:g}": (f"certainty alone, dial {p:g}", certain(p)) for p in DIAL},
    "both": ("certainty .8 and self_retrieval", certain(0.8, "self_retrieval", *GUARDS)),
    "raft": ("RAFT, certainty .8", (*certain(0.8), "algorithm=raft")),
    "sft": ("SFT on best of 8, certainty .8", certain(0.8)),
    "oracle": ("oracle: SFT on true captions", ()),
}
SUPERVISED = {"sft": baselines.sft_on_best, "oracle": baselines.oracle}


def directory(family: str, name: str, seed: int) -> Path:
    return runner.directory("front", family, name, seed)


def make(family: str, name: str, seed: int) -> None:
    """Train and evaluate a row, unless that was done."""
    folder = directory(family, name, seed)
    overrides = [*runner.LAST_ADAPTER, *ROWS[name][1]]
    if name not in SUPERVISED:
        runner.train(family, folder, seed, overrides)
    elif not runner.finished([folder], "eval.json"):
        file, *words = runner.arguments(family, folder, seed, overrides)
        SUPERVISED[name](baselines.Baselines(load_run(Path(file), words), Console()), folder)


def results(family: str, seeds: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
    """eval.json of every seed that is there, by row."""
    by_row = {}
    for name in ROWS:
        folders = [directory(family, name, seed) for seed in seeds]
        if done := runner.finished(folders, "eval.json"):
            by_row[name] = [runner.read(folder, "eval.json") for folder in done]
    return by_row


def point(seeds: Sequence[dict[str, Any]], side: str = "trained") -> tuple[float, float]:
    """Recall and share of hallucinating captions, means over seeds."""
    metrics = ("fact_recall", "hallucination_rate")
    recall, wrong = (fmean(s[side][m]["value"] for s in seeds) for m in metrics)
    return recall, wrong


def front(points: dict[str, tuple[float, float]]) -> list[str]:
    """The rows that no other one equals in recall and in hallucinations and beats in one."""
    return [
        name
        for name, (recall, wrong) in points.items()
        if not any(
            r >= recall and w <= wrong and (r, w) != (recall, wrong) for r, w in points.values()
        )
    ]


def table(family: str, seeds: Sequence[int]) -> str:
    """The Markdown table of a family's rows that are there; the front of those without truth."""
    by_row = results(family, seeds)
    if not by_row:
        return f"{family}: no run is there yet"
    base = next(iter(by_row.values()))[0]
    lines = [["base", *runner.metric_cells([base["base"]])]]
    for name, done in by_row.items():
        cells = runner.metric_cells([result["trained"] for result in done])
        lines.append([f"{ROWS[name][0]} ({len(done)})", *cells])
    points = {name: point(done) for name, done in by_row.items() if name != "oracle"}
    text = runner.markdown([f"{family} (seeds)", *runner.METRICS.values()], lines)
    return f"{text}\n\nOn the front: {', '.join(ROWS[name][0] for name in front(points))}."


def picture(families: Sequence[str], seeds: Sequence[int]) -> str:
    """A panel a family as SVG: recall to the right, hallucinated captions upwards."""
    panels = []
    for column, family in enumerate(families):
        by_row = results(family, seeds)
        if not by_row:
            continue
        points = {name: point(done) for name, done in by_row.items()}
        points["base"] = point(next(iter(by_row.values())), "base")
        panels.append(_panel(family, points, column * (SIDE + 2 * EDGE)))
    wide, high = len(panels) * (SIDE + 2 * EDGE), SIDE + 2 * EDGE
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" '
    style = 'font-family="sans-serif" font-size="12">'
    ground = f'<rect width="{wide}" height="{high}" fill="#fff"/>'
    return "\n".join([head + style, ground, *panels, "</svg>", ""])


def _panel(family: str, points: dict[str, tuple[float, float]], left: float) -> str:
    """One family's axes, points with their names, and the dial as a line."""
    first = 0.1 * int(10 * min(recall for recall, _ in points.values()))
    top = 0.1 * (int(10 * max(wrong for _, wrong in points.values())) + 1)

    def place(recall: float, wrong: float) -> tuple[float, float]:
        x = left + EDGE + (recall - first) / (1 - first) * SIDE
        return round(x, 1), round(EDGE + SIDE - wrong / top * SIDE, 1)

    def text(x: float, y: float, words: str, more: str = "") -> str:
        return f'<text x="{x}" y="{y}" {more}>{words}</text>'

    (x0, y0), (x1, y1) = place(first, 0), place(1, top)
    drawn = [f'<path d="M{x0} {y1}V{y0}H{x1}" fill="none" stroke="#333"/>']
    for k in range(round(10 * first), 11):
        drawn.append(text(place(k / 10, 0)[0], y0 + 18, f"{k / 10:.1f}", 'text-anchor="middle"'))
    for k in range(round(10 * top) + 1):
        drawn.append(text(x0 - 8, place(0, k / 10)[1] + 4, f"{k / 10:.1f}", 'text-anchor="end"'))
    drawn.append(text(x0, y1 - 14, f"{family}: captions with a wrong fact, over recall of facts"))
    dial = [place(*points[name]) for name in points if name.startswith("certainty")]
    line = " ".join(f"{x},{y}" for x, y in dial)
    drawn.append(f'<polyline points="{line}" fill="none" stroke="{COLOURS["certainty"]}"/>')
    labels = list[tuple[float, float]]()  # above those still to come
    for name, values in sorted(points.items(), key=lambda pair: -pair[1][1]):
        x, y = place(*values)
        below = [v + LINE for u, v in labels if abs(u - x) < BESIDE]
        labels.append((x, max([y + 4, *below])))
        colour = COLOURS.get(name, COLOURS.get(name.partition("-")[0], "#000"))
        title = name.replace("certainty-", "dial ").replace("both", "dial 0.8 + retrieval")
        drawn.append(f'<circle cx="{x}" cy="{y}" r="5" fill="{colour}"/>')
        drawn.append(text(x + 8, labels[-1][1], title, f'fill="{colour}"'))
    return "\n".join(drawn)


if __name__ == "__main__":
    parser = runner.parser(__doc__, ROWS, (0, 1, 2), "all")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the front as SVG")
    flags = parser.parse_args()
    families = [flags.family] if flags.family else runner.FAMILIES
    for seed in [] if flags.table else flags.seeds:
        for name in flags.only or ROWS:
            for family in families:
                make(family, name, seed)
    print("\n\n".join(table(family, flags.seeds) for family in families))
    if flags.picture:
        flags.picture.write_text(picture(families, flags.seeds))
