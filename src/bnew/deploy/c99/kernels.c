/* The kernels of a network that bnew exports as C99, for microcontrollers. `bnew export --format c` writes
 * the parts that a network needs into its file: a part stands between `#ifdef NEEDS_...` and its `#endif`.
 *
 * A number is a float or, with --fixed, 16-bit fixed point: NEEDS_FLOAT and NEEDS_FIXED are the two
 * arithmetics, of which a file has one. Floats are what the scalar kernels of bnew's engine compute, to the
 * last bit: every product that is added to something is a fused multiply-add, and sums have the same order.
 *
 * Each function computes one row of a result. Values lie as rows, columns, channels; the bits of a pixel fill
 * whole words, from bit 0 on. A value whose `rows` are fewer than its height is a ring: row y lies where row
 * y - rows was. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#ifdef __ARM_FEATURE_SIMD32
#include <arm_acle.h>
#endif

typedef char needs_an_int_of_32_bits[sizeof(int) >= 4 ? 1 : -1];

struct real;
struct bits;

enum activation { NONE, PRELU, CLAMP, SIGN, HARD_SIGMOID, HARD_SWISH, ABS, ROUND };

/* ------------------------------------------------------------------------------------------------- floats */

#ifdef NEEDS_FLOAT
#ifdef __FAST_MATH__
#error "compile without -ffast-math: it changes the results"
#endif
/* Products and sums are fused where the code says so and nowhere else. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

typedef float number, weight, accumulator, count;

#if defined(__FP_FAST_FMAF) || defined(__FMA__) || defined(__ARM_FEATURE_FMA) || defined(__riscv_flen)
/* a b + c, rounded once: an instruction. */
static inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#else
/* The same where there is none, in double precision. */
static inline float fused_in_double(float a, float b, float c) {
    const double product = (double)a * b; /* exact */
    double sum = product + c;
    uint64_t word;
    memcpy(&word, &sum, sizeof word);
    /* Rounding twice is rounding once, unless the first one ends between two floats, or below normal ones. */
    if ((word & 0x1fffffff) == 0x10000000 || (word >> 52 & 0x7ff) < 1023 - 126) {
        const double rest = sum - product;
        const double error = (product - (sum - rest)) + (c - rest); /* exact: Knuth's */
        if ((error > 0 || error < 0) && (word & 1) == 0) {          /* to odd, which tells the second one */
            word += (error > 0) == (sum > 0) ? 1 : (uint64_t)-1;
            memcpy(&sum, &word, sizeof sum);
        }
    }
    return (float)sum;
}

#if defined(__SOFTFP__) || (defined(__riscv) && !defined(__riscv_flen))
/* v / 2^n, whose lowest bit tells whether something was lost. */
static uint64_t halved(uint64_t v, int n) {
    if (n == 0) return v;
    return n > 63 ? v != 0 : v >> n | (v << (64 - n) != 0);
}

