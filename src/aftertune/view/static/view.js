// What every page does in the browser: colours, keys, copying, and choosing two runs.
"use strict";

const aftertune = (() => {
  const $ = (selector, from = document) => from.querySelector(selector);
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];

  // --- Colours ---
  const isDark = () => (document.documentElement.dataset.theme
    || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

  function switchTheme() {
    const theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    try { localStorage.setItem("aftertune-theme", theme); } catch { /* storage is switched off */ }
    document.dispatchEvent(new CustomEvent("aftertune:theme"));
  }

  // The value of a colour of page.css, for charts on a canvas.
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  // --- Rows that j and k walk through ---
  const rows = () => all("[data-row]").filter((row) => row.offsetParent !== null || row.getClientRects().length);
  const current = () => $("[data-row].current");

  function choose(row) {
    current()?.classList.remove("current");
    row.classList.add("current");
    const link = $("[data-open]", row);
    (link || row).focus({ preventScroll: true });
    row.scrollIntoView({ block: "nearest" });
  }

  function move(step) {
    const list = rows();
    if (!list.length) return false;
    const at = list.indexOf(current());
    choose(list[Math.min(list.length - 1, Math.max(0, at < 0 ? (step > 0 ? 0 : list.length - 1) : at + step))]);
    return true;
  }

  const follow = (selector) => { const link = $(selector); if (link) link.click(); return Boolean(link); };

  // --- Keys ---
  let afterG = false;

  function pageOf(letter) {
    const link = all(".bar nav a").find((a) => a.textContent.trim().toLowerCase().startsWith(letter));
    if (link) link.click();
    return Boolean(link);
  }

  const KEYS = {
    j: () => move(1), ArrowDown: () => move(1), k: () => move(-1), ArrowUp: () => move(-1),
    n: () => follow("[data-next]"), ArrowRight: () => follow("[data-next]"),
    p: () => follow("[data-previous]"), ArrowLeft: () => follow("[data-previous]"),
    x: () => { const box = current() && $("input[type=checkbox]", current()); box?.click(); return Boolean(box); },
    "/": () => { const field = $("[data-search]"); field?.focus(); field?.select?.(); return Boolean(field); },
    "?": () => { $("#keys").showModal(); return true; },
    g: () => { afterG = true; setTimeout(() => { afterG = false; }, 1500); return true; },
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || $("dialog[open]")) return;
    const typing = event.target.closest("input:not([type=checkbox]):not([type=radio]), textarea, select, [contenteditable]");
    if (typing) {
      if (event.key === "Escape") typing.blur();
      return;
    }
    if (event.key.startsWith("Arrow") && event.target.closest("[data-own-arrows]")) return;
    const done = afterG && event.key.length === 1 ? pageOf(event.key.toLowerCase()) : KEYS[event.key]?.();
    if (afterG && event.key !== "g") afterG = false;
    if (done) event.preventDefault();
    if (event.key === "Enter" && current() && !event.target.closest("a, button, summary")) {
      $("[data-open]", current())?.click();
    }
  });

  document.addEventListener("focusin", (event) => {
    const row = event.target.closest("[data-row]");
    if (row && row !== current()) { current()?.classList.remove("current"); row.classList.add("current"); }
  });

  // --- Copying ---
  async function copy(button) {
    const text = button.dataset.copy;
    try {
      await navigator.clipboard.writeText(text);
    } catch { // an address without a secure context: select the text instead
      const code = $("code", button.parentElement);
      if (code) getSelection().selectAllChildren(code);
    }
    const before = button.textContent;
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = before; }, 1200);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy]");
    if (button) copy(button);
  });

  // --- Choosing two runs ---
  async function chosen() {
    const form = $("#picks");
    if (!form) return;
    const picks = all("input[name=pick]:checked", form);
    const reason = $("#reason");
    $("[data-compare]", form).disabled = picks.length !== 2;
    all("input[name=pick]", form).forEach((box) => { box.disabled = picks.length >= 2 && !box.checked; });
    reason.textContent = picks.length === 1 ? "Choose one more." : "";
    if (picks.length === 2 && window.htmx) {
      const query = picks.map((box) => `pick=${encodeURIComponent(box.value)}`).join("&");
      htmx.ajax("GET", `/compare-reason?${query}`, { target: "#reason", swap: "innerHTML" });
    }
  }

  document.addEventListener("change", (event) => { if (event.target.name === "pick") chosen(); });

  document.addEventListener("DOMContentLoaded", () => {
    $("#theme")?.addEventListener("click", switchTheme);
    $("#help")?.addEventListener("click", () => $("#keys").showModal());
    chosen();
  });
  document.addEventListener("htmx:afterSwap", (event) => { if (event.detail.target.id !== "reason") chosen(); });

  return { $, all, colour, isDark };
})();
