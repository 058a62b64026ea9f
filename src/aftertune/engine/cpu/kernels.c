/* The compiled CPU kernels: attention over packed rows and over KV slots, RMS norm, rotary embedding, gated SiLU,
 * linear layers with LoRA, and a summary of each row of logits. build.py compiles this file on the machine that
 * runs it; ops.py documents the arguments of each kernel.
 *
 * Numbers are float32 or bfloat16 (``bf16`` is then 1). Sums and softmax are always float32. A result depends on
 * its own inputs only, never on the number of threads or on the rest of the batch.
 *
 * Keys are stored in tiles of 16: [tiles, size, 16], so that one vector holds one dimension of 16 keys. In bfloat16
 * the dimensions are stored in pairs, [tiles, size / 2, 16, 2], as the dot product instruction for pairs reads
 * them. The last keys of a tile are zero where a row has fewer. Values are stored unchanged: [keys, size].
 */
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#define HAS_AMX 1 /* AMX: one instruction multiplies 16 rows by 16 columns over 16 pairs of bfloat16 numbers */
#include <sys/syscall.h>
#include <unistd.h>
#else
#define HAS_AMX 0
#endif

#define INLINE static inline __attribute__((always_inline))
#define W 16
#ifdef __AVX512F__
#define BLOCK_VECTORS 4 /* vectors of a block of columns: 6 rows x 4 vectors fill the registers */
#else
#define BLOCK_VECTORS 1
#endif
#define BLOCK_ROWS 6
#define FEW_ROWS_MAX 12 /* rows of a block that is two vectors wide: with few rows, weights are read only once */
#define TASK_ROWS 48 /* rows of queries per task, at most */
#define TASK_SCORES 65536 /* scores per task, at most: they fit in the second-level cache */

typedef float vec __attribute__((vector_size(64), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(64), aligned(4)));
typedef uint32_t uvec __attribute__((vector_size(64), aligned(4)));
typedef uint16_t bvec __attribute__((vector_size(32), aligned(2)));

INLINE float f32_from_bf16(uint16_t x) {
    union { uint32_t i; float f; } u = {(uint32_t)x << 16};
    return u.f;
}

INLINE uint16_t bf16_from_f32(float x) { /* round to nearest, ties to even */
    union { float f; uint32_t i; } u = {x};
    if ((u.i & 0x7fffffff) > 0x7f800000) return 0x7fc0;
    return (uint16_t)((u.i + 0x7fff + ((u.i >> 16) & 1)) >> 16);
}

INLINE float load_one(const void *p, int64_t i, int bf16) {
    return bf16 ? f32_from_bf16(((const uint16_t *)p)[i]) : ((const float *)p)[i];
}

INLINE void store_one(void *p, int64_t i, float x, int bf16) {
    if (bf16) ((uint16_t *)p)[i] = bf16_from_f32(x);
    else ((float *)p)[i] = x;
}

INLINE vec vec_from_bf16(bvec x) {
#ifdef __AVX512F__
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)x), 16);
#else
    return (vec)(__builtin_convertvector(x, uvec) << 16);
#endif
}

INLINE vec load(const void *p, int64_t i, int bf16) {
    return bf16 ? vec_from_bf16(*(const bvec *)((const uint16_t *)p + i)) : *(const vec *)((const float *)p + i);
}

/* Round to nearest, ties to even. */
INLINE bvec bf16_from_vec(vec x) {
#ifdef __AVX512BF16__
    return (bvec)_mm512_cvtneps_pbh((__m512)x);
#else
    uvec u = (uvec)x, nan = (uvec)(x != x);
    uvec r = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    return __builtin_convertvector((r & ~nan) | (0x7fc0 & nan), bvec);
#endif
}

INLINE void store(void *p, int64_t i, vec x, int bf16) {
    if (!bf16) {
        *(vec *)((float *)p + i) = x;
        return;
    }
    *(bvec *)((uint16_t *)p + i) = bf16_from_vec(x);
}

/* x rounded to the type of the model: transformers rounds between two steps, so these kernels do, too. */
INLINE vec round_to_type(vec x, int bf16) { return bf16 ? vec_from_bf16(bf16_from_vec(x)) : x; }

INLINE vec vec_select(ivec which, vec a, vec b) { return (vec)(((ivec)a & which) | ((ivec)b & ~which)); }

INLINE vec vec_max(vec a, vec b) { /* b where a or b is NaN */
#ifdef __AVX512F__
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return vec_select(a > b, a, b);
#endif
}

INLINE float hsum(vec x) { /* sum of the 16 numbers: adds the upper half to the lower half until one is left */
    float part[W];
    *(vec *)part = x;
    for (int n = W / 2; n; n /= 2)
        for (int i = 0; i < n; i++) part[i] += part[i + n];
    return part[0];
}

INLINE float hmax(vec x) {
    float best = x[0];
    for (int i = 1; i < W; i++) best = x[i] > best ? x[i] : best;
    return best;
}

/* e^x for x <= 0: expf of Cephes (Moshier); its polynomial is accurate to 2 units in the last place. */
INLINE vec vec_exp(vec x) {
    const vec magic = (vec){} + 12582912.0f;
    vec n = x * 1.44269504f + magic;
    ivec power = ((ivec)n - (ivec)magic + 127) << 23;
    n -= magic;
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return vec_select(x < -87.0f, (vec){}, p * (vec)power); /* NaN stays NaN */
}

/* Type of the right-hand side of a product. With BF16_PAIRS the left-hand side consists of pairs, too. */
enum { F32 = 0, BF16 = 1, BF16_PAIRS = 2 };

/* sum + a b for pairs: two products for each of 16 numbers. The products are exact in float32, their sums are not. */
INLINE vec dot_pairs(vec sum, uint32_t a, uvec b) {
#ifdef __AVX512BF16__
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)((uvec){} + a), (__m512bh)b);
#else
    float low = f32_from_bf16((uint16_t)a), high = f32_from_bf16((uint16_t)(a >> 16));
    return sum + (vec)(b << 16) * low + (vec)(b & 0xffff0000) * high;
#endif
}

/* c[rows, 16 * wide] (+)= a[rows, depth] b. Vector (k, n) of b starts at k * step + n * stride. ahead: prefetch b
 * this many numbers early; 0 for no prefetch. */
INLINE void gemm_block(const float *a, int64_t lda, const void *b, int64_t step, int64_t stride, const int kind,
                       int64_t depth, float *c, int64_t ldc, int add, const int rows, const int wide, const int ahead) {
    vec sum[FEW_ROWS_MAX][BLOCK_VECTORS];
#pragma GCC unroll 12
    for (int m = 0; m < rows; m++)
#pragma GCC unroll 4
        for (int n = 0; n < wide; n++) sum[m][n] = (vec){};
    for (int64_t k = 0; k < depth; k++) {
        vec right[BLOCK_VECTORS];
#pragma GCC unroll 4
        for (int n = 0; n < wide; n++) {
            right[n] = load(b, k * step + n * stride, kind == BF16);
            if (ahead) __builtin_prefetch((const float *)b + k * step + n * stride + ahead);
        }
#pragma GCC unroll 12
        for (int m = 0; m < rows; m++)
#pragma GCC unroll 4
            for (int n = 0; n < wide; n++)
                sum[m][n] = kind == BF16_PAIRS ? dot_pairs(sum[m][n], ((const uint32_t *)a)[m * lda + k],
                                                           (uvec)right[n])
                                          : sum[m][n] + right[n] * a[m * lda + k];
    }
#pragma GCC unroll 12
    for (int m = 0; m < rows; m++)
#pragma GCC unroll 4
        for (int n = 0; n < wide; n++) {
            vec *to = (vec *)(c + m * ldc + n * W);
            *to = add ? *to + sum[m][n] : sum[m][n];
        }
}

