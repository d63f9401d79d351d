#include "extents.h"

bool dev_extent_find(const uint32_t *links, uint32_t room, uint32_t cluster_sectors,
                     uint32_t data_start, uint32_t sector, struct dev_extent *extent) {
    if (cluster_sectors == 0) {
        return false;
    }
    uint32_t skip = sector / cluster_sectors;
    const uint32_t within = sector % cluster_sectors;
    for (uint32_t i = 1; i + 1 < room && links[i] != 0; i += 2) {
        const uint32_t clusters = links[i], first = links[i + 1];
        if (skip < clusters) {
            if (first < 2) {
                return false;
            }
            const uint64_t at =
                (uint64_t)(first - 2 + skip) * cluster_sectors + data_start + within;
            const uint64_t run = (uint64_t)(clusters - skip) * cluster_sectors - within;
            if (at > UINT32_MAX || run > UINT32_MAX) {
                return false;
            }
            extent->first = (uint32_t)at;
            extent->sectors = (uint32_t)run;
            return true;
        }
        skip -= clusters;
    }
    return false;
}
