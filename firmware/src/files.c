/*
 * Files of the card. FatFs is used directly, without the POSIX layer between: its link map tells
 * where a file lies, and raw multi-block reads fetch it from there. What ends in _now runs on the
 * card's task.
 */
#include "card.h"

#include "extents.h"

#include <string.h>

#define SECTOR 512u

/* ---- what a job needs: nothing under way, a card, a file, a path ---- */

static int ready(void) {
    if (!card_job_wait(false))
        return TLLM_E_CANCELLED;
    return card_state.sdmmc ? 0 : DEV_E_NO_CARD;
}

static int ready_file(int file) {
    const int status = ready();
    if (status < 0)
        return status;
    card_job.file = file;
    return file >= 0 && file < (int)CARD_FILES && card_state.files[file].used ? 0 : DEV_E_NO_CARD;
}

static bool full_path(char *full, const char *path) {
    const size_t drive = sizeof CARD_DRIVE - 1, len = strlen(path);
    if (len >= DEV_PATH)
        return false;
    memcpy(full, CARD_DRIVE, drive);
    memcpy(full + drive, path, len + 1);
    return true;
}

static int ready_path(const char *path) {
    const int status = ready();
    if (status < 0)
        return status;
    return full_path(card_job.path, path) ? 0 : DEV_E_FS;
}

/* ---- files ---- */

static int status_of(FRESULT result) {
    switch (result) {
    case FR_OK:
        return 0;
    case FR_DISK_ERR:
        return TLLM_E_IO;
    case FR_NOT_READY:
    case FR_INVALID_OBJECT: /* the volume went away under an open file */
        return DEV_E_NO_CARD;
    case FR_DENIED:
        return DEV_E_FULL; /* no free cluster or directory entry; nothing here is read-only */
    default:
        return DEV_E_FS;
    }
}

/* Of a file that is only read FatFs keeps nothing: it is forgotten, and a dead card not asked. */
int card_close_now(int file) {
    struct card_file *open = &card_state.files[file];
    const bool written = open->used && open->file.flag & FA_WRITE;
    open->used = false;
    return written ? status_of(f_close(&open->file)) : 0;
}

int card_open_now(void) {
    int file = 0;
    while (file < (int)CARD_FILES && card_state.files[file].used)
        file++;
    if (file == (int)CARD_FILES)
        return DEV_E_FS;
    struct card_file *open = &card_state.files[file];
    const BYTE mode = card_job.how == DEV_READ ? FA_READ : FA_READ | FA_WRITE | FA_OPEN_ALWAYS;
    const FRESULT result = f_open(&open->file, card_job.path, mode);
    if (result != FR_OK)
        return status_of(result);
    open->used = true;
    open->mapped = false;
    if (card_job.how == DEV_READ) { /* its clusters do not change: look them up once */
        open->links[0] = CARD_LINKS;
        open->file.cltbl = open->links;
        const FRESULT mapped = f_lseek(&open->file, CREATE_LINKMAP);
        open->mapped = mapped == FR_OK;
        if (!open->mapped)
            open->file.cltbl = NULL;
        if (!open->mapped && mapped != FR_NOT_ENOUGH_CORE) {
            (void)card_close_now(file);
            return status_of(mapped);
        }
    }
    return file;
}

int card_file_open(void *ctx, const char *path, enum dev_open how) {
    const int status = ready_path(path);
    (void)ctx;
    if (status < 0)
        return status;
    card_job.how = how;
    return how == DEV_READ ? card_job_read(card_open_now) : card_job_write(card_open_now);
}

static int close_now(void) {
    return card_close_now(card_job.file);
}

int card_file_close(void *ctx, int file) {
    const int status = ready_file(file);
    (void)ctx;
    if (status == TLLM_E_CANCELLED && file >= 0 && file < (int)CARD_FILES) {
        atomic_store(&card_state.files[file].closing, true);
        return 0;
    }
    return status < 0 ? status : card_job_write(close_now);
}

