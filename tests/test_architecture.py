"""The architecture page draws the house as it stands."""
import json
import re

import pytest
from conftest import ROOT
from test_tree import exported, file, imported, listed, modules

PAGE = ROOT / "nbs/explanation/architecture.ipynb"
CELLS = json.loads(PAGE.read_text(encoding="utf-8"))["cells"]


def rooms():
    "Module → room: the folder of its notebook, or the module itself where the notebook lies at the top."
    place = {module: notebook for notebook in listed() for module in exported(notebook)}
    def room(module, notebook): return re.sub(r"^\d+_", "", notebook.split("/")[0]) if "/" in notebook else module
    return {module: room(module, notebook) for module, notebook in place.items()}


def drawn():
    "(room, room) for every arrow of the page's diagrams."
    text = "\n".join("".join(c["source"]) for c in CELLS if c["cell_type"] == "markdown")
    lines = [line for block in re.findall(r"```mermaid\n(.*?)```", text, re.S) for line in block.splitlines()]
    ends = [[re.findall(r"\w+", side) for side in line.split("-->")] for line in lines if "-->" in line]
    return {(a, b) for above, below in ends for a in above for b in below}


def real():
    "(room, room) for every import of a module of ours by one in another room."
    room = rooms()
    pairs = {(room[module], room[own]) for module in modules() for o in imported(file(module))
             if (own := o.removeprefix("cssgan.")) != o and own in room}
    return {(a, b) for a, b in pairs if a != b}


def test_diagram_has_an_arrow_for_every_import_and_no_other():
    missing, invented = sorted(real() - drawn()), sorted(drawn() - real())
    assert not missing and not invented, f"draw {missing}, and take away {invented} in {PAGE.name}"


@pytest.mark.parametrize("room", sorted(set(rooms().values()) - {"joint", "losses", "models", "metrics"}))
def test_every_room_is_described(room):
    text = "\n".join("".join(c["source"]) for c in CELLS if c["cell_type"] == "markdown")
    assert f"| `{room}`" in text


def test_every_reference_notebook_is_listed():
    shown = "".join("".join(o.get("data", {}).get("text/markdown", [])) for c in CELLS for o in c.get("outputs", []))
    found = set(re.findall(r"\]\(\.\./([^)]+)\)", shown))
    reference = {o for o in listed() if o[0].isdigit()}
    assert found == reference, f"run {PAGE.name} again: its table is made from the notebooks' titles"
