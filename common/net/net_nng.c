/* nng's errors of set-up (listen, dial, allocate) in our words. Errors of single calls are judged where they happen
 * (net_client.c), because there the same number means different things before and after the request left. */
#include "common/net/net_nng.h"

#include <string.h>

enum omen_err net_err(struct err *err, int nng_error, const char *what, const char *url)
{
    enum omen_err code;
    switch (nng_error) {
    case NNG_EADDRINVAL:
    case NNG_EINVAL:
    case NNG_ENOTSUP: code = OMEN_EINVAL; break;
    case NNG_ENOMEM: code = OMEN_ENOMEM; break;
    default: code = OMEN_EIO; break;
    }
    return err_set(err, code, NULL, "%s %s: %s", what, url, nng_strerror(nng_error));
}

void net_cond_init(pthread_cond_t *cond)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attr);
    pthread_condattr_destroy(&attr);
}

struct timespec net_cond_deadline(uint32_t ms)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    at.tv_sec += ms / 1000;
    at.tv_nsec += ms % 1000 * 1000000L;
    if (at.tv_nsec >= 1000000000L) {
        at.tv_nsec -= 1000000000L;
        at.tv_sec++;
    }
    return at;
}

bool net_url_is_ipc(const char *url)
{
    return strncmp(url, "ipc", 3) == 0 || strncmp(url, "unix", 4) == 0 || strncmp(url, "abstract", 8) == 0;
}
