/*
 * The card: a FAT volume in memory, filled from the directory FAKE_CARD. Its files lie in real
 * clusters, broken into pieces of FAKE_PIECE clusters, so that sectors read by their place and
 * bytes read by FatFs must agree.
 */
#define _XOPEN_SOURCE 700
#include "fake.h"

#include "driver/sdmmc_host.h"
#include "esp_memory_utils.h"
#include "esp_vfs_fat.h"
#include "sdmmc_cmd.h"

#include <dirent.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#define SECTOR   512u
#define CSIZE    ((uint32_t)fake_option("CSIZE", 4)) /* sectors of a cluster */
#define CLUSTER  (CSIZE * SECTOR)
#define DATABASE 2083u  /* no multiple of a cluster, as on real cards */
#define MOST     16384u /* clusters */
#define CLUSTERS ((uint32_t)fake_option("CLUSTERS", MOST))
#define NODES    256u
#define NOT_YET  0xa5 /* in a buffer until its bytes come */
#define LINKS    4096u

struct node {
    char path[160]; /* "" is the root */
    bool used, dir;
    uint32_t size, clusters;
    uint32_t chain[LINKS];
};

static struct {
    uint8_t *data;
    bool taken[MOST];
    struct node nodes[NODES];
    FATFS fs;
    sdmmc_card_t card;
    WORD mounts;
    bool mounted, filled, gone, check;
    long attempts, reads, writes, raw_sectors, fatfs_sectors, stuck;
    atomic_bool in_use, sticks;
    const uint8_t *into; /* where the read under way goes */
    size_t bytes;        /* of it; 0: none is under way */
} sd;

/* ---- one task at a time ---- */

/* FatFs and the driver would make the other wait; the firmware means never to come to that. */
static void enter(void) {
    if (atomic_exchange(&sd.in_use, true))
        fake_misuse("the card is used while something is done with it");
}

static void leave(void) {
    atomic_store(&sd.in_use, false);
}

void fake_card_sticks(void) {
    atomic_store(&sd.sticks, sd.stuck++ == 0);
}

/* ---- the volume ---- */

static struct node *find(const char *path) {
    if (strncmp(path, "0:", 2) == 0)
        path += 2;
    if (strcmp(path, "/") == 0)
        path = "";
    for (uint32_t i = 0; i < NODES; i++)
        if (sd.nodes[i].used && strcasecmp(sd.nodes[i].path, path) == 0)
            return &sd.nodes[i];
    return NULL;
}

static struct node *make(const char *path, bool dir) {
    if (strncmp(path, "0:", 2) == 0)
        path += 2;
    for (uint32_t i = 0; i < NODES; i++) {
        struct node *node = &sd.nodes[i];
        if (node->used)
            continue;
        memset(node, 0, sizeof *node);
        node->used = true;
        node->dir = dir;
        (void)snprintf(node->path, sizeof node->path, "%s", path);
        return node;
    }
    return NULL;
}

/* A gap after each piece keeps the next one from being contiguous. */
static bool grow(struct node *node) {
    static uint32_t next;
    const uint32_t piece = (uint32_t)fake_option("PIECE", 64);
    if (node->clusters % piece == 0)
        next++;
    for (uint32_t tries = 0; tries < CLUSTERS && node->clusters < LINKS; tries++, next++) {
        const uint32_t cluster = next % CLUSTERS;
        if (!sd.taken[cluster]) {
            sd.taken[cluster] = true;
            node->chain[node->clusters++] = cluster + 2;
            next++;
            return true;
        }
    }
    return false;
}

static uint8_t *at_sector(uint64_t sector) {
    return sd.data + (sector - DATABASE) * SECTOR;
}

static uint8_t *at_byte(const struct node *node, uint32_t offset) {
    const uint32_t cluster = node->chain[offset / CLUSTER];
    return at_sector(DATABASE + (uint64_t)(cluster - 2) * CSIZE) + offset % CLUSTER;
}

static void shrink(struct node *node, uint32_t clusters) {
    while (node->clusters > clusters)
        sd.taken[node->chain[--node->clusters] - 2] = false;
}

static bool extend(struct node *node, uint32_t size) {
    while ((uint64_t)node->clusters * CLUSTER < size)
        if (!grow(node))
            return false;
    return true;
}

