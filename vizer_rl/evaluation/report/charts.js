// Curves over steps as SVG: all runs in one chart, alarms and the kept step marked, one step read
// in all charts together.

const BOX = { width: 340, height: 170, left: 42, right: 14, top: 16, bottom: 22 };
const COLOURS = 4; // of runs; a fifth has the first one's
const charts = [];

function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, index) => (first + index) * step);
}

function tickText(value) {
  return String(Number(value.toPrecision(4))).replace("-", "−");
}

function scale(values, start, end) {
  let low = Math.min(...values), high = Math.max(...values);
  if (low === high) [low, high] = low ? [low - Math.abs(low) / 2, low + Math.abs(low) / 2] : [0, 1];
  const at = (value) => start + (end - start) * (value - low) / (high - low);
  return { low, high, at };
}

function smooth(values) {
  const reach = Math.round(values.length / 40);
  return values.map((_, index) => {
    const near = values.slice(Math.max(0, index - reach), index + reach + 1);
    return near.reduce((sum, value) => sum + value, 0) / near.length;
  });
}

function path(xs, ys) {
  const points = xs.map((x, index) => `${x.toFixed(1)} ${ys[index].toFixed(1)}`);
  return `M${points.join("L")}`;
}

function axes(x, y, xTitle, yTitle) {
  const parts = [];
  const bottom = BOX.height - BOX.bottom;
  for (const value of ticks(y.low, y.high, 4)) {
    const place = y.at(value);
    parts.push(
      svg("path", { class: "grid", d: `M${BOX.left} ${place}H${BOX.width - BOX.right}` }),
      svg("text", { x: BOX.left - 6, y: place + 3.5, class: "right" }, tickText(value)),
    );
  }
  for (const value of ticks(x.low, x.high, 4).filter((v) => xTitle || Number.isInteger(v))) {
    parts.push(svg("text", { x: x.at(value), y: bottom + 15, class: "middle" }, tickText(value)));
  }
  if (xTitle) {
    const place = { x: BOX.width - BOX.right, y: bottom - 6, class: "right" };
    parts.push(svg("text", place, xTitle));
  }
  if (yTitle) parts.push(svg("text", { x: BOX.left + 4, y: 11 }, yTitle));
  return parts;
}

function describe(title, lines) {
  const says = lines.map(({ run, values }) => {
    const [first, last] = [values[0], values[values.length - 1]];
    const name = data.runs.length > 1 ? `${data.runs[run].name}: ` : "";
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return `${name}from ${number(first)} to ${number(last)}, lowest ${number(low)}, ` +
      `highest ${number(high)}`;
  });
  return `${title}; ${says.join("; ")}`;
}

// Where a run's alarms and its kept adapter stand on the axis of steps.
function marks(run, x, withKept) {
  const parts = [];
  const bottom = BOX.height - BOX.bottom;
  data.runs[run].alarms.forEach(([step, sentence], index) => {
    if (step < x.low || step > x.high) return;
    const place = x.at(step);
    parts.push(svg("g", { class: "alarm" }, svg("title", {}, `Step ${step}: ${sentence}`),
      svg("path", { d: `M${place} ${BOX.top}V${bottom}` }),
      svg("text", { x: place, y: BOX.top - 5, class: "middle" }, `▲${index + 1}`)));
  });
  const kept = data.runs[run].kept;
  if (withKept && kept !== null) {
    const end = x.at(kept) > BOX.width * 0.7;
    parts.push(svg("g", { class: `kept r${run % COLOURS}` },
      svg("path", { d: `M${x.at(kept)} ${BOX.top}V${bottom}` }),
      svg("text", { x: x.at(kept) + (end ? -4 : 4), y: bottom - 6, class: end ? "right" : "" },
        "kept")));
  }
  return parts;
}

function chart(key, title, about) {
  const lines = data.runs.map(({ series }, run) => ({ run, line: series[key] }))
    .filter(({ line }) => line).map(({ run, line: [steps, values] }) => ({ run, steps, values }));
  const x = scale(lines.flatMap(({ steps }) => steps), BOX.left, BOX.width - BOX.right);
  const y = scale(lines.flatMap(({ values }) => values), BOX.height - BOX.bottom, BOX.top);
  const drawing = svg("svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, tabindex: 0, role: "img",
    "aria-label": describe(title, lines) }, ...axes(x, y, "", ""));
  for (const { run, steps, values } of lines) {
    const xs = steps.map(x.at);
    if (values.length > 40) {
      const raw = path(xs, values.map(y.at));
      drawing.append(svg("path", { class: `line raw r${run % COLOURS}`, d: raw }));
    }
    const bold = values.length > 40 ? smooth(values) : values;
    drawing.append(svg("path", { class: `line r${run % COLOURS}`, d: path(xs, bold.map(y.at)) }));
    if (values.length <= 20) {
      drawing.append(...values.map((value, index) =>
        svg("circle", { class: `dot r${run % COLOURS}`, cx: xs[index], cy: y.at(value), r: 2.5 })));
    }
    drawing.append(...marks(run, x, key === "heldout/score"));
  }
  const cursor = svg("path", { class: "cursor" });
  const readout = html("output");
  drawing.append(cursor);
  charts.push({ title, lines, x, cursor, readout });
  drawing.addEventListener("pointermove", (event) => {
    const box = drawing.getBoundingClientRect();
    const place = (event.clientX - box.left) / box.width * BOX.width;
    const share = (place - BOX.left) / (BOX.width - BOX.left - BOX.right);
    read(x.low + share * (x.high - x.low));
  });
  drawing.addEventListener("pointerleave", () => read(null));
  drawing.addEventListener("blur", () => read(null));
  drawing.addEventListener("keydown", (event) => {
    const turn = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!turn) return;
    event.preventDefault();
    const steps = lines[0].steps;
    const last = steps.length - 1;
    const now = charts.step === null ? (turn > 0 ? -1 : last + 1)
      : steps.indexOf(nearest(steps, charts.step));
    read(steps[Math.min(last, Math.max(0, now + turn))]);
    document.getElementById("spoken").textContent = `${title}, ${readout.textContent}`;
  });
  read(null);
  return html("figure", {}, html("figcaption", {}, html("b", {}, title), readout,
    html("small", {}, about)), drawing);
}

