/* Start-up and traps of a bare lx106 in QEMU's `sim` machine (call0 ABI). */

        .section .reset, "ax"           /* the machine starts here, whatever the ELF entry */
        .global _start
_start:
        j       begin                   /* over the literals */
        .literal_position
begin:
        movi    a0, 0x20                /* PS: user mode, exceptions unmasked */
        wsr     a0, ps
        rsync
        movi    sp, __stack_top
        movi    a2, __bss_start
        movi    a3, __bss_end
        movi    a4, 0
1:      bgeu    a2, a3, 2f
        s32i    a4, a2, 0
        addi    a2, a2, 4
        j       1b
2:      movi    a0, xq_main
        callx0  a0
        mov     a3, a2
        movi    a2, 1                   /* exit */
        simcall

/* VECBASE + 0x10 debug, 0x20 NMI, 0x30 kernel, 0x50 user, 0x70 double exception. */
        .section .vectors, "ax"
        .org    0x10
        j       trap
        .org    0x20
        j       trap
        .org    0x30
        j       trap
        .org    0x50
        j       trap
        .org    0x70
        j       trap
        .org    0x80
        .literal_position
trap:
        movi    sp, __stack_top         /* nothing is gone back to */
        rsr     a2, exccause
        rsr     a3, epc1
        rsr     a4, excvaddr
        movi    a0, xq_trap
        callx0  a0

        .section .text.xq_simcall, "ax"
        .global xq_simcall              /* (number, a, b, c): arguments lie where simcall wants them */
        .type   xq_simcall, @function
xq_simcall:
        simcall
        ret
        .size   xq_simcall, . - xq_simcall
