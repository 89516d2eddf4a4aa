/**
 * Runs samplers that sd_ext has written as JSON (docs/interchange.md, sampler.schema.json): one file, no dependencies.
 *
 *     import { sample } from "./runner.js";
 *     const run = await (await fetch("dpmpp_2m-8.json")).json();   // sd-ext samplers "dpm++ 2m" --steps 8 --json
 *     const x = await sample(run, (x, t) => network(x, t), start, { noise: () => normal(start.length) });
 *
 * Latents are Float64Array or Float32Array. One call is one small matrix: x' and stash' are weighted sums of x, stash,
 * the predictions p0 p1 ... (newest first; with two fields then u0 u1 ...) and noise. What the network predicts is
 * worked into the weights before the first call, in the same order of operations as in Python, so that float64 has the
 * same bits.
 */

const X = 0, STASH = 1, P0 = 2;

/** [cx, cm] with p = cx x + cm m, m the network's output, p of the basis "x0" or "eps", x = alpha x0 + sigma eps. */
export function linearMap({ kind, sign = 1, sigma_data: data = 1, sigma_min: least = 0 }, basis, alpha, sigma) {
  const pick = (x0, eps) => { const [cx, cm] = basis === "x0" ? x0 : eps; return [cx, sign * cm]; };
  if (kind === "sample") return pick([0, 1], [1 / sigma, -alpha / sigma]);
  if (kind === "epsilon") return pick([1 / alpha, -sigma / alpha], [0, 1]);
  if (kind === "v_prediction") {
    const norm = alpha * data * (alpha * data) + sigma * sigma;
    return pick([alpha * (data * data) / norm, -sigma * data / norm], [sigma / norm, alpha * data / norm]);
  }
  if (kind === "flow_prediction") {
    const norm = alpha + sigma;
    return pick([1 / norm, -sigma / norm], [1 / norm, alpha / norm]);
  }
  if (kind === "consistency") {
    const above = sigma / alpha - least, skip = data * data / (above * above + data * data) / alpha;
    const out = above * data / Math.sqrt(sigma / alpha * (sigma / alpha) + data * data);
    return pick([skip, out], [(1 - alpha * skip) / sigma, -alpha * out / sigma]);
  }
  throw new Error(`prediction.kind ${kind} is unknown`);
}

/** For each call its weights of [x, m, stash, noise, past..., second, past of second...], and what later calls need. */
function compile({ alpha, sigma, rows, basis }, fields, prediction, clipped) {
  const history = (rows[0][0].length - 3) / fields, last = rows[0][0].length - 1;
  const firsts = fields === 2 ? [P0, P0 + history] : [P0];
  const maps = rows.map((_, i) => linearMap(prediction, basis, alpha[i], sigma[i]));
  const reads = clipped ? maps.map(() => [0, 1]) : maps;
  const scale = (i) => reads[i][0] || reads[i][1];
  const fold = (i, row) => {
    const [cx, cm] = reads[i];
    const of = (first, j) => (j <= i ? row[first + j] * scale(i - j) : 0);
    const past = (first) => Array.from({ length: history - 1 }, (_, j) => of(first, j + 1));
    const ofX = row[X] + firsts.reduce((sum, first) => sum + row[first], 0) * cx;
    const second = firsts.slice(1).flatMap((first) => [row[first] * cm, ...past(first)]);
    return [ofX, row[P0] * cm, row[STASH], row[last], ...past(P0), ...second];
  };
  const lastRead = rows.findLastIndex((call) => call.some((row) => row[STASH]));
  return rows.map((call, i) => ({
    map: maps[i], alpha: alpha[i], sigma: sigma[i],
    x: fold(i, call[0]),
    stash: lastRead <= i ? null : fold(i, call[1]),
    keep: reads[i][0] ? reads[i][1] / reads[i][0] : null,
    noisy: Boolean(call[0][last] || call[1][last]),
    second: firsts.slice(1).some((first) => call.some((row) => row[first])
      || rows.slice(i + 1, i + history).some((later, j) => later.some((row) => row[first + j + 1]))),
  }));
}

