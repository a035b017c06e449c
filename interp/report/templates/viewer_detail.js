// One decision: what was done at it, what was read, and what the instruments say of it. viewer.js chooses it.

const section = (title, note, ...children) =>
  make("section", {}, make("h3", {}, title, note ? make("small", {}, note) : null), ...children);
const table = (kind, head, body) =>
  make("div", { class: "scroll" }, make("table", { class: kind }, head, make("tbody", {}, body)));
const heads = (...cells) =>
  make(
    "thead",
    {},
    make(
      "tr",
      {},
      cells.map((cell) => make("th", { scope: "col" }, cell)),
    ),
  );
const lined = (title, ...cells) =>
  make(
    "tr",
    {},
    make("th", { scope: "row" }, title),
    cells.map((cell) => make("td", {}, cell)),
  );

function shown(about, { prompt, at: by }) {
  const here = by[state.checkpoint] || {};
  const cot = here.cot || {};
  const parts = {
    "forced choice": forced(about, here),
    "early answering": early(cot),
    "prompt reliance": reliance(about, cot),
    "conflicting traces": conflicting(cot),
    "probes and logit lens": probed(cot),
    patching: patched(about, here),
  };
  const wide = ["conflicting traces", "probes and logit lens", "patching"];
  for (const name of wide) parts[name]?.classList.add("wide");
  const missing = Object.keys(parts).filter((name) => !parts[name]);
  return [
    title(about),
    make("div", { class: "did" }, acted(about, here), traced(here)),
    moved(by),
    prompted(prompt),
    make(
      "div",
      { class: "rest" },
      Object.values(parts),
      missing.length
        ? make("p", { class: "muted wide" }, `Not on record of this decision here: ${missing.join(", ")}.`)
        : null,
    ),
  ];
}

function title(about) {
  const parts = [
    named("splits", about.split),
    about.task_type,
    `step ${about.step}`,
    about.n_admissible ? `${about.n_admissible} admissible actions` : null,
  ];
  const flagged = Object.keys(FILTERS).filter((name) => has(about, name));
  return make(
    "div",
    { class: "title" },
    make("h2", {}, said(about.task || about.decision)),
    make(
      "p",
      { class: "muted" },
      said(about.decision),
      parts.filter(Boolean).map((part) => [" · ", said(String(part))]),
    ),
    make(
      "p",
      {},
      flagged.map((name) => make("span", { class: "pill", title: FILTERS[name][1] }, FILTERS[name][0])),
    ),
  );
}

function acted(about, here) {
  const rows = [
    lined([make("span", { class: "mark" }, "★"), " recorded action"], said(about.reference), "", ""),
  ];
  for (const mode of Object.keys(MODES)) {
    const row = here[mode];
    if (!row || row.parsed === undefined) continue;
    const action = row.action === undefined ? unparsed() : said(row.action);
    const rank = row.reference_rank ? `${row.reference_rank} of ${row.candidates.length}` : null;
    rows.push(
      lined(
        [mark(mode), ` ${MODES[mode]}`],
        [action, " ", verdict(row.is_correct)],
        row.choice === undefined ? dash() : said(row.choice),
        rank || dash(),
      ),
    );
  }
  const head = heads("", "Action", "Forced choice", "Rank of the recorded action");
  return section(
    "What it did",
    `at checkpoint ${state.checkpoint.toLocaleString("en")}`,
    table("acts", head, rows),
  );
}

function traced(here) {
  const cot = here.cot || {};
  if (cot.completion === undefined) return null;
  if (cot.trace === undefined)
    return section(
      "Trace",
      "it did not close; all that was decoded",
      said(cot.completion, { class: "trace" }),
    );
  const unread = ["cot", "prompt"].filter((mode) => here[mode] && here[mode].parsed === false);
  return section(
    "Trace",
    null,
    cot.trace ? said(cot.trace, { class: "trace" }) : make("p", { class: "muted" }, "empty"),
    unread.map((mode) =>
      make("p", {}, mark(mode), " all that was decoded: ", said(here[mode].completion, { class: "code" })),
    ),
  );
}

const did = (row) =>
  row && row.parsed !== undefined
    ? [row.action === undefined ? unparsed() : said(brief(row.action, 60)), " ", verdict(row.is_correct)]
    : null;
const ranked = (row) =>
  row && row.reference_rank ? `${row.reference_rank} of ${row.candidates.length}` : null;