/* The same without a floating-point unit, by whole numbers: three times as fast. */
static inline float fused(float a, float b, float c) {
    uint32_t x, y, z;
    memcpy(&x, &a, sizeof x);
    memcpy(&y, &b, sizeof y);
    memcpy(&z, &c, sizeof z);
    const int ex = x >> 23 & 255, ey = y >> 23 & 255, ez = z >> 23 & 255;
    if ((unsigned)(ex - 1) < 254 && (unsigned)(ey - 1) < 254 &&
        ((unsigned)(ez - 1) < 254 || z << 1 == 0)) { /* normal, or c = 0 */
        /* a b = p 2^e and c = q 2^f, with bits to spare below and one above. */
        uint64_t p = (uint64_t)((x & 0x7fffff) | 0x800000) * ((y & 0x7fffff) | 0x800000) << 14;
        uint64_t q = z << 1 ? (uint64_t)((z & 0x7fffff) | 0x800000) << 38 : 0;
        int e = ex + ey - 314;
        const int f = q ? ez - 188 : e;
        uint32_t sign = (x ^ y) & 0x80000000;
        if (e > f) {
            q = halved(q, e - f);
        } else {
            p = halved(p, f - e);
            e = f;
        }
        if (sign == (z & 0x80000000)) {
            p += q;
        } else if (p >= q) {
            p -= q;
        } else {
            p = q - p;
            sign ^= 0x80000000;
        }
        if (p == 0) return 0;
        const int zeros = __builtin_clzll(p);
        p <<= zeros;
        e += 190 - zeros; /* the exponent of a float whose 24 bits are the highest of p */
        if (e > 0 && e < 255) {
            const uint64_t rest = p & 0xffffffffff;
            uint32_t word = (uint32_t)(p >> 40);
            const int up = rest > 0x8000000000 || (rest == 0x8000000000 && word & 1);
            word = (word & 0x7fffff) + ((uint32_t)e << 23) + up;
            word |= sign;
            memcpy(&a, &word, sizeof a);
            return a;
        }
    } else if ((x << 1 == 0 && ey < 255) || (y << 1 == 0 && ex < 255)) { /* a b = 0 */
        if (z << 1 == 0) z &= x ^ y;                                     /* -0 if both are */
        memcpy(&c, &z, sizeof c);
        return c;
    }
    return fused_in_double(a, b, c);
}
#else
static inline float fused(float a, float b, float c) { return fused_in_double(a, b, c); }
#endif
#endif

/* What happens to the numbers v of a pixel, in this order. What is NULL or NONE is left out. */
struct epilogue {
    const float *scale, *shift; /* v = v scale + shift */
    const struct real* other;   /* v = v + other, or v other; channel c meets channel c mod other->channels */
    int multiply;               /* by other, instead of adding it */
    enum activation activation;
    const float* slope;                 /* of PRELU */
    float low, high;                    /* of CLAMP */
    const float *scale_out, *shift_out; /* v = v scale_out + shift_out, or v + shift_out */
    const struct real* result;
    const float *sign_scale, *sign_shift; /* bit = v sign_scale + sign_shift >= 0, or v >= sign_shift */
    const struct bits* signs;
    float* scratch;      /* the numbers of a pixel */
    int channels, width; /* of the result */
};

/* An image of bytes, normalised: the number of byte b is b scale + shift. */
struct image {
    const float *scale, *shift;
    const struct real* result;
};

static inline float normalised(const struct image* s, int c, uint8_t byte) {
    return fused(byte, s->scale[c], s->shift[c]);
}

static inline float scaled(const struct epilogue* e, int c, float v) {
    return fused(v, e->scale[c], e->shift[c]);
}

static inline float added(const struct epilogue* e, float v, float other) {
    (void)e;
    return v + other;
}

static inline float multiplied(const struct epilogue* e, float v, float other) {
    (void)e;
    return v * other;
}

static inline float sloped(const struct epilogue* e, int c, float v) { return v * e->slope[c]; }

static inline float hard_sigmoid(const struct epilogue* e, float v) {
    (void)e;
    v = fused(v, 1.0f / 6, 0.5f);
    v = v > 0 ? v : 0;
    return v < 1 ? v : 1;
}

static inline float activated(const struct epilogue* e, float v) {
    switch (e->activation) {
        case NONE:
        case PRELU: break;
        case CLAMP: v = v > e->low ? v : e->low; return v < e->high ? v : e->high;
        case SIGN: return v >= 0 ? 1.0f : -1.0f;
        case HARD_SIGMOID: return hard_sigmoid(e, v);
        case HARD_SWISH: return v * hard_sigmoid(e, v);
        case ABS: return (-v > v ? -v : v) + 0.0f;
        case ROUND: { /* of two whole numbers to the even one; from 2^23 on, all floats are whole */
            const float size = v < 0 ? -v : v, whole = size + 8388608.0f - 8388608.0f;
            return size >= 8388608.0f ? v : v >= 0 ? whole : -whole;
        }
    }
    return v;
}

