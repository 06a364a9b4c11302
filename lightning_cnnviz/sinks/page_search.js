// --- all units: found, sorted, filtered ---
const MOST_FOUND = 200;
// What stands in a line of its own for each unit, where anything of it is known.
const COLUMNS = { share: "selectivity", max: "max activation", purity: "label purity", stability: "stability", same: "same channel r", match: "best match r" };
const columnsOf = (units) => Object.keys(COLUMNS).filter((key) => units.some((unit) => Number.isFinite(unit[key])));
const ORDERS = {
  selectivity: ["selectivity for its first class", (unit) => unit.share ?? -1],
  maximum: ["largest activation", (unit) => unit.max ?? -Infinity],
  purity: ["label purity", (unit) => unit.purity ?? -1],
  change: ["change since the last look", (unit) => (Number.isFinite(unit.stability) ? 1 - unit.stability : -1)],
  likeness: ["least like its counterpart first", (unit) => -(unit.same ?? unit.match ?? Infinity)],
  dead: ["dead first", (unit) => unit.dead],
  place: ["place in the network", (unit) => -unit.order],
};
function unitsOf(knowledge) {
  if (knowledge.list) return knowledge.list;
  const list = [];
  for (const layer of knowledge.layers.values()) {
    const of = (name) => layer.channels.get(name), max = of("max activation"), purity = of("label purity"), stability = of("stability"), dead = of("dead"), same = of("same channel r"), match = of("best match r");
    for (let unit = 0; unit < layer.units; unit += 1) list.push({ layer: layer.layer, unit, order: list.length, max: max?.[unit], purity: purity?.[unit], stability: stability?.[unit], dead: dead?.[unit] ? 1 : 0, same: same?.[unit], match: match?.[unit], classes: layer.classes?.[unit] ?? [] });
  }
  return (knowledge.list = list);
}
// A name of a class finds the units that it drives, most selective first; a layer, or "layer 17", those units.
function findUnits(knowledge, query, order, only) {
  const wanted = query.trim().toLowerCase(), [, ofLayer, ofUnit] = /^(.*?)[\s·/]+(\d+)$/.exec(wanted) ?? [];
  const names = new Map();
  const fits = (name) => {
    if (!names.has(name)) names.set(name, className(name).toLowerCase().includes(wanted) || String(name).toLowerCase().includes(wanted));
    return names.get(name);
  };
  const found = [];
  for (const unit of unitsOf(knowledge)) {
    if ((only === "dead" && !unit.dead) || (only === "alive" && unit.dead)) continue;
    const hit = wanted ? unit.classes.find(([name]) => fits(name)) : unit.classes[0];
    const layer = unit.layer.toLowerCase(), byLayer = !wanted || layer.includes(wanted) || (ofUnit !== undefined && Number(ofUnit) === unit.unit && layer.includes(ofLayer));
    if (hit || byLayer) found.push({ ...unit, label: hit?.[0] ?? unit.classes[0]?.[0], share: hit?.[1] ?? unit.classes[0]?.[1], isClass: Boolean(wanted && hit) });
  }
  const value = (ORDERS[order] ?? ORDERS.selectivity)[1], byClass = found.some((unit) => unit.isClass);
  const kept = byClass ? found.filter((unit) => unit.isClass) : found;
  return kept.map((unit) => [value(unit), unit]).sort((one, other) => other[0] - one[0] || one[1].order - other[1].order).map(([, unit]) => unit);
}
function drawSearch(place, knowledge) {
  const all = unitsOf(knowledge), compared = all.some((unit) => Number.isFinite(unit.same ?? unit.match));
  const orders = Object.entries(ORDERS).filter(([key]) => key !== "likeness" || compared), usual = compared && !all.some((unit) => unit.classes.length) ? "likeness" : "selectivity";
  const query = state.q ?? "", order = state.sort ?? usual, found = findUnits(knowledge, query, order, state.only);
  const choice = (name, label, options, value) => h("label", { class: "soft" }, `${label}: `, h("select", { "data-testid": name, onchange: (event) => go({ [name]: event.target.value || null }) }, options.map(([key, text]) => h("option", { value: key, selected: key === value }, text))));
  const shown = found.slice(0, MOST_FOUND), columns = columnsOf(found), labeled = found.some((unit) => unit.label !== undefined);
  const rows = shown.map((unit) => {
    const thumb = h("span", { class: "thumb" });
    return h("tr", { "data-layer": unit.layer, "data-unit": unit.unit }, h("td", {}, thumb), h("th", { scope: "row" }, h("a", { href: linkTo({ layer: unit.layer, unit: unit.unit, view: null }), "data-testid": `found-${unit.layer}-${unit.unit}` }, `${unit.layer} · ${unit.unit}`)),
      labeled ? h("td", {}, unit.label === undefined ? "" : className(unit.label)) : null, columns.map((key) => h("td", { class: "number" }, show(unit[key] ?? null))), h("td", {}, unit.dead ? "dead" : ""));
  });
  whenSeen(rows, (row) => fillThumb(row.querySelector(".thumb"), place, row.dataset.layer, Number(row.dataset.unit), 44));
  const text = () => csv([["layer", "unit", "class", ...columns.map((key) => COLUMNS[key]), "dead"], ...found.map((unit) => [unit.layer, unit.unit, unit.label, ...columns.map((key) => unit[key]), unit.dead])]);
  return [h("div", { class: "head" }, h("h2", {}, query ? `Units for “${query}”` : "All units"), h("span", { class: "soft", "data-testid": "count", role: "status" }, `${show(found.length)} units${found.length > shown.length ? `, the first ${shown.length} shown` : ""}`)),
    h("div", { class: "choices" }, choice("sort", "Sort by", orders.map(([key, [label]]) => [key, label]), order), choice("only", "Show", [["", "all"], ["alive", "alive"], ["dead", "dead"]], state.only ?? ""), saving("units.csv", text, "CSV")),
    found.length ? h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Units" }, h("table", { class: "found" }, h("thead", {}, h("tr", {}, ["patch", "unit", ...(labeled ? ["class"] : [])].map((name) => h("th", { scope: "col" }, name)), columns.map((key) => h("th", { scope: "col", class: "number" }, COLUMNS[key])), h("th", { scope: "col" }, "state"))), h("tbody", {}, rows))) : empty("No unit answers to that."),
    h("details", { class: "help" }, h("summary", {}, "How to read this"), h("p", {}, "Selectivity: the part of the activations of a unit's strongest patches that a class has, 0 to 1. Purity: the part of these patches that has the most frequent label. Stability: overlap of their images with those of the look before. r: the correlation of a unit with its counterpart in another network, over images."))];
}