#define AT_MOST(N) (N > BLOCK_VECTORS ? BLOCK_VECTORS : N)
#define GEMM_COLUMNS(R) \
    switch (w) { \
    case 1: gemm_block(x, lda, y, step, stride, kind, depth, z, ldc, add, R, 1, 0); break; \
    case 2: gemm_block(x, lda, y, step, stride, kind, depth, z, ldc, add, R, AT_MOST(2), 0); break; \
    case 3: gemm_block(x, lda, y, step, stride, kind, depth, z, ldc, add, R, AT_MOST(3), 0); break; \
    default: gemm_block(x, lda, y, step, stride, kind, depth, z, ldc, add, R, BLOCK_VECTORS, 0); \
    }

/* gemm_block for any number of rows and vectors. */
INLINE void gemm_typed(const int kind, const float *a, int64_t lda, int64_t rows, const void *b, int64_t step,
                       int64_t stride, int64_t depth, float *c, int64_t ldc, int64_t vectors, int add) {
    for (int64_t n = 0; n < vectors; n += BLOCK_VECTORS) {
        int w = vectors - n < BLOCK_VECTORS ? (int)(vectors - n) : BLOCK_VECTORS;
        const void *y = kind == BF16 ? (const void *)((const uint16_t *)b + n * stride)
                                       : (const void *)((const float *)b + n * stride);
        for (int64_t m = 0; m < rows; m += BLOCK_ROWS) {
            const float *x = a + m * lda;
            float *z = c + m * ldc + n * W;
            switch (rows - m) {
            case 1: GEMM_COLUMNS(1) break;
            case 2: GEMM_COLUMNS(2) break;
            case 3: GEMM_COLUMNS(3) break;
            case 4: GEMM_COLUMNS(4) break;
            case 5: GEMM_COLUMNS(5) break;
            default: GEMM_COLUMNS(6)
            }
        }
    }
}

static __attribute__((noinline)) void gemm(const float *a, int64_t lda, int64_t rows, const void *b, int64_t step,
                                           int64_t stride, int kind, int64_t depth, float *c, int64_t ldc,
                                           int64_t vectors, int add) {
    if (kind == BF16_PAIRS) gemm_typed(BF16_PAIRS, a, lda, rows, b, step, stride, depth, c, ldc, vectors, add);
    else if (kind == BF16) gemm_typed(BF16, a, lda, rows, b, step, stride, depth, c, ldc, vectors, add);
    else gemm_typed(F32, a, lda, rows, b, step, stride, depth, c, ldc, vectors, add);
}

/* c[rows, 16 * count] = queries (see load_query) times the keys of ``count`` tiles. */
INLINE void score_keys(const int bf16, const float *queries, int64_t rows, const void *keys, int64_t size, float *c,
                       int64_t ldc, int64_t count) {
    if (bf16) gemm(queries, size, rows, keys, W, size / 2 * W, BF16_PAIRS, size / 2, c, ldc, count, 0);
    else gemm(queries, size, rows, keys, W, size * W, F32, size, c, ldc, count, 0);
}

/* One query of ``size`` numbers in the form that score_keys reads: bfloat16 unchanged, float32 scaled. */
INLINE void load_query(const int bf16, const void *q, int64_t from, int64_t size, float scaling, float *to) {
    if (bf16) memcpy(to, (const uint16_t *)q + from, (size_t)size * 2);
    else
        for (int64_t d = 0; d < size; d++) to[d] = scaling * ((const float *)q)[from + d];
}

INLINE const void *element(const void *p, int64_t i, int bf16) {
    return bf16 ? (const void *)((const uint16_t *)p + i) : (const void *)((const float *)p + i);
}

static int64_t tile_count(int64_t keys) { return (keys + W - 1) / W; }

#define BAND_ROWS 512 /* rows of a band, which go through a linear layer together: they fit in the second-level cache */
#define BAND_FLOATS 131072 /* float32 numbers of a band, at most */
#define TASK_TILES 4 /* pairs of weight tiles that a thread takes at once */
#define SUM_LENGTH 512 /* products in one float32 sum, at most: longer sums have larger rounding errors */

#if HAS_AMX
/* Compilers do not know that AMX loads and stores use memory. This orders all memory access before and after it. */
#define AMX_BARRIER __asm__ volatile("" ::: "memory")

/* See availability.py: amx_available. Linux enables AMX for a process on request (arch_prctl(2):
 * ARCH_REQ_XCOMP_PERM, feature 18, XTILEDATA). */
int amx_available(void) {
    static int known = -1;
    if (known < 0) known = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
    return known;
}

/* True where AMX computes the products for heads of this size. */
INLINE int use_amx(const int bf16, int64_t size) { return bf16 && size % 32 == 0 && amx_available(); }

