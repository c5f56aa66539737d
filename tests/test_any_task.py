"""Any two domains, any regions: what another task's files, labels and scans become, from the folder to the viewers."""
import json
from dataclasses import replace
from pathlib import Path

import msgspec
import nibabel as nib
import numpy as np
import pytest
import torch

from cssgan.cli.commands import segment_main, task_main, train_main, translate_main
from cssgan.data.cases import Case, apply_table, label_codes, phantom_cases
from cssgan.data.datasets import unpaired
from cssgan.data.finding import find_cases
from cssgan.data.prepared import as_label_map, as_regions, describe_structures, load_case
from cssgan.data.splits import with_splits
from cssgan.data.writing import write_scan
from cssgan.guard import InputError, InputWarning
from cssgan.inference.location import keep_pieces
from cssgan.losses import shape_loss
from cssgan.metrics import dice_scores, one_hot
from cssgan.models import Networks
from cssgan.phantoms.scanners import phantom
from cssgan.phantoms.shapes import shapes
from cssgan.scans.files import read_label, read_volume, write_label, write_volume
from cssgan.scans.plausible import describe_volumes
from cssgan.scans.volumes import IGNORE, UNDRAWN, Grid, Volume, denormalise, normalise
from cssgan.task import HEART, as_task, read_task, task_json
from cssgan.training.schedule import preset
from cssgan.viewers.comparison import compare
from cssgan.viewers.depth import view3d
from cssgan.viewers.explorer import explore

GRID = {"shape": [24, 24, 16], "spacing": [10, 10, 12]}
CT = {"name": "CT", "unit": "HU", "window": [-1000, 1000], "nothing": -1024, "body": -300, "check": "HU", "dicom": "CT"}


def of(name, domains, regions, **more):
    "A task with regions of these names."
    return as_task({"name": name, "domains": domains, "regions": ["background", *regions], "grid": GRID} | more)


def scanner(name): return {"name": name, "percentiles": [0.5, 99.5]}


ABDOMEN = of("abdomen", [CT, scanner("MR")], ["liver", "right kidney", "left kidney"], pieces="each")
BRAIN = of("brain", [scanner("T1"), scanner("T2")], [f"area {k}" for k in range(1, 9)])
PELVIS = of("pelvis", [CT, {"name": "CBCT", "window": [0, 2000]}], ["bladder"])
TASKS = {task.name: task for task in (ABDOMEN, BRAIN, PELVIS)}


def write_data(folder, task, n=3, labels=(True, True)):
    "Some patients of each domain as files, and the task beside them."
    for side, modality in enumerate(task.names):
        for number in range(n):
            write_scan(shapes(2 * number + side, modality, task), folder, f"{modality}{number}", ".nii")
            if not labels[side]: (folder / modality / f"{modality}{number}_label.nii").unlink()
    (folder / "task.json").write_text(task_json(task), encoding="utf-8")
    return folder


# ---- from a folder to the viewers

@pytest.mark.parametrize("name", TASKS)
def test_a_task_beside_its_data_is_all_that_training_needs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CSSGAN_CACHE", str(tmp_path / "cache"))
    task, folder = TASKS[name], write_data(tmp_path / "data", TASKS[name])
    A, B = task.names
    run = tmp_path / "run"
    assert train_main(["--data", str(folder), "--out", str(run), "--preset", "smoke"]) == 0
    said = capsys.readouterr()
    assert all(f"1 {task.regions[1]} " in line for line in said.out.splitlines() if line.startswith((A, B)))
    assert f"on {A}" in said.out and f"on {B}" in said.out
    assert read_task(run / "task.json") == task
    assert json.loads((run / "best/checkpoint.json").read_text())["task"]["name"] == name
    scan = shapes(100, A, task)
    write_volume(scan, tmp_path / "scan.nii")
    which = [str(tmp_path / "scan.nii"), "--checkpoint", str(run / "best")]
    assert translate_main([*which, "--to", B, "--out", str(tmp_path / "fake.nii")]) == 0
    assert segment_main([*which, "--modality", A, "--out", str(tmp_path / "label.nii")]) == 0
    said = capsys.readouterr().out
    assert f"a synthetic {B}" in said and (f"no {name} was found" in said or f"{task.regions[1]} " in said)
    fake, label = nib.load(tmp_path / "fake.nii"), read_label(tmp_path / "label.nii")
    assert fake.shape == label.values.shape == scan.shape and label.values.max() < len(task.regions)
    for path in ("label.ctbl", "label_itksnap.txt"):
        assert task.regions[1].split()[0] in (tmp_path / path).read_text()
    # another modality than the checkpoint's is named
    assert translate_main([*which, "--to", "PET", "--out", str(tmp_path / "pet.nii")]) == 1
    assert f"use {A} or {B}" in capsys.readouterr().err


@pytest.mark.parametrize("name", TASKS)
def test_viewers_name_the_regions_of_a_task(name):
    task = TASKS[name]
    scan = shapes(1, task.names[0], task)
    fake = replace(shapes(1, task.names[1], task), affine=scan.affine)
    for view in (explore(scan), view3d(scan, viewer="still"), compare(scan, fake, segmentation=fake.label)):
        assert view._repr_png_()[:4] == b"\x89PNG"
    scores = compare(scan, fake, segmentation=scan.label).scores["synthetic"]
    assert set(scores) == set(task.regions[1:]) and all(s > 99.9 for s in scores.values())


