// What the page shows lies in scripts beside it, each of which calls a function of `cnnviz`: the list, which names blocks of
// looks and looks since, then these; the parts of looks and packs of pictures as they are asked for. Nothing else can be
// loaded: the policy knows the names of these files alone.
const trusted = (window.trustedTypes ?? { createPolicy: (_, rules) => rules }).createPolicy("cnnviz", {
  createScriptURL(name) {
    if (!/^(looks|(lists|looks|parts|pictures)\/[0-9a-z-]+)\.js(\?\d+)?$/.test(name)) throw new TypeError(`no file of this page: ${name}`);
    return name;
  },
});
const blocks = new Map(), heads = new Map(); // what is known of looks without their items: of a block's, and of each by file
const wholes = new Set(); // looks whose file has their items, too, as before format 3
const parts = new Map(), pictures = new Map(), packs = new Map(); // by name; a pack is the names of its pictures
const files = new Map(), ready = new Set();
const allSeries = []; // the looks of one monitor in one stage, run and data set
let listed = { blocks: [], looks: [], runs: [] }; // as the list was read last
let newest = [], missing = 0; // the series that it makes, and how many files that it names are not there
let mostCharacters = 120_000_000; // of pictures in memory
let characters = 0, pending = 0;

Object.defineProperty(window, "cnnviz", { value: Object.freeze({
  list: (content) => { listed = { blocks: [], looks: [], runs: [], ...content }; },
  block(name, names, { about, contents, looks }) {
    blocks.set(name, looks.map((look) => ({ ...about[look.about], ...look, contents: contents[look.contents] })));
    for (const look of looks) if (look.is_whole) wholes.add(look.chunk);
  },
  look(name, head, body) {
    heads.set(`${name}${head.left_out ? "-out" : ""}`, { ...head, chunk: name });
    if (!body) return;
    wholes.add(name);
    parts.set(name, body);
  },
  part: (name, content) => parts.set(name, content),
  pictures(pack, sizes, uris) {
    packs.set(pack, Object.keys(sizes));
    packs.get(pack).forEach((name, i) => {
      const known = pictures.get(name);
      pictures.set(name, { uri: uris[i], packs: (known?.packs ?? 0) + 1 });
      characters += known ? 0 : uris[i].length;
    });
  },
}) });

// --- the list ---
async function readList(file) {
  await load(file);
  const list = listed;
  await Promise.all([...list.blocks.map(blockFile), ...list.looks.map(headFile)].map(load));
  newest = seriesOf(list);
  const lost = [...list.blocks.filter((name) => !blocks.has(name)).map(blockFile), ...list.looks.filter((name) => !heads.has(name)).map(headFile)];
  for (const each of [file, ...lost]) { // these are asked for again
    files.delete(each);
    ready.delete(each);
  }
  missing = lost.length;
}
// Of each look once: that it was left out counts, wherever else it is told of.
function headsOf(list) {
  const found = new Map();
  for (const head of [...list.blocks.flatMap((name) => blocks.get(name) ?? []), ...list.looks.flatMap((name) => heads.get(name) ?? [])]) {
    if (!found.get(head.chunk)?.left_out) found.set(head.chunk, head);
  }
  return [...found.values()].sort((one, other) => one.time - other.time || (one.chunk < other.chunk ? -1 : 1));
}
// One for each monitor, stage, data set and run, those of one monitor together; what its newest look is called, it is.
function seriesOf(list) {
  const runs = new Map(list.runs.map(([run, writer, number]) => [JSON.stringify([run, writer]), number]));
  const views = new Map();
  for (const head of headsOf(list)) {
    const { source, title, label, stage, data, network, time } = head;
    const run = runs.get(JSON.stringify(head.run ? [head.run, ""] : ["", head.writer])) ?? 1, key = JSON.stringify([stage, data, run]);
    if (!views.has(source)) views.set(source, { series: new Map() });
    const view = Object.assign(views.get(source), { title, label });
    if (!view.series.has(key)) view.series.set(key, { looks: new Map() });
    const series = Object.assign(view.series.get(key), { source, stage, data, run, network, time }), when = `${head.step} ${head.epoch}`;
    if (!series.looks.has(when)) series.looks.set(when, []);
    series.looks.get(when).push(head);
  }
  return [...views.values()].flatMap(({ title, label, series }) => [...series.values()].map(({ looks, ...about }) => {
    const all = [...looks.values()].map((heads) => readLook(heads, about.stage)).sort((one, other) => one.step - other.step || one.epoch - other.epoch);
    return { ...about, title, label, all, looks: all.filter((look) => look.chunks.length) };
  }));
}
// What was written twice under one name counts as it was written last.
function readLook(heads, stage) {
  const items = new Map(), { epoch, step, time } = heads.at(-1);
  for (const { contents, scalars } of heads) {
    const values = scalars.values();
    for (const [kind, name, layer = ""] of contents) items.set(`${kind} ${name} ${layer}`, { kind, name, layer, value: kind === "Scalar" ? values.next().value ?? null : null });
  }
  const names = [...items.values()], chunks = heads.filter((head) => !head.left_out).map((head) => head.chunk);
  return { chunks, epoch, step, time, stage, names, scalars: names.filter(({ kind }) => kind === "Scalar") };
}

function takeList() {
  allSeries.splice(0, allSeries.length, ...newest);
  known = current = null;
}
const chunksOf = (series) => new Set(series.flatMap(({ all }) => all.flatMap((look) => look.chunks)));
// How many looks the list had when it was read last that the page does not show yet.
function countNew() {
  const shown = chunksOf(allSeries);
  return newest.flatMap(({ all }) => all).filter((look) => look.chunks.some((name) => !shown.has(name))).length;
}

