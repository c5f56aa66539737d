"""The experiment notebooks run from end to end as papermill runs them; what they compare was trained equally long."""
import csv
import json
import os
import re
import subprocess
import sys
from functools import reduce
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from protocols import study_of

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "nbs/experiments"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb") if path.stem not in ("quickstart", "results"))
GRIDS = sorted((ROOT / "results").glob("*.yaml"))
METRICS = "dice.CT.baseline dice.CT.joint dice.MRI.baseline dice.MRI.joint s_score.ct_to_mri s_score.mri_to_ct".split()
FEW = {
    "fig7_synthetic_fraction": ["-y", "fractions: [0.14, 1.0]"], "fig8_gap": ["-y", "fractions: [0.28, 0.86]"],
    "fig7_real_fraction": ["-y", "fractions: [0.14, 1.0]"], "ambiguity": ["-y", "shifts: [0, 2]", "-p", "n_cases", "1"],
    "pretrained": ["-p", "n_drawn", "2", "-p", "n_judged", "1"],
    "controls": ["-y", "methods: [R, R ×3, ADA, ours, all real]"],
    "improvements": ["-y", "improvements: [none, soft-tissue window, augmented D]"],
    "twins": ["-p", "n_drawn", "2", "-p", "n_judged", "1", "-p", "epochs", "1"],
    "adaptation": ["-p", "n_drawn", "3", "-p", "n_unlabelled", "2", "-y", "epochs: [1, 1]"],
    "ruler": ["-y", "{spacings: [8.0], moves: [0, 2], patients: [5], n_scans: 2}"],
    "populations": ["-y", "counts: {train: 2, valid: 1, test: 2}"],
    "convergence": ["-y", "seeds: [0, 1]"],
    "finding": ["-y", "patients: [5]", "-p", "spacing", "14.0"],
}


