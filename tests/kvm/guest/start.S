/*
 * A bzImage (Documentation/arch/x86/boot.rst, protocol 2.15) around tiny.c: two sectors of setup part that only
 * its header matters of, then the protected-mode part, loaded at 1 MiB and entered at +0x200 in long mode with
 * the first 4 GiB mapped to themselves.
 */
	.section .setup, "ax"
	.org 0x1f1
	.byte 1				/* setup_sects: header sector + 1 */
	.word 0
	.long _syssize			/* in 16-byte paragraphs */
	.word 0, 0, 0
	.word 0xaa55			/* boot_flag, at 0x1fe */
	.byte 0xeb, header_end - header_start /* jump: says where the header ends */
header_start:
	.ascii "HdrS"
	.word 0x020f			/* version */
	.long 0				/* realmode_swtch */
	.word 0, 0			/* start_sys_seg, kernel_version */
	.byte 0				/* type_of_loader */
	.byte 1				/* loadflags: LOADED_HIGH */
	.word 0				/* setup_move_size */
	.long 0x100000			/* code32_start */
	.long 0, 0, 0			/* ramdisk_image, ramdisk_size, bootsect_kludge */
	.word 0				/* heap_end_ptr */
	.byte 0, 0			/* ext_loader_ver, ext_loader_type */
	.long 0				/* cmd_line_ptr */
	.long 0x7fffffff		/* initrd_addr_max */
	.long 0x200000			/* kernel_alignment */
	.byte 0, 21			/* relocatable_kernel, min_alignment */
	.word 1				/* xloadflags: XLF_KERNEL_64 */
	.long 2047			/* cmdline_size */
	.long 0				/* hardware_subarch */
	.quad 0				/* hardware_subarch_data */
	.long 0, 0			/* payload_offset, payload_length */
	.quad 0				/* setup_data */
	.quad 0x100000			/* pref_address */
	.long _init_size
	.long 0				/* handover_offset */
	.long 0				/* kernel_info_offset */
header_end:
	.org 0x400

	.section .head, "ax"
	.code64
	.org 0x200
	.globl entry64
entry64:
	cli
	lea	stack_top(%rip), %rsp
	mov	%rsi, %rbx		/* the zero page */
	lea	_bss(%rip), %rdi
	lea	_end(%rip), %rcx
	sub	%rdi, %rcx
	shr	$3, %rcx
	xor	%eax, %eax
	cld
	rep stosq
	mov	%rbx, %rdi
	xor	%ebp, %ebp
	call	guest_main
1:	hlt
	jmp	1b

/*
 * Where the other CPU starts, in real mode, once this is copied to 0x8000 (the start-up IPI's page 8): to long mode
 * with the first CPU's page tables, then to ap_main on a stack of its own.
 */
	.section .text
	.globl trampoline, trampoline_end
	.code16
trampoline:
	cli
	xor	%ax, %ax
	mov	%ax, %ds
	lgdtl	(0x8000 + gdt_pointer - trampoline)
	mov	$0x20, %eax		/* PAE */
	mov	%eax, %cr4
	mov	$0x9000, %eax
	mov	%eax, %cr3
	mov	$0xc0000080, %ecx	/* EFER: LME */
	mov	$0x100, %eax
	xor	%edx, %edx
	wrmsr
	mov	$0x80000031, %eax	/* PG, NE, ET, PE */
	mov	%eax, %cr0
	ljmpl	$0x08, $(0x8000 + long_mode - trampoline)
	.code64
long_mode:
	mov	$0x10, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	mov	$ap_stack_top, %rsp
	mov	$ap_main, %rax
	call	*%rax
1:	hlt
	jmp	1b
	.balign 8
gdt:
	.quad 0
	.quad 0x00af9b000000ffff	/* 0x08: 64-bit code */
	.quad 0x00cf93000000ffff	/* 0x10: data */
gdt_pointer:
	.word gdt_pointer - gdt - 1
	.long 0x8000 + gdt - trampoline
trampoline_end:

	.section .bss
	.balign 16
	.skip 16384
stack_top:
	.skip 8192
ap_stack_top:

	.section .note.GNU-stack, "", @progbits
