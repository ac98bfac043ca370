"use strict";
// Reads data/* and draws the page. Paths, referrers and messages come from outside: they are only ever set as text.

const AGGREGATE = "aggregate_daily_analytics", CLEANUP = "cleanup_analytics_sessions", ARCHIVE = "archive_old_analytics";
const JOBS = { [AGGREGATE]: "Daily statistics", [CLEANUP]: "Closes idle sessions", [ARCHIVE]: "Deletes old raw data" };
const JOB_OF_ALERT = {
  aggregation_behind: AGGREGATE, rows_kept: AGGREGATE, cleanup_missing: CLEANUP,
  retention_backlog: ARCHIVE, unsealed_days: ARCHIVE, late_events: ARCHIVE, database_size: ARCHIVE,
};
const DAY = 86400e3;
const WAIT = "…";

const $ = (id) => document.getElementById(id);
const count = new Intl.NumberFormat("en").format;
const brief = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 }).format;
const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;
const iso = (date) => date.toLocaleDateString("sv"); // 2026-01-31
const noon = (day) => new Date(`${day}T12:00`);
const long = (day) => noon(day).toLocaleDateString("en-GB", { day: "numeric", month: "long", year: "numeric" });
const short = (day) => noon(day).toLocaleDateString("en-GB", { day: "numeric", month: "short" });
const sum = (rows, column) => rows.reduce((total, row) => total + row[column], 0);

function took(seconds) {
  if (seconds == null) return "–";
  return seconds < 60 ? `${seconds.toFixed(1)} s` : seconds < 3600 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function bytes(number) {
  const power = Math.min(4, Math.floor(Math.log(Math.max(number, 1)) / Math.log(1024)));
  return `${(number / 1024 ** power).toFixed(power ? 1 : 0)} ${["B", "kB", "MB", "GB", "TB"][power]}`;
}

function when(moment) {
  const seconds = (new Date(moment) - Date.now()) / 1000;
  const units = [["day", 86400], ["hour", 3600], ["minute", 60], ["second", 1]];
  const [unit, size] = units.find(([, size]) => Math.abs(seconds) >= size) ?? units[3];
  const text = new Intl.RelativeTimeFormat("en", { numeric: "auto" }).format(Math.round(seconds / size), unit);
  return el("time", { dateTime: moment, title: new Date(moment).toLocaleString("en-GB") }, text);
}

function el(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children.filter((child) => child != null));
  return node;
}

const note = (...text) => el("p", { className: "note" }, ...text);

// Cells are numbers, texts or elements; the first of each row is its heading.
function table(headers, rows, { caption, chosen } = {}) {
  const align = (index) => rows.some((row) => typeof row[index] === "number" || row[index] === WAIT) ? "number" : "";
  const cell = (content, index) => el(index ? "td" : "th", { className: align(index), ...(index ? {} : { scope: "row" }) },
    typeof content === "number" ? count(content) : content ?? "–");
  return el("table", {}, caption && el("caption", {}, caption),
    el("thead", {}, el("tr", {}, ...headers.map((text, index) => el("th", { scope: "col", className: align(index) }, text)))),
    el("tbody", {}, ...rows.map((row, index) => el("tr", { className: index === chosen ? "chosen" : "" }, ...row.map(cell)))));
}

// --- Links into Airflow. It shows this page in a frame that may not lead away from it: its own document follows them.

const jobPath = (job) => `../dags/${encodeURIComponent(job)}`;
const runPath = (job, run) => `${jobPath(job)}/runs/${encodeURIComponent(run)}`;
const link = (href, ...text) => el("a", { href }, ...text);

function follow(href, event) {
  const outer = parent.document.createElement("a");
  outer.href = new URL(href, location).href;
  outer.target = event.ctrlKey || event.metaKey ? "_blank" : "_self";
  parent.document.body.append(outer);
  outer.click();
  outer.remove();
}

addEventListener("click", (event) => {
  const clicked = event.target.closest?.("a[href]");
  if (!clicked || parent === window) return;
  event.preventDefault();
  follow(clicked.href, event);
});

// --- Charts, in Airflow's theme: what was chosen there, else the system's

const drawn = new Map();
const system = matchMedia("(prefers-color-scheme: dark)");

