"What lies in a folder or a manifest is taken for what it is, or named; patients stay on one side of a split."
import os
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from cssgan.data.cases import MAX_SEED, Case, phantom_seed
from cssgan.data.finding import find_cases, from_manifest, write_manifest
from cssgan.data.folders import from_folder
from cssgan.data.splits import draw_splits, select, shuffled_patients
from cssgan.guard import InputError, InputWarning
from cssgan.task import MODALITIES

HEAD = "image,label,modality,split\n"


def place(folder, *names):
    "Empty files, which is all that finding cases needs."
    for name in names:
        (folder / os.fsdecode(name)).parent.mkdir(parents=True, exist_ok=True)
        (folder / os.fsdecode(name)).touch()
    return folder


@pytest.fixture
def folder(tmp_path):
    "A plain folder of one CT and one MRI."
    return place(tmp_path / "data", *(f"{m}/{n}_{k}.nii.gz" for m, n in (("CT", "anna"), ("MRI", "bert"))
                                      for k in ("image", "label")))


def ids(cases): return [c.id for c in cases]


def said(call, *args):
    "What a call gives, and the one thing that it warns of."
    with pytest.warns(InputWarning) as seen: given = call(*args)
    assert len(seen) == 1
    return given, str(seen[0].message)


def silent(call, *args):
    "What a call gives without a word."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return call(*args)


# ---- folders

@pytest.mark.parametrize("hidden", ["CT/._anna_image.nii.gz", "CT/._anna_label.nii.gz", "CT/.DS_Store",
                                    "MRI/.old_image.nii", ".DS_Store", "CT/.old/x_image.nii.gz"])
def test_hidden_files_are_nobodys_scan(folder, hidden):
    place(folder, hidden)
    assert ids(silent(from_folder, folder)) == ["CT_anna", "MRI_bert"]


@pytest.mark.parametrize("other", ["carl.nrrd", "carl_image.mha", "carl_Image.nii.gz", "carl_label.nii.gz",
                                   "carl.nii.gz", "carl_image.nii.gz.part", "_image.nii.gz", "README.txt",
                                   "carl_image.NII.GZ", "carl image.nii.gz", "carl_image.nii.gz.1", "dicom/IM0001",
                                   "Thumbs.db", b"M\xfcller.nrrd"])
def test_what_belongs_to_no_case_is_named(folder, other):
    place(folder / "CT", other)
    cases, message = said(from_folder, folder)
    assert ids(cases) == ["CT_anna", "MRI_bert"] and "left out" in message
    assert (os.fsdecode(other).split("/")[0].replace("\udcfc", "\N{REPLACEMENT CHARACTER}")) in message


def test_many_that_belong_to_no_case_are_counted(folder):
    place(folder / "CT", *(f"scan{i:03}.nrrd" for i in range(200)))
    message = said(from_folder, folder)[1]
    assert "scan000.nrrd, scan001.nrrd, scan002.nrrd and 197 more" in message and len(message) <= 300


def test_scans_beside_the_two_folders_are_named(folder):
    place(folder, "carl_image.nii.gz", "notes.txt")
    assert "carl_image.nii.gz" in (message := said(from_folder, folder)[1]) and "notes" not in message


@pytest.mark.parametrize("made, named", [(["CT/carl.nrrd"], "carl.nrrd"),
                                         (["CT/carl_Image.nii.gz", "CT/carl_Label.nii.gz"], "carl_Image.nii.gz"),
                                         (["CT/carl_label.nii.gz"], "carl_label.nii.gz"),
                                         (["ct/carl_image.nii.gz"], "ct/"),
                                         (["carl_image.nii.gz"], "carl_image.nii.gz"), (["CT/1/image.nii.gz"], "1/")])
def test_where_there_is_no_other_case_the_error_names_what_there_is(tmp_path, made, named):
    place(tmp_path / "data", "MRI/bert_image.nii.gz", "MRI/bert_label.nii.gz", *made)
    with pytest.raises(InputError, match="holds no CT case") as e: from_folder(tmp_path / "data")
    assert named in str(e.value)


def test_names_that_are_no_utf8_are_cases_whose_ids_can_be_written_everywhere(folder):
    place(folder, *(b"CT/M\xfcller_" + k + b".nii.gz" for k in (b"image", b"label")),
          *(b"CT/M\xf6ller_" + k + b".nii.gz" for k in (b"image", b"label")))
    cases = draw_splits([*from_folder(folder), *(replace(c, id=f"x{i}", patient=f"x{i}", image=f"{c.image}{i}")
                                                 for i in range(3) for c in from_folder(folder)[-1:])])
    assert ids(cases)[:2] == ["CT_M\\xf6ller", "CT_M\\xfcller"]
    assert all(text.encode() for c in cases for text in (c.id, c.patient))
    write_manifest(cases, folder / "cases.csv")
    again = from_manifest(folder / "cases.csv")
    assert [c.image for c in again] == [c.image for c in cases] and os.path.exists(again[0].label)
    assert ids(again) == ids(cases)