// --- files ---
function load(file) {
  if (!files.has(file)) {
    files.set(file, new Promise((resolve) => {
      const script = document.createElement("script");
      script.onload = script.onerror = () => {
        script.remove();
        ready.add(file);
        pending -= 1;
        resolve();
      };
      script.src = trusted.createScriptURL(file);
      document.head.append(script);
      pending += 1;
    }));
  }
  return files.get(file);
}
// Of a page that is one file, which has these in it.
function embedded(names) {
  mostCharacters = Infinity;
  for (const name of names) {
    files.set(name, Promise.resolve());
    ready.add(name);
  }
}
const blockFile = (name) => `lists/${name}.js`, headFile = (name) => `looks/${name}.js`, partFile = (name) => `parts/${name}.js`, packFile = (name) => `pictures/${name}.js`;
const itemsFile = (name) => (wholes.has(name) ? headFile(name) : partFile(name));
const isRead = (look) => look.chunks.every((name) => ready.has(itemsFile(name)));
const fetchLook = (look) => Promise.all(look.chunks.map((name) => load(itemsFile(name))));

// --- what a look holds ---
// What was written twice under one name counts as it was written last.
function itemsOf(look) {
  if (!isRead(look)) return [];
  if (!look.items) {
    const items = new Map();
    look.notes = new Set();
    look.facts = [];
    for (const body of look.chunks.map((name) => parts.get(name))) {
      if (!body) look.notes.add("A file of this look is missing: reload the page.");
      for (const item of body?.items ?? []) items.set(`${item.kind} ${item.name}`, readItem(item));
      for (const note of body?.notes ?? []) look.notes.add(note);
      look.facts.push(...readFacts(body?.facts));
    }
    look.items = [...items.values()];
  }
  return look.items;
}
function readItem(item) {
  if (item.kind !== "Gallery") return item;
  // Of pages before format 2: rows are objects, and all pictures are loaded with the gallery.
  const rows = item.rows?.map((row) => (Array.isArray(row) ? row : [row.caption, row.numbers, row.tiles, item.packs.map((_, i) => i)]));
  const count = rows ? rows.length : item.parts.reduce((sum, [, length]) => sum + length, 0);
  const channels = item.channels ?? Array(count).fill(null);
  return { layer: "", ...item, rows, count, channels, places: new Map(channels.map((channel, i) => [channel, i])) };
}
function readFacts(facts) {
  return (facts?.layers ?? []).map((each) => ({
    layer: each.layer,
    numbers: new Map(each.numbers),
    channels: new Map(each.channels),
    classes: each.classes ? each.classes.map((line) => pairs(line).map(([index, part]) => [String(facts.classes[index]), part])) : null,
    told: each.told ? each.told.map((line) => pairs(line).map(([index, value]) => [String(facts.classes[index]), value])) : null,
    histograms: each.histograms,
    neighbors: each.neighbors?.map(pairs),
  }));
}
const pairs = (line) => Array.from({ length: line.length / 2 }, (_, i) => [line[2 * i], line[2 * i + 1]]);

// --- rows of galleries ---
function partOf(item, index) {
  let first = 0;
  for (const [name, length] of item.parts) {
    if (index < first + length) return { name, at: index - first };
    first += length;
  }
  return null;
}
// A row as it is read: null before its part is there.
function rowAt(item, index) {
  const part = item.rows ? null : partOf(item, index);
  const row = part ? parts.get(part.name)?.[part.at] : item.rows?.[index];
  return row ? { index, channel: item.channels[index], caption: row[0], numbers: row[1], tiles: row[2].map((tile) => readTile(item, tile)), packs: row[3].map((i) => item.packs[i]), wholes: (row[4] ?? []).map((i) => item.packs[i]) } : null;
}
function readTile(item, [picture, crop, caption, numbers, shows = "", rank = null, file = "", whole = null]) {
  const named = item.keys ? item.keys[numbers[0]].map((name, i) => [name, numbers[i + 1]]) : numbers;
  return { picture, crop, caption, numbers: file ? [...named, ["file", file]] : named, shows, rank, size: item.size, whole: whole ? { picture: whole[0], crop: whole[1] } : crop && whole === null ? { picture, crop } : null };
}
// `wholly`: with the whole images of patches that have pictures of their own.
async function fetchRow(item, index, wholly = false) {
  if (!item.rows) await load(partFile(partOf(item, index).name));
  const row = rowAt(item, index);
  await Promise.all([...(row?.packs ?? []), ...(wholly ? row?.wholes ?? [] : [])].map((pack) => load(packFile(pack))));
  return row;
}
const hasPictures = (row) => row !== null && [...row.packs, ...row.wholes].every((pack) => ready.has(packFile(pack)));
const fetchPictures = (item) => Promise.all((item.packs ?? []).map((pack) => load(packFile(pack))));

// Forget the pictures that were loaded first, except those of these packs.
let needed = new Set();
function forget(packsNow = needed) {
  needed = packsNow;
  for (const [pack, names] of packs) {
    if (characters <= mostCharacters) return;
    if (needed.has(pack)) continue;
    for (const name of names) {
      const picture = pictures.get(name);
      picture.packs -= 1;
      if (picture.packs) continue;
      characters -= picture.uri.length;
      pictures.delete(name);
    }
    packs.delete(pack);
    files.delete(packFile(pack));
    ready.delete(packFile(pack));
  }
}
