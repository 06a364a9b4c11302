// --- the views of one layer, or of the whole network ---
function helpFor(source) {
  const help = HELP[source.split("/")[0]];
  if (!help) return null;
  const { what, made, cannot, paper } = help;
  return h("details", { class: "help" }, h("summary", {}, `How to read this: ${source.split("/")[0].replaceAll("_", " ")}`), h("dl", {}, h("dt", {}, "What"), h("dd", {}, what), h("dt", {}, "How it is made"), h("dd", {}, made), h("dt", {}, "What it cannot tell"), h("dd", {}, cannot), paper ? h("dt", {}, "Paper") : null, paper ? h("dd", {}, paper) : null));
}
const isAbout = (item, layer) => item.layer === (layer ?? "");
const tabsOf = (place, layer) => place.views.filter(({ look }) => itemsOf(look).some((item) => isAbout(item, layer)) || look.scalars.some((scalar) => isAbout(scalar, layer)));
const tabNow = (tabs) => tabs.find((view) => view.key === state.view) ?? tabs.find((view) => itemsOf(view.look).some((item) => isAbout(item, state.layer))) ?? tabs[0];
function drawTabs(tabs, current, glances = current === "glance") {
  const all = [...(glances ? [{ key: "glance", label: "at a glance" }] : []), ...tabs];
  return h("nav", { class: "tabs", "aria-label": "Views" }, all.map(({ key, label }) => h("a", { href: linkTo({ view: key, unit: null }), "data-testid": `view-${key}`, "aria-current": key === current ? "page" : null }, label)));
}
// Each layer in a line, by the strongest patches of the units that one class drives most.
const AT_A_GLANCE = 12;
function drawGlance(place, { layers }) {
  const galleries = patchesOf(place).filter((item) => item.count && item.places.size);
  if (!galleries.length) return null;
  const lines = galleries.map((item) => {
    const { classes, numbers, units } = layers.get(item.layer), share = (unit) => classes?.[unit]?.[0]?.[1] ?? 0;
    const chosen = [...item.places.keys()].filter((unit) => unit !== null).sort((one, other) => share(other) - share(one) || one - other).slice(0, AT_A_GLANCE);
    const thumbs = chosen.map((unit) => h("a", { href: linkTo({ layer: item.layer, unit, view: null }), "data-unit": unit, class: "glance", title: `${item.layer}, unit ${unit}` }, h("span", { class: "thumb" }), h("span", {}, share(unit) ? className(classes[unit][0][0]) : `${unit}`)));
    const line = h("section", { class: "line-of-units" }, h("h3", {}, h("a", { href: linkTo({ layer: item.layer, unit: null, view: null }) }, item.layer)), h("p", { class: "soft" }, [numbers.get("type"), numbers.get("output"), numbers.get("receptive field") && `sees ${numbers.get("receptive field")} px`, units && `${units} units`].filter(Boolean).join(" · ")), h("div", { class: "glances" }, thumbs));
    return { line, thumbs, layer: item.layer };
  });
  whenSeen(lines.map(({ line }) => line), (node) => {
    const { thumbs, layer } = lines.find(({ line }) => line === node);
    return Promise.all(thumbs.map((thumb) => fillThumb(thumb.firstChild, place, layer, Number(thumb.dataset.unit), phone.matches ? 64 : 84)));
  });
  return h("div", { class: "glance-lines" }, lines.map(({ line }) => line));
}
function drawViews(place, knowledge) {
  const { layer } = state, tabs = tabsOf(place, layer);
  const missing = place.views.flatMap(({ look }) => (look.chunks.every((name) => parts.has(name)) ? [] : [...(look.notes ?? [])]));
  if (layer !== null && !knowledge.layers.has(layer)) return [h("h2", {}, layer), empty(missing[0] ?? "There is no such layer here.")];
  const glance = layer === null ? drawGlance(place, knowledge) : null;
  if (glance && (state.view === null || state.view === "glance")) return [h("div", { class: "head" }, h("h2", {}, "At a glance")), drawTabs(tabs, "glance"), glance];
  if (!tabs.length) return layer === null ? [empty(missing[0] ?? "Choose a layer.")] : [h("h2", {}, layer), empty(missing[0] ?? "Nothing was seen of this layer here.")];
  const current = tabNow(tabs), { look, series } = current;
  const items = itemsOf(look).filter((item) => isAbout(item, layer));
  const late = isAt(look, place.moment) ? "" : ` Seen at ${nameOf(look, place.line)}.`;
  return [
    h("div", { class: "head" }, h("h2", {}, layer ?? series.title), layer === null ? null : drawLayerFacts(knowledge.layers.get(layer)),
      layer === null ? null : h("a", { href: linkTo({ q: layer, layer: null, unit: null }), class: "button", "data-testid": "list-units" }, "List its units")),
    drawTabs(tabs, current.key, Boolean(glance)),
    h("p", { class: "soft", id: "notes" }, [...(look.notes ?? [])].join(" ") + late),
    drawStats(place.line, current, layer),
    items.map((item) => (item.kind === "Gallery" ? drawGallery(item, knowledge) : null)),
    h("div", { class: "figures" }, items.filter((item) => item.kind !== "Gallery").map(drawFigure)),
    helpFor(series.source),
  ];
}
function drawLayerFacts({ numbers, units }) {
  const told = ["type", "output", "receptive field", "parameters"].filter((name) => numbers.get(name)).map((name) => [name, numbers.get(name)]);
  return facts([...told, ...(units ? [["units", units]] : [])]);
}
// The numbers to follow over time, with what they were before.
function drawStats(line, { series, look }, layer) {
  const own = look.scalars.filter((scalar) => isAbout(scalar, layer));
  if (!own.length || !line) return null;
  const inPercent = itemsOf(look).some((item) => item.percent), told = (value) => (inPercent && Number.isFinite(value) ? `${show(Number((100 * value).toFixed(2)))} %` : show(value));
  return h("div", { class: "stats" }, own.map(({ name, value }) => {
    const trend = series.all.map((each) => each.scalars.find((scalar) => scalar.name === name)?.value ?? null);
    const short = words(layer && name.startsWith(`${layer}/`) ? name.slice(layer.length + 1) : name);
    return h("span", { class: "stat" }, h("span", {}, short), series.all.length > 1 ? sparkline(trend, series.all.indexOf(look)) : null, h("b", {}, told(value)));
  }));
}

