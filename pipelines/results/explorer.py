"""One self-contained page to explore what a run confuses; MLflow shows it inline as an HTML artifact."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """
    A confusion matrix to choose on the page: **counts** (C, C), rows actual, columns predicted.

    **figures**: of each class precision, recall and F1 in per cent, None where undefined, and images.
    """

    name: str
    counts: NDArray[np.int64]
    figures: Sequence[tuple[float | None, float | None, float | None, int]]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A learning curve: mean training loss and training error (%) after so many passes over the training images."""

    name: str
    epochs: Sequence[float]
    loss: Sequence[float | None]
    error: Sequence[float | None]


def explorer_page(
    *,
    title: str,
    facts: Mapping[str, str],
    classes: Sequence[str],
    matrices: Sequence[Matrix],
    curves: Sequence[Curve],
) -> str:
    """
    Build the page: the matrices as a heat map that answers to the pointer, the classes' table, the learning curves.

    **facts** stand under the title in their order; the first of **matrices** is the one shown first, of several that
    of all seeds.
    """
    data: dict[str, Any] = {
        "classes": list(classes),
        "matrices": [
            {"name": matrix.name, "cells": sparse(matrix.counts), "classes": matrix.figures} for matrix in matrices
        ],
        "curves": [
            {
                "name": curve.name,
                "epochs": list(curve.epochs),
                "loss": finite(curve.loss),
                "error": finite(curve.error),
            }
            for curve in curves
        ],
    }
    rows = "".join(f"<div><dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd></div>" for k, v in facts.items())
    payload = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    page = PAGE.replace("@TITLE@", html.escape(title)).replace("@FACTS@", rows)
    return page.replace("@DATA@", payload)


def sparse(counts: NDArray[np.int64]) -> list[list[int]]:
    """``[actual, predicted, count]`` of each cell that is not empty."""
    return [[int(row), int(column), int(counts[row, column])] for row, column in zip(*np.nonzero(counts), strict=True)]


