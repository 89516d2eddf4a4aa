/**
 * The normal numbers of PyTorch's generator on the CPU: one seed is one picture here and there.
 *
 * The Mersenne Twister MT19937 (Matsumoto and Nishimura 1998), 24 bits of each draw, and the transform of Box and
 * Muller (1958) over blocks of 16.
 */
export class Generator {
  /** seed: a whole number, of which the lower 32 bits count, as in PyTorch. */
  constructor(seed) {
    this.state = new Uint32Array(624);
    this.state[0] = seed % 2 ** 32;
    for (let i = 1; i < 624; i++) {
      const before = this.state[i - 1] ^ (this.state[i - 1] >>> 30);
      this.state[i] = Math.imul(1812433253, before) + i;
    }
    this.place = 624;
  }

  /** 32 random bits. */
  bits() {
    const s = this.state;
    if (this.place === 624) {
      for (let i = 0; i < 624; i++) {
        const y = (s[i] & 0x80000000) | (s[(i + 1) % 624] & 0x7fffffff);
        s[i] = s[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      this.place = 0;
    }
    let y = s[this.place++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  /** `count` draws from N(0, 1) in float32, as `torch.randn(count, generator=...)` gives them; at least 16. */
  normal(count) {
    if (count < 16) throw new Error(`PyTorch draws fewer than 16 numbers in another way; got ${count}`);
    const uniform = () => (this.bits() & 0xffffff) / 2 ** 24;
    const x = Float32Array.from({ length: count }, uniform);
    for (let i = 0; i + 16 <= count; i += 16) transform(x, i);
    if (count % 16) {
      for (let i = count - 16; i < count; i++) x[i] = uniform();
      transform(x, count - 16);
    }
    return x;
  }
}

/** 16 uniform numbers from x[i] on become normal ones: the first eight radii, the others angles. */
function transform(x, i) {
  for (let j = i; j < i + 8; j++) {
    const radius = Math.sqrt(-2 * Math.log(1 - x[j])), angle = 2 * Math.PI * x[j + 8];
    x[j] = radius * Math.cos(angle);
    x[j + 8] = radius * Math.sin(angle);
  }
}
