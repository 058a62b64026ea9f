/* The engine's kernels on a CPU: attention over trie rows and over KV slots, RMS norm, rotary embedding, gated SiLU, and
 * what a row of logits comes to. Compiled on the machine that runs them, by kernels.py, which also says what each takes.
 *
 * Numbers are float32 or bfloat16 ("half"); sums and softmax are float32 throughout. A result depends on its own
 * inputs alone, never on the number of threads or on what else is in the batch.
 *
 * Keys lie in tiles of 16: [tiles, size, 16], so that one vector holds one dimension of 16 keys; half ones in pairs of
 * dimensions, [tiles, size / 2, 16, 2], as the processor's dot product of pairs takes them. A tile's last keys are zero
 * where a row has fewer. Values lie as they are: [keys, size].
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
#define TILED 1 /* matrix registers: products of half numbers by 16 rows, 16 columns and 16 pairs at once */
#include <sys/syscall.h>
#include <unistd.h>
#else
#define TILED 0
#endif

#define INLINE static inline __attribute__((always_inline))
#define W 16
#ifdef __AVX512F__
#define WIDE 4 /* vectors of a block of columns: 6 rows x 4 vectors fill the registers */
#else
#define WIDE 1
#endif
#define TALL 6
#define MOST 12 /* rows of a block of two vectors, as few rows take: then weights are read once */
#define ROWS 48 /* rows of queries that a task takes, at most */
#define SCORES 65536 /* and scores that it holds: they stay in the second-level cache */

typedef float vec __attribute__((vector_size(64), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(64), aligned(4)));
typedef uint32_t uvec __attribute__((vector_size(64), aligned(4)));
typedef uint16_t hvec __attribute__((vector_size(32), aligned(2)));

INLINE float widen(uint16_t x) {
    union { uint32_t i; float f; } u = {(uint32_t)x << 16};
    return u.f;
}

INLINE uint16_t narrow(float x) { /* round to nearest, ties to even */
    union { float f; uint32_t i; } u = {x};
    if ((u.i & 0x7fffffff) > 0x7f800000) return 0x7fc0;
    return (uint16_t)((u.i + 0x7fff + ((u.i >> 16) & 1)) >> 16);
}

INLINE float get(const void *p, int64_t i, int half) {
    return half ? widen(((const uint16_t *)p)[i]) : ((const float *)p)[i];
}

INLINE void put(void *p, int64_t i, float x, int half) {
    if (half) ((uint16_t *)p)[i] = narrow(x);
    else ((float *)p)[i] = x;
}

INLINE vec wide_of(hvec x) {
#ifdef __AVX512F__
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)x), 16);
#else
    return (vec)(__builtin_convertvector(x, uvec) << 16);
#endif
}

INLINE vec load(const void *p, int64_t i, int half) {
    return half ? wide_of(*(const hvec *)((const uint16_t *)p + i)) : *(const vec *)((const float *)p + i);
}

/* Round to nearest, ties to even. */
INLINE hvec half_of(vec x) {
#ifdef __AVX512BF16__
    return (hvec)_mm512_cvtneps_pbh((__m512)x);
#else
    uvec u = (uvec)x, nan = (uvec)(x != x);
    uvec r = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    return __builtin_convertvector((r & ~nan) | (0x7fc0 & nan), hvec);
#endif
}

INLINE void store(void *p, int64_t i, vec x, int half) {
    if (!half) {
        *(vec *)((float *)p + i) = x;
        return;
    }
    *(hvec *)((uint16_t *)p + i) = half_of(x);
}

/* x as it would come back from memory: where transformers rounds between two steps, so do these kernels. */
INLINE vec rounded(vec x, int half) { return half ? wide_of(half_of(x)) : x; }

INLINE vec either(ivec which, vec a, vec b) { return (vec)(((ivec)a & which) | ((ivec)b & ~which)); }

INLINE vec larger(vec a, vec b) { /* b where one of them is NaN */
#ifdef __AVX512F__
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return either(a > b, a, b);
#endif
}

INLINE float total(vec x) { /* halves onto halves */
    float part[W];
    *(vec *)part = x;
    for (int n = W / 2; n; n /= 2)
        for (int i = 0; i < n; i++) part[i] += part[i + n];
    return part[0];
}

INLINE float largest(vec x) {
    float best = x[0];
    for (int i = 1; i < W; i++) best = x[i] > best ? x[i] : best;
    return best;
}

/* e^x for x <= 0: Cephes' expf (Moshier), whose polynomial is good to 2 units in the last place. */
INLINE vec exponential(vec x) {
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
    return either(x < -87.0f, (vec){}, p * (vec)power); /* NaN stays NaN */
}

/* What the right-hand side of a product is; that of PAIRS are pairs of half numbers, on the left-hand side too. */
enum { FLOATS = 0, HALVES = 1, PAIRS = 2 };

/* sum + a b, of pairs: two products for each of 16 numbers, exact in float32 but for their sums. */
INLINE vec dot(vec sum, uint32_t a, uvec b) {
#ifdef __AVX512BF16__
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)((uvec){} + a), (__m512bh)b);
#else
    return sum + (vec)(b << 16) * widen((uint16_t)a) + (vec)(b & 0xffff0000) * widen((uint16_t)(a >> 16));
#endif
}

/* c[rows, 16 * wide] (+)= a[rows, depth] b; vector (k, n) of b is at k * step + n * stride. ahead: so many numbers before
 * they are needed, those of b are asked for. */
