"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const { systems, comparisons, breakdowns } = data;
const at = (id) => document.getElementById(id);
const all = systems.map((_, index) => index);

// All that comes from transcripts goes through here and becomes text, never markup.
function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else if (value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}
const percent = (value) => value.toFixed(2) + " %";
const same = (a, b) => Boolean(a && b) && a.every((part, index) => part === b[index]);
const signed = (value) => (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(value).toFixed(2);
const count = (value) => value.toLocaleString("en");
const many = (value, one) => `${count(value)} ${one}${value === 1 ? "" : "s"}`;
const colour = (system) => `var(--c${system % 6})`;

// Utterances come as [id, reference, hypotheses, operations, audio]; 0 for a hypothesis that is right.
const split = (text) => (text ? text.split(" ") : []);
const utterances = data.utterances.map(([id, reference, hypotheses, operations, audio], index) => {
  const words = split(reference).length;
  const errors = operations.map((one) => (one ? one.replaceAll("=", "").length : 0));
  const text = [reference, ...hypotheses.filter(Boolean)].join("\n").toLowerCase();
  return { index, id, reference, hypotheses, operations, audio, words, errors, text };
});

// [operation, word of the reference, word of the hypothesis] for each place.
function align(utterance, system) {
  const reference = split(utterance.reference);
  if (!utterance.operations[system]) return reference.map((word) => ["=", word, word]);
  const hypothesis = split(utterance.hypotheses[system]);
  let r = 0, h = 0;
  return [...utterance.operations[system]].map((operation) => [
    operation,
    operation === "I" ? "" : reference[r++],
    operation === "D" ? "" : hypothesis[h++],
  ]);
}

const state = {
  systems: all, search: "", id: "", wer: [0, Infinity], words: [0, Infinity],
  confusion: null, group: null, limit: 100,
};
const sum = (values) => values.reduce((total, value) => total + value, 0);
const errorsOf = (utterance) => sum(state.systems.map((system) => utterance.errors[system]));
const rate = (errors, words) => (words ? (100 * errors) / words : errors ? Infinity : 0);
const werOf = (one) => rate(errorsOf(one), one.words * state.systems.length);
const werText = (value) => (Number.isFinite(value) ? percent(value) : "no words");
function spread(utterance) {
  const errors = state.systems.map((system) => utterance.errors[system]);
  return Math.max(...errors) - Math.min(...errors);
}

// A table whose heads sort it. Columns: label, value (a number or text), cell, number.
function sortable(columns, rows, sort, onSort) {
  const { value } = columns[sort.column];
  const ordered = [...rows].sort((a, b) => {
    const x = value(a), y = value(b);
    const order = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x < y ? -1 : x > y;
    return sort.direction * order || a.index - b.index;
  });
  const heads = columns.map((column, index) => {
    const sorted = index === sort.column;
    const order = sorted ? (sort.direction > 0 ? "ascending" : "descending") : "none";
    const flip = sorted ? -sort.direction : column.number ? -1 : 1;
    const onclick = () => onSort({ column: index, direction: flip });
    const kind = column.number ? "number" : undefined;
    if (!column.value) return make("th", { scope: "col", class: kind }, column.label);
    return make("th", { scope: "col", class: kind, "aria-sort": order },
      make("button", { type: "button", title: column.title, onclick }, column.label));
  });
  const body = make("tbody");
  const show = (from, to) => body.append(...ordered.slice(from, to).map((row) => make("tr", {},
    ...columns.map((column, index) => make(index ? "td" : "th", {
      scope: index ? undefined : "row",
      class: column.number ? "number" : undefined,
      "data-label": typeof column.label === "string" ? column.label : undefined,
    }, ...[column.cell(row)].flat())))));
  return { table: make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body), show };
}
// Sorting draws the table anew, and the focus stays on the head that was chosen.
function refocus(container, sort) {
  container.querySelectorAll("thead th")[sort.column].querySelector("button").focus();
}

