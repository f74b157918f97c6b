// Explorable: Figure 5, one position at a time: loss and accuracy along a path between two nets.
//
// `paths` are pairs of a name and its rows: α and, of each quantity in QUANTITIES, the mean over
// the pairs of nets, the lowest and the highest. The accuracy is a fraction.

import { bounded, mark, number, panel, polyline, stage } from "./shared.js";

export const START = {
  "title": [""],
  "provenance": [""],
  "paths": [[]],
  "path": [""],
  "alpha": [0.0, -1, 2],
  "logarithmic": [false]
};
const QUANTITIES = ["training loss", "test loss", "training accuracy", "test accuracy"];
const LOOKS = [["blue", []], ["orange", [6, 4]]]; // training, test

function render({ model, el }) {
  const paths = model.get("paths"), left = 56;
  const alphas = paths[0][1].map(([alpha]) => alpha), ends = [alphas[0], alphas.at(-1)];
  let rows, row, across;

  const page = stage(model, el, {
    title: model.get("title"),
    description: "Two charts, one above the other: cross-entropy and accuracy against the position "
      + "α on a path between a net of small batches, at 0, and one of large batches, at 1.",
    legend: [["blue", "━", "training set"], ["orange", "╌", "test set"]],
    note: `${model.get("provenance")}. Lines are means over the pairs of nets, bands their range.`,
    height: () => 480,
    draw,
    update,
    table: () => [["path", "α", ...QUANTITIES.flatMap((name) =>
      [name, `${name}, lowest`, `${name}, highest`])],
    ...paths.flatMap(([name, each]) => each.map((at) => [name, ...at.flat()]))],
  });

  function update() {
    [, rows] = paths.find(([name]) => name === model.get("path"));
    const gaps = rows.map(([alpha]) => Math.abs(alpha - model.get("alpha")));
    row = rows[gaps.indexOf(Math.min(...gaps))];
    const [alpha, ...found] = row, means = found.map(([mean]) => mean);
    const [lowest] = rows.reduce((best, each) => (each[1][0] < best[1][0] ? each : best));
    const where = { 0: ", at the small batch's net", 1: ", at the large batch's net" }[alpha] ?? "";
    page.say(`At α = ${number(alpha)}${where}: loss ${number(means[0])} in training, `
      + `${number(means[1])} in the test; accuracy ${number(100 * means[2])} and `
      + `${number(100 * means[3])} %. The training loss is lowest at α = ${number(lowest)}.`);
    page.redraw();
  }

  function draw(pen, width, colours) {
    across = width - left - 12;
    const log = model.get("logarithmic");
    const all = rows.flatMap(([, train, test]) => [...train, ...test]);
    const [least, most] = [Math.min(...all), Math.max(...all)];
    const losses = [log ? least / 1.2 : 0, most * (log ? 1.2 : 1.03)];
    const charts = [[24, 190, losses, "Cross-entropy", log, [0, 1], 1],
      [250, 175, [0, 100], "Accuracy, %", false, [2, 3], 100]];
    for (const [top, height, ys, y, ylog, quantities, factor] of charts) {
      const x = top > 100 ? "Position α (small batch 0, large batch 1)" : "";
      panel(pen, colours, [left, top, across, height], ends, ys, { x, y, ylog }, (px, py) => {
        for (const alpha of [0, 1])
          polyline(pen, colours.ink, [[px(alpha), top], [px(alpha), top + height]],
            { width: 1, dash: [2, 3] });
        quantities.forEach((q, i) => {
          const [colour, dash] = LOOKS[i];
          const at = (k) => rows.map(([alpha, ...found]) => [px(alpha), py(factor * found[q][k])]);
          band(pen, colours[colour], at(1), at(2));
          polyline(pen, colours[colour], at(0), { dash });
        });
        polyline(pen, colours.ink, [[px(row[0]), top], [px(row[0]), top + height]], { width: 1 });
        quantities.forEach((q, i) => mark(pen, colours[LOOKS[i][0]],
          [px(row[0]), py(factor * row[q + 1][0])], 6, { corners: i ? 4 : 16 }));
      });
    }
  }
  function band(pen, colour, lower, upper) {
    pen.beginPath();
    for (const point of [...lower, ...upper.reverse()]) pen.lineTo(...point);
    Object.assign(pen, { fillStyle: colour, globalAlpha: 0.15 });
    pen.fill();
    pen.globalAlpha = 1;
  }

  const place = (alpha) => left + ((alpha - ends[0]) / (ends[1] - ends[0])) * across;
  page.handle("Position α", () => [place(model.get("alpha")), 238], (x) => {
    const alpha = ends[0] + ((x - left) / across) * (ends[1] - ends[0]);
    model.set("alpha", bounded(alpha, ends));
  });
  page.slider("alpha", "Position α", alphas);
  page.choice("path", "Path", paths.map(([name]) => name));
  page.choice("logarithmic", "Loss axis", [false, true], ["linear", "logarithmic"]);
  update();
  return () => page.over.abort();
}

export default { render };
