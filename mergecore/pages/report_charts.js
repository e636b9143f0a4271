/* Charts as plotly figures {data, layout}: functions of the run's data, the chosen point and the page's look.
   Shapes: P points of the front, T tasks; `dims` are the 1, 2 or 3 task indices that a chart shows. */

const AXES = ["x", "y", "z"];

/** What hovering over a point of the front says. */
function pointText(run, index) {
  const lines = [`<b>Point ${index + 1}</b>`];
  run.tasks.slice(0, 10).forEach((task, t) => {
    const parts = ["predicted", "real", "test"]
      .filter((kind) => isNumber(run.front[kind][index][t]))
      .map((kind) => `${format(run.front[kind][index][t])} ${{ predicted: "predicted", real: "verified", test: "held-out" }[kind]}`);
    lines.push(`${plotText(task.name, 24)}: ${parts.join(", ") || "not measured"}`);
  });
  const coefficients = run.front.coefficients[index].slice(0, 10).map((value) => format(value, 3));
  return [...lines, `${run.routers ? "preference" : "coefficients"} ${coefficients.join(", ")}${run.models.length > 10 ? ", …" : ""}`].join("<br>");
}

const coordinates = (rows, dims) =>
  Object.fromEntries(AXES.slice(0, Math.max(2, dims.length)).map((name, d) => [name, rows.map((row) => (d < dims.length ? row[dims[d]] : 0))]));

function markers(dims, rows, name, marker, extra = {}) {
  return { type: dims.length === 3 ? "scatter3d" : "scatter", mode: "markers", name, ...coordinates(rows, dims), marker,
    hoverinfo: "text", ...extra };
}

/** Front, verified points, references and the chosen point over one, two or three tasks; the chosen come last. */
function spaceFigure(run, dims, chosen, look, { zoom }) {
  const solid = dims.length === 3;
  const tasks = dims.map((t) => run.tasks[t]);
  const verified = run.verified;
  const texts = run.texts;
  const measured = run.evaluations.metrics.filter((row) => dims.every((t) => isNumber(row[t])));
  const base = run.references.filter((reference) => reference.kind === "base");
  const singles = run.references.filter((reference) => reference.kind === "model");
  const beaten = (tasks[1] || tasks[0]).maximise ? "bottom center" : "top center"; // the side where the front is not
  const data = [];
  if (measured.length && !solid) {
    data.push(markers(dims, measured.slice(-3000), "Evaluated", { color: look.cloud, size: 4, opacity: 0.75 },
      { hoverinfo: "skip" }));
  }
  if (run.basis === "predicted") {
    data.push(links(dims, run, look));
    data.push(markers(dims, run.front.predicted, "Predicted", { color: look.front, size: solid ? 4 : 7, opacity: solid ? 0.8 : 1,
      symbol: "circle-open", line: { width: 1.4, color: look.front } }, { text: texts, customdata: texts.map((_, p) => p) }));
  }
  if (verified.length) {
    data.push(markers(dims, verified.map((p) => run.front.real[p]), "Verified", { color: look.verified, size: solid ? 5 : 8 },
      { text: verified.map((p) => texts[p]), customdata: verified }));
  }
  for (const [group, name, symbol] of [[singles, "Single models", "diamond"], [base, "Base model", "square"]]) {
    if (group.length) data.push(markers(dims, group.map((r) => r.metrics), name, { color: look.reference, size: solid ? 5 : 9, symbol },
      referenceLabels(group, look, { solid, beaten })));
  }
  data.push(...chosenMarkers(run, dims, chosen, look));
  const layout = solid ? solidLayout(tasks, look) : flatLayout(run, dims, data, look, zoom);
  return { data: data.map((trace) => ({ showlegend: true, ...trace })), layout };
}

/** Thin lines from each prediction to what its verification found. */
function links(dims, run, look) {
  const rows = run.verified.flatMap((p) => [run.front.predicted[p], run.front.real[p], run.tasks.map(() => null)]);
  return { type: dims.length === 3 ? "scatter3d" : "scatter", mode: "lines", ...coordinates(rows, dims), hoverinfo: "skip",
    showlegend: false, line: { color: look.verified, width: dims.length === 3 ? 2 : 1 }, opacity: 0.55, connectgaps: false };
}

