/* Moves the clock of a server: preloaded, it adds the milliseconds that stand in the file CLOCK to the
   time of day. Clocks that only measure how long something takes are left alone. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long long shift_us(void)
{
    const char *path = getenv("CLOCK");
    int file = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    char text[32] = {0};
    ssize_t length = read(file, text, sizeof text - 1);
    close(file);
    return length > 0 ? atoll(text) * 1000 : 0;
}

int clock_gettime(clockid_t clock, struct timespec *time)
{
    int answer = (int)syscall(SYS_clock_gettime, clock, time);
    if (answer == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        long long ns = time->tv_nsec + shift_us() % 1000000 * 1000;
        time->tv_sec += shift_us() / 1000000;
        if (ns < 0) { ns += 1000000000; time->tv_sec -= 1; }
        if (ns >= 1000000000) { ns -= 1000000000; time->tv_sec += 1; }
        time->tv_nsec = (long)ns;
    }
    return answer;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone)
{
    (void)zone;
    struct timespec now;
    int answer = clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return answer;
}

time_t time(time_t *where)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where != NULL)
        *where = now.tv_sec;
    return now.tv_sec;
}
