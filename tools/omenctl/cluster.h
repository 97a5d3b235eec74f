/* What the cluster commands share: asking, and waiting for moves. Threads: main only. */
#ifndef OMEN_TOOLS_OMENCTL_CLUSTER_H
#define OMEN_TOOLS_OMENCTL_CLUSTER_H

#include "tools/omenctl/args.h"
#include "tools/omenctl/output.h"

/* What was asked, and the answer to it. answer_fini also after a failure. */
struct answer {
    struct buf request; /* the object, open until it is sent */
    char *json;         /* the library's; NULL before the answer, and after a failure */
    struct json_text text;
    struct doc doc; /* in text */
};

void answer_begin(struct answer *a, const char *action);
void answer_text(struct answer *a, const char *key, const char *value); /* NULL: left out */
void answer_u64(struct answer *a, const char *key, uint64_t value);
void answer_flag(struct answer *a, const char *key, bool value);
/* EXIT_OK with a->doc, or the exit code of a failure that was told. */
int answer_ask(struct cli *cli, struct answer *a);
/* The same without a word when it fails: the code. */
omen_code answer_ask_quietly(struct cli *cli, struct answer *a);
void answer_fini(struct answer *a);

bool doc_get_bool(struct doc object, const char *key);
/* "50MB" or "0". A wrong one ends the process with EXIT_USAGE. */
uint64_t args_bytes(const struct cli *cli, const char *option, const char *text);
uint64_t args_number(const struct cli *cli, const char *what, const char *text);
uint32_t args_node(const struct cli *cli, const char *text);         /* a node's id */
uint32_t args_node_or_none(const struct cli *cli, const char *text); /* "-" = 0 */

/* cmd_moves.c: the moves of a reply as a table; waiting for those of `plan_id`, all its rounds, or
 * for `op_id` alone. */
void print_moves(struct doc moves);
int wait_for_moves(struct cli *cli, uint64_t plan_id, uint64_t op_id);
/* cmd_cluster.c: plans and operations of a status as tables. */
void print_plans(struct doc plans);
void print_operations(struct doc operations);

#endif