function nearest(steps, step) {
  const nearer = (best, other) => Math.abs(other - step) < Math.abs(best - step) ? other : best;
  return steps.reduce(nearer);
}

// Show all charts' values at a step, or at their ends.
function read(step) {
  charts.step = step;
  for (const { lines, x, cursor, readout } of charts) {
    const says = lines.map(({ run, steps, values }) => {
      const there = step === null ? steps[steps.length - 1] : nearest(steps, step);
      return [run, there, number(values[steps.indexOf(there)])];
    });
    const there = says[0][1];
    cursor.setAttribute("d", step === null ? "" :
      `M${x.at(there)} ${BOX.top}V${BOX.height - BOX.bottom}`);
    const values = says.map(([run, , text]) => html("span", { class: `r${run % COLOURS}` }, text));
    readout.replaceChildren(...values, step === null ? "" : ` at ${Math.round(there)}`);
  }
}

// The reward over the steps since the last look, against the held-out score at each look.
function against() {
  const lines = data.runs.map(({ series }, run) => {
    const [looks, reward] = [series["heldout/score"], series.reward];
    if (!looks || !reward || looks[0].length < 3) return null;
    const points = looks[0].map((step, index) => {
      const before = index ? looks[0][index - 1] : -Infinity;
      const since = reward[1].filter((_, i) => reward[0][i] > before && reward[0][i] <= step);
      const mean = since.reduce((sum, value) => sum + value, 0) / since.length;
      return { step, reward: mean, score: looks[1][index] };
    });
    return { run, points: points.filter((point) => Number.isFinite(point.reward)) };
  }).filter((line) => line && line.points.length > 1);
  if (!lines.length) return [];
  const all = lines.flatMap(({ points }) => points);
  const x = scale(all.map((point) => point.reward), BOX.left, BOX.width - BOX.right);
  const y = scale(all.map((point) => point.score), BOX.height - BOX.bottom, BOX.top);
  const told = all.map((p) => `step ${p.step}: ${number(p.reward)}, ${number(p.score)}`);
  const label = `Held-out score against reward; ${told.join("; ")}`;
  const drawing = svg("svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img",
    "aria-label": label }, ...axes(x, y, "reward →", "↑ held-out"));
  for (const { run, points } of lines) {
    const [xs, ys] = [points.map((p) => x.at(p.reward)), points.map((p) => y.at(p.score))];
    drawing.append(svg("path", { class: `line r${run % COLOURS}`, d: path(xs, ys) }));
    points.forEach(({ step }, index) => {
      const kept = step === data.runs[run].kept;
      const ends = index === 0 || index === points.length - 1;
      const dot = { class: `dot r${run % COLOURS}${kept ? " ring" : ""}`, r: kept ? 4.5 : 2.5 };
      drawing.append(svg("circle", { ...dot, cx: xs[index], cy: ys[index] },
        svg("title", {}, `step ${step}`)));
      if (!ends) return;
      const right = xs[index] > BOX.width / 2;
      const low = ys[index] < 30 ? 14 : -7;
      drawing.append(svg("text", { x: xs[index] + (right ? -2 : 2), y: ys[index] + low,
        class: right ? "right" : "" }, index ? `step ${step}` : "start"));
    });
  }
  const about = "Right and down, the reward is being gamed. Ring: the adapter kept.";
  return [html("figure", {}, html("figcaption", {}, html("b", {}, "reward against held-out"),
    html("small", {}, about)), drawing)];
}

function drawCharts() {
  const plots = document.getElementById("plots");
  if (!plots) return;
  for (const [title, keys] of data.groups) {
    const figures = () => keys.map(([key, name, about]) => chart(key, name, about));
    const all = title === "All other keys";
    const grid = html("div", { class: "plots" });
    if (all) {
      const details = html("details", {}, html("summary", {}, `${title} (${keys.length})`), grid);
      details.addEventListener("toggle", () => grid.append(...figures()), { once: true });
      plots.append(details);
      continue;
    }
    if (title === "Training") grid.append(...against());
    grid.append(...figures());
    plots.append(html("h3", {}, title), grid);
  }
  drawLegend();
}

function drawLegend() {
  const legend = document.getElementById("legend");
  const several = data.runs.length > 1;
  data.runs.forEach(({ name }, run) => {
    if (!several) return;
    const sample = svg("svg", { viewBox: "0 0 30 8", class: "sample", "aria-hidden": "true" },
      svg("path", { class: `line r${run % COLOURS}`, d: "M0 4H30" }));
    legend.append(html("span", {}, sample, name));
  });
  const items = data.runs.flatMap(({ name, alarms }) => alarms.map(([step, sentence], index) =>
    html("li", { class: "warn" },
      html("b", {}, `▲${index + 1} ${several ? `${name}, step` : "Step"} ${step}`),
      ` ${sentence}`)));
  if (items.length) legend.append(html("ul", { class: "alarms" }, ...items));
}

drawCharts();
