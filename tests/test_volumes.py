"What cssgan.volumes promises: a scan comes in right or not at all, and goes back exactly."
import gzip
import os
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from cssgan.volumes import (CT_WINDOW, IGNORE, PAPER_GRID, SMALL_GRID, Grid, Volume, VolumeError, back_to_scan, body_centre,
                            check_intensities, check_output, denormalise, heart_centre, intensity_range, label_to_scan, normalise, read_label,
                            read_volume, scale, to_grid, unscale, whole_scan_grid, with_label, write_label, write_volume)

LPS = np.array([[-2, 0, 0, 40], [0, -2.5, 0, 50], [0, 0, 3, -60], [0, 0, 0, 1.0]])


def turned(angles, spacing=(2, 2.5, 3), flips=(1, 1, 1), origin=(-30, 12.5, 100)):
    "An oblique affine."
    a, b, c = np.radians(angles)
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return nib.affines.from_matvec(z @ y @ x @ np.diag(np.array(spacing) * flips), origin)


AFFINES = {
    "plain": np.diag([2, 2.5, 3, 1.0]), "LPS": LPS, "oblique": turned((20, -10, 35)), "oblique, flipped": turned((-15, 12, 5), flips=(-1, -1, 1)),
    "sagittal slices": np.array([[0, 0, 3, -60], [-2, 0, 0, 40], [0, -2.5, 0, 50], [0, 0, 0, 1.0]]),
    "thick slices": turned((5, 4, -7), spacing=(1.2, 1.2, 6)), "left-handed": turned((0, 30, 0), flips=(-1, 1, 1)),
}


def voxels(shape=(24, 20, 16), modality="CT"):
    "A body of 40 HU in air, with a brighter, lopsided heart."
    index = np.moveaxis(np.indices(shape), 0, -1) / np.array(shape)
    v = np.where((((index - 0.5) / 0.42) ** 2).sum(-1) < 1, 40.0, -1000.0)
    v[(((index - (0.6, 0.4, 0.55)) / (0.2, 0.15, 0.2)) ** 2).sum(-1) < 1] = 300
    return v if modality == "CT" else (v + 1000) / 3


def lopsided(shape):
    "Five regions of which none is symmetric."
    label, n = np.zeros(shape, np.uint8), np.array(shape)
    for region, (low, high) in {1: ((.2, .2, .2), (.5, .45, .5)), 2: ((.5, .25, .25), (.7, .6, .6)), 3: ((.25, .5, .5), (.5, .8, .75)),
                                4: ((.55, .62, .4), (.8, .8, .8)), 5: ((.2, .2, .55), (.45, .48, .8))}.items():
        a, b = (n * low).astype(int), (n * high).astype(int)
        label[a[0]:b[0], a[1]:b[1], a[2]:b[2]] = region
    return label


@pytest.fixture
def save(tmp_path):
    "Write an array with nibabel, as other programs do."
    def save(array, name="scan.nii.gz", affine=LPS, change=None, kind=nib.Nifti1Image):
        image = kind(array, affine)
        if change: change(image.header)
        image.to_filename(tmp_path / name)
        return tmp_path / name
    return save


def refused(call, *args, says=""):
    "The message of the VolumeError that the call must raise: one line."
    with pytest.raises(VolumeError) as e: call(*args)
    message = str(e.value)
    assert "\n" not in message and says in message, message
    return message


# reading

@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64])
def test_reads_every_plain_number_type(save, name, dtype):
    v = read_volume(save(voxels().astype(dtype), name), "CT")
    assert v.voxels.dtype == np.float32 and np.array_equal(v.voxels, voxels()) and np.array_equal(v.affine, LPS) and v.axes == "LPS"


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_keeps_the_files_own_orientation(save, affine):
    path = save(voxels().astype(np.int16), affine=affine)
    v = read_volume(path, "CT")
    assert v.shape == (24, 20, 16) and np.array_equal(v.affine, nib.load(path).affine) and np.allclose(v.affine, affine, atol=1e-4)


