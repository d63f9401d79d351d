#ifndef STUB_ESP_VFS_FAT_H
#define STUB_ESP_VFS_FAT_H

#include "ff.h"
#include "sd_protocol_types.h"

typedef struct {
    bool format_if_mount_failed;
    int max_files;
    size_t allocation_unit_size;
    bool disk_status_check_enable; /* FatFs asks the card with CMD13 before each call */
    bool use_one_fat;
} esp_vfs_fat_mount_config_t;

/* ESP_FAIL: the card has no FAT volume; else the controller's error. */
esp_err_t esp_vfs_fat_sdmmc_mount(const char *base_path, const sdmmc_host_t *host_config,
                                  const void *slot_config,
                                  const esp_vfs_fat_mount_config_t *mount_config,
                                  sdmmc_card_t **out_card);
esp_err_t esp_vfs_fat_sdcard_unmount(const char *base_path, sdmmc_card_t *card);

#endif
