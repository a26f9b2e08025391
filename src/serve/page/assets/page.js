// What the pages do with JavaScript; without it, links and forms do the same, and charts are pictures.
"use strict";
// The filter of the table applies at once.
document.querySelectorAll(".filter select").forEach((select) =>
  select.addEventListener("change", () => select.form.submit()));

// The chart of an image: zoomed by dragging, by + and −, moved by the arrow keys; 0 or a double click
// shows all of it.
async function draw(spans, place) {
  const answer = await fetch(spans.dataset.chart);
  if (!answer.ok) return;
  const data = await answer.json();
  if (!data.at.length) return;
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name);
  const ahead = data.band.slice(1), none = data.at.map(() => null);
  const last = data.at.length - 1;
  const x = data.at.concat(ahead.map((it) => it.at));
  const future = (key) => {
    const values = none.concat(ahead.map((it) => it[key]));
    if (ahead.length) values[last] = data.extents[last];
    return values;
  };
  const level = (count) => x.map(() => count);
  const rows = [x, data.extents.concat(ahead.map(() => null)), future("high"), future("low"), future("likely"),
    level(data.warning), level(data.critical)];
  const number = (value) => value == null ? "–" : value.toLocaleString("en");
  const short = (value) => value >= 1e6 ? value / 1e6 + "M" : value >= 1e3 ? value / 1e3 + "k" : String(value);
  const line = (label, stroke, more) => Object.assign({
    label, stroke: colour(stroke), width: 1, points: { show: false }, value: (_, value) => number(value) }, more);
  const highest = Math.max(...data.extents, ...ahead.map((it) => it.likely));
  const top = Math.max(highest, ...[data.warning, data.critical].filter((it) => it <= 3 * highest), 8) * 1.08;
  const marks = (plot) => {
    const { ctx, bbox } = plot;
    ctx.save();
    for (const mark of data.marks) {
      if (mark.at < plot.scales.x.min || mark.at > plot.scales.x.max) continue;
      const left = plot.valToPos(mark.at, "x", true);
      ctx.strokeStyle = colour(mark.kind);
      ctx.lineWidth = 2 * devicePixelRatio;
      ctx.setLineDash(mark.kind === "run" || mark.kind === "incident" ? [] : [4, 6]);
      ctx.beginPath();
      ctx.moveTo(left, bbox.top);
      ctx.lineTo(left, bbox.top + bbox.height);
      ctx.stroke();
    }
    ctx.restore();
  };
  const axis = (more) => Object.assign({ stroke: colour("dim"), grid: { stroke: colour("line"), width: 1 },
    ticks: { stroke: colour("line"), width: 1 } }, more);
  place.replaceChildren();
  const plot = new uPlot({
    width: place.clientWidth, height: 300, tzDate: (at) => uPlot.tzDate(new Date(at * 1e3), "Etc/UTC"),
    scales: { y: { range: () => [0, top] } },
    axes: [axis({ values: (_, times, __, ___, step) => times.map(
      (at) => new Date(at * 1e3).toISOString().slice(...step < 86400 ? [11, 16] : [5, 10])) }), axis({ size: 60, values: (_, values) => values.map(short) })],
    series: [{ value: "{YYYY}-{MM}-{DD} {HH}:{mm} UTC" }, line("extents", "link", { width: 2 }),
      line("high", "band"), line("low", "band"), line("forecast", "link", { dash: [5, 5] }),
      line("warning", "warning", { dash: [8, 5] }), line("critical", "critical", { dash: [8, 5] })],
    bands: [{ series: [2, 3], fill: colour("band") }],
    hooks: { draw: [marks] },
  }, rows, place);
  const ends = [x[0], x[x.length - 1]];
  const zoom = (factor, shift) => {
    const { min, max } = plot.scales.x, size = (max - min) * factor;
    let from = (min + max - size) / 2 + shift * size;
    from = Math.max(ends[0], Math.min(from, ends[1] - size));
    plot.setScale("x", { min: from, max: Math.min(from + size, ends[1]) });
  };
  place.tabIndex = 0;
  place.setAttribute("role", "group");
  place.setAttribute("aria-label", "Extents over time. Plus and minus zoom, arrow keys move, 0 shows all.");
  place.addEventListener("keydown", (event) => {
    const keys = { "+": [0.5, 0], "-": [2, 0], "0": [1e9, 0], ArrowLeft: [1, -0.2], ArrowRight: [1, 0.2] };
    if (!(event.key in keys) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    if (event.key === "0") plot.setScale("x", { min: ends[0], max: ends[1] });
    else zoom(...keys[event.key]);
  });
  addEventListener("resize", () => plot.setSize({ width: place.clientWidth, height: 300 }));
  // For those who have another look at it, and for tests.
  place.plot = plot;
}
const spans = document.getElementById("spans"), place = document.getElementById("plot");
if (spans && place && window.uPlot) draw(spans, place);
