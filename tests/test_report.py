import datetime

import numpy as np
import pytest

from lecture6.course.report import provenance, settings
from lecture6.provenance import code_version, device_name

# ---- settings -------------------------------------------------------------------------------


@pytest.mark.parametrize(("profile", "epochs"), [("smoke", 1), ("book", 20), ("full", 100)])
def test_settings_are_those_of_the_profile(profile, epochs):
    chosen = settings(profile, smoke={"epochs": 1}, book={"epochs": 20}, full={"epochs": 100})
    assert chosen.epochs == epochs


@pytest.mark.parametrize("profile", ["quick", "", "Book"])
def test_an_unknown_profile_is_refused(profile):
    message = f"must be one of smoke, book, full, got '{profile}'.*LECTURE6_PROFILE"
    with pytest.raises(ValueError, match=message):
        settings(profile, smoke={}, book={}, full={})
    with pytest.raises(ValueError, match=message):
        settings("full", full={}, **{profile: {}})


@pytest.mark.parametrize("given", [{}, {"book": {}}, {"smoke": 5}])
def test_a_profile_without_settings_is_refused(given):
    with pytest.raises(ValueError, match=r"no settings of the profile 'smoke'.*smoke=dict\(…\)"):
        settings("smoke", **given)


# ---- provenance -----------------------------------------------------------------------------


def test_provenance_says_which_run_it_was():
    before = datetime.date.today().isoformat()
    line = provenance("book", "mnist5k", [3])
    dates = {before, datetime.date.today().isoformat()}
    profile, data, seeds, device, date, code = line.split(" · ")
    assert (profile, data, seeds) == ("profile book", "mnist5k", "seed 3")
    assert date in dates
    assert (device, code) == (device_name(), code_version())


@pytest.mark.parametrize(
    ("seeds", "words"),
    [
        (range(5), "seeds 0–4"),
        ([7, 8], "seeds 7–8"),
        ([0, 3, 9], "seeds 0, 3, 9"),
        (np.array([0, 1]), "seeds 0–1"),
        (np.int64(3), "seed 3"),
    ],
)
def test_provenance_names_the_seeds(seeds, words):
    assert provenance("full", "mnist", seeds).split(" · ")[2] == words


@pytest.mark.parametrize("seeds", [[], [0.5], [-1], [True], "abc", [None]])
def test_a_run_without_seeds_is_refused(seeds):
    with pytest.raises(ValueError, match=r"seed.*, got"):
        provenance("book", "mnist", seeds)
