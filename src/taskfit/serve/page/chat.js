// A conversation with a generator, word by word as it is written.

import { events } from "./api.js";
import { at, el } from "./draw.js";

const messages = [];

const number = (id) => {
  const value = at(id).valueAsNumber;
  if (Number.isNaN(value)) throw new Error(`${at(id).labels[0].textContent}: a number is needed.`);
  return value;
};

// What is sent if the message in the form is sent now.
export const chatRequest = (model) => ({
  path: "v1/chat/completions",
  body: { model, messages: [...messages, { role: "user", content: at("message").value }], temperature: number("temperature"), max_tokens: number("most"), stream: true },
});

function turn(who, text) {
  const body = el("p", {}, text);
  const whole = el("div", { class: `turn ${who}` }, el("h3", {}, who === "user" ? "You" : "Answer"), body);
  at("talk").append(whole);
  return { whole, body };
}

export function startOver() {
  messages.length = 0;
  at("talk").replaceChildren();
}

// Send the message of the form; on an error it stands in the form again. What is written when it is stopped stays.
export async function sendMessage(model, signal) {
  const { path, body } = chatRequest(model);
  const asked = body.messages.at(-1);
  if (!asked.content.trim()) throw new Error("The message is empty.");
  const said = turn("user", asked.content);
  const answer = turn("assistant", "");
  at("message").value = "";
  at("talk").setAttribute("aria-busy", "true");
  at("status").textContent = "Writing…";
  let reason = "stopped";
  try {
    for await (const event of events(path, { body, signal })) {
      const choice = event.choices?.[0];
      answer.body.append(choice?.delta?.content ?? "");
      reason = choice?.finish_reason ?? reason;
    }
  } catch (error) {
    if (!signal.aborted) {
      said.whole.remove();
      answer.whole.remove();
      at("message").value = asked.content;
      throw error;
    }
  } finally {
    at("talk").removeAttribute("aria-busy");
  }
  if (!answer.whole.isConnected) return; // started over meanwhile
  messages.push(asked, { role: "assistant", content: answer.body.textContent });
  at("status").textContent = { length: "Ended at the most tokens.", stopped: "Stopped." }[reason] ?? "Answered.";
}
