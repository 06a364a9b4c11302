const byId = (id) => document.getElementById(id);
const phone = matchMedia("(max-width: 720px)");
// `look` null means the newest, so that a reload during training moves on; what a person chose stays.
const state = { view: null, series: null, layer: null, look: null, feature: null, filter: "" };
const IN_HASH = ["view", "series", "layer", "look", "feature"];

// --- the document ---
function h(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name === "onclick" || name === "oninput") node[name] = value;
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}
function fill(node, ...children) {
  // A redrawn control keeps the focus, else the keyboard would be back at the top after each key.
  const focus = node.contains(document.activeElement) ? document.activeElement.dataset.testid : undefined;
  node.replaceChildren(...children.filter((child) => child !== null));
  if (focus) node.querySelector(`[data-testid="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
}
function show(value) {
  if (value === null) return "–";
  return typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(4))) : String(value);
}
const words = (name) => name.replaceAll("_", " ");
const facts = (numbers) => numbers.length
  ? h("span", { class: "facts" }, ...numbers.map(([name, value]) => h("span", {}, words(name), " ", h("b", {}, show(value)))))
  : null;
const asText = (caption, numbers) =>
  [caption, ...numbers.map(([name, value]) => `${words(name)} ${show(value)}`)].filter(Boolean).join("\n");
const empty = (text) => h("p", { class: "empty" }, text);

// A crop is shown as a window on its whole image: `crop` has the image's width and height, the box (top, left, bottom,
// right) in it, and the row and column of the window at which the box lies; around it is what lies outside the image.
function picture(name, crop, [width, height], scale, attributes) {
  const image = h("img", { src: pictures.get(name)?.uri, alt: "", decoding: "sync", ...attributes });
  const [shownWidth, shownHeight] = [width, height].map((side) => Math.max(1, Math.round(side * scale)));
  if (!crop) return Object.assign(image, { width: shownWidth, height: shownHeight });
  const [imageWidth, imageHeight, top, left, bottom, right, row, column] = crop;
  const percent = (part, whole) => `${(100 * part) / whole}%`;
  const window = h("span", { class: "crop" }, image);
  const style = (node, values) => Object.entries(values).forEach(([key, value]) => node.style.setProperty(key, value));
  style(window, { width: `${shownWidth}px`, "aspect-ratio": `${shownWidth} / ${shownHeight}` });
  style(image, {
    width: percent(imageWidth, width), height: percent(imageHeight, height),
    left: percent(column - left, width), top: percent(row - top, height),
  });
  // Only where the box ends inside the window: at its edges a rounding would let the ground through.
  const within = [row > 0, column + right - left < width, row + bottom - top < height, column > 0];
  const cuts = [percent(top, imageHeight), percent(imageWidth - right, imageWidth), percent(imageHeight - bottom, imageHeight), percent(left, imageWidth)];
  if (within.some(Boolean)) {
    window.classList.add("partly");
    image.style.setProperty("clip-path", `inset(${cuts.map((cut, side) => (within[side] ? cut : 0)).join(" ")})`);
  }
  return window;
}
// Hard pixel edges need a whole number of screen pixels for each.
function scaleTo(goal, [width, height], hard) {
  const scale = goal / Math.max(width, height, 1);
  return hard && scale > 1 ? Math.round(scale) : scale;
}

// --- what the reports say ---
const labelOf = (look) => `epoch ${look.epoch} · step ${look.step}` + (look.stage === "fit" ? "" : ` · ${look.stage}`);
const galleryOf = (look, name) => itemsOf(look).find((item) => item.kind === "Gallery" && item.name === name);
// A feature is followed from look to look by its caption; the second of one name is "name #2".
function keysOf(gallery) {
  const seen = new Map();
  return (gallery?.rows ?? []).map(({ caption }) => {
    const count = (seen.get(caption) ?? 0) + 1;
    seen.set(caption, count);
    return caption && count === 1 ? caption : `${caption} #${count}`.trim();
  });
}
const rowOf = (gallery, key) => gallery?.rows[keysOf(gallery).indexOf(key)];
// Pictures come before tables, in whatever order they were made; what was seen in training before the rest.
function viewNow() {
  const inFit = (view) => view.series.some((series) => series.stage === "fit");
  return views.find((view) => view.view === state.view)
    ?? views.find((view) => inFit(view) && layersOf(seriesNow(view)).length)
    ?? views.find((view) => layersOf(seriesNow(view)).length) ?? views[0];
}
// As chosen, or that of the chosen look, or of the newest run: training's own, or else what is newest.
function seriesNow(view) {
  const newest = view.series.toSorted((a, b) => b.run - a.run || b.time - a.time);
  const chosen = state.series?.split("~")[0]; // in a view of other data: the same stage
  return newest.find((series) => series.key === state.series)
    ?? newest.find((series) => series.looks.some((look) => keyOf(look) === state.look))
    ?? newest.find((series) => series.stage === chosen)
    ?? newest.find((series) => series.stage === "fit") ?? newest[0];
}
function lookAt(series) {
  const index = series.looks.findIndex((look) => keyOf(look) === state.look);
  return index < 0 ? series.looks.length - 1 : index;
}
function layersOf(series) {
  return [...new Set(series.looks.toReversed().flatMap(({ names }) => names.filter((item) => item.kind === "Gallery").map((item) => item.name)))];
}
// Everything that a place in the page is made of.
function placeNow() {
  const view = viewNow(), series = seriesNow(view), now = lookAt(series), look = series.looks[now];
  const layers = layersOf(series);
  return { view, series, now, look, layers, layer: layerNow(look, layers) };
}
// The gallery an item belongs to by its name, "" for the overview.
function ownerOf(name, layers) {
  const fits = layers.filter((layer) => name === layer || name.startsWith(layer + "/"));
  return fits.reduce((best, layer) => (layer.length > best.length ? layer : best), "");
}
function statsOf({ series, look, layers }, layer) {
  return [...look.scalars].filter(([name]) => ownerOf(name, layers) === layer).map(([name, value]) => ({
    name: words(layer ? name.slice(layer.length + 1) || name : name),
    value,
    trend: series.all.map((each) => each.scalars.get(name) ?? null),
    at: series.all.indexOf(look),
  }));
}
function layerNow(look, layers) {
  if (state.layer !== null && (state.layer === "" || layers.includes(state.layer))) return state.layer;
  const first = look.names.find((item) => item.kind !== "Scalar" || !layers.length);
  return first ? ownerOf(first.name, layers) : layers[0] ?? "";
}

