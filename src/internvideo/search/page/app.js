// The search page: one state, read from and written to the address, so that links and the back button work.
const $ = (id) => document.getElementById(id);
let upload = null; // a picture or clip of this computer; it cannot stand in the address
let request = 0;
let opened = null; // the moment in the player
let nullQueries = {}; // how many null queries there are of each kind of query

function clock(seconds) {
  const tenths = Math.round(seconds * 10);
  const [h, m, s] = [Math.floor(tenths / 36000), Math.floor(tenths / 600) % 60, Math.floor(tenths / 10) % 60];
  return `${h ? `${h}:` : ""}${h ? String(m).padStart(2, "0") : m}:${String(s).padStart(2, "0")}.${tenths % 10}`;
}

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children); // text nodes: names and labels of others are shown, never parsed
  return element;
}

function parameters() {
  const found = new URLSearchParams(location.search);
  const wanted = new URLSearchParams();
  for (const name of ["q", "like", "t", "where", "threshold", "top"]) {
    if (found.get(name)) wanted.set(name, found.get(name));
  }
  return wanted;
}

function fill() {
  const found = new URLSearchParams(location.search);
  $("q").value = found.get("q") ?? "";
  $("where").value = found.get("where") ?? "";
  if (found.has("threshold")) $("threshold").value = found.get("threshold");
  if (found.has("top")) $("top").value = found.get("top");
  $("more").open = Boolean(found.get("where")) || $("more").open;
  const like = found.get("like");
  showExample(upload ? upload.name : like ? `a moment at ${clock(Number(found.get("t") ?? 0))} of video ${like}` : "");
}

function showExample(text) {
  $("example").hidden = !text;
  $("example").querySelector("span").textContent = text ? `Looking for moments like ${text}` : "";
}

function say(text, error = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", error);
}

async function answered(response) {
  const type = response.headers.get("content-type") ?? "";
  const body = type.includes("json") ? await response.json() : { detail: await response.text() };
  if (response.ok) return body;
  const detail = Array.isArray(body.detail) ? body.detail.map((one) => one.msg).join("; ") : body.detail;
  throw new Error(detail || `the server answered ${response.status}`);
}

async function search() {
  const wanted = parameters();
  const mine = ++request; // whatever is on its way is no longer wanted
  fill();
  if (!upload && !wanted.get("q") && !wanted.get("like")) {
    $("results").replaceChildren();
    $("tools").hidden = true;
    say("");
    return;
  }
  const note = checkThreshold(wanted);
  say("Searching…");
  try {
    let response;
    if (upload) {
      const form = new FormData();
      for (const name of ["q", "where", "threshold", "top"]) if (wanted.get(name)) form.set(name, wanted.get(name));
      form.set("file", upload);
      response = await fetch("/api/search", { method: "POST", body: form });
    } else {
      response = await fetch(`/api/search?${wanted}`);
    }
    const answer = await answered(response);
    if (mine === request) show(answer, wanted, note);
  } catch (error) {
    if (mine !== request) return;
    $("results").replaceChildren();
    $("tools").hidden = true;
    say(error instanceof TypeError ? "The server does not answer. Is it still running?" : error.message, true);
  }
}

function show(answer, wanted, note) {
  const moments = answer.nothing_fits ? answer.nearest : answer.moments;
  const level = answer.threshold === null ? "" : `${(answer.threshold * 100).toPrecision(2).replace(/\.0$/, "")} %`;
  if (answer.nothing_fits && moments.length) say(`Nothing fits: nothing here is above the threshold of ${level} false matches. The nearest:`);
  else if (!moments.length) say("Nothing to show: no window passes the filter.");
  else say(`${moments.length} moment${moments.length === 1 ? "" : "s"}${level ? `, each reached by at most ${level} of queries that nothing fits` : ""}${note}`);
  $("results").classList.toggle("faint", answer.nothing_fits);
  $("results").replaceChildren(...moments.map(card));
  $("tools").hidden = Boolean(upload) || answer.nothing_fits;
  for (const format of ["csv", "json", "edl"]) $(format).href = `/api/export?${wanted}&format=${format}`;
}