function theme() {
  const chosen = localStorage.getItem("theme");
  document.documentElement.classList.toggle("dark", chosen === "dark" || (chosen !== "light" && system.matches));
  for (const draw of drawn.values()) draw();
}
addEventListener("storage", theme);
system.addEventListener("change", theme);
theme();

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`);

function hatch(name) { // so that colour is not the only sign
  const context = el("canvas", { width: 6, height: 6 }).getContext("2d");
  context.strokeStyle = colour(name);
  context.lineWidth = 1.6;
  for (const shift of [-6, 0, 6]) { context.moveTo(shift, 6); context.lineTo(shift + 6, 0); }
  context.stroke();
  return context.createPattern(context.canvas, "repeat");
}

// `make` gives labels, datasets and options in the colours of the moment.
function chart(canvas, label, make) {
  canvas.setAttribute("aria-label", label);
  drawn.set(canvas.id, () => {
    if (!window.Chart || !canvas.isConnected) return;
    const { labels, datasets, options: { plugins, scales, ...options } } = make();
    Object.assign(Chart.defaults, { color: colour("muted"), borderColor: colour("line") });
    Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
    Chart.getChart(canvas)?.destroy();
    new Chart(canvas, {
      type: "bar",
      data: { labels, datasets },
      options: {
        animation: false, maintainAspectRatio: false, interaction: { mode: "index", intersect: false }, ...options,
        plugins: { legend: { display: false }, ...plugins },
        scales: {
          x: { grid: { display: false }, ticks: { maxRotation: 0, autoSkipPadding: 16 }, ...scales.x },
          y: { beginAtZero: true, border: { display: false }, ...scales.y, ticks: { maxTicksLimit: 5, callback: brief, ...scales.y?.ticks } },
        },
      },
    });
  });
  drawn.get(canvas.id)();
}

const bars = (label, data, more) => ({ label, data, backgroundColor: colour("bars"), categoryPercentage: 0.9, barPercentage: 0.95, ...more });
const line = (label, data, name, more) => ({
  type: "line", label, data, borderColor: colour(name), backgroundColor: colour(name), borderWidth: 2, pointRadius: 0,
  borderDash: name === "dashed" ? [5, 4] : [], ...more,
});

// --- Data

async function read(group, parameters = {}) {
  const response = await fetch(`data/${group}?${new URLSearchParams(parameters)}`).catch(() => null);
  const answer = await response?.json().catch(() => null);
  if (response?.ok && answer) return answer;
  const problem = [401, 403].includes(response?.status)
    ? "Your login has ended, or may not see the runs of the analytics jobs: log in to Airflow again, and reload this page."
    : answer?.problem ?? "Airflow does not answer: look at the log of its api-server, and reload this page.";
  $("problem").textContent = problem;
  $("problem").hidden = false;
  $("verdict").textContent = "";
  document.querySelector("main").hidden = true;
  return new Promise(() => {}); // nothing else is shown
}

// --- Alerts and jobs

async function status() {
  // Airflow's own word on the jobs, as far as this user may see them.
  const known = fetch("../api/v2/dags?tags=analytics&limit=100").then((response) => response.json()).catch(() => null);
  const { alerts, jobs, runs } = await read("status");
  const dags = (await known)?.dags;
  const open = alerts.rows ?? [];
  const names = [...new Set([...Object.keys(JOBS), ...(runs.rows ?? []).map((run) => run.job)])];
  const states = names.map((job) => ({
    job,
    runs: (runs.rows ?? []).filter((run) => run.job === job),
    summary: jobs.rows?.find((row) => row.job === job),
    dag: dags ? dags.find((dag) => dag.dag_id === job) ?? null : undefined,
  }));
  $("alerts").hidden = !open.length;
  $("alerts-title").textContent = plural(open.length, "open alert");
  $("alerts-list").replaceChildren(...open.map(alertItem));
  const headers = ["Job", "Last run", "Last success", "Next run", "Durations of the last 30 runs", "Last, median", "Failed in 30 days"];
  $("jobs").replaceChildren(table(headers, states.map(jobRow)));
  for (const { job, runs } of states) if (runs.length) drawDurations(job, runs);

  const failing = states.filter(({ runs }) => runs.findLast((run) => run.outcome !== "running")?.outcome === "failed");
  const named = (found) => found.length === states.length ? "every job" : found.map(({ job }) => job).join(", ");
  const unknown = named(states.filter(({ runs }) => !runs.length)), paused = named(states.filter(({ dag }) => dag?.is_paused));
  const bad = [
    ...new Set([alerts, jobs, runs].map((result) => result.problem).filter(Boolean)),
    ...(open.length ? [plural(open.length, "open alert")] : []), ...failing.map(({ job }) => `the last run of ${job} failed`),
  ].join("; ");
  const good = unknown || paused ? "No alert is open" : "✓ Everything is all right: no open alert, and the last run of each job succeeded";
  $("verdict").className = bad ? "bad" : unknown || paused ? "" : "good";
  $("verdict").textContent = [
    bad ? `✗ ${bad[0].toUpperCase()}${bad.slice(1)}` : good, unknown && `no run recorded yet: ${unknown}`, paused && `paused: ${paused}`,
  ].filter(Boolean).join("; ");
}

function alertItem(alert) {
  const job = JOB_OF_ALERT[alert.condition] ?? (JOBS[alert.subject] && alert.subject);
  const told = alert.sent_at ? ["; people were told ", when(alert.sent_at)] : ["; nobody was told yet"];
  return el("li", {},
    el("strong", {}, `⚠ ${alert.condition.replaceAll("_", " ")}: `), alert.message,
    el("small", {}, "Open since ", when(alert.opened_at), ...told, ...(job ? [". See ", link(jobPath(job), job)] : [])));
}

function jobRow({ job, runs, summary, dag }) {
  const last = runs.at(-1);
  const signs = { success: "✓ Succeeded, started ", failed: "✗ Failed, started ", running: "… Running, started " };
  const next = () => {
    if (!dag) return dag === null ? "Not in Airflow, or not for you to see" : "–";
    if (dag.is_paused) return el("span", { className: "bad" }, "Paused: it does not run");
    const moment = dag.next_dagrun_run_after;
    if (!moment) return "Not scheduled";
    const minutes = (Date.now() - new Date(moment)) / 60e3;
    return el("span", { className: minutes > 5 ? "bad" : "" }, minutes > 5 ? "Late: due " : minutes > 0 ? "Due " : "", when(moment));
  };
  return [
    el("span", {}, link(jobPath(job), job), el("small", {}, JOBS[job] ?? "")),
    last
      ? el("span", {}, link(runPath(job, last.run_id), signs[last.outcome], when(last.started_at)),
        last.problem && el("small", { className: "bad" }, last.problem))
      : el("span", {}, "Never: ", link(jobPath(job), "unpause or trigger it")),
    summary?.success_at ? link(runPath(job, summary.success_run_id), when(summary.success_at)) : "–",
    next(),
    last ? el("div", { className: "plot" }, el("canvas", { id: `durations-${job}`, role: "img" })) : "–",
    last ? `${took(last.outcome === "running" ? null : last.seconds)}, ${took(summary?.median_seconds)}` : "–",
    summary?.ended ? `${count(summary.failed)} of ${count(summary.ended)} (${(100 * summary.failed / summary.ended).toFixed(1)} %)` : "–",
  ];
}

function drawDurations(job, runs) {
  const failed = (run) => run.outcome === "failed";
  chart($(`durations-${job}`), `Durations of the last ${plural(runs.length, "run")}, ${count(runs.filter(failed).length)} failed`, () => ({
    labels: runs.map((run) => new Date(run.started_at).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" })),
    datasets: [bars("Duration", runs.map((run) => run.seconds ?? 0), {
      minBarLength: 4, borderColor: colour("bad"), borderWidth: runs.map((run) => failed(run) ? 1 : 0),
      backgroundColor: runs.map((run) => failed(run) ? hatch("bad") : run.outcome === "running" ? hatch("bars") : colour("bars")),
    })],
    options: {
      scales: { x: { display: false }, y: { display: false } },
      plugins: { tooltip: { displayColors: false, callbacks: { label: ({ raw, dataIndex }) => `${runs[dataIndex].outcome}, ${took(raw)}` } } },
      onClick: (event, [bar]) => bar && follow(runPath(job, runs[bar.index].run_id), event.native),
    },
  }));
}

// --- Traffic

const shown = { website: "", days: [], websites: [], sessions: {}, visitors: null, chosen: null };

async function traffic() {
  if (!$("range").reportValidity()) return;
  const range = { from_day: $("from").value, to_day: $("to").value };
  const website = shown.website ? { website: shown.website } : {};
  const asked = shown.asked = {};
  let day = null;
  shown.visitors = null;
  // First what is aggregated, at once; then also the days that are counted now, which may take a while.
  for (const live of [false, true]) {
    const answer = await read("traffic", { ...range, ...website, live });
    if (asked !== shown.asked) return; // something else was chosen meanwhile
    shown.sessions = answer.open_sessions;
    if (answer.traffic.rows) showTraffic(answer.traffic.rows, range, live);
    const { problem } = answer.traffic;
    if (problem) $("traffic-note").textContent = `${live ? "Without the days that are not aggregated yet. " : ""}${problem}`;
    const newest = answer.traffic.rows?.findLast((row) => row.date)?.date;
    if (!day && (newest || live)) showDay(day = shown.chosen ?? newest ?? range.to_day);
  }
  const { visitors } = await read("visitors", range);
  if (asked !== shown.asked) return;
  shown.visitors = visitors;
  showWebsites();
}

function showTraffic(rows, range, live) {
  const found = new Map(rows.filter((row) => row.date).map((row) => [row.date, row]));
  const days = shown.days = [];
  for (let date = noon(range.from_day); iso(date) <= range.to_day; date = new Date(+date + DAY)) {
    days.push(found.get(iso(date)) ?? { date: iso(date), pageviews: 0, sessions: 0, visitors: 0, is_live: true });
  }
  shown.websites = rows.filter((row) => row.website_id);
  showWebsites();
  $("traffic-title").textContent = shown.website ? `Website ${shown.website}` : "All websites";
  const hatched = [...found.values()].some((day) => day.is_live) ? " Hatched: not over or not aggregated yet, counted just now." : "";
  $("traffic-note").replaceChildren(...(!live ? [] : found.size ? ["Click a day for its top pages and referrers.", hatched]
    : ["No traffic. If the websites have visitors, look whether the application writes to analytics_event; then run ",
      link(jobPath(AGGREGATE), AGGREGATE), "."]));
  $("traffic-shown").hidden = live && !found.size;
  // A line down to the day that has only begun would look like a loss.
  const column = (name) => days.map((day) => day.date < iso(new Date()) || name === "pageviews" ? day[name] : null);
  chart($("traffic"), `Pageviews, sessions and visitors of ${plural(days.length, "day")}; the numbers are in the table below`, () => ({
    labels: days.map((day) => short(day.date)),
    datasets: [
      line("Sessions", column("sessions"), "solid"), line("Visitors", column("visitors"), "dashed"),
      bars("Pageviews", column("pageviews"), { backgroundColor: days.map((day) => day.is_live ? hatch("bars") : colour("bars")) }),
    ],
    options: {
      scales: {},
      plugins: { legend: { align: "end", reverse: true, labels: { usePointStyle: true, generateLabels: legend } } },
      onClick: (event, [bar]) => bar && chooseDay(days[bar.index].date),
    },
  }));
  const choose = (day) => el("button", { type: "button", className: "plain", onclick: () => chooseDay(day) }, long(day));
  $("traffic-table").replaceChildren(table(["Day", "Pageviews", "Sessions", "Visitors"],
    days.toReversed().map((day) => [choose(day.date), day.pageviews, day.sessions, day.visitors])));
}

function legend(chart) {
  return Chart.defaults.plugins.legend.labels.generateLabels(chart).map((label) => label.text === "Pageviews"
    ? { ...label, pointStyle: "rect", fillStyle: colour("bars") }
    : { ...label, pointStyle: "line", lineDash: chart.data.datasets[label.datasetIndex].borderDash });
}

function showWebsites() {
  const { rows: sessions, problem } = shown.sessions;
  const open = (website) => sessions && sum(sessions.filter((row) => !website || row.website_id === website), "sessions");
  $("open-sessions").textContent = problem ?? `${plural(open(""), "open session")} now, ${count(sum(sessions, "idle"))} of them idle`;
  const all = { website_id: "", pageviews: sum(shown.websites, "pageviews"), sessions: sum(shown.websites, "sessions") };
  const visitors = (website) => !shown.visitors ? WAIT
    : shown.visitors.rows && sum(shown.visitors.rows.filter((row) => !website || row.website_id === website), "visitors");
  const list = [all, ...shown.websites];
  const choose = (website) => el("button", {
    type: "button", className: "plain", ariaPressed: String(website === shown.website),
    onclick: () => { shown.website = website; traffic(); },
  }, website || "All websites");
  const focused = $("websites").contains(document.activeElement);
  $("websites").replaceChildren(table(["Website", "Pageviews", "Sessions", "Visitors", "Open now"],
    list.map(({ website_id: website, pageviews, sessions }) => [
      choose(website), pageviews, sessions, visitors(website), open(website)]),
    { chosen: list.findIndex((row) => row.website_id === shown.website) }));
  if (focused) $("websites").querySelector("[aria-pressed=true]")?.focus();
}

function chooseDay(day) {
  shown.chosen = day;
  showDay(day);
}

async function showDay(day) {
  $("day").value = day;
  const website = shown.website ? { website: shown.website } : {};
  const live = shown.days.find((row) => row.date === day)?.is_live ?? true;
  const { rows, problem } = (await read("day", { to_day: day, ...website, live })).top_items;
  if ($("day").value !== day) return;
  $("day-title").textContent = `${long(day)}, ${shown.website ? `website ${shown.website}` : "all websites"}`;
  const ofOne = Boolean(shown.website);
  const list = (kind, name) => {
    const items = rows.filter((row) => row.kind === kind);
    if (!items.length) return note(`No ${kind} is known of this day.`);
    return table([name, ...(ofOne ? [] : ["Website"]), "Pageviews"],
      items.map((row) => [row.item, ...(ofOne ? [] : [row.website_id]), row.pageviews]), { caption: `Top ${kind}s` });
  };
  $("items").replaceChildren(...(rows ? [list("page", "Page"), list("referrer", "Referrer")] : [note(problem)]));
}

// --- What the database holds

// A panel with a number, a note, a chart and its table; `show` gives them for the rows of a query, and for the other
// results of its group.
function panel(id, title, reading, show) {
  const canvas = el("canvas", { id, role: "img" });
  const text = note("Loading …"), number = el("p", { className: "big" }), numbers = el("div", { className: "scroll" });
  const plot = el("div", { className: "plot" }, canvas), details = el("details", {}, el("summary", {}, "Numbers"), numbers);
  $("panels").append(el("section", {}, el("h2", {}, title), number, plot, text, details));
  reading.then((answer) => {
    const { rows, problem } = answer[id];
    const content = problem ? { note: [problem] } : show(rows, answer);
    number.textContent = content.number ?? "–";
    text.replaceChildren(...content.note);
    plot.hidden = details.hidden = !content.table;
    if (!content.table) return;
    numbers.replaceChildren(table(...content.table));
    chart(canvas, `${title}: ${number.textContent}; the numbers are in the table below`, content.chart);
  });
}

function rawEvents(rows, { anomalies }) {
  const events = sum(rows, "events"), expired = sum(rows, "expired");
  const odd = anomalies.problem ? [" ", anomalies.problem] : anomalies.rows.map(({ website_id: website, events }) =>
    ` Website ${website}: ${plural(events, "event")} with a time that no calendar has; nothing counts or deletes them.`);
  if (!events) return { number: "0", note: ["There is none. Look whether the application writes to analytics_event, and where search_path leads.", ...odd] };
  const age = (weeks) => weeks >= 104 ? "2 years or more" : `${weeks} to ${weeks + 1} weeks`;
  return {
    number: count(events),
    note: [
      ...(expired
        ? [`${count(expired)} past the cutoff of retention (hatched): the next run of `, link(jobPath(ARCHIVE), ARCHIVE), " deletes them."]
        : ["None is past the cutoff of retention."]),
      ...odd,
    ],
    table: [["Age", "Events", "Past the cutoff"], rows.map((row) => [age(row.weeks), row.events, row.expired])],
    chart: () => ({
      labels: rows.map((row) => row.weeks),
      datasets: [
        bars("Kept", rows.map((row) => row.events - row.expired)),
        bars("Past the cutoff", rows.map((row) => row.expired), { backgroundColor: hatch("bad"), borderColor: colour("bad"), borderWidth: 1 }),
      ],
      options: {
        scales: { x: { stacked: true, title: { display: true, text: "weeks old" } }, y: { stacked: true } },
        plugins: { tooltip: { callbacks: { title: ([item]) => age(rows[item.dataIndex].weeks) } } },
      },
    }),
  };
}

function databaseSize(rows) {
  const sizes = rows.filter((row) => row.bytes !== null), forecast = rows.filter((row) => row.forecast !== null);
  const unit = 1024 ** Math.floor(Math.log(Math.max(...rows.map((row) => row.bytes ?? row.forecast))) / Math.log(1024)); // for round ticks
  const points = (list, column) => list.map((row) => ({ x: row.day, y: row[column] / unit }));
  return {
    number: bytes(sizes.at(-1).bytes) + (forecast.length ? `, ${bytes(forecast.at(-1).forecast)} in 8 weeks` : ""),
    note: [forecast.length ? "Dashed: a straight line through the last 8 weeks. " : "A forecast needs a week of sizes, which the jobs measure. ",
      "A DELETE gives its space back to PostgreSQL, which fills it again, and not to the disk."],
    table: [["Day", "Size"], sizes.toReversed().map((row) => [long(row.day), bytes(row.bytes)])],
    chart: () => ({
      datasets: [
        line("Size", points(sizes, "bytes"), "solid", { pointRadius: sizes.length > 1 ? 0 : 3 }),
        line("Forecast", points(forecast, "forecast"), "dashed"),
      ],
      options: {
        interaction: { mode: "nearest", axis: "x", intersect: false },
        scales: { x: { type: "time", time: { minUnit: "day", tooltipFormat: "d MMM yyyy" } }, y: { ticks: { callback: (value) => bytes(value * unit) } } },
        plugins: { tooltip: { callbacks: { label: ({ dataset, raw }) => `${dataset.label}: ${bytes(raw.y * unit)}` } } },
      },
    }),
  };
}

function deletedRows(rows) {
  if (!rows.length) return { note: ["No run is recorded yet. ", link(jobPath(ARCHIVE), ARCHIVE), " is paused until somebody unpauses it."] };
  const last = rows.findLast((row) => row.run_ids.length);
  const runs = (ids) => el("span", {}, ...ids.flatMap((run, index) => [index ? ", " : "", link(runPath(ARCHIVE, run), `run ${index + 1}`)]));
  return {
    number: `${count(last.rows_deleted)} in the week from ${short(last.monday)}`,
    note: ["Events and sessions past their retention. Daily statistics stay for ever."],
    table: [["Week from", "Rows", "Runs"], rows.toReversed().map((row) => [long(row.monday), row.rows_deleted, runs(row.run_ids)])],
    chart: () => ({
      labels: rows.map((row) => short(row.monday)),
      datasets: [bars("Rows deleted", rows.map((row) => row.rows_deleted))],
      options: {
        scales: {},
        onClick: (event, [bar]) => bar && rows[bar.index].run_ids.length && follow(runPath(ARCHIVE, rows[bar.index].run_ids.at(-1)), event.native),
      },
    }),
  };
}

// --- The page

addEventListener("DOMContentLoaded", () => {
  const choose = () => {
    $("to").value = iso(new Date());
    $("from").value = iso(new Date(Date.now() - ($("preset").value - 1) * DAY));
  };
  choose();
  $("preset").onchange = () => { if ($("preset").value) { choose(); traffic(); } };
  for (const id of ["from", "to"]) {
    $(id).onchange = () => {
      $("preset").value = "";
      $("to").min = $("from").value;
      $("from").min = $("to").value && iso(new Date(noon($("to").value) - 1100 * DAY)); // one bar a day is enough
      traffic();
    };
  }
  $("day").onchange = () => { if ($("day").value) chooseDay($("day").value); };
  $("reload").onclick = () => location.reload();
  const missing = () => $("traffic-note").after(note("The charts need the Python package chartkick where the api-server runs."));
  document.head.append(el("script", { src: $("library").href, onload: theme, onerror: missing }));
  traffic();
  const jobs = status(); // what follows can wait for it
  const storage = jobs.then(() => read("storage"));
  panel("raw_events", "Raw events by age", jobs.then(() => read("raw")), rawEvents);
  panel("database_size", "Database size", storage, databaseSize);
  panel("deleted_rows", "Rows deleted per week", storage, deletedRows);
});
