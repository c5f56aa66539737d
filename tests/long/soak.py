"""Hours of a rough life in some minutes: `make soak`, or
python tests/long/soak.py [kills disk writes crowd repeat] [--quick]

kills   SIGKILL at random moments of training, of building a cache, of sweeps: three hundred in all. What comes out
        must be what comes out undisturbed, byte for byte.
disk    a disk (tmpfs) that is full, at many sizes: one line, nothing half-written; with room, the run is resumed.
writes  the disk is full from the n-th write of a training on, for every third n.
crowd   four processes build one cache at once: each finds what one alone would have made.
repeat  two thousand inferences in one process: memory and open files stay as they are.

Each part prints its figures; what is broken ends with status 1.
"""
import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])
os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
PATIENCE = 600  # seconds


def content(folder, ignore=()):
    "What a folder's files hold; locks, and what else is told, left out."
    skip = lambda p: p.name.startswith(".lock") or p.suffix == ".lock" or p.name in ignore
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(Path(folder).rglob("*")) if p.is_file() and not skip(p)}


def litter(folder):
    return [str(p.relative_to(folder)) for p in Path(folder).rglob(".*") if not p.name.startswith(".lock")]


# ---- what the children do; imported once, by the server that forks them

def child_trains(folder):
    import children
    from tiny import noise

    from cssgan.training.trainer import fit
    fit(noise(), children.RUN, folder, resume=True, progress=False, save_every=0.0)


def child_caches(data, cache):
    from tiny import TINY

    from cssgan.data.datasets import unpaired
    from cssgan.data.folders import from_folder
    from cssgan.data.splits import with_splits
    unpaired(with_splits(from_folder(data)), TINY, cache).prepare()


def child_has_no_room(folder, moment):
    "From the moment-th file on the disk is full; says so with status 7."
    import children

    from cssgan.guard import InputError
    children.disk_is_full(moment)
    try: child_trains(folder)
    except InputError as e:
        assert "No space left" in str(e) and str(folder) in str(e), e
        os._exit(7)


def until_it_ends(server, target, limit, rng, longest):
    "Run a child again and again, killed at random moments until the limit, then left to end: how many kills."
    kills = 0
    while True:
        process = server.Process(target=target)
        process.start()
        process.join(rng.random() * longest if kills < limit else PATIENCE)
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
            continue
        assert process.exitcode == 0, f"ended with {process.exitcode}"
        return kills


def kills(quick):
    "SIGKILLs over training, caches and sweeps."
    server, rng, top = forkserver(), random.Random(0), Path(tempfile.mkdtemp())
    count, begun = {}, time.monotonic()
    once(server, partial(child_trains, top / "whole"))
    seconds = timed(lambda: once(server, partial(child_trains, top / "timed")))
    want = 10 if quick else 150
    count["training"] = round_number = 0
    while count["training"] < want:
        run = top / f"run{round_number}"
        kills = min(25, want - count["training"])
        count["training"] += until_it_ends(server, partial(child_trains, run), kills, rng, seconds / 3)
        assert latest(run) == latest(top / "whole"), f"{run} ended otherwise"
        round_number += 1
    write_data(top / "data")
    once(server, partial(child_caches, top / "data", top / "cache"))
    count["caches"], n = 0, 0
    seconds = timed(lambda: once(server, partial(child_caches, top / "data", top / "timed-cache")))
    while count["caches"] < (10 if quick else 120):
        n += 1
        child = partial(child_caches, top / "data", top / f"cache{n}")
        count["caches"] += until_it_ends(server, child, 8, rng, seconds)
        assert content(top / f"cache{n}") == content(top / "cache"), "a cache differs"
    count["sweeps"] = sweeps_killed(top, 3 if quick else 30, rng)
    shutil.rmtree(top)
    return {**count, "all": sum(count.values()), "minutes": round((time.monotonic() - begun) / 60, 1)}


def latest(run):
    "The current checkpoints of a run, without what is kept of the one before."
    found = {}
    for part in ("best", "last"):
        about = json.loads((run / part / "checkpoint.json").read_text())
        found |= {f"{part}/{name}": hashlib.sha256((run / part / name).read_bytes()).hexdigest()
                  for group in about["files"].values() for name in group}
        found[part] = hashlib.sha256((run / part / "checkpoint.json").read_bytes()).hexdigest()
    return found


