// Many texts: a table of labels, and a file.

import { call } from "./api.js";
import { at, el, table } from "./draw.js";
import { asked, best, csv, lines, percent, shares } from "./format.js";
import { both, first } from "./models.js";

const TEXTS_AT_ONCE = 32;
const ROWS_SHOWN = 500;

// Rows of fields, one for each column of the model.
export function rowsOf(one, text) {
  const rows = lines(text).map((line) => (one.columns.length === 1 ? [line] : line.split("\t")));
  if (!rows.length) throw new Error("There is no text yet: write or paste some, one a line.");
  const odd = rows.findIndex((row) => row.length !== one.columns.length);
  if (odd >= 0) throw new Error(`Text ${odd + 1} has ${rows[odd].length} fields, ${one.name} reads ${one.columns.length}, with tabs between: ${one.columns.join(", ")}.`);
  return rows;
}

// The wire that takes many texts has one column and one question.
const isClassified = (one) => one.columns.length === 1 && Object.keys(one.questions).length === 1;

function rowRequest(one, row) {
  const state = row.length === 1 ? row[0] : Object.fromEntries(one.columns.map((column) => [column, row[first().columns.indexOf(column)]]));
  const questions = Object.fromEntries(Object.entries(one.questions).map(([name, question]) => [name, asked(question)]));
  return { path: "v1/systemone", body: { model: one.name, state, questions } };
}

const textsRequest = (one, rows) => ({ path: "classify", body: { model: one.name, input: rows.map(([text]) => text) } });

export function manyRequest(one) {
  const rows = rowsOf(one, at("texts").value);
  return isClassified(one) ? textsRequest(one, rows) : rowRequest(one, rows[0]);
}

// For each row, for each question of the model: label and probabilities.
async function label(one, rows, signal) {
  if (!isClassified(one)) {
    const found = await Promise.all(rows.map((row) => call("v1/systemone", { body: rowRequest(one, row).body, signal })));
    return found.map(({ answers }) => Object.keys(one.questions).map((name) => ({ label: best(shares(answers[name])), probabilities: shares(answers[name]) })));
  }
  const options = Object.values(one.questions)[0].options;
  const { data } = await call("classify", { body: textsRequest(one, rows).body, signal });
  return data.map((found) => [{ label: found.label, probabilities: Object.fromEntries(options.map(({ name }, i) => [name, found.probs[i]])) }]);
}

function save(head, rows) {
  const href = URL.createObjectURL(new Blob([csv([head, ...rows])], { type: "text/csv" }));
  el("a", { download: "answers.csv", href }).click();
  setTimeout(() => URL.revokeObjectURL(href), 1000);
}

function draw(chosen, rows, found) {
  const heads = chosen.flatMap((one) => Object.keys(one.questions).map((name) => (chosen.length > 1 ? `${one.name}: ${name}` : name)));
  const flat = found.map((answers) => answers.flat());
  const shownRows = flat.slice(0, ROWS_SHOWN).map((answers, i) => [...rows[i], ...answers.flatMap((one) => [one.label, percent(one.probabilities[one.label])])]);
  const head = [...first().columns, ...heads.flatMap((name) => [name, "probability"])];
  const button = el("button", { type: "button" }, "Save as CSV");
  button.addEventListener("click", () => {
    const names = flat[0].flatMap(({ probabilities }, i) => [heads[i], ...Object.keys(probabilities).map((option) => `${heads[i]}: ${option}`)]);
    save([...first().columns, ...names], flat.map((answers, i) => [...rows[i], ...answers.flatMap((one) => [one.label, ...Object.values(one.probabilities)])]));
  });
  at("table").replaceChildren(table("Answers", head, shownRows), el("div", { class: "row" }, button));
  const said = (answers) => answers.map((one) => one.label).join("\t");
  const differ = found.filter(([mine, theirs]) => theirs && said(mine) !== said(theirs)).length;
  const parts = [`${found.length} of ${rows.length} answered`];
  if (chosen.length > 1) parts.push(`${differ} differently`);
  if (found.length > ROWS_SHOWN) parts.push(`the first ${ROWS_SHOWN} are shown, the file holds all`);
  at("status").textContent = `${parts.join(", ")}.`;
}

// What is answered when it is stopped, or fails, stays.
export async function answerMany(signal) {
  const chosen = both();
  const rows = rowsOf(first(), at("texts").value);
  const found = [];
  at("stop").disabled = false;
  try {
    for (let start = 0; start < rows.length; start += TEXTS_AT_ONCE) {
      at("status").textContent = `${start} of ${rows.length} answered…`;
      const part = rows.slice(start, start + TEXTS_AT_ONCE);
      const answers = await Promise.all(chosen.map((one) => label(one, part, signal)));
      found.push(...part.map((_, i) => answers.map((ofModel) => ofModel[i])));
    }
  } finally {
    at("stop").disabled = true;
    if (found.length) draw(chosen, rows, found);
  }
}
