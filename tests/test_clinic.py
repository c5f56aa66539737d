"""Phantoms of a clinic: the same whenever they are drawn, with true labels, under protocols that look right."""
from dataclasses import replace

import numpy as np
import pytest

from cssgan.guard import InputError
from cssgan.phantoms.anatomy import HEART_CENTRE, random_stream
from cssgan.phantoms.chest import chest_distance
from cssgan.phantoms.clinic import clinical_phantom, make_plan, stack_plan
from cssgan.phantoms.heart import draw_anatomy
from cssgan.phantoms.patients import paint_patient
from cssgan.phantoms.protocols import MRIProtocol, draw_ct_protocol, draw_mri_protocol, scan_ct, scan_mri
from cssgan.phantoms.real_hearts import fill_valves, left_ventricle, place_shape
from cssgan.phantoms.scenes import MATERIALS, scene
from cssgan.phantoms.surroundings import choose_patient, paint_drawn_heart
from cssgan.scans.files import read_label
from cssgan.scans.volumes import Grid, Volume, to_grid
from cssgan.task import HEART

SMALL = Grid((44, 44, 36), (4., 4., 4.))
FINE = Grid((88, 88, 76), (2., 2., 2.))


def seed_of(modality, says, grid=SMALL):
    "A phantom whose protocol says something."
    return next(v for s in range(60) if says in (v := clinical_phantom(s, modality, grid)).history[1])


@pytest.fixture(scope="module")
def stack(): return seed_of("MRI", "short-axis stack, bSSFP")


def as_shape(anatomy): return Volume(np.zeros(anatomy.tissues.shape, np.float32), anatomy.affine, "CT", anatomy.label)


# ---- one seed, one phantom

@pytest.mark.parametrize("modality", ("CT", "MRI"))
def test_a_seed_gives_the_same_phantom_whatever_was_drawn_before(modality):
    first, other = (clinical_phantom(seed, modality, SMALL) for seed in (5, 6))
    again = clinical_phantom(5, modality, SMALL)
    assert (first.voxels == again.voxels).all() and (first.label == again.label).all()
    assert (first.affine == again.affine).all() and first.history == again.history
    assert other.shape != first.shape or (other.voxels != first.voxels).any()


def test_patient_and_protocol_do_not_depend_on_the_grid():
    coarse = Grid((24, 24, 20), (8., 8., 8.))
    for seed in range(4):
        a, b = clinical_phantom(seed, "CT", SMALL), clinical_phantom(seed, "CT", coarse)
        assert a.history == b.history


def test_domains_share_no_patient():
    said = [[clinical_phantom(s, m, SMALL).label for s in range(3)] for m in ("CT", "MRI")]
    assert not any(a.shape == b.shape and (a == b).all() for a in said[0] for b in said[1])


@pytest.mark.parametrize(("modality", "other"), (("CT", "MRI"), ("MRI", "CT")))
def test_a_twin_is_the_same_patient_on_the_same_voxels_in_the_other_modality(modality, other):
    for seed in range(4):
        scan, twin = (clinical_phantom(seed, modality, SMALL, twin=twin) for twin in (False, True))
        assert (scan.label == twin.label).all() and (scan.affine == twin.affine).all()
        assert twin.modality == other and twin.voxels.shape == scan.voxels.shape
        assert twin.history[0] == scan.history[0] and twin.history[1].startswith(other)
        assert not any(word in twin.history[1] for word in ("field of view", "ghosts", "wrap"))


def test_voxels_are_whole_float32_and_labels_regions():
    for modality in ("CT", "MRI"):
        v = clinical_phantom(1, modality, SMALL)
        assert v.voxels.dtype == np.float32 and (v.voxels == np.rint(v.voxels)).all() and np.isfinite(v.voxels).all()
        assert v.label.dtype == np.uint8 and v.label.shape == v.shape
        assert set(np.unique(v.label)) <= set(range(len(HEART.regions))) and (v.label == 1).any()


# ---- labels are true

def millilitres(volume, region): return (volume.label == region).sum() * volume.voxel_ml


def centre(volume, region):
    return volume.affine[:3, :3] @ np.argwhere(volume.label == region).mean(0) + volume.affine[:3, 3]


