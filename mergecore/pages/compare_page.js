/* The page of a comparison: fills the template and keeps the number of models, the methods shown and charts together.
   Names are data: they enter the page as text, never as markup. */

const page = JSON.parse(byId("run-data").textContent);
const heatOf = (index) => page.heats[index];
const state = { heat: page.counts.length - 1, shown: new Set(page.methods.keys()), zoom: true };
const redrawCharts = [];

/** A heat's results with their method's name, kind and style; only the methods that are shown. */
function entriesOf(heat) {
  const styles = methodStyles(page.methods);
  return heat.results.filter(({ method }) => state.shown.has(method)).map((result) => ({ ...page.methods[result.method], ...result, style: styles[result.method] }));
}

function header() {
  document.title = `${shorten(page.name, 80)} · Merge methods`;
  byId("name").textContent = page.name;
  byId("name").classList.toggle("long", page.name.length > 70);
  byId("kind").textContent = ["Comparison of merge methods", count(page.methods.length, "method"), count(page.models.length, "model"), count(page.tasks.length, "task")].join(" · ");
  byId("sentence").textContent = page.sentences[0];
  byId("standing").textContent = page.sentences.slice(1).join(" ");
  byId("how-to-read").textContent = "All numbers were measured on real merged models, on " +
    (page.heldOut ? "held-out data; coefficients are chosen on the data of the search. " : "the data of the search, by which coefficients are chosen, too. ") +
    "Methods that merge nothing, such as the single models, are upper bounds and stand apart.";
}

function heats() {
  if (page.counts.length < 2) {
    byId("heats").hidden = true;
    return show(state.heat);
  }
  const buttons = page.counts.map((models, index) => {
    const button = el("button", { type: "button", text: String(models), "aria-label": count(models, "model") });
    button.addEventListener("click", () => show(index));
    return button;
  });
  byId("heats").append(el("span", { text: "Number of models" }), ...buttons);
  show(state.heat);
}

/** Fill everything that depends on the number of models. */
function show(index) {
  state.heat = index;
  byId("heats").querySelectorAll("button").forEach((button, place) => button.setAttribute("aria-pressed", String(place === index)));
  for (const [id, draw] of [["fronts", fronts], ["accuracy", accuracy], ["measures", measures]]) part(id, draw);
}

let drawFronts = null;

function fronts() {
  const heat = heatOf(state.heat);
  const T = heat.tasks.length;
  const models = count(page.counts[state.heat], "model");
  byId("fronts-title").textContent = T === 2 ? `Fronts and merges of ${models}` : `Merges of ${models}`;
  switches(heat);
  byId("fronts-caption").textContent = (T > 2 ? "Each path is one method at equal preference, each upright line one task, and up is better; thin pale paths are the fronts that were searched. The numbers are the worst and the best shown."
    : "Large marks are the methods at equal preference." + (T === 2 ? " Of a front that was searched, filled points were measured, and hollow ones are what its surrogates predict for the data of the search." : " Small ones are all else they measured."))
    + (heat.own.some(isNumber) ? " Dashed: the single models, each on its own task." : "");
  const far = el("input", { type: "checkbox" });
  far.checked = !state.zoom;
  far.addEventListener("change", () => { state.zoom = !far.checked; redrawCharts.forEach((draw) => draw()); });
  byId("fronts-toolbar").replaceChildren(...(hasFarOff(heat, entriesOf(heat)) ? [el("label", {}, far, "show what lies far off, too")] : []));
  if (drawFronts) drawFronts();
  else redrawCharts.push(drawFronts = chart(byId("fronts-chart"), frontsFigure));
}

function frontsFigure(look) {
  const heat = heatOf(state.heat);
  const node = byId("fronts-chart");
  const figure = heat.tasks.length > 2 ? parallelFigure : heat.tasks.length === 2 ? scatterFigure : rowsFigure;
  if (!heat.results.length) return { data: [], layout: baseLayout(look, { xaxis: { visible: false }, yaxis: { visible: false }, annotations: [{ text: "No method gave a result.", showarrow: false }] }) };
  return figure(page, heat, entriesOf(heat), look, { zoom: state.zoom, width: node.clientWidth, height: node.clientHeight });
}

