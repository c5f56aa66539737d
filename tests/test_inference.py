"Any scan in, the same grid out; what is found lies where it is in the patient."
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from scans import write_dicom
from scipy.ndimage import maximum_filter, minimum_filter

from cssgan.guard import InputError, InputWarning
from cssgan.inference import apply as inference
from cssgan.inference import location
from cssgan.inference.found import Finding
from cssgan.inference.model import segment, translate
from cssgan.inference.windows import labels_in_scan, prepare_scan, sliding_window
from cssgan.phantoms.heart import rotation
from cssgan.phantoms.scanners import phantom
from cssgan.scans.files import write_volume
from cssgan.scans.plausible import largest_piece
from cssgan.scans.volumes import Grid, Volume, grid_centre, label_to_scan, to_grid
from cssgan.training.schema import CheckpointError

TINY = Grid((24, 24, 16), (7.0, 7.0, 8.0))
HEART, RADII = np.array((10.0, 20.0, -5.0)), np.array((45.0, 35.0, 40.0))


def turned(angles, spacing, order=(0, 1, 2), flips=(1, 1, 1), shape=(40, 36, 24)):
    "An affine with axes in any order, direction and tilt, whose middle voxel lies near the heart."
    a, b, c = np.radians(angles)
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    axes = (z @ y @ x @ np.diag(flips))[:, list(order)] * np.array(spacing)
    return nib.affines.from_matvec(axes, HEART + (5, -8, 3) - axes @ ((np.array(shape) - 1) / 2))


SCANS = {
    "plain": ((40, 36, 24), ((0, 0, 0), (5, 5, 7))),
    "odd and anisotropic": ((37, 51, 19), ((0, 0, 0), (4.5, 3.7, 9.1))),
    "flipped": ((40, 36, 24), ((0, 0, 0), (5, 5, 7), (0, 1, 2), (-1, -1, 1))),
    "sagittal slices": ((30, 36, 40), ((0, 0, 0), (6, 5, 5), (1, 2, 0), (-1, 1, -1))),
    "oblique": ((44, 40, 30), ((20, -15, 30), (5, 5, 7))),
    "oblique, flipped, swapped": ((30, 44, 40), ((-10, 25, 8), (7, 5, 5), (2, 0, 1), (1, -1, -1))),
    "smaller than a window": ((14, 15, 11), ((0, 5, 0), (8, 8, 9))),
    "a few slices": ((40, 40, 3), ((0, 0, 0), (5, 5, 8))),
    "far larger than a window": ((90, 80, 40), ((0, 0, 3), (4, 4, 6))),
}


def where(shape, affine, centre, radii):
    return (((nib.affines.apply_affine(affine,
                                       np.moveaxis(np.indices(shape), 0, -1)) - centre) / radii) ** 2).sum(-1) < 1


def make(name, modality="CT"):
    "A scan of a body with a bright heart, and the heart."
    shape, how = SCANS[name]
    affine = turned(*how, shape=shape)
    heart = where(shape, affine, HEART, RADII)
    hu = np.where(where(shape, affine, HEART + (5, -20, 5), (70, 62, 400)), 0.0,
                  -1000.0) + np.random.default_rng(0).normal(0, 5, shape)
    hu[heart] = 800
    return Volume((hu if modality == "CT" else (hu + 1000) / 4).astype(np.float32), affine, modality), heart


class Bright(torch.nn.Module):
    "A segmentor that calls bright voxels LV."
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x): return torch.cat([0.45 - x, x - 0.45, *[x * 0 - 9] * 4], 1)


class Same(Bright):
    "A generator that changes nothing."
    def forward(self, x): return x + self.weight


@pytest.fixture
def simple(monkeypatch, checkpoint):
    "Networks whose answer can be worked out, in the place of a checkpoint's."
    nets, about, _ = inference.load_checkpoint(checkpoint)
    nets.S_A = nets.S_B = Bright()
    nets.G_A = nets.G_B = Same()
    monkeypatch.setattr(inference, "load_checkpoint", lambda *_: (nets, about, {}))
    return checkpoint


