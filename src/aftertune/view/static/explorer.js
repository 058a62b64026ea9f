// The explorer of items without a server: the list, the filters, the scatter and one item, from data in the page.
"use strict";

(() => {
  const { $ } = aftertune;
  const PER_PAGE = 50;
  const BOUNDS = ["bmin", "bmax", "tmin", "tmax"];
  const TITLES = {
    index: "order of the task", margin: "margin of the tuned model", base: "margin of the base",
    change: "change of the margin",
  };
  const tasks = new Map(); // name -> data
  let data = null; // of the task that is shown

  // --- Elements: every text is set as text, never as markup, and hidden characters are shown as code points ---
  const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]/gu;
  const visible = (text) => text.replace(HIDDEN, (c) => (c === "\n" || c === "\t" ? c
    : `⟨U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`));

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "onclick") made.addEventListener("click", value);
      else if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== null && child !== undefined)
      .map((child) => (typeof child === "string" ? visible(child) : child)));
    return made;
  }

  function shape(name, attributes) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }

  const slug = (kind) => kind.replace(" ", "-");
  const placeOf = (item) => `${item.task}:${item.index}`;
  const number = (value) => value.toFixed(3).replace("-", "−");
  const marginText = (item) => (item.margins ? `margin ${number(item.margins[0])} → ${number(item.margins[1])} ` : "");

  function opening(item) {
    const text = item.question.split(/\s+/).join(" ").trim() || "(no text)";
    return text.length <= 160 ? text : `${text.slice(0, 159)}…`;
  }

  // --- The selection, which the address keeps ---
  let written = ""; // the address of a page that has none of its own, such as one in a notebook

  function state() {
    const address = location.protocol === "about:" ? written : location.hash.slice(1);
    return new URLSearchParams(address || written);
  }

  function addressed(changes) {
    const values = state();
    for (const [key, value] of Object.entries(changes)) {
      if (value === null || value === "") values.delete(key);
      else values.set(key, value);
    }
    return `#${values}`;
  }

  function go(changes, replace = false) {
    written = addressed(changes).slice(1);
    if (location.protocol === "about:") { show(); return; }
    if (replace) { history.replaceState(null, "", `#${written}`); show(); } else location.hash = written;
  }

  function link(changes, attributes, ...children) {
    return element("a", {
      href: addressed(changes), ...attributes, onclick: (event) => { event.preventDefault(); go(changes); },
    }, ...children);
  }

  const bound = (values, name) => {
    const text = values.get(name);
    return text === null || text.trim() === "" || Number.isNaN(Number(text)) ? null : Number(text);
  };

  function chosen(values) {
    const kind = values.get("show") || "lost";
    const words = (values.get("q") || "").toLowerCase().split(/\s+/).filter(Boolean);
    const [b0, b1, t0, t1] = BOUNDS.map((name) => bound(values, name));
    const brushed = [b0, b1, t0, t1].some((v) => v !== null);
    const within = (value, low, high) => (low === null || value >= low) && (high === null || value <= high);
    const found = data.items.filter((item) => (kind === "all" || slug(item.kind) === kind)
      && (!values.get("subject") || item.task === values.get("subject") || item.cluster === values.get("subject"))
      && (!values.get("form") || item.forms.includes(values.get("form")))
      && (!brushed || (item.margins && within(item.margins[0], b0, b1) && within(item.margins[1], t0, t1)))
      && words.every((word) => item.words.some((text) => text.includes(word))));
    const sort = values.get("sort") || "index";
    const sign = values.get("order") === "desc" ? -1 : 1;
    if (sort === "index") return sign < 0 ? found.reverse() : found;
    const key = {
      margin: (m) => m[1], base: (m) => m[0], change: (m) => m[1] - m[0],
    }[sort] || ((m) => m[1]);
    const known = found.filter((item) => item.margins).sort((a, b) => sign * (key(a.margins) - key(b.margins)));
    return [...known, ...found.filter((item) => !item.margins)];
  }

  // --- The list ---
  function option(value, words, current) {
    return element("option", { value, selected: value === current }, words);
  }

  function filters(values) {
    const withMargins = data.items.some((item) => item.margins);
    const subjects = [...new Map(data.items.map((item) => [item.task, item.task_title]))];
    const forms = [...new Set(data.items.flatMap((item) => item.forms))];
    const form = element("form", { class: "filters", role: "search", id: "filters" },
      element("input", {
        type: "search", name: "q", value: values.get("q") || "", placeholder: "Search questions and answers",
        "aria-label": "Search", "data-search": true, maxlength: 500,
      }),
      element("span", { class: "choices" },
        tasks.size > 1 ? element("label", {}, "Task ", element("select", { name: "task" },
          ...[...tasks].map(([name, task]) => option(name, task.label, data.task)))) : null,
        subjects.length > 1 ? element("label", {}, "Subject ", element("select", { name: "subject" },
          option("", "all", values.get("subject") || ""),
          ...subjects.map(([name, words]) => option(name, words, values.get("subject"))))) : null,
        forms.length ? element("label", {}, "Form of the tuned answer ", element("select", { name: "form" },
          option("", "all", values.get("form") || ""),
          ...forms.map((name) => option(name, name, values.get("form"))))) : null,
        withMargins ? element("label", {}, "Sort by ", element("select", { name: "sort" },
          ...Object.entries(TITLES).map(([name, words]) => option(name, words, values.get("sort") || "index")))) : null,
        element("label", {}, element("input", {
          type: "checkbox", name: "order", value: "desc", checked: values.get("order") === "desc",
        }), " largest first")));
    if (withMargins) {
      const side = (letter, name) => element("label", {}, `${name} `, ...["min", "max"].flatMap((end, i) => [
        i ? " to " : "", element("input", {
          name: letter + end, inputmode: "decimal", size: 5, value: values.get(letter + end) || "",
          "aria-label": `${name}: ${end === "min" ? "least" : "largest"} margin`,
        })]));
      form.append(element("fieldset", { class: "bounds" }, element("legend", {}, "Margins"),
        side("b", data.names[0]), side("t", data.names[1]), element("button", {
          type: "button", onclick: () => go(Object.fromEntries(BOUNDS.map((name) => [name, null]))),
        }, "Clear")));
    }
    form.append(element("button", {}, "Show"));
    const apply = (replace) => {
      const fields = new FormData(form);
      const changes = { page: null };
      for (const name of ["q", "subject", "form", "sort", "order", ...BOUNDS]) changes[name] = fields.get(name);
      if (fields.has("task") && fields.get("task") !== data.task) {
        go({ task: fields.get("task"), subject: null, q: null, page: null, ...Object.fromEntries(BOUNDS.map((n) => [n, null])) });
      } else go(changes, replace);
    };
    form.addEventListener("submit", (event) => { event.preventDefault(); apply(false); });
    form.addEventListener("change", (event) => { if (event.target.type !== "search") apply(false); });
    return form;
  }

  function kinds(values) {
    const kind = values.get("show") || "lost";
    const total = Object.values(data.counts).reduce((a, b) => a + b, 0);
    return element("nav", { class: "tasks-bar", "aria-label": "Kinds of items" },
      ...data.kinds.map((name) => link({ show: slug(name), page: null }, {
        class: `kind-${slug(name)}`, "aria-current": kind === slug(name) ? "true" : null,
      }, `${name} ${data.counts[name].toLocaleString("en")}`)),
      link({ show: "all", page: null }, { "aria-current": kind === "all" ? "true" : null }, `all ${total.toLocaleString("en")}`));
  }

  function scatter(holder) {
    const known = data.items.filter((item) => item.margins);
    if (!known.length || !aftertune.drawScatter) return;
    const figure = element("figure", { class: "scatter", "data-own-arrows": true },
      element("div", {
        id: "scatter", role: "img",
        "aria-label": `Margin of each item in ${data.names[0]} and in ${data.names[1]}. The fields above bound it without a mouse.`,
      }), element("p", { id: "point", class: "quiet", role: "status" }, "\u00a0"),
      element("figcaption", {}, `Each mark is one item: its margin in ${data.names[0]} (across) and in ${data.names[1]} (up), `
        + "which is the score of the right choice minus that of the best wrong one. Above 0 the model is right. "
        + "Drag to choose items, click one to open it."));
    holder.append(figure);
    aftertune.drawScatter($("#scatter"), {
      base: known.map((i) => i.margins[0]), tuned: known.map((i) => i.margins[1]),
      kind: known.map((i) => data.kinds.indexOf(i.kind)), kinds: data.kinds, place: known.map(placeOf),
      text: known.map((i) => opening(i).slice(0, 80)), names: data.names,
    }, (place) => go({ item: place }));
  }

  function save(items, rows) {
    const lines = rows ? items.filter((i) => i.gold).map((i) => ({ prompt: i.question, completion: i.completion }))
      : items.map(({ words, ...item }) => item);
    const blob = new Blob(lines.map((line) => `${JSON.stringify(line)}\n`), { type: "application/jsonl" });
    const address = URL.createObjectURL(blob);
    element("a", { href: address, download: `${data.task.replace(/[^\w-]+/g, "-").slice(0, 80)}-${rows ? "rows" : "items"}.jsonl` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  }

  function list(holder, values) {
    const items = chosen(values);
    const pages = Math.max(1, Math.ceil(items.length / PER_PAGE));
    const page = Math.min(pages, Math.max(1, Number(values.get("page")) || 1));
    const subjects = new Set(data.items.map((item) => item.task)).size > 1;
    const left = data.left_out ? ` ${data.left_out.toLocaleString("en")} further ones that did not change are not in this file.` : "";
    holder.append(kinds(values), filters(values));
    scatter(holder);
    holder.append(element("p", { class: "pickbar" },
      element("span", {}, `${items.length.toLocaleString("en")} of ${data.items.length.toLocaleString("en")} items, right or wrong by ${data.metric}.${left}`),
      items.length ? element("button", { type: "button", onclick: () => save(items, false) }, "JSONL") : null,
      items.length ? element("button", { type: "button", onclick: () => save(items, true) }, "Training rows") : null));
    holder.append(element("ol", { class: "items-list" }, ...items.slice((page - 1) * PER_PAGE, page * PER_PAGE).map((item) => element(
      "li", { "data-row": true }, link({ item: placeOf(item) }, { "data-open": true },
        element("span", { class: `kind kind-${slug(item.kind)}` }, item.kind), " ",
        element("span", { class: "quiet" }, `${subjects ? `${item.task_title} ` : ""}${item.index}`), ` ${opening(item)}`),
      " ", element("span", { class: "quiet figures" }, marginText(item) + item.forms.join(", "))))));
    if (!items.length) {
      holder.append(element("p", { class: "quiet" }, "No item fits. ",
        link({ show: "all", q: null, form: null, subject: null, page: null, ...Object.fromEntries(BOUNDS.map((n) => [n, null])) }, {}, "Show all")));
    }
    if (pages > 1) {
      holder.append(element("nav", { class: "pager", "aria-label": "Pages of the list" },
        page > 1 ? link({ page: page > 2 ? page - 1 : null }, { rel: "prev", "data-previous": true }, "‹ before") : null,
        element("span", {}, `page ${page} of ${pages}`),
        page < pages ? link({ page: page + 1 }, { rel: "next", "data-next": true }, "next ›") : null));
    }
  }

  // --- One item ---
  function bars(item) {
    const side = (bar, n) => {
      const [score, length, chose] = bar.sides[n];
      const drawn = shape("svg", { class: "bar-of", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" });
      drawn.append(shape("rect", { width: length, height: 10, class: (chose ? "chosen" : "other") + (bar.right ? " gold" : "") }));
      return element("td", { "data-label": data.names[n] }, drawn, " ",
        element("span", { class: "num" }, chose ? element("strong", {}, score) : score),
        chose ? element("span", { class: "note" }, " chosen") : null);
    };
    const head = data.names.map((name, n) => element("th", { scope: "col" }, `${name}, ${item.right[n] ? "right" : "wrong"}`));
    return [element("div", { class: "scroll", role: "group", "aria-label": "Choices", tabindex: 0 },
      element("table", { class: "bars-table" },
        element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Choice"), ...head)),
        element("tbody", {}, ...item.bars.map((bar) => element("tr", { class: bar.right ? "right" : null },
          element("th", { scope: "row" }, bar.right ? "✓ " : "", bar.text, bar.right ? element("span", { class: "note" }, " right answer") : null),
          side(bar, 0), side(bar, 1)))))),
    element("p", { class: "quiet" }, `Log-likelihoods in ${item.unit}; the model chooses the largest. ${marginText(item)}`)];
  }

  function texts(item) {
    return [...(item.gold ? [element("h2", {}, "Right answer"), element("pre", {}, item.gold)] : []),
      element("div", { class: "pair" }, ...item.texts.map((text) => element("section", { "aria-label": `Answer of ${text.name}` },
        element("h2", {}, `${text.name} `, element("span", { class: `state ${text.right ? "" : "failed"}` }, text.right ? "right" : "wrong")),
        element("pre", {}, ...(text.parts.length ? text.parts.map(([words, changed]) => (changed ? element("mark", {}, words) : words)) : ["(empty)"])),
        ...text.about.map((line) => element("p", { class: "quiet" }, line)))))];
  }

  function one(holder, values, place) {
    const items = chosen(values);
    const item = data.items.find((i) => placeOf(i) === place);
    if (!item) {
      holder.append(element("p", { class: "watermark", role: "alert" }, `There is no item ${place} in this file.`));
      return;
    }
    const at = items.indexOf(item);
    const step = (to, words, attributes) => (to ? link({ item: placeOf(to) }, attributes, words) : element("span", { class: "quiet" }, words));
    holder.append(
      element("p", { class: "crumbs" }, link({ item: null }, { "data-up": true }, `${(values.get("show") || "lost").replace("-", " ")} items of ${data.title}`)),
      element("h2", {}, element("span", { class: `kind kind-${slug(item.kind)}` }, item.kind), ` ${item.task_title}, item ${item.index}`),
      element("nav", { class: "pager between", "aria-label": "Items" },
        step(at > 0 ? items[at - 1] : null, "‹ before", { rel: "prev", "data-previous": true }),
        element("span", {}, at < 0 ? "not in the selection" : `${(at + 1).toLocaleString("en")} of ${items.length.toLocaleString("en")}`),
        step(at >= 0 ? items[at + 1] : null, "next ›", { rel: "next", "data-next": true })),
      element("section", { "aria-label": "Question" }, element("pre", { class: "question" }, item.question || "(no text)")),
      ...(item.bars.length ? bars(item) : texts(item)),
      item.cluster ? element("p", { class: "quiet" }, `belongs to ${item.cluster}`) : "");
  }

  // --- Data ---
  async function unpacked(text) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const value = JSON.parse(await new Response(stream).text());
    for (const item of value.items) {
      item.words = [item.question, item.gold, ...item.bars.map((bar) => bar.text),
        ...item.texts.map((part) => part.parts.map(([words]) => words).join(""))].map((words) => words.toLowerCase());
    }
    return value;
  }

  // A page from disk may not fetch files, but it may load scripts: the data of a task is a script with one call.
  function load(task) {
    return new Promise((resolve, reject) => {
      task.arrived = resolve;
      const script = element("script", { src: task.file });
      script.addEventListener("error", () => reject(new Error(`${task.file} is missing beside this page.`)));
      document.head.append(script);
    });
  }

  async function dataOf(task) {
    task.data ??= await unpacked(task.packed ?? await load(task));
    return task.data;
  }

  let turn = 0;

  async function show() {
    const holder = $("#explorer");
    const values = state();
    const [first] = tasks.keys();
    const task = tasks.get(values.get("task")) || tasks.get(first);
    const mine = ++turn;
    try {
      const found = await dataOf(task);
      if (mine !== turn) return;
      data = found;
    } catch (error) {
      holder.replaceChildren(element("p", { class: "watermark", role: "alert" }, `The items cannot be shown: ${error.message}`));
      return;
    }
    const focused = document.activeElement?.name;
    holder.replaceChildren();
    if (values.get("item")) one(holder, values, values.get("item"));
    else list(holder, values);
    if (focused) $(`#filters [name=${focused}]`)?.focus();
    holder.dataset.ready = "true";
  }

  // Called by the file of a task.
  aftertune.arrived = (name, text) => tasks.get(name)?.arrived?.(text);

  document.addEventListener("DOMContentLoaded", () => {
    const told = $("#explorer-tasks");
    if (!told) return;
    for (const task of JSON.parse(told.textContent)) tasks.set(task.task, task);
    addEventListener("hashchange", show);
    show();
  });
})();
