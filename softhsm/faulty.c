/*
 * A PKCS#11 module that forwards every call to a real one and errs by script.
 *
 * For tests only. It shows what our code does when a token fails, lies, is slow or never answers; it says nothing about
 * any real device. Environment:
 *
 *   HOLDFAST_FAULTY_REAL   the module to forward to (default: Debian's SoftHSM)
 *   HOLDFAST_FAULTY_PLAN   the script (plan.h); may be replaced while the program runs
 *   HOLDFAST_FAULTY_LOG    one line a call: `FUNCTION session=N rv=0x0 thread=NAME`; `enter FUNCTION` when it starts to hang
 *   HOLDFAST_FAULTY_END    `hang` has the destructor wait for ever, as one that wants a lock which a hung call holds
 *
 * A call that only asks for the length of its output (NULL buffer) is logged with `query`; it is neither counted nor
 * made to fail, and lies only where `long` says so. Thread-safe: no lock is held while the real module works.
 */
#define _GNU_SOURCE
#include "pkcs11_min.h"
#include "plan.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DEFAULT_REAL "/usr/lib/softhsm/libsofthsm2.so"
#define GCM_IV_BYTES 12
#define FILL 0x5a
#define MAX_TEMPLATE 32
#define THREAD_NAME 16

struct call {
    const char *function;
    CK_SESSION session;
    void *output;
    CK_ULONG *length;
    int query;
    CK_ULONG room; /* what the caller's buffer holds, where `long` applies */
    struct fate fate;
};

static CK_FUNCTION_LIST *real;
static int log_file = -1;
static volatile int *volatile nowhere; /* NULL */
static pthread_once_t loaded = PTHREAD_ONCE_INIT;

static void load(void)
{
    const char *path = getenv("HOLDFAST_FAULTY_REAL");
    const char *log_path = getenv("HOLDFAST_FAULTY_LOG");
    if (log_path != NULL)
        log_file = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    void *module = dlopen(path != NULL ? path : DEFAULT_REAL, RTLD_NOW | RTLD_LOCAL);
    if (module == NULL) {
        fprintf(stderr, "faulty: %s\n", dlerror());
        return;
    }
    CK_RV (*list)(CK_FUNCTION_LIST **) = NULL;
    *(void **)&list = dlsym(module, "C_GetFunctionList");
    if (list == NULL || list(&real) != CKR_OK) {
        fprintf(stderr, "faulty: the real module has no function list\n");
        real = NULL;
    }
}

/* One write a line: with O_APPEND lines of several threads do not mix. */
static void log_line(const char *line, int length)
{
    if (log_file >= 0 && length > 0 && write(log_file, line, (size_t)length) != length)
        abort();
}

/* Runs at the end of a process that runs destructors, and when the module is unloaded. */
__attribute__((destructor)) static void at_end(void)
{
    const char *end = getenv("HOLDFAST_FAULTY_END");
    if (end == NULL || strcmp(end, "hang") != 0)
        return;
    char line[32];
    log_line(line, snprintf(line, sizeof line, "enter destructor\n"));
    for (;;)
        pause();
}

/* Whether `long` applies: these take the size of the caller's buffer in `length`. */
static int sized(const struct call *call)
{
    static const char *const functions[] = {"C_Encrypt", "C_Decrypt", "C_Sign", "C_WrapKey"};
    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++)
        if (strcmp(call->function, functions[i]) == 0)
            return call->length != NULL;
    return 0;
}

/* Returns whether the call is answered without the real module. */
static int before(struct call *call)
{
    struct fate *fate = &call->fate;
    call->query = call->output == NULL && call->length != NULL;
    memset(fate, 0, sizeof *fate);
    if (call->query) {
        if (sized(call))
            fate->lies = plan_foresee(call->function) & LIE_LONG;
        return 0;
    }
    if (sized(call))
        call->room = *call->length;
    plan_decide(call->function, fate);
    if (fate->hang) {
        char line[96];
        log_line(line, snprintf(line, sizeof line, "enter %s session=%lu\n", call->function, call->session));
        plan_wait(fate->generation);
    }
    if (fate->delay_ms > 0)
        plan_sleep(fate->delay_ms);
    if (fate->exits)
        _exit(fate->exit_code);
    /* A real fault: Rust's handler of SIGSEGV takes its leave and has the instruction tried again, so raise() is survived. */
    if (fate->crash)
        *nowhere = 1;
    return fate->returns;
}

static void lie_about_token(CK_TOKEN_INFO_HEAD *info, const struct fate *fate)
{
    if (fate->lies & LIE_SERIAL) {
        size_t length = strnlen(fate->serial, sizeof info->serialNumber);
        memset(info->serialNumber, ' ', sizeof info->serialNumber);
        memcpy(info->serialNumber, fate->serial, length);
    }
    if (fate->lies & LIE_SESSIONS)
        info->ulMaxSessionCount = fate->sessions;
}

