// The scatter of margins: draws every item, lets a reader drag over some of them, and puts the bounds into the filters.
"use strict";

(() => {
  const { $, colour } = aftertune;
  const COLOURS = { lost: "lower", gained: "higher", "both right": "within", "both wrong": "undecided" };
  const SIZE = 6;

  // The points of one kind, drawn on the canvas of uPlot. Lost and gained are larger, and drawn last.
  function points(kind) {
    return (u, series) => {
      uPlot.orient(u, series, (of, xs, ys, scaleX, scaleY, toX, toY, left, top, width, height, moveTo, lineTo, rect, arc) => {
        const size = SIZE * devicePixelRatio * (kind === "lost" || kind === "gained" ? 1 : 0.7);
        const [across, up] = u.data[series];
        const path = new Path2D();
        for (let i = 0; i < across.length; i += 1) {
          const x = toX(across[i], scaleX, width, left);
          const y = toY(up[i], scaleY, height, top);
          path.moveTo(x + size / 2, y);
          arc(path, x, y, size / 2, 0, 2 * Math.PI);
        }
        u.ctx.save();
        u.ctx.globalAlpha = kind === "lost" || kind === "gained" ? 0.85 : 0.45;
        u.ctx.fillStyle = colour(COLOURS[kind]);
        u.ctx.fill(path);
        u.ctx.restore();
      });
      return null;
    };
  }

  // Lines at 0 and the diagonal, on which nothing changed; and the bounds of the filters.
  function guides(u) {
    const { ctx } = u;
    const line = (x0, y0, x1, y1) => {
      ctx.moveTo(u.valToPos(x0, "x", true), u.valToPos(y0, "y", true));
      ctx.lineTo(u.valToPos(x1, "x", true), u.valToPos(y1, "y", true));
    };
    const { x, y } = u.scales;
    ctx.save();
    ctx.beginPath();
    ctx.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height);
    ctx.clip();
    ctx.strokeStyle = colour("muted");
    ctx.lineWidth = devicePixelRatio;
    ctx.beginPath();
    line(0, y.min, 0, y.max);
    line(x.min, 0, x.max, 0);
    ctx.stroke();
    ctx.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
    ctx.beginPath();
    const low = Math.min(x.min, y.min);
    const high = Math.max(x.max, y.max);
    line(low, low, high, high);
    ctx.stroke();
    ctx.setLineDash([]);
    const [b0, b1, t0, t1] = ["bmin", "bmax", "tmin", "tmax"].map((name) => {
      const field = $(`#filters [name=${name}]`);
      return field && field.value !== "" ? Number(field.value) : null;
    });
    if ([b0, b1, t0, t1].some((v) => v !== null && !Number.isNaN(v))) {
      const left = u.valToPos(b0 ?? x.min, "x", true);
      const right = u.valToPos(b1 ?? x.max, "x", true);
      const bottom = u.valToPos(t0 ?? y.min, "y", true);
      const top = u.valToPos(t1 ?? y.max, "y", true);
      ctx.strokeStyle = colour("accent");
      ctx.lineWidth = 2 * devicePixelRatio;
      ctx.strokeRect(left, top, right - left, bottom - top);
    }
    ctx.restore();
  }

  // A name that is longer than an axis loses its middle.
  const short = (name) => (name.length <= 30 ? name : `${name.slice(0, 14)}…${name.slice(-15)}`);

  const rounded = (value, step) => Number((Math.round(value / step) * step).toPrecision(6));

  function setBounds(values) {
    for (const [name, value] of Object.entries(values)) {
      const field = $(`#filters [name=${name}]`);
      if (field) field.value = value;
    }
    $("#filters").requestSubmit();
  }

  function range(values) {
    let low = 0;
    let high = 0;
    for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
    const room = (high - low || 1) * 0.04;
    return [low - room, high + room];
  }

  // open: called with the place of the item that was clicked.
  function draw(holder, data, open) {
    const kinds = data.kinds.map((name, kind) => ({ name, at: data.kind.flatMap((k, i) => (k === kind ? [i] : [])) }));
    const order = ["both wrong", "both right", "gained", "lost"];
    kinds.sort((a, b) => order.indexOf(a.name) - order.indexOf(b.name));
    const spans = { x: range(data.base), y: range(data.tuned) };
    const axis = (label) => ({
      label, labelSize: 22, size: 44, stroke: () => colour("muted"), grid: { stroke: () => colour("line"), width: 1 },
      ticks: { stroke: () => colour("line"), width: 1 },
    });
    const nearest = (u) => {
      const { left, top } = u.cursor;
      if (left < 0 || top < 0) return null;
      let best = null;
      let least = 14 * 14;
      for (let i = 0; i < data.base.length; i += 1) {
        const dx = u.valToPos(data.base[i], "x") - left;
        const dy = u.valToPos(data.tuned[i], "y") - top;
        if (dx * dx + dy * dy < least) { least = dx * dx + dy * dy; best = i; }
      }
      return best;
    };
    const about = $("#point");
    const plot = new uPlot({
      mode: 2, width: holder.clientWidth, height: holder.clientHeight, legend: { show: false }, padding: [8, 8, 0, 0],
      cursor: { drag: { x: true, y: true, setScale: false, dist: 6 }, points: { show: false } },
      scales: { x: { time: false, range: () => spans.x }, y: { range: () => spans.y } },
      axes: [axis(`margin in ${short(data.names[0])}`), axis(`margin in ${short(data.names[1])}`)],
      series: [null, ...kinds.map(({ name }) => ({ label: name, stroke: () => colour(COLOURS[name]), paths: points(name) }))],
      hooks: {
        draw: [guides],
        setCursor: [(u) => {
          const i = nearest(u);
          u.over.classList.toggle("on-item", i !== null);
          about.textContent = i === null ? "\u00a0" : `${data.kinds[data.kind[i]]}, item ${data.place[i]}: ${data.text[i]}`;
        }],
        setSelect: [(u) => {
          const { left, top, width, height } = u.select;
          if (width < 6 || height < 6) return;
          const step = { x: (spans.x[1] - spans.x[0]) / 1000, y: (spans.y[1] - spans.y[0]) / 1000 };
          setBounds({
            bmin: rounded(u.posToVal(left, "x"), step.x), bmax: rounded(u.posToVal(left + width, "x"), step.x),
            tmin: rounded(u.posToVal(top + height, "y"), step.y), tmax: rounded(u.posToVal(top, "y"), step.y),
          });
          u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
        }],
      },
    }, [null, ...kinds.map(({ at }) => [at.map((i) => data.base[i]), at.map((i) => data.tuned[i])])], holder);
    let pressed = null;
    plot.over.addEventListener("mousedown", (event) => { pressed = [event.clientX, event.clientY]; });
    plot.over.addEventListener("mouseup", (event) => {
      const still = pressed && Math.hypot(event.clientX - pressed[0], event.clientY - pressed[1]) < 5;
      const i = still ? nearest(plot) : null;
      if (i === null) return;
      open(data.place[i]);
    });
    new ResizeObserver(() => plot.setSize({ width: holder.clientWidth, height: holder.clientHeight })).observe(holder);
    document.addEventListener("aftertune:theme", () => plot.redraw(false, true));
    document.addEventListener("htmx:afterSwap", () => plot.redraw(false, false));
  }

  async function start() {
    const holder = $("#scatter");
    if (!holder?.dataset.source) return;
    const answer = await fetch(holder.dataset.source);
    if (!answer.ok) { $("#point").textContent = "The margins could not be loaded; load the page again."; return; }
    draw(holder, await answer.json(), (place) => {
      const address = new URL(location.href);
      address.searchParams.set("item", place);
      location.assign(address);
    });
    $("#unbrush")?.addEventListener("click", () => setBounds({ bmin: "", bmax: "", tmin: "", tmax: "" }));
  }

  // The task is another page, with charts of its own.
  document.addEventListener("change", (event) => {
    if ($("#scatter[data-source]") && event.target.matches("#filters [name=task]")) {
      event.stopPropagation();
      const address = new URL(location.href);
      for (const name of ["page", "subject", "bmin", "bmax", "tmin", "tmax", "q"]) address.searchParams.delete(name);
      address.searchParams.set("task", event.target.value);
      location.assign(address);
    }
  }, true);

  aftertune.drawScatter = draw;
  document.addEventListener("DOMContentLoaded", start);
})();