static void fill(const char *host, const char *path) {
    DIR *dir = opendir(host);
    const struct dirent *entry;
    while (dir && (entry = readdir(dir)) != NULL) {
        char from[1024], to[160];
        struct stat info;
        if (entry->d_name[0] == '.')
            continue;
        (void)snprintf(from, sizeof from, "%s/%s", host, entry->d_name);
        (void)snprintf(to, sizeof to, "%s/%.100s", path, entry->d_name);
        if (stat(from, &info) != 0)
            continue;
        struct node *node = make(to, S_ISDIR(info.st_mode));
        if (!node || (!node->dir && !extend(node, (uint32_t)info.st_size)))
            fake_misuse("the model does not fit the fake card");
        node->size = node->dir ? 0 : (uint32_t)info.st_size;
        if (node->dir) {
            fill(from, to);
            continue;
        }
        FILE *file = fopen(from, "rb");
        for (uint32_t at = 0; file && at < node->size; at += CLUSTER)
            if (fread(at_byte(node, at), 1, CLUSTER, file) == 0)
                fake_misuse("the package cannot be read");
        if (file)
            (void)fclose(file);
    }
    if (dir)
        (void)closedir(dir);
}

/* ---- the controller ---- */

static void check_read(void) {
    for (size_t i = 0; i < sd.bytes; i++)
        if (sd.into[i] != NOT_YET)
            fake_misuse("memory was used for something else while the card was read into it");
}

/* What the card holds, in the directory FAKE_KEEP. */
static void keep(const char *folder) {
    char path[1200];
    for (uint32_t i = 0; i < NODES; i++) {
        const struct node *node = &sd.nodes[i];
        if (!node->used || !node->path[0])
            continue;
        (void)snprintf(path, sizeof path, "%s%s", folder, node->path);
        if (node->dir) {
            (void)mkdir(path, 0755);
            continue;
        }
        FILE *file = fopen(path, "wb");
        const uint32_t step = CLUSTER;
        for (uint32_t at = 0; file && at < node->size; at += step)
            (void)fwrite(at_byte(node, at), 1, node->size - at < step ? node->size - at : step,
                         file);
        if (!file || fclose(file) != 0)
            fake_misuse("what the card holds cannot be kept");
    }
}

void fake_card_report(void) {
    check_read();
    if (fake_text("KEEP"))
        keep(fake_text("KEEP"));
    fake_note("sectors: %ld raw, %ld through FatFs; %ld reads", sd.raw_sectors, sd.fatfs_sectors,
              sd.reads);
}

static uint64_t command_timeout_us(void) {
    const int ms = sd.card.host.command_timeout_ms;
    return (ms ? (uint64_t)ms : 1000) * 1000;
}

/* What a read comes to, after the time that it takes to come to that. */
static esp_err_t answer_of(long turn) {
    const long pull = fake_option("PULL_AT", 0), fail = fake_option("READ_FAIL", 0);
    const long every = fake_option("READ_FAIL_EVERY", 0);
    if (pull > 0 && turn == pull)
        sd.gone = true;
    if (turn == fake_option("STUCK_AT", 0) || atomic_exchange(&sd.sticks, false)) {
        fake_note("stuck for %ld us", fake_option("STUCK_US", 0));
        fake_pass_us((uint64_t)fake_option("STUCK_US", 0));
    }
    const long since = every > 0 ? turn % every : turn - fail;
    if (sd.gone || (fail > 0 && turn >= fail && since < fake_option("READ_FAILS", 1))) {
        fake_pass_us(command_timeout_us());
        fake_note("a read failed after %llu us", (unsigned long long)command_timeout_us());
        return sd.gone ? ESP_ERR_TIMEOUT : ESP_ERR_INVALID_CRC;
    }
    return ESP_OK;
}

esp_err_t sdmmc_get_status(sdmmc_card_t *card) {
    if (card != &sd.card || !sd.mounted)
        fake_misuse("a card is asked that is not mounted");
    enter();
    leave();
    return sd.gone ? ESP_ERR_TIMEOUT : ESP_OK;
}

/* Late DMA: the buffer holds something else until shortly before the call returns. */
esp_err_t sdmmc_read_sectors(sdmmc_card_t *card, void *dst, size_t start, size_t count) {
    if (card != &sd.card || !sd.mounted)
        fake_misuse("a card is read that is not mounted");
    if (!esp_ptr_dma_capable(dst) || (uintptr_t)dst % 4 != 0)
        fake_misuse("sectors are read to where the controller cannot write");
    if (start < DATABASE || start + count > DATABASE + (size_t)CLUSTERS * CSIZE)
        return ESP_ERR_INVALID_SIZE;
    enter();
    const long turn = ++sd.reads;
    memset(dst, NOT_YET, count * SECTOR);
    sd.into = dst;
    sd.bytes = count * SECTOR;
    fake_pass_us(500 + count * SECTOR / 14 + (uint64_t)fake_option("LATE_US", 0));
    const esp_err_t error = answer_of(turn);
    check_read();
    sd.bytes = 0;
    if (error == ESP_OK) {
        memcpy(dst, at_sector(start), count * SECTOR);
        sd.raw_sectors += (long)count;
    }
    leave();
    return error;
}

