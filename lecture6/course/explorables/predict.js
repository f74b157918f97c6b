// A prediction: the reader commits to a guess, or skips, before the truth is shown over it.
//
//   import { predict } from "./predict.js";
//   const guess = predict(parent, {
//     id: "keskar",             // its key in the page's own storage; nothing leaves the page
//     question: "Which net will be sharper?",
//     kind: "choice",           // or "point" or "curve"
//     options: [["small", "B = 8"], ["large", "B = 512"]],         // choice: [key, words]
//     axes: { x: { label: "Batch size B", low: 8, high: 512, log: true, at: [8, 64, 512] },
//       y: { label: "Test accuracy, %", low: 80, high: 100 } },    // point and curve: their chart
//     free: "xy",               // point: the coordinates that move, "x", "y" or "xy"
//     start: { x: 64, y: 90 },  // point: where it lies first; curve: its height at first
//     knots: [8, 64, 512],      // curve: the x of its points
//     behind: (px, py) => "…",  // point and curve: SVG drawn behind them; px, py: a value in px
//     says: (made, truth) => "…",   // one sentence; `made` is null where the reader skipped
//     onReady: (made) => {},    // the reader has committed, or skipped, now or on an earlier visit
//     onReset: () => {},        // and wants to guess anew
//   });
//   guess.reveal(truth);        // draws the truth over the guess and says the sentence
//   guess.ready, guess.made, guess.revealed, guess.reset(), guess.end()
//
// A guess and a truth are a key of the options, a point { x, y }, or a list of points [[x, y], …];
// the truth of a curve may have other x than the knots. `onReady` comes after `predict` returns.

import { coloursOf, escaped, number, onTheme, ticks } from "./shared.js";

const STEPS = 50; // by an arrow key a handle moves this part of an axis

const html = (text) => {
  const template = document.createElement("template");
  template.innerHTML = text;
  return template.content.firstElementChild;
};

// The page's storage, which a sandboxed frame has not got.
const storage = {
  get(key) {
    try {
      return JSON.parse(localStorage.getItem(key));
    } catch {
      return null;
    }
  },
  set(key, value) {
    try {
      if (value) localStorage.setItem(key, JSON.stringify(value));
      else localStorage.removeItem(key);
    } catch {
      // It is forgotten when the page is closed.
    }
  },
};

export function predict(parent, options) {
  const { id, question, kind, says = () => "", onReady = () => {}, onReset = () => {} } = options;
  const key = `lecture6 prediction ${location.pathname} ${id}`;
  const root = html(`<section class="lecture6-predict" role="group"
    aria-label="Prediction: ${escaped(question)}"><p class="question"><b>Your prediction.</b>
    ${escaped(question)}</p><form class="guess"></form><div class="buttons">
    <button type="button" class="commit" disabled>Commit</button>
    <button type="button" class="skip">Skip</button>
    <button type="button" class="anew" hidden>Guess anew</button></div>
    <p class="said" aria-live="polite"></p></section>`);
  parent.append(root);
  const [form, commit, skip, anew, said] = ["guess", "commit", "skip", "anew", "said"].map((name) =>
    root.querySelector(`.${name}`));
  const field = { choice, point: chart, curve: chart }[kind](form, options, {
    changed: () => { commit.disabled = state.ready; },
    name: root.getAttribute("aria-label"),
  });
  let state = { ready: false, made: null }, earlier = "";

  function show(words) {
    commit.hidden = skip.hidden = state.ready;
    commit.disabled = true;
    anew.hidden = !state.ready;
    field.show(state);
    said.textContent = `${earlier} ${words}`.trim();
  }
  function ready(made) {
    state = { ready: true, made };
    storage.set(key, state);
    show(made === null ? "Skipped." : "Committed.");
    anew.focus({ preventScroll: true }); // the button that had the focus is hidden
    onReady(made);
  }
  function reveal(truth) {
    state = { ready: true, made: state.made, truth };
    storage.set(key, state);
    show(says(state.made, truth));
  }
  function reset() {
    state = { ready: false, made: null };
    earlier = "";
    storage.set(key, null);
    show("");
    onReset();
  }
  form.addEventListener("submit", (event) => event.preventDefault());
  commit.addEventListener("click", () => ready(field.guess()));
  skip.addEventListener("click", () => ready(null));
  anew.addEventListener("click", () => {
    reset();
    field.focus();
  });
  for (const control of root.querySelectorAll("input, button, [tabindex]"))
    control.dataset.lmSuppressShortcuts = "true"; // JupyterLab would take the arrow keys

  const before = storage.get(key);
  if (before?.ready && (before.made === null || field.takes(before.made))) {
    state = before;
    earlier = before.made === null ? "You skipped this on an earlier visit."
      : "This is your guess of an earlier visit.";
    show("truth" in before ? says(before.made, before.truth) : "");
    queueMicrotask(() => onReady(before.made));
  } else show("");

  return {
    get ready() { return state.ready; },
    get made() { return state.made; },
    get revealed() { return "truth" in state; },
    reveal,
    reset,
    end: field.end,
  };
}

