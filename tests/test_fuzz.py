"""Whatever network, data, loss, precision and scale: each measure is right, or raises its error.

Right is what :mod:`brute_force` finds in float64, within four of the errors that the measure states
itself. Beyond these the network's own rounding counts, since no measure can undo it; but never for
more than a tenth of what is said to be exact or converged. 300 examples, always the same;
``LECTURE6_FUZZ=5000`` takes as many of ``--hypothesis-seed``.
"""

import itertools
import math
import os
import re
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from brute_force import Truth, length
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import nn

from lecture6 import curvature, noise, sharpness
from lecture6.models import local_seed
from lecture6.noise import GradientCovariance
from lecture6.objective import NetworkObjective, NonDeterministicError
from lecture6.toys import Quadratic

EXAMPLES = int(os.environ.get("LECTURE6_FUZZ", 300))
PRECISIONS = {"float32": torch.float32, "float64": torch.float64}
CLASSES, VOCABULARY = 3, 5

pytestmark = pytest.mark.usefixtures("one_thread")


# Networks: few weights, and one thing each that has led a measure astray


class Residual(nn.Module):
    """Its last layer starts at 0, so that it is at first its shortcut."""

    def __init__(self):
        super().__init__()
        self.inside = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), zero(nn.Linear(3, 4)))
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(x + self.inside(x))


class Tokens(nn.Module):
    """Embeddings, with or without attention, and the mean over the places."""

    def __init__(self, attention):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 3)
        self.attention = nn.MultiheadAttention(3, 1, batch_first=True) if attention else None
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x):
        x = self.embedding(x)
        if self.attention:
            x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(x.mean(1))


def zero(layer):
    for p in layer.parameters():
        nn.init.zeros_(p)
    return layer


def dead(layer):
    nn.init.constant_(layer.bias, -1e6)
    return layer


def frozen(layer):
    return layer.requires_grad_(False)


def running(norm):
    """With statistics of other data than those at hand."""
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return norm


def dense(*between, bias=True, first=lambda layer: layer, last=lambda layer: layer):
    head = last(nn.Linear(4, CLASSES, bias))
    return nn.Sequential(nn.Flatten(), first(nn.Linear(4, 4, bias)), *between, head)


def convolution(norm, head=lambda layer: layer):
    layers = [nn.Conv2d(1, 2, 3), *norm, nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, head(nn.Linear(8, CLASSES)))


VECTOR, IMAGE, TOKENS = (4,), (1, 4, 4), (3,)
NETS: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {
    "linear": (VECTOR, lambda: nn.Linear(4, CLASSES)),
    "mlp": (VECTOR, lambda: dense(nn.ReLU())),
    "mlp without bias": (VECTOR, lambda: dense(nn.Tanh(), bias=False)),
    "dead units": (VECTOR, lambda: dense(nn.ReLU(), first=dead)),
    "zero head": (VECTOR, lambda: dense(nn.ReLU(), last=zero)),
    "frozen part": (VECTOR, lambda: dense(nn.GELU(), first=frozen)),
    "layer norm": (VECTOR, lambda: dense(nn.LayerNorm(4), nn.Tanh())),
    "batch norm": (VECTOR, lambda: dense(nn.BatchNorm1d(4, track_running_stats=False), nn.ReLU())),
    "running": (VECTOR, lambda: dense(running(nn.BatchNorm1d(4)), nn.ReLU())),
    "residual": (VECTOR, Residual),
    "convolution": (IMAGE, lambda: convolution([])),
    "convolution, batch norm, zero head": (
        IMAGE,
        lambda: convolution([nn.BatchNorm2d(2, track_running_stats=False)], zero),
    ),
    "embedding": (TOKENS, lambda: Tokens(attention=False)),
    "attention": (TOKENS, lambda: Tokens(attention=True)),
}
MIXING = {"batch norm", "convolution, batch norm, zero head"}


# Losses: that of each sample; the mean of them, which is given to the objective; and of which size
# the numbers are that it is made of, beside the outputs


