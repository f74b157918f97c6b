// Explorable: SGD walkers in a double well settle on the Gibbs law, equations (25) and (26).

import { BINS, EDGE, SIGMA, WIDTH, distance, gibbs, histogram, inStep, isRight, kramers,
  laplace, loss, normals, start, step, temperature, twoRates, wells }
  from "./double_well.js";
import {
  bounded, calm, channels, curves, geometric, linear, mark, number, panel, polyline, rangesOf,
  reader, stage,
} from "./shared.js";

export const START = {
  "lr": [0.016, 0.005, 0.1],
  "batch_size": [8, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128],
  "locked": [false],
  "anisotropy": [0.0, -0.9, 0.9],
  "depth": [0.1, -0.3, 0.3],
  "curvature": [4.0, 1, 9],
  "x": [1.0, -3.4, 3.4],
  "y": [0.0, -1.2, 1.2],
  "n_walkers": [2000, 100, 20000],
  "seed": [0, 0, 4294967295],
  "compact": [false]
};
const RANGE = rangesOf(START);
const STEPS = 30, MILLISECONDS = 8; // of a frame, at most
const MEMORY = 40; // frames that the histogram is averaged over
const RECORDED = 100; // points of the share against time, while the time doubles
const RISE = 1; // of the loss, from the bottom of the right well to the handle of its width

const percent = (share) => `${number(100 * share, 2)} %`;
const middle = (bin) => (bin + 0.5) * WIDTH - EDGE;

