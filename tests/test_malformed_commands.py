"Words of the six commands that cannot be used: one line that names the option or file, at once, and nothing written."
import json
import os
import shutil
from pathlib import Path

import pytest
from malformed import Bad, refuses

from cssgan.cli import commands as cli
from cssgan.phantoms.scanners import phantom
from cssgan.scans.files import write_volume
from cssgan.scans.volumes import Grid

MAIN = {"train": cli.train_main, "translate": cli.translate_main, "segment": cli.segment_main,
        "phantom": cli.phantom_main, "sweep": cli.sweep_main, "task": cli.task_main}
LONG, DIGITS, STEERING, HALF = "x" * 2000, "9" * 1000, "\x1b[2Jred\a\x85", "caf\udce9"
GOOD = {"train": "--data phantom-few --out run --preset smoke",
        "translate": "ct.nii --checkpoint best --to MRI --out new.nii",
        "segment": "ct.nii --checkpoint best --modality CT --out new.nii",
        "phantom": "--out new --n 1 --grid small", "sweep": "grid.yaml",
        "task": "new --data data"}


def typed(command, option, *values):
    "A good command in which one option is typed so."
    def make(folder):
        os.chdir(folder)
        words = GOOD[command].split()
        if option in words: words[words.index(option) + 1] = values[0]
        elif option.startswith("--"): words += [option, *values]
        else: words[0] = values[0]  # SCAN or GRID
        return words
    return make


ROWS = []
def row(command, name, make, names, says="", **more):
    ROWS.append((command, Bad(f"{command}: {name}", make, names, says, **more)))

# numbers: no number at all, out of bounds, enormous
for command, option, values in [
        ("phantom", "--n", ["0", "-3", "many", "1.5", "nan", "", str(10**20), DIGITS]),
        ("phantom", "--seed", ["-1", str(2**64), "one", DIGITS, "1e3"]),
        ("train", "--seed", ["-1", str(2**64), "seed", "", DIGITS, "0x10", STEERING]),
        ("train", "--devices", ["0", "-1", str(10**9), "two", DIGITS]),
        ("train", "--fraction", [f"CT={f}" for f in ("nan", "-1", "2", "1e-300", "0", "inf", "", "14%", DIGITS)]),
        ("train", "--fraction", ["0.14", "CT", "=0.5", "CT 0.5", "", LONG, STEERING]),
        ("sweep", "--workers", ["0", "-2", str(10**9), "few", DIGITS, HALF])]:
    for value in values:
        row(command, f"{option} {value[:12]!r}", typed(command, option, value), option,
            "(?i)whole number|number from|expected one|names no share")
for command in ("translate", "segment"):
    for values in (("nan", "0", "0"), ("0", "inf", "0"), ("0", "0", "1e300"), ("0", "here", "0"), ("0", "", "0"),
                   ("1", "2"), (DIGITS, "0", "0")):
        row(command, f"--centre {' '.join(values)[:16]}", typed(command, "--centre", *values), "--centre")

# settings: no such name, no such value, no file of settings
for word, says in [("lr", "sets nothing"), ("=3", "sets nothing"), ("learning_rate=1e-4", "did you mean lr"),
                   ("phases.joint.epoch=3", "did you mean phases.joint.epochs"), ("phases.joint=3", "group of set"),
                   ("lr=-1", "at lr"), ("lr=.nan", "at lr"), ("lr=fast", "at lr"), ("lr=", "at lr"),
                   ("width=1e3", "at width"), (f"width={DIGITS}", "width"), ("grid.shape=[1, 2]", "at grid.shape"),
                   ("phases.joint.epochs=-1", "joint"), ("phases.joint.epochs=0.5", "joint"), ("seed=one", "at seed"),
                   ("engine=slow", "at engine"), ("width=[4", "not plain YAML"), ("lr=&a [*a]", "not plain YAML"),
                   (f"{LONG}=1", "no setting"), (f"{STEERING}=1", "no setting"), ("lr=!!python/name:os.kill", "YAML")]:
    row("train", f"--set {word[:24]!r}", typed("train", "--set", word), "", says)
