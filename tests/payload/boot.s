# Ring 0: as little as possible, because a host without virtualization hardware emulates it one instruction at a time.
#
# In: 64-bit mode, flat segments, memory identity-mapped, interrupts off, RDI = vCPU index. Each vCPU takes its own stacks and TSS; the
# first one fills the page tables and the IDT, the others wait for it. Then everybody goes to ring 3 with IOPL 3 and does not come back,
# except with an exception: that is reported over the ports, and ring 3 starts afresh.

    .set RING0_STACK, 4096
    .set RING3_STACK, {ring3_stack}
    .set KERNEL_CS, 0x10
    .set USER_DS, 0x2b
    .set USER_CS, 0x33
    .set FIRST_TSS, 0x40
    .set TSS_BYTES, 256
    .set MCG_CAP, 0x179
    .set MCG_CTL_P, 0x100
    .set MCG_STATUS, 0x17a
    .set MCG_CTL, 0x17b
    .set MC0_CTL, 0x400
    .set MC0_STATUS, 0x401
    .set MACHINE_CHECK, 18

    .section .boot, "ax"
    .global _start
_start:
    cmp rdi, {max_vcpus}
    jae halt
    mov r15, rdi
    lea rax, [rdi + 1]
    shl rax, 12
    lea rsp, [ring0_stacks + rax]

    # This vCPU's TSS holds where exceptions find a stack; its descriptor goes into the shared GDT.
    imul rbx, r15, TSS_BYTES
    lea rbx, [tss + rbx]
    mov [rbx + 4], rsp
    mov word ptr [rbx + 0x66], 0x68
    mov rcx, r15
    shl rcx, 4
    lea rcx, [gdt + FIRST_TSS + rcx]
    mov word ptr [rcx], 0xff
    mov [rcx + 2], bx
    mov rax, rbx
    shr rax, 16
    mov [rcx + 4], al
    mov byte ptr [rcx + 5], 0x89
    mov byte ptr [rcx + 6], 0
    mov [rcx + 7], ah
    mov qword ptr [rcx + 8], 0

    test r15, r15
    jnz wait_for_tables

    # Page tables: 2 MiB pages for each range of the layout page, everything user-accessible, accessed and dirty already set.
    lea rax, [pdpt + 7]
    mov [pml4], rax
    lea rax, [page_directories + 7]
    lea rdi, [pdpt]
    mov ecx, {directories}
1:  mov [rdi], rax
    add rax, 4096
    add rdi, 8
    dec ecx
    jnz 1b
    mov rsi, {layout_page}
    mov rdx, [rsi]
2:  test rdx, rdx
    jz 4f
    mov rax, [rsi + 8]
    mov rcx, [rsi + 16]
    add rcx, 0x1fffff
    shr rcx, 21
    mov rdi, rax
    shr rdi, 18
    lea rdi, [page_directories + rdi]
    or rax, 0xe7
3:  mov [rdi], rax
    add rax, 0x200000
    add rdi, 8
    dec rcx
    jnz 3b
    add rsi, 16
    dec rdx
    jmp 2b

    # The IDT: 64-bit interrupt gates to the stubs below.
4:  lea rax, [exception_stubs]
    lea rdi, [idt]
    mov ecx, 32
5:  mov [rdi], ax
    mov word ptr [rdi + 2], KERNEL_CS
    mov word ptr [rdi + 4], 0x8e00
    mov rdx, rax
    shr rdx, 16
    mov [rdi + 6], dx
    add rax, 16
    add rdi, 16
    dec ecx
    jnz 5b
    mov dword ptr [tables_ready], 1

wait_for_tables:
    pause
    cmp dword ptr [tables_ready], 0
    je wait_for_tables

    lgdt [gdt_pointer]
    lidt [idt_pointer]
    lea rax, [pml4]
    mov cr3, rax
    # Machine checks on: every bank, the global control if there is one, then CR4.MCE below.
    mov ecx, MCG_CAP
    rdmsr
    mov ebx, eax
    mov eax, -1
    mov edx, eax
    test ebx, MCG_CTL_P
    jz 1f
    mov ecx, MCG_CTL
    wrmsr
