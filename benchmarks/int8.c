/* Convolutions in int8, the rival of binary ones on a chip: as plain C, or, with CMSIS_NN defined, by the
 * kernels of CMSIS-NN. Both give the same numbers, those of TensorFlow Lite: a bias of 32 bits, zero points,
 * and for each channel a multiplier of 31 bits and a shift, rounded twice and clamped. A zero point of -128
 * on both sides makes the clamp a ReLU.
 * The layers of a network run one after the other, with random weights: the count hardly depends on these.
 * PRINT_BITS puts into out[0] a sum over all numbers of all layers, to compare. */

#include <string.h>

#include "network.h"

#define ZERO_POINT (-128)

struct layer {
    int channels_in, height, width, channels_out, kernel, stride, padding, out_height, out_width;
    const int8_t* weights; /* output channels, rows, columns, input channels */
    const int32_t* biases;
    const int32_t* multipliers; /* of 2^31 */
    const int32_t* shifts;      /* to the left; to the right where negative */
};

#ifdef CMSIS_NN

#include <ConvolutionFunctions/arm_convolve_1_x_n_s8.c>
#include <ConvolutionFunctions/arm_convolve_1x1_s8.c>
#include <ConvolutionFunctions/arm_convolve_1x1_s8_fast.c>
#include <ConvolutionFunctions/arm_convolve_get_buffer_sizes_s8.c>
#include <ConvolutionFunctions/arm_convolve_s8.c>
#include <ConvolutionFunctions/arm_convolve_wrapper_s8.c>
#include <ConvolutionFunctions/arm_nn_mat_mult_kernel_s8_s16.c>
#include <NNSupportFunctions/arm_nn_mat_mult_nt_t_s8.c>
#include <NNSupportFunctions/arm_q7_to_q15_with_offset.c>
#include <NNSupportFunctions/arm_s8_to_s16_unordered_with_offset.c>

static int convolve(const struct layer* l, const int8_t* in, int8_t* out) {
    static int32_t columns[WINDOW + 4]; /* two of 16 bits, each filled up to a multiple of four */
    const cmsis_nn_conv_params of = {
        -ZERO_POINT, ZERO_POINT, {l->stride, l->stride}, {l->padding, l->padding}, {1, 1}, {-128, 127}};
    const cmsis_nn_per_channel_quant_params scaling = {(int32_t*)l->multipliers, (int32_t*)l->shifts};
    const cmsis_nn_dims from = {1, l->height, l->width, l->channels_in};
    const cmsis_nn_dims filter = {l->channels_out, l->kernel, l->kernel, l->channels_in};
    const cmsis_nn_dims bias = {1, 1, 1, l->channels_out};
    const cmsis_nn_dims to = {1, l->out_height, l->out_width, l->channels_out};
    const cmsis_nn_context context = {columns, sizeof columns};
    if (arm_convolve_wrapper_s8_get_buffer_size(&of, &from, &filter, &to) > context.size) return 1;
    return arm_convolve_wrapper_s8(&context, &of, &scaling, &from, in, &filter, l->weights, &bias, l->biases,
                                   &to, out) != ARM_CMSIS_NN_SUCCESS;
}

#else

static int8_t rescaled(int32_t sum, int32_t multiplier, int32_t shift) {
    const int left = shift > 0 ? shift : 0, right = shift > 0 ? 0 : -shift;
    const int32_t product = (int32_t)(((int64_t)(sum * (1 << left)) * multiplier + (1 << 30)) >> 31);
    const int32_t mask = (int32_t)((1u << right) - 1), remainder = product & mask;
    const int32_t half = (mask >> 1) + (product < 0); /* halves are rounded away from zero */
    const int32_t v = (product >> right) + (remainder > half) + ZERO_POINT;
    return (int8_t)(v < -128 ? -128 : v > 127 ? 127 : v);
}

/* The zero point is part of the bias: -ZERO_POINT times the sum of b. */
__attribute__((noinline)) static int32_t dot(const int8_t* a, const int8_t* b, int n, int32_t sum) {
    int i;
    for (i = 0; i < n; ++i) sum += a[i] * b[i];
    return sum;
}

static int convolve(const struct layer* l, const int8_t* in, int8_t* out) {
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
                        memset(to, ZERO_POINT, (size_t)l->channels_in);
                    } else {
                        memcpy(to, in + (in_y * l->width + in_x) * l->channels_in, (size_t)l->channels_in);
                    }
                }
            }
            for (o = 0; o < l->channels_out; ++o) {
                const int8_t* weights = l->weights + o * l->kernel * row;
                const int32_t sum = dot(window, weights, l->kernel * row, l->biases[o]);
                *out++ = rescaled(sum, l->multipliers[o], l->shifts[o]);
            }
        }
    }
    return 0;
}

#endif

#include "layers.h"

int network_run(const uint8_t* image, float* out) {
    static int8_t values[2][LARGEST];
    uint32_t sum = 0;
    size_t i;
    memcpy(values[0], image, NETWORK_HEIGHT * NETWORK_WIDTH * NETWORK_CHANNELS);
    for (i = 0; i < sizeof layers / sizeof *layers; ++i) {
        const struct layer* l = layers + i;
        if (convolve(l, values[i % 2], values[(i + 1) % 2])) return 1;
#ifdef PRINT_BITS
        {
            int at;
            for (at = 0; at < l->out_height * l->out_width * l->channels_out; ++at)
                sum = sum * 31 + (uint8_t)values[(i + 1) % 2][at];
        }
#endif
    }
    for (i = 1; i < NETWORK_OUTPUTS; ++i) out[i] = values[sizeof layers / sizeof *layers % 2][i];
    out[0] = (float)(sum >> 8);
    return 0;
}
