"""What the measurements share: sizes, batches, fresh processes, the machine's description."""
import argparse
import importlib
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

BENCH = Path(__file__).resolve().parent
sys.path[:0] = [str(p) for p in (BENCH, BENCH.parent) if str(p) not in sys.path]
GRIDS = {"toy": (24, 24, 16), "small": (48, 48, 32), "paper": (112, 112, 86)}  # voxels along x, y, z
PATCH_LAYERS = {"toy": 1, "small": 2, "paper": 3}
NAMES = {s: f"{'×'.join(map(str, g))}" for s, g in GRIDS.items()}


ISOLATED = True  # False: `fresh` calls in this process, to see quickly that everything runs


def fresh(
    function,  # "module.function" of this folder
    **arguments,  # JSON-able
):  # what the function returned, JSON-able
    "Call a function in a new interpreter: nothing warm, nobody else's memory."
    module, name = function.split(".")
    if not ISOLATED:
        call = getattr(importlib.import_module(module), name)
        return json.loads(json.dumps(call(**json.loads(json.dumps(arguments)))))
    code = (
        f"import sys, json; sys.path.insert(0, sys.argv[1]); import {module}; "
        f"print('\\n' + json.dumps({module}.{name}(**json.loads(sys.argv[2]))))"
    )
    command = [sys.executable, "-c", code, str(BENCH), json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{function}({arguments}) ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def config(
    size,  # "toy", "small" or "paper", or a grid's shape
    width=8,  # channels
    **others,  # fields of Config
):
    "A run's configuration for a size."
    from cssgan.scans.volumes import Grid
    from cssgan.training.schedule import Config
    shape, layers = (GRIDS[size], PATCH_LAYERS[size]) if isinstance(size, str) else (tuple(size), 2)
    return replace(Config(Grid(shape, (1., 1., 1.)), width, layers), **others)


def batch(
    shape,  # voxels along x, y, z
    device="cpu",  # to compute on
):
    "One pair of volumes of noise with labels of noise: time does not depend on what is seen."
    import torch

    from cssgan.data.datasets import Batch
    random = torch.Generator().manual_seed(0)
    volume = lambda: (torch.rand((1, 1, *shape), generator=random) * 2 - 1).to(device)
    labels = lambda: torch.randint(0, 6, (1, *shape), generator=random).to(device)
    return Batch(volume(), labels(), volume(), labels(), ("a", "b"))


def start_ours(size, width=8, keep=True, **others):
    "A run of the toolkit, with `fit`'s habit of keeping freed memory (if `keep`), and a batch for `step`."
    from cssgan.training.run import keep_freed_memory, start
    if keep: keep_freed_memory()
    run = start(config(size, width, **others))
    return run, batch(run.config.grid.shape, run.device)


def seconds(action):
    "How long one call takes."
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def in_turn(
    actions,  # name → function without arguments
    rounds,  # how many times each
    warm=1,  # calls of each that do not count
):  # name → median seconds
    "Time several things, one after the other, again and again."
    for action in actions.values():
        for _ in range(warm): action()
    times = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items(): times[name].append(seconds(action))
    return {name: median(ts) for name, ts in times.items()}


def memory_now():
    "Resident memory of this process, MB (10^6 bytes)."
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def memory_peak():
    "The most resident memory that this process has had, MB. (`ru_maxrss` would begin with what the parent had.)"
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024 / 1e6
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def machine():
    "What the figures were measured on."
    import torch
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    field = lambda name: m[1].strip() if (m := re.search(rf"^{name}\s*:(.*)$", text, re.M)) else ""
    flags = field("flags").split()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": field("model name") or platform.machine(), "cores": os.cpu_count(),
            "threads": torch.get_num_threads(), "capability": torch.backends.cpu.get_cpu_capability(),
            "avx512f": "avx512f" in flags, "avx512_bf16": "avx512_bf16" in flags, "amx_bf16": "amx_bf16" in flags,
            "memory_GB": round(memory / 1e9), "gpu": gpu, "torch": torch.__version__,
            "python": platform.python_version(), "system": platform.system()}


def row(what, figure, goal="", met=None):
    "One line of the table, printed as well; `met`: has the goal been reached? None: there is none."
    mark = {None: "", True: "yes", False: "no"}[met]
    print(f"{what}: {figure}" + (f"  (goal {goal}: {mark or 'not judged'})" if goal else ""), flush=True)
    return {"what": what, "figure": figure, "goal": goal, "met": mark}


def options(
    doc,  # of the script
    **defaults,  # option → default; lists take several values
):
    "Command line of one script: `--quick` and its own options."
    parser = argparse.ArgumentParser(description=doc.strip().splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="toy sizes, seconds: does it run?")
    for name, default in defaults.items():
        kind = type(default[0] if isinstance(default, list) else default)
        parser.add_argument(f"--{name}", type=kind, default=default, nargs="+" if isinstance(default, list) else None)
    return vars(parser.parse_args())


def times(x): return f"{x:.3g} times"
def percent(x): return f"{100 * x:.3g} %"
def ms(s): return f"{1000 * s:,.0f} ms" if s >= .1 else f"{1000 * s:.3g} ms"
def slope(xs, ys):  # exponent of y ~ x^slope, least squares in logarithms
    lx, ly = [math.log(x) for x in xs], [math.log(y) for y in ys]
    mx, my = sum(lx) / len(lx), sum(ly) / len(ly)
    return sum((a - mx) * (b - my) for a, b in zip(lx, ly)) / sum((a - mx)**2 for a in lx)
