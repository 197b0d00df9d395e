// Layer norm, exact GELU, short-sequence self-attention and the products of linear layers for CPUs with AVX-512, float32 and bfloat16.
//
// Every function takes raw pointers and returns nothing. Arithmetic is float32 whatever the type of the tensors. A result does not
// depend on chance: threads take fixed ranges of rows, and sums over threads are added in the order of the threads.
//
// Callers hold (operators.py): arrays are dense, widths and head dims are multiples of LANES where stated.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include <immintrin.h>
#include <omp.h>

namespace {

constexpr int LANES = 16;
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

struct bfloat16 {
    uint16_t bits;
};

inline Floats all(float x) { return Floats{} + x; }

inline Floats load(const float *p) {
    Floats x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

inline Floats load(const bfloat16 *p) {
    Halves h;
    std::memcpy(&h, p, sizeof h);
    return (Floats)(__builtin_convertvector(h, Words) << 16);
}

inline void store(float *p, Floats x) { std::memcpy(p, &x, sizeof x); }

// Rounds to the nearest, ties to even; what is not a number stays so.
inline void store(bfloat16 *p, Floats x) {
#ifdef __AVX512BF16__
    __m256bh h = _mm512_cvtneps_pbh((__m512)x);
#else
    Words bits = (Words)x;
    Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    rounded = (x == x) ? rounded : Words{} + 0x7fc0;
    Halves h = __builtin_convertvector(rounded, Halves);
#endif
    std::memcpy(p, &h, sizeof h);
}

inline float one(const float *p) { return *p; }

inline float one(const bfloat16 *p) {
    uint32_t bits = uint32_t(p->bits) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// The first `count` of LANES values, the others 0.
template <typename T> inline Floats load_some(const T *p, int count) {
    T padded[LANES] = {};
    std::memcpy(padded, p, count * sizeof(T));
    return load(padded);
}

template <typename T> inline void store_some(T *p, Floats x, int count) {
    T padded[LANES];
    store(padded, x);
    std::memcpy(p, padded, count * sizeof(T));
}

template <int STEP> inline Floats halves_swapped(Floats x) {
    Ints lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return __builtin_shuffle(x, lanes ^ STEP);
}

inline float sum(Floats x) {
    x += halves_swapped<8>(x);
    x += halves_swapped<4>(x);
    x += halves_swapped<2>(x);
    x += halves_swapped<1>(x);
    return x[0];
}

inline Floats larger(Floats x, Floats y) { return x > y ? x : y; }

inline float greatest(Floats x) {
    x = larger(x, halves_swapped<8>(x));
    x = larger(x, halves_swapped<4>(x));
    x = larger(x, halves_swapped<2>(x));
    x = larger(x, halves_swapped<1>(x));
    return x[0];
}

// One of the four steps of transposing LANES x LANES values: blocks of STEP x STEP change places across the diagonal.
template <int STEP> inline void swap_blocks(Floats *rows) {
    Ints lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    Ints upper = (lanes & STEP) ? lanes - STEP + LANES : lanes;
    Ints lower = (lanes & STEP) ? lanes + LANES : lanes + STEP;
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++)
        if (!(i & STEP)) {
            Floats a = rows[i], b = rows[i + STEP];
            rows[i] = __builtin_shuffle(a, b, upper);
            rows[i + STEP] = __builtin_shuffle(a, b, lower);
        }
}

inline void transpose_square(Floats *rows) {
    swap_blocks<8>(rows);
    swap_blocks<4>(rows);
    swap_blocks<2>(rows);
    swap_blocks<1>(rows);
}

// Whether a type carries more than half of float32's digits: what bfloat16 would round away is not computed.
template <typename T> constexpr bool fine = sizeof(T) == 4;

// e^x for x <= 0: 2^n times a polynomial for 2^f, |f| <= 1/2, to 1e-7 (FINE) or 1e-4 of the value; e^-87.3 below -87.3.
template <bool FINE> inline Floats exp_negative(Floats x) {
    constexpr float log2_e = 1.44269504f, round = 12582912.0f;  // 1.5 * 2^23: adding it rounds the fraction away
    Floats bounded = x < -87.3f ? all(-87.3f) : x;
    Floats shifted = bounded * log2_e + round;
    Floats f = bounded * log2_e - (shifted - round), y;
    if constexpr (FINE) {
        y = 0.00132765f * f + 0.00967554f;
        y = y * f + 0.05550713f;
        y = y * f + 0.2402212f;
        y = y * f + 0.69314697f;
        y = y * f + 1.0f;
    } else {
        y = 0.05517178f * f + 0.24261143f;
        y = y * f + 0.69326099f;
        y = y * f + 0.99992806f;
    }
    return (Floats)((Ints)y + ((Ints)shifted << 23));
}

// 1 / x for x >= 1 to 1e-4 where the processor has an estimate.
inline Floats reciprocal_estimate(Floats x) {
#ifdef __AVX512F__
    return (Floats)_mm512_maskz_rcp14_ps(0xffff, (__m512)x);
#else
    return 1.0f / x;
#endif
}

// 1 / x for x >= 1: the estimate and one step of Newton's.
inline Floats reciprocal(Floats x) {
    x = x < 1e30f ? x : all(1e30f);  // an infinity times the estimate 0 would be no number
    Floats y = reciprocal_estimate(x);
    return y * (2.0f - x * y);
}

// A contiguous share of `count` things for thread `me` of `threads`.
inline void share(int64_t count, int64_t &first, int64_t &last) {
    int64_t threads = omp_get_num_threads(), me = omp_get_thread_num();
    first = count * me / threads;
    last = count * (me + 1) / threads;
}

// ---------------------------------------------------------------------------------------------------------------- layer norm

template <typename T>
void norm_forward(int64_t rows, int64_t width, const T *x, const T *branch, T *total, const T *weight, const T *bias, float eps, T *y,
                  float *mean, float *inverse, int threads) {
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> scratch(3 * width);
        float *row = scratch.data(), *w = row + width, *b = w + width;
        for (int64_t c = 0; c < width; c += LANES) {
            store(w + c, load(weight + c));
            store(b + c, load(bias + c));
        }
        int64_t first, last;
        share(rows, first, last);
        for (int64_t r = first; r < last; r++) {
            const T *in = x + r * width;
            Floats s = {};
            for (int64_t c = 0; c < width; c += LANES) {
                Floats v = load(in + c);
                if (branch) {
                    store(total + r * width + c, v + load(branch + r * width + c));
                    v = load(total + r * width + c);  // as rounded: what the backward pass will see
                }
                store(row + c, v);
                s += v;
            }
            float m = sum(s) / width;
            Floats q = {};
            for (int64_t c = 0; c < width; c += LANES) {
                Floats v = load(row + c) - m;
                q += v * v;
            }
            float k = 1.0f / std::sqrt(sum(q) / width + eps);
            for (int64_t c = 0; c < width; c += LANES) store(y + r * width + c, (load(row + c) - m) * k * load(w + c) + load(b + c));
            mean[r] = m;
            inverse[r] = k;
        }
    }
}

template <typename T>
void norm_backward(int64_t rows, int64_t width, const T *grad, const T *through, const T *x, const T *weight, const float *mean,
                   const float *inverse, T *grad_x, float *sums, int threads) {
    // sums [threads][2][width]: each thread's gradients of weight and bias; those of the first thread become the totals.
    std::memset(sums, 0, sizeof(float) * threads * 2 * width);
    int used = 1;
#pragma omp parallel num_threads(threads)
    {
#pragma omp single
        used = omp_get_num_threads();
        std::vector<float> scratch(3 * width);
        float *row = scratch.data(), *normed = row + width, *w = normed + width;
        float *dw = sums + int64_t(omp_get_thread_num()) * 2 * width, *db = dw + width;
        for (int64_t c = 0; c < width; c += LANES) store(w + c, load(weight + c));
        int64_t first, last;
        share(rows, first, last);
        for (int64_t r = first; r < last; r++) {
            float m = mean[r], k = inverse[r];
            Floats a = {}, b = {};
            for (int64_t c = 0; c < width; c += LANES) {
                Floats g = load(grad + r * width + c), n = (load(x + r * width + c) - m) * k, weighted = g * load(w + c);
                store(dw + c, load(dw + c) + g * n);
                store(db + c, load(db + c) + g);
                store(row + c, weighted);
                store(normed + c, n);
                a += weighted;
                b += weighted * n;
            }
            float mean_a = sum(a) / width, mean_b = sum(b) / width;
            for (int64_t c = 0; c < width; c += LANES) {
                Floats d = (load(row + c) - mean_a - load(normed + c) * mean_b) * k;
                if (through) d += load(through + r * width + c);
                store(grad_x + r * width + c, d);
            }
        }
    }
    for (int t = 1; t < used; t++)
        for (int64_t c = 0; c < 2 * width; c += LANES) store(sums + c, load(sums + c) + load(sums + t * 2 * width + c));
}

// ---------------------------------------------------------------------------------------------------------------------- GELU

// x Phi(x) and its derivative Phi(x) + x phi(x). The tail of Phi is e^(-x^2/2) times a polynomial of t = 1 / (1 + p |x|): FINE that of
// Abramowitz and Stegun's 7.1.26 (error of erf at most 1.5e-7), else a shorter one, to 2e-4 of the tail. The derivative needs the
// exponential too.
template <bool FINE> inline void gelu(Floats x, Floats &value, Floats &slope) {
    Floats size = x < 0 ? -x : x;
    Floats bell = exp_negative<FINE>(x * x * -0.5f), p;
    if constexpr (FINE) {
        Floats t = reciprocal(1.0f + 0.3275911f * 0.70710678f * size);
        p = 0.5307027145f * t - 0.726576014f;
        p = p * t + 0.7107068705f;
        p = p * t - 0.142248368f;
        p = p * t + 0.127414796f;
        p = p * t;
    } else {
        Floats t = reciprocal_estimate(1.0f + 0.69f * 0.70710678f * size);
        p = -0.124181385f * t + 0.259494095f;
        p = p * t + 0.167733175f;
        p = p * t + 0.19689429f;
        p = p * t;
    }
    Floats tail = p * bell;
    Floats phi = x < 0 ? tail : 1.0f - tail;
    value = x * phi;
    slope = phi + x * bell * 0.39894228f;
}

template <typename T> void gelu_forward(int64_t count, const T *x, T *y, T *slopes, int threads) {
    int64_t blocks = (count + LANES - 1) / LANES;
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last;
        share(blocks, first, last);
        for (int64_t i = first * LANES; i < last * LANES; i += LANES) {
            Floats value, slope;
            if (i + LANES <= count) {
                gelu<fine<T>>(load(x + i), value, slope);
                store(y + i, value);
                if (slopes) store(slopes + i, slope);
            } else {
                gelu<fine<T>>(load_some(x + i, count - i), value, slope);
                store_some(y + i, value, count - i);
                if (slopes) store_some(slopes + i, slope, count - i);
            }
        }
    }
}

