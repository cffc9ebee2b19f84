// Predicted against true numbers, as a scatter plot.
(() => {
  const numbers = pageData("regression-details");
  if (!numbers) return;
  const select = document.getElementById("number-choice");
  let number = numbers[0];

  const render = plot(document.getElementById("scatter"), {
    titles: "true (horizontal), predicted (vertical)", name: "predicted and true numbers", shares: false,
    range: () => {
      const values = number.points.flat();
      if (!values.length) return [0, 1];
      const low = Math.min(...values), high = Math.max(...values), room = (high - low || 1) * 0.03;
      return [low - room, high + room];
    },
  }, (svg, x, y) => {
    const all = number.points.flat(), low = Math.min(...all), high = Math.max(...all);
    if (!all.length) return;
    draw("line", { class: "axis", x1: x(low), y1: y(low), x2: x(high), y2: y(high), "stroke-dasharray": "4 4" }, svg);
    const opacity = Math.max(0.25, Math.min(0.8, 150 / number.points.length));
    for (const [truth, predicted] of number.points) {
      const dot = draw("circle", { cx: x(truth).toFixed(1), cy: y(predicted).toFixed(1), r: 3, class: "point",
        "fill-opacity": opacity }, svg);
      explained(dot, () => `predicted ${readable(predicted)}\ntrue ${readable(truth)}`);
    }
  });

  function choose(position) {
    number = numbers[position];
    const shown = number.points.length, of = number.examples;
    document.getElementById("scatter-count").textContent = shown < of
      ? `${shown.toLocaleString("en")} of ${of.toLocaleString("en")} examples, drawn at random.`
      : `${of.toLocaleString("en")} examples.`;
    render();
  }

  select.addEventListener("change", () => choose(Number(select.value)));
  choose(0);
})();
