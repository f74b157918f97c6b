// Runs the explorables of a page: each <figure class="explorable"> holds, in a script element, the
// name of its module and its start values (lecture6_renderers.BookExplorable writes both). What a
// reader changes is kept in the address, as #box.epsilon=0.3&walkers-2.lr=0.02.
"use strict";

// A module is a text in a script beside this one: a page that is opened as a file may import none.
// What it exports, by its name.
const modules = new Map();
const scriptsAt = document.currentScript.src;
window.lecture6Module = (name, text) => {
  const address = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
  modules.get(name).resolve(import(address).finally(() => URL.revokeObjectURL(address)));
};
window.lecture6Import = (name) => {
  if (modules.has(name)) return modules.get(name).promise;
  const script = document.createElement("script"), loading = { name };
  loading.promise = new Promise((resolve, reject) => Object.assign(loading, { resolve, reject }));
  modules.set(name, loading);
  script.src = new URL(`explorables/${name}.js`, scriptsAt).href;
  script.onerror = () => loading.reject(new Error(`cannot load ${script.src}`));
  document.head.append(script);
  return loading.promise;
};

// The state of all explorables of the page, by "name.control": only what is not as at the start.
const kept = new URLSearchParams(location.hash.slice(1));
for (const key of [...kept.keys()]) if (!key.includes(".")) kept.delete(key); // a section's name
const [linked] = kept.keys();
function keep(key, text, isStart) {
  if (isStart) kept.delete(key);
  else kept.set(key, text);
  const address = kept.size ? `#${kept}` : location.pathname + location.search;
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
      keep(`${this.name}.${name}`, `${this.values[name]}`, this.values[name] === this.start[name]);
    this.changed.clear();
  }
  // The text that the address has for a control.
  kept(name) {
    return kept.get(`${this.name}.${name}`) ?? undefined;
  }
}

const counts = {};
for (const figure of document.querySelectorAll("figure.explorable")) {
  const { module, start } = JSON.parse(figure.querySelector("script").textContent);
  const count = (counts[module] = (counts[module] ?? 0) + 1);
  const name = count > 1 ? `${module}-${count}` : module;
  window.lecture6Import(module).then(({ default: { render } }) => {
    render({ model: new Model(name, start), el: figure.querySelector("div") });
    if (linked?.startsWith(`${name}.`)) figure.scrollIntoView();
  });
}
