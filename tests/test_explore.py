"What the viewers promise where there is no browser."
import io
import json
import subprocess
import sys
import time
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from matplotlib.image import imread
from scans import write_dicom
from tiny import SHORT, noise

from cssgan.guard import InputError
from cssgan.phantoms.scanners import phantom
from cssgan.pictures import CUTS, label_colours
from cssgan.scans.files import write_volume
from cssgan.scans.volumes import PAPER_GRID, SMALL_GRID, Grid, Volume
from cssgan.training.trainer import Stopped, fit
from cssgan.viewers import canvas, depth, monitor
from cssgan.viewers.canvas import describe_voxel, paint_cut, place_in_cut, voxel_at
from cssgan.viewers.comparison import compare, mixing_mask
from cssgan.viewers.depth import VIEWERS, choose_viewers, render_view, view3d
from cssgan.viewers.explorer import explore
from cssgan.viewers.inputs import as_volume
from cssgan.viewers.monitor import Budget, Monitor

SMALL = Grid((24, 24, 16), (7.0, 7.0, 8.0))
WORLD = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}


@pytest.fixture(scope="module")
def ct(): return phantom(1, "CT", SMALL)


@pytest.fixture(scope="module")
def mri(): return phantom(1, "MRI", SMALL)


def test_import_takes_no_widgets():
    code = ("import sys, cssgan.viewers.explorer, cssgan.viewers.monitor; print(sorted({'ipywidgets', 'ipyniivue', "
            "'itkwidgets', 'anywidget', 'ipyevents', 'IPython'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("modality", ["CT", "MRI"])
def test_everything_is_a_volume(tmp_path, modality):
    volume = phantom(1, modality, SMALL)
    write_volume(volume, tmp_path / "scan.nii.gz")
    image = nib.load(tmp_path / "scan.nii.gz")
    for thing in (volume, tmp_path / "scan.nii.gz", str(tmp_path / "scan.nii.gz"), image, volume.voxels,
                  torch.tensor(volume.voxels)[None, None]):
        seen = as_volume(thing, volume.label, spacing=SMALL.spacing)
        assert seen.modality == modality and seen.axes == "RAS" and np.array_equal(seen.label, volume.label)
        assert np.allclose(seen.voxels, volume.voxels) and np.allclose(seen.spacing, SMALL.spacing)


@pytest.mark.parametrize("modality", ["CT", "MRI"])
def test_a_dicom_folder_is_a_volume_of_the_modality_it_says(tmp_path, modality):
    volume = phantom(1, modality, SMALL)
    folder = write_dicom(tmp_path / "series", volume.voxels, volume.affine,
                         t0008_0060={"CT": "CT", "MRI": "MR"}[modality])
    seen = as_volume(folder, volume.label)
    assert seen.modality == modality
    assert np.allclose(seen.voxels, np.rint(volume.voxels)) and np.allclose(seen.affine, volume.affine)
    with pytest.raises(InputError, match="without DICOM files"): as_volume(tmp_path)


def test_bad_things_are_refused_in_one_line(tmp_path, ct):
    for thing in (np.zeros((3, 3)), tmp_path / "none.nii", np.zeros((2, 3, 4, 5))):
        with pytest.raises(InputError) as e: as_volume(thing)
        assert "\n" not in str(e.value)
    with pytest.raises(InputError): as_volume(ct, ct.label[1:])


@pytest.mark.parametrize("cut", CUTS)
def test_sides_are_where_the_letters_stand(cut):
    affine = SMALL.affine()
    points = nib.affines.apply_affine(affine, np.moveaxis(np.indices(SMALL.shape), 0, -1))
    _, (left, right, top, bottom) = CUTS[cut]
    for side, part in ((left, np.s_[40:-40, 2]), (right, np.s_[40:-40, -3]), (top, np.s_[2, 40:-40]),
                       (bottom, np.s_[-3, 40:-40])):
        lit = Volume((points @ np.array(WORLD[side], float)).astype(np.float32), affine, "MRI")
        picture = paint_cut(lit, cut, (12, 12, 8), 1.0).astype(float)[..., 0]
        assert np.median(picture[part]) > 0.9 * 255 - 20, (cut, side)


def test_letters_do_not_depend_on_the_file(ct):
    turned = replace(ct, voxels=ct.voxels[::-1, ::-1].copy(), label=ct.label[::-1, ::-1].copy(),
                     affine=ct.affine @ np.array([[-1, 0, 0, ct.shape[0] - 1], [0, -1, 0, ct.shape[1] - 1],
                                                  [0, 0, 1, 0], [0, 0, 0, 1.0]]))
    assert turned.axes == "LPS"
    assert np.array_equal(explore(turned).still().rgb, explore(ct).still().rgb)


def test_proportions(ct):
    for cut, (axis, _) in CUTS.items():
        width, height = (n * s for a, (n, s) in enumerate(zip(ct.shape, ct.spacing)) if a != axis)
        picture = paint_cut(ct, cut, (12, 12, 8), 0.8)
        assert abs(picture.shape[1] * 0.8 - width) < 1 and abs(picture.shape[0] * 0.8 - height) < 1


@pytest.mark.parametrize("cut", CUTS)
def test_place_and_voxel_are_inverse(ct, cut):
    rng = np.random.default_rng(0)
    for _ in range(20):
        index = tuple(int(rng.integers(n)) for n in ct.shape)
        assert voxel_at(ct, cut, index, place_in_cut(ct, cut, index)) == index


def test_a_voxels_description_has_value_and_structure(ct):
    index = tuple(np.argwhere(ct.label == 1)[0])
    words = describe_voxel(ct, index)
    assert words.endswith("LV") and f"{ct.voxels[index]:.4g} HU" in words


def test_a_drag_stays_a_motion():
    "Three cuts on the paper's grid in less than a tenth of a second of this thread's own time."
    explorer = explore(phantom(1, "CT", PAPER_GRID))
    def frame():
        began = time.thread_time()
        for cut in CUTS: canvas.png_bytes(explorer.picture(cut))
        return time.thread_time() - began
    assert min(frame() for _ in range(5)) < 0.1


def test_tiles_are_equally_high_and_a_place_in_a_tile_is_a_place_in_its_cut(ct):
    flat = replace(ct, voxels=ct.voxels[:, :, :8], label=None)
    explorer = explore(flat)
    explorer.build()
    heights = {imread(io.BytesIO(t.image.value), format="png").shape[0] for t in explorer.touches.values()}
    assert len(heights) == 1
    for cut in CUTS:
        row, column = place_in_cut(flat, cut, (5, 9, 2))
        rows = len(explorer.picture(cut))
        in_tile = (row * rows + (explorer.height - rows) // 2) / explorer.height, column
        explorer.index = (5, 9, 2)
        assert explorer.voxel_in_tile(cut, in_tile) == (5, 9, 2)


def test_click_moves_all_cuts(ct):
    explorer = explore(ct)
    explorer.build()
    before = {cut: t.image.value for cut, t in explorer.touches.items()}
    explorer.touches["axial"].press((0.2, 0.2))
    assert all(t.image.value != before[cut] for cut, t in explorer.touches.items())
    assert [s.value for _, s in sorted(explorer.sliders.items())] == list(explorer.index)


def test_compare_numbers(ct, mri):
    comparison = compare(ct, mri, ct, true=mri)
    assert set(comparison.scores["synthetic"].values()) == {100.0}
    assert list(comparison.volumes) == ["real", "synthetic", "reconstructed", "true"]
    assert not replace(mri, voxels=mri.voxels - mri.voxels).voxels.any()
    titles = list(compare(ct, mri, ct, true=mri, view="difference").pictures())
    assert all(t.split("| ")[1].startswith("0") for t in titles) and len(titles) == 2


def test_masks():
    assert mixing_mask((10, 10), "swipe", 0.3)[..., 0].mean() == 0.3
    assert mixing_mask((10, 10), "blend", 0.7).max() == 0.7
    assert abs(mixing_mask((112, 112), "checkerboard", 0)[..., 0].mean() - 0.5) < 0.01


def test_fake_on_another_grid_is_brought_to_the_real_one(ct):
    assert compare(ct, phantom(1, "MRI", SMALL_GRID)).fake.shape == ct.shape


def test_views_from_outside(ct):
    "From the front the right ventricle is at the left, the left one's wall at the right, in the toolkit's colours."
    picture = render_view(replace(ct, voxels=np.full(ct.shape, -1000, np.float32)), "the front",
                          opacity=1).astype(float)
    def middle(region):
        colour = np.array([int(label_colours()[region][i:i + 2], 16) for i in (1, 3, 5)], float)
        same = (picture * colour).sum(2) / (np.linalg.norm(picture, axis=2) * np.linalg.norm(colour) + 1e-6) > 0.995
        return np.argwhere(same & (picture.max(2) > 60)).mean(0)[1]
    assert middle(4) < middle(2) < middle(5)


@pytest.mark.parametrize("webgl", [True, False])
@pytest.mark.parametrize("network", [True, False])
@pytest.mark.parametrize("named", [None, *VIEWERS])
def test_some_viewer_always_shows(webgl, network, named):
    viewers, lines = choose_viewers({"webgl": webgl, "network": network}, named)
    assert viewers[-1] == "still" or viewers == ["still"] or "still" in viewers
    assert len(lines) <= 1 and (named is None or viewers[0] == named or lines)
    if not webgl: assert viewers == ["still"]


def test_a_viewer_that_fails_gives_way(ct, monkeypatch):
    def fails(*_): raise RuntimeError("no such luck")
    monkeypatch.setattr(depth, "itkwidgets", fails)
    body = view3d(ct, viewer="itkwidgets")
    body.build()
    body.answered({"webgl": True, "network": True})
    assert "no such luck" in body.line.value and type(body.box.children[-1]).__name__ == "NiiVue"
    monkeypatch.setattr(depth, "niivue", fails)
    body.answered({"webgl": True, "network": True})
    assert body.box.children[-1] is body.picture


def test_without_a_browser_there_is_a_picture_and_nothing_else(ct, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda *things, **how: shown.extend(things))
    for live in (explore(ct), view3d(ct), compare(ct, ct)):
        shown.clear()
        live._ipython_display_()
        assert len(shown) == 1 and shown[0]._repr_png_()[1:4] == b"PNG"


def test_a_missing_package_is_one_line(ct, monkeypatch, capsys):
    monkeypatch.setattr("IPython.display.display", lambda *things, **how: None)
    monkeypatch.setattr(canvas, "in_browser", lambda: True)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    explore(ct)._ipython_display_()
    out = capsys.readouterr().out
    assert "pip install cssgan[explore]" in out and out.count("\n") == 1


def test_monitor_changes_nothing_and_ends_with_a_summary(tmp_path):
    watch = Monitor(noise(), share=1)
    run, alone = (fit(noise(), SHORT, tmp_path / name, progress=False, callback=w)
                  for name, w in (("watched", watch), ("alone", None)))
    weights = zip(run.nets.state_dict().values(), alone.nets.state_dict().values())
    assert all(torch.equal(a, b) for a, b in weights) and run.history == alone.history
    assert len(watch.frames) >= 2 and watch._repr_png_()[1:4] == b"PNG" and not watch.message


def test_pause_saves_and_stop_stops(tmp_path):
    import threading
    watch = Monitor(noise(), share=1)
    watch.paused, ended = True, []
    def train():
        try: fit(noise(), SHORT, tmp_path, progress=False, callback=watch)
        except Stopped as e: ended.append(str(e))
    thread = threading.Thread(target=train)
    thread.start()
    while not (tmp_path / "last" / "checkpoint.json").exists(): time.sleep(0.05)
    assert "paused after 1 pair" in watch.message and thread.is_alive()
    watch.stopping = True
    thread.join(60)
    assert ended and fit(noise(), SHORT, tmp_path, resume=True, progress=False).phase == 3


def test_a_drawing_that_fails_does_not_end_the_training(tmp_path, monkeypatch):
    def fails(*_): raise RuntimeError("no ink")
    monkeypatch.setattr(monitor, "translation_frame", fails)
    watch = Monitor(noise(), share=1)
    assert fit(noise(), SHORT, tmp_path, progress=False, callback=watch).phase == 3 and "no ink" in watch.message


def test_budget():
    now = [0.0]
    budget, spent = Budget(clock=lambda: now[0]), 0
    for _ in range(3000):
        now[0] += 0.1
        if budget.left() > 0:
            with budget.spend(): now[0] += 0.5
            spent += 0.5
    assert 0 < spent / now[0] < 0.03


def test_several_processes_take_no_callback(tmp_path):
    with pytest.raises(ValueError, match="callback"):
        fit(noise(), SHORT, tmp_path, devices=2, callback=Monitor(noise()))


def test_notebooks_store_no_widgets(root):
    "Pictures only: the state of widgets is large, and says nothing to who opens the notebook elsewhere."
    def stored(path):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        outputs = [o for c in notebook["cells"] for o in c.get("outputs", [])]
        kinds = [kind for o in outputs for kind in o.get("data", {})]
        return "widgets" in notebook["metadata"] or any("jupyter.widget" in kind for kind in kinds)
    assert not [p.name for p in (root / "nbs").rglob("*.ipynb") if stored(p)]


def test_photographs_are_there_and_small(root):
    "What the documentation shows of the viewers is what the tests in the browser saw (`make photographs`)."
    import re
    texts = [path.read_text(encoding="utf-8") for path in (root / "nbs").glob("09_viewers/*.ipynb")]
    wanted = {name for text in texts for name in re.findall(r"\(../images/(\w+\.png)\)", text)}
    assert len(wanted) >= 5 and all((root / "nbs/images" / name).stat().st_size < 200_000 for name in wanted)