template <typename T> void multiply(int64_t count, const T *a, const T *b, T *c, int threads) {
    int64_t blocks = (count + LANES - 1) / LANES;
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last;
        share(blocks, first, last);
        for (int64_t i = first * LANES; i < last * LANES; i += LANES) {
            if (i + LANES <= count)
                store(c + i, load(a + i) * load(b + i));
            else
                store_some(c + i, load_some(a + i, count - i) * load_some(b + i, count - i), count - i);
        }
    }
}

// to [width] = the sums of the columns of x [rows, width]; sums [threads][width] is working space.
template <typename T> void column_sums(int64_t rows, int64_t width, const T *x, T *to, float *sums, int threads) {
    std::memset(sums, 0, sizeof(float) * threads * width);
    int used = 1;
#pragma omp parallel num_threads(threads)
    {
#pragma omp single
        used = omp_get_num_threads();
        float *mine = sums + omp_get_thread_num() * width;
        int64_t first, last;
        share(rows, first, last);
        // Columns in groups that stay in registers; few enough rows at a time that they stay in the cache between groups.
        constexpr int64_t GROUP = 8 * LANES, BATCH = 64;
        for (int64_t from = first; from < last; from += BATCH)
            for (int64_t c = 0; c < width; c += GROUP) {
                int64_t until = std::min(from + BATCH, last), lanes = std::min(GROUP, width - c);
                Floats totals[GROUP / LANES] = {};
                for (int64_t r = from; r < until; r++)
                    for (int64_t v = 0; v < lanes; v += LANES) totals[v / LANES] += load(x + r * width + c + v);
                for (int64_t v = 0; v < lanes; v += LANES) store(mine + c + v, load(mine + c + v) + totals[v / LANES]);
            }
    }
    for (int64_t c = 0; c < width; c += LANES) {
        Floats total = {};
        for (int t = 0; t < used; t++) total += load(sums + t * width + c);
        store(to + c, total);
    }
}

