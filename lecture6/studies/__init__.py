"""Studies of the papers' size: grids of trials that resume, spread and stay. See ``runner``."""

from lecture6.studies import goyal, jastrzebski, keskar, smith
from lecture6.studies.runner import collect, plan, run
from lecture6.studies.trials import Rows, Study, StudyError, tabulate

#: The studies by name, as ``lecture6 list`` shows them.
STUDIES: dict[str, Study] = {s.STUDY.name: s.STUDY for s in (keskar, goyal, smith, jastrzebski)}

__all__ = ["STUDIES", "Rows", "Study", "StudyError", "collect", "plan", "run", "tabulate"]
