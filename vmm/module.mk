# vmm
