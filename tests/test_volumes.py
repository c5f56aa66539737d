"What cssgan.scans.volumes and .checks promise: to the grid and exactly back, and no intensity is taken for another."
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scans import AFFINES, LPS, lopsided, refused, turned, voxels

from cssgan.phantoms.scanners import phantom
from cssgan.scans.checks import check_intensities
from cssgan.scans.files import read_label, read_volume, write_volume
from cssgan.scans.volumes import (
    IGNORE,
    PAPER_GRID,
    SMALL_GRID,
    UNDRAWN,
    Grid,
    Volume,
    back_to_scan,
    body_centre,
    denormalise,
    grid_centre,
    intensity_range,
    is_region,
    label_to_scan,
    normalise,
    scale,
    to_grid,
    unscale,
    whole_scan_grid,
    with_label,
)
from cssgan.task import HEART, as_task

CT = HEART.domain("CT")

# labels

def test_label_on_another_grid():
    v = Volume(voxels(), LPS, "CT")
    label = lopsided(v.shape)
    assert with_label(v, label, LPS + 1e-5).label.dtype == np.uint8
    message = refused(with_label, v, label[:-1], LPS, "seg.nii")
    assert "seg.nii has 23×20×16 voxels" in message
    for other in (np.diag([-1, -1, 1, 1]) @ LPS, LPS + np.eye(4)[:, :1] * [0, 0, 0, 1], turned((1, 0, 0))):
        refused(with_label, v, label, other, says="lies elsewhere")


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_label_whose_axes_run_otherwise_is_turned(affine):
    v = Volume(voxels(), affine, "CT")
    label = lopsided(v.shape)
    for way in ([[0, 1], [1, -1], [2, 1]], [[2, 1], [0, -1], [1, -1]], [[1, -1], [0, 1], [2, -1]]):
        turned = nib.apply_orientation(label, way)
        there = affine @ nib.orientations.inv_ornt_aff(np.array(way), v.shape)
        assert np.array_equal(with_label(v, turned, there).label, label)
        refused(with_label, v, turned, there + np.eye(4)[:, 1:2] * [0, 0, 0, 1], says="own grid")


def test_label_value_that_no_table_knows():
    v = Volume(voxels(), LPS, "CT")
    assert "[205, 420]" in refused(with_label, v, np.where(lopsided(v.shape) > 2, 205, 420), LPS, "seg.nii")
    assert with_label(v, np.full(v.shape, IGNORE), LPS).label.max() == IGNORE


# the grid, and back

def labelled(affine, shape=(60, 50, 40), modality="CT"):
    return Volume(voxels(shape, modality).astype(np.float32), affine, modality, lopsided(shape))


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("grid", [PAPER_GRID, SMALL_GRID], ids=["paper", "small"])
def test_label_survives_the_way_to_the_grid_and_back(affine, grid):
    scan = labelled(affine)
    there = to_grid(scan, grid)
    back = back_to_scan(there, scan)
    assert there.axes == "RAS" and there.shape == grid.shape and np.allclose(there.spacing, grid.spacing)
    assert back.shape == scan.shape and np.array_equal(back.affine, scan.affine) and back.label.dtype == np.uint8
    assert np.array_equal(label_to_scan(there.label, there.affine, scan), back.label)
    seen = back_to_scan(replace(there, voxels=np.ones(grid.shape, np.float32), modality="CT"), scan).voxels > 0
    for region in range(1, 6):
        a, b = (scan.label == region) & seen, back.label == region
        dice = 2 * (a & b).sum() / (a.sum() + b.sum())
        centres = [nib.affines.apply_affine(scan.affine, np.argwhere(mask).mean(0)) for mask in (a, b)]
        shift = centres[0] - centres[1]
        assert dice > (0.96 if grid is PAPER_GRID and min(scan.spacing) > 1.5 else 0.87), (region, dice)
        assert np.abs(shift / grid.spacing).max() < 0.5, (region, shift)


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_the_grid_shows_the_patient_upright(affine):
    scan = labelled(affine)
    point = np.array([20, 33, 12])
    spot = replace(scan, voxels=np.full(scan.shape, -1000, np.float32), label=np.zeros(scan.shape, np.uint8))
    spot.voxels[tuple(point)], spot.label[tuple(point)] = 1000, 1
    world = nib.affines.apply_affine(affine, point)
    there = to_grid(spot, Grid((21, 21, 21), (1, 1, 1)), centre=world)
    assert there.voxels[10, 10, 10] == there.voxels.max() > 990 and there.label[10, 10, 10] == 1
    assert np.allclose(grid_centre(spot), world)


