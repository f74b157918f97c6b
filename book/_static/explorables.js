// Runs the explorables of a page: each <figure class="explorable"> holds, in a script element, the
// text of its module and its start values (lecture6.course.explorables.BookExplorable writes both).
"use strict";

// What a module asks of anywidget's model. There is no kernel to save changes to.
class Model {
  listeners = {};

  constructor(values) {
    this.values = values;
  }
  get(name) {
    return this.values[name];
  }
  set(name, value) {
    if (this.values[name] === value) return;
    this.values[name] = value;
    for (const listener of this.listeners[`change:${name}`] ?? []) listener();
  }
  on(event, listener) {
    (this.listeners[event] ??= []).push(listener);
  }
  off(event, listener) {
    this.listeners[event] = this.listeners[event].filter((other) => other !== listener);
  }
  save_changes() {}
}

for (const figure of document.querySelectorAll("figure.explorable")) {
  const { module, start } = JSON.parse(figure.querySelector("script").textContent);
  const address = URL.createObjectURL(new Blob([module], { type: "text/javascript" }));
  import(address).then(({ default: { render } }) => {
    URL.revokeObjectURL(address);
    render({ model: new Model(start), el: figure.querySelector("div") });
  });
}
