"""Augmentation: reproducible, labels move with their image, nothing leaves [-1, 1], and all trainings can use it."""
from dataclasses import replace

import pytest
import torch

from cssgan.data.augmentation import (
    augment,
    case_stream,
    change_intensities,
    contrast_agent,
    random_points,
    sample,
    sample_labels,
)
from cssgan.data.cases import phantom_cases
from cssgan.data.datasets import unpaired
from cssgan.guard import InputError
from cssgan.scans.volumes import IGNORE, Grid
from cssgan.task import HEART
from cssgan.training.run import what_changes
from cssgan.training.schedule import Config, Phase, preset
from cssgan.training.trainer import fit

GRID = Grid((24, 24, 16), (7., 7., 8.))
CT, MRI = HEART.domains


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return unpaired(phantom_cases({"train": (2, 2), "valid": (1, 1)}), GRID, tmp_path_factory.mktemp("cache"))


def stream(seed=0, epoch=0, name="a"): return case_stream(seed, epoch, name)


@pytest.mark.parametrize("other", [dict(seed=1), dict(epoch=1), dict(name="b")])
def test_changes_are_those_of_seed_epoch_and_case(other, data):
    volume, labels, _ = data.train_A[0]
    one, two, three = (augment(volume, labels, CT, GRID, stream(**how)) for how in ({}, {}, other))
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    assert not torch.equal(one[0], three[0])


def test_changes_do_not_depend_on_what_was_drawn_before(data):
    volume, labels, _ = data.train_B[0]
    one = augment(volume, labels, MRI, GRID, stream())[0]
    torch.rand(100)
    assert torch.equal(augment(volume, labels, MRI, GRID, stream())[0], one)


@pytest.mark.parametrize("domain", [CT, MRI], ids=lambda d: d.name)
@pytest.mark.parametrize("seed", range(12))
def test_intensities_stay_within_bounds_and_labels_are_labels(seed, domain, data):
    volume, labels, _ = (data.train_A if domain is CT else data.train_B)[0]
    image, moved = augment(volume, labels, domain, GRID, stream(seed))
    assert image.shape == volume.shape and image.dtype == torch.float32 and image.isfinite().all()
    assert -1 <= image.min() and image.max() <= 1
    assert moved.dtype == torch.int64 and set(moved.unique().tolist()) <= {*labels.unique().tolist(), IGNORE}
    assert (moved == 1).any()


def test_the_image_and_its_labels_move_together():
    "A body that is bright exactly where it is labelled stays so, but for interpolation at its rim."
    labels = torch.zeros(GRID.shape, dtype=torch.int64)
    labels[8:16, 8:16, 5:11] = 1
    image, moved = augment(2. * labels[None].float() - 1, labels, MRI, GRID, stream(3), intensities=False)
    inside = moved != IGNORE
    agree = ((image[0] > 0) == (moved == 1))[inside].float().mean()
    assert agree > 0.97 and not torch.equal(moved, labels)


