// Explorable: the sharpness of Definition 2 over the box of equation (3), for Figure 6's functions.
//
// They are convex, so the highest point of the box is one of its corners, and φ is exact. A is the
// identity, or one column a, for which A⁺x = a·x/|a|² and the box is a segment along a.

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

// ---- the same in all three modules: a page loads each by itself, as one file --------------------

const BLUE = "#0072B2", ORANGE = "#D55E00", GREEN = "#009E73"; // of Okabe and Ito

const number = (value, digits = 3) => `${Number(value.toPrecision(digits))}`.replaceAll("-", "−");
const linear = (low, high, n) =>
  Array.from({ length: n + 1 }, (_, i) => Number((low + ((high - low) * i) / n).toFixed(9)));
// Ten values a decade from 10^low to 10^high, of two digits.
const geometric = (low, high) =>
  linear(low, high, Math.round(10 * (high - low))).map((e) => Number((10 ** e).toPrecision(2)));

// The frame of an explorable. `draw(pen, width, ink)` paints its canvas, which is `height(width)`
// px high; `update()` is called after every change of the model; `table()` is what is drawn, as rows
// under a row of headings; `over.abort()` is the end.
function stage(model, el, { title, description, legend, note, height, draw, update, table }) {
  const over = new AbortController(), { signal } = over;
  const key = ([colour, mark, text]) =>
    `<span><b style="color: ${colour}">${mark}</b> ${text}</span>`;
  el.innerHTML = `<div class="lecture6-explorable" role="group" aria-label="${title}">
    <p class="title">${title}</p><p class="legend">${legend.map(key).join(" ")}</p>
    <div class="plot"><canvas role="img" aria-label="${description}"></canvas></div>
    <button type="button" class="data">Data (CSV)</button>
    <div class="controls"></div><p class="state" aria-live="polite"></p><p class="note">${note}</p>
    </div>`;
  const root = el.firstElementChild;
  const [plot, canvas, controls, state] = [".plot", "canvas", ".controls", ".state"].map((part) =>
    root.querySelector(part));

  function paint() {
    const width = plot.clientWidth, ratio = devicePixelRatio;
    if (!width) return;
    const size = [width, height(width)].map((pixels) => Math.round(pixels * ratio));
    if (`${size}` !== `${[canvas.width, canvas.height]}`) [canvas.width, canvas.height] = size;
    canvas.style.height = `${height(width)}px`;
    const pen = canvas.getContext("2d"), { color, fontFamily } = getComputedStyle(canvas);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height(width));
    pen.font = `12px ${fontFamily}`;
    draw(pen, width, color);
  }
  let waiting = 0;
  const redraw = () => {
    cancelAnimationFrame(waiting);
    if (!signal.aborted) waiting = requestAnimationFrame(paint);
  };
  const watch = (observer, node, options) => {
    observer.observe(node, options);
    signal.addEventListener("abort", () => observer.disconnect());
  };
  // The ink is the colour of the text; a theme is an attribute of html or body. Painted at once:
  // a page that is about to be printed may turn light, and no frame follows.
  for (const node of [document.documentElement, document.body])
    watch(new MutationObserver(paint), node, { attributes: true });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw, { signal });
  watch(new ResizeObserver(redraw), plot);
  signal.addEventListener("abort", redraw);

  // The file is made here, so that no server is needed.
  root.querySelector(".data").addEventListener("click", () => {
    const text = table().map((row) => `${row.join(",")}\n`).join("");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
    link.download = `${title.replaceAll(" ", "-")}.csv`;
    link.click();
    URL.revokeObjectURL(link.href);
  });

  // Keeps a control, whose `refresh()` shows the model's value, in step with the model.
  const follow = (name, refresh) => {
    const changed = () => [refresh, update].forEach((act) => act());
    refresh();
    model.on(`change:${name}`, changed);
    signal.addEventListener("abort", () => model.off(`change:${name}`, changed));
  };
  const add = (html) => {
    controls.insertAdjacentHTML("beforeend", html);
    for (const control of controls.querySelectorAll("input, select, button"))
      control.dataset.lmSuppressShortcuts = "true"; // JupyterLab would take the arrow keys
    return controls.lastElementChild;
  };
  // A slider over `values`. A start between two of them stays until the slider moves.
  const slider = (name, label, values) => {
    const row = add(`<div class="control"><label><span>${label}</span>
      <input type="range" name="${name}" max="${values.length - 1}"></label><output></output>
      </div>`);
    const [input, output] = ["input", "output"].map((tag) => row.querySelector(tag));
    input.addEventListener("input", () => model.set(name, values[input.value]));
    input.addEventListener("change", () => model.save_changes());
    follow(name, () => {
      const value = model.get(name), gaps = values.map((other) => Math.abs(other - value));
      input.value = gaps.indexOf(Math.min(...gaps));
      output.textContent = number(value);
      input.setAttribute("aria-valuetext", number(value));
    });
    return row;
  };
  return { root, plot, state, over, paint, redraw, watch, follow, add, slider };
}

