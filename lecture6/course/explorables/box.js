// Explorable: the sharpness of Definition 2 over the box of equation (3), for Figure 6's functions.
//
// They are convex, so the highest point of the box is one of its corners, and φ is exact. A is the
// identity, or one column a, for which A⁺x = a·x/|a|² and the box is a segment along a.

import { channels, geometric, linear, mark, number, panel, polyline, stage } from "./shared.js";

// Σ c_i w_i^(k_i), under the names of lecture6.toys.FIGURE_6.
export const FUNCTIONS = {
  "100x²": { c: [100], k: [2] },
  "x⁸": { c: [1], k: [8] },
  "100(x² + y²)": { c: [100, 100], k: [2, 2] },
  "100x² + y⁸": { c: [100, 1], k: [2, 8] },
};
export const value = ({ c, k }, w) => c.reduce((sum, ci, i) => sum + ci * w[i] ** k[i], 0);

// The column of this length at `angle` degrees to the x-axis; for a function of x alone, a number.
export const columnOf = ({ c }, angle, length) => (c.length === 1 ? [length]
  : [Math.cos, Math.sin].map((part) => length * part((angle * Math.PI) / 180)));

// Equations (2) and (3) with A = the identity (`column` null) or one column: φ in per cent, f(x),
// the highest f, the half-widths of the box in z, and its corners and highest corners, x + A z.
export function sharpness(f, x, epsilon, column) {
  const dot = (a, b) => a.reduce((sum, ai, i) => sum + ai * b[i], 0);
  const columns = column ? [column] : x.map((_, i) => x.map((_, j) => Number(i === j)));
  const half = columns.map((a) => epsilon * (Math.abs(dot(a, x) / dot(a, a)) + 1));
  let corners = [x];
  columns.forEach((a, i) => {
    corners = [1, -1].flatMap((sign) =>
      corners.map((corner) => corner.map((cj, j) => cj + sign * half[i] * a[j])));
  });
  const heights = corners.map((corner) => value(f, corner));
  const base = value(f, x), top = Math.max(...heights);
  const highest = corners.filter((_, i) => heights[i] >= top * (1 - 1e-12));
  return { phi: (100 * (top - base)) / (1 + base), base, top, half, corners, highest };
}

const place = (w) => (w.length > 1 ? `(${w.map((wi) => number(wi)).join(", ")})` : number(w[0]));