// --- parts ---
function sparkline(trend, now) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "spark");
  svg.setAttribute("aria-hidden", "true");
  const known = trend.filter((value) => value !== null);
  const low = Math.min(...known), range = Math.max(...known) - low || 1;
  const x = (index) => 2 + (52 * index) / Math.max(trend.length - 1, 1), y = (value) => 14 - (12 * (value - low)) / range;
  const draw = (tag, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    svg.append(node);
  };
  let line = [];
  [...trend, null].forEach((value, index) => {
    if (value !== null) return line.push(`${x(index)},${y(value)}`);
    if (line.length) draw("polyline", { points: line.join(" ") });
    line = [];
  });
  if (trend[now] !== null) draw("circle", { cx: x(now), cy: y(trend[now]), r: 2.2 });
  return svg;
}
const statLine = (stat) =>
  h("span", { class: "stat" }, h("span", {}, stat.name), sparkline(stat.trend, stat.at), h("b", {}, show(stat.value)));

function drawSeries({ view, series }) {
  byId("series").hidden = view.series.length < 2;
  fill(byId("series"), ...view.series.map((each) => h("button", { "data-testid": `series-${each.key}`,
    "aria-pressed": String(each === series),
    title: `newest look of ${new Date(1000 * each.time).toLocaleString()}`, onclick: () => choose({ series: each.key, look: null }) }, each.name)));
}
function drawLooks(node, series, now, testid) {
  // Built once and then only set: a slider that is replaced while it is dragged lets go.
  if (!node.firstChild) {
    const move = (by) => () => choose({ look: lookAt(seriesNow(viewNow())) + by });
    node.append(
      h("button", { "aria-label": "Previous look", onclick: move(-1) }, "‹"),
      h("input", { type: "range", min: 0, step: 1, "aria-label": "Look", "data-testid": testid,
        oninput: (event) => choose({ look: Number(event.target.value) }) }),
      h("button", { "aria-label": "Next look", onclick: move(1) }, "›"),
      h("output", {}), h("span", { class: "soft" }));
  }
  const [back, slider, forth, label, rest] = node.children;
  const last = series.looks.length - 1;
  slider.max = last;
  slider.value = now;
  slider.hidden = back.hidden = forth.hidden = last === 0;
  back.disabled = now === 0;
  forth.disabled = now === last;
  label.textContent = labelOf(series.looks[now]);
  slider.setAttribute("aria-valuetext", label.textContent);
  const gone = series.all.length - series.looks.length;
  const left = gone ? ` · ${gone} ${gone > 1 ? "looks" : "look"} left out to keep this page small` : "";
  rest.textContent = `look ${now + 1} of ${last + 1}${left}`;
}

