# The HTTP API.
pandodcore_SRCS += \
	host/api/api.c \
	host/api/call_run.c \
	host/api/request.c \
	host/api/request_route.c

UNIT_TESTS += test_request
test_request_SRCS := tests/unit/test_request.c
test_request_LIBS := pandodcore pandovm wire common
test_request_PKGS := cmocka

UNIT_TESTS += test_api
test_api_SRCS := tests/unit/test_api.c
test_api_LIBS := pandodcore pandocommit pandovm agentclient vmmdisk store systemdjobs kvmprobe wire common
test_api_PKGS := cmocka libmicrohttpd sqlite3 libsodium libzstd libsystemd

FUZZERS += fuzz_http_body
fuzz_http_body_SRCS := \
	tests/fuzz/fuzz_http_body.c \
	host/api/request.c \
	host/api/request_route.c \
	host/vm/vm_spec.c \
	host/vmmproc/vmmctl.c \
	host/vmmproc/process_progress.c \
	common/err.c \
	common/utf8.c \
	common/io.c \
	common/json.c \
	common/log.c \
	common/env.c
fuzz_http_body_CORPUS := tests/fuzz/corpus/http_body
