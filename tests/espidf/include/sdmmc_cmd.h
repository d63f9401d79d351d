#ifndef STUB_SDMMC_CMD_H
#define STUB_SDMMC_CMD_H

#include "sd_protocol_types.h"

/* CMD13: an error where no card answers. */
esp_err_t sdmmc_get_status(sdmmc_card_t *card);
/* Memory that the controller cannot reach is read into one sector at a time. */
esp_err_t sdmmc_read_sectors(sdmmc_card_t *card, void *dst, size_t start_sector,
                             size_t sector_count);

#endif
