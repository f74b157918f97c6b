// What explorables are made of. Nothing here knows what a chart shows.
//
//   page = stage(model, el, {…})       the frame: title, canvas, controls, sentence, note
//   page.slider, .choice, .buttons     native controls, in step with the model (see `controls`)
//   page.handle, .loop, .seen, .say    dragging, animation, being in view, the sentence
//   panel, curves, polyline, mark      drawing on the canvas: axes, curves with names, marks
//   number, linear, geometric          numbers in text, values for sliders
//   rangesOf, bounded, reader          what the values may be that a module's START states
//
// A module states its values once: `export const START = {"name": [first, …], …};` is JSON, which
// Python reads, too. Behind the value that is shown first stands what it may be: of a number, the
// least and the most, with the stops of its slider between them if those are listed; of a word,
// all words. A number whose first value has a point ("1.0") is real, another is whole.
//
// `model` is anywidget's in Jupyter and Colab; a page of the book brings its own, whose `kept(name)`
// is the text that the address has for a control. All work ends when `page.over` is aborted.

// The palette of Okabe and Ito on a light ground, and on a dark one.
export const LIGHT = { blue: "#0072B2", orange: "#D55E00", green: "#009E73", purple: "#CC79A7" };
export const DARK = { ...LIGHT, blue: "#56B4E9" };

// A number in text, of so many digits, with a true minus sign: 0.012, 1,200, 1.2·10⁶.
export function number(value, digits = 3) {
  const rounded = Number(value.toPrecision(digits)), size = Math.abs(rounded);
  if (!Number.isFinite(size) || size === 0 || (size >= 1e-5 && size < 1e6))
    return (size < 1e3 ? `${rounded}` : rounded.toLocaleString("en")).replace("-", "−");
  const [factor, exponent] = rounded.toExponential().replace("+", "").split("e");
  const power = exponent.replace(/./g, (character) => RAISED[character]);
  return `${factor === "1" ? "" : `${factor}·`}10${power}`.replace("-", "−");
}
const RAISED = Object.fromEntries([..."-0123456789"].map((character, i) =>
  [character, "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"[i]]));
// n + 1 values from low to high, for a slider.
export const linear = (low, high, n) =>
  Array.from({ length: n + 1 }, (_, i) => Number((low + ((high - low) * i) / n).toFixed(9)));
// Ten values a decade from low to high, of two digits: 1, 1.3, 1.6, 2, …
export const geometric = (low, high) => {
  const [first, last] = [low, high].map((end) => Math.round(10 * Math.log10(end)));
  return linear(first, last, last - first).map((e) => Number((10 ** (e / 10)).toPrecision(2)));
};
// What the values of a START may be, by their names.
export const rangesOf = (start) =>
  Object.fromEntries(Object.entries(start).map(([name, [, ...range]]) => [name, range]));
// `value`, or the end of its range that is nearer.
export const bounded = (value, range) => Math.min(range.at(-1), Math.max(range[0], value));
// Reads from text a number of this range, a `whole` one if all numbers there are; else undefined.
export const reader = (range, whole = range.every(Number.isInteger)) => (text) => {
  const value = text.trim() && (!whole || Number.isInteger(Number(text))) ? Number(text) : NaN;
  return value >= range[0] && value <= range.at(-1) ? value : undefined;
};
// Mean of two to ten values, and half the width of its 95 % t-interval; of one value, NaN.
export function interval(values) {
  const n = values.length, mean = values.reduce((sum, value) => sum + value, 0) / n;
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return { mean, half: STUDENT[n - 2] * Math.sqrt(squares / (n - 1) / n) };
}
const STUDENT = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262];
// Whether the reader asked for less motion.
export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

// Red, green and blue of a computed CSS colour, each from 0 to 255.
export const channels = (colour) => colour.match(/[\d.]+/g).slice(0, 3).map(Number);
// The colours that are drawn with: `ink`, that of the text around `node`, and the palette.
export function coloursOf(node) {
  const ink = getComputedStyle(node).color, [r, g, b] = channels(ink);
  const dark = 0.3 * r + 0.6 * g + 0.1 * b > 128; // the text is light
  return { ink, dark, ...(dark ? DARK : LIGHT) };
}
// Calls `repaint` when the theme of the page or of the system changes, until `signal` is aborted.
// A theme is an attribute of html or body. Called at once: a page that is about to be printed may
// turn light, and no frame follows.
export function onTheme(repaint, signal) {
  for (const node of [document.documentElement, document.body])
    watch(new MutationObserver(repaint), node, { attributes: true }, signal);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint, { signal });
}
function watch(observer, node, options, signal) {
  observer.observe(node, options);
  signal.addEventListener("abort", () => observer.disconnect());
}

