// Runs the explorables of a page and draws its figures: each <figure class="explorable"> or
// "plotly-figure" holds, in a script element, the name of its module and its start values
// (lecture6_renderers writes both). What a reader changes is kept in the address, as
// #box.epsilon=0.3&walkers-2.lr=0.02.
"use strict";

const scriptsAt = document.currentScript.src;
function load(address) {
  const script = document.createElement("script");
  script.src = new URL(address, scriptsAt).href;
  return new Promise((resolve, reject) => {
    script.onload = resolve;
    script.onerror = () => reject(new Error(`cannot load ${script.src}`));
    document.head.append(script);
  });
}

// A module is a text in a script beside this one: a page that is opened as a file may import none.
const texts = {};
window.lecture6Module = (name, text) => {
  texts[name] = text;
};
const modules = new Map(); // what each exports, or will
function importModule(name) {
  if (!modules.has(name))
    modules.set(name, load(`explorables/${name}.js`).then(() => {
      const address = URL.createObjectURL(new Blob([texts[name]], { type: "text/javascript" }));
      return import(address).finally(() => URL.revokeObjectURL(address));
    }));
  return modules.get(name);
}

window.PlotlyConfig = { MathJaxConfig: "local" }; // Plotly leaves the page's own MathJax alone
const plotly = document.querySelector("figure.plotly-figure")
  ? load("plotly.min.js").then(() => window.Plotly)
  : null;

// The state of all explorables of the page, by "name.control": only what is not as at the start.
const kept = new URLSearchParams(location.hash.slice(1));
for (const key of [...kept.keys()]) if (!key.includes(".")) kept.delete(key); // a section's name
const [linked] = kept.keys();
function keep(key, text, start) {
  if (text === start) kept.delete(key);
  else kept.set(key, text);
  const state = `${kept}`.replaceAll("%2C", ",");
  const address = state ? `#${state}` : location.pathname + location.search;
  history.replaceState(history.state, "", address);
}

// What a module asks of anywidget's model. There is no kernel to save changes to.
class Model {
  listeners = {};

  constructor(name, values) {
    Object.assign(this, { name, values, start: { ...values }, changed: new Set() });
  }
  get(name) {
    return this.values[name];
  }
  set(name, value) {
    if (this.values[name] === value) return;
    this.values[name] = value;
    this.changed.add(name);
    for (const listener of this.listeners[`change:${name}`] ?? []) listener();
  }
  on(event, listener) {
    (this.listeners[event] ??= []).push(listener);
  }
  off(event, listener) {
    this.listeners[event] = this.listeners[event].filter((other) => other !== listener);
  }
  // Called when a control is let go.
  save_changes() {
    for (const name of this.changed)
      keep(`${this.name}.${name}`, `${this.values[name]}`, `${this.start[name]}`);
    this.changed.clear();
  }
  plotly() {
    return plotly;
  }
  // The text that the address has for a control.
  kept(name) {
    return kept.get(`${this.name}.${name}`) ?? undefined;
  }
}

const counts = {};
for (const figure of document.querySelectorAll("figure:is(.explorable, .plotly-figure)")) {
  const { module, start } = JSON.parse(figure.querySelector("script").textContent);
  const count = (counts[module] = (counts[module] ?? 0) + 1);
  const name = count > 1 ? `${module}-${count}` : module;
  const el = figure.matches(".explorable") ? figure.querySelector("div") : figure;
  importModule(module).then(({ default: { render } }) => {
    render({ model: new Model(name, start), el });
    if (linked?.startsWith(`${name}.`)) figure.scrollIntoView();
  });
}
