/* What the device program's files share among themselves. */
#ifndef TLLM_DEVICE_INTERNAL_H
#define TLLM_DEVICE_INTERNAL_H

#include "device.h"

#include <string.h>

/* ---- bytes and text (text.c) ---- */

uint16_t dev_get_u16(const uint8_t *bytes);
uint32_t dev_get_u32(const uint8_t *bytes);
uint64_t dev_get_u64(const uint8_t *bytes);
void dev_set_u32(uint8_t *bytes, uint32_t value);
void dev_set_u64(uint8_t *bytes, uint64_t value);

void dev_text_start(struct dev_text *text, char *at, uint32_t room);
void dev_text_bytes(struct dev_text *text, const char *bytes, uint32_t len);
void dev_text_add(struct dev_text *text, const char *string);
void dev_text_number(struct dev_text *text, uint64_t number);
void dev_text_signed(struct dev_text *text, int64_t number);
/* numerator / denominator, rounded, with so many decimals (at most 3). */
void dev_text_ratio(struct dev_text *text, uint64_t numerator, uint64_t denominator,
                    uint32_t decimals);
void dev_text_hex(struct dev_text *text, const uint8_t *bytes, uint32_t n);
void dev_json_string(struct dev_text *text, const char *key, const char *value);
void dev_json_number(struct dev_text *text, const char *key, uint64_t value);

/* A decimal such as "0.85" as Q16, rounded to the nearest; false if it is none or >= 65536. */
bool dev_parse_q16(const char *string, uint32_t *q16);
bool dev_parse_number(const char *string, uint64_t *number);

/* ---- frames (frame.c) ---- */

void dev_frame_reset(struct dev_frame *frame);
/* Sends one frame; the payload is in two parts. */
void dev_send(struct dev *dev, uint8_t type, uint8_t seq, const void *head, uint32_t head_len,
              const void *body, uint32_t body_len);

enum dev_request {
    DEV_HELLO = 0x01,
    DEV_INFO = 0x02,
    DEV_REBOOT = 0x03,
    DEV_BAUD = 0x04,
    DEV_STOP = 0x05,
    DEV_PART = 0x06,
    DEV_SESSION = 0x10,
    DEV_SAMPLING = 0x11,
    DEV_GENERATE = 0x12,
    DEV_FEED = 0x13,
    DEV_CAPTURE = 0x14,
    DEV_SAMPLE = 0x15,
    DEV_ENCODE = 0x16,
    DEV_DECODE = 0x17,
    DEV_STATS = 0x18,
    DEV_REWIND = 0x19,
    DEV_TEXT_AGAIN = 0x1a,
    DEV_STAT = 0x20,
    DEV_SUMS = 0x21,
    DEV_OPEN = 0x22,
    DEV_DATA = 0x23,
    DEV_POLL = 0x24,
    DEV_CLOSE = 0x25,
    DEV_COMMIT = 0x26,
    DEV_LIST = 0x27,
    DEV_REMOVE = 0x28,
    DEV_SPACE = 0x29,
    DEV_READ_TEST = 0x30,
    DEV_CHECK = 0x31,
    DEV_EVENT = 0x40,
    DEV_ANSWER = 0x80,
};

/* A request's work: its answer's payload goes after the status, by dev_put. Returns the status. */
typedef int dev_handler(struct dev *dev, const uint8_t *payload, uint32_t len);

/* Room in the answer behind what is there, or NULL: there is none left. */
uint8_t *dev_put(struct dev *dev, uint32_t len);
void dev_put_u32(struct dev *dev, uint32_t value);
void dev_put_u64(struct dev *dev, uint64_t value);
/* Bytes of payload that still fit the answer. */
uint32_t dev_answer_room(const struct dev *dev);

dev_handler dev_on_session, dev_on_sampling, dev_on_generate, dev_on_feed, dev_on_capture,
    dev_on_sample, dev_on_encode, dev_on_decode, dev_on_stats, dev_on_rewind, dev_on_info;
dev_handler dev_on_stat, dev_on_sums, dev_on_open, dev_on_poll, dev_on_close, dev_on_commit,
    dev_on_list, dev_on_remove, dev_on_space, dev_on_read_test, dev_on_check;
/* The path of a name that came over the line, or DEV_E_NAME. */
int dev_name_path(struct dev *dev, const uint8_t *name, uint32_t len, const char *suffix,
                  char *path);
void dev_on_data(struct dev *dev, const uint8_t *payload, uint32_t len);

/* ---- what a bad line lost (again.c) ---- */

