/* renewer: gives a copy of a guest its own identity, before anything else in it does work.

   The agent starts it when the guest is prepared for being frozen. It opens all that it will write
   to, says so on standard output, and looks at one item of QEMU's firmware configuration device
   again and again. In the guest that is frozen the item is all zeros. A copy runs in another QEMU,
   whose item is 128 bytes: 64 of entropy, the machine-id's 32 digits, a host name filled up with
   zeros. From these the renewer renews the guest and says so. It ends a while later, for an end is
   work too: the kernel's, and that of the guest's first program.

   No library and no Python: emulated, each copy translates what it executes anew, and this is some
   thousands of instructions. Built by tcc, with the image.

   On standard output, which is the agent's pipe: "w" it waits; "r" the guest is renewed; or the
   letter of the step that failed and the number of the error, a byte each. On descriptor 3, the
   line to the host: "r".

   Source: the kernel's Documentation/ABI/testing/sysfs-firmware-qemu_fw_cfg; random(4). */

#define ITEM "/sys/firmware/qemu_fw_cfg/by_name/opt/org.qmp-supervisor/renewal/raw"
#define ENTROPY_BYTES 64
#define MACHINE_ID_BYTES 32
#define HOSTNAME_BYTES 32
#define LOOK_NS 1000000
#define STAY_S 10

/* x86-64's numbers of system calls. */
enum { WRITE = 1, OPEN = 2, CLOSE = 3, IOCTL = 16, PREAD = 17, NANOSLEEP = 35, EXIT = 60, FTRUNCATE = 77 };
enum { SETHOSTNAME = 170 };
enum { READ_ONLY = 0, WRITE_NEW = 1 | 0100 /* O_WRONLY | O_CREAT */ };
enum { RNDADDENTROPY = 0x40085203, RNDRESEEDCRNG = 0x5207 };

typedef struct {
    char entropy[ENTROPY_BYTES];
    char machine_id[MACHINE_ID_BYTES];
    char hostname[HOSTNAME_BYTES];
} Identity;

typedef struct {
    int bits;
    int bytes;
    char entropy[ENTROPY_BYTES];
} Pool;

static long call(long number, long first, long second, long third, long fourth)
{
    long result;

    __asm__ volatile("movq %5, %%r10\n\tsyscall"
                     : "=a"(result)
                     : "a"(number), "D"(first), "S"(second), "d"(third), "r"(fourth)
                     : "rcx", "r11", "r10", "memory");
    return result;
}

static void end(void)
{
    call(EXIT, 0, 0, 0, 0);
}

static void say(char what)
{
    call(WRITE, 1, (long)&what, 1, 0);
}

/* What a system call has returned in a step, if it went well. */
static long checked(char step, long result)
{
    char failed[2];

    if (result >= 0)
        return result;
    failed[0] = step;
    failed[1] = (char)-result;
    call(WRITE, 1, (long)failed, 2, 0);
    end();
    return 0;
}

static long opened(const char *path, long flags)
{
    return checked('o', call(OPEN, (long)path, flags, 0644, 0));
}

static long length(const char *text, long most)
{
    long found = 0;

    while (found < most && text[found])
        found++;
    return found;
}

/* All of a file: a fixed beginning, a word, and the end of the line. */
static void put(long file, const char *begin, const char *word, long bytes)
{
    char line[160];
    long used = 0, at;

    for (at = 0; begin[at]; at++)
        line[used++] = begin[at];
    for (at = 0; at < bytes; at++)
        line[used++] = word[at];
    line[used++] = '\n';
    checked('f', call(FTRUNCATE, file, 0, 0, 0));
    checked('f', call(WRITE, file, (long)line, used, 0));
}

static void look(long item, Identity *identity)
{
    long read = checked('i', call(PREAD, item, (long)identity, sizeof *identity, 0));

    if (read != sizeof *identity)
        checked('i', -5 /* EIO */);
}

void _start(void)
{
    static const long pause[2] = {0, LOOK_NS}, stay[2] = {STAY_S, 0};
    static Identity identity;
    static Pool pool;
    long item = opened(ITEM, READ_ONLY), random = opened("/dev/urandom", 1);
    long hostname = opened("/etc/hostname", WRITE_NEW);
    long machine_id = opened("/etc/machine-id", WRITE_NEW);
    long hosts = opened("/etc/hosts", WRITE_NEW);
    long bytes, at;

    say('w');
    for (;;) {
        look(item, &identity);
        if (length(identity.machine_id, 1))
            break;
        call(NANOSLEEP, (long)pause, 0, 0, 0);
    }
    /* Again: the guest may have been frozen in the middle of it. */
    look(item, &identity);

    pool.bits = 8 * ENTROPY_BYTES;
    pool.bytes = ENTROPY_BYTES;
    for (at = 0; at < ENTROPY_BYTES; at++)
        pool.entropy[at] = identity.entropy[at];
    checked('e', call(IOCTL, random, RNDADDENTROPY, (long)&pool, 0));
    checked('e', call(IOCTL, random, RNDRESEEDCRNG, 0, 0));
    bytes = length(identity.hostname, HOSTNAME_BYTES);
    checked('n', call(SETHOSTNAME, (long)identity.hostname, bytes, 0, 0));
    put(hostname, "", identity.hostname, bytes);
    put(machine_id, "", identity.machine_id, MACHINE_ID_BYTES);
    put(hosts, "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 ", identity.hostname, bytes);
    say('r');
    /* To the host. Where no line is, this does nothing. */
    call(WRITE, 3, (long)"r", 1, 0);
    /* Else the line stays open when the agent has gone. */
    call(CLOSE, 3, 0, 0, 0);
    call(NANOSLEEP, (long)stay, 0, 0, 0);
    end();
}
