"""settings.ini and pyproject.toml agree; sdist and wheel work where nothing else is installed."""
import configparser
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
LICENSES = {"apache2": "Apache-2.0"}


@pytest.fixture(scope="module")
def settings():
    "nbdev's settings."
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def requirements(lines): return {str(Requirement(o)) for o in lines}


def pins():
    "Name -> version of constraints.txt."
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(o.split("==") for o in lines if o and not o.startswith("#"))


# ---- the two files agree

def test_version(settings):
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "cssgan.__version__"}
    assert f'__version__ = "{settings["version"]}"' in (ROOT / "cssgan/__init__.py").read_text(encoding="utf-8")
    assert f"\nversion: {settings['version']}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {settings['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_description(settings):
    assert PROJECT["name"] == settings["lib_name"]
    assert PROJECT["description"] == settings["description"]
    assert PROJECT["requires-python"] == f">={settings['min_python']}"
    assert PROJECT["license"] == LICENSES[settings["license"]]
    assert PROJECT["authors"] == [{"name": settings["author"]}]
    assert PROJECT["keywords"] == settings["keywords"].split()


def test_dependencies(settings):
    assert requirements(PROJECT["dependencies"]) == requirements(settings["requirements"].split())
    assert requirements(PROJECT["optional-dependencies"]["dev"]) == requirements(settings["dev_requirements"].split())


def test_console_scripts(settings):
    assert PROJECT["scripts"] == dict(o.split("=") for o in settings["console_scripts"].split())
    assert PROJECT["entry-points"]["nbdev"] == {"cssgan": "cssgan._modidx:d"}


def test_every_dependency_is_pinned_and_here():
    for o in map(Requirement, PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]):
        assert pins()[o.name] in o.specifier
        here = importlib.metadata.version(o.name).split("+")[0]
        assert here == pins()[o.name], "delete .venv/.ready, then make setup"


# ---- sdist and wheel

SMOKE = textwrap.dedent('''
    import importlib, pkgutil, sys
    import cssgan
    assert "site-packages" in cssgan.__file__, cssgan.__file__
    modules = [m.name for m in pkgutil.walk_packages(cssgan.__path__, "cssgan.")]
    assert {"cssgan.joint", "cssgan.viewers.explorer", "cssgan.experiments.sweeps"} <= set(modules)
    for name in modules: importlib.import_module(name)
    for name in dir(cssgan): getattr(cssgan, name)
    import torch
    from cssgan.models import Segmentor
    from cssgan.phantoms.scanners import phantom
    from cssgan.scans.volumes import Grid, normalise
    volume = normalise(phantom(seed=0, modality="CT", grid=Grid((26, 24, 18), (6.5, 7., 7.))))
    scores = Segmentor()(torch.as_tensor(volume.voxels)[None, None].float())
    assert scores.shape == (1, 6, 26, 24, 18), scores.shape
''')


@pytest.fixture(scope="module")
def folder():
    "A folder that is gone afterwards: an environment with PyTorch is large."
    with tempfile.TemporaryDirectory() as made: yield Path(made)


def run(*command, cwd, **kw):
    "Output of a command that must succeed, without this environment's paths."
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, **kw)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def source(folder):
    "A copy of the files that packages are built from."
    made = folder / "source"
    for o in ("cssgan", "etc"): shutil.copytree(ROOT / o, made / o, ignore=shutil.ignore_patterns("__pycache__"))
    for o in ("pyproject.toml", "README.md", "LICENSE"): shutil.copy(ROOT / o, made)
    return made


@pytest.fixture(scope="module")
def packages(source, folder):
    "The folder with the sdist, and the wheel that is built from it."
    run(sys.executable, "-m", "build", "--outdir", folder / "dist", source, cwd=folder)
    return folder / "dist"


@pytest.fixture(scope="module")
def sdist(packages):
    "The only sdist."
    path, = packages.glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def wheel(packages):
    "The only wheel."
    path, = packages.glob("*.whl")
    return path


