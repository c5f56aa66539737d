"Several scans in one command: names, failures, formats, statistics; and the one command for all."
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from scans import AFFINES, write_dicom

from cssgan import __main__ as umbrella
from cssgan.cli.batches import Plan, names_a_file, result_names, run_each, scans_in, unique_stems
from cssgan.cli.scans import heard, nnunet_name, segment_main, translate_main
from cssgan.guard import InputError, InputWarning, warn
from cssgan.inference import apply
from cssgan.phantoms.scanners import phantom
from cssgan.scans.dicom_writing import write_dicom_labels
from cssgan.scans.files import made_here, read_label, read_volume, write_label, write_volume
from cssgan.scans.volumes import Grid
from cssgan.task import HEART

TINY = Grid((24, 22, 16), (7.0, 7.0, 8.0))
CT = phantom(2, "CT", TINY)


@pytest.fixture
def quick(monkeypatch, checkpoint):
    "In the place of networks: labels that are known, and a translation that changes nothing."
    loads = []
    def read(*_):
        loads.append(1)
        return load_checkpoint(checkpoint)
    load_checkpoint = apply.load_checkpoint
    monkeypatch.setattr(apply, "load_checkpoint", read)
    def segmented(loaded, scan, modality=None, centre=None, strict=False, affine=None):
        volume = apply.as_scan(scan, apply.named_domain(loaded.task, modality).name, loaded.task)
        warn(f"{scan}: this may not be the heart")
        label = np.zeros(volume.shape, np.uint8)
        label[4:9, 5:9, 3:7], label[9:12, 5:9, 3:7] = 1, 5
        seen = apply.prepare_scan(volume, loaded.grid, loaded.ranges[volume.modality],
                                  apply.grid_centre(volume), loaded.grid)
        even = torch.full((6, *seen.shape), 1 / 6)
        return apply.Segmented(apply.with_label(volume, label, volume.affine), apply.Finding(seen, probabilities=even))
    monkeypatch.setattr(apply, "run_segmentor", segmented)
    return loads


@pytest.fixture
def folder(tmp_path):
    "A folder with three scans, the second of them damaged, and a label map."
    (tmp_path / "scans").mkdir()
    for name in "abc": write_volume(CT, tmp_path / "scans" / f"{name}.nii.gz")
    (tmp_path / "scans/b.nii.gz").write_bytes((tmp_path / "scans/a.nii.gz").read_bytes()[:3000])
    write_volume(CT, tmp_path / "scans/a_label.nii.gz")
    (tmp_path / "scans/notes.txt").write_text("mine")
    return tmp_path / "scans"


@pytest.fixture
def segment(checkpoint, capsys, quick):
    "Run cssgan_segment: (status, stdout, stderr)."
    def segment(*words, modality="CT"):
        capsys.readouterr()
        try: status = segment_main([*map(str, words), "--checkpoint", str(checkpoint), "--modality", modality])
        except SystemExit as e: status = e.code
        return status, *capsys.readouterr()
    return segment


# ---- which scans

def test_what_a_folder_is_its_content_decides(folder, tmp_path):
    assert [Path(p).name for p in scans_in(str(folder))] == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    series = write_dicom(tmp_path / "series", CT.voxels, AFFINES["plain"])
    assert scans_in(str(series)) == [str(series)]
    write_volume(CT, series / "z.nii")
    assert scans_in(str(series)) == [str(series)]
    (tmp_path / "study").mkdir()
    for name in ("s1", "s2"): write_dicom(tmp_path / "study" / name, CT.voxels, AFFINES["plain"])
    (tmp_path / "study/empty").mkdir()
    assert [Path(p).name for p in scans_in(str(tmp_path / "study"))] == ["s1", "s2"]
    write_volume(CT, tmp_path / "study/x.mha")
    assert [Path(p).name for p in scans_in(str(tmp_path / "study"))] == ["s1", "s2", "x.mha"]
    assert scans_in(str(tmp_path / "study/empty")) == [str(tmp_path / "study/empty")]