static void scale_out(const struct epilogue* e) {
    float* const v = e->scratch;
    int c;
    if (e->scale_out) {
        for (c = 0; c < e->channels; ++c) v[c] = fused(v[c], e->scale_out[c], e->shift_out[c]);
    } else if (e->shift_out) {
        for (c = 0; c < e->channels; ++c) v[c] += e->shift_out[c];
    }
}

static inline int is_set(const struct epilogue* e, int c, float v) {
    return e->sign_scale ? fused(v, e->sign_scale[c], e->sign_shift[c]) >= 0 : v >= e->sign_shift[c];
}
#endif /* NEEDS_FLOAT */

/* -------------------------------------------------------------------------------------------- fixed point */

#ifdef NEEDS_FIXED
/* A value has an exponent e, and its number q of 16 bits stands for q 2^-e. What is larger than such a number
 * can be becomes the largest. Right shifts of negative numbers are arithmetic, as in all compilers. */
typedef int16_t number, weight;
typedef int32_t accumulator, count;

static inline int32_t held(int32_t v) { return v > 32767 ? 32767 : v < -32768 ? -32768 : v; }

/* v / 2^by, rounded to the nearest number, and up where two are. */
static inline int32_t rounded(int32_t v, int by) { return (v + ((1 << by) >> 1)) >> by; }

/* v times / 2^by + add. |times| is below 2^15, and by is at most 30. */
struct affine {
    int32_t add;
    int16_t times;
    uint8_t by;
};

static inline int32_t applied(const struct affine* a, int32_t v) {
    return held(rounded(v * a->times, a->by) + a->add);
}

/* As with floats; what is NULL or NONE is left out. Numbers v have one exponent from `other` to `activation`;
 * by `multiply` and by `scale_out` they get another one. */
struct epilogue {
    const struct affine* sums;  /* of a convolution of numbers: what its sums become */
    const struct affine* scale; /* of other operators */
    const struct real* other;   /* v = v + other other_times / 2^other_by, or v other / 2^other_by */
    int multiply;
    int32_t other_times;
    int other_by;
    enum activation activation;
    const struct affine* slope;
    int32_t low, high;
    struct affine sixth; /* v / 6 + 1/2 */
    int exponent;        /* 2^exponent is 1 in an activation */
    const struct affine* scale_out;
    const struct real* result;
    const int8_t* sign_scale; /* bit = v sign_scale >= sign_shift, or v >= sign_shift */
    const int32_t* sign_shift;
    const struct bits* signs;
    int32_t* scratch;
    int channels, width;
};

struct image {
    const struct affine* scale;
    const struct real* result;
};

static inline int32_t normalised(const struct image* s, int c, uint8_t byte) {
    return applied(&s->scale[c], byte);
}

static inline int32_t scaled(const struct epilogue* e, int c, int32_t v) { return applied(&e->scale[c], v); }

static inline int32_t added(const struct epilogue* e, int32_t v, int32_t other) {
    return held(v + rounded(other * e->other_times, e->other_by));
}

static inline int32_t multiplied(const struct epilogue* e, int32_t v, int32_t other) {
    return held(rounded(v * other, e->other_by));
}

static inline int32_t sloped(const struct epilogue* e, int c, int32_t v) { return applied(&e->slope[c], v); }

static inline int32_t activated(const struct epilogue* e, int32_t v) {
    const int32_t one = (int32_t)1 << e->exponent;
    int32_t s;
    switch (e->activation) {
        case NONE:
        case PRELU: break;
        case CLAMP: v = v > e->low ? v : e->low; return v < e->high ? v : e->high;
        case SIGN: return v >= 0 ? one : -one;
        case HARD_SIGMOID:
        case HARD_SWISH:
            s = applied(&e->sixth, v);
            s = s < 0 ? 0 : s < one ? s : one;
            return e->activation == HARD_SIGMOID ? s : rounded(v * s, e->exponent);
        case ABS: return held(v < 0 ? -v : v);
        case ROUND: /* up from a half on, but from an even number beyond it */
            s = v >> e->exponent;
            return held((s + (2 * (v - s * one) + (s & 1) > one)) * one);
    }
    return v;
}

