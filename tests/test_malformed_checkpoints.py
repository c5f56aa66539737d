"Checkpoints that strangers altered: refused in one line, before anything is built from them."
import hashlib
import json
import os
import resource
import shutil
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from malformed import LONGEST, Bad, listing, refuses
from safetensors.torch import load_file, save_file
from tiny import AVERAGED, noise

from cssgan.cli.commands import segment_main, train_main
from cssgan.training import run as training
from cssgan.training.checkpoints import load_checkpoint
from cssgan.training.saving import resume_run
from cssgan.training.schema import CheckpointError, checksum_of
from cssgan.training.trainer import Stopped, fit

HUGE, DEEP = 2**70, 100_000


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run that was stopped in its last epoch: best/ and last/, without the checkpoint before."
    folder = tmp_path_factory.mktemp("stopped") / "run"
    def stop(run, keep): keep.button.pressed = len(run.history) == 3 and run.seen == 2
    with pytest.raises(Stopped): fit(noise(), AVERAGED, folder, progress=False, callback=stop, save_every=1e9)
    now = (folder / "last" / "checkpoint.json").read_text()
    for file in (folder / "last").iterdir():
        if file.name == "previous.json" or file.suffix == ".safetensors" and file.name not in now: file.unlink()
    return folder


def words_in(folder): return json.loads((folder / "checkpoint.json").read_text())


def write(folder, about):
    "checkpoint.json, with a checksum that is right; JSON as Python understands it."
    about.pop("checksum", None)
    try: checksum = {"checksum": checksum_of(about)}
    except (ValueError, RecursionError): checksum = {}
    (folder / "checkpoint.json").write_text(json.dumps(about | checksum))


def put(path, value):
    "Another value at a path of checkpoint.json; `...` removes it."
    def change(folder):
        about = words_in(folder)
        place = about
        for key in path[:-1]: place = place[key]
        if value is ...: del place[path[-1]]
        else: place[path[-1]] = value
        write(folder, about)
    return change


