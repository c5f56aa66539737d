"Studies train once what is shared, count what each method gets, and measure the right network."
import hashlib
import json
import threading
from dataclasses import asdict, replace

import pytest
import torch
from tiny import SHORT, noise, same

from cssgan.data.cases import phantom_cases
from cssgan.data.datasets import UnpairedData, labelled_part, order_of
from cssgan.data.prepared import Samples, fingerprint, load_case
from cssgan.experiments import stages as stages_module
from cssgan.experiments import studies
from cssgan.experiments.records import CaseScores, record_with_patients, score_cases, score_record
from cssgan.experiments.results import read_results
from cssgan.experiments.stages import Stage, count_updates, stage_key, train_once
from cssgan.experiments.studies import (
    DIRECTIONS,
    Study,
    direction_of,
    open_study,
    true_translation,
    write_results,
)
from cssgan.guard import InputError
from cssgan.metrics import dice_of_segmentor, s_score
from cssgan.scans.volumes import IGNORE, UNDRAWN, is_region
from cssgan.task import HEART, as_task, task_json
from cssgan.training.checkpoints import Checkpoint
from cssgan.training.schedule import preset


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return open_study("phantom-few", "smoke", 0, tmp_path_factory.mktemp("stages"))


@pytest.fixture(scope="module")
def stages(study):
    "Every method once, with one MRI and seven CT."
    few = study.training_data(MRI=.14)
    segmentors = study.train_segmentors(few)
    generators = study.train_generators(few, segmentors)
    without = study.train_without_shape(few, generators)
    return {
        "segmentors": segmentors, "generators": generators, "without": without,
        "baseline": study.train_baseline(few, segmentors), "ada": study.train_ada(few, segmentors, without),
        "ours": study.train_jointly(few, generators),
    }


# ---- the same training for all methods

def test_all_methods_have_equally_many_updates(stages):
    assert stages["baseline"].updates["S"] == stages["ada"].updates["S"] == stages["ours"].updates["S"] == 3 * 7
    assert stages["without"].updates["G"] == stages["ours"].updates["G"] == 3 * 7


@pytest.mark.parametrize("scarce", ["images", "labels"])
@pytest.mark.parametrize("share", [.14, .28, .57, .86, 1.])
def test_less_data_is_not_less_training(share, scarce, tmp_path):
    some = open_study("phantom-S1", "cpu", 0, tmp_path, scarce).training_data(CT=share, MRI=.14)
    assert some.length() == len(order_of(some, 0, 0)) == 57


def test_with_few_labels_all_images_are_there(tmp_path):
    labels, images = (open_study("phantom-few", "smoke", 0, tmp_path, scarce) for scarce in ("labels", "images"))
    bare, few = labels.training_data(MRI=.14), images.training_data(MRI=.14)
    assert len(bare.train_B) == 7 and len(few.train_B) == 1
    assert labelled_part(bare).train_B.cases == few.train_B.cases
    whole = images.training_data().train_B
    for (volume, labels, _), (same_volume, all_labels, _), case in zip(bare.train_B, whole, bare.train_B.cases):
        assert torch.equal(volume, same_volume)
        assert (labels == IGNORE).all() if case.hidden else torch.equal(labels, all_labels)
    assert labelled_part(bare).length() == bare.length() == 7


def test_few_labels_and_few_images_are_the_same_to_who_learns_from_labels_alone(tmp_path):
    made = [open_study("phantom-few", "smoke", 0, tmp_path, scarce) for scarce in ("labels", "images")]
    keys = [study.train_segmentors(study.training_data(MRI=.14)).key for study in made]
    assert keys[0] == keys[1]


def test_what_is_scarce_is_one_of_two(tmp_path):
    with pytest.raises(InputError, match="say images or labels"): open_study("phantom-few", "smoke", 0, tmp_path, "all")


def test_no_method_of_a_study_stops_early(tmp_path):
    assert all(phase.patience is None for phase in open_study("phantom-few", "paper", 0, tmp_path).config.phases)


def test_updates_are_counted_from_the_first_weights_on():
    epochs = [{"name": "segmentors"}, {"name": "generators"}, {"name": "joint"}]
    assert count_updates(epochs, 10, {"S": 5, "G": 0}) == {"S": 25, "G": 20}