// ------------------------------------------------------------------------------------------------------------ weight gradients

// A tile of the result is TILE_ROWS x TILE_COLUMNS: 24 registers of sums. Of the long dimension a block of DEPTH entries is packed at a
// time, so that a panel of TILE_COLUMNS stays in the first cache and all panels in the second. An entry is one row of float32, or two
// rows of bfloat16 side by side, as the processor's dot product takes them.
constexpr int TILE_ROWS = 8, TILE_REGISTERS = 3, TILE_COLUMNS = TILE_REGISTERS * LANES, DEPTH = 192;
template <typename T> constexpr int rows_an_entry = 4 / sizeof(T);

inline Floats multiply_add(Floats sum, Floats a, Floats b, const float *) { return sum + a * b; }
#ifdef __AVX512BF16__
inline Floats multiply_add(Floats sum, Floats a, Floats b, const bfloat16 *) {
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
#endif

typedef Floats Tile[TILE_ROWS][TILE_REGISTERS];

// total += a b, a(p, r) and b [depth, TILE_COLUMNS] entries.
template <typename T, typename A> __attribute__((always_inline)) inline void accumulate(int64_t depth, A a, const float *b, Tile &total) {
    for (int64_t p = 0; p < depth; p++) {
        Floats bs[TILE_REGISTERS];
#pragma GCC unroll 16
        for (int v = 0; v < TILE_REGISTERS; v++) bs[v] = load(b + p * TILE_COLUMNS + v * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < TILE_ROWS; r++) {
            Floats factor = (Floats)_mm512_set1_ps(a(p, r));
#pragma GCC unroll 16
            for (int v = 0; v < TILE_REGISTERS; v++) total[r][v] = multiply_add(total[r][v], factor, bs[v], static_cast<const T *>(nullptr));
        }
    }
}

// c [TILE_ROWS, TILE_COLUMNS] += a^T b of entries a [depth, TILE_ROWS], b [depth, TILE_COLUMNS].
template <typename T> void add_tile(int64_t depth, const float *a, const float *b, float *c) {
    Tile total;
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; r++)
#pragma GCC unroll 16
        for (int v = 0; v < TILE_REGISTERS; v++) total[r][v] = Floats{};
    accumulate<T>(depth, [a](int64_t p, int r) { return a[p * TILE_ROWS + r]; }, b, total);
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; r++)
#pragma GCC unroll 16
        for (int v = 0; v < TILE_REGISTERS; v++) {
            float *at = c + r * TILE_COLUMNS + v * LANES;
            store(at, load(at) + total[r][v]);
        }
}