def test_reads_both_byte_orders(tmp_path):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    nib.Nifti1Image(voxels().astype(np.int16), LPS, header).to_filename(tmp_path / "big.nii")
    assert (tmp_path / "big.nii").read_bytes()[:4] == bytes([0, 0, 1, 92])
    assert np.array_equal(read_volume(tmp_path / "big.nii", "CT").voxels, voxels())


def test_applies_slope_and_intercept(tmp_path):
    image = nib.Nifti1Image(((voxels() + 1024) / 2).astype(np.uint16), LPS)
    image.header.set_slope_inter(2, -1024)
    raw = image.dataobj
    with open(tmp_path / "scaled.nii", "wb") as f:
        head = image.header.copy()
        head["magic"], head["vox_offset"] = b"n+1", 352
        f.write(head.binaryblock + b"\0" * 4 + np.asarray(raw).tobytes(order="F"))
    assert np.array_equal(read_volume(tmp_path / "scaled.nii", "CT").voxels, voxels())


def test_reads_nifti2(save):
    assert np.array_equal(read_volume(save(voxels(), kind=nib.Nifti2Image), "CT").voxels, voxels())


def test_one_frame_of_four_dimensions_is_a_volume(save):
    assert read_volume(save(voxels()[..., None]), "CT").shape == (24, 20, 16)


@pytest.mark.parametrize("code", ["sform_code", "qform_code"])
def test_one_of_sform_and_qform_is_enough(save, code):
    def only(header):
        header.set_qform(AFFINES["oblique"], 1)
        header["sform_code"], header["qform_code"] = 0, 0
        header[code] = 1
    v = read_volume(save(voxels(), affine=AFFINES["oblique"], change=only), "CT")
    assert np.allclose(v.affine, AFFINES["oblique"], atol=1e-4)


def test_history_names_the_file_and_survives_it(save, tmp_path):
    v = read_volume(save(voxels()), "CT")
    write_volume(replace(v, history=v.history + ("translated: this is no real scan",)), tmp_path / "fake.nii.gz")
    assert read_volume(tmp_path / "fake.nii.gz", "CT").history == ("read scan.nii.gz", "translated: this is no real scan", "read fake.nii.gz")


# bad files

def test_missing_file_is_named(tmp_path): assert "none.nii does not exist" in refused(read_volume, tmp_path / "none.nii", "CT")


def test_folder_is_refused(tmp_path): refused(read_volume, tmp_path, "CT", says="is a folder")


