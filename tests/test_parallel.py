"Several processes train as one with a larger batch, end together, and leave nobody behind."
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import workers
from conftest import ROOT
from tiny import state

from cssgan.fast import directions
from cssgan.fast import processes as parallel
from cssgan.fast.processes import ProcessError, launch
from cssgan.guard import InputError
from cssgan.training import run as training
from cssgan.training.checkpoints import load_checkpoint
from cssgan.training.trainer import Stopped, fit

PATIENCE = 120  # seconds


@pytest.fixture(autouse=True)
def nobody_left_behind(monkeypatch):
    "Every test marks its descendants, and none may live when it ends."
    monkeypatch.setenv("CSSGAN_TEST", mark := os.urandom(8).hex())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT / "tests", ROOT))))
    yield
    deadline = time.monotonic() + 5
    while (left := descendants(mark)) and time.monotonic() < deadline: time.sleep(0.1)
    assert not left


def descendants(mark):
    "What the processes were called with that have the mark in their environment."
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError: pass # it has just ended, or is not ours
    return [words for words in found if words.strip() and "resource_tracker" not in words]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    "What two processes say and leave after three joint steps together."
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        launch(2, workers.follows, folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)], folder / "run"


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    "The folder of one process that saw the same with twice the batch."
    folder = tmp_path_factory.mktemp("one")
    workers.alike(folder, 2)
    return folder


# ---- the same training

def same_training(one, other):
    "Losses, scores, weights, the memory of three Adams, pools and their dice: all of them agree to the last bit."
    (a, b, c), (d, e, f) = state(one), state(other)
    assert c["history"] == f["history"] and len(b["pool.A"]) == 2
    assert (
        a.keys() == d.keys()
        and {tensor.dtype for tensor in a.values()} == {torch.float32}
        and all(torch.equal(a[name], d[name]) for name in a)
    )
    return b.keys() == e.keys() and all(torch.equal(b[name], e[name]) for name in b)


def test_two_processes_follow_one_with_twice_the_batch_in_losses_and_weights(one, two):
    assert any((y == 255).any() for _, y, _ in workers.pairs().train_A.made), "some labels are unknown"
    assert same_training(one, two[1])


def test_all_processes_know_the_same_history(two):
    assert two[0][0]["history"] == two[0][1]["history"] and [report["phase"] for report in two[0]] == [1, 1]


def test_only_the_first_process_writes(two):
    first, second = (report["written"] for report in two[0])
    assert len(first) >= 4 and {Path(place).name for place in first} == {"last", "best"} and second == []


def test_what_processes_tell_each_other(two):
    for rank, report in enumerate(two[0]):
        assert (
            report["processes"] == 2
            and report["gathered"] == [[0.0, 0.0], [1.0, 1.0]]
            and report["share"] == [[0, 1], [2, 3]][rank]
        )
        assert (
            report["agree"] == [True, False, True]
            and report["first"] == "rank 0"
            and report["mean"] == [[0.5, 4.0], 0.5]
        )


def test_alone_there_is_nobody_to_tell():
    x = torch.arange(4.0)
    parallel.average([x])
    parallel.average([])
    assert (
        torch.equal(x, torch.arange(4.0))
        and parallel.gather(x) is x
        and torch.equal(parallel.part_of_this_process(x), x)
    )
    assert parallel.processes() == 1 and parallel.rank() == 0
    assert parallel.any_process(True) and not parallel.any_process(False)
    assert parallel.from_first(lambda: x) is x and not torch.distributed.is_initialized()


def test_the_mean_is_that_of_everything_added_up():
    x = torch.tensor([3.0, 4.0])
    parallel.average([x], summed=2)
    assert x.tolist() == [1.5, 2.0]


# ---- two at once

@pytest.fixture
def cores():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_two_pieces_of_work_have_half_of_the_cores_each_and_run_at_once(cores):
    cores(4)
    meet = threading.Barrier(2, timeout=PATIENCE) # nobody passes alone
    def work(item):
        meet.wait()
        return item, torch.get_num_threads(), threading.get_ident()
    (a, n, one), (b, m, other) = directions.for_both(work, ("a", "b"))
    assert (a, b, n, m) == ("a", "b", 2, 2) and one != other and torch.get_num_threads() == 4


