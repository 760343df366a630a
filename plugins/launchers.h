// The C interface of the native libraries. Pointers are device memory, `stream` is a cudaStream_t;
// nothing allocates or synchronises; the result is a cudaError_t. dtype: 0 float32, 1 float16,
// 2 bfloat16. The host library has the same functions as liveedit_host_*, without a stream.
// mask_cache.h and stream.h say what each does.
#pragma once

#include <cstdint>

#define LIVEEDIT_API __attribute__((visibility("default")))

extern "C" {

LIVEEDIT_API int liveedit_mask_cache_gather(const void* x, const float* scale, const float* shift,
                                            const int32_t* keep_index, void* y, int64_t tokens,
                                            int64_t kept, int64_t width, int dtype, void* stream);

LIVEEDIT_API int liveedit_mask_cache_scatter(const void* x, const void* update, const void* store,
                                             const float* gate, const int32_t* token_row, void* y,
                                             void* store_out, int64_t tokens, int64_t kept,
                                             int64_t width, int dtype, void* stream);

LIVEEDIT_API int liveedit_frames_in(const uint8_t* rgb, const void* table, void* planes,
                                    int64_t pixels, int dtype, void* stream);

LIVEEDIT_API int liveedit_frames_out(const void* planes, uint8_t* rgb, int64_t pixels, float low,
                                     float scale, int dtype, void* stream);

LIVEEDIT_API int liveedit_noise(const uint64_t* key, void* out, int64_t count, uint32_t draw,
                                int dtype, void* stream);

LIVEEDIT_API int liveedit_copy_rows(void* const* buffers, const int64_t* plan,
                                    int64_t num_buffers, int64_t groups, int64_t rows,
                                    int64_t row_bytes, int64_t most_rows, int aligned,
                                    void* stream);

LIVEEDIT_API int liveedit_importance(const void* edited, const void* source, float* out,
                                     int64_t channels, int64_t pixels, int dtype, void* stream);

LIVEEDIT_API int liveedit_host_mask_cache_gather(const void* x, const float* scale,
                                                 const float* shift, const int32_t* keep_index,
                                                 void* y, int64_t tokens, int64_t kept,
                                                 int64_t width, int dtype);

LIVEEDIT_API int liveedit_host_mask_cache_scatter(const void* x, const void* update,
                                                  const void* store, const float* gate,
                                                  const int32_t* token_row, void* y,
                                                  void* store_out, int64_t tokens, int64_t kept,
                                                  int64_t width, int dtype);

LIVEEDIT_API int liveedit_host_frames_in(const uint8_t* rgb, const void* table, void* planes,
                                         int64_t pixels, int dtype);

LIVEEDIT_API int liveedit_host_frames_out(const void* planes, uint8_t* rgb, int64_t pixels,
                                          float low, float scale, int dtype);

LIVEEDIT_API int liveedit_host_noise(const uint64_t* key, void* out, int64_t count, uint32_t draw,
                                     int dtype);

LIVEEDIT_API int liveedit_host_copy_rows(void* const* buffers, const int64_t* plan,
                                         int64_t num_buffers, int64_t groups, int64_t rows,
                                         int64_t row_bytes, int64_t most_rows, int aligned);

LIVEEDIT_API int liveedit_host_importance(const void* edited, const void* source, float* out,
                                          int64_t channels, int64_t pixels, int dtype);

}  // extern "C"