@dataclass(frozen=True)
class Kind:
    each: Callable
    unit: float = 1.0
    classes: bool = True

    def __call__(self, z, y):
        return self.each(z, y).mean()


def cross_entropy(z, y):
    return F.cross_entropy(z, y, reduction="none")


LOSSES = {
    "default": Kind(cross_entropy),
    "cross-entropy · 1e-20": Kind(lambda z, y: 1e-20 * cross_entropy(z, y), unit=1e-20),
    "cross-entropy · 1e8": Kind(lambda z, y: 1e8 * cross_entropy(z, y), unit=1e8),
    "squares": Kind(lambda z, y: (z - y).square().mean(1), classes=False),
    "softplus": Kind(lambda z, y: F.softplus(-z * y).mean(1), classes=False),
}


# Samples


def samples(kind, shape, n, generator):
    """Inputs (n, *shape) of order 1, or tokens, and the numbers of classes (n,)."""
    if shape is TOKENS:
        x = torch.randint(VOCABULARY, (n, *shape), generator=generator)
    else:
        x = torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    y = torch.randint(CLASSES, (n,), generator=generator)
    if kind in ("one sample", "one input", "nearly one sample"):
        x = x[:1].expand(n, *shape).clone()
    if kind in ("one sample", "one class", "nearly one sample"):
        y = y[:1].expand(n).clone()
    if kind == "nearly one sample" and x.is_floating_point():
        x = x + 1e-6 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
    if kind == "blank":
        x = torch.zeros_like(x)
    return x, y


SAMPLES = ["usual", "one sample", "one input", "nearly one sample", "one class", "blank"]


@dataclass(frozen=True)
class Problem:
    """What one example is about; ``scales`` are powers of 10 of the inputs and of the weights."""

    net: str
    loss: str
    data: str
    dtype: str
    scales: tuple[int, int]
    n: int
    batch_size: int
    seed: int

    @property
    def plain(self):
        """Nothing about it is out of the ordinary, so that the measures must give answers."""
        return self.scales == (0, 0) and self.data == "usual"

    def model_and_data(self):
        shape, make = NETS[self.net]
        with local_seed(self.seed):
            model = make().to(PRECISIONS[self.dtype])
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(10.0 ** self.scales[1])
        generator = torch.Generator().manual_seed(self.seed)
        x, y = samples(self.data, shape, self.n, generator)
        if not LOSSES[self.loss].classes:
            y = torch.randn(self.n, CLASSES, generator=generator, dtype=torch.float64)
            y = y.to(PRECISIONS[self.dtype])
        if x.is_floating_point():
            x = (x * 10.0 ** self.scales[0]).to(PRECISIONS[self.dtype])
        return model, x, y

    def batches(self):
        """The samples that are in the network together."""
        size = self.batch_size if self.net in MIXING else self.n
        count = math.ceil(self.n / size)
        return [torch.arange(i, self.n, count) for i in range(count)]


# Mostly in the middle, where two odd things can meet
POWERS = st.sampled_from([0, 0, 0, 0, -1, 1, -3, 3, -8, 8, -20, 20, -30, 30])
PROBLEMS = st.builds(
    Problem,
    net=st.sampled_from(list(NETS)),
    loss=st.sampled_from([*LOSSES, *["default"] * 3]),
    data=st.sampled_from(["usual", *SAMPLES]),
    dtype=st.sampled_from(list(PRECISIONS)),
    scales=st.tuples(POWERS, st.sampled_from([0, 0, 0, 0, -3, 1, 2, 3, 8, -8, 20, -20])),
    n=st.integers(2, 9),
    batch_size=st.integers(2, 9),
    seed=st.integers(0, 2**16),
)

# What a measure may raise on a problem that is plain, too: where it is not defined
UNDEFINED = re.compile(
    "mixes the samples|GᵀHG.* is not positive|estimate of ‖G‖² is .*, not positive"
    "|Expected more than 1 value per channel"
)


