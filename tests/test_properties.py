"""Properties that hold for any input: config, overrides, fact parser, packing layout, sampler."""

from contextlib import suppress
from functools import cache

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vizer_rl.config import overrides
from vizer_rl.config.load import load_run
from vizer_rl.config.schema import Run
from vizer_rl.data.scenes import render, sample
from vizer_rl.errors import ConfigError
from vizer_rl.evaluation.metrics.scene_facts import facts
from vizer_rl.policy import chat, load
from vizer_rl.policy.families import FAMILIES
from vizer_rl.policy.shared_prefix import sampler
from vizer_rl.policy.shared_prefix.attention import PADDING, PROMPT
from vizer_rl.policy.shared_prefix.packing import Prompt, layout
from vizer_rl.policy.shared_prefix.vision_cache import VisionCache

from .conftest import REPO

pytestmark = pytest.mark.faults

FAST = settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FILE = REPO / "experiments" / "smolvlm.yaml"
ALL_WORDS = """a an the two three red blue large small striped solid circle circles square star
above below inside left of right and , . ; not no nothing is are there with it they one plus"""
WORDS = st.sampled_from(ALL_WORDS.split())
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [*Run.model_fields, "train.beta", "policy.lora.r", "rewards.length", "rewards.length.longest"]
)


@FAST
@given(st.binary(max_size=300) | TREES.map(lambda tree: yaml.safe_dump(tree).encode()))
def test_a_run_file_of_any_bytes_is_a_run_or_one_message(tmp_path, content):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as told:
        load_run(path)
    assert str(told.value).startswith(str(path)) or str(path) in str(told.value)


@settings(FAST, max_examples=30)
@given(st.lists(st.tuples(KEYS | st.text(max_size=12), st.text(max_size=20)), max_size=3))
def test_overrides_of_any_text_are_a_run_or_one_message(pairs):
    with suppress(ConfigError):
        run = load_run(FILE, [f"{key}={text}" for key, text in pairs])
        assert Run.model_validate(yaml.safe_load(run.to_yaml())) == run


@FAST
@given(
    st.dictionaries(st.text(max_size=3), TREES, max_size=4),
    st.dictionaries(st.text(max_size=3), TREES, max_size=4),
)
def test_an_overlay_wins_and_leaves_both_as_they_were(base, overlay):
    before = repr(base), repr(overlay)
    merged = overrides.merge(base, overlay)
    assert (repr(base), repr(overlay)) == before
    assert set(merged) == {*base, *overlay}
    assert all(repr(merged[k]) == repr(v) for k, v in base.items() if k not in overlay)
    assert repr(overrides.merge(merged, overlay)) == repr(merged)


@FAST
@given(st.lists(WORDS | st.text(max_size=8), max_size=30).map(" ".join), st.integers(0, 99))
def test_any_caption_has_scores_between_0_and_1(caption, seed):
    score = facts.score(caption, sample(seed))
    assert all(0 <= x <= 1 for x in (score.precision, score.recall, score.f1))
    assert (score.f1 > 0) == (score.precision > 0 and score.recall > 0)


@FAST
@given(st.integers(0, 10_000))
def test_a_true_caption_is_true(seed):
    scene = sample(seed)
    score = facts.score(scene.caption, scene)
    assert (score.precision, score.recall) == (1, 1)


@FAST
@given(st.data())
def test_each_caption_token_has_one_place_behind_its_own_prompt(data):
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    prompts = [
        Prompt(torch.arange(n) + 100 * k, torch.arange(n)[None], None, {})
        for k, n in enumerate(lengths)
    ]
    index = st.integers(0, len(prompts) - 1)
    owners = data.draw(st.lists(index, min_size=1, max_size=9))
    captions = [data.draw(st.lists(st.integers(500, 600), min_size=1, max_size=6)) for _ in owners]
    packed = layout(prompts, owners, captions, align=data.draw(st.sampled_from([1, 8])))
    assert len(packed.target_idx) == sum(map(len, captions))
    assert len(set(packed.target_idx.tolist())) == len(packed.target_idx)
    ids, positions = packed.ids.flatten(), packed.positions.flatten(1)[0]
    group, branch = packed.group.flatten(), packed.branch.flatten()
    place = iter(packed.target_idx.tolist())
    for owner, caption in zip(owners, captions, strict=True):
        places = [next(place) for _ in caption]
        assert ids[places].tolist() == [prompts[owner].ids[-1].item(), *caption[:-1]]
        assert positions[places].tolist() == list(
            range(lengths[owner] - 1, lengths[owner] - 1 + len(caption))
        )
        assert set(group[places].tolist()) == {owner}
        assert len(set(branch[places].tolist())) == 1
        assert branch[places[0]] not in (PROMPT, PADDING)
    for owner in {*owners}:
        body = (group == owner) & (branch == PROMPT)
        assert ids[body].tolist() == prompts[owner].ids[:-1].tolist()


@cache
def policy_prompts(family):
    """The embedded policy, prompts of three lengths, and the greedy tokens of each alone."""
    model, processor = load.load_policy(family, "embedded", dtype="float32")
    questions = ["Describe the image.", "image", "What is there, and where? Describe the image."]
    texts = [chat.chat_text(processor, chat.messages(question)) for question in questions]
    images = [render(sample(seed)) for seed in range(3)]
    prompts = VisionCache(model, processor, FAMILIES[family]).prompts(images, texts)
    assert len({len(prompt.ids) for prompt in prompts}) == 3
    options = {
        "do_sample": False,
        "suppress_tokens": load.forbidden_ids(model, processor),
        "pad_token_id": processor.tokenizer.pad_token_id,
    }
    longest = 6
    alone = [
        sampler.sample(model, [p], [0], max_new_tokens=longest, **options).ids[0] for p in prompts
    ]
    return model, prompts, alone, options


@pytest.mark.parametrize("family", ["smolvlm", "qwen2vl"])
@settings(FAST, max_examples=12)
@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=4),
    st.lists(st.integers(0, 3), min_size=1, max_size=7),
    st.integers(1, 6),
)
def test_any_mix_of_prompts_and_groups_gives_each_caption_its_own_tokens(
    family, chosen, owners, longest
):
    model, prompts, alone, options = policy_prompts(family)
    owners = [owner % len(chosen) for owner in owners]
    batch = [prompts[k] for k in chosen]
    sampled = sampler.sample(model, batch, owners, max_new_tokens=longest, **options)
    assert sampled.ids == [alone[chosen[owner]][:longest] for owner in owners]
    assert [len(row) for row in sampled.logps] == [len(row) for row in sampled.ids]
