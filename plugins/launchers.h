// The C interface of the plugin library. Pointers are device memory; nothing allocates or
// synchronises; the result is a cudaError_t. dtype: 0 float32, 1 float16, 2 bfloat16.
// The host library has the same functions as liveedit_host_*, without a stream.
#pragma once

#include <cstdint>

#define LIVEEDIT_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

LIVEEDIT_API int liveedit_mask_cache_gather(const void* x, const float* scale, const float* shift,
                               const int32_t* keep_index, void* y, int64_t tokens, int64_t kept,
                               int64_t width, int dtype, void* stream);

LIVEEDIT_API int liveedit_mask_cache_scatter(const void* x, const void* update, const void* store,
                                const float* gate, const int32_t* token_row, void* y,
                                void* store_out, int64_t tokens, int64_t kept, int64_t width,
                                int dtype, void* stream);

LIVEEDIT_API int liveedit_host_mask_cache_gather(const void* x, const float* scale, const float* shift,
                                    const int32_t* keep_index, void* y, int64_t tokens,
                                    int64_t kept, int64_t width, int dtype);

LIVEEDIT_API int liveedit_host_mask_cache_scatter(const void* x, const void* update, const void* store,
                                     const float* gate, const int32_t* token_row, void* y,
                                     void* store_out, int64_t tokens, int64_t kept, int64_t width,
                                     int dtype);

#ifdef __cplusplus
}
#endif