1:  and ebx, 0xff
    jz 3f
    mov ecx, MC0_CTL
2:  wrmsr
    add ecx, 4
    dec ebx
    jnz 2b
3:
    # SSE on (OSFXSR, OSXMMEXCPT), machine checks wanted (MCE); no emulation, no lazy FPU.
    mov rax, cr4
    or rax, 0x640
    mov cr4, rax
    mov rax, cr0
    and rax, -13
    or rax, 2
    mov cr0, rax
    imul eax, r15d, 16
    add eax, FIRST_TSS
    ltr ax

# To ring 3: own stack, IOPL 3, interrupts off. R15 = vCPU index.
enter_ring3:
    mov rax, r15
    inc rax
    imul rax, rax, RING3_STACK
    lea rax, [ring3_stacks + rax - 8]
    push USER_DS
    push rax
    push 0x3002
    push USER_CS
    lea rax, [ring3_main]
    push rax
    mov rdi, r15
    iretq

halt:
    cli
    hlt
    jmp halt

# One stub per vector, 16 bytes apart; those without an error code push a zero.
    .balign 16
exception_stubs:
    .set vector, 0
    .rept 32
    .balign 16
    .if ((1 << vector) & 0x60227d00) == 0
    push 0
    .endif
    push vector
    jmp exception
    .set vector, vector + 1
    .endr

# Stack: vector, error code, RIP, CS, RFLAGS, RSP, SS. The vCPU's index follows from where the stack is. Registers are free: nothing goes
# back to where the exception came from.
exception:
    mov r15, rsp
    lea rax, [ring0_stacks]
    sub r15, rax
    shr r15, 12
    mov r14, cr2
    cmp dword ptr [rsp], MACHINE_CHECK
    jne report

    # The bank that has something valid says which address it is about; it and the global status are cleared, so that another check can come.
    mov ecx, MCG_CAP
    rdmsr
    movzx ebx, al
    mov ecx, MC0_STATUS
1:  rdmsr
    test edx, edx
    jns 2f
    inc ecx
    rdmsr
    mov r14, rdx
    shl r14, 32
    or r14, rax
    dec ecx
    xor eax, eax
    xor edx, edx
    wrmsr
2:  add ecx, 4
    dec ebx
    jnz 1b
    mov ecx, MCG_STATUS
    xor eax, eax
    xor edx, edx
    wrmsr

report:
    mov edx, r15d
    shl edx, 3
    add edx, {data_port}
    mov rax, [rsp]
    out dx, eax
    mov rax, [rsp + 8]
    out dx, eax
    mov rax, [rsp + 16]
    out dx, eax
    shr rax, 32
    out dx, eax
    mov rax, r14
    out dx, eax
    shr rax, 32
    out dx, eax
    mov eax, {exception_event}
    add edx, {doorbell_offset}
    out dx, eax
    # An exception in ring 0 is the end of this vCPU: starting afresh would only repeat it.
    test byte ptr [rsp + 24], 3
    jz halt
    lea rax, [r15 + 1]
    shl rax, 12
    lea rsp, [ring0_stacks + rax]
    jmp enter_ring3

    .section .data
    .balign 16
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
    .balign 16
idt_pointer:
    .word 32 * 16 - 1
    .quad idt
    .balign 16
gdt:
    .quad 0
    .quad 0
    .quad 0x00af9b000000ffff    # 0x10 ring 0 code
    .quad 0x00cf93000000ffff    # 0x18 ring 0 data
    .quad 0
    .quad 0x00cff3000000ffff    # 0x28 ring 3 data
    .quad 0x00affb000000ffff    # 0x30 ring 3 code
    .quad 0
    .fill {max_vcpus} * 2, 8, 0 # 0x40 one TSS per vCPU
gdt_end:

    .section .bss
    .balign 4096
pml4:
    .skip 4096
pdpt:
    .skip 4096
page_directories:
    .skip {directories} * 4096
idt:
    .skip 4096
tss:
    .skip {max_vcpus} * TSS_BYTES
tables_ready:
    .skip 8
    .balign 4096
ring0_stacks:
    .skip {max_vcpus} * RING0_STACK
ring3_stacks:
    .skip {max_vcpus} * RING3_STACK