class Example:
    """One problem, with its truth, and what is asserted of each answer."""

    def __init__(self, problem):
        self.problem = problem
        model, x, y = problem.model_and_data()
        kind, dtype = LOSSES[problem.loss], PRECISIONS[problem.dtype]
        self.random = np.random.default_rng(problem.seed)
        self.objective = self.truth = None
        with self.allowed():
            options = {} if problem.loss == "default" else {"loss": kind}
            self.objective = NetworkObjective(model, x, y, batch_size=problem.batch_size, **options)
            data = (model, x, y, kind.each, problem.batches())
            self.truth = Truth(*data, dtype=dtype, unit=kind.unit)
            self.w = self.objective.w

    @contextmanager
    def allowed(self):
        """The documented errors end what is inside, unless the problem is plain."""
        try:
            yield
        except (ValueError, NonDeterministicError) as error:
            if self.problem.plain and not UNDEFINED.search(str(error)):
                raise

    def judge(self, of):
        """Whose truth holds for the matrix ``of``: a covariance takes each sample by itself.

        A net that mixes samples so little that it is not refused gives other gradients in a batch.
        """
        alone = of == "covariance" and self.problem.net in MIXING
        return Example(replace(self.problem, batch_size=1)) if alone else self

    def agree(self, found, function, stated=0.0, of=None):
        """``found`` is ``function`` of the exact loss within 4 times ``stated`` and the rounding.

        An answer that states its error may not be off by more than a tenth because of rounding,
        where rounding leaves of what it is made, ``of`` the loss, so much.
        """
        judge = self.judge(of)
        clear = of is not None and judge.clear(lambda loss: getattr(loss, of))
        right, slack = judge.truth(function, known=0.1 if clear else None)
        found = np.asarray(found)
        most = torch.finfo(PRECISIONS[self.problem.dtype]).max
        if not np.isfinite(slack) or (of is None and length(right) > 0.1 * most):
            assert not clear or np.isfinite(found).all()
            return  # the network's own numbers overflow
        off = length(found - right)
        assert off <= 4 * length(np.asarray(stated)) + slack, (off, slack, stated, found, right)

    def clear(self, function, above=0.0):
        """The network's precision leaves more of this than rounding."""
        right, slack = self.truth(function)
        return slack <= 0.1 * (above + length(right))

    def sampled(self, estimate, function, of):
        """As :meth:`agree`, for what depends on random draws and may be off by chance."""
        misses = []
        for seed in range(4):
            try:
                found = estimate(seed)
                if found is not None:
                    self.agree(found[0], function, found[1], of)
            except AssertionError as miss:
                misses.append(miss)
            if not misses:
                return
        if len(misses) > 2:
            raise misses[0]

    def rises(self, result, end):
        """A sharpness is that of the loss at ``end`` within what it states."""
        if not self.clear(lambda loss: loss.value, above=1.0):
            return  # nor can f(x) itself be known
        if result.value == 0 and not result.converged:
            return  # it says that it found nothing
        base = float(self.truth.exact.value)
        rise, slack = self.truth.rise(self.w, end)
        phi, slack = 100 * rise / (1 + base), 100 * slack / (1 + base)
        # Where all is rounding, its size is known from two values, and so to a factor of some.
        bars, known = (4, 0.1 * abs(phi)) if result.converged else (16, np.inf)
        off = abs(result.value - phi)
        assert off <= slack + min(bars * result.stderr, known), (result, phi, slack)


def number(estimate):
    return estimate.value, estimate.stderr


# The measures

MATRICES = ["hessian", "gauss_newton", "covariance"]
EPSILONS = [1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 0.1, 1.0]


def derivatives(example):
    f, w = example.objective, example.w
    v = torch.from_numpy(example.random.standard_normal(len(w))).to(w)
    example.agree(f.value(w), lambda loss: loss.value)
    value, grad = f.value_and_grad(w)
    example.agree(value, lambda loss: loss.value)
    example.agree(grad.numpy(), lambda loss: loss.grad)
    example.agree(f.hvp(w, v).numpy(), lambda loss: loss.hessian @ v.double().numpy())


