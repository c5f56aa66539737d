"""A run never loses work: killed, stopped, without room or without its data, it is resumed from its last checkpoint
and comes to the same end, bit for bit."""
import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from test_checkpoints import old_names, old_style
from tiny import SHORT, TINY, noise

from cssgan.data.datasets import unpaired
from cssgan.data.folders import from_folder
from cssgan.data.writing import write_phantoms
from cssgan.guard import InputError, InputWarning
from cssgan.training import run as training
from cssgan.training.checkpoints import load_checkpoint
from cssgan.training.schedule import Phase
from cssgan.training.schema import CheckpointError
from cssgan.training.trainer import StopButton, Stopped, fit

PATIENCE = 120  # seconds that a child may take before the test gives up


@pytest.fixture(scope="module")
def server():
    "Forks children that have imported everything already; they compute on the CPU."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["children", "pytest"])
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT / "tests", ROOT))))
    patch.setenv("CUDA_VISIBLE_DEVICES", "")
    context.Process(target=os.getpid).start() # the first one starts the server
    patch.undo()
    return context


class Child:
    "A process that trains; see children.py."
    def __init__(self, server, folder, **how):
        import children
        self.hears, says = server.Pipe(duplex=False)
        self.process = server.Process(target=children.train, args=(says, folder), kwargs=how)
        self.process.start()
        says.close()

    def hear(self):
        assert self.hears.poll(PATIENCE), "the child is silent"
        return self.hears.recv()

    def begin(self):
        "Wait until it trains, if it still has to."
        told = self.hear()
        return None if told == "begun" else told

    def end(self):
        "Wait for its end; gives what it says, or the signal that killed it."
        told = None
        try:
            while told is None or told == "begun": told = self.hear()
        except EOFError: pass
        self.process.join(PATIENCE)
        return told if isinstance(told, tuple) else -self.process.exitcode

    def kill(self, how=signal.SIGKILL): os.kill(self.process.pid, how)


def files(folder): return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def progress(folder):
    "How many epochs and pairs the last checkpoint has."
    if not (folder / "last" / "checkpoint.json").exists(): return 0, 0
    about = json.loads((folder / "last" / "checkpoint.json").read_text())
    return len(about["history"]), about["seen"]


def intact(folder):
    "The last checkpoint can be read, with everything that training needs, and is not spoilt."
    nets, about, tensors = load_checkpoint(folder / "last", with_training=True)
    return "rng" in tensors and all(torch.isfinite(p).all() for p in nets.parameters())


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    "A run without interruption: what its folder holds, and how long it took."
    folder = tmp_path_factory.mktemp("whole")
    told, seconds = Child(server, folder).end()
    assert told == "finished"
    return files(folder), seconds


def named(words):
    "The tensor files that a checkpoint.json names."
    return {name for group in json.loads(words)["files"].values() for name in group}


def current(found):
    "The newest checkpoints, of all that a run's folder holds; beside them lie only the one before and its tensors."
    kept = {f"{place}/{name}" for place in ("best", "last")
            for name in ("checkpoint.json", *named(found[f"{place}/checkpoint.json"]))}
    before = {f"last/{name}" for name in ("previous.json", *named(found["last/previous.json"]))}
    assert found.keys() == kept | before, found.keys()
    return {name: found[name] for name in kept}


def ends_like(whole, server, folder, **how):
    "Resume to the end; are the checkpoints as in the run without interruption, byte for byte?"
    told = Child(server, folder, **how).end()
    assert told[0] == "finished", told
    return current(files(folder)) == current(whole[0])


# ---- killed

def test_a_run_holds_two_checkpoints_and_nothing_else(whole):
    assert sorted({name.partition("-")[0] for name in whole[0]}) == [
        "best/checkpoint.json", "best/weights",
        "last/checkpoint.json", "last/previous.json", "last/training", "last/weights"]
    assert len(current(whole[0])) == 5 and len(whole[0]) == 8, "and the checkpoint before"


