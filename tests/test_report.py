import datetime

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from lecture6.course import report
from lecture6.course.report import Claim, claims_table, interval, provenance, settings
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


# ---- intervals ------------------------------------------------------------------------------


def test_interval_by_hand():
    # mean 5, standard deviation 2, standard error 1; t(0.975; 3) = 3.182446
    found = interval([3, 3.8452995, 6.1547005, 7])
    assert (found.mean, found.n_seeds) == (pytest.approx(5), 4)
    error = np.std([3, 3.8452995, 6.1547005, 7], ddof=1) / 2
    assert found.low == pytest.approx(5 - 3.182446 * error, rel=1e-6)
    assert found.high == pytest.approx(5 + 3.182446 * error, rel=1e-6)


def test_interval_is_scipys():
    values = np.random.default_rng(0).normal(size=7)
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    ours = interval(iter(values))
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


each_interval = pytest.mark.parametrize("of", [interval, report.geometric_interval])


@each_interval
@pytest.mark.parametrize("values", [[], [1.0], 1.0, np.float32(1)])
def test_an_interval_of_one_seed_is_refused(of, values):
    with pytest.raises(ValueError, match=f"needs at least 2 seeds, got {np.size(values)}"):
        of(values)


@each_interval
@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "1", [1.0, 2.0], True])
def test_an_interval_of_what_is_no_number_is_refused(of, value):
    with pytest.raises(
        ValueError, match=r"the value of each seed must be a (finite )?number.*, got"
    ):
        of([1.0, value])


@each_interval
def test_an_interval_takes_numbers_of_any_kind(of):
    expected = of([1.0, 2.0, 4.0])
    assert of(np.array([1, 2, 4], dtype=np.int32)) == expected
    assert of(pd.Series([1.0, 2.0, 4.0])) == of(torch.tensor([1, 2, 4])) == expected


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


def test_a_geometric_interval_is_that_of_the_logarithms():
    values = [1.0, 2.0, 4.0, 16.0]
    found, logs = report.geometric_interval(values), report.interval(np.log2(values))
    assert (found.mean, found.low, found.high) == pytest.approx(
        (2**logs.mean, 2**logs.low, 2**logs.high)
    )
    assert found.n_seeds == 4
    with pytest.raises(ValueError, match="each seed must be a finite number and above 0, got 0"):
        report.geometric_interval([1.0, 0.0])


@pytest.mark.parametrize("holds", [float("nan"), 1, "yes", [True]])
def test_a_claim_holds_or_not_or_cannot_be_told(holds):
    with pytest.raises(ValueError, match="'Large batches are sharper' holds: True, False or None"):
        claim(holds)


def test_a_table_without_claims_is_refused():
    with pytest.raises(ValueError, match="at least one, got none"):
        claims_table([])
