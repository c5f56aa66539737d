"A heart is found wherever it lies and however the patient does; what may be none is said, or refused."
import itertools
import re
import warnings
from dataclasses import replace
from functools import cache

import msgspec
import numpy as np
import pytest
import torch

from cssgan.cli.scans import segment_main
from cssgan.data.cases import apply_table, label_codes
from cssgan.guard import InputError, InputWarning
from cssgan.inference import apply, closer, location
from cssgan.inference.apply import load_networks
from cssgan.inference.closer import CLOSER, look_closer
from cssgan.inference.found import OTHER_TURNS, UPRIGHT, Finding, Turn, doubt_message, is_stack, turned
from cssgan.inference.location import find_regions, inside_scan
from cssgan.inference.model import segment
from cssgan.inference.windows import labels_in_scan
from cssgan.phantoms.heart import draw_anatomy
from cssgan.phantoms.scanners import phantom
from cssgan.scans.files import read_label, write_volume
from cssgan.scans.plausible import MISFIT, crop_to_regions, cut_through, doubts_about_shape, fit_average_heart
from cssgan.scans.volumes import SMALL_GRID, Grid, Volume, grid_centre, to_grid
from cssgan.task import HEART

TINY = Grid((24, 24, 16), (7.0, 7.0, 8.0))
WHOLE = Grid((60, 60, 48), (4.0,) * 3)
WINDOW = (-1000.0, 1000.0)
HALVES = list(itertools.product(range(3), (1, -1)))


@cache
def drawn(seed, grid=SMALL_GRID):
    anatomy = draw_anatomy(seed, grid)
    return anatomy.label, anatomy.affine


@cache
def body(seed=8, modality="CT"):
    "A phantom of 525 mm, its heart in the middle."
    return phantom(seed, modality, Grid((44, 40, 75), (7.0,) * 3))


def half_of(label, axis, side, share=0.5):
    heart = np.moveaxis(crop_to_regions(label), axis, 0)[::side]
    return np.moveaxis(heart[: int(share * len(heart))][::side], 0, axis)


# ---- the shape of a heart

@pytest.mark.parametrize("seed", range(4000, 4012))
def test_drawn_hearts_have_the_shape_of_hearts(seed):
    label, affine = drawn(seed)
    misfit, degrees = fit_average_heart(label, affine)
    assert misfit < 0.25 and degrees < 40 and doubts_about_shape(label, affine) == []


def test_shape_does_not_depend_on_size_nor_on_where_a_heart_lies():
    label, affine = drawn(4001)
    larger = np.diag([1.3, 1.3, 1.3, 1]) @ affine
    larger[:3, 3] += (100, -50, 20)
    assert np.allclose(fit_average_heart(label, larger), fit_average_heart(label, affine), atol=1e-3)


@pytest.mark.parametrize("turn", OTHER_TURNS, ids=str)
def test_a_heart_that_points_elsewhere_is_doubted(turn):
    for seed in range(4000, 4004):
        label, affine = drawn(seed)
        assert "turned by" in str(*doubts_about_shape(label, turn.matrix @ affine))


@pytest.mark.parametrize("numbers", [(3, 2, 1, 4, 5), (4, 2, 3, 1, 5), (2, 3, 4, 1, 5), (5, 1, 2, 3, 4)])
def test_exchanged_regions_have_another_shape(numbers):
    for seed in range(4000, 4004):
        label, affine = drawn(seed)
        assert fit_average_heart(np.array((0, *numbers), np.uint8)[label], affine)[0] > MISFIT[0]


@pytest.mark.parametrize("axis, side", HALVES)
def test_the_shape_of_half_a_heart_is_no_doubt(axis, side):
    for seed in range(4000, 4004):
        label, affine = drawn(seed)
        assert not [d for d in doubts_about_shape(half_of(label, axis, side), affine) if "chambers" in str(d)], seed


