"From folders, manifests and seeds to unpaired batches: nothing leaks, nothing is guessed, nothing is mixed up."
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from scans import write_dicom

from cssgan.data import prepared
from cssgan.data.cases import Case, apply_table, check_cases, label_codes, phantom_cases, phantom_S1, phantom_S2
from cssgan.data.datasets import labelled_part, order_of, unpaired, unpaired_order
from cssgan.data.finding import find_cases, from_manifest, write_manifest
from cssgan.data.folders import from_folder, from_mmwhs
from cssgan.data.prepared import (
    CacheError,
    Samples,
    cache_folder,
    checksum,
    content_digest,
    describe_structures,
    fingerprint,
    load_case,
)
from cssgan.data.splits import draw_splits, hide_labels, select, take_fraction, thin, with_splits
from cssgan.data.writing import (
    heart_paths,
    phantom_paths,
    sample_paths,
    write_phantom_of,
    write_phantoms,
    write_samples,
    write_scan,
)
from cssgan.guard import InputError, InputWarning, write_whole
from cssgan.phantoms.scanners import phantom
from cssgan.scans import volumes
from cssgan.scans.files import read_label, read_volume, write_label, write_volume
from cssgan.scans.volumes import IGNORE, Grid, normalise, to_grid
from cssgan.task import HEART

TINY = Grid((24, 24, 16), (7.0, 7.0, 8.0))
MMWHS = {0: 0, 1: 500, 2: 600, 3: 420, 4: 550, 5: 205}


def refused(call, *args, says="", **how):
    "The message of the InputError that the call must raise: one line."
    with pytest.raises(InputError) as e: call(*args, **how)
    message = str(e.value)
    assert "\n" not in message and says in message, message
    return message


def write_values(values, affine, path):
    "Write a label map with values above 255, as MM-WHS has them."
    import nibabel as nib
    nib.Nifti1Image(values.astype(np.int16), affine).to_filename(path)


@pytest.fixture(scope="module")
def scans():
    "One tiny phantom of each modality."
    return {"CT": phantom(0, "CT", TINY), "MRI": phantom(1, "MRI", TINY)}


@pytest.fixture
def mmwhs(scans, tmp_path):
    "MM-WHS as people download it, with its slip."
    for place, modality in (("ct_train", "CT"), ("mr_train", "MRI")):
        (tmp_path / place).mkdir()
        for number in (1001, 1002):
            scan, name = scans[modality], f"{place}_{number}"
            values = np.array([MMWHS[y] for y in range(6)])[scan.label]
            if modality == "MRI" and number == 1001: values[values == 420] = 421
            values[0, 0, 0], values[0, 0, 1] = 820, 850
            write_volume(scan, tmp_path / place / f"{name}_image.nii.gz")
            write_values(values, scan.affine, tmp_path / place / f"{name}_label.nii.gz")
    return tmp_path


@pytest.fixture
def folder(tmp_path):
    "A plain folder: two CT, two MRI."
    write_phantoms(tmp_path, 2, grid=TINY)
    return tmp_path


# ---- label tables

def test_mmwhs_values_are_ours_and_the_slip_is_mended(mmwhs, scans):
    cases = from_mmwhs(mmwhs)
    assert [c.id for c in cases] == ["CT_ct_train_1001", "CT_ct_train_1002", "MRI_mr_train_1001", "MRI_mr_train_1002"]
    slipped, right = load_case(cases[2], TINY), load_case(cases[3], TINY)
    assert 421 in read_label(cases[2].label)[0] and np.array_equal(slipped.label, right.label)
    assert set(np.unique(right.label)) == set(range(6)) and np.bincount(right.label.ravel())[3] > 0


def test_every_value_of_mmwhs():
    values = np.array([0, 205, 420, 421, 500, 550, 600, 820, 850])
    assert apply_table(values, label_codes(HEART, "CT", "MM-WHS")).tolist() == [0, 5, 3, 3, 1, 4, 2, 0, 0]


def test_unknown_label_value_is_named(mmwhs):
    file = mmwhs / "ct_train/ct_train_1002_label.nii.gz"
    values, affine = read_label(file)
    values[5, 5, 5] = 777
    write_values(values, affine, file)
    message = refused(load_case, from_mmwhs(mmwhs)[1], TINY, says="777")
    assert "ct_train_1002_label.nii.gz" in message


def test_what_nobody_annotated_is_ignored_and_a_missing_label_ignores_all(folder, scans):
    case = from_folder(folder)[0]
    label, affine = read_label(case.label)
    write_label(np.where(label == 2, IGNORE, label), affine, case.label)
    assert IGNORE in load_case(case, TINY).label and 2 not in load_case(case, TINY).label
    assert set(np.unique(load_case(replace(case, label=""), TINY).label)) == {IGNORE}


def test_an_image_may_be_a_dicom_folder(tmp_path, scans):
    ct, mri = scans["CT"], scans["MRI"]
    write_dicom(tmp_path / "series 2", ct.voxels, ct.affine)
    write_label(ct.label, ct.affine, tmp_path / "ct_label.nii.gz")
    flipped = ct.affine @ np.array([[1, 0, 0, 0], [0, -1, 0, ct.shape[1] - 1], [0, 0, 1, 0], [0, 0, 0, 1]])
    write_label(ct.label[:, ::-1], flipped, tmp_path / "converted_label.nii.gz")
    write_scan(mri, tmp_path, "mri")
    (tmp_path / "cases.csv").write_text("image,label,modality,split\nseries "
                                        "2,ct_label.nii.gz,CT,train\nMRI/mri_image.nii.gz,MRI/mri_label.nii.gz,MRI,train\n")
    case = from_manifest(tmp_path / "cases.csv")[0]
    read, drawn = load_case(case, TINY), normalise(to_grid(ct, TINY))
    assert np.array_equal(read.label, drawn.label) and np.abs(read.voxels - drawn.voxels).max() < 2e-3
    assert np.array_equal(load_case(replace(case, label=str(tmp_path / "converted_label.nii.gz")), TINY).label,
                          drawn.label)
    before = fingerprint(case, TINY)
    slice_ = tmp_path / "series 2" / "IM0003"
    os.utime(slice_, ns=(1, 1))
    assert fingerprint(case, TINY) != before
    refused(load_case, replace(case, modality="MRI"), TINY, says="is CT by its DICOM tag")


def test_label_on_another_grid_is_refused(folder):
    case = from_folder(folder)[0]
    label, affine = read_label(case.label)
    write_label(label[:-1], affine, case.label)
    assert Path(case.label).name in refused(load_case, case, TINY, says="own grid")


# ---- folders

