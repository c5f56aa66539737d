"A model in one's hands: whatever holds a scan goes in, the answer comes in kind, and nothing is loaded twice."
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scans import AFFINES, lopsided, turned, voxels, write_dicom
from scipy.ndimage import maximum_filter

import cssgan
from cssgan.guard import InputError
from cssgan.inference import apply, location
from cssgan.inference import model as model_module
from cssgan.phantoms.scanners import phantom
from cssgan.scans.files import write_volume
from cssgan.scans.inputs import as_volume_unturned, from_image, in_kind
from cssgan.scans.volumes import Grid, Volume
from cssgan.task import as_task
from cssgan.training.checkpoints import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:.*heart")


@pytest.fixture
def quick(monkeypatch):
    "One look is enough: networks that learned nothing would be sent around the whole body."
    def one_look(segmentor, scan, grid, window, centre=None):
        return location.segment_box(segmentor, scan, grid, window, apply.grid_centre(scan), grid)
    monkeypatch.setattr(apply, "find_regions", one_look)


@pytest.fixture
def model(checkpoint, quick): return cssgan.load(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def scan():
    "An oblique CT whose axes differ in length."
    whole = phantom(8, "CT", Grid((26, 22, 18), (7.0, 7.5, 8.0)))
    affine = turned((20, -15, 30), (7, 7.5, 8), (1, -1, 1))
    return replace(whole, voxels=np.rint(whole.voxels), affine=affine, label=None)


def simpleitk(array, affine):
    "The array as SimpleITK has it, where the affine says."
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose()))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


# ---- images in memory

@pytest.mark.parametrize("name", AFFINES)
def test_simpleitk_and_nibabel_agree_where_every_voxel_is(name):
    array, affine = lopsided((24, 20, 16)).astype(np.int16), AFFINES[name]
    for image in nib.Nifti1Image(array, affine), simpleitk(array, affine):
        found, there = from_image(image)
        assert np.array_equal(found, array) and np.allclose(there, affine, atol=1e-5)
    image = simpleitk(array, affine)
    point = image.TransformIndexToPhysicalPoint((3, 7, 11))
    assert np.allclose(nib.affines.apply_affine(from_image(image)[1], (3, 7, 11)), np.array(point) * (-1, -1, 1))


@pytest.mark.parametrize("name", AFFINES)
def test_what_comes_back_lies_where_what_came_in_lay(name):
    array, affine = voxels().astype(np.float32), AFFINES[name]
    result = Volume(array, affine, "CT", lopsided(array.shape))
    for given in nib.Nifti1Image(array, affine), nib.Nifti2Image(array, affine), simpleitk(array, affine):
        back = in_kind(result, result.label, given)
        assert type(back) is type(given)
        found, there = from_image(back)
        assert np.array_equal(found, result.label) and np.allclose(there, affine, atol=1e-5)
    assert in_kind(result, result.label, array) is result.label
    assert in_kind(result, result.label, "a.nii") is in_kind(result, result.label, result) is result


def test_a_nifti_image_keeps_its_forms_and_codes():
    image = nib.Nifti1Image(voxels().astype(np.float32), AFFINES["oblique"])
    image.set_sform(image.affine, 3), image.set_qform(image.affine, 1)
    label = lopsided(image.shape)
    back = in_kind(Volume(voxels(), image.affine, "CT", label), label, image)
    assert int(back.header["sform_code"]) == 3 and int(back.header["qform_code"]) == 1
    assert np.array_equal(back.affine, image.affine) and back.get_data_dtype() == np.uint8


@pytest.mark.parametrize("wrong", ["frames", "colours", "slice"])
def test_a_simpleitk_image_that_is_no_volume(wrong):
    image = {"frames": sitk.Image([4, 4, 4, 4], sitk.sitkInt16),
             "colours": sitk.Image([4, 4, 4], sitk.sitkVectorUInt8), "slice": sitk.Image([4, 4], sitk.sitkInt16)}[wrong]
    with pytest.raises(InputError, match="give three axes, and one plain number"): from_image(image)


def test_explore_takes_simpleitk_as_well():
    array, affine = voxels().astype(np.float32), AFFINES["oblique"]
    seen = as_volume_unturned(simpleitk(array, affine), lopsided(array.shape))
    assert seen.modality == "CT" and np.array_equal(seen.label, lopsided(array.shape))


