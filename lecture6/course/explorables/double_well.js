// SGD's walkers in a double well, and what theory says of them. Explorable: walkers.js.
//
// A step is w ← w − η (∇ℓ(w) + ξ/√B) with Cov ξ = σ² diag(1 + a, 1 − a), in mean-loss units. For
// a = 0 and η → 0 the density at rest is exp(−ℓ/T)/Z with T = η σ²/(2B): equation (25). The loss is
// lecture6.toys.TwoWells with round wells: curvature 1 and level 0 at (−1, 0), `curvature` and
// level −`depth` at (1, 0).

export const SIGMA = 16;
export const EDGE = 3.5;
export const BINS = 70; // of w₁, from −EDGE to EDGE
const SOFTNESS = 0.05;
export const WIDTH = (2 * EDGE) / BINS;
// Of the sliders.

export const temperature = (lr, batchSize) => (lr * SIGMA ** 2) / (2 * batchSize);
export const wells = (depth, curvature) => ({ h: [1, curvature], level: [0, -depth] });

// How far the parabola of the left well lies above that of the right one.
const gap = ({ h, level }, x, y) =>
  level[0] - level[1] + 0.5 * (h[0] * ((x + 1) ** 2 + y * y) - h[1] * ((x - 1) ** 2 + y * y));
export const isRight = (well, x, y) => gap(well, x, y) > 0;
export function loss(well, x, y) {
  const apart = gap(well, x, y), right = well.level[1] + 0.5 * well.h[1] * ((x - 1) ** 2 + y * y);
  return right + Math.min(apart, 0) - SOFTNESS * Math.log1p(Math.exp(-Math.abs(apart) / SOFTNESS));
}

