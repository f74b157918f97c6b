"""A browser that has no network, and a server of files, for the tests of pages."""

import contextlib
import functools
import http.server
import importlib.resources
import json
import shutil
import socket
import subprocess
import threading
import time

import pytest
from selenium import webdriver

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)

ANSWER = 300  # seconds for Firefox to answer
THEMES = {1280: "light", 390: "dark"}  # the widths of a desk and a phone, and the theme on each
AXE = importlib.resources.files("axe_playwright_python") / "axe.min.js"
VIOLATIONS = """
const done = arguments[0];
document.querySelectorAll("details").forEach((details) => { details.open = true; });
// The theme's colours change gradually; what counts is where they end.
for (const animation of document.getAnimations())
  if (animation instanceof CSSTransition) animation.finish();
// Code is thousands of words in a few colours: one of each kind, in each kind of cell, will do.
const kinds = new Map();
for (const word of document.querySelectorAll("pre span"))
  kinds.set(`${word.className} in ${word.closest("div[class]")?.className}`, word);
const options = {resultTypes: ["violations"], preload: false};
const contrast = "color-contrast", contrastAlone = {runOnly: [contrast]};
const runs = [
  [document, {rules: {[contrast]: {enabled: false}}}],
  [{exclude: ["pre:has(span)"]}, contrastAlone],
  ...(kinds.size ? [[{include: [...kinds.values()]}, contrastAlone]] : []),
];
(async () => {
  const found = [];
  for (const [where, rules] of runs)
    found.push(...(await axe.run(where, {...rules, ...options})).violations);
  done(found.filter(({impact}) => ["serious", "critical"].includes(impact))
    .flatMap(({id, nodes}) => nodes.map(({html, target}) => [id, `${target}`, html])));
})();
"""


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@contextlib.contextmanager
def served(directory):
    """The address at which a plain file server has what is in ``directory``."""
    handler = functools.partial(QuietHandler, directory=directory)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextlib.contextmanager
def chromium(profile):
    """Headless Chromium that can look up no host, with its profile in the folder ``profile``."""
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    chromedriver = shutil.which("chromedriver")
    if not (binary and chromedriver):
        pytest.skip("no browser: on Debian, `apt-get install chromium chromium-driver`")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
    try:
        yield driver
    finally:
        driver.quit()


@contextlib.contextmanager
def firefox(profile):
    """Headless Firefox by its protocol, Marionette: a function (command, parameters) → value."""
    binary = shutil.which("firefox-esr") or shutil.which("firefox")
    if not binary:
        pytest.skip("no Firefox: on Debian, `apt-get install firefox-esr`")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    profile.mkdir()
    (profile / "user.js").write_text(f'user_pref("marionette.port", {port});\n')
    command = [binary, "--headless", "--marionette", "--no-remote", "--profile", str(profile)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with connected(port) as (stream, send):
            read(stream)  # its greeting

            def command(name, parameters):
                send(json.dumps([0, 1, f"WebDriver:{name}", parameters]).encode())
                _, _, error, value = read(stream)
                assert error is None, error
                return value

            wanted = {"timeouts": {"script": 1000 * ANSWER}}
            command("NewSession", {"capabilities": {"alwaysMatch": wanted}})
            yield command
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def connected(port):
    end = time.monotonic() + 120
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.settimeout(ANSWER)
                stream = connection.makefile("rb")
                yield stream, lambda text: connection.sendall(b"%d:%s" % (len(text), text))
                return
        except ConnectionRefusedError:
            assert time.monotonic() < end, "Firefox does not answer"
            time.sleep(0.2)


def read(stream):
    """A message: its length, a colon, JSON."""
    size = b""
    while (byte := stream.read(1)) != b":":
        assert byte, "Firefox has ended"
        size += byte
    return json.loads(stream.read(int(size)))


def resize(browser, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def emulate(browser, *, theme, media=""):
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def violations(browser):
    """What axe-core finds on the page, all of it unfolded, that is serious or critical."""
    browser.execute_script(AXE.read_text("utf8"))
    return browser.execute_async_script(VIOLATIONS)