@pytest.mark.parametrize("content", [b"", b"no scan", b"x" * 5000, gzip.compress(b""), gzip.compress(b"x" * 5000), b"\x1f\x8b"], ids=["empty", "short", "text", "empty gz", "gz of text", "stub of gz"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_not_a_nifti_file(tmp_path, content, name, capfd):
    (tmp_path / name).write_bytes(content)
    for read in (lambda p: read_volume(p, "CT"), read_label): refused(read, tmp_path / name, says=f"{name} cannot be read as NIfTI")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("keep", [0.05, 0.5, 0.99, 1.0])
def test_truncated_file_is_refused(save, name, keep):
    path = save(voxels().astype(np.int16), name)
    path.write_bytes(path.read_bytes()[:int(keep * path.stat().st_size) - 1])
    refused(read_volume, path, "CT", says="cannot be read")


def test_damage_inside_a_compressed_file_is_found(save):
    path = save(np.random.default_rng(0).integers(-1000, 400, (24, 20, 16)).astype(np.int16))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    refused(read_volume, path, "CT", says="cannot be read")


@pytest.mark.parametrize("shape, says", [((24, 20), "single slice"), ((24, 20, 1), "single slice"), ((24, 20, 16, 3), "3 frames"), ((12, 10, 8, 1, 2), "frames")], ids=str)
def test_not_one_volume(save, shape, says):
    refused(read_volume, save(np.resize(voxels(), shape)), "CT", says=says)


def test_colours_are_refused(save):
    colours = np.zeros((8, 8, 8), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    refused(read_volume, save(colours), "CT", says="colours")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300], ids=str)
def test_not_finite(save, bad):
    v = voxels()
    v[3, 4, 5] = bad
    refused(read_volume, save(v), "CT", says="NaN or infinite")


@pytest.mark.parametrize("modality", ["CT", "MRI"])
def test_constant_image(save, modality): refused(read_volume, save(np.full((9, 9, 9), -500.0)), modality, says="constant")


@pytest.mark.parametrize("value", [0, 0.01, 25, np.nan])
def test_absurd_spacing(save, value):
    def qform(header): header["sform_code"], header["qform_code"], header["pixdim"][2] = 0, 1, value
    def sform(header): header["srow_y"], header["pixdim"][2] = (0, value, 0, 0), 2.5
    for change in (qform, sform): refused(read_volume, _patched(save(voxels(), "scan.nii"), change), "CT", says="mm, expected")


def _patched(path, change):
    "Change a header on disk, past nibabel's repairs."
    raw = path.read_bytes()
    header = nib.Nifti1Header(raw[:348], check=False)
    change(header)
    path.write_bytes(header.binaryblock + raw[348:])
    return path


def test_singular_affine(save):
    def flat(header): header["srow_x"], header["srow_y"], header["srow_z"] = (2, 2, 0, 0), (0, 0, 0, 0), (0, 0, 3, 0)
    refused(read_volume, _patched(save(voxels(), "scan.nii"), lambda h: (flat(h), h.__setitem__("pixdim", [1, 2, 2, 3, 1, 1, 1, 1]))), "CT", says="singular")


def test_header_that_contradicts_itself(save):
    refused(read_volume, _patched(save(voxels(), "scan.nii"), lambda h: h["pixdim"].__setitem__(1, 1)), "CT", says="contradicts")


def test_unplaced_voxels(save):
    def unset(header): header["sform_code"] = header["qform_code"] = 0
    refused(read_volume, _patched(save(voxels(), "scan.nii"), unset), "CT", says="does not say where")


@pytest.mark.parametrize("spoil", [lambda v: v + 1024, lambda v: v / 1000, lambda v: (v + 1000) / 1300, lambda v: v * 10, lambda v: np.where(v == -1000, -32768, v)], ids=["no offset", "thousandths", "0 to 1", "tenfold", "padding"])
def test_ct_that_cannot_be_hu(save, spoil):
    message = refused(read_volume, save(spoil(voxels())), "CT", says="not in HU")
    assert "scan.nii.gz" in message


def test_ct_given_as_mri(save): refused(read_volume, save(voxels()), "MRI", says="use modality CT")


@pytest.mark.parametrize("modality", ["ct", "PET", "", None])
def test_unknown_modality(save, modality): refused(read_volume, save(voxels()), modality, says="use CT or MRI")


# labels

def test_label_values_come_as_they_are(save):
    for dtype in (np.int16, np.uint16, np.float32, np.uint8):
        values, affine = read_label(save((lopsided((24, 20, 16)) * 50).astype(dtype)))
        assert values.dtype == np.int32 and np.array_equal(values, lopsided((24, 20, 16)) * 50) and np.array_equal(affine, LPS)


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf, 1e12])
def test_label_of_no_whole_numbers(save, value):
    label = np.zeros((9, 9, 9))
    label[2, 2, 2] = value
    refused(read_label, save(label), says="no label map")


def test_label_on_another_grid():
    v = Volume(voxels(), LPS, "CT")
    label = lopsided(v.shape)
    assert with_label(v, label, LPS + 1e-5).label.dtype == np.uint8
    message = refused(with_label, v, label[:-1], LPS, "seg.nii")
    assert "seg.nii has 23×20×16 voxels" in message
    for other in (np.diag([-1, -1, 1, 1]) @ LPS, LPS + np.eye(4)[:, :1] * [0, 0, 0, 1], turned((1, 0, 0))): refused(with_label, v, label, other, says="lies elsewhere")