def test_plain_folder(folder):
    cases = from_folder(folder)
    assert [(c.id, c.patient, c.split) for c in cases] == [
        ("CT_phantom_00000", "phantom_00000", ""), ("CT_phantom_00002", "phantom_00002", ""),
        ("MRI_phantom_00001", "phantom_00001", ""), ("MRI_phantom_00003", "phantom_00003", "")]


def test_uncompressed_files_are_found_too(tmp_path):
    write_phantoms(tmp_path, 1, grid=TINY, ending=".nii")
    assert [Path(c.image).suffix for c in from_folder(tmp_path)] == [".nii", ".nii"]


def test_image_without_label_is_refused(folder):
    (folder / "MRI/phantom_00003_label.nii.gz").unlink()
    assert "phantom_00003_image.nii.gz" in refused(from_folder, folder, says="no label beside it")


@pytest.mark.parametrize("missing", ["CT", "MRI"])
def test_a_domain_with_no_case(folder, missing):
    for file in (folder / missing).iterdir(): file.unlink()
    assert str(folder) in refused(from_folder, folder, says=f"no {missing} case")
    (folder / missing).rmdir()
    refused(from_folder, folder, says=f"no {missing} case")


@pytest.mark.filterwarnings("ignore::cssgan.guard.InputWarning")
def test_same_name_in_both_modalities_is_one_patient(tmp_path):
    write_label(phantom(3, "CT", TINY).label, TINY.affine(), tmp_path / "heart.nii.gz")
    write_phantom_of(tmp_path / "heart.nii.gz", tmp_path / "set", grid=TINY)
    write_phantoms(tmp_path / "set", 5, grid=TINY)
    cases = draw_splits(from_folder(tmp_path / "set"))
    both = [c for c in cases if c.patient == "heart"]
    assert len(both) == 2 and both[0].split == both[1].split


def test_a_data_set_is_known_by_what_it_is(folder, tmp_path_factory, mmwhs):
    assert find_cases("phantom-S1") == phantom_S1() and len(find_cases("phantom-S2")) == 142 + 142 + 4212
    only = tmp_path_factory.mktemp("only")
    write_phantoms(only, 1, grid=TINY)
    assert [c.table for c in find_cases(only)] == [""] * 2 and {c.table for c in find_cases(mmwhs)} == {"MM-WHS"}
    write_manifest(from_folder(only), only / "cases.csv")
    assert find_cases(only / "cases.csv") == from_manifest(only / "cases.csv")


@pytest.mark.parametrize("name", ["phantom-S3", "nowhere", "nowhere.csv", "cases.txt", ""])
def test_no_data_set(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(find_cases, name)


# ---- manifests

def test_manifest_there_and_back(folder):
    cases = draw_splits([replace(c, table="MM-WHS") if c.modality == "CT" else c
                         for c in from_folder(folder) * 1] + phantom_cases({"": (3, 3)}))
    (folder / "deep").mkdir()
    write_manifest(cases, folder / "deep" / "cases.csv")
    again = from_manifest(folder / "deep" / "cases.csv")
    assert [replace(c, image="", label="") for c in again] == [replace(c, image="", label="") for c in cases]
    assert all(c.image == d.image if d.image.startswith("phantom:") else os.path.samefile(c.image, d.image)
               for c, d in zip(again, cases))


def test_manifest_moves_with_its_folder(folder, tmp_path_factory):
    write_manifest(from_folder(folder), folder / "cases.csv")
    there = tmp_path_factory.mktemp("there") / "moved"
    folder.rename(there)
    assert all(Path(c.image).exists() and Path(c.label).exists() for c in from_manifest(there / "cases.csv"))


HEAD = "image,label,modality,split\n"


def manifest(folder, text, encoding="utf-8"):
    (folder / "m.csv").write_text(text, encoding=encoding)
    return folder / "m.csv"


def test_manifest_of_a_spreadsheet(tmp_path):
    cases = from_manifest(manifest(tmp_path, HEAD + "a.nii,al.nii,CT,train\r\nü.nii,,MRI,test\r\n", "utf-8-sig"))
    assert [(Path(c.image).name, Path(c.label).name, c.split) for c in cases] == [("a.nii", "al.nii", "train"),
                                                                                  ("ü.nii", "", "test")]


def test_rows_that_end_early_are_filled_up(tmp_path):
    cases = from_manifest(manifest(tmp_path, "image,modality,split,label\na.nii,CT,train\nc.nii,MRI\n"))
    assert [(c.label, c.split) for c in cases] == [("", "train"), ("", "")]


def test_a_phantom_may_be_scanned_twice(tmp_path):
    cases = from_manifest(manifest(tmp_path, "patient," + HEAD + "a,phantom:4,,CT,train\na,phantom:4,,MRI,train\n"))
    assert [c.modality for c in cases] == ["CT", "MRI"]


@pytest.mark.parametrize("text, says", [
    (HEAD + "a.nii,b.nii,CT,train\nb/../a.nii,b.nii,CT,train\nc.nii,,MRI,train\n", "a.nii twice"),
    (HEAD + "a.nii,,CT,train\na.nii,,MRI,train\n", "a.nii twice"),
    (HEAD + "phantom:4,,CT,train\nphantom:4,,CT,test\nphantom:1,,MRI,train\n", "phantom:4 twice"),
    ("", "lacks the columns"), (HEAD, "no rows"), ("image,modality\na.nii,CT\n", "label, split"),
    (HEAD + "a.nii,b.nii,PET,train\nc.nii,,MRI,train\n", "'PET': modality is CT or MRI"),
    (HEAD + "a.nii,b.nii,CT,training\nc.nii,,MRI,train\n", "'training' - at split"),
    (HEAD + "a.nii,b.nii,CT,train\n", "no MRI case"), (HEAD + ",b.nii,CT,train\nc.nii,,MRI,train\n", "names no image"),
    (HEAD + "a.nii\nc.nii,,MRI,train\n", ""),
    ("id," + HEAD + "x,a.nii,,CT,train\nx,c.nii,,MRI,train\n", "twice"),
    ("table," + HEAD + "mine,a.nii,,CT,train\n,c.nii,,MRI,train\n", "the table 'mine'"),
    ("patient," + HEAD + "anna,a.nii,,CT,train\nanna,c.nii,,MRI,test\n", "patient anna is in train and in test"),
    (HEAD + "phantom:x,,CT,train\nphantom:1,,MRI,train\n", "phantom:x"),
    (HEAD + "phantom:-2,,CT,train\nphantom:1,,MRI,train\n", "phantom:-2")])
def test_manifest_that_cannot_be(tmp_path, text, says):
    assert "m.csv" in refused(from_manifest, manifest(tmp_path, text), says=says)


def test_manifest_that_is_not_there_or_no_text(tmp_path):
    refused(from_manifest, tmp_path / "none.csv", says="is not there")
    (tmp_path / "m.csv").write_bytes(b"\x89PNG\r\n\xff\xfe\x00")
    refused(from_manifest, tmp_path / "m.csv", says="m.csv")


def test_file_of_a_manifest_that_is_not_there(tmp_path):
    cases = from_manifest(manifest(tmp_path, HEAD + "a.nii,b.nii,CT,train\nc.nii,,MRI,train\n"))
    assert "a.nii" in refused(load_case, cases[0], TINY, says="does not exist")
    refused(Samples(cases, TINY, tmp_path / "cache").__getitem__, 0, says="does not exist")


def test_manifest_that_cannot_be_written(tmp_path):
    refused(write_manifest, phantom_S1(), tmp_path / "none" / "cases.csv", says="cannot be written")
    assert not list(tmp_path.iterdir())


# ---- splits and fractions

def many(n=20, scans_each=2):
    return [Case(f"{m}_{i}_{k}", f"{m}{i}", m, f"{m}_{i}_{k}.nii") for m in ("CT", "MRI") for i in range(n)
            for k in range(scans_each)]


def test_splits_are_by_patient_and_by_seed():
    drawn = draw_splits(many(), seed=4)
    split_of = {}
    for c in drawn: assert split_of.setdefault(c.patient, c.split) == c.split
    assert drawn == draw_splits(many(), seed=4) != draw_splits(many(), seed=5)
    assert {c.id: c.split for c in drawn} == {c.id: c.split for c in draw_splits(many()[::-1], seed=4)}
    for m in ("CT", "MRI"): assert [len(select(drawn, m, s)) for s in ("train", "valid", "test")] == [24, 8, 8]


def test_a_split_does_not_depend_on_the_other_domain():
    ct = lambda cases: {c.id: c.split for c in cases if c.modality == "CT"}
    assert ct(draw_splits(many())) == ct(draw_splits([c for c in many() if c.modality == "CT"
                                                      or c.patient in ("MRI1", "MRI2", "MRI3")]))


def test_three_patients_are_enough_and_two_are_not():
    assert {c.split for c in draw_splits(many(3, 1))} == {"train", "valid", "test"}
    refused(select, draw_splits(many(2, 1)), "CT", "train", says="no CT case in the split 'train'")


def test_a_split_with_none():
    cases = phantom_cases({"train": (2, 2), "valid": (2, 0)})
    refused(unpaired, cases, TINY, says="no MRI case in the split 'valid'")


def test_a_leak_is_refused():
    cases = phantom_cases({"train": (2, 2), "valid": (1, 1)})
    leak = [*cases, replace(cases[0], id="again", split="test")]
    assert "patient 0" in refused(check_cases, leak, "this study", says="train and in test")


def test_drawn_or_given_but_not_both():
    loose, given = many(), draw_splits(many())
    assert with_splits(given, 3) == given and with_splits(loose, 3) == draw_splits(loose, seed=3)
    refused(with_splits, [loose[0], *given[1:]], says="has no split")


def test_fractions_are_nested_and_reproducible():
    cases = [c for c in many(50) if c.modality == "CT"]
    kept = [{c.id for c in take_fraction(cases, f, seed=1)} for f in (0.01, 0.14, 0.28, 0.85, 1)]
    assert [len(k) for k in kept] == [2, 14, 28, 84, 100] and all(a < b for a, b in zip(kept, kept[1:]))
    assert kept[1] == {c.id for c in take_fraction(cases[::-1], 0.14,
                                                   seed=1)} != {c.id for c in take_fraction(cases, 0.14, seed=2)}


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, 14, float("nan")])
def test_a_fraction_that_cannot_be(fraction):
    refused(take_fraction, many(), fraction, says="fraction")