INLINE void block(const float *a, int64_t lda, const void *b, int64_t step, int64_t stride, const int kind,
                  int64_t depth, float *c, int64_t ldc, int add, const int rows, const int wide, const int ahead) {
    vec sum[MOST][WIDE];
#pragma GCC unroll 12
    for (int m = 0; m < rows; m++)
#pragma GCC unroll 4
        for (int n = 0; n < wide; n++) sum[m][n] = (vec){};
    for (int64_t k = 0; k < depth; k++) {
        vec right[WIDE];
#pragma GCC unroll 4
        for (int n = 0; n < wide; n++) {
            right[n] = load(b, k * step + n * stride, kind == HALVES);
            if (ahead) __builtin_prefetch((const float *)b + k * step + n * stride + ahead);
        }
#pragma GCC unroll 12
        for (int m = 0; m < rows; m++)
#pragma GCC unroll 4
            for (int n = 0; n < wide; n++)
                sum[m][n] = kind == PAIRS ? dot(sum[m][n], ((const uint32_t *)a)[m * lda + k], (uvec)right[n])
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

#define COLUMNS(R) \
    switch (w) { \
    case 1: block(x, lda, y, step, stride, kind, depth, z, ldc, add, R, 1, 0); break; \
    case 2: block(x, lda, y, step, stride, kind, depth, z, ldc, add, R, 2 > WIDE ? WIDE : 2, 0); break; \
    case 3: block(x, lda, y, step, stride, kind, depth, z, ldc, add, R, 3 > WIDE ? WIDE : 3, 0); break; \
    default: block(x, lda, y, step, stride, kind, depth, z, ldc, add, R, WIDE, 0); \
    }

/* The same for any number of rows and vectors. */
INLINE void product_of(const int kind, const float *a, int64_t lda, int64_t rows, const void *b, int64_t step,
                       int64_t stride, int64_t depth, float *c, int64_t ldc, int64_t vectors, int add) {
    for (int64_t n = 0; n < vectors; n += WIDE) {
        int w = vectors - n < WIDE ? (int)(vectors - n) : WIDE;
        const void *y = kind == HALVES ? (const void *)((const uint16_t *)b + n * stride)
                                       : (const void *)((const float *)b + n * stride);
        for (int64_t m = 0; m < rows; m += TALL) {
            const float *x = a + m * lda;
            float *z = c + m * ldc + n * W;
            switch (rows - m) {
            case 1: COLUMNS(1) break;
            case 2: COLUMNS(2) break;
            case 3: COLUMNS(3) break;
            case 4: COLUMNS(4) break;
            case 5: COLUMNS(5) break;
            default: COLUMNS(6)
            }
        }
    }
}

static __attribute__((noinline)) void product(const float *a, int64_t lda, int64_t rows, const void *b, int64_t step,
                                              int64_t stride, int kind, int64_t depth, float *c, int64_t ldc,
                                              int64_t vectors, int add) {
    if (kind == PAIRS) product_of(PAIRS, a, lda, rows, b, step, stride, depth, c, ldc, vectors, add);
    else if (kind == HALVES) product_of(HALVES, a, lda, rows, b, step, stride, depth, c, ldc, vectors, add);
    else product_of(FLOATS, a, lda, rows, b, step, stride, depth, c, ldc, vectors, add);
}

/* c[rows, 16 * count] = queries (see take_query) times the keys of ``count`` tiles. */
INLINE void score(const int half, const float *queries, int64_t rows, const void *keys, int64_t size, float *c,
                  int64_t ldc, int64_t count) {
    if (half) product(queries, size, rows, keys, W, size / 2 * W, PAIRS, size / 2, c, ldc, count, 0);
    else product(queries, size, rows, keys, W, size * W, FLOATS, size, c, ldc, count, 0);
}

/* One query of ``size``, as score takes it: half ones as they are, others scaled. */
INLINE void take_query(const int half, const void *q, int64_t from, int64_t size, float scaling, float *to) {
    if (half) memcpy(to, (const uint16_t *)q + from, (size_t)size * 2);
    else
        for (int64_t d = 0; d < size; d++) to[d] = scaling * ((const float *)q)[from + d];
}

INLINE const void *at(const void *p, int64_t i, int half) {
    return half ? (const void *)((const uint16_t *)p + i) : (const void *)((const float *)p + i);
}

static int64_t tiles(int64_t keys) { return (keys + W - 1) / W; }

#define BAND 512 /* rows that go through a linear layer together: they stay in the second-level cache */
#define FLOATS_HELD 131072 /* and numbers of such rows in float32 */
#define CHUNK 4 /* pairs of tiles of weights that a thread takes at once */
#define RUN 512 /* products of float32 numbers that one sum takes: longer ones round more */

#if TILED
/* Compilers do not know that tiles read and write memory: all before this is done before all after it. */
#define SETTLED __asm__ volatile("" ::: "memory")

/* See kernels.py: tiled. Linux lends the registers to a process that asks (arch_prctl(2): ARCH_REQ_XCOMP_PERM, data). */
int lent(void) {
    static int known = -1;
    if (known < 0) known = syscall(SYS_arch_prctl, 0x1023, 18) == 0;
    return known;
}

/* True where products of half numbers and of heads of this size are done in the matrix registers. */
INLINE int tiled(const int half, int64_t size) { return half && size % 32 == 0 && lent(); }

INLINE void begin_tiles(void) {
    struct { uint8_t palette, first, none[14]; uint16_t bytes[16]; uint8_t rows[16]; } shape = {.palette = 1};
    for (int i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = 16;
    __asm__ volatile("" : : "r"(&shape) : "memory"); /* all of it is read */
    _tile_loadconfig(&shape);
}

INLINE void end_tiles(void) { _tile_release(); }

/* c[16 r, 16 w] = r blocks of 16 rows, a and a2, times w tiles of columns from b on; depth is a multiple of 32. ahead:
 * the same part of the next tiles is asked for early, which pays where they come from memory. Tiles are loaded into few
 * registers, one of them twice: those that are left let the next loads begin while products still run, as far as they
 * go where two threads share a core (docs/log.md has the figures). */
INLINE void tiles_of(const uint16_t *a, const uint16_t *a2, int64_t lda, const int r, const uint16_t *b, int64_t depth,
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

/* The same where r and w are not known beforehand. */
INLINE void tiles_at(const uint16_t *a, const uint16_t *a2, int64_t lda, int r, const uint16_t *b, int64_t depth, int w,
                     float *c, int64_t ldc, const int ahead) {
    if (r > 1 && w > 1) tiles_of(a, a2, lda, 2, b, depth, 2, c, ldc, ahead);
    else if (r > 1) tiles_of(a, a2, lda, 2, b, depth, 1, c, ldc, ahead);
    else if (w > 1) tiles_of(a, a2, lda, 1, b, depth, 2, c, ldc, ahead);
    else tiles_of(a, a2, lda, 1, b, depth, 1, c, ldc, ahead);
}

/* What `score` does. */
static __attribute__((noinline)) void score_tiles(const float *queries, int64_t rows, const void *keys, int64_t size,
                                                  float *c, int64_t ldc, int64_t count) {
    const uint16_t *a = (const uint16_t *)queries, *b = keys;
    SETTLED;
    for (int64_t n = 0; n < count; n += 2)
        for (int64_t m = 0; m < rows; m += 32)
            tiles_at(a + m * 2 * size, a + (m + 16) * 2 * size, 2 * size, rows - m > 16 ? 2 : 1, b + n * size * W, size,
                     count - n > 1 ? 2 : 1, c + m * ldc + n * W, ldc, 0);
    SETTLED;
}

/* Values v[count, size] in pairs of keys, [count / 32][size / 16][16 pairs][16][2]; zeros after the last one. */
INLINE void pair(const uint16_t *v, int64_t ldv, int64_t count, int64_t size, uint16_t *to) {
    for (int64_t j = 0; j < count; j += 32)
        for (int64_t p = 0; p < 16; p++) {
            int64_t first = j + 2 * p;
            for (int64_t d = 0; d < size; d += W) {
                uvec a = first < count ? __builtin_convertvector(*(const hvec *)(v + first * ldv + d), uvec) : (uvec){};
                uvec b = first + 1 < count ? __builtin_convertvector(*(const hvec *)(v + (first + 1) * ldv + d), uvec)
                                           : (uvec){};
                *(uvec *)(to + j * size + d * 32 + p * 32) = a | b << 16;
            }
        }
}

/* o[rows, size] (+)= weights s[rows, keys] times values, which ``pair`` made; weights are halved, see ``softmax``. */
static __attribute__((noinline)) void mix_tiles(const float *s, int64_t lds, int64_t rows, const uint16_t *values,
                                                int64_t keys, float *o, int64_t size, int add) {
    SETTLED;
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
    SETTLED;
}
#else
int lent(void) { return 0; }
INLINE int tiled(const int half, int64_t size) { return half && size && lent(); }
INLINE void begin_tiles(void) {}
INLINE void end_tiles(void) {}
#define score_tiles(...) ((void)0)
#define mix_tiles(...) ((void)0)
#define pair(...) ((void)0)
#endif

/* Rows, of which the matrix registers compute 16 at a time, and keys, of which they take 32. */
static int64_t even(int64_t rows) { return (rows + 15) / 16 * 16; }
INLINE int64_t room_for(const int half, int64_t keys, int64_t size) {
    return tiled(half, size) ? (keys + 31) / 32 * 32 : tiles(keys) * W;
}

/* `score`, of rows that have room up to ``even``. */
INLINE void score_all(const int half, const float *queries, int64_t rows, const void *keys, int64_t size, float *c,
                      int64_t ldc, int64_t count) {
    if (tiled(half, size)) score_tiles(queries, rows, keys, size, c, ldc, count);
    else score(half, queries, rows, keys, size, c, ldc, count);
}

/* o[rows, size] (+)= s[rows, keys] v[keys, size]: what the values come to under the weights of ``softmax``. For the
 * matrix registers v is what ``pair`` made. */
INLINE void mix(const int half, const float *s, int64_t lds, int64_t rows, const void *v, int64_t ldv, int64_t keys,
                float *o, int64_t size, int add) {
    if (tiled(half, size)) mix_tiles(s, lds, rows, v, keys, o, size, add);
    else product(s, lds, rows, v, ldv, W, half, keys, o, size, size / W, add);
}

/* Turn scores[0 .. count), times ``scaling``, into weights; those of hidden keys are -inf already. The first ``halved`` of
 * them become sums of two half numbers, as exact as float32 but for 2^-17 of each: of every 32 the first numbers, then the
 * second ones. Returns the sum of the weights. */
INLINE float softmax(float *scores, int64_t count, float scaling, int64_t halved) {
    vec best = (vec){} - INFINITY, other = best, sum = {};
    for (int64_t j = 0; j + W < count; j += 2 * W) {
        best = larger(*(vec *)(scores + j), best);
        other = larger(*(vec *)(scores + j + W), other);
    }
    float top = largest(larger(*(vec *)(scores + count - W), larger(best, other)));
#if TILED
    for (int64_t j = 0; j < halved; j += 2 * W) {
        vec part[2], high[2];
        for (int n = 0; n < 2; n++) {
            sum += part[n] = exponential((*(vec *)(scores + j + n * W) - top) * scaling);
            high[n] = (vec)(((uvec)part[n] + 0x8000) & 0xffff0000);
        }
        __m512bh first = _mm512_cvtne2ps_pbh((__m512)high[1], (__m512)high[0]);
        __m512bh second = _mm512_cvtne2ps_pbh((__m512)(part[1] - high[1]), (__m512)(part[0] - high[0]));
        *(vec *)(scores + j) = (vec)first;
        *(vec *)(scores + j + W) = (vec)second;
    }
#endif
    for (int64_t j = halved; j < count; j += W) {
        vec e = exponential((*(vec *)(scores + j) - top) * scaling);
        *(vec *)(scores + j) = e;
        sum += e;
    }
    return total(sum);
}

/* Hide keys that lie ``window`` or more depths back, and the padding up to ``room``: prefix keys 0 .. past. */
INLINE void hide_past(float *scores, int64_t past, int64_t room, int64_t depth, int64_t window) {
    if (window)
        for (int64_t j = 0; j < past && j <= depth - window; j++) scores[j] = -INFINITY;
    for (int64_t j = past; j < room; j++) scores[j] = -INFINITY;
}

/* Put keys [count, heads, size] of one head into tiles. first: index of the first key in the tiles. */
INLINE void pack(const void *keys, int64_t ld, void *out, int64_t first, int64_t count, int64_t size, int half) {
    for (int64_t j = 0; j < count; j++) {
        int64_t tile = (first + j) / W, place = (first + j) % W;
        for (int64_t d = 0; d < size; d++) {
            int64_t from = j * ld + d;
            if (half) ((uint16_t *)out)[((tile * size + d) / 2 * W + place) * 2 + d % 2] = ((const uint16_t *)keys)[from];
            else ((float *)out)[(tile * size + d) * W + place] = ((const float *)keys)[from];
        }
    }
}

static void *scratch(int64_t floats) {
    void *found = NULL;
    return posix_memalign(&found, 64, (size_t)(floats + W) * sizeof(float)) ? NULL : found;
}

/* See kernels.py: attend_rows. Returns 0, or 1 where memory ran out. */
INLINE int rows_of(const int half, const void *q, const void *k, const void *v, void *out, const int64_t *starts,
                   const int64_t *end, const int64_t *depth, int64_t rows, int64_t heads, int64_t shared,
                   int64_t size, int64_t ldq, int64_t ldk, const void *past_k, const void *past_v, int64_t past,
                   int64_t past_room, float scaling, int64_t window) {
    int64_t group = heads / shared, longest = 0, failed = 0;
    int64_t *offset = malloc((size_t)(rows + 1) * sizeof(int64_t));
    if (!offset) return 1;
    offset[0] = 0;
    for (int64_t r = 0; r < rows; r++) {
        int64_t length = starts[r + 1] - starts[r];
        offset[r + 1] = offset[r] + room_for(half, length, size);
        longest = length > longest ? length : longest;
    }
    int64_t before = room_for(half, past, size), width = before + room_for(half, longest, size);
    if (width % 64 == 0) width += W; /* rows a page apart would meet in one set of the cache */
    int64_t queries = SCORES / width / group;
    if (queries > ROWS / group) queries = ROWS / group;
    if (queries < 1) queries = 1;
    int64_t blocks = (longest + queries - 1) / queries, tile = size * W, m_max = even(queries * group);
    int64_t held = shared * offset[rows] * size, paired = tiled(half, size) ? held + shared * before * size : 0;
    void *packed = scratch(held + paired); /* keys; in pairs, values and those of the prefix */
    if (!packed) {
        free(offset);
        return 1;
    }
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t t = 0; t < rows * shared; t++) {
            int64_t r = t / shared, g = t % shared, length = starts[r + 1] - starts[r];
            int64_t lies = (g * offset[rows] + offset[r]) * size;
            void *to = (void *)at(packed, lies, half);
            if (length % W) memset((void *)at(to, (tiles(length) - 1) * tile, half), 0, tile * (half ? 2 : 4));
            pack(at(k, starts[r] * ldk + g * size, half), ldk, to, 0, length, size, half);
            if (paired)
                pair(at(v, starts[r] * ldk + g * size, half), ldk, length, size,
                     (void *)at(packed, held + lies, half));
            if (paired && past && !r)
                pair(at(past_v, g * past_room * size, half), size, past, size,
                     (void *)at(packed, 2 * held + g * before * size, half));
        }
        float *work = scratch(m_max * (2 * size + width + 1));
        if (!work) {
#pragma omp atomic write
            failed = 1;
        }
        float *a = work, *o = work + m_max * size, *s = work + 2 * m_max * size, *sums = s + m_max * width;
        if (tiled(half, size)) begin_tiles();
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < rows * shared * blocks; t++) {
            int64_t b = blocks - 1 - t / (rows * shared), r = t % (rows * shared) / shared, g = t % shared;
            int64_t length = starts[r + 1] - starts[r], from = b * queries;
            if (!work || from >= length) continue;
            int64_t to = from + queries < length ? from + queries : length, m = (to - from) * group;
            int64_t room = room_for(half, to, size), all = before + room, lies = (g * offset[rows] + offset[r]) * size;
            for (int64_t i = 0; i < m; i++)
                take_query(half, q, (starts[r] + from + i / group) * ldq + (g * group + i % group) * size, size,
                           scaling, a + i * size);
            if (past) score_all(half, a, m, at(past_k, g * tiles(past_room) * tile, half), size, s, width, tiles(past));
            score_all(half, a, m, at(packed, lies, half), size, s + before, width, tiles(to));
            const int64_t *ends = end + starts[r], *deep = depth + starts[r];
            int branches = 0;
            for (int64_t j = 0; j < to; j++) branches |= ends[j] < to;
            for (int64_t i = 0; i < m; i++) {
                int64_t token = from + i / group;
                float *line = s + i * width, *own = line + before;
                hide_past(line, past, before, deep[token], window);
                if (branches)
                    for (int64_t j = 0; j <= token; j++) own[j] = ends[j] > token ? own[j] : -INFINITY;
                if (window)
                    for (int64_t j = 0; j <= token; j++)
                        own[j] = deep[token] - deep[j] < window ? own[j] : -INFINITY;
                for (int64_t j = token + 1; j < room; j++) own[j] = -INFINITY;
                sums[i] = softmax(line, all, half ? scaling : 1, paired ? all : 0);
            }
            const void *theirs = paired ? at(packed, 2 * held + g * before * size, half)
                                        : at(past_v, g * past_room * size, half);
            const void *mine = paired ? at(packed, held + lies, half) : at(v, starts[r] * ldk + g * size, half);
            if (past) mix(half, s, width, m, theirs, size, past, o, size, 0);
            mix(half, s + before, width, m, mine, ldk, to, o, size, past > 0);
            for (int64_t i = 0; i < m; i++) {
                int64_t place = ((starts[r] + from + i / group) * heads + g * group + i % group) * size;
                for (int64_t d = 0; d < size; d += W)
                    store(out, place + d, *(vec *)(o + i * size + d) / sums[i], half);
            }
        }
        if (tiled(half, size)) end_tiles();
        free(work);
    }
    free(packed);
    free(offset);
    return (int)failed;
}

int attend_rows(int64_t half, const void *q, const void *k, const void *v, void *out, const int64_t *starts,
                const int64_t *end, const int64_t *depth, int64_t rows, int64_t heads, int64_t shared, int64_t size,
                int64_t ldq, int64_t ldk, const void *past_k, const void *past_v, int64_t past, int64_t past_room,
                float scaling, int64_t window) {
    return half ? rows_of(1, q, k, v, out, starts, end, depth, rows, heads, shared, size, ldq, ldk, past_k, past_v,
                          past, past_room, scaling, window)
                : rows_of(0, q, k, v, out, starts, end, depth, rows, heads, shared, size, ldq, ldk, past_k, past_v,
                          past, past_room, scaling, window);
}

/* See kernels.py: keep. */
int keep(int64_t half, const void *k, const void *v, int64_t ld, int64_t count, int64_t shared, int64_t size,
          void *slot_k, void *slot_v, int64_t room, int64_t first) {
    int64_t item = half ? 2 : 4;
#pragma omp parallel for schedule(static) if (count * shared * size > 16384)
    for (int64_t g = 0; g < shared; g++) {
        void *to = (void *)at(slot_k, g * tiles(room) * size * W, half);
        pack(at(k, g * size, half), ld, to, first, count, size, half);
        for (int64_t j = 0; j < count; j++)
            memcpy((void *)at(slot_v, (g * room + first + j) * size, half), at(v, j * ld + g * size, half),
                   (size_t)(size * item));
    }
    return 0;
}

/* See kernels.py: attend_step. */
INLINE int step_of(const int half, const void *q, const void *k, const void *v, void *out, const int64_t *lengths,
                   int64_t slots, int64_t heads, int64_t shared, int64_t size, int64_t ldq, int64_t ldk, void *slot_k,
                   void *slot_v, int64_t room, const void *past_k, const void *past_v, int64_t past,
                   int64_t past_room, float scaling, int64_t window) {
    int64_t group = heads / shared, longest = 0, failed = 0, tile = size * W;
    for (int64_t n = 0; n < slots; n++) longest = lengths[n] > longest ? lengths[n] : longest;
    int64_t before = room_for(half, past, size), width = before + tiles(longest + 1) * W;
    int64_t together = past ? (24 + group - 1) / group : 1, blocks = (slots + together - 1) / together;
    int64_t m_max = even(together * group);
#pragma omp parallel
    {
        float *work = scratch(m_max * (2 * size + width + 1) + before * size);
        if (!work) {
#pragma omp atomic write
            failed = 1;
        }
        float *a = work, *o = work + m_max * size, *s = work + 2 * m_max * size, *sums = s + m_max * width;
        float *pairs = sums + m_max;
        if (past && tiled(half, size)) begin_tiles();
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < blocks * shared; t++) {
            int64_t g = t % shared, from = t / shared * together;
            int64_t to = from + together < slots ? from + together : slots, m = (to - from) * group;
            if (!work) continue;
            for (int64_t i = 0; i < m; i++)
                take_query(half, q, (from + i / group) * ldq + (g * group + i % group) * size, size, scaling,
                           a + i * size);
            if (past) score_all(half, a, m, at(past_k, g * tiles(past_room) * tile, half), size, s, width, tiles(past));
            for (int64_t n = from; n < to; n++) {
                int64_t keys = lengths[n] + 1, i = (n - from) * group;
                void *mine = (void *)at(slot_k, (n * shared + g) * tiles(room) * tile, half);
                void *mine_v = (void *)at(slot_v, (n * shared + g) * room * size, half);
                pack(at(k, n * ldk + g * size, half), ldk, mine, lengths[n], 1, size, half);
                memcpy((void *)at(mine_v, lengths[n] * size, half), at(v, n * ldk + g * size, half),
                       (size_t)(size * (half ? 2 : 4)));
                score(half, a + i * size, group, mine, size, s + i * width + before, width, tiles(keys));
                for (int64_t e = i; e < i + group; e++) {
                    float *line = s + e * width, *own = line + before;
                    hide_past(line, past, before, past + lengths[n], window);
                    if (window)
                        for (int64_t j = 0; j <= lengths[n] - window; j++) own[j] = -INFINITY;
                    for (int64_t j = keys; j < tiles(keys) * W; j++) own[j] = -INFINITY;
                    sums[e] = softmax(line, before + tiles(keys) * W, half ? scaling : 1,
                                      tiled(half, size) ? before : 0);
                }
            }
            const void *theirs = at(past_v, g * past_room * size, half);
            if (past && tiled(half, size)) pair(theirs, size, past, size, (uint16_t *)pairs);
            if (past) mix(half, s, width, m, tiled(half, size) ? pairs : theirs, size, past, o, size, 0);
            for (int64_t n = from; n < to; n++) {
                int64_t i = (n - from) * group;
                product(s + i * width + before, width, group, at(slot_v, (n * shared + g) * room * size, half), size,
                        W, half, lengths[n] + 1, o + i * size, size, size / W, past > 0);
            }
            for (int64_t i = 0; i < m; i++) {
                int64_t place = ((from + i / group) * heads + g * group + i % group) * size;
                for (int64_t d = 0; d < size; d += W)
                    store(out, place + d, *(vec *)(o + i * size + d) / sums[i], half);
            }
        }
        if (past && tiled(half, size)) end_tiles();
        free(work);
    }
    return (int)failed;
}

