"Checkpoints: whole or not at all, complete, and never run as code."
import hashlib
import itertools
import json
import os
import pickle
import shutil
import threading

import pytest
import torch
from safetensors.torch import save_file

import cssgan
from cssgan.data import prepared
from cssgan.guard import InputError
from cssgan.models import Networks
from cssgan.scans.volumes import Grid
from cssgan.training import checkpoints
from cssgan.training.checkpoints import (
    fall_back,
    find_checkpoint,
    load_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from cssgan.training.saving import resume_run
from cssgan.training.schedule import preset
from cssgan.training.schema import CheckpointError, about_networks, checksum_of


@pytest.fixture
def copy(checkpoint, tmp_path):
    "A copy that may be spoilt."
    return shutil.copytree(checkpoint, tmp_path / "copy")


def refused(folder, says="", **how):
    "The message of the error that loading must raise: one line that names the folder."
    with pytest.raises(CheckpointError) as e: load_checkpoint(folder, **how)
    message = str(e.value)
    assert "\n" not in message and says in message and str(folder) in message, message
    return message


def rewrite(folder, **facts):
    "Change what checkpoint.json says, with a checksum that is right."
    file = folder / "checkpoint.json"
    said = {name: fact for name, fact in json.loads(file.read_text()).items() if name != "checksum"} | facts
    file.write_text(json.dumps(said | {"checksum": checksum_of(said)}))


def about_of(nets, **more):
    return about_networks(nets, Grid((8, 8, 8), (2.0, 2.0, 2.0)), {"CT": (-1000, 1000), "MRI": (0, 500)}, **more)


def equal(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---- there and back

def test_weights_and_words_come_back(tmp_path):
    nets = Networks(4, 1, seed=5)
    save_checkpoint(tmp_path / "a" / "b", nets, about_of(nets, note=[1, None, "ü"]),
                    {"rng": torch.arange(5, dtype=torch.uint8)})
    again, about, training = load_checkpoint(tmp_path / "a" / "b", with_training=True)
    assert equal(nets.state_dict(), again.state_dict()) and not again.training
    assert about["note"] == [1, None, "ü"] and about["ranges"]["MRI"] == [0, 500]
    assert about["grid"]["shape"] == [8, 8, 8]
    assert training["rng"].tolist() == [0, 1, 2, 3, 4] and training["rng"].dtype == torch.uint8


def test_a_folder_holds_json_and_safetensors_only(tmp_path):
    nets = Networks(4, 1)
    for training in ({"step": torch.zeros(2)}, {"step": torch.ones(2)}, None):
        save_checkpoint(tmp_path, nets, about_of(nets), training)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert len(names) == 2 and names[0] == "checkpoint.json" and names[1].startswith("weights-")


def test_an_optimizer_goes_on_as_if_nothing_had_been():
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 3)
    adam = torch.optim.Adam(layer.parameters(), 1e-2, betas=(0.5, 0.999))
    def step(layer, adam):
        adam.zero_grad()
        layer(torch.ones(1, 3)).square().sum().backward()
        adam.step()
    for _ in range(3): step(layer, adam)
    twin = torch.nn.Linear(3, 3)
    twin.load_state_dict(layer.state_dict())
    other = torch.optim.Adam(twin.parameters(), 1e-2, betas=(0.5, 0.999))
    restore_optimizer(other, optimizer_tensors(adam, "G") | {"Gx.0.step": torch.ones(())}, "G")
    for _ in range(2): step(layer, adam), step(twin, other)
    assert torch.equal(layer.weight, twin.weight)


@pytest.mark.parametrize("place", ["", "best", "checkpoint", "checkpoint/best"])
def test_a_runs_folder_will_do(checkpoint, tmp_path, place):
    shutil.copytree(checkpoint, tmp_path / "run" / place)
    assert find_checkpoint(tmp_path / "run") == tmp_path / "run" / place


# ---- whole or not at all

@pytest.mark.parametrize("survives", [0, 1, 2, 3])
def test_killed_between_two_writes_keeps_the_old_checkpoint(copy, monkeypatch, survives):
    old, writes = load_checkpoint(copy)[0].state_dict(), []
    def write(path, content):
        if len(writes) == survives: raise KeyboardInterrupt
        writes.append(path)
        prepared.write_whole(path, content)
    monkeypatch.setattr(checkpoints, "write_whole", write)
    new = Networks(4, 1, seed=9)
    with pytest.raises(KeyboardInterrupt): save_checkpoint(copy, new, about_of(new), {"rng": torch.ones(3)})
    assert equal(load_checkpoint(copy, with_training=True)[0].state_dict(), old)
    monkeypatch.undo()
    save_checkpoint(copy, new, about_of(new), {"rng": torch.ones(3)})
    assert equal(load_checkpoint(copy)[0].state_dict(), new.state_dict())
    kinds = ["checkpoint.json", "previous.json", *2 * ["training"], *2 * ["weights"]]
    assert sorted(p.name.partition("-")[0] for p in copy.iterdir()) == kinds


def test_a_full_disk_keeps_the_old_checkpoint(copy, monkeypatch):
    old, names = load_checkpoint(copy)[0].state_dict(), sorted(os.listdir(copy))
    def full(*_): raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "replace", full)
    new = Networks(4, 1, seed=9)
    with pytest.raises(InputError, match="No space left"): save_checkpoint(copy, new, about_of(new))
    assert equal(load_checkpoint(copy)[0].state_dict(), old) and sorted(os.listdir(copy)) == names


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    nets = Networks(4, 1)
    with pytest.raises(InputError, match="cannot be made"):
        save_checkpoint(tmp_path / "file" / "run", nets, about_of(nets))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o555)
    nets = Networks(4, 1)
    with pytest.raises(InputError, match="cannot be written"): save_checkpoint(tmp_path, nets, about_of(nets))
    tmp_path.chmod(0o755)


