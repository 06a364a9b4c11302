() => {
  const problems = [];
  const shown = (node) => node.checkVisibility({ visibilityProperty: true });
  const nameOf = (node) => node.getAttribute("aria-label") || node.labels?.[0]?.textContent || node.textContent.trim() || node.title;
  for (const node of document.querySelectorAll("a[href], button, input, select, summary, nav, [role=region]"))
    if (shown(node) && !nameOf(node)) problems.push(`no name: ${node.outerHTML.slice(0, 120)}`);
  for (const image of document.images)
    if (!image.hasAttribute("alt")) problems.push(`no alt: ${image.outerHTML.slice(0, 80)}`);
  const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) problems.push(`twice: ${id}`);
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = (value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const light = ([red, green, blue]) => 0.2126 * linear(red / 255) + 0.7152 * linear(green / 255) + 0.0722 * linear(blue / 255);
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const color = rgb(getComputedStyle(at).backgroundColor);
      if (color[3] === 255) return color;
    }
    return [255, 255, 255];
  };
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || !shown(node) || node.closest("svg, script, style, .off, :disabled")) continue;
    const [more, less] = [light(rgb(getComputedStyle(node).color)), light(ground(node))].sort((a, b) => b - a);
    if ((more + 0.05) / (less + 0.05) < 4.5) problems.push(`contrast: ${node.outerHTML.slice(0, 120)}`);
  }
  return problems;
}
