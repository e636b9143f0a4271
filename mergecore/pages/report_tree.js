/* The tree of nested MAP's merges: models at the bottom, in each merge a panel of its front, the root on top.
   Names are data: they enter the page as text, never as markup. */

const TREE = { leaf: 114, level: 186, width: 132, height: 100, foot: 64, head: 4, turn: 38, port: 19 };

function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** A metric of one side as a person reads it: losses were turned, so that more is better. */
const groupText = (value, unit, span) =>
  (unit === "loss" ? -value : value).toFixed(Math.min(4, Math.max(0, Math.ceil(-Math.log10(span)) + 1))).replace("-", "−");

function treePanel(merge, left, top) {
  const [[x0, x1], [y0, y1]] = merge.window;
  const inside = ([x, y]) => isNumber(x) && isNumber(y) && x >= x0 && x <= x1 && y >= y0 && y <= y1;
  const place = ([x, y]) => ({ cx: left + ((x - x0) / (x1 - x0)) * TREE.width, cy: top + ((y1 - y) / (y1 - y0)) * TREE.height });
  const dot = (point, r, style) => svg("circle", { ...place(point), r, class: style });
  const scale = [0.12, 0.88].flatMap((share) => {
    const x = x0 + share * (x1 - x0);
    const y = y0 + share * (y1 - y0);
    const across = svg("text", { x: place([x, y]).cx, y: top + TREE.height + 11, class: "scale", "text-anchor": "middle" });
    across.textContent = groupText(x, merge.unit, x1 - x0);
    const up = svg("text", { x: left - 4, y: place([x, y]).cy + 3, class: "scale", "text-anchor": "end" });
    up.textContent = groupText(y, merge.unit, y1 - y0);
    return [across, up];
  });
  return svg("g", {}, svg("rect", { x: left, y: top, width: TREE.width, height: TREE.height, rx: 4, class: "panel" }),
    ...merge.samples.filter(inside).map((point) => dot(point, 2, "sample")),
    ...merge.front.filter(inside).map((point) => dot(point, 2.2, "front-point")),
    dot(merge.front[merge.chosen], 5, "chosen"), ...scale);
}

function tree(nodes) {
  const leaves = nodes.filter((node) => !node.merge).length;
  const levels = Math.max(...nodes.map((node) => node.level));
  const width = Math.max(leaves * TREE.leaf, TREE.width + 40) + 40;
  const height = TREE.head + levels * TREE.level + TREE.foot;
  const middle = ({ x }) => width / 2 + (x - (leaves - 1) / 2) * TREE.leaf;
  // lower edge of a panel; where the line of a leaf begins
  const bottom = ({ merge, level }) => height - TREE.foot - (merge ? level * TREE.level - TREE.height - 26 : 0);
  const lines = [];
  const names = [];
  for (const node of nodes) {
    const [x, y] = [middle(node), bottom(node)];
    if (!node.merge) {
      names.push(el("div", { class: "leaf", style: `left: ${x}px; top: ${y + 2}px; width: ${TREE.leaf - 8}px` },
        el("span", { class: "clamp", text: node.name, title: node.name }), el("span", { class: "share", text: format(node.coefficients[0], 3) })));
      continue;
    }
    node.sides.forEach((side, which) => {
      const sign = which ? 1 : -1;
      const below = middle(nodes[side]);
      const start = nodes[side].merge ? bottom(nodes[side]) - TREE.height - 20 : bottom(nodes[side]);
      const port = x + (sign * TREE.width) / 4;
      const label = svg("text", { x: below + 5 * sign, y: y + TREE.turn + 14, class: "coefficient-text", "text-anchor": which ? "start" : "end" });
      label.textContent = format(node.coefficients[which], 2);
      lines.push(svg("path", { d: `M${below} ${start}V${y + TREE.turn}H${port}V${y + TREE.port}`, class: "branch" }), label);
    });
    lines.push(treePanel(node.merge, x - TREE.width / 2, y - TREE.height));
    names.push(el("div", { class: "merge-name", style: `left: ${x}px; top: ${y - TREE.height - 20}px; width: ${TREE.width + 60}px`, text: node.name, title: node.name }));
  }
  const picture = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Tree of the merges; the table below says the same" }, ...lines);
  return el("div", { class: "tree", style: `width: ${width}px; height: ${height}px` }, picture, ...names);
}

function treeTable(table, nodes) {
  const lowest = (r2) => extent(Object.values(r2))?.[0];
  fillTable(table, [{ text: "Merge of" }, { text: "and" }, { text: "Coefficients", number: true }, { text: "Metrics, predicted", number: true },
    { text: "Evaluations", number: true }, { text: "Lowest held-out R²", number: true }],
    nodes.filter((node) => node.merge).map(({ sides: [first, second], coefficients, merge }) => [
      { text: nodes[first].name, title: nodes[first].name }, { text: nodes[second].name, title: nodes[second].name },
      { text: coefficients.map((value) => format(value, 3)).join(", "), number: true },
      { text: merge.front[merge.chosen].map((value) => format(merge.unit === "loss" ? -value : value, 4)).join(", "), number: true },
      numberCell(merge.evaluations, 0), numberCell(lowest(merge.r2), 3)]));
}
