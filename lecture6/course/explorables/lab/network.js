// A dense network as a function of one vector w: loss, gradient, and Hessian–vector product.
//
// In memory a layer's weights are stored by inputs, (inputs × outputs), with the bias as one more
// row, to which a constant input of 1 belongs. Rows and columns are padded with zeros, which stay
// 0, to multiples of 4. `pack` and `unpack` convert from and to lecture6's order, which is torch's.

import { oneOf, real, vector, whole } from "./checks.js";
import { Random } from "./random.js";

export const ROWS = 128; // samples that go through the net at a time
const KINDS = { relu: 0, tanh: 1 };
const pad = (n) => 4 * Math.ceil(n / 4);

export function norm(v) {
  return Math.sqrt(v.reduce((sum, x) => sum + x * x, 0));
}

export class Shape {
  constructor({ widths, activation = "relu", loss = "cross_entropy", bias = true }) {
    widths.forEach((width) => whole("the width of a layer", width, 1, 4096));
    this.widths = widths;
    this.kind = KINDS[oneOf("activation", activation, Object.keys(KINDS))];
    this.loss = oneOf("loss", loss, ["cross_entropy", "squared_error"]);
    this.bias = Boolean(bias);
    this.size = this.nParams = 0;
    this.layers = widths.slice(1).map((outputs, i) => {
      const inputs = widths[i], columns = pad(outputs), at = this.size;
      const rows = pad(inputs) + this.bias; // of the weights
      this.size += rows * columns;
      this.nParams += outputs * (inputs + this.bias);
      return { inputs, outputs, padded: pad(inputs), rows, columns, at, length: pad(inputs) + 4 };
    });
    this.classes = widths.at(-1);
  }

  // Calls visit(place in memory, place in lecture6's order, layer, output, input or −1: the bias).
  eachParameter(visit) {
    let flat = 0;
    this.layers.forEach(({ inputs, outputs, padded, columns, at }, l) => {
      for (let j = 0; j < outputs; j++)
        for (let i = 0; i < inputs; i++) visit(at + i * columns + j, flat++, l, j, i);
      for (let j = 0; this.bias && j < outputs; j++)
        visit(at + padded * columns + j, flat++, l, j, -1);
    });
  }

  pack(w, name = "w") {
    vector(name, w, this.nParams);
    const packed = new Float32Array(this.size);
    this.eachParameter((place, flat) => { packed[place] = w[flat]; });
    return packed;
  }

  unpack(packed) {
    const w = new Float32Array(this.nParams);
    this.eachParameter((place, flat) => { w[flat] = packed[place]; });
    return w;
  }

  // torch's Linear: all of a layer uniform in ±1/√inputs.
  initial(seed) {
    const random = new Random(seed, "weights"), w = new Float32Array(this.size);
    this.eachParameter((place, flat, l) => {
      w[place] = (2 * random.uniform() - 1) / Math.sqrt(this.layers[l].inputs);
    });
    return w;
  }

  // Numbers drawn for each parameter, in lecture6's order.
  drawn(draw) {
    const v = new Float32Array(this.size);
    this.eachParameter((place) => { v[place] = draw(); });
    return v;
  }

  norms(w) {
    const squares = this.layers.map(() => 0);
    this.eachParameter((place, flat, l, j, i) => {
      if (i >= 0) squares[l] += w[place] ** 2;
    });
    return squares.map(Math.sqrt);
  }

  // The same function of a ReLU net, with layers whose weights all have the same norm.
  withEqualNorms(w) {
    if (this.kind !== KINDS.relu && this.layers.length > 1)
      throw new Error('equal keeps the function of a net of activation "relu" only: leave it out');
    const norms = this.norms(w);
    norms.forEach((x) => real("the norm of a layer, to be made equal,", x, { above: 0 }));
    const mean = Math.exp(norms.reduce((sum, x) => sum + Math.log(x), 0) / norms.length);
    let product = 1;
    const factors = norms.map((x) => [mean / x, (product *= mean / x)]);
    const scaled = new Float32Array(this.size);
    this.eachParameter((place, flat, l, j, i) => {
      scaled[place] = w[place] * factors[l][i < 0 ? 1 : 0];
    });
    return scaled;
  }
}

// Images in memory, with the constant input 1.
export class Samples {
  constructor({ heap }, inputs, x, y) {
    Object.assign(this, { n: y.length, length: pad(inputs) + 4 });
    this.x = heap.take(this.n * this.length);
    this.y = heap.take(this.n);
    for (let i = 0; i < this.n; i++) {
      const row = this.x + i * this.length;
      heap.floats.set(x.subarray(i * inputs, (i + 1) * inputs), row);
      heap.floats[row + pad(inputs)] = 1;
    }
    heap.ints.set(y, this.y);
  }
}

// What nets of one shape compute with: activations h, derivatives d of the loss by what enters an
// activation, and both along a direction, t and e, of ROWS samples at most; and transposes.
export class Passes {
  constructor(kernel, shape) {
    Object.assign(this, { kernel, shape, heap: kernel.heap });
    const { heap } = this, first = shape.layers[0];
    this.batch = heap.take(ROWS * first.length);
    this.labels = heap.take(ROWS);
    this.buffers = shape.layers.map((layer, l) => {
      const { length } = shape.layers[l + 1] ?? { length: layer.columns };
      const own = { length };
      for (const name of ["h", "t"]) own[name] = heap.take(ROWS * length);
      for (const name of ["d", "e"]) own[name] = heap.take(ROWS * layer.columns);
      for (const name of ["transposed", "alongTransposed"])
        own[name] = heap.take(layer.outputs * layer.padded);
      for (let i = 0; l < shape.layers.length - 1 && i < ROWS; i++)
        heap.floats[own.h + (i + 1) * length - 4] = 1;
      return own;
    });
  }

