// A switch below the title opens all code of the page, or folds what was folded. Every page
// remembers it.
"use strict";

const folds = document.querySelectorAll("main details.hide");
const key = "lecture6.code";
// A page that is opened as a file may have no storage; then the switch is forgotten.
function remembered() {
  try {
    return localStorage.getItem(key) === "shown";
  } catch {
    return false;
  }
}
function remember(shown) {
  try {
    localStorage.setItem(key, shown ? "shown" : "folded");
  } catch {}
}

const button = document.createElement("button");
button.type = "button";
button.className = "code-switch";
let shown = remembered();
function show() {
  button.textContent = shown ? "Hide code" : "Show all code";
  for (const fold of folds) fold.open = shown;
}
button.addEventListener("click", () => {
  shown = !shown;
  remember(shown);
  show();
});
document.querySelector("article h1").after(button); // the other h1 is for print
if (shown) show();
else button.textContent = "Show all code";
