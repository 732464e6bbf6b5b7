"use strict";
// The page's charts, filters and sample browser. All it reads is the JSON in #data; it asks no network for anything.

const data = JSON.parse(document.getElementById("data").textContent);
const AXES = Object.fromEntries(data.axes.map((axis) => [axis.key, axis.label]));
const TOKENS = data.axes[0].key;
const shown = {
  tasks: new Set(data.tasks.map((task) => task.id)),
  models: new Set(data.models.map((model) => model.name)),
  published: new Set(data.publishedModels.slice(0, 4)),
  axis: TOKENS,
  sample: 0,
  scale: data.scales[data.scales.length - 1],
};

// --- small helpers -------------------------------------------------------------------------------------------------
const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function make(tag, attributes = {}, ...children) {
  const isSvg = ["svg", "g", "line", "path", "circle", "rect", "text", "image"].includes(tag);
  const element = isSvg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

const digits = (number) => String(Number(number.toPrecision(3)));
// A budget is tokens (36), or tokens at a resolution in pixels ("36@48"); plain ones see the largest.
const tokensOf = (scale) => Number(String(scale).split("@")[0]);
const sideOf = (scale) => String(scale).split("@")[1] || "";
const sides = [...new Set(data.scales.map(sideOf))].sort((a, b) => (a || Infinity) - (b || Infinity));
const plain = (number) => (number >= 1e6 ? number.toPrecision(3) : digits(number));

// --- the numbers of a chart ----------------------------------------------------------------------------------------
// A point: x, y, error (or null), whether the weights were trained there, and what the tooltip says.
function score(model, task, scale) {
  const found = ((data.scores[model] || {})[task] || {})[scale];
  return found ? { value: found[0], error: found[1] } : null;
}

// The tasks of a mean: all where they are of one kind, else the accuracies among them, or none.
function averaged(tasks) {
  const kind = new Map(data.tasks.map((task) => [task.id, task.kind]));
  const kinds = new Set(tasks.map((task) => kind.get(task)));
  return kinds.size < 2 ? tasks : tasks.filter((task) => kind.get(task) === data.averaged);
}

function mean(model, tasks, scale) {
  const found = tasks.map((task) => score(model, task, scale));
  if (!found.length || found.includes(null)) return null;
  const value = found.reduce((sum, one) => sum + one.value, 0) / found.length;
  const squares = found.reduce((sum, one) => sum + one.error ** 2, 0);
  return { value, error: found.some((one) => one.error === null) ? null : Math.sqrt(squares) / found.length };
}

// The cost of a mean prompt of the tasks: of all, as the tables have it; else of theirs alone, each prompt weighing the same.
function costAt(model, tasks, scale) {
  const whole = (data.costs[model] || {})[scale] || null;
  const all = averaged(data.tasks.map((task) => task.id));
  if (!whole || !data.taskCosts || (tasks.length > 1 && tasks.length === all.length)) return whole;
  const parts = tasks.map((task) => (data.taskCosts[model][task] || {})[scale]);
  if (parts.includes(undefined)) return null;
  const prompts = parts.reduce((sum, part) => sum + part.prompts, 0);
  const mean = (name) => parts.reduce((sum, part) => sum + part[name] * part.prompts, 0) / prompts;
  const computed = data.axes.filter((axis) => !axis.isMeasured);
  return { ...whole, ...Object.fromEntries(computed.map((axis) => [axis.key, mean(axis.key)])) };
}

function ourCurves(tasks) {
  const models = data.models.filter((model) => shown.models.has(model.name));
  return [...models.map((model) => curveOf(model, tasks, data.scales, false)), ...models.map((model) => curveOf(model, tasks, data.choices, true))];
}

// The points of a model at fixed budgets, or at its choices among them.
function curveOf(model, tasks, scales, isChoice) {
  return {
    name: model.name,
    style: data.models.indexOf(model),
    isChoice,
    points: scales.flatMap((scale) => {
      const found = mean(model.name, tasks, scale);
      const cost = costAt(model.name, tasks, scale);
      const x = cost ? cost[shown.axis] : null;
      if (!found || !x) return [];  // 0: no picture in a prompt, and no place on a logarithmic axis
      const trained = isChoice || model.trained.includes(scale);
      const budget = isChoice || sides.length > 1 ? `, ${scale}` : "";
      const lines = [model.name + budget + (trained ? "" : " (not trained at this scale)"), found.value.toFixed(1) + (found.error === null ? "" : ` ± ${found.error.toFixed(1)}`)];
      if (cost) {
        for (const axis of data.axes.filter((axis) => cost[axis.key] !== null)) {
          const spread = axis.key === "first_token_ms" ? ` ± ${digits(cost.spread)}` : "";
          lines.push(`${digits(cost[axis.key])}${spread} ${axis.label}`);
        }
        if (cost.alike.length) lines.push(`${data.noDifference} in time to ${cost.alike.join(", ")}`);
      }
      const isLess = data.tasks.find((task) => task.id === tasks[0]).kind.startsWith("less");
      return [{ x, y: found.value, good: isLess ? -found.value : found.value, error: found.error, trained, lines, scale }];
    }),
  };
}

// Papers count tokens per image or tile: a score at a scale stands where ours does, at another one only where a prompt of ours has
// as many tokens as its scale says. Tokens per video are those of the prompt.
function placeOf(row, tasks) {
  const own = data.scales.map((scale) => [scale, costAt(data.models[0].name, tasks, scale)]).filter(([, cost]) => cost);
  const same = own.find(([scale]) => scale === row.tokens);
  if (row.per !== "video" && same) return same[1][TOKENS];
  return row.per === "video" || own.every(([scale, cost]) => cost[TOKENS] === tokensOf(scale)) ? row.tokens : null;
}

function publishedCurves(tasks) {
  if (shown.axis !== TOKENS) return [];
  return data.publishedModels.filter((name) => shown.published.has(name)).map((name) => {
    const rows = data.published.filter((row) => row.model === name && tasks.includes(row.task));
    const points = [...new Set(rows.map((row) => row.tokens))].sort((a, b) => a - b).flatMap((tokens) => {
      const at = tasks.map((task) => rows.find((row) => row.task === task && row.tokens === tokens));
      const x = at.includes(undefined) ? null : placeOf(at[0], tasks);
      if (!x) return [];
      const y = at.reduce((sum, row) => sum + row.value, 0) / at.length;
      const lines = [`${name} (published)`, y.toFixed(1), `${tokens} tokens per ${at[0].per}`, `${at[0].paper}, ${at[0].table}`];
      return [{ x, y, error: null, trained: true, lines }];
    });
    return { name, style: -1, points };
  });
}

// --- one chart -----------------------------------------------------------------------------------------------------
function chart(title, tasks, isSmall) {
  const curves = [...publishedCurves(tasks), ...ourCurves(tasks)].filter((curve) => curve.points.length);
  const width = 460, height = isSmall ? 280 : 330, left = 46, right = 14, top = 30, bottom = 44;
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `${title}, by ${AXES[shown.axis]}` });
  svg.append(make("text", { x: left, y: 18, class: "title" }, title));
  const isShare = tasks.every((id) => data.tasks.find((task) => task.id === id).kind.endsWith("share"));
  svg.append(make("text", { x: width - right, y: 18, class: "tick unit" }, isShare ? "score, %" : "score, points"));
  const points = curves.flatMap((curve) => curve.points);
  if (!points.length) {
    svg.append(make("text", { x: width / 2, y: height / 2, class: "empty" }, tasks.length && shown.models.size ? "nothing to draw: no score, no cost, or no picture" : "nothing to draw: choose a task and a model"));
    return svg;
  }
  const xs = points.map((point) => Math.log(point.x));
  const [low, high] = [Math.min(...xs), Math.max(...xs)];
  const most = Math.max(100, ...points.map((point) => point.y + (point.error || 0)));
  const x = (value) => left + 10 + (high > low ? (Math.log(value) - low) / (high - low) : 0.5) * (width - left - right - 20);
  const least = Math.min(0, ...points.map((point) => point.y - (point.y < 0 && point.error ? point.error : 0)));
  const y = (value) => height - bottom - ((value - least) / (most - least)) * (height - top - bottom);
  const step = most > 100 ? 10 ** Math.floor(Math.log10(most)) / (most / 10 ** Math.floor(Math.log10(most)) < 4 ? 2 : 1) : 20;
  for (let value = Math.ceil(least / step) * step; value <= most; value += step) {
    svg.append(make("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), class: "grid" }));
    svg.append(make("text", { x: left - 7, y: y(value) + 4, class: "tick y" }, plain(value)));
  }
  let last = -Infinity;
  for (const value of [...new Set(points.map((point) => point.x))].sort((a, b) => a - b)) {
    svg.append(make("line", { x1: x(value), x2: x(value), y1: height - bottom, y2: height - bottom + 4, class: "axis" }));
    if (x(value) - last < 34) continue;
    svg.append(make("text", { x: x(value), y: height - bottom + 17, class: "tick x" }, plain(value)));
    last = x(value);
  }
  svg.append(make("line", { x1: left, x2: width - right, y1: height - bottom, y2: height - bottom, class: "axis" }));
  svg.append(make("text", { x: (left + width - right) / 2, y: height - 8, class: "label" }, AXES[shown.axis] + (data.taskCosts || shown.axis === "ms" ? "" : ", over all tasks")));
  blindLines(tasks).forEach(([name, label, value], i, lines) => {
    svg.append(make("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), class: `blind ${name}` }));
    const isClose = lines.length === 2 && Math.abs(lines[0][2] - lines[1][2]) < most / 15;
    if (isClose && i === 0) return;
    const top = isClose ? Math.max(lines[0][2], value) : value;
    svg.append(make("text", { x: width - right, y: y(top) - 4, class: "blindlabel" }, isClose ? "chance, majority answer" : label));
  });
  for (const curve of curves) svg.append(drawCurve(curve, x, y));
  return svg;
}

function blindLines(tasks) {
  return [["chance", "chance"], ["majority", "majority answer"]].flatMap(([name, label]) => {
    const values = tasks.map((task) => data.tasks.find((one) => one.id === task)[name]);
    return values.includes(null) ? [] : [[name, label, values.reduce((sum, one) => sum + one, 0) / values.length]];
  });
}

function drawCurve(curve, x, y) {
  const look = curve.style < 0 ? "published" : `c${curve.style % 6} d${Math.floor(curve.style / 6) % 3}`;
  const group = make("g", { class: `curve ${look}`, "data-series": curve.name });
  for (const [points, look] of linesOf(curve)) {
    const path = points.map((point, i) => `${i ? "L" : "M"}${x(point.x).toFixed(1)} ${y(point.y).toFixed(1)}`).join("");
    group.append(make("path", { d: path, class: look }));
  }
  for (const point of curve.points) {
    const at = { cx: x(point.x).toFixed(1), cy: y(point.y).toFixed(1) };
    if (point.error) {
      const ends = { x1: at.cx, x2: at.cx, y1: y(point.y - point.error), y2: y(point.y + point.error) };
      group.append(make("line", { ...ends, class: "error" }));
    }
    const show = (event) => tell(event.target, point.lines);
    const side = curve.isChoice ? "choice" : point.scale === undefined ? "" : sideOf(point.scale);
    const mark = { class: point.trained ? "mark" : "mark hollow", tabindex: 0, role: "img", "data-side": side };
    const events = { onmouseenter: show, onfocus: show, onmouseleave: hush, onblur: hush };
    const shape = side ? { d: outlineOf(side, Number(at.cx), Number(at.cy)) } : { ...at, r: curve.style < 0 ? 3.5 : 5 };
    group.append(make(side ? "path" : "circle", { ...shape, ...mark, ...events, "aria-label": point.lines.join("; ") }));
  }
  return group;
}

// One line; where resolutions differ a thin one for each, and the Pareto front over all of them.
function linesOf(curve) {
  if (curve.isChoice) return [];
  const own = curve.points.filter((point) => point.scale !== undefined);
  const shownSides = [...new Set(own.map((point) => sideOf(point.scale)))];
  if (shownSides.length < 2) return [[curve.points, "line"]];
  const ascending = own.slice().sort((a, b) => a.x - b.x || b.good - a.good);
  let best = -Infinity;
  const front = ascending.filter((point) => { const isBest = point.good > best; best = Math.max(best, point.good); return isBest; });
  return [...shownSides.map((side) => [ascending.filter((point) => sideOf(point.scale) === side), "line thin"]), [front, "line"]];
}

// Squares, triangles and diamonds, in turn by resolution; plain budgets have circles, choices among them stars.
function outlineOf(side, x, y) {
  if (side === "choice") {
    const tips = [...Array(10).keys()].map((i) => [(i % 2 ? 3.2 : 8) * Math.sin(i * Math.PI / 5), (i % 2 ? -3.2 : -8) * Math.cos(i * Math.PI / 5)]);
    return `M${tips.map(([dx, dy]) => `${(x + dx).toFixed(1)} ${(y + dy).toFixed(1)}`).join("L")}Z`;
  }
  const corners = [[[-4.5, -4.5], [4.5, -4.5], [4.5, 4.5], [-4.5, 4.5]], [[0, -6], [5.5, 4.5], [-5.5, 4.5]], [[0, -6.5], [6, 0], [0, 6.5], [-6, 0]], [[0, 6], [5.5, -4.5], [-5.5, -4.5]]];
  const shape = corners[sides.filter(Boolean).indexOf(side) % corners.length];
  return `M${shape.map(([dx, dy]) => `${(x + dx).toFixed(1)} ${(y + dy).toFixed(1)}`).join("L")}Z`;
}

function tell(target, lines) {
  const tip = byId("tip"), box = target.getBoundingClientRect();
  tip.replaceChildren(...lines.map((line, i) => make(i ? "div" : "strong", {}, line)));
  tip.hidden = false;
  const wide = tip.offsetWidth, over = box.left + box.width / 2 - wide / 2;
  tip.style.left = `${Math.max(8, Math.min(over, document.documentElement.clientWidth - wide - 8)) + scrollX}px`;
  const above = box.top - tip.offsetHeight - 8;
  tip.style.top = `${(above > 4 ? above : box.bottom + 8) + scrollY}px`;
}

const hush = () => { byId("tip").hidden = true; };

// --- tables --------------------------------------------------------------------------------------------------------
// A table that is wider than its place says so, and keys reach it to scroll it.
const widths = new ResizeObserver((entries) => entries.forEach(({ target }) => {
  const place = target.classList.contains("scroll") ? target : target.parentElement;
  const isWide = place.scrollWidth > place.clientWidth;
  place.classList.toggle("wide", isWide);
  if (isWide) place.tabIndex = 0;
  else place.removeAttribute("tabindex");
}));

function hintAtWidth(place) {
  place.before(make("p", { class: "soft sideways" }, "Scroll sideways for more columns →"));
  widths.observe(place);
  widths.observe(place.firstElementChild);
}

// A link of the contents unfolds what it leads to; paper has everything.
function unfold() {
  const target = location.hash.length > 1 && byId(decodeURIComponent(location.hash.slice(1)));
  if (target && target.matches("details")) target.open = true;
}

// --- filters -------------------------------------------------------------------------------------------------------
function choices(id, names, chosen, labels) {
  const place = byId(id);
  if (!place) return;
  names.forEach((name, i) => {
    const change = (event) => { event.target.checked ? chosen.add(name) : chosen.delete(name); draw(); };
    const box = make("input", { type: "checkbox", value: name, checked: chosen.has(name), onchange: change });
    const key = id === "models" ? [make("span", { class: `key c${i % 6}` })] : [];
    place.append(make("label", {}, box, ...key, ` ${labels[i]}`));
  });
}

function draw() {
  hush();
  const tasks = data.tasks.filter((task) => shown.tasks.has(task.id));
  const ids = averaged(tasks.map((task) => task.id));
  const arrow = ids.length && data.tasks.find((task) => task.id === ids[0]).kind.startsWith("less") ? " ↓" : "";
  const title = tasks.length === 1 ? tasks[0].name : `Mean of ${ids.length} tasks${arrow}`;
  byId("mean").replaceChildren(chart(title, ids, false));
  byId("each").replaceChildren(...(tasks.length > 1 ? tasks : []).map((task) => chart(task.name, [task.id], true)));
  for (const row of document.querySelectorAll("[data-task]")) row.hidden = !shown.tasks.has(row.dataset.task);
  drawNeeds(tasks);
  drawExperts();
  drawSample();
}

// --- which samples need which scale --------------------------------------------------------------------------------
function drawNeeds(tasks) {
  const place = byId("needs");
  if (!place) return;
  const model = data.models.find((one) => shown.models.has(one.name) && data.needs[one.name]);
  place.replaceChildren(...(model ? tasks : []).filter((task) => data.needs[model.name][task.id]).map((task) => {
    const parts = data.needs[model.name][task.id];
    const total = parts.reduce((sum, part) => sum + part[1], 0);
    const bars = parts.map(([scale, count], i) => {
      const share = (100 * count) / total;
      const says = scale === "never" ? `${count} of ${total} never right` : `${count} of ${total} first right at ${scale} tokens`;
      const look = scale === "never" ? "bar never" : i / Math.max(parts.length - 2, 1) < 0.59 ? "bar light" : "bar";
      const shade = scale === "never" ? "" : `--i:${i / Math.max(parts.length - 2, 1)}`;
      return make("span", { class: look, style: `flex-basis:${share}%;${shade}`, title: says }, share >= 7 ? `${share.toFixed(0)}` : "");
    });
    return make("div", { class: "need" }, make("span", { class: "name" }, task.name), make("span", { class: "bars" }, ...bars));
  }));
  byId("needs-model").textContent = model ? model.name : "";
}

// --- start ---------------------------------------------------------------------------------------------------------
choices("tasks", data.tasks.map((task) => task.id), shown.tasks, data.tasks.map((task) => task.name));
choices("models", data.models.map((model) => model.name), shown.models, data.models.map((model) => model.name));
choices("published", data.publishedModels, shown.published, data.publishedModels);
const known = Object.values(data.costs).flatMap((costs) => Object.values(costs));
for (const [name, label] of Object.entries(AXES)) {
  if (name === TOKENS || known.some((cost) => cost[name] !== null)) byId("axis").append(make("option", { value: name }, label));
}
byId("axis").addEventListener("change", (event) => { shown.axis = event.target.value; draw(); });
byId("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
});
if (byId("sample")) {
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  byId("samples").addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") turn(-1);
    if (event.key === "ArrowRight") turn(1);
  });
}
document.addEventListener("keydown", (event) => { if (event.key === "Escape") hush(); });
document.querySelectorAll(".scroll").forEach(hintAtWidth);
addEventListener("hashchange", unfold);
document.querySelectorAll("#contents a").forEach((link) => link.addEventListener("click", () => setTimeout(unfold)));
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
unfold();
draw();