function drawLayers(place) {
  const { look, layers, layer } = place;
  const loose = look.names.some((item) => ownerOf(item.name, layers) === "");
  const names = [...(loose || !layers.length ? [""] : []), ...layers];
  byId("layers").hidden = names.length < 2 && !layers.length;
  fill(byId("layers"), ...names.map((name) => {
    const gallery = galleryOf(look, name);
    const stats = name ? statsOf(place, name) : [];
    return h("button", { "data-testid": `layer-${name || "overview"}`, "aria-current": name === layer ? "true" : null,
      onclick: () => choose({ layer: name, filter: "" }) },
      h("strong", {}, name || "Overview"), gallery ? facts(gallery.numbers) : null, ...stats.map(statLine));
  }));
  // Bring the chosen one into sight, without moving the page as scrollIntoView would.
  const box = byId("layers"), mark = box.querySelector("[aria-current]");
  const hidden = (start, size, from, room) => start < from || start + size > from + room;
  if (mark && hidden(mark.offsetTop, mark.offsetHeight, box.scrollTop, box.clientHeight)) box.scrollTop = mark.offsetTop - 8;
  if (mark && hidden(mark.offsetLeft, mark.offsetWidth, box.scrollLeft, box.clientWidth)) box.scrollLeft = mark.offsetLeft - 8;
}

// Small pictures in a tight block; hard pixel edges only where a pixel is large enough not to come out uneven.
const tight = (gallery, row, scale) => h("span", { class: "tiles" }, ...row.tiles.map(([name, crop, caption, numbers]) =>
  picture(name, crop, gallery.size, scale, { class: gallery.enlarge && scale >= 2 ? "pixels" : null, title: asText(caption, numbers) })));
function featureBlock(gallery, row, key, index, scale) {
  return h("button", { class: "feature", "data-testid": `feature-${index}`, "aria-label": asText(row.caption, row.numbers),
    onclick: () => choose({ feature: key }) },
    tight(gallery, row, scale), row.caption ? h("strong", {}, row.caption) : null, facts(row.numbers));
}
// As the report says, where places mean something (projections beside patches); else as nearly a square as possible.
const columnsFor = (gallery, tiles) => Math.min(gallery.columns ?? Math.ceil(Math.sqrt(Math.max(tiles, 1))), gallery.columns ? 12 : 8);
function drawGallery(gallery) {
  if (!gallery.rows.length) return [empty("This gallery has no rows at this look.")];
  const columns = columnsFor(gallery, Math.max(...gallery.rows.map((row) => row.tiles.length)));
  const side = phone.matches ? 48 : 64, goal = [112, 80, side, ...(gallery.columns ? [side, side, side] : [])][columns - 1] ?? 40;
  const scale = scaleTo(goal, gallery.size, false);
  const wide = Math.max(columns * (gallery.size[0] * scale + 2) - 2, 110);
  const keys = keysOf(gallery);
  const blocks = h("div", { class: "features" }, ...gallery.rows.map((row, i) => featureBlock(gallery, row, keys[i], i, scale)));
  blocks.style.setProperty("--columns", columns);
  blocks.style.setProperty("--block", `${wide + (phone.matches ? 14 : 18)}px`);
  return [blocks];
}
function applyFilter() {
  const wanted = state.filter.toLowerCase();
  const gallery = byId("main").querySelector(".features");
  let shown = 0;
  for (const block of gallery?.children ?? []) {
    const text = [block.getAttribute("aria-label"), ...[...block.querySelectorAll("img")].map((image) => image.title)].join("\n");
    block.hidden = !text.toLowerCase().includes(wanted);
    shown += block.hidden ? 0 : 1;
  }
  const count = byId("main").querySelector("[data-testid=count]");
  if (count) count.textContent = `${shown} of ${gallery.children.length} features`;
}

