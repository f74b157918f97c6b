// Paper is white, and nothing on it can be clicked: a page is printed in the light theme, with its
// solutions open. What a figure shows is on the paper; its description is not printed, nor is code
// that is folded.
"use strict";

let theme, closed;
addEventListener("beforeprint", () => {
  theme = document.documentElement.dataset.theme;
  document.documentElement.dataset.theme = "light";
  closed = document.querySelectorAll("main details:not([open], .hide)");
  for (const details of closed) details.open = true;
});
addEventListener("afterprint", () => {
  document.documentElement.dataset.theme = theme;
  for (const details of closed) details.open = false;
});
