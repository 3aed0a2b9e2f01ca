/* A fake NVML for tests: the calls that a probe needs, answered from a file shared with the test (FAKE_NVML_STATE).
 *
 * The layout below is mirrored by __init__.py, which checks `state_size`. Each fault is a field: an error code to
 * answer, milliseconds to take, or a flag to never return.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_DEVICES 16
#define MAX_PROCESSES 32
#define NOT_AVAILABLE UINT64_MAX

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9
};

typedef struct {
    uint32_t pid;      /* 0: a free slot */
    uint32_t hidden;   /* 1: in use, but not in the process list */
    uint64_t bytes;
} process_t;

typedef struct {
    char uuid[96];
    char name[96];
    uint64_t total, reserved, foreign;
    int32_t handle_error, identity_error, memory_error, memory_v2_error, process_error;
    uint32_t compute_mode, mig_mode, slow_ms, hang, bytes_unknown, crash;
    int32_t mig_parent; /* -1: a whole device */
    process_t processes[MAX_PROCESSES];
} fake_device_t;

typedef struct {
    uint32_t state_size, device_count;
    int32_t init_error, count_error;
    uint32_t init_ms, init_hang;
    char driver[80];
    fake_device_t devices[MAX_DEVICES];
} state_t;

typedef struct { unsigned long long total, free, used; } memory_v1_t;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } memory_v2_t;
typedef struct { unsigned int pid; unsigned long long bytes; unsigned int gpu_instance, compute_instance; } info_t;

static state_t *state;
static int initialised;

static void hang_if(uint32_t wanted) {
    while (wanted) pause();
}

static int start(void) {
    const char *path = getenv("FAKE_NVML_STATE");
    int fd = path == NULL ? -1 : open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return DRIVER_NOT_LOADED;
    state = mmap(NULL, sizeof(state_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (state == MAP_FAILED || state->state_size != sizeof(state_t)) abort();
    usleep(state->init_ms * 1000u);
    hang_if(state->init_hang);
    initialised = state->init_error == SUCCESS;
    return state->init_error;
}

int nvmlInitWithFlags(unsigned int flags) { (void)flags; return start(); }
int nvmlInit_v2(void) { return start(); }
int nvmlInit(void) { return start(); }
int nvmlShutdown(void) { initialised = 0; return SUCCESS; }

const char *nvmlErrorString(int code) { (void)code; return "Fake error"; }

static int copy(char *to, unsigned int size, const char *from) {
    if (strlen(from) >= size) return INSUFFICIENT_SIZE;
    strcpy(to, from);
    return SUCCESS;
}

int nvmlSystemGetDriverVersion(char *version, unsigned int size) {
    return initialised ? copy(version, size, state->driver) : UNINITIALIZED;
}
int nvmlSystemGetNVMLVersion(char *version, unsigned int size) { return nvmlSystemGetDriverVersion(version, size); }

/* The n-th device whose parent is `parent`. */
static fake_device_t *child_of(int32_t parent, unsigned int n) {
    for (unsigned int i = 0; i < state->device_count; i++)
        if (state->devices[i].mig_parent == parent && n-- == 0) return &state->devices[i];
    return NULL;
}

int nvmlDeviceGetCount_v2(unsigned int *count) {
    if (!initialised) return UNINITIALIZED;
    if (state->count_error) return state->count_error;
    for (*count = 0; child_of(-1, *count) != NULL;) ++*count;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, fake_device_t **handle) {
    if (!initialised) return UNINITIALIZED;
    *handle = child_of(-1, index);
    return *handle == NULL ? INVALID_ARGUMENT : (*handle)->handle_error;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, fake_device_t **handle) {
    if (!initialised) return UNINITIALIZED;
    for (unsigned int i = 0; i < state->device_count; i++)
        if (strcmp(state->devices[i].uuid, uuid) == 0) {
            *handle = &state->devices[i];
            return (*handle)->handle_error;
        }
    return NOT_FOUND;
}

int nvmlDeviceGetUUID(fake_device_t *device, char *uuid, unsigned int size) {
    return device->identity_error ? device->identity_error : copy(uuid, size, device->uuid);
}
int nvmlDeviceGetName(fake_device_t *device, char *name, unsigned int size) {
    return device->identity_error ? device->identity_error : copy(name, size, device->name);
}

static uint64_t used(const fake_device_t *device) {
    uint64_t sum = device->foreign;
    for (int i = 0; i < MAX_PROCESSES; i++)
        if (device->processes[i].pid) sum += device->processes[i].bytes;
    return sum;
}

static int before_memory(const fake_device_t *device) {
    usleep(device->slow_ms * 1000u);
    hang_if(device->hang);
    if (device->crash) abort();
    return device->memory_error;
}

int nvmlDeviceGetMemoryInfo(fake_device_t *device, memory_v1_t *memory) {
    int error = before_memory(device);
    if (error) return error;
    memory->total = device->total;
    memory->used = device->reserved + used(device); /* the first version counts the driver's own as used */
    memory->free = device->total - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(fake_device_t *device, memory_v2_t *memory) {
    int error = before_memory(device);
    if (error) return error;
    if (device->memory_v2_error) return device->memory_v2_error;
    if (memory->version != 0x02000028) return 25;
    memory->total = device->total;
    memory->reserved = device->reserved;
    memory->used = used(device);
    memory->free = device->total - device->reserved - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(fake_device_t *device, unsigned int *count, info_t *infos) {
    unsigned int room = *count, n = 0;
    if (device->process_error) return device->process_error;
    for (int i = 0; i < MAX_PROCESSES; i++) {
        const process_t *process = &device->processes[i];
        if (!process->pid || process->hidden) continue;
        if (n < room) infos[n] = (info_t){process->pid, device->bytes_unknown ? NOT_AVAILABLE : process->bytes,
                                          UINT32_MAX, UINT32_MAX};
        n++;
    }
    *count = n;
    return n > room ? INSUFFICIENT_SIZE : SUCCESS;
}

int nvmlDeviceGetComputeMode(fake_device_t *device, unsigned int *mode) {
    if (device->mig_parent >= 0) return NOT_SUPPORTED;
    *mode = device->compute_mode;
    return SUCCESS;
}

int nvmlDeviceGetMigMode(fake_device_t *device, unsigned int *current, unsigned int *pending) {
    if (device->mig_parent >= 0) return NOT_SUPPORTED;
    *current = *pending = device->mig_mode;
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(fake_device_t *device, unsigned int *count) {
    *count = device->mig_parent >= 0 ? 0 : 7;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(fake_device_t *device, unsigned int index, fake_device_t **instance) {
    *instance = child_of((int32_t)(device - state->devices), index);
    return *instance == NULL ? NOT_FOUND : (*instance)->handle_error;
}
