// The arithmetic of the lab, for WebAssembly with SIMD; fallback.js has the same functions in plain
// JavaScript. kernel.wasm is what this command makes of it (pip install ziglang==0.13.0):
//
//   python -m ziglang cc --target=wasm32-freestanding -mcpu=generic+simd128+bulk_memory -Os
//     -fno-vectorize -fno-slp-vectorize -nostdlib -Wl,--no-entry -Wl,--import-memory
//     -Wl,--strip-all -Wl,-z,stack-size=4096 kernel.c -o kernel.wasm
//
// Arrays are named by their place in memory, counted in elements of 4 bytes. Matrices are stored by
// rows, whose length is a multiple of 4; what stands between the columns and that length is 0.

typedef float f4 __attribute__((ext_vector_type(4)));
typedef int i4 __attribute__((ext_vector_type(4)));
#define EXPORT(name) __attribute__((export_name(#name)))
#define FLOATS(place) ((float *)((unsigned)(place) << 2))
#define INTS(place) ((int *)((unsigned)(place) << 2))
#define LOAD(p) (*(const f4 *)(p))
#define STORE(p, value) (*(f4 *)(p) = (value))

// A block of R rows and 4·V columns of C = A·B, or C += A·B, held in registers.
#define UNROLLED _Pragma("clang loop unroll(full)") for
#define BLOCK(R, V)                                                                           \
  {                                                                                           \
    f4 sum[R][V];                                                                             \
    UNROLLED(int r = 0; r < R; r++)                                                           \
    UNROLLED(int v = 0; v < V; v++) sum[r][v] = add ? LOAD(c + r * ldc + 4 * v) : (f4)(0.0f); \
    const float *p = a, *q = b;                                                               \
    for (int l = 0; l < k; l++, p += column, q += ldb)                                        \
      UNROLLED(int r = 0; r < R; r++)                                                         \
      UNROLLED(int v = 0; v < V; v++) sum[r][v] += (f4)(p[r * row]) * LOAD(q + 4 * v);        \
    UNROLLED(int r = 0; r < R; r++)                                                           \
    UNROLLED(int v = 0; v < V; v++) STORE(c + r * ldc + 4 * v, sum[r][v]);                    \
  }

static inline __attribute__((always_inline)) void block4x2(
    const float *a, int row, int column, const float *b, int ldb, float *c, int ldc, int k, int add)
BLOCK(4, 2)

static inline __attribute__((always_inline)) void block4x1(
    const float *a, int row, int column, const float *b, int ldb, float *c, int ldc, int k, int add)
BLOCK(4, 1)

static inline __attribute__((always_inline)) void block1x4(
    const float *a, int row, int column, const float *b, int ldb, float *c, int ldc, int k, int add)
BLOCK(1, 4)

static inline __attribute__((always_inline)) void block1x1(
    const float *a, int row, int column, const float *b, int ldb, float *c, int ldc, int k, int add)
BLOCK(1, 1)

// C (m × n) = A (m × k) · B (k × n), or C += A·B; n is a multiple of 4. The element (i, l) of A is
// at a + i·row + l·column, so that A may be the transpose of what is stored.
EXPORT(product) void product(int a_, int row, int column, int b_, int ldb, int c_, int ldc, int m,
                             int k, int n, int add) {
  const float *a = FLOATS(a_);
  float *c = FLOATS(c_);
  int i = 0;
  for (; i + 4 <= m; i += 4, a += 4 * row, c += 4 * ldc) {
    const float *b = FLOATS(b_);
    int j = 0;
    for (; j + 8 <= n; j += 8) block4x2(a, row, column, b + j, ldb, c + j, ldc, k, add);
    for (; j < n; j += 4) block4x1(a, row, column, b + j, ldb, c + j, ldc, k, add);
  }
  for (; i < m; i++, a += row, c += ldc) {
    const float *b = FLOATS(b_);
    int j = 0;
    for (; j + 16 <= n; j += 16) block1x4(a, row, column, b + j, ldb, c + j, ldc, k, add);
    for (; j < n; j += 4) block1x1(a, row, column, b + j, ldb, c + j, ldc, k, add);
  }
}

// The transpose (columns × rows) of a matrix (rows × columns).
EXPORT(transpose) void transpose(int a_, int lda, int out_, int ldo, int rows, int columns) {
  const float *a = FLOATS(a_);
  float *out = FLOATS(out_);
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < columns; j++) out[j * ldo + i] = a[i * lda + j];
}

// The rows of a matrix that n indices name, and their labels.
EXPORT(gather) void gather(int a_, int lda, int y_, int index_, int n, int out_, int labels_) {
  const int *index = INTS(index_), *y = INTS(y_);
  float *out = FLOATS(out_);
  for (int i = 0; i < n; i++, out += lda) {
    INTS(labels_)[i] = y[index[i]];
    const float *a = FLOATS(a_) + index[i] * lda;
    for (int j = 0; j < lda; j += 4) STORE(out + j, LOAD(a + j));
  }
}