def test_an_equal_grid_is_an_exact_copy():
    scan = labelled(Grid((60, 50, 40), (2, 2, 3)).affine((1, 2, 3)))
    there = to_grid(scan, Grid((60, 50, 40), (2, 2, 3)), centre=(1, 2, 3))
    for volume in (there, back_to_scan(there, scan)):
        assert np.array_equal(volume.voxels, scan.voxels) and np.array_equal(volume.label, scan.label)
        assert np.array_equal(volume.affine, scan.affine)
    assert not np.shares_memory(there.voxels, scan.voxels)


@pytest.mark.parametrize("affine", [LPS, AFFINES["plain"], AFFINES["sagittal slices"]], ids=["LPS", "RAS", "sagittal"])
def test_turned_axes_alone_lose_nothing(affine):
    scan = labelled(affine)
    spacing = np.abs(affine[:3, :3]).max(1)
    there = to_grid(scan, *whole_scan_grid(scan, spacing))
    assert np.allclose(there.voxels.sum(dtype=float), scan.voxels.sum(dtype=float))
    assert sorted(there.shape) == sorted(scan.shape)
    back = back_to_scan(there, scan)
    assert np.allclose(back.voxels, scan.voxels, atol=1e-3) and np.array_equal(back.label, scan.label)


@pytest.mark.parametrize("modality, nothing", [("CT", -1024), ("MRI", 7)])
def test_padding_is_nothing(modality, nothing):
    v = np.random.default_rng(0).uniform(7, 50, (20, 20, 20)).astype(np.float32)
    v[0, 0, 0] = 7
    scan = Volume(v, np.eye(4), modality, np.ones((20, 20, 20), np.uint8))
    there = to_grid(scan, Grid((40, 40, 40), (1, 1, 1)))
    assert (there.voxels[:9] == nothing).all() and (there.label[:9] == 0).all()
    assert (there.label[10:30, 10:30, 10:30] == 1).all()
    scaled = to_grid(normalise(scan), Grid((40, 40, 40), (1, 1, 1)))
    assert (scaled.voxels[:9] == -1).all()


@pytest.mark.parametrize("ignored", ["all", "a region", "none"])
def test_outside_a_scan_is_background_only_where_everything_was_annotated(ignored):
    scan = labelled(LPS, (20, 20, 20))
    where = {"all": np.ones(scan.shape, bool), "a region": scan.label == 2}.get(ignored, np.zeros(scan.shape, bool))
    label = np.where(where, IGNORE, scan.label).astype(np.uint8)
    there = to_grid(replace(scan, label=label), Grid((40, 40, 40), (2, 2.5, 3)))
    assert set(np.unique(there.label[:4])) == {0 if ignored == "none" else IGNORE}
    if ignored == "all": assert (there.label == IGNORE).all()


def test_mri_range_ignores_padding_and_what_the_grid_does_not_see():
    v = np.random.default_rng(0).uniform(100, 200, (20, 20, 20)).astype(np.float32)
    v[:5] = 5000
    low, high = to_grid(Volume(v, np.eye(4), "MRI"), Grid((10, 40, 40), (1, 1, 1)), centre=(14.5, 9.5, 9.5)).range
    assert 100 <= low < 102 and 198 < high <= 200


def test_integer_voxels_are_interpolated_not_cut():
    scan = Volume(np.resize(np.array([0, -101], np.int16), (4, 4, 6)), np.eye(4), "CT")
    assert to_grid(scan, Grid((2, 2, 2), (1, 1, 1)), centre=(1.5, 1.5, 2)).voxels.dtype == np.float32
    assert (to_grid(scan, Grid((2, 2, 2), (1, 1, 1)), centre=(1.5, 1.5, 2)).voxels == -50.5).all()


def test_whole_scan_grid_covers_every_voxel():
    for affine in AFFINES.values():
        scan = Volume(np.ones((30, 25, 20), np.float32), affine, "CT")
        grid, centre = whole_scan_grid(scan)
        assert grid.spacing == PAPER_GRID.spacing
        full = Volume(np.ones(grid.shape, np.float32), grid.affine(centre), "CT")
        assert (back_to_scan(full, scan).voxels == 1).all()


def test_grid_beside_the_scan(): refused(to_grid, labelled(LPS), SMALL_GRID, (1000, 0, 0), says="does not touch")


def test_centre_without_label_lies_in_the_body_of_a_large_scan():
    def body(points): return (((points - (20, 40, 60)) / (140, 100, 300)) ** 2).sum(-1) < 1
    affine = nib.affines.from_matvec(np.diag([-4, -4, 5]), (240, 230, -150))
    points = nib.affines.apply_affine(affine, np.moveaxis(np.indices((110, 96, 90)), 0, -1))
    v = np.where(body(points), 40.0, -1000).astype(np.float32)
    v[:, -6:-4] = 100  # the table
    for modality in ("CT", "MRI"):
        scan = Volume(v if modality == "CT" else v + 1000, affine, modality)
        assert np.abs(body_centre(scan) - (20, 40, 60)).max() < 16
        assert np.abs(grid_centre(scan) - body_centre(scan) - (-15, 30, 0)).max() < 1e-6
        assert np.abs(body_centre(normalise(scan)) - body_centre(scan)).max() < 4