// Standard normal numbers: Box and Muller's method over the generator sfc32.
export function normals(seed) {
  let a = seed | 0, b = 0x9e3779b9 | 0, c = 0x243f6a88, d = 1;
  const uniform = () => {
    const t = (((a + b) | 0) + d) | 0;
    d = (d + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (((c << 21) | (c >>> 11)) + t) | 0;
    return ((t >>> 0) + 0.5) / 2 ** 32;
  };
  for (let i = 0; i < 16; i++) uniform();
  return () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
}

// All of them at one place.
export const start = (n, x = 1, y = 0) =>
  ({ x: new Float64Array(n).fill(x), y: new Float64Array(n).fill(y) });

export function step({ x, y }, well, { lr, batchSize, anisotropy }, normal) {
  const noise = (lr * SIGMA) / Math.sqrt(batchSize), { h } = well;
  const [alongX, alongY] = [1 + anisotropy, 1 - anisotropy].map((part) => noise * Math.sqrt(part));
  for (let i = 0; i < x.length; i++) {
    const p = 1 / (1 + Math.exp(gap(well, x[i], y[i]) / SOFTNESS)); // the weight of the left well
    const left = p * h[0], right = (1 - p) * h[1];
    x[i] -= lr * (left * (x[i] + 1) + right * (x[i] - 1)) + alongX * normal();
    y[i] -= lr * y[i] * (left + right) + alongY * normal();
  }
}

// Shares of the walkers in the bins, and in the right well.
export function histogram({ x, y }, well) {
  const masses = new Float64Array(BINS), one = 1 / x.length;
  let right = 0;
  for (let i = 0; i < x.length; i++) {
    masses[Math.floor((x[i] + EDGE) / WIDTH)] += one; // what is beyond the bins has no effect
    if (isRight(well, x[i], y[i])) right++;
  }
  return { masses, right: right / x.length };
}

// The same of exp(−ℓ/T)/Z, by the midpoint rule, out to seven standard deviations; and the mean
// times from one minimum to the other, `leftRight` and `rightLeft`. They are the exact ones of w₁
// in its own density p, as if w₂ had forgotten where it was (lecture6.equilibrium.escape_time):
// (1/T) ∫ 1/p(y) ∫ p dz dy, over y between the minima, and over z behind y.
export function gibbs(well, t) {
  const masses = new Float64Array(BINS), cells = 6, dx = WIDTH / cells; // of a bin
  const reach = 7 * Math.sqrt(t / Math.min(...well.h)), lowest = Math.min(...well.level);
  const dy = Math.min(0.05, 0.5 * Math.sqrt(t / Math.max(...well.h)));
  const beyond = cells * Math.ceil(Math.max(0, 1 + reach - EDGE) / WIDTH);
  const density = new Float64Array(BINS * cells + 2 * beyond);
  let total = 0, right = 0;
  for (let i = -beyond; i < BINS * cells + beyond; i++) {
    const x = (i + 0.5) * dx - EDGE;
    for (let y = dy / 2; y < reach; y += dy) {
      const mass = Math.exp((lowest - loss(well, x, y)) / t);
      total += mass;
      masses[Math.floor(i / cells)] += mass;
      density[i + beyond] += mass;
      if (isRight(well, x, y)) right += mass;
    }
  }
  let below = 0, leftRight = 0, rightLeft = 0;
  for (const [i, mass] of density.entries()) {
    const behind = below + mass / 2;
    if (Math.abs((i - beyond + 0.5) * dx - EDGE) < 1) {
      leftRight += (dx * dx * behind) / mass / t;
      rightLeft += (dx * dx * (total - behind)) / mass / t;
    }
    below += mass;
  }
  return { masses: masses.map((mass) => mass / total), right: right / total, leftRight, rightLeft };
}

// Kramers' two times, for a well with the curvature h each way: 2π/√(h |s|) · √(r/h) · exp(Δℓ/T),
// where s < 0 and r are the curvatures at the saddle along and across the way.
export function kramers(well, t) {
  const { h, level } = well;
  const leftOf = (x) => 1 / (1 + Math.exp(gap(well, x, 0) / SOFTNESS)); // the left well's weight
  let [low, high] = [-1, 1];
  for (let i = 0; i < 60; i++) {
    const x = (low + high) / 2, p = leftOf(x);
    if (p * h[0] * (x + 1) + (1 - p) * h[1] * (x - 1) > 0) low = x;
    else high = x;
  }
  const p = leftOf(low), apart = h[0] * (low + 1) - h[1] * (low - 1);
  const across = p * h[0] + (1 - p) * h[1];
  const along = across - (p * (1 - p) * apart ** 2) / SOFTNESS;
  const [leftRight, rightLeft] = h.map((own, i) => ((2 * Math.PI) / Math.sqrt(own * -along))
    * Math.sqrt(across / own) * Math.exp((loss(well, low, 0) - level[i]) / t));
  return { leftRight, rightLeft };
}

// The share of the left well a time after it was `first`, if walkers hop at the two rates.
export function twoRates({ leftRight, rightLeft }, first, time) {
  const rest = leftRight / (leftRight + rightLeft);
  return rest + (first - rest) * Math.exp(-time * (1 / leftRight + 1 / rightLeft));
}

// η and B after `name`, one of the two, was moved to `value`, and the other followed so that η/B
// stays the same. B is whole, and both stay in their ranges.
export function inStep(name, value, ratio, { lr, batch_size: sizes }) {
  const size = Math.round(name === "lr" ? value / ratio : value);
  const least = Math.max(sizes[0], Math.ceil(lr[0] / ratio - 1e-9));
  const most = Math.min(sizes.at(-1), Math.floor(lr.at(-1) / ratio + 1e-9));
  const batchSize = Math.min(most, Math.max(least, size));
  return { lr: Number((batchSize * ratio).toPrecision(12)), batch_size: batchSize };
}

// Equation (26), corrected, for the right well: P ∝ exp(−ℓ/T)/√det H, where √det H = h.
export const laplace = ({ h, level }, t) =>
  1 / (1 + (h[1] / h[0]) * Math.exp((level[1] - level[0]) / t));

// Total variation: the share that would have to move. What lies beyond the bins is one more bin.
export function distance(p, q) {
  const differences = p.map((mass, i) => mass - q[i]);
  const beyond = differences.reduce((sum, d) => sum + d, 0);
  return differences.reduce((sum, d) => sum + Math.abs(d), Math.abs(beyond)) / 2;
}
