// Texts, numbers and shades; nothing here touches the page or the server.

export const percent = (share) => `${(100 * share).toFixed(1)} %`;
export const times = (factor) => (factor >= 1 ? `÷ ${factor.toFixed(1)}` : `× ${(1 / factor).toFixed(1)}`);

export const lines = (text) => text.split(/\r\n|\r|\n/).filter((line) => line.trim() !== "");

// The server counts characters; JavaScript's strings count halves of those beyond the first 65,536.
export const cut = (text, start, end) => Array.from(text).slice(start, end).join("");

// RFC 4180, with a mark that tells spreadsheets that it is UTF-8.
export function csv(rows) {
  const cell = (value) => (/[",\r\n]|^\s|\s$/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  return "\ufeff" + rows.map((row) => row.map((value) => cell(String(value))).join(",") + "\r\n").join("");
}

export const best = (probabilities) => Object.keys(probabilities).reduce((a, b) => (probabilities[b] > probabilities[a] ? b : a));

// By what factor the odds of an answer change when a word is left out; the same steps for every text. Of odds, since
// a sure answer hardly moves in points: from 99.9 % to 99.6 % they are a quarter.
export const STEPS = [1.5, 2, 4, 10];
const SURE = 1e-4;
const odds = (share) => Math.max(share, SURE) / Math.max(1 - share, SURE);

// What a word does to the answer `top`: the factor by which it raises the odds, a level 0 to 4, and the answer without it.
export function effect(top, probabilities, word) {
  const factor = odds(probabilities[top]) / odds(word.probabilities[top]);
  const level = STEPS.filter((step) => Math.max(factor, 1 / factor) >= step).length;
  return { factor, level, without: best(word.probabilities), share: word.probabilities[top] };
}

// Whatever shape the server's error has, its words.
export function errorText(body, fallback) {
  const error = body?.error;
  if (typeof error === "string") return error;
  if (typeof error?.message === "string") return error.message;
  if (typeof body?.detail === "string") return body.detail;
  if (!Array.isArray(body?.detail)) return fallback;
  const place = (loc) => (loc ?? []).filter((part, i) => i || part !== "body").join(".");
  return body.detail.map(({ loc, msg }) => (place(loc) ? `${place(loc)}: ${msg}` : msg)).join("\n");
}

// Own questions come as the server describes them; requests hold them in System One's shape.
export function asked({ kind, instructions, options }) {
  const described = options.some((option) => option.description);
  if (kind === "score") return { type: kind, instructions, criteria: options.map(({ name, description }) => description || name) };
  if (kind === "noul" && !described) return { type: kind, instructions };
  return { type: kind, instructions, criteria: Object.fromEntries(options.map(({ name, description }) => [name, description || null])) };
}

// Option -> probability of an answer in System One's shape.
export const shares = (answer) => (answer.type === "noul" ? { true: answer.noul, false: 1 - answer.noul } : answer.probabilities);

// A name to show for an option.
export function shown(name, question) {
  if (question.type === "noul") return name === "true" ? "yes" : name === "false" ? "no" : name;
  return question.type === "score" ? `${name}: ${question.criteria[Number(name)] ?? name}` : name;
}
