"""Token trees by hand: a shared prefix is one node, a kept prompt costs its last token alone."""

import pytest
import torch

from vizer_rl.policy.shared_prefix.packing import Prompt
from vizer_rl.policy.shared_prefix.token_tree import token_tree


def prompt(*ids):
    return Prompt(torch.tensor(ids), torch.arange(len(ids))[None], None, {})


def test_equal_beginnings_are_one_node_and_each_prompt_has_its_own():
    prompts = [prompt(1, 2), prompt(3, 4, 5)]
    tree = token_tree(prompts, [False, False], [0, 0, 0, 1], [[7, 8], [7, 9], [7, 8], [7]])
    used = 2 + 3 + 4  # tokens of the prompts; 7, 8 and 9 behind the first, 7 behind the second
    assert tree.ids[0].tolist() == [1, 2, 3, 4, 5, 7, 8, 9, 7] + [0] * (16 - used)
    assert tree.paths == [[1, 5, 6], [1, 5, 7], [1, 5, 6], [4, 8]]


@pytest.mark.parametrize("kept", [False, True])
def test_a_node_attends_to_its_prompt_its_own_prefix_and_itself(kept):
    prompts = [prompt(1, 2, 3), prompt(4, 5)]
    tree = token_tree(prompts, [kept, False], [0, 0, 1], [[7, 8], [7, 9], [7]])
    before = 2 if kept else 0
    columns = [*([1, 2] if kept else []), *tree.ids[0].tolist()]
    assert len(columns) % 8 == 0
    assert [columns[c] for c in tree.bodies[0]] == [1, 2]
    assert [columns[c] for c in tree.bodies[1]] == [4]
    for path, ids, caption in zip(
        tree.paths, [[1, 2, 3], [1, 2, 3], [4, 5]], [[7, 8], [7, 9], [7]], strict=True
    ):
        assert tree.ids[0][path].tolist() == [ids[-1], *caption]
        assert tree.positions[0, 0][path].tolist() == [len(ids) - 1 + k for k in range(len(path))]
        attended = tree.mask[0, 0, path[-1]].nonzero()[:, 0].tolist()
        assert [columns[c] for c in attended] == [*ids, *caption]
        assert before + path[-1] == attended[-1], "nothing behind itself"
    assert tree.paths[0][:2] == tree.paths[1][:2], "7 is one node"
    assert tree.paths[2][1] not in tree.paths[0], "behind another prompt it is another one"
    used = sum(len(p.ids) for p in prompts) - before + 4
    assert tree.mask[0, 0, used:].sum(-1).eq(1).all(), "padding attends to itself"
