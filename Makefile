# OmenDB: the one Makefile. Non-recursive: sources are found by wildcard, so adding a file needs no edit here.
#
# Everything lands in $(BUILD)/<flavour>/: release (default), asan (address + undefined), tsan, fuzz (clang, libFuzzer), and
# mutant (release with the deliberate bugs that tests/fault must catch; never shipped).
#   <room>/*.c, <room>/*/*.c        -> lib<room>.a           (rooms: see ROOMS; */main.c is left to the binaries)
#   tools/client/*.c                -> libomenclient.a       tools/omenctl/*.c -> omenctl    bench/*.c -> omen-bench
#   node/main.c, router/main.c      -> omen-node, omen-router
#   tests/support/*.c               -> libtestsupport.a
#   tests/{unit,property,golden,recall,sim,fault}/test_*.c -> one Check executable each, with its own main
#   node/main.c once more           -> tests/omen-node-older: a node of the build before
#   tests/fuzz/fuzz_*.c             -> one target each; tests/fuzz/driver.c replays the corpus, `make fuzz` explores
# Variables: FLAVOUR= BUILD= CC= JOBS= V=1 (show commands) KINDS= ONLY= (which tests) CI=true (warnings are errors).
# Libraries are named by hand, not asked of pkg-config: make reads this file before install-deps.sh has run.

FLAVOUR ?= release
BUILD   ?= build
B       := $(BUILD)/$(FLAVOUR)
PREFIX  ?= /usr/local
JOBS    ?= $(shell nproc 2>/dev/null || echo 2)
PYTHON  ?= /usr/bin/python3
FUZZ_SECONDS ?= 60
OMEN_FAULT_REPEATS ?= 20
OMEN_FAULT_SEEDS ?= 3000

MAKEFLAGS += -rR --no-print-directory
.SUFFIXES:
.SECONDARY:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := all

ifeq ($(filter release asan tsan fuzz mutant,$(FLAVOUR)),)
$(error FLAVOUR must be release, asan, tsan, fuzz or mutant, not '$(FLAVOUR)')
endif

# ---- compiler ----------------------------------------------------------------------------------------------------

ifeq ($(FLAVOUR),fuzz)
CC := clang
else ifneq ($(filter default undefined,$(origin CC)),)
CC := gcc
endif
AR ?= ar
ifneq ($(filter default undefined,$(origin AR)),)
AR := ar
endif
IS_CLANG := $(findstring clang,$(CC))

WARNINGS := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wold-style-definition -Wredundant-decls \
        -Wpointer-arith -Wcast-qual -Wwrite-strings -Wundef -Wvla -Wformat=2 -Wimplicit-fallthrough -Wno-unused-parameter \
        -Werror=implicit-function-declaration -Werror=incompatible-pointer-types -Werror=int-conversion -Werror=return-type
ifeq ($(IS_CLANG),)
WARNINGS += -Wlogical-op -Wduplicated-cond -Wduplicated-branches
endif

# -ffp-contract=off: a*b+c is fused only where a kernel says so, so a sum has the same bits on every machine.
CPPFLAGS_ALL := -I. -D_GNU_SOURCE
CFLAGS_ALL   := -std=gnu11 -g -fno-omit-frame-pointer -ffp-contract=off -pthread $(WARNINGS)
LDFLAGS_ALL  := -pthread -rdynamic -Wl,--as-needed

ifneq ($(filter release mutant,$(FLAVOUR)),)
CPPFLAGS_ALL += -D_FORTIFY_SOURCE=2 $(if $(filter mutant,$(FLAVOUR)),-DOMEN_TEST_MUTATIONS)
CFLAGS_ALL   += -O2 -fstack-protector-strong
else ifeq ($(FLAVOUR),asan)
CFLAGS_ALL   += -O1 -fsanitize=address,undefined -fno-sanitize-recover=all
LDFLAGS_ALL  += -fsanitize=address,undefined
else ifeq ($(FLAVOUR),tsan)
CFLAGS_ALL   += -O1 -fsanitize=thread
LDFLAGS_ALL  += -fsanitize=thread
ifeq ($(IS_CLANG),)
CFLAGS_ALL   += -Wno-tsan
endif
else ifeq ($(FLAVOUR),fuzz)
CFLAGS_ALL   += -O1 -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=all
LDFLAGS_ALL  += -fsanitize=fuzzer,address,undefined
endif
ifeq ($(CI),true)
WERROR := -Werror
endif

