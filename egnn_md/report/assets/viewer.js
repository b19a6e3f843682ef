"use strict";
(() => {
  // Charts.
  for (const place of document.querySelectorAll("[data-chart]")) {
    const spec = JSON.parse(place.parentElement.querySelector("script").textContent);
    Plotly.newPlot(place, spec.data, spec.layout, { responsive: true, displaylogo: false,
      displayModeBar: "hover", modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] });
  }

  // 3D view: depth-sorted shaded spheres and sticks on a plain canvas, so that it needs no WebGL.
  const COLOURS = { H: "#f2f2f2", C: "#5a5f66", N: "#3f62d8", O: "#dd3b2e", F: "#7ecf5a", Na: "#9a5fd0", Mg: "#6fbf3a",
    P: "#e8872b", S: "#e2c22f", Cl: "#3fb64b", K: "#7d4cc2", Ca: "#4f9e3f", Fe: "#c96a2b", Br: "#9b3a2a", I: "#7a2f94",
    Ar: "#63c7d6", He: "#bfeef2", Ne: "#8fdce8", Li: "#b57be0", B: "#e3a7a0", Si: "#d2b17c", Al: "#b0a3a6", Cu: "#c7803a",
    Zn: "#7d80b0", Au: "#d9b527", Ag: "#b8bcc2" };
  const RADII = { H: 0.3, C: 0.42, N: 0.41, O: 0.42, F: 0.4, P: 0.5, S: 0.5, Cl: 0.5 };
  const BACKGROUND = [251, 252, 253], FOG = 8, SPRITE = 64;
  const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  const mix = (a, b, t) => a.map((v, i) => Math.round(v + (b[i] - v) * t));
  const css = (c) => `rgb(${c[0]},${c[1]},${c[2]})`;

  function sprite(c, fog) {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = SPRITE;
    const g = canvas.getContext("2d"), r = SPRITE / 2;
    const faded = (x) => css(mix(x, BACKGROUND, fog * 0.72));
    const shade = g.createRadialGradient(r * 0.68, r * 0.62, r * 0.05, r, r, r);
    shade.addColorStop(0, faded(mix(c, [255, 255, 255], 0.75)));
    shade.addColorStop(0.4, faded(c));
    shade.addColorStop(1, faded(mix(c, [0, 0, 0], 0.48)));
    g.fillStyle = shade;
    g.beginPath();
    g.arc(r, r, r - 1, 0, 2 * Math.PI);
    g.fill();
    return canvas;
  }

  function decode(data, text) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const coded = new Uint16Array(bytes.buffer), out = new Float32Array(coded.length);
    for (let i = 0; i < coded.length; i++) out[i] = data.low[i % 3] + coded[i] / 65535 * data.scale[i % 3];
    return out;
  }

  function view(figure) {
    const data = JSON.parse(figure.querySelector("script").textContent);
    // Panels stand side by side, seen from one direction: a reference beside a rollout.
    const panels = (data.panels || [{ name: "", positions: data.positions }])
      .map((p) => ({ name: p.name, positions: decode(data, p.positions) }));
    const n = data.symbols.length, frames = data.times.length, unit = data.unit === undefined ? "ps" : data.unit;
    const margin = data.margin || 1, origin = data.origin || [0, 0, 0];
    const colour = (symbol) => rgb((data.colours || COLOURS)[symbol] || "#d070b0");
    const canvas = figure.querySelector("canvas"), g = canvas.getContext("2d");
    const slider = figure.querySelector("input[type=range]"), play = figure.querySelector(".play");
    const text = figure.querySelector("output"), rate = figure.querySelector("select");
    const showCell = figure.querySelector(".cell"), legend = figure.querySelector(".legend");
    const elements = [...new Set(data.symbols)];
    const sprites = {};
    for (const e of elements) sprites[e] = Array.from({ length: FOG }, (_, k) => sprite(colour(e), k / (FOG - 1)));
    const radius = data.symbols.map((s) => data.radius || RADII[s] || 0.55);
    for (const e of data.colours ? [] : elements) {
      const item = document.createElement("span"), dot = document.createElement("i");
      dot.style.background = css(colour(e));
      item.append(dot, e);
      legend.append(item);
    }
    if (!data.cells) showCell.parentElement.style.display = "none";
    slider.max = frames - 1;

    // The middle and extent of everything that is ever shown.
    const centre = [0, 1, 2].map((k) => data.low[k] + data.scale[k] / 2);
    let extent = Math.hypot(...data.scale) / 2 + margin;
    if (data.cells) {
      const half = [0, 1, 2].map((k) => (data.cells[0][k] + data.cells[0][3 + k] + data.cells[0][6 + k]) / 2);
      for (let k = 0; k < 3; k++) centre[k] = origin[k] + half[k];
      extent = Math.max(extent * 0.8, Math.hypot(...half) * 1.02) + 0.5 * margin;
    }
    const START = [0.42, -0.62];
    let rotation, zoom, frame = 0, timer = null, pending = false;
    const multiply = (a, b) => [0, 1, 2].map((i) => [0, 1, 2].map((j) => a[i][0] * b[0][j] + a[i][1] * b[1][j] + a[i][2] * b[2][j]));
    const aboutX = (t) => [[1, 0, 0], [0, Math.cos(t), -Math.sin(t)], [0, Math.sin(t), Math.cos(t)]];
    const aboutY = (t) => [[Math.cos(t), 0, Math.sin(t)], [0, 1, 0], [-Math.sin(t), 0, Math.cos(t)]];
    function reset() { rotation = multiply(aboutX(START[0]), aboutY(START[1])); zoom = 1; redraw(); }
    const turn = (x, y, z) => {
      const p = [x - centre[0], y - centre[1], z - centre[2]];
      return rotation.map((row) => row[0] * p[0] + row[1] * p[1] + row[2] * p[2]);
    };

    function redraw() {
      if (!pending) { pending = true; requestAnimationFrame(() => { pending = false; draw(); }); }
    }

    function draw() {
      const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
      if (!width) return;
      if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
        canvas.width = Math.round(width * ratio);
        canvas.height = Math.round(height * ratio);
      }
      g.setTransform(ratio, 0, 0, ratio, 0, 0);
      g.clearRect(0, 0, width, height);
      const share = width / panels.length;
      const far = 4 * extent, base = 0.5 * Math.min(share, height) / extent * zoom;
      panels.forEach((panel, index) => {
        g.save();
        g.beginPath();
        g.rect(index * share, 0, share, height);
        g.clip();
        drawPanel(panel.positions, (index + 0.5) * share, height / 2, far, base);
        g.restore();
        if (!panel.name) return;
        g.fillStyle = "#384552";
        g.font = "600 13px system-ui, sans-serif";
        g.fillText(panel.name, index * share + 14, 22);
      });
      const time = data.times[frame], shown = unit === "ps" ? time.toFixed(3) : String(Number(time.toPrecision(5)));
      text.textContent = `${shown} ${unit}  (${frame + 1}/${frames})`;
      slider.value = frame;
    }

    function drawPanel(positions, middle, level, far, base) {
      // Perspective: things nearer to the eye at distance `far` are larger.
      const project = (q) => { const s = base * far / (far - q[2]); return [middle + q[0] * s, level - q[1] * s, s]; };
      const fog = (z) => Math.min(1, Math.max(0, 0.5 - 0.5 * z / extent));
      const items = [], spots = new Array(n), at = frame * n * 3;
      for (let i = 0; i < n; i++) {
        const q = turn(positions[at + 3 * i], positions[at + 3 * i + 1], positions[at + 3 * i + 2]);
        spots[i] = { q, p: project(q) };
        items.push({ z: q[2], atom: i });
      }
      for (const [i, j] of data.bonds) {
        const a = spots[i].q, b = spots[j].q, m = a.map((v, k) => (v + b[k]) / 2), pm = project(m);
        // a little behind its atom, so that the sphere covers the end
        items.push({ z: (a[2] + m[2]) / 2 - 0.15 * margin, from: spots[i].p, to: pm, symbol: data.symbols[i] });
        items.push({ z: (b[2] + m[2]) / 2 - 0.15 * margin, from: spots[j].p, to: pm, symbol: data.symbols[j] });
      }
      if (data.cells && showCell.checked) {
        const c = data.cells[frame], [ox, oy, oz] = origin;
        const corner = (i, j, k) => turn(ox + i * c[0] + j * c[3] + k * c[6], oy + i * c[1] + j * c[4] + k * c[7], oz + i * c[2] + j * c[5] + k * c[8]);
        const PARTS = 8;
        for (let axis = 0; axis < 3; axis++) for (let u = 0; u < 2; u++) for (let v = 0; v < 2; v++) {
          const end = (t) => corner(...[0, 1, 2].map((k) => k === axis ? t : k === (axis + 1) % 3 ? u : v));
          for (let s = 0; s < PARTS; s++) {
            const a = end(s / PARTS), b = end((s + 1) / PARTS);
            items.push({ z: (a[2] + b[2]) / 2, from: project(a), to: project(b), edge: true });
          }
        }
      }
      items.sort((a, b) => a.z - b.z);
      g.lineCap = "round";
      for (const item of items) {
        const f = fog(item.z);
        if (item.atom !== undefined) {
          const [x, y, s] = spots[item.atom].p, r = radius[item.atom] * s;
          g.drawImage(sprites[data.symbols[item.atom]][Math.round(f * (FOG - 1))], x - r, y - r, 2 * r, 2 * r);
          continue;
        }
        g.beginPath();
        g.moveTo(item.from[0], item.from[1]);
        g.lineTo(item.to[0], item.to[1]);
        if (item.edge) {
          g.lineWidth = 1.2;
          g.strokeStyle = css(mix([70, 84, 100], BACKGROUND, 0.25 + f * 0.5));
        } else {
          const c = mix(colour(item.symbol), [0, 0, 0], 0.16), s = (item.from[2] + item.to[2]) / 2;
          g.lineWidth = Math.max(1, 0.2 * s);
          g.strokeStyle = css(mix(c, [0, 0, 0], 0.35).map((v, k) => Math.round(v + (BACKGROUND[k] - v) * f * 0.72)));
          g.stroke();
          g.lineWidth = Math.max(0.6, 0.13 * s);
          g.strokeStyle = css(mix(c, BACKGROUND, f * 0.72));
        }
        g.stroke();
      }
    }

    function go(to) { frame = (to + frames) % frames; redraw(); }
    function toggle(on = timer === null) {
      if (timer !== null) clearInterval(timer);
      timer = on && frames > 1 ? setInterval(() => go(frame + 1), 1000 / Number(rate.value)) : null;
      play.textContent = timer === null ? "▶" : "❚❚";
      play.setAttribute("aria-label", timer === null ? "Play" : "Pause");
    }
    play.addEventListener("click", () => toggle());
    rate.addEventListener("change", () => { if (timer !== null) toggle(true); });
    slider.addEventListener("input", () => { toggle(false); go(Number(slider.value)); });
    showCell.addEventListener("change", redraw);
    figure.querySelector(".reset").addEventListener("click", reset);
    canvas.addEventListener("dblclick", reset);

    const pointers = new Map();
    canvas.addEventListener("pointerdown", (e) => { canvas.setPointerCapture(e.pointerId); pointers.set(e.pointerId, [e.clientX, e.clientY]); });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (e) => pointers.delete(e.pointerId));
    canvas.addEventListener("pointermove", (e) => {
      const last = pointers.get(e.pointerId);
      if (!last) return;
      const now = [e.clientX, e.clientY];
      if (pointers.size === 1) {
        rotation = multiply(multiply(aboutX((now[1] - last[1]) * 0.008), aboutY((now[0] - last[0]) * 0.008)), rotation);
      } else {
        const other = [...pointers].find(([id]) => id !== e.pointerId)[1];
        const before = Math.hypot(last[0] - other[0], last[1] - other[1]), after = Math.hypot(now[0] - other[0], now[1] - other[1]);
        if (before > 0) zoom = Math.min(8, Math.max(0.3, zoom * after / before));
      }
      pointers.set(e.pointerId, now);
      redraw();
    });
    canvas.addEventListener("wheel", (e) => { e.preventDefault(); zoom = Math.min(8, Math.max(0.3, zoom * Math.exp(-e.deltaY * 0.001))); redraw(); }, { passive: false });
    figure.addEventListener("keydown", (e) => {
      if (e.target.closest("input, select, button")) return;
      if (e.key === " ") toggle();
      else if (e.key === "ArrowRight") go(frame + 1);
      else if (e.key === "ArrowLeft") go(frame - 1);
      else return;
      e.preventDefault();
    });
    new ResizeObserver(redraw).observe(canvas);
    reset();
  }
  document.querySelectorAll("[data-viewer]").forEach(view);
})();