function drawTable(item) {
  const number = (column) => item.rows.every((row) => row[column] === null || typeof row[column] === "number");
  const cell = (value, column) => value !== null && typeof value === "object"
    ? h("td", {}, picture(value.picture, value.crop, value.size, Math.min(scaleTo(64, value.size, true), 4), { class: "pixels", alt: value.caption, title: value.caption }))
    : h("td", { class: number(column) ? "number" : null }, show(value));
  return h("figure", { class: "figure table" },
    h("figcaption", {}, h("strong", {}, item.name), " ", h("span", { class: "soft" }, item.caption)),
    item.rows.length ? h("table", {},
      h("thead", {}, h("tr", {}, ...item.columns.map((name, i) => h("th", { scope: "col", class: number(i) ? "number" : null }, words(name))))),
      h("tbody", {}, ...item.rows.map((row) => h("tr", {}, ...row.map(cell))))) : empty("This table has no rows."),
    item.total > item.rows.length ? h("p", { class: "soft" }, `The first ${item.rows.length} of ${item.total} rows.`) : null);
}
function drawFigure(item) {
  if (item.kind === "Table") return drawTable(item);
  if (item.kind === "Curve") // The chart carries its own title.
    return h("figure", { class: "figure chart" }, h("img", { src: pictures.get(item.picture)?.uri, alt: `${item.name}: ${item.caption}` }));
  const scale = Math.max(scaleTo(320, item.size, true), 1);
  return h("figure", { class: "figure" },
    h("figcaption", {}, h("strong", {}, item.name), " ", h("span", { class: "soft" }, item.caption)),
    picture(item.picture, null, item.size, scale, { class: scale > 1 ? "pixels" : null, alt: `${item.name}: ${item.caption}` }));
}

function drawMain(place) {
  const { look, layers, layer } = place;
  const gallery = galleryOf(look, layer);
  const others = itemsOf(look).filter((item) => item.kind !== "Gallery" && ownerOf(item.name, layers) === layer);
  const stats = layer ? [] : statsOf(place, "");
  const many = gallery && gallery.rows.length > 24;
  const search = many ? h("input", { type: "search", placeholder: "Filter features", "aria-label": "Filter features", "data-testid": "filter",
    oninput: (event) => { state.filter = event.target.value; applyFilter(); } }) : null;
  if (search) search.value = state.filter;
  fill(byId("main"),
    layer ? h("div", { class: "head" }, h("h2", {}, layer), gallery ? facts(gallery.numbers) : null,
      many ? h("span", { class: "soft", "data-testid": "count" }) : null, search, gallery?.caption ? h("p", { class: "soft" }, gallery.caption) : null,
      h("div", { class: "narrow" }, ...statsOf(place, layer).map(statLine))) : null,
    ...(gallery ? drawGallery(gallery) : []),
    others.length ? h("div", { class: "figures" }, ...others.map(drawFigure)) : null,
    stats.length ? h("div", { class: "figure stats" }, ...stats.map(statLine)) : null,
    gallery || others.length || stats.length ? null : empty(layer ? "No pictures of this layer at this look." : "This look has nothing to show."));
  if (many) applyFilter();
}

