// Explorable: the largest eigenvalue of the Hessian while a net trains in the page by gradient
// descent or SGD, against the edge of stability 2/η. Runs stay in the chart beside the next.

import digits from "dataset:digits";
import { Lab } from "./lab/lab.js";
import { between, predict } from "./predict.js";
import { calm, curves, number, panel, polyline, rangesOf, reader, stage } from "./shared.js";

export const START = {
  "lr": [0.4, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1],
  "batch_size": [500, 4, 8, 16, 32, 64, 125, 250, 500],
  "updates": [600, 200, 400, 600, 1000, 2000],
  "net": ["tanh", "tanh", "relu", "wide"],
  "axis": ["eigenvalue", "eigenvalue", "relative"],
  "seed": [0, 0, 999999999]
};
const RANGE = rangesOf(START);
const N = RANGE.batch_size.at(-1); // images to train on
const FINER = 8; // steps of η/8 in the place of one of η: gradient flow, nearly
const POINTS = 40; // measurements of a run
const KEPT = 5; // runs in the chart
const NETS = {
  tanh: { hidden: [32, 32], activation: "tanh" },
  relu: { hidden: [32, 32], activation: "relu" },
  wide: { hidden: [64], activation: "tanh" },
};

// Each pixel less its mean over the images to train on, in units of 6 of its 16 levels.
export function centred({ train, test, inputs, white }) {
  for (let j = 0; j < inputs; j++) {
    let mean = 0;
    for (let i = 0; i < N; i++) mean += train.x[i * inputs + j] / N;
    for (const { x } of [train, test])
      for (let i = j; i < x.length; i += inputs) x[i] = ((x[i] - mean) * white) / 6;
  }
}

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b), half = (sorted.length - 1) / 2;
  return (sorted[Math.floor(half)] + sorted[Math.ceil(half)]) / 2;
}

// Where λ stays: its median over the last third of a run's rows { at, value }.
export const level = (rows) =>
  median(rows.filter(({ at }) => at >= (2 / 3) * rows.at(-1).at).map(({ value }) => value));

const percent = (share) => `${number(100 * share, 2)} %`;
const nameOf = ({ lr, batchSize, flow }) =>
  `η = ${number(lr)}${flow ? ", flow" : batchSize < N ? `, B = ${batchSize}` : ""}`;

