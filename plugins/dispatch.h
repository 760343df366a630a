// From the C interface's arguments to a grid of threads: checks, types, widths. The same for CUDA
// and for the host; `run(geometry, body)` is what differs. Returns 0 or a cudaError_t.
#pragma once

#include "frames.h"
#include "mask_cache.h"
#include "mask_select.h"
#include "stream.h"

namespace liveedit {

constexpr int kInvalidValue = 1;  // cudaErrorInvalidValue
constexpr int kThreads = 256;
constexpr int64_t kMostItems = 0x7fffffff;  // of one launch
constexpr int64_t kMostTokens = 1 << 28;    // or latent pixels, of select_tokens

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

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

template <class Item>
struct Each {
    Item item;
    LIVEEDIT_HD void operator()(int64_t block, int thread, int threads) const {
        item(block * threads + thread);
    }
};

// Where each scratch array of select_tokens starts, from the scratch's own start.
struct SelectLayout {
    int64_t pixel_pitch, token_pitch, pixel_flags, token_flags, totals, bytes;
    SelectLayout(int64_t frames, int64_t height, int64_t width) {
        const int64_t pixels = height * width, tokens = pixels / 4;
        pixel_pitch = round_up(pixels, 16);
        token_pitch = round_up(tokens, 16);
        pixel_flags = round_up(frames * tokens * 8, 16);  // the keys come first
        token_flags = pixel_flags + frames * pixel_pitch;
        totals = token_flags + frames * token_pitch;
        bytes = totals + tokens * 4;
    }
};

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
        const bool wide = wide_planes(a.planes, a.pixels, dtype) && aligned16(a.rgb);
        return with_real(dtype, wide, [&](auto real, auto width) {
            constexpr int N = decltype(width)::value;
            return each(ceil_div(a.pixels, N), FramesIn<decltype(real), N>{a});
        });
    }

    int frames_out(const FramesOutArgs& a, int dtype) const {
        if (!valid_dtype(dtype) || a.pixels < 0) return kInvalidValue;
        const bool wide = wide_planes(a.planes, a.pixels, dtype) && aligned16(a.rgb);
        return with_real(dtype, wide, [&](auto real, auto width) {
            constexpr int N = decltype(width)::value;
            return each(ceil_div(a.pixels, N), FramesOut<decltype(real), N>{a});
        });
    }

    int nv12_in(Nv12Args a, int bt709, int full_range, int dtype) const {
        if (!valid(a, dtype)) return kInvalidValue;
        a.color = color_matrix(bt709, full_range);
        return with_real(dtype, wide(a, dtype), [&](auto real, auto width) {
            constexpr int N = decltype(width)::value;
            return each(a.frames * a.height * (a.width / N), Nv12In<decltype(real), N>{a});
        });
    }

    int nv12_out(Nv12Args a, int bt709, int full_range, int dtype) const {
        if (!valid(a, dtype)) return kInvalidValue;
        a.color = color_matrix(bt709, full_range);
        return with_real(dtype, wide(a, dtype), [&](auto real, auto width) {
            using Body = Nv12Out<decltype(real), decltype(width)::value>;
            return each(a.frames * (a.height / 2) * (a.width / Body::C), Body{a});
        });
    }

    int begin_chunk(const BeginChunk& a) const {
        if (a.sink_slots < 0 || a.slots <= a.sink_slots || a.rows_per_slot < 1 || a.frames < 1) {
            return kInvalidValue;
        }
        return each(1, a);
    }

    int noise(const NoiseArgs& a, int dtype) const {
        if (!valid_dtype(dtype) || a.count < 0) return kInvalidValue;
        return with_real(dtype, false, [&](auto real, auto) {
            return each(ceil_div(a.count, 4), Noise<decltype(real)>{a});
        });
    }

    int rope_time(const RopeTimeArgs& a) const {
        if (a.frames < 0 || a.tokens < 0 || a.pairs < 1 || a.columns < a.pairs) {
            return kInvalidValue;
        }
        return each(a.frames * a.pairs * RopeTime::kParts, RopeTime{a});
    }

    // `aligned`: every buffer starts on 16 bytes. The pointers are in device memory, out of reach.
    int copy_rows(const CopyRowsArgs& a, bool aligned) const {
        if (a.num_buffers < 0 || a.groups < 0 || a.rows < 0 || a.row_bytes < 0 || a.most_rows < 0) {
            return kInvalidValue;
        }
        if (aligned && a.row_bytes % 16 == 0) return copy_rows_by<16>(a);
        return copy_rows_by<1>(a);
    }

    int non_finite(const NonFiniteArgs& a, int dtype) const {
        if (!valid_dtype(dtype) || a.count < 0) return kInvalidValue;
        const bool wide = a.count * dtype_bytes(dtype) % 16 == 0 && aligned16(a.x);
        return with_real(dtype, wide, [&](auto real, auto width) {
            constexpr int N = decltype(width)::value;
            return each(ceil_div(a.count, N), NonFinite<decltype(real), N>{a});
        });
    }

    int replace(const ReplaceArgs& a) const {
        if (a.bytes < 1 || a.policy < kStop || a.policy > kPassthrough) return kInvalidValue;
        const bool wide = a.bytes % 16 == 0 && aligned16(a.x0) && aligned16(a.last_good) &&
                          aligned16(a.source);
        return wide ? each(a.bytes / 16, Replace<16>{a}) : each(a.bytes, Replace<1>{a});
    }

    int importance(const ImportanceArgs& a, bool bfloat16_steps, int dtype) const {
        if (!valid_dtype(dtype) || a.channels < 1 || a.pixels < 1 || !aligned16(a.partials)) {
            return kInvalidValue;
        }
        return bfloat16_steps ? importance_by<BFloat16Step>(a, dtype)
                              : importance_by<ExactStep>(a, dtype);
    }

    // `a` holds the arrays and the mode; this fills in the rest.
    int select_tokens(SelectArgs a, void* scratch, int64_t frames, int64_t height, int64_t width,
                      int64_t keep, int64_t bucket, int64_t budget) const {
        if (frames < 1 || height < 2 || width < 2 || height % 2 != 0 || width % 2 != 0 ||
            frames > kMostTokens || height > kMostTokens / frames ||
            width > kMostTokens / frames / height) {
            return kInvalidValue;
        }
        const int64_t pixels = height * width, tokens = pixels / 4, all = frames * tokens;
        if ((a.mode != kReleased && a.mode != kPaper) || keep < 1 || bucket < 1 || budget < 0 ||
            keep > (a.mode == kPaper ? tokens : pixels)) {
            return kInvalidValue;
        }
        if (!aligned16(a.importance) || !aligned16(a.kept) || !aligned16(scratch)) {
            return kInvalidValue;
        }
        const auto narrow = [](int64_t x) { return static_cast<int>(x); };
        a.frames = narrow(frames);
        a.height = narrow(height);
        a.width = narrow(width);
        a.keep = narrow(keep);
        a.bucket = narrow(bucket < all ? bucket : all);
        a.budget = narrow(budget < all ? budget : all);
        const SelectLayout layout(frames, height, width);
        uint8_t* base = static_cast<uint8_t*>(scratch);
        a.keys = reinterpret_cast<uint64_t*>(base);
        a.pixel_flags = base + layout.pixel_flags;
        a.token_flags = base + layout.token_flags;
        a.totals = reinterpret_cast<uint32_t*>(base + layout.totals);
        a.pixel_pitch = narrow(layout.pixel_pitch);
        a.token_pitch = narrow(layout.token_pitch);
        int status = 0;
        if (a.mode == kPaper) {
            status = each(tokens, PaperTotals{a});
            if (!status) status = each(tokens, PaperTokens{a});
        } else {
            status = each(frames * pixels, KeepPixels{a});
            if (!status) status = each(all, KeepTokens{a});
            if (!status) status = each(all, EqualTokens{a});
        }
        if (!status) status = each(all, FixSize{a});
        return status ? status : each(all, Compact{a});
    }

private:
    template <class Item>
    int each(int64_t items, const Item& item) const {
        if (items > kMostItems) return kInvalidValue;
        return run({ceil_div(items, kThreads), kThreads}, Each<Item>{item});
    }

    template <int N>
    int copy_rows_by(const CopyRowsArgs& a) const {
        const int64_t blocks =
            ceil_div(a.most_rows * a.row_bytes, int64_t{N} * kThreads * CopyRows<N>::kMoves);
        const int64_t grid = blocks * a.num_buffers * a.groups;
        if (grid > kMostItems) return kInvalidValue;
        return run({grid, kThreads}, CopyRows<N>{a, static_cast<uint32_t>(blocks)});
    }

    template <class Step>
    int importance_by(const ImportanceArgs& a, int dtype) const {
        int status = with_real(dtype, false, [&](auto real, auto) {
            return each(a.pixels, MeanSquare<decltype(real), Step>{a});
        });
        if (!status) status = each(kPartials, Extremes{a});
        return status ? status : each(a.pixels, Normalise<Step>{a});
    }
};

}  // namespace liveedit
