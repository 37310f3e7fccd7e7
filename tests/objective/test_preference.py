"""Edge losses against values computed by hand."""

import math

import pytest
import torch

from dpeer.config import Objective
from dpeer.objective.preference import edge_loss, margin_hinge

MARGINS = [-3.0, -0.5, 0.0, 0.25, 1.0, 4.0]

HAND = {
    "sigmoid": lambda m: math.log1p(math.exp(-m)),
    "ipo": lambda m: (m - 0.5) ** 2,
    "hinge": lambda m: max(0.0, 1 - m),
}
SLOPE = {
    "sigmoid": lambda m: -1 / (1 + math.exp(m)),
    "ipo": lambda m: 2 * (m - 0.5),
    "hinge": lambda m: -1.0 if m < 1 else 0.0,
}


@pytest.mark.parametrize("loss", HAND)
def test_values_and_slopes(loss):
    margins = torch.tensor(MARGINS, dtype=torch.float64, requires_grad=True)
    losses = edge_loss(margins, Objective(loss=loss))
    losses.sum().backward()
    torch.testing.assert_close(losses.detach(), torch.tensor([HAND[loss](m) for m in MARGINS], dtype=torch.float64))
    torch.testing.assert_close(margins.grad, torch.tensor([SLOPE[loss](m) for m in MARGINS], dtype=torch.float64))


def test_label_smoothing_is_the_expected_loss_under_flips():
    losses = edge_loss(torch.tensor(MARGINS, dtype=torch.float64), Objective(label_smoothing=0.1))
    hand = [0.9 * HAND["sigmoid"](m) + 0.1 * HAND["sigmoid"](-m) for m in MARGINS]
    torch.testing.assert_close(losses, torch.tensor(hand, dtype=torch.float64))


def test_ln2_at_the_reference():
    assert edge_loss(torch.zeros(1), Objective()).item() == pytest.approx(math.log(2), abs=1e-7)


def test_large_margins_stay_finite():
    margins = torch.tensor([-1e4, 1e4], requires_grad=True)
    losses = edge_loss(margins, Objective(label_smoothing=0.2))
    losses.sum().backward()
    assert losses.isfinite().all() and margins.grad.isfinite().all()


def test_ipo_is_the_published_loss_times_beta_squared():
    beta, h = 0.3, torch.tensor([-2.0, 0.0, 1.7, 9.0], dtype=torch.float64)
    published = (h - 1 / (2 * beta)) ** 2
    torch.testing.assert_close(edge_loss(beta * h, Objective(loss="ipo", beta=beta)), beta**2 * published)


def test_margin_hinge():
    margins = torch.tensor([0.2, 0.9, -1.0, -5.0], requires_grad=True)
    eps = torch.tensor([0.5, 0.5, 0.0, math.inf], dtype=torch.float64)
    hinge = margin_hinge(margins, eps)
    torch.testing.assert_close(hinge, torch.tensor([0.3, 0.0, 1.0, 0.0]))
    (0.0 * hinge[3] + hinge.sum()).backward()
    assert margins.grad.tolist() == [-1.0, 0.0, -1.0, 0.0]