function render({ model, el }) {
  let handles = [], reach, f, x, column, found, toView, fromView, map;

  const page = stage(model, el, {
    title: "The box of the sharpness φ",
    description: "The chosen function around 0, as a curve or by bands of equal height, with the "
      + "position x, the box around it and the highest points of the box.",
    legend: [["blue", "●", "x"], ["green", "━", "the box, x + Az"],
      ["orange", "◆", "highest in it"]],
    note: "In each zᵢ the box (3) reaches ε(|(A⁺x)ᵢ| + 1) to both sides; φ (2) is how far f rises "
      + "in it, in per cent of 1 + f(x). The view zooms with the box. In the plot, x can be "
      + "dragged, and so can the end of a box along one column.",
    height: (width) => (f.c.length > 1 ? Math.min(width - 80, 370) : 230) + 64,
    draw,
    update,
    table: () => [["point", ...["x", "y"].slice(0, x.length), "f"],
      ...[["x", [x]], ["end or corner of the box", found.corners], ["highest", found.highest]]
        .flatMap(([name, points]) => points.map((w) => [name, ...w, value(f, w)]))],
  });

  function update() {
    f = FUNCTIONS[model.get("function")];
    const flat = f.c.length === 1, one = model.get("subspace") === "column";
    x = ["x", "y"].slice(0, f.c.length).map((name) => model.get(name));
    column = one ? columnOf(f, model.get("angle"), model.get("length")) : null;
    found = sharpness(f, x, model.get("epsilon"), column);
    if (!handles.some(({ held }) => held))
      reach = 1.25 * Math.max(...found.corners.flat().map(Math.abs));
    map = null;
    y.hidden = flat;
    length.hidden = random.hidden = !one;
    angle.hidden = flat || !one;
    const sides = found.half.map((half, i) =>
      `|z${found.half.length > 1 ? "₁₂"[i] : ""}| ≤ ${number(half)}`);
    page.say(`φ = ${number(found.phi)} %. At x = ${place(x)} f is `
      + `${number(found.base)}. With A = ${one ? place(column) : "the identity"} the box is `
      + `${sides.join(", ")}. It is highest at `
      + (found.highest.length > 2 ? "all its corners" : found.highest.map(place).join(" and "))
      + `, where f is ${number(found.top)}.`);
    page.redraw();
  }

  // Bands of equal height, the darker the higher.
  function bands(size, ink) {
    const canvas = Object.assign(document.createElement("canvas"), { width: size, height: size });
    const pen = canvas.getContext("2d"), image = pen.createImageData(size, size);
    const colour = channels(ink), top = value(f, [reach, reach]);
    const at = (pixel) => ((2 * pixel + 1) / size - 1) * reach;
    for (let i = 0; i < size * size; i++) {
      const height = value(f, [at(i % size), at(Math.floor(i / size))]); // f is even in y
      image.data.set([...colour, 8 * Math.floor(12 * Math.sqrt(height / top))], 4 * i);
    }
    pen.putImageData(image, 0, 0);
    return { canvas, size, ink };
  }
  function draw(pen, width, colours) {
    const { ink, blue, orange, green } = colours;
    const flat = f.c.length === 1, left = 64, top = 24, room = width - left - 16;
    const size = Math.floor(Math.min(room, 370));
    const range = [-reach, reach], highest = value(f, f.c.map(() => reach));
    const rows = flat ? [-0.08 * highest, highest] : range;
    const at = [left, top, flat ? room : size, flat ? 230 : size];
    panel(pen, colours, at, range, rows, { x: "x", y: flat ? "f(x)" : "y" }, (px, py) => {
      toView = (w) => [px(w[0]), py(flat ? value(f, w) : w[1])];
      fromView = (u, v) =>
        [(u - left) / at[2], 1 - (v - top) / at[3]].map((part) => (2 * part - 1) * reach);
      if (flat) {
        polyline(pen, ink, linear(-1, 1, 200).map((part) => toView([part * reach])));
        const [high, low] = found.corners.map(([end]) => px(end));
        Object.assign(pen, { fillStyle: green, globalAlpha: 0.25 });
        pen.fillRect(low, top, high - low, at[3]);
        pen.globalAlpha = 1;
        polyline(pen, green, [[low, py(0)], [high, py(0)]], { width: 4 });
      } else {
        if (map?.size !== size || map.ink !== ink) map = bands(size, ink);
        pen.drawImage(map.canvas, left, top);
        const around = column ? [0, 1] : [0, 1, 3, 2, 0];
        polyline(pen, green, around.map((i) => toView(found.corners[i])), { width: 4 });
      }
      mark(pen, blue, toView(x), 7);
      for (const w of found.highest) mark(pen, orange, toView(w), 7, { corners: 4 });
    });
  }

  // What is dragged: x, and the end of a column's box, which turns the column. The view stays until
  // it is let go.
  const clamp = (coordinate) => Number(Math.min(1, Math.max(-1, coordinate)).toPrecision(3));
  const turn = (dx, dy) =>
    model.set("angle", (Math.round((Math.atan2(dy, dx) * 180) / Math.PI) + 180) % 180);
  handles = [
    page.handle("position x", () => toView(x), (...to) => fromView(...to).slice(0, f.c.length)
      .forEach((coordinate, i) => model.set("xy"[i], clamp(coordinate))), update),
    page.handle("direction of a", () => (column?.length > 1 ? toView(found.corners[0]) : null),
      (...to) => turn(...fromView(...to).map((coordinate, i) => coordinate - x[i])), update),
  ];

  page.choice("function", "Function f", Object.keys(FUNCTIONS).map((name) => [name, name]));
  page.choice("subspace", "Matrix A", [["identity", "the identity"], ["column", "one column a"]]);
  page.slider("epsilon", "Size of the box, ε", geometric(-4, 0.5));
  page.slider("x", "Position x", linear(-1, 1, 40));
  const y = page.slider("y", "Position y", linear(-1, 1, 40));
  const angle = page.slider("angle", "Angle of a, degrees", linear(0, 180, 36));
  const length = page.slider("length", "Length of a", linear(0.1, 4, 39));
  const [random] = page.buttons({ "Random a": () => {
    const normal = () =>
      Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
    const entries = f.c.map(normal); // N(0, 1)
    if (entries.length > 1) turn(...entries);
    model.set("length", Number(Math.hypot(...entries).toPrecision(3)));
    model.save_changes();
  } });

  update();
  return () => page.over.abort();
}

export default { render };