// How the sentence about a choice begins.
export const verdictOn = (made, truth) =>
  (made === null ? "" : made === truth ? "Right. " : "No. ");

// ---- a choice -----------------------------------------------------------------------------------

function choice(parent, { options }, { changed, name }) {
  const radio = ([key, words]) => `<label><input type="radio" name="guess"
    value="${escaped(key)}"> <span>${escaped(words)} <b></b></span></label>`;
  parent.innerHTML = `<fieldset><legend>${escaped(name)}</legend>${options.map(radio).join("")}
    </fieldset>`;
  const inputs = [...parent.querySelectorAll("input")];
  parent.addEventListener("change", changed);
  return {
    guess: () => inputs.find(({ checked }) => checked).value,
    takes: (key) => inputs.some(({ value }) => value === key),
    focus: () => inputs[0].focus(),
    show({ ready, made, truth }) {
      for (const input of inputs) {
        input.checked = input.value === made;
        input.disabled = ready;
        const right = truth !== undefined && input.value === truth;
        const marks = [right && "✓ correct", input.checked && ready && "your guess"];
        input.parentNode.querySelector("b").textContent = marks.filter(Boolean).join(", ");
        input.parentNode.classList.toggle("right", right);
      }
    },
    end() {},
  };
}

// ---- a chart, in which a point is dragged or a curve is drawn -----------------------------------

// From the values of an axis to the share of its length, and back.
export function scale({ low, high, log = false }) {
  const [to, from] = log ? [Math.log, Math.exp] : [Number, Number];
  const [first, length] = [to(low), to(high) - to(low)];
  return {
    share: (value) => (to(value) - first) / length,
    value: (share) => from(first + Math.min(1, Math.max(0, share)) * length),
  };
}

