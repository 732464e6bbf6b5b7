// Pictures as the encoder sees them, under the lines between their tokens.
import { make } from "./dom.js";
import { contentPart } from "./pictures.js";
import { call } from "./server.js";

const VIEW_SIDE = 480; // longest side, in pixels of the canvas

export async function tokenGrid(visual, signal) {
  const body = { visual: await contentPart(visual) };
  const { pictures, grids } = await (await call("ui/token_grid", body, signal)).json();
  const images = pictures.map((src) => make("img", { src }));
  await Promise.all(images.map((image) => image.decode()));
  return { images, grids };
}

// The picture under the lines between its tokens: dark under light ones, to be seen on anything.
export function gridView(image, lines) {
  const scale = VIEW_SIDE / Math.max(image.width, image.height);
  const [width, height] = [image.width * scale, image.height * scale];
  const ariaLabel = `The picture ${lines.length ? "with lines between its tokens" : "by itself"}`;
  const canvas = make("canvas", { width, height, role: "img", ariaLabel });
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, width, height);
  for (const [colour, thickness] of [["#000a", 5], ["#fff", 2.4]]) {
    context.strokeStyle = colour;
    context.lineWidth = lines.length > 16 ? thickness / 2 : thickness;
    context.beginPath();
    for (const [x1, y1, x2, y2] of lines) {
      context.moveTo(x1 * width, y1 * height);
      context.lineTo(x2 * width, y2 * height);
    }
    context.stroke();
  }
  return canvas;
}
