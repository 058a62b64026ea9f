// Parts of a page that the server sends again when the ledger changes: elements with data-live.
"use strict";

(() => {
  const { $, all } = aftertune;
  const WAIT = 5000;
  let source = null;
  let timer = null;

  const element = (part) => all("[data-live]").find((e) => e.dataset.live === part);

  // Where the reader is in a part: the focused control, and the details that are open.
  function placeOf(part) {
    const focused = part.contains(document.activeElement) ? document.activeElement : null;
    return {
      focused: focused && (focused.id ? `#${CSS.escape(focused.id)}` : focused.getAttribute("href")
        ? `a[href="${CSS.escape(focused.getAttribute("href"))}"]` : null),
      open: all("details[open][id]", part).map((d) => d.id),
    };
  }

  function swap(name, html) {
    const before = element(name);
    const holder = document.createElement("template");
    holder.innerHTML = html;
    const after = holder.content.firstElementChild;
    if (!before || !after || before.isEqualNode(after)) return;
    const place = placeOf(before);
    before.replaceWith(after);
    for (const id of place.open) document.getElementById(id)?.setAttribute("open", "");
    if (place.focused) $(place.focused, after)?.focus({ preventScroll: true });
    document.dispatchEvent(new CustomEvent("aftertune:live", { detail: { part: name, element: after } }));
  }

  function trouble(text) {
    let line = $("#trouble");
    if (!line) {
      line = document.createElement("p");
      line.id = "trouble";
      line.className = "watermark";
      line.setAttribute("role", "status");
      $("main").prepend(line);
    }
    line.textContent = text;
    line.hidden = !text;
  }

  function stop() {
    clearTimeout(timer);
    source?.close();
    source = null;
  }

  function start() {
    stop();
    const parts = [...new Set(all("[data-live]").map((e) => e.dataset.live))];
    if (!parts.length || document.hidden || document.body.hasAttribute("data-static")) return;
    source = new EventSource(`/live?${parts.map((p) => `part=${encodeURIComponent(p)}`).join("&")}`);
    source.addEventListener("part", (event) => {
      const { part, html } = JSON.parse(event.data);
      swap(part, html);
    });
    source.addEventListener("trouble", (event) => trouble(JSON.parse(event.data).text));
    source.addEventListener("open", () => document.documentElement.setAttribute("data-listens", ""));
    source.addEventListener("error", () => {
      document.documentElement.removeAttribute("data-listens");
      if (source?.readyState === EventSource.CLOSED) timer = setTimeout(start, WAIT); // refused: it would not try again
    });
  }

  // A hidden page listens to nothing: browsers allow six connections to a server, over all its pages.
  document.addEventListener("visibilitychange", () => (document.hidden ? stop() : start()));
  addEventListener("pagehide", stop);
  addEventListener("pageshow", (event) => { if (event.persisted) start(); });
  addEventListener("load", () => { timer = setTimeout(start, 1000); }); // first the page itself
})();
