"""Does bfloat16 cost accuracy?  python bench/precision.py OUT [--seeds 0 1 2]

Each seed is a study of its own: 3 MRI and 16 CT phantoms, the `demo` preset on a coarser grid (24×24×16 voxels of
7×7×8 mm), because float32 is slow on a CPU. Segmentors are pre-trained, then go on
with real volumes only (baseline) or, after the generators' pre-training, jointly, for as many steps. Everything is done
twice, in bfloat16 and in float32, with the same data, weights to start from, order and number of steps.
OUT/precision.json has the Dice (in percent, 16 test phantoms of each modality) of every arm that is done; an
interrupted run is resumed."""
import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

from cssgan.data.cases import phantom_cases
from cssgan.data.datasets import unpaired
from cssgan.data.prepared import Samples
from cssgan.data.splits import select, thin
from cssgan.fast import networks
from cssgan.guard import write_whole
from cssgan.metrics import dice_of_segmentor
from cssgan.training.baselines import in_place_of_joint
from cssgan.training.schedule import preset
from cssgan.training.trainer import fit


def study(seed, folder, grid):
    "Cases of one seed: training and validation data, and test samples by modality."
    cases = phantom_cases({"train": (16, 16), "valid": (4, 4), "test": (16, 16)}, first=1000 * seed)
    few = thin(cases, {"MRI": 3 / 16}, seed)
    test = {m: Samples(select(cases, m, "test"), grid, folder / "cache") for m in ("CT", "MRI")}
    return unpaired(few, grid, folder / "cache"), test


def dice(nets, test):
    "Mean Dice of both segmentors on the test phantoms."
    segmentors = {"CT": nets.S_A, "MRI": nets.S_B}
    return {m: round(dice_of_segmentor(s.eval(), test[m]).nanmean().item(), 2) for m, s in segmentors.items()}


def arms(seed, folder):
    "Train baseline and joint from the same segmentors; return their Dice."
    config = replace(preset("demo"), seed=seed, grid=preset("smoke").grid, patch_layers=preset("smoke").patch_layers)
    data, test = study(seed, folder.parent, config.grid)
    part = lambda *names: replace(config, phases=tuple(p for p in config.phases if p.name in names))
    def train(stage, config, nets=None):
        return fit(data, config, folder / stage, nets=nets, resume=True, progress=False).nets
    segmentors = train("segmentors", part("segmentors"))
    baseline = train("baseline", in_place_of_joint(part("joint"), "segmentors"), segmentors)
    joint = train("joint", part("joint"), train("generators", part("generators"), segmentors))
    return {"baseline": dice(baseline, test), "joint": dice(joint, test)}


def main(out, seeds):
    "All arms, and what they differ by."
    out, file = Path(out), Path(out) / "precision.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    native = networks.has_fast_bfloat16
    for seed in seeds:
        for precision in ("bfloat16", "float32"):
            if f"{precision} {seed}" in results: continue
            networks.has_fast_bfloat16 = native if precision == "bfloat16" else lambda device: False
            results[f"{precision} {seed}"] = arms(seed, out / f"{precision}-{seed}")
            out.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps(results, indent=1).encode())
            print(precision, seed, results[f"{precision} {seed}"], flush=True)
    for arm in ("baseline", "joint"):
        for m in ("CT", "MRI"):
            b, f = ([results[f"{p} {s}"][arm][m] for s in seeds] for p in ("bfloat16", "float32"))
            spread = f", standard deviation {stdev(b):.1f} and {stdev(f):.1f}" if len(seeds) > 1 else ""
            print(f"{arm} {m}: bfloat16 {mean(b):.1f}, float32 {mean(f):.1f}{spread}, over {len(seeds)} seeds")
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    main(args.out, args.seeds)
