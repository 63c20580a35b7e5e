"use strict";
(() => {
  const $ = (id) => document.getElementById(id);

  // Texts of data sets and models only ever become text nodes.
  const make = (tag, className, ...children) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    element.append(...children);
    return element;
  };

  const published = $("published");
  if (published) {
    published.onchange = () => $("main-table").classList.toggle("unpublished", !published.checked);
  }

  // A table that the page has room for scrolls with it, and its head stays in sight.
  const tall = [...document.querySelectorAll(".scroll.tall")];
  const fit = () => {
    for (const box of tall) {
      box.classList.remove("fits");
      box.classList.toggle("fits", box.scrollWidth <= box.clientWidth);
    }
  };
  addEventListener("resize", fit);
  fit();

  // One data set's figures at a time.
  for (const panels of document.querySelectorAll(".panels")) {
    const all = [...panels.children];
    if (all.length < 2) continue;
    const chips = make("div", "chips");
    const show = (chosen) => {
      all.forEach((panel, i) => {
        panel.style.display = i === chosen ? "" : "none";
        chips.children[i].setAttribute("aria-pressed", i === chosen);
      });
    };
    all.forEach((panel, i) => {
      const chip = make("button", "", panel.dataset.title);
      chip.onclick = () => show(i);
      chips.append(chip);
    });
    panels.before(chips);
    show(0);
  }

  const { strings, cells } = JSON.parse($("data").textContent);
  const text = (id) => strings[id];
  const scores = (pairs) => new Map(pairs.map(([name, value]) => [text(name), value]));
  const sides = (both) => both && { compat: scores(both[0]), strict: scores(both[1]) };
  const said = (id) => id === null ? null : text(id);
  const record = ([number, edits, error, before, after, immediate, probes, held, changed]) => ({
    number,
    edits: edits.map(([prompt, target]) => [text(prompt), text(target)]),
    error: said(error),
    held,
    changed,
    before: sides(before),
    after: sides(after),
    immediate: sides(immediate),
    probes: probes.map(([role, kind, prompt, answers, before, after, forced, own, changed, immediate]) => ({
      role,
      kind: text(kind),
      prompt: text(prompt),
      answers: answers.map(text),
      before: said(before),
      after: said(after),
      immediate: said(immediate),
      forced: forced && forced.map(text),
      scores: sides(own),
      changed,
    })),
  });

  // Where an edit holds by degrees, its score is shown instead of a mark.
  const degree = (r) => {
    const protocol = ["strict", "compat"].find((name) => r.after[name].has("edit"));
    return protocol && "edit " + shown(r.after[protocol].get("edit")) + " (" + protocol + ")";
  };
  const moved = (probe) => probe.changed || probe.before !== probe.after;
  const WHICH = [
    ["all", "All", () => true],
    ["failed", "Edit did not hold", (r) => r.held === false],
    ["changed", "Something else changed", (r) => r.changed],
  ];

  const state = { cell: 0, which: "all", search: "", shown: [], at: 0 };
  // What a cell's records are when read, with the text to search in; made when first looked at.
  const read = new Map();
  const records = () => {
    if (!read.has(state.cell)) {
      const all = cells[state.cell].records.map((raw) => {
        const r = record(raw);
        const words = [...r.edits.flat(), r.error ?? ""];
        for (const p of r.probes) words.push(p.prompt, ...p.answers, p.before ?? "", p.after ?? "", p.immediate ?? "", ...(p.forced ?? []));
        r.words = words.join("\n").toLowerCase();
        return r;
      });
      read.set(state.cell, all);
    }
    return read.get(state.cell);
  };

  const list = $("list"), rows = $("rows"), detail = $("detail");
  const ROW = 56;

  // Only the rows in view are in the document.
  const draw = () => {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
    const last = Math.min(state.shown.length, first + Math.ceil(list.clientHeight / ROW) + 9);
    rows.replaceChildren();
    for (let i = first; i < last; i++) {
      const r = state.shown[i];
      const sign = make("span", "sign " + (r.held ? "held" : "lost"), r.error !== null ? "!" : r.held === null ? "" : r.held ? "✓" : "✗");
      const target = make("div", "", "→ " + r.edits.map(([, target]) => target).join("; "));
      if (r.held === null && degree(r)) target.append(" · " + degree(r));
      if (r.changed) target.append(" · something else changed");
      const row = make("div", "row", sign, make("div", "", r.edits[0]?.[0] ?? "record " + r.number), target);
      row.style.top = i * ROW + "px";
      row.setAttribute("role", "option");
      row.setAttribute("aria-selected", i === state.at);
      row.onclick = () => select(i);
      rows.append(row);
    }
  };

  const shown = (value) => value === undefined ? "–" : value.toFixed(3);

  const scoreTable = (r) => {
    const columns = [];
    for (const protocol of ["compat", "strict"]) {
      for (const [side, label] of [["before", "before"], ["immediate", "right after"], ["after", "after"]]) {
        if (r[side] && r[side][protocol].size) columns.push([protocol, label, r[side][protocol]]);
      }
    }
    const names = [...new Set(columns.flatMap(([, , of]) => [...of.keys()]))].sort();
    if (!names.length) return null;
    const head = make("tr", "", make("th", "", "Score"));
    for (const [protocol, label] of columns) head.append(make("th", "num", protocol, make("small", "", label)));
    const body = make("tbody", "");
    for (const name of names) {
      const row = make("tr", "", make("th", "", name));
      for (const [, , of] of columns) row.append(make("td", "num", shown(of.get(name))));
      body.append(row);
    }
    return make("div", "scroll", make("table", "", make("thead", "", head), body));
  };

  const orElse = (value, empty) => value === "" ? make("span", "muted", empty) : value;

  const probeCard = (probe) => {
    const facts = make("dl", "");
    const add = (label, value, className) => facts.append(make("dt", "", label), make("dd", className, orElse(value, "(nothing)")));
    if (probe.answers.length) add("right", probe.answers.join(" | "), "answers");
    if (probe.before !== null) add("before", probe.before);
    if (probe.immediate !== null) add("right after", probe.immediate);
    if (probe.after !== null) add("after", probe.after);
    if (probe.forced) {
      // Erasure alone is scored by ten tokens that the model writes itself.
      const erasure = ["erased", "same"].some((name) => probe.scores.compat.has(name));
      const how = erasure ? ", ten tokens (compat)" : ", teacher-forced (compat)";
      add("before" + how, probe.forced[0]);
      add("after" + how, probe.forced[1]);
    }
    const tags = make("div", "tags");
    if (probe.kind) tags.append(make("span", "", probe.kind));
    if (probe.changed) tags.append(make("span", "flag", "changed"));
    for (const protocol of ["compat", "strict"]) {
      for (const [name, value] of probe.scores[protocol]) tags.append(make("span", "", protocol + " " + name + " " + shown(value)));
    }
    const card = make("div", "probe" + (moved(probe) ? " moved" : ""), make("p", "", orElse(probe.prompt, "(no prompt)")), facts);
    if (tags.children.length) card.append(tags);
    return card;
  };

  const ROLES = [["edit", "Edit"], ["rephrase", "Other wordings"], ["portability", "What follows"], ["locality", "What should stay"], ["generation", "Text it goes on with"]];

  const describe = () => {
    const r = state.shown[state.at];
    detail.replaceChildren();
    if (!r) {
      detail.append(make("p", "muted", "No record fits."));
      return;
    }
    detail.append(make("h3", "", "Record " + r.number));
    for (const [prompt, target] of r.edits) detail.append(make("p", "edit", prompt + " → ", make("b", "", target)));
    if (r.error !== null) detail.append(make("p", "error", r.error));
    const table = scoreTable(r);
    if (table) detail.append(table);
    for (const [role, title] of ROLES) {
      const probes = r.probes.filter((probe) => probe.role === role);
      if (probes.length) detail.append(make("h4", "", title), ...probes.map(probeCard));
    }
  };

  const select = (i) => {
    state.at = Math.max(0, Math.min(i, state.shown.length - 1));
    const top = state.at * ROW;
    if (top < list.scrollTop) list.scrollTop = top;
    if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    draw();
    describe();
  };

  const filter = () => {
    const all = records();
    const wanted = state.search.toLowerCase();
    const found = wanted ? all.filter((r) => r.words.includes(wanted)) : all;
    WHICH.forEach(([, label, test], i) => {
      $("which").children[i].textContent = label + " (" + found.filter(test).length + ")";
      $("which").children[i].setAttribute("aria-pressed", WHICH[i][0] === state.which);
    });
    state.shown = found.filter(WHICH.find(([name]) => name === state.which)[2]);
    $("count").textContent = state.shown.length + " of " + all.length + " records";
    rows.style.height = state.shown.length * ROW + "px";
    list.scrollTop = 0;
    select(0);
  };

  const choose = (cell) => {
    state.cell = cell;
    $("cell").value = String(cell);
    filter();
  };

  const start = () => {
    const groups = new Map();
    cells.forEach((cell, i) => {
      if (!groups.has(cell.data)) {
        const group = document.createElement("optgroup");
        group.label = cell.data;
        groups.set(cell.data, group);
        $("cell").append(group);
      }
      const option = make("option", "", cell.label + " on " + cell.data);
      option.value = String(i);
      groups.get(cell.data).append(option);
    });
    $("cell").onchange = () => choose(Number($("cell").value));
    for (const [name] of WHICH) {
      const button = make("button", "");
      button.dataset.which = name;
      button.onclick = () => { state.which = name; filter(); };
      $("which").append(button);
    }
    let timer;
    $("search").oninput = () => {
      clearTimeout(timer);
      timer = setTimeout(() => { state.search = $("search").value.trim(); filter(); }, 120);
    };
    list.onscroll = draw;
    list.onkeydown = (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8, Home: -Infinity, End: Infinity }[event.key];
      if (step) {
        event.preventDefault();
        select(state.at + step);
      }
    };
    for (const link of document.querySelectorAll("a[data-cell]")) {
      link.addEventListener("click", () => choose(cells.findIndex((cell) => cell.id === link.dataset.cell)));
    }
    document.querySelector(".browser").hidden = false;
    window.addEventListener("resize", draw);
    choose(0);
  };
  if (cells.length) start();
})();
