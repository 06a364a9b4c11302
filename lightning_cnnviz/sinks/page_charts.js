// --- charts, drawn from their data ---
// As wide as it is shown, so that its letters are as large as others.
const chartSize = () => ({ width: phone.matches ? 330 : 640, height: phone.matches ? 240 : 320, left: phone.matches ? 40 : 58, right: 16, top: 14, bottom: 44 });
function ticksOf(low, high, most) {
  const rough = (high - low) / most || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const ticks = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-9; tick += step) ticks.push(Number(tick.toPrecision(12)));
  return ticks;
}
const finite = (values) => values.filter((value) => Number.isFinite(value));
function rangeOf(values, zero) {
  const there = finite(values);
  if (!there.length) return null;
  const high = Math.max(...there), least = Math.min(...there);
  const low = zero && least > 0 && least < high ? 0 : least;
  return low === high ? [low - 0.5, high + 0.5] : [low, high];
}
// Lines between what was measured: a gap stays a gap.
function segments(points) {
  const lines = [[]];
  for (const point of points) {
    if (point === null) lines.push([]);
    else lines.at(-1).push(point);
  }
  return lines.filter((line) => line.length);
}
// Names in place of numbers; for many, the chart is wider, and scrolls.
const NAME_LENGTH = 18, LETTER = 7, NAME_HEIGHT = 17;
function nameTicks(names, x, y, steep) {
  const short = (name) => (name.length > NAME_LENGTH ? `…${name.slice(1 - NAME_LENGTH)}` : name);
  return names.map((name, i) => s("text", steep ? { "text-anchor": "end", transform: `translate(${x(i + 1) + 4} ${y - 4}) rotate(-40)` } : { x: x(i + 1), y, "text-anchor": "middle" }, short(name), s("title", {}, name)));
}
const valuesOf = (item) => [...new Set(item.series.flatMap((line) => line.x))].sort((one, other) => one - other);
function drawCurve(item) {
  const chart = chartSize(), { right, top } = chart, names = item.names ?? [];
  const steep = names.length * Math.max(0, ...names.map((name) => Math.min(name.length, NAME_LENGTH))) * LETTER > chart.width, more = steep ? 74 : 0, left = chart.left + (steep ? 30 : 0);
  const width = steep ? Math.max(chart.width, left + right + NAME_HEIGHT * (names.length - 1)) : chart.width, broad = width > chart.width;
  const height = chart.height + more, bottom = chart.bottom + more;
  const xs = rangeOf(item.series.flatMap((line) => line.x)), ys = rangeOf(item.series.flatMap((line) => [...line.y, ...(line.low ?? []), ...(line.high ?? [])]), true);
  const title = h("figcaption", {}, h("strong", {}, item.name), " ", h("span", { class: "soft" }, item.caption));
  if (!xs || !ys) return h("figure", { class: "figure chart" }, title, empty("Nothing was measured."));
  const along = item.log ? Math.log : (value) => value;
  const x = (value) => left + ((width - left - right) * (along(value) - along(xs[0]))) / (along(xs[1]) - along(xs[0]));
  const y = (value) => height - bottom - ((height - top - bottom) * (value - ys[0])) / (ys[1] - ys[0]);
  const grid = [
    ...ticksOf(...ys, 5).flatMap((tick) => [s("line", { class: "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }), s("text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, show(tick))]),
    ...(names.length ? nameTicks(names, x, height - bottom + 16, steep) : (item.log ? valuesOf(item) : ticksOf(...xs, 8)).map((tick) => s("text", { x: x(tick), y: height - bottom + 18, "text-anchor": "middle" }, show(tick)))),
    s("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle", class: "axis" }, item.x),
  ];
  const lines = item.series.map((line, i) => {
    const at = (value, j) => (Number.isFinite(value) && Number.isFinite(line.x[j]) ? [x(line.x[j]), y(value)] : null);
    const group = s("g", { class: line.reference ? "line reference" : `line c${i % 8}` });
    if (line.reference) {
      for (const points of segments(line.y.map(at))) group.append(s("polyline", { points: points.join(" ") }, s("title", {}, `${line.name}: ${show(line.y[0])}`)));
      return group;
    }
    if (line.low) {
      const there = line.x.map((_, j) => j).filter((j) => at(line.low[j], j) && at(line.high[j], j));
      group.append(s("polygon", { points: [...there.map((j) => at(line.high[j], j)), ...there.toReversed().map((j) => at(line.low[j], j))].join(" ") }));
    }
    for (const points of segments(line.y.map(at))) group.append(s("polyline", { points: points.join(" "), "stroke-dasharray": i >= 8 ? "6 3" : null }));
    const dots = line.y.map((value, j) => (at(value, j) ? s("circle", { cx: x(line.x[j]), cy: y(value), r: line.x.length > 40 ? 2 : 4 }, s("title", {}, `${line.name}\n${names[line.x[j] - 1] ?? `${item.x} ${show(line.x[j])}`}: ${show(value)}`)) : null));
    return put(group, {}, dots);
  });
  const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${item.name}: ${item.caption}` }, grid, lines);
  const legend = item.series.length > 1 ? h("ul", { class: "legend" }, item.series.map((line, i) => h("li", { class: line.reference ? "reference" : `c${i % 8}` }, readable(line.name)))) : null;
  const numbers = () => csv([["series", item.x, item.y, "low", "high"], ...item.series.flatMap((line) => line.x.map((value, j) => [line.name, names[value - 1] ?? value, line.y[j], line.low?.[j], line.high?.[j]]))]);
  const drawn = broad ? h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": item.name }, styled(svg, { width: `${width}px` })) : svg;
  return h("figure", { class: broad ? "figure chart broad" : "figure chart" }, title, h("p", { class: "soft y-label" }, item.y), drawn, legend,
    h("p", { class: "save" }, saving(`${item.name}.csv`, numbers, "CSV"), saving(`${item.name}.svg`, () => standing(svg), "SVG", "image/svg+xml"), savingPng(`${item.name}.png`, () => `data:image/svg+xml,${encodeURIComponent(standing(svg))}`, () => svg.closest("figure"))));
}
// A chart with its colors in it, which outside the page has no style sheet.
function standing(svg) {
  const copy = svg.cloneNode(true), own = [svg, ...svg.querySelectorAll("*")];
  [copy, ...copy.querySelectorAll("*")].forEach((node, i) => {
    const style = getComputedStyle(own[i]);
    for (const name of ["fill", "stroke", "stroke-width", "opacity", "font-size", "font-family"]) node.setAttribute(name, style.getPropertyValue(name));
  });
  const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
  put(copy, { xmlns: SVG, width, height }, []);
  return new XMLSerializer().serializeToString(copy);
}
// SVG as pixels, three for each of its own; it says how large it is.
async function pngOf(address, paper) {
  const image = new Image();
  image.src = address;
  await image.decode();
  const canvas = Object.assign(document.createElement("canvas"), { width: 3 * image.width, height: 3 * image.height }), brush = canvas.getContext("2d");
  brush.fillStyle = paper;
  brush.fillRect(0, 0, canvas.width, canvas.height);
  brush.drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png");
}
const savingPng = (name, address, figure) => h("button", { class: "quiet", "data-testid": `save-${name}`, onclick: async () => saveAs(name, await pngOf(address(), getComputedStyle(figure()).backgroundColor)) }, "PNG");
function sparkline(trend, now) {
  const values = finite(trend), low = Math.min(...values), range = Math.max(...values) - low || 1;
  const x = (index) => 2 + (52 * index) / Math.max(trend.length - 1, 1), y = (value) => 14 - (12 * (value - low)) / range;
  const points = trend.map((value, index) => (Number.isFinite(value) ? [x(index), y(value)] : null));
  return s("svg", { class: "spark", "aria-hidden": "true" }, segments(points).map((line) => s("polyline", { points: line.join(" ") })),
    points[now] ? s("circle", { cx: points[now][0], cy: points[now][1], r: 2.2 }) : null);
}
// How often each value is, on a scale that shows single images too; where the patches lie is marked.
function drawHistogram([low, width, ...counts], marks) {
  const high = low + width * counts.length, most = Math.log1p(Math.max(...counts, 1)), wide = 300, tall = 96;
  const x = (value) => (wide * (value - low)) / (high - low || 1);
  const bins = counts.map((count, i) => (count ? s("rect", { x: x(low + i * width) + 0.5, width: Math.max(1, wide / counts.length - 1), y: tall - (tall * Math.log1p(count)) / most, height: (tall * Math.log1p(count)) / most }, s("title", {}, `${show(low + i * width)} to ${show(low + (i + 1) * width)}: ${show(count)} images`)) : null));
  const lines = marks.map((value) => s("line", { class: "mark", x1: x(value), x2: x(value), y1: 0, y2: tall }));
  const ticks = ticksOf(low, high, 4).map((tick) => s("text", { x: x(tick), y: tall + 16, "text-anchor": "middle" }, show(tick)));
  return s("svg", { class: "histogram", viewBox: `-14 -2 ${wide + 28} ${tall + 24}`, role: "img", "aria-label": `Histogram of ${counts.reduce((sum, count) => sum + count, 0)} images, from ${show(low)} to ${show(high)}` }, bins, lines, ticks);
}
// Bars that say how large each part is.
const bars = (entries) => h("ol", { class: "bars" }, entries.map(([name, part, link]) => h("li", {},
  link ? h("a", { href: link }, name) : h("span", {}, name), styled(h("i", {}), { width: `${Math.max(1, 100 * Math.min(1, part))}%` }), h("b", {}, percent(part)))));
