"""How a claim is judged, by one rule for all chapters and studies.

A claim is about an *effect*: a number with a unit, of which the replicates (seeds, draws) give an
:class:`Interval`. What the claim says is a set of effects: those above a number, or, where it says
"no worse" or "the same", those within a margin that was fixed before the verdict was computed. It
*holds* when the interval lies in the set; with a margin, it *holds within the margin* when there is
a difference that is smaller. It *does not hold* when the interval lies outside. Else these runs
*cannot tell*: not to reject is not to confirm. One run without replicates has no verdict: *seen
once*. Batch sizes, epochs and layers are not replicates.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
from IPython.display import HTML
from scipy import stats

from lecture6 import checks

LEVEL = 0.95  # of an interval; a claim is decided at 1 − LEVEL, two-sided
KINDS = ("above", "below", "not above", "not below", "equal")
MARKS = {"holds": "✓", "holds within the margin": "≈", "does not hold": "✗", "cannot tell": "?"}
MARKS |= {"seen once": "(✓)", "not seen": "(✗)"}
_PAPER = re.compile(r"([+-]?\d+\.?\d*)(?: to (\d+\.?\d*))?(?: (?:times|points|%))?")
_HEAD = """<style>table.claims :is(th, td, caption) { text-align: left; }</style>
<table class="claims"><caption>Shaded: what is claimed, a margin included; dashed: the number that
it names. Dot and bar: what is found here, and its 95 % interval. ▼: what the paper found.</caption>
<thead><tr><th>Verdict</th><th>Claim</th><th>Found</th><th>Rests on</th></tr></thead>"""


@dataclass(frozen=True)
class Interval:
    """An effect with its 95 % confidence interval; prints as mean [low, high]."""

    mean: float
    low: float
    high: float
    n_seeds: int
    ratio: bool = False  #: a factor: symmetric on the scale of logarithms
    #: The confidence distribution, on that scale: a frozen law of scipy.stats.
    law: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, mean: float, law: Any, n_seeds: int, *, ratio: bool = False) -> Interval:
        """What a confidence distribution says; ``mean`` and ``law`` on the additive scale."""
        with np.errstate(over="ignore"):
            ends = np.array([mean, *law.ppf([(1 - LEVEL) / 2, (1 + LEVEL) / 2])])
            ends = np.exp(ends) if ratio else ends
        mean, low, high = (checks.real("an end of the interval", end) for end in ends)
        return cls(mean, low, high, n_seeds, ratio, law)

    def below(self, number: float) -> float:
        """The confidence that the effect is less than ``number``, from 0 to 1."""
        if self.ratio:
            number = math.log(number) if number > 0 else -math.inf
        return float(self.law.cdf(number))

    def __format__(self, spec: str) -> str:
        text = f"{self.mean:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"
        return text.replace("-", "−")


def interval(values: Iterable[float], *, resolution: float = 0.0) -> Interval:
    """Mean of one value a seed and its two-sided Student-t interval.

    ``resolution``: the step of a grid that the values were read off: the interval is not narrower.
    Raises ValueError for fewer than 2 values, and values that are not finite.
    """
    values = _one_a_seed(values)
    return _student(values, checks.real("resolution", resolution, least=0), ratio=False)


def geometric_interval(values: Iterable[float], *, resolution: float = 1.0) -> Interval:
    """The same for positive values that differ by factors: symmetric in their logarithms.

    ``resolution``: the factor between neighbours of the grid, 1 or more.
    """
    log = np.log(_one_a_seed(values, above=0))
    return _student(log, math.log(checks.real("resolution", resolution, least=1)), ratio=True)


def estimated(value: float, stderr: float, *, df: float = math.inf, n: int = 1) -> Interval:
    """The interval of an estimate with a standard error, from ``n`` draws.

    ``df``: the degrees of freedom of the standard error; infinite where it is known.
    """
    value, stderr = checks.real("value", value), checks.real("stderr", stderr, least=0)
    return Interval.of(value, _t(df, value, stderr), checks.whole("n", n, least=1))


def fraction(successes: int, n: int) -> Interval:
    """The interval of a probability from the number of successes in ``n`` independent trials.

    Jeffreys' (Brown, Cai & DasGupta 2001): the law Beta(successes + ½, failures + ½).
    """
    n = checks.whole("n", n, least=1)
    k = checks.whole("successes", successes, least=0, most=n)
    return Interval.of(k / n, stats.beta(k + 0.5, n - k + 0.5), n)


def _student(values: np.ndarray, resolution: float, *, ratio: bool) -> Interval:
    n, mean = len(values), float(values.mean())
    half = max(stats.sem(values) * stats.t.ppf((1 + LEVEL) / 2, n - 1), resolution / 2)
    stderr = half / stats.t.ppf((1 + LEVEL) / 2, n - 1)
    return Interval.of(mean, _t(n - 1, mean, stderr), n, ratio=ratio)


def _t(df: float, mean: float, stderr: float) -> Any:
    return stats.t(df, mean, max(stderr, 1e-100))  # scipy refuses a scale of 0


def _one_a_seed(values: Iterable[float], **bounds: float) -> np.ndarray:
    if isinstance(values, Mapping | Set) or np.ma.is_masked(values):
        raise ValueError(f"an interval needs the values in a list or an array, got {values!r}")
    values = values if isinstance(values, Iterable) else [values]
    checked = [checks.real("the value of each seed", value, **bounds) for value in values]
    if len(checked) < 2:
        raise ValueError(f"an interval needs at least 2 seeds, got {len(checked)}")
    return np.asarray(checked)


@dataclass(frozen=True)
class Claim:
    """One row of a claims table: what is claimed, by whom, and what was found here.

    ``found`` is the effect's :class:`Interval`, compared with ``than`` as ``says`` has it: "above"
    or "below" it; "not above" or "not below" it by more than the ``margin``; "equal" to it within
    the ``margin`` (a factor where the effect is one). Without replicates ``found`` is True or False
    and ``varies`` "exact" (arithmetic) or "one run"; None where nothing could be found.

    Raises ValueError for a margin that is missing, or that the claim has no use for.
    """

    claim: str
    source: str
    paper: str  #: what they found; a number, or two ("3 to 10 times"), is drawn, too
    found: Interval | bool | None
    says: str = "above"
    than: float | None = None  #: default: 0, for a factor 1
    margin: float | None = None  #: fixed before the verdict was computed
    ours: str = ""  #: what was found, in words; default: the interval
    unit: str = ""
    varies: str = ""  #: over what the interval goes; default: the number of seeds
    run: str = "this page"  #: or the stored study that it rests on
    after: bool = False  #: whether something was chosen after the data were seen

    def __post_init__(self) -> None:
        checks.one_of(f"{self.claim!r}: says", self.says, KINDS)
        needed = isinstance(self.found, Interval) and self.says not in ("above", "below")
        if needed != (self.margin is not None):
            what = "needs a margin" if needed else "has no use for a margin"
            raise ValueError(f"{self.claim!r}: {self.says!r} {what}, got {self.margin!r}")
        if self.margin is not None:
            checks.real(f"{self.claim!r}: margin", self.margin, above=int(self._ratio))
        if isinstance(self.found, bool | np.bool_):
            what = f"{self.claim!r}: without an interval, varies"
            checks.one_of(what, self.varies, ("exact", "one run"))
        elif not isinstance(self.found, Interval | None):
            raise ValueError(f"{self.claim!r} found: an Interval, True, False or None")

    @property
    def _ratio(self) -> bool:
        return isinstance(self.found, Interval) and self.found.ratio

    @property
    def _than(self) -> float:
        return self.than if self.than is not None else float(self._ratio)

    @property
    def allowed(self) -> tuple[float, float]:
        """The ends of the effects that the claim allows."""
        than, by = self._than, self.margin or float(self._ratio)
        low, high = (than / by, than * by) if self._ratio else (than - by, than + by)
        low = -math.inf if self.says in ("below", "not above") else low
        return low, math.inf if self.says in ("above", "not below") else high

    @property
    def verdict(self) -> str:
        """See the module."""
        found = self.found
        if found is None:
            return "cannot tell"
        if not isinstance(found, Interval):
            once = self.varies == "one run"
            yes, no = ("seen once", "not seen") if once else ("holds", "does not hold")
            return yes if found else no
        low, high = self.allowed
        if found.high < low or found.low > high:
            return "does not hold"
        if not (low < found.low and found.high < high):
            return "cannot tell"
        over = self.says != "not below" and found.low > self._than
        under = self.says != "not above" and found.high < self._than
        return "holds within the margin" if self.margin is not None and (over or under) else "holds"

    @property
    def p(self) -> float | None:
        """The two-sided p-value at which the verdict was reached: 1 where it cannot tell.

        None without replicates.
        """
        if not isinstance(self.found, Interval):
            return None
        if self.verdict == "cannot tell":
            return 1.0
        low, high = self.allowed
        outside = max(self.found.below(low), 1 - self.found.below(high))
        return 2 * (1 - outside if self.verdict == "does not hold" else outside)


def holm(p: Sequence[float]) -> list[float]:
    """The p-values of several tests, adjusted by Holm (1979): each may be compared with 0.05."""
    p = np.asarray(p, dtype=float)
    order = np.argsort(p)
    adjusted = np.minimum(1.0, np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]))
    return adjusted[np.argsort(order)].tolist()


def claims_table(claims: Iterable[Claim]) -> HTML:
    """The claims of a chapter as an HTML table of class ``claims`` (the scorecard collects it).

    Beside each verdict stands whether it would stand if all claims of the table were one test
    (Holm); a claim about which something was chosen after the data were seen has a dagger. One that
    starts with "…" goes on from the last that does not, and repeats it where only one is shown.
    """
    claims = list(claims)
    if not claims:
        raise ValueError("a table of claims needs at least one, got none")
    adjusted = iter(holm([claim.p for claim in claims if claim.p is not None]))
    rows, stem, names = [], "", Counter[str]()
    for claim in claims:
        holds = claim.p is not None and next(adjusted) < 1 - LEVEL
        survives = "–" if claim.p in (None, 1) else "yes" if holds else "no"
        stem = stem if (goes_on := claim.claim.startswith("…")) else claim.claim
        name = re.sub(r"\W+", "-", (stem + " ") * goes_on + claim.claim).strip("-").lower()
        names[name] += 1
        name += f"-{names[name]}" * (names[name] > 1)
        rows.append(_row(claim, name, stem * goes_on, survives))
    return HTML(f"{_HEAD}<tbody>{''.join(rows)}</tbody></table>")


def _row(claim: Claim, name: str, stem: str, holds: str) -> str:
    here, claimed = _words(claim)
    varies = claim.varies or f"{getattr(claim.found, 'n_seeds', '–')} seeds"
    found = _fields(Here=claim.ours or here, Claimed=claimed, There=claim.paper)
    return (
        f'<tr id="claim-{name}" class="{claim.verdict.replace(" ", "-")}"><td class="verdict">'
        f'<b aria-hidden="true">{MARKS[claim.verdict]}</b> <span>{claim.verdict}</span></td>'
        f'<th scope="row"><span class="stem" hidden>{escape(stem)} </span>'
        f"<span>{escape(claim.claim)}{' †' * claim.after}</span>"
        f'<div class="source">{escape(claim.source)}</div></th><td>{_picture(claim)}{found}</td>'
        f"<td>{_fields(Varies=varies, Computed=claim.run, Holm=holds)}</td></tr>\n"
    )


def _fields(**words: str) -> str:
    given = {name: escape(text) for name, text in words.items() if text not in ("–", "– seeds")}
    return "".join(f"<div><i>{name}</i> <span>{text}</span></div>" for name, text in given.items())


def _picture(claim: Claim) -> str:
    """What ``_HEAD`` describes, as an SVG; the words beside it have the numbers."""
    found = claim.found
    if not isinstance(found, Interval):
        return ""
    paper = _PAPER.fullmatch(claim.paper.replace("−", "-"))
    papers = [float(number) for number in (paper.groups() if paper else ()) if number]
    at = np.array([found.low, found.mean, found.high, claim._than, *claim.allowed, *papers])
    with np.errstate(divide="ignore"):
        at = np.log(np.maximum(at, 0)) if found.ratio else at
    shown = at[np.isfinite(at)]
    pad = (np.ptp(shown) or 1.0) / 6
    at = np.interp(at, [shown.min() - pad, shown.max() + pad], [0, 180]).round(1)
    low, mean, high, than, start, end, *there = at.tolist()
    number = f"{claim._than:.3g}".replace("-", "−")
    return f"""<svg width="180" height="38" aria-hidden="true" fill="currentColor"
 stroke="currentColor"><path d="M0 25.5h180" opacity="0.5"/><path d="M{than} 9v19"
 stroke-dasharray="2 2"/><rect x="{start}" y="10" width="{max(end - start, 2):.1f}" height="15"
 opacity="0.2" stroke="none"/><g class="found" stroke-width="2"><path
 d="M{low} 17.5H{high}M{low} 14v7M{high} 14v7"/><circle cx="{mean}" cy="17.5" r="3"/></g><path
 class="paper" d="{"".join(f"M{x} 9l-4 -8h8z" for x in there)}"/><text x="{than}" y="37"
 font-size="10" text-anchor="middle" stroke="none">{number}</text></svg>"""


def _words(claim: Claim) -> tuple[str, str]:
    """The effect that was found, and those that are claimed."""
    if not isinstance(claim.found, Interval):
        return "–", "–"
    low, high = claim.allowed
    spec, sign = (".3g", "×÷") if claim.found.ratio else ("+.2f", "±")
    claimed = {
        "above": f"above {low:g}",
        "below": f"below {high:g}",
        "not above": f"at most {high:g}",
        "not below": f"at least {low:g}",
        "equal": f"{claim._than:g} {sign} {claim.margin}",
    }
    both = f"{claim.found:{spec}}", claimed[claim.says]
    here, there = (f"{words} {claim.unit}".strip().replace("-", "−") for words in both)
    return here, there