def test_ada_starts_from_the_segmentors_and_leaves_the_generators_alone(stages):
    ada, start = stages["ada"].nets, stages["segmentors"].nets
    assert same(ada.G_A.state_dict(), start.G_A.state_dict()) and not same(ada.S_B.state_dict(), start.S_B.state_dict())


def test_ada_keeps_no_synthetic_volumes_when_it_is_done(study, stages):
    assert not list(study.folder.rglob("synthetic")) and not list(study.folder.rglob("last"))


# ---- once

def key(study, **changes):
    facts = {"config": study.config, "data": study.training_data(), "start": None} | changes
    return stage_key(facts["config"], facts["data"], facts["start"])


def test_the_same_ingredients_have_the_same_name(study): assert key(study) == key(study)


def test_other_ingredients_have_another_name(study, stages):
    others = [
        key(study), key(study, config=replace(study.config, seed=1)), key(study, config=replace(study.config, lr=1e-5)),
        key(study, data=study.training_data(CT=.5)), key(study, start=stages["segmentors"]),
        key(study, start=stages["generators"]),
    ]
    assert len(set(others)) == len(others)


def test_a_stages_name_is_made_of_these_facts_and_no_others(study, monkeypatch):
    "Long trainings are kept by their names: a fact more, or in another place, and all of them are trained again."
    from types import SimpleNamespace
    seen, start = [], Stage("before", None, [], {})
    keep = SimpleNamespace(dumps=lambda facts: seen.append(facts) or json.dumps(facts))
    monkeypatch.setattr(stages_module, "json", keep)
    data = replace(study.training_data(MRI=.14), turns=True)
    name = stage_key(study.config_for("joint"), data, start, "half")
    (code, config, kind, cases, pairs, turns, past), = seen
    assert code == stages_module.code_digest() and config == asdict(study.config_for("joint"))
    assert (kind, pairs, turns, past) == ("UnpairedData", 7, True, ["before", "half"])
    assert cases == [[fingerprint(case, samples.grid) for case in samples.cases] for samples in data.parts().values()]
    assert name == hashlib.sha256(json.dumps(seen[0]).encode()).hexdigest()[:16]


def test_a_stage_knows_with_which_one_it_began(stages):
    first = stages["segmentors"].key
    assert {stage.first for stage in stages.values()} == {first}


def test_results_say_how_many_stages_were_trained_and_how_many_were_there(tmp_path):
    stages_module.SITTING.clear()
    for name in "aab": train_once(tmp_path, name, lambda place: noise(), SHORT)
    write_results(tmp_path / "out", {}, [{"mean": 1.}])
    assert json.loads((tmp_path / "out/params.json").read_text())["stages"] == {"trained": 2, "resumed": 0, "read": 1}


def test_other_code_has_another_name(study, monkeypatch):
    before = key(study)
    monkeypatch.setattr(stages_module, "code_digest", lambda: "other code")
    assert key(study) != before


def test_another_grid_has_another_name(study):
    coarse = replace(study.config.grid, spacing=(8., 8., 8.))
    samples = [Samples(s.cases, coarse) for s in study.training_data().parts().values()]
    assert key(study, data=UnpairedData(*samples)) != key(study)


def test_two_threads_that_need_the_same_stage_train_it_once(tmp_path, monkeypatch):
    runs, real_fit = [], stages_module.fit
    monkeypatch.setattr(stages_module, "fit", lambda *a, **k: (runs.append(1), real_fit(*a, **k))[1])
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(train_once(tmp_path, "one", lambda place: noise(), SHORT)))
        for _ in range(2)
    ]
    for t in threads: t.start()
    for t in threads: t.join()
    assert (len(runs) == 1 and same(found[0].nets.state_dict(), found[1].nets.state_dict())
            and found[0].history == found[1].history)


def test_an_interrupted_stage_is_resumed_and_ends_the_same(tmp_path):
    broken, reads = noise(), []
    class Vanishing:
        def __len__(self): return len(broken.train_A)
        def __getitem__(self, i):
            reads.append(i)
            if len(reads) > 7: raise InputError("gone")
            return broken.train_A[i]
        cases = broken.train_A.cases
        def prepared(self, case): return broken.train_A.prepared(case)
    with pytest.raises(InputError):
        train_once(tmp_path / "a", "k", lambda place: replace(broken, train_A=Vanishing()), SHORT)
    assert not (tmp_path / "a/k/stage.json").exists() and (tmp_path / "a/k/last").exists()
    resumed, whole = (train_once(tmp_path / name, "k", lambda place: noise(), SHORT) for name in "ab")
    assert same(resumed.nets.state_dict(), whole.nets.state_dict()) and resumed.history == whole.history


