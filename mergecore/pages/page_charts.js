/* What all charts of the pages share: the look of the page, a layout, axes and their titles. */

const narrowPage = matchMedia("(max-width: 700px)");

/** What the page looks like just now: its colours and font, and whether it is narrow. */
function currentLook() {
  const style = getComputedStyle(document.documentElement);
  const names = ["surface", "text", "muted", "line", "front", "cloud", "verified", "choice", "reference", "low", "middle", "high"];
  const colours = Object.fromEntries([...names, "font"].map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  return { ...colours, narrow: narrowPage.matches };
}

function baseLayout(look, extra) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: look.font, size: 12, color: look.muted },
    margin: { l: 56, r: 14, t: 14, b: 50 },
    hoverlabel: { bgcolor: look.surface, bordercolor: look.line, align: "left",
      font: { family: look.font, size: 12, color: look.text } },
    hovermode: "closest",
    // upright and clear, so that its buttons cover no entry of the legend
    modebar: { orientation: "v", bgcolor: "rgba(0,0,0,0)", color: look.muted, activecolor: look.text },
    // a finger that drags a chart means to scroll the page
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    ...extra,
  };
}

function axis(look, title, extra = {}) {
  return { title: { text: title, standoff: 8 }, gridcolor: look.line, linecolor: look.line, zeroline: false,
    automargin: true, ...extra };
}

const LEGEND = { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", itemsizing: "constant", entrywidth: 86, font: { size: 12 } };
const better = (task) => (task.maximise ? "higher is better" : "lower is better");
const arrow = (task) => (task.maximise ? " ↑" : " ↓");

function taskTitle(task, look) {
  if (look.narrow) return plotText(task.name, 26) + arrow(task);
  return `${plotText(task.name, 32)} (${plotText(task.metric, 20)}, ${better(task)})`;
}
