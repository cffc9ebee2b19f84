// Calibration: confidence against the share of examples for which it is right, in bins.
function calibrationPlot(element, bins, words) {
  return plot(element, { titles: words.titles, square: false, name: "calibration" }, (svg, x, y) => {
    for (const bin of bins()) {
      const side = { x: x(bin.low) + 1, width: Math.max(x(bin.high) - x(bin.low) - 2, 1) };
      const low = Math.min(bin.accuracy, bin.confidence), high = Math.max(bin.accuracy, bin.confidence);
      draw("rect", { class: "bar", ...side, y: y(low), height: y(0) - y(low) }, svg);
      draw("rect", { class: bin.accuracy > bin.confidence ? "under" : "over", ...side, y: y(high),
        height: y(low) - y(high) }, svg);
      // As high as the chart, so that a finger finds also a bin without a bar.
      const whole = draw("rect", { ...side, y: y(1), height: y(0) - y(1), opacity: 0 }, svg);
      explained(whole, () => `${bin.count.toLocaleString("en")} examples from ${percent(bin.low, 0)} to ` +
        `${percent(bin.high, 0)}\n${words.confidence} ${percent(bin.confidence)}\n${words.accuracy} ${percent(bin.accuracy)}`);
    }
    draw("line", { class: "axis", x1: x(0), y1: y(0), x2: x(1), y2: y(1), "stroke-dasharray": "4 4",
      "pointer-events": "none" }, svg);
  });
}

{
  const bins = pageData("classification-details");
  if (bins) {
    calibrationPlot(document.getElementById("calibration-plot"), () => bins, {
      titles: "confidence (horizontal), accuracy (vertical)", confidence: "mean confidence", accuracy: "accuracy" });
  }
}
