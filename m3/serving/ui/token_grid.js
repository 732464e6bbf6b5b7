// Pictures as the encoder sees them, under the lines between their tokens.
import { make } from "./dom.js";
import { contentPart } from "./pictures.js";
import { call } from "./server.js";

const VIEW_SIDE = 320; // longest side, in pixels of the canvas

export async function tokenGrid(visual, model, signal) {
  const body = { model, visual: await contentPart(visual) };
  const { pictures, grids } = await (await call("ui/token_grid", body, signal)).json();
  const images = pictures.map((src) => make("img", { src }));
  await Promise.all(images.map((image) => image.decode()));
  return { images, grids };
}

// A scale that has no lines, as none that was not trained has, is the picture by itself.
export function scaleView({ images, grids }, scale) {
  return grids[scale] ? gridView(images[grids[scale].picture], grids[scale].lines)
    : gridView(images.at(-1), []);
}

// The picture under the lines between its tokens: dark in a light edge, to be seen on anything,
// and the thinner the more there are, not to hide it.
export function gridView(image, lines) {
  const scale = VIEW_SIDE / Math.max(image.width, image.height);
  const [width, height] = [image.width * scale, image.height * scale];
  const ariaLabel = `The picture ${lines.length ? "with lines between its tokens" : "by itself"}`;
  const canvas = make("canvas", { width, height, role: "img", ariaLabel });
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, width, height);
  const isDense = lines.length > 16;
  for (const [colour, thickness] of isDense ? [["#fff8", 2.4], ["#0009", 1.2]]
    : [["#fff9", 6], ["#000d", 3]]) {
    context.strokeStyle = colour;
    context.lineWidth = thickness;
    context.beginPath();
    for (const [x1, y1, x2, y2] of lines) {
      context.moveTo(x1 * width, y1 * height);
      context.lineTo(x2 * width, y2 * height);
    }
    context.stroke();
  }
  return canvas;
}
