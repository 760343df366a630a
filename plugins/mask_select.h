// liveedit.runtime.mask_cache on the device: how much each latent pixel changed, and which tokens
// the next chunk computes. The same bits and the same tokens, ties included.
//
// Ranks are counts: a thread compares its element with all others. Nothing is sorted or summed by
// several threads at once, so the result does not depend on their order. Functors as in stream.h.
#pragma once

#include "numeric.h"

namespace liveedit {

constexpr int kPartials = 512;  // threads that look for the smallest and the largest difference

struct ImportanceArgs {
    const void* edited;  // [channels, pixels] real
    const void* source;  // the same
    float* difference;   // [pixels] mean square over channels, scratch
    uint32_t* partials;  // [2, kPartials], scratch
    float* importance;   // [pixels] in [0, 1]
    float* peak;         // [1] the largest difference
    float* host_peak;    // the same in pinned host memory, or null
    int64_t channels, pixels;
};

// Step rounds after every operation as the named type does; its values stay float32.
struct ExactStep {
    LIVEEDIT_HD static float round(float value) { return value; }
};

struct BFloat16Step {
    LIVEEDIT_HD static float round(float value) { return BFloat16::load(BFloat16::round(value)); }
};

template <class Real, class Step>
struct MeanSquare {
    ImportanceArgs a;
    LIVEEDIT_HD void operator()(int64_t index) const {
        using Bits = typename Real::Bits;
        if (index >= a.pixels) return;
        const Bits* edited = static_cast<const Bits*>(a.edited) + index;
        const Bits* source = static_cast<const Bits*>(a.source) + index;
        float sum = 0.0f;
        for (int64_t c = 0; c < a.channels; ++c) {
            const float difference =
                Step::round(sub_rn(Step::round(Real::load(edited[c * a.pixels])),
                                   Step::round(Real::load(source[c * a.pixels]))));
            sum = add_rn(sum, Step::round(mul_rn(difference, difference)));
        }
        a.difference[index] = Step::round(div_rn(sum, static_cast<float>(a.channels)));
    }
};

// Differences are not negative, so their bits are in their order; NaN is the largest.
struct Extremes {
    ImportanceArgs a;
    LIVEEDIT_HD void operator()(int64_t index) const {
        if (index >= kPartials) return;
        uint32_t low = 0xffffffffu, high = 0;
        for (int64_t i = index; i < a.pixels; i += kPartials) {
            const uint32_t bits = float_bits(a.difference[i]);
            low = bits < low ? bits : low;
            high = bits > high ? bits : high;
        }
        a.partials[index] = low;
        a.partials[kPartials + index] = high;
    }
};

template <class Step>
struct Normalise {
    ImportanceArgs a;
    LIVEEDIT_HD void operator()(int64_t index) const {
        if (index >= a.pixels) return;
        uint32_t low_bits = 0xffffffffu, high_bits = 0;
        for (int i = 0; i < kPartials; i += 4) {
            const Pack<uint32_t, 4> lows = load_pack<4>(a.partials + i);
            const Pack<uint32_t, 4> highs = load_pack<4>(a.partials + kPartials + i);
            LIVEEDIT_UNROLL
            for (int j = 0; j < 4; ++j) {
                low_bits = lows.e[j] < low_bits ? lows.e[j] : low_bits;
                high_bits = highs.e[j] > high_bits ? highs.e[j] : high_bits;
            }
        }
        const float low = bits_float(low_bits), high = bits_float(high_bits);
        const float scale = Step::round(add_rn(sub_rn(high, low), 1e-8f));
        const float above = Step::round(sub_rn(a.difference[index], low));
        a.importance[index] = Step::round(div_rn(above, scale));
        if (index == 0) {
            *a.peak = high;
            if (a.host_peak) *a.host_peak = high;
        }
    }
};

enum SelectMode : int { kReleased, kPaper };

// Lengths are int: 64-bit ones cost registers, and there are fewer than 2^28 tokens.
struct SelectArgs {
    const float* importance;  // [frames, height, width]
    const int32_t* full;      // [1] not 0: keep every token; or null: never
    int32_t* keep_index;      // [all] ascending, then -1
    int32_t* token_row;       // [all]
    uint8_t* kept;            // [all] 0 or 1
    int32_t* counts;          // [2] selected before the size was fixed, kept
    int32_t* host_counts;     // the same in pinned host memory, or null
    int mode;
    int frames, height, width;  // latent pixels
    int keep;                   // latent pixels per frame (released), tokens per frame (paper)
    int bucket;                 // the number of kept tokens is a multiple of it
    int budget;                 // if not 0: exactly so many tokens instead
    // Scratch. Rows of flags start on 16 bytes.
    uint64_t* keys;        // [all] unique; a token precedes those of smaller key
    uint8_t* pixel_flags;  // [frames, pixel_pitch]
    uint8_t* token_flags;  // [frames, token_pitch]
    uint32_t* totals;      // [tokens]
    int pixel_pitch, token_pitch;