# ---- the model

def test_the_same_scan_in_every_form_gives_the_same_answer(model, scan, tmp_path):
    write_volume(scan, tmp_path / "scan.nii")
    for given in nib.load(tmp_path / "scan.nii"), simpleitk(scan.voxels, scan.affine):
        array, affine = from_image(given)
        label, made = (use(Volume(array.astype(np.float32), affine, "CT")) for use in (model.segment, model.translate))
        pairs = (model.segment(given, "CT"), label.label), (model.translate(given, "MRI"), made.voxels)
        for found, expected in pairs:
            assert type(found).__name__ == type(given).__name__
            assert np.array_equal(from_image(found)[0], expected) and np.allclose(from_image(found)[1], scan.affine)
        assert np.array_equal(model.segment(array, "CT", affine=affine), label.label)
        assert np.array_equal(model.translate(array, "MRI", affine=affine), made.voxels)
    read = model.segment(tmp_path / "scan.nii", "CT")
    assert isinstance(read, Volume)
    assert np.array_equal(read.label, from_image(model.segment(nib.load(tmp_path / "scan.nii"), "CT"))[0])


def test_the_two_functions_are_the_model(model, checkpoint, scan):
    assert np.array_equal(cssgan.segment(scan, checkpoint).label, model.segment(scan).label)
    assert np.array_equal(cssgan.translate(scan, checkpoint, device="cpu").voxels, model.translate(scan).voxels)


def test_dicoms_words_are_understood_and_a_series_knows_its_own(model, scan, tmp_path):
    series = write_dicom(tmp_path / "series", scan.voxels, scan.affine)
    assert model.segment(series).modality == "CT" and model.translate(series).modality == "MRI"
    assert model.translate(scan, to="MR").modality == "MRI"
    mri = phantom(3, "MRI", Grid((24, 22, 18), (7.0, 7.5, 8.0)))
    assert model.segment(mri.voxels, "MR", affine=mri.affine).shape == mri.shape
    with pytest.raises(InputError, match="use CT or MRI"): model.segment(scan, "US")


def test_a_word_that_both_domains_go_by_is_not_understood():
    brain = as_task({"name": "brain", "regions": ["background", "tumour"], "grid": {"shape": [40, 40, 30],
                     "spacing": [5, 5, 5]}, "domains": [{"name": name, "percentiles": [1, 99], "dicom": "MR"}
                                                        for name in ("T1", "T2")]})
    with pytest.raises(InputError, match="use T1 or T2"): apply.named_domain(brain, "MR")


@pytest.mark.parametrize("how, says", [
    (lambda m, s: m.segment(s.voxels, "CT"), "give affine"), (lambda m, s: m.segment(s.voxels), "say what it is"),
    (lambda m, s: m.segment(s, affine=s.affine), "leave affine out"),
    (lambda m, s: m.segment(s.voxels, "CT", affine=np.eye(3)), "give \\(4, 4\\)"),
    (lambda m, s: m.segment(s.voxels[0], "CT", affine=s.affine), "single slice"),
    (lambda m, s: m.segment(s.voxels + 5000, "CT", affine=s.affine), "not in HU"),
    (lambda m, s: m.translate(s.voxels, "CT", affine=s.affine), "looks like CT"),
    (lambda m, s: m.segment(nib.Nifti1Image(s.voxels * np.nan, s.affine), "CT"), "NaN"),
    (lambda m, s: m.segment(nib.Nifti1Image(s.voxels, None), "CT"), "does not say where it lies")])
def test_what_cannot_be_used_is_one_line(model, scan, how, says):
    with pytest.raises(InputError, match=says) as e: how(model, scan)
    assert "\n" not in str(e.value)


def test_a_model_says_what_it_is(model):
    assert repr(model) == "heart in CT and MRI, 24×24×16 voxels at 7×7×8 mm, on cpu"
    assert isinstance(model, cssgan.Model)


# ---- loading

@pytest.fixture
def loads(monkeypatch):
    "How often a checkpoint was read."
    read, times = apply.load_checkpoint, []
    monkeypatch.setattr(apply, "load_checkpoint", lambda *args: times.append(args) or read(*args))
    return times


