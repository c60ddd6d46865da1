/* CPU kernels of frepro's operations; built once by frepro/ops/cpu/__init__.py and called through ctypes.

   Tensors are float32 and channels-last: the channel is the contiguous axis, and LANES channels are computed side by
   side in one vector, as many as a register of the instruction set holds: a wider vector would live in memory. A last
   block of fewer channels is padded with zeros. Each kernel equals the plain torch form of
   its operation in the files of frepro/ops, where the mathematics is stated; tests hold the two together. Each returns
   0, or 1 where there was no memory. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Where AVX-512 is missing, built-in functions stand for intrinsics: the header takes the compiler 60 MB. */
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
#endif

#if defined(__AVX512F__)
#define INSTRUCTION_SET "AVX-512"
#define IS_SUPPORTED __builtin_cpu_supports("avx512f")
#define LANES 16
#elif defined(__AVX2__)
#define INSTRUCTION_SET "AVX2"
#define IS_SUPPORTED __builtin_cpu_supports("avx2")
#define LANES 8
#elif defined(__AVX__)
#define INSTRUCTION_SET "AVX"
#define IS_SUPPORTED __builtin_cpu_supports("avx")
#define LANES 8
#else
#if defined(__SSE2__)
#define INSTRUCTION_SET "SSE2"
#elif defined(__ARM_NEON)
#define INSTRUCTION_SET "NEON"
#else
#define INSTRUCTION_SET "none"
#endif
#define IS_SUPPORTED 1
#define LANES 4
#endif

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

typedef struct {
    vec re, im;
} cvec;

/* The instruction set that the kernels were compiled for, null where this processor lacks it. */
const char *instruction_set(void) { return IS_SUPPORTED ? INSTRUCTION_SET : NULL; }

/* ------------------------------------------------------------------------------------------- vectors and functions */

INLINE vec load(const float *p, int64_t count) {
    vec v = {0};
    if (count >= LANES)
        memcpy(&v, p, sizeof v);
    else
        memcpy(&v, p, count * sizeof(float));
    return v;
}

INLINE void store(float *p, vec v, int64_t count) {
    if (count >= LANES)
        memcpy(p, &v, sizeof v);
    else
        memcpy(p, &v, count * sizeof(float));
}

INLINE vec load_strided(const float *p, int64_t stride, int64_t count) {
    if (stride == 1) return load(p, count);
    vec v = {0};
    for (int64_t i = 0; i < MIN(count, LANES); i++) v[i] = p[i * stride];
    return v;
}

INLINE void store_strided(float *p, int64_t stride, vec v, int64_t count) {
    if (stride == 1) {
        store(p, v, count);
        return;
    }
    for (int64_t i = 0; i < MIN(count, LANES); i++) p[i * stride] = v[i];
}

INLINE float total(vec v) {
    typedef float half __attribute__((vector_size(2 * LANES)));
    half parts[2];
    memcpy(parts, &v, sizeof v);
    half h = parts[0] + parts[1];
    float s = 0;
    for (int i = 0; i < LANES / 2; i++) s += h[i];
    return s;
}

/* What is no number in b stays none: bounds come first. */
INLINE vec maximum(vec a, vec b) {
#if defined(__AVX512F__)
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
    return __builtin_ia32_maxps256(a, b);
#elif defined(__SSE2__)
    return __builtin_ia32_maxps(a, b);
#else
    ivec mask = a > b;
    return (vec)((mask & (ivec)a) | (~mask & (ivec)b));
#endif
}

INLINE vec minimum(vec a, vec b) {
#if defined(__AVX512F__)
    return (vec)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
    return __builtin_ia32_minps256(a, b);
#elif defined(__SSE2__)
    return __builtin_ia32_minps(a, b);
#else
    return -maximum(-a, -b);
#endif
}

INLINE vec fill(float x) { return (vec){0} + x; }

/* 2^t for t in [-126, 126], relative error below 3e-7: 2^r for the nearest integer r, times a polynomial in the rest,
   within [-1/2, 1/2]. The polynomial is exactly 1 at 0, so that a long product of factors near 1 drifts no more than its
   inputs. Without AVX-512 r comes off by adding 1.5 * 2^23, which leaves it in the low bits. */
INLINE vec exp2_bounded(vec t) {
#ifdef __AVX512F__
    vec r = (vec)_mm512_roundscale_ps((__m512)t, 0);
#else
    vec shifted = t + 12582912.0f, r = shifted - 12582912.0f;
#endif
    vec f = t - r;
    vec p = 1.340043629e-3f * f + 9.666373164e-3f;
    p = p * f + 5.550333182e-2f;
    p = p * f + 2.402234895e-1f;
    p = p * f + 6.931471955e-1f;
    p = p * f + 1.0f;
#ifdef __AVX512F__
    return (vec)_mm512_scalef_ps((__m512)p, (__m512)r);
#else
    return (vec)((ivec)p + ((ivec)shifted << 23));
#endif
}

/* 2^t for t <= 126; without AVX-512 results below 2^-126 are about 0. */
INLINE vec exp2_capped(vec t) {
#ifndef __AVX512F__
    t = maximum(fill(-126.0f), t);
#endif
    return exp2_bounded(t);
}

/* 2^t for any t; without AVX-512 results above 2^126 are about that. */
INLINE vec exp2v(vec t) {
#ifndef __AVX512F__
    t = minimum(fill(126.0f), t);
#endif
    return exp2_capped(t);
}

#define LOG2_E 1.44269504088896341f

/* 1 / x for x in [2^-126, 2^126]; by Newton's method from 12 bits or more where a division takes several times as long. */
INLINE vec inverse(vec x) {
#if defined(__AVX512F__)
    vec r = (vec)_mm512_rcp14_ps((__m512)x);
    return r + r * (1.0f - x * r);
#elif defined(__AVX__)
    vec r = __builtin_ia32_rcpps256(x);
    return r + r * (1.0f - x * r);
#else
    return 1.0f / x;
#endif
}

