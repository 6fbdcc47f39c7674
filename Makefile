# Pando. One make process; each folder's module.mk adds to the lists below.
#
#   make deps          Debian packages (as root or through sudo)
#   make               everything into build/<variant>/, laid out like an installation
#   make images        guest kernel, initramfs and root filesystem
#   make demo          set up and run the main job
#   make check         set up and run all tests; the last line is "N passed, N failed, N skipped"
#   make check-unit    one module at a time: no root, KVM or network
#   make check-kvm     the VMM with the small guest: any /dev/kvm
#   make check-fuzz    each fuzzer's corpus again, then a search
#   make check-system  pandod and pando as a user has them, with the small guest and with Debian guests
#   make check-vmx     the KVM tests on Intel processors that are emulated; make deps-vmx is for it
#   make tests         all test programs, fuzzers and benchmarks, not run
#   make bench         benchmarks
#   make install       DESTDIR and PREFIX are honoured
#   make clean         removes build/
#   make help          this list
#
#   ONLY=PATTERN       tests whose suite/name matches (grep -E), and no others are built: ONLY=unit/test_toml
#   JOBS=N             test programs at once; 1: one after the other
#   VERBOSE=1          all that tests say
#   FUZZ_SECONDS=N     how long each fuzzer searches
#   BENCH_FLAGS=…      of the benchmarks: --json, --rounds N, --mem MIB
#   SAN=address,undefined   another variant, with sanitizers
#   WERROR=1           warnings are errors: for CI
#   V=1                shows the commands
#   B=FOLDER           builds there

comma := ,
VARIANT := $(if $(SAN),san-$(subst $(comma),-,$(SAN)),plain)
B := build/$(VARIANT)
PREFIX ?= /usr/local
VERSION := 0.1.0

WARNINGS := -Wall -Wextra -Wshadow -Wcast-qual -Wvla -Wimplicit-fallthrough \
	-Wstrict-prototypes -Wmissing-prototypes -Wformat=2
CFLAGS ?= -O2 -g
ALL_CFLAGS = -std=gnu11 -D_GNU_SOURCE -I. -I$(B)/gen -DPANDO_VERSION='"$(VERSION)"' \
	-DPANDO_PREFIX='"$(PREFIX)"' $(WARNINGS) -fno-strict-aliasing -fstack-protector-strong -pthread \
	$(if $(WERROR),-Werror) $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer -DPANDO_SAN) \
	$(PKG_CFLAGS) $(CFLAGS)
ALL_LDFLAGS = -pthread -Wl,-z,relro,-z,now $(if $(SAN),-fsanitize=$(SAN)) $(LDFLAGS)
PKG_CFLAGS = $(if $(PKGS),$(shell pkg-config --cflags $(PKGS)))

# What a module.mk may add to:
#   LIBRARIES  += x    x_SRCS                              -> $(B)/obj/libx.a
#   PROGRAMS   += x    x_SRCS x_LIBS x_PKGS x_LDLIBS x_DIR -> $(B)/$(x_DIR)/x  (x_DIR: bin by default)
#   UNIT_TESTS += x    likewise, x_WRAP = functions for --wrap   -> $(B)/tests/x, run by check-unit
#   UNIT_SCRIPTS += x  a script that prints TAP; the module's own rule makes $(B)/tests/x
#   KVM_TESTS  += x    likewise                            -> run by check-kvm
#   SYSTEM_PROGRAMS += x   likewise                        -> driven by scripts of check-system
#   FUZZERS    += x    x_SRCS x_CORPUS (a folder)          -> $(B)/fuzz/x (clang, libFuzzer)
#   BENCHES    += x    likewise                            -> $(B)/bench/x, run by bench
#   DATA       += share/pando/…                            -> files under $(B), made by the module's own rules
LIBRARIES :=
PROGRAMS :=
UNIT_TESTS :=
UNIT_SCRIPTS :=
KVM_TESTS :=
SYSTEM_PROGRAMS :=
FUZZERS :=
BENCHES :=
DATA :=