static void scale_out(const struct epilogue* e) {
    int c;
    if (!e->scale_out) return;
    for (c = 0; c < e->channels; ++c) e->scratch[c] = applied(&e->scale_out[c], e->scratch[c]);
}

static inline int is_set(const struct epilogue* e, int c, int32_t v) {
    return (e->sign_scale ? e->sign_scale[c] * v : v) >= e->sign_shift[c];
}
#endif /* NEEDS_FIXED */

/* ------------------------------------------------------------------------------------------------- values */

struct real {
    number* data;
    int rows, width, channels;
};

struct bits {
    uint32_t* data;
    int rows, width, channels;
};

static inline number* pixel(const struct real* v, int y, int x) {
    if (y >= v->rows) y %= v->rows;
    return v->data + ((ptrdiff_t)y * v->width + x) * v->channels;
}

static inline uint32_t* pixel_bits(const struct bits* v, int y, int x) {
    if (y >= v->rows) y %= v->rows;
    return v->data + ((ptrdiff_t)y * v->width + x) * ((v->channels + 31) / 32);
}

/* Takes the numbers in e->scratch to the result's pixel (y, x). */
static void finish(const struct epilogue* e, int y, int x) {
    const int n = e->channels;
    accumulator* const v = e->scratch;
    int c;
    if (e->scale)
        for (c = 0; c < n; ++c) v[c] = scaled(e, c, v[c]);
    if (e->other) {
        const struct real* o = e->other;
        const number* from = pixel(o, y, o->width == 1 ? 0 : x); /* of a 1 x 1 value: always the same */
        int k = 0;
        for (c = 0; c < n; ++c) {
            v[c] = e->multiply ? multiplied(e, v[c], from[k]) : added(e, v[c], from[k]);
            if (++k == o->channels) k = 0;
        }
    }
    if (e->activation == PRELU) {
        for (c = 0; c < n; ++c) v[c] = v[c] >= 0 ? v[c] : sloped(e, c, v[c]);
    } else if (e->activation != NONE) {
        for (c = 0; c < n; ++c) v[c] = activated(e, v[c]);
    }
    scale_out(e);
    if (e->result) {
        number* const to = pixel(e->result, y, x);
        for (c = 0; c < n; ++c) to[c] = (number)v[c];
    }
    if (e->signs) {
        uint32_t* to = pixel_bits(e->signs, y, x);
        uint32_t word = 0;
        for (c = 0; c < n; ++c) {
            word |= (uint32_t)is_set(e, c, v[c]) << c % 32;
            if (c % 32 == 31 || c == n - 1) {
                *to++ = word;
                word = 0;
            }
        }
    }
}

/* ---------------------------------------------------------------------------------------------- operators */

static void image_row(const struct image* s, const uint8_t* image, int y) {
    const int channels = s->result->channels, count = s->result->width * channels;
    const uint8_t* from = image + (ptrdiff_t)y * count;
    number* to = pixel(s->result, y, 0);
    int i, c = 0;
    for (i = 0; i < count; ++i) {
        to[i] = (number)normalised(s, c, from[i]);
        if (++c == channels) c = 0;
    }
}

/* A window that slides over an image of `height` rows. Its taps in the padding add nothing. */
struct window {
    int height;
    int kernel_y, kernel_x, stride_y, stride_x, dilation_y, dilation_x, top, left;
};

#ifdef NEEDS_CONV
#ifdef NEEDS_FLOAT
typedef float total_sum;

