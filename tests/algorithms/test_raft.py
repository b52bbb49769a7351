"""RAFT on the embedded policy: its gradient is that of a hand-written SFT loss; who samples."""

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_map

from vizer_rl.policy import chat

from .test_ppo import rollout, trainer

G, KEEP = 8, 2
LOSSES = [
    *((loss, "token") for loss in ("grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "vespo")),
    *((loss, "sequence") for loss in ("grpo", "dr_grpo", "luspo")),
]


def moved_away(subject):
    """A policy that is not at the adapter's start, where half is 0."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in subject.model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.05)
    return subject


def doubled(tree):
    """All floats of nested tensors in float64."""

    def double(x):
        return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x

    return tree_map(double, tree)


@pytest.fixture(scope="module", params=[False, True], ids=["rows", "packed"])
def imitation(request, workplace, tmp_path_factory):
    """A trainer in float64 with a rollout; the negative log-likelihood (KEEP * 2,) of each imitated
    caption, by a pass of its own and by the trainer's; their tokens (KEEP * 2,)."""
    folder = tmp_path_factory.mktemp("raft")
    subject = moved_away(trainer("raft", folder, packed=request.param, keep=KEEP))
    batch = rollout(subject)
    processor, rows = subject.processing_class, subject.rollout.rows
    subject.model.double()
    batch = {name: doubled(value) for name, value in batch.items()}
    for prompt in subject.rollout.prompts:
        vars(prompt).update(doubled(vars(prompt)))
    best, nll = (batch["advantages"] > 0).nonzero()[:, 0], []
    assert len(best) == 2 * KEEP
    for n in best.tolist():
        text = chat.chat_text(processor, rows[n]["prompt"])
        inputs = dict(processor(text=[text], images=[[rows[n]["image"]]], return_tensors="pt"))
        prompt_ids = inputs.pop("input_ids")[0]
        del inputs["attention_mask"]
        target = batch["completion_ids"][n][batch["completion_mask"][n].bool()]
        ids = torch.cat([prompt_ids, target])[None]
        logits = subject.model(input_ids=ids, **doubled(inputs)).logits[0, len(prompt_ids) - 1 : -1]
        nll.append(cross_entropy(logits, target, reduction="sum"))
    mask = batch["completion_mask"]
    own_pass = -(subject.caption_forward(subject.model, batch).logps * mask)[best].sum(1)
    return subject, batch, (torch.stack(nll), own_pass), mask[best].sum(1)


@pytest.mark.parametrize(("loss_type", "level"), LOSSES)
def test_the_gradient_is_that_of_sft_on_the_best(imitation, loss_type, level):
    """Whatever old policy and vLLM's correction say: neither plays a part. A pass of its own rounds
    differently, as the model's norms and angles are float32 always; the trainer's does not, but for
    the mean over a sequence, whose weight is float32."""
    subject, batch, nlls, tokens = imitation
    subject.loss_type, subject.importance_sampling_level = loss_type, level
    subject.epsilon_high = 5.0 if loss_type == "cispo" else 0.2
    subject.use_vllm, subject.off_policy_mask_threshold = True, 0.1
    noise = torch.randn(batch["completion_ids"].shape, generator=torch.Generator().manual_seed(0))
    others = {
        "old_per_token_logps": noise - 3,
        "sampling_per_token_logps": noise,
        "importance_sampling_ratio": noise.exp(),
    }
    learning = [p for p in subject.model.parameters() if p.requires_grad]
    got = torch.autograd.grad(subject._compute_loss(subject.model, batch | others), learning)
    own = 3e-7 if level == "sequence" else 1e-9
    for nll, tolerance in zip(nlls, (1e-5, own), strict=True):
        sft = {
            "grpo": (nll / tokens).mean(),
            "sapo": (nll / tokens).mean(),
            "dr_grpo": nll.mean() / subject.max_completion_length,
            "luspo": nll.mean(),
        }.get(loss_type, nll.sum() * G / KEEP / batch["completion_mask"].sum())
        wanted = torch.autograd.grad(sft, learning, retain_graph=True)
        largest = max(float(g.norm()) for g in wanted)
        assert largest > 1e-3
        for one, two in zip(got, wanted, strict=True):
            assert (one - two).norm() <= tolerance * two.norm() + 1e-9 * largest
    logged, mean = subject._metrics["train"]["nll"][-1], nlls[1].sum() / tokens.sum()
    assert logged == pytest.approx(mean.item(), rel=1e-6)  # log-probs are float32


@pytest.mark.parametrize("packed", [False, True])
def test_the_reference_samples_where_it_is_to_and_the_adapter_is_on_again(
    packed, workplace, tmp_path
):
    subject, captions = moved_away(trainer("raft", tmp_path, packed=packed)), {}
    for source in ("policy", "reference", "base"):
        if source == "base":  # a policy that still is the reference
            subject.args.sample_from = "policy"
            with torch.no_grad():
                for name, p in subject.model.named_parameters():
                    p.mul_(0 if "lora_B" in name else 1)
        else:
            subject.args.sample_from = source
        torch.manual_seed(2)
        captions[source] = rollout(subject)["completion_ids"].tolist()
        layers = [m for m in subject.model.modules() if isinstance(m, BaseTunerLayer)]
        assert layers
        assert not any(m.disable_adapters for m in layers)
        assert all(p.requires_grad for n, p in subject.model.named_parameters() if "lora_" in n)
    assert captions["reference"] == captions["base"] != captions["policy"]
