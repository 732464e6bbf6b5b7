// Elements of the page.
export const $ = (id) => document.getElementById(id);

export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

export function say(text) {
  $("message").textContent = text;
  if (text) $("message").scrollIntoView({ block: "nearest" });
}

// Scrolls where an element is not in sight as a whole: by as little as shows it, or so that
// `from`, which stands around it, begins at the top.
export function reveal(element, from) {
  const { top, bottom } = element.getBoundingClientRect();
  if (top >= 0 && bottom <= window.innerHeight) return;
  if (from) from.scrollIntoView({ block: "start" });
  else element.scrollIntoView({ block: "nearest" });
}

export function number(id) {
  const { value, min, max, labels, validity } = $(id);
  if (value && validity.valid) return Number(value);
  throw new Error(`${labels[0].textContent}: expected a number from ${min} to ${max}.`);
}
