"""A real JupyterLab and a real, headless Chromium, for the tests of what people see.

One JupyterLab stays open in one page, and the tests open their notebooks in it, one after the other. Nothing is waited
for by the clock: cells have run when JupyterLab says so, and a picture is taken when two in a row are the same."""
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import numpy as np
from conftest import ROOT, without_network
from PIL import Image

# WebGL without a graphics card, no calls home, and no host but this one: what a page asks of any other fails at once,
# as without a network.
FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic",
         "--no-first-run", "--no-proxy-server", "--disable-dev-shm-usage",
         "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
PATIENCE = 240  # seconds that anything may take before a test gives up: the cores may be busy with other things
SETTINGS = {"apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
            "docmanager-extension/plugin": {"autosave": False}}
FOREIGN = re.compile(r"^(https?|wss?)://(?!127\.0\.0\.1[:/])")  # addresses on other machines
WITHOUT_NETWORK = re.compile(r"^Failed to load resource: net::|Network Error\s.*imjoy-core")  # in the console


class Server:
    "JupyterLab on a folder, with settings of its own."
    def __init__(self, folder, *command, cwd=None):
        self.folder, self.runtime, token = folder / "notebooks", folder / "runtime", "seen"
        self.folder.mkdir()
        for name, what in SETTINGS.items():
            file = folder / f"settings/@jupyterlab/{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(what))
        own = {f"JUPYTER_{n}_DIR": str(folder / n.lower()) for n in ("CONFIG", "DATA", "RUNTIME")}
        own |= {f"JUPYTERLAB_{n}_DIR": str(folder / n.lower()) for n in ("SETTINGS", "WORKSPACES")}
        env = os.environ | own | without_network(folder) | {
            "IPYTHONDIR": str(folder / "ipython"), "JUPYTER_PREFER_ENV_PATH": "1", "OMP_NUM_THREADS": "1",
            "TQDM_DISABLE": "1", "CSSGAN_CACHE": str(folder / "cache"),
            "JUPYTER_CONFIG_PATH": str(ROOT / "etc/jupyter"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        options = ["--no-browser", "--allow-root", "--port=0",  # the system gives a free one
                   f"--IdentityProvider.token={token}", "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None",
                   "--ServerApp.shutdown_no_activity_timeout=900",
                   "--MappingKernelManager.cull_idle_timeout=900"]  # and none of it stays if a test run is killed
        self.log = folder / "log"
        if command: command = [*command, "LAB=" + " ".join(options)]
        else: command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={self.folder}", *options]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, env=env, cwd=cwd, stdout=log, stderr=log, start_new_session=True)
        self.address = lambda path: f"http://127.0.0.1:{self.port()}/{path}?token={token}"
        try: self.wait()
        except BaseException:
            self.close()
            raise

    def port(self):
        "Where it listens, as it says itself; OSError before it does."
        said = next(self.runtime.glob("jpserver-*.json"), None)
        if not said: raise FileNotFoundError("JupyterLab has not said yet where it listens")
        return json.loads(said.read_text())["port"]

    def wait(self):
        "Until it answers."
        ask, end = urllib.request.build_opener(urllib.request.ProxyHandler({})).open, time.monotonic() + PATIENCE
        while time.monotonic() < end and self.process.poll() is None:
            try: return ask(self.address("api/status"), timeout=5).read()
            except (OSError, json.JSONDecodeError): time.sleep(0.5)  # not there, or half written
        raise RuntimeError("JupyterLab does not answer: " + self.log.read_text()[-2000:])

    def close(self):
        "End it and what it has started."
        import signal
        for how in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, how)
                self.process.wait(20)
            except (ProcessLookupError, subprocess.TimeoutExpired): pass


class Lab:
    "JupyterLab, loaded in a page of the browser."
    def __init__(self, server, browser, path="lab", answers=None, size=(1280, 1200)):
        self.server, self.asked, self.errors, self.answers = server, [], [], answers
        self.page = browser.new_page(viewport=dict(zip(("width", "height"), size)))
        self.page.set_default_timeout(PATIENCE * 1000)
        self.page.on("console", lambda m: self.remember_error(f"{m.text} {m.location.get('url', '')}")
                     if m.type == "error" else None)
        self.page.on("pageerror", lambda e: self.remember_error(str(e)))
        self.page.on("request", lambda r: self.asked.append(r.url) if FOREIGN.match(r.url) else None)
        if answers: self.page.route(FOREIGN, lambda route: answers(route) or route.abort())
        self.page.goto(server.address(path))
        self.page.wait_for_function("() => window.jupyterapp", polling=250)
        self.do("async lab => { await lab.restored; lab.shell.collapseLeft() }")

    def remember_error(self, error):
        "Remember what is wrong, and is not the missing network."
        if not WITHOUT_NETWORK.search(error): self.errors.append(error)

    def do(self, code, *given):
        "What a JavaScript function gives that takes JupyterLab, and may take its time."
        self.page.evaluate(f"""given => {{
            const answer = window.answer = {{}}
            ;({code})(window.jupyterapp, ...given).then(
                value => {{ answer.value = value ?? null }}, error => {{ answer.error = String(error) }})
        }}""", list(given))
        answer = self.page.wait_for_function("() => 'value' in window.answer || 'error' in window.answer ? "
                                             "window.answer : null", polling=100).json_value()
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def close(self): self.page.close()


CURRENT = "lab.shell.currentWidget"


class Page:
    "A notebook, opened in JupyterLab with a kernel."
    def __init__(self, lab, path):
        self.lab, self.page, self.path, self.closed = lab, lab.page, lab.server.folder / path, False
        lab.do(f"""async (lab, path) => {{
            const how = {{path, factory: 'Notebook', kernel: {{name: 'python3'}}}}
            const widget = await lab.commands.execute('docmanager:open', how)
            await widget.context.ready
            await widget.context.sessionContext.ready
            await widget.context.sessionContext.session.kernel.info
            lab.shell.activateById(widget.id)
            while ({CURRENT} !== widget) await new Promise(done => setTimeout(done, 50))
        }}""", str(path))
        self.page.wait_for_selector(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell")
        self.before = len(lab.errors)

    def run(self, wait=True, patience=PATIENCE):
        "Run all cells, as the menu does."
        self.page.evaluate("""() => {
            window.ran = null
            window.jupyterapp.commands.execute('notebook:run-all-cells').then(
                ok => { window.ran = {ok} }, error => { window.ran = {error: String(error)} })
        }""")
        if wait: self.finish(patience)

    def finish(self, patience=PATIENCE):
        "Wait until the cells have run."
        self.page.wait_for_function("() => window.ran", polling=250, timeout=1000 * patience)

    def cells(self):
        "The notebook as JupyterLab holds it now: code cells, with their outputs."
        return [c for c in self.lab.do(f"async lab => {CURRENT}.content.model.toJSON().cells")
                if c["cell_type"] == "code"]

    def outputs(self): return [o for c in self.cells() for o in c["outputs"]]
    def printed(self): return "".join("".join(o["text"]) for o in self.outputs() if o["output_type"] == "stream")

    def failures(self, stderr=True):
        "Errors of cells and of the browser's console."
        wrong = [f"{o['ename']}: {o['evalue']}" for o in self.outputs() if o["output_type"] == "error"]
        wrong += ["".join(o["text"]) for o in self.outputs() if stderr and o.get("name") == "stderr"]
        unrun = [c["source"] for c in self.cells() if "".join(c["source"]).strip() and not c["execution_count"]]
        shown = self.page.locator(".jp-NotebookPanel .jupyter-widgets "
                                  "[data-mime-type='application/vnd.jupyter.error']").all_inner_texts()
        return wrong + shown + self.lab.errors[self.before:] + [f"has not run: {s}" for s in unrun]

    def until(self, true, seconds=PATIENCE, every=0.3):
        "Wait for something to become true, and give it."
        end = time.monotonic() + seconds
        while not (found := true()):
            assert time.monotonic() < end, "waited in vain"
            self.page.wait_for_timeout(1000 * every)
        return found

    def look(self, selector):
        "What a person sees of an element, as pixels."
        element = self.page.locator(selector).last
        element.scroll_into_view_if_needed()
        return pixels(element.screenshot())

    def photograph(self, selector, name=None, unlike=None, still=0, every=0.3):
        "An element at rest: not blank, not like another picture, twice the same (`still`: by so much two may differ)."
        def rested():
            nonlocal last
            last, before = self.look(selector), last
            at_rest = before is not None and not blank(last) and not differs(last, before, still)
            return at_rest and (unlike is None or differs(last, unlike))
        last = None
        self.until(rested, every=every)
        if name: keep(last, name)
        return last

    def whole(self, name=None):
        "The whole notebook from its top to its foot, put together from what the window shows as it is scrolled."
        view = self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-WindowedPanel-outer")
        parts, top = [], 0
        while True:
            at, room, full = view.evaluate("(e, top) => { e.scrollTop = top; return [e.scrollTop, e.clientHeight, "
                                           "e.scrollHeight] }", top)
            self.page.wait_for_timeout(150)
            parts.append(pixels(view.screenshot())[int(round(top - at)):])
            if at + room >= full - 2 or len(parts) > 40: break
            top += room
        picture = np.concatenate([p[:, :min(q.shape[1] for q in parts)] for p in parts])
        if name: keep(picture, name)
        return picture

    def drag(self, selector, start, end, steps=8, rest=0):
        "Draw with the mouse over an element; places are parts of its width and height; rest for seconds after a step."
        element = self.page.locator(selector).last
        element.scroll_into_view_if_needed()
        box = element.bounding_box()
        at = lambda p: (box["x"] + p[0] * box["width"], box["y"] + p[1] * box["height"])
        self.page.mouse.move(*at(start))
        self.page.mouse.down()
        for step in range(1, steps + 1):
            self.page.mouse.move(*at([a + (b - a) * step / steps for a, b in zip(start, end)]))
            self.page.wait_for_timeout(1000 * rest)
        self.page.mouse.up()

    def slide(self, description, times=5, key="ArrowRight"):
        "Move the slider with this name by its arrow keys."
        handle = self.page.locator(f".widget-slider:has(label:text-is('{description}')) .noUi-handle").last
        handle.focus()
        for _ in range(times): handle.press(key)

    def save(self): self.lab.do("async lab => { await lab.commands.execute('docmanager:save') }")

    def close(self):
        "End the kernel, put the notebook away, and ask nothing."
        if self.closed: return
        self.closed = True
        self.lab.do(f"""async lab => {{
            const widget = {CURRENT}, session = widget.context.sessionContext.session.id
            widget.dispose()
            await lab.serviceManager.sessions.shutdown(session)
        }}""")


def write(path, *cells):
    "A new notebook."
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    notebook.metadata["kernelspec"] = {"display_name": "python3", "language": "python", "name": "python3"}
    nbformat.write(notebook, path)


# ---- pictures

def pixels(png): return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")) / 255.0
def blank(picture):
    return float(np.std(picture[(rim := len(picture) // 20):-rim or None])) < 0.02  # whatever line is at its rim
def differs(one, other, most=0.002): return one.shape != other.shape or float(np.abs(one - other).mean()) > most


def keep(picture, name, most=200_000):
    "A photograph, in the folder for photographs if there is one, with as many colours as a small file allows."
    if not os.environ.get("CSSGAN_PHOTOS"): return
    (folder := Path(os.environ["CSSGAN_PHOTOS"])).mkdir(parents=True, exist_ok=True)
    image = Image.fromarray((255 * picture).round().astype(np.uint8))
    for colours in (0, 256, 128, 64, 32, 16):
        reduced = image.quantize(colours, dither=Image.Dither.NONE) if colours else image
        reduced.save(data := io.BytesIO(), "PNG", optimize=True)
        if data.tell() < most: break
    (folder / f"{name}.png").write_bytes(data.getvalue())


def coloured(picture, least=0.25):
    "Which part of a picture is no grey."
    return float((picture.max(2) - picture.min(2) > least).mean())


# ---- what itkwidgets asks of the network

PACKAGES = ("vue@2.6.10", "vue-js-modal@1.3.35", "imjoy-core@0.14.5", "imjoy-rpc@0.5.9", "itk-vtk-viewer@14.51.0",
            "itk-viewer-bootstrap-ui@0.30.0")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cssgan-tests" / "npm"


def npm_packages():
    "The folder of the packages that itkwidgets' viewer is made of, fetched once; or None and why they cannot be had."
    missing = [p for p in PACKAGES if not (CACHE / p / "package.json").exists()]
    if missing and shutil.which("npm") is None: return None, "npm is not installed"
    CACHE.mkdir(parents=True, exist_ok=True)
    for package in missing:
        try:
            done = subprocess.run(["npm", "pack", "--silent", "--fetch-retries=1", "--fetch-timeout=60000", package],
                                  cwd=CACHE, capture_output=True, text=True, timeout=300)
        except subprocess.TimeoutExpired: return None, f"npm does not answer for {package}"
        if done.returncode: return None, f"npm cannot fetch {package}: is there a network?"
        shutil.rmtree(part := CACHE / f"{package}.part", ignore_errors=True)
        shutil.unpack_archive(CACHE / done.stdout.split()[-1], part, filter="data")
        (part / "package").rename(CACHE / package)
        shutil.rmtree(part)
        (CACHE / done.stdout.split()[-1]).unlink()
    return CACHE, None


def answers(folder, viewer):
    """Answers from the packages to what itkwidgets asks: a package's file at any address that names one, the viewer
    (`viewer`: where itkwidgets loads it from), and what ImJoy, which carries it, adds from its own pages. The windows
    of ImJoy are never opened, so a stub does for them."""
    versions = {p.rpartition("@")[0]: p for p in PACKAGES}
    named = re.compile(r"/npm/((?:@[^/]+/)?[^/@]+)@[^/]+/([^?#]+)")
    def find(url):
        if url.startswith(viewer):
            file = url[len(viewer):].split("?")[0].split("#")[0]
            return folder / versions["itk-vtk-viewer"] / "dist" / (file or "index.html")
        if "/vue-js-modal/" in url:
            return folder / versions["vue-js-modal"] / "dist" / url.rpartition("/")[2].split("?")[0]
        if url.endswith("/imjoy-loader.js"): return folder / versions["imjoy-core"] / "dist/imjoy-loader.js"
        found = named.search(url)
        return folder / versions[found[1]] / found[2] if found and found[1] in versions else None
    def answer(route):
        path, free = find(route.request.url), {"Access-Control-Allow-Origin": "*"}
        if "vue-window" in route.request.url:
            route.fulfill(body="window.VueWindow = { install() {} }", content_type="text/javascript", headers=free)
        elif path and path.is_file(): route.fulfill(path=path, headers=free)
        else: return False
        return True
    return answer
