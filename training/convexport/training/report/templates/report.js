"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { classes, pictures, cells, quiz } = data;
  const find = (id) => document.getElementById(id);
  const percent = (perMille) => (perMille / 10).toFixed(1) + " %";
  const ROUNDS = 20;

  /* A new element with text and attributes; text is never read as markup, since class names are anybody's. */
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };

  const sheet = { columns: Number(find("zoom").dataset.columns), rows: Number(find("zoom").dataset.rows) };
  const show = (element, id) => {
    const across = (100 * (id % sheet.columns)) / Math.max(sheet.columns - 1, 1);
    const down = (100 * Math.floor(id / sheet.columns)) / Math.max(sheet.rows - 1, 1);
    element.style.backgroundPosition = `${across}% ${down}%`;
  };

  /* Enlarged image with its likeliest classes. */
  const zoom = (id) => {
    const [index, truth, top] = pictures[id];
    find("zoomed").textContent = `Test image ${index}: ${classes[truth]}`;
    show(find("zoomshown"), id);
    find("bars").replaceChildren(
      ...top.map(([label, probability]) => {
        const fill = make("span", { class: "fill" });
        fill.style.width = probability / 10 + "%";
        return make(
          "div", { class: label === truth ? "row true" : "row" },
          make("span", {}, classes[label]), make("span", { class: "track" }, fill), make("span", {}, percent(probability)),
        );
      }),
    );
    find("zoom").showModal();
  };
  const card = (id, lines) => {
    const [index, truth, top] = pictures[id];
    const picture = make("span", { class: "picture gallery" });
    show(picture, id);
    const words = `Test image ${index}: ${classes[truth]}, the network says ${classes[top[0][0]]} at ${percent(top[0][1])}. Show its probabilities.`;
    const button = make("button", { type: "button", class: "open", "data-picture": id, "aria-label": words }, picture);
    button.append(...lines.map((line) => make("span", { class: "small" }, line)));
    return make("li", { class: top[0][0] === truth ? "card" : "card wrong" }, button);
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-picture]");
    if (button) zoom(Number(button.dataset.picture));
    else if (event.target === find("zoom")) find("zoom").close();
  });

  /* Confusion matrix: a cell opens the images behind it; one tab stop, arrow keys between cells. */
  const buttons = [...document.querySelectorAll(".cell")];
  const openCell = (cell) => {
    const [truth, answer] = cell.dataset.cell.split(",").map(Number);
    const kept = cells[cell.dataset.cell], count = Number(cell.dataset.count), right = truth === answer;
    const heading = right ? `${classes[truth]}, named right` : `${classes[truth]} taken for ${classes[answer]}`;
    let words = `${count.toLocaleString("en")} ${count === 1 ? "image" : "images"}`;
    if (kept.length < count) words += `; the ${kept.length} ${right ? "least" : "most"} sure are shown`;
    for (const other of buttons) other.setAttribute("aria-pressed", String(other === cell));
    find("behind").replaceChildren(
      make("h3", {}, heading), make("p", { class: "small" }, words),
      make("ul", { class: "cards" }, ...kept.map((id) => card(id, [percent(pictures[id][2][0][1])]))),
    );
  };
  const focusable = (cell) => {
    for (const other of buttons) other.tabIndex = other === cell ? 0 : -1;
  };
  for (const cell of buttons) {
    cell.setAttribute("aria-pressed", "false");
    cell.addEventListener("click", () => { focusable(cell); openCell(cell); });
    cell.addEventListener("keydown", (event) => {
      const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
      if (!step) return;
      event.preventDefault();
      let [row, column] = cell.dataset.cell.split(",").map(Number);
      while ((row += step[0]) >= 0 && (column += step[1]) >= 0 && row < classes.length && column < classes.length) {
        const next = document.querySelector(`[data-cell="${row},${column}"]`);
        if (next) { focusable(next); next.focus(); return; }
      }
    });
  }
  const mistakes = buttons.filter((cell) => cell.classList.contains("mistake"));
  const largest = (list) => list.reduce((best, cell) => (Number(cell.dataset.count) > Number(best.dataset.count) ? cell : best));
  if (buttons.length) {
    const first = largest(mistakes.length ? mistakes : buttons);
    focusable(first);
    openCell(first);
  }

  /* Feature maps: one image at a time. */
  const tabs = [...document.querySelectorAll("[data-tab]")];
  const openTab = (chosen) => {
    for (const tab of tabs) tab.setAttribute("aria-pressed", String(tab.dataset.tab === chosen));
    for (const panel of document.querySelectorAll("[data-panel]")) panel.hidden = panel.dataset.panel !== chosen;
  };
  for (const tab of tabs) tab.addEventListener("click", () => openTab(tab.dataset.tab));
  if (tabs.length) openTab("0");

  /* The quiz. */
  const KEYS = "0123456789abcdefghijklmnopqrstuvwxyz";
  const match = { order: [], turn: 0, yours: [], answered: false };
  const keyOf = (label) => (classes.length <= KEYS.length ? KEYS[label] : "");
  for (const [label, name] of classes.entries()) {
    const children = keyOf(label) && keyOf(label) !== name ? [make("kbd", {}, keyOf(label)), name] : [name];
    const button = make("button", { type: "button", "data-label": label }, ...children);
    button.addEventListener("click", () => answer(label));
    find("answers").append(button);
  }
  const only = (id) => {
    for (const name of ["choose", "round", "result"]) find(name).hidden = name !== id;
  };
  const tally = () => {
    const seen = match.order.slice(0, match.yours.length);
    return [
      seen.filter((id, turn) => match.yours[turn] === pictures[id][1]).length,
      seen.filter((id) => pictures[id][2][0][0] === pictures[id][1]).length,
    ];
  };
  const shuffled = (list) => {
    const copy = [...list];
    for (let last = copy.length - 1; last > 0; last--) {
      const other = Math.floor(Math.random() * (last + 1));
      [copy[last], copy[other]] = [copy[other], copy[last]];
    }
    return copy;
  };
  const ask = () => {
    match.answered = false;
    show(find("shown"), match.order[match.turn]);
    find("shown").dataset.id = match.order[match.turn];
    find("progress").textContent = `Image ${match.turn + 1} of ${match.order.length}`;
    find("score").textContent = match.turn ? "you " + tally()[0] + ", network " + tally()[1] : "";
    find("verdict").textContent = "";
    find("next").hidden = true;
    for (const button of find("answers").children) { button.disabled = false; button.className = ""; }
  };
  const answer = (label) => {
    if (match.answered || find("round").hidden) return;
    const [, truth, top] = pictures[match.order[match.turn]];
    match.answered = true;
    match.yours.push(label);
    for (const button of find("answers").children) button.disabled = true;
    find("answers").children[label].className = "not";
    find("answers").children[truth].className = "is";
    const yours = label === truth ? "Right" : `No, it is “${classes[truth]}”`;
    find("verdict").textContent = `${yours}. The network says “${classes[top[0][0]]}” (${percent(top[0][1])})${top[0][0] === truth ? "" : " and is wrong"}.`;
    find("score").textContent = "you " + tally()[0] + ", network " + tally()[1];
    find("next").textContent = match.turn + 1 < match.order.length ? "Next" : "Result";
    find("next").hidden = false;
    find("next").focus();
  };
  const finish = () => {
    const [yours, network] = tally();
    const total = match.order.length;
    const verdict = yours > network ? "You win." : yours < network ? "The network wins." : "A draw.";
    find("outcome").textContent = `${verdict} You named ${yours} of ${total} right, the network ${network}.`;
    const different = match.order
      .map((id, turn) => [id, match.yours[turn]])
      .filter(([id, label]) => label !== pictures[id][1] || pictures[id][2][0][0] !== pictures[id][1]);
    const list = make("ul", { class: "cards" }, ...different.map(([id, label]) =>
      card(id, [`is ${classes[pictures[id][1]]}`, `you: ${classes[label]}`, `network: ${classes[pictures[id][2][0][0]]}`])));
    find("differences").replaceChildren(...(different.length ? [make("p", { class: "small" }, "Where one of you was wrong:"), list] : []));
    only("result");
    find("outcome").focus();
  };
  find("choose").addEventListener("submit", (event) => {
    event.preventDefault();
    const pool = quiz[new FormData(find("choose")).get("pool")];
    Object.assign(match, { order: shuffled(pool).slice(0, ROUNDS), turn: 0, yours: [] });
    only("round");
    ask();
    find("answers").children[0].focus();
  });
  find("next").addEventListener("click", () => {
    match.turn += 1;
    if (match.turn === match.order.length) return finish();
    ask();
    find("answers").children[0].focus();
  });
  find("again").addEventListener("click", () => only("choose"));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || find("zoom").open || find("round").hidden) return;
    const label = KEYS.indexOf(event.key.toLowerCase());
    if (event.key.length === 1 && label >= 0 && label < classes.length && classes.length <= KEYS.length) answer(label);
  });
})();