/** sum of weight * tensor, term by term; weights of 0 and tensors that are not there are left out. */
function weighted(weights, tensors, like) {
  const terms = weights.map((w, j) => [w, tensors[j]]).filter(([w]) => w), out = new like.constructor(like.length);
  for (let k = 0; k < out.length; k++) {
    let sum = terms.length ? terms[0][1][k] * terms[0][0] : 0;
    for (let j = 1; j < terms.length; j++) sum += terms[j][1][k] * terms[j][0];
    out[k] = sum;
  }
  return out;
}

/** A run: how far it is, and what it remembers of earlier calls. `halves`: whether `second` can be given. */
export class Run {
  constructor(run, { halves = true } = {}) {
    if (run.format !== "sd_ext.run/1") throw new Error(`a run's format is sd_ext.run/1, not ${run.format}`);
    const table = !halves && run.companion ? run.companion : run.table;
    const fields = { "sd_ext.table/1": 1, "sd_ext.table/2": 2 }[table.format];
    if (!fields) throw new Error(`a table's format is sd_ext.table/1 or /2, not ${table.format}`);
    Object.assign(this, { run, fields, basis: table.basis, half: table.second ?? "unconditional" });
    this.clip = run.clip ?? null;
    this.calls = compile(table, fields, run.prediction, this.clip !== null);
    this.depth = (table.rows[0][0].length - 3) / fields - 1;
    Object.assign(this, { position: 0, stash: null, past: [], pastSecond: [] });
  }

  /** The prediction of x0 at the next call, clipped if it is to be. */
  denoised(x, m) {
    const { alpha, sigma } = this.calls[this.position];
    const x0 = weighted(linearMap(this.run.prediction, "x0", alpha, sigma), [x, m], x);
    return this.clip === null ? x0 : x0.map((v) => Math.min(Math.max(v, -this.clip), this.clip));
  }

  /** x' out of x, the network's output m, and where the next call asks for them noise and the second output. */
  advance(x, m, noise = null, second = null) {
    const call = this.calls[this.position];
    if (call.noisy && !noise) throw new Error(`call ${this.position} needs noise`);
    if (call.second && !second) throw new Error(`call ${this.position} needs the ${this.half} prediction too`);
    if (this.clip !== null) [m, second] = [m, second].map((each) => each && this.clipped(call, x, each));
    const padded = (past) => Object.assign(new Array(this.depth).fill(null), past);
    const tensors = [x, m, this.stash, noise, ...padded(this.past), second, ...padded(this.pastSecond)];
    const next = weighted(call.x, tensors, x);
    if (call.stash) this.stash = weighted(call.stash, tensors, x);
    const kept = (each) => (call.keep === null ? each : each.map((v, k) => x[k] + v * call.keep));
    this.past = [kept(m), ...this.past].slice(0, this.depth);
    if (this.fields === 2) this.pastSecond = [kept(second ?? m), ...this.pastSecond].slice(0, this.depth);
    this.position += 1;
    return next;
  }

  /** What stands in the place of the output m where its x0 is clipped: the prediction in the table's basis. */
  clipped(call, x, m) {
    if (this.basis === "eps" && !call.sigma) return weighted(call.map, [x, m], x);
    const x0 = this.denoised(x, m);
    return this.basis === "x0" ? x0 : x0.map((v, k) => (x[k] - v * call.alpha) / call.sigma);
  }
}

/**
 * A whole run. `network(x, t, i)` gives the output for x at timestep t, or [output, the half that the run weighs beside
 * it] (see `Run.half`); `noise(i)` gives N(0, I) where a call asks for it; `onStep(i, x, x0)` is shown each result.
 */
export async function sample(run, network, start, { noise = () => null, onStep = null, halves = true } = {}) {
  const going = new Run(run, { halves });
  let x = start.map((v) => v * run.init_noise_sigma);
  for (const [i, call] of going.calls.entries()) {
    const output = await network(x, run.timesteps[i], i), [m, second] = Array.isArray(output) ? output : [output, null];
    const x0 = onStep && going.denoised(x, m);
    x = going.advance(x, m, call.noisy ? noise(i) : null, second);
    if (onStep) await onStep(i, x, x0);
  }
  return x;
}