function patches(gallery, row) {
  const goal = row.tiles.length === 1 ? 320 : row.tiles.length <= 4 ? 220 : gallery.columns > 4 ? 96 : 140;
  const scale = gallery.size[0] < goal * 0.75 ? scaleTo(goal, gallery.size, gallery.enlarge) : 1;
  const all = h("div", { class: "patches" }, ...row.tiles.map(([name, crop, caption, numbers], index) => {
    const image = picture(name, crop, gallery.size, scale, { class: gallery.enlarge && scale > 1 ? "pixels" : null, alt: caption || `Tile ${index + 1}` });
    const list = h("dl", {}, ...numbers.map(([key, value]) => h("div", {}, h("dt", {}, words(key)), h("dd", {}, show(value)))));
    return h("figure", { "data-testid": `patch-${index}` }, image, h("figcaption", {}, caption ? h("strong", {}, caption) : null, list));
  }));
  const columns = columnsFor(gallery, row.tiles.length);
  if (gallery.columns && !phone.matches) {
    all.classList.add("placed");
    all.style.setProperty("--columns", columns);
  }
  return [all, columns * (gallery.size[0] * scale + 14)];
}
function block(gallery, row, width) {
  const columns = columnsFor(gallery, row.tiles.length), tiles = tight(gallery, row, scaleTo(width / columns, gallery.size, false));
  tiles.style.setProperty("--columns", columns);
  return tiles;
}
// Looks are loaded as they come into sight.
function drawStrip({ series, now, layers, layer }) {
  if (series.looks.length < 2) return null;
  const chosen = (item) => item.kind === "Gallery" && item.name === layer;
  const isLoaded = (look) => !missing(look, chosen).length;
  const buttons = series.looks.map((look, index) => {
    const loaded = isLoaded(look), gallery = loaded ? galleryOf(look, layer) : undefined, row = rowOf(gallery, state.feature);
    return h("button", { "data-testid": `strip-${index}`, "aria-current": index === now ? "true" : null, onclick: () => choose({ look: index }) },
      row?.tiles.length ? block(gallery, row, 108) : h("span", { class: "none" }, loaded ? "–" : ""), labelOf(look).replace(" · ", "\n"));
  });
  const strip = h("div", { class: "strip" }, ...buttons);
  const watch = new IntersectionObserver((entries) => {
    const seen = entries.filter((entry) => entry.isIntersecting).map((entry) => series.looks[buttons.indexOf(entry.target)]);
    if (seen.length) fetchForDialog(seen, chosen);
  }, { root: strip });
  buttons.forEach((button, index) => { if (!isLoaded(series.looks[index])) watch.observe(button); });
  return h("section", {}, h("h3", {}, "Look by look"), strip);
}
// The feature in other views, at the same moment.
function elsewhere({ view, series, look, layer }) {
  const chosen = (item) => item.kind === "Gallery" && item.name === layer;
  return views.filter((other) => other !== view).flatMap((other) => {
    const beside = other.series.filter((each) => each.stage === series.stage && each.run === series.run);
    const same = beside.flatMap((each) => each.looks).find((each) => keyOf(each) === keyOf(look));
    if (!same?.names.some(chosen)) return [];
    if (missing(same, chosen).length) {
      fetchForDialog([same], chosen);
      return [];
    }
    const gallery = galleryOf(same, layer), row = rowOf(gallery, state.feature);
    return row?.tiles.length ? [h("section", { "data-testid": `same-${other.view}` }, h("h3", {}, other.title), block(gallery, row, 400))] : [];
  });
}
// Load looks, and draw the dialog's side again when all are there.
async function fetchForDialog(looks, chosen) {
  await Promise.all(looks.map((look) => fetchItems(look, chosen)));
  if (byId("dialog").open && !waiting) drawSide(placeNow());
}
function drawSide(place) {
  const scrolled = byId("side").querySelector(".strip")?.scrollTop ?? 0;
  fill(byId("side"), ...elsewhere(place), drawStrip(place));
  const strip = byId("side").querySelector(".strip");
  if (strip) strip.scrollTop = scrolled;
}
function drawDialog(place) {
  const { look, layer } = place, dialog = byId("dialog");
  const gallery = galleryOf(look, layer), keys = keysOf(gallery);
  const index = keys.indexOf(state.feature), row = gallery?.rows[index];
  byId("dialog-title").textContent = `${layer} · ${state.feature}`;
  fill(byId("dialog-facts"), row ? facts(row.numbers) : null);
  byId("previous").disabled = index <= 0;
  byId("next").disabled = index < 0 || index === keys.length - 1;
  const [all, width] = row?.tiles.length ? patches(gallery, row) : [empty("This feature is not shown at this look."), 500];
  fill(byId("patches"), all);
  if (!dialog.open) {
    dialog.showModal();
    dialog.focus(); // itself, or its first button would be marked
  }
  drawSide(place); // an open dialog alone has a side that can be scrolled
  if (byId("side").firstChild) all.style.setProperty("max-width", `${width}px`); // as a square block, with room beside it
}

