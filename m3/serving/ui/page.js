// The page of `m3 serve --ui`: a client of the server's own OpenAI API, and of /ui/token_grid.
// What people or the model wrote is only ever set as text, never as HTML.
import { $, make, number, say } from "./dom.js";
import { addFiles, chosenVisuals, clearPictures, contentPart, isSame, openCamera, recordVideo,
  takePhoto } from "./pictures.js";
import { saveJson, savePng } from "./save.js";
import { call, events } from "./server.js";
import { gridView, tokenGrid } from "./token_grid.js";

const MOST_NOTCHES = 16; // a model that reaches more scales offers those that it was trained at
const CUT = { length: "cut at the limit of tokens", time: "cut at the limit of time",
  stopped: "stopped" };
const CHOOSERS = { "auto": "by the model", "auto:rule": "by the size of the picture" };
let model = null; // what /v1/models says of it, as a promise
let scales = []; // notches of the slider
let running = null; // the AbortController of what is asked now
let talk = { visuals: [], readings: [] };
let comparison = { visuals: [], readings: [], views: [] };

function ready() {
  model ??= call("v1/models").then(async (response) => {
    const card = (await response.json()).data[0];
    $("title").textContent = document.title = `M3 · ${card.id}`;
    const { matryoshka_vis_token_scales: reachable, trained_scales: trained } = card;
    const isPlain = trained.every(Number.isInteger); // else the ladder names resolutions
    scales = isPlain && reachable.length <= MOST_NOTCHES ? reachable : trained;
    $("marks").replaceChildren(...scales.map((scale) => make("span", trained.includes(scale) ? {}
      : { className: "untrained", title: "reachable, not trained" }, scale)));
    Object.assign($("scale"), { max: scales.length - 1, disabled: false });
    $("scale").value = scales.indexOf(trained.findLast(Number.isInteger) ?? trained.at(-1));
    $("chooser").append(...card.automatic_scales.map((value) => (
      make("option", { value }, CHOOSERS[value]))));
    $("chooser-box").hidden = !card.automatic_scales.length;
    showScale();
    return card;
  }).catch((error) => { model = null; throw error; });
  return model;
}

function showScale() {
  const { value: chooser } = $("chooser");
  $("scale").disabled = chooser !== "";
  $("scale-value").textContent = chooser || scales[$("scale").value];
  const [tokens, side] = String(scales[$("scale").value]).split("@");
  $("scale").ariaValueText = `${tokens} visual tokens${side ? ` at ${side} pixels` : ""}`;
}

// In pixels, as a word; "" is the largest.
const resolution = (scale) => String(scale).split("@")[1] ?? "";

// ---------------------------------------------------------------------- requests
// A request for the last of `readings`; the pictures stand in front of the first question.
async function chatRequest(card, visuals, readings, tokens) {
  const parts = await Promise.all(visuals.map(contentPart));
  const messages = readings.flatMap(({ question, text }, n) => [
    { role: "user", content: n ? question : [...parts, { type: "text", text: question }] },
    { role: "assistant", content: text },
  ]).slice(0, -1);
  return { model: card.id, messages, temperature: number("temperature"),
    max_completion_tokens: tokens,
    matryoshka_vis_token_scale: readings.at(-1).matryoshka_vis_token_scale };
}

function newReading(card, scale) { // one answer, as far as it has come
  const question = $("question").value;
  if (!question.trim()) throw new Error("Write a question first.");
  return { matryoshka_vis_token_scale: scale, question, text: "",
    is_trained: scale in CHOOSERS || card.trained_scales.includes(scale),
    scale_per_image: null, visual_tokens: null,
    first_token_seconds: null, seconds: null, reason: null, error: null };
}

const since = (begun) => Math.round(performance.now() - begun) / 1000;

// Fills `reading` as its answer comes. Seconds are counted from the sending of the request.
async function readAnswer(reading, content, signal, update) {
  const body = { ...content, stream: true, stream_options: { include_usage: true } };
  const begun = performance.now();
  for await (const event of events(await call("v1/chat/completions", body, signal), signal)) {
    if (event.error) throw new Error(event.error.message);
    const [choice] = event.choices;
    if (choice?.delta.content) {
      reading.first_token_seconds ??= since(begun);
      reading.text += choice.delta.content;
    }
    if (choice?.finish_reason) {
      [reading.reason, reading.seconds] = [choice.finish_reason, since(begun)];
    }
    if (event.usage) {
      reading.visual_tokens = event.usage.visual_tokens;
      reading.scale_per_image = event.usage.matryoshka_vis_token_scale_per_image;
      const isFull = event.usage.completion_tokens >= content.max_completion_tokens;
      if (reading.reason === "length" && !isFull) reading.reason = "time";
    }
    update(true);
  }
  if (!reading.reason) throw new Error("The server ended before its answer was whole.");
}

