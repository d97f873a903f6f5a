// A formula, table or output wider than the page scrolls inside its box; the keyboard must be able to reach it.
const BOXES = "div.math, div.math mjx-container, .cell_output, .cell_output > *, table, pre";
function reachWideBoxes() {
  for (const box of document.querySelectorAll(BOXES)) {
    if (box.scrollWidth > box.clientWidth) {
      box.tabIndex = 0;
    } else {
      box.removeAttribute("tabindex");
    }
  }
}
window.addEventListener("load", () => {
  const typeset = window.MathJax?.startup?.promise ?? Promise.resolve();
  typeset.then(reachWideBoxes);
});
window.addEventListener("resize", reachWideBoxes);
