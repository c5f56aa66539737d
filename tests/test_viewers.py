"What the viewers do with odd arrays, wrong names, broken voxels, windows, differences; a monitor used twice."
import sys
import types
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from scans import AFFINES, refused, turned
from tiny import SHORT, Random, noise

from cssgan.data.cases import phantom_cases
from cssgan.data.datasets import UnpairedData, unpaired
from cssgan.metrics import dice_scores
from cssgan.phantoms.scanners import phantom
from cssgan.phantoms.shapes import shapes
from cssgan.pictures import CUTS, grey_range
from cssgan.scans.files import write_volume
from cssgan.scans.inputs import guess_modality
from cssgan.scans.volumes import IGNORE, UNDRAWN, Grid, Volume, normalise
from cssgan.task import HEART, REGIONS, as_task
from cssgan.training.schedule import Phase, preset
from cssgan.training.trainer import Stopped, fit
from cssgan.viewers import depth, monitor
from cssgan.viewers.canvas import (
    LiveView,
    PixelPicture,
    colour_table,
    describe_voxel,
    in_lines,
    legend_html,
    paint_cut,
    with_legend,
)
from cssgan.viewers.comparison import VIEWS, compare, dice_by_region, dice_table
from cssgan.viewers.depth import niivue_colours, render_view, resample_along, view3d
from cssgan.viewers.explorer import explore, window_controls
from cssgan.viewers.inputs import as_volume, windows
from cssgan.viewers.monitor import Monitor, plot_run, score_titles, translation_frame

SMALL = Grid((24, 24, 16), (7.0, 7.0, 8.0))
CT, MRI = (phantom(3, modality, SMALL) for modality in ("CT", "MRI"))
BARE = replace(CT, label=None)
TWICE = replace(SHORT, phases=(Phase("joint", 2),))


def with_voxel(volume, value):
    "The volume with one odd voxel."
    voxels = volume.voxels.copy()
    voxels[0, 0, 0] = value
    return replace(volume, voxels=voxels)