function card(moment) {
  const name = moment.path.split("/").at(-1);
  const span = `${clock(moment.start)} – ${clock(moment.end)}`;
  const strip = make("span", { class: "strip" });
  for (let index = 0; index < 4; index += 1) { // whole squares; there is a picture per second
    const time = moment.start + ((index + 0.5) * (moment.end - moment.start)) / 4;
    const source = `/api/videos/${moment.video}/frame?t=${time.toFixed(2)}`;
    strip.append(make("img", { src: source, alt: index ? "" : `${name} at ${clock(time)}`, loading: "lazy", width: 160, height: 160 }));
  }
  const rail = make("span", { class: "rail", role: "img", "aria-label": `${span} of ${clock(moment.duration)}` });
  const mark = place(make("b"), moment, moment.duration);
  rail.append(...spans(moment.actions, moment.duration), mark);
  const body = make("span", { class: "body" }, make("span", { class: "name" }, name), rail,
    make("span", { class: "line" }, make("span", {}, span), ...moment.labels.slice(0, 3).map((label) => make("span", {}, label))));
  const actions = [...new Set(moment.actions.map((action) => action.label))];
  if (actions.length) body.append(make("span", { class: "line actions" }, `Actions: ${actions.slice(0, 4).join(", ")}`));
  if (moment.p_value !== null) body.append(unusual(moment.p_value));
  const button = make("button", { type: "button", class: "moment", title: "Play" }, strip, body);
  button.addEventListener("click", () => play(moment));
  return make("li", {}, button);
}

function place(element, { start, end }, duration) {
  element.style.left = `${(100 * start) / duration}%`;
  element.style.width = `${(100 * (end - start)) / duration}%`;
  return element;
}

function spans(parts, duration) {
  return parts.map((part) => place(make("i"), part, duration));
}

function unusual(chance) {
  // 0 where half of all queries that nothing fits score as high; full at one in 500.
  const value = Math.min(1, Math.max(0, Math.log(chance / 0.5) / Math.log(0.002 / 0.5)));
  const percent = chance < 0.1 ? (chance * 100).toFixed(1) : Math.round(chance * 100);
  const text = `by chance ${percent} %`;
  return make("span", { class: "unusual" }, "How unusual", make("meter", { min: 0, max: 1, value: value.toFixed(3), "aria-label": `How unusual is this match: ${text}` }), text);
}

function play(moment) {
  opened = moment;
  const video = $("video");
  $("title").textContent = `${moment.path.split("/").at(-1)}, ${clock(moment.start)} – ${clock(moment.end)}`;
  $("hint").textContent = "";
  const span = `start=${moment.start.toFixed(3)}&end=${moment.end.toFixed(3)}`;
  $("clip").href = `/api/videos/${moment.video}/clip?${span}`;
  video.onerror = () => {
    video.onerror = () => { $("hint").textContent = "This video cannot be shown."; };
    const start = Math.max(0, moment.start - 2);
    $("hint").textContent = `Your browser cannot play this file: a small preview from ${clock(start)}.`;
    video.src = `/api/videos/${moment.video}/preview?start=${start.toFixed(3)}&end=${(moment.end + 2).toFixed(3)}`;
    video.play().catch(() => {});
  };
  video.src = `/api/videos/${moment.video}/file#t=${moment.start.toFixed(2)},${moment.end.toFixed(2)}`;
  if (!$("player").open) $("player").showModal();
  timelines(moment);
  video.focus();
  video.play().catch(() => {});
}

// What annotations and classifiers say of the whole video: a line a label, whose parts play.
async function timelines(moment) {
  $("timelines").replaceChildren();
  const details = await fetch(`/api/videos/${moment.video}`).then(answered).catch(() => null);
  if (opened !== moment || !details) return;
  const lines = new Map();
  for (const action of details.actions) lines.set(action.label, [...(lines.get(action.label) ?? []), action]);
  for (const [start, end, label] of details.labels) {
    const parts = lines.get(label) ?? [];
    if (parts.length && start <= parts.at(-1).end) parts.at(-1).end = Math.max(end, parts.at(-1).end); // windows overlap
    else parts.push({ start, end });
    lines.set(label, parts);
  }
  for (const [label, parts] of [...lines].slice(0, 30)) {
    const rail = make("span", { class: "rail" });
    for (const part of parts) {
      const score = part.score == null ? "" : `, score ${part.score.toFixed(2)}`;
      const said = `${label}, ${clock(part.start)} – ${clock(part.end)}${score}`;
      const button = place(make("button", { type: "button", title: said, "aria-label": `Play ${said}` }), part, moment.duration);
      button.addEventListener("click", () => play({ ...moment, start: part.start, end: part.end }));
      rail.append(button);
    }
    $("timelines").append(make("li", {}, make("span", {}, label), rail));
  }
}

