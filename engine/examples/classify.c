// The same as classify.cpp, in C.

#include <bnew.h>
#include <stdio.h>
#include <stdlib.h>

static int fail(const char* what) {
    fprintf(stderr, "classify: error: %s\n", what);
    return 2;
}

int main(int argc, char** argv) {
    if (argc != 3) return fail("usage: classify MODEL.bnew IMAGE");
    bnew_model* model = bnew_load(argv[1], NULL);
    if (!model) return fail(bnew_error());
    if (bnew_class_count(model) == 0) return fail("the file has no classes");
    const size_t size = bnew_input_size(model), count = bnew_output_size(model);
    uint8_t* image = malloc(size + 1);  // one more, to see whether the file is longer
    float* results = malloc(count * sizeof(float));
    if (!image || !results) return fail("there is not enough memory");
    FILE* file = fopen(argv[2], "rb");
    if (!file || fread(image, 1, size + 1, file) != size)
        return fail("the image has another size than the input");
    if (bnew_run_bytes(model, image, 1, results) != 0) return fail(bnew_error());
    size_t best = 0;
    for (size_t i = 1; i < count; ++i)
        if (results[i] > results[best]) best = i;
    printf("%s %.9g\n", bnew_class_name(model, best), results[best]);
    fclose(file);
    free(results);
    free(image);
    bnew_free(model);
    return 0;
}
