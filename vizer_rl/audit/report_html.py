"""The HTML report of an audit: verdict, tables, and the worst examples with their images.

Self-contained: images are embedded, no script, nothing is fetched; light and dark by the reader's
setting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from PIL.Image import Image

from ..evaluation.report.html import document, findings, picture, table, text
from .report_console import SUMMARY, Row, control_rows, together_rows
from .thresholds import CHANCE, MIN_WIN_RATE, SHOWN_TIES

JUDGES = ("weighted sum", "held-out scorer", "policy, likelihood", "policy, certainty")
CSS = """
.examples { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); }
figure img { width: 100%; aspect-ratio: 4 / 3; object-fit: contain; display: block;
  background: var(--line); }
figcaption { padding: .8rem 1rem 1rem; font-size: .9rem; }
figcaption b { display: block; font-size: .8rem; color: var(--soft); font-weight: 600; }
figcaption span { display: block; margin: .35rem 0; }
figcaption small { color: var(--soft); }
td small.number { display: block; white-space: nowrap; }
"""


def page(result: Mapping[str, Any], load: Callable[[str], Image]) -> str:
    """The page of an audit; `load` gives the image of an id."""
    overall, run = result["verdict"]["overall"], text(result["run"])
    body = [
        f'<h1>Audit of {run}: <span class="{overall}">{overall}</span></h1>',
        f"<p>{SUMMARY[overall].capitalize()}. {_sample(result)}</p>",
        findings(result["verdict"]["lines"]),
    ]
    if "attacks" in result:
        body += [*_attacks(result), *_controls(result), *_examples(result, load)]
    body += _headroom(result)
    return document(f"Audit of {result['run']}: {overall}", "\n".join(body), CSS)


def _sample(result: Mapping[str, Any]) -> str:
    return (
        f"{result['images']} images, {result['captions_per_image']} captions of each from the "
        f"frozen policy at temperature {result['temperature']:g}; no label was used. Attacked is, "
        "of each image, the caption that the held-out scorer likes best, if it ends, says "
        f"something and fits its own image better than most others ({result['attacked']} do)."
    )


def _name(reward: str) -> str:
    return "weighted sum" if reward == "sum" else text(reward).replace("_", " ")


def _value(
    value: Mapping[str, Any] | float | None, rate: bool = False, chance: float = CHANCE
) -> str:
    """A number, with interval and ties in small print; coloured where it is a share."""
    if value is None:
        return "–"
    if isinstance(value, int | float):
        return f"{value:.2f}"
    mean = value["value"]
    level = "pass" if mean >= MIN_WIN_RATE else "warn" if mean >= chance else "fail"
    shown = f'<span class="{level}">{mean:.2f}</span>' if rate else f"{mean:.2f}"
    lines = [f"{value['low']:.2f}–{value['high']:.2f}"]
    lines += [f"tied {value['tied']:.2f}"] if value.get("tied", 0.0) > SHOWN_TIES else []
    return shown + "".join(f' <small class="number">{line}</small>' for line in lines)


def _small(label: str, value: Mapping[str, Any] | None) -> str:
    """A value in small print under another one; nothing where there is none."""
    return f' <small class="number">{label} {value["value"]:.2f}</small>' if value else ""


def _cells(rows: Iterable[Row], names: Sequence[str]) -> list[list[str]]:
    return [
        [title, *(_value(values.get(n), share) for n in names)] for title, values, share in rows
    ]


def _attacks(result: Mapping[str, Any]) -> Iterable[str]:
    rewards = ["sum", *result["rewards"]]
    rows = []
    for name, attack in result["attacks"].items():
        reach = "–" if attack["in_reach"] is None else f"{100 * attack['in_reach']:.0f} %"
        blind, chance = attack["text_only"], attack["chance"]
        cells = [
            _value(attack["wins"][reward], True, chance) + _small("text only", blind.get(reward))
            for reward in rewards
        ]
        about = f"{text(name)}<br/><small>{text(attack['about'])}</small>"
        length = _value(attack["length_only"])
        rows.append([about, str(attack["pairs"]), reach, *cells, length])
    yield "<h2>Attacks</h2>"
    yield (
        "<p>How often the original beats the attacked caption, with its 95 % interval: .5 is "
        "chance, .9 is wanted before any training. In reach: share of the attacked captions that "
        "the policy finds at most 10 nats less likely than the original, so that training will "
        "come upon them. A changed word or a neighbour's caption may be right after all; only "
        "pairs count in which the held-out scorer and the frozen policy prefer the original, and "
        "its certainty of words does not prefer the other. A tie is neither right nor wrong. "
        "Text only: the same reward with another image in its place; length only: the caption with "
        "more words. What these get right too, the image did not add. Of five, .2 is chance.</p>"
    )
    yield table(["attack", "pairs", "in reach", *map(_name, rewards), "length only"], rows)
    yield "<h2>All attacks</h2>"
    yield (
        "<p>The original against one attacked caption of its image (.5 is chance), and against "
        "three of them at the same time (.25 is chance), whichever they are.</p>"
    )
    yield table(["", *map(_name, rewards)], _cells(together_rows(result), rewards))
    yield "<h2>What the other judges prefer</h2>"
    yield (
        "<p>How often each prefers the original, of all pairs, contested ones too; the policy by "
        "its likelihood, less that with another image, and by its certainty of the words that have "
        f"a class. {text(result['no_certainty'])}</p>"
    )
    judges = ("heldout", "policy", "certainty")
    rows = [
        [text(name), *(_value(attack["judges"][judge]) for judge in judges)]
        for name, attack in result["attacks"].items()
    ]
    yield table(["attack", *JUDGES[1:]], rows)


def _controls(result: Mapping[str, Any]) -> Iterable[str]:
    names = ["sum", *result["rewards"]]
    order = result["order"]
    yield "<h2>What the rewards go by</h2>"
    yield (
        "<p>To agree and to go with length are rank correlations within the captions of one image, "
        "averaged over images. Moved by mild changes: the spread of a caption's scores under crops "
        "and light, by the spread over captions; near 1 it is noise.</p>"
    )
    yield table(["", *map(_name, names)], _cells(control_rows(result), names))
    kinds = ("reward", "heldout", "policy", "certainty")
    judges = [
        [text(kind), *(_value(rates[judge], True) for judge in kinds)]
        for kind, rates in result["trust"].items()
    ]
    yield "<h2>Who can be trusted</h2>"
    yield (
        "<p>How often each is right about a swapped word where the others agree; the policy's two "
        "are not held to each other.</p>"
    )
    yield table(["swapped", *JUDGES], judges)
    if order["between"]:
        yield "<h2>Rewards that say the same</h2>"
        pairs = ([text(p).replace("_", " "), _value(v)] for p, v in order["between"].items())
        yield table(["pair", "rank correlation"], pairs)


def _headroom(result: Mapping[str, Any]) -> Iterable[str]:
    headroom, truth = result["headroom"], result.get("truth")
    rows = [["what the base says now", _value(headroom["greedy"])]]
    rows += [[f"picked from {text(n)}", _value(value)] for n, value in headroom["best_of"].items()]
    rows += [["the pick's gain over now", _value(headroom["gain_over_greedy"])]]
    rows += [["the most that could be gained", _value(headroom["ceiling"])]]
    yield "<h2>What there is to gain</h2>"
    yield "<p>Held-out score of the caption that the weighted sum picks from n samples.</p>"
    yield table(["", "held-out score"], rows)
    if doubtful := headroom.get("doubtful"):
        rows = [[n, _value(doubtful[k])] for n, k in (("now", "greedy"), ("picked", "picked"))]
        yield "<p>The dial asks for less, and a held-out score falls by that. Doubtful words:</p>"
        yield table(["", "share of doubtful words"], rows)
    if truth:
        kinds = ("f1_greedy", "f1_mean", "f1_picked", "f1_best")
        labels = ("now", "mean sample", "picked from 8", "best of 8 there is")
        rows = [[n, _value(truth[k])] for n, k in zip(labels, kinds, strict=True)]
        yield "<p>These are drawn scenes. Their truth, which no reward and no verdict has seen:</p>"
        yield table(["", "true F1"], rows)


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
            f'<figure><img src="data:image/webp;base64,{picture(load(example["image_id"]))}" '
            f'alt="{text(example["image_id"])}"/><figcaption><b>{text(example["attack"])}</b>'
            f"<span>{text(example['original'])} <small>({better:+.2f})</small></span>"
            f'<span class="fail">{text(example["attacked"]) or "(empty)"} '
            f"<small>({worse:+.2f})</small></span><small>{scores}</small></figcaption></figure>"
        )
    yield f'<div class="examples">{"".join(figures)}</div>'


def _score(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