/* An answer that is a status and its words, for a request that is not begun. */
void dev_answer_plainly(struct dev *dev, uint8_t type, uint8_t seq, int status);
/* Answers STOP, TEXT and PART, which never become the last request answered; false for others. */
bool dev_answer_at_once(struct dev *dev, uint8_t type, uint8_t seq, const uint8_t *payload,
                        uint32_t len);
/* Begins the text of a GENERATE, and adds to it. */
void dev_said_start(struct dev *dev);
void dev_said_add(struct dev *dev, const char *text, uint32_t len);

/* ---- what went wrong (sentences.c) ---- */

/* Begins the sentence that goes with a negative status, and returns where to write it. */
struct dev_text *dev_error(struct dev *dev);
/* Sets the sentence to a plain text and returns status. */
int dev_fail(struct dev *dev, int status, const char *sentence);
/* Words for a status that has no sentence yet; returns status. */
int dev_explain(struct dev *dev, int status);
/* The words of a status alone, or NULL. */
const char *dev_words(int status);

/* ---- device.c ---- */

uint64_t dev_now(struct dev *dev);
/* Looks at the line while something runs, and feeds the watchdog. Non-zero: stop. */
int dev_busy(struct dev *dev);
/* Waits for what was given up, before its memory and the card are used again. 0, or
 * TLLM_E_CANCELLED: it still goes on. */
int dev_settle(struct dev *dev);
/* 64-byte aligned. NULL past the end, where `used` goes on counting what would be needed. */
void *dev_take(struct dev_arena *arena, size_t bytes);
size_t dev_room(const struct dev_arena *arena);

/* ---- the console (console.c) ---- */

#define DEV_CTRL_C 0x03
void dev_console_byte(struct dev *dev, uint8_t byte);
void dev_console_line(struct dev *dev); /* runs the line that is ready */
void dev_console_prompt(struct dev *dev);
/* Text of our own, '\n' as CR LF. */
void dev_say(struct dev *dev, const char *string);
void dev_say_bytes(struct dev *dev, const char *bytes, uint32_t len);
/* Boot and loading messages: as dev_say, but only where no frames are spoken. */
void dev_report(struct dev *dev, const char *string);

/* ---- an answer (talk.c) ---- */

struct dev_talk {
    enum tllm_end end;
    uint32_t prompt_tokens, tokens, evaluations;
    uint64_t prompt_us, answer_us, read_us, total_us, read_bytes;
};

/* Prompt (if len > 0) and answer of at most n tokens (0: no limit); emit gets whole characters. */
int dev_talk(struct dev *dev, const char *text, uint32_t len, uint32_t n,
             void (*emit)(struct dev *dev, const char *text, uint32_t len), struct dev_talk *talk);
/* tllm_feed and the like again where the card gave wrong bytes: calls until it is 0 or hopeless. */
bool dev_try_again(struct dev *dev, int status, uint32_t *tries);

/* ---- the card (card.c) ---- */

/* 0, DEV_E_NO_CARD (mount_status says more) or TLLM_E_CANCELLED. */
int dev_card_mount(struct dev *dev, bool slower);
void dev_card_gone(struct dev *dev);
void dev_close_handles(struct dev *dev);
/* Reads of one open file, tried three times; all of len or an error. */
int dev_file_read(struct dev *dev, int file, uint32_t offset, void *dst, uint32_t len);
/* One of the model's files: tried three times, then again after a slower mount. */
int dev_model_read(struct dev *dev, uint32_t file, uint32_t offset, void *dst, uint32_t len);
void dev_card_port(struct dev *dev); /* fills dev->engine_port */
void dev_package_path(char *path, const char *dir, const char *name);
void dev_package_dir(char *dir, const uint8_t *fingerprint);

struct dev_slots {
    bool valid[2];
    uint32_t sequence[2];
    uint8_t fingerprint[2][32];
    uint32_t newest; /* the current model's, if it is valid */
};
int dev_slots_read(struct dev *dev, struct dev_slots *slots);
int dev_slots_switch(struct dev *dev, const uint8_t *fingerprint);

/* ---- the model (loader.c) ---- */

/* Loads the current model; the state and load_error say how it went. */
void dev_load(struct dev *dev);
/* Loads the package in dir, whose fingerprint must be the one given (NULL: any). */
int dev_load_from(struct dev *dev, const char *dir, const uint8_t *fingerprint);
void dev_unload(struct dev *dev);
/* Whether the card still holds the model that is loaded; a negative error where it cannot be read.
 */
int dev_still_there(struct dev *dev);
/* Sets the engine up anew in its regions: nothing is evaluated any more, the session stays. */
int dev_engine_start(struct dev *dev);

#endif
