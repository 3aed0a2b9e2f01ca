/* Preloaded by test_clocks.py: clocks that jump. $CLOCK_FILE holds two numbers of seconds: by how much somebody has set
   the time of day ahead, and how long the machine has slept: CLOCK_BOOTTIME and the time of day have gone on by that,
   and CLOCK_MONOTONIC has not, as after a suspend. (libfaketime can't do the second, and its 0.9.10 breaks sleeping.) */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void read_jumps(long *set_s, long *slept_s) {
  const char *path = getenv("CLOCK_FILE");
  char text[64] = {0};
  char *rest = text;
  int descriptor = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);
  *set_s = *slept_s = 0;
  if (descriptor < 0) return;
  ssize_t count = read(descriptor, text, sizeof text - 1);
  close(descriptor);
  if (count <= 0) return;
  *set_s = strtol(text, &rest, 10);
  *slept_s = strtol(rest, NULL, 10);
}

int clock_gettime(clockid_t clock, struct timespec *out) {
  int result = (int)syscall(SYS_clock_gettime, clock, out);
  long set_s, slept_s;
  if (result != 0 || (clock != CLOCK_BOOTTIME && clock != CLOCK_REALTIME)) return result;
  read_jumps(&set_s, &slept_s);
  out->tv_sec += slept_s + (clock == CLOCK_REALTIME ? set_s : 0);
  return result;
}
