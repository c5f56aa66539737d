"Folders of nnU-Net and the Decathlon: read by the names of regions, and written so that nnU-Net takes them."
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import msgspec
import nibabel as nib
import numpy as np
import pytest

from cssgan.data.datasets import unpaired
from cssgan.data.finding import find_cases, write_manifest
from cssgan.data.folders import NnunetDataset, region_called, table_of_names
from cssgan.data.nnunet import label_beside, with_own_label, write_nnunet
from cssgan.data.prepared import CacheError, Samples, bring_to_grid, load_case, read_labels
from cssgan.data.sketch import sketch_task
from cssgan.data.splits import with_splits
from cssgan.data.writing import write_scan
from cssgan.guard import InputError
from cssgan.phantoms.scanners import phantom
from cssgan.scans.files import read_volume, write_label, write_volume
from cssgan.scans.volumes import IGNORE, UNDRAWN, Grid
from cssgan.task import HEART

GRID = Grid((24, 24, 16), (7.0, 7.0, 8.0))
ORDER = ["background", "RV", "myocardium", "LV", "LA", "RA"] # ACDC's, and the atria
NAMES = ["background", "right_ventricle", "MYO", "lv", "left atrium", "RA"]
BY_NAME = "ignore::cssgan.guard.InputWarning"


def heart(seed, modality): return phantom(seed, modality, GRID)


def dataset(folder, modality, said, name="case{}_0000", n=2, ending=".nii.gz", order=ORDER):
    "A domain of two hearts, numbered in an order."
    for sub in ("imagesTr", "labelsTr"): (folder / sub).mkdir(parents=True)
    numbers = np.zeros(256, np.uint8)
    for k, region in enumerate(order): numbers[HEART.regions.index(region)] = k
    for k in range(n):
        scan = heart(2 * k + HEART.names.index(modality), modality)
        write_volume(scan, folder / "imagesTr" / f"{name.format(k)}{ending}")
        write_label(numbers[scan.label], scan.affine, folder / "labelsTr" / f"case{k}{ending}")
    (folder / "dataset.json").write_text(json.dumps(said))
    return folder


def both(folder):
    "A CT of nnU-Net, an MRI of the Decathlon."
    dataset(folder / "CT", "CT", {"channel_names": {"0": "CT"}, "labels": {n: k for k, n in enumerate(NAMES)},
                                  "file_ending": ".nii.gz", "numTraining": 2})
    dataset(folder / "MRI", "MRI", {"modality": {"0": "MRI"}, "labels": {str(k): n for k, n in enumerate(NAMES)},
                                    "training": [{"image": f"./imagesTr/case{k}.nii.gz", "label": f"./labelsTr/case{k}"}
                                                 for k in range(3)]}, "case{}")
    return folder


# ---- reading

def test_labels_are_mapped_by_name_in_both_orders_and_it_is_said(tmp_path):
    with pytest.warns() as said: cases = find_cases(both(tmp_path))
    for case in cases:
        scan = heart(2 * int(case.patient[-1]) + HEART.names.index(case.modality), case.modality)
        assert np.array_equal(read_labels(case).labels, scan.label)
    lines = [str(w.message) for w in said]
    for part in ("CT/dataset.json is read by name: 1 right_ventricle as RV, 2 MYO as myocardium, 3 lv as LV",
                 "MRI/dataset.json is read by name", "lists 1 scans that are not in imagesTr: case2"):
        assert any(part in line for line in lines), part


def test_names_and_numbers_of_the_task_itself_are_read_without_a_word(tmp_path, recwarn):
    for modality in HEART.names:
        dataset(tmp_path / modality, modality, order=HEART.regions,
                said={"channel_names": {"0": modality}, "labels": {r: k for k, r in enumerate(HEART.regions)}})
    cases = find_cases(tmp_path)
    assert cases[0].task is HEART and not any(case.table for case in cases)
    assert not [w for w in recwarn if "dataset.json" in str(w.message)]


@pytest.mark.filterwarnings(BY_NAME)
def test_a_data_set_that_names_few_regions_draws_few(tmp_path):
    labels = {"background": 0, "RV": 1, "MYO": 2, "LV": 3}
    for modality in HEART.names:
        dataset(tmp_path / modality, modality, {"channel_names": {"0": modality}, "labels": labels}, order=ORDER[:4])
    codes = find_cases(tmp_path)[0].codes
    assert codes == {0: UNDRAWN, 1: 2, 2: 5, 3: 1}