def rng(n): return {"rng": torch.full((3,), float(n))}


def saved(folder, *seeds):
    "One checkpoint after the other, with training."
    for seed in seeds: save_checkpoint(folder, Networks(4, 1, seed=seed), about_of(Networks(4, 1)), rng(seed))


def test_the_checkpoint_before_is_kept_and_fallen_back_to(tmp_path):
    saved(tmp_path, 1, 2, 3)
    now = json.loads((tmp_path / "checkpoint.json").read_text())["files"]
    assert fall_back(tmp_path) == "" and len(list(tmp_path.iterdir())) == 6
    (tmp_path / next(iter(now["training"]))).write_bytes(b"")
    assert "is damaged" in fall_back(tmp_path)
    assert next(iter(now["training"])) not in (tmp_path / "checkpoint.json").read_text()
    assert load_checkpoint(tmp_path, with_training=True)[2]["rng"].tolist() == [2, 2, 2] and fall_back(tmp_path) == ""
    saved(tmp_path, 3)
    assert load_checkpoint(tmp_path, with_training=True)[2]["rng"].tolist() == [3, 3, 3]


def test_the_checkpoint_before_shares_no_file_with_the_one_now(tmp_path):
    "Otherwise one damaged file would take both."
    saved(tmp_path, 1, 2)
    save_checkpoint(tmp_path, Networks(4, 1, seed=2), about_of(Networks(4, 1), more=1), rng(7))
    before = json.loads((tmp_path / "previous.json").read_text())["files"]
    now = json.loads((tmp_path / "checkpoint.json").read_text())["files"]
    assert before["weights"].keys().isdisjoint(now["weights"]) and before["training"].keys().isdisjoint(now["training"])


def test_a_damaged_checkpoint_never_takes_the_place_of_the_one_before(tmp_path):
    saved(tmp_path, 1, 2)
    before = (tmp_path / "previous.json").read_bytes()
    (tmp_path / "checkpoint.json").write_text("{")
    saved(tmp_path, 3)
    assert (tmp_path / "previous.json").read_bytes() == before


def test_without_a_checkpoint_before_the_damage_is_said(tmp_path):
    saved(tmp_path, 1)
    next(tmp_path.glob("training-*")).write_bytes(b"")
    with pytest.raises(CheckpointError, match="is damaged"): fall_back(tmp_path)


def test_files_of_others_stay(tmp_path):
    (tmp_path / "mine.safetensors").touch(), (tmp_path / "weights-final.safetensors").touch()
    saved(tmp_path, 1, 2, 3)
    assert (tmp_path / "mine.safetensors").exists() and (tmp_path / "weights-final.safetensors").exists()


