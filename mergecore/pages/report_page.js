/* The page of a run: fills the template from the run's data and keeps charts, sliders and the chosen point together.
   Names are data: they enter the page as text, never as markup. */

const run = JSON.parse(byId("run-data").textContent);

run.texts = run.front.coefficients.map((_, index) => pointText(run, index));
run.utilities = utilities(run.front[run.basis], run.tasks);
run.verifiedUtilities = utilities(run.front.real, run.tasks);
run.bestSingles = bestSingles(run.references.filter((reference) => reference.kind === "model"), run.models, run.tasks);

function selector(label, names, value, onChange) {
  const select = el("select", {}, ...names.map((name, index) => el("option", { value: index, text: shorten(name, 60) })));
  select.value = value;
  select.addEventListener("change", () => onChange(Number(select.value)));
  return el("label", { text: label }, select);
}

function header() {
  document.title = `${shorten(run.name, 80)} · Pareto front`;
  byId("name").textContent = run.name;
  byId("name").classList.toggle("long", run.name.length > 70);
  const counts = `${count((run.routers ?? run).models.length, "model")}, ${count(run.tasks.length, "task")}`;
  byId("kind").textContent = `Pareto front of a model merge · ${run.method ? `${run.method} · ` : ""}${counts}`;
  byId("sentence").textContent = run.sentence;
  byId("how-to-read").textContent = run.basis === "predicted"
    ? "Each point is one merged model, and no point on the front can be improved on one task without losing on another. " +
      "Hollow points are predictions, filled points were measured on the real merged model; where the two lie apart, the measured one counts."
    : "Each point is one merged model, and no point on the front can be improved on one task without losing on another. " +
      (run.routers ? "The routers made it of a preference over the tasks, and every point was measured; " : "Every point was measured on the real merged model; ") +
      "nothing on this front is a prediction.";
}

function tiles() {
  const figures = run.figures;
  const r2 = run.surrogates.filter((surrogate) => isNumber(surrogate.heldOutR2));
  const range = extent(r2.map((surrogate) => surrogate.heldOutR2));
  const weakest = range && r2.find((surrogate) => surrogate.heldOutR2 === range[0]);
  const points = run.front.coefficients.length;
  byId("tiles").append(
    tile("Evaluations", figures.vectors.toLocaleString("en"), evaluationNote(figures)),
    tile("Wall time", duration(figures.seconds), figures.longestStage ? `longest: ${figures.longestStage[0]}, ${duration(figures.longestStage[1])}` : ""),
    tile("Hypervolume", format(figures.hypervolume), figures.hypervolumeOf + (figures.referencePoint.length ? `, reference point (${figures.referencePoint.map((value) => format(value, 3)).join(", ")})` : "")),
    tile("Points on the front", points.toLocaleString("en"), run.basis === "real" ? "all measured" : `${run.verified.length.toLocaleString("en")} verified on real merges`));
  if (run.surrogates.length) {
    byId("tiles").append(tile("Held-out R²", range ? [...new Set(range.map((value) => format(value, 3)))].join("–") : "–",
      weakest ? (run.surrogates.length > 1 ? `of the surrogates; lowest: ${weakest.task}` : "of the surrogate") : "not measured"));
  }
}

function evaluationNote({ pairs, known, failed, ended }) {
  return [`${pairs.toLocaleString("en")} metrics measured`, ...(known ? [`${known.toLocaleString("en")} known from earlier runs`] : []),
    failed ? `${failed.toLocaleString("en")} failed` : "none failed", ...(ended ? [ended] : [])].join(", ");
}

const state = { raw: [], chosen: -1, pinned: -1, verifiedOnly: false, drawn: -1, mode: "", pair: [0, 1], zoom: false };
let drawFront = () => {};

function front() {
  if (!run.front.coefficients.length) {
    byId("front").replaceChildren(byId("front-title"), el("p", { text: "The run found no point: every evaluation failed, or none was made." }));
    return;
  }
  frontToolbar();
  sliders();
  update();
  byId("front-table").addEventListener("toggle", frontTable, { once: true });
  drawFront = chart(byId("front-chart"), frontFigure);
  byId("front-chart").on("plotly_click", ({ points: [point] }) => {
    if (!Number.isInteger(point.customdata)) return;
    state.pinned = point.customdata;
    update();
  });
}

