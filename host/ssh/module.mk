# The key that guests let in.
pandovm_SRCS += host/ssh/ssh_key.c

# libssh is called only in ssh.c.
machine_SRCS += host/ssh/ssh.c
