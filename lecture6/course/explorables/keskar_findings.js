// What Keskar's experiment does and finds, apart from the page that shows it.

import { interval, number } from "./shared.js";

const ROWS = 60; // of a curve, where the number of updates is known
const MOST = 1000; // epochs, where a training loss is waited for
const SHOWN = 20; // digits

export const LONGER = 10; // times as many epochs

// What is measured: its key, its name, and whether a difference of it is a ratio.
export const MEASURES = [
  ["trainLoss", "Training loss", true],
  ["accuracy", "Test accuracy, %", false],
  ["lambda", "λ_max of the Hessian", true],
  ["phi", "Sharpness φ, %", true],
  ["slope", "φ from the slope alone, %", true],
  ["equal", "φ at equal layer norms, %", true],
  ["distance", "Distance ‖w − w₀‖", true],
  ["epochs", "Epochs", true],
  ["updates", "Updates", true],
];

// How each of the two nets is trained on n samples, as the lab has it.
export function plans({ small, large, lr, factor, optimizer, rule, epochs, loss }, n) {
  const perEpoch = (size) => Math.ceil(n / size);
  return [small, large].map((batchSize, isLarge) => {
    const one = perEpoch(batchSize), updates = {
      epochs: epochs * one,
      longer: epochs * one * (isLarge ? LONGER : 1),
      updates: epochs * perEpoch(small),
      loss: MOST * one,
    }[rule];
    const every = rule === "loss" ? Math.max(3, one / 4) : updates / ROWS;
    return {
      batchSize, optimizer, lr: isLarge ? lr * factor : lr,
      evaluateEvery: Math.max(1, Math.round(every)),
      stop: rule === "loss" ? { updates, trainLoss: loss } : { updates },
    };
  });
}

// Large against small over the seeds: a difference, or a geometric mean of ratios; [low, high] is
// the interval.
export function compared(pairs, key, ratio) {
  const gap = ([a, b]) => (ratio ? Math.log(b[key] / a[key]) : b[key] - a[key]);
  const { mean, half } = interval(pairs.map(gap));
  const [value, low, high] = [mean, mean - half, mean + half].map(ratio ? Math.exp : Number);
  return { value, low, high };
}

// The numbers of digits of the test set whose label changes between the two nets, in the order in
// which it changes; then those that change beyond them. They are at α = 0 and 1 of `alphas`.
export function changing(labels, n, alphas) {
  const inside = [], beyond = [];
  const at = (k, i) => labels[k * n + i];
  const [zero, one] = [0, 1].map((alpha) => alphas.indexOf(alpha));
  for (let i = 0; i < n; i++) {
    const changes = [...alphas.keys()].filter((k) => k && at(k, i) !== at(k - 1, i));
    const first = changes.find((k) => k > zero && k <= one);
    if (first) inside.push([first, i]);
    else if (changes.length) beyond.push([changes[0], i]);
  }
  const sorted = [inside, beyond].map((found) => found.sort(([a], [b]) => a - b));
  return sorted.flat().slice(0, SHOWN).map(([, i]) => i);
}

// What is measured of a net at its last row.
export async function measured(net, row, epsilon) {
  const phi = (more) => net.measure("sharpness", { epsilon, ...more });
  const [{ largest: [{ value: lambda }] }, whole, equal, { loss, gradient }] = await Promise.all([
    net.measure("eigenvalues"), phi(), phi({ equal: true }), net.measure("gradient")]);
  const steepness = gradient.reduce((sum, g) => sum + Math.abs(g), 0);
  return {
    trainLoss: row.trainLoss, accuracy: 100 * row.testAccuracy, lambda, phi: whole.value,
    slope: (100 * epsilon * steepness) / (1 + loss), equal: equal.value,
    distance: row.distance, epochs: row.epoch, updates: row.update,
  };
}

// What was found, in sentences. The training losses come first.
export function finding(pairs, { rule, small, large }, reasons = []) {
  if (reasons.includes("diverged"))
    return `The net with B = ${reasons[0] === "diverged" ? small : large} diverged: its learning `
      + "rate is too high.";
  const many = pairs.length > 1, [loss, test, lambda, phi] = MEASURES.map(([key, , ratio]) =>
    compared(pairs, key, ratio));
  const range = ({ low, high }) => (many ? ` [${number(low, 2)}, ${number(high, 2)}]` : "");
  const [a, b] = [0, 1].map((i) => interval(pairs.map((pair) => pair[i].trainLoss)).mean);
  const equal = Math.abs(Math.log(loss.value)) < Math.log(1.25);
  const far = equal ? "both are trained equally far"
    : `the ${loss.value > 1 ? "large" : "small"} batch is trained less far`;
  const same = equal && many && test.low <= 0 && test.high >= 0;
  return [
    reasons.includes("stopped") && "Stopped by you.",
    rule === "loss" && reasons.includes("updates")
      && `The loss that was asked for is not reached in ${MOST} epochs.`,
    `Training loss ${number(a, 2)} with B = ${small} and ${number(b, 2)} with B = ${large}: `
      + `${far}.`,
    many ? `Over ${pairs.length} seeds, the test accuracy of the large batch minus that of the `
      + `small one is ${number(test.value, 2)}${range(test)} points.`
      : `The large batch tests ${test.value ? `${number(Math.abs(test.value), 2)} points ${
        test.value < 0 ? "worse" : "better"}` : "as well as the small one"}.`,
    `The large batch’s λ_max is ${number(lambda.value, 2)}${range(lambda)} times the small one’s, `
      + `its φ ${number(phi.value, 2)}${range(phi)} times.`,
    same && "So at equal training loss these runs see no difference in test accuracy"
      + `${lambda.low > 1 ? ", although the large batch has the larger λ_max" : ""}.`,
  ].filter(Boolean).join(" ");
}

const span = (value, half) =>
  `${number(value)}${Number.isFinite(half) ? ` ± ${number(half, 2)}` : ""}`;

// The rows of the table: a name, the small batch, the large one, and the two compared.
export function rows(pairs) {
  return MEASURES.map(([key, name, ratio]) => {
    const ends = [0, 1].map((i) => interval(pairs.map((pair) => pair[i][key])));
    const { value, low, high } = compared(pairs, key, ratio);
    const range = pairs.length > 1 ? ` [${number(low, 2)}, ${number(high, 2)}]` : "";
    const sign = !ratio && value > 0 ? "+" : "";
    return [name, ...ends.map(({ mean, half }) => span(mean, half)),
      `${ratio ? "× " : sign}${number(value, 2)}${range}`];
  });
}