const read = (row, name) => (row?.[name] === undefined ? null : number(row[name]));

// What is followed over checkpoints: a heading, and a cell of what is on record at one.
const MOVES = {
  prompt: (here) => did(here.prompt),
  cot: (here) => did(here.cot),
  "rank of the recorded action, at once": (here) => ranked(here.prompt),
  "the same, after the trace": (here) => ranked(here.cot),
  "after another state's trace": (here) => {
    const other = (here.cot?.conflicts || []).find((each) => each.inserted_trace === "other_state");
    return other ? outcome(other) : null;
  },
  "rests on": (here) => (here.cot?.diagnosis ? named("diagnoses", here.cot.diagnosis) : null),
  "needs its trace (0 to 1)": (here) => read(here.cot, "area_action"),
  "prompt's direct effect (nats)": (here) => read(here.cot, "direct"),
  "prompt's effect via CoT (nats)": (here) => read(here.cot, "via_cot"),
  "probe, last layer": (here) => {
    const first = here.cot?.probes?.[0];
    const last = first?.predicted.at(-1);
    return first ? [said(brief(last, 40)), " ", verdict(last === first.truth)] : null;
  },
};

function moved(by) {
  if (checkpoints.length < 2) return null;
  const rows = [];
  for (const [name, cell] of Object.entries(MOVES)) {
    const cells = checkpoints.map((step) => cell(by[step] || {}));
    const heading = name in MODES ? [mark(name), ` ${MODES[name]}`] : name;
    if (cells.some((each) => each !== null))
      rows.push(lined(heading, ...cells.map((each) => each ?? dash())));
  }
  const now = checkpoints.indexOf(state.checkpoint) + 1;
  rows.forEach((each) => each.children[now].classList.add("now"));
  const head = heads(
    "Checkpoint",
    ...checkpoints.map((step) =>
      make(
        "button",
        { type: "button", "aria-pressed": String(step === state.checkpoint), click: () => goTo(step) },
        step.toLocaleString("en"),
      ),
    ),
  );
  return make("div", { class: "over-training" }, section("Over training", null, table("moves", head, rows)));
}

function prompted(prompt) {
  const there = [...new Set(prompt.map((piece) => piece[0]))];
  const key = there.map((span) => make("span", { class: `span ${span}` }, span));
  // the boundary is often a line's end, which would not be seen
  const written = ([span, text]) => (span === "boundary" ? text.replaceAll("\n", "↵") : text);
  const pieces = prompt.map((piece) => said(written(piece), { class: `span ${piece[0]}`, title: piece[0] }));
  const end = make("span", { class: "boundary-mark" }, "boundary");
  const text = make(
    "div",
    { class: "prompt-text", tabindex: 0, role: "region", "aria-label": "Prompt" },
    pieces,
    end,
  );
  return make("aside", {}, section("Prompt", null, make("p", { class: "key" }, key), text));
}

function shares(row) {
  const most = Math.max(...row.candidates_logp);
  const weights = row.candidates_logp.map((logp) => Math.exp(logp - most));
  const sum = weights.reduce((total, each) => total + each, 0);
  return new Map(row.candidates.map((name, k) => [name, weights[k] / sum]));
}

function forced(about, here) {
  const modes = ["prompt", "cot"].filter((mode) => here[mode]?.candidates);
  if (!modes.length) return null;
  const likely = Object.fromEntries(modes.map((mode) => [mode, shares(here[mode])]));
  const ordered = here[modes[modes.length - 1]].candidates;
  const rows = ordered.map((name) => {
    const own = ["prompt", "cot"].filter((mode) => here[mode]?.action === name).map(mark);
    const star =
      name === about.reference ? make("span", { class: "mark", title: "recorded action" }, "★") : null;
    const bars = modes.map((mode) => {
      const share = likely[mode].get(name) || 0;
      const bar = make("span", { class: `bar ${mode}` });
      bar.style.width = `${share * 100}%`;
      return make(
        "div",
        { class: "share" },
        make("span", { class: "track" }, bar),
        make("span", { class: "value" }, number(share)),
      );
    });
    return lined([said(name), " ", star, own], ...bars);
  });
  const few = 8;
  const more = rows.slice(few);
  more.forEach((each) => each.setAttribute("hidden", ""));
  const button = make("button", { type: "button", class: "more" }, `${more.length} more candidates`);
  button.addEventListener("click", () => {
    more.forEach((each) => each.removeAttribute("hidden"));
    button.remove();
  });
  const head = heads(
    "Candidate",
    ...modes.map((mode) => [mark(mode), mode === "cot" ? " after its trace" : " at once"]),
  );
  const note = "probability among the candidates, by summed log-probability";
  return section("Forced choice", note, table("choices", head, rows), more.length ? button : null);
}

