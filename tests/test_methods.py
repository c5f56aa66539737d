"Methods that are compared have the same updates, validations and learning rates; what differs is refused."
from dataclasses import replace

import pytest

from cssgan.experiments.methods import METHODS, compare, labelled_volumes, protocol_of, train_methods
from cssgan.experiments.studies import open_study
from cssgan.guard import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="module")
def study(folder): return open_study("phantom-few", "smoke", 0, folder, "labels", keep="last", averaging=.9)


@pytest.fixture(scope="module")
def few(study): return study.training_data(MRI=.14)


@pytest.fixture(scope="module")
def stages(study, few): return train_methods(study, few, list(METHODS))


def test_every_method_has_the_same_updates_validations_and_rates(study, stages):
    protocol = protocol_of(study)
    assert (protocol.pairs, protocol.updates, protocol.validations) == (7, 14, 2)
    for stage in stages.values():
        assert stage.own["S"] == 14 and stage.updates["S"] == 21
        assert len(stage.history) == 2 and tuple(stage.rates) == protocol.rates == (1e-3, .5e-3)
    assert compare(study, stages)["protocol"] == protocol.fingerprint


def test_every_method_ends_with_other_segmentors(stages):
    "Of the single labelled MRI, R ×3 sees three times the same: only its S_A tells it from R."
    first = lambda stage: [p.flatten()[0].item() for S in (stage.nets.S_A, stage.nets.S_B) for p in S.parameters()]
    last = {tuple(first(stage)) for stage in stages.values()}
    assert len(last) == len(METHODS)


def test_fewer_images_change_no_updates(study, folder):
    images = replace(study, scarce="images")
    few = images.training_data(CT=.3, MRI=.14)
    stages = train_methods(images, few, ["R", "ours"])
    assert {stage.own["S"] for stage in stages.values()} == {14} and compare(images, stages)


def test_who_had_more_updates_is_refused(study, stages, few):
    longer = replace(study, pairs=9)
    other = longer.train_baseline(replace(few, pairs=9), longer.train_segmentors(few))
    with pytest.raises(InputError, match="theirs: updates is 18, and 14 by the protocol"):
        compare(study, stages | {"theirs": other})


@pytest.mark.parametrize("changes, says", [
    ({"lr": 1e-4}, "rates"), ({"augment": "shape"}, "augment"), ({"keep": "best"}, "keep"),
    ({"averaging": 0.}, "averaging"), ({"dice_loss": True}, "dice_loss"), ({"lambda_cyc": 5.}, "lambda_cyc"),
    ({"pool_size": 1}, "pool_size"), ({"width": 5}, "width"), ({"seed": 1}, "seed"), ({"resnet": True}, "resnet")])
def test_who_learned_otherwise_is_refused(study, stages, changes, says):
    stage = stages["R"]
    other = replace(stage, config=replace(stage.config, **changes))
    with pytest.raises(InputError, match=f"R: {says} is"): compare(study, {"R": other})


def test_every_setting_is_compared_but_those_in_which_methods_differ():
    from dataclasses import fields

    from cssgan.experiments.methods import MAY_DIFFER
    from cssgan.training.schedule import Config
    assert set(MAY_DIFFER) == {"phases", "batch_size", "gamma_shape", "segmentor_weights", "teacher", "augment_D"}
    assert set(MAY_DIFFER) < {field.name for field in fields(Config)}


def test_who_translates_something_else_is_refused(study, stages):
    import msgspec
    other = replace(stages["R"], task=msgspec.structs.replace(study.task, name="liver"))
    with pytest.raises(InputError, match="R: task is"): compare(study, {"R": other})


def test_who_starts_from_other_segmentors_is_refused(study, stages):
    "All real begins with its own; R that begins with those is refused."
    other = study.train_baseline(study.training_data(MRI=.14), study.train_segmentors(study.training_data()))
    with pytest.raises(InputError, match="R: it starts from"): compare(study, {"ours": stages["ours"], "R": other})
    ceilings = {name: stages[name] for name in ("all real", "all real ×3")}
    assert compare(study, {"All real" if name == "all real" else name: stage for name, stage in ceilings.items()})


def test_the_fingerprint_is_of_the_protocol_and_not_of_the_seed(study):
    same = replace(study, config=replace(study.config, seed=3))
    others = [replace(study, scarce="images"), replace(study, pairs=9), replace(study, cases=study.cases[1:]),
              *(replace(study, config=replace(study.config, **changes)) for changes in
                ({"augment": True}, {"keep": "best"}, {"lr": 2e-3}, {"width": 5}, {"lambda_cyc": 5.}))]
    found = [protocol_of(one).fingerprint for one in (study, *others)]
    assert protocol_of(same).fingerprint == found[0] and len(set(found)) == len(found)


def test_an_unknown_method_is_refused(study, few):
    with pytest.raises(InputError, match="no method 'theirs': name some of R, "): train_methods(study, few, ["theirs"])


@pytest.mark.parametrize("scarce", ["labels", "images"])
def test_ada_learns_from_what_ours_does(scarce, tmp_path):
    study = open_study("phantom-S1", "study", 0, tmp_path, scarce)
    found = labelled_volumes(study, study.training_data(MRI=.14), "MRI")
    assert list(found) == list(METHODS) and found["ADA"] == found["ours"] and found["R"] == (1, 0, 0)
    assert found["ours"] == (1, 1, 1) if scarce == "images" else found["ours"] == pytest.approx((.5, 1, .5), abs=.01)
    assert labelled_volumes(study, study.training_data(MRI=.14), "CT")["ours"][0] == 1


def test_another_window_is_another_protocol(study):
    import msgspec
    ct, mri = study.task.domains
    other = msgspec.structs.replace(study.task, domains=(msgspec.structs.replace(ct, window=(-200., 500.)), mri))
    cases = [replace(case, task=other) for case in study.cases]
    assert protocol_of(replace(study, cases=cases)).fingerprint != protocol_of(study).fingerprint


def test_an_averaged_teacher_without_averages_is_refused_before_anything_is_trained(tmp_path):
    bare = open_study("phantom-few", "smoke", 7, tmp_path, "labels")
    with pytest.raises(InputError, match="take the preset study"):
        train_methods(bare, bare.training_data(MRI=.14), list(METHODS))
    assert not list(tmp_path.iterdir())
