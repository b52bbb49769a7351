"""Advantages with captions that come to no end, by hand: TRL's two aggregations, RLOO and PPO."""

from types import SimpleNamespace

import pytest
import torch

from rewards import make
from vizer_rl.algorithms.grpo import GRPO
from vizer_rl.algorithms.ppo import PPO
from vizer_rl.algorithms.raft import RAFT
from vizer_rl.algorithms.rloo import RLOO
from vizer_rl.scoring.aggregation import (
    advantages,
    contributions,
    group_scores,
    penalties,
    shares,
)
from vizer_rl.scoring.reward_functions import Reward, RewardFunctions

from ..stubs import EOS

G, NAN = 8, float("nan")
GATES = torch.tensor([False, True])
WEIGHTS = torch.tensor([1.0, 1.0])
RECIPE = torch.tensor([1.0, 0.2, 0.1, 0.3, 0.3, 1.0])  # of experiments/smolvlm.yaml, and `ended`
AGGREGATIONS = [
    ("normalize_then_sum", "group"),
    ("sum_then_normalize", "group"),
    ("sum_then_normalize", "batch"),
    ("sum_then_normalize", "none"),
]


def one_reward(unended):
    """A group of 8: the last ones come to no end, the others have the scores 1, 2, …"""
    passing = [[float(n + 1), 0.0] for n in range(G - unended)]
    return torch.tensor([*passing, *[[NAN, -1.0]] * unended])


def rollout(unended, groups=4, seed=0):
    """Five rewards of four groups, the first `unended` captions of the second without an end."""
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.rand(groups * G, 6, generator=generator)
    rewards[:, 3:5] = -(rewards[:, 3:5] < 0.2).float()  # guards are mostly 0
    rewards[:, 5] = 0.0
    rewards[G : G + unended, :3], rewards[G : G + unended, 5] = NAN, -1.0
    return rewards


# scores 1..7: deviation √(28/6) = 2.1602; 1..6: √(17.5/5) = 1.8708; 1..8: √6 = 2.4495. The lowest
# normalised score is -3/2.1602 = -1.3887, -2.5/1.8708 = -1.3363; those without an end stand 1 below
# it, and then the group's mean is taken off: -2.3887/8 = -.2986, 2 · -2.3363/8 = -.5841
BY_HAND = {
    0: [-1.4289, -1.0206, -0.6124, -0.2041, 0.2041, 0.6124, 1.0206, 1.4289],
    1: [-1.0901, -0.6272, -0.1643, 0.2986, 0.7615, 1.2244, 1.6873, -2.0901],
    2: [-0.7522, -0.2177, 0.3168, 0.8513, 1.3859, 1.9204, -1.7522, -1.7522],
}


@pytest.mark.parametrize("unended", BY_HAND)
@pytest.mark.parametrize(("aggregation", "scale"), AGGREGATIONS[:3])
def test_grpo_by_hand(unended, aggregation, scale):
    result = advantages(one_reward(unended), WEIGHTS, GATES, G, aggregation, scale)
    assert result.tolist() == pytest.approx(BY_HAND[unended], abs=1e-3)


def test_grpo_without_scaling_takes_the_raw_deviation():
    result = advantages(one_reward(1), WEIGHTS, GATES, G, "sum_then_normalize", "none")
    # 1 - 2.1602 = -1.1602 beside 1..7: less their mean, 26.8398/8 = 3.3550
    wanted = [n - 3.3550 for n in range(1, 8)] + [-1.1602 - 3.3550]
    assert result.tolist() == pytest.approx(wanted, abs=1e-3)


def trainer(rewards, weights, gates, **args):
    """What the algorithms read of a trainer after a rollout on one device."""
    return SimpleNamespace(
        rewards_NK=rewards,
        reward_weights=weights,
        reward_functions=SimpleNamespace(gates_K=gates),
        num_generations=G,
        multi_objective_aggregation=args.pop("aggregation", "normalize_then_sum"),
        scale_rewards="group",
        accelerator=SimpleNamespace(process_index=0),
        _logs={"advantages": [0.0] * len(rewards)},
        args=SimpleNamespace(**args),
    )


