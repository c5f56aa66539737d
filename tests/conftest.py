import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT.parent / "shared" / "data"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

OFFLINE = '''"No network: a program that asks for it gets an error."
import socket
connect = socket.socket.connect
def local_only(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"no network in this test, and {address} was asked for")
    return connect(self, address)
socket.socket.connect = local_only
'''


def without_network(folder):
    "What to add to a program's environment so that its Python, and its children's, reaches this machine only."
    (folder / "sitecustomize.py").write_text(OFFLINE)
    return {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="session")
def root():
    "The repository's top folder."
    return ROOT


@pytest.fixture(scope="session")
def real():
    "The folder of real scans beside the repository; a test that asks for it is skipped where it is not."
    if not REAL.is_dir(): pytest.skip("no real scans in ../shared/data")
    return REAL


def pytest_configure(config):
    needs = {"data": "the real scans in ../shared/data", "gpu": "a CUDA device", "browser": "a browser"}
    for marker, what in needs.items(): config.addinivalue_line("markers", f"{marker}: needs {what}")
    import torch
    torch.set_num_threads(1)
    # A shell's background job ignores Ctrl-C, and what it starts inherits that: what tests interrupt would never stop.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item):
    if item.get_closest_marker("data") and not REAL.is_dir(): pytest.skip("no real scans in ../shared/data")
    if item.get_closest_marker("gpu"):
        import torch
        if not torch.cuda.is_available(): pytest.skip("no CUDA device")
    if item.get_closest_marker("browser") and not CHROMIUM: pytest.skip("no Chromium")


@pytest.fixture(autouse=True)
def nothing_loaded():
    "No test gets networks that another one has loaded, or put in the place of a checkpoint's."
    for module, kept in ("apply", "_LOADED"), ("model", "_MODELS"):
        if known := sys.modules.get(f"cssgan.inference.{module}"): getattr(known, kept).clear()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    "A checkpoint's folder: tiny networks that learned nothing, on a tiny grid. Copy it before changing anything."
    from cssgan.models import Networks
    from cssgan.scans.volumes import Grid
    from cssgan.training.checkpoints import save_checkpoint
    from cssgan.training.schema import about_networks
    nets, folder = Networks(width=4, patch_layers=1, seed=0), tmp_path_factory.mktemp("run") / "best"
    about = about_networks(nets, Grid((24, 24, 16), (7.0, 7.0, 8.0)), {"CT": (-1000.0, 1000.0), "MRI": (10.0, 600.0)})
    save_checkpoint(folder, nets, about, training={})
    return folder