static inline float dot(const float* x, const float* weights, int n) {
    float sum = 0;
    for (; n >= 4; n -= 4, x += 4, weights += 4) {
        sum = fused(x[0], weights[0], sum);
        sum = fused(x[1], weights[1], sum);
        sum = fused(x[2], weights[2], sum);
        sum = fused(x[3], weights[3], sum);
    }
    for (; n > 0; --n) sum = fused(*x++, *weights++, sum);
    return sum;
}

/* The same for four output channels at once, which read each number together. */
static inline void dot_of_four(const float* x, const float* weights, int n, float* sums) {
    const float *a = weights, *b = a + n, *c = b + n, *d = c + n;
    float of_a = 0, of_b = 0, of_c = 0, of_d = 0;
    for (; n > 0; --n, ++x) {
        of_a = fused(*x, *a++, of_a);
        of_b = fused(*x, *b++, of_b);
        of_c = fused(*x, *c++, of_c);
        of_d = fused(*x, *d++, of_d);
    }
    sums[0] = of_a, sums[1] = of_b, sums[2] = of_c, sums[3] = of_d;
}

static inline float from_sum(const struct epilogue* e, int c, float sum) {
    (void)e, (void)c;
    return sum;
}
#endif /* NEEDS_FLOAT */

#ifdef NEEDS_FIXED
typedef int64_t total_sum;

/* sum + x[0] weights[0] + x[1] weights[1] */
static inline int32_t two_products(const int16_t* x, const int16_t* weights, int32_t sum) {
#ifdef __ARM_FEATURE_SIMD32
    int16x2_t a, b;
    memcpy(&a, x, sizeof a);
    memcpy(&b, weights, sizeof b);
    return __smlad(a, b, sum);
#else
    return sum + x[0] * weights[0] + x[1] * weights[1];
#endif
}

/* In 128 weights in a row, the sizes add up to 65535 at most: the products of any of these fit 32 bits. */
static inline int64_t dot(const int16_t* x, const int16_t* weights, int n) {
    int64_t sum = 0;
    for (; n > 0; n -= 128) {
        const int16_t* const end = x + (n < 128 ? n / 2 * 2 : 128);
        int32_t part = 0;
        for (; x < end; x += 2, weights += 2) part = two_products(x, weights, part);
        if (n < 128 && n % 2) part += *x * *weights;
        sum += part;
    }
    return sum;
}

/* The same for four output channels at once, which read each number together. */
static inline void dot_of_four(const int16_t* x, const int16_t* weights, int n, int64_t* sums) {
    const int16_t *a = weights, *b = a + n, *c = b + n, *d = c + n;
    sums[0] = sums[1] = sums[2] = sums[3] = 0;
    for (; n > 0; n -= 128) {
        const int16_t* const end = x + (n < 128 ? n / 2 * 2 : 128);
        int32_t of_a = 0, of_b = 0, of_c = 0, of_d = 0;
        for (; x < end; x += 2, a += 2, b += 2, c += 2, d += 2) {
            of_a = two_products(x, a, of_a);
            of_b = two_products(x, b, of_b);
            of_c = two_products(x, c, of_c);
            of_d = two_products(x, d, of_d);
        }
        if (n < 128 && n % 2) of_a += *x * *a, of_b += *x * *b, of_c += *x * *c, of_d += *x * *d;
        sums[0] += of_a, sums[1] += of_b, sums[2] += of_c, sums[3] += of_d;
    }
}

/* As `applied`, of large sums: (v / 2^(by - 1) + 1) / 2 rounds too, and without a shift for the half. */
static inline int32_t from_sum(const struct epilogue* e, int c, int64_t sum) {
    const struct affine* a = &e->sums[c];
    const int64_t v = (((2 * sum * a->times >> a->by) + 1) >> 1) + a->add;
    return v > 32767 ? 32767 : v < -32768 ? -32768 : (int32_t)v;
}
#endif /* NEEDS_FIXED */