def test_centre_without_label_is_the_middle_of_a_scan_that_was_framed():
    scan = replace(labelled(AFFINES["oblique"], (40, 40, 30)), label=None)
    middle = nib.affines.apply_affine(scan.affine, (np.array(scan.shape) - 1) / 2)
    assert np.allclose(grid_centre(scan), middle)


def test_label_of_nothing_but_ignored_voxels_has_no_heart():
    scan = labelled(LPS)
    assert np.array_equal(grid_centre(replace(scan, label=np.full(scan.shape, IGNORE, np.uint8))),
                          grid_centre(replace(scan, label=None)))


# intensities

def test_scaling_is_fixed_for_ct_and_comes_back():
    v = Volume(voxels(), LPS, "CT")
    n = normalise(v, range=(0, 1))
    assert n.range == HEART.domain("CT").window and n.scaled and np.allclose(n.voxels, voxels() / 1000)
    assert np.allclose(denormalise(n).voxels, voxels(), atol=1e-3) and denormalise(n).scaled is False


def test_scaling_of_mri_follows_the_given_or_own_range():
    v = Volume(voxels(modality="MRI"), LPS, "MRI")
    assert normalise(v).range == intensity_range(v) and normalise(v, (0, 1000)).range == (0, 1000)
    assert normalise(replace(v, range=(3, 9))).range == (3, 9)


