// What one chunk of a stream needs around its engines, so that a captured CUDA graph of it can be
// replayed without the host: what changes from chunk to chunk is read from device memory. Each
// functor does the work of one thread, numbered from 0; one past the end does nothing.
#pragma once

#include <cmath>

#include "numeric.h"

namespace liveedit {

// The numbers of a stream, int64 in device memory. The host writes kNextChunk and kSeed at the
// start of a stream; begin_chunk writes the others. `control + kSeed` is the key of the noise,
// `control + kFirstFrame` the place of the rotary table, `control + kCopySource` the commit's plan.
enum Control : int {
    kNextChunk,
    kSeed,
    kChunk,
    kFirstFrame,
    kWriteIndex,
    kCopySource,
    kCopyTarget,
    kCopyCount,
};

// liveedit.runtime.kv_cache on the device: the chunk's number, and where its keys and values go.
struct BeginChunk {
    int64_t* control;
    const int32_t* counts;  // [2] of select_tokens, or null: every token is kept
    int64_t* write_index;   // [1]
    int32_t* kv_full;       // [1] valid rows in a pass that computes every token
    int32_t* kv_pruned;     // [1] valid rows in a pass that computes the kept ones
    int32_t* non_finite;    // [1] cleared
    int64_t slots, sink_slots, rows_per_slot, frames;
    LIVEEDIT_HD void operator()(int64_t index) const {
        if (index != 0) return;
        const int64_t chunk = control[kNextChunk];
        const int64_t filling = slots - 1, ring = filling - sink_slots;
        const int64_t write = (chunk < filling ? chunk : filling) * rows_per_slot;
        const bool copies = chunk >= filling && ring > 0;
        const int64_t slot = copies ? sink_slots + (chunk - filling) % ring : 0;
        control[kNextChunk] = chunk + 1;
        control[kChunk] = chunk;
        control[kFirstFrame] = chunk * frames;
        control[kWriteIndex] = write;
        control[kCopySource] = write;
        control[kCopyTarget] = slot * rows_per_slot;
        control[kCopyCount] = copies ? rows_per_slot : 0;
        *write_index = write;
        *kv_full = static_cast<int32_t>(write + rows_per_slot);
        *kv_pruned = static_cast<int32_t>(write + (counts ? counts[1] : rows_per_slot));
        *non_finite = 0;
    }
};

// Standard normals of liveedit.runtime.noise: Philox4x32-10, then Box-Muller in double.
struct NoiseArgs {
    const uint64_t* key;  // seed, chunk
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
struct Noise {
    NoiseArgs a;
    LIVEEDIT_HD void operator()(int64_t index) const {
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
};

// The columns of the rotary tables that turn with time; the host writes the others once. Angles
// are in double, as on the host: at frame 10^7 a float32 angle would be wrong by half a radian.
struct RopeTimeArgs {
    const int64_t* first_frame;  // [1]
    const double* frequency;     // [pairs]
    float* cos;                  // [1, frames * tokens, columns]
    float* sin;
    int64_t frames, tokens, pairs, columns;  // tokens per frame
};

struct RopeTime {
    static constexpr int kParts = 32;  // threads that share a column of a frame
    RopeTimeArgs a;
    LIVEEDIT_HD void operator()(int64_t index) const {
        const int64_t pair = index % a.pairs;
        const int64_t part = index / a.pairs % kParts;
        const int64_t frame = index / a.pairs / kParts;
        if (frame >= a.frames) return;
        const double angle = static_cast<double>(*a.first_frame + frame) * a.frequency[pair];
        const float cosine = static_cast<float>(::cos(angle));
        const float sine = static_cast<float>(::sin(angle));
        for (int64_t token = part; token < a.tokens; token += kParts) {
            const int64_t at = (frame * a.tokens + token) * a.columns + pair;
            a.cos[at] = cosine;
            a.sin[at] = sine;
        }
    }
};

// Rows src.. to rows dst.. of axis 1 in every buffer [groups, rows, row_bytes]: the commit of a
// chunk's keys and values, all layers in one launch. The ranges do not overlap.
struct CopyRowsArgs {
    void* const* buffers;  // [num_buffers] device pointers, in device memory
    const int64_t* plan;   // src, dst, count; count <= most_rows
    int64_t num_buffers, groups, rows, row_bytes, most_rows;
};

template <int N>
struct CopyRows {
    static constexpr int kMoves = 4;  // of N bytes by each thread, in flight together
    CopyRowsArgs a;
    uint32_t blocks_per_group;
    LIVEEDIT_HD void operator()(int64_t block, int thread, int threads) const {
        const int64_t bytes = a.plan[2] * a.row_bytes;
        const uint32_t group = static_cast<uint32_t>(block) / blocks_per_group;
        const int64_t part = static_cast<uint32_t>(block) % blocks_per_group;
        const int64_t first = (part * kMoves * threads + thread) * N;
        if (first >= bytes) return;
        const uint32_t groups = static_cast<uint32_t>(a.groups);
        uint8_t* base = static_cast<uint8_t*>(a.buffers[group / groups]) +
                        group % groups * a.rows * a.row_bytes;
        const uint8_t* source = base + a.plan[0] * a.row_bytes;
        uint8_t* target = base + a.plan[1] * a.row_bytes;
        Pack<uint8_t, N> moved[kMoves] = {};
        LIVEEDIT_UNROLL
        for (int i = 0; i < kMoves; ++i) {
            const int64_t at = first + static_cast<int64_t>(i) * threads * N;
            if (at < bytes) moved[i] = load_pack<N>(source + at);
        }
        LIVEEDIT_UNROLL
        for (int i = 0; i < kMoves; ++i) {
            const int64_t at = first + static_cast<int64_t>(i) * threads * N;
            if (at < bytes) store_pack(target + at, moved[i]);
        }
    }
};

// Sets the flag if an element is infinite or NaN. Threads that set it write the same value.
struct NonFiniteArgs {
    const void* x;  // [count] real
    int64_t count;
    int32_t* flag;  // [1]
};

template <class Real, int N>
struct NonFinite {
    NonFiniteArgs a;
    LIVEEDIT_HD void operator()(int64_t index) const {
        using Bits = typename Real::Bits;
        if (index * N >= a.count) return;
        const Pack<Bits, N> in = load_pack<N>(static_cast<const Bits*>(a.x) + index * N);
        bool finite = true;
        LIVEEDIT_UNROLL
        for (int i = 0; i < N; ++i) finite = finite && Real::finite(in.e[i]);
        if (!finite) *a.flag = 1;
    }
};

// What to do with a chunk that is not finite. Numbers of the C interface.
enum OnNonFinite : int { kStop, kLastGood, kPassthrough };

// A finite x0 becomes the last good one; another one is replaced as the policy says. has_good is
// only read where the flag is set and only written where it is not, so no thread sees it change.
struct ReplaceArgs {
    void* x0;            // [bytes]
    void* last_good;     // [bytes]
    const void* source;  // [bytes]
    int64_t bytes;
    const int32_t* flag;    // [1] of non_finite
    int32_t* has_good;      // [1] 0 at the start of a stream
    int32_t* outcome;       // [1] 0: finite; else 1 + policy
    int32_t* host_outcome;  // the same in pinned host memory, or null
    int policy;
};

template <int N>
struct Replace {
    ReplaceArgs a;
    LIVEEDIT_HD void operator()(int64_t index) const {
        const bool finite = *a.flag == 0;
        if (index == 0) {
            const int32_t outcome = finite ? 0 : 1 + a.policy;
            *a.outcome = outcome;
            if (a.host_outcome) *a.host_outcome = outcome;
            if (finite) *a.has_good = 1;
        }
        const int64_t at = index * N;
        if (at >= a.bytes || (!finite && a.policy == kStop)) return;
        uint8_t* x0 = static_cast<uint8_t*>(a.x0) + at;
        uint8_t* last_good = static_cast<uint8_t*>(a.last_good) + at;
        if (finite) {
            store_pack(last_good, load_pack<N>(x0));
        } else if (a.policy == kLastGood && *a.has_good != 0) {
            store_pack(x0, load_pack<N>(last_good));
        } else {
            store_pack(x0, load_pack<N>(static_cast<const uint8_t*>(a.source) + at));
        }
    }
};

}  // namespace liveedit
