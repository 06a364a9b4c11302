// --- the network, which is the way through the page ---
const NODE = { width: 232, height: 26, gap: 6, indent: 10 };
const COLORS = { "dead features": (layer) => meanOf(layer.channels.get("dead")), "label purity": (layer) => meanOf(layer.channels.get("label purity")), stability: (layer) => meanOf(layer.channels.get("stability")) };
let colorBy = "dead features";
function meanOf(values) {
  const there = finite(values ?? []);
  return there.length ? there.reduce((sum, value) => sum + value, 0) / there.length : null;
}
const channelsOf = (shape) => Number(String(shape ?? "").split("x")[0]) || 1;
// Rows of operations; those that a concatenation puts together stand side by side, as far as their channels say so.
function ranksOf(rows) {
  const ranks = rows.map((row) => [row]);
  for (let at = 0; at < ranks.length; at += 1) {
    const join = ranks[at][0];
    if (join.numbers.get("type") !== "concatenation") continue;
    let first = at, sum = 0;
    while (first > 0 && sum < channelsOf(join.numbers.get("output"))) sum += channelsOf(ranks[--first][0].numbers.get("output"));
    const inputs = new Set(ranks.slice(first, at).map(([row]) => row.numbers.get("input")));
    if (sum !== channelsOf(join.numbers.get("output")) || inputs.size !== 1 || at - first < 2) continue;
    ranks.splice(first, at - first, ranks.slice(first, at).flat());
    at = first + 1;
  }
  return ranks;
}
const isWay = ({ numbers }) => !numbers.has("kind") || numbers.get("kind") !== "pad";
function drawNetwork(knowledge) {
  const { layers, rows, shown } = knowledge;
  const drawn = new Set(rows.map((row) => row.layer));
  const others = [...layers.values()].filter((layer) => shown.has(layer.layer) && !drawn.has(layer.layer));
  const ranks = [...ranksOf(rows.filter(isWay)), ...others.map((layer) => [layer])];
  const most = Math.max(1, ...ranks.flat().map((row) => channelsOf(row.numbers.get("output"))));
  const value = COLORS[colorBy];
  const known = ranks.flat().map((row) => layers.get(row.layer)).filter(Boolean).map(value).filter((each) => each !== null);
  const first = ranks.flat().find((row) => shown.has(row.layer))?.layer;
  const current = state.layer ?? first;
  const nodes = ranks.map((rank, i) => {
    const top = i * (NODE.height + NODE.gap) + 2, width = (NODE.width - 4 * (rank.length - 1)) / rank.length;
    return rank.map((row, j) => drawNode(row, layers.get(row.layer), { x: j * (width + 4) + 2, y: top, width, most, value, linked: shown.has(row.layer), current }));
  });
  const height = ranks.length * (NODE.height + NODE.gap) + 2;
  const spine = s("line", { class: "spine", x1: 12, x2: 12, y1: 2, y2: height });
  const svg = s("svg", { viewBox: `0 0 ${NODE.width + 4} ${height}`, width: NODE.width + 4, height, class: "network" }, spine, nodes.flat());
  const choices = Object.entries(COLORS).filter(([, of]) => [...layers.values()].some((layer) => of(layer) !== null)).map(([name]) => name);
  const legend = choices.length ? h("label", { class: "soft color-by" }, "Color: ", h("select", { "data-testid": "color-by", onchange: (event) => { colorBy = event.target.value; draw(); } },
    choices.map((name) => h("option", { selected: name === colorBy, value: name }, name))), known.length ? h("span", {}, ` 0 `, h("i", { class: "ramp" }), " 1") : null) : null;
  return h("div", { class: "way" }, h("a", { class: "home", href: linkTo({ layer: null, unit: null, view: null, q: null, a: null, b: null }), "aria-current": state.layer === null ? "page" : null, "data-testid": "layer-overview" }, "Whole network"), legend, svg);
}
function drawNode(row, layer, { x, y, width, most, value, linked, current }) {
  const { numbers } = row, name = row.layer || numbers.get("type") || "";
  const share = Math.log(channelsOf(numbers.get("output")) + 1) / Math.log(most + 1);
  const known = layer ? value(layer) : null;
  const about = [name, numbers.get("type"), numbers.get("output") && `output ${numbers.get("output")}`, numbers.get("receptive field") && `receptive field ${numbers.get("receptive field")}`, known === null ? null : `${colorBy} ${percent(known)}`].filter(Boolean).join(", ");
  const bar = s("rect", { class: "size", x, y: y + NODE.height - 4, width: Math.max(3, width * share), height: 4, rx: 2 });
  if (known !== null) bar.style.setProperty("fill", `color-mix(in oklab, var(--low), var(--high) ${Math.round(100 * known)}%)`);
  const size = numbers.get("output") ?? "", room = Math.floor((width - 14) / 6.6), short = shorten(name, size && width > 120 ? room - size.length - 1 : room);
  const parts = [s("title", {}, about), s("rect", { class: "node", x, y, width, height: NODE.height, rx: 5 }), bar,
    s("text", { x: x + 7, y: y + 16, "aria-hidden": "true" }, short), size && width > 120 ? s("text", { class: "size-text", "aria-hidden": "true", x: x + width - 6, y: y + 16, "text-anchor": "end" }, size) : null];
  if (!linked) return s("g", { class: "idle" }, parts);
  const here = row.layer === state.layer;
  return s("a", { href: linkTo({ layer: row.layer, unit: null, q: null, a: null, b: null }), "data-testid": `layer-${row.layer}`, "aria-current": here ? "page" : null, tabindex: row.layer === current ? 0 : -1 }, parts);
}
// A long path loses its beginning: its end tells layers apart.
function shorten(text, most) {
  const room = Math.max(most, 4), parts = text.split(".");
  while (parts.length > 1 && parts.join(".").length + 1 > room) parts.shift();
  const end = parts.join(".");
  return end === text && text.length <= room ? text : end.length < room ? `…${end}` : `…${end.slice(1 - room)}`;
}
function moveInNetwork(event) {
  const links = [...byId("network").querySelectorAll("svg a")], at = links.indexOf(document.activeElement);
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: links.length - 1 }[event.key];
  if (at < 0 || to === undefined || !links[to]) return false;
  links.forEach((link, i) => link.setAttribute("tabindex", i === to ? 0 : -1));
  links[to].focus();
  return true;
}
