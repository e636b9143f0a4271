/* What PWE-MoE learned: routing weights by depth, metrics at equal and unit preferences, how the routers were trained.
   Names are data: they enter the page as text, never as markup. Shapes: T tasks, N models, G modules with a router. */

const SCALARISATIONS = { ls: "linear scalarisation", epo: "exact Pareto optimal search", mgda: "multiple gradient descent" };
const KINDS = { attention: "attention", mlp: "MLP" };

const preferenceName = (name, limit) => (name === "equal" ? "equal preference" : `only ${shorten(name, limit)}`);
const compact = (value) => (isNumber(value) ? new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 }).format(value) : "–");
const bytes = (value) => (value > 0 ? `${compact(value).replace(/[KMBT]$/, (unit) => ({ K: " k", M: " M", B: " G", T: " T" })[unit])}B` : "–");
const seriesColour = (index) => getComputedStyle(document.documentElement).getPropertyValue(`--series-${(index % 8) + 1}`).trim();

/** Up to seven numbers of modules or blocks, of which there are `last`. */
const numbers = (last) => Array.from({ length: last }, (_, i) => i + 1).filter((_, i) => i % Math.ceil(last / 7) === 0);

/** How far routing weights get from lambda, which all panels share as the ends of their colours. */
function reachOf({ routing, scaling }) {
  return Math.max(1e-6, ...Object.values(routing).flat(2).filter(isNumber).map((value) => Math.abs(value - scaling)));
}

/** One preference's routing weights: a row a model, a column a module, by depth. */
function routingFigure({ modules, models, routing, scaling }, name, reach, look) {
  const rows = models.map((_, n) => routing[name].map((weights) => weights[n]));
  const text = models.map((model, n) => modules.map((module, g) => `${plotText(module, 60)}<br>${plotText(model, 40)}: ${format(rows[n][g])}`));
  const data = [{ type: "heatmap", z: rows, text, hoverinfo: "text", zmin: scaling - reach, zmax: scaling + reach, showscale: false,
    xgap: modules.length > 30 ? 0 : 1, ygap: 1, x: modules.map((_, g) => g + 1), colorscale: [[0, look.low], [0.5, look.middle], [1, look.high]] }];
  const title = { text: plotText(preferenceName(name, 30), 36), font: { size: 13, color: look.text }, x: 0.02, xanchor: "left", y: 1, yanchor: "top", pad: { t: 6 } };
  return { data, layout: baseLayout(look, { title, dragmode: false, margin: { l: 10, r: 8, t: 30, b: 38 },
    xaxis: axis(look, "module, by depth", { showgrid: false, fixedrange: true, tickvals: numbers(modules.length) }),
    yaxis: { tickvals: models.map((_, n) => n), ticktext: models.map((model) => plotText(model, 14)), autorange: "reversed", automargin: true,
      showgrid: false, zeroline: false, fixedrange: true, ticks: "" } }) };
}

/** At each place the mean of the tenth of all values around it. */
function runningMean(values) {
  const half = Math.floor(values.length / 20);
  return values.map((_, i) => {
    const near = values.slice(Math.max(0, i - half), i + half + 1).filter(isNumber);
    return near.length ? near.reduce((sum, value) => sum + value, 0) / near.length : null;
  });
}

function lossFigure({ losses, loss_steps: steps }, look) {
  const data = Object.entries(losses).flatMap(([task, values], t) => {
    const line = { color: seriesColour(t), dash: t < 8 ? "solid" : "dot" };
    return [
      { type: "scatter", mode: "lines", x: steps, y: values, line: { ...line, width: 1 }, opacity: 0.3, hoverinfo: "skip", showlegend: false },
      { type: "scatter", mode: "lines", name: plotText(task, 20), x: steps, y: runningMean(values), line: { ...line, width: 2 },
        hovertemplate: `${plotText(task, 30)}<br>step %{x}: %{y:.4~g}<extra></extra>` },
    ];
  });
  return { data, layout: baseLayout(look, { xaxis: axis(look, "step"), yaxis: axis(look, "loss of a batch"), legend: LEGEND }) };
}

function dissimilarityFigure(kinds, measure, title, look) {
  const colours = { attention: look.verified, mlp: look.choice };
  const data = Object.entries(kinds).map(([kind, found]) => ({ type: "scatter", mode: "lines+markers", name: KINDS[kind], x: found.blocks.map((block) => block + 1),
    y: found[measure], text: found.modules.map((module, i) => `${plotText(module, 60)}<br>${format(found[measure][i])}`), hoverinfo: "text",
    line: { color: colours[kind], width: 2 }, marker: { size: 6, color: colours[kind] } }));
  return { data, layout: baseLayout(look, { showlegend: true, legend: LEGEND, xaxis: axis(look, "block, by depth", { tickvals: numbers(Math.max(...data.flatMap(({ x }) => x))) }), yaxis: axis(look, title, { exponentformat: "power" }) }) };
}

