"Sweeps: each run once, in its own folder; what failed says why; what is stopped leaves no process behind."
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from dask import config

from cssgan.cli import commands as cli
from cssgan.experiments import runs, sweeps
from cssgan.experiments.grids import read_grid, run_name
from cssgan.experiments.runs import RunError, record_of
from cssgan.experiments.sweeps import collect, write_rows

PATIENCE = 300  # seconds that a busy machine may take for what takes a few
CELLS = (
    "x = 1\nmode = 'ok'\nrate = 0.1\nout_dir = '.'",
    """# what is done is told to a file beside the grid
import json, os, time
from pathlib import Path
out = Path(out_dir)
with open("ran.txt", "a") as f: print(x, mode, file=f)""",
    """
if mode == "fails" and not Path("cure").exists(): raise ValueError(f"{x} is\\ntoo much")
if mode == "dies": os.kill(os.getpid(), 9)
if mode == "long":
    print("begun", flush=True)
    try: time.sleep(600)
    except KeyboardInterrupt:
        (out / "saved").touch()
        raise
time.sleep(.3 * (mode == "slow"))""",
    """print("squared")
rows = [{"score": "dice", "value": x / 3, "threads": os.environ["OMP_NUM_THREADS"]},
        {"score": "loss", "value": float("nan"), "CT": {"mean": x}}]
if mode != "silent": (out / "metrics.json").write_text(json.dumps(rows))""",
)


def notebook(path, *cells, tags=("parameters",)):
    "A notebook as people write them: no identifiers, no kernel named."
    tagged = zip(cells, [*tags, *[""] * len(cells)])
    made = [nbformat.v4.new_code_cell(c, metadata={"tags": [tag]} if tag else {}) for c, tag in tagged]
    nbformat.write(nbformat.v4.new_notebook(cells=made), path)


@pytest.fixture
def here(tmp_path, monkeypatch):
    "An empty folder with the notebook, to sweep in."
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    notebook("toy.ipynb", *CELLS)
    return tmp_path


def grid(name="grid.yaml", fixed=None, **lists):
    "Write a grid file. JSON is YAML."
    Path(name).write_text(json.dumps({"notebook": "toy.ipynb", "parameters": fixed or {}, "grid": lists}))
    return name


@pytest.fixture
def run(capsys):
    "The command in this process: (exit status, stdout, stderr without the bar)."
    def run(*words):
        capsys.readouterr()
        try: status = cli.sweep_main([str(w) for w in words])
        except SystemExit as e: status = e.code
        out, err = capsys.readouterr()
        lines = [line for line in err.replace("\r", "\n").splitlines() if line.strip()]
        return status, out, "\n".join(line for line in lines if "run/s]" not in line and "s/run]" not in line)
    return run


