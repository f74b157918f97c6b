// Explorable: the noise scale g of equation (24), the best batch size that one g* predicts, and
// what was measured at these settings, if it was.
//
// `curves` are those of collapse.js; `g_star` is the g* of the prediction.

import {
  curves as named, geometric, linear, mark, number, panel, polyline, rangesOf, stage,
} from "./shared.js";

export const START = {
  "curves": [[]],
  "provenance": [""],
  "g_star": [1.0, 0.000001, 1000000],
  "lr": [1.0, 0.01, 3],
  "batch_size": [32, 1, 512],
  "n_train": [1000, 1000, 60000],
  "momentum": [0.0, 0, 0.9]
};
const RANGE = rangesOf(START);
const LOWEST = -1.5; // points of test accuracy; curves go far below, where nets do not train

// g of equation (24), of batches that are drawn without replacement.
export const noiseScale = (lr, size, n, momentum) => (lr * (n / size - 1)) / (1 - momentum);

// The gain at this batch size on a curve, on a straight line in log B between the measured ones, or
// null where it ends.
export function gainAt(points, size) {
  const next = points.findIndex(([other]) => other >= size);
  if (next < 0 || (next === 0 && points[0][0] > size)) return null;
  if (points[next][0] === size) return points[next][1];
  const [[b0, y0], [b1, y1]] = points.slice(next - 1, next + 1);
  return y0 + (y1 - y0) * (Math.log(size / b0) / Math.log(b1 / b0));
}

const nameOf = ({ lr, momentum, n_train: n }) =>
  `η = ${number(lr)}, m = ${momentum}, N = ${n.toLocaleString("en")}`;

