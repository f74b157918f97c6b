// The eigenvalues of a symmetric tridiagonal matrix, ascending, and its eigenvectors, as rows, from
// its diagonal and what is beside it (what goes beyond the matrix is not read): the implicit QL
// method (Dubrulle, Martin & Wilkinson, 1968).

export function tridiagonal(diagonal, beside) {
  const n = diagonal.length, d = Float64Array.from(diagonal), e = new Float64Array(n);
  e.set(beside.slice(0, n - 1));
  const rows = Array.from({ length: n }, (_, i) => {
    const row = new Float64Array(n);
    row[i] = 1;
    return row;
  });
  for (let l = 0; l < n; l++)
    for (;;) {
      let m = l;
      while (m < n - 1 && Math.abs(e[m]) > 1e-16 * (Math.abs(d[m]) + Math.abs(d[m + 1]))) m += 1;
      if (m === l) break;
      const half = (d[l + 1] - d[l]) / (2 * e[l]), root = Math.hypot(half, 1);
      let g = d[m] - d[l] + e[l] / (half + (half < 0 ? -root : root));
      let s = 1, c = 1, p = 0;
      for (let i = m - 1; i >= l; i--) {
        const f = s * e[i], b = c * e[i], r = Math.hypot(f, g);
        e[i + 1] = r;
        if (r === 0) {
          d[i + 1] -= p;
          e[m] = 0;
          break;
        }
        [s, c] = [f / r, g / r];
        g = d[i + 1] - p;
        const q = (d[i] - g) * s + 2 * c * b;
        p = s * q;
        d[i + 1] = g + p;
        g = c * q - b;
        const [x, y] = [rows[i], rows[i + 1]];
        for (let k = 0; k < n; k++) [x[k], y[k]] = [c * x[k] - s * y[k], s * x[k] + c * y[k]];
        if (i === l) {
          d[l] -= p;
          e[l] = g;
          e[m] = 0;
        }
      }
    }
  const order = Array.from(d.keys()).sort((i, j) => d[i] - d[j]);
  return { values: order.map((i) => d[i]), vectors: order.map((i) => Array.from(rows[i])) };
}