// Points with their intervals on a common scale.
function scaleOf(low, high) {
  const raw = Math.max(high - low, 1e-3) / 4;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw);
  const from = Math.floor(low / step) * step, to = Math.max(Math.ceil(high / step), 1) * step;
  const place = (value) => `${(100 * (value - from)) / (to - from)}%`;
  const ticks = [];
  for (let tick = from; tick <= to + step / 2; tick += step) ticks.push(tick);
  return { from, step: `${(100 * step) / (to - from)}%`, place, ticks };
}
function plot(points, scale, label) {
  const rows = points.map(({ value, ci95, of }) => {
    const row = make("div", { "--c": of, "--step": scale.step });
    if (scale.from < 0) row.append(make("u", { "--at": scale.place(0) }));
    if (value === undefined) return row;
    const [low, high] = ci95.map(scale.place);
    row.append(make("i", { "--low": low, "--high": high }), make("b", { "--at": scale.place(value) }));
    return row;
  });
  return make("div", { class: "plot", role: "img", "aria-label": label }, ...rows);
}
function axis(scale) {
  return make("div", { class: "axis", "aria-hidden": "true" }, ...scale.ticks.map((tick) =>
    make("span", { "--at": scale.place(tick) }, String(Number(tick.toFixed(6))))));
}
const interval = ([low, high]) => `${low.toFixed(2)} to ${high.toFixed(2)}`;
const named = (system) => [make("span", { class: "dot", "--c": colour(system) }), systems[system].name];
const scroll = (table) => make("div", { class: "scroll" }, table);
const heads = (...labels) => make("thead", {}, make("tr", {}, ...labels.map(([label, number]) =>
  make("th", { scope: "col", class: number ? "number" : undefined }, label))));
const cells = (...row) => make("tr", {}, ...row.map((cell, index) => {
  if (!index) return make("th", { scope: "row" }, ...[cell].flat());
  const number = typeof cell === "string";
  return make("td", { class: number ? "number" : undefined }, cell);
}));

function showSystems() {
  const tile = (value, what) => make("div", { class: "tile" }, make("b", {}, value), make("span", {}, what));
  if (systems.length === 1) {
    const [one] = systems;
    return at("systems").append(make("div", { class: "tiles" },
      tile(percent(one.wer), `WER, 95 % interval ${interval(one.ci95)}`),
      tile(percent(one.cer), "CER"), tile(percent(one.ser), "SER"),
      tile(count(one.substitutions), "substitutions"), tile(count(one.deletions), "deletions"),
      tile(count(one.insertions), "insertions")));
  }
  const scale = scaleOf(0, Math.max(...systems.map((one) => one.ci95[1])));
  const best = Math.min(...systems.map((one) => one.wer));
  at("systems").append(scroll(make("table", {},
    heads(["System"], [axis(scale)], ["WER", 1], ["95 % interval", 1], ["S", 1], ["D", 1], ["I", 1], ["CER", 1], ["SER", 1]),
    make("tbody", {}, ...systems.map((one, system) => {
      const point = { value: one.wer, ci95: one.ci95, of: colour(system) };
      const row = cells(named(system), plot([point], scale, `WER ${percent(one.wer)}`), percent(one.wer),
        interval(one.ci95), count(one.substitutions), count(one.deletions), count(one.insertions),
        percent(one.cer), percent(one.ser));
      if (one.wer === best) row.children[2].classList.add("strong");
      return row;
    })))));
}

function showComparisons() {
  if (!comparisons.length) return;
  at("comparisons").hidden = false;
  const ends = comparisons.flatMap((one) => one.ci95);
  const scale = scaleOf(Math.min(0, ...ends), Math.max(0, ...ends));
  at("comparisons").append(scroll(make("table", {},
    heads(["Pair"], [axis(scale)], ["Difference", 1], ["95 % interval", 1], ["p", 1], ["Fewer errors"]),
    make("tbody", {}, ...comparisons.map((one) => {
      const [first, second] = one.pair.map((system) => systems[system].name);
      const better = one.pair[one.difference < 0 ? 0 : 1], clear = one.p_value < 0.05;
      const low = one.p_value <= 2 / data.resamples ? "≤ " : "";
      const row = cells(`${first} − ${second}`,
        plot([{ value: one.difference, ci95: one.ci95, of: clear ? colour(better) : "var(--soft)" }], scale,
          `difference ${signed(one.difference)}`),
        signed(one.difference), one.ci95.map(signed).join(" to "), low + one.p_value.toPrecision(2),
        make("span", { class: "verdict" }, ...(clear ? named(better) : ["not told apart"])));
      return row;
    })))));
}

