/* Stands in for rivals whose headers are not installed. */
#include "bench/rival.h"

#ifndef OMEN_HAVE_HNSWLIB
const struct rival_ops *rival_hnswlib(void) { return NULL; }
#endif
#ifndef OMEN_HAVE_FAISS
const struct rival_ops *rival_faiss(void) { return NULL; }
#endif