INLINE vec sigmoid(vec x) { return inverse(1.0f + exp2_capped(minimum(fill(125.0f), x * -LOG2_E))); }

/* log(1 + e^x) = max(x, 0) + log(1 + e), e = e^-|x|; and log(1 + e) = 2 artanh(e / (2 + e)), whose argument is at most
   1/3, so that small results keep their relative accuracy. */
INLINE vec softplus(vec x) {
    vec e = exp2_capped(minimum(x, -x) * LOG2_E);
    vec s = e * inverse(e + 2.0f), q = s * s;
    vec p = q * (2.0f / 15) + 2.0f / 13;
    p = p * q + 2.0f / 11;
    p = p * q + 2.0f / 9;
    p = p * q + 2.0f / 7;
    p = p * q + 2.0f / 5;
    p = p * q + 2.0f / 3;
    p = p * q + 2.0f;
    return maximum(fill(0), x) + p * s;
}

/* ---------------------------------------------------------------------------------------------------- selective scan */

#define MAX_STATE 64
#define CHUNK 16
#define UNROLL _Pragma("GCC unroll 16")

/* Strides of a (batch, time, channel) view, in floats. */
typedef struct {
    int64_t batch, time, channel;
} strides;

typedef struct {
    const float *u, *delta, *z; /* (batch, time, channel), z may be null */
    const float *A;             /* (N, D) */
    const float *B, *C;         /* (batch, time, N), N contiguous */
    const float *D, *bias;      /* (D), may be null */
    strides su, sdelta, sz, sB, sC;
    int64_t batch, length, dim, state;
    int32_t is_softplus, is_reverse;
} scan;

INLINE int64_t place(const scan *s, int64_t t) { return s->is_reverse ? s->length - 1 - t : t; }

/* Step sizes and inputs of a chunk. Apart from the recurrence, so that their long chains of operations overlap. */
INLINE void read_chunk(
    const scan *s, int64_t count, int64_t b, int64_t c, int64_t begin, int64_t size, vec bias, vec *raw, vec *delta, vec *u
) {
    for (int64_t i = 0; i < size; i++) {
        int64_t t = place(s, begin + i);
        const float *at = s->delta + b * s->sdelta.batch + t * s->sdelta.time + c * s->sdelta.channel;
        raw[i] = load_strided(at, s->sdelta.channel, count) + bias;
        u[i] = load_strided(s->u + b * s->su.batch + t * s->su.time + c * s->su.channel, s->su.channel, count);
    }
    for (int64_t i = 0; i < size; i++) delta[i] = s->is_softplus ? softplus(raw[i]) : raw[i];
}

INLINE vec read_gate(const scan *s, int64_t count, int64_t b, int64_t c, int64_t t) {
    const float *at = s->z + b * s->sz.batch + t * s->sz.time + c * s->sz.channel;
    return load_strided(at, s->sz.channel, count);
}

INLINE const float *row(const float *p, strides stride, int64_t b, int64_t t) {
    return p + b * stride.batch + t * stride.time;
}

/* Whether no state can grow: no step is negative and no rate positive. */
static int is_fading(const scan *s) {
    int fades = s->is_softplus;
    for (int64_t i = 0; i < s->state * s->dim; i++) fades &= s->A[i] <= 0;
    return fades;
}

/* A chunk of count channels from c on, from the state before it to the state after it. */
INLINE void scan_chunk(
    const scan *s, const int64_t N, const int64_t count, const int fades, int64_t b, int64_t c, int64_t begin,
    vec *state, float *y, strides sy
) {
    int64_t size = MIN(CHUNK, s->length - begin);
    vec rates[MAX_STATE], h[MAX_STATE], raw[CHUNK], delta[CHUNK], u[CHUNK], sum[CHUNK];
    for (int64_t n = 0; n < N; n++) {
        rates[n] = load(s->A + n * s->dim + c, count) * LOG2_E;
        h[n] = state[n];
    }
    vec bias = s->bias ? load(s->bias + c, count) : fill(0), skip = s->D ? load(s->D + c, count) : fill(0);
    read_chunk(s, count, b, c, begin, size, bias, raw, delta, u);
    for (int64_t i = 0; i < size; i++) {
        int64_t t = place(s, begin + i);
        const float *B = row(s->B, s->sB, b, t), *C = row(s->C, s->sC, b, t);
        vec input = delta[i] * u[i], even = skip * u[i], odd = fill(0);
        UNROLL for (int64_t n = 0; n < N; n++) {
            vec t = delta[i] * rates[n], decay = fades ? exp2_capped(t) : exp2v(t);
            h[n] = decay * h[n] + input * B[n];
            if (n & 1)
                odd += h[n] * C[n];
            else
                even += h[n] * C[n];
        }
        sum[i] = even + odd;
    }
    for (int64_t i = 0; i < size; i++) {
        int64_t t = place(s, begin + i);
        if (s->z) {
            vec z = read_gate(s, count, b, c, t);
            sum[i] *= z * sigmoid(z);
        }
        store_strided(y + b * sy.batch + t * sy.time + c * sy.channel, sy.channel, sum[i], count);
    }
    memcpy(state, h, N * sizeof(vec));
}

/* Blocks that take each chunk one after the other, so that its rows are read as they lie in memory. */
#define SIDE_BY_SIDE 12

int32_t scan_forward(const scan *s, float *y, const strides *sy, int32_t threads) {
    int64_t blocks = (s->dim + LANES - 1) / LANES, side = s->batch * blocks / threads;
    side = side < 1 ? 1 : MIN(side, SIDE_BY_SIDE);
    int fades = is_fading(s);
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t first = 0; first < blocks; first += side) {
            vec states[SIDE_BY_SIDE * MAX_STATE] = {{0}};
            for (int64_t begin = 0; begin < s->length; begin += CHUNK)
                for (int64_t block = first; block < MIN(first + side, blocks); block++) {
                    vec *state = states + (block - first) * s->state;
                    int64_t count = s->dim - block * LANES;
                    if (s->state == 16 && count >= LANES && fades)
                        scan_chunk(s, 16, LANES, 1, b, block * LANES, begin, state, y, *sy);
                    else if (s->state == 16 && count >= LANES)
                        scan_chunk(s, 16, LANES, 0, b, block * LANES, begin, state, y, *sy);
                    else
                        scan_chunk(s, s->state, count, 0, b, block * LANES, begin, state, y, *sy);
                }
        }
    return 0;
}

