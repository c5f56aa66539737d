"The losses against numbers that a person can work out."
import math

import pytest
import torch

from cssgan.losses import adversarial_loss, cycle_loss, discriminator_loss, generator_objective, shape_loss
from cssgan.scans.volumes import IGNORE


def test_discriminator_loss_is_least_squares_and_halved():
    real, fake = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.5])
    assert discriminator_loss(real, fake).item() == pytest.approx(0.5 * 0.5 + 0.5 * 0.125)
    assert discriminator_loss(torch.ones(3), torch.zeros(3)).item() == 0


def test_adversarial_loss_asks_for_ones():
    assert adversarial_loss(torch.ones(2, 1, 3, 3, 3)).item() == 0
    assert adversarial_loss(torch.tensor([0.0, 2.0, -1.0])).item() == pytest.approx((1 + 1 + 4) / 3)


def test_the_two_sides_pull_at_a_fake_score_in_opposite_directions():
    score = torch.tensor([0.5], requires_grad=True)
    up, = torch.autograd.grad(adversarial_loss(score), score)
    down, = torch.autograd.grad(discriminator_loss(torch.ones(1), score), score)
    assert up < 0 < down


def test_cycle_loss_is_the_mean_absolute_difference():
    assert cycle_loss(torch.tensor([0.0, 1.0, -1.0, 0.0]), torch.tensor([0.0, 0.0, 1.0, 1.0])).item() == pytest.approx(
        1.0
    )


def test_shape_loss_of_no_opinion_is_log_of_the_classes():
    logits, labels = torch.zeros(1, 6, 4, 5, 6), torch.randint(0, 6, (1, 4, 5, 6))
    assert shape_loss(logits, labels).item() == pytest.approx(math.log(6), abs=1e-5)


def test_shape_loss_skips_what_nobody_annotated():
    torch.manual_seed(0)
    logits, labels = torch.randn(1, 6, 4, 4, 4), torch.randint(0, 6, (1, 4, 4, 4))
    half = labels.clone()
    half[:, 2:] = IGNORE
    assert shape_loss(logits, half).item() == pytest.approx(
        shape_loss(logits[:, :, :2], labels[:, :2]).item(), abs=1e-6
    )
    logits.requires_grad_()
    shape_loss(logits, half).backward()
    assert logits.grad[:, :, 2:].abs().max() == 0 < logits.grad[:, :, :2].abs().max()


def test_shape_loss_of_nothing_annotated_is_zero_and_can_be_differentiated():
    logits = torch.randn(2, 6, 3, 3, 3, requires_grad=True)
    loss = shape_loss(logits, torch.full((2, 3, 3, 3), IGNORE))
    loss.backward()
    assert loss.item() == 0 and logits.grad.abs().max() == 0


def test_objective_has_the_papers_weights():
    one, two, three = torch.tensor(1.0), torch.tensor(2.0), torch.tensor(3.0)
    assert generator_objective(one, two, three).item() == 1 + 10 * 2 + 1 * 3
    assert generator_objective(one, two, three, lambda_cyc=5, gamma_shape=0).item() == 11