function render({ model, el }) {
  let job = null, lab, net, runs = [];
  const relative = () => model.get("axis") === "relative";
  const scaled = (run) => (relative() ? run.lr / 2 : 1);

  const page = stage(model, el, {
    title: "The edge of stability",
    description: "Two charts against the number of updates: the largest eigenvalue of the Hessian, "
      + "with the edge 2/η as a dashed line, and the training loss. Earlier runs are thin lines.",
    legend: [["orange", "━", "λ_max of this run"], ["green", "╌", "the edge 2/η"],
      ["blue", "━", "training loss of this run"], ["ink", "─", "runs before it"]],
    note: `The net has 64 inputs and 10 outputs. It learns the first ${N} of the digits, each `
      + "pixel less its mean. The loss is half the squared error, summed over the outputs. The "
      + "net tanh or ReLU has two hidden layers of 32 such units, the wide one 64 tanh units. "
      + `λ_max is Lanczos's, to 1 %. Gradient flow is followed by steps of η/${FINER}, of which `
      + `${FINER} count as one update. All of it is computed here, in the page.`,
    height: () => 450,
    draw,
    update: (name) => {
      if (name === "axis") {
        if (!job) tell();
        page.redraw();
      } else if (name === "net" || name === "seed") forget();
      else if (name !== "updates" && !job) tell();
    },
    table: () => [["run", "update", "largest eigenvalue", "error", "training loss",
      "training accuracy"], ...runs.flatMap((run) => run.rows.map((row) =>
      [nameOf(run), row.at, row.value, row.error, row.loss, row.accuracy]))],
  });
  const open = Lab.of(page, digits, { prepare: centred });

  const place = document.createElement("div");
  page.plot.before(place);
  const guess = predict(place, {
    id: "edge",
    question: "Gradient descent makes the loss small, with all images in every batch and "
      + "η = 0.4. How does the largest eigenvalue of the Hessian move?",
    kind: "curve",
    axes: { x: { label: "Updates", low: 0, high: 600 },
      y: { label: "Largest eigenvalue", low: 0, high: 12 } },
    start: { y: 3 },
    knots: [0, 150, 300, 450, 600],
    says: (made, truth) => {
      const end = between(truth, 600), yours = made && between(made, 600);
      const verdict = !made ? "" : Math.abs(yours / end - 1) < 0.15 ? "Near. "
        : `It ends ${yours < end ? "higher" : "lower"}. `;
      return `${verdict}Measured: ${number(end)} after 600 updates${made
        ? `, where your curve has ${number(yours)}` : ""}. The edge 2/η is 5.`;
    },
    onReady: () => job || runs.length || forget(),
    onReset: () => forget(),
  });

  const [go, flow, clear] = page.buttons({
    Train: () => (job ? stop("Stopped.") : start(false)),
    "Gradient flow": () => start(true),
    Clear: () => forget(),
  });
  function arrange() {
    go.disabled = !guess.ready;
    go.textContent = job ? "Stop" : "Train";
    flow.disabled = job !== null || !guess.ready;
    clear.disabled = job !== null || !runs.length;
    page.redraw();
  }
  function stop(words) {
    job?.abort();
    if (job) runs = runs.filter((run) => run.done);
    job = null;
    net?.close();
    net = undefined;
    page.say(words);
    arrange();
  }
  function forget() {
    stop("");
    runs = [];
    tell();
    arrange();
  }
  function tell() {
    const run = runs.at(-1);
    if (run) page.say(sentence(run));
    else page.say(guess.ready ? "Press Train." : "Make a prediction or skip it, then train.");
  }

  async function start(asFlow) {
    const { signal } = (job = new AbortController());
    const [lr, batchSize, updates] = ["lr", "batch_size", "updates"].map((k) => model.get(k));
    const run = { lr, batchSize: asFlow ? N : batchSize, flow: asFlow, rows: [], done: false };
    page.say("The net is training, and is measured.");
    arrange();
    try {
      lab = await open();
      signal.throwIfAborted();
      runs = [...runs, run].slice(-KEPT);
      const { reason } = await trained(run, updates);
      signal.throwIfAborted();
      run.done = true;
      job = null;
      net.close();
      net = undefined;
      run.diverged = reason === "diverged";
      tell();
      const asked = lr === 0.4 && run.batchSize === N && model.get("net") === "tanh";
      if (asked && !asFlow && updates >= 600)
        guess.reveal(run.rows.filter(({ at }) => at <= 600).map(({ at, value }) => [at, value]));
    } catch (error) {
      if (signal.aborted || page.over.signal.aborted) return;
      stop(`${error.message}.`);
    }
    arrange();
  }
  function trained(run, updates) {
    const factor = run.flow ? FINER : 1;
    const seed = model.get("seed");
    net = lab.net({ ...NETS[model.get("net")], loss: "squared_error", samples: N, seed });
    net.onrows = (rows) => {
      for (const { update, trainLoss, trainAccuracy, eigenvalues } of rows) {
        const { value, error } = eigenvalues.largest[0];
        run.rows.push({ at: update / factor, value, error, loss: trainLoss,
          accuracy: trainAccuracy });
      }
      if (!calm()) page.redraw();
    };
    return net.train({
      batchSize: run.batchSize, lr: run.lr / factor, seed, stop: { updates: updates * factor },
      evaluateEvery: Math.ceil(updates / POINTS) * factor,
      measures: { eigenvalues: { k: 1, tolerance: 0.01 } },
    });
  }

  // Where λ_max stays, and how far from the edge.
  function sentence(run) {
    const { lr, batchSize, rows } = run, edge = 2 / lr, end = rows.at(-1);
    if (run.diverged)
      return `${nameOf(run)}: the loss is not finite after ${end.at} updates. The net started `
        + `at λ_max = ${number(rows[0].value)}, and 2/η = ${number(edge)}. Take a smaller η.`;
    const stays = level(rows), off = stays / edge - 1;
    const where = Math.abs(off) < 0.005 ? "at the edge" : `${percent(Math.abs(off))} ${
      off > 0 ? "above" : "below"} the edge`;
    const how = run.flow ? "Gradient flow" : batchSize < N ? `SGD with B = ${batchSize}`
      : "Gradient descent";
    return `${how}: over the last third of ${end.at} updates the median of λ_max is `
      + `${number(stays)}, ${where} 2/η = ${number(edge)} of η = ${number(lr)}. It started at `
      + `${number(rows[0].value)}. The training loss is ${number(end.loss)}.`;
  }

  function draw(pen, width, colours) {
    const left = 62, across = width - left - 16, { ink, orange, green, blue } = colours;
    const all = runs.flatMap((run) =>
      run.rows.map((row) => ({ ...row, y: row.value * scaled(run) })));
    const last = Math.max(model.get("updates"), ...runs.map(({ rows }) => rows.at(-1)?.at ?? 0));
    const edges = [...new Set(runs.length ? runs.map(({ lr }) => lr) : [model.get("lr")])]
      .map((lr) => (relative() ? 1 : 2 / lr));
    const high = 1.15 * Math.max(...edges, ...all.map(({ y }) => y));
    const losses = all.map(({ loss }) => loss);
    const lines = (colour, y, named) => runs.map((run, i) => {
      const now = i === runs.length - 1;
      return { y, run, colour: now ? colour : ink, width: now ? 2 : 1, dash: run.flow ? [6, 3] : [],
        text: named ? nameOf(run) : "" };
    });
    const paint = (list, px, py) => curves(pen, list.map(({ run, y, ...look }) => ({
      ...look, points: run.rows.map((row) => [px(row.at), py(y(row, run))]),
    })), left + across);
    panel(pen, colours, [left, 24, across, 220], [0, last], [0, high],
      { x: "", y: relative() ? "λ_max η/2" : "Largest eigenvalue λ_max" }, (px, py) => {
        for (const edge of new Set(edges))
          polyline(pen, green, [[px(0), py(edge)], [px(last), py(edge)]], { dash: [5, 4] });
        paint(lines(orange, (row, run) => row.value * scaled(run), true), px, py);
      });
    panel(pen, colours, [left, 284, across, 110], [0, last],
      [Math.min(0.01, ...losses) / 1.2, Math.max(1, ...losses) * 1.2],
      { x: "Updates", y: "Training loss", ylog: true }, (px, py) => {
        paint(lines(blue, (row) => row.loss, false), px, py);
      });
  }

  page.slider("lr", "Learning rate η", RANGE.lr);
  page.slider("batch_size", "Batch size B", RANGE.batch_size);
  page.slider("updates", "Updates", RANGE.updates);
  page.choice("net", "Net", RANGE.net, ["tanh", "ReLU", "wide"]);
  page.choice("axis", "Show", RANGE.axis, ["λ_max", "λ_max η/2"]);
  page.follow("seed", () => {}, reader(RANGE.seed));
  forget();
  page.over.signal.addEventListener("abort", () => {
    job?.abort();
    guess.end();
  });
  return () => page.over.abort();
}

export default { render };
