"use strict";
// Maps of expert load, layers x experts, of the first shown model that has experts, at the scale that was pressed.

function drawExperts() {
  const place = byId("experts-maps");
  if (!place) return;
  const model = data.models.find((one) => shown.models.has(one.name) && data.experts[one.name]);
  const scales = model ? data.scales.filter((scale) => data.experts[model.name][scale]) : [];
  if (!scales.includes(shown.expertScale)) shown.expertScale = scales[scales.length - 1];
  byId("experts-model").textContent = model ? model.name : "No model with experts is chosen";
  byId("experts-scales").replaceChildren(...scales.map((scale) => make("button", {
    type: "button", "aria-pressed": String(scale === shown.expertScale),
    onclick: () => { shown.expertScale = scale; drawExperts(); } }, String(scale))));
  const maps = model ? data.experts[model.name][shown.expertScale] : {};
  const kinds = ["visual", "text"].filter((kind) => maps[kind]).map((kind) => [kind, maps[kind]]);
  const most = Math.max(1, ...(model ? Object.values(data.experts[model.name]) : []).flatMap((one) => Object.values(one).flat(2)));
  place.replaceChildren(...kinds.map(([kind, map]) => expertMap(kind, map, most)));
}

function expertMap(kind, map, most) {
  const layers = map.length, experts = map[0].length, left = 46, top = 30, wide = 400, high = Math.min(260, Math.max(60, 26 * layers));
  const svg = make("svg", { viewBox: `0 0 460 ${top + high + 44}`, role: "img", "aria-label": `load of ${experts} experts in ${layers} layers, ${kind} tokens` });
  svg.append(make("text", { x: left, y: 18, class: "title" }, `${kind} tokens, 0 to ${digits(most)} fair shares`));
  map.forEach((row, layer) => row.forEach((load, expert) => {
    const says = [`layer ${layer}, expert ${expert}`, `${digits(load)} fair shares of the ${kind} tokens' choices`];
    const box = { x: left + (wide * expert) / experts, y: top + (high * layer) / layers, width: wide / experts, height: high / layers };
    svg.append(make("rect", { ...box, class: "load", style: `--i:${load / most}`, onmouseenter: (event) => tell(event.target, says), onmouseleave: hush }));
  }));
  for (const [layer, at] of [[0, 0.5], ...(layers > 1 ? [[layers - 1, layers - 0.5]] : [])]) {
    svg.append(make("text", { x: left - 7, y: top + (high * at) / layers + 4, class: "tick y" }, String(layer)));
  }
  for (const [expert, at] of [[0, 0.5], [experts - 1, experts - 0.5]]) {
    svg.append(make("text", { x: left + (wide * at) / experts, y: top + high + 17, class: "tick x" }, String(expert)));
  }
  svg.append(make("text", { x: left + wide / 2, y: top + high + 36, class: "label" }, "expert, by layer from top to bottom"));
  return svg;
}