int attend_step(int64_t half, const void *q, const void *k, const void *v, void *out, const int64_t *lengths,
                int64_t slots, int64_t heads, int64_t shared, int64_t size, int64_t ldq, int64_t ldk, void *slot_k,
                void *slot_v, int64_t room, const void *past_k, const void *past_v, int64_t past, int64_t past_room,
                float scaling, int64_t window) {
    return half ? step_of(1, q, k, v, out, lengths, slots, heads, shared, size, ldq, ldk, slot_k, slot_v, room,
                          past_k, past_v, past, past_room, scaling, window)
                : step_of(0, q, k, v, out, lengths, slots, heads, shared, size, ldq, ldk, slot_k, slot_v, room,
                          past_k, past_v, past, past_room, scaling, window);
}

/* See kernels.py: rms_norm. Rounds where transformers does: the sum, before the weight, and after it. */
INLINE void norm_of(const int half, const void *x, const void *y, const void *weight, void *sums, void *out,
                    int64_t rows, int64_t size, float epsilon) {
#pragma omp parallel for schedule(static) if (rows * size > 16384)
    for (int64_t r = 0; r < rows; r++) {
        vec sum[2] = {};
        for (int64_t d = 0, n = 0; d < size; d += W, n ^= 1) {
            vec e = load(x, r * size + d, half);
            if (y) {
                store(sums, r * size + d, e + load(y, r * size + d, half), half);
                e = load(sums, r * size + d, half);
            }
            sum[n] += e * e;
        }
        const void *all = y ? sums : x;
        float scale = 1.0f / sqrtf(total(sum[0] + sum[1]) / (float)size + epsilon);
        for (int64_t d = 0; d < size; d += W)
            store(out, r * size + d, rounded(load(all, r * size + d, half) * scale, half) * load(weight, d, half), half);
    }
}

