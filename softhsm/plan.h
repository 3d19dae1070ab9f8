/*
 * The script of the faulty module: which call meets which fault.
 *
 * One rule a line, `FUNCTION CALLS ACTION [ARGUMENT]`; `#` starts a comment. CALLS is `3`, `3-5`, `3+` or `*`, counted
 * from 1 for each rule since the file was last changed. All matching rules apply, in the order of the file.
 *
 *   return CODE     answers CODE (a name or a number); the real module is not called
 *   lose CODE       calls the real module, then answers CODE: it is done, but the caller does not know
 *   delay 50ms      waits before the call
 *   hang            waits until the file changes, then calls the real module
 *   exit 137        ends the process at once, without clean-up
 *   crash           writes to address 0, for a SIGSEGV
 *   flip            flips the lowest bit of the first byte of the output
 *   short           takes one byte off the output
 *   long            adds one byte to the output of C_Encrypt, C_Decrypt, C_Sign or C_WrapKey, where the caller's buffer has
 *                   room for it; asked for the length before such a call, says one more too
 *   constant        fills the output with 0x5a
 *   empty           makes C_FindObjects find nothing
 *   serial TEXT     makes C_GetTokenInfo show another serial number
 *   sessions N      makes C_GetTokenInfo show another ulMaxSessionCount
 *   iv              makes C_EncryptInit replace a zero GCM IV by one of its own, in the caller's buffer
 *   anyiv           the same with every GCM IV
 *   attribute T=V   makes C_GetAttributeValue show V as the value of the attribute T: two numbers, and V one byte long, or
 *                   as long as a CK_ULONG when it ends in `l`
 *   template T=V    makes C_GenerateKey take V for the attribute T of its template; `none` leaves T out
 */
#ifndef HOLDFAST_FAULTY_PLAN_H
#define HOLDFAST_FAULTY_PLAN_H

#define PLAN_MAX_RULES 64
#define PLAN_MAX_TEXT 32
#define PLAN_MAX_EDITS 8

enum lie {
    LIE_FLIP = 1,
    LIE_SHORT = 2,
    LIE_CONSTANT = 4,
    LIE_EMPTY = 8,
    LIE_IV = 16,
    LIE_SERIAL = 32,
    LIE_SESSIONS = 64,
    LIE_ATTRIBUTE = 128,
    LIE_ANY_IV = 256,
    LIE_TEMPLATE = 512,
    LIE_LONG = 1024
};

/* Another value of an attribute. */
struct edit {
    enum lie lie; /* LIE_ATTRIBUTE or LIE_TEMPLATE */
    unsigned long type;
    unsigned char value[sizeof(unsigned long)];
    unsigned long size;
};

/* What the rules decide for one call. */
struct fate {
    unsigned long generation; /* of the plan that decided */
    unsigned long nth;        /* number of the call, by the last rule that matched */
    unsigned delay_ms;
    int hang;
    int crash;
    int exits;
    int exit_code;
    int returns;
    int loses;
    unsigned long code; /* of returns and loses */
    unsigned lies;      /* enum lie, together */
    char serial[PLAN_MAX_TEXT];
    unsigned long sessions;
    struct edit edits[PLAN_MAX_EDITS];
    unsigned edit_count;
};

/* Counts a call of `function` and decides its fate. Reads the file again when it has changed. Thread-safe. */
void plan_decide(const char *function, struct fate *fate);

/* Returns the lies of the next call of `function`, which is not counted yet. Thread-safe. */
unsigned plan_foresee(const char *function);

/* Returns what is said of an attribute, or NULL. */
const struct edit *plan_edit(const struct fate *fate, enum lie lie, unsigned long type);

/* Waits until the plan is another than `generation`. */
void plan_wait(unsigned long generation);

/* Sleeps. */
void plan_sleep(unsigned milliseconds);

#endif
