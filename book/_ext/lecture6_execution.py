"""How the book's notebooks are executed: one a core, with a line for each that is done."""

import os
from multiprocessing import Pool
from pathlib import Path

from jupyter_cache import get_cache
from jupyter_cache.executors import load_executor
from jupyter_cache.executors.basic import ExecutionWorkerLocalMProc, ProcessData
from jupyter_cache.executors.utils import single_nb_execution
from sphinx.util import logging
from traitlets.config import Config

# A kernel warns of TCP without encryption. Windows has no other transport.
KERNEL = Config() if os.name == "nt" else Config(KernelManager={"transport": "ipc"})
logger = logging.getLogger(__name__)


class Worker(ExecutionWorkerLocalMProc):
    """Executes one notebook in its folder; its kernel is reached by files, not by ports."""

    @staticmethod
    def execute(project_nb, data):
        """Return the executed notebook, its seconds and its error, if any."""
        return single_nb_execution(
            project_nb.nb,
            cwd=str(Path(project_nb.uri).parent),
            timeout=data.timeout,
            allow_errors=data.allow_errors,
            config=KERNEL,
        )


def execute_side_by_side(app, env, docnames):
    """Execute the notebooks that Sphinx is about to read, one a core: it would take one by one.

    One that fails is left to Sphinx, which executes it again and reports. At profile full each may
    want the whole machine.
    """
    notebooks = [path for name in docnames if (path := env.doc2path(name)).endswith(".ipynb")]
    if app.config.nb_execution_mode != "cache" or os.environ["LECTURE6_PROFILE"] == "full":
        return
    cache = get_cache(app.config.nb_execution_cache_path)
    for path in notebooks:
        cache.add_nb_to_project(path)
    due = load_executor("local-parallel", cache).get_records(notebooks)
    if not due:
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the kernels' share of the cores
    logger.info("executing %d notebooks, one a core ...", len(due))
    jobs = [
        ProcessData(record.pk, record.uri, cache, app.config.nb_execution_timeout, False)
        for record in due
    ]
    with Pool() as pool:
        for done, (failed, path) in enumerate(pool.imap_unordered(Worker(), jobs), 1):
            if failed:
                said = "failed, to be executed again"
            else:
                said = f"{cache.get_cached_project_nb(path).data['execution_seconds']:.0f} s"
            logger.info("executed %s: %s, %d left", Path(path).name, said, len(jobs) - done)
