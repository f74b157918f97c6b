// Explorable: one step of SGD, equation (1), on a loss of two weights.
//
// The model is logistic regression. A sample is [x₁, x₂, s] with the class s = ±1; its loss is
// ln(1 + exp(−s w·x)), and that of a set is the mean. With momentum m, as PyTorch has it, a step is
// v ← m v + ḡ, w ← w − ηv, where ḡ is the mean of the gradients of the batch. Batches are drawn by
// epoch: the samples are shuffled, and each is used once.

import { Random } from "./lab/random.js";
import { predict } from "./predict.js";
import {
  calm, channels, curves, geometric, linear, mark, number, panel, polyline, rangesOf, reader, stage,
} from "./shared.js";

export const START = {
  "samples": [[]],
  "test": [[]],
  "provenance": [""],
  "lr": [2.0, 0.1, 32],
  "batch_size": [8, 1, 1000000],
  "momentum": [0.0, 0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98],
  "w1": [-2.0, -3, 7],
  "w2": [1.0, -3, 7],
  "seed": [0, 0, 4294967295]
};
const RANGE = rangesOf(START);
const VIEW = RANGE.w1; // of both weights
const CELLS = 32, PIXELS = 240; // a side of the map of the loss: computed, and painted
const BAND = 3; // bands while the loss doubles
const SLOW = 40, MILLISECONDS = 80; // the first steps of a run, one at a time
const BUSY = 8; // milliseconds of a frame for steps that are not shown
const LEFT = 34, TOP = 22; // of the map, in px
const EPOCHS = 40, MOST = 2000; // of a run: epochs, or updates

// ---- the model ----------------------------------------------------------------------------------

const margin = ([x, y, sign], w) => sign * (w[0] * x + w[1] * y);
const lossOf = (sample, w) => {
  const z = -margin(sample, w);
  return Math.max(z, 0) + Math.log1p(Math.exp(-Math.abs(z)));
};
export const loss = (samples, w) =>
  samples.reduce((sum, sample) => sum + lossOf(sample, w), 0) / samples.length;
export const accuracy = (samples, w) =>
  samples.filter((sample) => margin(sample, w) > 0).length / samples.length;
export function gradientOf(sample, w) {
  const pull = -sample[2] / (1 + Math.exp(margin(sample, w)));
  return [pull * sample[0], pull * sample[1]];
}
export const mean = (vectors) =>
  vectors[0].map((_, i) => vectors.reduce((sum, vector) => sum + vector[i], 0) / vectors.length);
export const gradient = (samples, w) => mean(samples.map((sample) => gradientOf(sample, w)));

export function step({ w, v }, slope, { lr, momentum }) {
  const velocity = v.map((part, i) => momentum * part + slope[i]);
  return { v: velocity, w: w.map((part, i) => part - lr * velocity[i]) };
}

// Where the loss is lowest, by Newton's method.
export function minimum(samples) {
  let w = [0, 0];
  for (let i = 0; i < 20; i++) {
    const [a, b] = gradient(samples, w);
    const [p, q, r] = mean(samples.map((sample) => {
      const [x, y] = sample, h = 1 / (2 + 2 * Math.cosh(margin(sample, w)));
      return [h * x * x, h * x * y, h * y * y];
    }));
    const determinant = p * r - q * q;
    w = [w[0] - (r * a - q * b) / determinant, w[1] - (p * b - q * a) / determinant];
  }
  return w;
}

// The standard deviation of the gradients: the root of the trace of their covariance.
export function spread(gradients) {
  const [a, b] = mean(gradients);
  const squares = gradients.reduce((sum, [x, y]) => sum + (x - a) ** 2 + (y - b) ** 2, 0);
  return Math.sqrt(squares / (gradients.length - 1));
}

// The samples in the order of the first epoch, of which a batch is the next few.
const shuffled = (n, seed) => {
  const random = new Random(seed, "batches"), order = Array.from({ length: n }, (_, i) => i);
  random.shuffle(order, 0, n, n);
  return { random, order };
};
export const batchOf = (samples, size, seed) =>
  shuffled(samples.length, seed).order.slice(0, size).map((i) => samples[i]);