@pytest.mark.parametrize("n, device", [(1, "cpu"), (4, "meta")])
def test_with_one_core_or_another_device_one_comes_after_the_other(cores, n, device):
    cores(n)
    report = directions.for_both(
        lambda item: (item, torch.get_num_threads(), threading.get_ident()), ("a", "b"), device=device
    )
    assert report == [(item, n, threading.get_ident()) for item in "ab"]


def test_between_two_such_calls_the_caller_keeps_to_one_core(cores):
    cores(4)
    with pytest.raises(ValueError, match="stop"), directions.one_core_between():
        assert torch.get_num_threads() == 1
        assert directions.for_both(lambda item: torch.get_num_threads(), (1, 2)) == [2, 2]
        assert directions.for_both(lambda item: torch.get_num_threads(), (1, 2), at_once=False) == [4, 4]
        assert torch.get_num_threads() == 1
        raise ValueError("stop")
    assert torch.get_num_threads() == 4
    assert directions.for_both(lambda item: torch.get_num_threads(), (1, 2)) == [2, 2]
    cores(1)
    with directions.one_core_between():
        assert directions.for_both(lambda item: threading.get_ident(), (1, 2)) == 2 * [threading.get_ident()]


def test_an_error_in_one_half_waits_for_the_other(cores):
    cores(2)
    done = []
    def work(item):
        if item == "bad": raise ValueError("the loss is not a number")
        time.sleep(0.2)
        done.append(item)
    with pytest.raises(ValueError, match="not a number"): directions.for_both(work, ("bad", "good"))
    assert done == ["good"] and torch.get_num_threads() == 2


def test_an_interrupt_waits_for_both_halves(cores):
    "Otherwise they would add to gradients that somebody else collects by then."
    cores(2)
    done = []
    def work(item):
        time.sleep(0.5)
        done.append(item)
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt): directions.for_both(work, ("a", "b"))
    assert sorted(done) == ["a", "b"] and torch.get_num_threads() == 2


def test_a_second_interrupt_leaves_the_number_of_cores_as_it_was(cores):
    cores(4)
    timers = [threading.Timer(after, os.kill, (os.getpid(), signal.SIGINT)) for after in (0.1, 0.3)]
    for timer in timers: timer.start()
    with pytest.raises(KeyboardInterrupt): directions.for_both(lambda item: time.sleep(0.6), ("a", "b"))
    for timer in timers: timer.join()
    with ThreadPoolExecutor(1) as newborn:
        assert torch.get_num_threads() == newborn.submit(torch.get_num_threads).result() == 4
    time.sleep(0.6) # both halves have ended


