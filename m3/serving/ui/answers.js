// An answer in words: its scale, what it cost, whether it is that of another.
import { make } from "./dom.js";

const CUT = { length: "cut at the limit of tokens", time: "cut at the limit of time",
  stopped: "stopped" };
export const CHOOSERS = { "auto": "by the model", "auto:rule": "by the size of the picture" };

// One measurement beside other work: a digit of it, no more, or noise would be compared.
export function about(seconds) {
  if (seconds < 0.1) return "less than 0.1 s";
  return `about ${seconds < 10 ? Number(seconds.toPrecision(1)) : Math.round(seconds)} s`;
}

export function heading({ model, matryoshka_vis_token_scale: scale, is_trained, scale_per_image,
  is_named }) {
  const name = is_named ? `${model} · ` : "";
  if (!(scale in CHOOSERS)) return `${name}Scale ${scale}${is_trained ? "" : " (not trained)"}`;
  const runs = []; // as schedules are written: 144x2+36
  for (const one of scale_per_image ?? []) {
    if (runs.at(-1)?.scale === one) runs.at(-1).count += 1;
    else runs.push({ scale: one, count: 1 });
  }
  const words = runs.map(({ scale: one, count }) => (count > 1 ? `${one}x${count}` : one));
  return `${name}Scale ${words.join("+")}${runs.length ? ", " : ""}chosen ${CHOOSERS[scale]}`;
}

// Of a card: what it read, and what became of it.
export function cost(reading, ...times) {
  const { visual_tokens, reason, error } = reading;
  if (error) return [`refused: ${error}`];
  const plural = visual_tokens === 1 ? "" : "s";
  return [visual_tokens !== null && `${visual_tokens} visual token${plural}`, ...times,
    CUT[reason]].filter(Boolean);
}

export function caption(reading) { // without a picture there is no scale
  const { visual_tokens, first_token_seconds: first, seconds } = reading;
  const scale = visual_tokens === 0 ? [] : [heading(reading)];
  return [...scale, ...cost(reading, first !== null && `first token after ${about(first)}`,
    seconds !== null && `whole answer after ${about(seconds)}`)].join(" · ");
}

// Elements of an answer, and what brings them up to date.
export function answerView(reading, describe) {
  const answer = make("p", { className: "answer" }), facts = make("p", { className: "caption" });
  const update = (isWriting) => {
    answer.textContent = reading.text;
    answer.classList.toggle("writing", isWriting);
    facts.textContent = describe(reading);
  };
  update(false);
  return { elements: [answer, facts], update };
}

// Marks in words which answers are that of the largest scale, once all are there.
export function likenesses(readings) {
  const whole = readings.filter(({ reason, error }) => reason && !error && reason !== "stopped");
  const { model } = readings[0];
  const largest = whole.findLast((one) => one.model === model);
  if (whole.length < 2 || !largest) return { marks: readings.map(() => ""), verdict: "" };
  const scale = largest.matryoshka_vis_token_scale;
  const name = largest.is_named ? `${model} at ${scale}` : `at ${scale}`;
  const isSame = (one) => one.text.trim() === largest.text.trim();
  const marks = readings.map((one) => {
    if (one === largest) return "the largest";
    if (!whole.includes(one)) return "";
    return isSame(one) ? `= same as ${name}` : `≠ differs from ${name.replace(/^at /, "")}`;
  });
  const alike = whole.filter(isSame).length;
  const verdict = alike === whole.length ? `All ${whole.length} answers are the same.`
    : `${alike - 1} of ${whole.length - 1} other answers are the same as ${name}.`;
  return { marks, verdict };
}

// The times of a comparison in one sentence: single measurements, which rank nothing.
export function timesNote(readings) {
  const times = readings.map(({ seconds }) => seconds).filter((one) => one !== null);
  if (!times.length) return "";
  const [least, most] = [about(Math.min(...times)), about(Math.max(...times))];
  const span = least === most ? least : `${least} to ${most}`;
  return ` Answers took ${span}, each measured once: too little to rank them by time.`;
}
