// Explorable: a question about a figure, which comes when the reader has guessed, or skipped.

import { drawFigure } from "./explorer.js";
import { between, predict, scale } from "./predict.js";
import { number } from "./shared.js";

// What a drawn curve does: "flat" within a tenth of the axis, else "rises", "falls", "peaks" or
// "dips"; it peaks, or dips, if in between it is farther out than both its ends by that much.
export function shapeOf(points, axis) {
  const shares = points.map(([, value]) => scale(axis).share(value));
  const [start, end] = [shares[0], shares.at(-1)];
  const above = Math.max(...shares) - Math.max(start, end);
  const below = Math.min(start, end) - Math.min(...shares);
  if (Math.max(above, below) > 0.1) return above > below ? "peaks" : "dips";
  return Math.abs(end - start) <= 0.1 ? "flat" : end > start ? "rises" : "falls";
}

// How far guess and truth are apart, in words: of a logarithmic axis as a factor, else in the unit of
// its label. What lies beyond the axis counts as its end.
function distance(made, truth, axis) {
  const { share, value } = scale(axis), { log } = axis;
  const apart = made.map(([at, guess]) => {
    const right = value(share(between(truth, at)));
    return Math.abs(log ? Math.log(guess / right) : guess - right);
  });
  const mean = apart.reduce((sum, each) => sum + each, 0) / apart.length;
  const [, unit = ""] = axis.label.split(", ");
  return log ? `a factor of ${number(Math.exp(mean), 2)}`
    : `${number(mean, 2)} ${unit.replace("%", "points")}`.trim();
}

// What is said of a guess: `sentences` has one for each key of the options, for a point that is
// "low", "near" (within a twentieth of the axis) or "high", or for each shape of a curve.
function sentence(kind, { options, axes, sentences }, made, truth) {
  const say = (verdict, key) => `${verdict} ${sentences[key] ?? ""}`.trim();
  if (kind === "choice") {
    const [, words] = options.find(([key]) => key === truth);
    const verdict = made === truth ? "Right." : `${made === null ? "It is" : "No"}: ${words}.`;
    return say(verdict, made ?? truth);
  }
  if (made === null) return "";
  if (kind === "curve")
    return say(`Your curve is off by ${distance(made, truth, axes.y)} on average.`,
      shapeOf(made, axes.y));
  const { share } = scale(axes.y), gap = share(made.y) - share(truth.y);
  return say(`Your guess: ${number(made.y)}. Measured: ${number(truth.y)}.`,
    Math.abs(gap) <= 0.05 ? "near" : gap < 0 ? "low" : "high");
}

// Where the figure stands: in the book it is in the page, for whoever has no JavaScript.
function answerOf(model, el) {
  const there = el.closest("figure")?.nextElementSibling;
  if (there?.matches(".answer")) return { answer: there, end() {} };
  el.insertAdjacentHTML("beforeend", `<details class="answer"><summary>The answer</summary>
    <div></div></details>`);
  const answer = el.lastElementChild;
  return { answer, end: drawFigure({ model, el: answer.querySelector("div") }) };
}

function render({ model, el }) {
  const [question, options, axes, knots, sentences] = ["question", "options", "axes", "knots",
    "says"].map((name) => model.get(name));
  const kind = options.length ? "choice" : knots.length ? "curve" : "point";
  const [x, y] = model.get("truth"), truth = kind === "point" ? { x, y } : model.get("truth");
  el.replaceChildren();
  const guess = predict(el, {
    id: question, question, kind, options, axes, knots, free: "y",
    start: kind === "point" ? { x } : {},
    says: (made, right) => sentence(kind, { options, axes, sentences }, made, right),
    onReady() {
      guess.reveal(truth);
      answer.open = true;
    },
    onReset() { answer.open = false; },
  });
  const { answer, end } = answerOf(model, el);
  answer.open = false;
  answer.querySelector("summary").hidden = true; // the buttons of the prediction open it
  return () => [guess.end, end].forEach((act) => act());
}

export default { render };