/** The list of methods that charts show or hide. */
function switches(heat) {
  const present = new Set(heat.results.map(({ method }) => method));
  const styles = methodStyles(page.methods);
  const boxes = [];
  const row = (method, index) => {
    const box = el("input", { type: "checkbox", ...(!present.has(index) && { disabled: "" }) });
    box.checked = state.shown.has(index) && present.has(index);
    box.addEventListener("change", () => { state.shown[box.checked ? "add" : "delete"](index); redrawCharts.forEach((draw) => draw()); });
    boxes.push({ box, index, method });
    return el("label", { class: present.has(index) ? "switch" : "switch absent", title: method.name }, box, swatch(styles[index]), el("span", { class: "clamp", text: method.name }),
      ...(present.has(index) ? [] : [el("span", { class: "absence", text: "no result" })]));
  };
  const groups = [["Searched fronts", ({ search, bound }) => search && !bound], ["Merges", ({ search, bound }) => !search && !bound], ["Upper bounds", ({ bound }) => bound]];
  const rows = groups.flatMap(([title, belongs]) => {
    const labels = page.methods.flatMap((method, index) => (belongs(method) ? [row(method, index)] : []));
    return labels.length ? [el("h4", { text: title }), ...labels] : [];
  });
  byId("switches-list").replaceChildren(...rows);
  const setAll = (wanted) => {
    boxes.forEach(({ box, index, method }) => {
      state.shown[wanted(method) ? "add" : "delete"](index);
      box.checked = !box.disabled && wanted(method);
    });
    redrawCharts.forEach((draw) => draw());
  };
  const button = (text, wanted) => {
    const node = el("button", { type: "button", text });
    node.addEventListener("click", () => setAll(wanted));
    return node;
  };
  byId("switches-toolbar").replaceChildren(button("All", () => true), button("None", () => false),
    ...(page.methods.some(({ search }) => search) ? [button("Searched", ({ search }) => search)] : []));
}

/** A method's line and marker in small. */
function swatch({ colour, dash, width, symbol }) {
  const svg = (tag, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    return node;
  };
  const pattern = { solid: "none", dash: "6 3", dot: "2 3", dashdot: "6 3 2 3" }[dash];
  const corners = { diamond: "14,1.5 18.5,6 14,10.5 9.5,6", square: "10.5,2.5 17.5,2.5 17.5,9.5 10.5,9.5", "triangle-up": "14,2 18,10 10,10", "triangle-down": "14,10 18,2 10,2",
    star: "14,1 15.3,4.6 19,4.6 16,6.9 17.1,10.6 14,8.4 10.9,10.6 12,6.9 9,4.6 12.7,4.6" };
  const picture = svg("svg", { width: 28, height: 12, "aria-hidden": "true" });
  picture.append(svg("line", { x1: 0, x2: 28, y1: 6, y2: 6, stroke: colour, "stroke-width": width, "stroke-dasharray": pattern }),
    symbol === "circle" ? svg("circle", { cx: 14, cy: 6, r: 4, fill: colour }) : svg("polygon", { points: corners[symbol], fill: colour }));
  return picture;
}

/** Fill a table whose columns sort by a click on their heading: the best first, then the worst, then as it was.
    A column is {text, title, better}: better is 1 where more is, -1 where less is, 0 for no best and names.
    A row is {bound, cells}, a cell {text, value}: the value sorts, and the best of a column is bold; bounds stay below. */
