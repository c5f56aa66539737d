"""Augmentation of a pair against a joint step at the size of the preset cpu, in turn:  python bench/augmentation.py

And the smooth deformation alone against MONAI's, and TorchIO's where it is installed; and whether it pays that a thread
augments the next pair while a step runs."""
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from types import SimpleNamespace

from common import fresh, in_turn, ms, options, percent, row, times

GOAL = .2  # of a joint step


def measure(rounds):
    "Seconds of a step, of augmenting its pair, and of deforming one volume in two ways, in this process."
    import torch
    from common import batch
    from monai.transforms import Rand3DElastic

    from cssgan.data.augmentation import case_stream, random_points, sample
    from cssgan.data.datasets import augmented_batch
    from cssgan.task import HEART
    from cssgan.training.run import keep_freed_memory, start, step
    from cssgan.training.schedule import preset
    keep_freed_memory()
    config = preset("cpu")
    run, pair, count = start(config), batch(config.grid.shape), [0]

    data = SimpleNamespace(task=HEART, train_A=SimpleNamespace(grid=config.grid))  # all that augmentation asks for
    def augmented(how):
        count[0] += 1
        return augmented_batch(pair, data, (0, count[0]), how)
    elastic = Rand3DElastic((5, 7), (50, 100), 1., (.26,) * 3, translate_range=(2,) * 3, scale_range=(.15,) * 3)
    def deform():
        count[0] += 1
        return sample(pair.real_A[0], random_points(config.grid, case_stream(0, count[0], "")), config.grid)
    ways = {"step": lambda: step(run, "joint", pair), "segmentors": lambda: step(run, "segmentors", pair),
            "shape": lambda: augmented("shape"), "all": lambda: augmented("all"), "ours": deform,
            "MONAI": lambda: elastic(torch.clone(pair.real_A[0]))}
    if find_spec("torchio"):
        from torchio import RandomElasticDeformation
        bent = RandomElasticDeformation(num_control_points=7, max_displacement=8, locked_borders=0)
        ways["TorchIO"] = lambda: bent(torch.clone(pair.real_A[0]))
    with ThreadPoolExecutor(1) as ahead:
        following = [ahead.submit(augmented, "all")]
        def overlapped():
            now = following.pop().result()
            following.append(ahead.submit(augmented, "all"))
            step(run, "segmentors", now)
        ways |= {"one after the other": lambda: step(run, "segmentors", augmented("all")), "overlapped": overlapped}
        return in_turn(ways, rounds)


def main(quick=False, rounds=9):
    s = fresh("augmentation.measure", rounds=2 if quick else rounds)
    share, words = s["shape"] / s["step"], "Augmenting a pair, 40×40×32"
    rows = [row(f"{words}, shape, of a joint step", f"{percent(share)} ({ms(s['shape'])} of {ms(s['step'])})",
                f"at most {percent(GOAL)}", share <= GOAL),
            row(f"{words}, shape and intensities, of a joint step; of a segmentors' step",
                f"{percent(s['all'] / s['step'])}; {percent(s['all'] / s['segmentors'])} ({ms(s['all'])} of "
                f"{ms(s['step'])}; of {ms(s['segmentors'])})"),
            row("A smooth deformation, 40×40×32: MONAI's Rand3DElastic takes as long as ours",
                f"{times(s['MONAI'] / s['ours'])} ({ms(s['MONAI'])} and {ms(s['ours'])})"),
            row("A segmentors' step with its augmentation: as long as with the next pair's augmented meanwhile",
                f"{times(s['one after the other'] / s['overlapped'])} ({ms(s['one after the other'])} and "
                f"{ms(s['overlapped'])})")]
    if "TorchIO" in s:
        rows.append(row("The same: TorchIO's RandomElasticDeformation (no turn, scale or shift) takes as long as ours",
                        f"{times(s['TorchIO'] / s['ours'])} ({ms(s['TorchIO'])} and {ms(s['ours'])})"))
    return {"rows": rows, "detail": {name: round(1000 * t, 2) for name, t in s.items()}}


if __name__ == "__main__": main(**options(__doc__, rounds=9))