def test_words_have_a_checksum_and_no_nan(tmp_path):
    nets = Networks(4, 1)
    save_checkpoint(tmp_path, nets, about_of(nets, note=[float("nan"), float("inf"), 1.5]))
    words = (tmp_path / "checkpoint.json").read_text()
    assert "NaN" not in words and "Infinity" not in words and load_checkpoint(tmp_path)[1]["note"] == [None, None, 1.5]
    (tmp_path / "checkpoint.json").write_text(words.replace("1.5", "2.5"))
    refused(tmp_path, "checksum is wrong")


def old_names(folder, name="checkpoint.json"):
    "As a version before called things; with a checksum over that."
    said = {name: fact for name, fact in json.loads((folder / name).read_text()).items() if name != "checksum"}
    if "evaluators_given" in said: said["judges_given"] = said.pop("evaluators_given")
    if "config" in said: said["config"]["spare_memory"] = said["config"].pop("activation_checkpointing", False)
    if "config" in said: said["config"].pop("engine", None)
    (folder / name).write_text(json.dumps(said | {"checksum": checksum_of(said)}))


def old_style(folder):
    "As the first versions wrote it: old names, no checksum, NaN where there is no number, nothing of evaluators."
    old_names(folder)
    file = folder / "checkpoint.json"
    newer = "checksum", "judges_given"
    said = {name: fact for name, fact in json.loads(file.read_text()).items() if name not in newer}
    for row in said.get("history", []):
        row.update(dict.fromkeys([name for name, value in row.items() if value is None], float("nan")))
    file.write_text(json.dumps(said, indent=1))
    (folder / "previous.json").unlink(missing_ok=True)


def test_a_checkpoint_of_an_older_version_loads(tmp_path):
    nets = Networks(4, 1)
    history = [{"phase": 0, "name": "joint", "epoch": 0, "gan": 0.5, "dice_MRI": None}]
    save_checkpoint(tmp_path, nets, about_of(nets, history=history, data=None), {"rng": torch.ones(3)})
    old_style(tmp_path)
    assert "NaN" in (tmp_path / "checkpoint.json").read_text()
    again, about, _ = load_checkpoint(tmp_path, with_training=True)
    assert equal(again.state_dict(), nets.state_dict())
    assert about["history"] == history
    save_checkpoint(tmp_path, Networks(4, 1, seed=3), about, {"rng": torch.zeros(3)})
    assert fall_back(tmp_path) == "" and len(list(tmp_path.iterdir())) == 6, "and is the one before"


CONFIG = {"grid": {"shape": [8, 8, 8], "spacing": [2.0, 2.0, 2.0]}, "width": 4, "patch_layers": 1, "resnet": False,
          "phases": [{"name": "joint", "epochs": 1}], "lr": 1e-3, "lambda_cyc": 10.0, "gamma_shape": 1.0,
          "batch_size": 1, "pool_size": 2, "seed": 0}


@pytest.mark.parametrize("value", [True, False])
def test_old_names_are_understood_and_never_written(tmp_path, value):
    nets, config = Networks(4, 1), CONFIG | {"activation_checkpointing": value}
    save_checkpoint(tmp_path, nets, about_of(nets, config=config, evaluators_given=value))
    now = load_checkpoint(tmp_path).about
    old_names(tmp_path)
    words = (tmp_path / "checkpoint.json").read_text()
    assert "spare_memory" in words and "judges_given" in words and "evaluators_given" not in words
    about = load_checkpoint(tmp_path).about
    assert about == now and about["config"]["activation_checkpointing"] is about["evaluators_given"] is value
    save_checkpoint(tmp_path, nets, about)
    words = (tmp_path / "checkpoint.json").read_text()
    assert "spare_memory" not in words and "judges_given" not in words and load_checkpoint(tmp_path).about == now


def test_an_old_name_is_under_the_checksum_and_the_schema_like_any_other(tmp_path):
    nets = Networks(4, 1)
    save_checkpoint(tmp_path, nets, about_of(nets, config=CONFIG, evaluators_given=True))
    old_names(tmp_path)
    (tmp_path / "checkpoint.json").write_text((tmp_path / "checkpoint.json").read_text().replace("false", "true"))
    refused(tmp_path, "checksum is wrong")
    rewrite(tmp_path, config=CONFIG | {"spare_memory": "yes"})
    refused(tmp_path, "activation_checkpointing")
    rewrite(tmp_path, config=CONFIG | {"spare_memory": True, "activation_checkpointing": False})
    refused(tmp_path, "unknown field spare_memory")


