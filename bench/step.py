"""The fast joint step (`cssgan.fast`) against the plain one (`cssgan.joint`):

    python bench/step.py [--sizes small paper] [--rounds 5]

Five variants, each in fresh processes, in turn:
  plain     `cssgan.joint`: float32, contiguous, every pass on its own, PyTorch's own layers
  unshared  the same step with the quick networks, in the precision and layout of ours
  otherwise ours, but the two directions one after the other where ours has them side by side (small),
            side by side where ours has them in turn (paper)
  returning ours, but freed memory goes back to the system at once, as the C library has it
  ours      the toolkit's step, with its reuse of passes, directions, quick layers and memory habit"""
from statistics import median
from unittest.mock import patch

from common import GRIDS, NAMES, PATCH_LAYERS, batch, fresh, memory_peak, ms, options, row, seconds, start_ours, times

VARIANTS = ("plain", "unshared", "otherwise", "returning", "ours")
STEPS = {"toy": (1, 2), "small": (2, 7), "paper": (1, 3)}  # steps that do not count, that do
GOALS = {"small": (12, None, None, None), "paper": (6, None, None, None)}  # times as fast as VARIANTS[:4]


def plain_run(size, quick_networks):
    "A function that does one plain step, with plain networks or quick ones."
    import torch

    from cssgan.fast.networks import accelerate
    from cssgan.joint import Pool, joint_step, make_optimizers
    from cssgan.models import Networks
    nets = Networks(8, PATCH_LAYERS[size])
    if quick_networks: accelerate(nets)
    pools, rng, pair = {"A": Pool(), "B": Pool()}, torch.Generator().manual_seed(0), batch(GRIDS[size])
    optimizers = make_optimizers(nets)
    return lambda: joint_step(nets, optimizers, pair, pools, rng)


def our_run(size, variant):
    "A function that does one step of the toolkit, keeping freed memory or not, side by side or not."
    from cssgan.fast.step import side_by_side_pays
    from cssgan.training.run import step
    run, pair = start_ours(size, keep=variant != "returning")
    if variant != "otherwise": return lambda: step(run, "joint", pair)
    ours = side_by_side_pays(pair)
    opposite = lambda batch: not ours
    def action():
        with patch("cssgan.fast.step.side_by_side_pays", opposite): step(run, "joint", pair)
    return action


def measure(
    variant,  # of VARIANTS
    size,  # "toy", "small" or "paper"
) -> dict:  # {"seconds": one per step, "peak_MB"}
    "Steps of one variant in this process."
    action = plain_run(size, variant == "unshared") if variant in ("plain", "unshared") else our_run(size, variant)
    warm, count = STEPS[size]
    for _ in range(warm): action()
    return {"seconds": [seconds(action) for _ in range(count)], "peak_MB": memory_peak()}


def compare(size, rounds):
    "All variants at one size: detail and lines."
    rounds = rounds if size != "paper" else min(rounds, 2)  # the plain step takes half a minute there
    found = [{v: fresh("step.measure", variant=v, size=size) for v in VARIANTS} for _ in range(rounds)]
    time = [{v: median(r[v]["seconds"]) for v in VARIANTS} for r in found]
    detail = {"ms": {v: round(1000 * median(s for r in found for s in r[v]["seconds"]), 2) for v in VARIANTS},
              "peak_MB": {v: round(median(r[v]["peak_MB"] for r in found)) for v in VARIANTS}, "ratios": {}}
    rows = []
    otherwise = "both directions at once" if size == "paper" else "one direction after the other"
    others = ("the plain one", "the plain step with the quick networks (same precision and layout)", otherwise,
              "without keeping freed memory")
    for against, goal, words in zip(VARIANTS, GOALS.get(size, (None,) * 4), others):
        ratios = [t[against] / t["ours"] for t in time]
        detail["ratios"][against] = [round(r, 3) for r in ratios]
        what = f"Joint step, {NAMES[size]}, width 8: as fast as {words}"
        spread = f"{min(ratios):.3g} to {max(ratios):.3g} over {rounds} rounds"
        both = f"{ms(median(t[against] for t in time))} and {ms(median(t['ours'] for t in time))}"
        figure = f"{times(median(ratios))} ({spread}; {both})"
        met = median(ratios) >= goal if goal else None
        rows.append(row(what, figure, f"at least {goal} times" if goal else "", met))
    what = (f"Joint step, {NAMES[size]}: "
            "peak memory of plain, unshared, the directions arranged otherwise, returning, ours")
    rows.append(row(what, ", ".join(f"{detail['peak_MB'][v] / 1000:.2f}" for v in VARIANTS) + " GB"))
    return detail, rows


def main(quick=False, sizes=("small", "paper"), rounds=5):
    sizes, rounds = (("toy",), 1) if quick else (sizes, rounds)
    detail, rows = zip(*(compare(size, rounds) for size in sizes))
    return {"rows": sum(rows, []), "detail": dict(zip(sizes, detail))}


if __name__ == "__main__": main(**options(__doc__, sizes=["small", "paper"], rounds=5))
