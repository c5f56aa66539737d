"""Time and memory against voxels, width and number of cases:  python bench/growth.py

Every point in a fresh process; the plot is bench/growth.png."""
import math
import tempfile
from statistics import median

import data
from common import BENCH, config, fresh, memory_peak, ms, options, row, seconds, slope, start_ours

SHAPES = [(32, 32, 24), (48, 48, 32), (72, 72, 56), (112, 112, 86)]
WIDTHS, CASES, FEW = [4, 8, 16], [4, 16, 64], (48, 48, 32)
GOALS = {"voxels": ("voxels", "linear: at most 1.15", 1.15),
         "width": ("width", "between linear and quadratic: at most 2", 2.),
         "cases": ("pairs in an epoch", "a pair's time constant: within 0.1", .1)}


def point(shape, width=8, count=3):
    "Median seconds of a joint step, and MB, in this process."
    from cssgan.training.run import step
    run, pair = start_ours(shape, width)
    action = lambda: step(run, "joint", pair)
    action()
    return {"seconds": median(seconds(action) for _ in range(count)), "peak_MB": memory_peak()}


def epoch(size, n, cache, width):
    "Seconds of one epoch for each pair, and MB, in this process; the toolkit's own loop."
    from cssgan.training.run import keep_freed_memory, start, train_epoch
    keep_freed_memory()
    pairs, run = data.pairs(size, n, cache), start(config(size, width, phases=data.joint_only(9)))
    def once():
        train_epoch(run, pairs, progress=False)
        run.history.append({})
        run.seen, run.losses = 0, {}
    if n <= 8: once()  # warm, and a short epoch alone would be noise
    return {"seconds": seconds(once) / n, "peak_MB": memory_peak()}


def plot(detail, file):
    "Time and memory of each series in a pair of panels, logarithmic, with lines of slope 1."
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    series = {"voxels": "voxels of a volume", "width": "width (channels at full resolution)",
              "cases": "pairs in an epoch"}
    kinds = ("seconds", 1000, "#1f6f8b", "ms a step"), ("peak_MB", .001, "#b5533c", "GB at the peak")
    figure, axes = plt.subplots(2, 3, figsize=(11, 6.2), sharex="col", layout="constrained")
    for column, (name, label) in zip(axes.T, series.items()):
        points = detail[name]
        xs = [p["x"] for p in points]
        for axis, (key, scale, colour, unit) in zip(column, kinds):
            ys = [scale * p[key] for p in points]
            if name != "cases":
                axis.plot(xs, [ys[-1] * x / xs[-1] for x in xs], "--", color="#999999", linewidth=1, label="slope 1")
            else: axis.axhline(median(ys), linestyle="--", color="#999999", linewidth=1, label="constant")
            axis.plot(xs, ys, "o-", color=colour, linewidth=1.8, markersize=5)
            axis.set(xscale="log", yscale="log")
            low, high = min(ys), max(ys)
            if high < 3 * low: axis.set_ylim(low / 2, high * 2)
            axis.set_xticks(xs, [f"{x:,}" if x < 1e4 else f"{x / 1e6:.2g} M" for x in xs])
            axis.minorticks_off()
            axis.grid(alpha=.25)
            axis.spines[["top", "right"]].set_visible(False)
            if name == "voxels": axis.set_ylabel(unit)
            axis.legend(frameon=False, loc="upper left")
            from matplotlib.ticker import FuncFormatter, LogLocator
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.6g}"))
        column[1].set_xlabel(label)
    axes[0, 1].set_title("The joint step: time (above) and memory (below)", fontsize=11, pad=10)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main(quick=False, save=True):
    shapes, widths, counts, few = SHAPES, WIDTHS, CASES, FEW
    if quick: shapes, widths, counts, few = [(24, 24, 16), (32, 32, 24)], [4, 8], [1, 2], (24, 24, 16)
    size, width = ("toy", 4) if quick else ("small", 8)
    detail = {"voxels": [{"x": math.prod(s), "shape": "×".join(map(str, s)), **fresh("growth.point", shape=s)}
                         for s in shapes],
              "width": [{"x": w, **fresh("growth.point", shape=few, width=w)} for w in widths]}
    with tempfile.TemporaryDirectory() as cache:
        fresh("data.fill", size=size, n=counts[-1], cache=cache)
        detail["cases"] = [{"x": n, **fresh("growth.epoch", size=size, n=n, cache=cache, width=width)} for n in counts]
    rows = []
    for name, (words, expected, limit) in GOALS.items():
        points = detail[name]
        of = lambda key: slope([p["x"] for p in points], [p[key] for p in points])
        met = abs(of("seconds")) <= limit if name == "cases" else of("seconds") <= limit
        what = f"Growth with {words}: time and memory go with the power"
        figure = f"{of('seconds'):.2f} and {of('peak_MB'):.2f} ({', '.join(ms(p['seconds']) for p in points)})"
        rows.append(row(what, figure, *(("", None) if quick else (expected, met))))
    target = tempfile.NamedTemporaryFile(suffix=".png").name if quick or not save else BENCH / "growth.png"
    plot(detail, target)
    return {"rows": rows, "detail": detail}


if __name__ == "__main__": main(**options(__doc__))
