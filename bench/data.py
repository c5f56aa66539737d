"""Reading cases, and memory that must not grow:  python bench/data.py [--steps 1000]

A pair's reading from the cache against a joint step, in turn; memory after an epoch over more and more cases; memory
over many steps of training."""
import tempfile

from common import GRIDS, NAMES, config, fresh, in_turn, memory_now, memory_peak, ms, options, percent, row, start_ours

GOAL = .03  # of a step, for reading a pair


def pairs(size, n, cache):
    "Training data of n phantoms of each modality."
    from cssgan.data.cases import phantom_cases
    from cssgan.data.datasets import UnpairedData
    from cssgan.data.prepared import Samples
    from cssgan.scans.volumes import PAPER_GRID, SMALL_GRID, Grid
    grid = {"paper": PAPER_GRID, "small": SMALL_GRID}.get(size) or Grid(GRIDS[size], (7., 7., 8.))
    cases = phantom_cases({"train": (n, n)})
    A, B = (Samples([c for c in cases if c.modality == m], grid, cache) for m in ("CT", "MRI"))
    return UnpairedData(A, B, A, B)


def fill(size, n, cache):
    "Draw the phantoms and keep them."
    data = pairs(size, n, cache)
    for samples in (data.train_A, data.train_B):
        for case in samples.cases: samples.prepared(case)


def reading(size, cache, rounds=5, n=4):
    "Seconds for a pair and for a step, in turn, in this process."
    from cssgan.training.run import step
    data = pairs(size, n, cache)
    run, pair = start_ours(size)
    def read(count=[0]):
        count[0] += 1
        return next(data.epoch(0, count[0]))
    return in_turn({"read": read, "step": lambda: step(run, "joint", pair)}, rounds)


def over_cases(size, n, cache):
    "Memory of a process that has read every pair once, MB."
    for _ in pairs(size, n, cache).epoch(0, 0): pass
    return {"now": memory_now(), "peak": memory_peak()}


def over_steps(cache, steps, every):
    "Memory during training on a tiny grid, MB, each so many steps; the toolkit's own loop."
    from cssgan.training.run import keep_freed_memory, start, train_epoch
    keep_freed_memory()
    data, found, count = pairs("toy", 8, cache), [], 0
    run = start(config("toy", 4))
    def note(run):
        nonlocal count
        count += 1
        if count % every == 0: found.append(memory_now())
    run.phase, run.config = 0, config("toy", 4, phases=joint_only(steps))
    while count < steps:
        train_epoch(run, data, note, progress=False)
        run.history.append({})
        run.seen, run.losses = 0, {}
    return found


def joint_only(steps):
    "Phases of joint training alone."
    from cssgan.training.schedule import Phase
    return (Phase("joint", steps),)


def per_thousand(memory, every):
    "MB by which memory grows in 1,000 steps: least squares over the second half, when the pools are full."
    late = memory[len(memory) // 2:]
    xs = [every * i for i in range(len(late))]
    mx, my = sum(xs) / len(xs), sum(late) / len(late)
    return 1000 * sum((x - mx) * (y - my) for x, y in zip(xs, late)) / sum((x - mx)**2 for x in xs)


def main(quick=False, steps=1000):
    sizes, counts, size_of_counts = (("toy",), (2, 4), "toy") if quick else (("small", "paper"), (4, 16, 64), "small")
    steps = 12 if quick else steps
    every = max(steps // 10, 1)
    rows, detail = [], {"reading": {}, "cases": {}}
    with tempfile.TemporaryDirectory() as cache:
        for size in sizes:
            fresh("data.fill", size=size, n=4, cache=cache)
            t = detail["reading"][size] = fresh("data.reading", size=size, cache=cache)
            share = t["read"] / t["step"]
            what = f"Reading a pair from the cache, {NAMES[size]}, of a joint step"
            figure = f"{percent(share)} ({ms(t['read'])} of {ms(t['step'])})"
            rows.append(row(what, figure, f"under {percent(GOAL)}", share < GOAL))
        fresh("data.fill", size=size_of_counts, n=counts[-1], cache=cache)
        for n in counts: detail["cases"][n] = fresh("data.over_cases", size=size_of_counts, n=n, cache=cache)
        peaks = [found["peak"] for found in detail["cases"].values()]
        what = f"Peak memory after reading {', '.join(map(str, counts))} pairs, {NAMES[size_of_counts]}"
        figure = ", ".join(f"{p:,.0f}" for p in peaks) + " MB"
        rows.append(row(what, figure, "does not grow: within 5 %", peaks[-1] < 1.05 * peaks[0]))
        fresh("data.fill", size="toy", n=8, cache=cache)
        memory = detail["steps"] = fresh("data.over_steps", cache=cache, steps=steps, every=every)
    growth = per_thousand(memory, every)
    what = (f"Memory over {steps:,} steps of training, {NAMES['toy']}, width 4: "
            "growth in the second half, per 1,000 steps")
    goal, met = ("", None) if quick else ("does not grow: under 1 %", abs(growth) < .01 * memory[-1])
    rows.append(row(what, f"{growth:+.1f} MB of {memory[-1]:,.0f} MB", goal, met))
    return {"rows": rows, "detail": detail | {"every": every}}


if __name__ == "__main__": main(**options(__doc__, steps=1000))