/* Some tokens ignore a zero IV, or any, draw their own, and write it back into the parameters. */
static void own_iv(struct call *call)
{
    static const CK_BYTE zero[GCM_IV_BYTES];
    const CK_MECHANISM *mechanism = call->output;
    if (!(call->fate.lies & (LIE_IV | LIE_ANY_IV)) || mechanism == NULL || mechanism->mechanism != CKM_AES_GCM)
        return;
    const CK_GCM_PARAMS *parameters = mechanism->pParameter;
    if (parameters == NULL || parameters->ulIvLen != GCM_IV_BYTES)
        return;
    if (!(call->fate.lies & LIE_ANY_IV) && memcmp(parameters->pIv, zero, GCM_IV_BYTES) != 0)
        return;
    memset(parameters->pIv, FILL, GCM_IV_BYTES);
    memcpy(parameters->pIv, &call->fate.nth, sizeof call->fate.nth);
}

/* Shows attributes as told, whatever the object has. */
static void lie_about_attributes(const struct call *call)
{
    CK_ATTRIBUTE *attributes = *(CK_ATTRIBUTE **)call->output;
    for (CK_ULONG i = 0; attributes != NULL && i < *call->length; i++) {
        const struct edit *edit = plan_edit(&call->fate, LIE_ATTRIBUTE, attributes[i].type);
        if (edit == NULL)
            continue;
        attributes[i].ulValueLen = edit->size;
        if (attributes[i].pValue != NULL)
            memcpy(attributes[i].pValue, edit->value, edit->size);
    }
}

/* Some tokens make an object otherwise than the template says: the real module gets a copy with our values. */
static void own_template(struct call *call)
{
    static _Thread_local CK_ATTRIBUTE copy[MAX_TEMPLATE];
    if (!(call->fate.lies & LIE_TEMPLATE) || *call->length > MAX_TEMPLATE)
        return;
    CK_ATTRIBUTE **template = call->output;
    CK_ULONG count = 0;
    for (CK_ULONG i = 0; i < *call->length; i++) {
        const struct edit *edit = plan_edit(&call->fate, LIE_TEMPLATE, (*template)[i].type);
        if (edit != NULL && edit->size == 0)
            continue;
        copy[count] = (*template)[i];
        if (edit != NULL) {
            copy[count].pValue = (void *)edit->value;
            copy[count].ulValueLen = edit->size;
        }
        count++;
    }
    *template = copy;
    *call->length = count;
}

static void lie_about_output(struct call *call)
{
    CK_BYTE *bytes = call->output;
    const struct fate *fate = &call->fate;
    if (strcmp(call->function, "C_GetTokenInfo") == 0) {
        lie_about_token(call->output, fate);
        return;
    }
    if (strcmp(call->function, "C_GetAttributeValue") == 0) {
        lie_about_attributes(call);
        return;
    }
    if (strcmp(call->function, "C_GenerateKey") == 0)
        return;
    if (bytes == NULL || call->length == NULL || *call->length == 0)
        return;
    if (fate->lies & LIE_FLIP)
        bytes[0] ^= 1;
    if (fate->lies & LIE_CONSTANT)
        memset(bytes, FILL, *call->length);
    if (fate->lies & LIE_SHORT)
        *call->length -= 1;
    /* Never past the end: what is tested is our code, not the allocator. */
    if ((fate->lies & LIE_LONG) && *call->length < call->room)
        bytes[(*call->length)++] = FILL;
    if ((fate->lies & LIE_EMPTY) && strcmp(call->function, "C_FindObjects") == 0)
        *call->length = 0;
}

static CK_RV after(struct call *call, CK_RV rv)
{
    const struct fate *fate = &call->fate;
    if (fate->returns || fate->loses)
        rv = fate->code;
    else if (rv == CKR_OK && call->query)
        *call->length += (fate->lies & LIE_LONG) != 0;
    else if (rv == CKR_OK)
        lie_about_output(call);
    char line[128], thread[THREAD_NAME] = "";
    pthread_getname_np(pthread_self(), thread, sizeof thread);
    log_line(line, snprintf(line, sizeof line, "%s session=%lu rv=0x%lx thread=%s%s\n", call->function, call->session,
                            rv, thread, call->query ? " query" : ""));
    return rv;
}

#define FORWARD(name, parameters, arguments, session, output, length)   \
    static CK_RV name parameters                                        \
    {                                                                   \
        struct call call = {#name, session, output, length, 0, 0, {0}}; \
        CK_RV rv = CKR_OK;                                              \
        if (!before(&call)) {                                           \
            own_iv(&call);                                              \
            own_template(&call);                                        \
            rv = real->name arguments;                                  \
        }                                                               \
        return after(&call, rv);                                        \
    }
CK_FUNCTIONS_BEFORE_LIST(FORWARD)
CK_FUNCTIONS_AFTER_LIST(FORWARD)

__attribute__((visibility("default"))) CK_RV C_GetFunctionList(CK_FUNCTION_LIST **list);

#define MEMBER(name, parameters, arguments, session, output, length) name,
static CK_FUNCTION_LIST ours = {
    {2, 40}, CK_FUNCTIONS_BEFORE_LIST(MEMBER) C_GetFunctionList, CK_FUNCTIONS_AFTER_LIST(MEMBER)};

CK_RV C_GetFunctionList(CK_FUNCTION_LIST **list)
{
    pthread_once(&loaded, load);
    if (list == NULL)
        return CKR_ARGUMENTS_BAD;
    if (real == NULL)
        return CKR_GENERAL_ERROR;
    *list = &ours;
    return CKR_OK;
}
