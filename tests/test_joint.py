"The joint loop: who learns when, what the shape loss reaches, and that the fast step is the plain one."
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny import changed, frozen, noise, same

from cssgan import joint
from cssgan.data.datasets import Batch
from cssgan.fast import networks
from cssgan.fast import step as fast
from cssgan.fast.networks import accelerate
from cssgan.joint import (
    Passes,
    Pool,
    Variation,
    discriminator_losses,
    freeze_all_but,
    generator_losses,
    make_optimizers,
    minimize,
    round_trips,
    segmentor_losses,
)
from cssgan.losses import shape_loss
from cssgan.models import Networks
from cssgan.pretraining import cross_entropy_and_dice, generator_step, segmentor_step
from cssgan.scans.volumes import IGNORE
from cssgan.training.run import start, step
from cssgan.training.schedule import preset

NAMES = {"gan", "cyc", "shape", "S_A", "S_B", "D_A", "D_B"}


@pytest.fixture(scope="module")
def batch(): return next(noise().epoch(0, 0))


@pytest.fixture(params=[1, 2], ids=["one core", "two cores"])
def cores(request):
    "Both directions in turn; both at once."
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def pools(size=2): return {"A": Pool(size), "B": Pool(size)}
def rng(seed=5): return torch.Generator().manual_seed(seed)
def dimmed(x): return .8 * x + .1
def quick(*args, **kwargs): return accelerate(Networks(*args, **kwargs))
REFERENCE = SimpleNamespace(joint_step=joint.joint_step, segmentor_step=segmentor_step, generator_step=generator_step)
ENGINES = pytest.mark.parametrize("engine, make", [(REFERENCE, Networks), (fast, quick)], ids=["reference", "fast"])


# ---- one update

@ENGINES
@pytest.mark.parametrize("phase, learn", [("segmentor", {"S"}), ("generator", {"G", "D"}), ("joint", {"G", "S", "D"})])
def test_each_step_moves_the_networks_of_its_phase_and_no_others(batch, engine, make, phase, learn):
    nets = make(4, 1)
    before, optimizers = {n: frozen(net) for n, net in nets.named_children()}, make_optimizers(nets, 1e-3)
    more = () if phase == "segmentor" else (pools(), rng())
    losses = getattr(engine, f"{phase}_step")(nets, optimizers, batch, *more)
    assert {n for n, net in nets.named_children() if changed(net, before[n])} == {
        f"{n}_{d}" for n in learn for d in "AB"
    }
    assert (
        set(losses) == {"segmentor": {"S_A", "S_B"}, "generator": {"gan", "cyc", "D_A", "D_B"}, "joint": NAMES}[phase]
    )
    assert not any(loss.requires_grad for loss in losses.values())


@ENGINES
def test_a_step_leaves_no_gradient_behind_that_the_next_one_uses(batch, engine, make):
    "The same generators, whether or not the others learned before with their own optimizers and were put back."
    results = []
    for others_first in (False, True):
        nets = make(4, 1)
        optimizers = make_optimizers(nets, 1e-3)
        if others_first:
            before, fresh = frozen(nets), make_optimizers(nets, 1e-3)
            engine.joint_step(nets, fresh, batch, pools(), rng())
            nets.load_state_dict(before)
        engine.joint_step(nets, optimizers, batch, pools(), rng())
        results.append(frozen(nets))
    assert same(*results)


def test_freezing_keeps_gradients_out_of_a_networks_weights_only(batch):
    nets = Networks(4, 1)
    freeze_all_but(nets, "G_A", "G_B")
    losses = generator_losses(nets, batch, round_trips(nets, batch.real_A, batch.real_B))
    sum(losses.values()).backward()
    assert all(p.grad is not None for G in (nets.G_A, nets.G_B) for p in G.parameters())
    assert all(p.grad is None for other in (nets.S_A, nets.S_B, nets.D_A, nets.D_B) for p in other.parameters())


