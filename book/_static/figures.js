// Draws the figures of a page: each <figure class="plotly-figure"> holds a plot area and, in a
// script element, the figure as JSON (lecture6.course.figures.BookFigure writes both).
"use strict";

const here = document.currentScript.src;
const narrowest = 576; // px; below it the margins shrink
const paper = 600; // px, the width of a figure in print: it fits A4 and Letter
const immediately = { mode: "immediate", frame: { duration: 0, redraw: true } };
let printing = false;

const loaded = new Promise((resolve, reject) => {
  // "local": Plotly leaves the page's own MathJax alone.
  window.PlotlyConfig = { MathJaxConfig: "local" };
  const script = document.createElement("script");
  script.src = new URL("plotly.min.js", here).href;
  script.onload = resolve;
  script.onerror = () => reject(new Error(`cannot load ${script.src}`));
  document.head.append(script);
});

const figures = [...document.querySelectorAll("figure.plotly-figure")].map((element) => ({
  element,
  plot: element.querySelector(".plot"),
  caption: element.querySelector("figcaption .title"),
  ...JSON.parse(element.querySelector("script").textContent),
}));

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// What depends on the page's theme, as Plotly's dotted names.
function themed(layout) {
  const text = color("--pst-color-text-base");
  const lines = color("--pst-color-border");
  const surface = color("--pst-color-surface");
  const update = {
    "font.color": text,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    "legend.bgcolor": "rgba(0,0,0,0)",
    "hoverlabel.bgcolor": surface,
    "hoverlabel.font.color": text,
  };
  const keys = Object.keys(layout);
  const scenes = keys.filter((key) => /^scene\d*$/.test(key));
  const axes = scenes.length
    ? scenes.flatMap((scene) => ["x", "y", "z"].map((name) => `${scene}.${name}axis`))
    : [...new Set(["xaxis", "yaxis", ...keys.filter((key) => /^[xy]axis\d*$/.test(key))])];
  for (const axis of axes) {
    update[`${axis}.gridcolor`] = lines;
    update[`${axis}.zerolinecolor`] = lines;
    update[`${axis}.linecolor`] = lines;
  }
  const edges = color("--pst-color-text-muted"); // what is moved must stand out
  for (const control of ["sliders", "updatemenus"]) {
    (layout[control] ?? []).forEach((_, i) => {
      update[`${control}[${i}].bgcolor`] = surface;
      update[`${control}[${i}].bordercolor`] = edges;
      update[`${control}[${i}].tickcolor`] = edges;
    });
  }
  return update;
}

// What depends on the width of the plot: the legend stands above it, over the whole width, in a
// strip of the height `legend`; a narrow plot has margins that leave room for the curves. The title
// is in the caption, so that the top margin need not hold it.
function sized({ layout }, width, legend) {
  const narrow = width < narrowest;
  const strip = { x: 0, y: 1, xanchor: "left", yanchor: "top", orientation: "h", yref: "container" };
  const margins = { l: 50, r: 10 };
  const update = { width, height: (layout.height ?? 450) + legend, "margin.t": 30 + legend };
  for (const [key, value] of Object.entries(strip)) update[`legend.${key}`] = value;
  for (const [key, value] of Object.entries(margins)) {
    update[`margin.${key}`] = narrow ? value : (layout.margin?.[key] ?? null);
  }
  return update;
}

// The curves that a figure shows now, as pairs of a name and points {axis: value}. A band is either
// an outline, there along the upper edge and back along the lower one, or a nameless upper edge and
// the curve that is filled up to it.
function curves({ plot, caption }) {
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
    return [[name ?? caption.textContent, points]];
  });
}

function* pointsOf({ x, y, z, xaxis, yaxis, customdata }) {
  if (!z) {
    for (const [i, value] of x.entries()) yield { [xaxis]: value, [yaxis]: y[i] };
    return;
  }
  // Colours go by the logarithm; the values themselves are in customdata.
  for (const [j, row] of (customdata ?? z).entries()) {
    for (const [i, value] of row.entries()) yield { [xaxis]: x[i], [yaxis]: y[j], z: value };
  }
}

