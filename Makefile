# kusto_ingest: exports query results from inside PostgreSQL to Azure Data Explorer (Kusto)
#
#   make && make install      build, and install into the PostgreSQL of PG_CONFIG
#   make unit | fuzz          tests of src/core, which needs no PostgreSQL
#   make check-layers         the rules of CONTRIBUTING.md that a program can check
#   make installcheck         regression and TAP tests against the installed extension;
#                             scripts/test prepares what they need and runs everything
#
# scripts/test makes warnings errors (WERROR=-Werror); a compiler newer than ours may know more of them.

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

WERROR ?=
WARNINGS = -Wall -Wextra -Wshadow -Wmissing-prototypes -Wvla \
	-Wno-declaration-after-statement $(WERROR)
# Callbacks have PostgreSQL's signatures, whether they need every argument or not.
PG_WARNINGS = -Wno-unused-parameter
CORE_STD = -std=gnu11 -fvisibility=hidden

# Without stubs for the server's functions: a captured row calls dozens, and stubs are in no cache by then.
PG_CFLAGS = $(CORE_STD) $(WARNINGS) -fno-plt
# Before PostgreSQL 16 PGDLLEXPORT is empty outside Windows, and -fvisibility=hidden would hide
# even the entry points.  Later versions define it as exactly this.
PG_CPPFLAGS = -Isrc -isystem $(includedir_server) \
	-D'PGDLLEXPORT=__attribute__((visibility("default")))'
SHLIB_LINK = $(CURL_LIBS) -lssl -lcrypto $(COMPRESSION_LIBS)

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

# ---- compression ----

# zlib always; ISA-L and libdeflate where a program that uses them compiles and links.
# ISAL=no or LIBDEFLATE=no leaves one out, and yes skips the question.
hash := \#
compiles = $(shell mkdir -p build; program=build/probe.$$$$; \
	printf '$(hash)include <%s>\nint main(void) { return (int) %s; }\n' '$(1)' '$(2)' | \
	$(CC) $(CPPFLAGS) -x c - $(LDFLAGS) $(3) -o $$program >/dev/null 2>&1 && echo yes; rm -f $$program)

ifneq ($(filter-out clean distclean maintainer-clean,$(or $(MAKECMDGOALS),all)),)
ifndef ISAL
ISAL := $(call compiles,isa-l.h,(isal_deflate(0) + (int) crc32_gzip_refl(0,0,0)),-lisal)
endif
ifndef LIBDEFLATE
LIBDEFLATE := $(call compiles,libdeflate.h,libdeflate_gzip_compress(0,0,0,0,0),-ldeflate)
endif
endif

# Two files know of it, by FLAGS_<file>: when the answer changes only they are compiled again.
FLAGS_gzip_isal = $(if $(filter yes,$(ISAL)),-DKC_HAVE_ISAL)
FLAGS_gzip_deflate = $(if $(filter yes,$(LIBDEFLATE)),-DKC_HAVE_LIBDEFLATE)
COMPRESSION_LIBS = $(if $(filter yes,$(ISAL)),-lisal) $(if $(filter yes,$(LIBDEFLATE)),-ldeflate) -lz
engines = $(addprefix $(1)/,gzip_isal.o gzip_deflate.o)

# Not in PG_CPPFLAGS, which PGXS has expanded by now.
override CPPFLAGS += $(CURL_CFLAGS)

# ---- the extension's objects ----

# -Werror makes no difference to what is built.
define write_flags
@mkdir -p $(@D)
@{ echo '$(subst ','\'',$(filter-out -Werror,$(1)))'; } > $@.new
@cmp -s $@.new $@ && rm -f $@.new || mv -f $@.new $@
endef

# What was built with: rewritten only when it changes, so that another PG_CONFIG, other flags or
# other libraries rebuild what they matter to.
build/flags: FORCE
	$(call write_flags,$(VERSION) $(CC) $(CFLAGS) $(CPPFLAGS))

build/flags.libraries: FORCE
	$(call write_flags,$(FLAGS_gzip_isal) $(FLAGS_gzip_deflate) $(COMPRESSION_LIBS))

$(call engines,build/obj/core) $(call engines,build/faults/core): build/flags.libraries

build/obj/pg/%.o build/faults/pg/%.o: private override CFLAGS += $(PG_WARNINGS)
# Core says itself what it needs of the C library; it is also built without PostgreSQL's flags.
build/obj/core/%.o build/faults/core/%.o: private override CPPFLAGS := $(filter-out -D_GNU_SOURCE,$(CPPFLAGS))

