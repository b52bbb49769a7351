"""Scenes: seeded, in bounds, true to their captions; web captions biased as they should be."""

import json
import math
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest

from experiments.embedded import web
from vizer_rl.data import scenes as draw
from vizer_rl.data.scenes import SIDE, Scene, Thing, render, sample
from vizer_rl.evaluation.metrics.scene_facts import facts


@pytest.fixture(scope="module")
def scenes():
    return [sample(seed) for seed in range(600)]


def test_a_seed_is_a_scene_and_its_pixels(scenes):
    assert sample(7) == sample(7)
    assert np.array_equal(np.asarray(render(sample(7))), np.asarray(render(sample(7))))
    assert len({s.caption for s in scenes}) > 400
    assert render(scenes[0]).size == (SIDE, SIDE)
    assert render(scenes[0]).mode == "RGB"


def test_every_value_occurs_about_as_often_as_another(scenes):
    things = [o for s in scenes for o in s.objects]
    for attribute, values in web.POOLS.items():
        counts = Counter(getattr(o, attribute) for o in things)
        assert set(counts) == set(values)
        assert min(counts.values()) > 0.6 * len(things) / len(values)
    assert set(Counter(len(s.objects) for s in scenes)) == {1, 2, 3}
    assert {s.relation for s in scenes} == {None, *draw.RELATIONS}


def test_objects_are_whole_apart_and_large_enough(scenes):
    for scene in scenes:
        for thing in scene.objects:
            assert thing.r >= 9
            assert thing.r < thing.x < SIDE - thing.r
            assert thing.r < thing.y < SIDE - thing.r
        for i, a in enumerate(scene.objects):
            for j, b in enumerate(scene.objects[:i]):
                inside = scene.relation == "inside" and (j, i) == (0, 1)
                gap = math.hypot(a.x - b.x, a.y - b.y) - a.r - b.r
                assert (gap < 0) if inside else (gap > 0)


def test_the_relation_holds_in_the_picture(scenes):
    for scene in scenes:
        if scene.relation:
            one, other = asdict(scene.objects[0]), asdict(scene.objects[1])
            assert facts.holds(one, scene.relation, other)
            assert not facts.holds(other, scene.relation, one)


def test_colours_are_where_the_truth_says():
    for name, rgb in draw.COLOURS.items():
        thing = Thing("square", name, "large", "solid", 48, 48, 20)
        pixels = np.asarray(render(Scene((thing,), None, 1, 1)), float)
        assert np.abs(pixels[40:57, 40:57].mean((0, 1)) - rgb).max() < draw.COLOUR_DRIFT + 3
        striped = np.asarray(render(Scene((replace(thing, fill="striped"),), None, 1, 1)), float)
        across = [p[40:57, 40:57].std((0, 1)).max() for p in (striped, pixels)]
        assert across[0] > 1.5 * across[1]


def test_truth_lies_beside_the_images_not_among_them(tmp_path):
    images = draw.write(tmp_path, 5, 3)
    assert sorted(p.name for p in images.iterdir()) == ["0000005.png", "0000006.png", "0000007.png"]
    truth = json.loads((tmp_path / "truth" / "scenes.json").read_text())
    assert truth["0000006.png"]["caption"] == sample(6).caption
    assert images not in (tmp_path / "truth").parents
    before = (images / "0000005.png").stat().st_mtime_ns
    draw.write(tmp_path, 5, 3)
    assert (images / "0000005.png").stat().st_mtime_ns == before


def test_scenes_of_another_version_are_drawn_anew(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(draw, "NOISE", 2)
        images = draw.write(tmp_path, 5, 2)
    before = [path.read_bytes() for path in sorted(images.iterdir())]
    draw.write(tmp_path, 5, 2)
    after = [path.read_bytes() for path in sorted(images.iterdir())]
    assert all(a != b for a, b in zip(before, after, strict=True))


def test_true_captions_are_true_and_whole_ones_complete(scenes):
    rng = np.random.default_rng(0)
    for scene in scenes[:200]:
        assert facts.score(scene.caption, scene).f1 == 1.0
        assert not facts.score(web.true_caption(scene, rng), scene).hallucinated
        assert web.describe(scene, web.TRUE_WHOLE, rng) == scene.caption


def test_web_captions_are_terse_and_biased_but_know_better(scenes):
    rng = np.random.default_rng(0)
    captions = [web.web_caption(s, rng) for s in scenes]
    scores = [facts.score(c, s) for c, s in zip(captions, scenes, strict=True)]
    assert 0.25 < np.mean([s.f1 for s in scores]) < 0.6
    assert 0.15 < np.mean([s.hallucinated for s in scores]) < 0.5
    assert np.mean([s.words for s in scores]) < 0.75 * np.mean(
        [len(s.caption.split()) for s in scenes]
    )
    assert 0.05 < np.mean([s.f1 > 0.9 for s in scores]) < 0.3


@pytest.mark.parametrize("attribute", [*web.POOLS, "relation"])
def test_a_swapped_scene_differs_in_that_alone(attribute, scenes):
    rng = np.random.default_rng(0)
    for scene in [s for s in scenes if s.relation][:100]:
        others = web.swapped(scene, attribute, rng)
        assert len(others) == len(web.POOLS.get(attribute, "ab")) - 1
        assert len({scene.caption, *(other.caption for other in others)}) == len(others) + 1
        assert all(facts.score(other.caption, scene).hallucinated for other in others)


def test_the_web_tells_large_objects_first_and_turns_the_relation(scenes):
    assert any(web.salient(scene).relation not in (None, scene.relation) for scene in scenes)
    for scene in scenes:
        first = web.salient(scene)
        assert sorted(first.objects, key=str) == sorted(scene.objects, key=str)
        assert "large" not in [o.size for o in first.objects] or first.objects[0].size == "large"
        result = facts.score(first.caption, scene)
        assert not result.hallucinated
        assert result.recall == 1 or first.relation is None
