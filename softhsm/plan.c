/* Reads and applies the script of the faulty module; plan.h describes it. A script that makes no sense aborts. */
#define _GNU_SOURCE
#include "plan.h"
#include "pkcs11_min.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

/* How often a hung call looks whether the plan has changed. */
#define POLL_MS 2

struct rule {
    char function[PLAN_MAX_TEXT];
    unsigned long first, last, seen;
    struct fate effect;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct rule rules[PLAN_MAX_RULES];
static size_t rule_count;
static unsigned long generation;
static struct stat loaded;

static void refuse(const char *line, const char *why)
{
    fprintf(stderr, "faulty: %s: %s\n", why, line);
    abort();
}

static int code_of(const char *text, unsigned long *code)
{
#define CODE_NAMED(name, value)    \
    if (strcmp(text, #name) == 0) { \
        *code = (value);           \
        return 1;                  \
    }
    CK_RETURN_VALUES(CODE_NAMED)
    char *end = NULL;
    *code = strtoul(text, &end, 0);
    return end != text && *end == '\0';
}

static int known_function(const char *text)
{
#define NAMED(name, parameters, arguments, session, output, length) \
    if (strcmp(text, #name) == 0)                                   \
        return 1;
    CK_FUNCTIONS_BEFORE_LIST(NAMED)
    CK_FUNCTIONS_AFTER_LIST(NAMED)
    return strcmp(text, "*") == 0;
}

static void parse_calls(const char *line, const char *text, struct rule *rule)
{
    char *end = NULL;
    if (strcmp(text, "*") == 0) {
        rule->first = 1;
        rule->last = ~0UL;
        return;
    }
    rule->first = rule->last = strtoul(text, &end, 10);
    if (end == text || rule->first == 0)
        refuse(line, "bad call number");
    if (strcmp(end, "+") == 0) {
        rule->last = ~0UL;
    } else if (*end == '-') {
        const char *second = end + 1;
        rule->last = strtoul(second, &end, 10);
        if (end == second || *end != '\0' || rule->last < rule->first)
            refuse(line, "bad call range");
    } else if (*end != '\0') {
        refuse(line, "bad call number");
    }
}

static void parse_edit(const char *line, const char *argument, enum lie lie, struct edit *edit)
{
    char *end = NULL;
    edit->lie = lie;
    edit->type = strtoul(argument, &end, 0);
    if (end == argument || *end != '=')
        refuse(line, "an attribute is given as `0x104=1`");
    const char *text = end + 1;
    if (strcmp(text, "none") == 0)
        return;
    unsigned long value = strtoul(text, &end, 0);
    if (end == text)
        refuse(line, "an attribute is given as `0x104=1`");
    edit->size = *end == 'l' ? sizeof value : 1;
    /* Little-endian: the first byte is the number, when it is one byte long. */
    memcpy(edit->value, &value, sizeof value);
}

static void parse_action(const char *line, const char *action, const char *argument, struct fate *effect)
{
    if (strcmp(action, "return") == 0 || strcmp(action, "lose") == 0) {
        *(action[0] == 'r' ? &effect->returns : &effect->loses) = 1;
        if (!code_of(argument, &effect->code))
            refuse(line, "unknown return value");
    } else if (strcmp(action, "delay") == 0) {
        char *end = NULL;
        effect->delay_ms = (unsigned)strtoul(argument, &end, 10);
        if (end == argument || strcmp(end, "ms") != 0)
            refuse(line, "a delay is given as `50ms`");
    } else if (strcmp(action, "hang") == 0) {
        effect->hang = 1;
    } else if (strcmp(action, "crash") == 0) {
        effect->crash = 1;
    } else if (strcmp(action, "exit") == 0) {
        effect->exits = 1;
        effect->exit_code = atoi(argument);
    } else if (strcmp(action, "flip") == 0) {
        effect->lies = LIE_FLIP;
    } else if (strcmp(action, "short") == 0) {
        effect->lies = LIE_SHORT;
    } else if (strcmp(action, "long") == 0) {
        effect->lies = LIE_LONG;
    } else if (strcmp(action, "constant") == 0) {
        effect->lies = LIE_CONSTANT;
    } else if (strcmp(action, "empty") == 0) {
        effect->lies = LIE_EMPTY;
    } else if (strcmp(action, "iv") == 0) {
        effect->lies = LIE_IV;
    } else if (strcmp(action, "anyiv") == 0) {
        effect->lies = LIE_ANY_IV;
    } else if (strcmp(action, "serial") == 0) {
        effect->lies = LIE_SERIAL;
        snprintf(effect->serial, sizeof effect->serial, "%s", argument);
    } else if (strcmp(action, "sessions") == 0) {
        effect->lies = LIE_SESSIONS;
        effect->sessions = strtoul(argument, NULL, 10);
    } else if (strcmp(action, "attribute") == 0 || strcmp(action, "template") == 0) {
        effect->lies = action[0] == 'a' ? LIE_ATTRIBUTE : LIE_TEMPLATE;
        effect->edit_count = 1;
        parse_edit(line, argument, (enum lie)effect->lies, &effect->edits[0]);
    } else {
        refuse(line, "unknown action");
    }
}

static void parse_line(const char *line)
{
    char function[PLAN_MAX_TEXT], calls[PLAN_MAX_TEXT], action[PLAN_MAX_TEXT], argument[PLAN_MAX_TEXT] = "";
    int fields = sscanf(line, "%31s %31s %31s %31s", function, calls, action, argument);
    if (fields <= 0 || function[0] == '#')
        return;
    if (fields < 3 || !known_function(function))
        refuse(line, "unknown function");
    if (rule_count == PLAN_MAX_RULES)
        refuse(line, "too many rules");
    struct rule *rule = &rules[rule_count++];
    memset(rule, 0, sizeof *rule);
    memcpy(rule->function, function, sizeof function);
    parse_calls(line, calls, rule);
    parse_action(line, action, argument, &rule->effect);
}

/* Reads the file again when it is another than before. The lock is held. */
static void refresh(void)
{
    const char *path = getenv("HOLDFAST_FAULTY_PLAN");
    struct stat now;
    memset(&now, 0, sizeof now);
    if (path != NULL && stat(path, &now) != 0)
        memset(&now, 0, sizeof now);
    if (now.st_ino == loaded.st_ino && now.st_size == loaded.st_size &&
        now.st_mtim.tv_sec == loaded.st_mtim.tv_sec && now.st_mtim.tv_nsec == loaded.st_mtim.tv_nsec)
        return;
    loaded = now;
    generation++;
    rule_count = 0;
    FILE *file = now.st_ino != 0 ? fopen(path, "re") : NULL;
    if (file == NULL)
        return;
    char line[256];
    while (fgets(line, sizeof line, file) != NULL)
        parse_line(line);
    fclose(file);
}

static void combine(struct fate *fate, const struct fate *effect)
{
    fate->delay_ms += effect->delay_ms;
    fate->hang |= effect->hang;
    fate->crash |= effect->crash;
    if (effect->exits) {
        fate->exits = 1;
        fate->exit_code = effect->exit_code;
    }
    if (effect->returns || effect->loses) {
        fate->returns = effect->returns;
        fate->loses = effect->loses;
        fate->code = effect->code;
    }
    fate->lies |= effect->lies;
    if (effect->lies & LIE_SERIAL)
        memcpy(fate->serial, effect->serial, sizeof fate->serial);
    if (effect->lies & LIE_SESSIONS)
        fate->sessions = effect->sessions;
    for (unsigned i = 0; i < effect->edit_count && fate->edit_count < PLAN_MAX_EDITS; i++)
        fate->edits[fate->edit_count++] = effect->edits[i];
}

static int is_for(const struct rule *rule, const char *function)
{
    return strcmp(rule->function, "*") == 0 || strcmp(rule->function, function) == 0;
}

void plan_decide(const char *function, struct fate *fate)
{
    memset(fate, 0, sizeof *fate);
    pthread_mutex_lock(&lock);
    refresh();
    fate->generation = generation;
    for (size_t i = 0; i < rule_count; i++) {
        struct rule *rule = &rules[i];
        if (!is_for(rule, function))
            continue;
        rule->seen++;
        if (rule->seen < rule->first || rule->seen > rule->last)
            continue;
        fate->nth = rule->seen;
        combine(fate, &rule->effect);
    }
    pthread_mutex_unlock(&lock);
}

unsigned plan_foresee(const char *function)
{
    unsigned lies = 0;
    pthread_mutex_lock(&lock);
    refresh();
    for (size_t i = 0; i < rule_count; i++) {
        const struct rule *rule = &rules[i];
        unsigned long next = rule->seen + 1;
        if (is_for(rule, function) && next >= rule->first && next <= rule->last)
            lies |= rule->effect.lies;
    }
    pthread_mutex_unlock(&lock);
    return lies;
}

const struct edit *plan_edit(const struct fate *fate, enum lie lie, unsigned long type)
{
    for (unsigned i = 0; i < fate->edit_count; i++)
        if (fate->edits[i].lie == lie && fate->edits[i].type == type)
            return &fate->edits[i];
    return NULL;
}

void plan_sleep(unsigned milliseconds)
{
    struct timespec left = {milliseconds / 1000, (long)(milliseconds % 1000) * 1000000L};
    while (nanosleep(&left, &left) != 0 && errno == EINTR)
        continue;
}

void plan_wait(unsigned long old)
{
    for (;;) {
        pthread_mutex_lock(&lock);
        refresh();
        int changed = generation != old;
        pthread_mutex_unlock(&lock);
        if (changed)
            return;
        plan_sleep(POLL_MS);
    }
}
