// Explorable: k small steps against one large step on ℓ(w) = ½ h w², equations (4) and (5).
//
// From w the small steps lead to (1 − ηh)^k w and the large one, with rate kη, to (1 − kηh) w. They
// differ by η² k(k − 1)/2 h² w + O(η³). A warm-up raises the large steps' rate linearly from η to
// kη, as lecture6.train.warmup(rounds, 1/k).

import { linear, geometric, mark, number, panel, polyline, stage } from "./shared.js";

export const ROUNDS = 12; // of k small steps, or one large one

// w_0 = 1, w_1, … of the rates' steps.
export const path = (h, rates) =>
  rates.reduce((w, rate) => [...w, w.at(-1) - rate * h * w.at(-1)], [1]);
export const smallRates = (lr, k, rounds) => Array(k * rounds).fill(lr);
export const largeRates = (lr, k, rounds, warmup) => Array.from({ length: rounds }, (_, r) =>
  k * lr * (r < warmup ? Math.min(1, 1 / k + ((1 - 1 / k) * r) / warmup) : 1));
export const secondOrder = (h, lr, k) => ((lr * lr * k * (k - 1)) / 2) * h * h;

function render({ model, el }) {
  let h, k, small, large, end, target;

  const page = stage(model, el, {
    title: "k small steps against one large step",
    description: "Two charts. The loss, a parabola, with the k small steps and the large step from "
      + "w = 1; and w against the number of small steps over twelve rounds, for both.",
    legend: [["blue", "●", "k steps of η"], ["orange", "◆", "one step of kη"],
      ["green", "━", "their difference"], ["ink", "◇", "large step + second order"]],
    note: `Full gradients on ℓ = ½hw². First chart: one round, at the full rate kη. Second chart: `
      + `${ROUNDS} rounds, where the large steps warm up. Here h never changes, and a warm-up only `
      + "puts off a divergence (kηh > 2). It helps where the curvature is high early, then falls.",
    height: (width) => (width > 560 ? 292 : 562),
    draw,
    update,
    table: () => [["small steps", "w by small steps", "w by large steps"],
      ...small.map((w, i) => [i, w, i % k ? "" : large[i / k]])],
  });

  function update() {
    const [lr, warmup] = [model.get("lr"), model.get("warmup")];
    [h, k] = [model.get("curvature"), model.get("k")];
    small = path(h, smallRates(lr, k, ROUNDS));
    large = path(h, largeRates(lr, k, ROUNDS, warmup));
    [, end] = path(h, [k * lr]);
    target = end + secondOrder(h, lr, k);
    const edge = k * lr * h;
    page.say(`From w = 1, ${k} steps of η lead to ${number(small[k])}, one of kη `
      + `to ${number(end)}. The difference is ${number(small[k] - end)}; η²k(k − 1)/2·h²w predicts `
      + `${number(target - end)}. kηh = ${number(edge)}: the large steps `
      + (edge > 2 ? "diverge" : edge > 1 ? "overshoot" : "do not overshoot")
      + `, the small ones ${lr * h > 2 ? "diverge" : "do not diverge"}. After ${ROUNDS} rounds: `
      + `${number(small.at(-1))} and ${number(large.at(-1))}.`);
    page.redraw();
  }

  function draw(pen, width, colours) {
    const { ink, blue, orange, green } = colours;
    const side = width > 560, left = 50, across = side ? width / 2 - 66 : width - 62;
    const range = (...values) =>
      [Math.max(-4, 1.15 * Math.min(...values)), Math.min(4, 1.15 * Math.max(...values))];
    const loss = (w) => 0.5 * h * w * w, ws = range(-0.3, 1, end, target);
    const highest = loss(Math.max(...ws.map(Math.abs)));
    panel(pen, colours, [left, 24, across, 225], ws, [-0.12 * highest, highest],
      { x: "w", y: "Loss ½hw²" }, (px, py) => {
        const at = (w) => [px(w), py(loss(w))];
        polyline(pen, ink, linear(...ws, 100).map(at), { width: 1 });
        polyline(pen, green, [[px(end), py(0) + 8], [px(small[k]), py(0) + 8]], { width: 6 });
        polyline(pen, blue, small.slice(0, k + 1).map(at));
        polyline(pen, orange, [at(1), at(end)], { dash: [6, 4] });
        for (const w of small.slice(0, k + 1)) mark(pen, blue, at(w), 4);
        mark(pen, orange, at(end), 7, { corners: 4 });
        mark(pen, ink, at(target), 9, { corners: 4, hollow: true });
      });
    const at = side ? [left + width / 2, 24, across, 225] : [left, 314, across, 205];
    const differences = large.map((w, r) => small[k * r] - w);
    const ys = range(-0.1, ...small, ...large, ...differences);
    panel(pen, colours, at, [0, k * ROUNDS], ys,
      { x: "Small steps (a large one counts k)", y: "w, and the difference" }, (px, py) => {
        polyline(pen, green, differences.map((d, r) => [px(k * r), py(d)]));
        polyline(pen, blue, small.map((w, i) => [px(i), py(w)]));
        polyline(pen, orange, large.map((w, r) => [px(k * r), py(w)]), { dash: [6, 4] });
        large.forEach((w, r) => mark(pen, orange, [px(k * r), py(w)], 6, { corners: 4 }));
      });
  }

  page.slider("lr", "Learning rate η", geometric(-3, 0));
  page.slider("curvature", "Curvature h", geometric(-1, 1));
  page.slider("k", "Ratio k of the batch sizes", linear(1, 64, 63));
  page.slider("warmup", "Warm-up, rounds", linear(0, 10, 10));
  update();
  return () => page.over.abort();
}

export default { render };
