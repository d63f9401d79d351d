/* The command line. */
#define _XOPEN_SOURCE 700
#include "sim.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum kind {
    FLAG,
    NUMBER,      /* uint32_t */
    LONG_NUMBER, /* uint64_t */
    MEGABYTES,   /* a decimal, kept as KB in a uint32_t */
    CHANCE,      /* a decimal from 0 to 1, kept as a fraction of 2^32 */
    TEXT,
    COUNTED, /* N, or N:forever or N:M, kept in the member and the one named beside it */
    TRANSPORT,
};

static const struct option {
    const char *name;
    enum kind kind;
    size_t at, beside;
    const char *help;
} options_known[] = {
#define AT(member) offsetof(struct sim_options, member)
    {"card", TEXT, AT(card), 0, "DIR       the card's directory"},
    {"stdio", TRANSPORT, SIM_STDIO, 0, "         the line is stdin and stdout (the default)"},
    {"pty", TRANSPORT, SIM_PTY, 0, "           the line is a pseudo-terminal; its path is printed"},
    {"tcp", TRANSPORT, SIM_TCP, 0,
     "PORT       the line is a port of 127.0.0.1, 0 for a free one; its URL is printed"},
    {"once", FLAG, AT(once), 0, "          ends when the first TCP connection does"},
    {"size", FLAG, AT(size), 0, "          prints what the memory is used for, and ends"},
    {"fast", LONG_NUMBER, AT(fast), 0, "BYTES     internal memory (163840)"},
    {"bulk", LONG_NUMBER, AT(bulk), 0, "BYTES     external memory (3900000)"},
    {"context", NUMBER, AT(context), 0, "N      positions at most (the model's)"},
    {"threads", NUMBER, AT(threads), 0, "N      cores, 1 or 2 (2)"},
    {"card-rate", MEGABYTES, AT(card_rate), 0, "MB/S  the card's speed (no limit)"},
    {"card-latency-us", NUMBER, AT(card_latency_us), 0, "N  before each read and write (0)"},
    {"baud", NUMBER, AT(baud), 0, "N         the line's rate (no limit)"},
    {"max-baud", NUMBER, AT(max_baud), 0, "N     above this rate only garbage comes through"},
    {"fault-seed", LONG_NUMBER, AT(fault_seed), 0, "N   seed of all that is random (0)"},
    {"rx-drop", CHANCE, AT(rx.drop), 0, "P      chance that a byte to the board is lost"},
    {"rx-flip", CHANCE, AT(rx.flip), 0, "P      that a bit of it is flipped"},
    {"rx-dup", CHANCE, AT(rx.duplicate), 0, "P       that it comes twice"},
    {"rx-insert", CHANCE, AT(rx.insert), 0, "P    that another comes before it"},
    {"tx-drop", CHANCE, AT(tx.drop), 0, "P      the same for bytes from the board"},
    {"tx-flip", CHANCE, AT(tx.flip), 0, "P"},
    {"tx-dup", CHANCE, AT(tx.duplicate), 0, "P"},
    {"tx-insert", CHANCE, AT(tx.insert), 0, "P"},
    {"boot-noise", FLAG, AT(boot_noise), 0, "    random bytes before each boot"},
    {"reset-after", LONG_NUMBER, AT(reset_after), 0,
     "N  the board resets at the N-th byte it gets"},
    {"read-fail", COUNTED, AT(read_fail), AT(read_fail_forever),
     "N[:forever]  the card's N-th read fails"},
    {"read-short", LONG_NUMBER, AT(read_short), 0, "N   the N-th read comes short"},
    {"read-flip", LONG_NUMBER, AT(read_flip), 0, "N    the N-th read has one wrong bit"},
    {"power-cut-after", LONG_NUMBER, AT(power_cut_after), 0,
     "N  power fails in the N-th change of the card; exit 42"},
    {"card-gone-after", COUNTED, AT(card_gone_after), AT(card_gone_mounts),
     "N[:M]  no card after N reads, until the M-th mount"},
#undef AT
};

#define N_OPTIONS (sizeof options_known / sizeof options_known[0])

static bool parse_number(const char *text, char stop, uint64_t most, uint64_t *number) {
    char *end = NULL;
    errno = 0;
    const unsigned long long value = strtoull(text, &end, 10);
    if (errno != 0 || end == text || text[0] < '0' || text[0] > '9' || value > most ||
        (*end != '\0' && *end != stop)) {
        return false;
    }
    *number = value;
    return true;
}