// LANES columns of one entry, and their sum over its rows.
inline Words entry(const float *x, int64_t, bool, Floats &sum) {
    sum = load(x);
    return (Words)sum;
}

inline Words entry(const bfloat16 *x, int64_t stride, bool both, Floats &sum) {
    Floats first = load(x), second = both ? load(x + stride) : Floats{};
    sum = first + second;
    return ((Words)first >> 16) | (Words)second;
}

// Panels of WIDTH columns [panel][DEPTH][WIDTH] of COUNT * LANES columns of rows x; sums, where asked, gets the sums of columns added.
template <int WIDTH, int COUNT, typename T> void pack_columns(int64_t rows, int64_t from, const T *x, int64_t stride, float *to, float *sums) {
    constexpr int STEP = rows_an_entry<T>, AHEAD = 8;
    Floats total[COUNT] = {}, sum;
    for (int64_t p = 0; p * STEP < rows; p++) {
        const T *row = x + p * STEP * stride + from;
#pragma GCC unroll 16
        for (int g = 0; g < COUNT; g++) {
            if (g % (LANES / 8 * STEP) == 0)
                for (int r = 0; r < STEP; r++) __builtin_prefetch(row + (AHEAD * STEP + r) * stride + g * LANES);
            Words packed = entry(row + g * LANES, stride, p * STEP + 1 < rows, sum);
            total[g] += sum;
            int64_t c = from + g * LANES;
            if constexpr (WIDTH < LANES) {
                std::memcpy(to + (c / WIDTH * DEPTH + p) * WIDTH, &packed, WIDTH * 4);
                std::memcpy(to + ((c / WIDTH + 1) * DEPTH + p) * WIDTH, reinterpret_cast<const char *>(&packed) + WIDTH * 4, WIDTH * 4);
            } else {
                std::memcpy(to + (c / WIDTH * DEPTH + p) * WIDTH + c % WIDTH, &packed, LANES * 4);
            }
        }
    }
    for (int g = 0; sums && g < COUNT; g++) store(sums + from + g * LANES, load(sums + from + g * LANES) + total[g]);
}

// The same of all columns, a cache line or more of each row at a time.
template <int WIDTH, typename T> void pack_panels(int64_t rows, int64_t columns, const T *x, int64_t stride, float *to, float *sums) {
    constexpr int COUNT = 4;
    int64_t c = 0;
    for (; c + COUNT * LANES <= columns; c += COUNT * LANES) pack_columns<WIDTH, COUNT>(rows, c, x, stride, to, sums);
    for (; c < columns; c += LANES) pack_columns<WIDTH, 1>(rows, c, x, stride, to, sums);
}

// to [m, k] = grad^T x of grad [rows, m], x [rows, k], and, unless null, sums [m] = the sums of grad's columns. m and k are multiples of
// LANES. Each thread makes a part of the result of its own, so the sums are those of one thread.
template <typename T> void weight_gradient(int64_t rows, int64_t m, int64_t k, const T *grad, const T *x, T *to, T *to_sums, int threads) {
#pragma omp parallel num_threads(threads)
    {
        int64_t team = omp_get_num_threads(), me = omp_get_thread_num(), high = 1;  // high x team / high parts: as little to pack as can be
        for (int64_t h = 2; h <= team; h++)
            if (team % h == 0 && m / h + k * h / team < m / high + k * high / team) high = h;
        int64_t wide = team / high, i = me / wide, j = me % wide, panels = (k + TILE_COLUMNS - 1) / TILE_COLUMNS;
        int64_t top = m / LANES * i / high * LANES, height = m / LANES * (i + 1) / high * LANES - top;
        int64_t left = panels * j / wide * TILE_COLUMNS, width = std::min(k, panels * (j + 1) / wide * TILE_COLUMNS) - left;
        int64_t strips = height / TILE_ROWS;
        panels = width > 0 ? (width + TILE_COLUMNS - 1) / TILE_COLUMNS : 0;

        static thread_local std::vector<float> scratch;  // kept: its pages would be new ones each time
        int64_t of_c = strips * panels * TILE_ROWS * TILE_COLUMNS, of_a = height * DEPTH, of_b = panels * TILE_COLUMNS * DEPTH;
        scratch.assign(of_c + of_a + of_b + height, 0.0f);
        float *c = scratch.data(), *a = c + of_c, *b = a + of_a, *sums = b + of_b;
        bool adds = to_sums && j == wide - 1;  // who has a panel, however few there are
        constexpr int64_t BLOCK = int64_t(DEPTH) * rows_an_entry<T>;
        for (int64_t n = 0; n < rows && panels * strips > 0; n += BLOCK) {
            int64_t count = std::min(BLOCK, rows - n), depth = (count + rows_an_entry<T> - 1) / rows_an_entry<T>;
            pack_panels<TILE_ROWS>(count, height, grad + n * m + top, m, a, adds ? sums : nullptr);
            pack_panels<TILE_COLUMNS>(count, width, x + n * k + left, k, b, nullptr);
            for (int64_t q = 0; q < panels; q++)
                for (int64_t s = 0; s < strips; s++)
                    add_tile<T>(depth, a + s * DEPTH * TILE_ROWS, b + q * DEPTH * TILE_COLUMNS, c + (q * strips + s) * TILE_ROWS * TILE_COLUMNS);
        }
        for (int64_t r = 0; r < height; r++)
            for (int64_t v = 0; v < width; v += LANES) {
                const float *tile = c + (v / TILE_COLUMNS * strips + r / TILE_ROWS) * TILE_ROWS * TILE_COLUMNS;
                store(to + (top + r) * k + left + v, load(tile + r % TILE_ROWS * TILE_COLUMNS + v % TILE_COLUMNS));
            }
        for (int64_t v = 0; adds && v < height; v += LANES) store(to_sums + top + v, load(sums + v));
    }
}

