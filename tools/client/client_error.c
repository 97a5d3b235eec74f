/* The calling thread's last error, and the names of the codes. */
#include "tools/client/client_impl.h"

#include <stdarg.h>
#include <stdio.h>

static _Thread_local struct err last;

struct err *client_err(void)
{
    err_clear(&last);
    return &last;
}

omen_code client_fail(enum omen_err code, const char *field, const char *fmt, ...)
{
    char message[ERR_MESSAGE_BYTES];
    va_list args;
    va_start(args, fmt);
    vsnprintf(message, sizeof message, fmt, args);
    va_end(args);
    return (omen_code)err_set(&last, code, field, "%s", message);
}

const char *omen_last_error(void) { return last.message; }

const char *omen_last_error_field(void) { return last.field; }

const char *omen_error_name(omen_code code) { return err_name((enum omen_err)code); }