def test_twenty_kills_at_random_moments_change_nothing(server, whole, tmp_path):
    rng, kills, half_written, seen = random.Random(0), 0, 0, []
    while kills < 22:
        child = Child(server, tmp_path)
        if told := child.begin(): break
        hurry = progress(tmp_path)[0] > 8 * kills / 24
        time.sleep(rng.random() * whole[1] / 12 * (0.3 if hurry else 1))
        child.kill()
        if child.end() != signal.SIGKILL: break
        kills += 1
        seen.append(progress(tmp_path))
        half_written += any(p.name.startswith(".") for p in tmp_path.rglob("*"))
        if seen[-1] != (0, 0): assert intact(tmp_path)
    assert kills >= 20 and seen == sorted(seen) and len(set(seen)) > 8, (kills, seen)
    assert ends_like(whole, server, tmp_path)
    print(f"{kills} kills, {half_written} of them in the middle of a file, after {seen}")


def test_killed_at_every_moment_of_writing_a_checkpoint(server, whole, tmp_path):
    """Within each of four files, before and after each gets its name, and before old files are removed.
    It is always the second checkpoint of an attempt."""
    import children
    for moment in range(11, 21):
        before = progress(tmp_path)
        child = Child(server, tmp_path, trouble=partial(children.killed_in_writing, moment))
        assert child.end() == signal.SIGKILL and intact(tmp_path)
        assert progress(tmp_path) > before
    assert ends_like(whole, server, tmp_path)


def test_killed_while_the_best_is_written(server, whole, tmp_path):
    import children
    config = replace(children.RUN, phases=(Phase("joint", 3),))
    told = Child(server, tmp_path / "whole", config=config, save_every=1e9).end()
    for moment in (12, *range(2, 9)):  # `last` comes first; then two files and their names, before anything else
        child = Child(server, tmp_path / "run", config=config, save_every=1e9,
                      trouble=partial(children.killed_in_writing, moment))
        assert told[0] == "finished" and child.end() == signal.SIGKILL and intact(tmp_path / "run")
        if moment < 6 or moment == 12: assert not (tmp_path / "run" / "best" / "checkpoint.json").exists()
    assert ends_like((files(tmp_path / "whole"),), server, tmp_path / "run", config=config, save_every=1e9)


def test_what_a_kill_left_of_any_file_is_removed_by_the_next_checkpoint(server, tmp_path):
    import children
    config = replace(children.RUN, phases=(Phase("segmentors", 1),))
    child = Child(server, tmp_path, config=config, trouble=partial(children.killed_in_writing, 9))
    assert child.end() == signal.SIGKILL
    left = sorted(p.name[:6] for p in tmp_path.rglob(".*"))
    assert left == [".cssga", ".first", ".lock"], "killed within checkpoint.json"
    for name in (".checkpoint.json.1234.part", ".weights-0123456789ab.safetensors.1234.part"):
        (tmp_path / "last" / name).touch() # as versions before named them
    assert Child(server, tmp_path, config=config).end()[0] == "finished"
    assert not [p for p in tmp_path.rglob(".*")]


# ---- no room, no folder, no data

def test_a_full_disk_is_said_in_one_line_and_the_run_goes_on_when_there_is_room(server, whole, tmp_path):
    "Whether the weights, the tensors of training, the words of before or those of now find no room."
    import children
    for attempt, moment in enumerate((6, 6, 7, 8), 1):
        name, says = Child(server, tmp_path, trouble=partial(children.disk_is_full, moment)).end()
        assert name in ("InputError", "CheckpointError", "OSError") and "No space left" in says
        assert str(tmp_path) in says and "\n" not in says
        assert intact(tmp_path) and (0, attempt) <= progress(tmp_path) < (2, 0) and not list(tmp_path.rglob(".*"))
    assert ends_like(whole, server, tmp_path)


