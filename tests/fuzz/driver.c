/* Runs a fuzz target without libFuzzer, so that every build replays what was ever found.
 *
 * Each file of tests/fuzz/corpus/<name>/ (fuzz_<name>.c is the target) and the empty input run as they are, then with
 * a bounded number of mutations each. A mutation is a pure function of seed, file name and number: the same seed
 * gives the same inputs on every machine. `make fuzz` explores for real, with coverage.
 *
 *   fuzz_x [FILE-OR-DIRECTORY ...]    the arguments stand in for the corpus directory; files are not mutated
 *   OMEN_FUZZ_SEED=1 OMEN_FUZZ_MUTATIONS=300
 *
 * When the target crashes or takes over 20 s for one input, the input is written to $OMEN_BUILD/crash-<name>-... and
 * named, together with the seed. Inputs live in a block of exactly their size, so a sanitizer sees one byte too far. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define INPUT_BYTES_MAX (1u << 20) /* longer files are an error: keep the corpus small */
#define FILES_MAX 4096
#define INPUT_SECONDS_MAX 20
#define EDITS_MAX 6 /* per mutation */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv) __attribute__((weak));
void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

/* Asked by UBSan's runtime, which has no death callback of its own: on_signal() then reports. */
const char *__ubsan_default_options(void);
const char *__ubsan_default_options(void) { return "abort_on_error=1:print_stacktrace=1"; }

struct input {
    char *path;
    uint8_t *data; /* [size] owned */
    size_t size;
};

static struct input inputs[FILES_MAX + 1]; /* the last place is the empty input's */
static size_t input_count;

/* What runs now, for the report of a crash: read from a signal handler, hence plain globals. */
static const uint8_t *now_data;
static size_t now_size;
static char now_name[256];
static char crash_path[512];

static uint64_t rng_state;

