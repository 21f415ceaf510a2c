// The page: photographs in, faces with scores and reasons out. Everything comes from and goes to this service only.

const byId = (id) => document.getElementById(id);
const AT_ONCE = 8; // images of a request: results appear while others wait
const TRIES = 5;
let service = null; // what /models says
const compared = []; // up to two faces: {result, name}

async function start() {
  byId("privacy").textContent = `They are scored by the service at ${location.host}, and are not kept.`;
  try {
    service = await (await fetch("/models")).json();
    byId("model").textContent = `${service.serving}, ${service.weights}`;
  } catch {
    say("The service does not answer. Start it again, and load this page anew.", true);
  }
  document.body.dataset.ready = "yes";
}

function say(text, problem = false) {
  byId("message").textContent = text;
  byId("message").classList.toggle("problem", problem);
}

// ---------------------------------------------------------------------------------------------- scoring

let sending = Promise.resolve(); // one request at a time, in the order of the drops

function add(files) {
  const images = [...files];
  if (!images.length) return;
  byId("drop").classList.add("small-zone");
  byId("clear").hidden = false;
  const cards = images.map((file) => {
    const card = make("article", { class: "panel image", "aria-busy": "true" }, photoOf(file), make("p", { class: "muted" }, "Scoring …"));
    return { file, card };
  });
  byId("results").prepend(...cards.map(({ card }) => card));
  for (let i = 0; i < cards.length; i += AT_ONCE) {
    const part = cards.slice(i, i + AT_ONCE);
    sending = sending.then(() => send(part));
  }
}

async function send(cards) {
  const body = new FormData();
  for (const { file } of cards) body.append("images", file, file.name);
  for (let attempt = 1; ; attempt++) {
    let answer;
    try {
      answer = await fetch("/score?pictures=true", { method: "POST", body });
    } catch {
      return cards.forEach((card) => fail(card, "the service does not answer"));
    }
    if ((answer.status === 429 || answer.status === 503) && attempt < TRIES) {
      const seconds = Number(answer.headers.get("Retry-After")) || 1;
      say(`The service is busy. Trying again in ${seconds} s.`);
      await new Promise((done) => setTimeout(done, 1000 * seconds));
      continue;
    }
    const content = await answer.json().catch(() => ({}));
    if (!answer.ok) return cards.forEach((card) => fail(card, typeof content.detail === "string" ? content.detail : `refused (${answer.status})`));
    cards.forEach((card, i) => show(card, content.results.filter((result) => result.index === i)));
    const total = document.querySelectorAll(".face").length;
    return say(`${total} face${total === 1 ? "" : "s"} scored.`);
  }
}

function fail({ card, file }, why) {
  card.removeAttribute("aria-busy");
  card.lastChild.replaceWith(make("div", { class: "failed" }, make("p", {}, make("span", { class: "chip bad" }, "no score")), make("p", {}, `${file.name}: ${why}`)));
}

const WHY = {
  no_face: "No face was found. Come closer, and look at the camera.",
  not_an_image: "The file is no JPEG, PNG, WebP, BMP, TIFF or GIF.",
  truncated: "The file is cut off or damaged.",
  too_large: "The picture is too large.",
  empty: "The file is empty.",
};

function show({ card, file }, results) {
  card.removeAttribute("aria-busy");
  if (results.every((result) => result.quality === null)) {
    const status = results[0].status;
    return fail({ card, file }, WHY[status] || plain(status));
  }
  drawBoxes(card.querySelector(".photo"), results);
  card.lastChild.replaceWith(make("div", { class: "faces" }, ...results.map((result) => faceOf(result, file))));
}

// ---------------------------------------------------------------------------------------------- a photograph and its faces

function photoOf(file) {
  const image = make("img", { src: URL.createObjectURL(file), alt: "", onerror: () => { image.hidden = true; } }); // TIFF
  return make("figure", { class: "photo" }, make("div", { class: "frame" }, image), make("figcaption", { class: "small muted" }, file.name));
}

