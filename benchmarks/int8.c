/* Convolutions in int8, as plain C has them: the rival of binary ones on a chip. The layers of a network,
 * with arbitrary weights: what is counted does not depend on these. Sums are 32 bits; each becomes int8 by a
 * factor of its channel in 32-bit fixed point, as in TensorFlow Lite. */

#include <string.h>

#include "network.h"

struct layer {
    int channels_in, height, width, channels_out, kernel, stride, padding, out_height, out_width;
    const int8_t* weights; /* output channels, rows, columns, input channels */
    const int32_t* factors;
};

static int8_t rescaled(int32_t sum, int32_t factor) {
    const int32_t v = (int32_t)(((int64_t)sum * factor + (1 << 30)) >> 31);
    return (int8_t)(v < -128 ? -128 : v > 127 ? 127 : v);
}

__attribute__((noinline)) static int32_t dot(const int8_t* a, const int8_t* b, int n) {
    int32_t sum = 0;
    int i;
    for (i = 0; i < n; ++i) sum += a[i] * b[i];
    return sum;
}

static void convolve(const struct layer* l, const int8_t* in, int8_t* out) {
    static int8_t window[WINDOW];
    const int row = l->kernel * l->channels_in;
    int y, x, ky, kx, o;
    for (y = 0; y < l->out_height; ++y) {
        for (x = 0; x < l->out_width; ++x) {
            for (ky = 0; ky < l->kernel; ++ky) {
                for (kx = 0; kx < l->kernel; ++kx) {
                    const int in_y = y * l->stride - l->padding + ky, in_x = x * l->stride - l->padding + kx;
                    int8_t* to = window + ky * row + kx * l->channels_in;
                    if (in_y < 0 || in_y >= l->height || in_x < 0 || in_x >= l->width) {
                        memset(to, 0, (size_t)l->channels_in);
                    } else {
                        memcpy(to, in + (in_y * l->width + in_x) * l->channels_in, (size_t)l->channels_in);
                    }
                }
            }
            for (o = 0; o < l->channels_out; ++o)
                *out++ =
                    rescaled(dot(window, l->weights + o * l->kernel * row, l->kernel * row), l->factors[o]);
        }
    }
}

#include "layers.h"

int network_run(const uint8_t* image, float* out) {
    static int8_t values[2][LARGEST];
    size_t i;
    memcpy(values[0], image, NETWORK_HEIGHT * NETWORK_WIDTH * NETWORK_CHANNELS);
    for (i = 0; i < sizeof layers / sizeof *layers; ++i)
        convolve(layers + i, values[i % 2], values[(i + 1) % 2]);
    for (i = 0; i < NETWORK_OUTPUTS; ++i) out[i] = values[0][i];
    return 0;
}