def test_label_value_that_no_table_knows():
    v = Volume(voxels(), LPS, "CT")
    assert "[205, 420]" in refused(with_label, v, np.where(lopsided(v.shape) > 2, 205, 420), LPS, "seg.nii")
    assert with_label(v, np.full(v.shape, IGNORE), LPS).label.max() == IGNORE


# writing

@pytest.mark.parametrize("name", ["out.nii", "out.nii.gz"])
@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_what_is_written_is_read_again(tmp_path, name, affine):
    affine = affine.astype(np.float32).astype(float)
    for modality, dtype in (("CT", np.int16), ("MRI", np.float32)):
        write_volume(Volume(voxels(modality=modality), affine, modality), tmp_path / name)
        image = nib.load(tmp_path / name)
        assert image.get_data_dtype() == dtype and np.array_equal(image.affine, affine) and image.header["sform_code"] == image.header["qform_code"] == 1
        assert np.array_equal(read_volume(tmp_path / name, modality).voxels, voxels(modality=modality).astype(np.float32))
    write_label(lopsided((24, 20, 16)), affine, tmp_path / name)
    assert nib.load(tmp_path / name).get_data_dtype() == np.uint8 and np.array_equal(read_label(tmp_path / name)[0], lopsided((24, 20, 16)))


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_affine_of_a_qform_only_scan_comes_back(save, tmp_path, affine):
    def only(header): header["sform_code"], header["qform_code"] = 0, 1
    path = save(voxels(), "scan.nii", affine)
    scan = read_volume(_patched(path, only), "CT")
    write_volume(scan, tmp_path / "out.nii.gz")
    assert np.abs(nib.load(tmp_path / "out.nii.gz").affine - nib.load(path).affine).max() < 1e-12


def test_equal_content_gives_equal_bytes(tmp_path):
    v = Volume(voxels(), LPS, "CT", history=("drawn",))
    for name in ("a.nii.gz", "b.nii.gz"): write_volume(v, tmp_path / name)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_ct_is_rounded_not_cut(tmp_path):
    v = Volume(np.resize([-1000.6, 99.6, 0.4, 40000.0], (4, 4, 4)), LPS, "CT")
    write_volume(v, tmp_path / "a.nii")
    assert np.unique(nib.load(tmp_path / "a.nii").get_fdata()).tolist() == [-1001, 0, 100, 32767]


@pytest.mark.parametrize("where", ["none/a.nii", "file/a.nii", "a.png", "folder", "folder.nii"])
def test_output_that_cannot_be_written(tmp_path, where):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.nii").mkdir()
    before = sorted(tmp_path.rglob("*"))
    v = Volume(voxels(), LPS, "CT")
    for call, args in ((check_output, ()), (lambda p: write_volume(v, p), ()), (lambda p: write_label(lopsided(v.shape), LPS, p), ())): refused(call, tmp_path / where, *args, says="cannot be written")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_the_right_to_write(tmp_path):
    tmp_path.chmod(0o555)
    refused(check_output, tmp_path / "a.nii", says="no right")
    tmp_path.chmod(0o755)


def test_nothing_half_written_when_the_disk_is_full(tmp_path, monkeypatch):
    (tmp_path / "a.nii.gz").write_bytes(b"old")
    def full(*_): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "replace", full)
    refused(write_volume, Volume(voxels(), LPS, "CT"), tmp_path / "a.nii.gz", says="No space left")
    assert [p.name for p in tmp_path.iterdir()] == ["a.nii.gz"] and (tmp_path / "a.nii.gz").read_bytes() == b"old"


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_all_of_it_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch, name):
    synced, move = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda f: synced.append(os.fstat(f).st_size))
    monkeypatch.setattr(os, "replace", lambda part, path: (synced.append(os.stat(part).st_size), move(part, path)))
    write_volume(Volume(voxels(), LPS, "CT"), tmp_path / name)
    assert synced == 2 * [(tmp_path / name).stat().st_size]


