// The confusion matrix of many classes as a zoomable picture, with similar classes side by side.
(() => {
  const data = pageData("confusion");
  if (!data) return;
  const canvas = document.getElementById("confusion-canvas");
  const size = data.order.length;
  const place = new Array(size);
  data.order.forEach((label, i) => { place[label] = i; });
  const totals = new Array(size).fill(0);
  const counts = new Map();
  for (const [label, predicted, count] of data.cells) {
    totals[label] += count;
    counts.set(place[label] * size + place[predicted], count);
  }
  let zoom = 1, left = 0, top = 0; // the picture shows size / zoom classes from (left, top) on

  function draw() {
    const pixels = Math.round(canvas.clientWidth * devicePixelRatio);
    canvas.width = canvas.height = pixels;
    const style = getComputedStyle(document.documentElement);
    const right = style.getPropertyValue("--heat"), wrong = style.getPropertyValue("--bad");
    const context = canvas.getContext("2d");
    const cell = (pixels / size) * zoom;
    context.clearRect(0, 0, pixels, pixels);
    for (const [label, predicted, count] of data.cells) {
      const x = (place[predicted] - left) * cell, y = (place[label] - top) * cell;
      if (x < -cell || y < -cell || x > pixels || y > pixels) continue;
      // The square root of the share, so that rare mistakes are visible as well.
      const strength = Math.sqrt(count / totals[label]);
      context.fillStyle = `rgba(${label === predicted ? right : wrong}, ${0.12 + 0.88 * strength})`;
      const side = Math.max(cell * (cell > 8 ? 0.94 : 1), 1.6);
      context.fillRect(x, y, side, side);
    }
  }

  function look(newZoom, x, y) { // zooms around the point (x, y), which stays in place; 0 to 1
    const before = size / zoom, after = size / Math.min(Math.max(newZoom, 1), size / 6);
    left += x * (before - after);
    top += y * (before - after);
    zoom = size / after;
    move(0, 0);
  }

  function move(dx, dy) {
    const room = size - size / zoom;
    left = Math.min(Math.max(left - dx * size / zoom, 0), room);
    top = Math.min(Math.max(top - dy * size / zoom, 0), room);
    canvas.style.touchAction = zoom > 1 ? "none" : "auto";
    draw();
  }

  const fingers = new Map();
  const point = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };
  canvas.addEventListener("pointerdown", (event) => {
    if (zoom > 1) canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, point(event));
    explain(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId), now = point(event);
    if (!before) { explain(event); return; }
    if (fingers.size === 1) {
      move(now[0] - before[0], now[1] - before[1]);
    } else {
      const [other] = [...fingers].filter(([id]) => id !== event.pointerId).map(([, p]) => p);
      const distance = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]) || 1e-3;
      look(zoom * distance(now) / distance(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    }
    fingers.set(event.pointerId, now);
  });
  for (const kind of ["pointerup", "pointercancel", "pointerleave"]) {
    canvas.addEventListener(kind, (event) => {
      fingers.delete(event.pointerId);
      if (kind === "pointerleave") tip.hide();
    });
  }
  // The wheel scrolls the page; with the control key it zooms.  Browsers also send a wheel event
  // with the control key for a pinch on a touchpad.
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    look(zoom * Math.exp(-event.deltaY / 200), ...point(event));
  }, { passive: false });
  canvas.addEventListener("dblclick", (event) => look(zoom * 3, ...point(event)));

  function explain(event) {
    const [x, y] = point(event);
    const column = Math.floor(left + x * size / zoom), row = Math.floor(top + y * size / zoom);
    if (column < 0 || row < 0 || column >= size || row >= size) return;
    const label = data.order[row], count = counts.get(row * size + column) ?? 0;
    tip.show(`${data.names[label]} → ${data.names[data.order[column]]}\n${count} of ${totals[label]}`,
      event.clientX, event.clientY);
  }

  for (const button of document.querySelectorAll("button[data-zoom]")) {
    button.addEventListener("click", () => look(zoom * Number(button.dataset.zoom), 0.5, 0.5));
  }
  draw();
  new ResizeObserver(() => requestAnimationFrame(draw)).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