// ---- functions ----------------------------------------------------------------------------------

// eˣ, to an ulp or two: x = k log 2 + r, and a polynomial in |r| ≤ log(2)/2.
static inline f4 exp4(f4 x) {
  x = __builtin_elementwise_min(__builtin_elementwise_max(x, (f4)(-87.0f)), (f4)(88.0f));
  f4 k = __builtin_elementwise_roundeven(x * 1.44269504088896341f);
  f4 r = x - k * 0.693359375f + k * 2.12194440e-4f;
  f4 p = 1.9875691500e-4f * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  i4 power = (__builtin_convertvector(k, i4) + 127) << 23;
  return p * (f4)power;
}

static inline float exp1(float x) { return exp4((f4)(x)).x; }

// log(1 + x) for x ≥ 0: 1 + x = 2ᵏ m, and the series of atanh.
static double log1p1(double x) {
  double one = 1.0 + x, lost = x - (one - 1.0);
  union { double value; unsigned long long bits; } u = {one};
  int k = (int)(u.bits >> 52) - 1023;
  u.bits = (u.bits & 0xfffffffffffffULL) | 0x3ff0000000000000ULL;
  double m = u.value;
  if (m > 1.4142135623730951) m *= 0.5, k++;
  // Where 1 + x is next to 1, m − 1 is x itself.
  double d = k ? m - 1.0 : x, f = d / (2.0 + d), s = f * f, sum = 0.0;
  for (int i = 21; i > 0; i -= 2) sum = sum * s + 1.0 / i;
  return 2.0 * f * sum + k * 0.6931471805599453 + (k ? lost / one : 0.0);
}

static inline f4 tanh4(f4 x) {
  f4 size = __builtin_elementwise_max(x, -x), s = x * x;
  // Near 0 a polynomial, as the quotient loses digits there.
  f4 p = -5.70498872745e-3f * s + 2.06390887954e-2f;
  p = p * s - 5.37397155531e-2f;
  p = p * s + 1.33314422036e-1f;
  p = p * s - 3.33332819422e-1f;
  f4 small = x + x * s * p;
  f4 large = 1.0f - 2.0f / (exp4(2.0f * size) + 1.0f);
  large = x < 0.0f ? -large : large;
  return size < 0.625f ? small : large;
}

// h ← relu(h) or tanh(h), m rows of n numbers. Kind 0 is ReLU, kind 1 tanh.
EXPORT(activate) void activate(int h_, int ld, int m, int n, int kind) {
  float *h = FLOATS(h_);
  for (int i = 0; i < m; i++, h += ld)
    for (int j = 0; j < n; j += 4) {
      f4 x = LOAD(h + j);
      STORE(h + j, kind ? tanh4(x) : x < 0.0f ? (f4)(0.0f) : x);
    }
}

// d ← d·σ′, in which σ′ is that of the activation whose value is h.
EXPORT(slope) void slope(int d_, int ldd, int h_, int ldh, int m, int n, int kind) {
  float *d = FLOATS(d_);
  const float *h = FLOATS(h_);
  for (int i = 0; i < m; i++, d += ldd, h += ldh)
    for (int j = 0; j < n; j += 4) {
      f4 x = LOAD(h + j), y = LOAD(d + j);
      STORE(d + j, kind ? y * (1.0f - x * x) : x > 0.0f ? y : (f4)(0.0f));
    }
}

// The derivative of d·σ′ along a direction: e ← e·σ′ + d·σ″·ż, for ḣ = σ′ż and d before `slope`.
EXPORT(bend) void bend(int e_, int d_, int ldd, int h_, int t_, int ldh, int m, int n, int kind) {
  float *e = FLOATS(e_);
  const float *d = FLOATS(d_), *h = FLOATS(h_), *t = FLOATS(t_);
  for (int i = 0; i < m; i++, e += ldd, d += ldd, h += ldh, t += ldh)
    for (int j = 0; j < n; j += 4) {
      f4 x = LOAD(h + j), y = LOAD(e + j);
      f4 bent = y * (1.0f - x * x) - 2.0f * x * LOAD(t + j) * LOAD(d + j);
      STORE(e + j, kind ? bent : x > 0.0f ? y : (f4)(0.0f));
    }
}

// ---- losses -------------------------------------------------------------------------------------

// The sum of the cross-entropies of m rows z of c logits, and d, their derivatives p − e_y, with 0
// in the columns up to ldz. No digit is lost where a probability is near 1: 1 − p is then a sum.
EXPORT(crossEntropy) double crossEntropy(int z_, int y_, int d_, int ldz, int m, int c) {
  const float *z = FLOATS(z_);
  const int *y = INTS(y_);
  float *d = FLOATS(d_);
  double total = 0.0;
  for (int i = 0; i < m; i++, z += ldz, d += ldz) {
    int top = 0, label = y[i];
    for (int j = 1; j < c; j++) top = z[j] > z[top] ? j : top;
    for (int j = 0; j < ldz; j += 4) STORE(d + j, exp4(LOAD(z + j) - z[top]));
    double others = 0.0, but_label = 0.0;
    for (int j = 0; j < c; j++) others += j == top ? 0.0 : d[j];
    for (int j = 0; j < c; j++) but_label += j == label ? 0.0 : d[j];
    total += (double)z[top] - z[label] + log1p1(others);
    float scale = (float)(1.0 / (1.0 + others));
    for (int j = 0; j < c; j++) d[j] *= scale;
    d[label] = (float)(-but_label / (1.0 + others));
    for (int j = c; j < ldz; j++) d[j] = 0.0f;
  }
  return total;
}