/* Where a backward pass writes; shapes at scan_backward. */
typedef struct {
    float *u, *delta, *z, *A, *B, *C, *D, *bias;
} gradients;

/* The gradient of one block of channels of one sample. The way forth keeps the state at the start of each chunk alone; the
   way back computes a chunk's own states again. gB and gC gather over channels, lane by lane. */
INLINE void scan_block_backward(
    const scan *s, const int64_t N, int64_t b, int64_t c, const float *dy, strides sdy, const gradients *out, vec *gB,
    vec *gC, vec *starts, vec *states, vec *decays
) {
    int64_t count = s->dim - c, chunks = (s->length + CHUNK - 1) / CHUNK;
    vec A[MAX_STATE], h[MAX_STATE], gh[MAX_STATE], gA[MAX_STATE];
    vec raw[CHUNK], delta[CHUNK], u[CHUNK], y[CHUNK], gy[CHUNK], gdelta[CHUNK];
    for (int64_t n = 0; n < N; n++) {
        A[n] = load(s->A + n * s->dim + c, count);
        h[n] = gh[n] = gA[n] = fill(0);
    }
    vec bias = s->bias ? load(s->bias + c, count) : fill(0), skip = s->D ? load(s->D + c, count) : fill(0);
    vec gD = fill(0), gbias = fill(0);

    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        memcpy(starts + chunk * N, h, N * sizeof(vec));
        if (chunk == chunks - 1) break;
        read_chunk(s, count, b, c, chunk * CHUNK, CHUNK, bias, raw, delta, u);
        for (int64_t i = 0; i < CHUNK; i++) {
            const float *B = row(s->B, s->sB, b, place(s, chunk * CHUNK + i));
            vec input = delta[i] * u[i], rate = delta[i] * LOG2_E;
            UNROLL for (int64_t n = 0; n < N; n++) h[n] = exp2v(rate * A[n]) * h[n] + input * B[n];
        }
    }

    for (int64_t chunk = chunks - 1; chunk >= 0; chunk--) {
        int64_t begin = chunk * CHUNK, size = MIN(CHUNK, s->length - begin);
        memcpy(h, starts + chunk * N, N * sizeof(vec));
        read_chunk(s, count, b, c, begin, size, bias, raw, delta, u);
        for (int64_t i = 0; i < size; i++) {
            int64_t t = place(s, begin + i);
            const float *B = row(s->B, s->sB, b, t), *C = row(s->C, s->sC, b, t);
            vec input = delta[i] * u[i], rate = delta[i] * LOG2_E, sum = skip * u[i];
            UNROLL for (int64_t n = 0; n < N; n++) {
                vec decay = exp2v(rate * A[n]);
                states[i * N + n] = h[n]; /* before this step */
                decays[i * N + n] = decay;
                h[n] = decay * h[n] + input * B[n];
                sum += h[n] * C[n];
            }
            y[i] = sum;
        }
        for (int64_t i = 0; i < size; i++) {
            int64_t t = place(s, begin + i);
            gy[i] = load_strided(dy + b * sdy.batch + t * sdy.time + c * sdy.channel, sdy.channel, count);
            if (s->z) {
                vec z = read_gate(s, count, b, c, t), gate = sigmoid(z);
                store(out->z + (b * s->length + t) * s->dim + c, gy[i] * y[i] * gate * (1 + z * (1 - gate)), count);
                gy[i] *= z * gate;
            }
            gD += gy[i] * u[i];
        }
        for (int64_t i = size - 1; i >= 0; i--) {
            int64_t t = place(s, begin + i);
            const float *B = row(s->B, s->sB, b, t), *C = row(s->C, s->sC, b, t);
            vec input = delta[i] * u[i], ginput = fill(0), grate = fill(0);
            UNROLL for (int64_t n = 0; n < N; n++) {
                vec faded = decays[i * N + n] * states[i * N + n], g = gh[n] + gy[i] * C[n];
                gC[t * N + n] += gy[i] * (faded + input * B[n]);
                gB[t * N + n] += g * input;
                ginput += g * B[n];
                gh[n] = g * decays[i * N + n];
                g *= faded;
                grate += g * A[n];
                gA[n] += g * delta[i];
            }
            gdelta[i] = grate + ginput * u[i];
            store(out->u + (b * s->length + t) * s->dim + c, ginput * delta[i] + gy[i] * skip, count);
        }
        for (int64_t i = 0; i < size; i++) {
            if (s->is_softplus) gdelta[i] *= sigmoid(raw[i]);
            gbias += gdelta[i];
            store(out->delta + (b * s->length + place(s, begin + i)) * s->dim + c, gdelta[i], count);
        }
    }
    for (int64_t n = 0; n < N; n++) store(out->A + (b * N + n) * s->dim + c, gA[n], count);
    store(out->D + b * s->dim + c, gD, count);
    store(out->bias + b * s->dim + c, gbias, count);
}

/* Gradients of u, delta, z: (batch, time, D); of A: (batch, N, D); of D and bias: (batch, D); of B and C: (batch, parts,
   time, N), to be summed over the parts into which the channels are cut. */