def test_the_kernel_refuses_to_write_more_and_the_last_checkpoint_stays(server, whole, tmp_path):
    "In the middle of the weights, and when there was just room enough for them."
    import children
    weights = len(next(content for name, content in whole[0].items() if name.startswith("last/weights")))
    for checkpoints, largest in ((2, weights // 2), (7, weights)):
        name, says = Child(server, tmp_path, trouble=partial(children.files_stay_small, checkpoints, largest)).end()
        assert name in ("InputError", "CheckpointError", "OSError") and "too large" in says and str(tmp_path) in says
        assert "\n" not in says
        assert intact(tmp_path) and (0, 2) <= progress(tmp_path) < (4, 0) and not list(tmp_path.rglob(".*"))
    assert ends_like(whole, server, tmp_path)


def test_a_folder_that_becomes_read_only_in_mid_run(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir(mode=0o555)
    if os.access(tmp_path / "closed", os.W_OK): pytest.skip("root may write everywhere")
    step, steps = training.step, []
    def spoils(*args):
        steps.append(1)
        if len(steps) == 4: (tmp_path / "last").chmod(0o555)
        return step(*args)
    monkeypatch.setattr(training, "step", spoils)
    with pytest.raises(InputError, match="cannot be written") as e:
        fit(noise(), SHORT, tmp_path, progress=False, save_every=0)
    assert "\n" not in str(e.value) and str(tmp_path) in str(e.value) and intact(tmp_path)
    (tmp_path / "last").chmod(0o755)
    assert fit(noise(), SHORT, tmp_path, resume=True, progress=False).phase == 3


def test_a_folder_that_cannot_be_is_said_before_anything_is_trained(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(training, "step", lambda *_: pytest.fail("trained, and will not be able to save"))
    with pytest.raises(InputError, match="cannot be made") as e:
        fit(noise(), SHORT, tmp_path / "file" / "run", progress=False)
    assert "\n" not in str(e.value) and str(tmp_path) in str(e.value)


def test_a_scan_that_vanishes_in_mid_run_is_named_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    write_phantoms(tmp_path / "scans", 3, grid=TINY)
    cases = [replace(case, split="valid" if case.patient.endswith(("4", "5")) else "train")
             for case in from_folder(tmp_path / "scans")]
    data, step, steps = unpaired(cases, TINY, tmp_path / "cache"), training.step, []
    lost = data.train_A.cases[0].image
    def spoils(*args):
        steps.append(1)
        if len(steps) == 2: # the first epoch's end
            os.rename(lost, tmp_path / "away")
            shutil.rmtree(tmp_path / "cache")
        return step(*args)
    monkeypatch.setattr(training, "step", spoils)
    with pytest.raises(InputError) as e: fit(data, SHORT, tmp_path / "run", progress=False, save_every=0)
    assert str(lost) in str(e.value) and "\n" not in str(e.value) and intact(tmp_path / "run")
    assert progress(tmp_path / "run")[0] == 1
    os.rename(tmp_path / "away", lost)
    assert fit(data, SHORT, tmp_path / "run", resume=True, progress=False).phase == 3


# ---- stopped

def test_a_run_that_is_asked_to_stop_finishes_its_step_saves_and_says_where(server, whole, tmp_path):
    "By Ctrl-C, and by the politer signal of a cluster's queue."
    import children
    reached = (0, 0)
    for how in (signal.SIGINT, signal.SIGTERM):
        child = Child(server, tmp_path, save_every=1e9, trouble=partial(children.slow, 0.05))
        assert not child.begin()
        time.sleep(0.3)
        child.kill(how)
        name, says = child.end()
        before, reached = reached, progress(tmp_path)
        assert name == "Stopped" and f"saved in {tmp_path / 'last'}" in says
        assert f"{reached[1]} pair{'s' * (reached[1] != 1)} of epoch" in says and "\n" not in says
        assert reached > before and intact(tmp_path)
    assert ends_like(whole, server, tmp_path, save_every=1e9)


def test_a_second_ctrl_c_stops_at_once(server, tmp_path):
    import children
    child = Child(server, tmp_path, save_every=1e9, trouble=partial(children.slow, PATIENCE))
    assert not child.begin()
    time.sleep(0.5)
    child.kill(signal.SIGTERM), child.kill(signal.SIGTERM)
    time.sleep(0.5)
    assert child.process.is_alive(), "asked politely, it finishes its step"
    child.kill(signal.SIGINT)
    assert child.end()[0] == "KeyboardInterrupt" and not (tmp_path / "last").exists()


def test_the_stop_button_gives_the_signals_back():
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ZeroDivisionError):
        with StopButton() as button:
            assert not button.pressed
            os.kill(os.getpid(), signal.SIGTERM)
            assert button.pressed
            1 / 0
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before and not StopButton().pressed


def test_a_run_in_a_thread_works_and_leaves_the_signals_alone(tmp_path):
    before, ended = signal.getsignal(signal.SIGINT), []
    config = replace(SHORT, phases=(Phase("joint", 1),))
    thread = threading.Thread(target=lambda: ended.append(fit(noise(), config, tmp_path, progress=False)))
    thread.start()
    assert signal.getsignal(signal.SIGINT) is before
    thread.join(PATIENCE)
    assert len(ended) == 1 and ended[0].phase == 1


def test_a_notebooks_stop_button_stops_the_run_and_keeps_it(tmp_path, monkeypatch):
    manager = pytest.importorskip("jupyter_client.manager")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT / "tests", ROOT))))
    kernel, client = manager.start_new_kernel(kernel_name="python3")
    try:
        run = client.execute("from dataclasses import replace\n"
                             "from tiny import *\n"
                             "from cssgan.training.schedule import Phase\n"
                             "from cssgan.training.trainer import fit\n"
                             "long = replace(SHORT, phases=(Phase('joint', 10_000),))\n"
                             f"fit(noise(), long, {str(tmp_path)!r}, progress=False, save_every=0.5)")
        deadline = time.monotonic() + PATIENCE
        while not (tmp_path / "last" / "checkpoint.json").exists() and time.monotonic() < deadline: time.sleep(0.1)
        kernel.interrupt_kernel()
        reply = client.get_shell_msg(timeout=PATIENCE)
        while reply["parent_header"].get("msg_id") != run: reply = client.get_shell_msg(timeout=PATIENCE)
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
    assert reply["content"]["ename"] == "Stopped" and str(tmp_path / "last") in reply["content"]["evalue"]
    assert intact(tmp_path) and progress(tmp_path) > (0, 0)


