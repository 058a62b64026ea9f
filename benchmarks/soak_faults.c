/* Faults at the system calls of a process, for benchmarks/soak.py: compiled there, and loaded with LD_PRELOAD.

   soak_arm(prefix, mode, at): in this process, the system calls that change files below the folder `prefix` are counted
   from 1. At number `at`:

     0  nothing (count only)
     1  SIGKILL before the call
     2  SIGKILL after it
     3  SIGKILL after half of the bytes of a write; before any other call
     4  from here on the disk is full: what would need new space fails with ENOSPC, a write after half of its bytes

   soak_count(): the number of calls so far. Writes inside glibc (stdio) and through memory maps are not seen. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

enum { COUNT, BEFORE, AFTER, TORN, FULL };

static char prefix[4096];
static size_t prefix_length;
static int mode, armed;
static long at;
static atomic_long calls;

void soak_arm(const char *folder, int how, long number) {
    prefix_length = strlen(folder);
    if (prefix_length >= sizeof prefix) return;
    memcpy(prefix, folder, prefix_length + 1);
    mode = how;
    at = number;
    calls = 0;
    armed = 1;
}

long soak_count(void) { return calls; }

static void die(void) { kill(getpid(), SIGKILL); for (;;) pause(); }

static int below(const char *path) {
    if (!armed || path == NULL) return 0;
    if (path[0] == '/') return strncmp(path, prefix, prefix_length) == 0;
    char here[8192];
    if (getcwd(here, 4096) == NULL) return 0;
    strncat(here, "/", 2);
    strncat(here, path, 4000);
    return strncmp(here, prefix, prefix_length) == 0;
}

static int of(int fd) {
    if (!armed) return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return strncmp(path, prefix, prefix_length) == 0;
}

/* What to do at the next call: COUNT for nothing. */
static int next(int relevant) {
    if (!relevant) return COUNT;
    long number = ++calls;
    if (mode == FULL) return number >= at ? FULL : COUNT;
    return number == at ? mode : COUNT;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

/* A call that needs no new space. */
#define PLAIN(relevant, call) \
    int what = next(relevant); \
    if (what == BEFORE || what == TORN) die(); \
    int result = call; \
    if (what == AFTER) die(); \
    return result

/* A call that needs new space; `fails` is what it returns then. */
#define GROWING(relevant, call, fails) \
    int what = next(relevant); \
    if (what == BEFORE || what == TORN) die(); \
    if (what == FULL) { fails; } \
    int result = call; \
    if (what == AFTER) die(); \
    return result

/* Bytes of a write that fit on a full disk: those over what the file has already. */
static size_t room(int fd, off_t offset, size_t count) {
    struct stat status;
    if (fstat(fd, &status) != 0) return 0;
    if (offset < 0) offset = (fcntl(fd, F_GETFL) & O_APPEND) ? status.st_size : lseek(fd, 0, SEEK_CUR);
    if (offset < 0 || offset >= status.st_size) return 0;
    off_t rest = status.st_size - offset;
    return (size_t)rest < count ? (size_t)rest : count;
}

ssize_t write(int fd, const void *bytes, size_t count) {
    REAL(write);
    int what = next(of(fd));
    if (what == BEFORE) die();
    if (what == TORN) { real(fd, bytes, count / 2); die(); }
    if (what == FULL) {
        size_t fits = room(fd, -1, count);
        if (fits == 0) { if (count > 1 && calls == at) return real(fd, bytes, count / 2); errno = ENOSPC; return -1; }
        count = fits;
    }
    ssize_t result = real(fd, bytes, count);
    if (what == AFTER) die();
    return result;
}

static ssize_t write_at(ssize_t (*real)(int, const void *, size_t, off_t), int fd, const void *bytes, size_t count,
                        off_t offset) {
    int what = next(of(fd));
    if (what == BEFORE) die();
    if (what == TORN) { real(fd, bytes, count / 2, offset); die(); }
    if (what == FULL) {
        size_t fits = room(fd, offset, count);
        if (fits == 0) { errno = ENOSPC; return -1; }
        count = fits;
    }
    ssize_t result = real(fd, bytes, count, offset);
    if (what == AFTER) die();
    return result;
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t offset) {
    REAL(pwrite);
    return write_at(real, fd, bytes, count, offset);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off_t offset) {
    REAL(pwrite64);
    return write_at(real, fd, bytes, count, offset);
}

int fsync(int fd) { REAL(fsync); PLAIN(of(fd), real(fd)); }

int fdatasync(int fd) { REAL(fdatasync); PLAIN(of(fd), real(fd)); }

int rename(const char *from, const char *to) {
    REAL(rename);
    PLAIN(below(to), real(from, to));
}

int unlink(const char *path) { REAL(unlink); PLAIN(below(path), real(path)); }

int rmdir(const char *path) { REAL(rmdir); PLAIN(below(path), real(path)); }

int unlinkat(int folder, const char *path, int flags) {
    REAL(unlinkat);
    PLAIN(folder == AT_FDCWD ? below(path) : of(folder), real(folder, path, flags));
}

int mkdir(const char *path, mode_t rights) {
    REAL(mkdir);
    GROWING(below(path), real(path, rights), errno = ENOSPC; return -1);
}

int ftruncate(int fd, off_t size) { REAL(ftruncate); PLAIN(of(fd), real(fd, size)); }

int ftruncate64(int fd, off_t size) { REAL(ftruncate64); PLAIN(of(fd), real(fd, size)); }

int posix_fallocate(int fd, off_t offset, off_t size) {
    REAL(posix_fallocate);
    GROWING(of(fd), real(fd, offset, size), return ENOSPC);
}

int posix_fallocate64(int fd, off_t offset, off_t size) {
    REAL(posix_fallocate64);
    GROWING(of(fd), real(fd, offset, size), return ENOSPC);
}

static ssize_t send_to(ssize_t (*real)(int, int, off_t *, size_t), int out, int in, off_t *offset, size_t count) {
    int what = next(of(out));
    if (what == BEFORE) die();
    if (what == TORN) { real(out, in, offset, count / 2); die(); }
    if (what == FULL) { errno = ENOSPC; return -1; }
    ssize_t result = real(out, in, offset, count);
    if (what == AFTER) die();
    return result;
}

ssize_t sendfile(int out, int in, off_t *offset, size_t count) {
    REAL(sendfile);
    return send_to(real, out, in, offset, count);
}

ssize_t sendfile64(int out, int in, off64_t *offset, size_t count) {
    REAL(sendfile64);
    return send_to(real, out, in, offset, count);
}

/* libfaketime 0.9.10 fails absolute sleeps on the monotonic clock, as Python's, when it leaves that clock as it is. */
int clock_nanosleep(clockid_t clock, int flags, const struct timespec *until, struct timespec *rest) {
    return syscall(SYS_clock_nanosleep, clock, flags, until, rest) == 0 ? 0 : errno;
}
