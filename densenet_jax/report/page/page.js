"use strict";
// Shared by the parts of the page: its data, the tooltip, sortable tables, toggle buttons.

function pageData(id) {
  const element = document.getElementById(id);
  return element ? JSON.parse(element.textContent) : null;
}

const tip = {
  box: document.getElementById("tip"),
  show(text, x, y) {
    this.box.textContent = text;
    this.box.style.display = "block";
    const { width, height } = this.box.getBoundingClientRect();
    const left = x + 14 + width > innerWidth ? x - 14 - width : x + 14;
    const top = y + 14 + height > innerHeight ? y - 14 - height : y + 14;
    this.box.style.left = `${Math.max(4, left)}px`;
    this.box.style.top = `${Math.max(4, top)}px`;
  },
  hide() { this.box.style.display = "none"; },
};

// An element with data-tip shows this text as a tooltip at the pointer or at a touch.
for (const kind of ["pointermove", "pointerdown"]) {
  document.addEventListener(kind, (event) => {
    const owner = event.target.closest?.("[data-tip]");
    if (owner) tip.show(owner.dataset.tip, event.clientX, event.clientY);
    else if (!event.target.closest?.("[data-own-tip]")) tip.hide();
  });
}
addEventListener("scroll", () => tip.hide(), { passive: true });

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.tabIndex = 0;
    const sort = () => {
      const value = (row) => {
        const cell = row.cells[column];
        return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
      };
      const down = head.getAttribute("aria-sort") === "ascending";
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [p, q] = down ? [value(b), value(a)] : [value(a), value(b)];
        return typeof p === "number" && typeof q === "number" ? p - q : String(p).localeCompare(q);
      });
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      table.tBodies[0].append(...rows);
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
  });
}

// A table that does not fit says where there is more of it.
for (const box of document.querySelectorAll(".scroll")) {
  const remark = document.createElement("p");
  remark.className = "remark scrolls";
  box.after(remark);
  const tell = () => {
    const down = box.scrollHeight > box.clientHeight + 2, aside = box.scrollWidth > box.clientWidth + 2;
    const rows = box.querySelectorAll("tbody tr").length;
    const ways = [down && `down for all ${rows.toLocaleString("en")} rows`, aside && "sideways for all columns"];
    remark.textContent = down || aside ? `Scroll the table ${ways.filter(Boolean).join(" and ")}.` : "";
    remark.hidden = !(down || aside);
    box.classList.toggle("more", down || aside);
    box.tabIndex = down || aside ? 0 : -1;
  };
  tell();
  const later = new ResizeObserver(() => requestAnimationFrame(tell));
  for (const element of [box, box.firstElementChild]) later.observe(element);
}

for (const button of document.querySelectorAll("button[data-toggle]")) {
  button.addEventListener("click", () => {
    const section = button.closest("section");
    const on = section.classList.toggle(button.dataset.toggle);
    button.setAttribute("aria-pressed", on);
  });
}
