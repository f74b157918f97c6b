// Explorable: noise with a shape, in a valley of minima: label noise beside isotropic noise.
//
// The loss is ℓ = ½(w₁w₂ − 1)²; its minima are the hyperbola w₁w₂ = 1, where its one curvature that
// is not 0 is λ = w₁² + w₂². Label noise changes the 1 to 1 + ξ in each step, ξ = ±½: a step is
// w ← w − η(w₁w₂ − 1 − ξ)(w₂, w₁). With r = w₁w₂ − 1 it multiplies D = w₁² − w₂² by exactly
// 1 − η²(r − ξ)². In the valley E r² = ηλξ²/(2 − ηλ), so that D falls as exp(−ξ²η²t) in t steps, as
// η → 0. Isotropic noise adds (±s, ±s) to the gradient, with 2s² = ξ²λ at the start: the same total
// variance. It leaves the mean of D where it is, but for η²r², which is of the order of η³. And
// λ = √(D² + 4) there is convex in D, so that the mean of λ does not fall.

import { Random } from "./lab/random.js";
import { predict, verdictOn } from "./predict.js";
import {
  calm, channels, curves, linear, mark, number, panel, polyline, rangesOf, reader, stage,
} from "./shared.js";

export const START = {
  "noise": ["both", "both", "label", "isotropic"],
  "lr": [0.01, 0.005, 0.007, 0.01, 0.014, 0.02],
  "seed": [0, 0, 4294967295]
};
const RANGE = rangesOf(START);
const XI = 0.5; // size of the noise of a label
const [A, B] = [3, 1 / 3]; // where the walkers start
const LENGTH = 8; // of a run, in η² · updates
const N = 600, RECORDS = 160, SECONDS = 6; // walkers of a kind; points of a curve; of a run
const MILLISECONDS = 9; // of a frame, at most, for each kind
const VIEW = [0, 5]; // of both weights
const KINDS = { label: "label noise", isotropic: "isotropic noise" };

export const curvatureAtStart = A * A + B * B;
const S = XI * Math.sqrt(curvatureAtStart / 2);

// Of label noise, at s = η² · updates, as η → 0.
export const predicted = (s) =>
  Math.sqrt(4 + (A * A - B * B) ** 2 * Math.exp(-2 * XI * XI * s));

const STREAMS = { label: "labels", isotropic: "directions" };
export const walkersOf = (kind, seed) => ({ kind, random: new Random(seed, STREAMS[kind]),
  x: new Float64Array(N).fill(A), y: new Float64Array(N).fill(B) });

// One step of every walker. A draw of 32 bits serves 16 walkers.
export function step({ kind, random, x, y }, lr) {
  const isLabel = kind === "label", noise = isLabel ? 0 : S;
  let bits = 0;
  for (let i = 0; i < x.length; i++) {
    if (i % 16 === 0) bits = random.bits();
    const [a, b] = [x[i], y[i]], r = a * b - 1 - (isLabel ? (bits & 1 ? XI : -XI) : 0);
    x[i] = a - lr * (r * b + (bits & 1 ? noise : -noise));
    y[i] = b - lr * (r * a + (bits & 2 ? noise : -noise));
    bits >>>= 2;
  }
}

// Of the walkers' curvatures λ: the mean, its standard error, the median, and the mean of D.
export function summary({ x, y }) {
  const values = Array.from(x, (a, i) => a * a + y[i] * y[i]).sort((a, b) => a - b);
  const n = values.length, mean = values.reduce((sum, value) => sum + value, 0) / n;
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  const difference = x.reduce((sum, a, i) => sum + a * a - y[i] * y[i], 0) / n;
  const flatter = values.filter((value) => value < curvatureAtStart).length / n;
  return { mean, error: Math.sqrt(squares / (n - 1) / n), median: values[n >> 1], difference,
    flatter };
}

// "label", "isotropic", "both" or "neither": where the mean curvature has fallen, by more than
// twice its standard error.
export const fallen = (ends) => {
  const found = Object.keys(KINDS).filter((kind) =>
    ends[kind].mean + 2 * ends[kind].error < curvatureAtStart);
  return found.length === 1 ? found[0] : found.length ? "both" : "neither";
};

const given = ({ mean, error }) => `${mean.toFixed(2)} ± ${(1.96 * error).toFixed(2)}`;

function verdict(made, truth, ends) {
  const { label, isotropic } = ends;
  const found = `Label noise ends at ${given(label)}, isotropic noise at ${given(isotropic)}.`;
  const begun = `${verdictOn(made, truth)}${found}`;
  if (made === null || made === truth) return begun;
  return `${begun} ${made === "neither"
    ? "All minima are equally low, but a step does not see the loss only: it sees the noise, too."
    : "What counts is the direction of the noise, not its size, which is the same at the start."}`;
}