function frontFigure(look) {
  state.drawn = state.chosen;
  if (state.mode === "parallel") return parallelFigure(run, state.chosen, look, { zoom: state.zoom });
  const dims = { solid: [0, 1, 2], pair: state.pair, single: [0] }[state.mode];
  return spaceFigure(run, dims, state.chosen, look, { zoom: state.zoom });
}

function hasWebGL() {
  const context = document.createElement("canvas").getContext("webgl");
  context?.getExtension("WEBGL_lose_context")?.loseContext();
  return Boolean(context);
}

function frontToolbar() {
  const T = run.tasks.length;
  const modes = T === 1 ? ["single"] : T === 2 ? ["pair"] : T === 3 && hasWebGL() ? ["solid", "pair", "parallel"] : ["parallel", "pair"];
  const names = { solid: "3-D", pair: "Two tasks", parallel: "All tasks" };
  const bar = byId("front-toolbar");
  const buttons = modes.length < 2 ? [] : modes.map((mode) => el("button", { type: "button", text: names[mode] }));
  const pick = (which) => (index) => { state.pair[which] = index; drawFront(); };
  const taskNames = run.tasks.map((task) => task.name);
  const pairs = T > 2 ? [selector("across", taskNames, 0, pick(0)), selector("up", taskNames, 1, pick(1))] : [];
  const box = el("input", { type: "checkbox" });
  const zoom = el("label", {}, box, "zoom to the front");
  state.zoom = box.checked = frontIsSmall();
  box.addEventListener("change", () => { state.zoom = box.checked; drawFront(); });
  const show = (mode) => {
    state.mode = mode;
    buttons.forEach((button, index) => button.setAttribute("aria-pressed", String(modes[index] === mode)));
    pairs.forEach((node) => { node.hidden = mode !== "pair"; });
    zoom.hidden = mode === "solid" || mode === "single";
    byId("front-caption").textContent = { solid: "Drag to turn.", single: "",
      pair: T > 2 ? "Two tasks at a time: a point that looks beaten here is better on a task not shown." : "",
      parallel: "Each path is one merged model, each upright line one task, and up is better. The numbers are the worst and the best shown.",
    }[mode] + " Click a point to see how it is made.";
    drawFront();
  };
  buttons.forEach((button, index) => button.addEventListener("click", () => show(modes[index])));
  bar.append(...buttons, ...pairs, zoom);
  show(modes[0]);
}

/** Whether references and search lie so far out that the front would be a speck in the whole picture. */
function frontIsSmall() {
  if (run.front.coefficients.length < 3 || run.tasks.length < 2) return false;
  const near = run.front.predicted.concat(run.front.real);
  const all = near.concat(run.evaluations.metrics, run.references.map((reference) => reference.metrics));
  const size = (rows, t) => { const range = extent(rows.map((row) => row[t])); return range ? range[1] - range[0] : 0; };
  const shares = run.tasks.map((_, t) => size(near, t) / size(all, t)).filter((share) => share > 0);
  return shares.length > 0 && shares.reduce((sum, share) => sum + share, 0) / shares.length < 0.25;
}

function sliders() {
  const inputs = [];
  const set = (raw) => { inputs.forEach((input, t) => { input.value = raw[t]; }); read(); };
  const read = () => { state.raw = inputs.map((input) => Number(input.value)); state.pinned = -1; update(); };
  run.tasks.forEach((task, t) => {
    const input = el("input", { type: "range", min: 0, max: 100, step: 1, id: `weight-${t}` });
    input.value = 50;
    inputs.push(input);
    input.addEventListener("input", read);
    const best = el("button", { type: "button", text: "Best", title: "Only this task counts", "aria-label": `Best for ${shorten(task.name, 60)}` });
    best.addEventListener("click", () => set(run.tasks.map((_, other) => (other === t ? 100 : 0))));
    byId("sliders").append(el("div", { class: "slider" }, el("label", { for: `weight-${t}`, text: task.name, title: task.name }),
      el("output", { for: `weight-${t}`, id: `share-${t}` }), input, best));
  });
  byId("equal").addEventListener("click", () => set(run.tasks.map(() => 50)));
  byId("preferences").addEventListener("submit", (event) => event.preventDefault());
  byId("copy").addEventListener("click", copyCommand);
  byId("verified-only").parentElement.hidden = (run.basis === "real" && !run.routers) || !run.verified.length;
  if (run.routers) {
    byId("preferences-note").textContent = "Weights are shared out so that they add up to 1: the routers can make a network of any such preference. The nearest one on the front is shown.";
    byId("verified-only-text").textContent = "only measured preferences, by what was measured";
    byId("coordinates-title").textContent = "Preference";
  }
  byId("verified-only").addEventListener("change", (event) => { state.verifiedOnly = event.target.checked; read(); });
  state.raw = inputs.map(() => 50);
  if (run.tasks.length === 1) {
    byId("preferences").hidden = true;
    byId("preferences").parentElement.classList.add("single");
  }
}

