// A question of one's own: kind, instructions, options.

import { at, el } from "./draw.js";

const TITLES = {
  choice: ["Options", "name", "when it applies"],
  noul: ["Yes and no", "", "when it applies"],
  score: ["Levels, lowest first", "", "what the level means"],
};
const empty = () => ({ name: "", description: "" });
const options = { choice: [empty(), empty()], noul: [empty(), empty()], score: [empty(), empty()] };

const kind = () => at("kind").value;

function input(option, field, label) {
  const box = el("input", { "aria-label": label, placeholder: TITLES[kind()][field === "name" ? 1 : 2], autocomplete: "off" });
  box.value = option[field];
  box.addEventListener("input", () => (option[field] = box.value));
  return box;
}

function remove(list, i) {
  const button = el("button", { type: "button", "aria-label": `Remove option ${i + 1}` }, "×");
  button.disabled = list.length <= 2;
  button.addEventListener("click", () => {
    list.splice(i, 1);
    draw();
    at("add").focus();
    at("add").dispatchEvent(new Event("input", { bubbles: true }));
  });
  return button;
}

function row(option, i, list) {
  const parts = {
    choice: () => [input(option, "name", `Name of option ${i + 1}`), input(option, "description", `When option ${i + 1} applies`), remove(list, i)],
    noul: () => [el("span", { class: "level" }, i ? "no" : "yes"), input(option, "description", `When ${i ? "no" : "yes"} applies`)],
    score: () => [el("span", { class: "level" }, String(i)), input(option, "description", `Meaning of level ${i}`), remove(list, i)],
  };
  return el("div", { class: `option-row ${kind()}` }, ...parts[kind()]());
}

function draw() {
  at("options-title").textContent = TITLES[kind()][0];
  at("options").replaceChildren(...options[kind()].map(row));
  at("add").hidden = kind() === "noul";
}

export function setUpEditor() {
  at("kind").addEventListener("change", draw);
  at("add").addEventListener("click", () => {
    options[kind()].push(empty());
    draw();
    at("options").lastElementChild.querySelector("input").focus();
  });
  draw();
}

// The question in System One's shape; an Error says what is missing.
export function readQuestion() {
  const instructions = at("instructions").value.trim();
  const given = options[kind()].map(({ name, description }) => ({ name: name.trim(), description: description.trim() }));
  if (kind() === "noul") {
    if (!instructions) throw new Error("The question has no words: say what is asked.");
    const criteria = { true: given[0].description || null, false: given[1].description || null };
    return { type: "noul", instructions, ...(criteria.true || criteria.false ? { criteria } : {}) };
  }
  if (kind() === "score") {
    const bare = given.findIndex(({ description }) => !description);
    if (bare >= 0) throw new Error(`Level ${bare} has no words: say what it means, or remove it.`);
    return { type: "score", instructions, criteria: given.map(({ description }) => description) };
  }
  // Options called 0, 1, ... are sent in the order of these numbers: so JavaScript's objects keep them.
  const names = given.map(({ name }) => name);
  const bare = names.indexOf("");
  if (bare >= 0) throw new Error(`Option ${bare + 1} has no name: name it, or remove it.`);
  const twice = names.find((name, i) => names.indexOf(name) < i);
  if (twice !== undefined) throw new Error(`Two options are called “${twice}”: names must differ.`);
  return { type: "choice", instructions, criteria: Object.fromEntries(given.map(({ name, description }) => [name, description || null])) };
}
