"Every result file can be made again: its parameters are its notebook's, and its commit is in the history."
import json
import subprocess

import pytest
from conftest import ROOT
from protocols import study_of

FOLDER = ROOT / "results"
OLDER = json.loads((FOLDER / "older_code.json").read_text(encoding="utf-8"))  # file → why; until they are made again
MADE = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}
SWEPT = {name: made for name, made in MADE.items() if "rows" in made}


def parameters(row):
    "Names of a row's parameters: `cssgan_sweep --collect` writes them before the version."
    return list(row)[:list(row).index("cssgan")]


@pytest.mark.parametrize("name", SWEPT)
def test_a_result_file_is_of_the_present_grid_and_of_unchanged_files_or_is_listed_as_older(name):
    from cssgan.experiments.grids import parameters_of, read_grid
    from cssgan.experiments.results import runs_present
    grid = read_grid(FOLDER / f"{name}.yaml")
    gone = {o for row in SWEPT[name]["rows"] for o in parameters(row)} - set(parameters_of(grid.notebook))
    changed = any(maker["changed"] for maker in SWEPT[name]["made_by"])
    strange = runs_present(grid.runs, SWEPT[name]["rows"])[1]
    said = f"gone: {gone}, changed: {changed}, records of no run of the grid: {strange}; see results/older_code.json"
    assert bool(gone or changed or strange) == (name in OLDER), said


def test_no_other_file_is_listed_as_older(): assert set(OLDER) <= set(SWEPT)


def git(*words): return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True)


def need_history():
    "Skip where there is none to look into."
    try: shallow = git("rev-parse", "--is-shallow-repository")
    except FileNotFoundError: pytest.skip("no git here")
    if shallow.returncode: pytest.skip("not a git repository")
    if shallow.stdout.strip() == "true": pytest.skip("a shallow clone has no history")


@pytest.mark.parametrize("name", SWEPT)
def test_a_result_files_commit_is_in_the_history(name):
    need_history()
    makers = {maker["commit"] for maker in SWEPT[name]["made_by"]}
    assert makers == {row["commit"] for row in SWEPT[name]["rows"]}
    for commit in makers: assert not git("merge-base", "--is-ancestor", commit, "HEAD").returncode, commit


EARLIER = {"table2_segmentation": "757e940", "table1_s_score": "3b5aa5e", "fig7_synthetic_fraction": "5154163",
           "fig8_gap": "657c90b", "fig8_more": "2221be9", "scratch": "0e90f59"}  # as results.ipynb names them


def test_the_files_of_the_first_round_are_those_of_the_history():
    assert {path.stem for path in (FOLDER / "earlier").glob("*.json")} == set(EARLIER)
    page = json.loads((ROOT / "nbs/experiments/results.ipynb").read_text(encoding="utf-8"))
    source = "".join("".join(cell["source"]) for cell in page["cells"] if cell["cell_type"] == "code")
    for name, commit in EARLIER.items(): assert f'"{name}": "{commit}"' in source
    need_history()
    for name, commit in EARLIER.items():
        kept = (FOLDER / f"earlier/{name}.json").read_text(encoding="utf-8")
        assert git("show", f"{commit}:results/{name}.json").stdout == kept, name


def says_its_protocol(made): return any(row.get("protocol") for row in made["rows"])


BY_PROTOCOL = [name for name, made in SWEPT.items() if says_its_protocol(made)]


def same_protocol(notebook, row, folder):
    "Are the digits of a record those of the present code?"
    from cssgan.experiments.methods import protocol_of
    return protocol_of(study_of(notebook, row, folder)).fingerprint == row["protocol"]


@pytest.mark.parametrize("name", BY_PROTOCOL or [pytest.param("", marks=pytest.mark.skip("no such results yet"))])
def test_the_digits_of_a_protocol_are_those_of_the_present_code(name, tmp_path):
    from cssgan.experiments.grids import read_grid
    notebook = read_grid(FOLDER / f"{name}.yaml").notebook.stem
    keys = "data", "preset", "scarce", "augment", "longer", "improvement", "protocol"
    for row in {tuple(map(row.get, keys)): row for row in SWEPT[name]["rows"]}.values():
        if not row.get("protocol"): continue  # such as a floor, which has no methods
        same = same_protocol(notebook, row, tmp_path)
        assert same == (name not in OLDER), f"made by {row['protocol']}, now another: see results/older_code.json"


def test_a_file_of_any_name_that_says_its_protocol_is_looked_at(tmp_path):
    row = next(row for row in SWEPT["controls"]["rows"] if row.get("protocol"))
    assert same_protocol("controls", row, tmp_path)
    assert not same_protocol("controls", row | {"protocol": "00000000"}, tmp_path)
    assert says_its_protocol({"rows": [{"mean": 1.}, row]}) and not says_its_protocol({"rows": [{"mean": 1.}]})
