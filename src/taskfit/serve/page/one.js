// One text: what the chosen models answer, and what each of its words does.

import { call } from "./api.js";
import { at, bars, el, legend, tokens, words } from "./draw.js";
import { readQuestion } from "./editor.js";
import { asked, best, percent, shares, shown } from "./format.js";
import { both, first, ownName, second, textOf } from "./models.js";

function state(one) {
  const values = [...at("fields").querySelectorAll("textarea")].map((field) => field.value);
  if (values.every((value) => !value.trim())) throw new Error("There is no text yet: write or paste one.");
  return textOf(one, values);
}

// A model beside the first is asked its own question of that name; one that has none, what the first is asked.
function questions(one) {
  const chosen = at("question").value;
  if (chosen === "new") return { question: readQuestion() };
  const own = (of) => Object.entries(of.questions).filter(([name]) => chosen === "own" || chosen === `own ${name}`);
  const found = own(one).length || !one.asks_anything ? own(one) : own(first());
  if (!found.length) throw new Error(`${one.name} has no such question of its own: choose one that both models answer.`);
  return Object.fromEntries(found.map(([name, question]) => [name, asked(question)]));
}

export const oneRequest = (one) => ({ path: "v1/systemone", body: { model: one.name, state: state(one), questions: questions(one) } });

function names(question, probabilities) {
  if (question.type === "noul") return ["true", "false"];
  if (question.type === "score") return question.criteria.map((_, level) => String(level));
  return Object.keys(question.criteria).sort((a, b) => probabilities[b] - probabilities[a]);
}

// Of a model; where there is one, its name is seen above already.
const section = (name, parts) => el("section", {}, el("h3", { class: second() ? "" : "unseen" }, name), ...parts);

function drawAnswers(one, body, found) {
  const parts = Object.entries(found.answers).flatMap(([name, answer]) => {
    const question = body.questions[name];
    const probabilities = shares(answer);
    const sure = answer.confidence === undefined ? "" : `Confidence ${percent(answer.confidence)}`;
    const given = answer.labels ? `${answer.labels.join(", ") || "none of the labels"}: those that reach their thresholds` : sure;
    return [el("h4", {}, question.instructions || name), ...bars(question, probabilities, names(question, probabilities)), el("p", { class: "soft" }, given)];
  });
  if (one.multi_label) parts.push(el("p", { class: "soft" }, "A text may have several labels: probabilities do not add up to 100 %."));
  return section(one.name, parts);
}

function summary(body, found) {
  const said = Object.entries(found.answers).map(([name, answer]) => {
    if (answer.labels) return answer.labels.join(", ") || "none of the labels";
    const top = best(shares(answer));
    return `${shown(top, body.questions[name])}, ${percent(shares(answer)[top])}`;
  });
  return `${body.model}: ${said.join("; ")}`;
}

export async function answerOne(signal) {
  const chosen = both();
  const bodies = chosen.map((one) => oneRequest(one).body);
  at("status").textContent = "Answering…";
  const found = await Promise.all(bodies.map((body) => call("v1/systemone", { body, signal })));
  at("answers").replaceChildren(...found.map((answers, i) => drawAnswers(chosen[i], bodies[i], answers)));
  at("words").replaceChildren();
  at("status").textContent = found.map((answers, i) => summary(bodies[i], answers)).join(". ");
}

// Of several questions the first is explained.
export async function explainOne(signal) {
  const chosen = both();
  const asks = chosen.map((one) => {
    const [name, question] = Object.entries(questions(one))[0];
    const isOwn = at("question").value !== "new" && name in one.questions;
    return { question, body: { model: isOwn ? ownName(one, name) : one.name, state: state(one), ...(isOwn ? {} : { question }) } };
  });
  at("status").textContent = "Leaving out one word after the other…";
  const found = await Promise.all(asks.map(({ body }) => call("v1/taskfit/explain", { body, signal })));
  const parts = found.map((explained, i) => {
    const { question, body } = asks[i];
    return section(chosen[i].name, [...words(explained, question, body.state), tokens(explained.tokens)]);
  });
  at("words").replaceChildren(...parts, legend());
  at("status").textContent = `${found[0].words.length} words, each left out once.`;
}