@pytest.mark.parametrize("axis, side", HALVES)
def test_a_border_that_cuts_through_is_told_from_one_that_touches(axis, side):
    for seed in range(4000, 4004):
        label, _ = drawn(seed, WHOLE)
        assert cut_through(half_of(label, axis, side)) and not cut_through(half_of(label, axis, side, share=.98)), seed


def test_labels_without_a_heart_have_no_shape():
    nothing, affine = np.zeros((8, 8, 8), np.uint8), np.eye(4)
    for label in (nothing, nothing + 1, np.arange(512).reshape(8, 8, 8).astype(np.uint8) % 3):
        assert fit_average_heart(label, affine) == (1.0, 0.0) and doubts_about_shape(label, affine) == []
    line = np.zeros((12, 3, 3), np.uint8)
    for k in range(1, 6): line[2 * k, 1, 1] = k  # five points on a line
    assert np.isfinite(fit_average_heart(line, affine)).all() and cut_through(nothing) == []


@pytest.mark.data
def test_real_hearts_have_the_shape_of_hearts(real):
    for file in sorted((real / "hearts").glob("*.nii.gz"))[::3]:
        label, affine = read_label(file)
        label = apply_table(label, label_codes(HEART, "CT", "MM-WHS"))
        assert doubts_about_shape(label, affine) == [] and fit_average_heart(label, affine)[0] < 0.25, file.name


# ---- ways to lie

def test_turns_are_eight_and_mirror_nothing():
    turns = [UPRIGHT, *OTHER_TURNS]
    assert len({tuple(t.matrix.ravel()) for t in turns}) == 8 and np.array_equal(UPRIGHT.matrix, np.eye(4))
    for t in turns: assert np.isclose(np.linalg.det(t.matrix), 1) and (t.matrix[2, 2] < 0) == t.feet_first


def finding(seen, sure, inside=None):
    "What a segmentor found, and that it knows it for certain."
    certain = torch.nn.functional.one_hot(torch.from_numpy(seen.label).long(), 6).movedim(-1, 0).float()
    return Finding(seen, sure=sure, inside=inside, probabilities=certain)


class SeesUpright:
    "In the place of `segment_box`: it sees the heart of a patient who lies as usual, and else a ball that it calls LV."
    def __init__(self, patient, lies=UPRIGHT, sure=.9):
        self.patient, self.lies, self.sure, self.turns = patient, lies.matrix[:3, :3], sure, []

    def __call__(self, segmentor, scan, grid, window, centre, box=None):
        axes = np.round(scan.affine[:3, :3] / np.linalg.norm(scan.affine[:3, :3], axis=0))
        if scan.spacing != self.patient.spacing: axes = axes @ self.lies  # on the training grid's spacing, and its axes
        self.turns.append(axes)
        seen = to_grid(scan, box or grid, centre)
        if np.array_equal(axes, np.eye(3)): seen = to_grid(self.patient, box or grid, centre)
        inside = inside_scan(seen, scan)
        if seen.label is not None and seen.label.any(): return finding(seen, self.sure, inside)
        ball = np.zeros(seen.shape, np.uint8)
        ball[8:14, 8:14, 5:9] = 1
        return finding(replace(seen, label=ball), .6, inside)


@pytest.mark.parametrize("lies", [UPRIGHT, *OTHER_TURNS], ids=lambda t: str(t) if t != UPRIGHT else "as usual")
def test_a_heart_is_found_however_the_patient_lies(monkeypatch, lies):
    patient = body()
    patient = replace(patient, voxels=patient.voxels[:, :, 17:57], label=patient.label[:, :, 17:57],
                      affine=patient.affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 17], [0, 0, 0, 1.]]))
    monkeypatch.setattr(location, "segment_box", SeesUpright(patient, lies))
    scan = turned(replace(patient, label=None), lies.matrix)
    found = find_regions(None, scan, TINY, WINDOW)
    truth = grid_centre(turned(patient, lies.matrix))
    assert np.abs(grid_centre(found.seen) - truth).max() < 15 and found.doubts == []
    assert np.allclose(found.turn.matrix @ lies.matrix, np.eye(4))
    said = doubt_message(found)
    assert ("orientation may be wrong" in said) == (lies != UPRIGHT) and "\n" not in said


