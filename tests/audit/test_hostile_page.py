"""The audit's page with hostile captions: neither a parser nor a browser runs any of it."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from PIL import Image

from vizer_rl.audit.report_html import page
from vizer_rl.errors import UNPRINTABLE, printable

from ..hostile import CAPTIONS, RAN

pytestmark = pytest.mark.faults

RATE = {"value": 0.5, "low": 0.4, "high": 0.6, "tied": 0.2}
ELEMENTS = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "ul", "li", "b"}
ELEMENTS |= {"span", "small", "div", "table", "thead", "tbody", "tr", "th", "td", "br"}
ELEMENTS |= {"figure", "img", "figcaption"}
ATTRIBUTES = {"lang", "charset", "name", "content", "class", "src", "alt"}


class Page(HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.attributes, self.text = set(), [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.add(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text.append(data)


def result(text):
    """An audit in which every text is this one."""
    rates = {"sum": RATE, text: RATE}
    attack = {"wins": rates, "pairs": 1, "in_reach": 0.5, "about": text, "chance": 0.5}
    judges = {"heldout": RATE, "policy": None, "certainty": RATE}
    attack |= {"text_only": rates, "length_only": RATE, "judges": judges}
    example = {"image_id": text, "attack": text, "original": text, "attacked": text}
    example |= {"sum": (0.5, 0.7), "scores": {text: (0.1, 0.2)}}
    line = {"level": "fail", "about": text, "says": text, "do": text}
    return {
        "run": text,
        "images": 1,
        "captions_per_image": 8,
        "temperature": 1.0,
        "attacked": 1,
        "rewards": {text: 1.0},
        "verdict": {"overall": "fail", "lines": [line]},
        "attacks": {text: attack},
        "worst": [example],
        "trust": {text: {"reward": RATE, **judges}},
        "together": {"one of two": rates},
        "no_certainty": text,
        "controls": {"other": rates},
        "order": {"heldout": rates, "length": rates, "tied": rates, "between": {text: RATE}},
        "milliseconds": {text: 1.0},
        "headroom": {
            "greedy": None,
            "best_of": {text: None},
            "gain_over_greedy": None,
            "ceiling": None,
        },
    }


def picture(_):
    return Image.new("RGB", (8, 8), "red")


@pytest.mark.parametrize("name", CAPTIONS)
def test_nothing_of_a_caption_is_an_element_or_an_attribute(name, tmp_path):
    caption = CAPTIONS[name]
    html = page(result(caption), picture)
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    assert not UNPRINTABLE.search(html.replace("\n", ""))
    read = Page(html)
    assert read.elements <= ELEMENTS
    assert {key for key, _ in read.attributes} <= ATTRIBUTES
    assert ("alt", printable(caption)) in read.attributes
    assert "".join(read.text).count(printable(caption)) >= 6
    sources = [value for key, value in read.attributes if key == "src"]
    assert all(re.fullmatch(r"data:image/webp;base64,[\w+/=]+", source) for source in sources)


def test_a_browser_runs_nothing_of_a_caption(tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium on this machine")

    def loaded(html):
        path = tmp_path / "page.html"
        path.write_text(html, encoding="utf-8")
        flags = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'b'}")
        done = subprocess.run(
            [browser, *flags, "--dump-dom", path.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "</html>" in done.stdout, done.stderr[-300:]
        return Page(done.stdout)

    assert ("data-ran", "1") in loaded(f"<body><script>{RAN}</script></body>").attributes
    everything = "\n".join(CAPTIONS[name] for name in CAPTIONS if name != "long")
    read = loaded(page(result(everything), picture))
    assert read.elements <= ELEMENTS
    assert "data-ran" not in {key for key, _ in read.attributes}
    assert "<script>" in "".join(read.text)