/* splitmix64 */
static uint64_t rng(void)
{
    uint64_t z = rng_state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static size_t below(size_t limit) { return limit == 0 ? 0 : (size_t)(rng() % limit); }

static void say(const char *text)
{
    if (write(STDERR_FILENO, text, strlen(text)) < 0) _exit(2);
}

static void report(void)
{
    static volatile sig_atomic_t reported;
    if (reported || now_data == NULL) return;
    reported = 1;
    alarm(0);
    say("\nfuzz: failed on ");
    say(now_name);
    int fd = open(crash_path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    size_t done = 0;
    while (fd >= 0 && done < now_size) {
        ssize_t n = write(fd, now_data + done, now_size - done);
        if (n <= 0) break;
        done += (size_t)n;
    }
    if (fd >= 0 && done == now_size) {
        say("\nfuzz: input is in ");
        say(crash_path);
    }
    say("\n");
}

static void on_signal(int sig)
{
    if (sig == SIGALRM) say("\nfuzz: one input takes too long");
    report();
    signal(sig, SIG_DFL);
    raise(sig);
}

static void run_one(const uint8_t *data, size_t size)
{
    uint8_t *exact = malloc(size); /* not even a byte for size 0 */
    if (exact == NULL && size > 0) {
        say("fuzz: out of memory\n");
        exit(2);
    }
    if (size > 0) memcpy(exact, data, size);
    now_size = size;
    now_data = exact == NULL ? (const uint8_t *)"" : exact;
    alarm(INPUT_SECONDS_MAX);
    LLVMFuzzerTestOneInput(now_data, size);
    alarm(0);
    now_data = NULL;
    free(exact);
}

static int by_path(const void *a, const void *b)
{
    return strcmp(((const struct input *)a)->path, ((const struct input *)b)->path);
}

static void load_file(const char *path)
{
    FILE *f = fopen(path, "rb");
    struct input *in = &inputs[input_count];
    if (f == NULL || input_count == FILES_MAX) {
        fprintf(stderr, "fuzz: %s: %s\n", path, f == NULL ? strerror(errno) : "too many files");
        exit(2);
    }
    in->data = malloc(INPUT_BYTES_MAX + 1);
    in->path = strdup(path);
    if (in->data == NULL || in->path == NULL) exit(2);
    in->size = fread(in->data, 1, INPUT_BYTES_MAX + 1, f);
    if (ferror(f) || in->size > INPUT_BYTES_MAX) {
        fprintf(stderr, "fuzz: %s: unreadable or above %u bytes\n", path, INPUT_BYTES_MAX);
        exit(2);
    }
    fclose(f);
    uint8_t *fitted = realloc(in->data, in->size > 0 ? in->size : 1);
    if (fitted != NULL) in->data = fitted;
    input_count++;
}

/* False when `path` is no directory. */
static int load_directory(const char *path)
{
    DIR *dir = opendir(path);
    if (dir == NULL) return 0;
    const struct dirent *entry;
    while ((entry = readdir(dir)) != NULL) {
        char file[1024];
        struct stat st;
        if (entry->d_name[0] == '.') continue;
        if (snprintf(file, sizeof file, "%s/%s", path, entry->d_name) >= (int)sizeof file) exit(2);
        if (stat(file, &st) == 0 && S_ISREG(st.st_mode)) load_file(file);
    }
    closedir(dir);
    return 1;
}

static uint64_t number_from_env(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);
    return text == NULL || *text == '\0' ? otherwise : strtoull(text, NULL, 0);
}

/* One edit in place; `data` has room for INPUT_BYTES_MAX. Returns the new size. */
static size_t edit(uint8_t *data, size_t size)
{
    static const uint64_t edges[] = { 0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x7fffffff, 0x80000000u,
        0xffffffffu, 0x7fffffffffffffffu, 0x8000000000000000u, UINT64_MAX };
    size_t at = below(size), len;
    switch (size == 0 ? 4 : rng() % 9) {
    case 0: /* flip a bit */ data[at] ^= (uint8_t)(1u << (rng() & 7)); break;
    case 1: /* any byte */ data[at] = (uint8_t)rng(); break;
    case 2: /* one off */ data[at] = (uint8_t)(data[at] + (rng() & 1 ? 1 : -1)); break;
    case 3: { /* a number at the edge, either byte order */
        size_t width = (size_t)1 << below(4);
        uint64_t v = edges[below(sizeof edges / sizeof edges[0])];
        if (width > size) width = size;
        if (at + width > size) at = size - width;
        int big = (int)(rng() & 1);
        for (size_t i = 0; i < width; i++) data[at + (big ? width - 1 - i : i)] = (uint8_t)(v >> (8 * i));
        break;
    }
    case 4: /* insert */
        len = 1 + below(16);
        if (size + len > INPUT_BYTES_MAX) break;
        memmove(data + at + len, data + at, size - at);
        for (size_t i = 0; i < len; i++) data[at + i] = (uint8_t)rng();
        size += len;
        break;
    case 5: /* delete */
        len = 1 + below(size - at < 16 ? size - at : 16);
        if (len > size - at) len = size - at;
        memmove(data + at, data + at + len, size - at - len);
        size -= len;
        break;
    case 6: /* truncate */ size = at; break;
    case 7: { /* copy a part over another */
        size_t from = below(size);
        len = 1 + below(64);
        if (len > size - from) len = size - from;
        if (len > size - at) len = size - at;
        memmove(data + at, data + from, len);
        break;
    }
    default: { /* splice: the tail of another file */
        const struct input *other = &inputs[below(input_count)];
        size_t from = below(other->size);
        len = other->size - from;
        if (len == 0 || at + len > INPUT_BYTES_MAX) break;
        memcpy(data + at, other->data + from, len);
        size = at + len;
    }
    }
    return size;
}

static uint64_t name_hash(const char *path)
{
    const char *base = strrchr(path, '/');
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */
    for (const char *p = base == NULL ? path : base + 1; *p != '\0'; p++)
        h = (h ^ (uint8_t)*p) * 0x100000001b3u;
    return h;
}

int main(int argc, char **argv)
{
    const char *base = strrchr(argv[0], '/');
    const char *name = base == NULL ? argv[0] : base + 1;
    if (strncmp(name, "fuzz_", 5) == 0) name += 5;
    const char *build = getenv("OMEN_BUILD");
    if (build == NULL || *build == '\0') build = ".";
    uint64_t seed = number_from_env("OMEN_FUZZ_SEED", 1);
    uint64_t mutations = number_from_env("OMEN_FUZZ_MUTATIONS", 300);

    if (LLVMFuzzerInitialize != NULL) LLVMFuzzerInitialize(&argc, &argv);
    if (argc > 1) {
        for (int i = 1; i < argc; i++)
            if (!load_directory(argv[i])) load_file(argv[i]);
        mutations = number_from_env("OMEN_FUZZ_MUTATIONS", 0);
    } else {
        char corpus[512];
        snprintf(corpus, sizeof corpus, "tests/fuzz/corpus/%s", name);
        if (!load_directory(corpus)) fprintf(stderr, "fuzz: %s is missing, starting from nothing\n", corpus);
        qsort(inputs, input_count, sizeof inputs[0], by_path);
        inputs[input_count++] = (struct input){ strdup("(empty)"), calloc(1, 1), 0 };
    }

    if (__sanitizer_set_death_callback != NULL) {
        __sanitizer_set_death_callback(report);
    } else {
        const int signals[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL };
        for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++) signal(signals[i], on_signal);
    }
    signal(SIGABRT, on_signal);
    signal(SIGALRM, on_signal);

    uint8_t *scratch = malloc(INPUT_BYTES_MAX);
    if (scratch == NULL) return 2;
    uint64_t runs = 0;
    for (size_t i = 0; i < input_count; i++) {
        const struct input *in = &inputs[i];
        for (uint64_t m = 0; m <= mutations; m++) {
            size_t size = in->size;
            memcpy(scratch, in->data, size);
            rng_state = seed * 0x2545f4914f6cdd1du ^ name_hash(in->path) ^ (m << 40);
            for (size_t edits = m == 0 ? 0 : 1 + below(EDITS_MAX); edits > 0; edits--)
                size = edit(scratch, size);
            snprintf(now_name, sizeof now_name, "%s, seed %llu, mutation %llu", in->path,
                    (unsigned long long)seed, (unsigned long long)m);
            snprintf(crash_path, sizeof crash_path, "%s/crash-%s-%llu-%zu-%llu", build, name,
                    (unsigned long long)seed, i, (unsigned long long)m);
            run_one(scratch, size);
            runs++;
        }
    }
    printf("fuzz: %s: %llu runs from %zu inputs, seed %llu\n", name, (unsigned long long)runs, input_count,
            (unsigned long long)seed);
    for (size_t i = 0; i < input_count; i++) {
        free(inputs[i].path);
        free(inputs[i].data);
    }
    free(scratch);
    return 0;
}
