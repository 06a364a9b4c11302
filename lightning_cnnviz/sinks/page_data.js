"use strict";
// What the page shows lies in scripts beside it, each of which calls a function of `cnnviz`: the list of looks, then looks
// and packs of pictures as they are asked for. Nothing else can be loaded: the policy knows the names of these files alone.
const trusted = (window.trustedTypes ?? { createPolicy: (_, rules) => rules }).createPolicy("cnnviz", {
  createScriptURL(name) {
    if (!/^(looks|(looks|pictures)\/[0-9a-z-]+)\.js$/.test(name)) throw new TypeError(`no file of this page: ${name}`);
    return name;
  },
});
const bodies = new Map(), pictures = new Map(), packs = new Map(); // by name; a pack is the names of its pictures
const files = new Map(), ready = new Set();
const views = [];
let mostCharacters = 250_000_000; // of pictures in memory
let characters = 0, pending = 0;

Object.defineProperty(window, "cnnviz", { value: Object.freeze({
  list: (content) => views.splice(0, views.length, ...content.views.map((view) => readView(view, content.contents))),
  look: (name, head, body) => bodies.set(name, body),
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
const keyOf = (look) => `${look.epoch}-${look.step}-${look.stage}`;
function readView(view, contents) {
  const several = view.series.some((series) => series.run > 1), places = new Set(view.series.map((series) => series.data));
  const series = view.series.map(({ stage, data, run, time, looks }) => {
    const all = looks.map((look) => readLook(look, stage, contents[look.contents]));
    const name = [several ? `run ${run}` : "", stage, places.size > 1 ? data : ""].filter(Boolean).join(" · ");
    const key = stage + (run > 1 ? `~${run}` : "") + (data ? `~${data}` : "");
    return { key, name, stage, run, time, all, looks: all.filter((look) => look.chunks.length) };
  }).filter((each) => each.looks.length);
  const order = ({ stage }) => "fit validate test".indexOf(stage) >>> 0; // others last
  series.sort((a, b) => a.run - b.run || order(a) - order(b));
  return { ...view, series };
}
function readLook({ values = [], ...look }, stage, names) {
  const scalars = new Map(names.filter(([kind]) => kind === "Scalar").map(([, name], i) => [name, values[i]]));
  return { ...look, stage, scalars, names: names.map(([kind, name]) => ({ kind, name })) };
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
const chunkFile = (name) => `looks/${name}.js`, packFile = (name) => `pictures/${name}.js`;
// What was written twice under one name counts as it was written last.
function itemsOf(look) {
  if (!isRead(look)) return [];
  if (!look.items) {
    const items = new Map();
    look.notes = new Set();
    for (const body of look.chunks.map((name) => bodies.get(name))) {
      if (!body) look.notes.add("A file of this look is missing: reload the page.");
      for (const item of body?.items ?? []) items.set(`${item.kind} ${item.name}`, item);
      for (const note of body?.notes ?? []) look.notes.add(note);
    }
    look.items = [...items.values()];
  }
  return look.items;
}
const isRead = (look) => look.chunks.every((name) => ready.has(chunkFile(name)));
// The files that must be loaded before the items that `chosen` takes can be shown; those of looks first, since they tell
// of packs.
function missing(look, chosen) {
  if (!isRead(look)) return look.chunks.map(chunkFile).filter((file) => !ready.has(file));
  return [...new Set(itemsOf(look).filter(chosen).flatMap((item) => item.packs))].map(packFile).filter((file) => !ready.has(file));
}
async function fetchItems(look, chosen) {
  for (let wanted; (wanted = missing(look, chosen)).length;) await Promise.all(wanted.map(load));
}
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
