"What is measured of a checkpoint: without the labels, whatever single cases do, and said with what."
import csv
import json
import math
import shutil
import subprocess
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

import cssgan
from cssgan.cli import evaluate as command
from cssgan.cli.training import train_main
from cssgan.data.cases import Case, phantom_cases
from cssgan.data.finding import write_manifest
from cssgan.guard import InputError, warn
from cssgan.inference import apply
from cssgan.inference import evaluation as module
from cssgan.inference.apply import Segmented, load_networks
from cssgan.inference.evaluation import (
    Judge,
    check_results,
    evaluate,
    judge_doubts,
    judge_of,
    unlearned_regions,
)
from cssgan.inference.examples import check_pictures, examples, write_pictures
from cssgan.inference.scores import scan_scores
from cssgan.models import Networks
from cssgan.scans.volumes import Grid, Volume
from cssgan.task import HEART
from cssgan.training.checkpoints import load_checkpoint, save_checkpoint
from cssgan.training.schedule import Config, Phase
from cssgan.training.schema import about_networks

TINY = Grid((24, 24, 16), (7.0, 7.0, 8.0))


def scan_of(case):
    "Five boxes in a scan whose voxels are ten times its labels."
    label = np.zeros((16, 12, 10), np.uint8)
    for k in range(1, 6): label[2 * k:2 * k + 2, 3:8, 2:7] = k
    label = np.roll(label, int(case.patient) % 3, 1)
    return Volume(label.astype(np.float32) * 10, np.diag([2., 2, 3, 1]), case.modality, label=label)


@pytest.fixture
def stubs(monkeypatch):
    "Networks that read labels from voxels, and translate by moving everything by a voxel; what they were shown."
    shown = []
    def run_segmentor(loaded, scan, modality):
        shown.append((scan.label, modality, loaded))
        if modality == "MRI": warn("the volume: this may not be the heart: it is a box. Look at the result")
        return Segmented(replace(scan, label=np.rint(scan.voxels / 10).astype(np.uint8)), None)
    def run_generator(loaded, scan, to):
        shown.append((scan.label, to, loaded))
        return replace(scan, modality=to, voxels=np.roll(scan.voxels, 1, 0))
    def read_case(case, grid):
        if case.image in ("gone", "bug"): raise {"gone": InputError, "bug": KeyError}[case.image]("gone.nii is gone")
        return scan_of(case)
    for stub in (run_segmentor, run_generator, read_case): monkeypatch.setattr(module, stub.__name__, stub)
    return shown


CASES = phantom_cases({"test": (3, 2)})


@pytest.fixture
def loads(monkeypatch):
    "The checkpoints that were read from disk, and whether with what resuming needs."
    read = []
    def counted(folder, with_training=False):
        read.append((Path(folder), with_training))
        return load_checkpoint(folder, with_training)
    for where in (apply, module): monkeypatch.setattr(where, "load_checkpoint", counted)
    return read


def test_a_model_in_hand_is_scored_as_it_is_and_not_loaded_again(stubs, tmp_path, loads):
    run, _ = run_folder(tmp_path)
    shutil.rmtree(run / "last")
    model = cssgan.load(run, "cpu")
    loads.clear()
    found = model.evaluate(CASES[:2])
    assert found.loaded is model and all(loaded is model for _, modality, loaded in stubs) and not loads


def test_judges_and_evaluators_are_loaded_once(stubs, tmp_path, loads):
    run, _ = run_folder(tmp_path / "run")
    judge, _ = run_folder(tmp_path / "judge", evaluators=False)
    model = cssgan.load(run, "cpu")
    for _ in range(2):
        model.evaluate(CASES[:1])
        model.evaluate(CASES[:1], judge=judge)
        evaluate(run, CASES[:1], device="cpu")
    assert loads == [(run / "best", False), (run / "last", True), (judge / "best", False)]


def test_the_model_of_the_package_is_loaded_once(stubs, loads, monkeypatch):
    "It has no evaluators, and nothing is read to see that."
    cssgan.load(device="cpu")
    loads.clear()
    evaluate("pretrained", CASES[:1], device="cpu")
    assert not loads


