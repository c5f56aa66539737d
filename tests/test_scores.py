"The scores of scans against MONAI and against counting by hand; means of patients against small sums."
import math
import random

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance

from cssgan.data.cases import Case
from cssgan.data.prepared import as_targets, undrawn_of
from cssgan.inference import scores
from cssgan.inference.scores import (
    comparable,
    compare_masks,
    mask_distances,
    mean_interval,
    scan_scores,
    spread_of,
    summarise,
    summary_table,
)
from cssgan.metrics import dice_scores
from cssgan.scans.volumes import IGNORE, UNDRAWN, Volume

SPACING = (0.7, 1.5, 4.0)


def blob(seed, shape=(14, 12, 9), share=.5):
    "A smooth random shape."
    from scipy.ndimage import gaussian_filter
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return noise > np.quantile(noise, 1 - share)


def surface(mask):
    "Voxels with a face to the outside, which begins at the array's border, too; mm along each axis."
    wide, inside = np.pad(mask, 1), np.pad(mask, 1)
    for axis in range(3):
        for step in (-1, 1): inside = inside & np.roll(wide, step, axis)
    return np.argwhere((wide & ~inside)[1:-1, 1:-1, 1:-1]) * SPACING


def by_brute_force(found, truth):
    "HD95 and ASSD from every pair of surface voxels."
    apart = np.linalg.norm(surface(found)[:, None] - surface(truth)[None], axis=-1)
    there, back = apart.min(1), apart.min(0)
    return max(np.percentile(there, 95), np.percentile(back, 95)), np.concatenate([there, back]).mean()