INLINE void amx_begin(void) {
    struct { uint8_t palette, first, none[14]; uint16_t bytes[16]; uint8_t rows[16]; } shape = {.palette = 1};
    for (int i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = 16;
    __asm__ volatile("" : : "r"(&shape) : "memory"); /* the instruction reads all of it */
    _tile_loadconfig(&shape);
}

INLINE void amx_end(void) { _tile_release(); }

/* c[16 r, 16 w] = r blocks of 16 rows (a and a2) times w tiles of columns (from b on). depth is a multiple of 32.
 * ahead: prefetch the same part of the next tiles, which pays where they come from memory. One register is loaded
 * twice so that fewer are in use: the next loads can then start while products still run, even where two threads
 * share a core (docs/log.md has the figures). */
INLINE void amx_block(const uint16_t *a, const uint16_t *a2, int64_t lda, const int r, const uint16_t *b, int64_t depth,
                      const int w, float *c, int64_t ldc, const int ahead) {
    const uint16_t *b2 = b + depth * W;
    _tile_zero(0);
    if (w > 1) _tile_zero(1);
    if (r > 1) _tile_zero(2);
    if (r > 1 && w > 1) _tile_zero(3);
    for (int64_t k = 0; k < depth; k += 32) {
        if (ahead)
            for (int e = 0; e < 32 * W; e += 32) {
                __builtin_prefetch(b + k * W + w * depth * W + e, 0, 2);
                if (w > 1) __builtin_prefetch(b2 + k * W + w * depth * W + e, 0, 2);
            }
        _tile_loadd(4, a + k, lda * 2);
        _tile_loadd(6, b + k * W, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (w > 1) {
            _tile_loadd(6, b2 + k * W, 64);
            _tile_dpbf16ps(1, 4, 6);
        }
        if (r > 1) {
            _tile_loadd(4, a2 + k, lda * 2);
            if (w > 1) {
                _tile_dpbf16ps(3, 4, 6);
                _tile_loadd(6, b + k * W, 64);
            }
            _tile_dpbf16ps(2, 4, 6);
        }
    }
    _tile_stored(0, c, ldc * 4);
    if (w > 1) _tile_stored(1, c + W, ldc * 4);
    if (r > 1) _tile_stored(2, c + 16 * ldc, ldc * 4);
    if (r > 1 && w > 1) _tile_stored(3, c + 16 * ldc + W, ldc * 4);
}

/* amx_block for r and w that are not known at compile time. */
INLINE void amx_block_any(const uint16_t *a, const uint16_t *a2, int64_t lda, int r, const uint16_t *b, int64_t depth,
                          int w, float *c, int64_t ldc, const int ahead) {
    if (r > 1 && w > 1) amx_block(a, a2, lda, 2, b, depth, 2, c, ldc, ahead);
    else if (r > 1) amx_block(a, a2, lda, 2, b, depth, 1, c, ldc, ahead);
    else if (w > 1) amx_block(a, a2, lda, 1, b, depth, 2, c, ldc, ahead);
    else amx_block(a, a2, lda, 1, b, depth, 1, c, ldc, ahead);
}

/* score_keys with AMX. */
static __attribute__((noinline)) void amx_score_keys(const float *queries, int64_t rows, const void *keys, int64_t size,
                                                     float *c, int64_t ldc, int64_t count) {
    const uint16_t *a = (const uint16_t *)queries, *b = keys;
    AMX_BARRIER;
    for (int64_t n = 0; n < count; n += 2)
        for (int64_t m = 0; m < rows; m += 32)
            amx_block_any(a + m * 2 * size, a + (m + 16) * 2 * size, 2 * size, rows - m > 16 ? 2 : 1, b + n * size * W,
                          size, count - n > 1 ? 2 : 1, c + m * ldc + n * W, ldc, 0);
    AMX_BARRIER;
}

/* Store values v[count, size] in pairs of keys, [count / 32][size / 16][16 pairs][16][2], with zeros after the last. */
INLINE void pair_values(const uint16_t *v, int64_t ldv, int64_t count, int64_t size, uint16_t *to) {
    for (int64_t j = 0; j < count; j += 32)
        for (int64_t p = 0; p < 16; p++) {
            int64_t first = j + 2 * p;
            for (int64_t d = 0; d < size; d += W) {
                uvec a = first < count ? __builtin_convertvector(*(const bvec *)(v + first * ldv + d), uvec) : (uvec){};
                uvec b = first + 1 < count ? __builtin_convertvector(*(const bvec *)(v + (first + 1) * ldv + d), uvec)
                                           : (uvec){};
                *(uvec *)(to + j * size + d * 32 + p * 32) = a | b << 16;
            }
        }
}

/* o[rows, size] (+)= weights s[rows, keys] times values from pair_values. The weights are split, see softmax. */
static __attribute__((noinline)) void amx_mix_values(const float *s, int64_t lds, int64_t rows, const uint16_t *values,
                                                     int64_t keys, float *o, int64_t size, int add) {
    AMX_BARRIER;
    for (int64_t m = 0; m < rows; m += 16)
        for (int64_t d = 0; d < size; d += 32) {
            const uint16_t *weights = (const uint16_t *)(s + m * lds);
            float *c = o + m * size + d;
            if (add) {
                _tile_loadd(0, c, size * 4);
                _tile_loadd(1, c + W, size * 4);
            } else {
                _tile_zero(0);
                _tile_zero(1);
            }
            for (int64_t k = 0; k < keys; k += 32) {
                _tile_loadd(2, weights + 2 * k, lds * 4);
                _tile_loadd(3, weights + 2 * k + 32, lds * 4);
                _tile_loadd(4, values + k * size + d * 32, 64);
                _tile_dpbf16ps(0, 2, 4);
                _tile_dpbf16ps(0, 3, 4);
                _tile_loadd(4, values + k * size + (d + W) * 32, 64);
                _tile_dpbf16ps(1, 2, 4);
                _tile_dpbf16ps(1, 3, 4);
            }
            _tile_stored(0, c, size * 4);
            _tile_stored(1, c + W, size * 4);
        }
    AMX_BARRIER;
}
#else
int amx_available(void) { return 0; }
INLINE int use_amx(const int bf16, int64_t size) { return bf16 && size && amx_available(); }
INLINE void amx_begin(void) {}
INLINE void amx_end(void) {}
#define amx_score_keys(...) ((void)0)
#define amx_mix_values(...) ((void)0)
#define pair_values(...) ((void)0)
#endif

/* AMX computes 16 rows at a time, and takes 32 keys at a time. */
static int64_t round_up_16(int64_t rows) { return (rows + 15) / 16 * 16; }
INLINE int64_t padded_keys(const int bf16, int64_t keys, int64_t size) {
    return use_amx(bf16, size) ? (keys + 31) / 32 * 32 : tile_count(keys) * W;
}

/* score_keys, with AMX where it is used. The rows must have room up to round_up_16(rows). */
INLINE void score_keys_any(const int bf16, const float *queries, int64_t rows, const void *keys, int64_t size, float *c,
                           int64_t ldc, int64_t count) {
    if (use_amx(bf16, size)) amx_score_keys(queries, rows, keys, size, c, ldc, count);
    else score_keys(bf16, queries, rows, keys, size, c, ldc, count);
}

/* o[rows, size] (+)= s[rows, keys] v[keys, size]: values weighted by ``softmax``. With AMX, v comes from
 * pair_values. */
INLINE void mix_values(const int bf16, const float *s, int64_t lds, int64_t rows, const void *v, int64_t ldv,
                       int64_t keys, float *o, int64_t size, int add) {
    if (use_amx(bf16, size)) amx_mix_values(s, lds, rows, v, keys, o, size, add);
    else gemm(s, lds, rows, v, ldv, W, bf16, keys, o, size, size / W, add);
}

/* Turn scores[0 .. count), times ``scaling``, into softmax weights before division, and return their sum. Scores of
 * hidden keys are -inf already. The first ``split`` weights are stored as sums of two bfloat16 numbers (exact to
 * 2^-17 of each weight): for every 32 weights the first numbers, then the second ones. */
INLINE float softmax(float *scores, int64_t count, float scaling, int64_t split) {
    vec best = (vec){} - INFINITY, other = best, sum = {};
    for (int64_t j = 0; j + W < count; j += 2 * W) {
        best = vec_max(*(vec *)(scores + j), best);
        other = vec_max(*(vec *)(scores + j + W), other);
    }
    float top = hmax(vec_max(*(vec *)(scores + count - W), vec_max(best, other)));
#if HAS_AMX
    for (int64_t j = 0; j < split; j += 2 * W) {
        vec part[2], high[2];
        for (int n = 0; n < 2; n++) {
            sum += part[n] = vec_exp((*(vec *)(scores + j + n * W) - top) * scaling);
            high[n] = (vec)(((uvec)part[n] + 0x8000) & 0xffff0000);
        }
        __m512bh first = _mm512_cvtne2ps_pbh((__m512)high[1], (__m512)high[0]);
        __m512bh second = _mm512_cvtne2ps_pbh((__m512)(part[1] - high[1]), (__m512)(part[0] - high[0]));
        *(vec *)(scores + j) = (vec)first;
        *(vec *)(scores + j + W) = (vec)second;
    }
#endif
    for (int64_t j = split; j < count; j += W) {
        vec e = vec_exp((*(vec *)(scores + j) - top) * scaling);
        *(vec *)(scores + j) = e;
        sum += e;
    }
    return hsum(sum);
}

/* Of the prefix keys 0 .. past, hide those that are ``window`` or more positions back; hide the padding up to
 * ``room``. */
INLINE void mask_past(float *scores, int64_t past, int64_t room, int64_t depth, int64_t window) {
    if (window)
        for (int64_t j = 0; j < past && j <= depth - window; j++) scores[j] = -INFINITY;
    for (int64_t j = past; j < room; j++) scores[j] = -INFINITY;
}

/* Copy keys [count, heads, size] of one head into tiles. first: index of the first key in the tiles. */
INLINE void pack_keys(const void *keys, int64_t ld, void *out, int64_t first, int64_t count, int64_t size, int bf16) {
    for (int64_t j = 0; j < count; j++) {
        int64_t tile = (first + j) / W, place = (first + j) % W;
        for (int64_t d = 0; d < size; d++) {
            int64_t from = j * ld + d;
            const uint16_t *pairs = keys;
            if (bf16) ((uint16_t *)out)[((tile * size + d) / 2 * W + place) * 2 + d % 2] = pairs[from];
            else ((float *)out)[(tile * size + d) * W + place] = ((const float *)keys)[from];
        }
    }
}

static void *scratch(int64_t floats) {
    void *found = NULL;
    return posix_memalign(&found, 64, (size_t)(floats + W) * sizeof(float)) ? NULL : found;
}

/* See ops.py: attend_rows. Returns 0, or 1 if memory ran out. */
INLINE int attend_rows_typed(const int bf16, const void *q, const void *k, const void *v, void *out,
                             const int64_t *starts, const int64_t *end, const int64_t *depth, int64_t rows,
                             int64_t heads, int64_t kv_heads, int64_t size, int64_t ldq, int64_t ldk,
                             const void *past_k, const void *past_v, int64_t past, int64_t past_room, float scaling,
                             int64_t window) {
    int64_t group = heads / kv_heads, longest = 0, failed = 0;
    int64_t *offset = malloc((size_t)(rows + 1) * sizeof(int64_t));
    if (!offset) return 1;
    offset[0] = 0;
    for (int64_t r = 0; r < rows; r++) {
        int64_t length = starts[r + 1] - starts[r];
        offset[r + 1] = offset[r] + padded_keys(bf16, length, size);
        longest = length > longest ? length : longest;
    }
    int64_t before = padded_keys(bf16, past, size), width = before + padded_keys(bf16, longest, size);
    if (width % 64 == 0) width += W; /* rows that are a page apart would share one set of the cache */
    int64_t queries = TASK_SCORES / width / group;
    if (queries > TASK_ROWS / group) queries = TASK_ROWS / group;
    if (queries < 1) queries = 1;
    int64_t blocks = (longest + queries - 1) / queries, tile = size * W, m_max = round_up_16(queries * group);
    int64_t held = kv_heads * offset[rows] * size, paired = use_amx(bf16, size) ? held + kv_heads * before * size : 0;
    void *packed = scratch(held + paired); /* keys; with AMX also the values and the prefix values, in pairs */
    if (!packed) {
        free(offset);
        return 1;
    }
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t t = 0; t < rows * kv_heads; t++) {
            int64_t r = t / kv_heads, g = t % kv_heads, length = starts[r + 1] - starts[r];
            int64_t first_number = (g * offset[rows] + offset[r]) * size;
            void *to = (void *)element(packed, first_number, bf16);
            if (length % W)
                memset((void *)element(to, (tile_count(length) - 1) * tile, bf16), 0, tile * (bf16 ? 2 : 4));
            pack_keys(element(k, starts[r] * ldk + g * size, bf16), ldk, to, 0, length, size, bf16);
            if (paired)
                pair_values(element(v, starts[r] * ldk + g * size, bf16), ldk, length, size,
                            (void *)element(packed, held + first_number, bf16));
            if (paired && past && !r)
                pair_values(element(past_v, g * past_room * size, bf16), size, past, size,
                            (void *)element(packed, 2 * held + g * before * size, bf16));
        }
        float *work = scratch(m_max * (2 * size + width + 1));
        if (!work) {
#pragma omp atomic write
            failed = 1;
        }
        float *a = work, *o = work + m_max * size, *s = work + 2 * m_max * size, *sums = s + m_max * width;
        if (use_amx(bf16, size)) amx_begin();
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < rows * kv_heads * blocks; t++) {
            int64_t b = blocks - 1 - t / (rows * kv_heads), r = t % (rows * kv_heads) / kv_heads, g = t % kv_heads;
            int64_t length = starts[r + 1] - starts[r], from = b * queries;
            if (!work || from >= length) continue;
            int64_t to = from + queries < length ? from + queries : length, m = (to - from) * group;
            int64_t room = padded_keys(bf16, to, size), all = before + room;
            int64_t first_number = (g * offset[rows] + offset[r]) * size;
            for (int64_t i = 0; i < m; i++)
                load_query(bf16, q, (starts[r] + from + i / group) * ldq + (g * group + i % group) * size, size,
                           scaling, a + i * size);
            if (past)
                score_keys_any(bf16, a, m, element(past_k, g * tile_count(past_room) * tile, bf16), size, s, width,
                               tile_count(past));
            score_keys_any(bf16, a, m, element(packed, first_number, bf16), size, s + before, width, tile_count(to));
            const int64_t *ends = end + starts[r], *depths = depth + starts[r];
            int branches = 0;
            for (int64_t j = 0; j < to; j++) branches |= ends[j] < to;
            for (int64_t i = 0; i < m; i++) {
                int64_t token = from + i / group;
                float *line = s + i * width, *own = line + before;
                mask_past(line, past, before, depths[token], window);
                if (branches)
                    for (int64_t j = 0; j <= token; j++) own[j] = ends[j] > token ? own[j] : -INFINITY;
                if (window)
                    for (int64_t j = 0; j <= token; j++)
                        own[j] = depths[token] - depths[j] < window ? own[j] : -INFINITY;
                for (int64_t j = token + 1; j < room; j++) own[j] = -INFINITY;
                sums[i] = softmax(line, all, bf16 ? scaling : 1, paired ? all : 0);
            }
            const void *prefix_values = paired ? element(packed, 2 * held + g * before * size, bf16)
                                               : element(past_v, g * past_room * size, bf16);
            const void *own_values = paired ? element(packed, held + first_number, bf16)
                                            : element(v, starts[r] * ldk + g * size, bf16);
            if (past) mix_values(bf16, s, width, m, prefix_values, size, past, o, size, 0);
            mix_values(bf16, s + before, width, m, own_values, ldk, to, o, size, past > 0);
            for (int64_t i = 0; i < m; i++) {
                int64_t place = ((starts[r] + from + i / group) * heads + g * group + i % group) * size;
                for (int64_t d = 0; d < size; d += W)
                    store(out, place + d, *(vec *)(o + i * size + d) / sums[i], bf16);
            }
        }
        if (use_amx(bf16, size)) amx_end();
        free(work);
    }
    free(packed);
    free(offset);
    return (int)failed;
}