def installed(python, folder):
    "Name -> version of what an environment holds."
    lines = run(python, "-m", "pip", "list", "--format=freeze", cwd=folder).splitlines()
    return {name.lower(): version for name, _, version in (line.partition("==") for line in lines)}


@pytest.fixture(scope="module")
def torch_first(folder):
    "Python of an environment with PyTorch alone, as whoever has no GPU begins; its version; what GPUs it is built for."
    venv.create(folder / "empty", with_pip=True)
    made = folder / "empty" / "bin" / "python"
    run(made, "-m", "pip", "install", "-q", "--no-compile", "torch", "-c", ROOT / "constraints.txt", cwd=folder)
    says = "import torch; print(torch.version.cuda or torch.version.hip or '')"
    return made, installed(made, folder)["torch"], run(made, "-c", says, cwd=folder).strip()


@pytest.fixture(scope="module")
def python(wheel, torch_first, folder):
    "Python of an environment that has the wheel, what it needs, and nothing else."
    run(torch_first[0], "-m", "pip", "install", "-q", "--no-compile", wheel, "-c", ROOT / "constraints.txt", cwd=folder)
    return torch_first[0]


def files_of_the_package():
    "The modules, the front door's names, the marker that says that types are given, and the trained model."
    kinds = ".py", ".pyi", ".typed", ".safetensors", ".json", ".md"
    found = {str(p.relative_to(ROOT)) for p in (ROOT / "cssgan").rglob("*") if p.suffix in kinds}
    model = {f"cssgan/pretrained/heart/{name}" for name in ("checkpoint.json", "MODEL_CARD.md")}
    assert {"cssgan/__init__.py", "cssgan/__init__.pyi", "cssgan/py.typed"} | model <= found
    return found


def test_sdist_holds_the_package(sdist):
    with tarfile.open(sdist) as archive: names = {o.partition("/")[2] for o in archive.getnames()}
    assert files_of_the_package() | {"pyproject.toml", "README.md", "LICENSE"} <= names


def test_wheel_holds_the_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    setting, = (o for o in names if ".data/" in o)
    assert setting.endswith(".data/data/etc/jupyter/labconfig/page_config.d/cssgan.json") # JupyterLab finds it there
    assert {o for o in names - {setting} if ".dist-info/" not in o} == files_of_the_package()
    assert any(o.endswith("licenses/LICENSE") for o in names)


def test_environment_has_no_development_tools(python, folder):
    names = set(installed(python, folder))
    tools = {"nbdev", "fastcore", "execnb", "papermill", "ipykernel", "ipython", "pytest", "ruff"}
    assert "torch" in names and not names & tools


def test_a_pytorch_without_gpu_stays_and_no_gpu_libraries_come(python, torch_first, folder):
    _, version, built_for = torch_first
    if built_for: pytest.skip(f"the PyTorch that pip finds here is a build for GPUs ({built_for})")
    after = installed(python, folder)
    assert after["torch"] == version, "the wheel has replaced PyTorch"
    assert not [name for name in after if name.startswith(("nvidia", "triton", "cuda"))]


def test_pages_say_how_to_do_without_gpu_libraries():
    pages = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "nbs/howto/faq.ipynb")}
    for said in ("https://pytorch.org", "pip3 install torch --index-url …/whl/cpu", "PIP_EXTRA_INDEX_URL"):
        assert all(said in page for page in pages.values()), said


def test_wheel_works_alone(python, folder): run(python, "-c", SMOKE, cwd=folder)


@pytest.mark.parametrize("script", PROJECT["scripts"])
def test_console_script_starts(python, folder, script):
    assert "usage" in run(python.with_name(script), "--help", cwd=folder)


@pytest.mark.parametrize("version", ["<2", ">=2"])
def test_wheel_works_with_fastcore(python, folder, version):
    run(python, "-m", "pip", "install", "-q", f"fastcore{version}", cwd=folder)
    run(python, "-c", SMOKE, cwd=folder)


def test_pip_installs_the_source(python, source, folder):
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", ".", cwd=source)
    run(python, "-c", SMOKE, cwd=folder)
