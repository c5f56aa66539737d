"The model in the package: small, described, used where no checkpoint is named, and trained on from."
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

import cssgan
from cssgan.cli.commands import COMMANDS
from cssgan.data.writing import write_phantoms
from cssgan.guard import InputError, InputWarning
from cssgan.inference import apply, pretrained
from cssgan.inference.pretrained import export_pretrained
from cssgan.models import Networks
from cssgan.phantoms.scanners import phantom
from cssgan.scans.files import read_label, write_volume
from cssgan.scans.volumes import SMALL_GRID, Grid
from cssgan.task import HEART, as_task
from cssgan.training.checkpoints import load_checkpoint, save_checkpoint
from cssgan.training.schema import CheckpointError, about_networks, checksum_of

FACTS = dict(
    name="Nothing", purpose="A test.", trained_on={"hearts": "CC BY 4.0, Rodero et al. 2021, Zenodo 4590294"},
    measured_on=[{"data": "phantoms", "Dice": 1.5}], not_good_at=["everything"], licence="Apache-2.0",
    command="make nothing", commit="abc123")
RANGES = {"CT": (-1000.0, 1000.0), "MRI": (10.0, 600.0)}


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    "The tiny checkpoint as it would go into the package."
    folder = tmp_path_factory.mktemp("package") / "heart"
    export_pretrained(checkpoint, folder, FACTS)
    return folder


@pytest.fixture
def shipped(exported, monkeypatch):
    "It stands for the package's model."
    monkeypatch.setattr(apply, "PRETRAINED", exported)
    return exported


@pytest.fixture
def none_shipped(tmp_path, monkeypatch): monkeypatch.setattr(apply, "PRETRAINED", tmp_path / "none")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "Three phantoms of each domain as files."
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(folder, 3, grid=SMALL_GRID)
    return folder


@pytest.fixture
def run(capsys):
    "Run a command: (exit status, stdout, stderr)."
    def run(command, *words):
        capsys.readouterr()
        try: status = COMMANDS[command]([str(word) for word in words])
        except SystemExit as e: status = e.code
        return status, *capsys.readouterr()
    return run


def says_one_line(found, *words):
    status, out, err = found
    assert status == 1 and out == "" and err.count("\n") == 1 and "Traceback" not in err, found
    for word in words: assert word in err, err


def rewrite(folder, **facts):
    "Change what checkpoint.json says, with a checksum that is right."
    file = folder / "checkpoint.json"
    said = {name: fact for name, fact in json.loads(file.read_text()).items() if name != "checksum"} | facts
    file.write_text(json.dumps(said | {"checksum": checksum_of(said)}))


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---- half precision

def test_the_file_is_in_half_precision_and_the_networks_are_not(checkpoint, exported):
    file, = exported.glob("*.safetensors")
    stored, before = load_file(file), load_checkpoint(checkpoint).nets.state_dict()
    after = load_checkpoint(exported).nets.state_dict()
    assert [{t.dtype for t in tensors.values()} for tensors in (stored, after)] == [{torch.float16}, {torch.float32}]
    assert same(after, {name: t.half().float() for name, t in before.items()})
    assert {name.split(".")[0] for name in stored} == {"G_A", "G_B", "D_A", "D_B", "S_A", "S_B"}


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64", 16, None])
def test_half_precision_that_was_not_announced_is_refused(exported, tmp_path, precision):
    copy = shutil.copytree(exported, tmp_path / "copy")
    rewrite(copy, precision=precision)
    with pytest.raises(CheckpointError, match="copy"): load_checkpoint(copy)


def test_single_precision_that_was_announced_as_half_is_refused(checkpoint, tmp_path):
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    rewrite(copy, precision="float16")
    with pytest.raises(CheckpointError, match="is .* of float32, not .* of float16"): load_checkpoint(copy)


