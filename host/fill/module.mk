# pando-fill: fills the memory of VMs that run already.
PROGRAMS += pando-fill
pando-fill_SRCS := host/fill/fill_main.c host/fill/fill_page.c
pando-fill_LIBS := store common
pando-fill_PKGS := libsodium libzstd
pando-fill_DIR := libexec/pando

UNIT_TESTS += test_fill
test_fill_SRCS := tests/unit/test_fill.c tests/unit/store_help.c host/fill/fill_page.c
test_fill_LIBS := store vmmcore vmmdev vmmdisk wire common
test_fill_PKGS := cmocka libsodium libzstd sqlite3 libseccomp