def test_a_thread_that_outlives_the_main_one_can_go_on():
    "Python starts no threads any more by then."
    code = """import threading, time, torch
from cssgan.fast.directions import for_both
torch.set_num_threads(2)
def later():
    threading.main_thread().join()
    print(for_both(str, (1, 2)))
threading.Thread(target=later).start()"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.strip() == "['1', '2']", done.stderr


def test_a_forked_child_has_threads_of_its_own(cores):
    cores(2)
    directions.for_both(torch.exp, (torch.zeros(1), torch.ones(1)))
    child = os.fork()
    if child == 0:
        signal.alarm(20) # a child that waits for threads that it does not have is ended
        os._exit(0 if len(directions.for_both(str, (1, 2))) == 2 else 1)
    assert os.waitpid(child, 0)[1] == 0


# ---- going on

def test_one_goes_on_where_two_were_asked_to_stop(tmp_path):
    launch(2, workers.stops, tmp_path, 1)
    about = load_checkpoint(tmp_path / "last", with_training=True)[1]
    assert about["seen"] == 2 and not about["history"] and {len(losses) for losses in about["losses"].values()} == {1}
    run = fit(workers.pairs(), workers.JOINT, tmp_path, resume=True, progress=False)
    assert run.phase == 1 and len(run.history) == 1


def test_a_request_to_stop_that_comes_late_ends_no_process(tmp_path):
    launch(2, workers.hears_late, tmp_path)
    assert load_checkpoint(tmp_path / "last", with_training=True)[1]["seen"] == 2


def test_two_go_on_where_one_was_asked_to_stop(tmp_path, monkeypatch):
    step, steps = training.step, []
    def asked(*args):
        steps.append(1)
        if len(steps) == 2: os.kill(os.getpid(), signal.SIGTERM)
        return step(*args)
    monkeypatch.setattr(training, "step", asked)
    with pytest.raises(Stopped): fit(workers.pairs(), workers.JOINT, tmp_path, progress=False)
    assert load_checkpoint(tmp_path / "last", with_training=True)[1]["seen"] == 2
    run = fit(workers.pairs(), workers.JOINT, tmp_path, resume=True, progress=False, devices=2)
    about = load_checkpoint(tmp_path / "last")[1]
    assert run.phase == 1 and len(run.history) == 1 and run.history == about["history"]


# ---- stopping, and ending badly

def script(folder, epochs): # a program that trains in two processes
    return (
        "if __name__ == '__main__':\n from dataclasses import replace\n from workers import *\n"
        f" config = replace(JOINT, phases=(Phase('joint', {epochs}),))\n"
        f" try: fit(pairs(), config, {str(folder)!r}, progress=False, devices=2, save_every=0.2)\n"
        " except BaseException as e: print(type(e).__name__, e, sep=': ')\n"
    )


@pytest.mark.parametrize(
    "how, everyone", [(signal.SIGTERM, False), (signal.SIGINT, True)], ids=["SIGTERM to the first", "Ctrl-C to all"]
)
def test_a_signal_stops_all_and_saves(tmp_path, how, everyone):
    (tmp_path / "train.py").write_text(script(tmp_path / "run", 100_000))
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "train.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while (
            not (tmp_path / "run/last/checkpoint.json").exists()
            and parent.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.1)
        (os.killpg if everyone else os.kill)(parent.pid, how)
        report, errors = parent.communicate(timeout=PATIENCE)
    finally:
        if parent.poll() is None: os.killpg(parent.pid, signal.SIGKILL)
    assert report.startswith("Stopped: ") and report.count("\n") == 1, (report, errors)
    assert str(tmp_path / "run" / "last") in report
    assert "Traceback" not in errors, errors
    about = load_checkpoint(tmp_path / "run/last", with_training=True)[1]
    assert f"{about['seen']} pair{'s' * (about['seen'] != 1)} of epoch {about['epoch'] + 1} " in report and (
        about["history"] or about["seen"]
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_in_one_process_ends_all_with_its_message(tmp_path, rank):
    began = time.monotonic()
    with pytest.raises(ProcessError) as e: launch(2, workers.fails, rank, "disk full", tmp_path)
    assert str(e.value) == "disk full" and time.monotonic() - began < 20 + 20 # most of it for starting


def test_a_process_that_is_killed_is_told_in_one_line(tmp_path):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ProcessError, match="ended without a word") as e: launch(2, workers.fails, 1, None, tmp_path)
    assert "\n" not in str(e.value) and [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_workers_end_when_the_one_that_started_them_is_killed(tmp_path):
    "Wherever they are: `nobody_left_behind` looks for them."
    (tmp_path / "train.py").write_text(script(tmp_path / "run", 100_000))
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "train.py"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while (
            not (tmp_path / "run/last/checkpoint.json").exists()
            and parent.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.1)
        assert parent.poll() is None and len(descendants(os.environ["CSSGAN_TEST"])) >= 3
    finally: parent.kill()
    parent.wait(PATIENCE)


def test_a_worker_that_is_stopped_does_not_keep_the_others(tmp_path):
    "One sleeps for ever, the other waits for it within a message; the parent is killed."
    code = (
        "if __name__ == '__main__':\n import workers\n from cssgan.fast.processes import launch\n"
        f" launch(2, workers.sleeps, {str(tmp_path)!r})\n"
    )
    (tmp_path / "sleep.py").write_text(code)
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "sleep.py"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while len(list(tmp_path.glob("*.here"))) < 2 and parent.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert parent.poll() is None
        time.sleep(0.5)
    finally: parent.kill()
    parent.wait(PATIENCE)


# ---- a cluster's environment

HALF_SET = [
    ({"LOCAL_WORLD_SIZE": "2"}, "WORLD_SIZE"),
    ({"WORLD_SIZE": "2"}, "LOCAL_WORLD_SIZE"),
    ({"WORLD_SIZE": "two"}, "LOCAL_WORLD_SIZE"),
    ({"LOCAL_WORLD_SIZE": "0", "WORLD_SIZE": "2"}, "LOCAL_WORLD_SIZE"),
    ({"LOCAL_WORLD_SIZE": "-1", "WORLD_SIZE": "2"}, "LOCAL_WORLD_SIZE"),
    ({"LOCAL_WORLD_SIZE": "x", "WORLD_SIZE": "2"}, "LOCAL_WORLD_SIZE"),
    ({"LOCAL_WORLD_SIZE": "", "WORLD_SIZE": "2"}, "LOCAL_WORLD_SIZE"),
    ({"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "nan"}, "WORLD_SIZE"),
    ({"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "1"}, "WORLD_SIZE"),
    ({"LOCAL_WORLD_SIZE": "9" * 400, "WORLD_SIZE": "2"}, "LOCAL_WORLD_SIZE"),
    (
        {
            "LOCAL_WORLD_SIZE": "2",
            "WORLD_SIZE": "3",
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": "1",
            "RANK": "0",
            "LOCAL_RANK": "0",
        },
        "3 processes",
    ),
    ({"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}, "MASTER_PORT"),
    (
        {"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2", "MASTER_PORT": "29500", "RANK": "0", "LOCAL_RANK": "0"},
        "MASTER_ADDR",
    ),
    ({"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2", "MASTER_PORT": "99999", "MASTER_ADDR": "localhost"}, "MASTER_PORT"),
    ({"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2", "MASTER_PORT": "29500", "MASTER_ADDR": "localhost"}, "RANK"),
    (
        {"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2", "MASTER_PORT": "29500", "MASTER_ADDR": "localhost", "RANK": "2"},
        "RANK",
    ),
    (
        {"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2", "MASTER_PORT": "29500", "MASTER_ADDR": "localhost", "RANK": "1"},
        "LOCAL_RANK",
    ),
    ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_STEP_TASKS_PER_NODE"),
    ({"SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS"),
    ({"SLURM_STEP_TASKS_PER_NODE": "2"}, "SLURM_STEP_NUM_TASKS"),
    ({"SLURM_STEP_NUM_TASKS": "5", "SLURM_STEP_TASKS_PER_NODE": "3,2"}, "SLURM_STEP_TASKS_PER_NODE"),
    ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "0"}, "SLURM_STEP_TASKS_PER_NODE"),
    ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}, "SLURM_NTASKS"),
    ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_NTASKS": "2"}, "SLURM_PROCID"),
]


@pytest.mark.parametrize(
    "variables, names",
    HALF_SET,
    ids=[" ".join(f"{n}={v[:9]}" for n, v in variables.items()) for variables, _ in HALF_SET],
)
def test_an_environment_that_is_half_set_is_named(monkeypatch, variables, names):
    for name, value in variables.items(): monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as e: parallel.join()
    assert names in str(e.value) and len(str(e.value)) <= 300 and "\n" not in str(e.value)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WORLD_SIZE": "1"},
        {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"},
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"},
    ],
    ids=str,
)
def test_an_environment_of_one_is_alone(monkeypatch, variables):
    for name, value in variables.items(): monkeypatch.setenv(name, value)
    assert parallel.join().type == "cpu" and parallel.started_processes() == (1, 1)


@pytest.mark.parametrize("n", [0, -1, 10**6])
def test_devices_that_cannot_be(tmp_path, n):
    with pytest.raises(InputError, match="devices are asked for"):
        fit(workers.pairs(), workers.JOINT, tmp_path / "run", devices=n)
    assert not (tmp_path / "run").exists()


def test_words_of_a_process_are_those_that_say_something():
    def ended(*messages):
        failures = {i: SimpleNamespace(timestamp=i, message={"message": m}) for i, m in enumerate(messages)}
        return parallel.first_error(SimpleNamespace(failures=failures))

    lost = "RuntimeError: [gloo/transport/tcp/pair.cc] Connection closed by peer"
    assert ended(lost, "InputError: /data/Signal/gloo.nii is damaged") == "/data/Signal/gloo.nii is damaged"
    assert ended("OSError: [Errno 37] No locks available") == "[Errno 37] No locks available"
    assert ended("KeyboardInterrupt: ") == "KeyboardInterrupt:"
    assert "ended without a word" in ended("Signal 9 (SIGKILL) received by PID 5")


def test_torchrun_starts_the_same_training(one, tmp_path):
    "PyTorch's own starter, as on a cluster."
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, str(ROOT / "tests" / "workers.py"), str(tmp_path)]
    starter = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try: report = starter.communicate(timeout=PATIENCE)[0]
    finally:
        if starter.poll() is None: os.killpg(starter.pid, signal.SIGKILL)
    assert starter.returncode == 0, report
    assert same_training(one, tmp_path)
