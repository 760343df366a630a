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

#define LIVEEDIT_ENTRY(name, call, ...)                            \
    extern "C" int liveedit_##name(__VA_ARGS__, void* stream) {    \
        return liveedit::on(stream).call;                          \
    }
#include "entry_points.h"
