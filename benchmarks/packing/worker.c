/* A worker of `make bench-packing`: a cell that computes nothing, and takes its memory and its time for real.
 *
 * The device is the fake NVML's (tests/fake_nvml), found through LD_LIBRARY_PATH and FAKE_NVML_STATE. What it takes is
 * gone for its neighbours; what they have taken is refused. It honours BOUNDD_MEMORY_CAP_BYTES as torch's allocator
 * does: its context comes on top, and is not seen by its own counters.
 *
 *     worker TRUTHS RECORD            as boundd's worker: how the cell really behaves is in TRUTHS/<digest>
 *     worker RECORD UUID BYTES SECONDS    as somebody else's process, which takes what is free, up to BYTES, and goes
 *
 * Each appends to RECORD what really happened, a line of JSON at a time: boundd doesn't read that file.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define CONTEXT_BYTES (UINT64_C(1) << 29)
#define STEPS 8 /* requests for each rise of the ramp, as weights are loaded part by part */
#define MOST_PROCESSES 128
#define MOST_MARKS 16
enum { OUT_OF_MEMORY = 2 };

typedef struct { unsigned int pid; unsigned long long bytes; unsigned int gpu_instance, compute_instance; } info_t;

static int (*take)(const char *, uint64_t, uint64_t *);
static int (*look)(const char *, uint64_t *, uint64_t *);
static int (*start)(void);
static int (*find)(const char *, void **);
static int (*list)(void *, unsigned int *, info_t *);
static void *device;
static const char *uuid, *attempt, *record;
static uint64_t held, peak;

static void die(const char *why) {
    fprintf(stderr, "worker: %s\n", why);
    exit(70);
}

static void *symbol(void *library, const char *name) {
    void *found = dlsym(library, name);
    if (found == NULL) die(dlerror());
    return found;
}

static void open_device(void) {
    void *library = dlopen("libnvidia-ml.so.1", RTLD_NOW);
    if (library == NULL) die(dlerror());
    *(void **)&take = symbol(library, "fakeMalloc");
    *(void **)&look = symbol(library, "fakeMemGetInfo");
    *(void **)&start = symbol(library, "nvmlInit_v2");
    *(void **)&find = symbol(library, "nvmlDeviceGetHandleByUUID");
    *(void **)&list = symbol(library, "nvmlDeviceGetComputeRunningProcesses_v3");
    if (start() != 0 || find(uuid, &device) != 0) die("no such device");
}

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void sleep_until(double at_s) {
    struct timespec at = {(time_t)at_s, (long)((at_s - (double)(time_t)at_s) * 1e9)};
    while (clock_nanosleep(CLOCK_BOOTTIME, TIMER_ABSTIME, &at, NULL) != 0) {}
}

/* A whole line at the end of a file in one write: others append to it too. */
static void append(const char *path, const char *format, ...) {
    char line[8192];
    va_list values;
    va_start(values, format);
    int length = vsnprintf(line, sizeof line, format, values);
    va_end(values);
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0 || length >= (int)sizeof line || write(fd, line, (size_t)length) != length) die("can't write a line");
    close(fd);
}

/* Who holds what on the device, as JSON pairs. */
static const char *holders(void) {
    static char text[6000];
    info_t infos[MOST_PROCESSES];
    unsigned int count = MOST_PROCESSES;
    size_t used = 0;
    if (list(device, &count, infos) != 0) die("the driver doesn't list processes");
    for (unsigned int i = 0; i < count; i++)
        used += (size_t)snprintf(text + used, sizeof text - used, "%s[%u, %llu]", i ? ", " : "", infos[i].pid,
                                 infos[i].bytes);
    text[used] = 0;
    return text;
}

static void tell(const char *what, const char *more) {
    append(record, "{\"what\": \"%s\", \"attempt\": \"%s\", \"pid\": %d, \"device\": \"%s\", \"at_s\": %.6f%s, "
           "\"peak_bytes\": %" PRIu64 ", \"holders\": [%s]}\n",
           what, attempt, (int)getpid(), uuid, now_s(), more, peak, holders());
}

/* The allocator's own account: the context is not in it. */
static uint64_t counted(uint64_t bytes) { return bytes > CONTEXT_BYTES ? bytes - CONTEXT_BYTES : 0; }

static void ran_out(uint64_t wanted, uint64_t asked, uint64_t free_bytes) {
    char more[256];
    snprintf(more, sizeof more, ", \"wanted_bytes\": %" PRIu64 ", \"held_bytes\": %" PRIu64 ", \"free_bytes\": %" PRIu64,
             wanted, held, free_bytes);
    tell("out_of_memory", more);
    const char *results = getenv("BOUNDD_RESULTS");
    append(results, "{\"type\": \"memory\", \"peak_allocated_bytes\": %" PRIu64 ", \"peak_reserved_bytes\": %" PRIu64
           "}\n", counted(peak), counted(peak));
    append(results, "{\"type\": \"error\", \"error\": \"out_of_memory\", \"message\": \"CUDA out of memory\", "
           "\"phase\": \"generate\", \"requested_bytes\": %" PRIu64 ", \"free_bytes\": %" PRIu64 "}\n", asked, free_bytes);
    exit(1);
}

