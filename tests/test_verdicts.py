import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from bs4 import BeautifulSoup
from scipy import stats

from lecture6.course import verdicts
from lecture6.course.verdicts import (
    Claim,
    claims_table,
    estimated,
    fraction,
    geometric_interval,
    holm,
    interval,
)

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
    assert f"{verdicts.Interval(0.5, 0.25, 0.75, 3):.2f}" == "0.50 [0.25, 0.75]"


each_interval = pytest.mark.parametrize("of", [interval, geometric_interval])


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
@pytest.mark.parametrize(
    "values",
    [
        {0: 81.2, 1: 80.9},
        {81.2, 80.9},
        frozenset({1.0, 2.0}),
        np.ma.array([1, 2, 3], mask=[0, 0, 1]),
    ],
)
def test_an_interval_of_what_has_no_order_or_is_masked_is_refused(of, values):
    with pytest.raises(ValueError, match="needs the values in a list or an array, got"):
        of(values)


@pytest.mark.parametrize("values", [[1e308, 1e308, 1e307], [1e308, -1e308], [1e200, 2e250]])
def test_an_interval_beyond_the_numbers_is_refused(values):
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="must be a finite number"):
        interval(values)
    with np.errstate(all="ignore"):
        assert interval(np.array(values) / 1e308).low < 1


@each_interval
def test_an_interval_takes_numbers_of_any_kind(of):
    expected = of([1.0, 2.0, 4.0])
    assert of(np.array([1, 2, 4], dtype=np.int32)) == expected
    assert of(pd.Series([1.0, 2.0, 4.0])) == of(torch.tensor([1, 2, 4])) == expected


def test_a_geometric_interval_is_that_of_the_logarithms():
    values = [1.0, 2.0, 4.0, 16.0]
    found, logs = geometric_interval(values), interval(np.log2(values))
    assert (found.mean, found.low, found.high) == pytest.approx(
        (2**logs.mean, 2**logs.low, 2**logs.high)
    )
    assert found.n_seeds == 4
    with pytest.raises(ValueError, match="each seed must be a finite number and above 0, got 0"):
        geometric_interval([1.0, 0.0])


def test_an_interval_read_off_a_grid_is_not_narrower_than_its_step():
    found = interval([3.0, 3.0, 3.0], resolution=0.5)
    assert (found.low, found.high) == pytest.approx((2.75, 3.25))
    assert interval([1.0, 5.0, 3.0], resolution=0.5) == interval([1.0, 5.0, 3.0])
    factor = geometric_interval([8.0, 8.0], resolution=2.0)
    assert (factor.low, factor.high) == pytest.approx((8 / math.sqrt(2), 8 * math.sqrt(2)))
    exact = interval([2.0, 2.0])
    assert (exact.low, exact.mean, exact.high) == pytest.approx((2, 2, 2))


def test_an_estimate_has_the_interval_of_its_standard_error():
    found = estimated(3.0, 0.5)
    assert (found.low, found.high) == pytest.approx((3 - 1.959964 / 2, 3 + 1.959964 / 2))
    few = estimated(3.0, 0.5, df=4, n=5)
    assert few.high == pytest.approx(3 + 2.776445 / 2)
    assert few.n_seeds == 5
    with pytest.raises(ValueError, match="stderr must be a finite number and at least 0, got -1"):
        estimated(3.0, -1.0)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 4), (20, 40), (10, 10)])
def test_a_fraction_has_jeffreys_interval(k, n):
    # an independent way to the same quantiles: the F distribution
    found = fraction(k, n)
    a, b = k + 0.5, n - k + 0.5
    f = stats.f.ppf([0.025, 0.975], 2 * a, 2 * b)
    assert (found.low, found.high) == pytest.approx(tuple(a * f / (b + a * f)))
    assert found.mean == k / n
    with pytest.raises(ValueError, match=f"successes must be at least 0 and at most {n}"):
        fraction(n + 1, n)


# ---- verdicts -------------------------------------------------------------------------------


def span(low, high, *, ratio=False):
    """An interval with these ends."""
    values = [low, high]
    mean = math.sqrt(low * high) if ratio else sum(values) / 2
    scale = (math.log(high / low) if ratio else high - low) / 2 / stats.norm.ppf(0.975)
    law = stats.norm(math.log(mean) if ratio else mean, scale)
    return verdicts.Interval.of(math.log(mean) if ratio else mean, law, 3, ratio=ratio)


