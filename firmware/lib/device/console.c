/* The terminal: a line editor, commands, and prompts that are answered. */
#include "internal.h"

#define BELL      "\a"
#define BACKSPACE 0x08
#define CTRL_U    0x15
#define ESCAPE    0x1b
#define DELETE    0x7f

static void write_line(struct dev *dev, const char *bytes, uint32_t len) {
    if (len > 0) {
        dev->port->line_write(dev->port->ctx, bytes, len);
    }
}

void dev_say_bytes(struct dev *dev, const char *bytes, uint32_t len) {
    uint32_t from = 0;
    for (uint32_t i = 0; i < len; ++i) {
        if (bytes[i] == '\n' || bytes[i] == '\0') { /* a zero would begin a frame */
            write_line(dev, bytes + from, i - from);
            write_line(dev, "\r\n", bytes[i] == '\n' ? 2 : 0);
            from = i + 1;
        }
    }
    write_line(dev, bytes + from, len - from);
}

void dev_say(struct dev *dev, const char *string) {
    dev_say_bytes(dev, string, (uint32_t)strlen(string));
}

void dev_report(struct dev *dev, const char *string) {
    if (!dev->link) {
        dev_say(dev, string);
    }
}

void dev_console_prompt(struct dev *dev) {
    if (!dev->link) {
        dev_say(dev, "> ");
        write_line(dev, dev->line.text, dev->line.len); /* typed while something ran */
    }
}

/* ---- the editor ---- */

static void echo(struct dev *dev, const char *string) {
    if (!dev->running) {
        dev_say(dev, string);
    }
}

static bool erase_character(struct dev_line_editor *line) {
    const uint32_t before = line->len;
    while (line->len > 0 && (line->text[--line->len] & 0xc0) == 0x80) {
    }
    return line->len < before;
}

static void end_line(struct dev *dev) {
    struct dev_line_editor *line = &dev->line;
    line->text[line->len] = '\0';
    if (dev->running && strcmp(line->text, "/stop") == 0) {
        dev->cancel = true;
        line->len = 0;
        return;
    }
    line->ready = true;
}

static bool skip_escape(struct dev_line_editor *line, uint8_t byte) {
    if (line->escape == 0) {
        line->escape = byte == ESCAPE;
        return byte == ESCAPE;
    }
    if (line->escape == 1 && (byte == '[' || byte == 'O')) {
        line->escape = 2;
    } else if (line->escape == 1 || byte >= 0x40) {
        line->escape = 0;
    }
    return true;
}

void dev_console_byte(struct dev *dev, uint8_t byte) {
    struct dev_line_editor *line = &dev->line;
    const bool after_cr = line->last_cr;
    line->last_cr = byte == '\r';
    if (byte == DEV_CTRL_C) {
        dev->cancel = true;
        line->len = 0;
        line->escape = 0;
        line->over = line->ready = false;
        if (!dev->running) {
            dev_say(dev, "^C\n");
            dev_console_prompt(dev);
        }
        return;
    }
    if (dev->type != 0) { /* the line speaks frames: only Ctrl-C means something */
        return;
    }
    if (line->ready) {
        dev_say(dev, BELL);
        return;
    }
    if (skip_escape(line, byte) || (byte == '\n' && after_cr)) {
        return;
    }
    if (byte == '\r' || byte == '\n') {
        end_line(dev);
    } else if (byte == BACKSPACE || byte == DELETE) {
        if (erase_character(line)) {
            echo(dev, "\b \b");
        }
    } else if (byte == CTRL_U) {
        while (erase_character(line)) {
            echo(dev, "\b \b");
        }
        line->over = false;
    } else if (byte < 0x20) {
        dev_say(dev, BELL);
    } else if (line->len == DEV_LINE) {
        line->over = true;
        dev_say(dev, BELL);
    } else {
        line->text[line->len++] = (char)byte;
        if (!dev->running) {
            write_line(dev, line->text + line->len - 1, 1);
        }
    }
}

/* ---- commands ---- */