def test_scale_serves_tensors():
    torch = pytest.importorskip("torch")
    t = torch.tensor([-2000.0, -1000, 0, 500, 4000])
    s = scale(t, *HEART.domain("CT").window)
    assert s.dtype == torch.float32 and s.tolist() == pytest.approx([-1, -1, 0, 0.5, 1], abs=1e-6)
    assert unscale(s, *HEART.domain("CT").window).tolist() == pytest.approx([-1000, -1000, 0, 500, 1000], abs=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_a_phantom_is_in_hu_whole_and_cropped_and_in_no_other_unit(seed):
    v = phantom(seed, "CT", SMALL_GRID).voxels
    for crop in (v, v[12:36, 12:36, 8:26]):
        check_intensities(crop, CT)
        for wrong in (crop + 1024, crop - 1024, crop / 10, crop * 10, crop / 1000, crop.clip(-160, 240)):
            refused(check_intensities, wrong, CT, says="not in HU")
    for padding in (-1024, -2000, -3024): check_intensities(np.where(v < -900, padding, v), CT)


def test_a_slanted_voxel_is_as_large_as_its_determinant_says():
    slanted = LPS.copy()
    slanted[1, 2] = np.tan(np.radians(30)) * 3
    assert Volume(voxels(), slanted, "CT").voxel_ml == pytest.approx(2 * 2.5 * 3 / 1000)
    assert Volume(voxels(), slanted, "CT").spacing[2] == pytest.approx(3 / np.cos(np.radians(30)))


def test_a_scan_too_large_to_be_covered_is_refused():
    refused(whole_scan_grid, Volume(voxels(), np.diag([900, 900, 900, 1.0]), "CT"), says="is its affine in mm?")


def test_twice_is_refused():
    n = normalise(Volume(voxels(), LPS, "CT"))
    refused(normalise, n, says="once")
    refused(denormalise, denormalise(n), says="not scaled")
    refused(normalise, Volume(np.zeros((3, 3, 3)), LPS, "MRI"), says="no contrast")


def test_history_tells_what_was_done():
    history = denormalise(normalise(to_grid(labelled(LPS), SMALL_GRID, (0, 0, 0)))).history
    assert history == ("to grid 48×48×32 at 3.5×3.5×4 mm around (0.0, 0.0, 0.0) mm",
                       "scaled from [-1000, 1000] HU to [-1, 1]", "scaled back to [-1000, 1000] HU")


def test_a_volume_is_checked_when_it_is_made():
    refused(Volume, np.zeros((3, 3)), np.eye(4), "CT", says="(X, Y, Z)")
    refused(Volume, np.zeros((3, 3, 3)), np.eye(3), "CT", says="(4, 4)")
    refused(Volume, np.zeros((3, 3, 3)), np.eye(4), "PET", says="use CT or MRI")
    refused(Volume, np.zeros((3, 3, 3)), np.eye(4), "CT", np.zeros((3, 3, 2), np.uint8), says="same grid")
    refused(Volume, np.zeros((3, 3, 3)), np.eye(4), "CT", np.full((3, 3, 3), 420), says="uint8")


# other tasks

MR = {"name": "MR", "percentiles": [0, 100], "body": 300}
CBCT = {"name": "CBCT", "knots": [[-1000, -1], [-150, -0.6], [450, 0.6], [1000, 1]]}
OTHER = as_task({"name": "other", "domains": [MR, CBCT], "regions": ["background", "liver", "spleen"],
                 "grid": {"shape": [16, 16, 16], "spacing": [4, 4, 4]}, "centre": {"rule": "image"}})


def other(modality, **more):
    v = np.random.default_rng(0).uniform(-1200, 1200, (20, 18, 16)).astype(np.float32)
    return Volume(v, np.diag([4, 4, 4, 1.0]), modality, task=OTHER, **more)


def test_a_window_with_corners_comes_back():
    scan = other("CBCT")
    assert np.allclose(denormalise(normalise(scan)).voxels, scan.voxels.clip(-1000, 1000), atol=0.01)
    assert normalise(scan).range == (-1000, 1000) == normalise(scan, range=(0, 1)).range
    assert normalise(replace(scan, range=(0, 1))).range == (-1000, 1000)  # its corners decide, whatever was said


def test_the_body_of_a_scan_whose_percentiles_decide():
    scan = other("MR")
    for seen in (scan, normalise(scan), replace(scan, voxels=scan.voxels / 1200, scaled=True)):
        assert np.abs(body_centre(seen) - nib.affines.apply_affine(scan.affine, np.array(scan.shape) / 2)).max() < 8


def test_a_task_says_where_its_grid_lies_and_what_its_names_are():
    scan = other("MR")
    assert np.allclose(grid_centre(scan), nib.affines.apply_affine(scan.affine, (np.array(scan.shape) - 1) / 2))
    refused(other, "CT", says="use MR or CBCT")
    refused(with_label, scan, np.full(scan.shape, 3), scan.affine, says="0..2")
    assert scan.unit == "" and scan.nothing == scan.voxels.min()


def test_what_is_not_drawn_is_no_region_and_goes_on_outside_of_the_scan():
    label = np.full((20, 18, 16), UNDRAWN, np.uint8)
    label[4:8, 4:8, 4:8] = 1
    scan = other("MR", label=label)
    assert np.allclose(grid_centre(scan), (22, 22, 22)) and is_region(label).sum() == 64
    there = to_grid(scan, Grid((60, 60, 60), (2, 2, 2)))
    assert there.label[0, 0, 0] == UNDRAWN and set(np.unique(there.label)) == {1, UNDRAWN}
    assert with_label(replace(scan, label=None), label, scan.affine).label.max() == UNDRAWN


# real scans

@pytest.mark.data
@pytest.mark.parametrize("file, modality", [("cta/ct.nii.gz", "CT"), ("lge_mr/mr.nii.gz", "MRI")])
def test_real_scan_goes_to_the_grid_and_back(real, tmp_path, file, modality):
    scan = read_volume(real / file, modality)
    check_intensities(to_grid(scan).voxels, HEART.domain(modality))
    write_volume(back_to_scan(to_grid(scan), scan), tmp_path / "back.nii.gz")
    here, there = nib.load(real / file), nib.load(tmp_path / "back.nii.gz")
    assert here.shape == there.shape and np.array_equal(here.affine, there.affine)


@pytest.mark.data
def test_a_real_scan_is_in_hu_however_close_it_is_cut_and_in_no_other_unit(real):
    heart = np.argwhere(read_label(real / "cta/heart_mask.nii.gz")[0])
    v, low, high = read_volume(real / "cta/ct.nii.gz", "CT").voxels, heart.min(0), heart.max(0) + 1
    crops = [v[tuple(slice(max(a + cut, 0), b - cut) for a, b in zip(low, high))] for cut in (-30, -10, 0, 10, 20, 25)]
    for crop in (v, read_volume(real / "ct_dicom").voxels, *crops):
        check_intensities(crop, CT)
        for wrong in (crop + 1024, crop - 1024, crop / 10, np.rint(crop / 10), crop * 10):
            refused(check_intensities, wrong, CT, says="not in HU")


@pytest.mark.data
def test_real_heart_is_found_without_a_label(real):
    scan = read_volume(real / "cta/ct.nii.gz", "CT")
    heart, affine = read_label(real / "cta/heart_mask.nii.gz")
    there = to_grid(with_label(scan, heart, affine), centre=grid_centre(scan))
    seen = (there.label > 0).sum() * there.voxel_ml / ((heart > 0).sum() * scan.voxel_ml)
    assert np.linalg.norm(grid_centre(scan) - grid_centre(with_label(scan, heart, affine))) < 30 and seen > 0.9
