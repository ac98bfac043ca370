"use strict";
// Puts the parts of the page, which the server writes, in their places, draws their charts, and keeps the address.

const $ = (id) => document.getElementById(id);
const framed = parent !== window; // Airflow shows the page in a frame of its own document
const VIEW = ["website", "range", "from", "to", "tab", "day"];
const brief = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 }).format;
const exact = new Intl.NumberFormat("en", { maximumFractionDigits: 1 }).format;

// --- The address: what is shown can be sent to somebody, who reads it in Airflow's address bar

function keepAddress() {
  if (framed) parent.history.replaceState(parent.history.state, "", parent.location.pathname + location.search);
}

function go(search) {
  history.pushState(null, "", search);
  keepAddress();
  show(true);
}

function takeAddress() {
  if (!framed || location.search) return;
  const view = [...new URLSearchParams(parent.location.search)].filter(([name]) => VIEW.includes(name));
  if (view.length) history.replaceState(null, "", `?${new URLSearchParams(view)}`);
}

addEventListener("popstate", () => {
  keepAddress();
  show(true);
});

// --- Links: to another view of the page; or out of it, which Airflow's own document has to follow

function follow(href, target = "_self", download = null) {
  const outer = parent.document.createElement("a");
  Object.assign(outer, { href, target });
  if (download !== null) outer.download = download;
  parent.document.body.append(outer);
  outer.click();
  outer.remove();
}

addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href]");
  const elsewhere = event.ctrlKey || event.metaKey || event.shiftKey;
  if (!link || (elsewhere && !framed)) return;
  const search = link.getAttribute("href").startsWith("?") && !elsewhere;
  if (!framed && !search) return;
  event.preventDefault();
  if (search) go(link.search);
  else follow(link.href, elsewhere ? "_blank" : "_self", link.getAttribute("download"));
});

addEventListener("submit", (event) => {
  event.preventDefault();
  go(`?${new URLSearchParams(new FormData(event.target))}`);
});

// --- The parts

function fail(problem) {
  $("problem").textContent = problem;
  $("problem").hidden = false;
  document.querySelector("main").hidden = true;
}

async function load(name, live = false) {
  const { search } = location;
  const query = new URLSearchParams(search);
  if (live) query.set("live", "true");
  const response = await fetch(`part/${name}?${query}`).catch(() => null);
  const text = await response?.text().catch(() => null);
  if (search !== location.search) return; // something else was chosen meanwhile
  if ([401, 403].includes(response?.status)) {
    fail("Your login has ended, or may not see the runs of the analytics jobs: log in to Airflow again, and reload "
      + "this page.");
  } else if ([422, 503].includes(response?.status) && text) {
    fail(text);
  } else if (!response?.ok || text === null) {
    fail("Airflow does not answer: look at the log of its api-server, and reload this page.");
  } else {
    replace($(name), text);
  }
}

// What the server writes is text where it comes from visitors: its templates escape all that they are given.
function replace(part, html) {
  const focused = part.contains(document.activeElement) ? document.activeElement : null;
  const open = [...part.querySelectorAll("details[open]")].map((details) => details.id);
  const scrolled = [...part.querySelectorAll(".scroll")].map((box) => box.scrollTop);
  part.querySelectorAll("canvas").forEach((canvas) => window.Chart?.getChart(canvas)?.destroy());
  part.innerHTML = html;
  for (const id of open) if ($(id)) $(id).open = true;
  part.querySelectorAll(".scroll").forEach((box, index) => { box.scrollTop = scrolled[index] ?? 0; });
  if (focused) {
    const { id, href } = focused;
    const alike = [...part.querySelectorAll(focused.tagName)];
    const same = alike.find((element) => element.id === id && element.href === href);
    (same ?? part.querySelector("h2[tabindex]"))?.focus({ preventScroll: true });
  }
  part.querySelectorAll("canvas").forEach(draw);
}

async function show(onlyView = false) {
  const { search } = location;
  const main = document.querySelector("main");
  main.setAttribute("aria-busy", "true");
  const first = ["range", "traffic", "items"];
  await Promise.all([...(onlyView ? [] : ["status"]), ...first].map((name) => load(name)));
  if (search !== location.search) return;
  const website = $("title")?.querySelector(".website")?.firstChild.data;
  document.title = website ? `${website} – Analytics` : "Analytics";
  // What is counted now, or reads all raw events, may take a while.
  const live = ["traffic", "items"].map((name) => load(name, true));
  await Promise.all([...live, ...(onlyView ? [] : ["retention", "storage"]).map((name) => load(name))]);
  if (search === location.search) main.removeAttribute("aria-busy");
}

