// --- the document ---
const byId = (id) => document.getElementById(id);
const phone = matchMedia("(max-width: 720px)");
const SVG = "http://www.w3.org/2000/svg";
function h(tag, attributes, ...children) {
  return put(document.createElement(tag), attributes, children);
}
function s(tag, attributes, ...children) {
  return put(document.createElementNS(SVG, tag), attributes, children);
}
function put(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) node[name] = value;
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat(4).filter((child) => child !== null && child !== undefined));
  return node;
}
const styled = (node, values) => {
  for (const [name, value] of Object.entries(values)) node.style.setProperty(name, value);
  return node;
};
function fill(node, ...children) {
  // A redrawn control keeps the focus, else the keyboard would be back at the top after each key.
  const focus = node.contains(document.activeElement) ? document.activeElement.dataset.testid : undefined;
  node.replaceChildren(...children.flat(4).filter((child) => child !== null && child !== undefined));
  if (focus) node.querySelector(`[data-testid="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
}
const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0, useGrouping: true });
function show(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (typeof value !== "number") return readable(String(value));
  return Number.isInteger(value) ? (Math.abs(value) >= 10_000 ? grouped.format(value) : String(value)) : String(Number(value.toPrecision(4)));
}
const words = (name) => name.replaceAll("_", " ");
// Folders of ImageNet are called n01443537_goldfish: people read the name; its files are called n01443537_2.JPEG.
const FOLDER = /^n\d{8}_(?=\D)/;
const className = (name) => words(String(name).replace(FOLDER, ""));
const readable = (text) => (FOLDER.test(text) ? className(text) : text);
const percent = (part) => `${Math.round(100 * part)} %`;
const facts = (numbers) => numbers.length
  ? h("dl", { class: "facts" }, numbers.map(([name, value]) => h("div", {}, h("dt", {}, words(name)), h("dd", {}, show(value)))))
  : null;
const empty = (text) => h("p", { class: "empty" }, text);

// A crop is shown as a window on its whole image: `crop` has the image's width and height, the box (top, left, bottom,
// right) in it, and the row and column of the window at which the box lies; around it is what lies outside the image.
function picture({ picture: name, crop, size: [width, height] }, scale, attributes) {
  const image = h("img", { src: pictures.get(name)?.uri, alt: "", decoding: "async", ...attributes });
  const [shownWidth, shownHeight] = [width, height].map((side) => Math.max(1, Math.round(side * scale)));
  if (!crop) return Object.assign(image, { width: shownWidth, height: shownHeight });
  const [imageWidth, imageHeight, top, left, bottom, right, row, column] = crop;
  const part = (length, whole) => `${(100 * length) / whole}%`;
  const frame = styled(h("span", { class: "crop" }, image), { width: `${shownWidth}px`, "aspect-ratio": `${shownWidth} / ${shownHeight}` });
  styled(image, {
    width: part(imageWidth, width), height: part(imageHeight, height),
    left: part(column - left, width), top: part(row - top, height),
  });
  // Only where the box ends inside the window: at its edges a rounding would let the ground through.
  const within = [row > 0, column + right - left < width, row + bottom - top < height, column > 0];
  const cuts = [part(top, imageHeight), part(imageWidth - right, imageWidth), part(imageHeight - bottom, imageHeight), part(left, imageWidth)];
  if (within.some(Boolean)) {
    frame.classList.add("partly");
    image.style.setProperty("clip-path", `inset(${cuts.map((cut, side) => (within[side] ? cut : 0)).join(" ")})`);
  }
  return frame;
}
// Hard pixel edges need a whole number of screen pixels for each.
function scaleTo(goal, [width, height], hard) {
  const scale = goal / Math.max(width, height, 1);
  return hard && scale > 1 ? Math.max(1, Math.round(scale)) : scale;
}
// Where a patch lies on its whole image.
function wholeImage({ picture: name, crop }, side, alt) {
  const [width, height, top, left, bottom, right] = crop, scale = side / Math.max(width, height);
  const box = { x: left, y: top, width: right - left, height: bottom - top, fill: "none", "vector-effect": "non-scaling-stroke" };
  return s("svg", { class: "whole", viewBox: `0 0 ${width} ${height}`, width: Math.round(width * scale), height: Math.round(height * scale), role: "img", "aria-label": alt },
    s("image", { href: pictures.get(name)?.uri, width, height }), s("rect", { ...box, class: "halo" }), s("rect", { ...box, class: "box" }));
}
let arriving = 0; // what is on its way to places that are drawn already
function underWay(work) {
  arriving += 1;
  return Promise.resolve(work).finally(() => {
    arriving -= 1;
    if (!arriving) forget(); // what came late, as thumbs do, counts too
  });
}
// Calls `arrive` for each node once, when it comes near the window.
function whenSeen(nodes, arrive) {
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) {
      watch.unobserve(entry.target);
      underWay(arrive(entry.target));
    }
  }, { rootMargin: "300px" });
  nodes.forEach((node) => watch.observe(node));
}
// Print says what is not on it.
addEventListener("beforeprint", () => {
  const left = document.querySelectorAll("main .feature:not(:has(.tiles, .sides))").length;
  document.querySelectorAll("main .printed").forEach((node) => node.remove());
  if (left) document.querySelector("main").append(h("p", { class: "printed" }, `${left} more ${left > 1 ? "units are" : "unit is"} not printed: they were not scrolled to.`));
});
// What a person takes away.
function saving(name, text, label, type = "text/csv") {
  return h("button", { class: "quiet", "data-testid": `save-${name}`, onclick: () => saveAs(name, URL.createObjectURL(new Blob([text()], { type }))) }, label);
}
function saveAs(name, address) {
  h("a", { href: address, download: name }).click();
  if (address.startsWith("blob:")) setTimeout(() => URL.revokeObjectURL(address), 1000);
}
const csvLine = (cells) => cells.map((cell) => (/[",\n]/.test(String(cell ?? "")) ? `"${String(cell).replaceAll('"', '""')}"` : cell ?? "")).join(",");
const csv = (lines) => `${lines.map(csvLine).join("\n")}\n`;