@pytest.mark.parametrize("unended", BY_HAND)
def test_the_grpo_trainer_replaces_trls_advantages_where_one_fails(unended):
    subject = trainer(one_reward(unended), WEIGHTS, GATES)
    trl = torch.full((G,), 7.0)
    output = {"advantages": trl}
    GRPO.finish_rollout(subject, output)
    if unended:
        assert output["advantages"].tolist() == pytest.approx(BY_HAND[unended], abs=1e-3)
        assert subject._logs["advantages"] == output["advantages"].tolist()
    else:
        assert output["advantages"] is trl


@pytest.mark.parametrize("unended", BY_HAND)
def test_rloo_by_hand(unended):
    """A score less the mean of the seven others is 8/7 of its distance from the mean of all."""
    output = {"advantages": torch.zeros(G)}
    RLOO.finish_rollout(trainer(one_reward(unended), WEIGHTS, GATES), output)
    wanted = [8 / 7 * a for a in BY_HAND[unended]]
    assert output["advantages"].tolist() == pytest.approx(wanted, abs=1e-3)


def test_rloo_of_raw_sums_by_hand():
    output = {"advantages": torch.zeros(G)}
    subject = trainer(one_reward(1), WEIGHTS, GATES, aggregation="sum_then_normalize")
    RLOO.finish_rollout(subject, output)
    wanted = [8 / 7 * (n - 3.3550) for n in range(1, 8)] + [8 / 7 * (-1.1602 - 3.3550)]
    assert output["advantages"].tolist() == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("aggregation", ["normalize_then_sum", "sum_then_normalize"])
def test_raft_by_hand(aggregation, keep):
    """Four groups of 8: two fail in the first, six in the second, all in the third, none in the
    fourth, where all are as good; what fails is not imitated where fewer than `keep` pass."""
    same = torch.tensor([[5.0, 0.0]] * G)
    rewards = torch.cat([one_reward(2), one_reward(6), one_reward(8), same])
    subject = trainer(rewards, WEIGHTS, GATES, aggregation=aggregation, keep=keep)
    output = {"advantages": torch.zeros(len(rewards))}
    RAFT.finish_rollout(subject, output)
    imitated = {1: [[5], [1], [], [0]], 3: [[3, 4, 5], [0, 1], [], [0, 1, 2]]}[keep]
    wanted = torch.zeros(4, G)
    for group, captions in enumerate(imitated):
        wanted[group, captions] = G / keep
    assert torch.equal(output["advantages"].view(4, G), wanted)
    assert subject._logs["advantages"] == output["advantages"].tolist()


@pytest.mark.parametrize("unended", BY_HAND)
def test_ppo_scores_by_hand(unended):
    """Standardised over the rollout; without an end: one deviation below the lowest."""
    subject = trainer(one_reward(unended), WEIGHTS, GATES, reward_scaling="batch")
    scores = PPO.scores(subject)
    mean = sum(BY_HAND[unended]) / G
    shift = {0: 0.0, 1: 0.2986, 2: 0.5841}[unended]  # the critic takes the mean off, not a group
    assert mean == pytest.approx(0.0, abs=1e-3)
    assert scores.tolist() == pytest.approx([a - shift for a in BY_HAND[unended]], abs=1e-3)


