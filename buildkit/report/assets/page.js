"use strict";
(() => {
  const data = JSON.parse(document.getElementById("chart-data").textContent);
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const isNarrow = () => window.innerWidth < 640;
  const units = [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]];
  const human = (bytes) => {
    const unit = units.find(([, factor]) => Math.abs(bytes) >= factor);
    return unit ? `${(bytes / unit[1]).toFixed(unit[0] === "GB" ? 2 : 1)} ${unit[0]}` : `${bytes} B`;
  };
  const settings = { displaylogo: false, displayModeBar: false, responsive: true };
  const layout = (more) => ({
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: color("text"), family: "system-ui, sans-serif", size: isNarrow() ? 11 : 13 },
    margin: { l: 8, r: 8, t: 8, b: 36 },
    hoverlabel: { namelength: -1 },
    ...more,
  });
  const axis = (more) => ({ gridcolor: color("line"), zerolinecolor: color("line"), automargin: true, ...more });
  const legend = { orientation: "h", x: 0, y: 1, xanchor: "left", yanchor: "bottom" };
  const sizeAxis = (largest, title) => {
    const [unit, factor] = units.find((each) => largest >= each[1]) || ["B", 1];
    return { title: { text: `${title} in ${unit}` }, factor };
  };

  const draw = {
    treemap(element, tree) {
      Plotly.react(element, [{
        type: "treemap", ids: tree.ids, labels: tree.labels, parents: tree.parents, values: tree.values,
        text: tree.values.map(human), branchvalues: "total", maxdepth: isNarrow() ? 4 : 5, sort: true,
        textfont: { color: "#ffffff" },
        marker: { colors: tree.colors, line: { width: 1, color: color("background") } },
        texttemplate: "%{label}<br>%{text}", hovertemplate: "%{id}<br>%{text}, %{percentRoot:.1%} of the image<extra></extra>",
        pathbar: { visible: true, thickness: 24 }, tiling: { pad: 2 },
      }], layout({ margin: { l: 0, r: 0, t: 28, b: 0 }, height: isNarrow() ? 360 : 520 }), settings);
    },
    bars(element, chart) {
      const largest = Math.max(0, ...chart.series.flatMap((series) => series.values));
      const { title, factor } = sizeAxis(largest, chart.title);
      const names = chart.names.map((name) => (isNarrow() ? name.split(" ")[0] : name));
      Plotly.react(element, chart.series.map((series) => ({
        type: "bar", orientation: "h", name: series.name, y: names, x: series.values.map((value) => value / factor),
        text: series.values.map(human), textposition: "none", customdata: chart.names, marker: { color: color(series.color) },
        hovertemplate: "%{customdata}<br>%{fullData.name}: %{text}<extra></extra>",
      })), layout({
        barmode: chart.mode, bargap: 0.25, xaxis: axis({ title, rangemode: "tozero" }),
        yaxis: axis({ autorange: "reversed", type: "category" }), legend: { ...legend, traceorder: "normal" },
        height: Math.max(260, 90 + names.length * (chart.mode === "group" ? 34 : 24)), margin: { l: 8, r: 8, t: 36, b: 44 },
      }), settings);
    },
    timeline(element, chart) {
      const names = chart.steps.map((step, place) => `${place + 1} ${isNarrow() ? step.stage : step.name}`);
      const bars = (isCached) => {
        const places = chart.steps.map((_, place) => place).filter((place) => chart.steps[place].cached === isCached);
        return {
          type: "bar", orientation: "h", name: isCached ? "from the cache" : "run", y: places.map((place) => names[place]),
          x: places.map((place) => chart.steps[place].seconds), base: places.map((place) => chart.steps[place].start),
          customdata: places.map((place) => [chart.steps[place].stage, chart.steps[place].name]),
          marker: { color: color(isCached ? "before" : "after") },
          hovertemplate: "%{customdata[0]}: %{customdata[1]}<br>%{x:.2f} s from %{base:.2f} s<extra></extra>",
        };
      };
      Plotly.react(element, [bars(false), bars(true)], layout({
        barmode: "overlay", xaxis: axis({ title: { text: "seconds since the start" }, rangemode: "tozero" }),
        yaxis: axis({ autorange: "reversed", type: "category", categoryorder: "array", categoryarray: names }), legend,
        height: Math.max(240, 90 + names.length * 20), margin: { l: 8, r: 8, t: 36, b: 44 },
      }), settings);
    },
    trend(element, chart) {
      const largest = Math.max(0, ...chart.series.flatMap((series) => series.values));
      const { title, factor } = sizeAxis(largest, "size");
      Plotly.react(element, chart.series.map((series) => ({
        type: "scatter", mode: "lines+markers", name: series.name, x: chart.times,
        y: series.values.map((value) => value / factor), text: series.values.map(human),
        line: { color: color(series.color) }, hovertemplate: "%{x}<br>%{fullData.name}: %{text}<extra></extra>",
      })), layout({
        xaxis: axis({}), yaxis: axis({ title, rangemode: "tozero" }), legend, height: 320, margin: { l: 8, r: 8, t: 36, b: 44 },
      }), settings);
    },
  };
  const drawAll = () => {
    for (const element of document.querySelectorAll("[data-chart]")) {
      const chart = data[element.dataset.chart];
      draw[chart.kind](element, chart);
      element.style.minHeight = 0; // the chart has its own height
    }
  };
  drawAll();
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if ((width < 640) !== isNarrow()) drawAll();
    width = window.innerWidth;
  });
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  system.addEventListener("change", drawAll);

  const toggle = document.getElementById("theme");
  toggle.hidden = false;
  toggle.addEventListener("click", () => {
    const isDark = (document.documentElement.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
    document.documentElement.dataset.theme = isDark ? "light" : "dark";
    drawAll();
  });

  for (const input of document.querySelectorAll("input[data-filter]")) {
    const rows = [...document.querySelectorAll(`#${input.dataset.filter} tbody tr`)];
    const count = document.getElementById(`${input.dataset.filter}-count`);
    input.closest(".filter").hidden = false;
    input.addEventListener("input", () => {
      const wanted = input.value.toLowerCase();
      for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
      count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows shown`;
    });
  }
  document.documentElement.dataset.drawn = "yes";
})();
