// The report: a threshold, whom it refuses and why, and a gallery of which only the visible part is in the document.

const byId = (id) => document.getElementById(id);
const read = (id) => JSON.parse(byId(id).textContent);
const about = read("about-data");
const advice = read("advice-data");
const LEVELS = about.levels;
const FACTORS = Object.keys(LEVELS);
const QUALITY_LEVELS = about.quality_levels;
const BINS = 60, STEPS = 1000, GAP = 12;
const NO_REASON = "no reason named";

// A face: [path, status, quality, levels of the factors, distribution, reasons, other columns]; null for what is not known.
const faces = [];
const pictures = []; // of each chunk of rows: the element with its pictures, then the list of them
let chunkSize = 0;
for (const chunk of document.querySelectorAll("script.rows")) {
  const rows = JSON.parse(chunk.textContent);
  chunkSize = chunkSize || rows.length;
  for (const row of rows) faces.push(row);
  chunk.remove();
}
pictures.push(...document.querySelectorAll("script.pictures"));

const quality = Float64Array.from(faces, (face) => (face[2] === null ? NaN : face[2]));
const scored = Float64Array.from(quality.filter((q) => !Number.isNaN(q))).sort();
const hasStatedReasons = faces.some((face) => face[5]);
const ticked = new Set();
let threshold = 0;
let reason = null; // the reason whose faces are shown
let ordered = []; // indices of all faces, in the chosen order
let listed = []; // of these the ones that pass the filters
let active = 0; // place in `listed`

function pictureOf(i) {
  const chunk = Math.floor(i / chunkSize);
  if (!Array.isArray(pictures[chunk])) {
    const element = pictures[chunk];
    pictures[chunk] = element.textContent.split(" ");
    element.remove();
  }
  return pictures[chunk][i % chunkSize];
}

function pictureElement(i) {
  const data = pictureOf(i);
  if (!data) return make("span", {}, plain(faces[i][1] === "ok" ? "no picture" : faces[i][1]));
  return make("img", { src: `data:image/webp;base64,${data}`, alt: "", decoding: "async" });
}

const isRefused = (i) => !(quality[i] >= threshold);
const nameOf = (i) => faces[i][0].split("/").pop() + (faces[i][6].face > 0 ? ` (face ${faces[i][6].face})` : "");
const shownScore = (q) => q.toFixed(Math.abs(q) < 10 ? 3 : 1);

// Codes of what is wrong with a face: its status without a score; the column `reasons`; where that is not known, each
// factor whose most probable level is not the best.
function codesOf(i) {
  const [, status, , factors, , reasons] = faces[i];
  if (Number.isNaN(quality[i])) return [status];
  if (reasons) return reasons.map(([code]) => code);
  if (!factors) return [];
  return FACTORS.filter((factor, k) => mostProbable(factors[k]) < LEVELS[factor].length - 1);
}

// "blurry" for a code that is a factor, else the code as words.
function wordsOf(i, code) {
  const k = FACTORS.indexOf(code);
  return k >= 0 && faces[i][3] ? LEVELS[code][mostProbable(faces[i][3][k])] : plain(code);
}

// How good a factor is: the mean place of its level, from 0 (worst) to 1 (best).
function goodness(i, k) {
  const p = faces[i][3] && faces[i][3][k];
  if (!p) return NaN;
  return p.reduce((sum, x, place) => sum + x * place, 0) / (p.reduce((a, b) => a + b, 0) || 1) / (p.length - 1);
}

// ---------------------------------------------------------------------------------------------- threshold

const low = about.range ? Math.min(about.range[0], scored[0] ?? 0) : (scored[0] ?? 0);
const high = about.range ? Math.max(about.range[1], scored.at(-1) ?? 1) : (scored.at(-1) ?? 1);
const span = high - low || 1;
const digits = Math.max(0, 2 - Math.floor(Math.log10(span)));
const rounded = (value) => Number(value.toFixed(digits + 1)); // finer than a step of the slider
const top_ = rounded(high + span / STEPS); // so that the slider can refuse the best face too