// --- choosing ---
let waiting = false, drawing = 0;
function draw() {
  const turn = ++drawing;
  if (!views.length) return fill(byId("main"), empty("This page has nothing to show yet: reload it after the first look."));
  const place = placeNow(), { view, series, now, look, layers, layer } = place;
  document.title = `${view.title} · cnnviz`;
  byId("title").textContent = view.title;
  byId("views").hidden = views.length < 2;
  fill(byId("views"), ...views.map((each) => h("button", { "data-testid": `view-${each.view}`, "aria-current": each === view ? "true" : null,
    onclick: () => choose({ view: each.view, filter: "" }) }, each.label)));
  drawSeries(place);
  drawLooks(byId("looks"), series, now, "epoch-slider");
  if (state.feature === null) byId("dialog").close();
  else drawLooks(byId("dialog-looks"), series, now, "dialog-epoch-slider");
  // What is shown stays until what is to be shown is there.
  const chosen = (item) => ownerOf(item.name, layers) === layer;
  waiting = missing(look, chosen).length > 0;
  document.body.toggleAttribute("data-waiting", waiting);
  if (waiting) return void fetchItems(look, chosen).then(() => turn === drawing && draw());
  byId("notes").textContent = [...look.notes].join(" ");
  drawLayers(place);
  drawMain(place);
  if (state.feature !== null) drawDialog(place);
  setTimeout(() => turn === drawing && prepare(place, chosen), 100);
}
// The looks beside this one, so that the slider finds them loaded.
async function prepare({ series, now }, chosen) {
  const beside = [now, now - 1, now + 1].map((index) => series.looks[index]).filter(Boolean);
  await Promise.all(beside.map((look) => fetchItems(look, chosen)));
  forget(new Set(beside.flatMap((look) => itemsOf(look).flatMap((item) => item.packs))));
}
function choose(change) {
  if ("look" in change && change.look !== null) {
    const { key, looks } = seriesNow(viewNow()), index = Math.max(0, Math.min(change.look, looks.length - 1));
    change = { ...change, series: key, look: index === looks.length - 1 ? null : keyOf(looks[index]) };
  }
  Object.assign(state, change);
  const place = new URLSearchParams(IN_HASH.filter((key) => state[key] !== null).map((key) => [key, state[key]]));
  history.replaceState(null, "", `#${place}`);
  draw();
}
function keysNow() {
  const { look, layer } = placeNow();
  return keysOf(galleryOf(look, layer));
}
function step(by) {
  const keys = keysNow(), place = keys.indexOf(state.feature);
  if (place >= 0 && keys[place + by] !== undefined) choose({ feature: keys[place + by] });
}
function closed() {
  if (state.feature === null) return;
  const place = keysNow().indexOf(state.feature);
  choose({ feature: null });
  document.querySelector(`[data-testid=feature-${place}]`)?.focus(); // where the reader was, and not at the top
}
function recall() {
  const place = new URLSearchParams(location.hash.slice(1));
  for (const key of IN_HASH) state[key] = place.get(key);
  draw();
}
addEventListener("hashchange", recall);
phone.addEventListener("change", draw);
addEventListener("keydown", (event) => {
  if (event.target.matches("input") || event.altKey || event.ctrlKey || event.metaKey) return;
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (by === undefined) return;
  const sideways = event.key === "ArrowLeft" || event.key === "ArrowRight";
  if (sideways) choose({ look: lookAt(seriesNow(viewNow())) + by });
  else if (byId("dialog").open) step(by);
  else return;
  event.preventDefault();
});
byId("previous").onclick = () => step(-1);
byId("next").onclick = () => step(1);
byId("close").onclick = () => byId("dialog").close();
byId("dialog").addEventListener("close", closed);
byId("dialog").addEventListener("click", (event) => { if (event.target === byId("dialog")) byId("dialog").close(); });
load("looks.js").then(recall);
