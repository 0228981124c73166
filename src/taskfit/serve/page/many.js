// Many texts: a table of labels, and a file.

import { call } from "./api.js";
import { at, el, table } from "./draw.js";
import { csv, lines, percent } from "./format.js";
import { both, first, ownName, textOf } from "./models.js";

const TEXTS_AT_ONCE = 32;
const ROWS_SHOWN = 500;

// Rows of fields, one for each column of the first model.
function rowsOf(text) {
  const { name, columns } = first();
  const rows = lines(text).map((line) => (columns.length === 1 ? [line] : line.split("\t")));
  if (!rows.length) throw new Error("There is no text yet: write or paste some, one a line.");
  const odd = rows.findIndex((row) => row.length !== columns.length);
  if (odd >= 0) throw new Error(`Text ${odd + 1} has ${rows[odd].length} fields; ${name} reads ${columns.length}, with tabs between: ${columns.join(", ")}.`);
  return rows;
}

const classify = (one, question, rows) => ({ path: "classify", body: { model: ownName(one, question), input: rows.map((row) => textOf(one, row)) } });

export const manyRequest = (one) => classify(one, Object.keys(one.questions)[0], rowsOf(at("texts").value));

// The questions of the chosen models as columns of the table.
function asksOf(chosen) {
  const named = (one, question) => (chosen.length > 1 ? `${one.name}: ${question}` : question);
  return chosen.flatMap((one) => Object.entries(one.questions).map(([question, { options }]) => ({ one, question, options, head: named(one, question) })));
}

// Where a text may have several labels, they stand as in files, with | between them.
async function label({ one, question }, rows, signal) {
  const { path, body } = classify(one, question, rows);
  const { data } = await call(path, { body, signal });
  return data.map((answer) => (answer.labels ? { ...answer, label: answer.labels.join("|") } : answer));
}

function save(asks, rows, found) {
  const head = [...first().columns, ...asks.flatMap(({ head, options }) => [head, ...options.map(({ name }) => `${head}: ${name}`)])];
  const cells = found.map((answers, i) => [...rows[i], ...answers.flatMap((one) => [one.label, ...one.probs])]);
  const href = URL.createObjectURL(new Blob([csv([head, ...cells])], { type: "text/csv" }));
  el("a", { download: "answers.csv", href }).click();
  setTimeout(() => URL.revokeObjectURL(href), 1000);
}

function draw(asks, rows, found) {
  const head = [...first().columns, ...asks.flatMap((ask) => [ask.head, "probability"])];
  const cells = found.slice(0, ROWS_SHOWN).map((answers, i) => [...rows[i], ...answers.flatMap((one) => [one.label, percent(Math.max(...one.probs))])]);
  const button = el("button", { type: "button" }, "Save as CSV");
  button.addEventListener("click", () => save(asks, rows, found));
  at("table").replaceChildren(table("Answers", head, cells), el("div", { class: "row" }, button));
  const parts = [`${found.length} of ${rows.length} answered`];
  // Two runs of one question each can be compared label by label.
  if (asks.length === 2 && asks[0].one !== asks[1].one) parts.push(`${found.filter(([mine, theirs]) => mine.label !== theirs.label).length} differently`);
  if (found.length > ROWS_SHOWN) parts.push(`the first ${ROWS_SHOWN} are shown, the file holds all`);
  at("status").textContent = `${parts.join(", ")}.`;
}

// What is answered when it is stopped, or fails, stays.
export async function answerMany(signal) {
  const asks = asksOf(both());
  const rows = rowsOf(at("texts").value);
  const found = [];
  try {
    for (let start = 0; start < rows.length; start += TEXTS_AT_ONCE) {
      at("status").textContent = `${start} of ${rows.length} answered…`;
      const part = rows.slice(start, start + TEXTS_AT_ONCE);
      const answers = await Promise.all(asks.map((ask) => label(ask, part, signal)));
      found.push(...part.map((_, i) => answers.map((ofAsk) => ofAsk[i])));
    }
  } finally {
    if (found.length) draw(asks, rows, found);
  }
}