int attend_rows(int64_t bf16, const void *q, const void *k, const void *v, void *out, const int64_t *starts,
                const int64_t *end, const int64_t *depth, int64_t rows, int64_t heads, int64_t kv_heads, int64_t size,
                int64_t ldq, int64_t ldk, const void *past_k, const void *past_v, int64_t past, int64_t past_room,
                float scaling, int64_t window) {
    return bf16 ? attend_rows_typed(1, q, k, v, out, starts, end, depth, rows, heads, kv_heads, size, ldq, ldk, past_k,
                                    past_v, past, past_room, scaling, window)
                : attend_rows_typed(0, q, k, v, out, starts, end, depth, rows, heads, kv_heads, size, ldq, ldk, past_k,
                                    past_v, past, past_room, scaling, window);
}

/* See ops.py: KVCache.store. */
int store_kv(int64_t bf16, const void *k, const void *v, int64_t ld, int64_t count, int64_t kv_heads, int64_t size,
             void *slot_k, void *slot_v, int64_t room, int64_t first) {
    int64_t item = bf16 ? 2 : 4;
#pragma omp parallel for schedule(static) if (count * kv_heads * size > 16384)
    for (int64_t g = 0; g < kv_heads; g++) {
        void *to = (void *)element(slot_k, g * tile_count(room) * size * W, bf16);
        pack_keys(element(k, g * size, bf16), ld, to, first, count, size, bf16);
        for (int64_t j = 0; j < count; j++)
            memcpy((void *)element(slot_v, (g * room + first + j) * size, bf16), element(v, j * ld + g * size, bf16),
                   (size_t)(size * item));
    }
    return 0;
}