function ticks(low, high, most) {
  const least = (high - low) / most, power = 10 ** Math.floor(Math.log10(least));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= least * (1 - 1e-9));
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
}

// Axes in the rectangle `at`, `x` named below and `y` above; `paint(px, py)` draws inside of it.
function panel(pen, ink, at, [x0, x1], [y0, y1], { x, y, rows = 4 }, paint) {
  const [left, top, width, height] = at;
  const px = (value) => left + ((value - x0) / (x1 - x0)) * width;
  const py = (value) => top + ((y1 - value) / (y1 - y0)) * height;
  Object.assign(pen, { fillStyle: ink, textBaseline: "middle" });
  const write = (text, align, ...where) => {
    Object.assign(pen, { textAlign: align, globalAlpha: 1 });
    pen.fillText(text, ...where);
    pen.globalAlpha = 0.2; // of the lines
  };
  write(y, "left", left, top - 10);
  if (x) write(x, "center", left + width / 2, top + height + 28);
  for (const value of ticks(x0, x1, width / 60)) {
    pen.fillRect(px(value), top, 1, height);
    if (x) write(number(value), "center", px(value), top + height + 11);
  }
  for (const value of ticks(y0, y1, rows)) {
    pen.fillRect(left, py(value), width, 1);
    write(number(value), "right", left - 5, py(value));
  }
  pen.save();
  pen.globalAlpha = 1;
  pen.beginPath();
  pen.rect(...at);
  pen.clip();
  paint(px, py);
  pen.restore();
}

function polyline(pen, colour, points, { dash = [], width = 2 } = {}) {
  Object.assign(pen, { strokeStyle: colour, lineWidth: width });
  pen.setLineDash(dash);
  pen.beginPath();
  for (const point of points) pen.lineTo(...point);
  pen.stroke();
  pen.setLineDash([]);
}

// ---- here that ends -----------------------------------------------------------------------------

const place = (w) => (w.length > 1 ? `(${w.map((wi) => number(wi)).join(", ")})` : number(w[0]));