def papermill(name, out, *words):
    "Run a notebook as a user does."
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", *words, "-r", "out_dir", out]
    command += [FOLDER / f"{name}.ipynb", out / f"{name}.ipynb"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"JUPYTER_PREFER_ENV_PATH": "1", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return out


# ---- the main job

@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "The folder that quickstart fills."
    return papermill("quickstart", tmp_path_factory.mktemp("quickstart"), "-r", "preset", "smoke", "-p", "seed", "1")


def test_quickstart_writes_its_parameters(made):
    params = json.loads((made / "params.json").read_text())
    assert params["preset"] == "smoke" and params["seed"] == 1


def test_quickstart_writes_its_metrics(made):
    metrics = json.loads((made / "metrics.json").read_text())
    for name in METRICS: assert 0 <= reduce(lambda found, key: found[key], name.split("."), metrics) <= 100


def test_quickstart_leaves_pictures_volumes_and_a_checkpoint(made):
    for pattern in ("*.png", "*.nii.gz", "*.safetensors"): assert list(made.rglob(pattern)), pattern


# ---- the paper's tables and figures

@pytest.fixture(scope="module")
def runs(tmp_path_factory, checkpoint):
    "Runs a notebook once; all share what they train."
    shared, done = tmp_path_factory.mktemp("shared"), {}
    def run(name, *words):
        if (name, words) not in done:
            out = tmp_path_factory.mktemp(name)
            few, smoke = ["-r", "data", "phantom-few"], ["-r", "preset", "smoke"]
            how = [*few, *smoke, "-r", "shared", shared]
            if name == "real_scans": how = [*few, "-r", "checkpoint", checkpoint]  # it trains nothing
            if name in ("pretrained", "twins"): how = [*smoke, "-r", "patients", shared / "patients"]  # drawn
            if name == "twins": how += ["-r", "checkpoint", checkpoint]
            if name == "adaptation": how = [*smoke, "-r", "checkpoint", checkpoint]  # it draws its data, too
            if name == "ruler": how = []  # nor does it have a preset
            if name == "finding": how = ["-r", "checkpoint", checkpoint]  # it trains nothing
            if name == "populations": how = [*smoke, "-r", "shared", shared]  # its patients are chosen
            tiny = [*how, *FEW.get(name, [])]
            papermill(name, out, *tiny, *words)
            metrics, params = (json.loads((out / f"{what}.json").read_text()) for what in ("metrics", "params"))
            means = [row for row in metrics if "patient" not in row]
            run.out[name, words] = out
            run.patients[name, words] = [row for row in metrics if "patient" in row]
            done[name, words] = means, params
        return done[name, words]
    run.patients, run.out = {}, {}
    return run


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_experiment_runs_and_leaves_flat_records(name, runs):
    records, params = runs(name)
    values = [value for record in records for value in record.values()]
    assert values and all(isinstance(value, (str, int, float, type(None))) for value in values)
    assert params.get("data", "phantom-few") == "phantom-few" and params.get("preset", "smoke") == "smoke"


SEGMENTORS = ["table2_segmentation", "fig7_real_fraction", "fig7_synthetic_fraction", "fig8_gap", "controls",
              "improvements"]
COMPARED = [*SEGMENTORS, "table1_s_score", "populations"]


@pytest.mark.parametrize("name", SEGMENTORS)
def test_compared_segmentors_had_equally_many_updates(name, runs):
    assert len({record["updates_S"] for record in runs(name)[0]}) == 1


@pytest.mark.parametrize("name", COMPARED)
def test_every_record_of_a_comparison_says_its_protocol(name, runs):
    records = runs(name)[0]
    kind = lambda record: (record.get("augment", ""), record.get("improvement", ""))
    found = {kind(record): record["protocol"] for record in records}
    assert all(re.fullmatch("[0-9a-f]{8}", record["protocol"]) and "commit" in record for record in records)
    assert all(record["protocol"] == found[kind(record)] for record in records)
    of_ours_alone = [key for key in found if key[1] == "augmented D"]
    assert len(set(found.values())) == len(found) - len(of_ours_alone)


@pytest.mark.parametrize("name", [*COMPARED, "table1_s_score", "convergence"])
def test_a_records_protocol_can_be_told_again(name, runs, tmp_path):
    from cssgan.experiments.methods import protocol_of
    records, params = runs(name)
    for record in records:
        if "protocol" not in record: continue
        assert protocol_of(study_of(name, params | record, tmp_path)).fingerprint == record["protocol"]


def test_controls_hold_every_method_with_and_without_augmentation(runs):
    found = [(record["augment"], record["method"]) for record in runs("controls")[0]]
    names = "R", "R ×3", "ADA", "ours", "all real"
    assert found == [(kind, name) for kind in ("none", "shape", "all") for name in names]


def test_controls_leave_out_the_averaged_teacher_where_nothing_is_averaged(tmp_path):
    few = ["-r", "data", "phantom-few", "-r", "preset", "smoke", "-r", "shared", tmp_path / "shared"]
    out = papermill("controls", tmp_path, *few, "-y", "augment: [false]")
    found = {record["method"] for record in json.loads((out / "metrics.json").read_text()) if "patient" not in record}
    assert "ours, frozen teacher" in found and "ours, averaged teacher" not in found


def test_improvements_look_at_the_test_patients_only_if_they_are_asked_to(runs, tmp_path):
    assert {record["score"] for record in runs("improvements")[0]} == {"validation Dice"}
    few = ["-r", "data", "phantom-few", "-r", "preset", "smoke", "-r", "shared", tmp_path / "shared"]
    out = papermill("improvements", tmp_path, *few, "-p", "report", "True", "-y", "improvements: [none]")
    records = json.loads((out / "metrics.json").read_text())
    assert {"validation Dice", "Dice", "Dice by patient"} == {record["score"] for record in records}
    assert {record["method"] for record in records} == {"R", "R ×3", "ADA", "offline from ours", "ours", "all real"}


@pytest.mark.parametrize("name", ["table1_s_score", "fig3_cyclegan"])
def test_compared_generators_had_equally_many_updates(name, runs):
    assert len({record["updates_G"] for record in runs(name)[0] if record["score"] == "S-score"}) == 1


def test_table1_has_two_judges_and_what_a_perfect_translation_would_get(runs):
    found = {(record["score"], record.get("judge"), record["direction"], record["method"])
             for record in runs("table1_s_score")[0]}
    sides = "G w/o SC", "G w/ SC (ours)"
    for direction in ("CT→MRI", "MRI→CT"):
        for judge in ("independent", "ceiling"):
            assert {("S-score", judge, direction, side) for side in sides} <= found
            assert {("true twin", judge, direction, "true twin"), ("Dice", judge, direction, "real volumes")} <= found
        assert ("floor", None, direction, "floor") in found


def test_different_populations_are_compared_with_equal_ones(runs):
    records = runs("populations")[0]
    volumes = {(r["direction"], r["populations"], r["method"]) for r in records if r["score"] == "volumes"}
    assert {populations for _, populations, _ in volumes} == {"", "different", "equal"} and len(volumes) == 10
    assert len({r["updates_G"] for r in records if r["score"] == "S-score"}) == 1
    assert {r["judge"] for r in records if "judge" in r} == {"independent"}


def test_populations_are_compared_patient_by_patient(runs):
    from cssgan.experiments.statistics import paired_scores
    runs("populations")
    frame = pd.DataFrame(runs.patients["populations", ()])
    for score, value in ("volumes by patient", "LV_change"), ("truth by patient", "error"):
        one = frame[(frame["score"] == score) & (frame["direction"] == "CT→MRI")]
        one = one[one["method"] != "true twin"]
        one = one.assign(method=one["populations"] + ", " + one["method"])
        assert paired_scores(one, sorted(one["method"].unique()), value).shape == (4, 1, 2)
    assert frame.loc[frame["score"] == "volumes by patient", "way_percent"].notna().all()


def test_a_point_of_a_curve_does_not_depend_on_its_other_points(runs):
    "CT that are not there have taught nobody, in the pre-training neither."
    both, one = (runs("fig7_synthetic_fraction", *words)[0] for words in ((), ("-y", "fractions: [0.14]")))
    assert [record for record in both if record["synthetic"] == .14] == one and len(one) == 3


def test_few_labels_are_not_few_images_in_figure_7(runs):
    few = "-y", "{fractions: [0.14], real: 0.14}"
    labels, images = (runs("fig7_synthetic_fraction", *few, "-p", "scarce", what)[0] for what in ("labels", "images"))
    assert {record["scarce"] for record in labels} == {"labels"} and {r["scarce"] for r in images} == {"images"}
    assert labels[0]["mean"] == images[0]["mean"] and labels[2]["mean"] != images[2]["mean"]


def test_a_length_has_a_verdict_only_with_two_seeds(runs):
    shown = lambda *words: (runs("convergence", *words), (runs.out["convergence", words] / "convergence.ipynb"))[1]
    assert "undecided: one seed" in shown("-y", "{seeds: [0], longer: [1]}").read_text()
    assert "undecided: one seed" not in shown().read_text().split("measured")[-1]
    records = runs("convergence")[0]
    assert {(r["seed"], r["longer"], r["modality"]) for r in records} == {
        (seed, times, m) for seed in (0, 1) for times in (1, 2) for m in ("CT", "MRI")}


def test_table2_holds_all_methods(runs):
    methods = [record["method"] for record in runs("table2_segmentation")[0]]
    assert methods == ["Baseline (R)", "ADA (R+S)", "Ours (R+S)", "All real"]


def test_table2_has_every_method_on_every_patient(runs):
    from cssgan.experiments.statistics import paired_scores
    (means, _), patients = runs("table2_segmentation"), runs.patients["table2_segmentation", ()]
    frame = pd.DataFrame([row | {"seed": 0} for row in patients])
    scores = paired_scores(frame, [row["method"] for row in means])
    assert scores.shape[:2] == (4, 1) and scores.shape[2] == frame["patient"].nunique() > 1


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_parameter_is_explained(name):
    done = subprocess.run(
        [sys.executable, "-m", "papermill", "--help-notebook", FOLDER / f"{name}.ipynb"], capture_output=True, text=True
    )
    listed = done.stdout.split("Parameters inferred")[1]
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]
    cell = next(c for c in cells if "parameters" in c["metadata"].get("tags", []))
    for line in "".join(cell["source"]).splitlines():
        (parameter, _, _), (_, _, comment) = line.partition(":"), line.partition(" # ")
        assert parameter in listed and comment and comment[:30] in " ".join(listed.split()), parameter


