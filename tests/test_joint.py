"The joint loop: who learns when, what the shape loss reaches, and that the fast step is the plain one."
import math, sys, threading
from dataclasses import replace

import pytest
import torch

from cssgan import joint, models
from cssgan.datasets import Batch
from cssgan.joint import (Pool, make_optimizers, there_and_back, update_discriminators, update_generators,
                          update_generators_and_segmentors, update_segmentors)
from cssgan.losses import shape_loss
from cssgan.models import Networks
from cssgan.schedule import preset
from cssgan.training import start, step
from cssgan.volumes import IGNORE
from conftest import ROOT
from tiny import changed, frozen, noise, same

sys.path.append(str(ROOT / "bench"))
from plain import plain_networks, plain_optimizers, plain_step


@pytest.fixture(scope="module")
def batch(): return next(noise().epoch(0, 0))


@pytest.fixture(params=[1, 2], ids=["one core", "two cores"])
def cores(request):
    "Both halves in turn; both at once."
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


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


def test_segmentors_see_real_fake_and_reconstructed_volumes_with_the_right_labels(cores, monkeypatch, batch):
    seen = {}
    nets = Networks(4, 1)
    for name in ("S_A", "S_B"): getattr(nets, name).register_forward_pre_hook(lambda net, args, name=name: seen.__setitem__(name, args[0]))
    passes = joint.Passes(*(torch.full_like(batch.real_A, v) for v in (0.1, 0.2, 0.3, 0.4)))
    labels, of_thread = {}, threading.local() # the two may come at once, in any order
    for name in ("S_A", "S_B"): getattr(nets, name).register_forward_pre_hook(lambda net, args, name=name: setattr(of_thread, "name", name))
    monkeypatch.setattr(joint, "shape_loss", lambda logits, y: (labels.__setitem__(of_thread.name, y), shape_loss(logits, y))[1])
    update_segmentors(nets, make_optimizers(nets).S, batch, passes)
    assert torch.equal(seen["S_A"], torch.cat([batch.real_A, passes.fake_A, passes.rec_A])) and torch.equal(labels["S_A"], torch.cat([batch.y_A, batch.y_B, batch.y_A]))
    assert torch.equal(seen["S_B"], torch.cat([batch.real_B, passes.fake_B, passes.rec_B])) and torch.equal(labels["S_B"], torch.cat([batch.y_B, batch.y_A, batch.y_B]))


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


def test_a_pool_keeps_what_it_was_given_even_if_that_changes_afterwards():
    pool, x = Pool(1), torch.ones(1, 1, 2, 2, 2)
    pool.exchange(x, torch.Generator())
    x.zero_()
    assert pool.volumes[0].eq(1).all()


# ---- the fast step is the plain one

def doubled(batch): return Batch(*(part.double() if torch.is_tensor(part) and part.is_floating_point() else part for part in batch))


def fast_steps(nets, batches, pool_size=2, spare_memory=False, lr=1e-3, gamma=1.0):
    "Joint steps as a run makes them: the networks change, the losses are returned."
    optimizers, pools, rng, losses = make_optimizers(nets, lr), (Pool(pool_size), Pool(pool_size)), torch.Generator().manual_seed(5), []
    for batch in batches:
        passes, of_step = update_generators_and_segmentors(nets, optimizers, batch, 10.0, gamma, spare_memory)
        fake_A, fake_B = pools[0].exchange(passes.fake_A, rng), pools[1].exchange(passes.fake_B, rng)
        losses.append(of_step | update_discriminators(nets, optimizers.D, batch, fake_A, fake_B))
    return losses


def plain_steps(nets, batches, pool_size=2, lr=1e-3, gamma=1.0):
    "The same with every network asked about every volume on its own, in PyTorch's own layers."
    optimizers, pools, rng = plain_optimizers(nets, lr), {side: Pool(pool_size) for side in "AB"}, torch.Generator().manual_seed(5)
    return [plain_step(nets, optimizers, pools, rng, batch, 10.0, gamma) for batch in batches]


