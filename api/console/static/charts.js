// The charts of the last hour: drawn by uPlot, told in words by the page itself.
"use strict";

(() => {
  const EVERY_MS = 15000;
  const HEIGHT = 96;
  let points = null;
  let plots = [];

  const colour = (element, name) => getComputedStyle(element).getPropertyValue(name);

  function draw() {
    for (const { plot } of plots) plot.destroy();
    plots = [];
    if (points === null) return;
    for (const element of document.querySelectorAll("[data-chart]")) {
      const series = points.charts[element.dataset.chart];
      element.replaceChildren();
      plots.push({ element, plot: new uPlot(options(element, series.length), [points.at, ...series], element) });
    }
  }

  function options(element, count) {
    // A probe has the colours as the theme in use resolves them.
    const probe = document.createElement("span");
    element.append(probe);
    const resolved = (name) => {
      probe.style.color = `var(${name})`;
      return colour(probe, "color");
    };
    const axis = { stroke: resolved("--quiet"), font: "11px system-ui", ticks: { show: false } };
    const grid = { stroke: resolved("--line"), width: 1 };
    const lines = Array.from({ length: count }, (_, index) => ({
      stroke: resolved(`--chart-${index + 1}`),
      fill: count === 1 ? resolved("--chart-fill") : undefined,
      width: 1.5,
      points: { show: false },
    }));
    probe.remove();
    const now = Date.now() / 1000;
    return {
      width: element.clientWidth,
      height: HEIGHT,
      legend: { show: false },
      cursor: { show: false },
      padding: [6, 4, 0, 0],
      scales: { x: { range: [now - 3600, now] }, y: { range: (_, low, high) => [0, Math.max(high ?? 0, 1) * 1.1] } },
      axes: [
        { ...axis, grid: { show: false }, size: 20, space: 70, values: (_, times) => times.map(clock) },
        { ...axis, grid, size: 38, space: 28, incrs: [0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5, 1e6] },
      ],
      series: [{}, ...lines],
    };
  }

  // As everywhere in the console: UTC.
  const clock = (seconds) => new Date(seconds * 1000).toISOString().slice(11, 16);

  async function look() {
    if (document.hidden && points !== null) return;
    try {
      const answer = await fetch("/console/charts", { headers: { "HX-Request": "true" } });
      if (!answer.ok) return;
      points = await answer.json();
      draw();
    } catch {
      // The page's live parts say that the API does not answer; the charts stay as they are.
    }
  }

  document.addEventListener("DOMContentLoaded", () => {
    look();
    setInterval(look, EVERY_MS);
    let wait = 0;
    addEventListener("resize", () => {
      clearTimeout(wait);
      wait = setTimeout(draw, 100);
    });
  });
  for (const name of ["theme", "exchanged"]) document.addEventListener(name, draw);
})();