// ------------------------------------------------------------------------------------------------------------ products by weights

// What follows a product in the same pass, by value: y is as rounded to its type, so that these are the operators one after the other.
enum Following : int64_t {
    NOTHING,   // out = y
    ADDING,    // out = y + other
    GELU,      // out = gelu(y), other = its derivative there
    SCALING,   // other = y * other; no out
};

template <typename T> inline Floats rounded(Floats x) {
    T memory[LANES];
    store(memory, x);
    return load(memory);
}

template <typename T> inline void follow(Following what, Floats y, T *out, T *other) {
    y = rounded<T>(y);
    if (what == ADDING) {
        y += load(other);
    } else if (what == GELU) {
        Floats value, slope;
        gelu<fine<T>>(y, value, slope);
        store(other, slope);
        y = value;
    } else if (what == SCALING) {
        out = other;
        y *= load(other);
    }
    store(out, y);
}

// TILE_ROWS x TILE_COLUMNS of a b, and what follows it. a: rows of entries, `stride` apart, of which the first `rows` count;
// b [depth, TILE_COLUMNS] entries; columns: how many of those there are.
template <typename T>
void weights_tile(int64_t depth, const float *a, int64_t stride, int64_t rows, const float *b, const T *bias, Following what, T *out, T *other,
                  int64_t width, int64_t columns) {
    const float *at[TILE_ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; r++) at[r] = a + std::min<int64_t>(r, rows - 1) * stride;
    Tile total;
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; r++)
#pragma GCC unroll 16
        for (int v = 0; v < TILE_REGISTERS; v++) total[r][v] = bias && v * LANES < columns ? load(bias + v * LANES) : Floats{};
    accumulate<T>(depth, [&at](int64_t p, int r) { return at[r][p]; }, b, total);
    float made[TILE_ROWS][TILE_COLUMNS];
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; r++)
#pragma GCC unroll 16
        for (int v = 0; v < TILE_REGISTERS; v++) store(&made[r][v * LANES], total[r][v]);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t v = 0; v < columns; v += LANES) follow(what, load(&made[r][v]), out + r * width + v, other + r * width + v);
}

// y [rows, m] = x [rows, k] W^T, plus bias [m] unless null, of weight W [m, k]; or, turned, x W of W [k, m]; then what follows.
// k is a multiple of LANES entries, m of LANES.
template <typename T>
void by_weights(int64_t rows, int64_t k, int64_t m, const T *x, const T *weight, int64_t turned, const T *bias, int64_t following, T *out,
                T *other, int threads) {
    constexpr int STEP = rows_an_entry<T>;
    int64_t depth = k / STEP, panels = (m + TILE_COLUMNS - 1) / TILE_COLUMNS;
    static thread_local std::vector<float> scratch;
    scratch.resize(panels * TILE_COLUMNS * depth);
    float *packed = scratch.data();
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last;
        share(panels, first, last);
        for (int64_t q = first; q < last; q++)
            for (int64_t v = 0; v < TILE_COLUMNS; v += LANES) {
                int64_t c = q * TILE_COLUMNS + v;
                float *to = packed + q * depth * TILE_COLUMNS + v;
                for (int64_t p = 0; p < depth; p += LANES) {
                    Floats square[LANES], sum;
                    for (int i = 0; i < LANES; i++) {
                        if (c >= m) square[i] = Floats{};
                        else if (turned) square[i] = (Floats)entry(weight + (p + i) * STEP * m + c, m, true, sum);
                        else square[i] = load(reinterpret_cast<const float *>(weight + (c + i) * k) + p);
                    }
                    if (!turned) transpose_square(square);
                    for (int i = 0; i < LANES; i++) store(to + (p + i) * TILE_COLUMNS, square[i]);
                }
            }
#pragma omp barrier
        constexpr int64_t BLOCK = 16 * TILE_ROWS;  // rows at a time: they stay in the second cache while all panels pass
        share((rows + TILE_ROWS - 1) / TILE_ROWS, first, last);
        first *= TILE_ROWS, last = std::min(last * TILE_ROWS, rows);
        for (int64_t from = first; from < last; from += BLOCK)
            for (int64_t q = 0; q < panels; q++)
                for (int64_t r = from; r < std::min(from + BLOCK, last); r += TILE_ROWS) {
                    int64_t c = q * TILE_COLUMNS, at = r * m + c;
                    weights_tile(depth, reinterpret_cast<const float *>(x + r * k), depth, std::min<int64_t>(TILE_ROWS, last - r),
                                 packed + q * depth * TILE_COLUMNS, bias ? bias + c : nullptr, Following(following), out + at, other + at, m,
                                 std::min<int64_t>(TILE_COLUMNS, m - c));
                }
    }
}

