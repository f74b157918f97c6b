// What is measured of a net at weights w: generators, which yield between parts of their work and
// return the result. Definitions are those of lecture6's sharpness, curvature, noise and landscape.

import { fail, oneOf, options, real, vector, whole } from "./checks.js";
import { ROWS, evaluation, norm, parts } from "./network.js";
import { Random } from "./random.js";
import { tridiagonal } from "./tridiagonal.js";

const EPS = 2 ** -23; // of float32
const TOLERANCE = 0.01; // of φ: the gap that a search may leave, as a fraction of it

// A net and data, and what is computed of them in several parts. Vectors are places in memory.
class Measurement {
  constructor({ passes, shape, heap, train, test }, w, seed) {
    Object.assign(this, { passes, shape, heap, train, test, seed, size: shape.size, taken: [] });
    this.kernel = passes.kernel;
    this.w = this.take(w);
  }

  // A place for a vector, with these numbers; given back at the end.
  take(numbers) {
    const place = this.heap.take(this.size);
    this.taken.push(place);
    if (numbers) this.heap.floats.set(numbers, place);
    return place;
  }

  close() {
    for (const place of this.taken) this.heap.give(place, this.size);
  }

  at(place) {
    return this.heap.floats.subarray(place, place + this.size);
  }

  // The first n samples of a set, or all.
  split(name, n) {
    const all = this[oneOf("split", name, ["train", "test"])];
    return { ...all, n: whole("samples", n ?? all.n, 1, all.n) };
  }

  random(stream) {
    return new Random(this.seed, stream);
  }

  dot(x, y) {
    return this.kernel.dot(x, y, this.size);
  }

  norm(x) {
    return Math.sqrt(this.dot(x, x));
  }

  // out = a x + b y
  combine(out, a, x, b, y) {
    this.kernel.combine(out, a, x, b, y, this.size);
  }

  // The mean loss at w; its gradient is left at g.
  *gradient(w, samples, g) {
    let loss = 0;
    for (const [x, y, m, at] of parts(samples)) {
      this.passes.prepare(w);
      loss += this.passes.forward(w, x, y, m);
      this.passes.backward(x, m, g, at > 0);
      yield;
    }
    this.combine(g, 1 / samples.n, g, 0, g);
    return loss / samples.n;
  }

  // The Hessian of the mean loss at w times v is left at out.
  *product(w, v, samples, out) {
    for (const [x, y, m, at] of parts(samples)) {
      this.passes.prepare(w);
      this.passes.prepare(v, "alongTransposed");
      this.passes.forward(w, x, y, m);
      this.passes.forwardAlong(w, v, x, m);
      this.passes.backwardAlong(x, y, m, out, at > 0);
      yield;
    }
    this.combine(out, 1 / samples.n, out, 0, out);
  }

  // w with the last digit of every weight changed.
  moved(w, seed) {
    const random = new Random(seed, "probes");
    return this.take(this.at(w).map((x) => x + EPS * random.sign() * x));
  }

  // How far rounding moves a product with v, in norm: as far as the weights' last digits do.
  *rounding(v, samples) {
    const few = { ...samples, n: Math.min(samples.n, ROWS) }, near = this.moved(this.w, 1);
    const here = this.take(), there = this.take();
    yield* this.product(this.w, v, few, here);
    yield* this.product(near, v, few, there);
    this.combine(there, 1, there, -1, here);
    return this.norm(there) + EPS * this.norm(here);
  }

  // Lanczos with full reorthogonalisation from v: after each product the basis (places), T's
  // diagonal and what is beside it, which has one number more than T: the coupling to what is left.
  *lanczos(start, samples, most) {
    const basis = [], diagonal = [], beside = [];
    let next = start, norm = this.norm(next);
    while (basis.length < most) {
      this.combine(next, 1 / norm, next, 0, next);
      basis.push(next);
      const image = this.take();
      yield* this.product(this.w, next, samples, image);
      diagonal.push(this.dot(image, next));
      for (let twice = 0; twice < 2; twice++) // is enough (Kahan, Parlett)
        for (const one of basis) this.combine(image, 1, image, -this.dot(image, one), one);
      norm = this.norm(image);
      if (!Number.isFinite(norm)) fail("a product with the Hessian is not finite at w");
      const scale = Math.max(...diagonal.map(Math.abs), ...beside);
      const ended = norm <= 10 * EPS * scale; // the space is invariant under H
      beside.push(ended ? 0 : norm);
      yield { basis, diagonal, beside };
      if (ended) return;
      next = image;
    }
  }
}

