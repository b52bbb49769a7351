"""The report in headless Chromium: no error, tabs, search, keyboard and narrow screens work."""

import json
import re
import shutil
import subprocess
from html import unescape

import pytest

from vizer_rl.evaluation.report.report import report
from vizer_rl.evaluation.report.run_files import read_run_files

from ..hostile import CAPTIONS, RAN
from ..run_directories import jsonl, make_images_folder, make_run

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")
# What a reader does; each step's result is written where the test finds it.
CLICKS = """
const result = {};
const shown = () => [...document.querySelectorAll("article h4")].map((h) => h.textContent);
const count = () => document.getElementById("count").textContent;
const press = (name) => [...document.querySelectorAll("button")]
  .find((button) => button.textContent === name).click();
const type = (words) => {
  const field = document.getElementById("query");
  field.value = words;
  field.dispatchEvent(new Event("input"));
};
if (parent === window) {
  result.first = [count(), shown().length];
  press("Show more");
  result.more = [count(), shown().length];
  press("Worst first");
  result.worst = [location.hash, shown()];
  press("Most changed");
  result.changed = shown();
  press("Rewarded, held-out worse");
  result.gamed = shown();
  press("Doubtful");
  result.doubtful = shown();
  result.doubt = document.querySelector("article").textContent;
  press("Random");
  type("RED star");
  result.search = [count(), location.hash, [...new Set([...document.querySelectorAll("article")]
    .map((card) => / red .* star/.test(card.textContent)))]];
  type("no such word");
  result.none = count();
  type("");
  location.hash = "#tab=worst&q=0007.png";
  const chart = [...document.querySelectorAll("#plots svg")].find((s) => s.tabIndex === 0);
  for (const key of ["ArrowRight", "ArrowRight", "ArrowLeft"]) {
    chart.dispatchEvent(new KeyboardEvent("keydown", { key }));
  }
  result.keys = document.getElementById("spoken").textContent;
  document.querySelector("#plots details").open = true;
  result.focusable = [...document.querySelectorAll("[tabindex]")].every((e) => e.tabIndex === 0);
  result.unnamed = [...document.querySelectorAll("img, svg[role=img]")]
    .filter((e) => !(e.alt || e.getAttribute("aria-label"))).length;
  const page = "<!DOCTYPE html>" + document.documentElement.outerHTML;
  setTimeout(() => {
    result.address = shown();
    result.others = document.querySelectorAll("#plots details figure").length;
    const frame = document.createElement("iframe");
    frame.style.width = "360px";
    frame.srcdoc = page;
    frame.onload = () => {
      const root = frame.contentDocument.documentElement;
      result.width = [root.scrollWidth, root.clientWidth];
      const output = document.createElement("pre");
      output.id = "output";
      output.textContent = JSON.stringify(result);
      document.body.append(output);
    };
    document.body.append(frame);
  }, 50);
}
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    return make_run(folder / "mine", folder / "images")


def opened(html, folder, address="", *flags):
    """The document after the script ran, and what the console got."""
    path = folder / "page.html"
    path.write_text(html, encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000", *flags]
    done = subprocess.run(
        [*command, "--dump-dom", path.as_uri() + address],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "</html>" in done.stdout, done.stderr[-300:]
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def open_to_scripts(html):
    """The page without its policy, which would keep a test's script out as well."""
    page, count = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    assert count == 1
    return page