@pytest.mark.parametrize("batch_size, missing, pool_size, gamma", [(1, 0.0, 1, 1.0), (2, 0.9, 2, 1.0), (2, 0.5, 0, 0.3)])
def test_the_fast_step_is_the_plain_step_in_losses_and_in_weights(cores, batch_size, missing, pool_size, gamma):
    "In double precision, over three steps; tensors may differ by a billionth of what they learned, and no weight by more than that of the largest."
    data = noise(3 * batch_size, 2 * batch_size, missing)
    batches = [doubled(b) for b in data.epoch(0, 0, batch_size)]
    assert len(batches) == 3 and all(len(b.real_A) == batch_size and b.real_A.dtype == torch.float64 for b in batches)
    assert missing == 0 or len({(y == IGNORE).sum().item() for b in batches for y in b.y_A}) > 1
    nets = Networks(4, 1, seed=3).double()
    plain, before = plain_networks(nets), frozen(nets)
    fast_losses, plain_losses = fast_steps(nets, batches, pool_size, gamma=gamma), plain_steps(plain, batches, pool_size, gamma=gamma)
    for fast, literal in zip(fast_losses, plain_losses, strict=True):
        assert fast.keys() == literal.keys() == {"gan", "cyc", "shape", "S_A", "S_B", "D_A", "D_B"}
        for name in fast: assert math.isclose(fast[name].item(), literal[name].item(), rel_tol=1e-12), name
    weights = dict(plain.named_parameters())
    assert weights.keys() == dict(nets.named_parameters()).keys()
    for name, weight in nets.named_parameters():
        learned, apart = weights[name] - before[name], weight - weights[name]
        assert learned.norm() > 0 and apart.norm() <= 1e-9 * learned.norm() and apart.abs().max() <= 1e-9 * weights[name].abs().max(), name


def test_the_fast_step_is_the_one_of_three_updates_in_single_precision_too(batch):
    "`update_generators`, then `update_segmentors`, with nothing shared between them: all but the rounding is the same."
    ends = []
    for fast in (True, False):
        nets = Networks(4, 1)
        optimizers = make_optimizers(nets, 1e-3)
        if fast: _, losses = update_generators_and_segmentors(nets, optimizers, batch)
        else:
            passes, losses = update_generators(nets, optimizers.G, batch)
            losses |= update_segmentors(nets, optimizers.S, batch, passes)
        ends.append({name: loss.item() for name, loss in losses.items()})
    assert ends[0] == pytest.approx(ends[1], rel=2e-2 if models.has_fast_bfloat16(batch.real_A.device) else 1e-5)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_sparing_memory_changes_no_bit(monkeypatch, bfloat16):
    monkeypatch.setattr(models, "has_fast_bfloat16", lambda device: bfloat16)
    ends, losses = [], []
    for spare_memory in (False, True):
        nets = Networks(4, 1)
        losses.append(fast_steps(nets, list(noise().epoch(0, 0, 2)), spare_memory=spare_memory))
        ends.append(frozen(nets))
    assert same(*ends) and all(same(*step) for step in zip(*losses))


def test_sparing_memory_changes_no_bit_of_the_generators_phase(batch):
    ends = []
    for spare_memory in (False, True):
        nets = Networks(4, 1)
        update_generators(nets, make_optimizers(nets, 1e-3).G, batch, gamma_shape=0.0, spare_memory=spare_memory)
        ends.append(frozen(nets))
    assert same(*ends)


def test_the_shape_loss_of_a_batch_is_the_mean_of_its_volumes_losses():
    "However unequally they are annotated; a volume that nobody annotated counts as 0."
    rng = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(4, 6, 5, 4, 3, generator=rng, dtype=torch.float64), torch.randint(0, 6, (4, 5, 4, 3), generator=rng)
    labels[1, 1:], labels[2, :, :, 1:], labels[3] = IGNORE, IGNORE, IGNORE
    alone = [shape_loss(logits[i:i + 1], labels[i:i + 1]) for i in range(4)]
    by_hand = [-(logits[i].log_softmax(0).gather(0, labels[i].clamp(max=5)[None])[0][labels[i] != IGNORE]).mean() for i in range(3)]
    assert torch.allclose(torch.stack(alone[:3]), torch.stack(by_hand), rtol=1e-12) and alone[3] == 0
    assert torch.isclose(shape_loss(logits, labels), sum(alone) / 4, rtol=1e-12, atol=0)


