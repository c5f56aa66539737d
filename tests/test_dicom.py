"What cssgan.scans.dicom promises: every entry of a folder is accounted for, and its geometry is read as it stands."
import gzip
import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pydicom
import pytest
from dicoms import SHAPE, STEP, as_bytes, hu, jpeg_series, series, slice_of
from scans import LPS, refused, turned, voxels, write_dicom

import cssgan.scans.dicom
import cssgan.scans.dicom_files
from cssgan.guard import InputWarning
from cssgan.scans.files import read_volume
from cssgan.task import as_task

AFFINE = np.array([[-2, 0, 0, 15], [0, -2.5, 0, 17.5], [0, 0, 3, 0], [0, 0, 0, 1]])


def silently(folder, modality=None):
    "Read a series of which nothing is to be said."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_volume(folder, modality)


def voxels_of(folder):
    "What a folder holds, whatever its intensities."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return cssgan.scans.dicom.read_dicom(folder, None)[0]


def is_whole(scan): return np.array_equal(scan.voxels, hu()) and np.array_equal(scan.affine, AFFINE)


# files of every make

@pytest.mark.parametrize("bare", [False, True], ids=["Part 10", "no preamble"])
@pytest.mark.parametrize("encoding", ["explicit", "implicit", "big endian"])
def test_files_of_every_encoding_are_read(tmp_path, encoding, bare):
    assert is_whole(silently(series(tmp_path, encoding=encoding, bare=bare)))


def test_slices_without_preamble_among_others_are_read(tmp_path):
    folder = series(tmp_path)
    for z in (1, 5): (folder / f"IM{z}.dcm").write_bytes(as_bytes(slice_of(z), bare=True))
    assert is_whole(silently(folder))


@pytest.mark.parametrize("bits, stored, sign, offset",
                         [(8, 8, 0, 0), (16, 12, 0, 1024), (16, 12, 1, 0), (16, 16, 1, 0), (32, 32, 1, 0)])
def test_every_number_of_bits_is_read_and_unused_ones_are_not(tmp_path, bits, stored, sign, offset):
    array, two = hu().clip(-1000, 255) if bits > 8 else (hu() + 100).clip(0, 255), lambda n: n.to_bytes(2, "little")
    used, unused = (1 << stored) - 1, (1 << bits) - (1 << stored)
    pixels = lambda z: ((array[:, :, z].T + offset) & used | unused).astype(f"<u{bits // 8}").tobytes()
    folder = series(tmp_path, PixelData=pixels, BitsAllocated=two(bits), BitsStored=two(stored),
                    HighBit=two(stored - 1), PixelRepresentation=two(sign),
                    RescaleIntercept=f"{-offset}")
    assert np.array_equal(voxels_of(folder), array)


def test_slope_and_offset_of_every_slice(tmp_path):
    v = voxels_of(series(tmp_path, RescaleSlope=lambda z: f"{0.5 + z:.2f}", RescaleIntercept=lambda z: f" {-z}e1 "))
    assert np.allclose(v, (hu() + 1024) * (0.5 + np.arange(6)) - 10 * np.arange(6)) and v.dtype == np.float32


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_compressed_pixels_are_what_they_were(tmp_path, modality):
    folder = series(tmp_path, Modality=modality, RescaleSlope="0.5", RescaleIntercept="-1000")
    before = voxels_of(folder)
    for path in folder.iterdir():
        (data := pydicom.dcmread(path)).compress(pydicom.uid.RLELossless, generate_instance_uid=False)
        data.save_as(path)
    assert np.array_equal(voxels_of(folder), before)


@pytest.mark.parametrize("name", ["jpeg_ls_lossless", "jp2klossless", "RLE"])
def test_jpeg_is_what_it_was(tmp_path, name):
    pytest.importorskip("SimpleITK")
    plain = pydicom.dcmread(pydicom.data.get_testdata_file("MR_small.dcm", download=False)).pixel_array.T
    v = voxels_of(jpeg_series(tmp_path, name, RescaleSlope="0.5", RescaleIntercept="-10"))
    assert v.shape == (64, 64, 3) and all(np.array_equal(v[:, :, z], plain * 0.5 - 10) for z in range(3))