def test_what_has_not_changed_is_loaded_once(loads, checkpoint, scan, quick):
    model = cssgan.load(checkpoint)
    for name in (checkpoint, str(checkpoint), checkpoint.parent, checkpoint / ".." / "best"):
        assert cssgan.load(name) is model
    cssgan.segment(scan, checkpoint), cssgan.translate(scan, checkpoint)
    assert len(loads) == 1


def test_what_has_changed_is_loaded_again(loads, checkpoint, tmp_path):
    nets, about, _ = load_checkpoint(checkpoint)
    save_checkpoint(tmp_path / "best", nets, about)
    first = cssgan.load(tmp_path)
    with torch.no_grad(): next(nets.parameters()).add_(1)
    save_checkpoint(tmp_path / "best", nets, about)
    again = cssgan.load(tmp_path)
    assert again is not first and len(loads) == 2
    assert not torch.equal(next(again.nets.parameters()), next(first.nets.parameters()))


def test_only_a_few_are_kept(checkpoint, tmp_path):
    import shutil
    for k in range(7): cssgan.load(shutil.copytree(checkpoint, tmp_path / str(k)))
    assert len(apply._LOADED) == len(model_module._MODELS) == 4


def test_threads_load_once_and_give_what_one_thread_gives(loads, checkpoint, quick):
    torch.set_num_threads(1)
    scans = [phantom(seed, "CT", Grid((30, 26, 20), (7.0, 7.0, 8.0))) for seed in range(4)]
    start = threading.Barrier(4)
    def work(one):
        start.wait()
        return cssgan.segment(one, checkpoint).label, cssgan.translate(one, checkpoint).voxels
    with warnings.catch_warnings(), ThreadPoolExecutor(4) as pool:
        warnings.simplefilter("ignore")
        together = list(pool.map(work, scans))
    assert len(loads) == 1
    for one, (label, made) in zip(scans, together):
        assert np.array_equal(cssgan.segment(one, checkpoint).label, label)
        assert np.array_equal(cssgan.translate(one, checkpoint).voxels, made)


@pytest.mark.parametrize("device, says", [("tpu", "no device"), ("cuda:99", "PyTorch sees"), (3.5, "no device"),
                                          ("meta", "no device")])
def test_a_device_that_is_none(checkpoint, device, says):
    with pytest.raises(InputError, match=says): cssgan.load(checkpoint, device)


def test_the_packages_model_has_a_name(checkpoint, monkeypatch, tmp_path):
    monkeypatch.setattr(apply, "PRETRAINED", checkpoint)
    assert cssgan.load() is cssgan.load("pretrained") is cssgan.load(checkpoint) is cssgan.load_pretrained()
    monkeypatch.setattr(apply, "PRETRAINED", tmp_path / "none")
    with pytest.raises(InputError, match="without a trained model"): cssgan.load()


# ---- probabilities

def test_probabilities_add_up_and_agree_with_the_labels(model, scan):
    result = apply.run_segmentor(model, scan)
    sure = apply.probabilities_in_scan(result)
    assert sure.shape == (*scan.shape, 6) and sure.dtype == np.uint8 and (sure.sum(-1, dtype=int) == 255).all()
    looked = apply.back_to_scan(replace(result.found.seen, voxels=np.ones(result.found.seen.shape)), scan).voxels
    beside = maximum_filter(looked, 9) == -1  # and not between the last voxel and the grid's edge
    assert 0 < beside.mean() < .9 and (sure[beside, 0] == 255).all() and (sure[looked == 1] < 255).any()


@pytest.mark.parametrize("wrong", [3, b"runs", ["runs"]])
def test_what_is_no_checkpoint_is_named_with_its_cure(wrong, scan):
    with pytest.raises(InputError, match="the checkpoint is of the type .*: name its folder"): cssgan.load(wrong)
    with pytest.raises(InputError, match="name its folder"): cssgan.segment(scan, wrong)


def test_networks_and_models_in_the_place_of_a_checkpoint_are_refused_with_the_way(model, scan):
    for thing in (model, model.nets):
        with pytest.raises(InputError, match=r"model\.segment\(scan\)"): cssgan.segment(scan, thing)
