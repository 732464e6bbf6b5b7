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

export function number(id) {
  const { value, min, max, labels, validity } = $(id);
  if (value && validity.valid) return Number(value);
  throw new Error(`${labels[0].textContent}: expected a number from ${min} to ${max}.`);
}
