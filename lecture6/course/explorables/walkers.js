// Explorable: SGD walkers in a double well settle on the Gibbs law, equations (25) and (26).
//
// A step is w ← w − η (∇ℓ(w) + ξ/√B) with Cov ξ = σ² diag(1 + a, 1 − a), in mean-loss units. For
// a = 0 and η → 0 the density at rest is exp(−ℓ/T)/Z with T = η σ²/(2B): equation (25). The loss is
// lecture6.toys.TwoWells with round wells: curvature 1 and level 0 at (−1, 0), `curvature` and
// level −`depth` at (1, 0).

import { calm, channels, geometric, linear, number, panel, polyline, stage } from "./shared.js";

export const SIGMA = 16, SOFTNESS = 0.05, EDGE = 3.5, BINS = 70; // bins of w₁ from −EDGE to EDGE
const WIDTH = (2 * EDGE) / BINS;
const STEPS = 30, MILLISECONDS = 8; // of a frame, at most
const MEMORY = 40; // frames that the histogram is averaged over

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

// All of them at the bottom of the right well.
export const start = (n) => ({ x: new Float64Array(n).fill(1), y: new Float64Array(n) });

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
    if (isRight(well, x[i], y[i])) right += one;
  }
  return { masses, right };
}

// The same of exp(−ℓ/T)/Z, by the midpoint rule, out to seven standard deviations.
export function gibbs(well, t) {
  const masses = new Float64Array(BINS), cells = 6, dx = WIDTH / cells; // of a bin
  const reach = 7 * Math.sqrt(t / Math.min(...well.h)), lowest = Math.min(...well.level);
  const dy = Math.min(0.05, 0.5 * Math.sqrt(t / Math.max(...well.h)));
  const beyond = cells * Math.ceil(Math.max(0, 1 + reach - EDGE) / WIDTH);
  let total = 0, right = 0;
  for (let i = -beyond; i < BINS * cells + beyond; i++) {
    const x = (i + 0.5) * dx - EDGE;
    for (let y = dy / 2; y < reach; y += dy) {
      const mass = Math.exp((lowest - loss(well, x, y)) / t);
      total += mass;
      masses[Math.floor(i / cells)] += mass;
      if (isRight(well, x, y)) right += mass;
    }
  }
  return { masses: masses.map((mass) => mass / total), right: right / total };
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

const percent = (share) => `${number(100 * share, 2)} %`;
const middle = (bin) => (bin + 0.5) * WIDTH - EDGE;

function render({ model, el }) {
  let told = 0, walkers, normal, steps, well, t, law, average, frames, map;
  const compact = model.get("compact"), top = compact ? 22 : 130; // of the plane
  const aspect = compact ? 0.36 : 0.5, rise = compact ? 100 : 140; // of the plane; of the histogram

  const page = stage(model, el, {
    title: "SGD in a double well",
    description: `${compact ? "Two" : "Three"} charts over w₁, the coordinate between two wells: `
      + `${compact ? "" : "the loss; "}the plane of two weights with the walkers in it; and their `
      + "histogram beside the Gibbs law.",
    legend: [["blue", "●", "walkers in the left well"], ["orange", "●", "in the right well"],
      ["green", "━", "Gibbs law, equation (25)"]],
    note: `All walkers start in the right well. ℓ is the mean loss, σ = ${SIGMA}. The Gibbs law `
      + "exp(−ℓ/T)/Z with T = ησ²/(2B) is right only for isotropic noise (anisotropy 0) and short "
      + "steps (ηh small). Otherwise the histogram settles elsewhere.",
    height: (width) => (width - 54) * aspect + top + rise + 75,
    draw,
    update: prepare,
    table: () => [["middle of the bin of w₁", "walkers (%)", "Gibbs law (%)"],
      ...[...law.masses].map((mass, i) => [middle(i), 100 * average.masses[i], 100 * mass])],
  });

  function prepare() {
    well = wells(model.get("depth"), model.get("curvature"));
    t = temperature(model.get("lr"), model.get("batch_size"));
    law = gibbs(well, t);
    frames = 0;
    map = null;
    show(0);
  }
  function restart() {
    walkers = start(model.get("n_walkers"));
    normal = normals(model.get("seed"));
    steps = 0;
    prepare();
  }
  function advance(count, milliseconds = Infinity) {
    const [lr, batchSize, anisotropy] = ["lr", "batch_size", "anisotropy"].map((k) => model.get(k));
    const end = performance.now() + milliseconds;
    for (let i = 0; i < count && performance.now() < end; i++, steps++)
      step(walkers, well, { lr, batchSize, anisotropy }, normal);
    if (count) frames++; // where the walkers were put has no part in the mean
    const now = histogram(walkers, well), share = 1 / Math.min(frames || 1, MEMORY);
    if (frames < 2) average = now;
    average.masses.forEach((mass, i) => (average.masses[i] += share * (now.masses[i] - mass)));
    average.right += share * (now.right - average.right);
  }
  function tell() {
    const long = model.get("lr") * Math.max(...well.h), a = model.get("anisotropy");
    page.say(`T = ${number(t)}. In the right well: ${percent(average.right)} of `
      + `the walkers; ${percent(law.right)} by the Gibbs law, ${percent(laplace(well, t))} by `
      + `equation (26). After ${steps.toLocaleString("en")} steps the histogram is `
      + `${percent(distance(average.masses, law.masses))} away from the law (total variation).`
      + (a ? ` The noise is anisotropic, ${number(1 + a)} σ² along w₁: the law does not hold.` : "")
      + (long > 0.2 ? ` The steps are long: ηh = ${number(long)} in the narrower well makes the `
        + `variance there ${number(1 / (1 - long / 2))} times that of the law.` : ""));
  }

  function show(count) {
    advance(count);
    tell();
    page.redraw();
  }

  // Bands of equal loss, the darker the higher.
  function bands(width, height, ink) {
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const pen = canvas.getContext("2d"), image = pen.createImageData(width, height);
    const colour = channels(ink), scale = (2 * EDGE) / width;
    for (let i = 0; i < width * height; i++) {
      const across = (i % width) - width / 2, down = Math.floor(i / width) - height / 2;
      const rise = loss(well, across * scale, down * scale) - Math.min(...well.level);
      image.data.set([...colour, 6 * Math.min(12, Math.floor(rise / 0.2))], 4 * i);
    }
    pen.putImageData(image, 0, 0);
    return { canvas, width, ink };
  }
  function draw(pen, width, colours) {
    const { ink, blue, orange, green } = colours;
    const left = 44, across = Math.floor(width - left - 10), down = Math.round(across * aspect);
    const xs = [-EDGE, EDGE], ys = xs.map((x) => aspect * x), lowest = Math.min(...well.level);
    if (map?.width !== across || map.ink !== ink) map = bands(across, down, ink);
    if (!compact)
      panel(pen, colours, [left, 22, across, 80], xs, [lowest - 0.1, 2.5],
        { y: "Mean loss ℓ where w₂ = 0", rows: 2 }, (px, py) =>
          polyline(pen, ink, linear(...xs, 200).map((x) => [px(x), py(loss(well, x, 0))])));
    panel(pen, colours, [left, top, across, down], xs, ys, { y: "w₂" }, (px, py) => {
      pen.drawImage(map.canvas, left, top);
      const { x, y } = walkers;
      for (const [side, colour] of [blue, orange].entries()) {
        pen.fillStyle = colour;
        for (let i = 0; i < x.length; i++)
          if (Number(isRight(well, x[i], y[i])) === side)
            pen.fillRect(px(x[i]) - 1, py(y[i]) - 1, 2, 2);
      }
    });
    const highest = 160 * Math.max(...law.masses);
    panel(pen, colours, [left, top + 28 + down, across, rise], xs, [0, highest],
      { x: "w₁", y: "Walkers in a bin of w₁, %", rows: 3 }, (px, py) => {
        average.masses.forEach((mass, i) => {
          pen.fillStyle = isRight(well, middle(i), 0) ? orange : blue;
          const above = py(100 * mass), least = py(0);
          pen.fillRect(px(middle(i - 0.5)), above, across / BINS - 1, least - above);
        });
        const curve = [...law.masses].map((mass, i) => [px(middle(i)), py(100 * mass)]);
        polyline(pen, green, curve, { width: 3 });
      });
  }

  page.slider("lr", "Learning rate η", geometric(-2.3, -1));
  page.slider("batch_size", "Batch size B", [4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128]);
  if (!compact) {
    page.slider("anisotropy", "Anisotropy of the noise", linear(-0.9, 0.9, 18));
    page.slider("depth", "Right well: deeper by", linear(-0.3, 0.3, 12));
    page.slider("curvature", "Right well: curvature h", linear(1, 9, 16));
  }

  const [play] = page.buttons({
    Play: () => toggle(),
    "100 steps": () => show(100),
    "Start again": restart,
  });
  restart();
  if (calm()) show(500);
  const toggle = page.loop((now) => {
    advance(STEPS, MILLISECONDS);
    page.paint();
    if (now - told < 250) return;
    told = now;
    tell();
  }, (playing) => {
    play.textContent = playing ? "Pause" : "Play";
    tell();
  });
  return () => page.over.abort();
}

export default { render };
