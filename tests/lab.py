"A real JupyterLab and a real, headless Chromium, for the tests of what people see."
import io, json, os, re, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path

import nbformat
import numpy as np
from matplotlib.image import imread

from conftest import ROOT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-quic", "--no-first-run"]
PATIENCE = 240 # seconds that anything may take before a test gives up: continuous integration is slow
NO_NEWS = {"fetchNews": "false", "checkForUpdates": False}
UNASKED = ("npm/vue@",) # an extension that itkwidgets installs looks for this at every start of JupyterLab, and says so where there is no network


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    "JupyterLab on a folder, with settings of its own."
    def __init__(self, folder):
        self.folder, self.port, token = folder / "notebooks", free_port(), "seen"
        self.folder.mkdir()
        for name in ("config", "data", "runtime", "settings/@jupyterlab/apputils-extension"): (folder / name).mkdir(parents=True)
        (folder / "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings").write_text(json.dumps(NO_NEWS))
        env = os.environ | {"JUPYTER_CONFIG_DIR": str(folder / "config"), "JUPYTER_DATA_DIR": str(folder / "data"), "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
                            "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"), "IPYTHONDIR": str(folder / "ipython"),
                            "JUPYTER_PREFER_ENV_PATH": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.log = open(folder / "log", "wb")
        self.process = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={self.port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}",
                                         f"--ServerApp.root_dir={self.folder}", "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None", "--ServerApp.open_browser=False"], env=env, stdout=self.log, stderr=self.log)
        self.address = lambda path: f"http://127.0.0.1:{self.port}/{path}?token={token}"
        self.wait()

    def wait(self):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self.process.poll() is None:
            try: return urllib.request.urlopen(self.address("api/status"), timeout=5).read()
            except OSError: time.sleep(0.5)
        raise RuntimeError("JupyterLab does not answer: " + Path(self.log.name).read_text()[-2000:])

    def close(self):
        self.process.terminate()
        self.process.wait(30)
        self.log.close()


class Page:
    "A notebook in the browser."
    def __init__(self, server, browser, name, *cells, network=False, answers=None):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
        notebook.metadata["kernelspec"] = {"display_name": "python3", "language": "python", "name": "python3"}
        self.path, self.asked, self.errors = server.folder / f"{name}.ipynb", [], []
        if cells: nbformat.write(notebook, self.path)
        self.page = browser.new_page(viewport={"width": 1280, "height": 900})
        self.page.set_default_timeout(PATIENCE * 1000)
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.route(re.compile(rf"^(?!(http|ws)://127\.0\.0\.1:{server.port}/|blob:|data:)"), lambda route: self.answer(route, answers or {}))
        self.page.goto(server.address(f"lab/workspaces/{name}/tree/{name}.ipynb")) # a workspace of its own: no tabs of other tests
        self.page.wait_for_selector(".jp-Notebook .jp-Cell")
        self.page.evaluate("() => document.querySelector('.jp-LeftStackedPanel, #jp-left-stack')?.remove()")

    def answer(self, route, answers):
        "Nothing leaves this machine: what is not answered from here fails, as without a network."
        self.asked.append(route.request.url)
        for start, give in answers.items():
            if route.request.url.startswith(start): return give(route)
        route.abort()

    def run(self, wait=True):
        "Run all cells, as the menu does, once the kernel is there."
        self.page.wait_for_function("() => window.jupyterapp?.shell.currentWidget?.context?.sessionContext?.session?.kernel?.status === 'idle'")
        self.page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
        if wait: self.idle()

    def idle(self):
        "Wait until every cell has run."
        self.page.wait_for_function("() => { const p = [...document.querySelectorAll('.jp-CodeCell')].map(c => c.querySelector('.jp-InputPrompt').textContent); return p.length && p.every(t => /\\[\\d+\\]/.test(t)) }")

    def pause(self, seconds): self.page.wait_for_timeout(1000 * seconds)

    def until(self, true, seconds=PATIENCE):
        "Wait for something to become true, and give it."
        end = time.monotonic() + seconds
        while not (found := true()):
            assert time.monotonic() < end, "waited in vain"
            self.pause(0.3)
        return found

    def photograph(self, selector=".jp-OutputArea", name=None, folder=None):
        "What a person sees of an element, as pixels; kept if the folder for photographs is named."
        element = self.page.locator(selector).last
        element.scroll_into_view_if_needed()
        data = element.screenshot()
        if name and (folder := os.environ.get("CSSGAN_PHOTOS")): (Path(folder) / f"{name}.png").write_bytes(data)
        return imread(io.BytesIO(data))[..., :3]

    def drag(self, selector, start, end, steps=8):
        "Draw with the mouse over an element, from one place to another, each as parts of its width and height."
        box = self.page.locator(selector).last.bounding_box()
        at = lambda p: (box["x"] + p[0] * box["width"], box["y"] + p[1] * box["height"])
        self.page.mouse.move(*at(start))
        self.page.mouse.down()
        self.page.mouse.move(*at(end), steps=steps)
        self.page.mouse.up()

    def slide(self, description, times=5, key="ArrowRight"):
        "Move the slider with this name by its arrow keys."
        handle = self.page.locator(f".widget-slider:has(label:text-is('{description}')) .noUi-handle").last
        handle.focus()
        for _ in range(times): handle.press(key)

    def failures(self):
        "Errors of cells, and of the browser's console."
        cells = self.page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr'], .jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']").all_inner_texts()
        return cells + [e for e in self.errors if not any(o in e for o in ("ERR_FAILED", "net::", *UNASKED))]

    def close(self): self.page.close()


def blank(picture): return float(np.std(picture)) < 0.02
def differs(one, other): return one.shape != other.shape or float(np.abs(one - other).mean()) > 0.002