int32_t scan_backward(
    const scan *s, const float *dy, const strides *sdy, const gradients *out, int64_t parts, int32_t threads
) {
    int64_t N = s->state, blocks = (s->dim + LANES - 1) / LANES, chunks = (s->length + CHUNK - 1) / CHUNK;
    int64_t gathered = s->length * N, kept = chunks * N, again = CHUNK * N;
    int32_t failed = 0;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t task = 0; task < s->batch * parts; task++) {
        int64_t b = task / parts, part = task % parts;
        vec *work = aligned_alloc(sizeof(vec), (2 * gathered + kept + 2 * again) * sizeof(vec));
        if (!work) {
            failed = 1;
            continue;
        }
        vec *gB = work, *gC = gB + gathered, *starts = gC + gathered, *states = starts + kept, *decays = states + again;
        memset(work, 0, 2 * gathered * sizeof(vec));
        for (int64_t block = part; block < blocks; block += parts) {
            int64_t c = block * LANES;
            if (N == 16)
                scan_block_backward(s, 16, b, c, dy, *sdy, out, gB, gC, starts, states, decays);
            else
                scan_block_backward(s, N, b, c, dy, *sdy, out, gB, gC, starts, states, decays);
        }
        for (int64_t i = 0; i < gathered; i++) {
            out->B[task * gathered + i] = total(gB[i]);
            out->C[task * gathered + i] = total(gC[i]);
        }
        free(work);
    }
    return failed;
}

/* ------------------------------------------------------------------------------------------------ causal convolution */

#define MAX_WIDTH 64

typedef struct {
    const float *x, *weight, *bias; /* (batch, time, channel), (width, D), (D) */
    strides sx;
    int64_t batch, length, dim, width;
    int32_t is_reverse;
} convolution;

/* bias + sum_j weight_j x_(t - width + 1 + j), time counted backwards where the convolution is reversed. */
INLINE vec convolve(
    const convolution *s, const int64_t width, const int64_t count, int64_t b, int64_t c, int64_t i, vec bias
) {
    const float *start = s->x + b * s->sx.batch + c * s->sx.channel;
    UNROLL for (int64_t j = 0; j < width; j++) {
        int64_t from = i - width + 1 + j;
        if (from < 0) continue;
        int64_t t = s->is_reverse ? s->length - 1 - from : from;
        bias += load(s->weight + j * s->dim + c, count) * load_strided(start + t * s->sx.time, s->sx.channel, count);
    }
    return bias;
}

#define CONVOLVED 32

/* Steps first to first + size of a block of channels, after a SiLU; each input is read once. */
INLINE void convolve_steps(
    const convolution *s, const int64_t width, const int64_t count, int64_t b, int64_t c, int64_t first, int64_t size, float *y
) {
    const float *start = s->x + b * s->sx.batch + c * s->sx.channel;
    vec weight[MAX_WIDTH], x[MAX_WIDTH], bias = load(s->bias + c, count), sum[CONVOLVED];
    for (int64_t j = 0; j < width; j++) {
        int64_t from = first - width + j;
        int64_t t = s->is_reverse ? s->length - 1 - from : from;
        weight[j] = load(s->weight + j * s->dim + c, count);
        x[j] = from < 0 ? fill(0) : load_strided(start + t * s->sx.time, s->sx.channel, count);
    }
    for (int64_t i = 0; i < size; i++) {
        int64_t t = s->is_reverse ? s->length - 1 - first - i : first + i;
        UNROLL for (int64_t j = 0; j < width - 1; j++) x[j] = x[j + 1];
        x[width - 1] = load_strided(start + t * s->sx.time, s->sx.channel, count);
        sum[i] = bias;
        UNROLL for (int64_t j = 0; j < width; j++) sum[i] += weight[j] * x[j];
    }
    for (int64_t i = 0; i < size; i++) {
        int64_t t = s->is_reverse ? s->length - 1 - first - i : first + i;
        store(y + (b * s->length + t) * s->dim + c, sum[i] * sigmoid(sum[i]), count);
    }
}

/* y: (batch, time, D), after a SiLU. */
int32_t convolution_forward(const convolution *s, float *y, int32_t threads) {
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t first = 0; first < s->length; first += CONVOLVED)
            for (int64_t c = 0; c < s->dim; c += LANES) {
                int64_t count = s->dim - c, size = MIN(CONVOLVED, s->length - first);
                if (s->width == 4 && count >= LANES)
                    convolve_steps(s, 4, LANES, b, c, first, size, y);
                else
                    convolve_steps(s, s->width, count, b, c, first, size, y);
            }
    return 0;
}

/* dx: (batch, time, D), zero before; dweight: (batch, width, D); dbias: (batch, D). */
int32_t convolution_backward(
    const convolution *s, const float *dy, const strides *sdy, float *dx, float *dweight, float *dbias, int32_t threads
) {
    int64_t blocks = (s->dim + LANES - 1) / LANES;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (int64_t b = 0; b < s->batch; b++)
        for (int64_t block = 0; block < blocks; block++) {
            int64_t c = block * LANES, count = s->dim - c;
            vec gweight[MAX_WIDTH], gbias = fill(0), bias = load(s->bias + c, count);
            for (int64_t j = 0; j < s->width; j++) gweight[j] = fill(0);
            for (int64_t i = 0; i < s->length; i++) {
                int64_t t = s->is_reverse ? s->length - 1 - i : i;
                vec sum = convolve(s, s->width, count, b, c, i, bias), gate = sigmoid(sum);
                vec g = load_strided(dy + b * sdy->batch + t * sdy->time + c * sdy->channel, sdy->channel, count);
                g *= gate * (1 + sum * (1 - gate));
                gbias += g;
                for (int64_t j = 0; j < s->width; j++) {
                    int64_t from = i - s->width + 1 + j;
                    if (from < 0) continue;
                    int64_t source = s->is_reverse ? s->length - 1 - from : from;
                    const float *at = s->x + b * s->sx.batch + source * s->sx.time + c * s->sx.channel;
                    float *gx = dx + (b * s->length + source) * s->dim + c;
                    gweight[j] += g * load_strided(at, s->sx.channel, count);
                    store(gx, load(gx, count) + g * load(s->weight + j * s->dim + c, count), count);
                }
            }
            for (int64_t j = 0; j < s->width; j++) store(dweight + (b * s->width + j) * s->dim + c, gweight[j], count);
            store(dbias + b * s->dim + c, gbias, count);
        }
    return 0;
}

/* ---------------------------------------------------------------------------------------------------------- StarReLU */

