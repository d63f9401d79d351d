/*
 * tinyllm: a Llama-family language model in integer arithmetic, for microcontrollers.
 *
 * Portable C11: no allocation, no stdio, no floating point, no threads, no global state. All state
 * lives in structs that the caller owns; the world is reached through struct tllm_port.
 * docs/NUMERICS.md specifies every result bit for bit, docs/FORMAT.md the files.
 */
#ifndef TINYLLM_H
#define TINYLLM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TLLM_VERSION "0.1.0"

#if defined(__GNUC__)
#define TLLM_MUST_CHECK __attribute__((warn_unused_result))
#else
#define TLLM_MUST_CHECK
#endif

/* Errors are negative. A port's own negative codes pass through unchanged from -100 downwards. */
enum tllm_error {
    TLLM_OK = 0,
    TLLM_E_ARG = -1,       /* an argument is out of its stated range */
    TLLM_E_FORMAT = -2,    /* a file is not of the format it should be */
    TLLM_E_VERSION = -3,   /* a format version this build does not know */
    TLLM_E_CRC = -4,       /* bytes read do not have the CRC-32 the package states */
    TLLM_E_IO = -5,        /* a read failed or came short */
    TLLM_E_FAST = -6,      /* the fast region is too small */
    TLLM_E_BULK = -7,      /* the bulk region is too small */
    TLLM_E_CONTEXT = -8,   /* the context is full */
    TLLM_E_CANCELLED = -9, /* yield or the port asked to stop */
    TLLM_E_UTF8 = -10,     /* text is not valid UTF-8 */
    TLLM_E_TOO_LONG = -11, /* text or prompt is longer than the context (or the buffer) allows */
    TLLM_E_LIMIT = -12,    /* a dimension is beyond what this build supports */
};

/* Limits that docs/NUMERICS.md proves its bounds with. */
#define TLLM_MAX_COLUMNS  65536u
#define TLLM_MAX_HIDDEN   32768u
#define TLLM_MAX_HEAD_DIM 256u
#define TLLM_MAX_CONTEXT  65535u
#define TLLM_MAX_BATCH    32u
#define TLLM_MAX_PARTS    8u
#define TLLM_MAX_VOCAB    131072u
#define TLLM_CHUNK 4096u /* bytes that one CRC-32 covers, and the alignment of streamed reads */

/* A positive real m * 2^e, 2^23 <= m < 2^24. */
struct tllm_scale {
    uint32_t m;
    int32_t e;
};

/* One file of the package. */
struct tllm_file {
    char name[32]; /* NUL-terminated */
    uint32_t size; /* bytes */
    uint32_t
        first_crc; /* index of its first chunk in tllm_model.crcs; ceil(size / TLLM_CHUNK) chunks */
    uint32_t crc;  /* CRC-32 of the whole file */
};

enum tllm_dtype {
    TLLM_INT8 = 1,
    TLLM_INT16 = 2
};

/* One tensor: rows x cols, row-major, inside one file. */
struct tllm_tensor {
    uint16_t file; /* index in tllm_model.files */
    uint8_t dtype; /* enum tllm_dtype */
    uint32_t rows, cols;
    uint32_t offset; /* bytes into the file */
    struct tllm_scale scale;
};

/* The order of tllm_model.tensors: embedding, 9 for each layer in this order, final norm, head. */
enum tllm_layer_tensor {
    TLLM_NORM1,
    TLLM_Q_PROJ,
    TLLM_K_PROJ,
    TLLM_V_PROJ,
    TLLM_O_PROJ,
    TLLM_NORM2,
    TLLM_GATE_PROJ,
    TLLM_UP_PROJ,
    TLLM_DOWN_PROJ,
    TLLM_LAYER_TENSORS
};
#define TLLM_EMBED               0u
#define TLLM_LAYER(layer, which) (1u + (uint32_t)(layer) * TLLM_LAYER_TENSORS + (uint32_t)(which))
#define TLLM_FINAL_NORM(model)   (1u + (model)->layers * TLLM_LAYER_TENSORS)
#define TLLM_HEAD(model)         (2u + (model)->layers * TLLM_LAYER_TENSORS)

/*
 * Everything about a model but its weights: from a generated header (const, in flash) or from
 * tllm_descriptor_parse. The arrays are not owned.
 */