def test_thinning_leaves_validation_and_test_alone():
    cases = draw_splits(many())
    few = thin(cases, {"CT": 0.25, "MRI": 1.0}, seed=1)
    gone = set(cases) - set(few)
    assert len(gone) == 18 and {(c.modality, c.split) for c in gone} == {("CT", "train")}
    assert [c for c in cases if c in set(few)] == few


# ---- phantoms

def test_phantom_sets_are_the_papers():
    s1, s2 = phantom_S1(), phantom_S2()
    for m in ("CT", "MRI"): assert [len(select(s1, m, s)) for s in ("train", "valid", "test")] == [57, 14, 71]
    assert len(select(s2, "CT", "train")) == 57 + 4212 and set(s1) <= set(s2)
    assert not {c.patient for c in s2 if c.modality == "CT"} & {c.patient for c in s2 if c.modality == "MRI"}


def test_samples_are_written_again_bit_for_bit(root, tmp_path):
    write_samples(tmp_path)
    made, kept = ({p.relative_to(top): p.read_bytes() for p in top.rglob("*.nii*")}
                  for top in (tmp_path, root / "data_samples"))
    assert made.keys() == kept.keys() and [str(p) for p in made if made[p] != kept[p]] == [], "run `make samples`"
    assert 0 < sum(map(len, kept.values())) < 3e6


def test_samples_are_cases_far_from_the_sets(root):
    cases = from_folder(root / "data_samples")
    assert [c.modality for c in cases] == ["CT"] * 3 + ["MRI"] * 3
    assert {c.split for c in draw_splits(cases)} == {"train", "valid", "test"}
    assert not {c.patient.split("_")[1] for c in cases} & {f"{int(c.patient):05d}" for c in phantom_S2()}
    for c in cases: assert set(np.unique(load_case(c, TINY).label)) == set(range(6))


def test_written_phantoms_are_the_drawn_ones(folder):
    for modality, seed in (("CT", 2), ("MRI", 3)):
        drawn, name = phantom(seed, modality, TINY), f"phantom_{seed:05d}"
        read = read_volume(folder / modality / f"{name}_image.nii.gz", modality)
        label, affine = read_label(folder / modality / f"{name}_label.nii.gz")
        assert np.array_equal(read.voxels, drawn.voxels) and np.array_equal(label, drawn.label)
        assert np.array_equal(affine, drawn.affine)