// ---------------------------------------------------------------------- answers
const duration = (s) => (s < 1 ? `${Math.round(s * 1000)} ms` : `${s.toFixed(1)} s`);

function heading({ matryoshka_vis_token_scale: scale, is_trained, scale_per_image }) {
  if (!(scale in CHOOSERS)) return `Scale ${scale}${is_trained ? "" : " (not trained)"}`;
  const runs = []; // as schedules are written: 144x2+36
  for (const one of scale_per_image ?? []) {
    if (runs.at(-1)?.scale === one) runs.at(-1).count += 1;
    else runs.push({ scale: one, count: 1 });
  }
  const words = runs.map(({ scale: one, count }) => (count > 1 ? `${one}x${count}` : one));
  return `Scale ${words.join("+")}${runs.length ? ", " : ""}chosen ${CHOOSERS[scale]}`;
}

function figures({ visual_tokens, first_token_seconds, seconds, reason, error }) {
  if (error) return [`refused: ${error}`];
  const plural = visual_tokens === 1 ? "" : "s";
  return [visual_tokens !== null && `${visual_tokens} visual token${plural}`,
    first_token_seconds !== null && `first token ${duration(first_token_seconds)}`,
    seconds !== null && `total ${duration(seconds)}`, CUT[reason]].filter(Boolean);
}

function caption(reading) { // without a picture there is no scale
  const scale = reading.visual_tokens === 0 ? [] : [heading(reading)];
  return [...scale, ...figures(reading)].join(" · ");
}

// Elements of an answer, and what brings them up to date.
function answerView(reading, describe) {
  const answer = make("p", { className: "answer" }), facts = make("p", { className: "caption" });
  const update = (isWriting) => {
    answer.textContent = reading.text;
    answer.classList.toggle("writing", isWriting);
    facts.textContent = describe(reading);
  };
  update(false);
  return { elements: [answer, facts], update };
}

async function ask(signal) {
  const card = await ready();
  const reading = newReading(card, $("chooser").value || scales[$("scale").value]);
  const visuals = chosenVisuals(), goesOn = isSame(talk.visuals, visuals);
  const log = $("log"), before = talk, items = [...log.children];
  const now = { visuals, readings: [...(goesOn ? talk.readings : []), reading] };
  const content = await chatRequest(card, visuals, now.readings, number("tokens"));
  const { elements, update } = answerView(reading, caption);
  talk = now;
  showTab("talk");
  log.replaceChildren(...(goesOn ? items : []),
    make("li", { className: "asked" }, make("span", {}, "You: "), reading.question),
    make("li", { className: "said" }, make("span", {}, "Answer: "), ...elements));
  const follow = (isWriting) => {
    update(isWriting);
    log.scrollTop = log.scrollHeight;
    if (reading.text && $("question").value === reading.question) $("question").value = "";
  };
  follow(true);
  try {
    await readAnswer(reading, content, signal, follow);
  } catch (error) {
    if (signal.aborted && reading.text) {
      reading.reason = "stopped";
    } else if (talk === now) { // as if it had not been asked
      talk = before;
      log.replaceChildren(...items);
      reading.text = "";
      $("question").value ||= reading.question;
    }
    throw error;
  } finally {
    follow(false);
  }
}

// One scale after the other, so that their times can be compared; the picture is seen before, once
// at each resolution.
async function compare(signal) {
  const visuals = chosenVisuals();
  if (!visuals.length) {
    throw new Error("Choose a picture or a video first: there is nothing to compare scales on.");
  }
  const card = await ready(), tokens = number("tokens");
  const readings = card.trained_scales.map((scale) => newReading(card, scale));
  const looks = new Map(readings.map((one) => [resolution(one.matryoshka_vis_token_scale), one]));
  const begun = performance.now();
  for (const reading of looks.values()) {
    const look = await chatRequest(card, visuals, [reading], 1);
    await (await call("v1/chat/completions", look, signal)).json();
  }
  const look_seconds = since(begun);
  const shown = await Promise.all(visuals.map((visual) => tokenGrid(visual, signal)));
  const views = readings.map(({ matryoshka_vis_token_scale: scale }) => (
    shown.map(({ images, grids }) => gridView(images[grids[scale].picture], grids[scale].lines))));
  comparison = { visuals, readings, views, look_seconds };
  const updates = showCards(comparison);
  for (const [n, reading] of readings.entries()) {
    updates[n](true);
    try {
      const content = await chatRequest(card, visuals, [reading], tokens);
      await readAnswer(reading, content, signal, updates[n]);
    } catch (error) {
      reading.reason = signal.aborted ? "stopped" : "refused";
      if (signal.aborted) throw error;
      reading.error = error.message;
    } finally {
      updates[n](false);
    }
  }
}