static const char help[] =
    "A line is a prompt; Ctrl-C or /stop ends its answer. A line that begins with / is a command:\n"
    "  /temp X       temperature, 0 (the likeliest token) or 0.01 to 100\n"
    "  /top-k N      of the N likeliest tokens; 0: of all\n"
    "  /top-p X      of the likeliest that make up X of 1; 1: of all\n"
    "  /penalty X    against repeating, 1 (none) to 2\n"
    "  /seed N       the same seed, the same text\n"
    "  /n N          tokens of an answer at most; 0: to the context's end\n"
    "  /context stop|drop   at the context's end: stop, or forget the oldest turns\n"
    "  /reset        begins a new session\n"
    "  /stats /info  figures; what this board is and holds\n"
    "  /reboot\n";

static bool set_q16(const char *argument, uint32_t *value, uint32_t low, uint32_t high,
                    bool or_zero) {
    uint32_t q16 = 0;
    if (!dev_parse_q16(argument, &q16) || ((q16 < low || q16 > high) && !(or_zero && q16 == 0))) {
        return false;
    }
    *value = q16;
    return true;
}

static bool set_u32(const char *argument, uint32_t *value) {
    uint64_t number = 0;
    if (!dev_parse_number(argument, &number) || number > UINT32_MAX) {
        return false;
    }
    *value = (uint32_t)number;
    return true;
}

static bool set_seed(struct dev *dev, const char *argument) {
    uint64_t seed = 0;
    if (!dev_parse_number(argument, &seed)) {
        return false;
    }
    dev->rng_state = seed;
    dev->session.rng.state = seed;
    return true;
}

static bool set_policy(struct dev *dev, const char *argument) {
    const bool drop = strcmp(argument, "drop") == 0;
    if (!drop && strcmp(argument, "stop") != 0) {
        return false;
    }
    dev->policy = drop ? TLLM_CONTEXT_DROP : TLLM_CONTEXT_STOP;
    return true;
}

static void say_figure(struct dev *dev, const char *name, uint64_t number, const char *unit) {
    char buffer[80];
    struct dev_text text;
    dev_text_start(&text, buffer, sizeof buffer);
    dev_text_add(&text, name);
    dev_text_number(&text, number);
    dev_text_add(&text, unit);
    dev_text_add(&text, "\n");
    dev_say(dev, buffer);
}

static void say_stats(struct dev *dev) {
    const struct tllm_stats *stats = &dev->engine.stats;
    if (dev->model != NULL) {
        say_figure(dev, "session:    ", dev->session.n, " tokens");
        say_figure(dev, "context:    ", dev->engine.context, " tokens");
        say_figure(dev, "evaluated:  ", stats->tokens, " tokens since the last prompt");
        say_figure(dev, "time:       ", stats->total_us / 1000, " ms");
        say_figure(dev, "reading:    ", stats->read_us / 1000, " ms");
        say_figure(dev, "from card:  ", stats->read_bytes, " bytes");
        say_figure(dev, "in memory:  ", stats->mapped_bytes, " bytes");
    }
    say_figure(dev, "frames:     ", dev->counts.frames, "");
    say_figure(dev, "read errors: ", dev->counts.read_errors, "");
}

static void say_pair(struct dev *dev, const char *name, const char *value) {
    if (value != NULL && value[0] != '\0') {
        dev_say(dev, name);
        dev_say(dev, value);
        dev_say(dev, "\n");
    }
}

static void say_info(struct dev *dev) {
    struct dev_board board = {0};
    dev->port->describe(dev->port->ctx, &board);
    say_pair(dev, "version:  ", dev->config.version);
    say_pair(dev, "board:    ", board.board);
    say_pair(dev, "card:     ", board.card);
    say_pair(dev, "mode:     ", board.card_mode);
    say_pair(dev, "reset:    ", board.reset_reason);
    if (dev->model != NULL) {
        say_pair(dev, "model:    ", dev->model->name);
        say_figure(dev, "context:  ", dev->engine.context, " tokens");
    } else {
        say_pair(dev, "model:    none. ", dev->load_error);
    }
    say_figure(dev, "fast:     ", dev->memory.fast_own + dev->memory.fast_engine, " bytes used");
    say_figure(dev, "bulk:     ", dev->bulk.used, " bytes used");
    say_figure(dev, "resident: ", dev->memory.resident, " bytes of weights");
}

