// What a term means, on hover and on focus; and what the keys go to: figures, wide equations.
"use strict";
{
  const GAP = 4; // px between a word and what it means
  const LINGER = 200; // ms in which the pointer gets from one to the other
  let shown, closing;

  const hide = () => {
    clearTimeout(closing);
    if (shown) shown.hidden = true;
    shown = undefined;
  };

  const hideSoon = () => {
    clearTimeout(closing);
    closing = setTimeout(hide, LINGER);
  };

  const show = (link, tip) => {
    hide();
    shown = tip;
    tip.hidden = false;
    const [word] = link.getClientRects();
    const origin = tip.offsetParent.getBoundingClientRect();
    const left = Math.min(word.left, document.documentElement.clientWidth - tip.offsetWidth - GAP);
    const fits = word.bottom + GAP + tip.offsetHeight < innerHeight;
    const top = fits ? word.bottom + GAP : word.top - GAP - tip.offsetHeight;
    tip.style.left = `${Math.max(GAP, left) - origin.left}px`;
    tip.style.top = `${top - origin.top}px`;
  };

  for (const link of document.querySelectorAll("a.term")) {
    const tip = document.getElementById(`tip-${decodeURIComponent(link.hash.slice(1))}`);
    // A symbol has no words of its own: what it means is its name.
    const role = link.querySelector(".math") ? "labelledby" : "describedby";
    link.setAttribute(`aria-${role}`, tip.id);
    // A tap follows the link: nothing is shown that the next page would replace.
    link.addEventListener("pointerenter", ({ pointerType }) => {
      if (pointerType !== "touch") show(link, tip);
    });
    link.addEventListener("focus", () => {
      if (link.matches(":focus-visible")) show(link, tip);
    });
    link.addEventListener("pointerleave", hideSoon);
    link.addEventListener("blur", hide);
    tip.addEventListener("pointerenter", () => clearTimeout(closing));
    tip.addEventListener("pointerleave", hideSoon);
  }

  const figures = () =>
    [...document.querySelectorAll("main article figure")].filter((node) => node.checkVisibility());

  // The next figure from the one that has the focus, or else from what is at the top of the screen.
  const beside = (step) => {
    const all = figures();
    const at = all.findIndex((figure) => figure.contains(document.activeElement));
    if (at >= 0) return all[at + step];
    const top = (figure) => figure.getBoundingClientRect().top;
    return step > 0 ? all.find((figure) => top(figure) > 0) : all.findLast((figure) => top(figure) < 0);
  };

  addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    const step = { PageDown: 1, PageUp: -1 }[event.key];
    if (!event.altKey || !step) return;
    event.preventDefault();
    const figure = beside(step);
    if (!figure) return;
    figure.tabIndex = -1;
    figure.focus({ preventScroll: true });
    figure.scrollIntoView({ block: "start" });
  });

  // An equation, or code that was folded, is a stop of the Tab key if it is wider than the page, since
  // only so can it be scrolled by keyboard. No other is one.
  const wide = new ResizeObserver((seen) => {
    for (const { target } of seen) {
      if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
      else target.removeAttribute("tabindex");
    }
  });
  const watch = (selector) => document.querySelectorAll(selector).forEach((node) => wide.observe(node));
  watch("details.hide pre");
  addEventListener("load", async () => {
    await window.MathJax?.startup?.promise;
    watch("mjx-container[display=true]");
  });

  const minutes = document.querySelector("main .minutes");
  if (minutes && figures().length) {
    const keys = document.createElement("span");
    keys.className = "keys";
    keys.innerHTML = " <kbd>Alt</kbd> + <kbd>Page Down</kbd> goes to the next figure.";
    minutes.append(keys);
  }
}
