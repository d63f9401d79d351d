/*
 * SentencePiece BPE over a tokenizer.bin that is read in place (docs/FORMAT.md).
 *
 * Encoding keeps an agenda of neighbours that make up a piece: a binary heap with one entry for
 * each left neighbour, ordered by rank, then by place. Each merge takes one entry out and looks two
 * up, so that a text of n bytes costs O(n log n) comparisons and O(n * longest piece) bytes hashed.
 */
#include "tinyllm.h"

#include <string.h>

#define HEADER_BYTES 64u
#define PIECE_BYTES  12u
#define N_BYTES      256u
#define NONE         0xFFFFFFFFu
#define MAX_SLOTS    (8u * TLLM_MAX_VOCAB)
#define MAX_RUN      1024u /* used slots in a row: what a look-up costs at worst */

enum flag {
    PREFIX_SPACE = 1,
    BYTE_FALLBACK = 2,
    ADD_BOS = 4
};

enum piece_type {
    NORMAL = 1,
    UNKNOWN = 2,
    CONTROL = 3,
    BYTE = 6
};

static const uint8_t space[3] = {0xE2, 0x96, 0x81};       /* U+2581, a space in pieces */
static const uint8_t replacement[3] = {0xEF, 0xBF, 0xBD}; /* U+FFFD */
static const char unknown_text[] = " \xE2\x81\x87 ";      /* U+2047 between spaces */

struct piece {
    const uint8_t *string;
    uint32_t length, rank;
    uint8_t type;
};

/* Text as pieces spell it: with a space in front, and each space as U+2581, where asked for. */
struct text {
    const uint8_t *bytes;
    uint32_t prefix; /* 1 for the space in front, at position 0; the bytes follow */
    bool escape;
};