let breakdown = 0, breakdownSort = { column: 0, direction: 1 };
function showBreakdown() {
  if (!breakdowns.length) return;
  const section = at("breakdowns");
  section.hidden = false;
  const { name, groups } = breakdowns[breakdown];
  const rows = groups.map((group, index) => ({ ...group, index }));
  const highs = groups.flatMap((group) => group.scores.filter(Boolean).map((score) => score.ci95[1]));
  const scale = scaleOf(0, Math.max(1, ...highs));
  const text = (score) => (score ? percent(score.wer) : "–");
  const columns = [
    { label: name, value: (row) => row.index, cell: (row) => make("button", { type: "button", class: "group",
      "data-group": `${breakdown} ${row.index}`, onclick: () => chooseGroup([breakdown, row.index]) }, row.label) },
    { label: axis(scale), cell: (row) => plot(
      row.scores.map((score, system) => ({ value: score?.wer, ci95: score?.ci95, of: colour(system) })), scale,
      row.scores.map((score, system) => `${systems[system].name} ${text(score)}`).join(", ")) },
    ...systems.map((system, index) => ({
      label: systems.length > 1 ? system.name : "WER", number: true,
      value: (row) => row.scores[index]?.wer ?? -1, cell: (row) => text(row.scores[index]) })),
    { label: "Words", number: true, value: (row) => row.words, cell: (row) => count(row.words) },
    { label: "Utterances", number: true, value: (row) => row.utterances, cell: (row) => count(row.utterances) },
  ];
  const onSort = (chosen) => {
    breakdownSort = chosen;
    showBreakdown();
    refocus(section, chosen);
  };
  const { table, show } = sortable(columns, rows, breakdownSort, onSort);
  show(0, rows.length);
  section.querySelectorAll(".choices, .scroll").forEach((old) => old.remove());
  if (breakdowns.length > 1) section.append(make("div", { class: "choices" }, ...breakdowns.map((one, index) =>
    make("button", { type: "button", "aria-pressed": String(index === breakdown), onclick: () => {
      breakdown = index;
      breakdownSort = { column: 0, direction: 1 };
      showBreakdown();
      section.querySelectorAll(".choices button")[index].focus();
    } }, `by ${one.name}`))));
  section.append(scroll(table));
  markGroup();
}
function markGroup() {
  for (const button of document.querySelectorAll("button.group"))
    button.setAttribute("aria-pressed", String(button.dataset.group === state.group?.join(" ")));
}
// Choosing again what is chosen lets it go.
function chooseGroup(group) {
  state.group = same(group, state.group) ? null : group;
  markGroup();
  update();
}

const within = (value, [from, to]) => value >= from && value <= to;
function passes(utterance) {
  return (!state.id || utterance.id.toLowerCase().includes(state.id))
    && (!state.search || utterance.text.includes(state.search))
    && within(werOf(utterance), state.wer) && within(utterance.words, state.words)
    && (!state.group || utterance.groups[state.group[0]] === state.group[1]);
}
const hasConfusion = (utterance) => !state.confusion || state.systems.some((system) =>
  utterance.errors[system] && align(utterance, system).some((place) => same(place, state.confusion)));

const KINDS = [["S", "Substitutions", "--s-back"], ["D", "Deletions", "--d-back"], ["I", "Insertions", "--i-back"]];
const wording = ([operation, reference, hypothesis]) =>
  ({ S: `${reference} → ${hypothesis}`, D: `− ${reference}`, I: `+ ${hypothesis}` })[operation];
function showConfusions(rows) {
  const found = new Map();
  for (const row of rows) for (const system of state.systems) {
    if (row.errors[system]) for (const place of align(row, system)) if (place[0] !== "=") {
      const key = place.join(" ");
      const entry = found.get(key) || { place, times: 0 };
      entry.times += 1;
      found.set(key, entry);
    }
  }
  const ordered = [...found.values()].sort((a, b) => b.times - a.times);
  at("confusion-lists").replaceChildren(...KINDS.map(([kind, title, back]) => {
    const entries = ordered.filter((entry) => entry.place[0] === kind);
    const total = sum(entries.map((entry) => entry.times));
    const items = entries.slice(0, 50).map(({ place, times }) => {
      const bar = make("i", { "--back": `var(${back})`, "--share": `${(100 * times) / entries[0].times}%` });
      const onclick = () => chooseConfusion(place);
      return make("li", {}, make("button", { type: "button", class: "confusion", "data-place": place.join(" "), onclick },
        bar, make("span", {}, wording(place)), make("span", {}, count(times))));
    });
    return make("div", {}, make("h3", {}, `${title}, ${count(total)}`),
      make("ol", {}, ...(items.length ? items : [make("li", { class: "none" }, "none")])));
  }));
  markConfusion();
}
function markConfusion() {
  for (const button of document.querySelectorAll("button.confusion"))
    button.setAttribute("aria-pressed", String(button.dataset.place === state.confusion?.join(" ")));
}
function chooseConfusion(place) {
  state.confusion = same(place, state.confusion) ? null : place;
  markConfusion();
  showUtterances(utterances.filter(passes));
}

function wordsOf(utterance, system) {
  const line = make("div", { class: "words" });
  let right = [];
  const flush = () => { if (right.length) line.append(right.join(" ") + " "); right = []; };
  for (const [operation, reference, hypothesis] of align(utterance, system)) {
    if (operation === "=") { right.push(reference); continue; }
    flush();
    line.append({
      S: () => make("span", { class: "s", title: "substitution" }, make("del", {}, reference), " ", make("ins", {}, hypothesis)),
      D: () => make("del", { class: "d", title: "deletion" }, reference),
      I: () => make("ins", { class: "i", title: "insertion" }, hypothesis),
    }[operation](), " ");
  }
  flush();
  return line;
}
function transcript(utterance) {
  return state.systems.flatMap((system) => {
    const line = wordsOf(utterance, system);
    if (state.systems.length === 1) return [line];
    const wer = werText(rate(utterance.errors[system], utterance.words));
    return [make("span", { class: "by" }, ...named(system), ` ${wer}`), line];
  });
}