int rms_norm(int64_t half, const void *x, const void *y, const void *weight, void *sums, void *out, int64_t rows,
             int64_t size, float epsilon) {
    if (half) norm_of(1, x, y, weight, sums, out, rows, size, epsilon);
    else norm_of(0, x, y, weight, sums, out, rows, size, epsilon);
    return 0;
}

INLINE vec sigmoid(vec x) {
    vec e = exponential(either(x > 0.0f, -x, x)); /* of -|x| */
    return either(x > 0.0f, (vec){} + 1.0f, e) / (e + 1.0f);
}

/* See kernels.py: gate. Rounds where transformers does: after SiLU, and after the product. */
INLINE void gate_of(const int half, const void *x, int64_t ldx, const void *y, int64_t ldy, void *out, int64_t tokens,
                    int64_t columns) {
#pragma omp parallel for schedule(static) if (tokens * columns > 16384)
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t d = 0; d < columns; d += W) {
            vec a = load(x, t * ldx + d, half);
            store(out, t * columns + d, rounded(a * sigmoid(a), half) * load(y, t * ldy + d, half), half);
        }
}

int gate(int64_t half, const void *x, int64_t ldx, const void *y, int64_t ldy, void *out, int64_t tokens,
         int64_t columns) {
    if (half) gate_of(1, x, ldx, y, ldy, out, tokens, columns);
    else gate_of(0, x, ldx, y, ldy, out, tokens, columns);
    return 0;
}

