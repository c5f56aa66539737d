"What cannot be a heart is named; nothing that is one is refused."
import itertools
from functools import cache

import nibabel as nib
import numpy as np
import pytest
from msgspec.structs import replace

from cssgan.data.cases import apply_table, label_codes
from cssgan.phantoms.heart import draw_anatomy
from cssgan.scans.files import read_label
from cssgan.scans.plausible import (
    crop_to_regions,
    describe_volumes,
    doubts,
    largest_piece_share,
    myocardial_rim,
    neighbour_shares,
    plausibility,
    regions_cut_off,
    volumes_ml,
)
from cssgan.scans.volumes import IGNORE, PAPER_GRID, SMALL_GRID, UNDRAWN, Grid, Volume, to_grid
from cssgan.task import HEART, REGIONS

GRIDS = {"small": SMALL_GRID, "4 mm": Grid((40, 40, 32), (4.0,) * 3), "7 mm": Grid((24, 24, 16), (7.0, 7.0, 8.0)),
         "10 mm": Grid((18, 18, 14), (10.0,) * 3), "short axis": Grid((60, 60, 14), (2.7, 2.7, 10.0))}


@cache
def drawn(seed=4001, grid="small"):
    anatomy = draw_anatomy(seed, GRIDS[grid])
    return Volume(np.zeros(anatomy.label.shape, np.float32), anatomy.affine, "CT", anatomy.label)


def all_doubts(volume, label=None): return doubts(volume.label if label is None else label, volume.voxel_ml)
def certain(volume, label=None): return [str(d) for d in all_doubts(volume, label) if d.certain]
def numbered(label, numbers): return np.array([numbers.get(k, 0) for k in range(6)], np.uint8)[label]


