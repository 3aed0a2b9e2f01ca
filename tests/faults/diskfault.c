/* Makes the n-th call of a kind fail, for files below a path, in every process that shares the control file.
 *
 * Loaded by LD_PRELOAD; DISKFAULT_CONTROL names the control file (struct control, made by tests/faults/disk.py).
 * A call that is made to fail is not made. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum kind { OPEN, WRITE, PWRITE, FSYNC, FDATASYNC, RENAME, FTRUNCATE, FALLOCATE, MKDIR, UNLINK, PREAD, KINDS };

struct control {
    int64_t counts[16];
    int64_t kind, first, length, error, injected;
    char prefix[1024];
};

static struct control *control;

__attribute__((constructor)) static void attach(void) {
    const char *path = getenv("DISKFAULT_CONTROL");
    if (!path) return;
    int fd = (int)syscall(257 /* openat, not ours */, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0) return;
    void *found = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (found != MAP_FAILED) control = found;
    close(fd);
}

static int below(const char *path) {
    size_t length = strlen(control->prefix);
    return length && strncmp(path, control->prefix, length) == 0;
}

/* Whether this call is to fail; errno is set then. */
static int counted(enum kind kind) {
    int64_t n = __atomic_add_fetch(&control->counts[kind], 1, __ATOMIC_SEQ_CST);
    if (kind != control->kind || n < control->first || n >= control->first + control->length) return 0;
    __atomic_add_fetch(&control->injected, 1, __ATOMIC_SEQ_CST);
    errno = (int)control->error;
    return 1;
}

static int fails_path(enum kind kind, const char *path) {
    char full[PATH_MAX * 2], folder[PATH_MAX];
    if (!control || !path || !control->prefix[0]) return 0;
    if (path[0] != '/') {
        if (!getcwd(folder, sizeof folder)) return 0;
        snprintf(full, sizeof full, "%s/%s", folder, path);
        path = full;
    }
    return below(path) && counted(kind);
}

static int fails_fd(enum kind kind, int fd) {
    char link[64], path[PATH_MAX];
    if (!control || !control->prefix[0]) return 0;
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (length <= 0) return 0;
    path[length] = 0;
    return below(path) && counted(kind);
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define OPENS(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        return fails_path(OPEN, path) ? -1 : real(path, flags, mode); \
    }
OPENS(open)
OPENS(open64)

ssize_t write(int fd, const void *data, size_t size) { REAL(write); return fails_fd(WRITE, fd) ? -1 : real(fd, data, size); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { REAL(pwrite); return fails_fd(PWRITE, fd) ? -1 : real(fd, data, size, at); }
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { REAL(pwrite64); return fails_fd(PWRITE, fd) ? -1 : real(fd, data, size, at); }
ssize_t pread64(int fd, void *data, size_t size, off64_t at) { REAL(pread64); return fails_fd(PREAD, fd) ? -1 : real(fd, data, size, at); }
int fsync(int fd) { REAL(fsync); return fails_fd(FSYNC, fd) ? -1 : real(fd); }
int fdatasync(int fd) { REAL(fdatasync); return fails_fd(FDATASYNC, fd) ? -1 : real(fd); }
int rename(const char *from, const char *to) { REAL(rename); return fails_path(RENAME, to) ? -1 : real(from, to); }
int ftruncate(int fd, off_t size) { REAL(ftruncate); return fails_fd(FTRUNCATE, fd) ? -1 : real(fd, size); }
int ftruncate64(int fd, off64_t size) { REAL(ftruncate64); return fails_fd(FTRUNCATE, fd) ? -1 : real(fd, size); }
int posix_fallocate(int fd, off_t at, off_t size) { REAL(posix_fallocate); return fails_fd(FALLOCATE, fd) ? errno : real(fd, at, size); }
int posix_fallocate64(int fd, off64_t at, off64_t size) { REAL(posix_fallocate64); return fails_fd(FALLOCATE, fd) ? errno : real(fd, at, size); }
int mkdir(const char *path, mode_t mode) { REAL(mkdir); return fails_path(MKDIR, path) ? -1 : real(path, mode); }
int unlink(const char *path) { REAL(unlink); return fails_path(UNLINK, path) ? -1 : real(path); }
