"What people see in JupyterLab: every viewer shown, moved and photographed; lessons run; a stranger's notebook opened."
import json
import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest

pytestmark = pytest.mark.browser
pytest.importorskip("playwright", reason="no Playwright")
pytest.importorskip("jupyterlab", reason="no JupyterLab")

from conftest import CHROMIUM, ROOT  # noqa: E402
from lab import FLAGS, PATIENCE, Lab, Page, Server, answers, blank, coloured, npm_packages, write  # noqa: E402
from test_tutorials import MARKS, NUMBERS, SMALL, marks  # noqa: E402

LESSONS = sorted((ROOT / "nbs/tutorials").glob("*.ipynb"))

CT = """from cssgan import compare, explore, view3d
from cssgan.phantoms.scanners import draw_anatomy, render
from cssgan.scans.volumes import Grid
anatomy = draw_anatomy(3, Grid((48, 48, 36), (3.5, 3.5, 3.5)))
ct, mri = render(anatomy, "CT"), render(anatomy, "MRI")"""
LIVE, PICTURE = ".cssgan-live", ".cssgan-live .cssgan-picture"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("lab"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        made = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=120_000)
        yield made
        made.close()


@pytest.fixture(scope="module")
def shared(server, browser):
    "JupyterLab in a page, made anew after a test that failed."
    made = {}
    def give():
        if "lab" not in made: made["lab"] = Lab(server, browser)
        return made["lab"]
    give.forget = lambda: made.pop("lab", None)
    yield give
    if "lab" in made: made["lab"].close()


@pytest.fixture
def opened(shared, request):
    "Opens notebooks; puts them away at the end. Of a test that fails, the page and its state are kept."
    pages, failed = [], request.session.testsfailed
    def open_page(*cells, name=request.node.name.replace("[", "-").rstrip("]"), lab=None):
        lab = lab or shared()
        path = lab.server.folder / f"{name}.ipynb"
        if cells: write(path, *cells)
        pages.append(Page(lab, path.relative_to(lab.server.folder)))
        return pages[-1]
    yield open_page
    if request.session.testsfailed == failed:
        for page in reversed(pages): page.close()
    else:
        for page in pages[-1:]: print_state(page, request.node.name)
        shared.forget()


def print_state(page, name):
    "What a page looked like when its test failed."
    try:
        print(re.sub(r'"image/png": "[^"]*"', "", json.dumps(page.cells(), indent=1))[-3000:], *page.lab.errors,
              *page.lab.asked[-20:], sep="\n")
        if folder := os.environ.get("CSSGAN_PHOTOS"): page.page.screenshot(path=Path(folder) / f"failed_{name}.png")
    except Exception as e: print("the page's state cannot be had:", e)


# ---- the viewers

def test_explore(opened):
    page = opened(CT, "explore(ct, window='heart')")
    page.run()
    words = lambda: page.page.locator(f"{LIVE} .widget-html-content:has-text(' mm')").first.inner_text()
    first, before = page.photograph(LIVE, "explore"), words()
    assert "HU" in before and page.page.locator(PICTURE).count() == 3
    page.drag(PICTURE, (0.5, 0.5), (0.3, 0.4))
    page.until(lambda: words() != before)
    drawn = page.photograph(LIVE, "explore_drawn", unlike=first)
    page.slide("level", 20, "ArrowLeft")
    dark = page.photograph(LIVE, "explore_level", unlike=drawn)
    page.page.locator(PICTURE).last.hover()
    page.page.mouse.wheel(0, -300)
    page.photograph(LIVE, "explore_wheel", unlike=dark)
    assert not page.failures()


TRANSLATION = """from scipy.ndimage import gaussian_filter
from dataclasses import replace
import numpy as np
def moved(v, by):
    voxels = gaussian_filter(np.roll(v.voxels, by, (0, 1)), 0.7)
    return replace(v, voxels=voxels, label=np.roll(v.label, by, (0, 1)))
compare(ct, moved(mri, (2, 1)), moved(ct, (0, 0)), true=mri)"""


def test_compare(opened):
    page = opened(CT, TRANSLATION)
    page.run()
    seen = [page.photograph(LIVE, "compare")]
    table = page.page.locator(f"{LIVE} table").inner_text()
    assert "myocardium" in table and "mean" in table
    for view in ("swipe", "blend", "checkerboard", "difference"):
        page.page.click(f"{LIVE} button:text-is('{view}')")
        seen.append(page.photograph(LIVE, f"compare_{view}", unlike=seen[-1]))
        if view == "swipe":
            page.drag(PICTURE, (0.5, 0.5), (0.2, 0.5))
            seen.append(page.photograph(LIVE, unlike=seen[-1]))
        if view == "blend":
            page.slide("real", 3, "PageUp")
            seen.append(page.photograph(LIVE, unlike=seen[-1]))
    page.page.click(f"{LIVE} button:text-is('coronal')")
    page.photograph(LIVE, "compare_coronal", unlike=seen[-1])
    assert not page.failures()


