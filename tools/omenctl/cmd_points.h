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
#define UPSERT_COMMAND                                                                                           \
    {                                                                                                            \
        .name = "points upsert", .arguments = "COLLECTION [FILE|-]",                                             \
        .summary = "Write points from JSON lines; atomic per batch", .options = UPSERT_OPTIONS,                  \
        .argument_min = 1, .argument_max = 2, .patient = true, .run = run_upsert,                                \
        .help = "One point a line, from FILE or standard input:\n"                                               \
                "  {\"id\": 1, \"vector\": [0.1, 0.2], \"payload\": {\"title\": \"Dune\"}}\n"                    \
                "  {\"id\": \"6f1c2a1e-8a52-4f0e-9b1a-0c6f5b7d9e11\", \"vectors\": {\"text\": [0.1], "           \
                "\"image\": [0.2]}}\n"                                                                           \
                "Members \"version\", \"score\" and \"shard_key\" are passed over, so that what points scroll\n" \
                "--json --with-vectors prints can be read again. Writing a point again replaces it.\n"           \
                "Examples:\n  omenctl points upsert books books.jsonl\n"                                         \
                "  zcat books.jsonl.gz | omenctl points upsert books -\n"                                        \
    }

#endif
