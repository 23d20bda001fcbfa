"""Losses on logits: the formula, the extremes, the smoothing."""

from __future__ import annotations

from dataclasses import fields

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
    torch.testing.assert_close(cost, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-14)


FORMULAS = {
    # By the papers, with s = sigmoid in float64; each of D on real, D on fake, G.
    "non_saturating": (
        lambda x: -x.sigmoid().log(),
        lambda x: -(1 - x.sigmoid()).log(),
        lambda x: -x.sigmoid().log(),
    ),
    "minimax": (
        lambda x: -x.sigmoid().log(),
        lambda x: -(1 - x.sigmoid()).log(),
        lambda x: (1 - x.sigmoid()).log(),
    ),
    "least_squares": (lambda x: (x - 1) ** 2 / 2, lambda x: x**2 / 2, lambda x: (x - 1) ** 2 / 2),
    "hinge": (
        lambda x: torch.maximum(torch.zeros_like(x), 1 - x),
        lambda x: torch.maximum(torch.zeros_like(x), 1 + x),
        lambda x: -x,
    ),
    "wasserstein": (lambda x: -x, lambda x: x, lambda x: -x),
}


@pytest.mark.parametrize("name", FORMULAS)
@given(logits=strategies.logits(extreme=15.0))
def test_losses_are_the_papers(name, logits):
    """Each cost is its formula, and so is its gradient."""
    loss = getattr(losses, name)
    for cost, formula in zip((loss.real, loss.fake, loss.generator), FORMULAS[name]):
        ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
        # 1 - sigmoid(15) keeps 9 digits in float64.
        torch.testing.assert_close(cost(ours), formula(theirs), rtol=1e-8, atol=1e-9)
        kinks = (logits.abs() == 1).any() and name == "hinge"
        if not kinks:  # where a derivative is a matter of choice
            cost(ours).sum().backward()
            formula(theirs).sum().backward()
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-8)


@given(real=strategies.logits(extreme=7.0), fake=strategies.logits(extreme=7.0))
def test_relativistic_is_the_papers(real, fake):
    """D pays -log sigmoid(D(x) - D(G(z))), and G the same with the two exchanged."""
    real, fake = (logits[: min(len(real), len(fake))] for logits in (real, fake))
    loss = losses.relativistic
    wanted = -(real - fake).sigmoid().log()
    torch.testing.assert_close(loss.discriminator(real, fake), wanted, rtol=1e-8, atol=1e-9)
    wanted = -(fake - real).sigmoid().log()
    torch.testing.assert_close(loss.generator(real, fake), wanted, rtol=1e-8, atol=1e-9)


ALL = {
    "smoothed": losses.smoothed(0.1),
    "relativistic": losses.relativistic,
    **{name: getattr(losses, name) for name in FORMULAS},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ALL)
def test_extreme_logits_stay_finite(dtype, name):
    """Costs and gradients are finite where a sigmoid has long rounded to 0 or 1."""
    loss = ALL[name]
    for field in fields(loss):
        cost = getattr(loss, field.name)
        logits = torch.tensor([-1e4, -100, 0, 100, 1e4], dtype=dtype, requires_grad=True)
        values = cost(logits, logits.flip(0)) if name == "relativistic" else cost(logits)
        values.sum().backward()
        assert values.dtype == dtype
        assert values.isfinite().all()
        assert logits.grad.isfinite().all()


def test_every_loss_is_tested():
    """A new loss of the module must be among those above."""
    kinds = (losses.Loss, losses.PairedLoss)
    made = {name for name, thing in vars(losses).items() if isinstance(thing, kinds)}
    assert made == {*ALL} - {"smoothed"}


@given(logits=strategies.logits(), smoothing=st.floats(0.01, 0.49))
def test_smoothing_is_one_sided(logits, smoothing):
    """Smoothing moves D's target for real images alone: its cost is least at 1 - smoothing."""
    plain, smooth = losses.non_saturating, losses.smoothed(smoothing)
    assert torch.equal(plain.fake(logits), smooth.fake(logits))
    assert torch.equal(plain.generator(logits), smooth.generator(logits))
    best = torch.tensor([1 - smoothing], dtype=torch.float64).logit().requires_grad_()
    smooth.real(best).sum().backward()
    assert best.grad.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("smoothing", [-0.1, 0.5, 1.0, float("nan"), "none"])
def test_smoothing_out_of_range_is_refused(smoothing):
    """Smoothing outside [0, 0.5) is named with its value, the rule and the remedy."""
    with pytest.raises(ValueError) as error:
        losses.smoothed(smoothing)
    sentence = f"label_smoothing must be in [0, 0.5), got {smoothing!r}"
    assert str(error.value).startswith(sentence)
