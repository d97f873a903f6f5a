// What is wider than the page scrolls inside its box, and the keyboard must be able to reach it. The theme sees to code
// and to the parts of an output; a formula, a table and an output as a whole are left to this.
const BOXES = "div.math, div.math mjx-container, .cell_output, table";
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
