"use strict";
// The sample browser: a picture as a model sees it, with the cells that are one visual token each, and what was answered.

const visible = () => data.samples.filter((sample) => shown.tasks.has(sample.task));

function drawSample() {
  const place = byId("sample");
  if (!place) return;
  const samples = visible();
  shown.sample = Math.max(0, Math.min(shown.sample, samples.length - 1));
  byId("sample-place").textContent = samples.length ? `${shown.sample + 1} of ${samples.length}` : "none";
  const sample = samples[shown.sample];
  if (!sample) return place.replaceChildren("No sample of the chosen tasks.");
  const task = data.tasks.find((one) => one.id === sample.task);
  const scales = make("div", { class: "scales", role: "group", "aria-label": "grid drawn on the image" }, ...data.scales.map((scale) =>
    make("button", { type: "button", "aria-pressed": String(scale === shown.scale), onclick: () => { shown.scale = scale; drawSample(); } }, String(scale))));
  const models = data.models.filter((model) => shown.models.has(model.name));
  const seen = models.find((model) => model.isOnGrid) || models[0];
  byId("grid-note").textContent = seen ? seen.gridNote : "";
  const head = make("tr", {}, make("th", {}, "tokens"), ...models.map((model) => make("th", {}, model.name)), make("th", {}, "GFLOP"));
  const rows = data.scales.map((scale) => make("tr", { class: scale === shown.scale ? "chosen" : "" }, make("td", {}, String(scale)),
    ...models.map((model) => answer((sample.replies[model.name] || {})[scale])), make("td", {}, costOf(models[0], sample.task, scale))));
  place.replaceChildren(
    make("div", { class: "picture" }, ...(seen ? pictures(sample, seen) : []), scales),
    make("div", { class: "answers" }, make("p", { class: "question" }, sample.question),
      make("p", { class: "soft" }, `${task.name}; expected: ${sample.target}`),
      make("div", { class: "scroll", role: "group", "aria-label": "answers" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)))));
  hintAtWidth(place.querySelector(".scroll"));
}

function answer(reply) {
  if (!reply) return make("td", {}, "");
  const mark = make("span", { class: reply.right ? "right" : "wrong" }, reply.right ? "✓ " : "✗ ");
  return make("td", { class: "reply" }, ...(reply.right === null ? [] : [mark]), reply.text || "(nothing)");
}

function costOf(model, task, scale) {
  const cost = model && costAt(model.name, [task], scale);
  return cost ? digits(cost.first_token_gflops) : "";
}

function turn(step) { shown.sample += step; drawSample(); }

// The picture in the frame of each view, with what it says of its tokens.
function pictures(sample, model) {
  const grid = (sample.grids[model.name] || {})[shown.scale];
  const views = grid ? grid.views : [];
  const says = grid ? `${model.name}: ${grid.tokens} visual token${grid.tokens === 1 ? "" : "s"} for this image` : model.isOnGrid ? `${model.name} does not reach ${shown.scale} tokens` : model.name;
  if (!views.length) return [frame(sample, { frame: [1, 1], cells: [1, 1], tiles: [1, 1], left_out: [0, 0] }), make("p", { class: "soft" }, says)];
  const drawn = views.map((view) => make("figure", {}, frame(sample, view), make("figcaption", { class: "soft" }, cellsOf(view, views.length))));
  return [...drawn, make("p", { class: "soft" }, says)];
}

function cellsOf(view, number) {
  const [rows, columns] = view.cells.map((cells, i) => cells - 2 * view.left_out[i]);
  const cells = `${rows} × ${columns} cell${rows * columns === 1 ? "" : "s"}`;
  if (number === 1) return cells;
  return view.tiles[0] * view.tiles[1] > 1 ? `in ${view.tiles[0]} × ${view.tiles[1]} tiles: ${cells}` : `as a whole: ${cells}`;
}

function frame(sample, view) {
  const [height, width] = view.frame.map((side) => (100 * side) / Math.max(...view.frame));
  const [rows, columns] = view.cells, [top, left] = view.left_out;
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `the image, in ${rows} by ${columns} cells` });
  svg.append(make("image", { href: sample.image, width, height, preserveAspectRatio: "xMidYMid meet" }));
  const x = (column) => (width * column) / columns, y = (row) => (height * row) / rows;
  const line = (x1, y1, x2, y2, look) => svg.append(make("line", { x1, y1, x2, y2, class: `under ${look}` }), make("line", { x1, y1, x2, y2, class: `over ${look}` }));
  const isBorder = (place, cells, tiles) => tiles > 1 && place % (cells / tiles) === 0;
  for (let column = Math.max(left, 1); column <= columns - Math.max(left, 1); column++) line(x(column), y(top), x(column), y(rows - top), isBorder(column, columns, view.tiles[1]) ? "tile" : "cell");
  for (let row = Math.max(top, 1); row <= rows - Math.max(top, 1); row++) line(x(left), y(row), x(columns - left), y(row), isBorder(row, rows, view.tiles[0]) ? "tile" : "cell");
  const outside = [[0, 0, width, y(top)], [0, y(rows - top), width, y(top)], [0, 0, x(left), height], [x(columns - left), 0, x(left), height]];
  for (const [at, down, wide, high] of outside) if (wide > 0 && high > 0) svg.append(make("rect", { x: at, y: down, width: wide, height: high, class: "outside" }));
  return svg;
}
