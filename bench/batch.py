"""Four scans in one command against the first of them alone:  python bench/batch.py [--rounds 3]

A user with forty scans asks whether to write a shell loop. In turn, each a process of its own: `cssgan_segment` of one
scan, and of four like it. The networks have the shape of `make demo`'s and learned nothing; a centre is named, so that
they are not sent looking for a heart."""
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from common import fresh, options, row, times

MOST, EXTRA = 1.5, 1.0  # of the first one's time; seconds for each further scan


def by_command(scans, checkpoint, out):
    "Seconds of the command in a process of its own."
    code = "import sys; from cssgan.cli.commands import segment_main; sys.exit(segment_main(sys.argv[1:]))"
    words = *scans, "--checkpoint", checkpoint, "--modality", "CT", "--centre", "0", "0", "0", "--out", out, "--force"
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True)
    if done.returncode: raise RuntimeError(done.stderr)
    return time.perf_counter() - begun


def measure(size="small", rounds=3):
    "Both, in turn."
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
        found = {"one": [], "four": []}
        for _ in range(rounds):
            found["one"].append(by_command(scans[:1], top / "best", top / "out"))
            found["four"].append(by_command(scans, top / "best", top / "out"))
        return {name: median(ts) for name, ts in found.items()}
    finally: shutil.rmtree(top)


def main(quick=False, rounds=3):
    found = fresh("batch.measure", size="toy" if quick else "small", rounds=1 if quick else rounds)
    one, four = found["one"], found["four"]
    met = four <= MOST * one + 3 * EXTRA
    rows = [row("Four scans in one command: time, of one scan's", f"{times(four / one)} ({four:.1f} s and {one:.1f} s)",
                f"at most {MOST} times, and {EXTRA:g} s for each further scan", met)]
    return {"rows": rows, "detail": found}


if __name__ == "__main__": main(**options(__doc__, rounds=3))
