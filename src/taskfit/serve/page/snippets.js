// A request as code to copy. A key is never written into it: it is read from TASKFIT_API_KEY.

const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

// JSON as a Python literal; JSON's string escapes are Python's too.
function python(value, indent = "") {
  const deeper = indent + "    ";
  const block = (open, items, close) => (items.length ? `${open}\n${items.map((item) => `${deeper}${item},\n`).join("")}${indent}${close}` : open + close);
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return block("[", value.map((item) => python(item, deeper)), "]");
  if (typeof value === "object") return block("{", Object.entries(value).map(([key, item]) => `${JSON.stringify(key)}: ${python(item, deeper)}`), "}");
  return JSON.stringify(value);
}

const IMPORT_OS = "import os\n\n";
const ENVIRONMENT_KEY = 'os.environ["TASKFIT_API_KEY"]';
const keyOf = (request) => (request.hasKey ? ENVIRONMENT_KEY : '"none"');

function curl({ url, path, body, hasKey }) {
  const key = hasKey ? ` \\\n  -H "Authorization: Bearer $TASKFIT_API_KEY"` : "";
  return `curl ${body.stream ? "-N " : ""}${shell(url + path)} \\\n  -H 'Content-Type: application/json'${key} \\\n  -d ${shell(JSON.stringify(body, null, 2))}\n`;
}

function requests({ url, path, body, hasKey }) {
  const { stream, ...rest } = body;
  const headers = hasKey ? `    headers={"Authorization": f"Bearer {${ENVIRONMENT_KEY.replaceAll('"', "'")}}"},\n` : "";
  return `${hasKey ? IMPORT_OS : ""}import requests

response = requests.post(
    ${python(url + path)},
${headers}    json=${python(rest, "    ")},
)
response.raise_for_status()
print(response.json())
`;
}

function typesafe(request) {
  const { state, questions, model } = request.body;
  return `${request.hasKey ? IMPORT_OS : ""}from typesafe_sdk import TypeSafeClient

with TypeSafeClient(base_url=${python(request.url)}, api_key=${keyOf(request)}) as client:
    response = client.system_one(
        model=${python(model)},
        state=${python(state, "        ")},
        questions=${python(questions, "        ")},
    )
print(response.answers)
`;
}

function openai(request) {
  const { messages, model, temperature, max_tokens } = request.body;
  return `${request.hasKey ? IMPORT_OS : ""}from openai import OpenAI

with OpenAI(base_url=${python(request.url + "v1")}, api_key=${keyOf(request)}) as client:
    stream = client.chat.completions.create(
        model=${python(model)},
        messages=${python(messages, "        ")},
        temperature=${python(temperature)},
        max_tokens=${python(max_tokens)},
        stream=True,
    )
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
`;
}

// Language -> code, of {url (with / at its end), path, body, hasKey}.
export function snippets(request) {
  const more = { "v1/systemone": { "typesafe-sdk": typesafe }, "v1/chat/completions": { openai } }[request.path];
  const languages = { curl, Python: requests, ...more };
  return Object.fromEntries(Object.entries(languages).map(([name, write]) => [name, write(request)]));
}