def test_the_worst_cases_stand_in_the_file(tmp_path, stubs, checkpoint):
    found = evaluate(checkpoint, CASES)
    found.write(tmp_path / "a.csv")
    said = json.loads((tmp_path / "a.json").read_text())
    assert {domain: len(worst) for domain, worst in said["worst"].items()} == {"CT": 3, "MRI": 2}
    assert said["drawn_on_the_training_grid"] == 5 and "scans score lower" in repr(found)


def test_no_label_goes_into_what_is_measured(stubs, checkpoint):
    found = evaluate(checkpoint, CASES)
    assert len(stubs) == 3 * len(CASES) and all(label is None for label, *_ in stubs)
    assert [row["dice_percent"] for row in found.rows] == [100] * 25 and not found.failed
    assert len({(row["case"], row["structure"]) for row in found.rows}) == 25


def test_s_score_is_the_dice_on_the_translation(stubs, checkpoint):
    rows, scan = evaluate(checkpoint, CASES[:1]).rows, scan_of(CASES[0])
    moved = scan_scores(np.roll(scan.label, 1, 0), scan)
    assert [row["s_score_percent"] for row in rows] == [score.dice for score in moved]
    assert rows[0]["s_score_percent"] < 60


def test_warnings_are_kept_with_the_case_and_not_shown(stubs, checkpoint):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = evaluate(checkpoint, CASES).rows
    assert rows[0]["warning"] == "translated: this may not be the heart: it is a box"
    assert rows[-1]["warning"] == "this may not be the heart: it is a box"


@pytest.mark.parametrize("how, says", [("gone", "gone.nii is gone"), ("bug", "KeyError: 'gone.nii is gone'")])
def test_a_case_that_fails_says_so_and_the_others_go_on(stubs, checkpoint, how, says):
    found = evaluate(checkpoint, [replace(CASES[0], image=how), *CASES[1:]])
    assert [row["error"] for row in found.rows] == [says] + [""] * 20 and found.failed == [CASES[0].id]
    assert CASES[0].id in repr(found) and found.summary()[0]["cases"] == 2


def test_a_translation_that_fails_leaves_the_other_scores(stubs, checkpoint, monkeypatch):
    def fails(*_): raise RuntimeError("no room")
    monkeypatch.setattr(module, "run_generator", fails)
    found = evaluate(checkpoint, CASES[:1])
    assert found.failed == [CASES[0].id] and found.rows[0]["error"] == "not translated: RuntimeError: no room"
    assert found.rows[0]["dice_percent"] == 100 and math.isnan(found.rows[0]["s_score_percent"])


def test_cases_of_another_task_are_refused(stubs, checkpoint):
    other = msgspec.structs.replace(HEART, regions=(*HEART.regions[:5], "wall"), tables={}, table_of={})
    with pytest.raises(InputError, match="name those of one task"):
        evaluate(checkpoint, [replace(CASES[0], task=other)])
    assert not stubs


# ---- who judges

def about(seed=None, *phases, weights="a"):
    config = {} if seed is None else {"config": {"seed": seed, "phases": [{"name": name} for name in phases]}}
    return {"files": {"weights": {weights: weights}}} | config


def test_who_is_an_independent_judge():
    run, judge = about(0, "segmentors", "joint"), about(1, "segmentors", weights="b")
    assert judge_doubts(judge, run) == [] and judge_doubts(run, run) == ["it is the same checkpoint"]
    assert judge_doubts(about(0, "segmentors", weights="b"), run) == ["it has the same seed, 0"]
    assert judge_doubts(about(1, "segmentors", "joint", weights="b"), run) == ["it also learned from synthetic volumes"]
    assert judge_doubts(about(weights="b"), run) == ["nobody knows what it learned from"]


def test_a_judge_that_learned_from_what_is_scored_is_doubted(stubs, tmp_path, checkpoint):
    "Its list of cases says so: training and validation count, a test case does not; no list is a doubt as well."
    scored = phantom_cases({"test": (2, 2)})
    config = Config(grid=TINY, width=4, patch_layers=1, phases=(Phase("segmentors", 1), Phase("joint", 1)))
    run, _ = run_folder(tmp_path / "run", config=asdict(config), data="0" * 16)
    known = {"config": asdict(replace(config, seed=1, phases=(Phase("segmentors", 1),))), "data": "1" * 16}
    judge, _ = run_folder(tmp_path / "judge", seed=1, **known)
    doubts = lambda: judge_of(load_networks(run / "best"), judge, scored).doubts
    assert doubts() == ["there is no list of the scans that it learned from"]
    learned = ["it learned from 2 of the 4 cases"]
    for split, doubt in ("train", learned), ("valid", learned), ("test", []):
        others = phantom_cases({"train": (1, 1)}, first=50)
        write_manifest([*(replace(case, split=split) for case in scored[::2]), *others], judge / "cases.csv")
        assert doubts() == doubt
    (judge / "cases.csv").unlink()
    run_folder(tmp_path / "judge", seed=1, **known | {"data": "0" * 16})
    assert doubts() == []  # the run's own scans, in the run's own splits