/* See ops.py: attend_step. */
INLINE int attend_step_typed(const int bf16, const void *q, const void *k, const void *v, void *out,
                             const int64_t *lengths, int64_t slots, int64_t heads, int64_t kv_heads, int64_t size,
                             int64_t ldq, int64_t ldk, void *slot_k, void *slot_v, int64_t room, const void *past_k,
                             const void *past_v, int64_t past, int64_t past_room, float scaling, int64_t window) {
    int64_t group = heads / kv_heads, longest = 0, failed = 0, tile = size * W;
    for (int64_t n = 0; n < slots; n++) longest = lengths[n] > longest ? lengths[n] : longest;
    int64_t before = padded_keys(bf16, past, size), width = before + tile_count(longest + 1) * W;
    int64_t together = past ? (24 + group - 1) / group : 1, blocks = (slots + together - 1) / together;
    int64_t m_max = round_up_16(together * group);
#pragma omp parallel
    {
        float *work = scratch(m_max * (2 * size + width + 1) + before * size);
        if (!work) {
#pragma omp atomic write
            failed = 1;
        }
        float *a = work, *o = work + m_max * size, *s = work + 2 * m_max * size, *sums = s + m_max * width;
        float *pairs = sums + m_max;
        if (past && use_amx(bf16, size)) amx_begin();
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < blocks * kv_heads; t++) {
            int64_t g = t % kv_heads, from = t / kv_heads * together;
            int64_t to = from + together < slots ? from + together : slots, m = (to - from) * group;
            if (!work) continue;
            for (int64_t i = 0; i < m; i++)
                load_query(bf16, q, (from + i / group) * ldq + (g * group + i % group) * size, size, scaling,
                           a + i * size);
            if (past)
                score_keys_any(bf16, a, m, element(past_k, g * tile_count(past_room) * tile, bf16), size, s, width,
                               tile_count(past));
            for (int64_t n = from; n < to; n++) {
                int64_t keys = lengths[n] + 1, i = (n - from) * group;
                void *own_keys = (void *)element(slot_k, (n * kv_heads + g) * tile_count(room) * tile, bf16);
                void *own_values = (void *)element(slot_v, (n * kv_heads + g) * room * size, bf16);
                pack_keys(element(k, n * ldk + g * size, bf16), ldk, own_keys, lengths[n], 1, size, bf16);
                memcpy((void *)element(own_values, lengths[n] * size, bf16), element(v, n * ldk + g * size, bf16),
                       (size_t)(size * (bf16 ? 2 : 4)));
                score_keys(bf16, a + i * size, group, own_keys, size, s + i * width + before, width,
                           tile_count(keys));
                for (int64_t e = i; e < i + group; e++) {
                    float *line = s + e * width, *own = line + before;
                    mask_past(line, past, before, past + lengths[n], window);
                    if (window)
                        for (int64_t j = 0; j <= lengths[n] - window; j++) own[j] = -INFINITY;
                    for (int64_t j = keys; j < tile_count(keys) * W; j++) own[j] = -INFINITY;
                    sums[e] = softmax(line, before + tile_count(keys) * W, bf16 ? scaling : 1,
                                      use_amx(bf16, size) ? before : 0);
                }
            }
            const void *prefix_values = element(past_v, g * past_room * size, bf16);
            if (past && use_amx(bf16, size)) pair_values(prefix_values, size, past, size, (uint16_t *)pairs);
            if (past) mix_values(bf16, s, width, m, use_amx(bf16, size) ? pairs : prefix_values, size, past, o, size,
                                 0);
            for (int64_t n = from; n < to; n++) {
                int64_t i = (n - from) * group;
                gemm(s + i * width + before, width, group, element(slot_v, (n * kv_heads + g) * room * size, bf16),
                     size, W, bf16, lengths[n] + 1, o + i * size, size, size / W, past > 0);
            }
            for (int64_t i = 0; i < m; i++) {
                int64_t place = ((from + i / group) * heads + g * group + i % group) * size;
                for (int64_t d = 0; d < size; d += W)
                    store(out, place + d, *(vec *)(o + i * size + d) / sums[i], bf16);
            }
        }
        if (past && use_amx(bf16, size)) amx_end();
        free(work);
    }
    return (int)failed;
}

int attend_step(int64_t bf16, const void *q, const void *k, const void *v, void *out, const int64_t *lengths,
                int64_t slots, int64_t heads, int64_t kv_heads, int64_t size, int64_t ldq, int64_t ldk, void *slot_k,
                void *slot_v, int64_t room, const void *past_k, const void *past_v, int64_t past, int64_t past_room,
                float scaling, int64_t window) {
    return bf16 ? attend_step_typed(1, q, k, v, out, lengths, slots, heads, kv_heads, size, ldq, ldk, slot_k, slot_v,
                                    room, past_k, past_v, past, past_room, scaling, window)
                : attend_step_typed(0, q, k, v, out, lengths, slots, heads, kv_heads, size, ldq, ldk, slot_k, slot_v,
                                    room, past_k, past_v, past, past_room, scaling, window);
}

/* See ops.py: rms_norm. Rounds where transformers rounds: after the sum, before the weight, and after it. */
INLINE void rms_norm_typed(const int bf16, const void *x, const void *y, const void *weight, void *sums, void *out,
                           int64_t rows, int64_t size, float epsilon) {
#pragma omp parallel for schedule(static) if (rows * size > 16384)
    for (int64_t r = 0; r < rows; r++) {
        vec sum[2] = {};
        for (int64_t d = 0, n = 0; d < size; d += W, n ^= 1) {
            vec e = load(x, r * size + d, bf16);
            if (y) {
                store(sums, r * size + d, e + load(y, r * size + d, bf16), bf16);
                e = load(sums, r * size + d, bf16);
            }
            sum[n] += e * e;
        }
        const void *all = y ? sums : x;
        float scale = 1.0f / sqrtf(hsum(sum[0] + sum[1]) / (float)size + epsilon);
        for (int64_t d = 0; d < size; d += W)
            store(out, r * size + d, round_to_type(load(all, r * size + d, bf16) * scale, bf16) * load(weight, d, bf16),
                  bf16);
    }
}

int rms_norm(int64_t bf16, const void *x, const void *y, const void *weight, void *sums, void *out, int64_t rows,
             int64_t size, float epsilon) {
    if (bf16) rms_norm_typed(1, x, y, weight, sums, out, rows, size, epsilon);
    else rms_norm_typed(0, x, y, weight, sums, out, rows, size, epsilon);
    return 0;
}

INLINE vec sigmoid(vec x) {
    vec e = vec_exp(vec_select(x > 0.0f, -x, x)); /* of -|x| */
    return vec_select(x > 0.0f, (vec){} + 1.0f, e) / (e + 1.0f);
}

/* See ops.py: gate. Rounds where transformers rounds: after SiLU, and after the product. */
INLINE void gate_typed(const int bf16, const void *x, int64_t ldx, const void *y, int64_t ldy, void *out,
                       int64_t tokens, int64_t columns) {
#pragma omp parallel for schedule(static) if (tokens * columns > 16384)
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t d = 0; d < columns; d += W) {
            vec a = load(x, t * ldx + d, bf16);
            store(out, t * columns + d, round_to_type(a * sigmoid(a), bf16) * load(y, t * ldy + d, bf16), bf16);
        }
}

int gate(int64_t bf16, const void *x, int64_t ldx, const void *y, int64_t ldy, void *out, int64_t tokens,
         int64_t columns) {
    if (bf16) gate_typed(1, x, ldx, y, ldy, out, tokens, columns);
    else gate_typed(0, x, ldx, y, ldy, out, tokens, columns);
    return 0;
}