def test_series_are_found_however_deep(tmp_path):
    series = [tmp_path / f"archive/p{n}/study/ser{k}" for n in (1, 2) for k in (1, 2)]
    for place in series:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_dicom(place, CT.voxels, AFFINES["plain"])
    (tmp_path / "archive/p1/again").symlink_to(tmp_path / "archive", target_is_directory=True)
    assert scans_in(str(tmp_path / "archive")) == list(map(str, series))
    assert result_names(list(map(str, series)), "label")[0] == "p1_study_ser1_label.nii.gz"


# ---- what results are called

def test_no_two_results_have_one_name():
    assert result_names(["p1/ct.nii.gz", "p2/ct.nii.gz", "x.mha"], "MRI", ".nrrd") == [
        "p1_ct_MRI.nrrd", "p2_ct_MRI.nrrd", "x_MRI.nrrd"]
    assert result_names(["x/p/a.nii", "y/p/a.nii"], "label") == ["x_p_a_label.nii.gz", "y_p_a_label.nii.gz"]
    assert len(set(result_names(["p/a.nii", "q/a.nii", "q/p_a.nii"], "label"))) == 3
    for scans in (["d/a.nii", "d/a.nii.gz"], ["d/a.nii", "d/A.nii.gz"], ["d/a.nii", "d/a.nii"],
                  ["x/1/2/3/a.nii", "y/1/2/3/a.nii"]):
        with pytest.raises(InputError, match="two commands"): result_names(scans, "label")
    assert result_names(["case_image.nii.gz", "s 1/"], "../x") == ["case____x.nii.gz", "s 1____x.nii.gz"]


def test_a_file_or_a_folder(tmp_path):
    assert all(map(names_a_file, ("a.nii", "d/a.NII.GZ", "a.nrrd", "a.mha", "a.dcm")))
    assert not any(map(names_a_file, ("a", "d/", "a.png", str(tmp_path))))


# ---- several scans