struct tllm_model {
    char name[32];
    uint8_t fingerprint[32]; /* SHA-256 of the package */
    uint32_t vocab, hidden, layers, heads, kv_heads, head_dim, ffn, context;
    int32_t bos, eos; /* token ids, -1 for none */
    bool add_bos;
    uint32_t eps_m; /* RMSNorm's epsilon: eps_m * 2^eps_e */
    int32_t eps_e;
    struct tllm_scale attn_scale; /* log2(e) / sqrt(head_dim) */
    uint32_t n_files, n_tensors, n_crcs;
    uint16_t tokenizer_file;
    const struct tllm_file *files;
    const struct tllm_tensor *tensors;
    const uint32_t *rope_freq; /* head_dim / 2 */
    const uint32_t *crcs;
};

/*
 * The seam. Only `read` is required; any other member may be NULL.
 * Files are indices in tllm_model.files.
 */
struct tllm_port {
    void *ctx; /* passed back, never looked at */

    /*
     * Bytes [offset, offset + len) of a file into dst. 0 or a negative error; a short read is an
     * error. For streamed weights and embedding rows offset is a multiple of TLLM_CHUNK, dst is
     * 64-byte aligned and has room for len rounded up to 512 bytes, all of which may be written.
     * A port that returns TLLM_E_CANCELLED while dst is still written to has its owner wait for
     * that before the engine is called again or its memory is used for anything else.
     */
    int (*read)(void *ctx, uint32_t file, uint32_t offset, void *dst, uint32_t len);

    /*
     * Start the read that a later `read` with the same arguments will finish. dst must not be
     * touched until then. At most one is pending; another `read` or `prefetch` abandons it, and
     * returns only once dst of the abandoned one is no longer written to.
     */
    void (*prefetch)(void *ctx, uint32_t file, uint32_t offset, void *dst, uint32_t len);

    /*
     * Where bytes [offset, offset + len) of a file lie in memory, already CRC-checked, or NULL if
     * any of them do not. The pointer stays valid while the engine lives.
     */
    const void *(*map)(void *ctx, uint32_t file, uint32_t offset, uint32_t len);

    /* Call fn(arg, part, parts) for each part < parts, side by side; return when all are done. */
    void (*parallel)(void *ctx, void (*fn)(void *arg, uint32_t part, uint32_t parts), void *arg,
                     uint32_t parts);

    /* Microseconds from any start; wraps at 2^64. For statistics alone. */
    uint64_t (*now_us)(void *ctx);

    /* Called at least once for each 32 KB of weights, or row of more, for each token's attention in
     * a layer, and for each 1,024 tokens that the sampler puts in order: feeds a watchdog. Non-zero
     * cancels. */
    int (*yield)(void *ctx);
};

/* What the stages of docs/NUMERICS.md section 4 are called; 1 to 11 are once a layer. */
enum tllm_stage {
    TLLM_STAGE_EMBED,
    TLLM_STAGE_ATTN_NORM,
    TLLM_STAGE_Q,
    TLLM_STAGE_K,
    TLLM_STAGE_V,
    TLLM_STAGE_ATTN,
    TLLM_STAGE_ATTN_OUT,
    TLLM_STAGE_FFN_NORM,
    TLLM_STAGE_GATE,
    TLLM_STAGE_UP,
    TLLM_STAGE_ACT,
    TLLM_STAGE_FFN_OUT,
    TLLM_STAGE_FINAL_NORM,
    TLLM_STAGE_LOGITS,
    TLLM_STAGES
};

/*
 * An activation as a stage left it: n mantissas of `bytes` (2 or 4) each at `data`, and the
 * exponent. Valid during the call only.
 */
struct tllm_activation {
    enum tllm_stage stage;
    uint32_t layer; /* 0 for the stages outside layers */
    uint32_t pos;
    const void *data;
    uint32_t n, bytes;
    int32_t exponent;
};

struct tllm_trace {
    void *ctx;
    void (*stage)(void *ctx, const struct tllm_activation *activation);
};

/* CRC-32 of an activation, as docs/NUMERICS.md section 6 defines it. */
uint32_t tllm_activation_crc(const struct tllm_activation *activation);

struct tllm_config {
    const struct tllm_model *model;
    const struct tllm_port *port;
    uint32_t context; /* positions; 0 = the model's */
    uint32_t batch;   /* prompt tokens that share one pass over the weights, 1..32; 0 = 8 */
    uint32_t
        chunk; /* bytes of one streaming buffer (two are used), multiple of TLLM_CHUNK; 0 = 32768 */
    uint32_t parts;      /* parts handed to port->parallel, 1..8; 0 = 1 */
    bool check_streamed; /* verify the CRC-32 of every chunk that `read` brings */
};

/* Bytes that tllm_init needs in each region (regions 64-byte aligned). */
struct tllm_size {
    size_t fast;
    size_t bulk;
};
int tllm_size(const struct tllm_config *config, struct tllm_size *size) TLLM_MUST_CHECK;

