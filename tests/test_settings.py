"Settings of a run: a preset, a file and words; how long it trains; what is written down; what --show prints."
import json
import math
import shutil

import pytest
from tiny import SHORT

from cssgan.cli import runs, training
from cssgan.cli.commands import train_main
from cssgan.guard import InputError
from cssgan.scans.volumes import SMALL_GRID
from cssgan.task import HEART, task_json
from cssgan.training import settings
from cssgan.training.schedule import PAPER_PHASES, PRESETS, Phase, preset
from cssgan.training.settings import as_config, as_settings, changed, long_enough, scaled, updates_of


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    from cssgan.data.writing import write_phantoms
    write_phantoms(folder := tmp_path_factory.mktemp("phantoms"), 3, grid=SMALL_GRID)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory): return tmp_path_factory.mktemp("cache")


@pytest.fixture
def stub(monkeypatch):
    "Commands begin runs and do not train them; gives what would have been trained."
    asked = []
    monkeypatch.setattr("cssgan.training.trainer.fit", lambda data, config, *_, **how: asked.append((config, how)))
    monkeypatch.setattr(training, "report_result", lambda *_: None)
    return asked


def train(phantoms, cache, *words):
    return train_main(["--data", str(phantoms), "--cache", str(cache), "--quiet", *map(str, words)])


# ---- names and values

