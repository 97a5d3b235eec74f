/* How far a collection's indexing is, for people: from the map `index` of a collection or a shard (PROTOCOL.md, *Collection
 * map*). Members that are not there are passed over; an absent map prints nothing. Threads: main only. */
#ifndef OMEN_TOOLS_OMENCTL_INDEX_INFO_H
#define OMEN_TOOLS_OMENCTL_INDEX_INFO_H

#include "tools/omenctl/output.h"

/* Of a collection: rows of a table of two columns. */
void print_index_rows(struct table *table, struct doc index);
/* Of a shard: three cells: lag, segments, and what is being built. */
void index_cells(struct table *table, struct doc index);
/* The payload paths that have an index, as a table of its own with a blank line before it; `asked`: the array of those that
 * were asked for, or absent. */
void print_payload_fields(struct doc fields, struct doc asked);

#endif