LIBS       := -lraft -luv -luring -lmbedcrypto -lnng -llmdb -lmsgpackc -lyaml -ljansson -lxxhash -lroaring -lpthread -lm
LIBS_CHECK := -lcheck_pic -lsubunit -lrt

# ---- sources -----------------------------------------------------------------------------------------------------

ROOMS := common storage consensus router node
objs   = $(patsubst %.c,$(B)/obj/%.o,$(1))

define room
SRCS_$(1) := $$(filter-out %/main.c,$$(wildcard $(1)/*.c $(1)/*/*.c))
LIB_$(1)  := $$(if $$(SRCS_$(1)),$(B)/lib$(1).a)
endef
$(foreach r,$(ROOMS),$(eval $(call room,$(r))))

SRCS_omenclient  := $(wildcard tools/client/*.c)
SRCS_testsupport := $(wildcard tests/support/*.c)
LIB_omenclient   := $(if $(SRCS_omenclient),$(B)/libomenclient.a)
LIB_testsupport  := $(if $(SRCS_testsupport),$(B)/libtestsupport.a)

SRCS_omenctl := $(wildcard tools/omenctl/*.c)
SRCS_inspect := $(wildcard tools/inspect/*.c)
SRCS_bench   := $(wildcard bench/*.c)
SRCS_node_main   := $(wildcard node/main.c)
SRCS_router_main := $(wildcard router/main.c)

LIBS_BELOW_NODE := $(LIB_node) $(LIB_router) $(LIB_consensus) $(LIB_storage) $(LIB_common)
ALL_LIBS        := $(LIB_testsupport) $(LIB_omenclient) $(LIBS_BELOW_NODE)

BINS := $(if $(SRCS_node_main),$(B)/omen-node) $(if $(SRCS_router_main),$(B)/omen-router) \
        $(if $(SRCS_omenctl),$(B)/omenctl) $(if $(SRCS_inspect),$(B)/omen-inspect) $(if $(SRCS_bench),$(B)/omen-bench)

SRCS_checked := $(foreach k,unit property golden recall sim fault,$(wildcard tests/$(k)/test_*.c))
SRCS_fuzz    := $(wildcard tests/fuzz/fuzz_*.c)
FUZZ_DRIVER  := $(if $(filter fuzz,$(FLAVOUR)),,$(call objs,tests/fuzz/driver.c))
TEST_BINS    := $(SRCS_checked:%.c=$(B)/%)
SRCS_sim     := $(filter-out tests/sim/test_%,$(wildcard tests/sim/*.c))
FUZZ_BINS    := $(SRCS_fuzz:%.c=$(B)/%)

ALL_SRCS := $(foreach r,$(ROOMS),$(SRCS_$(r))) $(SRCS_omenclient) $(SRCS_testsupport) $(SRCS_omenctl) $(SRCS_inspect) \
        $(SRCS_bench) $(SRCS_node_main) $(SRCS_router_main) $(SRCS_checked) $(SRCS_sim) $(SRCS_fuzz) tests/fuzz/driver.c tests/integration/store_forge.c

# ---- flags of single files ---------------------------------------------------------------------------------------

# Kernels above the ABI floor, each file alone; common code must not be compiled with these flags.
ifneq ($(filter x86_64%,$(shell $(CC) -dumpmachine 2>/dev/null || uname -m)),)
$(B)/obj/storage/kernel/avx2.o:   FILE_FLAGS := -mavx2 -mfma -mf16c -mbmi2 -mpopcnt
AVX512 := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c -mbmi2 -mpopcnt
$(B)/obj/storage/kernel/avx512.o: FILE_FLAGS := $(AVX512)
$(B)/obj/storage/kernel/avx512_vnni.o: FILE_FLAGS := $(AVX512) -mavx512vnni -mavx512vpopcntdq
endif

# The commit is compiled into one file, so a commit rebuilds one file.
COMMIT := $(or $(shell test -e .git && git rev-parse --short=12 HEAD 2>/dev/null),unknown)
$(B)/obj/common/version.o: FILE_FLAGS := -DOMEN_COMMIT='"$(COMMIT)"'
$(B)/obj/common/version.o: $(B)/stamp/commit

# Rivals of `omen-bench index`: C++ and their headers where installed, compiled as their users would.
HAVE_CXX := $(shell command -v g++)
ifneq ($(and $(wildcard /usr/include/hnswlib/hnswlib.h),$(HAVE_CXX)),)
OBJS_rival := $(B)/obj/bench/rival_hnswlib.o
LIBS_rival := -lstdc++
RIVAL_DEFS := -DOMEN_HAVE_HNSWLIB
endif
ifneq ($(and $(wildcard /usr/include/faiss/IndexHNSW.h),$(HAVE_CXX)),)
OBJS_rival += $(B)/obj/bench/rival_faiss.o
LIBS_rival := -lfaiss -llapack -lblas -lgomp -lstdc++
RIVAL_DEFS += -DOMEN_HAVE_FAISS
endif
$(B)/obj/bench/rival_none.o: FILE_FLAGS := $(RIVAL_DEFS)

# LLVMFuzzerTestOneInput has no header of ours.
$(B)/obj/tests/fuzz/%.o: FILE_FLAGS := -Wno-missing-prototypes

# ---- rules -------------------------------------------------------------------------------------------------------

Q    := $(if $(V),,@)
say   = $(if $(V),,@printf '  %-6s %s\n' $(1) $(2))

# A stamp changes only when its text does: other flags or another set of sources rebuild what they touch.
stamp = @mkdir -p $(@D); printf '%s\n' $(1) | cmp -s - $@ || printf '%s\n' $(1) > $@

$(B)/stamp/flags: FORCE
	$(call stamp,'$(CC) $(CPPFLAGS_ALL) $(CPPFLAGS) $(CFLAGS_ALL) $(CFLAGS)')
$(B)/stamp/commit: FORCE
	$(call stamp,'$(COMMIT)')
$(B)/stamp/srcs_%: FORCE
	$(call stamp,'$(SRCS_$*)$(if $(filter bench,$*), $(OBJS_rival))')

$(B)/obj/%.o: %.c $(B)/stamp/flags
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS_ALL) $(CPPFLAGS) $(CFLAGS_ALL) $(WERROR) $(CFLAGS) $(FILE_FLAGS) -MMD -MP -c -o $@ $<

$(B)/obj/bench/rival_%.o: bench/rival_%.cc bench/rival.h $(B)/stamp/flags
	$(call say,CXX,$<)
	@mkdir -p $(@D)
	$(Q)g++ -std=gnu++17 -I. -O3 -march=native -g -pthread -fopenmp -c -o $@ $<

# A node of the build before, which differs in its feature level alone (common/feature.h): for clusters of both.
$(B)/obj/older/feature.o: common/feature.c common/feature.h $(B)/stamp/flags
	$(call say,CC,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS_ALL) $(CPPFLAGS) $(CFLAGS_ALL) $(WERROR) $(CFLAGS) '-DOMEN_FEATURE_LEVEL=(FEATURE_NEWEST-1)' -c -o $@ $<

# Archives and links are written aside and moved into place: whoever runs the old file keeps it.
define archive
$(B)/lib$(1).a: $(call objs,$(SRCS_$(1))) $(B)/stamp/srcs_$(1)
	$$(call say,AR,$$@)
	$$(Q)rm -f $$@.new && $(AR) rcsD $$@.new $$(filter %.o,$$^) && mv -f $$@.new $$@
endef
$(foreach l,$(ROOMS) omenclient testsupport,$(if $(SRCS_$(l)),$(eval $(call archive,$(l)))))

link = $(Q)mkdir -p $(@D) && $(CC) $(CFLAGS_ALL) $(CFLAGS) $(LDFLAGS_ALL) $(LDFLAGS) -o $@.new \
        $(filter %.o,$^) $(filter %.a,$^) $(1) && mv -f $@.new $@

$(B)/omen-node: $(call objs,$(SRCS_node_main)) $(LIBS_BELOW_NODE)
	$(call say,LINK,$@)
	$(call link,$(LIBS))
$(B)/tests/omen-node-older: $(call objs,$(SRCS_node_main)) $(B)/obj/older/feature.o $(LIBS_BELOW_NODE)
	$(call say,LINK,$@)
	$(call link,$(LIBS))
$(B)/omen-router: $(call objs,$(SRCS_router_main)) $(LIB_router) $(LIB_common)
	$(call say,LINK,$@)
	$(call link,$(LIBS))
$(B)/omenctl: $(call objs,$(SRCS_omenctl)) $(LIB_omenclient) $(LIB_common) $(B)/stamp/srcs_omenctl
	$(call say,LINK,$@)
	$(call link,$(LIBS))
$(B)/omen-inspect: $(call objs,$(SRCS_inspect)) $(LIB_storage) $(LIB_common) $(B)/stamp/srcs_inspect
	$(call say,LINK,$@)
	$(call link,$(LIBS))
$(B)/omen-bench: $(call objs,$(SRCS_bench)) $(OBJS_rival) $(LIB_omenclient) $(LIBS_BELOW_NODE) $(B)/stamp/srcs_bench
	$(call say,LINK,$@)
	$(call link,$(LIBS) $(LIBS_rival))

$(B)/tests/store-forge: $(call objs,tests/integration/store_forge.c) $(LIB_storage) $(LIB_common)
	$(call say,LINK,$@)
	$(call link,$(LIBS))

$(TEST_BINS): $(B)/%: $(B)/obj/%.o $(ALL_LIBS)
	$(call say,LINK,$@)
	$(call link,$(LIBS_CHECK) $(LIBS))
# The simulation takes the place of what the product has threads for: tests/sim/sim_doors.c.
SIM_DOORS := loop_post loop_call net_random node_log_append node_log_release node_log_far_over node_log_is_short raft_group_new search_pool_submit room_keeper_ask room_keeper_forget fetch_begin \
        fetch_cancel fetch_post fetch_withdraw fallocate mdb_env_copy mdb_put mdb_txn_commit mdb_txn_abort ship_register \
        ship_unregister net_client_open net_client_close net_call_start pthread_cond_timedwait nanosleep shard_store_adopt
$(B)/tests/sim/test_sim: $(call objs,$(SRCS_sim))
$(B)/tests/sim/test_sim: private LDFLAGS_ALL += $(SIM_DOORS:%=-Wl,--wrap=%)

$(FUZZ_BINS): $(B)/%: $(B)/obj/%.o $(FUZZ_DRIVER) $(ALL_LIBS)
	$(call say,LINK,$@)
	$(call link,$(LIBS))

-include $(patsubst %.o,%.d,$(call objs,$(ALL_SRCS)))

# ---- targets -----------------------------------------------------------------------------------------------------

# Sub-makes run with as many jobs as there are processors unless the caller chose (make -j sets a job server).
SUBMAKE = +@$(MAKE) $(if $(findstring jobserver,$(MAKEFLAGS)),,-j$(JOBS)) BUILD=$(BUILD)

.PHONY: FORCE all build build-tests build-fuzz deps help test test-run asan tsan neon fuzz fault sim bench check demo up down fmt install \
        clean
FORCE:

all: ## build the binaries and libraries (FLAVOUR=release)
	$(SUBMAKE) FLAVOUR=$(FLAVOUR) build

build: $(BINS) $(ALL_LIBS)
build-tests: $(BINS) $(TEST_BINS) $(FUZZ_BINS) $(B)/tests/omen-node-older $(B)/tests/store-forge
build-fuzz: $(FUZZ_BINS)

deps: ## install what is missing from Debian's packages
	@sh deploy/install-deps.sh

demo: deps ## install, build, load real data, search, break, show nothing was lost
	$(SUBMAKE) FLAVOUR=release build
	@OMEN_BUILD=$(BUILD)/release deploy/demo/run.sh

PORT ?= 7700
UP = @$(PYTHON) deploy/local/up.py --build $(BUILD)/release --work $(BUILD)/up --port $(PORT)

up: deps ## a cluster of 3 nodes and 2 routers on this machine that stays; its clients' ports from PORT=7700 on
	$(SUBMAKE) FLAVOUR=release build
	$(UP) up

down: ## end what `make up` started; data and logs stay under build/up
	$(UP) down

RUN_TESTS = OMEN_BUILD=$(B) OMEN_FLAVOUR=$(FLAVOUR) $(PYTHON) tests/run.py --build $(B) --flavour $(FLAVOUR) \
        $(if $(ONLY),--only '$(ONLY)')
DEEP_KINDS := unit,property,golden,recall,sim,fuzz,integration
TEST_KINDS := check,$(DEEP_KINDS)

# A build that fails counts as one failed test, so that the last line always has its form.
test: deps ## install, build, run all tests but the long ones (KINDS=unit,... ONLY=pattern)
	$(SUBMAKE) FLAVOUR=$(FLAVOUR) build-tests || { echo '0 passed, 1 failed'; exit 1; }
	@$(RUN_TESTS) --kinds $(or $(KINDS),$(TEST_KINDS))

check: ## rooms, headers, formatting, sizes and scripts, without building
	@$(RUN_TESTS) --kinds check

asan: ## the tests under AddressSanitizer and UndefinedBehaviorSanitizer
	$(SUBMAKE) FLAVOUR=asan build-tests
	+@$(MAKE) FLAVOUR=asan KINDS=$(or $(KINDS),$(DEEP_KINDS)) test-run

tsan: ## the tests under ThreadSanitizer
	$(SUBMAKE) FLAVOUR=tsan build-tests
	+@$(MAKE) FLAVOUR=tsan KINDS=$(or $(KINDS),$(DEEP_KINDS)) test-run

test-run:
	@$(RUN_TESTS) --kinds $(KINDS)

fault: ## failing allocations, writes, fsyncs, killed processes, OMEN_FAULT_REPEATS=20; OMEN_FAULT_SEEDS=3000 simulated
	$(SUBMAKE) FLAVOUR=$(FLAVOUR) build-tests
	$(SUBMAKE) FLAVOUR=mutant build
	@OMEN_FAULT_REPEATS=$(OMEN_FAULT_REPEATS) OMEN_SEEDS=$(OMEN_FAULT_SEEDS) $(RUN_TESTS) --kinds sim,fault --timeout 3600

SEED  ?= 1
SEEDS ?= 1
sim: ## shards in a simulated world, SEED=1 with all that happens in it; SEEDS=100 for so many from there on
	$(SUBMAKE) FLAVOUR=$(FLAVOUR) $(B)/tests/sim/test_sim
	@OMEN_SEED=$(SEED) OMEN_SEEDS=$(SEEDS) $(if $(filter 1,$(SEEDS)),OMEN_SIM_TRACE=1) CK_RUN_CASE=seeds $(B)/tests/sim/test_sim

# The kernels of an ARM machine on this one: static, against a small stand-in for Check, run by qemu-user.
NEON_TESTS := kernel code_kernel packed_kernel
neon: ## NEON kernels against the scalar ones under qemu-user (needs gcc-aarch64-linux-gnu, qemu-user)
	@command -v aarch64-linux-gnu-gcc qemu-aarch64 >/dev/null || { echo 'missing: sh deploy/install-deps.sh dev'; exit 1; }
	@mkdir -p $(BUILD)/neon
	@for name in $(NEON_TESTS); do \
	  aarch64-linux-gnu-gcc -std=gnu11 -O2 -g -ffp-contract=off -pthread $(WARNINGS) -Itests/cross $(CPPFLAGS_ALL) -static \
	    -o $(BUILD)/neon/test_$$name tests/unit/test_$$name.c $(wildcard storage/kernel/*.c) common/mem.c common/check.c -lm && \
	  qemu-aarch64 $(BUILD)/neon/test_$$name || exit 1; \
	done

fuzz: ## libFuzzer on each decoder for FUZZ_SECONDS=60, from its corpus (needs clang)
	@command -v clang >/dev/null || { echo 'clang is missing: sh deploy/install-deps.sh dev'; exit 1; }
	$(SUBMAKE) FLAVOUR=fuzz build-fuzz
	@for exe in $(SRCS_fuzz:%.c=$(BUILD)/fuzz/%); do \
	  name=$${exe##*/fuzz_}; case $$name in *$(ONLY)*) ;; *) continue ;; esac; found=$(BUILD)/fuzz/corpus/$$name; seeds=tests/fuzz/corpus/$$name; \
	  mkdir -p $$found; test -d $$seeds || seeds=; \
	  echo "== $$name, $(FUZZ_SECONDS) s; what it finds goes to $$found"; \
	  $$exe -max_total_time=$(FUZZ_SECONDS) -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 -verbosity=0 \
	    -artifact_prefix=$(BUILD)/fuzz/$$name- $$found $$seeds || exit 1; \
	done

