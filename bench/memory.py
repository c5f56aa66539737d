"""Peak memory of the joint step, activations kept or computed again:  python bench/memory.py [--widths 8 16 32]

Computed again: with `activation_checkpointing`."""
from common import NAMES, fresh, memory_peak, ms, options, row, seconds, start_ours

GOALS = {16: 6000}  # width → MB, activations computed again


def measure(size, width, checkpointing):
    "Two steps in this process: MB, and seconds of the second."
    from cssgan.training.run import step
    run, pair = start_ours(size, width, activation_checkpointing=checkpointing)
    action = lambda: step(run, "joint", pair)
    action()
    return {"seconds": seconds(action), "peak_MB": memory_peak()}


def main(quick=False, widths=(8, 16, 32)):
    size, widths = ("toy", (4, 8)) if quick else ("paper", widths)
    rows, detail = [], {}
    for width in widths:
        kept, spared = (fresh("memory.measure", size=size, width=width, checkpointing=c) for c in (False, True))
        detail[width] = {"kept": kept, "spared": spared}
        goal = GOALS.get(width) if size == "paper" else None
        what = f"Peak memory of the joint step, {NAMES[size]}, width {width}: activations kept; computed again"
        longer = f"{spared['seconds'] / kept['seconds']:.2f} times the time"
        figure = (f"{kept['peak_MB'] / 1000:.2f} GB; {spared['peak_MB'] / 1000:.2f} GB in {longer} "
                  f"({ms(kept['seconds'])} and {ms(spared['seconds'])})")
        met = min(kept["peak_MB"], spared["peak_MB"]) <= goal if goal else None
        rows.append(row(what, figure, f"within {goal / 1000:g} GB" if goal else "", met))
    return {"rows": rows, "detail": detail}


if __name__ == "__main__": main(**options(__doc__, widths=[8, 16, 32]))
