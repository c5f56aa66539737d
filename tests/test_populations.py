"Data sets of different populations differ in the hearts that they hold, and in nothing else."
from statistics import mean

import pytest
import torch

from cssgan.data.prepared import Samples
from cssgan.data.splits import select
from cssgan.experiments.judge import judge_cases, train_judge
from cssgan.experiments.populations import (
    label_volumes,
    mean_volumes,
    population_cases,
    population_of,
    region_volumes,
    training_means,
    volume_record,
    way_to_others,
)
from cssgan.experiments.stages import Stage
from cssgan.experiments.studies import Study
from cssgan.guard import InputError
from cssgan.scans.volumes import Grid
from cssgan.training.schedule import preset

APART, BOTH = {"CT": ["dilated"], "MRI": ["normal"]}, ["dilated", "normal"]
COUNTS = {"train": 4, "valid": 1, "test": 2}


def populations(cases, domain, split): return [population_of(int(c.patient)) for c in select(cases, domain, split)]


@pytest.fixture(scope="module")
def different(tmp_path_factory):
    "A study of dilated CT hearts and normal MRI hearts, and its judge."
    study = Study(population_cases(COUNTS, APART, APART), preset("smoke"), tmp_path_factory.mktemp("stages"))
    return study, train_judge(study)


def test_the_populations_are_those_that_were_asked_for():
    different = population_cases(COUNTS, APART, APART)
    for split in COUNTS:
        assert set(populations(different, "CT", split)) == {"dilated"}
        assert set(populations(different, "MRI", split)) == {"normal"}
    equal = population_cases(COUNTS, {"CT": BOTH, "MRI": BOTH}, APART)
    assert populations(equal, "CT", "train") == populations(equal, "MRI", "train") == 2 * BOTH


def test_the_test_patients_are_the_same_and_nobody_is_in_two_splits():
    sets = [population_cases(COUNTS, train, APART) for train in (APART, {"CT": BOTH, "MRI": BOTH}, {
        "CT": ["any"], "MRI": ["any"]})]
    tests = [[c for c in cases if c.split == "test"] for cases in sets]
    assert tests[0] == tests[1] == tests[2]
    for cases in sets: assert len({c.patient for c in cases}) == len(cases) == 2 * sum(COUNTS.values())


def test_dilated_hearts_have_larger_left_ventricles():
    grid = Grid((40, 40, 32), (4.2, 4.2, 4.))
    cases = population_cases({"train": 8, "valid": 1, "test": 1}, APART, APART)
    sizes = {domain: label_volumes(Samples(select(cases, domain, "train"), grid), 4.2 * 4.2 * 4 / 1000)
             for domain in ("CT", "MRI")}
    assert sizes["CT"]["LV"] > 1.3 * sizes["MRI"]["LV"]
    assert sizes["CT"]["share"] > 5 + sizes["MRI"]["share"]
    assert sizes["CT"]["LA"] < 1.3 * sizes["MRI"]["LA"]


def test_a_population_that_is_not_known_is_refused():
    with pytest.raises(InputError, match="no population is called 'tall'"):
        population_cases(COUNTS, {"CT": ["tall"], "MRI": ["normal"]}, APART)


# ---- measuring

def test_volumes_are_counted():
    labels = torch.zeros(4, 4, 4, dtype=torch.long)
    labels[0], labels[1, :2], labels[2, 0, 0] = 1, 5, 3
    found = region_volumes(labels, .5)
    assert found["LV"] == 8 and found["myocardium"] == 4 and found["LA"] == .5 and found["RV"] == 0
    assert found["share"] == pytest.approx(200 / 3)
    empty = region_volumes(torch.zeros_like(labels), .5)
    assert empty["share"] != empty["share"]
    assert mean_volumes([found, empty]) == pytest.approx(
        {"LV": 4, "RV": 0, "LA": .25, "RA": 0, "myocardium": 2, "share": 200 / 3})


class Copy(torch.nn.Module):
    "A generator that gives the true twins, one after the other."
    def __init__(self, volumes):
        super().__init__()
        self.volumes = iter(volumes)

    def forward(self, x): return next(self.volumes)[None]


def test_a_perfect_translation_changes_nothing(different, monkeypatch):
    from cssgan.experiments.judge import twin_samples
    study, judge = different
    twins = twin_samples(study, "CT")
    monkeypatch.setattr(Stage, "generator", lambda stage, modality: Copy([v for v, *_ in twins]))
    found, marks = volume_record(study, judge, "CT", judge, method="perfect"), volume_record(study, judge, "CT")
    assert found["LV_change"] == found["RV_change"] == 0 and found["LV"] == marks["LV"] and found["n"] == 2
    voxel_ml = float(torch.tensor(study.config.grid.spacing).prod()) / 1000
    true = mean(voxel_ml * (y == 1).sum().item() for _, y, _ in study.test_data("CT"))
    assert found["LV_true"] == round(true, 2) and found["direction"] == "CT→MRI"


def test_the_volumes_are_the_means_of_the_patients(different):
    "A line for every patient, so that two generators can be compared patient by patient."
    study, judge = different
    record = volume_record(study, judge, "MRI", judge, populations="different", method="any")
    assert [row["patient"] for row in record.patients] == [case.patient for case in study.test_data("MRI").cases]
    for row in record.patients:
        assert row["score"] == "volumes by patient" and row["direction"] == "MRI→CT" and row["method"] == "any"
    for name in ("LV", "LV_true", "LV_change", "myocardium_change"):
        assert mean(row[name] for row in record.patients) == pytest.approx(record[name], abs=.011)


def test_the_way_to_the_others_is_a_share_of_the_distance_between_populations(different):
    means = {"CT": {"LV": 200., "share": 60.}, "MRI": {"LV": 100., "share": 40.}}
    there = {"direction": "CT→MRI", "LV_change": -25., "share_change": 0.}
    assert way_to_others(there, means) == 25 and way_to_others(there, means, "share") == 0
    assert way_to_others({"direction": "MRI→CT", "LV_change": -25.}, means) == -25
    known = training_means(different[0], 1.)
    assert known["CT"]["LV"] > 1.2 * known["MRI"]["LV"]


def test_the_judge_knows_all_populations_in_both_domains(tmp_path):
    study = Study(population_cases({"train": 57, "valid": 14, "test": 71}, APART, APART), preset("cpu"), tmp_path)
    cases = judge_cases(study)
    assert not {c.patient for c in cases} & {c.patient for c in study.cases}
    for domain in ("CT", "MRI"): assert {"dilated", "normal"} < set(populations(cases, domain, "train"))
