"""What the monitor costs: its time against the steps', in one and the same run:  python bench/watch.py [--pairs 64]

The run has widgets as in a notebook, so that everything is drawn that would be shown; there is no browser."""
import contextlib
import io
import tempfile
import time

from common import NAMES, config, fresh, options, percent, row

GOAL = .03  # of a step


def measure(size, pairs):
    "Seconds in the monitor and outside of it, and how often it drew; epochs of the joint phase over phantoms."
    import cssgan.viewers.monitor
    from cssgan.data.cases import phantom_cases
    from cssgan.data.datasets import unpaired
    from cssgan.scans.volumes import SMALL_GRID, Grid
    from cssgan.training.schedule import Phase
    from cssgan.training.trainer import fit
    cssgan.viewers.monitor.in_browser = lambda: True
    grid = SMALL_GRID if size == "small" else Grid((24, 24, 16), (7., 7., 8.))
    monitor, inside = None, 0.

    def callback(run, keep):
        nonlocal inside
        begin = time.perf_counter()
        monitor(run, keep)
        inside += time.perf_counter() - begin

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        data = unpaired(phantom_cases({"train": (pairs, pairs), "valid": (1, 1)}), grid, f"{folder}/cache")
        monitor = cssgan.viewers.monitor.Monitor(data)
        for samples in (data.train_A, data.train_B):
            for case in samples.cases: samples.prepared(case)
        joint = config(size, grid=grid, phases=(Phase("joint", 3),))
        begin = time.perf_counter()
        fit(data, joint, f"{folder}/run", progress=False, save_every=1e9, callback=callback)
        return {"inside": inside, "outside": time.perf_counter() - begin - inside, "frames": len(monitor.frames)}


def main(quick=False, pairs=64):
    size, pairs = ("toy", 2) if quick else ("small", pairs)
    found = fresh("watch.measure", size=size, pairs=pairs)
    share = found["inside"] / found["outside"]
    what = f"The monitor, of the time of training that it watches, {NAMES[size]}, 3 epochs of {pairs} steps"
    figure = f"{percent(share)} ({found['frames']} frames)"
    return {"rows": [row(what, figure, f"under {percent(GOAL)}", share < GOAL)], "detail": found}


if __name__ == "__main__": main(**options(__doc__, pairs=64))