# ---- domains

def test_an_old_checkpoint_is_one_of_the_heart():
    from cssgan.training.schema import CheckpointRecord, about_networks
    nets = Networks(4, 1)
    about = about_networks(nets, Grid((24, 24, 16), (7., 7., 8.)), {"CT": (-1000., 1000.), "MRI": (0., 900.)})
    del about["task"]
    known = msgspec.convert(json.loads(json.dumps(about)) | {"files": {"weights": {"a.safetensors": "0" * 64}}},
                            CheckpointRecord)
    assert known.task == HEART


@pytest.mark.parametrize("change, says", [
    (dict(regions=["background", "liver"]), "regions"), (dict(ranges={"CT": (-1000, 1000)}), "range"),
    (dict(task={"name": "x"}), "domains")])
def test_a_checkpoint_that_contradicts_its_task_is_refused(change, says):
    from cssgan.training.schema import CheckpointRecord, about_networks
    about = about_networks(Networks(4, 1), Grid((24, 24, 16), (7., 7., 8.)),
                           {"CT": (-1000., 1000.), "MRI": (0., 900.)})
    about = json.loads(json.dumps(about | change)) | {"files": {"weights": {"a.safetensors": "0" * 64}}}
    with pytest.raises(msgspec.ValidationError, match=says): msgspec.convert(about, CheckpointRecord)


def test_a_window_with_corners_comes_back():
    bent = {key: value for key, value in CT.items() if key != "window"}
    bent |= {"knots": [[-1000, -1], [-150, -0.6], [250, 0.6], [1000, 1]]}
    task = of("abdomen", [bent, scanner("MR")], ["liver"])
    scan = shapes(0, "CT", task)
    seen = normalise(scan)
    soft = (scan.voxels > -150) & (scan.voxels < 250)
    assert np.ptp(seen.voxels[soft]) > 0.8 and seen.range == (-1000, 1000)
    assert np.abs(denormalise(seen).voxels - scan.voxels.clip(-1000, 1000)).max() < 0.01


def test_two_domains_of_one_physics_are_told_apart_by_their_names(tmp_path):
    scan = shapes(0, "T1", BRAIN)
    write_volume(scan, tmp_path / "t1.nii")
    assert read_volume(tmp_path / "t1.nii", "T1", BRAIN).modality == "T1"
    with pytest.raises(InputError, match="use T1 or T2"): read_volume(tmp_path / "t1.nii", "CT", BRAIN)
    with pytest.raises(InputError, match="use CT or MRI"): read_volume(tmp_path / "t1.nii", "T1")


def test_networks_of_another_task_are_refused():
    from cssgan.training.run import start
    with pytest.raises(InputError, match="6 classes, abdomen has 4"):
        start(preset("smoke", ABDOMEN), Networks(4, 1), task=ABDOMEN)


def test_a_task_trains_on_its_own_grid():
    assert preset("cpu", ABDOMEN).grid == preset("paper", ABDOMEN).grid == Grid((24, 24, 16), (10, 10, 12))
    assert preset("cpu").grid == Grid((40, 40, 32), (4.2, 4.2, 4.))
    large = msgspec.structs.replace(ABDOMEN, grid=HEART.grid.__class__((160, 128, 96), (2., 2., 2.5)))
    small = preset("smoke", large).grid
    assert np.allclose(small.extent, (320, 256, 240)) and np.prod(small.shape) < 20_000


