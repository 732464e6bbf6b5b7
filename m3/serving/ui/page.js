// The page of `m3 serve --ui`: a client of the server's own OpenAI API, and of /ui/token_grid.
// What people or the model wrote is only ever set as text, never as HTML.
import { about, answerView, caption, CHOOSERS, cost, heading, likenesses, timesNote }
  from "./answers.js";
import { $, make, number, reveal, say } from "./dom.js";
import { addFiles, chosenVisuals, clearPictures, contentPart, isSame, openCamera, readableVisuals,
  recordVideo, takePhoto } from "./pictures.js";
import { saveJson, savePng } from "./save.js";
import { call, events } from "./server.js";
import { gridView, scaleView, tokenGrid } from "./token_grid.js";

const BLIND = "No picture was sent with this question, so the answer rests on its words alone. "
  + "Choose a picture above, or try an example.";
const MOST_ABREAST = 6; // cards of a comparison
const MOST_NOTCHES = 16; // a model that reaches more scales offers those that it was trained at
let models = null; // what /v1/models says of them, as a promise
let scales = []; // notches of the slider
let running = null; // the AbortController of what is asked now
let talk = { visuals: [], readings: [] };
let comparison = { visuals: [], readings: [], views: [] };

async function ready() { // the entry of the model that is chosen, the list of all
  models ??= call("v1/models").then(async (response) => {
    const cards = (await response.json()).data;
    $("model").replaceChildren(...cards.map(({ id }) => make("option", { value: id }, id)));
    $("model-box").hidden = cards.length < 2;
    showModel(cards[0]);
    return cards;
  }).catch((error) => { models = null; throw error; });
  const cards = await models;
  return { cards, card: cards.find(({ id }) => id === $("model").value) };
}

function showModel(card) {
  $("title").textContent = document.title = `M3 · ${card.id}`;
  const { matryoshka_vis_token_scales: reachable, trained_scales: trained } = card;
  const isPlain = trained.every(Number.isInteger); // else the ladder names resolutions
  scales = isPlain && reachable.length <= MOST_NOTCHES ? reachable : trained;
  $("marks").replaceChildren(...scales.map((scale, n) => mark(scale, n, trained)));
  const lacks = scales.some((scale) => !trained.includes(scale));
  $("marks-note").textContent = !isPlain
    ? "36@48: 36 tokens of the picture seen at 48 pixels. A number alone: seen at full size."
    : lacks ? "Underlined with dots: the model can read it, but was not trained at it." : "";
  Object.assign($("scale"), { max: scales.length - 1, disabled: false });
  $("scale").value = scales.indexOf(trained.findLast(Number.isInteger) ?? trained.at(-1));
  $("chooser").replaceChildren($("chooser").options[0], ...card.automatic_scales.map((value) => (
    make("option", { value }, CHOOSERS[value]))));
  $("chooser").value = "";
  $("chooser-box").hidden = !card.automatic_scales.length;
  showScale();
}

function mark(scale, n, trained) { // under its notch
  const [tokens, side] = String(scale).split("@");
  const label = make("span", trained.includes(scale) ? {}
    : { className: "untrained", title: "can be read, not trained" }, tokens);
  if (side) label.append(make("small", {}, `@${side}`));
  label.style.left = `${100 * n / Math.max(scales.length - 1, 1)}%`;
  return label;
}

