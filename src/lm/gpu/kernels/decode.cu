// Attention of one new token of each row to the keys and values in its slot, which are read in place.
#include "common.cuh"

constexpr int WARPS = 4;
constexpr float NEVER = -INFINITY;
// Keys that a thread has in hand.
constexpr int AT_ONCE = 4;

// Row b has lengths[b] tokens in slot b already; its new key and value are written behind them, and seen. A block has one
// head of keys for up to G of the query heads that share it, and one part of the keys; E is the width, rounded up. Each key
// is read by as many neighbouring threads as it has 16 bytes. With one part, the result goes into `mixed`; else sums go
// into `parts`, (rows, heads, splits, width + 2), with the largest score and the sum of weights at the end, for `join`.
// Blocks (splits, K · parts of the groups, rows), 128 threads.
template <int E, int G>
static __device__ __forceinline__ void decode(const Number *query, const Number *key, const Number *value, Number *keys,
                                              Number *values, const unsigned *lengths, Number *mixed, float *parts,
                                              int heads, int kv_heads, int width, int capacity, int window,
                                              int query_step, int key_step, int value_step) {
  constexpr int LANES = E / WIDE, SHARE = 32 / LANES, STEP = WARPS * SHARE * AT_ONCE;
  __shared__ float all_tops[WARPS][G], all_totals[WARPS][G], all_sums[WARPS][G][E];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, column = lane % LANES * WIDE;
  const int groups = heads / kv_heads, kv_head = blockIdx.y % kv_heads, first_group = blockIdx.y / kv_heads * G;
  const int row = blockIdx.z, splits = gridDim.x, length = lengths[row];
  const bool mine = column < width;
  const int first_head = kv_head * groups + first_group, count = min(G, groups - first_group);

  const int seen = max(0, length + 1 - window), all = length + 1 - seen;
  const int part = (all + splits - 1) / splits;
  const int begin = seen + blockIdx.x * part, end = min(length + 1, begin + part);
  const u64 slot = ((u64)row * kv_heads + kv_head) * capacity * width;
  const Number *const new_key = key + (u64)row * key_step + kv_head * width;
  const Number *const new_value = value + (u64)row * value_step + kv_head * width;
  // Nobody reads them from there in this launch.
  if (begin <= length && length < end && first_group == 0 && warp == 0 && lane < LANES && mine) {
    write<WIDE>(keys + slot + (u64)length * width + column, read<WIDE>(new_key + column));
    write<WIDE>(values + slot + (u64)length * width + column, read<WIDE>(new_value + column));
  }

  float of_query[G][WIDE], sum[G][WIDE], top[G], total[G];
#pragma unroll
  for (int g = 0; g < G; g++) {
    top[g] = NEVER, total[g] = 0.0f;
    Pack<Number, WIDE> pack;
    const bool real = g < count && mine;
    if (real) pack = read<WIDE>(query + (u64)row * query_step + (first_head + g) * width + column);
#pragma unroll
    for (int i = 0; i < WIDE; i++) of_query[g][i] = real ? wide(pack.at[i]) : 0.0f, sum[g][i] = 0.0f;
  }
  for (int first = begin; first < end; first += STEP) {
    Pack<Number, WIDE> of_key[AT_ONCE], of_value[AT_ONCE];
    bool real[AT_ONCE];
#pragma unroll
    for (int j = 0; j < AT_ONCE; j++) {
      const int at = first + (j * WARPS + warp) * SHARE + lane / LANES;
      real[j] = at < end;
      if (!real[j] || !mine) continue;
      const u64 place = slot + (u64)at * width + column;
      of_key[j] = read<WIDE>(at == length ? new_key + column : keys + place);
      of_value[j] = read<WIDE>(at == length ? new_value + column : values + place);
    }
    float score[AT_ONCE][G];
#pragma unroll
    for (int j = 0; j < AT_ONCE; j++)
#pragma unroll
      for (int g = 0; g < G; g++) {
        float dot = 0.0f;
        if (real[j] && mine)
#pragma unroll
          for (int i = 0; i < WIDE; i++) dot += of_query[g][i] * wide(of_key[j].at[i]);
#pragma unroll
        for (int with = 1; with < LANES; with *= 2) dot += __shfl_xor_sync(~0u, dot, with);
        score[j][g] = real[j] ? dot : NEVER;
      }
#pragma unroll
    for (int g = 0; g < G; g++) {
      float now = top[g];
#pragma unroll
      for (int j = 0; j < AT_ONCE; j++) now = fmaxf(now, score[j][g]);
      // Where nothing was seen yet, everything is e to the −∞.
      const float base = now == NEVER ? 0.0f : now, factor = __expf(top[g] - base);
      top[g] = now;
      total[g] *= factor;
#pragma unroll
      for (int i = 0; i < WIDE; i++) sum[g][i] *= factor;
#pragma unroll
      for (int j = 0; j < AT_ONCE; j++) {
        const float weight = __expf(score[j][g] - base);
        total[g] += weight;
        if (real[j] && mine)
#pragma unroll
          for (int i = 0; i < WIDE; i++) sum[g][i] += weight * wide(of_value[j].at[i]);
      }
    }
  }

#pragma unroll
  for (int g = 0; g < G; g++) {
    // The threads that had other keys.
#pragma unroll
    for (int with = LANES; with < 32; with *= 2) {
      const float other = __shfl_xor_sync(~0u, top[g], with), now = fmaxf(top[g], other);
      const float base = now == NEVER ? 0.0f : now;
      const float ours = __expf(top[g] - base), theirs = __expf(other - base);
      total[g] = total[g] * ours + __shfl_xor_sync(~0u, total[g], with) * theirs;
#pragma unroll
      for (int i = 0; i < WIDE; i++)
        sum[g][i] = sum[g][i] * ours + __shfl_xor_sync(~0u, sum[g][i], with) * theirs;
      top[g] = now;
    }
    if (lane < LANES) {
#pragma unroll
      for (int i = 0; i < WIDE; i++) all_sums[warp][g][column + i] = sum[g][i];
      if (lane == 0) all_tops[warp][g] = top[g], all_totals[warp][g] = total[g];
    }
  }
  __syncthreads();
  for (int at = threadIdx.x; at < count * width; at += 32 * WARPS) {
    const int g = at / width, i = at % width;
    float now = NEVER, whole = 0.0f, of_all = 0.0f;
    for (int w = 0; w < WARPS; w++) now = fmaxf(now, all_tops[w][g]);
    const float base = now == NEVER ? 0.0f : now;
    for (int w = 0; w < WARPS; w++) {
      const float factor = __expf(all_tops[w][g] - base);
      whole += all_totals[w][g] * factor;
      of_all += all_sums[w][g][i] * factor;
    }
    const u64 head = (u64)row * heads + first_head + g;
    if (splits == 1) {
      set(mixed[head * width + i], of_all / whole);
    } else {
      float *const to = parts + (head * splits + blockIdx.x) * (width + 2);
      to[i] = of_all;
      if (i == 0) to[width] = now, to[width + 1] = whole;
    }
  }
}

