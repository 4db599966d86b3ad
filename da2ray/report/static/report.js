"use strict";
// Without this file the page shows everything but the gallery. Text is set as text, never as HTML: others choose the keys.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function picture(label, what) {
  const number = label.pictures[what];
  if (number === undefined) return label.problems[what] ? element("span", "missing", label.problems[what]) : null;
  const image = element("img", what === "confidence" ? "levels" : "");
  image.src = data.pictures[number];
  image.alt = `${what} of ${label.key}`;
  image.decoding = "async";
  return image;
}

// Gallery: a tab for each score.
const tabs = [...document.querySelectorAll("[role=tab]")];
let chosen = 0;
let shown = []; // numbers of the shown labels in the order of the page, for the arrows of the enlarged view

function tile(number) {
  const label = data.labels[number];
  const made = element("button", "tile");
  made.type = "button";
  const place = shown.push(number) - 1;
  const pictures = element("span", "pictures");
  for (const what of ["image", "depth", "confidence"]) {
    const found = picture(label, what);
    if (found) pictures.append(found);
  }
  const value = element("span", "value");
  const [said, rank] = label.scores[chosen] || ["not measured", ""];
  value.append(element("b", "", said), element("span", label.removed.length ? "out" : "soft", label.removed.length ? `${rank} · filtered out` : rank));
  made.append(pictures, value, element("span", "key", label.key));
  made.title = label.key;
  made.addEventListener("click", () => enlarge(place));
  return made;
}

function choose(index, focus) {
  chosen = index;
  tabs.forEach((tab, at) => {
    tab.setAttribute("aria-selected", at === index);
    tab.tabIndex = at === index ? 0 : -1;
  });
  if (focus) tabs[index].focus();
  const score = data.scores[index];
  const panel = byId("shown");
  panel.setAttribute("aria-labelledby", tabs[index].id);
  shown = [];
  panel.replaceChildren(element("p", "soft", `${score.meaning}. ${score.said}`));
  for (const [title, numbers] of score.rows) {
    const tiles = element("div", "tiles");
    tiles.append(...numbers.map(tile));
    panel.append(element("h3", "", title), tiles);
  }
}

tabs.forEach((tab, index) => {
  tab.addEventListener("click", () => choose(index, false));
  tab.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: index - 1, ArrowRight: index + 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose((to + tabs.length) % tabs.length, true);
  });
});
if (tabs.length) choose(data.first, false);

for (const button of document.querySelectorAll("button[data-score]")) {
  button.addEventListener("click", () => {
    choose(Number(button.dataset.score), true);
    byId("gallery").scrollIntoView();
  });
}

// Enlarged view: a modal dialog. The browser closes it on Escape and keeps the focus in it.
const dialog = byId("enlarged");
let place = 0;

function enlarge(at) {
  place = (at + shown.length) % shown.length;
  const label = data.labels[shown[place]];
  byId("enlarged-key").textContent = label.key;
  const large = dialog.querySelector(".large");
  large.replaceChildren();
  for (const [what, said] of Object.entries(data.captions)) {
    const found = picture(label, what);
    if (!found) continue;
    const figure = element("figure");
    figure.append(found, element("figcaption", "", said));
    large.append(figure);
  }
  const note = dialog.querySelector(".note");
  note.textContent = [label.size, label.removed.length ? `filtered out by ${label.removed.join(", ")}` : ""].filter(Boolean).join(" · ");
  note.classList.toggle("out", label.removed.length > 0);
  const values = dialog.querySelector(".values");
  values.replaceChildren();
  label.scores.forEach((found, index) => {
    if (!found) return;
    const row = element("div");
    row.title = data.scores[index].meaning;
    row.append(element("span", "", data.scores[index].name), element("b", "", found[0]), element("span", "", found[1]));
    values.append(row);
  });
  if (!dialog.open) dialog.showModal();
}

byId("previous").addEventListener("click", () => enlarge(place - 1));
byId("next").addEventListener("click", () => enlarge(place + 1));
byId("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") enlarge(place - 1);
  if (event.key === "ArrowRight") enlarge(place + 1);
});

// Tables: a click on a heading sorts by it, and another one reverses the order.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement;
    const column = head.cellIndex;
    const rising = head.getAttribute("aria-sort") === "descending" || (!head.hasAttribute("aria-sort") && !head.classList.contains("number"));
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    const body = head.closest("table").tBodies[0];
    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const compare = head.classList.contains("number")
      ? (a, b) => Number(value(a)) - Number(value(b))
      : (a, b) => value(a).localeCompare(value(b));
    body.append(...[...body.rows].sort((a, b) => (rising ? compare(a, b) : compare(b, a))));
  });
}

// Paper cannot be unfolded: open all details for printing.
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const details of opened) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of opened) details.open = false;
});
