"""The notebooks are the source: what stands in the tree is what they give, and nothing else."""
import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv*", "runs", "_proc", "_docs", "build", "dist", "*.egg-info", "__pycache__", ".ipynb_checkpoints",
    ".pytest_cache", ".ruff_cache", ".hypothesis", ".last_checked", "nbdev.yml")


def run(tool, cwd):
    "Run a program of this environment in `cwd`."
    program = [sys.executable, Path(sys.executable).with_name(tool)]
    done = subprocess.run(program, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{tool}: {done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    "A copy of the source files."
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("tree") / "cssgan", symlinks=True, ignore=NOT_SOURCE)


def differences(a, b, folder, pattern):
    "Names of the files in `folder` that only one of two trees has, or that differ."
    names = {p.relative_to(top) for top in (a, b) for p in (top / folder).rglob(pattern)
             if p.is_file() and "__pycache__" not in p.parts}
    def content(p): return p.read_bytes() if p.exists() else None
    return sorted(str(n) for n in names if content(a / n) != content(b / n))


def cells(path): return json.loads(path.read_text(encoding="utf-8"))["cells"]
def source(cell): return "".join(cell["source"])


def notebooks(folder="nbs"):
    "The notebooks of a folder of the repository, in order."
    return sorted(p for p in (ROOT / folder).rglob("*.ipynb")
                  if not any(o.startswith((".", "_")) for o in p.relative_to(ROOT).parts))


def name(path): return str(path.relative_to(ROOT))


def listed():
    "Names of the notebooks in the sidebar's order, which is the order to read them in."
    return re.findall(r"- (\S+\.ipynb)", (ROOT / "_quarto.yml").read_text(encoding="utf-8"))


def modules():
    "Names of the exported modules, such as `joint` or `fast.layers`, in the order of their notebooks."
    return [module for notebook in listed() for module in exported(notebook)]


def exported(notebook):
    "Names of the modules that a notebook of the sidebar exports: one or none."
    found = [re.search(r"^#\|\s*default_exp\s+([\w.]+)", source(c), re.M) for c in cells(ROOT / "nbs" / notebook)]
    return [m[1] for m in found if m]


# ---- exported and clean

def test_exported_tree_is_in_step(tree):
    by_hand = [tree / "cssgan" / name for name in ("__init__.py", "__init__.pyi", "py.typed")]
    by_hand += [p for p in (tree / "cssgan/pretrained").rglob("*") if p.is_file()] # a model that was trained
    kept = {path: path.read_bytes() for path in by_hand}
    shutil.rmtree(tree / "cssgan")
    for path, content in kept.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    run("nbdev_export", tree)
    assert not differences(ROOT, tree, "cssgan", "*"), "differ from the notebooks' export: run `make export`"


def test_notebooks_are_clean(tree):
    run("nbdev_clean", tree)
    assert not differences(ROOT, tree, "nbs", "*.ipynb"), "not clean: run `make export`"


def test_readme_is_in_step():
    sys.path.insert(0, str(ROOT / "tools"))
    from readme import readme
    stale = [name for name, data in readme().items()
             if not (ROOT / name).exists() or (ROOT / name).read_bytes() != data]
    assert not stale, "differ from nbs/index.ipynb: run `make readme`"


def test_readme_links_lead_somewhere():
    links = re.findall(r"\]\((?!\w+:|#)([^)#]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert links and not [o for o in links if not (ROOT / o).exists()]


def test_sidebar_lists_every_notebook():
    assert sorted(listed()) == sorted(str(p.relative_to(ROOT / "nbs")) for p in notebooks())
    assert (ROOT / "nbs/_quarto.yml").samefile(ROOT / "_quarto.yml")


# ---- style and what surrounds the code

def test_style():
    "`make lint`: 120 columns, sorted imports, none unused; in notebooks and exported modules, too."
    command = [Path(sys.executable).with_name("ruff"), "check", "--no-cache", "--output-format=concise"]
    done = subprocess.run([*command, *"nbs tests bench tools cssgan".split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def workflows():
    "File name → what a workflow of the public host says."
    return {p.name: yaml.safe_load(p.read_text(encoding="utf-8")) for p in (ROOT / ".github/workflows").glob("*.yml")}


def targets():
    "What `make` can be asked for."
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


def test_workflows_only_call_make():
    assert {"test.yml", "docs.yml", "release.yml"} == set(workflows())
    jobs = [job for workflow in workflows().values() for job in workflow["jobs"].values()]
    commands = [step["run"].split() for job in jobs for step in job["steps"] if "run" in step]
    assert commands and all(program == "make" and target in targets() for program, target, *_ in commands)


def test_workflow_tries_the_pythons_that_are_promised():
    tried = workflows()["test.yml"]["jobs"]["test"]["strategy"]["matrix"]
    assert tried == {"os": ["ubuntu-latest", "macos-latest"], "python": ["3.11", "3.12", "3.13"]}


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=name)
def test_issue_form_is_one(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(form)
    assert all({"type", "attributes"} <= set(o) and ("id" in o) == (o["type"] != "markdown") for o in form["body"])


def test_contributing_names_what_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert set(re.findall(r"(?:^|`)make ([a-z][\w-]*)", text, re.M)) <= targets()
    named = re.findall(r"`((?:nbs|tests|tools|cssgan|bench|results|\.github)/[\w./]+|\w+\.(?:md|toml|ini|txt|yml))`",
                       text)
    linked = re.findall(r"\]\((?!\w+:|#)([^)#]+)", text)
    assert named and not [o for o in named + linked if not (ROOT / o).exists()]


def test_a_lowest_version_is_named_for_all_that_users_install():
    sys.path.insert(0, str(ROOT / "tools"))
    from lowest import lowest, promised
    assert len(lowest()) == len({o.split("[")[0] for o in promised()})


# ---- notebooks

@pytest.mark.parametrize("path", notebooks(), ids=name)
def test_notebook_ran_without_error(path):
    assert not [o["ename"] for c in cells(path) for o in c.get("outputs", []) if o["output_type"] == "error"]


@pytest.mark.parametrize("path", notebooks("nbs/experiments"), ids=name)
def test_experiment_has_one_parameters_cell(path):
    assert sum("parameters" in c["metadata"].get("tags", []) for c in cells(path)) == 1


# ---- the order of the house

def file(module):
    "Where a module of ours is."
    return ROOT / f"cssgan/{module.replace('.', '/')}.py"


def imported(path):
    "Modules that a Python file imports, at its top or inside a function: full names, relative ones with the package's."
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import): yield from (o.name for o in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else ()
            whence = ".".join((*base, *filter(None, [node.module])))
            yield whence
            yield from (f"{whence}.{o.name}" for o in node.names) # a name may be a module, too


@pytest.mark.parametrize("module", modules())
def test_module_imports_only_earlier_ones(module):
    own = {o.removeprefix("cssgan.") for o in imported(file(module)) if o.startswith("cssgan.")}
    assert own & set(modules()) <= set(modules()[:modules().index(module)])


@pytest.mark.parametrize("module", modules())
def test_module_imports_none_that_is_not_exported(module):
    own = {o.split(".")[1] for o in imported(file(module)) if o.startswith("cssgan.")}
    here = {o for o in own if (ROOT / f"cssgan/{o}.py").exists() or (ROOT / "cssgan" / o).is_dir()}
    assert here <= {m.split(".")[0] for m in modules()}


def test_a_notebook_lies_where_its_module_does():
    "`fast.layers` comes from `nbs/06_fast/`; only `guard`, `pictures` and the method's modules are rooms of their own."
    for notebook in listed():
        for module in exported(notebook):
            room = re.sub(r"^\d+_", "", str(Path(notebook).parent)).replace("method", ".")
            assert Path(room) == Path(*module.split(".")[:-1]), notebook


RUNTIME = {"cssgan", "numpy", "torch", "monai", "nibabel", "scipy", "safetensors", "lightning_fabric", "matplotlib",
           "PIL", "tqdm", "filelock", "msgspec", "lazy_loader", "yaml"}  # PIL: Matplotlib's own
EXTRAS = {  # name → its libraries, the modules that may import them
    "completion": ({"argcomplete"}, {"cli.parsing"}),
    "dicom": ({"SimpleITK", "pydicom", "highdicom"}, {"scans.dicom_files", "scans.dicom_writing"}),
    "export": ({"onnx", "onnxruntime"}, {"inference.export"}),
    "experiments": ({"papermill", "jupyter_client", "distributed", "dask", "pandas"},
                    {"experiments.results", "experiments.runs", "experiments.sweeps"}),
    "explore": ({"IPython", "ipywidgets", "ipyevents", "anywidget", "traitlets", "ipyniivue", "itkwidgets",
                 "ngff_zarr"},
                {"viewers.canvas", "viewers.comparison", "viewers.depth", "viewers.explorer", "viewers.monitor"})}


@pytest.mark.parametrize("module", modules())
def test_module_imports_only_runtime_dependencies(module):
    top = {o.split(".")[0] for o in imported(file(module))}
    extra = {library for libraries, users in EXTRAS.values() if module in users for library in libraries}
    assert top <= RUNTIME | extra | set(sys.stdlib_module_names)


# ---- nothing of one machine

def text(path):
    "A file's text, pictures left out; nothing for a binary file."
    try: found = path.read_text(encoding="utf-8")
    except UnicodeDecodeError: return ""
    return re.sub(r'"image/png": "[^"]*"', "", found) if path.suffix == ".ipynb" else found


def test_no_file_names_a_machine(tree):
    parts = (("py", "pi.org"), ("python", "hosted.org"), ("download.", "pytorch.org"), ("registry.", "npmjs"),
             ("deb.", "debian.org"))
    hosts = [a + b for a, b in parts]
    bad = re.compile("|".join(map(re.escape, hosts)) + r"|(?<![\w.])/(?:work|root|home|tmp|opt|Users)/")
    files = [p for p in tree.rglob("*") if p.is_file() and "_proc" not in p.parts and p.name != Path(__file__).name]
    found = {str(p.relative_to(tree)): m[0] for p in files if (m := bad.search(text(p)))}
    assert not found


def test_only_tests_and_one_experiment_know_the_real_scans(tree):
    files = [p for p in tree.rglob("*") if p.is_file() and not {"tests", "_proc"} & set(p.relative_to(tree).parts)]
    known = {"nbs/experiments/real_scans.ipynb", "results/adaptation.json"}  # the latter says what it was given
    assert {str(p.relative_to(tree)) for p in files if "../shared" in text(p)} <= known
