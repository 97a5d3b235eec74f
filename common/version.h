/* What this build is. The commit is compiled into common/version.c only, so a commit rebuilds one file. */
#ifndef OMEN_COMMON_VERSION_H
#define OMEN_COMMON_VERSION_H

#define OMEN_VERSION "0.1.0"

const char *version_commit(void); /* short git hash, or "unknown" */

#endif