/* See ops.py: rotate. */
INLINE void rotate_typed(const int bf16, void *x, const void *cosine, const void *sine, int64_t tokens, int64_t heads,
                         int64_t size, int64_t rotary, int64_t ld) {
    int64_t middle = rotary / 2;
#pragma omp parallel for schedule(static) if (tokens * heads * size > 16384)
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t h = 0; h < heads; h++) {
            int64_t base = t * ld + h * size, angle = t * rotary;
            int64_t d = 0;
            for (; d + W <= middle; d += W) {
                vec a = load(x, base + d, bf16), b = load(x, base + middle + d, bf16);
                store(x, base + d, round_to_type(a * load(cosine, angle + d, bf16), bf16)
                                       - round_to_type(b * load(sine, angle + d, bf16), bf16), bf16);
                store(x, base + middle + d, round_to_type(b * load(cosine, angle + middle + d, bf16), bf16)
                                                + round_to_type(a * load(sine, angle + middle + d, bf16), bf16), bf16);
            }
            for (; d < middle; d++) {
                float a = load_one(x, base + d, bf16), b = load_one(x, base + middle + d, bf16);
                store_one(x, base + d, a * load_one(cosine, angle + d, bf16) - b * load_one(sine, angle + d, bf16),
                          bf16);
                store_one(x, base + middle + d,
                          b * load_one(cosine, angle + middle + d, bf16) + a * load_one(sine, angle + middle + d,
                                                                                        bf16), bf16);
            }
        }
}

int rotate(int64_t bf16, void *x, const void *cosine, const void *sine, int64_t tokens, int64_t heads, int64_t size,
            int64_t rotary, int64_t ld) {
    if (bf16) rotate_typed(1, x, cosine, sine, tokens, heads, size, rotary, ld);
    else rotate_typed(0, x, cosine, sine, tokens, heads, size, rotary, ld);
    return 0;
}

/* See ops.py: summarize. */
INLINE void summarize_typed(const int bf16, const void *logits, int64_t rows, int64_t size, float *norm, float *top,
                            int64_t *best) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        int64_t whole = size / W * W, base = r * size;
        vec high = (vec){} - INFINITY, sum = {};
        for (int64_t j = 0; j < whole; j += W) high = vec_max(load(logits, base + j, bf16), high);
        float peak = hmax(high);
        for (int64_t j = whole; j < size; j++) {
            float x = load_one(logits, base + j, bf16);
            peak = x > peak ? x : peak;
        }
        for (int64_t j = 0; j < whole; j += W) {
            sum += vec_exp(load(logits, base + j, bf16) - peak);
        }
        float all = hsum(sum);
        for (int64_t j = whole; j < size; j++) all += expf(load_one(logits, base + j, bf16) - peak);
        int64_t place = 0;
        while (place < size - 1 && load_one(logits, base + place, bf16) != peak) place++;
        norm[r] = logf(all) + peak;
        top[r] = peak;
        best[r] = place;
    }
}

int summarize(int64_t bf16, const void *logits, int64_t rows, int64_t size, float *norm, float *top, int64_t *best) {
    if (bf16) summarize_typed(1, logits, rows, size, norm, top, best);
    else summarize_typed(0, logits, rows, size, norm, top, best);
    return 0;
}

/* See ops.py: add_lora. */
INLINE int add_lora_typed(const int bf16, const float *inner, int64_t ld, const float *b, int64_t rank, float scale,
                          const float *gain, void *out, int64_t ldo, int64_t tokens, int64_t columns) {
    int64_t failed = 0, blocks = (tokens + TASK_ROWS - 1) / TASK_ROWS;
#pragma omp parallel
    {
        float *sums = scratch(TASK_ROWS * columns);
        if (!sums) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(static)
        for (int64_t t = 0; t < blocks; t++) {
            int64_t from = t * TASK_ROWS, count = tokens - from < TASK_ROWS ? tokens - from : TASK_ROWS;
            if (!sums) continue;
            gemm(inner + from * ld, ld, count, b, columns, W, 0, rank, sums, columns, columns / W, 0);
            for (int64_t i = 0; i < count; i++)
                for (int64_t d = 0; d < columns; d += W) {
                    int64_t place = (from + i) * ldo + d;
                    vec sum = load(out, place, bf16) + *(vec *)(sums + i * columns + d) * scale;
                    store(out, place, gain ? sum * load(gain, d, 0) : sum, bf16);
                }
        }
        free(sums);
    }
    return (int)failed;
}

int add_lora(int64_t bf16, const float *inner, int64_t ld, const float *b, int64_t rank, float scale, const float *gain,
             void *out, int64_t ldo, int64_t tokens, int64_t columns) {
    return bf16 ? add_lora_typed(1, inner, ld, b, rank, scale, gain, out, ldo, tokens, columns)
                : add_lora_typed(0, inner, ld, b, rank, scale, gain, out, ldo, tokens, columns);
}

/* See ops.py: attend_back. The weights are computed again, one block of queries at a time. A task covers the keys
 * of one row and one KV head, so one thread sums their gradients. */
INLINE int attend_back_typed(const int bf16, const void *q, const void *k, const void *v, const void *out,
                             const void *grad, void *gq, void *gk, void *gv, const int64_t *starts, int64_t rows,
                             int64_t heads, int64_t kv_heads, int64_t size, float scaling, int64_t window) {
    int64_t group = heads / kv_heads, longest = 0, failed = 0, ld = heads * size, ldk = kv_heads * size;
    for (int64_t r = 0; r < rows; r++)
        longest = starts[r + 1] - starts[r] > longest ? starts[r + 1] - starts[r] : longest;
    int64_t width = tile_count(longest) * W, queries = TASK_SCORES / width / group;
    if (queries > TASK_ROWS / group) queries = TASK_ROWS / group;
    if (queries < 1) queries = 1;
    int64_t m_max = queries * group;
#pragma omp parallel
    {
        float *work = scratch(m_max * (5 * size + 3 * width) + 4 * width * size);
        if (!work) {
#pragma omp atomic write
            failed = 1;
        }
        float *a = work, *go = a + m_max * size, *o = go + m_max * size, *s = o + m_max * size;
        float *query_rows = s + m_max * width, *grad_rows = query_rows + m_max * size;
        float *ds = grad_rows + m_max * size, *transposed = ds + m_max * width, *sum_k = transposed + m_max * width;
        float *sum_v = sum_k + width * size, *packed_k = sum_v + width * size, *packed_v = packed_k + width * size;
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < rows * kv_heads; t++) {
            int64_t r = t / kv_heads, g = t % kv_heads, first = starts[r], length = starts[r + 1] - first;
            if (!work) continue;
            const void *own_k = element(k, first * ldk + g * size, bf16);
            const void *own_v = element(v, first * ldk + g * size, bf16);
            memset(packed_k, 0, (size_t)(2 * width * size) * sizeof(float));
            memset(sum_k, 0, (size_t)(2 * width * size) * sizeof(float));
            pack_keys(own_k, ldk, packed_k, 0, length, size, bf16);
            pack_keys(own_v, ldk, packed_v, 0, length, size, bf16);
            for (int64_t from = 0; from < length; from += queries) {
                int64_t to = from + queries < length ? from + queries : length, m = (to - from) * group;
                for (int64_t i = 0; i < m; i++) {
                    int64_t place = (first + from + i / group) * ld + (g * group + i % group) * size;
                    load_query(bf16, q, place, size, scaling, query_rows + i * size);
                    load_query(bf16, grad, place, size, 1, grad_rows + i * size);
                    for (int64_t d = 0; d < size; d += W) {
                        *(vec *)(a + i * size + d) = load(q, place + d, bf16) * scaling;
                        *(vec *)(go + i * size + d) = load(grad, place + d, bf16);
                    }
                }
                score_keys(bf16, query_rows, m, packed_k, size, s, width, tile_count(to));
                score_keys(bf16, grad_rows, m, packed_v, size, ds, width, tile_count(to));
                for (int64_t i = 0; i < m; i++) {
                    int64_t token = from + i / group;
                    int64_t place = (first + token) * ld + (g * group + i % group) * size;
                    float *line = s + i * width, *change = ds + i * width;
                    if (window)
                        for (int64_t j = 0; j <= token - window; j++) line[j] = -INFINITY;
                    for (int64_t j = token + 1; j < tile_count(to) * W; j++) line[j] = -INFINITY;
                    float sum = softmax(line, tile_count(to) * W, bf16 ? scaling : 1, 0);
                    vec both = {};
                    for (int64_t d = 0; d < size; d += W)
                        both += *(vec *)(go + i * size + d) * load(out, place + d, bf16);
                    float mean = hsum(both), share = 1.0f / sum;
                    for (int64_t j = 0; j < tile_count(to) * W; j += W) {
                        vec weight = *(vec *)(line + j) * share;
                        *(vec *)(line + j) = weight;
                        *(vec *)(change + j) = weight * (*(vec *)(change + j) - mean);
                    }
                }
                for (int64_t j = 0; j < to; j++)
                    for (int64_t i = 0; i < m; i++) transposed[j * m_max + i] = s[i * width + j];
                gemm(transposed, m_max, to, go, size, W, 0, m, sum_v, size, size / W, 1);
                for (int64_t j = 0; j < to; j++)
                    for (int64_t i = 0; i < m; i++) transposed[j * m_max + i] = ds[i * width + j];
                gemm(transposed, m_max, to, a, size, W, 0, m, sum_k, size, size / W, 1);
                gemm(ds, width, m, own_k, ldk, W, bf16, to, o, size, size / W, 0);
                for (int64_t i = 0; i < m; i++) {
                    int64_t place = (first + from + i / group) * ld + (g * group + i % group) * size;
                    for (int64_t d = 0; d < size; d += W)
                        store(gq, place + d, *(vec *)(o + i * size + d) * scaling, bf16);
                }
            }
            for (int64_t j = 0; j < length; j++)
                for (int64_t d = 0; d < size; d += W) {
                    store(gk, (first + j) * ldk + g * size + d, *(vec *)(sum_k + j * size + d), bf16);
                    store(gv, (first + j) * ldk + g * size + d, *(vec *)(sum_v + j * size + d), bf16);
                }
        }
        free(work);
    }
    return (int)failed;
}

