// Explorable: nets that train on the digits, one a batch size, for equally many updates: which
// batch size has the best test accuracy, and where does it go when η doubles?

import digits from "dataset:digits";
import { Lab } from "./lab/lab.js";
import { noiseScale } from "./noisescale.js";
import { predict, verdictOn } from "./predict.js";
import {
  calm, geometric, interval, mark, number, panel, polyline, rangesOf, stage,
} from "./shared.js";

export const START = {
  "lr": [0.4, 0.01, 4],
  "momentum": [0.0, 0, 0.5, 0.9],
  "samples": [200, 100, 200, 300, 500, 700, 1000, 1437],
  "updates": [500, 50, 100, 200, 300, 500, 1000, 2000]
};
const RANGE = rangesOf(START);
const SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256];
const HIDDEN = 64, SEEDS = 8, MOST = 10; // at first, and at most
const GUESS = 0.1; // the accuracy that a net counts with which has diverged

// The best batch size for each seed, of rows {seed, size, test}: of those that are equally good the
// geometric mean.
export function bestSizes(rows) {
  return [...new Set(rows.map(({ seed }) => seed))].map((seed) => {
    const own = rows.filter((row) => row.seed === seed);
    const top = Math.max(...own.map(({ test }) => test));
    const best = own.filter(({ test }) => test === top).map(({ size }) => Math.log(size));
    return Math.exp(best.reduce((sum, value) => sum + value, 0) / best.length);
  });
}

// Their geometric mean, and its 95 % interval over the seeds, no narrower than a step of the sizes.
// Of one seed the interval is unknown: NaN.
export function bestInterval(best) {
  const { mean, half } = interval(best.map(Math.log)), wide = Math.max(half, Math.LN2 / 2);
  return [mean, mean - wide, mean + wide].map(Math.exp);
}

const range = (low, high) => (Number.isFinite(low) ? ` (${number(low)} to ${number(high)})` : "");

