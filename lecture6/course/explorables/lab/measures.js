// What is measured of a net at weights w: generators, which yield between parts of their work and
// return the result. Definitions are those of lecture6's sharpness, curvature, noise and landscape.

import { oneOf, options, real, vector, whole } from "./checks.js";
import { ROWS, evaluation, parts } from "./network.js";
import { Random } from "./random.js";
import { tridiagonal } from "./tridiagonal.js";

const EPS = 2 ** -23; // of float32
const TOLERANCE = 0.01; // of φ: the gap that a search may leave, as a fraction of it

// A net and data, and what is computed of them in several parts. Vectors are places in memory.
class Measurement {
  constructor(net, w, train, test) {
    Object.assign(this, { passes: net.passes, shape: net.shape, heap: net.heap, train, test });
    Object.assign(this, { size: net.shape.size, kernel: net.passes.kernel, taken: [] });
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

  split(name, n) {
    const all = this[oneOf("split", name, ["train", "test"])];
    return { ...all, n: whole("samples", n ?? all.n, 1, all.n) };
  }

  dot(x, y) {
    return this.kernel.dot(x, y, this.size);
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
    return Math.sqrt(this.dot(there, there)) + EPS * Math.sqrt(this.dot(here, here));
  }

  // Lanczos with full reorthogonalisation from v: after each product the basis (places), T's
  // diagonal and what is beside it, which has one number more than T: the coupling to what is left.
  *lanczos(start, samples, most) {
    const basis = [], diagonal = [], beside = [];
    let next = start, norm = Math.sqrt(this.dot(next, next));
    while (basis.length < most) {
      this.combine(next, 1 / norm, next, 0, next);
      basis.push(next);
      const image = this.take();
      yield* this.product(this.w, next, samples, image);
      diagonal.push(this.dot(image, next));
      for (let twice = 0; twice < 2; twice++) // is enough (Kahan, Parlett)
        for (const one of basis) this.combine(image, 1, image, -this.dot(image, one), one);
      norm = Math.sqrt(this.dot(image, image));
      if (!Number.isFinite(norm)) throw new Error("a product with the Hessian is not finite at w");
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

function* evaluate(of, { split, samples, labels }) {
  const on = of.split(split, samples), predicted = labels ? new Uint8Array(on.n) : undefined;
  const [loss, accuracy] = yield* evaluation(of.passes, of.w, on, predicted);
  return { loss, accuracy, labels: predicted };
}

function* gradient(of, { split, samples }) {
  const g = of.take(), loss = yield* of.gradient(of.w, of.split(split, samples), g);
  return { loss, gradient: of.shape.unpack(of.at(g)), norm: Math.sqrt(of.dot(g, g)) };
}

function* hvp(of, { v, split, samples }) {
  const direction = of.take(of.shape.pack(v, "v")), out = of.take();
  yield* of.product(of.w, direction, of.split(split, samples), out);
  return { product: of.shape.unpack(of.at(out)) };
}

// The eigenvalues at one end of T, and how far they are from those of H.
function ritz({ diagonal, beside }, k, end) {
  const n = diagonal.length, { values, vectors } = tridiagonal(diagonal, beside.slice(0, -1));
  const residuals = values.map((_, i) => Math.abs(beside[n - 1] * vectors[i][n - 1]));
  const order = values.map((_, i) => (end === "largest" ? n - 1 - i : i)).slice(0, k);
  return order.map((i) => {
    // Neighbours may be as much nearer as they are uncertain; of none, nothing is known.
    const others = values.map((x, j) => (j === i ? Infinity : Math.abs(x - values[i]) - residuals[j]));
    const gap = n > 1 ? Math.min(...others) : 0, r = residuals[i];
    return { value: values[i], error: r * (r / Math.max(gap, r, 1e-300)), y: vectors[i] };
  });
}

function* eigenvalues(of, { k, ends, tolerance, maxProducts, split, samples, seed, vectors }) {
  whole("k", k, 1, of.shape.nParams);
  oneOf("ends", ends, ["largest", "smallest", "both"]);
  real("tolerance", tolerance, { least: 0 });
  const most = Math.min(whole("maxProducts", maxProducts, k), of.shape.nParams);
  const on = of.split(split, samples), random = new Random(whole("seed", seed, 0), "start");
  const wanted = ends === "both" ? ["largest", "smallest"] : [ends];
  const start = of.take(of.shape.drawn(() => random.normal())), pairs = {};
  const enough = (space) => {
    const size = space.diagonal.length, ended = size === most || space.beside.at(-1) === 0;
    if (!ended && (size < k || size % (size < 20 ? 2 : 5))) return false;
    for (const end of wanted) pairs[end] = ritz(space, k, end);
    const met = ({ value, error }) => error <= tolerance * Math.abs(value);
    return ended || wanted.every((end) => pairs[end].length === k && pairs[end].every(met));
  };
  const space = yield* iterate(of.lanczos(start, on, most), enough);
  // The vectors, and what rounding leaves open of their sum.
  const found = wanted.map((end) => pairs[end].map(({ y }) => {
    const place = of.take();
    space.basis.forEach((one, i) => of.combine(place, 1, place, y[i], one));
    return place;
  }));
  const largest = Math.max(...wanted.flatMap((end) => pairs[end].map(({ value }) => Math.abs(value))));
  const sum = of.take();
  for (const place of found[0]) of.combine(sum, 1, sum, 1, place);
  const rounding = (yield* of.rounding(sum, on)) + EPS * largest;
  const result = { largest: [], smallest: [], products: space.diagonal.length, converged: true };
  for (const end of wanted)
    for (const { value, error } of pairs[end]) {
      result[end].push({ value, error: error + rounding });
      result.converged &&= error + rounding <= tolerance * Math.abs(value);
    }
  if (vectors) result.vectors = found.flat().map((place) => of.shape.unpack(of.at(place)));
  return result;
}

function* spectrum(of, { vectors, steps, split, samples, seed }) {
  whole("vectors", vectors, 1);
  const most = Math.min(whole("steps", steps, 1), of.shape.nParams), nodes = [], weights = [];
  const on = of.split(split, samples), random = new Random(whole("seed", seed, 0), "start");
  for (let i = 0; i < vectors; i++) {
    const start = of.take(of.shape.drawn(() => random.normal()));
    const { diagonal, beside } = yield* iterate(of.lanczos(start, on, most), () => false);
    const found = tridiagonal(diagonal, beside.slice(0, -1));
    nodes.push(found.values);
    weights.push(found.vectors.map((y) => y[0] ** 2));
  }
  return { nodes, weights };
}

// The mean and its standard error.
function estimate(samples, rounding) {
  const n = samples.length, value = samples.reduce((sum, x) => sum + x, 0) / n;
  const squares = samples.reduce((sum, x) => sum + (x - value) ** 2, 0);
  return { value, stderr: Math.hypot(Math.sqrt(squares / (n * (n - 1))), rounding), n };
}

function* trace(of, { products, split, samples, seed, probes }) {
  const on = of.split(split, samples), random = new Random(whole("seed", seed, 0), "probes");
  const n = of.shape.nParams, count = whole("products", probes ? probes.length / n : products, 2);
  const v = of.take(), out = of.take(), each = [];
  for (let i = 0; i < count; i++) {
    const probe = probes
      ? of.shape.pack(probes.slice(i * n, (i + 1) * n), "probes")
      : of.shape.drawn(() => random.sign());
    of.at(v).set(probe);
    yield* of.product(of.w, v, on, out);
    each.push(of.dot(v, out));
  }
  return estimate(each, yield* of.rounding(v, on));
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
    if (!Number.isFinite(rise)) throw new Error("the loss in the box is not finite: take a smaller epsilon");
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

function* sharpness(of, given) {
  const { kind, epsilon, starts, equal, split, samples, seed, start } = given;
  const adaptive = oneOf("kind", kind, ["worst_case", "adaptive"]) === "adaptive";
  const iterations = whole("iterations", given.iterations ?? (adaptive ? 20 : 10), 1);
  real("epsilon", epsilon, { above: 0 });
  whole("starts", starts, 1);
  const w = equal ? of.take(of.shape.withEqualNorms(of.at(of.w))) : of.w;
  const random = new Random(whole("seed", seed, 0), "start"), on = of.split(split, samples);
  const search = new Search(of, on, w, epsilon, adaptive ? 0 : 1);
  [search.base] = yield* evaluation(of.passes, w, on);
  real("the loss at w", search.base, { above: -1 });
  let highest = search.best;
  for (let i = 0; i < starts; i++) {
    search.forget();
    const u = start ? of.shape.pack(start, "start") : of.shape.drawn(() => 2 * random.uniform() - 1);
    yield* search.ascend(u, iterations);
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

function* noise(of, { split, samples, directions, seed }) {
  const on = of.split(split, samples), g = of.take(), near = of.moved(of.w, 1);
  whole("seed", seed, 0);
  const at = function* (w) {
    const squares = yield* squaredGradients(of, w, on, g), mean = of.dot(g, g);
    const trace_ = Math.max(0, squares - mean);
    return { trace: trace_, gradientNorm2: mean, scale: trace_ / mean };
  };
  const moved = yield* at(near), result = yield* at(of.w);
  result.stderr = {};
  for (const name of ["trace", "gradientNorm2", "scale"])
    result.stderr[name] = Math.abs(result[name] - moved[name]) + EPS * result[name];
  if (directions) result.projections = yield* projections(of, on, directions, seed);
  return result;
}

// Vectors, one after another: `given`, or as many random unit vectors.
function* unitVectors(of, given, seed) {
  const random = new Random(seed, "directions"), n = of.shape.nParams;
  const count = whole("directions", given.length === undefined ? given : given.length / n, 1);
  for (let j = 0; j < count; j++)
    if (given.length) yield of.shape.pack(given.slice(j * n, (j + 1) * n), "directions");
    else {
      const v = of.shape.drawn(() => random.normal()), norm = Math.hypot(...v);
      yield v.map((x) => x / norm);
    }
}

// Every sample's gradient along some vectors: the derivatives of its loss along them.
function* projections(of, on, directions, seed) {
  const { passes, shape, heap } = of, vectors = [...unitVectors(of, directions, seed)];
  const { d, t, length } = passes.buffers.at(-1), k = vectors.length, u = of.take();
  const found = new Float32Array(on.n * k);
  for (let j = 0; j < k; j++) {
    of.at(u).set(vectors[j]);
    for (const [x, y, m, at] of parts(on)) {
      passes.forward(of.w, x, y, m);
      passes.forwardAlong(of.w, u, x, m);
      for (let i = 0; i < m; i++) {
        let sum = 0;
        for (let c = i * length; c < i * length + shape.classes; c++)
          sum += heap.floats[d + c] * heap.floats[t + c];
        found[(at + i) * k + j] = sum;
      }
      yield;
    }
  }
  return found;
}

function* sampleGradients(of, { indices }) {
  const { x, y, n, length } = of.train, g = of.take(), size = of.shape.nParams;
  whole("the number of indices", indices?.length, 1, n);
  const gradients = new Float32Array(indices.length * size), losses = [];
  for (const [k, i] of Array.from(indices).entries()) {
    whole("an index of a training image", i, 0, n - 1);
    const one = { x: x + i * length, y: y + i, n: 1, length };
    losses.push(yield* of.gradient(of.w, one, g));
    gradients.set(of.shape.unpack(of.at(g)), k * size);
  }
  return { gradients, losses: Float64Array.from(losses) };
}

function* path(of, { to, alphas, labels, split, samples }) {
  const end = of.take(of.shape.pack(to, "to")), here = of.take();
  const splits = split === "both" ? ["train", "test"] : [split];
  const result = { alphas: Float64Array.from(vector("alphas", alphas, alphas.length)) };
  for (const name of splits) result[name] = { loss: [], accuracy: [] };
  if (labels) result.labels = new Uint8Array(alphas.length * of.test.n);
  for (const [i, alpha] of Array.from(alphas).entries()) {
    of.combine(here, 1 - alpha, of.w, alpha, end);
    for (const name of splits) {
      const on = of.split(name, samples);
      const own = labels && name === "test"
        ? result.labels.subarray(i * of.test.n, (i + 1) * of.test.n) : undefined;
      const [loss, accuracy] = yield* evaluation(of.passes, here, on, own);
      result[name].loss.push(loss);
      result[name].accuracy.push(accuracy);
    }
  }
  return result;
}

// A random direction in which what feeds one unit is as long as it is in w; biases stay.
function filterNormalised(of, random) {
  const { shape } = of, w = of.at(of.w), v = shape.drawn(() => random.normal()), lengths = new Map();
  const add = (place, l, j) => {
    const key = l * 4096 + j, sums = lengths.get(key) ?? [0, 0];
    lengths.set(key, [sums[0] + w[place] ** 2, sums[1] + v[place] ** 2]);
  };
  shape.eachParameter((place, flat, l, j, i) => { if (i >= 0) add(place, l, j); });
  shape.eachParameter((place, flat, l, j, i) => {
    const [own, drawn] = lengths.get(l * 4096 + j);
    v[place] *= i < 0 ? 0 : Math.sqrt(own / drawn);
  });
  return v;
}

function* plane(of, { span, n, split, samples, seed, directions }) {
  real("span", span, { above: 0 });
  whole("n", n, 2, 201);
  whole("seed", seed, 0);
  const on = of.split(split, samples), here = of.take();
  const chosen = [0, 1].map((i) => directions
    ? of.shape.pack(directions[i], "directions")
    : filterNormalised(of, new Random(2 * seed + i, "directions")));
  const [x, y] = chosen.map((numbers) => of.take(numbers));
  const coordinates = Float64Array.from({ length: n }, (_, i) => span * ((2 * i) / (n - 1) - 1));
  const loss = new Float32Array(n * n), accuracy = new Float32Array(n * n);
  for (let i = 0; i < n * n; i++) {
    of.combine(here, 1, of.w, coordinates[i % n], x);
    of.combine(here, 1, here, coordinates[Math.floor(i / n)], y);
    [loss[i], accuracy[i]] = yield* evaluation(of.passes, here, on);
  }
  return { coordinates, loss, accuracy, directions: chosen.map((v) => of.shape.unpack(v)) };
}

function* distance(of, { to }) {
  const other = of.take(of.shape.pack(to, "to")), apart = of.take();
  of.combine(apart, 1, of.w, -1, other);
  return { value: Math.sqrt(of.dot(apart, apart)), norm: Math.sqrt(of.dot(of.w, of.w)) };
}

const ON = { split: "train", samples: undefined };
const KESKAR_ALPHAS = Array.from({ length: 25 }, (_, i) => -1 + i / 8);

// The measures, with the defaults of their options.
const MEASURES = {
  evaluate: [evaluate, { ...ON, labels: false }],
  gradient: [gradient, ON],
  hvp: [hvp, { ...ON, v: undefined }],
  eigenvalues: [eigenvalues, {
    ...ON, k: 1, ends: "largest", tolerance: 1e-3, maxProducts: 100, seed: 0, vectors: false,
  }],
  spectrum: [spectrum, { ...ON, vectors: 4, steps: 40, seed: 0 }],
  trace: [trace, { ...ON, products: 30, seed: 0, probes: undefined }],
  sharpness: [sharpness, {
    ...ON, kind: "worst_case", epsilon: 1e-3, starts: 1, iterations: undefined, equal: false,
    seed: 0, start: undefined,
  }],
  noise: [noise, { ...ON, directions: 0, seed: 0 }],
  sampleGradients: [sampleGradients, { indices: undefined }],
  path: [path, {
    ...ON, split: "both", to: undefined, alphas: KESKAR_ALPHAS, labels: false,
  }],
  plane: [plane, { ...ON, span: 1, n: 21, seed: 0, directions: undefined }],
  distance: [distance, { to: undefined }],
};

// Measures a net at the weights that it has now, whatever becomes of them.
export function measure(net, name, given) {
  const [run, defaults] = MEASURES[oneOf("measure", name, Object.keys(MEASURES))];
  const chosen = options(given, defaults);
  const of = new Measurement(net, net.weights(), net.train, net.test);
  return (function* () {
    try {
      return yield* run(of, chosen);
    } finally {
      of.close();
    }
  })();
}