def lps(volume):
    "The volume as a file that counts to the left and to the back, as its array and image."
    array = volume.voxels[::-1, ::-1].copy()
    back = np.array([[-1, 0, 0, volume.shape[0] - 1], [0, -1, 0, volume.shape[1] - 1], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    return array, nib.Nifti1Image(array, volume.affine @ back)


# ---- arrays without a place

@pytest.mark.parametrize("kind", [np.asarray, lambda a: torch.tensor(a)[None, None],
                                  lambda a: torch.tensor(a, requires_grad=True)])
def test_an_array_lies_on_the_real_scans_grid_in_the_files_own_axes(kind):
    _, image = lps(CT)
    fake, rec = lps(MRI)[0], lps(CT)[0] + 10
    seen = compare(image, kind(fake), kind(rec), true=kind(fake)).volumes
    assert np.array_equal(seen["synthetic"].voxels, MRI.voxels) and np.array_equal(seen["true"].voxels, MRI.voxels)
    assert np.allclose(seen["reconstructed"].voxels, CT.voxels + 10)
    assert [v.modality for v in seen.values()] == ["CT", "MRI", "CT", "MRI"]


def test_an_array_of_another_shape_does_not_say_where_it_lies():
    said = refused(compare, CT, np.random.rand(20, 20, 10))
    assert "20×20×10" in said and "24×24×16" in said and "Volume" in said
    refused(compare, CT, MRI, torch.rand(1, 1, 5, 6, 7), says="5×6×7")


def test_what_a_network_gives_is_scaled_and_has_the_modality_of_its_place():
    fake, rec = (torch.tensor(normalise(v).voxels)[None, None] for v in (MRI, CT))
    seen = compare(CT, fake, rec).volumes
    assert seen["synthetic"].scaled and seen["synthetic"].modality == "MRI"
    assert seen["reconstructed"].scaled and seen["reconstructed"].modality == "CT"
    other = compare(MRI, rec, fake).volumes
    assert (other["synthetic"].modality, other["reconstructed"].modality) == ("CT", "MRI")


# ---- voxels that hold no picture

@pytest.mark.parametrize("make", [lambda v: v, lambda v: v.voxels, lambda v: nib.Nifti1Image(v.voxels, v.affine),
                                  lambda v: torch.tensor(v.voxels)])
@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_a_voxel_that_is_no_number_is_refused(make, odd):
    thing = make(with_voxel(MRI, odd))
    for look in (explore, view3d): refused(look, thing, says="np.nan_to_num")
    assert refused(compare, CT, MRI, thing).startswith("rec: ")


def test_no_voxels_and_no_picture_are_refused():
    refused(explore, np.zeros((0, 5, 5)), says="(0, 5, 5)")
    for thing in (np.full((5, 5, 5), 7.0), replace(MRI, voxels=np.zeros_like(MRI.voxels)),
                  nib.Nifti1Image(np.zeros((5, 5, 5), np.float32), np.eye(4))):
        refused(explore, thing, says="holds no picture")


def test_padding_with_nan_does_not_make_a_CT_an_MRI():
    assert guess_modality(with_voxel(CT, np.nan).voxels) == "CT"


def test_a_fake_that_collapsed_is_shown():
    for fake in (replace(MRI, voxels=np.zeros_like(MRI.voxels)), np.zeros(CT.shape),
                 torch.full((1, 1, *CT.shape), -1.0)):
        comparison = compare(CT, fake, true=MRI)
        comparison.build()
        for view in VIEWS: comparison.change(view=view)


# ---- windows

@pytest.mark.parametrize("volume", [
    CT, MRI, normalise(CT), with_voxel(MRI, 32767), with_voxel(MRI, 1e7), with_voxel(CT, 1e6),
    replace(CT, voxels=CT.voxels.clip(-250, 400)),
    replace(with_voxel(CT, 32767), voxels=with_voxel(CT, 32767).voxels.astype(np.int16)),
    replace(MRI, voxels=MRI.voxels * 1e-6),
], ids=["CT", "MRI", "scaled CT", "MRI 32767", "MRI 1e7", "CT 1e6", "soft tissue", "int16", "small numbers"])
def test_the_window_that_is_chosen_is_applied(volume):
    "Whatever outliers there are, and whatever was chosen before."
    presets, changes = windows(volume), []
    preset, level, width = window_controls(volume, grey_range(volume), changes.append)
    for name in [*presets, *reversed(presets)]:
        preset.value = "own"
        changes.clear()
        preset.value = name
        low, high = presets[name]
        assert preset.value == name and changes == [(low, high)], name
        assert np.allclose((level.value, width.value), ((low + high) / 2, high - low))


def test_sliders_leave_and_find_the_named_windows():
    changes = []
    preset, level, width = window_controls(CT, HEART.domain("CT").views["soft tissue"], changes.append)
    level.value = 200.0
    assert preset.value == "own" and changes[-1] == (-250.0, 650.0)
    level.value, width.value = -600.0, 1500.0
    assert preset.value == "lung" and changes[-1] == (-1350.0, 150.0)


def test_a_window_is_a_name_or_a_pair():
    for pair in ((0, 100), [0, 100], np.array([0, 100])): assert explore(CT, window=pair).window == (0, 100)
    for wrong in ("hart", (100, 0), (0, 0), 100, (0,), (None, None), "", (0, np.nan)):
        assert "'heart'" in refused(lambda w: explore(CT, window=w), wrong)
    refused(lambda: explore(MRI, window="lung"), says="'2 to 98 %'")


def test_wrong_names_are_told_what_is_possible():
    refused(lambda: compare(CT, MRI, view="swip"), says="swipe")
    refused(lambda: compare(CT, MRI, cut="axia"), says="axial")
    refused(lambda: compare(CT, MRI, cut=None), says="axial")
    refused(lambda: compare(CT, MRI, share=50), says="0 to 1")
    refused(lambda: compare(CT, MRI, share=None), says="0 to 1")
    refused(lambda: explore(CT, opacity=50), says="0 to 1")
    refused(lambda: compare(CT, None), says="fake")


# ---- what is compared is seen through one window

def test_wrong_intensities_are_seen():
    "A reconstruction is looked at as its scan is, a fake as the truth is."
    mri, ct = replace(MRI, label=None), BARE
    seen = compare(mri, ct, replace(mri, voxels=mri.voxels * 2 + 300))
    assert np.abs(seen.picture_of("real", 2.0).astype(int) - seen.picture_of("reconstructed", 2.0)).max() > 50
    seen = compare(ct, replace(mri, voxels=mri.voxels * 3), true=mri)
    assert np.abs(seen.picture_of("synthetic", 2.0).astype(int) - seen.picture_of("true", 2.0)).max() > 50
    assert compare(ct, mri, true=normalise(mri)).windows["synthetic"] == grey_range(mri)


def test_a_click_computes_no_percentiles(monkeypatch):
    comparison = compare(MRI, CT, MRI, true=CT)
    comparison.build()
    comparison.change(view="difference")
    monkeypatch.setattr(np, "percentile", None)
    for view in VIEWS: comparison.change(view=view, index=(10, 10, 5))


# ---- differences

def means(*args, **kwargs):
    "What the difference view says: name → text behind it."
    return dict(title.split(": ", 1) for title in compare(*args, view="difference", **kwargs).pictures())


def test_differences_are_in_the_units_of_the_scan():
    inner = replace(CT, voxels=CT.voxels.clip(*HEART.domain("CT").window))
    for rec in (normalise(inner), torch.tensor(normalise(inner).voxels)):
        assert float(means(inner, MRI, rec)["reconstructed − real"].split()[-2]) < 1e-2
    off = replace(MRI, voxels=MRI.voxels.clip(0, 400) + 100)
    assert "100" in means(CT, off, true=normalise(replace(MRI, voxels=MRI.voxels.clip(0, 400),
                                                          range=(0.0, 400.0))))["synthetic − true"]


def test_what_cannot_be_subtracted_says_so():
    assert "cannot" in means(CT, MRI, true=CT)["synthetic − true"]
    assert "cannot" in means(MRI, CT, torch.tensor(normalise(MRI).voxels))["reconstructed − real"]
    comparison = compare(CT, MRI, CT, true=CT, view="difference")
    comparison.build()
    assert len({p.shape for p in comparison.drawn.values()}) == 1


def test_unsigned_voxels_do_not_wrap_around():
    one, other = (replace(MRI, voxels=np.rint(MRI.voxels + by).astype(np.uint16)) for by in (0, 1))
    assert means(CT, one, true=other)["synthetic − true"].endswith(" 1")


def test_only_what_both_have_seen_is_subtracted():
    half = replace(CT, voxels=CT.voxels[:12], label=None)
    assert means(CT, MRI, half)["reconstructed − real"].endswith(" 0 HU")


# ---- Dice

def test_dice_is_the_metrics_dice():
    rng = np.random.default_rng(0)
    truth, seen = (rng.integers(0, len(REGIONS), CT.shape).astype(np.uint8) for _ in range(2))
    truth[:5], truth[truth == 3] = IGNORE, 0
    expected = dice_scores(*(torch.from_numpy(a.astype(np.int64))[None] for a in (seen, truth)))[0].tolist()
    found = dice_by_region(replace(MRI, label=seen), truth)
    assert list(found) == list(REGIONS[1:]) and np.isnan(found["LA"])
    assert np.allclose(list(found.values()), expected, equal_nan=True)


def test_dice_without_any_labelled_voxel_is_nan():
    empty = np.zeros(CT.shape, np.uint8)
    assert all(np.isnan(s) for s in dice_by_region(replace(MRI, label=empty), empty).values())


def test_voxels_that_are_not_annotated_count_on_neither_side():
    label = CT.label.copy()
    label[:8] = IGNORE
    for pair in ((CT, replace(MRI, label=label)), (replace(CT, label=label), MRI)):
        comparison = compare(*pair)
        comparison.build()
        scores = set(comparison.scores["synthetic"].values())
        assert scores <= {100.0} | {s for s in scores if s != s}


@pytest.mark.parametrize("look", [explore, view3d, lambda v: compare(v, MRI), lambda v: compare(MRI, v)])
def test_a_label_without_a_name_is_refused(look):
    refused(look, replace(CT, label=np.where(CT.label == 1, 7, CT.label).astype(np.uint8)), says="[7]")


# ---- labels on either grid, and fakes elsewhere

def test_labels_of_a_fake_may_lie_on_its_grid_or_on_the_real_scans():
    coarse = phantom(3, "MRI", Grid((20, 20, 14), (8.0, 8.0, 9.0)))
    bare = replace(coarse, label=None)
    for segmentation in (CT, CT.label, nib.Nifti1Image(CT.label, CT.affine), torch.tensor(CT.label)):
        assert np.array_equal(compare(CT, bare, segmentation=segmentation).fake.label, CT.label)
    assert compare(CT, bare, segmentation=coarse.label).fake.label.any()
    array, image = lps(CT)
    assert np.array_equal(compare(image, bare, segmentation=CT.label[::-1, ::-1]).fake.label, CT.label)
    refused(lambda: compare(CT, bare, segmentation=np.zeros((3, 4, 5), int)), says="3×4×5")


def test_a_fake_that_lies_elsewhere_is_refused():
    refused(compare, CT, replace(MRI, affine=SMALL.affine((1000, 0, 0))), says="does not touch")


# ---- things that are no volume

@pytest.mark.parametrize("thing", [
    [CT, MRI], {"a": 1}, None, ["a"], [[1], [2, 3]], np.zeros((5, 5, 5), complex),
    torch.zeros(5, 5, 5, dtype=torch.complex64), 3,
    nib.Nifti1Image(CT.voxels, np.diag([1, 1, 1e-3, 1])),
], ids=lambda t: type(t).__name__)
def test_what_is_no_volume_is_refused(thing):
    for look in (explore, view3d, lambda fake: compare(CT, fake)): refused(look, thing)


@pytest.mark.parametrize("labels", [BARE, np.zeros((5, 5), int), 3, ["a"], np.eye(6, dtype=int)[CT.label],
                                    nib.Nifti1Image(CT.label, np.diag([1, 1, 1e-3, 1])), {}],
                         ids=["Volume", "2D", "number", "words", "one hot", "flat", "dict"])
def test_what_is_no_label_map_is_refused(labels): refused(explore, BARE, labels)


@pytest.mark.parametrize("spacing", [2, (1, 1), (1, 1, 0), (1, 1, -2), (1, 1, np.nan), "abc", None])
def test_a_spacing_is_three_sizes(spacing): refused(lambda: explore(CT.voxels, spacing=spacing), says="spacing")


def test_tensors_of_every_kind_are_read():
    voxels = torch.tensor(normalise(CT).voxels)
    for tensor in (voxels.bfloat16(), voxels.half(), voxels.double(), voxels.clone().requires_grad_()):
        assert as_volume(tensor).scaled
    assert np.array_equal(as_volume(BARE, torch.tensor(CT.label.astype(np.float32), requires_grad=True)).label,
                          CT.label)


def test_a_volume_knows_its_modality():
    refused(lambda: explore(CT, modality="MRI"), says="CT")
    assert explore(CT, modality="CT").volume.modality == "CT"


def test_time_is_no_direction():
    cine = nib.Nifti1Image(np.random.default_rng(0).random((20, 20, 1, 8)).astype(np.float32), np.diag([1, 1, 8, 1]))
    refused(explore, cine, says="8 frames")
    refused(explore, BARE, cine, says="8 frames")


# ---- in space

@pytest.mark.parametrize("view", depth.VIEWS)
@pytest.mark.parametrize("affine", [np.eye(4), turned((20, -10, 35), (1, 1, 1))], ids=["straight", "oblique"])
def test_every_corner_is_seen_from_everywhere(view, affine):
    label = np.zeros((60, 60, 60), np.uint8)
    label[-6:, -6:, -6:], label[:6, :6, :6] = 1, 2
    volume = Volume(np.ones(label.shape, np.float32), affine, "MRI", label)
    cube = resample_along(volume, view, label, 0)
    blocks = [np.ptp(np.argwhere(cube == r), 0) + 1 for r in (1, 2)]
    assert min((cube == r).sum() for r in (1, 2)) > 0 and np.abs(blocks[0] - blocks[1]).max() <= 2
    found = sum((cube == r).sum() for r in (1, 2)) / (2 * 6**3)  # voxels of the cube in a voxel of the volume
    whole = (resample_along(volume, view, np.ones_like(label), 0) == 1).sum() / 60**3
    assert abs(found / whole - 1) < 0.2


@pytest.mark.parametrize("view", depth.VIEWS)
@pytest.mark.parametrize("slices", [1, 2, 3])
def test_a_slab_does_not_vanish(view, slices):
    volume = Volume(np.ones((200, 200, slices), np.float32), np.diag([1, 1, 0.7, 1]), "MRI")
    seen = resample_along(volume, view, np.ones(volume.shape, np.uint8), 0).any(0)
    assert seen.any() and (view != "left above" or seen.mean() > 0.12)


def test_itkwidgets_gets_an_oblique_volume_turned_upright(monkeypatch):
    "Every value it is given lies in the patient where the volume has that value; the viewer knows no rotation."
    monkeypatch.setitem(sys.modules, "itkwidgets", types.SimpleNamespace(view=lambda **given: given))
    pytest.importorskip("ngff_zarr")
    shape = (20, 18, 16)
    for name in ("plain", "LPS", "oblique"):
        points = nib.affines.apply_affine(AFFINES[name], np.moveaxis(np.indices(shape), 0, -1))
        height = as_volume(nib.Nifti1Image(points[..., 2].astype(np.float32) + 1000, AFFINES[name]), modality="MRI")
        image = depth.itkwidgets(height)["image"]
        array, middle = np.asarray(image.data), [n // 2 for n in image.data.shape]
        z = image.translation["z"] + image.scale["z"] * middle[0]
        black, white = np.quantile(grey_range(height), (1 / 3, 2 / 3))
        assert abs(array[tuple(middle)] - np.clip(z + 1000, black, white)) < 0.5, name


# ---- shown twice, and tall

def test_what_is_shown_twice_lives_twice(monkeypatch):
    class Once(LiveView):
        def still(self): return PixelPicture(np.zeros((2, 2, 3), np.uint8))
        def build(self):
            from ipywidgets import HTML
            built.append(self)
            return HTML()
    built, live = [], Once()
    monkeypatch.setattr("IPython.display.display", lambda *things, **how: None)
    monkeypatch.setattr("cssgan.viewers.canvas.in_browser", lambda: True)
    live._ipython_display_(), live._ipython_display_()
    assert len(built) == 2 and built[0] is not built[1]


def test_a_tall_volume_fits_a_screen():
    assert max(explore(np.random.default_rng(0).random((2, 2, 200))).still().rgb.shape) < 1200


# ---- the monitor

class Stopping(Monitor):
    "Somebody who presses stop after the first epoch, once."
    pressed = False

    def draw(self, epoch_over, over):
        super().draw(epoch_over, over)
        if len(self.run.history) == 1 and not self.pressed: self.pressed = self.stopping = True


def test_a_monitor_that_was_stopped_watches_on(tmp_path):
    data = noise(1, 1)
    watch = Stopping(data, share=1)
    with pytest.raises(Stopped): fit(data, TWICE, tmp_path, progress=False, callback=watch)
    frames = len(watch.frames)
    assert fit(data, TWICE, tmp_path, progress=False, resume=True,
               callback=watch).phase == 1 and len(watch.frames) > frames


@pytest.fixture
def seen(monkeypatch):
    "A browser that looks on: what is displayed, and what becomes of it."
    shown = []
    class Handle:
        def update(self, thing): shown.append(("update", thing))
    def display(*things, **how):
        shown.extend(("display", thing) for thing in things)
        return Handle()
    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(monitor, "in_browser", lambda: True)
    return shown


def test_a_second_run_gets_a_panel_and_frames_of_its_own(tmp_path, seen):
    watch = Monitor(noise(), share=0)
    fit(noise(), TWICE, tmp_path / "one", progress=False, callback=watch)
    panel, names = watch.widgets, list(watch.names)
    fit(noise(), TWICE, tmp_path / "two", progress=False, callback=watch)
    assert watch.names == names and watch.widgets is not panel and panel.stop.disabled


class Broken(Random):
    "A disk that is gone after some volumes."
    def __getitem__(self, i):
        self.read = getattr(self, "read", 0) + 1
        if self.read > 4: raise OSError("the disk is gone")
        return super().__getitem__(i)


def test_a_training_that_fails_leaves_the_summary(tmp_path, seen, monkeypatch):
    from IPython.testing.globalipapp import get_ipython, start_ipython
    shell = start_ipython() or get_ipython()
    data = noise()
    data.train_A = Broken(3, "A", 0)
    watch = Monitor(data, share=0)
    shell.push({"go": lambda: fit(data, TWICE, tmp_path, progress=False, callback=watch)})
    monkeypatch.setattr(shell, "showtraceback", lambda *_, **__: None)
    assert isinstance(shell.run_cell("go()").error_in_exec, OSError)
    kind, last = seen[-1]
    assert kind == "update" and last.rgb.shape[0] > 200 and watch.widgets.pause.disabled and watch.widgets.stop.disabled
    stills = len(seen)
    shell.run_cell("1 / 0")
    assert len(seen) == stills


def test_the_stored_picture_follows_the_epochs(tmp_path, seen):
    data = noise(1, 1)
    fit(data, TWICE, tmp_path, progress=False, callback=Monitor(data, share=1))
    assert [kind for kind, _ in seen].count("update") > 1


def test_the_stored_picture_waits_for_the_budget(tmp_path, seen):
    fit(noise(), TWICE, tmp_path, progress=False, callback=Monitor(noise(), share=0))
    assert [kind for kind, _ in seen].count("update") == 1


# ---- other tasks

def of(name, domains, regions, **more):
    "A task on the small grid."
    grid = {"shape": list(SMALL.shape), "spacing": list(SMALL.spacing)}
    return as_task({"name": name, "domains": domains, "regions": ["background", *regions], "grid": grid} | more)


T1, T2 = ({"name": name, "percentiles": [1, 99]} for name in ("T1", "T2 FLAIR"))
HU = {"name": "CT", "unit": "HU", "window": [-1000, 1000], "nothing": -1024, "check": "HU"}
BRAIN = of("brain", [T1, T2], [f"area no.{k}" for k in range(1, 9)])
PELVIS = of("pelvis", [HU, {"name": "CBCT", "window": [0, 2000], "unit": "a.u."}], ["bladder"])
LIVER = of("abdomen", [HU, T1], ["liver", "right kidney", "left kidney"],
           tables={"liver": {"1": "liver"}}, table_of={"CT": "liver"})
MANY = of("all", [T1, T2], [f"structure with a name no.{k}" for k in range(1, 62)])


def as_partly_drawn(volume, *drawn):
    "Its labels as one who draws only these regions would have left them."
    return replace(volume, label=np.where(np.isin(volume.label, drawn), volume.label, UNDRAWN).astype(np.uint8))


@pytest.mark.parametrize("task", [LIVER, BRAIN, PELVIS, MANY], ids=lambda task: task.name)
@pytest.mark.parametrize("side", [0, 1])
def test_every_viewer_knows_the_task(task, side):
    own, other = (shapes(1, name, task) for name in (task.names[side], task.names[1 - side]))
    comparison = compare(own, other, own, segmentation=own.label)
    for live in (explore(own), comparison):
        live.build()
        assert live.still().rgb.any()
    assert comparison.title("synthetic") == f"synthetic {other.modality}, Dice 100"
    assert list(comparison.scores["synthetic"]) == list(task.regions[1:])
    assert all(name in legend_html([own.label], task) for name in np.array(task.regions)[np.unique(own.label)[1:]])
    at = tuple(np.argwhere(own.label == 1)[0])
    assert describe_voxel(own, at).endswith(f"{own.unit} · {task.regions[1]}")


@pytest.mark.parametrize("task", [LIVER, BRAIN, PELVIS, MANY], ids=lambda task: task.name)
def test_niivue_knows_the_task(task):
    pytest.importorskip("ipyniivue", reason="without ipyniivue there is no view of its to show")
    own = shapes(1, task.names[0], task)
    live = view3d(own, viewer="niivue")
    live.build()
    assert live.still().rgb.any()
    colours = depth.niivue(own).volumes[1].colormap_label
    assert list(colours.labels or niivue_colours(task)["labels"]) == list(task.regions)


@pytest.mark.parametrize("width", [40, 180, 700])
def test_a_legend_has_as_many_lines_as_it_needs(width):
    labels = np.arange(len(MANY.regions), dtype=np.uint8)
    picture = with_legend(np.zeros((10, width, 3), np.uint8), labels, task=MANY)
    lines = (len(picture) - 10) // 26
    assert picture.shape[1] == width and (lines == 61 if width < 200 else 15 < lines < 35)
    assert all(picture[10 + 26 * k:36 + 26 * k].any() for k in range(lines))
    assert legend_html([labels], MANY).count("nowrap") == 61
    few = with_legend(np.zeros((10, 700, 3), np.uint8), CT.label)
    assert len(few) == 36  # one line, as ever


def test_words_are_broken_in_their_order():
    assert in_lines([3, 3, 3, 9, 1], 6) == [[0, 1], [2], [3], [4]] and in_lines([], 6) == []


@pytest.mark.parametrize("cut", CUTS)
def test_what_was_not_drawn_is_not_painted(cut):
    bare = replace(CT, label=None)
    unknown = replace(CT, label=np.full(CT.shape, UNDRAWN, np.uint8))
    assert np.array_equal(paint_cut(unknown, cut, (12, 12, 8), 2.0), paint_cut(bare, cut, (12, 12, 8), 2.0))
    assert np.array_equal(paint_cut(bare, cut, (12, 12, 8), 2.0, truth=unknown.label),
                          paint_cut(bare, cut, (12, 12, 8), 2.0))
    partly = as_partly_drawn(CT, 1)
    only = replace(CT, label=np.where(CT.label == 1, 1, 0).astype(np.uint8))
    assert np.array_equal(paint_cut(partly, cut, (12, 12, 8), 2.0), paint_cut(only, cut, (12, 12, 8), 2.0))


def test_what_was_not_drawn_is_called_so_and_is_no_body():
    partly, hidden = as_partly_drawn(CT, 1), tuple(np.argwhere(CT.label == 2)[0])
    assert describe_voxel(partly, hidden).endswith("HU · background, or not drawn")
    only = replace(CT, label=np.where(CT.label == 1, 1, 0).astype(np.uint8))
    assert np.array_equal(render_view(partly, "the front"), render_view(only, "the front"))
    assert explore(partly).index.tolist() == explore(only).index.tolist()
    assert legend_html([partly.label]).count("background:") == 1 and "drawn" not in legend_html([partly.label])


def test_dice_leaves_out_what_was_not_drawn():
    partly = as_partly_drawn(CT, 1, 2)
    assert partly.label.max() == UNDRAWN
    scores = compare(partly, MRI).scores["synthetic"]
    assert scores["LV"] == scores["RV"] == 100 and all(np.isnan(scores[name]) for name in REGIONS[3:])
    worse = np.where(MRI.label == 3, 1, MRI.label).astype(np.uint8)  # an atrium that is called LV
    assert compare(partly, replace(MRI, label=worse)).scores["synthetic"]["LV"] < 95


@pytest.mark.filterwarnings("error")
def test_a_scan_that_nobody_annotated_has_no_dice():
    unlabelled = replace(CT, label=np.full(CT.shape, IGNORE, np.uint8))
    comparison = compare(unlabelled, MRI)
    comparison.build()
    assert comparison.title("synthetic") == "synthetic MRI" and "<b>–</b>" in dice_table(comparison.scores)


@pytest.mark.parametrize("side", [0, 1])
def test_files_of_one_physics_are_what_their_place_says(side, tmp_path):
    own, other = (BRAIN.names[side], BRAIN.names[1 - side])
    real, fake = shapes(1, own, BRAIN), shapes(1, other, BRAIN)
    write_volume(fake, tmp_path / "fake.nii")
    for thing in (tmp_path / "fake.nii", nib.load(tmp_path / "fake.nii"), fake.voxels):
        assert compare(real, thing, real.voxels).fake.modality == other
    assert explore(tmp_path / "fake.nii", modality=other, task=BRAIN).volume.modality == other
    assert explore(tmp_path / "fake.nii", task=BRAIN).volume.modality == "T1"


def test_a_file_that_cannot_be_what_its_place_says_is_what_it_can_be(tmp_path):
    write_volume(MRI, tmp_path / "mri.nii"), write_volume(CT, tmp_path / "ct.nii")
    assert compare(MRI, tmp_path / "mri.nii").fake.modality == "MRI"
    assert compare(CT, tmp_path / "ct.nii").fake.modality == "CT"
    assert compare(MRI, tmp_path / "ct.nii").fake.modality == "CT"


def test_modalities_are_guessed_among_the_tasks_own():
    assert guess_modality(np.array([-900.0, 30]), PELVIS) == "CT"
    assert guess_modality(np.array([0.0, 1500]), PELVIS) == "CBCT"
    assert guess_modality(np.array([-900.0, 30]), PELVIS, likely="CBCT") == "CT"
    assert guess_modality(np.array([0.0, 1500]), BRAIN, likely="T2 FLAIR") == "T2 FLAIR"
    refused(lambda: explore(MRI.voxels, modality="T1"), says="use CT or MRI")
    refused(lambda: explore(MRI.voxels, modality="CT", task=BRAIN), says="use T1 or T2 FLAIR")


def test_windows_of_a_domain_have_its_own_names():
    assert list(windows(shapes(1, "CBCT", PELVIS))) == ["usual"]
    assert list(windows(shapes(1, "T1", BRAIN)))[0] == "1 to 99 %"
    seen = of("brain", [T1 | {"views": {"grey matter": [300, 700]}}, T2], ["tumour"])
    scan = shapes(1, "T1", seen)
    assert list(windows(scan))[:2] == ["grey matter", "1 to 99 %"]
    assert explore(scan).window == explore(scan, window="grey matter").window == (300, 700)
    scaled = normalise(scan)
    low, high = windows(scaled)["grey matter"]
    assert -1 < low < high <= 1
    assert "grey matter" not in windows(replace(scaled, range=None))
    bent = of("pelvis", [{"name": "CT", "unit": "HU", "check": "HU", "knots": [[-1000, -1], [0, 0.5], [1000, 1]]}, T1],
              ["bladder"])
    assert windows(shapes(1, "CT", bent))["usual"] == (-1000, 1000)
    assert windows(normalise(shapes(1, "CT", bent)))["usual"] == (-1, 1)


def test_a_units_name_runs_nothing():
    evil = of("x", [T1 | {"unit": "<img src=x onerror=alert(1)>"}, T2], ["liver"])
    scan = shapes(1, "T1", evil)
    explorer, comparison = explore(scan), compare(scan, shapes(1, "T2 FLAIR", evil))
    explorer.build(), comparison.build()
    for words in (explorer.words.value, comparison.words.value): assert "<img" not in words and "&lt;img" in words


# ---- the monitor of another task

@pytest.fixture(scope="module")
def partly(tmp_path_factory):
    "A run of a task whose CT labels draw the liver alone, and its data."
    folder = tmp_path_factory.mktemp("partly")
    data = unpaired(phantom_cases({"train": (2, 2), "valid": (1, 1)}, task=LIVER), SMALL, folder / "cache")
    watch = Monitor(data, share=1)
    run = fit(data, replace(preset("smoke", LIVER), phases=(Phase("joint", 1),)), folder / "run", progress=False,
              callback=watch)
    return run, data, watch


def test_a_monitor_speaks_of_the_runs_own_domains_and_regions(partly):
    run, data, watch = partly
    assert (data.valid_A[0][1] < 0).any() and not watch.message and watch.frames
    assert list(score_titles(LIVER).values()) == ["Dice CT", "Dice T1", "S-score CT→T1", "S-score T1→CT"]
    words = [text.get_text() for ax in plot_run(run).axes for text in ax.get_legend().get_texts()]
    assert {"Dice CT", "Dice T1"} <= set(words) and not any("MRI" in word for word in words)
    assert watch.still().rgb.shape[0] > 300


def test_a_frame_names_every_region_whatever_is_seen(partly):
    run, data, _ = partly
    samples = {"A": data.valid_A[0][:2], "B": data.valid_B[0][:2]}
    frame = translation_frame(run, samples)
    legend = frame[-26:]
    for colour in colour_table(LIVER.palette)[1:4]:
        assert (np.abs(legend - colour).max(2) < 3).any()


def test_a_monitor_of_one_domain_calls_it_by_its_name(partly, monkeypatch):
    run, data, _ = partly
    titles = []
    monkeypatch.setattr(monitor, "side_by_side", lambda pictures: titles.extend(pictures) or np.zeros((9, 400, 3)))
    watch = Monitor(UnpairedData(data.train_A, data.train_B, data.valid_A.__class__([], SMALL), data.valid_B))
    translation_frame(run, watch.samples)
    assert titles == ["real T1", "synthetic CT", "reconstructed T1", "synthetic, segmented"]


def test_a_domain_that_nobody_annotated_is_watched_too(tmp_path):
    data = noise(1, 1)
    for volume, labels, _ in data.valid_B.made: labels.fill_(IGNORE)
    watch = Monitor(data, share=1)
    run = fit(data, TWICE, tmp_path, progress=False, callback=watch)
    assert watch.frames and not watch.message and run.history[-1]["dice_MRI"] is None
    assert plot_run(run).axes and watch.still().rgb.any()
