/* Where a Cortex-M begins, and how many instructions have passed, by the emulator's clock. */
#include <stdint.h>

#define REGISTER(address) (*(volatile uint32_t *)(address))
#define TICKS 0x1000000u

extern void _start(void);
static volatile uint32_t wraps;

/* The floating-point unit is off at first. */
void begin(void) {
    REGISTER(0xE000ED88) |= 0xFu << 20;
    REGISTER(0xE000E014) = TICKS - 1;
    REGISTER(0xE000E018) = 0;
    REGISTER(0xE000E010) = 7;
    _start();
}

static void tick(void) { wraps++; }

static void fault(void) {
    for (;;) continue;
}

__attribute__((section(".vectors"), used)) static void *const vectors[] = {
    (void *)0x20400000, (void *)begin, (void *)fault, (void *)fault, (void *)fault, (void *)fault, (void *)fault,
    0, 0, 0, 0, (void *)fault, (void *)fault, 0, (void *)fault, (void *)tick,
};

/* Ticks of 40 ns since the start. */
uint64_t ticks(void) {
    uint32_t before, now;
    do {
        before = wraps;
        now = REGISTER(0xE000E018);
    } while (before != wraps);
    return (uint64_t)before * TICKS + (TICKS - 1 - now);
}
