"The judge of translations is a stranger to the study, and perfect translations say where its scale ends."
from dataclasses import replace

import pytest
import torch

from cssgan.data.cases import phantom_cases
from cssgan.data.datasets import unpaired
from cssgan.experiments.judge import (
    JUDGE_SEED,
    floor_record,
    judge_cases,
    judge_config,
    judge_name,
    perfect_translation,
    real_record,
    train_judge,
    twin_record,
    twin_samples,
)
from cssgan.experiments.studies import Study, open_study, true_translation
from cssgan.guard import InputError
from cssgan.metrics import above_floor, dice_of_segmentor, distortion
from cssgan.task import as_task
from cssgan.training.schedule import preset


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return open_study("phantom-few", "smoke", 0, tmp_path_factory.mktemp("stages"))


@pytest.fixture(scope="module")
def judge(study):
    return train_judge(study)


def of_files(study): return replace(study, cases=[replace(c, image=f"{c.id}.nii.gz") for c in study.cases])


# ---- whom it learned from

@pytest.mark.parametrize("data", ["phantom-few", "phantom-S1", "phantom-S2"])
def test_a_judge_shares_no_patient_with_the_study(data, tmp_path):
    study = open_study(data, "smoke", 0, tmp_path)
    cases = judge_cases(study)
    assert not {c.patient for c in cases} & {c.patient for c in study.cases}
    assert {c.split for c in cases} == {"train", "valid"} and judge_name(study) == "independent"
    for domain in ("CT", "MRI"):
        known = [sum((c.modality, c.split) == (domain, "train") for c in of) for of in (cases, study.cases)]
        assert known[0] == min(known[1], 142)


def test_patients_beyond_the_phantom_sets_are_not_met_again(tmp_path):
    cases = phantom_cases({"train": (2, 2), "valid": (1, 1), "test": (1, 1)}, first=10_000)
    known = Study(cases, preset("smoke"), tmp_path)
    assert not {c.patient for c in judge_cases(known)} & {c.patient for c in cases}


def test_where_no_other_patients_can_be_drawn_the_judge_says_so(study):
    scans = of_files(study)
    assert judge_cases(scans) == [c for c in scans.cases if c.split != "test"]
    assert judge_name(scans) == "same volumes, other seed and width"


# ---- what it is

def test_a_judge_has_other_weights_width_and_seed_than_the_ceiling_and_as_much_training(study, judge):
    ceiling = study.train_ceiling()
    assert judge.key != ceiling.key and judge.updates == ceiling.updates and judge.updates["G"] == 0
    assert judge.nets.sizes["width"] == 6 and ceiling.nets.sizes["width"] == 4
    assert judge_config(study).seed == JUDGE_SEED != study.config.seed
    assert {p.name for p in judge_config(study).phases} == {"segmentors"}


def test_one_judge_serves_all_seeds(study, judge):
    assert train_judge(replace(study, config=replace(study.config, seed=1))).key == judge.key
    with pytest.raises(InputError, match="take another one for the study"):
        train_judge(replace(study, config=replace(study.config, seed=JUDGE_SEED)))


def test_the_same_seed_and_width_would_be_another_judge(study, judge):
    data = unpaired(judge_cases(study), study.config.grid)
    other = replace(judge_config(study), width=study.config.width)
    assert study.train_stage(data, other).key != judge.key


# ---- what a perfect translation would get

def test_twins_are_the_true_translations_with_the_labels_of_their_sources(study):
    case, sources, twins = study.test_data("CT").cases[0], study.test_data("CT"), twin_samples(study, "CT")
    assert len(twins) == len(sources) and torch.equal(twins[0][1], sources[0][1])
    assert (twins[0][0] - true_translation(case, study.config.grid)[0]).abs().max() < 1e-3  # kept in half precision


def test_the_marks_are_the_judges_dice_on_twins_and_on_real_volumes(study, judge):
    segmentor = judge.segmentor("MRI")
    for record, samples in ((twin_record, twin_samples(study, "CT")), (real_record, study.test_data("MRI"))):
        found, expected = record(study, judge, "CT", judge="independent"), dice_of_segmentor(segmentor, samples)
        assert found["mean"] == round(expected.nanmean().item(), 2) and found["direction"] == "CT→MRI"
        assert found["judge"] == "independent"


def test_a_twins_score_is_by_patient_and_by_the_rule_of_the_s_score(study, monkeypatch):
    "What is found where nothing is counts as 0, in a translation as in a perfect one."
    from cssgan.experiments import records
    from cssgan.experiments.stages import Stage
    judge = train_judge(study)
    case = study.test_data("CT").cases[0]
    monkeypatch.setattr(records, "as_label_map", lambda labels: (labels.numpy() == 1).astype("uint8"))  # LV alone
    everywhere = lambda volume: torch.nn.functional.one_hot(
        torch.arange(volume[0, 0].numel()).view(volume.shape[2:]) % 6, 6).movedim(-1, 0)[None].float()
    segmentor = torch.nn.Conv3d(1, 1, 1)
    segmentor.forward = everywhere
    monkeypatch.setattr(Stage, "segmentor", lambda self, modality: segmentor)
    found = twin_record(study, judge, "CT", judge="independent")
    assert found["RV"] == 0 and found["LV"] > 0
    assert {row["score"] for row in found.patients} == {"true twin by patient"}
    assert found.patients[0]["patient"] == case.patient and found.patients[0]["judge"] == "independent"


def test_real_scans_have_no_marks_that_need_a_twin(study, judge):
    for record in (lambda s: twin_record(s, judge, "CT"), lambda s: floor_record(s, "CT")):
        with pytest.raises(InputError, match="phantom-S1"): record(of_files(study))


def test_a_judge_is_of_any_task(tmp_path):
    knee = as_task({"name": "knee", "regions": ["background", "femur", "tibia"],
                    "grid": {"shape": [24, 24, 16], "spacing": [6, 6, 8]},
                    "domains": [{"name": name, "percentiles": [0.5, 99.5]} for name in ("PD", "T2")]})
    cases = phantom_cases({"train": (2, 2), "valid": (1, 1), "test": (1, 1)}, task=knee)
    study = Study(cases, preset("smoke", knee), tmp_path)
    judge = train_judge(study)
    assert judge.task == knee and twin_record(study, judge, "PD")["direction"] == "PD→T2"
    with pytest.raises(InputError, match="hearts"): floor_record(study, "PD")


# ---- the floor of the distortion

def test_a_perfect_translation_is_smooth_and_in_its_place(study):
    case, grid = study.test_data("MRI").cases[0], study.config.grid
    fake, true = perfect_translation(case, grid), true_translation(case, grid)
    rough = lambda x: x.diff(dim=2).abs().mean()
    assert fake.shape == true.shape and (fake - true).abs().mean() < .1 and rough(fake) < rough(true)


def test_the_floor_is_what_registration_finds_in_perfect_translations(study):
    case, grid = study.test_data("CT").cases[0], study.config.grid
    heart = study.test_data("CT")[0][1][None] > 0
    expected = distortion(perfect_translation(case, grid), true_translation(case, grid), heart, grid.spacing)
    found = floor_record(study, "CT", n=1, seed=3)
    assert found["distortion_mm"] == round(expected, 3) < 1 and found["n"] == 1 and found["seed"] == 3


def test_the_floor_is_taken_off_in_squares():
    assert above_floor(5., 3.) == 4 and above_floor(1., 0.) == 1 and above_floor(.2, .3) == 0