static bool parse_real(const char *text, double most, double *number) {
    char *end = NULL;
    *number = strtod(text, &end);
    return end != text && *end == '\0' && *number >= 0 && *number <= most;
}

static bool set_counted(const struct option *option, const char *text, char *base) {
    uint64_t number = 0, more = 0;
    const char *colon = strchr(text, ':');
    if (!parse_number(text, ':', UINT64_MAX, &number)) {
        return false;
    }
    if (colon != NULL && option->beside == offsetof(struct sim_options, read_fail_forever)) {
        if (strcmp(colon, ":forever") != 0) {
            return false;
        }
        *(bool *)(base + option->beside) = true;
    } else if (colon != NULL) {
        if (!parse_number(colon + 1, '\0', UINT64_MAX, &more)) {
            return false;
        }
        *(uint64_t *)(base + option->beside) = more;
    }
    *(uint64_t *)(base + option->at) = number;
    return true;
}

static bool set(const struct option *option, const char *text, struct sim_options *options) {
    char *base = (char *)options;
    uint64_t number = 0;
    double real = 0;
    switch (option->kind) {
    case FLAG:
        *(bool *)(base + option->at) = true;
        return true;
    case NUMBER:
        if (!parse_number(text, '\0', UINT32_MAX, &number)) {
            return false;
        }
        *(uint32_t *)(base + option->at) = (uint32_t)number;
        return true;
    case LONG_NUMBER:
        return parse_number(text, '\0', UINT64_MAX, (uint64_t *)(base + option->at));
    case MEGABYTES:
        if (!parse_real(text, 100000, &real)) {
            return false;
        }
        *(uint32_t *)(base + option->at) = (uint32_t)(real * 1000 + 0.5);
        return true;
    case CHANCE:
        if (!parse_real(text, 1, &real)) {
            return false;
        }
        *(uint32_t *)(base + option->at) = (uint32_t)(real * UINT32_MAX);
        return true;
    case TEXT:
        *(const char **)(base + option->at) = text;
        return true;
    case COUNTED:
        return set_counted(option, text, base);
    case TRANSPORT:
        options->transport = (enum sim_transport)option->at;
        if (option->at == SIM_TCP) {
            if (!parse_number(text, '\0', UINT16_MAX, &number)) {
                return false;
            }
            options->tcp_port = (uint32_t)number;
        }
        return true;
    }
    return false;
}

static void print_help(void) {
    printf("tllm-sim: the board's own program on this machine.\n\n");
    for (size_t i = 0; i < N_OPTIONS; ++i) {
        printf("  --%s %s\n", options_known[i].name, options_known[i].help);
    }
}

static bool takes_value(const struct option *option) {
    return option->kind != FLAG && !(option->kind == TRANSPORT && option->at != SIM_TCP);
}

static bool parse_one(const char *name, const char *value, bool *used,
                      struct sim_options *options) {
    for (size_t i = 0; i < N_OPTIONS; ++i) {
        const struct option *option = &options_known[i];
        if (strcmp(name, option->name) == 0) {
            *used = takes_value(option);
            if ((*used && value == NULL) || !set(option, value, options)) {
                fprintf(stderr, "--%s does not take %s: see tllm-sim --help.\n", name,
                        value == NULL ? "nothing" : value);
                return false;
            }
            return true;
        }
    }
    fprintf(stderr, "There is no option --%s: see tllm-sim --help.\n", name);
    return false;
}

bool sim_parse_options(int argc, char **argv, struct sim_options *options) {
    *options = (struct sim_options){.fast = 163840, .bulk = 3900000, .threads = 2};
    for (int i = 1; i < argc; ++i) {
        bool used = false;
        if (strncmp(argv[i], "--", 2) != 0) {
            fprintf(stderr, "%s is not an option: see tllm-sim --help.\n", argv[i]);
            return false;
        }
        if (strcmp(argv[i], "--help") == 0) {
            print_help();
            exit(0);
        }
        if (!parse_one(argv[i] + 2, i + 1 < argc ? argv[i + 1] : NULL, &used, options)) {
            return false;
        }
        i += used;
    }
    if (options->card == NULL) {
        fprintf(stderr, "No card is given: --card DIR names its directory.\n");
        return false;
    }
    if (options->threads < 1 || options->threads > 2) {
        fprintf(stderr, "A board has 1 or 2 cores, not %u: see --threads.\n", options->threads);
        return false;
    }
    return true;
}