def trl_advantages(rewards, weights, aggregation, scale):
    """TRL 1.16, grpo_trainer: a row whose rewards are all NaN is left out."""
    unscorable = rewards.isnan().all(1)

    def nanstd(x, dim):
        mean, count = x.nanmean(dim, keepdim=True), (~x.isnan()).sum(dim, keepdim=True)
        return ((x - mean).square().nansum(dim, keepdim=True) / (count - 1)).sqrt()

    if aggregation == "normalize_then_sum":
        grouped = rewards.view(-1, G, rewards.shape[1])
        z = (grouped - grouped.nanmean(1, keepdim=True)) / (nanstd(grouped, 1) + 1e-4)
        total = (z.reshape_as(rewards) * weights).nansum(1).masked_fill(unscorable, NAN)
        return (total - total.nanmean()) / (nanstd(total, 0) + 1e-4)
    total = (rewards * weights).nansum(1).masked_fill(unscorable, NAN)
    centred = (total.view(-1, G) - total.view(-1, G).nanmean(1, keepdim=True)).reshape(-1)
    if scale == "group":
        deviation = nanstd(total.view(-1, G), 1).expand(-1, G).reshape(-1)
        return centred / (deviation + 1e-4)
    return centred / (nanstd(total, 0) + 1e-4) if scale == "batch" else centred


@pytest.mark.parametrize("unended", [0, 1, 2, 7])
@pytest.mark.parametrize(("aggregation", "scale"), AGGREGATIONS)
def test_the_others_have_the_spread_that_they_would_have_without_it(unended, aggregation, scale):
    rewards, gates = rollout(unended), torch.tensor([False] * 5 + [True])
    result = advantages(rewards, RECIPE, gates, G, aggregation, scale)
    without = rewards.masked_fill(gates, NAN)
    without[G : G + unended] = NAN  # a guard may have judged them
    wanted = trl_advantages(without, RECIPE, aggregation, scale)
    failed = torch.arange(len(rewards)).div(G, rounding_mode="floor").eq(1)
    failed &= torch.arange(len(rewards)) % G < unended
    passing = result[G : 2 * G][~failed[G : 2 * G]]
    elsewhere = torch.arange(len(rewards)).div(G, rounding_mode="floor").ne(1)
    assert torch.allclose(result[elsewhere], wanted[elsewhere], atol=1e-5)
    shift = passing - wanted[G : 2 * G][~failed[G : 2 * G]].nan_to_num(0.0)
    assert torch.allclose(shift, shift[0].expand_as(shift), atol=1e-5), "all moved alike"
    assert result[G : 2 * G].mean().abs() < 1e-5
    if unended:
        assert result[failed].max() < passing.min()


def test_five_floors_would_have_drowned_them():
    """What was done before: one caption with the floor of five rewards cuts the others' spread."""
    rewards, gates = rollout(0, groups=1), torch.tensor([False] * 5 + [True])
    floors = rewards[:, :5].clone()
    floors[0] = torch.tensor([-6.0, 0.0, -1.0, -1.0, -1.0])
    before = trl_advantages(floors, RECIPE[:5], "normalize_then_sum", "group")[1:].std()
    rewards[0, :3], rewards[0, 5] = NAN, -1.0
    after = advantages(rewards, RECIPE, gates, G, "normalize_then_sum", "group")[1:].std()
    assert after == pytest.approx(1.0, abs=1e-3)
    assert before < 0.5


@pytest.mark.parametrize(("aggregation", "scale"), AGGREGATIONS)
@pytest.mark.parametrize("weight", [0.01, 1.0, 3.0])
def test_a_caption_that_fails_is_below_all_others_whatever_the_rewards(aggregation, scale, weight):
    generator = torch.Generator().manual_seed(1)
    gates = torch.tensor([False, False, False, True])
    for _ in range(50):
        rewards = 100 * torch.randn(4 * G, 4, generator=generator)
        weights = torch.cat([3 * torch.randn(3, generator=generator), torch.tensor([weight])])
        rewards[:, 3] = -(torch.rand(4 * G, generator=generator) < 0.4).float()
        failed = rewards[:, 3] < 0
        result = advantages(rewards, weights, gates, G, aggregation, scale)
        for row, no in zip(result.view(-1, G), failed.view(-1, G), strict=True):
            assert row.mean().abs() < 1e-3 * max(1.0, float(row.abs().max()))
            if no.any() and not no.all():
                assert row[no].max() < row[~no].min()


