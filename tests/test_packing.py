"""The packed row itself: what stands where, what sees what, its log-probs, its groups."""

import torch

from vizer_rl import shared_prefix
from vizer_rl.rollout import whole_groups
from vizer_rl.shared_prefix import Prompt, layout, log_probs, mask


def test_a_position_sees_its_prompt_and_its_own_branch():
    prompt = Prompt(torch.tensor([7, 8, 9]), torch.arange(3)[None], None, {})
    made = layout([prompt], [0, 0], [[1, 2], [3]])
    assert made.ids[0].tolist() == [7, 8, 9, 1, 9, 0, 0, 0]
    assert made.positions[0, 0, :5].tolist() == [0, 1, 2, 3, 2]
    assert made.where.tolist() == [2, 3, 4]
    assert mask(made.group, made.branch)[0, 0, :5, :5].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


def test_short_groups_share_a_row():
    def prompt(n):
        return Prompt(torch.arange(n), torch.arange(n)[None], None, {})

    made = layout([prompt(30), prompt(9), prompt(12)], [0, 1, 2], [[1, 2], [3], [4, 5, 6]])
    assert made.ids.shape == (2, 32)  # 29 + 2; 11 + 3 and 8 + 1 in one
    assert made.prompts == [0, 2, 1]
    assert (made.group == -1).sum() == 2 * 32 - (31 + 14 + 9)


def test_log_probs_in_chunks_are_the_same(monkeypatch):
    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(6, 11), torch.randn(9, 6, requires_grad=True)
    tokens = torch.randint(11, (9,))
    got = []
    for at_once in (2**24, 22):
        monkeypatch.setattr(shared_prefix, "LOGITS_AT_ONCE", at_once)
        logps, entropies = log_probs(hidden, head, tokens, 0.8)
        (grad,) = torch.autograd.grad((logps + entropies).sum(), hidden)
        got.append((logps, entropies, grad))
    for a, b in zip(*got, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    wanted = torch.distributions.Categorical(logits=head(hidden) / 0.8)
    assert torch.allclose(got[0][0], wanted.log_prob(tokens), atol=1e-6)
    assert torch.allclose(got[0][1], wanted.entropy(), atol=1e-6)


def test_groups_are_whole_again_after_trls_shuffle():
    of = torch.tensor([2, 0, 1, 0, 2, 1, 0, 2, 1])
    rows = torch.arange(9)
    batches = [
        {"pixel_values": of[i : i + 3], "row": rows[i : i + 3], "count": torch.tensor(9)}
        for i in (0, 3, 6)
    ]
    made = whole_groups(batches)
    assert [b["pixel_values"].tolist() for b in made] == [[2, 2, 2], [0, 0, 0], [1, 1, 1]]
    assert [b["row"].tolist() for b in made] == [[0, 4, 7], [1, 3, 6], [2, 5, 8]]
    assert all(b["count"] == 9 for b in made)
