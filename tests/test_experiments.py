"""The experiment notebooks run from end to end as papermill runs them, at a preset of seconds."""
import json, os, subprocess, sys
from functools import reduce
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
METRICS = "dice.CT.baseline dice.CT.joint dice.MRI.baseline dice.MRI.joint s_score.ct_to_mri s_score.mri_to_ct".split()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "The folder that quickstart fills."
    out = tmp_path_factory.mktemp("quickstart")
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "-r", "preset", "smoke", "-p", "seed", "1", "-r", "out_dir", out,
               ROOT / "nbs/experiments/quickstart.ipynb", out / "quickstart.ipynb"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"JUPYTER_PREFER_ENV_PATH": "1", "TQDM_DISABLE": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    return out


def test_quickstart_writes_its_parameters(made):
    params = json.loads((made / "params.json").read_text())
    assert params["preset"] == "smoke" and params["seed"] == 1


def test_quickstart_writes_its_metrics(made):
    metrics = json.loads((made / "metrics.json").read_text())
    for name in METRICS: assert 0 <= reduce(lambda found, key: found[key], name.split("."), metrics) <= 100


def test_quickstart_leaves_pictures_volumes_and_a_checkpoint(made):
    for pattern in ("*.png", "*.nii.gz", "*.safetensors"): assert list(made.rglob(pattern)), pattern
