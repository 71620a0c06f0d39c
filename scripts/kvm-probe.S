# A firmware image that answers one question: does this host run guest code?
#
# It does what every guest does when it boots: it leaves real mode, turns on
# paging and long mode, and uses the x87 and SSE units. Only then it writes 42
# to the isa-debug-exit port, which ends QEMU with status 85.
# A shorter program would also pass on a KVM that merely emulates real mode: one
# such KVM stops with "internal-error" at the first floating-point instruction.
#
# supervisor/qemu/accel.py holds the assembled bytes. A test assembles this file
# and runs the result; assemblers differ in padding, so the bytes may differ:
#   as --32 kvm-probe.S -o probe.o && objcopy -O binary -j .text probe.o probe.bin
        .equ    LINEAR, 0xf0000         # where the last 64 KiB of the ROM appear below 1 MiB
        .text
        .code16
start:  cli
        lgdtl   %cs:gdtr - start
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        ljmpl   $0x08, $(LINEAR + protected - start)

        .code32
protected:
        movw    $0x10, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movl    $0x1000, %edi           # three empty pages: PML4, PDPT, PD
        movl    %edi, %cr3
        xorl    %eax, %eax
        movl    $0xc00, %ecx
        rep stosl
        movl    $0x2003, 0x1000
        movl    $0x3003, 0x2000
        movl    $0x0083, 0x3000         # one 2 MiB page, identity mapped
        movl    $0x0620, %eax           # PAE, OSFXSR, OSXMMEXCPT
        movl    %eax, %cr4
        movl    $0xc0000080, %ecx       # EFER.LME
        rdmsr
        orl     $0x100, %eax
        wrmsr
        movl    $0x80000023, %eax       # PG, NE, MP, PE
        movl    %eax, %cr0
        ljmpl   $0x18, $(LINEAR + long - start)

        .code64
long:   fninit
        movl    $40, 0x4000
        fildl   0x4000                  # 40
        fld1
        fadd    %st(0), %st(0)          # 2
        faddp                           # 42, by x87
        fistpl  0x4000
        movd    0x4000, %xmm0
        cvtdq2ps %xmm0, %xmm0           # and through SSE
        cvttss2si %xmm0, %eax
        outb    %al, $0xf4
1:      hlt
        jmp     1b

        .balign 8
gdt:    .quad   0
        .quad   0x00cf9b000000ffff      # 0x08: code, 32 bit
        .quad   0x00cf93000000ffff      # 0x10: data
        .quad   0x00af9b000000ffff      # 0x18: code, 64 bit
gdtr:   .word   gdtr - gdt - 1
        .long   LINEAR + gdt - start
