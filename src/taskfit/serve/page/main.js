// The page: which model, what is asked, what is copied.

import { call, hasKey, root, setKey } from "./api.js";
import { chatRequest, sendMessage, startOver } from "./chat.js";
import { at, el } from "./draw.js";
import { setUpEditor } from "./editor.js";
import { answerMany, manyRequest } from "./many.js";
import { about, both, choices, comparable, first, labels, models, readsTexts } from "./models.js";
import { answerOne, explainOne, oneRequest } from "./one.js";
import { snippets } from "./snippets.js";

const picked = (name) => document.querySelector(`[name=${name}]:checked`)?.value;
let running = null;

function tell(error) {
  const asksForKey = error?.status === 401;
  at("error").textContent = error?.message ?? "";
  at("error").hidden = !error || (asksForKey && !hasKey()); // the form says it
  if (!asksForKey) return;
  at("key-form").hidden = false;
  at("key").focus();
}

// Do what a button asks for, once what the one before began has been ended.
async function work(task) {
  running?.abort();
  const mine = (running = new AbortController());
  tell(null);
  const show = (isBusy) => {
    at("results").ariaBusy = isBusy;
    for (const button of document.querySelectorAll(".stop")) button.disabled = !isBusy;
  };
  show(true);
  try {
    await task(mine.signal);
  } catch (error) {
    if (mine.signal.aborted) return;
    if (!at("status").textContent.includes("answered")) at("status").textContent = "Not answered.";
    tell(error);
  } finally {
    if (running === mine) show(false);
  }
}

const stop = () => running?.abort();

// Forget the answers of what is no longer chosen.
function clear() {
  stop();
  for (const id of ["answers", "words", "table"]) at(id).replaceChildren();
  at("status").textContent = "Nothing asked yet.";
  tell(null);
}

function drawMode() {
  const mode = picked("mode");
  for (const id of ["one", "many", "chat"]) at(id).hidden = id !== mode;
  at("answers").hidden = at("words").hidden = mode !== "one";
  at("table").hidden = mode !== "many";
  at("talk").hidden = mode !== "chat";
  drawBeside();
  clear();
  drawCode();
}

function drawBeside() {
  const found = models.filter((one) => comparable(first(), one) && (picked("mode") === "one" || labels(one)));
  at("beside").hidden = picked("mode") === "chat" || !found.length;
  const before = at("other").value;
  choices(at("other"), [["", "nothing"], ...found.map(({ name }) => [name, name])]);
  if (found.some(({ name }) => name === before)) at("other").value = before;
}

function drawQuestions(one) {
  const own = Object.keys(one.questions);
  const pairs = own.length ? [["own", own.length > 1 ? "all of its own" : `its own: ${own[0]}`]] : [];
  if (own.length > 1) pairs.push(...own.map((name) => [`own ${name}`, `its own: ${name}`]));
  if (one.asks_anything) pairs.push(["new", "another question"]);
  choices(at("question"), pairs);
  at("asks").textContent = one.asks_anything ? "" : "It answers the questions that it was fitted to, and no others.";
  at("asks").hidden = one.asks_anything;
  at("editor").hidden = at("question").value !== "new";
}

function drawModel() {
  const one = first();
  at("about").textContent = about(one);
  const allowed = { one: readsTexts(one), many: labels(one), chat: one.generates };
  for (const box of document.querySelectorAll("[name=mode]")) box.disabled = !allowed[box.value];
  if (!allowed[picked("mode")]) document.querySelector("[name=mode]:enabled")?.click();
  const kept = [...at("fields").querySelectorAll("textarea")].map((field) => field.value);
  const fields = one.columns.flatMap((column, i) => {
    const area = el("textarea", { id: `field-${i}`, rows: one.columns.length > 1 ? "3" : "6" });
    area.value = kept[i] ?? "";
    return [el("label", { for: `field-${i}` }, column === "text" ? "Text" : column), area];
  });
  at("fields").replaceChildren(...fields);
  at("texts-label").textContent = one.columns.length > 1 ? `Texts, one a line, with tabs between ${one.columns.join(" and ")}` : "Texts, one a line";
  drawQuestions(one);
  startOver();
  drawMode();
}

const request = () => ({ one: oneRequest, many: manyRequest, chat: ({ name }) => chatRequest(name) })[picked("mode")](first());

// The code is of the request that the button would send now, to the first model.
function drawCode() {
  if (!at("code").open) return;
  let found;
  try {
    found = snippets({ ...request(), url: root(), hasKey: hasKey() });
  } catch (error) {
    found = { curl: error.message };
  }
  const before = picked("language");
  const chosen = before in found ? before : "curl";
  at("languages").replaceChildren(at("languages").firstElementChild, ...Object.keys(found).map((name) => {
    const box = el("input", { type: "radio", name: "language", value: name });
    box.checked = name === chosen;
    return el("label", {}, box, el("span", {}, name));
  }));
  at("snippet").textContent = found[chosen];
  at("copied").textContent = "";
}

async function copy() {
  try {
    await navigator.clipboard.writeText(at("snippet").textContent);
    at("copied").textContent = "Copied.";
  } catch {
    // Without HTTPS browsers have no clipboard for pages of other machines.
    getSelection().selectAllChildren(at("snippet"));
    at("copied").textContent = "Selected: copy it with Ctrl + C.";
  }
}

async function load(signal) {
  let found;
  while (!found) {
    found = await call("v1/taskfit/models", { signal }).catch(async (error) => {
      if (error.status !== 503) throw error;
      tell(error); // models are being loaded
      await new Promise((resolve) => setTimeout(resolve, 1000));
    });
  }
  tell(null);
  // A bare model has no columns: it is asked about one text.
  models.splice(0, models.length, ...found.models.map((one) => ({ ...one, columns: one.columns.length ? one.columns : ["text"] })));
  choices(at("model"), models.map(({ name }) => [name, name]));
  at("key-form").hidden = true;
  at("work").hidden = false;
  drawModel();
}

function onSubmit(id, task) {
  at(id).addEventListener("submit", (event) => {
    event.preventDefault();
    work(task);
  });
  at(id).addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at(id).requestSubmit();
  });
}

setUpEditor();
onSubmit("one", answerOne);
onSubmit("many", answerMany);
onSubmit("chat", (signal) => sendMessage(first().name, signal));
onSubmit("key-form", (signal) => {
  setKey(at("key").value.trim());
  return load(signal);
});
at("explain").addEventListener("click", () => work(explainOne));
for (const button of document.querySelectorAll(".stop")) button.addEventListener("click", stop);
at("over").addEventListener("click", () => {
  startOver();
  clear();
});
at("copy").addEventListener("click", copy);
at("model").addEventListener("change", drawModel);
at("other").addEventListener("change", clear);
at("modes").addEventListener("change", drawMode);
at("question").addEventListener("change", () => (at("editor").hidden = at("question").value !== "new"));
at("work").addEventListener("input", drawCode);
at("code").addEventListener("toggle", drawCode);
work(load);
