#!/usr/bin/env python3
"""Puts Bochs 3.0 right where KVM's host needs it. Runs in the unpacked source, before configure.

An edit names a file, a text that must stand in it exactly once, and what takes that text's place. Where
the text is not found, or twice, nothing is written: another release of Bochs needs another look.
"""
import sys

EDITS = [
    # "External-interrupt exiting" makes a guest with IF=0 leave for the host's interrupts, too. The mask is
    # computed while the flags are loaded, when the processor is not yet in the guest: compute it again.
    (
        "cpu/vmx.cc",
        "  BX_CPU_THIS_PTR in_vmx_guest = true;\n",
        "  BX_CPU_THIS_PTR in_vmx_guest = true;\n  handleInterruptMaskChange();\n",
    ),
    # The posted-interrupt descriptor is 64 bytes, aligned to its size (SDM 3C, 25.6.8), not to a page.
    (
        "cpu/vmx.cc",
        "! IsValidPageAlignedPhyAddr(vm->pid_addr)",
        "(vm->pid_addr & 63) || ! IsValidPhyAddr(vm->pid_addr)",
    ),
    # The host's interrupt arrives while a virtual one waits for the guest to set IF: the host's goes first.
    (
        "cpu/event.cc",
        "    if (is_pending(BX_EVENT_PENDING_VMX_VIRTUAL_INTR)) {",
        "    if (is_unmasked_event_pending(BX_EVENT_PENDING_VMX_VIRTUAL_INTR)) {",
    ),
    # A virtual interrupt whose delivery ends in an exit (its stack is not mapped yet) must be named in the
    # IDT-vectoring information, or the hypervisor cannot inject it again and it is lost.
    (
        "cpu/vapic.cc",
        "  clear_event(BX_EVENT_PENDING_VMX_VIRTUAL_INTR);\n\n  BX_CPU_THIS_PTR EXT = 1;",
        "  clear_event(BX_EVENT_PENDING_VMX_VIRTUAL_INTR);\n\n"
        "  vm->idt_vector_info = vector | (BX_EXTERNAL_INTERRUPT << 8);\n"
        "  vm->idt_vector_error_code = 0;\n  BX_CPU_THIS_PTR EXT = 1;",
    ),
    # Time: a halted processor goes straight to the next timer instead of there by tens.
    (
        "cpu/event.cc",
        "    BX_TICKN(10); ",
        "    BX_TICKN(bx_pc_system.getNumCpuTicksLeftNextEvent()); ",
    ),
]

texts = {}
for path, old, new in EDITS:
    text = texts.get(path)
    if text is None:
        with open(path, encoding="utf-8") as f:
            text = f.read()
    if text.count(old) != 1:
        sys.exit(f"edit-bochs: {path}: this text stands in it {text.count(old)} times, not once; "
                 f"look whether this release still needs the edit:\n{old}")
    texts[path] = text.replace(old, new)
for path, text in texts.items():
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)