/** The colours of the routing weights, in words and as a bar. */
function routingScale({ scaling }, reach) {
  const label = (value) => value.toFixed(2).replace("-", "−");
  return el("div", { class: "colour-scale" }, el("span", { text: label(scaling - reach) }), el("span", { class: "bar", "aria-hidden": "true" }),
    el("span", { text: label(scaling + reach) }), el("span", { text: `in the middle λ = ${label(scaling)}, where every module starts` }));
}

function routingPanels(routers) {
  const reach = reachOf(routers);
  byId("routers-note").textContent = "Each module of the network has a router, which turns a preference into that module's own scaling coefficients, one for each model. " +
    "A panel shows them for one preference: a row is a model, a column a module, the first layers on the left.";
  byId("routers-scale").append(routingScale(routers, reach));
  for (const name of Object.keys(routers.routing)) {
    const node = el("div", { class: "chart", role: "group", "aria-label": `Routing weights, ${preferenceName(name, 60)}; the table below says the same` });
    node.style.height = `${80 + 24 * routers.models.length}px`;
    byId("routers-charts").append(node);
    chart(node, (look) => routingFigure(routers, name, reach, look));
  }
  const names = Object.keys(routers.routing);
  const show = (index) => fillTable(byId("routers-weights").querySelector("table"), [{ text: "Module" }, ...routers.models.map((model) => ({ text: shorten(model, 40), number: true }))],
    routers.modules.map((module, g) => [{ text: module, title: module }, ...routers.routing[names[index]][g].map((value) => numberCell(value))]));
  byId("routers-weights").querySelector(".toolbar").append(selector("Preference", names.map((name) => preferenceName(name, 60)), 0, show));
  show(0);
}

function preferenceTable({ table }) {
  const metrics = [...new Set(run.tasks.map((task) => task.metric))].map((metric) => shorten(metric, 30)).join(", ");
  byId("routers-table-note").textContent = `What the networks reach that the routers make of the equal preference and of each task alone: ${metrics} on ${run.measured.test ? "held-out data" : "the data of the search"}.`;
  fillTable(byId("routers-table"), [{ text: "Preference" }, ...run.tasks.map((task) => ({ text: shorten(task.name, 40) + arrow(task), title: `${task.metric}, ${better(task)}`, number: true }))],
    table.map((row, index) => [{ text: index ? preferenceName(row.preference, 60) : "equal", title: row.preference }, ...run.tasks.map((task) => numberCell(row[task.name]))]));
}

function trainingTiles(training, modules) {
  const way = SCALARISATIONS[training.scalarisation] || training.scalarisation;
  const fallbacks = training.fallbacks ? `; in ${training.fallbacks.toLocaleString("en")} of them linear scalarisation stood in` : "";
  byId("routers-tiles").append(
    tile("Trained parameters", training.parameters.toLocaleString("en"), `in ${count(modules.length, "router")}; ${compact(training.total_parameters)} with base and task vectors`),
    tile("Steps", training.steps.toLocaleString("en"), way + fallbacks),
    tile("Batch", training.batch_size.toLocaleString("en"), "labelled examples of each task a step"),
    tile("Training time", training.seconds > 0 ? duration(training.seconds) : "none", training.seconds > 0 ? `on ${training.device}` : "the routers were found, trained in an earlier run"),
    tile("Memory", bytes(training.peak_bytes), training.peak_bytes > 0 ? "the most that one worker used" : "not measured in this run"));
}

function routers() {
  const found = run.routers;
  if (!found) return;
  byId("routers").hidden = false;
  routingPanels(found);
  preferenceTable(found);
  trainingTiles(found.training, found.modules);
  chart(byId("routers-losses"), (look) => lossFigure(found.training, look));
  const kinds = found.dissimilarity?.kinds ?? {};
  if (!Object.keys(kinds).length) return;
  byId("routers-apart").hidden = false;
  byId("routers-apart-note").textContent = `Means over ${count(found.dissimilarity.pairs, "pair")} of models. The cosine distance is that of two task vectors, 1 where they stand at a right angle; ` +
    "the other is the Euclidean distance of two models' weights, as a root mean square per weight. What differs more has more to gain from a router.";
  for (const [measure, title] of [["cosine", "cosine distance of task vectors"], ["distance", "distance of weights"]]) {
    const node = el("div", { class: "chart", role: "group", "aria-label": `Attention and MLP modules by depth: ${title}` });
    byId("routers-apart-charts").append(node);
    chart(node, (look) => dissimilarityFigure(kinds, measure, title, look));
  }
}