# ---- a model for real scans

def test_hearts_that_are_kept_back_are_judged_and_never_learned_from(tmp_path):
    "Five label maps: one to learn from, four to judge by."
    from cssgan.phantoms.heart import draw_anatomy
    from cssgan.scans.files import write_label
    from cssgan.scans.volumes import SMALL_GRID
    for name in ("hearts", "out"): (tmp_path / name).mkdir()
    for seed in range(5):
        drawn = draw_anatomy(seed, SMALL_GRID)
        write_label(drawn.label, drawn.affine, tmp_path / "hearts" / f"heart_{seed}.nii.gz")
    few = ["-p", "n_drawn", "2", "-p", "n_shaped", "1", "-p", "n_judged", "1", "-y", "phases: [segmentors]"]
    papermill("pretrained", tmp_path / "out", "-r", "preset", "smoke", "-r", "hearts", tmp_path / "hearts",
              "-y", "kept: [heart_1, heart_2, heart_3, heart_4]", "-r", "patients", tmp_path / "patients", *few)
    rows = list(csv.DictReader((tmp_path / "out/cases.csv").open()))
    of = {split: {row["patient"] for row in rows if row["split"] == split} for split in ("train", "valid", "test")}
    assert of["test"] == {f"heart_{seed}.nii.gz" for seed in range(1, 5)} and "heart_0.nii.gz" in of["train"]
    assert not of["test"] & (of["train"] | of["valid"])
    records = json.loads((tmp_path / "out/metrics.json").read_text())
    assert {(row["modality"], row["hearts"], row["n"]) for row in records} == {("CT", 1, 4), ("MRI", 1, 4)}


