"What cssgan.pictures promises: pictures that do not lie about sides, proportions and colours."
import subprocess
import sys
from dataclasses import replace
from io import BytesIO

import nibabel as nib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from cssgan.pictures import (
    CUTS,
    grey_range,
    label_colours,
    label_names,
    plot_curves,
    show_translation,
    show_volume,
    show_volumes,
)
from cssgan.scans.volumes import IGNORE, UNDRAWN, Volume, normalise
from cssgan.task import REGIONS, as_task

WORLD = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
AFFINES = {"RAS": np.diag([2, 3, 4, 1.0]), "LPS": np.diag([-2, -3, 4, 1.0]),
           "LIA": np.array([[-2, 0, 0, 9], [0, 0, 4, 5], [0, -3, 0, 1], [0, 0, 0, 1.0]]),
           "oblique": nib.affines.from_matvec(
               np.array([[0.97, -0.2, 0.1], [0.2, 0.97, -0.1], [-0.08, 0.12, 0.98]]) @ np.diag([-2, 3, 4]))}


def volume(affine=AFFINES["LPS"], shape=(20, 16, 12), modality="CT"):
    voxels = np.random.default_rng(0).normal(0, 200, shape).astype(np.float32)
    label = np.zeros(shape, np.uint8)
    for region in range(1, 6): label[3 * region - 1:3 * region + 2, 4:10, 3:8] = region
    return Volume(voxels, affine, modality, label)


def pixels(figure):
    return imread(BytesIO(figure._repr_png_()))[..., :3]


def image_axes(figure): return [ax for ax in figure.axes if ax.images]


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_each_letter_stands_where_that_side_of_the_patient_is(affine):
    dark = volume(affine)
    points = nib.affines.apply_affine(affine, np.moveaxis(np.indices(dark.shape), 0, -1))
    for side, direction in WORLD.items():
        brighter = (points - points.mean((0, 1, 2))) @ np.array(direction, float) * 50  # towards that side
        lit = replace(dark, voxels=brighter, label=None)
        for ax, (cut, (_, letters)) in zip(image_axes(show_volume(lit)), CUTS.items()):
            if side not in letters: continue
            text = next(t for t in ax.texts if t.get_text() == side)
            picture = ax.images[0].get_array()
            brightest = {"left": picture[:, 0], "right": picture[:, -1], "top": picture[0], "bottom": picture[-1]}
            x, y = text.xy
            place = "left" if x == 0 else "right" if x == 1 else "top" if y == 1 else "bottom"
            assert max(brightest, key=lambda k: brightest[k].mean()) == place, (side, cut)
            assert ax.images[0].origin == "upper"


def test_radiological_convention():
    assert {cut: letters for cut, (_, letters) in CUTS.items()} == {"sagittal": "APSI", "coronal": "RLSI",
                                                                    "axial": "RLAP"}


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_proportions_are_the_patients(affine):
    figure = show_volume(volume(affine))
    pixels(figure)
    for ax in image_axes(figure):
        left, right, bottom, top = ax.images[0].get_extent()
        box = ax.get_window_extent()
        assert box.width / box.height == pytest.approx((right - left) / (bottom - top), rel=0.02)
        rows, columns = ax.images[0].get_array().shape
        assert {round((right - left) / columns), round((bottom - top) / rows)} < {2, 3, 4}


def test_pictures_are_not_blank_and_fit_their_canvas():
    v = volume()
    two = show_volumes([v, replace(v, modality="MRI")], ["one", "two"], title="two")
    for figure in (show_volume(v), two, show_translation(v, v, v, v.label), plot_curves({"a": [1, 2, None]})):
        assert isinstance(figure, Figure)
        image = pixels(figure)
        assert image.std() > 0.05 and (image[[0, -1]] == 1).all() and (image[:, [0, -1]] == 1).all()


def test_pictures_are_the_same_each_time():
    one, other, untitled = (show_volume(volume(), **how)._repr_png_() for how in ({}, {}, {"title": None}))
    assert one == other == untitled


def test_a_volume_shows_itself():
    assert volume()._repr_png_()[:4] == b"\x89PNG"


def test_colours_are_one_fixed_table():
    assert label_colours() == {1: "#ff5a36", 2: "#56b4e9", 3: "#f0e442", 4: "#d78bff", 5: "#00c48c", IGNORE: "#9a9a9a"}
    assert [label_names()[i] for i in range(6)] == list(REGIONS)