@pytest.mark.parametrize(("aggregation", "scale"), AGGREGATIONS)
def test_a_group_without_an_end_teaches_nothing(aggregation, scale):
    rewards = torch.cat([one_reward(0), one_reward(8)])
    result = advantages(rewards, WEIGHTS, GATES, G, aggregation, scale)
    alone = advantages(rewards[:G], WEIGHTS, GATES, G, aggregation, scale)
    assert torch.allclose(result[:G], alone, atol=1e-5)
    assert result[G:].abs().max() < 1e-6
    nothing = advantages(one_reward(8), WEIGHTS, GATES, G, aggregation, scale)
    assert nothing.tolist() == [0.0] * G


def test_where_all_that_pass_are_alike_the_one_that_fails_still_learns():
    rewards = torch.tensor([*[[0.5, 0.0]] * 7, [NAN, -1.0]])
    for aggregation, scale in AGGREGATIONS:
        result = advantages(rewards, WEIGHTS, GATES, G, aggregation, scale)
        assert result.tolist() == pytest.approx([0.125] * 7 + [-0.875], abs=1e-3)


def test_the_gravest_gate_alone_counts_and_has_its_share():
    gates, weights = torch.tensor([False, True, True]), torch.tensor([1.0, 1.0, 0.3])
    rewards = torch.cat([one_reward(2), torch.zeros(G, 1)], 1)
    rewards[6:, 2] = -1.0  # both refuse the seventh and the eighth …
    rewards[5] = torch.tensor([NAN, 0.0, -1.0])  # … and the second gate alone the sixth
    assert penalties(rewards, weights, gates).tolist() == pytest.approx([0] * 5 + [0.3, 1, 1])
    parts = contributions(rewards, weights, G, "normalize_then_sum", gates_K=gates)
    total = parts.sum(1)
    low = -2 / 2.5**0.5  # of 1..5
    placed = torch.tensor([low - 0.3, low - 1, low - 1])
    assert torch.allclose(total[5:] - total[0], placed - low, atol=1e-3)
    assert float(shares(parts).sum()) == pytest.approx(1.0)
    assert (shares(parts) > 0).all()


def test_a_gate_of_weight_0_is_only_logged():
    rewards, weights = one_reward(1), torch.tensor([1.0, 0.0])
    rewards[7, 0] = 8.0
    result = advantages(rewards, weights, GATES, G, "normalize_then_sum", "group")
    assert result.tolist() == pytest.approx(BY_HAND[0], abs=1e-3)


@pytest.mark.parametrize("normalised", [True, False])
def test_the_audit_ranks_it_last_too(normalised):
    scores = group_scores(one_reward(2).double(), WEIGHTS.double(), GATES, G, normalised)
    assert scores.dtype == torch.float64
    assert scores[6:].max() < scores[:6].min()
    assert scores.isfinite().all()


def test_content_rewards_judge_no_caption_without_an_end_and_guards_do():
    adapter = RewardFunctions(
        [
            Reward("content", 1.0, lambda batch: [0.5, 0.6]),
            Reward("length", 0.3, make("length", {})),
            Reward("ended", 1.0, make("ended", {})),
        ],
        lambda name: None,
        None,
        [EOS],
        2,
    )
    batch = adapter.batch(["x"] * 2, [None] * 2, ["a red cat", "a red"], [[1, EOS], [1, 2]])
    scores = adapter.scores(batch)
    assert scores["content"] == [0.5, None]
    assert scores["ended"] == [0.0, -1.0]
    assert scores["length"] == [0.0, pytest.approx(-1 / 3)]
    assert adapter.gates_K.tolist() == [False, False, True]
    columns = torch.tensor([[v if v is not None else NAN for v in c] for c in scores.values()]).T
    metrics = adapter.step_metrics(columns, "normalize_then_sum", "group")
    assert metrics["reward/ended/share"] == pytest.approx(1.0)
    assert metrics["completions/failed_groups"] == 0.0
    two = torch.cat([columns, columns[1:].expand(2, 3)])
    metrics = adapter.step_metrics(two, "normalize_then_sum", "group")
    assert metrics["completions/failed_groups"] == 0.5
