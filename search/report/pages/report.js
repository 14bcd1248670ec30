"use strict";
// Draws the plots of a study's page from the JSON beside it, and makes its table sortable.
// Names come from users: `esc` any text before plotly reads it as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const esc = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  // Cut in the middle: names differ at their ends.
  const short = (text, most) => {
    const end = Math.floor(most / 2);
    return text.length > most ? `${text.slice(0, most - end - 1)}…${text.slice(-end)}` : text;
  };
  const narrow = () => window.innerWidth < 600;
  const OPTIONS = { responsive: true, displaylogo: false, displayModeBar: false };

  function layout(extra) {
    const axis = () => ({ gridcolor: color("line"), linecolor: color("line"), zerolinecolor: color("line"), automargin: true });
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", height: narrow() ? 320 : 380,
      font: { family: "system-ui, sans-serif", size: narrow() ? 11 : 13, color: color("ink") },
      margin: { l: 50, r: 15, t: 20, b: 45 }, hoverlabel: { align: "left" }, showlegend: false,
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, dragmode: false,
      ...extra,
      xaxis: { ...axis(), ...(extra.xaxis || {}) }, yaxis: { ...axis(), ...(extra.yaxis || {}) },
    };
  }

  const plot = (id, traces, extra) => Plotly.react(id, traces, layout(extra), OPTIONS);

  function part(id, isThere) {
    $(id).hidden = !isThere;
    for (const link of document.querySelectorAll(`[data-part="${id}"]`)) link.hidden = !isThere;
    return isThere;
  }

  const MARKS = {
    winner: { color: "blue", symbol: "star", size: 15, title: "winner" },
    parent: { color: "orange", symbol: "square", size: 10, title: "parent" },
    baseline: { color: "purple", symbol: "diamond", size: 9, title: "other baseline" },
    candidate: { color: "grey", symbol: "circle", size: 6, title: "candidate" },
    variant: { color: "green", symbol: "triangle-up", size: 9, title: "simplified winner" },
  };

  function progress() {
    const { dots, best, lines } = data.progress;
    if (!part("progress-part", dots.length)) return;
    const text = dots.map((d) => `${esc(d[2])}: ${d[1].toFixed(4)}${d[3] ? " (stopped early)" : ""}`);
    const traces = [
      { x: dots.map((d) => d[0]), y: dots.map((d) => d[1]), text, hoverinfo: "text", mode: "markers", name: "candidate",
        marker: { size: 6, color: color("grey"), symbol: dots.map((d) => (d[3] ? "circle-open" : "circle")) } },
      { x: best.map((d) => d[0]), y: best.map((d) => d[1]), text: best.map((d) => esc(d[2])), mode: "lines",
        hoverinfo: "y+text", name: "best so far", line: { shape: "hv", color: color("blue"), width: 3 } },
    ];
    const dashes = { parent: "dot", uniform: "dash" };
    const end = dots[dots.length - 1][0];
    for (const line of lines) {
      const kind = line.label.includes("parent") ? "parent" : line.label;
      const name = line.label === line.name ? line.label : `${line.label}: ${line.name.replace(/^parent:/, "")}`;
      traces.push({ x: [0, end], y: [line.value, line.value], mode: "lines", hoverinfo: "y+name", name: esc(short(name, 40)),
        line: { color: color(kind === "parent" ? "orange" : kind === "uniform" ? "green" : "purple"), dash: dashes[kind] || "dashdot", width: 2 } });
    }
    plot("progress", traces, { showlegend: true, xaxis: { title: { text: "search items scored" }, rangemode: "tozero" }, yaxis: { title: { text: "search score" } } });
  }

  // Layer groups become cells: a row per parent and module kind, a column per layer.
  function grid(recipe, values) {
    const place = recipe.groups.map((group) => group.match(/^layers\.(\d+)\.(.+)$/));
    const layers = [...new Set(place.filter(Boolean).map((m) => Number(m[1])))].sort((a, b) => a - b).map(String);
    const ends = recipe.groups.filter((_, i) => !place[i]);
    const first = ends.filter((g) => recipe.groups.indexOf(g) < place.findIndex(Boolean));
    const columns = [...first, ...layers, ...ends.filter((g) => !first.includes(g))];
    const kinds = [...new Set(place.filter(Boolean).map((m) => m[2]))];
    if (!kinds.length) kinds.push("all");
    const rows = recipe.parents.flatMap((parent) => kinds.map((kind) => `${parent} · ${kind}`));
    const z = rows.map(() => columns.map(() => null));
    recipe.groups.forEach((group, g) => {
      recipe.parents.forEach((_, p) => {
        const m = place[g];
        const inKinds = m ? [kinds.indexOf(m[2])] : kinds.map((_, k) => k);
        for (const k of inKinds) z[p * kinds.length + k][columns.indexOf(m ? String(Number(m[1])) : group)] = values[g][p];
      });
    });
    return { columns, rows, z };
  }

  function heat(id, recipe, values, title) {
    const { columns, rows, z } = grid(recipe, values);
    const few = columns.length <= (narrow() ? 7 : 20);
    const flat = z.flat().filter((v) => v !== null);
    plot(id, [{ type: "heatmap", x: columns, y: rows.map((row) => esc(short(row, narrow() ? 16 : 40))), z, colorscale: "Cividis",
      zmin: Math.min(0, ...flat), zmax: Math.max(...flat, Math.min(0, ...flat) + 0.01), xgap: 1, ygap: 1,
      hovertemplate: "%{y}, layer %{x}: %{z:.3f}<extra></extra>", texttemplate: few ? "%{z:.2f}" : "",
      colorbar: { thickness: 12, title: { text: title, side: "right" }, outlinewidth: 0 } }],
    { height: 90 + 34 * rows.length, xaxis: { type: "category", title: { text: "layer" } }, yaxis: { type: "category", autorange: "reversed" } });
  }

  function weights() {
    if (!part("weights-part", data.recipes.length)) return;
    const recipe = data.recipes[Number($("recipe").value) || 0];
    heat("weights", recipe, recipe.weights, "weight");
    const drops = recipe.drop_rates.flat().some((rate) => rate > 0);
    $("drop_rates").hidden = !drops;
    if (drops) heat("drop_rates", recipe, recipe.drop_rates, "drop rate");
  }

  function pairs() {
    if (!part("pairs-part", data.pairs.length)) return;
    const { x, y, split, items, marks } = data.pairs[Number($("pair").value) || 0];
    const bars = (own, at) => ({ array: own.map((m) => m[at] ?? 0), visible: split === "confirm", color: color("grey"), thickness: 1, width: 0 });
    const traces = ["candidate", "variant", "baseline", "parent", "winner"].map((kind) => {
      const own = marks.filter((m) => m[5] === kind);
      const style = MARKS[kind];
      const shown = (value, half) => value.toFixed(4) + (half == null ? "" : ` ± ${half.toFixed(4)}`);
      return { x: own.map((m) => m[0]), y: own.map((m) => m[1]), text: own.map((m) => `${esc(m[4])}<br>${shown(m[0], m[2])}, ${shown(m[1], m[3])}`),
        hoverinfo: "text", mode: "markers", name: style.title, error_x: bars(own, 2), error_y: bars(own, 3),
        marker: { color: color(style.color), symbol: style.symbol, size: style.size, opacity: kind === "candidate" && split === "search" ? 0.6 : 1 } };
    }).filter((trace) => trace.x.length);
    const front = marks.filter((m) => m[6]).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    traces.unshift({ x: front.map((m) => m[0]), y: front.map((m) => m[1]), mode: "lines", name: "front", hoverinfo: "skip", line: { color: color("blue"), width: 1.5, dash: "dot" } });
    plot("pairs", traces, { showlegend: true, height: narrow() ? 380 : 460, hovermode: "closest", xaxis: { title: { text: esc(x) } }, yaxis: { title: { text: esc(y) } } });
    const line = "The dotted line is the Pareto front.";
    $("pairs-caption").textContent = split === "confirm"
      ? `Scores on up to ${items} confirm items per task, which the search never saw, with 95 % intervals: the best candidates and all baselines. ${line}`
      : `Scores on up to ${items} search items per task, by which candidates were selected, so the best are biased upwards. Scores of candidates that were stopped early are estimates and not on the front. ${line}`;
  }

  function forest() {
    if (!part("forest-part", data.forest.some((f) => f.rows.length))) return;
    data.forest.forEach((entry, i) => {
      const id = `forest-${i}`;
      if (!$(id)) {
        const div = Object.assign(document.createElement("div"), { id, className: "plot" });
        div.setAttribute("role", "img");
        div.setAttribute("aria-label", `Confirm scores on ${entry.task} with intervals`);
        $("forest").append(div);
      }
      const rows = entry.rows;
      const labels = rows.map((row) => `${esc(short(row.name, narrow() ? 22 : 45))}`);
      plot(id, [{ x: rows.map((r) => r.value), y: rows.map((_, n) => n), mode: "markers", hoverinfo: "text",
        text: rows.map((r) => `${esc(r.name)}: ${r.value?.toFixed(4)} ± ${r.half?.toFixed(4)}`),
        error_x: { array: rows.map((r) => r.half), color: color("grey"), thickness: 1.5, width: 3 },
        marker: { opacity: 1, size: rows.map((r) => Math.max(MARKS[r.kind].size * 0.9, 8)), symbol: rows.map((r) => MARKS[r.kind].symbol), color: rows.map((r) => color(MARKS[r.kind].color)) } }],
      { height: 110 + 20 * rows.length, margin: { l: 50, r: 15, t: 40, b: 40 }, title: { text: esc(entry.task), font: { size: 14 }, x: 0, xanchor: "left" }, yaxis: { tickvals: rows.map((_, n) => n), ticktext: labels, autorange: "reversed" } });
    });
  }

  function genes() {
    if (!part("genes-part", data.genes.length || data.estimated)) return;
    estimated(data.estimated);
    const rows = data.genes;
    $("genes-figure").hidden = !rows.length;
    if (!rows.length) return;
    plot("genes", [{ x: rows.map((g) => g.value), y: rows.map((_, n) => n), mode: "markers", hoverinfo: "text",
      text: rows.map((g) => `${esc(g.name)}: ${g.value?.toFixed(4)}, p ${g.p?.toPrecision(2)}`),
      error_x: { symmetric: false, array: rows.map((g) => g.high - g.value), arrayminus: rows.map((g) => g.value - g.low), color: color("grey"), thickness: 1.5, width: 3 },
      marker: { size: 10, color: color("blue"), symbol: rows.map((g) => (g.matters ? "circle" : "circle-open")) } }],
    { ...byName(rows), xaxis: { zeroline: true, zerolinecolor: color("ink"), title: { text: "change when reset" } } });
  }

  // One row per name, from the top.
  const byName = (rows) => ({ height: 90 + 22 * rows.length, yaxis: { tickvals: rows.map((_, n) => n), ticktext: rows.map((g) => esc(short(g.name, narrow() ? 24 : 50))),
    range: [rows.length - 0.4, -0.6] } });

  function estimated(estimate) {
    $("estimated-figure").hidden = !estimate;
    if (!estimate) return;
    const rows = estimate.genes;
    plot("estimated", [{ x: rows.map((g) => g.share), y: rows.map((_, n) => n), mode: "markers", hoverinfo: "text",
      text: rows.map((g) => `${esc(g.name)}: ${(100 * g.share).toFixed(1)} % (${(100 * g.low).toFixed(1)} to ${(100 * g.high).toFixed(1)})`),
      error_x: { symmetric: false, array: rows.map((g) => g.high - g.share), arrayminus: rows.map((g) => g.share - g.low), color: color("grey"), thickness: 1.5, width: 3 },
      marker: { size: 9, color: color("green"), symbol: rows.map((g) => (g.shown ? "square" : "square-open")) } }],
    { ...byName(rows), shapes: [{ type: "line", x0: estimate.chance, x1: estimate.chance, yref: "paper", y0: 0, y1: 1, line: { color: color("ink"), width: 1, dash: "dot" } }],
      xaxis: { rangemode: "tozero", tickformat: ".0%", title: { text: "share of explained differences" } } });
    const more = estimate.more ? ` ${estimate.more} genes with smaller shares are not shown.` : "";
    $("estimated-caption").textContent = `Estimated from all ${estimate.trials} trials: the share of the differences in search score that a random forest explains by each gene; `
      + "bars: the range over forests on bootstrap samples of the trials. The dotted line is the largest share of any permuted gene, which can have no effect; filled: above it in every forest. "
      + "A hint, not a test: genes do not vary independently in a search, so one may get the share of another, and scores of candidates that were stopped early are estimates." + more;
  }

  function funnel() {
    const rungs = data.funnel;
    if (!part("funnel-part", rungs.length)) return;
    plot("funnel", [{ type: "bar", orientation: "h", y: rungs.map((r) => `${r.items} items`), x: rungs.map((r) => r.candidates), hoverinfo: "x+y",
      text: rungs.map((r) => String(r.candidates)), textposition: "auto", marker: { color: color("blue") } }],
    { height: 90 + 34 * rungs.length, xaxis: { title: { text: "candidates" } }, yaxis: { type: "category", autorange: "reversed" } });
  }

  function options(id, names) {
    names.forEach((name, i) => $(id).add(new Option(name, String(i))));
    $(id).parentElement.hidden = names.length < 2;
  }

  function drawAll() {
    for (const draw of [progress, weights, pairs, forest, genes, funnel]) draw();
  }

  function follow() {
    const box = $("follow");
    if (!box) return;
    box.checked = window.location.hash === "#follow";
    if (box.checked) setTimeout(() => box.checked && window.location.reload(), 30000);
    box.addEventListener("change", () => {
      window.history.replaceState(null, "", box.checked ? "#follow" : "#");
      if (box.checked) setTimeout(() => box.checked && window.location.reload(), 30000);
    });
  }

  function table() {
    DataTable.ext.errMode = "throw";
    const board = new DataTable("#board", {
      order: [], columnDefs: [{ targets: "number", orderSequence: ["desc", "asc", ""] }], pageLength: 25, lengthMenu: [10, 25, 100, { label: "all", value: -1 }], autoWidth: false,
      language: { search: "Filter:", info: "_START_ to _END_ of _TOTAL_ rows", infoFiltered: "(of _MAX_)", lengthMenu: "_MENU_ rows per page" },
    });
    // The table alone scrolls sideways, not the fields around it.
    const box = document.querySelector(".scroll");
    const inner = document.querySelector(".dt-layout-table");
    for (const name of ["tabindex", "role", "aria-label"]) {
      inner.setAttribute(name, box.getAttribute(name));
      box.removeAttribute(name);
    }
    box.classList.replace("scroll", "scrolled");
    inner.classList.add("scroll");
    const verdicts = $("verdicts");
    if (!verdicts) return;
    for (const verdict of [...new Set(board.column(2).data().toArray())].sort()) verdicts.add(new Option(verdict, verdict));
    verdicts.addEventListener("change", () => {
      board.column(2).search(verdicts.value ? `^${verdicts.value}$` : "", true, false).draw();
    });
  }

  table();
  if (data.progress) {
    options("recipe", data.recipes.map((recipe) => recipe.name));
    options("pair", data.pairs.map((pair) => `${pair.split} items: ${pair.x} · ${pair.y}`));
    $("recipe").addEventListener("change", weights);
    $("pair").addEventListener("change", pairs);
    drawAll();
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
    window.matchMedia("print").addEventListener("change", drawAll);
    follow();
  }
  document.documentElement.dataset.drawn = "yes";
})();
