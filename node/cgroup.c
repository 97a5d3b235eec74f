/* Limits are asked of every group from the process's own up to the root. What cannot be read is no limit. */
#include "node/cgroup.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define CGROUP_PATH_BYTES 4096

static uint64_t limit_read(const char *path)
{
    unsigned long long bytes = 0;
    FILE *f = fopen(path, "re");
    if (f == NULL) return UINT64_MAX;
    int n = fscanf(f, "%llu", &bytes); /* "max" is no number */
    fclose(f);
    return n == 1 && bytes > 0 ? bytes : UINT64_MAX;
}

/* Of the group and all above it; `group` is cut on the way. */
static uint64_t limit_of(const char *mount, char *group, const char *file)
{
    uint64_t least = UINT64_MAX;
    for (;;) {
        char path[CGROUP_PATH_BYTES];
        int n = snprintf(path, sizeof path, "%s%s/%s", mount, strcmp(group, "/") == 0 ? "" : group, file);
        if (n > 0 && (size_t)n < sizeof path) {
            uint64_t bytes = limit_read(path);
            if (bytes < least) least = bytes;
        }
        char *slash = strrchr(group, '/');
        if (slash == NULL) return least;
        *slash = '\0';
    }
}

static bool has_name(const char *list, const char *name)
{
    size_t len = strlen(name);
    for (const char *at = list; at != NULL; at = strchr(at, ',')) {
        at += *at == ',';
        if (strncmp(at, name, len) == 0 && (at[len] == ',' || at[len] == '\0')) return true;
    }
    return false;
}

/* hierarchy:controllers:path, of version 2 with no controllers named. */
static uint64_t line_limit(char *line, const char *root)
{
    char mount[CGROUP_PATH_BYTES];
    char *controllers = strchr(line, ':'), *group = controllers == NULL ? NULL : strchr(controllers + 1, ':');
    if (group == NULL) return UINT64_MAX;
    *controllers++ = *group++ = '\0';
    group[strcspn(group, "\n")] = '\0';
    if (controllers[0] == '\0') return limit_of(root, group, "memory.max");
    int n = snprintf(mount, sizeof mount, "%s/memory", root);
    if (!has_name(controllers, "memory") || n < 0 || (size_t)n >= sizeof mount) return UINT64_MAX;
    return limit_of(mount, group, "memory.limit_in_bytes");
}

uint64_t cgroup_memory_max(const char *membership, const char *root)
{
    char line[CGROUP_PATH_BYTES];
    uint64_t least = UINT64_MAX;
    FILE *f = fopen(membership, "re");
    if (f == NULL) return least;
    while (fgets(line, sizeof line, f) != NULL) {
        uint64_t bytes = line_limit(line, root);
        if (bytes < least) least = bytes;
    }
    fclose(f);
    return least;
}
