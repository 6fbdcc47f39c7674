# vmm

# The reader of disks at rest, for the host's tools.
LIBRARIES += vmmdisk
vmmdisk_SRCS := vmm/blockmap.c

# The devices behind virtio-mmio.
LIBRARIES += vmmdev
vmmdev_SRCS := vmm/virtqueue.c vmm/virtio_mmio.c vmm/blk.c vmm/vsock.c vmm/rng.c