def test_the_table_says_who_judged(stubs, tmp_path, checkpoint, monkeypatch):
    def judges(**words): return {row["judge"] for row in evaluate(checkpoint, CASES[:1], **words).rows}
    judge, _ = run_folder(tmp_path / "judge", seed=1)
    assert judges() == {"own"} and judges(judge=judge) == {"doubted"}
    monkeypatch.setattr(module, "judge_doubts", lambda *_: [])
    assert judges(judge=judge) == {"independent"}
    monkeypatch.setattr(module, "phases_done", lambda _: ("segmentors",))
    assert judges(judge=judge) == {""}


def test_a_table_of_an_older_version_is_ours(tmp_path):
    (tmp_path / "a.csv").write_text("case,patient,domain,split,structure,dice_percent,hd95_mm,assd_mm,true_ml,found_ml,"
                                    "s_score_percent,warning,error\n")
    check_results(tmp_path / "a.csv", force=True)


def run_folder(folder, evaluators=True, seed=0, **more):
    "A run's best/ and last/, whose evaluators have other weights than its segmentors."
    nets, kept = Networks(4, 1, seed=seed), Networks(4, 1, seed=5)
    told = about_networks(nets, TINY, {"CT": (-1000., 1000.), "MRI": (10., 600.)}) | more
    save_checkpoint(folder / "best", nets, told)
    tensors = torch.nn.ModuleDict({"S_A": kept.S_A, "S_B": kept.S_B}).state_dict()
    of = {f"judge.{name}": tensor for name, tensor in tensors.items()}
    save_checkpoint(folder / "last", nets, told, training=of if evaluators else {})
    return folder, kept


def test_a_run_is_judged_by_the_evaluators_that_it_kept(tmp_path):
    folder, kept = run_folder(tmp_path)
    own = load_networks(folder / "best")
    judge = judge_of(own, None)
    assert judge.doubts and "own evaluators" in judge.name
    for mine, S in ((judge.loaded, kept.S_B), (own, load_checkpoint(folder / "best").nets.S_B)):
        assert all(torch.equal(a, b) for a, b in zip(mine.nets.S_B.parameters(), S.parameters()))


def test_without_evaluators_its_own_segmentors_judge_and_it_is_said(tmp_path):
    folder, _ = run_folder(tmp_path, evaluators=False)
    own = load_networks(folder / "best")
    judge = judge_of(own, None)
    assert judge.loaded is own and judge.doubts


def test_a_judge_that_is_named_judges(stubs, tmp_path, checkpoint):
    folder, _ = run_folder(tmp_path)
    found = evaluate(checkpoint, CASES[:1], judge=folder)
    assert stubs[-1][2].place == folder / "best" and found.facts["judge"]["name"] == str(folder)
    assert found.facts["judge"]["doubts"] == ["it is the same checkpoint"] and "not independent" in repr(found)


def test_generators_that_were_not_trained_are_not_judged(stubs, checkpoint, monkeypatch):
    monkeypatch.setattr(module, "phases_done", lambda _: ("segmentors",))
    found = evaluate(checkpoint, CASES[:1])
    assert len(stubs) == 1 and math.isnan(found.rows[0]["s_score_percent"]) and "not been trained" in repr(found)


def test_own_segmentors_judge_no_region_that_no_label_showed_them():
    known = {"task": {"domains": [{"name": "CT"}, {"name": "MRI"}]}, "regions": HEART.regions}
    acdc = [Case(str(k), str(k), "MRI", f"{k}.nii", f"{k}_label.nii", table="ACDC") for k in range(2)]
    assert unlearned_regions(known, [*CASES[:2], *acdc]) == {"CT": frozenset(), "MRI": frozenset({3, 4})}
    blind = known | {"history": [{"dice_CT": 80., "dice_MRI": None}, {"gan": 1.}]}
    assert unlearned_regions(blind, CASES) == {"CT": frozenset(), "MRI": frozenset(range(1, 6))}


