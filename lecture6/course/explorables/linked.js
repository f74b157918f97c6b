// Explorable: Figure 7, linked: choose a batch size, and see it in every chart.
//
// `nets` are pairs of a name and its rows, one a batch size: B, test accuracy in %, training loss,
// φ in % at the first ε, at the second, …; means over the seeds. `epsilons` are these ε.

import { mark, number, panel, polyline, stage } from "./shared.js";

export const START = {
  "title": [""],
  "provenance": [""],
  "nets": [[]],
  "epsilons": [[]],
  "net": [""],
  "epsilon": [0.001, 0, 1],
  "batch_size": [256, 1, 1000000]
};
// Spearman's rank correlation of values without ties.
export function rankCorrelation(first, second) {
  const ranks = (values) => values.map((value) => values.filter((other) => other < value).length);
  const [a, b] = [ranks(first), ranks(second)], n = a.length;
  const squares = a.reduce((sum, rank, i) => sum + (rank - b[i]) ** 2, 0);
  return 1 - (6 * squares) / (n * (n * n - 1));
}

function render({ model, el }) {
  const nets = model.get("nets"), epsilons = model.get("epsilons");
  let rows, chosen, phi, marked = [0, 0], inPixels = () => 0;

  const page = stage(model, el, {
    title: model.get("title"),
    description: "Four charts. Test accuracy, sharpness φ and training loss against the batch "
      + "size, and test accuracy against φ; the batch size chosen is marked in each.",
    legend: [["blue", "●", "a batch size"], ["orange", "◆", "the one chosen"]],
    note: `${model.get("provenance")}. The curve of the last chart goes from the smallest batch `
      + "to the largest.",
    height: (width) => (width > 560 ? 500 : 760),
    draw,
    update,
    table: () => [["net", "batch size", "test accuracy (%)", "training loss",
      ...epsilons.map((epsilon) => `φ (%) at ε = ${epsilon}`)],
    ...nets.flatMap(([name, each]) => each.map((row) => [name, ...row]))],
  });

  function update() {
    [, rows] = nets.find(([name]) => name === model.get("net"));
    phi = 3 + epsilons.indexOf(model.get("epsilon"));
    const gaps = rows.map(([size]) => Math.abs(Math.log(size / model.get("batch_size"))));
    chosen = rows[gaps.indexOf(Math.min(...gaps))];
    const column = (i) => rows.map((row) => row[i]);
    const [withAccuracy, withLoss] = [1, 2].map((i) => rankCorrelation(column(i), column(phi)));
    page.say(`Batch size ${number(chosen[0], 6)}: test accuracy ${number(chosen[1])} %, `
      + `φ = ${number(chosen[phi])} % at ε = ${model.get("epsilon")}, training loss `
      + `${number(chosen[2])}. Over these ${rows.length} batch sizes the rank correlation of φ `
      + `with the test accuracy is ${number(withAccuracy, 2)}, with the training loss `
      + `${number(withLoss, 2)}.`);
    page.redraw();
  }

  // [left, top, width, height] of the charts: three in a column, and one beside or below them.
  function places(width) {
    const side = width > 560, left = 62, across = side ? width / 2 - left - 10 : width - left - 12;
    const column = [0, 1, 2].map((i) => [left, 24 + 152 * i, across, 108]);
    return [...column, side ? [width / 2 + left, 24, across, 412] : [left, 510, across, 205]];
  }
  function draw(pen, width, colours) {
    const stretch = (values, log) => {
      const [low, high] = [Math.min(...values), Math.max(...values)];
      if (log) return [low / 1.5, high * 1.5];
      const more = 0.12 * (high - low || 1);
      return [low - more, high + more];
    };
    const charts = [[0, 1], [0, phi], [0, 2], [phi, 1]];
    const labels = { 0: "Batch size", 1: "Test accuracy, %", 2: "Training loss" };
    places(width).forEach((at, i) => {
      const [u, v] = charts[i], logs = [u === 0 || u === phi, v === phi || v === 2];
      const [xs, ys] = [u, v].map((column, j) => stretch(rows.map((row) => row[column]), logs[j]));
      const label = (column) => labels[column] ?? "Sharpness φ, %";
      const axes = { x: i > 1 ? label(u) : "", y: label(v), xlog: logs[0], ylog: logs[1],
        rows: at[3] / 35 };
      panel(pen, colours, at, xs, ys, axes, (px, py) => {
        const points = rows.map((row) => [px(row[u]), py(row[v])]);
        polyline(pen, colours.blue, points, { width: i > 2 ? 1 : 2 });
        for (const point of points) mark(pen, colours.blue, point, 4);
        mark(pen, colours.orange, [px(chosen[u]), py(chosen[v])], 8, { corners: 4 });
        if (i === 0) [inPixels, marked] = [px, [px(chosen[u]), py(chosen[v])]];
        if (i > 2) name(pen, colours.ink, at, [px(chosen[u]), py(chosen[v])]);
      });
    });
  }
  function name(pen, ink, [left, , width], [u, v]) {
    const late = u > left + width / 2;
    Object.assign(pen, { fillStyle: ink, textAlign: late ? "right" : "left" });
    pen.fillText(`B = ${number(chosen[0], 6)}`, u + (late ? 10 : -10), v - 18);
  }

  const handle = page.handle("Batch size", () => marked, (x) => {
    const gaps = rows.map(([size]) => Math.abs(inPixels(size) - x));
    // An arrow key goes to the next batch size, however far off that is.
    const next = handle.held ? gaps.indexOf(Math.min(...gaps))
      : rows.indexOf(chosen) + Math.sign(Math.round(x - marked[0]));
    model.set("batch_size", (rows[next] ?? chosen)[0]);
  });
  const all = [...new Set(nets.flatMap(([, each]) => each.map(([size]) => size)))];
  page.slider("batch_size", "Batch size", all.sort((a, b) => a - b),
    { show: (value) => number(value, 6) });
  page.choice("net", "Net", nets.map(([each]) => each));
  page.choice("epsilon", "ε of the box", epsilons);
  update();
  return () => page.over.abort();
}

export default { render };
