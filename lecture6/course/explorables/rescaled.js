// A view of the bench of the Hessian's spectrum: measures of sharpness of a trained net whose first
// layer is multiplied by α, and whose second is divided by it. It is the same function (Dinh).

import { between } from "./predict.js";
import { number, panel, polyline, stage } from "./shared.js";

const KNOTS = [0.1, 0.32, 1, 3.2, 10];
const MEASURES = [["eigenvalues", { k: 1 }], ["trace", {}], ["sharpness", {}],
  ["sharpness", { equal: true }], ["sharpness", { kind: "adaptive" }]];
const NAMES = ["‖W₁‖", "‖W₂‖", "largest output", "λ₁", "trace of H", "φ, %", "φ, equal norms, %",
  "adaptive, %"];
const ROW = 38; // px
export const PROVENANCE = "The net has one hidden layer of ReLU units and no biases. SGD trains it "
  + "on 1,437 of the digits, 32 to a batch; the other 360 are the test set. All of it is computed "
  + "here, in the page. ";

// The outputs, in a row, for n images of a net whose weights w are W₁ and then W₂, row by row.
export function logits(w, [inputs, width, classes], x, n) {
  const found = new Float64Array(n * classes), hidden = new Float64Array(width);
  const row = (at, size, from, other) => {
    let sum = 0;
    for (let i = 0; i < size; i++) sum += w[at + i] * other[from + i];
    return sum;
  };
  for (let k = 0; k < n; k++) {
    for (let j = 0; j < width; j++) hidden[j] = Math.max(0, row(j * inputs, inputs, k * inputs, x));
    for (let c = 0; c < classes; c++)
      found[k * classes + c] = row(inputs * width + c * width, width, 0, hidden);
  }
  return found;
}

// The weights (α W₁, W₂/α).
export const rescale = (w, [inputs, width], alpha) =>
  w.map((x, i) => (i < inputs * width ? alpha * x : x / alpha));

// How far a factor is from 1: it stands still if rounding explains it.
const still = (factor) => Math.abs(Math.log(factor)) < 1e-3;
const times = (factor) => `× ${number(factor)}`;

