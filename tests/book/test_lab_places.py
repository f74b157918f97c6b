"""Every explorable where readers meet it: in frames like Colab's, Firefox and JupyterLab."""

import json
import os
import secrets
import socket
import subprocess
import sys

import nbformat
import pandas as pd
import pytest
from as_in_book import in_the_book, with_modules
from browsing import firefox
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from lecture6.course import explorables

TIMEOUT = 60  # seconds
SAMPLES = [[1.0, 0.5, 1.0], [-1.0, 0.25, -1.0], [0.5, -1.0, -1.0], [0.25, 1.0, 1.0]] * 8
WORDS = {"title": "A title", "provenance": "A run"}
ALONG = [
    {"path": "line", "split": split, "alpha": alpha, "loss": 1 + alpha**2, "accuracy": 0.9}
    for split in ("train", "test")
    for alpha in (0.0, 0.5, 1.0)
]
NETS = [["a net", [[8, 98, 0.01, 3], [64, 97, 0.1, 8], [512, 90, 0.4, 5]]]]
PEAK = [[8, 0.1, 0.0, 0.2], [32, 0.5, 0.4, 0.6], [128, 0.1, 0.0, 0.2]]  # B, gain, its ends
CURVES = [
    {"lr": lr, "momentum": m, "n_train": n, "points": PEAK, "peaks": [30.0, 34.0]}
    for lr, m, n in ((0.5, 0.0, 1000), (1.0, 0.0, 1000), (1.0, 0.9, 1000), (1.0, 0.0, 2000))
]
QUICK = {"epochs": 5, "small": 64}
# What a kind needs to be made, or to be quick; the others start as they are.
STARTS = {
    "Collapse": lambda kind: kind(curves=CURVES, provenance="A run"),
    "Keskar": lambda kind: kind(**QUICK),
    "Linked": lambda kind: kind(nets=NETS, epsilons=[1e-3], net="a net", batch_size=64, **WORDS),
    "OneStep": lambda kind: kind(samples=SAMPLES, test=SAMPLES, provenance="A run"),
    "Scrubber": lambda kind: kind(pd.DataFrame(ALONG), **WORDS),
    "Spectrum": lambda kind: kind(epochs=3, width=8),
}
KINDS = [
    kind
    for kind in explorables.Explorable.__subclasses__()
    if kind.__module__ == explorables.__name__
]


def made(kind):
    return STARTS.get(kind.__name__, lambda kind: kind())(kind)


# Commits to a guess where one is asked for, or skips it.
GUESS = """
for (const guess of document.querySelectorAll(".lecture6-predict")) {
  guess.querySelector("input[type=radio]")?.click();
  const commit = guess.querySelector(".commit");
  (commit.disabled ? guess.querySelector(".skip") : commit).click();
}
"""
BUTTON = "form.controls .buttons button:enabled"
SEEN = """
const slider = document.querySelector("input[type=range]"), label = slider?.parentElement;
return [label?.nextElementSibling?.textContent, document.querySelector("canvas")?.toDataURL(),
        document.querySelector(".state")?.textContent];
"""


class Chromium:
    def __init__(self, driver):
        self.script = driver.execute_script
        self.driver = driver

    def press(self, css, key):
        self.driver.find_element(By.CSS_SELECTOR, css).send_keys(key)


class Firefox:
    def __init__(self, command):
        self.command = command

    def script(self, script):
        return self.command("ExecuteScript", {"script": script, "args": []})["value"]

    def press(self, css, key):
        found = self.command("FindElement", {"using": "css selector", "value": css})["value"]
        (number,) = found.values()
        self.command("ElementSendKeys", {"id": number, "text": key})


def until(condition, message):
    return WebDriverWait(None, TIMEOUT, 0.1).until(lambda _: condition(), message)


def assert_alive(browser):
    """The explorable of the page draws, a key moves its slider, and what it runs is drawn."""
    until(lambda: (browser.script(SEEN)[1] or "") > "data:image/png" and browser.script(SEEN)[2],
          "nothing is drawn")  # fmt: skip
    browser.script(GUESS)
    label, picture, _ = browser.script(SEEN)
    browser.press("input[type=range]", Keys.ARROW_RIGHT)
    if browser.script(SEEN)[0] == label:  # it was at its end
        browser.press("input[type=range]", Keys.ARROW_LEFT)
    until(lambda: browser.script(SEEN)[0] != label, "the slider does not move")
    if browser.script(f"return document.querySelector('{BUTTON}') !== null"):
        browser.script(f"document.querySelector('{BUTTON}').click()")
    until(lambda: browser.script(SEEN)[1] != picture, "the picture does not change")


