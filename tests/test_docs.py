"The documentation: its outline, and the command that builds it."
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

SECTIONS = ["Tutorials", "How-to", "Reference", "Explanation"]


def outline():
    "Sections of the sidebar: name -> what it lists, sections within it unfolded."
    def unfold(entries):
        return [name for e in entries for name in (unfold(e["contents"]) if isinstance(e, dict) else [e])]

    entries = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))["website"]["sidebar"]["contents"]
    return {e["section"]: unfold(e["contents"]) for e in entries if isinstance(e, dict)}


def test_sidebar_has_tutorials_how_to_reference_and_explanation():
    assert list(outline()) == SECTIONS


FOLDERS = {"tutorials": "Tutorials", "howto": "How-to", "explanation": "Explanation", "experiments": "Explanation"}


@pytest.mark.parametrize("folder, section", FOLDERS.items())
def test_every_folder_has_its_section(folder, section):
    elsewhere = ["experiments/quickstart.ipynb"] if folder == "experiments" else []  # a recipe of its own
    notebooks = {f"{folder}/{p.name}" for p in (ROOT / "nbs" / folder).glob("*.ipynb")}
    assert set(outline()[section]) >= notebooks - set(elsewhere)


def test_reference_lists_the_modules():
    found = [p for place in ("[0-9]*.ipynb", "[0-9]*/*.ipynb") for p in (ROOT / "nbs").glob(place)]
    assert set(outline()["Reference"]) == {str(p.relative_to(ROOT / "nbs")) for p in found}


def words(path):
    "What a notebook's markdown cells say."
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


NOTEBOOKS = [p for p in sorted((ROOT / "nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", words(path))
    assert not [link for link in links if not (path.parent / link).exists()]


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


def test_pages_quote_the_result_files():
    from cssgan.experiments.results import mean_sd, read_results
    short, front = words(ROOT / "nbs/explanation/results_in_short.ipynb"), words(ROOT / "nbs/index.ipynb")
    def quoted(values, digits): return "{:.{d}f} ± {:.{d}f}".format(*mean_sd(values), d=digits)
    dice, shape = (read_results(ROOT / f"results/{o}.json") for o in ("table2_segmentation", "table1_s_score"))
    for (_, method), rows in dice.groupby(["modality", "method"]):
        assert quoted(rows["mean"], 1) in short
        assert quoted(rows["mean"], 1) in front or method == "ADA (R+S)"
    for (_, _, score), rows in shape.groupby(["direction", "method", "score"]):
        assert (quoted(rows["mean"], 1) if score == "S-score" else quoted(rows["distortion_mm"], 2)) in short


def test_pages_quote_the_augmented_controls():
    from cssgan.experiments.results import read_results
    from cssgan.experiments.statistics import paired_scores
    short, front = words(ROOT / "nbs/explanation/results_in_short.ipynb"), words(ROOT / "nbs/index.ipynb")
    controls, said = read_results(ROOT / "results/controls.json", score="Dice by patient"), {}
    for modality, frame in controls.groupby("modality"):
        few, ours, real = paired_scores(frame, ["R", "ours", "all real"])
        gain, way = (ours - few).mean(), (real - few).mean()
        said[modality] = f"{gain:+.1f}", f"{100 * gain / way:.0f} %"
    (ct, ct_way), (mri, mri_way), seeds = said["CT"], said["MRI"], controls["seed"].nunique()
    for page in (short, front):
        assert f"{ct} points on CT and {mri} on MRI, {ct_way} and {mri_way} of the way to all labels" in page
        assert f"{seeds} seed{'s' * (seeds > 1)}" in page and "augmented" in page and "`cpu`" in page


def test_the_demo_is_quoted_as_it_is_kept():
    short = words(ROOT / "nbs/explanation/results_in_short.ipynb")
    for seed, found in json.loads((ROOT / "results/demo.json").read_text(encoding="utf-8"))["seeds"].items():
        kept = [found["dice"][m][how] for m in ("CT", "MRI") for how in ("baseline", "joint", "all_real")]
        row = re.search(rf"^\| {seed} \|(.+)\|$", short, re.M)[1]
        assert [float(o) for o in row.split("|")] == pytest.approx([*kept, *found["s_score"].values()], abs=0.0501)


def test_the_method_page_shows_the_step_as_it_is():
    import inspect

    from cssgan.joint import joint_step
    cells = json.loads((ROOT / "nbs/explanation/method.ipynb").read_text(encoding="utf-8"))["cells"]
    shown = ["".join(o["data"]["text/markdown"]) for c in cells for o in c.get("outputs", []) if "data" in o]
    assert f"```python\n{inspect.getsource(joint_step)}```" in shown, "run nbs/explanation/method.ipynb again"


def copy_of_the_tree(folder):
    "What `make docs` needs, with the environment that is there already."
    names = ["Makefile", "settings.ini", "_quarto.yml", "nbs", "cssgan", "pyproject.toml", "constraints.txt"]
    for name in names:
        if (ROOT / name).is_dir(): shutil.copytree(ROOT / name, folder / name, symlinks=True)
        else: shutil.copy(ROOT / name, folder / name)
    for link in (folder / "nbs").glob("*.yml"): link.unlink(), shutil.copy(ROOT / "_quarto.yml", link)
    return folder


def make_docs(tree, programs):
    "Run `make docs` with these programs in front of everything."
    import sys
    others = [p for p in os.environ["PATH"].split(os.pathsep) if not (Path(p) / "quarto").exists()]
    env = os.environ | {"PATH": os.pathsep.join([str(programs), *others])}
    command = ["make", "docs", "READY=", f"BIN={Path(sys.executable).parent}"]
    return subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
def test_without_quarto_one_line_says_what_to_install(tmp_path):
    done = make_docs(copy_of_the_tree(tmp_path), tmp_path)
    assert done.returncode and "install it from https://quarto.org" in done.stderr.splitlines()[0]
    assert not (tmp_path / "_proc").exists()


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
def test_quarto_is_given_every_notebook_and_picture(tmp_path):
    "A stand-in for Quarto writes down what it sees: the real one is too large for a test."
    (programs := tmp_path / "programs").mkdir()
    (programs / "quarto").write_text("#!/bin/sh\nmkdir _docs && "
                                     "find . -name '*.ipynb' -o -name '*.png' -o -name '*.yml' > _docs/seen\n")
    (programs / "quarto").chmod(0o755)
    (tree := tmp_path / "tree").mkdir()
    done = make_docs(copy_of_the_tree(tree), programs)
    assert done.returncode == 0, done.stderr[-500:]
    seen = set((tree / "_docs/seen").read_text().split())
    files = [p for end in ("ipynb", "png") for p in (ROOT / "nbs").rglob(f"*.{end}")]
    wanted = {"./" + str(p.relative_to(ROOT / "nbs")) for p in files if ".ipynb_checkpoints" not in p.parts}
    assert wanted | {"./_quarto.yml", "./nbdev.yml"} <= seen