/* Whole sectors straight into dst, which has room for them. */
static int read_sectors(const struct card_file *open, uint32_t offset, uint8_t *dst, uint32_t len) {
    const FATFS *volume = open->file.obj.fs;
    uint32_t sector = offset / SECTOR, left = (len + SECTOR - 1) / SECTOR;
    while (left) {
        struct dev_extent extent;
        if (atomic_load(&card_job.given_up))
            return TLLM_E_CANCELLED;
        if (!dev_extent_find(open->links, CARD_LINKS, volume->csize, (uint32_t)volume->database,
                             sector, &extent))
            return TLLM_E_IO;
        const uint32_t n = extent.sectors < left ? extent.sectors : left;
        if (sdmmc_read_sectors(card_state.sdmmc, dst, extent.first, n) != ESP_OK)
            return sdmmc_get_status(card_state.sdmmc) == ESP_OK ? TLLM_E_IO : DEV_E_NO_CARD;
        dst += (size_t)n * SECTOR;
        sector += n;
        left -= n;
    }
    return 0;
}

static int read_now(void) {
    struct card_file *open = &card_state.files[card_job.file];
    uint32_t len = card_job.len;
    UINT got = 0;
    const uint32_t size = (uint32_t)f_size(&open->file);
    if (card_job.offset >= size)
        return 0;
    if (len > size - card_job.offset)
        len = size - card_job.offset;
    if (open->mapped && card_job.offset % SECTOR == 0) {
        const int status = read_sectors(open, card_job.offset, card_job.dst, len);
        return status < 0 ? status : (int)len;
    }
    FRESULT result = f_lseek(&open->file, card_job.offset);
    if (result == FR_OK)
        result = f_read(&open->file, card_job.dst, len, &got);
    return result == FR_OK ? (int)got : status_of(result);
}

static int ready_read(int file, uint32_t offset, void *dst, uint32_t len) {
    const int status = ready_file(file);
    if (status == 0) {
        card_job.offset = offset;
        card_job.dst = dst;
        card_job.len = len;
    }
    return status;
}

int card_file_read(void *ctx, int file, uint32_t offset, void *dst, uint32_t len) {
    const bool is_it = card_job.file == file && card_job.offset == offset && card_job.dst == dst &&
                       card_job.len == len;
    (void)ctx;
    if (card_job.ahead && is_it) {
        const bool waited = card_job_wait(false);
        card_job.ahead = false;
        return waited ? card_job.status : TLLM_E_CANCELLED;
    }
    const int status = ready_read(file, offset, dst, len);
    return status < 0 ? status : card_job_read(read_now);
}

void card_file_prefetch(void *ctx, int file, uint32_t offset, void *dst, uint32_t len) {
    (void)ctx;
    if (ready_read(file, offset, dst, len) == 0) {
        card_job_start(read_now, false);
        card_job.ahead = true;
    }
}

static int write_now(void) {
    FIL *file = &card_state.files[card_job.file].file;
    UINT put = 0;
    FRESULT result = f_lseek(file, card_job.offset); /* stops where the card is full */
    if (result == FR_OK)
        result = f_write(file, card_job.src, card_job.len, &put);
    if (result == FR_OK && put < card_job.len)
        return DEV_E_FULL;
    return status_of(result);
}

int card_file_write(void *ctx, int file, uint32_t offset, const void *src, uint32_t len) {
    const int status = ready_file(file);
    (void)ctx;
    if (status < 0)
        return status;
    card_job.offset = offset;
    card_job.src = src;
    card_job.len = len;
    return card_job_write(write_now);
}

static int truncate_now(void) {
    FIL *file = &card_state.files[card_job.file].file;
    const FRESULT result = f_lseek(file, card_job.offset);
    return status_of(result == FR_OK ? f_truncate(file) : result);
}

int card_file_truncate(void *ctx, int file, uint32_t size) {
    const int status = ready_file(file);
    (void)ctx;
    if (status < 0)
        return status;
    card_job.offset = size;
    return card_job_write(truncate_now);
}

