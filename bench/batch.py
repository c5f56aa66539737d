"""Four scans in one command against the first of them alone:  python bench/batch.py [--rounds 3]

A user with forty scans asks whether to write a shell loop. In turn, each a process of its own: `cssgan_segment` of one
scan, and of four like it. Once with networks of the shape of `make demo`'s that learned nothing, and a centre, so that
they are not sent looking for a heart: what a command costs. Once with the model in the package, as users have it: no
centre, and a closer look at what was found."""
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from common import fresh, options, row, times

MOST, EXTRA = 1.5, 1.0  # of the first one's time; seconds for each further scan
MODELS = {"untrained": "", "shipped": ", with the model in the package"}


def by_command(scans, out, *more):
    "Seconds of the command in a process of its own."
    code = "import sys; from cssgan.cli.commands import segment_main; sys.exit(segment_main(sys.argv[1:]))"
    words = *scans, "--modality", "CT", "--out", out, "--force", *more
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True)
    if done.returncode: raise RuntimeError(done.stderr)
    return time.perf_counter() - begun


def measure(size="small", rounds=3):
    "One and four, with either model, in turn."
    from cssgan.models import Networks
    from cssgan.phantoms.scanners import phantom
    from cssgan.scans.files import write_volume
    from cssgan.scans.volumes import Grid
    from cssgan.training.checkpoints import save_checkpoint
    from cssgan.training.schema import about_networks
    top = Path(tempfile.mkdtemp())
    try:
        grid, shape = Grid((40, 40, 32), (4.2, 4.2, 4.0)), (24, 24, 16) if size == "toy" else (96, 96, 80)
        scans = [top / f"{k}.nii.gz" for k in range(4)]
        for k, scan in enumerate(scans):
            write_volume(phantom(k, "CT", Grid(shape, tuple(280 / n for n in shape))), scan)
        nets, ranges = Networks(8, 2), {"CT": (-1000.0, 1000.0), "MRI": (0.0, 600.0)}
        save_checkpoint(top / "best", nets, about_networks(nets, grid, ranges))
        (top / "out").mkdir()
        found = {name: {"one": [], "four": []} for name in MODELS}
        ways = {"untrained": ("--checkpoint", top / "best", "--centre", "0", "0", "0"), "shipped": ()}
        for _ in range(rounds):
            for name, more in ways.items():
                found[name]["one"].append(by_command(scans[:1], top / "out", *more))
                found[name]["four"].append(by_command(scans, top / "out", *more))
        return {name: {many: median(ts) for many, ts in own.items()} for name, own in found.items()}
    finally: shutil.rmtree(top)


def main(quick=False, rounds=3):
    found, rows = fresh("batch.measure", size="toy" if quick else "small", rounds=1 if quick else rounds), []
    for name, words in MODELS.items():
        one, four = found[name]["one"], found[name]["four"]
        figure = f"{times(four / one)} ({four:.1f} s and {one:.1f} s)"
        goal, met = f"at most {MOST} times, and {EXTRA:g} s for each further scan", four <= MOST * one + 3 * EXTRA
        judged = (goal, met) if name == "untrained" else ()  # there the command is measured, not the networks
        rows.append(row(f"Four scans in one command{words}: time, of one scan's", figure, *judged))
    return {"rows": rows, "detail": found}


if __name__ == "__main__": main(**options(__doc__, rounds=3))