struct tllm_stats {
    uint64_t read_bytes;   /* brought by port->read */
    uint64_t mapped_bytes; /* weights used in place */
    uint64_t read_us;      /* time inside read and prefetch */
    uint64_t total_us;     /* time inside tllm_feed */
    uint64_t head_us;      /* of it in the head */
    uint32_t tokens;       /* evaluated */
};

/* Where an I/O or CRC error happened. */
struct tllm_fault {
    uint32_t file, offset, len;
};

/* The engine's state. The members are the engine's own but for those marked readable. */
struct tllm_engine {
    const struct tllm_model *model;
    const struct tllm_port *port;
    const struct tllm_trace *trace; /* may be set at any time between calls; NULL for none */
    uint32_t context, batch, chunk, parts;
    bool check_streamed;
    uint32_t n_past;         /* readable: positions in the KV cache */
    int32_t *logits;         /* readable after tllm_feed with want_logits: vocab mantissas */
    int32_t logits_exponent; /* readable */
    struct tllm_stats stats; /* readable; clear it at will */
    struct tllm_fault fault; /* readable after TLLM_E_IO, TLLM_E_CRC or a port's error */
    uint32_t *heap;          /* vocab indices, for the sampler (bulk) */
    struct tllm_private {
        uint8_t *buffer[2];              /* streaming: chunk bytes each */
        uint8_t *row;                    /* one row that straddles two windows */
        int16_t *norm;                   /* hidden: one norm's weights */
        int16_t *x;                      /* batch x max(hidden, heads * head_dim, ffn) */
        int16_t *q;                      /* batch x heads * head_dim */
        int32_t *residual;               /* batch x hidden */
        int32_t *a;                      /* batch x max(hidden, heads * head_dim, ffn) */
        int32_t *b;                      /* batch x ffn */
        int64_t *attention;              /* parts x head_dim */
        int32_t *x_e, *q_e, *residual_e; /* batch exponents each */
        int32_t *a_e, *b_e;              /* batch exponents each */
        int16_t *k_cache, *v_cache;      /* bulk: layers x context x kv_heads * head_dim */
        int16_t *k_e, *v_e;              /* bulk: layers x context exponents */
        int32_t *scores;                 /* bulk: parts x context */
        uint32_t ahead_tensor, ahead;    /* where to look for the next window to prefetch */
        uint32_t end_tensor;             /* the first tensor that this pass does not need */
        uint32_t pending_file, pending_at, pending_len; /* the prefetch under way, if any */
        uint32_t buffer_used; /* the buffer last read or prefetched into */
    } p;
};

/*
 * Sets an engine up in the two regions (each 64-byte aligned, owned by the caller for the
 * engine's life). Checks the model against the limits and the tensors against their files.
 */
int tllm_init(struct tllm_engine *engine, const struct tllm_config *config, void *fast,
              size_t fast_bytes, void *bulk, size_t bulk_bytes) TLLM_MUST_CHECK;

/*
 * Evaluates n tokens at positions n_past.., in batches. With want_logits the last token's logits
 * are left in engine->logits. On an error n_past is the last position whose cache is whole, so
 * the same tokens can be fed again.
 */
int tllm_feed(struct tllm_engine *engine, const uint32_t *tokens, uint32_t n,
              bool want_logits) TLLM_MUST_CHECK;

/* Forgets positions from n_past on (n_past <= engine->n_past). */
void tllm_rewind(struct tllm_engine *engine, uint32_t n_past);

/* ---- sampling ---- */

struct tllm_sampling {
    uint32_t temperature; /* Q16; 0 is greedy, else 655..6553600 */
    uint32_t top_k;       /* 0 is off */
    uint32_t top_p;       /* Q16; >= 65536 is off */
    uint32_t penalty;     /* Q16, 65536 (off) to 131072 */
};

struct tllm_rng {
    uint64_t state; /* the seed, at the start */
};

uint32_t tllm_rng_next(struct tllm_rng *rng);

/*
 * The next token from engine->logits (which it may change in place). history: the session's
 * tokens, of which the last 64 are penalised. Returns the id or a negative error: after
 * TLLM_E_CANCELLED the logits are spent.
 */
int32_t tllm_sample(struct tllm_engine *engine, const struct tllm_sampling *sampling,
                    struct tllm_rng *rng, const uint32_t *history,
                    uint32_t n_history) TLLM_MUST_CHECK;

/* ---- descriptor (docs/FORMAT.md) ---- */

/* Bytes of storage that the arrays of a descriptor need, or a negative error. Reads the header
 * alone (160 bytes). */
int32_t tllm_descriptor_storage(const void *data, size_t len) TLLM_MUST_CHECK;