// --- Charts, in Airflow's theme: what was chosen there, else the system's

const system = matchMedia("(prefers-color-scheme: dark)");

function theme() {
  const chosen = localStorage.getItem("theme");
  document.documentElement.classList.toggle("dark", chosen === "dark" || (chosen !== "light" && system.matches));
  document.querySelectorAll("canvas").forEach(draw);
}
addEventListener("storage", theme);
system.addEventListener("change", theme);
theme();

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`);

function hatch(name) { // so that colour is not the only sign
  const canvas = Object.assign(document.createElement("canvas"), { width: 6, height: 6 });
  const context = canvas.getContext("2d");
  context.strokeStyle = colour(name);
  context.lineWidth = 1.6;
  for (const shift of [-6, 0, 6]) { context.moveTo(shift, 6); context.lineTo(shift + 6, 0); }
  context.stroke();
  return context.createPattern(canvas, "repeat");
}

function dataset({ label, data, line, hatched = [], bad = [] }) {
  if (line) {
    return {
      type: "line", label, data, borderColor: colour(line), backgroundColor: colour(line), borderWidth: 2,
      borderDash: line === "dashed" ? [5, 4] : [], pointRadius: data.length > 1 ? 0 : 3,
    };
  }
  const plain = (index) => hatched.includes(index) ? hatch("bars") : colour("bars");
  const fill = (_, index) => bad.includes(index) ? hatch("bad") : plain(index);
  return {
    label, data, backgroundColor: data.map(fill), borderColor: colour("bad"), minBarLength: 1,
    borderWidth: data.map((value, index) => bad.includes(index) && value ? 1 : 0),
    categoryPercentage: 0.9, barPercentage: 0.95,
  };
}

function legend(chart) {
  return Chart.defaults.plugins.legend.labels.generateLabels(chart).map((label) => {
    const { type, borderDash } = chart.data.datasets[label.datasetIndex];
    return type === "line" ? { ...label, pointStyle: "line", lineDash: borderDash }
      : { ...label, pointStyle: "rect", fillStyle: colour("bars"), lineWidth: 0 };
  });
}

function draw(canvas) {
  if (!window.Chart || !canvas.dataset.chart) return;
  const chart = JSON.parse(canvas.dataset.chart); // made by charts.py
  const { labels, titles, tips, links = [], series, unit, bare, stacked, time, axis } = chart;
  const number = (write) => (value) => unit ? `${write(value)} ${unit}` : write(value);
  Object.assign(Chart.defaults, { color: colour("muted"), borderColor: colour("line") });
  Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
  Chart.getChart(canvas)?.destroy();
  new Chart(canvas, {
    type: "bar",
    data: { labels, datasets: series.map(dataset) },
    options: {
      animation: false, maintainAspectRatio: false,
      interaction: { mode: time ? "nearest" : "index", axis: "x", intersect: false },
      onClick: (_, [bar]) => {
        const href = bar && links[bar.index];
        if (href?.startsWith("?")) go(href);
        else if (href) follow(new URL(href, location).href);
      },
      plugins: {
        legend: chart.legend ? { align: "end", reverse: true, labels: { usePointStyle: true, generateLabels: legend } }
          : { display: false },
        tooltip: {
          displayColors: false,
          callbacks: {
            ...(titles && { title: ([item]) => titles[item.dataIndex] }),
            label: (item) => tips?.[item.dataIndex] ?? `${item.dataset.label}: ${number(exact)(item.parsed.y)}`,
          },
        },
      },
      scales: {
        x: {
          display: !bare, stacked, grid: { display: false }, ticks: { maxRotation: 0, autoSkipPadding: 16 },
          ...(time && { type: "time", time: { minUnit: "day", tooltipFormat: "d MMM yyyy" } }),
          title: { display: Boolean(axis), text: axis },
        },
        y: {
          display: !bare, stacked, beginAtZero: true, border: { display: false },
          ticks: { maxTicksLimit: 5, callback: number(brief) },
        },
      },
    },
  });
}

// --- The page

addEventListener("DOMContentLoaded", () => {
  takeAddress();
  $("reload").onclick = () => location.reload();
  const library = Object.assign(document.createElement("script"), { src: $("library").href, onload: theme });
  library.onerror = () => { $("no-library").hidden = false; };
  document.head.append(library);
  show();
});
