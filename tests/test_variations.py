"What a run may do otherwise than the paper: whom the shape loss asks, what discriminators see, the Dice loss."
from dataclasses import replace

import pytest
import torch
from tiny import AVERAGED, SHORT, Random, frozen, noise, same, state

from cssgan.data.augmentation import random_view
from cssgan.guard import InputError
from cssgan.models import Networks
from cssgan.training.run import start, teachers_of
from cssgan.training.schedule import Phase
from cssgan.training.trainer import Stopped, fit

FROZEN = replace(SHORT, teacher="frozen")


@pytest.fixture(scope="module")
def data(): return noise()


def test_without_a_word_nobody_but_the_learners_is_asked(): assert teachers_of(start(SHORT)) is None


def test_a_frozen_teacher_is_what_the_segmentors_were_before_the_joint_phase(data, tmp_path):
    seen = {}
    def watch(run, keep):
        if run.phase == 1 and not run.seen: seen["before"] = frozen(run.nets.S_A)
        if run.phase == 2: seen["teacher"] = frozen(teachers_of(run).S_A)
    run = fit(data, FROZEN, tmp_path, progress=False, callback=watch)
    assert same(seen["before"], seen["teacher"]) and not same(seen["teacher"], frozen(run.nets.S_A))


def test_a_run_from_trained_weights_takes_the_segmentors_it_begins_with(data, tmp_path):
    nets, seen = Networks(4, 1, seed=3), {}
    def watch(run, keep): seen["teacher"] = frozen(teachers_of(run).S_B)
    fit(data, replace(FROZEN, phases=(Phase("joint", 1),)), tmp_path, nets, progress=False, callback=watch)
    assert same(seen["teacher"], frozen(nets.S_B))


@pytest.mark.parametrize("names, nets", [(("generators", "segmentors", "joint"), None), (("segmentors", "joint"), 1)])
def test_a_phase_of_segmentors_before_the_joint_one_leaves_the_teacher(names, nets):
    phases = tuple(Phase(name, 1) for name in names)
    assert not start(replace(FROZEN, phases=phases), Networks(4, 1) if nets else None).evaluators


def test_a_frozen_teacher_that_would_not_know_a_domain_is_refused(data, tmp_path):
    blind = replace(data, train_B=Random(2, "B", 1, missing=2.))
    with pytest.raises(InputError, match="in MRI, whose labels"): fit(blind, FROZEN, tmp_path, progress=False)


def test_an_averaged_teacher_is_the_average_as_it_is_now(data):
    run = start(replace(AVERAGED, teacher="averaged"))
    assert teachers_of(run) is run.averages and not any(p.requires_grad for p in run.averages.parameters())


@pytest.mark.parametrize("config", [FROZEN, replace(AVERAGED, teacher="averaged"), replace(SHORT, augment_D=True),
                                    replace(SHORT, dice_loss="joint")])
@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_an_interrupted_run_that_varies_ends_bit_for_bit_like_a_whole_one(data, tmp_path, config, engine):
    config = replace(config, engine=engine)
    fit(data, config, tmp_path / "whole", progress=False)
    def stop(run, keep): keep.button.pressed = (run.phase, run.epoch, run.seen) == (2, 1, 2)
    with pytest.raises(Stopped): fit(data, config, tmp_path / "run", progress=False, callback=stop)
    fit(data, config, tmp_path / "run", resume=True, progress=False)
    (a, b, c), (d, e, f) = state(tmp_path / "whole"), state(tmp_path / "run")
    assert same(a, d) and same(b, e) and c == f


def test_each_variation_makes_a_difference(data, tmp_path):
    ends, teachers = [], [{"teacher": name} for name in ("online", "frozen", "averaged")]
    for k, change in enumerate([*teachers, {"augment_D": True}, {"dice_loss": "joint"}]):
        run = fit(data, replace(AVERAGED, **change), tmp_path / str(k), progress=False)
        ends.append(run.nets.G_A.net.last.weight.detach().clone())
    assert not any(torch.equal(ends[i], ends[j]) for i in range(len(ends)) for j in range(i))


def test_a_view_has_another_contrast_and_is_shifted_and_lets_gradients_pass():
    x = torch.linspace(-1, 1, 24)[:, None, None].repeat(1, 16, 16)[None, None].requires_grad_()
    view = random_view(torch.Generator().manual_seed(0))
    seen = view(x)
    assert seen.shape == x.shape and torch.equal(view(x), seen) and not torch.equal(seen, x)
    inside = seen.detach()[0, 0, 4:-4, 8, 8].diff()
    assert torch.allclose(inside, inside[0]) and .75 <= (inside[0] / x.detach()[0, 0, :, 8, 8].diff()[0]) <= 1.25
    seen.sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("change, says", [
    (lambda: start(replace(FROZEN, phases=(Phase("joint", 1),))), "must have learned before: put"),
    (lambda: start(FROZEN, evaluators=torch.nn.ModuleDict({"S_A": Networks(4, 1).S_A})), "leave one of them out"),
    (lambda: replace(SHORT, teacher="averaged"), "set averaging"),
    (lambda: replace(SHORT, teacher="theirs"), "teacher"),
])
def test_a_teacher_that_cannot_be_is_refused_in_one_line(change, says):
    with pytest.raises(InputError, match=says) as e: change()
    assert "\n" not in str(e.value)