/* See kernels.py: rotate. */
INLINE void rotation_of(const int half, void *x, const void *cosine, const void *sine, int64_t tokens, int64_t heads,
                        int64_t size, int64_t turned, int64_t ld) {
    int64_t middle = turned / 2;
#pragma omp parallel for schedule(static) if (tokens * heads * size > 16384)
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t h = 0; h < heads; h++) {
            int64_t base = t * ld + h * size, angle = t * turned;
            int64_t d = 0;
            for (; d + W <= middle; d += W) {
                vec a = load(x, base + d, half), b = load(x, base + middle + d, half);
                store(x, base + d, rounded(a * load(cosine, angle + d, half), half)
                                       - rounded(b * load(sine, angle + d, half), half), half);
                store(x, base + middle + d, rounded(b * load(cosine, angle + middle + d, half), half)
                                                + rounded(a * load(sine, angle + middle + d, half), half), half);
            }
            for (; d < middle; d++) {
                float a = get(x, base + d, half), b = get(x, base + middle + d, half);
                put(x, base + d, a * get(cosine, angle + d, half) - b * get(sine, angle + d, half), half);
                put(x, base + middle + d,
                    b * get(cosine, angle + middle + d, half) + a * get(sine, angle + middle + d, half), half);
            }
        }
}

int rotate(int64_t half, void *x, const void *cosine, const void *sine, int64_t tokens, int64_t heads, int64_t size,
            int64_t turned, int64_t ld) {
    if (half) rotation_of(1, x, cosine, sine, tokens, heads, size, turned, ld);
    else rotation_of(0, x, cosine, sine, tokens, heads, size, turned, ld);
    return 0;
}