@pytest.mark.parametrize("name, region", [
    ("LV", "LV"), ("left ventricle", "LV"), ("Left_Ventricle", "LV"), ("myo", "myocardium"),
    ("MYOCARDIUM", "myocardium"), ("aorta", ""), ("L", ""),
    ("ignore", "ignore"), ("???", ""), ("pulmonary artery", ""), ("left lung", "")])
def test_which_region_a_name_means(name, region): assert region_called(name, HEART) == region


def test_other_structures_are_background_only_where_every_region_has_a_number():
    known = {k: region for k, region in enumerate(HEART.regions)}
    of = lambda labels: table_of_names(NnunetDataset(labels=labels), HEART, known)
    whole = {region: k for k, region in enumerate(HEART.regions)}
    assert of(whole | {"aorta": 6})[6] == "background"
    assert of({"background": 0, "LV": 1, "wall": 2})[2] == "ignore"
    assert of({"background": 0, "a": 1, "b": 2}) == {}


def test_regions_that_overlap_give_a_number_the_smallest_name():
    said = NnunetDataset(labels={"background": 0, "whole": [1, 2, 3], "core": [2, 3], "bright": 3})
    assert said.names == {0: "background", 1: "whole", 2: "core", 3: "bright"}
    with pytest.raises(InputError, match="no number of a label"): NnunetDataset(labels={"a": [1, "x"]}).names


@pytest.mark.filterwarnings(BY_NAME)
def test_a_channel_is_known_by_the_word_of_dicom(tmp_path):
    dataset(tmp_path, "CT", {"channel_names": {"0": "CT", "1": "MR"}, "labels": {n: k for k, n in enumerate(NAMES)}})
    for k in range(2): write_volume(heart(2 * k + 1, "MRI"), tmp_path / f"imagesTr/case{k}_0001.nii.gz")
    assert sorted(Path(case.image).name for case in find_cases(tmp_path) if case.modality == "MRI") == [
        "case0_0001.nii.gz", "case1_0001.nii.gz"]


@pytest.mark.filterwarnings(BY_NAME)
@pytest.mark.parametrize("said, name, why", [
    ({"modality": {"0": "CT", "1": "MRI"}}, "case{}", "holds 1 channel, and channel 1 .MRI. is wanted of it"),
    ({"channel_names": {"0": "CT", "1": "MRI"}, "file_ending": ".png"}, "case{}_0000", "file_ending .png, which"),
    ({"channel_names": {"0": "CT", "1": "T2"}}, "case{}_0000", "none is called MRI")])
def test_what_cannot_be_read_is_said_in_one_line(said, name, why, tmp_path):
    dataset(tmp_path, "CT", said | {"labels": {r: k for k, r in enumerate(HEART.regions)}}, name)
    with pytest.raises(InputError, match=why): find_cases(tmp_path)


def test_scans_of_another_ending_are_read(tmp_path):
    import SimpleITK
    for modality in HEART.names:
        folder = dataset(tmp_path / modality, modality, order=HEART.regions,
                         said={"channel_names": {"0": modality}, "file_ending": ".nrrd",
                               "labels": {r: k for k, r in enumerate(HEART.regions)}})
        for file in list(folder.rglob("*.nii.gz")):
            SimpleITK.WriteImage(SimpleITK.ReadImage(file), file.with_name(file.name.replace(".nii.gz", ".nrrd")))
            file.unlink()
    case = find_cases(tmp_path)[0]
    assert case.image.endswith(".nrrd") and load_case(case, GRID).label.any()


# ---- several channels in one file

