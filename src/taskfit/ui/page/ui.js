// The page of `taskfit ui`. All that it shows comes from the server's files; it keeps nothing itself.
// Texts of people's tables are only ever set as text, never as markup.

const POLL_MILLISECONDS = 1500;
const at = (id) => document.getElementById(id);
const NAMES = {accuracy: "accuracy", mcc: "MCC", macro_f1: "F1"};
const PHASES = {
  new: "not started", comparing: "at work", judging: "at work", done: "done", failed: "failed",
  interrupted: "interrupted",
};
let project = "";
let timer = 0;
let shownVerdict = "";
let polls = 0;

function element(tag, {text, name, ...rest} = {}, ...children) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  Object.assign(made, rest);
  made.append(...children);
  return made;
}

function show(id, visible) { at(id).hidden = !visible; }

function list(id, texts, name = "") {
  at(id).replaceChildren(...texts.map((text) => element("li", {text, name})));
}

function problem(text) {
  at("problem").textContent = text;
  show("problem", Boolean(text));
  if (text) at("problem").scrollIntoView({block: "nearest"});
}

async function call(path, {method = "GET", body} = {}) {
  const isFile = body instanceof Blob;
  const options = {method, body: isFile || body === undefined ? body : JSON.stringify(body)};
  if (body !== undefined) {
    options.headers = {"Content-Type": isFile ? "application/octet-stream" : "application/json"};
  }
  let response;
  try {
    response = await fetch(`/api/projects${path}`, options);
  } catch {
    throw new Error("The server of this page does not answer. Start `taskfit ui` again; a comparison that was running still is.");
  }
  const type = response.headers.get("Content-Type") || "";
  const found = type.includes("json") ? await response.json() : await response.text();
  if (!response.ok) throw new Error(found.error || (typeof found === "string" ? found : `Error ${response.status}`));
  return found;
}

// Does something for the project that is shown; what comes too late for it is dropped.
async function doing(work, status) {
  const own = project;
  if (status) at(status.id).textContent = status.text;
  try {
    problem("");
    const found = await work();
    return own === project ? found : undefined;
  } catch (error) {
    if (own === project) problem(error.message);
    return undefined;
  } finally {
    if (status && own === project) at(status.id).textContent = "";
  }
}

const number = (value) => value.toLocaleString("en");
const three = (value) => value.toFixed(3);