/* The maker's bytes, in hexadecimal digits. */
static void name_card(const char *digits) {
    unsigned byte;
    digits = digits ? digits : "46414b45"; /* FAKE */
    for (size_t i = 0; i < 5 && sscanf(digits, "%2x", &byte) == 1; i++, digits += 2)
        sd.card.cid.name[i] = (char)byte;
}

esp_err_t esp_vfs_fat_sdmmc_mount(const char *base, const sdmmc_host_t *host,
                                  const void *slot_config, const esp_vfs_fat_mount_config_t *config,
                                  sdmmc_card_t **card) {
    const sdmmc_slot_config_t *slot = slot_config;
    const char *from = fake_text("CARD");
    const long attempt = ++sd.attempts, back = fake_option("BACK_AT", 0);
    esp_err_t error = ESP_OK;
    if (sd.mounted || !base || config->format_if_mount_failed)
        fake_misuse("a card is mounted twice, or would be formatted");
    enter();
    fake_pass_us((uint64_t)fake_option("MOUNT_US", 200000));
    leave();
    if (back > 0 && attempt >= back)
        sd.gone = false;
    if (!from || sd.gone || attempt <= fake_option("ABSENT", 0) ||
        slot->width > fake_option("WIDTH", 4))
        error = ESP_ERR_TIMEOUT;
    else if (host->max_freq_khz > fake_option("KHZ", 40000))
        error = ESP_ERR_INVALID_CRC;
    else if (fake_option("NO_FAT", 0))
        error = ESP_FAIL;
    fake_note("mount %u-bit %d kHz: %d", slot->width, host->max_freq_khz, error);
    fake_note("pins: clk %d, cmd %d, d0 %d, d1 %d, d2 %d, d3 %d", slot->clk, slot->cmd, slot->d0,
              slot->d1, slot->d2, slot->d3);
    if (error != ESP_OK)
        return error;
    if (!sd.filled) {
        sd.filled = true;
        sd.data = calloc(CLUSTERS, CLUSTER);
        if (!sd.data || !make("", true))
            fake_misuse("this computer has no memory for a card");
        fill(from, "");
    }
    sd.fs = (FATFS){.fs_type = 3,
                    .id = ++sd.mounts,
                    .csize = (WORD)CSIZE,
                    .n_fatent = CLUSTERS + 2,
                    .database = DATABASE};
    sd.card = (sdmmc_card_t){.host = *host,
                             .csd.sector_size = (int)SECTOR,
                             .csd.capacity = 31116288,
                             .real_freq_khz = host->max_freq_khz,
                             .log_bus_width = slot->width == 4 ? 2 : 0};
    name_card(fake_text("CID"));
    sd.mounted = true;
    sd.check = config->disk_status_check_enable;
    *card = &sd.card;
    return ESP_OK;
}

esp_err_t esp_vfs_fat_sdcard_unmount(const char *base, sdmmc_card_t *card) {
    if (!base || card != &sd.card || !sd.mounted)
        return ESP_ERR_INVALID_ARG;
    enter();
    leave();
    sd.mounted = false;
    sd.fs.fs_type = 0;
    return ESP_OK;
}

/* ---- FatFs ---- */

static struct node *node_of(const FIL *fp) {
    return &sd.nodes[fp->obj.sclust];
}

static FRESULT volume(void) {
    if (!sd.mounted)
        return FR_NOT_ENABLED;
    return sd.check && sd.gone ? FR_NOT_READY : FR_OK;
}

static FRESULT valid(const FIL *fp) {
    if (!sd.mounted || fp->obj.fs != &sd.fs || fp->obj.id != sd.fs.id || (sd.check && sd.gone))
        return FR_INVALID_OBJECT;
    return (FRESULT)fp->err;
}

static FRESULT parent_is_there(const char *path) {
    char parent[160];
    (void)snprintf(parent, sizeof parent, "%s", path);
    char *slash = strrchr(parent, '/');
    if (!slash)
        return FR_INVALID_NAME;
    *slash = '\0';
    const struct node *node = find(parent);
    return node && node->dir ? FR_OK : FR_NO_PATH;
}