// ----------------------------------------------------------------------------------------------------------------- attention

// A matrix of float32 whose element (r, k) is at[r * row + k * column].
struct Matrix {
    const float *at;
    int64_t row, column;
};

// c [R, V * LANES] = a b, R rows of a and V registers of b's columns. Every loop over registers is unrolled, so that they stay such.
template <int R, int V> void tile(Matrix a, const float *b, int64_t width_b, float *c, int64_t width_c, int64_t depth) {
    Floats total[R][V];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 16
        for (int v = 0; v < V; v++) total[r][v] = Floats{};
    for (int64_t k = 0; k < depth; k++) {
        Floats bs[V];
#pragma GCC unroll 16
        for (int v = 0; v < V; v++) bs[v] = load(b + k * width_b + v * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            float factor = a.at[r * a.row + k * a.column];
#pragma GCC unroll 16
            for (int v = 0; v < V; v++) total[r][v] += bs[v] * factor;
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 16
        for (int v = 0; v < V; v++) store(c + r * width_c + v * LANES, total[r][v]);
}

// `rows` rows of `tile`, at most R at a time, of sizes that differ by one at most.
template <int R, int V> void strip(int64_t rows, Matrix a, const float *b, int64_t width_b, float *c, int64_t width_c, int64_t depth) {
    if constexpr (R == 1) {
        for (int64_t r = 0; r < rows; r++, a.at += a.row, c += width_c) tile<1, V>(a, b, width_b, c, width_c, depth);
    } else {
        int64_t tiles = (rows + R - 1) / R, lower = rows / tiles;
        if (lower < R - 1 || (lower == R - 1 && tiles * lower == rows)) {
            strip<R - 1, V>(rows, a, b, width_b, c, width_c, depth);
            return;
        }
        for (int64_t t = 0, r = 0; t < tiles; t++) {
            int64_t next = rows * (t + 1) / tiles;
            if (next - r == R)
                tile<R, V>({a.at + r * a.row, a.row, a.column}, b, width_b, c + r * width_c, width_c, depth);
            else
                tile<R - 1, V>({a.at + r * a.row, a.row, a.column}, b, width_b, c + r * width_c, width_c, depth);
            r = next;
        }
    }
}

// c [rows, columns] = a b; columns is a multiple of LANES. Tiles fill the 32 registers of AVX-512.
void product(int64_t rows, int64_t columns, int64_t depth, Matrix a, const float *b, int64_t width_b, float *c, int64_t width_c) {
    while (columns > 0) {
        int64_t v = columns / LANES;
        v = v == 5 ? 3 : v < 4 ? v : 4;
        switch (v) {
        case 4: strip<6, 4>(rows, a, b, width_b, c, width_c, depth); break;
        case 3: strip<8, 3>(rows, a, b, width_b, c, width_c, depth); break;
        case 2: strip<9, 2>(rows, a, b, width_b, c, width_c, depth); break;
        default: strip<9, 1>(rows, a, b, width_b, c, width_c, depth); break;
        }
        b += v * LANES, c += v * LANES, columns -= v * LANES;
    }
}

// Ask for rows of `bytes` that lie `stride` values apart: a head's rows are short and far apart, which the processor does not foresee.
template <int WRITE, typename T> inline void expect(int64_t rows, int64_t bytes, const T *at, int64_t stride) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(reinterpret_cast<const char *>(at + i * stride) + b, WRITE, 3);
}

template <typename T> inline void unpack(int64_t rows, int64_t dim, const T *from, int64_t stride, float scale, float *to) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t c = 0; c < dim; c += LANES) store(to + i * dim + c, load(from + i * stride + c) * scale);
}

template <typename T> inline void pack(int64_t rows, int64_t dim, const float *from, float scale, T *to, int64_t stride) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t c = 0; c < dim; c += LANES) store(to + i * stride + c, load(from + i * dim + c) * scale);
}

// to [dim, padded] = the transpose of from [rows, dim], columns beyond `rows` 0.
template <typename T> inline void transpose(int64_t rows, int64_t dim, const T *from, int64_t stride, int64_t padded, float *to) {
    for (int64_t i = 0; i < padded; i += LANES)
        for (int64_t c = 0; c < dim; c += LANES) {
            Floats square[LANES];
            for (int r = 0; r < LANES; r++) square[r] = i + r < rows ? load(from + (i + r) * stride + c) : Floats{};
            transpose_square(square);
            for (int r = 0; r < LANES; r++) store(to + (c + r) * padded + i, square[r]);
        }
}