@pytest.mark.parametrize("name", SCANS)
def test_result_has_exactly_the_scans_grid(checkpoint, name, tmp_path):
    for modality, other in (("CT", "MRI"), ("MRI", "CT")):
        write_volume(make(name, modality)[0], tmp_path / "scan.nii.gz")
        for result in (translate(tmp_path / "scan.nii.gz", checkpoint, to=other),
                       segment(tmp_path / "scan.nii.gz", checkpoint, modality)):
            there = nib.load(tmp_path / "scan.nii.gz")
            assert result.shape == there.shape and np.array_equal(result.affine, there.affine)
            assert np.isfinite(result.voxels).all()
        assert result.label.dtype == np.uint8 and result.label.max() <= 5


@pytest.mark.parametrize("modality", ["CT", "MRI"])
@pytest.mark.parametrize("name", SCANS)
def test_the_heart_is_found_where_it_is(simple, name, modality):
    scan, heart = make(name, modality)
    found = segment(scan, simple, modality).label == 1
    dice = 2 * (found & heart).sum() / (found.sum() + heart.sum())
    shift = (np.argwhere(found).mean(0) - np.argwhere(heart).mean(0)) * scan.spacing
    assert dice > 0.85 and np.abs(shift).max() < 3, (dice, shift)


@pytest.mark.parametrize("name", ["plain", "oblique"])
def test_a_reoriented_copy_gives_the_same_answer(checkpoint, name):
    scan, _ = make(name)
    flip = np.array([[0, -1, 0, scan.shape[1] - 1], [0, 0, 1, 0], [-1, 0, 0, scan.shape[0] - 1], [0, 0, 0, 1.0]])
    copy = Volume(np.ascontiguousarray(scan.voxels[::-1, ::-1].transpose(1, 2, 0)), scan.affine @ np.linalg.inv(flip),
                  "CT")
    a, b = segment(scan, checkpoint, "CT").label, segment(copy, checkpoint, "CT").label.transpose(2, 0, 1)[::-1, ::-1]
    x, y = translate(scan, checkpoint, "MRI").voxels, translate(copy, checkpoint,
                                                                "MRI").voxels.transpose(2, 0, 1)[::-1, ::-1]
    assert (a == b).mean() > 0.99 and np.abs(x - y).mean() < 0.01 * np.ptp(x)


@pytest.mark.parametrize("name", ["plain", "oblique", "smaller than a window", "far larger than a window"])
def test_a_generator_that_changes_nothing_gives_the_scan_back(simple, name):
    scan, heart = make(name, "MRI")
    ct = translate(scan, simple, to="CT")
    low, high = to_grid(scan, TINY).range
    expected = ((scan.voxels - low) / (high - low)).clip(0, 1) * 2000 - 1000
    inside = where(scan.shape, scan.affine, HEART, RADII * 0.6)
    assert ct.modality == "CT" and np.abs(ct.voxels[inside] - expected[inside]).max() < 25
    assert -1001 <= ct.voxels.min() and ct.voxels.max() <= 1001


def test_a_dicom_folder_gives_what_its_nifti_file_gives(checkpoint, tmp_path):
    scan = make("oblique")[0]
    scan = replace(scan, voxels=np.rint(scan.voxels))
    write_volume(scan, tmp_path / "scan.nii")
    folder = write_dicom(tmp_path / "series", scan.voxels, scan.affine)
    for use in (lambda s: translate(s, checkpoint, "MRI"), lambda s: segment(s, checkpoint, "CT")):
        a, b = use(tmp_path / "scan.nii"), use(folder)
        assert np.allclose(a.affine, b.affine, atol=1e-4) and np.abs(a.voxels - b.voxels).mean() < 0.1
        assert (a.label is None or (a.label == b.label).mean() > 0.999)
    with pytest.raises(InputError, match="is CT by its DICOM tag"): translate(folder, checkpoint, "CT")


