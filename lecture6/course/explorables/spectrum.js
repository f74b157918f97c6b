// Explorable: eigenvalues of the Hessian of a net that trains on the digits (view "training"), and
// measures of sharpness of the trained net, rescaled layer by layer (view "rescaled": Dinh's α).
//
// The net is 64-width-10, ReLU, without biases.

import digits from "dataset:digits";
import { Lab } from "./lab/lab.js";
import { predict, verdictOn } from "./predict.js";
import { PROVENANCE, rescaled } from "./rescaled.js";
import {
  calm, curves, geometric, mark, number, panel, polyline, rangesOf, reader, stage,
} from "./shared.js";

export const START = {
  "view": ["training", "training", "rescaled"],
  "lr": [0.1, 0.01, 1],
  "epochs": [30, 3, 5, 10, 20, 30, 50, 100],
  "width": [64, 8, 16, 32, 64, 128],
  "seed": [0, 0, 999999999],
  "alpha": [1.0, 0.1, 10]
};
const RANGE = rangesOf(START);
const K = 15; // of the largest eigenvalues are followed, as in the chapter
const BATCH_SIZE = 32;

// How many stand clear, of values in descending order: the widest gap between neighbours, as a
// ratio, is behind the last of them. And that gap, and the widest of the others.
export function outliers(values) {
  const positive = values.filter((value) => value > 0);
  const ratios = positive.slice(1).map((next, i) => positive[i] / next);
  const [gap, second] = [...ratios].sort((a, b) => b - a);
  return { count: ratios.indexOf(gap) + 1, gap, second };
}

// The epochs after which a run of so many is looked at: the first ones, then ever fewer.
export function moments(epochs) {
  const found = new Set([0]);
  for (let i = 0; i <= 12; i++) found.add(Math.round(epochs ** (i / 12)));
  return [...found];
}

// The density at x of one vector's Gauss nodes and weights, every node a normal law of this width.
export function density(nodes, weights, x, width) {
  const law = (z) => Math.exp(-0.5 * z * z) / (width * Math.sqrt(2 * Math.PI));
  return nodes.reduce((sum, node, i) => sum + weights[i] * law((x - node) / width), 0);
}

const subscript = (i) => [...`${i}`].map((digit) => "₀₁₂₃₄₅₆₇₈₉"[digit]).join("");
const percent = (share, digits = 3) => `${number(100 * share, digits)} %`;
const span = (values, show) => {
  const [low, high] = [Math.min, Math.max].map((end) => show(end(...values)));
  return low === high ? low : `${low} to ${high}`;
};

// ---- both views: a net that is trained ----------------------------------------------------------

