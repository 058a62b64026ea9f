// Sets the colours before the page is drawn. The choice is kept in this browser only.
(() => {
  "use strict";
  let kept = null;
  try { kept = localStorage.getItem("aftertune-theme"); } catch { /* storage is switched off */ }
  if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept;
})();