# A line a file; V=1 shows the commands.
V ?=
ifeq ($(V),)
.SILENT:
endif

.DEFAULT_GOAL := all
.SUFFIXES:
.DELETE_ON_ERROR:

MODULES := common vmm hygiene guest-agent golden swarm host tests tutorials
include $(MODULES:%=%/module.mk)

.PHONY: all help deps deps-vmx clean install images demo check check-unit check-kvm check-fuzz check-system check-vmx bench format

# An object is compiled with the pkg-config flags of whatever program names it first.
define objects_of
$(patsubst %.c,$(B)/obj/%.o,$(filter %.c,$($(1)_SRCS)))
endef

define library_rule
$(B)/obj/lib$(1).a: $(call objects_of,$(1))
	@mkdir -p $$(@D)
	@rm -f $$@
	@echo "ar $$@"
	$$(AR) rcs $$@ $$^
$(call objects_of,$(1)): PKGS += $($(1)_PKGS)
endef

# $(1) name, $(2) folder under $(B)
define program_rule
$(1)_TARGET := $(B)/$(2)/$(1)
$(B)/$(2)/$(1): $(call objects_of,$(1)) $$($(1)_LIBS:%=$(B)/obj/lib%.a)
	@mkdir -p $$(@D)
	@echo "ld $$@"
	$$(CC) $$(ALL_LDFLAGS) $$($(1)_WRAP:%=-Wl,--wrap=%) $$($(1)_LDFLAGS) -o $$@ $$(filter %.o,$$^) $$(filter %.a,$$^) \
		$$(if $$($(1)_PKGS),$$(shell pkg-config --libs $$($(1)_PKGS))) $$($(1)_LDLIBS)
$(call objects_of,$(1)): PKGS += $($(1)_PKGS)
endef

# Fuzzers compile all their sources themselves: coverage instrumentation must reach the parsers.
define fuzzer_rule
$(B)/fuzz/$(1): $$($(1)_SRCS)
	@mkdir -p $$(@D)
	@echo "fuzz $$@"
	$$(FUZZ_CC) -O1 -g -std=gnu11 -D_GNU_SOURCE -DPANDO_FUZZ -I. -I$(B)/gen -DPANDO_VERSION='"fuzz"' -fno-strict-aliasing \
		-fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined -pthread -MMD -MP -MF $$@.d \
		$$(if $$($(1)_PKGS),$$(shell pkg-config --cflags $$($(1)_PKGS))) \
		-o $$@ $$($(1)_SRCS) $$(if $$($(1)_PKGS),$$(shell pkg-config --libs $$($(1)_PKGS))) $$($(1)_LDLIBS)
endef
FUZZ_CC ?= clang

$(foreach l,$(LIBRARIES),$(eval $(call library_rule,$(l))))
$(foreach p,$(PROGRAMS),$(eval $(call program_rule,$(p),$(or $($(p)_DIR),bin))))
$(foreach t,$(UNIT_TESTS) $(KVM_TESTS) $(SYSTEM_PROGRAMS),$(eval $(call program_rule,$(t),tests)))
$(foreach t,$(BENCHES),$(eval $(call program_rule,$(t),bench)))
$(foreach f,$(FUZZERS),$(eval $(call fuzzer_rule,$(f))))

$(B)/obj/%.o: %.c
	@mkdir -p $(@D)
	@echo "cc $<"
	$(CC) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<

all: $(foreach p,$(PROGRAMS),$(B)/$(or $($(p)_DIR),bin)/$(p)) $(DATA:%=$(B)/%)

# The list at the top of this file.
help:
	@sed -n '/^#   /{s/^#   //p;b};/^#$$/p;/^$$/q' Makefile | sed 's/^#$$//'

clean:
	rm -rf build

format:
	clang-format -i $$(git ls-files '*.c' '*.h' ':!tutorials')

-include $(shell find $(B) -type f -name '*.d' 2>/dev/null)