// ---- words --------------------------------------------------------------------------------------

const length = ([x, y]) => Math.hypot(x, y);
const minus = (a, b) => a.map((part, i) => part - b[i]);
const degrees = (a, b) => {
  const cosine = (a[0] * b[0] + a[1] * b[1]) / (length(a) * length(b) || 1);
  return (180 / Math.PI) * Math.acos(Math.min(1, Math.max(-1, cosine)));
};
const pair = (vector) => `(${vector.map((part) => part.toFixed(3).replace("-", "−")).join(", ")})`;

// Equation (1) with the numbers of a step that was made.
function inNumbers({ from, to, v, slope, gradients, lr, momentum, before }) {
  const n = gradients.length, few = n > 1 && n <= 4;
  const sum = few ? `(1/${n}) [${gradients.map(pair).join(" + ")}] = ` : "";
  const carried = momentum ? `v ← mv + ḡ = ${momentum} · ${pair(before)} + ${pair(slope)} = `
    + `${pair(v)}. ` : "";
  return `ḡ = ${sum}${pair(slope)}. ${carried}w ← w − η${momentum ? "v" : "ḡ"} = ${pair(from)} − `
    + `${number(lr)} · ${pair(v)} = ${pair(to)}.`;
}

// One sentence for a guess of where the step from `w` ends; `lowest` is the minimum of the loss.
export function verdict(made, { x, y }, w, lowest) {
  const truth = [x, y], right = minus(truth, w), size = length(right);
  const ends = `The step ends at ${pair(truth)}, the mean of the arrowheads.`;
  if (!made) return ends;
  const point = [made.x, made.y], guess = minus(point, w);
  const off = length(minus(point, truth)), ratio = length(guess) / size;
  const apart = length(guess) ? degrees(guess, right) : 0;
  const start = `Your point is ${number(off, 2)} off; the step is ${number(size, 2)} long.`;
  if (off < 0.15 * size) return `${start} That is it: the step goes to the mean of the arrowheads.`;
  if (length(minus(point, lowest)) < 0.3 * length(minus(lowest, w)))
    return `${start} You aimed at the minimum, of which the step knows nothing. ${ends}`;
  if (apart > 100) return `${start} Your step goes uphill: each arrow points down its own slope.`;
  if (ratio > 1.4 && apart < 35)
    return `${start} Yours is too long: the arrows are averaged, not added.`;
  if (ratio < 0.6 && apart < 35)
    return `${start} Yours is too short. ${ends}`;
  return `${start} ${ends}`;
}

// ---- what is drawn ------------------------------------------------------------------------------

// Where the line of an arrow ends, and its head's corners.
function headOf(from, to, width) {
  const [dx, dy] = minus(to, from), size = Math.hypot(dx, dy) || 1;
  const share = Math.min(size / 2, 4 + 2 * width) / size, [u, v] = [share * dx, share * dy];
  const [x, y] = [to[0] - u, to[1] - v];
  return [[x, y], to, [x - v / 2, y + u / 2], [x + v / 2, y - u / 2]];
}
function arrow(pen, colour, from, to, width) {
  const [base, ...corners] = headOf(from, to, width);
  polyline(pen, colour, [from, base], { width });
  pen.fillStyle = colour;
  pen.beginPath();
  for (const corner of corners) pen.lineTo(...corner);
  pen.fill();
}

// The loss on a grid of both weights, and a picture of its bands, the higher the stronger.
function landscape(samples, best) {
  const at = linear(...VIEW, CELLS);
  const heights = at.map((y) => at.map((x) => Math.log2(loss(samples, [x, y]))));
  const canvas = Object.assign(document.createElement("canvas"), { width: PIXELS, height: PIXELS });
  let painted;
  return (ink) => {
    if (painted === ink) return canvas;
    painted = ink;
    const pen = canvas.getContext("2d"), image = pen.createImageData(PIXELS, PIXELS);
    const colour = channels(ink);
    for (let i = 0; i < PIXELS * PIXELS; i++) {
      const [a, b] = [i % PIXELS, PIXELS - 1 - Math.floor(i / PIXELS)].map((p) =>
        ((p + 0.5) / PIXELS) * CELLS);
      const [j, k] = [Math.floor(a), Math.floor(b)], [s, t] = [a - j, b - k];
      const [low, high] = [heights[k], heights[k + 1]].map((row) =>
        row[j] + s * (row[j + 1] - row[j]));
      const band = Math.floor(BAND * (low + t * (high - low) - Math.log2(best)));
      image.data.set([...colour, 7 * Math.min(14, band + 1)], 4 * i);
    }
    pen.putImageData(image, 0, 0);
    return canvas;
  };
}