// qkv [batch, tokens, heads, 3, dim] -> out [batch, tokens - skip, heads, dim]; p [batch, heads, tokens - skip, padded]: the
// probabilities, rows padded with 0 to a multiple of LANES.
template <typename T>
void attention_forward(int64_t batch, int64_t tokens, int64_t heads, int64_t dim, int64_t skip, const T *qkv, T *out, T *p, int threads) {
    int64_t padded = (tokens + LANES - 1) / LANES * LANES, queries = tokens - skip, stride = heads * 3 * dim;
    float scale = 1.0f / std::sqrt(float(dim));
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> scratch(3 * tokens * dim + dim * padded + queries * padded + queries);
        float *q = scratch.data(), *v = q + tokens * dim, *o = v + tokens * dim, *kt = o + tokens * dim, *s = kt + dim * padded;
        float *inverse = s + queries * padded;
        int64_t first, last;
        share(batch * heads, first, last);
        Floats beyond;  // added to the last scores of a row: -inf where there is no key
        for (int l = 0; l < LANES; l++) beyond[l] = padded - LANES + l < tokens ? 0.0f : -std::numeric_limits<float>::infinity();
        for (int64_t n = first; n < last; n++) {
            const T *base = qkv + (n / heads) * tokens * stride + (n % heads) * 3 * dim;
            int64_t next = n + 1 < last ? n + 1 : n;
            expect<0>(tokens, 3 * dim * sizeof(T), qkv + (next / heads) * tokens * stride + (next % heads) * 3 * dim, stride);
            expect<1>(queries, dim * sizeof(T), out + ((n / heads) * queries * heads + n % heads) * dim, heads * dim);
            unpack(queries, dim, base + skip * stride, stride, scale, q);
            transpose(tokens, dim, base + dim, stride, padded, kt);
            unpack(tokens, dim, base + 2 * dim, stride, 1.0f, v);
            product(queries, padded, dim, {q, dim, 1}, kt, padded, s, padded);
            for (int64_t i = 0; i < queries; i++) {
                float *row = s + i * padded;
                Floats last_keys = load(row + padded - LANES) + beyond, top = last_keys;
                for (int64_t j = 0; j + LANES < padded; j += LANES) top = larger(top, load(row + j));
                float peak = greatest(top);
                Floats total = exp_negative<fine<T>>(last_keys - peak);
                store(row + padded - LANES, total);
                for (int64_t j = 0; j + LANES < padded; j += LANES) {
                    Floats e = exp_negative<fine<T>>(load(row + j) - peak);
                    store(row + j, e);
                    total += e;
                }
                inverse[i] = 1.0f / sum(total);
            }
            for (int64_t i = 0; p && i < queries; i++)
                for (int64_t j = 0; j < padded; j += LANES)
                    store(p + (n * queries + i) * padded + j, load(s + i * padded + j) * inverse[i]);
            product(queries, dim, tokens, {s, padded, 1}, v, dim, o, dim);
            T *to = out + ((n / heads) * queries * heads + n % heads) * dim;
            for (int64_t i = 0; i < queries; i++) pack(1, dim, o + i * dim, inverse[i], to + i * heads * dim, heads * dim);
        }
    }
}

