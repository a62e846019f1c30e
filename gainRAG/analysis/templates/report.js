"use strict";
// The table of questions. Texts of the run reach the page by textContent alone.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const SIZE = 25;
  const FILTERS = [
    ["all", "all questions", () => true],
    ["helped", "helped", (one) => one.verdict === "helped"],
    ["hurt", "hurt", (one) => one.verdict === "hurt"],
    ["pseudo", "pseudo-passage picked", (one) => one.pseudo],
    ["right", "both right", (one) => one.verdict === "both right"],
    ["wrong", "both wrong", (one) => one.verdict === "both wrong"],
  ];
  const label = Object.fromEntries(data.methods);
  let shown = [], start = 0;

  function make(tag, kind, text) {
    const element = document.createElement(tag);
    if (kind) element.className = kind;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  // A text of the run: in its own direction, whatever marks it holds.
  function foreign(tag, kind, text) {
    const element = make(tag, `text ${kind}`.trim(), text);
    element.dir = "auto";
    return element;
  }

  function searched(one) {
    const said = Object.values(one.said).map((answer) => answer.text);
    const passages = one.candidates.map((passage) => `${passage.title} ${passage.text}`);
    return [one.question, ...one.answers, ...said, ...passages].join("\n").toLowerCase();
  }
  data.questions.forEach((one) => { one.searched = searched(one); });

  function number(value) {
    return value === null ? "" : value.toFixed(2);
  }

  function origin(passage) {
    if (passage.from === "pseudo") return "pseudo-passage";
    return /^\d+$/.test(passage.from) ? `rank ${passage.from}` : passage.from;
  }

  function answer(method, one) {
    const said = one.said[method];
    const line = make("div", "brief", `${label[method]}: `);
    line.append(foreign("span", said.right ? "right" : "wrong", said.text || "(nothing)"));
    const pick = said.pick === null ? null : one.candidates[said.pick];
    if (pick) {
      line.append(make("span", "", `, from ${origin(pick)}`));
      if (pick.title) line.append(": ", foreign("span", "", pick.title));
      if (pick.gain !== null) line.append(make("span", "", `, gain ${number(pick.gain)}`));
    }
    return line;
  }

  function head(one) {
    const summary = make("summary");
    const tags = make("div", "tags");
    if (one.verdict) tags.append(make("span", `tag ${one.verdict}`, one.verdict));
    if (one.pseudo) tags.append(make("span", "tag pseudo", "pseudo picked"));
    const brief = make("div");
    const gold = make("div", "brief", "gold: ");
    gold.append(foreign("span", "", one.answers.join("; ")));
    brief.append(gold, ...data.methods.slice(0, 2).filter(([method]) => one.said[method]).map(([method]) => answer(method, one)));
    summary.append(foreign("div", "asked", one.question), tags, brief);
    return summary;
  }

  function candidates(one) {
    const table = make("table");
    table.append(make("caption", "", "Candidates"));
    const names = ["from", "passage", "gain", "score", "picked by"];
    const row = table.createTHead().insertRow();
    for (const name of names) row.append(make("th", ["gain", "score"].includes(name) ? "number" : "", name));
    const body = table.createTBody();
    one.candidates.forEach((passage, place) => {
      const line = body.insertRow();
      const pickers = Object.keys(one.said).filter((method) => one.said[method].pick === place);
      if (pickers.includes("gainrag")) line.className = "picked";
      const text = make("td");
      text.append(foreign("strong", "", passage.title), foreign("div", "", passage.text));
      line.append(make("td", "", origin(passage)), text, make("td", "number", number(passage.gain)),
        make("td", "number", number(passage.score)), make("td", "", pickers.map((method) => label[method]).join("; ")));
      [...line.cells].forEach((cell, column) => { if (column !== 1 && cell.textContent) cell.dataset.name = names[column]; });
    });
    return table;
  }

  function inside(one) {
    const box = make("div", "inside");
    for (const [method] of data.methods.slice(2)) if (one.said[method]) box.append(answer(method, one));
    box.append(candidates(one));
    if (one.more) box.append(make("p", "note", `${one.more} more candidates are not shown.`));
    return box;
  }

  function item(one) {
    const line = make("li");
    const details = make("details");
    details.append(head(one));
    details.addEventListener("toggle", () => { if (details.open && !details.querySelector(".inside")) details.append(inside(one)); });
    line.append(details);
    return line;
  }

  function draw() {
    find("list").replaceChildren(...shown.slice(start, start + SIZE).map(item));
    find("pager").hidden = shown.length <= SIZE;
    find("page").textContent = `${start + 1} to ${Math.min(start + SIZE, shown.length)} of ${shown.length}`;
    find("before").disabled = start === 0;
    find("after").disabled = start + SIZE >= shown.length;
  }

  function choose() {
    const words = find("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const [, , admits] = FILTERS.find(([name]) => name === find("filter").value);
    const set = find("set").value;
    shown = data.questions.filter((one) => admits(one) && (set === "" || one.set === Number(set)) &&
      words.every((word) => one.searched.includes(word)));
    find("count").textContent = `${shown.length} of ${data.questions.length} questions`;
    start = 0;
    draw();
  }

  function option(value, text) {
    const element = make("option", "", text);
    element.value = value;
    return element;
  }

  function turn(step) {
    start += step;
    draw();
    find("questions").scrollIntoView();
  }

  for (const [name, text, admits] of FILTERS) {
    find("filter").append(option(name, `${text} (${data.questions.filter(admits).length})`));
  }
  find("set").append(option("", "all"), ...data.sets.map((name, place) => option(place, name)));
  find("set-label").hidden = data.sets.length < 2;
  for (const id of ["search", "filter", "set"]) find(id).addEventListener("input", choose);
  find("before").addEventListener("click", () => turn(-SIZE));
  find("after").addEventListener("click", () => turn(SIZE));
  find("controls").hidden = false;
  choose();
})();
