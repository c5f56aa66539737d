"The scores against counts made by hand."
import numpy as np
import pytest
import torch

from cssgan.metrics import (
    above_floor,
    dice_of_segmentor,
    dice_scores,
    distortion,
    gap_reduction,
    s_score,
    surface_distances,
    translation_error,
)
from cssgan.phantoms.heart import draw_anatomy
from cssgan.phantoms.scanners import render
from cssgan.scans.volumes import IGNORE, Grid, normalise


def labels(shape=(8, 8, 8)): return torch.zeros(1, *shape, dtype=torch.long)


def box(region, low, high, shape=(8, 8, 8)):
    "A label map with one box."
    made = labels(shape)
    made[0, low[0]:high[0], low[1]:high[1], low[2]:high[2]] = region
    return made


class Reads(torch.nn.Module):
    "A segmentor that sees region y where the volume is y / 10."
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x): return -torch.cat([(x * 10 - y).abs() for y in range(6)], 1)


def sample(truth): return truth[0][None].float() / 10, truth[0], "name"


def test_dice_against_a_hand_count():
    truth, predicted = labels(), labels()
    truth[0, 0, 0, :4] = 1       # four voxels
    predicted[0, 0, 0, 2:7] = 1  # five, two of them right
    truth[0, 4, 4, :2] = predicted[0, 4, 4, :2] = 5
    dice = dice_scores(predicted, truth)[0]
    assert dice[0].item() == pytest.approx(100 * 2 * 2 / (4 + 5)) and dice[4].item() == 100


def test_a_region_that_the_truth_lacks_has_no_dice():
    dice = dice_scores(box(2, (0, 0, 0), (3, 3, 3)), box(1, (0, 0, 0), (3, 3, 3)))[0]
    assert dice[0].item() == 0 and np.isnan(dice[1].item()) and np.isnan(dice[2].item())


def test_dice_ignores_what_nobody_annotated():
    truth, predicted = box(1, (0, 0, 0), (4, 4, 4)), box(1, (0, 0, 0), (4, 4, 8))
    assert dice_scores(predicted, truth)[0, 0].item() == pytest.approx(100 * 2 / 3)
    truth[..., 4:] = IGNORE
    assert dice_scores(predicted, truth)[0, 0].item() == 100


NOT_A_VENTRICLE = -(2**0 + 2**3 + 2**4)  # ACDC's 0: background, LA or RA


def partly_drawn():
    torch.manual_seed(0)
    whole = torch.randint(0, 6, (1, 8, 8, 8))
    return whole, torch.where((whole == 0) | (whole == 3) | (whole == 4), NOT_A_VENTRICLE, whole)


def test_what_was_not_drawn_has_no_dice_and_spoils_none():
    whole, drawn = partly_drawn()
    for predicted in (whole, torch.where(whole == 0, 3, whole), torch.where(whole == 4, 0, whole)):
        scores = dice_scores(predicted, drawn)[0]
        assert scores[[2, 3]].isnan().all() and (scores[[0, 1, 4]] == 100).all()


def test_what_was_drawn_is_judged_also_where_nothing_was():
    whole, drawn = partly_drawn()
    for predicted in (torch.where(whole == 0, 1, whole), torch.where(whole == 1, 3, whole)):
        scores, expected = dice_scores(predicted, drawn)[0], dice_scores(predicted, whole)[0]
        assert torch.equal(scores[[0, 1, 4]], expected[[0, 1, 4]]) and scores[0] < 100 and scores[[2, 3]].isnan().all()


def test_volumes_of_one_batch_may_be_drawn_in_different_parts():
    whole, drawn = partly_drawn()
    scores = dice_scores(whole.repeat(2, 1, 1, 1), torch.cat([drawn, whole]))
    assert scores[0].isnan().tolist() == [False, False, True, True, False] and (scores[1] == 100).all()


@pytest.mark.parametrize("classes", [2, 3, 9, 62])
def test_dice_of_as_many_regions_as_a_task_may_have(classes):
    torch.manual_seed(0)
    truth = torch.randint(0, classes, (1, 12, 12, 12))
    last = torch.where(truth == classes - 1, truth, -(2 ** (classes - 1) - 1))  # only the last region is drawn
    assert (dice_scores(truth, truth, classes) == 100).all()
    scores = dice_scores(truth, last, classes)[0]
    assert scores[-1] == 100 and scores[:-1].isnan().all()