int32_t star_relu_forward(const float *x, float scale, float bias, int64_t count, float *y, int32_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < count; i++) {
        float positive = x[i] < 0 ? 0 : x[i]; /* what is no number stays none */
        y[i] = scale * positive * positive + bias;
    }
    return 0;
}

/* sums: the gradients of scale and bias. */
int32_t star_relu_backward(
    const float *x, const float *dy, float scale, int64_t count, float *dx, double *sums, int32_t threads
) {
    const int64_t part = 4096;
    double dscale = 0, dbias = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(+ : dscale, dbias)
    for (int64_t begin = 0; begin < count; begin += part) {
        vec s = fill(0), t = fill(0);
        for (int64_t i = begin; i < MIN(begin + part, count); i += LANES) {
            vec g = load(dy + i, count - i), positive = maximum(fill(0), load(x + i, count - i));
            s += g * positive * positive;
            t += g;
            store(dx + i, 2 * scale * g * positive, count - i);
        }
        dscale += total(s);
        dbias += total(t);
    }
    sums[0] = dscale;
    sums[1] = dbias;
    return 0;
}

/* ---------------------------------------------------------------------------------------------- depthwise convolution */

#define MAX_KERNEL 16

/* sum[j] += sum_w g(w) x(w + j - K / 2), for one row of a map. Columns near an edge have fewer neighbours. */
INLINE void row_products(
    const int64_t K, const float *x, const float *g, int64_t stride, int64_t width, int64_t count, vec *sum
) {
    int64_t reach = K / 2, begin = MIN(reach, width), end = width - reach > begin ? width - reach : begin;
    vec s[MAX_KERNEL];
    UNROLL for (int64_t j = 0; j < K; j++) s[j] = sum[j];
    for (int64_t w = begin; w < end; w++) {
        vec at = load(g + w * stride, count);
        UNROLL for (int64_t j = 0; j < K; j++) s[j] += at * load(x + (w + j - reach) * stride, count);
    }
    UNROLL for (int64_t j = 0; j < K; j++) sum[j] = s[j];
    for (int64_t w = 0; w < width; w++) {
        if (w == begin) w = end;
        if (w >= width) break;
        vec at = load(g + w * stride, count);
        for (int64_t j = 0; j < K; j++) {
            int64_t from = w + j - reach;
            if (from >= 0 && from < width) sum[j] += at * load(x + from * stride, count);
        }
    }
}

/* The gradient of the kernels of a depthwise convolution that keeps the map's size, and of its bias.
   x, dy: (batch, H, W, C). dweight: (batch, KH, KW, C). dbias: (batch, C). KH and KW are odd, KW is below MAX_KERNEL. */
int32_t depthwise_gradient(
    const float *x, const float *dy, int64_t batch, int64_t height, int64_t width, int64_t channels, int64_t rows,
    int64_t columns, float *dweight, float *dbias, int32_t threads
) {
    int64_t blocks = (channels + LANES - 1) / LANES;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (int64_t b = 0; b < batch; b++)
        for (int64_t block = 0; block < blocks; block++) {
            int64_t c = block * LANES, count = channels - c, line = width * channels;
            const float *map = x + b * height * line + c, *gradient = dy + b * height * line + c;
            vec bias = fill(0);
            for (int64_t p = 0; p < height * width; p++) bias += load(gradient + p * channels, count);
            store(dbias + b * channels + c, bias, count);
            for (int64_t i = 0; i < rows; i++) {
                vec sum[MAX_KERNEL] = {{0}};
                for (int64_t h = 0; h < height; h++) {
                    int64_t from = h + i - rows / 2;
                    if (from < 0 || from >= height) continue;
                    const float *in = map + from * line, *out = gradient + h * line;
#define CASE(k) \
    case k: \
        if (count >= LANES) \
            row_products(k, in, out, channels, width, LANES, sum); \
        else \
            row_products(k, in, out, channels, width, count, sum); \
        break;
                    switch (columns) { /* constant sizes, so that the sums stay in registers */
                        CASE(5) CASE(7) CASE(9)
                        default: row_products(columns, in, out, channels, width, count, sum);
                    }
#undef CASE
                }
                for (int64_t j = 0; j < columns; j++)
                    store(dweight + ((b * rows + i) * columns + j) * channels + c, sum[j], count);
            }
        }
    return 0;
}

/* ---------------------------------------------------------------------------------------------------------------- GELU */

/* The derivative of GELU, Phi(x) + x phi(x) with the normal distribution Phi and its density phi, within 3e-7; Phi after
   Abramowitz and Stegun, "Handbook of Mathematical Functions", 7.1.26, is p(t) e^(-x^2 / 2) below 0. The derivatives at x
   and -x add up to 1. What is no number stays none. The form for AVX-512 takes more steps than the other, and is kept so
   that results measured with it can be had again bit by bit. */
INLINE vec gelu_derivative(vec x) {
    vec size = (vec)((ivec)x & INT32_MAX);
#ifdef __AVX512F__
    vec z = size * 0.70710678118654752f, t = 1.0f / (0.3275911f * z + 1.0f);
    vec e = exp2_bounded(maximum(fill(-126.0f), -LOG2_E * z * z));
#else
    size = minimum(fill(13.0f), size); /* beyond, e is no more than 1e-36 */
    vec t = 1.0f / (0.23164190f * size + 1.0f), e = exp2_bounded(-0.5f * LOG2_E * size * size);
#endif
    vec p = 0.5f * 1.061405429f * t - 0.5f * 1.453152027f;
    p = p * t + 0.5f * 1.421413741f;
    p = p * t - 0.5f * 0.284496736f;
    p = p * t + 0.5f * 0.254829592f;
    ivec mask = x < 0;
#ifdef __AVX512F__
    vec tail = p * t * e, density = 0.39894228040143268f * e;
    return (vec)((mask & (ivec)tail) | (~mask & (ivec)(1.0f - tail))) + x * density;
#else
    vec below = (p * t - 0.39894228040143268f * size) * e;
    return (vec)((mask & (ivec)below) | (~mask & (ivec)(1.0f - below)));
#endif
}

