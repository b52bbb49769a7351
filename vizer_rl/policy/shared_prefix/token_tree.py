"""Token trees: captions behind their prompts in one row, where beginnings that are equal are one.

A node is a token that attends to its prompt, to the nodes before it and to itself, at the position
that it has in a row of its own. So a prefix that many captions share is computed once, and of a
prompt whose keys and values are kept only the last token. Pure tensor code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .attention import ALIGN
from .packing import Prompt


@dataclass(frozen=True)
class TokenTree:
    """N nodes behind columns of kept prompts, C columns with the nodes' own.

    ids (1, N); positions (K, 1, N); mask (1, 1, N, C); paths: per caption of T tokens the T + 1
    nodes before each token and behind the last one; bodies: per prompt the columns of all its
    tokens but the last.
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    paths: list[list[int]]
    bodies: list[range]


def token_tree(
    prompts: Sequence[Prompt],
    kept: Sequence[bool],
    prompt_idx: Sequence[int],
    captions: Sequence[Sequence[int]],
) -> TokenTree:
    """The tree of captions (token ids); kept: of each prompt, whether it stands in the columns
    before the nodes, in this order; prompt_idx: of the prompt of each caption."""
    before = sum(len(p.ids) - 1 for p, keep in zip(prompts, kept, strict=True) if keep)
    ids, parents, positions = list[int](), list[int](), list[Tensor]()
    bodies, roots, column = list[range](), list[int](), 0
    for prompt, keep in zip(prompts, kept, strict=True):
        body, start = len(prompt.ids) - 1, column if keep else before + len(ids)
        bodies.append(range(start, start + body))
        column += body if keep else 0
        tokens = prompt.ids[-1:] if keep else prompt.ids
        parents += [-1, *range(len(ids), len(ids) + len(tokens) - 1)]
        ids += tokens.tolist()
        positions.append(prompt.positions[:, -len(tokens) :])
        roots.append(len(ids) - 1)
    children, depths = dict[tuple[int, int], int](), list[int]()
    paths = list[list[int]]()
    for p, caption in zip(prompt_idx, captions, strict=True):
        path = [roots[p]]
        for depth, token in enumerate(caption, prompts[p].next_position):
            node = children.setdefault((path[-1], token), len(ids))
            if node == len(ids):
                ids.append(token)
                parents.append(path[-1])
                depths.append(depth)
            path.append(node)
        paths.append(path)
    padding = -(before + len(ids)) % ALIGN
    kinds = prompts[0].positions.shape[0]
    positions.append(torch.tensor([depths + [0] * padding]).expand(kinds, -1))
    own = {r: body for r, body, keep in zip(roots, bodies, kept, strict=True) if keep}
    mask = _mask(parents + [-1] * padding, before, own)
    return TokenTree(
        torch.tensor([ids + [0] * padding]),
        torch.cat(positions, 1)[:, None],
        torch.from_numpy(mask)[None, None],
        paths,
        bodies,
    )


def _mask(parents: list[int], before: int, kept: dict[int, range]) -> np.ndarray:
    """(N, before + N) whether a column is a node's own, or that of what is above it.

    parents: -1 where no node is; kept: columns of the prompt behind which a node stands.
    """
    mask = np.zeros((len(parents), before + len(parents)), dtype=bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            mask[node] = mask[parent]
        elif node in kept:
            mask[node, kept[node].start : kept[node].stop] = True
        mask[node, before + node] = True
    return mask