def test_a_checkpoint_of_before_is_read_as_before(checkpoint, tmp_path):
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    said = json.loads((copy / "checkpoint.json").read_text())
    for name in "precision", "checksum": said.pop(name)
    (copy / "checkpoint.json").write_text(json.dumps(said | {"checksum": checksum_of(said)}))
    assert same(*(load_checkpoint(place).nets.state_dict() for place in (copy, checkpoint)))


def test_nobody_can_resume_from_it_and_it_tells_nothing_of_the_data(checkpoint, exported):
    with pytest.raises(CheckpointError, match="weights only"): load_checkpoint(exported, with_training=True)
    about = load_checkpoint(exported).about
    assert not {"history", "losses", "data"} & about.keys()


# ---- what does not fit the package

def refused(checkpoint, folder, facts, says):
    with pytest.raises(InputError, match=says) as e: export_pretrained(checkpoint, folder, facts)
    assert "\n" not in str(e.value) and not folder.exists()


def test_too_large_is_refused_in_one_line(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "MOST_BYTES", 900_000)
    refused(checkpoint, tmp_path / "heart", FACTS, r"take 1.0 MB .* room for 0.9")


def test_the_largest_one_and_its_words_stay_below_12_MB():
    assert 11_000_000 < pretrained.MOST_BYTES <= 12_000_000 - 100_000
    assert sum(file.stat().st_size for file in apply.PRETRAINED.glob("*")) < 12_000_000


def test_weights_that_half_precision_does_not_have_are_refused(checkpoint, tmp_path):
    nets, about, _ = load_checkpoint(checkpoint)
    with torch.no_grad(): nets.D_B.net[0].bias[0] = 1e5
    save_checkpoint(tmp_path / "huge", nets, about)
    refused(tmp_path / "huge", tmp_path / "heart", FACTS, "65504")


@pytest.mark.parametrize("facts", [{}, {name: fact for name, fact in FACTS.items() if name != "not_good_at"},
                                   FACTS | {"licence": ""}, FACTS | {"measured_on": []}, FACTS | {"author": "me"}])
def test_a_card_with_a_hole_is_refused(checkpoint, tmp_path, facts):
    refused(checkpoint, tmp_path / "heart", facts, "the model card")


def test_the_card_tells_every_fact(exported):
    text = (exported / "MODEL_CARD.md").read_text()
    for words in ("CC BY 4.0", "Zenodo 4590294", "| phantoms | 1.5 |", "everything", "make nothing", "abc123",
                  "24×24×16", "7×7×8 mm", "Not for diagnosis"): assert words in text, words


