// Captions before and after beside their images: sorted by a tab, filtered by a search, changed and
// doubtful words marked. The address keeps the state: #tab=worst&q=red&run=1

const PAGE = 24;
const MAX_WORDS = 300; // longer captions are compared as a whole
const TABS = {
  random: ["Random", "In an order drawn by chance.", () => true, null],
  worst: ["Worst first", "Lowest held-out score of the trained caption first.",
    (row) => row.scores.score, (row) => row.scores.score[1]],
  changed: ["Most changed", "Largest share of words changed first.",
    (row) => row.base !== row.trained, (row) => -changedShare(row)],
  gamed: ["Rewarded, held-out worse", "Rewarded more than before while the held-out scorer likes " +
    "them less; most rewarded first.", (row) => gain(row) < 0 && rewarded(row),
    (row) => Object.keys(row.rewards).length ? -rewardGain(row) : gain(row)],
  doubtful: ["Doubtful", "With words of which another of their class fits the image better.",
    (row) => row.trained_doubtful?.length, (row) => -row.trained_doubtful.length],
};
const EMPTY = "(empty)";
const state = { tab: "random", query: "", run: 0, shown: PAGE };
const difference = new Map();

function gain({ scores }) {
  return scores.score ? scores.score[1] - scores.score[0] : NaN;
}

// How much the weighted rewards rose; where there is no sum, all that judged both captions.
function rewardGain({ rewards }) {
  const pairs = rewards.sum ? [rewards.sum] : Object.values(rewards);
  const judged = pairs.filter((pair) => !pair.includes(null));
  return judged.length ? judged.reduce((sum, [base, trained]) => sum + trained - base, 0) : NaN;
}

// Of a run without rewards per caption any caption counts.
function rewarded(row) {
  return Object.keys(row.rewards).length === 0 || rewardGain(row) > 0;
}

function bare(word) {
  return word.toLowerCase().replace(/^[.,;:!?"'()]+|[.,;:!?"'()]+$/g, "");
}

// Which words of each caption the other lacks, by their longest common subsequence.
function compare(row) {
  if (difference.has(row)) return difference.get(row);
  const [a, b] = [row.base.split(" ").map(bare), row.trained.split(" ").map(bare)];
  const marks = { base: a.map(() => true), trained: b.map(() => true) };
  difference.set(row, marks);
  if (row.base === row.trained) return difference.set(row, unmarked(marks)).get(row);
  if (a.length > MAX_WORDS || b.length > MAX_WORDS) return marks;
  const length = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      length[i][j] = a[i] === b[j] ? 1 + length[i + 1][j + 1]
        : Math.max(length[i + 1][j], length[i][j + 1]);
    }
  }
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    if (a[i] === b[j]) marks.base[i++] = marks.trained[j++] = false;
    else if (length[i + 1][j] >= length[i][j + 1]) i++;
    else j++;
  }
  return marks;
}

function unmarked({ base, trained }) {
  return { base: base.map(() => false), trained: trained.map(() => false) };
}

function changedShare(row) {
  const { base, trained } = compare(row);
  const all = [...base, ...trained];
  return all.filter(Boolean).length / all.length;
}

// A caption's words: those that changed in runs of `tag`, doubtful ones underlined.
function words(caption, marked, doubts, tag) {
  const doubtful = new Set((doubts ?? []).map(([index]) => index));
  const parts = [];
  let open = null;
  caption.split(" ").forEach((word, index) => {
    if (index) (marked[index] && open ? open : parts).push(" ");
    const part = doubtful.has(index) ? html("span", { class: "doubt" }, word) : word;
    if (!marked[index]) open = null;
    else if (!open) parts.push({ tag, inside: (open = []) });
    (open ?? parts).push(part);
  });
  return parts.map((part) => part.inside ? html(part.tag, {}, ...part.inside) : part);
}

function line(title, ...content) {
  return html("div", { class: "line" }, html("b", {}, title), html("p", {}, ...content));
}

// "score" is the run's held-out scorer's, "score:NAME" a further one's.
function scoreTitle(name) {
  if (name === "score") return "held-out";
  return name.startsWith("score:") ? `held-out, ${name.slice(6)}` : name.replaceAll("_", " ");
}

function scoreLine(name, [base, trained]) {
  const change = base === null || trained === null ? null : trained - base;
  const arrow = !change ? "=" : change > 0 ? "▲" : "▼";
  return html("tr", {}, html("th", { scope: "row" }, name), html("td", {}, number(base)),
    html("td", {}, number(trained)),
    html("td", {}, change === null ? "–" : `${arrow} ${number(change, true)}`));
}