def test_what_makes_no_sense_is_not_written(tmp_path):
    v = Volume(voxels(), LPS, "CT")
    refused(write_volume, normalise(v), tmp_path / "a.nii", says="denormalise")
    refused(write_volume, replace(v, voxels=v.voxels * np.nan), tmp_path / "a.nii", says="NaN")
    for label in (lopsided(v.shape) + 0.5, lopsided(v.shape) - 1.0, lopsided(v.shape) + 300.0): refused(write_label, label, LPS, tmp_path / "a.nii", says="whole numbers")
    assert not list(tmp_path.iterdir())


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
        shift = nib.affines.apply_affine(scan.affine, np.argwhere(a).mean(0)) - nib.affines.apply_affine(scan.affine, np.argwhere(b).mean(0))
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
    assert np.allclose(heart_centre(spot), world)


def test_an_equal_grid_is_an_exact_copy():
    scan = labelled(Grid((60, 50, 40), (2, 2, 3)).affine((1, 2, 3)))
    there = to_grid(scan, Grid((60, 50, 40), (2, 2, 3)), centre=(1, 2, 3))
    for volume in (there, back_to_scan(there, scan)):
        assert np.array_equal(volume.voxels, scan.voxels) and np.array_equal(volume.label, scan.label) and np.array_equal(volume.affine, scan.affine)
    assert not np.shares_memory(there.voxels, scan.voxels)


@pytest.mark.parametrize("affine", [LPS, AFFINES["plain"], AFFINES["sagittal slices"]], ids=["LPS", "RAS", "sagittal"])
def test_turned_axes_alone_lose_nothing(affine):
    scan = labelled(affine)
    spacing = np.abs(affine[:3, :3]).max(1)
    there = to_grid(scan, *whole_scan_grid(scan, spacing))
    assert np.allclose(there.voxels.sum(dtype=float), scan.voxels.sum(dtype=float)) and sorted(there.shape) == sorted(scan.shape)
    back = back_to_scan(there, scan)
    assert np.allclose(back.voxels, scan.voxels, atol=1e-3) and np.array_equal(back.label, scan.label)


@pytest.mark.parametrize("modality, nothing", [("CT", -1024), ("MRI", 7)])
def test_padding_is_nothing(modality, nothing):
    v = np.random.default_rng(0).uniform(7, 50, (20, 20, 20)).astype(np.float32)
    v[0, 0, 0] = 7
    scan = Volume(v, np.eye(4), modality, np.ones((20, 20, 20), np.uint8))
    there = to_grid(scan, Grid((40, 40, 40), (1, 1, 1)))
    assert (there.voxels[:9] == nothing).all() and (there.label[:9] == 0).all() and (there.label[10:30, 10:30, 10:30] == 1).all()
    scaled = to_grid(normalise(scan), Grid((40, 40, 40), (1, 1, 1)))
    assert (scaled.voxels[:9] == -1).all()


@pytest.mark.parametrize("ignored", ["all", "a region", "none"])
def test_outside_a_scan_is_background_only_where_everything_was_annotated(ignored):
    scan = labelled(LPS, (20, 20, 20))
    label = np.full(scan.shape, IGNORE, np.uint8) if ignored == "all" else np.where(scan.label == 2, IGNORE if ignored == "a region" else 2, scan.label).astype(np.uint8)
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
        assert np.abs(heart_centre(scan) - body_centre(scan) - (-15, 30, 0)).max() < 1e-6
        assert np.abs(body_centre(normalise(scan)) - body_centre(scan)).max() < 4


def test_centre_without_label_is_the_middle_of_a_scan_that_was_framed():
    scan = replace(labelled(AFFINES["oblique"], (40, 40, 30)), label=None)
    middle = nib.affines.apply_affine(scan.affine, (np.array(scan.shape) - 1) / 2)
    assert np.allclose(heart_centre(scan), middle)


def test_label_of_nothing_but_ignored_voxels_has_no_heart():
    scan = labelled(LPS)
    assert np.array_equal(heart_centre(replace(scan, label=np.full(scan.shape, IGNORE, np.uint8))), heart_centre(replace(scan, label=None)))


