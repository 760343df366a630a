// The C interface of the native libraries.
//
// LIVEEDIT_LAUNCHER(name, parameters...) declares two functions:
//     int liveedit_name(parameters..., void* stream)    CUDA libraries
//     int liveedit_host_name(parameters...)             the host library: the same grid on the CPU
//
// Pointers are device memory (of the host library: host memory), but those called host_*, which
// are pinned host memory or null; `stream` is a cudaStream_t. Nothing allocates, synchronises or
// keeps state; sizes and constants are arguments, what changes from chunk to chunk is read from
// device memory, so a captured graph never needs an update. The result is 0 or a cudaError_t:
// 1 for arguments that cannot be right, else what the launch reported. dtype: 0 float32, 1 float16,
// 2 bfloat16, and `real` is an array of it. Arrays start on a multiple of their
// element unless more is asked for; those on 16 bytes are faster.
#pragma once

#include <cstdint>

#define LIVEEDIT_API __attribute__((visibility("default")))
#define LIVEEDIT_LAUNCHER(name, ...)                        \
    LIVEEDIT_API int liveedit_##name(__VA_ARGS__, void* stream); \
    LIVEEDIT_API int liveedit_host_##name(__VA_ARGS__)

extern "C" {

// y[i] = round(x[keep_index[i]] * (1 + scale) + shift). docs/plugins.md has the arithmetic.
LIVEEDIT_LAUNCHER(mask_cache_gather, const void* x, const float* scale, const float* shift,
                  const int32_t* keep_index, void* y, int64_t tokens, int64_t kept, int64_t width,
                  int dtype);

// y = round(x + fill * gate), fill = update[token_row[t]] or store[t]; store_out may be store.
LIVEEDIT_LAUNCHER(mask_cache_scatter, const void* x, const void* update, const void* store,
                  const float* gate, const int32_t* token_row, void* y, void* store_out,
                  int64_t tokens, int64_t kept, int64_t width, int dtype);

// rgb [pixels, 3] -> planes real [3, pixels] through table real [256].
LIVEEDIT_LAUNCHER(frames_in, const uint8_t* rgb, const void* table, void* planes, int64_t pixels,
                  int dtype);

// planes real [3, pixels] -> rgb [pixels, 3]: (value - low) * scale, to nearest, clamped.
LIVEEDIT_LAUNCHER(frames_out, const void* planes, uint8_t* rgb, int64_t pixels, float low,
                  float scale, int dtype);

// NV12 frames -> RGB bytes of liveedit.runtime.nv12 -> planes through table real [256].
// y [height, pitch] and uv [height / 2, pitch] of frame f start frame_stride * f bytes on; R, G and
// B planes [frames, height, width] start plane_stride elements apart, so that a part of a longer
// planes array can be written. Height, width, pitch, frame_stride and both addresses are even.
// bt709: 1, or 0 for BT.601.
LIVEEDIT_LAUNCHER(nv12_in, const uint8_t* y, const uint8_t* uv, const void* table, void* planes,
                  int64_t frames, int64_t height, int64_t width, int64_t pitch,
                  int64_t frame_stride, int64_t plane_stride, int bt709, int full_range, int dtype);

// planes -> the RGB bytes of frames_out -> NV12 of liveedit.runtime.nv12.
LIVEEDIT_LAUNCHER(nv12_out, const void* planes, uint8_t* y, uint8_t* uv, int64_t frames,
                  int64_t height, int64_t width, int64_t pitch, int64_t frame_stride,
                  int64_t plane_stride, float low, float scale, int bt709, int full_range,
                  int dtype);

// Starts chunk control[0] of a stream: what liveedit.runtime.kv_cache says of it.
//     control int64 [8]: next chunk, seed, chunk, first latent frame, write row, and the commit's
//     source row, target row and count (0 while the window fills). The host writes [0] and [1] at
//     the start of a stream; the call takes chunk = [0], adds 1 to [0], and writes [2] to [7].
//     control + 1 is noise's key, + 3 rope_time's first_frame, + 5 copy_rows's plan.
//     counts [2] of select_tokens, or null where every token is kept
//     write_index [1], kv_full [1], kv_pruned [1]: inputs of the engine's passes
//     non_finite [1]: cleared
// slots and sink_slots hold one chunk of rows_per_slot rows each; frames: latent ones per chunk.
LIVEEDIT_LAUNCHER(begin_chunk, int64_t* control, const int32_t* counts, int64_t* write_index,
                  int32_t* kv_full, int32_t* kv_pruned, int32_t* non_finite, int64_t slots,
                  int64_t sink_slots, int64_t rows_per_slot, int64_t frames);

// out real [count] = liveedit.runtime.noise.normal(count, seed=key[0], chunk=key[1], draw).
// draw is the same in every chunk, so it is an argument.
LIVEEDIT_LAUNCHER(noise, const uint64_t* key, void* out, int64_t count, uint32_t draw, int dtype);

// Columns [0, pairs) of cos and sin [1, frames * tokens, columns]: liveedit.runtime.rope at latent
// frame first_frame[0]. The other columns never change; the host writes them once.
//     frequency [pairs]: of axis_angles, radians per frame. tokens: per frame
LIVEEDIT_LAUNCHER(rope_time, const int64_t* first_frame, const double* frequency, float* cos,
                  float* sin, int64_t frames, int64_t tokens, int64_t pairs, int64_t columns);

// Copies rows of every buffer [groups, rows, row_bytes] in one launch.
//     buffers [num_buffers] addresses; plan [3]: source row, target row, count <= most_rows, where
//     0 copies nothing. The ranges must not overlap. aligned: every buffer starts on 16 bytes
LIVEEDIT_LAUNCHER(copy_rows, void* const* buffers, const int64_t* plan, int64_t num_buffers,
                  int64_t groups, int64_t rows, int64_t row_bytes, int64_t most_rows, int aligned);

// flag [1] = 1 if an element of x real [count] is infinite or NaN, else as it was.
LIVEEDIT_LAUNCHER(non_finite, const void* x, int64_t count, int32_t* flag, int dtype);

// What follows non_finite: keeps x0 as the last good one, or replaces it. No two arrays overlap.
//     flag 0: last_good = x0, has_good = 1, outcome = 0
//     else outcome = 1 + policy; policy 0 (stop): nothing else; 1 (last-good): x0 = last_good if
//     has_good, else source; 2 (passthrough): x0 = source
// has_good [1] is 0 at the start of a stream.
LIVEEDIT_LAUNCHER(replace, void* x0, void* last_good, const void* source, int64_t bytes,
                  const int32_t* flag, int32_t* has_good, int32_t* outcome, int32_t* host_outcome,
                  int policy);

// How much each latent pixel changed: mean square over channels, min-max normalised. Three kernels.
//     edited, source real [channels, pixels]; scratch 16-byte aligned, importance_scratch bytes
//     importance [pixels] in [0, 1]; peak [1] the largest mean square
//     bfloat16_steps: round to bfloat16 after every operation, as MaskCachePolicy's
//     importance_dtype bfloat16 does, whatever dtype is
LIVEEDIT_LAUNCHER(importance, const void* edited, const void* source, void* scratch,
                  float* importance, float* peak, float* host_peak, int64_t channels,
                  int64_t pixels, int bfloat16_steps, int dtype);

// The tokens of the next chunk's pruned passes, equal to liveedit.runtime.mask_cache. Four or five
// kernels. A token is 2 x 2 latent pixels; all = frames * height * width / 4 of them.
//     importance [frames, height, width], height and width even; 16-byte aligned
//     full [1]: not 0 keeps every token; null: never
//     scratch: 16-byte aligned, select_scratch bytes
//     keep_index [all] ascending, then -1; token_row [all] its inverse, or -1
//     kept [all] 0 or 1; 16-byte aligned
//     counts [2]: tokens selected by the rule, tokens kept
//     mode 0 `released`: keep = max(1, int(height * width * keep_ratio)) latent pixels per frame
//     mode 1 `paper`: keep = max(1, int(height * width / 4 * keep_ratio)) tokens per frame
//     bucket: the number kept is rounded up to a multiple of it, or to all
//     budget: if not 0, exactly min(budget, all) tokens, so that the host need not know counts
LIVEEDIT_LAUNCHER(select_tokens, const float* importance, const int32_t* full, void* scratch,
                  int32_t* keep_index, int32_t* token_row, uint8_t* kept, int32_t* counts,
                  int32_t* host_counts, int64_t frames, int64_t height, int64_t width, int mode,
                  int64_t keep, int64_t bucket, int64_t budget);

// Bytes of scratch. Plain functions of their arguments; every library has them under these names.
LIVEEDIT_API int64_t liveedit_importance_scratch(int64_t pixels);
LIVEEDIT_API int64_t liveedit_select_scratch(int64_t frames, int64_t height, int64_t width);

}  // extern "C"