build/obj/%.o: src/%.c build/flags build/curl-checked
	@mkdir -p $(@D)
	$(COMPILE.c) $(FLAGS_$(*F)) -MMD -MP -o $@ $<

# The same library with accidents on demand (src/pg/fault.h): for the crash matrix of t/ alone.
FAULT_OBJS = $(OBJS:build/obj/%=build/faults/%)

build/faults/%.o: src/%.c build/flags build/curl-checked
	@mkdir -p $(@D)
	$(COMPILE.c) $(FLAGS_$(*F)) -DKUSTO_FAULTS -MMD -MP -o $@ $<

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
CORE_LIBS = $(CURL_LIBS) -lssl -lcrypto $(COMPRESSION_LIBS) -lpthread -lm
CORE_DEPS = build/curl-checked Makefile

UNIT_DIR = build/unit
UNIT_CC = $(CC)
# In a test, what an initializer leaves out is meant to be zero.
UNIT_CFLAGS = $(CORE_STD) $(WARNINGS) -Wno-missing-field-initializers -g -O1 $(SANITIZE)
UNIT_SRCS = $(sort $(wildcard test/unit/*.c))
UNIT_TESTS = $(UNIT_SRCS:test/unit/%.c=$(UNIT_DIR)/%)
# With other compression libraries in UNIT_DIR, what does not know of them may come from UNIT_BASE.
UNIT_BASE = $(UNIT_DIR)
UNIT_LIB_OBJS = $(filter-out $(call engines,%),$(CORE_SRCS:src/core/%.c=$(UNIT_BASE)/core/%.o)) \
	$(call engines,$(UNIT_DIR)/engines)

$(UNIT_BASE)/flags: FORCE
	$(call write_flags,$(UNIT_CC) $(UNIT_CFLAGS) $(CORE_CPPFLAGS))

$(UNIT_DIR)/flags.libraries: FORCE
	$(call write_flags,$(FLAGS_gzip_isal) $(FLAGS_gzip_deflate) $(CORE_LIBS))

$(UNIT_BASE)/core/%.o: src/core/%.c $(UNIT_BASE)/flags $(CORE_DEPS)
	@mkdir -p $(@D)
	$(UNIT_CC) $(UNIT_CFLAGS) $(CORE_CPPFLAGS) -MMD -MP -c -o $@ $<

$(UNIT_DIR)/engines/%.o: src/core/%.c $(UNIT_BASE)/flags $(UNIT_DIR)/flags.libraries $(CORE_DEPS)
	@mkdir -p $(@D)
	$(UNIT_CC) $(UNIT_CFLAGS) $(CORE_CPPFLAGS) $(FLAGS_$*) -MMD -MP -c -o $@ $<

$(UNIT_DIR)/libkc.a: $(UNIT_LIB_OBJS)
	rm -f $@ && $(AR) crs $@ $^

$(UNIT_DIR)/%: test/unit/%.c $(UNIT_DIR)/libkc.a $(CORE_DEPS)
	$(UNIT_CC) $(UNIT_CFLAGS) $(CORE_CPPFLAGS) -Itest/unit -MMD -MP -MF $@.d -o $@ $< $(UNIT_DIR)/libkc.a \
		$(UNIT_LDFLAGS) $(CORE_LIBS)

# It decides which threads can be had.
$(UNIT_DIR)/test_zipline_threads: private UNIT_LDFLAGS = -Wl,--wrap=pthread_create

FUZZ_CC = clang
FUZZ_CFLAGS = $(CORE_STD) -Wall -Wextra $(WERROR) -g -O1 $(SANITIZE)
FUZZ_SRCS = $(sort $(wildcard test/fuzz/*.c))
FUZZ_TESTS = $(FUZZ_SRCS:test/fuzz/%.c=build/fuzz/%)
FUZZ_LIB_OBJS = $(CORE_SRCS:src/core/%.c=build/fuzz/core/%.o)

build/fuzz/flags: FORCE
	$(call write_flags,$(FUZZ_CC) $(FUZZ_CFLAGS) $(CORE_CPPFLAGS) $(CORE_LIBS))

build/fuzz/core/%.o: src/core/%.c build/fuzz/flags $(CORE_DEPS)
	@mkdir -p $(@D)
	$(FUZZ_CC) $(FUZZ_CFLAGS) -fsanitize=fuzzer-no-link $(CORE_CPPFLAGS) $(FLAGS_$*) -MMD -MP -c -o $@ $<

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
