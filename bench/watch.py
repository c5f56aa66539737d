"""What the monitor and the log cost: their time against the steps':  python bench/watch.py [--pairs 64]

The monitor has widgets as in a notebook, so that everything is drawn that would be shown; there is no browser. The log
writes what it writes for `cssgan_train`: table, line, curves, TensorBoard's events with pictures."""
import contextlib
import io
import tempfile
import time

from common import NAMES, config, fresh, options, percent, row

GOAL = .03  # of a step


def measure(size, pairs, watcher="monitor"):
    "Seconds in the monitor (or the log) and outside of it, how often it drew; epochs of the joint phase over phantoms."
    import cssgan.viewers.monitor
    from cssgan.data.cases import phantom_cases
    from cssgan.data.datasets import unpaired
    from cssgan.scans.volumes import SMALL_GRID, Grid
    from cssgan.training.logs import TrainingLog
    from cssgan.training.schedule import Phase
    from cssgan.training.trainer import fit
    cssgan.viewers.monitor.in_browser = lambda: True
    grid = SMALL_GRID if size == "small" else Grid((24, 24, 16), (7., 7., 8.))
    called, inside, pictures = None, 0., []

    def callback(run, keep):
        nonlocal inside
        begin = time.perf_counter()
        called(run, keep)
        inside += time.perf_counter() - begin

    class Counting(TrainingLog):
        def draw(self, run): super().draw(run), pictures.append(run.epoch)

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        data = unpaired(phantom_cases({"train": (pairs, pairs), "valid": (1, 1)}), grid, f"{folder}/cache")
        log = Counting(f"{folder}/run", data, print)
        called = cssgan.viewers.monitor.Monitor(data) if watcher == "monitor" else log
        for samples in (data.train_A, data.train_B):
            for case in samples.cases: samples.prepared(case)
        joint = config(size, grid=grid, phases=(Phase("joint", 3),))
        begin = time.perf_counter()
        fit(data, joint, f"{folder}/run", progress=False, save_every=1e9, callback=callback)
        frames = len(called.frames if watcher == "monitor" else pictures)
        return {"inside": inside, "outside": time.perf_counter() - begin - inside, "frames": frames}


def main(quick=False, pairs=64):
    size, pairs = ("toy", 2) if quick else ("small", pairs)
    rows, detail = [], {}
    for watcher in "monitor", "log":
        found = detail[watcher] = fresh("watch.measure", size=size, pairs=pairs, watcher=watcher)
        share = found["inside"] / found["outside"]
        what = f"The {watcher}, of the time of training that it watches, {NAMES[size]}, 3 epochs of {pairs} steps"
        figure = f"{percent(share)} ({found['frames']} {'frames' if watcher == 'monitor' else 'times drawn'})"
        rows.append(row(what, figure, f"under {percent(GOAL)}", share < GOAL))
    return {"rows": rows, "detail": detail}


if __name__ == "__main__": main(**options(__doc__, pairs=64))
