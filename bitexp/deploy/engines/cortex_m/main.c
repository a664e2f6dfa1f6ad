/* Reads inputs from input.bin, writes logits to output.bin, and tells the ticks that an inference took. */
#include <stdint.h>
#include <stdio.h>

#include "model.h"

extern uint64_t ticks(void);
static float logits[MODEL_OUTPUTS];

#ifdef MODEL_CONTEXT
static int32_t input;
#else
static float input[MODEL_INPUTS];
#endif

int main(void) {
    FILE *from = fopen("input.bin", "rb"), *to = fopen("output.bin", "wb");
    uint64_t total = 0;
    unsigned long count = 0;
    if (!from || !to) return 2;
    while (fread(&input, sizeof input, 1, from) == 1) {
        uint64_t began;
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
        count++;
        if (fwrite(logits, sizeof logits, 1, to) != 1) return 4;
    }
    fclose(to);
    printf("%lu\n", (unsigned long)(count ? total / count : 0));
    return 0;
}
