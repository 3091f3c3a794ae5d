/* The load client of `just bench-realtime`: many Phoenix sockets in one epoll loop, the same for every server.

   load PORT SOCKETS CONNECTS_PER_S TOPIC...

   Connects, joins each topic on every socket, then obeys lines on stdin with one line of JSON on stdout each:

     paced DELIVERIES_PER_S SECONDS BYTES   open loop: a publish is due every SOCKETS / DELIVERIES_PER_S seconds
     flat WINDOW SECONDS BYTES              closed loop: WINDOW broadcasts in flight
     stall PERCENT                          stop reading on so many sockets, for good (they count no more)
     quit

   The first socket publishes `["1","9",TOPIC,"publish",{"at":µs,"text":…}]` and every socket must get a text frame
   that holds `"at":µs` and `"seq":n`, n being one more than before on the first topic: a gap, a duplicate or another
   order counts as `disorder`. Latency runs from the moment a publish is due until the frame is read. It ends by
   itself: after LIFE_S, when stdin ends, or when a server hangs up on a socket that is not stalled. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define LIFE_S 240
#define BUCKETS 400000 /* of 10 µs */
#define READ_BYTES 262144

enum state { CONNECTING, UPGRADING, JOINING, READY };

struct conn {
    int fd, joined, stalled;
    enum state state;
    uint64_t seq;
    char *part; /* the start of a frame, or of the answer to the upgrade */
    size_t have, room;
};

static struct conn *conns;
static int epoll_fd, port, count, ready, topics_len, active;
static char **topics;
static uint64_t began, deliveries, disorder, other, latest;
static uint32_t histogram[BUCKETS + 1];
static char input[READ_BYTES];

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void fail(const char *what) {
    fprintf(stderr, "load: %s (errno %d %s)\n", what, errno, strerror(errno));
    exit(1);
}

static void watch(struct conn *c, uint32_t events, int how) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    if (epoll_ctl(epoll_fd, how, c->fd, &event)) fail("epoll_ctl");
}

/* A masked text frame whose masking key is zero, which RFC 6455 allows and which costs nothing. */
static void send_text(struct conn *c, const char *text, size_t size) {
    static char frame[1 << 17];
    size_t at = 2;
    frame[0] = (char)0x81;
    if (size < 126) frame[1] = (char)(0x80 | size);
    else { frame[1] = (char)(0x80 | 126); frame[2] = (char)(size >> 8); frame[3] = (char)size; at = 4; }
    memset(frame + at, 0, 4);
    memcpy(frame + at + 4, text, size);
    size += at + 4;
    for (size_t sent = 0; sent < size;) {
        ssize_t n = send(c->fd, frame + sent, size - sent, MSG_NOSIGNAL);
        if (n > 0) sent += (size_t)n;
        else if (errno == EAGAIN) { struct pollfd p = {c->fd, POLLOUT, 0}; poll(&p, 1, 1000); }
        else fail("cannot send");
    }
}

static void join_next(struct conn *c) {
    char text[512];
    int n = c->joined + 1;
    int size = snprintf(text, sizeof text, "[\"%d\",\"%d\",\"%s\",\"phx_join\",{}]", n, n, topics[c->joined]);
    send_text(c, text, (size_t)size);
}

static void open_one(struct conn *c) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int one = 1;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) fail("socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) fail("connect");
    watch(c, EPOLLOUT, EPOLL_CTL_ADD);
}

static void upgrade(struct conn *c) {
    char head[512];
    int size = snprintf(head, sizeof head,
        "GET /socket/websocket?vsn=2.0.0&token=user%ld HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: Upgrade\r\n"
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        (long)(c - conns), port);
    c->state = UPGRADING;
    watch(c, EPOLLIN, EPOLL_CTL_MOD);
    if (send(c->fd, head, (size_t)size, MSG_NOSIGNAL) != size) fail("cannot upgrade");
}