def test_names_with_blanks_and_dots(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CSSGAN_CACHE", str(tmp_path / "cache"))
    names = "T1 post", "Älter v1.5"
    task = of("my brain", list(map(scanner, names)), ["stem 1.2"])
    folder, run = write_data(tmp_path / "data", task), tmp_path / "run"
    words = ["--data", str(folder), "--out", str(run), "--preset", "smoke", "--fraction", f"{names[0]}=0.9"]
    assert train_main(words) == 0
    assert json.loads((run / "train.json").read_text())["fraction"] == {names[0]: 0.9}
    write_volume(shapes(100, names[0], task), tmp_path / "scan.nii")
    which = [str(tmp_path / "scan.nii"), "--checkpoint", str(run)]
    assert translate_main([*which, "--to", names[1], "--out", str(tmp_path / "fake.nii")]) == 0
    assert segment_main([*which, "--modality", names[0], "--out", str(tmp_path / "label.nii")]) == 0
    assert f"a synthetic {names[1]}: made" in capsys.readouterr().out
    assert "stem_1.2" in (tmp_path / "label.ctbl").read_text()


@pytest.mark.parametrize("n", [1, 61])
def test_the_fewest_and_the_most_regions(n, tmp_path):
    from cssgan.training.run import start, step, validate
    task = of("atlas", [scanner("A"), scanner("B")], [f"area {k}" for k in range(n)])
    data = unpaired(phantom_cases({"train": (1, 1), "valid": (1, 1)}, task=task), Grid((24, 24, 16), (10, 10, 12)),
                    tmp_path)
    run = start(replace(preset("smoke", task), width=2), ranges=data.ranges(), task=task)
    losses = step(run, "joint", next(iter(data.epoch(0, 0))))
    assert all(loss.isfinite() for loss in losses.values()) and run.nets.sizes["classes"] == n + 1
    scores = set(validate(run, data))
    assert {name for name in scores if "." not in name} == {"dice_A", "dice_B", "valid_loss", "s_a_to_b", "s_b_to_a"}
    assert {name.partition(".")[2] for name in scores if "." in name} <= set(task.regions[1:])


def test_patients_of_the_same_names_stay_together_and_that_is_said(tmp_path):
    folder = write_data(tmp_path, BRAIN)
    for file in (folder / "T2").iterdir(): file.rename(file.with_name(file.name.replace("T2", "T1")))
    with pytest.warns(InputWarning, match=r"names that are in T1 and in T2 \(T10, T11, T12\) are taken for the same"):
        cases = with_splits(find_cases(folder))
    splits = {c.patient: c.split for c in cases}
    assert len(splits) == 3 and all(c.split == splits[c.patient] for c in cases)


# ---- runs of older versions

def as_once(folder):
    "Make a run, or its checkpoints, look as if the version before tasks had written it."
    from cssgan.training.schema import checksum_of
    for file in folder.rglob("*.json"):
        said = json.loads(file.read_text())
        if file.name == "train.json":
            said |= {f"fraction_{m.lower()}": said["fraction"].get(m, 1.) for m in HEART.names}
            del said["fraction"]
        elif "networks" in said:
            del said["task"], said["checksum"]
            said["checksum"] = checksum_of(said)
        file.write_text(json.dumps(said))
    for file in folder.rglob("task.json"): file.unlink()
    for file in folder.rglob("cases.csv"): file.write_text(file.read_text().replace(",\n", ",cssgan\n"))


def test_a_run_of_an_older_version_goes_on(tmp_path, monkeypatch, capsys):
    from cssgan.data.finding import from_manifest
    from cssgan.training import trainer
    monkeypatch.setenv("CSSGAN_CACHE", str(tmp_path / "cache"))
    for seed in range(8):
        scan = phantom(seed, HEART.names[seed % 2], Grid((24, 24, 16), (7., 7., 8.)))
        write_scan(scan, tmp_path / "data", f"p{seed}", ".nii")
    words = ["--data", str(tmp_path / "data"), "--preset", "smoke", "--quiet", "--fraction", "MRI=0.5", "--out"]
    assert train_main([*words, str(tmp_path / "whole")]) == 0
    stop = trainer.Keeper.__call__
    def stops(self, run):
        self.button.pressed = len(run.history) == 2
        return stop(self, run)
    with monkeypatch.context() as m:
        m.setattr(trainer.Keeper, "__call__", stops)
        assert train_main([*words, str(tmp_path / "run")]) == 130
    as_once(tmp_path / "run")
    assert {c.table for c in from_manifest(tmp_path / "run/cases.csv")} == {"cssgan"}
    assert train_main(["--resume", str(tmp_path / "run"), "--quiet", "--fraction", "MRI=0.5", "CT=1"]) == 0
    names = [json.loads((tmp_path / run / "best/checkpoint.json").read_text())["files"] for run in ("run", "whole")]
    assert names[0] == names[1]
    as_once(tmp_path / "run/best")
    write_volume(phantom(9, "CT", Grid((24, 24, 16), (7., 7., 8.))), tmp_path / "scan.nii")
    which = [str(tmp_path / "scan.nii"), "--checkpoint", str(tmp_path / "run")]
    assert translate_main([*which, "--to", "MRI", "--out", str(tmp_path / "fake.nii")]) == 0
    assert segment_main([*which, "--modality", "CT", "--out", str(tmp_path / "label.nii")]) == 0
    assert "myocardium" in (tmp_path / "label.ctbl").read_text()


def test_a_run_is_not_resumed_with_other_regions(tmp_path):
    from cssgan.training.checkpoints import read_about
    from cssgan.training.run import start
    from cssgan.training.saving import refuse_other_data, save_run
    def data_of(task): return unpaired(phantom_cases({"train": (1, 1), "valid": (1, 1)}, task=task),
                                       Grid((24, 24, 16), (10., 10., 12.)), tmp_path / "cache")
    data = data_of(ABDOMEN)
    save_run(start(preset("smoke", ABDOMEN), ranges=data.ranges(), task=ABDOMEN), tmp_path / "last", True, data)
    about = read_about(tmp_path / "last")
    refuse_other_data(data, about, "the folder")
    fewer = of("abdomen", [CT, scanner("MR")], ["liver"], pieces="each")
    for other in (fewer, BRAIN):
        with pytest.raises(InputError, match="was started for another task"):
            refuse_other_data(data_of(other), about, "the folder")


# ---- labels that others drew

def heart_in(numbers, folder, modality="CT", seed=0):
    "A heart's scan whose label has a data set's numbers, in a plain folder."
    for number, m in enumerate(HEART.names):
        scan = phantom(2 * seed + number, m, Grid((48, 48, 32), (3.5, 3.5, 4.)))
        write_scan(scan, folder, f"p{seed}", ".nii")
        if m != modality: continue
        wanted = np.zeros(scan.shape, np.uint8)
        for value, region in numbers.items(): wanted[scan.label == HEART.regions.index(region)] = value
        write_label(wanted, scan.affine, folder / m / f"p{seed}_label.nii")
    return Case("a", "a", modality, str(folder / modality / f"p{seed}_image.nii"),
                str(folder / modality / f"p{seed}_label.nii"))


FOREIGN = {"ACDC": {1: "RV", 2: "myocardium", 3: "LV"}, "M&Ms": {1: "LV", 2: "myocardium", 3: "RV"},
           "TotalSegmentator-heartchambers": {1: "myocardium", 2: "LA", 3: "LV", 4: "RA", 5: "RV"}}


@pytest.mark.parametrize("table", FOREIGN)
def test_labels_of_others_are_not_read_as_ours(table, tmp_path):
    case = heart_in(FOREIGN[table], tmp_path)
    if table == "M&Ms":  # LV and RV as ours, and the myocardium where our LA is
        with pytest.raises(InputError, match="cannot be a heart"): load_case(case, Grid((24, 24, 16), (7., 7., 8.)))
        return
    with pytest.raises(InputError, match=f"cannot be a heart.*if it is .*{table}, name that table"):
        load_case(case, Grid((24, 24, 16), (7., 7., 8.)))
    right = load_case(replace(case, table=table), Grid((24, 24, 16), (7., 7., 8.)))
    assert {HEART.regions[k] for k in np.unique(right.label) if 0 < k < UNDRAWN} == set(FOREIGN[table].values())


def test_organs_called_ct_and_mri_are_no_heart(tmp_path):
    "Labels 1..5 of another organ, in folders called CT and MRI, without a task."
    organs = of("abdomen", [CT, scanner("MRI")], [f"organ {k}" for k in range(1, 6)])
    folder = write_data(tmp_path, organs)
    (folder / "task.json").unlink()
    for case in find_cases(folder):
        with pytest.raises(InputError, match="cannot be a heart"): load_case(case, Grid((24, 24, 16), (10., 10., 12.)))


def test_a_manifest_of_other_domains_is_read_with_its_task(tmp_path):
    folder = write_data(tmp_path, BRAIN)
    lines = [f"{m}/{m}0_image.nii,{m}/{m}0_label.nii,{m}," for m in BRAIN.names]
    (folder / "cases.csv").write_text("\n".join(["image,label,modality,split", *lines]))
    assert [case.modality for case in find_cases(folder / "cases.csv")] == ["T1", "T2"]
    (folder / "task.json").unlink()
    with pytest.raises(InputError, match="modality 'T1': modality is CT or MRI"): find_cases(folder / "cases.csv")


def test_an_unknown_value_is_cured_in_the_task():
    with pytest.raises(InputError, match="task.json"): apply_table(np.array([0, 63]), label_codes(ABDOMEN, "MR"))
    tables = {"CHAOS-MR": {"63": "liver", "126": "right kidney", "189": "left kidney"}}
    chaos = msgspec.structs.replace(ABDOMEN, tables=tables, table_of={"MR": "CHAOS-MR"})
    assert apply_table(np.array([0, 63, 189]), label_codes(chaos, "MR")).tolist() == [0, 1, 3]


@pytest.mark.parametrize("values, says", [
    ([0, 255], "only 255"), ([0, 0], "nothing of an abdomen"), ([1, 1], "every voxel is liver"),
    ([0, 7], "does not know")])
def test_a_label_map_that_shows_nothing_is_refused(values, says):
    labels = np.tile(np.array(values, np.int32), (4, 4, 2))
    with pytest.raises(InputError, match=says): as_regions(labels, np.eye(4), "liver.nii", ABDOMEN, "CT")


def test_a_mask_of_255_is_what_its_table_says():
    chaos = msgspec.structs.replace(ABDOMEN, tables={"CHAOS-CT": {"255": "liver"}}, table_of={"CT": "CHAOS-CT"})
    labels = np.zeros((8, 8, 8), np.int32)
    labels[2:5, 2:5, 2:5] = 255
    read = as_regions(labels, np.eye(4), "liver.nii", chaos, "CT")
    assert set(np.unique(read)) == {1, UNDRAWN}


def test_what_the_table_drops_whole_is_refused():
    dropped = msgspec.structs.replace(ABDOMEN, tables={"t": {"1": "background", "2": "liver"}}, table_of={"CT": "t"})
    with pytest.raises(InputError, match="nothing of an abdomen"):
        as_regions(np.tile(np.array([0, 1], np.int32), (4, 4, 2)), np.eye(4), "a.nii", dropped, "CT")


def test_structures_are_named_with_their_numbers_before_training(tmp_path):
    folder = write_data(tmp_path, ABDOMEN)
    case = find_cases(folder)[0]
    assert describe_structures(case).startswith("1 liver ") and "ml" in describe_structures(case)


# ---- regions that were not drawn

def partly_drawn(table="ACDC", seed=1): return Case("a", "a", "MRI", f"phantom:{seed}", table=table)


def test_background_of_a_partial_data_set_may_be_what_it_does_not_draw():
    case, grid = partly_drawn(), Grid((24, 24, 16), (7., 7., 8.))
    drawn, whole = load_case(case, grid).label, load_case(replace(case, table=""), grid).label
    assert np.array_equal(drawn == UNDRAWN, np.isin(whole, (0, 3, 4)))
    assert all(np.array_equal(drawn == k, whole == k) for k in (1, 2, 5))


def test_targets_hold_the_set_of_regions_that_may_be_there(tmp_path):
    cases = [replace(c, table="ACDC" if c.modality == "MRI" else "")
             for c in phantom_cases({"train": (1, 1), "valid": (1, 1)})]
    data = unpaired(cases, Grid((24, 24, 16), (7., 7., 8.)), tmp_path)
    _, y, _ = data.train_B[0]
    assert set(y.unique().tolist()) == {-(1 + 8 + 16), 1, 2, 5}
    assert set(np.unique(as_label_map(y)).tolist()) == {1, 2, 5, UNDRAWN}


def test_the_marginal_loss_adds_up_what_may_be_there():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 6, 3, 4, 5, dtype=torch.float64), torch.randint(0, 6, (2, 3, 4, 5))
    p = logits.softmax(1)
    partial = torch.where((labels == 0) | (labels == 3), -(1 + 8), labels)
    partial[0, 0] = IGNORE
    by_hand = torch.where(partial < 0, -(p[:, 0] + p[:, 3]).log(),
                          -p.gather(1, labels[:, None])[:, 0].log()).masked_fill(partial == IGNORE, 0)
    expected = (by_hand.flatten(1).sum(1) / (partial != IGNORE).flatten(1).sum(1)).mean()
    assert torch.allclose(shape_loss(logits, partial), expected)
    everything = torch.full_like(labels, -63)
    assert shape_loss(logits, everything).abs() < 1e-12  # anything may be there: nothing to learn


