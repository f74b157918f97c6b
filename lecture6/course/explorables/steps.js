// Explorable: k small steps against one large step on ℓ(w) = ½ h w², equations (4) and (5), where
// the curvature h changes while the steps are made.
//
// From w the small steps lead to (1 − ηh)^k w and the large one, with rate kη, to (1 − kηh) w. They
// differ by η² k(k − 1)/2 h² w + O(η³). A warm-up raises the large steps' rate linearly from η to
// kη, as lecture6.schedules.warmup(…, 1/k). Over many steps there is noise, too: the gradient of a
// small batch has variance σ², that of a large one σ²/k.

import { between } from "./predict.js";
import {
  bounded, geometric, linear, mark, number, panel, polyline, rangesOf, stage,
} from "./shared.js";

export const START = {
  "lr": [0.05, 0.001, 1],
  "k": [8, 1, 64],
  "warmup": [0, 0, 1000],
  "curvature": [[[0, 1.0], [100, 1.0], [200, 1.0], [400, 1.0], [700, 1.0], [1000, 1.0]], 0.1, 30]
};
const RANGE = rangesOf(START);
const SIGMA = 0.1;
const GAP = 0.1; // the two ends differ by less, from w = 1: the rule holds
const STEEP = [1e-3, 3]; // ηh in the map
const EARLY = [[0, 4], [0.125, 8], [0.375, 1], [1, 1]]; // share of the steps, and h

// w_0 = 1, w_1, … by full gradients, with these rates.
export const path = (h, rates) =>
  rates.reduce((w, rate) => [...w, w.at(-1) - rate * h * w.at(-1)], [1]);
export const secondOrder = (h, lr, k) => ((lr * lr * k * (k - 1)) / 2) * h * h;
// The rate of a large step that is made after t small ones.
export const largeRate = (t, lr, k, warmup) =>
  lr * (t < warmup ? 1 + ((k - 1) * t) / warmup : k);
// E w², from w = 1, before each of the steps, pairs [rate, h], and after the last; `noise` is the
// variance of their gradients.
export function squares(steps, noise) {
  const found = [1];
  for (const [rate, h] of steps)
    found.push((1 - rate * h) ** 2 * found.at(-1) + rate * rate * noise);
  return found;
}
// The ηh at which (1 − ηh)^k and 1 − kηh differ by `gap` ≤ 1, for k > 1: the difference rises in ηh.
export function reach(k, gap) {
  let [low, high] = [0, 1];
  for (let i = 0; i < 50; i++) {
    const x = (low + high) / 2;
    if ((1 - x) ** k - 1 + k * x < gap) low = x;
    else high = x;
  }
  return low;
}