def test_an_odd_number_of_bytes_is_padded(tmp_path):
    plane = lambda z: np.full((5, 3), z * 20 + 5, np.uint8)
    (tmp_path / "a").mkdir()
    for z in range(3):
        data = slice_of(z, plane(z), Modality="MR", RescaleSlope=None, RescaleIntercept=None,
                        PixelData=plane(z).T.tobytes(), BitsAllocated=b"\x08\0", BitsStored=b"\x08\0", HighBit=b"\7\0")
        (tmp_path / "a" / f"{z}").write_bytes(as_bytes(data))
    assert voxels_of(tmp_path / "a")[0, 0].tolist() == [5, 25, 45]


def test_without_pydicom_or_simpleitk_one_line_says_what_to_type(tmp_path, monkeypatch):
    folder, packed = series(tmp_path), jpeg_series(tmp_path / "packed", "jpeg_ls_lossless")
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    assert is_whole(silently(folder))
    refused(read_volume, packed, "MRI", says="SimpleITK, which is not installed: pip install 'cssgan[dicom]'")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    refused(read_volume, folder, "CT", says="pydicom, which is not installed: pip install 'cssgan[dicom]'")


def test_what_c_code_prints_does_not_reach_the_user(capfd):
    with cssgan.scans.dicom_files.quiet_sitk("a"): subprocess.run(["sh", "-c", "echo out; echo err >&2"], check=True)
    os.write(2, b"heard")
    assert capfd.readouterr() == ("", "heard")


# what else lies in the folder

OTHERS = {"letter.txt": b"Dear colleague,\r\n", "LICENSE": "Schön\n".encode(), "notes.txt": "Größe".encode("utf-16"),
          "report.pdf": b"%PDF-1.7 \0\1", "letter.rtf": b"{\\rtf1",
          "overview.png": b"\x89PNG\r\n\x1a\n\0", "overview.jpg": b"\xff\xd8\xff\xe0\0",
          "Thumbs.db": b"\xd0\xcf\x11\xe0\xa1\0", "report.docx": b"PK\3\4" + bytes(26) + b"[Content_Types].xml",
          "earlier.nii": b"\x5c\1" + bytes(342) + b"n+1\0" + bytes(99),
          "earlier.nii.gz": gzip.compress(b"\x5c\1" + bytes(342) + b"n+1\0" + bytes(99)), "viewer.exe": b"MZ\x90\0\3",
          "list.json": b"{}", "scan.nrrd": b"NRRD0004\n\0\1\2", "scan.mha": b"ObjectType = Image\n\0\1",
          "README1": b"read me", "cine.avi": b"RIFF\0\0\0\0AVI", "viewer.db": b"SQLite format 3\0"}
HARMLESS = {"DICOMDIR": b"\0\1\2", "dicomdir": b"", ".DS_Store": b"\0\0\0\1Bud1",
            "._IM3.dcm": b"\0\5\x16\7\0\2\0\0Mac OS X", ".nfs0001": b"", "Icon\r": b"", ".hidden.gz": b"\x1f\x8b\0"}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_known_may_lie_there_and_is_said(tmp_path, name):
    (series(tmp_path) / name).write_bytes(OTHERS[name])
    with pytest.warns(InputWarning, match="left out what is no slice: " + name.replace(".", "[.]")) as said:
        assert is_whole(read_volume(tmp_path / "series", "CT"))
    assert len(said) == 1


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_always_harmless_is_not_worth_a_word(tmp_path, name):
    (series(tmp_path) / name).write_bytes(HARMLESS[name])
    assert is_whole(silently(tmp_path / "series"))


def test_hidden_links_pipes_and_folders_are_no_slices(tmp_path):
    folder = series(tmp_path)
    (folder / ".#IM3.dcm").symlink_to("me@there:1")
    (folder / ".git").mkdir()
    os.mkfifo(folder / ".pipe")
    assert is_whole(silently(folder))


def test_of_a_folder_in_the_folder_a_warning_tells(tmp_path):
    folder = series(tmp_path)
    (folder / "old").mkdir()
    shutil.copytree(folder, tmp_path / "copy")
    shutil.move(tmp_path / "copy", folder / "more")
    with pytest.warns(InputWarning, match=r"no slice: more \(a folder with DICOM files\), old \(a folder\)"):
        assert is_whole(read_volume(folder, "CT"))


