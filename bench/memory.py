"""Peak memory of the joint step, with activations kept or computed again:  python bench/memory.py [--widths 8 16 32]"""
from common import NAMES, fresh, memory_peak, ms, options, row, seconds, start_ours

GOALS = {16: 6000} # width → MB, activations computed again


def measure(size, width, spare):
    "Two steps in this process: MB, and seconds of the second."
    from cssgan.training.run import step
    run, pair = start_ours(size, width, activation_checkpointing=spare)
    action = lambda: step(run, "joint", pair)
    action()
    return {"seconds": seconds(action), "peak_MB": memory_peak()}


def main(quick=False, widths=(8, 16, 32)):
    size, widths = ("toy", (4, 8)) if quick else ("paper", widths)
    rows, detail = [], {}
    for width in widths:
        kept, spared = (fresh("memory.measure", size=size, width=width, spare=spare) for spare in (False, True))
        detail[width] = {"kept": kept, "spared": spared}
        goal = GOALS.get(width) if size == "paper" else None
        rows.append(row(f"Peak memory of the joint step, {NAMES[size]}, width {width}: activations kept; computed again",
                        f"{kept['peak_MB'] / 1000:.2f} GB; {spared['peak_MB'] / 1000:.2f} GB in {spared['seconds'] / kept['seconds']:.2f} times the time ({ms(kept['seconds'])} and {ms(spared['seconds'])})",
                        f"within {goal / 1000:g} GB" if goal else "", min(kept["peak_MB"], spared["peak_MB"]) <= goal if goal else None))
    return {"rows": rows, "detail": detail}


if __name__ == "__main__": main(**options(__doc__, widths=[8, 16, 32]))