def test_points_of_the_grid_itself_change_nothing(data):
    volume, labels, _ = data.train_A[0]
    axes = [(torch.arange(n) - (n - 1) / 2) * s for n, s in zip(GRID.shape, GRID.spacing)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    assert torch.allclose(sample(volume, points, GRID), volume, atol=1e-5)
    assert torch.equal(sample_labels(labels, points, GRID), labels)


def test_sets_of_regions_survive_as_they_are():
    labels = torch.full(GRID.shape, -(2**61 + 1))
    moved = sample_labels(labels, random_points(GRID, stream()), GRID)
    assert set(moved.unique().tolist()) == {-(2**61 + 1), IGNORE}


def test_the_contrast_agent_leaves_air_alone(data):
    volume, _, _ = data.train_A[0]
    changed = contrast_agent(volume, CT, stream(5))
    assert torch.allclose(changed[volume < -.5], volume[volume < -.5], atol=1e-4)
    assert not torch.allclose(changed[volume > .2], volume[volume > .2], atol=.01)


@pytest.mark.parametrize("knots", [False, True])
def test_any_window_can_be_augmented(knots, data):
    import msgspec
    bent = ((-1000., -1.), (-150., -.6), (250., .6), (1000., 1.))
    domain = msgspec.structs.replace(CT, window=None, knots=bent) if knots else CT
    for seed in range(6):
        image = change_intensities(data.train_A[0][0], domain, stream(seed))
        assert image.isfinite().all() and image.abs().max() <= 1


# ---- training

def test_an_epoch_is_augmented_where_it_is_asked_for(data):
    plain, shape, all_ = (list(data.epoch(0, 3, augmented=how)) for how in ("", "shape", "all"))
    for one, two, three in zip(plain, shape, all_):
        assert one.ids == two.ids == three.ids
        assert not torch.equal(one.real_A, two.real_A) and not torch.equal(two.real_A, three.real_A)
        assert torch.equal(two.y_A, three.y_A) and two.y_B.dtype == torch.int64
    again = list(data.epoch(0, 3, seen=1, augmented="all"))
    assert torch.equal(again[0].real_B, all_[1].real_B)  # an epoch that is resumed


TINY = Config(GRID, 4, 1, (Phase("segmentors", 1), Phase("joint", 1)), lr=1e-3, augment=True)


def test_an_interrupted_run_sees_the_same_changes(data, tmp_path):
    whole = fit(data, TINY, tmp_path / "whole", progress=False)
    def stop(run, keeper): keeper.button.pressed = run.phase == 1 and run.seen == 1
    with pytest.raises(KeyboardInterrupt): fit(data, TINY, tmp_path / "parts", progress=False, callback=stop)
    parts = fit(data, TINY, tmp_path / "parts", progress=False, resume=True)
    for one, two in zip(whole.nets.parameters(), parts.nets.parameters()): assert torch.equal(one, two)
    plain = fit(data, replace(TINY, augment=False), tmp_path / "plain", progress=False)
    assert any(not torch.equal(a, b) for a, b in zip(whole.nets.parameters(), plain.nets.parameters()))


def test_presets_of_the_paper_and_the_demo_are_not_augmented():
    assert not any(preset(name).augment for name in ("paper", "demo", "cpu", "smoke"))


@pytest.mark.parametrize("name, asked, augmented", [("cpu", False, False), ("cpu", True, True),
                                                    ("pretrained", False, True)])
def test_the_command_augments_if_the_preset_or_the_user_says_so(name, asked, augmented):
    from cssgan.cli.runs import DEFAULTS, run_config
    assert run_config(DEFAULTS | {"preset": name, "augment": asked}, HEART).augment == augmented


def test_synthetic_volumes_of_the_ad_hoc_approach_are_augmented_too(data, tmp_path):
    from cssgan.models import Networks
    from cssgan.training.baselines import HalfAndHalf, RealFakeRec, translate_offline
    made = translate_offline(Networks(4, 1).eval(), data, tmp_path)
    for mixture, n in ((HalfAndHalf, 2), (RealFakeRec, 3)):
        both = mixture(data.train_A, data.train_B, data.valid_A, data.valid_B, *made)
        plain, changed = (next(iter(both.epoch(0, 0, augmented=how))) for how in ("", "shape"))
        assert len(plain.real_A) == len(changed.real_A) == n
        assert not any(torch.equal(one, two) for one, two in zip(plain.real_A, changed.real_A))


@pytest.mark.parametrize("augment, changed", [
    (False, ("", "", "")), (True, ("all", "shape", "shape")), ("shape", ("shape", "shape", "shape"))])
def test_what_an_augmentation_changes_in_each_phase(augment, changed):
    config = replace(TINY, augment=augment)
    assert tuple(what_changes(config, phase) for phase in ("segmentors", "generators", "joint")) == changed


def test_an_augmentation_is_one_that_there_is():
    with pytest.raises(InputError, match="augment"): replace(TINY, augment="colours")