INLINE void gelu_gradient(const float *x, const float *dy, float *dx, const int64_t count) {
    store(dx, load(dy, count) * gelu_derivative(load(x, count)), count);
}

int32_t gelu_backward(const float *x, const float *dy, int64_t count, float *dx, int32_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < count; i += LANES) {
        if (count - i >= LANES)
            gelu_gradient(x + i, dy + i, dx + i, LANES);
        else
            gelu_gradient(x + i, dy + i, dx + i, count - i);
    }
    return 0;
}

/* -------------------------------------------------------------------------------------------------- spectral filters */

/* Two blocks of channels make one complex map, z = x1 + i x2, so that one complex transform serves both. With K1 and K2
   their filters, Hermitian as those of real maps are,

       z'(k) = (K1 + K2)/2 z(k) + (K1 - K2)/2 conj z(-k)

   is the transform of the two filtered maps. The spectrum never leaves the cache: rows are transformed as they are read,
   then each pair of columns k and -k is transformed, filtered and transformed back, then rows are transformed back as
   they are written. */

#define MAX_RADIX 32
#define MAX_FILTERS 8

/* A length as a product n = first * second, both at most MAX_RADIX, with cos and sin of 2 pi m / n. */
typedef struct {
    int64_t n, first;
    const float *cosine, *sine;
} length_plan;

