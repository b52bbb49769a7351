"""CLIP's text tower computes what counts: as open_clip's own over the whole context."""

import open_clip
import pytest
import torch

from vizer_rl.scoring import clip

TEXTS = ["a dog", "a", "two small blue stars above a large green heart", "a cat " * 60, ""]


def places(model):
    """The number of places of each text that its text tower has computed."""
    lengths = []
    hook = model.ln_final.register_forward_hook(lambda _, args, out: lengths.append(out.shape[1]))
    return lengths, hook


@pytest.mark.parametrize("name", ["embedded:a", "embedded:b", "ViT-S-32-alt"])
def test_texts_cut_where_they_end_have_the_vectors_of_the_whole_context(name, monkeypatch):
    monkeypatch.setattr(clip, "TEXTS", 2)
    if name.startswith("embedded"):
        scorer = clip.OpenClip(name, torch.device("cpu"))
        model, tokenizer = scorer.model, scorer.tokenizer
    else:  # of the real size, its weights random
        model = open_clip.create_model(name).eval()
        tokenizer = open_clip.get_tokenizer(name)
    tokens = tokenizer(TEXTS)
    lengths, hook = places(model)
    with torch.no_grad():
        cut = clip.encode_text(model, tokens, torch.device("cpu"))
        hook.remove()
        whole = model.encode_text(tokens, normalize=True)
    assert torch.allclose(cut, whole, atol=2e-6)
    last = sorted(tokens.argmax(-1).tolist())
    assert lengths == [last[1] + 1, last[3] + 1, last[4] + 1]
    assert lengths[0] < lengths[-1] == tokens.shape[1]


@pytest.mark.parametrize("change", [{"attn_mask": None}, {"text_pool_type": "last"}])
def test_a_tower_that_reads_all_places_computes_them(change, monkeypatch):
    scorer = clip.OpenClip("embedded:a", torch.device("cpu"))
    for name, value in change.items():
        monkeypatch.setattr(scorer.model, name, value)
    tokens = scorer.tokenizer(TEXTS)
    with torch.no_grad():
        whole = scorer.model.encode_text(tokens, normalize=True)
    assert torch.equal(clip.encode_text(scorer.model, tokens, torch.device("cpu")), whole)
