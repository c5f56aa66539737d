"""The lessons read well where they are stored, and run from first to last; exercises can be failed and solved."""
import ast
import json
import os
import re
import resource
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec

import pytest
from conftest import CHROMIUM, ROOT, without_network

FOLDER = ROOT / "nbs/tutorials"
ORDER = ["1_first_translation", "2_cycle_is_not_enough", "3_joint_loop", "4_synthetic_data", "5_your_scans",
         "6_batches", "7_another_task", "8_trained_model", "exercises"]
LESSONS = sorted(path.stem for path in FOLDER.glob("[0-9]_*.ipynb"))

# A budget of seconds for every lesson: what papermill puts in the place of its parameters.
SMALL = {
    "1_first_translation": dict(n_train=2, epochs=.1, n_test=1),
    "2_cycle_is_not_enough": dict(n_train=2, epochs=.1, n_test=1, voxels=2),
    "3_joint_loop": dict(steps_1=2, steps_2=2, pretrain=4, steps_3=2, steps_4=2, n_many=2, n_few=1, n_test=1),
    "4_synthetic_data": dict(n_many=3, n_few=1, n_test=2, epochs_S=1, epochs_G=1, epochs_joint=2),
    "5_your_scans": dict(n=3, epochs_S=1, epochs_G=1, epochs_joint=1),
    "6_batches": dict(seeds=[0], modalities=["MRI"], more_seeds=[0]),
    "7_another_task": dict(n=5, epochs_S=1, epochs_G=1, epochs_joint=2),
    "8_trained_model": dict(n=5, n_test=1, epochs=1),
}


def cells(name, kind=None):
    "A notebook's cells; with a kind, those that are so tagged, or of that type."
    found = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return [c for c in found if kind in (None, c["cell_type"], *c["metadata"].get("tags", []))]


def source(cell): return "".join(cell["source"])


def outputs(name): return [output for cell in cells(name, "code") for output in cell["outputs"]]


def printed(output):
    "The words that a reader sees of an output."
    shown = [data for kind, data in output.get("data", {}).items() if kind.startswith("text/")]
    return "".join(map("".join, [output.get("text", []), *shown]))


# ---- what a reader finds

TIMINGS = re.compile(r"wall time|cpu times|it/s|s/it|\d ?%\||\b\d+(\.\d+)? ?(ms|seconds?|sec|minutes?|min)\b", re.I)
PLACES = re.compile(r"(?<![\w.])/(?:work|root|home|tmp|opt|Users|private|mnt)/|[A-Z]:\\\\|<[\w. ]+ at 0x")


@pytest.mark.parametrize("name", LESSONS)
def test_lesson_says_what_it_teaches_and_how_long_it_takes(name):
    title, promise = map(source, cells(name)[:2])
    assert re.match(r"# [^\n]+\n\n?> \S", title), "begin with a title and a line of subtitle"
    assert "After this lesson" in promise, "say what is learned"
    assert re.search(r"\b(\d+|a|one|two|three|four|five) minutes?\b", promise), "say how many minutes it takes"


@pytest.mark.parametrize("name", LESSONS)
def test_lesson_explains_every_parameter(name):
    tagged, = cells(name, "parameters")
    lines = [line for line in source(tagged).splitlines() if line and not line.startswith("#")]
    explained = [re.match(r"\w+(: ?\w+)? = .+ # \S", line) for line in lines]
    assert lines and all(explained), "one parameter a line, each with a comment"
    names = {re.match(r"\w+", line)[0] for line in lines}
    assert set(SMALL[name]) <= names, "SMALL names a parameter that the lesson has not"


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
    assert max(map(len, pictures)) * 3 / 4 < 250_000, "a picture is large: fewer pixels or fewer tiles"
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 1_200_000
    widgets = [kind for o in outputs(name) for kind in o.get("data", {}) if "widget" in kind]
    assert not widgets, "a widget's state is stored: it shows nothing elsewhere"


