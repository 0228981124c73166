// Pieces of the page. What users and models write enters as text nodes only.

import { best, cut, effect, percent, shown, STEPS, times } from "./format.js";

export const at = (id) => document.getElementById(id);

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export function table(caption, head, rows) {
  const header = el("tr", {}, ...head.map((name) => el("th", { scope: "col" }, name)));
  const body = rows.map((row) => el("tr", {}, ...row.map((cell, i) => (i ? el("td", {}, cell) : el("th", { scope: "row" }, cell)))));
  const whole = el("table", {}, el("caption", {}, caption), el("thead", {}, header), el("tbody", {}, ...body));
  return el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": caption }, whole);
}

const FEW = 10;

// Probabilities of a question's options as bars, in the order of `names`.
export function bars(question, probabilities, names) {
  const top = best(probabilities);
  const items = names.map((name, i) => {
    const fill = el("div", { class: "fill" });
    fill.style.setProperty("--share", probabilities[name]);
    const item = el("li", {}, el("span", { class: "option" }, shown(name, question)), el("div", { class: "bar", "aria-hidden": "true" }, fill), el("span", { class: "share" }, percent(probabilities[name])));
    if (name === top) item.classList.add("best");
    item.hidden = i >= FEW && name !== top;
    return item;
  });
  const list = el("ul", { class: "bars" }, ...items);
  if (items.every((item) => !item.hidden)) return [list];
  const more = el("button", { type: "button" }, `All ${names.length}`);
  more.addEventListener("click", () => {
    items.forEach((item) => (item.hidden = false));
    list.tabIndex = -1;
    list.focus();
    more.remove();
  });
  return [list, more];
}

function shaded(text, { factor, level, without, share }, top) {
  const attributes = { class: level ? `${factor > 1 ? "for" : "against"} level-${level}` : "", title: `Without it ${percent(share)}, odds ${times(factor)}` };
  const mark = el("span", attributes, text);
  if (without !== top) mark.classList.add("flips");
  return mark;
}

export function legend() {
  const step = (side, level) => el("span", { class: `${side} level-${level}` }, ` ${STEPS[level - 1]} `);
  const steps = (side) => STEPS.map((_, i) => step(side, i + 1));
  return el("p", { class: "legend soft" },
    "Without the word the answer's odds are divided by ", ...steps("for"), " or more (straight line), or multiplied by ", ...steps("against"),
    " or more (wavy line); ", el("span", { class: "flips" }, " boxed "), ": without it the answer is another.");
}

// A text with marks in the place of its words.
function marked(text, words, marks) {
  const ends = [0, ...words.map(({ end }) => end)];
  const between = words.map(({ start }, i) => [cut(text, ends[i], start), marks[i]]);
  return el("p", { class: "shaded" }, ...between.flat(), cut(text, ends.at(-1)));
}

// A state whose words are shaded by what leaving them out does to the most probable option.
export function words(explained, question, state) {
  const top = best(explained.probabilities);
  const effects = explained.words.map((word) => effect(top, explained.probabilities, word));
  const bodies = (typeof state === "string" ? [null] : Object.keys(state)).flatMap((column) => {
    const own = [...explained.words.keys()].filter((i) => explained.words[i].column === column);
    const body = marked(column === null ? state : state[column], own.map((i) => explained.words[i]), own.map((i) => shaded(explained.words[i].text, effects[i], top)));
    return column === null ? [body] : [el("p", { class: "soft" }, column), body];
  });
  const name = (option) => shown(option, question);
  const rows = explained.words.map((word, i) => [word.text, percent(effects[i].share), times(effects[i].factor), name(effects[i].without)]);
  const lead = `What each word does to “${name(top)}” (${percent(explained.probabilities[top])})`;
  return [
    el("h4", {}, lead), ...bodies,
    el("details", {}, el("summary", {}, "The same as a table"), table(lead, ["left out", "probability", "odds", "answer"], rows)),
  ];
}

const PARTS = { prompt: "prompt, the same for every text", text: "your text", question: "question" };

// Blanks and line ends are shown, since the model reads them as well.
const visible = (text) => text.replaceAll(" ", "·").replaceAll("\n", "⏎");

export function tokens(found) {
  const parts = Object.keys(PARTS).filter((part) => found.some((token) => token.part === part));
  const key = parts.flatMap((part) => [el("span", { class: `token ${part}` }, PARTS[part]), " "]);
  const body = el("p", { class: "tokens scroll", tabindex: "0", role: "group", "aria-label": "Tokens" }, ...found.flatMap(({ text, part }) => [el("span", { class: `token ${part}` }, visible(text)), text.endsWith("\n") ? "\n" : ""]));
  return el("details", {}, el("summary", {}, `The prompt as the model reads it: ${found.length} tokens`), el("p", { class: "legend soft" }, ...key), body);
}