# ---- numbers that are none, and other people's runs

def test_a_loss_that_is_no_number_is_named_with_its_step_and_the_last_checkpoint_stays(tmp_path, monkeypatch):
    data, step, steps = noise(), training.step, []
    healthy = data.train_A.made[:]
    def spoils(*args):
        steps.append(1)
        if len(steps) == 7:
            data.train_A.made = [(volume * float("nan"), labels, case) for volume, labels, case in healthy]
        return step(*args)
    monkeypatch.setattr(training, "step", spoils)
    with pytest.raises(FloatingPointError) as e: fit(data, SHORT, tmp_path, progress=False, save_every=0)
    says = str(e.value)
    ids = next(b.ids for i, b in enumerate(data.epoch(SHORT.seed, 2)) if i == 1)
    assert "the loss gan became nan in step 2 of epoch 1 (joint)" in says and f"on the cases {', '.join(ids)}" in says
    assert "\n" not in says
    assert intact(tmp_path) and progress(tmp_path) == (2, 1)
    monkeypatch.undo()
    data.train_A.made = healthy
    assert fit(data, SHORT, tmp_path, resume=True, progress=False).phase == 3


def test_a_run_goes_on_with_its_own_cases_only(tmp_path):
    config = replace(SHORT, phases=(Phase("segmentors", 1),))
    fit(noise(), config, tmp_path, progress=False)
    with pytest.raises(CheckpointError, match="other cases") as e:
        fit(noise(4), config, tmp_path, resume=True, progress=False)
    assert str(tmp_path) in str(e.value) and "\n" not in str(e.value)