def test_the_marginal_loss_has_finite_gradients():
    logits = (50 * torch.randn(1, 6, 3, 4, 5)).requires_grad_()
    labels = torch.tensor([0, 1, -3, 255, -33]).expand(1, 3, 4, 5)
    shape_loss(logits, labels).backward()
    assert logits.grad.isfinite().all() and logits.grad.any()


@pytest.mark.parametrize("bits", [3, 2**61 + 1])
def test_sets_of_as_many_regions_as_a_task_can_have(bits):
    logits = torch.zeros(1, 62, 1, 1, 1)
    assert torch.allclose(shape_loss(logits, torch.full((1, 1, 1, 1), -bits)), torch.tensor(31.).log())


def test_scores_leave_out_what_was_not_drawn():
    whole = torch.tensor([[[[0, 1, 2, 3, 4, 5, 0, 3]]]])
    truth = torch.where((whole == 0) | (whole == 3) | (whole == 4), -(1 + 8 + 16), whole)
    scores = dice_scores(whole, truth)
    assert scores[0, [0, 1, 4]].tolist() == [100, 100, 100] and scores[0, [2, 3]].isnan().all()
    too_much = torch.where(whole == 3, 1, whole)  # LV where an atrium or background may be, and no LV was drawn
    assert dice_scores(too_much, truth)[0, 0] < 60
    assert one_hot(truth, truth).sum() == truth.numel()


