"""PPO and RLOO on the embedded policy: the formulas, the gradient, a bandit of captions."""

import itertools

import pytest
import torch
from peft import LoraConfig
from torch import tensor

from vizer_rl.algorithms import advantages as adv
from vizer_rl.algorithms import find
from vizer_rl.config.load import load_run
from vizer_rl.config.trainer_settings import SETTINGS, trainer_arguments
from vizer_rl.data import dataset, sources
from vizer_rl.policy import chat, load
from vizer_rl.policy.families import FAMILIES
from vizer_rl.policy.shared_prefix.obstacles import build_vision_cache
from vizer_rl.scoring.reward_functions import Reward, RewardFunctions
from vizer_rl.training import splits

from ..conftest import REPO, TINY

PAYS = {"a": 0.0, "two": 1.0}  # what a caption is worth, by its first word; others: .5


def pay(batch):
    return [PAYS.get((caption.split() or [""])[0], 0.5) for caption in batch.captions]


def trainer(name, folder, images=40, family="smolvlm", packed=False, **settings):
    """The trainer of an algorithm with the reward `pay`, before its first step.

    packed: with every prompt computed once, as runs do it; else as TRL does.
    """
    algorithm = find(name)
    run = load_run(REPO / "experiments" / f"{family}.yaml", [*TINY, "train.beta=0"])
    result = {**run.train, "log_completions": False, **settings}
    args = trainer_arguments(
        result, directory=folder, seed=3, weights=[1.0], report_to=[], config=SETTINGS[name]
    )
    torch.manual_seed(0)
    model, processor = load.load_policy(family, "embedded", dtype="float32")
    eos = load.eos_ids(model, processor)
    scoring = RewardFunctions([Reward("pay", 1.0, pay)], None, None, eos, args.num_generations)
    folder = sources.ImageFolder.index(splits.SCENES / "train" / "images", images)
    rows = dataset.rows(folder, chat.messages(run.data.prompt))
    lora = LoraConfig(r=8, target_modules=FAMILIES[family].lora, task_type="CAUSAL_LM")
    cache = build_vision_cache(model, processor, family, args=args) if packed else None
    subject = algorithm(model, processor, lora, scoring, args, rows, cache)
    subject.current_gradient_accumulation_steps = 1
    subject.model.train()
    return subject


def rollout(subject):
    """Two images, eight captions of each, scored and with advantages."""
    rows = [subject.train_dataset[i] for i in (0, 1) for _ in range(8)]
    return subject._generate_and_score_completions(rows)


@pytest.mark.usefixtures("workplace")
def test_with_lambda_and_gamma_1_and_no_values_advantages_are_whitened_returns(tmp_path):
    subject = trainer("ppo", tmp_path, gamma=1.0, gae_lambda=1.0, reward_scaling="none")
    torch.nn.init.zeros_(subject.critic.head[2].weight)
    got = rollout(subject)
    mask = got["completion_mask"]
    returns = subject.scores()[:, None] * mask
    assert torch.equal(got["returns"], returns)
    assert torch.equal(got["advantages"], adv.whiten(returns, mask))
    assert returns.std() > 0


@pytest.mark.usefixtures("workplace")
def test_one_unclipped_epoch_without_a_critic_has_the_gradient_of_reinforce(tmp_path):
    subject = trainer(
        "ppo", tmp_path, gamma=1.0, gae_lambda=1.0, num_iterations=1, epsilon=1e9, vf_coef=0.0
    )
    torch.nn.init.zeros_(subject.critic.head[2].weight)
    with torch.no_grad():  # a policy that is not at the adapter's start, where half is 0
        for name, p in subject.model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.02)
    batch = rollout(subject)
    learning = [p for p in subject.model.parameters() if p.requires_grad]
    subject._compute_loss(subject.model, batch).backward()
    got = [p.grad.clone() for p in learning]
    # the plain objective: - sum of A log pi over all tokens, divided as dr_grpo does
    mask, ids = batch["completion_mask"], batch["completion_ids"]
    vision = {k: batch[k] for k in ("pixel_values", "pixel_attention_mask") if k in batch}
    logits = subject.model(
        input_ids=torch.cat([batch["prompt_ids"], ids], 1),
        attention_mask=torch.cat([batch["prompt_mask"], mask], 1),
        **vision,
    ).logits[:, -ids.shape[1] - 1 : -1]
    logps = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    plain = adv.whiten(subject.scores()[:, None] * mask, mask)
    loss = -(plain * logps * mask).sum() / (len(ids) * subject.max_completion_length)
    expected = torch.autograd.grad(loss, learning)
    largest = max(g.abs().max() for g in expected)
    assert largest > 1e-4
    for one, two in zip(got, expected, strict=True):
        assert torch.allclose(one, two, atol=1e-4 * largest.item(), rtol=1e-3)


