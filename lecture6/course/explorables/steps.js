// Explorable: k small steps against one large step on ℓ(w) = ½ h w², equations (4) and (5).
//
// From w the small steps lead to (1 − ηh)^k w and the large one, with rate kη, to (1 − kηh) w. They
// differ by η² k(k − 1)/2 h² w + O(η³). A warm-up raises the large steps' rate linearly from η to
// kη, as lecture6.train.warmup(rounds, 1/k).

export const ROUNDS = 12; // of k small steps, or one large one

// w_0 = 1, w_1, … of the rates' steps.
export const path = (h, rates) =>
  rates.reduce((w, rate) => [...w, w.at(-1) - rate * h * w.at(-1)], [1]);
export const smallRates = (lr, k, rounds) => Array(k * rounds).fill(lr);
export const largeRates = (lr, k, rounds, warmup) => Array.from({ length: rounds }, (_, r) =>
  k * lr * (r < warmup ? Math.min(1, 1 / k + ((1 - 1 / k) * r) / warmup) : 1));
export const secondOrder = (h, lr, k) => ((lr * lr * k * (k - 1)) / 2) * h * h;

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

function render({ model, el }) {
  let ready = false, h, k, small, large, end, target;

  const page = stage(model, el, {
    title: "k small steps against one large step",
    description: "Two charts. The loss, a parabola, with the k small steps and the large step from "
      + "w = 1; and w against the number of small steps over twelve rounds, for both.",
    legend: [[BLUE, "●", "k steps of η"], [ORANGE, "◆", "one step of kη"],
      [GREEN, "━", "their difference"], ["inherit", "◇", "large step + second order"]],
    note: `Full gradients on ℓ = ½hw². First chart: one round, at the full rate kη. Second chart: `
      + `${ROUNDS} rounds, where the large steps warm up. Here h never changes, and a warm-up only `
      + "puts off a divergence (kηh > 2). It helps where the curvature is high early, then falls.",
    height: (width) => (width > 560 ? 292 : 562),
    draw,
    update,
    table: () => [["small steps", "w by small steps", "w by large steps"],
      ...small.map((w, i) => [i, w, i % k ? "" : large[i / k]])],
  });

  function update() {
    if (!ready) return; // the controls are still being made
    const [lr, warmup] = [model.get("lr"), model.get("warmup")];
    [h, k] = [model.get("curvature"), model.get("k")];
    small = path(h, smallRates(lr, k, ROUNDS));
    large = path(h, largeRates(lr, k, ROUNDS, warmup));
    [, end] = path(h, [k * lr]);
    target = end + secondOrder(h, lr, k);
    const edge = k * lr * h;
    page.state.textContent = `From w = 1, ${k} steps of η lead to ${number(small[k])}, one of kη `
      + `to ${number(end)}. The difference is ${number(small[k] - end)}; η²k(k − 1)/2·h²w predicts `
      + `${number(target - end)}. kηh = ${number(edge)}: the large steps `
      + (edge > 2 ? "diverge" : edge > 1 ? "overshoot" : "do not overshoot")
      + `, the small ones ${lr * h > 2 ? "diverge" : "do not diverge"}. After ${ROUNDS} rounds: `
      + `${number(small.at(-1))} and ${number(large.at(-1))}.`;
    page.redraw();
  }

  // A disc, or of 4 corners a diamond, filled or only drawn.
  function mark(pen, colour, [u, v], radius, corners = 16, hollow = false) {
    pen.beginPath();
    for (let i = 0; i < corners; i++) {
      const turn = (2 * Math.PI * i) / corners;
      pen.lineTo(u + radius * Math.cos(turn), v + radius * Math.sin(turn));
    }
    pen.closePath();
    Object.assign(pen, { fillStyle: colour, strokeStyle: colour, lineWidth: 2 });
    if (hollow) pen.stroke();
    else pen.fill();
  }
  function draw(pen, width, ink) {
    const side = width > 560, left = 50, across = side ? width / 2 - 66 : width - 62;
    const range = (...values) =>
      [Math.max(-4, 1.15 * Math.min(...values)), Math.min(4, 1.15 * Math.max(...values))];
    const loss = (w) => 0.5 * h * w * w, ws = range(-0.3, 1, end, target);
    const highest = loss(Math.max(...ws.map(Math.abs)));
    panel(pen, ink, [left, 24, across, 225], ws, [-0.12 * highest, highest],
      { x: "w", y: "Loss ½hw²" }, (px, py) => {
        const at = (w) => [px(w), py(loss(w))];
        polyline(pen, ink, linear(...ws, 100).map(at), { width: 1 });
        polyline(pen, GREEN, [[px(end), py(0) + 8], [px(small[k]), py(0) + 8]], { width: 6 });
        polyline(pen, BLUE, small.slice(0, k + 1).map(at));
        polyline(pen, ORANGE, [at(1), at(end)], { dash: [6, 4] });
        for (const w of small.slice(0, k + 1)) mark(pen, BLUE, at(w), 4);
        mark(pen, ORANGE, at(end), 7, 4);
        mark(pen, ink, at(target), 9, 4, true);
      });
    const at = side ? [left + width / 2, 24, across, 225] : [left, 314, across, 205];
    const differences = large.map((w, r) => small[k * r] - w);
    const ys = range(-0.1, ...small, ...large, ...differences);
    panel(pen, ink, at, [0, k * ROUNDS], ys,
      { x: "Small steps (a large one counts k)", y: "w, and the difference" }, (px, py) => {
        polyline(pen, GREEN, differences.map((d, r) => [px(k * r), py(d)]));
        polyline(pen, BLUE, small.map((w, i) => [px(i), py(w)]));
        polyline(pen, ORANGE, large.map((w, r) => [px(k * r), py(w)]), { dash: [6, 4] });
        large.forEach((w, r) => mark(pen, ORANGE, [px(k * r), py(w)], 6, 4));
      });
  }

  page.slider("lr", "Learning rate η", geometric(-3, 0));
  page.slider("curvature", "Curvature h", geometric(-1, 1));
  page.slider("k", "Ratio k of the batch sizes", linear(1, 64, 63));
  page.slider("warmup", "Warm-up, rounds", linear(0, 10, 10));
  ready = true;
  update();
  return () => page.over.abort();
}

export default { render };