def test_the_recipes_control_and_what_real_scans_say_of_it(tmp_path):
    "Segmentors alone for as many epochs; another notebook's means stand beside the phantoms' scores."
    given = nbformat.v4.new_code_cell("checkpoint = out_dir = ''", metadata={"tags": ["parameters"]})
    lines = ["import json, pathlib", "rows = [{'score': 'mean Dice', 'dice': 9}, {'score': 'case'}]",
             "pathlib.Path(out_dir, 'metrics.json').write_text(json.dumps(rows))"]
    cells = [given, nbformat.v4.new_code_cell("\n".join(lines))]
    for name in ("alone", "patients"): (tmp_path / name).mkdir()
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "measure.ipynb")
    few = ["-p", "n_drawn", "2", "-p", "n_judged", "1", "-r", "preset", "smoke"]
    out = papermill("pretrained", tmp_path / "alone", *few, "-r", "patients", tmp_path / "patients",
                    "-r", "otherwise", "segmentors alone", "-r", "real_scans", tmp_path / "measure.ipynb")
    phases = [phase["name"] for phase in json.loads((out / "run/last/checkpoint.json").read_text())["config"]["phases"]]
    records = json.loads((out / "metrics.json").read_text())
    assert phases == ["segmentors", "segmentors"]
    assert [row["dice"] for row in records if row["score"] == "mean Dice"] == [9]
    assert {row["otherwise"] for row in records} == {"segmentors alone"}


RECIPE = sorted((ROOT / "results/recipe").glob("*.yaml"))


