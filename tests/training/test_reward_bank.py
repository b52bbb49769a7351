"""Bank of training images: one decoding each, none on a second start, progress shown."""

from collections import Counter

import pytest
import torch
from PIL import Image
from rich.console import Console

from rewards.lib.images import image_hash
from vizer_rl.data.sources import ImageFolder
from vizer_rl.errors import ImageError
from vizer_rl.policy.captioner import Caption
from vizer_rl.scoring import clip
from vizer_rl.training import reward_bank

N = 12


class Decoder:
    """Counts what is decoded of a folder."""

    def __init__(self, folder):
        self.folder, self.counts = folder, Counter()
        self.ids, self.identity = folder.ids, folder.identity

    def load(self, image_id):
        self.counts[image_id] += 1
        return self.folder.load(image_id)


class Functions:
    """Stands for RewardFunctions."""

    def batch(self, ids, images, captions, tokens):
        return list(ids), list(captions)


@pytest.fixture
def decoder(tmp_path, monkeypatch):
    monkeypatch.setattr(clip, "STORE_MIN", 8)
    (tmp_path / "images").mkdir()
    for k in range(N):
        Image.new("RGB", (60, 40), (20 * k, 10, 0)).save(tmp_path / "images" / f"{k:02}.png")
    return Decoder(ImageFolder.index(tmp_path / "images"))


def start(decoder, tmp_path):
    """What a start does: the bank, its captions, the scorer's features of all its images."""
    decoder.counts.clear()
    captions = Counter()

    def sample(images):
        captions["sampled"] += 1
        return [Caption(str(image.getpixel((0, 0))[0]), [1]) for image in images]

    bank = reward_bank.make_bank(decoder, Functions(), tmp_path / "cache", 0, ["key"], sample)
    encoder = clip.OpenClip("embedded:a", torch.device("cpu"), store=tmp_path / "cache")
    return bank, encoder.image_features(bank.image_ids, bank.images), captions["sampled"]


def test_a_second_start_decodes_nothing_and_gives_the_same(decoder, tmp_path):
    first, features, sampled = start(decoder, tmp_path)
    assert sampled == 1
    assert decoder.counts == dict.fromkeys(decoder.ids, 2)
    second, again, sampled = start(decoder, tmp_path)
    assert sampled == 0
    assert not decoder.counts
    assert second.sample == first.sample
    assert torch.equal(again, features)

    plain = clip.OpenClip("embedded:a", torch.device("cpu"))
    images = [decoder.folder.load(i) for i in decoder.ids]
    assert torch.equal(plain.image_features(decoder.ids, images), features)


def test_a_changed_file_alone_is_encoded_anew(decoder, tmp_path):
    _, features, _ = start(decoder, tmp_path)
    changed = decoder.folder.root / decoder.ids[3]
    Image.new("RGB", (61, 40), "white").save(changed)
    decoder.folder = ImageFolder.index(decoder.folder.root)
    _, again, sampled = start(decoder, tmp_path)
    assert sampled == 1
    assert decoder.counts[decoder.ids[3]] == 2
    assert all(decoder.counts[i] == 1 for i in decoder.ids if i != decoder.ids[3])  # captions
    assert [k for k in range(N) if not torch.equal(again[k], features[k])] == [3]


def test_what_was_encoded_before_a_break_is_kept(decoder, tmp_path, monkeypatch):
    monkeypatch.setattr(clip, "BATCH", 4)
    broken = decoder.folder.root / decoder.ids[2]
    good = broken.read_bytes()
    broken.write_bytes(b"no image")
    encoder = clip.OpenClip("embedded:a", torch.device("cpu"), store=tmp_path / "cache")
    lazy = reward_bank.LazyImages(decoder.load, decoder.ids, identity=decoder.identity)
    with pytest.raises(ImageError, match=r"Cannot use image .*02\.png': not an image"):
        encoder.image_features(decoder.ids, lazy)
    broken.write_bytes(good)
    decoder.folder = ImageFolder.index(decoder.folder.root)
    decoder.counts.clear()
    encoder = clip.OpenClip("embedded:a", torch.device("cpu"), store=tmp_path / "cache")
    assert encoder.image_features(decoder.ids, lazy).shape[0] == N
    assert sorted(decoder.counts) == decoder.ids[:4]  # two batches, the last ids first, were kept


def test_images_without_a_file_are_named_by_their_pixels(decoder, tmp_path):
    images = [decoder.folder.load(i) for i in decoder.ids]
    assert clip.image_names(images, [2, 0]) == [image_hash(images[2]), image_hash(images[0])]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_bar_or_lines(terminal, monkeypatch, capsys):
    console = Console(force_terminal=terminal, width=80)
    monkeypatch.setattr(reward_bank, "Console", lambda: console)
    monkeypatch.setattr(reward_bank, "LINE_SECONDS", 0.0)
    total = reward_bank.SHOWN
    assert list(reward_bank.show_progress(iter(range(total)), total)) == list(range(total))
    shown = capsys.readouterr().out
    assert f"{total}/{total}" in shown if terminal else f"bank: {total // 2} of {total}" in shown
    assert list(reward_bank.show_progress(iter(range(3)), 3)) == [0, 1, 2]
    assert not capsys.readouterr().out
