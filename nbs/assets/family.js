(() => {
  const family = document.getElementById("family"), table = document.querySelector("#runs table");
  if (!family || !table) return;
  const detail = family.querySelector(".detail"), rows = [...table.tBodies[0].rows];
  const cell = (row, i) => row.cells[i], id = a => a.getAttribute("href").slice(1);
  const marks = slug => family.querySelectorAll(`.run[href="#${CSS.escape(slug)}"]`);
  const add = (kind, words, parent) => Object.assign(parent.appendChild(document.createElement(kind)), { textContent: words });
  const parentOf = row => (cell(row, 1).querySelector("a")?.hash || "").slice(1);

  function show(slug) {
    const row = document.getElementById(slug);
    family.querySelectorAll(".chosen, .lit").forEach(e => e.classList.remove("chosen", "lit"));
    rows.forEach(r => r.classList.toggle("chosen", r === row));
    marks(slug).forEach(m => m.classList.add("chosen"));
    for (let s = slug, n = 0; s && n < 30; s = parentOf(document.getElementById(s)), n++)
      family.querySelectorAll(`.edge[data-to="${CSS.escape(s)}"]`).forEach(e => e.classList.add("lit"));
    const [name, parent, began, images, change, errors, epochs, , verdict, caveats] = [...row.cells].map(c => c.textContent);
    detail.replaceChildren();
    const head = add("p", "", detail);
    head.className = "head";
    head.append(cell(row, 0).firstChild.cloneNode(true), ` ${[began || "no date", images && `images of ${images}`, row.dataset.paper && `the paper's ${row.dataset.paper}`].filter(Boolean).join(", ")}`);
    add("p", `Changed${parent ? ` from ${parent}` : ""}: ${change}.`, detail);
    add("p", errors ? `Errors: ${errors} (top-1, top-5, %)${epochs ? `, ${epochs} epochs` : ""}.` : `No error noted${epochs ? `, ${epochs} epochs` : ""}.`, detail);
    if (verdict) add("p", `The author: ${verdict}.`, detail);
    if (caveats) add("p", `Caveats: ${caveats}.`, detail).className = "sure";
    if (row.dataset.recipe) add("p", "Train it: ", detail).appendChild(Object.assign(document.createElement("code"), { textContent: `-p recipe ${row.dataset.recipe}` }));
  }

  for (const svg of family.querySelectorAll("svg")) {
    const runs = [...svg.querySelectorAll(".run")];
    const take = a => { runs.forEach(r => r.tabIndex = r === a ? 0 : -1); show(id(a)); };
    const near = event => {
      const p = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      const far = a => Math.hypot(a.dataset.x - p.x, a.dataset.y - p.y);
      const best = runs.reduce((a, b) => far(b) < far(a) ? b : a);
      return far(best) < 24 ? best : null;
    };
    runs.forEach(r => r.tabIndex = -1);
    runs.find(r => id(r) === "run-145").tabIndex = 0;
    svg.addEventListener("pointermove", e => { const a = e.pointerType === "mouse" && near(e); if (a) show(id(a)); });
    svg.addEventListener("click", e => { const a = e.target.closest(".run") || near(e); e.preventDefault(); if (a) { take(a); a.focus(); } });
    svg.addEventListener("focusin", e => { const a = e.target.closest(".run"); if (a) take(a); });
    svg.addEventListener("keydown", e => {
      const a = e.target.closest(".run"), i = runs.indexOf(a);
      if (!a) return;
      const child = () => runs.find(r => parentOf(document.getElementById(id(r))) === id(a));
      const up = parentOf(document.getElementById(id(a)));
      const to = { ArrowRight: () => runs[i + 1], ArrowLeft: () => runs[i - 1], ArrowUp: () => runs.find(r => id(r) === up), ArrowDown: child,
                   Enter: () => { document.getElementById(id(a)).scrollIntoView({ block: "center" }); return a; } }[e.key];
      if (!to) return;
      e.preventDefault();
      to()?.focus();
    });
  }

  show("run-145");

  const heads = [...table.tHead.rows[0].cells], count = document.querySelector("#runs .count"), search = document.querySelector("#runs input");
  heads.forEach((th, i) => {
    const button = document.createElement("button");
    button.textContent = th.textContent;
    th.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = th.getAttribute("aria-sort") === "ascending";
      heads.forEach(h => h.removeAttribute("aria-sort"));
      th.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = r => r.cells[i].textContent, empty = r => key(r) === "";
      rows.sort((a, b) => empty(a) - empty(b) || (down ? -1 : 1) * key(a).localeCompare(key(b), "en", { numeric: true }));
      table.tBodies[0].append(...rows);
    });
  });
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/);
    rows.forEach(r => r.hidden = !words.every(w => r.textContent.toLowerCase().includes(w)));
    count.textContent = `${rows.filter(r => !r.hidden).length} of ${rows.length} runs`;
  };
  search.addEventListener("input", filter);
  filter();
})();
