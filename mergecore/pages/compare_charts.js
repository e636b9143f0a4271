/* Charts of a comparison as plotly figures {data, layout}: functions of the page's data, the methods shown and the look.
   A heat is what all methods gave for one number of models; T are its tasks, P the points of a front. */

const DASHES = ["solid", "dash", "dot", "dashdot"];
const SYMBOLS = ["diamond", "square", "triangle-up", "triangle-down"];
const SERIES = 8;

/** How each method is drawn, everywhere on the page: colours come round with another dash and another marker. */
function methodStyles(methods) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(`--${name}`).trim();
  let next = 0;
  return methods.map(({ bound, search }) => {
    if (bound) return { colour: colour("reference"), dash: "dashdot", symbol: "star", width: 1.6, size: 12 };
    const turn = next++;
    const round = Math.floor(turn / SERIES) % DASHES.length;
    return { colour: colour(`series-${(turn % SERIES) + 1}`), dash: DASHES[round], symbol: search ? "circle" : SYMBOLS[round], width: search ? 3 : 1.6,
      size: search ? 11 : 9 };
  });
}

/** [smallest, largest] of the values that lie within 1.5 times the middle half's range of it (Tukey's fences). */
function nearRange(values) {
  const sorted = values.filter(isNumber).sort((a, b) => a - b);
  if (!sorted.length) return null;
  const quantile = (q) => {
    const place = q * (sorted.length - 1);
    const low = Math.floor(place);
    return sorted[low] + (place - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
  };
  const [low, high] = [quantile(0.25), quantile(0.75)];
  return extent(sorted.filter((value) => value >= low - 1.5 * (high - low) && value <= high + 1.5 * (high - low)));
}

function padded([low, high], share = 0.07) {
  const pad = (high - low || Math.abs(high) * 0.02 || 0.02) * share;
  return [low - pad, high + pad];
}

/** [smallest, largest] that a chart of these entries must hold on the heat's task t; the single models' level is always in. */
function taskRange(heat, entries, t, { zoom, fronts }) {
  const choices = entries.map((entry) => entry.equal[t]);
  const range = zoom ? nearRange(choices) : extent(choices);
  const rows = fronts ? entries.filter((entry) => entry.search).flatMap((entry) => entry.points.concat(entry.predicted)) : [];
  return extent([...(range || []), heat.own[t], ...rows.map((row) => row[t])]);
}

/** Whether some choice lies so far off that charts leave it out unless asked. */
function hasFarOff(heat, entries) {
  return heat.tasks.some((_, t) => String(taskRange(heat, entries, t, { zoom: true })) !== String(taskRange(heat, entries, t, { zoom: false })));
}

/** What hovering over a method's choice says. */
function choiceText(page, heat, entry) {
  const lines = heat.tasks.slice(0, 12).map((task, t) => `${plotText(page.tasks[task].name, 24)}: ${format(entry.equal[t])}`);
  return [`<b>${plotText(entry.name, 40)}</b>, equal preference`, ...lines, ...(lines.length > 1 ? [`${averageName(page)}: ${format(entry.average)}`] : [])].join("<br>");
}

const averageName = (page) => (page.alike ? "average" : "average share");

/** Two tasks: fronts as predicted (hollow) and as measured (filled), every method's choice at equal preference. */
function scatterFigure(page, heat, entries, look, { zoom, width, height }) {
  const tasks = heat.tasks.map((task) => page.tasks[task]);
  const place = (rows) => ({ x: rows.map((row) => row[0]), y: rows.map((row) => row[1]) });
  const data = [];
  for (const entry of entries.filter(({ search }) => search)) {
    const name = `<b>${plotText(entry.name, 40)}</b>`;
    const dots = (rows, kind, marker) => rows.length && data.push({ type: "scatter", mode: "markers", ...place(rows), marker, showlegend: false, hoverinfo: "text",
      text: rows.map((row) => `${name}, ${kind}<br>${row.map((value, t) => `${plotText(tasks[t].name, 24)}: ${format(value)}`).join("<br>")}`) });
    dots(entry.predicted, "predicted", { size: 6, symbol: "circle-open", opacity: 0.4, color: entry.style.colour, line: { width: 1 } });
    dots(entry.points, "measured", { size: 6, color: entry.style.colour, opacity: 0.9 });
  }
  for (const entry of entries) {
    data.push({ type: "scatter", mode: "markers", showlegend: false, ...place([entry.equal]), hoverinfo: "text", text: [choiceText(page, heat, entry)],
      marker: { symbol: entry.style.symbol, size: entry.style.size, color: entry.style.colour, line: { width: 1.2, color: look.surface } } });
  }
  const ranges = tasks.map((_, t) => padded(taskRange(heat, entries, t, { zoom, fronts: true }) || [0, 1]));
  const margin = { l: 64, r: 16, t: 14, b: 54 };
  const inner = { width: width - margin.l - margin.r, height: height - margin.t - margin.b };
  const toPixels = ([x, y]) => [inner.width * ((x - ranges[0][0]) / (ranges[0][1] - ranges[0][0])), inner.height * (1 - (y - ranges[1][0]) / (ranges[1][1] - ranges[1][0]))];
  const seen = entries.filter((entry) => entry.equal.every((value, t) => isNumber(value) && value >= ranges[t][0] && value <= ranges[t][1]));
  const size = look.narrow ? 9 : 11;
  const obstacles = entries.flatMap((entry) => entry.points).filter((row) => row.every(isNumber)).map(toPixels);
  const spots = placeLabels(seen.map((entry) => ({ at: toPixels(entry.equal), width: labelOf(entry, look).length * size * 0.56 + 4 })), obstacles, inner, size + 4);
  const annotations = seen.map((entry, index) => ({ x: entry.equal[0], y: entry.equal[1], ax: spots[index][0], ay: spots[index][1], text: plotText(entry.name, labelLimit(look)),
    font: { size, color: entry.style.colour }, showarrow: true, arrowhead: 0, arrowwidth: 0.8, arrowcolor: entry.style.colour, standoff: 5, borderpad: 0 }));
  const shapes = heat.own.flatMap((level, t) => (isNumber(level) && level >= ranges[t][0] && level <= ranges[t][1] ? [{ type: "line", layer: "below",
    ...(t ? { xref: "paper", x0: 0, x1: 1, y0: level, y1: level } : { yref: "paper", y0: 0, y1: 1, x0: level, x1: level }), line: { color: look.reference, width: 1.2, dash: "dash" } }] : []));
  return { data, layout: baseLayout(look, { xaxis: axis(look, taskTitle(tasks[0], look), { range: ranges[0] }), yaxis: axis(look, taskTitle(tasks[1], look), { range: ranges[1] }),
    showlegend: false, annotations, shapes, margin }) };
}

const labelLimit = (look) => (look.narrow ? 14 : 22);
const labelOf = (entry, look) => shorten(entry.name, labelLimit(look));

/** For each label the shift of its middle from its point, in pixels: near, and off other labels and points where it can be. */
function placeLabels(labels, obstacles, inner, height) {
  const taken = [];
  const overlap = (a, b) => Math.max(0, Math.min(a[2], b[2]) - Math.max(a[0], b[0])) * Math.max(0, Math.min(a[3], b[3]) - Math.max(a[1], b[1]));
  const points = [...obstacles, ...labels.map((label) => label.at)];
  const marks = points.map(([x, y]) => [x - 5, y - 5, x + 5, y + 5]);
  return labels.map(({ at: [x, y], width }) => {
    let best = null;
    for (const reach of [0, 12, 26, 44, 66, 92, 122]) {
      for (let turn = 0; turn < 12; turn++) {
        const angle = (turn * Math.PI) / 6;
        const shift = [Math.cos(angle) * (width / 2 + 9 + reach), Math.sin(angle) * (height / 2 + 8 + reach)];
        const box = [x + shift[0] - width / 2, y + shift[1] - height / 2, x + shift[0] + width / 2, y + shift[1] + height / 2];
        const outside = box[2] - box[0] - Math.max(0, Math.min(box[2], inner.width) - Math.max(box[0], 0)) + Math.max(0, -box[1]) + Math.max(0, box[3] - inner.height);
        const cost = reach + 20 * outside + taken.reduce((sum, other) => sum + overlap(box, other), 0) * 4 + marks.reduce((sum, mark) => sum + overlap(box, mark), 0);
        if (!best || cost < best.cost) best = { cost, shift, box };
      }
    }
    taken.push(best.box);
    return best.shift;
  });
}

/** One task: a row for each method, with all that it measured. */
function rowsFigure(page, heat, entries, look, { zoom }) {
  const rows = entries.toReversed();
  const data = rows.map((entry, row) => ({ type: "scatter", mode: "markers", showlegend: false, x: entry.points.map((point) => point[0]), y: entry.points.map(() => row), hoverinfo: "x",
    marker: { size: 6, color: entry.style.colour, opacity: 0.5 } }));
  data.push({ type: "scatter", mode: "markers", showlegend: false, x: rows.map((entry) => entry.equal[0]), y: rows.map((_, row) => row), hoverinfo: "text",
    text: rows.map((entry) => choiceText(page, heat, entry)), marker: { size: rows.map((entry) => entry.style.size), symbol: rows.map((entry) => entry.style.symbol), color: rows.map((entry) => entry.style.colour) } });
  const range = padded(taskRange(heat, entries, 0, { zoom, fronts: true }) || [0, 1]);
  const shapes = heat.own.filter(isNumber).map((level) => ({ type: "line", layer: "below", x0: level, x1: level, yref: "paper", y0: 0, y1: 1, line: { color: look.reference, width: 1.2, dash: "dash" } }));
  return { data, layout: baseLayout(look, { shapes, xaxis: axis(look, taskTitle(page.tasks[heat.tasks[0]], look), { range }),
    yaxis: { tickvals: rows.map((_, row) => row), ticktext: rows.map((entry) => plotText(entry.name, labelLimit(look))), range: [-0.7, rows.length - 0.3], showgrid: false, zeroline: false, automargin: true } }) };
}

/** Every task an upright line, better upwards; each method's choice at equal preference a path, its front pale behind. */
function parallelFigure(page, heat, entries, look, { zoom, height }) {
  const T = heat.tasks.length;
  const tasks = heat.tasks.map((task) => page.tasks[task]);
  const ranges = tasks.map((task, t) => {
    const range = taskRange(heat, entries, t, { zoom, fronts: false }) || [0, 1];
    return task.maximise ? range : range.toReversed(); // [worst, best]
  });
  const scaled = (value, t) => {
    const [worst, best] = ranges[t];
    if (!isNumber(value)) return null;
    return best === worst ? 0.5 : (value - worst) / (best - worst);
  };
  const paths = (rows) => ({ x: rows.flatMap(() => [...tasks.keys(), null]), y: rows.flatMap((row) => [...row.map(scaled), null]) });
  const data = [];
  for (const entry of entries.filter(({ search }) => search)) {
    const rows = entry.predicted.length ? entry.predicted : entry.points;
    data.push({ type: "scatter", mode: "lines", showlegend: false, hoverinfo: "skip", ...paths(rows), line: { color: entry.style.colour, width: 0.7 }, opacity: Math.max(0.15, Math.min(0.5, 25 / rows.length)) });
  }
  if (heat.own.some(isNumber)) {
    data.push({ type: "scatter", mode: "lines", showlegend: false, ...paths([heat.own]), line: { color: look.reference, width: 2, dash: "dash" }, hoverinfo: "text", text: "<b>the single models’ own</b>" });
  }
  for (const entry of entries) {
    data.push({ type: "scatter", mode: "lines+markers", showlegend: false, ...paths([entry.equal]), hoverinfo: "text", text: choiceText(page, heat, entry),
      line: { color: entry.style.colour, width: entry.style.width, dash: entry.style.dash }, marker: { size: entry.search ? 7 : 5, symbol: entry.style.symbol, color: entry.style.colour } });
  }
  const ended = entries.filter((entry) => isNumber(entry.equal[T - 1]));
  const ends = endLabels(ended.map((entry) => ({ entry, y: Math.max(-0.06, Math.min(1.06, scaled(entry.equal[T - 1], T - 1))) })), T - 1, 0.1 * Math.max(1, T / 8), [-0.06, 1], look, height - 90);
  const numbers = tasks.flatMap((_, t) => ranges[t].map((value, end) => ({ x: t, xanchor: t < T - 1 ? "center" : "right", xshift: t < T - 1 ? 0 : 8, y: end, yanchor: end ? "bottom" : "top", yshift: end ? 8 : -8, text: format(value, 3), showarrow: false,
    font: { size: look.narrow ? 9 : 11, color: look.muted } })));
  const uprights = tasks.map((_, t) => ({ type: "line", x0: t, x1: t, y0: 0, y1: 1, layer: "below", line: { color: look.line, width: 1.5 } }));
  const layout = baseLayout(look, {
    xaxis: { tickvals: [...tasks.keys()], ticktext: tasks.map((task) => plotText(task.name, look.narrow ? 12 : 18) + (task.maximise ? "" : " ↓")), range: [-0.35, T - 0.9 + 0.1 * Math.max(1, T / 8)],
      showgrid: false, zeroline: false, automargin: true, ticklabelstandoff: 18, tickangle: T > 5 || look.narrow ? -40 : 0 },
    yaxis: { range: [-0.08, 1.08], visible: false }, shapes: [...uprights, ...ends.shapes], annotations: [...numbers, ...ends.annotations],
    margin: { l: look.narrow ? 44 : 20, r: look.narrow ? 78 : 130, t: 20, b: 60 },
  });
  return { data, layout };
}

/** Names right of where lines end at `x`, moved apart, each joined to its line by a leader `reach` long. */
function endLabels(ends, x, reach, [low, high], look, pixels) {
  const size = look.narrow ? 9 : 11;
  const heights = spread(ends.map(({ y }) => y), (size + 4) * ((high - low) / pixels), [low, high]);
  return {
    annotations: ends.map(({ entry }, index) => ({ x: x + reach, y: heights[index], text: plotText(entry.name, labelLimit(look)), showarrow: false, xanchor: "left", yanchor: "middle", xshift: 2,
      font: { size, color: entry.style.colour } })),
    shapes: ends.map(({ entry, y }, index) => ({ type: "line", x0: x, x1: x + reach, y0: y, y1: heights[index], line: { color: entry.style.colour, width: 0.8 } })),
  };
}

/** The values moved as little as a pass down and a pass up need so that neighbours lie `gap` apart within the bounds. */
function spread(values, gap, [low, high]) {
  const order = [...values.keys()].sort((a, b) => values[a] - values[b]);
  const step = Math.min(gap, (high - low) / Math.max(1, order.length - 1));
  const moved = [...values];
  order.forEach((index, place) => { moved[index] = Math.max(values[index], place ? moved[order[place - 1]] + step : low); });
  order.toReversed().forEach((index, place, all) => { moved[index] = Math.min(moved[index], place ? moved[all[place - 1]] - step : high); });
  return moved;
}

/** The mean preference-weighted sum of each method over the number of models. */
function sumsFigure(page, shown, look, { zoom, height }) {
  const [first, last] = [page.counts[0], page.counts.at(-1)];
  const data = shown.map((entry) => ({ type: "scatter", mode: "lines+markers", showlegend: false, x: page.counts, y: entry.mean, connectgaps: false,
    line: { color: entry.style.colour, width: entry.style.width, dash: entry.style.dash }, marker: { size: entry.search ? 8 : 6, symbol: entry.style.symbol, color: entry.style.colour },
    hoverinfo: "text", text: page.counts.map((models, c) => `<b>${plotText(entry.name, 40)}</b>, ${models} models<br>${format(entry.mean[c])} ± ${format(entry.std[c])}`) }));
  const values = shown.flatMap((entry) => entry.mean);
  const range = padded((zoom ? nearRange(values) : extent(values)) || [0, 1], 0.05);
  const inside = shown.filter((entry) => isNumber(entry.mean.at(-1)) && entry.mean.at(-1) >= range[0] && entry.mean.at(-1) <= range[1]);
  const reach = 0.03 * (last - first);
  const earlier = shown.flatMap((entry) => { // those that end before the last number of models
    const place = entry.mean.findLastIndex(isNumber);
    return place < 0 || place === page.counts.length - 1 ? [] : [{ x: page.counts[place], y: entry.mean[place], text: plotText(entry.name, labelLimit(look)), showarrow: false, xanchor: "left",
      xshift: 6, font: { size: look.narrow ? 9 : 11, color: entry.style.colour } }];
  });
  const ends = endLabels(inside.map((entry) => ({ entry, y: entry.mean.at(-1) })), last, reach, range, look, height - 70);
  return { data, layout: baseLayout(look, { shapes: ends.shapes, annotations: [...ends.annotations, ...earlier], margin: { l: 64, r: look.narrow ? 78 : 130, t: 14, b: 50 },
    xaxis: axis(look, "number of models", { tickvals: page.counts, range: [first - 0.04 * (last - first), last + reach] }),
    yaxis: axis(look, page.alike ? `weighted sum (${plotText(page.tasks[0].metric, 20)})` : "weighted sum of shares", { range }) }) };
}