def test_phantoms_cannot_be_none_or_nowhere(tmp_path):
    (tmp_path / "file").touch()
    refused(write_phantoms, tmp_path, 0, says="1 or more")
    refused(write_phantoms, tmp_path, 1, first=-1, grid=TINY, says="-1")
    refused(write_phantoms, tmp_path / "file", 1, grid=TINY, says="cannot be made")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_label_map_is_read_by_the_table_that_fits(tmp_path):
    ours = phantom(3, "CT", TINY)
    write_label(ours.label, ours.affine, tmp_path / "ours.nii.gz")
    write_values(np.array([MMWHS[y] for y in range(6)])[ours.label], ours.affine, tmp_path / "theirs.nii.gz")
    for name in ("ours", "theirs"): write_phantom_of(tmp_path / f"{name}.nii.gz", tmp_path / "set", grid=TINY)
    labels = [read_label(f)[0] for f in sorted((tmp_path / "set").rglob("*_label.nii.gz"))]
    assert len(labels) == 4 and all(np.array_equal(labels[0], o) for o in labels)
    write_values(ours.label * 3, ours.affine, tmp_path / "strange.nii.gz")
    assert "strange.nii.gz" in refused(write_phantom_of, tmp_path / "strange.nii.gz", tmp_path / "set", grid=TINY,
                                       says="no table knows")


# ---- the cache

def ct_case(folder): return from_folder(folder)[0]


def test_prepared_once(folder, monkeypatch):
    samples = Samples(from_folder(folder), TINY, folder / "cache")
    first = samples[0]
    monkeypatch.setattr("cssgan.data.prepared.load_case", lambda *_: pytest.fail("made again"))
    again = samples[0]
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert first[2] == again[2] == "CT_phantom_00000"
    assert first[0].shape == (1, *TINY.shape) and first[0].dtype == torch.float32
    assert first[0].abs().max() <= 1 and first[1].dtype == torch.int64


@pytest.mark.filterwarnings("ignore::cssgan.guard.InputWarning")
@pytest.mark.parametrize("spoil", [lambda b: b"", lambda b: b[:100], lambda b: b[:-1], lambda b: b"x" * len(b),
                                   lambda b: b"\x80\x04" + b, lambda b: b"{}"],
                         ids=["empty", "cut", "one byte short", "rubbish", "pickle", "text"])
def test_a_damaged_file_is_made_again(folder, spoil):
    samples = Samples(from_folder(folder), TINY, folder / "cache")
    volume, labels, _ = samples[0]
    file, = (folder / "cache").iterdir()
    good = file.read_bytes()
    file.write_bytes(spoil(good))
    again = samples[0]
    assert torch.equal(volume, again[0]) and torch.equal(labels, again[1]) and file.read_bytes() == good


def test_a_changed_file_is_not_confused_with_the_old_one(folder):
    samples = Samples(from_folder(folder), TINY, folder / "cache")
    before = samples[0][0]
    case = samples.cases[0]
    scan = read_volume(case.image, "CT")
    stamp = os.stat(case.image)
    write_volume(replace(scan, voxels=scan.voxels[::-1]), case.image)
    assert not torch.equal(samples[0][0], before)
    label, affine = read_label(case.label)
    with_changed_label = samples[0][1]
    write_label(np.where(label == 1, 5, label), affine, case.label)
    assert not torch.equal(samples[0][1], with_changed_label) and stamp.st_ino != os.stat(case.image).st_ino


def test_everything_that_matters_is_in_the_fingerprint(folder):
    case = ct_case(folder)
    prints = {fingerprint(c, g) for c, g in [
        (case, TINY), (replace(case, table="MM-WHS"), TINY), (replace(case, label=""), TINY),
        (case, Grid((24, 24, 16), (7.0, 7.0, 8.5))),
        (case, Grid((24, 24, 17), (7.0, 7.0, 8.0))), (from_folder(folder)[1], TINY),
        (Case("a", "0", "CT", "phantom:0"), TINY), (Case("a", "0", "MRI", "phantom:0"), TINY)]}
    assert len(prints) == 8
    assert fingerprint(replace(case, split="test", id="other", patient="p"), TINY) in prints


def test_a_table_and_the_program_are_known_by_what_they_say(folder, monkeypatch, tmp_path_factory):
    case, before = ct_case(folder), fingerprint(ct_case(folder), TINY)
    tables = HEART.tables | {"cssgan": HEART.tables["cssgan"] | {"9": "LV"}}
    assert fingerprint(replace(case, task=msgspec.structs.replace(HEART, tables=tables)), TINY) != before
    other = tmp_path_factory.mktemp("other") / "volumes.py"
    other.write_bytes(Path(volumes.__file__).read_bytes() + b"#")
    with monkeypatch.context() as m:
        m.setattr(volumes, "__file__", str(other))
        prepared.code_digest.cache_clear()
        assert fingerprint(case, TINY) != before
    prepared.code_digest.cache_clear()
    assert fingerprint(case, TINY) == before
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("read again"))
    assert fingerprint(case, TINY) == before


