"""The report: what is on the page, what is named as missing, how large it gets, what it escapes."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from vizer_rl import cli
from vizer_rl.errors import UNPRINTABLE, UserError, printable
from vizer_rl.evaluation.report import rows as report_rows
from vizer_rl.evaluation.report.html import document, number, picture
from vizer_rl.evaluation.report.report import report, write_report
from vizer_rl.evaluation.report.run_files import read_run_files
from vizer_rl.evaluation.tables import PlainConsole

from ..hostile import CAPTIONS
from ..run_directories import jsonl, make_run


class Page(HTMLParser):
    """Elements, attributes and text of a page, and the data of its script."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.attributes, self.text, self.source = [], [], "", html
        self.feed(html)
        block = re.search(r'<script type="application/json" id="data">(.*?)</script>', html)
        self.data = json.loads(block[1])

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return make_run(folder / "mine", folder / "images")


@pytest.fixture(scope="module")
def page(directory):
    return Page(report([read_run_files(directory)]))


def copied(directory, tmp_path, **files):
    """The same run with other files: None takes one away."""
    copy = tmp_path / directory.name
    copy.mkdir()
    for path in directory.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    for name, content in files.items():
        path = copy / name.replace("_", ".")
        path.write_text(content) if content is not None else path.unlink()
    return copy


def test_the_page_shows_result_controls_audit_cost_and_commands(page):
    for part in (
        *("Not shown to beat the controls", "Not better throughout", "best of 8 samples"),
        *("held-out score", "metric to come", "These may win.", "shuffled words", "tied 0.07"),
        *(".venv/bin/vizer-rl report --run mine", "wandb sync runs/x/wandb/y", "files left out"),
    ):
        assert part in page.text, part
    assert "Not on this page" not in page.text


def test_every_command_is_one_that_the_command_line_takes(page):
    commands = re.findall(r"<code>\.venv/bin/vizer-rl ([^<]*)</code>", page.source)
    assert len(commands) == 3
    for command in commands:
        cli.parse(command.split())


def test_the_script_gets_curves_alarms_and_captions(page):
    run = page.data["runs"][0]
    assert run["series"]["heldout/score"][0] == [1, 10, 20, 30, 40, 50, 60]
    assert run["kept"] == 40
    assert run["alarms"] == [
        [60, "reward rose 1.2 sd while the held-out scorer fell 0.4 sd since step 40"]
    ]
    assert [title for title, _ in page.data["groups"]] == [
        *("Training", "Each reward, raw", "All other keys")
    ]
    keys = [key for _, group in page.data["groups"] for key, _, _ in group]
    assert len(keys) == len(set(keys)) == len(run["series"])
    card = run["rows"][0]
    assert card["trained_doubtful"] == [[1, "small"]]
    assert card["rewards"]["self_retrieval"] == [-2.0, -1.0]
    assert card["rewards"]["gone"] == [None, None]
    assert list(card["scores"]) == ["score"]
    assert card["controls"]["best of 8 samples"] == {"caption": "one red disc", "score": 0.3}


def test_each_picture_is_on_the_page_once(page, directory, tmp_path):
    other = make_run(tmp_path / "other", directory.parent / "images", count=40)
    both = Page(report([read_run_files(directory), read_run_files(other)]))
    assert len(page.data["pictures"]) == 30
    assert len(both.data["pictures"]) == 40
    assert [r["picture"] for r in both.data["runs"][1]["rows"]][:30] == [
        r["picture"] for r in both.data["runs"][0]["rows"]
    ]


def test_a_source_is_opened_once_for_all_its_pictures(directory, monkeypatch):
    calls, real = [], report_rows.reopen_images

    def reopen(*args):
        calls.append(args)
        return real(*args)

    monkeypatch.setattr(report_rows, "reopen_images", reopen)
    run = read_run_files(directory)
    assert len(report_rows.read_pictures([run], [run.captions])[0]) == 30
    assert calls == [(run.images, [])]


