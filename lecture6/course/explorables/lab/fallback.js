// The functions of kernel.c in plain JavaScript, on the same memory: equal to it up to rounding.

export function fallback(heap) {
  const bound = {};
  for (const [name, run] of Object.entries(functions))
    bound[name] = (...given) => run(heap.floats, heap.ints, ...given);
  return bound;
}

const functions = {
  product(F, I, a, row, column, b, ldb, c, ldc, m, k, n, add) {
    for (let i = 0; i < m; i++)
      for (let j = 0; j < n; j += 4) {
        const to = c + i * ldc + j;
        let s0 = 0, s1 = 0, s2 = 0, s3 = 0;
        if (add) { s0 = F[to]; s1 = F[to + 1]; s2 = F[to + 2]; s3 = F[to + 3]; }
        for (let l = 0, p = a + i * row, q = b + j; l < k; l++, p += column, q += ldb) {
          const x = F[p];
          s0 += x * F[q]; s1 += x * F[q + 1]; s2 += x * F[q + 2]; s3 += x * F[q + 3];
        }
        F[to] = s0; F[to + 1] = s1; F[to + 2] = s2; F[to + 3] = s3;
      }
  },

  transpose(F, I, a, lda, out, ldo, rows, columns) {
    for (let i = 0; i < rows; i++)
      for (let j = 0; j < columns; j++) F[out + j * ldo + i] = F[a + i * lda + j];
  },

  gather(F, I, a, lda, y, index, n, out, labels) {
    for (let i = 0; i < n; i++) {
      const from = a + I[index + i] * lda;
      F.copyWithin(out + i * lda, from, from + lda);
      I[labels + i] = I[y + I[index + i]];
    }
  },

  activate(F, I, h, ld, m, n, kind) {
    for (let i = 0; i < m; i++)
      for (let p = h + i * ld, end = p + n; p < end; p++)
        F[p] = kind ? Math.tanh(F[p]) : F[p] < 0 ? 0 : F[p];
  },

  slope(F, I, d, ldd, h, ldh, m, n, kind) {
    for (let i = 0; i < m; i++)
      for (let j = 0, p = d + i * ldd, q = h + i * ldh; j < n; j++, p++, q++)
        F[p] = kind ? F[p] * (1 - F[q] * F[q]) : F[q] > 0 ? F[p] : 0;
  },

  bend(F, I, e, d, ldd, h, t, ldh, m, n, kind) {
    for (let i = 0; i < m; i++)
      for (let j = 0; j < n; j++) {
        const p = i * ldd + j, q = i * ldh + j, x = F[h + q];
        if (kind) F[e + p] = F[e + p] * (1 - x * x) - 2 * x * F[t + q] * F[d + p];
        else if (!(x > 0)) F[e + p] = 0;
      }
  },

  crossEntropy(F, I, z, y, d, ldz, m, c) {
    let total = 0;
    for (let i = 0; i < m; i++, z += ldz, d += ldz) {
      const label = I[y + i];
      let top = 0, others = 0, butLabel = 0;
      for (let j = 1; j < c; j++) if (F[z + j] > F[z + top]) top = j;
      for (let j = 0; j < c; j++) {
        const weight = Math.exp(F[z + j] - F[z + top]);
        if (j !== top) others += weight;
        if (j !== label) butLabel += weight;
        F[d + j] = weight;
      }
      total += F[z + top] - F[z + label] + Math.log1p(others);
      for (let j = 0; j < c; j++) F[d + j] /= 1 + others;
      F[d + label] = -butLabel / (1 + others);
      F.fill(0, d + c, d + ldz);
    }
    return total;
  },

  crossEntropyAlong(F, I, d, y, t, e, ldz, m, c) {
    let total = 0;
    for (let i = 0; i < m; i++, d += ldz, t += ldz, e += ldz) {
      const label = I[y + i];
      let top = 0, mean = 0;
      for (let j = 0; j < c; j++) F[e + j] = F[d + j] + (j === label ? 1 : 0);
      for (let j = 1; j < c; j++) if (F[e + j] > F[e + top]) top = j;
      for (let j = 0; j < c; j++) {
        mean += F[e + j] * (F[t + j] - F[t + top]);
        total += F[d + j] * (F[t + j] - F[t + label]);
      }
      for (let j = 0; j < c; j++) F[e + j] *= F[t + j] - F[t + top] - mean;
      F.fill(0, e + c, e + ldz);
    }
    return total;
  },

  squaredError(F, I, z, y, d, ldz, m, c) {
    let total = 0;
    for (let i = 0; i < m; i++, z += ldz, d += ldz) {
      for (let j = 0; j < c; j++) {
        F[d + j] = F[z + j] - (j === I[y + i] ? 1 : 0);
        total += (F[d + j] * F[d + j]) / 2;
      }
      F.fill(0, d + c, d + ldz);
    }
    return total;
  },

  dot(F, I, x, y, n) {
    let sum = 0;
    for (let i = 0; i < n; i++) sum += F[x + i] * F[y + i];
    return sum;
  },

  combine(F, I, out, a, x, b, y, n) {
    for (let i = 0; i < n; i++) F[out + i] = a * F[x + i] + b * F[y + i];
  },

  sgd(F, I, w, g, v, n, scale, lr, momentum, decay) {
    for (let i = 0; i < n; i++) {
      let step = scale * F[g + i] + decay * F[w + i];
      if (momentum) step = F[v + i] = step + momentum * F[v + i];
      F[w + i] -= lr * step;
    }
  },

  adam(F, I, w, g, v, u, n, scale, lr, root, decay) {
    for (let i = 0; i < n; i++) {
      const step = scale * F[g + i] + decay * F[w + i];
      F[v + i] += 0.1 * (step - F[v + i]);
      F[u + i] = 0.999 * F[u + i] + 0.001 * (step * step);
      F[w + i] -= (lr * F[v + i]) / (Math.sqrt(F[u + i]) / root + 1e-8);
    }
  },
};