def text(content):
    "Other content of checkpoint.json."
    def change(folder):
        (folder / "checkpoint.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    return change


def nested(folder):
    words = json.dumps(words_in(folder)).replace('"history": [', '"history": [' + "[" * DEEP, 1)
    (folder / "checkpoint.json").write_text(words)


def tensors(kind, alter):
    "Other tensors of a kind, with a checksum that is right."
    def change(folder):
        about = words_in(folder)
        old = folder / next(iter(about["files"][kind]))
        content = load_file(old)
        alter(content)
        old.unlink()
        save_file(content, folder / "other.safetensors")
        checksum = hashlib.sha256((folder / "other.safetensors").read_bytes()).hexdigest()
        about["files"][kind] = {"other.safetensors": checksum}
        write(folder, about)
    return change


def file_of(kind, damage):
    "What lies in the place of a tensor file."
    def change(folder):
        file = folder / next(iter(words_in(folder)["files"][kind]))
        damage(file)
    return change


def instead(make):
    def damage(file):
        file.unlink()
        make(file)
    return damage


def zero_end(file):
    with open(file, "r+b") as f:
        f.seek(-4096, 2)
        f.write(bytes(4096))


def raw(content):
    "Bytes that are no safetensors, with a checksum that is right."
    def change(folder):
        about = words_in(folder)
        (folder / "raw.safetensors").write_bytes(content)
        about["files"]["weights"] = {"raw.safetensors": hashlib.sha256(content).hexdigest()}
        write(folder, about)
    return change


def header(entries): return (lambda words: len(words).to_bytes(8, "little") + words)(json.dumps(entries).encode())
def set_to(name, tensor):
    return lambda content: content.__setitem__(name, tensor(content[name]) if callable(tensor) else tensor)
def everything(tensor):
    return lambda content: content.update({n: tensor(t) for n, t in content.items() if t.is_floating_point()})
def rename(old, new): return lambda content: content.__setitem__(new, content.pop(old))
def without(name): return lambda content: content.pop(name)


WRONG = {"missing": ..., "null": None, "a text": "x", "a list": [], "a dictionary": {}, "NaN": float("nan"),
         "infinity": float("inf"), "huge": HUGE, "true": True}
FIRST_WEIGHT, LAST_WEIGHT = "G_A.net.first.0.0.weight", "S_B.net.last.bias"

# ---- what is always read: for inference and for resuming
WORDS = {f"{'.'.join(path)} {name}": put(path, value) for path in (
    ("networks",), ("networks", "width"), ("networks", "patch_layers"), ("grid",), ("grid", "shape"),
    ("grid", "spacing"), ("ranges",), ("ranges", "CT"), ("ranges", "MRI"),
    ("regions",), ("files",), ("files", "weights")) for name, value in WRONG.items()}
WORDS |= {
    "width 0": put(("networks", "width"), 0), "width -4": put(("networks", "width"), -4),
    "width 4.5": put(("networks", "width"), 4.5), "width 150 over the same weights": put(("networks", "width"), 150),
    "width 256 and 6 layers": put(("networks",), {"width": 256, "patch_layers": 6, "classes": 6, "resnet": True}),
    "patch_layers 2**70": put(("networks", "patch_layers"), HUGE),
    "patch_layers 0": put(("networks", "patch_layers"), 0),
    "classes 3": put(("networks", "classes"), 3), "classes 10**9": put(("networks", "classes"), 10**9),
    "resnet true over the same weights": put(("networks", "resnet"), True),
    "resnet a text": put(("networks", "resnet"), "no"),
    "an unknown size": put(("networks", "depth"), 3),
    "a thousand digits": text('{"networks": {"width": ' + "9" * 10_000 + "}}"),
    "two sides": put(("grid", "shape"), [24, 24]), "a side of 0": put(("grid", "shape"), [24, 24, 0]),
    "a side of -1": put(("grid", "shape"), [24, 24, -1]), "a side of 1.5": put(("grid", "shape"), [24, 24, 1.5]),
    "a side of 2**70": put(("grid", "shape"), [24, 24, HUGE]),
    "a billion voxels": put(("grid", "shape"), [1024, 1024, 1024]),
    "spacing 1e-300": put(("grid", "spacing"), [1e-300, 7, 8]),
    "spacing 1e300": put(("grid", "spacing"), [7, 7, 1e300]), "spacing -7": put(("grid", "spacing"), [7, -7, 8]),
    "spacing 0": put(("grid", "spacing"), [7, 0, 8]),
    "spacing NaN": put(("grid", "spacing"), [7, 7, float("nan")]),
    "a range that ends first": put(("ranges", "CT"), [1000, -1000]), "a range of one": put(("ranges", "MRI"), [5, 5]),
    "half a range": put(("ranges", "MRI"), [0]),
    "a range to infinity": put(("ranges", "MRI"), [0, float("inf")]),
    "a range of 1e308": put(("ranges", "MRI"), [-1e308, 1e308]), "a third modality": put(("ranges", "PET"), [0, 1]),
    "other regions": put(("regions",), ["background", "RV", "LV", "LA", "RA", "myocardium"]),
    "a million regions": put(("regions",), ["LV"] * 1_000_000),
    "a checksum of 3 digits": put(("files", "weights"), {"a.safetensors": "abc"}),
    "a checksum that is a number": put(("files", "weights"), {"a.safetensors": 5}),
    "a file elsewhere": put(("files", "weights"), {"../a.safetensors": "0" * 64}),
    "an absolute file": put(("files", "weights"), {"/etc/passwd": "0" * 64}),
    "a file named NUL": put(("files", "weights"), {"a\0.safetensors": "0" * 64}),
    "a file of half a character": put(("files", "weights"), {"\ud800.safetensors": "0" * 64}),
    "a file with a terminal's escape": put(("files", "weights"), {"\x1b[31m.safetensors": "0" * 64}),
    "a name of 2000 letters": put(("files", "weights"), {"a" * 2000 + ".safetensors": "0" * 64}),
    "a file that is not there": put(("files", "weights"), {"a.safetensors": "0" * 64}),
    "a thousand files": put(("files", "weights"), {f"{i}.safetensors": "0" * 64 for i in range(1000)}),
    "an unknown group of files": put(("files", "program"), {"a.safetensors": "0" * 64}), "nested 100,000 deep": nested,
    "lists only": text("[" * DEEP), "dictionaries only": text('{"a":' * DEEP), "empty": text(""),
    "zeros": text(bytes(4096)), "cut": text('{"cssgan": "0.1'),
    "UTF-16": text('{"cssgan": 1}'.encode("utf-16")), "Latin-1": text(b'{"cssgan": "\xe9"}'),
    "no JSON": text("cssgan: 1"), "a list": text("[]"), "a number": text("5"), "null": text("null"),
    "30 MB": text(b" " * 30_000_000),
    "a flipped digit": lambda folder: text(json.dumps(words_in(folder)).replace("-1000.0", "-1001.0", 1))(folder),
    "another's checksum": lambda folder: text(json.dumps(words_in(folder) | {"checksum": "0" * 64}))(folder),
    "a checksum that is a list": lambda folder: text(json.dumps(words_in(folder) | {"checksum": [1]}))(folder),
    "a pipe in the place of the words": lambda folder: instead(os.mkfifo)(folder / "checkpoint.json"),
    "a device": lambda folder: instead(lambda f: f.symlink_to("/dev/zero"))(folder / "checkpoint.json"),
    "a folder": lambda folder: instead(os.mkdir)(folder / "checkpoint.json"),
    "a link in a circle": lambda folder: instead(lambda f: f.symlink_to(f.name))(folder / "checkpoint.json")}

WEIGHTS = {
    "all NaN": tensors("weights", everything(lambda t: t * float("nan"))),
    "one NaN": tensors("weights", set_to(LAST_WEIGHT, lambda t: t.index_fill(0, torch.tensor(0), float("nan")))),
    "one infinity": tensors("weights", set_to(FIRST_WEIGHT, lambda t: t / 0)),
    "one missing": tensors("weights", without(LAST_WEIGHT)),
    "one too many": tensors("weights", set_to("extra", torch.zeros(3))),
    "none": tensors("weights", lambda content: content.clear()),
    "one renamed": tensors("weights", rename(LAST_WEIGHT, "S_B.net.last.bais")),
    "another shape": tensors("weights", set_to(LAST_WEIGHT, torch.zeros(7))),
    "transposed": tensors("weights", set_to(FIRST_WEIGHT, lambda t: t.transpose(0, 1).contiguous())),
    "flat": tensors("weights", set_to(FIRST_WEIGHT, lambda t: t.flatten())),
    "half precision": tensors("weights", everything(lambda t: t.half())),
    "double": tensors("weights", set_to(LAST_WEIGHT, lambda t: t.double())),
    "integers": tensors("weights", set_to(LAST_WEIGHT, lambda t: t.long())),
    "booleans": tensors("weights", set_to(LAST_WEIGHT, lambda t: t > 0)),
    "no elements": tensors("weights", set_to(LAST_WEIGHT, torch.zeros(0))),
    "twenty times as large": tensors("weights", set_to("extra", torch.zeros(10_000_000))),
    "a scalar": tensors("weights", set_to(LAST_WEIGHT, torch.zeros(()))),
    "zeroed end": file_of("weights", zero_end),
    "cut file": file_of("weights", lambda f: f.write_bytes(f.read_bytes()[:1000])),
    "empty file": file_of("weights", lambda f: f.write_bytes(b"")), "gone": file_of("weights", Path.unlink),
    "a pipe": file_of("weights", instead(os.mkfifo)),
    "/dev/zero": file_of("weights", instead(lambda f: f.symlink_to("/dev/zero"))),
    "/proc": file_of("weights", instead(lambda f: f.symlink_to("/proc/self/mem"))),
    "a folder of that name": file_of("weights", instead(os.mkdir)),
    "a link to nowhere": file_of("weights", instead(lambda f: f.symlink_to("nowhere"))),
    "4 GB of nothing": file_of("weights", lambda f: os.truncate(f, 4 * 10**9)),
    "no header": raw(b""), "text": raw(b"hello"), "a header of 2**60 bytes": raw((2**60).to_bytes(8, "little")),
    "a header that is no JSON": raw((4).to_bytes(8, "little") + b"abcd"),
    "a header nested deep": raw((200_000).to_bytes(8, "little") + b"[" * 200_000),
    "offsets beyond the end": raw(header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})),
    "offsets backwards": raw(header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}) + bytes(8)),
    "an unknown type": raw(header({"a": {"dtype": "F7", "shape": [1], "data_offsets": [0, 4]}}) + bytes(4)),
    "a shape that overflows": raw(header({"a": {"dtype": "F32", "shape": [2**40, 2**40],
                                                "data_offsets": [0, 4]}}) + bytes(4)),
    "a negative shape": raw(header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}) + bytes(4))}

