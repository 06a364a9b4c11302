"use strict";
// What the page shows lies in scripts beside it, each of which calls a function of `cnnviz`: the list of looks, then looks,
// parts of long ones and packs of pictures as they are asked for. Nothing else can be loaded: the policy knows the names of
// these files alone.
const trusted = (window.trustedTypes ?? { createPolicy: (_, rules) => rules }).createPolicy("cnnviz", {
  createScriptURL(name) {
    if (!/^(looks|(looks|parts|pictures)\/[0-9a-z-]+)\.js(\?\d+)?$/.test(name)) throw new TypeError(`no file of this page: ${name}`);
    return name;
  },
});
const bodies = new Map(), parts = new Map(), pictures = new Map(), packs = new Map(); // by name; a pack is the names of its pictures
const files = new Map(), ready = new Set();
const allSeries = []; // the looks of one monitor in one stage, run and data set
let newest = []; // the same, as the list said when it was read last
let mostCharacters = 120_000_000; // of pictures in memory
let characters = 0, pending = 0;

Object.defineProperty(window, "cnnviz", { value: Object.freeze({
  list: (content) => { newest = content.views.flatMap((view) => readView(view, content.contents)); },
  look: (name, head, body) => bodies.set(name, body),
  part: (name, rows) => parts.set(name, rows),
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
function readView(view, contents) {
  return view.series.map(({ looks, ...series }) => {
    const all = looks.map((look) => readLook(look, series.stage, contents[look.contents]));
    return { ...series, source: view.view, title: view.title, label: view.label, all, looks: all.filter((look) => look.chunks.length) };
  });
}
function readLook({ values = [], ...look }, stage, contents) {
  const names = contents.map(([kind, name, layer = ""]) => ({ kind, name, layer }));
  const scalars = names.filter(({ kind }) => kind === "Scalar").map(({ name, layer }, i) => ({ name, layer, value: values[i] }));
  return { ...look, stage, names, scalars };
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
const chunkFile = (name) => `looks/${name}.js`, partFile = (name) => `parts/${name}.js`, packFile = (name) => `pictures/${name}.js`;
const isRead = (look) => look.chunks.every((name) => ready.has(chunkFile(name)));
const fetchLook = (look) => Promise.all(look.chunks.map((name) => load(chunkFile(name))));

// --- what a look holds ---
// What was written twice under one name counts as it was written last.
function itemsOf(look) {
  if (!isRead(look)) return [];
  if (!look.items) {
    const items = new Map();
    look.notes = new Set();
    look.facts = [];
    for (const body of look.chunks.map((name) => bodies.get(name))) {
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
  return row ? { index, channel: item.channels[index], caption: row[0], numbers: row[1], tiles: framed(row[2].map((tile) => readTile(item, tile))), packs: row[3].map((i) => item.packs[i]), wholes: (row[4] ?? []).map((i) => item.packs[i]) } : null;
}
function readTile(item, [picture, crop, caption, numbers, shows = "", rank = null, file = "", whole = null]) {
  const named = item.keys ? item.keys[numbers[0]].map((name, i) => [name, numbers[i + 1]]) : numbers;
  return { picture, crop, caption, numbers: file ? [...named, ["file", file]] : named, shows, rank, size: item.size, whole: whole ? { picture: whole[0], crop: whole[1] } : crop ? { picture, crop } : null };
}
// A projection is drawn in a tile like its patch's: what lies outside the image there is no part of it, either.
function framed(tiles) {
  for (const tile of tiles.filter(({ shows, crop }) => shows === "projection" && !crop)) {
    const patch = tiles.find(({ shows, rank }) => shows === "patch" && rank === tile.rank);
    if (!patch?.whole) continue;
    const [, , top, left, bottom, right, row, column] = patch.whole.crop;
    tile.crop = [...patch.size, row, column, row + bottom - top, column + right - left, row, column];
  }
  return tiles;
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
function forget(needed) {
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