def sweeps_killed(top, want, rng):
    "A sweep's whole process group is killed; the same command goes on."
    from test_sweeps import CELLS, notebook

    import cssgan.experiments.sweeps
    def grid(place):
        place.mkdir()
        notebook(place / "toy.ipynb", *CELLS)
        sweep = {"notebook": "toy.ipynb", "parameters": {"mode": "slow"}, "grid": {"x": list(range(6))}}
        (place / "grid.yaml").write_text(json.dumps(sweep))
    def sweep(place, seconds):
        code = ("import sys; from cssgan.cli.commands import sweep_main; "
                "sys.exit(sweep_main(['grid.yaml', '--workers', '2']))")
        process = subprocess.Popen([sys.executable, "-c", code], cwd=place, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE, start_new_session=True)
        try: process.wait(seconds)
        except subprocess.TimeoutExpired: os.killpg(process.pid, signal.SIGKILL)
        said = process.stderr.read().decode()
        process.wait()
        return process.returncode, said
    def rows(place):
        os.chdir(place)
        try:
            return [{k: v for k, v in row.items() if k not in ("cssgan", "commit")}
                    for row in cssgan.experiments.sweeps.collect("runs/grid").to_dict("records")]
        finally: os.chdir(HERE)
    grid(top / "sweep-whole")
    begun = time.monotonic()
    status, said = sweep(top / "sweep-whole", PATIENCE)
    assert status == 0, said
    seconds, done, n = time.monotonic() - begun, 0, 0
    while done < want:
        n += 1
        grid(place := top / f"sweep{n}")
        for _ in range(6):
            status, _ = sweep(place, 2 + rng.random() * seconds)
            done += status == -signal.SIGKILL
            if status == 0: break
            time.sleep(1.5)  # a run's process notices that nobody wants it
        status, said = sweep(place, PATIENCE)
        assert status == 0 and str(rows(place)) == str(rows(top / "sweep-whole")), f"{place}: {status} {said}"
        assert not [p for p in litter(place) if p.endswith(".part")], litter(place)
    return done


# ---- a full disk

def disk(quick):
    "A file system of so many kilobytes; training, a cache and a result on it."
    if os.getuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", mount := tempfile.mkdtemp()],
                                     capture_output=True).returncode:
        return {"skipped": "mounting a small file system needs root"}
    mount, server, lines = Path(mount), forkserver(), []
    data = Path(tempfile.mkdtemp())
    write_data(data / "data")
    try:
        for kb in range(16, 1024, 200 if quick else 40):
            subprocess.run(["mount", "-o", f"remount,size={kb}k", str(mount)], check=True)
            train = ["cssgan_train", "--data", data / "data", "--out", mount / "run", "--preset", "smoke", "--quiet",
                     "--cache", mount / "cache"]
            draw = ["cssgan_phantom", "--out", mount / "phantoms", "--n", "2", "--grid", "small"]
            for name, words in (("train", train), ("phantom", draw)):
                done = command(words, server)
                said = done["err"].strip().splitlines()
                if done["status"]:
                    assert done["status"] == 1 and said and len(said[-1]) < 340, (kb, name, done)
                    assert "Traceback" not in done["err"], (kb, name, done)
                    assert "No space left" in said[-1] or "room" in said[-1], said
                    lines.append(f"{name} {kb}")
                assert not [p for p in mount.rglob("*.part")], "half-written files stay"
                for p in mount.iterdir(): shutil.rmtree(p) if p.is_dir() else p.unlink()
        assert lines, "no disk was too small"
    finally:
        subprocess.run(["umount", str(mount)])
        shutil.rmtree(data)
    return {"refused on a full disk": len(lines)}


def command(words, server=None):
    "One of the commands, in a process of its own."
    name, *rest = map(str, words)
    main = f"{name.removeprefix('cssgan_')}_main"
    code = f"import sys; from cssgan.cli import commands as cli; sys.exit(cli.{main}(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, *rest], capture_output=True, text=True, timeout=PATIENCE)
    return {"status": done.returncode, "out": done.stdout, "err": done.stderr}


