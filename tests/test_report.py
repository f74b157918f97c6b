import datetime
import subprocess
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lecture6 import report
from lecture6.report import Claim, claims_table, interval, provenance, settings

ROOT = Path(report.__file__).parents[1]


def git(*arguments):
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


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


# ---- intervals ------------------------------------------------------------------------------


def test_interval_by_hand():
    # mean 5, standard deviation 2, standard error 1; t(0.975; 3) = 3.182446
    found = interval([3, 3.8452995, 6.1547005, 7])
    assert (found.mean, found.n_seeds) == (pytest.approx(5), 4)
    error = np.std([3, 3.8452995, 6.1547005, 7], ddof=1) / 2
    assert found.low == pytest.approx(5 - 3.182446 * error, rel=1e-6)
    assert found.high == pytest.approx(5 + 3.182446 * error, rel=1e-6)


@pytest.mark.parametrize("level", [0.68, 0.95, 0.99])
def test_interval_is_scipys(level):
    values = np.random.default_rng(0).normal(size=7)
    theirs = stats.ttest_1samp(values, 0).confidence_interval(level)
    ours = interval(iter(values), level)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))


@pytest.mark.parametrize("n_seeds", [2, 3, 5])
def test_interval_covers_the_mean_as_often_as_it_says(n_seeds):
    n = 4000
    draws = np.random.default_rng(n_seeds).normal(7, 3, size=(n, n_seeds))
    covered = sum(found.low <= 7 <= found.high for found in map(interval, draws))
    assert stats.binomtest(covered, n, 0.95).pvalue > 1e-3


def test_interval_prints_its_mean_and_ends():
    assert f"{report.Interval(0.5, 0.25, 0.75, 3):.2f}" == "0.50 [0.25, 0.75]"


@pytest.mark.parametrize(
    ("low", "high", "positive"),
    [(0.1, 0.9, True), (-0.9, -0.1, False), (-0.1, 0.9, None), (0.0, 0.9, None), (-0.9, 0.0, None)],
)
def test_an_interval_is_positive_or_negative_only_when_0_lies_outside(low, high, positive):
    assert report.Interval((low + high) / 2, low, high, 3).positive is positive


@pytest.mark.parametrize("values", [[], [1.0]])
def test_an_interval_of_one_seed_is_refused(values):
    with pytest.raises(ValueError, match=f"needs at least 2 seeds, got {len(values)}"):
        interval(values)


# ---- provenance -----------------------------------------------------------------------------


def test_provenance_says_which_run_it_was():
    before = datetime.date.today().isoformat()
    line = provenance("book", "mnist5k", [3])
    dates = {before, datetime.date.today().isoformat()}
    profile, data, seeds, device, date, code = line.split(" · ")
    assert (profile, data, seeds) == ("profile book", "mnist5k", "seed 3")
    assert device.split()[0] in ("CPU", "GPU")
    assert date in dates
    if git("ls-files", "lecture6/report.py"):
        assert code.startswith(f"commit {git('rev-parse', '--short', 'HEAD')}")
        assert code.endswith("+") == bool(git("status", "--porcelain", "--untracked-files=no"))
    else:
        assert code.startswith(("commit ", "version "))


@pytest.mark.parametrize(
    ("seeds", "words"),
    [(range(5), "seeds 0–4"), ([7, 8], "seeds 7–8"), ([0, 3, 9], "seeds 0, 3, 9")],
)
def test_provenance_names_the_seeds(seeds, words):
    assert provenance("full", "mnist", seeds).split(" · ")[2] == words


# ---- claims ---------------------------------------------------------------------------------


def claim(holds, text="Large batches are sharper", **fields):
    defaults = {"source": "§3", "paper": "205", "ours": "18 [12, 24]", "seeds": 3}
    return Claim(text, **defaults | fields, holds=holds)


def test_claims_table_has_a_row_a_claim_and_says_the_verdict_in_words():
    page = claims_table([claim(True), claim(False), claim(None), claim(np.bool_(True))]).data
    assert 'class="dataframe claims"' in page
    verdicts = [row.split("<td>")[-1].split("</td>")[0] for row in page.split("<tr>")[1:]]
    assert verdicts == ["holds", "does not hold", "cannot tell", "holds"]
    assert page.count("<th>") == 7
    assert page.count("<td>this page</td>") == 4


@pytest.mark.parametrize("holds", [True, False, None])
def test_claims_table_of_one_kind(holds):
    page = claims_table([claim(holds)] * 2).data
    word = {True: "holds", False: "does not hold", None: "cannot tell"}[holds]
    assert page.count(f"<td>{word}</td>") == 2


def test_claims_table_escapes_html_and_cuts_nothing():
    text = "f < g & <script>alert(1)</script>" + " long" * 40
    page = claims_table([claim(True, text)] * 70).data
    assert "<script>" not in page
    shown = "f &lt; g &amp; &lt;script&gt;alert(1)&lt;/script&gt;" + " long" * 40
    assert page.count(f"<td>{shown}</td>") == 70


def test_an_interval_that_is_not_finite_decides_nothing():
    assert interval([float("nan"), 1.0, 2.0]).positive is None


def test_a_geometric_interval_is_that_of_the_logarithms():
    values = [1.0, 2.0, 4.0, 16.0]
    found, logs = report.geometric_interval(values), report.interval(np.log2(values))
    assert (found.mean, found.low, found.high) == pytest.approx(
        (2**logs.mean, 2**logs.low, 2**logs.high)
    )
    assert found.n_seeds == 4
    with pytest.raises(ValueError, match="positive values, got"):
        report.geometric_interval([1.0, 0.0])
    with pytest.raises(ValueError, match="positive values, got"):
        report.geometric_interval([1.0, np.nan])