bench: ## the benchmark set, JSON lines under build/bench/ [bench/run.sh]
	$(SUBMAKE) FLAVOUR=release build
	@OMEN_BUILD=$(BUILD)/release bench/run.sh

fmt: ## format the C sources (FILES=... for some of them)
	@command -v clang-format >/dev/null || { echo 'clang-format is missing: sh deploy/install-deps.sh dev'; exit 1; }
	@clang-format -i $(or $(FILES),$(wildcard $(foreach d,$(ROOMS) tools bench tests,$(d)/*.[ch] $(d)/*/*.[ch])))

# The installed library is one object with only omen_* visible: what it takes from common/ stays inside.
$(B)/sdk/libomenclient.a: $(LIB_omenclient) $(LIB_common)
	@mkdir -p $(@D)
	$(Q)ld -r -o $(@D)/omenclient.o --whole-archive $(LIB_omenclient) --no-whole-archive $(LIB_common)
	$(Q)objcopy --wildcard --keep-global-symbol='omen_*' $(@D)/omenclient.o
	$(Q)rm -f $@ && $(AR) rcsD $@ $(@D)/omenclient.o

install: $(if $(LIB_omenclient),$(B)/sdk/libomenclient.a) ## binaries, omen.h and libomenclient.a under PREFIX=/usr/local (DESTDIR=)
	$(SUBMAKE) FLAVOUR=$(FLAVOUR) build
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/include $(DESTDIR)$(PREFIX)/lib
	install -m 755 $(filter-out %/omen-bench,$(BINS)) $(DESTDIR)$(PREFIX)/bin/
ifneq ($(LIB_omenclient),)
	install -m 644 tools/client/omen.h $(DESTDIR)$(PREFIX)/include/
	install -m 644 $(B)/sdk/libomenclient.a $(DESTDIR)$(PREFIX)/lib/
endif

clean: ## remove build/
	rm -rf $(BUILD)

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { t = $$1; d = $$2; \
	  if (match(d, / \[[^]]*\]$$/)) { f = substr(d, RSTART + 2, RLENGTH - 3); d = substr(d, 1, RSTART - 1); \
	    if ((getline line < f) < 0) next; close(f) } \
	  printf "  make %-8s %s\n", t, d }' Makefile
