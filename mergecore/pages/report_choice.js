"use strict";
/* The rule that chooses a point, and how numbers and names are written. No page, no charts: pure functions.
   Shapes: P points of the front, T tasks. A missing number is null. */

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** [smallest, largest] of the numbers among `values`, or null when there is none. */
function extent(values) {
  let range = null;
  for (const value of values) {
    if (isNumber(value)) range = range ? [Math.min(range[0], value), Math.max(range[1], value)] : [value, value];
  }
  return range;
}

/** Weights for sliders at `raw`: shares of their sum to three decimals; all at zero means that all count the same. */
function weightsOf(raw) {
  const total = raw.reduce((sum, value) => sum + value, 0);
  return raw.map((value) => Math.round((total > 0 ? value / total : 1 / raw.length) * 1000) / 1000);
}

/** What is maximised, [P, T]: the metric when all tasks share one, otherwise the metric over its range on the front;
    negative where less is better; null for a point that misses a metric. */
function utilities(points, tasks) {
  const complete = points.map((point) => (point.every(isNumber) ? point : null));
  const shared = tasks.every((task) => task.metric === tasks[0].metric);
  const ranges = tasks.map((_, t) => extent(complete.filter(Boolean).map((point) => point[t])) || [0, 1]);
  const scale = (value, t) => {
    const [low, high] = ranges[t];
    if (shared) return value;
    return high > low ? (value - low) / (high - low) : 0;
  };
  return complete.map((point) => point && point.map((value, t) => (tasks[t].maximise ? 1 : -1) * scale(value, t)));
}

/** The best single model's metric on each task; null where not all of them were measured: any of the others may be
    better. Singles are those measured, each with its metrics [T]. */
function bestSingles(singles, models, tasks) {
  return tasks.map((task, t) => {
    const values = singles.map((single) => single.metrics[t]).filter(isNumber);
    return values.length < models.length ? null : extent(values)[task.maximise ? 1 : 0];
  });
}

/** Index of the first point with the largest weighted sum of utilities, -1 when no point is complete. */
function choose(utilities, weights) {
  let best = -1;
  let top = -Infinity;
  utilities.forEach((utility, index) => {
    if (!utility) return;
    const sum = utility.reduce((total, value, t) => total + weights[t] * value, 0);
    if (sum > top) [best, top] = [index, sum];
  });
  return best;
}

/** Index of the first complete point whose preference is nearest to the weights, -1 when no point is complete. */
function nearestPreference(preferences, utilities, weights) {
  const distance = (r) => r.reduce((sum, value, t) => sum + (value - weights[t]) ** 2, 0);
  return preferences.reduce((best, r, p) => (utilities[p] && (best < 0 || distance(r) < distance(preferences[best])) ? p : best), -1);
}

/** Whether weights are this preference, once they add up to 1; `mergecore pick` says the same. */
function isPreference(preference, weights) {
  const total = weights.reduce((sum, value) => sum + value, 0);
  return preference.every((value, t) => Math.abs(value - weights[t] / total) <= 1e-6);
}

/** A preference as it is written in a command, short and still the same. */
const writtenPreference = (preference) => preference.map((value) => Number(value.toFixed(8)));

/** The words of a command, quoted for a POSIX shell where they need it. */
function shellQuote(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : "'" + text.replaceAll("'", "'\"'\"'") + "'";
}

const command = (folder, options) => ["mergecore pick", shellQuote(folder), ...options].join(" ");

function pickCommand(folder, tasks, weights, verifiedOnly) {
  const preferences = tasks.flatMap((task, t) => (weights[t] > 0 ? [`--prefer ${shellQuote(`${task.name}=${weights[t]}`)}`] : []));
  return command(folder, verifiedOnly ? [...preferences, "--verified"] : preferences);
}

/** Index of the best point on task `best` among those at least as good as the bounds on the others, -1 for none. */
function constrained(points, tasks, bounds, best) {
  const gain = (point, t) => (tasks[t].maximise ? point[t] : -point[t]);
  const fits = (point) => point.every((value, t) => isNumber(value) && (t === best || gain(point, t) >= gain(bounds, t)));
  return points.reduce((found, point, p) => (fits(point) && (found < 0 || gain(point, best) > gain(points[found], best)) ? p : found), -1);
}

/** A command that singles point `p` out by bounds on all tasks but the last, as short as can be; "" when none does. */
function boundsCommand(folder, tasks, points, p) {
  const best = tasks.length - 1;
  const easier = (value, task, digits) => {
    const steps = (task.maximise ? Math.floor : Math.ceil)(value * 10 ** digits);
    return Math.min(Math.max(Number((steps / 10 ** digits).toFixed(digits)), task.lower ?? -Infinity), task.upper ?? Infinity);
  };
  const rounded = [2, 3, 4, 5, 6, 8].map((digits) => points[p].map((value, t) => easier(value, tasks[t], digits)));
  const bounds = [...rounded, points[p]].find((candidate) => constrained(points, tasks, candidate, best) === p);
  if (!bounds) return "";
  const options = tasks.slice(0, best).map((task, t) => `--at-least ${shellQuote(`${task.name}=${bounds[t]}`)}`);
  return command(folder, [...options, `--maximize ${shellQuote(tasks[best].name)}`]);
}

/** A number for reading: four decimals below one, four significant digits above. */
function format(value, digits = 4) {
  if (!isNumber(value)) return "–";
  const size = Math.abs(value);
  let text;
  if (value === 0) text = "0";
  else if (size >= 1e6 || size < 10 ** -digits) text = value.toExponential(digits - 2);
  else text = value.toFixed(Math.max(0, digits - Math.max(0, Math.floor(Math.log10(size)) + (size >= 1 ? 1 : 0))));
  return text.replace("-", "−");
}

function duration(seconds) {
  if (!isNumber(seconds)) return "–";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60)];
  return hours ? `${hours} h ${minutes} min` : `${minutes} min ${whole % 60} s`;
}

function shorten(text, limit) {
  const letters = [...text.replace(/\s+/gu, " ")];
  return letters.length > limit ? letters.slice(0, limit - 1).join("") + "…" : letters.join("");
}

/** A name for a chart: plotly reads a little HTML in labels, so its marks are escaped. */
function plotText(text, limit = 40) {
  return shorten(text, limit).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