for value in ("0", "-5", "many", DIGITS, "1.5"):
    row("train", f"--updates {value[:12]!r}", typed("train", "--updates", value), "--updates", "whole number")
for value in ("gpu", "cuda:99", "cuda:x", "CPU", "", LONG, STEERING):
    row("train", f"--device {value[:9]!r}", typed("train", "--device", value), "",
        "is no device|there is no cuda:99")
def configured(text):
    def make(folder):
        os.chdir(folder)
        Path("run.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return [*GOOD["train"].split(), "--config", "run.yaml"]
    return make
for name, text, says in [
        ("nothing", "", "no names and values"), ("a list", "- lr", "no names and values"),
        ("binary", b"\xff\xfe\x00", "no text"), ("too much", "# " + "x" * 60_000, "larger than"),
        ("a mistyped name", "learningrate: 1", "did you mean lr"), ("a capital", "Lr: 1", "did you mean lr"),
        ("a mistyped preset", "presett: cpu", "did you mean preset"),
        ("a mistyped share", "fracton: {CT: 1}", "group of settings|did you mean fraction"),
        ("a name twice", "lr: 1\nlr: 2", "says lr twice"),
        ("an alias", "a: &a [1]\nb: *a", "has an alias"), ("depth", "[" * 40_000, "not plain YAML"),
        ("no YAML", "lr: [", "not plain YAML"), ("a preset that is none", "preset: 3", "at preset"),
        ("a share of 7", "fraction: {CT: 7}", "fraction"), ("updates of text", "updates: many", "at updates"),
        ("a group that is a number", "phases: 3", "group of settings"),
        ("phases that are a list", "phases: [joint]", "group of settings"),
        ("a phase that is null at the top", "joint: null", "no setting joint")]:
    row("train", f"--config that holds {name}", configured(text), "run.yaml", says)
row("train", "a frozen teacher that never learned", configured("teacher: frozen\nphases: {segmentors: null}"),
    "frozen teacher", "must have learned")
row("train", "--config that is a folder", typed("train", "--config", "."), "", "folder")
row("train", "--config that is not there", typed("train", "--config", "none.yaml"), "none.yaml", "does not exist")

# names: empty, blank, NUL, too long
PLACES = [("train", "--data"), ("train", "--task"), ("train", "--out"), ("train", "--resume"), ("train", "--cache"),
          ("train", "--config"),
          ("translate", "scan"), ("translate", "--checkpoint"), ("translate", "--to"), ("translate", "--out"),
          ("segment", "scan"), ("segment", "--checkpoint"), ("segment", "--modality"), ("segment", "--out"),
          ("task", "--data"), ("task", "--out"), ("task", "--name"), ("phantom", "--out"), ("phantom", "--labels"),
          ("sweep", "grid"), ("sweep", "--collect"), ("sweep", "--scheduler")]
for command, option in PLACES:
    for what, value in (("empty", ""), ("NUL", "a\0b.nii"), ("too long", LONG), ("too deep", "d/" * 3000)):
        row(command, f"{option} {what}", typed(command, option, value), option.upper() if option in ("scan", "grid")
            else option, "name")
row("train", "--cache blank", typed("train", "--cache", "  "), "--cache")
row("phantom", "--samples empty", lambda folder: ["--samples", ""], "--samples")

# choices and unknown options: the nearest is named, what is long is cut, what steers a terminal is shown
for value, says in (("papre", "did you mean paper"), ("Demo", "did you mean demo"), ("", "known "
                                                                                         "are"), (LONG, "known are"),
                    (STEERING, "known are"), (HALF, "known are")):
    row("train", f"--preset {value[:9]!r}", typed("train", "--preset", value), "--preset", says)
for command, option in (("phantom", "--grid"), ("phantom", "--table"), ("phantom", "--modality")):
    for value in ("", "PET", LONG, STEERING):
        row(command, f"{option} {value[:9]!r}", typed(command, option, value), option, "choice")
for command in MAIN:
    for value in (f"--{LONG}", f"--x={STEERING}", f"--{HALF}"):
        row(command, f"unknown {value[:9]!r}", typed(command, value), "--")


# places for results

def scan(folder, name="ct.nii"):
    ct = phantom(2, "CT", Grid((24, 24, 16), (7., 7., 8.)))
    write_volume(ct, Path(folder, name))


def out(prepare, words="ct.nii --checkpoint best --to MRI --out new.nii", force=True):
    def make(folder):
        os.chdir(folder)
        scan(folder)
        prepare(folder)
        return [*words.split(), *(["--force"] if force else [])]
    return make


def foreign(name, content=b"notes of a year"): return lambda folder: Path(folder, name).write_bytes(content)
def as_dicom(folder): Path(folder, "series/deep").mkdir(parents=True)


OUTS = {"hard link to the scan": lambda f: os.link(f / "ct.nii", f / "new.nii"),
        "link to the scan": lambda f: (f / "new.nii").symlink_to("ct.nii"),
        "dangling link": lambda f: (f / "new.nii").symlink_to("nowhere.nii"),
        "link to itself": lambda f: (f / "new.nii").symlink_to("new.nii"),
        "link to a device": lambda f: (f / "new.nii").symlink_to("/dev/null"),
        "FIFO": lambda f: os.mkfifo(f / "new.nii"),
        "folder": lambda f: (f / "new.nii").mkdir(), "notes": foreign("new.nii"), "empty file": foreign("new.nii", b""),
        "cut file of ours": lambda f: (f / "new.nii").write_bytes((f / "ct.nii").read_bytes()[:400])}
for how, prepare in OUTS.items():
    row("translate", f"--out is a {how}", out(prepare), "new.nii")
    row("segment", f"--out is a {how}", out(prepare, "ct.nii --checkpoint best --modality CT --out new.nii"), "new.nii")
row("translate", "--out exists", out(lambda f: scan(f, "new.nii"), force=False), "new.nii", "--force")
row("segment", "--out is the scan", out(lambda f: None, "ct.nii --checkpoint best --modality CT --out ./ct.nii"),
    "ct.nii", "the scan itself")
for name in ("none/new.nii", "ct.nii/new.nii", "new.png", "new", "series/../none/new.nii"):
    row("translate", f"--out {name}", out(lambda f: None, f"ct.nii --checkpoint best --to MRI --out {name}"), name,
        "cannot be written")
for name in ("series/new.nii", "series/deep/new.nii", "./series/deep/../new.nii"):
    row("segment", f"--out {name} in the series", out(as_dicom, f"series --checkpoint best --modality CT --out {name}"),
        name, "the scan's own folder")


def phantoms(prepare, words="--out new --n 2 --grid small --force"):
    def make(folder):
        os.chdir(folder)
        for modality in ("CT", "MRI"): Path(folder, "new", modality).mkdir(parents=True)
        prepare(Path(folder, "new"))
        return words.split()
    return make


for name in ("CT/phantom_00000_image.nii.gz", "CT/phantom_00002_label.nii.gz", "MRI/phantom_00003_image.nii.gz"):
    row("phantom", f"notes at {name}", phantoms(lambda f, name=name: (f / name).write_text("notes")), name,
        "not made by cssgan")
row("phantom", "a link that leads nowhere",
    phantoms(lambda f: (f / "MRI/phantom_00001_label.nii.gz").symlink_to("gone")), "phantom_00001_label", "nowhere")
row("phantom", "a pipe", phantoms(lambda f: os.mkfifo(f / "CT/phantom_00000_label.nii.gz")), "phantom_00000_label",
    "a pipe")
row("phantom", "samples over notes", phantoms(lambda f: (f / "CT/phantom_10000_image.nii").write_text("notes"),
                                              "--samples new --force"), "phantom_10000_image.nii", "not made by cssgan")
row("phantom", "phantoms that are there", phantoms(lambda f: scan(f / "MRI", "phantom_00003_image.nii.gz"),
                                                   "--out new --n 2 --grid small"), "phantom_00003_image", "--force")


# folders for runs
BEGUN = {"data": "phantom-few", "preset": "smoke", "seed": 0, "fraction_ct": 1.0, "fraction_mri": 1.0}  # as once

def begun(folder, **other):
    "A run that was begun, by a version that knew the heart alone."
    from cssgan.data.cases import phantom_few
    from cssgan.data.finding import write_manifest
    (folder / "train.json").write_text(json.dumps(BEGUN | other))
    write_manifest(phantom_few(), folder / "cases.csv")


def run(prepare, words="--data phantom-few --out run --preset smoke"):
    def make(folder):
        os.chdir(folder)
        Path(folder, "run").mkdir()
        prepare(Path(folder, "run"))
        return words.split()
    return make


for name, prepare in {"cases.csv": lambda f: (f / "cases.csv").write_text("image,label\n"),
                      "train.json": lambda f: (f / "train.json").write_text('{"epochs": 3}'),
                      "best": lambda f: (f / "best").mkdir(),
                      "last": lambda f: (f / "last").write_text("words"),
                      "train.json that is empty": lambda f: (f / "train.json").touch(),
                      "train.json that is a pipe": lambda f: os.mkfifo(f / "train.json"),
                      "cases.csv that is a link": lambda f: (f / "cases.csv").symlink_to("../all.csv")}.items():
    row("train", f"a foreign {name}", run(prepare), f"run/{name.split()[0]}", "did not make it")


def linked(folder):
    (folder / "train.json").write_text(json.dumps(BEGUN))
    (folder.parent / "mine.csv").write_text("mine")
    (folder / "cases.csv").symlink_to("../mine.csv")


row("train", "a begun run whose cases.csv is a link to mine", run(linked), "run/cases.csv")
for name, text in {"nothing": "", "no JSON": "{", "a list": "[]", "a number": "3", "other "
                                                                                   "keys": '{"data": "d", "epochs": 3}',
                   "no data": '{"seed": 1}', "null": json.dumps(BEGUN | {"data": None}),
                   "a seed of text": json.dumps(BEGUN | {"seed": "1"}),
                   "a negative seed": json.dumps(BEGUN | {"seed": -1}),
                   "a huge seed": json.dumps(BEGUN | {"seed": 10**30}),
                   "NaN": json.dumps(BEGUN | {"fraction_ct": float("nan")}),
                   "a share of 0": json.dumps(BEGUN | {"fraction_mri": 0}),
                   "a share of 7": json.dumps(BEGUN | {"fraction_ct": 7}),
                   "a share of 8": json.dumps({"data": "d", "fraction": {"CT": 8}}),
                   "a share of NaN": json.dumps({"data": "d", "fraction": {"CT": float("nan")}}),
                   "a share for nobody": json.dumps({"data": "d", "fraction": [0.5]}),
                   "a list for a name": json.dumps(BEGUN | {"preset": ["demo"]}), "depth": "[" * 100_000,
                   "a long name": json.dumps(BEGUN | {"preset": LONG}),
                   "a thousand digits": f'{{"data": "d", "seed": {DIGITS}}}', "binary": "\x00\x01"}.items():
    row("train", f"--resume with {name} in train.json", run(lambda f, text=text: (f / "train.json").write_text(text),
                                                            "--resume run"), "run/train.json")
row("train", "--resume with a pipe", run(lambda f: os.mkfifo(f / "train.json"), "--resume run"), "run/train.json",
    "a pipe")
row("train", "--resume with a large train.json",
    run(lambda f: os.truncate(os.open(f / "train.json", os.O_WRONLY | os.O_CREAT), 2**32), "--resume run"),
    "run/train.json", "larger than")
row("train", "--resume where cases.csv was not written yet",
    run(lambda f: (f / "train.json").write_text(json.dumps(BEGUN)), "--resume run"), "run", "begin again")
row("train", "--resume of nothing", run(lambda f: None, "--resume run"), "run", "holds no run")
row("train", "--resume of an unknown preset",
    run(lambda f: ((f / "train.json").write_text(json.dumps(BEGUN | {"preset": "papre"})),
                   shutil.copy(Path(__file__), f / "cases.csv")), "--resume run"), "run/")


# tasks
BRAIN = {"name": "brain", "domains": [{"name": name, "percentiles": [1, 99]} for name in ("T1", "T2")],
         "regions": ["background", "stem"], "grid": {"shape": [8, 8, 8], "spacing": [9, 9, 9]}}


def brain(folder): (folder.parent / "brain.json").write_text(json.dumps(BRAIN))


for name, words, names, says, prepare in [
        ("that is not there", "--task none.json", "none.json", "does not exist", None),
        ("that is a folder", "--task run", "run", "folder", None),
        ("that is no JSON", "--task run/task.json", "run/task.json", "no JSON",
         lambda f: (f / "task.json").write_text("{")),
        ("of other domains for phantoms", "--task brain.json", "phantom-few", "T1/ and T2/", brain)]:
    row("train", f"--task {name}", run(prepare or (lambda f: None),
                                       f"--data phantom-few --out other --preset smoke {words}"), names, says)
for name, words, says, more in [
        ("another --task", "--task brain.json", "another task than brain.json", {}),
        ("another --fraction", "--fraction CT=0.5", "begun with fraction 1, not CT=0.5", {}),
        ("another --fraction than the old one", "--fraction CT=0.5 MRI=1", "fraction CT=0.25, not CT=0.5",
         {"fraction_ct": 0.25}),
        ("a --fraction of both twice", "--fraction CT=0.5 CT=0.5", "twice", {})]:
    row("train", f"--resume with {name}", run(lambda f, more=more: (begun(f, **more), brain(f)),
                                              f"--resume run {words}"), "", says)
row("train", "--resume of a run whose task is damaged",
    run(lambda f: (begun(f), (f / "task.json").write_text('{"name": 3}')), "--resume run"), "run/task.json", "name")
row("train", "--resume of a run with the task of another",
    run(lambda f: (begun(f), (f / "task.json").write_text(json.dumps(BRAIN))), "--resume run"), "run/cases.csv",
    "modality is T1 or T2")
row("train", "--fraction of no domain", run(lambda f: None, "--data phantom-few --out other --fraction PET=0.5"), "PET",
    "use CT or MRI")
row("train", "a task.json where the run would be",
    run(lambda f: (f / "task.json").write_text(json.dumps(BRAIN))), "run/task.json", "did not make it")
for name, prepare, words, names, says in [
        ("another word", lambda f: None, "make --data new", "make", "known are new"),
        ("no --data", lambda f: None, "new", "--data", "required"),
        ("a name with a slash", lambda f: None, "new --data run --name a/b", "a/b", "letters, digits"),
        ("a file for a folder", lambda f: None, "new --data grid.yaml", "grid.yaml", "no folder|make it first"),
        ("a folder in the way", lambda f: (f / "task.json").mkdir(), "new --data run", "run/task.json", "a folder"),
        ("somebody's file in the way", lambda f: (f / "task.json").write_text(json.dumps(BRAIN)),
         "new --data run --force", "run/task.json", "not made by cssgan")]:
    row("task", name, run(prepare, words), names, says)


@pytest.mark.parametrize("command, bad", ROWS, ids=[bad.name for _, bad in ROWS])
def test_refused_at_once(command, bad, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "there"
    folder.mkdir()
    refuses(MAIN[command], bad, folder, capfd)


def test_enough_rows(): assert len(ROWS) >= 100 and len({bad.name for _, bad in ROWS}) == len(ROWS)
