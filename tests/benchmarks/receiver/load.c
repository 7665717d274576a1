/* A load generator that is not the limit: one thread, epoll, requests prepared beforehand.
 *
 *   load PORT FILE CONNECTIONS SECONDS
 *
 * FILE holds requests, each behind its length (32 bits, little-endian). Every connection sends one,
 * waits for the whole answer, notes how long it took, and sends the next that nobody has sent yet:
 * a closed loop, until the time is over or all were sent. Answers need a Content-Length or an end
 * of the connection; a connection that the server closes is made anew.
 *
 * Prints one JSON object: requests, answers by status, lost connections, seconds,
 * percentiles in microseconds, and the CPU time it took itself. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MAX_ANSWER = 65536 };

struct connection {
    int fd;
    const char *request; /* the one under way; NULL when there is none left */
    uint32_t size, sent;
    char answer[MAX_ANSWER + 1];
    uint32_t got;
    uint64_t started;
};

static struct sockaddr_in server = {.sin_family = AF_INET};
static const char *next_request, *end_of_requests;
static uint64_t statuses[600], lost, taken_count, deadline;
static uint32_t *taken;
static int poller, open_requests;

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void pump(struct connection *c) {
    while (c->sent < c->size) {
        ssize_t n = send(c->fd, c->request + c->sent, c->size - c->sent, MSG_NOSIGNAL);
        if (n < 0) return; /* full, or broken: the poller will say */
        c->sent += n;
    }
}

static void dial(struct connection *c) {
    int yes = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) die("socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if (connect(c->fd, (struct sockaddr *)&server, sizeof server) < 0 && errno != EINPROGRESS)
        die("connect");
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event);
}

static void start(struct connection *c) {
    c->request = NULL;
    if (next_request >= end_of_requests || now() > deadline) return;
    memcpy(&c->size, next_request, 4);
    c->request = next_request + 4;
    next_request += 4 + c->size;
    c->sent = c->got = 0;
    c->started = now();
    open_requests++;
    pump(c);
}

/* Whether the whole answer is there. */
static int complete(struct connection *c, int closed) {
    c->answer[c->got] = 0;
    char *body = strstr(c->answer, "\r\n\r\n");
    if (!body) return 0;
    char *length = strcasestr(c->answer, "\r\ncontent-length:");
    if (!length || length > body) return closed;
    return c->got >= (body + 4 - c->answer) + strtoul(length + 17, NULL, 10);
}

static void readable(struct connection *c) {
    int closed = 0;
    for (;;) {
        ssize_t n = recv(c->fd, c->answer + c->got, MAX_ANSWER - c->got, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) break;
        if (n <= 0) {
            closed = 1;
            break;
        }
        c->got += n;
        if (c->got == MAX_ANSWER) die("an answer is too long");
    }
    if (c->request && complete(c, closed)) {
        int status = atoi(c->answer + 9);
        closed |= strcasestr(c->answer, "\r\nconnection: close") != NULL;
        statuses[status < 600 ? status : 599]++;
        taken[taken_count++] = (now() - c->started) / 1000;
        open_requests--;
        if (closed) {
            close(c->fd);
            dial(c);
        }
        start(c);
    } else if (closed) {
        if (c->request) {
            lost++;
            open_requests--;
        }
        close(c->fd);
        dial(c);
        start(c);
    }
}

static int ascending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static uint32_t percentile(double p) {
    return taken_count ? taken[(uint64_t)(p * (taken_count - 1))] : 0;
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    server.sin_port = htons(atoi(argv[1]));
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int count = atoi(argv[3]), file = open(argv[2], O_RDONLY);
    struct stat info;
    if (file < 0 || fstat(file, &info) < 0) die(argv[2]);
    next_request = mmap(NULL, info.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, file, 0);
    if (next_request == MAP_FAILED) die("mmap");
    end_of_requests = next_request + info.st_size;
    taken = malloc(info.st_size); /* a request is longer than the four bytes of its time */
    struct connection *connections = calloc(count, sizeof *connections);
    poller = epoll_create1(0);
    uint64_t begun = now();
    deadline = begun + (uint64_t)(atof(argv[4]) * 1e9);
    for (int i = 0; i < count; i++) {
        dial(&connections[i]);
        start(&connections[i]);
    }
    struct epoll_event events[256];
    while (open_requests > 0 && now() < deadline + 10000000000ull) {
        int n = epoll_wait(poller, events, 256, 1000);
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (events[i].events & EPOLLOUT) pump(c);
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(c);
        }
    }
    double seconds = (now() - begun) / 1e9;
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu = used.ru_utime.tv_sec + used.ru_stime.tv_sec +
                 (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    qsort(taken, taken_count, sizeof *taken, ascending);
    printf("{\"requests\": %lu, \"seconds\": %.3f, \"lost\": %lu, \"unanswered\": %d, "
           "\"p50\": %u, \"p90\": %u, \"p99\": %u, \"max\": %u, \"cpu_seconds\": %.3f, "
           "\"statuses\": {",
           taken_count, seconds, lost, open_requests, percentile(.5), percentile(.9),
           percentile(.99), percentile(1), cpu);
    const char *comma = "";
    for (int i = 0; i < 600; i++)
        if (statuses[i]) {
            printf("%s\"%d\": %lu", comma, i, statuses[i]);
            comma = ", ";
        }
    printf("}}\n");
    return 0;
}
