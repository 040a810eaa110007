"use strict";
(() => {
  const PAGE = 100;
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const rows = read("data"), labels = read("labels");
  const [PACKAGE, FILE, LINE, , RULE, SKILL, SEVERITY, MESSAGE, ALSO] = [0, 1, 2, 3, 4, 5, 6, 7, 8];
  const form = document.querySelector(".filters"), body = document.getElementById("rows");
  const more = document.getElementById("more"), count = document.getElementById("count");
  const all = count.textContent;
  let found = rows, shown = 0;

  const fill = (name, values, label) => {
    for (const value of values) form[name].add(new Option(label(value), value));
  };
  const distinct = (column) => [...new Set(rows.map((r) => r[column]))];
  fill("skill", distinct(SKILL).sort(), (s) => labels[s] || s);
  fill("severity", ["error", "high", "medium", "low", "note"].filter((s) => rows.some((r) => r[SEVERITY] === s)), (s) => s);
  fill("package", distinct(PACKAGE).sort(), (s) => (s === "." ? "(top level)" : s));

  // Text only ever enters the page as text: what the audited code contains must not become markup.
  const element = (name, text, className) => {
    const made = document.createElement(name);
    made.textContent = text;
    if (className) made.className = className;
    return made;
  };
  const place = (r) => {
    const made = document.createElement("code");
    const parts = (r[LINE] ? r[FILE] + ":" + r[LINE] : r[FILE]).split("/");
    parts.forEach((part, i) => made.append(i ? "/" : "", i ? document.createElement("wbr") : "", part));
    return made;
  };
  const line = (r) => {
    const tr = document.createElement("tr");
    const cells = [
      element("span", r[SEVERITY], "pill " + r[SEVERITY]),
      place(r),
      element("span", r[MESSAGE]),
      element("span", (labels[r[SKILL]] || r[SKILL]) + " · " + r[RULE] + (r[ALSO] ? " · also " + r[ALSO] : "")),
    ];
    for (const cell of cells) {
      const td = document.createElement("td");
      td.append(cell);
      tr.append(td);
    }
    return tr;
  };
  const extend = () => {
    body.append(...found.slice(shown, shown + PAGE).map(line));
    shown = Math.min(found.length, shown + PAGE);
    more.hidden = shown >= found.length;
    const left = found.length - shown;
    more.textContent = "Show " + Math.min(PAGE, left) + " more of " + left.toLocaleString("en");
  };
  const filter = () => {
    const words = form.text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const { value: skill } = form.skill, { value: severity } = form.severity, { value: name } = form.package;
    found = rows.filter(
      (r) =>
        (!skill || r[SKILL] === skill) &&
        (!severity || r[SEVERITY] === severity) &&
        (!name || r[PACKAGE] === name) &&
        words.every((w) => (r[FILE] + " " + r[RULE] + " " + r[MESSAGE]).toLowerCase().includes(w)),
    );
    const narrowed = words.length || skill || severity || name;
    count.textContent = narrowed ? found.length.toLocaleString("en") + " findings match." : all;
    body.replaceChildren();
    shown = 0;
    extend();
  };
  const choose = (name, value) => {
    form.reset();
    if (![...form[name].options].some((o) => o.value === value)) return;
    form[name].value = value;
    filter();
    document.getElementById("all").scrollIntoView();
  };
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(filter));
  more.addEventListener("click", extend);
  for (const button of document.querySelectorAll("button[data-package]"))
    button.addEventListener("click", () => choose("package", button.dataset.package));
  for (const button of document.querySelectorAll("button[data-skill]"))
    button.addEventListener("click", () => choose("skill", button.dataset.skill));
  filter();
})();