static void frame_came(struct conn *c, const char *text, size_t size) {
    if (c->state == JOINING) {
        if (!memmem(text, size, "phx_reply", 9)) return;
        if (!memmem(text, size, "\"ok\"", 4)) fail("a join was refused");
        if (++c->joined < topics_len) join_next(c);
        else { c->state = READY; ready++; }
        return;
    }
    const char *at = memmem(text, size, "\"at\":", 5);
    if (!at || memmem(text, size, "phx_reply", 9)) { other++; return; }
    uint64_t took = now_us() - strtoull(at + 5, NULL, 10), ten = took / 10;
    const char *seq = memmem(text, size, "\"seq\":", 6);
    uint64_t number = seq ? strtoull(seq + 6, NULL, 10) : 0;
    if (number != c->seq + 1 && c->seq) disorder++;
    c->seq = number;
    deliveries++;
    if (took > latest) latest = took;
    histogram[ten < BUCKETS ? ten : BUCKETS]++;
}

/* Take whole frames (a server's are unmasked) off the bytes; return how many bytes they had. */
static size_t take_frames(struct conn *c, const char *data, size_t size) {
    size_t at = 0;
    while (size - at >= 2) {
        const unsigned char *head = (const unsigned char *)data + at;
        size_t length = head[1] & 127, start = at + 2;
        if (length == 126) { if (size - at < 4) break; length = (size_t)head[2] << 8 | head[3]; start = at + 4; }
        else if (length == 127) {
            if (size - at < 10) break;
            length = 0;
            for (int i = 2; i < 10; i++) length = length << 8 | head[i];
            start = at + 10;
        }
        if (size - start < length || start > size) break;
        if ((head[0] & 15) == 8 && !c->stalled) fail("a socket was closed");
        if ((head[0] & 15) < 3) frame_came(c, data + start, length);
        at = start + length;
    }
    return at;
}

static void keep(struct conn *c, const char *data, size_t size) {
    if (c->have + size > c->room) {
        c->room = c->have + size + 512;
        c->part = realloc(c->part, c->room);
        if (!c->part) fail("memory");
    }
    memcpy(c->part + c->have, data, size);
    c->have += size;
}

static void readable(struct conn *c) {
    ssize_t got = recv(c->fd, input, sizeof input, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) fail("the server hung up");
    const char *data = input;
    size_t size = (size_t)got;
    if (c->have) { keep(c, data, size); data = c->part; size = c->have; }
    size_t used = 0;
    if (c->state == UPGRADING) {
        const char *end = memmem(data, size, "\r\n\r\n", 4);
        if (end) {
            if (memcmp(data, "HTTP/1.1 101", 12)) fail("the upgrade was refused");
            used = (size_t)(end - data) + 4;
            c->state = JOINING;
            if (topics_len) join_next(c); else { c->state = READY; ready++; }
        }
    }
    if (c->state != UPGRADING) used += take_frames(c, data + used, size - used);
    size_t left = size - used;
    if (data == c->part) { memmove(c->part, c->part + used, left); c->have = left; }
    else if (left) keep(c, data + used, left);
    if (!c->have && c->room) { free(c->part); c->part = NULL; c->room = 0; }
}

static void turn(int wait_ms) {
    static struct epoll_event events[1024];
    int n = epoll_wait(epoll_fd, events, 1024, wait_ms);
    for (int i = 0; i < n; i++) {
        struct conn *c = events[i].data.ptr;
        if (c->state == CONNECTING) {
            int error = 0;
            socklen_t size = sizeof error;
            getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
            if (error) { errno = error; fail("cannot connect"); }
            upgrade(c);
        } else if (!c->stalled) readable(c);
    }
    if (now_us() - began > LIFE_S * 1000000ull) fail("too long");
}

static void publish(uint64_t due, int bytes) {
    static char text[70000], filler[65536];
    if (bytes > 65000) bytes = 65000;
    memset(filler, 'x', sizeof filler);
    int size = snprintf(text, sizeof text, "[\"1\",\"9\",\"%s\",\"publish\",{\"at\":%llu,\"text\":\"%.*s\"}]", topics[0],
                        (unsigned long long)due, bytes, filler);
    send_text(&conns[0], text, (size_t)size);
}

static double quantile(double q) {
    uint64_t total = 0, sum = 0;
    for (int i = 0; i <= BUCKETS; i++) total += histogram[i];
    for (int i = 0; i <= BUCKETS; i++)
        if ((sum += histogram[i]) >= total * q && sum) return i / 100.0;
    return 0;
}

