"use strict";
// The explorer: draws FIGURES, at the end of this file, into #figures from the JSON in #data. The report shows all
// benchmarks, an artifact of MLflow one. Text reaches the page only as text nodes and attributes, never as markup.
// Sets data-state="ready" on <html> when all is drawn, "failed" when it could not be.
(() => {
  window.addEventListener("error", (event) => fail(event.message));
  window.addEventListener("unhandledrejection", (event) => fail(event.reason));
  const data = JSON.parse(document.getElementById("data").textContent);

  // ---- elements -------------------------------------------------------------------------------------------------------

  function set(element, attributes) {
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value === true) element.setAttribute(name, "");
      else if (value !== false && value != null) element.setAttribute(name, value);
    }
    return element;
  }

  const make = (space) => (name, attributes = {}, ...children) => {
    const element = set(document.createElementNS(space, name), attributes);
    element.append(...children);
    return element;
  };
  const el = make("http://www.w3.org/1999/xhtml");
  const svg = make("http://www.w3.org/2000/svg");

  // `options` are [key, words]; a list of options in place of words is a group.
  function select(label, options, value, change) {
    const list = el("select", { onchange: () => change(list.value) });
    const option = ([key, words]) => (Array.isArray(words) ? el("optgroup", { label: key }, ...words.map(option))
      : el("option", { value: key, selected: key === value }, words));
    list.append(...options.map(option));
    return el("label", {}, label, list);
  }

  function check(label, checked, change) {
    const box = el("input", { type: "checkbox", checked, onchange: () => change(box.checked) });
    return el("label", {}, box, label);
  }

  // Draws what is in `root` anew; the focus stays on the control at the same place.
  function keepFocus(root, redraw) {
    const controls = () => [...root.querySelectorAll("select, button")];
    const at = controls().indexOf(document.activeElement);
    redraw();
    controls()[at]?.focus({ preventScroll: true });
  }

  const number = (value) => value.toLocaleString("en-US");
  const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)} %`;
  const seedsOf = (count) => (count === 1 ? "1 seed" : `${count} seeds`);
  const meanOf = (values) => values.reduce((a, b) => a + b, 0) / values.length;
  const FEW = 3; // seeds; the figures of fewer are listed, since a mean alone hides how far they are apart
  const listed = (values, show) => (values.length < FEW ? values : [meanOf(values)]).map(show).join(", ");
  const errorOf = (benchmark) => meanOf(Object.values(benchmark.errors));

  // ---- confusion matrices ---------------------------------------------------------------------------------------------

  const view = { counts: false, linked: true, panes: [] };

  function chooseBenchmark(benchmark, change) {
    const ranked = [...data.benchmarks].sort((a, b) => errorOf(a) - errorOf(b));
    const groups = [...new Set(data.benchmarks.map((b) => b.dataset))].map((dataset) => (
      [dataset, ranked.filter((b) => b.dataset === dataset).map(({ name }) => [name, name])]));
    return select("Benchmark, best first", groups, benchmark.name, (name) => change(data.benchmarks.find((b) => b.name === name)));
  }

  function sum(matrices) {
    return matrices.reduce((total, m) => total.map((row, i) => row.map((value, j) => value + m[i][j])));
  }

  function counts(pane) {
    const { matrices } = pane.benchmark;
    return pane.seed === "all" ? sum(Object.values(matrices)) : matrices[pane.seed];
  }

  function share(matrix, row, column) {
    const total = matrix[row].reduce((a, b) => a + b, 0);
    return total ? matrix[row][column] / total : 0;
  }

  // The same tint means the same share in every matrix, so that two may be compared by eye.
  function strength(value, hit) {
    if (value === 0) return 0;
    return hit ? 0.12 + 0.83 * value * value : Math.min(0.95, Math.pow(value / 0.25, 0.45));
  }

  function words(pane, matrix, row, column) {
    const { classes, seeds } = pane.benchmark;
    const verb = row === column ? "recognised as" : "taken for";
    const total = matrix[row].reduce((a, b) => a + b, 0);
    return `${classes[row]} ${verb} ${classes[column]}: ${number(matrix[row][column])} of ${number(total)}`
      + ` (${percent(share(matrix, row, column), 2)})${pane.seed === "all" && seeds.length > 1 ? `, ${seeds.length} seeds together` : ""}`;
  }

  function face(matrix, row, column) {
    if (matrix[row][column] === 0) return "·";
    if (view.counts) return String(matrix[row][column]);
    const value = 100 * share(matrix, row, column);
    return value >= 99.95 ? "100" : value < 0.05 ? "<.1" : value.toFixed(1);
  }

  function cell(pane, matrix, row, column) {
    const hit = row === column;
    const tint = strength(share(matrix, row, column), hit);
    const title = words(pane, matrix, row, column);
    return el("button", {
      type: "button", class: `${hit ? "hit" : "miss"}${tint > (hit ? 0.63 : 0.67) ? " strong" : ""}${hit && tint > 0.84 ? " stronger" : ""}`, style: `--strength:${tint.toFixed(3)}`,
      "data-row": row, "data-column": column, "aria-label": title, title,
      onclick: () => choose(pane, row, column, true),
    }, face(matrix, row, column));
  }

  function caption(pane) {
    const b = pane.benchmark;
    const over = pane.seed !== "all" ? `seed ${pane.seed}` : `${b.seeds.length < FEW ? "" : "mean of "}${seedsOf(b.seeds.length)}`;
    const error = pane.seed === "all" ? b.error : b.errors[pane.seed].toFixed(2);
    const protocol = b.protocol === "single view" ? "" : ` · ${b.protocol}`;
    return el("caption", {}, el("strong", {}, b.name), ` · ${error} % error, ${over}${protocol}`);
  }

  function table(pane) {
    const { classes } = pane.benchmark;
    const matrix = counts(pane);
    const long = classes.some((name) => name.length > 2);
    const top = el("tr", {}, el("th", { class: "rowhead", scope: "col", rowspan: 2 }, "true"),
      el("th", { scope: "colgroup", colspan: classes.length }, "the net's answer →"));
    const head = el("tr", {}, ...classes.map((name) => el("th", { scope: "col" }, el("span", {}, name))));
    const body = classes.map((name, row) => el("tr", {}, el("th", { scope: "row" }, name),
      ...classes.map((_, column) => el("td", {}, cell(pane, matrix, row, column)))));
    const made = el("table", { class: `matrix${long ? " words" : ""}`, onkeydown: (event) => steer(pane, event) });
    made.append(caption(pane), el("thead", {}, top, head), el("tbody", {}, ...body));
    return made;
  }

  function steer(pane, event) {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault();
    const last = pane.benchmark.classes.length - 1;
    const [row, column] = pane.cell.map((at, i) => Math.min(last, Math.max(0, at + step[i])));
    choose(pane, row, column, true);
  }

  // More classes than a matrix can show: the confusions that happen most, as a list.
  function pairs(pane) {
    const { name, classes, confusions, error, seeds } = pane.benchmark;
    const list = el("ul", { class: "pairs" });
    for (const [row, column, count] of confusions) {
      const label = `${classes[row]} taken for ${classes[column]}: ${number(count)}`;
      const attributes = { type: "button", "data-row": row, "data-column": column, onclick: () => choose(pane, row, column, false) };
      list.append(el("li", {}, el("button", attributes, label)));
    }
    const note = `${classes.length} classes; their most frequent confusions over ${seedsOf(seeds.length)}:${confusions.length ? "" : " none"}`;
    return el("div", {}, el("p", {}, el("strong", {}, name), ` · ${error} % error`), el("p", {}, note), list);
  }

  function worstCell(benchmark) {
    if (!benchmark.matrices) return benchmark.confusions.length ? benchmark.confusions[0].slice(0, 2) : [0, 0];
    const matrix = sum(Object.values(benchmark.matrices));
    let [worst, at] = [-1, [0, 0]];
    matrix.forEach((row, i) => row.forEach((count, j) => {
      if (i !== j && count > worst) [worst, at] = [count, [i, j]];
    }));
    return at;
  }

  function choose(pane, row, column, focus) {
    const followers = view.panes.filter((p) => view.linked && sameClasses(p, pane));
    for (const other of new Set([pane, ...followers])) {
      other.cell = [row, column];
      mark(other);
    }
    record();
    if (focus) pane.root.querySelector('[aria-pressed="true"]').focus({ preventScroll: false });
  }

  function sameClasses(one, other) {
    return one.benchmark.classes.join("\n") === other.benchmark.classes.join("\n");
  }

  function mark(pane) {
    const [row, column] = pane.cell;
    for (const button of pane.root.querySelectorAll("[data-row]")) {
      const chosen = Number(button.dataset.row) === row && Number(button.dataset.column) === column;
      button.setAttribute("aria-pressed", String(chosen));
      button.tabIndex = chosen || !pane.benchmark.matrices ? 0 : -1;
    }
    pane.behind.replaceChildren(...behind(pane));
  }

  // The images kept of a cell, of the chosen seed or of all, most confident first. Each is a tile of the sheet with the
  // answers that put it here, as [seed, confidence in %].
  function kept(pane) {
    const { benchmark: { dataset, examples, seeds }, seed, cell: [row, column] } = pane;
    if (!examples) return [];
    const actual = data.sheets[dataset].actual;
    const found = [];
    examples.tiles.forEach((tile, i) => {
      if (actual[tile] !== row) return;
      const here = (seed === "all" ? seeds : [seed]).filter((s) => examples.predicted[s][i] === column);
      const answers = here.map((s) => [s, examples.confidence[s][i]]).sort((one, other) => other[1] - one[1]);
      if (answers.length) found.push({ tile, answers });
    });
    return found.sort((one, other) => other.answers[0][1] - one.answers[0][1]);
  }

  function from({ benchmark, seed }) {
    const seeds = seed === "all" ? benchmark.seeds.map(String) : [seed];
    return `${seeds.length === 1 ? "seed" : "seeds"} ${new Intl.ListFormat("en-GB").format(seeds)}`;
  }

  // An image counts once for each seed that put it into the cell.
  function note(pane, shown, count) {
    if (!pane.benchmark.examples) return "No test images are kept with committed evidence.";
    if (!shown.length) return count ? "None of these test images was kept." : `No test image is in this cell with ${from(pane)}.`;
    const all = shown.reduce((total, { answers }) => total + answers.length, 0) === count;
    const many = all ? (shown.length === 1 ? "The test image" : `The ${shown.length} test images`) : `${shown.length} of the test images`;
    const one = pane.seed !== "all" || pane.benchmark.seeds.length === 1;
    return `${many} of this cell with ${from(pane)}, most confident first; below each, ${one ? "the confidence" : "the highest confidence and the seeds"}:`;
  }

  function behind(pane) {
    const { benchmark: b, cell: [row, column] } = pane;
    if (b.confusions?.length === 0) return [];
    const shown = kept(pane).slice(0, data.most);
    const matrix = b.matrices && counts(pane);
    const title = matrix ? words(pane, matrix, row, column) : `${b.classes[row]} taken for ${b.classes[column]}`;
    const count = matrix ? matrix[row][column] : b.confusions.find(([i, j]) => i === row && j === column)?.[2] ?? 0;
    const tiles = el("div", { class: "tiles" }, ...shown.map((image) => picture(pane, image)));
    return [el("h3", {}, title), el("small", {}, note(pane, shown, count)), tiles];
  }

  const sheets = {};

  function sheet(dataset) {
    if (!sheets[dataset]) {
      const image = new Image();
      image.src = data.sheets[dataset].source;
      sheets[dataset] = image.decode().then(() => image);
    }
    return sheets[dataset];
  }

  function picture(pane, { tile, answers }) {
    const { benchmark, cell: [row, column] } = pane;
    const { width, height, index } = data.sheets[benchmark.dataset];
    const sure = answers.map(([seed, confidence]) => `${confidence} % by seed ${seed}`).join(", ");
    const label = `test image ${index[tile]}: ${benchmark.classes[row]}, called ${benchmark.classes[column]} with ${sure}`;
    const canvas = el("canvas", { width, height, role: "img", "aria-label": label, title: label });
    const [x, y] = [(tile % data.columns) * width, Math.floor(tile / data.columns) * height];
    sheet(benchmark.dataset).then((image) => canvas.getContext("2d").drawImage(image, x, y, width, height, 0, 0, width, height));
    const caption = el("figcaption", {}, `${answers[0][1]} %`);
    if (pane.seed === "all" && benchmark.seeds.length > 1) {
      const seeds = answers.map(([seed]) => seed).sort((one, other) => one - other).join(", ");
      caption.append(el("small", {}, answers.length === benchmark.seeds.length ? "all seeds" : answers.length === 1 ? `seed ${seeds}` : `seeds ${seeds}`));
    }
    return el("figure", {}, canvas, caption);
  }

  // Without a wanted cell, that of the other pane or the one of most errors.
  function show(pane, benchmark, seed = "all", cell = undefined) {
    const partner = view.panes.find((p) => p !== pane);
    Object.assign(pane, { benchmark, seed });
    pane.cell = cell ?? (view.linked && partner && sameClasses(pane, partner) ? partner.cell : worstCell(benchmark));
    draw(pane);
  }

  function chooser(pane) {
    const b = pane.benchmark;
    const seeds = [["all", `all ${b.seeds.length} together`], ...b.seeds.map((s) => [String(s), String(s)])];
    const parts = data.benchmarks.length > 1 ? [chooseBenchmark(b, (chosen) => { show(pane, chosen); record(); })] : [];
    const change = (seed) => { pane.seed = seed; draw(pane); record(); };
    if (b.matrices && b.seeds.length > 1) parts.push(select("Seed", seeds, pane.seed, change));
    return el("div", { class: "choose" }, ...parts);
  }

  function draw(pane) {
    const body = pane.benchmark.matrices ? table(pane) : pairs(pane);
    pane.behind = el("div", { class: `behind${pane.benchmark.examples ? " kept" : ""}` });
    keepFocus(pane.root, () => pane.root.replaceChildren(chooser(pane), body, pane.behind));
    mark(pane);
  }

  function scale() {
    const swatch = (value, hit) => el("span", {},
      el("i", { style: `--tint:var(${hit ? "--hit" : "--miss"});--strength:${strength(value, hit).toFixed(3)}` }),
      `${hit ? "right" : "wrong"} ${percent(value, value < 0.01 ? 1 : 0)}`);
    return el("div", { class: "scale" }, ...[0.001, 0.01, 0.05, 0.2].map((v) => swatch(v, false)), ...[0.5, 0.9, 1].map((v) => swatch(v, true)));
  }

  // LeNet-5 beside the linear net, as in README.md; nets with test images come first.
  function opening() {
    const own = data.benchmarks.filter((b) => b.examples);
    const named = ["lenet5-mnist", "linear-mnist"].map((name) => (own.length ? own : data.benchmarks).find((b) => b.name.split(" ")[0] === name));
    return [...new Set([...named.filter(Boolean), ...own, ...data.benchmarks])].slice(0, 2);
  }

  // The nets, seeds and cells, into the address: a view can be linked to.
  function record() {
    const shown = view.panes.flatMap(({ benchmark, seed, cell }) => [["net", benchmark.name], ["seed", seed], ["cell", cell]]);
    try {
      history.replaceState(null, "", `#confusion?${new URLSearchParams(shown)}`);
    } catch { /* a frame without an address of its own */ }
  }

  function restore() {
    const wanted = new URLSearchParams(location.hash.split("?")[1]);
    view.panes.forEach((pane, i) => {
      const [net, seed, cell] = ["net", "seed", "cell"].map((key) => wanted.getAll(key)[i] ?? "");
      const benchmark = data.benchmarks.find((b) => b.name === net);
      const at = cell.split(",").map(Number);
      const fits = at.length === 2 && at.every((k) => k in (benchmark?.classes ?? []));
      if (benchmark) show(pane, benchmark, benchmark.seeds.map(String).includes(seed) ? seed : "all", fits ? at : undefined);
    });
  }

  function matrices(place) {
    const tables = data.benchmarks.some((b) => b.matrices);
    const explained = "Rows: the true class. Columns: the net's answer. Correct answers lie on the diagonal. Each cell is a share of its"
      + " row in %, so that a row adds up to 100; · is zero, <.1 is under 0.1 %. ";
    const images = `Select a ${tables ? "cell with the mouse or arrow keys" : "confusion"} to see its test images. For each seed and`
      + ` ${tables ? "cell" : "confusion"}, up to ${data.a_cell} are kept, starting with those on which most seeds agree.`;
    const controls = el("div", { class: "controls" });
    const pair = el("div", { class: "pair" });
    place.append(el("p", {}, tables ? explained : "", data.benchmarks.some((b) => b.examples) ? images : ""), controls, pair);
    for (const benchmark of opening()) {
      const pane = { root: el("div", { class: "pane" }) };
      view.panes.push(pane);
      pair.append(pane.root);
      show(pane, benchmark);
    }
    restore();
    window.addEventListener("hashchange", restore);
    if (!tables) return;
    const link = (on) => { view.linked = on; if (on) choose(view.panes[0], ...view.panes[0].cell, false); };
    controls.append(check("counts in place of %", false, (on) => { view.counts = on; view.panes.forEach(draw); }));
    if (view.panes.length > 1) controls.append(check("same cell in both", true, link));
    controls.append(scale());
  }

  // ---- classes --------------------------------------------------------------------------------------------------------

  const CLASS_COLUMNS = ["class", "precision, %", "recall, %", "F1, %", "images"];

  // Rows of [name, precision, recall, F1, images]; each figure is a list: one of the seed, or those of all seeds.
  function classRows({ classes, per_class, seeds }, seed) {
    const of = seed === "all" ? seeds : [seed];
    return classes.map((name, i) => {
      const [precision, recall, f1] = [0, 1, 2].map((k) => of.map((s) => per_class[s][i][k]));
      return [name, precision, recall, f1, per_class[of[0]][i][3]];
    });
  }

  // A mean leaves no seed out: it is undefined where one of them is.
  function classFigure(values) {
    if (values.length >= FEW && values.includes(null)) return "–";
    return values.length < FEW ? values.map((v) => (v === null ? "–" : v.toFixed(1))).join(", ") : meanOf(values).toFixed(1);
  }

  function sortedRows(rows, { column, up }) {
    const rank = (row) => (Array.isArray(row[column]) ? meanOf(row[column].map((v) => v ?? -1)) : row[column]);
    const order = (a, b) => (column === 0 ? rows.indexOf(a) - rows.indexOf(b) : rank(a) - rank(b));
    return [...rows].sort((a, b) => (up ? order(a, b) : order(b, a)));
  }

  function classTable({ benchmark, seed, sort }, redraw) {
    const head = el("tr", {});
    CLASS_COLUMNS.forEach((words, column) => {
      const chosen = sort.column === column;
      const press = () => redraw({ column, up: chosen ? !sort.up : true });
      const button = el("button", { type: "button", onclick: press }, words, chosen ? (sort.up ? " ▴" : " ▾") : "");
      head.append(el("th", { scope: "col", "aria-sort": chosen ? (sort.up ? "ascending" : "descending") : null }, button));
    });
    const body = sortedRows(classRows(benchmark, seed), sort).map(([name, ...figures]) => el("tr", {}, el("th", { scope: "row" }, name),
      ...figures.map((v) => el("td", {}, Array.isArray(v) ? classFigure(v) : number(v)))));
    return el("div", { class: "scroll tall" }, el("table", { class: "classes" }, el("thead", {}, head), el("tbody", {}, ...body)));
  }

  function classes(place) {
    const state = { benchmark: opening()[0], seed: "all", sort: { column: 2, up: true } };
    const controls = el("div", { class: "controls" });
    const under = el("div", {});
    const redraw = (change) => keepFocus(place, () => {
      const { benchmark, seed } = Object.assign(state, change);
      const all = [["all", benchmark.seeds.length < FEW ? "each" : "mean of all"], ...benchmark.seeds.map((s) => [String(s), String(s)])];
      controls.replaceChildren();
      if (data.benchmarks.length > 1) controls.append(chooseBenchmark(benchmark, (chosen) => redraw({ benchmark: chosen, seed: "all" })));
      if (benchmark.seeds.length > 1) controls.append(select("Seed", all, seed, (chosen) => redraw({ seed: chosen })));
      under.replaceChildren(classTable(state, (sort) => redraw({ sort })));
    });
    place.append(el("p", {}, "Precision is undefined (–) for a class that was never predicted, recall for one without images."), controls, under);
    redraw({});
  }

  // ---- learning curves ------------------------------------------------------------------------------------------------

  const curves = { metric: "train_error", logY: true, logX: false };
  const frame = { width: 340, height: 220, left: 40, right: 14, top: 10, bottom: 36 };
  const DECADES = [-6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6];
  const METRICS = { train_error: ["training error", " %"], loss: ["training loss", ""] };

  function roundStep(rough) {
    const power = Math.pow(10, Math.floor(Math.log10(rough)));
    return [1, 2, 5, 10].map((m) => m * power).find((step) => step >= rough * 0.999);
  }

  function linearScale(low, high, from, to) {
    const step = roundStep((high - low) / 5 || 1);
    const ticks = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) ticks.push(Number((i * step).toPrecision(6)));
    return { ticks, at: (v) => from + ((v - low) / (high - low || 1)) * (to - from) };
  }

  function logScale(low, high, from, to) {
    const all = (parts) => DECADES.flatMap((k) => parts.map((m) => Number((m * Math.pow(10, k)).toPrecision(2))));
    const steps = all([1, 2, 5]);
    const bottom = Math.max(...steps.filter((s) => s <= low * 1.0001), 1e-6);
    const top = Math.min(...steps.filter((s) => s >= high * 0.9999), 1e6);
    const sets = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 5], [1]].map((parts) => all(parts).filter((s) => s >= bottom && s <= top));
    const some = sets.find((set) => set.length <= 9) || sets[2];
    const ticks = some.length < 3 ? linearScale(bottom, top, from, to).ticks : some; // from 10 to 20, say
    const size = Math.log(top / bottom) || 1;
    return { ticks, at: (v) => from + (Math.log(Math.max(v, bottom) / bottom) / size) * (to - from) };
  }

  const finite = (values) => values.filter((v) => v !== null && Number.isFinite(v));

  function scalesOf(benchmark) {
    const lines = Object.values(benchmark.curves);
    const values = finite(lines.flatMap((line) => line[curves.metric]));
    if (curves.metric === "train_error") values.push(...finite([benchmark.claimed_error]), ...ends(benchmark).map(([, value]) => value));
    const epochs = lines.flatMap((line) => line.epoch);
    const positive = values.filter((v) => v > 0);
    const [low, high] = [Math.min(...positive), Math.max(...values)];
    const { left, right, top, bottom, width, height } = frame;
    const [y0, y1, x0, x1] = [height - bottom, top, left, width - right];
    return {
      x: curves.logX ? logScale(Math.min(...epochs), Math.max(...epochs), x0, x1) : linearScale(0, Math.max(...epochs), x0, x1),
      y: curves.logY && positive.length ? logScale(low, high, y0, y1) : linearScale(0, high, y0, y1),
    };
  }

  function axes({ x, y }) {
    const { left, right, bottom, width, height } = frame;
    const label = (words, x, y, anchor = "middle") => svg("text", { x, y, "text-anchor": anchor }, String(words));
    const rule = (y) => svg("line", { class: "grid", x1: left, x2: width - right, y1: y, y2: y });
    return [
      ...y.ticks.flatMap((tick) => [rule(y.at(tick)), label(tick, left - 5, y.at(tick) + 3, "end")]),
      ...x.ticks.map((tick) => label(tick, x.at(tick), height - bottom + 14)),
      label("epochs", (left + width - right) / 2, height - 3),
    ];
  }

  function line(scales, seed, curve) {
    const points = curve.epoch
      .map((epoch, i) => [epoch, curve[curves.metric][i]])
      .filter(([, value]) => value !== null)
      .map(([epoch, value]) => [scales.x.at(epoch).toFixed(1), scales.y.at(value).toFixed(1)]);
    const title = svg("title", {}, `seed ${seed}`);
    if (points.length === 1) return svg("circle", { class: "point", cx: points[0][0], cy: points[0][1], r: 2.5 }, title);
    return svg("polyline", { points: points.join(" ") }, title);
  }

  // The errors after training, [kind, value, words]: the mean, or of fewer than three seeds each; on the test set, and on
  // the images of the claim where those are others.
  function ends({ errors, compared_errors }) {
    const some = (kind, found, words) => {
      const values = Object.values(found);
      return values.length < FEW ? values.map((v) => [kind, v, words]) : [[kind, meanOf(values), `${words}, mean`]];
    };
    if (!compared_errors) return some("mean", errors, "our test error");
    return [...some("mean", compared_errors, "our error on the images of the claim"), ...some("tested", errors, "our test error")];
  }

  function targets(benchmark, { y }) {
    if (curves.metric !== "train_error") return [];
    const { left, right, width } = frame;
    const marks = ends(benchmark).map(([kind, value, words]) => svg("circle",
      { class: kind, cx: width - right, cy: y.at(value), r: kind === "mean" ? 4.5 : 6.5 }, svg("title", {}, words)));
    if (benchmark.claimed_error === null) return marks;
    const [claimed, x1, x2] = [y.at(benchmark.claimed_error), left, width - right];
    return [svg("line", { class: "claimed", x1, x2, y1: claimed, y2: claimed }, svg("title", {}, "the claim")), ...marks];
  }

  const threeDigits = (value) => value.toPrecision(3);

  function summary(benchmark) {
    const [name, unit] = METRICS[curves.metric];
    const last = finite(Object.values(benchmark.curves).map((curve) => curve[curves.metric].at(-1)));
    const end = last.length ? `${name} ${listed(last, threeDigits)}${unit}` : `no ${name}`;
    return `${end}, test error ${benchmark.error} %, ${seedsOf(benchmark.seeds.length)}`;
  }

  function read(benchmark, scales, drawing, note, event) {
    const box = drawing.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * frame.width;
    const longest = Object.values(benchmark.curves).reduce((a, b) => (b.epoch.length > a.epoch.length ? b : a));
    const near = longest.epoch.reduce((a, b) => (Math.abs(scales.x.at(b) - x) < Math.abs(scales.x.at(a) - x) ? b : a));
    const values = finite(Object.values(benchmark.curves).map((c) => c[curves.metric][c.epoch.indexOf(near)] ?? null));
    const [name, unit] = METRICS[curves.metric];
    const rule = drawing.querySelector(".rule");
    set(rule, { x1: scales.x.at(near), x2: scales.x.at(near), visibility: "visible" });
    const after = `after ${near} ${near === 1 ? "epoch" : "epochs"}`;
    const over = `${values.length < FEW ? "" : "mean of "}${seedsOf(values.length)}`;
    note.textContent = values.length ? `${after}: ${name} ${listed(values, threeDigits)}${unit}, ${over}` : after;
  }

  function chart(benchmark) {
    const scales = scalesOf(benchmark);
    const note = el("small", { class: "reading" }, summary(benchmark));
    const label = `${benchmark.name}: ${summary(benchmark)}`;
    const drawing = svg("svg", { viewBox: `0 0 ${frame.width} ${frame.height}`, role: "img", "aria-label": label }, ...axes(scales));
    drawing.append(svg("line", { class: "rule", y1: frame.top, y2: frame.height - frame.bottom, visibility: "hidden" }));
    for (const [seed, curve] of Object.entries(benchmark.curves)) drawing.append(line(scales, seed, curve));
    drawing.append(...targets(benchmark, scales));
    drawing.addEventListener("pointermove", (event) => read(benchmark, scales, drawing, note, event));
    drawing.addEventListener("pointerleave", () => {
      drawing.querySelector(".rule").setAttribute("visibility", "hidden");
      note.textContent = summary(benchmark);
    });
    const boosted = "Three nets, trained in turn. The curve jumps where the second and third begin, each on images chosen for being hard.";
    return el("div", { class: "chart" }, el("h3", {}, benchmark.name), drawing, note, benchmark.boosted ? el("small", {}, boosted) : "");
  }

  const key = ([kind, words]) => el("span", {}, el("i", { class: kind }), words);

  function keys() {
    const found = [["key-seed", "a seed"]];
    if (curves.metric !== "train_error") return found.map(key);
    if (data.benchmarks.some((b) => b.claimed_error !== null)) found.push(["key-line", "the claim"]);
    found.push(["key-mean", "our test error after training: the mean over seeds, or each of fewer than three"]);
    if (data.benchmarks.some((b) => b.compared_errors)) found.push(["key-tested", "our test error where the claim is on other images"]);
    return found.map(key);
  }

  function learningCurves(place) {
    const legend = el("span", { class: "legend" });
    const charts = el("div", { class: "charts" });
    const drawn = data.benchmarks.filter((b) => Object.keys(b.curves).length);
    const redraw = () => { legend.replaceChildren(...keys()); charts.replaceChildren(...drawn.map(chart)); };
    const change = (name) => (value) => { curves[name] = value; redraw(); };
    place.append(
      el("p", {}, "Each thin line is one seed, measured on the training batches (with augmentation and dropout, where the recipe has them)."
        + " An epoch is one pass over the images that the recipe trains on. Point at a chart to read it."),
      el("div", { class: "controls" },
        select("Show", [["train_error", "training error, %"], ["loss", "training loss"]], "train_error", change("metric")),
        check("logarithmic", curves.logY, change("logY")), check("logarithmic epochs", curves.logX, change("logX")), legend),
      charts,
    );
    redraw();
  }

  // ---- the page -------------------------------------------------------------------------------------------------------

  // Each figure has a section, whose content its function appends, and a link in the report's navigation.
  const FIGURES = [
    ["confusion", "Confusion matrices", matrices],
    ["classes", "Classes", classes],
    ["curves", "Learning curves", learningCurves],
  ];

  function drawFigures() {
    const find = (...ids) => ids.map((id) => document.getElementById(id)).find((found) => found);
    if (!data.benchmarks.length) return;
    FIGURES.forEach(([id, title, draw], place) => {
      const section = el("section", { id }, el("h2", {}, title));
      const first = place === 0; // the report opens with it
      (first ? find("opening", "figures") : find("figures")).append(section);
      (first ? find("opening-link") : find("figure-links"))?.append(el("a", { href: `#${id}` }, title));
      draw(section);
    });
  }

  function openTarget() {
    const target = location.hash && document.getElementById(location.hash.slice(1).split("?")[0]);
    for (let part = target; part; part = part.parentElement) if (part instanceof HTMLDetailsElement) part.open = true;
    if (target) target.scrollIntoView();
  }

  let unfolded = []; // for print: what has evidence

  function unfold(open) {
    if (open) unfolded = [...document.querySelectorAll("details:not([open], .config, .without, .without *)")];
    for (const details of unfolded) details.open = open;
  }

  function fail(reason) {
    const place = document.getElementById("failure");
    place.textContent = `This page's script failed: ${reason}`;
    place.hidden = false;
    document.documentElement.dataset.state = "failed";
  }

  window.addEventListener("hashchange", openTarget);
  window.addEventListener("beforeprint", () => unfold(true));
  window.addEventListener("afterprint", () => unfold(false));
  drawFigures();
  openTarget();
  if (document.documentElement.dataset.state !== "failed") document.documentElement.dataset.state = "ready";
})();