@pytest.mark.parametrize("file", RECIPE, ids=lambda file: file.stem)
def test_settings_of_the_recipe_are_read_and_stand_in_its_commands(file):
    from cssgan.training.settings import read_settings
    assert read_settings(file)["preset"] == "pretrained"
    cells = nbformat.read(FOLDER / "pretrained.ipynb", 4).cells
    told = cells[-1].source
    assert f"--config results/recipe/{file.name}" in told or f"`results/recipe/{file.name}`" in told


def test_patients_can_be_drawn_for_another_run_without_training(tmp_path):
    few = ["-r", "preset", "smoke", "-p", "n_drawn", "2", "-p", "n_judged", "1", "-y", "phases: []"]
    out = papermill("pretrained", tmp_path, *few, "-r", "patients", tmp_path / "patients")
    rows = list(csv.DictReader((out / "cases.csv").open()))
    assert {row["split"] for row in rows} == {"train", "valid", "test"} and not (out / "run").exists()


def test_twins_teach_generators_and_leave_the_segmentors_that_are_named(tmp_path, checkpoint):
    import torch

    from cssgan.models import Networks
    from cssgan.training.checkpoints import load_checkpoint, read_about, save_checkpoint
    named = tmp_path / "segmentors"
    save_checkpoint(named, Networks(width=4, patch_layers=1, seed=1), read_about(checkpoint))
    few = ["-p", "n_drawn", "1", "-p", "n_judged", "1", "-p", "epochs", "1", "-r", "preset", "smoke"]
    out = papermill("twins", tmp_path, *few, "-r", "checkpoint", checkpoint, "-r", "segmentors", named,
                    "-r", "patients", tmp_path / "patients")
    after, before, other = (load_checkpoint(place).nets for place in (out / "checkpoint", checkpoint, named))
    def same(name, nets):
        weights = getattr(nets, name).state_dict()
        return all(torch.equal(value, weights[key]) for key, value in getattr(after, name).state_dict().items())
    kept = {name for name in ("S_A", "S_B") if same(name, other)} | {n for n in ("D_A", "D_B") if same(n, before)}
    assert kept == {"S_A", "S_B", "D_A", "D_B"} and not same("G_A", before) and not same("G_B", before)


def test_twins_that_were_interrupted_go_on_to_the_same_weights(tmp_path, checkpoint):
    "The second epoch of an interrupted run, and of one that was not."
    from safetensors.torch import load_file

    class Stop(Exception): pass

    def run(out, stop_at=None):
        cells = nbformat.read(FOLDER / "twins.ipynb", 4).cells
        given = dict(preset="smoke", n_drawn=1, n_judged=1, epochs=2, checkpoint=str(checkpoint),
                     patients=str(tmp_path / "patients"), out_dir=str(out))
        space = {}
        for cell in cells:
            if cell.cell_type != "code": continue
            exec(cell.source, space)
            if "parameters" in cell.metadata.get("tags", []): space |= given
            if "def keep" in cell.source and stop_at:
                keep = space["keep"]
                def keep_and_stop(*how):
                    keep(*how)
                    if len(how[-1]) == stop_at: raise Stop
                space["keep"] = keep_and_stop
            if "kept_so_far.unlink" in cell.source: break
        files = (out / "checkpoint").glob("*.safetensors")
        return {name: value for file in files for name, value in load_file(file).items()}

    with pytest.raises(Stop): run(tmp_path / "twice", stop_at=2)
    once, twice = run(tmp_path / "once"), run(tmp_path / "twice")
    assert once and all(value.equal(twice[name]) for name, value in once.items())


# ---- real scans

def real_scans(folder, checkpoint, **more):
    "The records of the experiment, run in a folder."
    given = {"checkpoint": checkpoint, "out_dir": folder / "out", **more}
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "--cwd", folder]
    for name, value in given.items(): command += ["-r", name, value]
    command += [FOLDER / "real_scans.ipynb", folder / "done.ipynb"]
    done = subprocess.run(command, capture_output=True, text=True,
                          env=os.environ | {"JUPYTER_PREFER_ENV_PATH": "1", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "out/metrics.json").read_text())


