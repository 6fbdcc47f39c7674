# Reads the file systems of two disks, for pandod; libext2fs is called only in ext4.c.
PROGRAMS += pando-fsdiff
pando-fsdiff_SRCS := \
	host/commit/fsdiff/main.c \
	host/commit/fsdiff/disk.c \
	host/commit/fsdiff/journal.c \
	host/commit/fsdiff/ext4.c
pando-fsdiff_PKGS := ext2fs
pando-fsdiff_DIR := libexec/pando

FUZZERS += fuzz_fsdiff_journal
fuzz_fsdiff_journal_SRCS := tests/fuzz/fuzz_fsdiff_journal.c host/commit/fsdiff/journal.c
fuzz_fsdiff_journal_CORPUS := tests/fuzz/corpus/fsdiff_journal
