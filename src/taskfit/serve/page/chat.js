// A conversation with a generator, word by word as it is written.

import { events } from "./api.js";
import { at, el } from "./draw.js";

const messages = [];
let running = null;

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

export const stopChat = () => running?.abort();

export function startOver() {
  stopChat();
  messages.length = 0;
  at("talk").replaceChildren();
  at("status").textContent = "Nothing said yet.";
}

// Send the message of the form; on an error it stands in the form again.
export async function sendMessage(model) {
  const { path, body } = chatRequest(model);
  const asked = body.messages.at(-1);
  if (!asked.content.trim()) throw new Error("The message is empty.");
  stopChat();
  const mine = (running = new AbortController());
  const said = turn("user", asked.content);
  const answer = turn("assistant", "");
  at("message").value = "";
  at("hush").disabled = false;
  at("talk").setAttribute("aria-busy", "true");
  at("status").textContent = "Writing…";
  let reason = "stopped";
  try {
    for await (const event of events(path, { body, signal: mine.signal })) {
      const choice = event.choices?.[0];
      answer.body.append(choice?.delta?.content ?? "");
      reason = choice?.finish_reason ?? reason;
    }
  } catch (error) {
    if (error.name !== "AbortError") {
      said.whole.remove();
      answer.whole.remove();
      at("message").value = asked.content;
      at("status").textContent = "Not answered.";
      throw error;
    }
  } finally {
    if (running === mine) running = null;
    at("hush").disabled = true;
    at("talk").removeAttribute("aria-busy");
  }
  if (!answer.whole.isConnected) return; // started over meanwhile
  messages.push(asked, { role: "assistant", content: answer.body.textContent });
  at("status").textContent = { length: "Ended at the most tokens.", stopped: "Stopped." }[reason] ?? "Answered.";
}
