// The lab: dense networks that are trained and measured in the page, by a worker of its own.
//
//   import digits from "dataset:digits";
//   import { Lab } from "./lab/lab.js";
//
//   const lab = await Lab.open(digits);
//   const net = lab.net({ hidden: [64], seed: 0 });
//   net.onrows = (rows) => draw(rows);                    // at most 60 times a second
//   const end = await net.train({ batchSize: 8, lr: 0.05, stop: { epochs: 30 } });
//   const phi = await net.measure("sharpness", { epsilon: 1e-3 });
//   lab.close();
//
// Words and units are those of lecture6: losses are means over samples, accuracies are fractions, φ
// is in per cent, lr is η per update, α = 0 is the first net and α = 1 the second. What is not an
// option, or impossible, rejects (or throws) with an Error that names the argument, the value and
// the remedy. The same seeds give the same results, whatever runs beside, in a worker or not.
//
// ---- Lab ---------------------------------------------------------------------------------------
//
// Lab.open(data, {place, kernel, prepare}) → Promise<Lab>
//   data    what `import digits from "dataset:digits"` gives (or "dataset:mnist14")
//   place   "worker" or "page": default a worker, and the page where workers are refused
//   kernel  "wasm" or "js": default WebAssembly, and plain JavaScript where its SIMD is missing
//   prepare called with lab.data before any net sees it; may change its x in place
// lab.place, lab.kernel         which of these it has become
// lab.data                      {name, inputs, classes, train: {n, x, y}, test: {n, x, y}}: x is a
//                               Float32Array (n × inputs) of values in [0, 1], y a Uint8Array (n)
// lab.net(options) → Net        see below; any number of them, they share the time
// lab.pause(), lab.resume()     all work, measures too; lab.paused
// lab.follow(element) → stop    pauses while the element is out of view or the tab is hidden;
//                               stop() ends that; beside it pause nets, not the lab
// lab.close()                   ends the worker; open promises reject with "closed"
//
// Lab.of(page, data, options) → () => Promise<Lab>
//   for a page of stage(): gives its lab, which is opened once, at the first call; pauses while the
//   page is out of view; and ends with it
//
// ---- Net ---------------------------------------------------------------------------------------
//
// lab.net({hidden, activation, loss, bias, seed, w, samples, noise})
//   hidden      widths of the hidden layers, [64]; [] is a linear model
//   activation  "relu" (default) or "tanh"
//   loss        "cross_entropy" (default), or "squared_error": ½ ‖z − e_y‖², e_y the class's unit
//               vector, mean over samples
//   bias        true
//   seed        of the initial weights, those of torch's Linear: uniform in ±1/√inputs; 0
//   w           Float32Array (nParams) in lecture6's order instead: per layer W (outputs × inputs),
//               then b (outputs)
//   samples     N: train on the first N training images; default all
//   noise       fraction of the training labels that are drawn anew, from `seed`; 0
// net.nParams, net.widths       widths: [64, 64, 10]
// net.rows                      all rows so far, oldest first; a row is
//     {update, epoch, trainLoss, trainAccuracy, testLoss, testAccuracy, distance}: epoch is in
//     passes over the N images (a fraction), distance is ‖w − w₀‖
// net.onrows = (rows, net) => …  called with the new rows
// net.state                     "idle", "training", "paused"; net.update: updates made
//
// net.train({batchSize, lr, optimizer, momentum, weightDecay, sampling, seed, warmup,
//            warmupFrom, measures, evaluateEvery, stop}) → Promise<{reason, row, update}>
//   batchSize      B; N is gradient descent. Required, as is lr
//   optimizer      "sgd" (default) or "adam" (β 0.9, 0.999, ε 1e-8)
//   momentum, weightDecay   0; as in torch: v ← m v + g + λw, w ← w − η v
//   sampling       "epoch" (default), "with_replacement", "without_replacement"
//   seed           of the batches; 0. A run that goes on with the same batchSize, sampling and seed
//                  has the batches that it would have had without a break; others depend on `update`
//   warmup         updates in which the rate rises linearly, to lr from warmupFrom, a rate: at
//                  the i-th to warmupFrom + (lr − warmupFrom) i/warmup; 0 and 0
//   measures       {name: options}: measures of each row, which it then has under their names, such
//                  as {eigenvalues: {k: 3, samples: 512}}; {}
//   evaluateEvery  updates between rows; default an epoch. A row before the first update, and one
//                  at the end, are always there
//   stop           {epochs, updates, trainLoss}: whichever comes first, counted from this call
//                  (trainLoss: as soon as a row's is ≤ it). Nothing: until stop()
//   reason         "epochs", "updates", "trainLoss", "stopped", or "diverged" (the loss is not
//                  finite; the row before is the last); row: the last row; update: updates made
//   A second call goes on from the weights, the momentum and the batches that there are.
//   pause() and resume() keep the promise open; stop() resolves it, after a last row.
// net.step(options, {indices}) → Promise<row>   one update, on the batch of these training images
//                               (numbers from 0), or on a random one; options as of train
// net.pause(), net.resume(), net.stop()
//   All of these, and those below, return promises.
// net.weights() → Promise<Float32Array>   (nParams) in lecture6's order
// net.setWeights(w)             and forget the momentum
// net.reset()                   to the initial weights; rows are forgotten
// net.close()
//
// net.measure(name, options, {signal}) → Promise<result>
//   of the weights at the moment of the call, while training goes on; `signal` (of an
//   AbortController) cancels it: it rejects with an AbortError. Where a measure has a `split`, it is
//   "train" (default) or "test", and `samples: n` takes only the first n images of it.
//
//   "evaluate"     {split, labels}      → {loss, accuracy, labels}; labels: true → Uint8Array (n)
//                                         of the classes that the net gives
//   "gradient"     {split}              → {loss, gradient: Float32Array (nParams), norm}
//   "hvp"          {v, split}           → {product: Float32Array (nParams)}: the Hessian times v,
//                                         exact (Pearlmutter's R-operator)
//   "eigenvalues"  {k: 1, ends: "largest" | "smallest" | "both", tolerance: 1e-3,
//                   maxProducts: 100, split, seed, vectors: false}
//                  → {largest: [{value, error}], smallest: […], vectors, converged, products}:
//                     Lanczos on the Hessian; the largest first, the most negative first; `error` as
//                     in lecture6 (Kato–Temple, rounding); vectors: true → [Float32Array (nParams)]
//   "spectrum"     {vectors: 4, steps: 40, split, seed} → {nodes, weights}: Gauss quadrature of the
//                     spectral density, (vectors × steps) each; each vector's weights sum to 1
//   "trace"        {products: 30, split, seed, probes} → {value, stderr, n}: Hutchinson;
//                     `probes`: own vectors (n × nParams) instead of random signs
//   "sharpness"    {kind: "worst_case" | "adaptive", epsilon: 1e-3, starts: 1, iterations: 10,
//                   equal: false, split, seed, start}
//                  → {value, stderr, loss, lossMax, gap, epsilon, converged, evaluations, norms}: φ
//                     by sign ascent, stderr by rounding; `equal`: after the layers' norms were made
//                     equal, which keeps the function of a ReLU net; "adaptive": the box |δ_i| ≤ ε |w_i|, 20 iterations by default;
//                     `start`: a point u of [−1, 1]^nParams instead of random ones; norms: of the
//                     layers' weights
//   "noise"        {split, directions: 0, seed} → {trace, gradientNorm2, scale, stderr, projections}:
//                     tr F of the per-sample gradients, ‖ḡ‖², B_simple = tr F/‖ḡ‖²; stderr has that
//                     of each, by rounding; projections of every sample's gradient on k random unit
//                     directions, or on given ones (k × nParams): Float32Array (n × k)
//   "sampleGradients" {indices} → {gradients: Float32Array (k × nParams), losses: Float64Array}
//   "path"         {to: Net or w, alphas, labels: false}
//                  → {alphas, train: {loss, accuracy}, test: {loss, accuracy}, labels}: arrays of
//                     numbers along the line; labels: Uint8Array (alphas × n of the test set)
//   "plane"        {span: 1, n: 21, split, seed, directions}
//                  → {coordinates, loss, accuracy, directions}: on w + x d₁ + y d₂, random and
//                     filter-normalised, or given; loss: Float32Array (n × n), a row for each y
//   "distance"     {to: Net or w} → {value, norm}: ‖w − w′‖ and ‖w‖