function outcome(each) {
  const [kind, word] =
    each.action === undefined || each.action === null
      ? ["unread", "unparsed"]
      : each.keep
        ? ["keep", "■ kept"]
        : each.follow
          ? ["follow", "● followed"]
          : ["other", "◆ other"];
  return make("span", { class: `outcome ${kind}` }, word);
}

function conflicting(cot) {
  if (!cot.conflicts?.length) return null;
  const order = Object.keys(names.inserted);
  const place = (each) => order.indexOf(each.inserted_trace);
  const rows = [...cot.conflicts]
    .sort((a, b) => place(a) - place(b))
    .map((each) =>
      lined(
        named("inserted", each.inserted_trace),
        outcome(each),
        each.action ? said(each.action) : unparsed(),
        each.argued
          ? [
              said(each.argued),
              each.leaked
                ? make("span", { class: "pill", title: "The trace named it before it was stripped" }, "named")
                : null,
            ]
          : dash(),
        said(each.inserted, { class: "code" }),
      ),
    );
  const head = heads(
    "Inserted trace",
    "Own action",
    "Action after it",
    "It argues for",
    "What was put after the prompt",
  );
  const diagnosis = cot.diagnosis ? `The CoT action is ${named("diagnoses", cot.diagnosis)}.` : null;
  return section(
    "Conflicting traces",
    "instead of its own trace",
    diagnosis ? make("p", { class: "diagnosis" }, diagnosis) : null,
    table("conflicts", head, rows),
  );
}

function early(cot) {
  if (cot.area_action === undefined) return null;
  const parts = [
    ["same_0", "none of it"],
    ["same_25", "a quarter"],
    ["same_50", "half"],
    ["same_75", "three quarters"],
  ];
  const cells = parts.map(([name]) =>
    make("span", { class: `outcome ${cot[name] ? "keep" : "other"}` }, cot[name] ? "■ same" : "◆ other"),
  );
  const areas = [
    ["area_action", "on the action"],
    ["area_distribution", "on the distribution"],
    ["area_filler", "after full stops of equal length"],
  ]
    .filter(([name]) => cot[name] !== undefined)
    .map(([name, what]) => `${number(cot[name])} ${what}`);
  return section(
    "Early answering",
    "its own trace, cut",
    table("parts", heads("", ...parts.map(([, part]) => part)), [lined("action", ...cells)]),
    make("p", {}, `Area over the curve (0: the trace is not needed, 1: all of it): ${areas.join("; ")}.`),
  );
}

function reliance(about, cot) {
  if (cot.direct === undefined) return null;
  const effects = [
    ["direct", "direct"],
    ["via_cot", "via CoT"],
    ["total", "total"],
    ["via_text", "via its text"],
    ["via_state", "via its hidden state"],
  ];
  return section(
    "Prompt reliance",
    "effects of its twin's prompt, in nats",
    table("parts", heads("", ...effects.map(([, name]) => name)), [
      lined("effect", ...effects.map(([name]) => number(cot[name]))),
    ]),
    twin(about),
  );
}

const twin = (about) =>
  about.twin
    ? make(
        "p",
        { class: "muted" },
        "In its twin two names are exchanged, and the right action is ",
        said(about.twin),
        ".",
      )
    : null;

function probed(cot) {
  const rows = [...(cot.probes || []).map(predictions), ...(cot.lens || []).map(ranks)];
  if (!rows.length) return null;
  const layers = [...rows[0].children].slice(1).map((_, layer) => (layer ? String(layer) : "emb."));
  return section(
    "Probes and logit lens at the boundary",
    "held-out prediction by layer; rank of the action's token by layer",
    table("layers", heads("Label, and what it is", ...layers), rows),
  );
}

