// One of several labels: its curves among those of all labels, its threshold, calibration and pictures.
(() => {
  const labels = pageData("multilabel-details");
  if (!labels) return;
  const by = (id) => document.getElementById(id);
  const select = by("label-choice"), slider = by("threshold");
  const subgroups = pageData("subgroup-labels") ?? [];
  let label = labels.find((one) => one.roc) ?? labels[0];
  const faint = Math.min(0.25, Math.max(0.07, 4 / labels.length));
  let at = 0;

  function counts() {
    const tp = label.grid.tp[at], fp = label.grid.fp[at];
    return { tp, fp, fn: label.positives - tp, tn: label.negatives - fp };
  }

  function curve(key, titles, guess, dot) {
    return plot(by(key.replace("_", "-")), { titles, name: key.replace("_", " ") }, (svg, x, y) => {
      for (const other of labels) {
        if (!other[key] || other === label) continue;
        draw("path", { d: line(other[key], x, y), class: "faint", opacity: faint }, svg);
      }
      if (!label[key]) return;
      draw("path", { d: line(guess(), x, y), class: "axis", fill: "none", "stroke-dasharray": "4 4" }, svg);
      draw("path", { d: line(label[key], x, y), class: "curve" }, svg);
      const [a, b] = dot(counts());
      if (Number.isFinite(a) && Number.isFinite(b)) {
        draw("circle", { cx: x(a), cy: y(b), r: 5, class: "dot" }, svg);
      }
    });
  }

  const drawings = [
    curve("roc", "1 − specificity (horizontal), sensitivity (vertical)", () => [[0, 0], [1, 1]],
      ({ tp, fp }) => [fp / label.negatives, tp / label.positives]),
    curve("precision_recall", "recall (horizontal), precision (vertical)", () => {
      const share = label.positives / (label.positives + label.negatives);
      return [[0, share], [1, share]];
    }, ({ tp, fp }) => [tp / label.positives, tp / (tp + fp)]),
  ];
  const calibration = calibrationPlot(by("label-calibration"), () => label.bins ?? [], {
    titles: "probability (horizontal), share with the label (vertical)",
    confidence: "mean probability", accuracy: "have the label" });

  function threshold(position) {
    if (!label.grid) return;
    at = position;
    slider.value = at;
    by("threshold-value").textContent = readable(label.grid.thresholds[at]);
    slider.setAttribute("aria-valuetext", by("threshold-value").textContent);
    by("threshold-reset").disabled = at === label.grid.at;
    const { tp, fp, fn, tn } = counts();
    for (const [key, n] of Object.entries({ tp, fp, fn, tn })) {
      document.querySelector(`[data-count="${key}"]`).textContent = n.toLocaleString("en");
    }
    const rates = { sensitivity: tp / (tp + fn), specificity: tn / (tn + fp), precision: tp / (tp + fp) };
    for (const [key, rate] of Object.entries(rates)) {
      document.querySelector(`[data-rate="${key}"]`).textContent = Number.isNaN(rate) ? "—" : percent(rate);
    }
    drawings.forEach((render) => render());
  }

  let onlyChosen = false;
  function filterPictures() {
    for (const figure of document.querySelectorAll("#pictures figure[data-label]")) {
      figure.hidden = onlyChosen && Number(figure.dataset.label) !== labels.indexOf(label);
    }
    document.querySelector("[data-all]")?.setAttribute("aria-pressed", !onlyChosen);
    document.querySelector("[data-one]")?.setAttribute("aria-pressed", onlyChosen);
  }

  function choose(number) {
    label = labels[number];
    select.value = number;
    by("label-nothing").hidden = Boolean(label.roc);
    by("threshold-box").hidden = !label.grid;
    slider.max = (label.grid?.thresholds.length ?? 1) - 1;
    by("label-ece").textContent = label.bins ? percent(label.ece) : "—";
    const name = select.selectedOptions[0].textContent;
    for (const place of document.querySelectorAll(".chosen")) place.textContent = name;
    for (const row of document.querySelectorAll("[data-row]")) {
      const cell = row.querySelector(".by-label"), score = subgroups[Number(row.dataset.row)]?.[number];
      const written = score?.map((value) => value.toFixed(3));
      cell.textContent = !score ? "—" : written.length > 1 ? `${written[0]} (${written[1]}–${written[2]})` : written[0];
      cell.dataset.value = score ? score[0] : -1;
      cell.hidden = false;
    }
    filterPictures();
    calibration();
    if (label.grid) threshold(label.grid.at);
    else drawings.forEach((render) => render());
  }

  select.addEventListener("change", () => choose(Number(select.value)));
  slider.addEventListener("input", () => threshold(Number(slider.value)));
  by("threshold-reset").addEventListener("click", () => threshold(label.grid.at));
  for (const link of document.querySelectorAll("[data-choose]")) {
    link.addEventListener("click", () => choose(Number(link.dataset.choose)));
  }
  for (const [name, only] of [["[data-all]", false], ["[data-one]", true]]) {
    document.querySelector(name)?.addEventListener("click", () => { onlyChosen = only; filterPictures(); });
  }
  for (const id of ["pictures-choice", "subgroup-chosen"]) by(id)?.removeAttribute("hidden");
  choose(labels.indexOf(label));
})();
