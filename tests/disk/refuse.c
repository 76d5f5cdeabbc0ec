/* A disk that refuses, for one program: preloaded (ld.so(8)), this stands before the C library's functions that write to the
   service's database and fails them while the file that DISK_REFUSES names says so. It holds two words: `write` or `sync`, and the
   number of the error. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

/* The error that this operation meets on this file, or 0. */
static int refused(const char *operation, int fd) {
    const char *control = getenv("DISK_REFUSES");
    int from = control ? open(control, O_RDONLY | O_CLOEXEC) : -1;
    if (from < 0) return 0;
    char text[32] = "";
    ssize_t length = read(from, text, sizeof text - 1);
    close(from);
    char what[8] = "";
    int error = 0;
    if (length <= 0 || sscanf(text, "%7s %d", what, &error) != 2 || strcmp(what, operation) != 0) return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    const char *name = strrchr(path, '/');
    return name && strncmp(name, "/taxiway.db", 11) == 0 ? error : 0;
}

#define STANDS_BEFORE(operation, result, name, parameters, arguments)                        \
    result name parameters {                                                                \
        static result (*real) parameters;                                                   \
        if (!real) real = (result(*) parameters)dlsym(RTLD_NEXT, #name);                    \
        int saved = errno, error = refused(operation, fd);                                  \
        if (error) {                                                                        \
            errno = error;                                                                  \
            return -1;                                                                      \
        }                                                                                   \
        errno = saved;                                                                      \
        return real arguments;                                                              \
    }

STANDS_BEFORE("write", ssize_t, write, (int fd, const void *bytes, size_t count), (fd, bytes, count))
STANDS_BEFORE("write", ssize_t, pwrite, (int fd, const void *bytes, size_t count, off_t at), (fd, bytes, count, at))
STANDS_BEFORE("write", ssize_t, pwrite64, (int fd, const void *bytes, size_t count, off64_t at), (fd, bytes, count, at))
STANDS_BEFORE("write", int, ftruncate, (int fd, off_t length), (fd, length))
STANDS_BEFORE("write", int, ftruncate64, (int fd, off64_t length), (fd, length))
STANDS_BEFORE("sync", int, fsync, (int fd), (fd))
STANDS_BEFORE("sync", int, fdatasync, (int fd), (fd))
