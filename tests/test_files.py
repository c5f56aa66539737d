"What cssgan.scans.files promises: a scan comes in right or not at all, and what is written is whole."
import gzip
import os
import shutil
import stat
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scans import AFFINES, LPS, lopsided, refused, voxels, write_dicom, write_slice

from cssgan.guard import InputWarning
from cssgan.scans.files import (
    check_output,
    made_here,
    name_paths,
    names_made_here,
    read_label,
    read_volume,
    write_label,
    write_names,
    write_volume,
)
from cssgan.scans.volumes import SMALL_GRID, Volume, back_to_scan, normalise, to_grid
from cssgan.task import as_task


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
    assert v.voxels.dtype == np.float32 and np.array_equal(v.voxels, voxels()) and np.array_equal(v.affine, LPS)
    assert v.axes == "LPS"


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_keeps_the_files_own_orientation(save, affine):
    path = save(voxels().astype(np.int16), affine=affine)
    v = read_volume(path, "CT")
    assert v.shape == (24, 20, 16) and np.array_equal(v.affine, nib.load(path).affine)
    assert np.allclose(v.affine, affine, atol=1e-4)


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


def test_history_survives_the_file_and_names_none(save, tmp_path):
    v = read_volume(save(voxels(), "MUSTERMANN HANS.nii.gz"), "CT")
    write_volume(replace(v, history=v.history + ("translated: this is no real scan",)),
                 tmp_path / "MUSTERMANN HANS.nii")
    history = read_volume(tmp_path / "MUSTERMANN HANS.nii", "CT").history
    assert history == ("read a NIfTI file", "translated: this is no real scan", "read a NIfTI file")
    assert b"MUSTERMANN" not in (tmp_path / "MUSTERMANN HANS.nii").read_bytes()


def test_comments_from_outside_are_printable_short_and_without_names(tmp_path):
    v = Volume(voxels(), LPS, "CT",
               history=("drawn: a\x1b[31m scan\nof two lines", "M\udcfcller", "x" * 900, "read MUSTERMANN HANS.nii.gz",
                        *["again"] * 300))
    write_volume(v, tmp_path / "a.nii")
    history = read_volume(tmp_path / "a.nii", "CT").history
    assert len(history) == 101 and all(line.isprintable() and len(line) <= 200 for line in history)
    write_volume(replace(v, history=v.history[:4]), tmp_path / "a.nii")
    assert read_volume(tmp_path / "a.nii", "CT").history[:2] == ("drawn: a\\x1b[31m scan of two lines", "M\ufffdller")
    assert read_volume(tmp_path / "a.nii", "CT").history[3] == "read a file"


# bad files

def test_missing_file_is_named(tmp_path):
    assert "none.nii does not exist" in refused(read_volume, tmp_path / "none.nii", "CT")


def test_folder_of_other_things_is_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("Dear colleague, " * 30)
    refused(read_volume, tmp_path, "CT", says="is a folder without DICOM files")
    refused(read_label, tmp_path, says="is a folder")


def test_what_may_not_be_read_is_said_in_one_line(save, monkeypatch, tmp_path):
    def forbidden(path, *_): raise PermissionError(13, "Permission denied", str(path))
    path = save(voxels())
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr("pathlib.Path.iterdir", forbidden)
    refused(read_volume, path, "CT", says="scan.nii.gz may not be read")
    refused(read_volume, tmp_path, "CT", says="cannot be read (Permission denied)")


def test_half_of_a_pair_is_refused(tmp_path):
    nib.Nifti1Pair(voxels(), LPS).to_filename(tmp_path / "a.img")
    for name in ("a.img", "a.hdr"): refused(read_volume, tmp_path / name, "CT", says="half of a pair")


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.nii")
    for call in (lambda p: read_volume(p, "CT"), read_label, check_output,
                 lambda p: write_volume(Volume(voxels(), LPS, "CT"), p)):
        refused(call, tmp_path / "pipe.nii", says="pipe.nii is a pipe")
    assert not made_here(tmp_path / "pipe.nii")


@pytest.mark.parametrize("name", ["SCAN.NII", "SCAN.NII.GZ", "scan of the heart.nii.gz", "Schädel (2).nii"])
def test_names_with_capitals_spaces_and_accents(tmp_path, name):
    (tmp_path / "one folder").mkdir()
    path = tmp_path / "one folder" / name
    write_volume(Volume(voxels(), LPS, "CT"), path)
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == name.lower().endswith("gz")
    assert np.array_equal(read_volume(path, "CT").voxels, voxels())
    assert read_volume(str(path), "CT").history == ("read a NIfTI file",)


