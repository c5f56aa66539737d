"""A scan of the whole trunk, 512×512×600 voxels, segmented by the command:  python bench/large.py [--rounds 2]

The command reads the compressed file, looks for the heart, and writes a label map of the scan's own size. Beside it,
in turn: nibabel reading the same file whole, without which nothing can be done. The networks have the shape of
`make demo`'s and learned nothing: what they compute takes as long."""
import gzip
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from common import fresh, options, row, times

SHAPES = {"trunk": (512, 512, 600), "toy": (64, 64, 75)}
SIDE = 384.0  # mm across; 600 mm long


def write_trunk(
    path,  # .nii.gz
    shape,  # voxels along x, y, z
):
    "A phantom chest with its belly below, coarse, and repeated to the size of a large scan."
    from cssgan.phantoms.scanners import phantom
    from cssgan.scans.volumes import Grid
    spacing = np.array((SIDE, SIDE, 600.0)) / shape
    body = phantom(0, "CT", Grid((96, 96, 100), (SIDE / 96, SIDE / 96, 6.0)))
    index = [np.arange(n) * m // n for n, m in zip(shape, body.shape)]
    noise = np.random.default_rng(0).integers(-20, 20, (shape[0], shape[1], 8), dtype=np.int16)
    voxels = np.rint(body.voxels).astype(np.int16)[np.ix_(*index)]
    for z in range(shape[2]): voxels[:, :, z] += noise[:, :, z % 8]
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = body.affine[:3, 3]
    path.write_bytes(gzip.compress(nib.Nifti1Image(voxels, affine).to_bytes(), 1))


def by_command(scan, checkpoint, out):
    "Seconds and peak memory (GB) of the command in a process of its own."
    begun = time.perf_counter()
    code = "import sys; from cssgan.cli.commands import segment_main; sys.exit(segment_main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, scan, "--checkpoint", checkpoint, "--modality", "CT", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "heart" not in done.stderr: raise RuntimeError(done.stderr)
    return time.perf_counter() - begun


def by_nibabel(scan):
    "Seconds that nibabel takes for the file alone, in a process of its own."
    begun = time.perf_counter()
    code = "import sys, nibabel, numpy; numpy.asanyarray(nibabel.load(sys.argv[1]).dataobj)"
    subprocess.run([sys.executable, "-c", code, scan], check=True)
    return time.perf_counter() - begun


def measure(size="trunk", rounds=2):
    "Both, in turn; the peak is the largest of all the commands."
    from cssgan.models import Networks
    from cssgan.scans.volumes import Grid
    from cssgan.training.checkpoints import save_checkpoint
    from cssgan.training.schema import about_networks
    top = Path(tempfile.mkdtemp())
    try:
        write_trunk(scan := top / "scan.nii.gz", SHAPES[size])
        grid = Grid((40, 40, 32), (4.2, 4.2, 4.0))
        nets, ranges = Networks(8, 2), {"CT": (-1000.0, 1000.0), "MRI": (0.0, 600.0)}
        save_checkpoint(top / "best", nets, about_networks(nets, grid, ranges))
        found = {"command": [], "nibabel": []}
        for n in range(rounds):
            found["nibabel"].append(by_nibabel(str(scan)))
            found["command"].append(by_command(str(scan), str(top / "best"), str(top / f"label{n}.nii.gz")))
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
        return {"command_s": min(found["command"]), "nibabel_s": min(found["nibabel"]), "peak_GB": peak,
                "file_MB": scan.stat().st_size / 1e6}
    finally: shutil.rmtree(top)


def main(quick=False, rounds=2):
    size = "toy" if quick else "trunk"
    found = fresh("large.measure", size=size, rounds=1 if quick else rounds)
    name = "×".join(map(str, SHAPES[size]))
    spent, ratio = found["command_s"], found["command_s"] / found["nibabel_s"]
    rows = [row(f"cssgan_segment of {name} voxels, {found['file_MB']:.0f} MB packed: time", f"{spent:.0f} s",
                "at most 45 s", spent <= 45),
            row(f"{name}: against nibabel's reading of the file alone", times(ratio)),
            row(f"{name}: peak memory", f"{found['peak_GB']:.2f} GB", "at most 3 GB", found["peak_GB"] <= 3)]
    return {"rows": rows, "detail": found}


if __name__ == "__main__": main(**options(__doc__, rounds=2))
