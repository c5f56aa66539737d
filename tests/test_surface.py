"""What a user imports: few names, each in one place, and a front door that costs nothing until it is used."""
import ast
import json
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import cssgan

ROOT = Path(__file__).resolve().parent.parent
FILES = [p for p in sorted((ROOT / "cssgan").rglob("*.py")) if p.name not in ("__init__.py", "_modidx.py")]


def module(path):
    "The name to import a file of the library by."
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def tree(path): return ast.parse(path.read_text(encoding="utf-8"))


def public(path):
    "The names in a module's `__all__`."
    assigned = [n for n in tree(path).body if isinstance(n, ast.Assign) and isinstance(n.targets[0], ast.Name)]
    return next(ast.literal_eval(n.value) for n in assigned if n.targets[0].id == "__all__")


PUBLIC = {module(p): public(p) for p in FILES}


def test_at_most_150_names_are_public():
    assert sum(map(len, PUBLIC.values())) <= 150


def test_no_name_is_public_twice():
    names = [name for own in PUBLIC.values() for name in own]
    assert sorted(names) == sorted(set(names))


def functions(path):
    "Public functions, and the methods of public classes that are not private."
    for node in tree(path).body:
        if getattr(node, "name", None) not in public(path): continue
        yield from [n for n in ([node] if isinstance(node, ast.FunctionDef) else node.body)
                    if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]


@pytest.mark.parametrize("path", FILES, ids=module)
def test_public_functions_say_what_their_results_hold(path):
    "A named tuple, a dataclass, or `list[Case]`; never a bare tuple, dict or list."
    named = [f for f in functions(path) if isinstance(f.returns, ast.Name)]
    bare = [f.name for f in named if f.returns.id in ("tuple", "dict", "list")]
    assert not bare


# ---- the front door

def test_front_door_names_are_what_the_modules_make_public():
    stub = ast.parse((ROOT / "cssgan/__init__.pyi").read_text())
    for line in stub.body:
        assert {o.name for o in line.names} <= set(PUBLIC[f"cssgan.{line.module}"]), line.module
        for o in line.names: assert getattr(cssgan, o.name) is getattr(import_module(f"cssgan.{line.module}"), o.name)
    assert dir(cssgan) == sorted(o.name for line in stub.body for o in line.names)


def test_no_module_is_called_like_a_name_of_the_front_door():
    modules = {part for name in PUBLIC for part in name.split(".")[1:]}
    assert not modules & set(dir(cssgan))


def test_importing_the_package_imports_no_library():
    code = "import sys, cssgan; assert 'fit' in dir(cssgan); print(*{m.split('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not set(loaded) & {"torch", "numpy", "matplotlib", "monai", "nibabel", "scipy"}


# ---- what readers copy from

def imports(notebook):
    "(module, name) of every import of ours in a notebook."
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = re.sub(r"^[%!].*$", "pass", "".join(cell["source"]), flags=re.MULTILINE)
        if cell["cell_type"] != "code": continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "cssgan":
                yield from ((node.module, o.name) for o in node.names)


LESSONS = [ROOT / "nbs/index.ipynb", *(p for folder in ("tutorials", "howto", "explanation", "experiments")
                                       for p in sorted((ROOT / "nbs" / folder).glob("*.ipynb")))]


@pytest.mark.parametrize("notebook", LESSONS, ids=lambda p: p.stem)
def test_lessons_import_nothing_private(notebook):
    "What experiments share, `cssgan.experiments`, is for their notebooks and the pages about them."
    front, own = set(dir(cssgan)) | {"__version__"}, notebook.parent.name in ("experiments", "explanation")
    private = [f"{m}.{name}" for m, name in imports(notebook) if not (own and m.startswith("cssgan.experiments."))
               and not (name in front if m == "cssgan" else name in PUBLIC.get(m, ()))]
    assert not private
