/* Shared by the commands about points. Threads: main only. */
#ifndef OMEN_TOOLS_OMENCTL_CMD_POINTS_H
#define OMEN_TOOLS_OMENCTL_CMD_POINTS_H

#include "tools/omenctl/args.h"

/* Ids from arguments [first .. first + count - 1]; the caller frees. Ends the process on one that is none. */
omen_id *ids_of_arguments(const struct cli *cli, uint32_t first, uint32_t count);
/* [count] times the same text, or NULL; the caller frees the array. */
const char **repeat_text(const char *text, size_t count);
/* "deleted 3 points" or {"deleted":3}. Returns EXIT_OK. */
int tell_affected(const struct cli *cli, const char *verb, uint64_t affected);

/* cmd_upsert.c */
int run_upsert(struct cli *cli);
extern const struct option UPSERT_OPTIONS[];
extern const char UPSERT_HELP[];

#endif
