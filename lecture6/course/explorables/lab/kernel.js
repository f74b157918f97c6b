// The kernel on memory of its own: WebAssembly where there is SIMD, else plain JavaScript.

import { fallback } from "./fallback.js";

const PAGE = 16384; // elements of 4 bytes in 64 KiB; the kernel keeps the first page for itself

// Memory of 4-byte elements that are taken and given back; places are multiples of 4. `floats` and
// `ints` are valid until the next `take`.
class Heap {
  constructor(memory) {
    this.memory = memory;
    this.end = PAGE;
    this.free = new Map(); // size → places
    this.look();
  }

  look() {
    this.floats = new Float32Array(this.memory.buffer);
    this.ints = new Int32Array(this.memory.buffer);
  }

  // A place of `size` zeros.
  take(size) {
    size = Math.ceil(size / 4) * 4;
    let place = this.free.get(size)?.pop();
    if (place === undefined) {
      place = this.end;
      this.end += size;
      const lacking = this.end - this.floats.length;
      if (lacking > 0) {
        this.memory.grow(Math.ceil(Math.max(lacking, this.floats.length / 2) / PAGE));
        this.look();
      }
    }
    this.floats.fill(0, place, place + size);
    return place;
  }

  give(place, size) {
    size = Math.ceil(size / 4) * 4;
    if (!this.free.has(size)) this.free.set(size, []);
    this.free.get(size).push(place);
  }
}

class PlainMemory {
  buffer = new ArrayBuffer(64 * PAGE * 4);

  grow(pages) {
    const old = new Uint8Array(this.buffer);
    this.buffer = new ArrayBuffer(old.length + pages * PAGE * 4);
    new Uint8Array(this.buffer).set(old);
  }
}

// The bytes of a text in base64.
export function decoded(text) {
  const letters = atob(text), bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
  return bytes;
}

// bytes: kernel.wasm in base64. kind: "wasm", "js", or undefined for the faster one that there is.
export async function createKernel(bytes, kind) {
  if (kind !== "js")
    try {
      const memory = new WebAssembly.Memory({ initial: 64, maximum: 16384 });
      const { instance } = await WebAssembly.instantiate(decoded(bytes), { env: { memory } });
      return { kind: "wasm", heap: new Heap(memory), ...instance.exports };
    } catch (error) {
      if (kind === "wasm") throw new Error(`kernel "wasm" is refused here (${error}): take "js"`);
    }
  const heap = new Heap(new PlainMemory());
  return { kind: "js", heap, ...fallback(heap) };
}
