/* Shared by the two halves of search: one query for people, a file of queries for measuring. Threads: main only. */
#ifndef OMEN_TOOLS_OMENCTL_CMD_SEARCH_H
#define OMEN_TOOLS_OMENCTL_CMD_SEARCH_H

#include "tools/omenctl/args.h"

struct measure_args {
    const char *collection, *field;      /* field NULL = unnamed */
    const char *query_file, *truth_file; /* truth NULL = no recall */
    const char *filter;
    uint32_t k;
};

/* Every query of the file, one at a time: recall by the tie rule, and the latency seen from here. */
int measure_searches(struct cli *cli, const struct measure_args *args);

#endif