def test_shape_loss_reaches_the_generators_through_the_segmentors(batch):
    nets = Networks(4, 1)
    nets.S_A.requires_grad_(False), nets.S_B.requires_grad_(False)
    passes = round_trips(nets, batch.real_A, batch.real_B)
    shape_loss(nets.S_B(passes.fake_B), batch.y_A).backward()
    assert any((p.grad != 0).any() for p in nets.G_B.parameters()) and all(
        p.grad is None for p in [*nets.G_A.parameters(), *nets.S_B.parameters()]
    )


@ENGINES
def test_gamma_changes_what_the_generators_learn(batch, engine, make):
    learned = []
    for gamma in (0.0, 1.0):
        nets = make(4, 1)
        engine.joint_step(nets, make_optimizers(nets, 1e-3), batch, pools(), rng(), gamma_shape=gamma)
        learned.append(frozen(nets.G_B))
    assert not same(*learned)


def test_segmentors_are_not_asked_before_they_know_anything(batch):
    nets = Networks(4, 1)
    for S in (nets.S_A, nets.S_B): S.register_forward_pre_hook(lambda *_: pytest.fail("a segmentor was asked"))
    for engine in (REFERENCE, fast): engine.generator_step(nets, make_optimizers(nets), batch, pools(), rng())


def test_segmentors_see_real_fake_and_reconstructed_volumes_with_the_right_labels(batch):
    passes = Passes(*(torch.full_like(batch.real_A, v) for v in (0.1, 0.2, 0.3, 0.4)))
    nets = Networks(4, 1)
    with torch.no_grad():
        losses = segmentor_losses(nets, batch, passes)
        of_A = [(batch.real_A, batch.y_A), (passes.fake_A, batch.y_B), (passes.rec_A, batch.y_A)]
        of_B = [(batch.real_B, batch.y_B), (passes.fake_B, batch.y_A), (passes.rec_B, batch.y_B)]
        for name, seen in (("S_A", of_A), ("S_B", of_B)):
            by_hand = torch.stack([shape_loss(getattr(nets, name)(x), y) for x, y in seen]).mean()
            assert losses[name] == pytest.approx(by_hand.item(), rel=1e-6)


def test_discriminators_see_the_real_and_what_the_pool_gives_back(batch):
    nets, older = Networks(4, 1), torch.full_like(batch.real_A, 0.5)
    with torch.no_grad():
        losses = discriminator_losses(nets, batch, older, -older)
        by_hand = 0.5 * (nets.D_A(batch.real_A) - 1).square().mean() + 0.5 * nets.D_A(older).square().mean()
    assert losses["D_A"] == pytest.approx(by_hand.item(), rel=1e-6) and losses["D_A"] != losses["D_B"]


def test_fakes_and_reconstructions_go_the_right_way(batch):
    nets = Networks(4, 1)
    with torch.no_grad():
        passes = round_trips(nets, batch.real_A, batch.real_B)
        assert torch.equal(passes.fake_B, nets.G_B(batch.real_A)) and torch.equal(passes.rec_A, nets.G_A(passes.fake_B))
        assert torch.equal(passes.fake_A, nets.G_A(batch.real_B)) and torch.equal(passes.rec_B, nets.G_B(passes.fake_A))


def test_minimizing_is_one_step_down_this_gradient_alone():
    weight = torch.nn.Parameter(torch.tensor(1.))
    weight.grad = torch.tensor(100.) # somebody's
    minimize(3 * weight, torch.optim.SGD([weight], lr=.1))
    assert weight.item() == pytest.approx(.7)


@ENGINES
def test_learning_lowers_the_losses(batch, engine, make):
    nets = make(4, 1)
    optimizers = make_optimizers(nets, 2e-3)
    segmentors = [engine.segmentor_step(nets, optimizers, batch)["S_A"].item() for _ in range(8)]
    cycles = [engine.generator_step(nets, optimizers, batch, pools(), rng())["cyc"].item() for _ in range(8)]
    assert segmentors[-1] < segmentors[0] and cycles[-1] < cycles[0]


