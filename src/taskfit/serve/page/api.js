// What is asked of the server, and its errors in its own words.

import { errorText } from "./format.js";

const KEY = "taskfit-api-key";

export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const root = () => new URL(".", document.baseURI).href;
export const setKey = (key) => sessionStorage.setItem(KEY, key);
export const hasKey = () => Boolean(sessionStorage.getItem(KEY));

async function send(path, { body, signal } = {}) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  if (hasKey()) headers.Authorization = `Bearer ${sessionStorage.getItem(KEY)}`;
  let response;
  try {
    response = await fetch(root() + path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, `The server at ${root()} does not answer. Is it still running?`);
  }
  if (response.ok) return response;
  const found = await response.json().catch(() => null);
  throw new ServerError(response.status, errorText(found, `The server answered ${response.status} ${response.statusText}`));
}

export const call = async (path, options) => (await send(path, options)).json();

// The data of server-sent events, parsed, until [DONE].
export async function* events(path, options) {
  const reader = (await send(path, options)).body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const found = (rest + value).split(/\r?\n/);
    rest = found.pop();
    for (const line of found) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ServerError(200, errorText(event, "The server broke the answer off"));
      yield event;
    }
  }
}