// --- galleries ---
// As the report says, where places mean something (projections beside patches); else as nearly a square as possible.
const columnsFor = (gallery, tiles) => Math.min(gallery.columns ?? Math.ceil(Math.sqrt(Math.max(tiles, 1))), gallery.columns ? 12 : 8);
const tileText = (tile) => [tile.rank === null || !tile.shows ? "" : `${tile.shows} ${tile.rank + 1}`, tile.caption, ...tile.numbers.map(([name, value]) => `${words(name)} ${name === "label" ? className(value) : show(value)}`)].filter(Boolean).join("\n");
const rankAndClass = ({ rank, numbers }) => `${rank + 1} ${className(numbers.find(([name]) => name === "label")?.[1] ?? "")}`;
function tight(gallery, tiles, scale, columns = columnsFor(gallery, tiles.length)) {
  const name = (tile) => (gallery.ranked ? rankAndClass(tile) : gallery.named ? tile.caption : "");
  const hard = gallery.enlarge && scale >= 2 ? "pixels" : null;
  const block = h("span", { class: "tiles" }, tiles.map((tile) => (tile.shows === "empty" ? h("span", {}) : h("span", { class: "tile", title: tileText(tile) }, picture(tile, scale, { class: hard }), name(tile) ? h("span", { class: "name" }, name(tile)) : null))));
  return styled(block, { "--columns": columns });
}
// Only the blocks near the window have pictures in them: a layer may have thousands of units.
function drawGallery(gallery, knowledge) {
  if (!gallery.count) return empty("This gallery has no rows at this look.");
  const first = rowAt(gallery, 0), columns = columnsFor(gallery, first ? first.tiles.length : 9);
  const labels = gallery.named || gallery.ranked, side = phone.matches ? 44 : 64, of = [112, 80, side, ...(gallery.columns ? [side, side, side] : [])];
  const goal = columns > 1 && labels ? (phone.matches ? 72 : gallery.named ? 96 : 80) : of[columns - 1] ?? 40;
  // Maps that fit as they are stay so, pixel by pixel.
  const fitted = scaleTo(goal, gallery.size, false), scale = gallery.named && fitted > 0.6 && fitted < 1.5 ? 1 : fitted;
  const named = labels ? 16 : 0;
  const wide = Math.max(columns * (gallery.size[0] * scale + 2) - 2, 110), lines = Math.ceil((first ? first.tiles.length : 9) / columns);
  const blocks = gallery.channels.map((channel, index) => {
    const block = h(channel === null ? "div" : "a", { class: "feature", "data-testid": `feature-${index}`, "data-index": index, href: channel === null ? null : linkTo({ layer: gallery.layer, unit: channel }) });
    if (channel !== null) block.append(h("strong", {}, unitName({ channel })));
    return block;
  });
  const grid = styled(h("div", { class: scale === 1 && gallery.named ? "features native" : "features" }, blocks), { "--columns": columns, "--block": `${wide + (phone.matches ? 14 : 18)}px`, "--tall": `${lines * (gallery.size[1] * scale + 2 + named) + 58}px` });
  whenSeen(blocks, async (block) => {
    const row = await fetchRow(gallery, Number(block.dataset.index));
    if (block.isConnected && row) fillBlock(block, gallery, row, scale, knowledge);
  });
  return [h("p", { class: "soft" }, gallery.caption, gallery.numbers.length ? facts(gallery.numbers) : null), gallery.scale ? colorBar(gallery.scale) : null, grid];
}
function colorBar([colors, low, middle, high]) {
  return h("p", { class: "bar soft" }, h("span", {}, low), styled(h("span", { class: "colors" }), { "--colors": colors.join(", ") }), h("span", {}, high, middle ? `, ${middle} in the middle` : ""));
}
// What a row says beside its unit's number: a class, a direction.
const unitName = ({ channel, caption = "" }) => `unit ${channel}${caption && !/^(feature|filter|channel|unit) \d+$/.test(caption) ? ` · ${readable(caption)}` : ""}`;
function fillBlock(block, gallery, row, scale, knowledge) {
  const classes = row.channel === null ? null : knowledge?.layers.get(gallery.layer)?.classes?.[row.channel];
  block.replaceChildren(tight(gallery, row.tiles, scale), ...[row.channel === null ? row.caption && h("strong", {}, readable(row.caption)) : h("strong", {}, unitName(row)),
    facts(row.numbers), classes?.length ? h("span", { class: "soft" }, `driven by ${className(classes[0][0])}, ${percent(classes[0][1])}`) : null].filter(Boolean));
}