def test_a_patient_who_lies_otherwise_is_found_where_somebody_says(monkeypatch):
    "What is doubted is to be mended by `--centre`, in such a patient, too."
    lies, patient = Turn(quarters=1), body()
    monkeypatch.setattr(location, "segment_box", SeesUpright(patient, lies))
    truth = grid_centre(turned(patient, lies.matrix))
    found = find_regions(None, turned(replace(patient, label=None), lies.matrix), TINY, WINDOW, truth + (5, 0, -5))
    assert np.abs(grid_centre(found.seen) - truth).max() < 15 and found.doubts == [] and found.turn != UPRIGHT


def test_in_a_stack_a_turned_heart_says_something_about_the_file_alone():
    heart = Finding(to_grid(body(), TINY), agreed=.9, sure=.9)
    askew = heart._replace(seen=turned(heart.seen, Turn(quarters=1).matrix))
    assert "lies turned by" in askew.doubts[0] and not askew.askew and not heart._replace(stack=True).askew
    stack = askew._replace(stack=True)
    assert not stack.doubts and not doubt_message(stack)
    assert "turned by" in doubt_message(stack, askew=stack.askew) and "orientation" in doubt_message(
        stack, askew=stack.askew)
    assert stack._replace(sure=.3).doubts  # all else is doubted as ever


@pytest.mark.parametrize("modality, mm, stack", [("MRI", 7.9999, True), ("MRI", 6., False), ("CT", 8., False)])
def test_a_stack_is_an_mri_of_thick_slices(modality, mm, stack):
    assert is_stack(phantom(0, modality, Grid((24, 24, 16), (5., 5., mm)))) == stack


def test_of_other_tasks_nothing_is_turned(monkeypatch):
    names = "background", "liver", "spleen", "pancreas", "left kidney", "right kidney"
    abdomen = msgspec.structs.replace(HEART, name="abdomen", regions=names, tables={}, table_of={})
    scan = replace(body(), task=abdomen)
    sees = SeesUpright(replace(scan, label=scan.label * 0))
    monkeypatch.setattr(location, "segment_box", sees)
    find_regions(None, replace(scan, label=None), TINY, WINDOW)
    assert all(np.array_equal(axes, np.eye(3)) for axes in sees.turns)


# ---- a closer look

def egg(shape, affine):
    "A bright egg in a dark box, labelled, in the middle of it."
    affine = np.asarray(affine, float)
    at = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    inside = (((at - (3, -4, 5)) / (31, 24, 22)) ** 2).sum(-1) < 1
    return Volume(np.where(inside, 900, -900).astype(np.float32), affine, "CT", inside.astype(np.uint8))


def bright(segmentor, volume, grid):
    "Logits of what is bright, at once: what a perfect network would say of the egg."
    x = torch.from_numpy(volume.voxels)
    return torch.stack([-9 * x, 9 * x, *[torch.full_like(x, -20)] * 4])


@pytest.fixture
def perfect(monkeypatch):
    for module in location, closer: monkeypatch.setattr(module, "sliding_window", bright)


def seen_twice(scan, turn=UPRIGHT):
    grid = Grid((24, 24, 24), (5.0, 5.0, 5.0))
    place = location.Place((turn.matrix @ (0, 0, 0, 1))[:3], turn)
    found = location.look_until_stable(None, replace(scan, label=None), grid, WINDOW, place)
    return found, look_closer(None, replace(scan, label=None), grid, WINDOW, found)