def test_scans_that_are_not_there_are_left_out_and_counted(tmp_path, checkpoint):
    folder = tmp_path / "project"
    folder.mkdir()
    assert {row["group"]: row["n"] for row in real_scans(folder, checkpoint) if row["score"] == "left out"} == {
        "CTA": 1, "LGE": 1, "abdomen": 1, "short axis": 25}


def test_a_scan_is_scored_by_what_is_drawn_and_where_somebody_drew(tmp_path, checkpoint):
    "Two slices of a phantom are all that is known: volumes are those of these slices."
    import numpy as np

    from cssgan.phantoms.scanners import phantom
    from cssgan.scans.files import write_label, write_volume
    from cssgan.scans.volumes import IGNORE, SMALL_GRID
    lines, expected = ["image,label,modality,split"], {}
    for seed, modality in (2, "CT"), (3, "MRI"):
        scan = phantom(seed, modality, SMALL_GRID)
        slices = np.flatnonzero((scan.label == 1).any((0, 1)))[4:6]
        known = np.full(scan.shape, IGNORE, np.uint8)
        known[:, :, slices] = scan.label[:, :, slices]
        write_volume(scan, tmp_path / f"{modality}.nii.gz")
        write_label(known, scan.affine, tmp_path / f"{modality}_label.nii.gz")
        lines.append(f"{modality}.nii.gz,{modality}_label.nii.gz,{modality},")
        expected[modality] = round(scan.voxel_ml * float((known == 1).sum()), 1)
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    rows = [row for row in real_scans(tmp_path, checkpoint, data=tmp_path / "mine.csv") if row["score"] == "case"]
    assert {row["modality"]: row["true_ml"] for row in rows if row["region"] == "LV"} == expected


# ---- the results

@pytest.mark.parametrize("grid", GRIDS, ids=lambda path: path.stem)
def test_grid_is_one_that_a_sweep_takes(grid):
    from cssgan.experiments.grids import read_grid
    command = f"cssgan_sweep results/{grid.name} --collect results/{grid.stem}.json"
    assert read_grid(grid).runs and command in grid.read_text()


def test_every_experiment_has_its_grid(): assert {grid.stem for grid in GRIDS} >= set(NOTEBOOKS)


def test_the_front_page_and_the_short_one_quote_the_result_files():
    from cssgan.experiments.results import mean_sd, read_results
    page, quoted = (ROOT / "nbs/explanation/results_in_short.ipynb").read_text(encoding="utf-8"), []
    dice = read_results(ROOT / "results/table2_segmentation.json")
    for _, rows in dice.groupby(["modality", "method"]): quoted += [(rows["mean"], 1)]
    shape = read_results(ROOT / "results/table1_s_score.json")
    for (_, _, score), rows in shape.groupby(["direction", "method", "score"]):
        quoted += [(rows["mean"], 1) if score == "S-score" else (rows["distortion_mm"], 2)]
    for values, digits in quoted: assert "{:.{d}f} ± {:.{d}f}".format(*mean_sd(values), d=digits) in page
    front = re.findall(r"\d+\.\d+ ± \d+\.\d+", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert front and all(number in page for number in front)


def test_results_are_built_from_the_committed_files(tmp_path):
    out = tmp_path / "results.ipynb"
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "--cwd", FOLDER, FOLDER / "results.ipynb", out]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"JUPYTER_PREFER_ENV_PATH": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    shown = lambda path: [
        output.get("data", {}).get("text/plain")
        for cell in json.loads(path.read_text())["cells"]
        for output in cell.get("outputs", []) if "data" in output  # what is printed may come in one piece or in two
    ]
    assert shown(out) == shown(FOLDER / "results.ipynb"), "not what the committed files give: run `make results`"
