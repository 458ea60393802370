// Three figures to play with: output size, response normalization, crops and colors. Where this does not run, the still pictures stay.
(() => {
  const clamp = (x, low, high) => Math.min(high, Math.max(low, x)), sign = x => String(x).replace("-", "−"), comma = x => x.toLocaleString("en-US");
  const times = (n, what) => `${comma(n)} ${what}${n === 1 ? "" : "s"}`, decimal = x => x.toFixed(7).replace(/0+$/, "");
  const fixed = (x, digits) => sign((Math.round(x * 10 ** digits) / 10 ** digits).toFixed(digits)); // no minus before a zero
  const add = (parent, kind, attributes, words = "") => {
    const e = parent.appendChild(document.createElementNS("http://www.w3.org/2000/svg", kind));
    for (const name in attributes) e.setAttribute(name, attributes[name]);
    return Object.assign(e, { textContent: words });
  };

  // `prepare` gets the form and two helpers, and returns what runs at every change; a button with data-set is a preset
  async function play(id, prepare) {
    const root = document.getElementById(id), form = root?.querySelector("form"), fields = form?.elements;
    if (!form?.hidden) return;
    const number = name => {
      const f = fields[name], x = parseFloat(f.value);
      return clamp(isNaN(x) ? +f.min : f.type === "number" ? Math.round(x) : x, +f.min, +f.max);
    };
    const out = (name, value, words = value) => {
      const e = form.querySelector(`[data-out="${name}"]`);
      e.dataset.value = value;
      if (e.textContent !== String(words)) e.textContent = words;
    };
    const presets = [...form.querySelectorAll("[data-set]")].map(button => [button, Object.entries(JSON.parse(button.dataset.set))]);
    const draw = await prepare(form, number, out);
    const show = () => {
      draw();
      for (const [b, set] of presets) b.setAttribute("aria-pressed", set.every(([name, x]) => fields[name].value === String(x)));
    };
    for (const [b, set] of presets) b.addEventListener("click", () => {
      for (const [name, x] of set) fields[name].value = x;
      form.dispatchEvent(new Event("input"));
    });
    form.addEventListener("click", e => {
      const [name, step] = (e.target.dataset.step || "").split(":");
      if (step) { fields[name].value = number(name) + +step; fields[name].value = number(name); show(); }
    });
    form.addEventListener("change", e => { if (e.target.type === "number") e.target.value = number(e.target.name); });
    form.addEventListener("submit", e => e.preventDefault());
    form.addEventListener("input", show);
    addEventListener("resize", show);
    form.hidden = false;
    show();
    root.querySelector(".still").hidden = true;
  }

  // windows along one axis, between two pixels: the whole of it, or enlarged with every pixel and every window's number
  function strip(svg, low, high, { size, kernel, stride, pad, count }) {
    const wide = svg.clientWidth, unit = wide / (high - low), near = unit > 6, edge = size + pad, top = near ? 42 : 30;
    const rows = Math.ceil(kernel / stride), [row, thick] = near ? (rows > 6 ? [9, 6] : [20, 17]) : rows > 6 ? [4, 2] : [7, 5];
    const x = p => ((p - low) * unit).toFixed(1), at = i => i * stride - pad;
    const box = (from, to, y, height, look) => {
      const a = Math.max(from, low - 0.5), b = Math.min(to, high + 0.5); // what is cut has no border at the cut
      if (b > a) add(svg, "rect", { x: x(a), y, width: ((b - a) * unit).toFixed(1), height, class: look });
    };
    const height = top + rows * row + 2;
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${wide} ${height}`);
    const pixels = (a, b, look) => box(a, b, 16, near ? 16 : 8, look);
    pixels(-pad, 0, "pad"); pixels(0, size, "pixel"); pixels(size, edge, "pad");
    if (count) pixels(Math.max(at(count - 1) + kernel, 0), size, "left");
    if (near) for (let p = Math.max(low, -pad) + 1; p < Math.min(high, edge); p++) add(svg, "path", { d: `M${x(p)} 16v16`, class: "grid" });
    for (let i = Math.max(0, Math.ceil((low + pad - kernel) / stride)); i < count && at(i) < high; i++) {
      const a = at(i), b = a + kernel, y = top + i % rows * row;
      const from = Math.max(low, a < 0 && b > 0 ? 0 : a), visible = (Math.min(b, high) - from) * unit;
      box(a, b, y, thick, `window${i === count - 1 ? " last" : ""}`);
      if (b > edge) box(Math.max(a, edge), b, y, thick, "over");
      const words = [`${i + 1}: ${sign(a)} to ${b - 1}`, `${i + 1}`].find(w => 6.6 * w.length + 8 < visible);
      if (row === 20 && words) add(svg, "text", { x: +x(from) + 5, y: y + 13 }, words);
    }
    for (const [p, name, anchor] of [[0, 0, "start"], [size, size - 1, "end"]]) if (p >= low && p <= high) {
      add(svg, "path", { d: `M${x(p)} 14V${height}`, class: "edge" });
      if (size > 1 || !p) add(svg, "text", { x: x(p), y: 11, style: `text-anchor: ${anchor}` }, `${p && !near ? "pixel " : ""}${name}`);
    }
  }

  play("play-size", (form, number, out) => {
    const [whole, first, last] = form.querySelectorAll("svg"), two = form.querySelector(".two");
    return () => {
      const [size, kernel, stride, pad] = ["input", "kernel", "stride", "pad"].map(number), up = form.elements.round.value === "ceil";
      const steps = (size + 2 * pad - kernel) / stride, rounded = up ? Math.ceil(steps) : Math.floor(steps), all = Math.max(0, rounded + 1);
      const dropped = up && all > 0 && (all - 1) * stride >= size + pad, count = all - dropped; // torch's rule
      const start = (count - 1) * stride - pad, end = start + kernel;
      const over = end - size - pad, left = size - end, padded = kernel - Math.max(0, Math.min(end, size) - Math.max(start, 0));
      const tail = over > 0 ? ` and hangs ${times(over, "pixel")} over the edge${pad ? " of the padding" : ""}.`
        : left > 0 ? `; ${times(left, "pixel")} at the end ${left === 1 ? "is" : "are"} in no window.`
        : padded ? `, ${padded} of them padding.` : ", to the end of the picture.";
      const words = [`The last one covers pixels ${sign(start)} to ${sign(end - 1)}${tail}`];
      if (!count) words[0] = `No window fits: ${kernel} is more than ${size} + 2 · ${pad}.`;
      if (dropped) words.push(`Rounding up gives ${all}; one would start in the padding, and torch does not count it.`);
      if (up && pad > kernel / 2) words.push("torch pools with no more padding than half a window.");
      if (stride > kernel && count > 1) words.push(`Between two windows lie ${times(stride - kernel, "pixel")} that none covers.`);
      out("count", count, times(count, "window"));
      out("last", count ? start : "", words.join(" "));
      const sum = `(${size} + 2 · ${pad} − ${kernel}) / ${stride} = ${sign(+steps.toFixed(2))}`;
      out("sum", steps, `${sum}, rounded ${up ? "up" : "down"} ${sign(rounded)}, plus 1`);
      const s = { size, kernel, stride, pad, count }, high = Math.max(size + pad, count ? end : 0) + 1;
      two.hidden = false;
      const cells = Math.floor(last.clientWidth / 13);
      strip(whole, -pad, high - 1, s);
      strip(first, -pad - 1, cells - pad - 1, s);
      strip(last, high - cells, high, s);
      two.hidden = high + pad + 1 <= cells; // the whole row shows every pixel then
    };
  });

  play("play-lrn", (form, number, out) => {
    const bars = [...form.querySelectorAll(".slot input")], most = +bars[0].max;
    let chosen = bars.findIndex(b => b.hasAttribute("data-chosen"));
    const change = () => form.dispatchEvent(new Event("input"));
    const pull = e => { // the sliders themselves get no pointer: they run sideways
      const track = e.target.closest(".track"), box = track?.getBoundingClientRect();
      if (!track || !(e.buttons & 1)) return;
      track.firstChild.value = Math.round(most * (box.bottom - e.clientY) / box.height);
      change();
    };
    form.addEventListener("focusin", e => { if (bars.includes(e.target)) { chosen = bars.indexOf(e.target); change(); } });
    form.addEventListener("pointerdown", e => {
      const track = e.target.closest(".track");
      if (!track) return;
      e.preventDefault();
      track.firstChild.focus({ preventScroll: true });
      track.setPointerCapture(e.pointerId);
      pull(e);
    });
    form.addEventListener("pointermove", pull);
    return () => {
      const a = bars.map(b => +b.value), [k, n, beta] = ["k", "n", "beta"].map(number), alpha = +(10 ** number("alpha")).toPrecision(2);
      const near = (i, j) => Math.abs(i - j) <= (n - 1) / 2, sum = i => a.reduce((s, x, j) => near(i, j) ? s + x * x : s, 0);
      const bracket = (i, over) => k + (over === "mean" ? alpha / n : alpha) * sum(i), factor = (i, over) => bracket(i, over) ** -beta;
      const over = form.elements.over.value;
      bars.forEach((bar, i) => {
        const slot = bar.closest(".slot"), f = factor(i, over);
        slot.classList.toggle("chosen", i === chosen);
        slot.classList.toggle("near", near(i, chosen));
        slot.style.setProperty("--in", a[i] / most);
        slot.style.setProperty("--out", a[i] * f / most);
        out(`in${i}`, a[i]);
        out(`out${i}`, a[i] * f, (a[i] * f).toFixed(1));
        out(`factor${i}`, f, `×${f < 0.1 ? f.toFixed(3).slice(1) : f.toFixed(2)}`);
        bar.setAttribute("aria-valuetext", `${a[i]}, normalized ${(a[i] * f).toFixed(1)}`);
      });
      out("alpha", alpha, decimal(alpha));
      form.elements.alpha.setAttribute("aria-valuetext", decimal(alpha));
      out("k", k, k.toFixed(1)); out("n", n); out("beta", beta, beta.toFixed(2));
      out("channel", chosen + 1);
      out("factor", factor(chosen, over), factor(chosen, over).toFixed(3));
      out("squares", sum(chosen), comma(sum(chosen)));
      for (const o of ["sum", "mean"]) {
        const d = factor(chosen, o);
        const scale = decimal(alpha) + (o === "mean" ? ` / ${n}` : "");
        out(`${o}-bracket`, bracket(chosen, o), `${k} + ${scale} · ${comma(sum(chosen))} = ${bracket(chosen, o).toFixed(2)}`);
        out(`${o}-factor`, d, d.toFixed(3));
        out(`${o}-out`, a[chosen] * d, (a[chosen] * d).toFixed(1));
      }
      out("same", alpha * n, `α = ${decimal(alpha * n)}`);
    };
  });

  play("play-crop", async (form, number, out) => {
    const [stage, view] = form.querySelectorAll("canvas"), frame = form.querySelector(".frame"), fields = form.elements, names = ["c1", "c2", "c3"];
    const picture = new Image(), axes = JSON.parse(form.dataset.axes), std = +form.dataset.std;
    const size = stage.width, side = view.width, border = size - side;
    picture.src = form.parentNode.querySelector("image").getAttribute("href");
    await picture.decode();
    const pen = stage.getContext("2d"), paper = view.getContext("2d"), square = paper.createImageData(side, side);
    pen.drawImage(picture, 0, 0);
    const pixels = pen.getImageData(0, 0, size, size).data, drawn = {}; // what was drawn, exactly; a slider knows tenths
    const move = (top, left) => { fields.top.value = top; fields.left.value = left; form.dispatchEvent(new Event("input")); };
    form.addEventListener("input", e => delete drawn[e.target.name]);
    form.querySelector(".reset").addEventListener("click", () => {
      names.forEach(c => { fields[c].value = 0; delete drawn[c]; });
      fields.flip.checked = false;
      move(border / 2, border / 2);
    });
    frame.addEventListener("keydown", e => {
      const way = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[e.key], far = e.shiftKey ? 8 : 1;
      if (way) { e.preventDefault(); move(number("top") + far * way[0], number("left") + far * way[1]); }
    });
    let grip;
    frame.parentNode.addEventListener("pointerdown", e => {
      e.preventDefault();
      frame.focus({ preventScroll: true });
      frame.parentNode.setPointerCapture(e.pointerId);
      grip = [number("top") - e.clientY * size / stage.clientHeight, number("left") - e.clientX * size / stage.clientWidth];
    });
    frame.parentNode.addEventListener("pointermove", e => {
      const pulled = [e.clientY * size / stage.clientHeight, e.clientX * size / stage.clientWidth];
      if (e.buttons & 1 && grip) move(...pulled.map((x, i) => Math.round(grip[i] + x)));
    });
    const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
    const place = () => Math.floor(Math.random() * (border + 1));
    form.querySelector(".draw").addEventListener("click", () => {
      names.forEach(c => { drawn[c] = normal(); fields[c].value = drawn[c]; });
      fields.flip.checked = Math.random() < 0.5;
      move(place(), place());
    });
    return () => {
      const [top, left] = ["top", "left"].map(number), flip = fields.flip.checked, factors = names.map(c => std * (drawn[c] ?? number(c)));
      const shift = axes.map(row => row.reduce((s, x, i) => s + x * factors[i], 0)), levels = x => `+${fixed(x, 1)}`.replace("+−", "−");
      for (let y = 0, to = 0; y < side; y++) for (let x = 0; x < side; x++, to += 4) {
        const from = 4 * ((top + y) * size + left + (flip ? side - 1 - x : x));
        for (let c = 0; c < 3; c++) square.data[to + c] = pixels[from + c] + shift[c]; // rounded, and cut at 0 and 255
        square.data[to + 3] = 255;
      }
      paper.putImageData(square, 0, 0);
      Object.assign(frame.style, { top: `${100 * top / size}%`, left: `${100 * left / size}%` });
      names.forEach((c, i) => out(c, factors[i], fixed(factors[i], 2)));
      out("top", top); out("left", left);
      out("place", `${top},${left},${+flip}`, `Top ${top}, left ${left}, ${flip ? "mirrored" : "not mirrored"}`);
      out("crops", 2 * (border + 1) ** 2, `${border + 1} · ${border + 1} · 2 = ${comma(2 * (border + 1) ** 2)}`);
      ["red", "green", "blue"].forEach((name, c) => out(name, shift[c], levels(shift[c])));
    };
  });
})();