function render({ model, el }) {
  let told = 0, walkers, normal, steps, well, t, law, rates, average, frames, map, past, since;
  let ratio, inPlane, inLoss, moving = false;
  const compact = model.get("compact"), bottom = 22 + (compact ? 0 : 140); // above the plane
  const aspect = compact ? 0.3 : 0.38, rise = compact ? 90 : 130; // of the plane; of the histogram
  const first = { lr: model.get("lr"), batch_size: model.get("batch_size") };

  const page = stage(model, el, {
    title: "SGD in a double well",
    description: compact
      ? "Two charts over w₁, the coordinate between two wells: the plane of two weights with the "
        + "walkers in it; and their histogram beside the Gibbs law."
      : "Four charts. Over w₁, the coordinate between two wells: the loss; the plane of two "
        + "weights with the walkers in it; and their histogram beside the Gibbs law. And the share "
        + "of the walkers in the left well against time, beside two predictions.",
    legend: [["blue", "●", "walkers in the left well"], ["orange", "●", "in the right well"],
      ["green", "━", compact ? "Gibbs law, equation (25)" : "Gibbs law, and its two rates"],
      ...(compact ? [] : [["purple", "╌", "Kramers' two rates"]])],
    note: `${compact ? "" : "Click in the plane, or move the ring there, to drop all walkers at a "
      + "place. Drag the rings in the loss to change the right well. The two rates are one over "
      + "the mean times to cross of w₁, as if w₂ were always at rest; Kramers' need T far below "
      + "the barrier, and a round top. "}ℓ is the mean loss, σ = ${SIGMA}. The Gibbs law `
      + "exp(−ℓ/T)/Z with T = ησ²/(2B) is right only for isotropic noise (anisotropy 0) and short "
      + "steps (ηh small). Otherwise the histogram settles elsewhere.",
    height: (width) => place(width).end,
    draw,
    update: changed,
    table: () => [["chart", "w₁, or time", "walkers (%)", "Gibbs law (%)", "Kramers (%)"],
      ...[...law.masses].map((mass, i) =>
        ["bin of w₁, its middle", middle(i), 100 * average.masses[i], 100 * mass, ""]),
      ...past.map(([time, share]) => ["left well, against time", time, 100 * share,
        ...[law, rates].map((each) => predicted(each, time))])],
  });

  const time = () => (past.length ? past.at(-1)[0] : 0);
  const predicted = (each, when) =>
    (when < since.time ? "" : 100 * twoRates(each, since.share, when - since.time));
  function prepare() {
    well = wells(model.get("depth"), model.get("curvature"));
    t = temperature(model.get("lr"), model.get("batch_size"));
    [law, rates] = [gibbs(well, t), kramers(well, t)];
    since = { time: time(), share: 1 - histogram(walkers, well).right };
    frames = 0;
    map = null;
    show(0);
  }
  function restart() {
    walkers = start(model.get("n_walkers"), model.get("x"), model.get("y"));
    normal = normals(model.get("seed"));
    [steps, past] = [0, []];
    prepare();
  }
  function changed(name) {
    if (moving || name === "x" || name === "y") return page.redraw();
    if (name === "locked") ratio = model.get("lr") / model.get("batch_size");
    else if (model.get("locked") && name in first) {
      moving = true; // the other one follows
      Object.entries(inStep(name, model.get(name), ratio, RANGE))
        .forEach((pair) => model.set(...pair));
      moving = false;
    }
    prepare();
  }
  function advance(count, milliseconds = Infinity) {
    const [lr, batchSize, anisotropy] = ["lr", "batch_size", "anisotropy"].map((k) => model.get(k));
    const end = performance.now() + milliseconds, before = steps;
    for (let i = 0; i < count && performance.now() < end; i++, steps++)
      step(walkers, well, { lr, batchSize, anisotropy }, normal);
    if (count) frames++; // where the walkers were put has no part in the mean
    const now = histogram(walkers, well), share = 1 / Math.min(frames || 1, MEMORY);
    const clock = time() + lr * (steps - before);
    if (past.length > 1 && clock - past.at(-2)[0] < clock / RECORDED) past.pop();
    past.push([clock, 1 - now.right]);
    if (frames < 2) average = now;
    average.masses.forEach((mass, i) => (average.masses[i] += share * (now.masses[i] - mass)));
    average.right += share * (now.right - average.right);
  }
  // What the challenge of the front page asks for: both moved, and the ratio as it was.
  function ratioSaid() {
    const [lr, size] = [model.get("lr"), model.get("batch_size")], by = size / first.batch_size;
    const same = Math.abs(lr / size / (first.lr / first.batch_size) - 1) < 0.02;
    return by !== 1 && same ? ` η and B are ${number(by)} times what they were, and T is the same: `
      + "only their ratio matters, as long as the steps are short." : "";
  }
  function tell() {
    const long = model.get("lr") * Math.max(...well.h), a = model.get("anisotropy");
    const away = percent(distance(average.masses, law.masses));
    const hops = compact ? "" : ` To cross takes a time of ${number(law.leftRight, 2)} from the `
      + `left well and ${number(law.rightLeft, 2)} from the right one, by Kramers' formula `
      + `${number(rates.leftRight, 2)} and ${number(rates.rightLeft, 2)}; so far it is `
      + `${number(time())}.`;
    page.say(`T = ${number(t)}. In the right well: ${percent(average.right)} of `
      + `the walkers; ${percent(law.right)} by the Gibbs law, ${percent(laplace(well, t))} by `
      + `equation (26). After ${steps.toLocaleString("en")} steps the histogram is ${away} away `
      + `from the law (total variation).${ratioSaid()}${hops}`
      + (a ? ` The noise is anisotropic, ${number(1 + a)} σ² along w₁: the law does not hold.` : "")
      + (long > 0.2 ? ` The steps are long: ηh = ${number(long)} in the narrower well makes the `
        + `variance there ${number(1 / (1 - long / 2))} times that of the law.` : ""));
  }

  function show(count) {
    advance(count);
    tell();
    page.redraw();
  }

  // Bands of equal loss, the darker the higher.
  function bands(width, height, ink) {
    const canvas = Object.assign(document.createElement("canvas"), { width, height });
    const pen = canvas.getContext("2d"), image = pen.createImageData(width, height);
    const colour = channels(ink), scale = (2 * EDGE) / width;
    for (let i = 0; i < width * height; i++) {
      const across = (i % width) - width / 2, down = Math.floor(i / width) - height / 2;
      const rise = loss(well, across * scale, down * scale) - Math.min(...well.level);
      image.data.set([...colour, 6 * Math.min(12, Math.floor(rise / 0.2))], 4 * i);
    }
    pen.putImageData(image, 0, 0);
    return { canvas, width, ink };
  }
  // Where the charts are, in px: [left, top, width, height] each.
  function place(width) {
    const left = 44, across = Math.floor(width - left - 10), down = Math.round(across * aspect);
    const below = bottom + down + 28, over = below + rise + 68;
    return { loss: [left, 22, across, 110], plane: [left, bottom, across, down],
      bars: [left, below, across, rise], share: [left, over, across, 110],
      end: compact ? below + rise + 45 : over + 155 };
  }
  function draw(pen, width, colours) {
    const { ink, green, blue, orange } = colours, at = place(width), [left, top, across] = at.plane;
    const xs = [-EDGE, EDGE], ys = xs.map((x) => aspect * x);
    if (map?.width !== across || map.ink !== ink) map = bands(across, at.plane[3], ink);
    if (!compact) drawLoss(pen, colours, at.loss);
    panel(pen, colours, at.plane, xs, ys, { y: "w₂" }, (px, py) => {
      inPlane = { px, py, at: at.plane };
      pen.drawImage(map.canvas, left, top);
      const { x, y } = walkers;
      for (const [side, colour] of [blue, orange].entries()) {
        pen.fillStyle = colour;
        for (let i = 0; i < x.length; i++)
          if (Number(isRight(well, x[i], y[i])) === side)
            pen.fillRect(px(x[i]) - 1, py(y[i]) - 1, 2, 2);
      }
      if (!compact) mark(pen, ink, [px(model.get("x")), py(model.get("y"))], 9, { hollow: true });
    });
    // The least of the law's height, and twice, four times, … that, which shows all of each bar.
    let highest = 160 * Math.max(...law.masses);
    while (highest < 100 * Math.max(...average.masses)) highest *= 2;
    panel(pen, colours, at.bars, xs, [0, Math.min(100, highest)],
      { x: "w₁", y: "Walkers in a bin of w₁, %", rows: 3 }, (px, py) => {
        average.masses.forEach((mass, i) => {
          pen.fillStyle = isRight(well, middle(i), 0) ? orange : blue;
          const above = py(100 * mass), least = py(0);
          pen.fillRect(px(middle(i - 0.5)), above, across / BINS - 1, least - above);
        });
        const curve = [...law.masses].map((mass, i) => [px(middle(i)), py(100 * mass)]);
        polyline(pen, green, curve, { width: 3 });
      });
    if (!compact) drawShare(pen, colours, at.share);
  }
  function drawLoss(pen, colours, at) {
    const lowest = Math.min(...well.level), xs = [-EDGE, EDGE];
    panel(pen, colours, at, xs, [lowest - 0.4, 2.5],
      { y: "Mean loss ℓ where w₂ = 0", rows: 2 }, (px, py) => {
        inLoss = { px, py, scale: [at[2] / (2 * EDGE), at[3] / (2.9 - lowest)] };
        polyline(pen, colours.ink, linear(...xs, 200).map((x) => [px(x), py(loss(well, x, 0))]));
        for (const end of [lowestPoint(), side()])
          mark(pen, colours.orange, end, 8, { hollow: true });
      });
  }
  function drawShare(pen, colours, at) {
    const now = time(), end = 10 * 2 ** Math.ceil(Math.log2(Math.max(now, 10) / 10));
    panel(pen, colours, at, [0, end], [0, 100],
      { x: "Time t = η · steps", y: "Walkers in the left, wide well, %", rows: 4 }, (px, py) => {
        const ahead = linear(since.time, end, 100);
        const line = (each) => ahead.map((when) => [px(when), py(predicted(each, when))]);
        const measured = past.map(([when, share]) => [px(when), py(100 * share)]);
        curves(pen, [
          { points: line(rates), colour: colours.purple, dash: [6, 4] },
          { points: line(law), colour: colours.green, width: 3 },
          { points: measured, colour: colours.blue },
        ], at[0] + at[2]);
        mark(pen, colours.blue, measured.at(-1), 4);
      });
  }

  // The handles of the loss: the bottom of the right well, and a point of its right side.
  const lowestPoint = () => [inLoss.px(1), inLoss.py(well.level[1])];
  const side = () =>
    [inLoss.px(1 + Math.sqrt((2 * RISE) / well.h[1])), inLoss.py(well.level[1] + RISE)];
  function dropAt(x, y) {
    const { at: [left, top, across, down] } = inPlane, scale = across / (2 * EDGE);
    const [u, v] = [x - left - across / 2, top + down / 2 - y];
    const room = [across / 2, down / 2].map((half) => half - 9);
    [u, v].forEach((part, i) => model.set("xy"[i],
      Number((Math.min(room[i], Math.max(-room[i], part)) / scale).toFixed(2))));
  }
  function addHandles() {
    const round = (value) => Number(value.toFixed(3));
    page.handle("Depth of the right well", () => inLoss && lowestPoint(), (_, y) => {
      const by = (y - lowestPoint()[1]) / inLoss.scale[1];
      model.set("depth", round(bounded(model.get("depth") + by, RANGE.depth)));
    });
    page.handle("Width of the right well", () => inLoss && side(), (x) => {
      const half = Math.max((x - inLoss.px(1)) / inLoss.scale[0], 0.1);
      model.set("curvature", round(bounded((2 * RISE) / half ** 2, RANGE.curvature)));
    });
    page.handle("Where walkers are dropped", () =>
      inPlane && [inPlane.px(model.get("x")), inPlane.py(model.get("y"))], dropAt, restart);
    page.plot.addEventListener("click", (event) => {
      if (event.target.closest(".handle")) return;
      const box = page.plot.getBoundingClientRect();
      const [x, y] = [event.clientX - box.left, event.clientY - box.top];
      const [, top, , down] = inPlane.at;
      if (y < top || y > top + down) return;
      dropAt(x, y);
      model.save_changes();
      restart();
    }, { signal: page.over.signal });
  }

  for (const name of ["x", "y"]) page.follow(name, () => {}, reader(RANGE[name]));
  const by = (name, factor) => () => {
    model.set(name, bounded(model.get(name) * factor, RANGE[name]));
    model.save_changes();
  };
  if (compact) {
    const [first] = page.buttons({ "B × 2": by("batch_size", 2), "B ÷ 2": by("batch_size", 0.5),
      "η × 2": by("lr", 2), "η ÷ 2": by("lr", 0.5) });
    page.plot.before(first.parentNode); // the challenge: in sight without a scroll
  } else addHandles();
  page.slider("lr", "Learning rate η", geometric(...RANGE.lr));
  page.slider("batch_size", "Batch size B", RANGE.batch_size);
  if (!compact) {
    page.choice("locked", "Moving one of η and B", [false, true], ["changes η/B", "keeps η/B"]);
    page.slider("anisotropy", "Anisotropy of the noise", linear(...RANGE.anisotropy, 18));
    page.slider("depth", "Right well: deeper by", linear(...RANGE.depth, 12));
    page.slider("curvature", "Right well: curvature h", linear(...RANGE.curvature, 16));
  }
  ratio = model.get("lr") / model.get("batch_size");

  const [play] = page.buttons({
    Play: () => toggle(),
    "100 steps": () => show(100),
    "Start again": restart,
  });
  restart();
  if (calm()) show(500);
  const toggle = page.loop((now) => {
    advance(STEPS, MILLISECONDS);
    page.paint();
    if (now - told < 250) return;
    told = now;
    tell();
  }, (playing) => {
    play.textContent = playing ? "Pause" : "Play";
    tell();
  });
  return () => page.over.abort();
}

export default { render };