function render({ model, el }) {
  let ready = false, dragged = null, reach, f, x, column, found, toView, fromView, map;

  const page = stage(model, el, {
    title: "The box of the sharpness φ",
    description: "The chosen function around 0, as a curve or by bands of equal height, with the "
      + "position x, the box around it and the highest points of the box.",
    legend: [[BLUE, "●", "x"], [GREEN, "━", "the box, x + Az"], [ORANGE, "◆", "highest in it"]],
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
    if (!ready) return; // the controls are still being made
    f = FUNCTIONS[model.get("function")];
    const flat = f.c.length === 1, one = model.get("subspace") === "column";
    x = ["x", "y"].slice(0, f.c.length).map((name) => model.get(name));
    column = one ? columnOf(f, model.get("angle"), model.get("length")) : null;
    found = sharpness(f, x, model.get("epsilon"), column);
    if (!dragged) reach = 1.25 * Math.max(...found.corners.flat().map(Math.abs));
    map = null;
    y.hidden = flat;
    length.hidden = random.hidden = !one;
    angle.hidden = flat || !one;
    handles[1].hidden = flat || !one;
    const sides = found.half.map((half, i) =>
      `|z${found.half.length > 1 ? "₁₂"[i] : ""}| ≤ ${number(half)}`);
    page.state.textContent = `φ = ${number(found.phi)} %. At x = ${place(x)} f is `
      + `${number(found.base)}. With A = ${one ? place(column) : "the identity"} the box is `
      + `${sides.join(", ")}. It is highest at `
      + (found.highest.length > 2 ? "all its corners" : found.highest.map(place).join(" and "))
      + `, where f is ${number(found.top)}.`;
    page.redraw();
  }

  // Bands of equal height, the darker the higher.
  function bands(size, ink) {
    const canvas = Object.assign(document.createElement("canvas"), { width: size, height: size });
    const pen = canvas.getContext("2d"), image = pen.createImageData(size, size);
    const colour = ink.match(/[\d.]+/g).slice(0, 3), top = value(f, [reach, reach]);
    const at = (pixel) => ((2 * pixel + 1) / size - 1) * reach;
    for (let i = 0; i < size * size; i++) {
      const height = value(f, [at(i % size), at(Math.floor(i / size))]); // f is even in y
      image.data.set([...colour, 8 * Math.floor(12 * Math.sqrt(height / top))], 4 * i);
    }
    pen.putImageData(image, 0, 0);
    return { canvas, size, ink };
  }
  function draw(pen, width, ink) {
    const flat = f.c.length === 1, left = 64, top = 24, room = width - left - 16;
    const size = Math.floor(Math.min(room, 370));
    const range = [-reach, reach], highest = value(f, f.c.map(() => reach));
    const rows = flat ? [-0.08 * highest, highest] : range;
    const at = [left, top, flat ? room : size, flat ? 230 : size];
    panel(pen, ink, at, range, rows, { x: "x", y: flat ? "f(x)" : "y" }, (px, py) => {
      toView = (w) => [px(w[0]), py(flat ? value(f, w) : w[1])];
      fromView = (u, v) =>
        [(u - left) / at[2], 1 - (v - top) / at[3]].map((part) => (2 * part - 1) * reach);
      if (flat) {
        polyline(pen, ink, linear(-1, 1, 200).map((part) => toView([part * reach])));
        const [high, low] = found.corners.map(([end]) => px(end));
        Object.assign(pen, { fillStyle: GREEN, globalAlpha: 0.25 });
        pen.fillRect(low, top, high - low, at[3]);
        pen.globalAlpha = 1;
        polyline(pen, GREEN, [[low, py(0)], [high, py(0)]], { width: 4 });
      } else {
        if (map?.size !== size || map.ink !== ink) map = bands(size, ink);
        pen.drawImage(map.canvas, left, top);
        const around = column ? [0, 1] : [0, 1, 3, 2, 0];
        polyline(pen, GREEN, around.map((i) => toView(found.corners[i])), { width: 4 });
      }
      mark(pen, BLUE, toView(x), 16);
      for (const w of found.highest) mark(pen, ORANGE, toView(w), 4);
    });
    [x, found.corners[0]].forEach((w, i) => {
      [handles[i].style.left, handles[i].style.top] = toView(w).map((pixels) => `${pixels}px`);
    });
  }
  // A disc, or of 4 corners a diamond.
  function mark(pen, colour, [u, v], corners) {
    pen.beginPath();
    for (let i = 0; i < corners; i++) {
      const turn = (2 * Math.PI * i) / corners;
      pen.lineTo(u + 7 * Math.cos(turn), v + 7 * Math.sin(turn));
    }
    pen.fillStyle = colour;
    pen.fill();
  }

  // What is dragged: x, and the end of a column's box, which turns the column.
  const clamp = (coordinate) => Number(Math.min(1, Math.max(-1, coordinate)).toPrecision(3));
  const moves = [
    (to) => ["x", "y"].slice(0, f.c.length).forEach((name, i) => model.set(name, clamp(to[i]))),
    (to) => turn(to[0] - x[0], to[1] - x[1]),
  ];
  const turn = (dx, dy) =>
    model.set("angle", (Math.round((Math.atan2(dy, dx) * 180) / Math.PI) + 180) % 180);
  const handles = moves.map((move) => {
    const handle = document.createElement("div");
    handle.className = "handle";
    page.plot.append(handle);
    handle.addEventListener("pointerdown", (event) => {
      handle.setPointerCapture(event.pointerId);
      dragged = handle; // the view stays until it is let go
    });
    handle.addEventListener("pointermove", (event) => {
      const { left, top } = page.plot.getBoundingClientRect();
      if (dragged === handle) move(fromView(event.clientX - left, event.clientY - top));
    });
    handle.addEventListener("lostpointercapture", () => {
      dragged = null;
      model.save_changes();
      update();
    });
    return handle;
  });

  function choice(name, label, options) {
    const row = page.add(`<div class="control"><label><span>${label}</span><select name="${name}">${
      options.map(([key, text]) => `<option value="${key}">${text}</option>`).join("")
    }</select></label></div>`);
    const select = row.querySelector("select");
    select.addEventListener("change", () => {
      model.set(name, select.value);
      model.save_changes();
    });
    page.follow(name, () => (select.value = model.get(name)));
  }
  choice("function", "Function f", Object.keys(FUNCTIONS).map((name) => [name, name]));
  choice("subspace", "Matrix A", [["identity", "the identity"], ["column", "one column a"]]);
  page.slider("epsilon", "Size of the box, ε", geometric(-4, 0.5));
  page.slider("x", "Position x", linear(-1, 1, 40));
  const y = page.slider("y", "Position y", linear(-1, 1, 40));
  const angle = page.slider("angle", "Angle of a, degrees", linear(0, 180, 36));
  const length = page.slider("length", "Length of a", linear(0.1, 4, 39));
  const random = page.add('<div class="buttons"><button type="button">Random a</button></div>');
  random.firstChild.addEventListener("click", () => {
    const normal = () =>
      Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
    const entries = f.c.map(normal); // N(0, 1)
    if (entries.length > 1) turn(...entries);
    model.set("length", Number(Math.hypot(...entries).toPrecision(3)));
    model.save_changes();
  });

  ready = true;
  update();
  return () => page.over.abort();
}

export default { render };