function showCards({ readings, views, look_seconds }) {
  const answers = readings.map((one) => answerView(one, () => figures(one).join("\n")));
  const sides = new Set(readings.map((one) => resolution(one.matryoshka_vis_token_scale)));
  const looks = sides.size === 1 ? "Looked at once" : `Looked at once at each of ${sides.size}`
    + " resolutions";
  const reads = sides.size === 1 ? "every scale reads" : "the scales of a resolution read";
  $("note").replaceChildren(readings[0].question, make("span", { className: "caption" },
    ` ${looks} (${duration(look_seconds)} with the first word); ${reads} the same features.`));
  $("cards").replaceChildren(...readings.map((reading, n) => make("li", {},
    make("h3", {}, heading(reading)), ...views[n], ...answers[n].elements)));
  showTab("comparison");
  return answers.map(({ update }) => update);
}

// ---------------------------------------------------------------------- downloads
async function save(name, record, drawing) {
  if (!record.readings.length) throw new Error("There is nothing to save yet.");
  const { id } = await ready(), created = new Date().toISOString();
  if (drawing) return savePng(`${id}-${name}`, `${id} · ${created}`, await drawing(record));
  const files = await Promise.all(record.visuals.map(async ({ file, kind, num_frames }) => (
    { kind, file: file.name, sha256: await digest(file), num_frames })));
  const { look_seconds, readings: answers } = record;
  saveJson(`${id}-${name}`, { model: id, created, pictures: files, look_seconds, answers });
}

async function digest(file) { // browsers have it over https and at localhost alone
  if (!crypto.subtle) return null;
  const bytes = new Uint8Array(await crypto.subtle.digest("SHA-256", await file.arrayBuffer()));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function talkDrawing({ visuals, readings }) { // without pictures that cannot be seen any more
  const grids = await Promise.all(visuals.map((visual) => tokenGrid(visual).catch(() => [])));
  const views = grids.flat().map(({ images }) => gridView(images.at(-1), []));
  const items = [{ heading: "", text: "", caption: "", views }, ...readings.map((one) => (
    { heading: one.question, text: one.text, caption: caption(one), views: [] }))];
  return { title: "Conversation", items, columns: 1, width: 720 };
}

function comparisonDrawing({ readings, views }) {
  const items = readings.map((one, n) => ({ heading: heading(one), text: one.text,
    caption: figures(one).join("\n"), views: views[n] }));
  return { title: readings[0].question, items, columns: Math.min(items.length, 5), width: 1200 };
}

// ---------------------------------------------------------------------- controls
function showTab(name) {
  $("answers").scrollIntoView({ block: "nearest" });
  for (const one of ["talk", "comparison"]) {
    $(one).hidden = one !== name;
    $(`${one}-tab`).ariaSelected = one === name;
  }
}

async function attempt(job, signal) { // says in words what goes wrong
  say("");
  try {
    await job(signal);
  } catch (error) {
    if (!signal?.aborted) say(error.message);
  }
}

async function run(job, busy) { // one at a time; `stop` aborts it
  if (running) return;
  running = new AbortController();
  const toggle = (isBusy) => {
    $("ask").ariaDisabled = $("compare").ariaDisabled = $(busy).ariaBusy = isBusy;
    $("stop").ariaDisabled = !isBusy;
  };
  toggle(true);
  await attempt(job, running.signal);
  running = null;
  toggle(false);
}

function beginTalk() {
  if ($("log").ariaBusy === "true") running.abort();
  talk = { visuals: [], readings: [] };
  $("log").replaceChildren();
  say("");
}

async function useExample({ dataset, textContent }) {
  const file = await (await call(`ui/${dataset.picture}`)).blob();
  clearPictures();
  addFiles([new File([file], dataset.picture, { type: file.type })]);
  $("question").value = textContent;
}

const CLICKS = {
  "choose": () => $("files").click(),
  "open-camera": () => attempt(openCamera),
  "photo": takePhoto,
  "record": recordVideo,
  "close-camera": () => $("camera").close(),
  "ask": () => run(ask, "log"),
  "compare": () => run(compare, "cards"),
  "stop": () => running?.abort(),
  "new-talk": beginTalk,
  "talk-tab": () => showTab("talk"),
  "comparison-tab": () => showTab("comparison"),
  "talk-png": () => attempt(() => save("conversation", talk, talkDrawing)),
  "talk-json": () => attempt(() => save("conversation", talk)),
  "comparison-png": () => attempt(() => save("comparison", comparison, comparisonDrawing)),
  "comparison-json": () => attempt(() => save("comparison", comparison)),
};
for (const [id, click] of Object.entries(CLICKS)) $(id).onclick = click;
for (const one of $("examples").children) one.onclick = () => attempt(() => useExample(one));
$("scale").oninput = $("chooser").onchange = showScale;
$("question").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  run(ask, "log");
};
attempt(ready);
