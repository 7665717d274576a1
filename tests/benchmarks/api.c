/* Stands for Stripe's API in every measurement: one thread, epoll, one answer made beforehand, so
 * that it is never the limit.
 *
 *   api PORT DELAY SESSION
 *
 * Answers each GET of a session, DELAY milliseconds after it came, with the JSON in the file
 * SESSION, in which every SAMPLE is replaced by the id that was asked for (of the same length). Any
 * other GET is a list, and empty.
 *
 * GET /answered/N is answered at once when N sessions have been told, and says how many were: so
 * nobody need poll, and the measuring costs nothing. One may wait at a time. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SAMPLE "vs_000000000000000000000000"
#define SESSION "GET /v1/identity/verification_sessions/"
#define ANSWERED "GET /answered/"
#define EMPTY \
    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nRequest-Id: req_benchmark\r\n" \
    "Content-Length: 61\r\n\r\n{\"object\": \"list\", \"data\": [], \"has_more\": false, \"url\": \"/\"}"
enum { ID = sizeof SAMPLE - 1, MAX_REQUEST = 8192, MAX_ANSWER = 16384, MAX_FD = 4096, MAX_PLACES = 8 };

struct connection {
    char request[MAX_REQUEST + 1], id[ID];
    uint32_t got;
};

/* All wait equally long, so the first to come is the first to be answered: a ring is enough. Nobody
 * asks twice before they have their answer, so it is never longer than there are connections. */
static struct {
    int fd;
    uint64_t due;
} ring[MAX_FD];
static uint64_t head, tail;

static struct connection *connections[MAX_FD];
static char answer[MAX_ANSWER + 1];
static int answer_size, places[MAX_PLACES], place_count;
static uint64_t delay, answered, wanted;
static int watcher = -1;

static uint64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

/* It always fits: whoever asks has read the answer before. Who has gone gets none. */
static void reply(int fd, const char *text, int size) {
    if (send(fd, text, size, MSG_NOSIGNAL) == size) return;
    if (errno != EPIPE && errno != ECONNRESET && errno != EBADF) die("send");
}

static void prepare(const char *file) {
    char body[MAX_ANSWER / 2];
    int fd = open(file, O_RDONLY);
    int size = fd < 0 ? -1 : read(fd, body, sizeof body - 1);
    if (size < 0) die(file);
    body[size] = 0;
    answer_size = sprintf(answer,
                          "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                          "Request-Id: req_benchmark\r\nContent-Length: %d\r\n\r\n%s",
                          size, body);
    for (char *at = answer; (at = strstr(at, SAMPLE)) && place_count < MAX_PLACES; at += ID)
        places[place_count++] = at - answer;
}

static void tell_watcher(void) {
    char text[256], count[32];
    if (watcher < 0 || answered < wanted) return;
    int length = sprintf(count, "%lu", answered);
    reply(watcher, text,
          sprintf(text, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", length, count));
    watcher = -1;
}

static void answer_due(void) {
    for (; head < tail && ring[head % MAX_FD].due <= now(); head++, answered++) {
        int fd = ring[head % MAX_FD].fd;
        for (int i = 0; i < place_count; i++) memcpy(answer + places[i], connections[fd]->id, ID);
        reply(fd, answer, answer_size);
    }
    tell_watcher();
}

static void understand(int fd, struct connection *c) {
    const char *request = c->request;
    if (!strncmp(request, SESSION, sizeof SESSION - 1)) {
        memcpy(c->id, request + sizeof SESSION - 1, ID);
        ring[tail % MAX_FD].fd = fd;
        ring[tail++ % MAX_FD].due = now() + delay;
    } else if (!strncmp(request, ANSWERED, sizeof ANSWERED - 1)) {
        wanted = strtoull(request + sizeof ANSWERED - 1, NULL, 10);
        watcher = fd;
    } else {
        reply(fd, EMPTY, sizeof EMPTY - 1);
    }
}

static void readable(int fd) {
    struct connection *c = connections[fd];
    for (;;) {
        ssize_t n = recv(fd, c->request + c->got, MAX_REQUEST - c->got, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) break;
        if (n <= 0) {
            if (watcher == fd) watcher = -1;
            close(fd);
            return;
        }
        c->got += n;
    }
    c->request[c->got] = 0;
    if (!strstr(c->request, "\r\n\r\n")) return; /* the rest is on its way; no GET has a body */
    c->got = 0;
    understand(fd, c);
}

static void greet(int listener, int poller) {
    int yes = 1, fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= MAX_FD) die("too many connections");
        if (!connections[fd]) connections[fd] = malloc(sizeof *connections[fd]);
        connections[fd]->got = 0;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.fd = fd};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    }
}

/* Milliseconds until the next answer is due, rounded up; none: for ever. */
static int patience(void) {
    if (head == tail) return -1;
    int64_t left = ring[head % MAX_FD].due - now();
    return left > 0 ? (left + 999999) / 1000000 : 0;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    delay = strtoull(argv[2], NULL, 10) * 1000000;
    prepare(argv[3]);
    int yes = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    int poller = epoll_create1(0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0) die("bind");
    if (listen(listener, 1024) < 0) die("listen");
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[256];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int count = epoll_wait(poller, events, 256, patience());
        for (int i = 0; i < count; i++) {
            if (events[i].data.fd == listener) greet(listener, poller);
            else readable(events[i].data.fd);
        }
        answer_due();
    }
}
