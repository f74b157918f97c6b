// Keskar's experiment: one net is trained with small batches and one with large, from the same
// weights, and both are measured. It runs in the lab, on digits.

import digits from "dataset:digits";
import {
  LONGER, MEASURES, changing, compared, finding, measured, plans, rows,
} from "./keskar_findings.js";
import { Lab } from "./lab/lab.js";
import { predict, verdictOn } from "./predict.js";
import {
  calm, channels, curves, geometric, linear, mark, number, panel, polyline, rangesOf, stage,
} from "./shared.js";

export const START = {
  "small": [8, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1437],
  "large": [512, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1437],
  "lr": [0.2, 0.001, 1],
  "factor": [1, 1, 2, 4, 8, 16, 32, 64],
  "optimizer": ["sgd", "sgd", "adam"],
  "rule": ["epochs", "epochs", "longer", "updates", "loss"],
  "epochs": [30, 5, 10, 20, 30, 50, 100],
  "loss": [0.02, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5],
  "epsilon": [0.001, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005],
  "seed": [0, 0, 20],
  "alpha": [0.5, -1, 2]
};
const RANGE = rangesOf(START);
const ALPHAS = linear(...RANGE.alpha, 60); // 0 is the small batch, 1 the large one
const SEEDS = 5;

const FIRST = { small: 8, large: 512, optimizer: "sgd", lr: 0.2, factor: 1, rule: "epochs",
  epochs: 30, loss: 0.02, epsilon: 1e-3 };
const EQUAL = { ...FIRST, factor: 4, rule: "loss" };
const STEPS = [
  ["1. Keskar’s picture", FIRST, 1,
    "Batches of 8 and of 512, 30 epochs each. Compare test accuracy and λ_max. Then compare the "
    + "training losses."],
  ["2. A longer step", { ...FIRST, factor: 4 }, 1,
    "In 30 epochs the large batch makes 60 times fewer updates. Here each of them is four times "
    + "as long. The scaling rule asks for 64 times, but then this net no longer trains."],
  ["3. Ten times longer", { ...FIRST, rule: "longer" }, 1,
    "Hoffer et al. train the large batch for more epochs. Here it has 300, at the same η."],
  ["4. Equal training loss", EQUAL, 1,
    "Each net stops when its training loss reaches 0.02, however long that takes. The large batch "
    + "has its longer step."],
  ["5. Five seeds", EQUAL, SEEDS,
    "Was that luck? Repeat it from five initial weights. Where the interval of a difference holds "
    + "0, or that of a ratio 1, these runs see no difference."],
];