static uint32_t get_u16(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

static uint32_t get_u32(const uint8_t *p) {
    return get_u16(p) | get_u16(p + 2) << 16;
}

static struct piece get_piece(const struct tllm_tokenizer *tokenizer, uint32_t id) {
    const uint8_t *entry = tokenizer->pieces + (size_t)id * PIECE_BYTES;
    return (struct piece){
        .string = tokenizer->strings + get_u32(entry),
        .length = get_u16(entry + 4),
        .type = entry[6],
        .rank = get_u32(entry + 8),
    };
}

/*
 * Length of the UTF-8 character at the start of len >= 1 bytes (Unicode 15, table 3-7): 1 to 4;
 * 0 if they start none; -1 if they are the beginning of one.
 */
static int character_length(const uint8_t *bytes, uint32_t len) {
    const uint8_t lead = bytes[0];
    if (lead < 0x80) {
        return 1;
    }
    if (lead < 0xC2 || lead > 0xF4) {
        return 0;
    }
    const uint32_t need = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    const uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    const uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    if (len >= 2 && (bytes[1] < low || bytes[1] > high)) {
        return 0;
    }
    for (uint32_t i = 2; i < need && i < len; i++) {
        if ((bytes[i] & 0xC0) != 0x80) {
            return 0;
        }
    }
    return len < need ? -1 : (int)need;
}

static bool is_utf8(const uint8_t *bytes, uint32_t len) {
    for (uint32_t at = 0; at < len;) {
        const int length = character_length(bytes + at, len - at);
        if (length <= 0) {
            return false;
        }
        at += (uint32_t)length;
    }
    return true;
}

/* The byte that the string `<0xXX>` of a byte piece names, or -1. */
static int byte_value(struct piece piece) {
    static const char digits[] = "0123456789ABCDEF";
    if (piece.length != 6 || memcmp(piece.string, "<0x", 3) != 0 || piece.string[5] != '>') {
        return -1;
    }
    const char *high = memchr(digits, piece.string[3], 16);
    const char *low = memchr(digits, piece.string[4], 16);
    return high && low ? (int)((high - digits) << 4 | (low - digits)) : -1;
}

/* The byte at a position as pieces spell it: 1 byte, or the 3 of U+2581. Returns how many. */
static uint32_t spell(const struct text *text, uint32_t at, const uint8_t **spelt) {
    if (at < text->prefix) {
        *spelt = space;
        return sizeof(space);
    }
    *spelt = text->bytes + (at - text->prefix);
    if (text->escape && **spelt == ' ') {
        *spelt = space;
        return sizeof(space);
    }
    return 1;
}

static bool text_equals(const struct text *text, uint32_t from, uint32_t to, struct piece piece) {
    uint32_t at = 0;
    for (uint32_t i = from; i < to; i++) {
        const uint8_t *spelt;
        const uint32_t n = spell(text, i, &spelt);
        if (n > piece.length - at || memcmp(piece.string + at, spelt, n) != 0) {
            return false;
        }
        at += n;
    }
    return at == piece.length;
}

/* The id of the normal piece that the positions [from, to) spell, or NONE. */
static uint32_t find_piece(const struct tllm_tokenizer *tokenizer, const struct text *text,
                           uint32_t from, uint32_t to) {
    if (to - from > tokenizer->longest) {
        return NONE;
    }
    uint32_t hash = 0x811C9DC5u; /* FNV-1a, 32 bits */
    for (uint32_t i = from; i < to; i++) {
        const uint8_t *spelt;
        const uint32_t n = spell(text, i, &spelt);
        for (uint32_t j = 0; j < n; j++) {
            hash = (hash ^ spelt[j]) * 0x01000193u;
        }
    }
    for (uint32_t slot = hash;; slot++) { /* ends at an empty slot: init has seen one */
        const uint32_t id =
            get_u32(tokenizer->slots + (size_t)(slot & (tokenizer->n_slots - 1)) * 4);
        if (id == NONE || text_equals(text, from, to, get_piece(tokenizer, id))) {
            return id;
        }
    }
}

static uint32_t byte_piece(const struct tllm_tokenizer *tokenizer, uint32_t value) {
    return get_u32(tokenizer->byte_ids + (size_t)value * 4);
}

/* ---- The checks of the file ---- */

static bool is_role_valid(const struct tllm_tokenizer *tokenizer, int32_t id) {
    return id == -1 || (id >= 0 && (uint32_t)id < tokenizer->vocab &&
                        get_piece(tokenizer, (uint32_t)id).type == CONTROL);
}

static bool are_pieces_valid(const struct tllm_tokenizer *tokenizer, uint32_t string_bytes) {
    uint32_t longest = 0, n_unknown = 0, n_bytes = 0;
    for (uint32_t id = 0; id < tokenizer->vocab; id++) {
        const uint8_t *entry = tokenizer->pieces + (size_t)id * PIECE_BYTES;
        const uint32_t offset = get_u32(entry), length = get_u16(entry + 4);
        if (length == 0 || offset > string_bytes || length > string_bytes - offset || entry[7]) {
            return false;
        }
        const struct piece piece = get_piece(tokenizer, id);
        longest = piece.length > longest ? piece.length : longest;
        if (!is_utf8(piece.string, piece.length)) {
            return false;
        }
        switch (piece.type) {
        case NORMAL:
        case CONTROL:
            break;
        case UNKNOWN:
            n_unknown++;
            break;
        case BYTE: {
            const int value = byte_value(piece);
            if (value < 0 || byte_piece(tokenizer, (uint32_t)value) != id) {
                return false;
            }
            n_bytes++;
            break;
        }
        default:
            return false;
        }
    }
    for (uint32_t value = 0; value < N_BYTES; value++) {
        n_bytes -= byte_piece(tokenizer, value) != NONE; /* to 0 if the entries are the pieces */
    }
    const bool fallback = (tokenizer->flags & BYTE_FALLBACK) != 0;
    const bool has_bytes = byte_piece(tokenizer, 0) != NONE;
    for (uint32_t value = 0; value < N_BYTES; value++) {
        if ((byte_piece(tokenizer, value) != NONE) != has_bytes) {
            return false;
        }
    }
    return longest == tokenizer->longest && n_unknown == 1 && n_bytes == 0 && fallback == has_bytes;
}

static bool is_table_valid(const struct tllm_tokenizer *tokenizer) {
    uint32_t run = 0;
    for (uint32_t i = 0; i < tokenizer->n_slots + MAX_RUN + 1; i++) {
        const uint32_t id = get_u32(tokenizer->slots + (size_t)(i & (tokenizer->n_slots - 1)) * 4);
        if (id == NONE) {
            run = 0;
        } else if (id >= tokenizer->vocab || get_piece(tokenizer, id).type != NORMAL ||
                   ++run > MAX_RUN) {
            return false;
        }
    }
    for (uint32_t id = 0; id < tokenizer->vocab; id++) {
        const struct piece piece = get_piece(tokenizer, id);
        const struct text text = {.bytes = piece.string};
        /* A string that two pieces have is found as the lower id. */
        if (piece.type == NORMAL && find_piece(tokenizer, &text, 0, piece.length) > id) {
            return false;
        }
    }
    return true;
}

int tllm_tokenizer_init(struct tllm_tokenizer *tokenizer, const void *data, size_t len) {
    const uint8_t *header = data;
    if (len < HEADER_BYTES || memcmp(header, "TTOK", 4) != 0) {
        return TLLM_E_FORMAT;
    }
    if (get_u16(header + 4) != 1 || get_u16(header + 6) != HEADER_BYTES) {
        return TLLM_E_VERSION;
    }
    const uint32_t vocab = get_u32(header + 12), n_slots = get_u32(header + 16);
    const uint32_t string_bytes = get_u32(header + 20), flags = get_u32(header + 24);
    if (vocab > TLLM_MAX_VOCAB) {
        return TLLM_E_LIMIT;
    }
    if (vocab == 0 || n_slots <= vocab || n_slots > MAX_SLOTS || (n_slots & (n_slots - 1)) != 0) {
        return TLLM_E_FORMAT;
    }
    const uint32_t slots_at = HEADER_BYTES + vocab * PIECE_BYTES;
    const uint32_t byte_ids_at = slots_at + n_slots * 4;
    const uint32_t strings_at = byte_ids_at + N_BYTES * 4;
    if (get_u32(header + 8) != len || len < strings_at || len - strings_at != string_bytes ||
        (flags & ~(uint32_t)(PREFIX_SPACE | BYTE_FALLBACK | ADD_BOS)) != 0) {
        return TLLM_E_FORMAT;
    }
    for (uint32_t i = 44; i < HEADER_BYTES; i++) {
        if (header[i] != 0) {
            return TLLM_E_FORMAT;
        }
    }
    *tokenizer = (struct tllm_tokenizer){
        .vocab = vocab,
        .n_slots = n_slots,
        .flags = flags,
        .longest = get_u32(header + 40),
        .bos = (int32_t)get_u32(header + 28),
        .eos = (int32_t)get_u32(header + 32),
        .unk = (int32_t)get_u32(header + 36),
        .pieces = header + HEADER_BYTES,
        .slots = header + slots_at,
        .byte_ids = header + byte_ids_at,
        .strings = header + strings_at,
    };
    if (!are_pieces_valid(tokenizer, string_bytes) || !is_role_valid(tokenizer, tokenizer->bos) ||
        !is_role_valid(tokenizer, tokenizer->eos) || tokenizer->unk < 0 ||
        (uint32_t)tokenizer->unk >= vocab ||
        get_piece(tokenizer, (uint32_t)tokenizer->unk).type != UNKNOWN ||
        ((flags & ADD_BOS) != 0 && tokenizer->bos < 0) || !is_table_valid(tokenizer)) {
        *tokenizer = (struct tllm_tokenizer){0};
        return TLLM_E_FORMAT;
    }
    return TLLM_OK;
}

/* ---- Encoding ---- */

/* A run of text that is one piece, or one character; it is named by the position it starts at. */
struct symbol {
    uint32_t next;  /* where it ends and the next one starts */
    uint32_t prev;  /* NONE for the first */
    uint32_t rank;  /* of the piece that it makes up with the next one, if it is on the agenda */
    uint32_t place; /* on the agenda, or NONE */
};

struct encoder {
    const struct tllm_tokenizer *tokenizer;
    struct text text;
    uint32_t end;           /* positions */
    struct symbol *symbols; /* end */
    uint32_t *agenda;       /* end: a heap of symbols */
    uint32_t n_agenda;
};

size_t tllm_encode_scratch(uint32_t text_bytes) {
    const size_t each = sizeof(struct symbol) + sizeof(uint32_t);
    return text_bytes < SIZE_MAX / each ? ((size_t)text_bytes + 1) * each : SIZE_MAX;
}

static bool is_before(const struct encoder *encoder, uint32_t a, uint32_t b) {
    const uint32_t rank_a = encoder->symbols[a].rank, rank_b = encoder->symbols[b].rank;
    return rank_a < rank_b || (rank_a == rank_b && a < b);
}

static void put(struct encoder *encoder, uint32_t place, uint32_t symbol) {
    encoder->agenda[place] = symbol;
    encoder->symbols[symbol].place = place;
}

/* Moves the symbol at a place of the agenda to where it belongs. */
static void settle(struct encoder *encoder, uint32_t place) {
    const uint32_t symbol = encoder->agenda[place];
    while (place > 0 && is_before(encoder, symbol, encoder->agenda[(place - 1) / 2])) {
        put(encoder, place, encoder->agenda[(place - 1) / 2]);
        place = (place - 1) / 2;
    }
    for (;;) {
        uint32_t child = 2 * place + 1;
        if (child + 1 < encoder->n_agenda &&
            is_before(encoder, encoder->agenda[child + 1], encoder->agenda[child])) {
            child++;
        }
        if (child >= encoder->n_agenda || !is_before(encoder, encoder->agenda[child], symbol)) {
            break;
        }
        put(encoder, place, encoder->agenda[child]);
        place = child;
    }
    put(encoder, place, symbol);
}

static void remove_symbol(struct encoder *encoder, uint32_t symbol) {
    const uint32_t place = encoder->symbols[symbol].place;
    if (place == NONE) {
        return;
    }
    encoder->symbols[symbol].place = NONE;
    const uint32_t last = encoder->agenda[--encoder->n_agenda];
    if (last != symbol) {
        put(encoder, place, last);
        settle(encoder, place);
    }
}

/* Looks up what a symbol makes up with the next one, and has the agenda say so. */
static void update_symbol(struct encoder *encoder, uint32_t at) {
    struct symbol *symbol = &encoder->symbols[at];
    const uint32_t id = symbol->next == encoder->end
                            ? NONE
                            : find_piece(encoder->tokenizer, &encoder->text, at,
                                         encoder->symbols[symbol->next].next);
    if (id == NONE) {
        remove_symbol(encoder, at);
        return;
    }
    symbol->rank = get_piece(encoder->tokenizer, id).rank;
    if (symbol->place == NONE) {
        put(encoder, encoder->n_agenda++, at);
    }
    settle(encoder, symbol->place);
}

static int split_characters(struct encoder *encoder, uint32_t len) {
    uint32_t at = 0, prev = NONE;
    while (at < encoder->end) {
        int length = 1;
        if (at >= encoder->text.prefix) {
            const uint32_t offset = at - encoder->text.prefix;
            length = character_length(encoder->text.bytes + offset, len - offset);
        }
        if (length <= 0) {
            return TLLM_E_UTF8;
        }
        encoder->symbols[at] =
            (struct symbol){.next = at + (uint32_t)length, .prev = prev, .place = NONE};
        prev = at;
        at += (uint32_t)length;
    }
    return TLLM_OK;
}

static void merge_symbols(struct encoder *encoder) {
    struct symbol *symbols = encoder->symbols;
    for (uint32_t at = 0; at < encoder->end; at = symbols[at].next) {
        update_symbol(encoder, at);
    }
    while (encoder->n_agenda > 0) {
        const uint32_t left = encoder->agenda[0], right = symbols[left].next;
        remove_symbol(encoder, right);
        symbols[left].next = symbols[right].next;
        if (symbols[left].next < encoder->end) {
            symbols[symbols[left].next].prev = left;
        }
        update_symbol(encoder, left);
        if (symbols[left].prev != NONE) {
            update_symbol(encoder, symbols[left].prev);
        }
    }
}

int32_t tllm_encode(const struct tllm_tokenizer *tokenizer, const char *text, uint32_t len,
                    uint32_t *out, uint32_t max_out, void *scratch, size_t scratch_bytes) {
    if (len == 0) {
        return 0;
    }
    if (len > INT32_MAX / 4 || scratch_bytes < tllm_encode_scratch(len)) {
        return TLLM_E_TOO_LONG; /* 4 tokens at most for a position: the count fits */
    }
    if ((uintptr_t)scratch % _Alignof(struct symbol) != 0) {
        return TLLM_E_ARG;
    }
    const uint32_t prefix = (tokenizer->flags & PREFIX_SPACE) != 0 ? 1 : 0;
    struct encoder encoder = {
        .tokenizer = tokenizer,
        .text = {.bytes = (const uint8_t *)text, .prefix = prefix, .escape = true},
        .end = len + prefix,
        .symbols = scratch,
    };
    encoder.agenda = (uint32_t *)(encoder.symbols + encoder.end);
    const int error = split_characters(&encoder, len);
    if (error != TLLM_OK) {
        return error;
    }
    merge_symbols(&encoder);

    const bool fallback = (tokenizer->flags & BYTE_FALLBACK) != 0;
    uint32_t n = 0;
    bool after_unknown = false;
    for (uint32_t at = 0; at < encoder.end; at = encoder.symbols[at].next) {
        const uint32_t next = encoder.symbols[at].next;
        const uint32_t id = find_piece(tokenizer, &encoder.text, at, next);
        if (id == NONE && fallback) {
            for (uint32_t i = at; i < next; i++) {
                const uint8_t *spelt;
                const uint32_t count = spell(&encoder.text, i, &spelt);
                if (count > max_out - n) {
                    return TLLM_E_TOO_LONG;
                }
                for (uint32_t j = 0; j < count; j++) {
                    out[n++] = byte_piece(tokenizer, spelt[j]);
                }
            }
            continue;
        }
        if (id != NONE || !after_unknown) {
            if (n == max_out) {
                return TLLM_E_TOO_LONG;
            }
            out[n++] = id != NONE ? id : (uint32_t)tokenizer->unk;
        }
        after_unknown = id == NONE;
    }
    return (int32_t)n;
}

/* ---- Decoding ---- */

void tllm_decode_start(struct tllm_decoder *decoder, const struct tllm_tokenizer *tokenizer,
                       bool at_start) {
    *decoder = (struct tllm_decoder){
        .tokenizer = tokenizer,
        .strip = at_start && (tokenizer->flags & PREFIX_SPACE) != 0,
    };
}

static uint32_t put_replacement(char *out, uint32_t n) {
    memcpy(out + n, replacement, sizeof(replacement));
    return n + (uint32_t)sizeof(replacement);
}

/* Gives out what the held bytes are for certain; they stay the beginning of one character. */
static uint32_t release(struct tllm_decoder *decoder, char *out) {
    uint32_t n = 0;
    while (decoder->n_held > 0) {
        const int length = character_length(decoder->held, decoder->n_held);
        if (length < 0) {
            break;
        }
        const uint32_t used = length > 0 ? (uint32_t)length : 1;
        if (length > 0) {
            memcpy(out + n, decoder->held, used);
            n += used;
        } else {
            n = put_replacement(out, n);
        }
        decoder->n_held = (uint8_t)(decoder->n_held - used);
        memmove(decoder->held, decoder->held + used, decoder->n_held);
    }
    return n;
}

int32_t tllm_decode_end(struct tllm_decoder *decoder, char *out, uint32_t max_out) {
    if (max_out < decoder->n_held * sizeof(replacement)) {
        return TLLM_E_TOO_LONG;
    }
    uint32_t n = 0;
    for (; decoder->n_held > 0; decoder->n_held--) {
        n = put_replacement(out, n);
    }
    return (int32_t)n;
}

int32_t tllm_decode(struct tllm_decoder *decoder, uint32_t token, char *out, uint32_t max_out) {
    const struct tllm_tokenizer *tokenizer = decoder->tokenizer;
    if (token >= tokenizer->vocab) {
        return TLLM_E_ARG;
    }
    struct piece piece = get_piece(tokenizer, token);
    if (piece.type == CONTROL) {
        piece.length = 0;
    } else if (piece.type == UNKNOWN) {
        piece.string = (const uint8_t *)unknown_text;
        piece.length = sizeof(unknown_text) - 1;
    } else if (piece.type == BYTE) {
        piece.length = sizeof(replacement);
    }
    if (max_out < decoder->n_held * sizeof(replacement) + piece.length) {
        return TLLM_E_TOO_LONG;
    }
    if (piece.type == BYTE) {
        decoder->strip = false;
        decoder->held[decoder->n_held++] = (uint8_t)byte_value(get_piece(tokenizer, token));
        return (int32_t)release(decoder, out);
    }

    uint32_t n = (uint32_t)tllm_decode_end(decoder, out, max_out);
    for (uint32_t i = 0; i < piece.length;) {
        const bool is_space = piece.length - i >= sizeof(space) &&
                              memcmp(piece.string + i, space, sizeof(space)) == 0;
        if (piece.type == NORMAL && is_space) {
            if (i > 0 || !decoder->strip) {
                out[n++] = ' ';
            }
            i += (uint32_t)sizeof(space);
        } else {
            out[n++] = (char)piece.string[i++];
        }
    }
    decoder->strip = decoder->strip && piece.type == CONTROL;
    return (int32_t)n;
}
