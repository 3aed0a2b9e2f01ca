/* A fake NVML, and a fake of the memory behind it, for tests without a GPU.
 *
 * All of it is answered from one file that every process maps (FAKE_NVML_STATE): what a test sets, what other
 * processes allocate, and the faults. A process allocates device memory with the calls at the end of this file, as it
 * would with CUDA's; what a device hasn't got is refused, and a process that has died holds nothing any more.
 *
 * The layout below is mirrored by __init__.py; `fakeLayout` tells when the two differ. Each fault is a field: an error
 * code to answer, milliseconds to take, or a flag to never return.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_DEVICES 16
#define MAX_PROCESSES 128
#define MAX_XIDS 16
#define NOT_AVAILABLE UINT64_MAX

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9, TIMEOUT = 10, VERSION_MISMATCH = 25
};
/* cudaError_t: memory ran out, the device takes no (further) process, the device is gone. */
enum { CUDA_OUT_OF_MEMORY = 2, CUDA_UNAVAILABLE = 46, CUDA_NO_DEVICE = 100, CUDA_UNKNOWN = 999 };
enum { MODE_PROHIBITED = 2, MODE_EXCLUSIVE_PROCESS = 3 };
enum { EVENT_XID = 8 };
enum { LIST_COMPUTE = 1, LIST_GRAPHICS = 2, LIST_MPS = 4 };
enum { FIELD_RECOVERY_ACTION = 230, VALUE_UNSIGNED_INT = 1 };

typedef struct {
    uint32_t pid;         /* 0: a free slot */
    uint32_t hidden;      /* 1: in use, but not in the process list */
    uint32_t kinds;       /* the lists that it is in: bits of LIST_*; 0: that of compute processes */
    uint32_t shown_pid;   /* what the lists say in place of its pid, as a driver of another namespace; 0: its pid */
    uint64_t start_ticks; /* 0: whoever has the pid, alive or not, as a test wants it */
    uint64_t bytes;
} process_t;

typedef struct {
    char uuid[96];
    char name[96];
    uint64_t total, reserved, foreign;
    int32_t lost;         /* an error that every call on the device answers */
    int32_t handle_error, identity_error, memory_error, memory_v2_error, process_error, event_error, ecc_error;
    int32_t graphics_error, mps_error; /* of the other lists of processes */
    uint32_t compute_mode, mig_mode, slow_ms, hang, bytes_unknown, crash;
    uint32_t remap_pending, remap_failed, retired_pending, recovery_action;
    uint32_t memory_unknown; /* 1: N/A in every field */
    uint64_t free_excess;    /* free memory that there isn't, to be told all the same */
    uint64_t ecc_uncorrected;
    int32_t mig_parent;   /* -1: a whole device */
    uint32_t xid_count;   /* ever; the last MAX_XIDS of them are in `xids` */
    uint64_t xids[MAX_XIDS];
    uint64_t process_queries; /* how often the process list was asked for */
    process_t processes[MAX_PROCESSES];
} fake_device_t;

typedef struct {
    uint32_t state_size, device_count;
    int32_t init_error, count_error;
    uint32_t init_ms, init_hang;
    char driver[80];
    fake_device_t devices[MAX_DEVICES];
    pthread_mutex_t lock; /* held over a look at or a change of the processes, never over a fault */
} state_t;

typedef struct { unsigned long long total, free, used; } memory_v1_t;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } memory_v2_t;
typedef struct { unsigned int pid; unsigned long long bytes; unsigned int gpu_instance, compute_instance; } info_t;
typedef struct {
    unsigned int id, scope;
    long long timestamp, latency;
    unsigned int type, result;
    union { unsigned int number; unsigned long long any; } value;
} field_t;
typedef struct { char legacy_id[16]; unsigned int domain, bus, device, device_id, subsystem_id; char id[32]; } pci_t;
typedef struct { unsigned int gpu, memory; } utilization_t;
typedef struct { fake_device_t *device; unsigned long long type, data; unsigned int gpu_instance, compute_instance; } event_t;
typedef struct { uint64_t registered; uint32_t seen[MAX_DEVICES]; } event_set_t;