def test_regions_that_the_judge_does_not_know_have_no_s_score(stubs):
    scan, judge = scan_of(CASES[0]), Judge("judge", "", [], [], {"MRI": frozenset({3, 4})})
    assert list(module.translation_dice(scan, "run", judge)) == ["LV", "RV", "myocardium"]
    assert module.translation_dice(scan, "run", judge._replace(unlearned={"MRI": frozenset(range(1, 6))})) == {}


# ---- on disk

def test_what_is_written_can_be_read(stubs, checkpoint, tmp_path):
    found = evaluate(checkpoint, [*CASES[:2], replace(CASES[2], image="gone")])
    found.rows[1] |= {"dice_percent": 0., "hd95_mm": math.inf, "assd_mm": math.inf}
    found.write(tmp_path / "scores.csv")
    with open(tmp_path / "scores.csv", encoding="utf-8", newline="") as f: rows = list(csv.DictReader(f))
    assert len(rows) == 11 and (rows[0]["dice_percent"], rows[1]["hd95_mm"]) == ("100.0", "inf")
    assert rows[-1]["dice_percent"] == "" and rows[-1]["error"] == "gone.nii is gone"
    def strict(word): raise ValueError(word)
    facts = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"), parse_constant=strict)
    assert facts["checkpoint"]["weights"] == [*load_checkpoint(checkpoint).about["files"]["weights"].values()]
    assert facts["failed"] == [CASES[2].id] and facts["cases"] == 3 and facts["definitions"]["dice_percent"]
    assert {row["structure"] for row in facts["summary"]} == {*HEART.regions[1:], "all"}


def test_only_what_an_evaluation_wrote_is_replaced(stubs, checkpoint, tmp_path):
    evaluate(checkpoint, CASES[:1]).write(tmp_path / "scores.csv")
    check_results(tmp_path / "scores.csv", force=True)
    with pytest.raises(InputError, match="--force"): check_results(tmp_path / "scores.csv")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match="was not made by cssgan"): check_results(tmp_path / "other.csv", force=True)


def test_a_model_in_hand_stays_on_its_device(checkpoint):
    with pytest.raises(InputError, match="a model stays on its device"):
        evaluate(load_networks(checkpoint), CASES, device="cpu")


def test_best_median_and_worst():
    facts = {"patient": "p", "domain": "CT", "structure": "LV"}
    def rows(*dice): return [facts | {"case": f"c{d}", "dice_percent": float(d)} for d in dice]
    chosen = lambda *dice: {name: found["case"] for name, found in examples(rows(*dice)).items()}
    assert chosen(5) == {"CT_best": "c5"} and chosen(5, 9) == {"CT_best": "c9", "CT_worst": "c5"}
    assert chosen(1, 5, 3) == {"CT_best": "c5", "CT_median": "c3", "CT_worst": "c1"}
    assert chosen(1, 5, 3, 9) == {"CT_best": "c9", "CT_worst_3": "c5", "CT_median": "c3", "CT_worst": "c1"}
    assert chosen(1, 5, 3, 9, 7) == {"CT_best": "c9", "CT_median": "c5", "CT_worst_2": "c3", "CT_worst": "c1"}
    assert chosen(*range(7)) == {"CT_best": "c6", "CT_median": "c3", "CT_worst_3": "c2", "CT_worst_2": "c1",
                                 "CT_worst": "c0"}
    assert [found["rank"] for found in examples(rows(*range(7))).values()][2:] == [
        "third worst of 7 CT cases", "second worst of 7 CT cases", "worst of 7 CT cases"]
    assert examples([{"case": "c", "patient": "p", "domain": "CT", "structure": "", "error": "gone"}]) == {}


def test_pictures_are_ours_and_old_ones_go(stubs, checkpoint, tmp_path):
    found = evaluate(checkpoint, CASES)
    assert [p.name for p in write_pictures(found, tmp_path)] == [
        "CT_best.png", "CT_median.png", "CT_worst.png", "MRI_best.png", "MRI_worst.png"]
    check_pictures(tmp_path, HEART.names, force=True)
    write_pictures(replace(found, rows=[row for row in found.rows if row["case"] == CASES[0].id]), tmp_path)
    assert "CT_median.png" not in [p.name for p in tmp_path.iterdir()]
    (tmp_path / "CT_median.png").write_bytes(b"somebody's")
    with pytest.raises(InputError, match="was not made by cssgan"): check_pictures(tmp_path, HEART.names, True)


