// Explorable: measured curves of test accuracy against B · η^a · (1 − m)^b · N^c, whose exponents
// the reader moves.
//
// `curves` are {lr, momentum, n_train, points, peaks}: `points` are rows of a batch size, the gain
// in test accuracy over the largest batch, in points, and its lowest and highest over the seeds;
// `peaks` has the best batch size of each seed, null where a seed has none.

import { interval, linear, mark, number, panel, polyline, rangesOf, stage } from "./shared.js";

export const START = {
  "curves": [[]],
  "provenance": [""],
  "lr": [0.0, -2, 2],
  "momentum": [0.0, -2, 2],
  "size": [0.0, -2, 2],
  "which": ["rates", "all", "rates", "sizes"]
};
const RANGE = rangesOf(START);
export const THEORY = { lr: -1, momentum: 1, size: -1 }; // B(1 − m)/(ηN) ≈ 1/g, equation (24)
const NAMES = Object.keys(THEORY);
const HEIGHT = 560; // px, of the two charts

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const logs = ({ lr, momentum, n_train: n }) => [lr, 1 - momentum, n].map(Math.log);
const known = (values) => values.filter((value) => value !== null);

// The logarithm of what is multiplied with B, of the exponents in the order of NAMES.
const shift = (curve, exponents) =>
  logs(curve).reduce((sum, value, i) => sum + value * exponents[i], 0);

// How far apart the peaks are, of pairs of a curve and its peak: the standard deviation of their
// logarithms on the abscissa, as a factor, and the last over the first.
export function spread(pairs, exponents) {
  const at = pairs.map(([curve, peak]) => Math.log(peak) + shift(curve, exponents));
  const centre = mean(at), variance = mean(at.map((value) => (value - centre) ** 2));
  return { deviation: Math.exp(Math.sqrt(variance)),
    range: Math.exp(Math.max(...at) - Math.min(...at)) };
}

// The exponents at which these peaks have the least standard deviation: least squares. Those of a
// quantity that is the same for all stay as they are `given`.
export function bestFit(pairs, given) {
  const rows = pairs.map(([curve]) => logs(curve));
  const free = [0, 1, 2].filter((i) => new Set(rows.map((row) => row[i])).size > 1);
  const means = free.map((i) => mean(rows.map((row) => row[i])));
  const x = rows.map((row) => free.map((i, k) => row[i] - means[k]));
  const y = pairs.map(([, peak]) => -Math.log(peak)), centre = mean(y);
  const dot = (first, second) => first.reduce((sum, value, i) => sum + value * second[i], 0);
  const column = (k) => x.map((row) => row[k]);
  const system = free.map((_, i) =>
    [...free.map((__, j) => dot(column(i), column(j))), dot(column(i), y.map((v) => v - centre))]);
  // Gauss–Jordan: the matrix is positive definite, so that no pivot is 0.
  for (const i of system.keys()) {
    system[i] = system[i].map((value) => value / system[i][i]);
    for (const j of system.keys())
      if (j !== i) system[j] = system[j].map((value, k) => value - system[j][i] * system[i][k]);
  }
  const found = [...given];
  free.forEach((i, k) => {
    found[i] = system[k].at(-1);
  });
  return { exponents: found, free };
}

