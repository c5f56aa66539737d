"Every viewer in a real JupyterLab, in a real browser: shown, moved, photographed."
import pytest

pytestmark = pytest.mark.browser
pytest.importorskip("playwright", reason="no Playwright")
pytest.importorskip("jupyterlab", reason="no JupyterLab")

from lab import CHROMIUM, FLAGS, Page, Server, blank, differs  # noqa: E402

CT = """from cssgan.explore import compare, explore, view3d
from cssgan.phantom import draw_anatomy, render
from cssgan.volumes import Grid
anatomy = draw_anatomy(3, Grid((56, 56, 42), (3., 3., 3.)))
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
    page = lab(CT, "view3d(ct)")
    page.run()
    page.page.wait_for_selector(".cssgan-live canvas")
    assert "niivue" in page.page.locator(".cssgan-live").inner_text()
    page.pause(6)
    first = page.photograph(".cssgan-live canvas", "niivue")
    assert not blank(first)
    page.drag(".cssgan-live canvas", (0.5, 0.5), (0.7, 0.4))
    page.pause(2)
    turned = page.photograph(".cssgan-live canvas", "niivue_turned")
    assert differs(first, turned)
    page.slide("clip", 12)
    page.pause(2)
    clipped = page.photograph(".cssgan-live canvas", "niivue_clipped")
    assert differs(turned, clipped)
    page.slide("labels", 10, "ArrowLeft")
    page.pause(2)
    assert differs(clipped, page.photograph(".cssgan-live canvas", "niivue_faded"))
    page.photograph(".cssgan-live", "view3d")
    assert not page.failures()
