// Runs tables in docs/live/runner.js: reads cases from the standard input as JSON, writes the latents they end with.
import { readFileSync } from "node:fs";
import { sample } from "../../docs/live/runner.js";

const { kind, cases } = JSON.parse(readFileSync(0, "utf-8"));
const Numbers = { float64: Float64Array, float32: Float32Array }[kind];
const network = (x, t) => {
  const m = x.map((v) => (v * 0.7 + t * 0.001) / (1 + v * v));
  return [m, x.map((v, k) => m[k] * 0.5 - v * 0.25)];
};
const ended = [];
for (const { run, start, noise, halves } of cases) {
  const x = await sample(run, network, Numbers.from(start), { noise: (i) => Numbers.from(noise[i]), halves });
  ended.push(Array.from(x));
}
process.stdout.write(JSON.stringify(ended));
