"use strict";

// A click on a column's name sorts by it, a second one turns the order round; empty cells stay last.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const header = button.parentElement;
    const table = header.closest("table");
    const column = header.cellIndex;
    const down = header.getAttribute("aria-sort") === "ascending";
    for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    const body = table.tBodies[0];
    const key = (row) => row.cells[column].dataset.key ?? row.cells[column].textContent;
    const numbers = [...body.rows].every((row) => key(row) === "" || !Number.isNaN(Number(key(row))));
    const order = (a, b) => {
      if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === "");
      const one = numbers ? Number(key(a)) - Number(key(b)) : key(a).localeCompare(key(b));
      return down ? -one : one;
    };
    body.append(...[...body.rows].sort(order));
  });
}

// Copies by the clipboard where the browser lets a page from disk; else the text is selected.
for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", async () => {
    const from = document.getElementById(button.dataset.copies);
    try {
      await navigator.clipboard.writeText(from.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(from);
      button.textContent = "Selected: copy it";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
}

const paper = matchMedia("print");
const dark = matchMedia("(prefers-color-scheme: dark)");

// The page's colours, as they are now.
function colours() {
  const style = getComputedStyle(document.documentElement);
  return (name) => style.getPropertyValue(`--${name}`).trim();
}

function draw(figure, spec) {
  const colour = colours();
  const picked = figure.querySelector("select");
  const panel = spec.panels[picked ? Number(picked.value) : 0];
  const data = panel.data.map((trace) => {
    if (trace.meta === "grid") {
      const ends = [colour("before"), colour("paper"), colour("after")].slice(trace.zmin < 0 ? 0 : 1);
      return { ...trace, colorscale: ends.map((end, place) => [place / (ends.length - 1), end]) };
    }
    const own = colour(trace.meta);
    return {
      ...trace,
      line: { ...trace.line, color: own },
      marker: { ...trace.marker, color: own },
      error_y: trace.error_y && { ...trace.error_y, color: own },
    };
  });
  const axis = (own) => ({
    automargin: true, gridcolor: colour("line"), linecolor: colour("line"), zerolinecolor: colour("faint"), ...own,
  });
  const layout = {
    ...spec.layout,
    xaxis: axis({ zeroline: false, ...spec.layout.xaxis }),
    yaxis: axis({ title: { text: panel.y }, ...spec.layout.yaxis }),
    autosize: true,
    margin: { l: 10, r: 10, t: 10, b: 10 },
    font: { color: colour("ink"), family: getComputedStyle(document.body).fontFamily, size: 13 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    hoverlabel: { bgcolor: colour("paper"), bordercolor: colour("faint"), font: { color: colour("ink") }, namelength: -1 },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    hovermode: "closest",
    showlegend: data.length > 1,
  };
  const plot = figure.querySelector(".plot");
  if (panel.finding) {
    figure.querySelector(".finding").textContent = panel.finding;
    plot.setAttribute("aria-label", `${figure.querySelector("h3").textContent}. ${panel.name} ${panel.finding}`);
  }
  return Plotly.react(plot, data, layout, { displayModeBar: false, responsive: true });
}

// plotly.js is packed in the page; unpacked, the page's content policy allows it by its hash.
async function start() {
  const packed = atob(document.getElementById("plotly").textContent);
  const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  const specs = JSON.parse(document.getElementById("specs").textContent);
  const figures = [...document.querySelectorAll("figure.chart")];
  const all = () => Promise.all(figures.map((figure) => draw(figure, specs[figure.dataset.chart])));
  for (const figure of figures) {
    figure.querySelector("select")?.addEventListener("change", () => draw(figure, specs[figure.dataset.chart]));
  }
  for (const query of [dark, paper]) query.addEventListener("change", all);
  await all();
  document.body.dataset.drawn = String(figures.length);
  document.querySelector(".status").textContent = matchMedia("(pointer: coarse)").matches
    ? "Tap a chart for its figures."
    : "Point at a chart for its figures; drag to zoom in, double-click to go back.";
}

if (document.getElementById("plotly")) {
  start().catch((error) => {
    document.querySelector(".status").textContent =
      `This browser cannot draw the charts (${error.message}); the tables have their figures.`;
  });
}