  // The transposes of the weights at w; needed before backward passes.
  prepare(w, name = "transposed") {
    this.shape.layers.forEach(({ columns, outputs, padded, at }, l) => {
      const to = this.buffers[l][name];
      if (l) this.kernel.transpose(w + at, columns, to, padded, padded, outputs);
    });
  }

  // The summed loss of m samples; leaves the logits, and the derivatives d of the last layer.
  forward(w, x, y, m) {
    const { kernel, shape, buffers } = this, last = shape.layers.length - 1;
    let input = x, length = shape.layers[0].length;
    shape.layers.forEach(({ rows, columns, at }, l) => {
      const own = buffers[l];
      kernel.product(input, length, 1, w + at, columns, own.h, own.length, m, rows, columns, 0);
      if (l < last) kernel.activate(own.h, own.length, m, columns, shape.kind);
      [input, length] = [own.h, own.length];
    });
    const loss = shape.loss === "cross_entropy" ? kernel.crossEntropy : kernel.squaredError;
    const { columns } = shape.layers[last];
    return loss(buffers[last].h, y, buffers[last].d, columns, m, shape.classes);
  }

  // The summed gradient, added to g or in its place, after `forward` of the same samples.
  backward(x, m, g, add) {
    const { kernel, shape, buffers } = this;
    for (let l = shape.layers.length - 1; l >= 0; l--) {
      const { rows, columns, at, length, padded, outputs } = shape.layers[l], own = buffers[l];
      const input = l ? buffers[l - 1].h : x;
      kernel.product(input, 1, length, own.d, columns, g + at, columns, rows, m, columns, add);
      if (!l) return;
      const to = buffers[l - 1].d;
      kernel.product(own.d, columns, 1, own.transposed, padded, to, padded, m, outputs, padded, 0);
      kernel.slope(to, padded, input, length, m, padded, shape.kind);
    }
  }

  // The derivatives t of the logits along v, after `forward`: Pearlmutter's R-operator (1994).
  forwardAlong(w, v, x, m) {
    const { kernel, shape, buffers } = this;
    shape.layers.forEach(({ rows, columns, at, length, padded }, l) => {
      const own = buffers[l], before = buffers[l - 1], input = l ? before.h : x;
      kernel.product(input, length, 1, v + at, columns, own.t, own.length, m, rows, columns, 0);
      if (l)
        kernel.product(
          before.t, length, 1, w + at, columns, own.t, own.length, m, padded, columns, 1);
      if (l < shape.layers.length - 1)
        kernel.slope(own.t, own.length, own.h, own.length, m, columns, shape.kind);
    });
  }

  // The summed Hessian times v, added to `out` or in its place, after `forwardAlong`.
  backwardAlong(x, y, m, out, add) {
    const { kernel, shape, buffers } = this, last = shape.layers.length - 1;
    const { d, t, e } = buffers[last], { columns: c } = shape.layers[last];
    if (shape.loss === "cross_entropy") kernel.crossEntropyAlong(d, y, t, e, c, m, shape.classes);
    else kernel.combine(e, 1, t, 0, t, m * c);
    for (let l = last; l >= 0; l--) {
      const { rows, columns, at, length, padded, outputs } = shape.layers[l], own = buffers[l];
      const before = buffers[l - 1], input = l ? before.h : x, to = out + at;
      kernel.product(input, 1, length, own.e, columns, to, columns, rows, m, columns, add);
      if (!l) return;
      kernel.product(before.t, 1, length, own.d, columns, to, columns, padded, m, columns, 1);
      const { d: d0, e: e0, h: h0, t: t0 } = before;
      const down = (from, weights, into, plus) =>
        kernel.product(from, columns, 1, weights, padded, into, padded, m, outputs, padded, plus);
      down(own.d, own.transposed, d0, 0);
      down(own.e, own.transposed, e0, 0);
      down(own.d, own.alongTransposed, e0, 1);
      kernel.bend(e0, d0, padded, h0, t0, length, m, padded, shape.kind);
      kernel.slope(d0, padded, h0, length, m, padded, shape.kind);
    }
  }

  // The classes that the net gives to the samples of the last `forward`: the largest logit's.
  predicted(i) {
    const { classes } = this.shape, { h, length } = this.buffers.at(-1), z = h + i * length;
    const { floats } = this.heap;
    let top = 0;
    for (let j = 1; j < classes; j++) if (floats[z + j] > floats[z + top]) top = j;
    return top;
  }
}

// The samples in parts [place of x, place of y, how many, where they begin].
export function* parts({ x, y, n, length }) {
  for (let at = 0; at < n; at += ROWS)
    yield [x + at * length, y + at, Math.min(ROWS, n - at), at];
}

// Mean loss and accuracy at w; yields between parts. With `labels`, the classes are left there.
export function* evaluation(passes, w, samples, labels) {
  let loss = 0, right = 0;
  for (const [x, y, m, at] of parts(samples)) {
    loss += passes.forward(w, x, y, m);
    for (let i = 0; i < m; i++) {
      const predicted = passes.predicted(i);
      right += predicted === passes.heap.ints[y + i];
      if (labels) labels[at + i] = predicted;
    }
    yield;
  }
  return [loss / samples.n, right / samples.n];
}