// ---- the bench ----------------------------------------------------------------------------------

function render({ model, el }) {
  const samples = model.get("samples"), test = model.get("test"), n = samples.length;
  const lowest = minimum(samples), best = loss(samples, lowest), map = landscape(samples, best);
  const settings = () => ({ lr: model.get("lr"), momentum: model.get("momentum") });
  const problem = { w: [model.get("w1"), model.get("w2")], seed: model.get("seed"), ...settings(),
    batch: batchOf(samples, model.get("batch_size"), model.get("seed")) };
  let state, random, order, position, epoch, history, earlier = [], last, guess, inPixels;

  const page = stage(model, el, {
    title: "One step of SGD",
    description: "Two charts. The loss over the two weights w₁ and w₂, with the path of SGD, and "
      + "for one mini-batch the steps that its samples would make alone and the step of their "
      + "mean; and the training and test loss against the update.",
    legend: [["ink", "→", "steps of single samples, −η∇ℓᵢ"], ["orange", "➞", "the step"],
      ["green", "╌", "the step of all samples"], ["purple", "→", "the part of momentum"],
      ["ink", "◆", "minimum"]],
    note: `Computed in this page: ${model.get("provenance")}. The stronger the grey, the higher `
      + `the loss, by ${number(2 ** (1 / BAND))} a band. Drag the ring to start elsewhere.`,
    height: (width) => (width > 560 ? side(width) + 78 : side(width) + 275),
    draw,
    update: changed,
    table: () => [["update", "epoch", "batch size", "learning rate", "momentum", "w1", "w2",
      "training loss", "test loss"], ...history],
  });
  page.plot.insertAdjacentHTML("afterend", '<p class="equation"></p>');
  const equation = page.root.querySelector(".equation");

  const size = () => Math.min(n, model.get("batch_size"));
  // The samples of the next batch.
  const upcoming = () => order.slice(position, position + size()).map((i) => samples[i]);
  function shuffle() {
    random.shuffle(order, 0, n, n);
    position = 0;
  }
  function record() {
    const { w } = state, { lr, momentum } = settings();
    history.push([history.length, epoch, model.get("batch_size"), lr, momentum, ...w,
      loss(samples, w), loss(test, w)]);
  }
  function restart() {
    if (history?.length > 1) earlier = history;
    state = { w: [model.get("w1"), model.get("w2")], v: [0, 0] };
    ({ random, order } = shuffled(n, model.get("seed")));
    [epoch, position, history, last] = [0, 0, [], null];
    record();
    show();
  }
  function advance() {
    if (position === n) {
      shuffle();
      epoch++;
    }
    const { w: from, v: before } = state, chosen = settings(), full = gradient(samples, from);
    const gradients = upcoming().map((sample) => gradientOf(sample, from)), slope = mean(gradients);
    state = step(state, slope, chosen);
    position += gradients.length;
    last = { ...chosen, gradients, slope, from, before, full, to: state.w, v: state.v,
      place: `batch ${Math.ceil(position / size())} of ${Math.ceil(n / size())} in epoch ${
        epoch + 1}` };
    record();
  }
  const over = () => epoch >= EPOCHS || history.length > MOST || length(state.w) > 1e6;

  function noise() {
    const { gradients, slope, full } = last, b = gradients.length;
    if (b === n) return " It follows the gradient of the whole training set: there is no noise.";
    const turned = ` Its gradient points ${number(degrees(slope, full), 2)}° away from that of all `
      + `${n} samples.`;
    if (b === 1) return turned;
    const [one, all] = [1, Math.sqrt(b)].map((by) => number(spread(gradients) / by, 2));
    return `${turned} The ${b} gradients scatter by ${one}, so a mean of ${b} by about ${all}.`;
  }
  function tell() {
    equation.textContent = last ? inNumbers(last) : "";
    const next = guess?.ready ? "Press Step." : "Commit to a prediction, or skip it, to go on.";
    if (!last) return page.say(
      `The training loss at w = ${pair(state.w)} is ${number(history[0][7])}. ${next}`);
    const [was, now] = history.slice(-2).map((row) => row[7]);
    const moved = number(now) === number(was) ? `stays at ${number(now)}`
      : `${now < was ? "fell" : "rose"} from ${number(was)} to ${number(now)}`;
    page.say(`Update ${history.length - 1}, ${last.place}: a step `
      + `${number(length(minus(last.to, last.from)), 2)} long. The training loss `
      + `${moved}; the lowest is ${number(best)}. Test accuracy `
      + `${number(100 * accuracy(test, last.to))} %.${noise()}`);
  }
  function show() {
    tell();
    page.redraw();
  }
  function changed(name) {
    if (name === "batch_size" && position) shuffle(); // what is left of the epoch is skipped
    if (name === "w1" || name === "w2") restart();
    else show();
  }

  const side = (width) => (width > 560 ? Math.min(400, 0.6 * width - 50) : width - 44);
  function draw(pen, width, colours) {
    const across = Math.floor(side(width)), { ink } = colours;
    panel(pen, colours, [LEFT, TOP, across, across], VIEW, VIEW, { x: "w₁", y: "w₂" }, (px, py) => {
      const at = ([x, y]) => [px(x), py(y)];
      inPixels = { at, across };
      pen.drawImage(map(ink), LEFT, TOP, across, across);
      mark(pen, ink, at(lowest), 6, { corners: 4 });
      polyline(pen, colours.blue, history.map((row) => at(row.slice(5, 7))), { width: 1 });
      drawStep(pen, colours, at);
      if (guess?.made && history.length < 3)
        mark(pen, colours.blue, at([guess.made.x, guess.made.y]), 7, { hollow: true });
      mark(pen, colours.orange, at(state.w), 9, { hollow: true });
    });
    const chart = width > 560
      ? [across + 2 * LEFT + 18, TOP, width - across - 2 * LEFT - 30, across]
      : [LEFT, across + 90, across, 130];
    const top = Math.max(...[...history, ...earlier].map((row) => Math.max(row[7], row[8])));
    const end = Math.max(10, history.length - 1, earlier.length - 1);
    const room = history.length > end / 2; // for names
    panel(pen, colours, chart, [0, end], [0, 1.1 * Math.min(top, 8)],
      { x: "Update", y: "Mean loss: training ━, test ╌" }, (px, py) => {
        const line = (rows, column) => rows.map((row) => [px(row[0]), py(row[column])]);
        curves(pen, [
          { points: line(earlier, 7), colour: ink, width: 1, text: "earlier run" },
          { points: line(history, 8), colour: colours.orange, text: room && "test", dash: [5, 4] },
          { points: line(history, 7), colour: colours.blue, text: room && "training" },
        ], chart[0] + chart[2]);
        mark(pen, colours.blue, line(history, 7).at(-1), 4);
      });
  }
  // The fan of the batch. Until the reader has guessed, only that.
  function drawStep(pen, colours, at) {
    const { lr } = last ?? settings(), from = last?.from ?? state.w;
    const gradients = last?.gradients ?? upcoming().map((sample) => gradientOf(sample, from));
    const against = (slope) => at(from.map((part, i) => part - lr * slope[i]));
    pen.globalAlpha = gradients.length > 32 ? 0.3 : 0.65;
    for (const each of gradients) arrow(pen, colours.ink, at(from), against(each), 1);
    pen.globalAlpha = 1;
    if (!last) return;
    polyline(pen, colours.green, [at(from), against(last.full)], { dash: [6, 4], width: 3 });
    arrow(pen, colours.purple, at(from), against(last.before.map((v) => last.momentum * v)), 2);
    arrow(pen, colours.orange, at(from), at(last.to), 3);
  }

  for (const name of ["w1", "w2"]) page.follow(name, () => {}, reader(RANGE[name], false));
  page.handle("Weights w, where SGD starts", () => {
    const place = inPixels?.at(state.w), inside = (px) => px >= 0 && px <= inPixels.across;
    return place && inside(place[0] - LEFT) && inside(place[1] - TOP) ? place : null;
  }, (x, y) => {
    const shares = [(x - LEFT) / inPixels.across, 1 - (y - TOP) / inPixels.across];
    shares.forEach((share, i) => {
      const value = VIEW[0] + Math.min(1, Math.max(0, share)) * (VIEW[1] - VIEW[0]);
      model.set(`w${i + 1}`, Number(value.toFixed(2)));
    });
  });
  page.slider("lr", "Learning rate η", geometric(...RANGE.lr));
  page.slider("batch_size", "Batch size B", [1, 2, 4, 8, 16, 32, 64, 128, n],
    { show: (size) => (size < n ? `${size}` : `all ${n}`) });
  page.slider("momentum", "Momentum m", RANGE.momentum);
  const [stepping, running] = page.buttons({
    Step: () => {
      if (!over()) advance();
      show();
    },
    Run: () => {
      if (over()) restart();
      toggle();
    },
    "Start again": restart,
    "Other batches": () => {
      model.set("seed", model.get("seed") + 1);
      model.save_changes();
      restart();
    },
  });
  restart();
  let stepped = 0, told = 0;
  const toggle = page.loop((now) => {
    if (history.length <= SLOW && !calm() && now - stepped < MILLISECONDS) return;
    stepped = now;
    const end = performance.now() + BUSY;
    do advance(); while (calm() && !over() && performance.now() < end);
    if (over()) {
      toggle();
      page.redraw();
    } else if (!calm()) {
      page.paint();
      if (now - told < 250) return;
      told = now;
      tell();
    }
  }, (playing) => {
    running.textContent = playing ? "Pause" : "Run";
    tell();
  }, false);

  guess = ask(el, problem, lowest, () => {
    stepping.disabled = running.disabled = !guess.ready;
    show();
  });
  return () => {
    guess.end();
    page.over.abort();
  };
}