function render({ model, el }) {
  const start = model.get("curvature"), last = start.at(-1)[0];
  let points, lr, k, warmup, rounds, small, large, h, end, target, onTime, onMap;
  const at = (t) => between(points, t);

  const page = stage(model, el, {
    title: "k small steps against one large step",
    description: "Four charts. The curvature h against the number of small steps, with the highest "
      + "one at which the large steps do not grow. A map of ηh and k that shows where the rule "
      + "holds, where a large step overshoots, and where it grows. One round on the parabola. And "
      + "the root mean square of w for both, against the number of small steps.",
    legend: [["blue", "●", "k steps of η"], ["orange", "◆", "one step of kη; in the map, each round"],
      ["purple", "●", "the curvature h"], ["ink", "◇", "large step + second order"],
      ["green", "▬", "how far the two ends differ"]],
    note: "Drag the points of the curvature, or the point of the map, which is at the highest h. "
      + "One round is shown by full gradients on ℓ = ½hw², at the highest h and the full rate. "
      + "In the light band of the map a large step overshoots. "
      + `Over all rounds gradients have noise: variance σ² for a small batch, σ²/k for a large one, `
      + `σ = ${SIGMA}. “The rule holds”: one round from w = 1 ends within ${GAP} of the small `
      + "steps’ end. On a net, a step that grows changes h; here it does not.",
    height: (width) => (width > 560 ? 500 : 900),
    draw,
    update,
    table: () => [["small steps", "h", "rate of the large step", "rms of w by small steps",
      "rms of w by large steps"], ...small.map((value, t) => [t, at(t),
      t % k ? "" : largeRate(t, lr, k, warmup), value, t % k ? "" : large[t / k]])],
  });

  function update() {
    [points, lr, k, warmup] = ["curvature", "lr", "k", "warmup"].map((name) => model.get(name));
    rounds = Math.max(1, Math.floor(last / k));
    const times = Array.from({ length: rounds * k }, (_, t) => t);
    const big = times.filter((t) => t % k === 0);
    const run = (wait) => squares(big.map((t) => [largeRate(t, lr, k, wait), at(t)]),
      SIGMA ** 2 / k).map(Math.sqrt);
    small = squares(times.map((t) => [lr, at(t)]), SIGMA ** 2).map(Math.sqrt);
    large = run(warmup);
    h = Math.max(...points.map(([, value]) => value));
    [, end] = path(h, [k * lr]);
    target = end + secondOrder(h, lr, k);
    const few = path(h, Array(k).fill(lr)).at(-1), edge = k * lr * h;
    const most = (values) => {
      const value = Math.max(...values);
      return value > 1e6 ? "over a million" : number(value);
    };
    page.say(`At the highest curvature, h = ${number(h)}: from w = 1, ${k} steps of η lead to `
      + `${number(few)}, one of kη to ${number(end)}. The difference is ${number(few - end)}; `
      + `η²k(k − 1)/2·h²w predicts ${number(target - end)}. kηh = ${number(edge)}: the large step `
      + (edge > 2 ? "grows" : edge > 1 ? "overshoots" : "does not overshoot")
      + `, the small ones ${lr * h > 2 ? "grow" : "do not grow"}. Over ${rounds} rounds the root `
      + `mean square of w is at most ${most(small)} with small steps and ${most(large)} with large `
      + `ones${warmup ? `; without the warm-up it would be ${most(run(0))}` : ""}.`);
    page.redraw();
  }

  // ---- drawing -----------------------------------------------------------------------------------

  // [left, top, width, height] of the curvature, the map, the spread and the parabola: two by two,
  // or in a column.
  function places(width) {
    const side = width > 560, left = 54, across = side ? width / 2 - left - 12 : width - left - 12;
    return [0, 1, 2, 3].map((i) => (side
      ? [left + (i % 2) * (width / 2), 24 + 238 * Math.floor(i / 2), across, 170]
      : [left, 24 + 222 * [0, 2, 1, 3][i], across, 156]));
  }
  function draw(pen, width, colours) {
    const [curvature, map, spread, parabola] = places(width), time = [-0.04 * last, 1.04 * last];
    const { blue, orange, purple } = colours;
    const times = linear(0, last, 200);
    panel(pen, colours, curvature, time, RANGE.curvature,
      { x: "", y: "Curvature h (shaded: large steps grow)", ylog: true }, (px, py) => {
        onTime = { px, py, at: curvature };
        const edge = times.map((t) => [px(t), py(2 / largeRate(t, lr, k, warmup))]);
        shade(pen, orange, 0.2, [...edge, [px(last), -99], [px(0), -99]]);
        polyline(pen, orange, edge, { dash: [6, 4] });
        polyline(pen, purple, times.map((t) => [px(t), py(at(t))]));
        for (const [t, value] of points) mark(pen, purple, [px(t), py(value)], 6);
      });
    panel(pen, colours, map, STEEP, [0.9, 80], { x: "ηh", y: "k, or rate/η in a warm-up",
      xlog: true, ylog: true }, (px, py) => drawMap(pen, colours, map, px, py));
    panel(pen, colours, spread, time, [2e-3, bounded(2 * Math.max(...small, ...large), [10, 1e4])],
      { x: "Small steps (a large one counts k)", y: "Root mean square of w", ylog: true },
      (px, py) => {
        const line = (values, each) => values.map((value, i) =>
          [px(i * each), py(Math.min(1e9, value))]);
        polyline(pen, blue, line(small, 1));
        polyline(pen, orange, line(large, k), { dash: [6, 4] });
      });
    oneRound(pen, colours, parabola);
  }
  function shade(pen, colour, alpha, corners) {
    Object.assign(pen, { fillStyle: colour, globalAlpha: alpha });
    pen.beginPath();
    for (const corner of corners) pen.lineTo(...corner);
    pen.fill();
    pen.globalAlpha = 1;
  }
  // Where the rule holds, where a large step overshoots, and where it grows; and the rounds.
  function drawMap(pen, { ink, orange, green }, [left, top, width, height], px, py) {
    onMap = { px, py, at: [left, top, width, height] };
    const ratios = geometric(1, 80).map((ratio) => Math.max(1.02, ratio));
    const border = (of) => ratios.map((ratio) => [px(of(ratio)), py(ratio)]);
    const held = border((ratio) => reach(ratio, GAP)), grows = border((ratio) => 2 / ratio);
    const over = border((ratio) => 1 / ratio);
    shade(pen, green, 0.2, [[left, top], [left, top + height], ...held]);
    shade(pen, orange, 0.12, [...over, ...[...grows].reverse()]);
    shade(pen, orange, 0.3, [...grows, [left + width, top], [left + width, top + height]]);
    Object.assign(pen, { fillStyle: ink, textAlign: "left" });
    pen.fillText("the rule holds", left + 8, top + height - 14);
    pen.textAlign = "right";
    pen.fillText("grows", left + width - 8, top + 14);
    large.slice(0, rounds).forEach((_, r) => {
      const t = r * k;
      mark(pen, orange, [px(lr * at(t)), py(largeRate(t, lr, k, warmup) / lr)], 2.5);
    });
    mark(pen, ink, [px(lr * h), py(k)], 7, { hollow: true });
  }
  // One round from w = 1, at the highest h and the full rate.
  function oneRound(pen, colours, place) {
    const { ink, blue, orange, green } = colours, steps = path(h, Array(k).fill(lr));
    const clipped = (w) => Math.max(-4, Math.min(4, w));
    const ws = [-0.3, 1, end, target].map((w) => 1.15 * clipped(w));
    const range = [Math.min(...ws), Math.max(...ws)], loss = (w) => 0.5 * h * w * w;
    const most = loss(Math.max(...range.map(Math.abs)));
    panel(pen, colours, place, range, [-0.12 * most, most], { x: "w", y: "Loss ½hw², one round" },
      (px, py) => {
        const on = (w) => [px(w), py(loss(w))];
        polyline(pen, ink, linear(...range, 100).map(on), { width: 1 });
        polyline(pen, green, [[px(end), py(0) + 8], [px(steps.at(-1)), py(0) + 8]], { width: 6 });
        polyline(pen, blue, steps.map(on));
        polyline(pen, orange, [on(1), on(end)], { dash: [6, 4] });
        for (const w of steps) mark(pen, blue, on(w), 4);
        mark(pen, orange, on(end), 7, { corners: 4 });
        mark(pen, ink, on(target), 9, { corners: 4, hollow: true });
      });
  }

  // ---- controls ----------------------------------------------------------------------------------

  const ofShare = (share, [low, high]) => low * (high / low) ** bounded(share, [0, 1]);
  const upward = (y, { at: [, top, , height] }, range) => ofShare(1 - (y - top) / height, range);
  start.forEach(([t], i) => page.handle(`Curvature after ${t} small steps`,
    () => [onTime.px(t), onTime.py(points[i][1])],
    (x, y) => model.set("curvature", points.with(i, [t, upward(y, onTime, RANGE.curvature)]))));
  const reader = page.handle("Learning rate and k", () => [onMap.px(lr * h), onMap.py(k)],
    (x, y) => {
      const [left, , width] = onMap.at;
      const found = upward(y, onMap, [0.9, 80]), step = Math.sign(onMap.py(k) - y);
      // An arrow key goes to the next k, however far off that is.
      const next = reader.held || !step ? Math.round(found)
        : step > 0 ? Math.max(k + 1, Math.round(found)) : Math.min(k - 1, Math.round(found));
      const wanted = ofShare((x - left) / width, STEEP) / h;
      if (Math.abs(x - onMap.px(lr * h)) > 0.5) model.set("lr", bounded(wanted, RANGE.lr));
      model.set("k", bounded(next, RANGE.k));
    });
  const shape = (of) => () => {
    model.set("curvature", start.map(([t, value]) => [t, of(t / last, value)]));
    model.save_changes();
  };
  page.buttons({
    "Constant curvature": shape(() => 1),
    "High early": shape((share) => between(EARLY, share)),
    "As at the start": shape((_, value) => value),
  });
  page.follow("curvature", () => {}, (text) => {
    const numbers = text.split(",").map(Number), read = start.map((_, i) =>
      numbers.slice(2 * i, 2 * i + 2));
    const good = numbers.length === 2 * start.length && read.every(([t, value], i) =>
      t === start[i][0] && value >= RANGE.curvature[0] && value <= RANGE.curvature[1]);
    return good ? read : undefined;
  });
  page.slider("lr", "Learning rate η", geometric(...RANGE.lr));
  page.slider("k", "Ratio k of the batch sizes", linear(...RANGE.k, RANGE.k[1] - 1));
  page.slider("warmup", "Warm-up, small steps", linear(...RANGE.warmup, 20));
  update();
  return () => page.over.abort();
}

export default { render };
