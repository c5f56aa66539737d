"""All measurements, or some:

    python bench/run.py [--quick] [PART ...]     of step limit inference data augmentation growth memory watch gpu
                                                 import_time large batch

Results are merged into bench/results.json, and bench/README.md is written from it; `--quick` runs toy sizes in one
process and writes nothing."""
import argparse
import importlib
import json

import common
from common import BENCH, machine, percent

TITLES = {"step": "The joint step", "limit": "How near the limit", "inference": "Inference", "data": "Data",
          "augmentation": "Augmentation", "growth": "Growth", "memory": "Memory", "watch": "The monitor",
          "gpu": "On a GPU", "import_time": "Importing", "large": "A large scan", "batch": "Several scans"}
PARTS = tuple(TITLES)


def describe(m):
    "The machine in a sentence."
    known = {"avx512f": "AVX-512", "avx512_bf16": "AVX-512 bfloat16", "amx_bf16": "AMX bfloat16"}
    extra = [name for key, name in known.items() if m[key]]
    gpu = f"; {m['gpu']}" if m["gpu"] else "; no GPU"
    processor = f"{m['cpu']}, {m['cores']} cores, {m['threads']} threads, {', '.join(extra) or m['capability']}"
    return f"{processor}, {m['memory_GB']} GB{gpu}; PyTorch {m['torch']}, Python {m['python']}, {m['system']}"


def table(head, lines):
    "Markdown."
    cells = lambda line: "| " + " | ".join(str(c).replace("|", "/") for c in line) + " |"
    return "\n".join([cells(head), "|" + "---|" * len(head), *map(cells, lines)])


def part_text(name, found):
    "One part's table."
    lines = [(r["what"], r["figure"], r["goal"], r["met"]) for r in found["rows"]]
    if not lines:
        why = found["detail"].get("none", "no figures")
        return f"## {TITLES[name]}\n\nNot measured: {why}. Command: `python bench/{name}.py`"
    note = f"{found['note']}\n\n" if "note" in found else ""  # until the part is measured again
    head = f"## {TITLES[name]}\n\nCommand: `python bench/{name}.py`\n\n{note}"
    return head + table(("what", "figure", "goal", "reached"), lines)


def growth_text(detail):
    "The growth table and the plot."
    lines = [(name, p.get("shape", p["x"]), f"{1000 * p['seconds']:,.0f}", f"{p['peak_MB'] / 1000:.2f}")
             for name, points in detail.items() for p in points]
    plot = "![Time and peak memory against voxels, width and number of cases](growth.png)"
    return table(("against", "value", "ms a step", "peak memory, GB"), lines) + "\n\n" + plot


def profile_text(detail):
    "Where the time of a step goes, by size."
    words = list(dict.fromkeys(w for found in detail.values() for w in found["profile"]))
    lines = [(w, *(percent(f["profile"].get(w, 0)) for f in detail.values())) for w in words]
    title = "Where one core's time goes in a step (operations' own time, under PyTorch's profiler):"
    return title + "\n\n" + table(("what", *detail), lines)


def readme(results):
    "bench/README.md from the results."
    machines = {describe(found["machine"]): [] for found in results.values()}
    for name, found in results.items(): machines[describe(found["machine"])].append(TITLES[name])
    text = ["# Measurements",
            "Written by `python bench/run.py` (`make bench`). Every ratio is between things measured in turn in the "
            "same run, medians of several; "
            "milliseconds stand beside them for the machine named here and promise nothing for another.",
            *("**Machine**" + (f" ({', '.join(names)})" if len(machines) > 1 else "") + f": {m}."
              for m, names in machines.items())]
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
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(PARTS)}")
    common.ISOLATED = not asked.quick
    file = BENCH / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for name in asked.parts or PARTS:
        results[name] = rounded({"machine": machine(), **importlib.import_module(name).main(quick=asked.quick)})
        if asked.quick: continue
        known = {p: results[p] for p in PARTS if p in results}
        file.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (BENCH / "README.md").write_text(readme(results), encoding="utf-8")
    if asked.quick: readme(json.loads(json.dumps(results)))


if __name__ == "__main__": main()