@pytest.mark.parametrize("update", ["generators", "segmentors", "discriminators", "both"])
def test_every_pair_of_a_batch_pulls_alike(cores, update):
    "The gradient and the losses of a batch are the means of its pairs', also where one has few labels."
    data, found = noise(2, 2, missing=0.95), []
    both = doubled(next(data.epoch(0, 0, 2)))
    for part in (slice(0, 2), slice(0, 1), slice(1, 2)):
        nets, batch = Networks(4, 1).double(), Batch(*(x[part] for x in both))
        optimizers = make_optimizers(nets)
        if update == "generators": losses = update_generators(nets, optimizers.G, batch)[1]
        elif update == "segmentors": losses = update_segmentors(nets, optimizers.S, batch)
        elif update == "discriminators": losses = update_discriminators(nets, optimizers.D, batch, batch.real_B, batch.real_A)
        else: losses = update_generators_and_segmentors(nets, optimizers, batch)[1]
        found.append([*losses.values(), *(p.grad for p in nets.parameters() if p.grad is not None)])
    for whole, one, other in zip(*found, strict=True): assert torch.allclose(whole, (one + other) / 2, rtol=1e-12, atol=0)


def test_side_by_side_or_one_after_the_other_changes_no_bit():
    "One core, and two: the same losses and weights, every time."
    ends, cores = [], torch.get_num_threads()
    try:
        for n in (1, 2, 2, 2, 2): # several times: two threads are never as quick as each other twice
            torch.set_num_threads(n)
            nets = Networks(4, 1)
            ends.append([frozen(nets), *fast_steps(nets, list(noise(6, 4).epoch(0, 0, 2))), frozen(nets)])
    finally: torch.set_num_threads(cores)
    for others in ends[1:]: assert all(same(*pair) for pair in zip(ends[0], others, strict=True))


@pytest.mark.parametrize("side, spare_memory, at_once", [(80, False, True), (81, False, False), (80, True, False)])
def test_large_volumes_and_little_memory_have_one_half_after_the_other(monkeypatch, side, spare_memory, at_once):
    asked, pair = [], torch.empty(1, 1, side, side, side)
    monkeypatch.setattr(joint, "descend", lambda optimizers, learn, pairs, at_once: asked.append(at_once))
    monkeypatch.setattr(joint, "sum_up", lambda found: None)
    labels = torch.empty(1, side, side, side)
    update_generators(Networks(4, 1), None, Batch(pair, labels, pair, labels, ()), spare_memory=spare_memory)
    assert asked == [at_once]


@pytest.mark.parametrize("spare_memory, of_each", [(False, 1), (True, 2)])
def test_both_halves_have_all_cores_together_or_each(monkeypatch, spare_memory, of_each):
    "At once half of them each; to spare memory one after the other, all of them each."
    used, cores, loss = [], torch.get_num_threads(), joint.cycle_loss
    monkeypatch.setattr(joint, "cycle_loss", lambda *volumes: used.append(torch.get_num_threads()) or loss(*volumes))
    run = start(replace(preset("smoke"), spare_memory=spare_memory))
    try:
        torch.set_num_threads(2)
        step(run, "joint", next(noise().epoch(0, 0)))
    finally: torch.set_num_threads(cores)
    assert used == [of_each, of_each]


def test_a_batch_is_stacked_in_its_order():
    nets, two = Networks(4, 1).double(), doubled(next(noise().epoch(0, 0, 2)))
    with torch.no_grad(): alone = [there_and_back(nets, two.real_A[i:i + 1], two.real_B[i:i + 1]) for i in range(2)]
    passes, _ = update_generators(nets, make_optimizers(nets).G, two)
    for stack, first, second in zip(passes, *alone): assert torch.allclose(stack, torch.cat([first, second]), rtol=0, atol=1e-12) and not torch.allclose(first, second, rtol=0, atol=1e-3) # the last digit depends on the number of cores


def test_the_two_who_teach_the_generators_are_left_as_they_were(batch):
    "A discriminator that is asked gets no gradient; a segmentor gets that of its own loss."
    nets = Networks(4, 1)
    optimizers = make_optimizers(nets, 1e-3)
    before = {n: frozen(net) for n, net in nets.named_children()}
    update_generators_and_segmentors(nets, optimizers, batch)
    assert all(p.grad is None for D in (nets.D_A, nets.D_B) for p in D.parameters())
    assert {n for n, net in nets.named_children() if changed(net, before[n])} == {"G_A", "G_B", "S_A", "S_B"}
