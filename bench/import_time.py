"""How much longer `import cssgan.joint` takes than `import torch`:  python bench/import_time.py [--rounds 5]

Each round imports both, each in a fresh interpreter, in turn; the fastest of each counts."""
import subprocess
import sys

from common import options, row, seconds, times

GOAL = 1.6


def main(quick=False, rounds=5):
    spent = {m: [] for m in ("torch", "cssgan.joint")}
    for _ in range(1 if quick else rounds):
        for m, found in spent.items():
            found.append(seconds(lambda: subprocess.run([sys.executable, "-c", f"import {m}"], check=True)))
    best = {m: min(found) for m, found in spent.items()}
    ratio = best["cssgan.joint"] / best["torch"]
    what = "Time of `import cssgan.joint`, of that of `import torch`"
    detail = {"rounds": rounds, "seconds": {m: round(t, 3) for m, t in best.items()}, "ratio": round(ratio, 3)}
    return {"rows": [row(what, times(ratio), f"at most {GOAL}", ratio <= GOAL)], "detail": detail}


if __name__ == "__main__": main(**options(__doc__, rounds=5))