/* Let what is under way arrive. */
static void settle(uint64_t expected) {
    uint64_t deadline = now_us() + 15000000;
    while (deliveries < expected && now_us() < deadline) turn(20);
}

static void report(uint64_t published, uint64_t start, uint64_t end) {
    printf("{\"published\":%llu,\"deliveries\":%llu,\"lost\":%lld,\"disorder\":%llu,\"other\":%llu,\"seconds\":%.4f,"
           "\"p50_ms\":%.2f,\"p99_ms\":%.2f,\"max_ms\":%.2f}\n",
           (unsigned long long)published, (unsigned long long)deliveries,
           (long long)(published * (uint64_t)active - deliveries), (unsigned long long)disorder,
           (unsigned long long)other, (double)(end - start) / 1e6, quantile(0.5), quantile(0.99), (double)latest / 1e3);
    fflush(stdout);
}

static void run(double rate, int window, double seconds, int bytes) {
    uint64_t published = 0, start, end, stop;
    deliveries = disorder = other = latest = 0;
    memset(histogram, 0, sizeof histogram);
    start = now_us();
    stop = start + (uint64_t)(seconds * 1e6);
    while ((end = now_us()) < stop) {
        int wait_ms = 10;
        if (window) {
            while ((int64_t)(published * (uint64_t)active - deliveries) <= (int64_t)(window - 1) * active) {
                publish(now_us(), bytes);
                published++;
            }
        } else {
            double every = active / rate * 1e6;
            while (published * every <= (double)(end - start)) {
                publish(start + (uint64_t)(published * every), bytes);
                published++;
            }
            wait_ms = (int)((published * every - (double)(end - start)) / 1000);
        }
        turn(wait_ms);
    }
    settle(published * (uint64_t)active);
    report(published, start, now_us());
}

static void stall(int percent) {
    for (int i = 1; i <= count * percent / 100; i++) {
        struct conn *c = &conns[i * (100 / percent) - 1];
        int small = 4096;
        if (c == conns || c->stalled) continue;
        c->stalled = 1;
        setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
        epoll_ctl(epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
        active--;
    }
    printf("{\"reading\":%d}\n", active);
    fflush(stdout);
}

int main(int argc, char **argv) {
    struct rlimit files;
    if (argc < 4) fail("usage: load PORT SOCKETS CONNECTS_PER_S TOPIC...");
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    port = atoi(argv[1]);
    active = count = atoi(argv[2]);
    double rate = atof(argv[3]);
    topics = argv + 4;
    topics_len = argc - 4;
    conns = calloc((size_t)count, sizeof *conns);
    epoll_fd = epoll_create1(0);
    began = now_us();
    uint64_t opened_at = 0;
    for (int opened = 0; ready < count;) {
        while (opened < count && opened <= (double)(now_us() - began) * rate / 1e6) open_one(&conns[opened++]);
        if (opened == count && !opened_at) opened_at = now_us();
        turn(opened < count ? 1 : 50);
    }
    printf("{\"connected\":%d,\"connecting_s\":%.3f,\"ready_s\":%.3f}\n", ready, (double)(opened_at - began) / 1e6,
           (double)(now_us() - began) / 1e6);
    fflush(stdout);
    char line[256];
    size_t have = 0;
    for (;;) {
        struct pollfd from = {0, POLLIN, 0};
        if (poll(&from, 1, 0) > 0) {
            if (read(0, line + have, 1) != 1) return 0;
            if (line[have++] != '\n') continue;
            line[have - 1] = 0;
            have = 0;
            double a = 0, seconds = 0;
            int bytes = 0;
            if (sscanf(line, "paced %lf %lf %d", &a, &seconds, &bytes) == 3) run(a, 0, seconds, bytes);
            else if (sscanf(line, "flat %lf %lf %d", &a, &seconds, &bytes) == 3) run(0, (int)a, seconds, bytes);
            else if (sscanf(line, "stall %lf", &a) == 1) stall((int)a);
            else if (!strcmp(line, "quit")) return 0;
            else fail("what?");
        } else turn(20);
    }
}
