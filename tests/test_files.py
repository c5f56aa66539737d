"What cssgan.files promises: a scan comes in right or not at all, and what is written is whole."
import gzip
import os
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from cssgan.files import check_output, read_label, read_volume, write_label, write_volume
from cssgan.volumes import Volume, normalise
from scans import AFFINES, LPS, lopsided, refused, voxels


@pytest.fixture
def save(tmp_path):
    "Write an array with nibabel, as other programs do."
    def save(array, name="scan.nii.gz", affine=LPS, change=None, kind=nib.Nifti1Image):
        image = kind(array, affine)
        if change: change(image.header)
        image.to_filename(tmp_path / name)
        return tmp_path / name
    return save


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