// Runs the steps of a Lanczos generator until `enough(space)`; returns the last space.
function* iterate(lanczos, enough) {
  let space;
  for (const step of lanczos)
    if (step === undefined) yield;
    else if (enough((space = step))) break;
  return space;
}

function* evaluate(of, on, { labels }) {
  const predicted = labels ? new Uint8Array(on.n) : undefined;
  const [loss, accuracy] = yield* evaluation(of.passes, of.w, on, predicted);
  return { loss, accuracy, labels: predicted };
}

function* gradient(of, on) {
  const g = of.take(), loss = yield* of.gradient(of.w, on, g);
  return { loss, gradient: of.shape.unpack(of.at(g)), norm: of.norm(g) };
}

function* hvp(of, on, { v }) {
  const direction = of.take(of.shape.pack(v, "v")), out = of.take();
  yield* of.product(of.w, direction, on, out);
  return { product: of.shape.unpack(of.at(out)) };
}

// The eigenvalues at one end of T, and how far they are from those of H.
function ritz({ diagonal, beside }, k, end) {
  const n = diagonal.length, { values, vectors } = tridiagonal(diagonal, beside);
  const residuals = values.map((_, i) => Math.abs(beside[n - 1] * vectors[i][n - 1]));
  const order = values.map((_, i) => (end === "largest" ? n - 1 - i : i)).slice(0, k);
  return order.map((i) => {
    // Neighbours may be as much nearer as they are uncertain; of none, nothing is known.
    const apart = (x, j) => (j === i ? Infinity : Math.abs(x - values[i]) - residuals[j]);
    const gap = n > 1 ? Math.min(...values.map(apart)) : 0, r = residuals[i];
    return { value: values[i], error: r * (r / Math.max(gap, r, 1e-300)), y: vectors[i] };
  });
}

function* eigenvalues(of, on, { k, ends, tolerance, maxProducts, vectors }) {
  const n = of.shape.nParams, random = of.random("start");
  whole("k", k, 1, n);
  const both = oneOf("ends", ends, ["largest", "smallest", "both"]) === "both";
  const wanted = both ? ["largest", "smallest"] : [ends], found = { largest: [], smallest: [] };
  real("tolerance", tolerance, { least: 0 });
  const most = Math.min(whole("maxProducts", maxProducts, k), n);
  const met = ({ value, error }) => error <= tolerance * Math.abs(value);
  const enough = (space) => {
    const size = space.diagonal.length, ended = size === most || space.beside.at(-1) === 0;
    if (!ended && (size < k || size % (size < 20 ? 2 : 5))) return false;
    for (const end of wanted) found[end] = ritz(space, k, end);
    return ended || wanted.every((end) => found[end].every(met));
  };
  const start = of.take(of.shape.drawn(() => random.normal()));
  const { basis } = yield* iterate(of.lanczos(start, on, most), enough);
  const pairs = wanted.flatMap((end) => found[end]), sum = of.take(), kept = [];
  for (const { y } of pairs) {
    const vector = of.take();
    basis.forEach((one, i) => of.combine(vector, 1, vector, y[i], one));
    of.combine(sum, 1, sum, 1, vector);
    if (vectors) kept.push(of.shape.unpack(of.at(vector)));
  }
  const largest = Math.max(...pairs.map(({ value }) => Math.abs(value)));
  const rounding = (yield* of.rounding(sum, on)) + EPS * largest;
  for (const end of wanted)
    found[end] = found[end].map(({ value, error }) => ({ value, error: error + rounding }));
  const converged = wanted.every((end) => found[end].length === k && found[end].every(met));
  return { ...found, vectors: kept, converged, products: basis.length };
}

function* spectrum(of, on, { vectors, steps }) {
  const random = of.random("start"), nodes = [], weights = [];
  const most = Math.min(whole("steps", steps, 1), of.shape.nParams);
  for (let i = whole("vectors", vectors, 1); i > 0; i--) {
    const start = of.take(of.shape.drawn(() => random.normal()));
    const { diagonal, beside } = yield* iterate(of.lanczos(start, on, most), () => false);
    const found = tridiagonal(diagonal, beside);
    nodes.push(found.values);
    weights.push(found.vectors.map((y) => y[0] ** 2));
  }
  return { nodes, weights };
}