let frame = 0;

function update() {
  const weights = weightsOf(state.raw);
  state.chosen = state.pinned >= 0 ? state.pinned : chosenBy(weights);
  weights.forEach((weight, t) => {
    byId(`share-${t}`).textContent = weight.toFixed(3);
    byId(`weight-${t}`).setAttribute("aria-valuetext", `weight ${weight.toFixed(3)}`);
  });
  chosenPoint(weights);
  cancelAnimationFrame(frame);
  frame = requestAnimationFrame(() => state.drawn !== state.chosen && drawFront());
}

/** Without routers, or of measured points alone, what does best by the weights; else the weights are the preference. */
function chosenBy(weights) {
  if (run.routers && !state.verifiedOnly) return nearestPreference(run.front.coefficients, run.utilities, weights);
  return choose(state.verifiedOnly ? run.verifiedUtilities : run.utilities, weights);
}

/** Whether the chosen point only stands for the network at the weights, which was not measured. */
const standsIn = (weights) => run.routers && state.pinned < 0 && !state.verifiedOnly && !isPreference(run.front.coefficients[state.chosen], weights);

function chosenCommand(weights) {
  if (state.pinned < 0) return pickCommand(run.folder, run.tasks, weights, state.verifiedOnly);
  if (run.routers) return pickCommand(run.folder, run.tasks, writtenPreference(run.front.coefficients[state.pinned]), false);
  return boundsCommand(run.folder, run.tasks, run.front[run.basis], state.pinned);
}

function choiceNote(weights) {
  const single = run.front.coefficients.length === 1;
  if (!run.routers) return single ? "The front has a single point: every preference leads to this model." : nearestVerified(state.chosen);
  return (single ? "The front has a single point: no other measured preference is better on any task. " : "") +
    (standsIn(weights) ? "No point of the front is at exactly your weights: the numbers are those of the nearest preference on it, the command is for yours." : "");
}

function chosenPoint(weights) {
  const p = state.chosen;
  if (p < 0) {
    byId("choice-title").textContent = "No point of the front has a number for every task, so none can be chosen.";
    return;
  }
  const points = run.front.coefficients.length;
  byId("choice-title").textContent = `${state.pinned >= 0 ? "Clicked" : standsIn(weights) ? "Nearest preference" : "Chosen"}: point ${p + 1} of ${points}` + (run.verified.includes(p) ? ", verified" : ", predicted only");
  const values = run.tasks.map((task, t) => `${shorten(task.name, 40)} ${format(run.front[run.basis][p][t])}`);
  byId("choice-live").textContent = `Point ${p + 1} of ${points}: ${values.join(", ")}`;
  const kinds = [["predicted", "Predicted"], ["real", "Verified"], ["test", "Held-out data"]].filter(([kind]) => run.measured[kind]);
  const compared = run.bestSingles.some(isNumber);
  const bestCell = (value) => ({ ...numberCell(value), ...(!isNumber(value) && { title: "not every single model was measured" }) });
  const header = [{ text: "Task" }, ...kinds.map(([, text]) => ({ text, number: true })), ...(compared ? [{ text: "Best single model", number: true }] : [])];
  fillTable(byId("choice-metrics"), header, run.tasks.map((task, t) =>
    [{ text: task.name, title: `${task.metric}, ${better(task)}` }, ...kinds.map(([kind]) => numberCell(run.front[kind][p][t])), ...(compared ? [bestCell(run.bestSingles[t])] : [])]));
  coefficients(run.front.coefficients[p]);
  byId("choice-note").textContent = choiceNote(weights);
  const text = chosenCommand(weights);
  byId("command-title").textContent = text ? `The command for ${standsIn(weights) ? "the network at exactly your weights" : "this point"}; add --export and a folder to write the checkpoint`
    : `No preference and no bounds lead to just this point; its coefficients are in row ${p + 1} of front.csv`;
  byId("command").parentElement.hidden = !text;
  byId("command").textContent = text;
}

