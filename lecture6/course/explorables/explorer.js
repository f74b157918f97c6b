// Explorable: a figure that Plotly draws, and the controls that choose which (if it has any).
//
// Traits: `controls`, each a label, the names of its options, and whether they are buttons; `at`,
// the index of the option of each. In Jupyter and Colab the kernel answers a change of `at` with
// `figure`. A page of the book has all figures: `states`, by the options of the last control first,
// each built of `parts` that they share. Where nothing was measured, the figure is null.

import { channels, coloursOf, controls, onTheme, save, stick } from "./shared.js";

const NARROWEST = 576; // px; below it the margins shrink
const PAPER = 600; // px, the width of a figure in print: it fits A4 and Letter
const CONFIG = { displayModeBar: false }; // it would cover the legend

// Plotly: the page's own, or the one that the kernel's plotly has, which comes as text, compressed,
// and is imported as anywidget imports this module. A window asks for it once.
async function askForPlotly(model, signal) {
  if (model.plotly) return model.plotly();
  const text = await new Promise((resolve, reject) => {
    const closed = () => {
      model.off("msg:custom", answer);
      delete globalThis.lecture6Plotly; // another figure asks again
      reject(new Error("the figure was closed"));
    };
    const answer = ({ plotly }) => {
      if (!plotly) return;
      model.off("msg:custom", answer);
      signal.removeEventListener("abort", closed); // what has come is for all figures
      resolve(plotly);
    };
    model.on("msg:custom", answer);
    signal.addEventListener("abort", closed);
    model.send({ ask: "plotly" });
  });
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  // It is written for CommonJS, AMD and windows alike: here the first is there, and no other.
  const source = ["const module = { exports: {} }, { exports } = module, define = undefined;\n",
    await new Response(plain).text(), "\nexport default module.exports;\n"];
  const address = URL.createObjectURL(new Blob(source, { type: "text/javascript" }));
  return import(address).then((plotly) => plotly.default)
    .finally(() => URL.revokeObjectURL(address));
}
async function plotlyFor(model, signal) {
  for (;;) {
    const asked = (globalThis.lecture6Plotly ??= askForPlotly(model, signal));
    try {
      return await asked;
    } catch (error) {
      // The figure that asked was closed meanwhile: one of those that wait asks again.
      if (signal.aborted || globalThis.lecture6Plotly === asked) throw error;
    }
  }
}

// What a figure has of `states` is built of parts: numbers of entries of `parts`.
function built(parts, state) {
  const whole = (i) =>
    Object.fromEntries(Object.entries(parts[i]).map(([key, j]) => [key, parts[j]]));
  return state && { data: state.data.map(whole), layout: whole(state.layout) };
}

// Sets what a dotted name of Plotly's means: "xaxis.gridcolor".
function put(layout, update) {
  for (const [path, value] of Object.entries(update)) {
    const keys = path.split("."), last = keys.pop();
    keys.reduce((node, key) => (node[key] ??= {}), layout)[last] = value;
  }
}

// The label of a point also says what is along the axis, and the unit of a curve, with which the
// title of its axis ends: "Accuracy, %".
function label(data, layout) {
  const { hovermode = layout.template?.layout?.hovermode } = layout;
  if (hovermode !== "x unified") return; // it points at one thing, and says where that is
  const place = `${layout.xaxis?.title?.text ?? "x"}: %{x:,.4~r}`;
  put(layout, { "xaxis.unifiedhovertitle.text": place });
  for (const trace of data.filter(({ type = "scatter" }) => type === "scatter")) {
    const { title } = layout[(trace.yaxis ?? "y").replace("y", "yaxis")] ?? {};
    const unit = title?.text?.match(/,( %| points)$/)?.[1] ?? "";
    trace.hovertemplate ??= `%{y}${unit}%{_xother}`;
  }
}

// What depends on the page's theme.
function themed(layout, { ink, dark }) {
  const lines = `rgba(${channels(ink)}, 0.2)`, clear = "rgba(0, 0, 0, 0)";
  const update = { "font.color": ink, paper_bgcolor: clear, plot_bgcolor: clear,
    "legend.bgcolor": clear, "hoverlabel.bgcolor": dark ? "#222" : "#fff",
    "hoverlabel.font.color": ink };
  const keys = Object.keys(layout), scenes = keys.filter((key) => /^scene\d*$/.test(key));
  const axes = scenes.length
    ? scenes.flatMap((scene) => ["x", "y", "z"].map((name) => `${scene}.${name}axis`))
    : ["xaxis", "yaxis", ...keys.filter((key) => /^[xy]axis\d+$/.test(key))];
  for (const axis of axes)
    for (const line of ["gridcolor", "zerolinecolor", "linecolor"]) update[`${axis}.${line}`] = lines;
  return update;
}