def claim(found, text="Large batches are sharper", **fields):
    return Claim(text, **{"source": "§3", "paper": "205", "found": found} | fields)


@pytest.mark.parametrize(
    ("says", "ends", "verdict"),
    [
        ("above", (0.1, 0.9), "holds"),
        ("above", (-0.9, -0.1), "does not hold"),
        ("above", (-0.1, 5.0), "cannot tell"),
        ("below", (0.1, 0.9), "does not hold"),
        ("below", (-0.9, -0.1), "holds"),
        ("below", (-5.0, 0.1), "cannot tell"),
        ("not above", (-0.3, 0.3), "holds"),
        ("not above", (-9.0, -1.0), "holds"),  # better is no worse
        ("not above", (0.1, 0.4), "holds within the margin"),
        ("not above", (0.1, 0.6), "cannot tell"),  # not rejected, not shown
        ("not above", (-2.0, 2.0), "cannot tell"),
        ("not above", (0.6, 0.9), "does not hold"),
        ("not below", (-0.4, -0.1), "holds within the margin"),
        ("not below", (1.0, 9.0), "holds"),
        ("not below", (-0.9, -0.6), "does not hold"),
        ("equal", (-0.3, 0.3), "holds"),
        ("equal", (0.1, 0.3), "holds within the margin"),
        ("equal", (-0.3, -0.1), "holds within the margin"),
        ("equal", (-2.0, 2.0), "cannot tell"),  # covers 0, and shows nothing
        ("equal", (0.6, 0.9), "does not hold"),
        ("equal", (-0.9, -0.6), "does not hold"),
    ],
)
@pytest.mark.parametrize("shift", [0.0, 7.0])
def test_the_verdict_of_an_interval(says, ends, verdict, shift):
    margin = None if says in ("above", "below") else 0.5
    found = span(*(end + shift for end in ends))
    assert claim(found, says=says, than=shift or None, margin=margin).verdict == verdict


@pytest.mark.parametrize(
    ("says", "ends", "margin", "verdict"),
    [
        ("above", (1.1, 3.0), None, "holds"),
        ("above", (0.5, 0.9), None, "does not hold"),
        ("equal", (0.9, 1.2), 1.25, "holds"),
        ("equal", (1.05, 1.2), 1.25, "holds within the margin"),
        ("equal", (0.79, 1.2), 1.25, "cannot tell"),  # 1/1.25 = 0.8
        ("equal", (1.3, 9.0), 1.25, "does not hold"),
        ("not above", (0.1, 1.2), 1.25, "holds"),
    ],
)
def test_the_verdict_of_a_factor(says, ends, margin, verdict):
    assert claim(span(*ends, ratio=True), says=says, margin=margin).verdict == verdict


@pytest.mark.parametrize(
    ("found", "varies", "verdict"),
    [
        (True, "exact", "holds"),
        (np.bool_(False), "exact", "does not hold"),
        (True, "one run", "seen once"),
        (False, "one run", "not seen"),
        (None, "", "cannot tell"),
    ],
)
def test_without_replicates_a_run_has_no_verdict(found, varies, verdict):
    assert claim(found, varies=varies).verdict == verdict
    assert claim(found, varies=varies).p is None


@pytest.mark.parametrize("value", [-1.0, 0.4, 2.0])
def test_p_of_a_direction_is_the_two_sided_t_test(value):
    values = np.random.default_rng(0).normal(value, 0.3, size=6)
    expected = stats.ttest_1samp(values, 0.0).pvalue
    above, below = (claim(interval(values), says=says) for says in ("above", "below"))
    assert {above.verdict, below.verdict} in ({"holds", "does not hold"}, {"cannot tell"})
    wanted = expected if above.verdict != "cannot tell" else 1.0
    assert above.p == pytest.approx(wanted)
    assert below.p == pytest.approx(wanted)


def test_p_of_an_equivalence_is_that_of_two_one_sided_tests():
    values = np.random.default_rng(1).normal(0.02, 0.1, size=8)
    found = claim(interval(values), says="equal", margin=0.5)
    lower = stats.ttest_1samp(values, -0.5, alternative="greater").pvalue
    upper = stats.ttest_1samp(values, 0.5, alternative="less").pvalue
    assert found.verdict.startswith("holds")
    assert found.p == pytest.approx(2 * max(lower, upper))