def dice_of(found, scan):
    label = labels_in_scan(found.probabilities, found.seen.affine, scan) > 0
    return 2 * (label & (scan.label > 0)).sum() / (label.sum() + (scan.label > 0).sum())


@pytest.mark.parametrize("turn", [UPRIGHT, OTHER_TURNS[0], OTHER_TURNS[4]], ids=str)
def test_a_closer_look_has_smaller_voxels_and_sharper_edges_where_the_scan_lies(perfect, turn):
    askew = np.diag([1.6, 1.7, 1.8, 1]) @ [[0.98, 0.2, 0, -70], [-0.2, 0.98, 0, -45], [0, 0, 1, -60], [0, 0, 0, 1]]
    scan = egg((90, 85, 75), askew)
    found, nearer = seen_twice(scan, turn)
    assert np.allclose(CLOSER * np.array(nearer.seen.spacing), found.seen.spacing) and nearer.turn == turn
    assert dice_of(nearer, scan) > max(dice_of(found, scan), 0.97)
    assert np.array_equal(nearer.probabilities.argmax(0).numpy(), nearer.seen.label)
    assert torch.allclose(nearer.probabilities.sum(0), torch.ones(()), atol=1e-5)


def test_what_is_larger_than_the_training_grid_is_seen_whole(perfect):
    _, nearer = seen_twice(egg((70, 60, 60), np.diag([2.0, 2, 2, 1]) @ np.c_[np.eye(4)[:, :3], [-35, -30, -30, 1]]))
    extent = np.array(nearer.seen.shape) * nearer.seen.spacing
    assert (extent > [62, 48, 44]).all() and nearer.seen.label.any()
    assert all(not nearer.seen.label.take(end, axis).any() for axis in range(3) for end in (0, -1))


def test_thick_slices_are_not_looked_at_more_closely(perfect):
    found, nearer = seen_twice(egg((70, 70, 16), np.diag([2.0, 2, 8, 1]) @ np.c_[np.eye(4)[:, :3], [-35, -35, -8, 1]]))
    assert nearer is found and found.seen.label.any()


def test_where_nothing_was_found_nobody_looks_closer(perfect):
    scan = egg((60, 60, 60), np.diag([2.0, 2, 2, 1]))
    found, nearer = seen_twice(replace(scan, voxels=0 * scan.voxels - 900))
    assert nearer is found and not found.seen.label.any()