static state_t *state;
static int initialised;

/* ---- the state ---- */

static void take(state_t *of) {
    /* A process that was killed while it held the lock leaves the state as good as it found it: each change is one
     * word, or is made before the pid that makes it count. */
    if (pthread_mutex_lock(&of->lock) == EOWNERDEAD) pthread_mutex_consistent(&of->lock);
}
static void give(state_t *of) { pthread_mutex_unlock(&of->lock); }

static state_t *map_state(const char *path) {
    int fd = path == NULL ? -1 : open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return NULL;
    state_t *mapped = mmap(NULL, sizeof(state_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped == MAP_FAILED || mapped->state_size != sizeof(state_t)) abort();
    return mapped;
}

/* Where the part ends that tests write: the size of its mirror in Python. */
unsigned int fakeLayout(void) { return offsetof(state_t, lock); }

/* Make an empty state at `path`. */
int fakeCreate(const char *path) {
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0 || ftruncate(fd, sizeof(state_t)) != 0) return -1;
    state_t *made = mmap(NULL, sizeof(state_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (made == MAP_FAILED) return -1;
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&made->lock, &attributes);
    made->state_size = sizeof(state_t);
    return munmap(made, sizeof(state_t));
}

/* When a living process started, in clock ticks since boot; 0 where it is gone or a zombie. */
static uint64_t start_ticks(uint32_t pid) {
    char path[32], text[1024];
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    if (length <= 0) return 0;
    text[length] = 0;
    char *field = strrchr(text, ')'); /* the name before it may hold anything */
    if (field == NULL || field[2] == 'Z' || field[2] == 'X') return 0;
    for (int n = 2; n < 22 && field != NULL; n++) field = strchr(field + 1, ' ');
    return field == NULL ? 0 : strtoull(field, NULL, 10);
}

/* Free what dead processes held; with the lock taken. */
static void sweep(fake_device_t *device) {
    for (process_t *p = device->processes; p < device->processes + MAX_PROCESSES; p++)
        if (p->pid && p->start_ticks && start_ticks(p->pid) != p->start_ticks) p->pid = 0;
}

/* The n-th device whose parent is `parent`. */
static fake_device_t *child_of(state_t *of, int32_t parent, unsigned int n) {
    for (unsigned int i = 0; i < of->device_count; i++)
        if (of->devices[i].mig_parent == parent && n-- == 0) return &of->devices[i];
    return NULL;
}

/* Bytes in use by processes and others, the driver's own left out; a parent in MIG mode shows its instances' too. */
static uint64_t used(state_t *of, fake_device_t *device) {
    uint64_t sum = device->foreign;
    sweep(device);
    for (int i = 0; i < MAX_PROCESSES; i++)
        if (device->processes[i].pid) sum += device->processes[i].bytes;
    fake_device_t *instance;
    for (unsigned int n = 0; device->mig_mode && (instance = child_of(of, (int32_t)(device - of->devices), n)); n++)
        sum += used(of, instance);
    return sum;
}

static uint64_t free_of(state_t *of, fake_device_t *device) {
    uint64_t taken = device->reserved + used(of, device);
    return taken > device->total ? 0 : device->total - taken;
}

/* ---- NVML: the library and its devices ---- */

static void hang_if(uint32_t wanted) {
    while (wanted) pause();
}

static int start(void) {
    if (state == NULL && (state = map_state(getenv("FAKE_NVML_STATE"))) == NULL) return DRIVER_NOT_LOADED;
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
int nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = 12040; return SUCCESS; }
int nvmlSystemGetCudaDriverVersion(int *version) { return nvmlSystemGetCudaDriverVersion_v2(version); }

int nvmlDeviceGetCount_v2(unsigned int *count) {
    if (!initialised) return UNINITIALIZED;
    if (state->count_error) return state->count_error;
    for (*count = 0; child_of(state, -1, *count) != NULL;) ++*count;
    return SUCCESS;
}

static int handle_of(fake_device_t *device, int absent, fake_device_t **handle) {
    if (device == NULL) return absent;
    *handle = device;
    return device->lost ? device->lost : device->handle_error;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, fake_device_t **handle) {
    return initialised ? handle_of(child_of(state, -1, index), INVALID_ARGUMENT, handle) : UNINITIALIZED;
}

static fake_device_t *by_uuid(const char *uuid) {
    for (unsigned int i = 0; i < state->device_count; i++)
        if (strcmp(state->devices[i].uuid, uuid) == 0) return &state->devices[i];
    return NULL;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, fake_device_t **handle) {
    return initialised ? handle_of(by_uuid(uuid), NOT_FOUND, handle) : UNINITIALIZED;
}

static unsigned int number_of(const fake_device_t *device) {
    unsigned int n = 0;
    while (child_of(state, -1, n) != device) n++;
    return n;
}

/* What every call on a device begins with. */
#define ASK(device) do { if ((device)->lost) return (device)->lost; } while (0)

int nvmlDeviceGetIndex(fake_device_t *device, unsigned int *index) {
    ASK(device);
    if (device->mig_parent >= 0) return NOT_SUPPORTED;
    *index = number_of(device);
    return SUCCESS;
}
int nvmlDeviceGetUUID(fake_device_t *device, char *uuid, unsigned int size) {
    ASK(device);
    return device->identity_error ? device->identity_error : copy(uuid, size, device->uuid);
}
int nvmlDeviceGetName(fake_device_t *device, char *name, unsigned int size) {
    ASK(device);
    return device->identity_error ? device->identity_error : copy(name, size, device->name);
}
int nvmlDeviceGetPciInfo_v3(fake_device_t *device, pci_t *pci) {
    ASK(device);
    memset(pci, 0, sizeof *pci);
    pci->bus = number_of(device) + 1;
    snprintf(pci->legacy_id, sizeof pci->legacy_id, "0000:%02X:00.0", pci->bus);
    snprintf(pci->id, sizeof pci->id, "00000000:%02X:00.0", pci->bus);
    return SUCCESS;
}
int nvmlDeviceGetHandleByPciBusId_v2(const char *id, fake_device_t **handle) {
    unsigned int bus = 0;
    if (sscanf(strchr(id, ':') ? strchr(id, ':') : id, ":%X:", &bus) != 1 || bus == 0) return NOT_FOUND;
    return nvmlDeviceGetHandleByIndex_v2(bus - 1, handle);
}

/* ---- NVML: memory and processes ---- */

static int before_memory(const fake_device_t *device) {
    usleep(device->slow_ms * 1000u);
    hang_if(device->hang);
    if (device->crash) abort();
    return device->lost ? device->lost : device->memory_error;
}

int nvmlDeviceGetMemoryInfo(fake_device_t *device, memory_v1_t *memory) {
    int error = before_memory(device);
    if (error) return error;
    take(state);
    memory->total = device->total;
    memory->free = free_of(state, device) + device->free_excess;
    memory->used = memory->total - memory->free; /* the first version counts the driver's own as used */
    if (device->memory_unknown) *memory = (memory_v1_t){NOT_AVAILABLE, NOT_AVAILABLE, NOT_AVAILABLE};
    give(state);
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(fake_device_t *device, memory_v2_t *memory) {
    int error = before_memory(device);
    if (error) return error;
    if (device->memory_v2_error) return device->memory_v2_error;
    if (memory->version != 0x02000028) return VERSION_MISMATCH;
    take(state);
    memory->total = device->total;
    memory->reserved = device->reserved;
    memory->free = free_of(state, device);
    memory->used = memory->total - memory->reserved - memory->free;
    memory->free += device->free_excess;
    if (device->memory_unknown) memory->total = memory->reserved = memory->free = memory->used = NOT_AVAILABLE;
    give(state);
    return SUCCESS;
}

static int list(fake_device_t *device, uint32_t kind, int error, unsigned int *count, info_t *infos) {
    unsigned int room = *count, n = 0;
    ASK(device);
    if (kind == LIST_COMPUTE && room) device->process_queries++; /* without room, it only asks how many there are */
    if (error) return error;
    take(state);
    sweep(device);
    for (int i = 0; i < MAX_PROCESSES; i++) {
        const process_t *process = &device->processes[i];
        if (!process->pid || process->hidden || !((process->kinds ? process->kinds : LIST_COMPUTE) & kind)) continue;
        if (n < room) infos[n] = (info_t){process->shown_pid ? process->shown_pid : process->pid,
                                          device->bytes_unknown ? NOT_AVAILABLE : process->bytes,
                                          UINT32_MAX, UINT32_MAX};
        n++;
    }
    give(state);
    if (kind == LIST_COMPUTE && n == 0 && !room) device->process_queries++; /* no second call will come */
    *count = n;
    return n > room ? INSUFFICIENT_SIZE : SUCCESS;
}
int nvmlDeviceGetComputeRunningProcesses_v3(fake_device_t *device, unsigned int *count, info_t *infos) {
    return list(device, LIST_COMPUTE, device->process_error, count, infos);
}
int nvmlDeviceGetComputeRunningProcesses_v2(fake_device_t *device, unsigned int *count, info_t *infos) {
    return nvmlDeviceGetComputeRunningProcesses_v3(device, count, infos);
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(fake_device_t *device, unsigned int *count, info_t *infos) {
    return list(device, LIST_GRAPHICS, device->graphics_error, count, infos);
}
int nvmlDeviceGetMPSComputeRunningProcesses_v3(fake_device_t *device, unsigned int *count, info_t *infos) {
    return list(device, LIST_MPS, device->mps_error, count, infos);
}

/* ---- NVML: mode, MIG, health ---- */

int nvmlDeviceGetComputeMode(fake_device_t *device, unsigned int *mode) {
    ASK(device);
    if (device->mig_parent >= 0) return NOT_SUPPORTED;
    *mode = device->compute_mode;
    return SUCCESS;
}

int nvmlDeviceGetMigMode(fake_device_t *device, unsigned int *current, unsigned int *pending) {
    ASK(device);
    if (device->mig_parent >= 0) return NOT_SUPPORTED;
    *current = *pending = device->mig_mode;
    return SUCCESS;
}
int nvmlDeviceGetMaxMigDeviceCount(fake_device_t *device, unsigned int *count) {
    ASK(device);
    *count = device->mig_parent >= 0 ? 0 : 7;
    return SUCCESS;
}
int nvmlDeviceGetMigDeviceHandleByIndex(fake_device_t *device, unsigned int index, fake_device_t **instance) {
    ASK(device);
    return handle_of(child_of(state, (int32_t)(device - state->devices), index), NOT_FOUND, instance);
}
int nvmlDeviceIsMigDeviceHandle(fake_device_t *device, unsigned int *is) {
    *is = device->mig_parent >= 0;
    return SUCCESS;
}
int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(fake_device_t *instance, fake_device_t **parent) {
    return instance->mig_parent < 0 ? INVALID_ARGUMENT : handle_of(&state->devices[instance->mig_parent], 0, parent);
}

int nvmlDeviceGetTotalEccErrors(fake_device_t *device, int kind, int counter, unsigned long long *count) {
    (void)counter;
    ASK(device);
    if (device->ecc_error) return device->ecc_error;
    *count = kind == 1 ? device->ecc_uncorrected : 0;
    return SUCCESS;
}
int nvmlDeviceGetRemappedRows(fake_device_t *device, unsigned int *corrected, unsigned int *uncorrected,
                              unsigned int *pending, unsigned int *failed) {
    ASK(device);
    if (device->ecc_error) return device->ecc_error;
    *corrected = *uncorrected = 0;
    *pending = device->remap_pending;
    *failed = device->remap_failed;
    return SUCCESS;
}

int nvmlDeviceGetRetiredPagesPendingStatus(fake_device_t *device, int *pending) {
    ASK(device);
    if (device->ecc_error) return device->ecc_error;
    *pending = (int)device->retired_pending;
    return SUCCESS;
}
int nvmlDeviceGetFieldValues(fake_device_t *device, int count, field_t *fields) {
    ASK(device);
    for (field_t *field = fields; field < fields + count; field++) {
        field->result = field->id == FIELD_RECOVERY_ACTION ? SUCCESS : NOT_SUPPORTED;
        field->type = VALUE_UNSIGNED_INT;
        field->value.number = device->recovery_action;
    }
    return SUCCESS;
}

int nvmlEventSetCreate(event_set_t **set) {
    *set = calloc(1, sizeof(event_set_t));
    return initialised ? SUCCESS : UNINITIALIZED;
}
int nvmlEventSetFree(event_set_t *set) { free(set); return SUCCESS; }

int nvmlDeviceRegisterEvents(fake_device_t *device, unsigned long long types, event_set_t *set) {
    ASK(device);
    if (device->event_error) return device->event_error;
    if (device->mig_parent >= 0 || !(types & EVENT_XID)) return NOT_SUPPORTED;
    set->registered |= 1ull << (device - state->devices);
    set->seen[device - state->devices] = device->xid_count; /* what was before is lost */
    return SUCCESS;
}

int nvmlEventSetWait_v2(event_set_t *set, event_t *event, unsigned int timeout_ms) {
    for (unsigned int i = 0; i < MAX_DEVICES; i++) {
        fake_device_t *device = &state->devices[i];
        if (!(set->registered >> i & 1) || set->seen[i] == device->xid_count) continue;
        unsigned long long xid = device->xids[set->seen[i]++ % MAX_XIDS];
        *event = (event_t){device, EVENT_XID, xid, UINT32_MAX, UINT32_MAX};
        return SUCCESS;
    }
    usleep(timeout_ms * 1000u);
    return TIMEOUT;
}

/* ---- NVML: what boundd and the tools that people watch GPUs with ask for besides ---- */

int nvmlDeviceGetUtilizationRates(fake_device_t *device, utilization_t *rates) {
    ASK(device);
    take(state);
    *rates = (utilization_t){used(state, device) ? 100 : 0, 0};
    give(state);
    return SUCCESS;
}
int nvmlDeviceGetTemperature(fake_device_t *device, int sensor, unsigned int *celsius) {
    (void)sensor;
    ASK(device);
    *celsius = 40;
    return SUCCESS;
}
int nvmlDeviceGetClockInfo(fake_device_t *device, int kind, unsigned int *mhz) {
    (void)kind;
    ASK(device);
    *mhz = 1410;
    return SUCCESS;
}
int nvmlDeviceGetCurrentClocksEventReasons(fake_device_t *device, unsigned long long *reasons) {
    ASK(device);
    *reasons = 0;
    return SUCCESS;
}
int nvmlDeviceGetCudaComputeCapability(fake_device_t *device, int *major, int *minor) {
    ASK(device);
    *major = 8, *minor = 0;
    return SUCCESS;
}

/* A driver that lacks a thing says so; only an old library lacks the function. */
#define LACKS(name) int name(void) { return initialised ? NOT_SUPPORTED : UNINITIALIZED; }
LACKS(nvmlDeviceGetFanSpeed) LACKS(nvmlDeviceGetPowerUsage) LACKS(nvmlDeviceGetEnforcedPowerLimit)
LACKS(nvmlDeviceGetPowerManagementLimit) LACKS(nvmlDeviceGetEncoderUtilization) LACKS(nvmlDeviceGetSerial)
LACKS(nvmlDeviceGetDecoderUtilization) LACKS(nvmlDeviceGetPcieThroughput) LACKS(nvmlDeviceGetPersistenceMode)
LACKS(nvmlDeviceGetPerformanceState) LACKS(nvmlDeviceGetDisplayMode) LACKS(nvmlDeviceGetDisplayActive)
LACKS(nvmlDeviceGetCurrentDriverModel) LACKS(nvmlDeviceGetDriverModel) LACKS(nvmlDeviceGetDriverModel_v2)
LACKS(nvmlDeviceGetMaxClockInfo) LACKS(nvmlDeviceGetBAR1MemoryInfo) LACKS(nvmlDeviceGetProcessUtilization)
LACKS(nvmlDeviceGetConfComputeMemSizeInfo)
LACKS(nvmlDeviceGetRunningProcessDetailList) LACKS(nvmlDeviceGetGpuInstanceId) LACKS(nvmlDeviceGetComputeInstanceId)
LACKS(nvmlDeviceGetTemperatureV) LACKS(nvmlDeviceGetEccMode)
LACKS(nvmlDeviceGetCurrentClocksThrottleReasons) LACKS(nvmlDeviceGetSupportedClocksEventReasons)

/* ---- the memory: what CUDA would be asked for ---- */

/* Let `pid` take so many bytes more; the free bytes as they were are in `*free_bytes`. A process that is `bound` frees
 * what it held when it dies. Returns a cudaError_t. */
int fakeAllocate(state_t *of, unsigned int index, uint32_t pid, uint64_t bytes, int hidden, int bound,
                 uint64_t *free_bytes) {
    fake_device_t *device = &of->devices[index];
    process_t *own = NULL, *slot = NULL;
    int others = 0, error = SUCCESS;
    take(of);
    *free_bytes = free_of(of, device);
    sched_yield(); /* others come in between here, if the lock lets them */
    for (process_t *p = device->processes; p < device->processes + MAX_PROCESSES; p++) {
        if (p->pid == pid) own = p;
        else if (p->pid) others++;
        else if (slot == NULL) slot = p;
    }
    if (device->lost) error = CUDA_UNKNOWN;
    else if (device->mig_mode) error = CUDA_NO_DEVICE;
    else if (device->compute_mode == MODE_PROHIBITED) error = CUDA_UNAVAILABLE;
    else if (device->compute_mode == MODE_EXCLUSIVE_PROCESS && others) error = CUDA_UNAVAILABLE;
    else if (bytes > *free_bytes || (own == NULL && slot == NULL)) error = CUDA_OUT_OF_MEMORY;
    else {
        if (own == NULL) {
            *slot = (process_t){0, (uint32_t)hidden, 0, 0, bound ? start_ticks(pid) : 0, 0};
            own = slot;
        }
        own->bytes += bytes;
        own->hidden |= (uint32_t)hidden;
        own->pid = pid;
        if (device->reserved + used(of, device) > device->total) abort(); /* the lock is what keeps this from being */
    }
    give(of);
    return error;
}

/* Take up to so many bytes back from `pid`; one that holds nothing more is off the device, if `leave`. */
void fakeRelease(state_t *of, unsigned int index, uint32_t pid, uint64_t bytes, int leave) {
    take(of);
    for (process_t *p = of->devices[index].processes; p < of->devices[index].processes + MAX_PROCESSES; p++) {
        if (p->pid != pid) continue;
        p->bytes -= bytes < p->bytes ? bytes : p->bytes;
        if (p->bytes == 0 && leave) p->pid = 0;
    }
    give(of);
}

static fake_device_t *visible(const char *uuid) {
    if (state == NULL) state = map_state(getenv("FAKE_NVML_STATE"));
    return state == NULL ? NULL : by_uuid(uuid);
}

/* For the process itself: cudaMalloc, cudaFree and cudaMemGetInfo on the device of this UUID. */
int fakeMalloc(const char *uuid, uint64_t bytes, uint64_t *free_bytes) {
    fake_device_t *device = visible(uuid);
    if (device == NULL) return CUDA_NO_DEVICE;
    return fakeAllocate(state, (unsigned int)(device - state->devices), (uint32_t)getpid(), bytes, 0, 1, free_bytes);
}
void fakeFree(const char *uuid, uint64_t bytes) {
    fake_device_t *device = visible(uuid);
    if (device != NULL) fakeRelease(state, (unsigned int)(device - state->devices), (uint32_t)getpid(), bytes, 0);
}
int fakeMemGetInfo(const char *uuid, uint64_t *free_bytes, uint64_t *total) {
    fake_device_t *device = visible(uuid);
    if (device == NULL) return CUDA_NO_DEVICE;
    if (device->lost) return CUDA_UNKNOWN;
    take(state);
    *free_bytes = free_of(state, device);
    *total = device->total;
    give(state);
    return SUCCESS;
}
