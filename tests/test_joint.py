"The joint loop: who learns when, what the shape loss reaches, and that the fast step is the plain one."
import pytest
import torch

from cssgan import joint
from cssgan.joint import (Pool, make_optimizers, there_and_back, update_discriminators, update_generators,
                          update_generators_and_segmentors, update_segmentors)
from cssgan.losses import shape_loss
from cssgan.models import Networks
from tiny import changed, frozen, noise, same


@pytest.fixture(scope="module")
def batch(): return next(noise().epoch(0, 0))


# ---- one update

def test_generators_learn_alone(batch):
    nets = Networks(4, 1)
    before, optimizers = {n: frozen(net) for n, net in nets.named_children()}, make_optimizers(nets, 1e-3)
    passes, losses = update_generators(nets, optimizers.G, batch)
    assert {n for n, net in nets.named_children() if changed(net, before[n])} == {"G_A", "G_B"}
    assert set(losses) == {"gan", "cyc", "shape"} and not any(p.requires_grad for p in passes)


@pytest.mark.parametrize("kind", ["S", "D"])
def test_segmentors_and_discriminators_leave_the_generators_alone(batch, kind):
    nets = Networks(4, 1)
    optimizers, passes = make_optimizers(nets, 1e-3), there_and_back(nets, batch.real_A, batch.real_B)
    before = {n: frozen(net) for n, net in nets.named_children()}
    if kind == "S": update_segmentors(nets, optimizers.S, batch, type(passes)(*(p.detach() for p in passes)))
    else: update_discriminators(nets, optimizers.D, batch, passes.fake_A.detach(), passes.fake_B.detach())
    assert {n for n, net in nets.named_children() if changed(net, before[n])} == {f"{kind}_A", f"{kind}_B"}


def test_an_update_leaves_no_gradient_behind_that_the_next_one_uses(batch):
    "The same generator step, whether or not the others learned before with their own optimizers and were put back."
    results = []
    for others_first in (False, True):
        nets = Networks(4, 1)
        optimizers = make_optimizers(nets, 1e-3)
        if others_first:
            before = frozen(nets)
            update_segmentors(nets, optimizers.S, batch)
            update_discriminators(nets, optimizers.D, batch, batch.real_A, batch.real_B)
            nets.load_state_dict(before)
        update_generators(nets, optimizers.G, batch)
        results.append(frozen(nets.G_B))
    assert same(*results)


def test_shape_loss_reaches_the_generators_through_the_segmentors(batch):
    nets = Networks(4, 1)
    nets.S_A.requires_grad_(False), nets.S_B.requires_grad_(False)
    passes = there_and_back(nets, batch.real_A, batch.real_B)
    shape_loss(nets.S_B(passes.fake_B), batch.y_A).backward()
    assert any((p.grad != 0).any() for p in nets.G_B.parameters()) and all(p.grad is None for p in [*nets.G_A.parameters(), *nets.S_B.parameters()])


def test_gamma_changes_what_the_generators_learn(batch):
    learned = []
    for gamma in (0.0, 1.0):
        nets = Networks(4, 1)
        _, losses = update_generators(nets, make_optimizers(nets, 1e-3).G, batch, gamma_shape=gamma)
        learned.append((frozen(nets.G_B), "shape" in losses))
    assert not same(learned[0][0], learned[1][0]) and [named for _, named in learned] == [False, True]


def test_segmentors_see_real_fake_and_reconstructed_volumes_with_the_right_labels(batch):
    seen = {}
    nets = Networks(4, 1)
    for name in ("S_A", "S_B"): getattr(nets, name).register_forward_pre_hook(lambda net, args, name=name: seen.__setitem__(name, args[0]))
    passes = joint.Passes(*(torch.full_like(batch.real_A, v) for v in (0.1, 0.2, 0.3, 0.4)))
    labels = []
    original = joint.shape_loss
    try:
        joint.shape_loss = lambda logits, y: (labels.append(y), original(logits, y))[1]
        update_segmentors(nets, make_optimizers(nets).S, batch, passes)
    finally: joint.shape_loss = original
    assert torch.equal(seen["S_A"], torch.cat([batch.real_A, passes.fake_A, passes.rec_A])) and torch.equal(labels[0], torch.cat([batch.y_A, batch.y_B, batch.y_A]))
    assert torch.equal(seen["S_B"], torch.cat([batch.real_B, passes.fake_B, passes.rec_B])) and torch.equal(labels[1], torch.cat([batch.y_B, batch.y_A, batch.y_B]))


def test_fakes_and_reconstructions_go_the_right_way(batch):
    nets = Networks(4, 1)
    with torch.no_grad():
        passes = there_and_back(nets, batch.real_A, batch.real_B)
        assert torch.equal(passes.fake_B, nets.G_B(batch.real_A)) and torch.equal(passes.rec_A, nets.G_A(passes.fake_B))
        assert torch.equal(passes.fake_A, nets.G_A(batch.real_B)) and torch.equal(passes.rec_B, nets.G_B(passes.fake_A))


def test_learning_lowers_the_losses(batch):
    nets = Networks(4, 1)
    optimizers = make_optimizers(nets, 2e-3)
    segmentors = [update_segmentors(nets, optimizers.S, batch)["S_A"].item() for _ in range(8)]
    cycles = [update_generators(nets, optimizers.G, batch)[1]["cyc"].item() for _ in range(8)]
    assert segmentors[-1] < segmentors[0] and cycles[-1] < cycles[0]


# ---- pools

def test_pool_returns_the_past_and_never_more_than_its_size():
    pool, rng = Pool(3), torch.Generator().manual_seed(0)
    out = [pool.exchange(torch.full((1, 1, 2, 2, 2), float(k)), rng)[0, 0, 0, 0, 0].item() for k in range(40)]
    assert out[:3] == [0, 1, 2] and len(pool.volumes) == 3
    assert any(o < k for k, o in enumerate(out)) and any(o == k for k, o in enumerate(out[3:], 3)) and all(o <= k for k, o in enumerate(out))


def test_a_pool_of_no_size_remembers_nothing():
    pool = Pool(0)
    x = torch.rand(2, 1, 2, 2, 2)
    assert torch.equal(pool.exchange(x, torch.Generator()), x) and pool.volumes == []