# ---- pools

def test_pool_returns_the_past_and_never_more_than_its_size():
    pool, rng = Pool(3), torch.Generator().manual_seed(0)
    out = [pool.exchange(torch.full((1, 1, 2, 2, 2), float(k)), rng)[0, 0, 0, 0, 0].item() for k in range(40)]
    assert out[:3] == [0, 1, 2] and len(pool.volumes) == 3
    assert (
        any(o < k for k, o in enumerate(out))
        and any(o == k for k, o in enumerate(out[3:], 3))
        and all(o <= k for k, o in enumerate(out))
    )


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

def doubled(batch):
    return Batch(*(part.double() if torch.is_tensor(part) and part.is_floating_point() else part for part in batch))


def steps(engine, nets, batches, pool_size=2, lr=1e-3, gamma=1.0, **more):
    "Joint steps as a run makes them: the networks change, the losses are returned."
    optimizers, past, random = make_optimizers(nets, lr), pools(pool_size), rng()
    return [engine.joint_step(nets, optimizers, batch, past, random, 10.0, gamma, **more) for batch in batches]


@pytest.mark.parametrize(
    "batch_size, missing, pool_size, gamma", [(1, 0.0, 1, 1.0), (2, 0.9, 2, 1.0), (2, 0.5, 0, 0.3)]
)
def test_the_fast_step_is_the_plain_step_in_losses_and_in_weights(cores, batch_size, missing, pool_size, gamma):
    """In double precision, over three steps.

    Tensors may differ by a billionth of what they learned, and no weight by more than that of the largest."""
    data = noise(3 * batch_size, 2 * batch_size, missing)
    batches = [doubled(b) for b in data.epoch(0, 0, batch_size)]
    assert len(batches) == 3 and all(len(b.real_A) == batch_size and b.real_A.dtype == torch.float64 for b in batches)
    assert missing == 0 or len({(y == IGNORE).sum().item() for b in batches for y in b.y_A}) > 1
    plain, nets = Networks(4, 1, seed=3).double(), quick(4, 1, seed=3).double()
    before = frozen(nets)
    fast_losses = steps(fast, nets, batches, pool_size, gamma=gamma)
    torch.set_num_threads(1)
    plain_losses = steps(joint, plain, batches, pool_size, gamma=gamma)
    for ours, literal in zip(fast_losses, plain_losses, strict=True):
        assert ours.keys() == literal.keys() == NAMES
        for name in ours: assert math.isclose(ours[name].item(), literal[name].item(), rel_tol=1e-12), name
    weights = dict(plain.named_parameters())
    assert weights.keys() == dict(nets.named_parameters()).keys()
    for name, weight in nets.named_parameters():
        learned, apart = weights[name] - before[name], weight - weights[name]
        assert (
            learned.norm() > 0
            and apart.norm() <= 1e-9 * learned.norm()
            and apart.abs().max() <= 1e-9 * weights[name].abs().max()
        ), name


@pytest.mark.parametrize("how", [
    Variation((1., 1., 0.)), Variation((1., 0., 1.)), Variation((2., 1., .5)),
    Variation(loss=cross_entropy_and_dice), Variation(view=dimmed)])
def test_variations_are_the_same_in_both_steps(how):
    ends, batches = [], [doubled(b) for b in noise().epoch(0, 0)]
    for engine, make in ((joint, Networks), (fast, quick)):
        nets = make(4, 1, seed=3).double()
        ends.append((steps(engine, nets, batches, how=how), frozen(nets)))
    for plain, ours in zip(ends[0][0], ends[1][0], strict=True):
        assert all(math.isclose(plain[n].item(), ours[n].item(), rel_tol=1e-12) for n in NAMES)
    for name, weight in ends[0][1].items():
        assert torch.allclose(weight, ends[1][1][name], rtol=0, atol=1e-9 * weight.abs().max().item()), name


