/* What the fuzzers' boards hold: the package that TLLM_FUZZ_PACKAGE names. */
#ifndef CARD_H
#define CARD_H

#include "ram_board.h"

/* Copies the package's .bin files to the card's root; ends the program where it cannot. */
void card_load(struct ram_board *board);
/* Copies every file of a card. */
void card_copy(struct ram_board *to, const struct ram_board *from);

#endif