# ---- the command

@pytest.fixture
def run(stubs, tmp_path, monkeypatch, capsys):
    "A run's folder in an empty one, and the command: (exit status, stdout, stderr)."
    monkeypatch.chdir(tmp_path)
    run_folder(tmp_path / "run")
    write_manifest(phantom_cases({"train": (2, 2), "test": (2, 1)}), tmp_path / "run/cases.csv")
    def run(words):
        capsys.readouterr()
        try: status = command.evaluate_main(words.split())
        except SystemExit as e: status = e.code
        return status, *capsys.readouterr()
    return run


def test_a_runs_test_cases_are_scored(run):
    status, out, err = run("run --out scores.csv --pictures pictures")
    assert status == 0 and "CT (cases: 2, patients: 2)" in out and "S-scores by the run's own evaluators" in out
    assert out.endswith("wrote scores.csv, scores.json and 3 pictures into pictures; not for diagnosis\n")
    assert len(Path("scores.csv").read_text().splitlines()) == 1 + 3 * 5


def test_quiet_prints_what_was_written_alone(run):
    assert run("run --out scores.csv --quiet") == (0, "wrote scores.csv, scores.json; not for diagnosis\n", "")


def test_a_failed_case_is_an_exit_status_and_the_table_is_there(run, monkeypatch):
    def fails(case, grid):
        if case.modality == "MRI": raise InputError("it is gone")
        return scan_of(case)
    monkeypatch.setattr(module, "read_case", fails)
    status, out, err = run("run --out scores.csv --quiet")
    assert status == 1 and err.count("\n") == 1 and "1 of 3 cases could not be scored" in err and "wrote" in out
    assert len(Path("scores.csv").read_text().splitlines()) == 1 + 2 * 5 + 1


@pytest.mark.parametrize("words, says", [
    ("run/best --out new.csv", "name labelled scans with --data"),
    ("run --split valid --out new.csv", "has no valid cases: there are 4 train, 3 test"),
    ("run --out new.txt", "must end in .csv"),
    ("run --out run/cases.csv --force", "was not made by cssgan"),
    ("run --out new.csv --judge none", "holds no checkpoint"),
    ("run --data none --out new.csv", "is no data set"),
    ("none --out new.csv", "holds no checkpoint"),
    ("run --out none/new.csv", "there is no folder none")])
def test_what_cannot_be_done_is_one_line_and_no_file(run, words, says):
    status, out, err = run(words)
    assert (status, out, err.count("\n")) == (1, "", 1) and err.startswith("cssgan_evaluate: ") and says in err
    assert not Path("new.csv").exists() and not Path("new.json").exists()


def test_where_there_are_no_splits_all_cases_are_scored(run):
    write_manifest([replace(case, split="") for case in phantom_cases({"test": (3, 2)}, first=50)], "data.csv")
    assert run("run --data data.csv --out scores.csv --quiet")[0] == 0
    assert len(Path("scores.csv").read_text().splitlines()) == 1 + 5 * 5


def test_scans_that_the_run_was_trained_with_are_pointed_out(run):
    write_manifest([replace(case, split="") for case in phantom_cases({"test": (3, 2)})], "data.csv")
    status, _, err = run("run --data data.csv --out scores.csv --quiet")
    assert status == 0 and "have trained or validated this run" in err and err.count("\n") == 1


@pytest.mark.parametrize("kept, other", [("CT", "MRI"), ("MRI", "CT")])
def test_cases_of_one_domain_are_scored_and_the_other_is_named(run, kept, other):
    "Their translations as well: who judges those are networks, not cases."
    cases = [case for case in phantom_cases({"test": (2, 2)}, first=50) if case.modality == kept]
    write_manifest(cases, "data.csv")
    status, out, err = run("run --data data.csv --out scores.csv")
    assert status == 0 and f"{kept} (cases: 2" in out and f"{other} (cases" not in out
    assert f"no {other} case" in err and err.count("no MRI case" if other == "MRI" else "no CT case") == 1
    with open("scores.csv", encoding="utf-8", newline="") as f: rows = list(csv.DictReader(f))
    assert {row["domain"] for row in rows} == {kept} and all(row["s_score_percent"] for row in rows)