def test_to_what_was_not_drawn_there_is_no_distance():
    whole, drawn = partly_drawn()
    spoiled = torch.where(whole == 1, 3, whole)  # an atrium in the place of the LV
    for mm in surface_distances(spoiled, drawn, (1.0, 1.0, 1.0)).values(): assert mm[0, [2, 3]].isnan().all()


def test_every_case_has_its_own_dice():
    truth, wrong = box(1, (0, 0, 0), (4, 4, 4)), box(1, (4, 4, 4), (8, 8, 8))
    assert dice_scores(torch.cat([truth, wrong]), torch.cat([truth, truth]))[:, 0].tolist() == [100, 0]


@pytest.mark.parametrize("axis", range(3))
def test_surface_distances_are_in_millimetres(axis):
    spacing, shape, shift = (1.5, 2.0, 4.0), (16, 16, 16), [0, 0, 0]
    shift[axis] = 3
    truth = box(1, (4, 4, 4), (8, 8, 8), shape)
    moved = box(1, [4 + s for s in shift], [8 + s for s in shift], shape)
    found = surface_distances(moved, truth, spacing)
    assert found["HD95"][0, 0].item() == pytest.approx(3 * spacing[axis])
    assert 0 < found["ASSD"][0, 0].item() < 3 * spacing[axis]
    same = surface_distances(truth, truth, spacing)
    assert same["HD95"][0, 0].item() == same["ASSD"][0, 0].item() == 0


def test_dice_of_a_segmentor_is_the_mean_over_cases():
    truth = box(1, (0, 0, 0), (4, 4, 4))
    blind = (torch.zeros(1, 8, 8, 8), truth[0], "blind")
    assert dice_of_segmentor(Reads(), [sample(truth), blind])[0].item() == pytest.approx(50)


def test_s_score_falls_when_the_anatomy_moves():
    samples = [sample(box(1, (1, 1, 1), (5, 5, 5))), sample(box(1, (2, 2, 2), (6, 6, 6)))]
    by = [s_score(lambda x: torch.roll(x, k, dims=2), Reads(), samples)[0].item() for k in range(3)]
    assert by[0] == 100 and by == pytest.approx([100, 75, 50])


def test_s_score_uses_labels_of_the_source_and_gives_no_gradient():
    seen = []
    def generator(x):
        seen.append(torch.is_grad_enabled())
        return x
    s_score(generator, Reads(), [sample(box(1, (1, 1, 1), (5, 5, 5)))])
    assert seen == [False]


def test_translation_error_is_the_mean_absolute_difference():
    assert translation_error(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5])) == pytest.approx(0.5)


def test_distortion_tells_a_shift_from_none():
    axes = torch.meshgrid(*[torch.arange(24.0)] * 3, indexing="ij")
    ball = lambda c: torch.exp(-sum((a - m) ** 2 for a, m in zip(axes, c)) / 40)[None, None]
    still, moved, where = ball((12, 12, 12)), ball((14, 12, 12)), ball((12, 12, 12))[:, 0] > 0.3
    none, shift = (distortion(v, still, where, (2.0, 2.0, 2.0)) for v in (still, moved))
    assert none < 0.3 and 2.5 < shift < 5.5


@pytest.mark.parametrize("modality", ["CT", "MRI"])
def test_the_ruler_rises_with_the_displacement_of_a_patient_who_is_drawn_and_scanned_again(modality):
    grid = Grid((40, 40, 32), (4.2, 4.2, 4.0))
    scan = lambda mm, seed: torch.from_numpy(
        normalise(render(draw_anatomy(5, grid, (0, 0, mm)), modality, seed)).voxels)[None, None]
    true, heart = scan(0, 5), torch.from_numpy(draw_anatomy(5, grid).label > 0)[None]
    fakes = {mm: torch.stack([scan(mm, seed) for seed in (1, 2, 3, 4)]).mean(0) for mm in (0, 1, 2)}
    found = {mm: distortion(fake, true, heart, grid.spacing) for mm, fake in fakes.items()}
    assert found[0] < .35 < found[1] < found[2]
    for mm in (1, 2): assert above_floor(found[mm], found[0]) == pytest.approx(mm, abs=.35)


def test_gap_reduction_of_the_paper():
    assert gap_reduction(ours=74.4, other=74.4, real=80) == 0 and gap_reduction(ours=80, other=70, real=80) == 100
    assert gap_reduction(ours=76, other=70, real=80) == pytest.approx(60)