def matrices(example):
    for of in MATRICES:
        with example.allowed():
            found = curvature.matrix(example.objective, example.w, of=of)
            example.judge(of).agree(found, lambda loss, of=of: getattr(loss, of))


def spectra(example):
    random = example.random
    of, end = random.choice(MATRICES), random.choice(["largest", "smallest"])
    k, tolerance = random.integers(1, 4), 10 ** -random.uniform(1, 9)
    options = {"max_products": random.integers(k + 1, 60), "tolerance": tolerance}

    def spectrum(loss):
        return np.linalg.eigvalsh(getattr(loss, of))[::-1]

    def chosen(loss):
        return spectrum(loss)[:k] if end == "largest" else spectrum(loss)[-k:]

    def found(seed):
        pairs = curvature.eigenvalues(
            example.objective, example.w, k, end=end, of=of, seed=seed, **options
        )
        exact, slack = example.judge(of).truth(spectrum)
        apart = np.abs(pairs.values[:, None] - exact).min(1)
        assert not (apart > 2 * pairs.residuals + slack).any(), (pairs, exact, slack)
        return (pairs.values, pairs.errors) if pairs.converged else None

    example.sampled(found, chosen, of)


def traces(example):
    of = example.random.choice(MATRICES)
    n_products = example.random.choice([20, 30, 100])

    def found(seed):
        options = {"n_products": n_products, "of": of, "seed": seed}
        return number(curvature.trace(example.objective, example.w, **options))

    example.sampled(found, lambda loss: np.trace(getattr(loss, of)), of)


def densities(example):
    of = example.random.choice(MATRICES)
    n_vectors, n_steps = example.random.choice([(10, 20), (20, 1), (15, 2), (2, 100)])

    def spectrum(loss):
        return np.linalg.eigvalsh(getattr(loss, of))

    def mean_of(function):
        def found(seed):
            return number(density(seed).mean_of(function))

        example.sampled(found, lambda loss: function(spectrum(loss)).mean(), of)

    def density(seed):
        options = {"n_vectors": n_vectors, "n_steps": n_steps, "of": of, "seed": seed}
        return curvature.spectral_density(example.objective, example.w, **options)

    largest = np.abs(spectrum(example.truth.exact)).max() or 1.0
    if largest < example.truth.tiny / example.truth.eps:
        return  # such numbers have few digits
    mean_of(lambda x: x)
    if n_steps > 1:  # Gauss quadrature with m nodes integrates polynomials below 2m
        mean_of(lambda x: (x / largest) ** 2)
    if n_steps > 10:

        def found(seed):
            return number(curvature.log_determinant(density(seed), 2 * largest))

        with np.errstate(invalid="ignore"):  # of a loss disturbed beyond δ
            example.sampled(found, lambda loss: np.log(spectrum(loss) + 2 * largest).sum(), of)


def worst_cases(example):
    f, w, random = example.objective, example.w, example.random
    epsilon, p = float(random.choice(EPSILONS)), int(random.choice([0, 1, 3]))
    a = torch.from_numpy(random.standard_normal((len(w), p))).to(w) if p else None
    method = random.choice(["lbfgsb", "ascent", "converged"])
    found = sharpness.worst_case(
        f, w, epsilon=epsilon, subspace=a, method=str(method), seed=example.problem.seed
    )
    matrix = np.eye(len(w)) if a is None else a.double().numpy()
    start, z = w.double().numpy(), found.maximizer.double().numpy()
    half = epsilon * (np.abs(np.linalg.pinv(matrix) @ start) + 1)
    assert (np.abs(z) <= half * (1 + 1e-4)).all()
    example.rises(found, start + matrix @ z)
    if p and example.problem.net == "linear":  # convex: largest in a corner
        corners = [start + matrix @ (half * c) for c in itertools.product((-1, 1), repeat=p)]
        rises, slacks = zip(*(example.truth.rise(start, c) for c in corners), strict=True)
        percent = 100 / (1 + float(example.truth.exact.value))
        above = found.value - percent * max(rises)
        assert above <= 4 * found.stderr + percent * max(slacks), (found, percent * max(rises))