def test_a_run_that_goes_on_otherwise_is_told_every_difference_in_one_line(tmp_path):
    config = replace(SHORT, phases=(Phase("segmentors", 1),))
    fit(noise(), config, tmp_path, progress=False)
    with pytest.raises(CheckpointError) as e:
        fit(noise(), replace(config, lr=5e-4, batch_size=2), tmp_path, resume=True, progress=False)
    assert "lr is 0.0005, was 0.001" in str(e.value) and "batch_size is 2, was 1" in str(e.value)
    assert "\n" not in str(e.value)


# ---- damage, and what is missing

@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    "A run in this process, and one that was stopped near its end, with the checkpoint before."
    folder = tmp_path_factory.mktemp("undisturbed")
    fit(noise(), SHORT, folder / "whole", progress=False, save_every=0)
    def near_the_end(run, keep): keep.button.pressed = len(run.history) == 3 and run.seen == 2
    with pytest.raises(Stopped):
        fit(noise(), SHORT, folder / "stopped", progress=False, save_every=0, callback=near_the_end)
    return folder


def zeros_at_the_end(file):
    size = file.stat().st_size
    os.truncate(file, max(0, size - 700))
    os.truncate(file, size)


DAMAGES = {"zeros at the end": zeros_at_the_end, "cut": lambda file: os.truncate(file, file.stat().st_size // 2),
           "empty": lambda file: os.truncate(file, 0), "gone": Path.unlink}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["checkpoint.json", "weights", "training"])
def test_a_damaged_checkpoint_costs_what_was_done_since_the_one_before(undisturbed, tmp_path, kind, damage):
    run = shutil.copytree(undisturbed / "stopped", tmp_path / "run")
    words = json.loads((run / "last" / "checkpoint.json").read_text())
    DAMAGES[damage](run / "last" / (next(iter(words["files"][kind])) if kind in words["files"] else kind))
    expected = "is resumed from the previous checkpoint, after 1 pair of epoch 2 of 2"
    with pytest.warns(InputWarning, match=expected) as said:
        fit(noise(), SHORT, run, resume=True, progress=False, save_every=0)
    assert len(said) == 1 and str(run / "last") in str(said[0].message) and str(said[0].message).isprintable()
    assert current(files(run)) == current(files(undisturbed / "whole"))


@pytest.mark.parametrize("name", ["previous.json", "weights", "training"])
def test_damage_of_the_checkpoint_before_changes_nothing(undisturbed, tmp_path, name):
    run = shutil.copytree(undisturbed / "stopped", tmp_path / "run")
    words = json.loads((run / "last" / "previous.json").read_text())
    zeros_at_the_end(run / "last" / (next(iter(words["files"][name])) if name in words["files"] else name))
    fit(noise(), SHORT, run, resume=True, progress=False, save_every=0)
    assert current(files(run)) == current(files(undisturbed / "whole"))


@pytest.mark.parametrize("lost", [["last/checkpoint.json", "last/previous.json"], ["last"], ["last", "train.json"]],
                         ids=str)
@pytest.mark.parametrize("resume", [True, False])
def test_a_run_never_begins_again_over_results(undisturbed, tmp_path, monkeypatch, lost, resume):
    run = shutil.copytree(undisturbed / "stopped", tmp_path / "run")
    (run / "train.json").write_text("{}")
    for name in lost: shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    monkeypatch.setattr(training, "step", lambda *_: pytest.fail("trained"))
    before = files(run)
    with pytest.raises(CheckpointError, match="choose another folder") as e:
        fit(noise(), SHORT, run, resume=resume, progress=False)
    assert str(run) in str(e.value) and "\n" not in str(e.value) and files(run) == before


def test_tensors_without_words_are_no_beginning(undisturbed, tmp_path):
    "Best is not there yet, and both checkpoint.json are lost."
    run = shutil.copytree(undisturbed / "stopped", tmp_path / "run")
    for name in ("last/checkpoint.json", "last/previous.json"): (run / name).unlink()
    shutil.rmtree(run / "best")
    with pytest.raises(CheckpointError, match="no checkpoint.json"):
        fit(noise(), SHORT, run, resume=True, progress=False)