/* Weights: output channels, rows, columns, input channels of the group. */
struct conv {
    struct window window;
    int groups;
    const struct real* in;
    const weight* weights;
    number* numbers; /* scratch: a window of a group; NULL if it is one place that is always inside */
    struct epilogue end;
};

/* The numbers of a window, one place after the other; those in the padding are 0, as in bnew's engine. */
static const number* numbers_of(const struct conv* s, int group, int first_y, int first_x) {
    const struct window* w = &s->window;
    const int channels = s->in->channels / s->groups;
    number* to = s->numbers;
    int ky, kx, c, pieces = w->kernel_x, length = channels;
    if (!to) return pixel(s->in, first_y, first_x) + group * channels;
    if (s->groups == 1 && w->dilation_x == 1 && first_x >= 0 && first_x + w->kernel_x <= s->in->width) {
        pieces = 1; /* a row lies close together */
        length = w->kernel_x * channels;
    }
    for (ky = 0; ky < w->kernel_y; ++ky) {
        const int y = first_y + ky * w->dilation_y;
        const number* row = y >= 0 && y < w->height ? pixel(s->in, y, 0) + group * channels : NULL;
        for (kx = 0; kx < pieces; ++kx) {
            const int x = first_x + kx * w->dilation_x;
            const number* from = row && x >= 0 && x < s->in->width ? row + x * s->in->channels : NULL;
            if (from)
                for (c = 0; c < length; ++c) *to++ = from[c];
            else
                for (c = 0; c < length; ++c) *to++ = 0;
        }
    }
    return s->numbers;
}

static void conv_row(const struct conv* s, int y) {
    const struct window* w = &s->window;
    const int per_group = s->end.channels / s->groups;
    const int size = w->kernel_y * w->kernel_x * (s->in->channels / s->groups);
    int x, group, o, k;
    for (x = 0; x < s->end.width; ++x) {
        const weight* weights = s->weights;
        accumulator* to = s->end.scratch;
        for (group = 0; group < s->groups; ++group) {
            const number* in = numbers_of(s, group, y * w->stride_y - w->top, x * w->stride_x - w->left);
            const int last = (group + 1) * per_group;
            total_sum sums[4];
            for (o = group * per_group; o + 4 <= last; o += 4, weights += 4 * size) {
                dot_of_four(in, weights, size, sums);
                for (k = 0; k < 4; ++k) *to++ = from_sum(&s->end, o + k, sums[k]);
            }
            for (; o < last; ++o, weights += size) *to++ = from_sum(&s->end, o, dot(in, weights, size));
        }
        finish(&s->end, y, x);
    }
}
#endif /* NEEDS_CONV */

#ifdef NEEDS_BINARY_CONV
/* The number of set bits, in each byte of a word. */
#if defined(__POPCNT__) || defined(__riscv_zbb) || defined(__aarch64__)
#define set_bits(word) ((uint32_t)__builtin_popcount(word))
#define set_bits_of_three(a, b, c) (set_bits(a) + set_bits(b) + set_bits(c))
#define total(counts) ((int)(counts))
#else
static inline uint32_t nibbles(uint32_t v) {
    v -= v >> 1 & 0x55555555;
    return (v & 0x33333333) + (v >> 2 & 0x33333333);
}

static inline uint32_t bytes(uint32_t nibbles) {
    return (nibbles & 0x0f0f0f0f) + (nibbles >> 4 & 0x0f0f0f0f);
}

static inline uint32_t set_bits(uint32_t word) { return bytes(nibbles(word)); }

/* A full adder of 32 columns makes two words of three: ones, and twos. */
static inline uint32_t set_bits_of_three(uint32_t a, uint32_t b, uint32_t c) {
    const uint32_t either = a ^ b;
    return bytes(nibbles(either ^ c) + 2 * nibbles((a & b) | (either & c)));
}

