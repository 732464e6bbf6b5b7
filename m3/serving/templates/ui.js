// What is downloaded is made here, of the record that the server gives: nothing is written on the server.
window.m3Save = (() => {
  const PAD = 24, GAP = 20, FONT = "system-ui, sans-serif";

  function give(address, name) {
    const link = document.createElement("a");
    link.href = address;
    link.download = name;
    link.click();
  }

  function wrapped(context, text, width) {
    const lines = [];
    for (const paragraph of text.split("\n")) {
      let line = "";
      for (const part of paragraph.split(/(\s+)/).flatMap((word) => context.measureText(word).width > width ? [...word] : [word])) {
        if (line && context.measureText(line + part).width > width) { lines.push(line); line = part.trimStart(); }
        else line += part;
      }
      lines.push(line);
    }
    return lines;
  }

  // A column of text and pictures; with `context` null it only measures. Returns the y below.
  function card(context, measure, item, picture, x, y, width) {
    const write = (text, size, weight, colour) => {
      measure.font = `${weight} ${size}px ${FONT}`;
      for (const line of text ? wrapped(measure, text, width) : []) {
        y += size * 1.35;
        if (context) { context.font = measure.font; context.fillStyle = colour; context.fillText(line, x, y); }
      }
    };
    write(item.heading, 19, 650, "#111");
    if (picture && item.lines) {
      y += 10;
      const height = width * picture.height / picture.width;
      if (context) {
        context.drawImage(picture, x, y, width, height);
        for (const [colour, thick] of [["rgb(0 0 0 / .5)", 2.6], ["rgb(255 255 255 / .95)", 1.2]]) {
          context.strokeStyle = colour;
          context.lineWidth = item.lines.length > 16 ? thick / 2 : thick;
          context.beginPath();
          for (const [x1, y1, x2, y2] of item.lines) {
            context.moveTo(x + x1 * width, y + y1 * height);
            context.lineTo(x + x2 * width, y + y2 * height);
          }
          context.stroke();
        }
      }
      y += height + 4;
    }
    write(item.text, 18, 400, "#111");
    write(item.caption, 14, 400, "#555");
    return y;
  }

  function rows(record) {
    const found = [];
    for (let at = 0; at < record.items.length; at += record.columns) found.push(record.items.slice(at, at + record.columns));
    return found;
  }

  function layOut(context, measure, record, picture) {
    let y = card(context, measure, { heading: record.title, text: "", caption: record.about }, null, PAD, PAD, record.width - 2 * PAD) + GAP;
    const width = (record.width - 2 * PAD - GAP * (record.columns - 1)) / record.columns;
    if (record.first && picture) {
      y = card(context, measure, { heading: "", lines: [], text: "", caption: "" }, picture, PAD, y, 320) + GAP;
    }
    for (const row of rows(record)) {
      y = Math.max(...row.map((item, n) => card(context, measure, item, picture, PAD + n * (width + GAP), y, width))) + GAP;
    }
    return y;
  }

  async function png(record) {
    let picture = null;
    if (record.picture) { picture = new Image(); picture.src = record.picture; await picture.decode(); }
    const canvas = document.createElement("canvas");
    const measure = document.createElement("canvas").getContext("2d");
    canvas.width = record.width;
    canvas.height = Math.min(Math.ceil(layOut(null, measure, record, picture)) + PAD, 16000);
    const context = canvas.getContext("2d");
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    layOut(context, measure, record, picture);
    give(canvas.toDataURL("image/png"), record.name + ".png");
  }

  return async (record) => {
    if (!record) return;
    if (record.facts) give(URL.createObjectURL(new Blob([JSON.stringify(record.facts, null, 2)], { type: "application/json" })), record.name + ".json");
    else await png(record);
  };
})();
