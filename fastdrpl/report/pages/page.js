"use strict";
/* The grid of suspects: filters, keys, decisions that stay in this browser, and fixes.csv. Everything else on the page
   is there without this script. Every text is set with textContent: names are never read as HTML. */
(() => {
  const island = document.getElementById("suspects-data");
  if (!island) return;
  const data = JSON.parse(island.textContent);
  const fields = ["index", "file", "given", "suggested", "pSuggested", "pNoisy", "score", "rank", "truth", "picture"];
  const suspects = data.rows.map((row) => Object.fromEntries(fields.map((field, k) => [field, row[k]])));
  const byIndex = new Map(suspects.map((suspect) => [suspect.index, suspect]));
  const CHUNK = 48; // cards that are made at a time
  const PAIRS = 1000; // that can be chosen, the most frequent
  const SMALL = 32; // pixels: images up to this side are enlarged pixel by pixel
  const key = `fastdrpl fixes ${data.hash}`;
  const at = (id) => document.getElementById(id);
  const grid = at("grid"), progress = at("progress"), dialog = at("other");
  let listed = []; // suspects that the filters leave, in order
  let here = 0; // position in `listed`
  let elsewhere = []; // stored decisions about suspects that this page does not hold: it has less room than another had
  let decisions = recall(); // index -> {decision, label}, label a class number or null
  const past = []; // for undo: lists of [index, earlier decision]
  let kept = true; // whether this browser keeps decisions

  // --- decisions ---

  function recall() {
    try {
      const stored = JSON.parse(localStorage.getItem(key) || "[]");
      elsewhere = stored.filter(([index]) => !byIndex.has(index));
      return new Map(stored.filter(([index]) => byIndex.has(index)).map(([index, made]) => [index, asOfThisPage(index, made)]));
    } catch {
      return new Map();
    }
  }

  // The same configuration trained again may suggest another class: what was decided stays, by its class.
  function asOfThisPage(index, { decision, label }) {
    const { given, suggested } = byIndex.get(index);
    const stale = (decision === "accept" && label !== suggested) || (decision === "keep" && label !== given);
    return { decision: stale ? "relabel" : decision, label };
  }

  function store() {
    try {
      localStorage.setItem(key, JSON.stringify([...elsewhere, ...decisions]));
    } catch {
      kept = false; // said with the progress
    }
  }

  const labelOf = (suspect, decision, label) =>
    ({ accept: suspect.suggested, keep: suspect.given, drop: null, relabel: label })[decision];

  function decide(changes) { // [[suspect, decision or null, label]]
    past.push(changes.map(([suspect]) => [suspect.index, decisions.get(suspect.index)]));
    for (const [suspect, decision, label] of changes) {
      if (decision === null) decisions.delete(suspect.index);
      else decisions.set(suspect.index, { decision, label: labelOf(suspect, decision, label) });
    }
    changed();
  }

  function undo() {
    const before = past.pop();
    if (!before) return;
    for (const [index, decision] of before) {
      if (decision) decisions.set(index, decision);
      else decisions.delete(index);
    }
    changed();
    const position = listed.findIndex((suspect) => suspect.index === before[0][0]);
    if (position >= 0) go(position);
  }

  function changed() {
    store();
    for (const card of grid.children) mark(card, listed[Number(card.dataset.position)]);
    tell();
  }

  function tell() {
    const count = { accept: 0, keep: 0, drop: 0, relabel: 0 };
    for (const { decision } of decisions.values()) count[decision] += 1;
    const parts = Object.entries(count).filter(([, n]) => n).map(([name, n]) => `${number(n)} ${said[name]}`);
    progress.textContent = `${number(listed.length)} listed; ${number(decisions.size)} of ${number(suspects.length)} decided` +
      (parts.length ? `: ${parts.join(", ")}` : "") +
      (kept ? "" : ". This browser keeps nothing: download before you leave");
    at("download").disabled = at("clear").disabled = decisions.size === 0;
    at("undo").disabled = past.length === 0;
    at("accept-all").disabled = listed.length === 0;
  }
  const said = { accept: "accepted", keep: "kept", drop: "dropped", relabel: "given another class" };

  // --- cards ---

  function make(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  // Control characters, and those that turn the direction of a line, are shown as escapes.
  const visible = (text) => text.replace(/[\u0000-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]/g,
    (c) => (c === "\n" ? "\\n" : `\\x${c.charCodeAt(0).toString(16).padStart(2, "0")}`));
  const number = (n) => n.toLocaleString("en");
  const named = (k) => make("bdi", {}, visible(data.classes[k]));
  const percent = (p) => (p === null ? "" : `${(100 * p).toFixed(p > 0.995 && p < 1 ? 1 : 0)} %`);

  function picture(suspect) {
    if (!suspect.picture) return make("div", { class: "picture" }, "no image");
    const image = make("img", { src: suspect.picture, alt: "", decoding: "async" });
    image.addEventListener("load", () => {
      if (Math.max(image.naturalWidth, image.naturalHeight) <= SMALL) image.classList.add("small");
    });
    return make("div", { class: "picture" }, image);
  }

  function makeCard(position) {
    const suspect = listed[position];
    const card = make("li", { class: "card", tabindex: "-1", "data-position": position, "data-index": suspect.index });
    const sure = suspect.pSuggested === null ? "" : make("span", { class: "sure" }, ` ${percent(suspect.pSuggested)}`);
    const facts = make("div", { class: "facts-line", title: `wrong with probability ${suspect.pNoisy}` },
      `#${suspect.rank} · score ${suspect.score.toFixed(3)} · wrong ${percent(suspect.pNoisy)}`);
    const file = suspect.file === null ? `sample ${suspect.index}` : visible(suspect.file);
    card.append(
      picture(suspect),
      make("div", { class: "change" }, make("span", { class: "given" }, named(suspect.given), " → "),
        suspect.suggested === suspect.given ? "the same" : named(suspect.suggested), sure),
      facts,
      make("div", { class: "file", title: file }, make("bdi", { dir: "ltr" }, file)),
    );
    if (suspect.truth !== null && suspect.truth >= 0)
      card.append(make("div", { class: "facts-line" }, "in truth ", named(suspect.truth)));
    const choices = make("div", { class: "choices" });
    for (const [action, label] of [["accept", "accept"], ["keep", "keep"], ["drop", "drop"], ["relabel", "other…"]])
      choices.append(make("button", { type: "button", tabindex: "-1", "data-action": action }, label));
    card.append(choices);
    mark(card, suspect);
    return card;
  }

  function mark(card, suspect) {
    const made = decisions.get(suspect.index);
    const label = made && made.label !== null ? data.classes[made.label] : "";
    const text = made ? { accept: `→ ${label}`, keep: "kept", drop: "dropped", relabel: `→ ${label}` }[made.decision] : "";
    if (made) {
      card.dataset.decision = made.decision;
      card.dataset.said = visible(text);
    } else {
      delete card.dataset.decision;
      delete card.dataset.said;
    }
    for (const button of card.querySelectorAll("[data-action]"))
      button.setAttribute("aria-pressed", String(Boolean(made) && made.decision === button.dataset.action));
    const given = visible(data.classes[suspect.given]), suggested = visible(data.classes[suspect.suggested]);
    card.setAttribute("aria-label",
      `rank ${suspect.rank}: given ${given}, looks like ${suggested} ${percent(suspect.pSuggested)}` +
      `${suspect.file === null ? "" : `, ${visible(suspect.file)}`}. ${made ? said[made.decision] : "undecided"}`);
  }

  function extend(upTo) {
    const cards = [];
    for (let k = grid.children.length; k < Math.min(upTo, listed.length); k += 1) cards.push(makeCard(k));
    grid.append(...cards);
    const left = listed.length - grid.children.length;
    at("more").hidden = left === 0;
    at("more").textContent = `Show ${Math.min(CHUNK, left)} more of ${number(left)}`;
  }

  function go(position) {
    if (!listed.length) return;
    const old = grid.children[here];
    if (old) setHere(old, false);
    here = Math.max(0, Math.min(position, listed.length - 1));
    extend(here + 1);
    setHere(grid.children[here], true);
    grid.children[here].focus({ preventScroll: true });
    grid.children[here].scrollIntoView({ block: "nearest" });
  }

  function setHere(card, is) {
    card.classList.toggle("here", is);
    card.tabIndex = is ? 0 : -1;
    for (const button of card.querySelectorAll("button")) button.tabIndex = is ? 0 : -1;
  }

  // --- filters ---

  const orders = {
    rank: (a, b) => a.rank - b.rank,
    sure: (a, b) => (b.pSuggested ?? 0) - (a.pSuggested ?? 0) || a.rank - b.rank,
    given: (a, b) => a.given - b.given || a.suggested - b.suggested || a.rank - b.rank,
    suggested: (a, b) => a.suggested - b.suggested || a.given - b.given || a.rank - b.rank,
    file: (a, b) => (a.file ?? "").localeCompare(b.file ?? "") || a.index - b.index,
  };

  function list() {
    const chosen = at("by-class").value, pair = at("by-pair").value, state = at("by-state").value;
    const part = at("by-file").value.toLowerCase();
    listed = suspects.filter((s) =>
      (chosen === "" || s.given === Number(chosen) || s.suggested === Number(chosen)) &&
      (pair === "" || pair === `${s.given} ${s.suggested}`) &&
      (state === "" || (state === "decided") === decisions.has(s.index)) &&
      (part === "" || (s.file ?? `sample ${s.index}`).toLowerCase().includes(part)));
    listed.sort(orders[at("order").value]);
    grid.replaceChildren();
    here = 0;
    extend(CHUNK);
    if (grid.children.length) setHere(grid.children[0], true);
    tell();
  }

  function fillFilters() {
    const classes = new Map(), pairs = new Map();
    for (const { given, suggested } of suspects) {
      for (const k of new Set([given, suggested])) classes.set(k, (classes.get(k) ?? 0) + 1);
      const pair = `${given} ${suggested}`;
      pairs.set(pair, (pairs.get(pair) ?? 0) + 1);
    }
    const option = (value, text) => make("option", { value }, text);
    for (const k of [...classes.keys()].sort((a, b) => a - b))
      at("by-class").append(option(k, `${visible(data.classes[k])} (${classes.get(k)})`));
    for (const [pair, n] of [...pairs].sort((a, b) => b[1] - a[1]).slice(0, PAIRS)) {
      const [given, suggested] = pair.split(" ").map((k) => visible(data.classes[Number(k)]));
      at("by-pair").append(option(pair, `${given} → ${suggested} (${n})`));
    }
  }

  // A value that the list of a filter has no room for, or no suspect on this page, is added to it.
  function choose(select, value) {
    select.value = value;
    if (select.value === value) return;
    select.append(make("option", { value }, value.split(" ").map((k) => visible(data.classes[k])).join(" → ")));
    select.value = value;
  }

  function show(given, suggested) { // a class, or a pair where `suggested` is given
    choose(at("by-class"), suggested === undefined ? given : "");
    choose(at("by-pair"), suggested === undefined ? "" : `${given} ${suggested}`);
    at("by-state").value = at("by-file").value = "";
    list();
    at("suspects").scrollIntoView();
  }

  // --- acting ---

  function act(action, position) {
    const suspect = listed[position];
    if (!suspect) return;
    if (action === "relabel") {
      go(position);
      ask(suspect);
      return;
    }
    if (action !== "skip") decide([[suspect, action, null]]);
    go(position + 1);
  }

  function ask(suspect) {
    at("other-search").value = "";
    offer("");
    at("other-list").value = String(suspect.suggested);
    dialog.showModal();
    at("other-search").focus();
  }

  function offer(part) {
    const options = [];
    data.classes.forEach((name, k) => {
      if (name.toLowerCase().includes(part.toLowerCase())) options.push(make("option", { value: k }, visible(name)));
    });
    at("other-list").replaceChildren(...options);
    if (options.length) at("other-list").value = options[0].value;
  }

  function take() {
    const chosen = at("other-list").value;
    if (chosen === "") return;
    dialog.close();
    const suspect = listed[here], label = Number(chosen);
    const decision = label === suspect.suggested ? "accept" : label === suspect.given ? "keep" : "relabel";
    decide([[suspect, decision, label]]);
    go(here + 1);
  }

  function columns() {
    const cards = [...grid.children];
    const second = cards.findIndex((card) => card.offsetTop > cards[0].offsetTop);
    return second < 0 ? cards.length : second;
  }

  const keys = { a: "accept", k: "keep", d: "drop", o: "relabel", r: "relabel", s: "skip" };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || dialog.open) return;
    if (/^(input|select|textarea)$/i.test(event.target.tagName)) return;
    const inGrid = grid.contains(event.target);
    if (!inGrid && event.target !== document.body) return;
    const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(), ArrowUp: -columns() };
    const pressed = event.key.toLowerCase();
    if (keys[pressed]) act(keys[pressed], here);
    else if (pressed === "u") undo();
    else if (inGrid && event.key in moves) go(here + moves[event.key]);
    else if (inGrid && event.key === "Home") go(0);
    else if (inGrid && event.key === "End") go(listed.length - 1);
    else return;
    event.preventDefault();
  });

  grid.addEventListener("click", (event) => {
    const card = event.target.closest(".card");
    if (!card) return;
    const button = event.target.closest("[data-action]");
    const position = Number(card.dataset.position), suspect = listed[position];
    if (!button) return go(position);
    const made = decisions.get(suspect.index), action = button.dataset.action;
    if (made && made.decision === action && action !== "relabel") { // once more: taken back
      decide([[suspect, null, null]]);
      return go(position);
    }
    act(action, position);
  });

  // --- fixes.csv ---

  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

  function fixes() {
    const lines = [`# fastdrpl fixes for run ${data.hash}`, "index,file,given,decision,label"];
    for (const index of [...decisions.keys()].sort((a, b) => a - b)) {
      const suspect = byIndex.get(index), { decision, label } = decisions.get(index);
      const cells = [String(index), suspect.file ?? "", data.classes[suspect.given], decision,
        label === null ? "" : data.classes[label]];
      lines.push(cells.map(quoted).join(","));
    }
    return `${lines.join("\n")}\n`;
  }

  at("download").addEventListener("click", () => {
    const url = URL.createObjectURL(new Blob([fixes()], { type: "text/csv" }));
    const link = make("a", { href: url, download: "fixes.csv" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  });
  at("undo").addEventListener("click", undo);
  at("accept-all").addEventListener("click", () => {
    decide(listed.filter((s) => !decisions.has(s.index)).map((s) => [s, "accept", null]));
  });
  at("clear").addEventListener("click", () => {
    decide([...decisions.keys()].map((index) => [byIndex.get(index), null, null]));
  });
  for (const id of ["by-class", "by-pair", "by-state", "order"]) at(id).addEventListener("change", list);
  at("by-file").addEventListener("input", list);
  at("other-search").addEventListener("input", () => offer(at("other-search").value));
  at("other-search").addEventListener("keydown", (event) => { if (event.key === "Enter") take(); });
  at("other-list").addEventListener("keydown", (event) => { if (event.key === "Enter") take(); });
  at("other-list").addEventListener("dblclick", take);
  at("other-take").addEventListener("click", take);
  at("other-cancel").addEventListener("click", () => dialog.close());
  document.addEventListener("click", (event) => {
    const chosen = event.target.closest("[data-given]");
    if (chosen) show(chosen.dataset.given, chosen.dataset.suggested);
  });
  at("more").addEventListener("click", () => extend(grid.children.length + CHUNK));

  grid.classList.toggle("bare", suspects.every((suspect) => !suspect.picture));
  fillFilters();
  list();
})();