def until_trained(browser):
    rows = "return document.querySelectorAll('.measures tbody tr').length"
    until(lambda: browser.script(rows), "the nets are not trained and measured")


# ---- frames ----------------------------------------------------------------------------------

# Colab shows each output in a frame of another origin; this one may run scripts, and no more. The
# front end is as anywidget's: the module is imported from an address of its text.
FRAME = """<!doctype html><html lang="en"><meta charset="utf-8">{policy}<style>{css}</style>
<body><div id="output"></div><script type="application/json">{content}</script>
<script type="module">
const {{ esm, state }} = JSON.parse(document.querySelector("script").textContent), listeners = [];
const model = {{
  get: (name) => state[name],
  set(name, value) {{
    state[name] = value;
    for (const [event, act] of [...listeners]) if (event === `change:${{name}}`) act();
  }},
  on: (...listener) => listeners.push(listener),
  off: (name, act) => listeners.splice(0, Infinity, ...listeners.filter((l) => l[1] !== act)),
  save_changes() {{ window.saved = {{ ...state }}; }},
}};
window.worked = false;
window.Worker = class extends Worker {{
  constructor(...given) {{
    super(...given);
    this.addEventListener("message", () => {{ window.worked = true; }});
  }}
}};
const address = {address};
const {{ default: widget }} = await import(address);
window.end = widget.render({{ model, el: document.querySelector("#output") }});
</script>"""
STORED = "try { return localStorage !== null } catch { return false }"
PLACES = {  # the address of the module, and what the frame is forbidden
    "blob": ('URL.createObjectURL(new Blob([esm], { type: "text/javascript" }))', ""),
    "data, no workers": (
        "`data:text/javascript;charset=utf-8,${encodeURIComponent(esm)}`",
        "<meta http-equiv='Content-Security-Policy' content=\"worker-src 'none'\">",
    ),
}


def framed(kind, place, monkeypatch):
    """A page with a frame, in which is an explorable as a kernel would have it."""
    monkeypatch.delenv("LECTURE6_STATIC", raising=False)
    widget = made(kind)
    content = {"esm": widget._esm, "state": widget.trait_values(start=True)}
    text = json.dumps(content).replace("<", "\\u003c")
    css = (explorables.HERE / "explorables.css").read_text("utf8")
    address, policy = PLACES[place]
    html = FRAME.format(css=css, content=text, address=address, policy=policy)
    quoted = html.replace("&", "&amp;").replace('"', "&quot;")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>A notebook</title>'
        '<iframe title="output" sandbox="allow-scripts" style="width: 700px; height: 1500px" '
        f'srcdoc="{quoted}"></iframe>'
    )


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_in_a_frame_like_colabs(browser, kind, place, tmp_path, monkeypatch):
    (tmp_path / "outer.html").write_text(framed(kind, place, monkeypatch), "utf8")
    browser.get((tmp_path / "outer.html").as_uri())
    browser.switch_to.frame(browser.find_element(By.TAG_NAME, "iframe"))
    assert not browser.execute_script(STORED)
    assert_alive(Chromium(browser))
    assert browser.execute_script("return window.saved !== undefined")
    if kind is explorables.Keskar:
        until_trained(Chromium(browser))
    if kind in (explorables.Keskar, explorables.Spectrum):
        assert browser.execute_script("return window.worked") == (place == "blob")
    browser.execute_script("window.end()")
    browser.switch_to.default_content()


# ---- Firefox ---------------------------------------------------------------------------------

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>A page</title>
<link rel="icon" href="data:,"><link rel="stylesheet" href="explorables.css">
<main>{}</main><script src="explorables.js" defer></script>"""


@pytest.fixture(scope="module")
def fox(tmp_path_factory):
    with firefox(tmp_path_factory.mktemp("firefox") / "profile") as command:
        yield command


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that holds what the book would: pages, and the files that they load."""
    folder = with_modules(tmp_path_factory.mktemp("places"))
    for kind in KINDS:
        html = PAGE.format(in_the_book(made, kind=kind))
        (folder / f"{kind.__name__}.html").write_text(html, "utf8")
    return folder


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_in_firefox_from_a_file(fox, folder, kind):
    fox("Navigate", {"url": (folder / f"{kind.__name__}.html").as_uri()})
    assert_alive(Firefox(fox))
    if kind is explorables.Keskar:
        until_trained(Firefox(fox))