def test_reading_while_a_run_writes(tmp_path):
    states, done = [Networks(4, 1, seed=seed) for seed in range(3)], threading.Event()
    def writes():
        for i in itertools.count():
            save_checkpoint(tmp_path, states[i % 3], about_of(states[0]))
            if done.is_set(): return
    save_checkpoint(tmp_path, states[2], about_of(states[0]))
    writer = threading.Thread(target=writes)
    writer.start()
    try:
        for _ in range(8): load_checkpoint(tmp_path)
    finally:
        done.set()
        writer.join()


@pytest.mark.parametrize("wrong", [{"0.exp_avg": torch.zeros(9, 9)}, {"0.exp_avg": torch.zeros(())},
                                   {"0.exp_avg": torch.full((3, 3), float("nan"))}, {"7.step": torch.ones(())},
                                   {"0.exp_avg_sq": -torch.ones(3, 3)}, {"0.step": torch.zeros(())}], ids=str)
def test_an_optimizers_memory_must_fit_its_parameters(wrong):
    layer = torch.nn.Linear(3, 3)
    adam = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    adam.step()
    spoilt = optimizer_tensors(adam, "G") | {f"G.{name}": tensor for name, tensor in wrong.items()}
    with pytest.raises(CheckpointError): restore_optimizer(adam, spoilt, "G")


# ---- strangers

def test_nothing_there(tmp_path):
    refused(tmp_path, "holds no checkpoint.json")
    refused(tmp_path / "none", "holds no checkpoint.json")
    (tmp_path / "file.safetensors").touch()
    refused(tmp_path / "file.safetensors", "is a file")


@pytest.mark.parametrize("spoil", [lambda b: b[:1000], lambda b: b[:-1], lambda b: b"",
                                   lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b + b"x"],
                         ids=["cut", "one byte short", "empty", "a flipped bit", "longer"])
def test_damaged_weights(copy, spoil):
    weights = next(copy.glob("weights-*"))
    weights.write_bytes(spoil(weights.read_bytes()))
    refused(copy, "is damaged")


def test_missing_weights(copy):
    next(copy.glob("weights-*")).unlink()
    refused(copy, "copy the whole checkpoint folder")


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", '"checkpoint"', "{}", "\x00\x01"])
def test_damaged_json(copy, text):
    (copy / "checkpoint.json").write_text(text)
    refused(copy)


def test_json_of_bytes_that_are_no_text(copy):
    (copy / "checkpoint.json").write_bytes(b"\xff\xfe\x80")
    refused(copy, "is damaged")


@pytest.mark.parametrize("facts", [
    {"networks": {"width": 8, "patch_layers": 1, "classes": 6}},
    {"networks": {"width": 4, "patch_layers": 2, "classes": 6}},
    {"networks": {"width": 4, "patch_layers": 1, "classes": 3}}, {"networks": {"width": "wide"}},
    {"networks": {"width": 0}}, {"networks": {"width": -4}},
    {"networks": []}, {"networks": {"depth": 3}}, {"networks": {"width": 4, "patch_layers": -1}}], ids=str)
def test_weights_of_another_shape(copy, facts):
    rewrite(copy, **facts)
    refused(copy)


@pytest.mark.parametrize("facts", [
    {"regions": ["background", "RV", "LV", "LA", "RA", "myocardium"]}, {"grid": {}}, {"grid": []},
    {"grid": {"shape": [24, 24], "spacing": [7, 7, 8]}}, {"grid": {"shape": [24, 24, 16], "spacing": [7, 0, 8]}},
    {"grid": {"shape": [24, 24, 0], "spacing": [7, 7, 8]}}, {"grid": {"shape": [24, 24, 1.5], "spacing": [7, 7, 8]}},
    {"grid": {"shape": "big", "spacing": "small"}},
    {"ranges": {}}, {"ranges": {"CT": [-1000, 1000]}}, {"ranges": {"CT": [-1000, 1000], "MRI": [5, 5]}},
    {"ranges": {"CT": [-1000, 1000], "MRI": [0]}},
    {"ranges": {"CT": [-1000, 1000], "MRI": [0, float("nan")]}}, {"ranges": 3}, {"files": {}}, {"files": []},
    {"files": {"weights": []}}], ids=str)
