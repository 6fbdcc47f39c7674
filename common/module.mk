LIBRARIES += common
common_SRCS := common/err.c common/fault.c common/io.c common/log.c common/json.c \
	common/toml.c common/toml_scalar.c common/env.c common/text.c common/userns.c