// Its handles are sliders for the keyboard and a screen reader. A pointer drags or draws.
function chart(parent, { kind, axes, free = "xy", start = {}, knots, behind = () => "" },
  { changed, name }) {
  const drawing = kind === "curve", [x, y] = [scale(axes.x), scale(axes.y)];
  const first = { x: x.value(0.5), y: y.value(0.5), ...start };
  const fresh = () => (drawing ? knots : [first.x]).map((at) => [at, first.y]);
  const hint = drawing ? "Draw in the chart, or move its points with the arrow keys."
    : "Drag the point, or move it with the arrow keys.";
  const plot = html(`<div class="plot"><svg role="group" aria-label="${escaped(name)}"></svg>
    <p class="hint">${hint}</p></div>`);
  const svg = plot.querySelector("svg"), radius = drawing ? 6 : 9;
  svg.innerHTML = `<g class="axes" aria-hidden="true"></g><svg class="lines"
    aria-hidden="true"></svg><g class="handles">${fresh().map(() => `<g role="slider"
    tabindex="0"><circle class="reach" r="20"/><circle class="grip" r="${radius}"/></g>`)
    .join("")}</g>`;
  parent.append(plot);
  const [grid, lines] = [".axes", ".lines"].map((part) => svg.querySelector(part));
  const handles = [...svg.querySelectorAll("[role=slider]")];
  let points = fresh(), shown = { ready: false, made: null }, box, stroke;

  const px = (value) => box.left + x.share(value) * box.width;
  const py = (value) => box.top + (1 - y.share(value)) * box.height;
  const list = (truth) => (drawing ? truth : [[truth.x, truth.y]]);
  function paint() {
    box = { left: 52, top: 26, width: plot.clientWidth - 64, height: 190 };
    if (box.width <= 0) return;
    grid.innerHTML = paintAxes(axes, box, px, py) + behind(px, py);
    const { ready, made, truth } = shown, guessed = !ready || made !== null;
    const { blue, orange } = coloursOf(svg), parts = [];
    svg.style.setProperty("--guess", blue);
    if (drawing && guessed) parts.push(paintCurve(points, blue, "6 4"));
    if (truth) parts.push(paintCurve(list(truth), orange, ""));
    if (ready && (guessed || truth)) parts.push(...names(guessed && points, truth && list(truth)));
    lines.innerHTML = parts.join("");
    // A curve that leaves the axes leaves the picture there.
    const clip = [box.left - 12, box.top - 12, box.width + 24, box.height + 24];
    lines.setAttribute("viewBox", clip.join(" "));
    ["x", "y", "width", "height"].forEach((part, i) => lines.setAttribute(part, clip[i]));
    handles.forEach((handle, i) => paintHandle(handle, i, guessed));
  }
  function paintHandle(handle, i, guessed) {
    const [at, value] = points[i], sideways = free === "x" && !drawing;
    const [axis, now] = sideways ? [axes.x, at] : [axes.y, value];
    const said = `${axes.y.label}: ${number(value)}; ${axes.x.label}: ${number(at)}`;
    handle.setAttribute("transform", `translate(${px(at)} ${py(value)})`);
    handle.setAttribute("visibility", guessed ? "visible" : "hidden");
    for (const [part, text] of Object.entries({ label: `Point ${i + 1} of ${handles.length}`,
      valuemin: axis.low, valuemax: axis.high, valuenow: now, valuetext: said,
      disabled: shown.ready }))
      handle.setAttribute(`aria-${part}`, text);
  }
  // A line through the points; of one point a diamond.
  function paintCurve(of, colour, dash) {
    const [u, v] = [px(of[0][0]), py(of[0][1])];
    const line = of.map(([a, b]) => `${px(a)} ${py(b)}`).join("L");
    return of.length > 1
      ? `<path d="M${line}" stroke="${colour}" stroke-width="3" stroke-dasharray="${dash}"/>`
      : `<path d="M${u} ${v - 10}l10 10l-10 10l-10-10z" fill="${colour}"/>`;
  }
  // The names of guess and truth where the two are farthest apart, of all places at which the truth
  // is on the axis, the one above, the other below.
  function names(guess, truth) {
    const gap = ([a, b]) => (truth ? y.share(b) - y.share(between(truth, a)) : 0);
    const isSeen = ([a]) => !truth || Math.abs(y.share(between(truth, a)) - 0.5) <= 0.5;
    const gaps = (guess || truth).map(gap);
    const sizes = (guess || truth).map((point, i) => (isSeen(point) ? Math.abs(gaps[i]) : -1));
    const i = sizes.indexOf(Math.max(...sizes)), [at, value] = (guess || truth)[i];
    const write = (words, place, height, above) => {
      const late = x.share(place) > 0.7;
      const u = late ? px(place) + 9 : Math.max(px(place) - 9, box.left + 4); // beside the ticks
      const beside = py(height) + (above ? -14 : 24); // and inside of the frame
      const v = Math.min(box.top + box.height - 6, Math.max(box.top + 14, beside));
      return `<text x="${u}" y="${v}" `
        + `text-anchor="${late ? "end" : "start"}">${words}</text>`;
    };
    const there = drawing || !truth ? at : truth[0][0]; // two points may stand apart sideways, too
    return [guess && write("your guess", at, value, gaps[i] >= 0),
      truth && write("measured", there, guess ? between(truth, at) : value, gaps[i] < 0)]
      .filter(Boolean);
  }

  function move(i, [at, value]) {
    if (shown.ready) return;
    const [a, b] = points[i], [across, up] = ["x", "y"].map((name) => free.includes(name));
    points[i] = drawing ? [a, value] : [across ? at : a, up ? value : b];
    changed();
    paint();
  }
  function pressed(event) {
    const i = handles.indexOf(event.currentTarget), [a, b] = points[i];
    const [across, sign] = { ArrowRight: [1, 1], ArrowLeft: [1, -1], ArrowUp: [0, 1],
      ArrowDown: [0, -1], PageUp: [0, 5], PageDown: [0, -5] }[event.key] ?? [];
    if (!sign || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const along = drawing || free === "y" ? false : free === "x" ? true : across, by = sign / STEPS;
    move(i, along ? [x.value(x.share(a) + by), b] : [a, y.value(y.share(b) + by)]);
  }
  for (const handle of handles) handle.addEventListener("keydown", pressed);

  const place = ({ clientX, clientY }) => {
    const { left, top } = svg.getBoundingClientRect();
    return [x.value((clientX - left - box.left) / box.width),
      y.value(1 - (clientY - top - box.top) / box.height)];
  };
  // A curve takes the pointer's height at each knot that the pointer crosses. Until then the
  // nearest knot comes along; and afterwards, as long as the pointer is at the knot.
  function follow(event) {
    const now = place(event);
    if (!drawing) return move(0, now);
    const [a, b] = (stroke.last ?? now).map((value, i) => [x, y][i].share(value));
    const [c, d] = [x.share(now[0]), y.share(now[1])];
    points.forEach(([at], i) => {
      const share = (x.share(at) - a) / (c - a);
      if (!(share > 0 && share <= 1)) return;
      stroke.crossed.add(i);
      move(i, [at, y.value(b + share * (d - b))]);
    });
    const gaps = points.map(([at]) => Math.abs(x.share(at) - c));
    const gap = Math.min(...gaps), nearest = gaps.indexOf(gap);
    if (!stroke.crossed.has(nearest) || gap * box.width < 8) move(nearest, now);
    stroke.last = now;
  }
  svg.addEventListener("pointerdown", (event) => {
    const grasped = event.target.closest("[role=slider]");
    // A finger beside the point scrolls the page.
    if (shown.ready || (!drawing && !grasped && event.pointerType === "touch")) return;
    event.preventDefault();
    svg.setPointerCapture(event.pointerId);
    stroke = { last: null, crossed: new Set() };
    follow(event);
  });
  // The page stays where it is: inside of a picture, browsers do not heed `touch-action`.
  svg.addEventListener("touchstart", (event) => {
    if (!shown.ready && (drawing || event.target.closest("[role=slider]"))) event.preventDefault();
  }, { passive: false });
  svg.addEventListener("pointermove", (event) => {
    if (svg.hasPointerCapture(event.pointerId)) follow(event);
  });

  const over = new AbortController(), observer = new ResizeObserver(paint);
  observer.observe(plot);
  onTheme(paint, over.signal);
  return {
    guess() {
      const [[at, value]] = points;
      return drawing ? points.map((point) => [...point]) : { x: at, y: value };
    },
    takes: (made) => (drawing ? made.length === knots.length : Number.isFinite(made.x)),
    focus: () => handles[0].focus(),
    show(state) {
      shown = state;
      points = state.made ? list(state.made) : fresh();
      svg.classList.toggle("open", !state.ready);
      svg.classList.toggle("drawn", drawing);
      plot.querySelector(".hint").hidden = state.ready;
      paint();
    },
    end() {
      over.abort();
      observer.disconnect();
    },
  };
}

// The height at x of the line through the points, which go from left to right.
export function between(points, x) {
  const i = points.findIndex(([at]) => at >= x);
  if (i < 1) return points.at(i)[1];
  const [[a, b], [c, d]] = [points[i - 1], points[i]];
  return b + ((x - a) / (c - a)) * (d - b);
}

const ticksOf = ({ low, high, log, at }, most) => at ?? ticks(low, high, most, log);

function paintAxes(axes, { left, top, width, height }, px, py) {
  const text = (words, u, v, anchor) =>
    `<text x="${u}" y="${v}" text-anchor="${anchor}">${escaped(words)}</text>`;
  return [
    text(axes.y.label, 2, top - 12, "start"),
    text(axes.x.label, left + width / 2, top + height + 36, "middle"),
    ...ticksOf(axes.x, width / 80).map((value) => {
      const last = px(value) > left + width - 12; // its text must not be cut off
      return `<path d="M${px(value)} ${top}v${height}"/>` + text(number(value, 6),
        last ? left + width + 12 : px(value), top + height + 16, last ? "end" : "middle");
    }),
    ...ticksOf(axes.y, 5).map((value) => `<path d="M${left} ${py(value)}h${width}"/>`
      + text(number(value, 6), left - 6, py(value) + 4, "end")),
  ].join("");
}
