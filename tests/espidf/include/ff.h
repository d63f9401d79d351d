#ifndef STUB_FF_H
#define STUB_FF_H

/* FatFs R0.15 as ESP-IDF 5.5 builds it: no exFAT, long names, a fast seek's link map. */
#include <stddef.h>
#include <stdint.h>

typedef unsigned int UINT; /* size_t in ESP-IDF 6 */
typedef unsigned char BYTE;
typedef uint16_t WORD;
typedef uint32_t DWORD;
typedef DWORD FSIZE_t;
typedef DWORD LBA_t;
typedef char TCHAR;

typedef struct {
    BYTE fs_type, pdrv;
    WORD id, csize; /* csize: sectors of a cluster */
    DWORD n_fatent; /* clusters and 2 */
    LBA_t database; /* sector of cluster 2 */
} FATFS;

typedef struct {
    FATFS *fs;
    WORD id;
    BYTE attr, stat;
    DWORD sclust;
    FSIZE_t objsize;
} FFOBJID;

typedef struct {
    FFOBJID obj;
    BYTE flag, err; /* err: of an earlier call, returned by each that follows */
    FSIZE_t fptr;
    DWORD clust;
    LBA_t sect;
    DWORD *cltbl;
} FIL; /* no buffer of its own: CONFIG_FATFS_PER_FILE_CACHE is off */

typedef struct {
    FFOBJID obj;
    DWORD dptr;
} FF_DIR;

typedef struct {
    FSIZE_t fsize;
    WORD fdate, ftime;
    BYTE fattrib;
    TCHAR altname[13];
    TCHAR fname[256];
} FILINFO;

typedef enum {
    FR_OK = 0,
    FR_DISK_ERR,
    FR_INT_ERR,
    FR_NOT_READY,
    FR_NO_FILE,
    FR_NO_PATH,
    FR_INVALID_NAME,
    FR_DENIED,
    FR_EXIST,
    FR_INVALID_OBJECT,
    FR_WRITE_PROTECTED,
    FR_INVALID_DRIVE,
    FR_NOT_ENABLED,
    FR_NO_FILESYSTEM,
    FR_MKFS_ABORTED,
    FR_TIMEOUT,
    FR_LOCKED,
    FR_NOT_ENOUGH_CORE,
    FR_TOO_MANY_OPEN_FILES,
    FR_INVALID_PARAMETER,
} FRESULT;

#define FA_READ        0x01
#define FA_WRITE       0x02
#define FA_OPEN_ALWAYS 0x10
#define AM_DIR         0x10
#define CREATE_LINKMAP ((FSIZE_t)0 - 1)
#define f_tell(fp)     ((fp)->fptr)
#define f_size(fp)     ((fp)->obj.objsize)

FRESULT f_open(FIL *fp, const TCHAR *path, BYTE mode);
FRESULT f_close(FIL *fp);
FRESULT f_read(FIL *fp, void *buff, UINT btr, UINT *br);
FRESULT f_write(FIL *fp, const void *buff, UINT btw, UINT *bw);
/* With cltbl set and CREATE_LINKMAP: fills it, or FR_NOT_ENOUGH_CORE. Beyond the end: stops there
 * in a file open for reading, makes the file longer in one open for writing. */
FRESULT f_lseek(FIL *fp, FSIZE_t ofs);
FRESULT f_truncate(FIL *fp);
FRESULT f_sync(FIL *fp);
FRESULT f_opendir(FF_DIR *dp, const TCHAR *path);
FRESULT f_closedir(FF_DIR *dp);
FRESULT f_readdir(FF_DIR *dp, FILINFO *fno);
FRESULT f_mkdir(const TCHAR *path);
FRESULT f_unlink(const TCHAR *path);
FRESULT f_rename(const TCHAR *path_old, const TCHAR *path_new);
FRESULT f_stat(const TCHAR *path, FILINFO *fno);
FRESULT f_getfree(const TCHAR *path, DWORD *nclst, FATFS **fatfs);

#endif
