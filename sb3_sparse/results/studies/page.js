"use strict";
// Draws what the page's data hold, for the task and the filters that are chosen. All names in the data are plain text.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const colours = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17a3b8", "#a0604d", "#e377c2", "#7f7f7f", "#a8a917"];
  const dashes = ["solid", "dash", "dot", "dashdot"];
  const symbols = ["circle", "square", "diamond", "triangle-up", "x", "cross"];
  // Plotly reads some tags in its labels.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const short = (text, letters) => (text.length > letters ? text.slice(0, letters - 1) + "…" : text);
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const number = (value) => (Math.abs(value) >= 1e5 ? value.toLocaleString("en", { maximumFractionDigits: 0 })
    : String(Number(value.toPrecision(4))));
  const interval = (low, high) => (low === null ? "" : ` [${number(low)}, ${number(high)}]`);
  const narrow = () => window.innerWidth < 720;
  const look = (i) => ({ color: colours[i % colours.length], dash: dashes[Math.floor(i / colours.length) % dashes.length] });
  const task = () => data.tasks[find("task").value];

  function shown(group) {
    const off = document.querySelectorAll("#filters input:not(:checked)");
    return ![...off].some((box) => group.axes[box.dataset.axis] === box.value);
  }

  function layout(x, y, entries) {
    const text = style("--text"), grid = style("--grid");
    const axis = ({ title, isLog }) => ({
      title: { text: plain(short(title, 60)) }, type: isLog ? "log" : "linear", automargin: true, gridcolor: grid,
      zerolinecolor: grid, linecolor: grid, minorloglabels: "none",
    });
    const size = find("scaling").clientHeight || 480;
    // Below the plot on a narrow screen; it scrolls where there are many names.
    const below = { orientation: "h", x: 0, xanchor: "left", yref: "container", y: 0, yanchor: "bottom", font: { size: 11 } };
    return {
      font: { color: text, family: "sans-serif", size: 13 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 55, r: 12, t: narrow() ? 12 : 34, b: 50 }, hovermode: "closest", dragmode: narrow() ? false : "zoom",
      hoverlabel: { align: "left", namelength: -1, bgcolor: style("--soft"), font: { color: text, size: 12 } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: text, activecolor: colours[0] },
      xaxis: axis(x), yaxis: axis(y), showlegend: entries > 1, uirevision: task().name,
      legend: narrow() ? { ...below, maxheight: Math.round(size * 0.32) } : { font: { size: 12 }, tracegroupgap: 0 },
    };
  }

  function draw(id, traces, axes, entries, about) {
    const place = find(id);
    const isEmpty = !traces.length;
    find(`${id}-empty`).hidden = !isEmpty;
    place.hidden = isEmpty;
    if (isEmpty) return;
    place.setAttribute("aria-label", about);
    const config = {
      // Its button would send what is drawn to a server.
      showSendToCloud: false, plotlyServerURL: "",
      responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"],
      displayModeBar: narrow() ? false : "hover", toImageButtonOptions: { filename: id, scale: 2 },
    };
    Plotly.react(place, traces, layout(axes[0], axes[1], entries), config);
  }

  function groupText(group, title, value, low, high) {
    return [`<b>${plain(short(group.label, 60))}</b>`, `${plain(title)}: ${number(value)}${interval(low, high)}`];
  }

  function drawScaling() {
    const metric = find("metric").value, title = find("metric").selectedOptions[0].textContent;
    const horizontal = find("horizontal").value, groups = task().groups;
    const all = groups.map((group) => group.x[horizontal]);
    find("log-x").disabled = all.some((x) => x !== undefined && !(x > 0));
    const isLog = find("log-x").checked && !find("log-x").disabled;
    const traces = [];
    task().lines[horizontal].forEach(([name, members], i) => {
      const points = members.map((k) => groups[k]).filter((group) => shown(group) && group.values[metric]);
      if (!points.length) return;
      const values = points.map((group) => group.values[metric]);
      traces.push({
        name: plain(short(name, narrow() ? 40 : 60)), x: points.map((group) => group.x[horizontal]), y: values.map((v) => v[0]),
        mode: "lines+markers", line: look(i), marker: { size: 8, symbol: symbols[i % symbols.length], color: look(i).color },
        error_y: {
          type: "data", symmetric: false, thickness: 1.2, color: look(i).color, array: values.map((v) => (v[2] ?? v[0]) - v[0]),
          arrayminus: values.map((v) => v[0] - (v[1] ?? v[0])),
        },
        hoverinfo: "text",
        text: points.map((group, k) => [
          ...groupText(group, title, ...values[k].slice(0, 3)), `${group.n} run(s): ${values[k][3].map(number).join(" ")}`,
          plain(group.parameters),
        ].join("<br>")),
      });
    });
    const y = { title: `${title} (IQM)`, isLog: find("log-y").checked };
    draw("scaling", traces, [{ title: horizontal, isLog }, y], traces.length,
      `${title} against ${horizontal}, ${task().name}: ${traces.length} lines`);
  }

  function drawCurves(id, series, title, isLog) {
    const traces = [];
    let entries = 0;
    task().groups.forEach((group, i) => {
      const curve = group.curves[series];
      if (!curve || !shown(group)) return;
      const [x, mean, low, high] = curve, { color, dash } = look(i);
      if (low) {
        traces.push({
          x: [...x, ...[...x].reverse()], y: [...high, ...[...low].reverse()], fill: "toself", fillcolor: color, opacity: 0.18,
          line: { width: 0 }, mode: "lines", hoverinfo: "skip", showlegend: false, legendgroup: String(i),
        });
      }
      entries += 1;
      traces.push({
        x, y: mean, name: plain(short(group.label, narrow() ? 40 : 60)), legendgroup: String(i), line: { color, dash, width: 2 },
        mode: x.length < 3 ? "lines+markers" : "lines", hoverinfo: "text",
        text: x.map((step, k) => [...groupText(group, title, mean[k], low && low[k], low && high[k]),
          `${number(step)} timesteps, ${group.n} run(s)`].join("<br>")),
      });
    });
    draw(id, traces, [{ title: "timesteps", isLog: false }, { title, isLog }], entries,
      `${title} against timesteps, ${task().name}: ${entries} curves`);
  }

  function drawAll() {
    drawScaling();
    drawCurves("learning", "return", "evaluation return", false);
    if (find("series")) {
      const chosen = find("series").selectedOptions[0];
      drawCurves("plasticity", find("series").value, chosen.textContent, find("log-series").checked);
    }
    document.querySelectorAll("[data-task]").forEach((table) => {
      table.hidden = table.dataset.task !== find("task").value;
      table.querySelectorAll("tr").forEach((row, i) => {
        if (i) row.hidden = !shown(data.tasks[table.dataset.task].groups[i - 1]);
      });
    });
  }

  if (!data.tasks.length) return;
  document.querySelectorAll("select, input").forEach((control) => control.addEventListener("change", drawAll));
  find("horizontal").addEventListener("change", () => {
    find("log-x").checked = data.parameters.includes(find("horizontal").value);
    drawScaling();
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  window.matchMedia("(max-width: 719px)").addEventListener("change", drawAll);
  drawAll();
})();