# ---- what only a run that is resumed reads
PHASES, STATE = ("config", "phases"), "G.0.exp_avg"
GOING_ON = {f"{'.'.join(path)} {name}": put(path, value)
            for path in (("config",), ("history",), ("phase",), ("epoch",), ("seen",), ("losses",))
            for name, value in WRONG.items()}
GOING_ON |= {f"config.{field} {value}": put(("config", field), value) for field, value in (
    ("lr", float("nan")), ("lr", -1), ("lr", 0), ("lr", 1e300), ("lr", "fast"), ("batch_size", 0), ("batch_size", HUGE),
    ("pool_size", -1), ("pool_size", HUGE), ("seed", -1), ("seed", 2**64), ("seed", 0.5), ("width", HUGE),
    ("lambda_cyc", None),
    ("gamma_shape", float("nan")), ("phases", []), ("phases", [{"name": "joint"}]),
    ("phases", [{"name": "adjoint", "epochs": 1}]), ("phases", [{"name": "joint", "epochs": float("nan")}]),
    ("phases", [{"name": "joint", "epochs": HUGE}]),
    ("phases", [{"name": "joint", "epochs": -1}]), ("activation_checkpointing", "yes"), ("epochs", 5),
    ("averaging", 1), ("averaging", -0.5), ("averaging", float("nan")), ("averaging", None), ("keep", "first"),
    ("grid", {"shape": [1, 2, 3], "spacing": [1, 1, 1]}))}
