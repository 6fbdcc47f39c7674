# The commit store, which knows nothing of VMs; libsodium is called only in store_hash.c, zstd
# only in store_zip.c, SQLite only in store_catalog*.c.
LIBRARIES += store
store_PKGS := libsodium libzstd sqlite3
store_SRCS := \
	host/store/store_base.c \
	host/store/store.c \
	host/store/store_catalog.c \
	host/store/store_catalog_query.c \
	host/store/store_catalog_compare.c \
	host/store/store_catalog_file.c \
	host/store/store_catalog_stamp.c \
	host/store/store_catalog_row.c \
	host/store/store_catalog_sql.c \
	host/store/store_delete.c \
	host/store/store_page.c \
	host/store/store_tag.c \
	host/store/store_tag_file.c \
	host/store/store_manifest.c \
	host/store/store_hash.c \
	host/store/store_zip.c \
	host/store/store_bloom.c \
	host/store/store_pack.c \
	host/store/store_pack_write.c \
	host/store/store_packs.c \
	host/store/store_chunks.c \
	host/store/store_merge.c \
	host/store/store_tree.c \
	host/store/store_file.c \
	host/store/store_place.c \
	host/store/store_pool.c \
	host/store/store_put.c \
	host/store/store_write.c \
	host/store/store_gc.c \
	host/store/store_note.c \
	host/store/store_nodes.c \
	host/store/store_names.c \
	host/store/store_repair.c \
	host/store/store_verify.c

STORE_TESTS := test_store test_store_catalog test_store_crash test_store_hostile test_store_model \
	test_store_merge test_store_gc test_store_kill
UNIT_TESTS += $(STORE_TESTS)
$(foreach t,$(STORE_TESTS),\
	$(eval $(t)_SRCS := tests/unit/$(t).c tests/unit/store_help.c)\
	$(eval $(t)_LIBS := store wire common)$(eval $(t)_PKGS := cmocka libsodium libzstd sqlite3))

# fuzz_store_<what> has its corpus in store_<what>.
STORE_FUZZERS := fuzz_store_pack fuzz_store_manifest fuzz_store_repair
FUZZERS += $(STORE_FUZZERS)
fuzz_store_SRCS := \
	$(store_SRCS) \
	common/err.c \
	common/utf8.c \
	common/io.c \
	common/json.c \
	common/fault.c \
	common/log.c
$(foreach f,$(STORE_FUZZERS),\
	$(eval $(f)_SRCS := tests/fuzz/$(f).c $(fuzz_store_SRCS))\
	$(eval $(f)_CORPUS := tests/fuzz/corpus/$(f:fuzz_%=%))\
	$(eval $(f)_PKGS := libsodium libzstd sqlite3))
