"""The budget of image tokens holds for every image, and tokens are the features of the tower."""

import random

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from vizer_rl.assets import ASSETS
from vizer_rl.data.decode import MAX_ASPECT
from vizer_rl.data.sources import ImageFolder
from vizer_rl.errors import ImageError, UserError
from vizer_rl.policy.families import FAMILIES
from vizer_rl.policy.image_tokens import bound_images, image_tokens_sentence
from vizer_rl.policy.load import load_policy
from vizer_rl.policy.shared_prefix.vision_cache import VisionCache
from vizer_rl.policy.vision import encode_images, process_images
from vizer_rl.policy.weights_hash import content_key

from ..checkpoints import FOLDERS, PROCESSORS, checkpoint
from ..conftest import FIXTURES

HUB_PIXELS = 12_845_056  # of Qwen2-VL on the hub; the fixture is of a variant with 1,003,520
PHOTOS = [  # width, height: .1 to 12 megapixels, strips, and images to be enlarged
    *((365, 274), (274, 365), (640, 480), (1000, 1000), (1155, 866), (1632, 1224)),
    *((4032, 3024), (3024, 4032), (6000, 2000), (1000, 12000), (3464, 3464)),
    *((10000, 50), (50, 10000), (2000, 10), (10, 2000), (40, 30), (2, 2)),
]
BUDGETS = [("qwen2vl", False, None), ("qwen2vl", False, 200), ("qwen2vl", False, 1000)]
BUDGETS += [("smolvlm", False, None), ("smolvlm", True, None)]
BUDGETS += [("smolvlm", True, n) for n in (64, 319, 320, 700)]

pytestmark = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason="../shared/fixtures (real processors, photographs) is not here"
)


def real_processor(family):
    """The real processor; Qwen2-VL's as on the hub, where the fixture is of another variant."""
    processor = AutoProcessor.from_pretrained(PROCESSORS / FOLDERS[family])
    if family == "qwen2vl":
        processor.image_processor.size["longest_edge"] = HUB_PIXELS
    return processor


@pytest.fixture(scope="module", params=sorted(FOLDERS))
def folder(request, tmp_path_factory):
    """A checkpoint of random tiny weights, with the real processor as on the hub."""
    path = tmp_path_factory.mktemp(request.param)
    checkpoint(request.param, path, real_width=False)
    real_processor(request.param).save_pretrained(path)
    return request.param, str(path)


def processed_tokens(processor, image):
    """How many image tokens the real processor puts into input_ids."""
    (inputs,) = process_images(processor, [image], [str(processor.image_token)])
    return int((inputs["ids"] == processor.image_token_id).sum())


def test_a_photograph_of_12_megapixels_takes_15552_tokens_without_a_budget():
    processor, photo = real_processor("qwen2vl"), Image.new("RGB", (4032, 3024))
    rule = FAMILIES["qwen2vl"].images
    assert processed_tokens(processor, photo) == rule.of_image(processor, 3024, 4032) == 15_552
    bound_images(processor, rule, False, None)
    assert processed_tokens(processor, photo) == rule.of_image(processor, 3024, 4032) <= 512
    assert rule.of_image(processor, 3024, 4032) > 450  # the budget is used


@pytest.mark.parametrize(
    ("splitting", "budget", "photos"),
    [(False, None, PHOTOS[::2]), (True, 320, PHOTOS[1::2]), (True, None, PHOTOS[::3])],
    ids=["default", "budget", "tiles"],
)
def test_image_tokens_are_the_features_of_the_tower(folder, splitting, budget, photos):
    family, path = folder
    model, processor = load_policy(
        family, path, dtype="float32", image_splitting=splitting, max_image_tokens=budget
    )
    rule = FAMILIES[family].images
    one_tile = None if splitting else 64
    bound = budget or {"qwen2vl": 512, "smolvlm": one_tile or 17 * 64}[family]
    for width, height in photos:
        image = Image.new("RGB", (width, height))
        (inputs,) = process_images(processor, [image], [str(processor.image_token)])
        tokens = int((inputs["ids"] == model.config.image_token_id).sum())
        with torch.no_grad():
            ((_, features),) = encode_images(model, [inputs])
        assert len(features) == tokens == rule.of_image(processor, height, width), (width, height)
        assert tokens <= bound, (width, height)


@pytest.mark.parametrize(("family", "splitting", "budget"), BUDGETS)
def test_no_image_exceeds_the_budget(family, splitting, budget):
    """By the processor's own arithmetic, on 20,000 sizes, strips and tiny images among them."""
    processor, rule, rng = real_processor(family), FAMILIES[family].images, random.Random(0)
    bound_images(processor, rule, splitting, budget)
    one_tile = 17 * 64 if splitting else 64
    bound = budget or (512 if family == "qwen2vl" else one_tile)
    largest = 0
    for _ in range(20_000):
        short = round(2 ** rng.uniform(1, 12))
        long = round(short * MAX_ASPECT ** rng.uniform(0, 1))
        upright = rule.of_image(processor, long, short)
        assert upright == rule.of_image(processor, short, long)  # so that EXIF need not be read
        largest = max(largest, upright)
    assert largest <= rule.maximum(processor, bound) <= bound
    assert largest > bound / 2 or (family, budget) == ("smolvlm", 319)  # 5 tiles need 320