    LIVEEDIT_HD int pixels() const { return height * width; }  // per frame
    LIVEEDIT_HD int tokens() const { return pixels() / 4; }    // per frame
    LIVEEDIT_HD int all() const { return frames * tokens(); }
};

// Ones among the first `end` flags of a row that starts on 16 bytes.
LIVEEDIT_HD int ones_before(const uint8_t* flags, int end) {
    int count = 0;
    int at = 0;
    for (; at + 16 <= end; at += 16) {
        const Pack<uint32_t, 4> words = load_pack<4>(reinterpret_cast<const uint32_t*>(flags + at));
        count += popcount(words.e[0]) + popcount(words.e[1]) + popcount(words.e[2]) +
                 popcount(words.e[3]);
    }
    for (; at < end; ++at) count += flags[at];
    return count;
}

LIVEEDIT_HD int least_ones(const uint8_t* flags, int frames, int pitch, int end) {
    int least = end;
    for (int f = 0; f < frames; ++f) {
        const int ones = ones_before(flags + f * pitch, end);
        least = ones < least ? ones : least;
    }
    return least;
}

// Integers in the order of floats. Both zeros are one; NaN comes before all.
LIVEEDIT_HD uint32_t ordered(float value) {
    if (value != value) return 0;
    const uint32_t bits = float_bits(add_rn(value, 0.0f));
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// First of the first latent pixel of a token, counted over all frames.
LIVEEDIT_HD int first_pixel(const SelectArgs& a, int frame, int token) {
    const int columns = a.width / 2;
    return frame * a.pixels() + token / columns * 2 * a.width + token % columns * 2;
}

LIVEEDIT_HD float sum_of_four(const SelectArgs& a, int frame, int token) {
    const float* top = a.importance + first_pixel(a, frame, token);
    const float* bottom = top + a.width;
    return add_rn(add_rn(top[0], top[1]), add_rn(bottom[0], bottom[1]));
}

// Chosen tokens come first, then the more important ones, then the earlier ones.
LIVEEDIT_HD uint64_t precedence(bool chosen, float score, int index) {
    return static_cast<uint64_t>(chosen) << 63 | static_cast<uint64_t>(ordered(score)) << 31 |
           static_cast<uint64_t>(0x7fffffff - index);
}

// Whether fewer than `keep` pixels of the frame are larger: what ties with the last one stays.
struct KeepPixels {
    SelectArgs a;
    LIVEEDIT_HD void operator()(int64_t item) const {
        const int index = static_cast<int>(item);
        const int frame = index / a.pixels(), pixel = index % a.pixels();
        if (frame >= a.frames) return;
        const float* row = a.importance + frame * a.pixels();
        const float mine = row[pixel];
        int larger = 0;  // NaN is the largest, and never kept
        for (int i = 0; i < a.pixels(); i += 4) {
            const Pack<float, 4> others = load_pack<4>(row + i);
            LIVEEDIT_UNROLL
            for (int j = 0; j < 4; ++j) larger += !(others.e[j] <= mine);
        }
        a.pixel_flags[frame * a.pixel_pitch + pixel] = larger < a.keep;
    }
};

// Cut every frame to the shortest, then keep a token where 3 of its 4 pixels are.
struct KeepTokens {
    SelectArgs a;
    LIVEEDIT_HD void operator()(int64_t item) const {
        const int index = static_cast<int>(item);
        const int frame = index / a.tokens(), token = index % a.tokens();
        if (frame >= a.frames) return;
        const int shortest = least_ones(a.pixel_flags, a.frames, a.pixel_pitch, a.pixels());
        const uint8_t* flags = a.pixel_flags + frame * a.pixel_pitch;
        int four = 0;
        for (int row = 0; row < 2; ++row) {
            const int pixel = first_pixel(a, 0, token) + row * a.width;
            int before = flags[pixel] || flags[pixel + 1] ? ones_before(flags, pixel) : 0;
            for (int column = 0; column < 2; ++column) {
                if (!flags[pixel + column]) continue;
                four += before < shortest;
                ++before;
            }
        }
        a.token_flags[frame * a.token_pitch + token] = four > 2;
    }
};

// Cut every frame to the one with fewest tokens.
struct EqualTokens {
    SelectArgs a;
    LIVEEDIT_HD void operator()(int64_t item) const {
        const int index = static_cast<int>(item);
        const int frame = index / a.tokens(), token = index % a.tokens();
        if (frame >= a.frames) return;
        const uint8_t* flags = a.token_flags + frame * a.token_pitch;
        const bool chosen = flags[token] && ones_before(flags, token) <
                                                least_ones(a.token_flags, a.frames, a.token_pitch,
                                                           a.tokens());
        a.keys[index] = precedence(chosen, sum_of_four(a, frame, token), index);
    }
};

struct PaperTotals {
    SelectArgs a;
    LIVEEDIT_HD void operator()(int64_t item) const {
        const int index = static_cast<int>(item);
        if (index >= a.tokens()) return;
        float total = sum_of_four(a, 0, index);
        for (int f = 1; f < a.frames; ++f) total = add_rn(total, sum_of_four(a, f, index));
        a.totals[index] = ordered(total);
    }
};

struct PaperTokens {
    SelectArgs a;
    LIVEEDIT_HD void operator()(int64_t item) const {
        const int index = static_cast<int>(item);
        const int tokens = a.tokens();
        if (index >= tokens) return;
        const uint32_t mine = a.totals[index];
        int before = 0;
        for (int i = 0; i < tokens; ++i) {
            before += a.totals[i] > mine || (a.totals[i] == mine && i < index);
        }
        for (int f = 0; f < a.frames; ++f) {
            const int at = f * tokens + index;
            a.keys[at] = precedence(before < a.keep, sum_of_four(a, f, index), at);
        }
    }
};

struct Sizes {
    int selected, kept;
};

LIVEEDIT_HD Sizes sizes(const SelectArgs& a) {
    const int all = a.all();
    if (a.full && *a.full != 0) return {all, all};
    const int selected =
        a.frames * (a.mode == kPaper
                        ? a.keep
                        : least_ones(a.token_flags, a.frames, a.token_pitch, a.tokens()));
    int kept = a.budget;
    if (kept == 0) {
        const int buckets = (selected + a.bucket - 1) / a.bucket;
        kept = (buckets > 1 ? buckets : 1) * a.bucket;
    }
    if (kept >= all) return {all, all};
    return {selected, kept};
}

struct FixSize {
    SelectArgs a;
    LIVEEDIT_HD void operator()(int64_t item) const {
        const int index = static_cast<int>(item);
        const int all = a.all();
        if (index >= all) return;
        const uint64_t mine = a.keys[index];
        int before = 0;
        int i = 0;
        for (; i + 2 <= all; i += 2) {
            const Pack<uint64_t, 2> others = load_pack<2>(a.keys + i);
            before += (others.e[0] > mine) + (others.e[1] > mine);
        }
        if (i < all) before += a.keys[i] > mine;
        a.kept[index] = before < sizes(a).kept;
    }
};

struct Compact {
    SelectArgs a;
    LIVEEDIT_HD void operator()(int64_t item) const {
        const int index = static_cast<int>(item);
        if (index >= a.all()) return;
        const Sizes size = sizes(a);
        const int row = ones_before(a.kept, index);
        const bool kept = a.kept[index] != 0;
        a.token_row[index] = kept ? row : -1;
        if (kept) a.keep_index[row] = index;
        if (index >= size.kept) a.keep_index[index] = -1;
        if (index == 0) {
            const int32_t counts[2] = {size.selected, size.kept};
            for (int i = 0; i < 2; ++i) {
                a.counts[i] = counts[i];
                if (a.host_counts) a.host_counts[i] = counts[i];
            }
        }
    }
};

}  // namespace liveedit
