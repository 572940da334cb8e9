// Paints classes on a label map: props.value is JSON {size: [columns, rows], classes: base64, one byte for each pixel}.
// props.names and props.colours are those of the classes, props.spacing_mm the sides of a pixel.
const MAX_UNDONE = 50;
const find = (selector) => element.querySelector(selector);
const canvas = find("canvas"), picture = canvas.getContext("2d");
const colours = props.colours.map((colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)));
let columns = 0, rows = 0, classes = new Uint8Array(0), written = null, chosen = 0, tool = "brush", last = null;
const earlier = [];

function read() {
  if (!props.value || props.value === written) return;
  const map = JSON.parse(props.value);
  [columns, rows] = map.size;
  classes = Uint8Array.from(atob(map.classes), (letter) => letter.charCodeAt(0));
  written = props.value;
  earlier.length = 0;
  canvas.width = columns;
  canvas.height = rows;
  canvas.style.aspectRatio = `${columns * props.spacing_mm[0]} / ${rows * props.spacing_mm[1]}`;
  show();
}

function show() {
  const image = picture.createImageData(columns, rows);
  classes.forEach((number, at) => image.data.set([...(colours[number] ?? [255, 0, 255]), 255], 4 * at));
  picture.putImageData(image, 0, 0);
}

function write() {
  let letters = "";
  classes.forEach((number) => { letters += String.fromCharCode(number); });
  written = JSON.stringify({ size: [columns, rows], classes: btoa(letters) });
  props.value = written;
  trigger("change");
}

function pixel(event) {
  const box = canvas.getBoundingClientRect();
  const along = (at, length, num) => Math.floor((at / length) * num);
  return [along(event.clientX - box.left, box.width, columns), along(event.clientY - box.top, box.height, rows)];
}

function disc([x, y]) {
  const [across, down] = props.spacing_mm, radius = find(".diameter").valueAsNumber / 2;
  const reach = [Math.ceil(radius / across), Math.ceil(radius / down)];
  for (let j = Math.max(0, y - reach[1]); j <= Math.min(rows - 1, y + reach[1]); j++) {
    for (let i = Math.max(0, x - reach[0]); i <= Math.min(columns - 1, x + reach[0]); i++) {
      const inside = Math.hypot((i - x) * across, (j - y) * down) <= radius || (i === x && j === y);
      if (inside) classes[j * columns + i] = chosen;
    }
  }
}

function stroke([x, y]) {
  const [fromX, fromY] = last ?? [x, y], steps = Math.max(1, Math.abs(x - fromX), Math.abs(y - fromY));
  for (let k = 0; k <= steps; k++) {
    disc([Math.round(fromX + ((x - fromX) * k) / steps), Math.round(fromY + ((y - fromY) * k) / steps)]);
  }
  last = [x, y];
  show();
}

function fill([x, y]) {
  const before = classes[y * columns + x], waiting = [[x, y]];
  if (before === undefined || before === chosen) return;
  while (waiting.length) {
    const [i, j] = waiting.pop();
    if (i < 0 || j < 0 || i >= columns || j >= rows || classes[j * columns + i] !== before) continue;
    classes[j * columns + i] = chosen;
    waiting.push([i + 1, j], [i - 1, j], [i, j + 1], [i, j - 1]);
  }
  show();
}

function mark() {
  find(".size").textContent = `${find(".diameter").value} mm`;
  element.querySelectorAll("[data-tool]").forEach((each) => each.classList.toggle("on", each.dataset.tool === tool));
  element.querySelectorAll("[data-class]").forEach((each) => {
    each.classList.toggle("on", Number(each.dataset.class) === chosen);
  });
}

canvas.addEventListener("pointerdown", (event) => {
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  earlier.push(classes.slice());
  if (earlier.length > MAX_UNDONE) earlier.shift();
  if (tool === "fill") fill(pixel(event));
  else stroke(pixel(event));
});
canvas.addEventListener("pointermove", (event) => {
  const [x, y] = pixel(event), number = classes[y * columns + x];
  find(".under").textContent = number === undefined || x < 0 || x >= columns ? "" : props.names[number];
  if (last) stroke([x, y]);
});
for (const end of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(end, () => {
    last = null;
    write();
  });
}
element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.class) chosen = Number(button.dataset.class);
  if (button.dataset.tool) tool = button.dataset.tool;
  if (button.matches(".undo") && earlier.length) {
    classes = earlier.pop();
    show();
    write();
  }
  mark();
});
find(".diameter").addEventListener("input", mark);
props.names.forEach((name, number) => {
  const button = document.createElement("button"), swatch = document.createElement("i");
  button.type = "button";
  button.dataset.class = number;
  swatch.style.background = props.colours[number];
  button.append(swatch, name);
  find(".classes").append(button);
});
watch("value", read);
chosen = props.first_class;
read();
mark();
