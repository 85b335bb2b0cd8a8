// Runs packed binary networks from C, and from every language that can call C.
//
//     bnew_model* model = bnew_load("model.bnew", NULL);
//     if (!model) return fail(bnew_error());
//     float* results = malloc(bnew_output_size(model) * sizeof(float));
//     if (bnew_run(model, image, 1, results) != 0) return fail(bnew_error());
//     bnew_free(model);
//
// bnew_load(), bnew_load_bytes(), and the functions that run a network can fail: they return NULL or 1, and
// bnew_error() returns what is wrong in one sentence. No C++ exception leaves the library. The other
// functions cannot fail, but their model must not be NULL. Several threads may use one model at once.
//
// Text is UTF-8, ends with a zero byte and is safe to show: control characters of the file are escaped, for
// example as \x1b. A pointer that a model returns is valid until bnew_free().

#ifndef BNEW_H
#define BNEW_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct bnew_model bnew_model;

// How a network is loaded. A member that is 0 has its default: begin with `bnew_options options = {0};`.
typedef struct bnew_options {
    int threads;                  // including the caller's; by default 1
    const char* instruction_set;  // avx512_vpopcntdq, avx2, neon or scalar; by default the best
    // The most that the file may ask for, by default what its size and its input justify (docs/format.md,
    // "Limits").
    int64_t max_macs;   // real multiply-accumulates per image
    int64_t max_bytes;  // of the weights in memory, and of a run
    // The size of images, by default the one for which the file was packed (docs/format.md, "Other sizes").
    int height, width;
} bnew_options;

// What was wrong in the last call of this thread that failed; "" if none has. Valid until the next failure.
const char* bnew_error(void);

// Reads a packed file. NULL for `options`: all have their defaults.
bnew_model* bnew_load(const char* path, const bnew_options* options);

// The same from the `size` bytes of a file's content, which are not used after the call.
bnew_model* bnew_load_bytes(const void* content, size_t size, const bnew_options* options);

// Frees a model, which no other thread may be using. Does nothing with NULL.
void bnew_free(bnew_model* model);

// The channels, height and width of an image; of a network of several inputs, for the first.
void bnew_input_shape(const bnew_model* model, int shape[3]);

// How many numbers one image has, and its results. Of a network of several inputs, an image for the first.
size_t bnew_input_size(const bnew_model* model);
size_t bnew_output_size(const bnew_model* model);

// Computes `count` images of float32, each (channels, height, width), and writes bnew_output_size() numbers
// for each to `results`. Fails if a number is not finite, for example; `results` then holds nothing of use.
int bnew_run(const bnew_model* model, const float* images, size_t count, float* results);

// The same for images of bytes, each (height, width, channels), which are normalised with the file's mean and
// std. Fails if the file has none.
int bnew_run_bytes(const bnew_model* model, const uint8_t* images, size_t count, float* results);

// The inputs of a network: the names of the parameters of its forward(), and three numbers each, channels,
// height and width. bnew_input_bytes() is 1 if the file has mean and std, so that the input may be bytes.
// NULL and 0 if there is no such input.
size_t bnew_input_count(const bnew_model* model);
const char* bnew_input_name(const bnew_model* model, size_t index);
const int* bnew_input_dimensions(const bnew_model* model, size_t index);
int bnew_input_bytes(const bnew_model* model, size_t index);

// Images for one of several inputs: floats as for bnew_run(), or bytes as for bnew_run_bytes(). The other
// pointer is NULL.
typedef struct bnew_batch {
    const float* floats;
    const uint8_t* bytes;
} bnew_batch;

// The same as bnew_run() for a network of several inputs, with bnew_input_count() batches of `count` images
// each. Image i of each belongs to result i.
int bnew_run_inputs(const bnew_model* model, const bnew_batch* batches, size_t count, float* results);

// The names of the classes. A file may have none.
size_t bnew_class_count(const bnew_model* model);
const char* bnew_class_name(const bnew_model* model, size_t index);  // NULL if there is no such class

// The results of an image, which stand one after the other in its numbers. Names may be "". The shape has
// bnew_result_dimensions() numbers: none for a single number. bnew_result_integers() is 1 if the numbers are
// whole, such as those of classes; round them then. NULL and 0 if there is no such result.
size_t bnew_result_count(const bnew_model* model);
const char* bnew_result_name(const bnew_model* model, size_t index);
size_t bnew_result_dimensions(const bnew_model* model, size_t index);
const int* bnew_result_shape(const bnew_model* model, size_t index);
int bnew_result_integers(const bnew_model* model, size_t index);

// The name of the instruction set that the model uses.
const char* bnew_instruction_set(const bnew_model* model);

#ifdef __cplusplus
}
#endif

#endif
