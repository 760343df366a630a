// The kernels on the CPU: the same bodies, dispatch and grid, looped over. For tests without a GPU.
#include "launchers.h"
#include "mask_cache.h"

namespace {

using namespace liveedit;

constexpr int kInvalidValue = 1;  // cudaErrorInvalidValue

template <class F>
void for_each_thread(Geometry grid, F body) {
    for (int64_t block = 0; block < grid.blocks; ++block) {
        for (int thread = 0; thread < grid.threads; ++thread) body(block, thread, grid.threads);
    }
}

struct RunGather {
    GatherArgs args;
    template <class Real, int N>
    int operator()(Real, Width<N>) const {
        for_each_thread(geometry(args.kept, args.width, N), [&](int64_t block, int thread, int threads) {
            gather_thread<Real, N>(args, block, thread, threads);
        });
        return 0;
    }
};

struct RunScatter {
    ScatterArgs args;
    template <class Real, int N>
    int operator()(Real, Width<N>) const {
        for_each_thread(geometry(args.tokens, args.width, N), [&](int64_t block, int thread, int threads) {
            scatter_thread<Real, N>(args, block, thread, threads);
        });
        return 0;
    }
};

}  // namespace

extern "C" int liveedit_host_mask_cache_gather(const void* x, const float* scale,
                                               const float* shift, const int32_t* keep_index,
                                               void* y, int64_t tokens, int64_t kept, int64_t width,
                                               int dtype) {
    const GatherArgs args{x, scale, shift, keep_index, y, tokens, kept, width};
    if (!valid(args, dtype)) return kInvalidValue;
    return with_real(dtype, wide(args, dtype), RunGather{args});
}

extern "C" int liveedit_host_mask_cache_scatter(const void* x, const void* update,
                                                const void* store, const float* gate,
                                                const int32_t* token_row, void* y, void* store_out,
                                                int64_t tokens, int64_t kept, int64_t width,
                                                int dtype) {
    const ScatterArgs args{x, update, store, gate, token_row, y, store_out, tokens, kept, width};
    if (!valid(args, dtype)) return kInvalidValue;
    return with_real(dtype, wide(args, dtype), RunScatter{args});
}
