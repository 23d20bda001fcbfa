"""Losses on logits: the formula, the extremes, the smoothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from tinygan import losses

import strategies


@given(logits=strategies.logits(), target=st.floats(0, 1))
def test_cross_entropy_is_pytorchs(logits, target):
    """The cost is binary cross entropy with logits, in value and in gradient."""
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    cost = losses.cross_entropy(ours, target)
    expected = F.binary_cross_entropy_with_logits(
        theirs, torch.full_like(theirs, target), reduction="none"
    )
    cost.sum().backward()
    expected.sum().backward()

    assert cost.shape == logits.shape
    torch.testing.assert_close(cost, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-14)


@given(logits=strategies.logits(extreme=20.0))
def test_non_saturating_is_the_papers(logits):
    """D pays -log D(x) - log(1 - D(G(z))), G pays -log D(G(z))."""
    loss = losses.non_saturating()
    probability = logits.sigmoid()

    # 1 - sigmoid(20) keeps 7 digits in float64: the formula is the inexact side here.
    torch.testing.assert_close(loss.real(logits), -probability.log(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(loss.fake(logits), -(1 - probability).log(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(loss.generator(logits), loss.real(logits))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_extreme_logits_stay_finite(dtype, smoothing):
    """Costs and gradients are finite where a sigmoid has long rounded to 0 or 1."""
    loss = losses.non_saturating(label_smoothing=smoothing)
    for cost in (loss.real, loss.fake, loss.generator):
        logits = torch.tensor([-1e4, -100, 0, 100, 1e4], dtype=dtype, requires_grad=True)
        values = cost(logits)
        values.sum().backward()
        assert values.isfinite().all()
        assert logits.grad.isfinite().all()


@given(logits=strategies.logits(), smoothing=st.floats(0.01, 0.49))
def test_smoothing_is_one_sided(logits, smoothing):
    """Smoothing moves D's target for real images alone: its cost is least at 1 - smoothing."""
    plain, smooth = losses.non_saturating(), losses.non_saturating(label_smoothing=smoothing)

    assert torch.equal(plain.fake(logits), smooth.fake(logits))
    assert torch.equal(plain.generator(logits), smooth.generator(logits))
    best = torch.tensor([1 - smoothing], dtype=torch.float64).logit().requires_grad_()
    smooth.real(best).sum().backward()
    assert best.grad.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("smoothing", [-0.1, 0.5, 1.0, float("nan")])
def test_smoothing_out_of_range_is_refused(smoothing):
    """Smoothing outside [0, 0.5) is named with its value, the rule and the remedy."""
    with pytest.raises(ValueError) as error:
        losses.non_saturating(label_smoothing=smoothing)
    assert str(error.value) == (
        f"label_smoothing must be in [0, 0.5), got {smoothing}; use 0.1, say."
    )