INLINE cvec plus(cvec a, cvec b) { return (cvec){a.re + b.re, a.im + b.im}; }
INLINE cvec minus(cvec a, cvec b) { return (cvec){a.re - b.re, a.im - b.im}; }
INLINE cvec times(cvec a, cvec b) { return (cvec){a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }
INLINE cvec conjugate(cvec a) { return (cvec){a.re, -a.im}; }

/* y_k = sum_j x_j exp(-+ 2 pi i j k / radix); sign is 1 forth and -1 back. Terms j and radix - j share their cosines. */
INLINE void dft(
    const int64_t radix, const length_plan *p, float sign, const cvec *x, int64_t xs, cvec *y, int64_t ys
) {
    const int64_t half = (radix - 1) / 2, step = p->n / radix;
    cvec even[MAX_RADIX / 2], odd[MAX_RADIX / 2], sum = x[0], alternating = x[0], middle = {fill(0), fill(0)};
    if (radix % 2 == 0) middle = x[radix / 2 * xs];
    for (int64_t j = 1; j <= half; j++) {
        even[j] = plus(x[j * xs], x[(radix - j) * xs]);
        odd[j] = minus(x[j * xs], x[(radix - j) * xs]);
        sum = plus(sum, even[j]);
        alternating = j % 2 ? minus(alternating, even[j]) : plus(alternating, even[j]);
    }
    for (int64_t k = 1; k <= half; k++) {
        cvec a = k % 2 ? minus(x[0], middle) : plus(x[0], middle), b = {fill(0), fill(0)};
        int64_t index = 0;
        for (int64_t j = 1; j <= half; j++) {
            index += k * step;
            if (index >= p->n) index -= p->n;
            float c = p->cosine[index], s = sign * p->sine[index];
            a.re += c * even[j].re;
            a.im += c * even[j].im;
            b.re += s * odd[j].re;
            b.im += s * odd[j].im;
        }
        y[k * ys] = (cvec){a.re + b.im, a.im - b.re};
        y[(radix - k) * ys] = (cvec){a.re - b.im, a.im + b.re};
    }
    y[0] = plus(sum, middle);
    if (radix % 2 == 0) y[radix / 2 * ys] = radix / 2 % 2 ? minus(alternating, middle) : plus(alternating, middle);
}

static void dft_any(int64_t radix, const length_plan *p, float sign, const cvec *x, int64_t xs, cvec *y, int64_t ys) {
#define CASE(r) \
    case r: \
        dft(r, p, sign, x, xs, y, ys); \
        break;
    switch (radix) { /* constant radices, so that the loops unroll */
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(16)
        default: dft(radix, p, sign, x, xs, y, ys);
    }
#undef CASE
}

/* Transform a line in place. work holds as many numbers as the line. */
static void transform(cvec *line, const length_plan *p, float sign, cvec *work) {
    int64_t n1 = p->first, n2 = p->n / n1;
    for (int64_t j = 0; j < n2; j++) {
        dft_any(n1, p, sign, line + j, n2, work + j, n2);
        for (int64_t k = 1; j && k < n1; k++) {
            cvec turn = {fill(p->cosine[j * k]), fill(-sign * p->sine[j * k])};
            work[k * n2 + j] = times(work[k * n2 + j], turn);
        }
    }
    for (int64_t k = 0; k < n1; k++) dft_any(n2, p, sign, work + k * n2, 1, line + k, n1);
}

/* Filters are given for the half spectrum. Dynamic: a basis (H, W / 2 + 1, N, 2) and coefficients (batch, N, C). Static:
   one for each channel, (H, W / 2 + 1, C, 2), or (H, W / 2 + 1, C) where it is real, and no coefficients. */
typedef struct {
    const float *x, *basis, *coefficients;
    length_plan rows, columns; /* along W, along H */
    int64_t batch, channels, filters;
    int32_t is_real;
} filter;

INLINE int64_t negative(int64_t k, int64_t n) { return k ? n - k : 0; }

static void read_rows(const filter *f, const float *x, int64_t b, int64_t c, cvec *map, cvec *work) {
    int64_t H = f->columns.n, W = f->rows.n, count = f->channels - c;
    for (int64_t h = 0; h < H; h++) {
        const float *row = x + (b * H + h) * W * f->channels + c;
        for (int64_t w = 0; w < W; w++) {
            const float *at = row + w * f->channels;
            map[h * W + w] = (cvec){load(at, count), count > LANES ? load(at + LANES, count - LANES) : fill(0)};
        }
        transform(map + h * W, &f->rows, 1, work);
    }
}

static void write_rows(const filter *f, float *y, int64_t b, int64_t c, cvec *map, cvec *work) {
    int64_t H = f->columns.n, W = f->rows.n, count = f->channels - c;
    for (int64_t h = 0; h < H; h++) {
        transform(map + h * W, &f->rows, -1, work);
        float *row = y + (b * H + h) * W * f->channels + c;
        for (int64_t w = 0; w < W; w++) {
            float *at = row + w * f->channels;
            store(at, map[h * W + w].re, count);
            if (count > LANES) store(at + LANES, map[h * W + w].im, count - LANES);
        }
    }
}

static void read_column(const filter *f, const cvec *map, int64_t w, cvec *column, cvec *work) {
    for (int64_t h = 0; h < f->columns.n; h++) column[h] = map[h * f->rows.n + w];
    transform(column, &f->columns, 1, work);
}

static void write_column(const filter *f, cvec *map, int64_t w, cvec *column, cvec *work) {
    transform(column, &f->columns, -1, work);
    for (int64_t h = 0; h < f->columns.n; h++) map[h * f->rows.n + w] = column[h];
}

/* Half the sum and half the difference of the coefficients of the two blocks, for each filter of the basis. */
typedef struct {
    vec sum[MAX_FILTERS], difference[MAX_FILTERS];
} mixture;

INLINE vec second(const float *p, int64_t count) { return count > LANES ? load(p + LANES, count - LANES) : fill(0); }

INLINE mixture read_mixture(const filter *f, int64_t b, int64_t c) {
    mixture m;
    for (int64_t n = 0; f->coefficients && n < f->filters; n++) {
        const float *at = f->coefficients + (b * f->filters + n) * f->channels + c;
        vec s1 = load(at, f->channels - c), s2 = second(at, f->channels - c);
        m.sum[n] = 0.5f * (s1 + s2);
        m.difference[n] = 0.5f * (s1 - s2);
    }
    return m;
}

/* The static filters of count channels from c on, at a place of the half spectrum. */
INLINE cvec static_at(const filter *f, int64_t c, int64_t count, int64_t at) {
    cvec K = {fill(0), fill(0)};
    if (count <= 0) return K;
    if (f->is_real) return (cvec){load(f->basis + at * f->channels + c, count), fill(0)};
    const float *p = f->basis + (at * f->channels + c) * 2;
    if (count >= LANES)
        for (int64_t i = 0; i < LANES; i++) K.re[i] = p[2 * i], K.im[i] = p[2 * i + 1];
    else
        for (int64_t i = 0; i < count; i++) K.re[i] = p[2 * i], K.im[i] = p[2 * i + 1];
    return K;
}

/* (K1 + K2)/2 and (K1 - K2)/2 at row h, column w of the half spectrum. */
INLINE void kernel_at(const filter *f, const mixture *m, int64_t c, int64_t h, int64_t w, cvec *mean, cvec *half) {
    int64_t at = h * (f->rows.n / 2 + 1) + w, count = f->channels - c;
    *mean = *half = (cvec){fill(0), fill(0)};
    if (f->coefficients) {
        for (int64_t n = 0; n < f->filters; n++) {
            const float *K = f->basis + (at * f->filters + n) * 2;
            mean->re += m->sum[n] * K[0];
            mean->im += m->sum[n] * K[1];
            half->re += m->difference[n] * K[0];
            half->im += m->difference[n] * K[1];
        }
        return;
    }
    cvec K1 = static_at(f, c, count, at), K2 = static_at(f, c + LANES, count - LANES, at);
    *mean = (cvec){0.5f * (K1.re + K2.re), 0.5f * (K1.im + K2.im)};
    *half = (cvec){0.5f * (K1.re - K2.re), 0.5f * (K1.im - K2.im)};
}

/* The same with the factor 1 / (H W) of the way back, and Hermitian in the columns that are their own negatives: a real
   transform takes the real part there. */
INLINE void scaled_kernel_at(
    const filter *f, const mixture *m, int64_t c, int64_t h, int64_t w, cvec *mean, cvec *half
) {
    float scale = 1.0f / (f->columns.n * f->rows.n);
    kernel_at(f, m, c, h, w, mean, half);
    if (negative(w, f->rows.n) == w) {
        cvec other, other_half;
        kernel_at(f, m, c, negative(h, f->columns.n), w, &other, &other_half);
        *mean = plus(*mean, conjugate(other));
        *half = plus(*half, conjugate(other_half));
        scale *= 0.5f;
    }
    *mean = (cvec){scale * mean->re, scale * mean->im};
    *half = (cvec){scale * half->re, scale * half->im};
}

/* Filter the columns w and -w, which are one and the same at w = 0 and w = W / 2. */
static void filter_columns(
    const filter *f, const mixture *m, int64_t c, int64_t w, int is_adjoint, cvec *column, cvec *mirrored
) {
    int64_t H = f->columns.n;
    for (int64_t h = 0; h < H; h++) {
        int64_t opposite = negative(h, H);
        if (column == mirrored && opposite < h) continue;
        cvec mean, half, z = column[h], mirror = conjugate(mirrored[opposite]);
        scaled_kernel_at(f, m, c, h, w, &mean, &half);
        if (is_adjoint) {
            mean.im = -mean.im;
            half.im = -half.im;
        }
        column[h] = plus(times(mean, z), times(half, mirror));
        if (column != mirrored || opposite != h)
            mirrored[opposite] = conjugate(plus(times(mean, mirror), times(half, z)));
    }
}

/* y: as x, (batch, H, W, C), and may be x. */
int32_t filter_forward(const filter *f, float *y, int32_t is_adjoint, int32_t threads) {
    int64_t H = f->columns.n, W = f->rows.n, blocks = (f->channels + 2 * LANES - 1) / (2 * LANES);
    int64_t longest = H > W ? H : W;
    int32_t failed = 0;
#pragma omp parallel num_threads(threads)
    {
        cvec *map = aligned_alloc(sizeof(vec), (H * W + 2 * H + longest) * sizeof(cvec));
        cvec *column = map + H * W, *other = column + H, *work = other + H;
        if (!map) failed = 1;
#pragma omp for collapse(2) schedule(static)
        for (int64_t b = 0; b < f->batch; b++)
            for (int64_t block = 0; block < blocks; block++) {
                if (!map) continue;
                int64_t c = block * 2 * LANES;
                mixture m = read_mixture(f, b, c);
                read_rows(f, f->x, b, c, map, work);
                for (int64_t w = 0; w <= W / 2; w++) {
                    cvec *mirrored = negative(w, W) == w ? column : other;
                    read_column(f, map, w, column, work);
                    if (mirrored == other) read_column(f, map, W - w, other, work);
                    filter_columns(f, &m, c, w, is_adjoint, column, mirrored);
                    write_column(f, map, w, column, work);
                    if (mirrored == other) write_column(f, map, W - w, other, work);
                }
                write_rows(f, y, b, c, map, work);
            }
        free(map);
    }
    return failed;
}

/* The product X conj(G) of the spectra of x and of the gradient, for both blocks, at row h of a column. */
INLINE void cross_spectrum(
    const cvec *x, const cvec *x_mirrored, const cvec *g, const cvec *g_mirrored, int64_t h, int64_t opposite,
    cvec *first, cvec *other
) {
    cvec a = x[h], b = conjugate(x_mirrored[opposite]), c = g[h], d = conjugate(g_mirrored[opposite]);
    *first = times(plus(a, b), conjugate(plus(c, d)));   /* 4 X1 conj G1 */
    *other = times(minus(a, b), conjugate(minus(c, d))); /* 4 X2 conj G2: the factors -i of both cancel */
}

/* Gradients of x, as x; of the basis: static (2, H, W / 2 + 1, C), or without the second plane where it is real, dynamic
   (threads, H, W / 2 + 1, N, 2), to be summed over threads; of the coefficients, as the coefficients. All but that of x
   still lack the factor 1 / (H W). */
int32_t filter_backward(
    const filter *f, const float *dy, float *dx, float *dbasis, float *dcoefficients, int32_t threads
) {
    int64_t H = f->columns.n, W = f->rows.n, half = W / 2 + 1, plane = H * half;
    int64_t blocks = (f->channels + 2 * LANES - 1) / (2 * LANES), longest = H > W ? H : W;
    int64_t samples = f->coefficients ? f->batch : 1; /* samples share static filters: one thread takes them all */
    int32_t failed = 0;
#pragma omp parallel num_threads(threads)
    {
        cvec *map = aligned_alloc(sizeof(vec), (2 * H * W + 4 * H + longest) * sizeof(cvec));
        cvec *gmap = map + H * W, *x1 = gmap + H * W, *x2 = x1 + H, *g1 = x2 + H, *g2 = g1 + H, *work = g2 + H;
        if (!map) failed = 1;
        float *own = dbasis + (f->coefficients ? omp_get_thread_num() * plane * f->filters * 2 : 0);
#pragma omp for collapse(2) schedule(static)
        for (int64_t sample = 0; sample < samples; sample++)
            for (int64_t block = 0; block < blocks; block++) {
                if (!map) continue;
                int64_t c = block * 2 * LANES, count = f->channels - c;
                for (int64_t b = sample; b < (f->coefficients ? sample + 1 : f->batch); b++) {
                    mixture m = read_mixture(f, b, c);
                    vec gs1[MAX_FILTERS], gs2[MAX_FILTERS];
                    for (int64_t n = 0; n < MAX_FILTERS; n++) gs1[n] = gs2[n] = fill(0);
                    read_rows(f, f->x, b, c, map, work);
                    read_rows(f, dy, b, c, gmap, work);
                    for (int64_t w = 0; w < half; w++) {
                        int is_own = negative(w, W) == w;
                        cvec *xm = is_own ? x1 : x2, *gm = is_own ? g1 : g2;
                        read_column(f, map, w, x1, work);
                        read_column(f, gmap, w, g1, work);
                        if (!is_own) {
                            read_column(f, map, W - w, x2, work);
                            read_column(f, gmap, W - w, g2, work);
                        }
                        float weight = is_own ? 0.25f : 0.5f; /* interior columns stand for their negatives too */
                        for (int64_t h = 0; h < H; h++) {
                            cvec M1, M2;
                            int64_t at = h * half + w;
                            cross_spectrum(x1, xm, g1, gm, h, negative(h, H), &M1, &M2);
                            M1 = (cvec){weight * M1.re, weight * M1.im};
                            M2 = (cvec){weight * M2.re, weight * M2.im};
                            if (!f->coefficients) {
                                float *re = dbasis + at * f->channels + c, *im = re + plane * f->channels;
                                store(re, load(re, count) + M1.re, count);
                                if (count > LANES) store(re + LANES, second(re, count) + M2.re, count - LANES);
                                if (f->is_real) continue;
                                store(im, load(im, count) - M1.im, count);
                                if (count > LANES) store(im + LANES, second(im, count) - M2.im, count - LANES);
                                continue;
                            }
                            for (int64_t n = 0; n < f->filters; n++) {
                                const float *K = f->basis + (at * f->filters + n) * 2;
                                float *gK = own + (at * f->filters + n) * 2;
                                vec s1 = m.sum[n] + m.difference[n], s2 = m.sum[n] - m.difference[n];
                                gK[0] += total(s1 * M1.re + s2 * M2.re);
                                gK[1] -= total(s1 * M1.im + s2 * M2.im);
                                gs1[n] += K[0] * M1.re - K[1] * M1.im;
                                gs2[n] += K[0] * M2.re - K[1] * M2.im;
                            }
                        }
                        filter_columns(f, &m, c, w, 1, g1, gm);
                        write_column(f, gmap, w, g1, work);
                        if (!is_own) write_column(f, gmap, W - w, g2, work);
                    }
                    write_rows(f, dx, b, c, gmap, work);
                    for (int64_t n = 0; f->coefficients && n < f->filters; n++) {
                        float *at = dcoefficients + (b * f->filters + n) * f->channels + c;
                        store(at, gs1[n], count);
                        if (count > LANES) store(at + LANES, gs2[n], count - LANES);
                    }
                }
            }
        free(map);
    }
    return failed;
}
