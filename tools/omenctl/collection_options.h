/* Options of collections as people give them on the command line, as the JSON object that the library takes. */
#ifndef OMEN_TOOLS_OMENCTL_COLLECTION_OPTIONS_H
#define OMEN_TOOLS_OMENCTL_COLLECTION_OPTIONS_H

#include "common/mem.h"
#include "tools/omenctl/args.h"

/* `profile`: a name that the server knows, or the path of a file like those of deploy/profiles (it has a '/' or ends in
 * .yaml); NULL = none. `items` [count]: KEY=VALUE, each over what the profile says; durations as 30s or 2h. The object is
 * appended to `out` with its NUL; nothing is, when nothing is given. A usage error ends the program. EXIT_OK, or the exit
 * code after a message. */
int collection_options_text(const struct cli *cli, const char *profile, const char *const *items,
        uint32_t count, struct buf *out);

#endif