@pytest.mark.parametrize("name", [*LESSONS, "exercises", "solutions"])
def test_stored_words_are_the_same_everywhere(name):
    complaints = [o for o in outputs(name) if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert not complaints, "an error or a warning is stored"
    words = "\n".join(map(printed, outputs(name)))
    found = TIMINGS.search(words) or PLACES.search(words)
    assert not found, f"a timing or a place of one machine: {found[0]!r}"


def shown_by(name, code):
    "What the only cell with this code shows."
    cell, = (c for c in cells(name, "code") if code in source(c))
    return "\n".join(map(printed, cell["outputs"]))


def test_lesson_6_shows_the_grid_and_the_parameters_of_today():
    from cssgan.experiments.grids import parameters_of
    grid = (ROOT / "results/table2_segmentation.yaml").read_text(encoding="utf-8")
    assert shown_by("6_batches", "results/table2_segmentation.yaml").strip() == grid.strip(), "run the lesson again"
    listed = re.findall(r"<th>(\w+)</th>\s*<td>", shown_by("6_batches", "parameters_of(Path("))
    assert listed == list(parameters_of(ROOT / "nbs/experiments/table2_segmentation.ipynb")), "run the lesson again"


# ---- they run

IN_BROWSER = pytest.mark.skipif(bool(CHROMIUM and find_spec("playwright") and find_spec("jupyterlab")),
                                reason="with Chromium tests/test_browser.py runs the lessons, offline as well")
CPU_SECONDS = 60  # that a lesson may take with its small parameters; about 25 on a quiet machine


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    "An environment without a network, with an empty cache of its own."
    folder = tmp_path_factory.mktemp("elsewhere")
    quiet = {"JUPYTER_PREFER_ENV_PATH": "1", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    return os.environ | without_network(folder) | {"CSSGAN_CACHE": str(folder / "cache")} | quiet


def papermill(notebook, folder, env, **parameters):
    "Run a notebook as papermill does, with a folder of its own to work in; give the cells that came out."
    words = [word for name, value in parameters.items() for word in ("-y", f"{name}: {json.dumps(value)}")]
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", *words, "--cwd", folder]
    done = subprocess.run([*command, notebook, folder / "out.ipynb"], cwd=folder, env=env, timeout=1200,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "out.ipynb").read_text(encoding="utf-8"))["cells"]


def cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_machine_of_these_tests_has_no_network(elsewhere):
    connect = "import socket; socket.create_connection(('192.0.2.1', 80), 2)"
    asked = subprocess.run([sys.executable, "-c", connect], env=elsewhere, capture_output=True, text=True)
    assert "no network in this test" in asked.stderr


@IN_BROWSER
@pytest.mark.parametrize("name", LESSONS)
def test_lesson_runs_through_on_a_small_budget(name, elsewhere, tmp_path):
    before = cpu_seconds()
    papermill(FOLDER / f"{name}.ipynb", tmp_path, elsewhere, **SMALL[name])
    assert cpu_seconds() - before < CPU_SECONDS


# ---- the exercises

def by_exercise(name):
    "Code cells under each numbered heading; under 0 what all of them need."
    found, number = {0: []}, 0
    for cell in cells(name):
        heading = re.match(r"## ((\d+)\.)?", source(cell)) if cell["cell_type"] == "markdown" else None
        if heading: found.setdefault(number := int(heading[2] or 0), [])
        elif cell["cell_type"] == "code": found[number].append(cell)
    return found


def tagged(cell, tag): return tag in cell["metadata"].get("tags", [])
def one(found, tag): return next(source(c) for c in found if tagged(c, tag))
def verdict(text): return [line for line in text.splitlines() if line[:1] in "✗✓" and line]
def marks(outputs): return [line[0] for o in outputs for line in verdict(printed(o))]


EXERCISES, SOLUTIONS = by_exercise("exercises"), by_exercise("solutions")
NUMBERS = sorted(EXERCISES)[1:]
MARKS = {"exercises": "✗", "solutions": "✓"} # what every check says there


def lines_of(number, answer):
    "An exercise's code with `answer` in the place of its stub."
    return [answer if tagged(c, "stub") else source(c) for c in EXERCISES[number]]


def test_there_are_enough_exercises_and_all_have_solutions():
    headings = lambda name: [source(c) for c in cells(name, "markdown") if re.match(r"## \d", source(c))]
    assert len(NUMBERS) >= 8 and NUMBERS == list(range(1, len(NUMBERS) + 1))
    assert headings("exercises") == headings("solutions")
    for number in NUMBERS:
        for found, tags in ((EXERCISES, ("stub", "check")), (SOLUTIONS, ("solution", "check"))):
            assert [sum(tagged(c, tag) for c in found[number]) for tag in tags] == [1, 1], number


@pytest.mark.parametrize("number", NUMBERS)
def test_solution_stands_in_the_same_code(number):
    shown = [source(c) for c in SOLUTIONS[number] if not tagged(c, "look")]
    assert shown == lines_of(number, one(SOLUTIONS[number], "solution"))


@pytest.mark.parametrize("number", NUMBERS)
def test_what_is_to_change_is_marked_and_every_check_has_hints(number):
    assert one(EXERCISES[number], "stub").startswith("# YOUR TURN\n")
    assert "YOUR TURN" not in one(SOLUTIONS[number], "solution")
    asserts = [node for node in ast.walk(ast.parse(one(EXERCISES[number], "check"))) if isinstance(node, ast.Assert)]
    assert asserts and all(node.msg for node in asserts)


@pytest.mark.parametrize("name, mark", MARKS.items())
def test_stored_checks_show_one_line_each(name, mark):
    said = ["".join(map(printed, c["outputs"])).rstrip("\n") for c in cells(name, "check")]
    assert [line[:4].rstrip(": ") for line in said] == [f"{mark} {n}" for n in NUMBERS]
    assert not any("\n" in line for line in said)


@IN_BROWSER
@pytest.mark.parametrize("name, mark", MARKS.items())
def test_exercises_run_through_unsolved_and_solved(name, mark, elsewhere, tmp_path):
    before = cpu_seconds()
    ran = papermill(FOLDER / f"{name}.ipynb", tmp_path, elsewhere)
    assert marks(o for c in ran for o in c.get("outputs", [])) == [mark] * len(NUMBERS)
    assert cpu_seconds() - before < CPU_SECONDS


@pytest.fixture(scope="module")
def prepared():
    "What all exercises need: names."
    names = {}
    for cell in EXERCISES[0]: exec(source(cell), names)
    return names


def says(number, answer, prepared, capsys, resume=()):
    "The check's line, when only this exercise is answered; cells above it may stop with these errors."
    names = dict(prepared)
    capsys.readouterr()
    for lines in lines_of(number, answer):
        with suppress(*resume): exec(lines, names)
    said, = verdict(capsys.readouterr().out)
    return said


@pytest.mark.parametrize("number", NUMBERS)
def test_exercise_is_solved_by_its_own_solution_alone(number, prepared, capsys):
    assert says(number, one(SOLUTIONS[number], "solution"), prepared, capsys) == f"✓ {number}: solved"


# Parts of the solutions that people get wrong.
CLIPPED = "np.clip((hu - low) / (high - low) * 2 - 1, -1, 1)"
WINDOW = "    low, high = HEART.domain(\"CT\").window\n    return np.clip"
PICKED = "    found[inside] = label[x[inside], y[inside], z[inside]]"
THROUGH_MM = "np.linalg.inv(label_affine) @ scan_affine @ index"
OF_D, OF_G = "((real_scores - 1)**2).mean() / 2 + (fake_scores**2).mean() / 2", "return ((fake_scores - 1)**2).mean()"
UP = "nn.Upsample(scale_factor=2), nn.Conv3d(2 * width, width, 3, padding=1)"
SHAPE = "shape_loss(S_B(fake_B), y_A)"
FILLING = "        pool.append(fake)\n        return "

# Mistakes that people make: (exercise, what in the solution becomes what, a word of the hint).
MISTAKES = [
    (1, CLIPPED, "(hu - low) / (high - low) * 2 - 1", "clip"),
    (1, CLIPPED, "np.clip((hu - low) / (high - low), -1, 1)", "-1, 0 and 1"),
    (1, WINDOW, "    low, high = hu.min(), hu.max()\n    return np.clip", "neighbours"),
    (1, "(x + 1) / 2 * (high - low) + low", "x * (high - low) + low", "undo"),
    (2, "np.rint(where[:3])", "np.floor(where[:3])", "beside"),
    (2, "np.linalg.inv(label_affine) @ scan_affine", "np.linalg.inv(scan_affine) @ label_affine", "beside"),
    (2, PICKED, "    found = label[tuple(np.clip(nearest, 0, np.array(label.shape)[:, None] - 1))]",
     "outside the grid"),
    (2, THROUGH_MM, "np.linalg.inv(np.diag(np.diag(label_affine))) @ np.diag(np.diag(scan_affine)) @ index",
     "inside the scan"),
    (3, "(predicted == region) & annotated", "predicted == region", "last voxel of .* is not annotated"),
    (3, "100 * 2 * (P & T).sum() / (P.sum() + T.sum())", "100 * (P & T).sum() / (P | T).sum()", "80 %"),
    (3, "100 * 2", "2", "80 %"),
    (3, 'torch.tensor(float("nan"))', "torch.tensor(0.)", "nan"),
    (4, OF_D, "((real_scores - 1)**2).mean() + (fake_scores**2).mean()", "about everything"),
    (4, OF_D, "(real_scores**2).mean() / 2 + ((fake_scores - 1)**2).mean() / 2", "nothing to learn"),
    (4, OF_D, "torch.cat([(real_scores - 1)**2, fake_scores**2]).mean()", "each side by itself"),
    (4, OF_G, "return -(fake_scores**2).mean()", "score 1"),
    (4, OF_G, "return ((fake_scores.detach() - 1)**2).mean()", "✗"),
    (4, OF_G, "return (1 - fake_scores).clamp(min=0).square().mean()", "mean over all patches"),
    (5, "reversed(layers)", "layers", "a score changes with"),
    (5, "(voxels - 1) * stride + kernel", "voxels * stride + kernel", "a score changes with"),
    (5, "(voxels - 1) * stride + kernel", "voxels + kernel - 1", "a score changes with"),
    (6, UP, "nn.ConvTranspose3d(2 * width, width, 5, 2, padding=2, output_padding=1)", "pattern"),
    (6, UP, "nn.ConvTranspose3d(2 * width, width, 4, 2, padding=1)", "other weights"),
    (6, UP, "nn.Upsample(scale_factor=2), nn.Unflatten(1, (width, 2)), nn.Flatten(1, 2)", "✗"),
    (6, "conv_block(width, 2 * width, stride=2)", "conv_block(width, 2 * width)", "✗"),
    (6, "nn.Upsample(scale_factor=2), ", "", "✗"),
    (7, "G_A(T_inverse(x))", "G_A(T(x))", "CT comes back"),
    (7, "G_A(T_inverse(x))", "G_A(x)", "CT comes back"),
    (7, "(5, 3)", "(1, 0)", "✗"),
    (7, "v.roll((5, 3), dims=(2, 3))", "F.pad(v, (0, 0, 0, 0, 6, 0))[:, :, :48]", "✗"),
    (8, SHAPE, "shape_loss(S_B(fake_B.detach()), y_A)", "detach"),
    (8, SHAPE, "shape_loss(S_B(fake_B), S_B(fake_B).argmax(1))", "right labels"),
    (8, SHAPE, "shape_loss(S_B(fake_B), y_A) + shape_loss(S_B(fake_B), y_B)", "another patient"),
    (9, '{"G_B", "D_B"}', '{"G_B"}', "1 of 5"),
    (9, '{"G_A", "G_B"}', '{"G_A"}', "cycle_loss"),
    (9, '{"S_A"}', '{"S_A", "G_A"}', "1 of 5"),
    (10, FILLING + "fake", FILLING + "pool[0]", "hands on|handed on"),
    (10, "    if rng.random() < .5: return fake\n", "", "half"),
    (10, "older, pool[i] = pool[i], fake", "older = pool[i]", "lost"),
    (10, "i = rng.randrange(size)", "pool.append(pool.pop(0)); i = size - 1", "random"),
    (11, "evaluator_B(G_B(volumes))", "evaluator_A(G_B(volumes))", "which evaluator"),
    (11, "evaluator_B(G_B(volumes))", "evaluator_A(volumes)", "whose labels|✗"),
    (11, "volumes)).argmax(1), labels)", "volumes)).argmax(1), evaluator_B(G_B(volumes)).argmax(1))", "whose labels"),
    (11, "torch.cat(scores).nanmean()", "torch.cat(scores).nanmean() / 100", "100 %"),
]


@pytest.mark.parametrize("number, right, wrong, hint", MISTAKES, ids=[f"{m[0]}-{i}" for i, m in enumerate(MISTAKES)])
def test_check_sees_the_mistakes_that_people_make(number, right, wrong, hint, prepared, capsys):
    solution = one(SOLUTIONS[number], "solution")
    assert right in solution
    said = says(number, solution.replace(right, wrong), prepared, capsys, resume=(RuntimeError,))
    assert said.startswith(f"✗ {number}: ") and re.search(hint, said), said
