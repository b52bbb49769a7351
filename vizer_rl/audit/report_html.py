"""The HTML report of an audit: verdict, tables, and the worst examples with their images.

Self-contained: images are embedded, no script, nothing is fetched; light and dark by the reader's
setting.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from html import escape
from io import BytesIO
from typing import Any

from PIL.Image import Image

from ..errors import printable
from .report_console import SUMMARY, control_rows
from .verdict import CHANCE, MIN_WIN_RATE

THUMB = 240  # pixels
CSS = """
:root { color-scheme: light dark; --ink: #1d2126; --soft: #5d6670; --line: #dfe3e8; --page: #fbfbfa;
  --card: #ffffff; --pass: #1e7d46; --warn: #9a6700; --fail: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --soft: #9aa4ae; --line: #333a42;
  --page: #15181b; --card: #1d2125; --pass: #5cc98a; --warn: #e0b040; --fail: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 2.5rem 1.5rem 4rem; background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .5rem; }
p, caption { color: var(--soft); margin: .2rem 0 .8rem; max-width: 46rem; text-align: left; }
ul { list-style: none; margin: 1.2rem 0; padding: 0; }
li { background: var(--card); border: 1px solid var(--line); border-left: .3rem solid var(--soft);
  border-radius: .4rem; padding: .7rem 1rem; margin: .5rem 0; }
li b { display: block; font-weight: 600; }
.pass { color: var(--pass); } .warn { color: var(--warn); } .fail { color: var(--fail); }
li.pass, li.warn, li.fail { color: inherit; border-left-color: var(--pass); }
li.warn { border-left-color: var(--warn); } li.fail { border-left-color: var(--fail); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { text-align: right; padding: .35rem .8rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; } td small { color: var(--soft); }
.examples { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  overflow: hidden; }
figure img { width: 100%; aspect-ratio: 4 / 3; object-fit: contain; display: block;
  background: var(--line); }
figcaption { padding: .8rem 1rem 1rem; font-size: .9rem; }
figcaption b { display: block; font-size: .8rem; color: var(--soft); font-weight: 600; }
figcaption span { display: block; margin: .35rem 0; }
figcaption small { color: var(--soft); }
"""


def page(result: Mapping[str, Any], load: Callable[[str], Image]) -> str:
    """The page of an audit; `load` gives the image of an id."""
    overall, run = result["verdict"]["overall"], _text(result["run"])
    body = [
        f'<h1>Audit of {run}: <span class="{overall}">{overall}</span></h1>',
        f"<p>{SUMMARY[overall].capitalize()}. {_sample(result)}</p>",
        _verdict(result),
    ]
    if "attacks" in result:
        body += [*_attacks(result), *_controls(result), *_examples(result, load)]
    body += _headroom(result)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>Audit of {run}: {overall}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _sample(result: Mapping[str, Any]) -> str:
    return (
        f"{result['images']} images, {result['captions_per_image']} captions of each from the "
        f"frozen policy at temperature {result['temperature']:g}; no label was used. Attacked is, "
        "of each image, the caption that the held-out scorer likes best, if it ends, says "
        f"something and fits its own image better than most others ({result['attacked']} do)."
    )


def _verdict(result: Mapping[str, Any]) -> str:
    items = [
        f'<li class="{line["level"]}">{_text(line["says"])}'
        + (f"<b>{_text(line['do'])}</b>" if line["do"] else "")
        + "</li>"
        for line in result["verdict"]["lines"]
    ]
    return f"<ul>{''.join(items)}</ul>" if items else ""


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of cells that are HTML already."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{c}</td>' for c in row)}</tr>" for row in rows)
    table = f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def _text(text: str) -> str:
    """Text as HTML: no tag, no quote that ends an attribute, no character that acts."""
    return escape(printable(text))


def _name(reward: str) -> str:
    return "weighted sum" if reward == "sum" else _text(reward).replace("_", " ")


def _value(value: Mapping[str, float] | float | None, rate: bool = False) -> str:
    """A number, with its interval in small print; coloured where it is a rate."""
    if value is None:
        return "–"
    if isinstance(value, int | float):
        return f"{value:.2f}"
    mean = value["value"]
    level = "pass" if mean >= MIN_WIN_RATE else "warn" if mean >= CHANCE else "fail"
    text = f'<span class="{level}">{mean:.2f}</span>' if rate else f"{mean:.2f}"
    return f"{text} <small>{value['low']:.2f}–{value['high']:.2f}</small>"


def _attacks(result: Mapping[str, Any]) -> Iterable[str]:
    rewards = ["sum", *result["rewards"]]
    rows = []
    for name, attack in result["attacks"].items():
        reach = "–" if attack["in_reach"] is None else f"{100 * attack['in_reach']:.0f} %"
        cells = (_value(attack["wins"][reward], True) for reward in rewards)
        about = f"{_text(name)}<br/><small>{_text(attack['about'])}</small>"
        rows.append([about, str(attack["pairs"]), reach, *cells])
    yield "<h2>Attacks</h2>"
    yield (
        "<p>How often the original beats the attacked caption, with its 95 % interval: .5 is "
        "chance, .9 is wanted before any training. In reach: share of the attacked captions that "
        "the policy finds at most 10 nats less likely than the original, so that training will "
        "come upon them. A swapped word or a neighbour's caption may be right after all; only "
        "pairs count in which the held-out scorer and the frozen policy prefer the original.</p>"
    )
    yield _table(["attack", "pairs", "in reach", *map(_name, rewards)], rows)


def _controls(result: Mapping[str, Any]) -> Iterable[str]:
    names = ["sum", *result["rewards"]]
    order = result["order"]
    rows = [
        [title, *(_value(values.get(n), rate) for n in names)]
        for title, values, rate in control_rows(result)
    ]
    yield "<h2>What the rewards go by</h2>"
    yield (
        "<p>To agree and to go with length are rank correlations within the captions of one image, "
        "averaged over images. Moved by mild changes: the spread of a caption's scores under crops "
        "and light, by the spread over captions; near 1 it is noise.</p>"
    )
    yield _table(["", *map(_name, names)], rows)
    judges = [
        [_text(kind), *(_value(rates[judge], True) for judge in ("reward", "heldout", "policy"))]
        for kind, rates in result["trust"].items()
    ]
    yield "<h2>Who can be trusted</h2>"
    yield "<p>How often each is right about a swapped word where the two others agree.</p>"
    yield _table(["swapped", "weighted sum", "held-out scorer", "frozen policy"], judges)
    if order["between"]:
        yield "<h2>Rewards that say the same</h2>"
        pairs = ([_text(p).replace("_", " "), _value(v)] for p, v in order["between"].items())
        yield _table(["pair", "rank correlation"], pairs)


def _headroom(result: Mapping[str, Any]) -> Iterable[str]:
    headroom, truth = result["headroom"], result.get("truth")
    rows = [["what the base says now", _value(headroom["greedy"])]]
    rows += [[f"picked from {_text(n)}", _value(value)] for n, value in headroom["best_of"].items()]
    rows += [["the pick's gain over now", _value(headroom["gain_over_greedy"])]]
    rows += [["the most that could be gained", _value(headroom["ceiling"])]]
    yield "<h2>What there is to gain</h2>"
    yield "<p>Held-out score of the caption that the weighted sum picks from n samples.</p>"
    yield _table(["", "held-out score"], rows)
    if truth:
        kinds = ("f1_greedy", "f1_mean", "f1_picked", "f1_best")
        labels = ("now", "mean sample", "picked from 8", "best of 8 there is")
        rows = [[n, _value(truth[k])] for n, k in zip(labels, kinds, strict=True)]
        yield "<p>These are drawn scenes. Their truth, which no reward and no verdict has seen:</p>"
        yield _table(["", "true F1"], rows)


def _examples(result: Mapping[str, Any], load: Callable[[str], Image]) -> Iterable[str]:
    if not result["worst"]:
        return
    yield "<h2>Where the weighted sum was fooled most</h2>"
    yield "<p>In brackets the weighted sum, beside the other captions of the image.</p>"
    figures = []
    for example in result["worst"]:
        better, worse = example["sum"]
        scores = ", ".join(
            f"{_name(n)} {_score(b)} → {_score(w)}" for n, (b, w) in example["scores"].items()
        )
        figures.append(
            f'<figure><img src="{_data(load(example["image_id"]))}" '
            f'alt="{_text(example["image_id"])}"/><figcaption><b>{_text(example["attack"])}</b>'
            f"<span>{_text(example['original'])} <small>({better:+.2f})</small></span>"
            f'<span class="fail">{_text(example["attacked"]) or "(empty)"} '
            f"<small>({worse:+.2f})</small></span><small>{scores}</small></figcaption></figure>"
        )
    yield f'<div class="examples">{"".join(figures)}</div>'


def _score(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def _data(image: Image) -> str:
    """The image as a data URI, no side longer than THUMB."""
    small = image.copy()
    small.thumbnail((THUMB, THUMB))
    file = BytesIO()
    small.save(file, "WEBP", quality=82)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