function referenceLabels(group, look, { solid, beaten }) {
  const text = group.map((reference) => `<b>${plotText(reference.name, 30)}</b>`);
  if (group.length > 4 || solid) return { text, hoverinfo: "text" };
  return { mode: "markers+text", text: group.map((reference) => plotText(reference.name, 16)), textposition: beaten,
    textfont: { color: look.reference, size: 11 }, hovertext: text, cliponaxis: false };
}

function chosenMarkers(run, dims, chosen, look) {
  const solid = dims.length === 3;
  const place = chosen < 0 ? [] : [run.front[run.basis][chosen]];
  const real = chosen < 0 || run.basis === "real" || !run.verified.includes(chosen) ? [] : [run.front.real[chosen]];
  return [
    markers(dims, place, "Chosen", { color: look.choice, size: solid ? 9 : 15, symbol: "circle-open",
      line: { width: solid ? 4 : 3, color: look.choice } }, { text: place.map(() => run.texts[chosen]) }),
    markers(dims, real, "Chosen, verified", { color: look.choice, size: solid ? 7 : 10 },
      { text: real.map(() => run.texts[chosen]), showlegend: false }),
  ];
}

function flatLayout(run, dims, data, look, zoom) {
  const near = run.front.predicted.concat(run.front.real);
  const range = (t) => {
    const [low, high] = (zoom && extent(near.map((row) => row[t]))) || [NaN, NaN];
    const pad = (high - low || Math.abs(high) * 0.02 || 0.02) * 0.08;
    return isNumber(low) ? { range: [low - pad, high + pad] } : {};
  };
  const second = dims.length > 1
    ? axis(look, taskTitle(run.tasks[dims[1]], look), range(dims[1]))
    : axis(look, "", { showticklabels: false, showgrid: false, range: [-1, 1] });
  return baseLayout(look, { xaxis: axis(look, taskTitle(run.tasks[dims[0]], look), range(dims[0])), yaxis: second, legend: LEGEND });
}

function solidLayout(tasks, look) {
  const scene = { camera: { eye: look.narrow ? { x: 1.9, y: 1.9, z: 1.1 } : { x: 1.4, y: 1.4, z: 0.8 }, center: { x: 0, y: 0, z: -0.1 } }, dragmode: "turntable" };
  AXES.forEach((name, d) => {
    scene[`${name}axis`] = { title: { text: plotText(tasks[d].name, 22) + arrow(tasks[d]) }, gridcolor: look.line,
      linecolor: look.line, zeroline: false, showbackground: false, color: look.muted };
  });
  return baseLayout(look, { scene, legend: LEGEND, margin: { l: 0, r: 0, t: 10, b: 0 }, dragmode: "turntable" });
}