def test_a_page_asks_nothing_of_other_machines_before_it_is_wanted(server, browser, opened):
    "Even if they would answer: neither the lab, nor a notebook's kernel, nor a viewer that brings its own code along."
    lab = Lab(server, browser, answers=lambda route: route.fulfill(body=""))
    page = opened(CT, "view3d(ct, viewer='niivue')", lab=lab)
    page.run()
    page.page.wait_for_selector(f"{LIVE} canvas")
    page.until(lambda: coloured(page.look(LIVE)) > 0.02, every=1.5)
    page.photograph(LIVE, "view3d_niivue")
    assert not lab.asked and not page.failures()
    page.close()
    lab.close()


def test_view3d_without_network(opened):
    "ipyniivue needs nothing but the browser. Every frame is rendered by the CPU: few steps, then patience."
    page, canvas = opened(CT, "view3d(ct)"), f"{LIVE} canvas"
    page.run()
    page.page.wait_for_selector(canvas)
    assert "niivue" in page.page.locator(LIVE).inner_text()
    first = page.photograph(canvas, "niivue")
    assert coloured(first) > 0.02
    page.drag(canvas, (0.5, 0.5), (0.7, 0.4), steps=2)
    turned = page.photograph(canvas, "niivue_turned", unlike=first)
    page.slide("clip", 3, "PageUp")
    clipped = page.photograph(canvas, "niivue_clipped", unlike=turned)
    page.slide("labels", 3, "PageDown")
    faded = page.photograph(canvas, "niivue_faded", unlike=clipped)
    chosen = page.page.locator(f"{LIVE} .widget-dropdown:has(label:text-is('show')) select")
    chosen.select_option("three cuts and space")
    page.photograph(canvas, "niivue_cuts", unlike=faded)
    assert not page.failures()


def test_view3d_with_network(opened, server, browser):
    "itkwidgets loads its viewer from the network: here from npm packages."
    from cssgan.viewers.depth import viewer_address
    packages, why = npm_packages()
    if packages is None: pytest.skip(f"the packages of itkwidgets' viewer are not here: {why}")
    lab, frame = Lab(server, browser, answers=answers(packages, viewer_address()), size=(900, 760)), f"{LIVE} iframe"
    page, slow = opened(CT, "view3d(ct)", lab=lab), {"still": 0.001, "every": 1.5}  # a frame takes the CPU a second
    page.run()
    page.page.wait_for_selector(frame)
    page.until(lambda: coloured(page.look(frame), 0.08) > 0.02, every=1.5)  # the labels
    first = page.photograph(frame, "view3d_itk", **slow)
    body = first[100:-100, 100:-100]  # without the scale and the axes
    assert ((body.max(2) - body.min(2) < 0.08) & (body.mean(2) > 0.15)).mean() > 0.02  # the image, in grey
    page.drag(frame, (0.5, 0.5), (0.7, 0.4), steps=4, rest=1)
    page.page.mouse.wheel(0, -400)
    page.photograph(frame, "itk_moved", unlike=first, **slow)
    assert not page.failures()
    page.close()
    lab.close()


# A photograph shows networks that have learned something; a test needs none.
CASES, BEFORE = (16, (16, 8)) if os.environ.get("CSSGAN_PHOTOS") else (4, (1, 1))
WATCHED = f"""from dataclasses import replace
from cssgan.data.cases import phantom_cases
from cssgan.data.datasets import unpaired
from cssgan.training.schedule import Phase, preset
from cssgan.training.trainer import Stopped, fit
from cssgan.viewers.monitor import Monitor
phases = Phase("segmentors", {BEFORE[0]}), Phase("generators", {BEFORE[1]}), Phase("joint", 50)
config = replace(preset("smoke"), width=8, lr=2e-3, phases=phases)
data = unpaired(phantom_cases({{"train": ({CASES}, {CASES}), "valid": (2, 2)}}), config.grid, "prepared")"""


def test_monitor(opened, server):
    "The buttons work while the cell runs; stop leaves a checkpoint; the summary is stored."
    train = "fit(data, config, 'watched', progress=False, callback=Monitor(data, share=0.3))"
    page = opened(WATCHED, f"try: {train}\nexcept Stopped as e: print(e)")
    page.run(wait=False)
    words = lambda: " ".join(page.page.locator(f"{LIVE} .widget-html-content").all_inner_texts())
    shown = lambda: page.page.locator(f"{LIVE} .widget-html-content b").all_inner_texts()  # the fixed cases' epoch
    epoch = lambda: int((re.search(r"epoch (\d+)", " ".join(shown())) or (0, 0))[1])
    joint = lambda: re.search(r"epoch ([4-9]|\d\d) of 50", words()) and epoch() >= sum(BEFORE) + 2
    page.until(joint, seconds=3 * PATIENCE)
    page.page.click(f"{LIVE} button:has-text('pause')")
    page.until(lambda: "paused after" in words())
    first = page.photograph(LIVE, "monitor")
    page.page.locator(f"{LIVE} .noUi-handle").focus()
    page.page.keyboard.press("Home")
    page.photograph(LIVE, "monitor_back", unlike=first)
    assert shown() == ["epoch 1"]
    page.page.click(f"{LIVE} button:has-text('resume')")
    page.until(lambda: "paused after" not in words())
    page.page.click(f"{LIVE} button:has-text('stop')")
    page.finish()
    assert "stopped after" in page.printed() and not page.failures()
    assert (server.folder / "watched" / "last" / "checkpoint.json").exists()
    assert sum("image/png" in o.get("data", {}) for o in page.outputs()) == 1


