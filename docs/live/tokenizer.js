/**
 * CLIP's tokenizer out of a `tokenizer.json`: byte-level BPE on lower-case words, as the library `tokenizers` does it.
 */

const WORDS = /<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\p{White_Space}\p{L}\p{N}]+/gu;

/** The character that stands for each byte: itself if it can be seen, else one from 256 on. */
function charactersOfBytes() {
  const seen = (b) => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  let hidden = 256;
  return Array.from({ length: 256 }, (_, b) => String.fromCodePoint(seen(b) ? b : hidden++));
}

export class Tokenizer {
  /** file: a parsed `tokenizer.json` of CLIP; length: how many ids a prompt has, padding included. */
  constructor(file, length) {
    const { vocab, merges, end_of_word_suffix: suffix } = file.model;
    Object.assign(this, { vocab: new Map(Object.entries(vocab)), suffix, length });
    const pairs = merges.map((pair) => (typeof pair === "string" ? pair : pair.join(" ")));
    this.ranks = new Map(pairs.map((pair, rank) => [pair, rank]));
    this.bytes = charactersOfBytes();
    this.special = new Map(file.added_tokens.map(({ content, id }) => [content, id]));
    const quoted = [...this.special.keys()].map((each) => each.replace(/[|\\{}()[\]^$+*?.]/g, "\\$&"));
    this.specials = new RegExp(`(${quoted.join("|")})`);
    const { cls, sep } = file.post_processor;
    Object.assign(this, { begin: cls[1], end: sep[1], pad: file.padding?.pad_id ?? sep[1], known: new Map() });
  }

  /** The parts that a word is of, by merging the pair that was merged first in training, again and again. */
  parts(word) {
    if (this.known.has(word)) return this.known.get(word);
    let parts = [...new TextEncoder().encode(word)].map((byte) => this.bytes[byte]);
    parts[parts.length - 1] += this.suffix;
    for (;;) {
      const ranks = parts.slice(1).map((part, i) => this.ranks.get(`${parts[i]} ${part}`) ?? Infinity);
      const best = Math.min(...ranks);
      if (!Number.isFinite(best)) break;
      const merged = [];
      for (let i = 0; i < parts.length; i++) merged.push(ranks[i] === best ? parts[i] + parts[++i] : parts[i]);
      parts = merged;
    }
    this.known.set(word, parts);
    return parts;
  }

  /** The tokens of a text, each with the word that it is of: no begin, no end, as many as there are. */
  tokens(text) {
    const found = [];
    for (const piece of text.split(this.specials)) {
      if (this.special.has(piece)) found.push({ id: this.special.get(piece), word: piece });
      else {
        const spaced = piece.normalize("NFC").replace(/\p{White_Space}+/gu, " ");
        const plain = [...spaced].map((c) => c.toLowerCase()).join(""); // each by itself, as Rust has it
        for (const [word] of plain.matchAll(WORDS)) {
          for (const part of this.parts(word)) found.push({ id: this.vocab.get(part) ?? this.end, word });
        }
      }
    }
    return found;
  }

  /** { ids, cut }: the ids a text encoder takes, and the words that do not fit, "" if all do. */
  encode(text) {
    const tokens = this.tokens(text), room = this.length - 2;
    const ids = [this.begin, ...tokens.slice(0, room).map(({ id }) => id), this.end];
    const cut = tokens.slice(room).map(({ word }) => word).filter((word, i, all) => word !== all[i - 1]);
    return { ids: [...ids, ...new Array(this.length - ids.length).fill(this.pad)], cut: cut.join(" ") };
  }
}
