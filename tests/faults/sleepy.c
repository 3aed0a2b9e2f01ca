/* Preloaded by test_clocks.py: a machine that has slept. CLOCK_BOOTTIME and the time of day have gone on by as many
   seconds as $SLEPT_FILE says, and CLOCK_MONOTONIC has not, as after a suspend. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static time_t slept_s(void) {
  const char *path = getenv("SLEPT_FILE");
  char text[32] = {0};
  int descriptor = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return 0;
  ssize_t count = read(descriptor, text, sizeof text - 1);
  close(descriptor);
  return count > 0 ? atol(text) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *out) {
  int result = (int)syscall(SYS_clock_gettime, clock, out);
  if (result == 0 && (clock == CLOCK_BOOTTIME || clock == CLOCK_REALTIME)) out->tv_sec += slept_s();
  return result;
}
