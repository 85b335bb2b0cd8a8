/* What the program needs of a board. Here the board is QEMU's, and semihosting reads files and prints. */

#ifndef BOARD_H
#define BOARD_H

#include <stdint.h>

void print(const char* text);
void print_number(unsigned number);
void print_word(uint32_t word); /* eight hexadecimal digits */

/* A file of the host; -1 if there is none. */
int open_file(const char* name);
/* Reads `size` bytes. Returns 1, or 0 if the file ends before. */
int read_file(int file, void* to, unsigned size);

/* Counts on while a program runs; with QEMU's option -icount shift=0 it counts instructions. */
unsigned instructions(void);

#endif
