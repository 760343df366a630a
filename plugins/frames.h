// Video frames to planes of real numbers and back. Each functor does the work of one thread,
// numbered from 0; one that is past the end does nothing.
#pragma once

#include <cmath>

#include "numeric.h"

namespace liveedit {

// To nearest even, clamped. NaN is black.
LIVEEDIT_HD float whole_byte(float value) { return fminf(fmaxf(rintf(value), 0.0f), 255.0f); }

// uint8 [frames * height * width, 3] -> real [3, frames * height * width], through a table of the
// 256 values that a byte can mean. The host makes the table, so every backend has the same values.
struct FramesInArgs {
    const uint8_t* rgb;
    const void* table;  // [256] real
    void* planes;
    int64_t pixels;
};

template <class Real, int N>
struct FramesIn {
    FramesInArgs a;
    LIVEEDIT_HD void operator()(int64_t index) const {
        using Bits = typename Real::Bits;
        const int64_t first = index * N;
        if (first >= a.pixels) return;
        const Bits* table = static_cast<const Bits*>(a.table);
        Bits* planes = static_cast<Bits*>(a.planes);
        Pack<uint8_t, N> in[3];
        LIVEEDIT_UNROLL
        for (int i = 0; i < 3; ++i) in[i] = load_pack<N>(a.rgb + first * 3 + i * N);
        Pack<Bits, N> out[3];
        LIVEEDIT_UNROLL
        for (int i = 0; i < 3 * N; ++i) out[i % 3].e[i / 3] = table[in[i / N].e[i % N]];
        LIVEEDIT_UNROLL
        for (int c = 0; c < 3; ++c) store_pack(planes + c * a.pixels + first, out[c]);
    }
};

// real [3, pixels] -> uint8 [pixels, 3]: (value - low) * scale, to nearest, clamped.
struct FramesOutArgs {
    const void* planes;
    uint8_t* rgb;
    int64_t pixels;
    float low, scale;
};

template <class Real, int N>
struct FramesOut {
    FramesOutArgs a;
    LIVEEDIT_HD void operator()(int64_t index) const {
        using Bits = typename Real::Bits;
        const int64_t first = index * N;
        if (first >= a.pixels) return;
        const Bits* planes = static_cast<const Bits*>(a.planes);
        Pack<Bits, N> in[3];
        LIVEEDIT_UNROLL
        for (int c = 0; c < 3; ++c) in[c] = load_pack<N>(planes + c * a.pixels + first);
        Pack<uint8_t, N> out[3];
        LIVEEDIT_UNROLL
        for (int i = 0; i < 3 * N; ++i) {
            const float value = sub_rn(Real::load(in[i % 3].e[i / 3]), a.low);
            out[i / N].e[i % N] = static_cast<uint8_t>(whole_byte(mul_rn(value, a.scale)));
        }
        LIVEEDIT_UNROLL
        for (int i = 0; i < 3; ++i) store_pack(a.rgb + first * 3 + i * N, out[i]);
    }
};

// The numbers of liveedit.runtime.nv12, in its order of operations.
struct ColorMatrix {
    float red, green, blue;                    // weights of luma
    float y_offset, y_scale;                   // luma 0..255 -> Y
    float u_scale, v_scale;                    // blue - luma -> U - 128, red - luma -> V - 128
    float y_gain;                              // Y - y_offset -> luma 0..255
    float red_v, green_u, green_v, blue_u;     // chroma gains
};

inline ColorMatrix color_matrix(int bt709, int full_range) {
    const double red = bt709 ? 0.2126 : 0.299, blue = bt709 ? 0.0722 : 0.114;
    const double green = 1 - red - blue;
    const double luma = full_range ? 1.0 : 219.0 / 255, chroma = full_range ? 1.0 : 224.0 / 255;
    const auto real = [](double x) { return static_cast<float>(x); };
    return {real(red),
            real(green),
            real(blue),
            full_range ? 0.0f : 16.0f,
            real(luma),
            real(chroma / (2 * (1 - blue))),
            real(chroma / (2 * (1 - red))),
            real(1 / luma),
            real(2 * (1 - red) / chroma),
            real(2 * blue * (1 - blue) / green / chroma),
            real(2 * red * (1 - red) / green / chroma),
            real(2 * (1 - blue) / chroma)};
}

// Frames of NV12: Y [height, pitch], U and V interleaved [height / 2, pitch], `frame_stride` bytes
// from one frame to the next in both. Real planes: `plane_stride` elements from R to G to B.
struct Nv12Args {
    uint8_t* y;
    uint8_t* uv;
    void* planes;       // [3, frames, height, width] real
    const void* table;  // [256] real, in; unused out
    int64_t frames, height, width, pitch, frame_stride, plane_stride;
    float low, scale;  // out; unused in
    ColorMatrix color;
};

inline bool wide_planes(const void* planes, int64_t pixels, int dtype) {
    return pixels * dtype_bytes(dtype) % 16 == 0 && aligned16(planes);
}

inline bool even(const void* address) { return reinterpret_cast<uintptr_t>(address) % 2 == 0; }

inline bool valid(const Nv12Args& a, int dtype) {
    return valid_dtype(dtype) && a.frames >= 0 && a.height >= 0 && a.width >= 0 &&
           a.height % 2 == 0 && a.width % 2 == 0 && a.pitch >= a.width && a.pitch % 2 == 0 &&
           a.frame_stride % 2 == 0 && even(a.y) && even(a.uv) &&
           a.plane_stride >= a.frames * a.height * a.width;
}

// Whether every row of every plane starts on 16 bytes.
inline bool wide(const Nv12Args& a, int dtype) {
    return a.width * dtype_bytes(dtype) % 16 == 0 && a.pitch % 16 == 0 &&
           a.frame_stride % 16 == 0 && wide_planes(a.planes, a.plane_stride, dtype) &&
           aligned16(a.y) && aligned16(a.uv);
}

// Every 2 x 2 pixels share their U and V as they are. RGB is rounded to bytes first, so that
// planes are those of the same picture given as RGB.
template <class Real, int N>
struct Nv12In {
    Nv12Args a;
    LIVEEDIT_HD void operator()(int64_t index) const {
        using Bits = typename Real::Bits;
        const uint32_t packs = static_cast<uint32_t>(a.width / N);
        const uint32_t line = static_cast<uint32_t>(index) / packs;
        const uint32_t frame = line / static_cast<uint32_t>(a.height);
        if (frame >= a.frames) return;
        const int64_t row = line % static_cast<uint32_t>(a.height);
        const int64_t column = static_cast<uint32_t>(index) % packs * N;
        const Bits* table = static_cast<const Bits*>(a.table);
        const int64_t start = frame * a.frame_stride;
        const Pack<uint8_t, N> luma = load_pack<N>(a.y + start + row * a.pitch + column);
        constexpr int kChroma = N < 2 ? 2 : N;
        const Pack<uint8_t, kChroma> chroma =
            load_pack<kChroma>(a.uv + start + row / 2 * a.pitch + column / 2 * 2);
        Pack<Bits, N> out[3];
        LIVEEDIT_UNROLL
        for (int i = 0; i < N; ++i) {
            const float y = mul_rn(sub_rn(luma.e[i], a.color.y_offset), a.color.y_gain);
            const float u = sub_rn(chroma.e[i / 2 * 2], 128.0f);
            const float v = sub_rn(chroma.e[i / 2 * 2 + 1], 128.0f);
            const float red = add_rn(y, mul_rn(v, a.color.red_v));
            const float green =
                sub_rn(sub_rn(y, mul_rn(u, a.color.green_u)), mul_rn(v, a.color.green_v));
            const float blue = add_rn(y, mul_rn(u, a.color.blue_u));
            out[0].e[i] = table[static_cast<int>(whole_byte(red))];
            out[1].e[i] = table[static_cast<int>(whole_byte(green))];
            out[2].e[i] = table[static_cast<int>(whole_byte(blue))];
        }
        Bits* planes = static_cast<Bits*>(a.planes) + line * a.width + column;
        LIVEEDIT_UNROLL
        for (int c = 0; c < 3; ++c) store_pack(planes + c * a.plane_stride, out[c]);
    }
};

// Two rows of C columns: RGB bytes as FramesOut gives them, then Y of each pixel, and U and V of
// the mean colour of each 2 x 2 pixels.
template <class Real, int N>
struct Nv12Out {
    static constexpr int C = N < 2 ? 2 : N;
    Nv12Args a;
    LIVEEDIT_HD void operator()(int64_t index) const {
        using Bits = typename Real::Bits;
        const uint32_t packs = static_cast<uint32_t>(a.width / C);
        const uint32_t pair = static_cast<uint32_t>(index) / packs;
        const uint32_t pairs = static_cast<uint32_t>(a.height / 2);
        const uint32_t frame = pair / pairs;
        if (frame >= a.frames) return;
        const int64_t column = static_cast<uint32_t>(index) % packs * C;
        const int64_t start = frame * a.frame_stride;
        float mean[3][C / 2] = {};
        LIVEEDIT_UNROLL
        for (int r = 0; r < 2; ++r) {
            const int64_t row = pair % pairs * 2 + r;
            const Bits* planes = static_cast<const Bits*>(a.planes) +
                                 (frame * a.height + row) * a.width + column;
            float luma[C] = {};
            LIVEEDIT_UNROLL
            for (int c = 0; c < 3; ++c) {
                const float weight = c == 0   ? a.color.red
                                     : c == 1 ? a.color.green
                                              : a.color.blue;
                LIVEEDIT_UNROLL
                for (int i = 0; i < C; i += N) {
                    const Pack<Bits, N> in = load_pack<N>(planes + c * a.plane_stride + i);
                    LIVEEDIT_UNROLL
                    for (int j = 0; j < N; ++j) {
                        const float value = mul_rn(sub_rn(Real::load(in.e[j]), a.low), a.scale);
                        const float byte = whole_byte(value);
                        mean[c][(i + j) / 2] = add_rn(mean[c][(i + j) / 2], byte);  // exact
                        luma[i + j] = add_rn(luma[i + j], mul_rn(weight, byte));
                    }
                }
            }
            Pack<uint8_t, C> out;
            LIVEEDIT_UNROLL
            for (int i = 0; i < C; ++i) {
                const float y = add_rn(a.color.y_offset, mul_rn(a.color.y_scale, luma[i]));
                out.e[i] = static_cast<uint8_t>(whole_byte(y));
            }
            store_pack(a.y + start + row * a.pitch + column, out);
        }
        Pack<uint8_t, C> out;
        LIVEEDIT_UNROLL
        for (int i = 0; i < C / 2; ++i) {
            const float red = mul_rn(mean[0][i], 0.25f), green = mul_rn(mean[1][i], 0.25f);
            const float blue = mul_rn(mean[2][i], 0.25f);
            const float luma = add_rn(add_rn(mul_rn(a.color.red, red), mul_rn(a.color.green, green)),
                                      mul_rn(a.color.blue, blue));
            const float u = mul_rn(a.color.u_scale, sub_rn(blue, luma));
            const float v = mul_rn(a.color.v_scale, sub_rn(red, luma));
            out.e[2 * i] = static_cast<uint8_t>(whole_byte(add_rn(128.0f, u)));
            out.e[2 * i + 1] = static_cast<uint8_t>(whole_byte(add_rn(128.0f, v)));
        }
        store_pack(a.uv + start + pair % pairs * a.pitch + column, out);
    }
};

}  // namespace liveedit