def test_a_partial_domain_trains(tmp_path):
    from cssgan.training.run import start, step
    cases = [replace(c, table="ACDC" if c.modality == "MRI" else "")
             for c in phantom_cases({"train": (1, 1), "valid": (1, 1)})]
    config = preset("smoke")
    data = unpaired(cases, config.grid, tmp_path)
    run = start(config, ranges=data.ranges(), task=data.task)
    batch = next(iter(data.epoch(0, 0)))
    for phase in ("segmentors", "generators", "joint"):
        assert all(loss.isfinite() for loss in step(run, phase, batch).values())


def test_no_score_where_the_judge_never_learned(tmp_path, monkeypatch):
    from cssgan.training import run as training
    cases = [replace(c, table="ACDC" if c.modality == "MRI" else "")
             for c in phantom_cases({"train": (1, 1), "valid": (1, 1)})]
    config = preset("smoke")
    data = unpaired(cases, config.grid, tmp_path)
    run = training.start(config, ranges=data.ranges(), task=data.task)
    monkeypatch.setattr(training, "s_score", lambda *_: torch.tensor([80., 70., 0., 0., 60.]))
    scores = training.translation_scores(run, data)
    assert scores == pytest.approx({"s_ct_to_mri": 70, "s_mri_to_ct": 42})  # whoever judges MRI saw no atrium drawn
    run.evaluators_given = True  # these may have learned elsewhere
    assert training.translation_scores(run, data)["s_ct_to_mri"] == pytest.approx(42)


def test_what_is_never_drawn_begins_as_background_and_nothing_else_changes(tmp_path):
    from cssgan.training.run import UNLIKELY, begin_with_background, start
    cases = [replace(c, table="ACDC" if c.modality == "MRI" else "")
             for c in phantom_cases({"train": (1, 1), "valid": (1, 1)})]
    run = start(preset("smoke"))
    before = {name: p.clone() for name, p in run.nets.named_parameters()}
    begin_with_background(run, unpaired(cases, preset("smoke").grid, tmp_path))
    assert run.nets.S_B.net.last.bias[[3, 4]].tolist() == [UNLIKELY] * 2
    changed = [name for name, p in run.nets.named_parameters() if not torch.equal(p, before[name])]
    assert changed == ["S_B.net.last.bias"]
    assert torch.equal(run.nets.S_B.net.last.bias[[0, 1, 2, 5]], before["S_B.net.last.bias"][[0, 1, 2, 5]])


