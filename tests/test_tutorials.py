"""The lessons read well where they are stored, and run through from the first cell to the last; the exercises can be failed and solved."""
import ast, json, os, re, resource, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "nbs/tutorials"
ORDER = "1_first_translation 2_cycle_is_not_enough 3_joint_loop 4_synthetic_data 5_your_scans 6_batches exercises".split()
LESSONS = sorted(path.stem for path in FOLDER.glob("[0-9]_*.ipynb"))

# A budget of seconds for every lesson: what papermill puts in the place of its parameters.
SMALL = {
}


def cells(name, kind=None):
    "A notebook's cells; with a kind, those that are so tagged, or of that type."
    found = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return [c for c in found if kind in (None, c["cell_type"], *c["metadata"].get("tags", []))]


def source(cell): return "".join(cell["source"])


def outputs(name): return [output for cell in cells(name, "code") for output in cell["outputs"]]


def printed(output):
    "The words that a reader sees of an output."
    return "".join(output.get("text", [])) + "".join("".join(data) for kind, data in output.get("data", {}).items() if kind.startswith("text/"))


# ---- what a reader finds

TIMINGS = re.compile(r"wall time|cpu times|it/s|s/it|\d ?%\||\b\d+(\.\d+)? ?(ms|seconds?|sec|minutes?|min)\b", re.I)
PLACES = re.compile(r"(?<![\w.])/(?:work|root|home|tmp|opt|Users|private|mnt)/|[A-Z]:\\\\|<[\w. ]+ at 0x")


@pytest.mark.parametrize("name", LESSONS)
def test_lesson_says_what_it_teaches_and_how_long_it_takes(name):
    title, promise = map(source, cells(name)[:2])
    assert re.match(r"# [^\n]+\n\n?> \S", title), "begin with a title and a line of subtitle"
    assert "After this lesson" in promise and re.search(r"\b(\d+|a|one|two|three|four|five) minutes?\b", promise), "say what is learned and how many minutes it takes"


@pytest.mark.parametrize("name", LESSONS)
def test_lesson_explains_every_parameter(name):
    tagged, = cells(name, "parameters")
    lines = [line for line in source(tagged).splitlines() if line and not line.startswith("#")]
    assert lines and all(re.match(r"\w+(: ?\w+)? = .+ # \S", line) for line in lines), "one parameter a line, each with a comment"
    assert set(SMALL[name]) <= {re.match(r"\w+", line)[0] for line in lines}, "SMALL names a parameter that the lesson has not"


@pytest.mark.parametrize("name", LESSONS)
def test_lesson_leads_to_the_next(name):
    following = ORDER[ORDER.index(name) + 1]
    assert f"({following}.ipynb)" in source(cells(name, "markdown")[-1]), "end with a link to what comes next"
    assert any("What to try next" in source(c) for c in cells(name, "markdown"))


@pytest.mark.parametrize("name", [*LESSONS, "exercises", "solutions"])
def test_links_lead_somewhere(name):
    found = [link for c in cells(name, "markdown") for link in re.findall(r"\]\((?!\w+:|#)([^)#]+)", source(c))]
    assert not [link for link in found if not (FOLDER / link).exists()]


@pytest.mark.parametrize("name", [*LESSONS, "exercises", "solutions"])
def test_stored_pictures_can_be_seen_and_are_small(name):
    pictures = [o["data"]["image/png"] for o in outputs(name) if "image/png" in o.get("data", {})]
    assert pictures, "no stored picture: run the notebook before it is committed"
    assert max(map(len, pictures)) * 3 / 4 < 150_000 and (FOLDER / f"{name}.ipynb").stat().st_size < 700_000
    assert not [kind for o in outputs(name) for kind in o.get("data", {}) if "widget" in kind], "a widget's state is stored: nobody sees it elsewhere"


@pytest.mark.parametrize("name", [*LESSONS, "exercises", "solutions"])
def test_stored_words_are_the_same_everywhere(name):
    assert not [o for o in outputs(name) if o["output_type"] == "error" or o.get("name") == "stderr"], "an error or a warning is stored"
    words = "\n".join(map(printed, outputs(name)))
    assert not (found := TIMINGS.search(words)) and not (found := PLACES.search(words)), f"a timing or a place of one machine: {found[0]!r}"


# ---- they run

OFFLINE = '''"No network: whoever asks for it is told so."
import socket
connect = socket.socket.connect
def local_only(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"): raise OSError(f"no network in this test, and {address} was asked for")
    return connect(self, address)
socket.socket.connect = local_only
'''
CPU_SECONDS = 60  # that a lesson may take with its small parameters; about 25 on a quiet machine


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    "An environment without a network, with an empty cache of its own."
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "sitecustomize.py").write_text(OFFLINE)
    return os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "CSSGAN_CACHE": str(folder / "cache"), "JUPYTER_PREFER_ENV_PATH": "1",
                         "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def papermill(notebook, folder, env, **parameters):
    "Run a notebook as papermill does, with a folder of its own to work in; give the cells that came out."
    words = [word for name, value in parameters.items() for word in ("-y", f"{name}: {json.dumps(value)}")]
    done = subprocess.run([sys.executable, "-m", "papermill", "--no-progress-bar", *words, "--cwd", folder, notebook, folder / "out.ipynb"],
                          cwd=folder, capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "out.ipynb").read_text(encoding="utf-8"))["cells"]


def cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_machine_of_these_tests_has_no_network(elsewhere):
    asked = subprocess.run([sys.executable, "-c", "import socket; socket.create_connection(('192.0.2.1', 80), 2)"], env=elsewhere, capture_output=True, text=True)
    assert "no network in this test" in asked.stderr


@pytest.mark.parametrize("name", LESSONS)
def test_lesson_runs_through_on_a_small_budget(name, elsewhere, tmp_path):
    before = cpu_seconds()
    papermill(FOLDER / f"{name}.ipynb", tmp_path, elsewhere, **SMALL[name])
    assert cpu_seconds() - before < CPU_SECONDS