static inline int total(uint32_t counts) {
    counts = (counts & 0x00ff00ff) + (counts >> 8 & 0x00ff00ff);
    return (int)((counts + (counts >> 16)) & 0xffff);
}
#endif

/* The number of bits that differ in n words; if `inside` is not NULL, of those that are set in it. A byte of
 * the sum is at most 24 after three words, so it holds ten times that. */
static int differing(const uint32_t* a, const uint32_t* b, const uint32_t* inside, int n) {
    int all = 0;
    while (n > 0) {
        const uint32_t* const last = a + (n < 30 ? n : 30);
        uint32_t sum = 0;
        for (; last - a >= 3; a += 3, b += 3) {
            uint32_t x = a[0] ^ b[0], y = a[1] ^ b[1], z = a[2] ^ b[2];
            if (inside) {
                x &= inside[0], y &= inside[1], z &= inside[2];
                inside += 3;
            }
            sum += set_bits_of_three(x, y, z);
        }
        for (; a < last; ++a, ++b) sum += set_bits((*a ^ *b) & (inside ? *inside++ : 0xffffffff));
        all += total(sum);
        n -= 30;
    }
    return all;
}

/* Weights: for each output channel, the bits of a window: rows, columns, input channels. */
struct binary_conv {
    struct window window;
    int pad_value; /* of the bits in the padding: 1, -1, or 0 if they add nothing */
    const struct bits* in;
    const uint32_t* weights;
    int words;        /* of an output channel */
    uint32_t* bits;   /* scratch: the bits of a window, and a word */
    uint32_t* inside; /* scratch: the same, set inside of the image */
    struct epilogue end;
};

/* Appends the lowest `count` bits of `bits` to those of `to`, which has *end. */
static inline void append(uint32_t* to, int* end, uint32_t bits, int count) {
    const int word = *end / 32, filled = *end % 32;
    if (filled == 0) {
        to[word] = bits;
    } else {
        to[word] |= bits << filled;
        if (filled + count > 32) to[word + 1] = bits >> (32 - filled);
    }
    *end += count;
}

/* Appends the bits of a pixel, or as many bits that all are `filling` if it is NULL. */
static void append_pixel(uint32_t* to, int* end, const uint32_t* pixel, int channels, int filling) {
    for (; channels > 0; channels -= 32) {
        const int count = channels < 32 ? channels : 32;
        const uint32_t ones = 0xffffffff >> (32 - count);
        append(to, end, pixel ? *pixel++ : filling ? ones : 0, count);
    }
}

/* Makes the bits of a window, one pixel after the other. Returns the number of pixels inside of the image. */
static int gather(const struct binary_conv* s, int first_y, int first_x) {
    const struct window* w = &s->window;
    int ky, kx, end = 0, count = 0;
    for (ky = 0; ky < w->kernel_y; ++ky) {
        const int y = first_y + ky * w->dilation_y;
        for (kx = 0; kx < w->kernel_x; ++kx) {
            const int x = first_x + kx * w->dilation_x;
            const int is_inside = y >= 0 && y < w->height && x >= 0 && x < s->in->width;
            append_pixel(s->bits, &end, is_inside ? pixel_bits(s->in, y, x) : NULL, s->in->channels,
                         s->pad_value > 0);
            count += is_inside;
        }
    }
    return count;
}

static void mark_inside(const struct binary_conv* s, int first_y, int first_x) {
    const struct window* w = &s->window;
    int ky, kx, end = 0;
    for (ky = 0; ky < w->kernel_y; ++ky) {
        const int y = first_y + ky * w->dilation_y;
        for (kx = 0; kx < w->kernel_x; ++kx) {
            const int x = first_x + kx * w->dilation_x;
            append_pixel(s->inside, &end, NULL, s->in->channels,
                         y >= 0 && y < w->height && x >= 0 && x < s->in->width);
        }
    }
}

