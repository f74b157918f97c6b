// Explorable: the linear scaling rule on a net that trains in the page: mini-batches of 8 against
// mini-batches k times as large, whose rate is k times as large, or follows another rule.

import digits from "dataset:digits";
import { Lab } from "./lab/lab.js";
import { predict, verdictOn } from "./predict.js";
import {
  calm, curves, geometric, interval, mark, number, panel, polyline, rangesOf, stage,
} from "./shared.js";

export const START = {
  "k": [8, 2, 4, 8, 16, 32, 64, 128],
  "lr": [0.05, 0.01, 1],
  "rule": ["linear", "linear", "sqrt", "none"],
  "warmup": [0, 0, 1, 2, 3, 5, 8, 10],
  "epochs": [20, 5, 10, 20, 30, 50],
  "seed": [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
};
const RANGE = rangesOf(START);
const SIZE = 8; // B of the small batches
const KS = [1, ...RANGE.k];
const SEEDS = 5;
const GUESS = Math.log(10); // the loss of a net that guesses
export const MARGIN = 1.5; // the rule holds where the training loss is at most this many times
const TOO_HIGH = `At this η the net of B = ${SIZE} does not train: take a smaller one.`;
const RULES = { linear: ["kη", (k) => k], sqrt: ["√k η", Math.sqrt], none: ["η", () => 1] };
export const scaled = (rule, lr, k) => lr * RULES[rule][1](k);
// The rate after so many epochs: it rises linearly from `lr` to `full` while the warm-up lasts.
export const rateAt = (epoch, lr, full, warmup) =>
  (epoch < warmup ? lr + ((full - lr) * epoch) / warmup : full);

// What runs say of each k: how many times the training loss of k = 1 is that of k, a geometric mean
// over the seeds with its interval, and whether the rule "holds", "breaks", or is "open". `runs`
// has, for each seed, the losses in the order of `ks`, of which 1 is the first; NaN: it failed.
export function judged(runs, ks = KS) {
  return ks.map((k, i) => {
    const ratios = runs.map((losses) => losses[i] / losses[0]);
    const failed = ratios.filter((ratio) => !Number.isFinite(ratio)).length;
    const { mean, half } = interval(ratios.map(Math.log)), width = runs.length > 1 ? half : 0;
    const [value, low, high] = [mean, mean - width, mean + width].map(Math.exp);
    const verdict = failed || low > MARGIN ? "breaks" : high <= MARGIN ? "holds" : "open";
    return { k, value, low, high, failed, verdict };
  });
}
// That of the last k up to which the rule holds at each; undefined where k = 1 itself failed.
export function lastHeld(found) {
  const first = found.findIndex(({ verdict }) => verdict !== "holds");
  return first < 0 ? found.at(-1) : found[first - 1];
}

// The update from which on a net is no better than a guess; 0 where it ends better.
export function lost(rows) {
  const better = rows.findLastIndex(({ trainLoss }) => trainLoss < 0.98 * GUESS);
  return better === rows.length - 1 ? 0 : rows[Math.max(1, better + 1)].update;
}
// What became of a net that does not train; of others nothing.
const failure = ({ rows, end }) => (end ? `diverged at update ${end}`
  : lost(rows) ? `is no better than a guess from update ${lost(rows)} on` : "");

// After which epochs λ_max is measured.
const looked = (epoch, epochs) =>
  epoch < 6 || epoch === epochs || epoch % Math.ceil(epochs / 10) === 0;
const highest = (points) => Math.max(...points.map(([, value]) => value));

function render({ model, el }) {
  let lab, job = null, pair = null, sweeps = [];
  const settings = () => Object.fromEntries(Object.keys(START).map((name) =>
    [name, model.get(name)]));
  const rate = (k, epoch = Infinity) => {
    const { lr, rule, warmup } = settings();
    return rateAt(epoch, lr, scaled(rule, lr, k), warmup);
  };

  const page = stage(model, el, {
    title: "k small steps against one large step, on a net",
    description: "Five charts. Of a net with small batches and one with large, against the epoch: "
      + "training loss, test accuracy, distance between their weights, and learning rate times "
      + "λ_max. Below, how many times the training loss of k = 1 is that of each k.",
    legend: [["blue", "━", `B = ${SIZE}, rate η`], ["orange", "━", "k times as large"],
      ["blue", "- -", "large batch’s rate × small batch’s λ_max"],
      ["green", "━", "all k, after the last epoch"]],
    note: "Net 64-64-10, ReLU, cross-entropy, 4,810 weights; plain SGD on 1,437 of scikit-learn’s "
      + "digits, 360 to test. All nets of a seed start at the same weights and see equally many "
      + "images. λ_max is that of the Hessian of the training loss. The rule is said to hold where "
      + `the training loss is at most ${MARGIN} times that of B = ${SIZE}. Hollow: the seeds cannot `
      + "tell. ✗: some net is no better than a guess at the end. Over seeds: geometric "
      + "means of the paired ratio with 95 % t-intervals.",
    height: (width) => places(width).at(-1)[1] + 170,
    draw,
    update: forget,
    table: csv,
  });
  const open = Lab.of(page, digits);
  const place = document.createElement("div");
  page.plot.before(place);
  const guess = predict(place, {
    id: "scaling",
    question: `Batches of ${SIZE} train well at the rate η. Up to which k does the rate kη give `
      + "batches k times as large nearly the same training loss?",
    kind: "choice",
    options: [["1", "k = 2 is already too much"], ["4", "k = 2 or 4"], ["16", "k = 8 or 16"],
      ["64", "k = 32 or 64"], ["128", "as far as it goes, to k = 128"]],
    says: (made, truth) => `${verdictOn(made, truth)}${
      { 1: "Here it breaks at once.", 128: "Here nothing breaks it." }[truth]
      ?? "The rule holds for a while, and then it breaks."}`,
    onReady: () => ready(),
    onReset: () => ready(),
  });

  // ---- running -----------------------------------------------------------------------------------

  function arrange() {
    for (const button of [train, all, five]) button.disabled = job !== null || !guess.ready;
    halt.disabled = job === null;
    page.state.setAttribute("aria-live", job ? "off" : "polite");
    page.redraw();
  }
  function ready() {
    if (!job) page.say(sentence());
    arrange();
  }
  // Other nets are asked for. All k do not depend on the k that is chosen.
  function forget(name) {
    job?.abort();
    [job, pair] = [null, null];
    if (name !== "k") sweeps = [];
    ready();
  }
  // Calls `work(signal)`, unless something else is asked for meanwhile.
  async function run(work) {
    const { signal } = (job = new AbortController());
    arrange();
    try {
      lab = await open();
      signal.throwIfAborted();
      await work(signal);
      job = null;
    } catch (error) {
      if (signal.aborted || page.over.signal.aborted) return;
      throw error;
    }
    ready();
  }

  // Trains a net for each of `ks` from the same weights, an epoch at a time, and awaits
  // `look(epoch, nets)` before the first and after each. Returns, for each, its rows, and the update
  // at which it diverged, or 0.
  async function race(ks, seed, signal, look) {
    const nets = ks.map(() => lab.net({ seed })), ends = ks.map(() => 0);
    const close = () => nets.forEach((net) => net.close().catch(() => {}));
    signal.addEventListener("abort", close);
    const { epochs } = settings();
    await look(0, nets);
    for (let epoch = 1; epoch <= epochs; epoch++) {
      await Promise.all(nets.map(async (net, i) => {
        if (ends[i]) return;
        const batchSize = SIZE * ks[i];
        const { reason, update } = await net.train({
          batchSize, seed, stop: { epochs: 1 }, lr: rate(ks[i], epoch),
          warmupFrom: rate(ks[i], epoch - 1), warmup: Math.ceil(lab.data.train.n / batchSize),
        });
        if (reason === "diverged") ends[i] = update + 1;
      }));
      signal.throwIfAborted();
      await look(epoch, nets, ends);
      signal.throwIfAborted();
      if (!calm()) page.redraw();
    }
    signal.removeEventListener("abort", close);
    close();
    return nets.map(({ rows }, i) => ({ rows, end: ends[i] }));
  }
  const curvature = async (net, signal) => {
    const { largest: [{ value }] } = await net.measure("eigenvalues", {}, { signal });
    return value;
  };

  const two = (signal) => {
    const { k, seed, epochs } = settings();
    pair = null;
    return race([1, k], seed, signal, async (epoch, nets, ends = [0, 0]) => {
      pair ??= { lambda: [[], []], distance: [] };
      const apart = await nets[0].measure("distance", { to: nets[1] }, { signal });
      pair.distance.push([epoch, apart.value]);
      if (looked(epoch, epochs))
        await Promise.all(nets.map(async (net, i) =>
          ends[i] || pair.lambda[i].push([epoch, await curvature(net, signal)])));
      Object.assign(pair, { nets: nets.map(({ rows }, i) => ({ rows, end: ends[i] })) });
      signal.throwIfAborted();
      page.say(`Seed ${seed}, epoch ${epoch} of ${epochs}.`);
    });
  };
  // All k, over so many seeds in all.
  const every = (seeds) => async (signal) => {
    const { seed: first, epochs, rule } = settings();
    while (sweeps.length < seeds) {
      const seed = first + sweeps.length, lambda = [];
      const nets = await race(KS, seed, signal, async (epoch, [small], [end] = []) => {
        if (!end && looked(epoch, epochs)) lambda.push([epoch, await curvature(small, signal)]);
        signal.throwIfAborted();
        page.say(`Seed ${seed}, all k, epoch ${epoch} of ${epochs}.`);
      });
      sweeps.push({ seed, lambda, nets });
    }
    if (rule !== "linear") return;
    const held = lastHeld(verdicts());
    if (held) guess.reveal(["1", "4", "16", "64", "128"].find((key) => held.k <= Number(key)));
  };

  // ---- what was found ----------------------------------------------------------------------------

  const verdicts = () => judged(sweeps.map(({ nets }) =>
    nets.map((net) => (failure(net) ? NaN : net.rows.at(-1).trainLoss))));
  // The k at which the rule's rate times the highest λ_max of the small batch is 2.
  function edge() {
    const highs = sweeps.map(({ lambda }) => highest(lambda));
    const { lr } = settings(), { mean } = interval(highs.map(Math.log));
    return { lambda: Math.exp(mean), k: 2 / (lr * Math.exp(mean)) };
  }
  const percent = (share) => `${number(100 * share)} %`;

  function sentence() {
    if (!guess.ready) return "Make a prediction or skip it, then train the nets.";
    const said = [pair?.nets && aboutPair(), sweeps.length && aboutAll()].filter(Boolean);
    return said.join(" ") || "Train a small and a large batch side by side, or all k at once.";
  }
  function aboutPair() {
    const { k, rule } = settings(), [small, large] = pair.nets, last = small.rows.at(-1);
    if (failure(small)) return TOO_HIGH;
    const words = `with B = ${SIZE * k} at ${RULES[rule][0]} = ${number(rate(k))}`;
    const products = pair.lambda[0].map(([epoch, value]) => [epoch, rate(k, epoch) * value]);
    const high = highest(products), begun = `After ${number(last.epoch)} epochs the training loss `
      + `is ${number(last.trainLoss)} with B = ${SIZE}`;
    const product = `The large batch’s rate times the small one’s λ_max is at most ${number(high)}, `
      + `${high > 2 ? "beyond" : "below"} 2.`;
    if (failure(large)) return `${begun}. The net ${words} ${failure(large)}. ${product}`;
    const end = large.rows.at(-1), ratio = end.trainLoss / last.trainLoss;
    const [epoch, own] = pair.lambda[1].at(-1), [, apart] = pair.distance.at(-1);
    return `${begun} and ${number(end.trainLoss)} ${words}, ${number(ratio)} times as much: `
      + `${ratio > MARGIN ? "beyond" : "within"} the margin of ${MARGIN}. The test accuracies are `
      + `${percent(last.testAccuracy)} and ${percent(end.testAccuracy)}. The weights are `
      + `${number(apart)} apart; those of B = ${SIZE} have moved ${number(last.distance)}. `
      + `${product} With its own λ_max it ends at ${number(rate(k, epoch) * own)}.`;
  }
  function aboutAll() {
    const found = verdicts(), held = lastHeld(found), many = sweeps.length > 1;
    if (!held) return TOO_HIGH;
    const { rule, epochs } = settings(), { lambda, k } = edge();
    const times = ({ value, low, high, failed }) => (failed
      ? `${failed} of ${sweeps.length} nets do not train` : `the loss is ${number(value)}${
        many ? ` [${number(low)}, ${number(high)}]` : ""} times that of k = 1`);
    const at = (each, words) => (each ? ` At k = ${each.k}, ${times(each)}: ${words}.` : "");
    const next = found[found.indexOf(held) + 1], open = next?.verdict === "open" ? next : null;
    const after = at(open, "these seeds cannot tell")
      + at(found.find(({ verdict }) => verdict === "breaks"), "it breaks");
    return `${many ? `Over ${sweeps.length} seeds` : `With seed ${sweeps[0].seed}`}, after ${
      epochs} epochs, the rate ${RULES[rule][0]} ${held.k === 1 ? "holds at no k > 1."
      : `holds up to k = ${held.k}: there ${times(held)}.`}${after}${rule === "linear"
      ? ` The highest λ_max of the small batch is ${number(lambda)}, which makes kηλ_max = 2 at `
        + `k = ${number(k)}.` : ""}`;
  }
  function csv() {
    const of = (nets, ks, seed) => nets.flatMap(({ rows, end }, i) => [
      ...rows.flatMap((row) => [["training loss", row.trainLoss], ["test accuracy",
        row.testAccuracy], ["distance from the start", row.distance]].map(([what, value]) =>
        [seed, ks[i], row.epoch, what, value])),
      ...(end ? [[seed, ks[i], "", "diverged at update", end]] : []),
    ]);
    const { k, seed } = settings();
    return [["seed", "k", "epoch", "what", "value"],
      ...(pair?.nets ? [...of(pair.nets, [1, k], seed),
        ...pair.distance.map(([epoch, value]) => [seed, k, epoch, "distance from k = 1", value]),
        ...pair.lambda.flatMap((points, i) => points.map(([epoch, value]) =>
          [seed, [1, k][i], epoch, "λ_max", value]))] : []),
      ...sweeps.flatMap(({ seed: own, nets, lambda }) => [...of(nets, KS, own),
        ...lambda.map(([epoch, value]) => [own, 1, epoch, "λ_max", value])])];
  }

  // ---- drawing -----------------------------------------------------------------------------------

  // [left, top, width, height] of the charts: two by two and one below, or all in a column.
  function places(width) {
    const side = width > 560, left = 54, across = side ? width / 2 - left - 12 : width - left - 12;
    const at = (i) => (side ? [left + (i % 2) * (width / 2), 24 + 196 * Math.floor(i / 2)]
      : [left, 24 + 180 * i]);
    const four = [0, 1, 2, 3].map((i) => [...at(i), across, side ? 130 : 114]);
    return [...four, [left, side ? 424 : 752, width - left - 12, 120]];
  }
  function draw(pen, width, colours) {
    const { ink, blue, orange } = colours, { k, epochs } = settings();
    const at = places(width), time = [-0.02 * epochs, 1.02 * epochs], nets = pair?.nets ?? [];
    const series = (key) => nets.map(({ rows }) => rows.map((row) => [row.epoch, row[key]]));
    const [loss, test] = ["trainLoss", "testAccuracy"].map(series);
    const all = loss.flat().map(([, value]) => value).filter((value) => value > 0);
    const lines = (px, py, list) => curves(pen, list.map((points, i) => ({
      points: points.map(([x, y]) => [px(x), py(y)]), colour: [blue, orange][i],
    })), 0);
    const chart = (i, ys, y, paint, more = {}) => panel(pen, colours, at[i], time, ys,
      { x: "Epochs", y, ...more }, paint);
    const level = (px, py, value) => polyline(pen, ink, time.map((x) => [px(x), py(value)]),
      { dash: [2, 4], width: 1 });

    chart(0, [Math.min(0.01, ...all) / 1.4, Math.min(100, Math.max(4, ...all) * 1.3)],
      "Training loss (dots: a guess)", (px, py) => {
        level(px, py, GUESS);
        lines(px, py, loss);
        breaks(pen, orange, px, py, at[0]);
      }, { ylog: true });
    chart(1, [0, 104], "Test accuracy, %", (px, py) =>
      lines(px, py, test.map((points) => points.map(([x, y]) => [x, 100 * y]))));
    const apart = pair?.distance ?? [];
    chart(2, [0, Math.max(1, ...apart.map(([, value]) => value).filter(Number.isFinite)) * 1.1],
      "Distance between the weights", (px, py) =>
        polyline(pen, ink, apart.map(([x, y]) => [px(x), py(y)])));
    products(pen, colours, chart, level);
    against(pen, colours, at[4]);
  }
  // Where the large batch failed.
  function breaks(pen, colour, px, py, [left, , across]) {
    const large = pair?.nets?.[1];
    if (job || !large || !failure(large)) return;
    const { rows, end } = large, at = rows.find(({ update }) => update === lost(rows));
    const { epoch } = end ? rows.at(-1) : at, x = px(epoch), room = x < left + across / 2;
    const words = end ? `diverged at update ${end}` : `a guess from update ${at.update} on`;
    Object.assign(pen, { fillStyle: colour, textAlign: room ? "left" : "right" });
    pen.fillText(room ? `✗ ${words}` : `${words} ✗`, x + (room ? -4 : 4), py(GUESS) + 12);
  }
  // Learning rate × λ_max of the large batch, and of the small batch with the large one's rate.
  function products(pen, { blue, orange }, chart, level) {
    const { k } = settings(), [small, large] = (pair?.lambda ?? [[], []]).map((points) =>
      points.map(([epoch, value]) => [epoch, rate(k, epoch) * value]));
    const values = [...small, ...large].map(([, value]) => value).filter((value) => value > 0);
    chart(3, [Math.min(0.1, ...values) / 1.3, Math.max(10, ...values) * 1.3],
      "Large batch’s rate × λ_max (dots: 2)", (px, py) => {
        level(px, py, 2);
        [[small, blue, [6, 4]], [large, orange, []]].forEach(([points, colour, dash]) =>
          curves(pen, [{ points: points.map(([x, y]) => [px(x), py(y)]), colour, dash }], 0));
      }, { ylog: true });
  }
  // The training loss of all k, as a multiple of that of k = 1.
  function against(pen, colours, at) {
    const { ink, green, orange } = colours, found = sweeps.length ? verdicts() : [];
    const ratios = found.flatMap(({ low, high }) => [low, high]).filter(Number.isFinite);
    const [top, bottom] = [at[1], at[1] + at[3]];
    const heights = [Math.min(0.5, ...ratios) / 1.2, Math.max(20, ...ratios) * 1.3];
    panel(pen, colours, at, [0.8, 200], heights, { xlog: true, ylog: true,
      x: "k (batches k times as large)", y: "Training loss, times that of k = 1" }, (px, py) => {
      const [left, right] = [0.8, 200].map(px);
      Object.assign(pen, { fillStyle: green, globalAlpha: 0.15 });
      pen.fillRect(left, py(MARGIN), right - left, bottom - py(MARGIN));
      Object.assign(pen, { fillStyle: ink, globalAlpha: 1, textAlign: "right" });
      pen.fillText(`the rule holds: at most ${MARGIN} times`, right - 4, bottom - 9);
      if (!found.length) return;
      if (model.get("rule") === "linear") {
        const x = px(edge().k);
        polyline(pen, ink, [[x, top], [x, bottom]], { dash: [2, 4], width: 1 });
        pen.fillText("kηλ_max = 2", x - 4, top + 9);
      }
      polyline(pen, green, found.filter(({ failed }) => !failed).map(({ k, value }) =>
        [px(k), py(value)]));
      for (const { k, value, low, high, failed, verdict } of found) {
        const [x, y] = [px(k), failed ? top + 14 : py(value)];
        const colour = verdict === "breaks" ? orange : green;
        Object.assign(pen, { fillStyle: colour, textAlign: "center" });
        if (failed) pen.fillText("✗", x, y);
        else {
          polyline(pen, colour, [[x, py(low)], [x, py(high)]]);
          mark(pen, colour, [x, y], 5, { corners: verdict === "breaks" ? 4 : 16,
            hollow: verdict === "open" });
        }
        const above = failed ? y : Math.min(y - 4, py(high));
        pen.fillText(k, x, above < top + 20 ? y + 15 : above - 9);
      }
    });
  }

  // ---- controls ----------------------------------------------------------------------------------

  const [train, all, five, halt] = page.buttons({
    "Train two": () => run(two),
    "All k": () => run(every(1)),
    "All k, five seeds": () => run(every(SEEDS)),
    Stop: () => {
      job?.abort();
      [job, pair] = [null, null];
      ready();
    },
  });
  page.slider("k", "Ratio k of the batch sizes", RANGE.k);
  page.slider("lr", "Learning rate η of the small batch", geometric(...RANGE.lr));
  page.slider("warmup", "Warm-up, epochs", RANGE.warmup);
  page.slider("epochs", "Epochs", RANGE.epochs);
  page.slider("seed", "Seed", RANGE.seed);
  page.choice("rule", "Rate of the large batch", RANGE.rule,
    RANGE.rule.map((name) => RULES[name][0]));
  ready();
  page.over.signal.addEventListener("abort", () => {
    job?.abort();
    guess.end();
  });
  return () => page.over.abort();
}

export default { render };