static bool set_parameter(struct dev *dev, const char *name, const char *argument) {
    struct tllm_sampling *sampling = &dev->sampling;
    if (strcmp(name, "/temp") == 0) {
        return set_q16(argument, &sampling->temperature, 655, 6553600, true);
    }
    if (strcmp(name, "/top-k") == 0) {
        return set_u32(argument, &sampling->top_k);
    }
    if (strcmp(name, "/top-p") == 0) {
        return set_q16(argument, &sampling->top_p, 0, 65536, true);
    }
    if (strcmp(name, "/penalty") == 0) {
        return set_q16(argument, &sampling->penalty, 65536, 131072, false);
    }
    if (strcmp(name, "/seed") == 0) {
        return set_seed(dev, argument);
    }
    if (strcmp(name, "/n") == 0) {
        return set_u32(argument, &dev->length);
    }
    if (strcmp(name, "/context") == 0) {
        return set_policy(dev, argument);
    }
    dev_say(dev, "There is no command ");
    dev_say(dev, name);
    dev_say(dev, ": /help lists them.\n");
    return true;
}

static void run_command(struct dev *dev, char *name) {
    char *argument = name;
    while (*argument != ' ' && *argument != '\0') {
        ++argument;
    }
    while (*argument == ' ') {
        *argument++ = '\0';
    }
    for (char *end = argument + strlen(argument); end > argument && end[-1] == ' ';) {
        *--end = '\0';
    }
    if (strcmp(name, "/help") == 0) {
        dev_say(dev, help);
    } else if (strcmp(name, "/stats") == 0) {
        say_stats(dev);
    } else if (strcmp(name, "/info") == 0) {
        say_info(dev);
    } else if (strcmp(name, "/reset") == 0) {
        if (dev->model != NULL) {
            tllm_session_reset(&dev->session);
            dev->session_number = 0;
            dev->logits = false;
        }
        dev_say(dev, "A new session.\n");
    } else if (strcmp(name, "/stop") == 0) {
        dev_say(dev, "Nothing is running.\n");
    } else if (strcmp(name, "/reboot") == 0) {
        dev->restart = true;
    } else if (!set_parameter(dev, name, argument)) {
        dev_say(dev, "That is not a value of ");
        dev_say(dev, name);
        dev_say(dev, ": /help says which are.\n");
    }
}

/* ---- prompts ---- */

static void say_end(struct dev *dev, const struct dev_talk *talk) {
    static const char *const ends[] = {"none", "end of text", "length", "context full", "stopped"};
    char buffer[160];
    struct dev_text text;
    dev_text_start(&text, buffer, sizeof buffer);
    dev_text_add(&text, "\n[");
    dev_text_number(&text, talk->tokens);
    dev_text_add(&text, " tokens, ");
    /* The first token came with the prompt's evaluation. */
    const uint64_t evaluated = talk->evaluations > 0 ? talk->evaluations - 1 : 0;
    dev_text_ratio(&text, evaluated * 1000000, talk->answer_us > 0 ? talk->answer_us : 1, 1);
    dev_text_add(&text, " tokens/s, ");
    dev_text_ratio(&text, talk->read_us * 100, talk->total_us > 0 ? talk->total_us : 1, 0);
    dev_text_add(&text, " % reading, ");
    dev_text_add(&text, ends[talk->end]);
    dev_text_add(&text, "]\n");
    dev_say(dev, buffer);
}

static void run_prompt(struct dev *dev, const char *text, uint32_t len) {
    struct dev_talk talk = {0};
    const int status = dev_talk(dev, text, len, dev->length, dev_say_bytes, &talk);
    if (status == 0) {
        say_end(dev, &talk);
        return;
    }
    dev->suspect = status == TLLM_E_CRC || status == DEV_E_CARD_READ;
    dev_explain(dev, status);
    dev_say(dev, talk.tokens > 0 ? "\n" : "");
    dev_say(dev, dev->sentence);
    dev_say(dev, "\n");
}

void dev_console_line(struct dev *dev) {
    struct dev_line_editor *line = &dev->line;
    dev_say(dev, "\n");
    dev->cancel = false;
    dev->sentence[0] = '\0';
    const bool over = line->over;
    const uint32_t len = line->len;
    line->len = 0;
    line->over = line->ready = false;
    if (over) {
        dev_say(dev, "The line is longer than 2048 bytes; nothing was done. Send it in parts.\n");
    } else if (line->text[0] == '/') {
        run_command(dev, line->text);
    } else if (len > 0) {
        dev->running = true;
        run_prompt(dev, line->text, len);
        dev->running = false;
    }
    dev->cancel = false;
    dev_console_prompt(dev);
}
