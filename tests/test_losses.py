"The losses against numbers that a person can work out."
import math

import pytest
import torch

from cssgan.losses import (
    adversarial_loss,
    cycle_loss,
    discriminator_loss,
    generator_objective,
    marginal_cross_entropy,
    shape_loss,
)
from cssgan.pretraining import cross_entropy_and_dice, dice_loss
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


# labels that are known in part

def as_set(*classes): return -sum(2**k for k in classes)


def segmented(classes=6, seed=0):
    torch.manual_seed(seed)
    return torch.randn(2, classes, 5, 4, 3, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("classes", [2, 3, 6, 62])
def test_a_set_of_one_is_that_class_and_a_set_of_all_is_no_question(classes):
    logits, labels = segmented(classes), torch.randint(0, classes, (2, 5, 4, 3))
    assert torch.allclose(shape_loss(logits, -(2**labels)), shape_loss(logits, labels), atol=1e-12)
    loss = shape_loss(logits, torch.full_like(labels, as_set(*range(classes))))
    loss.backward()
    assert abs(loss.item()) < 1e-12 and logits.grad.abs().max() < 1e-12


def test_the_loss_of_a_set_is_that_of_its_classes_taken_for_one():
    logits, labels = segmented(), torch.randint(0, 6, (2, 5, 4, 3))
    merged = torch.stack([logits[:, [0, 3, 4]].logsumexp(1), logits[:, 1], logits[:, 2], logits[:, 5]], 1)
    partial = torch.where((labels == 0) | (labels == 3) | (labels == 4), as_set(0, 3, 4), labels)
    as_four = torch.tensor([0, 1, 2, 0, 0, 3])[labels]
    assert torch.allclose(shape_loss(logits, partial), shape_loss(merged, as_four), atol=1e-12)


def test_partial_labels_leave_the_others_and_what_is_ignored_as_they_are():
    logits, labels = segmented(), torch.randint(1, 6, (2, 5, 4, 3))
    labels[:, 0], labels[0, 1] = IGNORE, as_set(0, 5)
    each = marginal_cross_entropy(logits, labels)
    assert (each[labels >= 0] == 0).all() and (each[labels < 0] > 0).all()
    drawn = torch.where(labels < 0, IGNORE, labels)
    counts = (labels != IGNORE).flatten(1).sum(1)
    expected = shape_loss(logits[:1], drawn[:1]) * (drawn[0] != IGNORE).sum() / counts[0] + each[0].sum() / counts[0]
    assert torch.allclose(shape_loss(logits[:1], labels[:1]), expected, atol=1e-12)
    assert torch.equal(shape_loss(logits[1:], labels[1:]), shape_loss(logits[1:], drawn[1:]))
    assert torch.allclose(shape_loss(logits, labels), (expected + shape_loss(logits[1:], drawn[1:])) / 2, atol=1e-12)


def test_a_sure_mistake_has_a_finite_loss_and_gradient():
    logits = torch.full((1, 6, 1, 1, 1), -1e4)
    logits[:, 1] = 1e4
    logits.requires_grad_()
    loss = shape_loss(logits, torch.full((1, 1, 1, 1), as_set(0, 3, 4)))
    loss.backward()
    assert loss.item() > 1e4 and logits.grad.isfinite().all() and logits.grad[0, 1] > 0 > logits.grad[0, 3]


def test_gradients_of_partial_labels():
    labels = torch.randint(0, 6, (2, 5, 4, 3))
    labels[:, :3] = as_set(0, 2)
    labels[0, 4] = IGNORE
    assert torch.autograd.gradcheck(lambda x: shape_loss(x, labels), segmented())


# ---- the Dice loss

def soft_dice(p, y): return 2 * (p * y).sum() / (p.sum() + y.sum())


def test_dice_loss_is_one_minus_the_mean_dice_of_the_probabilities():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 4, 4, 4), torch.randint(0, 4, (2, 4, 4, 4))
    p = logits.softmax(1)
    dice = [soft_dice(p[i, k], (labels[i] == k).float()) for i in range(2) for k in range(1, 4)]
    assert dice_loss(logits, labels).item() == pytest.approx(1 - sum(dice).item() / 6, abs=1e-5)
    assert cross_entropy_and_dice(logits, labels) == shape_loss(logits, labels) + dice_loss(logits, labels)


@pytest.mark.parametrize("unknown", [IGNORE, -0b0101], ids=["nobody annotated it", "a set of classes"])
def test_dice_loss_leaves_out_what_is_not_known_for_certain(unknown):
    torch.manual_seed(0)
    logits, labels = torch.randn(1, 4, 4, 4, 4, requires_grad=True), torch.randint(0, 4, (1, 4, 4, 4))
    half = labels.clone()
    half[:, 2:] = unknown
    loss = dice_loss(logits, half)
    assert loss.item() == pytest.approx(dice_loss(logits[:, :, :2], labels[:, :2]).item(), abs=1e-5)
    loss.backward()
    assert logits.grad[:, :, 2:].abs().max() == 0 < logits.grad[:, :, :2].abs().max()
