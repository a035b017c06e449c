// Texts of the data are put on the page as text nodes alone, never as HTML. "index" lists the decisions; each
// "detail-N" is parsed when its decision is first shown. Of very many decisions the details are in scripts
// beside the page, which are loaded as they are asked for; the last few are held.

const at = (id) => document.getElementById(id);
const data = (id) => JSON.parse(at(id).textContent);
const { checkpoints, decisions, flags, names, folder, firsts } = data("index");
const details = new Map();
const detail = (number) => {
  if (!details.has(number)) details.set(number, data(`detail-${number}`));
  return details.get(number);
};

const HELD = 8; // shards
const shards = new Map();
const shardOf = (index) => {
  let [low, high] = [0, firsts.length - 1];
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (firsts[middle] <= index) low = middle;
    else high = middle - 1;
  }
  return low;
};
// Called by a shard's script.
globalThis.decisionShard = (number, list) => {
  shards.set(number, list);
  for (const old of shards.keys()) if (shards.size > HELD) shards.delete(old);
};
// What is shown of a decision, or undefined while its shard is not here; `then` is called when it is, or when it
// cannot be had (with false).
function fetched(index, then) {
  if (!folder) return detail(index);
  const number = shardOf(index);
  if (shards.has(number)) return shards.get(number)[index - firsts[number]];
  const script = make("script", { src: `${folder}/${number}.js` });
  const end = (there) => () => {
    script.remove();
    then(there);
  };
  script.addEventListener("load", end(true));
  script.addEventListener("error", end(false));
  document.head.append(script);
  return undefined;
}

const ROW = 74; // height of .row
const FOLD = 3000; // characters of a text that are shown unfolded
const MODES = {
  prompt: "prompt action",
  cot: "CoT action",
  empty_think: "empty-think action",
  prompt_no_history_traces: "prompt action, no traces in the history",
};
const MARKS = { prompt: "■", cot: "●", empty_think: "◆", prompt_no_history_traces: "□" };
const FILTERS = {
  differ: ["Actions differ", "The prompt action and the CoT action are not the same"],
  wrong: ["CoT wrong", "The CoT action is not right"],
  prompt_wrong: ["Prompt wrong", "The prompt action is not right"],
  flipped: ["Flipped", "A trace that argues for another action changed the CoT action"],
  unparsed: ["Unparsed", "The prompt action or the CoT action did not parse"],
  paired: ["Paired", "It has a twin, with which prompt reliance was read or states were patched"],
  changed: ["Changed in training", "The CoT action is not the same at every checkpoint"],
};
const state = {
  checkpoint: checkpoints[checkpoints.length - 1],
  split: "",
  filters: new Set(),
  search: "",
  shown: [],
  chosen: 0,
  patching: {},
};

// ---- text

// Control characters, those that turn the direction of text, and those without width (but joiners).
const HIDDEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]/gu;

function make(tag, given, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(given || {})) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false) {
      node.setAttribute(name, value === true ? "" : value);
    }
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

