// What a stream needs around its engines, so that frames, noise and KV rows never visit the host.
// Each body does the work of one thread, numbered from 0; one that is past the end does nothing.
#pragma once

#include <cmath>

#include "numeric.h"

namespace liveedit {

constexpr int kThreads = 256;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// uint8 [frames * height * width, 3] -> real [3, frames * height * width], through a table of the
// 256 values that a byte can mean. The host makes the table, so every backend has the same values.
struct FramesInArgs {
    const uint8_t* rgb;
    const void* table;  // [256] real
    void* planes;
    int64_t pixels;
};

template <class Real, int N>
LIVEEDIT_HD void frames_in(const FramesInArgs& a, int64_t index) {
    using Bits = typename Real::Bits;
    const int64_t first = index * N;
    if (first >= a.pixels) return;
    const Bits* table = static_cast<const Bits*>(a.table);
    Bits* planes = static_cast<Bits*>(a.planes);
    Pack<Bits, N> out[3];
    LIVEEDIT_UNROLL
    for (int i = 0; i < N; ++i) {
        LIVEEDIT_UNROLL
        for (int c = 0; c < 3; ++c) out[c].e[i] = table[a.rgb[(first + i) * 3 + c]];
    }
    LIVEEDIT_UNROLL
    for (int c = 0; c < 3; ++c) store_pack(planes + c * a.pixels + first, out[c]);
}

// real [3, pixels] -> uint8 [pixels, 3]: (value - low) * scale, to nearest, clamped. NaN is black.
struct FramesOutArgs {
    const void* planes;
    uint8_t* rgb;
    int64_t pixels;
    float low, scale;
};

LIVEEDIT_HD uint8_t to_byte(float value) {
    const float whole = rintf(value);
    const float clamped = fminf(fmaxf(whole, 0.0f), 255.0f);
    return static_cast<uint8_t>(clamped);
}

template <class Real, int N>
LIVEEDIT_HD void frames_out(const FramesOutArgs& a, int64_t index) {
    using Bits = typename Real::Bits;
    const int64_t first = index * N;
    if (first >= a.pixels) return;
    const Bits* planes = static_cast<const Bits*>(a.planes);
    LIVEEDIT_UNROLL
    for (int c = 0; c < 3; ++c) {
        const Pack<Bits, N> in = load_pack<N>(planes + c * a.pixels + first);
        LIVEEDIT_UNROLL
        for (int i = 0; i < N; ++i) {
            const float value = mul_rn(sub_rn(Real::load(in.e[i]), a.low), a.scale);
            a.rgb[(first + i) * 3 + c] = to_byte(value);
        }
    }
}

// Standard normals of liveedit.runtime.noise: Philox4x32-10, then Box-Muller in double.
struct NoiseArgs {
    const uint64_t* key;  // seed, chunk: in device memory, so that a captured graph can move on
    void* out;            // [count] real
    int64_t count;
    uint32_t draw;
};

struct Words {
    uint32_t w[4];
};

LIVEEDIT_HD Words philox(Words counter, uint32_t key_0, uint32_t key_1) {
    for (int round = 0; round < 10; ++round) {
        const uint64_t product_0 = uint64_t{0xD2511F53u} * counter.w[0];
        const uint64_t product_1 = uint64_t{0xCD9E8D57u} * counter.w[2];
        counter = {{static_cast<uint32_t>(product_1 >> 32) ^ counter.w[1] ^ key_0,
                    static_cast<uint32_t>(product_1),
                    static_cast<uint32_t>(product_0 >> 32) ^ counter.w[3] ^ key_1,
                    static_cast<uint32_t>(product_0)}};
        key_0 += 0x9E3779B9u;
        key_1 += 0xBB67AE85u;
    }
    return counter;
}

template <class Real>
LIVEEDIT_HD void noise(const NoiseArgs& a, int64_t index) {
    if (index * 4 >= a.count) return;
    const uint64_t seed = a.key[0], chunk = a.key[1];
    const Words counter = {{static_cast<uint32_t>(index), a.draw, static_cast<uint32_t>(chunk),
                            static_cast<uint32_t>(chunk >> 32)}};
    const Words random =
        philox(counter, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
    typename Real::Bits* out = static_cast<typename Real::Bits*>(a.out);
    for (int pair = 0; pair < 2; ++pair) {
        // Half an odd multiple of 2^-32: never 0 and never 1, so the logarithm is finite.
        const double first = (random.w[2 * pair] + 0.5) * 0x1p-32;
        const double second = (random.w[2 * pair + 1] + 0.5) * 0x1p-32;
        const double radius = sqrt(-2.0 * log(first));
        const double angle = 6.283185307179586 * second;
        const double values[2] = {radius * cos(angle), radius * sin(angle)};
        for (int i = 0; i < 2; ++i) {
            const int64_t at = index * 4 + 2 * pair + i;
            if (at < a.count) out[at] = Real::round(static_cast<float>(values[i]));
        }
    }
}

// Rows src.. to rows dst.. of axis 1 in every buffer [groups, rows, row_bytes]: the commit of a
// chunk's keys and values, all layers in one launch. The ranges do not overlap.
struct CopyRowsArgs {
    void* const* buffers;  // [num_buffers] device pointers, in device memory
    const int64_t* plan;   // src, dst, count: in device memory; count <= most_rows
    int64_t num_buffers, groups, rows, row_bytes, most_rows;
};

template <int N>
LIVEEDIT_HD void copy_rows(const CopyRowsArgs& a, int64_t group, int64_t index) {
    const int64_t offset = index * N;
    if (offset >= a.plan[2] * a.row_bytes) return;
    uint8_t* base = static_cast<uint8_t*>(a.buffers[group / a.groups]) +
                    group % a.groups * a.rows * a.row_bytes + offset;
    store_pack(base + a.plan[1] * a.row_bytes, load_pack<N>(base + a.plan[0] * a.row_bytes));
}

// Mean over channels of the squared difference of two latents: the mask cache's raw importance.
struct ImportanceArgs {
    const void* edited;  // [channels, pixels] real
    const void* source;  // the same
    float* out;          // [pixels]
    int64_t channels, pixels;
};

template <class Real>
LIVEEDIT_HD void importance(const ImportanceArgs& a, int64_t index) {
    using Bits = typename Real::Bits;
    if (index >= a.pixels) return;
    const Bits* edited = static_cast<const Bits*>(a.edited);
    const Bits* source = static_cast<const Bits*>(a.source);
    float sum = 0.0f;
    for (int64_t c = 0; c < a.channels; ++c) {
        const int64_t at = c * a.pixels + index;
        const float difference = sub_rn(Real::load(edited[at]), Real::load(source[at]));
        sum = add_rn(sum, mul_rn(difference, difference));
    }
    a.out[index] = div_rn(sum, static_cast<float>(a.channels));
}

}  // namespace liveedit