@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CSSGAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def decathlon(folder, channels=("CT", "MRI"), n=3, kind=np.float32, slope=None):
    "Hearts of the Decathlon, each with all its channels in one file."
    for sub in ("imagesTr", "labelsTr"): (folder / sub).mkdir(parents=True)
    for k in range(n):
        scans = [heart(k, name if name in HEART.names else "MRI") for name in channels]
        image = nib.Nifti1Image(np.stack([scan.voxels for scan in scans], -1).astype(kind), scans[0].affine)
        if slope: image.header.set_slope_inter(slope, 3)
        nib.save(image, folder / f"imagesTr/case_{k:02}.nii.gz")
        write_label(scans[0].label, scans[0].affine, folder / f"labelsTr/case_{k:02}.nii.gz")
    (folder / "dataset.json").write_text(json.dumps({
        "modality": {str(k): name for k, name in enumerate(channels)}, "numTraining": n,
        "labels": {str(k): region for k, region in enumerate(HEART.regions)},
        "training": [{"image": f"./imagesTr/case_{k:02}.nii.gz", "label": "…"} for k in range(n)]}))
    return folder


def several(folder, channels, n=3):
    "The same in nnU-Net's layout: a file for each channel."
    decathlon(folder, channels, n)
    for file in list((folder / "imagesTr").iterdir()):
        image = nib.load(file)
        for k in range(len(channels)): nib.save(image.slicer[..., k], str(file).replace(".nii", f"_{k:04d}.nii"))
        file.unlink()
    said = json.loads((folder / "dataset.json").read_text())
    said = {"channel_names": said["modality"], "file_ending": ".nii.gz",
            "labels": {name: int(k) for k, name in said["labels"].items()}}
    (folder / "dataset.json").write_text(json.dumps(said))
    return folder


@pytest.mark.parametrize("channels", [("CT", "MRI"), ("T1", "mr", "t1gd", "CT")])
def test_channels_of_one_file_are_two_domains(channels, tmp_path, cache):
    folder = decathlon(tmp_path / "Task05", channels)
    with pytest.warns(match="channel . .CT. is taken out of 3 files"): cases = find_cases(folder)
    assert [(case.id, case.patient, case.modality, Path(case.label).name) for case in cases] == [
        (f"{m}_case_{k:02}", f"case_{k:02}", m, f"case_{k:02}.nii.gz") for m in HEART.names for k in range(3)]
    for case in cases:
        scan, whole = read_volume(case.image, case.modality), nib.load(folder / f"imagesTr/{case.patient}.nii.gz")
        channel = [{"mr": "MRI"}.get(name, name) for name in channels].index(case.modality)
        assert np.array_equal(scan.voxels, whole.get_fdata(dtype=np.float32)[..., channel])
        assert np.array_equal(scan.affine, whole.affine) and cache in Path(case.image).parents
    assert load_case(cases[0], GRID).label.any()


def test_channels_are_taken_out_once_and_again_where_a_file_has_changed(tmp_path, cache, recwarn):
    folder = decathlon(tmp_path / "Task05", n=1)
    before = find_cases(folder)
    written = {case.image: Path(case.image).stat().st_mtime_ns for case in before}
    recwarn.clear()
    assert find_cases(folder) == before and not [w for w in recwarn if "taken out" in str(w.message)]
    assert written == {case.image: Path(case.image).stat().st_mtime_ns for case in before}
    whole = nib.load(folder / "imagesTr/case_00.nii.gz")
    nib.save(nib.Nifti1Image(whole.get_fdata() + 1, whole.affine), folder / "imagesTr/case_00.nii.gz")
    after = find_cases(folder)
    assert [a.image != b.image and a.id == b.id for a, b in zip(after, before)] == [True, True]
    assert np.array_equal(read_volume(after[0].image, "CT").voxels, read_volume(before[0].image, "CT").voxels + 1)


@pytest.mark.filterwarnings(BY_NAME)
@pytest.mark.parametrize("kind, slope", [
    (np.int16, None), (np.int16, 0.5), (np.float64, None), (">i2", 2), (np.uint8, 1)])
def test_a_channel_has_the_values_that_its_file_stands_for(kind, slope, tmp_path, cache):
    folder = decathlon(tmp_path / "Task05", ("MRI", "CT"), 1, kind, slope)
    case = next(case for case in find_cases(folder) if case.modality == "MRI")
    whole = nib.load(folder / "imagesTr/case_00.nii.gz").get_fdata(dtype=np.float32)
    assert np.array_equal(read_volume(case.image, "MRI").voxels, whole[..., 0])