@pytest.mark.parametrize("weights", [(1., 1., 1.), (1., 0., 1.)])
def test_a_teacher_other_than_the_learner_is_the_same_in_both_steps_and_learns_nothing(weights):
    ends, batches = [], [doubled(b) for b in noise().epoch(0, 0)]
    for engine, make in ((joint, Networks), (fast, quick)):
        nets, teachers = make(4, 1, seed=3).double(), make(4, 1, seed=4).double().requires_grad_(False)
        before = frozen(teachers)
        ends.append((steps(engine, nets, batches, how=Variation(weights, teachers)), frozen(nets)))
        assert not changed(teachers, before)
    for plain, ours in zip(ends[0][0], ends[1][0], strict=True):
        assert all(math.isclose(plain[n].item(), ours[n].item(), rel_tol=1e-12) for n in NAMES)
    for name, weight in ends[0][1].items():
        assert torch.allclose(weight, ends[1][1][name], rtol=0, atol=1e-9 * weight.abs().max().item()), name
    own = steps(joint, Networks(4, 1, seed=3).double(), batches, how=Variation(weights))
    assert own[0]["shape"] != ends[0][0][0]["shape"]


@ENGINES
def test_a_segmentor_learns_nothing_from_what_has_no_weight(batch, engine, make):
    "Where only the other domain has labels, translations are all that there is to learn from."
    unknown = batch._replace(y_B=torch.full_like(batch.y_B, IGNORE))
    for weights, learns in (((1., 1., 1.), True), ((1., 0., 1.), False)):
        nets = make(4, 1)
        before = frozen(nets.S_B)
        engine.joint_step(nets, make_optimizers(nets, 1e-3), unknown, pools(), rng(), how=Variation(weights))
        assert changed(nets.S_B, before) == learns