/* Checks everything and fills the model; storage is 8-byte aligned and outlives the model. */
int tllm_descriptor_parse(const void *data, size_t len, struct tllm_model *model, void *storage,
                          size_t storage_bytes) TLLM_MUST_CHECK;

/* The checks on a model's facts alone; tllm_init and tllm_descriptor_parse call it. */
int tllm_model_check(const struct tllm_model *model) TLLM_MUST_CHECK;

/* ---- tokenizer (docs/FORMAT.md) ---- */

struct tllm_tokenizer {
    uint32_t vocab, n_slots, flags;
    uint32_t longest;                                   /* bytes of the longest piece */
    int32_t bos, eos, unk;                              /* ids, -1 for none */
    const uint8_t *pieces, *slots, *byte_ids, *strings; /* in the data, mapped */
};

/* data must stay in place; everything in it is checked here, once. */
int tllm_tokenizer_init(struct tllm_tokenizer *tokenizer, const void *data,
                        size_t len) TLLM_MUST_CHECK;

/* Bytes of scratch that encoding a text of at most text_bytes needs (4-byte aligned). */
size_t tllm_encode_scratch(uint32_t text_bytes);

/*
 * SentencePiece BPE encode (no BOS added). Returns the number of tokens written to out, or
 * TLLM_E_UTF8, TLLM_E_TOO_LONG (out or scratch too small), TLLM_E_ARG (scratch not aligned).
 */
int32_t tllm_encode(const struct tllm_tokenizer *tokenizer, const char *text, uint32_t len,
                    uint32_t *out, uint32_t max_out, void *scratch,
                    size_t scratch_bytes) TLLM_MUST_CHECK;

/*
 * Streaming decode: whole UTF-8 characters only; bytes that are not UTF-8 become U+FFFD, one a
 * byte. tllm_decode_start(at_start): at_start strips the prefix space of the very first piece.
 */
struct tllm_decoder {
    const struct tllm_tokenizer *tokenizer;
    uint8_t held[4]; /* an incomplete character from byte pieces */
    uint8_t n_held;
    bool strip; /* the next piece is the text's first */
};
void tllm_decode_start(struct tllm_decoder *decoder, const struct tllm_tokenizer *tokenizer,
                       bool at_start);
/*
 * Text of one token into out; returns the number of bytes, or TLLM_E_ARG (no such token),
 * TLLM_E_TOO_LONG (out too small; nothing has changed). tokenizer->longest + 14 is always enough.
 */
int32_t tllm_decode(struct tllm_decoder *decoder, uint32_t token, char *out,
                    uint32_t max_out) TLLM_MUST_CHECK;
/* What is still held, as U+FFFD. */
int32_t tllm_decode_end(struct tllm_decoder *decoder, char *out, uint32_t max_out) TLLM_MUST_CHECK;

/* ---- session (docs/NUMERICS.md section 7) ---- */

enum tllm_context_policy {
    TLLM_CONTEXT_STOP,
    TLLM_CONTEXT_DROP
};
enum tllm_end {
    TLLM_END_NONE,
    TLLM_END_STOP_TOKEN,
    TLLM_END_LENGTH,
    TLLM_END_CONTEXT,
    TLLM_END_CANCELLED
};

struct tllm_session {
    struct tllm_engine *engine;
    uint32_t *tokens;    /* engine->context of them, caller's */
    uint8_t *turn_start; /* engine->context of them, caller's: 1 where a turn begins */
    uint32_t n;
    enum tllm_context_policy policy;
    struct tllm_sampling sampling;
    struct tllm_rng rng;
};

void tllm_session_init(struct tllm_session *session, struct tllm_engine *engine, uint32_t *tokens,
                       uint8_t *turn_start);
void tllm_session_reset(struct tllm_session *session);

/* Appends a prompt's tokens as a new turn (BOS in front where section 7 says so). Evaluates
 * nothing. */
int tllm_session_prompt(struct tllm_session *session, const uint32_t *tokens,
                        uint32_t n) TLLM_MUST_CHECK;

/*
 * Evaluates what is not yet evaluated and samples one token. 1: *token is set; 0: the answer has
 * ended, *end says why; negative: an error, after which calling again goes on from the same place.
 */
int tllm_session_next(struct tllm_session *session, uint32_t *token,
                      enum tllm_end *end) TLLM_MUST_CHECK;

/* ---- CRC-32 (IEEE 802.3, as zlib) ---- */
uint32_t tllm_crc32(uint32_t crc, const void *data, size_t len); /* crc: 0 to start */

#ifdef __cplusplus
}
#endif

#endif