@pytest.fixture
def process():
    "The command in a process of its own, which is gone after the test."
    begun = []
    def process(*words):
        code = "import sys; from cssgan.cli.commands import sweep_main; sys.exit(sweep_main())"
        begun.append(subprocess.Popen([sys.executable, "-c", code, *map(str, words)],
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return begun[-1]
    yield process
    for p in begun: p.kill()


def ran(): return sorted(Path("ran.txt").read_text().split("\n")[:-1]) if Path("ran.txt").exists() else []
def folders(state):
    return sorted(
        p.parent.name.split("-")[0]
        for p in Path("runs").glob("*/*/made_by.json")
        if record_of(p.parent)["state"] == state
    )


def until(true, seconds=PATIENCE):
    "Wait for something."
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "nothing came of it"
        time.sleep(.1)


def log_of(point): return next((p.read_text() for p in Path("runs/grid").glob(f"{point}-*/log.txt")), "")
def descendants(of): return psutil.Process(of.pid).children(recursive=True)
def gone(processes): return not psutil.wait_procs(processes, timeout=100)[1]


# ---- a grid is checked before anything is started

BAD = {
    "not there": (None, "grid.yaml does not exist"), "broken": ("notebook: [", "not plain YAML"),
    "not text": (b"\xff\xfe\x00", "no text"), "a list": ("- 1", "names and values"),
    "empty": ("", "names and values"),
    "object": ("notebook: toy.ipynb\ngrid: !!python/object/apply:os.system ['touch stolen']", "not plain YAML"),
    "module": ("notebook: !!python/name:os.system", "not plain YAML"), "deep": ("[" * 3000, "not plain YAML"),
    "a date that is none": ("notebook: 2026-99-99", "not plain YAML"),
    "unknown key": ("notebook: toy.ipynb\ngird: {x: [1]}", "unknown field gird"),
    "no notebook": ("grid: {x: [1]}", "missing required field notebook"),
    "notebook is a number": ("notebook: 3", "got int - at notebook"),
    "notebook missing": ("notebook: none.ipynb", "none.ipynb does not exist"),
    "no notebook at all": ("notebook: grid.yaml", "is no notebook"), "a folder": ("notebook: .", "is a folder"),
    "without the cell": ("notebook: plain.ipynb", "has 0 cells"), "two cells": ("notebook: two.ipynb", "has 2 cells"),
    "without out_dir": ("notebook: nowhere.ipynb", "no parameter out_dir"),
    "unknown in grid": ("notebook: toy.ipynb\ngrid: {y: [1]}", "no parameter 'y'"),
    "unknown in parameters": ("notebook: toy.ipynb\nparameters: {y: 1}", "no parameter 'y'"),
    "out_dir": ("notebook: toy.ipynb\nparameters: {out_dir: here}", "out_dir is set by the sweep"),
    "twice": ("notebook: toy.ipynb\nparameters: {x: 1}\ngrid: {x: [1]}", "x is in parameters and in grid"),
    "no list": ("notebook: toy.ipynb\ngrid: {x: 3}", "x in the grid is 3"),
    "empty list": ("notebook: toy.ipynb\ngrid: {x: []}", "x in the grid is []"),
    "grid is a list": ("notebook: toy.ipynb\ngrid: [x]", "got array - at grid"),
    "same value twice": ("notebook: toy.ipynb\ngrid: {x: [1, 2, 1]}", "a value twice"),
    "text for a number": ("notebook: toy.ipynb\ngrid: {rate: [0.1, fast]}", "rate is 'fast'"),
    "no is false": ("notebook: toy.ipynb\ngrid: {mode: [no]}", "mode is False"),
    "a date": ("notebook: toy.ipynb\ngrid: {x: [2026-01-01]}", "x is 2026-01-01"),
    "itself": ("notebook: toy.ipynb\ngrid: {x: &a [*a]}", "line 2 has an alias"),
    "too many": (f"notebook: toy.ipynb\ngrid: {{x: {list(range(101))}, rate: {list(range(101))}}}", "more than 10,000"),
}


@pytest.mark.parametrize("how", BAD)
def test_a_bad_grid_is_one_line_and_starts_nothing(here, run, how):
    text, says = BAD[how]
    notebook("plain.ipynb", *CELLS, tags=())
    notebook("two.ipynb", *CELLS, tags=("parameters", "parameters"))
    notebook("nowhere.ipynb", "x = 1")
    if text is not None: Path("grid.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    status, out, err = run("grid.yaml")
    assert status == 1 and out == "" and err.count("\n") == 0 and err.startswith("cssgan_sweep: ") and says in err, err
    assert not Path("runs").exists() and not Path("stolen").exists() and not ran()


@pytest.mark.parametrize(
    "words, says", [("", "GRID"), ("grid.yaml --workers few", "few"), ("grid.yaml --wrokers 2", "--wrokers")]
)
def test_a_mistyped_command(run, words, says):
    status, out, err = run(*words.split())
    assert status == 2 and says in err and "--help" in err and err.count("\n") == 0


def test_no_workers(here, run):
    assert "--workers: '0' is no whole number from 1" in run(grid(x=[1]), "--workers", 0)[2]
    assert not Path("runs").exists()


@pytest.mark.parametrize("missing", ["papermill.translators", "distributed", "nbformat"])
def test_what_is_not_installed_is_named(here, run, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    status, _, err = run(grid(x=[1]))
    assert status == 1 and missing.split(".")[0] in err and "cssgan[experiments]" in err and not Path("runs").exists()


def test_import_is_light():
    heavy = {"papermill", "distributed", "dask", "pandas", "yaml", "nbformat", "jupyter_client", "monai", "matplotlib"}
    code = "import sys, cssgan.experiments.sweeps; print(*{m.split('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not heavy & set(loaded)


# ---- names

def test_names_are_readable_unique_and_safe(here):
    names = {
        run_name("a.ipynb", {"x": x}, ["x"])
        for x in (0, 0.0, False, None, "0", "", [0], "../../etc", "a/b", "a b", "ä", "x" * 500, {"y": 1})
    }
    assert len(names) == 13 and all(
        set(n) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-=,") and len(n) < 100
        for n in names
    )
    name = run_name("a.ipynb", {"x": 1, "y": 2}, ["x"])
    assert name == run_name("a.ipynb", {"y": 2, "x": 1}, ["x"]) != run_name("b.ipynb", {"x": 1, "y": 2}, ["x"])


def test_the_notebook_is_beside_the_grid_and_the_runs_are_here(here):
    Path("deep").mkdir()
    Path("toy.ipynb").rename("deep/toy.ipynb")
    asked = read_grid(grid("deep/my.yaml", x=[1, 2], mode=["ok", "slow"]))
    assert (asked.notebook == Path("deep/toy.ipynb") and asked.out == Path("runs/my")
            and list(asked.runs.values())[1] == {"x": 1, "mode": "slow"})


# ---- runs

def test_every_run_leaves_everything_and_none_is_done_twice(here, run):
    words = grid(fixed={"rate": 0.00025}, x=[10, 2]), "--workers", 2, "--collect", "out/all.json"
    status, out, err = run(*words)
    assert (status, err) == (0, "") and out == "2 runs in runs/grid: 2 done\n" and ran() == ["10 ok", "2 ok"]
    folder = next(Path("runs/grid").glob("x=10-*"))
    assert {p.name for p in folder.iterdir()} == {
        "toy.ipynb", "params.json", "metrics.json", "log.txt", "made_by.json", ".lock",
    }
    made_by = json.loads((folder / "made_by.json").read_text())
    assert (made_by["state"] == "done" and made_by["parameters"] == {"rate": 0.00025, "x": 10} and made_by["cssgan"]
            and made_by["commit"] is None and made_by["seconds"] > 0)
    assert set(made_by["machine"]) == {"processor", "cores", "gpus", "system", "python", "torch"}
    assert os.uname().nodename not in json.dumps(made_by)
    assert json.loads((folder / "params.json").read_text()) == {"rate": 0.00025, "x": 10, "out_dir": str(folder)}
    outputs = [o for c in nbformat.read(folder / "toy.ipynb", 4).cells for o in c.get("outputs", [])]
    assert "squared" in (folder / "log.txt").read_text() and [o.text for o in outputs] == ["squared\n"]
    before = {p: p.stat().st_mtime_ns for p in Path("runs").rglob("*") if p.is_file()}
    assert run(*words, "--force")[:2] == (0, "2 runs in runs/grid: 2 done (2 of them before)\n") and len(ran()) == 2
    assert before == {p: p.stat().st_mtime_ns for p in Path("runs").rglob("*") if p.is_file()}
    said = run(grid(fixed={"rate": 0.00025}, x=[2, 3, 10]))[1]
    assert said == "3 runs in runs/grid: 3 done (2 of them before)\n" and ran() == ["10 ok", "2 ok", "3 ok"]
    table = collect("runs/grid")
    assert list(table.columns) == ["rate", "x", "score", "value", "threads", "CT.mean", "cssgan", "commit"]
    assert (table["x"].tolist() == [2, 2, 3, 3, 10, 10] and table["score"].tolist() == ["dice", "loss"] * 3
            and table["value"][0] == 2 / 3 and math.isnan(table["value"][1]))
    kept = json.loads(Path("out/all.json").read_text(), parse_constant=lambda c: pytest.fail(c))
    assert (kept["command"] == "cssgan_sweep grid.yaml --workers 2 --collect out/all.json"
            and len(kept["made_by"]) == 1 and set(kept["made_by"][0]) == {"cssgan", "commit", "changed", "machine"})
    assert (len(kept["rows"]) == 4 and kept["rows"][0]["rate"] == 0.00025 and kept["rows"][0]["value"] == 0.6667
            and kept["rows"][1]["value"] is None)


def test_what_failed_is_told_and_tried_again_only_when_asked(here, run):
    words = grid(x=[1, 2, 3], mode=["ok"]), grid("bad.yaml", x=[1], mode=["fails", "silent", "dies"])
    status, out, err = run(words[1], "--collect", "all.json")
    lines = {line.split(",mode=")[1].split("-")[0]: line for line in err.splitlines() if ",mode=" in line}
    assert status == 1 and out == "" and set(lines) == {"fails", "silent", "dies"} and not Path("all.json").exists()
    assert ("ValueError: 1 is too much (in the cell that begins 'if mode" in lines["fails"]
            and "metrics.json" in lines["silent"] and "DeadKernel" in lines["dies"])
    assert ("x}" in next(Path("runs/bad").glob("*fails-*/log.txt")).read_text() and "Traceback" not in err
            and "3 runs in runs/bad: 3 failed" in err.splitlines()[-1] and "--again" in err.splitlines()[-1]
            and folders("done") == [])
    status, out, err = run(words[1])
    assert status == 1 and err.count("failed before") == 3 and len(ran()) == 3
    Path("cure").touch()
    status, out, err = run(grid("bad.yaml", x=[1], mode=["fails"]), "--again")
    assert ((status, out, err) == (0, "1 run in runs/bad: 1 done\n", "") and folders("done") == ["x=1,mode=fails"]
            and len(ran()) == 4)
    assert collect("runs/bad")["mode"].tolist() == ["fails"] * 2


def test_a_folder_with_braces_and_spaces_and_a_commit(here, run, tmp_path, monkeypatch):
    home = tmp_path / "a {strange} name"
    home.mkdir()
    (home / "toy.ipynb").write_bytes((tmp_path / "toy.ipynb").read_bytes())
    monkeypatch.chdir(home)
    git = lambda *words: subprocess.run(
        ["git", "-c", "user.name=n", "-c", "user.email=e", *words], check=True, capture_output=True, text=True
    ).stdout.strip()
    for words in (("init",), ("add", "toy.ipynb"), ("commit", "-m", "m")): git(*words)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert run(grid(x=[1]), "--workers", 1)[0] == 0
    made_by = record_of(next(Path("runs/grid").iterdir()))
    assert (made_by["commit"] == git("rev-parse", "HEAD") == collect("runs/grid")["commit"][0]
            and made_by["changed"] is False and collect("runs/grid")["threads"][0] == "3")


def test_two_sweeps_over_one_folder_do_every_run_once(here, process):
    words = grid(x=[1, 2, 3], mode=["slow"]), "--workers", 1
    both = [process(*words) for _ in range(2)]
    said = [p.communicate() for p in both]
    assert [p.returncode for p in both] == [0, 0] and ran() == [f"{x} slow" for x in (1, 2, 3)], said
    assert (all("3 runs in runs/grid: 3 done" in out for out, _ in said)
            and "another sweep is at it" in said[0][1] + said[1][1])


# ---- stopping

@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_stopped_leaves_no_process_and_nothing_half_done(here, process, how):
    sweeping = process(grid(x=[1, 2], mode=["ok", "long"]), "--workers", 2)
    until(lambda: all("begun" in log_of(f"x={x},mode=long") for x in (1, 2)) and len(folders("done")) == 2)
    children = descendants(sweeping)
    sweeping.send_signal(how)
    out, err = sweeping.communicate(timeout=PATIENCE)
    last = "cssgan_sweep: stopped: 4 runs in runs/grid: 2 done, 2 left (go on with cssgan_sweep grid.yaml)"
    assert sweeping.returncode == 130 and out == "" and err.splitlines()[-1] == last, err
    assert len(children) >= 4 and gone(children) and "Traceback" not in err
    assert (folders("done") == ["x=1,mode=ok", "x=2,mode=ok"] and folders("failed") == []
            and len(list(Path("runs/grid").glob("*/saved"))) == 2)
    assert set(collect("runs/grid")["mode"]) == {"ok"}


def test_ctrl_c_twice_and_a_killed_sweep_leave_no_process_either(here, run, process):
    for signals in ([signal.SIGINT, signal.SIGINT], [signal.SIGKILL]):
        sweeping = process(grid(x=[1], mode=["long"]))
        until(lambda: "begun" in log_of("x=1,mode=long"))
        children = descendants(sweeping)
        for how in signals:
            sweeping.send_signal(how)
            time.sleep(.5)
        _, err = sweeping.communicate(timeout=PATIENCE)
        assert sweeping.returncode in (130, -9) and "Traceback" not in err, err
        assert gone(children) and folders("failed") == [], err
        for log in Path("runs/grid").glob("*/log.txt"): log.unlink()
    # the long cell is gone: the same run can be done, its lock is free
    notebook("toy.ipynb", CELLS[0], CELLS[1], CELLS[3])
    assert run("grid.yaml")[0] == 0 and folders("done") == ["x=1,mode=long"]


def test_a_cell_that_does_not_listen_is_killed_in_the_end(here, monkeypatch):
    deaf = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nprint('begun', flush=True)\n"
    notebook("deaf.ipynb", CELLS[0], deaf + "time.sleep(600)")
    code = "import cssgan.experiments.runs as r; r.GRACE = 1; r.work()"
    job = {
        "folder": "run", "notebook": "deaf.ipynb", "parameters": {}, "cwd": os.getcwd(), "wait": False, "before": None,
    }
    Path("run").mkdir()
    working = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, text=True,
        env=os.environ | {"JUPYTER_PREFER_ENV_PATH": "1"},
    )
    print(json.dumps(job), file=working.stdin, flush=True)
    until(lambda: Path("run/log.txt").exists() and "begun" in Path("run/log.txt").read_text())
    children = descendants(working)
    working.stdin.close()
    assert working.wait(timeout=PATIENCE) == runs.STOPPED and children and gone(children) and record_of("run") is None


# ---- a cluster

@pytest.fixture(scope="module")
def dask(tmp_path_factory):
    "A scheduler and a worker as somebody else would start them: its address."
    folder = tmp_path_factory.mktemp("dask")
    begin = lambda *words: subprocess.Popen(
        [sys.executable, "-m", "dask", *map(str, words)], cwd=folder, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    scheduler = begin(
        "scheduler", "--host", "127.0.0.1", "--port", 0, "--no-dashboard", "--scheduler-file", folder / "scheduler.json"
    )
    until((folder / "scheduler.json").exists)
    address = json.loads((folder / "scheduler.json").read_text())["address"]
    worker = begin("worker", address, "--nthreads", 1, "--no-nanny", "--no-dashboard", "--local-directory", folder)
    yield address
    for p in (worker, scheduler): p.terminate()
    for p in (worker, scheduler):
        try: p.wait(timeout=20)
        except subprocess.TimeoutExpired:  # a busy machine; it must not outlive the tests
            p.kill()
            p.wait()


def test_a_real_scheduler(here, run, dask):
    status, out, err = run(grid(x=[1, 2], mode=["ok", "fails"]), "--scheduler", dask)
    assert (status == 1 and err.count("is too much") == 2 and len(folders("done")) == 2
            and ran() == ["1 fails", "1 ok", "2 fails", "2 ok"])


def test_a_real_scheduler_is_left_as_it_was(here, run, process, dask):
    sweeping = process(grid(x=[1, 2], mode=["long"]), "--scheduler", dask)
    until(lambda: "begun" in log_of("x=1,mode=long") + log_of("x=2,mode=long"))
    sweeping.send_signal(signal.SIGINT)
    _, err = sweeping.communicate(timeout=PATIENCE)
    assert sweeping.returncode == 130 and "2 left" in err and len(list(Path("runs/grid").glob("*/saved"))) == 1
    assert run(grid(x=[3]), "--scheduler", dask)[0] == 0


def test_a_cluster_of_our_own_is_heard_on_this_machine_only():
    with sweeps.cluster(2, None) as client:
        listening = [c.laddr.ip for c in psutil.Process().net_connections() if c.status == psutil.CONN_LISTEN]
        assert list(client.nthreads().values()) == [2] and set(listening) <= {"127.0.0.1"}


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense://x", "127.0.0.1:notaport"])
def test_no_scheduler(here, run, monkeypatch, address):
    monkeypatch.setattr(sweeps, "PATIENCE", 1)
    status, out, err = run(grid(x=[1]), "--scheduler", address)
    assert status == 1 and out == "" and err.startswith("cssgan_sweep: no scheduler answers at"), err
    assert err.count("\n") == 0 and not ran(), err
    assert config.get("scheduler", None) != "dask.distributed", "Dask's default is a scheduler that does not exist"


# ---- collecting

def made(folder, parameters, metrics, **more):
    "A finished run."
    Path(folder).mkdir(parents=True)
    record = {"state": "done", "cssgan": "0", "commit": "c", "changed": False, "machine": {}}
    Path(folder, "made_by.json").write_text(json.dumps(record | {"parameters": parameters} | more))
    Path(folder, "metrics.json").write_text(metrics if isinstance(metrics, str) else json.dumps(metrics))


def test_rows_are_sorted_and_a_record_wins(here):
    made("r/a", {"x": 10, "m": "b"}, {"dice": {"CT": 1.0}})
    made("r/b", {"x": 9.5, "m": "b"}, [{"x": 3, "v": 1}, {"v": 2}])
    made("r/c", {"x": 9.5, "m": "a"}, {"v": 0})
    made("r/d", {"x": None, "m": "a"}, {"v": 9})
    made("r/e", {"x": 1, "m": "a"}, {"v": 9}, state="failed")
    table = collect("r")
    assert (list(table.columns) == ["x", "m", "v", "dice.CT", "cssgan", "commit"]
            and table["x"].tolist()[:4] == [9.5, 3, 9.5, 10] and table["v"].tolist()[:3] == [0, 1, 2]
            and len(table) == 5)


@pytest.mark.parametrize("metrics", ["{", "[]", "3", "[1]", "NaN"])
def test_damaged_metrics_are_named(here, metrics):
    made("r/a", {"x": 1}, metrics)
    with pytest.raises(RunError, match="r/a/metrics.json"): collect("r")


def test_nothing_to_collect(here):
    for folder in ("nowhere", "."):
        with pytest.raises(RunError, match="no finished run"): collect(folder)
    made("r/a", {}, {"v": 1})
    Path("r/a/made_by.json").write_text("{")
    with pytest.raises(RunError, match="damaged"): collect("r")


def test_a_runs_time_stands_beside_what_it_found_trained(here):
    for x in (1, 2): made(f"r/{x}", {"x": x}, {"v": 1})
    Path("r/2/params.json").write_text('{"x": 2, "stages": {"trained": 1, "resumed": 0, "read": 3}}')
    write_rows("r", "rows.json", "command")
    ran = json.loads(Path("rows.json").read_text())["ran"]
    assert ran["1"]["stages"] is None and ran["2"]["stages"] == {"trained": 1, "resumed": 0, "read": 3}


def test_makers_are_listed_once(here):
    for x, commit in ((1, "c"), (2, "c"), (3, "d")): made(f"r/{x}", {"x": x}, {"v": 1 / 3}, commit=commit)
    write_rows("r", "deep/rows.json", "command")
    kept = json.loads(Path("deep/rows.json").read_text())
    assert [m["commit"] for m in kept["made_by"]] == ["c", "d"] and [r["v"] for r in kept["rows"]] == [0.3333] * 3


def test_a_file_system_without_locks_is_told_from_a_lack_of_memory(here, monkeypatch):
    "A run's process says why it cannot begin; what it says arrives as it is."
    Path("run").mkdir()
    Path("run/.lock").mkdir()
    job = {
        "folder": "run", "notebook": "toy.ipynb", "parameters": {}, "cwd": os.getcwd(), "wait": False, "before": None,
    }
    with (process := runs.start(job, 1)).stdin: end = runs.ended(process, Path("run"))
    assert (end["state"] == "failed"
            and end["error"]["says"] == "run cannot be locked (Is a directory): choose another out: for the sweep")


@pytest.mark.parametrize(
    "status, stderr, says",
    [
        (-9, "", "was it killed"),
        (1, "Traceback\n  File x\nOSError: [Errno 37] No locks available\n", "No locks available"),
        (runs.REFUSED, "warned\nrun cannot be locked (No locks available)\n", "run cannot be locked"),
        (7, "", "was it killed"),
    ],
)
def test_how_a_process_ended_is_told_from_what_it_said(tmp_path, status, stderr, says):
    import io
    import types
    process = types.SimpleNamespace(wait=lambda: status, stderr=io.StringIO(stderr))
    error = runs.ended(process, tmp_path)["error"]["says"]
    assert says in error and (("memory" in error) == ("killed" in says))


def test_what_a_notebook_says_does_not_steer_a_terminal(tmp_path):
    error = {"name": "E\x1b[2J", "says": "\x1b[2Jred\n" + "y" * 2000, "cell": "z" * 500}
    said = sweeps.complaint("x=1-0f", {"error": error}, tmp_path)
    assert said.isprintable() and len(said) < 900
    assert sweeps.complaint("x=1-0f", {"state": "failed"}, tmp_path) == "x=1-0f: failed: its record does not say why"
