"""What `make test-lowest` installs, the lowest versions that pyproject.toml promises:  python tools/lowest.py"""
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
APART = {"ipyniivue"} # it needs NumPy 2, and MONAI 1.4 needs NumPy 1: each alone is installed in its lowest version


def promised():
    "What a user may install with cssgan: the dependencies and all extras but `dev`."
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    return project["dependencies"] + [line for name in extras if name != "dev" for line in extras[name]]


def lowest():
    "Name -> lowest version that a requirement allows; each must name one, as `>=` or `==`."
    found = {}
    for line in promised():
        match = re.fullmatch(r"([\w-]+)(?:\[\w+\])?[>=]=([\w.]+)(?:,<[\w.]+)?", line)
        if not match: raise SystemExit(f"pyproject.toml names no lowest version for {line}")
        found[match[1]] = match[2]
    return found


def tools():
    "Name -> version of constraints.txt for all that is not promised to a user: what the tests need besides."
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = (line.partition("==") for line in lines)
    return {name: version for name, _, version in pins if version and name not in lowest()}


if __name__ == "__main__":
    for name, version in (lowest() | tools()).items():
        if name not in APART: print(f"{name}=={version}")