function render({ model, el }) {
  let lab, nets = [], pairs = [], ends = [], path = null, picked = [], line, running = null;
  const wide = (width) => width >= 560;
  const position = () => ALPHAS.findIndex((alpha) => alpha >= model.get("alpha") - 1e-9);
  const settings = () => Object.fromEntries(Object.keys(FIRST).map((name) =>
    [name, model.get(name)]));

  const page = stage(model, el, {
    title: "Keskar’s experiment",
    description: "Three charts: training loss and test accuracy of both nets against epochs; the "
      + "loss on the line between them; and test digits with the label that they get there.",
    legend: [["blue", "━", "small batch"], ["orange", "━", "large batch"],
      ["green", "━", "on the line between them"]],
    note: "Net 64-64-10, ReLU, cross-entropy, 4,810 weights; 1,437 of scikit-learn’s digits to "
      + "train on, 360 to test. Both nets start at the same weights. φ is equation (2) in the "
      + "whole space, by ten sign ascents. Its part “from the slope alone” is 100 ε ‖∇ℓ‖₁/(1 + ℓ): "
      + "it would be there with no curvature at all. Intervals are 95 % t-intervals over seeds, "
      + "of the paired difference or ratio. One test digit is 0.28 points.",
    height: (width) => (wide(width) ? 510 : 830),
    draw,
    update: (name) => (name === "alpha" ? tell() : changed(name)),
    table: csv,
  });
  const open = Lab.of(page, digits);
  page.plot.insertAdjacentHTML("beforebegin", `<div class="buttons" role="group"
    aria-label="Five steps">${STEPS.map(([name]) =>
      `<button type="button" disabled>${name}</button>`).join("")}</div>
    <p class="step" aria-live="polite">Make a guess, or skip it. Then five steps tell the story in
    five minutes. Afterwards change what you like.</p><div class="guesses"></div>`);
  page.plot.after(page.root.querySelector(".data"), page.state);
  page.state.insertAdjacentHTML("afterend", `<div class="measures" hidden><table><thead><tr>
    <th scope="col">At the end</th><th scope="col">small batch</th><th scope="col">large batch</th>
    <th scope="col">large to small</th></tr></thead><tbody></tbody></table></div>`);
  const [guesses, table, told] = [".guesses", ".measures", ".step"].map((part) =>
    page.root.querySelector(part));
  const steps = [...told.previousElementSibling.children];

  // ---- running ---------------------------------------------------------------------------------

  function changed(name) {
    const [optimizer, lr] = ["optimizer", "lr"].map((key) => model.get(key));
    if (name === "optimizer" && (optimizer === "adam") === (lr > 0.02))
      model.set("lr", optimizer === "adam" ? 0.002 : FIRST.lr); // that of the other does not train
    cancel();
    clear();
    tell();
  }
  function clear() {
    for (const net of nets) net.close().catch(() => {});
    Object.assign(table, { hidden: true });
    [nets, pairs, ends, path, picked] = [[], [], [], null, []];
  }
  function cancel() {
    running = null;
    arrange();
  }
  function arrange() {
    const equal = model.get("rule") === "loss"; // of two predictions one is shown
    guesses.firstChild.hidden = equal;
    guesses.lastChild.hidden = !equal;
    for (const button of [run, five]) button.disabled = running || !(equal ? second : guess).ready;
    for (const button of steps) button.disabled = running || !guess.ready;
    stop.disabled = !running;
    page.state.setAttribute("aria-live", running ? "off" : "polite");
  }

  // Trains and measures both nets from a seed. Returns nothing if it was cancelled.
  async function pair(token, seed) {
    const given = settings();
    lab = await open();
    if (running !== token) return;
    for (const net of nets) net.close().catch(() => {});
    path = null;
    nets = [0, 1].map(() => lab.net({ seed }));
    for (const net of nets) net.onrows = () => {
      if (calm()) return;
      progress(seed);
      page.redraw();
    };
    const found = await Promise.all(nets.map(async (net, i) => {
      const options = { ...plans(given, lab.data.train.n)[i], seed };
      const { reason, row } = await net.train(options);
      return [reason, reason === "diverged" ? null : await measured(net, row, given.epsilon)];
    }));
    if (running !== token) return;
    ends = found.map(([reason]) => reason);
    if (ends.includes("diverged")) return true;
    const line = await nets[0].measure("path", { to: nets[1], alphas: ALPHAS, labels: true });
    if (running !== token) return;
    path = line;
    picked = changing(path.labels, lab.data.test.n, ALPHAS);
    pairs.push(found.map(([, measures]) => measures));
    return true;
  }
  // So many seeds, of which those that there are need not be run again.
  async function repeat(seeds) {
    const token = (running = {});
    if (seeds === 1 || ends.some((reason) => reason === "stopped")) pairs = [];
    arrange();
    page.say("Training …");
    try {
      while (pairs.length < seeds && running === token) {
        const went = await pair(token, model.get("seed") + pairs.length);
        if (!went || ends.some((reason) => ["diverged", "stopped"].includes(reason))) break;
      }
    } catch (error) {
      if (error.name !== "AbortError" && error.message !== "closed") throw error;
    }
    if (running !== token) return;
    cancel();
    reveal();
    tell();
  }
  function reveal() {
    if (!pairs.length || ends.includes("stopped")) return;
    const { rule, factor } = settings();
    const lambda = compared(pairs, "lambda", true).value, gap = compared(pairs, "accuracy").value;
    if (rule === "epochs" && factor === 1)
      guess.reveal(lambda > 1.25 ? "large" : lambda < 0.8 ? "small" : "same");
    if (rule === "loss") second.reveal(gap < -1 ? "worse" : gap > 1 ? "better" : "same");
  }
  function progress(seed) {
    const now = nets.map(({ rows: all }) => all.at(-1)).filter(Boolean);
    const losses = now.map(({ trainLoss, epoch }) =>
      `training loss ${number(trainLoss, 2)} after ${number(epoch)} epochs`);
    page.say(`Seed ${seed}. Small, then large batch: ${losses.join("; ")}.`);
  }
  function tell() {
    page.redraw();
    if (running) return;
    if (ends.includes("diverged")) page.say(finding([], settings(), ends));
    else if (!pairs.length)
      page.say(run.disabled ? "Commit to a guess above, or skip it." : "Run it, or take a step.");
    else {
      const at = position(), { n } = lab.data.test, moved = picked.filter((i) =>
        path.labels[at * n + i] !== path.labels[ALPHAS.indexOf(0) * n + i]).length;
      page.say(`${finding(pairs, settings(), ends)} At α = ${number(ALPHAS[at])} the training `
        + `loss is ${number(path.train.loss[at], 2)}, and ${moved} of the ${picked.length} digits `
        + "shown have another label than at α = 0.");
      table.hidden = false;
      table.querySelector("tbody").innerHTML = rows(pairs).map(([name, ...cells]) =>
        `<tr><th scope="row">${name}</th>${cells.map((cell) => `<td>${cell}</td>`).join("")}</tr>`)
        .join("");
    }
  }
  function csv() {
    const sizes = ["small", "large"], histories = nets.flatMap((net, i) => net.rows.flatMap((row) =>
      ["trainLoss", "testAccuracy"].map((key) => [key, sizes[i], row.epoch, row[key]])));
    const final = pairs.flatMap((both, k) => both.flatMap((found, i) => MEASURES.map(([key]) =>
      [`end: ${key}`, sizes[i], `seed ${model.get("seed") + k}`, found[key]])));
    const line = path ? ALPHAS.flatMap((alpha, k) => ["train", "test"].map((split) =>
      [`loss on the line: ${split}`, "", alpha, path[split].loss[k]])) : [];
    return [["what", "batch", "epoch, seed or α", "value"], ...histories, ...final, ...line];
  }

  // ---- drawing ---------------------------------------------------------------------------------

  function draw(pen, width, colours) {
    const left = 48, whole = width - left - 12, top = wide(width) ? 262 : 502;
    const [half, ...second] = wide(width) ? [(whole - left) / 2, (width + left - 12) / 2 + 24, 22]
      : [whole, left, 262];
    history(pen, colours, [left, 22, half, 170], "trainLoss", "Training loss");
    history(pen, colours, [...second, half, 170], "testAccuracy", "Test accuracy, %");
    line = [left, top, whole, 130];
    between(pen, colours);
    if (path) thumbnails(pen, colours, left, top + 190, whole, wide(width) ? 20 : 10);
  }
  // Training loss or test accuracy of both nets. At the right there is room for their names.
  function history(pen, colours, at, key, y) {
    const ylog = key === "trainLoss", scale = ylog ? 1 : 100;
    const lines = nets.map((net) => net.rows.filter(({ epoch }) => epoch > 0)
      .map((row) => [row.epoch, scale * row[key]]));
    const xs = lines.flat().map(([x]) => x), low = Math.min(0.5, ...xs);
    const high = low * (Math.max(5, ...xs) / low) ** (at[2] / (at[2] - 58));
    const heights = ylog ? [Math.min(0.01, ...lines.flat().map(([, loss]) => loss)) / 1.5, 3]
      : [60, 100];
    const axes = { x: "Epochs", y, xlog: true, ylog };
    panel(pen, colours, at, [low, high], heights, axes, (px, py) => {
      const [small, large] = lines.map((of) => of.map(([x, value]) => [px(x), py(value)]));
      if (ylog && model.get("rule") === "loss")
        polyline(pen, colours.ink, [low, high].map((x) => [px(x), py(model.get("loss"))]),
          { dash: [2, 4], width: 1 });
      [[small, colours.blue], [large, colours.orange]].forEach(([points = [], colour], i) => {
        curves(pen, [{ points, colour }], 0);
        if (!ylog || !points.length) return;
        const [x, end] = points.at(-1);
        Object.assign(pen, { fillStyle: colour, textAlign: "left" });
        pen.fillText(`B = ${model.get(i ? "large" : "small")}`, x + 5, end - 8);
      });
    });
  }
  function between(pen, colours) {
    const { ink, green, blue, orange } = colours, losses = path
      ? [...path.train.loss, ...path.test.loss].filter(Number.isFinite) : [0.01, 10];
    const range = [Math.min(...losses) / 1.3, Math.max(...losses) * 1.3];
    const x = "α (0: small batch, 1: large batch)", y = "Loss on the line: training ━, test ╌";
    panel(pen, colours, line, RANGE.alpha, range, { x, y, ylog: true },
      (px, py) => {
        if (!path) return;
        const [, top, , height] = line, now = px(model.get("alpha"));
        polyline(pen, ink, [[now, top], [now, top + height]], { dash: [4, 4], width: 1 });
        mark(pen, ink, [now, top + height / 2], 6);
        curves(pen, ["train", "test"].map((split, i) => ({
          points: ALPHAS.map((alpha, k) => [px(alpha), py(path[split].loss[k])]),
          colour: green, dash: i ? [6, 4] : [],
        })), 0);
        [blue, orange].forEach((colour, alpha) => mark(pen, colour,
          [px(alpha), py(path.train.loss[ALPHAS.indexOf(alpha)])], 5));
      });
    pen.globalAlpha = 1;
  }
  // Each digit with the label that it gets at α, and a cross where that is wrong.
  function thumbnails(pen, { ink, orange, green }, left, top, width, across) {
    const cell = width / across, size = cell - 6, { x, y, n } = lab.data.test, at = position();
    const image = new ImageData(8, 8), small = new OffscreenCanvas(8, 8), colour = channels(ink);
    Object.assign(pen, { imageSmoothingEnabled: false, textAlign: "left", fillStyle: ink });
    pen.fillText(`${picked.length} ${width > 450 ? "test digits that change their label on the line"
      : "test digits"}. At α = ${number(ALPHAS[at])}:`, left, top - 12);
    picked.forEach((i, k) => {
      const u = left + (k % across) * cell, v = top + Math.floor(k / across) * (cell + 20);
      for (let p = 0; p < 64; p++) image.data.set([...colour, 255 * x[i * 64 + p]], 4 * p);
      small.getContext("2d").putImageData(image, 0, 0);
      pen.drawImage(small, u, v, size, size);
      const label = path.labels[at * n + i], right = label === y[i];
      Object.assign(pen, { strokeStyle: right ? green : orange, lineWidth: 2 });
      pen.textAlign = "center";
      pen.strokeRect(u, v, size, size);
      pen.fillText(right ? `${label}` : `${label} ✗`, u + size / 2, v + size + 11);
    });
  }

  // ---- controls --------------------------------------------------------------------------------

  const [run, five, stop] = page.buttons({
    Run: () => repeat(1),
    "Five seeds": () => repeat(SEEDS),
    Stop: () => nets.forEach((net) => net.stop()),
  });
  const near = (alpha) => ALPHAS.reduce((a, b) =>
    (Math.abs(b - alpha) < Math.abs(a - alpha) ? b : a));
  page.follow("alpha", () => {}, (text) => (Number(text) ? near(Number(text)) : 0));
  const [first, last] = RANGE.alpha, length = last - first;
  page.handle("Position α on the line", () => path && [
    line[0] + ((model.get("alpha") - first) / length) * line[2], line[1] + line[3] / 2,
  ], (x) => model.set("alpha", near(first + (length * (x - line[0])) / line[2])));
  page.slider("small", "Small batch B", RANGE.small);
  page.slider("large", "Large batch B", RANGE.large);
  page.slider("lr", "Learning rate η", geometric(...RANGE.lr));
  page.slider("factor", "η of the large batch", RANGE.factor, { show: (k) => `${k} η` });
  page.slider("epochs", "Epochs", RANGE.epochs);
  page.slider("loss", "Training loss to reach", RANGE.loss);
  page.slider("epsilon", "ε of the box", RANGE.epsilon);
  page.slider("seed", "Seed", linear(...RANGE.seed, 20));
  page.choice("rule", "Stop both nets at", RANGE.rule, ["equal epochs",
    `${LONGER} × epochs for the large`, "equal updates", "equal training loss"]);
  page.choice("optimizer", "Optimizer", RANGE.optimizer, ["SGD", "Adam"]);

  const again = () => {
    arrange();
    tell();
  };
  const says = (texts) => (made, truth) => `${verdictOn(made, truth)}${texts[truth]}`;
  const guess = predict(guesses, {
    id: "keskar",
    question: "Both nets train for equally many epochs at the same η. Which one ends where the "
      + "loss curves more, with the larger λ_max?",
    kind: "choice",
    options: [["small", "small batch"], ["large", "large batch"], ["same", "about the same"]],
    says: says({
      small: "Here the small batch ends sharper.",
      large: "The large batch ends sharper, as Keskar et al. found. Are both trained equally far?",
      same: "Here they end about equally sharp.",
    }),
    onReady: again,
    onReset: again,
  });
  const second = predict(guesses, {
    id: "keskar at equal loss",
    question: "Now both nets stop at the same training loss. How does the large batch test?",
    kind: "choice",
    options: [["worse", "worse by more than one point"], ["same", "within one point"],
      ["better", "better by more than one point"]],
    says: says({
      worse: "With these settings a gap remains.",
      same: "At equal training loss the two test alike: the gap was one of training.",
      better: "With these settings the large batch is ahead.",
    }),
    onReady: again,
    onReset: again,
  });
  steps.forEach((button, i) => button.addEventListener("click", () => {
    const [, wanted, seeds, words] = STEPS[i];
    for (const [name, value] of Object.entries(wanted)) model.set(name, value);
    model.save_changes();
    told.textContent = words;
    if (!run.disabled) repeat(seeds);
  }));
  again();
  page.over.signal.addEventListener("abort", () => {
    running = null;
    for (const prediction of [guess, second]) prediction.end();
  });
  return () => page.over.abort();
}

export default { render };
