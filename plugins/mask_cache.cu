// Kernels and launchers of the mask cache. The bodies are in mask_cache.h.
#include <cuda_runtime_api.h>

#include "launchers.h"
#include "mask_cache.h"

namespace liveedit {

template <class Real, int N>
__global__ void __launch_bounds__(512) gather_kernel(GatherArgs args) {
    gather_thread<Real, N>(args, blockIdx.x, threadIdx.x, blockDim.x);
}

template <class Real, int N>
__global__ void __launch_bounds__(512) scatter_kernel(ScatterArgs args) {
    scatter_thread<Real, N>(args, blockIdx.x, threadIdx.x, blockDim.x);
}

struct LaunchGather {
    GatherArgs args;
    cudaStream_t stream;
    template <class Real, int N>
    int operator()(Real, Width<N>) const {
        const Geometry g = geometry(args.kept, args.width, N);
        gather_kernel<Real, N><<<static_cast<unsigned>(g.blocks), g.threads, 0, stream>>>(args);
        return cudaPeekAtLastError();
    }
};

struct LaunchScatter {
    ScatterArgs args;
    cudaStream_t stream;
    template <class Real, int N>
    int operator()(Real, Width<N>) const {
        const Geometry g = geometry(args.tokens, args.width, N);
        scatter_kernel<Real, N><<<static_cast<unsigned>(g.blocks), g.threads, 0, stream>>>(args);
        return cudaPeekAtLastError();
    }
};

}  // namespace liveedit

extern "C" int liveedit_mask_cache_gather(const void* x, const float* scale, const float* shift,
                                          const int32_t* keep_index, void* y, int64_t tokens,
                                          int64_t kept, int64_t width, int dtype, void* stream) {
    const liveedit::GatherArgs args{x, scale, shift, keep_index, y, tokens, kept, width};
    if (!liveedit::valid(args, dtype)) return cudaErrorInvalidValue;
    if (kept == 0 || width == 0) return cudaSuccess;
    return liveedit::with_real(dtype, liveedit::wide(args, dtype),
                               liveedit::LaunchGather{args, static_cast<cudaStream_t>(stream)});
}

extern "C" int liveedit_mask_cache_scatter(const void* x, const void* update, const void* store,
                                           const float* gate, const int32_t* token_row, void* y,
                                           void* store_out, int64_t tokens, int64_t kept,
                                           int64_t width, int dtype, void* stream) {
    const liveedit::ScatterArgs args{x, update, store, gate, token_row, y, store_out,
                                     tokens, kept, width};
    if (!liveedit::valid(args, dtype)) return cudaErrorInvalidValue;
    if (tokens == 0 || width == 0) return cudaSuccess;
    return liveedit::with_real(dtype, liveedit::wide(args, dtype),
                               liveedit::LaunchScatter{args, static_cast<cudaStream_t>(stream)});
}
