// --- one unit, one page: everything that any view knows of it ---
const SIDE = 160;
// The rows of one unit, by view, gallery after gallery; read as soon as their files are there.
function rowsOf(place, layer, unit) {
  return place.views.flatMap((view) => itemsOf(view.look).filter((item) => item.kind === "Gallery" && item.layer === layer && item.places.has(unit))
    .map((item) => ({ view, item, index: item.places.get(unit) })));
}
const fetchRows = (found) => Promise.all(found.map(({ item, index }) => fetchRow(item, index, true)));
const rowsThere = (found) => found.every(({ item, index }) => hasPictures(rowAt(item, index)));
const isEvolution = ({ item }) => item.name === `${item.layer}/evolution`;

function drawUnit(place, knowledge) {
  const { layer, unit } = state, known = knowledge.layers.get(layer);
  if (!known) return [h("h2", {}, `${layer} · ${unit}`), empty("There is no such layer here.")];
  const found = rowsOf(place, layer, unit).map((each) => ({ ...each, row: rowAt(each.item, each.index) }));
  const tiles = (shows, of = () => true) => found.filter((each) => !isEvolution(each) && of(each)).flatMap((each) => each.row.tiles.filter((tile) => tile.shows === shows).map((tile) => ({ ...tile, item: each.item })));
  const byRank = (list) => new Map(list.map((tile) => [tile.rank, tile]).toReversed());
  const patches = tiles("patch"), first = byRank(patches.filter((tile) => tile.numbers.some(([name]) => name === "label")).concat(patches));
  const projections = byRank(tiles("projection"));
  const ranks = [...new Set([...first.keys(), ...projections.keys()])].sort((a, b) => a - b);
  const optima = found.filter(({ row }) => row.tiles.some((tile) => tile.shows === "optimum"));
  const filters = found.filter(({ row }) => row.tiles.some((tile) => tile.shows === "filter"));
  const rest = found.filter((each) => !isEvolution(each) && !each.row.tiles.some((tile) => ["patch", "projection", "optimum", "filter", "empty"].includes(tile.shows)));
  const marks = ranks.map((rank) => (first.get(rank) ?? projections.get(rank)).numbers.find(([name]) => name === "activation")?.[1]).filter(Number.isFinite);
  const side = [drawClasses(known, unit), drawActivity(known, unit, marks), section("optimum", "The image it makes up itself", optima.map((each) => strip(each, 160))),
    section("filter", "Its filter", filters.map((each) => strip(each, each.row.tiles.length > 1 ? 40 : 128))),
    drawNeighbors(place, known, unit), drawEvolution(place), ...rest.map((each) => section("other", `${each.view.series.title}: ${each.row.caption}`, [strip(each, 96)]))];
  const none = !ranks.length ? empty("No patches of this unit were kept at this look: its numbers alone are known.") : null;
  return [unitHead(known, unit), h("div", { class: "unit" },
    h("section", { class: "ranks", "aria-label": "Patches" }, none, ranks.map((rank) => drawRank(first.get(rank), projections.get(rank), rank))),
    h("div", { class: "beside" }, side)),
  h("p", { class: "save" }, saving(`${layer}-${unit}.csv`, () => unitCsv(known, unit, found), "Numbers as CSV"), h("button", { class: "quiet", onclick: () => print() }, "Print")),
  helpFor("top_patches"), projections.size ? helpFor("deconvnet") : null];
}
function unitHead({ layer, units, numbers: ofLayer, channels, classes }, unit) {
  const numbers = [...channels].map(([name, values]) => [name, values[unit]]).filter(([name, value]) => value !== undefined && !(name === "dead" && !value));
  const least = ofLayer.get("least label purity");
  const told = numbers.map(([name, value]) => [name, name === "dead" ? "yes" : name === "label purity" && least ? `${show(value)} (at least ${show(least)})` : value]);
  const step = (by, name, label) => (unit + by >= 0 && unit + by < units ? h("a", { class: "button", href: linkTo({ unit: unit + by }), "data-testid": name, "aria-label": label, rel: by > 0 ? "next" : "prev" }, by > 0 ? "↓" : "↑") : h("span", { class: "button off", "aria-hidden": "true" }, by > 0 ? "↓" : "↑"));
  const best = classes?.[unit]?.[0];
  return h("div", { class: "head" }, h("h2", { id: "unit-title" }, h("a", { href: linkTo({ unit: null }) }, layer), ` · unit ${unit}`), h("span", { class: "soft" }, units ? `of ${units}` : ""),
    facts([...told, ...(best ? [["driven by", `${className(best[0])}, ${percent(best[1])}`]] : [])]), h("span", { class: "steps" }, step(-1, "previous-unit", "Previous unit"), step(1, "next-unit", "Next unit")));
}
const section = (name, title, content) => (content.length ? h("section", { "data-testid": `unit-${name}` }, h("h3", {}, title), content) : null);
function strip({ item, row }, side) {
  const scale = scaleTo(side, item.size, item.enlarge);
  return h("div", { class: "strip" }, row.tiles.map((tile) => h("figure", {}, picture(tile, scale, { class: scale > 1 && item.enlarge ? "pixels" : null, alt: tileText(tile) || row.caption }), tile.caption ? h("figcaption", {}, tile.caption) : null)));
}
// One patch: where it is on its image, itself, what it projects to, and both together.
function drawRank(patch, projection, rank) {
  const tile = patch ?? projection, scale = scaleTo(SIDE, tile.size, tile.item.enlarge), hard = scale > 1 && tile.item.enlarge ? "pixels" : null;
  const value = (name) => tile.numbers.find(([key]) => key === name)?.[1];
  const label = value("label"), file = value("file"), index = value("dataset index");
  const about = `patch ${rank + 1}${label === undefined ? "" : `, ${className(label)}`}`;
  const parts = [
    patch?.whole ? h("figure", {}, wholeImage(patch.whole, SIDE, `${about}, on its whole image`), h("figcaption", {}, "on its image")) : null,
    patch ? h("figure", { "data-testid": `patch-${rank}` }, picture(patch, scale, { class: hard, alt: about }), h("figcaption", {}, "patch")) : null,
    projection ? h("figure", { "data-testid": `projection-${rank}` }, picture(projection, scale, { class: hard, alt: `projection of ${about}` }), h("figcaption", {}, scaleOf(projection))) : null,
    patch && projection && tile.item.enlarge ? h("figure", { "data-testid": `masked-${rank}` }, masked(patch, projection, scale, about), h("figcaption", {}, "patch × projection")) : null,
  ];
  return h("article", { class: projection ? "rank wide" : "rank" }, h("h3", {}, `${rank + 1}`, label === undefined ? "" : ` · ${className(label)}`),
    h("p", { class: "soft" }, [`activation ${show(value("activation"))}`, index === undefined ? "" : `image ${index}`, fileName(file)].filter(Boolean).join(" · ")), h("div", { class: "four" }, parts));
}
// Its folder and its name: where a data set lies says nothing of the picture.
const fileName = (file) => String(file ?? "").split(/[\\/]/).slice(-2).join("/");
function scaleOf(projection) {
  const full = projection.numbers.find(([name]) => name === "full contrast");
  return full ? `projection, to ±${Number(full[1].toPrecision(2))}` : "projection";
}
// The patch, as far as the projection is away from gray: what the unit answers to, in its own colors.
function masked(patch, projection, scale, about) {
  const [width, height] = patch.size;
  const canvas = styled(h("canvas", { width, height, class: scale > 1 ? "pixels" : null, role: "img", "aria-label": `${about}, where its projection is strong` }), { width: `${Math.round(width * scale)}px` });
  const draw = (tile) => decoded(tile).then((image) => {
    const own = h("canvas", { width, height }).getContext("2d", { willReadFrequently: true });
    if (tile.crop) {
      const [, , top, left, bottom, right, row, column] = tile.crop;
      own.drawImage(image, left, top, right - left, bottom - top, column, row, right - left, bottom - top);
    } else own.drawImage(image, 0, 0);
    return own.getImageData(0, 0, width, height);
  });
  underWay(Promise.all([draw(patch), draw(projection)]).then(([seen, projected]) => {
    const strength = softened(projected.data, width, height), most = strength.reduce((one, other) => Math.max(one, other), 1e-6);
    for (let i = 0; i < strength.length; i += 1) seen.data[4 * i + 3] = Math.round(seen.data[4 * i + 3] * Math.min(1, (1.6 * strength[i]) / most));
    canvas.getContext("2d").putImageData(seen, 0, 0);
  }).catch(() => canvas.remove()));
  return canvas;
}
function softened(pixels, width, height) {
  const strength = new Float32Array(width * height), sums = new Float32Array(width * height), radius = Math.max(1, Math.round(Math.max(width, height) / 40));
  const away = (i) => Math.abs(pixels[i] - 127.5);
  for (let i = 0; i < strength.length; i += 1) strength[i] = pixels[4 * i + 3] ? Math.max(away(4 * i), away(4 * i + 1), away(4 * i + 2)) : 0;
  const pass = (from, to, length, step, other, across) => {
    for (let line = 0; line < other; line += 1) {
      let sum = 0;
      for (let at = -radius; at < length; at += 1) {
        if (at + radius < length) sum += from[line * across + (at + radius) * step];
        if (at - radius - 1 >= 0) sum -= from[line * across + (at - radius - 1) * step];
        if (at >= 0) to[line * across + at * step] = sum;
      }
    }
  };
  pass(strength, sums, width, 1, height, width);
  pass(sums, strength, height, width, width, 1);
  return strength;
}
function decoded(tile) {
  const image = new Image();
  image.src = pictures.get(tile.picture)?.uri ?? "";
  return image.decode().then(() => image);
}
function drawClasses({ classes }, unit) {
  const own = classes?.[unit] ?? [];
  return section("classes", "Which classes drive it", own.length ? [bars(own.slice(0, 6).map(([name, part]) => [className(name), part, linkTo({ layer: null, unit: null, q: className(name) })])), h("p", { class: "soft" }, "Parts of the sum of the activations above.")] : []);
}
function drawActivity({ histograms, told }, unit, marks) {
  const histogram = histograms?.[unit], best = told?.[unit] ?? [];
  return section("activity", "Over the whole data set", [
    histogram ? [drawHistogram(histogram, marks), h("p", { class: "soft" }, "Images by their largest activation, on a logarithmic scale; the patches are marked.")] : [],
    best.length ? [h("p", {}, "Tells best: ", best.slice(0, 3).map(([name, value], i) => [i ? ", " : "", h("a", { href: linkTo({ layer: null, unit: null, q: className(name) }) }, className(name)), ` (${value.toFixed(1)} sd)`]))] : [],
  ].flat(4));
}
function drawNeighbors(place, { layer, neighbors }, unit) {
  const own = neighbors?.[unit] ?? [];
  if (!own.length) return null;
  const links = own.map(([other, r]) => h("a", { href: linkTo({ unit: other }), class: "neighbor", "data-unit": other }, h("span", { class: "thumb" }), h("span", {}, `${other}`), h("b", {}, r.toFixed(2))));
  links.forEach((link) => underWay(fillThumb(link.firstChild, place, layer, Number(link.dataset.unit), 56)));
  return section("neighbors", "Nearest units, by correlation", [h("div", { class: "neighbors" }, links)]);
}
// The strongest patch of a unit, small.
async function fillThumb(node, place, layer, unit, side) {
  const found = rowsOf(place, layer, unit).filter((each) => !isEvolution(each));
  for (const each of found) {
    const row = await fetchRow(each.item, each.index);
    const tile = row?.tiles.find(({ shows, rank }) => shows === "patch" && rank === 0);
    if (tile) return void node.replaceChildren(picture(tile, side / Math.max(...tile.size)));
  }
}
// The unit's strongest patch at every look; a new image is marked.
function drawEvolution({ line, now }) {
  if (line.moments.length < 2) return null;
  const { layer, unit } = state;
  const buttons = line.moments.map((moment, i) => h("a", { href: linkTo(momentLink(moment)), "data-testid": `strip-${i}`, "aria-current": i === now ? "true" : null, class: "look" }, h("span", { class: "thumb" }), h("span", {}, `epoch ${moment.epoch}`)));
  const images = [];
  whenSeen(buttons, async (button) => {
    const i = buttons.indexOf(button), then = placeOf({ ...state, ...momentLink(line.moments[i]) });
    await fetchPlace(then);
    const found = rowsOf(then, layer, unit).filter((each) => isAt(each.view.look, line.moments[i]));
    for (const each of found) {
      const row = await fetchRow(each.item, each.index), tile = row?.tiles.find(({ shows, rank }) => shows === "patch" && rank === 0);
      if (!tile) continue;
      button.firstChild.replaceChildren(picture(tile, 96 / Math.max(...tile.size)));
      images[i] = tile.numbers.find(([name]) => name === "dataset index")?.[1] ?? tile.picture;
      for (const j of [i, i + 1]) buttons[j]?.classList.toggle("changed", images[j] !== undefined && images[j - 1] !== undefined && images[j] !== images[j - 1]);
      return;
    }
    button.firstChild.textContent = "–";
  });
  return section("evolution", "Its strongest patch, look by look", [h("div", { class: "evolution" }, buttons), h("p", { class: "soft" }, "A colored edge marks another image than before.")]);
}
function unitCsv({ layer, channels, classes }, unit, found) {
  const numbers = [...channels].map(([name, values]) => [layer, unit, "", name, values[unit]]);
  const shares = (classes?.[unit] ?? []).map(([name, part]) => [layer, unit, name, "part of its activations", part]);
  const tiles = found.filter((each) => !isEvolution(each)).flatMap(({ row, view }) => row.tiles.flatMap((tile) => tile.numbers.map(([name, value]) => [layer, unit, `${view.series.source} ${tile.shows} ${tile.rank === null ? "" : tile.rank + 1}`.trim(), name, value])));
  return csv([["layer", "unit", "of", "name", "value"], ...numbers, ...shares, ...tiles]);
}