@pytest.mark.parametrize("seed", range(6))
def test_distances_of_anisotropic_voxels_are_those_of_all_pairs(seed):
    found, truth = blob(seed, share=.3), blob(seed + 100, share=.2)
    assert mask_distances(found, truth, SPACING) == pytest.approx(by_brute_force(found, truth), rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_a_scan_scores_as_monai_does_on_the_whole_grid(seed):
    rng = np.random.default_rng(seed)
    truth = np.kron(rng.integers(0, 6, (5, 4, 3)), np.ones((4, 4, 4))).astype(np.uint8)
    truth = np.pad(truth, ((6, 3), (0, 5), (2, 2)))
    found = np.where(rng.random(truth.shape) < .8, truth, np.roll(truth, 2, 0)).astype(np.uint8)
    hot = [torch.nn.functional.one_hot(torch.from_numpy(l).long(), 6).movedim(-1, 0)[None] for l in (found, truth)]
    dice = 100 * compute_dice(*hot, include_background=False)[0]
    hd95 = compute_hausdorff_distance(*hot, percentile=95, spacing=list(SPACING))[0]
    assd = compute_average_surface_distance(*hot, symmetric=True, spacing=list(SPACING))[0]
    scan = Volume(truth.astype(np.float32), np.diag([*SPACING, 1]), "CT", label=truth)
    for k, score in enumerate(scan_scores(found, scan)):
        assert (score.dice, score.hd95, score.assd) == (dice[k].item(), hd95[k].item(), assd[k].item())
        assert score.true_ml == pytest.approx((truth == k + 1).sum() * np.prod(SPACING) / 1000)
        assert score.found_ml == pytest.approx((found == k + 1).sum() * np.prod(SPACING) / 1000)


def test_what_is_empty_scores_as_it_is_written_down():
    some, none = blob(0), np.zeros((14, 12, 9), bool)
    assert compare_masks(none, some) == compare_masks(some, none) == 0
    assert mask_distances(none, some, SPACING) == mask_distances(some, none, SPACING) == (math.inf, math.inf)
    assert math.isnan(compare_masks(none, none)) and all(map(math.isnan, mask_distances(none, none, SPACING)))
    assert compare_masks(some, some) == 100 and mask_distances(some, some, SPACING) == (0, 0)


def scan_of(label): return Volume(np.zeros(label.shape, np.float32), np.diag([*SPACING, 1]), "CT", label=label)


def test_what_nobody_annotated_counts_for_neither_side():
    truth, found = np.zeros((8, 8, 8), np.uint8), np.zeros((8, 8, 8), np.uint8)
    truth[:4, :4, :4] = 1
    found[:4, :4, :] = 1
    truth[..., 4:] = IGNORE
    lv = scan_scores(found, scan_of(truth))[0]
    assert (lv.dice, lv.hd95, lv.assd) == (100, 0, 0) and lv.true_ml == lv.found_ml


def test_a_scan_of_which_nothing_is_known_has_no_scores():
    rows = scan_scores(np.ones((5, 5, 5), np.uint8), scan_of(np.full((5, 5, 5), IGNORE, np.uint8)))
    assert len(rows) == 5 and all(math.isnan(row.dice) and row.true_ml == row.found_ml == 0 for row in rows)


def test_what_a_data_set_does_not_draw_has_no_score_and_spoils_none():
    case = Case("a", "a", "MRI", "image.nii", "label.nii", table="ACDC")  # RV, myocardium, LV
    rng = np.random.default_rng(0)
    whole, found = (rng.integers(0, 6, (8, 8, 8)).astype(np.uint8) for _ in range(2))
    truth = np.where(np.isin(whole, (0, 3, 4)), UNDRAWN, whole).astype(np.uint8)
    undrawn = undrawn_of(case)
    rows = {row.structure: row.dice for row in scan_scores(found, scan_of(truth), undrawn)}
    assert undrawn == {3, 4} and set(rows) == {"LV", "RV", "myocardium"}
    in_training = dice_scores(torch.from_numpy(found).long()[None], as_targets(torch.from_numpy(truth), case)[None])[0]
    assert list(rows.values()) == pytest.approx(in_training[[0, 1, 4]].tolist())


def test_regions_may_be_others_than_the_tasks():
    label = np.zeros((6, 6, 6), np.uint8)
    label[1:4, 1:4, 1:4] = 1
    rows = scan_scores(label, scan_of(label), regions=("background", "whole heart"))
    assert [(row.structure, row.dice) for row in rows] == [("whole heart", 100)]


def test_only_the_box_of_what_is_marked_is_looked_at():
    truth, found = np.zeros((50, 40, 30), np.uint8), np.zeros((50, 40, 30), np.uint8)
    truth[10:14, 5:9, 20:22], found[12:16, 5:9, 20:25] = 1, 2
    assert [part.shape for part in comparable(found, truth)] == [(6, 4, 5)] * 2
    assert [part.shape for part in comparable(found * 0, truth * 0)] == [(1, 1, 1)] * 2


# ---- over patients

def row(case, patient, structure="LV", domain="CT", **values):
    return {"case": case, "patient": patient, "domain": domain, "structure": structure, "error": ""} | {
        name: math.nan for name in scores.SCORES} | values


def test_scans_of_one_patient_are_one_witness():
    rows = [row("a", "p", dice_percent=90.), row("b", "p", dice_percent=70.), row("c", "q", dice_percent=50.)]
    spread = spread_of(rows, "dice_percent")
    assert (spread["cases"], spread["patients"], spread["mean"], spread["median"]) == (3, 2, 65, 65)
    assert (spread["low"], spread["high"]) == (50, 80)


def test_interval_is_that_of_the_mean_and_can_be_repeated():
    values = np.random.default_rng(1).normal(70, 10, 200)
    low, high = mean_interval(values)
    exact = 1.96 * values.std() / math.sqrt(200)
    assert (values.mean() - low, high - values.mean()) == pytest.approx((exact, exact), rel=.1)
    assert mean_interval(values) == (low, high)
    assert all(map(math.isnan, mean_interval(values[:1]))) and mean_interval(np.full(5, 3.)) == (3, 3)


def test_the_missed_are_counted_and_enter_the_median():
    rows = [row(str(k), str(k), hd95_mm=mm) for k, mm in enumerate((4., 8., math.inf, math.nan))]
    spread = spread_of(rows, "hd95_mm")
    assert (spread["patients"], spread["missed"], spread["mean"], spread["median"]) == (3, 1, 6, 8)
    assert spread_of(rows[2:], "hd95_mm")["median"] == math.inf and math.isnan(spread_of(rows[2:], "hd95_mm")["mean"])


def test_all_is_the_mean_over_the_structures_of_a_case():
    rows = [row("a", "p", dice_percent=90.), row("a", "p", "LA", dice_percent=70.), row("a", "p", "RA"),
            row("b", "q", "LA", dice_percent=40.), {"case": "c", "patient": "c", "domain": "CT", "structure": ""}]
    found = {(s["structure"], s["score"]): s for s in summarise(rows)}
    assert found["all", "dice_percent"]["mean"] == (80 + 40) / 2 and found["LV", "dice_percent"]["mean"] == 90
    assert found["RA", "dice_percent"]["patients"] == 0 and math.isnan(found["RA", "dice_percent"]["mean"])


def test_order_of_rows_changes_no_summary():
    rows = [row(str(k), str(k // 2), s, dice_percent=float(k)) for k in range(8) for s in ("LV", "LA")]
    shuffled = random.Random(0).sample(rows, len(rows))
    key = lambda part: (part["structure"], part["score"])
    means = [sorted(((key(p), p["mean"], p["median"]) for p in summarise(r)), key=str) for r in (rows, shuffled)]
    assert str(means[0]) == str(means[1])


def test_table_is_aligned_and_says_where_nothing_is_known():
    rows = [row("a", "p", dice_percent=100., hd95_mm=math.inf), row("a", "p", "left atrium", dice_percent=5.)]
    lines = summary_table(summarise(rows)).splitlines()
    assert lines[0].startswith("CT (cases: 1, patients: 1)") and lines[2].split() == [
        "LV", "100.0", "[-,", "-]", "100.0", "-", "[-,", "-]", "inf", "-", "-", "1"]
    columns = [lines[1].index(name) for name in (*scores.SCORES.values(), "missed")]
    assert all(line[at - 1] == " " != line[at] for line in lines[2:] for at in columns)
