"use strict";
// What the report and the page of the service share. Text is only ever set as text, so no name can become markup.

// make("p", {class: "muted", onclick: f}, "text", node) -> an element.
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// "low_sharpness" -> "low sharpness".
const plain = (code) => String(code).replaceAll("_", " ");

const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.0995 ? 1 : 0)} %`;

const mostProbable = (probabilities) => probabilities.indexOf(Math.max(...probabilities));

// The bar of one factor. probabilities: of its levels, from worst to best, in any unit.
function levelBar(probabilities) {
  const last = probabilities.length - 1;
  const kind = (i) => (i === 0 ? "worst" : i === last ? "best" : "middle");
  const bar = make("span", { class: "levels", "aria-hidden": "true" });
  probabilities.forEach((p, i) => {
    if (!p) return;
    const part = make("i", { class: kind(i) });
    part.style.flex = `${p} 0 0`;
    bar.append(part);
  });
  return bar;
}

// All factors of a face. levels: {blur: ["hazy", "blurry", "clear"], …}; probabilities: a list for each factor.
function factorBars(levels, probabilities, wide) {
  const list = make("div", { class: wide ? "factors wide" : "factors" });
  Object.entries(levels).forEach(([factor, names], i) => {
    const total = probabilities[i].reduce((a, b) => a + b, 0) || 1;
    const best = mostProbable(probabilities[i]);
    list.append(make("span", {}, factor), levelBar(probabilities[i]));
    if (wide) list.append(make("span", { class: "number" }, `${names[best]}, ${percent(probabilities[i][best] / total)}`));
  });
  return list;
}

// Columns for the probabilities (bad to perfect) of the quality.
function distributionColumns(names, probabilities) {
  const total = probabilities.reduce((a, b) => a + b, 0) || 1;
  const columns = make("div", { class: "distribution" });
  for (const p of probabilities) {
    const column = make("div", { "aria-hidden": "true" });
    column.style.height = `${(3 * p) / total}rem`;
    columns.append(column);
  }
  probabilities.forEach((p, i) => columns.append(make("span", {}, names[i], make("br"), percent(p / total))));
  return columns;
}
