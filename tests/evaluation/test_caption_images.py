"""Captions of some images by a run, printed side by side."""

from types import SimpleNamespace

import pytest

from vizer_rl.errors import UserError
from vizer_rl.evaluation.caption_images import caption
from vizer_rl.policy import captioner, load


def test_caption_shows_both_as_they_are(run, capsys, monkeypatch):
    odd = [SimpleNamespace(text="[red] :star:")]
    monkeypatch.setattr(captioner, "caption", lambda *args, **settings: odd)
    caption(run.directory, [run.images / run.ids[1]])
    message = capsys.readouterr().out
    assert run.ids[1] in message
    assert message.count("[red] :star:") == 2


def test_caption_of_missing_files_names_each_and_the_nearest(run, monkeypatch):
    monkeypatch.setattr(load, "load_policy", None)  # not reached
    near = run.images / run.ids[1].replace("png", "jpg")
    with pytest.raises(UserError) as error:
        caption(run.directory, [near, run.images / "100001x.png", run.directory / "adapter"])
    first, second, third = str(error.value).splitlines()
    assert first == f"image '{near}' not found; nearest: {run.images / run.ids[1]}"
    assert second.startswith(f"image '{run.images / '100001x.png'}' not found")
    assert third == f"no image file in '{run.directory / 'adapter'}'"


def captioned(capsys, names):
    """Those of these names that begin a row of what was printed, in its order; all lines of it."""
    lines = capsys.readouterr().out.splitlines()
    return [word for line in lines for word in line.split()[:1] if word in names], lines


def test_caption_takes_files_folders_and_patterns_in_the_order_given(run, capsys):
    more = run.images.parent / "more"
    (more / "deep").mkdir(parents=True)
    (more / "notes.txt").write_text("no image")
    names = ["b.png", "a.png", "deep/c.png"]
    for name, source in zip(names, run.ids, strict=False):
        (more / name).write_bytes((run.images / source).read_bytes())
    pattern = run.images / f"*{run.ids[3][-5:]}"
    sources = [run.images / run.ids[5], more / "b.png", more, pattern, run.images / run.ids[5]]
    caption(run.directory, sources)
    here = run.images.name
    shown = [f"{here}/{run.ids[5]}", *(f"more/{name}" for name in names), f"{here}/{run.ids[3]}"]
    rows, _ = captioned(capsys, [*shown, *names, *run.ids])
    assert rows == shown
    caption(run.directory, [more])
    assert captioned(capsys, names)[0] == ["a.png", "b.png", "deep/c.png"]


def test_one_bad_image_among_many_is_named_and_stops_nothing(run, capsys):
    (run.images / "0.png").write_bytes(b"")
    missing = run.images / "gone.png"
    caption(run.directory, [run.images / run.ids[4], missing, run.images / "0.png", run.images])
    rows, lines = captioned(capsys, ["0.png", "gone.png", *run.ids])
    assert rows == [run.ids[4], *(name for name in run.ids if name != run.ids[4])]
    left_out = [line for line in lines if line.startswith("Left out: ")]
    assert len(left_out) == 2
    assert left_out[0].startswith(f"Left out: image '{missing}' not found")
    assert "0.png" in left_out[1]