GOING_ON |= {
    "no data": put(("data",), ...), "data a list": put(("data",), [1]), "others' data": put(("data",), "0" * 16),
    "phase 4": put(("phase",), 4), "phase -1": put(("phase",), -1), "epoch 2": put(("epoch",), 2),
    "epoch 0 of 1": put(("epoch",), 0),
    "seen -1": put(("seen",), -1), "seen 10**12": put(("seen",), 10**12), "seen 10**7": put(("seen",), 10**7),
    "seen 0 with losses": put(("seen",), 0), "losses of nothing": put(("losses", "gan"), []),
    "losses null": put(("losses", "gan"), [None]), "losses of texts": put(("losses", "gan"), ["low"]),
    "losses infinite": put(("losses", "gan"), [float("inf")] * 2),
    "more losses than pairs": put(("losses", "gan"), [1.0] * 1000),
    "a history of lists": put(("history",), [[1], [2], [3]]),
    "a history of other phases": put(("history", 0, "phase"), 2),
    "a history of the future": put(("history", 0, "phase"), 7),
    "a history that is nested": put(("history", 0, "S_A"), {"a": 1}),
    "a history of a million letters": put(("history", 0, "name"), "x" * 1_000_000),
    "weights only": put(("files", "training"), ...),
    "no training files": put(("files", "training"), {}),
    "training elsewhere": put(("files", "training"), {"../a.safetensors": "0" * 64}),
    "evaluators_given a text": put(("evaluators_given",), "perhaps")}
