// Asks a server about an image, with fetch (Node 18 or newer); the answer is streamed.
//   node playground/serving/ask.mjs photo.png "What colour is the background?" 9
// M3_SERVER, M3_MODEL and M3_API_KEY name another server, model and key.
import { readFile } from "node:fs/promises";

const [image, question, scale = "36"] = process.argv.slice(2);
const { M3_SERVER = "http://127.0.0.1:8000", M3_MODEL = "m3-tiny", M3_API_KEY = "none" } = process.env;

const response = await fetch(`${M3_SERVER}/v1/chat/completions`, {
  method: "POST",
  headers: { "Content-Type": "application/json", Authorization: `Bearer ${M3_API_KEY}` },
  body: JSON.stringify({
    model: M3_MODEL,
    matryoshka_vis_token_scale: scale,
    stream: true,
    messages: [
      {
        role: "user",
        content: [
          { type: "image_url", image_url: { url: `data:image/png;base64,${await readFile(image, "base64")}` } },
          { type: "text", text: question },
        ],
      },
    ],
  }),
});
if (!response.ok) {
  console.error((await response.json()).error.message);
  process.exit(1);
}
let rest = "";
for await (const part of response.body.pipeThrough(new TextDecoderStream())) {
  const lines = (rest + part).split("\n");
  rest = lines.pop();
  for (const line of lines) {
    if (line.startsWith("data: {")) process.stdout.write(JSON.parse(line.slice(6)).choices[0]?.delta?.content ?? "");
  }
}
process.stdout.write("\n");
