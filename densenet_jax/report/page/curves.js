// Curves over epochs: training as a thin line, evaluation with dots.  A tooltip shows the values at
// the pointer.
(() => {
  const charts = pageData("charts");
  if (!charts) return;
  const several = charts.some((chart) => chart.series.some((s) => s.run > 0));
  const height = 230, edge = { left: 56, right: 12, top: 8, bottom: 28 };
  const colour = (s) => `var(--s${several ? s.run % 6 : s.split === "train" ? 0 : 1})`;

  function written(chart, value) {
    if (chart.percent) return `${Number((value * 100).toFixed(2))} %`;
    if (value !== 0 && Math.abs(value) < 0.001) return value.toExponential(1);
    return Number(value.toPrecision(4)).toLocaleString("en", { maximumFractionDigits: 6 });
  }

  function axisOf(chart, logarithmic) {
    const values = chart.series.flatMap((s) => s.y).filter((y) => y !== null && (!logarithmic || y > 0));
    let low = Math.min(...values), high = Math.max(...values);
    if (logarithmic) {
      const marks = [];
      for (let power = Math.floor(Math.log10(low)); 10 ** power <= high * 1.001; power++) {
        const steps = Math.log10(high / low) > 2 ? [1] : [1, 2, 5];
        for (const n of steps) marks.push(n * 10 ** power);
      }
      return { low: Math.log(low), high: Math.log(high), map: Math.log,
        marks: marks.filter((m) => m >= low * 0.999 && m <= high * 1.001) };
    }
    // A single outlier (a step right after a pause) must not flatten all other values.
    const usual = values.toSorted((a, b) => a - b)[Math.floor(values.length * 0.9)];
    if (chart.unit === "images/s" && high > 3 * usual) high = 1.5 * usual;
    if (low >= 0 && (low < high / 2 || ["images_per_second", "data_wait"].includes(chart.key))) low = 0;
    if (chart.percent && high > 0.8) high = 1;
    if (low === high) [low, high] = [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2];
    const marks = ticks(low, high, 4);
    return { low: Math.min(low, marks[0]), high: Math.max(high, marks.at(-1)), map: (v) => v, marks };
  }

  function render(chart, figure, logarithmic) {
    figure.querySelector("svg")?.remove();
    const width = Math.max(figure.clientWidth, 240);
    const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img",
      "aria-label": chart.title, "data-own-tip": "" }, figure);
    const axis = axisOf(chart, logarithmic);
    const last = Math.max(...chart.series.map((s) => s.x.at(-1)), 1e-9);
    const x = (v) => edge.left + (v / last) * (width - edge.left - edge.right);
    const share = (v) => Math.min((axis.map(v) - axis.low) / (axis.high - axis.low || 1), 1);
    const y = (v) => height - edge.bottom - share(v) * (height - edge.top - edge.bottom);
    for (const mark of axis.marks) {
      draw("line", { class: "grid", x1: edge.left, x2: width - edge.right, y1: y(mark), y2: y(mark) }, svg);
      draw("text", { x: edge.left - 6, y: y(mark) + 4, "text-anchor": "end" }, svg, written(chart, mark));
    }
    for (const mark of ticks(0, last, width / 90)) {
      draw("text", { x: x(mark), y: height - 8, "text-anchor": "middle" }, svg, Number(mark.toPrecision(6)));
    }
    draw("line", { class: "axis", x1: edge.left, x2: width - edge.right,
      y1: height - edge.bottom, y2: height - edge.bottom }, svg);
    for (const s of chart.series) {
      let path = "", pen = "M";
      s.x.forEach((value, i) => {
        const drawable = s.y[i] !== null && (!logarithmic || s.y[i] > 0);
        if (drawable) path += `${pen}${x(value).toFixed(1)},${y(s.y[i]).toFixed(1)}`;
        pen = drawable ? "L" : "M";
      });
      const thin = s.split === "train";
      const lonely = thin && chart.series.every((other) => other.split === "train");
      draw("path", { d: path, fill: "none", stroke: colour(s), "stroke-linejoin": "round",
        "stroke-width": thin && !lonely ? 1.2 : 2, opacity: thin && !lonely ? 0.65 : 1 }, svg);
      if (s.x.length > 40 || (thin && s.x.length > 1)) continue;
      s.x.forEach((value, i) => {
        if (s.y[i] === null || (logarithmic && s.y[i] <= 0)) return;
        draw("circle", { cx: x(value), cy: y(s.y[i]), r: 3, fill: colour(s) }, svg);
      });
    }
    const hair = draw("line", { class: "axis", y1: edge.top, y2: height - edge.bottom, opacity: 0 }, svg);
    const explain = (event) => {
      const box = svg.getBoundingClientRect();
      const at = ((event.clientX - box.left) * width / box.width - edge.left) /
        (width - edge.left - edge.right) * last;
      const lines = chart.series.map((s) => {
        let best = 0;
        s.x.forEach((value, i) => { if (Math.abs(value - at) < Math.abs(s.x[best] - at)) best = i; });
        return { s, best, far: Math.abs(s.x[best] - at) };
      });
      const near = lines.reduce((a, b) => (b.far < a.far ? b : a));
      hair.setAttribute("x1", x(near.s.x[near.best]));
      hair.setAttribute("x2", x(near.s.x[near.best]));
      hair.setAttribute("opacity", 0.5);
      tip.show([`epoch ${Number(near.s.x[near.best].toFixed(2))}, step ${near.s.step[near.best].toLocaleString("en")}`,
        ...lines.map(({ s, best }) => `${several ? `${s.name} ` : ""}${s.split}: ` +
          (s.y[best] === null ? "not a number" : `${written(chart, s.y[best])} ${chart.unit}`)),
      ].join("\n"), event.clientX, event.clientY);
    };
    svg.addEventListener("pointermove", explain);
    svg.addEventListener("pointerdown", explain);
    svg.addEventListener("pointerleave", () => { hair.setAttribute("opacity", 0); tip.hide(); });
  }

  for (const chart of charts) {
    const figure = document.getElementById(`chart-${chart.key}`);
    const button = figure.querySelector("button");
    let logarithmic = false;
    const legend = figure.querySelector(".legend");
    for (const s of chart.series) {
      const item = legend.appendChild(document.createElement("span"));
      const line = item.appendChild(document.createElement("i"));
      line.style.borderColor = colour(s);
      if (s.split === "train" && several) line.style.opacity = 0.5;
      item.append(several ? `${s.name}, ${s.split}` : s.split === "train" ? "training" : "evaluation");
    }
    button?.addEventListener("click", () => {
      logarithmic = !logarithmic;
      button.setAttribute("aria-pressed", logarithmic);
      render(chart, figure, logarithmic);
    });
    let seen = figure.clientWidth;
    render(chart, figure, logarithmic);
    new ResizeObserver(() => {
      if (figure.clientWidth === seen) return;
      seen = figure.clientWidth;
      requestAnimationFrame(() => render(chart, figure, logarithmic));
    }).observe(figure);
  }
})();
