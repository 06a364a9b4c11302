// --- which looks belong together ---
// A line is what one run has seen in one stage; its moments are those at which any of its views looked. Every state of the
// page is a link: `#/layer/unit?view=..&stage=..&run=..&epoch=..&step=..`.
const FIELDS = ["view", "stage", "run", "epoch", "step", "q", "sort", "only", "a", "b"];
const state = { layer: null, unit: null };
const STAGES = ["fit", "validate", "test"];

function readPlace(hash) {
  const [path, query] = hash.replace(/^#/, "").split("?");
  const [, layer, unit] = path.split("/").map((part) => { try { return decodeURIComponent(part); } catch { return part; } });
  const asked = new URLSearchParams(query ?? "");
  state.layer = layer || null;
  state.unit = /^\d+$/.test(unit ?? "") ? Number(unit) : null;
  for (const field of FIELDS) state[field] = asked.get(field);
}
function linkTo(change) {
  const place = { ...state, ...change };
  const path = [place.layer, place.layer === null ? null : place.unit].filter((part) => part !== null && part !== undefined);
  const query = new URLSearchParams(FIELDS.filter((field) => place[field] !== null && place[field] !== undefined && place[field] !== "").map((field) => [field, place[field]]));
  return `#/${path.map(encodeURIComponent).join("/")}${[...query].length ? `?${query}` : ""}`;
}
// A step that Back undoes; what changes while a slider is dragged, or a word is typed, replaces the place instead.
// In a frame of somebody else's page (W&B shows it so) links would load that page, and addresses may not change: the place
// is kept here.
const inFrame = window !== window.parent;
let framePlace = "";
const placeNow = () => (inFrame ? framePlace : location.hash);
function go(change, { replaces = false } = {}) {
  const link = linkTo(change);
  if (inFrame) {
    framePlace = link;
    return recall();
  }
  if (replaces) {
    history.replaceState(null, "", link);
    readPlace(link);
    return draw();
  }
  if (location.hash === link) return draw();
  location.hash = link;
  return undefined;
}

function linesOf(series) {
  const lines = new Map();
  for (const each of series) {
    const key = `${each.run} ${each.stage}`;
    if (!lines.has(key)) lines.set(key, { run: each.run, stage: each.stage, series: [] });
    lines.get(key).series.push(each);
  }
  const rank = ({ stage }) => STAGES.indexOf(stage) >>> 0; // others last
  const found = [...lines.values()].filter((line) => line.series.some((each) => each.looks.length));
  for (const line of found) {
    line.moments = momentsOf(line.series);
    line.layered = line.series.some((each) => each.looks.some((look) => look.names.some((item) => item.layer)));
  }
  return found.sort((one, other) => other.layered - one.layered || other.run - one.run || rank(one) - rank(other));
}
function momentsOf(series) {
  const moments = new Map();
  for (const look of series.flatMap((each) => each.looks)) moments.set(`${look.step} ${look.epoch}`, { step: look.step, epoch: look.epoch });
  return [...moments.values()].sort((one, other) => one.step - other.step || one.epoch - other.epoch);
}
// Fit's own line, at its newest look, where nothing was chosen: of those that show layers, if there are any.
function lineNow(place = state) {
  const lines = linesNow();
  return lines.find((line) => line.stage === place.stage && (place.run === null || String(line.run) === place.run))
    ?? lines.find((line) => place.run !== null && String(line.run) === place.run)
    ?? lines.find((line) => line.stage === "fit" && line.layered) ?? lines.find((line) => line.layered) ?? lines[0];
}
let known = null;
const linesNow = () => (known ??= linesOf(allSeries));
function momentNow(line, place = state) {
  if (place.epoch === null && place.step === null) return line.moments.length - 1;
  const fits = (moment) => (place.step === null || String(moment.step) === place.step) && (place.epoch === null || String(moment.epoch) === place.epoch);
  const exact = line.moments.findLastIndex(fits);
  if (exact >= 0) return exact;
  return Math.max(0, line.moments.findLastIndex((moment) => moment.epoch <= Number(place.epoch ?? Infinity)));
}
// A view that did not look at this moment shows what it saw last before it; one that looked only later, its first look.
function lookOf(series, moment) {
  const before = series.looks.findLast((look) => look.step < moment.step || (look.step === moment.step && look.epoch <= moment.epoch));
  return before ?? series.looks[0];
}
const isAt = (look, moment) => look.step === moment.step && look.epoch === moment.epoch;
const nameOf = (moment, line) => (line.moments.length === 1 && moment.step === 0 ? "as it is, not trained here" : `epoch ${moment.epoch} · step ${moment.step}`);
// What shows no layers, as a study, is called by its views.
function lineName(line) {
  const lines = linesNow(), layered = lines.filter((other) => other.layered);
  if (!line.layered && layered.length) return [...new Set(line.series.map(({ label }) => label))].slice(0, 2).join(", ");
  return layered.some((other) => other.run !== line.run) ? `run ${line.run} · ${line.stage}` : line.stage;
}

// Everything that a place in the page is made of: each view of the line with its look.
function placeOf(asked = state) {
  const line = lineNow(asked);
  if (!line) return null;
  const now = momentNow(line, asked), moment = line.moments[now];
  const several = new Map();
  for (const series of line.series) several.set(series.source, (several.get(series.source) ?? new Set()).add(series.data));
  const views = line.series.filter((series) => series.looks.length).map((series) => ({
    series,
    key: several.get(series.source).size > 1 ? `${series.source}~${series.data}` : series.source,
    label: several.get(series.source).size > 1 && series.data ? `${series.label} · ${series.data}` : series.label,
    look: lookOf(series, moment),
  }));
  return { line, now, moment, views };
}
const fetchPlace = (place) => Promise.all(place.views.map(({ look }) => fetchLook(look)));
const isThere = (place) => place.views.every(({ look }) => isRead(look));
const momentLink = (moment) => ({ epoch: String(moment.epoch), step: String(moment.step) });

// --- what is known of layers and units at a place ---
function knowledgeOf(place) {
  const layers = new Map(), rows = [];
  const take = (fact) => {
    if (!layers.has(fact.layer)) layers.set(fact.layer, { layer: fact.layer, numbers: new Map(), channels: new Map(), classes: null, neighbors: null, told: null, histograms: null, units: 0 });
    const layer = layers.get(fact.layer);
    if (!layer.numbers.has("kind")) fact.numbers.forEach((value, name) => layer.numbers.set(name, value));
    fact.channels.forEach((values, name) => layer.channels.set(name, values));
    layer.classes = fact.classes ?? layer.classes;
    for (const part of ["neighbors", "told", "histograms"]) layer[part] = fact[part] ?? layer[part];
    layer.units = Math.max(layer.units, ...[...fact.channels.values(), fact.classes ?? [], fact.neighbors ?? []].map((each) => each.length));
  };
  // The table of layers tells the order; where this line has none, that of another line does.
  const looks = place.views.map(({ look }) => look);
  const table = (look) => { itemsOf(look); return look.facts?.some((fact) => fact.numbers.has("kind")); };
  const tabled = looks.find(table) ?? allSeries.flatMap((series) => series.looks).filter(isRead).find(table);
  for (const fact of tabled?.facts ?? []) {
    rows.push(fact);
    if (fact.layer) take(fact);
  }
  for (const look of looks) {
    const items = itemsOf(look);
    look.facts?.forEach((fact) => fact.layer && !fact.numbers.has("kind") && take(fact));
    for (const item of [...items, ...look.scalars]) if (item.layer) take({ layer: item.layer, numbers: new Map(), channels: new Map() });
    for (const item of items) if (item.kind === "Gallery" && item.layer) {
      const most = item.channels.reduce((most, channel) => Math.max(most, (channel ?? -1) + 1), 0);
      layers.get(item.layer).units = Math.max(layers.get(item.layer).units, most);
    }
  }
  const shown = new Set(looks.flatMap((look) => [...itemsOf(look), ...look.scalars].map((item) => item.layer)));
  return { layers, rows, shown };
}