def test_a_lost_best_is_said_before_training(undisturbed, tmp_path, monkeypatch):
    run = shutil.copytree(undisturbed / "stopped", tmp_path / "run")
    next((run / "best").glob("weights-*")).unlink()
    monkeypatch.setattr(training, "step", lambda *_: pytest.fail("trained"))
    with pytest.raises(CheckpointError, match="best"): fit(noise(), SHORT, run, resume=True, progress=False)


@pytest.mark.parametrize("version", [old_style, old_names])
def test_a_run_of_an_older_version_is_resumed(undisturbed, tmp_path, version):
    run = shutil.copytree(undisturbed / "stopped", tmp_path / "run")
    for place in ("best", "last"): version(run / place)
    assert "spare_memory" in (run / "last" / "checkpoint.json").read_text()
    fit(noise(), SHORT, run, resume=True, progress=False, save_every=0)
    assert current(files(run)) == current(files(undisturbed / "whole"))


def test_a_damaged_run_of_an_older_version_is_resumed_from_the_checkpoint_before(undisturbed, tmp_path):
    run = shutil.copytree(undisturbed / "stopped", tmp_path / "run")
    for words in ("checkpoint.json", "previous.json"): old_names(run / "last", words)
    newest = json.loads((run / "last" / "checkpoint.json").read_text())["files"]["training"]
    (run / "last" / next(iter(newest))).unlink()
    with pytest.warns(InputWarning, match="from the previous checkpoint"):
        fit(noise(), SHORT, run, resume=True, progress=False, save_every=0)
    assert current(files(run)) == current(files(undisturbed / "whole"))


def test_a_run_behind_a_link_goes_on(undisturbed, tmp_path):
    shutil.copytree(undisturbed / "stopped", tmp_path / "disk" / "deep" / "run")
    (tmp_path / "runs").symlink_to(tmp_path / "disk" / "deep")
    (tmp_path / "run").symlink_to(tmp_path / "runs" / "run")
    fit(noise(), SHORT, tmp_path / "run", resume=True, progress=False, save_every=0)
    assert current(files(tmp_path / "disk" / "deep" / "run")) == current(files(undisturbed / "whole"))


# ---- two at once

def test_a_second_run_in_the_folder_is_refused_while_the_first_lives(server, tmp_path):
    import children
    first = Child(server, tmp_path, save_every=1e9, trouble=partial(children.slow, 0.3))
    assert not first.begin()
    before = files(tmp_path)
    for resume in (True, False):
        with pytest.raises(CheckpointError, match="another process") as e:
            fit(noise(), SHORT, tmp_path, resume=resume, progress=False)
        assert str(tmp_path) in str(e.value) and "\n" not in str(e.value)
    assert files(tmp_path) == before and first.process.is_alive()
    first.kill()
    assert first.end() == signal.SIGKILL
    run = fit(noise(), SHORT, tmp_path, progress=False)
    assert run.phase == 3, "killed before its first checkpoint, the folder held nothing"


def test_a_crowd_in_one_folder_leaves_one_run(server, whole, tmp_path):
    crowd = [Child(server, tmp_path) for _ in range(4)]
    told = sorted(child.end() for child in crowd)
    assert [name for name, _ in told].count("finished") >= 1
    for name, says in told: assert name == "finished" or name == "CheckpointError" and "another process" in says, told
    assert current(files(tmp_path)) == current(whole[0])


def test_without_locks_the_run_says_so_and_trains(tmp_path, monkeypatch, capsys):
    import fcntl
    def none(*_): raise OSError(37, "No locks available")
    monkeypatch.setattr(fcntl, "flock", none)
    assert fit(noise(), replace(SHORT, phases=(Phase("joint", 1),)), tmp_path, progress=False).phase == 1
    assert "no locks" in capsys.readouterr().err and not list(tmp_path.glob(".*"))
