/** The page: what is asked of the worker, and what is shown of its answers. */

const at = (id) => document.getElementById(id);
const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
const REMEMBERED = 24;
const history = [];
let about = null, number = 0, going = null, last = null, kept = null;

// ---- showing ------------------------------------------------------------------------------------------------------

function say(text, wrong = false) {
  at("said").textContent = text;
  at("said").classList.toggle("wrong", wrong);
}

function part(share) {
  at("progress").hidden = share === null;
  if (share !== null) at("progress").value = share;
}

/** Put pixels (RGBA of a square, or of the model's sides) on a canvas. */
function put(canvas, pixels) {
  const { height, width } = about.latent, scale = Math.round(Math.sqrt(pixels.length / 4 / (height * width)));
  canvas.width = width * scale;
  canvas.height = height * scale;
  canvas.style.aspectRatio = `${width} / ${height}`;
  canvas.getContext("2d").putImageData(new ImageData(pixels, canvas.width, canvas.height), 0, 0);
  return canvas;
}

function element(tag, text = "", ...inside) {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  made.append(...inside);
  return made;
}

const named = (asked) => [asked.sampler, asked.grid, `${asked.steps} calls`, `guidance ${asked.guidance}`, `seed ${asked.seed}`]
  .filter(Boolean).join(" · ");

function show(drawn) {
  last = drawn;
  put(at("picture"), drawn.pixels);
  const cut = drawn.cut ? ` · too long: “${drawn.cut}” was left out` : "";
  at("caption").textContent = `${drawn.asked.prompt} · ${named(drawn.asked)} · ${drawn.seconds.toFixed(1)} s${cut}`;
  at("tools").hidden = false;
}

function showHistory() {
  at("history-title").hidden = history.length < 2;
  at("history").replaceChildren(...history.slice(1).map((drawn) => {
    const canvas = put(element("canvas"), drawn.pixels);
    const button = element("button", "", canvas, element("span", `${drawn.asked.prompt} · ${drawn.asked.sampler} ${drawn.asked.steps}`));
    Object.assign(button, { type: "button", title: `${drawn.asked.prompt}\n${named(drawn.asked)}` });
    button.addEventListener("click", () => { fill(drawn.asked); show(drawn); });
    return element("li", "", button);
  }));
}

function showKept() {
  at("pair").querySelectorAll(".kept").forEach((each) => each.remove());
  at("pair").classList.toggle("two", Boolean(kept));
  at("keep").textContent = kept ? "Let go of the one beside" : "Keep beside the next";
  if (!kept) return;
  const frame = element("div", "", put(element("canvas"), kept.pixels), element("small", `${kept.asked.prompt} · ${named(kept.asked)}`));
  frame.className = "frame kept";
  at("pair").prepend(frame);
}

// ---- the form -----------------------------------------------------------------------------------------------------

const sampler = () => about.samplers.find(({ name }) => name === at("sampler").value);

function asked() {
  const { files } = sampler(), grid = at("grid").value;
  return {
    prompt: at("prompt").value.trim(), negative: at("negative").value.trim(), sampler: at("sampler").value, grid,
    file: files[grid], steps: Number(at("steps").value), guidance: Number(at("guidance").value),
    seed: Math.min(Math.max(Math.trunc(Number(at("seed").value)) || 0, 0), 2 ** 32 - 1), preview: at("preview").checked,
  };
}

function fill(given) {
  for (const name of ["prompt", "negative", "sampler", "steps", "guidance", "seed"]) {
    if (given[name] !== undefined && given[name] !== null) at(name).value = given[name];
  }
  if (!at("sampler").value) at("sampler").value = about.samplers[0].name;
  if (!at("steps").value) at("steps").value = "12";
  changed(given.grid ?? "");
}

/** What follows from the sampler: its grids and what is to be known of it. */
function changed(grid = at("grid").value) {
  const { files, note, fresh, order, mild } = sampler();
  at("grid").replaceChildren(...Object.keys(files).map((name) => new Option(name || "its own", name)));
  at("grid").value = grid in files ? grid : Object.keys(files)[0];
  const facts = [note, order && `order ${order}`, fresh && "draws fresh noise", mild && "takes guidance of 1 to 2"];
  at("note").textContent = facts.filter(Boolean).join("; ");
  at("guidance-shown").value = at("guidance").value;
}

function chips(title, words, write) {
  const box = element("div", "", ...words.map(([word, text]) => {
    const button = element("button", word);
    button.type = "button";
    button.addEventListener("click", () => write(text));
    return button;
  }));
  box.className = "chips";
  return element("details", "", element("summary", title), box);
}

function offerWords() {
  const write = (text) => { at("prompt").value = text; };
  const add = (text) => { at("prompt").value = `${at("prompt").value.trim()} ${text}`.trim(); };
  const article = (word) => `${/^[aeiou]/.test(word) ? "an" : "a"} ${word}`;
  const kinds = Object.entries(about.things).map(([kind, all]) => chips(kind, all.map((word) => [word, article(word)]), write));
  const colours = about.colours.map((word) => [word, `on a ${word} background`]);
  const styles = Object.entries(about.styles).map(([name, text]) => [name, `, ${text}`]);
  const more = [["backgrounds", colours], ["styles", styles]].filter(([, all]) => all.length);
  const inside = [...kinds, ...more.map(([title, all]) => chips(title, all, add))];
  if (inside.length) at("words").replaceChildren(element("details", "", element("summary", "Words it knows"), ...inside));
}