function showScale() {
  const { value: chooser } = $("chooser");
  $("scale").disabled = chooser !== "";
  $("scale-value").textContent = chooser || scales[$("scale").value];
  const [tokens, side] = String(scales[$("scale").value]).split("@");
  const isUntrained = $("marks").children[$("scale").value].className === "untrained";
  $("scale").ariaValueText = `${tokens} visual token${tokens === "1" ? "" : "s"}`
    + (side ? ` at ${side} pixels` : "") + (isUntrained ? ", not trained" : "");
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
  return { model: card.id, matryoshka_vis_token_scale: scale, question, text: "",
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
async function ask(signal) {
  const { card } = await ready();
  const reading = newReading(card, $("chooser").value || scales[$("scale").value]);
  const visuals = await readableVisuals(), goesOn = isSame(talk.visuals, visuals)
    && talk.readings.at(-1)?.model === card.id;
  const log = $("log"), before = talk, items = [...log.children];
  const now = { visuals, readings: [...(goesOn ? talk.readings : []), reading] };
  const content = await chatRequest(card, visuals, now.readings, number("tokens"));
  const { elements, update } = answerView(reading, caption);
  talk = now;
  showTab("talk");
  const said = make("div", { className: "said" }, make("span", {}, "Answer: "), ...elements,
    ...(visuals.length ? [] : [make("p", { className: "hint" }, BLIND)]));
  log.replaceChildren(...(goesOn ? items : []),
    make("div", { className: "asked" }, make("span", {}, "You: "), reading.question), said);
  reveal(said);
  const follow = (isWriting) => {
    update(isWriting);
    log.scrollTop = log.scrollHeight;
    if (!isWriting) reveal(said);
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

// What a comparison asks: the scales that the chosen model was trained at, of it and, where all
// models are compared, of the others as far as they reach them.
function comparedReadings({ card, cards }) {
  const others = cards.length > 1 && $("compared").value === "all"
    ? cards.filter((one) => one !== card) : [];
  const reaches = (one, scale) => one.matryoshka_vis_token_scales.includes(scale)
    || one.trained_scales.includes(scale);
  return [card, ...others].flatMap((one) => (
    card.trained_scales.filter((scale) => reaches(one, scale)).map((scale) => (
      { ...newReading(one, scale), is_named: others.length > 0 }))));
}

// One scale after the other, so that none waits for another; the picture is seen before, once at
// each resolution of each model.
async function compare(signal) {
  const visuals = await readableVisuals();
  if (!visuals.length) {
    throw new Error("Choose a picture or a video first: there is nothing to compare scales on.");
  }
  const listed = await ready(), tokens = number("tokens");
  const readings = comparedReadings(listed);
  const cardOf = ({ model }) => listed.cards.find(({ id }) => id === model);
  const looks = new Map(readings.map((one) => (
    [`${resolution(one.matryoshka_vis_token_scale)} ${one.model}`, one])));
  const look_seconds = await lookAt(visuals, [...looks.values()], cardOf, signal);
  const grids = new Map();
  for (const { model } of looks.values()) {
    if (!grids.has(model)) grids.set(model, await Promise.all(
      visuals.map((visual) => tokenGrid(visual, model, signal))));
  }
  const views = readings.map(({ model, matryoshka_vis_token_scale: scale }) => (
    grids.get(model).map((grid) => scaleView(grid, scale))));
  comparison = { visuals, readings, views, look_seconds };
  const { updates, finish } = showCards(comparison, looks.size);
  for (const [n, reading] of readings.entries()) {
    updates[n](true);
    try {
      const content = await chatRequest(cardOf(reading), visuals, [reading], tokens);
      await readAnswer(reading, content, signal, updates[n]);
    } catch (error) {
      reading.reason = signal.aborted ? "stopped" : "refused";
      if (signal.aborted) throw error;
      reading.error = error.message;
    } finally {
      updates[n](false);
      if (signal.aborted || n === readings.length - 1) finish();
    }
  }
}

// Has the encoder see the pictures for each of `readings`; the seconds that it took.
async function lookAt(visuals, readings, cardOf, signal) {
  const begun = performance.now(), before = $("verdict").textContent;
  showTab("comparison");
  $("verdict").textContent = "The encoder looks first; the scales are asked then.";
  reveal($("verdict"), $("answers"));
  try {
    for (const reading of readings) {
      const content = await chatRequest(cardOf(reading), visuals, [reading], 1);
      await (await call("v1/chat/completions", content, signal)).json();
    }
  } catch (error) {
    $("verdict").textContent = before;
    throw error;
  }
  return since(begun);
}

function showCards({ readings, views, look_seconds, visuals }, looks) {
  const answers = readings.map((one) => answerView(one, () => cost(one).join("\n")));
  const marks = readings.map(() => make("p", { className: "likeness" }));
  const them = visuals.length === 1 ? "the picture" : "the pictures";
  const note = make("span", { className: "caption" }, looks === 1
    ? `The encoder saw ${them} once (${about(look_seconds)}); every scale reads what it saw then.`
    : `The encoder saw ${them} ${looks} times (${about(look_seconds)} in all), once for each`
      + ` resolution${readings[0].is_named ? " of each model" : ""}; all scales of a resolution`
      + " read what it saw then.");
  $("note").replaceChildren(make("strong", {}, readings[0].question), note);
  $("verdict").textContent = "";
  $("cards").style.setProperty("--columns", columnsOf(readings));
  $("cards").replaceChildren(...readings.map((reading, n) => make("li", {
    className: n && reading.model !== readings[n - 1].model ? "first" : "" },
    make("h3", {}, heading(reading)), make("div", { className: "views" }, ...views[n]),
    make("div", { className: "reply" }, answers[n].elements[0], marks[n],
      answers[n].elements[1]))));
  showTab("comparison");
  reveal($("cards"), $("answers"));
  const finish = () => {
    const likeness = likenesses(readings);
    likeness.marks.forEach((words, n) => { marks[n].textContent = words; });
    $("verdict").textContent = likeness.verdict + timesNote(readings);
  };
  return { updates: answers.map(({ update }) => update), finish };
}

// Cards side by side: rows as even as they come, no card alone in the last one.
function columnsOf(readings) {
  const most = Math.max(...Object.values(Object.groupBy(readings, ({ model }) => model))
    .map((group) => group.length));
  return Math.ceil(most / Math.ceil(most / MOST_ABREAST));
}

// ---------------------------------------------------------------------- downloads
async function save(name, record, drawing) {
  if (!record.readings.length) throw new Error("There is nothing to save yet.");
  const { card: { id } } = await ready(), created = new Date().toISOString();
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
  const grids = await Promise.all(visuals.map((visual) => (
    tokenGrid(visual, readings[0]?.model).catch(() => []))));
  const views = grids.flat().map(({ images }) => gridView(images.at(-1), []));
  const items = [{ heading: "", text: "", caption: "", views }, ...readings.map((one) => (
    { heading: one.question, text: one.text, caption: caption(one), views: [] }))];
  return { title: "Conversation", items, columns: 1, width: 720 };
}

function comparisonDrawing({ readings, views }) {
  const { marks: likeness } = likenesses(readings);
  const items = readings.map((one, n) => ({ heading: heading(one), text: one.text,
    caption: [likeness[n], ...cost(one)].filter(Boolean).join("\n"), views: views[n] }));
  return { title: readings[0].question, items, columns: columnsOf(readings), width: 1200 };
}

// ---------------------------------------------------------------------- controls
function showTab(name) {
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

async function useExample({ dataset, innerText }) {
  const file = await (await call(`ui/${dataset.picture}`)).blob();
  clearPictures();
  addFiles([new File([file], dataset.picture, { type: file.type })]);
  $("question").value = innerText.trim();
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
$("model").onchange = () => attempt(async () => showModel((await ready()).card));
$("question").onkeydown = (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  run(ask, "log");
};
attempt(ready);
