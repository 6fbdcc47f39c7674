# pando-fill: fills the memory of VMs that run already.
PROGRAMS += pando-fill
pando-fill_SRCS := host/fill/fill_main.c host/fill/fill_page.c
pando-fill_LIBS := store common
pando-fill_PKGS := libsodium libzstd
pando-fill_DIR := libexec/pando