// Boxes and points, where the answer has them, over the photograph as it is shown.
function drawBoxes(photo, results) {
  const image = photo.querySelector("img");
  const draw = () => {
    const boxes = results.filter((result) => result.box);
    if (!boxes.length || !image.naturalWidth) return;
    const node = (tag, attributes) => {
      const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
      return element;
    };
    const { naturalWidth: width, naturalHeight: height } = image;
    const svg = node("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
    for (const { box: [left, top, right, bottom], points } of boxes) {
      svg.append(node("rect", { x: left, y: top, width: right - left, height: bottom - top, rx: (right - left) / 20 }));
      const flat = (points || []).flat();
      for (let k = 0; k + 1 < flat.length; k += 2) svg.append(node("circle", { cx: flat[k], cy: flat[k + 1], r: (right - left) / 24 }));
    }
    const frame = photo.querySelector(".frame");
    frame.style.position = "relative";
    frame.append(svg);
  };
  if (image.complete) draw();
  else image.addEventListener("load", draw);
}

const shownScore = (q) => q.toFixed(Math.abs(q) < 10 ? 3 : 1);

function faceOf(result, file) {
  const name = file.name + (result.face > 0 ? `, face ${result.face}` : "");
  const box = make("input", { type: "checkbox", onchange: (event) => mark(event.target, { result, name }) });
  const side = make("div", { class: "side" }, make("img", { class: "crop", src: result.picture, alt: `The face in ${name} as the network saw it` }),
    make("label", { class: "small" }, box, " Compare"));
  // A map is of the first face.
  if (service?.maps && !result.face) side.append(make("button", { class: "small", onclick: () => showMap(file, name) }, "Map"));
  return make("section", { class: "face", "aria-label": name }, side, facts(result));
}

function facts(result) {
  if (result.quality === null) return make("p", {}, WHY[result.status] || plain(result.status));
  const levels = service && Object.fromEntries(Object.entries(service.levels).filter(([axis]) => axis !== "quality"));
  const band = { low: "chip bad", high: "chip good" }[result.band] || "chip";
  const parts = [make("div", { class: "head" }, make("span", { class: "score number" }, shownScore(result.quality)),
    result.band ? make("span", { class: band }, result.band) : null,
    result.status === "ok" ? null : make("span", { class: "chip" }, plain(result.status)),
    typeof result.percentile === "number" && service?.percentile_set ? make("span", { class: "small muted" }, `higher than ${Math.round(result.percentile)} % of ${service.percentile_set}`) : null)];
  if (result.reasons?.length) {
    parts.push(make("ul", { class: "reasons" }, ...result.reasons.map((reason) => make("li", {}, make("span", { class: "chip bad" }, plain(reason.code)), reason.advice || ""))));
  } else if (result.reasons) {
    parts.push(make("p", { class: "small muted" }, "No reason against this picture."));
  }
  if (levels && result.factors) parts.push(factorBars(levels, Object.keys(levels).map((factor) => Object.values(result.factors[factor])), true));
  if (service && result.quality_distribution) parts.push(make("section", {}, make("h3", {}, "Probability of each level of quality"), distributionColumns(service.levels.quality, result.quality_distribution)));
  return make("div", { class: "facts" }, ...parts);
}

// ---------------------------------------------------------------------------------------------- compare, map

const dialog = document.querySelector("dialog");

function open(title, body) {
  byId("dialog-title").textContent = title;
  byId("dialog-body").replaceChildren(body);
  if (!dialog.open) dialog.showModal();
}

function mark(box, face) {
  if (box.checked) {
    compared.push({ ...face, box });
    if (compared.length > 2) compared.shift().box.checked = false;
  } else {
    compared.splice(compared.findIndex((other) => other.box === box), 1);
  }
  showTray();
}

function showTray() {
  byId("tray").hidden = !compared.length;
  byId("compare").disabled = compared.length < 2;
  byId("tray-text").textContent = compared.length < 2 ? "Choose one more face" : "Two faces";
}

function clearMarks() {
  for (const { box } of compared.splice(0)) box.checked = false;
  showTray();
}

function compare() {
  const [a, b] = compared;
  const difference = Math.abs(a.result.quality - b.result.quality);
  const better = difference < 0.0005 ? null : a.result.quality > b.result.quality ? a : b; // as the scores are shown
  const column = (face) => make("div", {}, make("img", { src: face.result.picture, alt: face.name, class: face === better ? "better" : "" }),
    make("p", { class: "small muted" }, face.name), facts(face.result));
  open(better ? `${better.name} is better by ${difference.toFixed(3)}` : "Both have the same score", make("div", { class: "pair" }, column(a), column(b)));
}

async function showMap(file, name) {
  open(`What lowers the score of ${name}`, make("p", { class: "muted" }, "Measuring …"));
  const body = new FormData();
  body.append("image", file, file.name);
  let content;
  try {
    const answer = await fetch("/map", { method: "POST", body });
    content = await answer.json();
    if (!answer.ok) throw new Error(content.detail);
    if (content.status !== "ok") throw new Error(plain(content.status));
  } catch (error) {
    return open(`What lowers the score of ${name}`, make("p", {}, `There is no map: ${error.message}`));
  }
  const rows = Object.entries(content.regions).sort((a, b) => b[1] - a[1]).flatMap(([region, effect]) => [make("dt", {}, region), make("dd", { class: "number" }, effect.toFixed(3))]);
  open(`What lowers the score of ${name}`, make("div", { class: "map" }, make("img", { src: content.picture, alt: "Map of the face" }),
    make("div", {}, make("p", { class: "small muted" }, "Each part of the face was replaced by that of a mean face. A number above 0 is what the part costs: red. Below 0 it helps: blue."), make("dl", {}, ...rows))));
}

byId("compare").addEventListener("click", compare);
byId("tray-clear").addEventListener("click", clearMarks);
byId("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

// ---------------------------------------------------------------------------------------------- where photographs come from

byId("choose").addEventListener("click", () => byId("files").click());
byId("files").addEventListener("change", (event) => { add(event.target.files); event.target.value = ""; });
const zone = document.documentElement;
zone.addEventListener("dragover", (event) => { event.preventDefault(); byId("drop").classList.add("over"); });
zone.addEventListener("dragleave", (event) => { if (!event.relatedTarget) byId("drop").classList.remove("over"); });
zone.addEventListener("drop", (event) => { event.preventDefault(); byId("drop").classList.remove("over"); add(event.dataTransfer.files); });
document.addEventListener("paste", (event) => add(event.clipboardData.files));
byId("clear").addEventListener("click", () => {
  for (const image of document.querySelectorAll(".photo img")) URL.revokeObjectURL(image.src);
  byId("results").replaceChildren();
  compared.splice(0);
  showTray();
  byId("clear").hidden = true;
  byId("drop").classList.remove("small-zone");
  say("");
  byId("choose").focus();
});

const video = document.querySelector("video");
let shots = 0;

byId("camera").addEventListener("click", async () => {
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "user", width: { ideal: 1280 } } });
  } catch (error) {
    return say(`There is no camera: ${error.message}`, true);
  }
  byId("camera-panel").hidden = false;
  byId("stop").focus();
});
video.addEventListener("loadeddata", () => { byId("take").disabled = false; byId("take").focus(); });
byId("take").addEventListener("click", () => {
  const canvas = make("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => { if (blob) add([new File([blob], `camera ${++shots}.jpg`, { type: "image/jpeg" })]); }, "image/jpeg", 0.95);
});
byId("stop").addEventListener("click", () => {
  for (const track of video.srcObject?.getTracks() || []) track.stop();
  video.srcObject = null;
  byId("take").disabled = true;
  byId("camera-panel").hidden = true;
  byId("camera").focus();
});

start();
