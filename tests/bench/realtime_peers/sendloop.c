/* The floor of fan-out: an epoll loop in C that writes a broadcast to every socket with one send() each.

   No protocol beyond what the load client needs: it answers the upgrade, replies ok to any join, and sends what is
   published to all sockets as one frame made once. What a full socket does not take waits in a buffer of its own. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define SOCKETS_MAX 65536
#define READ_BYTES 65536

struct conn {
    int fd, upgraded;
    char *in, *out;
    size_t in_size, out_size;
};

static struct conn *conns[SOCKETS_MAX];
static int count, epoll_fd;
static uint64_t seq;

static void watch(struct conn *c, uint32_t events, int how) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    epoll_ctl(epoll_fd, how, c->fd, &event);
}

static void keep(char **buffer, size_t *size, const char *data, size_t more) {
    *buffer = realloc(*buffer, *size + more);
    memcpy(*buffer + *size, data, more);
    *size += more;
}

static void offer(struct conn *c, const char *data, size_t size) {
    ssize_t sent = c->out_size ? 0 : send(c->fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0) sent = 0;
    if ((size_t)sent == size) return;
    if (!c->out_size) watch(c, EPOLLIN | EPOLLOUT, EPOLL_CTL_MOD);
    keep(&c->out, &c->out_size, data + sent, size - (size_t)sent);
}

static void writable(struct conn *c) {
    ssize_t sent = send(c->fd, c->out, c->out_size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent <= 0) return;
    c->out_size -= (size_t)sent;
    memmove(c->out, c->out + sent, c->out_size);
    if (!c->out_size) watch(c, EPOLLIN, EPOLL_CTL_MOD);
}

static size_t frame(char *to, const char *text, size_t size) {
    size_t at = 2;
    to[0] = (char)0x81;
    if (size < 126) to[1] = (char)size;
    else { to[1] = 126; to[2] = (char)(size >> 8); to[3] = (char)size; at = 4; }
    memcpy(to + at, text, size);
    return at + size;
}

static void message(struct conn *c, char *text, size_t size) {
    static char said[READ_BYTES + 512], framed[READ_BYTES + 1024];
    char *body;
    if (memmem(text, size, "phx_join", 8)) {
        char ref[16] = "";
        sscanf(text, "[\"%15[0-9]", ref);
        int n = snprintf(said, sizeof said, "[\"%s\",\"%s\",\"t\",\"phx_reply\",{\"status\":\"ok\",\"response\":{}}]", ref, ref);
        offer(c, framed, frame(framed, said, (size_t)n));
    } else if ((body = memmem(text, size, "\"at\":", 5))) {
        int n = snprintf(said, sizeof said, "[null,null,\"room:0190f5c2-7b1e-7c3a-9d4e-1a2b3c4d5e6f\",\"new_message\","
            "{\"message_id\":\"0190f5c2-7b1e-7c3a-9d4e-1a2b3c4d5e70\",\"seq\":%llu,%.*s",
            (unsigned long long)++seq, (int)(size - (size_t)(body - text)), body);
        size_t length = frame(framed, said, (size_t)n);
        for (int i = 0; i < count; i++) offer(conns[i], framed, length);
    }
}

/* Take whole masked frames off what came. */
static void frames(struct conn *c) {
    size_t at = 0;
    while (c->in_size - at >= 6) {
        unsigned char *head = (unsigned char *)c->in + at;
        size_t size = head[1] & 127, start = at + 6;
        if (size == 126) { size = (size_t)head[2] << 8 | head[3]; start = at + 8; }
        if (c->in_size < start || c->in_size - start < size) break;
        unsigned char *mask = (unsigned char *)c->in + start - 4;
        for (size_t i = 0; i < size; i++) c->in[start + i] ^= (char)mask[i & 3];
        message(c, c->in + start, size);
        at = start + size;
    }
    c->in_size -= at;
    memmove(c->in, c->in + at, c->in_size);
    if (!c->in_size) { free(c->in); c->in = NULL; }
}

static void readable(struct conn *c) {
    static char data[READ_BYTES];
    static const char accepted[] = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                                   "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    ssize_t got = recv(c->fd, data, sizeof data, MSG_DONTWAIT);
    if (got == 0 || (got < 0 && errno != EAGAIN)) { epoll_ctl(epoll_fd, EPOLL_CTL_DEL, c->fd, NULL); return; }
    if (got < 0) return;
    keep(&c->in, &c->in_size, data, (size_t)got);
    if (!c->upgraded) {
        char *end = memmem(c->in, c->in_size, "\r\n\r\n", 4);
        if (!end) return;
        c->upgraded = 1;
        c->in_size = 0;
        conns[count++] = c;
        offer(c, accepted, sizeof accepted - 1);
        return;
    }
    frames(c);
}

int main(void) {
    struct rlimit files;
    struct sockaddr_in at = {.sin_family = AF_INET};
    socklen_t size = sizeof at;
    struct conn listener = {0};
    static struct epoll_event events[1024];
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    bind(listener.fd, (struct sockaddr *)&at, sizeof at);
    listen(listener.fd, 4096);
    getsockname(listener.fd, (struct sockaddr *)&at, &size);
    epoll_fd = epoll_create1(0);
    watch(&listener, EPOLLIN, EPOLL_CTL_ADD);
    printf("%d\n", ntohs(at.sin_port));
    fflush(stdout);
    for (;;) {
        int n = epoll_wait(epoll_fd, events, 1024, -1);
        for (int i = 0; i < n; i++) {
            struct conn *c = events[i].data.ptr;
            if (c == &listener) {
                int fd, one = 1;
                while (count < SOCKETS_MAX && (fd = accept4(listener.fd, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    c = calloc(1, sizeof *c);
                    c->fd = fd;
                    watch(c, EPOLLIN, EPOLL_CTL_ADD);
                }
                continue;
            }
            if (events[i].events & EPOLLOUT) writable(c);
            if (events[i].events & (EPOLLIN | EPOLLHUP)) readable(c);
        }
    }
}
