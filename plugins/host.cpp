// The kernels on the CPU: the same bodies, dispatch and grid, looped over. For tests without a GPU.
#include "dispatch.h"
#include "launchers.h"

namespace {

struct HostRun {
    template <class Body>
    int operator()(liveedit::Geometry g, Body body) const {
        for (int64_t block = 0; block < g.blocks; ++block) {
            for (int thread = 0; thread < g.threads; ++thread) body(block, thread, g.threads);
        }
        return 0;
    }
};

constexpr liveedit::Dispatch<HostRun> host{};

}  // namespace

extern "C" int liveedit_host_mask_cache_gather(const void* x, const float* scale,
                                               const float* shift, const int32_t* keep_index,
                                               void* y, int64_t tokens, int64_t kept,
                                               int64_t width, int dtype) {
    return host.gather({x, scale, shift, keep_index, y, tokens, kept, width}, dtype);
}

extern "C" int liveedit_host_mask_cache_scatter(const void* x, const void* update,
                                                const void* store, const float* gate,
                                                const int32_t* token_row, void* y,
                                                void* store_out, int64_t tokens, int64_t kept,
                                                int64_t width, int dtype) {
    return host.scatter(
        {x, update, store, gate, token_row, y, store_out, tokens, kept, width}, dtype);
}

extern "C" int liveedit_host_frames_in(const uint8_t* rgb, const void* table, void* planes,
                                       int64_t pixels, int dtype) {
    return host.frames_in({rgb, table, planes, pixels}, dtype);
}

extern "C" int liveedit_host_frames_out(const void* planes, uint8_t* rgb, int64_t pixels,
                                        float low, float scale, int dtype) {
    return host.frames_out({planes, rgb, pixels, low, scale}, dtype);
}

extern "C" int liveedit_host_noise(const uint64_t* key, void* out, int64_t count, uint32_t draw,
                                   int dtype) {
    return host.noise({key, out, count, draw}, dtype);
}

extern "C" int liveedit_host_copy_rows(void* const* buffers, const int64_t* plan,
                                       int64_t num_buffers, int64_t groups, int64_t rows,
                                       int64_t row_bytes, int64_t most_rows, int aligned) {
    return host.copy_rows(
        {buffers, plan, num_buffers, groups, rows, row_bytes, most_rows}, aligned != 0);
}

extern "C" int liveedit_host_importance(const void* edited, const void* source, float* out,
                                        int64_t channels, int64_t pixels, int dtype) {
    return host.importance({edited, source, out, channels, pixels}, dtype);
}
