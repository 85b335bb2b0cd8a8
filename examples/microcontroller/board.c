/* QEMU's boards: mps2-an385, mps2-an386 and mps2-an500 (Cortex-M3, M4, M7), and virt (RISC-V). The program
 * starts here, with nothing of a C library but memcpy and memset. */

#include "board.h"

#include <string.h>

int main(void);

extern char data_start[], data_end[], data_in_flash[], bss_start[], bss_end[], stack_end[];

/* --------------------------------------------------------------------------------------- semihosting */

enum { OPEN = 0x01, WRITE0 = 0x04, READ = 0x06, EXIT = 0x18 };
#define APPLICATION_EXIT ((const void*)0x20026)

#ifdef __arm__
static int call(int operation, const void* argument) {
    register int r0 __asm__("r0") = operation;
    register const void* r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}
#else
int call(int operation, const void* argument);
/* Three instructions that are not compressed, in one page. */
__asm__(
    ".section .text.call\n.balign 16\ncall:\n.option push\n.option norvc\n"
    "slli zero, zero, 0x1f\nebreak\nsrai zero, zero, 7\nret\n.option pop\n.text");
#endif

void print(const char* text) { call(WRITE0, text); }

void print_number(unsigned number) {
    char text[12];
    char* at = text + sizeof text - 1;
    *at = 0;
    do *--at = (char)('0' + number % 10);
    while (number /= 10);
    print(at);
}

void print_word(uint32_t word) {
    char text[9];
    int i;
    for (i = 0; i < 8; ++i) text[i] = "0123456789abcdef"[word >> (28 - 4 * i) & 15];
    text[8] = 0;
    print(text);
}

int open_file(const char* name) {
    const uint32_t argument[] = {(uint32_t)name, 1 /* rb */, strlen(name)};
    return call(OPEN, argument);
}

int read_file(int file, void* to, unsigned size) {
    const uint32_t argument[] = {(uint32_t)file, (uint32_t)to, size};
    return call(READ, argument) == 0; /* the number of bytes that were not read */
}

/* -------------------------------------------------------------------------------------------- start */

static void start_counting(void);

static void run(void) {
    memcpy(data_start, data_in_flash, (size_t)(data_end - data_start));
    memset(bss_start, 0, (size_t)(bss_end - bss_start));
    start_counting();
    main();
    call(EXIT, APPLICATION_EXIT);
    for (;;) continue;
}

#ifdef __arm__

#define CPACR (*(volatile uint32_t*)0xe000ed88) /* which coprocessors may be used */
#define SYST_CSR (*(volatile uint32_t*)0xe000e010)
#define SYST_RVR (*(volatile uint32_t*)0xe000e014)
#define SYST_CVR (*(volatile uint32_t*)0xe000e018)
#define NANOSECONDS_PER_TICK 40 /* at 25 MHz; with -icount shift=0 an instruction takes one nanosecond */

static void start_counting(void) {
    SYST_RVR = 0xffffff;
    SYST_CVR = 0;
    SYST_CSR = 5; /* on, by the processor's clock, without interrupts */
}

/* Wraps around after 671 million. */
unsigned instructions(void) { return (0xffffff - SYST_CVR) * NANOSECONDS_PER_TICK; }

static void reset(void) {
#ifdef __ARM_FP
    CPACR |= 0xf << 20; /* the floating-point unit */
    __asm__ volatile("dsb\nisb");
#endif
    run();
}

static void fault(void) {
    print("fault\n");
    call(EXIT, NULL);
    for (;;) continue;
}

__attribute__((section(".vectors"), used)) static const struct {
    const char* stack;
    void (*handlers[15])(void);
} vectors = {stack_end, {reset, fault, fault, fault, fault, fault}};

#else

static void start_counting(void) {}

unsigned instructions(void) {
    unsigned count;
    __asm__ volatile(".option push\n.option arch, +zicsr\ncsrr %0, minstret\n.option pop" : "=r"(count));
    return count;
}

__attribute__((used)) static void reset(void) {
#ifdef __riscv_flen
    __asm__ volatile("li t0, 0x2000\n.option push\n.option arch, +zicsr\ncsrs mstatus, t0\n.option pop" ::
                         : "t0"); /* the floating-point unit */
#endif
    run();
}

__attribute__((section(".vectors"), naked, used)) void _start(void) {
    __asm__ volatile("la sp, stack_end\nj reset");
}

#endif