/* See kernels.py: summarise. */
INLINE void summary_of(const int half, const void *logits, int64_t rows, int64_t size, float *norm, float *top,
                       int64_t *best) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        int64_t whole = size / W * W, base = r * size;
        vec high = (vec){} - INFINITY, sum = {};
        for (int64_t j = 0; j < whole; j += W) high = larger(load(logits, base + j, half), high);
        float peak = largest(high);
        for (int64_t j = whole; j < size; j++) {
            float x = get(logits, base + j, half);
            peak = x > peak ? x : peak;
        }
        for (int64_t j = 0; j < whole; j += W) {
            sum += exponential(load(logits, base + j, half) - peak);
        }
        float all = total(sum);
        for (int64_t j = whole; j < size; j++) all += expf(get(logits, base + j, half) - peak);
        int64_t place = 0;
        while (place < size - 1 && get(logits, base + place, half) != peak) place++;
        norm[r] = logf(all) + peak;
        top[r] = peak;
        best[r] = place;
    }
}

int summarise(int64_t half, const void *logits, int64_t rows, int64_t size, float *norm, float *top, int64_t *best) {
    if (half) summary_of(1, logits, rows, size, norm, top, best);
    else summary_of(0, logits, rows, size, norm, top, best);
    return 0;
}

/* See kernels.py: add_low. */
INLINE int low_of(const int half, const float *inner, int64_t ld, const float *b, int64_t rank, float scale,
                  const float *gain, void *out, int64_t ldo, int64_t tokens, int64_t columns) {
    int64_t failed = 0, blocks = (tokens + ROWS - 1) / ROWS;
#pragma omp parallel
    {
        float *sums = scratch(ROWS * columns);
        if (!sums) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(static)
        for (int64_t t = 0; t < blocks; t++) {
            int64_t from = t * ROWS, count = tokens - from < ROWS ? tokens - from : ROWS;
            if (!sums) continue;
            product(inner + from * ld, ld, count, b, columns, W, 0, rank, sums, columns, columns / W, 0);
            for (int64_t i = 0; i < count; i++)
                for (int64_t d = 0; d < columns; d += W) {
                    int64_t place = (from + i) * ldo + d;
                    vec sum = load(out, place, half) + *(vec *)(sums + i * columns + d) * scale;
                    store(out, place, gain ? sum * load(gain, d, 0) : sum, half);
                }
        }
        free(sums);
    }
    return (int)failed;
}

int add_low(int64_t half, const float *inner, int64_t ld, const float *b, int64_t rank, float scale, const float *gain,
            void *out, int64_t ldo, int64_t tokens, int64_t columns) {
    return half ? low_of(1, inner, ld, b, rank, scale, gain, out, ldo, tokens, columns)
                : low_of(0, inner, ld, b, rank, scale, gain, out, ldo, tokens, columns);
}

/* See kernels.py: attend_back. Weights are made again, a block of queries at a time; a task is one row's keys of one kv
 * head, so that their gradients are sums of one thread. */
INLINE int back_of(const int half, const void *q, const void *k, const void *v, const void *out, const void *grad,
                   void *gq, void *gk, void *gv, const int64_t *starts, int64_t rows, int64_t heads, int64_t shared,
                   int64_t size, float scaling, int64_t window) {
    int64_t group = heads / shared, longest = 0, failed = 0, ld = heads * size, ldk = shared * size;
    for (int64_t r = 0; r < rows; r++)
        longest = starts[r + 1] - starts[r] > longest ? starts[r + 1] - starts[r] : longest;
    int64_t width = tiles(longest) * W, queries = SCORES / width / group;
    if (queries > ROWS / group) queries = ROWS / group;
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
        float *asked = s + m_max * width, *moved = asked + m_max * size;
        float *ds = moved + m_max * size, *turned = ds + m_max * width, *sum_k = turned + m_max * width;
        float *sum_v = sum_k + width * size, *packed_k = sum_v + width * size, *packed_v = packed_k + width * size;
#pragma omp for schedule(dynamic)
        for (int64_t t = 0; t < rows * shared; t++) {
            int64_t r = t / shared, g = t % shared, first = starts[r], length = starts[r + 1] - first;
            if (!work) continue;
            const void *own_k = at(k, first * ldk + g * size, half), *own_v = at(v, first * ldk + g * size, half);
            memset(packed_k, 0, (size_t)(2 * width * size) * sizeof(float));
            memset(sum_k, 0, (size_t)(2 * width * size) * sizeof(float));
            pack(own_k, ldk, packed_k, 0, length, size, half);
            pack(own_v, ldk, packed_v, 0, length, size, half);
            for (int64_t from = 0; from < length; from += queries) {
                int64_t to = from + queries < length ? from + queries : length, m = (to - from) * group;
                for (int64_t i = 0; i < m; i++) {
                    int64_t place = (first + from + i / group) * ld + (g * group + i % group) * size;
                    take_query(half, q, place, size, scaling, asked + i * size);
                    take_query(half, grad, place, size, 1, moved + i * size);
                    for (int64_t d = 0; d < size; d += W) {
                        *(vec *)(a + i * size + d) = load(q, place + d, half) * scaling;
                        *(vec *)(go + i * size + d) = load(grad, place + d, half);
                    }
                }
                score(half, asked, m, packed_k, size, s, width, tiles(to));
                score(half, moved, m, packed_v, size, ds, width, tiles(to));
                for (int64_t i = 0; i < m; i++) {
                    int64_t token = from + i / group;
                    int64_t place = (first + token) * ld + (g * group + i % group) * size;
                    float *line = s + i * width, *change = ds + i * width;
                    if (window)
                        for (int64_t j = 0; j <= token - window; j++) line[j] = -INFINITY;
                    for (int64_t j = token + 1; j < tiles(to) * W; j++) line[j] = -INFINITY;
                    float sum = softmax(line, tiles(to) * W, half ? scaling : 1, 0);
                    vec both = {};
                    for (int64_t d = 0; d < size; d += W)
                        both += *(vec *)(go + i * size + d) * load(out, place + d, half);
                    float mean = total(both), share = 1.0f / sum;
                    for (int64_t j = 0; j < tiles(to) * W; j += W) {
                        vec weight = *(vec *)(line + j) * share;
                        *(vec *)(line + j) = weight;
                        *(vec *)(change + j) = weight * (*(vec *)(change + j) - mean);
                    }
                }
                for (int64_t j = 0; j < to; j++)
                    for (int64_t i = 0; i < m; i++) turned[j * m_max + i] = s[i * width + j];
                product(turned, m_max, to, go, size, W, 0, m, sum_v, size, size / W, 1);
                for (int64_t j = 0; j < to; j++)
                    for (int64_t i = 0; i < m; i++) turned[j * m_max + i] = ds[i * width + j];
                product(turned, m_max, to, a, size, W, 0, m, sum_k, size, size / W, 1);
                product(ds, width, m, own_k, ldk, W, half, to, o, size, size / W, 0);
                for (int64_t i = 0; i < m; i++) {
                    int64_t place = (first + from + i / group) * ld + (g * group + i % group) * size;
                    for (int64_t d = 0; d < size; d += W)
                        store(gq, place + d, *(vec *)(o + i * size + d) * scaling, half);
                }
            }
            for (int64_t j = 0; j < length; j++)
                for (int64_t d = 0; d < size; d += W) {
                    store(gk, (first + j) * ldk + g * size + d, *(vec *)(sum_k + j * size + d), half);
                    store(gv, (first + j) * ldk + g * size + d, *(vec *)(sum_v + j * size + d), half);
                }
        }
        free(work);
    }
    return (int)failed;
}

