// MaskCacheGather and MaskCacheScatter: what one thread does. docs/plugins.md has the arithmetic.
//
// A block owns kRowsPerBlock rows; its threads walk the columns. scale, shift and gate are read
// once per block and column, not once per row: as float32 they would be the larger traffic.
#pragma once

#include "numeric.h"

namespace liveedit {

constexpr int kRowsPerBlock = 4;

struct GatherArgs {
    const void* x;              // [tokens, width] real
    const float* scale;         // [width]
    const float* shift;         // [width]
    const int32_t* keep_index;  // [kept]
    void* y;                    // [kept, width] real
    int64_t tokens, kept, width;
};

struct ScatterArgs {
    const void* x;             // [tokens, width] real
    const void* update;        // [kept, width] real
    const void* store;         // [tokens, width] real
    const float* gate;         // [width]
    const int32_t* token_row;  // [tokens]
    void* y;                   // [tokens, width] real
    void* store_out;           // [tokens, width] real; may be `store`
    int64_t tokens, kept, width;
};

struct Geometry {
    int64_t blocks;
    int threads;
};

inline bool valid(const GatherArgs& a, int dtype) {
    return valid_dtype(dtype) && a.tokens >= 0 && a.kept >= 0 && a.width >= 0;
}

inline bool valid(const ScatterArgs& a, int dtype) {
    return valid_dtype(dtype) && a.tokens >= 0 && a.kept >= 0 && a.width >= 0;
}

// Whether every row of every tensor starts on 16 bytes.
inline bool wide(const GatherArgs& a, int dtype) {
    return a.width * dtype_bytes(dtype) % 16 == 0 && aligned16(a.x) && aligned16(a.y) &&
           aligned16(a.scale) && aligned16(a.shift);
}

inline bool wide(const ScatterArgs& a, int dtype) {
    return a.width * dtype_bytes(dtype) % 16 == 0 && aligned16(a.x) && aligned16(a.update) &&
           aligned16(a.store) && aligned16(a.y) && aligned16(a.store_out) && aligned16(a.gate);
}

inline Geometry geometry(int64_t rows, int64_t width, int elements_per_access) {
    const int64_t accesses = (width + elements_per_access - 1) / elements_per_access;
    const int64_t warps = (accesses + 31) / 32;
    const int threads = warps < 16 ? static_cast<int>(warps) * 32 : 512;
    return {(rows + kRowsPerBlock - 1) / kRowsPerBlock, threads};
}

template <class Real, int N>
LIVEEDIT_HD void gather_thread(const GatherArgs& a, int64_t block, int thread, int threads) {
    using Bits = typename Real::Bits;
    const Bits* x = static_cast<const Bits*>(a.x);
    Bits* y = static_cast<Bits*>(a.y);
    const int64_t first = block * kRowsPerBlock;
    for (int64_t column = static_cast<int64_t>(thread) * N; column < a.width;
         column += static_cast<int64_t>(threads) * N) {
        const Pack<float, N> scale = load_pack<N>(a.scale + column);
        const Pack<float, N> shift = load_pack<N>(a.shift + column);
        Pack<Bits, N> rows[kRowsPerBlock];
        bool inside[kRowsPerBlock];
        LIVEEDIT_UNROLL
        for (int i = 0; i < kRowsPerBlock; ++i) {  // all loads first: they are in flight together
            const int64_t token = first + i < a.kept ? a.keep_index[first + i] : -1;
            inside[i] = token >= 0 && token < a.tokens;
            rows[i] = inside[i] ? load_pack<N>(x + token * a.width + column) : Pack<Bits, N>{};
        }
        LIVEEDIT_UNROLL
        for (int i = 0; i < kRowsPerBlock; ++i) {
            if (first + i >= a.kept) break;
            LIVEEDIT_UNROLL
            for (int j = 0; j < N; ++j) {
                const float product = mul_rn(Real::load(rows[i].e[j]), add_rn(1.0f, scale.e[j]));
                const Bits bits = Real::round(add_rn(product, shift.e[j]));
                rows[i].e[j] = inside[i] ? bits : Bits{0};
            }
            store_pack(y + (first + i) * a.width + column, rows[i]);
        }
    }
}

template <class Real, int N>
LIVEEDIT_HD void scatter_thread(const ScatterArgs& a, int64_t block, int thread, int threads) {
    using Bits = typename Real::Bits;
    const Bits* x = static_cast<const Bits*>(a.x);
    const Bits* update = static_cast<const Bits*>(a.update);
    const Bits* store = static_cast<const Bits*>(a.store);
    Bits* y = static_cast<Bits*>(a.y);
    Bits* store_out = static_cast<Bits*>(a.store_out);
    const bool in_place = a.store == a.store_out;
    const int64_t first = block * kRowsPerBlock;
    for (int64_t column = static_cast<int64_t>(thread) * N; column < a.width;
         column += static_cast<int64_t>(threads) * N) {
        const Pack<float, N> gate = load_pack<N>(a.gate + column);
        Pack<Bits, N> residual[kRowsPerBlock] = {}, fill[kRowsPerBlock] = {};
        bool kept[kRowsPerBlock] = {};
        LIVEEDIT_UNROLL
        for (int i = 0; i < kRowsPerBlock; ++i) {
            if (first + i >= a.tokens) break;
            const int64_t row = a.token_row[first + i];
            const int64_t here = (first + i) * a.width + column;
            kept[i] = row >= 0 && row < a.kept;
            residual[i] = load_pack<N>(x + here);
            fill[i] = load_pack<N>(kept[i] ? update + row * a.width + column : store + here);
        }
        LIVEEDIT_UNROLL
        for (int i = 0; i < kRowsPerBlock; ++i) {
            if (first + i >= a.tokens) break;
            const int64_t here = (first + i) * a.width + column;
            if (kept[i] || !in_place) store_pack(store_out + here, fill[i]);
            LIVEEDIT_UNROLL
            for (int j = 0; j < N; ++j) {
                const float gated = mul_rn(Real::load(fill[i].e[j]), gate.e[j]);
                residual[i].e[j] = Real::round(add_rn(Real::load(residual[i].e[j]), gated));
            }
            store_pack(y + here, residual[i]);
        }
    }
}

}  // namespace liveedit