FRESULT f_open(FIL *fp, const TCHAR *path, BYTE mode) {
    FRESULT result = volume();
    memset(fp, 0, sizeof *fp);
    if (result != FR_OK)
        return result;
    enter();
    fake_pass_us((uint64_t)fake_option("OPEN_US", 1000));
    leave();
    result = parent_is_there(path);
    if (result != FR_OK)
        return result;
    struct node *node = find(path);
    if (!node && mode & FA_OPEN_ALWAYS)
        node = make(path, false);
    if (!node || node->dir)
        return FR_NO_FILE;
    fp->obj = (FFOBJID){
        .fs = &sd.fs, .id = sd.fs.id, .sclust = (DWORD)(node - sd.nodes), .objsize = node->size};
    fp->flag = mode;
    return FR_OK;
}

/* Only now does the directory learn the file's length. */
FRESULT f_sync(FIL *fp) {
    struct node *node = node_of(fp);
    const FRESULT result = volume();
    if (result != FR_OK || !(fp->flag & FA_WRITE) || node->size == fp->obj.objsize)
        return result;
    if (sd.card.real_freq_khz > fake_option("WRITE_KHZ", 40000))
        return FR_DISK_ERR;
    node->size = fp->obj.objsize;
    return FR_OK;
}

FRESULT f_close(FIL *fp) {
    const FRESULT result = valid(fp) == FR_INVALID_OBJECT ? FR_INVALID_OBJECT : f_sync(fp);
    if (sd.check && sd.gone)
        fake_note("a card that is gone was asked to close a file");
    fp->obj.fs = NULL;
    return result;
}

static FRESULT link_map(FIL *fp) {
    const struct node *node = node_of(fp);
    const DWORD room = fp->cltbl[0];
    DWORD used = 2;
    for (uint32_t i = 0, n; i < node->clusters; i += n) {
        n = 1;
        while (i + n < node->clusters && node->chain[i + n] == node->chain[i] + n)
            n++;
        used += 2;
        if (used <= room) {
            fp->cltbl[used - 3] = n;
            fp->cltbl[used - 2] = node->chain[i];
        }
    }
    fp->cltbl[0] = used;
    if (used > room)
        return FR_NOT_ENOUGH_CORE;
    fp->cltbl[used - 1] = 0;
    return FR_OK;
}

FRESULT f_lseek(FIL *fp, FSIZE_t offset) {
    const FRESULT result = valid(fp);
    if (result != FR_OK)
        return result;
    if (fp->cltbl && offset == CREATE_LINKMAP)
        return link_map(fp);
    if (offset > fp->obj.objsize) {
        if (!(fp->flag & FA_WRITE))
            offset = fp->obj.objsize;
        else if (!extend(node_of(fp), offset))
            offset = node_of(fp)->clusters * CLUSTER;
        fp->obj.objsize = offset > fp->obj.objsize ? offset : fp->obj.objsize;
    }
    fp->fptr = offset;
    return FR_OK;
}

FRESULT f_read(FIL *fp, void *buff, UINT length, UINT *got) {
    const FRESULT result = valid(fp);
    uint8_t *to = buff;
    *got = 0;
    if (result != FR_OK)
        return result;
    if (length >= SECTOR && !esp_ptr_dma_capable(buff))
        fake_misuse("FatFs reads sectors to where the controller cannot write");
    enter();
    const long turn = ++sd.reads;
    fake_pass_us(500 + length / 4);
    const esp_err_t error = answer_of(turn);
    leave();
    if (error != ESP_OK)
        return (FRESULT)(fp->err = FR_DISK_ERR);
    if (turn == fake_option("SHORT_AT", 0)) {
        fake_note("read %ld came short", turn);
        length /= 2;
    }
    while (*got < length && fp->fptr < fp->obj.objsize) {
        to[(*got)++] = *at_byte(node_of(fp), fp->fptr);
        fp->fptr++;
    }
    sd.fatfs_sectors += *got / SECTOR;
    return FR_OK;
}

