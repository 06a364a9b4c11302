// --- drawing ---
let waiting = false, drawing = 0, current = null;
function draw() {
  const turn = ++drawing, place = placeOf();
  if (!place) return fill(byId("main"), empty("This page has nothing to show yet: reload it after the first look."));
  // What is shown stays until what is to be shown is there.
  waiting = !isThere(place);
  document.body.toggleAttribute("data-waiting", waiting);
  if (waiting) return void fetchPlace(place).then(() => turn === drawing && draw());
  if (!current || current.line !== place.line || current.now !== place.now) current = { ...place, knowledge: knowledgeOf(place) };
  const { knowledge } = current, { layer, unit } = state;
  const found = layer !== null && unit !== null && !state.q && !state.a && !state.b ? rowsOf(place, layer, unit) : [];
  waiting = !rowsThere(found);
  document.body.toggleAttribute("data-waiting", waiting);
  if (waiting) return void fetchRows(found).then(() => turn === drawing && draw());
  drawFrame(place, knowledge);
  const page = state.a || state.b ? drawCompare() : state.q !== null ? drawSearch(place, knowledge) : unit !== null && layer !== null ? drawUnit(place, knowledge) : drawViews(place, knowledge);
  fill(byId("main"), page);
  setTimeout(() => turn === drawing && prepare(place, found), 100);
  return undefined;
}
function drawFrame(place, knowledge) {
  const title = networkName(knowledge), { layer, unit } = state;
  document.title = [layer !== null && `${layer}${unit === null ? "" : ` · ${unit}`}`, title, "cnnviz"].filter(Boolean).join(" · ");
  byId("title").textContent = title || "cnnviz";
  byId("about").textContent = aboutLine(place);
  const lines = linesNow();
  byId("series").hidden = lines.length < 2;
  fill(byId("series"), lines.map((line) => h("a", { class: "button", "data-testid": `series-${line.stage}${line.run > 1 ? `~${line.run}` : ""}`, "aria-current": line === place.line ? "true" : null, href: linkTo({ stage: line.stage, run: String(line.run), epoch: null, step: null }) }, lineName(line))));
  drawMoments(place);
  fill(byId("network"), drawNetwork(knowledge));
  fill(byId("network-short"), h("span", {}, layer ?? "Whole network"));
  if (document.activeElement !== byId("search")) byId("search").value = state.q ?? "";
}
const networkName = () => allSeries.find((series) => series.network)?.network ?? "";
function aboutLine({ line, moment, views }) {
  const newest = Math.max(...views.map(({ look }) => look.time)), data = [...new Set(views.map(({ series }) => series.data).filter(Boolean))];
  const count = (text) => Number(/^[\d,]+/.exec(text)?.[0].replaceAll(",", "") ?? 0);
  const main = data.toSorted((one, other) => other.includes(" of ") - one.includes(" of ") || count(other) - count(one))[0] ?? "";
  return [main, line.stage, nameOf(moment, line), new Date(1000 * newest).toLocaleString([], { dateStyle: "medium", timeStyle: "short" })].filter(Boolean).join(" · ");
}
function drawMoments({ line, now }) {
  const node = byId("looks");
  // Built once and then only set: a slider that is replaced while it is dragged lets go.
  if (!node.firstChild) {
    node.append(
      h("button", { "aria-label": "Previous look", "data-testid": "previous-look", onclick: () => moveLook(-1) }, "‹"),
      h("input", { type: "range", min: 0, step: 1, "aria-label": "Look", "data-testid": "epoch-slider", oninput: (event) => toLook(Number(event.target.value)) }),
      h("button", { "aria-label": "Next look", "data-testid": "next-look", onclick: () => moveLook(1) }, "›"),
      h("output", {}), h("span", { class: "soft" }), h("span", { class: "pins" }));
  }
  const [back, slider, forth, label, rest, pins] = node.children, last = line.moments.length - 1;
  slider.max = last;
  slider.value = now;
  slider.hidden = back.hidden = forth.hidden = last === 0;
  back.disabled = now === 0;
  forth.disabled = now === last;
  label.textContent = nameOf(line.moments[now], line);
  slider.setAttribute("aria-valuetext", label.textContent);
  const gone = line.series.reduce((sum, series) => sum + series.all.length - series.looks.length, 0);
  rest.textContent = `${last ? `look ${now + 1} of ${last + 1}` : ""}${gone ? ` · ${gone} ${gone > 1 ? "looks" : "look"} left out to keep this page small` : ""}`;
  const many = linesNow().reduce((sum, each) => sum + each.moments.length, 0) > 1;
  // The head says it already of a network that was looked at once.
  node.hidden = !many && !gone;
  fill(pins, many ? ["a", "b"].map((pin) => h("a", { class: "button", "data-testid": `pin-${pin}`, title: `Compare: this look as ${pin.toUpperCase()}`, "aria-current": state[pin] === pinOf() ? "true" : null, href: linkTo({ [pin]: pinOf() }) }, `Pin ${pin.toUpperCase()}`)) : [],
    state.a || state.b ? h("a", { class: "button", "data-testid": "unpin", href: linkTo({ a: null, b: null }) }, "End") : null);
}
function toLook(index) {
  const { line } = placeOf(), last = line.moments.length - 1, at = Math.max(0, Math.min(index, last));
  // The newest is no number, so that a reload while training runs moves on.
  go({ stage: line.stage, run: String(line.run), ...(at === last ? { epoch: null, step: null } : momentLink(line.moments[at])) }, { replaces: true });
}
const moveLook = (by) => toLook(placeOf().now + by);
// The looks and units beside this one, so that a step finds them loaded.
async function prepare({ line, now }, found) {
  const beside = [now - 1, now + 1].filter((index) => line.moments[index]).map((index) => placeOf({ ...state, stage: line.stage, run: String(line.run), ...momentLink(line.moments[index]) }));
  const next = [1, -1].flatMap((by) => found.map(({ item, index }) => [item, index + by]).filter(([item, index]) => index >= 0 && index < item.count));
  await Promise.all([...beside.map(fetchPlace), ...next.map(([item, index]) => fetchRow(item, index, true))]);
  forget(new Set([...byId("main").querySelectorAll("img")].length ? found.flatMap(({ item }) => item.packs) : []));
}