def test_only_regions_that_are_there_are_in_the_legend():
    v = volume()
    two = replace(v, label=np.where(np.isin(v.label, (1, 5)), v.label, 0).astype(np.uint8))
    assert [t.get_text() for t in show_volume(two).legends[0].get_texts()] == ["LV", "myocardium"]
    assert not show_volume(replace(v, label=None)).legends


def test_labels_are_contours_over_an_image_and_never_interpolated():
    v = volume()
    axial = image_axes(show_volume(v))[2]
    assert len(axial.images) == 1 and len(axial.collections) == 5
    segmented = image_axes(show_translation(v, v, v, v.label))
    assert {image.get_interpolation() for ax in segmented for image in ax.images} == {"nearest"}


def test_cuts_go_through_the_heart_or_the_named_point():
    v = volume()
    label = np.zeros(v.shape, np.uint8)
    label[15, 3, 9] = 1
    seen = image_axes(show_volume(replace(v, label=label)))[2].images[0].get_array()
    assert np.array_equal(seen, v.voxels[:, :, 9].T)  # an LPS array is already laid out as radiologists look at it
    point = nib.affines.apply_affine(v.affine, (1, 1, 2))
    assert np.array_equal(image_axes(show_volume(v, centre=point))[2].images[0].get_array(), v.voxels[:, :, 2].T)
    show_volume(v, centre=(1e4, 0, 0))  # beside the volume: the nearest cut


def test_a_scaled_ct_looks_as_it_did_in_hu():
    v = volume()
    assert grey_range(v) == (-300, 600)
    assert np.allclose(pixels(show_volume(v)), pixels(show_volume(normalise(v))), atol=0.02)