def test_a_domain_without_labels_trains_and_no_score_is_made_up(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CSSGAN_CACHE", str(tmp_path / "cache"))
    folder = write_data(tmp_path / "data", ABDOMEN, labels=(True, False))
    assert train_main(["--data", str(folder), "--out", str(tmp_path / "run"), "--preset", "smoke"]) == 0
    said = capsys.readouterr()
    assert "none of its 3 scans has a label" in said.err and "nan" not in said.out
    assert "there are no labels to judge MR by" in said.out
    last = json.loads((tmp_path / "run/best/checkpoint.json").read_text())["history"][-1]
    assert last["dice_MR"] is None and last["s_ct_to_mr"] is None


def test_some_labels_missing_is_an_error(tmp_path):
    folder = write_data(tmp_path, ABDOMEN)
    (folder / "MR/MR1_label.nii").unlink()
    with pytest.raises(InputError, match="MR1_image.nii has no label beside it; expected MR1_label.nii"):
        find_cases(folder)


# ---- the grid, and pieces

def test_partly_drawn_labels_do_not_move_the_grid(tmp_path):
    "Files of ACDC's kind beside whole ones: all grids lie around what both draw."
    heart_in({k: name for k, name in enumerate(HEART.regions) if k}, tmp_path, "CT")
    heart_in(FOREIGN["ACDC"], tmp_path, "MRI")
    both = msgspec.structs.replace(HEART, table_of={"CT": "cssgan", "MRI": "ACDC"})
    (tmp_path / "task.json").write_text(task_json(both))
    with pytest.warns(InputWarning, match="put around LV, RV, myocardium, which all of them draw"):
        cases = find_cases(tmp_path)
    assert cases[0].task.centre.on == ("LV", "RV", "myocardium")
    grid = Grid((40, 40, 32), (4.2, 4.2, 4.))
    for case, seed in zip(cases, (0, 1)):
        whole = phantom(seed, case.modality, Grid((48, 48, 32), (3.5, 3.5, 4.)))
        drawn = [np.flatnonzero(np.isin(whole.label, (1, 2, 5)).any(axis=o)) for o in ((1, 2), (0, 2), (0, 1))]
        middle = nib.affines.apply_affine(whole.affine, [(d[0] + d[-1]) / 2 for d in drawn])
        placed = load_case(case, grid)
        centre = nib.affines.apply_affine(placed.affine, (np.array(placed.shape) - 1) / 2)
        assert np.allclose(centre, middle, atol=0.01)


def test_whole_labels_keep_the_grid_where_it_was(tmp_path):
    heart_in({k: name for k, name in enumerate(HEART.regions) if k}, tmp_path, "CT")
    assert find_cases(tmp_path)[0].task is HEART


def test_a_centre_on_an_unknown_region_is_refused():
    with pytest.raises(InputError, match="no region is called 'heart'"):
        of("abdomen", [CT, scanner("MR")], ["liver"], centre={"on": ["heart"]})


def test_a_grid_that_cuts_a_structure_is_named(tmp_path):
    wide = msgspec.structs.replace(ABDOMEN, grid=HEART.grid.__class__((48, 40, 32), (8., 8., 8.)))
    folder = write_data(tmp_path / "data", wide)
    narrow = msgspec.structs.replace(wide, grid=HEART.grid.__class__((16, 16, 16), (8., 8., 8.)))
    (folder / "task.json").write_text(task_json(narrow))
    data = unpaired(with_splits(find_cases(folder)), Grid((16, 16, 16), (8., 8., 8.)), tmp_path / "cache")
    with pytest.warns(InputWarning, match=r"128×128×128 mm cuts off \d+% of the .* a grid of .* would hold all"):
        data.prepare()
    with pytest.warns(InputWarning, match="cuts off"): data.prepare()  # read from the cache, too


@pytest.mark.parametrize("rule, left", [("together", 1), ("each", 2), ("all", 3)])
def test_pieces_are_kept_as_the_task_says(rule, left):
    labels = np.zeros((12, 6, 6), np.uint8)
    labels[0:3, :3, :3], labels[5:7, :3, :3], labels[9, 0, 0] = 1, 2, 2
    kept = keep_pieces(labels, rule)
    from scipy import ndimage
    assert ndimage.label(kept)[1] == left and kept.dtype == np.uint8


def test_volumes_are_told_in_the_words_of_the_task():
    scan = shapes(0, "CT", ABDOMEN)
    assert describe_volumes(scan.label, scan.voxel_ml, ABDOMEN).startswith("liver ")
    assert describe_volumes(0 * scan.label, scan.voxel_ml, ABDOMEN) == "no abdomen was found"


# ---- drafts, and folders of nnU-Net

def nnunet(folder, task, modality, numbers=None, n=2, decathlon=False, channel=None):
    "A domain as nnU-Net, or the Decathlon, has it."
    for sub in ("imagesTr", "labelsTr"): (folder / sub).mkdir(parents=True, exist_ok=True)
    side = task.names.index(modality)
    for k in range(n):
        scan = shapes(2 * k + side if channel is None else k, modality, task)
        name = f"case{k}" if decathlon else f"case{k}_{channel or 0:04d}"
        write_volume(scan, folder / f"imagesTr/{name}.nii.gz")
        write_label(scan.label, scan.affine, folder / f"labelsTr/case{k}.nii.gz")
    names = {region: k for k, region in enumerate(numbers or task.regions)}
    if decathlon: said = {"modality": {"0": modality}, "labels": {str(k): name for name, k in names.items()}}
    else: said = {"channel_names": {"0": modality}, "labels": names, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(said | {"name": "x", "numTraining": n}))


def test_folders_of_nnunet_and_the_decathlon_are_read(tmp_path):
    nnunet(tmp_path / "CT", ABDOMEN, "CT")
    nnunet(tmp_path / "MR", ABDOMEN, "MR", decathlon=True)
    (tmp_path / "task.json").write_text(task_json(ABDOMEN))
    cases = find_cases(tmp_path)
    assert [(c.modality, c.patient, Path(c.image).name) for c in cases] == [
        ("CT", "case0", "case0_0000.nii.gz"), ("CT", "case1", "case1_0000.nii.gz"),
        ("MR", "case0", "case0.nii.gz"), ("MR", "case1", "case1.nii.gz")]


def test_two_channels_of_nnunet_are_two_domains(tmp_path):
    for channel, modality in enumerate(ABDOMEN.names): nnunet(tmp_path, ABDOMEN, modality, channel=channel)
    said = json.loads((tmp_path / "dataset.json").read_text()) | {"channel_names": {"0": "CT", "1": "MR"}}
    (tmp_path / "dataset.json").write_text(json.dumps(said))
    (tmp_path / "task.json").write_text(task_json(ABDOMEN))
    cases = find_cases(tmp_path)
    assert [(c.modality, Path(c.image).name) for c in cases] == [
        ("CT", "case0_0000.nii.gz"), ("CT", "case1_0000.nii.gz"), ("MR", "case0_0001.nii.gz"),
        ("MR", "case1_0001.nii.gz")]
    (tmp_path / "task.json").write_text(task_json(PELVIS))
    with pytest.raises(InputError, match="none is called CBCT"): find_cases(tmp_path)


def test_cases_of_the_decathlon_may_end_in_four_digits(tmp_path):
    nnunet(tmp_path / "CT", ABDOMEN, "CT")
    nnunet(tmp_path / "MR", ABDOMEN, "MR", decathlon=True)
    for file in (tmp_path / "MR").rglob("case*.nii.gz"):
        file.rename(file.with_name(file.name.replace("case", "mr_000")))
    (tmp_path / "task.json").write_text(task_json(ABDOMEN))
    assert [(c.patient, Path(c.label).name) for c in find_cases(tmp_path) if c.modality == "MR"] == [
        ("mr_0000", "mr_0000.nii.gz"), ("mr_0001", "mr_0001.nii.gz")]


def test_a_label_of_another_ending_is_no_missing_label(tmp_path):
    folder = write_data(tmp_path, ABDOMEN)
    for file in (folder / "MR").glob("*_label.nii"): file.rename(file.with_suffix(".nii.gz"))
    with pytest.raises(InputError, match="MR0_image.nii has no label beside it"): find_cases(folder)


def test_a_dataset_that_numbers_regions_otherwise_is_read_by_their_names(tmp_path):
    nnunet(tmp_path / "CT", ABDOMEN, "CT", ["background", "right_kidney", "Liver", "left kidney"])
    nnunet(tmp_path / "MR", ABDOMEN, "MR")
    with pytest.warns(InputWarning, match="CT/dataset.json is read by name: 1 right_kidney as right kidney, 2 Liver"):
        cases = find_cases(tmp_path, ABDOMEN)
    codes = {case.modality: [case.codes[k] for k in range(4)] for case in cases}
    assert codes == {"CT": [0, 2, 1, 3], "MR": [0, 1, 2, 3]}
    assert as_task(json.loads(task_json(cases[0].task))) == cases[0].task # as a run's folder keeps it


@pytest.mark.parametrize("name", TASKS)
def test_a_draft_trains_as_it_is(name, tmp_path, capsys):
    folder = write_data(tmp_path / name, TASKS[name])
    (folder / "task.json").unlink()
    assert task_main(["new", "--data", str(folder)]) == 0
    task = read_task(folder / "task.json")
    assert task.name == name and set(task.names) == set(TASKS[name].names)
    assert len(task.regions) == len(TASKS[name].regions) and task.regions[1] == "region 1"
    assert [d.check for d in task.domains] == [{"CT": "HU"}.get(m, "not HU" if "CT" in task.names else "")
                                               for m in task.names]
    assert "region 1" in capsys.readouterr().out
    cases = with_splits(find_cases(folder))
    unpaired(cases, preset("smoke", task).grid, tmp_path / "cache").prepare()


def test_a_draft_takes_the_names_of_dataset_json(tmp_path):
    nnunet(tmp_path / "CT", ABDOMEN, "CT")
    nnunet(tmp_path / "MR", ABDOMEN, "MR", decathlon=True)
    assert task_main(["new", "--data", str(tmp_path), "--name", "abdomen"]) == 0
    assert read_task(tmp_path / "task.json").regions == ABDOMEN.regions


def test_a_draft_reads_two_numberings_of_the_same_names(tmp_path):
    turned = ["background", "left kidney", "Liver", "right kidney"]
    nnunet(tmp_path / "CT", ABDOMEN, "CT")
    nnunet(tmp_path / "MR", ABDOMEN, "MR", turned)
    assert task_main(["new", "--data", str(tmp_path)]) == 0
    task = read_task(tmp_path / "task.json")
    assert task.regions == ABDOMEN.regions
    assert {n: task.regions[k] for n, k in task.table("MR").values.items()} == {
        0: "background", 1: "left kidney", 2: "liver", 3: "right kidney"}
    assert len(find_cases(tmp_path)) == 4


@pytest.mark.parametrize("names, regions", [
    (["background", "tumour (core)", "a/b", "ignore"], ["tumour core", "a b"]),
    (["background", "a/b", "a:b", "background "], ["a b", "a b 2"]),
    (["background", "n" * 50, "../x", "???"], ["n" * 40, "x", "region 3"])])
def test_a_draft_can_be_read_again_whatever_dataset_json_calls_a_region(names, regions, tmp_path):
    for modality in ABDOMEN.names: nnunet(tmp_path / modality, ABDOMEN, modality, names)
    assert task_main(["new", "--data", str(tmp_path)]) == 0
    task = read_task(tmp_path / "task.json")
    assert task.regions == ("background", *regions)
    if "ignore" in names: assert task.table("CT").values[3] is None and find_cases(tmp_path)[0].codes[3] == IGNORE


@pytest.mark.parametrize("folder, says", [
    ("T1 (post)", "'T1 .post.' cannot be the name of a domain"), ("_T1", "'_T1' cannot be"), ("T" * 41, "at most 40")])
def test_a_domain_cannot_have_any_name(folder, says, tmp_path, capsys):
    write_data(tmp_path, BRAIN, n=1)
    (tmp_path / "T1").rename(tmp_path / folder)
    (tmp_path / "task.json").unlink()
    assert task_main(["new", "--data", str(tmp_path)]) == 1
    import re
    assert re.search(says, capsys.readouterr().err)


def test_a_draft_of_more_structures_than_a_task_can_have(tmp_path, capsys):
    write_data(tmp_path, BRAIN, n=1)
    (tmp_path / "task.json").unlink()
    for file in tmp_path.rglob("*_label.nii"):
        label = read_label(file)
        write_label(np.arange(label.values.size).reshape(label.values.shape) % 70, label.affine, file)
    assert task_main(["new", "--data", str(tmp_path)]) == 1
    assert "69 structures are labelled, a task has at most 61" in capsys.readouterr().err


def test_a_draft_of_empty_labels_where_it_looks_first(tmp_path):
    folder = write_data(tmp_path, BRAIN, n=4)
    for file in folder.rglob("*[012]_label.nii"):
        write_label(0 * read_label(file).values, read_label(file).affine, file)
    (folder / "task.json").unlink()
    assert task_main(["new", "--data", str(folder)]) == 0
    assert read_task(folder / "task.json").centre.offset == (0, 0, 0)


def test_a_task_is_written_as_people_write(tmp_path):
    text = task_json(ABDOMEN)
    assert '"regions": ["background", "liver", "right kidney", "left kidney"],' in text
    assert '"grid": {"shape": [24, 24, 16], "spacing": [10, 10, 12]}' in text and '"window": [-1000, 1000]' in text
    for task in (*TASKS.values(), HEART):
        (tmp_path / "task.json").write_text(task_json(task))
        assert read_task(tmp_path / "task.json") == task and max(map(len, task_json(task).splitlines())) < 120


def test_a_draft_of_hearts_is_the_heart_with_the_tables_that_fit(tmp_path):
    heart_in(FOREIGN["ACDC"], tmp_path, "MRI")
    assert task_main(["new", "--data", str(tmp_path)]) == 0
    task = read_task(tmp_path / "task.json")
    assert task.regions == HEART.regions and task.table_of == {"CT": "cssgan", "MRI": "ACDC"}


@pytest.mark.parametrize("spoil, says", [
    (lambda f: None, "no folder"), (lambda f: f.mkdir(), "two folders"),
    (lambda f: (f / "CT").mkdir(parents=True), "two folders"),
    (lambda f: write_data(f, ABDOMEN, labels=(False, False)), "holds no labels"),
    (lambda f: (write_data(f, ABDOMEN), (f / "task.json").write_text("mine")), "exists: choose another name")])
def test_a_draft_that_cannot_be_made_is_refused(spoil, says, tmp_path, capsys):
    spoil(tmp_path / "data")
    if says == "holds no labels": (tmp_path / "data/task.json").unlink()
    assert task_main(["new", "--data", str(tmp_path / "data")]) == 1
    assert says in capsys.readouterr().err
    assert says == "exists: choose another name" or not (tmp_path / "data/task.json").exists()


# ---- the shapes

@pytest.mark.parametrize("name", TASKS)
def test_shapes_show_every_region_of_every_patient(name):
    task = TASKS[name]
    for seed in range(6):
        for modality in task.names:
            scan = shapes(seed, modality, task)
            assert isinstance(scan, Volume) and scan.task is task
            assert (np.bincount(scan.label.ravel(), minlength=len(task.regions))[1:] >= 8).all()


def test_phantoms_of_other_tasks_are_shapes(tmp_path):
    cases = phantom_cases({"train": (1, 1), "valid": (1, 1)}, task=BRAIN)
    data = unpaired(cases, Grid((24, 24, 16), (10., 10., 12.)), tmp_path)
    assert set(data.train_A[0][1].unique().tolist()) == set(range(9)) and data.task == BRAIN


def test_shapes_are_never_named_like_a_chest_of_the_same_seed():
    "A task may have the regions of the heart and other domains: its phantoms are shapes."
    from cssgan.data.prepared import content_digest
    other = of("heart", [scanner("T1"), scanner("T2")], HEART.regions[1:])
    names = [content_digest(Case("a", "a", task.names[0], "phantom:1", task=task)) for task in (HEART, other)]
    assert names[0] == "phantom:1" and names[1] != names[0]