def test_synthetic_ct_is_in_hu_and_synthetic_mri_in_the_training_range(checkpoint, tmp_path):
    ct, mri = translate(make("plain", "MRI")[0], checkpoint, "CT"), translate(make("plain", "CT")[0], checkpoint, "MRI")
    assert -1000 <= ct.voxels.min() and ct.voxels.max() <= 1000 and 10 <= mri.voxels.min() and mri.voxels.max() <= 600
    write_volume(ct, tmp_path / "ct.nii.gz")
    assert nib.load(tmp_path / "ct.nii.gz").get_data_dtype() == np.int16


def test_the_result_says_that_a_network_made_it(checkpoint):
    scan = make("plain")[0]
    assert any("not a measurement" in line for line in translate(scan, checkpoint, "MRI").history)
    assert any("not for diagnosis" in line for line in segment(scan, checkpoint, "CT").history)


def test_segmenting_leaves_the_image_alone(checkpoint):
    scan = make("plain")[0]
    before = scan.voxels.copy()
    assert np.array_equal(segment(scan, checkpoint, "CT").voxels, before) and np.array_equal(scan.voxels, before)


def test_same_scan_same_result(checkpoint):
    scan = make("far larger than a window")[0]
    assert np.array_equal(translate(scan, checkpoint, "MRI").voxels, translate(scan, checkpoint, "MRI").voxels)


def test_windows_are_put_together_seamlessly(simple):
    prepared = prepare_scan(make("far larger than a window")[0], TINY, (-1000.0, 1000.0), HEART)
    assert any(a > b for a, b in zip(prepared.shape, TINY.shape))
    assert np.abs(sliding_window(Same(), prepared, TINY)[0].numpy() - prepared.voxels).max() < 0.02


def test_mri_range_comes_from_the_field_of_view_around_the_heart():
    scan, _ = make("far larger than a window", "MRI")
    wide = replace(scan, voxels=np.pad(scan.voxels, ((40, 40), (0, 0), (0, 0))),
                   affine=scan.affine @ nib.affines.from_matvec(np.eye(3), (-40, 0, 0)))
    a, b = (prepare_scan(v, TINY, (-1000.0, 1000.0), HEART).range for v in (scan, wide))
    assert a == pytest.approx(b, rel=0.02)


def test_ct_is_scaled_with_the_checkpoints_own_window():
    scan, _ = make("far larger than a window")
    assert prepare_scan(scan, TINY, (-200.0, 500.0), HEART).range == (-200.0, 500.0)
    assert prepare_scan(replace(scan, range=(0.0, 1.0)), TINY, (-1000.0, 1000.0), HEART).range == (-1000.0, 1000.0)


def test_a_centre_may_be_given(simple):
    scan, heart = make("far larger than a window")
    for off in ((0, 0, 0), (50, -30, 20), (-60, 40, -30)):
        found = segment(scan, simple, "CT", centre=HEART + off).label == 1
        assert 2 * (found & heart).sum() / (found.sum() + heart.sum()) > 0.85, off


def test_one_heart_is_kept():
    two = np.zeros((30, 30, 30), np.uint8)
    two[10:16, 10:16, 10:16], two[16:18, 10:16, 10:16], two[25:28, 25:28, 25:28] = 1, 5, 2
    kept = largest_piece(two)
    assert kept.dtype == np.uint8 and set(np.unique(kept)) == {0, 1, 5} and (kept > 0).sum() == 6 * 6 * 8
    assert np.array_equal(largest_piece(two * 0), two * 0)


# ---- is that the heart?

def finding(seen, sure):
    "What a segmentor found, and that it knows it for certain."
    certain = torch.nn.functional.one_hot(torch.from_numpy(seen.label).long(), 6).movedim(-1, 0).float()
    return Finding(seen, sure=sure, probabilities=certain)


