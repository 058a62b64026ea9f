// The curves of a fine-tune: loss, learning rate and watched tasks by step. New steps come with the live part.
"use strict";

(() => {
  const { $, all, colour } = aftertune;
  const COLOURS = ["c1", "c2", "c3", "c4", "c5", "c6"];
  const DASHES = [[], [6, 3], [2, 2], [8, 3, 2, 3], [4, 2], [10, 4]];
  const STEPS = [0, 1, 2, 3, 4, 5, 6].flatMap((e) => [1, 2, 5].map((m) => m * 10 ** e)); // whole ones only
  const plots = new Map();

  const axis = (size) => ({
    size, stroke: () => colour("muted"), grid: { stroke: () => colour("line"), width: 1 },
    ticks: { stroke: () => colour("line"), width: 1 },
  });

  // Names, lines and intervals of one chart. A line is its steps and its values.
  function chartOf(kind, curves) {
    if (kind === "loss") {
      return {
        lines: [["training", curves.loss], ["validation", curves.validation]].filter(([, line]) => line[0].length),
      };
    }
    if (kind === "rate") return { lines: curves.rate[0].length ? [["learning rate", curves.rate]] : [] };
    return {
      lines: curves.tasks.map((t) => [t.title, [[0, ...t.points.map((p) => p[0])], [0, ...t.points.map((p) => p[1])]]]),
      intervals: curves.tasks.map((t) => t.points), margin: curves.margin,
    };
  }

  // The margin as a band, zero, and the interval of each point.
  function marks(chart) {
    return (u) => {
      if (!chart.intervals) return;
      const { ctx, bbox } = u;
      const y = (value) => u.valToPos(value, "y", true);
      ctx.save();
      ctx.beginPath();
      ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
      ctx.clip();
      if (chart.margin) {
        ctx.fillStyle = colour("band");
        ctx.globalAlpha = 0.6;
        ctx.fillRect(bbox.left, y(chart.margin), bbox.width, y(-chart.margin) - y(chart.margin));
        ctx.globalAlpha = 1;
      }
      chart.intervals.forEach((points, i) => {
        ctx.strokeStyle = colour(COLOURS[i % COLOURS.length]);
        ctx.lineWidth = 1.5 * devicePixelRatio;
        ctx.beginPath();
        for (const [step, , low, high] of points) {
          const x = Math.round(u.valToPos(step, "x", true)) + (i - (chart.intervals.length - 1) / 2) * 3 * devicePixelRatio;
          ctx.moveTo(x, y(low));
          ctx.lineTo(x, y(high));
        }
        ctx.stroke();
      });
      ctx.restore();
    };
  }

  const joined = (chart) => (chart.lines.length ? uPlot.join(chart.lines.map(([, line]) => line)) : [[]]);

  function yRange(chart) {
    return (u, low, high) => {
      let [least, most] = [low ?? 0, high ?? 1];
      for (const [, , a, b] of (chart.intervals || []).flat()) { least = Math.min(least, a); most = Math.max(most, b); }
      const room = (most - least || Math.abs(most) || 1) * 0.06;
      return [least === 0 ? 0 : least - room, most + room];
    };
  }

  // The name of each line with its colour, where the caption does not say it.
  function legend(place, names) {
    $(".legend", place).replaceChildren(...(names.length > 1 || place.dataset.curve === "watch" ? names : []).map((name, i) => {
      const key = document.createElement("span");
      key.className = COLOURS[i % COLOURS.length];
      key.textContent = name;
      return key;
    }));
  }

  function make(holder, chart, output) {
    const few = (joined(chart)[0] || []).length < 40;
    const number = (v) => (v === null || v === undefined ? "–" : Number(v.toPrecision(4)).toString());
    return new uPlot({
      width: holder.clientWidth, height: holder.clientHeight, legend: { show: false }, padding: [8, 8, 0, 0],
      cursor: { drag: { x: true, y: false } }, scales: { x: { time: false }, y: { range: yRange(chart) } },
      axes: [{ ...axis(34), incrs: STEPS }, { ...axis(64), values: (u, ticks) => ticks.map((v) => Number(v.toPrecision(6)).toString()) }],
      series: [{}, ...chart.lines.map(([label], i) => ({
        label, stroke: () => colour(COLOURS[i % COLOURS.length]), width: 2, dash: DASHES[i % DASHES.length],
        spanGaps: true, points: { show: few || Boolean(chart.intervals) || label === "validation", size: 6 },
      }))],
      hooks: {
        drawClear: [marks(chart)],
        setCursor: [(u) => {
          const at = u.cursor.idx;
          output.textContent = at === null || at === undefined ? ""
            : `step ${number(u.data[0][at])}: ${u.series.slice(1).map((s, i) => `${s.label} ${number(u.data[i + 1][at])}`).join(", ")}`;
        }],
      },
    }, joined(chart), holder);
  }

  function draw() {
    const data = $("#curves");
    if (!data || !window.uPlot) return;
    const curves = JSON.parse(data.textContent);
    for (const place of all("[data-curve]")) {
      const kind = place.dataset.curve;
      const chart = chartOf(kind, curves);
      const holder = $("div", place);
      const before = plots.get(kind);
      place.hidden = !chart.lines.length;
      if (place.hidden) continue;
      if (before && before.names === chart.lines.map(([name]) => name).join("\n")) {
        Object.assign(before.chart, chart);
        before.plot.setData(joined(chart));
      } else {
        before?.plot.destroy();
        const kept = { ...chart };
        legend(place, chart.lines.map(([name]) => name));
        plots.set(kind, { plot: make(holder, kept, $("output", place)), chart: kept, names: chart.lines.map(([name]) => name).join("\n") });
      }
    }
  }

  document.addEventListener("DOMContentLoaded", draw);
  document.addEventListener("aftertune:live", draw);
  document.addEventListener("aftertune:theme", () => plots.forEach(({ plot }) => plot.redraw()));
  addEventListener("resize", () => plots.forEach(({ plot }) => {
    const holder = plot.root.parentElement;
    plot.setSize({ width: holder.clientWidth, height: holder.clientHeight });
  }));
})();
