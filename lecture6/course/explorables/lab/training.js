// A network that is trained: SGD, momentum, Adam, on mini-batches, with rows of its history.

import { options, oneOf, real, whole } from "./checks.js";
import { measure } from "./measures.js";
import { ROWS, evaluation, norm } from "./network.js";
import { Random } from "./random.js";

const SAMPLING = ["epoch", "with_replacement", "without_replacement"];
const RECIPE = {
  batchSize: undefined, lr: undefined, optimizer: "sgd", momentum: 0, weightDecay: 0,
  sampling: "epoch", seed: 0, warmup: 0, warmupFrom: 0, evaluateEvery: undefined, measures: {},
  stop: {},
};

const NEVER = { epochs: Infinity, updates: Infinity, trainLoss: -Infinity };

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
  real("warmupFrom", chosen.warmupFrom, { least: 0 });
  chosen.evaluateEvery ??= Math.ceil(n / chosen.batchSize);
  whole("evaluateEvery", chosen.evaluateEvery, 1);
  chosen.stop = options(chosen.stop, NEVER);
  for (const [name, bound] of Object.entries(chosen.stop))
    if (bound !== NEVER[name]) real(`stop.${name}`, bound, { above: 0 });
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
    this.drawing = null; // {key, batches}: where the batches come from, and what they are of
  }

  set(w) {
    this.heap.floats.set(w, this.w);
    for (const moment of [this.v, this.u])
      this.heap.floats.fill(0, moment, moment + this.shape.size);
    this.latest = null; // row
    this.moments = 0; // updates that the moments of Adam have seen
  }

  weights() {
    return this.heap.floats.slice(this.w, this.w + this.shape.size);
  }

  // Yields between updates, and each new row; returns {reason, row, update}.
  *training(given) {
    const chosen = recipe(given, this.train.n), { measures, evaluateEvery, stop } = chosen;
    const batches = this.drawn(chosen), last = this.seen + stop.epochs * this.train.n;
    this.stopping = false;
    for (let made = 0, row; ; ) {
      let reason = this.stopping ? "stopped" : made >= stop.updates ? "updates" : undefined;
      if (this.seen >= last) reason = "epochs";
      if (reason || made % evaluateEvery === 0) row = yield* this.row(measures);
      if (row.trainLoss <= stop.trainLoss && row.update === this.update) reason ??= "trainLoss";
      if (!reason && !(yield* this.step(batches.next().value, chosen, ++made))) reason = "diverged";
      if (reason) return { reason, row, update: this.update };
      yield;
    }
  }

  // The batches of a run: those that go on where the last ones ended, if they are of the same kind.
  drawn({ batchSize, sampling, seed }) {
    const key = `${batchSize} ${sampling} ${seed}`;
    if (this.drawing?.key !== key)
      this.drawing = { key, batches: this.batches({ batchSize, sampling, seed }) };
    return this.drawing.batches;
  }

  // Endless pairs [place of the indices, how many], as lecture6.train.sample_batches has them.
  // From one seed they differ after other numbers of updates.
  *batches({ batchSize, sampling, seed }) {
    const { order, heap, train: { n } } = this;
    const random = new Random(seed + 2 ** 32 * this.update, "batches");
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

  // One update on a batch; false, and none, where its loss is not finite.
  *step([indices, count], { lr, optimizer, momentum, weightDecay, warmup, warmupFrom }, made) {
    const { passes, train, w, g, v, u, shape: { size } } = this;
    const { kernel, batch, labels } = passes;
    let loss = 0;
    for (let at = 0; at < count; at += ROWS) {
      const m = Math.min(ROWS, count - at);
      if (at) yield;
      passes.prepare(w);
      kernel.gather(train.x, train.length, train.y, indices + at, m, batch, labels);
      loss += passes.forward(w, batch, labels, m);
      passes.backward(batch, m, g, at > 0);
    }
    if (!Number.isFinite(loss)) return false;
    const risen = Math.min(1, made / Math.max(1, warmup));
    const rate = warmupFrom + (lr - warmupFrom) * risen;
    if (optimizer === "sgd") kernel.sgd(w, g, v, size, 1 / count, rate, momentum, weightDecay);
    else {
      const t = ++this.moments, root = Math.sqrt(1 - 0.999 ** t);
      kernel.adam(w, g, v, u, size, 1 / count, rate / (1 - 0.9 ** t), root, weightDecay);
    }
    this.update += 1;
    this.seen += count;
    return true;
  }

  // One update on these images, or on a random batch.
  *single(given, indices) {
    const chosen = recipe({ batchSize: indices?.length, ...given }, this.train.n);
    for (const i of indices ?? []) whole("an index of a training image", i, 0, this.train.n - 1);
    const { heap } = this, n = indices?.length, place = indices && heap.take(n);
    if (indices) heap.ints.set(indices, place);
    try {
      yield* this.step(indices ? [place, n] : this.drawn(chosen).next().value, chosen, 1);
    } finally {
      if (indices) heap.give(place, n);
    }
    return yield* this.row(chosen.measures);
  }

  // The row of the history at the weights that there are, with these measures of them.
  *row(measures) {
    const row = { update: this.update, epoch: this.seen / this.train.n };
    if (this.latest?.update === row.update && !Object.keys(measures).length) return this.latest;
    for (const split of ["train", "test"])
      [row[`${split}Loss`], row[`${split}Accuracy`]] =
        yield* evaluation(this.passes, this.w, this[split]);
    row.distance = norm(this.weights().map((x, i) => x - this.first[i]));
    for (const [name, given] of Object.entries(measures))
      row[name] = yield* measure(this, name, given);
    yield row;
    return (this.latest = row);
  }
}