GOING_ON |= {f"training: {name}": tensors("training", alter) for name, alter in {
    "exp_avg of another shape": set_to(STATE, torch.zeros(9, 9)), "exp_avg flat": set_to(STATE, lambda t: t.flatten()),
    "exp_avg of one number": set_to(STATE, torch.zeros(())), "exp_avg of nothing": set_to(STATE, torch.zeros(0)),
    "exp_avg in half": set_to(STATE, lambda t: t.half()),
    "exp_avg in double": set_to(STATE, lambda t: t.double()), "exp_avg NaN": set_to(STATE, lambda t: t * float("nan")),
    "exp_avg missing": without(STATE), "exp_avg_sq negative": set_to("G.0.exp_avg_sq", lambda t: t - 1),
    "exp_avg_sq of another shape": set_to("S.3.exp_avg_sq", torch.zeros(1)),
    "step missing": without("G.0.step"), "step NaN": set_to("G.0.step", torch.tensor(float("nan"))),
    "step 0": set_to("G.0.step", torch.tensor(0.0)), "step -5": set_to("D.0.step", torch.tensor(-5.0)),
    "step of two numbers": set_to("G.0.step", torch.ones(2)), "step an integer": set_to("G.0.step", torch.tensor(5)),
    "an unknown key": set_to("G.0.momentum", torch.zeros(3)),
    "a parameter that is not there": set_to("G.9999.exp_avg", torch.zeros(3)),
    "a parameter of no number": set_to("G.x.exp_avg", torch.zeros(3)),
    "a parameter of a huge number": set_to(f"G.{HUGE}.step", torch.ones(())),
    "a name of one word": set_to("G", torch.zeros(3)),
    "an unknown optimizer": set_to("H.0.exp_avg", torch.zeros(3)),
    "a name of many dots": set_to("G.0.exp_avg.x", torch.zeros(3)), "no rng": without("rng"),
    "rng of 5 bytes": set_to("rng", torch.zeros(5, dtype=torch.uint8)),
    "rng in floats": set_to("rng", lambda t: t.float()),
    "rng of ones": set_to("rng", lambda t: torch.full_like(t, 255)),
    "rng of two dimensions": set_to("rng", lambda t: t[None]), "an unknown rng": set_to("rng.2", torch.zeros(5)),
    "a pool of another shape": set_to("pool.A", torch.zeros(2, 1, 9, 9, 9)),
    "a pool of too many": set_to("pool.A", torch.zeros(50, 1, 16, 16, 16)),
    "a pool of none": set_to("pool.A", torch.zeros(0, 1, 16, 16, 16)),
    "a pool in integers": set_to("pool.B", torch.zeros(2, 1, 16, 16, 16, dtype=torch.int64)),
    "a pool of one number": set_to("pool.B", torch.zeros(())),
    "a pool of NaN": set_to("pool.B", lambda t: t * float("nan")),
    "a third pool": set_to("pool.C", torch.zeros(2, 1, 16, 16, 16)),
    "an evaluator of another shape": set_to("judge.S_A.net.last.bias", torch.zeros(9)),
    "an evaluator missing a tensor": without("judge.S_A.net.last.bias"),
    "an evaluator NaN": set_to("judge.S_B.net.last.bias", lambda t: t * float("nan")),
    "half a pair of evaluators": lambda c: [c.pop(n) for n in list(c) if n.startswith("judge.S_B")],
    "an evaluator too many": set_to("judge.S_C.net.last.bias", torch.zeros(6)),
    "an average missing": without("average.S_B.net.last.bias"),
    "an average of another shape": set_to("average.S_B.net.last.bias", torch.zeros(9)),
    "an average NaN": set_to("average.G_A.net.last.bias", lambda t: t * float("nan")),
    "an average in double": set_to("average.G_A.net.last.bias", lambda t: t.double()),
    "an average too many": set_to("average.S_C.net.last.bias", torch.zeros(6)),
    "no averages": lambda c: [c.pop(n) for n in list(c) if n.startswith("average.")],
    "an evaluator in half": set_to("judge.S_A.net.last.bias", lambda t: t.half()),
    "nothing": lambda content: content.clear(), "a gigabyte": set_to("rng", torch.zeros(250_000_000 // 4))}.items()}
GOING_ON |= {f"training file: {name}": file_of("training", damage) for name, damage in {
    "zeroed end": zero_end, "cut": lambda f: f.write_bytes(f.read_bytes()[:1000]),
    "empty": lambda f: f.write_bytes(b""), "gone": Path.unlink, "a pipe": instead(os.mkfifo),
    "/dev/zero": instead(lambda f: f.symlink_to("/dev/zero")),
    "40 GB of nothing": lambda f: os.truncate(f, 4 * 10**10)}.items()}


def refused(ask, folder, *names):
    "One line that names the folder, at once, without much memory, and nothing is changed."
    before, begun, memory = listing(folder), time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError) as e: ask(folder)
    message, grown = str(e.value), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1000
    assert message.isprintable() and len(message) <= LONGEST, message
    assert str(folder) in message, message
    assert time.monotonic() - begun < 20 and grown < 500 and listing(folder) == before
    return message


@pytest.mark.parametrize("name", WORDS | WEIGHTS)
def test_it_is_not_read(run, tmp_path, name):
    folder = shutil.copytree(run / "best", tmp_path / "best")
    (WORDS | WEIGHTS)[name](folder)
    refused(load_checkpoint, folder)


@pytest.mark.parametrize("name", GOING_ON)
def test_no_run_goes_on_from_it(run, tmp_path, monkeypatch, name):
    folder = shutil.copytree(run / "last", tmp_path / "last")
    GOING_ON[name](folder)
    monkeypatch.setattr(training, "step", lambda *_: pytest.fail("trained"))
    refused(lambda place: resume_run(AVERAGED, place, noise()), folder)


@pytest.mark.parametrize("name", ["phase null", "training: exp_avg of another shape", "training file: zeroed end",
                                  "config.phases []", "nested 100,000 deep", "all NaN"])
def test_fit_refuses_it_too_and_leaves_the_folder_as_it_is(run, tmp_path, monkeypatch, name):
    folder = shutil.copytree(run, tmp_path / "run")
    (GOING_ON | WORDS | WEIGHTS)[name](folder / "last")
    monkeypatch.setattr(training, "step", lambda *_: pytest.fail("trained"))
    before = listing(folder)
    with pytest.raises(CheckpointError): fit(noise(), AVERAGED, folder, resume=True, progress=False)
    assert listing(folder) == before


# ---- the commands

SCAN = next((ROOT / "data_samples" / "CT").glob("*_image.nii"))


def segmenting(make):
    def words(folder):
        return [SCAN, "--checkpoint", make(folder), "--modality", "CT", "--out", folder / "out.nii"]
    return words


PLACES = {
    "an empty name": (lambda folder: "", "checkpoint"),
    "a pipe": (lambda folder: (os.mkfifo(folder / "pipe"), folder / "pipe")[1], "pipe"),
    "a file": (lambda folder: (folder / "file").write_text("") and None or folder / "file", "file"),
    "NUL": (lambda folder: f"{folder}/a\0b", "a"),
    "nothing there": (lambda folder: folder / "nowhere", "nowhere"),
    "a device": (lambda folder: "/dev/zero", "/dev/zero"),
    "a name of 5000 letters": (lambda folder: folder / ("x" * 5000), "xxx"),
    "a link in a circle": (lambda folder: ((folder / "loop").symlink_to("loop"), folder / "loop")[1], "loop"),
    "a terminal's escape": (lambda folder: f"{folder}/\x1b[31mred", "red"),
    "half a character": (lambda folder: os.fsdecode(os.fsencode(folder) + b"/\xff"), "checkpoint")}


@pytest.mark.parametrize("name", PLACES)
def test_a_place_that_holds_no_checkpoint(tmp_path, capfd, name):
    make, names = PLACES[name]
    refuses(segment_main, Bad(name, segmenting(make), names), tmp_path, capfd)


@pytest.mark.parametrize("name", ["grid.spacing NaN", "spacing 1e-300", "patch_layers 2**70",
                                  "width 150 over the same weights", "nested 100,000 deep", "a terminal's escape",
                                  "a pipe in the place of the words", "all NaN", "a pipe", "/dev/zero", "another shape",
                                  "zeroed end", "a flipped digit"])
def test_segmenting_with_it(run, tmp_path, capfd, name):
    change = (WORDS | WEIGHTS | {"a terminal's escape": put(("files", "weights"),
                                                            {"\x1b[31m.safetensors": "0" * 64})})[name]
    def make(folder):
        shutil.copytree(run / "best", folder / "net")
        change(folder / "net")
        return folder / "net"
    refuses(segment_main, Bad(name, segmenting(make), "net"), tmp_path, capfd)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "The folder of a run that a command began and finished."
    folder = tmp_path_factory.mktemp("trained")
    assert train_main(["--data", str(ROOT / "data_samples"), "--out", str(folder / "run"), "--preset", "smoke",
                       "--quiet", "--cache", str(folder / "cache")]) == 0
    return folder


@pytest.mark.parametrize("name", ["phase null", "losses NaN", "nested 100,000 deep", "patch_layers 2**70", "all NaN",
                                  "training file: zeroed end", "training: exp_avg of another shape"])
def test_training_goes_on_from_it(trained, tmp_path, capfd, monkeypatch, name):
    def make(folder):
        shutil.copytree(trained, folder, dirs_exist_ok=True)
        (folder / "run" / "last" / "previous.json").unlink()
        (GOING_ON | WORDS | WEIGHTS)[name](folder / "run" / "last")
        return ["--resume", folder / "run", "--quiet", "--cache", folder / "cache"]
    monkeypatch.setattr(training, "step", lambda *_: pytest.fail("trained"))
    refuses(train_main, Bad(name, make, "last"), tmp_path, capfd, allowed=("cache/.*",))