// What depends on the width of the plot: the legend stands above it, over the whole width, in a
// strip of the height `legend`; a narrow plot has margins that leave room for the curves. The title
// is in the caption, so that the top margin need not hold it.
function sized({ height = 450, margin }, width, legend) {
  const narrow = width < NARROWEST, update = { width, height: height + legend };
  const strip = { x: 0, y: 1, xanchor: "left", yanchor: "top", orientation: "h", yref: "container" };
  for (const [key, value] of Object.entries(strip)) update[`legend.${key}`] = value;
  for (const [key, value] of Object.entries({ l: 50, r: 10 }))
    update[`margin.${key}`] = narrow ? value : (margin?.[key] ?? null);
  return { ...update, "margin.t": 30 + legend };
}

// The curves that a figure shows now, as pairs of a name and points {axis: value}. A band is either
// an outline, there along the upper edge and back along the lower one, or a nameless upper edge and
// the curve that is filled up to it.
function curves(plot, title) {
  const traces = plot._fullData.filter(({ visible }) => visible === true);
  return traces.flatMap((trace, i) => {
    const name = plot.data[trace.index].name;
    const points = [...pointsOf(trace)];
    if (trace.fill === "toself" && !name) {
      const upper = points.slice(0, points.length / 2);
      const lower = points.slice(points.length / 2).reverse();
      const edges = [["upper", upper], ["lower", lower]];
      // Of a single seed the band is the curve itself.
      if (JSON.stringify(upper) === JSON.stringify(lower)) return [];
      return edges.map(([edge, points]) => [`${trace.legendgroup}: ${edge} edge`, points]);
    }
    if (trace.fill === "tonexty") return [[`${name}: lower edge`, points]];
    if (traces[i + 1]?.fill === "tonexty") return [[`${traces[i + 1].name}: upper edge`, points]];
    return [[name ?? title, points]];
  });
}
function* pointsOf({ x, y, z, xaxis, yaxis, customdata }) {
  if (!z) {
    for (const [i, value] of x.entries()) yield { [xaxis]: value, [yaxis]: y[i] };
    return;
  }
  // Colours go by the logarithm; the values themselves are in customdata.
  for (const [j, row] of (customdata ?? z).entries())
    for (const [i, value] of row.entries()) yield { [xaxis]: x[i], [yaxis]: y[j], z: value };
}

// A row a point, a column an axis; the head has the titles of the axes.
function table(plot, title) {
  const { layout, data } = plot, shown = curves(plot, title);
  const axes = [...new Set(shown.flatMap(([, points]) => points.flatMap(Object.keys)))].sort();
  const heading = (axis) => {
    const described = axis === "z"
      ? data.find(({ colorbar }) => colorbar)?.colorbar
      : layout[axis.replace(/^./, "$&axis")];
    return described?.title?.text ?? axis;
  };
  const rows = shown.flatMap(([name, points]) =>
    points.map((point) => [name, ...axes.map((axis) => point[axis] ?? "")]));
  return [["curve", ...axes.map(heading)], ...rows];
}