@pytest.mark.parametrize("says", ["above", "not above", "not below", "equal"])
def test_a_claim_that_is_only_just_false_holds_in_one_case_in_forty(says):
    margin = None if says == "above" else 1.0
    truth = {"above": 0.0, "not above": 1.0, "not below": -1.0, "equal": 1.0}[says]
    draws = np.random.default_rng(0).normal(truth, 0.2, size=(4000, 5))
    held = sum(
        claim(interval(row), says=says, margin=margin).verdict.startswith("holds") for row in draws
    )
    assert stats.binomtest(held, 4000, 0.025).pvalue > 1e-3


def test_holm_is_that_of_the_textbook():
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


# ---- the table ------------------------------------------------------------------------------


def rows(table):
    """What each row says, by name."""
    found = []
    for row in BeautifulSoup(table.data, "html.parser").select("tbody tr"):
        said = {line.i.string: line.span.string for line in row.select("td div")}
        claim = row.th.select_one("span:not(.stem)")
        said |= {"Verdict": row.select_one(".verdict span").string, "Claim": claim.string}
        found.append(said | {"Source": row.select_one(".source").string, "row": row})
    return found


def test_the_table_has_a_row_a_claim_with_margin_holm_and_verdict():
    sure, weak = span(1.0, 1.2), span(0.01, 1.2)
    table = claims_table(
        [
            claim(sure, unit="points"),
            claim(weak, varies="3 seeds, one subset", run="stored study", after=True),
            claim(weak),
            claim(span(-0.1, 0.1), says="equal", margin=0.5, unit="points"),
            claim(span(0.9, 1.1, ratio=True), says="equal", margin=1.25),
            claim(span(-9, 9)),
            claim(True, varies="exact", ours="equal"),
        ]
    )
    assert '<table class="claims">' in table.data
    names = ["Here", "Claimed", "Varies", "Computed", "Holm", "Verdict"]
    found = rows(table)
    assert [[row.get(name, "–") for name in names] for row in found] == [
        ["+1.10 [+1.00, +1.20] points", "above 0 points", "3 seeds", "this page", "yes", "holds"],
        ["+0.60 [+0.01, +1.20]", "above 0", "3 seeds, one subset", "stored study", "no", "holds"],
        ["+0.60 [+0.01, +1.20]", "above 0", "3 seeds", "this page", "no", "holds"],
        ["+0.00 [−0.10, +0.10] points", "0 ± 0.5 points", "3 seeds", "this page", "yes", "holds"],
        ["0.995 [0.9, 1.1]", "1 ×÷ 1.25", "3 seeds", "this page", "yes", "holds"],
        ["+0.00 [−9.00, +9.00]", "above 0", "3 seeds", "this page", "–", "cannot tell"],
        ["equal", "–", "exact", "this page", "–", "holds"],
    ]
    assert [row["Claim"][-2:] for row in found[:2]] == ["er", " †"]
    assert {(row["There"], row["Source"]) for row in found} == {("205", "§3")}


@pytest.mark.parametrize(
    ("fields", "verdict", "mark"),
    [
        ({"found": span(1, 2)}, "holds", "✓"),
        ({"found": span(1, 2), "says": "equal", "margin": 3}, "holds within the margin", "≈"),
        ({"found": span(-2, -1)}, "does not hold", "✗"),
        ({"found": None}, "cannot tell", "?"),
        ({"found": True, "varies": "one run"}, "seen once", "(✓)"),
        ({"found": False, "varies": "one run"}, "not seen", "(✗)"),
    ],
)
def test_the_verdict_comes_first_as_mark_and_word_and_class(fields, verdict, mark):
    row = rows(claims_table([claim(**fields)]))[0]["row"]
    assert row["class"] == [verdict.replace(" ", "-")]
    assert row.find().get_text(" ", strip=True) == f"{mark} {verdict}"
    assert row.b["aria-hidden"] == "true", "a screen reader has the word"


def test_each_row_has_a_name_of_its_own_that_its_claim_decides():
    texts = ["F1: φ > 1 & up", "… by far", "C1", "… by far", "C1"]
    found = rows(claims_table([claim(True, text, varies="exact") for text in texts]))
    names = ["f1-φ-1-up", "f1-φ-1-up-by-far", "c1", "c1-by-far", "c1-2"]
    assert [row["row"]["id"] for row in found] == [f"claim-{name}" for name in names]
    stems = [row["row"].select_one(".stem").string.strip() for row in found]
    assert stems == ["", "F1: φ > 1 & up", "", "C1", ""]


