"Every viewer in a real JupyterLab, in a real browser: shown, moved, photographed."
import pytest

pytestmark = pytest.mark.browser
pytest.importorskip("playwright", reason="no Playwright")
pytest.importorskip("jupyterlab", reason="no JupyterLab")

from lab import CHROMIUM, FLAGS, Page, Server, blank, differs  # noqa: E402

CT = """from cssgan.explore import compare, explore, view3d
from cssgan.phantom import draw_anatomy, render
from cssgan.volumes import Grid
anatomy = draw_anatomy(3, Grid((48, 48, 36), (3.5, 3.5, 3.5)))
ct, mri = render(anatomy, "CT"), render(anatomy, "MRI")"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server(tmp_path_factory.mktemp("lab"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        made = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield made
        made.close()


@pytest.fixture
def lab(server, browser, request):
    "Opens notebooks; closes them at the end."
    pages = []
    def open_page(*cells, **how):
        pages.append(Page(server, browser, how.pop("name", request.node.name.split("[")[0]), *cells, **how))
        return pages[-1]
    yield open_page
    for page in pages: page.close()


PICTURE = ".cssgan-live .cssgan-picture"


def test_explore(lab):
    page = lab(CT, "explore(ct)")
    page.run()
    page.page.wait_for_selector(PICTURE)
    words = lambda: page.page.locator(".cssgan-live .widget-html-content:has-text(' mm')").first.inner_text()
    first, said = page.photograph(".cssgan-live", "explore"), words()
    assert not blank(first) and "HU" in said
    assert page.page.locator(".cssgan-live .cssgan-picture").count() == 3
    page.page.locator(PICTURE).last.click(position={"x": 60, "y": 90})
    page.until(lambda: words() != said)
    clicked = page.photograph(".cssgan-live")
    assert differs(first, clicked)
    page.slide("level", 20, "ArrowLeft")
    page.pause(1)
    assert differs(clicked, page.photograph(".cssgan-live", "explore_window"))
    assert not page.failures()


def test_compare(lab):
    page = lab(CT, "from scipy.ndimage import gaussian_filter\nfrom dataclasses import replace\nimport numpy as np\n"
               "fake = replace(mri, voxels=gaussian_filter(np.roll(mri.voxels, 2, 0), 0.7), label=np.roll(mri.label, 2, 0))\n"
               "compare(ct, fake, replace(ct, voxels=gaussian_filter(ct.voxels, 1)), true=mri)")
    page.run()
    page.page.wait_for_selector(PICTURE)
    seen = [page.photograph(".cssgan-live", "compare")]
    table = page.page.locator(".cssgan-live table").inner_text()
    assert "myocardium" in table and "mean" in table
    for view in ("swipe", "blend", "checkerboard", "difference"):
        page.page.click(f".cssgan-live button:text-is('{view}')")
        page.pause(1.5)
        seen.append(page.photograph(PICTURE, f"compare_{view}"))
        assert not blank(seen[-1]) and differs(*seen[-2:])
        if view == "swipe":
            page.drag(PICTURE, (0.5, 0.5), (0.2, 0.5))
            page.pause(1)
            assert differs(seen[-1], page.photograph(PICTURE))
    assert not page.failures()


def test_view3d_without_network(lab):
    "ipyniivue needs nothing but the browser."
    page = lab(CT, "view3d(ct)") # every frame is rendered by the CPU: few steps, then patience
    page.run()
    page.page.wait_for_selector(".cssgan-live canvas")
    assert "niivue" in page.page.locator(".cssgan-live").inner_text()
    page.pause(6)
    first = page.photograph(".cssgan-live canvas", "niivue")
    assert not blank(first)
    page.drag(".cssgan-live canvas", (0.5, 0.5), (0.7, 0.4), steps=2)
    page.pause(2)
    turned = page.photograph(".cssgan-live canvas", "niivue_turned")
    assert differs(first, turned)
    page.slide("clip", 3, "PageUp")
    page.pause(2)
    clipped = page.photograph(".cssgan-live canvas", "niivue_clipped")
    assert differs(turned, clipped)
    page.slide("labels", 3, "PageDown")
    page.pause(2)
    assert differs(clipped, page.photograph(".cssgan-live canvas", "niivue_faded"))
    page.photograph(".cssgan-live", "view3d")
    assert not page.failures()


def test_monitor(lab, root):
    "The buttons work while the cell runs; stop leaves a checkpoint; the summary is stored."
    page = lab(f"import sys; sys.path.insert(0, {str(root / 'tests')!r})\n"
               "from dataclasses import replace\nfrom tiny import SHORT, noise\nfrom cssgan.training import Phase, Stopped, fit\nfrom cssgan.monitor import Monitor\n"
               "data, config = noise(), replace(SHORT, phases=(Phase('joint', 10_000),))",
               "try: fit(data, config, 'watched', progress=False, watch=Monitor(data, share=0.3))\nexcept Stopped as e: print(e)")
    page.run(wait=False)
    page.page.wait_for_selector(".cssgan-live button")
    said = lambda: " ".join(page.page.locator(".cssgan-live .widget-html-content").all_inner_texts())
    page.until(lambda: "epoch 3" in said())
    page.page.click(".cssgan-live button:has-text('pause')")
    page.until(lambda: "paused after" in said())
    first = page.photograph(".cssgan-live", "monitor")
    assert not blank(first)
    page.page.locator(".cssgan-live .noUi-handle").focus()
    page.page.keyboard.press("Home")
    page.until(lambda: "epoch 1" in page.page.locator(".cssgan-live .widget-html-content b").first.inner_text())
    page.pause(1)
    assert differs(first, page.photograph(".cssgan-live"))
    page.page.click(".cssgan-live button:has-text('go on')")
    page.until(lambda: "paused after" not in said())
    page.page.click(".cssgan-live button:has-text('stop')")
    page.idle()
    assert "stopped after" in " ".join(page.page.locator(".jp-OutputArea-output").all_inner_texts())
    assert (page.path.parent / "watched" / "last" / "checkpoint.json").exists()
    assert not page.failures()
