/* nng's errors of set-up (listen, dial, allocate) in our words. Errors of single calls are judged where they happen
 * (net_client.c), because there the same number means different things before and after the request left. */
#include "common/net/net_nng.h"

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