function render({ model, el }) {
  let job = null, lab, net;
  const shape = () => ({ hidden: [model.get("width")], bias: false });
  // What a view may ask: to draw again, the lab's data, its nets, and whether one is training.
  // Who wants little motion sees what is drawn when all is done.
  const view = (model.get("view") === "rescaled" ? rescaled : training)({
    model, el, alphas: geometric(...RANGE.alpha),
    show: () => (job && calm() ? undefined : page.redraw()),
    images: () => lab.data.test,
    trained: () => net,
    open: (w) => lab.net({ ...shape(), w }),
    running: () => job !== null,
    changed: (name) => ["lr", "epochs", "width"].includes(name) && forget(),
  });
  const { page } = view, open = Lab.of(page, digits);

  const place = document.createElement("div");
  page.plot.before(place);
  const guess = predict(place, {
    ...view.prediction, onReady: () => job || view.done() || forget(), onReset: () => forget(),
  });
  const [go, again] = page.buttons({
    Train: () => (job ? stop("Stopped.") : start()),
    "Again with another seed": () => {
      model.set("seed", model.get("seed") + 1);
      model.save_changes();
      start();
    },
  });
  function arrange() {
    go.disabled = !guess.ready;
    go.textContent = job ? "Stop" : "Train";
    again.disabled = job !== null || !view.done();
    page.redraw();
  }
  function stop(words) {
    job?.abort();
    job = null;
    if (lab && net) net.stop();
    page.say(words);
    arrange();
  }
  // Another net is asked for, or another guess: what is known is of no use.
  function forget() {
    view.forget();
    stop(guess.ready ? "Press Train." : "Make a prediction or skip it, then train the net.");
  }

  async function start() {
    const { signal } = (job = new AbortController());
    view.begin();
    page.say("The net is training, and is measured.");
    arrange();
    try {
      lab = await open();
      signal.throwIfAborted();
      net?.close();
      net = lab.net({ ...shape(), seed: model.get("seed") });
      const truth = await view.run((epochs) => advance(epochs, signal), signal);
      job = null;
      page.say(view.sentence());
      guess.reveal(truth);
    } catch (error) {
      if (signal.aborted || page.over.signal.aborted) return;
      job = null;
      page.say(`${error.message}.`);
    }
    arrange();
  }
  // Trains on until this many epochs are done; returns how well the net does there. It is one call
  // an epoch, so that the net is the same, whatever is measured on the way.
  async function advance(epochs, signal) {
    while ((net.rows.at(-1)?.epoch ?? 0) < epochs - 0.5) {
      const { reason } = await net.train({
        batchSize: BATCH_SIZE, lr: model.get("lr"), seed: model.get("seed"), stop: { epochs: 1 },
      });
      signal.throwIfAborted();
      if (reason === "diverged")
        throw new Error("The loss is no longer finite: the net has diverged. Take a smaller η");
    }
    const [train, test] = await Promise.all(["train", "test"].map((split) =>
      net.measure("evaluate", { split }, { signal })));
    return { epoch: epochs, train, test };
  }

  page.slider("lr", "Learning rate η", geometric(...RANGE.lr));
  page.slider("epochs", "Epochs", RANGE.epochs);
  page.slider("width", "Hidden units", RANGE.width);
  page.follow("seed", () => {}, reader(RANGE.seed));
  view.controls?.();
  forget();
  page.over.signal.addEventListener("abort", () => {
    job?.abort();
    guess.end();
  });
  return () => page.over.abort();
}

// ---- the spectrum while training ----------------------------------------------------------------