def test_the_wheel_holds_the_model(exported, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "cssgan", source / "cssgan", ignore=shutil.ignore_patterns("__pycache__", "pretrained"))
    shutil.copytree(exported, source / "cssgan/pretrained/heart")
    shutil.copytree(ROOT / "etc", source / "etc")
    for name in "pyproject.toml", "README.md", "LICENSE": shutil.copy(ROOT / name, source)
    code = "import setuptools.build_meta as b; b.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True, timeout=120)
    wheel, = (source / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for file in exported.iterdir(): assert f"cssgan/pretrained/heart/{file.name}" in names


# ---- used where no checkpoint is named

@pytest.fixture
def ct(): return phantom(2, "CT", Grid((24, 24, 16), (7.0, 7.0, 8.0)))


@pytest.mark.filterwarnings("ignore:.*heart")
def test_no_checkpoint_is_the_packages(shipped, ct, tmp_path):
    write_volume(ct, tmp_path / "ct.nii.gz")
    named = cssgan.segment(tmp_path / "ct.nii.gz", shipped, "CT").label
    for found in (cssgan.segment(tmp_path / "ct.nii.gz", modality="CT"), cssgan.segment(ct)):
        assert np.array_equal(found.label, named)
    made = cssgan.translate(tmp_path / "ct.nii.gz", shipped, "MRI").voxels
    assert np.array_equal(cssgan.translate(tmp_path / "ct.nii.gz", to="MRI").voxels, made)
    assert cssgan.translate(replace(ct, label=None)).modality == "MRI"


def test_load_pretrained_gives_networks_in_single_precision(shipped):
    loaded = cssgan.load_pretrained()
    assert loaded.nets.sizes["width"] == 4 and loaded.grid.shape == (24, 24, 16) and loaded.task.names == ("CT", "MRI")
    assert {t.dtype for t in loaded.nets.state_dict().values()} == {torch.float32}


def test_a_file_does_not_say_what_it_is(shipped, tmp_path):
    for use in cssgan.segment, cssgan.translate:
        with pytest.raises(InputError, match="say what it is"): use(tmp_path / "ct.nii.gz")
        with pytest.raises(InputError, match="say what it is"): use("ct.nii.gz", "CT")  # the second is the checkpoint


def test_a_package_without_a_model_says_so(none_shipped, ct):
    for use in cssgan.load_pretrained, lambda: cssgan.segment(ct), lambda: cssgan.translate(ct):
        with pytest.raises(InputError, match="without a trained model.*--checkpoint") as e: use()
        assert "\n" not in str(e.value)


def test_commands_need_no_checkpoint(run, shipped, ct, tmp_path):
    write_volume(ct, tmp_path / "ct.nii.gz")
    for command, option, modality in (("cssgan_segment", "--modality", "CT"), ("cssgan_translate", "--to", "MRI")):
        words = tmp_path / "ct.nii.gz", option, modality, "--out"
        assert run(command, *words, tmp_path / "a.nii.gz", "--force")[0] == 0
        assert run(command, *words, tmp_path / "b.nii.gz", "--force", "--checkpoint", shipped)[0] == 0
        assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_commands_of_a_package_without_a_model_name_the_cure(run, none_shipped, ct, tmp_path):
    write_volume(ct, tmp_path / "ct.nii.gz")
    for command, option, modality in (("cssgan_segment", "--modality", "CT"), ("cssgan_translate", "--to", "MRI")):
        says_one_line(run(command, tmp_path / "ct.nii.gz", option, modality, "--out", tmp_path / "o.nii.gz"),
                      "without a trained model", "--checkpoint DIR")
        assert not (tmp_path / "o.nii.gz").exists()


# ---- trained on from

OTHER = Grid((32, 24, 24), (6.0, 7.0, 6.0))


@pytest.fixture
def known(tmp_path):
    "A checkpoint on another grid and of other sizes than the preset has."
    nets = Networks(width=5, patch_layers=2, seed=7)
    save_checkpoint(tmp_path / "known", nets, about_networks(nets, OTHER, RANGES))
    return tmp_path / "known"


@pytest.fixture
def words(data, tmp_path):
    return "--data", data, "--preset", "smoke", "--quiet", "--cache", tmp_path / "cache"


def first_step(monkeypatch):
    "What the networks are before the first update of the runs to come."
    from cssgan.training import run as training
    step, states = training.step, []
    def watched(run, *rest):
        if not states: states.append({name: t.clone() for name, t in run.nets.state_dict().items()})
        return step(run, *rest)
    monkeypatch.setattr(training, "step", watched)
    return states


def result(folder):
    "The names of a run's tensors, which their content decides."
    return [json.loads((folder / part / "checkpoint.json").read_text())["files"] for part in ("best", "last")]


def test_training_goes_on_as_the_weights_were_trained_but_in_small_steps(known):
    from cssgan.cli.runs import DEFAULTS, run_config
    begun_with = load_checkpoint(known)
    fresh = run_config(DEFAULTS, HEART, begun_with)
    assert (fresh.lr, fresh.augment, fresh.dice_loss) == (1e-3, False, False)  # nobody knows how these were trained
    begun_with.about["config"] = {"lr": 8e-4, "augment": "shape", "dice_loss": True}
    further = run_config(DEFAULTS, HEART, begun_with)
    assert (further.lr, further.augment, further.dice_loss) == (2e-4, "shape", True)
    assert run_config(DEFAULTS | {"augment": True}, HEART, begun_with).augment is True


def test_a_run_starts_from_the_weights_in_their_grid_and_sizes(run, known, words, tmp_path, monkeypatch):
    states = first_step(monkeypatch)
    assert run("cssgan_train", *words, "--out", tmp_path / "run", "--init", known)[0] == 0
    assert same(states[0], load_checkpoint(known).nets.state_dict())
    about = load_checkpoint(tmp_path / "run").about
    config = about["config"]
    assert tuple(config["grid"]["shape"]) == OTHER.shape and (config["width"], config["patch_layers"]) == (5, 2)
    assert about["networks"]["width"] == 5 and [phase["name"] for phase in config["phases"]] == ["joint"]


def test_the_packages_model_is_a_word(run, shipped, words, tmp_path, monkeypatch):
    states = first_step(monkeypatch)
    assert run("cssgan_train", *words, "--out", tmp_path / "run", "--init", "pretrained")[0] == 0
    assert same(states[0], load_checkpoint(shipped).nets.state_dict())
    stored = load_file(next((tmp_path / "run/best").glob("*.safetensors")))
    assert {t.dtype for t in stored.values()} == {torch.float32}


def test_interrupted_it_goes_on_to_the_same_end_without_the_checkpoint(run, known, words, tmp_path, monkeypatch):
    from cssgan.training import run as training
    assert run("cssgan_train", *words, "--out", tmp_path / "whole", "--init", known)[0] == 0
    step, calls = training.step, []
    def is_interrupted(*args):
        calls.append(1)
        if len(calls) == 2: os.kill(os.getpid(), signal.SIGINT)
        return step(*args)
    monkeypatch.setattr(training, "step", is_interrupted)
    assert run("cssgan_train", *words, "--out", tmp_path / "run", "--init", known)[0] == 130
    monkeypatch.undo()
    shutil.rmtree(known)
    assert run("cssgan_train", "--resume", tmp_path / "run", *words[4:])[0] == 0
    assert result(tmp_path / "run") == result(tmp_path / "whole")


class Killed(BaseException): "As SIGKILL would: nothing is put away."


def test_killed_before_its_first_checkpoint_it_begins_with_the_same_weights(run, known, words, tmp_path, monkeypatch):
    def dies(*_, **__): raise Killed
    assert run("cssgan_train", *words, "--out", tmp_path / "whole", "--init", known)[0] == 0
    monkeypatch.setattr("cssgan.training.trainer.fit", dies)
    with pytest.raises(Killed): run("cssgan_train", *words, "--out", tmp_path / "run", "--init", known)
    monkeypatch.undo()
    save_checkpoint(known, Networks(width=4, patch_layers=1), about_networks(Networks(4, 1), OTHER, RANGES))
    assert run("cssgan_train", "--resume", tmp_path / "run", *words[4:])[0] == 0
    assert result(tmp_path / "run") == result(tmp_path / "whole")


def test_another_start_is_another_run(run, known, shipped, words, tmp_path):
    assert run("cssgan_train", *words, "--out", tmp_path / "run", "--init", known)[0] == 0
    says_one_line(run("cssgan_train", "--resume", tmp_path / "run", "--init", "pretrained"), "was begun with init")
    assert run("cssgan_train", "--resume", tmp_path / "run", "--init", known, *words[4:])[0] == 0


def test_a_fresh_run_does_not_become_another_one(run, known, words, tmp_path):
    assert run("cssgan_train", *words, "--out", tmp_path / "run")[0] == 0
    says_one_line(run("cssgan_train", "--resume", tmp_path / "run", "--init", known), "was begun with init none")


def test_what_cannot_be_started_from_is_said_before_anything_is_written(run, none_shipped, words, tmp_path):
    domains = [{"name": name, "percentiles": [1, 99]} for name in ("CT", "MRI")]
    shapes = as_task({"name": "shapes", "domains": domains, "regions": ["background", "box"],
                      "grid": {"shape": OTHER.shape, "spacing": OTHER.spacing}})
    nets = Networks(width=4, patch_layers=1, classes=2)
    save_checkpoint(tmp_path / "shapes", nets, about_networks(nets, OTHER, RANGES, shapes))
    for init, says in (("pretrained", "--init DIR"), (tmp_path / "nothing", "no checkpoint.json"),
                       (tmp_path / "shapes", "leave --init out")):
        says_one_line(run("cssgan_train", *words, "--out", tmp_path / "run", "--init", init), says)
        assert not (tmp_path / "run").exists()


# ---- the model that comes with the package, on real scans

there = pytest.mark.skipif(not (apply.PRETRAINED / "checkpoint.json").is_file(), reason="cssgan comes without a model")


def doubts_of(scan, modality):
    "What the model finds in a scan, and what it is warned of."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = cssgan.segment(scan, modality=modality)
    return found, [str(w.message) for w in caught if issubclass(w.category, InputWarning)]


@there
@pytest.mark.data
def test_the_heart_of_a_real_ct_is_found_without_a_doubt(real):
    found, told = doubts_of(real / "cta/ct.nii.gz", "CT")
    truth, ours = read_label(real / "cta/heart_mask.nii.gz").values > 0, found.label > 0
    assert 2 * (truth & ours).sum() / (truth.sum() + ours.sum()) > .85 and told == []
    assert set(np.unique(found.label)) == set(range(6))


@there
@pytest.mark.data
@pytest.mark.parametrize("scan, modality, doubtful", [("lge_mr/mr.nii.gz", "MRI", False), ("ct_dicom", "CT", True)])
def test_a_heart_is_believed_and_a_belly_is_not(real, scan, modality, doubtful):
    assert any("may not be the heart" in line for line in doubts_of(real / scan, modality)[1]) == doubtful


# ---- the model in the package, and its recipe

def the_results(name):
    "Records of a result file, those of the model in the package."
    rows = json.loads((ROOT / f"results/{name}.json").read_text())["rows"]
    return [row for row in rows if row["checkpoint"] in ("", "pretrained")]


def test_the_model_card_is_what_the_recipe_says():
    card = json.loads((ROOT / "results/recipe/card.json").read_text())
    about = json.loads((ROOT / "cssgan/pretrained/heart/checkpoint.json").read_text())
    assert (ROOT / "cssgan/pretrained/heart/MODEL_CARD.md").read_text() == pretrained.model_card(card, about)


def test_numbers_of_the_model_card_are_those_of_the_result_files():
    drawn = {(row["score"], row["modality"], row.get("kind") or ""): row for row in the_results("pretrained")
             if row["score"].startswith("Dice")}
    real = {(row["group"], row["region"]): row for row in the_results("real_scans") if row["score"] == "mean Dice"}
    stacks = {region: real["short axis", region]["dice"] for region in ("LV", "myocardium")}
    expected = {
        "CT phantoms": drawn["Dice", "CT", ""], "MRI phantoms, whole": drawn["Dice, by kind", "MRI", "whole heart"],
        "MRI phantoms, short-axis": drawn["Dice, by kind", "MRI", "short-axis stack"],
        "all MRI phantoms, a structure": drawn["Dice where 30 ml are seen", "MRI", ""],
        "real short-axis": stacks | {"n": real["short axis", "LV"]["n"]},
        "a real CT": {"all": real["CTA", "whole heart"]["dice"], "n": 1}}
    card = json.loads((ROOT / "results/recipe/card.json").read_text())["measured_on"]
    assert len(card) == len(expected)
    for row, (begins, record) in zip(card, expected.items()):
        assert row["scans, Dice in %"].startswith(begins)
        numbers = {name: value for name, value in row.items() if name in (*HEART.regions, "all", "n")}
        assert numbers == {name: round(record["mean" if name == "all" and "mean" in record else name], 1)
                           for name in numbers}, begins
        assert set(numbers) > {"n"}
