// Sorts the rows of a table by a click on a heading, and filters them by words. The page reads without it.
for (const block of document.querySelectorAll(".rows")) {
  const bodies = [...block.querySelectorAll("tbody")]; // a wide table comes in parts, whose rows go together
  const items = [...bodies[0].rows].map((_, i) => bodies.map((body) => body.rows[i]));
  if (items.length < 3) continue;

  const show = (order) => bodies.forEach((body, part) => body.append(...order.map((item) => item[part])));
  const empty = (value) => value === "";
  const compare = (a, b) =>
    isNaN(a) || isNaN(b) ? a.localeCompare(b, undefined, { numeric: true }) : Number(a) - Number(b);

  bodies.forEach((body, part) => {
    [...body.parentElement.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const next = { ascending: "descending", descending: "none" }[head.ariaSort] ?? "ascending";
        for (const other of block.querySelectorAll("th")) other.removeAttribute("aria-sort");
        if (next === "none") return show(items);
        head.ariaSort = next;
        const sign = next === "ascending" ? 1 : -1;
        const value = (item) => item[part].cells[column].dataset.v ?? item[part].cells[column].textContent;
        const filled = items.filter((item) => !empty(value(item)));
        filled.sort((a, b) => sign * compare(value(a), value(b)));
        show([...filled, ...items.filter((item) => empty(value(item)))]);
      });
    });
  });

  if (items.length < 6) continue;
  const field = document.createElement("input");
  const count = document.createElement("span");
  field.type = "search";
  field.placeholder = field.ariaLabel = "filter rows";
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/);
    let shown = 0;
    for (const item of items) {
      const text = item.map((row) => row.textContent).join(" ").toLowerCase();
      const matches = words.every((word) => text.includes(word));
      for (const row of item) row.hidden = !matches;
      shown += matches;
    }
    count.textContent = field.value ? ` ${shown} of ${items.length}` : "";
  });
  const line = document.createElement("div");
  line.className = "filter";
  line.append(field, count);
  block.prepend(line);
}
