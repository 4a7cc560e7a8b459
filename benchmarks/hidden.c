/* Hides abilities of this processor from libraries in which `cpuid` was replaced by an illegal instruction (06 a2).
 *
 * Loaded with LD_PRELOAD. The illegal instruction raises SIGILL; the handler asks the processor itself, clears the bits
 * and goes on behind it. HIDE=vnni leaves what a Skylake-X has, HIDE=avx512 what a Haswell has. See hidden.py.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

/* Leaf 7: AVX-512 F, DQ, IFMA, PF, ER, CD, BW and VL in EBX; of these a Skylake-X has F, DQ, CD, BW and VL. */
#define EBX_AVX512 (1u << 16 | 1u << 17 | 1u << 21 | 1u << 26 | 1u << 27 | 1u << 28 | 1u << 30 | 1u << 31)
#define EBX_LATER (1u << 21 | 1u << 26 | 1u << 27)
/* VBMI, VBMI2, GFNI, VAES, VPCLMULQDQ, VNNI, BITALG and VPOPCNTDQ in ECX. */
#define ECX_LATER (1u << 1 | 1u << 6 | 1u << 8 | 1u << 9 | 1u << 10 | 1u << 11 | 1u << 12 | 1u << 14)
/* 4VNNIW, 4FMAPS, VP2INTERSECT, AMX and FP16 in EDX. */
#define EDX_LATER (1u << 2 | 1u << 3 | 1u << 8 | 1u << 22 | 1u << 23 | 1u << 24 | 1u << 25)

static unsigned hidden_ebx = EBX_LATER;

static void answer(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *at = (const unsigned char *)registers[REG_RIP];
    unsigned leaf = (unsigned)registers[REG_RAX], part = (unsigned)registers[REG_RCX], a, b, c, d;
    (void)info;
    if (at[0] != 0x06 || at[1] != 0xa2) {
        signal(number, SIG_DFL); /* an illegal instruction of somebody else */
        return;
    }
    __cpuid_count(leaf, part, a, b, c, d);
    if (leaf == 7 && part == 0) {
        b &= ~hidden_ebx;
        c &= ~ECX_LATER;
        d &= ~EDX_LATER;
    } else if (leaf == 7) {
        a = b = c = d = 0; /* AVX-VNNI, BF16 and everything later */
    }
    registers[REG_RAX] = a;
    registers[REG_RBX] = b;
    registers[REG_RCX] = c;
    registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

__attribute__((constructor)) static void install(void) {
    struct sigaction action;
    const char *wanted = getenv("HIDE");
    if (wanted && strcmp(wanted, "avx512") == 0) hidden_ebx = EBX_AVX512;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = answer;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGILL, &action, 0);
}