// With dP = dO V^T: dS = P (dP - rowsum(P dP)), dQ = scale dS K, dK = scale dS^T Q, dV = P^T dO.
template <typename T>
void attention_backward(int64_t batch, int64_t tokens, int64_t heads, int64_t dim, int64_t skip, const T *qkv, const T *p, const T *grad,
                        T *grad_qkv, int threads) {
    int64_t padded = (tokens + LANES - 1) / LANES * LANES, queries = tokens - skip, stride = heads * 3 * dim;
    float scale = 1.0f / std::sqrt(float(dim));
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> scratch(4 * tokens * dim + dim * padded + 2 * queries * padded + queries);
        float *q = scratch.data(), *k = q + tokens * dim, *d = k + tokens * dim, *result = d + tokens * dim, *vt = result + tokens * dim;
        float *probabilities = vt + dim * padded, *ds = probabilities + queries * padded, *delta = ds + queries * padded;
        int64_t first, last;
        share(batch * heads, first, last);
        for (int64_t n = first; n < last; n++) {
            int64_t offset = (n / heads) * tokens * stride + (n % heads) * 3 * dim;
            const T *base = qkv + offset;
            T *to = grad_qkv + offset;
            int64_t next = n + 1 < last ? n + 1 : n, ahead = (next / heads) * tokens * stride + (next % heads) * 3 * dim;
            expect<0>(tokens, 3 * dim * sizeof(T), qkv + ahead, stride);
            expect<0>(queries, dim * sizeof(T), grad + ((next / heads) * queries * heads + next % heads) * dim, heads * dim);
            expect<1>(tokens, 3 * dim * sizeof(T), to, stride);
            unpack(queries, dim, base + skip * stride, stride, scale, q);
            unpack(tokens, dim, base + dim, stride, scale, k);
            transpose(tokens, dim, base + 2 * dim, stride, padded, vt);
            unpack(queries, dim, grad + ((n / heads) * queries * heads + n % heads) * dim, heads * dim, 1.0f, d);
            product(queries, padded, dim, {d, dim, 1}, vt, padded, ds, padded);
            for (int64_t i = 0; i < queries; i++) {
                Floats total = {};
                for (int64_t j = 0; j < padded; j += LANES) {
                    Floats x = load(p + (n * queries + i) * padded + j);
                    store(probabilities + i * padded + j, x);
                    total += x * load(ds + i * padded + j);
                }
                delta[i] = sum(total);
            }
            for (int64_t i = 0; i < queries; i++)
                for (int64_t j = 0; j < padded; j += LANES)
                    store(ds + i * padded + j, load(probabilities + i * padded + j) * (load(ds + i * padded + j) - delta[i]));
            for (int64_t i = 0; i < skip; i++)
                for (int64_t c = 0; c < dim; c += LANES) store(to + i * stride + c, Floats{});
            product(queries, dim, tokens, {ds, padded, 1}, k, dim, result, dim);
            pack(queries, dim, result, 1.0f, to + skip * stride, stride);
            product(tokens, dim, queries, {ds, 1, padded}, q, dim, result, dim);
            pack(tokens, dim, result, 1.0f, to + dim, stride);
            product(tokens, dim, queries, {probabilities, 1, padded}, d, dim, result, dim);
            pack(tokens, dim, result, 1.0f, to + 2 * dim, stride);
        }
    }
}

}  // namespace

// The functions that Python calls, of both types.
#define EXPORTED(T, NAME)                                                                                                              \
    void norm_forward_##NAME(int64_t rows, int64_t width, const T *x, const T *branch, T *total, const T *weight, const T *bias,        \
                             float eps, T *y, float *mean, float *inverse, int threads) {                                              \
        norm_forward(rows, width, x, branch, total, weight, bias, eps, y, mean, inverse, threads);                                     \
    }                                                                                                                                  \
    void norm_backward_##NAME(int64_t rows, int64_t width, const T *grad, const T *through, const T *x, const T *weight,               \
                              const float *mean, const float *inverse, T *grad_x, float *sums, int threads) {                          \
        norm_backward(rows, width, grad, through, x, weight, mean, inverse, grad_x, sums, threads);                                    \
    }                                                                                                                                  \
    void gelu_forward_##NAME(int64_t count, const T *x, T *y, T *slopes, int threads) { gelu_forward(count, x, y, slopes, threads); }   \
    void multiply_##NAME(int64_t count, const T *a, const T *b, T *c, int threads) { multiply(count, a, b, c, threads); }               \
    void column_sums_##NAME(int64_t rows, int64_t width, const T *x, T *to, float *sums, int threads) {                                \
        column_sums(rows, width, x, to, sums, threads);                                                                                \
    }                                                                                                                                  \
    void attention_forward_##NAME(int64_t batch, int64_t tokens, int64_t heads, int64_t dim, int64_t skip, const T *qkv, T *out, T *p,  \
                                  int threads) {                                                                                       \
        attention_forward(batch, tokens, heads, dim, skip, qkv, out, p, threads);                                                      \
    }                                                                                                                                  \
    void attention_backward_##NAME(int64_t batch, int64_t tokens, int64_t heads, int64_t dim, int64_t skip, const T *qkv, const T *p,   \
                                   const T *grad, T *grad_qkv, int threads) {                                                          \
        attention_backward(batch, tokens, heads, dim, skip, qkv, p, grad, grad_qkv, threads);                                          \
    }

extern "C" {
EXPORTED(float, float32)
EXPORTED(bfloat16, bfloat16)

void by_weights_float32(int64_t rows, int64_t k, int64_t m, const float *x, const float *weight, int64_t turned, const float *bias,
                        int64_t following, float *out, float *other, int threads) {
    by_weights(rows, k, m, x, weight, turned, bias, following, out, other, threads);
}
void weight_gradient_float32(int64_t rows, int64_t m, int64_t k, const float *grad, const float *x, float *to, float *sums, int threads) {
    weight_gradient(rows, m, k, grad, x, to, sums, threads);
}
#ifdef __AVX512BF16__
void by_weights_bfloat16(int64_t rows, int64_t k, int64_t m, const bfloat16 *x, const bfloat16 *weight, int64_t turned, const bfloat16 *bias,
                         int64_t following, bfloat16 *out, bfloat16 *other, int threads) {
    by_weights(rows, k, m, x, weight, turned, bias, following, out, other, threads);
}
void weight_gradient_bfloat16(int64_t rows, int64_t m, int64_t k, const bfloat16 *grad, const bfloat16 *x, bfloat16 *to, bfloat16 *sums,
                              int threads) {
    weight_gradient(rows, m, k, grad, x, to, sums, threads);
}
#endif
}