def test_a_stack_brought_upright_shows_the_anatomy():
    "With slices of 8 to 10 mm a centre may be off by a quarter, a volume by half a slice at each end of 80 mm."
    p = choose_patient(random_stream(3))
    upright = scene(FINE, np.eye(3), HEART_CENTRE, random_stream(0))
    paint_drawn_heart(upright, p, random_stream(1))
    truth = Volume(np.zeros(FINE.shape, np.float32), FINE.affine(HEART_CENTRE), "MRI", upright.label)
    plan = stack_plan(left_ventricle(p), random_stream(4))
    higher = Grid((*plan.grid.shape[:2], plan.grid.shape[2] + 6 * plan.block), plan.grid.spacing)  # nothing is cut off
    plan = replace(plan, grid=higher, shifts=(0., 0., 0.))
    space = scene(plan.grid, plan.frame, plan.centre, random_stream(0))
    paint_drawn_heart(space, p, random_stream(2))
    label = space.label[:, :, plan.block // 2::plan.block]
    thick = Volume(np.zeros(label.shape, np.float32), plan.affine(plan.frame), "MRI", np.ascontiguousarray(label))
    seen = to_grid(thick, FINE, HEART_CENTRE)
    assert thick.spacing[2] >= 8
    assert np.linalg.norm(centre(seen, 1) - centre(truth, 1)) < 2.5
    assert abs(millilitres(seen, 1) / millilitres(truth, 1) - 1) < .12
    assert abs(millilitres(seen, 5) / millilitres(truth, 5) - 1) < .15


def test_to_grid_keeps_a_stack_s_volume_also_where_its_orientation_was_lost():
    lost = seed_of("MRI", "true orientation lost")
    upright = to_grid(lost, Grid((80, 80, 80), (3., 3., 3.)))
    assert abs(millilitres(upright, 5) / millilitres(lost, 5) - 1) < .05
    assert np.allclose(np.linalg.norm(lost.affine[:3, :3], axis=0), lost.spacing, atol=1e-3)
    directions = lost.affine[:3, :3] / lost.spacing
    assert np.allclose(directions.T @ directions, np.eye(3), atol=2e-3)


def test_axes_of_a_stack_whose_orientation_was_lost_stand_upright_on_each_other():
    lost = seed_of("MRI", "true orientation lost")
    columns = lost.affine[:3, :3] / lost.spacing
    assert np.allclose(columns.T @ columns, np.eye(3), atol=1e-12)


def test_the_right_ventricle_lies_left_in_the_picture_of_a_stack(stack):
    lv, rv = (np.argwhere(stack.label == y).mean(0) for y in (1, 2))
    assert rv[0] < lv[0] - 5


def test_findings_leave_the_label_alone():
    p, label = choose_patient(random_stream(2)), {}
    for job in (0, 1):
        s = scene(SMALL, np.eye(3), HEART_CENTRE, random_stream(0))
        if job: paint_drawn_heart(s, p, random_stream(9))
        else: paint_patient(s, p, random_stream(9))
        label[job] = s.label
    assert (label[0] == label[1]).mean() > .999  # trabeculae are no region of their own, veins may end elsewhere


def test_blood_is_brighter_than_muscle_where_it_should_be(stack):
    middle = lambda region: np.median(stack.voxels[stack.label == region])
    assert middle(1) > 1.4 * middle(5)


def test_a_drawn_heart_lies_within_the_ribs():
    for seed in range(6):
        p = choose_patient(random_stream(seed, 3), "dilated")
        s = scene(Grid((36, 36, 30), (5., 5., 5.)), np.eye(3), HEART_CENTRE, random_stream(0))
        paint_drawn_heart(s, p, random_stream(1))
        d = chest_distance(s.points - np.array([p.midline, 0, 0]).reshape(3, 1, 1, 1), p.chest)
        assert (d[s.label > 0] > 2).mean() < .02


# ---- real shapes

def test_a_shape_s_chambers_come_through():
    anatomy = draw_anatomy(4, SMALL)
    v = clinical_phantom(0, "CT", SMALL, as_shape(anatomy))
    assert "a real heart" in v.history[0]
    shares = lambda label: np.bincount(label.ravel(), minlength=6)[1:6] / (label > 0).sum()
    assert np.allclose(shares(v.label) / shares(anatomy.label), 1, atol=.3)


def test_a_shape_is_scanned_in_stacks_too():
    shape = as_shape(draw_anatomy(4, SMALL))
    stacks = [v for s in range(3) if "short-axis" in (v := clinical_phantom(s, "MRI", SMALL, shape)).history[1]]
    assert stacks and all((v.label == 1).any() and v.spacing[2] >= 8 for v in stacks)


def test_valves_are_closed_and_the_wall_between_the_atria_stays():
    label = np.zeros((9, 20, 9), np.uint8)
    label[:, :5], label[:, 8:12], label[:, 14:] = 1, 3, 4
    closed = fill_valves(label, (1, 1, 1))
    assert (closed[:, 5:8] > 0).all() and set(np.unique(closed[:, 5:8])) == {1, 3}
    assert (closed[:, 12:14] == 0).all()
    assert (closed[label > 0] == label[label > 0]).all()


def test_a_shape_without_a_label_is_refused():
    nothing = Volume(np.zeros((8, 8, 8), np.float32), np.eye(4), "CT")
    with pytest.raises(InputError, match="shape: needs a label"): clinical_phantom(0, "CT", SMALL, nothing)
    with pytest.raises(InputError, match="shape: needs a label"):
        clinical_phantom(0, "CT", SMALL, replace(nothing, label=np.zeros((8, 8, 8), np.uint8)))


@pytest.mark.data
def test_a_real_heart_in_a_drawn_chest(real):
    path = sorted((real / "hearts").glob("heart_*.nii.gz"))
    if not path: pytest.skip("no hearts in ../shared/data/hearts")
    values, affine = read_label(path[0])
    label = np.zeros(values.shape, np.uint8)
    for value, region in HEART.table("CT", "MM-WHS").values.items(): label[values == value] = region
    heart = Volume(np.zeros(label.shape, np.float32), affine, "CT", label)
    shape = place_shape(heart, choose_patient(random_stream(0)), random_stream(1))
    touching = (shape.label[1:] == 1) & (shape.label[:-1] == 3) | (shape.label[1:] == 3) & (shape.label[:-1] == 1)
    assert touching.any()
    v = clinical_phantom(1, "CT", SMALL, heart)
    for y in range(1, 6): assert .6 < millilitres(v, y) / millilitres(heart, y) < 1.7


# ---- protocols

@pytest.fixture(scope="module")
def patient():
    return paint_patient(scene(SMALL, np.eye(3), HEART_CENTRE, random_stream(0), 3.), choose_patient(random_stream(0)),
                         random_stream(1))


def hu(drawn, **how):
    protocol = replace(draw_ct_protocol(random_stream(0)), noise=5., field=np.inf, sharp=0., slices=1., blur=.3, **how)
    image = scan_ct(drawn, protocol, random_stream(2))
    return {y: float(np.median(image[drawn.space.label == y])) for y in range(1, 6)}


def test_plain_ct_has_blood_like_muscle(patient):
    plain = hu(patient, timing="plain")
    assert abs(plain[1] - plain[5]) < 25 and abs(plain[2] - plain[5]) < 25 and 20 < plain[1] < 70


def test_timing_decides_which_side_is_bright(patient):
    left, right = hu(patient, timing="arterial"), hu(patient, timing="right heart")
    assert left[1] > left[5] + 100 and left[1] > left[2] + 10
    assert right[2] > right[1] and right[4] > right[5] + 100
    late = hu(patient, timing="venous")
    assert abs(late[1] - late[2]) < 40 and late[1] < 250


def test_outside_of_a_small_field_of_view_is_the_lowest_value(patient):
    "The circle's middle is up to 17 mm off the grid's."
    image = scan_ct(patient, replace(draw_ct_protocol(random_stream(0)), field=120.), random_stream(2))
    x, y = patient.space.axes[:2]
    r = np.hypot(x[:, None], y)
    assert (image[r > 60 + 18] == -1024).all() and (image[r < 60 - 18] > -1024).mean() > .95


def test_six_in_ten_mri_are_short_axis_stacks():
    p = choose_patient(random_stream(0))
    stacks = [make_plan("MRI", SMALL, p, None, random_stream(s)).stack for s in range(400)]
    assert .52 < np.mean(stacks) < .68


def test_black_blood_is_dark_and_scar_is_bright_in_late_enhancement(patient):
    base = draw_mri_protocol(False, random_stream(0))
    quiet = replace(base, noise=.01, ghosts=False, wrap=False, opposed=False)
    dark = scan_mri(patient, replace(quiet, sequence="black blood"), random_stream(3))
    label = patient.space.label
    assert np.median(dark[label == 1]) < np.median(dark[label == 5])
    scarred = replace(patient.space, tissues=patient.space.tissues.copy())
    muscle = scarred.where("myocardium") & (scarred.points[2] > HEART_CENTRE[2])
    scarred.tissues[muscle] = MATERIALS.index("scar")
    late = scan_mri(replace(patient, space=scarred), replace(quiet, sequence="LGE"), random_stream(3))
    assert np.median(late[muscle]) > np.median(late[scarred.where("myocardium")])


def test_a_slice_is_a_mean_of_what_lies_in_it(patient):
    how = MRIProtocol("bSSFP", False, .001, 1., .3, 0, False, False)
    thick = scan_mri(patient, how, random_stream(3), 4, 4)
    assert thick.shape == (*SMALL.shape[:2], SMALL.shape[2] // 4)


# ---- who comes

def test_a_population_is_what_it_says():
    assert {choose_patient(random_stream(s), "dilated").disease for s in range(8)} == {"dilated"}
    assert clinical_phantom(0, "CT", SMALL, population="normal").history[0].startswith("patient 0: normal")
    with pytest.raises(InputError, match="no population is called 'tall'"):
        clinical_phantom(0, "CT", SMALL, population="tall")


def test_bad_arguments_are_refused():
    with pytest.raises(InputError, match="rendered as CT or MRI"): clinical_phantom(0, "PET", SMALL)
    with pytest.raises(InputError, match="whole number"): clinical_phantom(-1, "CT", SMALL)
