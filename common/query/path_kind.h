/* What a payload index is declared for: a path, or a path and what of it, "title:text", "place:geo". A path whose last
 * key ends like that is written with quotes: "\"odd:text\"". */
#ifndef OMEN_COMMON_QUERY_PATH_KIND_H
#define OMEN_COMMON_QUERY_PATH_KIND_H

#include <stddef.h>
#include <string.h>

enum path_kind {
    PATH_KIND_ANY,  /* whatever pays */
    PATH_KIND_TEXT, /* the words of its texts, however many they are */
    PATH_KIND_GEO,  /* its places */
};

/* The length of the path alone. */
static inline size_t path_kind_split(const char *text, size_t len, enum path_kind *kind_out)
{
    *kind_out = PATH_KIND_ANY;
    if (len > 5 && memcmp(text + len - 5, ":text", 5) == 0) {
        *kind_out = PATH_KIND_TEXT;
        return len - 5;
    }
    if (len > 4 && memcmp(text + len - 4, ":geo", 4) == 0) {
        *kind_out = PATH_KIND_GEO;
        return len - 4;
    }
    return len;
}

#endif