function visible(text) {
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(HIDDEN)) {
    const code = `U+${match[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
    parts.push(text.slice(end, match.index), make("span", { class: "hidden-character" }, code));
    end = match.index + match[0].length;
  }
  return [...parts, text.slice(end)];
}

// A text in an isolate of its own direction; a long one folded.
function said(text, given) {
  const box = make("bdi", given);
  if (text.length <= FOLD) {
    box.append(...visible(text));
    return box;
  }
  const [head, tail] = [FOLD / 2, FOLD / 4];
  const unfold = () => {
    box.replaceChildren(...visible(text));
    box.tabIndex = -1;
    box.focus({ preventScroll: true });
  };
  const hidden = (text.length - head - tail).toLocaleString("en");
  const button = make(
    "button",
    { type: "button", class: "more", click: unfold },
    `… ${hidden} more characters …`,
  );
  box.append(...visible(text.slice(0, head)), button, ...visible(text.slice(-tail)));
  return box;
}

const brief = (text, most = 140) => (text.length > most ? `${text.slice(0, most)}…` : text);
const number = (value, digits = 2) =>
  value
    .toFixed(digits)
    .replace("-", "−")
    .replace(/^−(0\.0*)$/, "$1");
const named = (group, name) => names[group][name] || name;

function verdict(right) {
  const [glyph, word, kind] = right ? ["✓", "right", "right"] : ["✗", "wrong", "wrong"];
  return make("span", { class: `verdict ${kind}`, role: "img", "aria-label": word, title: word }, glyph);
}

function mark(mode) {
  return make(
    "span",
    { class: `mark ${mode}`, role: "img", "aria-label": MODES[mode], title: MODES[mode] },
    MARKS[mode],
  );
}

const unparsed = () => make("em", { class: "muted" }, "did not parse");
const dash = () => make("span", { class: "muted", "aria-label": "not on record" }, "–");

// ---- the list

const summary = (decision) => decision.at[state.checkpoint];

function has(decision, name) {
  if (name === "changed") {
    const actions = Object.values(decision.at).filter((each) => each[2] & flags.decoded);
    return new Set(actions.map((each) => each[1])).size > 1;
  }
  const here = summary(decision);
  return Boolean(here && here[2] & flags[name]);
}

// What is searched: what holds at every checkpoint, and what was said at each.
const words = new Map();
function searched(index) {
  if (!words.has(index)) {
    const { decision, task, task_type, reference, at: actions } = decisions[index];
    const { prompt, at: by } = folder ? { prompt: [], at: {} } : detail(index);
    const fixed = [decision, task, task_type, reference, prompt.map((piece) => piece[1]).join("")];
    const texts = {};
    // of very many decisions the list's own words alone
    for (const [step, each] of folder ? Object.entries(actions) : []) {
      texts[step] = each.slice(0, 2).filter(Boolean).join("\n").toLowerCase();
    }
    for (const [step, modes] of Object.entries(by)) {
      const each = Object.values(modes).flatMap((row) => [row.action, row.completion]);
      texts[step] = each.filter(Boolean).join("\n").toLowerCase();
    }
    words.set(index, { fixed: fixed.filter(Boolean).join("\n").toLowerCase(), texts });
  }
  return words.get(index);
}

function found(index) {
  if (!state.search) return true;
  const { fixed, texts } = searched(index);
  return fixed.includes(state.search) || (texts[state.checkpoint] || "").includes(state.search);
}

function refresh(keep = state.shown[state.chosen]) {
  const there = [...decisions.keys()].filter(
    (index) => (!state.split || decisions[index].split === state.split) && found(index),
  );
  for (const name of Object.keys(FILTERS)) {
    const count = there.filter((index) => has(decisions[index], name)).length;
    at(`count-${name}`).textContent = count.toLocaleString("en");
  }
  const asked = [...state.filters];
  state.shown = there.filter((index) => asked.every((name) => has(decisions[index], name)));
  const [shown, all] = [state.shown.length, decisions.length].map((each) => each.toLocaleString("en"));
  at("count").textContent = `${shown} of ${all} decisions`;
  at("rows").style.height = `${state.shown.length * ROW}px`;
  choose(Math.max(0, state.shown.indexOf(keep)));
}

// The words that all tasks begin with, which the list leaves out.
const opening = (() => {
  const tasks = [...new Set(decisions.map((each) => each.task || ""))];
  let head = tasks[0].slice(0, 60);
  for (const task of tasks) while (!task.startsWith(head)) head = head.slice(0, -1);
  return tasks.length > 1 ? head.slice(0, head.lastIndexOf(" ") + 1) : "";
})();

function line(mode, decision, action, right) {
  if (!(summary(decision)[2] & flags.decoded)) return null;
  const text = action === null ? unparsed() : make("bdi", { class: "cut" }, ...visible(brief(action)));
  return make("div", { class: "line" }, mark(mode), text, verdict(right));
}

function row(place) {
  const decision = decisions[state.shown[place]];
  const here = summary(decision);
  const name = (decision.task || "").slice(opening.length) || decision.decision;
  const pills = ["differ", "flipped", "unparsed"].filter((name) => has(decision, name));
  const chosen = place === state.chosen;
  return make(
    "div",
    {
      class: "row",
      role: "option",
      id: `row-${place}`,
      "aria-selected": String(chosen),
      "aria-posinset": place + 1,
      "aria-setsize": state.shown.length,
      style: `top: ${place * ROW}px`,
      click: () => choose(place),
    },
    make(
      "div",
      { class: "line" },
      make("bdi", { class: "cut muted" }, ...visible(brief(name))),
      make("span", { class: "muted" }, `step ${decision.step}`),
      pills.map((name) => make("span", { class: "pill" }, name)),
    ),
    here ? line("prompt", decision, here[0], !(here[2] & flags.prompt_wrong)) : null,
    here ? line("cot", decision, here[1], !(here[2] & flags.wrong)) : null,
    here && here[2] & flags.decoded ? null : make("div", { class: "muted" }, "not decoded here"),
  );
}

function draw() {
  const list = at("list");
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 6);
  const last = Math.min(state.shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 6);
  const places = [];
  for (let place = first; place < last; place += 1) places.push(place);
  at("rows").replaceChildren(...places.map(row));
  if (state.shown.length) list.setAttribute("aria-activedescendant", `row-${state.chosen}`);
  else list.removeAttribute("aria-activedescendant");
}

function choose(place) {
  state.chosen = Math.max(0, Math.min(place, state.shown.length - 1));
  const list = at("list");
  const top = state.chosen * ROW;
  if (top < list.scrollTop) list.scrollTop = top;
  if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
  draw();
  const article = at("detail");
  if (!state.shown.length) {
    article.replaceChildren(
      make("p", { class: "muted" }, "No decision is left: take a filter away, or search for less."),
    );
    return;
  }
  const index = state.shown[state.chosen];
  if (article.dataset.index !== String(index)) article.scrollTop = 0;
  article.dataset.index = index;
  show(index);
}

function show(index) {
  const article = at("detail");
  const here = fetched(index, (there) => {
    if (article.dataset.index !== String(index)) return;
    if (there) show(index);
    else {
      const file = `${folder}/${shardOf(index)}.js`;
      article.replaceChildren(make("p", { class: "muted" }, `${file} is not beside this page.`));
    }
  });
  if (!here) {
    article.replaceChildren(make("p", { class: "muted" }, "Loading …"));
    return;
  }
  article.replaceChildren(...shown(decisions[index], here).filter(Boolean));
  const prompt = article.querySelector(".prompt-text");
  if (prompt) prompt.scrollTop = prompt.scrollHeight; // what was seen last, and the boundary
  remember(decisions[index].decision);
}

// ---- what is chosen

function goTo(step) {
  const focused = document.activeElement?.closest?.("#detail") ? state.checkpoint : null;
  state.checkpoint = step;
  for (const input of at("checkpoints").querySelectorAll("input"))
    input.checked = Number(input.value) === step;
  refresh();
  if (focused !== null) at("detail").querySelector('.moves [aria-pressed="true"]')?.focus();
}

function remember(decision) {
  try {
    history.replaceState(null, "", `#${new URLSearchParams({ decision, checkpoint: state.checkpoint })}`);
  } catch {
    // a page inside a notebook has no address of its own
  }
}

