/* How a search was answered, for people. Threads: main only. */
#ifndef OMEN_TOOLS_OMENCTL_EXPLAIN_H
#define OMEN_TOOLS_OMENCTL_EXPLAIN_H

/* omen_results.explain_json: a line for the whole, one per shard, a table of each shard's parts, to standard output.
 * Members that are not there are passed over. */
void print_explain(const char *explain_json);

#endif
