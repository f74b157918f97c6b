"""The book's Sphinx extension: what re-executes the notebooks, and what a page loads."""

import hashlib
import os
import re
import shutil
import threading
from pathlib import Path

from jupyter_cache import get_cache
from jupyter_cache.executors import load_executor
from lecture6_plotly import write_part
from lecture6_renderers import write_modules
from sphinx.util import logging

ROOT = Path(__file__).parents[2]
SIGNATURE = re.compile(r'<dt class="sig .*?</dt>', re.DOTALL)
logger = logging.getLogger(__name__)


def fingerprint() -> str:
    """Return a digest of all that decides a notebook's outputs, except the notebook itself."""
    digest = hashlib.sha256(os.environ["LECTURE6_PROFILE"].encode())
    package = [p for p in (ROOT / "lecture6").rglob("*.*") if p.parent.name != "__pycache__"]
    for path in [ROOT / "requirements.lock", *sorted(package)]:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(ROOT)} {len(content)} ".encode() + content)
    return digest.hexdigest()[:16]


def configure(app, config):
    """Key the cache of executed notebooks by the package; serve its files; hide dead buttons."""
    # Sphinx re-reads every page when this value changes, and a new path is an empty cache: a change
    # in the package, the lock or the profile executes the notebooks again.
    caches = Path(app.outdir).parent / ".jupyter_cache"
    cache = caches / fingerprint()
    for stale in set(caches.glob("*")) - {cache}:
        shutil.rmtree(stale)
    config.nb_execution_cache_path = str(cache)
    if os.environ["LECTURE6_PROFILE"] == "full":
        config.nb_execution_timeout = -1  # a cell may take hours
    config.html_static_path.append(
        str(ROOT / "lecture6" / "course" / "explorables" / "explorables.css")
    )
    static = Path(app.outdir).parent / ".static"
    (static / "explorables").mkdir(parents=True, exist_ok=True)
    write_modules(static / "explorables")
    write_part(static / "plotly.min.js")
    quiet_kernels(Path(app.outdir).parent / ".ipython")
    config.html_static_path.append(str(static))
    if not config.html_theme_options["repository_url"]:
        config.html_theme_options["launch_buttons"] = {}  # no address yet: no dead Colab button


def execute_side_by_side(app, env, docnames):
    """Execute the notebooks that Sphinx is about to read, one a core: it would take one by one.

    One that fails is left to Sphinx, which executes it again and reports. At profile full each may
    want the whole machine.
    """
    notebooks = [path for name in docnames if (path := env.doc2path(name)).endswith(".ipynb")]
    if (
        len(notebooks) < 2
        or app.config.nb_execution_mode != "cache"
        or os.environ["LECTURE6_PROFILE"] == "full"
    ):
        return
    cache = get_cache(app.config.nb_execution_cache_path)
    for path in notebooks:
        cache.add_nb_to_project(path)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the kernels' share of the cores
    executor, ended = load_executor("local-parallel", cache), threading.Event()
    n = len(executor.get_records(notebooks))
    logger.info("executing %d notebooks, one a core ...", n)
    known = {record.pk for record in cache.list_cache_records()}
    n_known = len(known)

    def report():
        for record in cache.list_cache_records():
            if record.pk not in known:
                known.add(record.pk)
                name, seconds = Path(record.uri).stem, record.data["execution_seconds"]
                logger.info("%s: %.0f s, %d of %d", name, seconds, len(known) - n_known, n)

    def report_on_the_way():
        while not ended.wait(1):
            report()

    # It starts later than the processes: these are forked, and a fork keeps other threads' locks.
    progress = threading.Timer(2, report_on_the_way)
    progress.start()
    try:
        executor.run_and_cache(filter_uris=notebooks, timeout=app.config.nb_execution_timeout)
    finally:
        progress.cancel()  # if it has not started yet
        ended.set()
        progress.join()
    report()


def quiet_kernels(folder):
    """Let kernels tell errors alone: each would warn that it talks to this machine over TCP."""
    profile = folder / "profile_default"
    profile.mkdir(parents=True, exist_ok=True)
    (profile / "ipython_kernel_config.py").write_text('c.IPKernelApp.log_level = "ERROR"\n')
    os.environ["IPYTHONDIR"] = str(folder)


def as_divisions(signature):
    """The signature with <div> in the place of <dl> and <dd>."""
    html = signature[0].replace("<dl>", '<div class="parameters">')
    return re.sub(r"<(/?)d[ld]>", r"<\1div>", html)


def finish_page(app, pagename, templatename, context, doctree):
    """Mend what axe-core finds; let a page with figures or explorables load what draws them."""
    # The role that docutils gives to a reference is deprecated, and a list may not hold it.
    body = context.get("body", "").replace('role="doc-biblioentry"', 'role="listitem"')
    # Sphinx writes the parameters of a signature as a list of definitions that defines nothing.
    body = SIGNATURE.sub(as_divisions, body)
    if body:
        context["body"] = body
    # In the sidebar, what unfolds the pages of the reference has no name.
    name = '<summary aria-label="Show or hide its pages">'
    toctree = context["generate_toctree_html"]
    context["generate_toctree_html"] = lambda **options: str(toctree(**options)).replace(
        "<summary>", name
    )
    if 'class="plotly-figure"' in body or 'class="explorable"' in body:
        app.add_js_file("explorables.js", loading_method="defer")
        app.add_css_file("explorables.css")


def setup(app):
    """Register the extension; the kernels that Sphinx starts inherit the variables."""
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype"  # figures as JSON, for BookFigure
    os.environ["LECTURE6_STATIC"] = "1"  # explorers that work without a kernel
    os.environ.setdefault("LECTURE6_PROFILE", "book")
    app.setup_extension("lecture6_renderers")
    app.setup_extension("lecture6_scorecard")
    app.setup_extension("lecture6_weight")
    app.add_js_file("paper.js", loading_method="defer")
    app.connect("config-inited", configure)
    app.connect("env-before-read-docs", execute_side_by_side)
    app.connect("html-page-context", finish_page, priority=900)  # after the theme
    return {"version": "1", "env_version": 1, "parallel_read_safe": False}