int attend_back(int64_t half, const void *q, const void *k, const void *v, const void *out, const void *grad, void *gq,
                void *gk, void *gv, const int64_t *starts, int64_t rows, int64_t heads, int64_t shared, int64_t size,
                float scaling, int64_t window) {
    return half ? back_of(1, q, k, v, out, grad, gq, gk, gv, starts, rows, heads, shared, size, scaling, window)
                : back_of(0, q, k, v, out, grad, gq, gk, gv, starts, rows, heads, shared, size, scaling, window);
}

/* See kernels.py: rms_norm_back. */
INLINE void norm_back_of(const int half, const void *x, const void *weight, const void *grad, void *out, int64_t rows,
                         int64_t size, float epsilon) {
#pragma omp parallel for schedule(static) if (rows * size > 16384)
    for (int64_t r = 0; r < rows; r++) {
        vec square = {}, both = {};
        for (int64_t d = 0; d < size; d += W) {
            vec e = load(x, r * size + d, half);
            square += e * e;
            both += e * load(weight, d, half) * load(grad, r * size + d, half);
        }
        float scale = 1.0f / sqrtf(total(square) / (float)size + epsilon);
        float along = total(both) * scale * scale * scale / (float)size;
        for (int64_t d = 0; d < size; d += W)
            store(out, r * size + d, load(weight, d, half) * load(grad, r * size + d, half) * scale
                                         - load(x, r * size + d, half) * along, half);
    }
}

int rms_norm_back(int64_t half, const void *x, const void *weight, const void *grad, void *out, int64_t rows,
                  int64_t size, float epsilon) {
    if (half) norm_back_of(1, x, weight, grad, out, rows, size, epsilon);
    else norm_back_of(0, x, weight, grad, out, rows, size, epsilon);
    return 0;
}

/* See kernels.py: gate_back. */
INLINE void gate_back_of(const int half, const void *x, const void *y, const void *grad, void *gx, void *gy,
                         int64_t vectors) {
#pragma omp parallel for schedule(static) if (vectors > 1024)
    for (int64_t n = 0; n < vectors; n++) {
        vec a = load(x, n * W, half), g = load(grad, n * W, half), s = sigmoid(a);
        store(gx, n * W, g * load(y, n * W, half) * s * (a * (1.0f - s) + 1.0f), half);
        store(gy, n * W, g * a * s, half);
    }
}

int gate_back(int64_t half, const void *x, const void *y, const void *grad, void *gx, void *gy, int64_t vectors) {
    if (half) gate_back_of(1, x, y, grad, gx, gy, vectors);
    else gate_back_of(0, x, y, grad, gx, gy, vectors);
    return 0;
}

/* c[rows, 16 * vectors] (+)= x[rows, depth] times tiles of columns, ``step`` numbers apart, that come from memory. */
static __attribute__((noinline)) void few(const float *x, int64_t ld, int64_t rows, const float *tile, int64_t step,
                                          int64_t depth, float *c, int64_t ldc, int64_t vectors, int add) {
#define FEW(R) case R: block(x, ld, tile, W, step, FLOATS, depth, c, ldc, add, R, 2 > WIDE ? WIDE : 2, 1024); break;
    if (vectors < 2 || WIDE < 2) {
        product(x, ld, rows, tile, W, step, FLOATS, depth, c, ldc, vectors, add);
        return;
    }
    switch (rows) {
        FEW(1) FEW(2) FEW(3) FEW(4) FEW(5) FEW(6) FEW(7) FEW(8) FEW(9) FEW(10) FEW(11) FEW(12)
    }
}

/* Rows of one of the equal bands that rows are cut into, none of which has more than ``most``: a multiple of ``step``. */
static int64_t band_of(int64_t rows, int64_t most, int64_t step) {
    int64_t bands = (rows + most - 1) / most;
    return ((rows + bands - 1) / bands + step - 1) / step * step;
}

/* out[rows, columns] = x[rows, depth] weight + bias, of float32 numbers; weight in tiles of 16 columns. Tasks go to
 * whichever core is free: one that shares its units with another's work is slower. */
static void linear_floats(const float *x, int64_t rows, int64_t depth, const float *weight, int64_t columns,
                          const float *bias, float *out) {
    int64_t wide = rows <= MOST ? 2 : WIDE, groups = (columns / W + wide - 1) / wide, most = FLOATS_HELD / depth;
    int64_t band = band_of(rows, most > MOST ? most : MOST, rows <= MOST ? 1 : TALL), bands = (rows + band - 1) / band;
    int64_t runs = (depth + RUN - 1) / RUN, run = (depth + runs - 1) / runs;
#pragma omp parallel for schedule(dynamic, rows <= MOST ? CHUNK : 1)
    for (int64_t t = 0; t < bands * groups; t++) {
        int64_t from = t / groups * band, count = rows - from < band ? rows - from : band;
        int64_t n = t % groups * wide, vectors = columns / W - n < wide ? columns / W - n : wide;
        float *c = out + from * columns + n * W;
        for (int64_t k = 0; k < depth; k += run) {
            int64_t length = depth - k < run ? depth - k : run;
            const float *a = x + from * depth + k, *b = weight + (n * depth + k) * W;
            if (rows <= MOST) few(a, depth, count, b, depth * W, length, c, columns, vectors, k > 0);
            else product(a, depth, count, b, W, depth * W, FLOATS, length, c, columns, vectors, k > 0);
        }
        for (int64_t i = 0; bias && i < count; i++)
            for (int64_t e = 0; e < vectors * W; e += W) *(vec *)(c + i * columns + e) += load(bias, n * W + e, 0);
    }
}