function start() {
  const names = about.samplers.map(({ name, note }) => new Option(note.startsWith("recommended") ? `${name} (recommended)` : name, name));
  at("sampler").replaceChildren(...names);
  at("steps").replaceChildren(...about.counts.map((count) => new Option(count, count)));
  offerWords();
  const link = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  fill({ steps: 12, guidance: about.guidance, ...link });
  at("draw").disabled = false;
  part(null);
  say("Ready.");
  ask();
}

function ask() {
  const wanted = { ...asked(), number: number + 1 };
  if (!wanted.prompt) return say("Write what to draw, or choose a word.", true);
  number += 1;
  const { name, mild } = sampler();
  const far = mild && wanted.guidance > 3 ? ` ${name} takes guidance of 1 to 2.` : "";
  going = wanted;
  at("strip").replaceChildren();
  at("stop").hidden = false;
  part(0);
  say(`Drawing …${far}`, Boolean(far));
  worker.postMessage({ kind: "draw", ...wanted });
}

function ended(text, wrong = false) {
  going = null;
  at("stop").hidden = true;
  part(null);
  say(text, wrong);
}

// ---- what the worker says -----------------------------------------------------------------------------------------

const answers = {
  loading: ({ part: name }) => say(`Loading the ${name.replace("_", " ")} …`),
  reading: ({ name, come, all }) => {
    part(all ? come / all : 0);
    say(`Loading ${name.replace(".onnx", "").replace("_", " ")}: ${(come / 1e6).toFixed(0)} of ${(all / 1e6).toFixed(0)} MB`);
  },
  ready: (told) => { about = told.about; start(); },
  step: ({ number: of, i, steps, pixels }) => {
    if (of !== number) return;
    part((i + 1) / steps);
    if (!pixels) return;
    put(at("picture"), pixels);
    const shown = element("li", "", put(element("canvas"), pixels), element("span", String(i + 1)));
    at("strip").append(shown);
    at("strip").scrollLeft = at("strip").scrollWidth;
  },
  drawn: ({ number: of, ...drawn }) => {
    if (of !== number) return;
    history.unshift({ ...drawn, asked: going });
    history.length = Math.min(history.length, REMEMBERED);
    show(history[0]);
    showHistory();
    const cut = [drawn.cut, drawn.negativeCut].filter(Boolean).join(" … ");
    ended(cut ? `Too long for this model: “${cut}” was left out.` : "Drawn.", Boolean(cut));
    document.body.dataset.drawn = Number(document.body.dataset.drawn ?? 0) + 1; // how many, for tests
  },
  stopped: ({ number: of }) => { if (of === number) ended("Stopped."); },
  failed: ({ message }) => { ended(message, true); at("caption").textContent = ""; },
};
worker.onmessage = ({ data }) => answers[data.kind](data);
worker.onerror = () => ended("The model is not here: python docs/live/make.py makes it.", true);

// ---- what people do -----------------------------------------------------------------------------------------------

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function command({ prompt, negative, sampler: name, grid, steps, guidance, seed }) {
  const more = [grid && `--grid ${grid}`, negative && `--negative ${quoted(negative)}`].filter(Boolean);
  const options = [`--sampler ${quoted(name)}`, `--steps ${steps}`, `--guidance ${guidance}`, `--seed ${seed}`, ...more];
  return `sd-ext generate ${quoted(prompt)} ${options.join(" ")}`;
}

function copied(text, what) {
  navigator.clipboard.writeText(text).then(() => say(`${what} copied.`), () => say(text));
}

at("form").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
at("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey) return;
  event.preventDefault();
  if (!at("draw").disabled) ask();
});
at("sampler").addEventListener("change", () => changed());
at("guidance").addEventListener("input", () => { at("guidance-shown").value = at("guidance").value; });
at("dice").addEventListener("click", () => { at("seed").value = Math.floor(Math.random() * 1e6); ask(); });
at("stop").addEventListener("click", () => worker.postMessage({ kind: "stop" }));
at("command").addEventListener("click", () => copied(command(last.asked), "Command"));
at("link").addEventListener("click", () => {
  const { prompt, negative, sampler: name, grid, steps, guidance, seed } = last.asked;
  const told = new URLSearchParams({ prompt, negative, sampler: name, grid, steps, guidance, seed });
  window.history.replaceState(null, "", `#${told}`);
  copied(location.href, "Link");
});
at("keep").addEventListener("click", () => { kept = kept ? null : last; showKept(); });
at("save").addEventListener("click", () => put(element("canvas"), last.pixels).toBlob((blob) => {
  const link = Object.assign(element("a"), { href: URL.createObjectURL(blob), download: `${last.asked.prompt.replace(/\W+/g, "-")}.png` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}));

worker.postMessage({ kind: "load" });