def test_a_folder_of_one_domain_is_scored(run):
    Path("data/CT").mkdir(parents=True)
    for name in "1_image", "1_label", "2_image", "2_label": Path(f"data/CT/{name}.nii.gz").touch()
    status, out, err = run("run --data data --out scores.csv")
    assert status == 0 and "CT (cases: 2" in out and "no MRI case" in err


def test_pictures_of_a_domain_that_is_not_scored_any_more_go(run):
    assert run("run --out scores.csv --pictures pictures")[0] == 0 and Path("pictures/MRI_best.png").exists()
    write_manifest([case for case in phantom_cases({"test": (2, 2)}, first=50) if case.modality == "CT"], "data.csv")
    assert run("run --data data.csv --out scores.csv --pictures pictures --force")[0] == 0
    assert sorted(p.name for p in Path("pictures").iterdir()) == ["CT_best.png", "CT_worst.png"]


def test_own_segmentors_are_asked_for_what_the_run_learned_from(tmp_path):
    "Cases of CT alone do not say which structures the MRI segmentor was shown; the run's own cases do."
    folder, _ = run_folder(tmp_path)
    acdc = [Case(f"acdc{k}", f"acdc{k}", "MRI", f"{k}.nii", f"{k}_label.nii", "train", "ACDC") for k in range(2)]
    write_manifest([*phantom_cases({"train": (1, 0), "test": (1, 1)}), *acdc], folder / "cases.csv")
    scored = phantom_cases({"test": (2, 1)}, first=50)[:2]
    judge = judge_of(load_networks(folder / "best"), None, scored)
    assert judge.unlearned["MRI"] == frozenset({3, 4})


def test_scans_without_labels_are_left_out_and_it_is_said(run):
    cases = phantom_cases({"test": (2, 2)}, first=50)
    write_manifest([replace(cases[0], image="ct.nii.gz"), *cases[1:]], "data.csv")
    status, _, err = run("run --data data.csv --out scores.csv --quiet")
    assert status == 0 and "1 of 4 cases have no labels, and are left out" in err


def test_the_recipe_makes_an_independent_judge(tmp_path, monkeypatch, capsys):
    "All the way: scans without splits, a run, a judge that takes over its splits, S-scores."
    monkeypatch.chdir(tmp_path)
    write_manifest([replace(case, split="") for case in phantom_cases({"test": (3, 3)})], "scans.csv")
    train = lambda words: train_main(f"--preset smoke --set width=2 --quiet --cache cache {words}".split())
    judge = "--set phases.generators=null --set phases.joint=null --out runs/judge"  # as the option's help has it
    assert judge.split(" --out")[0] in " ".join(command.evaluate_parser().format_help().split())
    assert train("--data scans.csv --out runs/mine") == 0
    assert train(f"--data runs/mine/cases.csv --seed 1 {judge}") == 0
    assert Path("runs/judge/cases.csv").read_bytes() == Path("runs/mine/cases.csv").read_bytes()
    assert command.evaluate_main("runs/mine --judge runs/judge --out scores.csv --quiet".split()) == 0
    said = json.loads(Path("scores.json").read_text())["judge"]
    assert said["independent"] is True and said["name"] == "runs/judge" and not said["doubts"]
    with open("scores.csv", encoding="utf-8", newline="") as f: rows = list(csv.DictReader(f))
    assert len(rows) == 2 * 5 and {row["judge"] for row in rows} <= {"independent", ""}
    assert any(row["judge"] for row in rows)


def test_examples_of_the_help_can_be_parsed(monkeypatch):
    jobs = []
    monkeypatch.setattr(command, "attempt", lambda name, job, *_: jobs.append(name) or 0)
    for example in command.EVALUATE_EXAMPLES.splitlines(): assert command.evaluate_main(example.split()[1:]) == 0
    assert len(jobs) >= 2


def test_help_is_quick_and_fits_a_terminal():
    code = ("import sys; from cssgan.cli.evaluate import evaluate_main\ntry: evaluate_main(['--help'])\n"
            "except SystemExit: print(sorted({'torch', 'monai', 'numpy'} & set(sys.modules)))")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert out.endswith("[]\n") and out.count("\n  cssgan_evaluate ") >= 2 and max(map(len, out.splitlines())) < 120
