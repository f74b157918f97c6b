"""A network's loss and its derivatives by brute force, for the measures to be compared with.

Nothing of lecture6 is used. All is computed in float64 from the numbers that the network has in its
own precision. How far an answer in that precision may be off is found by computing it again, in
float64 with every number disturbed by as much as rounding would, and in that precision itself.
"""

import copy
from functools import cached_property

import numpy as np
import torch
from torch.autograd.functional import hessian
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

F64 = torch.float64
MANY = 30  # times the largest of a few disturbances is more than rounding makes


class Loss:
    """The losses (n,) of n samples as a function of w, with what follows from them by autograd.

    ``each(outputs, y)`` gives the losses; ``batches`` are the samples that the network sees
    together. ``noise`` disturbs w, x and the outputs by so much relative to them, and the first two
    derivatives of ``each`` by so much of ``unit``, the size of the numbers that they are made of.
    """

    def __init__(self, model, x, y, each, batches, *, dtype=F64, noise=0.0, unit=0.0, seed=0):
        self.generator = torch.Generator().manual_seed(seed)
        self.noise, self.unit, self.each, self.y = noise, unit, each, y
        model = copy.deepcopy(model).eval()
        self.model = model._apply(lambda t: t.to(dtype) if t.is_floating_point() else t)
        self.parameters = dict(self.model.named_parameters())
        flat = torch.cat([p.detach().flatten() for p in self.parameters.values()])
        self.w = self.disturbed(flat)
        self.x = self.disturbed(x.to(dtype)) if x.is_floating_point() else x
        self.y = y.to(dtype) if y.is_floating_point() else y
        self.batches, self.order = batches, torch.cat(batches).argsort()
        with torch.no_grad():
            self.at = self.outputs(self.w)
        self.factor = self.disturbed(torch.ones_like(self.at))
        self.slope, self.bend, self.other = (self.random(self.at).flatten(1) for _ in range(3))

    def random(self, like):
        return torch.randn(like.shape, generator=self.generator, dtype=F64).to(like.dtype)

    def disturbed(self, values):
        return values * (1 + self.noise * self.random(values)) if self.noise else values

    def outputs(self, w):
        """The network's outputs, (n, ...)."""
        parts = w.split([p.numel() for p in self.parameters.values()])
        shaped = {
            name: part.view(p.shape)
            for (name, p), part in zip(self.parameters.items(), parts, strict=True)
        }
        out = [functional_call(self.model, shaped, (self.x[batch],)) for batch in self.batches]
        return torch.cat(out)[self.order]

    def losses(self, w):
        z = self.outputs(w)
        out = self.each(z * self.factor, self.y)
        if self.noise and self.unit:
            away = (z - self.at).flatten(1)
            bent = (away * self.bend).sum(1) * (away * self.other).sum(1) / 2
            out = out + self.noise * self.unit * ((away * self.slope).sum(1) + bent)
        return out

    def mean(self, w):
        return self.losses(w).mean()

    def __call__(self, w):
        """The mean loss at the point w (n_params,), or at each of several, (k, n_params)."""
        with torch.no_grad():
            w = torch.as_tensor(w, dtype=self.w.dtype)
            return numpy(vmap(self.mean)(w) if w.dim() > 1 else self.mean(w))

    @cached_property
    def value(self):
        return self(self.w)

    def jacobian(self, function):
        """Of ``function`` of w, (values, n_params), one pass back for each value."""
        w = self.w.clone().requires_grad_()
        with torch.enable_grad():
            values = function(w).flatten()
        rows = [torch.autograd.grad(v, w, retain_graph=True)[0] for v in values]
        return numpy(torch.stack(rows))

    @cached_property
    def gradients(self):
        """Of the samples, (n, n_params)."""
        return self.jacobian(self.losses)

    @cached_property
    def grad(self):
        return self.gradients.mean(0)

    @cached_property
    def hessian(self):
        # torch.func.hessian is wrong for layer and batch norm (torch 2.15)
        with sdpa_kernel(SDPBackend.MATH):  # the other kernels have no second derivative
            return numpy(hessian(self.mean, self.w))

    @cached_property
    def gauss_newton(self):
        jacobian = self.jacobian(self.outputs).reshape(len(self.y), -1, len(self.w))
        curved = []
        for z, y in zip(self.at * self.factor, self.y, strict=True):
            one = hessian(lambda z, y=y: self.each(z[None], y[None])[0], z)
            curved.append(numpy(one + self.noise * self.unit * self.random(one)))
        curved = np.stack(curved).reshape(len(self.y), *[jacobian.shape[1]] * 2)
        return np.einsum("icp,icd,idq->pq", jacobian, curved, jacobian) / len(self.y)

    @cached_property
    def covariance(self):
        centred = self.gradients - self.grad
        return centred.T @ centred / len(centred)


def numpy(values):
    return values.detach().double().numpy()


class Truth:
    """What a function of a :class:`Loss` is, and how far rounding may put an answer from it."""

    def __init__(self, model, x, y, each, batches, *, dtype, unit):
        data = (model, x, y, each, batches)
        self.exact, eps = Loss(*data), torch.finfo(dtype).eps
        self.others = [Loss(*data, noise=eps, unit=unit, seed=seed) for seed in (1, 2)]
        self.others.append(Loss(*data, dtype=dtype))
        self.eps, self.tiny = eps, torch.finfo(dtype).tiny
        again = [Loss(*data, noise=torch.finfo(F64).eps, unit=unit, seed=seed) for seed in (1, 2)]
        self.doubles = self.others[:2] if dtype == F64 else again

    def __call__(self, function, *, known=None):
        """The exact value, and the slack for an answer in the network's precision.

        Of what an answer claims to have ``known`` to such a fraction no more is given, but for what
        float64 itself leaves open.
        """
        exact = np.asarray(function(self.exact))

        def slack(others, eps):
            apart = [length(np.asarray(function(other)) - exact) for other in others]
            return MANY * (np.max(apart) + eps * length(exact))  # NaN where one is

        here = slack(self.others, self.eps)
        if known is not None and np.isfinite(here):
            double = slack(self.doubles, torch.finfo(F64).eps)
            here = min(here, max(known * length(exact), double))
        return exact, here + self.tiny

    def rise(self, start, end):
        """The loss at ``end`` less that at ``start``, and what float64 leaves open of it."""
        rises = [loss(end) - loss(start) for loss in (self.exact, *self.doubles)]
        return rises[0], MANY * np.ptp(rises)


def length(values):
    """The Euclidean norm, which neither overflows nor underflows; NaN or ∞ where a value is."""
    largest = np.abs(values).max(initial=0.0)
    if not (0 < largest < np.inf):
        return float(largest)
    return float(largest * np.linalg.norm(values / largest))
