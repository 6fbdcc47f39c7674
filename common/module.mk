LIBRARIES += common
common_SRCS := \
	common/err.c \
	common/fault.c \
	common/io.c \
	common/log.c \
	common/json.c \
	common/toml.c \
	common/toml_scalar.c \
	common/env.c \
	common/memfd.c \
	common/text.c \
	common/utf8.c \
	common/paths.c \
	common/userns.c

# Formats that two processes read. libsodium is called only in openssh_key.c.
LIBRARIES += wire
wire_SRCS := \
	common/wire/agent_frame.c \
	common/wire/json_bytes.c \
	common/wire/json_line.c \
	common/wire/tar_pack.c \
	common/wire/tar_unpack.c \
	common/wire/tar_place.c \
	common/wire/blob.c \
	common/wire/cpu_features.c \
	common/wire/console_ring.c \
	common/wire/openssh_key.c

# Jobs of systemd, for those that link libsystemd.
LIBRARIES += systemdjobs
systemdjobs_SRCS := common/systemd.c
systemdjobs_PKGS := libsystemd

# Rights and system calls given up, for those that link libseccomp.
LIBRARIES += sandbox
sandbox_SRCS := common/sandbox.c
sandbox_PKGS := libseccomp
