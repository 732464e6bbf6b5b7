// Pictures and videos that the next question is about: files, and what the camera gives.
import { $, make, number, say } from "./dom.js";
import { call } from "./server.js";

let pictures = []; // { file, kind, src, address, item }

export function addFiles(files) {
  say("");
  for (const file of files) {
    if (!file.size) { say(`${file.name} is empty (0 bytes).`); continue; }
    const kind = file.type.startsWith("video/") ? "video" : "image", { name } = file;
    const src = URL.createObjectURL(file), remove = make("button", { ariaLabel: `Remove ${name}` });
    const view = make(kind === "video" ? "video" : "img", { src, alt: name, ariaLabel: name,
      controls: true, title: name });
    const frame = kind === "video" ? view : make("a", { href: src, target: "_blank" }, view);
    const picture = { file, kind, src, address: read(file), item: make("li", {}, frame, remove),
      refusal: null };
    view.onerror = () => {
      const note = make("p", { className: "soft", role: "status" }, `${name}: is it readable?`);
      frame.replaceWith(note);
      picture.refusal = checkByServer(picture, note);
    };
    remove.append("×");
    remove.onclick = () => { removePicture(picture); $("choose").focus(); };
    $("pictures").append(picture.item);
    pictures.push(picture);
  }
}

// What the browser cannot show the server may be able to read; says at once whether it can.
// Returns a sentence where it is no picture at all, so that nobody need ask about it, else "".
async function checkByServer(picture, note) {
  const { name } = picture.file;
  try {
    const visual = await contentPart({ ...picture, num_frames: undefined });
    await call("ui/token_grid", { model: $("model").value || undefined, visual });
    note.textContent = `${name}: the browser cannot show it; it can be asked about all the same.`;
    return "";
  } catch (error) {
    note.className = "refusal";
    const isNone = error.code === "no_picture";
    note.textContent = isNone ? `${name} is no picture or video that can be read. Remove it and `
      + "choose another file, such as a PNG, JPEG, WebP or MP4." : `${name}: ${error.message}`;
    return isNone ? note.textContent : "";
  }
}

// As `chosenVisuals`; refuses a file that is none.
export async function readableVisuals() {
  const refusals = await Promise.all(pictures.map(({ refusal }) => refusal));
  const sentence = refusals.find(Boolean);
  if (sentence) throw new Error(sentence);
  return chosenVisuals();
}

function read(file) { // as a data: address
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name} cannot be read: choose it again.`));
    reader.readAsDataURL(file);
  });
}

function removePicture(picture) {
  pictures = pictures.filter((one) => one !== picture);
  picture.item.remove();
}

export function clearPictures() {
  pictures.forEach(removePicture);
}

export async function openCamera() {
  if (!navigator.mediaDevices) throw new Error(
    "Browsers lend the camera to pages over https or at localhost alone: choose a file instead.");
  $("camera-view").srcObject = await navigator.mediaDevices.getUserMedia({ video: true })
    .catch((error) => { throw new Error(`The camera cannot be used: ${error.message}.`); });
  $("camera").showModal();
}

export function takePhoto() {
  const view = $("camera-view"), size = { width: view.videoWidth, height: view.videoHeight };
  const canvas = make("canvas", size);
  canvas.getContext("2d").drawImage(view, 0, 0);
  canvas.toBlob((photo) => addFiles([new File([photo], "photo.png", { type: "image/png" })]));
  $("camera").close();
}

export function recordVideo() {
  const recorder = new MediaRecorder($("camera-view").srcObject);
  recorder.ondataavailable = ({ data }) => {
    Object.assign($("record"), { textContent: "Record video", onclick: recordVideo });
    addFiles([new File([data], "recording.webm", { type: "video/webm" })]);
    $("camera").close();
  };
  recorder.start();
  Object.assign($("record"), { textContent: "End video", onclick: () => recorder.stop() });
}

// What is asked about; the same pictures, read in as many frames, go on with a conversation.
export function chosenVisuals() {
  return pictures.map((picture) => (
    { ...picture, num_frames: picture.kind === "video" ? number("frames") : undefined }));
}

export function isSame(...both) {
  const [one, other] = both.map((visuals) => visuals.flatMap((v) => [v.src, v.num_frames]).join());
  return one === other;
}

export async function contentPart({ kind, address, num_frames }) {
  const url = await address;
  return kind === "video" ? { type: "video_url", video_url: { url }, num_frames }
    : { type: "image_url", image_url: { url } };
}

$("camera").onclose = () => $("camera-view").srcObject.getTracks().forEach((track) => track.stop());
$("files").onchange = () => { addFiles($("files").files); $("files").value = ""; };
document.onpaste = (event) => {
  if (!event.clipboardData.files.length) return;
  event.preventDefault();
  addFiles(event.clipboardData.files);
};
document.ondragover = (event) => {
  if (event.dataTransfer.types.includes("Files")) event.preventDefault();
};
document.ondrop = (event) => {
  if (!event.dataTransfer.files.length) return;
  event.preventDefault();
  addFiles(event.dataTransfer.files);
};
