// All nets of a lab, and the work on them in slices, where it runs: in the worker, or in the page.

import { oneOf, real, whole } from "./checks.js";
import { measure } from "./measures.js";
import { Passes, Samples, Shape } from "./network.js";
import { Random } from "./random.js";
import { Net } from "./training.js";

const SLICE = 12; // ms of work at a time
const FRAME = 1000 / 60; // ms between messages

export class Session {
  // post(message, buffers to transfer); soon(run) calls run when others have had their turn.
  constructor(kernel, data, post, soon) {
    Object.assign(this, { kernel, post, soon, inputs: data.inputs, classes: data.classes });
    Object.assign(this, { nets: new Map(), passes: new Map(), jobs: new Map() });
    Object.assign(this, { paused: false, waiting: false, sent: -Infinity, rows: [], replies: [] });
    this.train = new Samples(kernel, data.inputs, data.train.x, data.train.y);
    this.test = new Samples(kernel, data.inputs, data.test.x, data.test.y);
  }

  // A request: {id, action, net, …}. Its reply, {id, result} or {id, error}, comes when it is done.
  receive({ id, action, ...given }) {
    try {
      const result = this[oneOf("action", action, ACTIONS)](given, id);
      if (result !== LATER) this.reply(id, { result });
    } catch (error) {
      this.reply(id, { error: error.message });
    }
    this.wake();
  }

  reply(id, answer) {
    this.replies.push({ id, ...answer });
  }

  // ---- actions ---------------------------------------------------------------------------------

  open({ net, hidden, samples, noise, seed, w, ...options }) {
    const shape = new Shape({ widths: [this.inputs, ...hidden, this.classes], ...options });
    const key = JSON.stringify([shape.widths, options]);
    if (!this.passes.has(key)) this.passes.set(key, new Passes(this.kernel, shape));
    const train = { ...this.train, n: whole("samples", samples ?? this.train.n, 1, this.train.n) };
    if (real("noise", noise, { least: 0, most: 1 }) > 0) this.relabel(train, noise, seed);
    const start = w ? shape.pack(w) : shape.initial(whole("seed", seed, 0));
    this.nets.set(net, new Net(this.passes.get(key), train, this.test, start));
  }

  // Draws a fraction of the labels anew, as lecture6's with_random_labels.
  relabel(train, fraction, seed) {
    const { heap } = this.kernel, random = new Random(seed, "labels");
    const order = Int32Array.from({ length: train.n }, (_, i) => i), y = heap.take(train.n);
    heap.ints.copyWithin(y, train.y, train.y + train.n);
    const count = Math.round(fraction * train.n);
    random.shuffle(order, 0, train.n, count);
    for (const i of order.subarray(0, count)) heap.ints[y + i] = random.below(this.classes);
    train.y = y;
  }

  start({ net, options }, id) {
    this.free(net);
    return this.job(id, net, this.net(net).training(options), true);
  }

  step({ net, options, indices }, id) {
    this.free(net);
    return this.job(id, net, this.net(net).single(options, indices), true);
  }

  // `to`, where a measure has one, may be another net.
  measure({ net, name, options: { to, ...options }, to: other }, id) {
    if (other !== undefined) to = this.weights({ net: other });
    if (to !== undefined) options.to = to;
    return this.job(id, net, measure(this.net(net), name, options), false);
  }

  pause({ net }) {
    this.net(net).waiting = true;
  }

  resume({ net }) {
    this.net(net).waiting = false;
  }

  stop({ net }) {
    Object.assign(this.net(net), { waiting: false, stopping: true });
  }

  cancel({ job }) {
    this.end((_, id) => id === job, { error: "cancelled", name: "AbortError" });
  }

  weights({ net }) {
    const own = this.net(net);
    return own.shape.unpack(own.weights());
  }

  setWeights({ net, w }) {
    this.free(net);
    const own = this.net(net);
    own.set(own.shape.pack(w));
  }

  reset({ net }) {
    this.end((job) => job.training && job.key === net, { result: { reason: "stopped" } });
    this.net(net).reset();
  }

  close({ net }) {
    this.end((job) => job.key === net, { error: "the net is closed", name: "AbortError" });
    this.net(net).close();
    this.nets.delete(net);
  }

  pauseAll() {
    this.paused = true;
  }

  resumeAll() {
    this.paused = false;
  }

  // ---- work ------------------------------------------------------------------------------------

  net(key) {
    return this.nets.get(key) ?? oneOf("net", key, [...this.nets.keys()]);
  }

  free(net) {
    for (const job of this.jobs.values())
      if (job.training && job.key === net)
        throw new Error("the net is being trained: stop() it first");
  }

  job(id, key, generator, training) {
    this.jobs.set(id, { key, generator, training });
    return LATER;
  }

  end(which, answer) {
    for (const [id, job] of this.jobs)
      if (which(job, id)) {
        job.generator.return();
        this.jobs.delete(id);
        this.reply(id, answer);
      }
  }

  running() {
    if (this.paused) return [];
    return [...this.jobs].filter(([, { key, training }]) => !(training && this.net(key).waiting));
  }

  wake() {
    if (this.waiting || !(this.replies.length || this.rows.length || this.running().length)) return;
    this.waiting = true;
    const turn = () => {
      this.waiting = false;
      this.slice();
      this.wake();
    };
    if (this.running().length) this.soon(turn);
    else setTimeout(turn, Math.max(0, this.sent + FRAME - performance.now()));
  }

  // All that runs gets an equal share of a slice.
  slice() {
    const running = this.running();
    for (const [id, job] of running) {
      const end = performance.now() + SLICE / running.length;
      while (this.jobs.get(id) === job && performance.now() < end) this.advance(id, job);
    }
    const now = performance.now();
    if (now - this.sent < FRAME || !(this.rows.length || this.replies.length)) return;
    this.post({ rows: this.rows, replies: this.replies }, this.replies.flatMap(buffers));
    Object.assign(this, { rows: [], replies: [], sent: now });
  }

  advance(id, { key, generator }) {
    try {
      const { value, done } = generator.next();
      if (!done && value) this.rows.push([key, value]);
      if (!done) return;
      this.reply(id, { result: value });
    } catch (error) {
      this.reply(id, { error: error.message });
    }
    this.jobs.delete(id);
  }
}

const LATER = Symbol("the reply comes later");
const ACTIONS = [
  "open", "start", "step", "measure", "pause", "resume", "stop", "cancel", "weights", "setWeights",
  "reset", "close", "pauseAll", "resumeAll",
];

// The memory of the typed arrays in a reply, which can be handed over.
function buffers({ result }) {
  const arrays = ArrayBuffer.isView(result) ? [result] : Object.values(result ?? {});
  return arrays.filter(ArrayBuffer.isView).map(({ buffer }) => buffer);
}
