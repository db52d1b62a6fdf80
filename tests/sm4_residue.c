/* Does a batch leave anything on the stack that depends on keys? Whatever the form (a derived key, a round key in other
 * coordinates, a spilled register), a leftover differs when the same work is done under another parent key. So the batch
 * runs twice on the same stack, at the same addresses, and the dead stacks are compared.
 *
 * Usage: sm4_residue PATH. Prints the number of stack bytes that differ after yk_mac_batch and yk_mac_verify_batch, and, to
 * show that the method sees something, after the generic path called without the wipe. */
#include "sm4_paths.h"

#include <stdio.h>
#include <string.h>
#include <ucontext.h>

enum { STACK_BYTES = 256 * 1024, JOBS = 131 };

static uint8_t stack[STACK_BYTES] __attribute__((aligned(4096)));
static uint8_t first_stack[STACK_BYTES];
static uint32_t parents[2][32];
static yk_mac_job jobs[JOBS];
static uint8_t proved[JOBS];
static ucontext_t caller, worker;
static int task;

static void work(void) {
    switch (task) {
        case 0: yk_mac_batch(jobs, JOBS); break;
        case 1: yk_mac_verify_batch(jobs, JOBS, proved); break;
        default: yk_mac_verify_batch_generic(jobs, JOBS, proved);
    }
}

/* One run on a clean stack, with parents made from `seed`. Random MACs are never right, so no verdict differs. */
static void run(uint8_t seed) {
    uint8_t key[16];
    for (int p = 0; p < 2; p++) {
        memset(key, seed + p, sizeof key);
        yk_sm4_expand(key, parents[p]);
    }
    for (int i = 0; i < JOBS; i++) {
        memset(&jobs[i], i, sizeof jobs[i]);
        jobs[i].parent = parents[i < 64 ? 0 : i & 1];
        jobs[i].profile = i % 3 == 0 ? YK_PROFILE_ACCOUNT : YK_PROFILE_PURSE;
    }
    memset(stack, 0xa5, sizeof stack);
    getcontext(&worker);
    worker.uc_stack.ss_sp = stack;
    worker.uc_stack.ss_size = sizeof stack;
    worker.uc_link = &caller;
    makecontext(&worker, work, 0);
    swapcontext(&caller, &worker);
}

static int residue_bytes(int which) {
    int differing = 0;
    task = which;
    run(1); /* the first call may bind symbols lazily, on this very stack */
    run(1);
    memcpy(first_stack, stack, sizeof stack);
    run(77);
    for (int i = 0; i < STACK_BYTES; i++) differing += stack[i] != first_stack[i];
    return differing;
}

int main(int argc, char **argv) {
    if (argc != 2 || yk_sm4_path_force(argv[1]) != 0) return 2;
    int computed = residue_bytes(0), verified = residue_bytes(1), unwiped = residue_bytes(2);
    printf("%d %d %d\n", computed, verified, unwiped);
    return 0;
}