export function drawFigure({ model, el }) {
  const over = new AbortController(), { signal } = over;
  // The book has written this already, with the words of the first figure.
  if (!el.querySelector(".plot"))
    el.innerHTML = `<figure class="plotly-figure"><figcaption><span class="title"></span></figcaption>
      <div class="plot" role="img" aria-busy="true"></div><details><summary>About this figure
      </summary><p class="description"></p><p class="subtitle"></p></details></figure>`;
  const plot = el.querySelector(".plot"), root = plot.parentElement;
  root.classList.add("lecture6-explorable");
  plot.insertAdjacentHTML("afterend", `<form class="controls"></form><div class="tools">
    <button type="button" class="reset" hidden>Reset the axes</button>
    <button type="button" class="data">Data (CSV)</button></div>`);
  const [form, tools, reset, title, subtitle, description] =
    ["form", ".tools", ".reset", ".title", ".subtitle", ".description"].map((part) =>
      root.querySelector(part));
  const options = model.get("controls"), states = model.get("states"), pressed = [];
  let figure = null, legend = 0, drawn = {}, printing = false, near = false, busy = false, again;

  // The number of the state of these options.
  const numberOf = (at) => at.reduce((sum, i, j) => sum * options[j].names.length + i, 0);
  const isMeasured = (at) => !states || states[numberOf(at)] !== null;

  // Shows the figure of the options chosen, or says that there is none.
  function choose() {
    const at = model.get("at"), error = model.get("figure")?.error;
    const next = states ? built(model.get("parts"), states[numberOf(at)]) : model.get("figure");
    figure = next?.data ? next : figure;
    plot.classList.toggle("unmeasured", !next?.data);
    tools.hidden = !next?.data?.length;
    for (const { label, j, i } of pressed) {
      const measured = isMeasured(at.map((old, k) => (k === j ? i : old)));
      label.classList.toggle("unmeasured", !measured);
      label.title = measured ? "" : "not measured";
    }
    if (!next?.data) {
      const chosen = options.map(({ label, names }, j) => `${label} = ${names[at[j]]}`).join(", ");
      title.textContent = description.textContent = error ?? `Not measured: ${chosen}`;
      subtitle.textContent = "";
      return;
    }
    const { title: heading, meta } = figure.layout;
    if (heading?.text) title.textContent = plot.ariaLabel = heading.text;
    subtitle.textContent = heading?.subtitle?.text ?? "";
    description.textContent = meta?.description ?? description.textContent;
    draw();
  }

  // One drawing at a time: what changes meanwhile is drawn afterwards.
  async function draw() {
    again = true;
    if (busy || !near) return;
    busy = true;
    try {
      const Plotly = await plotlyFor(model, signal);
      while (again && !signal.aborted) {
        again = false;
        await paint(Plotly);
      }
    } catch (error) {
      if (!signal.aborted) plot.textContent = `This figure cannot be drawn here: ${error.message}`;
    }
    busy = false;
  }
  async function paint(Plotly) {
    const width = printing ? PAPER : plot.clientWidth, colours = coloursOf(plot);
    if (!width || !figure) return;
    const { data, layout: { title: _, ...layout } } = structuredClone(figure), first = !drawn.width;
    drawn = { width, ink: colours.ink };
    const fitted = structuredClone(layout);
    label(data, fitted);
    put(fitted, { ...themed(layout, colours), ...sized(layout, width, legend), autosize: false });
    // A finger that scrolls the page must not zoom the figure.
    if (matchMedia("(pointer: coarse)").matches) fitted.dragmode = false;
    reset.hidden = true;
    plot.style.minHeight = "";
    await Plotly.react(plot, data, fitted, CONFIG);
    plot.firstElementChild.ariaHidden = "true"; // the picture has a name; its ticks say nothing
    if (first)
      plot.on("plotly_relayout", (update) => {
        if (Object.keys(update).some((key) => /axis\d*\.range/.test(key))) reset.hidden = false;
      });
    const strip = plot.querySelector(".legend")?.getBBox().height ?? 0;
    if (strip !== legend) await Plotly.relayout(plot, sized(layout, width, strip));
    legend = strip;
    if (options.length) stick(plot, plot.clientHeight);
    plot.ariaBusy = "false";
  }

  // The controls: their options by number.
  const place = (label) => options.findIndex((control) => control.label === label);
  const held = {
    get: (label) => model.get("at")[place(label)],
    set: (label, i) => model.set("at", model.get("at").map((old, j) => (j === place(label) ? i : old))),
    on: (_, act) => model.on("change:at", act),
    off: (_, act) => model.off("change:at", act),
    save_changes: () => model.save_changes(),
  };
  const kept = model.kept?.("at")?.split(",").map(Number);
  if (kept?.length === options.length && kept.every((i, j) => options[j].names[i] !== undefined))
    model.set("at", kept);
  // A change of any is a change for all, and the last to know chooses the figure.
  const changed = (label) => states && label === options.at(-1).label && choose();
  const { slider, choice } = controls(held, form, { signal, changed });
  for (const [j, { label, names, buttons }] of options.entries())
    if (buttons)
      pressed.push(...[...choice(label, label, names.map((_, i) => i), names)
        .querySelectorAll("label")].map((button, i) => ({ label: button, j, i })));
    else slider(label, label, names.map((_, i) => i), { show: (i) => names[i] });
  if (options.length) root.querySelector("figcaption").ariaLive = "polite";
  model.on("change:figure", choose);

  reset.addEventListener("click", draw);
  root.querySelector(".data").addEventListener("click", () => {
    const page = location.pathname.split("/").at(-1).replace(/\.html$/, "");
    const words = `${page} ${title.textContent}`.match(/[\p{L}\p{N}]+/gu);
    save(words.join("-").slice(0, 100), table(plot, title.textContent));
  });

  // It is drawn when it comes near, and for print at the latest, on paper's own width. There, as the
  // events are captured here, the page changes its theme afterwards.
  const come = () => {
    near = true;
    draw();
  };
  const nearing = new IntersectionObserver((entries) => {
    if (entries.at(-1).isIntersecting) come();
  }, { rootMargin: "600px" });
  nearing.observe(plot);
  for (const event of ["beforeprint", "afterprint"])
    addEventListener(event, () => {
      printing = event === "beforeprint";
      come();
    }, { capture: true, signal });
  const resized = new ResizeObserver(() => {
    if (drawn.width && plot.clientWidth && plot.clientWidth !== drawn.width) draw();
  });
  resized.observe(plot);
  onTheme(() => {
    if (drawn.ink && coloursOf(plot).ink !== drawn.ink) draw();
  }, signal);
  choose();

  return () => {
    over.abort();
    nearing.disconnect();
    resized.disconnect();
    model.off("change:figure", choose);
    if (drawn.width) globalThis.lecture6Plotly.then((Plotly) => Plotly.purge(plot));
  };
}

export default { render: drawFigure };