@pytest.mark.filterwarnings(BY_NAME)
def test_a_patient_with_both_channels_stays_in_one_split(tmp_path, cache):
    cases = with_splits(find_cases(decathlon(tmp_path / "Task05", n=4)))
    assert len({(case.patient, case.split) for case in cases}) == 4
    (tmp_path / "run").mkdir()
    write_manifest(cases, tmp_path / "run/cases.csv")
    assert [Path(case.image).is_file() for case in find_cases(tmp_path / "run/cases.csv")] == [True] * 8
    shutil.rmtree(cache)
    with pytest.raises(InputError, match="was taken out of .*into the cache.* read the folder"):
        find_cases(tmp_path / "run/cases.csv")


@pytest.mark.filterwarnings(BY_NAME)
def test_a_damaged_file_of_several_channels_is_refused_and_leaves_nothing(tmp_path, cache):
    folder = decathlon(tmp_path / "Task05", n=1)
    file = folder / "imagesTr/case_00.nii.gz"
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(InputError, match="case_00.nii.gz"): find_cases(folder)
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_channels_need_a_cache_that_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CSSGAN_CACHE", str(tmp_path / "file"))
    with pytest.raises(CacheError, match="CSSGAN_CACHE"), pytest.warns():
        find_cases(decathlon(tmp_path / "Task05", n=1))


@pytest.mark.filterwarnings(BY_NAME)
def test_a_channel_has_the_number_that_dataset_json_gives_it(tmp_path, cache):
    "Somebody took the others out of dataset.json."
    folder = decathlon(tmp_path / "Task01", ("FLAIR", "CT", "t1gd", "MRI"), 1)
    said = json.loads((folder / "dataset.json").read_text()) | {"modality": {"1": "CT", "3": "MRI"}}
    (folder / "dataset.json").write_text(json.dumps(said))
    assert [Path(case.image).name for case in find_cases(folder)] == ["case_00_0001.nii.gz", "case_00_0003.nii.gz"]


@pytest.mark.filterwarnings(BY_NAME)
@pytest.mark.parametrize("whole", [False, True], ids=["nnU-Net", "the Decathlon"])
def test_two_channels_are_proposed_as_domains(whole, tmp_path, cache):
    folder = decathlon(tmp_path / "Task05", ("T2", "ADC")) if whole else several(tmp_path / "D", ("T2", "ADC"))
    task = sketch_task(folder, "prostate", 20_000).task
    assert task.names == ("T2", "ADC") and task.regions == HEART.regions
    assert len(find_cases(folder, task)) == 6


@pytest.mark.filterwarnings(BY_NAME)
@pytest.mark.parametrize("whole", [False, True], ids=["nnU-Net", "the Decathlon"])
@pytest.mark.parametrize("channels", [("FLAIR", "T1w", "t1gd"), ("FLAIR", "T1w", "t1gd", "T2w")])
def test_more_channels_are_named_and_two_of_them_will_do(channels, whole, tmp_path, cache):
    folder = (decathlon if whole else several)(tmp_path / "brain", channels)
    with pytest.raises(InputError, match=f"channels {', '.join(channels)}, and a task two domains: leave two"):
        sketch_task(folder)
    said = json.loads((folder / "dataset.json").read_text())
    key = "modality" if whole else "channel_names"
    (folder / "dataset.json").write_text(json.dumps(said | {key: {"0": "FLAIR", "2": "t1gd"}}))
    task = sketch_task(folder, "", 20_000).task
    few = [Path(case.image).name[-11:] for case in find_cases(folder, task)]
    (folder / "dataset.json").write_text(json.dumps(said))
    assert task.names == ("FLAIR", "t1gd") and few == ["0000.nii.gz"] * 3 + ["0002.nii.gz"] * 3
    assert [Path(case.image).name[-11:] for case in find_cases(folder, task)] == few


# ---- cases that dataset.json lists

