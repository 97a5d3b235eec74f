/* The parsed form of a payload path, shared by the files of this folder that walk it. doc.h is the door. */
#ifndef OMEN_COMMON_QUERY_DOC_PATH_H
#define OMEN_COMMON_QUERY_DOC_PATH_H

#include "common/query/doc.h"

enum doc_step_kind {
    DOC_STEP_KEY,  /* into the member of an object */
    DOC_STEP_ALL,  /* [] into every element of an array */
    DOC_STEP_SLOT, /* [3] into one element */
};

struct doc_step {
    enum doc_step_kind kind;
    uint32_t slot;    /* SLOT, 0-based */
    struct bytes key; /* KEY; without quotes; borrowed from the path's text */
};

struct doc_path {
    struct bytes text;   /* as it was given, copied */
    uint32_t step_count; /* 1 .. DOC_PATH_STEPS_MAX; the first is a KEY */
    bool has_arrays;     /* a step other than KEY is among them */
    struct doc_step steps[];
};

#endif