// The mean of vᵀ H v, with its standard error.
function* trace(of, on, { products, probes }) {
  const random = of.random("probes"), size = of.shape.nParams, v = of.take(), out = of.take();
  const n = whole("products", probes ? probes.length / size : products, 2), each = [];
  for (let i = 0; i < n; i++) {
    of.at(v).set(probes
      ? of.shape.pack(probes.slice(i * size, (i + 1) * size), "probes")
      : of.shape.drawn(() => random.sign()));
    yield* of.product(of.w, v, on, out);
    each.push(of.dot(v, out));
  }
  const value = each.reduce((sum, x) => sum + x, 0) / n, spread = norm(each.map((x) => x - value));
  const rounding = yield* of.rounding(v, on);
  return { value, stderr: Math.hypot(spread / Math.sqrt(n * (n - 1)), rounding), n };
}

// f over the box |δ_i| ≤ ε (|w_i| + margin), with δ = h u: it remembers the best point found.
class Search {
  constructor(of, on, w, epsilon, margin) {
    Object.assign(this, { of, on, w, evaluations: 0, h: new Float32Array(of.size) });
    const weights = of.at(w);
    of.shape.eachParameter((i) => { this.h[i] = epsilon * (Math.abs(weights[i]) + margin); });
    [this.point, this.g] = [of.take(), of.take()];
    this.forget();
  }

  forget() {
    this.best = { rise: -Infinity, gap: Infinity };
  }

  // Puts the point at u.
  go(u) {
    const w = this.of.at(this.w);
    this.of.at(this.point).set(u.map((x, i) => w[i] + this.h[i] * x));
  }

  stationary() {
    return this.best.rise > 0 && this.best.gap <= TOLERANCE * this.best.rise;
  }

  // The rise above f(w) at u, and the gradient there, by u.
  *evaluate(u) {
    const { of, point, g } = this;
    this.go(u);
    const rise = (yield* of.gradient(point, this.on, g)) - this.base, slope = of.at(g).slice();
    this.evaluations += 1;
    if (!Number.isFinite(rise)) fail("the loss in the box is not finite: take a smaller epsilon");
    const grad = slope.map((x, i) => x * this.h[i]);
    if (rise > this.best.rise) {
      const gap = grad.reduce((sum, x, i) => sum + Math.abs(x) - x * u[i], 0);
      this.best = { rise, u, gap, slope };
    }
    return { rise, grad };
  }

  // Projected ascent along the gradient's signs; the step halves on failure.
  *ascend(start, iterations) {
    let u = (yield* this.evaluate(start)).grad.map(Math.sign), step = 2;
    let { rise, grad } = yield* this.evaluate(u);
    for (let i = 0; i < iterations && !this.stationary(); i++) {
      const trial = u.map((x, j) => Math.max(-1, Math.min(1, x + step * Math.sign(grad[j]))));
      const there = yield* this.evaluate(trial);
      if (there.rise > rise) [u, rise, grad] = [trial, there.rise, there.grad];
      else step /= 2;
    }
  }

  // The standard error, by rounding, of the rise: that of losses next to both its ends.
  *rounding() {
    const { of, on, w, point, best } = this;
    const loss = function* (place) { return (yield* evaluation(of.passes, place, on))[0]; };
    const here = (yield* loss(of.moved(w, 2))) - this.base;
    if (!best.slope) return Math.abs(here);
    this.go(best.u);
    const near = of.moved(point, 3), from = of.at(point), to = of.at(near);
    const along = best.slope.reduce((sum, x, i) => sum + x * (to[i] - from[i]), 0);
    const there = (yield* loss(near)) - this.base - best.rise - along;
    return Math.hypot(1.5 * Math.hypot(here, there), EPS * this.base);
  }
}

