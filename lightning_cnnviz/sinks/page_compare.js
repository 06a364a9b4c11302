// --- two places side by side ---
const MOST_CHANGED = 6;
const pinOf = () => { const place = placeOf(); return JSON.stringify([place.line.run, place.line.stage, place.moment.epoch, place.moment.step]); };
function pinned(text) {
  try {
    const [run, stage, epoch, step] = JSON.parse(text);
    return placeOf({ ...state, run: String(run), stage, epoch: String(epoch), step: String(step) });
  } catch {
    return null;
  }
}
const pinName = (place) => `${lineName(place.line)} · ${nameOf(place.moment, place.line)}`;
const seenIn = (row) => new Set(row.tiles.filter((tile) => tile.shows === "patch").map((tile) => tile.numbers.find(([name]) => name === "dataset index")?.[1] ?? tile.picture));
// How much of two sets is common: 1 for the same images, 0 for others.
function overlap(one, other) {
  const both = [...one].filter((image) => other.has(image)).length, all = one.size + other.size - both;
  return all ? both / all : null;
}
const patchesOf = (place) => place.views.filter(({ series }) => series.source.startsWith("top_patches")).flatMap(({ look }) => itemsOf(look).filter((item) => item.kind === "Gallery" && item.layer));
async function changesBetween(one, other) {
  await Promise.all([fetchPlace(one), fetchPlace(other)]);
  const theirs = new Map(patchesOf(other).map((item) => [item.layer, item])), found = [];
  for (const item of patchesOf(one)) {
    const match = theirs.get(item.layer), files = [item, match].flatMap((each) => each?.parts ?? []);
    if (!match) continue;
    await Promise.all(files.map(([name]) => load(partFile(name))));
    const units = [...item.places].filter(([unit]) => unit !== null && match.places.has(unit)).map(([unit, index]) => ({ unit, items: [item, match], rows: [rowAt(item, index), rowAt(match, match.places.get(unit))] }));
    for (const each of units) each.overlap = overlap(...each.rows.map(seenIn));
    const sorted = units.filter((each) => each.overlap !== null).sort((a, b) => a.overlap - b.overlap || a.unit - b.unit);
    if (sorted.length) found.push({ layer: item.layer, mean: sorted.reduce((sum, each) => sum + each.overlap, 0) / sorted.length, units: sorted });
  }
  return found;
}
function drawCompare() {
  const [one, other] = [pinned(state.a), pinned(state.b)];
  if (!one || !other) return [h("h2", {}, "Compare"), empty("Pin a look as A and another as B, with the buttons beside the slider.")];
  const body = h("div", { "data-testid": "changes" }, empty("Reading both looks…"));
  underWay(changesBetween(one, other)).then((found) => body.isConnected && body.replaceChildren(...(found.length ? found.map((layer) => drawChanges(layer)) : [empty("No unit has patches at both looks.")])));
  return [h("div", { class: "head" }, h("h2", {}, "What has changed"), h("p", {}, "A: ", h("b", {}, pinName(one)), "   B: ", h("b", {}, pinName(other)))),
    h("p", { class: "soft" }, "Of each layer the units whose strongest images changed most; overlap is the part of their images that both looks have, 0 to 1."), body];
}
function drawChanges({ layer, mean, units }) {
  const blocks = units.slice(0, MOST_CHANGED).map((each) => h("a", { class: "feature pair", href: linkTo({ layer, unit: each.unit, a: null, b: null, q: null }) }, h("strong", {}, `unit ${each.unit} · overlap ${each.overlap.toFixed(2)}`), h("span", { class: "sides" })));
  whenSeen(blocks, async (block) => {
    const { items, rows } = units[blocks.indexOf(block)];
    await Promise.all(rows.flatMap((row) => row.packs.map((pack) => load(packFile(pack)))));
    block.lastChild.replaceChildren(...rows.map((row, i) => h("span", {}, h("small", {}, "AB"[i]), tight(items[i], row.tiles, scaleTo(44, items[i].size, false), 3))));
  });
  return h("section", {}, h("h3", {}, `${layer} · mean overlap ${mean.toFixed(2)}`), h("div", { class: "pairs" }, blocks));
}
