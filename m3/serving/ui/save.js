// Downloads, made in the browser: a record as JSON, or drawn as PNG.
const PAD = 24, GAP = 20, MOST_PIXELS = 16000, MOST_ACROSS = 320;

export function saveJson(name, record) {
  const file = new Blob([JSON.stringify(record, null, 2)], { type: "application/json" });
  download(URL.createObjectURL(file), `${name}.json`);
}

function download(address, name) {
  Object.assign(document.createElement("a"), { href: address, download: name }).click();
}

// `items`: { heading, text, caption, views: canvases }, in rows of `columns`.
export function savePng(name, about, { title, items, columns, width }) {
  const canvas = document.createElement("canvas"), context = canvas.getContext("2d");
  const across = (width - 2 * PAD - GAP * (columns - 1)) / columns;
  const layOut = (draws) => {
    const head = { heading: title, text: "", caption: about, views: [] };
    let y = drawItem(context, draws, head, PAD, PAD, width - 2 * PAD) + GAP;
    for (let n = 0; n < items.length; n += columns) {
      y = GAP + Math.max(...items.slice(n, n + columns).map((item, at) => (
        drawItem(context, draws, item, PAD + at * (across + GAP), y, across))));
    }
    return y;
  };
  const height = Math.min(Math.ceil(layOut(false)) + PAD, MOST_PIXELS);
  Object.assign(canvas, { width, height });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  layOut(true);
  download(canvas.toDataURL("image/png"), `${name}.png`);
}

// Returns the y below it; without `draws` it only measures.
function drawItem(context, draws, { heading, text, caption, views }, x, y, width) {
  const write = (words, size, weight, colour) => {
    context.font = `${weight} ${size}px system-ui, sans-serif`;
    context.fillStyle = colour;
    for (const line of words ? wrapped(context, words, width) : []) {
      y += size * 1.35;
      if (draws) context.fillText(line, x, y);
    }
  };
  write(heading, 19, 650, "#111");
  for (const view of views) {
    const across = Math.min(width, MOST_ACROSS), height = across * view.height / view.width;
    y += 10;
    if (draws) context.drawImage(view, x, y, across, height);
    y += height + 4;
  }
  write(text, 18, 400, "#111");
  write(caption, 14, 400, "#555");
  return y;
}

function wrapped(context, text, width) {
  const isTooWide = (words) => context.measureText(words).width > width;
  return text.split("\n").flatMap((paragraph) => {
    const lines = [""];
    const words = paragraph.split(/(\s+)/);
    for (const part of words.flatMap((word) => (isTooWide(word) ? [...word] : [word]))) {
      if (lines.at(-1) && isTooWide(lines.at(-1) + part)) lines.push(part.trimStart());
      else lines[lines.length - 1] += part;
    }
    return lines;
  });
}
