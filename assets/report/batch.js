// The page of a batch: its rows, sorted and filtered; only those that are scrolled to are made.
"use strict";

const rows = JSON.parse(document.getElementById("rows").textContent);
const words = new Map(Object.entries(JSON.parse(document.getElementById("words").textContent)));
const body = document.querySelector("#subjects tbody");
const more = document.getElementById("more");
const order = ["ok", "doubtful", "failed", "error"]; // from the best to the worst; unknown ones before
const largest = 3; // mm at the end of a bar; more is a failed fit
const portion = 60; // rows that are made at once
const state = { status: null, text: "", key: "status", down: true };
let shown = [], made = 0;

function element(name, attributes, ...content) {
  const out = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) out.setAttribute(key, value);
  out.append(...content.filter((c) => c !== null)); // texts become text, whatever they hold
  return out;
}

const fixed = (value, digits, unit) => (value === undefined ? "–" : `${value.toFixed(digits)} ${unit}`);

function rowOf(row) {
  const [sign, word] = words.get(row.status) || ["?", row.status || "unknown"];
  const look = words.has(row.status) ? row.status : "unknown";
  const name = row.link ? element("a", { href: row.link }, row.subject) : row.subject;
  const pictured = { src: `data:image/jpeg;base64,${row.picture}`, alt: `fit of ${row.subject}`, height: 96, loading: "lazy", decoding: "async" };
  const picture = row.picture ? element("img", pictured) : element("span", { class: "quiet" }, "–");
  const error = element("td", { class: "mm" }, fixed(row.expected_mm, 1, "mm"));
  if (row.expected_mm !== undefined) {
    if (row.upper_mm !== undefined) error.append(element("span", { class: "quiet" }, ` ≤ ${row.upper_mm.toFixed(1)}`));
    const fill = element("i");
    fill.style.width = `${Math.min(100, (100 * row.expected_mm) / largest)}%`;
    error.append(element("span", { class: "bar", "aria-hidden": "true" }, fill));
  }
  return element(
    "tr",
    {},
    element("th", { scope: "row" }, name),
    element("td", {}, row.picture && row.link ? element("a", { href: row.link, tabindex: "-1" }, picture) : picture),
    element("td", {}, element("span", { class: `pill ${look}` }, element("b", { "aria-hidden": "true" }, sign), word)),
    error,
    element("td", { class: "number" }, row.reprojection_share === undefined ? "–" : fixed(100 * row.reprojection_share, 1, "%")),
    element("td", { class: "number" }, row.views === undefined ? "–" : String(row.views)),
    element("td", { class: "number" }, fixed(row.seconds, 1, "s")),
    element("td", { class: "reason" }, row.message),
  );
}

function compare(a, b) {
  const key = state.key;
  const x = key === "status" ? order.indexOf(a.status) : a[key], y = key === "status" ? order.indexOf(b.status) : b[key];
  const lacking = (v) => v === undefined || v === "";
  if (lacking(x) || lacking(y)) return lacking(x) - lacking(y); // what is not known comes last
  const by = typeof x === "string" ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
  return (state.down ? -by : by) || a.at - b.at;
}

function append() {
  const next = shown.slice(made, made + portion);
  made += next.length;
  body.append(...next.map(rowOf));
}

function show() {
  const text = state.text.trim().toLowerCase();
  shown = rows.filter(
    (row) =>
      (state.status === null || row.status === state.status) &&
      (!text || row.subject.toLowerCase().includes(text) || row.message.toLowerCase().includes(text)),
  );
  shown.sort(compare);
  made = 0;
  body.replaceChildren();
  append();
  document.getElementById("none").hidden = shown.length > 0;
  document.getElementById("count").textContent = shown.length === rows.length ? "" : `${shown.length} of ${rows.length}`;
  for (const button of document.querySelectorAll("[data-key]")) {
    const by = button.dataset.key === state.key;
    button.parentElement.setAttribute("aria-sort", by ? (state.down ? "descending" : "ascending") : "none");
  }
  watch.unobserve(more); // seen anew: it tells again whether it is in sight
  watch.observe(more);
}

const watch = new IntersectionObserver(
  (entries) => {
    if (!entries.some((e) => e.isIntersecting) || made >= shown.length) return;
    append();
    watch.unobserve(more);
    watch.observe(more);
  },
  { rootMargin: "1200px" },
);

rows.forEach((row, at) => (row.at = at));
for (const button of document.querySelectorAll(".tools button")) {
  button.addEventListener("click", () => {
    state.status = button.dataset.status ?? null;
    for (const other of document.querySelectorAll(".tools button")) other.setAttribute("aria-pressed", String(other === button));
    show();
  });
}
for (const button of document.querySelectorAll("[data-key]")) {
  button.addEventListener("click", () => {
    const same = state.key === button.dataset.key;
    state.down = same ? !state.down : button.dataset.down === "1";
    state.key = button.dataset.key;
    show();
  });
}
const search = document.getElementById("text");
search.addEventListener("input", () => {
  state.text = search.value;
  show();
});
state.text = search.value; // browsers keep it when a page is loaded again
show();