def test_four_processes_build_the_cache_at_once_and_alike_to_the_byte(folder):
    code = """
import hashlib, json, os, sys, time
from pathlib import Path
from cssgan.data.cases import phantom_cases
from cssgan.data.prepared import Samples
from cssgan.scans.volumes import Grid
samples = Samples(phantom_cases({"train": (3, 3)}), Grid((24, 24, 16), (7.0, 7.0, 8.0)), sys.argv[1])
(Path(sys.argv[2]) / str(os.getpid())).touch()
while len(os.listdir(sys.argv[2])) < 4: time.sleep(0.001)
def digest(volume, labels, _): return hashlib.sha256(volume.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
print(json.dumps([digest(*samples[i]) for i in range(6)]))
"""
    (folder / "ready").mkdir()
    running = [subprocess.Popen([sys.executable, "-c", code, folder / "cache", folder / "ready"],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    out = [p.communicate(timeout=120) for p in running]
    assert [p.returncode for p in running] == [0] * 4, out
    assert len({o[0] for o in out}) == 1 and len(set(json.loads(out[0][0]))) == 6
    names = [p.name for p in (folder / "cache").iterdir()]
    assert len(names) == 6 and all(n.endswith(".safetensors") and not n.startswith(".") for n in names)
    alone = Samples(phantom_cases({"train": (3, 3)}), TINY, folder / "alone")
    for case in alone.cases: alone.prepared(case)
    assert {p.name: p.read_bytes() for p in (folder / "alone").iterdir()} == {p.name: p.read_bytes()
                                                                              for p in (folder / "cache").iterdir()}


def test_a_cache_that_cannot_be_made(folder):
    (folder / "file").touch()
    refused(Samples(from_folder(folder), TINY, folder / "file" / "cache").__getitem__, 0, says="cannot be made")


def test_whole_or_not_at_all(tmp_path, monkeypatch):
    write_whole(tmp_path / "a", b"old")
    def full(*_): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "replace", full)
    refused(write_whole, tmp_path / "a", b"new", says="No space left")
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == b"old"


def test_on_the_disk_before_it_gets_its_name_and_no_litter_of_who_is_interrupted(tmp_path, monkeypatch):
    synced = []
    def stop(*_): raise KeyboardInterrupt
    monkeypatch.setattr(os, "fsync", lambda f: synced.append(os.fstat(f).st_size))
    write_whole(tmp_path / "a", b"old")
    assert synced[0] == 3 and len(synced) == 2 # the file, and the folder that names it
    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt): write_whole(tmp_path / "a", b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == b"old"


# ---- unpaired batches

@pytest.mark.parametrize("n_A, n_B", [(5, 5), (7, 2), (1, 6), (1, 1)])
def test_an_epoch_is_one_pass_over_the_larger_domain(n_A, n_B):
    order = unpaired_order(n_A, n_B, seed=0, epoch=3)
    counts = [np.bincount([pair[side] for pair in order], minlength=n) for side, n in enumerate((n_A, n_B))]
    assert len(order) == max(n_A, n_B) and all(c.max() - c.min() <= 1 for c in counts)
    assert max(counts, key=len).tolist() == [1] * max(n_A, n_B)


def test_the_order_is_a_function_of_seed_and_epoch():
    orders = [unpaired_order(9, 4, s, e) for s in range(3) for e in range(3)]
    assert len({tuple(o) for o in orders}) == 9 and orders[4] == unpaired_order(9, 4, 1, 1)


@pytest.mark.parametrize("pairs", [1, 3, 6, 20])
def test_an_epoch_has_as_many_pairs_as_it_is_told(five, pairs):
    told = replace(five, pairs=pairs)
    ids = [b.ids for b in told.epoch(0, 0)]
    assert len(ids) == told.length() == pairs and len(list(told.epoch(0, 0, 2))) == -(-pairs // 2)
    assert [b.ids for b in told.epoch(0, 0, seen=1)] == ids[1:]
    counts = np.bincount([i for i, _ in order_of(told, 0, 0)], minlength=5)
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("n_A, n_B, turns_A, turns_B", [(4, 5, [], [3]), (4, 5, [1], [3, 4]), (5, 2, [0, 1], [])])
@pytest.mark.parametrize("pairs", [1, 2, 7, 12])
def test_labelled_cases_take_turns_and_no_pair_is_without_labels(n_A, n_B, turns_A, turns_B, pairs):
    order = unpaired_order(n_A, n_B, 0, 0, pairs, turns_A, turns_B)
    known = [(not turns_A or i in turns_A, not turns_B or j in turns_B) for i, j in order]
    assert len(order) == pairs and all(map(any, known))
    for side in (0, 1): assert sum(known_pair[side] for known_pair in known) >= pairs // 2
    if pairs == 12: assert {i for i, _ in order} == set(range(n_A)) and {j for _, j in order} == set(range(n_B))


def test_hidden_labels_are_ignored_and_the_scan_stays(tmp_path):
    cases = phantom_cases({"train": (2, 3), "valid": (1, 1)})
    partly = unpaired(hide_labels(cases, {"MRI": .4}), TINY, tmp_path)
    whole = unpaired(cases, TINY, tmp_path)
    hidden = [case.hidden for case in partly.train_B.cases]
    assert sorted(hidden) == [False, True, True] and partly.name() != whole.name()
    for (volume, labels, id), (same, truth, other), bare in zip(partly.train_B, whole.train_B, hidden):
        assert id == other and torch.equal(volume, same)
        assert (labels == IGNORE).all() if bare else torch.equal(labels, truth)
    assert len(labelled_part(partly).train_B) == 1 and len(labelled_part(partly).train_A) == 2
    assert partly.unlabelled() == []


def test_a_manifest_has_no_column_for_hidden_labels_and_refuses_them(tmp_path):
    cases = phantom_cases({"train": (1, 2), "valid": (1, 1)})
    write_manifest(cases, tmp_path / "cases.csv")
    assert (tmp_path / "cases.csv").read_text().splitlines()[0] == "id,patient,modality,image,label,split,table"
    refused(write_manifest, hide_labels(cases, {"MRI": .5}), tmp_path / "partly.csv", says="hidden")
    assert not (tmp_path / "partly.csv").exists()


def test_a_case_that_comes_again_in_an_epoch_is_changed_otherwise(five):
    seen = {}
    for batch in five.epoch(0, 0, augmented="shape"): seen.setdefault(batch.ids[1], []).append(batch.real_B)
    assert all(not torch.equal(a, b) for volumes in seen.values() for a, b in zip(volumes, volumes[1:]))


def test_batches(tmp_path):
    data = unpaired(phantom_cases({"train": (3, 2), "valid": (1, 1)}), TINY, tmp_path)
    batches = list(data.epoch(0, 0, batch_size=2))
    assert [len(b.real_A) for b in batches] == [len(b.real_B) for b in batches] == [2, 2] and data.length() == 3
    assert {i for b in batches for i in b.ids if i.startswith("CT")} == {"CT_00000", "CT_00002", "CT_00004"}
    assert batches[0].real_A.shape == (2, 1, *TINY.shape) and batches[0].y_B.shape == (2, *TINY.shape)


def test_ranges_are_the_training_volumes_median(tmp_path):
    data = unpaired(phantom_cases({"train": (1, 3), "valid": (1, 1)}), TINY, tmp_path)
    lows = sorted(load_case(c, TINY).range[0] for c in data.train_B.cases)
    assert data.ranges()["CT"] == [-1000, 1000] and data.ranges()["MRI"][0] == pytest.approx(lows[1])


def test_ranges_read_no_ct(tmp_path, monkeypatch):
    data = unpaired(phantom_cases({"train": (2, 1), "valid": (1, 1)}), TINY, tmp_path)
    monkeypatch.setattr(data.train_A, "prepared", lambda _: pytest.fail("read a CT"))
    assert data.ranges()["CT"] == [-1000, 1000]


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    "Five CT, two MRI."
    return unpaired(phantom_cases({"train": (5, 2), "valid": (1, 1)}), TINY, tmp_path_factory.mktemp("five"))


def pairs(batch):
    "Who meets whom in a batch."
    n = len(batch.real_A)
    assert len(batch.ids) == 2 * n == 2 * len(batch.real_B)
    return list(zip(batch.ids[:n], batch.ids[n:]))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 7, 11])
