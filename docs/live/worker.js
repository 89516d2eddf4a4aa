/** The pipeline in a worker, so that the page stays quick: answers { load } and { draw } with what happens. */

import * as ort from "./made/ort/ort.wasm.bundle.min.mjs";
import { Pipeline, Stopped } from "./pipeline.js";

const made = new URL("./made/", import.meta.url);
ort.env.wasm.wasmPaths = { wasm: new URL("ort/ort-wasm-simd-threaded.wasm", made).href };
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;

let pipeline = null, wanted = 0;
const say = (told, give = []) => self.postMessage(told, give);
const breath = () => new Promise((done) => { setTimeout(done); }); // so that the next message can come in

/** The bytes of a file of the folder; how much of large ones has come is told. */
async function read(name) {
  const answer = await fetch(new URL(name, made));
  if (!answer.ok) throw new Error(`${name} is not here (${answer.status}): python docs/live/make.py makes it`);
  const parts = [], all = Number(answer.headers.get("content-length"));
  let come = 0;
  for (const reader = answer.body.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    come += value.length;
    if (name.endsWith(".onnx")) say({ kind: "reading", name, come, all });
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

async function load() {
  pipeline = await Pipeline.load(ort, read, (part) => say({ kind: "loading", part }));
  say({ kind: "ready", about: pipeline.about });
}

async function draw(asked) {
  const started = performance.now(), number = asked.number;
  wanted = number;
  await breath();
  const onStep = async (told) => {
    say({ kind: "step", number, ...told });
    await breath();
  };
  try {
    const { pixels, cut, negativeCut } = await pipeline.draw({ ...asked, onStep, stopped: () => wanted !== number });
    say({ kind: "drawn", number, pixels, cut, negativeCut, seconds: (performance.now() - started) / 1000 });
  } catch (error) {
    say(error instanceof Stopped ? { kind: "stopped", number } : { kind: "failed", number, message: error.message });
  }
}

let last = Promise.resolve();
self.onmessage = ({ data }) => {
  if (data.kind === "stop") wanted = -1;
  if (data.kind === "load") load().catch((error) => say({ kind: "failed", message: error.message }));
  if (data.kind === "draw") {
    wanted = data.number; // what is being drawn stops
    last = last.then(() => (wanted === data.number ? draw(data) : say({ kind: "stopped", number: data.number })));
  }
};
