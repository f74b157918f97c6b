// Explorable: the sharpness of Definition 2 over the box of equation (3), for Figure 6's functions.
//
// They are convex, so the highest point of the box is one of its corners, and φ is exact. A is the
// identity, or one column a, for which A⁺x = a·x/|a|² and the box is a segment along a.

import {
  bounded, channels, curves, geometric, linear, mark, number, panel, polyline, rangesOf, stage,
} from "./shared.js";

export const START = {
  "function": ["100x² + y⁸", "100x²", "x⁸", "100(x² + y²)", "100x² + y⁸"],
  "epsilon": [0.001, 0.0001, 3.2],
  "x": [0.0, -1, 1],
  "y": [0.0, -1, 1],
  "subspace": ["identity", "identity", "column"],
  "angle": [30.0, 0, 180],
  "length": [1.0, 0.1, 4]
};
const RANGE = rangesOf(START);

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

// Equations (2) and (3) with A = the identity (`column` null) or one column: φ in percent, f(x),
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

// The ε at which the two functions are equally sharp around x, from below: their φ changes places.
export function crossings(f, g, x, column) {
  const apart = (e) => sharpness(f, x, e, column).phi - sharpness(g, x, e, column).phi;
  const grid = linear(LOW, HIGH, 90).map((e) => 10 ** e), found = [];
  for (let i = 1; i < grid.length; i++) {
    let [low, high] = [grid[i - 1], grid[i]];
    if (!(apart(low) * apart(high) < 0)) continue;
    const sign = Math.sign(apart(low));
    for (let halved = 0; halved < 40; halved++) {
      const middle = Math.sqrt(low * high);
      if (sign * apart(middle) > 0) low = middle;
      else high = middle;
    }
    found.push(Math.sqrt(low * high));
  }
  return found;
}

const [LOW, HIGH] = RANGE.epsilon.map(Math.log10);
// What holds every box: with the identity it reaches to 1 + 3.2 (1 + 1), with a column of length 4
// to √2 + 3.2 (√2 + 4).
const RULERS = { identity: 8, column: 20 };

const place = (w) => (w.length > 1 ? `(${w.map((wi) => number(wi)).join(", ")})` : number(w[0]));

