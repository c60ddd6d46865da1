// Tables of results sort by a column: click its head, or press Enter or Space on it. Once ascending, twice descending,
// a third time the order of the page. Rows without a value stand last both ways.
"use strict";

const MISSING = new Set(["", "–", "not run", "no model"]);
const NUMBER = /^[≠≈<>]?\s*([+\-−]?\d+(?:\.\d+)?)\s*(?:\*+|%)?(?:\s.*)?$/; // also "30.3 ± 0.2", "+0.4 points", "1.5 (1.4–1.6)"
const NEXT = { none: "ascending", ascending: "descending", descending: "none" };

function cellText(row, column) {
  return row.cells[column] ? row.cells[column].textContent.trim() : "";
}

function compareTexts(a, b) {
  return a.localeCompare(b, undefined, { numeric: true });
}

function compareNumbers(a, b) {
  const [first, second] = [a, b].map((text) => Number(NUMBER.exec(text)[1].replace("−", "-")));
  return first - second;
}

/** The rows of one body in the order that `direction` asks for; `rows` are as on the page. */
function sorted(rows, column, direction) {
  if (direction === "none") return rows;
  const filled = rows.filter((row) => !MISSING.has(cellText(row, column)));
  const empty = rows.filter((row) => MISSING.has(cellText(row, column)));
  const areNumbers = filled.every((row) => NUMBER.test(cellText(row, column)));
  const compare = areNumbers ? compareNumbers : compareTexts;
  const sign = direction === "ascending" ? 1 : -1;
  filled.sort((a, b) => sign * compare(cellText(a, column), cellText(b, column)));
  return [...filled, ...empty];
}

function makeSortable(table) {
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells]; // the lower row; the upper names groups
  const bodies = [...table.tBodies].map((body) => ({ body, rows: [...body.rows] }));
  heads.forEach((head, column) => {
    if (!head.textContent.trim() || bodies.every(({ rows }) => rows.length < 2)) return;
    const button = document.createElement("button");
    button.type = "button";
    button.title = "Sort by this column";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const direction = NEXT[head.getAttribute("aria-sort") ?? "none"];
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (direction !== "none") head.setAttribute("aria-sort", direction);
      for (const { body, rows } of bodies) body.append(...sorted(rows, column, direction));
    });
  });
}

/** A menu above the table for each column with `data-filter`, and the number of the rows that are shown. */
function makeFilterable(table) {
  const columns = [...table.tHead.querySelectorAll("th[data-filter]")];
  if (!columns.length) return;
  const rows = [...table.tBodies[0].rows];
  const bar = document.createElement("div");
  bar.className = "frepro-filters";
  const count = document.createElement("span");
  count.setAttribute("role", "status");
  const menus = columns.map((head) => {
    const menu = document.createElement("select");
    const values = new Set(rows.map((row) => cellText(row, head.cellIndex)));
    menu.append(new Option("all", ""), ...[...values].filter(Boolean).sort().map((value) => new Option(value)));
    const label = document.createElement("label");
    label.append(`${head.textContent.trim()} `, menu);
    bar.append(label);
    menu.addEventListener("change", show);
    return { menu, column: head.cellIndex };
  });
  function show() {
    const fits = (row) => menus.every(({ menu, column }) => !menu.value || cellText(row, column) === menu.value);
    rows.forEach((row) => (row.hidden = !fits(row)));
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} claims`;
  }
  bar.append(count);
  show();
  table.parentElement.before(bar);
}

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("table.frepro").forEach(makeFilterable);
  document.querySelectorAll("table.frepro").forEach(makeSortable);
});