export function rescaled({ model, el, alphas, show, images, trained, open, running, changed }) {
  let w, end, known = new Map(), life = new AbortController(), busy = false, onBar;
  const widths = () => [64, model.get("width"), 10];
  const first = () => known.get(1), here = () => known.get(model.get("alpha"));

  const page = stage(model, el, {
    title: "One function, many weights: a trained net rescaled by α",
    description: "Bars on a logarithmic scale, each relative to the trained net at α = 1: the "
      + "norms of the two layers, the largest output, and five measures of sharpness.",
    legend: [["blue", "▬", "norm of a layer"], ["orange", "▬", "a measure that has moved"],
      ["green", "▮", "what stands still"]],
    note: `${PROVENANCE}Then W₁ is multiplied by α, and W₂ divided by it. φ is that of Definition `
      + "2, at these weights and after both norms are made equal. The box of adaptive sharpness is "
      + "a fraction of each weight. ε = 0.001 in all three. A thin line is a standard error. Drag "
      + "the end of the first bar, or use the slider.",
    height: () => 14 + ROW * NAMES.length + 44,
    draw,
    update: (name) => {
      changed(name);
      if (name === "alpha") catchUp();
    },
    table: () => [["α", "quantity", "value", "error", "relative to α = 1"],
      ...[...known].sort(([a], [b]) => a - b).flatMap(([alpha, { rows, train }]) => [
        [alpha, "training loss", train.loss, "", ""],
        ...rows.map(({ name, value, error, factor }) => [alpha, name, value, error, factor])])],
  });

  // All that is asked of the net at α.
  async function measured(alpha, signal) {
    const at = rescale(w, widths(), alpha), [inputs, width] = widths(), cut = inputs * width;
    const copy = open(at), norm = (part) => Math.hypot(...part);
    try {
      const [train, test, ...results] = await Promise.all([
        copy.measure("evaluate", {}, { signal }),
        copy.measure("evaluate", { split: "test", labels: true }, { signal }),
        ...MEASURES.map(([name, options]) => copy.measure(name, options, { signal })),
      ]);
      signal.throwIfAborted();
      const outputs = logits(at, widths(), images().x, images().n);
      const before = first()?.outputs ?? outputs;
      const moved = Math.max(...outputs.map((z, i) => Math.abs(z - before[i])));
      const values = [norm(at.subarray(0, cut)), norm(at.subarray(cut)),
        Math.max(...outputs.map(Math.abs)), ...results.map((result) =>
          (result.largest?.[0] ?? result).value)];
      const errors = [0, 0, moved, ...results.map(({ largest, stderr }) =>
        largest?.[0].error ?? stderr)];
      const rows = NAMES.map((name, i) => ({ name, value: values[i], error: errors[i] }));
      rows.forEach((row, i) => { row.factor = row.value / (first()?.rows[i] ?? row).value; });
      return { rows, train, test, outputs, moved };
    } finally {
      copy.close();
    }
  }
  async function learn(alpha, signal) {
    if (!known.has(alpha)) known.set(alpha, await measured(alpha, signal));
    show();
  }
  // Measures at the α that is asked for; meanwhile it may have moved on.
  async function catchUp() {
    page.redraw();
    if (busy || running() || !first()) return;
    const { signal } = life;
    busy = true;
    try {
      while (!here()) await learn(model.get("alpha"), signal);
      page.say(sentence());
    } catch (error) {
      if (!signal.aborted && !page.over.signal.aborted) page.say(`${error.message}.`);
    }
    busy = false;
  }
  async function run(advance, signal) {
    end = await advance(model.get("epochs"));
    w = await trained().weights();
    for (const alpha of [1, model.get("alpha"), ...KNOTS]) await learn(alpha, signal);
    return KNOTS.map((alpha) => [alpha, known.get(alpha).rows[3].factor]);
  }

  function sentence() {
    const done = `After ${end.epoch} epochs the training loss is ${number(end.train.loss)}, the test `
      + `accuracy ${number(100 * end.test.accuracy)} %.`, alpha = model.get("alpha");
    if (alpha === 1) return `${done} Everything is compared with this net, at α = 1. Move α.`;
    const { rows, test, moved } = here(), labels = first().test.labels;
    const changes = test.labels.filter((label, i) => label !== labels[i]).length;
    const most = Math.max(...rows.map(({ factor }) => factor).filter(still)
      .map((factor) => Math.abs(factor - 1)));
    const told = ([short, i]) => `${short} ${times(rows[i].factor)}`;
    const factors = [["λ₁", 3], ["trace", 4], ["φ", 5], ["φ at equal layer norms", 6],
      ["adaptive sharpness", 7]].map(told).join(", ");
    return `${done} At α = ${number(alpha)}: `
      + `${factors}. What is × 1 is so to ${number(most, 1)}. The outputs go up to `
      + `${number(rows[2].value)}, and move by ${number(moved, 1)} at most. `
      + `${changes || "None"} of the ${images().n} test images `
      + `${changes > 1 ? "change" : "changes"} class.`;
  }

  function draw(pen, width, colours) {
    const left = 130, across = width - left - 16, { ink, blue, orange, green } = colours;
    const rows = here()?.rows ?? NAMES.map((name) => ({ name }));
    const factors = [...known.values()].flatMap((each) => each.rows.map(({ factor }) => factor));
    const range = [Math.min(0.07, ...factors) / 1.1, Math.max(150, ...factors) * 1.1];
    const at = [left, 14, across, ROW * NAMES.length];
    Object.assign(pen, { fillStyle: ink, globalAlpha: 1, textAlign: "left" });
    pen.textBaseline = "middle";
    rows.forEach(({ name, value, factor }, i) => {
      pen.fillText(name, 0, at[1] + ROW * (i + 0.32));
      const waits = first() ? "…" : "";
      const text = value === undefined ? waits : `${number(value)}, ${times(factor)}`;
      pen.fillText(text, 0, at[1] + ROW * (i + 0.7));
    });
    onBar = null;
    const axes = { x: "Relative to α = 1", y: "", xlog: true, rows: 0.1 };
    panel(pen, colours, at, range, [0.1, 0.9], axes, (px) => {
      const one = px(1);
      rows.forEach(({ value, factor, error }, i) => {
        if (value === undefined) return;
        const top = at[1] + ROW * i + 8, tall = ROW - 16, middle = top + tall / 2, to = px(factor);
        pen.fillStyle = i < 2 ? blue : still(factor) ? green : orange;
        if (still(factor)) pen.fillRect(one - 4, top - 3, 8, tall + 6);
        else pen.fillRect(Math.min(one, to), top, Math.abs(to - one), tall);
        if (error > 0.005 * value) {
          const ends = [1 - error / value, 1 + error / value].map((part) =>
            [px(factor * Math.max(part, 1e-9)), middle]);
          polyline(pen, ink, ends, { width: 1.5 });
        }
      });
      polyline(pen, ink, [[one, at[1]], [one, at[1] + at[3]]], { width: 1 });
      if (rows[0]?.value) onBar = { px, at: [px(rows[0].factor), at[1] + ROW / 2] };
    });
  }

  const handle = page.handle("End of the bar of the first layer's norm", () => onBar?.at, (x) => {
    const gaps = alphas.map((alpha) => Math.abs(onBar.px(alpha) - x)), now = model.get("alpha");
    // An arrow key goes to the next α of the slider.
    const step = Math.sign(Math.round(x - onBar.at[0]));
    const next = handle.held ? gaps.indexOf(Math.min(...gaps)) : alphas.indexOf(now) + step;
    model.set("alpha", alphas[next] ?? now);
  });

  return {
    page, run, sentence,
    controls: () => page.slider("alpha", "Factor α of the first layer", alphas),
    begin: forget,
    forget,
    done: () => Boolean(here()),
    prediction: {
      id: "spectrum-rescaled",
      question: "The first layer is multiplied by α, and the second divided by it. Draw how the "
        + "largest eigenvalue λ₁ of the Hessian changes.",
      kind: "curve",
      axes: {
        x: { label: "α", low: 0.1, high: 10, log: true, at: KNOTS },
        y: { label: "λ₁, relative to α = 1", low: 0.1, high: 1000, log: true,
          at: [0.1, 1, 10, 100, 1000] },
      },
      knots: KNOTS,
      start: { y: 1 },
      says: (made, truth) => `Measured: ${times(truth[0][1])} at α = 0.1 and `
        + `${times(truth.at(-1)[1])} at α = 10${made ? `, where your curve has `
        + `${times(between(made, 0.1))} and ${times(between(made, 10))}` : ""}. It grows at both `
        + "ends: at either a step in one of the layers means more.",
    },
  };
  function forget() {
    life.abort();
    [life, known] = [new AbortController(), new Map()];
  }
}
