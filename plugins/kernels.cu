// The kernels and their launchers.
#include <cuda_runtime_api.h>

#include "dispatch.h"
#include "launchers.h"

namespace liveedit {

template <class Body>
__global__ void __launch_bounds__(512) grid(Body body) {
    body(blockIdx.x, threadIdx.x, blockDim.x);
}

struct CudaRun {
    cudaStream_t stream;
    template <class Body>
    int operator()(Geometry g, Body body) const {
        if (g.blocks == 0 || g.threads == 0) return cudaSuccess;
        grid<Body><<<static_cast<unsigned>(g.blocks), g.threads, 0, stream>>>(body);
        return cudaPeekAtLastError();
    }
};

static Dispatch<CudaRun> on(void* stream) { return {{static_cast<cudaStream_t>(stream)}}; }

}  // namespace liveedit

using liveedit::on;

extern "C" int liveedit_mask_cache_gather(const void* x, const float* scale, const float* shift,
                                          const int32_t* keep_index, void* y, int64_t tokens,
                                          int64_t kept, int64_t width, int dtype, void* stream) {
    return on(stream).gather({x, scale, shift, keep_index, y, tokens, kept, width}, dtype);
}

extern "C" int liveedit_mask_cache_scatter(const void* x, const void* update, const void* store,
                                           const float* gate, const int32_t* token_row, void* y,
                                           void* store_out, int64_t tokens, int64_t kept,
                                           int64_t width, int dtype, void* stream) {
    return on(stream).scatter(
        {x, update, store, gate, token_row, y, store_out, tokens, kept, width}, dtype);
}

extern "C" int liveedit_frames_in(const uint8_t* rgb, const void* table, void* planes,
                                  int64_t pixels, int dtype, void* stream) {
    return on(stream).frames_in({rgb, table, planes, pixels}, dtype);
}

extern "C" int liveedit_frames_out(const void* planes, uint8_t* rgb, int64_t pixels, float low,
                                   float scale, int dtype, void* stream) {
    return on(stream).frames_out({planes, rgb, pixels, low, scale}, dtype);
}

extern "C" int liveedit_noise(const uint64_t* key, void* out, int64_t count, uint32_t draw,
                              int dtype, void* stream) {
    return on(stream).noise({key, out, count, draw}, dtype);
}

extern "C" int liveedit_copy_rows(void* const* buffers, const int64_t* plan, int64_t num_buffers,
                                  int64_t groups, int64_t rows, int64_t row_bytes,
                                  int64_t most_rows, int aligned, void* stream) {
    return on(stream).copy_rows(
        {buffers, plan, num_buffers, groups, rows, row_bytes, most_rows}, aligned != 0);
}

extern "C" int liveedit_importance(const void* edited, const void* source, float* out,
                                   int64_t channels, int64_t pixels, int dtype, void* stream) {
    return on(stream).importance({edited, source, out, channels, pixels}, dtype);
}