static void binary_conv_row(const struct binary_conv* s, int y) {
    const struct window* w = &s->window;
    const int taps = w->kernel_y * w->kernel_x, first_y = y * w->stride_y - w->top;
    int x, o;
    for (x = 0; x < s->end.width; ++x) {
        const int first_x = x * w->stride_x - w->left;
        const int count = gather(s, first_y, first_x);
        /* Every place counts, or those inside of the image alone. */
        const int whole = count == taps || s->pad_value != 0;
        const int bits = (whole ? taps : count) * s->in->channels;
        const uint32_t* weights = s->weights;
        if (!whole) mark_inside(s, first_y, first_x);
        for (o = 0; o < s->end.channels; ++o, weights += s->words)
            s->end.scratch[o] =
                (accumulator)(bits - 2 * differing(s->bits, weights, whole ? NULL : s->inside, s->words));
        finish(&s->end, y, x);
    }
}
#endif /* NEEDS_BINARY_CONV */

#ifdef NEEDS_POOL
#ifdef NEEDS_FLOAT
static inline float quotient(float v, float by) { return v / by; }
#endif /* NEEDS_FLOAT */

#ifdef NEEDS_FIXED
/* v / by, rounded as `rounded`; |v| is below 2^30. */
static inline int32_t quotient(int32_t v, int32_t by) {
    const int32_t doubled = 2 * v + by;
    return doubled / (2 * by) - (doubled % (2 * by) < 0);
}
#endif /* NEEDS_FIXED */

/* The places first to last - 1 of a window along an axis, and its factor of the divisor of a mean. */
struct span {
    int16_t first, last;
    count places;
};

/* The largest number or the mean of each window. */
struct pool {
    int mean;
    int dilation_y, dilation_x;
    const struct real* in;
    const struct span *rows, *columns; /* of each row and column of the result */
    struct epilogue end;
};

static void pool_row(const struct pool* s, int y) {
    const struct span* rows = s->rows + y;
    accumulator* const v = s->end.scratch;
    int x, in_y, in_x, c;
    for (x = 0; x < s->end.width; ++x) {
        const struct span* columns = s->columns + x;
        const number* first = pixel(s->in, rows->first, columns->first);
        for (c = 0; c < s->end.channels; ++c) v[c] = s->mean ? 0 : first[c];
        for (in_y = rows->first; in_y < rows->last; in_y += s->dilation_y) {
            for (in_x = columns->first; in_x < columns->last; in_x += s->dilation_x) {
                const number* from = pixel(s->in, in_y, in_x);
                for (c = 0; c < s->end.channels; ++c)
                    v[c] = s->mean ? v[c] + from[c] : v[c] > from[c] ? v[c] : from[c];
            }
        }
        if (s->mean)
            for (c = 0; c < s->end.channels; ++c) v[c] = quotient(v[c], rows->places * columns->places);
        finish(&s->end, y, x);
    }
}
#endif /* NEEDS_POOL */

#ifdef NEEDS_POINTWISE
/* Steps alone. */
struct pointwise {
    const struct real* in;
    struct epilogue end;
};

static void pointwise_row(const struct pointwise* s, int y) {
    int x, c;
    for (x = 0; x < s->end.width; ++x) {
        const number* from = pixel(s->in, y, x);
        for (c = 0; c < s->end.channels; ++c) s->end.scratch[c] = from[c];
        finish(&s->end, y, x);
    }
}
#endif /* NEEDS_POINTWISE */

#ifdef NEEDS_FLATTEN
/* A vector of all numbers, channel by channel. */
struct flatten {
    int height;
    const struct real *in, *result;
};

static void flatten_row(const struct flatten* s, int y) {
    number* to = s->result->data;
    int c, in_y, x;
    (void)y; /* a vector is one row */
    for (c = 0; c < s->in->channels; ++c)
        for (in_y = 0; in_y < s->height; ++in_y)
            for (x = 0; x < s->in->width; ++x) *to++ = pixel(s->in, in_y, x)[c];
}
#endif /* NEEDS_FLATTEN */
