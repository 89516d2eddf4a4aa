// Parts of the live page in Node: reads { tokenizer, length, texts, seeds, counts } as JSON, writes ids and noise.
import { readFileSync } from "node:fs";
import { Generator } from "../docs/live/noise.js";
import { Tokenizer } from "../docs/live/tokenizer.js";

const { tokenizer: file, length, texts, seeds, counts } = JSON.parse(readFileSync(0, "utf-8"));
const tokenizer = new Tokenizer(JSON.parse(readFileSync(file, "utf-8")), length);
const noise = seeds.map((seed) => {
  const generator = new Generator(seed);
  return counts.map((count) => Array.from(generator.normal(count)));
});
process.stdout.write(JSON.stringify({ encoded: texts.map((text) => tokenizer.encode(text)), noise }));
