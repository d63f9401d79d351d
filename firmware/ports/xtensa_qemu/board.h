/* The emulated machine as a board. */
#ifndef XQ_BOARD_H
#define XQ_BOARD_H

#include "device.h"

/* Boots the board's program with a folder of this computer as its card, which it only reads. */
int xq_boot(struct dev *dev, const char *card) TLLM_MUST_CHECK;

/* Boots and serves the line until it is closed. Returns the exit status. */
int xq_serve(const char *card);

#endif