def test_content_counts_and_not_the_ending(save, tmp_path):
    shutil.copy(save(voxels(), "a.nii.gz"), tmp_path / "b.nii")
    shutil.copy(save(voxels(), "a.nii"), tmp_path / "c.nii.gz")
    for name in ("b.nii", "c.nii.gz"): assert np.array_equal(read_volume(tmp_path / name, "CT").voxels, voxels())


@pytest.mark.parametrize("content", [
    b"", b"no scan", b"x" * 5000, gzip.compress(b"", mtime=0), gzip.compress(b"x" * 5000, mtime=0), b"\x1f\x8b"],
    ids=["empty", "short", "text", "empty gz", "gz of text", "stub of gz"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_not_a_nifti_file(tmp_path, content, name, capfd):
    (tmp_path / name).write_bytes(content)
    for read in (lambda p: read_volume(p, "CT"), read_label):
        refused(read, tmp_path / name, says=f"{name} cannot be read as NIfTI")
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


@pytest.mark.parametrize("shape, says",
                         [((24, 20), "single slice"), ((24, 20, 1), "single slice"), ((24, 20, 16, 3), "3 frames"),
                          ((12, 10, 8, 1, 2), "frames")], ids=str)
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
def test_constant_image(save, modality):
    refused(read_volume, save(np.full((9, 9, 9), -500.0)), modality, says="constant")


@pytest.mark.parametrize("value", [0, 0.01, 25, np.nan])
def test_absurd_spacing(save, value):
    def qform(header): header["sform_code"], header["qform_code"], header["pixdim"][2] = 0, 1, value
    def sform(header): header["srow_y"], header["pixdim"][2] = (0, value, 0, 0), 2.5
    for change in (qform, sform):
        refused(read_volume, _patched(save(voxels(), "scan.nii"), change), "CT", says="mm, expected")


def _patched(path, change):
    "Change a header on disk, past nibabel's repairs."
    raw = path.read_bytes()
    header = nib.Nifti1Header(raw[:348], check=False)
    change(header)
    path.write_bytes(header.binaryblock + raw[348:])
    return path


def test_singular_affine(save):
    def flat(header): header["srow_x"], header["srow_y"], header["srow_z"] = (2, 2, 0, 0), (0, 0, 0, 0), (0, 0, 3, 0)
    path = _patched(save(voxels(), "scan.nii"), lambda h: (flat(h), h.__setitem__("pixdim", [1, 2, 2, 3, 1, 1, 1, 1])))
    refused(read_volume, path, "CT", says="singular")


def test_header_that_contradicts_itself(save):
    refused(read_volume, _patched(save(voxels(), "scan.nii"), lambda h: h["pixdim"].__setitem__(1, 1)), "CT",
            says="contradicts")


def test_unplaced_voxels(save):
    def unset(header): header["sform_code"] = header["qform_code"] = 0
    refused(read_volume, _patched(save(voxels(), "scan.nii"), unset), "CT", says="does not say where")


@pytest.mark.parametrize("spoil", [
    lambda v: v + 1024, lambda v: v / 1000, lambda v: (v + 1000) / 1300, lambda v: v * 10,
    lambda v: np.where(v == -1000, -32768, v)], ids=["no offset", "thousandths", "0 to 1", "tenfold", "padding"])
def test_ct_that_cannot_be_hu(save, spoil):
    message = refused(read_volume, save(spoil(voxels())), "CT", says="not in HU")
    assert "scan.nii.gz" in message


def test_ct_given_as_mri(save): refused(read_volume, save(voxels()), "MRI", says="use modality CT")


@pytest.mark.parametrize("modality", ["ct", "PET", "", None])
def test_unknown_modality(save, modality): refused(read_volume, save(voxels()), modality, says="use CT or MRI")


def test_ct_given_as_a_domain_of_a_task_that_knows_no_ct(save):
    domains = [{"name": name, "percentiles": [1, 99], "check": "not HU"} for name in ("T1", "T2")]
    brain = as_task({"name": "brain", "domains": domains, "regions": ["background", "liver"],
                     "grid": {"shape": [16, 16, 16], "spacing": [4, 4, 4]}})
    refused(read_volume, save(voxels()), "T1", brain, says="not like T1: name its own modality")
    refused(read_volume, save(voxels()), "CT", brain, says="use T1 or T2")


def test_names_and_colours_stand_beside_a_label_map(tmp_path):
    task = as_task({"name": "two", "domains": [{"name": name, "percentiles": [1, 99]} for name in "AB"],
                    "regions": ["background", "right kidney", "Leber"], "colours": ["#010203", "#ff0a00"],
                    "grid": {"shape": [16, 16, 16], "spacing": [4, 4, 4]}})
    write_names(task, tmp_path / "a.b.NII.gz")
    slicer, snap = name_paths(tmp_path / "a.b.NII.gz")
    assert (slicer.name, snap.name) == ("a.b.ctbl", "a.b_itksnap.txt") and all(map(names_made_here, (slicer, snap)))
    assert slicer.read_text().splitlines()[3:] == ["0 background 0 0 0 0", "1 right_kidney 1 2 3 255",
                                                   "2 Leber 255 10 0 255"]
    rows = [line.split(maxsplit=7) for line in snap.read_text().splitlines() if line[0] != "#"]
    assert [row[7] for row in rows] == ['"background"', '"right kidney"', '"Leber"'] and rows[1][:4] == list("1123")
    (tmp_path / "own.ctbl").write_text("# my own table")
    assert not names_made_here(tmp_path / "own.ctbl") and not names_made_here(tmp_path / "none.ctbl")


# labels

def test_label_values_come_as_they_are(save):
    for dtype in (np.int16, np.uint16, np.float32, np.uint8):
        values, affine = read_label(save((lopsided((24, 20, 16)) * 50).astype(dtype)))
        assert values.dtype == np.int32 and np.array_equal(values, lopsided((24, 20, 16)) * 50)
        assert np.array_equal(affine, LPS)


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
        assert image.get_data_dtype() == dtype and np.array_equal(image.affine, affine)
        assert image.header["sform_code"] == image.header["qform_code"] == 1
        assert np.array_equal(read_volume(tmp_path / name, modality).voxels,
                              voxels(modality=modality).astype(np.float32))
    write_label(lopsided((24, 20, 16)), affine, tmp_path / name)
    assert nib.load(tmp_path / name).get_data_dtype() == np.uint8
    assert np.array_equal(read_label(tmp_path / name)[0], lopsided((24, 20, 16)))


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_affine_of_a_qform_only_scan_comes_back(save, tmp_path, affine):
    def only(header): header["sform_code"], header["qform_code"] = 0, 1
    path = save(voxels(), "scan.nii", affine)
    scan = read_volume(_patched(path, only), "CT")
    write_volume(scan, tmp_path / "out.nii.gz")
    assert np.abs(nib.load(tmp_path / "out.nii.gz").affine - nib.load(path).affine).max() < 1e-12


PLACE = ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
         "srow_x", "srow_y", "srow_z")


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("codes", [(1, 2), (1, 1), (0, 2), (2, 0), (1, 4), (3, 0)], ids=str)
def test_a_result_says_where_it_lies_in_the_scans_own_words(save, tmp_path, affine, codes):
    def both(header):
        header.set_sform(affine, codes[1])
        header.set_qform(affine, codes[0])
        header["qoffset_x"] += np.float32(0.01)  # as some programs round
    path = _patched(save(voxels().astype(np.int16), "scan.nii", affine), both)
    scan = read_volume(path, "CT")
    seen = to_grid(scan, SMALL_GRID)
    assert seen.forms is None
    write_volume(back_to_scan(seen, scan), tmp_path / "back.nii.gz")
    write_label(lopsided(scan.shape), scan.affine, tmp_path / "label.nii.gz", forms=scan.forms)
    here = nib.load(path)
    for name in ("back.nii.gz", "label.nii.gz"):
        there = nib.load(tmp_path / name)
        assert all(np.array_equal(here.header[field], there.header[field]) for field in PLACE)
        assert np.array_equal(here.header["pixdim"][:4], there.header["pixdim"][:4])
        assert np.array_equal(here.affine, there.affine) and made_here(tmp_path / name)
        read_label(tmp_path / name)


def test_words_that_no_longer_hold_are_not_written(save, tmp_path):
    scan = read_volume(save(voxels()), "CT")
    for affine in (AFFINES["oblique"], np.diag([1, 1, -1, 1]) @ LPS):
        write_volume(replace(scan, affine=affine), tmp_path / "a.nii")
        assert np.allclose(nib.load(tmp_path / "a.nii").affine, affine, atol=1e-5)
        assert np.allclose(read_volume(tmp_path / "a.nii", "CT").affine, affine, atol=1e-5)


@pytest.mark.parametrize("degrees", [0, 0.001, 0.01, 0.03, 0.05, 0.07, 0.1, 1])
def test_forms_that_differ_by_rounding_alone_agree(save, degrees):
    for around in np.eye(3):
        angles = nib.eulerangles.euler2mat(*np.radians(degrees) * around)
        affine = nib.affines.from_matvec(angles @ np.diag([-0.7, -0.7, 0.7]), (180, 190, -800))
        def both(header):
            header.set_sform(affine, 1)
            header.set_qform(affine, 1)
        read_label(_patched(save(np.zeros((500, 500, 2), np.uint8), "label.nii", affine), both))


def test_a_slope_of_nan_is_taken_as_none_and_said(save):
    path = _patched(save(voxels().astype(np.int16), "scan.nii"),
                    lambda h: (h.__setitem__("scl_slope", np.nan), h.__setitem__("scl_inter", np.nan)))
    with pytest.warns(InputWarning, match="scan.nii has a slope of nan"): v = read_volume(path, "CT")
    assert np.array_equal(v.voxels, voxels())
    _patched(path, lambda h: (h.__setitem__("scl_slope", 0), h.__setitem__("scl_inter", 7)))
    assert np.array_equal(read_volume(path, "CT").voxels, voxels())


def test_voxel_sizes_of_slanted_slices_may_be_their_sides_or_their_distance(save):
    slanted = LPS.copy()
    slanted[1, 2] = 1.5
    def sizes(z):
        return lambda h: (h.set_sform(slanted, 1), h.__setitem__("qform_code", 0), h["pixdim"].__setitem__(3, z))
    for z in (3, np.hypot(3, 1.5)):
        assert np.allclose(read_volume(_patched(save(voxels(), "scan.nii", slanted), sizes(z)), "CT").affine, slanted)
    refused(read_volume, _patched(save(voxels(), "scan.nii", slanted), sizes(2.5)), "CT", says="contradicts")


@pytest.mark.parametrize("name", [os.fsdecode(b"M\xfcller.nii.gz"), "n" * 248 + ".nii.gz", "n" * 251 + ".nii"],
                         ids=["Latin-1", "255 bytes, packed", "255 bytes"])
def test_whatever_the_file_is_called_it_is_written_and_read(tmp_path, name):
    write_volume(Volume(voxels(), LPS, "CT", history=(f"from {name}",)), tmp_path / name)
    assert np.array_equal(read_volume(tmp_path / name, "CT").voxels, voxels()) and made_here(tmp_path / name)
    assert os.listdir(tmp_path) == [name]
    (tmp_path / name).write_bytes(b"no scan")
    assert refused(read_volume, tmp_path / name, "CT").isprintable()


def test_half_a_file_of_a_process_that_has_gone_is_removed(tmp_path, monkeypatch):
    v = Volume(voxels(), LPS, "CT")
    def killed(*_): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr("pathlib.Path.unlink", lambda *_, **__: None)
        m.setattr(os, "replace", killed)
        m.setattr(os, "getpid", lambda: 2**22 + 7)  # above what a system gives
        with pytest.raises(KeyboardInterrupt): write_volume(v, tmp_path / "a.nii")
    assert len(os.listdir(tmp_path)) == 1
    write_volume(v, tmp_path / "a.nii")
    assert os.listdir(tmp_path) == ["a.nii"]


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
    for call, args in ((check_output, ()), (lambda p: write_volume(v, p), ()),
                       (lambda p: write_label(lopsided(v.shape), LPS, p), ())):
        refused(call, tmp_path / where, *args, says="cannot be written")
    assert sorted(tmp_path.rglob("*")) == before


def test_write_protected_file_is_kept(tmp_path, monkeypatch):
    (tmp_path / "a.nii").write_bytes(b"precious")
    monkeypatch.setattr(os, "access", lambda path, right: os.path.isdir(path) or right == os.R_OK)
    refused(write_volume, Volume(voxels(), LPS, "CT"), tmp_path / "a.nii", says="write-protected")
    assert (tmp_path / "a.nii").read_bytes() == b"precious"


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
    monkeypatch.setattr(os, "fsync", lambda f: stat.S_ISREG(os.fstat(f).st_mode) and synced.append(os.fstat(f).st_size))
    monkeypatch.setattr(os, "replace", lambda part, path: (synced.append(os.stat(part).st_size), move(part, path)))
    write_volume(Volume(voxels(), LPS, "CT"), tmp_path / name)
    assert synced == 2 * [(tmp_path / name).stat().st_size]


def test_what_makes_no_sense_is_not_written(tmp_path):
    v = Volume(voxels(), LPS, "CT")
    refused(write_volume, normalise(v), tmp_path / "a.nii", says="denormalise")
    refused(write_volume, replace(v, voxels=v.voxels * np.nan), tmp_path / "a.nii", says="NaN")
    for label in (lopsided(v.shape) + 0.5, lopsided(v.shape) - 1.0, lopsided(v.shape) + 300.0):
        refused(write_label, label, LPS, tmp_path / "a.nii", says="whole numbers")
    assert not list(tmp_path.iterdir())


# DICOM

@pytest.fixture
def series(tmp_path): return write_dicom(tmp_path / "series", voxels(), LPS)


def at(volume, points):
    "The values at world points, each of which must be the centre of a voxel."
    index = nib.affines.apply_affine(np.linalg.inv(volume.affine), points)
    assert np.abs(index - np.rint(index)).max() < 1e-6
    return volume.voxels[tuple(np.rint(index).astype(int).T)]


@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_every_voxel_of_a_series_lies_where_its_slice_says(tmp_path, affine):
    array = np.random.default_rng(0).integers(-1000, 800, (7, 6, 5)).astype(float)
    v = read_volume(write_dicom(tmp_path / "series", array, affine), "CT")
    points = nib.affines.apply_affine(affine, np.moveaxis(np.indices(array.shape), 0, -1).reshape(-1, 3))
    assert v.shape == array.shape and np.array_equal(at(v, points), array.ravel())
    assert np.allclose(v.spacing, nib.affines.voxel_sizes(affine))


def test_the_order_of_files_means_nothing(series, tmp_path):
    before = read_volume(series, "CT")
    for path in list(series.iterdir()): path.rename(series / f"x{9999 - int(path.name[2:])}.dcm")
    after = read_volume(series, "CT")
    assert np.array_equal(before.voxels, after.voxels) and np.array_equal(before.affine, after.affine)
    assert np.array_equal(before.voxels, voxels())


def test_slope_and_intercept_of_a_series(tmp_path):
    v = read_volume(write_dicom(tmp_path / "a", np.rint(voxels() / 2) * 2, LPS, t0028_1052="-1024", t0028_1053="2"),
                    "CT")
    assert np.array_equal(v.voxels, voxels()) and v.voxels.dtype == np.float32


def patch(path, old, new):
    "Change bytes of a file that must have them."
    assert old in (raw := path.read_bytes()) and len(old) == len(new)
    path.write_bytes(raw.replace(old, new))


def test_every_slice_may_have_its_own_slope(tmp_path):
    folder = write_dicom(tmp_path / "a", voxels(), LPS, t0028_1052="0", t0028_1053="10")
    slope = b"\x28\0\x53\x10\2\0\0\0"
    for path in folder.glob("*[02468]"): patch(path, slope + b"10", slope + b".5")  # SimpleITK writes whole slopes only
    slopes = [0.05 if (7 * z + 3) % 2 == 0 else 1 for z in range(16)]
    assert np.allclose(read_volume(folder, "CT").voxels, voxels() * slopes)


def test_a_series_knows_its_modality(series, tmp_path):
    mr = write_dicom(tmp_path / "mr", voxels(modality="MRI"), LPS, t0008_0060="MR")
    assert read_volume(series).modality == "CT" and read_volume(mr).modality == "MRI"
    assert read_volume(mr, "MRI").history == ("read 16 DICOM slices",)
    refused(read_volume, series, "MRI", says="is CT by its DICOM tag, not MRI: use modality CT")
    refused(read_volume, mr, "CT", says="is MR by its DICOM tag, not CT: use modality MRI")
    refused(read_volume, series, "PET", says="use CT or MRI")


def test_the_slant_of_a_tilted_gantry_is_kept(tmp_path):
    slanted = LPS.copy()
    slanted[1, 2] = 0.8
    v = read_volume(write_dicom(tmp_path / "series", voxels(), slanted), "CT")
    assert np.allclose(v.affine, slanted)
    write_volume(v, tmp_path / "out.nii")
    image = nib.load(tmp_path / "out.nii")
    assert np.allclose(image.affine, slanted) and image.header["qform_code"] == 0
    assert np.allclose(read_volume(tmp_path / "out.nii", "CT").affine, slanted)


@pytest.mark.parametrize("affine", [a for name, a in AFFINES.items()], ids=AFFINES)
def test_what_is_written_lies_over_the_series_in_another_program(tmp_path, affine):
    sitk = pytest.importorskip("SimpleITK")
    folder = write_dicom(tmp_path / "series", voxels(), affine)
    v = read_volume(folder, "CT")
    write_volume(v, tmp_path / "out.nii.gz")
    write_label((v.voxels > 200).astype(int), v.affine, tmp_path / "label.nii.gz")
    out, label = (sitk.ReadImage(str(tmp_path / name)) for name in ("out.nii.gz", "label.nii.gz"))
    for path in folder.iterdir():
        plane = sitk.ReadImage(str(path))
        for index in ((0, 0, 0), (23, 0, 0), (5, 19, 0), (13, 7, 0)):
            point = plane.TransformIndexToPhysicalPoint(index)
            there = out.TransformPhysicalPointToContinuousIndex(point)
            assert np.abs(np.array(there) - np.rint(there)).max() < 1e-3
            assert out[out.TransformPhysicalPointToIndex(point)] == plane[index]
            assert label[label.TransformPhysicalPointToIndex(point)] == (plane[index] > 200)


def test_other_files_in_the_folder_are_left_alone(series, tmp_path, capfd):
    (series / "letter.txt").write_text("Dear colleague, " * 30)
    (series / ".DS_Store").write_bytes(bytes(600))
    (series / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(100))
    (series / "deeper").mkdir()
    write_volume(Volume(voxels(), LPS, "CT"), series / "earlier.nii.gz")
    assert np.array_equal(read_volume(series, "CT").voxels, voxels()) and capfd.readouterr() == ("", "")


def test_a_folder_with_spaces_and_accents(series, tmp_path):
    series.rename(tmp_path / "Schädel CT 2")
    assert np.array_equal(read_volume(tmp_path / "Schädel CT 2", "CT").voxels, voxels())


def test_the_name_of_the_folder_stays_out_of_what_is_written(series, tmp_path):
    series.rename(tmp_path / "MUSTERMANN HANS")
    write_volume(read_volume(tmp_path / "MUSTERMANN HANS", "CT"), tmp_path / "a.nii")
    assert b"MUSTERMANN" not in (tmp_path / "a.nii").read_bytes()


# bad series

def test_two_series_are_listed(series):
    for z in range(3):
        write_slice(series / f"scout{z}", np.full((9, 9), z, np.int16), LPS, z, t0020_000e="1.2.4",
                    t0008_103e="Sch.del")
    for path in series.glob("scout*"): patch(path, b"Sch.del", b"Sch\xe4del")
    refused(read_volume, series, "CT", says="holds 2 series (Heart: 16 CT slices; Sch\ufffddel: 3 CT slices): put the")


@pytest.mark.parametrize("lost", [1, 8, 14])
def test_a_lost_slice_is_noticed(series, lost):
    (series / f"IM{(7 * lost + 3) % 16:04}").unlink()
    refused(read_volume, series, "CT", says="uneven distances (3 to 6 mm; is one missing?)")


def test_slices_that_do_not_lie_in_a_row(series):
    shifted = LPS.copy()
    shifted[0, 3] += 1
    write_slice(series / "IM0005", voxels()[:, :, 14].astype(np.int16), shifted, 14)
    refused(read_volume, series, "CT", says="uneven")


def test_two_images_of_one_place(series):
    shutil.copy(series / "IM0005", series / "IM0005 (1)")
    refused(read_volume, series, "CT", says="several images of one place")


def test_slices_of_several_sizes_or_directions(series, tmp_path):
    write_slice(series / "IM0005", voxels()[:, :-1, 14].astype(np.int16), LPS, 14)
    refused(read_volume, series, "CT", says="different sizes or directions")
    write_slice(series / "IM0005", voxels()[:, :, 14].astype(np.int16), AFFINES["oblique"], 14)
    refused(read_volume, series, "CT", says="different sizes or directions")


def test_a_single_slice(tmp_path):
    refused(read_volume, write_dicom(tmp_path / "a", voxels()[:, :, :1], LPS), "CT",
            says="a single slice (a localiser?)")
    refused(read_volume, tmp_path / "a" / "IM0000", "CT", says="name the folder that holds its series")
    refused(read_label, tmp_path / "a" / "IM0000", says="give the label map as a NIfTI or NRRD file")


def test_colours_in_a_series(tmp_path):
    (tmp_path / "a").mkdir()
    write_slice(tmp_path / "a" / "shot.dcm", np.zeros((9, 8, 3), np.uint8), LPS, t0008_0060="OT")
    refused(read_volume, tmp_path / "a", "CT", says="shot.dcm holds colours")


def test_many_frames_in_a_file(tmp_path):
    import SimpleITK as sitk
    (tmp_path / "a").mkdir()
    image = sitk.GetImageFromArray(voxels().astype(np.int16))
    image.SetMetaData("0008|0060", "CT")
    sitk.WriteImage(image, str(tmp_path / "a" / "all.dcm"))
    refused(read_volume, tmp_path / "a", "CT", says="all.dcm holds 24 frames")


@pytest.mark.parametrize("modality", ["PT", "US"])
def test_a_series_of_another_scanner(tmp_path, modality):
    refused(read_volume, write_dicom(tmp_path / "a", voxels(), LPS, t0008_0060=modality), "CT",
            says=f"holds {modality}: give a series of CT or MR")


def test_a_slice_that_does_not_say_where_it_lies(series):
    patch(series / "IM0005", b"\x28\0\x30\0", b"\x28\0\x32\0")  # no pixel spacing
    refused(read_volume, series, "CT", says="IM0005 does not say where it lies")


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_a_damaged_slice_is_named(series, keep, capfd):
    raw = (series / "IM0005").read_bytes()
    (series / "IM0005").write_bytes(raw[:int(keep * len(raw))])
    refused(read_volume, series, "CT", says="IM0005 is damaged")
    assert capfd.readouterr() == ("", "")


def test_a_series_that_is_not_in_hu(tmp_path):
    refused(read_volume, write_dicom(tmp_path / "a", voxels() + 1024, LPS), "CT", says="not in HU")


# NRRD and MetaImage

@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
@pytest.mark.parametrize("name", ["scan.nrrd", "SCAN.NHDR", "scan.mha", "scan.mhd"])
def test_other_formats_lie_where_nifti_does(save, tmp_path, name, affine):
    sitk = pytest.importorskip("SimpleITK")
    sitk.WriteImage(sitk.ReadImage(str(save(voxels().astype(np.int16), affine=affine))), str(tmp_path / name.lower()))
    (tmp_path / name.lower()).rename(tmp_path / name)
    v = read_volume(tmp_path / name, "CT")
    assert np.array_equal(v.voxels, voxels()) and np.allclose(v.affine, affine, atol=1e-4)
    assert v.history == ("read an NRRD file" if "nrrd" in name or "NHDR" in name else "read a MetaImage file",)


def test_simpleitk_keeps_its_voice(series):
    sitk = pytest.importorskip("SimpleITK")
    for loud in (True, False):
        sitk.ProcessObject.SetGlobalWarningDisplay(loud)
        read_volume(series)
        assert sitk.ProcessObject.GetGlobalWarningDisplay() is loud
    sitk.ProcessObject.SetGlobalWarningDisplay(True)


def test_every_space_of_a_patient_is_read_as_itk_reads_it(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    data = voxels().astype(">i2").tobytes(order="F")
    for space in ("left-posterior-superior", "RAS", "left-anterior-superior", "LPS"):
        header = (f"NRRD0005\n# a comment\ntype: int16_t\ndimension: 3\nspace: {space}\nsizes: 24 20 16\n"
                  "space directions: (0,2,0) (1.9,0,.3) (-.4,0,3)\nkinds: domain domain domain\nendian: big\n"
                  "encoding: raw\nspace origin: (1,2,3)\nspace units: \"mm\" \"mm\" \"mm\"\nWho:=nobody\n\n")
        (tmp_path / "a.nrrd").write_bytes(header.encode() + data)
        image, v = sitk.ReadImage(str(tmp_path / "a.nrrd")), read_volume(tmp_path / "a.nrrd", "CT")
        assert np.array_equal(v.voxels, voxels())
        for index in ((0, 0, 0), (23, 0, 0), (5, 19, 0), (3, 4, 15)):
            assert np.allclose(nib.affines.apply_affine(v.affine, index),
                               np.array(image.TransformIndexToPhysicalPoint(index)) * (-1, -1, 1), atol=1e-4)


def test_compressed_and_plain_files_of_other_formats_are_alike(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    for dtype in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"):
        image = sitk.GetImageFromArray(lopsided((24, 20, 16)).T.astype(dtype))
        for name in ("a.mha", "a.mhd", "a.nrrd", "a.nhdr"):
            for packed in (True, False):
                sitk.WriteImage(image, str(tmp_path / name), packed)
                assert np.array_equal(read_label(tmp_path / name)[0], lopsided((24, 20, 16))), (dtype, name, packed)


def test_labels_of_other_formats(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    write_label(lopsided((24, 20, 16)), LPS, tmp_path / "a.nii")
    sitk.WriteImage(sitk.ReadImage(str(tmp_path / "a.nii")), str(tmp_path / "a.seg.nrrd"))
    values, affine = read_label(tmp_path / "a.seg.nrrd")
    assert values.dtype == np.int32 and np.array_equal(values, lopsided((24, 20, 16))) and np.allclose(affine, LPS)


@pytest.mark.parametrize("spoil, says", [
    (lambda raw: raw[:-50], "cannot be read"), (lambda raw: b"no scan", "cannot be read"),
    (lambda raw: b"", "cannot be read"),
    (lambda raw: raw.replace(b"space: left-posterior-superior", b"space dimension: 3"), "does not say where")])
def test_bad_nrrd(save, tmp_path, spoil, says):
    sitk = pytest.importorskip("SimpleITK")
    sitk.WriteImage(sitk.ReadImage(str(save(voxels()))), str(tmp_path / "a.nrrd"))
    (tmp_path / "a.nrrd").write_bytes(spoil((tmp_path / "a.nrrd").read_bytes()))
    refused(read_volume, tmp_path / "a.nrrd", "CT", says=says)


def test_layers_and_frames_of_other_formats_are_refused(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(voxels())
    sitk.WriteImage(sitk.Compose(image, image), str(tmp_path / "layers.nrrd"))
    sitk.WriteImage(sitk.JoinSeries([image, image]), str(tmp_path / "frames.nrrd"))
    refused(read_volume, tmp_path / "layers.nrrd", "CT", says="several layers")
    refused(read_volume, tmp_path / "frames.nrrd", "CT", says="2 frames")


# real scans

@pytest.mark.data
def test_every_real_scan_is_still_read(real):
    for path in sorted(real.glob("*/*_mr.nii.gz")) + [real / "lge_mr/mr.nii.gz"]: assert read_volume(path, "MRI").forms
    for path in [*sorted(real.glob("*/*_label.nii.gz")), *sorted(real.glob("hearts/*.nii.gz")),
                 real / "cta/heart_mask.nii.gz", real / "rodero01/labels_1mm.nii.gz"]:
        assert read_label(path)[0].any()


@pytest.mark.data
def test_real_series_is_what_its_slices_say(real):
    sitk = pytest.importorskip("SimpleITK")
    v = read_volume(real / "ct_dicom", "CT")
    assert v.shape == (512, 512, 20) and np.allclose(v.spacing, (0.9765625, 0.9765625, 2)) and v.axes == "LPS"
    assert v.history == ("read 20 DICOM slices",)
    files = sorted((real / "ct_dicom").glob("CT*"))
    depths = []
    for path in files:
        plane = sitk.ReadImage(str(path))
        x, y, z = (float(o) for o in plane.GetMetaData("0020|0032").split("\\"))
        depths.append(z)
        i = np.linalg.inv(v.affine) @ (-x, -y, z, 1)
        assert np.abs(i[:3] - np.rint(i[:3])).max() < 1e-9
        assert np.array_equal(v.voxels[:, :, round(i[2])], sitk.GetArrayFromImage(plane)[0].T)
    assert depths != sorted(depths)


@pytest.mark.data
def test_real_series_is_what_another_reader_makes_of_it(real, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(real / "ct_dicom"))
    (reader := sitk.ImageSeriesReader()).SetFileNames(names)
    theirs, v = reader.Execute(), read_volume(real / "ct_dicom")
    write_volume(v, tmp_path / "out.nii.gz")
    ours = sitk.ReadImage(str(tmp_path / "out.nii.gz"))
    assert np.array_equal(sitk.GetArrayViewFromImage(theirs), sitk.GetArrayViewFromImage(ours))
    assert theirs.GetSize() == ours.GetSize()
    for get in ("GetOrigin", "GetSpacing", "GetDirection"):
        assert np.allclose(getattr(theirs, get)(), getattr(ours, get)(), atol=1e-4)


@pytest.mark.data
def test_a_slice_missing_from_a_real_series_is_noticed(real, tmp_path):
    shutil.copytree(real / "ct_dicom", tmp_path / "a", copy_function=shutil.copyfile)
    sorted((tmp_path / "a").glob("CT*"))[9].unlink()
    refused(read_volume, tmp_path / "a", "CT", says="uneven")
