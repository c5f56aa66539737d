"The commands: what they promise to scripts (form, exit status, one line on stderr) and to newcomers (help)."
import gzip
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scans import write_dicom

from cssgan.cli import commands as cli
from cssgan.cli import evaluate, export, parsing, runs, sweeps, tasks, training
from cssgan.cli import phantoms as phantom_commands
from cssgan.cli import scans as scan_commands
from cssgan.data.finding import from_manifest
from cssgan.data.folders import from_folder
from cssgan.phantoms.scanners import phantom
from cssgan.scans.files import write_label, write_volume
from cssgan.scans.volumes import Grid

TINY = Grid((24, 24, 16), (7.0, 7.0, 8.0))
COMMANDS = cli.COMMANDS


@pytest.fixture
def run(capsys):
    "Run a command as its console script would: (exit status, stdout, stderr)."
    def run(command, *words):
        capsys.readouterr()
        try: status = COMMANDS[command]([str(w) for w in words])
        except SystemExit as e: status = e.code
        out, err = capsys.readouterr()
        return status, out, err
    return run


@pytest.fixture
def fails(run):
    "Run a command that must fail: its one line on stderr."
    def fails(command, *words, says="", status=1):
        found, out, err = run(command, *words)
        assert (found, out, err.count("\n")) == (status, "", 1), (found, out, err)
        assert err.startswith(f"{command}: ") and "Traceback" not in err, err
        assert says in err, err
        return err
    return fails


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    "A tilted CT and MRI as files."
    folder = tmp_path_factory.mktemp("scans")
    tilt = nib.affines.from_matvec(np.array([[-0.98, 0.2, 0], [-0.2, -0.98, 0], [0, 0, 1.0]]), (80, 90, -60))
    for seed, modality in ((2, "CT"), (3, "MRI")):
        scan = phantom(seed, modality, TINY)
        write_volume(replace(scan, affine=tilt @ np.diag([7, 7, 8, 1.0])), folder / f"{modality}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    "What cssgan_phantom writes: three patients of each modality."
    folder = tmp_path_factory.mktemp("phantoms") / "deep"
    assert cli.phantom_main(["--out", str(folder), "--n", "3", "--grid", "small"]) == 0
    return folder


@pytest.fixture
def data(phantoms, tmp_path):
    "A copy of them, to train on or to spoil."
    return shutil.copytree(phantoms, tmp_path / "data")


# ---- help

@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_a_newcomer_what_to_type(run, command):
    status, out, err = run(command, "--help")
    assert status == 0 and err == "" and out.count(f"\n  {command} ") >= 2 and "examples:" in out and "None" not in out
    assert max(map(len, out.splitlines())) < 120


@pytest.mark.parametrize("command", COMMANDS)
def test_version(run, command):
    import cssgan
    assert run(command, "--version") == (0, f"{command} {cssgan.__version__}\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_of_the_help_can_be_parsed(command, monkeypatch):
    jobs = []
    for module in (phantom_commands, tasks, training, scan_commands, sweeps, evaluate, export):
        monkeypatch.setattr(module, "attempt", lambda name, job, *_: jobs.append(name) or 0)
    texts = (training.TRAIN_EXAMPLES, scan_commands.TRANSLATE_EXAMPLES, scan_commands.SEGMENT_EXAMPLES,
             phantom_commands.PHANTOM_EXAMPLES, tasks.TASK_EXAMPLES, sweeps.SWEEP_EXAMPLES,
             evaluate.EVALUATE_EXAMPLES, export.EXPORT_EXAMPLES)
    for example in "\n".join(texts).splitlines():
        name, *words = example.split()
        if name == command: assert COMMANDS[command](words) == 0
    assert len(jobs) >= 2 and set(jobs) == {command}


def test_the_installed_programs_are_these():
    settings = (Path(__file__).parent.parent / "settings.ini").read_text()
    for name, main in COMMANDS.items(): assert f"{name}=cssgan.cli.commands:{main.__name__}\n" in settings + "\n"


def test_help_does_not_wait_for_torch():
    code = ("import sys, cssgan.cli.commands\ntry: cssgan.cli.commands.translate_main(['--help'])\n"
            "except SystemExit: pass\nprint(sorted({'torch', 'monai', 'numpy'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.endswith("[]\n")


# ---- the fixed forms

@pytest.mark.parametrize("modality, other", [("CT", "MRI"), ("MRI", "CT")])
def test_translate(run, scans, checkpoint, tmp_path, modality, other):
    scan, out = scans / f"{modality}.nii.gz", tmp_path / "out.nii.gz"
    status, said, err = run("cssgan_translate", scan, "--checkpoint", checkpoint, "--to", other, "--out", out)
    assert (status, err) == (0, "") and str(out) in said and said.count("\n") == 1
    here, there = nib.load(scan), nib.load(out)
    assert here.shape == there.shape and np.array_equal(here.affine, there.affine)
    if other == "CT": assert there.get_data_dtype() == np.int16 and there.get_fdata().min() >= -1024 and "in HU" in said
    else: assert there.get_data_dtype() == np.float32 and there.get_fdata().min() >= 0


def doubted(err):
    "Does stderr hold a doubt about the heart, in one line, and nothing else?"
    return err.startswith("cssgan_segment: warning: ") and "--centre X Y Z" in err and err.count("\n") == 1


@pytest.mark.parametrize("modality", ["CT", "MRI"])
@pytest.mark.parametrize("name", ["out.nii.gz", "out.nii"])
def test_segment(run, scans, checkpoint, tmp_path, modality, name):
    scan, out = scans / f"{modality}.nii.gz", tmp_path / name
    status, said, err = run("cssgan_segment", scan, "--checkpoint", checkpoint, "--modality", modality, "--out", out)
    # these networks learned nothing
    assert status == 0 and doubted(err) and "no heart was found" in said and " ml" in said
    here, there = nib.load(scan), nib.load(out)
    assert here.shape == there.shape and np.array_equal(here.affine, there.affine)
    assert there.get_data_dtype() == np.uint8 and there.get_fdata().max() <= 5


def test_a_dicom_folder_in_a_nifti_file_over_it_out(run, fails, scans, checkpoint, tmp_path):
    import SimpleITK as sitk
    scan = nib.load(scans / "CT.nii.gz")
    folder = write_dicom(tmp_path / "series 2", scan.get_fdata(), scan.affine)
    assert run("cssgan_segment", folder, "--checkpoint", checkpoint, "--modality", "CT", "--out",
               tmp_path / "label.nii.gz")[0] == 0
    assert run("cssgan_translate", folder, "--checkpoint", checkpoint, "--to", "MRI", "--out",
               tmp_path / "mri.nii")[0] == 0
    for path in folder.iterdir():
        plane = sitk.ReadImage(str(path))
        for out in (sitk.ReadImage(str(tmp_path / "label.nii.gz")), sitk.ReadImage(str(tmp_path / "mri.nii"))):
            there = np.array([out.TransformPhysicalPointToContinuousIndex(plane.TransformIndexToPhysicalPoint(i))
                              for i in ((0, 0, 0), (23, 5, 0))])
            assert np.abs(there - np.rint(there)).max() < 1e-3
            assert np.allclose(there[1] - there[0], (23, 5, 0), atol=1e-3)
            assert out.GetSize()[:2] == plane.GetSize()[:2]
    fails("cssgan_translate", folder, "--checkpoint", checkpoint, "--to", "CT", "--out", tmp_path / "ct.nii",
          says="is CT by its DICOM tag")
    fails("cssgan_segment", scans, "--checkpoint", checkpoint, "--modality", "CT", "--out", tmp_path / "a.nii",
          says="holds 2 scans")


def test_options_may_come_first_and_a_centre_may_be_negative(run, scans, checkpoint, tmp_path):
    words = ("--checkpoint", checkpoint, "--to", "MRI", "--centre", "-4.5", "3", "-1",
             "--out", tmp_path / "a.nii", scans / "CT.nii.gz")
    assert run("cssgan_translate", *words)[0] == 0


def test_same_command_same_bytes(run, scans, checkpoint, tmp_path):
    for name in ("a", "b"):
        run("cssgan_translate", scans / "CT.nii.gz", "--checkpoint", checkpoint, "--to", "MRI", "--out",
            tmp_path / f"{name}.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_as_a_program(scans, checkpoint, tmp_path):
    "In a process of its own: warnings of third parties stay away, and the status arrives."
    def program(*words):
        return subprocess.run([sys.executable, "-c",
                               "import sys; from cssgan.cli.commands import segment_main; sys.exit(segment_main())",
                               *map(str, words)], capture_output=True, text=True)
    good = program(scans / "MRI.nii.gz", "--checkpoint", checkpoint, "--modality", "MRI", "--out",
                   tmp_path / "l.nii.gz")
    assert good.returncode == 0 and doubted(good.stderr) and (tmp_path / "l.nii.gz").exists()
    bad = program(scans / "MRI.nii.gz", "--checkpoint", checkpoint, "--modality", "CT", "--out", tmp_path / "m.nii.gz")
    assert bad.returncode == 1 and bad.stderr.count("\n") == 1 and bad.stdout == ""
    assert not (tmp_path / "m.nii.gz").exists()


# ---- what is wrong is said in one line, and nothing is written

def spoilt(folder, scans, how):
    "A scan that cannot be used."
    image, path = nib.load(scans / "CT.nii.gz"), folder / "bad.nii.gz"
    hu = image.get_fdata()
    if how == "missing": return path
    if how == "truncated": path.write_bytes((scans / "CT.nii.gz").read_bytes()[:3000])
    elif how in ("empty", "text"): path.write_bytes(b"" if how == "empty" else b"this is no scan" * 100)
    elif how == "folder": path.mkdir()
    else:
        affine = image.affine.copy()
        if how == "NaN": hu[3, 4, 5] = np.nan
        if how == "infinity": hu[3, 4, 5] = np.inf
        if how == "2D": hu = hu[..., 0]
        if how == "4D": hu = np.stack([hu, hu], -1)
        if how == "constant": hu[:] = 40
        if how == "not HU": hu = hu + 1024
        if how == "absurd spacing": affine[:3, :3] *= 100
        new = nib.Nifti1Image(hu.astype(np.float32), affine)
        if how == "singular":
            new.header.set_sform(affine * np.array([[1], [0], [1], [1]]), 1), new.header.set_qform(None, 0)
        new.to_filename(path)
        if how == "singular":  # nibabel writes the image's own affine: spoil what stands in the file
            raw = nib.Nifti1Image.from_bytes(gzip.decompress(path.read_bytes()))
            raw.header["srow_y"], raw.header["sform_code"], raw.header["qform_code"] = raw.header["srow_x"], 1, 0
            path.write_bytes(raw.header.binaryblock + b"\0" * 4 + hu.astype(np.float32).tobytes(order="F"))
    return path


@pytest.mark.parametrize("how", ["missing", "empty", "truncated", "text", "folder", "2D", "4D", "NaN", "infinity",
                                 "constant", "absurd spacing", "singular", "not HU"])
def test_bad_scan(fails, scans, checkpoint, tmp_path, how):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    scan = spoilt(tmp_path / "in", scans, how)
    fails("cssgan_translate", scan, "--checkpoint", checkpoint, "--to", "MRI", "--out", tmp_path / "out" / "o.nii.gz",
          says="bad.nii.gz")
    fails("cssgan_segment", scan, "--checkpoint", checkpoint, "--modality", "CT", "--out",
          tmp_path / "out" / "o.nii.gz", says="bad.nii.gz")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("how", ["missing", "empty folder", "a file", "cut", "another shape", "pickle", "path",
                                 "no grid"])
def test_bad_checkpoint(fails, scans, checkpoint, tmp_path, how):
    bad = tmp_path / "bad"
    if how not in ("missing", "empty folder", "a file"): shutil.copytree(checkpoint, bad)
    if how == "empty folder": bad.mkdir()
    if how == "a file": bad.touch()
    weights = next(bad.glob("weights*"), None)
    def change(old, new): (bad / "checkpoint.json").write_text((bad / "checkpoint.json").read_text().replace(old, new))
    if how == "cut": weights.write_bytes(weights.read_bytes()[:500])
    if how == "another shape": change('"width": 4', '"width": 6')
    if how == "pickle": (bad / "weights.pt").write_bytes(pickle.dumps(os.getcwd))
    if how == "path": change(weights.name, "../" + weights.name)
    if how == "no grid": change('"grid"', '"grit"')
    fails("cssgan_segment", scans / "CT.nii.gz", "--checkpoint", bad, "--modality", "CT", "--out",
          tmp_path / "o.nii.gz", says=str(bad))
    assert not (tmp_path / "o.nii.gz").exists()


@pytest.mark.parametrize("name", ["none/o.nii.gz", "file/o.nii.gz", "o.png", "o", "none/o.nrrd", "o.mhd"])
def test_bad_output_is_said_before_anything_is_computed(fails, scans, checkpoint, tmp_path, monkeypatch, name):
    monkeypatch.setattr("cssgan.inference.apply.load_checkpoint", lambda *_: pytest.fail("computed"))
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for command, option, modality in (("cssgan_translate", "--to", "MRI"), ("cssgan_segment", "--modality", "CT")):
        fails(command, scans / "CT.nii.gz", "--checkpoint", checkpoint, option, modality, "--out", tmp_path / name,
              says="cannot be written")
    assert sorted(tmp_path.rglob("*")) == before


def test_the_scan_is_never_replaced(fails, scans, checkpoint, tmp_path):
    shutil.copy(scans / "CT.nii.gz", tmp_path / "ct.nii.gz")
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "ct.nii.gz")
    for out in (tmp_path / "ct.nii.gz", tmp_path / "." / "ct.nii.gz", tmp_path / "link.nii.gz"):
        fails("cssgan_translate", tmp_path / "ct.nii.gz", "--checkpoint", checkpoint, "--to", "MRI", "--out", out,
              says="is the scan itself")


def test_only_a_result_of_ours_is_replaced_and_only_when_asked(run, fails, scans, checkpoint, tmp_path):
    for command, option, modality in (("cssgan_translate", "--to", "MRI"), ("cssgan_segment", "--modality", "CT")):
        out = tmp_path / f"{command}.nii.gz"
        words = command, scans / "CT.nii.gz", "--checkpoint", checkpoint, option, modality, "--out", out
        assert run(*words)[0] == 0
        before = out.read_bytes()
        fails(*words, says="--force")
        assert run(*words, "--force")[0] == 0 and out.read_bytes() == before
        nib.save(nib.load(scans / "CT.nii.gz").__class__(np.zeros((4, 4, 4), np.int16), np.eye(4)), out)
        foreign = out.read_bytes()
        fails(*words, "--force", says="not made by cssgan")
        assert out.read_bytes() == foreign


def test_what_came_meanwhile_is_not_replaced_either(fails, scans, checkpoint, tmp_path, monkeypatch):
    from cssgan.inference import apply as inference
    whole, out = inference.run_segmentor, tmp_path / "o.nii"
    def meanwhile(*args):
        out.write_text("notes")
        return whole(*args)
    monkeypatch.setattr(inference, "run_segmentor", meanwhile)
    monkeypatch.setattr(inference, "say_doubt", lambda *_: None)
    fails("cssgan_segment", scans / "CT.nii.gz", "--checkpoint", checkpoint, "--modality", "CT", "--out", out,
          says="exists")
    assert out.read_text() == "notes"


def test_millilitres_are_those_of_the_voxels(run, scans, checkpoint, tmp_path, monkeypatch):
    "A tilted gantry: slices are nearer to each other than the affine's columns are long."
    from cssgan.inference import apply as inference
    from cssgan.scans.volumes import Volume
    affine = np.diag([1.5, 1.5, 2.0, 1.0])
    affine[1, 2] = 2 * np.tan(np.radians(30))
    label = np.zeros((20, 20, 20), np.uint8)
    label[5:15, 5:15, 5:15] = 1
    found = Volume(np.zeros(label.shape, np.float32), affine, "CT", label)
    monkeypatch.setattr(inference, "run_segmentor", lambda *_: inference.Segmented(found, None))
    said = run("cssgan_segment", scans / "CT.nii.gz", "--checkpoint", checkpoint, "--modality", "CT", "--out",
               tmp_path / "l.nii")[1]
    assert "LV 4 ml, RV 0 ml" in said and round(1000 * abs(np.linalg.det(affine[:3, :3])) / 1000, 1) == 4.5, said


def test_the_wrong_modality_is_said(fails, scans, checkpoint, tmp_path):
    fails("cssgan_translate", scans / "CT.nii.gz", "--checkpoint", checkpoint, "--to", "CT", "--out",
          tmp_path / "o.nii.gz", says="looks like CT")
    fails("cssgan_segment", scans / "MRI.nii.gz", "--checkpoint", checkpoint, "--modality", "CT", "--out",
          tmp_path / "o.nii.gz", says="not in HU")
    fails("cssgan_segment", scans / "CT.nii.gz", "--checkpoint", checkpoint, "--modality", "CT", "--out",
          tmp_path / "o.nii.gz", "--centre", "9999", "0", "0", says="lies outside the scan")
    fails("cssgan_segment", scans / "CT.nii.gz", "--checkpoint", checkpoint, "--modality", "CT", "--out",
          tmp_path / "o.nii.gz", "--centre", "nan", "0", "0", status=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command, words, says", [
    ("cssgan_task", "", "new"), ("cssgan_task", "new", "--data"), ("cssgan_task", "old --data d", "known are new"),
    ("cssgan_translate", "", "required"), ("cssgan_translate", "ct.nii --out o.nii", "--to"),
    ("cssgan_segment", "ct.nii --checkpoint d --modality CT", "--out"),
    ("cssgan_translate", "a.nii b.nii --checkpoint d --to MRI --out o.nii", "b.nii"),
    ("cssgan_translate", "a.nii --checkpoint d --to MRI --out o.nii --center 1 2 3", "--center"),
    ("cssgan_segment", "a.nii --checkpoint d --modality CT --out o.nii --centre 1 2", "--centre"),
    ("cssgan_segment", "a.nii --checkpoint d --modality CT --out o.nii --centre 1 2 here", "here"),
    ("cssgan_phantom", "", "--out"), ("cssgan_phantom", "--out d --samples e", "--samples"),
    ("cssgan_phantom", "--out d --n many", "many"), ("cssgan_phantom", "--out d --modality PET", "PET"),
    ("cssgan_phantom", "--out d --clinic CT=tall", "CT=tall"), ("cssgan_phantom", "--out d --clinic PET=normal", "PET"),
    ("cssgan_phantom", "--out d --grid huge", "huge"), ("cssgan_phantom", "--out d --labels l.nii --table mine",
                                                        "mine"),
    ("cssgan_train", "", "--data"), ("cssgan_train", "--data d", "--out"), ("cssgan_train", "--out d", "--data"),
    ("cssgan_train", "--resume", "--out"), ("cssgan_train", "--resume a --out b", "one folder"),
    ("cssgan_train", "--data d --out o --preset papre", "did you mean paper?"),
    ("cssgan_train", "--data d --out o --updats 5", "did you mean --updates?"),
    ("cssgan_segment", "a.nii --modality CT --out b.nii --devise cpu", "did you mean --device?"),
    ("cssgan_train", "--data d --out o --learning-rate 3", "--learning-rate"),
    ("cssgan_train", "--data d --out o --seed one", "one"), ("cssgan_train", "--data d --out o --fraction some",
                                                             "some")])
def test_a_mistyped_command(fails, tmp_path, monkeypatch, command, words, says):
    monkeypatch.chdir(tmp_path)
    assert "--help" in fails(command, *words.split(), says=says, status=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error, says", [(ValueError("two\n  lines"), "two lines"),
                                         (OSError(28, "No space left on device", "f.nii"), "No space left"),
                                         (FloatingPointError("nan"), "nan"), (MemoryError(), "MemoryError")])
def test_foreseen_errors_are_one_line(capsys, error, says):
    def job(): raise error
    assert parsing.attempt("cssgan_test", job) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith("cssgan_test: ") and says in err


@pytest.mark.parametrize("said", ["CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation",
                                  "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate "
                                  "memory: you tried to allocate 9 bytes. Error code 12",
                                  "DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes.",
                                  "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"])
def test_pytorch_without_memory_is_one_line_with_a_cure(capsys, said):
    def job(): raise RuntimeError(said)
    assert parsing.attempt("cssgan_test", job) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "memory" in err and "--preset" in err


@pytest.mark.parametrize("said", ["size mismatch", "CUDA error: an illegal memory access was encountered",
                                  "unsupported memory format"])
def test_other_errors_of_pytorch_keep_their_traceback(said):
    def job(): raise RuntimeError(said)
    with pytest.raises(RuntimeError): parsing.attempt("cssgan_test", job)


def test_interrupted_is_130_and_says_how_to_go_on(run, data, tmp_path, monkeypatch):
    def stop(*_, **__): raise KeyboardInterrupt
    monkeypatch.setattr("cssgan.training.trainer.fit", stop)
    status, out, err = run("cssgan_train", "--data", data, "--out", tmp_path / "run", "--preset", "smoke", "--quiet")
    assert status == 130 and err == f"cssgan_train: interrupted (go on with cssgan_train --resume {tmp_path / 'run'})\n"


SLOW = """import sys, time
import cssgan.scans.files as files, nibabel as nib
whole = nib.Nifti1Image.to_stream
def slow(image, stream):
    print("writing", flush=True)
    {}
    return whole(image, stream)
nib.Nifti1Image.to_stream = slow
from cssgan.cli.commands import {} as main
sys.exit(main(sys.argv[1:]))"""
SWALLOWED = """
    if hasattr(slow, "swallowed"): return whole(image, stream)
    slow.swallowed = True
    try: time.sleep(60)
    except BaseException: pass"""


def interrupted(main, number, waiting, *words):
    "What a program says that is asked to end while it writes a file: (status, stderr)."
    program = subprocess.Popen([sys.executable, "-c", SLOW.format(waiting, main), *map(str, words)],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert program.stdout.readline() == "writing\n", program.communicate()
    program.send_signal(number)
    _, err = program.communicate(timeout=60)
    return program.returncode, err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_asked_to_end_while_a_file_is_written(tmp_path, number):
    status, err = interrupted("phantom_main", number, "time.sleep(60)", "--out", tmp_path / "set", "--n", 1, "--grid",
                              "small")
    assert status == 130 and err == "cssgan_phantom: interrupted\n"
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_an_interruption_that_a_library_swallowed_is_none_the_less_one(tmp_path):
    status, err = interrupted("phantom_main", signal.SIGINT, SWALLOWED, "--out", tmp_path / "set", "--n", 1, "--grid",
                              "small", "--modality", "CT")
    assert status == 130 and err == "cssgan_phantom: interrupted\n"


def test_nohup_is_deaf_to_the_terminal(tmp_path):
    code = ("import os, signal, sys\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\nfrom cssgan.cli.parsing import "
            "attempt\n"
            "sys.exit(attempt('cssgan_test', lambda: os.kill(os.getpid(), signal.SIGHUP)))")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_interrupted_on_the_way_out_is_not_status_0():
    "Python itself would ignore Ctrl-C once its threads are over."
    code = ("import atexit, os, signal, sys, time\n"
            "atexit.register(lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(5)))\n"
            "from cssgan.cli.parsing import attempt\nsys.exit(attempt('cssgan_test', lambda: None))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_our_warnings_are_told_once_and_nobody_elses(capsys):
    from cssgan.guard import warn
    def job():
        warnings.warn("deprecated")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            for text in ("the heart was presumed at 1 2 3: name --centre", "\x1b[2Jred "
                         + "x" * 1000, "the heart was presumed at 1 2 3: name --centre"):
                warn(text)
    assert parsing.attempt("cssgan_test", job) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[0] == "cssgan_test: warning: the heart was presumed at 1 2 3: name --centre"
    assert lines[1].startswith("cssgan_test: warning: \\x1b[2Jred x")
    assert all(line.isprintable() and len(line) < 340 for line in lines)


def test_names_that_no_terminal_can_print(monkeypatch):
    code = ("from cssgan.cli.parsing import print_line, print_error\n"
            "print_line('caf\\udce9 \u2192 \x1b[2J')\nprint_error('c', 'caf\\udce9 \u2192')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and "\\x1b[2J" in done.stdout and "caf" in done.stderr


def test_what_nobody_foresaw_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError): parsing.attempt("cssgan_test", lambda: 1 / 0)


# ---- phantoms

def test_phantoms_make_a_folder_that_can_be_trained_on(data):
    cases = from_folder(data)
    assert [c.patient for c in cases] == [f"phantom_{k:05d}" for k in (0, 2, 4, 1, 3, 5)]
    assert nib.load(cases[0].image).shape == (48, 48, 32) and nib.load(cases[0].image).get_data_dtype() == np.int16


def test_phantoms_are_the_same_every_time_and_a_seed_away_from_others(run, tmp_path):
    for name, seed in (("a", 4), ("b", 4), ("c", 5)):
        assert run("cssgan_phantom", "--out", tmp_path / name, "--n", 1, "--modality", "CT", "--seed", seed, "--grid",
                   "small")[0] == 0
    files = {name: {p.name: p.read_bytes() for p in (tmp_path / name).rglob("*.nii.gz")} for name in "abc"}
    assert files["a"] == files["b"] and len(files["a"]) == 2 and not set(files["a"]) & set(files["c"])
    assert not (tmp_path / "a" / "MRI").exists()


def test_a_label_map_becomes_a_phantom_in_both_modalities(run, tmp_path):
    heart = phantom(3, "CT", TINY)
    write_label(heart.label, heart.affine, tmp_path / "heart.nii.gz")
    status, _, err = run("cssgan_phantom", "--out", tmp_path / "set", "--labels", tmp_path / "heart.nii.gz", "--grid",
                         "small")
    ct, mri = from_folder(tmp_path / "set")
    assert (status, err) == (0, "") and ct.patient == mri.patient == "heart"
    assert np.array_equal(nib.load(ct.label).get_fdata(), nib.load(mri.label).get_fdata())
    assert nib.load(ct.label).get_fdata().max() == 5


@pytest.mark.parametrize("words, says", [("--labels none.nii.gz", "none.nii.gz does not exist"),
                                         ("--labels strange.nii.gz", "strange.nii.gz has label values"),
                                         ("--labels strange.nii.gz --table MM-WHS", "does not know"),
                                         ("--labels nothing.nii.gz", "nothing.nii.gz")])
def test_phantoms_that_cannot_be(fails, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    heart = phantom(3, "CT", TINY)
    write_label(heart.label * 3, heart.affine, "strange.nii.gz")
    write_label(heart.label * 0, heart.affine, "nothing.nii.gz")
    fails("cssgan_phantom", "--out", "set", "--grid", "small", *words.split(), says=says)
    assert not list(Path("set").rglob("*.nii.gz"))


def test_phantoms_into_what_is_no_folder(fails, tmp_path):
    (tmp_path / "file").touch()
    for words in (("--out", tmp_path / "file", "--grid", "small"), ("--samples", tmp_path / "file")):
        fails("cssgan_phantom", *words, says="cannot be made")


def test_phantoms_are_replaced_only_when_asked(run, fails, tmp_path):
    words = "--out", tmp_path, "--n", 1, "--grid", "small", "--modality", "CT"
    assert run("cssgan_phantom", *words)[0] == 0
    file = tmp_path / "CT/phantom_00000_image.nii.gz"
    before = file.read_bytes()
    fails("cssgan_phantom", *words, says="--force")
    assert run("cssgan_phantom", *words, "--force")[0] == 0 and file.read_bytes() == before
    file.write_text("notes")
    fails("cssgan_phantom", *words, "--force", says="not made by cssgan")
    assert file.read_text() == "notes"
    fails("cssgan_phantom", "--out", tmp_path, "--labels", tmp_path / "CT/phantom_00000_label.nii.gz", "--grid",
          "small", "--modality", "CT", "--n", 1, "--table", "MM-WHS", says="does not know")


@pytest.mark.data
def test_a_real_heart_becomes_a_phantom_in_both_modalities(run, real, tmp_path):
    assert run("cssgan_phantom", "--out", tmp_path, "--labels", real / "rodero01/labels_1mm.nii.gz")[0] == 0
    for case in from_folder(tmp_path): assert set(np.unique(nib.load(case.label).get_fdata())) == {0, 1, 2, 3, 4, 5}


# ---- training

def test_train_then_use_it(run, data, tmp_path):
    words = "--data", data, "--out", tmp_path / "run", "--preset", "smoke", "--cache", tmp_path / "cache", "--seed", 3
    status, out, _ = run("cssgan_train", *words)
    assert status == 0 and str(tmp_path / "run" / "best") in out
    assert [line.split(":")[0] for line in out.splitlines()] == [
        "CT", "MRI", "phases", "segmentors 1/1", "generators 1/1", "joint 1/2", "joint 2/2", "trained"]
    cases = from_manifest(tmp_path / "run" / "cases.csv")
    assert len(cases) == 6 and {c.split for c in cases} == {"train", "valid", "test"}
    asked, kept = (json.loads((tmp_path / "run" / name).read_text()) for name in ("train.json", "last/checkpoint.json"))
    assert asked["seed"] == kept["config"]["seed"] == 3
    scan = next((data / "CT").glob("*_image.nii.gz"))
    assert run("cssgan_translate", scan, "--checkpoint", tmp_path / "run", "--to", "MRI", "--out",
               tmp_path / "o.nii.gz")[0] == 0


def weights(folder):
    "The names of a run's tensors, which their content decides."
    return [json.loads((folder / part / "checkpoint.json").read_text())["files"] for part in ("best", "last")]


@pytest.mark.parametrize("again", ["--resume {run}", "--data {data} --out {run} --resume", "--out {run} --resume"],
                         ids=["folder", "all of it", "flag"])
def test_an_interrupted_training_goes_on_to_the_same_end(run, fails, data, tmp_path, monkeypatch, again):
    from cssgan.training import run as training
    rest = "--quiet", "--cache", tmp_path / "cache"
    words = "--data", data, "--preset", "smoke", "--fraction", "CT=1", *rest
    assert run("cssgan_train", *words, "--out", tmp_path / "whole")[0] == 0
    step, calls = training.step, []
    def is_interrupted(*args):
        calls.append(1)
        if len(calls) == 3: os.kill(os.getpid(), signal.SIGINT)
        return step(*args)
    monkeypatch.setattr(training, "step", is_interrupted)
    status, _, said = run("cssgan_train", *words, "--out", tmp_path / "run")
    assert status == 130 and len(calls) == 3 and str(tmp_path / "run" / "last") in said
    assert f"--resume {tmp_path / 'run'}" in said and said.count("\n") == 1
    monkeypatch.undo()
    fails("cssgan_train", *words, "--out", tmp_path / "run", says="already holds a run")
    assert run("cssgan_train", *again.format(run=tmp_path / "run", data=data).split(), *rest)[0] == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_two_processes_train_one_run(run, fails, data, tmp_path):
    words = "--data", data, "--preset", "smoke", "--quiet", "--cache", tmp_path / "cache", "--out", tmp_path / "run"
    status, out, err = run("cssgan_train", *words, "--devices", 2)
    assert status == 0 and out.count("\n") == 1 and "Traceback" not in err
    assert (tmp_path / "run" / "best" / "checkpoint.json").exists()
    fails("cssgan_train", *words[:-1], tmp_path / "other", "--devices", 0, says="from 1", status=2)


def test_a_data_set_is_not_written_over(fails, run, data, tmp_path, monkeypatch):
    from cssgan.data.finding import write_manifest
    from cssgan.data.splits import with_splits
    monkeypatch.chdir(tmp_path)
    write_manifest(with_splits(from_folder("data")), "cases.csv")
    mine = Path("cases.csv").read_bytes()
    fails("cssgan_train", "--data", "cases.csv", "--out", ".", "--preset", "smoke", says="cases.csv")
    assert Path("cases.csv").read_bytes() == mine and sorted(p.name for p in Path().iterdir()) == ["cases.csv", "data"]


class Killed(BaseException): "As SIGKILL would: nothing is put away."


@pytest.mark.parametrize("writes", range(5))
def test_a_run_that_was_killed_before_its_first_checkpoint_can_begin_again(run, fails, data, tmp_path, monkeypatch,
                                                                           writes):
    from cssgan.data import finding
    words = "--data", data, "--out", tmp_path / "run", "--preset", "smoke", "--quiet", "--cache", tmp_path / "cache"
    left, whole = [writes], runs.write_whole
    def dies(path, content):
        if not left[0]: raise Killed
        left[0] -= 1
        whole(path, content)
    monkeypatch.setattr(runs, "write_whole", dies)
    monkeypatch.setattr(finding, "write_whole", dies)
    monkeypatch.setattr("cssgan.training.trainer.fit", lambda *_, **__: dies(None, None) if not left[0] else None)
    with pytest.raises(Killed): run("cssgan_train", *words)
    assert len([p for p in (tmp_path / "run").glob("[!.]*")]) == writes
    monkeypatch.undo()
    if writes in (1, 2, 3): fails("cssgan_train", "--resume", tmp_path / "run", says="begin again")
    assert run("cssgan_train", *words, "--seed", 5)[0] == 0
    assert json.loads((tmp_path / "run/train.json").read_text())["seed"] == 5


def test_two_commands_cannot_begin_in_one_folder(fails, data, tmp_path):
    from cssgan.guard import folder_lock
    begun = json.dumps({"data": "phantom-few", "preset": "smoke", "seed": 7})
    (tmp_path / "run").mkdir()
    (tmp_path / "run/train.json").write_text(begun)
    with folder_lock(tmp_path / "run", name=runs.LOCK):
        fails("cssgan_train", "--data", data, "--out", tmp_path / "run", "--preset", "smoke", "--quiet",
              says="another process")
        shutil.copy(next((data / "CT").iterdir()), tmp_path / "x")
    assert (tmp_path / "run/train.json").read_text() == begun and not (tmp_path / "run/cases.csv").exists()


def test_what_is_read_as_what_is_said_before_training(run, data, tmp_path, monkeypatch):
    monkeypatch.setattr("cssgan.training.trainer.fit", lambda *_, **__: None)
    monkeypatch.setattr(training, "report_result", lambda *_: None)
    label = nib.load(data / "CT/phantom_00002_label.nii.gz")
    ml = (np.asarray(label.dataobj) == 1).sum() * abs(np.linalg.det(label.affine)) / 1000
    table = from_folder(data)
    from cssgan.data.finding import write_manifest
    from cssgan.data.splits import with_splits
    write_manifest([replace(c, label="") if c.modality == "MRI" else c for c in with_splits(table)],
                   tmp_path / "all.csv")
    status, out, err = run("cssgan_train", "--data", tmp_path / "all.csv", "--out", tmp_path / "run", "--preset",
                           "smoke")
    ct, mri, phases = out.splitlines()
    assert status == 0 and err.split("\r")[-1].strip() == ""
    assert f"phantom_00002_label.nii.gz: 1 LV {ml:.0f} ml, 2 RV" in ct and "no labels" in mri
    assert phases.startswith("phases: segmentors 1 epoch (1 update)") and phases.endswith("an epoch has 1 pair")
    assert run("cssgan_train", "--data", tmp_path / "all.csv", "--out", tmp_path / "quiet", "--preset", "smoke",
               "--quiet")[1] == ""


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_no_score_of_a_domain_without_labels(capsys, monkeypatch, nothing):
    monkeypatch.setattr("cssgan.training.checkpoints.read_about",
                        lambda _: {"history": [{"dice_CT": 71.25, "dice_MRI": nothing}],
                                   "task": {"domains": [{"name": "CT"}, {"name": "MRI"}]}})
    training.report_result(Path("run"))
    assert capsys.readouterr().out == ("trained: Dice on the validation cases is 71.2 % on CT; there are no labels to "
                                       "judge MRI by; the checkpoint is run/best\n")


def test_a_run_of_generators_alone_ends_with_what_it_trained(data, run, tmp_path):
    words = [word for phase in ("segmentors", "joint") for word in ("--set", f"phases.{phase}=null")]
    status, out, err = run("cssgan_train", "--data", data, "--out", tmp_path / "run", "--preset", "smoke", *words)
    assert status == 0 and out.splitlines()[-1].startswith("trained the generators; the checkpoint is"), err


@pytest.mark.parametrize("words", [("--modality", "MR"), ("--clinic", "MR=normal", "--modality", "MR"),
                                   ("--modality", "MR", "MRI")])
def test_phantoms_may_be_asked_for_in_the_word_of_dicom(words, run, tmp_path):
    status, _, err = run("cssgan_phantom", "--out", tmp_path / "new", "--n", 1, "--grid", "small", *words)
    assert status == 0, err
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["MRI"]


def test_a_share_may_be_asked_for_in_the_word_of_dicom(tmp_path):
    from contextlib import ExitStack

    from cssgan.cli.runs import begin_run, reopen_run
    from cssgan.guard import InputError
    asked = {"data": "phantom-few", "preset": "smoke", "fraction": {"MR": 0.5}}
    with ExitStack() as until: plan = begin_run(tmp_path / "run", asked, {}, until)
    assert plan.options["fraction"] == {"MRI": 0.5}
    assert sum((case.modality, case.split) == ("MRI", "train") for case in plan.cases) == 4
    for word in ("MR", "MRI"):
        with ExitStack() as until: again = reopen_run(tmp_path / "run", asked | {"fraction": {word: 0.5}}, {}, until)
        assert again.options["fraction"] == {"MRI": 0.5}
    with ExitStack() as until, pytest.raises(InputError, match="names a domain twice"):
        begin_run(tmp_path / "other", asked | {"fraction": {"MR": 0.5, "MRI": 0.5}}, {}, until)


def test_clinics_may_have_different_patients(run, tmp_path):
    from cssgan.phantoms.clinic import clinical_phantom
    from cssgan.scans.volumes import SMALL_GRID
    words = "--n", 2, "--grid", "small", "--clinic", "CT=dilated"
    assert run("cssgan_phantom", "--out", tmp_path, *words)[0] == 0
    for modality, seed, population in ("CT", 2, "dilated"), ("MRI", 3, "any"):
        drawn = clinical_phantom(seed, modality, SMALL_GRID, population=population)
        stored = nib.load(tmp_path / modality / f"phantom_{seed:05d}_label.nii.gz").get_fdata()
        assert np.array_equal(np.count_nonzero(stored), np.count_nonzero(drawn.label))
    says = run("cssgan_phantom", "--out", tmp_path / "other", "--clinic", "--labels", tmp_path / "l.nii")[2]
    assert "leave --labels and --samples out" in says and not (tmp_path / "other").exists()


def test_going_on_otherwise_is_refused(fails, run, data, tmp_path, monkeypatch):
    monkeypatch.setattr("cssgan.training.trainer.fit", lambda *_, **__: None)
    monkeypatch.setattr(training, "report_result", lambda *_: None)
    assert run("cssgan_train", "--data", data, "--out", tmp_path / "run", "--preset", "smoke")[0] == 0
    for words in (("--preset", "paper"), ("--seed", 4), ("--fraction", "MRI=0.5"), ("--data", "phantom-S1"),
                  ("--augment",), ("--set", "lr=1e-4"), ("--set", "phases.generators=null"), ("--updates", 7)):
        fails("cssgan_train", "--resume", tmp_path / "run", *words, says="was begun with")
    assert run("cssgan_train", "--resume", tmp_path / "run", "--preset", "smoke", "--seed", 0)[0] == 0


def test_nothing_to_go_on_with(fails, tmp_path):
    fails("cssgan_train", "--resume", tmp_path / "none", says="holds no run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "train.json").write_text("{")
    fails("cssgan_train", "--resume", tmp_path / "run", says="train.json is no JSON, or damaged")


@pytest.mark.parametrize("words, says", [
    ("--data nowhere", "nowhere is no data set"),
    ("--data none.csv", "none.csv is not there"), ("--data empty", "empty holds no CT case"),
    ("--data two", "no CT case in the split 'train'"), ("--out file/run", "cannot be made")])
def test_training_that_cannot_be(fails, data, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for modality in ("CT", "MRI"):
        (tmp_path / "two" / modality).mkdir(parents=True)
        for file in sorted((data / modality).iterdir())[:4]: shutil.copy(file, tmp_path / "two" / modality)
    fails("cssgan_train", *(("--data", data) if "--data" not in words else ()),
          *(("--out", "run") if "--out" not in words else ()), *words.split(), says=says)
    assert not (tmp_path / "run").exists()


def test_a_case_that_cannot_be_read_is_named(fails, data, tmp_path):
    file = sorted((data / "MRI").glob("*_label.nii.gz"))[0]
    image = nib.load(file)
    nib.Nifti1Image((image.get_fdata() * 77).astype(np.int16), image.affine).to_filename(file)
    fails("cssgan_train", "--data", data, "--out", tmp_path / "run", "--preset", "smoke", "--quiet", "--cache",
          tmp_path / "cache", says=file.name)
    assert not list((tmp_path / "run").glob("*/checkpoint.json"))
