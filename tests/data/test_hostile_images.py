"""Hostile images: each ends in pixels or in a reason, soon, in bounded memory, leaving no trace."""

import json
import resource
import time
from contextlib import suppress

import pytest
from PIL import Image

from vizer_rl import cli
from vizer_rl.data.decode import decode
from vizer_rl.data.sources import ImageFolder, find_files
from vizer_rl.errors import ImageError

from ..conftest import REPO, TINY
from ..hostile import make_corpus, pixels

pytestmark = pytest.mark.faults

MAX_SECONDS, MAX_BYTES = 1.0, 1 << 30


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    count = make_corpus(folder / "corpus")
    assert count >= 200
    return folder / "corpus"


def test_every_file_ends_in_pixels_or_a_reason_within_a_second(corpus):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    slow = {}
    for path in find_files(corpus)[1]:
        start = time.process_time()
        with suppress(ImageError):
            image = decode(path)
            assert (image.mode, image.info) == ("RGB", {})
        seconds = time.process_time() - start
        if seconds > MAX_SECONDS:
            slow[path.name] = seconds
    assert slow == {}
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MAX_BYTES


def test_each_is_an_id_or_skipped_with_its_reason_and_none_is_lost(corpus):
    images = ImageFolder.index(corpus)
    files = find_files(corpus)[1]
    listed = {str(images.root / i) for i in images.ids} | set(images.skipped)
    assert listed == set(map(str, files))
    assert all(images.skipped.values())
    for image_id in images.ids:
        assert min(images.load(image_id).size) >= 2


@pytest.mark.slow
def test_a_hundred_thousand_empty_files_are_told_apart_in_seconds(tmp_path):
    for k in range(100_000):
        (tmp_path / f"{k}.jpg").touch()
    start = time.process_time()
    with pytest.raises(ImageError, match=r"100000 image files found, 100000 skipped.*empty file"):
        ImageFolder.index(tmp_path)
    assert time.process_time() - start < 60


@pytest.mark.slow
def test_a_run_on_them_trains_captions_and_evaluates(command, corpus, workplace, tmp_path, capsys):
    for k in range(24):
        Image.fromarray(pixels(64, 64, k)).save(corpus / f"good {k}.png")
    outside = {p for p in workplace.rglob("*") if "runs" not in p.parts}
    settings = ["name=hostile", f"data.images={corpus}", "data.heldout=4", "monitor.images=2"]
    settings += ["train.num_generations=2", "rewards.self_retrieval.hard=4"]
    file = str(REPO / "experiments" / "smolvlm.yaml")
    assert cli.main(["train", file, *TINY, *settings, "--overwrite"]) == 0
    directory = workplace / "runs" / "hostile"
    skipped = [
        json.loads(x)["path"] for x in (directory / "skipped.jsonl").read_text().splitlines()
    ]
    assert len(skipped) > 80
    assert cli.main(["audit", file, *TINY, *settings]) == 0
    assert cli.main(["evaluate", "--run", "hostile", "--no-controls"]) == 0
    assert cli.main(["caption", str(corpus), "--run", "hostile"]) == 0
    assert "Traceback" not in capsys.readouterr().err
    new = {p for p in workplace.rglob("*") if "runs" not in p.parts} - outside
    assert all(p.is_relative_to(workplace / "data") for p in new)