/** Every task an upright line, better upwards; each merged model a path across them. The chosen come last. */
function parallelFigure(run, chosen, look, { zoom }) {
  const T = run.tasks.length;
  const outer = zoom ? [] : run.references;
  const shown = run.front[run.basis].concat(run.verified.map((p) => run.front.real[p]), outer.map((reference) => reference.metrics));
  const ranges = run.tasks.map((task, t) => {
    const range = extent(shown.map((row) => row[t])) || [0, 1];
    return task.maximise ? range : range.toReversed(); // [worst, best]
  });
  const height = (value, t) => {
    const [worst, best] = ranges[t];
    if (!isNumber(value)) return null;
    return best === worst ? 0.5 : (value - worst) / (best - worst);
  };
  const paths = (rows) => ({ x: rows.flatMap(() => [...run.tasks.keys(), null]), y: rows.flatMap((row) => [...row.map(height), null]) });
  const path = (indices, kind, name, colour, extra) => ({ type: "scatter", name, hoverinfo: "text", connectgaps: false,
    ...paths(indices.map((p) => run.front[kind][p])), text: indices.flatMap((p) => Array(T + 1).fill(run.texts[p])), customdata: indices.flatMap((p) => Array(T + 1).fill(p)),
    mode: "lines", line: { color: colour, width: 1.2 }, ...extra });
  const all = [...run.front[run.basis].keys()];
  const data = [];
  if (run.basis === "predicted") data.push(path(all, "predicted", "Predicted", look.front, { opacity: Math.max(0.2, Math.min(0.7, 25 / all.length)) }));
  if (run.verified.length) data.push(path(run.verified, "real", "Verified", look.verified, { opacity: 0.6 }));
  for (const [kind, name, dash] of [["model", "Single models", "dash"], ["base", "Base model", "dot"]]) {
    const group = outer.filter((reference) => reference.kind === kind);
    if (group.length) data.push({ type: "scatter", name, mode: "lines", ...paths(group.map((reference) => reference.metrics)), hoverinfo: "text",
      text: group.flatMap((reference) => Array(T + 1).fill(`<b>${plotText(reference.name, 30)}</b>`)), line: { color: look.reference, width: 1.4, dash } });
  }
  const one = chosen < 0 ? [] : [chosen];
  const real = run.basis === "real" ? [] : one.filter((p) => run.verified.includes(p));
  data.push(path(one, run.basis, "Chosen", look.choice, { mode: "lines+markers", line: { color: look.choice, width: 3.5 }, marker: { size: 9, color: look.choice } }));
  data.push(path(real, "real", "Chosen, verified", look.choice, { mode: "lines+markers", line: { color: look.choice, width: 2, dash: "dot" },
    marker: { size: 7, color: look.choice } }));
  const ends = run.tasks.flatMap((_, t) => ranges[t].map((value, end) => ({ x: t, y: end, yanchor: end ? "bottom" : "top", yshift: end ? 6 : -6,
    text: format(value, 3), showarrow: false, font: { size: look.narrow ? 9 : 11, color: look.muted } })));
  const layout = baseLayout(look, {
    xaxis: { tickvals: [...run.tasks.keys()], ticktext: run.tasks.map((task) => plotText(task.name, look.narrow ? 12 : 18) + (task.maximise ? "" : " ↓")),
      range: [-0.35, T - 0.65], showgrid: false, zeroline: false, automargin: true, ticklabelstandoff: 18,
      tickangle: T > 5 || look.narrow ? -40 : 0 },
    yaxis: { range: [-0.08, 1.08], visible: false },
    shapes: run.tasks.map((_, t) => ({ type: "line", x0: t, x1: t, y0: 0, y1: 1, layer: "below", line: { color: look.line, width: 1.5 } })),
    annotations: ends, legend: LEGEND, margin: { l: 20, r: 20, t: 14, b: 60 },
  });
  return { data, layout };
}

/** Predictions against measurements for one task: points that were left out of the fit, and verified ones. */
function qualityFigure(run, surrogate, t, look) {
  const verified = run.verified.filter((p) => isNumber(run.front.predicted[p][t]));
  const data = [];
  const add = (x, y, name, color) => x.length && data.push({ type: "scatter", mode: "markers", x, y, name, marker: { size: 5.5, color, opacity: 0.85 },
    hovertemplate: "measured %{x:.4~g}<br>predicted %{y:.4~g}<extra></extra>" });
  add(surrogate.observed, surrogate.outOfFold, "Left out of the fit", look.front);
  add(verified.map((p) => run.front.real[p][t]), verified.map((p) => run.front.predicted[p][t]), "Verified on the front", look.verified);
  const range = extent(data.flatMap((trace) => [...trace.x, ...trace.y]));
  if (!range) return null;
  const pad = (range[1] - range[0] || Math.abs(range[0]) * 0.1 || 0.1) * 0.06;
  const line = [range[0] - pad, range[1] + pad];
  data.unshift({ type: "scatter", mode: "lines", x: line, y: line, hoverinfo: "skip", line: { color: look.cloud, width: 1 } });
  const layout = baseLayout(look, {
    title: { text: plotText(run.tasks[t].name, 28), font: { size: 13, color: look.text }, x: 0.02, xanchor: "left", y: 0.97 },
    margin: { l: 48, r: 10, t: 32, b: 42 }, showlegend: false,
    xaxis: axis(look, "measured", { range: line, nticks: 5 }), yaxis: axis(look, "predicted", { range: line, nticks: 5 }),
  });
  return { data, layout };
}