@pytest.mark.parametrize("low", [4, 16, 100, 256, 400])
def test_the_maximum_counts_images_that_are_enlarged(low):
    """A checkpoint may ask for a minimum size, which rounding exceeds."""
    processor, rule = real_processor("qwen2vl"), FAMILIES["qwen2vl"].images
    processor.image_processor.size["shortest_edge"] = low * 28**2
    processor.image_processor.size["longest_edge"] = low * 28**2
    rng, largest = random.Random(0), 0
    for _ in range(20_000):
        width = round(2 ** rng.uniform(1, 10))
        height = min(round(width * MAX_ASPECT ** rng.uniform(0, 1)), MAX_ASPECT * width)
        largest = max(largest, rule.of_image(processor, height, width))
    assert 0.85 * rule.maximum(processor, low) <= largest <= rule.maximum(processor, low)


@pytest.mark.parametrize(
    ("family", "splitting", "budget", "smallest", "why"),
    [
        ("qwen2vl", False, 64, 198, "an image 200 times as long as it is wide"),
        ("qwen2vl", False, 197, 198, "an image 200 times as long as it is wide"),
        ("smolvlm", False, 63, 64, "one tile"),
        ("smolvlm", True, 1, 64, "one tile"),
    ],
)
def test_a_budget_that_cannot_be_kept_names_the_smallest(family, splitting, budget, smallest, why):
    processor, rule = real_processor(family), FAMILIES[family].images
    with pytest.raises(UserError) as caught:
        bound_images(processor, rule, splitting, budget)
    assert str(caught.value) == (
        f"policy.max_image_tokens: {budget}; allowed for this model's processor: at least "
        f"{smallest}, the tokens of {why}"
    )
    bound_images(processor, rule, splitting, smallest)


def test_a_budget_is_refused_before_weights_are_fetched(monkeypatch):
    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", None)
    with pytest.raises(UserError, match=r"max_image_tokens: 15; .* at least 16, the tokens of one"):
        load_policy("smolvlm", "embedded", max_image_tokens=15)


def test_a_budget_splits_into_the_tiles_it_holds():
    rule, photo = FAMILIES["smolvlm"].images, (1000, 1000)
    for budget, tiles in [(64, 1), (319, 1), (320, 5), (639, 5), (640, 10), (9999, 17)]:
        processor = real_processor("smolvlm")
        bound_images(processor, rule, True, budget)
        assert rule.of_image(processor, *photo) == tiles * 64
    bound_images(processor, rule, False, 9999)  # without splitting a budget adds no tile
    assert rule.of_image(processor, *photo) == 64


@pytest.mark.parametrize("family", sorted(FOLDERS))
def test_a_budget_only_ever_lowers_what_the_processor_takes(family):
    """The embedded policies and their caches keep their settings, to the letter."""
    own = AutoProcessor.from_pretrained(ASSETS / family)
    _, processor = load_policy(family, "embedded", dtype="float32")
    assert processor.image_processor.to_dict() == own.image_processor.to_dict()
    bound_images(processor, FAMILIES[family].images, False, 100_000)
    assert processor.image_processor.to_dict() == own.image_processor.to_dict()


def test_what_is_kept_on_disk_depends_on_the_budget(folder, tmp_path):
    """The bank's captions are kept under the reference policy's key, features under the cache's."""
    family, path = folder
    keys, image = set(), Image.new("RGB", (1200, 900), "olive")
    for budget in (320, 640):
        model, processor = load_policy(
            family, path, dtype="float32", image_splitting=True, max_image_tokens=budget
        )
        cache = VisionCache(model, processor, FAMILIES[family], folder=tmp_path)
        (prompt,) = cache.prompts([image], [str(processor.image_token)])
        keys.add(content_key(model, processor))
        tokens = FAMILIES[family].images.of_image(processor, 900, 1200)
        assert len(prompt.features) == tokens > budget / 2
    assert len(keys) == 2


def test_an_image_longer_than_the_processor_takes_is_skipped_with_its_reason(tmp_path):
    Image.new("RGB", (2001, 10)).save(tmp_path / "line.png")
    Image.new("RGB", (10, 2000)).save(tmp_path / "strip.png")
    images = ImageFolder.index(tmp_path)
    assert images.ids == ["strip.png"]
    assert images.skipped == {str(tmp_path / "line.png"): "longer than 1:200 (2001 x 10)"}
    with pytest.raises(ImageError, match=r"line\.png': longer than 1:200 \(2001 x 10\)\."):
        images.load("line.png")
    assert processed_tokens(real_processor("qwen2vl"), images.load("strip.png")) > 0


@pytest.mark.parametrize("family", sorted(FOLDERS))
def test_the_sentence_counts_a_folder_by_its_headers(family, tmp_path):
    """Photographs that EXIF turns count as the decoded ones do."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    for name, (width, height) in {"a": (200, 150), "b": (900, 400), "c": (2600, 1300)}.items():
        Image.new("RGB", (width, height)).save(tmp_path / f"{name}.jpg", exif=exif)
    images, processor = ImageFolder.index(tmp_path), real_processor(family)
    rule = FAMILIES[family].images
    bound_images(processor, rule, True, 512)
    assert images.load("b.jpg").size == (400, 900)
    low, median, high = sorted(processed_tokens(processor, images.load(i)) for i in images.ids)
    assert low <= median <= high
    assert image_tokens_sentence(processor, rule, images.sizes()) == (
        f"image tokens: {low} smallest, {median} median, {high} largest of 3 images "
        "(policy.max_image_tokens)"
    )
