"""The maths of advantages: against numbers worked out by hand and against slow loops."""

import pytest
import torch

from vizer_rl.algorithms import advantages as adv


def ragged(rows=5, columns=7, seed=0):
    """Random (B, T) numbers and the mask of captions of several lengths."""
    torch.manual_seed(seed)
    lengths = torch.randint(1, columns + 1, (rows,))
    mask = (torch.arange(columns)[None] < lengths[:, None]).long()
    return torch.randn(rows, columns), torch.randn(rows, columns), mask


def slow_gae(rewards, values, length, gamma, lam):
    """A_t = sum over l of (gamma lam)^l delta_{t+l}, term by term."""
    out = [0.0] * len(rewards)
    for t in range(length):
        for k in range(t, length):
            after = values[k + 1] if k + 1 < length else 0.0
            delta = rewards[k] + gamma * after - values[k]
            out[t] += (gamma * lam) ** (k - t) * delta
    return out


def test_gae_by_hand():
    rewards = torch.tensor([[0.0, 0.0, 1.0, 9.0]])
    values = torch.tensor([[0.5, 0.4, 0.8, 9.0]])
    mask = torch.tensor([[1, 1, 1, 0]])
    # deltas: .9*.4-.5 = -.14, .9*.8-.4 = .32, 1-.8 = .2; gamma lam = .45
    expected = [-0.14 + 0.45 * (0.32 + 0.45 * 0.2), 0.32 + 0.45 * 0.2, 0.2, 0.0]
    got = adv.gae(rewards, values, mask, 0.9, 0.5)
    assert torch.allclose(got, torch.tensor([expected]))


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.97, 0.9), (1.0, 0.0), (0.5, 1.0)])
def test_gae_is_the_sum_of_discounted_deltas(gamma, lam):
    rewards, values, mask = ragged()
    got = adv.gae(rewards, values, mask, gamma, lam)
    lengths = mask.sum(1).tolist()
    slow = [
        slow_gae(r, v, n, gamma, lam)
        for r, v, n in zip(rewards.tolist(), values.tolist(), lengths, strict=True)
    ]
    assert torch.allclose(got, torch.tensor(slow), atol=1e-5)


def test_without_values_and_discount_advantages_are_the_returns():
    _, _, mask = ragged()
    scores = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.25])
    rewards = adv.token_rewards(scores, mask)
    got = adv.gae(rewards, torch.zeros_like(rewards), mask, 1.0, 1.0)
    returns = scores[:, None] * mask
    assert torch.equal(got, returns)
    assert torch.equal(adv.whiten(got, mask), adv.whiten(returns, mask))


def test_the_score_stands_at_the_last_token_and_kl_at_every_one():
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    kl = torch.tensor([[0.1, 0.2, 5.0], [0.3, -0.1, 0.4]])
    got = adv.token_rewards(torch.tensor([2.0, 3.0]), mask, kl, beta=0.5)
    assert torch.allclose(got, torch.tensor([[-0.05, 1.9, 0.0], [-0.15, 0.05, 2.8]]))


def test_whitening_by_hand():
    x = torch.tensor([[1.0, 3.0, 100.0], [5.0, 100.0, 100.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    # mean 3, variance (4 + 0 + 4) / 3
    s = (8 / 3) ** 0.5
    assert torch.allclose(
        adv.whiten(x, mask), torch.tensor([[-2 / s, 0.0, 0.0], [2 / s, 0.0, 0.0]])
    )


def test_whitening_over_two_devices_is_whitening_of_their_union():
    x, _, mask = ragged(6, 5)
    halves = [(x[:3], mask[:3]), (x[3:], mask[3:])]
    whole = adv.whiten(x, mask)
    mean, variance = adv.masked_moments(x, mask)
    # what each device would be told: the sums of both, first of x, then of squared distances
    result = [
        [torch.stack([(a * m).sum(), m.sum().float()]) for a, m in halves],
        [torch.stack([((a - mean) ** 2 * m).sum(), m.sum().float()]) for a, m in halves],
    ]
    for k, (a, m) in enumerate(halves):
        calls = iter(result)
        got = adv.whiten(a, m, lambda mine, calls=calls: sum(next(calls)))
        assert torch.allclose(got, whole[3 * k : 3 * k + 3], atol=1e-6)
    assert variance > 0


def test_leave_one_out_by_hand():
    got = adv.leave_one_out(torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]]))
    assert torch.allclose(got, torch.tensor([[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]]))
    nan = torch.nan
    got = adv.leave_one_out(torch.tensor([[1.0, nan, 3.0], [nan, nan, 7.0]]))
    assert torch.allclose(got, torch.tensor([[-2.0, 0.0, 2.0], [0.0, 0.0, 0.0]]))


def test_the_value_loss_is_clipped_by_hand():
    values = torch.tensor([[1.0, 0.0, 7.0]])
    old = torch.tensor([[0.0, 0.0, 0.0]])
    returns = torch.tensor([[2.0, 1.0, 0.0]])
    mask = torch.tensor([[1, 1, 0]])
    # first: (1-2)^2 = 1 against (.2-2)^2 = 3.24; second: 1 against 1
    assert adv.clipped_value_loss(values, old, returns, mask, 0.2).item() == pytest.approx(
        0.5 * (3.24 + 1) / 2
    )
    free = adv.clipped_value_loss(values, old, returns, mask, float("inf"))
    assert free.item() == pytest.approx(0.5)


def test_explained_variance_knows_a_perfect_a_constant_and_a_bad_critic():
    returns, _, mask = ragged()
    assert adv.explained_variance(returns, returns, mask) == 1
    assert adv.explained_variance(torch.full_like(returns, 3.0), returns, mask).abs() < 1e-5
    assert adv.explained_variance(-returns, returns, mask).item() == pytest.approx(-3, abs=1e-4)


def test_ratio_metrics_by_hand():
    old = torch.zeros(1, 3)
    logps = torch.tensor([[0.0, 2.0, 50.0]]).log().nan_to_num(neginf=0.0)
    mask = torch.tensor([[1, 1, 0]])
    got = adv.ratio_metrics(logps, old, mask, 0.2)
    log2 = torch.tensor(2.0).log().item()
    assert got["ratio"].item() == pytest.approx(1.5)
    assert got["clipfrac"].item() == pytest.approx(0.5)
    assert got["approx_kl"].item() == pytest.approx((1 - log2) / 2)


def test_running_moments_are_those_of_all_rows_and_leave_out_nan():
    torch.manual_seed(0)
    rows = torch.randn(40, 3) * torch.tensor([1.0, 5.0, 0.1]) + 7
    rows[3, 1] = torch.nan
    moments = adv.Moments(3)
    for subset in rows.split(9):
        moments.update(subset)
    truth = rows[:, 1][~rows[:, 1].isnan()]
    assert torch.allclose(moments.mean[[0, 2]].float(), rows[:, [0, 2]].mean(0))
    assert moments.mean[1].item() == pytest.approx(truth.mean().item())
    scaled = moments.standardise(rows)
    assert scaled[:, 0].std().item() == pytest.approx(1, abs=1e-3)
    assert scaled[3, 1].isnan()
    again = adv.Moments(3)
    again.load_state_dict(moments.state_dict())
    assert torch.equal(again.standardise(rows[:2]), scaled[:2])