def writes(quick):
    "The disk is full from some write of a training on: refused, and resumed with room it comes to the same end."
    server, top, refused = forkserver(), Path(tempfile.mkdtemp()), 0
    once(server, partial(child_trains, top / "whole"))
    for moment in range(1, 400, 29 if quick else 3):
        process = server.Process(target=partial(child_has_no_room, run := top / f"run{moment}", moment))
        process.start()
        process.join(PATIENCE)
        if process.exitcode == 0: break
        assert process.exitcode == 7, f"ended with {process.exitcode} when write {moment} found no room"
        assert not [p for p in run.rglob("*.part")], "half-written files stay"
        once(server, partial(child_trains, run))
        assert latest(run) == latest(top / "whole"), f"{run} ended otherwise"
        refused += 1
        shutil.rmtree(run)
    shutil.rmtree(top)
    return {"writes that found no room": refused, "the last of them": moment}


# ---- a crowd

def crowd(quick):
    "Four at one cache."
    server, top = forkserver(), Path(tempfile.mkdtemp())
    write_data(top / "data")
    once(server, partial(child_caches, top / "data", top / "alone"))
    rounds = 2 if quick else 10
    for n in range(rounds):
        crowd = [server.Process(target=partial(child_caches, top / "data", top / f"cache{n}")) for _ in range(4)]
        for p in crowd: p.start()
        for p in crowd: p.join(PATIENCE)
        assert [p.exitcode for p in crowd] == [0] * 4 and content(top / f"cache{n}") == content(top / "alone")
        assert not litter(top / f"cache{n}")
    shutil.rmtree(top)
    return {"caches built by four": rounds}


# ---- again and again

def repeat(quick):
    "Inferences in one process."
    import warnings

    from cssgan.inference.model import segment, translate
    from cssgan.models import Networks
    from cssgan.phantoms.scanners import phantom
    from cssgan.scans.files import write_label
    from cssgan.scans.volumes import Grid
    from cssgan.training.checkpoints import save_checkpoint
    from cssgan.training.schema import about_networks
    warnings.simplefilter("ignore")
    grid, top = Grid((24, 24, 16), (7.0, 7.0, 8.0)), Path(tempfile.mkdtemp())
    save_checkpoint(top / "best", nets := Networks(width=4, patch_layers=1),
                    about_networks(nets, grid, {"CT": (-1000.0, 1000.0), "MRI": (10.0, 600.0)}))
    scan, figures = phantom(1, "CT", grid), []
    memory = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    for n in range(100 if quick else 2000):
        if n % 2: translate(scan, top / "best", "MRI")
        else:
            try: write_label(segment(scan, top / "best", "CT").label, scan.affine, top / "label.nii.gz")
            except ValueError: pass  # networks that learned nothing find no heart
        if n % 50 == 49: figures.append((memory(), len(os.listdir("/proc/self/fd"))))
    shutil.rmtree(top)
    (first, files), (last, files_then) = figures[1], figures[-1]
    assert last - first < 20 and files_then <= files, figures
    return {"inferences": n + 1, "MB after 100": round(first), "MB at the end": round(last), "open files": files_then}


# ---- together

def forkserver():
    "Forks children that have imported everything already."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["children"])
    return context


def once(server, target):
    process = server.Process(target=target)
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == 0, f"ended with {process.exitcode}"


def timed(action):
    begun = time.monotonic()
    action()
    return time.monotonic() - begun


def write_data(folder):
    from tiny import TINY

    from cssgan.data.writing import write_phantoms
    write_phantoms(folder, 6, grid=TINY)


PARTS = {"kills": kills, "disk": disk, "writes": writes, "crowd": crowd, "repeat": repeat}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="a tenth of it")
    asked, broken = parser.parse_args(), []
    for name in asked.parts or PARTS:
        try: print(f"{name}: {PARTS[name](asked.quick)}", flush=True)
        except AssertionError as e:
            broken.append(name)
            print(f"{name}: BROKEN: {e}", flush=True)
    sys.exit(bool(broken))
