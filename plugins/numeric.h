// Real types and rounding, the same bits on host and device.
//
// Arithmetic is float32, round to nearest even, never contracted to an fma. Every NaN result has
// the bits the device gives it (0x7fffffff, 0x7fff), so that results can be compared as integers.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define LIVEEDIT_HD __host__ __device__ inline
#define LIVEEDIT_UNROLL _Pragma("unroll")
#else
#define LIVEEDIT_HD inline
#define LIVEEDIT_UNROLL
#endif

namespace liveedit {

LIVEEDIT_HD uint32_t float_bits(float value) {
#ifdef __CUDA_ARCH__
    return __float_as_uint(value);
#else
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
#endif
}

LIVEEDIT_HD float bits_float(uint32_t bits) {
#ifdef __CUDA_ARCH__
    return __uint_as_float(bits);
#else
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
#endif
}

// The host is compiled with -ffp-contract=off; on the device these intrinsics are never contracted.
LIVEEDIT_HD float mul_rn(float a, float b) {
#ifdef __CUDA_ARCH__
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}

LIVEEDIT_HD float add_rn(float a, float b) {
#ifdef __CUDA_ARCH__
    return __fadd_rn(a, b);
#else
    return a + b;
#endif
}

LIVEEDIT_HD float sub_rn(float a, float b) {
#ifdef __CUDA_ARCH__
    return __fsub_rn(a, b);
#else
    return a - b;
#endif
}

LIVEEDIT_HD float div_rn(float a, float b) {
#ifdef __CUDA_ARCH__
    return __fdiv_rn(a, b);
#else
    return a / b;
#endif
}

LIVEEDIT_HD int popcount(uint32_t word) {
#ifdef __CUDA_ARCH__
    return __popc(word);
#else
    return __builtin_popcount(word);
#endif
}

struct Float32 {
    using Bits = uint32_t;
    LIVEEDIT_HD static bool finite(Bits bits) { return (bits & 0x7f800000u) != 0x7f800000u; }
    LIVEEDIT_HD static float load(Bits bits) { return bits_float(bits); }
    LIVEEDIT_HD static Bits round(float value) {
        const uint32_t bits = float_bits(value);
        return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fffffffu : bits;
    }
};

struct Float16 {
    using Bits = uint16_t;
    LIVEEDIT_HD static bool finite(Bits bits) { return (bits & 0x7c00u) != 0x7c00u; }
    LIVEEDIT_HD static float load(Bits bits) {
#ifdef __CUDA_ARCH__
        return __half2float(__ushort_as_half(bits));
#else
        const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
        const uint32_t magnitude = bits & 0x7fffu;
        if (magnitude >= 0x7c00u) {  // infinity or NaN
            return bits_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
        }
        if (magnitude < 0x0400u) {  // subnormal: a count of 2^-24, exact in float
            return bits_float(sign | float_bits(static_cast<float>(magnitude) * 0x1p-24f));
        }
        return bits_float(sign | ((magnitude << 13) + (112u << 23)));
#endif
    }
    LIVEEDIT_HD static Bits round(float value) {
#ifdef __CUDA_ARCH__
        return __half_as_ushort(__float2half_rn(value));
#else
        const uint32_t bits = float_bits(value);
        const uint32_t magnitude = bits & 0x7fffffffu;
        const uint32_t sign = (bits >> 16) & 0x8000u;
        if (magnitude > 0x7f800000u) return 0x7fffu;
        if (magnitude >= 0x477ff000u) return static_cast<Bits>(sign | 0x7c00u);  // from 65520 on
        if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 rounds to a multiple of 2^-24
            const uint32_t rounded = float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000u;
            return static_cast<Bits>(sign | rounded);
        }
        const uint32_t even = (magnitude >> 13) & 1u;
        return static_cast<Bits>(sign | ((magnitude + 0xfffu + even - (112u << 23)) >> 13));
#endif
    }
};

struct BFloat16 {
    using Bits = uint16_t;
    LIVEEDIT_HD static bool finite(Bits bits) { return (bits & 0x7f80u) != 0x7f80u; }
    LIVEEDIT_HD static float load(Bits bits) {
        return bits_float(static_cast<uint32_t>(bits) << 16);
    }
    LIVEEDIT_HD static Bits round(float value) {
#ifdef __CUDA_ARCH__
        return __bfloat16_as_ushort(__float2bfloat16_rn(value));
#else
        const uint32_t bits = float_bits(value);
        if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;
        return static_cast<Bits>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
    }
};

// N neighbouring elements moved by one access: 16 bytes, or a single element.
template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
    T e[N];
};

template <int N, class T>
LIVEEDIT_HD Pack<T, N> load_pack(const T* address) {
#ifdef __CUDA_ARCH__
    return *reinterpret_cast<const Pack<T, N>*>(address);
#else
    Pack<T, N> pack;
    std::memcpy(&pack, address, sizeof pack);
    return pack;
#endif
}

#ifdef __CUDACC__
template <int Bytes>
struct Word;
template <>
struct Word<1> { using type = uint8_t; };
template <>
struct Word<2> { using type = uint16_t; };
template <>
struct Word<4> { using type = uint32_t; };
template <>
struct Word<8> { using type = uint2; };
template <>
struct Word<16> { using type = uint4; };
#endif

// By an instruction of its own: the compiler splits some plain stores of elements it knows. The
// address is in device or pinned host memory, never shared or local.
template <int N, class T>
LIVEEDIT_HD void store_pack(T* address, const Pack<T, N>& pack) {
#ifdef __CUDA_ARCH__
    static_assert(sizeof pack <= 16, "one access");
    typename Word<sizeof pack>::type word;
    memcpy(&word, &pack, sizeof word);
    __stwb(reinterpret_cast<decltype(word)*>(address), word);
#else
    std::memcpy(address, &pack, sizeof pack);
#endif
}

template <int N>
struct Width {
    static constexpr int value = N;
};

enum DType : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

inline bool valid_dtype(int dtype) { return dtype >= kFloat32 && dtype <= kBFloat16; }

inline int dtype_bytes(int dtype) { return dtype == kFloat32 ? 4 : 2; }

// Calls f(Real{}, Width<N>{}): N elements fill 16 bytes if `wide`, else N is 1.
template <class F>
int with_real(int dtype, bool wide, F f) {
    switch (dtype) {
        case kFloat32: return wide ? f(Float32{}, Width<4>{}) : f(Float32{}, Width<1>{});
        case kFloat16: return wide ? f(Float16{}, Width<8>{}) : f(Float16{}, Width<1>{});
        default: return wide ? f(BFloat16{}, Width<8>{}) : f(BFloat16{}, Width<1>{});
    }
}

inline bool aligned16(const void* address) {
    return reinterpret_cast<uintptr_t>(address) % 16 == 0;
}

}  // namespace liveedit
