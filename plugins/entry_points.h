// The C functions of launchers.h, defined once for CUDA and once for the host. The includer defines
// LIVEEDIT_ENTRY(name, call, parameters...) as a function that calls this member of its Dispatch.

LIVEEDIT_ENTRY(mask_cache_gather,
               gather({x, scale, shift, keep_index, y, tokens, kept, width}, dtype), const void* x,
               const float* scale, const float* shift, const int32_t* keep_index, void* y,
               int64_t tokens, int64_t kept, int64_t width, int dtype)

LIVEEDIT_ENTRY(mask_cache_scatter,
               scatter({x, update, store, gate, token_row, y, store_out, tokens, kept, width},
                       dtype),
               const void* x, const void* update, const void* store, const float* gate,
               const int32_t* token_row, void* y, void* store_out, int64_t tokens, int64_t kept,
               int64_t width, int dtype)

LIVEEDIT_ENTRY(frames_in, frames_in({rgb, table, planes, pixels}, dtype), const uint8_t* rgb,
               const void* table, void* planes, int64_t pixels, int dtype)

LIVEEDIT_ENTRY(frames_out, frames_out({planes, rgb, pixels, low, scale}, dtype),
               const void* planes, uint8_t* rgb, int64_t pixels, float low, float scale, int dtype)

LIVEEDIT_ENTRY(nv12_in,
               nv12_in({const_cast<uint8_t*>(y), const_cast<uint8_t*>(uv), planes, table, frames,
                        height, width, pitch, frame_stride, plane_stride, 0, 0, {}},
                       bt709, full_range, dtype),
               const uint8_t* y, const uint8_t* uv, const void* table, void* planes,
               int64_t frames, int64_t height, int64_t width, int64_t pitch,
               int64_t frame_stride, int64_t plane_stride, int bt709, int full_range, int dtype)

LIVEEDIT_ENTRY(nv12_out,
               nv12_out({y, uv, const_cast<void*>(planes), nullptr, frames, height, width, pitch,
                         frame_stride, plane_stride, low, scale, {}},
                        bt709, full_range, dtype),
               const void* planes, uint8_t* y, uint8_t* uv, int64_t frames, int64_t height,
               int64_t width, int64_t pitch, int64_t frame_stride, int64_t plane_stride, float low,
               float scale, int bt709, int full_range, int dtype)

LIVEEDIT_ENTRY(begin_chunk,
               begin_chunk({control, counts, write_index, kv_full, kv_pruned, non_finite, slots,
                            sink_slots, rows_per_slot, frames}),
               int64_t* control, const int32_t* counts, int64_t* write_index, int32_t* kv_full,
               int32_t* kv_pruned, int32_t* non_finite, int64_t slots, int64_t sink_slots,
               int64_t rows_per_slot, int64_t frames)

LIVEEDIT_ENTRY(noise, noise({key, out, count, draw}, dtype), const uint64_t* key, void* out,
               int64_t count, uint32_t draw, int dtype)

LIVEEDIT_ENTRY(rope_time,
               rope_time({first_frame, frequency, cos, sin, frames, tokens, pairs, columns}),
               const int64_t* first_frame, const double* frequency, float* cos, float* sin,
               int64_t frames, int64_t tokens, int64_t pairs, int64_t columns)

LIVEEDIT_ENTRY(copy_rows,
               copy_rows({buffers, plan, num_buffers, groups, rows, row_bytes, most_rows},
                         aligned != 0),
               void* const* buffers, const int64_t* plan, int64_t num_buffers, int64_t groups,
               int64_t rows, int64_t row_bytes, int64_t most_rows, int aligned)

LIVEEDIT_ENTRY(non_finite, non_finite({x, count, flag}, dtype), const void* x, int64_t count,
               int32_t* flag, int dtype)

LIVEEDIT_ENTRY(replace,
               replace({x0, last_good, source, bytes, flag, has_good, outcome, host_outcome,
                        policy}),
               void* x0, void* last_good, const void* source, int64_t bytes, const int32_t* flag,
               int32_t* has_good, int32_t* outcome, int32_t* host_outcome, int policy)

// The partial extremes come first in the scratch, then the differences.
LIVEEDIT_ENTRY(importance,
               importance({edited, source, static_cast<float*>(scratch) + 2 * liveedit::kPartials,
                           static_cast<uint32_t*>(scratch), importance, peak, host_peak, channels,
                           pixels},
                          bfloat16_steps != 0, dtype),
               const void* edited, const void* source, void* scratch, float* importance,
               float* peak, float* host_peak, int64_t channels, int64_t pixels,
               int bfloat16_steps, int dtype)

LIVEEDIT_ENTRY(select_tokens,
               select_tokens({importance, full, keep_index, token_row, kept, counts, host_counts,
                              mode, 0, 0, 0, 0, 0, 0, nullptr, nullptr, nullptr, nullptr, 0, 0},
                             scratch, frames, height, width, keep, bucket, budget),
               const float* importance, const int32_t* full, void* scratch, int32_t* keep_index,
               int32_t* token_row, uint8_t* kept, int32_t* counts, int32_t* host_counts,
               int64_t frames, int64_t height, int64_t width, int mode, int64_t keep,
               int64_t bucket, int64_t budget)

extern "C" int64_t liveedit_importance_scratch(int64_t pixels) {
    return (2 * liveedit::kPartials + pixels) * 4;
}

extern "C" int64_t liveedit_select_scratch(int64_t frames, int64_t height, int64_t width) {
    return liveedit::SelectLayout(frames, height, width).bytes;
}