// The derivative e of d = p − e_y along a direction in which the logits change by t, and the sum of
// the losses' derivatives d·t. Differences to the likeliest class: again no digit is lost.
EXPORT(crossEntropyAlong) double crossEntropyAlong(int d_, int y_, int t_, int e_, int ldz, int m,
                                                   int c) {
  const float *d = FLOATS(d_), *t = FLOATS(t_);
  const int *y = INTS(y_);
  float *e = FLOATS(e_);
  double total = 0.0;
  for (int i = 0; i < m; i++, d += ldz, t += ldz, e += ldz) {
    int label = y[i], top = 0;
    for (int j = 0; j < c; j++) e[j] = d[j] + (j == label ? 1.0f : 0.0f);  // p
    for (int j = 1; j < c; j++) top = e[j] > e[top] ? j : top;
    float mean = 0.0f, along = 0.0f;
    for (int j = 0; j < c; j++) mean += e[j] * (t[j] - t[top]);
    for (int j = 0; j < c; j++) along += d[j] * (t[j] - t[label]);
    for (int j = 0; j < c; j++) e[j] *= (t[j] - t[top]) - mean;
    for (int j = c; j < ldz; j++) e[j] = 0.0f;
    total += along;
  }
  return total;
}

// The sum of ½ ‖z − e_y‖² over m rows, and its derivatives d = z − e_y; e of `Along` is t itself.
EXPORT(squaredError) double squaredError(int z_, int y_, int d_, int ldz, int m, int c) {
  const float *z = FLOATS(z_);
  const int *y = INTS(y_);
  float *d = FLOATS(d_);
  double total = 0.0;
  for (int i = 0; i < m; i++, z += ldz, d += ldz)
    for (int j = 0; j < ldz; j++) {
      d[j] = j < c ? z[j] - (j == y[i] ? 1.0f : 0.0f) : 0.0f;
      total += 0.5 * d[j] * d[j];
    }
  return total;
}

// ---- vectors ------------------------------------------------------------------------------------

// Σ x·y, summed in double precision; n is a multiple of 4, as below.
EXPORT(dot) double dot(int x_, int y_, int n) {
  const float *x = FLOATS(x_), *y = FLOATS(y_);
  double sum[4] = {0.0, 0.0, 0.0, 0.0};
  for (int i = 0; i < n; i += 4)
    for (int j = 0; j < 4; j++) sum[j] += (double)x[i + j] * y[i + j];
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// out = a·x + b·y
EXPORT(combine) void combine(int out_, float a, int x_, float b, int y_, int n) {
  float *out = FLOATS(out_);
  const float *x = FLOATS(x_), *y = FLOATS(y_);
  for (int i = 0; i < n; i += 4) STORE(out + i, a * LOAD(x + i) + b * LOAD(y + i));
}

// torch.optim.SGD, for a gradient that is scale·g: v ← momentum·v + scale·g + decay·w, w ← w − lr·v
EXPORT(sgd) void sgd(int w_, int g_, int v_, int n, float scale, float lr, float momentum,
                     float decay) {
  float *w = FLOATS(w_), *v = FLOATS(v_);
  const float *g = FLOATS(g_);
  for (int i = 0; i < n; i += 4) {
    f4 x = LOAD(w + i), step = scale * LOAD(g + i) + decay * x;
    if (momentum != 0.0f) {
      step += momentum * LOAD(v + i);
      STORE(v + i, step);
    }
    STORE(w + i, x - lr * step);
  }
}

// torch.optim.Adam: lr is η/(1 − β₁ᵗ), root √(1 − β₂ᵗ), after t updates with this one.
EXPORT(adam) void adam(int w_, int g_, int v_, int u_, int n, float scale, float lr, float root,
                       float decay) {
  float *w = FLOATS(w_), *v = FLOATS(v_), *u = FLOATS(u_);
  const float *g = FLOATS(g_);
  for (int i = 0; i < n; i += 4) {
    f4 x = LOAD(w + i), step = scale * LOAD(g + i) + decay * x, mean = LOAD(v + i);
    mean += 0.1f * (step - mean);
    f4 square = 0.999f * LOAD(u + i) + 0.001f * (step * step);
    STORE(v + i, mean);
    STORE(u + i, square);
    STORE(w + i, x - lr * mean / (__builtin_elementwise_sqrt(square) / root + 1e-8f));
  }
}
