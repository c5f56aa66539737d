"""Phantoms: the same on every machine, whole in every seed, on any grid, around any label map."""
import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from cssgan.guard import InputError
from cssgan.phantoms.anatomy import TISSUES
from cssgan.phantoms.heart import anatomy_from_labels, draw_anatomy
from cssgan.phantoms.scanners import phantom, render
from cssgan.phantoms.shapes import draw_shapes, shapes
from cssgan.scans.checks import check_intensities
from cssgan.scans.volumes import SMALL_GRID, Grid
from cssgan.task import as_task

DATA = Path(__file__).parents[1].parent / "shared" / "data"
SHA = {
    "CT": "f3cf2ed5f1b9e248a7361f7c540abd81132f56201a30fdb65962c4ec5e55bb53",
    "MRI": "e7ab809b5f3732af1ead654bbbb8cbe6937a2e42787bf30fd1f0970dbf58aca1",
}


@pytest.fixture(scope="module")
def anatomies():
    return [draw_anatomy(seed, SMALL_GRID) for seed in range(20)]


def has(anatomy, tissue):
    return (anatomy.tissues == TISSUES.index(tissue)).sum()


@pytest.mark.parametrize("modality", ["CT", "MRI"])
def test_same_seed_same_phantom(modality):
    a, b = phantom(5, modality, SMALL_GRID), phantom(5, modality, SMALL_GRID)
    assert np.array_equal(a.voxels, b.voxels) and np.array_equal(a.label, b.label) and a.history == b.history
    assert not np.array_equal(a.voxels, phantom(6, modality, SMALL_GRID).voxels)


@pytest.mark.parametrize("modality", ["CT", "MRI"])
def test_phantom_is_the_same_on_every_machine(modality):
    v = phantom(7, modality, SMALL_GRID)
    assert (v.voxels == np.rint(v.voxels)).all()
    sha = hashlib.sha256(v.voxels.astype("<i2").tobytes() + v.label.tobytes()).hexdigest()
    assert sha == SHA[modality]


def test_every_seed_has_a_whole_heart(anatomies):
    litre = np.prod(SMALL_GRID.spacing) / 1e6
    ml = np.array([np.bincount(a.label.ravel(), minlength=6)[1:] for a in anatomies]) * litre * 1000
    assert ml.min() > 10 and ml.max() < 400
    assert (ml.max(0) > 2 * ml.min(0)).all(), "patients must differ"
    for a in anatomies:
        missing = [t for t in ("lung", "cortical bone", "liver", "fat", "muscle", "aorta", "pulmonary artery",
                               "upper vena cava") if not has(a, t)]
        assert not missing, f"seed {a.seed} has no {missing}"


def test_myocardium_closes_around_the_left_ventricle(anatomies):
    for a in anatomies:
        cavity = a.label == 1
        rim = a.label[binary_dilation(cavity) & ~cavity]
        assert (rim == 5).mean() > .55, f"seed {a.seed}: {(rim == 5).mean():.2f}"
        assert (rim == 2).mean() < .05, f"seed {a.seed}: the right ventricle touches the left one"


def test_there_is_skin_around_everyone():
    for seed in (0, 3, 6, 10):
        tissues = draw_anatomy(seed, Grid((90, 80, 40), (4.0, 4.0, 4.0))).tissues
        air = tissues == TISSUES.index("air")
        beside = set(np.unique(tissues[binary_dilation(air) & ~air]))
        assert beside == {TISSUES.index("fat")}, f"seed {seed}: flesh or bone meets the air"


def test_modalities_share_the_truth_and_nothing_else():
    a = draw_anatomy(1, SMALL_GRID)
    ct, mri = render(a, "CT"), render(a, "MRI")
    assert np.array_equal(ct.label, mri.label) and np.array_equal(ct.affine, mri.affine)
    assert ct.voxels.min() >= -1024 and ct.voxels.max() <= 3071 and mri.voxels.min() >= 0
    assert np.median(ct.voxels[a.tissues == TISSUES.index("lung")]) < -700
    assert np.median(mri.voxels[ct.label == 1]) > 1.3 * np.median(mri.voxels[ct.label == 5])


def test_scanner_and_anatomy_draw_from_streams_of_their_own():
    a = draw_anatomy(1, SMALL_GRID)
    one, two = render(a, "CT", seed=1), render(a, "CT", seed=2)
    assert np.array_equal(one.voxels, render(a, "CT").voxels)
    assert not np.array_equal(one.voxels, two.voxels) and np.array_equal(one.label, two.label)


@pytest.mark.parametrize("grid",
                         [Grid((40, 37, 31), (4.0, 4.5, 5.0)), Grid((60, 60, 20), (5.5, 5.5, 9.0)),
                          Grid((33, 32, 8), (4.0, 4.0, 12.0))])
def test_any_grid(grid):
    v = phantom(0, "MRI", grid)
    assert v.shape == grid.shape and np.allclose(v.spacing, grid.spacing)
    assert set(np.unique(v.label)) == set(range(6))


def test_a_phantom_is_the_same_on_a_finer_grid():
    grids = Grid((24, 24, 16), (6.0, 6.0, 8.0)), Grid((72, 72, 48), (2.0, 2.0, 8.0 / 3))
    coarse, fine = (draw_anatomy(2, grid) for grid in grids)
    assert (coarse.tissues == fine.tissues[1::3, 1::3, 1::3]).mean() > .999


