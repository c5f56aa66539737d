"""A chest of 233×167×191 voxels and a trunk of 512×512×600 by the command:  python bench/large.py [--rounds 2]

The command reads the compressed file, looks for the heart, and writes a label map of the scan's own size. Beside it,
in turn: nibabel reading the same file whole, and the bare segmentor, once on its training grid; without these two
nothing can be done. The model is the one that comes with the package; without one, networks of its size that learned
nothing, for which the command looks everywhere for a heart before it gives up."""
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
from common import fresh, in_turn, options, row, times

SHAPES = {"chest": (233, 167, 191), "trunk": (512, 512, 600), "toy": (64, 64, 75)}
SIZES = {"chest": (300., 215., 245.), "trunk": (384., 384., 600.), "toy": (384., 384., 600.)}  # mm
GOALS = {"chest": (5, 1.5), "trunk": (45, 3)}  # seconds on two cores, GB


def write_trunk(
    path,  # .nii.gz
    shape,  # voxels along x, y, z
    size,  # mm along x, y, z
):
    "A phantom, drawn coarsely and repeated to the size of a large scan."
    from cssgan.phantoms.scanners import phantom
    from cssgan.scans.volumes import Grid
    spacing, coarse = np.array(size) / shape, tuple(round(s / step) for s, step in zip(size, (4, 4, 6)))
    body = phantom(0, "CT", Grid(coarse, tuple(s / n for s, n in zip(size, coarse))))
    index = [np.arange(n) * m // n for n, m in zip(shape, body.shape)]
    noise = np.random.default_rng(0).integers(-20, 20, (shape[0], shape[1], 8), dtype=np.int16)
    voxels = np.rint(body.voxels).astype(np.int16)[np.ix_(*index)]
    for z in range(shape[2]): voxels[:, :, z] += noise[:, :, z % 8]
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = body.affine[:3, 3]
    path.write_bytes(gzip.compress(nib.Nifti1Image(voxels, affine).to_bytes(), 1))


def by_command(
    scan,  # .nii.gz
    checkpoint,  # a folder
    out,  # .nii.gz
):
    "Seconds of the command, in a process of its own."
    code = "import sys; from cssgan.cli.commands import segment_main; sys.exit(segment_main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, scan, "--checkpoint", checkpoint, "--modality", "CT", "--out", out]
    begun = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode: raise RuntimeError(done.stderr)
    return time.perf_counter() - begun


def by_nibabel(
    scan,  # .nii.gz
):
    "Seconds that nibabel takes for the file alone, in a process of its own."
    code = "import sys, nibabel, numpy; numpy.asanyarray(nibabel.load(sys.argv[1]).dataobj)"
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, scan], check=True)
    return time.perf_counter() - begun


def by_network(
    checkpoint,  # a folder
):
    "Seconds of the bare segmentor, once on its training grid."
    import torch

    from cssgan.inference.apply import load_networks
    loaded = load_networks(checkpoint)
    x, network = torch.zeros(1, 1, *loaded.grid.shape), loaded.network("S", "CT")
    with torch.no_grad(): return in_turn({"network": lambda: network(x)}, 5)["network"]


def untrained(
    folder,  # to write
    name="pretrained",  # of a preset
):
    "A checkpoint of a preset's size that learned nothing."
    from cssgan.models import Networks
    from cssgan.training.checkpoints import save_checkpoint
    from cssgan.training.schedule import preset
    from cssgan.training.schema import about_networks
    how, ranges = preset(name), {"CT": (-1000.0, 1000.0), "MRI": (0.0, 600.0)}
    nets = Networks(how.width, how.patch_layers)
    save_checkpoint(folder, nets, about_networks(nets, how.grid, ranges))
    return folder


def measure(
    size="trunk",  # one of SHAPES
    rounds=2,  # how many times
    shipped=True,  # with the model that comes with the package, or at least its size?
):
    "All, in turn; the peak is the largest of all the commands."
    from cssgan.inference.apply import PRETRAINED
    top = Path(tempfile.mkdtemp())
    try:
        write_trunk(scan := top / "scan.nii.gz", SHAPES[size], SIZES[size])
        if not shipped: model = str(untrained(top / "best", "smoke"))
        else: model = str(PRETRAINED if (PRETRAINED / "checkpoint.json").exists() else untrained(top / "best"))
        found = {"command": [], "nibabel": []}
        for n in range(rounds):
            found["nibabel"].append(by_nibabel(str(scan)))
            found["command"].append(by_command(str(scan), model, str(top / f"label{n}.nii.gz")))
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
        return {"command_s": min(found["command"]), "nibabel_s": min(found["nibabel"]), "peak_GB": peak,
                "network_s": by_network(model), "file_MB": scan.stat().st_size / 1e6}
    finally: shutil.rmtree(top)


def rows_of(
    size,  # one of SHAPES
    found,  # from `measure`
):
    "Lines about one scan."
    name, spent = "×".join(map(str, SHAPES[size])), found["command_s"]
    seconds, gigabytes = GOALS.get(size, (None, None))
    return [row(f"cssgan_segment of {name} voxels, {found['file_MB']:.0f} MB packed: time", f"{spent:.1f} s",
                f"at most {seconds} s" if seconds else "", spent <= seconds if seconds else None),
            row(f"{name}: against nibabel's reading of the file alone; against the bare segmentor, once",
                f"{times(spent / found['nibabel_s'])}; {times(spent / found['network_s'])}"),
            row(f"{name}: peak memory", f"{found['peak_GB']:.2f} GB",
                f"at most {gigabytes} GB" if gigabytes else "", found["peak_GB"] <= gigabytes if gigabytes else None)]


def main(quick=False, rounds=2):
    sizes = ("toy",) if quick else ("chest", "trunk")
    rounds = 1 if quick else rounds
    detail = {size: fresh("large.measure", size=size, rounds=rounds, shipped=not quick) for size in sizes}
    return {"rows": [r for size, found in detail.items() for r in rows_of(size, found)], "detail": detail}


if __name__ == "__main__": main(**options(__doc__, rounds=2))