def finite(values: Sequence[float | None]) -> list[float | None]:
    """JSON knows no NaN and no infinity: they become gaps in the curve."""
    return [None if value is None or not np.isfinite(value) else float(value) for value in values]


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>@TITLE@</title>
<style>
:root { color-scheme: light; --ink: #16202b; --soft: #51606f; --line: #dde4ea; --accent: #08519c; --wrong: #b3261e; }
* { box-sizing: border-box; }
body { margin: 0; padding: 16px 20px 28px; font: 14px/1.45 system-ui, sans-serif; color: var(--ink); background: #fff; }
h1 { font-size: 20px; margin: 0 0 4px; }
h2 { font-size: 14px; margin: 0 0 8px; }
dl { display: flex; flex-wrap: wrap; gap: 2px 22px; margin: 0 0 14px; }
dl div { display: flex; gap: 6px; } dt { color: var(--soft); } dd { margin: 0; font-variant-numeric: tabular-nums; }
main { display: grid; grid-template: "map cell" auto "map rest" 1fr / minmax(0, 560px) minmax(340px, 1fr); }
main { gap: 18px 28px; align-items: start; }
#matrix { grid-area: map; } #cell { grid-area: cell; } #rest { grid-area: rest; min-width: 0; }
@media (max-width: 760px) {
  main { grid-template: "map" "cell" "rest" / minmax(0, 1fr); gap: 12px; }
  #matrix { max-width: 420px; }
}
.bar { display: flex; flex-wrap: wrap; gap: 8px 16px; align-items: center; margin-bottom: 8px; }
select { font: inherit; padding: 2px 6px; border: 1px solid var(--line); border-radius: 6px; background: #fff; }
canvas { display: block; width: 100%; touch-action: manipulation; outline-offset: 3px; border-radius: 4px; }
#cell { min-height: 108px; padding: 10px 12px; border: 1px solid var(--line); border-radius: 8px; }
#cell b { font-size: 16px; } #cell p { margin: 2px 0 0; color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 3px 6px; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); cursor: pointer; user-select: none; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tr.on td { background: #eaf2fa; } .wrong { color: var(--wrong); } .right { color: var(--accent); }
.scroll { max-height: 420px; overflow: auto; margin-bottom: 18px; }
svg { width: 100%; height: auto; display: block; } svg text { font-size: 11px; fill: var(--soft); }
.legend { display: flex; flex-wrap: wrap; gap: 2px 12px; color: var(--soft); font-size: 12px; }
.legend i { display: inline-block; width: 14px; height: 3px; border-radius: 2px; margin-right: 5px; }
.legend i { vertical-align: 3px; }
</style>
</head>
<body>
<h1>@TITLE@</h1>
<dl>@FACTS@</dl>
<main>
<section id="matrix">
  <div class="bar"><h2 style="margin:0">Confusion matrix</h2>
    <label id="chooser">of <select id="which"></select></label>
    <label>cells <select id="unit">
      <option value="share">share of the row, %</option><option value="count">count</option>
    </select></label>
  </div>
  <canvas id="map" tabindex="0" aria-label="Confusion matrix; the arrow keys move between cells"></canvas>
</section>
<div id="cell" aria-live="polite"></div>
<section id="rest">
  <h2 id="about">Classes</h2>
  <div class="scroll"><table><thead><tr></tr></thead><tbody></tbody></table></div>
  <div id="curves"><div class="bar"><h2 style="margin:0">Learning curve</h2>
    <select id="metric">
      <option value="loss">training loss</option><option value="error">training error, %</option>
    </select>
  </div><svg viewBox="0 0 560 230" role="img" aria-label="Learning curve"></svg><div class="legend"></div></div>
</section>
</main>
<script id="data" type="application/json">@DATA@</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const names = data.classes, C = names.length, $ = q => document.querySelector(q);
const HUES = ["#08519c", "#c2571a", "#2a7f4f", "#8c3b8f", "#b3261e", "#5b6770", "#0d8a8f", "#8a6d00", "#4452b8"];
let counts, rows, columns, figures, worst, picked = null, locked = false, order = {key: "recall", up: true};

function choose(index) {
  counts = Array.from({length: C}, () => new Float64Array(C));
  for (const [r, c, n] of data.matrices[index].cells) counts[r][c] = n;
  rows = counts.map(row => row.reduce((a, b) => a + b, 0));
  columns = names.map((_, c) => counts.reduce((a, row) => a + row[c], 0));
  $("#about").textContent = data.matrices.length > 1 && +index === 0 ? "Classes, mean over seeds" : "Classes";
  figures = data.matrices[index].classes.map(([precision, recall, f1, support]) => ({precision, recall, f1, support}));
  worst = data.matrices[index].cells.filter(([r, c]) => r !== c).sort((a, b) => b[2] - a[2])[0] || null;
}
const percent = x => x === null || !isFinite(x) ? "–"
  : x > 0 && x < 0.05 ? "<0.1" : x < 100 && x >= 99.95 ? "99.9" : x.toFixed(1);
const number = n => n.toLocaleString("en");
// Five stops of the sequential map of the figures, from white to dark blue.
const STOPS = [[255, 255, 255], [198, 219, 239], [107, 174, 214], [33, 113, 181], [8, 48, 107]];
function colour(t) {
  const x = Math.min(0.9999, Math.max(0, t)) * 4, i = Math.floor(x), f = x - i;
  return `rgb(${STOPS[i].map((v, k) => Math.round(v + f * (STOPS[i + 1][k] - v)))})`;
}
const canvas = $("#map"), ink = canvas.getContext("2d");
let box = null;
function draw() {
  const width = canvas.clientWidth || 520, ratio = window.devicePixelRatio || 1, named = C <= 40;
  ink.font = "12px system-ui, sans-serif";
  const margin = named ? Math.min(width / 3, 26 + Math.max(...names.map(n => ink.measureText(n).width))) : 22;
  const size = (width - margin - 2) / C, slant = named && margin > 44;
  const foot = slant ? margin * 0.72 + 16 : 36;
  canvas.width = width * ratio; canvas.height = (size * C + foot) * ratio; canvas.style.height = size * C + foot + "px";
  ink.setTransform(ratio, 0, 0, ratio, 0, 0);
  ink.fillStyle = "#fff"; ink.fillRect(0, 0, width, size * C + foot);
  box = {margin, size};
  const unit = $("#unit").value;
  for (let r = 0; r < C; r++) for (let c = 0; c < C; c++) {
    const n = counts[r][c], share = n / (rows[r] || 1), x = margin + c * size, y = r * size;
    const gap = size > 8 ? 1 : 0;
    ink.fillStyle = n ? colour(0.06 + 0.94 * Math.sqrt(share)) : "#f6f8fa"; ink.fillRect(x, y, size - gap, size - gap);
    if (n && size >= 24) {
      ink.fillStyle = Math.sqrt(share) > 0.55 ? "#fff" : "#16202b";
      ink.font = `${r === c ? "600 " : ""}${Math.min(13, size / 2.9)}px system-ui, sans-serif`;
      ink.textAlign = "center"; ink.textBaseline = "middle";
      ink.fillText(unit === "count" ? number(n) : percent(100 * share), x + size / 2, y + size / 2);
    }
  }
  ink.fillStyle = "#51606f"; ink.font = "12px system-ui, sans-serif";
  if (named) for (let i = 0; i < C; i++) {
    ink.textAlign = "right"; ink.textBaseline = "middle"; ink.fillText(names[i], margin - 6, i * size + size / 2);
    ink.save(); ink.translate(margin + i * size + size / 2, size * C + 6);
    if (slant) { ink.rotate(-0.7); ink.textAlign = "right"; } else { ink.textAlign = "center"; }
    ink.textBaseline = "top"; ink.fillText(names[i], 0, 0); ink.restore();
  }
  ink.textAlign = "center"; ink.textBaseline = "bottom";
  ink.fillText("predicted", margin + size * C / 2, size * C + foot - 1);
  ink.save(); ink.translate(0, size * C / 2); ink.rotate(-Math.PI / 2); ink.textBaseline = "top";
  ink.fillText("actual", 0, 0); ink.restore();
  if (picked) {
    ink.strokeStyle = "#e07b00"; ink.lineWidth = 2;
    ink.strokeRect(margin + picked[1] * size, picked[0] * size, size, size);
  }
}
function tell() {
  if (!picked && !worst) { $("#cell").innerHTML = "<p>Point at a cell, or click to hold it.</p>"; return; }
  const [r, c] = picked || worst, n = counts[r][c], right = r === c;
  const total = rows.reduce((a, b) => a + b, 0), errors = total - counts.reduce((a, row, i) => a + row[i], 0);
  $("#cell").innerHTML = `<b class="${right ? "right" : "wrong"}"></b><p></p><p></p><p></p>`;
  const [head, share, rest, hint] = $("#cell").children;
  head.textContent = right ? `${names[r]} recognised: ${number(n)}` : `${names[r]} taken for ${names[c]}: ${number(n)}`;
  share.textContent = `${percent(100 * n / rows[r])} % of the ${number(rows[r])} images of ${names[r]}; `
    + `${percent(100 * n / columns[c])} % of the ${number(columns[c])} predictions of ${names[c]}`;
  rest.textContent = right ? `Recall ${percent(figures[r].recall)} %, precision ${percent(figures[r].precision)} %`
    : `${percent(100 * n / errors)} % of all ${number(errors)} errors; the other way round: ${number(counts[c][r])}`;
  hint.textContent = picked ? "" : "The most frequent error. Point at a cell to read it, click to hold it.";
}
function table() {
  const heads = [["name", "class"], ["precision", "precision"], ["recall", "recall"], ["f1", "F1"]];
  heads.push(["support", "images"]);
  const body = names.map((name, i) => ({i, name, ...figures[i]}));
  const rank = row => order.key === "name" ? row.i : row[order.key] || 0;
  body.sort((a, b) => (order.up ? 1 : -1) * (rank(a) - rank(b)));
  $("thead tr").replaceChildren(...heads.map(([key, label]) => {
    const th = document.createElement("th");
    th.textContent = label + (order.key === key ? (order.up ? " ▴" : " ▾") : "");
    th.onclick = () => { order = {key, up: order.key === key ? !order.up : true}; table(); };
    return th;
  }));
  $("tbody").replaceChildren(...body.map(row => {
    const tr = document.createElement("tr");
    if (picked && picked[0] === row.i) tr.className = "on";
    for (const text of [row.name, percent(row.precision), percent(row.recall), percent(row.f1), number(row.support)])
      tr.appendChild(document.createElement("td")).textContent = text;
    return tr;
  }));
}
function pick(cell) { picked = cell; draw(); tell(); table(); }
function under(event) {
  const area = canvas.getBoundingClientRect();
  const c = Math.floor((event.clientX - area.left - box.margin) / box.size);
  const r = Math.floor((event.clientY - area.top) / box.size);
  return r >= 0 && c >= 0 && r < C && c < C ? [r, c] : null;
}
canvas.onmousemove = event => {
  const cell = under(event);
  if (!locked && String(cell) !== String(picked)) pick(cell);
};
canvas.onmouseleave = () => { if (!locked) pick(null); };
canvas.onclick = event => {
  const cell = under(event), same = locked && String(cell) === String(picked);
  locked = cell !== null && !same; pick(cell);
};
canvas.onkeydown = event => {
  const step = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
  if (!step) return;
  event.preventDefault(); locked = true;
  const [r, c] = picked || [0, 0];
  pick(picked ? [Math.min(C - 1, Math.max(0, r + step[0])), Math.min(C - 1, Math.max(0, c + step[1]))] : [0, 0]);
};
function ticks(low, high) {
  const raw = (high - low) / 4, power = 10 ** Math.floor(Math.log10(raw || 1));
  const step = [1, 2, 2.5, 5, 10].map(m => m * power).find(s => s >= raw) || power;
  const out = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + 1e-9 * step; v += step) out.push(+v.toPrecision(12));
  return out;
}
function curve() {
  const key = $("#metric").value, drawn = data.curves.filter(k => k[key].some(v => v !== null));
  if (!data.curves.some(k => k.epochs.length)) { $("#curves").hidden = true; return; }
  const values = drawn.flatMap(k => k[key].filter(v => v !== null));
  const last = Math.max(...drawn.flatMap(k => k.epochs));
  const high = Math.max(1e-12, ...values), X = e => 46 + 500 * e / last, Y = v => 196 - 182 * v / high;
  let out = "";
  for (const v of ticks(0, high)) out += `<line x1="46" x2="546" y1="${Y(v)}" y2="${Y(v)}" stroke="#e7ecf1"/>`
    + `<text x="40" y="${Y(v) + 4}" text-anchor="end">${v}</text>`;
  for (const e of ticks(0, last)) out += `<text x="${X(e)}" y="212" text-anchor="middle">${e}</text>`;
  out += `<text x="296" y="226" text-anchor="middle">epochs, passes over the training images</text>`;
  drawn.forEach((k, i) => {
    const place = (e, v) => v === null ? null : [X(e).toFixed(1), Y(v).toFixed(1)];
    const points = k.epochs.map((e, j) => place(e, k[key][j])).filter(Boolean), hue = HUES[i % HUES.length];
    out += `<polyline fill="none" stroke="${hue}" stroke-width="1.8" points="${points.join(" ")}"/>`;
    if (points.length < 30) for (const [x, y] of points) out += `<circle cx="${x}" cy="${y}" r="2.4" fill="${hue}"/>`;
  });
  $("svg").innerHTML = out;
  $(".legend").replaceChildren(...drawn.map((k, i) => {
    const item = document.createElement("span"), mark = document.createElement("i");
    mark.style.background = HUES[i % HUES.length]; item.append(mark, k.name); return item;
  }));
}
$("#which").replaceChildren(...data.matrices.map((m, i) => new Option(m.name, i)));
$("#chooser").hidden = data.matrices.length < 2;
$("#which").onchange = event => { choose(event.target.value); pick(picked); };
$("#unit").onchange = draw; $("#metric").onchange = curve;
new ResizeObserver(draw).observe(canvas.parentElement);
choose(0); pick(null); curve();
</script>
</body>
</html>
"""
