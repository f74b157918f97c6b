// Random numbers: xoshiro128** (Blackman & Vigna, 2021), its state filled by splitmix32 from a seed
// and a stream, so that the batches and the weights of one seed are independent.

const STREAMS = ["weights", "batches", "labels", "start", "probes", "directions"];

export class Random {
  constructor(seed, stream) {
    let mixed = (seed ^ Math.imul(STREAMS.indexOf(stream) + 1, 0x85ebca6b)) >>> 0;
    mixed = (mixed + Math.imul(Math.floor(seed / 2 ** 32), 0xc2b2ae35)) >>> 0;
    this.state = Uint32Array.from({ length: 4 }, () => {
      mixed = (mixed + 0x9e3779b9) >>> 0;
      let z = mixed;
      z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
      z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
      return z ^ (z >>> 15);
    });
  }

  bits() {
    const s = this.state;
    let out = Math.imul(s[1], 5);
    out = Math.imul((out << 7) | (out >>> 25), 9) >>> 0;
    const t = s[1] << 9;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = (s[3] << 11) | (s[3] >>> 21);
    return out;
  }

  // In [0, 1).
  uniform() {
    return this.bits() / 2 ** 32;
  }

  below(n) {
    return Math.floor(this.uniform() * n);
  }

  sign() {
    return this.bits() >>> 31 ? 1 : -1;
  }

  // Box and Muller; one of the two.
  normal() {
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    return radius * Math.cos(2 * Math.PI * this.uniform());
  }

  // Moves a random choice of `count` of the numbers from `start` on to the front of the first n.
  shuffle(numbers, start, n, count) {
    for (let i = 0; i < count; i++) {
      const j = i + this.below(n - i), kept = numbers[start + i];
      numbers[start + i] = numbers[start + j];
      numbers[start + j] = kept;
    }
  }
}