# ---- the right network is measured

def test_segmentation_is_measured_with_the_modalitys_own_segmentor(study, stages):
    stages["ours"].on_device()  # the same layers as the record's
    for modality, name in (("CT", "S_A"), ("MRI", "S_B")):
        expected = dice_of_segmentor(getattr(stages["ours"].nets.eval(), name), study.test_data(modality))
        assert study.segmentation_record(stages["ours"], modality)["mean"] == round(expected.nanmean().item(), 2)


def test_shape_is_measured_by_the_target_modalitys_evaluator(study, stages):
    ours, evaluators = stages["ours"], stages["baseline"]
    ours.on_device(), evaluators.on_device()  # the same layers as the record's
    for modality, generator, evaluator in (("CT", "G_B", "S_B"), ("MRI", "G_A", "S_A")):
        expected = s_score(
            getattr(ours.nets.eval(), generator), getattr(evaluators.nets.eval(), evaluator), study.test_data(modality)
        )
        assert study.shape_record(ours, evaluators, modality)["mean"] == round(expected.nanmean().item(), 2)


def test_no_test_patient_was_trained_with(study):
    data = study.training_data()
    seen = {
        case.patient for samples in (data.train_A, data.train_B, data.valid_A, data.valid_B) for case in samples.cases
    }
    assert not seen & {case.patient for m in ("CT", "MRI") for case in study.test_data(m).cases}


def test_the_test_cases_are_the_same_for_every_seed_and_share(tmp_path):
    a, b = (open_study("phantom-few", "smoke", seed, tmp_path).test_data("CT").cases for seed in (0, 1))
    assert a == b


def test_a_translated_volume_is_in_the_other_modality_and_place(study, stages):
    real = load_case(study.test_data("MRI").cases[0], study.config.grid)
    fake = stages["ours"].translate_volume(real)
    assert fake.modality == "CT" and fake.range == HEART.domain("CT").window and fake.label is None
    assert (fake.affine == real.affine).all()


# ---- the truth of phantoms

class TrueTranslator(torch.nn.Module):
    "A generator that gives the true translation of one case, shifted by so many voxels along x."
    def __init__(self, case, grid, shift):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.true, self.shift = true_translation(case, grid), shift

    def forward(self, volume): return self.true.roll(self.shift, 2)


def test_the_truth_is_the_same_anatomy(study):
    case = study.test_data("CT").cases[0]
    twin = replace(case, modality="MRI")
    assert (load_case(case, study.config.grid).label == load_case(twin, study.config.grid).label).all()
    assert torch.equal(
        true_translation(case, study.config.grid)[0, 0], torch.from_numpy(load_case(twin, study.config.grid).voxels)
    )


@pytest.mark.parametrize("shift", [0, 1])
def test_a_shifted_translation_is_found_out(study, stages, shift, monkeypatch):
    case = study.test_data("CT").cases[0]
    monkeypatch.setattr(Stage, "generator", lambda stage, modality: TrueTranslator(case, study.config.grid, shift))
    found = study.truth_record(stages["ours"], "CT", n=1)
    if shift == 0: assert found["error"] == 0 and found["distortion_mm"] < .5
    else: assert found["error"] > .01 and 4 < found["distortion_mm"] < 9


def test_real_scans_have_no_twin(study):
    real = [replace(case, image="patient.nii.gz") if case.split == "test" else case for case in study.cases]
    assert study.has_twins() and not replace(study, cases=real).has_twins()


# ---- what is left

def test_records_are_flat_and_carry_their_budget():
    made = score_record(
        torch.tensor([80., 70., float("nan"), 60., 50.]), HEART, {"S": 3, "G": 4}, method="ours"
    )
    assert made["mean"] == 65 and made["LV"] == 80 and made["updates_S"] == 3 and made["method"] == "ours"
    assert all(not isinstance(value, (dict, list)) for value in made.values())