def test_translation_has_the_columns_it_was_given():
    v, label = volume(), volume().label
    def titles(figure): return [ax.get_title() for ax in figure.axes[:len(figure.axes) // 3]]
    whole = show_translation(v, replace(v, modality="MRI"), v, label)
    assert titles(whole) == ["real CT", "synthetic MRI", "reconstructed CT", "synthetic, segmented"]
    assert titles(show_translation(replace(v, label=None), replace(v, modality="MRI"))) == ["real CT", "synthetic MRI"]
    assert len(show_translation(replace(v, label=None), v, segmentation=label, truth=label.astype(int)).axes) == 9


def test_curves_leave_out_what_is_missing():
    line = plot_curves({"a": [1, None, float("nan"), 4]}).axes[0].lines[0]
    assert line.get_xdata().tolist() == [1, 2, 3, 4]
    assert np.isnan(line.get_ydata()).tolist() == [False, True, True, False]


def colours(figure): return {line.get_label(): line.get_color() for ax in figure.axes for line in ax.lines}


def test_a_loss_has_one_colour_wherever_it_is_drawn():
    names = ("gan", "cyc", "shape", "S_A", "S_B", "D_A", "D_B")
    everything = colours(plot_curves({name: [1, 2] for name in names}))
    assert len(set(everything.values())) == len(names)
    for name in names: assert colours(plot_curves({name: [1, 2]})) == {name: everything[name]}
    assert colours(plot_curves({"shape, not asked for": [1, 2], "gan": [2, 1]})) == {
        "shape, not asked for": everything["shape"], "gan": everything["gan"]}
    aliases = ("dice_CT", "Dice on CT", "few CT: Dice on CT", "Dice CT")
    assert len({colours(plot_curves({name: [1, 2]}))[name] for name in aliases}) == 1


def test_losses_of_one_kind_share_a_panel():
    axes = plot_curves({name: [1, 2] for name in ("S_A", "S_B", "gan", "cyc", "D_A", "dice_CT")}).axes
    panels = [[line.get_label() for line in ax.lines] for ax in axes]
    assert panels == [["gan", "cyc"], ["S_A", "S_B"], ["D_A"], ["dice_CT"]]
    assert all(ax.get_ylabel() and ax.get_xlabel() == "epoch" for ax in axes)
    methods = plot_curves({"baseline": [60, 70], "ADA": [62, 72]}, xlabel="update", ylabel="Dice, %").axes
    assert len(methods) == 1 and methods[0].get_xlabel() == "update" and methods[0].get_ylabel().startswith("Dice, %")


def test_an_axis_begins_at_zero_or_says_that_it_does_not():
    ax = plot_curves({"gan": [1, 0.2]}).axes[0]
    assert ax.get_ylim()[0] == 0 and "begin" not in ax.get_ylabel()
    ax = plot_curves({"a method": [80, 82]}, ylabel="Dice, %").axes[0]
    assert ax.get_ylim()[0] > 0 and "axis does not begin at 0" in ax.get_ylabel()
    assert plot_curves({"change": [-1, 1]}).axes[0].get_ylim()[0] < 0


def test_a_notebook_gets_twice_the_pixels_and_is_told_the_width():
    figure = plot_curves({"gan": [1, 2]})
    data, meta = figure._repr_mimebundle_()
    wide = imread(BytesIO(data["image/png"])).shape[1]
    assert wide == 2 * meta["image/png"]["width"] == 2 * pixels(figure).shape[1] and meta["image/png"]["width"] >= 640


def test_pictures_need_neither_a_display_nor_pyplot():
    code = ("import sys; sys.path.insert(0, 'tests'); from test_view import *; show_volume(volume())._repr_png_(); "
            "assert 'matplotlib.pyplot' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True, env={"PATH": "", "MPLBACKEND": "TkAgg"},
                   cwd=__file__.rsplit("/", 2)[0])


@pytest.mark.parametrize("name", ["$a_$.nii", "$", "$$", r"\$a$b$", "a $x$ and \\frac{", "\x1b[2J\x00",
                                  "caf\udce9 $\\x$"])
def test_names_of_files_are_no_formulas(name):
    v = volume()
    for figure in (show_volume(v, title=name), show_volumes([v, v], [name, name], title=name),
                   show_translation(v, replace(v, modality="MRI"), title=name),
                   plot_curves({name: [1, 2]}, title=name)):
        assert figure._repr_png_()
    assert replace(v, history=(name,))._repr_png_()


# other tasks

def other(domains, regions=("background", "liver"), **more):
    return as_task({"name": "other", "domains": domains, "regions": list(regions),
                    "grid": {"shape": [16, 16, 16], "spacing": [4, 4, 4]}} | more)


T1, T1_CONTRAST = ({"name": name, "percentiles": [1, 99]} for name in ("T1", "T1 contrast"))
KNOTS = {"name": "CT", "knots": [[-1000, -1], [-150, -0.6], [450, 0.6], [1000, 1]], "views": {"soft": [-150, 450]}}


def test_a_window_with_corners_shows_a_scaled_volume_as_it_was():
    scan = replace(volume(), task=other([KNOTS, T1]), label=None)
    assert grey_range(scan) == (-150, 450) and np.allclose(grey_range(normalise(scan)), (-0.6, 0.6))


def test_views_where_percentiles_decide():
    task = other([T1 | {"views": {"bright": [0, 400]}}, T1_CONTRAST])
    scan = replace(volume(modality="MRI"), modality="T1", task=task, label=None)
    assert grey_range(scan) == (0, 400)
    assert grey_range(replace(scan, scaled=True)) == (-1, 1)  # of what was scaled, nobody knows how
    assert grey_range(replace(scan, scaled=True, range=(0, 800))) == (-1, 0)


def test_a_domain_whose_name_begins_like_the_other_has_its_own_colour():
    for domains in ((T1, T1_CONTRAST), (T1_CONTRAST, T1)):
        curves = {f"few: {kind} {name}": [1, 2] for kind in ("Dice on", "Dice") for name in ("T1", "T1 contrast")}
        seen = colours(plot_curves(curves, task=other(list(domains))))
        assert seen["few: Dice on T1"] == seen["few: Dice T1"] != seen["few: Dice on T1 contrast"]
        assert seen["few: Dice T1 contrast"] == seen["few: Dice on T1 contrast"]


@pytest.mark.parametrize("n", [1, 20, 61])
def test_a_legend_fits_the_picture_however_many_regions_and_long_names_there_are(n):
    names = [f"region number {k} with a long name"[:40] for k in range(n)]
    task = other([T1, T1_CONTRAST], ("background", *names))
    label = np.resize(np.arange(n + 1), (20, 16, 12)).astype(np.uint8)
    figure = show_volumes([replace(volume(modality="MRI"), modality="T1", task=task, label=label)])
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and len(figure.legends[0].get_texts()) == n


def test_what_was_not_drawn_is_no_region_of_a_picture():
    label = np.where(volume().label == 2, UNDRAWN, volume().label)
    shown = [text.get_text() for text in show_volume(volume(), label).legends[0].get_texts()]
    assert shown == ["LV", "LA", "RA", "myocardium"]
    assert show_volume(volume(), np.full_like(label, UNDRAWN)).legends == []