def test_the_last_batch_is_filled_up_with_the_epochs_first_pairs(five, batch_size):
    one_by_one = [pair for b in five.epoch(3, 1) for pair in pairs(b)]
    many = [pair for b in five.epoch(3, 1, batch_size) for pair in pairs(b)]
    assert len(one_by_one) == 5 and len(many) == -(-5 // batch_size) * batch_size
    assert many == (one_by_one * 3)[:len(many)]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_pairs_that_were_seen_are_left_out_and_the_rest_is_the_same(five, batch_size):
    whole = list(five.epoch(0, 2, batch_size))
    for done in range(len(whole) + 1):
        rest = list(five.epoch(0, 2, batch_size, seen=done * batch_size))
        assert [b.ids for b in rest] == [b.ids for b in whole[done:]]
        assert all(torch.equal(a.real_B, b.real_B) and torch.equal(a.y_A, b.y_A) for a, b in zip(rest, whole[done:]))


@pytest.mark.parametrize("n, batch_size", [(2, 1), (2, 2), (3, 1), (4, 2)])
def test_the_shares_of_processes_together_are_the_batch_of_one(five, n, batch_size):
    together = list(five.epoch(0, 3, n * batch_size))
    shares = [list(five.epoch(0, 3, batch_size, share=(which, n))) for which in range(n)]
    assert {len(share) for share in shares} == {len(together)}
    for one, *parts in zip(together, *shares):
        assert pairs(one) == [pair for part in parts for pair in pairs(part)]
        assert all(len(part.real_A) == batch_size for part in parts)
        for field in ("real_A", "y_A", "real_B", "y_B"):
            assert torch.equal(getattr(one, field), torch.cat([getattr(part, field) for part in parts]))
    late = [list(five.epoch(0, 3, batch_size, n * batch_size, (which, n))) for which in range(n)]
    assert [[b.ids for b in share] for share in late] == [[b.ids for b in share[1:]] for share in shares]


def test_a_name_for_the_cases_changes_with_any_of_them_and_not_with_the_cache(five, tmp_path):
    cases = phantom_cases({"train": (5, 2), "valid": (1, 1)})
    assert unpaired(cases, TINY, tmp_path).name() == five.name()
    for other in (cases[:-1] + [replace(cases[-1], id="other")], [replace(cases[0], split="test"), *cases[1:]]):
        assert unpaired(other, TINY, tmp_path).name() != five.name()


# ---- labels that can be a heart's

SETS = {"ACDC": {2: 1, 5: 2, 1: 3}, "M&Ms": {1: 1, 5: 2, 2: 3}, "TotalSegmentator": {5: 1, 3: 2, 1: 3, 4: 4, 2: 5},
        "HVSMR": {1: 1, 2: 2, 3: 3, 4: 4}, "LV and RV exchanged": {1: 2, 2: 1, 3: 3, 4: 4, 5: 5},
        "LV and myocardium exchanged": {1: 5, 5: 1, 2: 2, 3: 3, 4: 4},
        "one number for all": {y: 1 for y in range(1, 6)}, "nothing": {},
        "only what nobody annotated": {y: IGNORE for y in range(1, 6)}}


def renumbered(labels, table):
    "Labels in another data set's numbers."
    other = np.zeros_like(labels)
    for ours, theirs in table.items(): other[labels == ours] = theirs
    return other


@pytest.mark.parametrize("name", SETS)
def test_numbers_of_other_data_sets_are_refused_with_what_they_were_read_as(folder, name):
    case = ct_case(folder)
    label, affine = read_label(case.label)
    write_label(renumbered(label, SETS[name]), affine, case.label)
    for call, *args in ((load_case, case, TINY), (describe_structures, case),
                        (write_phantom_of, case.label, folder / "made", ("CT",), "", TINY)):
        assert Path(case.label).name in refused(call, *args, says="1 LV, 2 RV, 3 LA, 4 RA, 5 myocardium")
    assert not (folder / "made").exists()


@pytest.mark.parametrize("value", [1, 5])
def test_a_mask_of_ones_is_refused(folder, value):
    case = ct_case(folder)
    label, affine = read_label(case.label)
    write_label(np.full_like(label, value), affine, case.label)
    refused(load_case, case, TINY, says="cannot be a heart")


def test_a_label_map_of_which_the_table_drops_everything(mmwhs):
    file = mmwhs / "ct_train/ct_train_1001_label.nii.gz"
    values, affine = read_label(file)
    write_values(np.where(values > 0, 820, 0), affine, file)
    assert file.name in refused(load_case, from_mmwhs(mmwhs)[0], TINY, says="500 LV, 600 RV")


@pytest.mark.parametrize("dropped", [(2, 3, 4), (3, 4), (1,), (2,), (1, 5), (5,)], ids=str)
def test_what_is_annotated_in_part_is_accepted(folder, dropped):
    case = ct_case(folder)
    label, affine = read_label(case.label)
    write_label(np.where(np.isin(label, (0, *dropped)), IGNORE, label), affine, case.label)
    assert set(np.unique(load_case(case, TINY).label)) == set(range(1, 6)) - set(dropped) | {IGNORE}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("axis, half", [(0, 0), (1, 1), (2, 0), (2, 1)])
def test_a_heart_that_is_cut_by_the_field_of_view_is_accepted(tmp_path, seed, axis, half):
    scan = phantom(seed, "CT", Grid((32, 32, 24), (5., 5., 5.)))
    place = [slice(None)] * 3
    heart = np.flatnonzero(np.isin(scan.label, (1, 5)).any(axis=tuple({0, 1, 2} - {axis})))
    middle = (heart[0] + heart[-1]) // 2
    place[axis] = slice(middle, None) if half else slice(None, middle + 1)
    affine = scan.affine.copy()
    affine[:3, 3] += affine[:3, axis] * (middle if half else 0)
    write_scan(replace(scan, voxels=scan.voxels[tuple(place)], label=scan.label[tuple(place)], affine=affine), tmp_path,
               "cut")
    load_case(Case("cut", "1", "CT", str(tmp_path / "CT/cut_image.nii.gz"), str(tmp_path / "CT/cut_label.nii.gz")),
              TINY)


@pytest.mark.data
def test_every_real_heart_is_believed(real):
    hearts, stacks = sorted((real / "hearts").glob("*.nii.gz")), sorted((real / "sunnybrook").glob("*_label.nii.gz"))
    for file in [*hearts, real / "rodero01/labels_1mm.nii.gz", *stacks]:
        said = describe_structures(Case("a", "a", "CT", "a", str(file), table="MM-WHS"))
        assert said.startswith("500 LV ") and " ml" in said


@pytest.mark.data
def test_short_axis_stacks_can_be_prepared(real, tmp_path):
    cases = [Case(f"{i}", f"{i}", "MRI", str(f), str(f).replace("_mr", "_label"), "train", "MM-WHS")
             for i, f in enumerate(sorted((real / "sunnybrook").glob("*_mr.nii.gz"))[:5])]
    for case in cases: assert {0, 1, 5} >= set(np.unique(Samples(cases, TINY, tmp_path).prepared(case)["labels"])) > {0}


def test_a_stray_voxel_that_drags_the_grid_away_is_refused(folder):
    case, tight = ct_case(folder), Grid((8, 8, 8), (2., 2., 2.))
    label, affine = read_label(case.label)
    spread = np.zeros_like(label)
    spread[0, 0, 0] = spread[-1, -1, -1] = 2
    write_label(spread, affine, case.label)
    refused(load_case, case, tight, says="stray voxel")


def test_structures_are_said_with_their_volumes(folder):
    said = describe_structures(ct_case(folder))
    assert [part.split()[:2] for part in said.split(", ")] == [
        ["1", "LV"], ["2", "RV"], ["3", "LA"], ["4", "RA"], ["5", "myocardium"]]
    assert said.count(" ml") == 5
    label, affine = read_label(ct_case(folder).label)
    assert said.startswith(f"1 LV {np.count_nonzero(label == 1) * 7 * 7 * 8 / 1000:.0f} ml")
    assert describe_structures(replace(ct_case(folder), label="")) == "no labels"
    assert describe_structures(phantom_cases({"train": (1, 1)})[0]).startswith("LV ")


def test_volumes_come_from_the_determinant(folder):
    case = ct_case(folder)
    label, affine = read_label(case.label)
    tilted = affine.copy()
    tilted[1, 2] = affine[2, 2] * np.tan(np.radians(30))  # a gantry's tilt: the spacing grows, the voxel does not
    straight = describe_structures(case)
    import nibabel as nib
    nib.Nifti1Image(label.astype(np.uint8), tilted).to_filename(case.label)
    assert describe_structures(case).split(" (")[0] == straight.split(" (")[0]


# ---- what a data set is called

@pytest.fixture(scope="module")
def set_of_four(tmp_path_factory):
    "Two tiny scans of each modality, and a manifest that says who trains: copy it."
    folder = tmp_path_factory.mktemp("four")
    write_phantoms(folder, 2, grid=TINY)
    cases = [replace(c, split=split) for c, split in zip(from_folder(folder), ("train", "valid") * 2)]
    write_manifest(cases, folder / "cases.csv")
    return folder


@pytest.fixture
def four(set_of_four, tmp_path): return Path(shutil.copytree(set_of_four, tmp_path / "four"))


def opened(folder, cache=None): return unpaired(from_manifest(folder / "cases.csv"), TINY, cache or folder / "cache")


def test_the_name_of_data_is_that_of_its_content_wherever_it_lies(four, tmp_path):
    name = opened(four).name()
    for file in four.glob("*/*.nii.gz"): os.utime(file, ns=(1, 1))
    shutil.copytree(four, tmp_path / "elsewhere")
    assert opened(four).name() == opened(tmp_path / "elsewhere", tmp_path / "empty").name() == name
    assert opened(four).names()[0] == name


@pytest.mark.parametrize("place", ["CT/phantom_00000_image.nii.gz", "CT/phantom_00000_label.nii.gz",
                                   "MRI/phantom_00003_image.nii.gz", "MRI/phantom_00003_label.nii.gz"])
def test_a_scan_that_was_exchanged_under_its_name_changes_the_name_of_the_data(four, place):
    before, other = opened(four).names(), four / place.replace("00000", "00002").replace("00003", "00001")
    stamp = os.stat(four / place)
    shutil.copy(other, four / place)
    os.utime(four / place, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    after = opened(four).names()
    assert after[0] != before[0] and after[1] == before[1]


def test_the_name_of_data_is_known_without_reading_scans_again(four, monkeypatch):
    name = (first := opened(four)).name()
    monkeypatch.setattr(prepared, "load_case", lambda *_: pytest.fail("read again"))
    monkeypatch.setattr(prepared, "content_digest", lambda *_: pytest.fail("hashed again"))
    assert opened(four).name() == name
    shutil.rmtree(four)
    assert first.name() == name


def test_the_name_that_older_checkpoints_hold_is_among_the_names(five):
    import hashlib
    ids = [[c.id for c in samples.cases] for samples in (five.train_A, five.train_B, five.valid_A, five.valid_B)]
    assert five.names()[1] == hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16] != five.name()


def test_phantoms_are_known_by_their_seed(five, tmp_path):
    cases = phantom_cases({"train": (5, 2), "valid": (1, 1)})
    cases[0] = replace(cases[0], image="phantom:98")
    assert unpaired(cases, TINY, tmp_path).name() != five.name() and not list(tmp_path.iterdir())


def test_slices_and_data_beside_a_header_are_content_too(tmp_path, scans):
    write_dicom(tmp_path / "series", scans["CT"].voxels, scans["CT"].affine)
    (tmp_path / "a.mhd").write_text("NDims = 3\nElementDataFile = a.raw\n")
    (tmp_path / "a.raw").write_bytes(b"1234")
    for place, changed in (("series", "series/IM0003"), ("a.mhd", "a.raw")):
        case = Case("a", "a", "CT", str(tmp_path / place))
        before = content_digest(case), fingerprint(case, TINY)
        (tmp_path / changed).write_bytes((tmp_path / changed).read_bytes() + b"5")
        assert content_digest(case) != before[0] and fingerprint(case, TINY) != before[1]


# ---- before the first step

def test_a_slip_in_a_name_is_found_before_any_scan_is_read(four, monkeypatch):
    monkeypatch.setattr(prepared, "load_case", lambda *_: pytest.fail("read a scan"))
    text = (four / "cases.csv").read_text().replace("MRI/phantom_00003_image", "MRI/phantom_00003_imgae")
    (four / "cases.csv").write_text(text)
    message = refused(opened(four).prepare, says="1 of 4 cases cannot be used")
    assert "phantom_00003_imgae.nii.gz" in message and not (four / "cache").exists()


def test_all_bad_cases_are_counted_and_the_first_is_named(four):
    for n in (0, 3): (four / f"{'MRI' if n else 'CT'}/phantom_0000{n}_image.nii.gz").write_bytes(b"rubbish")
    assert "phantom_00000_image.nii.gz" in refused(opened(four).prepare, says="2 of 4 cases cannot be used")
    assert len(list((four / "cache").glob("*.safetensors"))) == 2


def test_prepared_data_is_read_and_kept_and_phantoms_are_not_drawn(four, monkeypatch, tmp_path):
    data = opened(four)
    data.prepare(progress=True)
    assert len(list((four / "cache").glob("*.safetensors"))) == 4
    monkeypatch.setattr(prepared, "load_case", lambda *_: pytest.fail("read or drawn again"))
    data.prepare()
    unpaired(phantom_cases({"train": (2, 2), "valid": (1, 1)}), TINY, tmp_path / "none").prepare()
    assert not (tmp_path / "none").exists()
    assert data.unlabelled() == []


def test_what_can_be_no_cache_is_not_blamed_on_the_cases(four):
    (four / "file").touch()
    with pytest.raises(CacheError, match="CSSGAN_CACHE") as e: opened(four, four / "file" / "cache").prepare()
    assert "cases cannot be used" not in str(e.value)


def test_parts_without_labels_are_named(four):
    cases = [replace(c, label="") if c.modality == "MRI" else c for c in from_manifest(four / "cases.csv")]
    assert unpaired(cases, TINY, four / "cache").unlabelled() == [("MRI", "train"), ("MRI", "valid")]


# ---- what the cache can have suffered

def kept(four):
    "Samples, and the file in which the first is kept."
    samples = Samples(from_folder(four), TINY, four / "cache")
    samples[0]
    file, = (four / "cache").iterdir()
    return samples, file


@pytest.mark.parametrize("where", [5, 60, 200, 0.3, 0.7, -30])
def test_a_bit_that_was_lost_is_found(four, where):
    samples, file = kept(four)
    volume, labels, _ = samples[0]
    good = file.read_bytes()
    at = int(where * len(good)) if isinstance(where, float) else where
    file.write_bytes(good[:at] + bytes([good[at] ^ 4]) + good[at + 1:])
    with pytest.warns(InputWarning, match="CT_phantom_00000 is prepared again"): again = samples[0]
    assert torch.equal(volume, again[0]) and torch.equal(labels, again[1]) and file.read_bytes() == good


@pytest.mark.parametrize("change", [{"labels": lambda t: t.fill_(77)}, {"volume": lambda t: t.fill_(float("nan"))},
                                    {"volume": lambda t: t.fill_(3)}, {"volume": lambda t: t[:, :8].contiguous()},
                                    {"labels": lambda t: t.long()}, {"range": lambda t: t.fill_(float("inf"))},
                                    {"more": None}],
                         ids=["label 77", "nan", "out of range", "another shape", "another type", "infinite range",
                              "one tensor more"])
def test_what_no_prepared_case_holds_is_made_again_even_with_a_right_checksum(four, change):
    from safetensors.torch import load_file, save_file
    samples, file = kept(four)
    good, tensors = file.read_bytes(), load_file(file)
    for name, how in change.items(): tensors[name] = how(tensors[name]) if how else torch.zeros(1)
    content = samples.content(samples.cases[0])
    save_file(tensors, file, {"cssgan": f"{content} {checksum(tensors, content)}"})
    with pytest.warns(InputWarning, match="prepared again"): samples[0]
    assert file.read_bytes() == good


def test_a_pipe_in_the_cache_does_not_hang(four):
    samples, file = kept(four)
    good = file.read_bytes()
    file.unlink()
    os.mkfifo(file)
    with pytest.warns(InputWarning, match="prepared again"): samples[0]
    assert file.read_bytes() == good


def test_halves_that_killed_processes_left_are_removed(four):
    dead = subprocess.run([sys.executable, "-c", f"""
import os
from pathlib import Path
from cssgan.guard import _part_names
print(os.getpid())
folder = Path({str(four / "cache")!r})
folder.mkdir()
for name in ("one.safetensors", "another.safetensors"): (folder / _part_names(Path(name))[1]).touch()"""],
                          capture_output=True, text=True, check=True)
    mine = four / "cache" / next((four / "cache").iterdir()).name.replace(f"-{dead.stdout.strip()}-",
                                                                          f"-{os.getpid()}-")
    mine.touch()
    assert len(list((four / "cache").iterdir())) == 3
    opened(four).prepare()
    assert [f for f in (four / "cache").iterdir() if f.suffix == ".part"] == [mine]


# ---- where the cache is

@pytest.mark.parametrize("value", ["", "  ", None])
def test_an_empty_variable_is_unset(monkeypatch, tmp_path, value):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CSSGAN_CACHE", raising=False) if value is None else monkeypatch.setenv("CSSGAN_CACHE", value)
    assert cache_folder() == tmp_path / ".cache" / "cssgan"


def test_home_is_asked_for_only_where_it_is_needed(monkeypatch, tmp_path):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # no HOME, no entry in passwd
    monkeypatch.setenv("CSSGAN_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    for value in ("", "~/cache"):
        monkeypatch.setenv("CSSGAN_CACHE", value)
        assert "CSSGAN_CACHE" in refused(cache_folder, says="no home folder")


def test_a_user_without_a_name_can_import_what_asks_for_it():
    code = """
import os, pwd
def nobody(_): raise KeyError("uid not found")
pwd.getpwuid = nobody
import cssgan.guard, getpass
print(getpass.getuser())
import monai.metrics"""
    bare = {k: v for k, v in os.environ.items() if k not in ("LOGNAME", "USER", "LNAME", "USERNAME")}
    ended = subprocess.run([sys.executable, "-c", code], env=bare, capture_output=True, text=True)
    assert ended.returncode == 0 and ended.stdout.startswith(f"uid{os.getuid()}\n"), ended.stderr
    named = subprocess.run([sys.executable, "-c",
                            "import os; before = dict(os.environ); import cssgan.guard; assert os.environ == before"],
                           env=bare | {"USER": "anna"})
    assert named.returncode == 0


# ---- phantoms that are asked for

@pytest.mark.parametrize("n, first", [(10**20, 0), (100_001, 0), (-1, 0), (1, -1), (1, 10**20), (1, 2**31),
                                      (100_000, 2**31 - 1)])
def test_phantoms_are_bounded(tmp_path, n, first):
    message = refused(write_phantoms, tmp_path / "none", n, first=first, grid=TINY)
    assert not (tmp_path / "none").exists() and len(message) < 300
    refused(phantom_paths, tmp_path, n, first=first)


def test_where_phantoms_will_lie_is_known_before(four, tmp_path):
    written = lambda folder: sorted(f for f in Path(folder).rglob("*") if f.is_file())
    write_phantoms(tmp_path / "made", 2, ("MRI", "MRI"), 7, TINY, ".nii")
    assert written(tmp_path / "made") == sorted(phantom_paths(tmp_path / "made", 2, ("MRI", "MRI"), 7, ".nii"))
    write_phantom_of(ct_case(four).label, tmp_path / "heart", ("CT", "MRI"), grid=TINY)
    assert written(tmp_path / "heart") == sorted(heart_paths(ct_case(four).label, tmp_path / "heart"))
    assert len(written(tmp_path / "heart")) == 4
    assert len(sample_paths(tmp_path)) == 12


@pytest.mark.parametrize("name", ["heart.nii", "heart.NII.gz", ".heart.nii.gz", "heart.nrrd", "heart.mha", "heart"])
def test_a_written_heart_is_called_as_its_file(tmp_path, name):
    assert [p.name for p in heart_paths(name, tmp_path, ("CT",))] == ["heart_label.nii.gz", "heart_image.nii.gz"]