function predictions(each) {
  const cells = each.predicted.map((name) =>
    make("span", {}, said(brief(name, 40)), " ", verdict(name === each.truth)),
  );
  const line = lined(
    [named("labels", each.label), make("br"), make("span", { class: "muted" }, said(each.truth))],
    ...cells,
  );
  each.predicted.forEach((name, layer) =>
    line.children[layer + 1].classList.toggle("hit", name === each.truth),
  );
  return line;
}

// The rank of an action's token after each layer, tinted from rank 1,000 to rank 1.
function ranks(each) {
  const whose = { eventual: "logit lens, CoT action", reference: "logit lens, recorded action" }[each.whose];
  const token = make("span", { class: "muted" }, said(each.token));
  const line = lined([whose, make("br"), token], ...each.rank.map((rank) => rank.toLocaleString("en")));
  each.rank.forEach((rank, layer) => {
    const cell = line.children[layer + 1];
    cell.className = "lens";
    cell.title = `probability ${number(each.probability[layer], 4)}`;
    cell.style.setProperty("--share", `${Math.round(Math.max(0, 1 - Math.log10(rank) / 3) * 60)}%`);
  });
  return line;
}

function pick(name, title, options, then) {
  if (!options.includes(state.patching[name])) state.patching[name] = options[0];
  if (options.length < 2) return null;
  const select = make(
    "select",
    {
      name,
      change: () => {
        state.patching[name] = select.value;
        then(name);
      },
    },
    options.map((each) => make("option", { value: each }, MODES[each] || each)),
  );
  select.value = state.patching[name];
  return make("label", { class: "choose" }, `${title} `, select);
}

function patched(about, here) {
  const modes = ["prompt", "cot"].filter((mode) => here[mode]?.patching?.length);
  if (!modes.length) return null;
  const box = make("div");
  const redraw = (focused) => {
    const by = pick("mode", "Action", modes, redraw);
    const every = here[state.patching.mode].patching;
    const of = (name) => [...new Set(every.map((each) => each[name]))];
    const choosers = [
      by,
      pick("metric", "Metric", of("metric"), redraw),
      pick("site", "Site", of("site"), redraw),
    ];
    const kept = every.filter(
      (each) => each.metric === state.patching.metric && each.site === state.patching.site,
    );
    box.replaceChildren(
      make("p", { class: "choosers" }, choosers),
      make(
        "div",
        { class: "heats" },
        ["denoise", "noise"].map((direction) => heat(direction, byPlace(kept, direction))),
      ),
      ...overTokens(here[state.patching.mode].attribution || []),
    );
    if (focused) box.querySelector(`select[name="${focused}"]`).focus();
  };
  redraw();
  const note = "0: the action is not moved; 1: it becomes the other run's";
  return section("Patching", note, box, twin(about));
}

function byPlace(effects, direction) {
  const of = (place) => effects.find((each) => each.at === place && each.direction === direction);
  const places = Object.keys(names.places).filter(of);
  return places.map((place) => [named("places", place), of(place).effect]);
}

function overTokens(estimates) {
  const kept = estimates.filter((each) => each.site === state.patching.site);
  if (!kept.length) return [];
  const label = (each) => [
    make("span", { class: "code" }, said(each.token.replaceAll("\n", "↵"))),
    ` ${each.position}`,
  ];
  const rows = (direction) =>
    kept.filter((each) => each.direction === direction).map((each) => [label(each), each.effect]);
  return [
    make("p", {}, "First-order estimates at the tokens where they are largest, with each token's position:"),
    make(
      "div",
      { class: "heats tokens" },
      ["denoise", "noise"].map((direction) => heat(direction, rows(direction))),
    ),
  ];
}

// Rows of a label and an effect at each layer.
function heat(direction, effects) {
  if (!effects.length) return make("p", { class: "muted" }, `${direction}: not on record`);
  const rows = effects.map(([label, effect]) => {
    const line = lined(label, ...effect.map((value) => number(value)));
    effect.forEach((value, layer) => {
      const share = Math.min(1, Math.abs(value));
      line.children[layer + 1].className = `${value < 0 ? "below" : "above"} ${share > 0.55 ? "strong" : ""}`;
      line.children[layer + 1].style.setProperty("--share", `${Math.round(share * 100)}%`);
    });
    return line;
  });
  const title = direction === "denoise" ? "Denoise (clean into corrupt)" : "Noise (corrupt into clean)";
  return table("heat", heads(`${title}, layer`, ...effects[0][1].map((_, layer) => String(layer))), rows);
}
