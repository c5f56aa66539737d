"""Whole volumes against MONAI's sliding window:  python bench/inference.py [--rounds 5]

A volume of the training grid's size: the toolkit's `sliding_window`, the network called directly, MONAI with one window
that covers everything, and MONAI with the common smaller window. Same network, same precision. The seam is the largest
difference from the direct answer."""
import numpy as np
import torch
from common import GRIDS, NAMES, fresh, in_turn, ms, options, row, times
from monai.inferers import SlidingWindowInferer

SMALLER = {"paper": (96, 96, 64), "toy": (24, 16, 16)}


def measure(
    kind,  # "Generator" or "Segmentor"
    size="paper",  # or "toy"
    rounds=5,  # how many times each
):
    "Times and seams of one network in this process."
    import cssgan.models
    from cssgan.fast.networks import accelerate
    from cssgan.inference.windows import sliding_window
    from cssgan.phantoms.scanners import phantom
    from cssgan.scans.volumes import PAPER_GRID, Grid, normalise
    from cssgan.training.run import keep_freed_memory
    keep_freed_memory()
    torch.manual_seed(0)
    network = accelerate(getattr(cssgan.models, kind)(8).eval())
    grid = PAPER_GRID if size == "paper" else Grid(GRIDS[size], (7., 7., 8.))
    volume = normalise(phantom(0, "CT", grid))
    x = torch.from_numpy(np.ascontiguousarray(volume.voxels, np.float32))[None, None]
    def predict(window): return network(window)
    def monai(roi):
        inferer = SlidingWindowInferer(roi, 1, overlap=.5, mode="gaussian", cval=-1.)
        return lambda: inferer(x, predict)
    actions = {"ours": lambda: sliding_window(network, volume, grid)[None], "direct": lambda: predict(x),
               "monai_whole": monai(grid.shape), "monai_smaller": monai(SMALLER[size])}
    with torch.no_grad():
        direct = predict(x)
        seam = {name: (action() - direct).abs().max().item() for name, action in actions.items()}
        found = {name: 1000 * t for name, t in in_turn(actions, rounds).items()}
        return {"ms": found, "seam": seam, "spread": direct.std().item()}


def rows_of(kind, size, found):
    "Lines about one network."
    t, seam = found["ms"], found["seam"]
    whole, smaller = (t[name] / t["ours"] for name in ("monai_whole", "monai_smaller"))
    where = f"{kind}, {NAMES[size]}, width 8"
    both = f"{ms(t['monai_whole'] / 1000)} and {ms(t['ours'] / 1000)}; the bare network {ms(t['direct'] / 1000)}"
    windows = "×".join(map(str, SMALLER[size]))
    seams = f"{seam['ours']:.2g}; {seam['monai_smaller']:.2g}; ({found['spread']:.2g})"
    return [row(f"{where}: as fast as MONAI's sliding window that sees the whole", f"{times(whole)} ({both})",
                "at least 1, within 2 %", whole >= .98),
            row(f"{where}: as fast as MONAI's with windows of {windows}, overlap 0.5", f"{times(smaller)}"),
            row(f"{where}: largest difference from the direct answer, ours; MONAI's smaller windows; "
                "(standard deviation of the answer)", seams, "no seam: under 1e-5", seam["ours"] < 1e-5)]


def main(quick=False, rounds=5):
    size, rounds = ("toy", 2) if quick else ("paper", rounds)
    kinds = "Generator", "Segmentor"
    detail = {kind: fresh("inference.measure", kind=kind, size=size, rounds=rounds) for kind in kinds}
    return {"rows": [r for kind, found in detail.items() for r in rows_of(kind, size, found)], "detail": detail}


if __name__ == "__main__": main(**options(__doc__, rounds=5))
