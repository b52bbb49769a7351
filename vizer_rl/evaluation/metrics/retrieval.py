"""R@k: the share of captions that retrieve their image among all, by cosine under a CLIP model."""

from __future__ import annotations

import numpy as np
import torch

RANKS = (1, 5, 10)


def recalls(captions_ND: torch.Tensor, features_ND: torch.Tensor) -> dict[str, np.ndarray]:
    """(N,) whether image i is among the k nearest to caption i, as "recall_1", "_5" and "_10".

    Images that tie share: equal ones for which a place is left are each right by that chance.
    """
    cosines_NN = captions_ND @ features_ND.T
    own_N1 = cosines_NN.diagonal()[:, None]
    nearer_N = (cosines_NN > own_N1).sum(1).cpu().numpy()
    tied_N = (cosines_NN == own_N1).sum(1).cpu().numpy()
    return {f"recall_{k}": np.clip((k - nearer_N) / tied_N, 0.0, 1.0) for k in RANKS}