class Sees:
    "In the place of `look`: it sees the heart where it is, and elsewhere something that changes from look to look."
    def __init__(self, truth, belly="LV in nothing"): self.truth, self.belly, self.looks = truth, belly, []

    def __call__(self, segmentor, scan, grid, window, centre, box=None):
        lies = scan.affine @ np.linalg.inv(self.truth.affine) if scan.shape == self.truth.shape else np.eye(4)
        self.looks.append(np.linalg.inv(lies[:3, :3]) @ centre)
        if (np.diag(scan.affine) < 0).any() or np.count_nonzero(scan.affine[:3, :3]) > 3:  # turned: it sees no heart
            seen = to_grid(scan, box or grid, centre)
            return finding(replace(seen, label=np.zeros(seen.shape, np.uint8)), sure=0.)
        seen = to_grid(replace(self.truth, voxels=scan.voxels) if scan.shape == self.truth.shape else self.truth,
                       box or grid, centre)
        if seen.label.any() or self.belly == "nothing": return finding(seen, sure=.9)
        found, k = seen.label.copy(), len(self.looks)
        noise = np.random.default_rng(k).integers(0, 6, (9, 10, 6))
        found[k % 5 + 3 : k % 5 + 12, 4:14, 3:9] = noise if self.belly == "noise" else 1
        return finding(replace(seen, label=found), sure=.7)


def long_scan(top=60, modality="CT", heart=True):
    "A phantom of 525 mm and its heart, cut off above, so that the presumed place lies in the belly; or only its belly."
    whole = phantom(8, modality, Grid((44, 40, 75), (7.0,) * 3))
    part = slice(0, top) if heart else slice(0, 25)
    return replace(whole, voxels=whole.voxels[:, :, part], label=whole.label[:, :, part])


def watched(monkeypatch, *args):
    sees = Sees(*args)
    monkeypatch.setattr(location, "segment_box", sees)
    return sees


@pytest.mark.parametrize("belly", ["LV in nothing", "noise", "nothing"])
@pytest.mark.parametrize("modality", ["CT", "MRI"])
def test_a_heart_far_from_the_presumed_place_is_found(monkeypatch, checkpoint, recwarn, belly, modality):
    scan = long_scan(44, modality)
    assert np.linalg.norm(grid_centre(replace(scan, label=None)) - grid_centre(scan)) > 70
    sees = watched(monkeypatch, scan, belly)
    found = segment(scan, checkpoint, modality).label
    assert 2 * ((found > 0) & (scan.label > 0)).sum() / ((found > 0).sum() + (scan.label > 0).sum()) > 0.9
    assert len(sees.looks) < 100  # so weak a find is compared with every place and every way to lie
    assert not [str(w.message) for w in recwarn if issubclass(w.category, InputWarning)]


@pytest.mark.parametrize("belly, says", [("LV in nothing", "there is no RV, LA, RA, myocardium"),
                                         ("noise", "of the LV's rim|found something else"),
                                         ("nothing", "no heart was found")])
def test_what_is_found_in_a_belly_is_doubted(monkeypatch, checkpoint, belly, says):
    watched(monkeypatch, scan := long_scan(heart=False), belly)
    with pytest.warns(InputWarning, match=says) as told: result = segment(scan, checkpoint, "CT")
    assert "--centre X Y Z" in str(told[0].message) and len(str(told[0].message)) <= 300
    assert any(str(line) in str(told[0].message) for line in result.history)


def test_a_plausible_heart_costs_two_looks(monkeypatch, checkpoint, recwarn):
    scan = phantom(8, "CT", Grid((44, 40, 31), (7.0,) * 3))
    sees = watched(monkeypatch, scan)
    segment(scan, checkpoint, "CT")
    assert len(sees.looks) == 2 and not [w for w in recwarn if issubclass(w.category, InputWarning)]


