# golden: what virtual machines boot from. The scripts and specs go into the build tree as they are.

GOLDEN_FILES := $(patsubst golden/%,%,$(shell find golden/spec golden/files -type f | LC_ALL=C sort))

# What programs of a guest load: plain libraries, never with sanitizers, that need nothing but libc.
GOLDEN_RANDOM := files/guest/usr/lib/pando/openssl-random.so files/guest/usr/lib/pando/node-random.node

DATA += libexec/pando/pando-golden \
	$(addprefix share/pando/golden/,init initramfs.sh modules.sh customize.sh scrub.sh pando-agent pando-agent.service pando-units $(GOLDEN_FILES) $(GOLDEN_RANDOM))

$(B)/libexec/pando/pando-golden: golden/pando-golden
	@mkdir -p $(@D)
	install -m 0755 $< $@

$(B)/share/pando/golden/%.sh: golden/%.sh
	@mkdir -p $(@D)
	install -m 0755 $< $@

$(B)/share/pando/golden/scrub.sh: hygiene/scrub.sh
	@mkdir -p $(@D)
	install -m 0755 $< $@

$(B)/share/pando/golden/pando-agent.service: guest-agent/pando-agent.service
	@mkdir -p $(@D)
	install -m 0644 $< $@

$(addprefix $(B)/share/pando/golden/,$(GOLDEN_FILES)): $(B)/share/pando/golden/%: golden/%
	@mkdir -p $(@D)
	cp -p $< $@
	@touch $@

RANDOM_CC = $(CC) -std=gnu11 -D_GNU_SOURCE -O2 $(WARNINGS) $(if $(WERROR),-Werror) -fPIC -fvisibility=hidden -shared -s -Wl,--build-id=none
$(B)/share/pando/golden/files/guest/usr/lib/pando/openssl-random.so: golden/random_openssl.c
	@mkdir -p $(@D)
	$(RANDOM_CC) -o $@ $<

$(B)/share/pando/golden/files/guest/usr/lib/pando/node-random.node: golden/random_node.c
	@mkdir -p $(@D)
	$(RANDOM_CC) -o $@ $<

# Process 1 of an initramfs: alone there, so it is static, and never built with sanitizers.
$(B)/share/pando/golden/init: golden/init.c
	@mkdir -p $(@D)
	$(CC) -std=gnu11 -D_GNU_SOURCE -Os $(WARNINGS) $(if $(WERROR),-Werror) -static -s -Wl,--build-id=none -o $@ $<

# The agent as guests get it: without debugging information and build id, so that equal code gives equal
# images; never with sanitizers, whose libraries no guest has.
$(B)/share/pando/golden/pando-agent: $(B)/libexec/pando/pando-agent
	@mkdir -p $(@D)
ifeq ($(SAN),)
	strip --remove-section=.note.gnu.build-id -o $@ $<
else
	$(MAKE) SAN= B=$(B)/unsanitized $(B)/unsanitized/share/pando/golden/pando-agent
	cp -p $(B)/unsanitized/share/pando/golden/pando-agent $@
endif

$(B)/share/pando/golden/pando-units: $(B)/libexec/pando/pando-units
	@mkdir -p $(@D)
ifeq ($(SAN),)
	strip --remove-section=.note.gnu.build-id -o $@ $<
else
	$(MAKE) SAN= B=$(B)/unsanitized $(B)/unsanitized/share/pando/golden/pando-units
	cp -p $(B)/unsanitized/share/pando/golden/pando-units $@
endif

# Only what an image is made of: `make images` does not wait for the rest.
GOLDEN_NEEDS = $(filter $(B)/libexec/pando/pando-golden $(B)/share/pando/golden/%,$(DATA:%=$(B)/%))
SUITE ?=

images: $(GOLDEN_NEEDS)
	@$(B)/libexec/pando/pando-golden image $(if $(SUITE),--suite $(SUITE))