function* sharpness(of, on, { kind, epsilon, starts, iterations, equal, start }) {
  const adaptive = oneOf("kind", kind, ["worst_case", "adaptive"]) === "adaptive";
  const most = whole("iterations", iterations ?? (adaptive ? 20 : 10), 1);
  real("epsilon", epsilon, { above: 0 });
  const w = equal ? of.take(of.shape.withEqualNorms(of.at(of.w))) : of.w;
  const search = new Search(of, on, w, epsilon, adaptive ? 0 : 1), random = of.random("start");
  [search.base] = yield* evaluation(of.passes, w, on);
  real("the loss at w", search.base, { above: -1 });
  let highest = search.best;
  for (let i = whole("starts", starts, 1); i > 0; i--) {
    search.forget();
    const drawn = () => of.shape.drawn(() => 2 * random.uniform() - 1);
    yield* search.ascend(start ? of.shape.pack(start, "start") : drawn(), most);
    if (search.best.rise > highest.rise) highest = search.best;
  }
  search.best = highest;
  const rise = Math.max(0, highest.rise), per = 100 / (1 + search.base);
  const error = yield* search.rounding();
  return {
    value: per * rise, stderr: per * error, gap: per * highest.gap, epsilon,
    loss: search.base, lossMax: search.base + rise, evaluations: search.evaluations,
    converged: search.stationary() && error < 0.1 * rise, norms: of.shape.norms(of.at(w)),
  };
}

// Σ ‖g_i‖² of the samples: of a layer a gradient is the product of its input and its derivative.
function* squaredGradients(of, w, on, g) {
  const { passes, shape, heap } = of, last = shape.layers.length - 1;
  let total = 0;
  for (const [x, y, m, at] of parts(on)) {
    passes.prepare(w);
    passes.forward(w, x, y, m);
    passes.backward(x, m, g, at > 0);
    shape.layers.forEach(({ padded, columns, length }, l) => {
      const input = l ? passes.buffers[l - 1].h : x, { d } = passes.buffers[l];
      for (let i = 0; i < m; i++) {
        let a = shape.bias ? 1 : 0, b = 0;
        for (let p = input + i * length, end = p + padded; p < end; p++) a += heap.floats[p] ** 2;
        for (let p = d + i * columns, end = p + columns; p < end; p++) b += heap.floats[p] ** 2;
        total += a * b;
      }
    });
    yield;
  }
  of.combine(g, 1 / on.n, g, 0, g);
  return total / on.n;
}

function* noise(of, on, { directions }) {
  const g = of.take(), found = [];
  for (const w of [of.w, of.moved(of.w, 1)]) {
    const squares = yield* squaredGradients(of, w, on, g), gradientNorm2 = of.dot(g, g);
    const trace = Math.max(0, squares - gradientNorm2);
    found.push({ trace, gradientNorm2, scale: trace / gradientNorm2 });
  }
  const [result, moved] = found, stderr = {};
  for (const [name, x] of Object.entries(result))
    stderr[name] = Math.abs(moved[name] - x) + EPS * x;
  const projected = directions ? yield* projections(of, on, directions) : undefined;
  return { ...result, stderr, projections: projected };
}

// Every sample's gradient along vectors, given one after another, or as many random unit ones: the
// derivatives of its loss along them.
function* projections(of, on, given) {
  const { passes, shape, heap } = of, n = shape.nParams, random = of.random("directions");
  const k = whole("directions", given.length === undefined ? given : given.length / n, 1);
  const { d, t, length } = passes.buffers.at(-1), u = of.take(), found = new Float32Array(on.n * k);
  for (let j = 0; j < k; j++) {
    of.at(u).set(given.length
      ? shape.pack(given.slice(j * n, (j + 1) * n), "directions")
      : shape.drawn(() => random.normal()));
    if (!given.length) of.combine(u, 1 / of.norm(u), u, 0, u);
    for (const [x, y, m, at] of parts(on)) {
      passes.forward(of.w, x, y, m);
      passes.forwardAlong(of.w, u, x, m);
      for (let i = 0; i < m; i++)
        for (let c = i * length; c < i * length + shape.classes; c++)
          found[(at + i) * k + j] += heap.floats[d + c] * heap.floats[t + c];
      yield;
    }
  }
  return found;
}

function* sampleGradients(of, { x, y, n, length }, { indices }) {
  const g = of.take(), size = of.shape.nParams;
  const k = whole("the number of indices", indices?.length, 1);
  const gradients = new Float32Array(k * size), losses = new Float64Array(k);
  for (let j = 0; j < k; j++) {
    const i = whole("an index of a training image", indices[j], 0, n - 1);
    losses[j] = yield* of.gradient(of.w, { x: x + i * length, y: y + i, n: 1, length }, g);
    gradients.set(of.shape.unpack(of.at(g)), j * size);
  }
  return { gradients, losses };
}