/** For a point that was not measured itself: how far off the prediction of its nearest measured neighbour was. */
function nearestVerified(p) {
  if (run.basis === "real" || run.verified.includes(p)) return "";
  if (!run.verified.length) return "No point of this front was verified: these numbers are predictions.";
  const ranges = run.tasks.map((_, t) => extent(run.front.predicted.map((row) => row[t])) || [0, 0]);
  const distance = (q) => run.tasks.reduce((sum, _, t) => sum + ((run.front.predicted[q][t] - run.front.predicted[p][t]) / (ranges[t][1] - ranges[t][0] || 1)) ** 2, 0);
  const nearest = run.verified.reduce((best, q) => (distance(q) < distance(best) ? q : best));
  const gaps = run.tasks.map((_, t) => run.front.real[nearest][t] - run.front.predicted[nearest][t]).filter(isNumber);
  if (!gaps.length) return "";
  const widest = gaps.reduce((most, gap) => (Math.abs(gap) > Math.abs(most) ? gap : most));
  return `Not verified itself. At the nearest verified point, ${nearest + 1}, measurement and prediction differ by at most ${format(Math.abs(widest))}.`;
}

function coefficients(values) {
  const [low, high] = extent(run.front.coefficients.flat().concat(0, 1));
  const place = (value) => (100 * (value - low)) / (high - low);
  byId("choice-coefficients").replaceChildren(...run.models.map((model, n) => {
    const bar = el("div", { class: "bar" });
    bar.style.left = `${place(Math.min(0, values[n]))}%`;
    bar.style.width = `${Math.abs(place(values[n]) - place(0))}%`;
    return el("div", { class: "coefficient" }, el("span", { class: "clamp", text: model, title: model }), el("div", { class: "track", "aria-hidden": "true" }, bar),
      el("span", { class: "value", text: values[n].toFixed(4).replace("-", "−") }));
  }));
}

async function copyCommand() {
  const done = (text) => { byId("copied").textContent = text; byId("copy").textContent = text; setTimeout(() => { byId("copy").textContent = "Copy"; }, 1600); };
  try {
    await navigator.clipboard.writeText(byId("command").textContent);
    done("Copied");
  } catch { // a sandboxed viewer allows no clipboard: leave the command selected
    getSelection().selectAllChildren(byId("command"));
    done(document.execCommand("copy") ? "Copied" : "Selected");
  }
}

function frontTable() {
  const limit = 200;
  const kinds = [["predicted", "predicted"], ["real", "verified"], ["test", "held-out"]].filter(([kind]) => run.measured[kind]);
  const header = [{ text: "Point" }, ...run.models.map((model) => ({ text: `${run.routers ? "r" : "c"}.${shorten(model, 40)}`, number: true })),
    ...run.tasks.flatMap((task) => kinds.map(([, word]) => ({ text: `${shorten(task.name, 40)}, ${word}`, number: true })))];
  const rows = run.front.coefficients.slice(0, limit).map((values, p) => [{ text: String(p + 1) }, ...values.map((value) => numberCell(value, 3)),
    ...run.tasks.flatMap((_, t) => kinds.map(([kind]) => numberCell(run.front[kind][p][t])))]);
  const table = el("table");
  fillTable(table, header, rows);
  const box = byId("front-table").querySelector(".scroll");
  box.classList.add("tall-table");
  box.append(table);
  if (run.front.coefficients.length > limit) byId("front-table").append(el("p", { class: "muted", text: `The first ${limit} points; front.csv has all ${run.front.coefficients.length}.` }));
}