def adaptive_worst_cases(example):
    w, epsilon = example.w, float(example.random.choice(EPSILONS))
    found = sharpness.adaptive(example.objective, w, epsilon=epsilon, seed=example.problem.seed)
    start, z = w.double().numpy(), found.maximizer.double().numpy()
    assert (np.abs(z) <= epsilon * np.abs(start) * (1 + 1e-4)).all()
    example.rises(found, start + z)


def sam_steps(example):
    epsilon = float(example.random.choice(EPSILONS))
    found = sharpness.sam(example.objective, example.w, epsilon=epsilon)
    step = found.maximizer.double().numpy()
    example.rises(found, example.w.double().numpy() + step)
    if found.converged:
        example.agree(step / epsilon, lambda loss: loss.grad / length(loss.grad))


def averages(example):
    w, epsilon = example.w.double().numpy(), float(example.random.choice(EPSILONS))
    loss = example.truth.exact
    if not example.clear(lambda loss: loss.value, above=1.0):
        return
    steps = epsilon * example.random.standard_normal((400, len(w)))
    rises = (loss(w + steps) + loss(w - steps)) / 2 - loss.value
    percent = 100 / (1 + float(loss.value))
    right, error = percent * rises.mean(), percent * rises.std(ddof=1) / math.sqrt(len(rises))
    misses = []
    for seed in range(4):
        found = sharpness.average(example.objective, example.w, epsilon=epsilon, seed=seed)
        off = abs(found.value - right)
        if np.isfinite(right) and not off <= 4 * math.hypot(found.stderr, error):
            misses.append((found, right, error))
        if not misses:
            return
    assert len(misses) < 3, misses[0]


def covariances(example):
    f, w = example.objective, example.w
    if example.problem.net in MIXING:
        if example.problem.plain:
            with pytest.raises(ValueError, match="mixes the samples"):
                GradientCovariance(f, w).trace()
        return  # samples that are all equal may be normalised each by itself
    gradients = torch.cat(list(noise.per_sample_gradients(f, w)))
    example.agree(gradients.numpy(), lambda loss: loss.gradients)
    v = torch.from_numpy(example.random.standard_normal((2, len(w)))).to(w)
    covariance = GradientCovariance(f, w)
    found = (covariance @ v).numpy()
    example.agree(found, lambda loss: v.double().numpy() @ loss.covariance)
    trace = covariance.trace()
    trace = number(trace) if hasattr(trace, "value") else (trace, 0.0)
    assert trace[0] >= 0
    example.agree(trace[0], lambda loss: np.trace(loss.covariance), trace[1], "covariance")
    scale = number(covariance.simple_noise_scale())
    example.agree(scale[0], simple_noise_scale, scale[1], "covariance")
    scale = number(noise.critical_batch_size(covariance))
    example.agree(scale[0], critical_batch_size, scale[1], "covariance")


def simple_noise_scale(loss):
    g = loss.gradients / (length(loss.gradients) or 1.0)
    return ((g - g.mean(0)) ** 2).sum(1).mean() / (g.mean(0) ** 2).sum()


def critical_batch_size(loss):
    g = loss.gradients / (length(loss.gradients) or 1.0)
    mean, h = g.mean(0), loss.hessian / (length(loss.hessian) or 1.0)
    return np.einsum("ip,pq,iq->", g - mean, h, g - mean) / len(g) / (mean @ h @ mean)