function render({ model, el }) {
  const all = model.get("curves"), gStar = model.get("g_star");
  const settings = () => ["lr", "batch_size", "n_train", "momentum"].map((name) => model.get(name));
  const highest = 0.1 + Math.max(1, ...all.flatMap(({ points }) => points.map((row) => row[3])));
  // How far a curve is from the settings, whatever the batch size; and the nearest curve.
  const far = (curve) => Math.abs(Math.log(curve.lr / model.get("lr")))
    + Math.abs(Math.log(curve.n_train / model.get("n_train")))
    + Math.abs(Math.log((1 - curve.momentum) / (1 - model.get("momentum"))));
  const nearest = () => all.reduce((a, b) => (far(b) < far(a) ? b : a));
  const measured = () => all.find((curve) => far(curve) < 1e-6);
  const predicted = () => {
    const [lr, , n, momentum] = settings();
    return Math.max(1, (lr * n) / (gStar * (1 - momentum)));
  };

  const page = stage(model, el, {
    title: "The noise scale, its prediction, and what was measured",
    description: "Two charts against the batch size. The noise scale g at the settings chosen, "
      + "with the one best g*; and the measured gain in test accuracy over the largest batch, "
      + "with the best batch size that g* predicts.",
    legend: [["blue", "━", "g"], ["green", "┅", "g*, and the best batch size that it predicts"],
      ["orange", "━", "measured"], ["ink", "◆", "the batch size chosen"]],
    note: `${model.get("provenance")}. The band is the range over the seeds.`,
    height: (width) => (width > 560 ? 290 : 550),
    draw,
    update,
    table: () => {
      const [lr, , n, momentum] = settings(), curve = measured();
      const sizes = curve?.points ?? [[model.get("batch_size"), "", "", ""]];
      return [["learning rate", "momentum", "N", "batch size", "g", "gain (points)", "lowest",
        "highest"], ...sizes.map(([size, ...gains]) =>
        [lr, momentum, n, size, noiseScale(lr, size, n, momentum), ...gains])];
    },
  });

  function update() {
    const [lr, size, n, momentum] = settings(), g = noiseScale(lr, size, n, momentum);
    const curve = measured(), gain = curve && gainAt(curve.points, size);
    const best = curve && curve.points.reduce((a, b) => (b[1] > a[1] ? b : a));
    const found = curve
      ? `Measured, it is ${number(best[0])}${gain === null ? `; B = ${size} was not measured.`
        : `; at B = ${size} the gain is ${number(gain, 2)} points.`}`
      : `Not measured: ${nameOf({ lr, momentum, n_train: n })}.${all.length
        ? ` The grey curve is the nearest that was: ${nameOf(nearest())}.` : ""}`;
    page.say(`g = η (N/B − 1)/(1 − m) = ${number(lr)} · (${n.toLocaleString("en")}/${size} − 1)/${
      number(1 - momentum)} = ${number(g)}. With g* = ${number(gStar)} the best batch size would `
      + `be ${number(predicted())}. ${found}`);
    page.redraw();
  }

  function draw(pen, width, colours) {
    const side = width > 560, left = 62, across = side ? width / 2 - left - 12 : width - left - 12;
    const [lr, size, n, momentum] = settings(), best = predicted(), curve = measured();
    const range = [0.8, Math.max(1300, 1.5 * best)];
    const scale = (b) => noiseScale(lr, b, n, momentum);
    // All states lie on one chart of g, so that a slider moves the curve and not the axis.
    panel(pen, colours, [left, 24, across, 220], range, [3e-3, 4e6],
      { x: "Batch size B", y: "Noise scale g", xlog: true, ylog: true, rows: 5 }, (px, py) => {
        const sizes = Array.from({ length: 61 }, (_, i) => 0.999 * n ** (i / 60));
        polyline(pen, colours.green, [[px(range[0]), py(gStar)], [px(range[1]), py(gStar)]],
          { dash: [5, 4] });
        named(pen, [{ points: sizes.map((b) => [px(b), py(scale(b))]), colour: colours.blue }], 0);
        mark(pen, colours.ink, [px(size), py(scale(size))], 7, { corners: 4 });
        label(pen, colours.green, `g* = ${number(gStar)}`, px(range[0]) + 6, py(gStar) - 9);
      });
    const at = side ? [width / 2 + left, 24, across, 220] : [left, 310, across, 190];
    panel(pen, colours, at, range, [LOWEST, highest], { x: "Batch size B",
      y: "Gain in test accuracy, points", xlog: true, rows: 5 },
    (px, py) => {
      const line = [at[1], at[1] + at[3]].map((y) => [px(best), y]);
      polyline(pen, colours.green, line, { dash: [5, 4] });
      if (curve) gains(pen, colours, curve, px, py);
      else if (all.length) {
        const { points } = nearest(), [, top, , tall] = at;
        pen.globalAlpha = 0.5;
        polyline(pen, colours.ink, points.map(([b, gained]) => [px(b), py(gained)]));
        pen.globalAlpha = 1;
        label(pen, colours.ink, `grey: ${nameOf(nearest())}`, at[0] + 8, top + tall - 30);
      }
      const gain = curve && gainAt(curve.points, size);
      const height = Math.max(LOWEST + 0.1, gain ?? LOWEST);
      mark(pen, colours.ink, [px(size), py(height)], 7, { corners: 4, hollow: height !== gain });
      if (!curve || gain === null)
        label(pen, colours.ink, "not measured", at[0] + 8, at[1] + at[3] - 14);
      else if (height !== gain)
        label(pen, colours.ink, "below this chart", at[0] + 8, at[1] + at[3] - 30);
    });
  }
  function gains(pen, { orange }, { points }, px, py) {
    const edge = (column) => points.map((row) => [px(row[0]), py(row[column])]);
    pen.globalAlpha = 0.2;
    pen.fillStyle = orange;
    pen.beginPath();
    for (const point of [...edge(2), ...edge(3).reverse()]) pen.lineTo(...point);
    pen.fill();
    pen.globalAlpha = 1;
    polyline(pen, orange, edge(1));
    for (const point of edge(1)) mark(pen, orange, point, 3);
  }
  function label(pen, colour, text, x, y) {
    Object.assign(pen, { fillStyle: colour, textAlign: "left", textBaseline: "middle" });
    pen.fillText(text, x, y);
  }

  const sorted = (values) => [...new Set(values)].sort((a, b) => a - b);
  const column = (name) => all.map((curve) => curve[name]);
  const rates = geometric(...RANGE.lr).filter((rate) => rate <= RANGE.lr[1]);
  page.slider("lr", "Learning rate η", sorted([...rates, ...column("lr")]));
  page.slider("batch_size", "Batch size B",
    sorted(linear(0, Math.log2(RANGE.batch_size[1]), 27).map((power) => Math.round(2 ** power))));
  page.slider("n_train", "Training images N", sorted([...geometric(...RANGE.n_train)
    .filter((n) => n <= Math.max(...column("n_train"))), ...column("n_train")]),
  { show: (n) => n.toLocaleString("en") });
  page.choice("momentum", "Momentum m", sorted(column("momentum")));
  page.buttons({ "The nearest that was measured": () => {
    if (!all.length) return;
    const { lr, momentum, n_train: n } = nearest();
    Object.entries({ lr, momentum, n_train: n }).forEach(([name, value]) => model.set(name, value));
    model.save_changes();
  } });
  update();
  return () => page.over.abort();
}

export default { render };
