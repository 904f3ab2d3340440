// Attention over packed tokens, forward.
#include "attention.cuh"

template <class T, int E>
static __device__ __forceinline__ void forward(const T *query, const T *key, const T *value, T *mixed, float *sums, const unsigned *tiles,
                        const Shape shape) {
  constexpr int K = sizeof(T) == 2 ? 64 : BY, PADDING = VECTOR<T>, COUNT = Tile<T>::COUNT;
  DYNAMIC_SHARED(unsigned char, shared);
  Taken taken = {shared};
  const Matrix<T> queries = taken.matrix<T>(ROWS, E, PADDING);
  const Matrix<T> keys = taken.matrix<T>(K, E, PADDING), values = taken.matrix<T>(K, E, PADDING);
  const Matrix<T> all_weights = taken.matrix<T>(ROWS, K, PADDING);
  const Matrix<float> all_scores = taken.matrix<float>(ROWS, K, 4);
  float *const factors = taken.line<float>(ROWS) + warp() * 16;
  const int strip = warp() * 16;
  const Matrix<T> weights = all_weights.part(strip, 0);
  const Matrix<float> scores = all_scores.part(strip, 0);
  const Tile<T> tile(all_scores.at);

  const QueryTile mine(tiles + 5 * blockIdx.x);
  const int kv_head = blockIdx.y;
  mine.fetch_queries<T, E>(queries, query, shape, kv_head);

  typename Tile<T>::Sum sum[E / 16];
  for (int e = 0; e < E / 16; e++) Tile<T>::clear(sum[e]);
  // Of the rows 4 · i + lane / 8: the largest score so far, and the sum over e to what scores are less than it.
  float top[4], total[4];
  int position[4];
  for (int i = 0; i < 4; i++) {
    top[i] = NEVER, total[i] = 0.0f;
    position[i] = mine.position(strip + i * 4 + lane() / 8, shape);
  }
  const int end = mine.end(shape), last = mine.position(strip + 15, shape);
  for (int first = mine.begin(shape) / K * K; first < end; first += K) {
    __syncthreads();
    mine.fetch_keys<T, E>(keys, key, shape.key_step, first, K, shape, kv_head);
    mine.fetch_keys<T, E>(values, value, shape.value_step, first, K, shape, kv_head);
    __syncthreads();
    if (first > last) continue;

    typename Tile<T>::Sum score[K / 16];
    for (int n = 0; n < K / 16; n++) Tile<T>::clear(score[n]);
#pragma unroll(TURNS<T>)
    for (int e = 0; e < E; e += 16) {
      typename Tile<T>::Left left;
      Tile<T>::load(left, queries.part(strip, e));
#pragma unroll
      for (int n = 0; n < K / 16; n++) Tile<T>::add_turned(score[n], left, keys.part(16 * n, e));
    }
#pragma unroll
    for (int n = 0; n < K / 16; n++)
#pragma unroll
      for (int i = 0; i < COUNT; i++)
        scores.at[tile.where[i] / 16 * scores.ld + 16 * n + tile.where[i] % 16] = score[n].x[i];
    __syncwarp();

#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int row = i * 4 + lane() / 8;
      float mine_of[K / 8], largest = NEVER;
#pragma unroll
      for (int part = 0; part < K / 32; part++) {
        const int column = part * 32 + lane() % 8 * 4;
        const float4 four = *reinterpret_cast<const float4 *>(scores.at + row * scores.ld + column);
        const float each[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const float seen = shape.sees(position[i], first + column + j) ? each[j] : NEVER;
          mine_of[part * 4 + j] = seen;
          largest = fmaxf(largest, seen);
        }
      }
      const float now = fmaxf(top[i], largest_of_eight(largest));
      // Where nothing was seen yet, everything is e to the −∞.
      const float base = now == NEVER ? 0.0f : now;
      float sum_of = 0.0f;
#pragma unroll
      for (int part = 0; part < K / 32; part++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const float weight = __expf(mine_of[part * 4 + j] - base);
          sum_of += weight;
          set(weights.at[row * weights.ld + part * 32 + lane() % 8 * 4 + j], weight);
        }
      const float factor = __expf(top[i] - base);
      total[i] = total[i] * factor + sum_of_eight(sum_of);
      top[i] = now;
      if (lane() % 8 == 0) factors[row] = factor;
    }
    __syncwarp();

    float factor[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; i++) factor[i] = factors[tile.where[i] / 16];
#pragma unroll
    for (int e = 0; e < E / 16; e++)
#pragma unroll
      for (int i = 0; i < COUNT; i++) sum[e].x[i] *= factor[i];
#pragma unroll(TURNS<T>)
    for (int k = 0; k < K; k += 16) {
      typename Tile<T>::Left left;
      Tile<T>::load(left, weights.part(0, k));
#pragma unroll
      for (int e = 0; e < E / 16; e++) Tile<T>::add(sum[e], left, values.part(k, 16 * e));
    }
    __syncwarp();
  }

#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int row = i * 4 + lane() / 8;
    if (lane() % 8 == 0) {
      factors[row] = 1.0f / total[i];
      if (mine.real(strip + row, shape)) sums[mine.place(strip + row, shape, kv_head)] = top[i] + logf(total[i]);
    }
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < COUNT; i++) {
    const int row = tile.where[i] / 16, column = tile.where[i] % 16;
    if (!mine.real(strip + row, shape)) continue;
    T *const to = mixed + mine.place(strip + row, shape, kv_head) * shape.width;
#pragma unroll
    for (int e = 0; e < E / 16; e++)
      if (16 * e + column < shape.width) set(to[16 * e + column], sum[e].x[i] * factors[row]);
  }
}

#define FORWARD(E)                                                                                                     \
  KERNEL __launch_bounds__(THREADS) attention_##E(const Number *query, const Number *key, const Number *value,         \
                                                  Number *mixed, float *sums, const unsigned *tiles, SHAPE) {          \
    forward<Number, E>(query, key, value, mixed, sums, tiles, THE_SHAPE);                                              \
  }                                                                                                                    \
  ENTRY(attention_##E)

// Queries (N, H, width), keys and values (N, K, width) to (N, H, width) and the logarithmic sums (N, H). Blocks (tiles, K).
FORWARD(64)
FORWARD(128)