FRESULT f_write(FIL *fp, const void *buff, UINT length, UINT *put) {
    const FRESULT result = valid(fp);
    const uint8_t *from = buff;
    *put = 0;
    if (result != FR_OK)
        return result;
    if (!(fp->flag & FA_WRITE))
        return FR_DENIED;
    enter();
    const uint64_t busy_us = (uint64_t)fake_option("WRITE_US", 2000);
    const bool waited_for =
        busy_us < (sd.card.host.command_timeout_ms ? command_timeout_us() : 5000000);
    fake_pass_us(waited_for ? busy_us : command_timeout_us());
    leave();
    const long fail = fake_option("WRITE_FAIL", 0), turn = ++sd.writes;
    const bool fails = fail > 0 && turn >= fail && turn - fail < fake_option("WRITE_FAILS", 1);
    if (!waited_for || fails || sd.card.real_freq_khz > fake_option("WRITE_KHZ", 40000))
        return (FRESULT)(fp->err = FR_DISK_ERR);
    for (; *put < length && extend(node_of(fp), fp->fptr + 1); fp->fptr++)
        *at_byte(node_of(fp), fp->fptr) = from[(*put)++];
    fp->obj.objsize = fp->fptr > fp->obj.objsize ? fp->fptr : fp->obj.objsize;
    return FR_OK;
}

FRESULT f_truncate(FIL *fp) {
    const FRESULT result = valid(fp);
    if (result != FR_OK)
        return result;
    fp->obj.objsize = fp->fptr;
    shrink(node_of(fp), (fp->fptr + CLUSTER - 1) / CLUSTER);
    return FR_OK;
}

FRESULT f_opendir(FF_DIR *dp, const TCHAR *path) {
    const FRESULT result = volume();
    const struct node *node = find(path);
    memset(dp, 0, sizeof *dp);
    if (result != FR_OK)
        return result;
    if (!node || !node->dir)
        return FR_NO_PATH;
    dp->obj.sclust = (DWORD)(node - sd.nodes);
    return FR_OK;
}

FRESULT f_closedir(FF_DIR *dp) {
    (void)dp;
    return FR_OK;
}

static void tell(const struct node *node, FILINFO *info) {
    memset(info, 0, sizeof *info);
    info->fsize = node->size;
    info->fattrib = node->dir ? AM_DIR : 0;
    (void)snprintf(info->fname, sizeof info->fname, "%s", strrchr(node->path, '/') + 1);
}

FRESULT f_readdir(FF_DIR *dp, FILINFO *info) {
    const char *dir = sd.nodes[dp->obj.sclust].path;
    const size_t length = strlen(dir);
    info->fname[0] = '\0';
    for (; dp->dptr < NODES; dp->dptr++) {
        const struct node *node = &sd.nodes[dp->dptr];
        if (node->used && strncmp(node->path, dir, length) == 0 && node->path[length] == '/' &&
            !strchr(node->path + length + 1, '/')) {
            tell(node, info);
            dp->dptr++;
            break;
        }
    }
    return volume();
}

FRESULT f_mkdir(const TCHAR *path) {
    if (volume() != FR_OK)
        return volume();
    if (find(path))
        return FR_EXIST;
    const FRESULT result = parent_is_there(path);
    if (result != FR_OK)
        return result;
    return make(path, true) ? FR_OK : FR_DENIED;
}

FRESULT f_unlink(const TCHAR *path) {
    struct node *node = find(path);
    if (volume() != FR_OK)
        return volume();
    if (!node)
        return FR_NO_FILE;
    for (uint32_t i = 0; node->dir && i < NODES; i++) {
        const size_t length = strlen(node->path);
        if (sd.nodes[i].used && strncmp(sd.nodes[i].path, node->path, length) == 0 &&
            sd.nodes[i].path[length] == '/')
            return FR_DENIED;
    }
    shrink(node, 0);
    node->used = false;
    return FR_OK;
}

FRESULT f_rename(const TCHAR *from, const TCHAR *to) {
    struct node *node = find(from);
    if (volume() != FR_OK)
        return volume();
    if (!node)
        return FR_NO_FILE;
    if (find(to))
        return FR_EXIST;
    const FRESULT result = parent_is_there(to);
    if (result != FR_OK || node->dir)
        return result != FR_OK ? result : FR_DENIED;
    (void)snprintf(node->path, sizeof node->path, "%s", to + 2);
    return FR_OK;
}

FRESULT f_stat(const TCHAR *path, FILINFO *info) {
    const struct node *node = find(path);
    if (volume() != FR_OK)
        return volume();
    if (!node)
        return FR_NO_FILE;
    tell(node, info);
    return FR_OK;
}

FRESULT f_getfree(const TCHAR *path, DWORD *clusters, FATFS **fs) {
    if (volume() != FR_OK || strcmp(path, "0:") != 0)
        return FR_NOT_READY;
    enter();
    fake_pass_us((uint64_t)fake_option("GETFREE_US", 1000));
    leave();
    *clusters = 0;
    for (uint32_t i = 0; i < CLUSTERS; i++)
        *clusters += !sd.taken[i];
    *fs = &sd.fs;
    return FR_OK;
}