class Finds(torch.nn.Module):
    "A segmentor that finds one region everywhere."
    def __init__(self, region):
        super().__init__()
        self.weight, self.region = torch.nn.Parameter(torch.zeros(())), region

    def forward(self, volumes):
        return torch.nn.functional.one_hot(torch.full_like(volumes[:, 0], self.region).long(), 6).movedim(-1, 1).float()


def test_what_is_found_where_nothing_is_counts_as_in_the_scores_of_scans(study, monkeypatch):
    "Dice 0, not left out; and who misses a region has no finite distance."
    samples = study.test_data("CT")
    blank = [(volume, torch.where(labels == 3, 0, labels), name) for volume, labels, name in samples]
    monkeypatch.setattr(Samples, "__getitem__", lambda self, i: blank[i])
    cases = score_cases(Finds(3), samples)
    record = record_with_patients(cases, HEART, {"S": 0, "G": 0}, "Dice", method="x")
    assert record["LA"] == 0 and dice_of_segmentor(Finds(3), samples)[2].isnan()
    assert all(row["LA"] == 0 and row["HD95"] is None and row["missed"] == 5 for row in record.patients)


def test_a_record_is_the_mean_of_its_patients(study, stages):
    record = study.segmentation_record(stages["ours"], "MRI", method="ours", seed=3)
    cases = study.test_data("MRI").cases
    assert [row["patient"] for row in record.patients] == [case.patient for case in cases]
    for name in ("mean", *HEART.regions[1:]):
        assert sum(row[name] for row in record.patients) / len(cases) == pytest.approx(record[name], abs=.011)
    assert all(row["score"] == "Dice by patient" and row["seed"] == 3 for row in record.patients)


def test_nothing_to_measure_is_no_zero():
    nothing = [CaseScores("P1", [])]
    row, = record_with_patients(nothing, HEART, {"S": 0, "G": 0}, "Dice").patients
    assert row["mean"] is None and row["HD95"] is None and row["missed"] == 0


def test_patients_are_written_after_the_means_and_read_when_asked(tmp_path, study, stages):
    record = study.truth_record(stages["ours"], "CT", n=2, method="ours")
    assert write_results(tmp_path, {}, [record]) == [record]
    rows = json.loads((tmp_path / "metrics.json").read_text())
    assert rows[0] == record and [row["score"] for row in rows[1:]] == ["truth by patient"] * 2
    (tmp_path / "all.json").write_text(json.dumps({"command": "x", "made_by": [], "rows": rows}))
    assert len(read_results(tmp_path / "all.json")) == 1
    assert read_results(tmp_path / "all.json", score="truth by patient")["error"].mean() == pytest.approx(
        record["error"], abs=2e-4)


def test_results_are_written_whole(tmp_path):
    write_results(tmp_path / "new", {"seed": 1}, [{"mean": 1.}])
    assert json.loads((tmp_path / "new/metrics.json").read_text()) == [{"mean": 1.}]
    assert json.loads((tmp_path / "new/params.json").read_text())["seed"] == 1


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", '{"history": []}', '{"history": [], "updates": {"S": -1}}',
        '{"history": [], "updates": {"S": "many"}}', '{"history": 3, "updates": {}}', "[" * 100_000,
    ],
)
def test_a_damaged_stage_is_named(tmp_path, content):
    (tmp_path / "k").mkdir()
    (tmp_path / "k/stage.json").write_text(content)
    with pytest.raises(InputError, match="k/stage.json"):
        train_once(tmp_path, "k", lambda _: pytest.fail("trained"), None)


def test_a_stage_without_scores_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(stages_module, "load_checkpoint",
                        lambda _: Checkpoint(None, {"task": json.loads(task_json(HEART))}, {}))
    (tmp_path / "k").mkdir()
    epoch = '{"name": "joint", "epoch": 0, "dice_CT": NaN, "dice_MRI": null, "loss": 0.5}'
    (tmp_path / "k/stage.json").write_text(f'{{"history": [{epoch}], "updates": {{"S": 3, "G": 0}}}}')
    stage = train_once(tmp_path, "k", None, None)
    assert stage.history[0]["dice_CT"] is None and stage.updates == {"S": 3, "G": 0}


