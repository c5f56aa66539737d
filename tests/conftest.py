from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def root():
    "The repository's top folder."
    return ROOT


@pytest.fixture(scope="session")
def real():
    "The folder of real scans beside the repository; a test that asks for it is skipped where it is not."
    if not REAL.is_dir(): pytest.skip("no real scans in ../shared/data")
    return REAL