@pytest.mark.usefixtures("workplace")
def test_the_value_loss_reaches_the_policy_as_far_as_vf_coef_says_and_never_in_warm_up(tmp_path):
    policy_norm, head_norm = {}, {}
    for case in itertools.product((0.0, 1.0), (0, 5)):
        subject = trainer("ppo", tmp_path, vf_coef=case[0], value_warmup_steps=case[1])
        batch = rollout(subject)
        batch["advantages"] = torch.zeros_like(batch["advantages"])
        subject._compute_loss(subject.model, batch).backward()
        grads = [p.grad for p in subject.model.parameters() if p.grad is not None]
        policy_norm[case] = sum(g.norm().item() for g in grads)
        head_norm[case] = subject.critic.head[2].weight.grad.norm().item()
    assert policy_norm[1.0, 0] > 0
    assert policy_norm[0.0, 0] == policy_norm[0.0, 5] == policy_norm[1.0, 5] == 0
    assert head_norm[1.0, 0] > 0
    assert head_norm[1.0, 5] > 0


@pytest.mark.usefixtures("workplace")
def test_updates_stop_where_the_policy_has_gone_too_far(tmp_path):
    subject = trainer("ppo", tmp_path, target_kl=1e-3)
    batch = rollout(subject)
    subject._compute_loss(subject.model, batch)
    assert not subject._stopped  # the first update starts from the rollout's own policy
    batch["old_per_token_logps"] = batch["old_per_token_logps"] - 0.5
    subject._compute_loss(subject.model, batch)
    assert subject._stopped
    loss = subject._compute_loss(subject.model, batch)
    loss.backward()
    assert loss == 0
    assert all(p.grad is None for p in subject.model.parameters())
    rollout(subject)
    assert not subject._stopped


@pytest.mark.usefixtures("workplace")
def test_kl_in_the_reward_and_beta_steered_to_its_target(tmp_path):
    subject = trainer(
        "ppo", tmp_path, beta=0.1, kl_in_reward=True, beta_target=1.0, beta_horizon=100
    )
    with torch.no_grad():
        for name, p in subject.model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.05)
    beta = subject.beta
    batch = rollout(subject)
    kl = (batch["old_per_token_logps"] - batch["ref_per_token_logps"]) * batch["completion_mask"]
    error = min(max(kl.sum(1).mean().item() / 1.0 - 1, -0.2), 0.2)
    assert subject.beta == pytest.approx(beta * (1 + error * 16 / 100))
    assert not torch.equal(batch["returns"], subject.scores()[:, None] * batch["completion_mask"])
    subject._compute_loss(subject.model, batch)
    assert "kl" not in subject._metrics["train"]  # it is not in the loss
    logged = subject._metrics["train"]["kl_per_caption"]
    assert logged == [pytest.approx(kl.sum(1).mean().item(), rel=1e-5)]


@pytest.mark.slow
@pytest.mark.usefixtures("workplace")
def test_ppo_finds_the_best_caption_and_its_critic_explains_the_returns(tmp_path):
    subject = trainer(
        "ppo",
        tmp_path,
        packed=True,
        max_steps=56,
        per_device_train_batch_size=64,
        value_warmup_steps=12,
        learning_rate=1e-3,
        value_learning_rate=5e-3,
        lr_scheduler_type="constant",
    )
    subject.train()
    result = [row for row in subject.state.log_history if "reward" in row]
    assert result[0]["reward"] < 0.6
    assert sum(row["reward"] for row in result[-3:]) / 3 > 0.9
    assert max(row["explained_variance"] for row in result) > 0.5


@pytest.mark.usefixtures("workplace")
def test_rloo_is_the_leave_one_out_formula(tmp_path):
    subject = trainer("rloo", tmp_path, multi_objective_aggregation="sum_then_normalize")
    batch = rollout(subject)
    scores = subject.rewards_NK[:, 0].view(2, 8).tolist()
    slow = [r - sum(row[:k] + row[k + 1 :]) / 7 for row in scores for k, r in enumerate(row)]
    assert torch.allclose(batch["advantages"], tensor(slow))
    assert max(slow) > 0