let sort = { column: 2, direction: -1 };
function columnsOf() {
  const several = state.systems.length > 1;
  return [
    { label: "Utterance", value: (row) => row.id, cell: (row) => (row.audio ? [row.id, make("audio",
      { controls: "", preload: "none", src: row.audio, "aria-label": `Recording of ${row.id}` })] : row.id) },
    { label: "Words", number: true, value: (row) => row.words, cell: (row) => String(row.words) },
    { label: "Errors", number: true, value: errorsOf, cell: (row) => String(errorsOf(row)) },
    { label: "WER", number: true, value: werOf, cell: (row) => werText(werOf(row)) },
    ...(several ? [{ label: "Spread", title: "Most errors of a system less fewest", number: true, value: spread, cell: (row) => String(spread(row)) }] : []),
    { label: "Transcript", cell: transcript },
  ];
}

function showChips() {
  const chip = (label, clear) => make("button", { type: "button", "aria-label": `Remove: ${label}`, onclick: clear }, label);
  const chips = [];
  if (state.group) {
    const { name, groups } = breakdowns[state.group[0]];
    chips.push(chip(`${name}: ${groups[state.group[1]].label}`, () => chooseGroup(null)));
  }
  if (state.confusion) chips.push(chip(wording(state.confusion), () => chooseConfusion(null)));
  at("chips").replaceChildren(...chips);
}

// The errors are counted before one of them is chosen, so that another can be.
function update() {
  const passing = utterances.filter(passes);
  showConfusions(passing);
  showUtterances(passing);
}
function showUtterances(passing, sorted) {
  const rows = passing.filter(hasConfusion);
  showChips();
  const columns = columnsOf();
  sort.column = Math.min(sort.column, columns.length - 2);
  const onSort = (chosen) => { sort = chosen; showUtterances(passing, true); };
  const { table, show } = sortable(columns, rows, sort, onSort);
  show(0, state.limit);
  at("list").replaceChildren(table);
  if (sorted) refocus(at("list"), sort);
  const words = sum(rows.map((row) => row.words));
  const rates = state.systems.map((system) => {
    const wer = werText(rate(sum(rows.map((row) => row.errors[system])), words));
    return state.systems.length > 1 ? `${systems[system].name} ${wer}` : wer;
  });
  at("count").textContent = rows.length
    ? `${count(rows.length)} of ${many(utterances.length, "utterance")}, ${many(words, "word")}; WER ${rates.join(", ")}`
    : "No utterance is like that.";
  at("more").hidden = rows.length <= state.limit;
  at("more").onclick = () => {
    show(state.limit, state.limit += 200);
    at("more").hidden = rows.length <= state.limit;
  };
}

function readFilters() {
  const number = (id, otherwise) => (at(id).value === "" ? otherwise : Number(at(id).value));
  state.search = at("search").value.trim().toLowerCase();
  state.id = at("id").value.trim().toLowerCase();
  state.wer = [number("wer-from", 0), number("wer-to", Infinity)];
  state.words = [number("words-from", 0), number("words-to", Infinity)];
  state.systems = at("system").value === "all" || systems.length === 1 ? all : [Number(at("system").value)];
  state.limit = 100;
  update();
}

// In which group of each breakdown an utterance is.
utterances.forEach((utterance) => { utterance.groups = []; });
breakdowns.forEach(({ groups }, dimension) => groups.forEach((group, index) =>
  group.members.forEach((member) => { utterances[member].groups[dimension] = index; })));

document.title = at("title").textContent = data.title;
const [first] = systems;
at("about").textContent = [`${many(first.utterances, "utterance")}, ${many(first.words, "word")}`,
  `reference ${data.reference}`, `normalisation: ${data.normalization}`].join(" · ");
at("made").textContent = `Made by sru-asr ${data.version}.`;
document.querySelectorAll(".resamples").forEach((one) => { one.textContent = count(data.resamples); });
if (systems.length > 1) {
  at("system-choice").hidden = false;
  at("system").append(make("option", { value: "all" }, "all, side by side"),
    ...systems.map((system, index) => make("option", { value: index }, system.name)));
}
let waiting;
at("filters").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(readFilters, 120); });
at("filters").addEventListener("submit", (event) => { event.preventDefault(); readFilters(); });
at("filters").addEventListener("reset", () => setTimeout(() => {
  state.confusion = state.group = null;
  markGroup();
  readFilters();
}));
showSystems();
showComparisons();
showBreakdown();
update();
})();