// A row a point, a column an axis; the head has the titles of the axes.
function csv(figure) {
  const { layout, data } = figure.plot;
  const shown = curves(figure);
  const axes = [...new Set(shown.flatMap(([, points]) => points.flatMap(Object.keys)))].sort();
  const heading = (axis) => {
    const { title } =
      axis === "z"
        ? (data.find(({ colorbar }) => colorbar)?.colorbar ?? {})
        : layout[axis.replace(/^./, "$&axis")];
    return title?.text ?? axis;
  };
  const rows = shown.flatMap(([name, points]) =>
    points.map((point) => [name, ...axes.map((axis) => point[axis] ?? "")]),
  );
  const quoted = (cell) => (/[",\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);
  return [["curve", ...axes.map(heading)], ...rows]
    .map((row) => row.map((cell) => quoted(`${cell}`)).join(",") + "\n")
    .join("");
}

// A button that saves what the figure shows; the file is made here, so that no server is needed.
function offerData(figure) {
  const { element, caption } = figure;
  const button = document.createElement("button");
  button.textContent = "Data (CSV)";
  button.addEventListener("click", () => {
    const page = location.pathname.split("/").at(-1).replace(/\.html$/, "");
    const words = `${page} ${caption.textContent}`.match(/[\p{L}\p{N}]+/gu);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv(figure)], { type: "text/csv;charset=utf-8" }));
    link.download = `${words.join("-").slice(0, 100)}.csv`;
    link.click();
    URL.revokeObjectURL(link.href);
  });
  element.insertBefore(button, element.querySelector("details"));
}

async function draw(figure) {
  if (figure.drawn) return;
  figure.drawn = true;
  const { plot, caption, data, frames } = figure;
  const layout = { ...structuredClone(figure.layout), autosize: false };
  // The title of a frame goes where that of the figure is: into the caption.
  const titles = new Map();
  for (const { name, layout } of frames) {
    titles.set(name, layout?.title?.text);
    delete layout?.title;
  }
  // A finger that scrolls the page must not zoom the figure.
  if (matchMedia("(pointer: coarse)").matches) layout.dragmode = false;
  const config = { displayModeBar: false }; // it would cover the legend
  await Plotly.newPlot(plot, { data, layout, frames, config });
  plot.on("plotly_sliderchange", ({ step }) => {
    // A frame is named by the values of all sliders.
    const values = plot.layout.sliders.map(({ steps, active }) => steps[active].label);
    const name = values.join(", ");
    caption.textContent = titles.get(name) ?? caption.textContent;
    // Of several sliders Plotly leaves the frame to us. It rejects when a newer one comes first.
    if (step.method === "skip") Plotly.animate(plot, [name], immediately).catch(() => {});
  });
  if (data.length) offerData(figure);
  await adapt(figure);
  plot.ariaBusy = "false";
  new ResizeObserver(() => {
    if (plot.clientWidth && plot.clientWidth !== figure.width) adapt(figure);
  }).observe(plot);
}

async function adapt(figure) {
  const { plot, layout } = figure;
  figure.width = printing ? paper : plot.clientWidth;
  await Plotly.relayout(plot, { ...themed(layout), ...sized(figure, figure.width, 0) });
  const legend = plot.querySelector(".legend")?.getBBox().height ?? 0;
  if (legend) await Plotly.relayout(plot, sized(figure, figure.width, legend));
}

loaded.then(() => {
  const nearing = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        nearing.unobserve(entry.target);
        draw(figures.find((figure) => figure.plot === entry.target));
      }
    },
    { rootMargin: "600px" },
  );
  for (const { plot } of figures) nearing.observe(plot);

  const page = document.documentElement;
  const adaptDrawn = () => figures.filter((figure) => figure.drawn).forEach(adapt);
  new MutationObserver(adaptDrawn).observe(page, { attributeFilter: ["data-theme"] });

  // Paper has its own width, and the figures that were not yet in view. Then, as the events are
  // captured here, paper.js changes the theme, and the figures adapt to both at once.
  const captured = { capture: true };
  addEventListener("beforeprint", () => {
    printing = true;
    figures.forEach(draw);
  }, captured);
  addEventListener("afterprint", () => {
    printing = false;
  }, captured);
});