# ---- manifests

def test_a_manifest_may_call_a_modality_as_dicom_does(folder):
    (folder / "m.csv").write_text(HEAD + "CT/anna_image.nii.gz,,CT,train\nMRI/bert_image.nii.gz,,MR,train\n")
    assert [(c.id, c.modality) for c in from_manifest(folder / "m.csv")] == [("CT_0000", "CT"), ("MRI_0001", "MRI")]


@pytest.mark.parametrize("word", ["mr", "PET", ""])
def test_a_manifest_with_another_modality_is_refused(word, folder):
    (folder / "m.csv").write_text(f"{HEAD}CT/anna_image.nii.gz,,{word},train\n")
    with pytest.raises(InputError, match=f"row 1, has the modality '{word}': modality is CT or MRI"):
        from_manifest(folder / "m.csv")

def test_a_run_folder_behind_a_link_finds_its_scans_again(folder, tmp_path, monkeypatch):
    (tmp_path / "disk" / "user" / "deep" / "runs").mkdir(parents=True)
    (tmp_path / "runs").symlink_to("disk/user/deep/runs")
    (tmp_path / "runs" / "first").mkdir()
    monkeypatch.chdir(tmp_path)
    write_manifest(from_folder("data"), "runs/first/cases.csv")
    for name in ("runs/first/cases.csv", "disk/user/deep/runs/first/cases.csv", tmp_path / "runs/first/cases.csv"):
        assert all(os.path.exists(c.image) and os.path.exists(c.label) for c in from_manifest(name))


def test_scans_behind_links_keep_their_names(folder, tmp_path):
    store = place(tmp_path / "store", "4711", "4712", "4713", "4714")
    for k, file in enumerate(sorted(folder.glob("*/*"))):
        file.unlink()
        file.symlink_to(store / f"471{k + 1}")
    (tmp_path / "linked").symlink_to(folder)
    write_manifest(from_folder(tmp_path / "linked"), tmp_path / "cases.csv")
    assert [Path(c.image).name for c in from_manifest(tmp_path / "cases.csv")] == ["anna_image.nii.gz",
                                                                                   "bert_image.nii.gz"]


def test_one_scan_under_two_names_is_one_scan(folder):
    for k in ("image", "label"): (folder / f"CT/again_{k}.nii.gz").symlink_to(f"anna_{k}.nii.gz")
    with pytest.raises(InputError, match="again_image.nii.gz twice|anna_image.nii.gz twice"): from_folder(folder)


def test_columns_that_are_not_used_are_named(tmp_path):
    (tmp_path / "m.csv").write_text("Patient,age," + HEAD + "7,60,a.nii,,CT,train\n8,61,b.nii,,MRI,train\n")
    assert "Patient, age" in said(from_manifest, tmp_path / "m.csv")[1]


def test_empty_columns_of_a_spreadsheet_are_nothing(tmp_path):
    (tmp_path / "m.csv").write_text("image,label,modality,split,,\na.nii,,CT,train,,,,\nb.nii,,MRI,train,,\n")
    assert len(silent(from_manifest, tmp_path / "m.csv")) == 2


def test_absolute_paths_and_odd_names_are_files_if_they_are_there(tmp_path):
    place(tmp_path, "~me/a.nii", "b\\c.nii")
    (tmp_path / "m.csv").write_text(f"{HEAD}~me/a.nii,,CT,train\nb\\c.nii,,MRI,train\n{tmp_path}/d.nii,,CT,train\n")
    assert [Path(c.image).name for c in from_manifest(tmp_path / "m.csv")] == ["a.nii", "b\\c.nii", "d.nii"]


def test_seeds_of_phantoms():
    assert [phantom_seed(f"phantom:{n}") for n in ("0", "7", str(MAX_SEED))] == [0, 7, MAX_SEED]
    assert phantom_seed("a/phantom:3") is None


def test_no_cases_are_a_manifest_too(tmp_path):
    write_manifest([], tmp_path / "none.csv")
    assert (tmp_path / "none.csv").read_text() == "id,patient,modality,image,label,split,table\n"


def test_a_data_set_behind_a_name_that_cannot_be(tmp_path):
    for name in ("", "a" * 5000, "a\0b", "a/" * 3000):
        with pytest.raises(InputError, match="is no data set"): find_cases(name)


# ---- splits

def numbered(ct, mri, first=0):
    "Patients 0 to ct - 1 with a CT, first to first + mri - 1 with an MRI: names that are in both are one patient's."
    return [Case(f"{m}_{i}", f"{i:03}", m, f"{m}/{i:03}.nii") for m, numbers in (("CT", range(ct)),
                                                                                 ("MRI", range(first, first + mri)))
            for i in numbers]