def test_several_runs_are_paired_image_by_image(directory, tmp_path):
    better = make_run(tmp_path / "better", directory.parent / "images", gain=0.3)
    text = Page(report([read_run_files(directory), read_run_files(better)])).text
    assert "better is better than mine" in text
    assert "+0.133 [" in text  # 0.2 of two in three
    assert "better − mine, paired on 30 images" in text
    elsewhere = make_run(tmp_path / "elsewhere", tmp_path / "other images", gain=0.3)
    text = Page(report([read_run_files(directory), read_run_files(elsewhere)])).text
    assert "elsewhere cannot be compared with mine" in text


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"eval_json": None}, "Result: eval.json is not there."),
        ({"eval_json": '{"n_images": 3}'}, "Result: eval.json cannot be used: base: Field"),
        ({"eval_json": "[1"}, "Result: eval.json cannot be used: Expecting"),
        ({"config_yaml": "family: [", "wandb_json": None}, "Settings: .* is not YAML: line 1"),
        ({"metrics_jsonl": '{"step": 1, "reward": 2}\n{"step": 2, "rew'},
         r"Curves: 1 of 2 lines .* \(the first is line 2: half-written\)"),
        ({"captions_jsonl": '{"id": 1}\n{"image_id": "0000.png", "base": "a", "trained": "b"}\n'},
         r"Captions: 1 of 2 lines .* \(the first is line 1: cut, changed or of another version\)"),
        ({"heldout_json": '{"source": "/nowhere"}'},
         "Pictures: the folder of images '/nowhere' is not there"),
        ({"captions_jsonl": '{"image_id": "../x.png", "base": "a", "trained": "b"}'},
         r"Pictures: 1 of 1 in .* cannot be read; the first is \.\./x\.png"),
        ({"audit_json": "{}"}, "Audit: audit.json cannot be used: images: Field required"),
        ({"alarms_jsonl": "x"}, "alarms.jsonl: 1 of 1 lines"),
    ],
)  # fmt: skip
def test_what_is_missing_or_damaged_is_named_and_the_rest_is_shown(
    directory, tmp_path, files, sentence
):
    read = Page(report([read_run_files(copied(directory, tmp_path, **files))]))
    assert re.search(sentence, read.text)
    assert "Not on this page" in read.text
    assert "how mine was trained" in read.text


def test_what_evaluation_left_out_is_named(directory, tmp_path):
    left_out = json.loads((directory / "eval.json").read_text())
    content = json.dumps(left_out | {"left_out": ["Facts are not scored, because x is gone."]})
    run = read_run_files(copied(directory, tmp_path, eval_json=content))
    assert run.left_out == ["Facts are not scored, because x is gone."]


def test_a_directory_without_anything_of_a_run_is_one_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "runs" / "empty").mkdir(parents=True)
    with pytest.raises(UserError, match="holds nothing of a run"):
        read_run_files(tmp_path / "runs" / "empty")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", "--run", "emty"]) == 2
    assert "nearest: runs/empty" in capsys.readouterr().err


def test_the_command_writes_one_page_beside_the_first_run(directory, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "300")
    other = copied(directory, tmp_path, audit_json=None).rename(tmp_path / "other")
    for _ in range(2):
        assert not cli.main(["report", "--run", f"{other}/", "--run", f"{directory}/"])
    assert (other / "report-with-mine.html").stat().st_size > 10_000
    output = capsys.readouterr().out
    assert "Not in the report of other: Audit: audit.json is not there." in output
    assert re.search(r"Report: .*report-with-mine\.html \(0\.\d MB\)", output)


def photo(rng):
    """Something that compresses as badly as a photo of leaves."""
    coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((320, 240))
    fine = Image.fromarray(rng.integers(0, 256, (240, 320, 3), dtype=np.uint8))
    return Image.blend(coarse, fine, 0.25)