// --- other items ---
// Numbers, also as text (3 x 3, >=99), stand at the right; so do words among them (a receptive field of the whole image).
const isNumber = (value) => typeof value === "number" || /^(>= ?)?[-+\u2212]?\d[\d.,]*( x \d[\d.,]*)*$/.test(value);
function isNumeric(cells) {
  const told = cells.filter((cell) => cell !== null && cell !== ""), numbers = told.filter(isNumber).length;
  return numbers > told.length / 2 && told.every((cell) => isNumber(cell) || /^[a-z]+$/i.test(cell));
}
function drawTable(item) {
  const numeric = item.columns.map((_, i) => (i || typeof item.rows[0]?.[0] === "number") && isNumeric(item.rows.map((row) => row[i]))), layerAt = item.columns.indexOf("layer");
  const cell = (value, column) => {
    if (value !== null && typeof value === "object") return h("td", {}, picture(value, Math.min(scaleTo(64, value.size, true), 4), { class: "pixels", alt: value.caption, title: value.caption }));
    const text = column === layerAt && linkable(value) ? h("a", { href: linkTo({ layer: value, unit: null, view: null }) }, value) : show(value);
    return h(column === 0 ? "th" : "td", { class: numeric[column] ? "number" : null, scope: column === 0 ? "row" : null }, text);
  };
  const text = () => csv([item.columns, ...item.rows.map((row) => row.map((value) => (value !== null && typeof value === "object" ? value.caption : value)))]);
  return h("figure", { class: "figure table" },
    h("figcaption", {}, h("strong", {}, words(item.name)), " ", h("span", { class: "soft" }, item.caption)),
    item.rows.length ? h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": words(item.name) }, h("table", {},
      h("thead", {}, h("tr", {}, item.columns.map((name, i) => h("th", { scope: "col", class: numeric[i] ? "number" : null }, words(name))))),
      h("tbody", {}, item.rows.map((row) => h("tr", {}, row.map(cell)))))) : empty("This table has no rows."),
    item.total > item.rows.length ? h("p", { class: "soft" }, `The first ${item.rows.length} of ${item.total} rows.`) : null,
    item.rows.length ? h("p", { class: "save" }, saving(`${item.name}.csv`, text, "CSV")) : null);
}
const linkable = (layer) => Boolean(layer) && allSeries.some((series) => series.looks.some((look) => look.names.some((item) => item.layer === layer)));
// The names of the cell that a pointer is on: of many classes there is no room for names beside the picture.
function cellReader(image, { box: [left, top, width, height], row, rows, column, columns }) {
  const said = h("p", { class: "soft reader", "data-testid": "cell" });
  image.addEventListener("pointermove", (event) => {
    const frame = image.getBoundingClientRect(), across = ((event.clientX - frame.left) / frame.width - left) / width, down = ((event.clientY - frame.top) / frame.height - top) / height;
    const inside = across >= 0 && across < 1 && down >= 0 && down < 1, at = (names, part) => readable(names[Math.floor(part * names.length)]);
    said.textContent = inside ? `${row} ${at(rows, down)}, ${column} ${at(columns ?? rows, across)}` : "";
  });
  image.addEventListener("pointerleave", () => { said.textContent = ""; });
  return said;
}
const FIGURE = 600; // pixels: the width of a figure of several panels
function drawFigure(item) {
  if (item.kind === "Curve" && item.series) return drawCurve(item);
  const holder = h("figure", { class: `figure ${item.kind === "Curve" ? "paper" : ""}` });
  const arrive = () => {
    if (item.kind === "Table") return holder.replaceWith(drawTable(item));
    const title = h("figcaption", {}, h("strong", {}, item.name), " ", h("span", { class: "soft" }, item.caption)), alt = `${item.name}: ${item.caption}`;
    const uri = pictures.get(item.picture)?.uri ?? "", kind = /^data:image\/(\w+)/.exec(uri)?.[1] ?? "png", name = `${item.name}.${kind}`;
    // Lines and letters stay sharp when they are smaller: on a wide screen two stand side by side.
    const size = item.size ?? [640, 420], scale = kind === "svg" ? Math.min(1, FIGURE / size[0]) : Math.max(scaleTo(320, size, true), 1);
    const image = picture({ picture: item.picture, crop: null, size }, scale, { class: scale > 1 ? "pixels" : null, alt });
    if (kind === "svg") holder.classList.add("vector");
    return holder.replaceChildren(title, image, item.cells ? cellReader(image, item.cells) : "", h("p", { class: "save" },
      h("button", { class: "quiet", "data-testid": `save-${name}`, onclick: () => saveAs(name, uri) }, kind === "svg" ? "SVG" : "Save picture"),
      kind === "svg" ? savingPng(`${item.name}.png`, () => uri, () => holder) : null));
  };
  if ((item.packs ?? []).every((pack) => ready.has(packFile(pack)))) {
    queueMicrotask(arrive);
    return holder;
  }
  underWay(fetchPictures(item).then(arrive));
  return holder;
}