def test_slices_behind_links_are_read(tmp_path):
    folder = series(tmp_path)
    (tmp_path / "annex").mkdir()
    for path in list(folder.iterdir()): (folder / path.name).symlink_to(path.rename(tmp_path / "annex" / path.name))
    assert is_whole(silently(folder))


def test_a_slice_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    folder, may = series(tmp_path), os.access
    monkeypatch.setattr(os, "access", lambda path, right: os.path.basename(path) != "IM3.dcm" and may(path, right))
    refused(read_volume, folder, "CT", says="IM3.dcm may not be read")


def test_a_disk_that_fails_is_one_line(tmp_path, monkeypatch):
    folder = series(tmp_path)
    def broken(path, *_):
        if str(path).endswith("IM3.dcm"): raise OSError(5, "Input/output error")
        return path
    monkeypatch.setattr(cssgan.scans.dicom_files, "regular_file", broken)
    refused(read_volume, folder, "CT", says="IM3.dcm cannot be read (Input/output error)")


@pytest.mark.parametrize("names", ["CT.1.2.840.{}77", "{}", "IMG{}", "a{}f9e", "heart {}.IMA", "MUSTERMANN^HANS.{}"])
def test_a_letter_called_like_the_slices_is_no_letter(tmp_path, names):
    folder = series(tmp_path)
    for z in range(6): (folder / f"IM{z}.dcm").rename(folder / names.format(z))
    assert is_whole(silently(folder))
    (folder / "LICENSE").write_bytes(b"free")
    (folder / names.format(6)).write_bytes(b"<html>404 not found</html>")
    refused(read_volume, folder, "CT", says=f"{names.format(6)} is called like the slices, but is a text")


def test_compressed_slices_under_names_of_any_bytes(tmp_path):
    pytest.importorskip("SimpleITK")
    folder = jpeg_series(tmp_path, "jp2klossless")
    assert voxels_of(folder.rename(tmp_path / "M\udcfcller")).shape == (64, 64, 3)


def test_names_of_any_bytes(tmp_path):
    folder = series(tmp_path)
    (folder / "IM3.dcm").rename(folder / "M\udcfcller {0}.dcm")
    assert is_whole(silently(folder))
    (folder / "M\udcfcller {0}.dcm").write_bytes((folder / "M\udcfcller {0}.dcm").read_bytes()[:900])
    refused(read_volume, folder, "CT", says="M\ufffdller {0}.dcm is damaged")


# geometry

OBLIQUE = turned((35, -28, 20), spacing=(2, 2.5, 3))


def placed(folder, affine, digits, **tags):
    "A series that lies where the affine says, its orientation rounded."
    lps = np.diag([-1, -1, 1, 1]) @ affine
    axes = lps[:3, :3] / np.linalg.norm(lps[:3, :3], axis=0)
    return series(folder, ImagePositionPatient=lambda z: "\\".join(f"{x:.6f}" for x in (lps @ [0, 0, z, 1])[:3]),
                  ImageOrientationPatient="\\".join(f"{x:.{digits}f}" for x in axes[:, :2].T.ravel()), **tags)


@pytest.mark.parametrize("digits", [3, 4, 6, 12])
def test_a_rounded_orientation_is_turned_upright(tmp_path, digits):
    v = silently(placed(tmp_path, OBLIQUE, digits))
    far = np.array(SHAPE) - 1
    assert np.linalg.norm((v.affine - OBLIQUE)[:3, :3] @ far) < 0.1 * min(STEP)
    axes = v.affine[:3, :2] / v.spacing[:2]
    assert np.allclose(axes.T @ axes, np.eye(2), atol=1e-12) and np.allclose(v.spacing, STEP, atol=1e-4)


def test_how_far_it_may_be_rounded_depends_on_the_size(tmp_path):
    numbers = [f"{x:.3f}" for x in (OBLIQUE[:3, :3] / STEP)[:, :2].T.ravel()]
    assert cssgan.scans.dicom._directions(numbers, 64 * 2**0.5, "a").shape == (3, 2)
    refused(cssgan.scans.dicom._directions, numbers, 512 * 2**0.5, "a", says="too coarsely rounded")
    refused(read_volume, placed(tmp_path, OBLIQUE, 2), "CT", says="too coarsely rounded")