@pytest.mark.parametrize("phase", ["segmentor", "segmentor, Dice", "generator", "generator, view"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_steps_before_the_joint_phase_are_equal_too(phase, batch_size):
    ends, (phase, *other) = [], phase.split(", ")
    variation = [10., Variation(view=dimmed)] if other == ["view"] else []
    for engine, make in ((REFERENCE, Networks), (fast, quick)):
        nets = make(4, 1, seed=3).double()
        of_segmentors = [cross_entropy_and_dice] if other == ["Dice"] else []
        of_generators, optimizers = (pools(), rng(), *variation), make_optimizers(nets, 1e-3)
        more = of_segmentors if phase == "segmentor" else of_generators
        batches = [doubled(b) for b in noise(3 * batch_size, 2 * batch_size, 0.5).epoch(0, 0, batch_size)]
        losses = [getattr(engine, f"{phase}_step")(nets, optimizers, b, *more) for b in batches]
        ends.append((losses, frozen(nets)))
    for plain, ours in zip(ends[0][0], ends[1][0], strict=True):
        assert plain.keys() == ours.keys() and all(
            math.isclose(plain[n].item(), ours[n].item(), rel_tol=1e-12) for n in plain
        )
    for name, weight in ends[0][1].items():
        assert torch.allclose(weight, ends[1][1][name], rtol=0, atol=1e-9 * weight.abs().max().item()), name


def test_the_quick_layers_and_the_quick_step_are_right_alone_too(batch):
    "Either may be taken without the other."
    three, ends = [doubled(b) for b in noise().epoch(0, 0)], []
    for engine, make in ((joint, Networks), (joint, quick), (fast, Networks)):
        nets = make(4, 1, seed=3).double()
        steps(engine, nets, three)
        ends.append(frozen(nets))
    for others in ends[1:]:
        for name, weight in ends[0].items():
            assert torch.allclose(weight, others[name], rtol=0, atol=1e-9 * weight.abs().max().item()), name


@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_fast_step_is_the_plain_one_in_single_precision_too(monkeypatch, batch, bfloat16):
    "All but the rounding is the same."
    monkeypatch.setattr(networks, "has_fast_bfloat16", lambda device: bfloat16)
    plain, ours = (steps(engine, make(4, 1), [batch])[0] for engine, make in ((joint, Networks), (fast, quick)))
    for name in NAMES:
        assert ours[name].item() == pytest.approx(plain[name].item(), rel=5e-2 if bfloat16 else 1e-4), name


def test_a_run_trains_with_either_engine():
    ends = []
    for engine in ("reference", "fast"):
        run = start(replace(preset("smoke"), engine=engine, lr=1e-3))
        for phase in ("segmentors", "generators", "joint"): losses = step(run, phase, next(noise().epoch(0, 0)))
        ends.append(losses)
    assert ends[0].keys() == ends[1].keys() == NAMES
    for name in NAMES: assert ends[1][name].item() == pytest.approx(ends[0][name].item(), rel=0.1, abs=0.02), name
    with pytest.raises(ValueError, match="at engine"): replace(preset("smoke"), engine="slow")


@pytest.mark.parametrize("bfloat16", [False, True])
def test_activation_checkpointing_changes_no_bit(monkeypatch, bfloat16):
    monkeypatch.setattr(networks, "has_fast_bfloat16", lambda device: bfloat16)
    ends, losses = [], []
    for activation_checkpointing in (False, True):
        nets = quick(4, 1)
        losses.append(
            steps(fast, nets, list(noise().epoch(0, 0, 2)), activation_checkpointing=activation_checkpointing)
        )
        ends.append(frozen(nets))
    assert same(*ends) and all(same(*step) for step in zip(*losses))


def test_activation_checkpointing_changes_no_bit_of_the_generators_phase(batch):
    ends = []
    for activation_checkpointing in (False, True):
        nets = quick(4, 1)
        fast.update_generators(
            nets, make_optimizers(nets, 1e-3).G, batch, activation_checkpointing=activation_checkpointing
        )
        ends.append(frozen(nets))
    assert same(*ends)


def test_the_shape_loss_of_a_batch_is_the_mean_of_its_volumes_losses():
    "However unequally they are annotated; a volume that nobody annotated counts as 0."
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 6, 5, 4, 3, generator=rng, dtype=torch.float64)
    labels = torch.randint(0, 6, (4, 5, 4, 3), generator=rng)
    labels[1, 1:], labels[2, :, :, 1:], labels[3] = IGNORE, IGNORE, IGNORE
    alone = [shape_loss(logits[i:i + 1], labels[i:i + 1]) for i in range(4)]
    by_hand = [
        -(logits[i].log_softmax(0).gather(0, labels[i].clamp(max=5)[None])[0][labels[i] != IGNORE]).mean()
        for i in range(3)
    ]
    assert torch.allclose(torch.stack(alone[:3]), torch.stack(by_hand), rtol=1e-12) and alone[3] == 0
    assert torch.isclose(shape_loss(logits, labels), sum(alone) / 4, rtol=1e-12, atol=0)


@pytest.mark.parametrize("update", ["generators", "segmentors", "discriminators", "both"])
def test_every_pair_of_a_batch_pulls_alike(cores, update):
    "The gradient and the losses of a batch are the means of its pairs', also where one has few labels."
    data, found = noise(2, 2, missing=0.95), []
    both = doubled(next(data.epoch(0, 0, 2)))
    for part in (slice(0, 2), slice(0, 1), slice(1, 2)):
        nets, batch = quick(4, 1).double(), Batch(*(x[part] for x in both))
        optimizers = make_optimizers(nets)
        if update == "generators": losses = fast.update_generators(nets, optimizers.G, batch)[1]
        elif update == "segmentors": losses = fast.update_segmentors(nets, optimizers.S, batch)
        elif update == "discriminators":
            losses = fast.update_discriminators(nets, optimizers.D, batch, batch.real_B, batch.real_A)
        else: losses = fast.update_generators_and_segmentors(nets, optimizers, batch)[1]
        found.append([*losses.values(), *(p.grad for p in nets.parameters() if p.grad is not None)])
    for whole, one, other in zip(*found, strict=True):
        assert torch.allclose(whole, (one + other) / 2, rtol=1e-12, atol=0)


def test_side_by_side_or_one_after_the_other_changes_no_bit():
    "One core, and two: the same losses and weights, every time."
    ends, cores = [], torch.get_num_threads()
    try:
        for n in (1, 2, 2, 2, 2): # several times: two threads are never as quick as each other twice
            torch.set_num_threads(n)
            nets = quick(4, 1)
            ends.append([frozen(nets), *steps(fast, nets, list(noise(6, 4).epoch(0, 0, 2))), frozen(nets)])
    finally: torch.set_num_threads(cores)
    for others in ends[1:]: assert all(same(*pair) for pair in zip(ends[0], others, strict=True))


@pytest.mark.parametrize(
    "side, activation_checkpointing, at_once", [(80, False, True), (81, False, False), (80, True, False)]
)
def test_large_volumes_and_little_memory_have_one_direction_after_the_other(
    monkeypatch, side, activation_checkpointing, at_once
):
    asked, pair = [], torch.empty(1, 1, side, side, side)
    monkeypatch.setattr(fast, "accumulate_and_step", lambda optimizers, learn, pairs, at_once: asked.append(at_once))
    monkeypatch.setattr(fast, "collect", lambda found: None)
    labels = torch.empty(1, side, side, side)
    fast.update_generators(
        quick(4, 1), None, Batch(pair, labels, pair, labels, ()), activation_checkpointing=activation_checkpointing
    )
    assert asked == [at_once]


@pytest.mark.parametrize("activation_checkpointing, of_each", [(False, 1), (True, 2)])
def test_both_directions_have_all_cores_together_or_each(monkeypatch, activation_checkpointing, of_each):
    "At once half of them each; to spare memory one after the other, all of them each."
    used, cores, loss = [], torch.get_num_threads(), fast.cycle_loss
    monkeypatch.setattr(fast, "cycle_loss", lambda *volumes: used.append(torch.get_num_threads()) or loss(*volumes))
    run = start(replace(preset("smoke"), activation_checkpointing=activation_checkpointing))
    try:
        torch.set_num_threads(2)
        step(run, "joint", next(noise().epoch(0, 0)))
    finally: torch.set_num_threads(cores)
    assert used == [of_each, of_each]


def test_a_batch_is_stacked_in_its_order():
    nets, two = quick(4, 1).double(), doubled(next(noise().epoch(0, 0, 2)))
    with torch.no_grad(): alone = [round_trips(nets, two.real_A[i:i + 1], two.real_B[i:i + 1]) for i in range(2)]
    passes, _ = fast.update_generators(nets, make_optimizers(nets).G, two)
    for stack, first, second in zip(passes, *alone):
        assert torch.allclose(stack, torch.cat([first, second]), rtol=0, atol=1e-12) and not torch.allclose(
            first, second, rtol=0, atol=1e-3
        )  # the last digit depends on the number of cores


def test_the_two_who_teach_the_generators_are_left_as_they_were(batch):
    "A discriminator that is asked gets no gradient; a segmentor gets that of its own loss."
    nets = quick(4, 1)
    optimizers = make_optimizers(nets, 1e-3)
    before = {n: frozen(net) for n, net in nets.named_children()}
    fast.update_generators_and_segmentors(nets, optimizers, batch)
    assert all(p.grad is None for D in (nets.D_A, nets.D_B) for p in D.parameters())
    assert {n for n, net in nets.named_children() if changed(net, before[n])} == {"G_A", "G_B", "S_A", "S_B"}