def test_a_stack_that_ends_in_the_atria_leaves_crumbs_of_them_and_no_doubt():
    "What the scan does not show is unknown; a few ml of an atrium are left that do not touch its end."
    label = drawn().label.copy()
    for atrium in (3, 4):
        where = np.argwhere(label == atrium)
        label[label == atrium] = 0
        label[tuple(where[len(where) // 2])] = atrium
    crumbs = [str(d) for d in all_doubts(drawn(), label)]
    assert any("unusual volumes (LA" in d for d in crumbs), "in a whole heart they are odd"
    label[:, :, -1] = IGNORE
    assert not any("unusual" in str(d) for d in all_doubts(drawn(), label))
    no_lv = np.where(label == 1, 0, label).astype(np.uint8)
    no_lv[tuple(np.argwhere(label == 1)[0])] = 1
    assert any("LV" in str(d) for d in all_doubts(drawn(), no_lv)), "without its LV it may be anything"


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("seed", range(4000, 4006))
def test_a_drawn_heart_raises_no_doubt_on_any_grid(seed, grid):
    volume = drawn(seed, grid)
    assert all_doubts(volume) == [] and myocardial_rim(volume.label) > 0.65


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_orientation_does_not_matter(axes):
    label = drawn().label
    assert doubts(label.transpose(axes)[::-1], drawn().voxel_ml) == []
    assert myocardial_rim(label.transpose(axes)[:, ::-1]) == myocardial_rim(label)


OF_OTHERS = {
    "ACDC": {2: 1, 5: 2, 1: 3}, "M&Ms": {1: 1, 5: 2, 2: 3}, "HVSMR": {1: 1, 2: 2, 3: 3, 4: 4},
    "TotalSegmentator": {5: 1, 3: 2, 1: 3, 2: 4, 4: 5}, "TotalSegmentator before": {5: 1, 3: 2, 1: 3, 4: 4, 2: 5},
    "MM-WHS in the order of its numbers": {5: 1, 3: 2, 1: 3, 4: 4, 2: 5}, "only a mask": {1: 1, 2: 1, 3: 1, 4: 1, 5: 1},
    "blood and muscle": {1: 1, 2: 1, 3: 1, 4: 1, 5: 2}, "muscle and blood": {1: 2, 2: 2, 3: 2, 4: 2, 5: 1},
}


@pytest.mark.parametrize("name", OF_OTHERS)
@pytest.mark.parametrize("grid", ["small", "7 mm", "short axis"])
def test_the_numbers_of_other_data_sets_cannot_be_ours(name, grid):
    assert certain(drawn(grid=grid), numbered(drawn(grid=grid).label, OF_OTHERS[name])), name


@pytest.mark.parametrize("numbers", list(itertools.permutations(range(1, 6)))[1:])
def test_exchanged_numbers_are_noticed(numbers):
    "All 119, on two phantoms; only the atria for each other, and nothing else, are not certain (some are born so)."
    for seed, grid in ((4001, "small"), (4002, "7 mm")):
        found = all_doubts(drawn(seed, grid), np.array((0, *numbers), np.uint8)[drawn(seed, grid).label])
        assert found and (found[0].certain or numbers == (1, 2, 4, 3, 5)), (numbers, found)


def test_nothing_and_everything_are_no_heart():
    label = drawn().label
    assert certain(drawn(), label * 0) and certain(drawn(), label * 0 + 1) and certain(drawn(), label * 0 + 5)
    rng = np.random.default_rng(0)
    for most in (6, 2): assert certain(drawn(), rng.integers(0, most, label.shape, np.uint8))


@pytest.mark.parametrize("factor", [1e-9, 1e-6, 1e-3, 30, 1e3, 1e9])
def test_a_voxel_of_the_wrong_size_is_noticed(factor):
    assert any(d.certain for d in doubts(drawn().label, drawn().voxel_ml * factor))


def test_what_was_not_annotated_is_no_doubt():
    label = drawn().label
    for known in ((1, 5), (1,), (2,), (3, 4), (5,), (1, 2, 5)):
        assert all_doubts(drawn(), np.where(np.isin(label, known), label, IGNORE).astype(np.uint8)) == [], known
    assert certain(drawn(), np.full_like(label, IGNORE)) == []


@pytest.mark.parametrize("known", [(1, 5), (3,), (2, 5), (1, 2, 5)])
def test_what_was_drawn_in_part_is_not_refused(known):
    label = np.where(np.isin(drawn().label, known), drawn().label, 0)
    assert certain(drawn(), label) == [] and any("there is no" in str(d) for d in all_doubts(drawn(), label))


@pytest.mark.parametrize("known", [(1, 2, 3, 4), (1, 2, 5), (1, 5), (1,), (2,), (3,), (5,), (1, 2)])
@pytest.mark.parametrize("grid", ["small", "7 mm", "short axis"])
def test_what_a_data_set_does_not_draw_is_no_doubt(known, grid):
    "HVSMR draws no myocardium, ACDC no atria, others one chamber; their own labels are not refused."
    for seed in range(4000, 4004):
        label = drawn(seed, grid).label
        assert all_doubts(drawn(seed, grid), np.where(np.isin(label, known), label, UNDRAWN)) == [], seed


@pytest.mark.parametrize("name", ["ACDC", "M&Ms", "TotalSegmentator"])
@pytest.mark.parametrize("grid", ["small", "7 mm"])
def test_muscle_that_was_read_as_a_chamber_is_noticed_without_the_myocardium(name, grid):
    read = numbered(drawn(grid=grid).label, OF_OTHERS[name]) % 5  # as HVSMR, whose 5 is a vessel
    assert "surrounds" in certain(drawn(grid=grid), np.where(read, read, UNDRAWN))[0]


def test_of_other_tasks_nothing_is_known_but_whether_something_is_marked():
    label, organs = drawn().label, ("background", "liver", "spleen", "pancreas", "left kidney", "right kidney")
    abdomen = replace(HEART, name="abdomen", regions=organs, tables={}, table_of={})
    assert doubts(numbered(label, OF_OTHERS["ACDC"]), 1e-6, abdomen) == []
    assert doubts(label * 0, 1., abdomen)[0].certain and "liver" in str(doubts(label * 0 + 1, 1., abdomen)[0])
    assert describe_volumes(label * 0, 1., abdomen) == "no abdomen was found"
    assert describe_volumes(label, 1., abdomen).startswith("liver ") and plausibility(label, abdomen) == 0


@pytest.mark.parametrize("axis, end", list(itertools.product(range(3), (0, 1))))
def test_a_heart_that_the_scan_cuts_off_is_not_refused(axis, end):
    for seed in range(4000, 4005):
        label = np.moveaxis(crop_to_regions(drawn(seed).label), axis, 0)[:: 1 - 2 * end]
        for part in np.linspace(0.1, 0.95, 9):
            assert certain(drawn(seed), label[: max(1, int(part * len(label)))]) == [], (seed, part)


@pytest.mark.parametrize("seed", [100097, 100185, 100245])
def test_a_short_axis_stack_that_ends_in_the_atria_is_not_refused(seed):
    from cssgan.phantoms.clinic import clinical_phantom
    stack = clinical_phantom(seed, "MRI", Grid((40, 36, 32), (6.0, 6.0, 6.0)))
    found = doubts(stack.label, stack.voxel_ml)
    assert {"LA", "RA"} & set(regions_cut_off(stack.label)) and not any(doubt.certain for doubt in found), found


def test_cut_off_names_what_reaches_the_border():
    heart = crop_to_regions(drawn().label)
    assert regions_cut_off(drawn().label) == [] and set(regions_cut_off(heart)) <= set(REGIONS[1:])
    assert regions_cut_off(heart) and regions_cut_off(heart[:, :, 5:6]) != []


def test_two_hearts_are_doubted():
    label = drawn().label
    assert any("apart" in str(d) for d in all_doubts(drawn(), np.concatenate([label, label])))
    assert largest_piece_share(label) > 0.99 and np.isnan(largest_piece_share(label * 0))


def test_the_rim_of_a_box():
    label = np.zeros((9, 9, 9), np.uint8)
    label[2:7, 2:7, 2:7], label[3:6, 3:6, 3:6] = 5, 1
    assert myocardial_rim(label) == 1 and neighbour_shares(label, "RV") is None and np.isnan(myocardial_rim(label * 0))
    label[:, :, 6] = 0  # nothing is drawn there: known to be background only where other regions are beside it
    assert myocardial_rim(label) == 1
    label[0, 0, 8] = 2
    assert myocardial_rim(label) == pytest.approx(5 / 6)
    label[:, :, 6] = IGNORE
    assert myocardial_rim(label) == 1


def test_volumes_come_from_the_determinant():
    shear = nib.affines.from_matvec([[2, 0, 0], [0, 3, 2.4], [0, 0, 4]])
    volume = Volume(np.zeros((10, 10, 10), np.float32), shear, "CT", np.full((10, 10, 10), 2, np.uint8))
    expected = {"LV": 0, "RV": 24, "LA": 0, "RA": 0, "myocardium": 0}
    assert volumes_ml(volume.label, volume.voxel_ml) == pytest.approx(expected)


def test_volumes_in_words():
    label, ml = drawn().label, drawn().voxel_ml
    volumes = volumes_ml(label, ml)
    assert describe_volumes(label, ml) == ", ".join(f"{region} {volumes[region]:.0f} ml" for region in REGIONS[1:])
    assert describe_volumes(label * 0, ml) == "no heart was found"
    assert describe_volumes(numbered(label, OF_OTHERS["ACDC"]), ml).startswith("no heart was found (")
    assert " ml" not in describe_volumes(label * 0 + 1, ml)
    assert "cut off" in describe_volumes(crop_to_regions(label)[:, :, 3:], ml)


@pytest.mark.data
def test_no_real_label_map_is_refused(real):
    "Sixteen hearts at 1 mm and on coarse grids; short-axis stacks on which little is drawn."
    hearts, stacks = sorted((real / "hearts").glob("*.nii.gz")), sorted((real / "sunnybrook").glob("*_label.nii.gz"))
    for file in [*hearts[::4], real / "rodero01" / "labels_1mm.nii.gz", *stacks]:
        label, affine = read_label(file)
        label = apply_table(label, label_codes(HEART, "CT", "MM-WHS"))
        volume = Volume(np.zeros(label.shape, np.float32), affine, "CT", label)
        assert certain(volume) == [], file.name
        if file.parent.name == "sunnybrook": continue
        assert all_doubts(volume) == [] and myocardial_rim(label) > 0.85
        for grid in (PAPER_GRID, *GRIDS.values()): assert all_doubts(to_grid(volume, grid)) == [], (file.name, grid)