def listing(folder, channels=("CT", "MRI"), n=2):
    "Hearts that lie anywhere, listed in dataset.json, as nnU-Net's second version allows."
    folder.mkdir(parents=True)
    listed = {}
    for k in range(n):
        files = [folder.parent / f"elsewhere/{k}{channels[0]}/{name}.nii.gz" for name in (*channels, "seg")]
        files[0].parent.mkdir(parents=True, exist_ok=True)
        for file, name in zip(files, channels): write_volume(heart(k, name), file)
        write_label(heart(k, "CT").label, heart(k, "CT").affine, files[-1])
        images = [str(file) if k else f"../{file.relative_to(folder.parent)}" for file in files[:-1]]
        listed[f"p{k}"] = {"images": images, "label": f"../elsewhere/{k}{channels[0]}/seg.nii.gz"}
    said = {"channel_names": {str(k): name for k, name in enumerate(channels)}, "file_ending": ".nii.gz",
            "labels": {region: k for k, region in enumerate(HEART.regions)}, "numTraining": n, "dataset": listed}
    (folder / "dataset.json").write_text(json.dumps(said))
    return folder


def test_cases_are_read_that_dataset_json_lists(tmp_path, recwarn):
    cases = find_cases(listing(tmp_path / "Dataset300_Both"))
    assert [(case.id, case.patient, Path(case.image).name) for case in cases] == [
        ("CT_p0", "p0", "CT.nii.gz"), ("CT_p1", "p1", "CT.nii.gz"),
        ("MRI_p0", "p0", "MRI.nii.gz"), ("MRI_p1", "p1", "MRI.nii.gz")]
    assert load_case(cases[0], GRID).label.any() and Path(cases[0].label).is_file()
    assert not [w for w in recwarn if "dataset.json" in str(w.message)]


def test_a_domain_may_list_its_cases(tmp_path):
    for modality in HEART.names: listing(tmp_path / f"both/{modality}", (modality,))
    assert [case.id for case in find_cases(tmp_path / "both")] == ["CT_p0", "CT_p1", "MRI_p0", "MRI_p1"]


@pytest.mark.parametrize("change, why", [
    ({"images": ["a.nii.gz"]}, "lists 1 images for p0, and none for channel 1"),
    ({"images": "a.nii.gz"}, "dataset.json does not fit"), ({"label": "a.nii.gz"}, "a.nii.gz does not exist")])
def test_a_listing_that_cannot_be_is_said(change, why, tmp_path):
    folder = listing(tmp_path / "Dataset300_Both")
    said = json.loads((folder / "dataset.json").read_text())
    said["dataset"]["p0"] |= change
    (folder / "dataset.json").write_text(json.dumps(said))
    with pytest.raises(InputError, match=why): unpaired(with_splits(find_cases(folder)), GRID, tmp_path / "c").prepare()


def test_nothing_is_written_into_a_folder_that_lists_its_cases(tmp_path):
    folder = listing(tmp_path / "Dataset300_MRI", ("MRI",))
    with pytest.raises(InputError, match="lists its cases itself"): write_nnunet([("a", heart(1, "MRI"))], folder)


def test_a_dataset_json_of_another_program_leaves_a_folder_plain(tmp_path):
    for modality, said in zip(HEART.names, ("[]", '{"dataset": "mine"}')):
        write_scan(heart(HEART.names.index(modality), modality), tmp_path, "a")
        (tmp_path / modality / "dataset.json").write_text(said)
    with pytest.warns(match="left out as no part of a case: dataset.json"): cases = find_cases(tmp_path)
    assert len(cases) == 2


# ---- writing

def check_as_nnunet_does(folder):
    "The rules of nnU-Net's own check of a raw folder, version 2."
    said = json.loads((folder / "dataset.json").read_text())
    assert {"channel_names", "labels", "numTraining", "file_ending"} <= said.keys()
    ending, numbers = said["file_ending"], list(said["labels"].values())
    assert numbers == list(range(len(numbers))) and said["labels"]["background"] == 0
    assert said["labels"].get("ignore", numbers[-1]) == numbers[-1]
    cases = {re.sub(r"_\d{4}$", "", file.name.removesuffix(ending)) for file in (folder / "imagesTr").iterdir()}
    assert len(cases) == said["numTraining"]
    for case in cases:
        label = nib.load(folder / "labelsTr" / f"{case}{ending}")
        assert set(np.unique(label.dataobj).tolist()) <= set(numbers)
        for channel in said["channel_names"]:
            image = nib.load(folder / "imagesTr" / f"{case}_{int(channel):04d}{ending}")
            assert image.shape == label.shape and np.array_equal(image.affine, label.affine)
    return said