function* path(of, on, { to, alphas, labels }) {
  const end = of.take(of.shape.pack(to, "to")), here = of.take(), { n } = of.test;
  const numbers = Array.from(alphas), predicted = new Uint8Array(labels ? numbers.length * n : 0);
  const result = { alphas: vector("alphas", numbers, numbers.length) };
  for (const name of ["train", "test"]) {
    const loss = [], accuracy = [];
    for (const [i, alpha] of numbers.entries()) {
      of.combine(here, 1 - alpha, of.w, alpha, end);
      const own = labels && name === "test" && predicted.subarray(i * n, (i + 1) * n);
      [loss[i], accuracy[i]] = yield* evaluation(of.passes, here, of[name], own);
    }
    result[name] = { loss, accuracy };
  }
  return { ...result, labels: predicted };
}

// A random direction in which what feeds one unit is as long as it is in w; biases stay.
function filterNormalised(of, random) {
  const { shape } = of, w = of.at(of.w), v = shape.drawn(() => random.normal());
  const squares = shape.layers.map(({ outputs }) => [0, 1].map(() => new Float64Array(outputs)));
  shape.eachParameter((place, flat, l, j, i) => {
    v[place] *= i < 0 ? 0 : 1;
    squares[l][0][j] += i < 0 ? 0 : w[place] ** 2;
    squares[l][1][j] += v[place] ** 2;
  });
  shape.eachParameter((place, flat, l, j) => {
    v[place] *= Math.sqrt(squares[l][0][j] / squares[l][1][j]);
  });
  return v;
}

function* plane(of, on, { span, n, directions }) {
  real("span", span, { above: 0 });
  const coordinates = Array.from({ length: whole("n", n, 2, 201) }, (_, i) => i / (n - 1));
  coordinates.forEach((x, i) => { coordinates[i] = span * (2 * x - 1); });
  const random = of.random("directions"), here = of.take();
  const pair = [0, 1].map((i) => directions
    ? of.shape.pack(directions[i], "directions") : filterNormalised(of, random));
  const [x, y] = pair.map((v) => of.take(v));
  const loss = new Float32Array(n * n), accuracy = new Float32Array(n * n);
  for (let i = 0; i < n * n; i++) {
    of.combine(here, 1, of.w, coordinates[i % n], x);
    of.combine(here, 1, here, coordinates[Math.floor(i / n)], y);
    [loss[i], accuracy[i]] = yield* evaluation(of.passes, here, on);
  }
  return { coordinates, loss, accuracy, directions: pair.map((v) => of.shape.unpack(v)) };
}

function* distance(of, on, { to }) {
  const other = of.take(of.shape.pack(to, "to")), apart = of.take();
  of.combine(apart, 1, of.w, -1, other);
  return { value: of.norm(apart), norm: of.norm(of.w) };
}

// The measures, with the defaults of their options.
const ON = { split: "train", samples: undefined }, SEEDED = { ...ON, seed: 0 };
const MEASURES = {
  evaluate: [evaluate, { ...ON, labels: false }],
  gradient: [gradient, ON],
  hvp: [hvp, { ...ON, v: undefined }],
  eigenvalues: [eigenvalues, {
    ...SEEDED, k: 1, ends: "largest", tolerance: 1e-3, maxProducts: 100, vectors: false,
  }],
  spectrum: [spectrum, { ...SEEDED, vectors: 4, steps: 40 }],
  trace: [trace, { ...SEEDED, products: 30, probes: undefined }],
  sharpness: [sharpness, {
    ...SEEDED, kind: "worst_case", epsilon: 1e-3, starts: 1, iterations: undefined, equal: false,
    start: undefined,
  }],
  noise: [noise, { ...SEEDED, directions: 0 }],
  sampleGradients: [sampleGradients, { indices: undefined }],
  path: [path, {
    to: undefined, alphas: Array.from({ length: 25 }, (_, i) => -1 + i / 8), labels: false,
  }],
  plane: [plane, { ...SEEDED, span: 1, n: 21, directions: undefined }],
  distance: [distance, { to: undefined }],
};

// Measures a net at the weights that it has now, whatever becomes of them.
export function measure(net, name, given) {
  const [run, defaults] = MEASURES[oneOf("measure", name, Object.keys(MEASURES))];
  const chosen = options(given, defaults), seed = whole("seed", chosen.seed ?? 0, 0);
  const w = net.weights();
  return (function* () {
    const of = new Measurement(net, w, seed);
    try {
      return yield* run(of, of.split(chosen.split ?? "train", chosen.samples), chosen);
    } finally {
      of.close();
    }
  })();
}