@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_the_same_after_a_file(name, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(settings.settings_text(as_settings(preset(name)), "a preset"))
    assert as_config(settings.read_settings(file)) == preset(name)


def test_one_setting_changes_and_the_others_stay():
    now = changed(preset("cpu"), {"phases.joint.decay": 9, "lr": 1})
    assert now.phases == (*preset("cpu").phases[:2], Phase("joint", 3, 9)) and now.lr == 1.0
    assert settings.differences(preset("cpu"), now) == {"phases.joint.decay": (4, 9), "lr": (1e-3, 1.0)}


def test_averages_and_what_is_kept_are_settings_like_any_other(phantoms, cache, stub, tmp_path):
    (tmp_path / "run.yaml").write_text("averaging: 0.999\nkeep: last\n")
    train(phantoms, cache, "--out", tmp_path / "a", "--config", tmp_path / "run.yaml", "--set", "averaging=0")
    assert (stub[0][0].averaging, stub[0][0].keep) == (0, "last")
    train(phantoms, cache, "--out", tmp_path / "b", "--config", tmp_path / "a/settings.yaml", "--set", "averaging=0.9")
    assert (stub[1][0].averaging, stub[1][0].keep) == (0.9, "last")


def test_a_phase_can_be_left_out_and_put_in_again_in_its_place():
    joint = changed(preset("cpu"), {"phases.segmentors": None, "phases.generators": None})
    assert [phase.name for phase in joint.phases] == ["joint"]
    again = changed(joint, {"phases.segmentors.epochs": 2})
    assert again.phases == (Phase("segmentors", 2), preset("cpu").phases[2])


@pytest.mark.parametrize("text, value", [("1e-4", 1e-4), ("1E4", 1e4), ("-2e3", -2e3), ("1.5", 1.5), ("3", 3),
                                         ("true", True), ("[1, 2]", [1, 2]), ("", None), ("null", None),
                                         ("fast", "fast"), ("1e", "1e")])
def test_values_are_what_people_mean(text, value): assert settings.parse_yaml(text, "--set") == value


@pytest.mark.parametrize("name, near", [("learning_rate", "lr"), ("phase.joint.epochs", "phases.joint.epochs"),
                                        ("batchsize", "batch_size"), ("gama_shape", "gamma_shape"),
                                        ("epochs", "phases.joint.epochs"), ("patience", "phases.joint.patience")])
def test_the_nearest_name_is_offered(name, near):
    with pytest.raises(InputError, match=f"did you mean {near}?"): settings.check_names({name: 1}, "--set")


# ---- how long

@pytest.mark.parametrize("name, volumes", [("cpu", 57), ("demo", 12)])
@pytest.mark.parametrize("pairs", [1, 3, 7, 11, 12, 40, 57, 58, 500])
def test_few_volumes_get_the_updates_that_the_preset_was_made_for(name, volumes, pairs):
    made_for, now = updates_of(preset(name), volumes), updates_of(long_enough(preset(name), name, pairs), pairs)
    assert all(now[phase] >= made_for[phase] for phase in made_for)
    if pairs < volumes: assert all(now[phase] <= made_for[phase] + pairs for phase in made_for), "and hardly more"
    else: assert long_enough(preset(name), name, pairs) == preset(name)


@pytest.mark.parametrize("name", ["paper", "smoke"])
def test_the_papers_schedule_and_smoke_stay(name): assert long_enough(preset(name), name, 1) == preset(name)


def test_in_python_presets_are_what_they_were():
    assert preset("paper").phases == PAPER_PHASES
    assert [p.epochs + p.decay for p in preset("cpu").phases] == [12, 4, 7]


@pytest.mark.parametrize("factor", [1e-6, .3, 1, 2.5, 100])
def test_every_phase_keeps_an_epoch_and_its_proportions(factor):
    for name in PRESETS:
        for was, now in zip(preset(name).phases, scaled(preset(name), factor).phases):
            whole = now.epochs + now.decay
            assert whole >= 1 and abs(whole - factor * (was.epochs + was.decay)) <= 1
            assert abs(now.decay - whole * was.decay / (was.epochs + was.decay)) <= .5
            assert (now.patience or 0) >= (was.patience or 0)
    assert scaled(preset("paper"), 1) == preset("paper")


def test_a_budget_of_updates_counts_batches_and_processes():
    config = settings.for_budget(changed(preset("cpu"), {"batch_size": 4}), 1000, 57, processes=2)
    assert abs(sum(updates_of(config, 57, 2).values()) - 1000) <= 3 * math.ceil(57 / 8)


def test_what_is_set_to_the_letter_is_not_stretched():
    options = runs.DEFAULTS | {"preset": "demo"}
    config = runs.new_config(options, {"phases.joint.epochs": 5}, preset("demo"), pairs=3)
    assert config.phases[0].epochs == 4 * 28 and config.phases[2].epochs == 5


def test_too_few_updates_are_said(phantoms, cache, stub, tmp_path, capsys):
    assert train(phantoms, cache, "--out", tmp_path / "a", "--preset", "demo", "--updates", 50) == 0
    err = capsys.readouterr().err
    assert "warning: the segmentors get" in err and "below 200" in err and "--updates" in err
    assert train(phantoms, cache, "--out", tmp_path / "b", "--preset", "demo") == 0
    assert capsys.readouterr().err == ""


def test_where_no_phase_teaches_segmentors_nothing_is_said_of_them(phantoms, cache, stub, tmp_path, capsys):
    alone = "--set", "phases.segmentors=null", "--set", "phases.joint=null"
    assert train(phantoms, cache, "--out", tmp_path / "a", "--preset", "demo", "--updates", 20, *alone) == 0
    assert [phase.name for phase in stub[0][0].phases] == ["generators"]
    assert capsys.readouterr().err == ""


def test_help_says_what_many_volumes_cost_and_what_caps_it():
    said = " ".join(training.train_parser().format_help().split())
    many = sum(updates_of(preset("cpu"), 500).values())
    assert f"more take more updates in proportion (500 at cpu: {many:,}), which --updates caps" in said


# ---- a run's folder

def test_the_file_a_run_leaves_begins_the_very_same_run(phantoms, cache, stub, tmp_path):
    words = "--preset", "demo", "--set", "lr=5e-4", "--fraction", "CT=1", "--seed", 3, "--augment", "--updates", 2000
    assert train(phantoms, cache, "--out", tmp_path / "a", *words) == 0
    file = tmp_path / "a/settings.yaml"
    assert train_main(["--config", str(file), "--out", str(tmp_path / "b"), "--cache", str(cache), "--quiet"]) == 0
    assert stub[0][0] == stub[1][0] and stub[0][0].augment and stub[0][0].seed == 3
    assert [(tmp_path / one / "cases.csv").read_bytes() for one in "ab"][0] == (tmp_path / "b/cases.csv").read_bytes()
    assert file.read_bytes() == (tmp_path / "b/settings.yaml").read_bytes()


def test_a_data_set_is_named_so_that_the_file_works_from_any_folder(phantoms, cache, stub, tmp_path, monkeypatch):
    (tmp_path / "phantom-mine").symlink_to(phantoms)
    monkeypatch.chdir(tmp_path)
    assert train("phantom-mine", cache, "--out", "run") == 0
    assert settings.read_settings("run/settings.yaml")["data"] == str(tmp_path / "phantom-mine")


def test_words_count_more_than_the_file_and_the_file_more_than_the_preset(phantoms, cache, stub, tmp_path):
    (tmp_path / "run.yaml").write_text("preset: demo\nlr: 1e-4\nwidth: 6\nphases: {joint: {epochs: 40}}\n")
    words = "--config", tmp_path / "run.yaml", "--out", tmp_path / "run", "--set", "width=5", "--preset", "smoke"
    assert train(phantoms, cache, *words) == 0
    config = stub[0][0]
    assert (config.lr, config.width, config.phases[2].epochs, config.grid.shape) == (1e-4, 5, 40, (24, 24, 16))
    assert json.loads((tmp_path / "run/train.json").read_text())["preset"] == "smoke"


def test_resumed_it_has_the_settings_that_it_began_with(phantoms, cache, stub, tmp_path, capsys):
    assert train(phantoms, cache, "--out", tmp_path / "run", "--preset", "demo", "--set", "lr=5e-4") == 0
    (tmp_path / "run/settings.yaml").unlink()  # is for people
    again = "--resume", str(tmp_path / "run"), "--quiet"
    assert train_main([*again]) == 0 and stub[0][0] == stub[1][0]
    assert train_main([*again, "--set", "lr=0.0005", "--preset", "demo"]) == 0
    capsys.readouterr()
    assert train_main([*again, "--set", "lr=1e-3"]) == 1
    assert "was begun with lr 0.0005, not 0.001" in capsys.readouterr().err
    assert train_main([*again, "--set", "phases.generators=null"]) == 1
    assert "phases.generators" in capsys.readouterr().err


@pytest.mark.parametrize("seed", [0, 4])
def test_a_run_of_a_version_without_settings_is_resumed_as_its_preset_was(phantoms, cache, stub, tmp_path, seed):
    assert train(phantoms, cache, "--out", tmp_path / "run", "--preset", "cpu", "--seed", seed) == 0
    stretched = stub[0][0]
    (tmp_path / "run/settings.yaml").unlink()
    old = {"data": str(phantoms), "preset": "cpu", "seed": seed, "fraction_ct": 1.0, "fraction_mri": 1.0}
    (tmp_path / "run/train.json").write_text(json.dumps(old))
    assert train_main(["--resume", str(tmp_path / "run"), "--quiet"]) == 0
    assert stub[1][0] == changed(preset("cpu"), {"seed": seed}) != stretched


@pytest.mark.parametrize("settings", [{"lr": -1}, {"phases": {"joint": {"epochs": "many"}}}, {"colour": 3},
                                      {"phases": 3}])
def test_damaged_settings_are_refused_by_the_files_name(tmp_path, settings):
    options = runs.DEFAULTS | {"data": "d", "settings": settings}
    with pytest.raises(InputError, match=r"train\.json"): runs.kept_config(tmp_path, options, HEART)


@pytest.mark.parametrize("name", ["settings.yaml", "history.csv", "curves.png", "tensorboard"])
def test_files_of_other_people_are_not_replaced(phantoms, cache, stub, tmp_path, capsys, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("mine")
    assert train(phantoms, cache, "--out", tmp_path / "run", "--preset", "smoke") == 1
    assert name in capsys.readouterr().err and (tmp_path / "run" / name).read_text() == "mine"


def test_what_a_checkpoint_decides_cannot_be_set_beside_it(phantoms, cache, stub, checkpoint, tmp_path, capsys):
    known = shutil.copytree(checkpoint, tmp_path / "known")
    words = "--init", known, "--preset", "smoke"
    assert train(phantoms, cache, "--out", tmp_path / "run", *words, "--set", "lr=1e-4", "--set", "width=4") == 0
    assert train(phantoms, cache, "--out", tmp_path / "other", *words, "--set", "width=8") == 1
    assert "width is 8" in capsys.readouterr().err and not (tmp_path / "other").exists()


# ---- devices

def test_a_device_reaches_the_networks(phantoms, cache, stub, tmp_path):
    assert train(phantoms, cache, "--out", tmp_path / "run", "--preset", "smoke", "--device", "cpu") == 0
    assert stub[0][1]["device"] == "cpu"


def test_fit_trains_on_the_device_that_is_named(tmp_path):
    from dataclasses import replace

    from tiny import noise

    from cssgan.training.trainer import fit, named_device
    seen = []
    config = replace(SHORT, phases=(Phase("segmentors", 1),))
    def look(run, keep): seen.append(run.device.type)
    fit(noise(), config, tmp_path, progress=False, device="cpu", callback=look)
    assert set(seen) == {"cpu"}
    for name, devices, says in (("tpu", 1, "is no device"), ("cuda:99", 1, "there is no cuda:99"),
                                ("cpu", 2, "leave cpu")):
        with pytest.raises(InputError, match=says): named_device(name, devices)
    with pytest.raises(InputError, match="there is no cuda:99"): fit(noise(), SHORT, tmp_path / "b", device="cuda:99")
    assert not (tmp_path / "b").exists()


# ---- what would be done

def test_show_says_all_and_writes_nothing(phantoms, cache, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = sorted(p for folder in (phantoms, cache, tmp_path) for p in folder.rglob("*"))
    assert train(phantoms, cache, "--preset", "smoke", "--set", "lr=1e-4", "--show") == 0
    out, err = capsys.readouterr()
    assert sorted(p for folder in (phantoms, cache, tmp_path) for p in folder.rglob("*")) == before and err == ""
    head, _, rest = out.partition("# cases")
    assert as_config({k: v for k, v in settings.parse_yaml(head, "shown").items() if k in as_settings(preset("smoke"))}
                     ) == changed(preset("smoke"), {"lr": 1e-4})
    assert "CT: train 1, valid 1, test 1; LV" in rest and "median of 3 cases" in rest
    for phase in ("segmentors", "generators", "joint"): assert f"\n{phase}: epochs" in rest
    assert "GB" in rest and "expected on" in rest


def test_show_names_the_task_and_the_budget_that_were_given(phantoms, cache, tmp_path, capsys):
    (tmp_path / "heart.json").write_text(task_json(HEART))
    words = "--preset", "smoke", "--task", tmp_path / "heart.json", "--updates", 50, "--show"
    assert train(phantoms, cache, *words) == 0
    shown = settings.parse_yaml(capsys.readouterr().out.partition("# cases")[0], "shown")
    assert (shown["task"], shown["updates"]) == (str(tmp_path / "heart.json"), 50)


def test_show_is_for_new_runs(phantoms, cache, tmp_path, capsys):
    with pytest.raises(SystemExit): train_main(["--show", "--resume", str(tmp_path)])
    assert "leave --resume out" in capsys.readouterr().err
