// What is served, and which of it is chosen.

import { at, el } from "./draw.js";

export const models = [];

const named = (name) => models.find((one) => one.name === name);
export const first = () => named(at("model").value);
export const second = () => (at("beside").hidden ? undefined : named(at("other").value));
export const both = () => [first(), second()].filter(Boolean);
export const labels = (one) => Object.keys(one.questions).length > 0;
export const readsTexts = (one) => labels(one) || one.asks_anything;
export const choices = (select, pairs) => select.replaceChildren(...pairs.map(([value, text]) => el("option", { value }, text)));

// Two models can be asked about the same text if they read the same columns; the name of an only one does not matter.
export function comparable(a, b) {
  const same = a.columns.length === b.columns.length && (a.columns.length === 1 || a.columns.every((column) => b.columns.includes(column)));
  return same && readsTexts(b) && a !== b;
}

// A row of fields, in the order of the first model's columns, as another model takes it.
export function textOf(one, fields) {
  const { columns } = first();
  return fields.length === 1 ? fields[0] : Object.fromEntries(one.columns.map((column) => [column, fields[columns.indexOf(column)]]));
}

// What the wires for a run's own question call it.
export const ownName = (one, question) => (Object.keys(one.questions).length > 1 ? `${one.name}/${question}` : one.name);

export function about(one) {
  const parts = [one.description, one.base === one.name ? "" : `Over ${one.base}.`, one.max_length ? `Reads up to ${one.max_length.toLocaleString("en")} tokens.` : ""];
  return parts.filter(Boolean).join(" ");
}
