#ifndef STUB_SDKCONFIG_H
#define STUB_SDKCONFIG_H

/* What firmware/src looks at; the chip comes from the command line (-DCONFIG_IDF_TARGET_ESP32=1).
 */
#if !CONFIG_IDF_TARGET_ESP32 && !CONFIG_IDF_TARGET_ESP32S3
#error "name the chip"
#endif
#define CONFIG_FREERTOS_HZ              1000
#define CONFIG_ESP_DEFAULT_CPU_FREQ_MHZ 240
#define CONFIG_SPIRAM_SPEED             80

#endif
