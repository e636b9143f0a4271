/* What the pages are put together from: elements, tables, charts, parts that fail alone.
   Names are data: they enter the page as text, never as markup. */

const byId = (id) => document.getElementById(id);
const redraws = []; // every chart, drawn again when the colours or the width class change

function el(tag, { text, ...attributes } = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  node.append(...children);
  return node;
}

function tableCell(tag, { text, number, tag: flag, title, scope }) {
  const node = el(tag, { ...(number && { class: "number" }), ...(scope && { scope }) }, el("span", { class: "clamp", text, ...(title && { title }) }));
  if (flag) node.append(el("span", { class: "tag", text: flag }));
  return node;
}

/** A figure with its name above and a note below. */
const tile = (term, value, note) => el("div", { class: "tile" }, el("dt", { text: term }),
  el("dd", {}, el("div", { class: "value", text: value }), el("div", { class: "note clamp", text: note })));

/** A row whose first cell is its heading. */
const tableRow = (cells) => el("tr", {}, ...cells.map((cell, index) => tableCell(index ? "td" : "th", index ? cell : { scope: "row", ...cell })));

function fillTable(table, header, rows) {
  const head = el("tr", {}, ...header.map((column) => tableCell("th", { scope: "col", ...column })));
  table.replaceChildren(el("thead", {}, head), el("tbody", {}, ...rows.map(tableRow)));
}

const numberCell = (value, digits) => ({ text: format(value, digits), number: true, ...(!isNumber(value) && { title: "not measured" }) });

/** Draw a figure into `node` now, and again whenever the colours change; returns the function that draws it. */
function chart(node, figure) {
  const draw = () => {
    const { data, layout } = figure(currentLook());
    return Plotly.react(node, data, layout, { responsive: true, displaylogo: false, plotlyServerURL: "", showTips: false,
      showSendToCloud: false, // the page sends nothing anywhere
      displayModeBar: matchMedia("(pointer: coarse)").matches ? false : "hover",
      modeBarButtonsToRemove: ["select2d", "lasso2d", "toggleSpikelines", "autoScale2d", "hoverClosestCartesian", "hoverCompareCartesian"] });
  };
  redraws.push(draw);
  draw();
  return draw;
}

const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

/** Run one part of the page; a fault stays in its section and says so. */
function part(id, draw) {
  try {
    draw();
  } catch (error) {
    console.error(error);
    const notice = el("p", { class: "problem", text: `This part could not be shown. ${error.message}` });
    byId(id).querySelectorAll(".split, .card").forEach((node) => node.remove());
    byId(id).append(notice);
  }
}

/** One part after another, with a breath between them: the front can be read while the charts below are drawn. */
function drawParts([first, ...rest]) {
  part(...first);
  if (rest.length) setTimeout(drawParts, 0, rest);
  else document.body.dataset.ready = "yes";
}

const redraw = () => redraws.forEach((draw) => draw());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
narrowPage.addEventListener("change", redraw);