/* Hold so many bytes, the context among them, in steps; ends the process where the cap or the device refuses one. */
static void hold(uint64_t wanted, uint64_t cap) {
    uint64_t step = wanted > held ? (wanted - held + STEPS - 1) / STEPS : 0, free_bytes = 0, total;
    while (held < wanted) {
        uint64_t asked = wanted - held < step ? wanted - held : step;
        uint64_t of_allocator = counted(held + asked) - counted(held);
        if (cap && counted(held + asked) > cap) {
            look(uuid, &free_bytes, &total);
            ran_out(wanted, of_allocator, free_bytes);
        }
        int error = take(uuid, asked, &free_bytes);
        if (error == OUT_OF_MEMORY) ran_out(wanted, of_allocator ? of_allocator : asked, free_bytes);
        if (error) die("the device is gone");
        held += asked;
        if (held > peak) peak = held;
    }
}

static int visit(uint64_t bytes, double lasts_s) {
    double until_s = now_s() + lasts_s;
    uint64_t free_bytes = 0, total;
    attempt = "";
    open_device();
    do { /* somebody may take it between the look and the request */
        if (look(uuid, &free_bytes, &total) != 0) die("the device is gone");
        held = bytes < free_bytes ? bytes : free_bytes;
    } while (held && take(uuid, held, &free_bytes) != 0);
    peak = held;
    tell("foreign", "");
    sleep_until(until_s);
    tell("left", "");
    return 0;
}

static uint64_t whole(const char *name) {
    const char *text = getenv(name);
    return text == NULL ? 0 : strtoull(text, NULL, 10);
}

int main(int count, char **arguments) {
    double begun_s = now_s();
    record = count > 2 ? arguments[count == 5 ? 1 : 2] : NULL;
    if (count == 5) {
        uuid = arguments[2];
        return visit(strtoull(arguments[3], NULL, 10), atof(arguments[4]));
    }
    attempt = getenv("BOUNDD_ATTEMPT"), uuid = getenv("CUDA_VISIBLE_DEVICES");
    if (count != 3 || attempt == NULL || uuid == NULL || getenv("BOUNDD_RESULTS") == NULL)
        die("usage: worker TRUTHS RECORD, with boundd's environment");

    /* digest.number */
    char path[4096];
    const char *dot = strchr(attempt, '.');
    if (dot == NULL) die("BOUNDD_ATTEMPT has no number");
    int number = atoi(dot + 1);
    snprintf(path, sizeof path, "%s/%.*s", arguments[1], (int)(dot - attempt), attempt);
    FILE *truth = fopen(path, "re");
    double duration_s, at[MOST_MARKS], share[MOST_MARKS], ends_at = 1.0;
    uint64_t fixed, image;
    int marks, mishaps;
    char end[16] = "result";
    if (truth == NULL || fscanf(truth, "%lf %" SCNu64 " %" SCNu64 " %d", &duration_s, &fixed, &image, &marks) != 4 ||
        marks > MOST_MARKS)
        die("no truth about this cell");
    for (int i = 0; i < marks; i++)
        if (fscanf(truth, "%lf %lf", &at[i], &share[i]) != 2) die("a broken truth");
    /* What befalls the first attempts, one each; the last line is what befalls all others. */
    if (fscanf(truth, "%d", &mishaps) != 1) die("a broken truth");
    for (int i = 1; i <= mishaps; i++) {
        if (fscanf(truth, "%15s %lf", end, &ends_at) != 2) die("a broken truth");
        if (i == number) break;
    }
    fclose(truth);

    uint64_t batch = whole("BOUNDD_BATCH_SIZE"), cap = whole("BOUNDD_MEMORY_CAP_BYTES");
    uint64_t full = fixed + image * (batch ? batch : 1);
    open_device();
    tell("start", "");
    const char *sick = getenv("PACKING_SICK");
    if (sick != NULL && strcmp(sick, uuid) == 0) { /* a device on which everybody dies at once */
        tell("bug", "");
        fprintf(stderr, "RuntimeError: CUDA error: unspecified launch failure\n");
        return 1;
    }
    for (int i = 0; i < marks && at[i] < ends_at; i++) {
        sleep_until(begun_s + at[i] * duration_s);
        hold((uint64_t)((double)full * share[i]), cap);
    }
    sleep_until(begun_s + ends_at * duration_s);
    tell(end, "");
    if (strcmp(end, "bug") == 0) {
        fprintf(stderr, "ValueError: a plain bug\n");
        return 1;
    }
    if (strcmp(end, "lost") == 0) { /* its shim is told to end by somebody who isn't boundd */
        kill(getppid(), SIGTERM);
        for (;;) pause();
    }
    const char *results = getenv("BOUNDD_RESULTS");
    append(results, "{\"type\": \"memory\", \"peak_allocated_bytes\": %" PRIu64 ", \"peak_reserved_bytes\": %" PRIu64
           "}\n", counted(peak), counted(peak));
    append(results, "{\"type\": \"result\", \"max_speedup\": 2.0, \"max_speedup_within_tolerance\": 1.5, "
           "\"isolation\": \"exclusive\"}\n");
    return 0;
}
