// A network that is trained: SGD, momentum, Adam, on mini-batches, with rows of its history.

import { options, oneOf, real, whole } from "./checks.js";
import { measure } from "./measures.js";
import { ROWS, evaluation } from "./network.js";
import { Random } from "./random.js";

const SAMPLING = ["epoch", "with_replacement", "without_replacement"];
const RECIPE = {
  batchSize: undefined, lr: undefined, optimizer: "sgd", momentum: 0, weightDecay: 0,
  sampling: "epoch", seed: 0, warmup: 0, evaluateEvery: undefined, measures: {}, stop: {},
};

// The options of `train`, checked, for N training images.
function recipe(given, n) {
  const chosen = options(given, RECIPE);
  whole("batchSize", chosen.batchSize, 1, n);
  real("lr", chosen.lr, { above: 0 });
  oneOf("optimizer", chosen.optimizer, ["sgd", "adam"]);
  real("momentum", chosen.momentum, { least: 0, below: 1 });
  if (chosen.optimizer === "adam" && chosen.momentum)
    throw new Error(`momentum ${chosen.momentum} is for optimizer "sgd"; Adam has its own moments`);
  real("weightDecay", chosen.weightDecay, { least: 0 });
  oneOf("sampling", chosen.sampling, SAMPLING);
  whole("seed", chosen.seed, 0);
  whole("warmup", chosen.warmup, 0);
  chosen.evaluateEvery ??= Math.ceil(n / chosen.batchSize);
  whole("evaluateEvery", chosen.evaluateEvery, 1);
  chosen.stop = options(chosen.stop, {
    epochs: undefined, updates: undefined, trainLoss: undefined,
  });
  for (const [name, bound] of Object.entries(chosen.stop))
    if (bound !== undefined) real(`stop.${name}`, bound, { above: 0 });
  return chosen;
}

export class Net {
  // train, test: Samples; w: initial weights in the order of memory
  constructor(passes, train, test, w) {
    const { shape, heap } = passes;
    Object.assign(this, { passes, shape, heap, train, test, first: w, waiting: false });
    for (const name of ["w", "g", "v", "u"]) this[name] = heap.take(shape.size);
    this.order = heap.take(train.n);
    this.reset();
  }

  close() {
    for (const name of ["w", "g", "v", "u"]) this.heap.give(this[name], this.shape.size);
    this.heap.give(this.order, this.train.n);
  }

  reset() {
    this.set(this.first);
    this.update = this.seen = 0;
  }

  set(w) {
    this.heap.floats.set(w, this.w);
    this.heap.floats.fill(0, this.v, this.v + this.shape.size);
    this.heap.floats.fill(0, this.u, this.u + this.shape.size);
    this.moments = 0; // updates that the moments of Adam have seen
  }

  weights() {
    return this.heap.floats.slice(this.w, this.w + this.shape.size);
  }

  get epoch() {
    return this.seen / this.train.n;
  }

  // Yields between updates, and each new row; returns {reason, row}.
  *training(given) {
    const chosen = recipe(given, this.train.n), { stop, batchSize } = chosen;
    const random = new Random(chosen.seed, "batches"), { update, seen } = this;
    const batches = this.batches(chosen, random), { epochs = Infinity, updates = Infinity } = stop;
    const samples = epochs * this.train.n, aim = stop.trainLoss ?? -Infinity;
    const { measures } = chosen;
    this.stopping = false;
    let row = yield* this.row(measures), made = 0;
    for (;;) {
      let reason = null;
      if (this.stopping) reason = "stopped";
      else if (!Number.isFinite(row.trainLoss)) reason = "diverged";
      else if (row.update === this.update && row.trainLoss <= aim) reason = "trainLoss";
      else if (this.seen - seen >= samples) reason = "epochs";
      else if (made >= updates) reason = "updates";
      if (reason !== null) {
        if (row.update !== this.update) row = yield* this.row(measures);
        return { reason, row };
      }
      const loss = this.step(batches.next().value, chosen, ++made);
      if (!Number.isFinite(loss)) return { reason: "diverged", row };
      if (made % chosen.evaluateEvery === 0) row = yield* this.row(measures);
      else yield;
    }
  }

  // Endless pairs [place of the indices, how many], as lecture6.train.sample_batches has them.
  *batches({ batchSize, sampling }, random) {
    const { order, heap, train: { n } } = this;
    for (let i = 0; i < n; i++) heap.ints[order + i] = i;
    for (;;)
      if (sampling === "epoch") {
        random.shuffle(heap.ints, order, n, n);
        for (let at = 0; at < n; at += batchSize) yield [order + at, Math.min(batchSize, n - at)];
      } else {
        if (sampling === "without_replacement") random.shuffle(heap.ints, order, n, batchSize);
        else for (let i = 0; i < batchSize; i++) heap.ints[order + i] = random.below(n);
        yield [order, batchSize];
      }
  }

  // One update on a batch; returns the summed loss of the batch before it.
  step([indices, count], { lr, optimizer, momentum, weightDecay, warmup }, made) {
    const { passes, train, w, g, v, u, shape: { size } } = this, { kernel, batch, labels } = passes;
    let loss = 0;
    passes.prepare(w);
    for (let at = 0; at < count; at += ROWS) {
      const m = Math.min(ROWS, count - at);
      kernel.gather(train.x, train.length, train.y, indices + at, m, batch, labels);
      loss += passes.forward(w, batch, labels, m);
      passes.backward(batch, m, g, at > 0);
    }
    if (!Number.isFinite(loss)) return loss;
    const rate = lr * Math.min(1, made / Math.max(1, warmup));
    if (optimizer === "sgd") kernel.sgd(w, g, v, size, 1 / count, rate, momentum, weightDecay);
    else {
      const t = ++this.moments, root = Math.sqrt(1 - 0.999 ** t);
      kernel.adam(w, g, v, u, size, 1 / count, rate / (1 - 0.9 ** t), root, weightDecay);
    }
    this.update += 1;
    this.seen += count;
    return loss;
  }

  // One update on these images, or on the first batch that the recipe draws.
  *single(given, indices) {
    const chosen = recipe(given, this.train.n), random = new Random(chosen.seed, "batches");
    let batch = [this.order, indices?.length];
    if (indices) {
      for (const i of indices) whole("an index of a training image", i, 0, this.train.n - 1);
      whole("the number of indices", indices.length, 1, this.train.n);
      this.heap.ints.set(indices, this.order);
    } else batch = this.batches(chosen, random).next().value;
    this.step(batch, chosen, 1);
    return yield* this.row(chosen.measures);
  }

  // The row of the history at the weights that there are, with these measures of them.
  *row(measures) {
    const { update, epoch } = this;
    const [trainLoss, trainAccuracy] = yield* evaluation(this.passes, this.w, this.train);
    const [testLoss, testAccuracy] = yield* evaluation(this.passes, this.w, this.test);
    const { floats } = this.heap;
    let square = 0;
    for (let i = 0; i < this.shape.size; i++) square += (floats[this.w + i] - this.first[i]) ** 2;
    const distance = Math.sqrt(square);
    const row = {
      update, epoch, trainLoss, trainAccuracy, testLoss, testAccuracy, distance,
    };
    for (const [name, given] of Object.entries(measures))
      row[name] = yield* measure(this, name, given);
    yield row;
    return row;
  }
}