function duration(seconds) {
  if (seconds < 1) return "under 1 s";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

function size(bytes) {
  return bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : `${Math.round(bytes / 1e6)} MB`;
}

// ---- Home -------------------------------------------------------------------------------------

async function home() {
  const found = await doing(() => call(""));
  if (!found) return;
  show("earlier", found.length > 0);
  at("projects").replaceChildren(...found.map((one) => element("li", {}, element(
    "a", {href: `#${one.id}`}, element("span", {text: one.name}),
    element("span", {text: PHASES[one.phase], name: "quiet"}),
  ))));
}

async function upload(file) {
  if (!file) return;
  const status = {id: "uploading", text: `Reading ${file.name} ...`};
  const made = await doing(() => call(`?name=${encodeURIComponent(file.name)}`, {method: "POST", body: file}), status);
  at("file").value = "";
  if (made) location.hash = made.id;
}

// ---- The table --------------------------------------------------------------------------------

async function showTable() {
  const found = await doing(() => call(`/${project}/columns`));
  if (!found) return;
  at("project-name").textContent = found.name;
  document.title = `${found.name}: taskfit`;
  const columns = found.text.length && found.label ? `; text in ${found.text.join(", ")}, label in ${found.label}` : "";
  at("table-facts").textContent = `${number(found.rows)} rows${columns}${found.test_name ? `; measured on ${found.test_name}` : ""}`;
  list("table-notes", found.notes);
  const chosen = (name) => (found.text.includes(name) || name === found.label ? "chosen" : "");
  at("preview").replaceChildren(
    element("thead", {}, element("tr", {}, ...found.columns.map((text) => element("th", {text, scope: "col", name: chosen(text)})))),
    element("tbody", {}, ...found.preview.map((row) => element("tr", {}, ...row.map((text, i) => element("td", {text, name: chosen(found.columns[i])}))))),
  );
  const boxes = found.columns.map((name) => element(
    "label", {name: "check"}, element("input", {type: "checkbox", value: name, checked: found.text.includes(name), onchange: chooseColumns}), name,
  ));
  at("text-columns").replaceChildren(at("text-columns").firstElementChild, ...boxes);
  const open = element("option", {text: "choose ...", value: ""});
  at("label-column").replaceChildren(
    ...(found.label ? [] : [open]), ...found.columns.map((name) => element("option", {text: name, value: name})),
  );
  at("label-column").value = found.label;
  at("test-name").textContent = found.test_name ? `now: ${found.test_name}` : "without, 30 % of the table are held out";
  if (found.text.length && found.label) await showTask();
}

async function chooseColumns() {
  const text = [...at("text-columns").querySelectorAll(":checked")].map((box) => box.value);
  const label = at("label-column").value;
  if (!text.length || !label) return;
  const done = await doing(() => call(`/${project}/columns`, {method: "POST", body: {text, label}}));
  if (done !== undefined) await showTable();
}

async function chooseTest(file) {
  if (!file) return;
  const done = await doing(() => call(`/${project}/test?file=${encodeURIComponent(file.name)}`, {method: "POST", body: file}));
  at("test-file").value = "";
  if (done !== undefined) await showTable();
}

function bars(id, rows) {
  at(id).replaceChildren(...rows.map(({name, share, shown}) => {
    const fill = element("div", {name: "fill"});
    fill.style.width = `${100 * share}%`;
    return element("li", {}, element("span", {text: name, name: "name"}), element("div", {name: "track"}, fill), element("span", {text: shown, name: "number"}));
  }));
  // What scrolls must be within reach of the keyboard.
  at(id).tabIndex = rows.length > 8 ? 0 : -1;
}

async function showTask() {
  show("step-labels", true);
  show("task", false);
  show("step-budget", false);
  const status = {id: "looking", text: "Looking at labels, duplicates and the prompt ..."};
  const found = await doing(() => call(`/${project}/task`), status);
  if (!found) return show("step-labels", false);
  show("task", true);
  const sets = Object.entries(found.sets).map(([name, count]) => `${name} ${number(count)}`);
  at("sets").textContent = `${found.num_labels} labels; rows: ${sets.join(", ")}`;
  const most = Math.max(...found.labels.map((one) => one.count));
  bars("labels", found.labels.map((one) => ({name: one.name, share: one.count / most, shown: number(one.count)})));
  const warnings = [...found.notes, ...found.advice];
  const overlap = found.overlap && (found.is_clean ? "No text stands in two sets or twice in training." : found.overlap);
  const items = warnings.map((text) => element("li", {text, name: "warn"}));
  if (overlap) items.unshift(element("li", {text: overlap, name: found.is_clean ? "" : "warn"}));
  if (found.num_labels > found.labels.length) items.push(element("li", {text: `${found.num_labels - found.labels.length} more labels are not shown as bars.`}));
  at("notes").replaceChildren(...items);
  at("prompt").replaceChildren(...found.prompt.map((token) => element(
    token.answer ? "mark" : "span", {text: token.text.replaceAll(" ", "\u00b7").replaceAll("\n", "\u23ce\n")},
  )));
  at("lengths").textContent = `Prompt with answer: ${found.lengths.min} to ${found.lengths.max} tokens, mostly ${found.lengths.median}; ${found.num_shortened ? number(found.num_shortened) : "none"} of the texts are shortened to fit ${number(found.max_length)}. Model: ${found.model}.`;
  await poll();
}

// ---- Budgets ----------------------------------------------------------------------------------

async function showBudgets() {
  show("step-budget", true);
  at("start").disabled = true;
  at("budgets").replaceChildren(at("budgets").firstElementChild);
  const status = {id: "planning", text: "Planning time and memory of each method ..."};
  const found = await doing(() => call(`/${project}/budgets`), status);
  if (!found) return;
  const cards = found.map((one) => {
    const memory = one.memory_bytes ? `, ${size(one.memory_bytes)} of memory` : "";
    const cost = one.seconds === null ? "time not known before the model is here" : `about ${duration(one.seconds)}${memory}`;
    const draws = one.draws > 1 ? `, ${one.draws} draws each` : "";
    return element(
      "label", {name: "budget"},
      element("span", {name: "title"}, element("input", {type: "radio", value: one.name}), one.name),
      element("span", {text: cost + (one.fits ? "" : ", which does not fit this machine"), name: "cost"}),
      element("span", {text: one.summary, name: "quiet"}),
      element("span", {text: `${number(one.num_train)} rows to learn from, ${number(one.num_test)} to measure on`, name: "quiet"}),
      element("span", {text: one.methods.join(", ") + draws, name: "quiet"}),
    );
  });
  at("budgets").append(...cards);
  at("budgets").querySelectorAll("input").forEach((input) => input.setAttribute("name", "budget"));
  at("budgets").querySelectorAll("input")[1].checked = true;
  at("start").disabled = false;
}

async function start() {
  const budget = at("budgets").querySelector(":checked").value;
  at("start").disabled = true;
  await doing(() => call(`/${project}/start`, {method: "POST", body: {budget}}));
  at("start").disabled = false;
  await poll();
  at("step-runs").scrollIntoView({block: "start"});
}

// ---- Side by side -----------------------------------------------------------------------------

async function poll() {
  clearTimeout(timer);
  const own = project;
  const mine = ++polls;
  if (!own) return;
  try {
    const state = await call(`/${own}/state`);
    if (own !== project || mine !== polls) return;
    if (at("problem").dataset.lost) { problem(""); delete at("problem").dataset.lost; }
    showState(state);
  } catch (error) {
    if (own !== project || mine !== polls) return;
    problem(error.message);
    at("problem").dataset.lost = "1";
  }
  timer = setTimeout(poll, POLL_MILLISECONDS);
}

function phaseText(state) {
  const done = `${state.num_finished} of ${state.num_runs || "?"} runs finished`;
  const left = state.seconds_left === null ? "" : `, about ${duration(state.seconds_left)} left`;
  if (state.phase === "comparing") return `The ${state.budget} comparison runs: ${done}${left}.`;
  if (state.phase === "judging") return `${done}. Now the best is read back from disk and asked again ...`;
  if (state.phase === "interrupted") return `Interrupted: its process is gone. ${done}; nothing of them is lost.`;
  if (state.phase === "failed") return `It failed. ${state.error || ""}`;
  const took = state.finished ? ` in ${duration(state.finished - state.started)}` : "";
  return `${state.stopped ? "Stopped" : "Finished"}${took}: ${done}.`;
}

function showState(state) {
  const busy = state.phase === "comparing" || state.phase === "judging";
  const started = state.phase !== "new";
  const looked = !at("step-labels").hidden && !at("task").hidden;
  show("step-runs", started);
  show("column-fields", !started);
  // Planning measures this machine, so it waits until nothing is at work.
  if (looked && !busy && at("step-budget").hidden) showBudgets();
  if (busy) show("step-budget", false);
  at("start").textContent = started ? "Start this one" : "Start";
  if (!started) return show("step-winner", false);
  at("phase").textContent = phaseText(state);
  show("bar", busy);
  at("bar").max = Math.max(1, state.num_runs);
  at("bar").value = state.num_finished;
  const run = state.running;
  at("running").textContent = !run ? "" : run.step
    ? `Now ${run.method}: step ${run.step} of ${run.total_steps}, ${duration(run.left)} of training left.`
    : `Now ${run.method}, for ${duration(run.seconds)}.`;
  show("stop", state.phase === "comparing");
  show("resume", state.phase === "interrupted" || (state.phase === "failed" && state.num_runs > 0));
  show("run-actions", !at("stop").hidden || !at("resume").hidden);
  showMethods(state);
  list("failures", Object.entries(state.failures).map(([name, error]) => `${name}: ${error}`), "warn");
  showVerdict(state);
}

function scoreCell([mean, low, high], lowest) {
  const cell = element("td", {text: three(mean)}, element("span", {text: `${three(low)} to ${three(high)}`, name: "interval"}));
  const place = (value) => `${Math.max(0, Math.min(100, 100 * (value - lowest) / (1 - lowest)))}%`;
  const line = element("i");
  line.style.left = place(low);
  line.style.right = `calc(100% - ${place(high)})`;
  const dot = element("b");
  dot.style.left = place(mean);
  cell.append(element("span", {name: "range"}, line, dot));
  return cell;
}

function showMethods(state) {
  const kept = state.verdict && state.verdict.kept ? state.verdict.best.method : "";
  const rows = [...state.methods].sort((a, b) => b.scores.accuracy[0] - a.scores.accuracy[0]);
  at("methods").querySelector("tbody").replaceChildren(...rows.map((one) => element(
    "tr", {name: one.method === kept ? "winner" : ""},
    element("th", {scope: "row", text: one.method}, ...(one.draws > 1 ? [element("span", {text: `${one.draws} draws`, name: "interval"})] : [])),
    ...Object.keys(NAMES).map((key) => (one.scores[key] ? scoreCell(one.scores[key], key === "mcc" ? -1 : 0) : element("td", {text: "\u2013"}))),
    element("td", {text: one.seconds === null ? "\u2013" : duration(one.seconds)}),
    element("td", {text: one.memory_bytes === null ? "\u2013" : size(one.memory_bytes)}),
  )));
  at("measured").textContent = rows.length ? `Measured on ${number(rows[0].num_examples)} held-out rows; below each number its 95 % interval.` : "";
}

// ---- The winner -------------------------------------------------------------------------------

function pairs(id, found) {
  at(id).replaceChildren(...found.flatMap((one) => [element("dt", {text: one.heading}), element("dd", {text: one.text})]));
}

function changed(id, title, rows, count) {
  at(`${id}-title`).textContent = `${title}: ${number(count)}${count > rows.length ? ` (the first ${rows.length})` : ""}`;
  at(id).replaceChildren(...rows.map((row) => element(
    "li", {}, element("span", {text: row.text}),
    element("span", {name: "quiet"}, "label ", element("b", {text: row.label}), ", was ", element("span", {text: row.before, name: id === "gained" ? "bad" : "good"}), ", now ", element("span", {text: row.now, name: id === "gained" ? "good" : "bad"})),
  )));
  at(id).tabIndex = rows.length > 3 ? 0 : -1;
}

function moved(largest) {
  return largest < 0.00005 ? "nor any probability" : `no probability by more than ${largest.toFixed(4)}`;
}

function showVerdict(state) {
  const verdict = state.verdict;
  show("step-winner", Boolean(verdict));
  const stamp = JSON.stringify([project, verdict]);
  if (!verdict || stamp === shownVerdict) return;
  shownVerdict = stamp;
  at("step-winner").classList.toggle("kept", verdict.kept);
  at("verdict-title").textContent = verdict.kept ? `The winner: ${verdict.best.method}` : "No winner";
  at("reason").textContent = verdict.reason;
  at("reload").textContent = verdict.reload && verdict.reload.same
    ? `Read back from disk, it was asked ${number(verdict.reload.num_rows)} held-out rows again: no answer changed, ${moved(verdict.reload.largest)}.` : "";
  pairs("advice", verdict.advice);
  pairs("details", verdict.details);
  at("report").href = `/api/projects/${project}/report`;
  show("changes", Boolean(verdict.gained));
  if (verdict.gained) {
    const against = `against ${verdict.baseline.method}`;
    changed("gained", `Rows it newly gets right, ${against}`, verdict.gained, verdict.num_gained);
    changed("lost", `Rows it newly gets wrong, ${against}`, verdict.lost, verdict.num_lost);
  }
  at("try-fields").replaceChildren(...state.columns.map((name, i) => element(
    "div", {}, element("label", {text: name, htmlFor: `try-${i}`}), element("textarea", {id: `try-${i}`, maxLength: 20000}),
  )));
  at("answer").replaceChildren();
  at("zip").href = `/api/projects/${project}/runs/${encodeURIComponent(verdict.best.run)}/zip`;
  at("zip").textContent = verdict.kept ? "Download the run (.zip)" : `Download ${verdict.best.method} all the same (.zip)`;
  at("serve-command").textContent = state.commands.serve;
  at("predict-command").textContent = state.commands.predict;
  at("step-winner").dataset.run = verdict.best.run;
}

async function ask(event) {
  event.preventDefault();
  const texts = [...at("try-fields").querySelectorAll("textarea")].map((field) => field.value);
  const body = {run: at("step-winner").dataset.run, texts};
  const status = {id: "asking", text: "Asking; the first time the model is loaded ..."};
  const found = await doing(() => call(`/${project}/try`, {method: "POST", body}), status);
  if (found) bars("answer", found.slice(0, 20).map((one) => ({name: one.label, share: one.probability, shown: `${(100 * one.probability).toFixed(1)} %`})));
}

async function serve() {
  const body = {run: at("step-winner").dataset.run};
  const status = {id: "asking", text: "Starting its server ..."};
  at("serve").disabled = true;
  const found = await doing(() => call(`/${project}/serve`, {method: "POST", body}), status);
  at("serve").disabled = false;
  if (!found) return;
  const link = element("a", {href: found.address, text: found.address, target: "_blank", rel: "noopener"});
  at("asking").replaceChildren("Its page, until the server of this one ends: ", link);
}

async function copy(button) {
  const code = at(button.dataset.of);
  try {
    await navigator.clipboard.writeText(code.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(code);
    button.textContent = "Selected";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

// ---- Where we are -----------------------------------------------------------------------------

async function go() {
  clearTimeout(timer);
  problem("");
  project = decodeURIComponent(location.hash.slice(1));
  shownVerdict = "";
  show("home", !project);
  show("project", Boolean(project));
  for (const id of ["step-labels", "step-budget", "step-runs", "step-winner"]) show(id, false);
  document.title = "taskfit: from a table to a model";
  if (!project) return home();
  at("project-name").textContent = project;
  await Promise.all([showTable(), poll()]);
}

const drop = at("drop");
for (const kind of ["dragenter", "dragover"]) {
  drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
for (const kind of ["dragleave", "drop"]) drop.addEventListener(kind, () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => { event.preventDefault(); upload(event.dataTransfer.files[0]); });
at("file").addEventListener("change", (event) => upload(event.target.files[0]));
at("test-file").addEventListener("change", (event) => chooseTest(event.target.files[0]));
at("label-column").addEventListener("change", chooseColumns);
at("start").addEventListener("click", start);
at("stop").addEventListener("click", () => doing(() => call(`/${project}/stop`, {method: "POST"})).then(poll));
at("resume").addEventListener("click", () => doing(async () => {
  const {budget} = await call(`/${project}/state`);
  return call(`/${project}/start`, {method: "POST", body: {budget}});
}).then(poll));
at("try").addEventListener("submit", ask);
at("serve").addEventListener("click", serve);
document.querySelectorAll(".copy").forEach((button) => button.addEventListener("click", () => copy(button)));
addEventListener("hashchange", go);
go();
