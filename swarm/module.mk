# swarm: a library; the host's part is host/cli/verbs/cmd_swarm.c. Who links it adds libsodium and -lm.
LIBRARIES += swarm
swarm_SRCS := \
	swarm/spec.c \
	swarm/record.c \
	swarm/view.c \
	swarm/run.c
swarm_PKGS := libsodium

UNIT_TESTS += test_swarm_spec test_swarm_run
test_swarm_spec_SRCS := tests/unit/test_swarm_spec.c
test_swarm_spec_LIBS := swarm wire common
test_swarm_spec_PKGS := cmocka libsodium
test_swarm_spec_LDLIBS := -lm
test_swarm_run_SRCS := tests/unit/test_swarm_run.c
test_swarm_run_LIBS := swarm wire common
test_swarm_run_PKGS := cmocka libsodium
test_swarm_run_LDLIBS := -lm

FUZZERS += fuzz_swarm_spec
fuzz_swarm_spec_SRCS := \
	tests/fuzz/fuzz_swarm_spec.c \
	swarm/spec.c \
	$(common_SRCS)
fuzz_swarm_spec_LDLIBS := -lm
fuzz_swarm_spec_CORPUS := tests/fuzz/corpus/swarm_spec

DATA += share/man/man5/swarm.toml.5
$(B)/share/man/man5/swarm.toml.5: swarm/swarm.toml.5
	@mkdir -p $(@D)
	cp $< $@
