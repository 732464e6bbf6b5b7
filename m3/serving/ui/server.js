// The server's API as the page calls it: errors in words, the API key where it is wanted.
import { $ } from "./dom.js";

let key = sessionStorage.getItem("m3-api-key");

export async function call(path, content, signal) {
  for (;;) {
    const headers = { "Content-Type": "application/json" };
    if (key) headers.Authorization = `Bearer ${key}`;
    const body = content && JSON.stringify(content), method = body ? "POST" : "GET";
    const response = await reach(fetch(path, { method, headers, body, signal }), signal);
    if (response.ok) return response;
    if (response.status !== 401) {
      const report = await response.json().catch(() => null);
      const words = report?.error.message ?? `The server answered with ${response.status}.`;
      throw Object.assign(new Error(words), { code: report?.error.code });
    }
    await askForKey();
  }
}

function reach(answer, signal) {
  return answer.catch((error) => {
    if (signal?.aborted) throw error;
    throw new Error("The connection to the server failed. Is it still running?");
  });
}

function askForKey() {
  const dialog = $("login");
  $("key-note").textContent = `This ${key ? "is not the server's" : "server wants its"} API key.`;
  $("key").value = dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve, reject) => {
    dialog.onclose = () => {
      if (!dialog.returnValue) return reject(new Error("This server wants its API key."));
      key = $("key").value.trim();
      sessionStorage.setItem("m3-api-key", key);
      resolve();
    };
  });
}

export async function* events(response, signal) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "";;) {
    const { value, done } = await reach(reader.read(), signal);
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: {")) yield JSON.parse(line.slice(6));
  }
}
