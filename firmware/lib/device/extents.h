/* Where a file's sectors lie on a FAT volume, from the link map that FatFs makes of it. */
#ifndef TLLM_DEVICE_EXTENTS_H
#define TLLM_DEVICE_EXTENTS_H

#include <stdbool.h>
#include <stdint.h>

struct dev_extent {
    uint32_t first;   /* sector of the card */
    uint32_t sectors; /* contiguous from there, at least 1 */
};

/*
 * Finds sector `sector` of a file. links is FatFs's link map in an array of `room` items: their
 * number in use, then (clusters, first cluster) for each contiguous piece, then 0. A cluster has
 * `cluster_sectors`; cluster 2 begins at sector `data_start`. False beyond the file's end, or where
 * the map makes no sense.
 */
bool dev_extent_find(const uint32_t *links, uint32_t room, uint32_t cluster_sectors,
                     uint32_t data_start, uint32_t sector, struct dev_extent *extent);

#endif
