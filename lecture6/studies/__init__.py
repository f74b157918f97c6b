"""Studies of the papers' size: grids of trials that resume, spread and stay. See ``engine``."""

from lecture6.studies import goyal, jastrzebski, keskar, smith
from lecture6.studies.engine import Study, StudyError, collect, plan, run

#: The studies by name, as ``lecture6 list`` shows them.
STUDIES: dict[str, Study] = {
    s.name: s for s in (keskar.STUDY, goyal.STUDY, smith.STUDY, jastrzebski.STUDY)
}

__all__ = ["STUDIES", "Study", "StudyError", "collect", "plan", "run"]
