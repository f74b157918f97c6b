// Loaded before the widget manager, which speaks MathJax 2: it asks `MathJax.Hub` to typeset labels.
"use strict";

if (window.MathJax) {
  MathJax.Hub = { Queue: ([, , element]) => MathJax.typesetPromise([element]) };
}
