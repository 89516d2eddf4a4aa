/**
 * Text to image: a Stable Diffusion model as three ONNX files, drawn with any sampler that sd_ext writes as JSON.
 *
 * What `docs/live/make.py` makes is read through `read(name)`, which gives the bytes of a file of that folder; `ort` is
 * onnxruntime-web, or another of its kind. Nothing here knows of a page, so that it also runs in Node.
 */

import { Generator } from "./noise.js";
import { Run, sample } from "./runner.js";
import { Tokenizer } from "./tokenizer.js";

const PARTS = ["text_encoder", "unet", "decoder"];
const parsed = (bytes) => JSON.parse(new TextDecoder().decode(bytes));

/** Thrown by `draw` where `stopped()` says so. */
export class Stopped extends Error {}

export class Pipeline {
  /** Load a model. `told(part)` is called before each part. */
  static async load(ort, read, told = () => {}) {
    const made = new Pipeline(), options = { executionProviders: ["wasm"] };
    Object.assign(made, { ort, read, about: parsed(await read("model.json")), runs: new Map(), sessions: {} });
    made.tokenizer = new Tokenizer(parsed(await read("tokenizer.json")), made.about.tokens);
    for (const part of PARTS) {
      told(part);
      made.sessions[part] = await ort.InferenceSession.create(await read(`${part}.onnx`), options);
    }
    return made;
  }

  /** What a part makes of its inputs, { name: [type, values, sides] }: the values of its one output. */
  async call(part, inputs) {
    const tensors = Object.entries(inputs).map(([name, parts]) => [name, new this.ort.Tensor(...parts)]);
    const { out } = await this.sessions[part].run(Object.fromEntries(tensors));
    return out.data;
  }

  /** { words, cut }: what the U-Net is told of a text, and the words of it that do not fit. */
  async encode(text) {
    const { ids, cut } = this.tokenizer.encode(text);
    const words = await this.call("text_encoder", { ids: ["int64", BigInt64Array.from(ids, BigInt), [1, ids.length]] });
    return { words, cut };
  }

  /** The pixels of a latent, RGBA. */
  async decode(latent) {
    const { channels, height, width } = this.about.latent;
    const planes = await this.call("decoder", { latent: ["float32", latent, [1, channels, height, width]] });
    const size = planes.length / 3, pixels = new Uint8ClampedArray(4 * size).fill(255);
    for (let i = 0; i < size; i++) {
      for (let c = 0; c < 3; c++) pixels[4 * i + c] = 255 * (planes[c * size + i] / 2 + 0.5); // rounded and held in range
    }
    return pixels;
  }

  /** A sampler's run, by the sampler's file (see `about.samplers`) and the number of calls. */
  async run(file, steps) {
    if (!this.runs.has(file)) this.runs.set(file, parsed(await this.read(`samplers/${file}.json`)));
    const run = this.runs.get(file)[steps];
    if (!run) throw new Error(`this sampler makes no picture in ${steps} calls; choose another number`);
    return run;
  }

  /**
   * Draw a picture.
   *
   * prompt, negative: what to draw, and what not. file, steps: the sampler. guidance: classifier-free guidance as in
   * Diffusers, none up to 1. seed: of all noise. onStep({ i, steps, pixels }): called after each call, with the picture
   * that the network expects there if `preview` asks for it. stopped(): whether to stop.
   * Returns { pixels, latent, cut, negativeCut }.
   */
  async draw({ prompt, negative = "", file, steps, guidance, seed, preview, onStep = () => {}, stopped = () => false }) {
    const run = await this.run(file, steps), half = new Run(run).half, generator = new Generator(seed);
    const { channels, height, width } = this.about.latent, size = channels * height * width;
    const guided = guidance > 1, batch = guided ? 2 : 1;
    const { words, cut } = await this.encode(prompt);
    const without = guided ? await this.encode(negative) : { words: [], cut: "" };
    const told = [batch, this.about.tokens, words.length / this.about.tokens];

    const network = async (x, t) => {
      const inputs = {
        sample: ["float32", guided ? Float32Array.of(...x, ...x) : x, [batch, channels, height, width]],
        timestep: ["float32", new Float32Array(batch).fill(t), [batch]],
        words: ["float32", guided ? Float32Array.of(...without.words, ...words) : words, told],
      };
      const out = await this.call("unet", inputs);
      if (!guided) return [out, out];
      const u = out.slice(0, size), c = out.slice(size);
      return [u.map((v, k) => v + guidance * (c[k] - v)), half === "conditional" ? c : u];
    };
    const shown = async (i, x, x0) => {
      await onStep({ i, steps, pixels: preview ? await this.decode(x0) : null });
      if (stopped()) throw new Stopped();
    };
    const noise = () => generator.normal(size);
    const latent = await sample(run, network, noise(), { noise, onStep: shown, halves: guided });
    if (!latent.every(Number.isFinite)) throw new Error("the picture overflowed; choose less guidance");
    return { pixels: await this.decode(latent), latent, cut, negativeCut: without.cut };
  }
}