function surrogates() {
  if (!run.surrogates.length) {
    byId("surrogates-note").textContent = "This search measured real merged models throughout, so there is no prediction to judge.";
    byId("surrogates-table").remove();
    return;
  }
  byId("surrogates-note").textContent = "R² is 1 for perfect predictions and 0 for no better than the average; both columns come from evaluations that the fit did not use. The error on the front is the mean distance between prediction and measurement at its verified points. " +
    "In the charts, points on the line were predicted exactly; grey points were left out of the fit, coloured points are verified points of the front.";
  const weak = (value) => (isNumber(value) && value < 0.7 ? { tag: "weak" } : {});
  fillTable(byId("surrogates-table"),
    [{ text: "Task" }, { text: "Link" }, { text: "Held-out R²", number: true }, { text: "PRESS R²", number: true }, { text: "Error on the front", number: true }, { text: "Samples", number: true }, { text: "Excluded", number: true }, { text: "Warnings" }],
    run.surrogates.map((surrogate) => [{ text: surrogate.task, title: surrogate.task }, { text: surrogate.link }, { ...numberCell(surrogate.heldOutR2, 3), ...weak(surrogate.heldOutR2) },
      { ...numberCell(surrogate.pressR2, 3), ...weak(surrogate.pressR2) }, numberCell(surrogate.gap), numberCell(surrogate.samples, 0), numberCell(surrogate.excluded, 0), { text: surrogate.warnings.join(" ") || "none" }]));
  for (const surrogate of run.surrogates) {
    const t = run.tasks.findIndex((task) => task.name === surrogate.task);
    if (t < 0 || !qualityFigure(run, surrogate, t, currentLook())) continue;
    const node = el("div", { class: "chart", role: "group", "aria-label": `Predicted against measured, ${shorten(surrogate.task, 60)}` });
    byId("surrogates-charts").append(node);
    chart(node, (look) => qualityFigure(run, surrogate, t, look));
  }
}

function progress() {
  const box = byId("progress-charts");
  const measured = run.evaluations.metrics.length > 0;
  const volumes = run.hypervolumeByRound.filter(isNumber).length > 1;
  box.classList.toggle("single", !(measured && volumes));
  if (!measured) byId("progress-toolbar").append(el("span", { class: "muted", text: "No evaluation is recorded." }));
  else {
    let t = 0;
    const node = box.appendChild(el("div", { class: "chart" }));
    const draw = chart(node, (look) => evaluationsFigure(run, t, look));
    if (run.tasks.length > 1) byId("progress-toolbar").append(selector("Task", run.tasks.map((task) => task.name), 0, (index) => { t = index; draw(); }));
  }
  if (volumes) chart(box.appendChild(el("div", { class: "chart" })), (look) => hypervolumeFigure(run, look));
}

function merges() {
  if (!run.tree.length) return;
  byId("merges").hidden = false;
  byId("merges-note").textContent = "Two by two, from the bottom to the top. A panel shows the metrics of a merge's two sides, of the left one to the right and of the right one upwards: " +
    "the predicted front, the samples in grey, and the point that was chosen. At the lines are the coefficients of the sides; below each model is its coefficient in the merge of all.";
  byId("merges-tree").append(tree(run.tree));
  treeTable(byId("merges-table").querySelector("table"), run.tree);
}

function tradeOff() {
  const note = byId("trade-off-note");
  const node = byId("trade-off-chart");
  const pairs = run.correlation.flatMap((row, i) => row.map((value, j) => ({ value, i, j })).filter(({ value, j }) => j > i && isNumber(value)));
  if (run.tasks.length < 2 || !pairs.length) {
    note.textContent = run.tasks.length < 2 ? "With one task there is nothing to trade off." : "Too few evaluations differ to say how the tasks move together.";
    node.remove();
    return;
  }
  const worst = pairs.reduce((least, pair) => (pair.value < least.value ? pair : least));
  const name = (t) => `“${shorten(run.tasks[t].name, 60)}”`;
  note.textContent = "How the tasks moved together over all evaluations, each turned so that more is better: negative means that what helps one costs the other. " +
    (worst.value < 0 ? `Strongest pull: ${name(worst.i)} against ${name(worst.j)}, ${worst.value.toFixed(2).replace("-", "−")}.` : "No pair pulls apart overall; a trade-off may still show near the front.");
  node.style.height = `${Math.min(560, 150 + 46 * run.tasks.length)}px`;
  node.style.maxWidth = `${260 + 90 * run.tasks.length}px`;
  chart(node, (look) => correlationFigure(run, look));
}

function details() {
  for (const id of ["config", "versions", "summary"]) byId(id).textContent = run.documents[id] || "Nothing is recorded.";
}

drawParts([["name", header], ["figures", tiles], ["front", front], ["merges", merges], ["routers", routers], ["surrogates", surrogates], ["progress", progress],
  ["trade-off", tradeOff], ["details", details]]);