def test_a_reader_can_sort_search_and_read_it(directory, tmp_path):
    html = open_to_scripts(report([read_run_files(directory)]))
    html = html.replace("</body>", f"<script>{CLICKS}</script></body>")
    document, console = opened(html, tmp_path)
    assert not console
    result = json.loads(unescape(re.search(r'<pre id="output">(.*?)</pre>', document)[1]))
    rows = [json.loads(line) for line in (directory / "captions.jsonl").open()]
    lost = [row for k, row in enumerate(rows) if k % 3 == 0]
    assert result["first"] == ["30 of 30 images, 24 shown.", 24]
    assert result["more"] == ["30 of 30 images, 30 shown.", 30]
    worst = sorted(rows, key=lambda row: row["trained_score"])
    assert result["worst"] == ["#tab=worst", [row["image_id"] for row in worst[:24]]]
    assert not {"0006.png", "0013.png"} & set(result["changed"])
    rewarded = {row["image_id"] for row in lost if row["trained_rewards"]["sum"] > 0.1}
    assert result["gamed"] == sorted(rewarded, reverse=True), "the most rewarded first"
    doubtful = {row["image_id"] for row in rows if row["trained_doubtful"]}
    assert set(result["doubtful"]) == doubtful
    assert "doubtfullarge (small?)" in result["doubt"]
    assert result["search"] == ["5 of 30 images, 5 shown.", "#tab=random&q=RED+star", [True]]
    assert result["none"] == "0 of 30 images, 0 shown."
    assert result["address"] == ["0007.png"]
    assert result["keys"].startswith("reward, ")
    assert result["keys"].endswith(" at 1")
    assert result["focusable"]
    assert result["unnamed"] == 0
    assert result["others"] == 6
    assert result["width"][0] <= result["width"][1], "wider than a phone"


def test_it_opens_as_it_is_and_the_address_says_what_it_shows(directory, tmp_path):
    better = make_run(tmp_path / "better", directory.parent / "images", gain=0.3)
    html = report([read_run_files(run) for run in (directory, better)])
    document, console = opened(html, tmp_path, "#tab=doubtful&q=green&run=1")
    assert not console, "the policy lets all of the page in"
    assert re.search(r'<span id="count"[^>]*>\d of 30 images, \d shown\.</span>', document)
    assert '<button type="button" value="doubtful" aria-pressed="true">' in document
    assert re.search(r"<b>mine</b><p>a large green circle", document), "the other run's caption"
    assert re.search(r"<del>circle\.</del>|<ins>large circle", document) or "<ins>" in document
    assert len(re.findall(r'<path class="line r1"', document)) >= 5
    assert "▲1" in document


def test_the_page_of_other_images_opens_with_their_pictures_and_rewards(directory, tmp_path):
    folder = make_images_folder(directory, directory.parent / "images")
    document, console = opened(report([read_run_files(folder)]), tmp_path)
    assert not console
    assert "<h1>mine on images</h1>" in document
    assert "5 of 5 images, 5 shown." in document
    assert document.count('src="data:image/webp;base64,') == 5
    assert document.count('<th scope="row">reward, weighted</th>') == 5
    assert re.search(r'value="gamed"(?! disabled)', document)


def test_a_browser_runs_nothing_of_a_run(directory, tmp_path):
    everything = "\n".join(CAPTIONS[name] for name in CAPTIONS if name != "long")
    row = {"image_id": "0000.png", "base": everything, "trained": CAPTIONS["html"] + " x"}
    row |= {"truth": everything, "base_score": 0.1, "trained_score": 0.2}
    row |= {"base_rewards": {everything: 1.0}, "trained_rewards": {everything: 2.0}}
    hostile = make_run(tmp_path / "hostile", tmp_path / "images", count=1)
    jsonl(hostile / "captions.jsonl", [row])
    jsonl(hostile / "metrics.jsonl", [{"step": k, CAPTIONS["html"]: k} for k in (1, 2)])
    alarm = {"step": 1, "name": "x", "sentence": everything}
    jsonl(hostile / "alarms.jsonl", [alarm])
    document, console = opened(open_to_scripts(report([read_run_files(hostile)])), tmp_path)
    assert not console
    root = re.search(r"<html[^>]*>", document)[0]
    assert "data-ran" not in root
    assert "&lt;script&gt;" in document
    ran, _ = opened(f"<body><script>{RAN}</script></body>", tmp_path)
    assert "data-ran" in re.search(r"<html[^>]*>", ran)[0], "a script would have run"
