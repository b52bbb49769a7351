"""Disk cache: everything that is kept in it, damaged, refused by the disk, written by several."""

import os
import warnings
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from rewards import Bank, make
from rewards.lib import disk_cache
from vizer_rl.data.sources import ImageFolder
from vizer_rl.policy import load
from vizer_rl.policy.captioner import Caption
from vizer_rl.policy.chat import chat_text, messages
from vizer_rl.policy.families import FAMILIES
from vizer_rl.policy.shared_prefix.vision_cache import VisionCache
from vizer_rl.scoring import clip
from vizer_rl.training import reward_bank

from ..faults import FAULTS, flip, refuse
from ..stubs import Stub, batch

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for k in range(3):
        Image.new("RGB", (60, 40), (80 * k, 10, 0)).save(folder / f"{k}.png")
    return ImageFolder.index(folder)


@pytest.fixture(scope="module")
def kinds(pictures):
    """What is kept, by name: a function from a folder to what a run would have of it."""
    images = [pictures.load(i) for i in pictures.ids]
    model, processor = load.load_policy("smolvlm", "embedded", dtype="float32")
    encoder = clip.OpenClip("embedded:a", torch.device("cpu"))

    def vision(folder):
        cache = VisionCache(model, processor, FAMILIES["smolvlm"], folder=folder)
        text = chat_text(processor, messages("Describe."))
        return [prompt.features.tolist() for prompt in cache.prompts(images, [text] * 3)]

    def features(folder):
        encoder.store = folder
        encoder._features.clear()
        return encoder.image_features(pictures.ids, images).tolist()

    def captions(folder):
        torch.manual_seed(0)
        sample = lambda: [Caption(f"{torch.rand(1).item()}", [1, 2])]  # noqa: E731
        return reward_bank._cached(folder / "base-1.captions", sample), torch.rand(1).item()

    def mapper(folder):
        torch.manual_seed(0)
        vectors = torch.randn(40, 6)
        stub = Stub(
            {f"i{k}": v.tolist() for k, v in enumerate(vectors)},
            {f"c{k}": v.tolist() for k, v in enumerate(vectors)},
        )
        sample = batch(stub, [(f"i{k}", f"c{k}") for k in range(40)])
        reward = make("alignment", {"steps": 20})
        reward.prepare(Bank(sample.image_ids, sample.images, sample, folder))
        return list(reward(sample))

    def samples(folder):
        policy = SimpleNamespace(key="key", sample=lambda views, *_: [["a red cat"]] * len(views))
        sample = batch(policy, [(i, "red") for i in pictures.ids])
        reward = make("sample_support", {"samples": 4})
        reward.prepare(Bank(pictures.ids, images, sample, folder))
        return reward.captions

    def decoded(folder):
        return ImageFolder.index(pictures.root, decoded=folder / "decoded.txt").ids

    return {f.__name__: f for f in (vision, features, captions, mapper, samples, decoded)}


KINDS = ("vision", "features", "captions", "mapper", "samples", "decoded")


@pytest.fixture(autouse=True)
def any_number_is_many(monkeypatch):
    monkeypatch.setattr(clip, "STORE_MIN", 1)


def warned(function, folder):
    """What the function gives, and its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = function(folder)
    return result, [str(w.message) for w in caught]


@pytest.mark.parametrize("number", FAULTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_takes_nothing_is_reported_once_and_done_without(
    kind, number, kinds, tmp_path, monkeypatch
):
    whole, _ = warned(kinds[kind], tmp_path / "good")
    folder = tmp_path / "cache"
    refuse(monkeypatch, folder, number)
    result, sentences = warned(kinds[kind], folder)
    assert result == whole
    expected = f"cache {folder} cannot be used ({FAULTS[number]}): this run goes on without it"
    assert sentences == [expected]
    assert warned(kinds[kind], folder) == (whole, [])


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "first byte": lambda path: flip(path, 0),
    "middle": lambda path: flip(path, path.stat().st_size // 2),
    "last byte": lambda path: flip(path, -1),
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "html": lambda path: path.write_bytes(b"<html>\xff502 Bad Gateway</html>"),
}

HARMLESS = {("mapper", "last byte")}  # how long the archive's comment is


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_entry_is_named_and_computed_anew(kind, damage, kinds, tmp_path):
    whole, _ = warned(kinds[kind], tmp_path)
    files = sorted(tmp_path.iterdir())
    for path in files:
        DAMAGE[damage](path)
    result, sentences = warned(kinds[kind], tmp_path)
    assert result == whole
    if (kind, damage) not in HARMLESS and kind != "decoded":  # whose lines are names, no results
        assert len(sentences) == len(files)
        assert all(any(str(p) in s for s in sentences) for p in files)
    assert warned(kinds[kind], tmp_path) == (whole, [])


def test_an_entry_under_another_name_is_none(tmp_path):
    disk_cache.write(tmp_path / "a", b"of a")
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.warns(UserWarning, match="b is computed anew"):
        assert disk_cache.read(tmp_path / "b") is None
    assert not (tmp_path / "b").exists()


def test_a_folder_in_the_place_of_an_entry_is_reported(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.warns(UserWarning, match=r"cannot be used \(Is a directory\)"):
        assert disk_cache.read(tmp_path / "a") is None
    disk_cache.write(tmp_path / "a", b"")
    assert [*tmp_path.iterdir()] == [tmp_path / "a"]


def in_processes(count, work):
    """Run work(number) in so many forked children at once; whether each came to its end."""
    children = []
    for number in range(count):
        if (pid := os.fork()) == 0:
            code = 1
            try:
                torch.set_num_threads(1)
                work(number)
                code = 0
            finally:
                os._exit(code)
        children.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * count


def test_entries_that_several_processes_write_at_once_are_whole(tmp_path):
    path = tmp_path / "entry"

    def work(number):
        warnings.simplefilter("error")
        for _ in range(100):
            disk_cache.write(path, bytes([number]) * 200_000)
            content = disk_cache.read(path)
            assert content is not None
            assert content == content[:1] * 200_000

    assert in_processes(4, work)
    assert len(disk_cache.read(path)) == 200_000
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("kind", KINDS)
def test_two_runs_that_fill_one_cache_have_what_one_alone_has(kind, kinds, tmp_path):
    whole = kinds[kind](tmp_path / "alone")
    names = [path.name for path in (tmp_path / "alone").iterdir()]

    def work(_):
        warnings.simplefilter("error")
        for k in range(3):
            assert kinds[kind](tmp_path / f"shared {k}") == whole

    assert in_processes(2, work)
    for k in range(3):
        assert sorted(p.name for p in (tmp_path / f"shared {k}").iterdir()) == sorted(names)
        assert warned(kinds[kind], tmp_path / f"shared {k}") == (whole, [])