# ---- the lessons

@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_lesson(opened, server, path):
    "Run through from top to bottom on a small budget, and photographed whole."
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook
    notebook = load_notebook_node(str(path))
    if path.stem in SMALL: notebook = parameterize_notebook(notebook, SMALL[path.stem])
    for cell in notebook.cells:
        if cell.cell_type == "code": cell.update(outputs=[], execution_count=None)
    nbformat.write(notebook, server.folder / path.name)
    page = opened(name=path.stem)
    page.run(patience=600)
    assert not page.failures(stderr=False)
    if mark := MARKS.get(path.stem): assert marks(page.outputs()) == [mark] * len(NUMBERS)
    assert not blank(page.whole(f"lesson_{path.stem}"))


def test_make_lab_opens_the_lessons(tmp_path, browser):
    if not (ROOT / ".venv/bin/jupyter-lab").exists(): pytest.skip("`make setup` has not run here")
    server = Server(tmp_path, "make", "-o", ".venv/.ready", "lab", cwd=ROOT)
    try:
        lab = Lab(server, browser, "")
        lab.do("async lab => { lab.shell.expandLeft() }")
        listed = lab.page.locator(".jp-DirListing-itemText")
        listed.filter(has_text="ipynb").first.wait_for()
        assert set(listed.all_inner_texts()) >= {p.name for p in LESSONS}
        lab.close()
    finally: server.close()


# ---- opened, and only looked at

STRANGE = ["<img src='x' onerror='window.strange = 1'><script>window.strange = 2</script>", "window.strange = 3",
           "export default { render() { window.strange = 4 } }"]


def strangers(path):
    "A notebook as a stranger may send it: its outputs want to run, and it brings a widget with code of its own."
    notebook = nbformat.read(path, 4)
    show = lambda kind, what: nbformat.v4.new_output("display_data", {kind: what})
    version = {"version_major": 2, "version_minor": 0}
    view = show("application/vnd.jupyter.widget-view+json", {"model_id": "strange", **version})
    notebook.cells[-1].outputs += [show("text/html", STRANGE[0]), show("application/javascript", STRANGE[1]), view]
    model = {"model_name": "AnyModel", "model_module": "anywidget", "model_module_version": "~0.9.*", "state": {
        "_model_name": "AnyModel", "_model_module": "anywidget", "_model_module_version": "~0.9.*",
        "_view_name": "AnyView", "_view_module": "anywidget", "_view_module_version": "~0.9.*", "_view_count": None,
        "layout": "IPY_MODEL_place", "_esm": STRANGE[2]}}
    base = {"model_module": "@jupyter-widgets/base", "model_module_version": "2.0.0"}
    place = {"model_name": "LayoutModel", **base, "state": {}}
    state = {**version, "state": {"strange": model, "place": place}}
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": state}
    nbformat.write(notebook, path)


@pytest.mark.parametrize("whose", ["mine", "a stranger's"])
def test_opening_shows_pictures_and_runs_nothing(opened, server, whose):
    "A notebook that was run and stored in this JupyterLab, and opened again elsewhere: pictures, and nothing runs."
    name = "stored" if whose == "mine" else "strange"
    page = opened(CT, "explore(ct)", f"open('ran {name}', 'w').close()", name=name)
    page.run()
    page.photograph(LIVE)
    page.save()
    page.close()
    (server.folder / f"ran {name}").unlink()
    (server.folder / name).mkdir()
    path = shutil.move(server.folder / f"{name}.ipynb", server.folder / name)
    if whose != "mine": strangers(path)
    page = opened(name=f"{name}/{name}")
    page.photograph(".jp-OutputArea img[src^='data:image/png']", f"opened_{name}")
    page.page.wait_for_timeout(3000)
    assert page.page.evaluate("() => window.strange") is None and not page.page.locator(LIVE).count()
    assert not any((server.folder / name).glob("ran*")) and not (server.folder / f"ran {name}").exists()
    assert not "".join(page.page.locator(".jp-OutputArea").all_inner_texts()).strip()  # no message on lost widgets