def test_one_fails_and_the_others_are_done(segment, folder, tmp_path, quick):
    status, out, err = segment(folder, "--out", tmp_path / "out")
    assert status == 1 and out.count("wrote") == 2 and out.startswith("found 3 scans: 3 files, 0 DICOM series\n")
    lines = err.splitlines()
    assert [line for line in lines if "b.nii.gz cannot be read" in line] and len(lines) == 4
    assert lines[-1] == "cssgan_segment: 1 of 3 scans failed" and quick == [1]
    assert sorted(p.name for p in (tmp_path / "out").glob("*.nii.gz")) == ["a_label.nii.gz", "c_label.nii.gz"]
    before = {p: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert segment(folder, "--out", tmp_path / "out")[2].count("--force") == 2
    assert segment(folder, "--out", tmp_path / "out", "--force")[0] == 1
    assert before == {p: p.read_bytes() for p in (tmp_path / "out").iterdir()}


def test_several_names_and_one_scan_into_a_folder(segment, folder, tmp_path):
    a, c = folder / "a.nii.gz", folder / "c.nii.gz"
    assert segment(a, c, "--out", tmp_path / "both")[0] == 0
    assert segment(a, "--out", tmp_path / "one.nii.gz")[0] == 0
    (tmp_path / "there").mkdir()
    assert segment(a, "--out", tmp_path / "there")[0] == 0
    whole = (tmp_path / "one.nii.gz").read_bytes()
    assert (tmp_path / "both/a_label.nii.gz").read_bytes() == (tmp_path / "there/a_label.nii.gz").read_bytes() == whole


def test_a_file_of_somebody_elses_stays(segment, folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a_label.nii.gz").write_text("mine")
    (tmp_path / "out/c_label.ctbl").write_text("my table")
    status, _, err = segment(folder, "--out", tmp_path / "out", "--force")
    assert status == 1 and err.count("not made by cssgan") == 2
    assert (tmp_path / "out/a_label.nii.gz").read_text() == "mine" and len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.parametrize("words, status, says", [
    ("a.nii.gz c.nii.gz --out o.nii", 2, "names one file, for 2 scans"), (". --out o.nrrd", 1, "holds 3 scans"),
    (". --out .", 1, "scans' own folder"), ("a.nii.gz a.nii.gz --out out", 1, "two commands"),
    ("a.nii.gz --out o.dcm", 1, "only a DICOM series becomes DICOM"), ("a.nii.gz --out o", 1, "must end in"),
    ("a.nii.gz --out o.nii --format mha", 2, "--format"), ("a.nii.gz c.nii.gz --out out --format png", 2, "png"),
    ("a.nii.gz --out o.nii --device tpu", 1, "no device"), ("a.nii.gz --out o.nii --statistics a.nii.gz", 1, "itself"),
    ("a.nii.gz --out o.nii --statistics notes.txt --force", 1, "not made by cssgan"),
    ("a.nii.gz --out o.nii --statistics none/s.json", 1, "no folder")])
def test_what_does_not_go_together(segment, folder, monkeypatch, words, status, says):
    monkeypatch.chdir(folder)
    before = {p: p.read_bytes() for p in folder.iterdir()}
    found, out, err = segment(*words.split())
    assert (found, out, err.count("\n")) == (status, "", 1) and says in err
    assert before == {p: p.read_bytes() for p in folder.iterdir()}


def test_quiet(segment, folder, tmp_path):
    status, out, err = segment(folder / "a.nii.gz", folder / "c.nii.gz", "--out", tmp_path / "out", "--quiet")
    assert (status, out) == (0, "") and all("may not be the heart" in line for line in err.splitlines())


def test_a_bar_at_a_terminal_and_lines_above_it(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    def job(plan):
        print(f"wrote {plan.scan}")
        return {}
    assert len(run_each("cssgan_segment", [Plan("a", ""), Plan("b", "")], job)) == 2
    out, err = capsys.readouterr()
    assert "wrote a" in out + err and "wrote b" in out + err and "scans" in err
    run_each("cssgan_segment", [Plan("a", ""), Plan("b", "")], job, quiet=True)
    assert capsys.readouterr() == ("wrote a\nwrote b\n", "")


def test_memory_is_a_scans_failure(capsys):
    def job(plan):
        if plan.scan == "x1": raise RuntimeError("CUDA out of memory")
        return {}
    assert run_each("c", [Plan("x1", ""), Plan("b", "")], job)[0]["error"].startswith("not enough memory")
    assert capsys.readouterr().err.startswith("c: x1: not enough memory")


@pytest.mark.parametrize("error", [RuntimeError("sizes differ"), IndexError("3"), KeyError("LV"), ZeroDivisionError()])
def test_whatever_happens_to_a_scan_the_others_are_done(capsys, error):
    "What nobody expected is named by its kind; of a single scan its traceback is wanted."
    def job(plan):
        if plan.scan == "x1": raise error
        return {"scan": plan.scan}
    done = run_each("c", [Plan("x1", ""), Plan("b", "")], job)
    assert done[1] == {"scan": "b"} and done[0]["error"].startswith(type(error).__name__)
    assert capsys.readouterr().err == f"c: x1: {done[0]['error']}\n"
    with pytest.raises(type(error)): run_each("c", [Plan("x1", "")], job)


# ---- statistics and probabilities

def test_statistics_are_one_object_for_each_scan(segment, folder, tmp_path):
    words = folder, "--out", tmp_path / "out", "--statistics", tmp_path / "s.json", "--force"
    assert segment(*words)[0] == 1
    a, b, c = json.loads((tmp_path / "s.json").read_text())
    ml = 5 * 4 * 4 * CT.voxel_ml
    assert a["volumes_ml"]["LV"] == pytest.approx(ml) and a["volumes_ml"]["RV"] == 0 and a["modality"] == "CT"
    middle = nib.affines.apply_affine(CT.affine, (7.5, 6.5, 4.5))
    assert a["centre_mm"] == pytest.approx(middle, abs=.06) and "may not be the heart" in a["warnings"][0]
    assert a["scan"].endswith("a.nii.gz") and a["result"].endswith("a_label.nii.gz") and a["cssgan"] == c["cssgan"]
    assert set(b) == {"cssgan", "scan", "error"} and "cannot be read" in b["error"]
    assert segment(*words)[0] == 1  # replaced, since it is ours


def test_statistics_of_what_is_done_are_not_lost(segment, folder, tmp_path, monkeypatch):
    "Neither by a scan that fails in a way that nobody expected, nor by Ctrl-C."
    answer = apply.run_segmentor
    def segmented(loaded, scan, *rest):
        if str(scan).endswith("b.nii.gz"): raise RuntimeError("size of tensor")
        if str(scan).endswith("d.nii.gz"): raise KeyboardInterrupt
        return answer(loaded, scan, *rest)
    monkeypatch.setattr(apply, "run_segmentor", segmented)
    words = folder, "--out", tmp_path / "out", "--statistics", tmp_path / "s.json", "--force", "--quiet"
    status, _, err = segment(*words)
    said = json.loads((tmp_path / "s.json").read_text())
    assert status == 1 and [one.get("error") for one in said] == [None, "RuntimeError: size of tensor", None]
    assert err.endswith("cssgan_segment: 1 of 3 scans failed\n") and "Traceback" not in err
    (folder / "c.nii.gz").rename(folder / "d.nii.gz")
    assert segment(*words)[0] == 130
    assert [Path(one["scan"]).name for one in json.loads((tmp_path / "s.json").read_text())] == ["a.nii.gz", "b.nii.gz"]


def test_warnings_are_heard_and_still_shown(recwarn):
    with heard() as said:
        warn("this may not be the heart")
    assert said == ["this may not be the heart"] and [w for w in recwarn if w.category is InputWarning]


def test_probabilities_lie_beside_the_label_map(segment, folder, tmp_path):
    assert segment(folder / "a.nii.gz", "--out", tmp_path / "o.nii.gz", "--probabilities")[0] == 0
    image, label = nib.load(tmp_path / "o_probabilities.nii.gz"), nib.load(tmp_path / "o.nii.gz")
    assert image.shape == (*label.shape, 6) and image.get_data_dtype() == np.uint8
    assert np.array_equal(image.affine, label.affine) and np.allclose(image.get_fdata().sum(-1), 1, atol=1e-5)
    assert made_here(tmp_path / "o_probabilities.nii.gz")
    (tmp_path / "p_probabilities.nii.gz").write_text("mine")
    assert "not made" in segment(folder / "a.nii.gz", "--out", tmp_path / "p.nii.gz", "--probabilities", "--force")[2]


# ---- formats

@pytest.mark.parametrize("ending", ["nii", "nrrd", "mha"])
def test_every_format_holds_the_same(segment, folder, tmp_path, ending):
    assert segment(folder / "a.nii.gz", folder / "c.nii.gz", "--out", tmp_path / "out", "--format", ending)[0] == 0
    values, affine = read_label(tmp_path / f"out/a_label.{ending}")
    assert np.array_equal(np.unique(values), (0, 1, 5)) and np.allclose(affine, CT.affine, atol=1e-5)
    assert made_here(tmp_path / f"out/a_label.{ending}") and (tmp_path / "out/a_label.ctbl").exists()
    first = (tmp_path / f"out/a_label.{ending}").read_bytes()
    assert segment(folder / "a.nii.gz", "--out", tmp_path / f"out/a_label.{ending}")[0] == 1
    assert segment(folder / "a.nii.gz", "--out", tmp_path / f"out/a_label.{ending}", "--force")[0] == 0
    assert (tmp_path / f"out/a_label.{ending}").read_bytes() == first
    if ending != "nrrd": return
    assert sitk.ReadImage(str(tmp_path / "out/a_label.nrrd")).GetMetaData("Segment4_Name") == "myocardium"


def test_a_segmentation_of_slicer(segment, folder, tmp_path, checkpoint, capsys):
    "By its ending Slicer knows it; names and colours are inside, and the tables beside it have its name without .seg."
    words = folder / "a.nii.gz", folder / "c.nii.gz", "--out", tmp_path / "out", "--format", "seg.nrrd"
    assert segment(*words, "--probabilities")[0] == 0
    assert sorted(p.name for p in (tmp_path / "out").glob("a_*")) == [
        "a_label.ctbl", "a_label.seg.nrrd", "a_label_itksnap.txt", "a_label_probabilities.nii.gz"]
    image = sitk.ReadImage(str(tmp_path / "out/a_label.seg.nrrd"))
    said = {key: image.GetMetaData(f"Segment4_{key}") for key in ("Name", "LabelValue", "Layer", "Extent")}
    assert said == {"Name": "myocardium", "LabelValue": "5", "Layer": "0", "Extent": "0 23 0 21 0 15"}
    assert segment(*words)[2].count("--force") == 2 and segment(*words, "--force")[0] == 0
    assert scans_in(str(tmp_path / "out")) == [str(tmp_path / "out/a_label_probabilities.nii.gz"),
                                               str(tmp_path / "out/c_label_probabilities.nii.gz")]
    for wrong in ["--out", tmp_path / "a.seg.nrrd"], ["--out", tmp_path / "out", "--format", "seg.nrrd"]:
        with pytest.raises(SystemExit):
            translate_main([*map(str, (folder / "a.nii.gz", "--checkpoint", checkpoint, "--to", "MRI", *wrong))])
        assert "label maps" in capsys.readouterr().err and not (tmp_path / "a.seg.nrrd").exists()


# ---- one command for all

def test_the_commands_are_listed_and_those_that_are_missing_are_not(capsys, monkeypatch):
    monkeypatch.setitem(umbrella.SUBCOMMANDS, "cook", ("kitchen", "cook_main", "cook"))
    assert umbrella.main([]) == umbrella.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "  segment    segment scans\n" in out and "cook" not in out and out.count("usage") == 2
    for module, function, _ in umbrella.subcommands().values():
        assert callable(getattr(__import__(f"cssgan.cli.{module}", fromlist=[function]), function))


def test_an_unknown_command_is_one_line(capsys):
    assert umbrella.main(["segmnt", "a.nii"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "did you mean segment?" in err


def test_words_go_to_the_command(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("cssgan.cli.scans.segment_main", lambda words: asked.append(words) or 3)
    assert umbrella.main(["segment", "a.nii", "--out", "b"]) == 3 and asked == [["a.nii", "--out", "b"]]
    assert umbrella.main(["--version"]) == 0 and capsys.readouterr().out.startswith("cssgan ")


def test_the_module_is_the_command_and_imports_little():
    words = "-X", "importtime", "-m", "cssgan", "--help"
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert done.returncode == 0 and "segment scans" in done.stdout
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert not loaded & {"numpy", "torch", "monai", "nibabel", "msgspec", "tqdm"}


@pytest.mark.parametrize("line, offered", [("cssgan seg", "segment"), ("cssgan segment --prob", "--probabilities"),
                                           ("cssgan_segment --prob", "--probabilities")])
def test_a_shell_is_told_what_may_follow(tmp_path, line, offered):
    pytest.importorskip("argcomplete")
    own = "import sys; sys.argv[0] = 'cssgan_segment'; from cssgan.cli.scans import segment_main; segment_main()"
    words = ["-c", own] if line.startswith("cssgan_") else ["-m", "cssgan"]
    asked = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": " ",
             "_ARGCOMPLETE_STDOUT_FILENAME": str(tmp_path / "out")}
    subprocess.run([sys.executable, *words], env=os.environ | asked, capture_output=True)
    assert (tmp_path / "out").read_text().split() == [offered]


# ---- DICOM in, DICOM out

def test_a_segmentation_object_holds_every_voxel_of_the_nifti_result(segment, tmp_path):
    highdicom = pytest.importorskip("highdicom")
    series = write_dicom(tmp_path / "series", CT.voxels, AFFINES["oblique, flipped"], t0020_0052="1.2.3.5",
                         t0010_0020="P1", t0020_000d="1.2.3")
    assert segment(series, "--out", tmp_path / "label.nii.gz")[0] == 0
    assert segment(series, "--out", tmp_path / "label.dcm")[0] == 0
    label = read_label(tmp_path / "label.nii.gz")
    seg = highdicom.seg.segread(tmp_path / "label.dcm")
    volume = seg.get_volume(combine_segments=True, skip_overlap_checks=True)
    lps = np.diag([-1, -1, 1, 1]) @ volume.affine
    index = np.indices(volume.spatial_shape).reshape(3, -1).T
    there = nib.affines.apply_affine(np.linalg.inv(label.affine) @ lps, index)
    assert np.abs(there - np.rint(there)).max() < .01
    back = np.zeros(label.values.shape, int)
    back[tuple(np.rint(there).astype(int).T)] = np.asarray(volume.array).ravel()
    assert np.array_equal(back, label.values) and set(np.unique(back)) == {0, 1, 5}
    slices = [pydicom.dcmread(p, stop_before_pixels=True) for p in series.iterdir()]
    assert seg.FrameOfReferenceUID == "1.2.3.5" and seg.PatientID == "P1" and seg.StudyInstanceUID == "1.2.3"
    assert {o.ReferencedSOPInstanceUID for o in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence} == {
        o.SOPInstanceUID for o in slices}
    names = [seg.get_segment_description(k) for k in seg.segment_numbers]
    assert [o.segment_label for o in names] == ["LV", "RV", "LA", "RA", "myocardium"]
    assert [o.segmented_property_type.value for o in names][:2] == ["87878005", "53085002"]
    by = names[0].algorithm_identification
    assert (by.name, by.version) == ("cssgan", apply.cssgan.__version__)
    assert segment(series, "--out", tmp_path / "label.dcm")[0] == 1
    assert segment(series, "--out", tmp_path / "label.dcm", "--force")[0] == 0
    (tmp_path / "own.dcm").write_bytes(next(series.iterdir()).read_bytes())
    assert "not made by cssgan" in segment(series, "--out", tmp_path / "own.dcm", "--force")[2]


def test_nothing_found_is_an_empty_segmentation_object(tmp_path):
    highdicom = pytest.importorskip("highdicom")
    series = write_dicom(tmp_path / "series", CT.voxels, AFFINES["plain"], t0020_0052="1.2.3.5", t0020_000d="1.2.3")
    scan = read_volume(series, None)
    write_dicom_labels(replace(scan, label=np.zeros(scan.shape, np.uint8)), series, tmp_path / "label.dcm")
    assert len(highdicom.seg.segread(tmp_path / "label.dcm").segment_numbers) == 5


def test_a_derived_series_holds_every_voxel_of_the_nifti_result(checkpoint, tmp_path, capsys, monkeypatch):
    pytest.importorskip("highdicom")
    def same(loaded, scan, to, *_):
        volume = apply.as_scan(scan, None if Path(scan).is_dir() else "CT", loaded.task)
        return apply.replace(volume, voxels=(volume.voxels + 1024) / 7, modality="MRI", label=None)
    monkeypatch.setattr(apply, "run_generator", same)
    series = write_dicom(tmp_path / "series", CT.voxels, AFFINES["oblique"], t0020_0052="1.2.3.5", t0010_0020="P1")
    for out in ("mri.nii.gz", "mri.dcm", "mri.mha"):
        words = str(series), "--checkpoint", str(checkpoint), "--to", "MR", "--out", str(tmp_path / out)
        assert translate_main(list(words)) == 0
    assert "a synthetic MRI" in capsys.readouterr().out
    nifti, dicom, mha = (read_volume(tmp_path / f"mri.{kind}", "MRI") for kind in ("nii.gz", "dcm", "mha"))
    assert np.abs(nifti.voxels - dicom.voxels).max() <= .0051 and np.array_equal(nifti.voxels, mha.voxels)
    assert np.allclose(nifti.affine, dicom.affine, atol=1e-3)
    one = pydicom.dcmread(tmp_path / "mri.dcm/0001.dcm")
    assert one.Modality == "MR" and one.PatientID == "P1" and one.FrameOfReferenceUID == "1.2.3.5"
    assert "DERIVED" in one.ImageType and "not for diagnosis" in one.SeriesDescription
    again = [str(series), "--checkpoint", str(checkpoint), "--to", "MRI", "--out", str(tmp_path / "mri.dcm")]
    assert translate_main(again) == 1 and translate_main([*again, "--force"]) == 0
    (tmp_path / "mri.dcm/notes.txt").write_text("mine")
    assert translate_main([*again, "--force"]) == 1 and (tmp_path / "mri.dcm/notes.txt").exists()


def test_the_right_directions_of_a_tilted_gantry_are_not_lost_in_silence(tmp_path):
    affine = CT.affine.copy()
    affine[1, 2] = 3
    for ending in ("nrrd", "mha"):
        with pytest.raises(InputError, match="aslant"):
            write_volume(replace(CT, affine=affine), tmp_path / f"a.{ending}")
    assert not list(tmp_path.iterdir())


# ---- out of a folder of nnU-Net

def of_nnunet(folder, channels=("CT", "MRI"), images="imagesTr", whole=False):
    "Two hearts with several channels: files of their own, or all in one as the Decathlon has them."
    labels = folder / images.replace("images", "labels")
    for place in (folder / images, labels): place.mkdir(parents=True)
    for k, name in enumerate("ab"):
        scans = [phantom(k, channel if channel in HEART.names else "MRI", TINY) for channel in channels]
        frames = np.stack([scan.voxels for scan in scans], -1)
        if whole: nib.save(nib.Nifti1Image(frames, CT.affine), folder / images / f"{name}.nii.gz")
        else:
            for k, scan in enumerate(scans): write_volume(scan, folder / images / f"{name}_{k:04d}.nii.gz")
        write_label(scans[0].label, CT.affine, labels / f"{name}.nii.gz")
    (folder / "dataset.json").write_text(json.dumps({
        "channel_names": {str(k): name for k, name in enumerate(channels)}, "file_ending": ".nii.gz",
        "labels": {region: k for k, region in enumerate(HEART.regions)}}))
    return folder / images


@pytest.mark.parametrize("to, number", [("MRI", 0), ("MR", 0), ("CT", 1)])
def test_only_the_channel_of_the_scans_own_domain_is_translated(to, number, quick, checkpoint, tmp_path, capsys):
    images = of_nnunet(tmp_path / "D")
    words = [str(images), "--checkpoint", str(checkpoint), "--to", to, "--out", str(tmp_path / "out")]
    assert translate_main(words) == 0, capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"{name}_{number:04d}_{to}.nii.gz" for name in "ab"]


def test_only_one_channel_joins_a_folder_of_nnunet(checkpoint, tmp_path, capsys):
    words = [str(of_nnunet(tmp_path / "D")), "--checkpoint", str(checkpoint), "--to", "MRI", "--layout", "nnunet"]
    out = tmp_path / "Dataset500_Heart"
    assert translate_main([*words, "--out", str(out)]) == 0, capsys.readouterr().err
    assert sorted(path.name for path in (out / "imagesTr").iterdir()) == ["a_0000.nii.gz", "b_0000.nii.gz"]
    assert np.array_equal(read_label(out / "labelsTr/b.nii.gz")[0], phantom(1, "CT", TINY).label)
    assert "has no label" not in capsys.readouterr().err


@pytest.mark.parametrize("images", ["imagesTr", "imagesTs"])
def test_only_the_channel_that_is_named_is_segmented(images, segment, tmp_path, monkeypatch):
    monkeypatch.chdir(of_nnunet(tmp_path / "D", ("T2", "MR", "CT"), images))
    status, out, err = segment(".", "--out", tmp_path / "out", modality="MRI")
    assert status == 0 and "found 2 scans" in out, err
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == [
        "a_0001_label.nii.gz", "b_0001_label.nii.gz"]


def test_the_channel_is_taken_out_of_files_that_hold_several(segment, tmp_path, monkeypatch):
    monkeypatch.setenv("CSSGAN_CACHE", str(tmp_path / "cache"))
    images = of_nnunet(tmp_path / "D", images="imagesTs", whole=True)
    status, out, err = segment(images, "--out", tmp_path / "out", modality="MRI")
    assert status == 0 and "channel 1 (MRI) is taken out of 2 files" in err
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == [
        "a_0001_label.nii.gz", "b_0001_label.nii.gz"]


def test_what_has_its_labels_elsewhere_joins_no_folder_of_nnunet(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CSSGAN_CACHE", str(tmp_path / "cache"))
    images = of_nnunet(tmp_path / "D", whole=True)
    words = [str(images), "--checkpoint", str(checkpoint), "--to", "MRI", "--layout", "nnunet"]
    assert translate_main([*words, "--out", str(tmp_path / "Dataset500_Heart")]) == 1
    assert "hold several channels" in (said := capsys.readouterr().err) and "split" in said
    assert not list((tmp_path / "Dataset500_Heart").rglob("*.nii.gz"))


@pytest.mark.parametrize("channels, gone, says", [
    (("T1", "T2"), "", "has the channels T1, T2, none is called CT"),
    (("MRI", "CT"), "*_0001.nii.gz", "holds no scan of channel 1 (CT)")])
def test_a_folder_without_the_channel_is_refused_in_one_line(channels, gone, says, segment, tmp_path):
    images = of_nnunet(tmp_path / "D", channels)
    for file in images.glob(gone) if gone else (): file.unlink()
    status, _, err = segment(images, "--out", tmp_path / "out")
    assert status != 0 and says in err and err.count("\n") == 1


def test_one_channel_and_folders_that_are_not_nnunets_are_as_they_were(tmp_path):
    images = of_nnunet(tmp_path / "D", ("CT",))
    assert [Path(scan).name for scan in scans_in(str(images), None)] == ["a_0000.nii.gz", "b_0000.nii.gz"]
    of_nnunet(tmp_path / "E")
    (tmp_path / "E/dataset.json").unlink()
    assert len(scans_in(str(tmp_path / "E/imagesTr"), None)) == 4


# ---- into a folder of nnU-Net

def test_translations_join_a_folder_of_nnunet_with_their_sources_labels(tmp_path, checkpoint, capsys):
    (tmp_path / "CT").mkdir()
    for name in "ab": write_volume(CT, tmp_path / f"CT/{name}_image.nii.gz")
    write_label(CT.label, CT.affine, tmp_path / "CT/a_label.nii.gz")
    words = [tmp_path / "CT", "--checkpoint", checkpoint, "--to", "MRI", "--layout", "nnunet"]
    out = tmp_path / "Dataset500_Heart"
    assert translate_main([*map(str, words), "--out", str(out)]) == 0
    assert "b_image.nii.gz has no label beside it" in capsys.readouterr().err
    assert sorted(path.name for path in (out / "imagesTr").iterdir()) == ["a_0000.nii.gz", "b_0000.nii.gz"]
    assert np.array_equal(read_label(out / "labelsTr/a.nii.gz")[0], CT.label)
    assert sorted(json.loads((out / "dataset.json").read_text())["synthetic"]) == ["a", "b"]


@pytest.mark.parametrize("scans, names", [
    ([f"ct_train/ct_train_{n}_image.nii.gz" for n in (1001, 1002)], ["ct_train_1001", "ct_train_1002"]),
    (["patient_0001.nii.gz", "patient_0002.nii.gz"], ["patient_0001", "patient_0002"]),
    (["p1/ct.nii.gz", "p2/ct.nii.gz"], ["p1_ct", "p2_ct"]),
    (["D/imagesTr/a_0000.nii.gz", "D/imagesTs/b_0000.nii.gz"], ["a", "b"]),
    (["D/imagesTr/la_1001.nii.gz"], ["la_1001"])])
def test_no_two_scans_become_one_case_of_nnunet(scans, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "D/labelsTr").mkdir(parents=True)
    (tmp_path / "D/labelsTr/la_1001.nii.gz").touch()  # the Decathlon's: no channel in the name
    assert unique_stems(scans, nnunet_name) == names


def test_a_format_for_a_folder_of_nnunet_is_refused(checkpoint, tmp_path, capsys):
    words = ["a.nii.gz", "--checkpoint", str(checkpoint), "--to", "MRI", "--layout", "nnunet", "--format", "nrrd"]
    with pytest.raises(SystemExit): translate_main([*words, "--out", str(tmp_path / "Dataset501_X")])
    assert "--format is for --layout files" in capsys.readouterr().err