function render({ model, el }) {
  let handles = [], reach, f, other, x, column, found, compared, flips, toView, fromView;
  const maps = new Map();

  const page = stage(model, el, {
    title: "The box of the sharpness φ",
    description: "Two functions around 0 through a magnifier, as curves or by bands of equal "
      + "height, with the position x, the box around it and the highest points of the box; the "
      + "box on a fixed ruler; and φ of both functions against ε.",
    legend: [["blue", "●", "x"], ["green", "━", "the box, x + Az"],
      ["orange", "◆", "highest in it, for the function chosen"], ["purple", "◆", "for the other"]],
    note: "In each zᵢ the box (3) reaches ε(|(A⁺x)ᵢ| + 1) to both sides; φ (2) is how far f rises "
      + "in it, in percent of 1 + f(x). The magnifier zooms with the box; the ruler stays. In "
      + "the magnifier of the function chosen, x can be dragged, and so can the end of a box along "
      + "one column.",
    height: (width) => {
      const { phi: [, top, , tall] } = places(width);
      return top + tall + 40;
    },
    draw,
    update,
    table: () => [["point", ...["x", "y"].slice(0, x.length), "f"],
      ...[["x", [x]], ["end or corner of the box", found.corners], ["highest", found.highest]]
        .flatMap(([name, points]) => points.map((w) => [name, ...w, value(f, w)])),
      ...compared.highest.map((w) => [`highest, of ${other}`, ...w, value(FUNCTIONS[other], w)])],
  });

  function update() {
    f = FUNCTIONS[model.get("function")];
    const flat = f.c.length === 1, one = model.get("subspace") === "column";
    x = ["x", "y"].slice(0, f.c.length).map((name) => model.get(name));
    column = one ? columnOf(f, model.get("angle"), model.get("length")) : null;
    found = sharpness(f, x, model.get("epsilon"), column);
    other = Object.keys(FUNCTIONS).find((name) => FUNCTIONS[name] !== f
      && FUNCTIONS[name].c.length === f.c.length);
    compared = sharpness(FUNCTIONS[other], x, model.get("epsilon"), column);
    flips = crossings(f, FUNCTIONS[other], x, column);
    if (!handles.some(({ held }) => held))
      reach = 1.25 * Math.max(...found.corners.flat().map(Math.abs));
    maps.clear();
    y.hidden = flat;
    length.hidden = random.hidden = !one;
    angle.hidden = flat || !one;
    const sides = found.half.map((half, i) =>
      `|z${found.half.length > 1 ? "₁₂"[i] : ""}| ≤ ${number(half)}`);
    page.say(`φ = ${number(found.phi)} %. At x = ${place(x)} f is `
      + `${number(found.base)}. With A = ${one ? place(column) : "the identity"} the box is `
      + `${sides.join(", ")}. It is highest at `
      + (found.highest.length > 2 ? "all its corners" : found.highest.map(place).join(" and "))
      + `, where f is ${number(found.top)}. For ${other} φ = ${number(compared.phi)} %; `
      + (flips.length
        ? `the two change places at ε = ${flips.map((e) => number(e)).join(" and ")}.`
        : found.phi === compared.phi ? "the two are equally sharp."
          : `${found.phi > compared.phi ? model.get("function") : other} is the sharper whatever ε.`
      ));
    page.redraw();
  }

  // [left, top, width, height] of the charts. On a phone only the function chosen is magnified.
  function places(width) {
    const flat = f.c.length === 1, wide = width > 560, left = 64, top = 24;
    const half = wide ? width / 2 - left - 16 : width - left - 16;
    const magnified = flat ? [[left, top, width - left - 16, 200]]
      : wide ? [[left, top, half, half], [width / 2 + left, top, half, half]]
        : [[left, top, half, half]];
    const below = top + magnified[0][3] + 64, tall = flat ? 60 : wide ? half * 0.7 : 150;
    const ruler = [left, below, flat ? half : tall, tall];
    const phi = wide ? [width / 2 + left, below, half, flat ? 160 : tall]
      : [left, below + tall + 64, half, 160];
    return { magnified, ruler, phi };
  }
  // Bands of equal height, the darker the higher.
  function bands(g, size, ink) {
    const canvas = Object.assign(document.createElement("canvas"), { width: size, height: size });
    const pen = canvas.getContext("2d"), image = pen.createImageData(size, size);
    const colour = channels(ink), top = value(g, [reach, reach]);
    const at = (pixel) => ((2 * pixel + 1) / size - 1) * reach;
    for (let i = 0; i < size * size; i++) {
      const height = value(g, [at(i % size), at(Math.floor(i / size))]); // g is even in y
      image.data.set([...colour, 8 * Math.floor(12 * Math.sqrt(height / top))], 4 * i);
    }
    pen.putImageData(image, 0, 0);
    return canvas;
  }
  const outline = () => (column ? [0, 1] : [0, 1, 3, 2, 0]).map((i) => found.corners[i]);
  function draw(pen, width, colours) {
    const { magnified, ruler, phi } = places(width);
    const chosen = [f, model.get("function"), found, colours.orange];
    const second = [FUNCTIONS[other], other, compared, colours.purple];
    if (f.c.length === 1) profile(pen, colours, magnified[0], [chosen, second]);
    else magnified.forEach((at, i) => plane(pen, colours, at, [chosen, second][i], i === 0));
    rule(pen, colours, ruler);
    sharpnesses(pen, colours, phi, [chosen, second]);
  }
  const times = () => `magnified ${number(RULERS[model.get("subspace")] / reach, 2)} times`;
  function profile(pen, colours, at, both) {
    const highest = Math.max(...both.map(([g]) => value(g, [reach])));
    const axes = { x: `x, ${times()}`, y: "f(x)" };
    panel(pen, colours, at, [-reach, reach], [-0.08 * highest, highest], axes, (px, py) => {
      toView = (w) => [px(w[0]), py(value(f, w))];
      fromView = (u) => [(2 * (u - at[0]) / at[2] - 1) * reach];
      const [high, low] = found.corners.map(([end]) => px(end));
      Object.assign(pen, { fillStyle: colours.green, globalAlpha: 0.25 });
      pen.fillRect(low, at[1], high - low, at[3]);
      pen.globalAlpha = 1;
      polyline(pen, colours.green, [[low, py(0)], [high, py(0)]], { width: 4 });
      curves(pen, both.map(([g, name], i) => ({ text: name, colour: colours.ink,
        dash: i ? [5, 4] : [], points: linear(-1, 0.9, 190).map((part) =>
          [px(part * reach), py(value(g, [part * reach]))]) })), at[0] + at[2]);
      for (const [g, , { highest: points }, colour] of both.toReversed())
        for (const w of points) mark(pen, colour, [px(w[0]), py(value(g, w))], 7, { corners: 4 });
      mark(pen, colours.blue, toView(x), 7);
    });
  }
  function plane(pen, colours, at, [g, name, { highest }, colour], main) {
    const range = [-reach, reach], size = Math.floor(at[2]), key = `${name} ${size} ${colours.ink}`;
    if (!maps.has(key)) maps.set(key, bands(g, size, colours.ink));
    panel(pen, colours, at, range, range, { x: `x, ${times()}`, y: `y; ${name}` }, (px, py) => {
      const view = (w) => [px(w[0]), py(w[1])];
      pen.drawImage(maps.get(key), at[0], at[1], at[2], at[3]);
      polyline(pen, colours.green, outline().map(view), { width: 4 });
      mark(pen, colours.blue, view(x), 7);
      for (const w of highest) mark(pen, colour, view(w), 7, { corners: 4 });
      if (!main) return;
      toView = view;
      fromView = (u, v) =>
        [(u - at[0]) / at[2], 1 - (v - at[1]) / at[3]].map((part) => (2 * part - 1) * reach);
    });
  }
  // The box as large as it is, and the part that the magnifier shows.
  function rule(pen, colours, at) {
    const end = RULERS[model.get("subspace")], range = [-end, end];
    const flat = f.c.length === 1, rows = flat ? 0.1 : 4;
    panel(pen, colours, at, range, range, { x: "x, on a fixed ruler", y: flat ? "" : "y", rows },
      (px, py) => {
        const view = ([u, v = 0]) => [px(u), py(v)], r = reach;
        const corners = flat ? [[-r, end], [-r, -end], [r, -end], [r, end]]
          : [[-r, -r], [-r, r], [r, r], [r, -r], [-r, -r]];
        polyline(pen, colours.ink, corners.map(view), { width: 1, dash: [3, 3] });
        polyline(pen, colours.green, outline().slice(0, flat ? 2 : 5).map(view), { width: 4 });
        mark(pen, colours.blue, view(x), 4);
      });
  }
  function sharpnesses(pen, colours, at, both) {
    const grid = linear(LOW, HIGH, 45).map((e) => 10 ** e), now = model.get("epsilon");
    const values = both.map(([g]) => grid.map((e) => sharpness(g, x, e, column).phi));
    const top = Math.max(...values.flat()), low = Math.max(Math.min(...values.flat()), 1e-8);
    panel(pen, colours, at, [grid[0], grid.at(-1)], [low / 2, 2 * top],
      { x: "Size of the box, ε", y: "Sharpness φ, %", xlog: true, ylog: true }, (px, py) => {
        polyline(pen, colours.ink, [[px(now), at[1]], [px(now), at[1] + at[3]]], { width: 1 });
        for (const flip of flips) {
          const ends = [at[1], at[1] + at[3]].map((v) => [px(flip), v]);
          polyline(pen, colours.ink, ends, { width: 1, dash: [2, 3] });
          Object.assign(pen, { fillStyle: colours.ink, textAlign: "right" });
          pen.fillText(`equal at ${number(flip)}`, px(flip) - 5, at[1] + at[3] - 10);
        }
        const beside = px(now) < at[0] + 90 ? px(now) : at[0]; // names do not cross the line of ε
        both.forEach(([, name, , colour], i) => {
          const dash = i ? [5, 4] : [];
          polyline(pen, colour, grid.map((e, k) => [px(e), py(values[i][k])]), { dash });
          Object.assign(pen, { fillStyle: colour, textAlign: "left", textBaseline: "middle" });
          pen.fillText(name, beside + 8, at[1] + 12 + 16 * i);
        });
        for (const [, , { phi }, colour] of both.toReversed())
          mark(pen, colour, [px(now), py(phi)], 6, { corners: 4 });
      });
  }

  // What is dragged: x, and the end of a column's box, which turns the column. The view stays until
  // it is let go.
  const clamp = (coordinate) => Number(bounded(coordinate, RANGE.x).toPrecision(3));
  const turn = (dx, dy) =>
    model.set("angle", (Math.round((Math.atan2(dy, dx) * 180) / Math.PI) + 180) % 180);
  handles = [
    page.handle("position x", () => toView(x), (...to) => fromView(...to).slice(0, f.c.length)
      .forEach((coordinate, i) => model.set("xy"[i], clamp(coordinate))), update),
    page.handle("direction of a", () => (column?.length > 1 ? toView(found.corners[0]) : null),
      (...to) => turn(...fromView(...to).map((coordinate, i) => coordinate - x[i])), update),
  ];

  page.choice("function", "Function f", RANGE.function);
  page.choice("subspace", "Matrix A", RANGE.subspace, ["the identity", "one column a"]);
  page.slider("epsilon", "Size of the box, ε", geometric(...RANGE.epsilon));
  page.slider("x", "Position x", linear(...RANGE.x, 40));
  const y = page.slider("y", "Position y", linear(...RANGE.y, 40));
  const angle = page.slider("angle", "Angle of a, degrees", linear(...RANGE.angle, 36));
  const length = page.slider("length", "Length of a", linear(...RANGE.length, 39));
  const [random] = page.buttons({ "Random a": () => {
    const normal = () =>
      Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
    const entries = f.c.map(normal); // N(0, 1)
    if (entries.length > 1) turn(...entries);
    model.set("length", bounded(Number(Math.hypot(...entries).toPrecision(3)), RANGE.length));
    model.save_changes();
  } });

  update();
  return () => page.over.abort();
}

export default { render };
