const input = element.querySelector("input");
const scales = input.dataset.scales.split(" ");
function show() {
  const scale = scales[Number(input.value)];
  element.querySelector("output").textContent = scale;
  input.setAttribute("aria-valuetext", scale + " visual tokens");
}
input.addEventListener("input", () => { show(); props.scale = scales[Number(input.value)]; });
input.addEventListener("change", () => { show(); props.value = scales[Number(input.value)]; trigger("change"); });
