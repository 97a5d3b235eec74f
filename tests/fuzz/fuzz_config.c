/* config_load_text: any text is refused with a sentence or gives values inside their declared bounds. */
#include "common/config.h"

#include <stddef.h>
#include <string.h>

#include "common/check.h"

struct item {
    char *name;
    uint64_t n;
    struct config_list below;
};

struct settings {
    char *name;
    uint64_t port, bytes, interval_ns;
    bool flag;
    double ratio;
    int format;
    struct config_list items;
};

static const char *const FORMATS[] = { "text", "json", NULL };
static const struct config_key BELOW_KEYS[] = {
    { .name = "name", .type = CONFIG_STRING, .offset = offsetof(struct item, name), .default_text = "" },
    { .name = NULL },
};
static const struct config_key ITEM_KEYS[] = {
    { .name = "name", .type = CONFIG_STRING, .offset = offsetof(struct item, name) },
    { .name = "a.n",
            .type = CONFIG_U64,
            .offset = offsetof(struct item, n),
            .default_text = "1",
            .min = 1,
            .max = 9 },
    { .name = "below",
            .type = CONFIG_LIST,
            .offset = offsetof(struct item, below),
            .default_text = "",
            .item_keys = BELOW_KEYS,
            .item_bytes = sizeof(struct item),
            .item_count_max = 3 },
    { .name = NULL },
};
static const struct config_key KEYS[] = {
    { .name = "node.name",
            .type = CONFIG_STRING,
            .offset = offsetof(struct settings, name),
            .default_text = "x" },
    { .name = "node.port",
            .type = CONFIG_U64,
            .offset = offsetof(struct settings, port),
            .default_text = "1",
            .min = 1,
            .max = 65535 },
    { .name = "bytes",
            .type = CONFIG_BYTES,
            .offset = offsetof(struct settings, bytes),
            .default_text = "1MiB",
            .min = 4096,
            .max = 1 << 30 },
    { .name = "interval",
            .type = CONFIG_DURATION,
            .offset = offsetof(struct settings, interval_ns),
            .default_text = "1s",
            .min = 1000,
            .max = 3600000000000 },
    { .name = "flag",
            .type = CONFIG_BOOL,
            .offset = offsetof(struct settings, flag),
            .default_text = "false" },
    { .name = "ratio",
            .type = CONFIG_F64,
            .offset = offsetof(struct settings, ratio),
            .default_text = "0",
            .max = 1 },
    { .name = "log.format",
            .type = CONFIG_ENUM,
            .offset = offsetof(struct settings, format),
            .default_text = "text",
            .choices = FORMATS },
    { .name = "items",
            .type = CONFIG_LIST,
            .offset = offsetof(struct settings, items),
            .default_text = "[]",
            .item_keys = ITEM_KEYS,
            .item_bytes = sizeof(struct item),
            .item_count_max = 4 },
    { .name = NULL },
};

static void check_settings(const struct settings *s)
{
    CHECK(s->name != NULL && strlen(s->name) < (1u << 20));
    CHECK(s->port >= 1 && s->port <= 65535);
    CHECK(s->bytes >= 4096 && s->bytes <= 1 << 30);
    CHECK(s->interval_ns >= 1000 && s->interval_ns <= 3600000000000);
    CHECK(s->ratio >= 0 && s->ratio <= 1);
    CHECK(s->format == 0 || s->format == 1);
    CHECK(s->items.count <= 4);
    const struct item *items = s->items.items;
    for (uint32_t i = 0; i < s->items.count; i++) {
        CHECK(items[i].name != NULL && items[i].n >= 1 && items[i].n <= 9 && items[i].below.count <= 3);
        const struct item *below = items[i].below.items;
        for (uint32_t k = 0; k < items[i].below.count; k++) CHECK(below[k].name != NULL);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct settings settings;
    struct config *config;
    struct err err = { 0 };
    memset(&settings, 0xee, sizeof settings);
    enum omen_err rc = config_load_text("fuzz.yaml", (const char *)data, size, KEYS, NULL, 0, &settings,
            &config, &err);
    if (rc == OMEN_OK)
        check_settings(&settings);
    else
        CHECK(err.message[0] != '\0' && config == NULL);
    config_free(config);
    return 0;
}