function sortableTable(table, columns, rows) {
  const merges = rows.filter(({ bound }) => !bound);
  const best = columns.map(({ better: side, plain }, c) => (side && !plain ? (extent(merges.map((row) => row.cells[c].value)) || [])[side > 0 ? 1 : 0] : undefined));
  const cells = (row) => {
    const line = tableRow(row.cells);
    row.cells.forEach(({ value }, c) => {
      if (!row.bound && isNumber(value) && value === best[c]) line.children[c].firstChild.replaceWith(el("strong", { text: row.cells[c].text, title: "the best of the merges" }));
    });
    return line;
  };
  const bodies = [el("tbody"), el("tbody", { class: "bounds" })];
  const fill = (compare) => {
    const ordered = (bound) => rows.filter((row) => Boolean(row.bound) === bound).sort(compare).map(cells);
    bodies[0].replaceChildren(...ordered(false));
    const bounds = ordered(true);
    bodies[1].replaceChildren(...(bounds.length ? [el("tr", {}, el("th", { class: "group", colspan: columns.length, scope: "rowgroup", text: "Upper bounds" })), ...bounds] : []));
  };
  const heads = columns.map((column, c) => {
    const button = el("button", { type: "button", class: "sorter", ...(column.title && { title: column.title }) }, el("span", { class: "clamp", text: column.text }));
    const head = el("th", { scope: "col", ...(c && { class: "number" }), "aria-sort": "none" }, button);
    const side = column.better || -1; // names from A, numbers without a better side from the smallest
    const sides = [side, -side, 0];
    button.addEventListener("click", () => {
      const next = sides[(sides.indexOf({ none: 0, ascending: -1, descending: 1 }[head.getAttribute("aria-sort")]) + 1) % 3];
      heads.forEach((other) => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", { "-1": "ascending", 0: "none", 1: "descending" }[next]);
      fill((a, b) => next && inOrder(a.cells[c].value, b.cells[c].value, next));
    });
    return head;
  });
  fill(() => 0);
  table.replaceChildren(el("thead", {}, el("tr", {}, ...heads)), ...bodies);
}

/** Below zero where a comes first: the larger one for side 1, the smaller one for -1; what is missing comes last. */
function inOrder(a, b, side) {
  if (typeof a === "string") return side * b.localeCompare(a);
  if (!isNumber(a) || !isNumber(b)) return Number(isNumber(b)) - Number(isNumber(a));
  return side * (b - a);
}

const nameCell = (name) => ({ text: name, title: name, value: name });
const valueCell = (value) => ({ ...numberCell(value), value });

function accuracy() {
  const heat = heatOf(state.heat);
  byId("accuracy-title").textContent = `Each task at equal preference, ${count(page.counts[state.heat], "model")}`;
  byId("accuracy-note").textContent = "A column's best merge is bold. A click on a heading sorts." +
    (page.alike || heat.tasks.length < 2 ? "" : " The last column is the average share of the single models' own metric: at 1 a merge is as good as they are.");
  const several = heat.tasks.length > 1;
  const columns = [{ text: "Method", better: 0 },
    ...heat.tasks.map((t) => page.tasks[t]).map((task) => ({ text: task.name + (task.maximise ? "" : " ↓"), title: `${task.name}: ${task.metric}, ${better(task)}`, better: task.maximise ? 1 : -1 })),
    ...(several ? [{ text: page.alike ? "Average" : "Average share", better: 1 }] : [])];
  sortableTable(byId("accuracy-table"), columns, heat.results.map((result) => ({ bound: page.methods[result.method].bound,
    cells: [nameCell(page.methods[result.method].name), ...result.equal.map(valueCell), ...(several ? [valueCell(result.average)] : [])] })));
}

/** How the columns of the measures are written; `plain` ones have no best in bold. */
const MEASURES = {
  points: { text: "Points", better: 1, plain: true, write: (value) => format(value, 0), title: "different models measured" },
  hypervolume: { text: "Hypervolume", better: 1, write: (value) => format(value, Math.abs(value) < 0.1 ? 6 : 4), title: "beyond the worst of the single models on each task" },
  share: { text: "Share", better: 1, title: "of the hypervolume of all methods' points together" },
  GD: { text: "GD", better: -1, title: "mean distance of its points from the best points of all methods" },
  IGD: { text: "IGD", better: -1, title: "mean distance of the best points of all methods from its points" },
  "IGD+": { text: "IGD+", better: -1, title: "as IGD, counting only what it lacks" },
  "win rate": { text: "Win rate", better: 1, title: "how often it beats a point of another method on a task" },
  "win rate over map": { text: "Win rate over map", better: 1, title: "how often it beats a point of map on a task" },
  evaluations: { text: "Evaluations", better: -1, plain: true, write: (value) => value.toLocaleString("en"), title: "merged models times tasks measured to choose" },
  "evaluation seconds": { text: "Evaluating", better: -1, plain: true, write: duration, title: "time of these evaluations" },
  "build seconds": { text: "Building", better: -1, plain: true, write: duration, title: "time to make its task vectors" },
};

function measures() {
  const { columns, rows } = heatOf(state.heat).measures;
  byId("measures-title").textContent = `Measures of the fronts, ${count(page.counts[state.heat], "model")}`;
  byId("measures-note").textContent = rows.length ? "Of all points that a method measured, its front's and its choices'. More is better for the hypervolume and win rates, less for distances (GD, IGD, IGD+) and costs."
    : "No merge gave a result.";
  byId("measures-table").replaceChildren();
  if (!rows.length) return;
  const written = columns.map((name) => MEASURES[name]);
  sortableTable(byId("measures-table"), [{ text: "Method", better: 0 }, ...written], rows.map(([method, ...values]) => ({ bound: false,
    cells: [nameCell(page.methods[method].name), ...values.map((value, c) => (isNumber(value) && written[c].write ? { text: written[c].write(value), number: true, value } : valueCell(value)))] })));
}

function sums() {
  const kinds = page.alike ? "metrics" : "shares of the single models' own metric";
  byId("sums-note").textContent = `The preference-weighted sum of the ${kinds}, mean ± standard deviation over ${count(page.preferences, "preference")} drawn at random; each method chooses anew for each preference. The methods shown above are those of this chart, too.`;
  const cell = (mean, std) => ({ ...valueCell(mean), ...(isNumber(mean) && { text: `${format(mean)} ± ${std.toFixed(4)}` }) });
  const columns = [{ text: "Method", better: 0 }, ...page.counts.map((models) => ({ text: count(models, "model"), better: 1 }))];
  sortableTable(byId("sums-table"), columns, page.methods.map((method, index) => ({ bound: method.bound,
    cells: [nameCell(method.name), ...page.counts.map((_, c) => cell(page.sums.mean[index][c], page.sums.std[index][c]))] })));
  const node = byId("sums-chart");
  if (page.counts.length < 2 || !page.sums.mean.flat().some(isNumber)) {
    node.remove();
    return;
  }
  redrawCharts.push(chart(node, (look) => {
    const styles = methodStyles(page.methods);
    const shown = page.methods.flatMap((method, index) => (state.shown.has(index) ? [{ ...method, style: styles[index], mean: page.sums.mean[index], std: page.sums.std[index] }] : []));
    return sumsFigure(page, shown, look, { zoom: state.zoom, height: node.clientHeight });
  }));
}

function leftOut() {
  byId("left-out").hidden = !page.leftOut.length;
  fillTable(byId("left-out-table"), [{ text: "Method" }, { text: "Models", number: true }, { text: "Reason" }],
    page.leftOut.map(({ method, models, reason }) => [{ text: method, title: method }, { text: models.join(", "), number: true }, { text: reason, title: reason }]));
}

function details() {
  for (const id of ["config", "versions", "summary"]) byId(id).textContent = page.documents[id] || "Nothing is recorded.";
}

drawParts([["name", header], ["fronts", heats], ["sums", sums], ["left-out", leftOut], ["details", details]]);
