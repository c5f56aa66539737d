"""All measurements, or some:  python bench/run.py [--quick] [import_time step limit inference data growth memory watch gpu large]

Results are merged into bench/results.json, and bench/README.md is written from it; `--quick` runs toy sizes in one process and writes nothing."""
import argparse
import importlib
import json

import common
from common import BENCH, machine, percent

PARTS = ("step", "limit", "inference", "data", "growth", "memory", "watch", "gpu", "import_time", "large")
TITLES = dict(zip(PARTS, ("The joint step", "How near the limit", "Inference", "Data", "Growth", "Memory", "The monitor", "On a GPU", "Importing", "A large scan")))


def describe(m):
    "The machine in a sentence."
    extra = [name for key, name in (("avx512f", "AVX-512"), ("avx512_bf16", "AVX-512 bfloat16"), ("amx_bf16", "AMX bfloat16")) if m[key]]
    gpu = f"; {m['gpu']}" if m["gpu"] else "; no GPU"
    return f"{m['cpu']}, {m['cores']} cores, {m['threads']} threads, {', '.join(extra) or m['capability']}, {m['memory_GB']} GB{gpu}; PyTorch {m['torch']}, Python {m['python']}, {m['system']}"


def table(head, lines):
    "Markdown."
    cells = lambda line: "| " + " | ".join(str(c).replace("|", "/") for c in line) + " |"
    return "\n".join([cells(head), "|" + "---|" * len(head), *map(cells, lines)])


def part_text(name, found):
    "One part's table."
    lines = [(r["what"], r["figure"], r["goal"], r["met"]) for r in found["rows"]]
    if not lines: return f"## {TITLES[name]}\n\nNot measured: {found['detail'].get('none', 'no figures')}. Command: `python bench/{name}.py`"
    return f"## {TITLES[name]}\n\nCommand: `python bench/{name}.py`\n\n" + table(("what", "figure", "goal", "reached"), lines)


def growth_text(detail):
    "The growth table and the plot."
    lines = [(name, p.get("shape", p["x"]), f"{1000 * p['seconds']:,.0f}", f"{p['peak_MB'] / 1000:.2f}") for name, points in detail.items() for p in points]
    return table(("against", "value", "ms a step", "peak memory, GB"), lines) + "\n\n![Time and peak memory against voxels, width and number of cases](growth.png)"


def profile_text(detail):
    "Where the time of a step goes, by size."
    words = list(dict.fromkeys(w for found in detail.values() for w in found["profile"]))
    return "Where one core's time goes in a step (operations' own time, under PyTorch's profiler):\n\n" + table(("what", *detail), [(w, *(percent(f["profile"].get(w, 0)) for f in detail.values())) for w in words])


def readme(results):
    "bench/README.md from the results."
    machines = {describe(found["machine"]): [] for found in results.values()}
    for name, found in results.items(): machines[describe(found["machine"])].append(TITLES[name])
    text = ["# Measurements", "Written by `python bench/run.py` (`make bench`). Every ratio is between things measured in turn in the same run, medians of several; "
            "milliseconds stand beside them for the machine named here and promise nothing for another.",
            *("**Machine**" + (f" ({', '.join(names)})" if len(machines) > 1 else "") + f": {m}." for m, names in machines.items())]
    for name in PARTS:
        if name not in results: continue
        text.append(part_text(name, results[name]))
        if name == "growth": text.append(growth_text(results[name]["detail"]))
        if name == "limit": text.append(profile_text(results[name]["detail"]))
    return "\n\n".join(text) + "\n"


def rounded(x):
    "Six digits are enough."
    if isinstance(x, float): return float(f"{x:.6g}")
    if isinstance(x, dict): return {key: rounded(value) for key, value in x.items()}
    return [rounded(value) for value in x] if isinstance(x, (list, tuple)) else x


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="toy sizes, nothing is written")
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(PARTS): parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(PARTS)}")
    common.ISOLATED = not asked.quick
    file = BENCH / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for name in asked.parts or PARTS:
        results[name] = rounded({"machine": machine(), **importlib.import_module(name).main(quick=asked.quick)})
        if asked.quick: continue
        file.write_text(json.dumps({p: results[p] for p in PARTS if p in results}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (BENCH / "README.md").write_text(readme(results), encoding="utf-8")
    if asked.quick: readme(json.loads(json.dumps(results)))


if __name__ == "__main__": main()
