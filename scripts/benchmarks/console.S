# Firmware that is nothing but a serial console: it says again what is typed. After "!" it prints
# without end, until ".". While nothing is typed its processor sleeps, so a host bears many.
#
# scripts/benchmarks/consoles.py assembles it, and gives it to QEMU as a flash chip of 64 KiB.
        .equ    UART, 0x3f8
        .text
        .code16
start:  ljmp    $0xf000, $(begin - start)
begin:  cli
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %ss
        movw    $0x7000, %sp
        movw    $(typed - start), 0x90  # of interrupt 0x24, IRQ 4
        movw    $0xf000, 0x92
        lgdtl   %cs:gdtr - start        # a segment of 4 GiB, to reach the local APIC
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        movw    $0x08, %cx
        movw    %cx, %es
        andb    $0xfe, %al
        movl    %eax, %cr0
        movl    $0xfee000f0, %edi       # which is switched on, and passes the controller's on
        movl    $0x1ff, %es:(%edi)
        movl    $0xfee00350, %edi
        movl    $0x700, %es:(%edi)
        movb    $0x11, %al              # the interrupt controller, from 0x20 on, of IRQ 4 alone
        outb    %al, $0x20
        movb    $0x20, %al
        outb    %al, $0x21
        movb    $0x04, %al
        outb    %al, $0x21
        movb    $0x01, %al
        outb    %al, $0x21
        movb    $0xef, %al
        outb    %al, $0x21
        movw    $(UART + 3), %dx        # 8 bits, and an interrupt for each byte that arrives
        movb    $0x03, %al
        outb    %al, %dx
        movw    $(UART + 4), %dx
        movb    $0x0b, %al
        outb    %al, %dx
        movw    $(UART + 1), %dx
        movb    $0x01, %al
        outb    %al, %dx
        xorb    %bl, %bl
again:  cli
        testb   %bl, %bl
        jnz     flood
        sti
        hlt
        jmp     again
flood:  sti
        movb    $0x78, %al
        call    print
        jmp     again

typed:  pushw   %ax
        pushw   %dx
        movw    $UART, %dx
        inb     %dx, %al
        cmpb    $0x21, %al
        jne     1f
        movb    $1, %bl
1:      cmpb    $0x2e, %al
        jne     2f
        xorb    %bl, %bl
2:      call    print
        movb    $0x20, %al
        outb    %al, $0x20
        popw    %dx
        popw    %ax
        iret

print:  pushw   %ax
        movw    $(UART + 5), %dx
3:      inb     %dx, %al
        testb   $0x20, %al
        jz      3b
        popw    %ax
        movw    $UART, %dx
        outb    %al, %dx
        ret

        .balign 8
gdt:    .quad   0
        .quad   0x00cf93000000ffff
gdtr:   .word   gdtr - gdt - 1
        .long   0xf0000 + gdt - start

        .org    0xfff0
        .byte   0xe9                    # jmp start, as far as a word goes round
        .word   start - . - 2
        .org    0x10000