# ---- JupyterLab ------------------------------------------------------------------------------

CELLS = [
    """
import json
from pathlib import Path

import plotly.graph_objects as go

from lecture6.course.explorables import Keskar
from lecture6.course.widgets import explore

bench = Keskar(epochs=5, small=64)
keep = lambda _: Path("bench.json").write_text(json.dumps([bench.small, bench.seed]))
bench.observe(keep, ["small", "seed"])
bench
""",
    """
def line(slope):
    layout = {"title": {"text": f"A line of slope {slope}"}, "meta": {"description": "A line."}}
    return go.Figure(go.Scatter(x=[0, 1], y=[0, slope]), layout)

explore(line, {"slope": [1, 2, 3, 4]})
""",
]


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """The folder of a notebook, and its address in a JupyterLab that is at work there."""
    pytest.importorskip("jupyterlab", reason="no JupyterLab: pip install jupyterlab")
    folder = tmp_path_factory.mktemp("jupyterlab")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [nbformat.v4.new_code_cell(cell.strip()) for cell in CELLS]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "course.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex()
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.root_dir": folder,
        "ServerApp.allow_root": True,
        "IdentityProvider.token": token,
        "LabApp.expose_app_in_browser": True,
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser"]
    command += [f"--{name}={value}" for name, value in options.items()]
    own = {f"JUPYTER_{kind}_DIR": str(folder / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    env = {name: value for name, value in os.environ.items() if name != "LECTURE6_STATIC"} | own
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        yield folder, f"http://127.0.0.1:{port}/lab/tree/course.ipynb?token={token}"
    finally:
        process.terminate()  # it ends its kernels
        process.wait()


RUN_ALL = """
const app = window.jupyterapp, [panel] = app?.shell.widgets("main") ?? [];
if (panel?.sessionContext?.session?.kernel?.connectionStatus !== "connected") return false;
app.shell.activateById(panel.id);
app.commands.execute("notebook:run-all-cells");
return true;
"""


KESKAR = ".lecture6-explorable:has(canvas):has(input[type=range])"


def answers(browser, address):
    """Opens an address; whether a server is there."""
    try:
        browser.get(address)
    except WebDriverException:  # the connection is refused
        return False
    return True


@pytest.mark.slow
def test_in_jupyterlab_the_kernel_follows(browser, notebook):
    folder, address = notebook
    until(lambda: answers(browser, address), "JupyterLab does not answer")
    until(lambda: browser.execute_script(RUN_ALL), "the kernel does not start")
    bench = until(lambda: browser.find_elements(By.CSS_SELECTOR, KESKAR), "there is no bench")[0]
    browser.execute_script(GUESS)
    slider = bench.find_element(By.CSS_SELECTOR, "input[type=range]")
    before = browser.execute_script(SEEN)
    slider.send_keys(Keys.ARROW_RIGHT)
    assert browser.execute_script(SEEN)[0] != before[0]
    kept = folder / "bench.json"
    until(kept.exists, "the kernel does not follow")
    assert json.loads(kept.read_text())[0] > 64
    browser.execute_script(f"document.querySelector('{BUTTON}').click()")
    until_trained(Chromium(browser))
    assert browser.execute_script(SEEN)[1] != before[1]

    figure = browser.find_element(By.CSS_SELECTOR, "figure.lecture6-explorable")
    browser.execute_script("arguments[0].scrollIntoView()", figure)  # out of view it is not drawn
    drawn = "[aria-busy=false]"
    until(lambda: figure.find_elements(By.CSS_SELECTOR, drawn), "no figure is drawn")
    title = figure.find_element(By.CLASS_NAME, "title")
    assert title.text == "A line of slope 1"
    figure.find_element(By.CSS_SELECTOR, "input[type=range]").send_keys(Keys.END)
    until(lambda: title.text == "A line of slope 4", "the kernel draws no other figure")
    plotted = "return arguments[0].querySelector('.plot').data[0].y"
    until(lambda: list(browser.execute_script(plotted, figure)) == [0, 4], "nor does the page")