def test_words_that_make_no_sense(copy, facts):
    rewrite(copy, **facts)
    refused(copy)


def test_weights_alone_cannot_go_on(tmp_path):
    nets = Networks(4, 1)
    save_checkpoint(tmp_path, nets, about_of(nets))
    load_checkpoint(tmp_path)
    refused(tmp_path, "no run can be resumed", with_training=True)


# ---- nothing is ever run

class Hostile:
    def __init__(self, mark): self.mark = str(mark)
    def __reduce__(self): return open, (self.mark, "w")


@pytest.mark.parametrize("name", ["extra.pt", "extra.pth", "extra.ckpt", "extra.bin", "extra.pkl", "optimizer.pickle"])
@pytest.mark.parametrize("save", [lambda o, p: p.write_bytes(pickle.dumps(o)), torch.save], ids=["pickle", "torch"])
def test_a_pickle_beside_the_weights_is_refused_and_never_runs(copy, tmp_path, name, save):
    save(Hostile(tmp_path / "it ran"), copy / name)
    refused(copy, "is a pickle")
    (copy / "checkpoint.json").unlink()
    refused(copy, "is a pickle")
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_in_the_place_of_the_weights_never_runs(copy, tmp_path, protocol):
    content = pickle.dumps(Hostile(tmp_path / "it ran"), protocol=protocol)
    weights = next(copy.glob("weights-*"))
    weights.write_bytes(content)
    rewrite(copy, files={"weights": {weights.name: hashlib.sha256(content).hexdigest()}})
    refused(copy)
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("save",
                         [pickle.dump, lambda o, f, protocol: torch.save(o, f, pickle_protocol=max(protocol, 2))],
                         ids=["pickle", "torch"])
def test_a_pickle_in_the_place_of_the_training_tensors_never_runs(copy, tmp_path, save, protocol):
    name = "training-0123456789ab.safetensors"
    with open(copy / name, "wb") as f: save(Hostile(tmp_path / "it ran"), f, protocol=protocol)
    files = json.loads((copy / "checkpoint.json").read_text())["files"]
    rewrite(copy, files=files | {"training": {name: hashlib.sha256((copy / name).read_bytes()).hexdigest()}})
    refused(copy, with_training=True)
    with pytest.raises(CheckpointError): resume_run(preset("smoke"), copy)
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("name", ["weights.pt", "last.pth"])
def test_no_run_goes_on_beside_a_pickle(copy, tmp_path, name):
    torch.save(Hostile(tmp_path / "it ran"), copy / name)
    with pytest.raises(CheckpointError, match="is a pickle"): resume_run(preset("smoke"), copy)
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("kind", ["weights", "training"])
@pytest.mark.parametrize("name", ["../x.safetensors", "sub/x.safetensors", "x.pt", "..", "", "/etc/x.safetensors",
                                  "{absolute}"])
def test_only_files_beside_the_json_are_read(copy, name, kind):
    file = copy.parent / "x.safetensors"
    save_file({"x": torch.zeros(1)}, file)
    files = json.loads((copy / "checkpoint.json").read_text())["files"]
    rewrite(copy, files=files | {kind: {name.format(absolute=file): hashlib.sha256(file.read_bytes()).hexdigest()}})
    refused(copy, "only .safetensors beside checkpoint.json", with_training=True)


def test_the_json_names_the_version_that_wrote_it(copy):
    assert json.loads((copy / "checkpoint.json").read_text())["cssgan"] == cssgan.__version__


def test_more_or_fewer_tensors_are_refused(copy):
    weights = next(copy.glob("weights-*"))
    for tensors in ({"x": torch.zeros(1)}, {}):
        save_file(tensors, copy / "other.safetensors")
        checksum = hashlib.sha256((copy / "other.safetensors").read_bytes()).hexdigest()
        rewrite(copy, files={"weights": {"other.safetensors": checksum}})
        refused(copy)
    assert weights.exists()
