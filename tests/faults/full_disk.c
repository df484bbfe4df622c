/* Simulate a full disk for the server that preloads this library (LD_PRELOAD, Linux).

   The file named by FULL_DISK contains the path of a folder. While that file exists, every call that
   would extend a file in or below the folder fails with ENOSPC. Overwriting still works. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name)) dlsym(RTLD_NEXT, #name))

static int is_on_full_disk(int fd)
{
    char folder[PATH_MAX] = "", link[64], path[PATH_MAX] = "";
    const char *flag = getenv("FULL_DISK");
    int file = flag == NULL ? -1 : open(flag, O_RDONLY | O_CLOEXEC);

    if (file < 0)
        return 0;
    ssize_t length = read(file, folder, sizeof folder - 1);
    close(file);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    return length > 0 && readlink(link, path, sizeof path - 1) > 0
        && strncmp(path, folder, length) == 0;
}

static int has_no_room(int fd, off_t end)
{
    int before = errno;
    struct stat status;
    int none = is_on_full_disk(fd) && fstat(fd, &status) == 0 && end > status.st_size;

    errno = none ? ENOSPC : before;
    return none;
}

ssize_t write(int fd, const void *bytes, size_t count)
{
    return has_no_room(fd, lseek(fd, 0, SEEK_CUR) + (off_t) count)
        ? -1 : NEXT(write)(fd, bytes, count);
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t offset)
{
    return has_no_room(fd, offset + (off_t) count)
        ? -1 : NEXT(pwrite)(fd, bytes, count, offset);
}

ssize_t pwritev(int fd, const struct iovec *parts, int number, off_t offset)
{
    off_t end = offset;

    for (int part = 0; part < number; part++)
        end += parts[part].iov_len;
    return has_no_room(fd, end) ? -1 : NEXT(pwritev)(fd, parts, number, offset);
}

int posix_fallocate(int fd, off_t offset, off_t length)
{
    return has_no_room(fd, offset + length) ? ENOSPC : NEXT(posix_fallocate)(fd, offset, length);
}