function controls() {
  at("checkpoints").append(
    ...checkpoints.map((step) =>
      make(
        "label",
        {},
        make("input", { type: "radio", name: "checkpoint", value: step, change: () => goTo(step) }),
        make("span", {}, step.toLocaleString("en")),
      ),
    ),
  );
  const splits = [...new Set(decisions.map((each) => each.split))];
  at("split").append(
    make("option", { value: "" }, "all"),
    ...splits.map((split) => make("option", { value: split }, named("splits", split))),
  );
  at("split").addEventListener("change", () => {
    state.split = at("split").value;
    refresh();
  });
  for (const [name, [label, what]] of Object.entries(FILTERS)) {
    const button = make(
      "button",
      { type: "button", class: "filter", id: `filter-${name}`, title: what, "aria-pressed": "false" },
      label,
      " ",
      make("span", { id: `count-${name}`, class: "number" }),
    );
    button.addEventListener("click", () => {
      if (!state.filters.delete(name)) state.filters.add(name);
      button.setAttribute("aria-pressed", String(state.filters.has(name)));
      refresh();
    });
    at("filters").append(button);
  }
  if (folder) at("search").placeholder = "Search task and actions";
  let waiting = 0;
  at("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      state.search = at("search").value.trim().toLowerCase();
      refresh();
    }, 120);
  });
  at("help-button").addEventListener("click", () => {
    at("help").hidden = !at("help").hidden;
    at("help-button").setAttribute("aria-expanded", String(!at("help").hidden));
    draw();
  });
  at("list").addEventListener("scroll", () => requestAnimationFrame(draw));
  addEventListener("resize", draw);
}

const next = (by) => () => choose(state.chosen + by);
const onward = (by) => () => {
  const step = checkpoints[checkpoints.indexOf(state.checkpoint) + by];
  if (step !== undefined) goTo(step);
};
const KEYS = { j: next(1), k: next(-1), "[": onward(-1), "]": onward(1), "/": () => at("search").select() };
const LIST_KEYS = {
  ArrowDown: next(1),
  ArrowUp: next(-1),
  PageDown: next(8),
  PageUp: next(-8),
  Home: () => choose(0),
  End: () => choose(state.shown.length - 1),
};

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const target = event.target;
  if (target === at("search")) {
    if (event.key === "Enter" || event.key === "Escape") at("list").focus();
    return;
  }
  if (target.matches?.("input, select, textarea")) return;
  const inList = target === document.body || target === at("list");
  const act = KEYS[event.key] || (inList ? LIST_KEYS[event.key] : undefined);
  if (!act) return;
  event.preventDefault();
  act();
});

controls();
const address = new URLSearchParams(location.hash.slice(1));
const asked = Number(address.get("checkpoint"));
if (address.has("checkpoint") && checkpoints.includes(asked)) state.checkpoint = asked;
for (const input of at("checkpoints").querySelectorAll("input"))
  input.checked = Number(input.value) === state.checkpoint;
refresh(decisions.findIndex((each) => each.decision === address.get("decision")));
document.documentElement.dataset.ready = "true";