def translated(scan):
    "As if a network had made it."
    return replace(scan, history=(f"translated to {scan.modality} by a network (cssgan): not a measurement",))


def test_a_written_folder_is_what_nnunet_wants(tmp_path):
    folder = tmp_path / "Dataset500_Heart"
    assert write_nnunet(((f"p{k}", translated(heart(k, "MRI"))) for k in (1, 3)), folder) == 2
    said = check_as_nnunet_does(folder)
    assert said["channel_names"] == {"0": "MRI"} and list(said["labels"]) == list(HEART.regions)
    assert said["synthetic"].keys() == {"p1", "p3"} and "not a measurement" in said["synthetic"]["p1"]
    again = read_volume(folder / "imagesTr/p1_0000.nii.gz", "MRI")
    assert np.array_equal(again.voxels, heart(1, "MRI").voxels.astype(np.float32))


@pytest.mark.filterwarnings(BY_NAME)
def test_what_is_written_and_read_again_gives_the_samples_of_its_source(tmp_path):
    "Within 0.001 of [-1, 1]: samples are kept in half precision (2**-12), CT in whole HU (half a thousandth)."
    grid, noise = Grid((24, 24, 16), (8.0, 8.0, 8.0)), np.random.default_rng(0)
    sources = [heart(seed, modality) for seed, modality in enumerate(HEART.names)]
    sources = [replace(s, voxels=s.voxels + noise.uniform(-.5, .5, s.shape).astype(np.float32)) for s in sources]
    for scan in sources: write_nnunet([("a", scan)], tmp_path / "both" / scan.modality)
    for source, case in zip(sources, find_cases(tmp_path / "both")):
        volume, labels, _ = Samples([case], grid, tmp_path / "cache")[0]
        expected = bring_to_grid(source, case, grid)
        assert np.abs(volume[0].numpy() - expected.voxels).max() < 1e-3
        assert np.array_equal(labels, expected.label) and labels.any() and volume.std() > 0.1


def test_what_nobody_annotated_gets_the_highest_number(tmp_path):
    scan = heart(1, "MRI")
    label = scan.label.copy()
    label[:2], label[2:4] = IGNORE, UNDRAWN
    write_nnunet([("a", heart(3, "MRI")), ("b", replace(scan, label=label))], tmp_path / "Dataset501_Part")
    assert check_as_nnunet_does(tmp_path / "Dataset501_Part")["labels"]["ignore"] == 6
    values = np.asarray(nib.load(tmp_path / "Dataset501_Part/labelsTr/b.nii.gz").dataobj)
    assert (values[:4] == 6).all()


@pytest.mark.filterwarnings(BY_NAME)
def test_synthetic_cases_join_a_folder_in_its_numbers(tmp_path):
    folder = dataset(tmp_path / "Dataset027_ACDC", "MRI", {
        "channel_names": {"0": "MR"}, "labels": {n: k for k, n in enumerate(NAMES)}, "file_ending": ".nii.gz",
        "numTraining": 2, "licence": "theirs"})
    before = {file: file.read_bytes() for file in folder.rglob("*.nii.gz")}
    write_nnunet([("fake0", translated(heart(5, "MRI")))], folder)
    said = check_as_nnunet_does(folder)
    assert said["licence"] == "theirs" and said["numTraining"] == 3 and said["synthetic"].keys() == {"fake0"}
    assert all(file.read_bytes() == content for file, content in before.items())
    values = np.asarray(nib.load(folder / "labelsTr/fake0.nii.gz").dataobj)
    assert np.array_equal(values == 3, heart(5, "MRI").label == HEART.regions.index("LV"))
    path = folder / "imagesTr/fake0_0000.nii.gz"
    assert np.array_equal(with_own_label(read_volume(path, "MRI"), path).label, heart(5, "MRI").label)


@pytest.mark.filterwarnings(BY_NAME)
@pytest.mark.parametrize("said, why", [
    ({"channel_names": {"0": "CT"}}, "has the channels CT, and MRI is to be added"),
    ({"channel_names": {"0": "MRI"}, "labels": {"background": 0, "LV": 1}}, "has no label called RV"),
    ({"channel_names": {"0": "MRI"}, "labels": {"background": 0, "heart": [1, 2]}}, "regions that overlap"),
    ({"channel_names": {"0": "MRI"}, "file_ending": ".nrrd"}, "file_ending .nrrd, and NIfTI is written")])