def drawn(**fields):
    """The picture of a claim: where the numbers of its shapes lie, of 180."""
    svg = rows(claims_table([claim(**fields)]))[0]["row"].svg
    than = svg.find_all("path", recursive=False)[1]
    low, high = re.match(r"M([\d.]+) 17.5H([\d.]+)", svg.g.path["d"]).groups()
    start = float(svg.rect["x"])
    return {
        "than": float(re.match(r"M([\d.]+) ", than["d"])[1]),
        "allowed": (start, start + float(svg.rect["width"])),
        "found": (float(low), float(svg.circle["cx"]), float(high)),
        "paper": [float(x) for x in re.findall(r"M([\d.]+) ", svg.find(class_="paper")["d"])],
        "number": svg.find("text").string,
    }


def test_the_picture_has_the_interval_the_margin_and_the_papers_value_on_one_axis():
    there = {"says": "equal", "than": -1, "margin": 2, "paper": "−2 points"}
    seen = drawn(found=span(0, 3), **there)
    # from −3, the end of the margin, to 3, with a sixth of that at either side: 8 in all
    at = [180 * (effect + 4) / 8 for effect in (-3, -2, -1, 0, 1, 1.5, 3)]
    assert seen["allowed"] == pytest.approx((at[0], at[4]))
    assert seen["paper"] == pytest.approx([at[1]])
    assert seen["than"] == pytest.approx(at[2])
    assert seen["found"] == pytest.approx((at[3], at[5], at[6]), abs=0.06)
    assert seen["number"] == "−1"


def test_the_picture_of_a_factor_has_an_axis_of_logarithms():
    seen = drawn(found=span(10, 1000, ratio=True), paper="10 to 100 times")
    assert seen["allowed"] == (seen["than"], 180)
    low, mean, high = seen["found"]
    assert mean - low == pytest.approx(high - mean, abs=0.2)
    assert low - seen["than"] == pytest.approx(mean - low, abs=0.2)
    assert seen["paper"] == pytest.approx([low, mean], abs=0.2)
    below = drawn(found=span(0.1, 2, ratio=True), says="below")
    assert below["allowed"] == (0, below["than"])


@pytest.mark.parametrize("paper", ["–", "a peak", "8 rows", "(24)", "1 to 2 orders", "−2 at k = 3"])
def test_what_a_paper_says_without_a_number_of_the_kind_is_not_drawn(paper):
    assert drawn(found=span(1, 2), paper=paper)["paper"] == []


@pytest.mark.parametrize("found", [None, True])
def test_without_an_interval_there_is_no_picture(found):
    table = claims_table([claim(found, varies="exact" if found else "")])
    assert "<svg" not in table.data


@pytest.mark.parametrize(
    ("found", "fields", "words"),
    [
        (span(30, 40), {"says": "below", "than": 35}, "below 35"),
        (span(0, 1), {"says": "not above", "margin": 0.5, "unit": "points"}, "at most 0.5 points"),
        (span(0, 1), {"says": "not below", "margin": 0.1}, "at least −0.1"),
        (span(1, 2, ratio=True), {"says": "not above", "than": 2, "margin": 1.5}, "at most 3"),
    ],
)
def test_the_table_says_what_is_claimed(found, fields, words):
    assert rows(claims_table([claim(found, **fields)]))[0]["Claimed"] == words


def test_the_table_escapes_html_and_cuts_nothing():
    text = "f < g & <script>alert(1)</script>" + " long" * 40
    page = claims_table([claim(True, text, varies="exact")] * 70).data
    assert "<script>" not in page
    shown = "f &lt; g &amp; &lt;script&gt;alert(1)&lt;/script&gt;" + " long" * 40
    assert page.count(f"<span>{shown}</span>") == 70


def test_a_table_without_claims_is_refused():
    with pytest.raises(ValueError, match="at least one, got none"):
        claims_table([])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"found": True}, "varies must be 'exact' or 'one run', got ''"),
        ({"found": float("nan")}, "found: an Interval, True, False or None"),
        ({"found": 1}, "found: an Interval, True, False or None"),
        ({"found": span(1, 2), "says": "equal"}, "'equal' needs a margin, got None"),
        ({"found": span(1, 2), "says": "above", "margin": 0.5}, "'above' has no use for a margin"),
        ({"found": span(1, 2), "says": "equal", "margin": 0}, "above 0, got 0"),
        ({"found": span(1, 2, ratio=True), "says": "equal", "margin": 1}, "above 1, got 1"),
        ({"found": span(1, 2), "says": "better"}, "says must be 'above', 'below'"),
    ],
)
def test_a_claim_that_cannot_be_judged_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        claim(**fields)
