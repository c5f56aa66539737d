"""How much longer `import cssgan.joint` takes than `import torch`:  python bench/import_time.py [ROUNDS]

Each round imports both, each in a fresh interpreter, in turn; the fastest of each counts."""
import json, subprocess, sys, time


def seconds(module):
    "Wall time of a fresh interpreter that imports `module` and ends."
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - start


rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
times = {m: [] for m in ("torch", "cssgan.joint")}
for _ in range(rounds):
    for m in times: times[m].append(seconds(m))
best = {m: min(ts) for m, ts in times.items()}
print(json.dumps({"rounds": rounds, "seconds": {m: round(t, 3) for m, t in best.items()},
                  "ratio": round(best["cssgan.joint"] / best["torch"], 3)}))
