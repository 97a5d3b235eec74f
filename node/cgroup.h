/* What the cgroups that a process is in let it have of memory. Versions 1 and 2; limits of the groups above count, and in
 * a container, whose own group is the root of what it sees, the root's. */
#ifndef OMEN_NODE_CGROUP_H
#define OMEN_NODE_CGROUP_H

#include <stdint.h>

/* The narrowest limit in bytes, UINT64_MAX when none is to be seen. `membership` is /proc/self/cgroup, `root` where cgroups
 * are mounted, /sys/fs/cgroup. Any thread; reads a file for each group. */
uint64_t cgroup_memory_max(const char *membership, const char *root);

#endif
