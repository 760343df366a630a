// From the C interface's arguments to a grid of threads: checks, types, widths. The same for CUDA
// and for the host; `run(geometry, body)` is what differs. Returns 0 or a cudaError_t.
#pragma once

#include "mask_cache.h"
#include "stream.h"

namespace liveedit {

constexpr int kInvalidValue = 1;  // cudaErrorInvalidValue

template <class Real, int N>
struct GatherBody {
    GatherArgs args;
    LIVEEDIT_HD void operator()(int64_t block, int thread, int threads) const {
        gather_thread<Real, N>(args, block, thread, threads);
    }
};

template <class Real, int N>
struct ScatterBody {
    ScatterArgs args;
    LIVEEDIT_HD void operator()(int64_t block, int thread, int threads) const {
        scatter_thread<Real, N>(args, block, thread, threads);
    }
};

template <class Real, int N>
struct FramesInBody {
    FramesInArgs args;
    LIVEEDIT_HD void operator()(int64_t block, int thread, int threads) const {
        frames_in<Real, N>(args, block * threads + thread);
    }
};

template <class Real, int N>
struct FramesOutBody {
    FramesOutArgs args;
    LIVEEDIT_HD void operator()(int64_t block, int thread, int threads) const {
        frames_out<Real, N>(args, block * threads + thread);
    }
};

template <class Real>
struct NoiseBody {
    NoiseArgs args;
    LIVEEDIT_HD void operator()(int64_t block, int thread, int threads) const {
        noise<Real>(args, block * threads + thread);
    }
};

template <int N>
struct CopyRowsBody {
    CopyRowsArgs args;
    int64_t blocks_per_group;
    LIVEEDIT_HD void operator()(int64_t block, int thread, int threads) const {
        const int64_t group = block / blocks_per_group;
        copy_rows<N>(args, group, block % blocks_per_group * threads + thread);
    }
};

template <class Real>
struct ImportanceBody {
    ImportanceArgs args;
    LIVEEDIT_HD void operator()(int64_t block, int thread, int threads) const {
        importance<Real>(args, block * threads + thread);
    }
};

inline Geometry line(int64_t items) { return {ceil_div(items, kThreads), kThreads}; }

template <class Run>
struct Dispatch {
    Run run;

    int gather(const GatherArgs& a, int dtype) const {
        if (!valid(a, dtype)) return kInvalidValue;
        return with_real(dtype, wide(a, dtype), [&](auto real, auto width) {
            constexpr int N = decltype(width)::value;
            return run(geometry(a.kept, a.width, N), GatherBody<decltype(real), N>{a});
        });
    }

    int scatter(const ScatterArgs& a, int dtype) const {
        if (!valid(a, dtype)) return kInvalidValue;
        return with_real(dtype, wide(a, dtype), [&](auto real, auto width) {
            constexpr int N = decltype(width)::value;
            return run(geometry(a.tokens, a.width, N), ScatterBody<decltype(real), N>{a});
        });
    }

    int frames_in(const FramesInArgs& a, int dtype) const {
        if (!valid_dtype(dtype) || a.pixels < 0) return kInvalidValue;
        return with_real(dtype, wide_planes(a.planes, a.pixels, dtype), [&](auto real, auto width) {
            constexpr int N = decltype(width)::value;
            return run(line(ceil_div(a.pixels, N)), FramesInBody<decltype(real), N>{a});
        });
    }

    int frames_out(const FramesOutArgs& a, int dtype) const {
        if (!valid_dtype(dtype) || a.pixels < 0) return kInvalidValue;
        return with_real(dtype, wide_planes(a.planes, a.pixels, dtype), [&](auto real, auto width) {
            constexpr int N = decltype(width)::value;
            return run(line(ceil_div(a.pixels, N)), FramesOutBody<decltype(real), N>{a});
        });
    }

    int noise(const NoiseArgs& a, int dtype) const {
        if (!valid_dtype(dtype) || a.count < 0) return kInvalidValue;
        return with_real(dtype, false, [&](auto real, auto) {
            return run(line(ceil_div(a.count, 4)), NoiseBody<decltype(real)>{a});
        });
    }

    // `aligned`: every buffer starts on 16 bytes. The pointers are in device memory, out of reach.
    int copy_rows(const CopyRowsArgs& a, bool aligned) const {
        if (a.num_buffers < 0 || a.groups < 0 || a.rows < 0 || a.row_bytes < 0 || a.most_rows < 0) {
            return kInvalidValue;
        }
        if (aligned && a.row_bytes % 16 == 0) return copy_rows_by<16>(a);
        return copy_rows_by<1>(a);
    }

    int importance(const ImportanceArgs& a, int dtype) const {
        if (!valid_dtype(dtype) || a.channels < 1 || a.pixels < 0) return kInvalidValue;
        return with_real(dtype, false, [&](auto real, auto) {
            return run(line(a.pixels), ImportanceBody<decltype(real)>{a});
        });
    }

private:
    static bool wide_planes(const void* planes, int64_t pixels, int dtype) {
        return pixels * dtype_bytes(dtype) % 16 == 0 && aligned16(planes);
    }

    template <int N>
    int copy_rows_by(const CopyRowsArgs& a) const {
        const int64_t blocks = ceil_div(a.most_rows * a.row_bytes / N, kThreads);
        return run({blocks * a.num_buffers * a.groups, kThreads}, CopyRowsBody<N>{a, blocks});
    }
};

}  // namespace liveedit