/* The same of half numbers, in the matrix registers. Returns 0, or 1 where there are none or memory ran out. */
static int linear_halves(const uint16_t *x, int64_t rows, int64_t depth, const uint16_t *weight, int64_t columns,
                         const uint16_t *bias, uint16_t *out) {
    int failed = 0;
#if TILED
    int64_t whole = rows / 16 * 16, band = band_of(rows, BAND, 32), pairs = (columns / W + 1) / 2;
    int64_t bands = (rows + band - 1) / band, threads = omp_get_max_threads();
    int64_t share = (bands * pairs + threads - 1) / threads; /* few rows: weights stream fastest in long runs */
#pragma omp parallel
    {
        float *work = scratch(16 * depth / 2 + 32 * 32);
        if (!work) {
#pragma omp atomic write
            failed = 1;
        }
        uint16_t *last = (uint16_t *)(work + 32 * 32); /* the rows after whole tiles of them, and zeros */
        if (work && rows > whole) {
            memcpy(last, x + whole * depth, (size_t)((rows - whole) * depth * 2));
            memset(last + (rows - whole) * depth, 0, (size_t)((whole + 16 - rows) * depth * 2));
        }
        begin_tiles();
        SETTLED;
#pragma omp for schedule(dynamic, rows <= 64 ? share : CHUNK)
        for (int64_t t = 0; t < bands * pairs; t++) {
            int64_t from = t / pairs * band, to = from + band < rows ? from + band : rows, n = t % pairs * 2 * W;
            int wide = columns - n > W ? 2 : 1;
            for (int64_t m = from; work && m < to; m += 32) {
                const uint16_t *a = m < whole ? x + m * depth : last;
                const uint16_t *a2 = m + 16 < whole ? x + (m + 16) * depth : last;
                int tall = to - m > 16 ? 2 : 1;
                if (m == from) tiles_at(a, a2, depth, tall, weight + n * depth, depth, wide, work, 32, 1);
                else tiles_at(a, a2, depth, tall, weight + n * depth, depth, wide, work, 32, 0);
                for (int64_t i = 0; i < to - m && i < 32; i++)
                    for (int64_t e = 0; e < wide * W; e += W) {
                        vec sum = *(vec *)(work + i * 32 + e);
                        store(out, (m + i) * columns + n + e, bias ? sum + load(bias, n + e, 1) : sum, 1);
                    }
                SETTLED;
            }
        }
        end_tiles();
        free(work);
    }
#else
    (void)x, (void)rows, (void)depth, (void)weight, (void)columns, (void)bias, (void)out;
    failed = 1;
#endif
    return failed;
}

/* See kernels.py: linear. */
int linear(int64_t half, const void *x, int64_t rows, int64_t depth, const void *weight, int64_t columns, const void *bias,
           void *out) {
    if (!rows) return 0;
    if (half) return linear_halves(x, rows, depth, weight, columns, bias, out);
    linear_floats(x, rows, depth, weight, columns, bias, out);
    return 0;
}

/* What a LoRA or DoRA adapter adds to columns from ``first`` on: see kernels.py, add_low; its part of ``a`` x begins at
 * ``start``. */
typedef struct {
    const float *b, *gain;
    int64_t start, rank, first, columns;
    double scale;
} Low;

/* Linear layers side by side, in tiles, and what adapters add to them; a: in tiles of its own, columns ``ranks``. */
typedef struct {
    const void *weight, *bias;
    int64_t depth, columns;
    const float *a;
    const Low *lows;
    int64_t ranks, count;
} Linear;

/* A decoder layer of the Llama kind. q_norm and k_norm may be NULL. */
typedef struct {
    Linear project, output, opened, down;
    const void *before, *between, *q_norm, *k_norm;
    double before_epsilon, between_epsilon, q_epsilon, k_epsilon, scaling;
    int64_t heads, shared, size, window;
} Layer;

/* out[rows, columns] = what the linear layers make of x[rows, depth]. */
static int through(int64_t half, const Linear *l, const void *x, int64_t rows, void *out) {
    if (linear(half, x, rows, l->depth, l->weight, l->columns, l->bias, out)) return 1;
    if (!l->count) return 0;
    float *wide = scratch(rows * (l->depth + l->ranks)), *inner = wide + rows * l->depth;
    if (!wide) return 1;
    for (int64_t i = 0; i < rows * l->depth; i += W) store(wide, i, load(x, i, (int)half), 0);
    linear_floats(wide, rows, l->depth, l->a, l->ranks, NULL, inner);
    int failed = 0;
    for (const Low *low = l->lows; low < l->lows + l->count; low++)
        failed |= add_low(half, inner + low->start, l->ranks, low->b, low->rank, (float)low->scale, low->gain,
                          (void *)at(out, low->first, (int)half), l->columns, rows, low->columns);
    free(wide);
    return failed;
}

/* See steps.py: one new token x[hidden] in each of the slots, through a whole layer. */
int layer_step(int64_t half, const Layer *l, const void *x, void *out, const void *cosine, const void *sine,
               int64_t turned, const int64_t *lengths, int64_t slots, void *slot_k, void *slot_v, int64_t room,
               const void *past_k, const void *past_v, int64_t past, int64_t past_room) {
    int64_t hidden = l->project.depth, all = l->project.columns, queries = l->heads * l->size, inner = l->down.depth;
    int64_t keys = l->shared * l->size, item = half ? 2 : 4;
    char *work = scratch(slots * (3 * hidden + all + queries + 3 * inner));
    if (!work) return 1;
    char *normed = work, *sum = normed + slots * hidden * item, *made = sum + slots * hidden * item;
    char *found = made + slots * hidden * item, *mixed = found + slots * all * item;
    char *opened = mixed + slots * queries * item, *gated = opened + 2 * slots * inner * item;
    int failed = rms_norm(half, x, NULL, l->before, NULL, normed, slots, hidden, (float)l->before_epsilon)
                 || through(half, &l->project, normed, slots, found);
    for (char *token = found; l->q_norm && token < mixed; token += all * item) {
        char *key = token + queries * item;
        rms_norm(half, token, NULL, l->q_norm, NULL, token, l->heads, l->size, (float)l->q_epsilon);
        rms_norm(half, key, NULL, l->k_norm, NULL, key, l->shared, l->size, (float)l->k_epsilon);
    }
    rotate(half, found, cosine, sine, slots, l->heads + l->shared, l->size, turned, all);
    failed = failed
             || attend_step(half, found, found + queries * item, found + (queries + keys) * item, mixed, lengths, slots,
                            l->heads, l->shared, l->size, all, all, slot_k, slot_v, room, past_k, past_v, past,
                            past_room, (float)l->scaling, l->window)
             || through(half, &l->output, mixed, slots, made)
             || rms_norm(half, x, made, l->between, sum, normed, slots, hidden, (float)l->between_epsilon)
             || through(half, &l->opened, normed, slots, opened)
             || gate(half, opened, 2 * inner, opened + inner * item, 2 * inner, gated, slots, inner)
             || through(half, &l->down, gated, slots, out);
    for (int64_t i = 0; i < slots * hidden; i += W)
        store(out, i, load(out, i, (int)half) + load(sum, i, (int)half), (int)half);
    free(work);
    return failed;
}