# intensities

def test_scaling_is_fixed_for_ct_and_comes_back():
    v = Volume(voxels(), LPS, "CT")
    n = normalise(v, mri_range=(0, 1))
    assert n.range == CT_WINDOW and n.scaled and np.allclose(n.voxels, voxels() / 1000)
    assert np.allclose(denormalise(n).voxels, voxels(), atol=1e-3) and denormalise(n).scaled is False


def test_scaling_of_mri_follows_the_given_or_own_range():
    v = Volume(voxels(modality="MRI"), LPS, "MRI")
    assert normalise(v).range == intensity_range(v) and normalise(v, (0, 1000)).range == (0, 1000)
    assert normalise(replace(v, range=(3, 9))).range == (3, 9)


def test_scale_serves_tensors():
    torch = pytest.importorskip("torch")
    t = torch.tensor([-2000.0, -1000, 0, 500, 4000])
    s = scale(t, *CT_WINDOW)
    assert s.dtype == torch.float32 and s.tolist() == pytest.approx([-1, -1, 0, 0.5, 1], abs=1e-6)
    assert unscale(s, *CT_WINDOW).tolist() == pytest.approx([-1000, -1000, 0, 500, 1000], abs=1e-3)


def test_twice_is_refused():
    n = normalise(Volume(voxels(), LPS, "CT"))
    refused(normalise, n, says="once")
    refused(denormalise, denormalise(n), says="not scaled")
    refused(normalise, Volume(np.zeros((3, 3, 3)), LPS, "MRI"), says="no contrast")


def test_history_tells_what_was_done():
    history = denormalise(normalise(to_grid(labelled(LPS), SMALL_GRID, (0, 0, 0)))).history
    assert history == ("to grid 48×48×32 at 3.5×3.5×4 mm around (0.0, 0.0, 0.0) mm", "scaled from [-1000, 1000] HU to [-1, 1]", "scaled back to [-1000, 1000] HU")


def test_a_volume_is_checked_when_it_is_made():
    refused(Volume, np.zeros((3, 3)), np.eye(4), "CT", says="(X, Y, Z)")
    refused(Volume, np.zeros((3, 3, 3)), np.eye(3), "CT", says="(4, 4)")
    refused(Volume, np.zeros((3, 3, 3)), np.eye(4), "PET", says="use CT or MRI")
    refused(Volume, np.zeros((3, 3, 3)), np.eye(4), "CT", np.zeros((3, 3, 2), np.uint8), says="same grid")
    refused(Volume, np.zeros((3, 3, 3)), np.eye(4), "CT", np.full((3, 3, 3), 420), says="uint8")


# real scans

@pytest.mark.data
@pytest.mark.parametrize("file, modality", [("cta/ct.nii.gz", "CT"), ("lge_mr/mr.nii.gz", "MRI")])
def test_real_scan_goes_to_the_grid_and_back(real, tmp_path, file, modality):
    scan = read_volume(real / file, modality)
    check_intensities(to_grid(scan).voxels, modality)
    write_volume(back_to_scan(to_grid(scan), scan), tmp_path / "back.nii.gz")
    here, there = nib.load(real / file), nib.load(tmp_path / "back.nii.gz")
    assert here.shape == there.shape and np.array_equal(here.affine, there.affine)


@pytest.mark.data
def test_real_heart_is_found_without_a_label(real):
    scan = read_volume(real / "cta/ct.nii.gz", "CT")
    heart, affine = read_label(real / "cta/heart_mask.nii.gz")
    there = to_grid(with_label(scan, heart, affine), centre=heart_centre(scan))
    seen = (there.label > 0).sum() * np.prod(there.spacing) / ((heart > 0).sum() * np.prod(scan.spacing))
    assert np.linalg.norm(heart_centre(scan) - heart_centre(with_label(scan, heart, affine))) < 30 and seen > 0.9