@pytest.mark.parametrize("augmented", [False, True])
def test_only_networks_that_met_larger_hearts_look_closer(checkpoint, monkeypatch, augmented):
    looked = []
    monkeypatch.setattr(apply, "look_closer", lambda *how: looked.append(how) or how[-1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InputWarning)
        apply.run_segmentor(load_networks(checkpoint)._replace(augmented=augmented), phantom(4, "CT", SMALL_GRID))
    assert len(looked) == augmented


# ---- plausible, and wrong

class SeesTwo(SeesUpright):
    "It sees the heart, and in the belly another one of which it is less sure."
    def __init__(self, patient, sure=.9, lower=.62):
        super().__init__(patient, sure=sure)
        self.lower = lower

    def __call__(self, segmentor, scan, grid, window, centre, box=None):
        down = np.zeros((4, 4))
        down[2, 3] = -160
        belly = replace(self.patient, affine=self.patient.affine + down)
        self.turns.append(centre)
        if not np.allclose(scan.affine[:3, :3], np.diag(scan.spacing)):  # turned: nothing is to be seen
            seen = to_grid(scan, box or grid, centre)
            return finding(replace(seen, label=np.zeros(seen.shape, np.uint8)), 0.)
        seen = to_grid(self.patient if centre[2] > -75 else belly, box or grid, centre)
        return finding(seen, self.sure if centre[2] > -75 else self.lower)


def test_in_a_long_scan_the_likelier_of_two_hearts_is_chosen(monkeypatch):
    patient = replace(body(), voxels=body().voxels[:, :, :68], label=body().label[:, :, :68])
    sees = SeesTwo(patient)
    monkeypatch.setattr(location, "segment_box", sees)
    belly = sees(None, patient, TINY, WINDOW, np.array((0, 0, -160.0)))
    assert belly._replace(agreed=1.0).doubts == []  # nothing speaks against it
    in_the_belly = np.array((0.0, 0, -160))
    monkeypatch.setattr(location, "grid_centre", lambda v: in_the_belly if v.label is None else grid_centre(v))
    found = find_regions(None, replace(patient, label=None), TINY, WINDOW)
    assert found.sure == .9 and np.abs(grid_centre(found.seen) - grid_centre(patient)).max() < 15


@pytest.mark.parametrize("lower, doubted", [(.72, True), (.5, False)])
def test_in_a_large_scan_a_middling_heart_is_compared_with_other_places(monkeypatch, lower, doubted):
    trunk = body()
    assert trunk.voxels.size * trunk.voxel_ml > location.MUCH
    sees = SeesTwo(trunk, sure=.72, lower=lower)
    monkeypatch.setattr(location, "segment_box", sees)
    found = find_regions(None, replace(trunk, label=None), TINY, WINDOW)
    assert (["other places look as much like it"] == found.doubts) == doubted
    looks = len(sees.turns)
    told = find_regions(None, replace(trunk, label=None), TINY, WINDOW, grid_centre(trunk))
    assert told.doubts == [] and len(sees.turns) - looks < 5  # who says where is believed


@pytest.mark.parametrize("change, says", [({"sure": .5}, "unsure"), ({"agreed": .3}, "found something else"),
                                          ({"sure": .61, "agreed": .56}, "all signs of it are weak|^$")])
def test_each_sign_is_judged(change, says):
    label, affine = drawn(4001)
    found = Finding(Volume(np.zeros(label.shape, np.float32), affine, "CT", label), .9, .9)
    assert found.doubts == [] and found.score > found._replace(**change).score
    assert found.beats(found._replace(sure=.3)) and not found._replace(sure=.85).beats(found)
    assert re.search(says, "; ".join(found._replace(**change).doubts))


def test_half_a_heart_is_judged_by_what_is_in_view(monkeypatch, checkpoint):
    patient = body()
    half = replace(patient, voxels=patient.voxels[:, :, :40], label=patient.label[:, :, :40])
    monkeypatch.setattr(location, "segment_box", SeesUpright(half))
    with pytest.warns(InputWarning, match="border cuts through the heart") as told:
        result = segment(replace(half, label=None), checkpoint, "CT", centre=grid_centre(half))
    assert "there is no" not in str(told[0].message) and any("seen in part" in line for line in result.history)
    with pytest.warns(InputWarning, match="border cuts through the heart"):  # which is no error
        segment(replace(half, label=None), checkpoint, "CT", centre=grid_centre(half), strict=True)


# ---- refused

def test_strict_refuses_instead_of_warning(checkpoint, tmp_path, capsys):
    scan = phantom(3, "CT", TINY)
    write_volume(replace(scan, label=None), tmp_path / "scan.nii.gz")
    with pytest.warns(InputWarning, match="heart"): segment(tmp_path / "scan.nii.gz", checkpoint, "CT")
    with pytest.raises(InputError, match="--centre X Y Z") as e:
        segment(tmp_path / "scan.nii.gz", checkpoint, "CT", strict=True)
    assert "\n" not in str(e.value) and len(str(e.value)) <= 300
    words = [str(tmp_path / "scan.nii.gz"), "--checkpoint", str(checkpoint), "--modality", "CT", "--out",
             str(tmp_path / "label.nii.gz"), "--strict"]
    assert segment_main(words) == 1 and [p.name for p in tmp_path.iterdir()] == ["scan.nii.gz"]
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert segment_main(words[:-1]) == 0 and (tmp_path / "label.nii.gz").exists()
