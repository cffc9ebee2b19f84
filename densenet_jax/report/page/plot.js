// Shared by the charts: SVG elements, axes with round numbers, and drawing again when the width changes.
function draw(name, attributes, parent, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return parent.appendChild(element);
}

function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
  const list = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) list.push(i * step);
  return list;
}

const percent = (share, digits = 1) => `${Number((share * 100).toFixed(digits))} %`;
const readable = (value) => Number(value.toPrecision(4)).toLocaleString("en", { maximumFractionDigits: 8 });

// Draws a chart with a horizontal and a vertical axis from 0 to 1, or over `range`, into an element.
// `paint(svg, x, y)` draws its content; x and y map values to places.  Returns a function that draws
// it again.
function plot(element, { titles, range = () => [0, 1], shares = true, square = true, name }, paint) {
  let seen = 0;
  const render = () => {
    seen = element.clientWidth;
    element.querySelector("svg")?.remove();
    const width = Math.max(seen, 240), height = square ? Math.min(width, 420) : 320;
    const edge = { left: shares ? 48 : 64, right: 24, top: 10, bottom: 42 };
    const [low, high] = range();
    const scale = (v) => (v - low) / (high - low || 1);
    const x = (v) => edge.left + scale(v) * (width - edge.left - edge.right);
    const y = (v) => height - edge.bottom - scale(v) * (height - edge.top - edge.bottom);
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": name,
      "data-own-tip": "" }, element);
    const written = (v) => (shares ? percent(v) : readable(v));
    const marks = shares ? [0, 0.25, 0.5, 0.75, 1] : ticks(low, high, 5);
    for (const mark of marks) {
      draw("line", { class: "grid", x1: x(low), x2: x(high), y1: y(mark), y2: y(mark) }, svg);
      draw("text", { x: edge.left - 6, y: y(mark) + 4, "text-anchor": "end" }, svg, written(mark));
      draw("text", { x: x(mark), y: height - 24, "text-anchor": "middle" }, svg, written(mark));
    }
    draw("text", { x: (x(low) + x(high)) / 2, y: height - 5, "text-anchor": "middle" }, svg, titles);
    draw("line", { class: "axis", x1: x(low), x2: x(high), y1: y(low), y2: y(low) }, svg);
    paint(svg, x, y);
  };
  render();
  new ResizeObserver(() => {
    if (element.clientWidth !== seen) requestAnimationFrame(render);
  }).observe(element);
  return render;
}

function line(points, x, y) {
  return points.map(([a, b], i) => `${i ? "L" : "M"}${x(a).toFixed(1)},${y(b).toFixed(1)}`).join("");
}

// Shows the text of `explain(event)`, or nothing where it returns null, while the pointer is over it.
function explained(element, explain) {
  for (const kind of ["pointermove", "pointerdown"]) {
    element.addEventListener(kind, (event) => {
      const text = explain(event);
      if (text) tip.show(text, event.clientX, event.clientY);
      else tip.hide();
    });
  }
  element.addEventListener("pointerleave", () => tip.hide());
}