// The prediction: where the first step ends. `changed` is called when the reader has committed or
// skipped, and when the guess is taken back.
function ask(el, { w, batch, lr, seed }, lowest, changed) {
  const ends = batch.map((sample) => gradientOf(sample, w).map((slope, i) => w[i] - lr * slope));
  const axis = (i, label) => {
    const values = [w[i], ...ends.map((end) => end[i])];
    const [low, high] = [Math.min(...values), Math.max(...values)], more = 0.15 * (high - low);
    return { label, low: Math.floor(2 * (low - more)) / 2, high: Math.ceil(2 * (high + more)) / 2 };
  };
  const [x, y] = mean(ends), place = document.createElement("div");
  el.prepend(place);
  const guess = predict(place, {
    id: `one step ${[...w, batch.length, lr, seed]}`,
    question: `Each arrow is the step that one sample of a batch of ${batch.length} would make `
      + `alone, from w = ${pair(w)} with η = ${number(lr)}. Where does the step of the batch end?`,
    kind: "point",
    axes: { x: axis(0, "w₁"), y: axis(1, "w₂") },
    start: { x: w[0], y: w[1] },
    behind: (px, py) => ends.map((end) => {
      const [from, to] = [w, end].map(([u, v]) => [px(u), py(v)]);
      const [base, ...head] = headOf(from, to, 2);
      return `<path style="stroke-opacity: 0.7" d="M${from}L${base}"/>`
        + `<path style="fill: currentcolor" d="M${head.join("L")}z"/>`;
    }).join(""),
    says: (made, truth) => verdict(made, truth, w, lowest),
    onReady() {
      guess.reveal({ x, y });
      changed();
    },
    onReset: () => changed(),
  });
  queueMicrotask(changed);
  return guess;
}

export default { render };