/** One task's metric in the order of evaluation, with the best so far. */
function evaluationsFigure(run, t, look) {
  const values = run.evaluations.metrics.map((row) => row[t]);
  const order = values.map((_, k) => k + 1);
  let best = null;
  const soFar = values.map((value) => {
    if (isNumber(value) && (best === null || (run.tasks[t].maximise ? value > best : value < best))) best = value;
    return best;
  });
  const rounds = run.evaluations.round;
  const starts = order.filter((k) => k > 1 && rounds[k - 1] !== rounds[k - 2]);
  const data = [
    { type: "scatter", mode: "markers", name: "Evaluation", x: order, y: values, marker: { size: 5, color: look.front },
      text: order.map((k) => `evaluation ${k}, round ${format(rounds[k - 1], 0)}<br>${format(values[k - 1])}`), hoverinfo: "text" },
    { type: "scatter", mode: "lines", name: "Best so far", x: order, y: soFar, line: { color: look.choice, width: 2, shape: "hv" }, hoverinfo: "skip" },
  ];
  const shapes = starts.length > 60 ? [] : starts.map((k) => ({ type: "line", x0: k - 0.5, x1: k - 0.5, yref: "paper", y0: 0, y1: 1, layer: "below",
    line: { color: look.cloud, width: 1, dash: "dot" } }));
  return { data, layout: baseLayout(look, { xaxis: axis(look, starts.length ? "evaluation, in order; dotted: a new round" : "evaluation, in order"),
    yaxis: axis(look, plotText(run.tasks[t].name, 24) + arrow(run.tasks[t])), shapes, legend: LEGEND }) };
}

function hypervolumeFigure(run, look) {
  const data = [{ type: "scatter", mode: "lines+markers", x: run.hypervolumeByRound.map((_, index) => index), y: run.hypervolumeByRound,
    line: { color: look.verified, width: 2 }, marker: { size: 6, color: look.verified },
    hovertemplate: "round %{x}<br>%{y:.5~g}<extra></extra>" }];
  return { data, layout: baseLayout(look, { showlegend: false, xaxis: axis(look, "round", { dtick: run.hypervolumeByRound.length < 16 ? 1 : undefined }),
    yaxis: axis(look, "hypervolume") }) };
}

/** Correlation of the tasks over the evaluations, with every metric turned so that more is better. */
function correlationFigure(run, look) {
  const names = run.tasks.map((task) => plotText(task.name, look.narrow ? 12 : 22));
  const T = names.length;
  const size = T > 6 && look.narrow ? 9 : 12;
  const cells = run.correlation.flatMap((row, i) => row.map((value, j) => ({ x: j, y: i, text: isNumber(value) ? value.toFixed(2).replace("-", "−") : "–",
    showarrow: false, font: { size, color: isNumber(value) && Math.abs(value) > 0.55 ? look.surface : look.text } })));
  const ticks = { tickvals: names.map((_, t) => t), ticktext: names, showgrid: false, zeroline: false, automargin: true };
  const data = [{ type: "heatmap", z: run.correlation, zmin: -1, zmax: 1, xgap: 2, ygap: 2, showscale: !look.narrow, hoverinfo: "skip",
    colorscale: [[0, look.low], [0.5, look.middle], [1, look.high]],
    colorbar: { thickness: 10, outlinewidth: 0, tickvals: [-1, 0, 1], ticktext: ["−1 pull apart", "0", "1 move together"], len: 0.9 } }];
  return { data, layout: baseLayout(look, { dragmode: false, annotations: cells, margin: { l: 40, r: 10, t: 10, b: 40 },
    xaxis: { ...ticks, fixedrange: true, tickangle: T > 4 || look.narrow ? -40 : 0 }, yaxis: { ...ticks, fixedrange: true, autorange: "reversed" } }) };
}