function render({ model, el }) {
  let lab = null, job = null, rows = [], before = null, first, second;
  const sizes = () => SIZES.filter((size) => size < model.get("samples"));
  const scale = (size, lr = model.get("lr")) =>
    noiseScale(lr, size, model.get("samples"), model.get("momentum"));
  const meanOf = (list, size, name) => {
    const values = list.filter((row) => row.size === size).map((row) => row[name]);
    return values.reduce((sum, value) => sum + value, 0) / values.length;
  };
  // Rows of the seeds that have all sizes.
  const whole = (list) => list.filter(({ seed }) =>
    list.filter((row) => row.seed === seed).length === sizes().length);
  const seeds = (list) => [...new Set(whole(list).map(({ seed }) => seed))];

  const page = stage(model, el, {
    title: "The best batch size",
    description: "Two charts against the batch size: test accuracy, and training loss, of nets "
      + "that trained for equally many updates. The best batch size is marked.",
    legend: [["blue", "━", "mean over the seeds"], ["ink", "┅", "at half of this η"],
      ["orange", "◆", "the best batch size, and its interval"]],
    note: `Net 64-${HIDDEN}-10 with ReLU, on N of 1,437 digits; tested on 360, so that an image is `
      + "0.28 points. Batches are drawn without replacement. The best batch size is the mean of "
      + "each seed's; its interval is over the seeds, and no narrower than a step of the batch "
      + "sizes. It is chosen on the test set. The seeds do not vary the N images.",
    height: (width) => (width > 560 ? 290 : 550),
    draw,
    update: () => forget(),
    table: () => [["learning rate", "seed", "batch size", "g", "test accuracy", "training loss",
      "tr F", "B_simple"], ...[...(before?.rows ?? []), ...rows].map((row) =>
      [row.lr, row.seed, row.size, scale(row.size, row.lr), row.test, row.loss, row.trace,
        row.simple])],
  });
  const open = Lab.of(page, digits);

  function arrange() {
    const done = !job && seeds(rows).length > 0;
    places[1].hidden = !first.revealed; // one question at a time
    go.disabled = !first.ready;
    go.textContent = job ? "Stop" : "Train";
    again.disabled = !done || before !== null || seeds(rows).length >= MOST;
    double.disabled = !done || before !== null || !second.ready || 2 * model.get("lr") > 8;
    page.redraw();
  }
  function forget() {
    job?.abort();
    [job, rows, before] = [null, [], null];
    page.say(first.ready ? "Press Train." : "Make a prediction or skip it, then train the nets.");
    arrange();
  }
  function stop() {
    job?.abort();
    job = null;
    rows = whole(rows);
    page.say("Stopped.");
    arrange();
  }

  // Trains a net of each batch size, from these seeds.
  async function run(from, lr) {
    const { signal } = (job = new AbortController());
    page.say("The nets are training.");
    arrange();
    try {
      lab = await open();
      for (const seed of from)
        for (const size of sizes()) {
          signal.throwIfAborted();
          rows.push(await trained(size, seed, lr, signal));
          if (!calm()) page.redraw();
        }
    } catch (error) {
      if (signal.aborted || page.over.signal.aborted) return;
      page.say(`${error.message}.`);
    }
    job = null;
    if (seeds(rows).length) tell();
    arrange();
  }
  async function trained(size, seed, lr, signal) {
    const updates = model.get("updates");
    const net = lab.net({ hidden: [HIDDEN], seed, samples: model.get("samples") });
    const halt = () => net.stop();
    signal.addEventListener("abort", halt);
    try {
      const { reason, row } = await net.train({ batchSize: size, lr, seed, evaluateEvery: updates,
        momentum: model.get("momentum"), sampling: "without_replacement", stop: { updates } });
      signal.throwIfAborted();
      if (reason === "diverged")
        return { lr, seed, size, test: GUESS, loss: NaN, trace: NaN, simple: NaN };
      const noise = await net.measure("noise", {}, { signal });
      return { lr, seed, size, test: row.testAccuracy, loss: row.trainLoss, trace: noise.trace,
        simple: noise.scale };
    } finally {
      signal.removeEventListener("abort", halt);
      net.close();
    }
  }

  function tell() {
    const best = bestSizes(rows), [size, low, high] = bestInterval(best.length > 1 ? best
      : [best[0], best[0]]).map((value, i) => (i && best.length < 2 ? NaN : value));
    const near = sizes().reduce((a, b) =>
      (Math.abs(Math.log(b / size)) < Math.abs(Math.log(a / size)) ? b : a));
    const n = best.length, lr = rows[0].lr;
    page.say(`η = ${number(lr)}: the best batch size is ${number(size)}${range(low, high)}, `
      + `over ${n} seed${n > 1 ? "s" : ""}; there g = η (N/B − 1)/(1 − m) = ${
        number(scale(size, lr))}. At B = ${near} the nets end with test accuracy ${
        number(100 * meanOf(rows, near, "test"))} %, `
      + `training loss ${number(meanOf(rows, near, "loss"))}, trace of the gradients' covariance `
      + `${number(meanOf(rows, near, "trace"))} and B_simple = ${
        number(meanOf(rows, near, "simple"))}.${compared(best)}`);
    const [least, most] = n > 1 ? [low, high] : [0, Infinity];
    first.reveal(most < 6 ? "small" : least > 6 && most < 46 ? "middle" : least > 46 ? "large"
      : "unknown");
  }
  // What doubling η has changed, seed by seed.
  function compared(best) {
    if (!before) return "";
    const old = bestSizes(before.rows), ratios = best.map((size, i) => size / old[i]);
    const { mean, half } = interval(ratios.map(Math.log));
    const factor = Math.exp(mean), wide = Math.max(half, Math.LN2 / 2);
    const ends = [mean - wide, mean + wide].map(Math.exp);
    second.reveal(ends[0] > 1 ? "larger" : ends[1] < 1 ? "smaller"
      : ends[0] > 0.5 && ends[1] < 2 ? "same" : "unknown");
    return ` With η doubled it is ${number(factor)} times as large${range(...ends)}.`;
  }

  function draw(pen, width, colours) {
    const side = width > 560, left = 62, across = side ? width / 2 - left - 12 : width - left - 12;
    const known = [...rows, ...(before?.rows ?? [])], xs = [0.8, 320];
    const top = known.length ? 100 * Math.max(...known.map(({ test }) => test)) : 100;
    const losses = known.map(({ loss }) => loss).filter((loss) => loss > 0);
    const span = [Math.min(0.01, ...losses) / 1.5, Math.max(3, ...losses) * 1.5];
    const charts = [["test", "Test accuracy, %", 100, [top - 10, top + 1]],
      ["loss", "Training loss", 1, span]];
    charts.forEach(([name, y, unit, ys], i) => {
      const at = side ? [left + (i * width) / 2, 24, across, 200]
        : [left, 24 + i * 270, across, 190];
      panel(pen, colours, at, xs, ys, { x: "Batch size B", y, xlog: true, ylog: i === 1 },
        (px, py) => {
          const line = (list) => sizes()
            .map((size) => [px(size), py(unit * meanOf(list, size, name))])
            .filter((point) => point.every(Number.isFinite));
          if (before) polyline(pen, colours.ink, line(before.rows), { dash: [5, 4], width: 1.5 });
          for (const row of rows)
            mark(pen, colours.blue, [px(row.size), py(unit * row[name])], 2.5);
          polyline(pen, colours.blue, line(rows));
          if (i === 0 && seeds(rows).length) found(pen, colours.orange, px, py(top + 0.5));
        });
    });
  }
  function found(pen, colour, px, y) {
    const best = bestSizes(whole(rows)), several = best.length > 1;
    const [size, low, high] = bestInterval(several ? best : [best[0], best[0]]);
    if (several) polyline(pen, colour, [[px(low), y], [px(high), y]], { width: 3 });
    mark(pen, colour, [px(size), y], 6, { corners: 4 });
  }

  const places = [0, 1].map(() => document.createElement("div"));
  const asked = (i, spec) => predict(places[i], { kind: "choice", ...spec });
  page.plot.before(places[0]);
  page.root.querySelector("form").before(places[1]);
  first = asked(0, {
    id: "best-batch",
    question: "Nets are trained with batches of 1 to 256, all for equally many updates. Which "
      + "batch size has the best test accuracy?",
    options: [["small", "1 to 4"], ["middle", "8 to 32"], ["large", "64 to 256"],
      ["unknown", "these seeds cannot tell"]],
    says: (made, truth) => `${verdictOn(made, truth)}${{ small: "Here the noisiest are the best.",
      middle: "Noise helps here, up to a point.", large: "Here noise only hurts.",
      unknown: "The interval is in more than one of these ranges; more seeds make it shorter.",
    }[truth]}`,
    onReady: () => job || rows.length || forget(),
    onReset: () => forget(),
  });
  second = asked(1, {
    id: "best-batch-doubled",
    question: "And when η doubles, where does the best batch size go?",
    options: [["smaller", "to smaller batches"], ["same", "it stays"],
      ["larger", "to larger batches"], ["unknown", "these seeds cannot tell"]],
    says: (made, truth) => `${verdictOn(made, truth)}${truth === "larger"
      ? "Larger steps need larger batches for the same noise scale." : truth === "unknown"
        ? "The interval holds more than one of the answers; train more seeds before η is doubled."
        : "Here the noise scale alone does not decide."}`,
    onReady: () => arrange(),
    onReset: () => arrange(),
  });
  const [go, again, double] = page.buttons({
    Train: () => {
      if (job) return stop();
      [rows, before] = [[], null];
      run(Array.from({ length: SEEDS }, (_, i) => i), model.get("lr"));
    },
    "Again with another seed": () => run([Math.max(...seeds(rows)) + 1], model.get("lr")),
    "Double η": () => {
      const from = seeds(rows);
      before = { rows };
      rows = [];
      run(from, 2 * model.get("lr"));
    },
  });
  page.slider("lr", "Learning rate η", geometric(...RANGE.lr));
  page.slider("samples", "Training images N", RANGE.samples);
  page.slider("updates", "Updates", RANGE.updates);
  page.choice("momentum", "Momentum m", RANGE.momentum);
  forget();
  page.over.signal.addEventListener("abort", () => {
    job?.abort();
    first.end();
    second.end();
  });
  return () => page.over.abort();
}

export default { render };
