/* The one file that is compiled again when the commit changes. */
#include "common/version.h"

#ifndef OMEN_COMMIT
#define OMEN_COMMIT "unknown"
#endif

const char *version_commit(void) { return OMEN_COMMIT; }
