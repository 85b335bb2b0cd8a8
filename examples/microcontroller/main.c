/* Reads images from the file `images` and prints their classes, and the instructions that they took. */

#include <string.h>

#include "board.h"
#include "network.h"

static uint8_t image[NETWORK_HEIGHT * NETWORK_WIDTH * NETWORK_CHANNELS];

int main(void) {
    static network_number out[NETWORK_OUTPUTS]; /* floats, or with --fixed whole numbers */
    const int file = open_file("images");
    unsigned count = 0, most = 0;
    if (file < 0) {
        print("there is no file `images`\n");
        return 0;
    }
    while (read_file(file, image, sizeof image)) {
        const unsigned start = instructions();
        unsigned took;
        int i, best = 0;
        network_run(image, out);
        took = instructions() - start;
        if (took > most) most = took;
        for (i = 0; i < NETWORK_OUTPUTS; ++i)
            if (out[i] > out[best]) best = i;
        print("image ");
        print_number(count++);
        print(": class ");
        print_number((unsigned)best);
#ifdef PRINT_BITS
        for (i = 0; i < NETWORK_OUTPUTS; ++i) {
            uint32_t word = 0;
            memcpy(&word, &out[i], sizeof out[i]);
            print(" ");
            print_word(word);
        }
#endif
        print("\n");
    }
    print_number(most);
    print(" instructions an image, at most\n");
    return 0;
}
