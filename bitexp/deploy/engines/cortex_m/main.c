/* Reads inputs from input.bin, writes logits to output.bin, and tells the ticks and the stack of an inference. */
#include <stdint.h>
#include <stdio.h>

#include "model.h"

extern uint64_t ticks(void);
static float logits[MODEL_OUTPUTS];

#ifdef MODEL_CONTEXT
static int32_t input;
#else
static model_input input[MODEL_INPUTS];
#endif

/* The stack below main: what is no longer PAINT there, a call has written. */
enum { DEPTH = 16384, PAINT = 0xA5, OWN = 64 };

__attribute__((noinline)) static volatile uint8_t *painted(void) {
    volatile uint8_t *end = (volatile uint8_t *)__builtin_frame_address(0) - DEPTH;
    int i;
    for (i = 0; i < DEPTH - OWN; i++) end[i] = PAINT;
    return end;
}

static unsigned used(const volatile uint8_t *end) {
    unsigned i = 0;
    while (i < DEPTH - OWN && end[i] == PAINT) i++;
    return DEPTH - i;
}

int main(void) {
    FILE *from = fopen("input.bin", "rb"), *to = fopen("output.bin", "wb");
    uint64_t total = 0;
    unsigned long count = 0;
    unsigned stack = 0;
    if (!from || !to) return 2;
    while (fread(&input, sizeof input, 1, from) == 1) {
        uint64_t began;
        const volatile uint8_t *end = count == 0 ? painted() : NULL;
#ifdef MODEL_CONTEXT
        if (input < 0) {
            model_reset();
            continue;
        }
        began = ticks();
        if (model_step((int)input, logits)) return 3;
#else
        began = ticks();
        model_run(input, logits);
#endif
        total += ticks() - began;
        if (count++ == 0) stack = used(end);
        if (fwrite(logits, sizeof logits, 1, to) != 1) return 4;
    }
    fclose(to);
    printf("%lu %u\n", (unsigned long)(count ? total / count : 0), stack);
    return 0;
}