def test_a_folder_that_does_not_fit_is_left_as_it_is(said, why, tmp_path):
    folder = dataset(tmp_path / "Dataset001_X", "CT", {"labels": {n: k for k, n in enumerate(NAMES)}} | said, n=1)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with pytest.raises(InputError, match=why): write_nnunet([("a", heart(1, "MRI"))], folder)
    assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.filterwarnings(BY_NAME)
@pytest.mark.parametrize("name", ["../a", "", "a/b", ".a", "a\n"])
def test_a_case_cannot_have_any_name(name, tmp_path):
    with pytest.raises(InputError, match="cannot be a case's name"):
        write_nnunet([(name, heart(1, "MRI"))], tmp_path / "new")


@pytest.mark.filterwarnings(BY_NAME)
def test_a_case_is_replaced_only_if_asked_for_and_ours(tmp_path):
    folder, scan = tmp_path / "Dataset002_X", heart(1, "MRI")
    write_nnunet([("a", scan)], folder)
    with pytest.raises(InputError, match="exists"): write_nnunet([("a", scan)], folder)
    write_nnunet([("a", scan)], folder, force=True)
    nib.save(nib.Nifti1Image(scan.voxels, scan.affine), folder / "imagesTr/a_0000.nii.gz")
    with pytest.raises(InputError, match="was not made by cssgan"): write_nnunet([("a", scan)], folder, force=True)


def test_a_case_without_a_label_is_refused(tmp_path):
    with pytest.raises(InputError, match="has no label"):
        write_nnunet([("a", replace(heart(1, "MRI"), label=None))], tmp_path / "Dataset003_X")


def test_a_label_is_found_beside_its_scan(tmp_path):
    pairs = {"CT/a_image.nii.gz": "CT/a_label.nii.gz", "n/imagesTr/b_0000.nrrd": "n/labelsTr/b.nrrd",
             "n/imagesTs/c_0000.nii.gz": "n/labelsTs/c.nii.gz", "d/imagesTr/d_1234.nii": "d/labelsTr/d_1234.nii",
             "e/scan.nii.gz": None}
    for image, label in pairs.items():
        for name in filter(None, (image, label)):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        assert label_beside(tmp_path / image) == (label and tmp_path / label)


def labelled_in(place, numbers):
    "A scan and its label in other numbers, as files."
    scan = heart(4, "CT")
    table = np.zeros(256, np.uint16)
    table[:len(numbers)] = numbers
    place.parent.mkdir(parents=True)
    write_volume(scan, place)
    nib.save(nib.Nifti1Image(table[scan.label], scan.affine), str(place).replace("_image", "_label"))
    return scan


def test_a_label_beside_a_scan_of_mmwhs_is_read_by_its_table(tmp_path):
    place = tmp_path / "ct_train/ct_train_1001_image.nii.gz"
    scan = labelled_in(place, [0, 500, 600, 420, 550, 205])
    assert np.array_equal(with_own_label(read_volume(place, "CT"), place).label, scan.label)


def test_a_label_beside_a_scan_is_read_by_the_task_json_of_its_data(tmp_path):
    place = tmp_path / "CT/a_image.nii.gz"
    scan = labelled_in(place, [0, 5, 4, 3, 2, 1])
    turned = {str(k): region for k, region in zip([5, 4, 3, 2, 1], HEART.regions[1:])}
    task = msgspec.structs.replace(HEART, tables=HEART.tables | {"mine": turned}, table_of={"CT": "mine"})
    (tmp_path / "task.json").write_bytes(msgspec.json.encode(task))
    assert np.array_equal(with_own_label(read_volume(place, "CT"), place).label, scan.label)
    other = msgspec.structs.replace(HEART.domains[1], name="T2")
    task = msgspec.structs.replace(HEART, domains=(HEART.domains[0], other), table_of={})
    (tmp_path / "task.json").write_bytes(msgspec.json.encode(task))
    with pytest.raises(InputError, match="other domains or regions"): with_own_label(read_volume(place, "CT"), place)