import bytes from "./kernel.wasm?base64";
import engine from "./engine.js?function";

const { Session, Shape, createKernel, decoded, oneOf, options, real, whole } = engine().parts;
const PATIENCE = 5000; // ms until a worker that does not answer counts as refused

// A data set as `packed` of the Python package writes it.
async function unpacked(text) {
  const stream = new Blob([decoded(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
  const all = new Uint8Array(await new Response(stream).arrayBuffer()), end = all.indexOf(10);
  const head = JSON.parse(new TextDecoder().decode(all.subarray(0, end)));
  const { inputs, train, test, white } = head, n = train + test;
  const y = all.subarray(end + 1, end + 1 + n);
  const pixels = all.subarray(end + 1 + n), x = new Float32Array(pixels.length);
  for (let i = 0; i < x.length; i++) x[i] = pixels[i] / white;
  const part = (from, to) => ({
    n: to - from, x: x.slice(from * inputs, to * inputs), y: y.slice(from, to),
  });
  return { ...head, train: part(0, train), test: part(train, n) };
}

// A worker of the lab that is ready, and its kernel; rejects where workers are refused.
function startWorker(data, kernel) {
  const address = URL.createObjectURL(new Blob([`(${engine})().serve();`], { type: "text/javascript" }));
  let worker;
  const ready = new Promise((resolve, reject) => {
    worker = new Worker(address);
    worker.onerror = () => reject(new Error("refused"));
    worker.onmessage = ({ data: { ready: kind, failed } }) =>
      kind ? resolve({ worker, kind }) : reject(Object.assign(new Error(failed), { failed }));
    setTimeout(() => reject(new Error("no answer")), PATIENCE);
    worker.postMessage({ data, bytes, kernel });
  });
  ready.catch(() => worker?.terminate());
  return ready.finally(() => URL.revokeObjectURL(address));
}

export class Lab {
  static of({ root, over: { signal } }, text, given) {
    let opening = null;
    const open = async () => {
      const lab = await Lab.open(text, given), unfollow = lab.follow(root);
      const end = () => [unfollow, () => lab.close()].forEach((each) => each());
      if (signal.aborted) end();
      signal.addEventListener("abort", end);
      return lab;
    };
    const failed = (error) => {
      opening = null; // the next call tries again
      throw error;
    };
    return () => (opening ??= open().catch(failed));
  }

  static async open(text, { place, kernel, prepare } = {}) {
    if (place !== undefined) oneOf("place", place, ["worker", "page"]);
    if (kernel !== undefined) oneOf("kernel", kernel, ["wasm", "js"]);
    const lab = new Lab();
    lab.data = await unpacked(text);
    prepare?.(lab.data);
    if (place !== "page")
      try {
        const { worker, kind } = await startWorker(lab.data, kernel);
        worker.onmessage = (event) => lab.receive(event.data);
        lab.send = (...message) => worker.postMessage(...message);
        lab.end = () => worker.terminate();
        return Object.assign(lab, { place: "worker", kernel: kind });
      } catch (error) {
        if (error.failed || place === "worker") throw error;
      }
    const created = await createKernel(bytes, kernel);
    const post = (message) => queueMicrotask(() => lab.receive(message));
    const session = new Session(created, lab.data, post, (run) => setTimeout(run));
    lab.send = (message) => session.receive(message);
    lab.end = () => session.pauseAll();
    return Object.assign(lab, { place: "page", kernel: created.kind });
  }

  nets = new Map();
  asked = new Map();
  number = 0;
  paused = false;
  closed = false;

  ask(action, given = {}) {
    if (this.closed) return Promise.reject(new Error("the lab is closed: open another"));
    const id = (this.number += 1);
    const answer = new Promise((resolve, reject) => this.asked.set(id, { resolve, reject }));
    this.send({ id, action, ...given });
    return Object.assign(answer, { id });
  }

  receive({ rows, replies }) {
    if (this.closed) return;
    const fresh = new Map();
    for (const [key, row] of rows) fresh.set(key, [...(fresh.get(key) ?? []), row]);
    for (const [key, own] of fresh) this.nets.get(key)?.add(own);
    for (const { id, result, error, name } of replies) {
      const { resolve, reject } = this.asked.get(id);
      this.asked.delete(id);
      if (error === undefined) resolve(result);
      else reject(Object.assign(new Error(error), name && { name }));
    }
  }

  net(options = {}) {
    const net = new Net(this, (this.number += 1), options);
    this.nets.set(net.key, net);
    return net;
  }

  pause() {
    this.paused = true;
    return this.ask("pauseAll");
  }

  resume() {
    this.paused = false;
    return this.ask("resumeAll");
  }

  follow(element) {
    let inView = true;
    const look = () => {
      const seen = inView && document.visibilityState === "visible";
      if (!this.closed && seen === this.paused) this[seen ? "resume" : "pause"]();
    };
    const observer = new IntersectionObserver((entries) => {
      inView = entries.at(-1).isIntersecting;
      look();
    });
    observer.observe(element);
    document.addEventListener("visibilitychange", look);
    return () => {
      observer.disconnect();
      document.removeEventListener("visibilitychange", look);
    };
  }

  close() {
    this.end();
    this.closed = true;
    for (const { reject } of this.asked.values()) reject(new Error("closed"));
    this.asked.clear();
  }
}

const NET = {
  hidden: [64], activation: "relu", loss: "cross_entropy", bias: true, seed: 0, w: undefined,
  samples: undefined, noise: 0,
};

class Net {
  rows = [];
  onrows = () => {};
  state = "idle";

  constructor(lab, key, given) {
    const chosen = options(given, NET), { hidden, activation, loss, bias } = chosen;
    const { inputs, classes, train } = lab.data;
    const shape = new Shape({ widths: [inputs, ...hidden, classes], activation, loss, bias });
    Object.assign(this, { lab, key, shape, widths: shape.widths, nParams: shape.nParams });
    if (chosen.w) shape.pack(chosen.w);
    whole("seed", chosen.seed, 0);
    whole("samples", chosen.samples ?? train.n, 1, train.n);
    real("noise", chosen.noise, { least: 0, most: 1 });
    this.ask("open", chosen);
  }

  get update() {
    return this.rows.at(-1)?.update ?? 0;
  }

  ask(action, given) {
    return this.lab.ask(action, { net: this.key, ...given });
  }

  add(rows) {
    this.rows.push(...rows);
    this.onrows(rows, this);
  }

  async train(given) {
    this.state = "training";
    try {
      const { reason, row, update } = await this.ask("start", { options: given });
      return { reason, row: row ?? this.rows.at(-1), update };
    } finally {
      this.state = "idle";
    }
  }

  step(given, { indices } = {}) {
    return this.ask("step", { options: given, indices });
  }

  pause() {
    if (this.state === "training") this.state = "paused";
    return this.ask("pause");
  }

  resume() {
    if (this.state === "paused") this.state = "training";
    return this.ask("resume");
  }

  stop() {
    return this.ask("stop");
  }

  weights() {
    return this.ask("weights");
  }

  setWeights(w) {
    return this.ask("setWeights", { w });
  }

  async reset() {
    await this.ask("reset");
    this.rows = [];
  }

  close() {
    this.lab.nets.delete(this.key);
    return this.ask("close");
  }

  async measure(name, given = {}, { signal } = {}) {
    signal?.throwIfAborted();
    const { to, ...rest } = given;
    const other = to instanceof Net ? { options: rest, to: to.key } : { options: given };
    const answer = this.ask("measure", { name, ...other });
    const cancel = () => this.lab.ask("cancel", { job: answer.id });
    signal?.addEventListener("abort", cancel, { once: true });
    return answer.finally(() => signal?.removeEventListener("abort", cancel));
  }
}