int attend_back(int64_t bf16, const void *q, const void *k, const void *v, const void *out, const void *grad, void *gq,
                void *gk, void *gv, const int64_t *starts, int64_t rows, int64_t heads, int64_t kv_heads, int64_t size,
                float scaling, int64_t window) {
    return bf16 ? attend_back_typed(1, q, k, v, out, grad, gq, gk, gv, starts, rows, heads, kv_heads, size, scaling,
                                    window)
                : attend_back_typed(0, q, k, v, out, grad, gq, gk, gv, starts, rows, heads, kv_heads, size, scaling,
                                    window);
}

/* See ops.py: rms_norm_back. */
INLINE void rms_norm_back_typed(const int bf16, const void *x, const void *weight, const void *grad, void *out,
                                int64_t rows, int64_t size, float epsilon) {
#pragma omp parallel for schedule(static) if (rows * size > 16384)
    for (int64_t r = 0; r < rows; r++) {
        vec square = {}, both = {};
        for (int64_t d = 0; d < size; d += W) {
            vec e = load(x, r * size + d, bf16);
            square += e * e;
            both += e * load(weight, d, bf16) * load(grad, r * size + d, bf16);
        }
        float scale = 1.0f / sqrtf(hsum(square) / (float)size + epsilon);
        float along = hsum(both) * scale * scale * scale / (float)size;
        for (int64_t d = 0; d < size; d += W)
            store(out, r * size + d, load(weight, d, bf16) * load(grad, r * size + d, bf16) * scale
                                         - load(x, r * size + d, bf16) * along, bf16);
    }
}

int rms_norm_back(int64_t bf16, const void *x, const void *weight, const void *grad, void *out, int64_t rows,
                  int64_t size, float epsilon) {
    if (bf16) rms_norm_back_typed(1, x, weight, grad, out, rows, size, epsilon);
    else rms_norm_back_typed(0, x, weight, grad, out, rows, size, epsilon);
    return 0;
}

/* See ops.py: gate_back. */
INLINE void gate_back_typed(const int bf16, const void *x, const void *y, const void *grad, void *gx, void *gy,
                            int64_t vectors) {
#pragma omp parallel for schedule(static) if (vectors > 1024)
    for (int64_t n = 0; n < vectors; n++) {
        vec a = load(x, n * W, bf16), g = load(grad, n * W, bf16), s = sigmoid(a);
        store(gx, n * W, g * load(y, n * W, bf16) * s * (a * (1.0f - s) + 1.0f), bf16);
        store(gy, n * W, g * a * s, bf16);
    }
}

int gate_back(int64_t bf16, const void *x, const void *y, const void *grad, void *gx, void *gy, int64_t vectors) {
    if (bf16) gate_back_typed(1, x, y, grad, gx, gy, vectors);
    else gate_back_typed(0, x, y, grad, gx, gy, vectors);
    return 0;
}

/* c[rows, 16 * vectors] (+)= x[rows, depth] times tiles of columns that are ``step`` numbers apart, with prefetch. */
static __attribute__((noinline)) void gemm_few_rows(const float *x, int64_t ld, int64_t rows, const float *tile,
                                                    int64_t step, int64_t depth, float *c, int64_t ldc, int64_t vectors,
                                                    int add) {
#define ROWS(R) case R: gemm_block(x, ld, tile, W, step, F32, depth, c, ldc, add, R, AT_MOST(2), 1024); break;
    if (vectors < 2 || BLOCK_VECTORS < 2) {
        gemm(x, ld, rows, tile, W, step, F32, depth, c, ldc, vectors, add);
        return;
    }
    switch (rows) {
        ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
    }
}

/* Rows per band, where rows are cut into equal bands of at most ``most`` rows: a multiple of ``step``. */
static int64_t band_rows(int64_t rows, int64_t most, int64_t step) {
    int64_t bands = (rows + most - 1) / most;
    return ((rows + bands - 1) / bands + step - 1) / step * step;
}

/* out[rows, columns] = x[rows, depth] weight + bias, in float32. The weight is in tiles of 16 columns. Tasks are
 * scheduled dynamically, because a core that shares its units with other work is slower. */
static void linear_f32(const float *x, int64_t rows, int64_t depth, const float *weight, int64_t columns,
                       const float *bias, float *out) {
    int64_t wide = rows <= FEW_ROWS_MAX ? 2 : BLOCK_VECTORS, groups = (columns / W + wide - 1) / wide;
    int64_t most = BAND_FLOATS / depth;
    int64_t band = band_rows(rows, most > FEW_ROWS_MAX ? most : FEW_ROWS_MAX, rows <= FEW_ROWS_MAX ? 1 : BLOCK_ROWS);
    int64_t bands = (rows + band - 1) / band;
    int64_t runs = (depth + SUM_LENGTH - 1) / SUM_LENGTH, run = (depth + runs - 1) / runs;
#pragma omp parallel for schedule(dynamic, rows <= FEW_ROWS_MAX ? TASK_TILES : 1)
    for (int64_t t = 0; t < bands * groups; t++) {
        int64_t from = t / groups * band, count = rows - from < band ? rows - from : band;
        int64_t n = t % groups * wide, vectors = columns / W - n < wide ? columns / W - n : wide;
        float *c = out + from * columns + n * W;
        for (int64_t k = 0; k < depth; k += run) {
            int64_t length = depth - k < run ? depth - k : run;
            const float *a = x + from * depth + k, *b = weight + (n * depth + k) * W;
            if (rows <= FEW_ROWS_MAX) gemm_few_rows(a, depth, count, b, depth * W, length, c, columns, vectors, k > 0);
            else gemm(a, depth, count, b, W, depth * W, F32, length, c, columns, vectors, k > 0);
        }
        for (int64_t i = 0; bias && i < count; i++)
            for (int64_t e = 0; e < vectors * W; e += W) *(vec *)(c + i * columns + e) += load(bias, n * W + e, 0);
    }
}