def test_a_slant_that_a_gantry_has_is_kept_and_another_refused(tmp_path):
    slant = lambda x: lambda z: f"-15\\{-17.5 + x * z:g}\\{3 * z}"
    v = silently(series(tmp_path / "CT", ImagePositionPatient=slant(1.7)))
    assert np.allclose(v.affine[:3, 2], (0, -1.7, 3))
    mr = series(tmp_path / "MR", ImagePositionPatient=slant(1.7), Modality="MR", RescaleIntercept="0")
    with pytest.warns(InputWarning, match="run 30 degrees aslant, which is rare in MR"): read_volume(mr)
    refused(read_volume, series(tmp_path / "lost", ImagePositionPatient=slant(3)), "CT", says="run 45 degrees aslant")


def test_of_every_second_slice_that_is_gone_a_warning_tells(tmp_path):
    assert is_whole(silently(series(tmp_path / "whole", SliceThickness="3", SpacingBetweenSlices="")))
    silently(series(tmp_path / "strange", SliceThickness="thick", SpacingBetweenSlices="-3"))
    for said in (dict(SliceThickness="1.5"), dict(SpacingBetweenSlices="1.5", SliceThickness="3")):
        folder = series(tmp_path / str(len(said)), **said)
        with pytest.warns(InputWarning, match="lie 3 mm apart, and say 1.5 mm"): assert is_whole(read_volume(folder))
    silently(series(tmp_path / "MR", Modality="MR", RescaleIntercept="0", SliceThickness="1.5"), "MRI")


# privacy and terminals

def test_no_name_of_a_patient_is_kept(tmp_path):
    folder = series(tmp_path, SeriesDescription="MUSTERMANN").rename(tmp_path / "MUSTERMANN")
    assert silently(folder).history == ("read 6 DICOM slices",)


def test_escapes_of_a_description_do_not_reach_the_terminal(tmp_path):
    folder = series(tmp_path, which=(4, 5), SeriesInstanceUID="1.2.9",
                    SeriesDescription="\x1b]0;owned\x07\x1b[31mHeart")
    message = refused(read_volume, folder, "CT", says="(Heart: 4 CT slices; \\x1b]0;owned\\x07\\x1b[31mHeart: 2 CT")
    assert message.isprintable()


# other tasks

def two_domains(*words):
    domains = [{"name": name, "percentiles": [1, 99], "dicom": word} for name, word in zip("AB", words)]
    return as_task({"name": "other", "domains": domains, "regions": ["background", "liver"],
                    "grid": {"shape": [16, 16, 16], "spacing": [4, 4, 4]}})


@pytest.mark.parametrize("words, kind, own", [
    (("MR", "CT"), "MR", "A"), (("MR", "CT"), "CT", "B"), (("MR", ""), "PT", "B"), (("CT", "PT"), "PT", "B")])
def test_a_series_is_of_the_domain_that_its_tag_names(tmp_path, words, kind, own):
    series = write_dicom(tmp_path / "a", voxels(modality="MRI"), LPS, t0008_0060=kind)
    assert read_volume(series, None, two_domains(*words)).modality == own
    assert read_volume(series, own, two_domains(*words)).modality == own


@pytest.mark.parametrize("words", [("MR", "MR"), ("MR", ""), ("", "")])
def test_of_two_domains_that_are_one_to_dicom_the_user_must_name_one(tmp_path, words):
    series, task = write_dicom(tmp_path / "a", voxels(modality="MRI"), LPS, t0008_0060="MR"), two_domains(*words)
    refused(read_volume, series, None, task, says="which A and B are")
    assert [read_volume(series, name, task).modality for name in "AB"] == ["A", "B"]


def test_a_series_that_the_task_does_not_know(tmp_path):
    series = write_dicom(tmp_path / "a", voxels(), LPS, t0008_0060="CT")
    refused(read_volume, series, None, two_domains("MR", "MR"), says="holds CT: give a series of MR")
    refused(read_volume, series, "A", two_domains("MR", "CT"), says="not A: use modality B")