function render({ model, el }) {
  const all = model.get("curves");
  const exponents = () => NAMES.map((name) => model.get(name));
  const shown = () => all.filter(({ n_train: n }) => model.get("which") === "all"
    || (n === all[0].n_train) === (model.get("which") === "rates"));
  const typical = (curve) => Math.exp(mean(known(curve.peaks).map(Math.log)));
  const pairs = () => shown().map((curve) => [curve, typical(curve)]);
  // The peaks of one seed, for each seed that has one on every curve.
  const bySeed = () => all[0].peaks
    .map((_, i) => shown().map((curve) => [curve, curve.peaks[i] ?? null])
      .filter(([, peak]) => peak !== null))
    .filter((each) => each.length === shown().length);
  const colourOf = ({ momentum, n_train: n }) =>
    (n !== all[0].n_train ? "green" : momentum ? "orange" : "blue");
  const nameOf = ({ lr, momentum, n_train: n }) => (n === all[0].n_train
    ? `η = ${number(lr)}${momentum ? `, m = ${momentum}` : ""}` : `N = ${n.toLocaleString("en")}`);
  const highest = 0.1 + Math.max(1, ...all.flatMap(({ points }) => points.map((row) => row[1])));
  let fitted = "";

  const page = stage(model, el, {
    title: "Curves that fall on each other, or not",
    description: "Two charts. Gain in test accuracy over the largest batch against the batch size "
      + "times powers of η, 1 − m and N; and below, on the same axis, the best batch size of each "
      + "curve.",
    legend: [["blue", "━", "m = 0"], ["orange", "━", "m = 0.9"], ["green", "━", "larger N"],
      ["ink", "◆", "best batch size, and its range over the seeds"]],
    note: `${model.get("provenance")}. Curves are means over the seeds. The curves of one N have `
      + "the same training images, so that no range holds how another training set would move a "
      + "peak. Nor do the intervals hold how far apart the batch sizes are: factors of 1.19 to "
      + "1.41 near the peaks.",
    height: () => HEIGHT,
    draw,
    update,
    table: () => [["learning rate", "momentum", "N", "batch size", "abscissa", "gain (points)",
      "lowest", "highest"],
    ...shown().flatMap((curve) => curve.points.map(([size, ...gains]) =>
      [curve.lr, curve.momentum, curve.n_train, size,
        size * Math.exp(shift(curve, exponents())), ...gains]))],
  });

  function update(name) {
    if (name) fitted = "";
    const { deviation, range } = spread(pairs(), exponents());
    const seeds = bySeed().map((each) => spread(each, exponents()).deviation);
    const { mean: centre, half } = interval(seeds);
    page.say(`Best batch sizes of ${shown().length} curves: on this axis their standard `
      + `deviation is a factor of ${number(deviation)} (seed by seed ${number(centre)} ± ${
        number(half, 2)}), `
      + `and the last is ${number(range)} times the first.${fitted}`);
    page.redraw();
  }
  function take(values, words) {
    NAMES.forEach((name, i) => model.set(name, values[i]));
    model.save_changes();
    fitted = words;
    update();
  }
  function fit() {
    const { exponents: found, free } = bestFit(pairs(), exponents());
    const seeds = bySeed().map((each) => bestFit(each, exponents()).exponents);
    const symbols = ["of η", "of 1 − m", "of N"];
    const each = free.map((i) => `${symbols[i]} ${number(found[i])} ± ${
      number(interval(seeds.map((values) => values[i])).half, 2)}`);
    const fixed = symbols.filter((_, i) => !free.includes(i));
    take(found, ` Best fit: the exponent ${each.join(", ")} (95 % over ${seeds.length} seeds).${
      fixed.length ? ` These curves say nothing of the exponent ${fixed.join(", ")}.` : ""}`);
  }

  function draw(pen, width, colours) {
    const list = shown(), left = width > 560 ? 130 : 110, across = width - left - 12;
    const scaled = list.map((curve) => Math.exp(shift(curve, exponents())));
    const values = list.flatMap(({ points }, i) => points.map(([size]) => size * scaled[i]));
    const range = [Math.min(...values) / 1.2, Math.max(...values) * 1.2];
    const high = 240, low = HEIGHT - high - 90;
    panel(pen, colours, [left, 24, across, high], range, [-1.5, highest],
      { x: "", y: "Gain in test accuracy, points", xlog: true, rows: 5 },
      (px, py) => list.forEach((curve, i) => {
        const points = curve.points.map(([size, gain]) => [px(size * scaled[i]), py(gain)]);
        polyline(pen, colours[colourOf(curve)], points, { width: 1.5 });
        for (const point of points) mark(pen, colours[colourOf(curve)], point, 2);
      }));
    const rows = [];
    panel(pen, colours, [left, 24 + high + 22, across, low], range, [0.1, 0.9],
      { x: "B ηᵃ (1 − m)ᵇ Nᶜ", y: "Best batch size, by curve", xlog: true, rows: 1 },
      (px, py) => list.forEach((curve, i) => {
        const y = py(0.9 - (0.8 * (i + 0.5)) / list.length), colour = colours[colourOf(curve)];
        const ends = [Math.min, Math.max].map((end) =>
          [px(end(...known(curve.peaks)) * scaled[i]), y]);
        polyline(pen, colour, ends);
        mark(pen, colour, [px(typical(curve) * scaled[i]), y], 5, { corners: 4 });
        rows.push([nameOf(curve), y]);
      }));
    Object.assign(pen, { fillStyle: colours.ink, textAlign: "right", globalAlpha: 1 });
    for (const [name, y] of rows) pen.fillText(name, left - 6, y);
  }

  const texts = ["a, exponent of η", "b, exponent of 1 − m", "c, exponent of N"];
  NAMES.forEach((name, i) => page.slider(name, texts[i], linear(...RANGE[name], 80)));
  page.choice("which", "Curves", RANGE.which, ["all", "Figure 10: η and m", "Figure 11: N"]);
  page.buttons({
    Theory: () => take(Object.values(THEORY), " Theory: 1/g of equation (24), for B ≪ N."),
    "Best fit": fit,
  });
  update();
  return () => page.over.abort();
}

export default { render };
