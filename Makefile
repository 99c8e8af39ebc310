# kusto_ingest: exports query results from inside PostgreSQL to Azure Data Explorer (Kusto)
#
#   make && make install      build, and install into the PostgreSQL of PG_CONFIG
#   make unit | fuzz          tests of src/core, which needs no PostgreSQL
#   make check-layers         the rules of CONTRIBUTING.md that a program can check
#   make installcheck         regression and TAP tests against the installed extension;
#                             scripts/test prepares what they need and runs everything
#
# Packagers: `make WERROR=` builds with a compiler that knows more warnings than ours.

EXTENSION = kusto_ingest
EXTVERSION = 1.0
DISTVERSION = 1.0.0

MODULE_big = kusto_ingest
DATA = $(wildcard $(EXTENSION)--*.sql)
PGFILEDESC = "kusto_ingest - export to Azure Data Explorer (Kusto)"

CORE_SRCS = $(sort $(wildcard src/core/*.c))
PG_SRCS = $(sort $(wildcard src/pg/*.c))
OBJS = $(CORE_SRCS:src/%.c=build/obj/%.o) $(PG_SRCS:src/%.c=build/obj/%.o)

REGRESS = $(sort $(patsubst sql/%.sql,%,$(wildcard sql/*.sql)))
# One transaction against another; these need no Kusto service.
ISOLATION = $(sort $(patsubst test/isolation/specs/%.spec,%,$(wildcard test/isolation/specs/*.spec)))
ISOLATION_OPTS = --inputdir=test/isolation --load-extension=$(EXTENSION)
TAP_TESTS = $(if $(wildcard t/*.pl),1)
PROVE_FLAGS += -I t/lib

WERROR = -Werror
WARNINGS = -Wall -Wextra -Wshadow -Wmissing-prototypes -Wvla \
	-Wno-declaration-after-statement $(WERROR)
# Callbacks have PostgreSQL's signatures, whether they need every argument or not.
PG_WARNINGS = -Wno-unused-parameter
CORE_STD = -std=gnu11 -fvisibility=hidden

PG_CFLAGS = $(CORE_STD) $(WARNINGS)
# Before PostgreSQL 16 PGDLLEXPORT is empty outside Windows, and -fvisibility=hidden would hide
# even the entry points.  Later versions define it as exactly this.
PG_CPPFLAGS = -Isrc -isystem $(includedir_server) \
	-D'PGDLLEXPORT=__attribute__((visibility("default")))' $(CURL_CFLAGS)
SHLIB_LINK = $(CURL_LIBS) -lssl -lcrypto -lz

# No bitcode: JIT cannot inline functions that wait for a network.
override with_llvm = no

EXTRA_CLEAN = build

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

# ---- libcurl ----

CURL_CONFIG ?= curl-config
CURL_CFLAGS := $(shell $(CURL_CONFIG) --cflags)
CURL_LIBS := $(shell $(CURL_CONFIG) --libs)
CURL_MINIMUM = 7.74.0

# GnuTLS and NSS flavours initialise, fork and take certificates differently: refuse them here
# and not at the first connection of a user.
build/curl-checked:
	@mkdir -p build
	@$(CURL_CONFIG) --checkfor $(CURL_MINIMUM) || \
		{ echo "libcurl $(CURL_MINIMUM) or later is needed" >&2; exit 1; }
	@$(CURL_CONFIG) --ssl-backends | grep -qi openssl || \
		{ echo "libcurl must be built with OpenSSL; this one has: $$($(CURL_CONFIG) --ssl-backends)" >&2; \
		  echo "On Debian, install libcurl4-openssl-dev." >&2; exit 1; }
	@touch $@

# ---- the extension's objects ----

# Rewritten only when its content changes, so that another PG_CONFIG or other flags rebuild.
build/flags: FORCE
	@mkdir -p build
	@{ echo '$(subst ','\'',$(VERSION) $(CC) $(CFLAGS) $(CPPFLAGS))'; } > $@.new
	@cmp -s $@.new $@ && rm -f $@.new || mv -f $@.new $@

build/obj/pg/%.o build/faults/pg/%.o: private override CFLAGS += $(PG_WARNINGS)
# Core says itself what it needs of the C library; it is also built without PostgreSQL's flags.
build/obj/core/%.o build/faults/core/%.o: private override CPPFLAGS := $(filter-out -D_GNU_SOURCE,$(CPPFLAGS))

build/obj/%.o: src/%.c build/flags build/curl-checked
	@mkdir -p $(@D)
	$(COMPILE.c) -MMD -MP -o $@ $<

# The same library with accidents on demand (src/pg/fault.h): for the crash matrix of t/ alone.
FAULT_OBJS = $(OBJS:build/obj/%=build/faults/%)

build/faults/%.o: src/%.c build/flags build/curl-checked
	@mkdir -p $(@D)
	$(COMPILE.c) -DKUSTO_FAULTS -MMD -MP -o $@ $<

build/faults/$(EXTENSION)$(DLSUFFIX): $(FAULT_OBJS)
	$(LINK.shared) -o $@ $^ $(LDFLAGS) $(LDFLAGS_SL) $(SHLIB_LINK)

faults: build/faults/$(EXTENSION)$(DLSUFFIX)

# `make` and `make install` check what the library exports.
all: build/exports-checked
build/exports-checked: $(shlib) tools/check_exports
	tools/check_exports $(shlib)
	@touch $@

# ---- core alone: a static library without any PostgreSQL header, for tests ----

SANITIZE = -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
CORE_CPPFLAGS = -Isrc $(CURL_CFLAGS)
CORE_LIBS = $(CURL_LIBS) -lssl -lcrypto -lz -lpthread -lm
CORE_DEPS = build/curl-checked Makefile

UNIT_CC = $(CC)
# In a test, what an initializer leaves out is meant to be zero.
UNIT_CFLAGS = $(CORE_STD) $(WARNINGS) -Wno-missing-field-initializers -g -O1 $(SANITIZE)
UNIT_SRCS = $(sort $(wildcard test/unit/*.c))
UNIT_TESTS = $(UNIT_SRCS:test/unit/%.c=build/unit/%)
UNIT_LIB_OBJS = $(CORE_SRCS:src/core/%.c=build/unit/core/%.o)

build/unit/core/%.o: src/core/%.c $(CORE_DEPS)
	@mkdir -p $(@D)
	$(UNIT_CC) $(UNIT_CFLAGS) $(CORE_CPPFLAGS) -MMD -MP -c -o $@ $<

build/unit/libkc.a: $(UNIT_LIB_OBJS)
	rm -f $@ && $(AR) crs $@ $^

build/unit/%: test/unit/%.c build/unit/libkc.a $(CORE_DEPS)
	$(UNIT_CC) $(UNIT_CFLAGS) $(CORE_CPPFLAGS) -Itest/unit -MMD -MP -MF $@.d -o $@ $< build/unit/libkc.a $(CORE_LIBS)

FUZZ_CC = clang
FUZZ_CFLAGS = $(CORE_STD) -Wall -Wextra $(WERROR) -g -O1 $(SANITIZE)
FUZZ_SRCS = $(sort $(wildcard test/fuzz/*.c))
FUZZ_TESTS = $(FUZZ_SRCS:test/fuzz/%.c=build/fuzz/%)
FUZZ_LIB_OBJS = $(CORE_SRCS:src/core/%.c=build/fuzz/core/%.o)

build/fuzz/core/%.o: src/core/%.c $(CORE_DEPS)
	@mkdir -p $(@D)
	$(FUZZ_CC) $(FUZZ_CFLAGS) -fsanitize=fuzzer-no-link $(CORE_CPPFLAGS) -MMD -MP -c -o $@ $<

build/fuzz/libkc.a: $(FUZZ_LIB_OBJS)
	rm -f $@ && $(AR) crs $@ $^

build/fuzz/%: test/fuzz/%.c build/fuzz/libkc.a $(CORE_DEPS)
	$(FUZZ_CC) $(FUZZ_CFLAGS) -fsanitize=fuzzer $(CORE_CPPFLAGS) -Itest/fuzz -MMD -MP -MF $@.d -o $@ $< build/fuzz/libkc.a $(CORE_LIBS)

unit-build: $(UNIT_TESTS)
fuzz-build: $(FUZZ_TESTS)

# The suites of scripts/test are also targets here.
unit: unit-build
	scripts/suites/run-tap $(UNIT_TESTS)

fuzz: fuzz-build
	scripts/suites/run-tap --jobs 2 --exec scripts/suites/fuzz-one $(FUZZ_TESTS)

check-layers:
	tools/check_layers

# ---- the release ----

dist:
	git archive --format=zip --prefix=$(EXTENSION)-$(DISTVERSION)/ -o $(EXTENSION)-$(DISTVERSION).zip HEAD

-include $(OBJS:.o=.d) $(FAULT_OBJS:.o=.d) $(UNIT_LIB_OBJS:.o=.d) $(FUZZ_LIB_OBJS:.o=.d)
-include $(UNIT_TESTS:=.d) $(FUZZ_TESTS:=.d)

.SECONDARY:
.PHONY: FORCE faults unit unit-build fuzz fuzz-build check-layers dist