function card(row) {
  const marks = compare(row);
  const image = data.pictures[row.picture];
  const said = (caption, ...rest) => caption ? words(caption, ...rest) : [EMPTY];
  const lines = [
    line("before", ...said(row.base, marks.base, row.base_doubtful, "del")),
    line("trained", ...said(row.trained, marks.trained, row.trained_doubtful, "ins")),
  ];
  if (row.trained_doubtful?.length) {
    const split = row.trained.split(" ");
    const doubts = row.trained_doubtful.map(([index, instead]) =>
      instead ? `${bare(split[index])} (${instead}?)` : bare(split[index]));
    lines.push(line("doubtful", doubts.join(", ")));
  }
  data.runs.forEach(({ name, byId }, run) => {
    const other = run === state.run ? null : byId.get(row.id);
    if (other?.picture === row.picture) lines.push(line(name, other.trained || EMPTY));
  });
  if (row.truth.length) {
    lines.push(line(row.truth.length > 1 ? "references" : "truth", row.truth.join(" · ")));
  }
  const rows = [
    ...Object.entries(row.scores).map(([name, pair]) =>
      scoreLine(scoreTitle(name), pair)),
    ...Object.entries(row.rewards).map(([name, pair]) =>
      scoreLine(name === "sum" ? "reward, weighted" : name.replaceAll("_", " "), pair)),
  ];
  const scores = rows.length ? [html("table", {}, html("thead", { class: "hidden" }, html("tr", {},
    ...["score", "before", "trained", "change"].map((t) => html("th", {}, t)))),
  html("tbody", {}, ...rows))] : [];
  const picture = image
    ? html("img", { src: `data:image/webp;base64,${image}`, loading: "lazy",
      alt: `${row.id}: ${row.trained || "no caption"}` })
    : html("div", { class: "blank" }, "no picture");
  const controls = Object.entries(row.controls).map(([name, { caption, score }]) =>
    line(score === null ? name : `${name} ${number(score)}`, caption || EMPTY));
  const more = controls.length
    ? [html("details", {}, html("summary", {}, "Controls"), ...controls)] : [];
  return html("article", {}, picture, html("div", {}, html("h4", {}, row.id), ...lines),
    html("div", { class: "scores" }, ...scores, ...more));
}

// The same shuffle for everybody.
function shuffled(rows) {
  let seed = 1;
  const keys = new Map(rows.map((row) => [row, seed = (seed * 48271) % 2147483647]));
  return [...rows].sort((a, b) => keys.get(a) - keys.get(b));
}

function matching() {
  const [, , filter, key] = TABS[state.tab];
  const wanted = state.query.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = data.runs[state.run].rows.filter(filter).filter((row) => {
    const text = [row.id, row.base, row.trained, ...row.truth].join(" ").toLowerCase();
    return wanted.every((word) => text.includes(word));
  });
  return key ? rows.sort((a, b) => key(a) - key(b)) : shuffled(rows);
}

function show() {
  const rows = matching();
  const shown = Math.min(state.shown, rows.length);
  document.getElementById("cards").replaceChildren(...rows.slice(0, shown).map(card));
  document.getElementById("count").textContent = `${rows.length} of ` +
    `${data.runs[state.run].rows.length} images, ${shown} shown.`;
  const missing = state.tab === "gamed" && !rows.some((row) => Object.keys(row.rewards).length);
  document.getElementById("about").textContent = TABS[state.tab][1] +
    (missing ? " Rewards of single captions are not recorded, so all that lost are here." : "");
  document.getElementById("more").hidden = shown === rows.length;
  for (const button of document.querySelectorAll("#tabs button")) {
    button.setAttribute("aria-pressed", String(button.value === state.tab));
  }
  document.getElementById("query").value = state.query;
  document.getElementById("run").value = String(state.run);
}

function change(update) {
  Object.assign(state, { shown: PAGE }, update);
  const { tab, query, run } = state;
  const words = new URLSearchParams({ tab, ...(query && { q: query }), ...(run && { run }) });
  history.replaceState(null, "", `#${words}`);
  show();
}

function readAddress() {
  const words = new URLSearchParams(location.hash.slice(1));
  if (!words.has("tab")) return;
  const run = Number(words.get("run"));
  Object.assign(state, { shown: PAGE, query: words.get("q") ?? "",
    tab: words.get("tab") in TABS ? words.get("tab") : "random", run: run in data.runs ? run : 0 });
  document.getElementById("captions").scrollIntoView();
}

function startGallery() {
  if (!document.getElementById("cards")) return;
  data.runs.forEach((run) => { run.byId = new Map(run.rows.map((row) => [row.id, row])); });
  const rows = data.runs.flatMap((run) => run.rows);
  for (const [value, [title, , filter]] of Object.entries(TABS)) {
    const button = html("button", { type: "button", value }, title);
    button.disabled = !rows.some(filter);
    button.addEventListener("click", () => change({ tab: value }));
    document.getElementById("tabs").append(button);
  }
  const select = document.getElementById("run");
  data.runs.forEach(({ name }, run) => select.append(html("option", { value: run }, name)));
  document.getElementById("which").hidden = data.runs.length < 2;
  select.addEventListener("change", () => change({ run: Number(select.value) }));
  const query = document.getElementById("query");
  query.addEventListener("input", () => change({ query: query.value }));
  document.getElementById("more").addEventListener("click", () => {
    state.shown += PAGE;
    show();
  });
  addEventListener("hashchange", () => { readAddress(); show(); });
  readAddress();
  show();
}

startGallery();
