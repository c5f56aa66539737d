"""The joint step on a GPU:  python bench/gpu.py [--sizes small paper] [--widths 8 16]

Plain float32, plain bfloat16, ours, ours through torch.compile, each in a fresh process; CUDA events keep the time."""
from contextlib import nullcontext
from functools import partial
from statistics import median

import torch
from common import GRIDS, NAMES, PATCH_LAYERS, batch, config, fresh, options, percent, row

VARIANTS = ("plain float32", "plain bfloat16", "ours", "ours compiled")
GOALS = {("paper", 16): (60, 8)}  # ms a step and GB on an H100


def events_ms(action, count):
    "Median milliseconds of a call, by CUDA events."
    times = []
    for _ in range(count):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        action()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return median(times)


def action_of(variant, size, width):
    "A function that does one joint step on the GPU."
    from cssgan.joint import Pool, joint_step, make_optimizers
    from cssgan.models import Networks
    from cssgan.training.run import start, step
    device = torch.device("cuda")
    pair = batch(GRIDS[size], device)
    if variant.startswith("ours"):
        run = start(config(size, width), device=device)
        if variant == "ours compiled":
            for net in run.nets.children(): net.compile()
        return lambda: step(run, "joint", pair)
    nets = Networks(width, PATCH_LAYERS[size]).to(device)
    precision = partial(torch.autocast, "cuda", torch.bfloat16) if variant == "plain bfloat16" else nullcontext
    optimizers, pools, rng = make_optimizers(nets), {"A": Pool(), "B": Pool()}, torch.Generator().manual_seed(0)
    def plain():
        with precision(): joint_step(nets, optimizers, pair, pools, rng)
    return plain


def measure(variant, size, width, count=20):
    "Time, memory and, of ours, the share of a large bfloat16 matrix product's throughput, in this process."
    from limit import flops
    action = action_of(variant, size, width)
    for _ in range(5): action()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    found = {"ms": events_ms(action, count), "peak_GB": torch.cuda.max_memory_allocated() / 1e9}
    if variant != "ours": return found
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5): a @ b
    peak = 2 * 8192**3 / events_ms(lambda: a @ b, count)
    return found | {"operations": flops(action), "share": flops(action) / found["ms"] / peak}


def attempt(variant, size, width):
    "A measurement, or why there is none."
    try: return fresh("gpu.measure", variant=variant, size=size, width=width)
    except RuntimeError as e: return {"error": str(e).splitlines()[-1][-300:]}


def compare(size, width):
    "All variants of one size and width: detail and lines."
    found, where = {v: attempt(v, size, width) for v in VARIANTS}, f"GPU, joint step, {NAMES[size]}, width {width}"
    def describe(v):
        if "ms" not in found[v]: return f"{v}: no figure, {found[v]['error']}"
        return f"{v} {found[v]['ms']:.1f} ms, {found[v]['peak_GB']:.2f} GB"
    limit, ours = GOALS.get((size, width)), found["ours"]
    met = "ms" in ours and ours["ms"] <= limit[0] and ours["peak_GB"] <= limit[1] if limit else None
    goal = f"at most {limit[0]} ms and {limit[1]} GB (one H100)" if limit else ""
    rows = [row(where, "; ".join(map(describe, VARIANTS)), goal, met)]
    what = f"{where}: share of the throughput of a large bfloat16 matrix product"
    if "share" in ours: rows.append(row(what, percent(ours["share"])))
    return found, rows


def main(quick=False, sizes=("small", "paper"), widths=(8, 16)):
    if not torch.cuda.is_available():
        print("GPU: not measured, PyTorch finds no CUDA device here", flush=True)
        return {"rows": [], "detail": {"none": "PyTorch finds no CUDA device here"}}
    if quick: sizes, widths = ("toy",), (8,)
    detail, rows = {}, []
    for size in sizes:
        for width in widths:
            detail[f"{size}, width {width}"], lines = compare(size, width)
            rows += lines
    return {"rows": rows, "detail": detail}


if __name__ == "__main__": main(**options(__doc__, sizes=["small", "paper"], widths=[8, 16]))
