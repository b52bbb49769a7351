"""BERTScore (Zhang et al. 2020): F with the nearest reference, by an extra, bert-score."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np


def missing_package() -> str:
    """Why BERTScore cannot be computed here, "" where it can."""
    return (
        ""
        if find_spec("bert_score")
        else "the extra is not installed: pip install vizer_rl[bertscore]"
    )


def bert_score(captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """(N,) F under the package's own English model, without its rescaling."""
    from bert_score import score

    _, _, f_N = score(list(captions), [list(r) for r in references], lang="en")
    return np.asarray(f_N, np.float64)
