"""The packed row itself: what stands where, what sees what, its log-probs, its groups."""

import time
import types

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from vizer_rl.policy.shared_prefix import attention, packing
from vizer_rl.policy.shared_prefix.attention import attention_mask, block_mask
from vizer_rl.policy.shared_prefix.packing import Prompt, layout, log_probs
from vizer_rl.policy.shared_prefix.rollout import PROMPT_IDX_KEY, whole_groups

from .test_shared_prefix import load_case


def test_a_position_sees_its_prompt_and_its_own_branch():
    prompt = Prompt(torch.tensor([7, 8, 9]), torch.arange(3)[None], None, {})
    packed = layout([prompt], [0, 0], [[1, 2], [3]])
    assert packed.ids[0].tolist() == [7, 8, 9, 1, 9, 0, 0, 0]
    assert packed.positions[0, 0, :5].tolist() == [0, 1, 2, 3, 2]
    assert packed.target_idx.tolist() == [2, 3, 4]
    assert attention_mask(packed.group, packed.branch)[0, 0, :5, :5].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


def test_a_block_mask_is_the_same_rule():
    def prompt(n):
        return Prompt(torch.arange(n), torch.arange(n)[None], None, {})

    captions = [[5] * 70, [5] * 60, [5] * 130, [5] * 40]
    packed = layout([prompt(150), prompt(90), prompt(50)], [0, 0, 1, 2], captions)
    block = block_mask(packed.group, packed.branch)
    rows, length = packed.group.shape
    assert length > 256
    assert rows > 1, "blocks of 128, more than one row"
    dense = create_mask(block.mask_mod, rows, 1, length, length, "cpu")
    assert torch.equal(dense, attention_mask(packed.group, packed.branch))
    kept = block.to_dense()[:, 0].bool()
    assert not kept.all(), "blocks are left out"
    visible = dense[:, 0].nonzero()
    assert kept[visible[:, 0], visible[:, 1] // 128, visible[:, 2] // 128].all()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_takes_what_autocast_hands_over():
    layer = types.SimpleNamespace(training=False, num_key_value_groups=2)
    branch = torch.tensor([[0] * 9 + [1] * 4 + [2] * 3])
    group = torch.zeros_like(branch)
    query, key, value = (
        torch.randn(1, 4, 16, 16),
        torch.randn(1, 2, 16, 16),
        torch.randn(1, 2, 16, 16),
    )
    with torch.compiler.set_stance("force_eager"):
        blocks = block_mask(group, branch)
        flex, _ = attention.attend(layer, query, key, value.bfloat16(), blocks, scaling=0.3)
    sdpa, _ = attention.attend(layer, query, key, value, attention_mask(group, branch), scaling=0.3)
    assert flex.dtype == torch.bfloat16
    assert torch.allclose(flex.float(), sdpa, atol=0.03)


def test_the_quicker_kernel_is_kept():
    model, _ = load_case("qwen2vl", False)
    text = model.config.get_text_config()
    seconds = {"sdpa": 0.0, attention.KERNEL: 0.02}

    def run_step():
        time.sleep(seconds[text._attn_implementation])

    assert attention.faster_kernel(model, run_step)[attention.KERNEL] > 0.02
    assert text._attn_implementation == "sdpa"
    assert not attention.uses_block_mask(model)
    seconds |= {"sdpa": 0.02, attention.KERNEL: 0.0}
    attention.faster_kernel(model, run_step)
    assert attention.uses_block_mask(model)
    assert model.config.vision_config._attn_implementation == "sdpa"


def test_a_kernel_that_fails_says_how_to_do_without():
    model, _ = load_case("smolvlm", False)

    def run_step():
        raise RuntimeError("no kernel image is available")

    with pytest.raises(RuntimeError, match=r"fail under sdpa; engine\.cuda=off"):
        attention.faster_kernel(model, run_step)


@pytest.mark.parametrize("failure", [RuntimeError, ImportError, FileNotFoundError])
def test_a_flex_attention_that_fails_leaves_the_model_on_sdpa(failure):
    model, _ = load_case("qwen2vl", False)
    warnings = []

    def step():
        if attention.uses_block_mask(model):
            raise failure("Failed to find C compiler.\nSet the CC environment variable.")

    assert list(attention.faster_kernel(model, step, warnings.append)) == ["sdpa"]
    assert not attention.uses_block_mask(model)
    (sentence,) = warnings
    assert "stays on sdpa" in sentence
    assert sentence.endswith(f"{failure.__name__}: Failed to find C compiler.")
    with pytest.warns(UserWarning, match="stays on sdpa"):
        attention.faster_kernel(model, step)


def test_short_groups_share_a_row():
    def prompt(n):
        return Prompt(torch.arange(n), torch.arange(n)[None], None, {})

    packed = layout([prompt(30), prompt(9), prompt(12)], [0, 1, 2], [[1, 2], [3], [4, 5, 6]])
    assert packed.ids.shape == (2, 32)  # 29 + 2; 11 + 3 and 8 + 1 in one
    assert packed.prompts == [0, 2, 1]
    assert (packed.group == -1).sum() == 2 * 32 - (31 + 14 + 9)


def test_log_probs_in_chunks_are_the_same(monkeypatch):
    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(6, 11), torch.randn(9, 6, requires_grad=True)
    tokens = torch.randint(11, (9,))
    got = []
    for max_logits in (2**24, 22):
        monkeypatch.setattr(packing, "MAX_LOGITS", max_logits)
        logps, entropies = log_probs(hidden, head, tokens, 0.8)
        (grad,) = torch.autograd.grad((logps + entropies).sum(), hidden)
        got.append((logps, entropies, grad))
    for a, b in zip(*got, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    wanted = torch.distributions.Categorical(logits=head(hidden) / 0.8)
    assert torch.allclose(got[0][0], wanted.log_prob(tokens), atol=1e-6)
    assert torch.allclose(got[0][1], wanted.entropy(), atol=1e-6)


def test_groups_are_whole_again_after_trls_shuffle():
    prompt_idx = torch.tensor([2, 0, 1, 0, 2, 1, 0, 2, 1])
    rows = torch.arange(9)
    batches = [
        {PROMPT_IDX_KEY: prompt_idx[i : i + 3], "row": rows[i : i + 3], "count": torch.tensor(9)}
        for i in (0, 3, 6)
    ]
    packed = whole_groups(batches)
    assert [b[PROMPT_IDX_KEY].tolist() for b in packed] == [[2, 2, 2], [0, 0, 0], [1, 1, 1]]
    assert [b["row"].tolist() for b in packed] == [[0, 4, 7], [1, 3, 6], [2, 5, 8]]
    assert all(b["count"] == 9 for b in packed)
