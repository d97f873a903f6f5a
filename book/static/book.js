// A formula wider than the page scrolls inside its box; the keyboard must be able to reach it.
function reachWideFormulas() {
  for (const box of document.querySelectorAll("div.math, div.math mjx-container")) {
    if (box.scrollWidth > box.clientWidth) {
      box.tabIndex = 0;
    } else {
      box.removeAttribute("tabindex");
    }
  }
}
window.addEventListener("load", () => {
  const typeset = window.MathJax?.startup?.promise ?? Promise.resolve();
  typeset.then(reachWideFormulas);
});
window.addEventListener("resize", reachWideFormulas);
