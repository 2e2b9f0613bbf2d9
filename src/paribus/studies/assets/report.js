"use strict";
// The charts of a report. Everything here only draws; all numbers come ready from the page's data.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dashes = [[], [8, 4], [2, 3]];
  const arms = data.arms;
  const panels = data.panels; // one for each task
  const hidden = new Set(); // numbers of the arms that are switched off, in all charts at once
  let charts = [];
  let steered = []; // the learning curves, by panel

  const variable = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const hue = (arm) => variable(`--hue-${arms[arm].hue}`);
  const dash = (arm) => dashes[arms[arm].dash % dashes.length];
  const choice = () => document.querySelector("input[name=axis]:checked").value;
  const checked = (name) => document.querySelector(`input[name=${name}]`).checked;
  const score = (value) => (value == null ? "" : value.toFixed(4));

  const units = { tokens: "tokens", flops: "FLOPs", seconds: "seconds" };
  const prefixes = ["", "k", "M", "G", "T", "P", "E", "Z"];

  function amount(value) {
    if (value == null) return "";
    if (value !== 0 && Math.abs(value) < 0.01) return value.toExponential().replace("e-", "e−");
    const step = Math.max(0, Math.min(prefixes.length - 1, Math.floor(Math.log10(Math.abs(value) || 1) / 3)));
    return `${Number((value / 1000 ** step).toPrecision(3))}${step ? " " + prefixes[step] : ""}`;
  }

  function axis(more) {
    const line = variable("--rule");
    return {
      stroke: variable("--soft"),
      font: `12px ${variable("--text")}`,
      labelFont: `12px ${variable("--text")}`,
      grid: { stroke: variable("--faint"), width: 1 },
      ticks: { stroke: line, width: 1, size: 5 },
      border: { show: true, stroke: line, width: 1 },
      ...more,
    };
  }

  function vertical(label) {
    return axis({ label, size: 52, labelSize: 20, values: (u, at) => at.map((v) => (v == null ? "" : String(+v.toFixed(4)))) });
  }

  function cross(u, x, y, colour) {
    const size = 4.5 * devicePixelRatio;
    u.ctx.save();
    u.ctx.lineCap = "round";
    u.ctx.beginPath();
    u.ctx.moveTo(x - size, y - size);
    u.ctx.lineTo(x + size, y + size);
    u.ctx.moveTo(x - size, y + size);
    u.ctx.lineTo(x + size, y - size);
    for (const [stroke, width] of [[variable("--page"), 7], [colour, 2.5]]) {
      u.ctx.strokeStyle = stroke;
      u.ctx.lineWidth = width * devicePixelRatio;
      u.ctx.stroke();
    }
    u.ctx.restore();
  }

  // One row of columns per line, cut to what a logarithmic axis can show, then aligned on a common x.
  function joined(lines, along, log, columns) {
    const tables = lines.map((line) => {
      const keep = line[along].map((x, i) => i).filter((i) => !log || line[along][i] > 0);
      return [line[along], ...columns(line)].map((column) => keep.map((i) => column[i]));
    });
    return uPlot.join(tables);
  }

  function curves(container, panel) {
    const along = choice();
    const log = checked("log");
    const bands = panel.bands.filter((line) => !hidden.has(line.arm));
    const broken = panel.broken.filter((line) => !hidden.has(line.arm));
    const lines = [...bands, ...broken];
    const series = [{}];
    const fills = [];
    const shown = []; // [series, arm] whose value the keys show
    for (const line of bands) {
      const at = series.length;
      const edge = { stroke: "transparent", width: 0, points: { show: false } };
      shown.push([at, line.arm]);
      series.push({ label: arms[line.arm].name, stroke: hue(line.arm), width: 2, dash: dash(line.arm), points: { show: false } });
      if (line.seeds > 1) {
        series.push(edge, edge);
        fills.push({ series: [at + 2, at + 1], fill: hue(line.arm) + "2e" });
      }
    }
    for (const line of broken) {
      series.push({ label: `${arms[line.arm].name}, seed ${line.seed}`, stroke: hue(line.arm), width: 1.5, dash: [4, 4], points: { show: false } });
    }
    const table = lines.length ? joined(lines, along, log, (line) => (line.seeds > 1 ? [line.mean, line.low, line.high] : [line.mean])) : [[], []];
    const focus = checked("start") || panel.focus == null ? Infinity : panel.focus;
    const marks = panel.baselines.filter((line) => line.value <= focus);
    const range = (u, low, high) => {
      const top = Math.max(Math.min(high, focus), ...marks.map((line) => line.value));
      const pad = 0.05 * (top - low || 1);
      return [low - pad, top + pad];
    };
    const draw = (u) => {
      for (const line of marks) level(u, line);
      for (const line of broken) {
        const last = line[along].length - 1;
        if (log && !(line[along][last] > 0)) continue;
        const y = Math.max(u.bbox.top + 8, u.valToPos(line.mean[last], "y", true));
        cross(u, u.valToPos(line[along][last], "x", true), y, hue(line.arm));
      }
    };
    return new uPlot(
      {
        width: container.clientWidth,
        height: container.clientHeight,
        legend: { show: false },
        cursor: { y: false, drag: { x: true, y: true, uni: 30 }, points: { size: 7 } },
        scales: {
          x: { time: false, distr: log ? 3 : 1, range: (u, low, high) => [low, high] },
          y: { range },
        },
        axes: [
          axis({ label: units[along], labelSize: 22, size: 34, values: (u, at) => at.map(amount) }),
          vertical(panel.curve),
        ],
        series,
        bands: fills,
        hooks: { draw: [draw], setCursor: [(u) => (u.cursor.idx == null ? finals(panel) : tell("curves", shown.map(([at, arm]) => [arm, near(u, at)])))] },
      },
      table,
      container,
    );
  }

  // Without a cursor the keys show where the curves end.
  function finals(panel) {
    tell("curves", panel.bands.map((line) => [line.arm, line.mean[line.mean.length - 1]]));
  }

  // Arms need not have been measured at the same x: the last value at or before the cursor is the arm's.
  function near(u, at) {
    for (let i = u.cursor.idx; i >= 0; i--) if (u.data[at][i] != null) return u.data[at][i];
    return null;
  }

  function level(u, line) {
    const y = u.valToPos(line.value, "y", true);
    u.ctx.save();
    u.ctx.strokeStyle = u.ctx.fillStyle = variable("--soft");
    u.ctx.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
    u.ctx.beginPath();
    u.ctx.moveTo(u.bbox.left, y);
    u.ctx.lineTo(u.bbox.left + u.bbox.width, y);
    u.ctx.stroke();
    u.ctx.font = `${11 * devicePixelRatio}px ${variable("--text")}`;
    u.ctx.textAlign = "right";
    u.ctx.fillText(line.name, u.bbox.left + u.bbox.width - 6 * devicePixelRatio, y - 7 * devicePixelRatio);
    u.ctx.restore();
  }

  // Ones, twos and fives: what a logarithmic axis is labelled with.
  function decades(low, high) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power++) {
      for (const digit of [1, 2, 5]) found.push(Number(`${digit}e${power}`));
    }
    const inside = found.filter((value) => low <= value && value <= high);
    return inside.length > 6 ? inside.filter((value) => /^1(0*$|e)|^0\.0*1$/.test(String(value))) : inside;
  }

  // A line for each arm with a band around it: gradient norms along the run, activations by layer.
  function banded(container, chart) {
    const lines = chart.lines.filter((line) => !hidden.has(line.arm));
    const series = [{}];
    const fills = [];
    const points = { show: chart.axis === "layer", size: 6 };
    for (const line of lines) {
      const at = series.length;
      const edge = { stroke: "transparent", width: 0, points: { show: false } };
      const look = line.broken ? { width: 1.5, dash: [4, 4] } : { width: 1.5, dash: dash(line.arm) };
      series.push({ label: arms[line.arm].name, stroke: hue(line.arm), points: { ...points, stroke: hue(line.arm), fill: variable("--page") }, ...look }, edge, edge);
      fills.push({ series: [at + 2, at + 1], fill: hue(line.arm) + "2e" });
    }
    const table = lines.length ? uPlot.join(lines.map((line) => [line.x, line.mean, line.low, line.high])) : [[], []];
    const range = (u, low, high) => {
      if (low == null) return [1, 10];
      return chart.log ? [low / 1.3, high * 1.3] : padded(low, high);
    };
    const draw = (u) => {
      for (const line of lines.filter((line) => line.broken)) {
        const last = line.x.length - 1;
        cross(u, u.valToPos(line.x[last], "x", true), u.valToPos(line.mean[last], "y", true), hue(line.arm));
      }
    };
    const layers = chart.axis === "layer";
    const every = Math.ceil(table[0].length / 12); // layers that are named
    const whole = { splits: () => table[0].filter((layer) => layer % every === 0), filter: (u, splits) => splits };
    const logarithmic = { splits: (u, i, low, high) => decades(low, high), filter: (u, splits) => splits };
    return new uPlot(
      {
        width: container.clientWidth,
        height: container.clientHeight,
        legend: { show: false },
        cursor: { show: false },
        scales: {
          x: { time: false, range: (u, low, high) => (low == null ? [0, 1] : layers ? [low - 0.2, high + 0.2] : [low, high]) },
          y: { distr: chart.log ? 3 : 1, range },
        },
        axes: [
          axis({ label: chart.axis, labelSize: 22, size: 34, values: (u, at) => at.map(amount), ...(layers ? whole : {}) }),
          axis({ size: 52, values: (u, at) => at.map(amount), ...(chart.log ? logarithmic : {}) }),
        ],
        series,
        bands: fills,
        hooks: { draw: [draw] },
      },
      table,
      container,
    );
  }

  function tuning(container, chart, measured) {
    const at = chart.numeric ? chart.values : chart.values.map((_, i) => i);
    const [first, last] = [at[0], at[at.length - 1]];
    const reach = chart.log ? (last / first) ** 0.08 : 0.08 * (last - first || 1);
    const range = chart.log ? [first / reach, last * reach] : [first - reach, last + reach];
    const lines = chart.lines.filter((line) => !hidden.has(line.arm));
    const series = [{}];
    const columns = [at];
    for (const line of lines) {
      const colour = hue(line.arm);
      const points = { show: true, size: 7, stroke: colour, fill: variable("--page"), width: 1.5 };
      series.push({ label: arms[line.arm].name, stroke: colour, width: 1.5, dash: dash(line.arm), points, spanGaps: true });
      columns.push(line.scores.map((score, i) => (line.beyond.includes(i) ? null : score)));
      series.push({ stroke: "transparent", points: { show: true, size: 11, fill: colour, stroke: colour } });
      columns.push(line.scores.map((score, i) => (i === line.chosen ? score : null)));
    }
    const draw = (u) => {
      for (const line of lines) {
        [...line.diverged, ...line.beyond].forEach((i) => cross(u, u.valToPos(at[i], "x", true), u.bbox.top + 8 * devicePixelRatio, hue(line.arm)));
      }
    };
    const named = (value) => (chart.numeric ? amount(value) : chart.values[value]);
    return new uPlot(
      {
        width: container.clientWidth,
        height: container.clientHeight,
        legend: { show: false },
        cursor: { show: false },
        scales: { x: { time: false, distr: chart.log ? 3 : 1, range }, y: { range: (u, low, high) => padded(low, high) } },
        axes: [axis({ splits: () => at, filter: (u, splits) => splits, values: (u, splits) => splits.map(named), size: 34 }), vertical(measured)],
        series,
        hooks: { draw: [draw] },
      },
      columns,
      container,
    );
  }

  function padded(low, high) {
    if (low == null) return [0, 1];
    const pad = 0.12 * (high - low || 1);
    return [low - pad, high + pad];
  }

  function tell(group, values) {
    for (const [arm, value] of values) {
      document.querySelector(`[data-keys=${group}] [data-arm="${arm}"] output`).textContent = score(value);
    }
  }

  const place = (...names) => document.getElementById(names.join("-"));

  function draw() {
    charts.forEach((chart) => chart.destroy());
    steered = panels.map((panel, at) => (finals(panel), curves(place("curves-chart", at), panel)));
    charts = [...steered];
    panels.forEach((panel, at) => {
      panel.stability.forEach((chart, i) => charts.push(banded(place("stability-chart", at, i), chart)));
      panel.tuning.forEach((chart, i) => charts.push(tuning(place("tuning-chart", at, i), chart, panel.tuned)));
    });
  }

  function key(number, group) {
    const arm = arms[number];
    const button = document.createElement("button");
    button.type = "button";
    button.className = `key hue-${arm.hue}`;
    button.dataset.arm = number;
    button.setAttribute("aria-pressed", "true");
    const line = dashes[arm.dash % dashes.length].join(" ");
    button.innerHTML = `<svg aria-hidden="true"><line x1="0" x2="22" y1="5" y2="5" stroke-dasharray="${line}"/></svg><span></span>`;
    button.querySelector("span").textContent = arm.name;
    if (group === "curves") button.append(document.createElement("output"));
    button.addEventListener("click", () => toggle(number));
    return button;
  }

  function toggle(arm) {
    if (!hidden.delete(arm)) hidden.add(arm);
    for (const button of document.querySelectorAll(`.key[data-arm="${arm}"]`)) {
      button.setAttribute("aria-pressed", String(!hidden.has(arm)));
    }
    draw();
  }

  // Arrow keys move the cursor over the learning curves, as the mouse does.
  function steer(event, at) {
    const steps = { ArrowLeft: -1, ArrowRight: 1 };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const u = steered[at];
    const last = u.data[0].length - 1;
    const next = u.cursor.idx == null ? last : Math.max(0, Math.min(last, u.cursor.idx + steps[event.key]));
    u.setCursor({ left: u.valToPos(u.data[0][next], "x"), top: u.over.clientHeight / 2 });
  }

  for (const box of document.querySelectorAll("[data-keys]")) {
    box.append(...panels[box.dataset.panel].arms.map((arm) => key(arm, box.dataset.keys)));
  }
  for (const input of document.querySelectorAll(".controls input")) input.addEventListener("change", draw);
  document.querySelector(".controls").hidden = false;
  panels.forEach((panel, at) => place("curves-chart", at).addEventListener("keydown", (event) => steer(event, at)));
  for (const media of ["(prefers-color-scheme: dark)", "print"]) matchMedia(media).addEventListener("change", draw);
  let width = innerWidth;
  addEventListener("resize", () => innerWidth !== width && ((width = innerWidth), draw()));
  draw();
})();