static int sync_now(void) {
    return status_of(f_sync(&card_state.files[card_job.file].file));
}

int card_file_sync(void *ctx, int file) {
    const int status = ready_file(file);
    (void)ctx;
    return status < 0 ? status : card_job_write(sync_now);
}

/* ---- directories ---- */

static int rename_now(void) {
    return status_of(f_rename(card_job.path, card_job.to));
}

int card_file_rename(void *ctx, const char *from, const char *to) {
    const int status = ready_path(from);
    (void)ctx;
    if (status < 0)
        return status;
    return full_path(card_job.to, to) ? card_job_write(rename_now) : DEV_E_FS;
}

static int remove_now(void) {
    const FRESULT result = f_unlink(card_job.path);
    return result == FR_DENIED ? DEV_E_FS : status_of(result); /* a directory that is not empty */
}

int card_file_remove(void *ctx, const char *path) {
    const int status = ready_path(path);
    (void)ctx;
    return status < 0 ? status : card_job_write(remove_now);
}

static int size_now(void) {
    FILINFO info;
    const FRESULT result = f_stat(card_job.path, &info);
    if (result != FR_OK)
        return status_of(result);
    card_job.size = (uint32_t)info.fsize;
    return info.fattrib & AM_DIR ? DEV_E_FS : 0;
}

int card_file_size(void *ctx, const char *path, uint32_t *size) {
    int status = ready_path(path);
    (void)ctx;
    status = status < 0 ? status : card_job_read(size_now);
    if (status == 0)
        *size = card_job.size;
    return status;
}

static int make_dir_now(void) {
    const FRESULT result = f_mkdir(card_job.path);
    return result == FR_EXIST ? 0 : status_of(result);
}

int card_make_dir(void *ctx, const char *path) {
    const int status = ready_path(path);
    (void)ctx;
    return status < 0 ? status : card_job_write(make_dir_now);
}

static int list_now(void) {
    FF_DIR dir;
    FILINFO info;
    uint32_t left = card_job.index;
    FRESULT result = f_opendir(&dir, card_job.path);
    if (result != FR_OK)
        return status_of(result);
    do
        result = f_readdir(&dir, &info);
    while (result == FR_OK && info.fname[0] && (strlen(info.fname) >= card_job.len || left--));
    (void)f_closedir(&dir);
    if (result != FR_OK)
        return status_of(result);
    if (!info.fname[0])
        return 0;
    memcpy(card_job.entry, info.fname, strlen(info.fname) + 1);
    card_job.size = info.fattrib & AM_DIR ? DEV_DIRECTORY : (uint32_t)info.fsize;
    return 1;
}

int card_list(void *ctx, const char *path, uint32_t index, char *name, uint32_t name_len,
              uint32_t *size) {
    int status = ready_path(path);
    (void)ctx;
    if (status < 0)
        return status;
    card_job.index = index;
    card_job.len = name_len < sizeof card_job.entry ? name_len : (uint32_t)sizeof card_job.entry;
    status = card_job_read(list_now);
    if (status != 1)
        return status;
    memcpy(name, card_job.entry, strlen(card_job.entry) + 1);
    *size = card_job.size;
    return 1;
}

/* Where the volume does not know, FatFs counts its whole table: seconds on a large card. */
static int space_now(void) {
    FATFS *volume;
    DWORD free_clusters;
    const FRESULT result = f_getfree(CARD_DRIVE, &free_clusters, &volume);
    if (result != FR_OK)
        return status_of(result);
    card_job.free_bytes = (uint64_t)free_clusters * volume->csize * SECTOR;
    card_job.total_bytes = (uint64_t)(volume->n_fatent - 2) * volume->csize * SECTOR;
    return 0;
}

int card_space(void *ctx, uint64_t *free_bytes, uint64_t *total_bytes) {
    int status = ready();
    (void)ctx;
    status = status < 0 ? status : card_job_read(space_now);
    if (status == 0) {
        *free_bytes = card_job.free_bytes;
        *total_bytes = card_job.total_bytes;
    }
    return status;
}