@pytest.mark.filterwarnings("ignore::cssgan.guard.InputWarning")
@pytest.mark.parametrize("ct, mri, first", [(20, 4, 0), (20, 3, 0), (20, 5, 0), (20, 8, 0), (8, 3, 0), (3, 3, 0),
                                            (3, 3, 1), (3, 3, 2), (4, 3, 2), (3, 20, 0), (3, 2, 0), (2, 3, 0),
                                            (2, 2, 0), (2, 2, 1),
                                            (2, 3, 1), (5, 5, 4), (5, 5, 3), (40, 40, 20), (10, 10, 0), (142, 3, 141)])
def test_each_modality_gets_its_share_where_names_are_shared(ct, mri, first):
    cases, several = numbered(ct, mri, first), set()
    for seed in range(200):
        drawn = draw_splits(cases, seed=seed)
        splits = {p: {c.split for c in drawn if c.patient == p} for p in {c.patient for c in drawn}}
        assert all(len(s) == 1 for s in splits.values())
        for m, n in (("CT", ct), ("MRI", mri)):
            assert {"train", "valid", "test"} - {c.split for c in drawn
                                                 if c.modality == m} <= ({"test"} if n < 3 else set())
        several.add(tuple(c.split for c in drawn))
    assert draw_splits(cases[::-1], seed=7)[::-1] == draw_splits(cases, seed=7) and (len(several) > 1 or ct == mri == 2)


@pytest.mark.filterwarnings("ignore::cssgan.guard.InputWarning")
def test_shares_are_about_what_was_asked_for():
    for ct, mri, first in ((100, 100, 0), (100, 60, 50), (60, 20, 10)):
        drawn = draw_splits(numbered(ct, mri, first), seed=3)
        for m, n in (("CT", ct), ("MRI", mri)):
            for split in ("valid", "test"): assert abs(len(select(drawn, m, split)) - .2 * n) <= 1


def drawn_before(cases, valid=.2, test=.2, seed=0):
    "The splits as the first version drew them; runs and stored results depend on them."
    split_of = {}
    for modality in MODALITIES:
        free = [p for p in shuffled_patients([c for c in cases if c.modality == modality], seed) if p not in split_of]
        n_test, n_valid = (max(1, round(share * len(free))) for share in (test, valid))
        split_of |= {p: "test" if i < n_test else "valid" if i < n_test + n_valid else "train"
                     for i, p in enumerate(free)}
    return [replace(c, split=split_of[c.patient]) for c in cases]


@pytest.mark.parametrize("ct, mri", [(1, 1), (2, 2), (3, 3), (2, 7), (5, 4), (20, 12), (71, 30)])
def test_without_shared_names_the_splits_are_what_they_always_were(ct, mri):
    cases = numbered(ct, mri, first=500)
    for seed in range(200): assert silent(draw_splits, cases, .2, .2, seed) == drawn_before(cases, seed=seed)
    assert draw_splits(cases, .1, .3, 1) == drawn_before(cases, .1, .3, 1)


def test_that_shared_names_are_one_patient_is_said():
    message = said(draw_splits, numbered(20, 4))[1]
    assert "000, 001, 002 and 1 more" in message and "same patients" in message


# ---- one domain

def test_a_data_set_of_one_domain_is_found_only_by_those_who_can_use_it(tmp_path):
    place(tmp_path / "plain", "CT/anna_image.nii.gz", "CT/anna_label.nii.gz")
    place(tmp_path / "mmwhs", "mr_train/mr_1_image.nii.gz", "mr_train/mr_1_label.nii.gz")
    (tmp_path / "cases.csv").write_text("image,label,modality,split\na.nii.gz,a_label.nii.gz,CT,test\n")
    for name, kept, lacks in ("plain", "CT", "MRI"), ("mmwhs", "MRI", "CT"), ("cases.csv", "CT", "MRI"):
        assert [case.modality for case in find_cases(tmp_path / name, complete=False)] == [kept]
        with pytest.raises(InputError, match=f"holds no {lacks} case"): find_cases(tmp_path / name)


def test_no_domain_at_all_is_refused_by_everybody(tmp_path):
    for name in "CT", "MRI": (tmp_path / "empty" / name).mkdir(parents=True)
    (tmp_path / "bare").mkdir()
    for name in "empty", "bare":
        with pytest.raises(InputError, match="holds no CT case"): find_cases(tmp_path / name, complete=False)


def test_a_slip_in_the_folder_that_is_there_is_refused_by_everybody(tmp_path):
    place(tmp_path, "CT/anna_image.nii.gz", "CT/anna_label.nii.gz", "MRI/bert.nrrd")
    with pytest.raises(InputError, match="holds no MRI case, only bert.nrrd"): find_cases(tmp_path, complete=False)