def test_where_somebody_says_the_heart_is_no_other_place_is_tried(monkeypatch, checkpoint):
    sees = watched(monkeypatch, scan := long_scan(44))
    belly = grid_centre(scan) - (0, 0, 150)
    with pytest.warns(InputWarning, match="may not be the heart"): segment(scan, checkpoint, "CT", centre=belly)
    assert max(np.linalg.norm(c - belly) for c in sees.looks) < 120


def test_an_mri_that_is_long_takes_its_intensities_from_around_the_heart(monkeypatch, checkpoint):
    scan = long_scan(44, "MRI")
    watched(monkeypatch, scan)
    lines = translate(scan, checkpoint, "CT").history
    heart, belly = (prepare_scan(scan, TINY, (-1000.0, 1000.0), grid_centre(v)).range[1]
                    for v in (scan, replace(scan, label=None)))
    high = float(next(line for line in lines if line.startswith("scaled from")).split("]")[0].split(",")[1])
    assert any("where the heart was found" in line for line in lines) and heart - belly > 100
    assert abs(high - heart) < abs(high - belly)


def test_networks_that_learned_nothing_are_never_believed(checkpoint):
    for modality in ("CT", "MRI"):
        with pytest.warns(InputWarning, match="heart"): segment(make("plain", modality)[0], checkpoint, modality)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_weights_are_no_answer(monkeypatch, checkpoint, value):
    nets, about, _ = inference.load_checkpoint(checkpoint)
    with torch.no_grad(): [p.fill_(value) for p in nets.parameters()]
    monkeypatch.setattr(inference, "load_checkpoint", lambda *_: (nets, about, {}))
    for call in (lambda: segment(make("plain")[0], checkpoint, "CT"), lambda: translate(make("plain")[0], checkpoint,
                                                                                        "MRI")):
        with pytest.raises(InputError, match="NaN or infinity"): call()


# ---- bad input

@pytest.mark.parametrize("centre", [(5000, 0, 0), (float("nan"), 0, 0), (0, 0, float("inf")), (1, 2), (1, 2, 3, 4), 5,
                                    "heart", ("a", "b", "c"), [[1, 2, 3]], (), {}, (10**400, 0, 0), (1j, 0, 0),
                                    (None, 0, 0)], ids=lambda c: str(c)[:20])
def test_a_centre_that_is_none(checkpoint, centre):
    for call in (lambda: segment(make("plain")[0], checkpoint, "CT", centre=centre),
                 lambda: translate(make("plain")[0], checkpoint, "MRI", centre=centre)):
        with pytest.raises(InputError, match="centre .*: give three numbers in mm") as e: call()
        assert "\n" not in str(e.value) and len(str(e.value)) <= 300


@pytest.mark.parametrize("kind", ["array", "tensor", "number", "nothing", "list"])
def test_a_scan_that_is_no_scan(checkpoint, kind):
    voxels = make("plain")[0].voxels
    scan = {"array": voxels, "tensor": torch.zeros(3, 3, 3), "number": 3, "nothing": None, "list": [voxels]}[kind]
    for call in (lambda: segment(scan, checkpoint, "CT"), lambda: translate(scan, checkpoint, "MRI")):
        with pytest.raises(InputError, match="the scan is of the type .*: give a"): call()


def test_the_wrong_modality(checkpoint):
    scan = make("plain")[0]
    for call in (lambda: translate(scan, checkpoint, "CT"), lambda: segment(scan, checkpoint, "MRI"),
                 lambda: translate(scan, checkpoint, "PET"), lambda: segment(scan, checkpoint, "ct")):
        with pytest.raises(InputError): call()


def test_a_missing_scan_or_checkpoint(checkpoint, tmp_path):
    with pytest.raises(InputError, match="none.nii does not exist"): translate(tmp_path / "none.nii", checkpoint, "MRI")
    with pytest.raises(CheckpointError, match="holds no checkpoint"): translate(make("plain")[0], tmp_path, "MRI")