function render({ model, el }) {
  let kinds, steps, history, earlier = [], ends = {}, map, guess, told = 0;

  const page = stage(model, el, {
    title: "Noise with a shape in a valley of minima",
    description: "Two charts. The plane of two weights, with the hyperbola of the minima and the "
      + "walkers; and the mean curvature of the walkers against η² times the updates.",
    legend: [["blue", "●", "label noise"], ["orange", "●", "isotropic noise"],
      ["ink", "━", "minima"], ["green", "╌", "predicted drift"]],
    note: "ℓ = ½(w₁w₂ − 1)², with walkers from (3, ⅓). Label noise makes the 1 of a step 1½ or ½. "
      + "Isotropic noise has the same total variance at the start. The prediction is "
      + "√(4 + D₀² exp(−η²t/2)) with D₀ = w₁² − w₂² at the start, for label noise and short "
      + "steps. Thin curves are medians; grey ones are earlier runs. The grey of the plane is the "
      + "loss.",
    height: (width) => (width > 560 ? side(width) + 78 : side(width) + 290),
    draw,
    update: changed,
    table: () => [["noise", "learning rate", "updates", "η² · updates", "mean curvature",
      "standard error", "median", "mean of w1² − w2²"],
    ...history.map(({ kind, lr, t, s, found }) => [kind, lr, t, s, found.mean, found.error,
      found.median, found.difference])],
  });

  const shown = () => Object.keys(KINDS).filter((kind) =>
    ["both", kind].includes(model.get("noise")));
  const total = () => Math.round(LENGTH / model.get("lr") ** 2);
  const over = () => steps >= total();
  const curve = (kind) => history.filter((row) => row.kind === kind);
  function record() {
    const lr = model.get("lr");
    for (const walkers of kinds)
      history.push({ kind: walkers.kind, lr, t: steps, s: lr * lr * steps,
        found: summary(walkers) });
  }
  function restart() {
    if (history && steps)
      earlier = [...earlier, ...kinds.map(({ kind }) => curve(kind))].slice(-6);
    kinds = shown().map((kind) => walkersOf(kind, model.get("seed")));
    [steps, history] = [0, []];
    record();
    show();
  }
  function advance(count) {
    const each = Math.max(1, Math.round(total() / RECORDS)), lr = model.get("lr");
    const end = performance.now() + MILLISECONDS * kinds.length;
    for (let i = 0; i < count && !over() && performance.now() < end; i++) {
      for (const walkers of kinds) step(walkers, lr);
      steps++;
      if (steps % each === 0 || over()) record();
    }
    if (!over()) return;
    for (const walkers of kinds) ends[walkers.kind] = summary(walkers);
    if (guess.ready && Object.keys(KINDS).every((kind) => ends[kind])) guess.reveal(fallen(ends));
  }
  function tell() {
    const s = model.get("lr") ** 2 * steps;
    const each = kinds.map((walkers) => {
      const found = summary(walkers), isLabel = walkers.kind === "label";
      return ` With ${KINDS[walkers.kind]} the mean curvature is ${given(found)}, ${isLabel
        ? `predicted ${number(predicted(s))}`
        : `predicted not to fall; the median is ${number(found.median)}, and `
          + `${number(100 * found.flatter, 2)} % of the walkers are flatter than at the start`}.`;
    });
    const next = guess?.ready ? " Press Run."
      : " Commit to a prediction, or skip it, to go on.";
    page.say(steps
      ? `After ${steps.toLocaleString("en")} updates, η²t = ${number(s)}.${each.join("")} The `
        + "flattest minimum, (1, 1), has 2."
      : `The curvature is ${number(curvatureAtStart)} at the start.${next}`);
  }
  function show() {
    tell();
    page.redraw();
  }
  function changed() {
    if (playing) toggle();
    restart();
  }

  const side = (width) => (width > 560 ? Math.min(330, 0.46 * width - 40) : width - 44);
  function drawMap(pixels, ink) {
    const canvas = Object.assign(document.createElement("canvas"),
      { width: pixels, height: pixels });
    const pen = canvas.getContext("2d"), image = pen.createImageData(pixels, pixels);
    const colour = channels(ink), at = (i) => VIEW[0] + ((i + 0.5) / pixels) * (VIEW[1] - VIEW[0]);
    for (let i = 0; i < pixels * pixels; i++) {
      const r = at(i % pixels) * at(pixels - 1 - Math.floor(i / pixels)) - 1;
      image.data.set([...colour, 9 * Math.min(9, Math.floor(2 * Math.abs(r)))], 4 * i);
    }
    pen.putImageData(image, 0, 0);
    return { canvas, pixels, ink };
  }
  function draw(pen, width, colours) {
    const { ink, green } = colours, pixels = Math.floor(side(width)), left = 34, top = 22;
    const colour = { label: colours.blue, isotropic: colours.orange };
    if (map?.pixels !== pixels || map.ink !== ink) map = drawMap(pixels, ink);
    panel(pen, colours, [left, top, pixels, pixels], VIEW, VIEW, { x: "w₁", y: "w₂" }, (px, py) => {
      pen.drawImage(map.canvas, left, top);
      polyline(pen, ink, linear(0.2, 5, 200).map((w) => [px(w), py(1 / w)]), { width: 1 });
      for (const { kind, x, y } of [...kinds].reverse()) { // the few places of label noise on top
        pen.fillStyle = colour[kind];
        for (let i = 0; i < N; i++) pen.fillRect(px(x[i]) - 1, py(y[i]) - 1, 2.5, 2.5);
      }
      mark(pen, ink, [px(1), py(1)], 6, { corners: 4, hollow: true });
      Object.assign(pen, { fillStyle: ink, textAlign: "left" });
      pen.fillText("flattest", px(1) + 9, py(1) - 9);
    });
    const at = width > 560
      ? [pixels + 2 * left + 14, top, width - pixels - 2 * left - 26, pixels]
      : [left, pixels + 90, pixels, 140];
    const most = Math.max(12, ...[...history, ...earlier.flat()].map(({ found }) => found.mean));
    panel(pen, colours, at, [0, LENGTH], [0, 1.2 * most],
      { x: "η² · updates", y: "Mean curvature λ = w₁² + w₂²" }, (px, py) => {
        const line = (rows, name) => rows.map(({ s, found }) => [px(s), py(found[name])]);
        const drift = linear(0, LENGTH, 80).map((s) => [px(s), py(predicted(s))]);
        pen.globalAlpha = 0.5;
        curves(pen, earlier.map((rows) => ({ points: line(rows, "mean"), colour: ink, width: 1,
          text: rows.length && `η = ${rows[0].lr}` })), at[0] + at[2]);
        pen.globalAlpha = 1;
        curves(pen, shown().flatMap((kind) => [
          { points: line(curve(kind), "median"), colour: colour[kind], width: 1 },
          { points: line(curve(kind), "mean"), colour: colour[kind], width: 3 }]));
        for (const kind of over() ? shown() : []) {
          Object.assign(pen, { fillStyle: colour[kind], textAlign: "right" });
          const [, v] = line(curve(kind), "mean").at(-1);
          pen.fillText(KINDS[kind], at[0] + at[2] - 4, v + (kind === "label" ? 13 : -13));
        }
        if (guess?.ready) polyline(pen, green, drift, { dash: [6, 4] });
      });
  }

  page.choice("noise", "Noise", RANGE.noise, RANGE.noise.map((name) => KINDS[name] ?? name));
  page.slider("lr", "Learning rate η", RANGE.lr);
  page.follow("seed", () => {}, reader(RANGE.seed));
  const [run, again] = page.buttons({
    Run: () => {
      if (over()) restart();
      toggle();
    },
    "Start again": () => changed(),
    "Another seed": () => {
      model.set("seed", (model.get("seed") + 1) % 2 ** 32);
      model.save_changes();
    },
  });
  let playing = false;
  restart();
  const toggle = page.loop((now) => {
    advance(calm() ? Infinity : Math.ceil(total() / (60 * SECONDS)));
    if (over()) {
      toggle();
      show();
    } else if (!calm()) {
      page.paint();
      if (now - told < 250) return;
      told = now;
      tell();
    }
  }, (now) => {
    playing = now;
    run.textContent = now ? "Pause" : "Run";
    tell();
  }, false);

  const place = document.createElement("div");
  el.prepend(place);
  const ready = () => {
    run.disabled = again.disabled = !guess.ready;
    show();
  };
  guess = predict(place, {
    id: "valley",
    question: "The valley is equally low everywhere. Walkers start where it is sharp, and the two "
      + "noises have the same total variance there. With which does the mean curvature fall?",
    kind: "choice",
    options: [["label", "label noise"], ["isotropic", "isotropic noise"], ["both", "both"],
      ["neither", "neither"]],
    says: (made, truth) => (Object.keys(ends).length === 2 ? verdict(made, truth, ends) : ""),
    onReady: ready,
    onReset: ready,
  });
  queueMicrotask(ready);
  return () => {
    guess.end();
    page.over.abort();
  };
}

export default { render };
