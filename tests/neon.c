/* Runs a kernel on memory that a file describes, for tests of one processor's code on another.

   neon IN OUT: IN holds a count of blocks, their addresses and lengths, six arguments, and then the blocks. The blocks are
   mapped where the file says, the kernel is called, and OUT gets them as they are afterwards. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

void kernel(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);

static void must(int done, const char *what) {
    if (!done) { perror(what); exit(2); }
}

int main(int count, char **names) {
    must(count == 3, "usage");
    FILE *in = fopen(names[1], "rb"), *out = fopen(names[2], "wb");
    int64_t blocks, arguments[6];
    must(in && out && fread(&blocks, 8, 1, in) == 1, names[1]);
    int64_t *table = malloc(16 * blocks);
    must(fread(table, 16, blocks, in) == (size_t)blocks && fread(arguments, 48, 1, in) == 1, "header");
    for (int64_t i = 0; i < blocks; i++) {
        void *place = (void *)table[2 * i];
        size_t length = table[2 * i + 1];
        void *got = mmap(place, length, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        must(got == place, "mmap");
        must(fread(place, 1, length, in) == length, "block");
    }
    kernel(arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
    for (int64_t i = 0; i < blocks; i++)
        must(fwrite((void *)table[2 * i], 1, table[2 * i + 1], out) == (size_t)table[2 * i + 1], "result");
    return fclose(out);
}