// On a phone a chart stays in view while a control below it moves: all of it, if there is room for
// both, or else its lower part.
export function stick(plot, tall) {
  const hidden = tall < 0.62 * innerHeight ? "" : `${0.45 * innerHeight - tall}px`;
  plot.classList.add("sticky");
  plot.style.setProperty("--top", hidden);
}

// Saves rows of cells as a file. It is made here, so that no server is needed.
export function save(name, rows) {
  const quoted = (cell) => (/[",\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);
  const text = rows.map((row) => `${row.map((cell) => quoted(`${cell}`)).join(",")}\n`).join("");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
  link.download = `${name}.csv`;
  link.click();
  URL.revokeObjectURL(link.href);
}

// Text that may stand in HTML, also as the value of an attribute.
export const escaped = (text) =>
  `${text}`.replace(/[&<>"]/g, (character) => `&#${character.charCodeAt(0)};`);

// Native controls in `form`, in step with the model. `changed(name)` is called after every change
// of a value that a control shows. Returns `add`, `follow`, `slider`, `choice` and `buttons`.
export function controls(model, form, { signal, changed }) {
  form.addEventListener("submit", (event) => event.preventDefault(), { signal });

  // The element of `html`, as the last of the form.
  const add = (html) => {
    form.insertAdjacentHTML("beforeend", html);
    for (const control of form.querySelectorAll("input, button"))
      control.dataset.lmSuppressShortcuts = "true"; // JupyterLab would take the arrow keys
    return form.lastElementChild;
  };
  // Keeps a control, whose `refresh()` shows the model's value, in step with the model. A value
  // that the address keeps is taken if `read(text)` makes of it one that the control can show.
  const follow = (name, refresh, read = () => undefined) => {
    const kept = model.kept?.(name), value = kept === undefined ? kept : read(kept);
    if (value !== undefined) model.set(name, value);
    const moved = () => [refresh, changed].forEach((act) => act(name));
    refresh();
    model.on(`change:${name}`, moved);
    signal.addEventListener("abort", () => model.off(`change:${name}`, moved));
  };
  const set = (name, value) => {
    model.set(name, value);
    model.save_changes();
  };
  // A slider over `values`, numbers in ascending order. A value between two of them stays until the
  // slider moves. `show(value)` is its text, and `unit` stands behind it.
  const slider = (name, label, values, { unit = "", show = number } = {}) => {
    const row = add(`<div class="control"><label><span>${escaped(label)}</span>
      <input type="range" name="${escaped(name)}" max="${values.length - 1}"></label>
      <output></output></div>`);
    const [input, output] = ["input", "output"].map((tag) => row.querySelector(tag));
    input.addEventListener("input", () => model.set(name, values[input.value]));
    input.addEventListener("change", () => model.save_changes());
    follow(name, () => {
      const value = model.get(name), gaps = values.map((other) => Math.abs(other - value));
      input.value = gaps.indexOf(Math.min(...gaps));
      output.textContent = `${show(value)}${unit && ` ${unit}`}`;
      input.setAttribute("aria-valuetext", output.textContent);
    }, reader(values));
    return row;
  };
  // Buttons of which one is pressed, one for each of `values`, with its text.
  const choice = (name, label, values, texts = values) => {
    const row = add(`<fieldset class="choice"><legend>${escaped(label)}</legend>${texts.map(
      (text, i) => `<label><input type="radio" name="${escaped(name)}" value="${i}"><span>${
        escaped(text)}</span></label>`).join("")}</fieldset>`);
    const inputs = [...row.querySelectorAll("input")];
    for (const [i, input] of inputs.entries())
      input.addEventListener("change", () => set(name, values[i]));
    follow(name, () => inputs.forEach((input, i) => {
      input.checked = values[i] === model.get(name);
    }), (text) => values.find((value) => `${value}` === text));
    return row;
  };
  // A row of buttons: `actions` maps the text of each to what it does. Returns the buttons.
  const buttons = (actions) => {
    const row = add(`<div class="buttons">${Object.keys(actions).map((text) =>
      `<button type="button">${escaped(text)}</button>`).join("")}</div>`);
    Object.values(actions).forEach((act, i) => row.children[i].addEventListener("click", act));
    return [...row.children];
  };
  return { add, follow, slider, choice, buttons };
}

// The frame of an explorable, in `el`. `title`, `description` of the canvas, `note`: text; `legend`:
// triples of a colour's name (of LIGHT, or "ink"), a mark and its text. `draw(pen, width, colours)`
// paints the canvas, which is `height(width)` px high. `update(name)` is called after every change
// of a value; `table()` is what is drawn, as rows under a row of headings, for the CSV.
export function stage(model, el, spec) {
  const { title, description, legend, note, height, draw, update, table } = spec;
  const over = new AbortController(), { signal } = over;
  const key = ([colour, mark, text]) => `<span><b aria-hidden="true"
    style="color: var(--${colour}, inherit)">${mark}</b> ${text}</span>`;
  el.innerHTML = `<div class="lecture6-explorable" role="group" aria-label="${title}">
    <p class="title">${title}</p><p class="legend">${legend.map(key).join(" ")}</p>
    <div class="plot"><canvas role="img" aria-label="${description}"></canvas></div>
    <button type="button" class="data">Data (CSV)</button>
    <form class="controls"></form><p class="state" aria-live="polite"></p><p class="note">${note}</p>
    </div>`;
  const root = el.firstElementChild, handles = [];
  const [plot, canvas, form, state] = [".plot", "canvas", "form", ".state"].map((part) =>
    root.querySelector(part));

  // Draws at once.
  function paint() {
    const width = plot.clientWidth, ratio = devicePixelRatio;
    if (!width) return;
    const tall = height(width), size = [width, tall].map((pixels) => Math.round(pixels * ratio));
    if (`${size}` !== `${[canvas.width, canvas.height]}`) [canvas.width, canvas.height] = size;
    canvas.style.height = `${tall}px`;
    stick(plot, tall);
    const pen = canvas.getContext("2d"), colours = coloursOf(canvas);
    for (const name of Object.keys(LIGHT)) root.style.setProperty(`--${name}`, colours[name]);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, tall);
    pen.font = `12px ${getComputedStyle(canvas).fontFamily}`;
    draw(pen, width, colours);
    for (const place of handles) place();
  }
  let waiting = 0;
  // Draws before the next frame.
  const redraw = () => {
    cancelAnimationFrame(waiting);
    if (!signal.aborted) waiting = requestAnimationFrame(paint);
  };
  onTheme(paint, signal);
  watch(new ResizeObserver(redraw), plot, {}, signal);
  signal.addEventListener("abort", redraw);
  root.querySelector(".data").addEventListener("click", () =>
    save(title.replaceAll(" ", "-"), table()));

  // The sentence that says what is seen. It is read out only while nothing runs.
  const say = (text) => {
    state.textContent = text;
  };
  // Calls `act(visible)` when the explorable comes into view or leaves it, or the tab is hidden.
  const seen = (act) => {
    let visible = false;
    const changed = () => act(visible && !document.hidden);
    watch(new IntersectionObserver((entries) => {
      visible = entries.at(-1).isIntersecting;
      changed();
    }), root, {}, signal);
    document.addEventListener("visibilitychange", changed, { signal });
  };
  // Calls `tick(now)` in each frame while it is in view and plays, which it does from the start
  // unless the reader wants little motion. `changed(playing)` is called when that changes, and once
  // when it is first seen. Returns `toggle()`.
  const loop = (tick, changed, playing = !calm()) => {
    let visible = false, timer = 0;
    const next = (now) => {
      timer = requestAnimationFrame(next);
      tick(now);
    };
    const arrange = () => {
      const runs = playing && visible && !signal.aborted;
      state.setAttribute("aria-live", runs ? "off" : "polite");
      cancelAnimationFrame(timer);
      timer = runs ? requestAnimationFrame(next) : 0;
      if (!signal.aborted) changed(playing);
    };
    seen((now) => {
      visible = now;
      arrange();
    });
    signal.addEventListener("abort", arrange);
    arrange();
    return () => {
      playing = !playing;
      arrange();
    };
  };
  // A point of the plot that is dragged, by a pointer or by the arrow keys (with Shift in small
  // steps). `at()` is where it is, in px, or null where it is not shown; `move(x, y)` sets it.
  // `free()` is called when it is let go. Returns its element, whose `held` says if it is dragged.
  const handle = (label, at, move, free = () => {}) => {
    plot.insertAdjacentHTML("beforeend", `<button type="button" class="handle"
      data-lm-suppress-shortcuts="true"
      aria-label="${escaped(label)}: drag, or arrow keys"></button>`);
    const element = plot.lastElementChild;
    handles.push(() => {
      const place = at();
      element.hidden = !place;
      if (place) [element.style.left, element.style.top] = place.map((pixels) => `${pixels}px`);
    });
    const done = () => {
      element.held = false;
      model.save_changes();
      free();
    };
    element.addEventListener("pointerdown", (event) => {
      element.setPointerCapture(event.pointerId);
      element.held = true;
    });
    element.addEventListener("pointermove", (event) => {
      const { left, top } = plot.getBoundingClientRect();
      if (element.held) move(event.clientX - left, event.clientY - top);
    });
    element.addEventListener("lostpointercapture", done);
    element.addEventListener("keydown", (event) => {
      const [dx, dy] = ARROWS[event.key] ?? [];
      if (dx === undefined) return;
      event.preventDefault();
      const pixels = event.shiftKey ? 2 : 10, [x, y] = at();
      move(x + dx * pixels, y + dy * pixels);
      done();
    });
    return element;
  };
  return { root, plot, state, over, paint, redraw, say, seen, loop, handle,
    ...controls(model, form, { signal, changed: update }) };
}
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

// Round values between low and high, at most so many; `log`: powers of ten, or 1, 2 and 5 times
// them over less than two decades.
export function ticks(low, high, most, log = false) {
  if (log) {
    const span = Math.log10(high / low), factors = span < 2 ? [1, 2, 5] : [1];
    const apart = Math.ceil(span / Math.max(most, 1)), found = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.log10(high); e++)
      if (e % apart === 0) found.push(...factors.map((factor) => Number(`${factor}e${e}`)));
    return found.filter((value) => value >= low * (1 - 1e-9) && value <= high * (1 + 1e-9));
  }
  const least = (high - low) / most, power = 10 ** Math.floor(Math.log10(least));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= least * (1 - 1e-9));
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
}

// Axes in the rectangle `at` = [left, top, width, height] in px, over the ranges of x and y; `x` is
// written below and `y` above; `xlog` and `ylog` make an axis logarithmic. `paint(px, py)`, of
// functions from a value to px, draws inside of it.
export function panel(pen, { ink }, at, [x0, x1], [y0, y1],
  { x, y, xlog = false, ylog = false, rows = 4 }, paint) {
  const [left, top, width, height] = at;
  const share = (log, low, high) => (log
    ? (value) => Math.log(value / low) / Math.log(high / low)
    : (value) => (value - low) / (high - low));
  const [across, up] = [share(xlog, x0, x1), share(ylog, y0, y1)];
  const px = (value) => left + across(value) * width;
  const py = (value) => top + (1 - up(value)) * height;
  Object.assign(pen, { fillStyle: ink, textBaseline: "middle" });
  const write = (text, align, ...where) => {
    Object.assign(pen, { textAlign: align, globalAlpha: 1 });
    pen.fillText(text, ...where);
    pen.globalAlpha = 0.2; // of the lines
  };
  write(y, "left", left, top - 10);
  if (x) write(x, "center", left + width / 2, top + height + 28);
  for (const value of ticks(x0, x1, width / 60, xlog)) {
    pen.fillRect(px(value), top, 1, height);
    const text = number(value), most = pen.canvas.clientWidth - pen.measureText(text).width / 2;
    if (x) write(text, "center", Math.min(px(value), most), top + height + 11);
  }
  for (const value of ticks(y0, y1, rows, ylog)) {
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

// A line through points [x, y] in px.
export function polyline(pen, colour, points, { dash = [], width = 2 } = {}) {
  Object.assign(pen, { strokeStyle: colour, lineWidth: width });
  pen.setLineDash(dash);
  pen.beginPath();
  for (const point of points) pen.lineTo(...point);
  pen.stroke();
  pen.setLineDash([]);
}

// A disc around a point in px, or of 4 corners a diamond, filled or only drawn.
export function mark(pen, colour, [x, y], radius, { corners = 16, hollow = false } = {}) {
  pen.beginPath();
  for (let i = 0; i < corners; i++) {
    const turn = (2 * Math.PI * i) / corners;
    pen.lineTo(x + radius * Math.cos(turn), y + radius * Math.sin(turn));
  }
  pen.closePath();
  Object.assign(pen, { fillStyle: colour, strokeStyle: colour, lineWidth: 2 });
  if (hollow) pen.stroke();
  else pen.fill();
}

// Curves { points, colour, text, dash, width } in px, each with its text at its last point, left of
// `right`; texts that would overlap are moved apart. Points that are not finite are gaps.
export function curves(pen, list, right) {
  const texts = [];
  for (const { points, colour, text, ...look } of list) {
    let part = [];
    for (const point of [...points, [NaN, NaN]])
      if (point.every(Number.isFinite)) part.push(point);
      else if (part.length) {
        polyline(pen, colour, part, look);
        part = [];
      }
    const end = points.findLast((point) => point.every(Number.isFinite));
    if (text && end) texts.push({ text, colour, x: end[0], y: end[1] });
  }
  texts.sort((a, b) => a.y - b.y);
  let above = -Infinity;
  for (const { text, colour, x, y } of texts) {
    above = Math.max(y - 9, above + 14);
    Object.assign(pen, { fillStyle: colour, textAlign: "right", textBaseline: "middle" });
    pen.fillText(text, Math.min(Math.max(x, pen.measureText(text).width), right) - 4, above);
  }
}