function training({ model, el, show, trained, running, changed }) {
  let found = [], counts = new Map(), chosen = null, onTime;

  const page = stage(model, el, {
    title: "The spectrum of the Hessian while a net trains",
    description: "Three charts. The largest eigenvalues against the epoch; training and test loss "
      + "against the epoch; and the density of all eigenvalues after one of these epochs.",
    legend: [["orange", "━", `of the ${K} largest, those before the widest gap`],
      ["ink", "━", "the rest of them"], ["purple", "◆", "the lowest; above, −λ if it is negative"],
      ["blue", "━", "training loss; density"]],
    note: `${PROVENANCE}Eigenvalues are Lanczos's, from up to 60 products of the Hessian of the `
      + "training loss; a bar shows an error that can be seen. The density is smoothed Gauss "
      + "quadrature, a curve for each of three random vectors. An eigenvalue that stands alone has "
      + "area 1 on average. How far the curves differ shows the error. Drag the line to another "
      + "epoch.",
    height: (width) => (width > 560 ? 430 : 700),
    draw,
    update: changed,
    table: () => [["epoch", "quantity", "value", "error"], ...found.flatMap((at) => [
      ...[["training loss", at.train.loss, ""], ["training accuracy", at.train.accuracy, ""],
        ["test loss", at.test.loss, ""], ["test accuracy", at.test.accuracy, ""]],
      ...at.largest.map(({ value, error }, i) => [`λ${i + 1}`, value, error]),
      ["lowest eigenvalue", at.lowest.value, at.lowest.error],
      ...at.nodes.flatMap((nodes, v) => [...nodes].map((node, i) =>
        [`weight of vector ${v + 1} at λ = ${node}`, at.weights[v][i], ""])),
    ].map((row) => [at.epoch, ...row]))],
  });
  const shown = () => found.find(({ epoch }) => epoch === chosen) ?? found.at(-1);
  const count = (at) => outliers(at.largest.map(({ value }) => value));

  async function run(advance, signal) {
    for (const epoch of moments(model.get("epochs"))) {
      const losses = await advance(epoch);
      const [ends, spectrum] = await Promise.all([
        trained().measure("eigenvalues", { k: K, ends: "both", maxProducts: 60 }, { signal }),
        trained().measure("spectrum", { vectors: 3, steps: 30 }, { signal }),
      ]);
      signal.throwIfAborted();
      found.push({ ...losses, largest: ends.largest, lowest: ends.smallest[0], ...spectrum });
      show();
    }
    const { count: n } = count(found.at(-1));
    counts.set(model.get("seed"), n);
    return n < 4 ? "few" : n < 8 ? "some" : n < 13 ? "classes" : "many";
  }

  function sentence() {
    const at = shown(), { count: n, gap, second } = count(at), { lowest, nodes, weights } = at;
    const near = nodes.map((each, v) => each.reduce((sum, node, i) =>
      sum + (Math.abs(node) < at.largest[0].value / 100 ? weights[v][i] : 0), 0));
    const [seeds, numbers] = [counts.keys(), counts.values()].map((each) => [...each].join(", "));
    const gaps = second ? `Among the ${K} largest eigenvalues the widest gap is behind number ${n}, `
      + `a factor of ${number(gap)}; the next widest is a factor of ${number(second)}.`
      : `Hardly any of the ${K} largest eigenvalues is positive.`;
    const below = lowest.value + lowest.error < 0;
    const done = `${at.epoch} epoch${at.epoch === 1 ? "" : "s"}`;
    return `After ${done} the training loss is ${number(at.train.loss)}, the test `
      + `accuracy ${percent(at.test.accuracy)}, and λ₁ = ${number(at.largest[0].value)}. ${gaps}`
      + `${counts.size > 1 ? ` With the seeds ${seeds} it is ${numbers}.` : ""} There are 10 `
      + `classes. The lowest eigenvalue is at most ${number(lowest.value)}`
      + `${below ? ": the Hessian is not positive definite" : ""}. Of all `
      + `${trained().nParams.toLocaleString("en")}, ${span(near, (share) => percent(share))} lie `
      + "within λ₁/100 of zero.";
  }

  function draw(pen, width, colours) {
    const side = width > 560, left = 62, across = side ? width / 2 - left - 16 : width - left - 16;
    const last = model.get("epochs"), at = shown();
    const values = found.flatMap(({ largest, lowest }) =>
      [...largest.map(({ value }) => value), -lowest.value].filter((value) => value > 1e-3));
    const losses = found.flatMap(({ train, test }) => [train.loss, test.loss]);
    const around = (list, low, high) =>
      [Math.min(low, ...list) / 1.3, Math.max(high, ...list) * 1.3];
    const time = [-0.03 * last, 1.13 * last];
    panel(pen, colours, [left, 24, across, 190], time, around(values, 0.05, 5),
      { x: "", y: "Eigenvalue", ylog: true }, (px, py) => {
        onTime = at && { px, at: px(at.epoch) };
        if (!at) return;
        polyline(pen, colours.ink, [[onTime.at, 0], [onTime.at, 999]], { width: 1, dash: [4, 3] });
        eigenvalues(pen, colours, px, py);
      });
    panel(pen, colours, [left, 250, across, 120], time, around(losses, 0.05, 2.5),
      { x: "Epochs", y: "Loss", ylog: true }, (px, py) => {
        const line = (split) => found.map((each) => [px(each.epoch), py(each[split].loss)]);
        curves(pen, [{ points: line("train"), colour: colours.blue, text: "training" },
          { points: line("test"), colour: colours.ink, text: "test", dash: [5, 4] }],
        left + across);
      });
    spectrum(pen, colours, side ? [width / 2 + left, 24, across, 346] : [left, 440, across, 205]);
  }
  function eigenvalues(pen, { ink, orange, purple }, px, py) {
    const { count: n } = count(found.at(-1)), named = new Set([1, n, n + 1]);
    for (let i = K; i > 0; i--) {
      const colour = i <= n ? orange : ink;
      const known = found.filter(({ largest }) => largest[i - 1]?.value > 0);
      const points = known.map(({ epoch, largest }) => [px(epoch), py(largest[i - 1].value)]);
      polyline(pen, colour, points, { width: i <= n ? 2 : 1 });
      known.forEach(({ largest }, k) => {
        const { value, error } = largest[i - 1], [x] = points[k];
        const ends = [value - error, value + error].map((end) => [x, py(Math.max(end, 1e-9))]);
        if (error > 0.02 * value) polyline(pen, colour, ends, { width: 1 });
      });
      if (!named.has(i) || !points.length) continue;
      const [x, y] = points.at(-1);
      Object.assign(pen, { fillStyle: colour, textAlign: "left", textBaseline: "middle" });
      pen.fillText(`λ${subscript(i)}`, x + 7, y);
    }
    for (const { epoch, lowest } of found)
      if (lowest.value < 0) mark(pen, purple, [px(epoch), py(-lowest.value)], 4, { corners: 4 });
  }
  // Eigenvalues in a unit of λ; below, those that are known one by one.
  function spectrum(pen, colours, at) {
    const here = shown(), n = trained()?.nParams;
    const high = Math.max(1, ...found.map(({ largest }) => largest[0].value)) * 1.06;
    const low = Math.min(-0.1 * high, ...found.map(({ lowest }) => 1.2 * lowest.value));
    const width = 0.01 * (high - low);
    const y = `Eigenvalues per unit of λ${here ? `, epoch ${here.epoch}` : ""}`;
    panel(pen, colours, at, [low, high], [0.1, 1e5], { x: "Eigenvalue λ", y, ylog: true },
      (px, py) => {
        if (!here) return;
        const grid = Array.from({ length: 201 }, (_, i) => low + ((high - low) * i) / 200);
        here.nodes.forEach((nodes, v) => polyline(pen, colours.blue, grid.map((x) =>
          [px(x), py(Math.max(1e-3, n * density(nodes, here.weights[v], x, width)))]),
        { width: 1.2 }));
        const { count: clear } = count(here), base = at[1] + at[3];
        here.largest.forEach(({ value }, i) => polyline(pen, i < clear ? colours.orange
          : colours.ink, [[px(value), base], [px(value), base - (i < clear ? 22 : 12)]]));
        mark(pen, colours.purple, [px(here.lowest.value), base - 10], 6, { corners: 4 });
      });
  }

  const handle = page.handle("Epoch", () => (found.length ? [onTime.at, 119] : null), (x) => {
    const gaps = found.map(({ epoch }) => Math.abs(onTime.px(epoch) - x));
    const step = Math.sign(Math.round(x - onTime.at));
    // An arrow key goes to the next of them, however far off that is.
    const next = handle.held ? gaps.indexOf(Math.min(...gaps)) : found.indexOf(shown()) + step;
    chosen = (found[next] ?? shown()).epoch;
    if (!running()) page.say(sentence());
    page.redraw();
  });

  return {
    page, run, sentence,
    begin() { [found, chosen] = [[], null]; },
    forget() { [found, counts, chosen] = [[], new Map(), null]; },
    done: () => counts.size > 0,
    prediction: {
      id: "spectrum-training",
      question: `The net tells 10 classes apart. After training, how many of the ${K} largest `
        + "eigenvalues of its Hessian stand clear of the others?",
      kind: "choice",
      options: [["few", "1 to 3"], ["some", "4 to 7"], ["classes", "8 to 12, about as many as "
        + "there are classes"], ["many", "13 or more"]],
      says: (made, truth) => `${verdictOn(made, truth)}${
        truth === "classes" ? "The steep directions are about as many as the classes."
          : "Here they are not about as many as the classes."}`,
    },
  };
}

export default { render };