#define DECODE(E, G)                                                                                                   \
  KERNEL __launch_bounds__(32 * WARPS) decode_##E##_##G(                                                               \
      const Number *query, const Number *key, const Number *value, Number *keys, Number *values,                       \
      const unsigned *lengths, Number *mixed, float *parts, int heads, int kv_heads, int width, int capacity,          \
      int window, int query_step, int key_step, int value_step) {                                                      \
    decode<E, G>(query, key, value, keys, values, lengths, mixed, parts, heads, kv_heads, width, capacity, window,     \
                 query_step, key_step, value_step);                                                                    \
  }                                                                                                                    \
  ENTRY(decode_##E##_##G)

DECODE(64, 1)
DECODE(64, 2)
DECODE(64, 4)
DECODE(64, 8)
DECODE(128, 1)
DECODE(128, 2)
DECODE(128, 4)
DECODE(128, 8)

// What the parts of the keys of each row and head give together. Blocks (heads, rows).
KERNEL decode_join(const float *parts, Number *mixed, int splits, int width) {
  const u64 head = (u64)blockIdx.y * gridDim.x + blockIdx.x;
  const float *const mine = parts + head * splits * (width + 2);
  float top = NEVER, total = 0.0f;
  for (int split = 0; split < splits; split++) top = fmaxf(top, mine[split * (width + 2) + width]);
  for (int split = 0; split < splits; split++) {
    const float *const of = mine + split * (width + 2) + width;
    total += of[1] * __expf(of[0] - top);
  }
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    float sum = 0.0f;
    for (int split = 0; split < splits; split++) {
      const float *const of = mine + split * (width + 2);
      sum += of[i] * __expf(of[width] - top);
    }
    set(mixed[head * width + i], sum / total);
  }
}
