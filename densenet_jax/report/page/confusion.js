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

  // The names are beside the picture: rows at the left, columns at the top, slanted.
  function room() {
    const width = canvas.clientWidth, names = Math.min(130, 0.26 * width), right = 0.4 * names;
    return { width, names, side: width - names - right };
  }

  function shortened(context, name, most) {
    if (context.measureText(name).width <= most) return name;
    let length = name.length;
    while (length && context.measureText(`${name.slice(0, length)}…`).width > most) length--;
    return `${name.slice(0, length)}…`;
  }

  function drawPicture() {
    const { width, names, side } = room();
    canvas.width = Math.round(width * devicePixelRatio);
    canvas.height = Math.round((names + side) * devicePixelRatio);
    canvas.style.aspectRatio = `${width} / ${names + side}`;
    const style = getComputedStyle(document.documentElement);
    const right = style.getPropertyValue("--heat"), wrong = style.getPropertyValue("--bad");
    const context = canvas.getContext("2d");
    context.scale(devicePixelRatio, devicePixelRatio);
    context.translate(names, names);
    const cell = (side / size) * zoom;
    context.fillStyle = style.getPropertyValue("--muted");
    context.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    context.textBaseline = "middle";
    const every = Math.ceil(14 / cell); // a name has this many rows
    for (let i = 0; i < size; i += every) {
      const name = shortened(context, data.names[data.order[i]], names - 10);
      const x = (i - left + 0.5) * cell, y = (i - top + 0.5) * cell;
      if (y > 0 && y < side) {
        context.textAlign = "right";
        context.fillText(name, -6, y);
      }
      if (x > 0 && x < side) {
        context.save();
        context.translate(x, -4);
        context.rotate(-Math.PI / 3);
        context.textAlign = "left";
        context.fillText(name, 0, 0);
        context.restore();
      }
    }
    context.strokeStyle = style.getPropertyValue("--line");
    context.strokeRect(0.5, 0.5, side - 1, side - 1);
    context.beginPath();
    context.rect(0, 0, side, side);
    context.clip();
    for (const [label, predicted, count] of data.cells) {
      const x = (place[predicted] - left) * cell, y = (place[label] - top) * cell;
      if (x < -cell || y < -cell || x > side || y > side) continue;
      // The square root of the share, so that rare mistakes are visible as well.
      const strength = Math.sqrt(count / totals[label]);
      context.fillStyle = `rgba(${label === predicted ? right : wrong}, ${0.12 + 0.88 * strength})`;
      const width = Math.max(cell * (cell > 8 ? 0.94 : 1), 1.6);
      context.fillRect(x, y, width, width);
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
    drawPicture();
  }

  const fingers = new Map();
  const point = (event) => {
    const box = canvas.getBoundingClientRect();
    const { names, side } = room();
    return [(event.clientX - box.left - names) / side, (event.clientY - box.top - names) / side];
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
    if (x < 0 || y < 0 || x > 1 || y > 1 || column >= size || row >= size) { tip.hide(); return; }
    const label = data.order[row], count = counts.get(row * size + column) ?? 0;
    tip.show(`${data.names[label]} → ${data.names[data.order[column]]}\n${count} of ${totals[label]}`,
      event.clientX, event.clientY);
  }

  for (const button of document.querySelectorAll("button[data-zoom]")) {
    button.addEventListener("click", () => look(zoom * Number(button.dataset.zoom), 0.5, 0.5));
  }
  drawPicture();
  new ResizeObserver(() => requestAnimationFrame(drawPicture)).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawPicture);
})();