// --- keyboard, and what is not drawn anew ---
function moveUnit(by) {
  if (state.unit === null) return false;
  const layer = current?.knowledge.layers.get(state.layer), to = state.unit + by;
  if (to >= 0 && to < (layer?.units ?? 0)) go({ unit: to });
  return true;
}
const KEYS = {
  ArrowLeft: () => moveLook(-1) ?? true, ArrowRight: () => moveLook(1) ?? true, ArrowUp: () => moveUnit(-1), ArrowDown: () => moveUnit(1),
  "/": () => byId("search").focus() ?? true, "?": () => byId("keys").showModal() ?? true,
  Escape: () => (state.unit === null ? false : go({ unit: null }) ?? true),
};
addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || byId("keys").open) return;
  if (byId("network").contains(event.target) && moveInNetwork(event)) return void event.preventDefault();
  if (event.target.matches("input, select, textarea") || (event.target.closest(".scroll") && event.key.startsWith("Arrow"))) return;
  if (KEYS[event.key]?.()) event.preventDefault();
});
let typed = 0;
byId("search").addEventListener("input", (event) => {
  clearTimeout(typed);
  const q = event.target.value;
  typed = setTimeout(() => {
    typed = 0;
    go({ q: q === "" ? null : q, a: null, b: null }, { replaces: state.q !== null });
  }, 60);
});
byId("search-form").addEventListener("submit", (event) => {
  event.preventDefault();
  go({ q: byId("search").value, a: null, b: null });
});
byId("help").onclick = () => byId("keys").showModal();
byId("keys-close").onclick = () => byId("keys").close();
byId("skip").onclick = (event) => {
  event.preventDefault();
  byId("main").focus();
};
let path = "";
function recall() {
  readPlace(placeNow());
  const moved = `${state.layer}/${state.unit}/${state.q}`;
  if (path && moved !== path) scrollTo({ top: 0 });
  path = moved;
  draw();
}
addEventListener("hashchange", recall);
if (inFrame) {
  addEventListener("click", (event) => {
    const link = event.target.closest?.('a[href^="#/"]');
    if (!link) return;
    event.preventDefault();
    framePlace = link.getAttribute("href");
    recall();
  });
}
// Where there is no room beside the pictures, the network opens when it is asked for.
const narrow = matchMedia("(max-width: 900px)"), foldNetwork = () => { byId("sidebar").open = !narrow.matches; };
narrow.addEventListener("change", foldNetwork);
foldNetwork();
phone.addEventListener("change", draw);
// While training writes more looks, they are offered: the place stays what it is.
const EVERY = 15_000;
let asked = 0;
async function askForMore() {
  if (document.hidden || mostCharacters === Infinity) return;
  asked += 1;
  await readList(`looks.js?${asked}`);
  offerMore();
}
function offerMore() {
  const count = countNew();
  fill(byId("more"), missing ? h("span", { class: "soft" }, `${missing > 1 ? `${missing} files` : "A file"} of this page ${missing > 1 ? "are" : "is"} missing. `) : [],
    count ? h("button", { "data-testid": "new-looks", onclick: takeMore }, `Show ${count} new ${count > 1 ? "looks" : "look"}`) : []);
}
function takeMore() {
  takeList();
  offerMore();
  draw();
}
document.addEventListener("visibilitychange", askForMore);
setInterval(askForMore, EVERY);
readList("looks.js").then(() => {
  takeList();
  offerMore();
  recall();
});
