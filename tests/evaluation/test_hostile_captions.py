"""Captions as data: hostile text through terminal, jsonl and completion tables, unharmed."""

import io
import json
import re
import time
from types import SimpleNamespace

import pandas
import pytest
import wandb
from rich.console import Console
from transformers import AutoTokenizer

from rewards import CaptionBatch
from vizer_rl import cli
from vizer_rl.algorithms import trl_logs
from vizer_rl.assets import ASSETS
from vizer_rl.audit import report_console
from vizer_rl.errors import UNPRINTABLE, UserError, masked, printable
from vizer_rl.evaluation import caption_images, evaluate, tables
from vizer_rl.evaluation.before_after import Pair, summary
from vizer_rl.files import write_jsonl
from vizer_rl.policy import captioner
from vizer_rl.scoring.reward import Reward
from vizer_rl.training import score

from ..hostile import CAPTIONS
from .evaluated_run import held_out, run

pytestmark = pytest.mark.faults

__all__ = ["run"]  # a fixture
EACH = pytest.mark.parametrize("caption", CAPTIONS.values(), ids=CAPTIONS)
STYLE = re.compile(r"\x1b\[[\d;]*m")  # what rich itself writes


def terminal():
    return tables.PlainConsole(file=io.StringIO(), force_terminal=True, width=80)


def shown(console):
    """What a terminal gets; nothing in it acts but rich's own colours."""
    text = console.file.getvalue() if isinstance(console, Console) else console
    text = STYLE.sub("", text)
    assert not UNPRINTABLE.search(text.replace("\n", ""))
    text.encode()
    return text


def letters(text):
    """A text as it is shown, without its white space, which tables change."""
    return "".join("".join(map(printable, text.split("\n"))).split())


@EACH
def test_what_is_printable_is_plain_and_what_was_plain_stays(caption):
    text = printable(caption)
    assert not UNPRINTABLE.search(text)
    assert (text == caption) == (UNPRINTABLE.search(caption) is None)
    text.encode()


def test_escapes_name_the_character():
    assert printable("\x1b[31m\u202e\ud800é\n") == r"\u001b[31m\u202e\ud800é\u000a"


def test_passwords_of_addresses_are_masked():
    assert masked("no way to http://user:pass@proxy.example:8080/x") == (
        "no way to http://***@proxy.example:8080/x"
    )
    assert masked("mail me@example.org, see https://example.org/@me") == (
        "mail me@example.org, see https://example.org/@me"
    )


def test_jsonl_has_a_line_per_row_and_every_caption_as_it_was(tmp_path):
    path = tmp_path / "captions.jsonl"
    rows = [{"image_id": name, "base": caption} for name, caption in CAPTIONS.items()]
    write_jsonl(path, rows)
    text = path.read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] == rows  # splits on U+2028 too
    assert not UNPRINTABLE.search(text.replace("\n", ""))
    assert "漢字" in text


@EACH
def test_the_table_of_an_evaluation_shows_a_caption_as_text(caption):
    start, console = time.monotonic(), terminal()
    result = summary([Pair("id", "before", caption, 0.1, 0.2), Pair(caption, "b", "a", 0.1, 0.2)])
    rows = [{"image_id": caption, "base": "before", "trained": caption, "truth": caption}]
    tables.print_evaluation(console, result, rows)
    text = letters(shown(console))
    assert text.count(letters(caption)) >= 3
    assert time.monotonic() - start < 20


@EACH
def test_the_parts_of_a_score_show_a_caption_as_text(caption):
    console = terminal()
    parts = SimpleNamespace(parts=lambda batch: [[(caption, 0.5)]])
    reward = Reward(f"x{caption[:9]}", 1.0, parts)
    scores = {reward.name: [0.5]}
    functions = SimpleNamespace(rewards=[reward], scores=lambda *_: scores, opening="")
    batch = CaptionBatch(["i"], [None], [caption], [range(1)], [[1]], None, None)
    console.print(score._table(functions, batch))
    assert letters(caption[:5]) in letters(shown(console))