def test_a_thousand_pictures_stay_under_eight_megabytes(tmp_path, monkeypatch):
    monkeypatch.setattr(report_rows, "MAX_IMAGES", 1000)
    directory = make_run(tmp_path / "large", tmp_path / "images", count=4)
    rng, row = (
        np.random.default_rng(0),
        json.loads((directory / "captions.jsonl").open().readline()),
    )
    encoded = [picture(photo(rng), report_rows.PICTURE_BYTES // 1000) for _ in range(4)]
    numbers = iter(range(10**6))
    monkeypatch.setattr(report_rows, "_picture", lambda *_: encoded[next(numbers) % 4])
    jsonl(directory / "captions.jsonl", [row | {"image_id": f"{k}.png"} for k in range(1200)])
    html = report([read_run_files(directory)])
    assert len(Page(html).data["pictures"]) == 1000
    assert len(html.encode()) < 8_000_000
    assert "a random 1000 of 1200 images" in html


@pytest.mark.parametrize("size", [(320, 240), (4000, 10), (1, 1), (17, 900)])
def test_a_picture_keeps_to_its_bytes(size):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    assert len(picture(image, 2000)) <= 2000
    assert image.size == size


@pytest.mark.parametrize("name", CAPTIONS)
def test_nothing_of_a_run_is_an_element_or_an_attribute(name, directory, tmp_path, page):
    hostile = CAPTIONS[name][:5000]
    row = {"image_id": hostile, "base": hostile, "trained": hostile, "truth": hostile}
    alarm = {"step": 3, "name": hostile, "sentence": hostile}
    lines = [{"level": hostile, "says": hostile, "do": hostile}]
    audit = {
        "images": 1,
        "rewards": {hostile: 1.0},
        "verdict": {"overall": hostile, "lines": lines},
    }
    estimate = {hostile: {"value": 1.0, "low": 0.5, "high": 2.0}}
    evaluated = {"n_images": 1, "base": estimate, "trained": estimate, "change": estimate}
    evaluated |= {"controls": {hostile: estimate}, "how": {hostile: hostile}}
    evaluated |= {"verdict": {"better": True, "sentences": [hostile]}, "left_out": [hostile]}
    copy = copied(
        directory,
        tmp_path,
        captions_jsonl=json.dumps(row),
        alarms_jsonl=json.dumps(alarm),
        audit_json=json.dumps(audit),
        eval_json=json.dumps(evaluated),
        environment_json=json.dumps({"command": hostile, "device": hostile, hostile: hostile}),
        metrics_jsonl=json.dumps({"step": 1, f"reward/{hostile}": 1.0, hostile: 2.0}),
    )
    read = Page(report([read_run_files(copy)]))
    assert not UNPRINTABLE.search(read.source.replace("\n", ""))
    assert set(read.elements) <= set(page.elements) | {"ul", "li"}
    assert {key for key, _ in read.attributes} <= {key for key, _ in page.attributes}
    assert read.elements.count("script") == 2
    assert read.text.count(printable(hostile)) >= 8
    assert read.data["runs"][0]["rows"][0]["trained"] == printable(hostile)


def test_a_page_allows_its_own_script_and_nothing_from_elsewhere(page):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page.source)[1]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert not re.search(r'(src|href)="(?!#)', page.source)
    assert "Content-Security-Policy" not in document("x", "without a script")


def test_numbers_have_three_or_four_digits():
    numbers = [0.4771, 9.347, 102.4, -0.0001, 0.0, None, float("nan")]
    assert [number(n) for n in numbers] == ["0.477", "9.35", "102", "0.000", "0.000", "–", "–"]
    assert [number(n, True) for n in (0.5, -0.5)] == ["+0.500", "−0.500"]


def test_the_console_gets_where_the_page_is(directory, tmp_path):
    console = PlainConsole(record=True, file=(tmp_path / "out").open("w"), width=300)
    path = write_report([directory], console)
    assert path == directory / "report.html"
    assert str(path) in console.export_text()
    path.unlink()