def test_a_folder_that_cannot_be_locked_says_so(tmp_path):
    (tmp_path / "k.lock").mkdir()
    with pytest.raises(InputError, match="cannot be locked"): train_once(tmp_path, "k", None, None)


# ---- another task

GRID = {"shape": [24, 24, 16], "spacing": [10, 10, 12]}
ABDOMEN = as_task({
    "name": "abdomen", "grid": GRID, "regions": ["background", "liver", "spleen"],
    "domains": [{"name": "CT", "unit": "HU", "window": [-200, 400], "check": "HU"},
                {"name": "T1", "percentiles": [0.5, 99.5]}],
    "tables": {"liver": {"1": "liver"}}, "table_of": {"T1": "liver"}})


@pytest.fixture(scope="module")
def other_task(tmp_path_factory):
    "A study of it, whose T1 have only their livers drawn, and what it trained."
    cases = phantom_cases({"train": (2, 2), "valid": (1, 1), "test": (1, 1)}, task=ABDOMEN)
    study = Study(cases, preset("smoke", ABDOMEN), tmp_path_factory.mktemp("abdomen"))
    data = study.training_data(T1=.5)
    segmentors = study.train_segmentors(data)
    return study, segmentors, study.train_jointly(data, study.train_generators(data, segmentors))


def test_a_study_is_of_any_task(other_task):
    study, segmentors, ours = other_task
    assert study.task == ours.task == ABDOMEN and ours.nets.sizes["classes"] == 3
    dice = study.segmentation_record(ours, "CT", method="ours")
    assert list(dice) == ["score", "modality", "method", "mean", "liver", "spleen", "updates_S", "updates_G"]
    shape = study.shape_record(ours, segmentors, "T1")
    assert shape["direction"] == "T1→CT" and shape["spleen"] != shape["spleen"]  # nobody drew it
    assert study.segmentation_record(ours, "T1")["liver"] >= 0


def test_networks_of_another_task_are_found_by_its_domains(other_task):
    study, _, ours = other_task
    assert ours.segmentor("T1") is ours.nets.S_B and ours.generator("T1") is ours.nets.G_A
    with pytest.raises(InputError, match="use CT or T1"): ours.segmentor("MRI")
    with pytest.raises(InputError, match="no MRI case"): study.training_data(MRI=.5)


def test_the_truth_of_another_task_is_its_own(other_task):
    study, _, ours = other_task
    case, grid = study.test_data("T1").cases[0], study.config.grid
    twin = load_case(replace(case, modality="CT"), grid)
    assert torch.equal(true_translation(case, grid)[0, 0], torch.from_numpy(twin.voxels)) and twin.task == ABDOMEN
    seen = load_case(case, grid)
    assert UNDRAWN in seen.label and (seen.label == 1).sum() == (twin.label == 1).sum()
    record = study.truth_record(ours, "T1", n=1)
    assert record["direction"] == "T1→CT" and record["error"] > 0 and record["distortion_mm"] > 0


def test_only_drawn_regions_say_how_far_the_anatomy_moved(other_task, monkeypatch):
    study, _, ours = other_task
    asked = []
    monkeypatch.setattr(studies, "distortion", lambda fake, true, where, spacing: asked.append(where) or 0.)
    study.truth_record(ours, "T1", n=1)
    label = load_case(study.test_data("T1").cases[0], study.config.grid).label
    assert torch.equal(asked[0][0], torch.from_numpy(is_region(label)))


def test_a_translated_volume_of_another_task(other_task):
    study, _, ours = other_task
    fake = ours.translate_volume(load_case(study.test_data("T1").cases[0], study.config.grid))
    assert fake.modality == "CT" and fake.range == (-200, 400) and fake.task == ABDOMEN


def test_directions_are_called_by_their_domains():
    assert DIRECTIONS == {"CT": "CT→MRI", "MRI": "MRI→CT"} and direction_of("T1", ABDOMEN) == "T1→CT"


def test_what_has_no_number_is_null_in_the_file(tmp_path):
    "JSON has no nan, and a file with one is not read again."
    write_results(tmp_path, {}, [{"mean": float("nan"), "n": 0, "kind": "stack"}])
    assert json.loads((tmp_path / "metrics.json").read_text()) == [{"mean": None, "n": 0, "kind": "stack"}]