def noise_estimates(example):
    f, w, random = example.objective, example.w, example.random
    if example.problem.net in MIXING:
        return
    source, n = torch.cat(list(noise.per_sample_gradients(f, w))), f.n_samples
    sampling = random.choice(["with_replacement", "without_replacement", "epoch"])
    b = int(random.integers(1, n))
    c = 1 / b if sampling == "with_replacement" else (n - b) / (b * (n - 1))

    def trace(seed):
        options = {"n_batches": 400, "sampling": str(sampling), "seed": seed}
        return number(noise.fluctuation_trace(source, b, **options))

    example.sampled(trace, lambda loss: c * np.trace(loss.covariance), "covariance")

    def scale(seed):
        options = {"b_small": b, "b_big": 4 * n, "n_pairs": 200, "seed": seed}
        return number(noise.estimate_simple_noise_scale(source, **options))

    example.sampled(scale, simple_noise_scale, "covariance")


MEASURES = [
    derivatives,
    matrices,
    spectra,
    traces,
    densities,
    worst_cases,
    adaptive_worst_cases,
    sam_steps,
    averages,
    covariances,
    noise_estimates,
]
RUN = settings(
    max_examples=-(-EXAMPLES // (len(MEASURES) + 1)),
    derandomize=EXAMPLES == 300,
    deadline=None,
    database=None,
    phases=[Phase.generate],  # a problem is small as it is found
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.__name__)
def test_a_measure_of_any_network_is_right_or_raises(measure):
    @RUN
    @given(PROBLEMS)
    def right_or_raises(problem):
        # Of samples that are all equal batch norm leaves rounding, which such weights blow up.
        assume(problem.net not in MIXING or problem.data == "usual" or max(problem.scales) <= 8)
        example = Example(problem)
        if example.truth is not None:
            with example.allowed():
                measure(example)

    right_or_raises()


# Quadratics of any scale, where all is known


@RUN
@given(
    st.lists(st.sampled_from([0.0, 1.0, -1.0, 1.0, 3.0, 1e-3, 1e-6]), min_size=1, max_size=12),
    st.integers(-300, 300),
    st.sampled_from(EPSILONS),
    st.integers(0, 2**16),
)
def test_measures_of_a_quadratic_of_any_scale(spectrum, power, epsilon, seed):
    scale, n = 10.0**power, len(spectrum)
    unit, random = Quadratic(spectrum, seed=seed), np.random.default_rng(seed)
    x, f = random.standard_normal(n), Quadratic(np.array(spectrum) * scale, seed=seed)
    loss = scale * 0.5 * x @ unit.h @ x
    descending = np.sort(spectrum)[::-1] * scale
    largest = np.abs(descending).max()

    pairs = curvature.eigenvalues(f, x, min(3, n), seed=seed)
    if pairs.converged:
        off = np.abs(pairs.values - descending[:3])
        assert (off <= 4 * pairs.errors + 1e-13 * largest).all(), (pairs, descending)
    trace = curvature.trace(f, x, n_products=30)
    assert trace.value == pytest.approx(descending.sum(), rel=1e-12, abs=1e-13 * n * largest)
    density = curvature.spectral_density(f, x)
    delta = 2 * largest or 1.0
    determinant = curvature.log_determinant(density, delta).value
    assert determinant == pytest.approx(np.log(descending + delta).sum(), rel=1e-12, abs=1e-12)

    if 1 + loss <= 0:
        for measure in sharpness.MEASURES.values():
            with pytest.raises(ValueError, match=r"1 \+ f"):
                measure(f, x, epsilon=epsilon)
        return

    def right(found, rise):
        phi = 100 * rise / (1 + loss)
        assert abs(found.value - phi) <= 4 * found.stderr, (found, phi)

    def rise(step):
        return scale * (step @ unit.h @ x + 0.5 * step @ unit.h @ step)

    right(sharpness.average(f, x, epsilon=epsilon), 0.5 * epsilon**2 * descending.sum())
    g = unit.h @ x
    if length(g) > 1e-12:
        right(sharpness.sam(f, x, epsilon=epsilon), rise(epsilon * g / length(g)))
    found = sharpness.worst_case(f, x, epsilon=epsilon, method="converged", seed=seed)
    if found.value != 0 or found.converged:
        right(found, rise(found.maximizer.numpy()))