def test_a_moved_patient_is_the_same_patient_elsewhere():
    still = draw_anatomy(4, SMALL_GRID)
    for axis, mm in enumerate(SMALL_GRID.spacing):
        move = [mm if i == axis else 0 for i in range(3)]
        moved = draw_anatomy(4, SMALL_GRID, move).tissues.take(range(1, SMALL_GRID.shape[axis]), axis)
        assert (moved == still.tissues.take(range(SMALL_GRID.shape[axis] - 1), axis)).mean() > .999, axis


def test_thick_slices_blur_along_z_only():
    a = draw_anatomy(1, SMALL_GRID)
    thin, thick = (render(a, "CT", thickness=t).voxels for t in (None, 20))
    step = lambda v, axis: np.abs(np.diff(v, axis=axis)).mean()
    assert step(thick, 2) < .75 * step(thin, 2) and step(thick, 0) > .75 * step(thin, 0)


def test_a_label_map_is_an_anatomy():
    drawn = draw_anatomy(3, SMALL_GRID)
    world = drawn.affine.copy(); world[:3, 3] += (100, -50, 900)
    a = anatomy_from_labels(drawn.label, world, Grid((56, 56, 40), SMALL_GRID.spacing), seed=8)
    assert np.array_equal(np.bincount(a.label.ravel(), minlength=6)[1:],
                          np.bincount(drawn.label.ravel(), minlength=6)[1:])
    middle = lambda label, affine: nib.affines.apply_affine(affine, np.argwhere(label == 1).mean(0))
    assert np.abs(middle(a.label, a.affine) - middle(drawn.label,
                                                     world)).max() < 3, "the heart keeps its place in the world"
    assert all(has(a, t) for t in ("aorta", "lung", "liver", "cortical bone"))


def test_a_part_of_a_heart_is_an_anatomy_too():
    for y in (1, 5):
        label = np.zeros((12, 12, 12), np.uint8); label[3:9, 3:9, 3:9] = y
        a = anatomy_from_labels(label, np.diag([4.0, 4, 4, 1]), SMALL_GRID)
        assert set(np.unique(a.label)) == {0, y}


@pytest.mark.data
@pytest.mark.skipif(not (DATA / "rodero01").is_dir(), reason="../shared/data is not here: no real label map to try")
def test_a_real_heart_is_an_anatomy():
    scan = nib.as_closest_canonical(nib.load(DATA / "rodero01" / "labels_1mm.nii.gz"))
    values, label = np.asarray(scan.dataobj), np.zeros(scan.shape, np.uint8)
    for value, y in {205: 5, 420: 3, 500: 1, 550: 4, 600: 2}.items(): label[values == value] = y
    a = anatomy_from_labels(label, scan.affine, Grid((84, 84, 64), (2.0, 2.0, 2.0)))
    there, here = (np.bincount(x.ravel(), minlength=6)[1:] * ml for x, ml in ((label, 1e-3), (a.label, 8e-3)))
    assert np.allclose(there, here, rtol=.05)
    ct, mri = render(a, "CT"), render(a, "MRI")
    blood, muscle = a.label == 1, a.label == 5
    assert np.median(ct.voxels[blood]) > np.median(ct.voxels[muscle]) + 80
    assert np.median(mri.voxels[blood]) > np.median(mri.voxels[muscle])


@pytest.mark.parametrize("wrong", [
    lambda: phantom(0, "PET", SMALL_GRID),
    lambda: phantom(-1, "CT", SMALL_GRID),
    lambda: phantom(.5, "CT", SMALL_GRID),
    lambda: anatomy_from_labels(np.zeros((4, 4, 4)), np.eye(4)),
    lambda: anatomy_from_labels(np.ones((4, 4)), np.eye(4)),
    lambda: anatomy_from_labels(np.full((4, 4, 4), 205), np.eye(4)),
])
def test_bad_input_gets_one_clear_line(wrong):
    with pytest.raises(InputError) as error: wrong()
    assert "\n" not in str(error.value) and ":" in str(error.value)


# phantoms of other tasks

@pytest.mark.parametrize("n", [1, 3, 9, 20, 61])
@pytest.mark.parametrize("seed", range(3))
def test_every_region_lies_whole_in_the_body(seed, n):
    label, body = draw_shapes(seed, n, Grid((48, 44, 40), (4, 4, 5)))
    sizes = np.bincount(label.ravel(), minlength=n + 1)[1:]
    assert sizes.min() >= 20 and (body[label > 0] == body.max()).all()
    for faces in (label[0], label[-1], label[:, 0], label[:, -1]): assert not faces.any()


@pytest.mark.parametrize("n", [1, 2, 4, 5])
def test_domains_show_the_same_anatomy_in_other_intensities(n):
    task = as_task({"name": "any", "domains": [{"name": "CT", "window": [-1000, 1000], "check": "HU", "unit": "HU"},
                                               {"name": "MR", "percentiles": [0, 100], "check": "not HU"}],
                    "regions": ["background", *(f"region {k}" for k in range(n))],
                    "grid": {"shape": [40, 40, 32], "spacing": [5, 5, 5]}})
    ct, mr = (shapes(7, name, task) for name in task.names)
    assert np.array_equal(ct.label, mr.label) and np.array_equal(ct.voxels, shapes(7, "CT", task).voxels)
    for scan in (ct, mr): check_intensities(scan.voxels, scan.domain)
    order = [np.argsort([scan.voxels[scan.label == k].mean() for k in range(1, n + 1)]).tolist() for scan in (ct, mr)]
    assert n == 1 or order[0] != order[1]
    if n == 1:  # brighter than the body in one, darker in the other
        around = [scan.voxels[18:22, 18:22][scan.label[18:22, 18:22] == 0].mean() for scan in (ct, mr)]
        assert ct.voxels[ct.label == 1].mean() > around[0] and mr.voxels[mr.label == 1].mean() < around[1]
