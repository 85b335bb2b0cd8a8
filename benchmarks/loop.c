/* A loop of a million rounds of two instructions, to check the count. */

#include "network.h"

int network_run(const uint8_t* image, float* out) {
    int rounds = 1000000;
    (void)image;
    (void)out;
#ifdef __arm__
    __asm__ volatile("1: subs %0, %0, #1\n bne 1b" : "+r"(rounds) : : "cc");
#else
    __asm__ volatile("1: addi %0, %0, -1\n bnez %0, 1b" : "+r"(rounds));
#endif
    return 0;
}