def test_a_caption_that_is_not_utf_8_cannot_be_scored(tmp_path):
    path = tmp_path / "a.png"
    path.touch()
    with pytest.raises(UserError, match="not UTF-8"):
        score.score(None, path, CAPTIONS["surrogates"])


@EACH
def test_the_short_audit_shows_what_it_quotes_as_text(caption):
    console = terminal()
    line = {"level": "warn", "about": "x", "says": caption, "do": caption}
    verdict = {"overall": "warn", "lines": [line]}
    report_console.show_short(console, {"verdict": verdict, "images": 1, "seconds": 1.0})
    assert letters(printable(caption[:9])) in letters(shown(console))


def test_evaluation_and_caption_take_whatever_the_policy_writes(run, monkeypatch, capsys):
    """Both commands from end to end, with a policy that writes the corpus."""
    texts = list(CAPTIONS.values())
    sides = iter([texts[:3], texts[5:8], texts[3:6], texts[8:11], texts[6:8], texts[11:13]] * 2)

    def say(*_, **__):
        return [SimpleNamespace(text=text) for text in next(sides)]

    monkeypatch.setattr(captioner, "caption", say)
    evaluate.evaluate(run.directory)
    lines = (run.directory / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["base"] for row in rows] == texts[:8]
    assert [row["trained"] for row in rows] == texts[5:]
    assert json.loads((run.directory / "eval.json").read_text())["n_images"] == 8
    assert "<script>" in shown(capsys.readouterr().out)
    caption_images.caption(run.directory, [run.images])
    text = letters(shown(capsys.readouterr().out))
    assert "\\u001b]0;title" in text
    assert "\\ud800" in text


def test_a_file_name_cannot_forge_a_line(run, capsys):
    name = "x\nvizer_rl: all is well\x1b[2J.png"
    (run.images / name).write_bytes(b"no image")
    held_out(run.directory, run.images, [name, *run.ids], None)
    evaluate.evaluate(run.directory)
    assert "x\\u000avizer_rl: all is well\\u001b[2J.png" in shown(capsys.readouterr().out)


@EACH
def test_errors_show_what_they_quote_as_text(caption, monkeypatch, capsys):
    def refuse(_):
        raise UserError(f"no such thing: {caption} http://user:pass@a.example")

    monkeypatch.setitem(cli.COMMANDS, "evaluate", refuse)
    assert cli.main(["evaluate", "--run", "any"]) == 2
    text = shown(capsys.readouterr().err)
    assert letters(caption) in letters(text)
    assert "pass" not in text


def test_completion_tables_hold_captions_as_they_are(tmp_path):
    texts = [text for name, text in CAPTIONS.items() if name != "surrogates"]
    table = pandas.DataFrame({"step": [1] * len(texts), "completion": texts})
    table.to_parquet(tmp_path / "completions.parquet")
    assert pandas.read_parquet(tmp_path / "completions.parquet")["completion"].tolist() == texts
    assert [row[1] for row in wandb.Table(dataframe=table).data] == texts


@pytest.mark.parametrize("rows_printed", [0, 3, None])
def test_completions_that_trl_prints_are_escaped(rows_printed):
    subject = trl_logs.CompletionTables(True, rows_printed)
    columns = {}
    for name in ("prompt", "completion"):
        columns[name] = trl_logs.deque([{"role": "user", "content": t}] for t in CAPTIONS.values())
    assert subject.due({"loss": 0.0}, 1, columns)
    texts = [text.strip() for text in CAPTIONS.values()]
    expected = texts if rows_printed == 0 else list(map(printable, texts))
    assert list(columns["completion"]) == list(columns["prompt"]) == expected


@pytest.mark.parametrize("family", ["smolvlm", "qwen2vl"])
def test_no_token_decodes_to_a_lone_surrogate(family):
    tokenizer = AutoTokenizer.from_pretrained(str(ASSETS / family))
    for token in range(len(tokenizer)):
        tokenizer.decode([token]).encode()
