# Debian packages that a build, the tests, the images and the test machine need. `make deps` installs those that
# are missing; run as root, or with sudo at hand.

DEPS := gcc clang libclang-rt-dev make pkg-config acpica-tools \
	libssh-dev libsystemd-dev libjsmn-dev libsodium-dev libsqlite3-dev libmicrohttpd-dev \
	openssh-client openssh-server rsync git \
	libcurl4-openssl-dev libext2fs-dev libzstd-dev libseccomp-dev libcmocka-dev \
	mmdebstrap e2fsprogs btrfs-progs kmod fakeroot uidmap cpio xz-utils zstd busybox-static qemu-system-x86 \
	tmux socat curl python3 patch dbus-daemon

# `make check-vmx` needs these as well: `make deps-vmx`.
VMX_DEPS := g++ xorriso isolinux syslinux-common bochsbios vgabios
deps: PACKAGES = $(DEPS)
deps-vmx: PACKAGES = $(DEPS) $(VMX_DEPS)

# What follows on the same command line (`make deps check`) needs them, also with -j.
ifneq ($(filter deps deps-vmx,$(MAKECMDGOALS)),)
.NOTPARALLEL:
endif

deps deps-vmx:
	@missing=; for p in $(PACKAGES); do \
		case $$(dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null) in \
		installed) ;; *) missing="$$missing $$p" ;; esac; done; \
	if [ -z "$$missing" ]; then echo "$@: all packages are installed"; exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then as_root=; \
	elif command -v sudo >/dev/null && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then as_root=sudo; \
	else echo "make $@: these packages are missing; install them as root:" >&2; \
		echo "  apt-get install --no-install-recommends$$missing" >&2; exit 1; fi; \
	echo "$@: installing$$missing"; \
	$$as_root env DEBIAN_FRONTEND=noninteractive apt-get -q update && \
	$$as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install $$missing