// How many scores are below a value: binary search.
function below(value) {
  let start = 0, end = scored.length;
  while (start < end) {
    const middle = (start + end) >> 1;
    if (scored[middle] < value) start = middle + 1;
    else end = middle;
  }
  return start;
}

// The highest threshold that refuses at most this share of the scored faces.
const thresholdOf = (share) => (scored.length ? scored[Math.min(scored.length - 1, Math.floor(share * scored.length))] : 0);

function drawHistogram() {
  const counts = new Array(BINS).fill(0);
  for (const q of scored) counts[Math.min(BINS - 1, Math.floor(((q - low) / span) * BINS))]++;
  const most = Math.max(1, ...counts);
  const width = 1000 / BINS;
  const path = counts.map((n, i) => (n ? `M${i * width + 1},100V${100 - Math.max(2, (100 * n) / most)}H${(i + 1) * width - 1}V100Z` : "")).join("");
  const svg = byId("histogram");
  const node = (tag, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  for (const kind of ["refused", "accepted"]) {
    const clip = node("clipPath", { id: `clip-${kind}` });
    clip.append(node("rect", { y: -10, height: 120 }));
    svg.append(clip, node("path", { d: path, class: kind, "clip-path": `url(#clip-${kind})` }));
  }
  svg.append(node("line", { y1: -4, y2: 100 }));
  byId("low").textContent = low.toFixed(2);
  byId("high").textContent = high.toFixed(2);
}

function showThreshold() {
  const x = (1000 * (threshold - low)) / span;
  const svg = byId("histogram");
  const [refusedClip, acceptedClip] = svg.querySelectorAll("rect");
  refusedClip.setAttribute("x", -10);
  refusedClip.setAttribute("width", Math.max(0, x + 10));
  acceptedClip.setAttribute("x", x);
  acceptedClip.setAttribute("width", Math.max(0, 1010 - x));
  svg.querySelector("line").setAttribute("x1", x);
  svg.querySelector("line").setAttribute("x2", x);
  const under = below(threshold), without = faces.length - scored.length, refused = under + without;
  const because = without ? `: ${under.toLocaleString("en")} by their score, ${without.toLocaleString("en")} without a score` : "";
  byId("verdict").textContent = `${refused.toLocaleString("en")} of ${faces.length.toLocaleString("en")} refused (${percent(refused / (faces.length || 1))})${because}`;
  svg.setAttribute("aria-label", `Distribution of ${scored.length} scores from ${low.toFixed(3)} to ${high.toFixed(3)}; ${under} are below ${threshold.toFixed(digits)}`);
  const [accepted, refusedBar] = document.querySelectorAll(".share i");
  accepted.style.flex = `${faces.length - refused} 0 0`;
  refusedBar.style.flex = `${refused} 0 0`;
  byId("slider").setAttribute("aria-valuetext", `${threshold.toFixed(digits)}, refuses ${refused} of ${faces.length}`);
  for (const [value, count] of [["all", faces.length], ["accepted", faces.length - refused], ["refused", refused]]) {
    byId(`count-${value}`).textContent = count.toLocaleString("en");
  }
  showWhy();
}

function showWhy() {
  const counts = new Map();
  let refused = 0;
  for (let i = 0; i < faces.length; i++) {
    if (!isRefused(i)) continue;
    refused++;
    const codes = codesOf(i);
    for (const code of codes.length ? codes : [NO_REASON]) counts.set(code, (counts.get(code) || 0) + 1);
  }
  if (reason !== null && !counts.has(reason)) counts.set(reason, 0);
  const items = [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
  const focused = document.activeElement?.dataset?.code;
  byId("why").replaceChildren(...items.map(([code, count]) => {
    const track = make("span", { class: "track" }, make("i"));
    track.firstChild.style.width = `${(100 * count) / (refused || 1)}%`;
    const button = make("button", { "aria-pressed": String(reason === code), title: advice[code], onclick: () => chooseReason(code) },
      make("span", {}, plain(code)), make("span", { class: "number" }, count.toLocaleString("en")), track);
    button.dataset.code = code;
    return make("li", {}, button);
  }));
  if (focused) [...byId("why").querySelectorAll("button")].find((b) => b.dataset.code === focused)?.focus();
  byId("why-note").textContent = !refused ? "Nobody is refused." : hasStatedReasons
    ? "A face can have several reasons. Choose one to see its faces." : "A factor is named when its most probable level is not the best one. Choose one to see its faces.";
}

function chooseReason(code) {
  reason = reason === code ? null : code;
  if (reason !== null) document.querySelector("input[value=refused]").checked = true;
  update();
}

// The box shows the threshold with all its digits, so that the number refuses the same faces elsewhere. A share gives
// the score of a face; what the slider gives is rounded before.
function setThreshold(value, from) {
  threshold = Math.min(top_, Math.max(low, value));
  if (from !== "slider") byId("slider").value = (STEPS * (threshold - low)) / span;
  if (from !== "number") byId("number").value = threshold;
  later(update);
}

// Many events of one frame cause one update.
let waiting = null;
function later(task) {
  if (waiting) return;
  waiting = requestAnimationFrame(() => { waiting = null; task(); });
}

// ---------------------------------------------------------------------------------------------- order and filters

function sort() {
  const [key, direction] = byId("order").value.split("|");
  const indices = Array.from(faces.keys());
  if (key === "path") {
    ordered = indices; // the rows have the order of the call, sorted by path within a folder
  } else {
    const sign = direction === "best" ? -1 : 1;
    const values = key === "score" ? quality : Float64Array.from(indices, (i) => goodness(i, FACTORS.indexOf(key)));
    const place = (i) => (Number.isNaN(values[i]) ? (sign > 0 ? -Infinity : Infinity) : sign * values[i]);
    ordered = indices.sort((a, b) => { const x = place(a), y = place(b); return x < y ? -1 : x > y ? 1 : a - b; });
  }
}

function update() {
  const kind = document.querySelector(".segments input:checked").value;
  const text = byId("search").value.toLowerCase(), band = byId("band").value;
  const before = listed[active];
  listed = ordered.filter((i) => {
    if (kind !== "all" && isRefused(i) !== (kind === "refused")) return false;
    if (text && !faces[i][0].toLowerCase().includes(text)) return false;
    if (band && faces[i][6].band !== band) return false;
    if (reason === null) return true;
    const codes = codesOf(i);
    return reason === NO_REASON ? !codes.length : codes.includes(reason);
  });
  active = Math.max(0, listed.indexOf(before));
  showThreshold();
  layOut();
  draw(true);
  showChosen();
}

// What the buttons take: the ticked faces, or all that are listed.
const chosen = () => (ticked.size ? ordered.filter((i) => ticked.has(i)) : listed);

function showChosen() {
  const count = chosen().length, what = `${count.toLocaleString("en")} ${ticked.size ? "ticked " : ""}path${count === 1 ? "" : "s"}`;
  byId("save").textContent = `Save ${what}`;
  byId("save").disabled = byId("copy").disabled = !count;
  byId("untick").hidden = !ticked.size;
  byId("shown").textContent = `${listed.length.toLocaleString("en")} shown${reason === null ? "" : `, ${plain(reason)}`}`;
  byId("empty").hidden = listed.length > 0;
}

// ---------------------------------------------------------------------------------------------- gallery

const gallery = byId("gallery");
const hasFactors = faces.some((face) => face[3]);
const hasReasons = faces.some((_, i) => codesOf(i).length);
const textHeight = 58 + (hasReasons ? 24 : 0) + (hasFactors ? 16 * FACTORS.length + 2 : 0);
let columns = 1, cardWidth = 160, cardHeight = 300;
let first = -1, last = -1; // rows in the document

function layOut() {
  const width = gallery.clientWidth;
  columns = Math.max(2, Math.floor((width + GAP) / (176 + GAP)));
  cardWidth = (width - GAP * (columns - 1)) / columns;
  cardHeight = cardWidth + textHeight;
  gallery.style.height = `${Math.max(0, Math.ceil(listed.length / columns) * (cardHeight + GAP) - GAP)}px`;
}

function draw(anew) {
  const top = -gallery.getBoundingClientRect().top, height = window.innerHeight, row = cardHeight + GAP;
  const from = Math.max(0, Math.floor((top - height / 2) / row));
  const to = Math.min(Math.ceil(listed.length / columns), Math.ceil((top + 1.5 * height) / row));
  if (!anew && from === first && to === last) return;
  first = from;
  last = to;
  const kept = new Map();
  if (!anew) for (const node of gallery.children) kept.set(Number(node.dataset.place), node);
  const nodes = [];
  for (let place = from * columns; place < Math.min(to * columns, listed.length); place++) nodes.push(kept.get(place) || card(place));
  gallery.replaceChildren(...nodes);
  markActive();
}

function card(place) {
  const i = listed[place], [path, , , factors, , , other] = faces[i], refused = isRefused(i), noScore = Number.isNaN(quality[i]);
  const picture = make("div", { class: "picture" }, pictureElement(i), make("span", { class: "mark", "aria-hidden": "true" }, make("i", {}, ticked.has(i) ? "✓" : "")));
  picture.style.height = `${cardWidth}px`;
  const side = other.band ? make("span", { class: "chip" }, other.band) : null;
  const verdict = make("span", { class: refused ? "chip bad" : "chip good" }, refused ? "refused" : "accepted");
  const chips = codesOf(i).map((code) => make("span", { class: "chip" }, noScore ? plain(code) : wordsOf(i, code)));
  const node = make("div", {
    class: `card ${refused ? "refused" : "accepted"}`, role: "option", id: `face-${i}`, title: path,
    "aria-selected": String(ticked.has(i)), "aria-posinset": place + 1, "aria-setsize": listed.length,
    "aria-label": `${nameOf(i)}, ${noScore ? "no score" : `score ${shownScore(quality[i])}`}, ${refused ? "refused" : "accepted"}${chips.length ? `, ${chips.map((c) => c.textContent).join(", ")}` : ""}`,
  }, picture, make("div", { class: "text" },
    make("div", { class: "head" }, make("span", { class: "score number" }, noScore ? "–" : shownScore(quality[i])), side, verdict),
    make("div", { class: "name" }, nameOf(i)),
    hasReasons ? make("div", { class: "reasons" }, ...chips) : null,
    factors ? factorBars(LEVELS, factors, false) : null));
  node.dataset.place = place;
  Object.assign(node.style, { width: `${cardWidth}px`, height: `${cardHeight}px`, left: `${(place % columns) * (cardWidth + GAP)}px`, top: `${Math.floor(place / columns) * (cardHeight + GAP)}px` });
  return node;
}

function markActive() {
  for (const node of gallery.children) node.classList.toggle("active", Number(node.dataset.place) === active);
  const i = listed[active];
  if (i !== undefined && byId(`face-${i}`)) gallery.setAttribute("aria-activedescendant", `face-${i}`);
  else gallery.removeAttribute("aria-activedescendant");
}

function moveTo(place) {
  active = Math.min(listed.length - 1, Math.max(0, place));
  const toolbar = document.querySelector(".toolbar").offsetHeight;
  const top = gallery.getBoundingClientRect().top + Math.floor(active / columns) * (cardHeight + GAP);
  if (top < toolbar) window.scrollBy(0, top - toolbar - GAP);
  else if (top + cardHeight > window.innerHeight) window.scrollBy(0, top + cardHeight - window.innerHeight + GAP);
  draw(false);
  markActive();
}

function tick(place) {
  const i = listed[place];
  if (!ticked.delete(i)) ticked.add(i);
  const node = byId(`face-${i}`);
  if (node) {
    node.setAttribute("aria-selected", String(ticked.has(i)));
    node.querySelector(".mark i").textContent = ticked.has(i) ? "✓" : "";
  }
  showChosen();
}

gallery.addEventListener("click", (event) => {
  const node = event.target.closest(".card");
  if (!node) return;
  active = Number(node.dataset.place);
  markActive();
  if (event.target.closest(".mark")) tick(active);
  else openDetail();
});

gallery.addEventListener("keydown", (event) => {
  if (!listed.length || event.ctrlKey || event.metaKey || event.altKey) return;
  const page = columns * Math.max(1, Math.floor(window.innerHeight / (cardHeight + GAP)));
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
  if (event.key in steps) moveTo(active + steps[event.key]);
  else if (event.key === " ") tick(active);
  else if (event.key === "Enter") openDetail();
  else return;
  event.preventDefault();
});

// ---------------------------------------------------------------------------------------------- details

const dialog = document.querySelector("dialog");

function openDetail() {
  showDetail();
  if (!dialog.open) dialog.showModal();
}

function showDetail() {
  const i = listed[active], [path, status, , factors, distribution, reasons, other] = faces[i];
  const refused = isRefused(i), noScore = Number.isNaN(quality[i]);
  const term = (name, value) => [make("dt", {}, plain(name)), make("dd", { class: "number" }, value)];
  const value = (x) => (typeof x === "number" ? String(Number(x.toPrecision(6))) : typeof x === "string" ? x : JSON.stringify(x));
  const stated = (reasons || []).map(([code, measured]) => make("li", {},
    make("span", { class: "chip bad" }, plain(code)), measured === null ? "" : ` ${value(measured)}`, advice[code] ? make("p", { class: "small" }, advice[code]) : null));
  const inferred = reasons ? [] : codesOf(i).map((code) => make("li", {}, make("span", { class: "chip bad" }, wordsOf(i, code))));
  const list = [...stated, ...inferred];
  const facts = make("dl", {}, ...term("path", path), ...term("status", status), ...Object.entries(other).flatMap(([name, x]) => term(name, value(x))));
  byId("detail-title").textContent = nameOf(i);
  const picture = make("div", {}, pictureElement(i));
  dialog.querySelector(".detail").replaceChildren(
    make("div", { class: "left" }, picture, make("div", { class: "row" },
      make("span", { class: "score number" }, noScore ? "no score" : shownScore(quality[i])), make("span", { class: refused ? "chip bad" : "chip good" }, refused ? "refused" : "accepted"),
      other.percentile !== undefined && about.percentile_set ? make("p", { class: "small muted" }, `higher than ${Math.round(other.percentile)} % of ${about.percentile_set}`) : null)),
    make("div", { class: "right" },
      list.length ? make("section", {}, make("h3", {}, "Reasons"), make("ul", { class: "advice" }, ...list)) : null,
      factors ? make("section", {}, make("h3", {}, "Factors"), factorBars(LEVELS, factors, true)) : null,
      distribution ? make("section", {}, make("h3", {}, "Probability of each level of quality"), distributionColumns(QUALITY_LEVELS, distribution)) : null,
      make("section", {}, make("h3", {}, "Row"), facts)));
  byId("previous").disabled = active === 0;
  byId("next").disabled = active === listed.length - 1;
}

function step(by) {
  if (active + by < 0 || active + by >= listed.length) return;
  moveTo(active + by);
  showDetail();
}
byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
byId("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("close", () => gallery.focus({ preventScroll: true }));
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  else if (event.key === "ArrowRight") step(1);
});

// ---------------------------------------------------------------------------------------------- export

// A list of paths, one a line, as `inference.py @LIST` reads it. Bytes of a name that are no UTF-8 come as the
// characters U+DC80 to U+DCFF, and go out as the bytes that they were.
function bytesOf(text) {
  const bytes = [], encoder = new TextEncoder();
  for (const character of text) {
    const code = character.codePointAt(0);
    if (code >= 0xdc80 && code <= 0xdcff) bytes.push(code - 0xdc00);
    else bytes.push(...encoder.encode(character));
  }
  return new Uint8Array(bytes);
}

function chosenPaths() {
  const paths = [...new Set(chosen().map((i) => faces[i][0]))], fit = paths.filter((path) => !/[\r\n]/.test(path));
  return { lines: fit.map((path) => `${path}\n`), left: paths.length - fit.length };
}

const said = (what, { lines, left }) => { byId("shown").textContent = `${lines.length.toLocaleString("en")} paths ${what}${left ? `; ${left} with a line end in their name left out` : ""}`; };

byId("save").addEventListener("click", () => {
  const paths = chosenPaths();
  const link = make("a", { href: URL.createObjectURL(new Blob(paths.lines.map(bytesOf), { type: "text/plain" })), download: "paths.txt" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  said("saved", paths);
});

byId("copy").addEventListener("click", async () => {
  const paths = chosenPaths(), text = paths.lines.join("");
  try {
    await navigator.clipboard.writeText(text);
  } catch { // a page from a file may not use the clipboard's interface everywhere
    const area = make("textarea", { class: "hidden" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    byId("copy").focus();
  }
  said("copied", paths);
});

byId("untick").addEventListener("click", () => { ticked.clear(); draw(true); showChosen(); byId("save").focus(); });

// ---------------------------------------------------------------------------------------------- start

document.title = `Face image quality: ${faces.length.toLocaleString("en")} faces`;
byId("about").textContent = [`${faces.length.toLocaleString("en")} face${faces.length === 1 ? "" : "s"}`, about.model, about.created].filter(Boolean).join(" · ");
for (const [value, words] of [["all", "All"], ["accepted", "Accepted"], ["refused", "Refused"]]) {
  document.querySelector(".segments").append(make("label", {}, make("input", { type: "radio", name: "kind", value, checked: value === "all", onchange: () => update() }),
    `${words} `, make("span", { class: "number", id: `count-${value}` })));
}
const orders = [["score|worst", "Worst first"], ["score|best", "Best first"], ["path|", "As in the table"]];
if (hasFactors) for (const factor of FACTORS) orders.push([`${factor}|worst`, `Worst ${factor} first`]);
byId("order").append(...orders.map(([value, words]) => make("option", { value }, words)));
const bands = [...new Set(faces.map((face) => face[6].band).filter(Boolean))];
if (bands.length) {
  byId("band").hidden = false;
  byId("band").append(make("option", { value: "" }, "All bands"), ...bands.map((band) => make("option", { value: band }, plain(band))));
}
for (const share of [0.01, 0.05, 0.1, 0.25]) {
  document.querySelector(".presets").append(make("button", { onclick: () => setThreshold(thresholdOf(share)), disabled: !scored.length }, percent(share).replace(".0", "")));
}
const placed = (place) => (place > 0 ? rounded(low + (span * place) / STEPS) : low); // at its left end nobody is refused
const slider = byId("slider"), number = byId("number");
Object.assign(slider, { min: 0, max: STEPS + 1, step: "any", disabled: !scored.length });
slider.addEventListener("keydown", (event) => { // with step="any" the arrows would move by a hundredth
  const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -50, PageUp: 50 };
  if (!(event.key in steps)) return;
  event.preventDefault();
  setThreshold(rounded(threshold + (steps[event.key] * span) / STEPS));
});
slider.addEventListener("input", () => setThreshold(placed(Number(slider.value)), "slider"));
Object.assign(number, { step: 10 ** -digits, disabled: !scored.length });
number.addEventListener("input", () => { if (number.value !== "") setThreshold(Number(number.value), "number"); });
byId("search").addEventListener("input", () => later(update));
byId("band").addEventListener("change", update);
byId("order").addEventListener("change", () => { sort(); update(); window.scrollTo(0, 0); });
window.addEventListener("scroll", () => draw(false), { passive: true });
let drawnWidth = 0;
new ResizeObserver(() => { // the height changes with every filter
  if (gallery.clientWidth === drawnWidth) return;
  drawnWidth = gallery.clientWidth;
  layOut();
  draw(true);
}).observe(gallery);
drawHistogram();
sort();
threshold = thresholdOf(0.05);
setThreshold(threshold);
update();
document.body.dataset.ready = "yes";