/* linear_f32 for bfloat16, with AMX. Returns 0, or 1 if there is no AMX or memory ran out. */
static int linear_bf16(const uint16_t *x, int64_t rows, int64_t depth, const uint16_t *weight, int64_t columns,
                       const uint16_t *bias, uint16_t *out) {
    int failed = 0;
#if HAS_AMX
    int64_t whole = rows / 16 * 16, band = band_rows(rows, BAND_ROWS, 32), pairs = (columns / W + 1) / 2;
    int64_t bands = (rows + band - 1) / band, threads = omp_get_max_threads();
    int64_t share = (bands * pairs + threads - 1) / threads; /* with few rows, weights stream fastest in long runs */
#pragma omp parallel
    {
        float *work = scratch(16 * depth / 2 + 32 * 32);
        if (!work) {
#pragma omp atomic write
            failed = 1;
        }
        uint16_t *last = (uint16_t *)(work + 32 * 32); /* the rows after the last full tile, and zeros */
        if (work && rows > whole) {
            memcpy(last, x + whole * depth, (size_t)((rows - whole) * depth * 2));
            memset(last + (rows - whole) * depth, 0, (size_t)((whole + 16 - rows) * depth * 2));
        }
        amx_begin();
        AMX_BARRIER;
#pragma omp for schedule(dynamic, rows <= 64 ? share : TASK_TILES)
        for (int64_t t = 0; t < bands * pairs; t++) {
            int64_t from = t / pairs * band, to = from + band < rows ? from + band : rows, n = t % pairs * 2 * W;
            int wide = columns - n > W ? 2 : 1;
            for (int64_t m = from; work && m < to; m += 32) {
                const uint16_t *a = m < whole ? x + m * depth : last;
                const uint16_t *a2 = m + 16 < whole ? x + (m + 16) * depth : last;
                int tall = to - m > 16 ? 2 : 1;
                if (m == from) amx_block_any(a, a2, depth, tall, weight + n * depth, depth, wide, work, 32, 1);
                else amx_block_any(a, a2, depth, tall, weight + n * depth, depth, wide, work, 32, 0);
                for (int64_t i = 0; i < to - m && i < 32; i++)
                    for (int64_t e = 0; e < wide * W; e += W) {
                        vec sum = *(vec *)(work + i * 32 + e);
                        store(out, (m + i) * columns + n + e, bias ? sum + load(bias, n + e, 1) : sum, 1);
                    }
                AMX_BARRIER;
            }
        }
        amx_end();
        free(work);
    }
#else
    (void)x, (void)rows, (void)depth, (void)weight, (void)columns, (void)bias, (void)out;
    failed = 1;
#endif
    return failed;
}

/* See ops.py: linear. */
int linear(int64_t bf16, const void *x, int64_t rows, int64_t depth, const void *weight, int64_t columns,
           const void *bias, void *out) {
    if (!rows) return 0;
    if (bf16) return linear_bf16(x, rows, depth, weight, columns, bias, out);
    linear_f32(x, rows, depth, weight, columns, bias, out);
    return 0;
}

/* What one LoRA or DoRA adapter adds to ``columns`` columns from ``first`` on (see ops.py: add_lora). Its part of
 * ``a`` x begins at ``start``. */
typedef struct {
    const float *b, *gain;
    int64_t start, rank, first, columns;
    double scale;
} LoraPair;

/* Linear layers side by side, in tiles, with their adapters. a: the A matrices of all adapters, in tiles, ``ranks``
 * columns. */
typedef struct {
    const void *weight, *bias;
    int64_t depth, columns;
    const float *a;
    const LoraPair *pairs;
    int64_t ranks, count;
} Linear;

/* A decoder layer of the Llama kind. q_norm and k_norm may be NULL. */
typedef struct {
    Linear qkv, output, gate_up, down;
    const void *input_norm, *post_norm, *q_norm, *k_norm;
    double input_epsilon, post_epsilon, q_epsilon, k_epsilon, scaling;
    int64_t heads, kv_heads, size, window;
} Layer;

/* out[rows, columns] = x[rows, depth] through the linear layers and their adapters. */
static int linear_with_lora(int64_t bf16, const Linear *l, const void *x, int64_t rows, void *out) {
    if (linear(bf16, x, rows, l->depth, l->weight, l->columns, l->bias, out)) return 1;
    if (!l->count) return 0;
    float *x_f32 = scratch(rows * (l->depth + l->ranks)), *inner = x_f32 + rows * l->depth;
    if (!x_f32) return 1;
    for (int64_t i = 0; i < rows * l->depth; i += W) store(x_f32, i, load(x, i, (int)bf16), 0);
    linear_f32(x_f32, rows, l->depth, l->a, l->ranks, NULL, inner);
    int failed = 0;
    for (const LoraPair *pair = l->pairs; pair < l->pairs + l->count; pair++)
        failed |= add_lora(bf16, inner + pair->start, l->ranks, pair->b, pair->rank, (float)pair->scale, pair->gain,
                           (void *)element(out, pair->first, (int)bf16), l->columns, rows, pair->columns);
    free(x_f32);
    return failed;
}

/* See llama_step.py: one new token x[hidden] for each slot, through a whole layer. */
int layer_step(int64_t bf16, const Layer *l, const void *x, void *out, const void *cosine, const void *sine,
               int64_t rotary, const int64_t *lengths, int64_t slots, void *slot_k, void *slot_v, int64_t room,
               const void *past_k, const void *past_v, int64_t past, int64_t past_room) {
    int64_t hidden = l->qkv.depth, all = l->qkv.columns, queries = l->heads * l->size, inner = l->down.depth;
    int64_t keys = l->kv_heads * l->size, item = bf16 ? 2 : 4;
    char *work = scratch(slots * (3 * hidden + all + queries + 3 * inner));
    if (!work) return 1;
    char *normed = work, *sum = normed + slots * hidden * item, *attended = sum + slots * hidden * item;
    char *qkv = attended + slots * hidden * item, *mixed = qkv + slots * all * item;
    char *gate_up = mixed + slots * queries * item, *gated = gate_up + 2 * slots * inner * item;
    int failed = rms_norm(bf16, x, NULL, l->input_norm, NULL, normed, slots, hidden, (float)l->input_epsilon)
                 || linear_with_lora(bf16, &l->qkv, normed, slots, qkv);
    for (char *token = qkv; l->q_norm && token < mixed; token += all * item) {
        char *key = token + queries * item;
        rms_norm(bf16, token, NULL, l->q_norm, NULL, token, l->heads, l->size, (float)l->q_epsilon);
        rms_norm(bf16, key, NULL, l->k_norm, NULL, key, l->kv_heads, l->size, (float)l->k_epsilon);
    }
    rotate(bf16, qkv, cosine, sine, slots, l->heads + l->kv_heads, l->size, rotary, all);
    failed = failed
             || attend_step(bf16, qkv, qkv + queries * item, qkv + (queries + keys) * item, mixed, lengths, slots,
                            l->heads, l->kv_heads, l->size, all, all, slot_k, slot_v, room, past_k, past_v, past,
                            past_room, (float)l->scaling, l->window)
             || linear_with_lora(bf16, &l->output, mixed, slots, attended)
             || rms_norm(bf16, x, attended, l->post_norm, sum, normed, slots, hidden, (float)l->post_epsilon)
             || linear_with_lora(bf16, &l->gate_up, normed, slots, gate_up)
             || gate(bf16, gate_up, 2 * inner, gate_up + inner * item, 2 * inner, gated, slots, inner)
             || linear_with_lora(bf16, &l->down, gated, slots, out);
    for (int64_t i = 0; i < slots * hidden; i += W)
        store(out, i, load(out, i, (int)bf16) + load(sum, i, (int)bf16), (int)bf16);
    free(work);
    return failed;
}
