"""Three persons and what they came for, by commands alone: `make stories` (pytest -s tests/long/stories.py).

A student has twelve labelled scans of MM-WHS, six of CT and six of MRI, and an afternoon: the default settings must
give a model that finds hearts in the test scans, and a table of scores, within fifteen minutes of two cores.

An assistant has four scans to segment: in one command they cost little more than one, since nothing is loaded twice.
The scans are small (48 x 48 x 32 voxels), so that starting is most of what the first one costs; what a large scan costs
by itself is bench/README.md's. Seconds are those of one core: they do not depend on who else uses the machine.

An engineer brings the model elsewhere. That ONNX and a MONAI bundle give what the checkpoint gives is tested every day,
in tests/test_export.py: test_exports_answer_as_their_networks_do, test_a_bundle_gives_our_labels,
test_the_shipped_model_as_a_bundle_run_as_its_readme_says_gives_our_labels.
"""
import csv
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

import nibabel as nib
import numpy as np
from conftest import ROOT

MMWHS = {1: 500, 2: 600, 3: 420, 4: 550, 5: 205}  # how it numbers our regions
CORES = 2


def run(*words, folder, threads=CORES):
    "A command in a process of its own: what it prints, its seconds, and the seconds of one core that it used."
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads),
                        "CSSGAN_CACHE": str(folder / "cache")}
    program, begun, used = Path(sys.executable).with_name(words[0]), time.monotonic(), core_seconds()
    done = subprocess.run([program, *map(str, words[1:])], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, time.monotonic() - begun, core_seconds() - used


def core_seconds():
    "What the programs that have ended used."
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime


def like_mmwhs(phantoms, folder):
    "Phantoms with the names and the numbers of MM-WHS."
    for modality, place in (("CT", "ct_train"), ("MRI", "mr_train")):
        (folder / place).mkdir(parents=True)
        for n, image in enumerate(sorted((phantoms / modality).glob("*_image.nii.gz")), 1001):
            shutil.copy(image, folder / place / f"{place}_{n}_image.nii.gz")
            label = nib.load(str(image).replace("_image", "_label"))
            ours = np.asanyarray(label.dataobj)
            theirs = np.select([ours == number for number in MMWHS], list(MMWHS.values()), 0).astype(np.int16)
            nib.save(nib.Nifti1Image(theirs, label.affine), folder / place / f"{place}_{n}_label.nii.gz")


def test_twelve_labelled_scans_become_a_model_that_finds_hearts(tmp_path):
    run("cssgan_phantom", "--out", "phantoms", "--n", 6, folder=tmp_path)
    like_mmwhs(tmp_path / "phantoms", tmp_path / "mmwhs")
    said, seconds, used = run("cssgan_train", "--data", "mmwhs", "--out", "run", "--quiet", folder=tmp_path)
    print(f"\n{said.strip()}, in {seconds:.0f} s; of one core {used:.0f} s")
    said, _, more = run("cssgan_evaluate", "run", "--out", "scores.csv", folder=tmp_path)
    print(said)
    rows = list(csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()))
    for domain in ("CT", "MRI"):
        dice = [float(row["dice_percent"]) for row in rows if row["domain"] == domain]
        assert len(dice) % len(MMWHS) == 0 and mean(dice) >= 60, (domain, dice)
    assert used + more <= 15 * 60 * CORES


def test_four_scans_in_one_command_cost_little_more_than_one(tmp_path):
    run("cssgan_phantom", "--out", "phantoms", "--n", 4, "--grid", "small", "--modality", "CT", folder=tmp_path)
    scans = sorted((tmp_path / "phantoms/CT").glob("*_image.nii.gz"))
    def segment(scans, out):  # threads that wait for each other on a busy machine would count as work
        return run("cssgan_segment", *scans, "--modality", "CT", "--out", out, folder=tmp_path, threads=1)[1:]
    (seconds, one), (more, four) = segment(scans[:1], "first.nii.gz"), segment(scans, "all")
    print(f"\none scan: {seconds:.1f} s, four in one command: {more:.1f} s; of one core {one:.1f} and {four:.1f} s")
    assert len(list((tmp_path / "all").glob("*.nii.gz"))) == len(scans) == 4
    assert four <= 1.5 * one + 1.0 * len(scans)
