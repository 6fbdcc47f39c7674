# pando-fill: fills the memory of VMs that run already.
FILL_SRCS := host/fill/fill_serve.c host/fill/fill_page.c host/fill/fill_seal.c
PROGRAMS += pando-fill
pando-fill_SRCS := host/fill/fill_main.c $(FILL_SRCS)
pando-fill_LIBS := store sandbox common
pando-fill_PKGS := libsodium libzstd libseccomp
pando-fill_DIR := libexec/pando

UNIT_TESTS += test_fill
test_fill_SRCS := tests/unit/test_fill.c tests/unit/store_help.c host/fill/fill_page.c
test_fill_LIBS := store vmmcore vmmdev vmmdisk wire sandbox common
test_fill_PKGS := cmocka libsodium libzstd sqlite3 libseccomp

# The process itself, as pandod and VMMs see it.
UNIT_TESTS += test_fill_process
test_fill_process_SRCS := tests/unit/test_fill_process.c tests/unit/store_help.c host/fill/fill_seal.c
test_fill_process_LIBS := pandovm store wire sandbox common
test_fill_process_PKGS := cmocka libsodium libzstd sqlite3 libseccomp
$(B)/tests/test_fill_process: | $(B)/libexec/pando/pando-fill

FUZZERS += fuzz_fill
fuzz_fill_SRCS := \
	tests/fuzz/fuzz_fill.c \
	vmm/fill.c \
	host/fill/fill_serve.c \
	host/fill/fill_page.c \
	host/store/store_hash.c \
	host/store/store_zip.c \
	common/err.c \
	common/fault.c \
	common/io.c \
	common/log.c
fuzz_fill_PKGS := libsodium libzstd
fuzz_fill_CORPUS := tests/fuzz/corpus/fill
