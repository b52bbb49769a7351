"""The scorers in half precision, as they are on CUDA: open_clip leaves parts of them in float32."""

import pytest
import torch
from open_clip.transformer import AttentionalPooler

from vizer_rl.scoring.clip import OpenClip

from ..policy.test_shared_prefix import random_images

CAPTIONS = ["a red circle", "two small blue stars above a large green heart"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["embedded:a", "embedded:b"])
def test_a_scorer_in_half_precision_gives_nearly_the_same(name, dtype):
    images = random_images([(96, 96)] * 2)
    whole, half = (OpenClip(name, torch.device("cpu"), d) for d in (torch.float32, dtype))
    for features in (
        lambda scorer: scorer.image_features(["0", "1"], images),
        lambda scorer: scorer.text_features(CAPTIONS),
    ):
        assert features(half).dtype == torch.float32
        assert (features(half) * features(whole)).sum(-1).min() > 0.99


def test_the_pooler_s_norms_have_their_input_s_type():
    # CUDA's layer norm takes no others; open_clip makes these plain ones, not its LayerNormFp32.
    scorer = OpenClip("embedded:b", torch.device("cpu"), torch.float16)
    (pooler,) = (m for m in scorer.model.modules() if isinstance(m, AttentionalPooler))
    assert {p.dtype for p in pooler.parameters()} == {torch.float16}
