"""`import cssgan.joint` is light: a bare server can train; what is heavy is loaded by the function that needs it."""
import json
import subprocess
import sys

import pytest

HEAVY = "monai scipy.ndimage scipy.stats scipy.optimize pandas SimpleITK"
DRAWING = "matplotlib IPython ipywidgets"
DEVELOPMENT = "nbdev fastcore execnb papermill nbclient nbformat nbconvert pytest"


def loaded_by(module):
    "Names in `sys.modules` after a fresh interpreter has imported `module`."
    return loaded_after(f"import {module}")


def loaded_after(code):
    "Names in `sys.modules` after a fresh interpreter has run `code`."
    code += "; import json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("module, forbidden", [
    ("cssgan.joint", f"{HEAVY} {DRAWING} {DEVELOPMENT}"),
    ("cssgan.inference.model", f"{DRAWING} {DEVELOPMENT}"),
    ("cssgan.cli.commands", DEVELOPMENT)])
def test_import_loads_nothing_heavy(module, forbidden):
    assert not loaded_by(module) & set(forbidden.split()) - loaded_by("torch")


def test_a_scan_with_one_window_waits_for_no_compiler_and_no_monai():
    "Each takes seconds to import, as long as the rest of the command."
    used = loaded_after("import cssgan; cssgan.segment(cssgan.phantom(3, 'CT'))")
    assert "cssgan.inference.apply" in used and not {"monai", "torch._dynamo"} & used