function submit() {
  const wanted = new URLSearchParams();
  const like = new URLSearchParams(location.search);
  for (const name of ["q", "where", "threshold", "top"]) if ($(name).value.trim()) wanted.set(name, $(name).value.trim());
  if (!$("threshold").value) wanted.set("threshold", "");
  if (!upload && !$("example").hidden) for (const name of ["like", "t"]) if (like.has(name)) wanted.set(name, like.get(name));
  history.pushState(null, "", `?${wanted}`);
  search();
}

function use(file) {
  if (!file) return;
  if (file.size > 256 * 2 ** 20) {
    say(`${file.name} has more than 256 MB.`, true);
    return;
  }
  upload = file;
  showExample(file.name);
  submit();
}

// Leaves out a threshold that the collection cannot tell for this kind of query; returns why.
function checkThreshold(wanted) {
  const like = upload || wanted.get("like");
  const kind = wanted.get("q") ? (like ? "sum" : "text") : "clip";
  const level = wanted.get("threshold");
  if (!level || (Number.parseFloat(level) / 100) * ((nullQueries[kind] ?? 0) + 1) >= 1) return "";
  wanted.delete("threshold");
  const reason = { sum: "for words and a picture together", text: "for words", clip: "for pictures and clips" }[kind];
  return ` (no threshold of ${level} ${reason} in this collection: all are shown)`;
}

function facts(now) {
  nullQueries = now.null_queries;
  const hours = now.seconds / 3600;
  const length = hours >= 1 ? `${hours.toFixed(1)} h` : `${Math.round(now.seconds / 60)} min`;
  const line = [`${now.videos} videos, ${length}, ${now.windows} windows`];
  if (now.unreadable) line.push(`${now.unreadable} unreadable`);
  const order = now.sees_order_of_time;
  const badge = make("span", { class: "badge" });
  badge.textContent = order === null ? "order of time not measured" : order ? "sees the order of time" : "blind to the order of time";
  badge.title = order === null ? "" : "Measured here: how far clips played backwards are from themselves, beside the distance of other clips";
  $("facts").replaceChildren(line.join(" · "), badge);
}

function follow() {
  const events = new EventSource("/api/events");
  let before = "";
  events.onmessage = async (event) => {
    const { progress } = JSON.parse(event.data);
    if (before && before !== event.data) facts(await answered(await fetch("/api/collection")));
    before = event.data;
    if (progress && progress.done < progress.total) $("facts").append(` · indexing ${progress.done} of ${progress.total}`);
  };
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
$("file").addEventListener("change", () => { use($("file").files[0]); $("file").value = ""; });
$("choose").addEventListener("click", () => $("file").click());
$("example").querySelector("button").addEventListener("click", () => { upload = null; showExample(""); submit(); });
$("close").addEventListener("click", () => $("player").close());
$("player").addEventListener("close", () => { $("video").onerror = null; $("video").removeAttribute("src"); $("video").load(); });
$("similar").addEventListener("click", () => {
  upload = null;
  const middle = ((opened.start + opened.end) / 2).toFixed(2);
  $("player").close();
  history.pushState(null, "", `?like=${opened.video}&t=${middle}&threshold=${encodeURIComponent($("threshold").value)}`);
  search();
});
addEventListener("popstate", search);
addEventListener("dragenter", (event) => { event.preventDefault(); $("drop").hidden = false; });
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").hidden = true; });
addEventListener("drop", (event) => { event.preventDefault(); $("drop").hidden = true; use(event.dataTransfer.files[0]); });
addEventListener("paste", (event) => use(event.clipboardData.files[0]));
addEventListener("keydown", (event) => {
  const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(document.activeElement.tagName);
  const cards = [...document.querySelectorAll(".moment")];
  const place = cards.indexOf(document.activeElement);
  if (event.key === "/" && !typing && !$("player").open) { event.preventDefault(); $("q").focus(); $("q").select(); }
  if (event.key === "ArrowDown" && document.activeElement === $("q") && cards.length) { event.preventDefault(); cards[0].focus(); }
  if (["ArrowRight", "ArrowLeft"].includes(event.key) && place >= 0) {
    event.preventDefault();
    cards[place + (event.key === "ArrowRight" ? 1 : -1)]?.focus();
  }
});

fill();
// A search needs the number of null queries; without one, what is typed meanwhile stays.
fetch("/api/collection").then(answered).then(facts).catch((error) => say(error.message, true)).finally(() => { if (location.search) search(); });
follow();