@pytest.mark.data
@pytest.mark.parametrize("file, modality, other", [("cta/ct.nii.gz", "CT", "MRI"), ("lge_mr/mr.nii.gz", "MRI", "CT")])
def test_real_scans_go_all_the_way(real, checkpoint, tmp_path, file, modality, other):
    here = nib.load(real / file)
    write_volume(translate(real / file, checkpoint, other), tmp_path / "fake.nii.gz")
    there, found = nib.load(tmp_path / "fake.nii.gz"), segment(real / file, checkpoint, modality)
    assert here.shape == there.shape == found.label.shape and np.array_equal(here.affine, there.affine)
    assert np.array_equal(here.affine, found.affine)


def test_what_a_network_sees_beside_the_scan_is_nothing(checkpoint):
    "Its own padding is no heart, and no place to look at again."
    scan = phantom(4, "CT", Grid((20, 20, 12), (7.0, 7.0, 8.0)))
    grid = Grid((24, 24, 16), (7.0, 7.0, 8.0))
    class Everywhere(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
        def forward(self, x): return torch.stack([torch.full_like(x[:, 0], float(k == 1)) for k in range(6)], 1)
    corner = np.array(scan.affine[:3, 3])
    seen = location.segment_box(Everywhere(), scan, grid, (-1000.0, 1000.0), corner, grid).seen
    assert seen.label.any() and np.array_equal(seen.label > 0, location.inside_scan(seen, scan))
    for place in (corner, corner + 40, grid_centre(seen)):
        location.segment_until_stable(Everywhere(), scan, grid, (-1000.0, 1000.0), place)
    oblique = replace(scan, affine=turned((20, -10, 35), spacing=(7, 7, 8)))
    inside = location.inside_scan(to_grid(oblique, grid, oblique.affine[:3, 3]), oblique)
    assert 0 < inside.mean() < 0.5


# ---- probabilities come back into the scan

def smooth_probabilities(shape, classes=4):
    from scipy.ndimage import gaussian_filter
    noise = np.random.default_rng(0).standard_normal((classes, *shape)).astype(np.float32)
    return torch.from_numpy(np.stack([gaussian_filter(channel, 2) for channel in noise]) * 60).softmax(0)


def test_an_answer_on_the_scan_s_own_grid_comes_back_as_it_is():
    probabilities, grid = smooth_probabilities((12, 14, 10)), Grid((12, 14, 10), (3., 3., 4.))
    scan = Volume(np.zeros(grid.shape, np.float32), grid.affine((5, 6, 7)), "CT")
    assert np.array_equal(labels_in_scan(probabilities, scan.affine, scan), probabilities.argmax(0).numpy())


def test_in_a_tilted_scan_only_voxels_at_borders_differ_from_the_nearest_label():
    probabilities, grid = smooth_probabilities((12, 14, 10)), Grid((12, 14, 10), (3., 3., 4.))
    affine = np.eye(4)
    affine[:3, :3] = rotation((10, -25, 40)) @ np.diag([1.2, -1.5, 2.])
    affine[:3, 3] = -affine[:3, :3] @ (18, 12, 10)
    scan = Volume(np.zeros((40, 30, 26), np.float32), affine, "CT")
    labels = probabilities.argmax(0).numpy()
    ours = labels_in_scan(probabilities, grid.affine(), scan)
    nearest = label_to_scan(labels, grid.affine(), scan)
    inner = label_to_scan((maximum_filter(labels, 3) == minimum_filter(labels, 3)), grid.affine(), scan) > 0
    assert inner.sum() > 100 and np.array_equal(ours[inner], nearest[inner])


def test_a_scan_that_the_answer_does_not_reach_is_background():
    probabilities, grid = smooth_probabilities((12, 14, 10)), Grid((12, 14, 10), (3., 3., 4.))
    scan = Volume(np.zeros((8, 8, 8), np.float32), Grid((8, 8, 8), (2., 2., 2.)).affine((500, 0, 0)), "CT")
    assert not labels_in_scan(probabilities, grid.affine(), scan).any()
